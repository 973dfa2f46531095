"""Compile a mandate from the user's own words, without a model.

It reads plain orders ("Pay Bob 45 EUR and email carol@x.org saying 'done'"). Every word of every sentence of the turn must
be understood. One word too many (a condition, a question, a negation, a report, a future, a remark) leaves the turn
without a mandate. The user is then asked about the call.

A clause begins with a verb of a tool: a word of its `intent`, else of its name. Only one tool may fit. It fits if each
phrase has exactly one argument, and each required argument has a phrase. The words of a language are data.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from itertools import dropwhile, pairwise, takewhile
from textwrap import shorten
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from langchain_runtime_authz.facts.task import content_digest
from langchain_runtime_authz.mandate.clause import Tool
from langchain_runtime_authz.mandate.languages import Language, Token, languages, singular, words_of
from langchain_runtime_authz.mandate.model import MAX_STEPS, Compiled, Const, Dropped, Mandate, Step, Text
from langchain_runtime_authz.mandate.phrases import Reader
from langchain_runtime_authz.mandate.vocabulary import MAX_NAME
from langchain_runtime_authz.tool_profile import ToolProfile

MAX_TEXT: Final = 2_000  # characters of a turn; a longer one is material
MAX_LINES: Final = 20
MAX_WORDS: Final = 100  # of one sentence
MAX_CLAUSES: Final = 16
MAX_TAIL: Final = 8  # words of a polite ending
_SHOWN: Final = 80  # characters of a dropped stretch that are reported
_MATERIAL: Final = re.compile(
    r"^[ \t]*(?:```|~~~|>|\||[-_=*]{4,}|(?:from|to|cc|date|sent|subject|reply-to):)", re.IGNORECASE | re.MULTILINE
)
_POINTS: Final = re.compile(r"^[ \t]*(?![-*•])\S[^\n]*[^:\s][ \t]*\n+[ \t]*[-*•][ \t]", re.MULTILINE)  # no ":" above
_LATIN: Final = re.compile("[\u00c0-\u024f\u1e00-\u1eff]")
_LONG: Final = "it is too long for an order"


class _Way(NamedTuple):
    """The steps that one tool reads in a clause."""

    steps: list[Step] = []  # noqa: RUF012  (never changed)
    vague: bool = False  # they do not say what they name; another tool may have something of that name
    dictated: bool = False  # their text goes on to the end of the clause, without quotes


class _UnclearError(Exception):
    """Why the turn orders nothing."""


def compile_words(
    texts: Sequence[str],
    profiles: Mapping[str, ToolProfile],
    signatures: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> Compiled:
    """Return the mandate of one turn's texts, or `None` and what was not understood.

    Args:
        texts: the user's own texts of one turn, in order.
        profiles: tool → profile.
        signatures: tool → the JSON schema of its arguments. Without one, each critical argument is required.
    """
    found = Compiled(None, ())
    if sum(map(len, texts)) > MAX_TEXT or sum(t.count("\n") for t in texts) > MAX_LINES:
        return _nothing(next((t for t in texts if t), ""), _LONG)
    for text in texts:
        if why := _unplain(text):
            return _nothing(text, why)
    for language in languages():
        found = _Turn(language, profiles, signatures).read(texts)
        if found.mandate is not None:
            break
    return found


def _nothing(text: str, why: str) -> Compiled:
    return Compiled(None, (Dropped(shorten(text[: 2 * _SHOWN], _SHOWN, placeholder="…"), why),))


def _unplain(text: str) -> str | None:
    """Return why a text is not read at all."""
    if _MATERIAL.search(text):
        return "it looks like quoted or forwarded text"
    if _POINTS.search(text):
        return "its points may be part of the line above them"
    if unicodedata.normalize("NFKC", text) != text:
        return "it has compatibility characters"
    for letter in set(text):
        category = unicodedata.category(letter)[0]
        if category == "C" and letter not in "\n\r\t":
            return "it has invisible characters"
        if category in "LMN" and not letter.isascii() and not _LATIN.match(letter):
            return "it mixes scripts"
    return None


class _Turn:
    """The reading of one turn in one language."""

    def __init__(
        self, language: Language, profiles: Mapping[str, ToolProfile], signatures: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self.language = language
        tools = [
            Tool(name, profile, schema if isinstance(schema := signatures.get(name), Mapping) else {}, language)
            for name, profile in profiles.items()
            if not profile.draft and len(name) <= MAX_NAME
        ]
        self.tools = [tool for tool in tools if tool.profile.ordered]
        self.reads = [tool for tool in tools if tool.effect == "read"]
        verbs = {entry[0] for tool in self.tools for entry in tool.entries}
        self.verbs = language.verbs | verbs | {*language.data["reads"]}
        named = (n for t in self.tools for n in (*t.profile.critical, *t.profile.when, *t.profile.text))
        self.labels = frozenset(word for name in named for word in words_of(name)).union(language.data["headings"])
        said = language.prepositions | {"and", "then", "also"}
        self.ends = said | self.labels | {c for t in self.tools for c in t.offers}  # no name behind a comma
        self.nouns = self.labels.union(*(t.nouns for t in self.tools))
        self.small = {*language.prepositions, *language.determiners, *language.data["numerals"], "and"}
        self.deeds: list[Step] = []
        self.hits: list[tuple[Tool, set[str]]] = []  # what the clauses concern
        self.checked = False  # something is checked before what is ordered
        self.orders = 0  # clauses that order something
        self.untold = False  # something is to be told or noted, and the words do not say what
        self.open = False  # unquoted dictation goes on to the end of the turn
        self.text, self.digest = "", ""  # of which a sentence is read

    def read(self, texts: Sequence[str]) -> Compiled:
        """Read all sentences of the texts. What is not understood voids the turn."""
        dropped: list[Dropped] = []
        for self.text in texts:
            self.digest = content_digest(self.text)
            sentences = self._sentences()
            if len(sentences) > MAX_LINES:
                return _nothing(self.text, _LONG)
            for at, (sentence, mark) in enumerate(sentences):
                try:
                    if at and self._labelled(sentence[:2]):
                        raise _UnclearError("it may belong to the sentence before it")
                    self._sentence(sentence, mark)
                except _UnclearError as exc:
                    dropped += _nothing(self.text[sentence[0].start : sentence[-1].end], str(exc)).dropped
        if dropped:
            return Compiled(None, tuple(dropped))
        try:
            steps = self._steps()
        except _UnclearError as exc:
            return _nothing(self.text, str(exc))
        return Compiled(Mandate(steps=steps, source="words") if steps else None, ())

    # --- sentences

    def _sentences(self) -> list[tuple[list[Token], str]]:
        """Return the sentences with their marks."""
        found: list[tuple[list[Token], str]] = []
        sentence: list[Token] = []
        for token in [*self._framed(), Token("end", "", len(self.text), len(self.text))]:
            if token.kind != "end":
                sentence.append(token)
                continue
            if sentence or "?" in token.text:  # a question mark of its own
                found.append((sentence or [token], token.text))
            sentence = []
        return found

    def _framed(self) -> list[Token]:
        """Return the tokens. The rest of the text behind "this query:" or "Body:" is one quotation."""
        tokens, language, end = list(self.language.tokens(self.text)), self.language, len(self.text.rstrip())
        for at, colon in enumerate(tokens[:-1], 1):
            framing = self._untailed(tokens[: at - 1]) if colon.kind == "colon" else []
            if not framing or (noun := singular(framing[-1].lower)) not in language.framed:
                continue
            rest = list(dropwhile(lambda t: t.kind == "end", tokens[at:])) or [colon]
            start = end - len(self.text[colon.end : end].lstrip())
            apart = at < 3 or tokens[at - 3].kind == "end" or "\n" in self.text[colon.end : start]  # noqa: PLR2004
            several = any(t.kind == "end" for t in rest[:-1])
            speech = noun in language.data["speech"]
            if rest[0].kind == "quote" or (speech and language.stop(rest)) or (several and not apart):
                break
            return [*framing, colon, Token("quote", self.text[start:end], start, end)]
        return tokens

    def _sentence(self, tokens: list[Token], mark: str) -> None:
        language = self.language
        if "?" in mark and not self._requested(tokens):
            raise _UnclearError("it is a question")
        if ".." in mark:
            raise _UnclearError("it trails off")
        if self._courteous(tokens):
            return
        if len(tokens) > MAX_WORDS:
            raise _UnclearError(_LONG)
        if stop := language.stop(tokens):
            raise _UnclearError(f"`{stop}` leaves open whether it is an order")
        for token in tokens[self._opened(tokens) + 1 :]:
            if token.text[:1].isupper() and token.lower in self.small:
                raise _UnclearError(f"`{token.text}` may be part of a name")
        clauses = list(self._clauses(tokens))
        if "?" in mark and not all(any(language.definite(t) for t in clause) for clause in clauses):
            raise _UnclearError("it may ask what is possible")
        for clause in clauses:
            self._clause(clause)

    def _opened(self, tokens: Sequence[Token], at: int = 0, phrases: str = "openers") -> int:
        """Return where the clause behind greetings and polite words begins."""
        while taken := self.language.match(phrases, tokens, at):
            at += taken
            at += at < len(tokens) and tokens[at].text == ","
        return at

    def _courteous(self, tokens: Sequence[Token]) -> bool:
        """Return True if the tokens are greetings, thanks and the like, and nothing else."""
        return self._opened(tokens, 0, "courtesies") == len(tokens)

    def _requested(self, tokens: Sequence[Token]) -> bool:
        """Return True for a question that is a polite order ("Could you …?")."""
        opened = self._opened(tokens)
        return opened < len(tokens) and any(self.language.match("requests", tokens, at) for at in range(opened))

    def _clauses(self, tokens: list[Token]) -> Iterator[list[Token]]:
        """Yield the clauses of a sentence: a new one begins where a verb follows "and"."""
        begin, at, open_ = 0, self._opened(tokens), False
        while at < len(tokens):
            gap = self.language.match("separators", tokens, at)
            verb = self._opened(tokens, at + gap)
            begins = gap and self._begins(tokens[begin + 1 : at], tokens[verb : verb + 2])
            dictated = self.language.match("dictation", tokens, at)
            dictated = dictated or int(tokens[at].lower in self.language.data["naming"])
            if dictated and at > begin:
                at += dictated
                open_ = open_ or [t.kind for t in tokens[at : at + 1]] != ["quote"]
            elif begins:
                if open_:
                    raise _UnclearError("it is not clear where the dictated words end")
                yield tokens[begin:at]
                begin, at = at + gap, verb
            else:
                at += gap or 1
        yield tokens[begin:]

    def _begins(self, before: Sequence[Token], tokens: Sequence[Token]) -> bool:
        """Return True if a clause begins at a verb, and not with a noun of the last one: "mail 1 to … and mail 2"."""
        if not tokens or tokens[0].kind != "word" or tokens[0].lower not in self.verbs:
            return False
        return not self._labelled(tokens) and all(t.lower != tokens[0].lower for t in before)

    def _labelled(self, tokens: Sequence[Token]) -> bool:
        """Return True if the first word names what stands behind it: "note: paid"."""
        return tokens[-1].kind == "colon" or (tokens[-1].kind == "quote" and tokens[0].lower in self.labels)

    # --- one clause

    def _clause(self, tokens: list[Token]) -> None:
        tokens = self._untailed(tokens[self._opened(tokens) :])
        if self._courteous(tokens):
            return
        if self._called(tokens):
            raise _UnclearError("it is not clear whether its last word is somebody who is spoken to")
        if all(t.kind in {"name", "word"} and t.text.istitle() for t in tokens):
            raise _UnclearError("it may be a title")
        shapes = [re.sub(r"\d+", "0", t.text) for t in tokens]
        ranges = zip(shapes, tokens[1:], shapes[2:], strict=False)
        if any("0" in one == two and to.lower == self.language.data["setting"][0] for one, to, two in ranges):
            raise _UnclearError("it may be a range")
        if self._delegated(tokens):
            raise _UnclearError("it tells somebody else to do it")
        if self.open:
            raise _UnclearError("it is not clear whether it belongs to the dictated words")
        ways = [(tool, way) for tool in self.tools if (way := self._ordered(tool, tokens)).steps]
        looks = [] if ways else [(tool, way) for tool in self.reads if (way := self._ordered(tool, tokens)).steps]
        looked = [(tool, way) for tool, way in looks if not way.vague]
        if not (ways or looked):
            raise _UnclearError("it is not understood as an order to a tool")
        if len(ways) > 1:
            raise _UnclearError("more than one tool may be meant")
        for tool, way in ways or looked:
            hit = {str(v).casefold() for step in way.steps for _, v in tool.hit(_values(step))} or tool.nouns
            if ways and (self.checked or any(tool is not one and not hit.isdisjoint(h) for one, h in self.hits)):
                raise _UnclearError("it may hang on what is done first")
            self.hits.append((tool, hit))
        if looked:
            self.checked |= tokens[0].lower not in self.language.data["reads"]
            return  # a read needs no step
        (tool, way) = ways[0]
        self.open = way.dictated
        self.untold |= tool.tells and not any(isinstance(a, Text) for s in way.steps for a in s.args.values())
        self.deeds += way.steps
        self.orders += 1
        if len(self.deeds) > MAX_CLAUSES:
            raise _UnclearError("it has too many orders")

    def _delegated(self, tokens: Sequence[Token]) -> bool:
        """Return True for "tell Bob to pay Ana": a verb behind "to" is what somebody else does."""
        data, to = self.language.data, self.language.data["setting"][0]
        spoken = (n for n in range(1, len(tokens)) if self.language.match("dictation", tokens, n))
        told = tokens[: next(spoken, len(tokens))] if tokens[0].lower in {*data["tellings"], *data["asking"]} else []
        return any(one.lower == to and after.lower in self.verbs for one, after in pairwise(told))

    def _called(self, tokens: Sequence[Token]) -> bool:
        """Return True if a comma and a name end the tokens: "Delete a.txt, Carol" does not delete Carol."""
        last = list(takewhile(lambda t: t.kind in {"name", "word"}, reversed(tokens)))
        if not last or len(last) == len(tokens) or any(t.kind == "colon" for t in tokens):
            return False
        return tokens[-len(last) - 1].text == "," and last[-1].lower not in self.ends

    def _untailed(self, tokens: list[Token]) -> list[Token]:
        """Return the tokens without the polite words at their end."""
        for at in range(max(0, len(tokens) - MAX_TAIL), len(tokens)):
            capital = any(t.text[:1].isupper() for t in tokens[at:])  # "the page Shop Now"
            if not capital and self.language.match("tails", tokens, at) == len(tokens) - at:
                comma = at and tokens[at - 1].kind == "sep"
                return self._untailed(tokens[: at - bool(comma)])
        return tokens

    def _ordered(self, tool: Tool, tokens: list[Token]) -> _Way:
        """Return what a clause orders of a tool: several steps for a list of complete objects or pairs."""
        taken, data = tool.verb(tokens), self.language.data
        rest = tokens[taken:]
        acts = tool.effect in {"write", "admin", "delete"} and rest and rest[0].lower not in tool.offers
        away = self.language.prepositions if acts else data["parting"]  # "Run to the shop", "Start with Bob"
        if not taken or not rest or rest[0].lower in away:
            return _Way()  # "Transfer of 45 EUR" is a noun
        tool.prepare()
        parts: list[list[Token]] = [[]]
        at = 0
        while at < len(rest):
            gap = self.language.match("separators", rest, at)
            parts += [[]] if gap and parts[-1] else []
            parts[-1] += rest[at : at + 1] if not gap else []
            at += gap or 1

        def way(said: list[Token], *, lists: bool, part: bool) -> _Way:
            phrases = Reader(tool, self.nouns, said, self.text, lists=lists, part=part).read()
            bound = tool.bind(phrases, tokens[0].lower)
            steps = [tool.step(one, self.digest) for one in bound]
            return _Way(steps, any(map(tool.vague, bound)), any(p.marker == "open" for p in phrases))

        whole = way(rest, lists=len(parts) > 1, part=False)
        ways = [way(part, lists=False, part=True) for part in parts] if 1 < len(parts) <= MAX_CLAUSES else []
        paired = [step for each in ways for step in each.steps]
        # A value alone does not make a pair: "Delete Ernst & Young".
        if not paired or not all(each.steps for each in ways) or any(len(step.args) == 1 for step in paired):
            return whole
        if all(step.args.keys() == paired[0].args.keys() for step in paired):
            same = not whole.steps or list(map(_values, whole.steps)) == list(map(_values, paired))
            return _Way(paired, any(each.vague for each in ways)) if same else _Way()
        # "Delete a.txt and b.txt in X": nobody knows whether X holds for both. A text does.
        one = len({frozenset(n for n, a in step.args.items() if isinstance(a, Const)) for step in paired}) == 1
        return whole if one else _Way()

    # --- the turn

    def _steps(self) -> tuple[Step, ...]:
        """Return the numbered steps. The same order twice is one."""
        if self.untold and self.orders > 1:
            raise _UnclearError("what follows may be what is to be told")
        targets: dict[tuple[object, ...], Step] = {}
        for step in self.deeds:
            if _values(targets.setdefault(self._target(step), step)) != _values(step):
                raise _UnclearError("two orders concern the same target")
        if len(targets) > MAX_STEPS:
            raise _UnclearError("it has too many orders")
        return tuple(s.model_copy(update={"id": f"{n}"}) for n, s in enumerate(targets.values(), 1))

    def _target(self, step: Step) -> tuple[object, ...]:
        tool = next(t for t in self.tools if t.name == step.tool)
        values = _values(step)
        return (step.tool, *(tool.hit(values) or [(n, str(v)) for n, v in values if n not in tool.profile.when]))


def _values(step: Step) -> list[tuple[str, object]]:
    return [("", step.tool), *((n, a.value if isinstance(a, Const) else a) for n, a in step.args.items())]
