"""The language of docstrings, comments, messages and docs: phrases that a reader would have to solve are not used."""

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "langchain_runtime_authz"

# Regular expression → what to write instead.
BANNED = {
    r"\bcan not\b": "cannot", r"(?<!there )\b(is|are|was|were) no\b(?! longer\b| more\b)": "negate the verb: is not a",
    r"\bbeside\b": "name the relation: outside, next to, in addition to", r"\b(who|which)ever\b": "if somebody …, any",
    r"\b(the|a|no|any|each|every|one|another) humans?\b(?!-)": "user, subject or approver",
    r"\bhuman's\b": "the user's, the subject's or the approver's", r"\bhow manieth\b": "its zero-based index",
    r"\bof (theirs|yours|his|hers)\b": "their …", r"\bin every writing\b": "in every form",
}
LONGEST = 80  # characters of a docstring's first line
# A docstring does not begin with a clause as its subject.
CLAUSE = re.compile(r"(What|Whatever|Who|Whoever|Whether|Where|That|How|Which|When)\b")

# Exact sentences that quote a standard: they may hold a banned phrase.
QUOTED: frozenset[str] = frozenset()

PAGES = (ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "examples" / "README.md", *ROOT.glob("docs/**/*.md"))


def _texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield comments and strings with their lines."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)):
            yield token.start[0], token.string


def _first_lines(path: Path) -> Iterator[str]:
    """Yield what is wrong with first lines of docstrings: a clause as subject, or too many characters."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = (ast.get_docstring(node) or "").partition("\n")[0]
            for why, wrong in {"a clause as subject": CLAUSE.match(first), "too long": len(first) > LONGEST}.items():
                if wrong:
                    yield f"{getattr(node, 'lineno', 1)}: {why}: {first}"


def _banned(text: str) -> list[str]:
    flat = " ".join(text.split())
    for quoted in QUOTED:
        flat = flat.replace(quoted, "")
    return [f"{m[0]!r}, write {instead}" for phrase, instead in BANNED.items() for m in re.finditer(phrase, flat, re.IGNORECASE)]


def _findings(path: Path) -> list[str]:
    # Splitting a file into its texts is what takes time.
    texts = _texts(path) if _banned(path.read_text(encoding="utf-8")) else ()
    found = [f"{line}: {one}" for line, text in texts for one in _banned(text)]
    return [*found, *_first_lines(path)]


def _each(find: Callable[[Path], list[str]], paths: Iterable[Path]) -> dict[str, list[str]]:
    """Return what is found in each file in which something is found."""
    return {str(path.relative_to(ROOT)): found for path in sorted(paths) if (found := find(path))}


def test_package() -> None:
    assert _each(_findings, PACKAGE.rglob("*.py")) == {}


def _in_prose(path: Path) -> list[str]:
    """Return what is found outside generated tables, code and quotes."""
    text = re.sub(r"<!-- (\w+):begin -->.*?<!-- \1:end -->", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return _banned(re.sub(r"^```.*?^```|`[^`]*`", "", text, flags=re.DOTALL | re.MULTILINE))


def test_docs() -> None:
    assert _each(_in_prose, PAGES) == {}


def test_policies_and_profiles() -> None:
    texts = [p for d in (PACKAGE, ROOT / "examples") for e in ("rego", "cedar", "yaml") for p in d.rglob(f"*.{e}")]
    assert _each(lambda path: _banned(path.read_text(encoding="utf-8")), texts) == {}


SENTENCE = 25  # words


def _long(path: Path) -> list[str]:
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    paragraphs = re.split(r"\n\s*\n|\n(?=[-#|>]|\d+\. )", text)
    prose = [" ".join(p.split()) for p in paragraphs if not p.lstrip().startswith("|")]
    prose = [re.sub(r"\]\([^)]*\)|`[^`]*`", " x ", p) for p in prose]
    return [s for p in prose for s in re.split(r"(?<=[.:;?!])\s", p) if len(re.findall(r"\w+(?:['’-]\w+)*", s)) > SENTENCE]


def test_sentences_are_short() -> None:
    assert _each(_long, (path for path in PAGES if "_generated" not in path.parts)) == {}
