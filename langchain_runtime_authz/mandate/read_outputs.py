"""Keep the outputs of a task's reads, from which a mandate takes values.

Within a task, only the first output of each read counts. So repeating a read does not change the values with which
calls are compared. `pep.call_mandate` says when a newer task uses outputs of an older one. If an output was cut to its
limit, it is not used.
"""

from __future__ import annotations

import json
import re
import threading
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from langchain_runtime_authz._locks import forkable_lock
from langchain_runtime_authz.facts import output_reading
from langchain_runtime_authz.facts.call_arguments import MAX_ARGUMENT_NODES, is_empty, scalars
from langchain_runtime_authz.facts.history import History
from langchain_runtime_authz.facts.normal_forms import fold, forms_of, identifiers_in, key, mentions_in, tidy
from langchain_runtime_authz.facts.output_reading import copy_output as take
from langchain_runtime_authz.mandate.model import Contains, StartsWith
from langchain_runtime_authz.mandate.text_arguments import TextWords
from langchain_runtime_authz.tool_profile import HARMLESS, ToolProfile

MAX_ARGUMENT_CHARS: Final = 20_000
MAX_ENTRIES: Final = 1024  # calls whose first output was recorded, including forgotten ones
MAX_UNREAD: Final = 1_000_000  # characters that wait to be parsed
MAX_TASKS: Final = 4  # tasks with recorded outputs
MAX_REPEATS: Final = 64  # later outputs of reads that were recorded before
MAX_WEIGHT: Final = 4_000_000  # characters, plus `output_reading.NODE` for each node
MAX_WRITTEN: Final = 8192  # normal forms of the arguments of side effects
MAX_TEXTS: Final = 200_000  # characters of texts in them, because to take texts apart costs time and memory
_EDGES: Final = " .,;:!?'\"()[]{}<>"  # around a word
# A task: its epoch, the digest of the application's mandate or "", and the first epoch from which outputs of older tasks
# count too, if this task has not made the read itself.
TaskKey = tuple[int, str, int | None]
NO_TASK: Final = (0, "", None)


@dataclass(slots=True, eq=False)
class Output:
    """A read's output as JSON.

    `complete`: nothing was cut. `position`: in the order of recording. `resource`: what was read, and its version.
    """

    profile: ToolProfile
    args: dict[str, Any]
    given: frozenset[str]
    value: Any
    complete: bool
    position: int
    weight: int = 0
    resource: tuple[str, str] | None = None
    _words: TextWords | None = None

    @property
    def words(self) -> TextWords:
        """Return the words of the value, to find copied passages."""
        if self._words is None:
            self._words = TextWords(text_of(self.value))
        return self._words

    def forget(self) -> None:
        """Drop the value, and keep the call, so that a repeated read does not count."""
        self.value, self.complete, self.weight, self._words = None, False, 0, None


class Outputs:
    """The outputs of reads and the arguments of side effects, up to fixed sizes.

    Entries are parsed at the first query. Parsing takes `lock`, so callers must not hold it.
    """

    def __init__(self, lock: threading.Lock | None = None) -> None:
        self._lost = False  # True if an output was dropped or cut
        self._first: dict[tuple[int, str], dict[str, dict[str, Output]]] = {}  # task → tool → arguments
        self._order: deque[Output] = deque()
        self._repeats: deque[Output] = deque(maxlen=MAX_REPEATS)
        self._unread: deque[tuple[Any, ...]] = deque()
        self._lock = lock if lock is not None else forkable_lock()
        self._written: dict[str, int] = {}
        self._texts: dict[str, int] = {}  # of side effects, with their first positions
        self._parts: dict[int, int] = {}  # hash of a form in these texts → the first position
        self._left_out = float("inf")  # position of the first side effect whose values were not all recorded
        self._entries = self._weight = self._position = self._waiting = self._claims = self._chars = self._cut = 0

    def record(
        self, tool: str, profile: ToolProfile, args: Mapping[str, Any], output: object, *,
        given: Collection[str] | None = None, task: TaskKey = NO_TASK, words: bool = False,
        resource: tuple[str, str] | None = None,
    ) -> None:  # fmt: skip
        """Record a call's output for a task, unless an equal call was recorded before.

        Mappings, lists, models, dataclasses and JSON are read. `given`: names of the arguments that the model sent;
        None means all of `args`. `words`: record only the words, since the call failed or has no profile.
        """
        if type(output) is not str and type(output) is not output_reading.OutputCopy:
            output = take(output)  # copy the output now, because its owner may change it later
        self._unread.append((tool, profile, args, output, given, task, words, resource))
        self._waiting += len(output) if type(output) is str else output.weight  # type: ignore[union-attr]
        if self._waiting >= MAX_UNREAD or len(self._unread) >= MAX_REPEATS:
            self._read_waiting()

    def claimed(self, args: Mapping[str, Any] | None) -> None:
        """Count a claimed call, and record the `args` of a side effect.

        If a later read returns one of these values, the value is not trusted.
        """
        self._unread.append((args,))
        if len(self._unread) >= MAX_REPEATS:
            self._read_waiting()

    def missed(self, history: History) -> None:
        """Trust outputs less, if `history` has calls that this process did not see."""
        self._read_waiting()
        if sum(history.calls.values()) > self._claims:
            self._lost |= bool(history.classes_read)
            if not {*history.effects} <= {*HARMLESS}:
                self._left_out = -1

    def _read_waiting(self) -> None:
        with self._lock:
            self._waiting = 0
            while self._unread:
                entry = self._unread.popleft()
                self._position += 1
                if len(entry) == 1:
                    self._claims += 1
                    self._note(*entry)
                else:
                    self._keep(entry)

    def _keep(self, entry: tuple[Any, ...]) -> None:
        tool, profile, args, output, given, task, words, resource = entry
        sent = output_reading.Projection(MAX_ARGUMENT_NODES, MAX_ARGUMENT_CHARS)
        held = sent.read(dict(args), 0) or {}
        value, whole, weight = output if type(output) is output_reading.OutputCopy else take(output)
        if whole is None:
            read = output_reading.Projection(output_reading.MAX_NODES, output_reading.MAX_CHARS)
            value, whole, weight = read.read(value, 0), read.complete, read.chars + read.nodes * output_reading.NODE
        names = frozenset(held if given is None else given)
        self._lost |= not whole
        found = Output(profile, held, names, value, whole, self._position, weight, resource)
        known = self._first.setdefault(task[:2], {}).setdefault(tool, {})
        if len(self._first) > MAX_TASKS:
            self._entries -= sum(map(len, self._first.pop(next(iter(self._first))).values()))
        name = key(json.dumps(_canonical({n: v for n, v in held.items() if not is_empty(v)}), sort_keys=True))
        first = known.get(name)
        if words or first is not None or not sent.complete or self._entries >= MAX_ENTRIES:  # only its words count
            if all(one is None or one.value != value for one in (first, *self._repeats)):
                found.weight = 0
                self._lost |= len(self._repeats) == MAX_REPEATS
                self._repeats.append(found)  # used only by `texts`
            return
        known[name] = found
        self._entries += 1
        self._weight += found.weight
        self._order.append(found)
        while self._weight > MAX_WEIGHT:
            oldest = self._order.popleft()
            self._weight -= oldest.weight
            oldest.forget()
            self._lost = True

    def _note(self, args: Mapping[str, Any] | None) -> None:
        values = scalars(args or {}, MAX_ARGUMENT_NODES) or ()
        texts = {one: self._position for one in values if isinstance(one, str) and one not in self._texts}
        self._chars += sum(map(len, texts))
        self._texts |= texts if self._chars <= MAX_TEXTS else {}
        for form in value_forms(args or {}):
            if form is None or self._chars > MAX_TEXTS or len(self._written) >= MAX_WRITTEN:
                self._left_out = min(self._left_out, self._position)
                return
            self._written.setdefault(form, self._position)

    def written(self, value: object, position: float, where: Sequence[object] = (), *, cut: bool = False) -> bool:
        """Return True if the value may come from a side effect before `position`.

        For a text, its part is enough if it meets a condition of `where`, because a service may add to a text. If `cut`,
        the value may be a part of a written text, because a service may take a text apart.
        """
        self._read_waiting()
        parts = [fold(tidy(one.text)) for one in where if isinstance(one, Contains | StartsWith)]
        known = (form for one in (value, *parts) for form in scalar_forms(one))
        if self._left_out < position or any(self._written.get(form, position) < position for form in known):
            return True
        if cut and any(self._cut_up().get(hash(form), position) < position for form in scalar_forms(value)):
            return True
        text = fold(tidy(str(value))) if parts else ""
        earlier = [*self._written.items()] if parts else []  # a copy: another thread may add one
        inner = (fold(form.partition(":")[2]) for form, at in earlier if at < position)
        return any(one in text and part in one for one in inner for part in parts)

    def _cut_up(self) -> Mapping[int, int]:
        texts = [*self._texts.items()]  # a copy: another thread may add one
        for text, at in texts[self._cut :]:
            for form in forms_within(text):
                self._parts.setdefault(hash(form), at)
        self._cut = len(texts)
        return self._parts

    def drop(self, versions: Mapping[str, str]) -> bool:
        """Drop outputs with another version than in `versions`. Return True if any."""
        self._read_waiting()
        with self._lock:
            before = self._entries
            for known in (known for tools in self._first.values() for known in tools.values()):
                for name in [n for n, o in known.items() if o.resource and versions.get(*o.resource) != o.resource[1]]:
                    self._entries -= 1
                    del known[name]
            return self._entries < before

    def of(self, tool: str, task: TaskKey = NO_TASK) -> Collection[Output]:
        """Return the first outputs of a tool's calls for a task."""
        self._read_waiting()
        return tuple(self._first.get(task[:2], {}).get(tool, {}).values())  # a copy: another thread may add one

    def tasks(self, task: TaskKey) -> Sequence[TaskKey]:
        """Return `task` and the older tasks whose reads count for it, newest first."""
        epoch, _, since = task
        older = [(*one, None) for one in [*self._first] if since is not None and since <= one[0] < epoch]
        return [task, *sorted(older, key=lambda one: one[0], reverse=True)]

    def texts(self) -> Iterator[TextWords | None]:
        """Yield the words of all outputs, and None if some are lost."""
        self._read_waiting()
        yield from (found.words for found in (*self._order, *self._repeats))
        yield from (None,) if self._lost else ()


def value_forms(args: object) -> Iterator[str | None]:
    """Yield the normal forms of all values in `args`, also in JSON; None if too large."""
    values = scalars(args, MAX_ARGUMENT_NODES)
    for value in (None,) if values is None else values:
        large = value in (None, output_reading.DEEP) or (isinstance(value, str) and len(value) > MAX_UNREAD)
        yield from (None,) if large else {*scalar_forms(value), *scalar_forms(value, said=True)}
        if isinstance(value, str) and not large:
            if (inner := output_reading.parse_json_text(value)) is not value:
                yield from value_forms(inner)
            yield from identifiers_in(value)


def forms_within(text: str) -> Iterator[str]:
    """Yield the forms of all lines, fields, words, numbers and addresses in a text."""
    parts = (*re.split(r"[,;|\t\n]", text), *re.split(r"[,;|\t\n:=]", text), *text.split())
    yield from (*mentions_in(text), *(form for one in {p.strip(_EDGES) for p in parts} for form in forms_of(one)))


def _canonical(value: Any) -> Any:
    """Return a canonical form that is equal for all spellings of the same arguments."""
    if isinstance(value, dict):
        return {name: _canonical(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_canonical(inner) for inner in value]
    return "|".join(scalar_forms(value)) or repr(value)


def scalar_forms(value: object, *, said: bool = False) -> tuple[str, ...]:
    """Return the normal forms of a scalar; none for very large integers."""
    if isinstance(value, int) and not -output_reading.LARGEST < value < output_reading.LARGEST:
        return ()
    return forms_of(value, said=said)


def values_at(value: object, path: str) -> list[Any]:
    """Return the values at a dotted path, also inside lists; "" is the value itself."""
    level = [value]
    for name in path.split(".") if path else ():
        inner: list[Any] = [v for top in level for v in (top if isinstance(top, list) else (top,))]
        level = [v[name] for v in inner if isinstance(v, dict) and name in v]
    return level


def text_of(value: object) -> str:
    """Return all scalars in a value, one a line."""
    return "\n".join(map(str, scalars(value, 2 * output_reading.MAX_NODES) or ()))
