"""Remember the task's words and the tools' outputs of threads, in this process.

The ledger keeps values by digest, so that another process goes on with them. Numbers for derivations and texts for a
question's evidence cannot be kept as digests. They are kept here, bounded; without them a value is `unknown`, and a
policy asks. A thread has one memory: a child agent adds to what its parent read.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from langchain_runtime_authz.facts.intent import Request
from langchain_runtime_authz.facts.provenance.forms import skeleton, tidy
from langchain_runtime_authz.facts.provenance.observe import Number, Observation, Prose
from langchain_runtime_authz.facts.provenance.trace import NO_MEMORY, Memory
from langchain_runtime_authz.facts.provenance.words import HumanWords
from langchain_runtime_authz.facts.task import ANSWER
from langchain_runtime_authz.ledger.base import Scope, Snapshot

__all__ = ["NO_WORDS", "TaskWords", "ThreadMemory"]

MAX_THREADS: Final = 512
MAX_NUMBERS: Final = 128  # newest, per thread
MAX_PROSE: Final = 200_000  # characters, per thread
MAX_PAYEES: Final = 1024  # destinations remembered, per thread


@dataclass(frozen=True, slots=True)
class TaskWords:
    """A task's words at one state of it, read once.

    `turns` counts the user's texts. An answer to a question is not one: it asks for nothing new.
    """

    digest: str
    words: HumanWords
    request: Request
    turns: int = 0


NO_WORDS: Final = TaskWords("", HumanWords(()), Request(()))


@dataclass(slots=True)
class _Thread:
    numbers: OrderedDict[tuple[object, ...], Number] = field(default_factory=OrderedDict)
    prose: deque[Prose] = field(default_factory=deque)
    chars: int = 0
    memory: Memory | None = None  # of `numbers` and `prose`, until there are more
    payees: dict[str, frozenset[str]] = field(default_factory=dict)  # skeleton → as written


class ThreadMemory:
    """The memory of all threads. Losing it loses convenience, never safety.

    Attributes:
        words: each task's words as they were last read.
    """

    def __init__(self) -> None:
        self._threads: OrderedDict[Scope, _Thread] = OrderedDict()
        self.words: dict[Scope, TaskWords] = {}
        self._lock = threading.Lock()

    def read_words(self, scope: Scope, snapshot: Snapshot) -> TaskWords:
        """Read the task's words from a snapshot that holds the log."""
        # Texts of others give no authority, and neither does an act without words.
        own = [t for t in snapshot.log if t.own]
        texts = [t.text for t in own if t.text]
        turns = sum(not (t.key or "").startswith(ANSWER) for t in own)
        said = TaskWords(snapshot.task.digest, HumanWords(texts), Request(texts), turns)
        with self._lock:
            self._thread(scope)
            self.words[scope] = said
        return said

    def keep(self, scope: Scope, found: Observation) -> None:
        """Remember the numbers and texts of one output."""
        if not found.numbers and not found.prose:
            return
        with self._lock:
            thread = self._thread(scope)
            thread.memory = None
            for number in found.numbers[-MAX_NUMBERS:]:
                # Of equal numbers that say the same, one.
                thread.numbers[number.value, number.seen[1:-1]] = number
            while len(thread.numbers) > MAX_NUMBERS:
                thread.numbers.popitem(last=False)
            for prose in found.prose[-64:]:
                # Folded once, here: each question searches it.
                text = tidy(prose.text[: MAX_PROSE // 4])
                thread.prose.append(prose._replace(text=text, folded=text.casefold()))
                thread.chars += len(text)
            while thread.chars > MAX_PROSE:
                thread.chars -= len(thread.prose.popleft().text)

    def memory(self, scope: Scope) -> Memory:
        """Return the numbers and texts that were seen."""
        with self._lock:
            thread = self._threads.get(scope)
            if thread is None:
                return NO_MEMORY
            if thread.memory is None:
                thread.memory = Memory(tuple(thread.numbers.values()), tuple(thread.prose))
            return thread.memory

    def reached(self, scope: Scope, destinations: Sequence[str]) -> None:
        """Remember whom and what a call that ran was for: the known destinations of the thread."""
        if not destinations:
            return
        with self._lock:
            payees = self._thread(scope).payees
            for value in destinations[:MAX_PAYEES]:
                look = skeleton(value)
                payees[look] = payees.pop(look, frozenset()) | {value}
            while len(payees) > MAX_PAYEES:
                payees.pop(next(iter(payees)))

    def payees(self, scope: Scope) -> Mapping[str, frozenset[str]]:
        """Return the destinations of calls that ran, by their skeleton (UTS #39 §4)."""
        with self._lock:
            thread = self._threads.get(scope)
            return dict(thread.payees) if thread is not None else {}

    def _thread(self, scope: Scope) -> _Thread:
        thread = self._threads.get(scope)
        if thread is None:
            thread = self._threads[scope] = _Thread()
            while len(self._threads) > MAX_THREADS:
                forgotten, _ = self._threads.popitem(last=False)
                self.words.pop(forgotten, None)
        self._threads.move_to_end(scope)
        return thread
