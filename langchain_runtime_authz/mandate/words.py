"""Compile a mandate from the user's own words, without a model.

It is a small clause parser. It reads plain orders ("Pay Bob 45 EUR and email carol@x.org saying 'done'"), and nothing
else. Every word of every sentence of the turn must be understood. One word too many (a condition, a question, a negation,
a report, a future, a remark) leaves the turn without a mandate. The user is then asked about the call.

A clause begins with a verb of a tool: a word of its profile's `intent`, else of its name or effect. A tool fits if each
phrase of the clause has exactly one argument, and each required argument has a phrase (`mandate.clause`). The words of a
language are data (`mandate.languages`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Final

from langchain_runtime_authz.facts.task import content_digest
from langchain_runtime_authz.mandate.clause import MAX_NAME, Tool
from langchain_runtime_authz.mandate.languages import Language, Token, languages, singular, words_of
from langchain_runtime_authz.mandate.model import MAX_STEPS, Compiled, Const, Dropped, Mandate, Step
from langchain_runtime_authz.mandate.phrases import Reader
from langchain_runtime_authz.profile import ToolProfile

MAX_TEXT: Final = 2_000  # characters of a turn; a longer one is material
MAX_LINES: Final = 20
MAX_WORDS: Final = 100  # of one sentence
MAX_CLAUSES: Final = 16
MAX_READ: Final = 10  # words of a plain read
_SHOWN: Final = 80  # characters of a dropped stretch that are reported
_MATERIAL: Final = re.compile(
    r"^[ \t]*(?:```|~~~|>|\||[-_=*]{4,}|(?:from|to|cc|date|sent|subject|reply-to):)", re.IGNORECASE | re.MULTILINE
)
_LATIN: Final = re.compile("[\u00c0-\u024f\u1e00-\u1eff]")
_TARGETS: Final = frozenset({"principal", "object", "name", "channel", "url"})


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
    if sum(map(len, texts)) > MAX_TEXT or sum(t.count("\n") for t in texts) > MAX_LINES:
        return Compiled(None, (Dropped(_short(next((t for t in texts if t), "")), "it is too long for an order"),))
    if why := next((w for t in texts if (w := _unplain(t))), None):
        return Compiled(None, (Dropped(_short(next(t for t in texts if _unplain(t))), why),))
    found = Compiled(None, ())
    for language in languages():
        found = _Turn(language, profiles, signatures).read(texts)
        if found.mandate is not None:
            break
    return found


def _short(text: str) -> str:
    text = " ".join(text[: 2 * _SHOWN].split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _unplain(text: str) -> str | None:
    """Return why a text is not read at all."""
    if _MATERIAL.search(text):
        return "it looks like quoted or forwarded text"
    if not text.isascii():
        if unicodedata.normalize("NFKC", text) != text:
            return "it has compatibility characters"
        for letter in set(text):
            category = unicodedata.category(letter)
            if category[0] == "C" and letter not in "\n\r\t":
                return "it has invisible characters"
            if category[0] in "LMN" and not letter.isascii() and not _LATIN.match(letter):
                return "it mixes scripts"
    elif not text.replace("\n", "").replace("\r", "").replace("\t", "").isprintable():
        return "it has invisible characters"
    return None


class _Turn:
    """The reading of one turn in one language."""

    def __init__(
        self, language: Language, profiles: Mapping[str, ToolProfile], signatures: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self.language = language
        self.tools = [
            Tool(name, profile, schema if isinstance(schema := signatures.get(name), Mapping) else {}, language)
            for name, profile in profiles.items()
            if profile.ordered and not profile.draft and len(name) <= MAX_NAME
        ]
        verbs = {entry[0] for tool in self.tools for entry in tool.entries}
        self.verbs = language.verbs | verbs | language.reads.keys()
        named = (n for t in self.tools for n in (*t.profile.critical, *t.profile.when, *t.profile.text))
        self.labels = language.alike(word for name in named for word in words_of(name))
        self.deeds: list[list[Step]] = []
        self.open = False  # unquoted dictation goes on to the end of the turn
        self.vague: set[str] = set()  # tools to which the clause does not say what it names

    def read(self, texts: Sequence[str]) -> Compiled:
        """Read all sentences of the texts. What is not understood voids the turn."""
        dropped: list[Dropped] = []
        for text in texts:
            digest = content_digest(text)
            sentences = self._sentences(text)
            if len(sentences) > MAX_LINES:
                dropped.append(Dropped(_short(text), "it is too long for an order"))
                break
            for sentence, mark in sentences:
                try:
                    self._sentence(sentence, mark, text, digest)
                except _UnclearError as exc:
                    dropped.append(Dropped(_short(text[sentence[0].start : sentence[-1].end]), str(exc)))
        if not dropped:
            try:
                steps = self._steps()
            except _UnclearError as exc:
                return Compiled(None, (Dropped(_short(texts[-1]), str(exc)),))
            if steps:
                return Compiled(Mandate(steps=steps, source="words"), ())
        return Compiled(None, tuple(dropped))

    def _sentences(self, text: str) -> list[tuple[list[Token], str]]:
        """Return the sentences with their marks. "The amount is 45" goes on with the sentence before it."""
        found: list[tuple[list[Token], str]] = []
        sentence: list[Token] = []
        for token in [*self._framed(text), Token("end", "", len(text), len(text))]:
            if token.kind != "end":
                sentence.append(token)
            elif sentence and found and self._labelled(sentence):
                found[-1] = (
                    [*found[-1][0], Token("sep", ",", sentence[0].start, sentence[0].start), *sentence],
                    found[-1][1] + token.text,
                )
                sentence = []
            elif sentence or "?" in token.text:  # a question mark of its own
                found.append((sentence or [token], token.text))
                sentence = []
        return found

    def _framed(self, text: str) -> list[Token]:
        """Return the tokens. The rest of the text behind "with this content:" or "this query:" is one quotation."""
        tokens, language = list(self.language.tokens(text)), self.language
        for at, (frame, colon) in enumerate(pairwise(tokens), 2):
            if colon.kind == "colon" and singular(frame.lower) in language.framed and at < len(tokens):
                start, end = tokens[at].start, len(text.rstrip())
                if tokens[at].kind != "quote" and (
                    singular(frame.lower) not in language.data["speech"] or not language.stop(tokens[at:])
                ):
                    return [*tokens[:at], Token("quote", text[start:end], start, end)]
                break
        return tokens

    def _labelled(self, tokens: Sequence[Token]) -> bool:
        """Return True for a sentence that only says what an argument is: "Subject: Site plan"."""
        at = int(tokens[0].lower in self.language.determiners)
        is_ = at + 1 < len(tokens) and (
            tokens[at + 1].kind == "colon" or self.language.match(self.language.copulas, tokens, at + 1)
        )
        return bool(is_) and singular(tokens[at].lower) in self.labels

    def _sentence(self, tokens: list[Token], mark: str, text: str, digest: str) -> None:
        language = self.language
        if "?" in mark and not self._requested(tokens):
            raise _UnclearError("it is a question")
        if ".." in mark:
            raise _UnclearError("it trails off")
        if self._courteous(tokens):
            return
        if len(tokens) > MAX_WORDS:
            raise _UnclearError("it is too long for an order")
        if stop := language.stop(tokens):
            raise _UnclearError(f"`{stop}` leaves open whether it is an order")
        onward, to = language.data["onward"], language.data["setting"][0]  # "over to" is "to"
        tokens = [
            t for t, n in zip(tokens, [*tokens[1:], tokens[0]], strict=True) if t.lower not in onward or n.lower != to
        ]
        clauses = list(self._clauses(tokens))
        if len(clauses) == 2 and clauses[0][0].lower in language.prepositions:  # noqa: PLR2004  ("On 3 June, book …")
            clauses = [clauses[1] + clauses[0]]
        known = len(self.deeds)
        for clause in clauses:
            self._clause(clause, text, digest)
        if "?" in mark and any(_generic(step) for deed in self.deeds[known:] for step in deed):
            raise _UnclearError("it may ask what is possible")

    def _courteous(self, tokens: Sequence[Token]) -> bool:
        """Return True if the tokens are greetings, thanks and the like, and nothing else."""
        at = 0
        while taken := self.language.match(self.language.courtesies, tokens, at):
            at += taken
            at += at < len(tokens) and tokens[at].text == ","
        return at == len(tokens)

    def _requested(self, tokens: Sequence[Token]) -> bool:
        """Return True for a question that is a polite order ("Could you …?")."""
        begins = range(opened := self._opened(tokens, 0))
        asks = any(self.language.match(self.language.requests, tokens, at) for at in begins)
        return opened < len(tokens) and (asks or self.language.match(self.language.tags, tokens, len(tokens) - 2) > 0)

    def _opened(self, tokens: Sequence[Token], at: int) -> int:
        """Return where the clause begins that stands behind greetings and polite words."""
        while taken := self.language.match(self.language.openers, tokens, at):
            at += taken
            at += at < len(tokens) and tokens[at].kind == "sep" and tokens[at].text == ","
        return at

    def _clauses(self, tokens: list[Token]) -> Iterator[list[Token]]:
        """Yield the clauses of a sentence: a new one begins where a verb follows "and"."""
        language, begin, at, open_ = self.language, 0, self._opened(tokens, 0), False
        while at < len(tokens):
            dictated = max(language.match(language.dictation, tokens, at), language.match(language.topics, tokens, at))
            if dictated and at > begin:
                after = tokens[at + dictated].kind if at + dictated < len(tokens) else ""
                open_ = open_ or after != "quote"
                at += dictated
                continue
            gap = language.match(language.separators, tokens, at)
            if gap:
                verb = self._opened(tokens, at + gap)
                if self._begins(tokens, begin, at, verb):
                    if open_:
                        raise _UnclearError("it is not clear where the dictated words end")
                    yield tokens[begin:at]
                    begin, at = at + gap, verb
                    continue
                at += gap
                continue
            at += 1
        yield tokens[begin:]

    def _begins(self, tokens: Sequence[Token], begin: int, at: int, verb: int) -> bool:
        """Return True if a clause begins at a verb, and not with a noun of the last one: "mail 1 to … and mail 2"."""
        if verb >= len(tokens) or tokens[verb].kind != "word" or tokens[verb].lower not in self.verbs:
            return False
        last = tokens[begin + 1 : at]
        labels = verb + 1 < len(tokens) and tokens[verb + 1].kind == "colon"
        return not labels and all(t.lower != tokens[verb].lower for t in last)

    def _clause(self, tokens: list[Token], text: str, digest: str) -> None:
        language = self.language
        opened = self._opened(tokens, 0)
        gerund = any(language.match(language.gerunds, tokens, at) for at in range(opened))
        tokens = tokens[opened:]
        tokens = self._untailed(tokens)
        if self._courteous(tokens):
            return
        if self._called(tokens):
            raise _UnclearError("it is not clear whether its last word is somebody who is spoken to")
        if self.open:
            raise _UnclearError("it is not clear whether it belongs to the dictated words")
        if gerund and (base := language.base(tokens[0].lower, self.verbs)):
            tokens = [tokens[0]._replace(text=base), *tokens[1:]]
        for own in (True, False):
            self.vague.clear()
            read = (self._ordered(tool, tokens, text, digest, own=own) for tool in self.tools)
            if steps := [step for step in read if step]:
                break
        if len(steps) > 1 and self.vague:
            steps = [s for s in steps if s[0].tool not in self.vague]
            if not steps:
                raise _UnclearError("it does not tell what it names")
        if steps:
            width = len(steps[0])
            if any(len(s) != width for s in steps):
                raise _UnclearError("tools read it differently")
            self.deeds += [[s[i] for s in steps] for i in range(width)]
            if len(self.deeds) > MAX_CLAUSES:
                raise _UnclearError("it has too many orders")
        elif not self._plain_read(tokens):
            raise _UnclearError("it is not understood as an order to a tool")

    def _called(self, tokens: Sequence[Token]) -> bool:
        """Return True if a comma and a name end the tokens: "Delete a.txt, Carol" does not delete Carol."""
        at = len(tokens)
        if any(t.kind == "colon" for t in tokens):
            return False
        while at and tokens[at - 1].kind in {"name", "word"}:
            at -= 1
        return (
            0 < at < len(tokens)
            and tokens[at - 1].text == ","
            and tokens[at].lower not in {"and", "then", "also"} | self.labels
        )

    def _untailed(self, tokens: list[Token]) -> list[Token]:
        """Return the tokens without the polite words at their end."""
        language, size = self.language, len(tokens)
        while size:
            ends = [
                n for n in range(1, min(size, 6) + 1) if language.match(language.tails, tokens[:size], size - n) == n
            ]
            if not ends:
                break
            size -= ends[-1]
            size -= bool(size and tokens[size - 1].kind == "sep")
        return tokens[:size]

    def _ordered(self, tool: Tool, tokens: list[Token], text: str, digest: str, *, own: bool) -> list[Step]:
        """Return the steps that a clause orders of a tool: several for a list of complete objects or pairs."""
        taken = tool.verb(tokens, own=own)
        if not taken:
            return []
        tool.prepare()
        rest, order = tokens[taken:], text[min(t.start for t in tokens) : max(t.end for t in tokens)]
        if rest and rest[0].lower in self.language.data["parting"]:
            return []  # "Transfer of 45 EUR" is a noun
        parts = self._parts(rest)
        if len(parts) > MAX_CLAUSES:
            return []
        whole, open_ = self._steps_of(tool, rest, text, order, digest, lists=len(parts) > 1, part=False)
        if len(parts) > 1:
            paired: list[Step] = []
            for part in parts:
                steps, _ = self._steps_of(tool, part, text, order, digest, lists=False, part=True)
                if not steps:
                    break
                paired += steps
            else:
                if all(step.args.keys() == paired[0].args.keys() for step in paired):
                    return paired if not whole or list(map(_values, whole)) == list(map(_values, paired)) else []
                # "Delete a.txt and b.txt in X": nobody knows whether X holds for both. A text does.
                whole = whole if len({frozenset(_constants(step)) for step in paired}) == 1 else []
        self.open = self.open or open_
        return whole

    def _parts(self, tokens: list[Token]) -> list[list[Token]]:
        parts: list[list[Token]] = [[]]
        at = 0
        while at < len(tokens):
            gap = self.language.match(self.language.separators, tokens, at)
            if gap and parts[-1]:
                parts.append([])
            elif not gap:
                parts[-1].append(tokens[at])
            at += gap or 1
        return parts

    def _steps_of(
        self, tool: Tool, tokens: list[Token], text: str, order: str, digest: str, *, lists: bool, part: bool
    ) -> tuple[list[Step], bool]:
        read = Reader(tool, tokens, text, lists=lists, part=part).read()
        bound = tool.bind(*read) if read else None
        if read is None or bound is None:
            return [], False
        if any(map(tool.vague, bound)):
            self.vague.add(tool.name)
        purpose = next((p.values[0].text for p in read[0] if p.marker == "purpose"), None)
        return [tool.step(one, read[1] or purpose, order, digest) for one in bound], read[1] is not None

    def _plain_read(self, tokens: list[Token]) -> bool:
        """Return True for an order to read or show something, which needs no step."""
        taken = self.language.match(self.language.reads, tokens, 0)
        return taken > 0 and len(tokens) <= MAX_READ and all(map(self._readable, tokens[taken:]))

    def _readable(self, token: Token) -> bool:
        if token.lower in self.language.read_words:
            return True
        return self.language.value(token) and not (token.kind == "word" and token.lower in self.verbs)

    def _steps(self) -> tuple[Step, ...]:
        """Return the numbered steps. Ways to do one thing share a deed, and the same order twice is one."""
        found: list[Step] = []
        targets: dict[tuple[object, ...], list[Step]] = {}
        for number, deed in enumerate(self.deeds, 1):
            first = deed[0]
            known = targets.setdefault(self._target(first), deed)
            if known is not deed:
                if [(s.tool, _values(s)) for s in known] != [(s.tool, _values(s)) for s in deed]:
                    raise _UnclearError("two orders concern the same target")
                continue
            for way, step in enumerate(deed):
                name = f"{number}" if len(deed) == 1 else f"{number}.{way + 1}"
                shared = f"{number}" if len(deed) > 1 else None  # with other tools it may be the only way
                found.append(step.model_copy(update={"id": name, "deed": shared}))
        if len(found) > MAX_STEPS:
            raise _UnclearError("it has too many orders")
        return tuple(found)

    def _target(self, step: Step) -> tuple[object, ...]:
        profile = next(t.profile for t in self.tools if t.name == step.tool)
        hit = [
            (name, argument.value)
            for name, argument in step.args.items()
            if isinstance(argument, Const) and profile.critical.get(name) in _TARGETS
        ]
        return (step.tool, *hit)


def _generic(step: Step) -> bool:
    """Return True if the step names something by a plural alone: "Can you delete files?"."""
    values = [a.value for a in step.args.values() if isinstance(a, Const)]
    return any(isinstance(v, str) and v.isalpha() and v.islower() and singular(v) != v for v in values)


def _constants(step: Step) -> list[str]:
    return [name for name, argument in step.args.items() if isinstance(argument, Const)]


def _values(step: Step) -> list[tuple[str, object]]:
    return [(n, a.value if isinstance(a, Const) else a) for n, a in step.args.items()]
