"""Keep each thread's user texts and tool outputs in this process.

The ledger stores values only by digest, which is enough for another process to continue. Approvers' evidence and values
for mandates need the full texts and outputs. This process stores these, in bounded space. If one is missing, the values
in it count as `unknown`, and the policy asks. All agents of a thread share one memory.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

from langchain_runtime_authz._locks import forkable_lock
from langchain_runtime_authz.facts.local_time import local_day
from langchain_runtime_authz.facts.normal_forms import skeleton
from langchain_runtime_authz.facts.output_reading import Observation, OutputReading, Prose, SeenValue
from langchain_runtime_authz.facts.provenance import NO_TEXTS, TextsRead, UserWords
from langchain_runtime_authz.facts.task import ANSWER, HumanText
from langchain_runtime_authz.ledger.base import Scope, Snapshot
from langchain_runtime_authz.mandate.message_places import only_continues, stated_text
from langchain_runtime_authz.mandate.model import Mandate
from langchain_runtime_authz.mandate.read_outputs import Outputs
from langchain_runtime_authz.tool_profile import ToolProfile

MAX_THREADS: Final = 512
MAX_PROSE: Final = 200_000  # characters of texts, per thread
MAX_PAYEES: Final = 1024  # stored destinations, per thread
MAX_UNREAD: Final = 1_000_000  # characters of outputs that are not read yet, per thread
MAX_FOUND: Final = 16_384  # values found in these outputs, per thread


class Turn(NamedTuple):
    """The texts that the user sent at once.

    `key` identifies the turn. `at`: ledger time at which it came. `fresh`: the first epoch whose reads are not outdated
    by changed data. `since`: the first epoch whose reads count for the turn: its own epoch, or `fresh` if later.
    """

    texts: tuple[str, ...] = ()
    key: str = ""
    since: int = 0
    fresh: int = 0
    at: float = 0.0

    @property
    def epoch(self) -> int:
        """The epoch of the texts; 0 without one."""
        return int(self.key.partition(":")[0] or 0)


NO_TURN: Final = Turn()
TURNS_BEFORE: Final = 8  # turns that the newest one may go on with


@dataclass(slots=True)
class TaskWords:
    """The user's texts of one task.

    `log`: all texts of the task. `compiled`: the mandate in `turn`; () if it was not compiled yet. `released`: the policy's
    profiles by which it was compiled. `turns`: number of the user's own texts. `before`: number of those before `turn`.
    `recorded`: the audit log has the mandate.
    """

    digest: str
    words: UserWords
    turn: Turn
    log: Sequence[HumanText] = ()
    turns: int = 0
    before: int = 0
    compiled: Mandate | tuple[()] | None = ()
    released: Mapping[str, ToolProfile] | tuple[()] | None = ()
    recorded: bool = False


@dataclass(slots=True)
class _Thread:
    outputs: Outputs
    prose: deque[Prose] = field(default_factory=deque)
    chars: int = 0
    texts: TextsRead | None = None  # built from `prose` and `found`; None after they changed
    payees: dict[str, frozenset[str]] = field(default_factory=dict)  # skeleton → destinations with this skeleton
    found: dict[str, tuple[SeenValue, ...]] = field(default_factory=dict)  # values that the ledger lacks


class ThreadMemory:
    """The memory of all threads. `unread`: parts of outputs that are not read yet."""

    def __init__(self) -> None:
        self._threads: OrderedDict[Scope, _Thread] = OrderedDict()
        self.words: dict[Scope, TaskWords] = {}
        self.unread: dict[Scope, list[OutputReading]] = {}
        self._lock, self._reading = forkable_lock(), forkable_lock()

    def read_words(self, scope: Scope, snapshot: Snapshot) -> TaskWords:
        """Store and return the user's words in a thread's log."""
        # Leave out texts of others, and answers, which mostly repeat a machine's text.
        texts, turn = [t for t in snapshot.log if t.own and not _answers(t)], newest_turn(snapshot.log)
        before = sum(t.epoch < turn.epoch for t in texts)
        own = UserWords([stated_text(t.text) for t in texts])
        said = TaskWords(snapshot.task.digest, own, turn, snapshot.log, len(texts), before)
        with self._lock:
            outputs = self._thread(scope).outputs
            self.words[scope] = said
        outputs.missed(snapshot.history)
        return said

    def record_texts(self, scope: Scope, found: Observation) -> None:
        """Store the texts of one output, and its part that is not read yet."""
        with self._lock:
            thread = self._thread(scope)
            self._keep(thread, found)
            if found.rest is not None:
                unread = self.unread.setdefault(scope, [])
                unread.append(found.rest)
                while sum(reading.weight for reading in unread) > MAX_UNREAD:
                    del unread[0]

    def _keep(self, thread: _Thread, found: Observation) -> None:
        thread.texts = None
        for prose in found.prose[-256:]:
            text = prose.text[: MAX_PROSE // 4]
            thread.prose.append(prose._replace(text=text))
            thread.chars += len(text)
        while thread.chars > MAX_PROSE:
            thread.chars -= len(thread.prose.popleft().text)

    def read_rest(self, scope: Scope) -> None:
        """Read the rest of the thread's `unread` outputs, within each output's limits."""
        with self._reading:
            with self._lock:
                unread = self.unread.pop(scope, [])
            for found in [reading.read() for reading in unread]:
                with self._lock:
                    thread = self._thread(scope)
                    self._keep(thread, found)
                    for seen in found.sightings:
                        thread.found[seen.key] = (*thread.found.pop(seen.key, ()), seen)
                    while len(thread.found) > MAX_FOUND:
                        del thread.found[next(iter(thread.found))]

    def outputs(self, scope: Scope) -> Outputs:
        """Return the outputs and arguments of the thread's calls, for mandates."""
        if (thread := self._threads.get(scope)) is None:
            with self._lock:
                thread = self._thread(scope)
        return thread.outputs

    def texts_read(self, scope: Scope) -> TextsRead:
        """Return the texts that this process read in the outputs of a thread's tools."""
        thread = self._threads.get(scope)
        if thread is None:
            return NO_TEXTS
        if (texts := thread.texts) is None:
            with self._lock:
                texts = thread.texts = TextsRead(tuple(thread.prose), dict(thread.found))
        return texts

    def record_destinations(self, scope: Scope, destinations: Sequence[str]) -> Outputs:
        """Store the destinations of a call that ran. Return the thread's outputs."""
        with self._lock:
            payees = (thread := self._thread(scope)).payees
            for value in destinations[:MAX_PAYEES]:
                look = skeleton(value)
                payees[look] = payees.pop(look, frozenset()) | {value}
            while len(payees) > MAX_PAYEES:
                payees.pop(next(iter(payees)))
            return thread.outputs

    def known_destinations(self, scope: Scope) -> Mapping[str, frozenset[str]]:
        """Return skeleton (UTS #39 §4) → destinations of calls that ran."""
        with self._lock:
            thread = self._threads.get(scope)
            return dict(thread.payees) if thread is not None else {}

    def _thread(self, scope: Scope) -> _Thread:
        thread = self._threads.get(scope)
        if thread is None:
            thread = self._threads[scope] = _Thread(Outputs(self._lock))
            while len(self._threads) > MAX_THREADS:
                forgotten, _ = self._threads.popitem(last=False)
                self.words.pop(forgotten, None)
                self.unread.pop(forgotten, None)
        self._threads.move_to_end(scope)
        return thread


def newest_turn(log: Sequence[HumanText]) -> Turn:
    """Return the user's newest turn, without texts from a client's history.

    After an answer, a state edit or another person's text, the turn is empty and orders nothing. If the newest text
    only says to continue, return the turn before it. Changed data (`data:`) does not count.
    """
    said = [t for t in log if not _is_data(t)]
    fresh = max((t.epoch for t in log if _is_data(t)), default=0)
    while said:
        newest = [t for t in said if t.epoch == said[-1].epoch and not t.past]
        if not newest or any((t.text and not t.own) or t.mixed or _answers(t) for t in newest):
            return NO_TURN
        texts = tuple(t.text for t in newest if t.text)
        said = [t for t in said if t.epoch != newest[0].epoch]
        # With a state edit in the same epoch, it is unclear what continues.
        if len(newest) == 1 and said and only_continues(newest[0].text):
            continue
        since = max(newest[0].epoch, fresh)
        return Turn(texts, f"{newest[0].epoch}:{newest[-1].digest}", since, fresh, newest[0].at)
    return NO_TURN


def earlier_texts(log: Sequence[HumanText], turn: Turn) -> tuple[str, ...]:
    """Return the user's texts before a turn, back to the last change by others."""
    if _replaces(log, turn.epoch):
        return ()
    older = (t for t in reversed(log) if not _is_data(t) and t.epoch < turn.epoch + (not t.own))
    own = takewhile(lambda t: t.text and t.own and not (t.past or t.mixed or _answers(t)), older)
    return tuple(t.text for t in own)[::-1]


def turns_before(log: Sequence[HumanText], turn: Turn, zone: ZoneInfo | None) -> Iterator[Turn]:
    """Yield the user's turns right before a turn, the newest first.

    Only turns of one text each, on the same day: "tomorrow" means another day in older ones.
    """
    day, older = local_day(zone, turn.at), turn
    for _ in range(TURNS_BEFORE):
        epoch = older.epoch
        older = newest_turn([t for t in log if t.epoch < epoch])
        if len(older.texts) != 1 or _replaces(log, epoch) or local_day(zone, older.at) != day:
            return
        yield older


def _replaces(log: Sequence[HumanText], epoch: int) -> bool:
    """Return True if an epoch edits or removes a message, or brings a history."""
    keys = {t.key for t in log if t.epoch < epoch and t.key}
    return any(t.past or t.key in keys or not (t.text or _is_data(t)) for t in log if t.epoch == epoch)


def _is_data(text: HumanText) -> bool:
    return not text.text and (text.key or "").startswith("data:")


def _answers(text: HumanText) -> bool:
    return (text.key or "").startswith(ANSWER)
