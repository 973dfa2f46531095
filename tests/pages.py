"""Run each start page and how-to from an empty environment: a copy of the repository, its files, its blocks in order.

`python -m tests.pages [PAGE]...`; a page is a Markdown file whose program blocks have a title. Other Python blocks run with what
the page's `main.py` defines. A page may use the files of another one: it then links to it by the name of one of them.

Beside the machine's time it prints an estimate of a person's: every word of the page and of what its commands print is read
(238 words a minute, Brysbaert 2019), every command is typed (0.28 s a key) after a thought (1.35 s), and every file or snippet
is pasted, as one more thought (Card, Moran and Newell 1980). Nobody was timed.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
STARTS = sorted([*ROOT.glob("docs/start/*.md"), ROOT / "docs/start.md", ROOT / "docs/recipes/mail.md", ROOT / "docs/SKILL.md"])
HOWTOS = [ROOT / "README.md", ROOT / "docs/howto.md", ROOT / "docs/recipes/webhook.md"]
INSTALL = "python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt ."
WORD, KEY, THOUGHT = 60 / 238, 0.28, 1.35  # seconds
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "*_cache", "__pycache__", "long-results*")


def files(text: str) -> dict[str, str]:
    """Return the files that a page shows, by name."""
    return dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', text, re.MULTILINE | re.DOTALL))


def commands(text: str) -> list[str]:
    """Return the page's shell blocks, in order."""
    return re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def needed(page: Path) -> list[str]:
    """Return the pages whose files a page uses: those that it links by a file's name, and then itself."""
    text = page.read_text(encoding="utf-8")
    linked = re.findall(r"\[`\w+\.py`\]\(([\w/.]+\.md)", text)
    return [*((page.parent / other).read_text(encoding="utf-8") for other in linked), text]


def person(texts: list[str], printed: str) -> float:
    """Return the estimate of a person's seconds for these pages and what their commands print."""
    typed = [line for text in texts for block in commands(text) for line in block.splitlines()]
    pasted = sum(len(files(text)) + text.count("```python\n") for text in texts)
    read = len(" ".join([*texts, printed]).split())
    return read * WORD + sum(map(len, typed)) * KEY + (len(typed) + pasted) * THOUGHT


def run(page: Path, made: dict[str, Path], folder: Path) -> float:
    """Run one page in a folder, and return `person` of it. Raises `CalledProcessError`: a command failed.

    `made` are the environments that earlier pages installed, by their command: a page with the same command shares one.
    """
    clone = folder / page.stem
    shutil.copytree(ROOT, clone, ignore=LEFT_OUT)
    env = {k: v for k, v in os.environ.items() if k in {"HOME", "LANG", "TMPDIR", "PIP_INDEX_URL", "SSL_CERT_FILE"}}

    printed = []

    def play(*command: str) -> None:
        path = os.defpath + ":/usr/local/bin"
        done = subprocess.run(command, cwd=clone, env={**env, "PATH": path}, check=True, stdout=subprocess.PIPE, text=True)
        print(done.stdout, end="")
        printed.append(done.stdout)

    texts = needed(page)
    for text in texts:
        for name, content in files(text).items():
            (clone / name).write_text(content, encoding="utf-8")
    blocks = [block for text in texts for block in re.findall(r"^```(bash|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]
    if page.name == "README.md":  # `.ci/run` plays its test command, and `test_docs.py` its snippets
        blocks = [block for block in blocks if block[0] == "bash"][:1]
    first = next((code for language, code in blocks if language == "bash"), "")
    install = first.partition("\n")[0] if ".venv/bin/pip install" in first else INSTALL
    if install in made:
        (clone / ".venv").symlink_to(made[install])
    else:
        play("bash", "-euc", install)
        made[install] = clone / ".venv"
    before = "from main import *\n" if (clone / "main.py").exists() else ""
    for language, code in blocks:
        if language == "bash":
            play("bash", "-euc", code.removeprefix(install))
        else:
            play(".venv/bin/python", "-c", before + code)
    return person(texts, " ".join(printed))


def main(names: list[str]) -> int:
    failed, made, told = 0, dict[str, Path](), []
    with tempfile.TemporaryDirectory(prefix="pages-") as folder:
        for page in [Path(name).resolve() for name in names] or [*STARTS, *HOWTOS]:
            began = time.monotonic()
            try:
                said = f"passed, and a person needs about {run(page, made, Path(folder)) / 60:.0f} min"
            except subprocess.CalledProcessError as exc:
                failed, said = failed + 1, f"FAILED: {exc.cmd[-1]}"
            told.append(f"{page.relative_to(ROOT)}: {said} ({time.monotonic() - began:.0f} s)")
            print(told[-1], flush=True)
    print("\n".join(["", *told]))
    return failed > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
