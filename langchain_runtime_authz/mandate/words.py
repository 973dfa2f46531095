"""Compile a mandate from the user's words: cut a turn into clauses, find tools.

This reads plain orders ("Pay Bob 45 EUR and email carol@x.org saying 'done'"). A turn is what the user sent at once.
Every word of the turn must be understood. A condition, a question, a negation, a report, a future or a remark leaves
the whole turn without a mandate. An approver is then asked about each side effect.

A clause begins with a verb of a tool: a word of the profile's `intent`, or else of the tool's name. Only one tool may
fit (`mandate.assignment` tells when a tool fits). The words of a language are data.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from textwrap import shorten
from types import MappingProxyType
from typing import Any, Final

from langchain_runtime_authz._regex import normalize
from langchain_runtime_authz.facts.task import content_digest
from langchain_runtime_authz.mandate.clause import Clause
from langchain_runtime_authz.mandate.declared_orders import DeclaredOrders
from langchain_runtime_authz.mandate.languages import Language, Token, languages, singular, words_of
from langchain_runtime_authz.mandate.model import Compiled, Dropped, Mandate, Step
from langchain_runtime_authz.mandate.vocabulary import MAX_NAME, TARGETS, Tool
from langchain_runtime_authz.tool_profile import ToolProfile

MAX_TEXT: Final = 2_000  # characters of a turn; a longer turn is not read
MAX_LINES: Final = 20
MAX_WORDS: Final = 100  # of one sentence
MAX_CLAUSES: Final = 16
MAX_TAIL: Final = 8  # words of a polite ending
_SHOWN: Final = 80  # characters of a dropped stretch that are reported
_MATERIAL: Final = re.compile(
    r"^[ \t]*(?:```|~~~|>|\||[-_=*]{4,}|(?:from|to|cc|date|sent|subject|reply-to):)", re.IGNORECASE | re.MULTILINE
)
_POINTS: Final = re.compile(r"^[ \t]*(?![-*•])\S[^\n]*[^:\s][ \t]*\n+[ \t]*[-*•][ \t]", re.MULTILINE)  # not under ":"
_POINT: Final = frozenset({"id", "email", "quote", "hash", "handle"})  # kinds of a list's values
_LATIN: Final = re.compile("[\u00c0-\u024f\u1e00-\u1eff]")
_LONG: Final = "it is too long for an order"
_SAME: Final = "two orders concern the same target"
_FIRST: Final = "it may hang on what is done first"


class _UnclearError(Exception):
    """The reason why a turn orders nothing."""


def compile_words(
    texts: Sequence[str],
    profiles: Mapping[str, ToolProfile],
    signatures: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> Compiled:
    """Compile the mandate of one turn, or list what was not understood.

    Args:
        texts: the user's messages of the turn, in order.
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
    """Return why a text is not read at all, or None."""
    if _MATERIAL.search(text):
        return "it looks like quoted or forwarded text"
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


class _Turn:
    def __init__(
        self, language: Language, profiles: Mapping[str, ToolProfile], signatures: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self.language, self.data = language, language.data
        tools = [
            Tool(name, profile, schema if isinstance(schema := signatures.get(name), Mapping) else {}, language)
            for name, profile in profiles.items()
            if not profile.draft and len(name) <= MAX_NAME
        ]
        chats = [t for t in tools if not t.letters and t.nouns & {*self.data["chats"]}]
        if any("object" in t.profile.critical.values() for t in chats):
            for tool in tools:  # if a tool acts on chats, a message may be no email
                tool.letters -= {*self.data["chats"]}
        self.tools = [tool for tool in tools if tool.profile.ordered]
        self.reads = [tool for tool in tools if tool.effect == "read"]
        self.verbs = language.verbs.union(self.data["reads"], (e[0] for t in self.tools for e in t.heads))
        named = (n for t in self.tools for n in (*t.profile.critical, *t.profile.when, *t.profile.text))
        self.labels = frozenset(word for name in named for word in words_of(name)).union(self.data["headings"])
        self.nouns = self.labels.union(*(t.nouns for t in self.tools))
        self.small = {*language.prepositions, *language.determiners, *self.data["numerals"], "and"}
        self.kept: list[tuple[Tool, Step]] = []
        self.checked = False  # a clause checks something, on which later orders may depend
        self.alone = False  # the turn is one sentence, which is not the title of others
        self.untold = False  # a clause orders to tell or note something, without saying what
        self.open = False  # a clause dictates words without quotes, so what follows may belong to them
        self.rivals: set[Tool] = set()  # tools that the clause may mean, but does not name or lacks an argument of
        self.orders: dict[tuple[Token, ...], dict[Tool, DeclaredOrders]] = {}  # of this message, by the tokens read
        self.text, self.digest = "", ""  # the message that is read now, and its digest

    def read(self, texts: Sequence[str]) -> Compiled:
        """Read all sentences. If one is not understood, the turn has no mandate."""
        dropped: list[Dropped] = []
        for self.text in texts:
            self.digest = content_digest(self.text)
            self.orders.clear()
            at, tokens = 0, [*self._framed(), Token("end", "", len(self.text), len(self.text))]
            ends = [n for n, token in enumerate(tokens) if token.kind == "end"]
            sentences = len([end for end in ends if end and tokens[end - 1].kind != "end"])
            self.alone = sentences == len(texts) == 1
            if sentences > MAX_LINES:
                return _nothing(self.text, _LONG)
            for end in ends:
                sentence, mark = tokens[at:end], tokens[end].text
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
            if tool.profile.ordered:
                steps.setdefault((step.tool, *_said(step).items()), step)  # an order that is repeated counts once
        numbered = [step.model_copy(update={"id": f"{n}"}) for n, step in enumerate(steps.values(), 1)]
        return Compiled(
            None if dropped or not steps else Mandate(steps=tuple(numbered), source="words"), tuple(dropped)
        )

    # --- sentences

    def _framed(self) -> list[Token]:
        """Return the tokens; all text behind "this query:" or "Body:" is one quotation."""
        tokens, end = self._listed(list(self.language.tokens(self.text))), len(self.text.rstrip())
        for at, colon in enumerate(tokens[1:-1], 2):
            if colon.kind != "colon" or singular(tokens[at - 2].lower) not in self.language.framed:
                continue
            start = end - len(self.text[colon.end : end].lstrip())
            rest = [t for t in tokens[at:] if t.start >= start]
            several = any(t.kind == "end" for t in rest[:-1]) and "\n" not in self.text[colon.end : start]
            if not rest or rest[0].kind == "quote" or several or self.language.stop(rest):
                break
            return [*tokens[:at], Token("quote", self.text[start:end], start, end)]
        return tokens

    def _listed(self, tokens: list[Token]) -> list[Token]:
        """Join points of one value each: "Delete these files:", a.txt and b.txt."""
        at = next((n for n, t in enumerate(tokens) if t.kind == "colon"), len(tokens))
        points, ends = tokens[at + 2 :: 2], tokens[at + 1 :: 2]
        plain = all(t.kind == "end" and "\n" in t.text for t in ends) and all(t.kind in _POINT for t in points)
        return (
            [
                t._replace(kind="sep", text=",") if n > at and t in ends else t
                for n, t in enumerate(tokens)
                if n != at + 1
            ]
            if plain and points
            else tokens
        )

    def _sentence(self, tokens: list[Token], mark: str) -> None:
        language, opened = self.language, self._opened(tokens)
        asked = any(language.match("requests", tokens, at) for at in range(opened)) and opened < len(tokens)
        if "?" in mark and not asked:
            raise _UnclearError("it is a question")
        if ".." in mark:
            raise _UnclearError("it trails off")
        if not tokens or self._opened(tokens, 0, "courtesies") == len(tokens):
            return
        if len(tokens) > MAX_WORDS:
            raise _UnclearError(_LONG)
        begun = opened + max(tool.begun(tokens[opened:]) for tool in self.tools) if self.tools else opened
        whole = self._untailed(tokens[opened:])
        orders = self._declared(whole)
        if declared := any(orders[tool].found and not orders[tool].open for tool in self.tools):
            begun = len(tokens)  # "put {order} on hold"
        if stop := language.stop([*tokens[:opened], *tokens[begun:]]):  # a tool may stop or hold something
            raise _UnclearError(f"`{stop}` leaves open whether it is an order")
        for token in tokens[opened + 1 :]:
            if token.text[:1].isupper() and token.lower in self.small and not declared:
                raise _UnclearError(f"`{token.text}` may be part of a name")
        for clause in self._unfronted(list(self._clauses(tokens, opened))):
            if "?" in mark and not any(map(language.definite, clause)):
                raise _UnclearError("it may ask what is possible")
            self._clause(clause)

    def _declared(self, tokens: list[Token]) -> dict[Tool, DeclaredOrders]:
        """Return what each tool's declared orders read."""
        if (key := tuple(tokens)) not in self.orders:
            tools = (*self.tools, *self.reads)
            self.orders[key] = {tool: DeclaredOrders(tool, tokens, self.text) for tool in tools}
        return self.orders[key]

    def _opened(self, tokens: Sequence[Token], at: int = 0, phrases: str = "openers") -> int:
        """Return the index at which the clause begins, behind greetings (`phrases`)."""
        while taken := self.language.match(phrases, tokens, at):
            at += taken
            at += at < len(tokens) and tokens[at].text == ","
        return at

    def _clauses(self, tokens: list[Token], at: int) -> Iterator[list[Token]]:
        """Yield the clauses of a sentence. A new clause begins where a verb follows "and"."""
        begin, unended = 0, False  # without quotes, the end of dictated words, or of a name, is not known
        while at < len(tokens):
            gap = self.language.match("separators", tokens, at)
            verb = self._opened(tokens, at + gap)
            dictated = self.language.match("dictation", tokens, at) or int(tokens[at].lower in self.data["naming"])
            dictated *= at > begin
            unended |= dictated > 0 and [t.kind for t in tokens[at + dictated : at + dictated + 1]] != ["quote"]
            if gap and not dictated and self._begins(tokens[begin + 1 : at], tokens[verb : verb + 2]):
                if unended:
                    raise _UnclearError("it is not clear where the dictated words end")
                yield tokens[begin:at]
                begin = at = verb
            else:
                at += dictated or gap or 1
        yield tokens[begin:]

    def _unfronted(self, clauses: list[list[Token]]) -> list[list[Token]]:
        """Move phrases behind the only order: "In production, restart the service web"."""
        (front, *orders), small = clauses, self.language.prepositions
        if len(orders) != 1 or [t.lower in small for t in front[:1]] != [True]:
            return clauses
        role = front[0].lower == self.data["acting"]  # "As an editor, share plan.md" may say who shares
        infinitive = front[1:2] and front[1].kind == "word" and front[1].lower not in self.language.determiners
        between = self.text[front[-1].end : orders[0][0].start].strip(", ")
        # "To begin, pay Bob 45 EUR" does not say to whom, and "To Ana, please send it" is a letter to her.
        role |= front[0].lower == self.data["setting"][0] and bool(infinitive or between)
        told = any(t.kind != "quote" for t in orders[0][self._dictated(orders[0]) + 1 :][:1])
        behind = [t for t, after in pairwise([*front, front[0]]) if t.text != "," or after.lower not in small]
        return clauses if role or told else [[*self._untailed(orders[0]), *behind]]

    def _begins(self, before: Sequence[Token], tokens: Sequence[Token]) -> bool:
        """Return True if `tokens` begin a clause with a verb that `before` does not have."""
        verb = tokens and tokens[0].kind == "word" and tokens[0].lower in self.verbs and not self._labelled(tokens)
        return bool(verb) and all(t.lower != tokens[0].lower for t in before)

    def _retracts(self, tokens: Sequence[Token]) -> bool:
        """Return True for "cancel the payment", but not for "cancel the order O-5"."""
        ends = tokens[0].lower in self.data["retracting"] or self.language.stop(tokens)
        return bool(ends) and all(t.kind == "word" for t in tokens[1:])

    def _labelled(self, tokens: Sequence[Token]) -> bool:
        """Return True if the first word is a label of what follows: "note: paid"."""
        kind = tokens[-1].kind if tokens else ""
        return kind == "colon" or (kind == "quote" and tokens[0].lower in self.labels)

    # --- one clause

    def _clause(self, tokens: list[Token]) -> None:
        tokens = self._untailed(tokens[self._opened(tokens) :])
        if self._opened(tokens, 0, "courtesies") == len(tokens):
            return
        to = self.data["setting"][0]
        shapes = ["" if t.kind == "date" else re.sub(r"\d+", "0", t.text) for t in tokens]
        paid = any(t.kind == "money" for t in tokens)  # "Transfer 45 EUR from ACC-1 to ACC-2"
        ranges = zip(shapes, tokens[1:], shapes[2:], strict=False)
        telling = tokens[0].lower in {*self.data["tellings"], *self.data["asking"]}
        others = (
            one.lower == to and after.lower in self.verbs for one, after in pairwise(tokens[: self._dictated(tokens)])
        )
        orders = self._declared(tokens)
        declared = any(one.found for one in orders.values())
        bounds = any("0" in one == two and w.lower == to for one, w, two in ranges)
        doubts = {
            "it may be a title": not (declared and self.alone)
            and all(t.kind in {"name", "word"} and t.text.istitle() for t in tokens),
            "it may be a range": bounds and not (paid or declared),
            "it tells somebody else to do it": telling and any(others) and not declared,
            "it is not clear whether it belongs to the dictated words": self.open,
            "it may take back an order before it": bool(self.kept) and self._retracts(tokens),
        }
        for why in (why for why, doubted in doubts.items() if doubted):
            raise _UnclearError(why)
        self.rivals.clear()

        def read(tool: Tool) -> list[Step]:
            steps = orders[tool].steps(self.digest) if orders[tool].found else self._ordered(tool, tokens)
            self.rivals |= {tool} if orders[tool].found and not steps else set()
            return steps

        ways = [(tool, steps) for tool in self.tools if (steps := read(tool))]
        looks = [] if ways else [(tool, steps) for tool in self.reads if (steps := read(tool))]
        if not (ways or looks):
            raise _UnclearError("it is not understood as an order to a tool")
        named = {tool for tool in self.tools if _spoken(tokens).issuperset(words_of(tool.name))}
        rivals = self.rivals.difference(tool for tool, _ in ways)
        if len(ways) > 1 or (ways and (rivals & named if ways[0][0] in named else rivals)):
            raise _UnclearError("more than one tool may be meant")
        if ways and self.checked:
            raise _UnclearError(_FIRST)
        if ways and self.untold:
            raise _UnclearError("what follows may be what is to be told")
        for tool, steps in ways or looks:
            for step in steps:
                self._keep(tool, step)
            self.open |= orders[tool].open
            texts, tells = tool.texts, tool.tells
            if orders[tool].found:
                spoken = tool.profile.named()["intent"] if tool.effect == "send" else ()
                texts = {a.name for a in tool.arguments if a.required or a.name in spoken} & texts
                tells = bool(texts)
            self.untold |= bool(ways) and tells and texts.isdisjoint(steps[0].args)
        self.checked |= bool(looks) and tokens[0].lower not in self.data["reads"]
        if len(self.kept) > MAX_CLAUSES:
            raise _UnclearError("it has too many orders")

    def _keep(self, tool: Tool, step: Step) -> None:
        """Keep a step, or refuse it if another order has its target and may depend on it."""
        hit = _targets(tool, step)
        for other, known in self.kept if tool.profile.ordered else ():
            shared = hit & _targets(other, known) if other is not tool else hit == _targets(tool, known)
            if shared and (other is not tool or _said(known) != _said(step)):
                raise _UnclearError(_SAME if other is tool else _FIRST)
        self.kept.append((tool, step))

    def _dictated(self, tokens: Sequence[Token]) -> int:
        """Return the index at which words are dictated; without any, the number of tokens."""
        return next((n for n in range(1, len(tokens)) if self.language.match("dictation", tokens, n)), len(tokens))

    def _untailed(self, tokens: list[Token]) -> list[Token]:
        """Return the tokens without polite words at their end; dictated words keep them."""
        spoken = self._dictated(tokens)
        spoken = len(tokens) if any(t.kind == "quote" for t in tokens[spoken:]) else spoken
        for at in range(max(0, len(tokens) - MAX_TAIL), len(tokens)):
            capital = any(t.text[:1].isupper() for t in tokens[at:])  # "the page Shop Now"
            if (
                not (capital or (at > spoken and tokens[at - 1].kind != "sep"))
                and self.language.match("tails", tokens, at) == len(tokens) - at
            ):
                return self._untailed(tokens[: at - bool(at and tokens[at - 1].kind == "sep")])
        return tokens

    def _verb(self, tool: Tool, tokens: Sequence[Token]) -> int:
        """Return the number of the verb's tokens; 0 if the clause does not ask for `tool`."""
        said, rest = tokens[0].lower, _spoken(tokens[1:])
        to = [t.lower for t in tokens[-2:-1]] == self.data["setting"][:1] and said in self.data["relative"]
        rest |= tool.offered(tokens[-1].lower) if to else set()  # "Set the deal D-1 to won" sets a stage
        behind, (named, *nouns) = [t.lower for t in tokens[1:2]], [*words_of(tool.name), ""]
        # "Open the ticket" only reads it. "Open a ticket" acts, and so does "Open gate G-7" for a tool `open_gate`.
        looks = said in self.data["reads"] and tool.profile.side_effect and not {*behind} & {*self.data["indefinite"]}
        its = named == said and len(nouns) > 1 and rest.issuperset(nouns[:-1])
        if looks and not its:
            return 0
        taken, particles = [0], self.language.prepositions.union(self.data["particles"])
        for verb, *nouns in tool.entries:
            particle = not particles.isdisjoint(nouns[:1])
            if verb == said and rest.issuperset(map(singular, nouns)) and (not particle or behind == nouns[:1]):
                taken.append(1 + particle)
            if not particles.isdisjoint(nouns[-1:]):
                taken.append(tool.begun(tokens, (verb, *nouns)))  # "put a hold on"
        return max(taken)

    def _ordered(self, tool: Tool, tokens: list[Token]) -> list[Step]:
        """Return the steps that a clause orders: two for "Pay Bob 45 EUR and Ann 30 EUR"."""
        taken = self._verb(tool, tokens)
        rest = tokens[taken:]
        acts = tool.effect in {"write", "admin", "delete"} and rest and rest[0].lower not in tool.offers
        away = self.language.prepositions if acts else self.data["parting"]  # "Run to the shop", "Start with Bob"
        if not taken or not rest or rest[0].lower in away:
            return []  # in "Transfer of 45 EUR", the word is a noun
        tool.prepare()
        told = _spoken(tokens).union(self.data["cash"] if any(t.kind == "money" for t in rest) else ())
        unnamed = not (tool.intent or told.issuperset(tool.nouns) or _plain(tool, rest))
        parts: list[list[Token]] = [[]]
        at = 0
        while at < len(rest):
            gap = self.language.match("separators", rest, at)
            parts += [[]] if gap and parts[-1] else []
            parts[-1] += rest[at : at + 1] if not gap else []
            at += gap or 1
        single = len(parts) == 1

        def read(part: list[Token]) -> list[Step]:
            clause = Clause(tool, tokens[0].lower, part, self.text, self.nouns, single=single)
            steps = clause.steps(self.digest)
            self.rivals |= {tool} if part is rest and (clause.assignment.lacks or (steps and unnamed)) else set()
            self.open |= not unnamed and any(p.kind == "open" for p in clause.found if p.values)
            return steps

        whole = read(rest)
        if unnamed:
            return []
        each = [read(part) for part in parts] if 1 < len(parts) <= MAX_CLAUSES else []
        paired = [step for steps in each for step in steps]
        # A value alone does not make a pair: "Delete Ernst & Young".
        if not paired or not all(each) or any(len(step.args) == 1 for step in paired):
            return whole
        alike = all(step.args.keys() == paired[0].args.keys() for step in paired)
        same = not whole or list(map(_said, whole)) == list(map(_said, paired))
        return paired if alike and same else []


def _spoken(tokens: Sequence[Token]) -> set[str]:
    return {singular(t.lower) for t in tokens if t.kind in {"word", "name"}}


def _plain(tool: Tool, rest: Sequence[Token]) -> bool:
    """Return True if a value may tell the tool: "Move a.txt", "Archive #ops"."""
    if any(t.kind == "hash" for t in rest):
        return any(a.kind == "channel" and a.words >= tool.nouns for a in tool.arguments)
    file = rest[0].kind == "id" and re.search(r"\w\.\w{1,5}$", rest[0].text)
    return bool(file) and "file" in tool.nouns and tool.effect in {"write", "admin", "read"}


def _said(step: Step) -> dict[str, str]:
    """Return argument → value as text, without the positions in the message."""
    return {n: str(getattr(a, "value", a)) for n, a in step.args.items()}


def _targets(tool: Tool, step: Step) -> set[str]:
    """Return a step's targets; without any, its nouns and all values except dates."""
    values = {n: v.casefold() for n, v in _said(step).items()}
    told = {v for n, v in values.items() if tool.profile.critical.get(n) in {*TARGETS, "url"}}
    return told or {*tool.nouns, *(v for n, v in values.items() if n not in tool.profile.when)}
