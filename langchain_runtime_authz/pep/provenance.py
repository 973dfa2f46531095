"""Where arguments came from, at work: what to look up, what to tell the policy, what to keep.

The index is in the ledger, by digest, so that another process goes on with it. What can not be kept
as a digest (numbers for derivations, texts for showing a sentence) is kept here, in this process, in
bounded space; without it a value is `unknown`, and then a policy asks.

One index serves a whole thread: a child agent inherits what its parent read, and what it reads itself
flows back. Its task text is a machine's and asserts nothing.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from langchain_runtime_authz.authzen import ArgumentProvenance, IntentContext, Subject
from langchain_runtime_authz.facts.inert import inert, quoted, scripts
from langchain_runtime_authz.facts.intent import Request
from langchain_runtime_authz.facts.provenance.forms import forms, skeleton, tidy
from langchain_runtime_authz.facts.provenance.observe import Harvest, Number, Prose, observe_output
from langchain_runtime_authz.facts.provenance.trace import SHORTEST, Evidence, Memory, names_source, trace
from langchain_runtime_authz.facts.provenance.words import HumanWords
from langchain_runtime_authz.facts.task import ANSWER
from langchain_runtime_authz.ledger.base import Scope, Snapshot
from langchain_runtime_authz.profile import ToolProfile, argument

if TYPE_CHECKING:
    from langchain_runtime_authz.pep.call import Call
    from langchain_runtime_authz.pep.engine import Engine, Run

__all__ = ["Observe", "ThreadMemory", "arguments", "effective_sink", "intent", "observing", "sentences"]

_log = logging.getLogger(__name__)

MAX_THREADS: Final = 512
MAX_NUMBERS: Final = 128  # newest, per thread
MAX_PROSE: Final = 200_000  # characters, per thread
MAX_SENTENCE: Final = 240
MAX_PAYEES: Final = 1024  # destinations remembered, per thread
SMALL: Final = 20_000  # characters that are read without a thread of their own
_DESTINATIONS: Final = ("principal", "url", "channel")


@dataclass(frozen=True, slots=True)
class TaskWords:
    """A task's words at one state of it, read once.

    `turns`: how often the human said something. What he answers to a question asks for nothing anew.
    """

    digest: str
    words: HumanWords
    request: Request
    turns: int = 0


_NO_MEMORY: Final = Memory()
_NOTHING: Final = TaskWords("", HumanWords(()), Request(()))


@dataclass(slots=True)
class _Thread:
    said: TaskWords | None = None
    numbers: OrderedDict[tuple[object, ...], Number] = field(default_factory=OrderedDict)
    prose: deque[Prose] = field(default_factory=deque)
    chars: int = 0
    memory: Memory | None = None  # of `numbers` and `prose`, until there are more
    payees: dict[str, frozenset[str]] = field(default_factory=dict)  # skeleton → as written


class ThreadMemory:
    """What this process remembers of threads. Losing it loses convenience, never safety."""

    def __init__(self) -> None:
        self._threads: OrderedDict[Scope, _Thread] = OrderedDict()
        self._lock = threading.Lock()

    def said(self, scope: Scope) -> TaskWords | None:
        """The task's words as they were last read."""
        with self._lock:
            thread = self._threads.get(scope)
            return thread.said if thread is not None else None

    def hear(self, scope: Scope, snapshot: Snapshot) -> TaskWords:
        """The task's words in a snapshot that holds the log."""
        # What others said gives no authority, and an act without words none either.
        own = [t for t in snapshot.log if t.own]
        texts = [t.text for t in own if t.text]
        turns = sum(not (t.key or "").startswith(ANSWER) for t in own)
        said = TaskWords(snapshot.task.digest, HumanWords(texts), Request(texts), turns)
        with self._lock:
            self._thread(scope).said = said
        return said

    def keep(self, scope: Scope, found: Harvest) -> None:
        """Remember the numbers and texts of one output."""
        with self._lock:
            thread = self._thread(scope)
            if found.numbers or found.prose:
                thread.memory = None
            for number in found.numbers[-MAX_NUMBERS:]:
                # Of equal numbers that say the same, one.
                thread.numbers[number.value, number.seen[1:-1]] = number
            while len(thread.numbers) > MAX_NUMBERS:
                thread.numbers.popitem(last=False)
            for prose in found.prose[-64:]:
                # Folded once, here: it is searched at each question.
                text = tidy(prose.text[: MAX_PROSE // 4])
                thread.prose.append(prose._replace(text=text, folded=text.casefold()))
                thread.chars += len(text)
            while thread.chars > MAX_PROSE:
                thread.chars -= len(thread.prose.popleft().text)

    def memory(self, scope: Scope) -> Memory:
        """Numbers and texts that were seen."""
        with self._lock:
            thread = self._threads.get(scope)
            if thread is None:
                return _NO_MEMORY
            if thread.memory is None:
                thread.memory = Memory(tuple(thread.numbers.values()), tuple(thread.prose))
            return thread.memory

    def reached(self, scope: Scope, profile: ToolProfile, args: Mapping[str, Any]) -> None:
        """Remember whom and what a call that ran was for: the known destinations of the thread."""
        found = [argument(args, name) for name, kind in profile.critical.items() if kind in _DESTINATIONS]
        values = [v for f in found for v in (f if isinstance(f, list) else [f]) if isinstance(v, str) and v]
        if not (values and profile.side_effect):
            return
        with self._lock:
            payees = self._thread(scope).payees
            for value in values[:MAX_PAYEES]:
                look = skeleton(value)
                payees[look] = payees.pop(look, frozenset()) | {value}
            while len(payees) > MAX_PAYEES:
                payees.pop(next(iter(payees)))

    def payees(self, scope: Scope) -> Mapping[str, frozenset[str]]:
        """Destinations of calls that ran, by their skeleton (UTS #39 §4)."""
        with self._lock:
            thread = self._threads.get(scope)
            return dict(thread.payees) if thread is not None else {}

    def _thread(self, scope: Scope) -> _Thread:
        thread = self._threads.get(scope)
        if thread is None:
            thread = self._threads[scope] = _Thread()
            while len(self._threads) > MAX_THREADS:
                self._threads.popitem(last=False)
        self._threads.move_to_end(scope)
        return thread


def arguments(run: Run, snapshot: Snapshot, said: TaskWords, call: Call) -> dict[str, ArgumentProvenance]:
    """`context.call.provenance` of a call, on a snapshot that holds the sightings it may need."""
    if not (call.profile.critical or call.profile.when):
        return {}
    evidence = Evidence(said.words, _own(run.subject), snapshot.values, run.engine.memory.memory(run.scope))
    return trace(call.profile, call.args, evidence)


def _own(subject: Subject) -> frozenset[str]:
    own = subject.properties.get("identifiers")
    return frozenset(f for v in own for f in forms(v)) if isinstance(own, list) else frozenset()


def intent(run: Run, said: TaskWords, call: Call) -> IntentContext:
    """Whether the task asks for what the call's tool does."""
    if run.planned is not None:
        return IntentContext(state="intended" if call.tool in run.planned else "unasked", source="planner")
    if run.grant is not None and run.grant.tools is not None and call.tool in run.grant.tools:
        return IntentContext(state="intended", source="application")
    if not call.profile.intent:
        return IntentContext()
    if said.request.asks(call.profile.intent):
        return IntentContext(state="intended", source="words")
    if said.request.delegates and run.engine.memory.memory(run.scope).orders.asks(call.profile.intent):
        return IntentContext(state="delegated", source="words")
    return IntentContext(state="unasked", source="words")


def effective_sink(profile: ToolProfile, args: Mapping[str, Any]) -> str:
    """Where the arguments go: nowhere, if the tool sends only to whom it is told and it was told nobody."""
    destinations = [name for name, kind in profile.critical.items() if kind in _DESTINATIONS]
    if destinations and not any(argument(args, name) for name in destinations):
        return "none"
    return profile.sink


# --- what came back ---------------------------------------------------------------------------------


class Observe:
    """An effect: read an output. A large one is read in a thread by the asynchronous edge."""

    __slots__ = ("build", "output")

    def __init__(self, build: Callable[[], Harvest], output: object) -> None:
        self.build, self.output = build, output

    def run(self, _engine: Engine) -> Harvest:
        """Perform it, blocking."""
        try:
            return self.build()
        except Exception as exc:  # noqa: BLE001  (a foreign object's own code: what can not be read was not seen)
            _log.warning("an output was not read for provenance: %s", type(exc).__name__)
            return Harvest(complete=False)

    async def arun(self, engine: Engine) -> Harvest:
        """Perform it."""
        if _small(self.output):
            return self.run(engine)
        return await asyncio.to_thread(self.run, engine)


def observing(run: Run, call: Call, output: object, *, failed: bool) -> Observe:
    """The effect that reads what `call` returned."""
    said = run.engine.memory.said(run.scope) or _NOTHING
    profile = call.profile if call.profiled else replace_trust(call.profile)

    def build() -> Harvest:
        return observe_output(
            call.tool,
            profile,
            call.args,
            output,
            words=said.words,
            named=not profile.side_effect and names_source(profile, call.args, said.words),
            failed=failed,
        )

    return Observe(build, output)


def replace_trust(profile: ToolProfile) -> ToolProfile:
    """The profile of a tool that nobody reviewed: what it returns is anybody's."""
    return profile if profile.trust == "external" else profile.model_copy(update={"trust": "external"})


def _small(value: object, left: int = SMALL) -> bool:
    stack: list[object] = [value]
    while stack:
        top = stack.pop()
        if isinstance(top, str | bytes):
            left -= len(top)
        elif isinstance(top, Mapping):
            left -= 20 * len(top)
            if left > 0:
                stack += top.values()
        elif isinstance(top, list | tuple):
            left -= 20 * len(top)
            if left > 0:
                stack += top
        else:
            left -= 50
        if left <= 0:
            return False
    return True


# --- what a human is shown --------------------------------------------------------------------------


def sentences(run: Run, call: Call, traced: Mapping[str, ArgumentProvenance]) -> tuple[str, ...]:
    """For each bound argument its value, and where it is not the human's own, who says it, and what stands around it.

    What a tool returned is an attacker's text: it is labelled, quoted, shortened and inert
    (`facts.inert`), so that it can not pass for a part of the question.
    """
    memory = run.engine.memory.memory(run.scope)
    payees = run.engine.memory.payees(run.scope)
    lines = []
    for name in dict.fromkeys((*call.args, *traced)):
        value = call.args[name] if name in call.args else argument(call.args, name)
        line = f"{inert(name)} {quoted(value)}"
        if call.profile.critical.get(name) in _DESTINATIONS:
            line += _resembling(value, payees)
        found = traced.get(name)
        if found is not None and found.standing != "told":
            line += _source(found)
            if (sentence := _sentence(value, memory)) is not None:
                line += f"; untrusted text from there: {quoted(sentence)}"
        lines.append(line)
    return tuple(lines)


def _source(found: ArgumentProvenance) -> str:
    by = found.asserted_by or found.mentioned_by
    for item in found.items:
        by = [*by, *item.asserted_by, *item.mentioned_by]
    sources = list(dict.fromkeys(inert(s.source) for s in by if s.source))
    line = f": {_TOLD[found.class_]}"
    if sources:
        line += f" ({', '.join(sources[:3])})"
    if found.lookalike:
        line += ", and it ONLY LOOKS LIKE what you said"
    return line


def _resembling(value: object, payees: Mapping[str, frozenset[str]]) -> str:
    """A warning where a destination is drawn like a known one and is another, or mixes scripts."""
    line = ""
    for one in [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str)]:
        own = forms(one)
        known = sorted(v for v in payees.get(skeleton(one), ()) if not set(forms(v)) & set(own))
        if known:
            line += f", WHICH ONLY LOOKS LIKE {quoted(known[0])}, used before"
        if len(used := scripts(one)) > 1:
            line += f", WRITTEN IN MIXED LETTERS ({', '.join(used)})"
    return line


_TOLD: Final = {
    "human": "you said it",
    "principal": "it is yours",
    "system": "a system says it",
    "internal": "an internal source says it",
    "counterparty": "the other side chose it",
    "external": "an external source says it",
    "mentioned": "it stands in a text that was read",
    "unknown": "nobody was seen to say it",
}


def _sentence(value: object, memory: Memory) -> str | None:
    """What stands around the newest mention of a value, or of the first item of a list that is mentioned."""
    needles = [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str | int | float)]
    for needle in needles[:16]:
        text = tidy(str(needle))
        if len(text) < SHORTEST or isinstance(needle, bool):
            continue
        for found in memory.mentions(text.casefold()):
            at = found.folded.find(text.casefold())
            if at >= 0:
                start = max(0, at - 100)
                start = found.text.find(" ", start, at) + 1 or start if start else 0  # at a word's beginning
                return found.text[start : start + MAX_SENTENCE]
    return None
