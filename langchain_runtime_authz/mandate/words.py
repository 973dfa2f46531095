"""Compile a mandate from the user's words: cut a turn into clauses, find tools.

This reads the orders that profiles declare or that a verb suggests ("Pay Bob 45 EUR"). A turn is what the user sent at
once. Only one tool may fit a clause, in one reading (`mandate.order_matching`). Only courtesies may stand around orders,
as `languages/orders.grammar` knows them. If anything else is said, the whole turn has no mandate.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from itertools import groupby, pairwise
from textwrap import shorten
from types import MappingProxyType
from typing import Any, Final

from langchain_runtime_authz._text import normalize
from langchain_runtime_authz._validate import as_mapping
from langchain_runtime_authz.facts.task import content_digest
from langchain_runtime_authz.mandate.date_matching import on_days
from langchain_runtime_authz.mandate.languages import Language, Token, languages, words_of
from langchain_runtime_authz.mandate.model import Compiled, Dropped, Mandate, Step
from langchain_runtime_authz.mandate.order_matching import OrderMatch, token_cuts
from langchain_runtime_authz.mandate.plain_orders import Known, says
from langchain_runtime_authz.mandate.sequence import in_order, open_steps
from langchain_runtime_authz.mandate.vocabulary import MAX_NAME, TARGETS, ToolWords
from langchain_runtime_authz.tool_profile import ToolProfile

MAX_TEXT: Final = 2_000  # characters of a turn; a longer turn is not read
MAX_LINES: Final = 20
MAX_WORDS: Final = 100  # of one sentence
MAX_CLAUSES: Final = 16
MAX_AROUND: Final = 16  # words of courtesies
MAX_TRIES: Final = 10_000  # positions of a turn at which orders are tried
_SHOWN: Final = 80  # characters of a dropped stretch that are reported
_POINTS: Final = re.compile(r"^[ \t]*(?![-*•])\S[^\n]*[^:\s][ \t]*\n+[ \t]*[-*•][ \t]", re.MULTILINE)  # not under ":"
_LATIN: Final = re.compile("[\u00c0-\u024f\u1e00-\u1eff]")
_LONG: Final = "it is too long for an order"
_UNFIT: Final = "it fits no order of a tool; a value needs a capital, a digit or quotes"
_MORE: Final = "what stands behind {} may not belong to the order; give it an order of its own, or quote a text"
_SAME: Final = "two orders concern the same target"
_SHARED: Final = "what is said of one order may be said of another; give each its own `{}`"
_FIRST: Final = "it may hang on what is done first"
_AFTER: Final = "it may hang on what is said before it"
_WORDED: Final = frozenset(("word", "name", "sep", "own", "colon"))  # kinds of tokens without a value


class _UnclearError(Exception):
    """The reason why a turn orders nothing."""


def compile_words(
    texts: Sequence[str],
    profiles: Mapping[str, ToolProfile],
    schemas: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    today: date | None = None,
) -> Compiled:
    """Compile the mandate of one turn, or list what was not understood.

    Args:
        texts: the user's messages of the turn, in order.
        profiles: tool → profile.
        schemas: tool → the JSON schema of its arguments. Without one, each critical argument is required.
        today: the date of the messages. Without it, "tomorrow" is a common word.
    """
    found = Compiled(None, ())
    if texts and not any(map(str.strip, texts)):
        return _nothing("the text", "it is empty")
    if sum(map(len, texts)) > MAX_TEXT or sum(t.count("\n") for t in texts) > MAX_LINES:
        return _nothing(next((t for t in texts if t), ""), _LONG)
    for text in texts:
        if why := _unplain(text):
            return _nothing(text, why)
    for language in languages():
        for day in dict.fromkeys((today, None)):
            found = _Turn(language, profiles, schemas, day).read(texts)
            if found.mandate is not None:
                return found
    return found


def _nothing(text: str, why: str) -> Compiled:
    return Compiled(None, (Dropped(shorten(text[: 2 * _SHOWN], _SHOWN, placeholder="…"), why),))


def _unplain(text: str) -> str | None:
    """Return why a text is not read at all, or None."""
    if _POINTS.search(text):
        return "its points may be part of the line above them"
    if normalize("NFKC", text) != text:
        return "it has compatibility characters"
    for letter in set(text):
        category = unicodedata.category(letter)[0]
        if category == "C" and letter not in "\n\r\t":
            return "it has invisible characters"
        if category in "LMN" and not letter.isascii() and not _LATIN.match(letter):
            return "it mixes scripts"
    return None


def follows(language: Language, rule: str, text: str, tokens: Sequence[Token]) -> bool:
    """Return True if tokens without a value follow a rule of `orders.grammar`."""
    said = text[tokens[0].start : tokens[-1].end] if tokens else ""
    worded = all(t.kind in _WORDED for t in tokens)
    return worded and says(rule, said, Known()) and not language.doubtful.search(said)


class _Turn:
    def __init__(
        self,
        language: Language,
        profiles: Mapping[str, ToolProfile],
        schemas: Mapping[str, Mapping[str, Any]],
        today: date | None,
    ) -> None:
        self.language, self.data, self.today = language, language.data, today
        known = {n: profile for n, profile in profiles.items() if not profile.draft and 0 < len(n) <= MAX_NAME}
        self.profiles = known
        tools = [ToolWords(name, profile, schemas.get(name), language) for name, profile in known.items()]
        self.tools = [tool for tool in tools if tool.profile.needs_mandate]
        self.reads = [tool for tool in tools if tool.effect == "read"]
        self.signatures = {tool.name: as_mapping(tool.schema.get("properties")) for tool in tools}
        self.verbs = language.verbs.union(*(tool.verbs for tool in tools))
        named = (n for t in self.tools for n in (*t.profile.critical, *t.profile.when, *t.profile.text))
        self.labels = frozenset(word for name in named for word in words_of(name)).union(self.data["headings"])
        self.kept: list[tuple[ToolWords, Step]] = []
        self.asked = False  # the sentence ends with a question mark
        self.checked = False  # a clause orders a check, on whose result later orders may depend
        self.untold = False  # a clause orders to send a text, but does not give the text
        self.tries = 0  # positions of this turn at which orders were tried
        self.matches: dict[tuple[Token, ...], list[OrderMatch]] = {}  # of this message, by the tokens read
        self.text, self.digest = "", ""  # the message that is being read, and its digest

    def read(self, texts: Sequence[str]) -> Compiled:
        """Read all sentences. If one is not understood, the turn has no mandate."""
        dropped: list[Dropped] = []
        for self.text in texts:
            self.digest = content_digest(self.text)
            self.matches.clear()
            last = Token("end", "", len(self.text), len(self.text))
            at, tokens = 0, [*self.language.tokens(self.text, self.today), last]
            ends = [n for n, token in enumerate(tokens) if token.kind == "end"]
            sentences = len([end for end in ends if end and tokens[end - 1].kind != "end"])
            if sentences > MAX_LINES:
                return _nothing(self.text, _LONG)
            for end in ends:
                sentence, mark = tokens[at:end], tokens[end].text
                if sentence and "¿" in self.text[tokens[at - 1].end if at else 0 : sentence[-1].start]:
                    mark += "?"
                try:
                    if at and self._labelled(sentence[:2]):
                        raise _UnclearError("it may belong to the sentence before it")
                    self._sentence(sentence, mark)
                except _UnclearError as exc:
                    start, stop = tokens[at].start, tokens[max(at, end - 1)].end
                    dropped += _nothing(self.text[start:stop], str(exc)).dropped
                at = end + 1
        steps: dict[tuple[object, ...], Step] = {}
        for tool, step in self.kept:
            said = (step.tool, *_argument_texts(step).items())
            if tool.profile.needs_mandate and said not in steps:  # a repeated order counts once
                steps[said] = on_days(step.model_copy(update={"id": f"{len(steps) + 1}"}), tool.profile, self.today)
        numbered = in_order([*steps.values()], self.profiles, self.signatures)
        return Compiled(None if dropped or not steps else Mandate(steps=numbered, source="words"), tuple(dropped))

    # --- sentences

    def _sentence(self, tokens: list[Token], mark: str) -> None:
        if len(tokens) > MAX_WORDS:
            raise _UnclearError(_LONG)
        self.asked = "?" in mark
        opened = self._opened(tokens)
        wished = any(t.lower in self.data["wishing"] for t in tokens[:1])  # "I'd like to pay Bob 45 EUR?"
        if "?" in mark and (wished or not self._follows("asking", tokens[:opened])):
            raise _UnclearError("it is a question")
        if ".." in mark:
            raise _UnclearError("it trails off")
        plain = [t.lower for t in tokens if not self.language.separates(t) and not self._follows("asking", [t])]
        if self.kept and plain and {*plain} <= {*self.data["never_behind"]}:
            raise _UnclearError("it may say when")  # "Evening."
        if not tokens or self._follows("ahead", tokens):
            return
        letters = [t.text for t in tokens if t.kind in {"name", "word"}]
        if letters[1:] and all(map(str.isupper, letters)):
            raise _UnclearError("it is in capitals")
        if [t.kind for t in tokens[1:]] == ["id"] and tokens[0].lower in self.labels:  # "Order O-5"
            raise _UnclearError("it may name a thing")
        if not self.kept and self._follows("sequel", tokens[:opened]):
            raise _UnclearError(_AFTER)
        kinds = " ".join("to" if t.text in {"to", "and", "-"} else t.kind for t in tokens)
        if re.search(r"\bnumber (?:number|money|to date)\b", kinds):  # "123 500 EUR", "3 to 5 June"
            raise _UnclearError("two numbers may be one")
        clauses, before = [*self._clauses(tokens, opened)], len(self.kept)
        if any(self._matched([*one[:1], *clause]) for one, clause in pairwise(clauses)):
            raise _UnclearError("a word behind the verb may be a thing")  # "Cancel booking B-5 and order O-6"
        for clause in clauses:
            if "?" in mark and not any(map(self.language.definite, clause)):
                raise _UnclearError("it may ask what is possible")
            self._clause(clause)
        for _, name in open_steps([step for _, step in self.kept[before:]], self.profiles, self.signatures):
            raise _UnclearError(_SHARED.format(name))

    def _follows(self, rule: str, tokens: Sequence[Token]) -> bool:
        said = self.text[tokens[0].start : tokens[-1].end] if tokens else ""
        if self.language.possible.search(said) and not self.asked:
            return False  # "Puedes borrar a.txt."
        return follows(self.language, rule, self.text, tokens)

    def _matched(self, tokens: list[Token]) -> list[OrderMatch]:
        """Return the readings of a clause, one `OrderMatch` for each tool that fits."""
        if (key := tuple(tokens)) not in self.matches:
            tools = [tool for tool in (*self.tools, *self.reads) if tokens and tokens[0].lower in tool.verbs]
            ways, found = token_cuts(tokens) if tools else [], []
            for tool in tools:
                if self.tries > MAX_TRIES:
                    raise _UnclearError("it can be read in too many ways")
                found.append(match := OrderMatch(tool, ways, self.text))
                self.tries += match.values.tries
            self.matches[key] = [match for match in found if match.found]
        return self.matches[key]

    def _opened(self, tokens: Sequence[Token], at: int = 0) -> int:
        """Return the index of the verb behind words like "Hi, could you", or `at`."""
        verbs = (n for n in range(at + 1, min(len(tokens), at + MAX_AROUND)) if self._is_verb(tokens[n]))
        return next((n for n in verbs if self._follows("ahead", tokens[at:n])), at)

    def _clauses(self, tokens: list[Token], at: int) -> Iterator[list[Token]]:
        """Yield the clauses of a sentence. A new clause begins where a verb follows "and"."""
        begin = 0
        while at < len(tokens):
            gap = self.language.gap(tokens, at)
            verb = self._opened(tokens, at + gap) if gap and not self._turns(tokens[begin:at]) else len(tokens)
            if any(map(self._is_verb, tokens[verb : verb + 1])) and not self._labelled(tokens[verb : verb + 2]):
                yield tokens[begin:at]
                begin = at = verb
            else:
                at += gap or 1
        yield tokens[begin:]

    def _is_verb(self, token: Token) -> bool:
        return token.kind == "word" and token.lower in self.verbs and token.lower not in self.language.prepositions

    def _turns(self, tokens: Sequence[Token]) -> bool:
        """Return True for "In production, ...", not for "To Ann, ..." (an address)."""
        leads = any(t.lower in self.language.prepositions - {"to"} for t in tokens[:1])
        return leads and not any(map(self._is_verb, tokens))

    def _retracts(self, tokens: Sequence[Token]) -> bool:
        """Return True if a clause may withdraw an order: "cancel it", not "cancel O-5"."""
        ends = tokens[0].lower in self.data["retracting"] or any(self.language.stopped(t.lower) for t in tokens)
        known = {value for _, step in self.kept for value in _argument_texts(step).values()}
        return ends and all(t.kind in {"word", "name"} or t.text in known for t in tokens[1:])

    def _labelled(self, tokens: Sequence[Token]) -> bool:
        """Return True if the first word only labels what follows: "note: paid"."""
        kind = tokens[-1].kind if tokens else ""
        return kind == "colon" or (kind == "quote" and tokens[0].lower in self.labels)

    # --- one clause

    def _clause(self, tokens: list[Token]) -> None:
        tokens = self._untailed(tokens[self._opened(tokens) :])
        if self._follows("ahead", tokens):
            return
        if not (matches := self._matched(tokens)):  # "Lösche bitte a.txt"
            tokens = [t for t in tokens if t.kind != "word" or not says("asking", t.text, Known())]
            matches = self._matched(tokens)
        if all(t.kind in {"name", "word"} and t.text[0].isupper() for t in tokens):
            raise _UnclearError("it may be a title")
        if self.kept and self._retracts(tokens):
            raise _UnclearError("it may take back an order before it")
        found = [(match, match.steps(self.digest)) for match in matches] or self._elided(tokens)
        at = next((n for n, t in enumerate(tokens) if self._is_verb(t)), 0)
        end = next((n for n in range(1, at) if self._follows("ahead", tokens[n:at])), at)
        if not found and self._turns(tokens[:end]):
            tokens = [*tokens[at:], *tokens[:end]]
            found = [(match, match.steps(self.digest)) for match in self._matched(tokens)]
        acts = any(match.tool.profile.needs_mandate for match, _ in found)
        if not any(steps for _, steps in found):
            stops = [t.text for t in tokens if t.kind != "quote" and self.language.stopped(t.lower)]
            gap = next((n for n in range(1, len(tokens)) if self.language.gap(tokens, n)), 0)
            mark = "the comma" if tokens[gap].text == "," else f"`{tokens[gap].text}`"
            meant = (tool for tool in self.tools if tokens[at].lower in tool.verbs)
            orders = next((f"; `{tool.name}` reads: {' · '.join(tool.profile.intent)}" for tool in meant), "")
            why = _MORE.format(mark) if self._matched(tokens[:gap]) else f"{_UNFIT}{orders}"
            raise _UnclearError(f"`{stops[0]}` leaves open whether it is an order" if stops else why)
        if acts and len(found) > 1:
            raise _UnclearError("more than one tool may be meant")
        if acts and self.checked:
            raise _UnclearError(_FIRST)
        if acts and self.untold:
            raise _UnclearError("what follows may be what is to be told")
        for match, steps in found:
            for step in steps:
                self._keep(match.tool, step)
            self.untold |= acts and match.untold(steps[0])
        verb, words = tokens[0].lower, {word for match, _ in found for word in words_of(match.tool.name)}
        self.checked |= not {verb, *words}.isdisjoint(self.data["checking"]) if acts else verb not in self.data["reads"]
        if len(self.kept) > MAX_CLAUSES:
            raise _UnclearError("it has too many orders")

    def _elided(self, tokens: list[Token]) -> list[tuple[OrderMatch, list[Step]]]:
        """Return the orders that share a verb: "Pay Bob 45 EUR and Ann 30 EUR"."""
        runs = [(gap, [*run]) for gap, run in groupby(tokens[1:], self.language.separates)]
        parts = [[*tokens[:1], *run] for gap, run in runs if not gap]
        joined = next((run[-1].text for gap, run in reversed(runs) if gap), "")
        # "Pay Bob 45 EUR, Correction 50 EUR" pays nobody of this name.
        found = [self._matched(part) for part in parts] if 1 < len(parts) <= MAX_CLAUSES and joined != "," else []
        same = found and all(len(one) == 1 and one[0].tool is found[0][0].tool for one in found)
        steps = [one[0].steps(self.digest) for one in found] if same else []
        if not steps or any(len(one) != 1 for one in steps):
            return []
        kinds = [{n: v.kind for n, (v, *_) in one[0].found[0].items()} for one in found]
        own = [v for v, *_ in found[0][0].found[0].values() if v.start > tokens[0].start]
        begun = (min((v for v, *_ in one[0].found[0].values()), key=lambda v: v.start) for one in found[1:])
        firsts = (value.text.split()[0] for value in begun if value.kind in {"name", "id"})
        # "Pay marta 45 EUR and deduct 5 EUR": a word in lower case may be a verb.
        other = any(word.islower() and word.isalpha() for word in firsts)
        plain = len(own) > 1 and all(kind == kinds[0] for kind in kinds) and not other
        return [(found[0][0], [step for one in steps for step in one])] if plain else []

    def _keep(self, tool: ToolWords, step: Step) -> None:
        """Add a step; refuse the turn if an order with the same target may depend on it."""
        hit = _targets(tool, step)
        for other, known in self.kept if tool.profile.needs_mandate else ():
            shared = hit & _targets(other, known) if other is not tool else hit == _targets(tool, known)
            if shared and (other is not tool or _argument_texts(known) != _argument_texts(step)):
                raise _UnclearError(_SAME if other is tool else _FIRST)
        self.kept.append((tool, step))

    def _untailed(self, tokens: list[Token]) -> list[Token]:
        """Return the tokens without polite words at their end."""
        for at in range(max(1, len(tokens) - MAX_AROUND), len(tokens)):
            capital = any(t.text[0].isupper() for t in tokens[at:])  # a name: "the page Shop Now"
            other = any(t.lower in self.data["never_behind"] for t in tokens[at:])  # "Friday next"
            if not capital and not other and self._follows("behind", tokens[at:]):
                return tokens[:at]
        return tokens


def _argument_texts(step: Step) -> dict[str, str]:
    """Return argument → value as text, without the positions in the message."""
    return {n: str(getattr(a, "value", a)) for n, a in step.args.items()}


def _targets(tool: ToolWords, step: Step) -> set[str]:
    """Return a step's targets. If it has none: the tool's nouns, and values but dates."""
    values = {n: v.casefold() for n, v in _argument_texts(step).items()}
    told = {v for n, v in values.items() if tool.profile.critical.get(n) in TARGETS}
    return told or {*tool.nouns, *(v for n, v in values.items() if n not in tool.profile.when)}
