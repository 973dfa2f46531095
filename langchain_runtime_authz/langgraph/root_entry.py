"""Root entries and children: what opens a run, and how it is closed.

A root entry (one invoke, stream, batch element or resume) takes its own lease under a `RunHandle`;
without one, it opens an implicit run for whoever `subject_from` finds, else for `anonymous`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar

from langgraph.types import Command, StateSnapshot

from langchain_runtime_authz.audit.record import run_record
from langchain_runtime_authz.authzen import Subject, deny
from langchain_runtime_authz.credential.ticket import current_ticket
from langchain_runtime_authz.errors import AuthzDenied, Code, ConfigError
from langchain_runtime_authz.facts.delegation import kind_of_child
from langchain_runtime_authz.facts.plan import raw_digest
from langchain_runtime_authz.facts.state import OF_TASK
from langchain_runtime_authz.facts.task import HumanText
from langchain_runtime_authz.identity.subjects import claimed_identities
from langchain_runtime_authz.langgraph._private import Place, counted_graph, graph_at, place_below
from langchain_runtime_authz.langgraph.below import ReadBelow, held_against, left_at, mark_of
from langchain_runtime_authz.langgraph.beside import written_beside
from langchain_runtime_authz.langgraph.halt import AuthzHalt
from langchain_runtime_authz.langgraph.messages import human_texts, written
from langchain_runtime_authz.langgraph.plans import foreign_plans
from langchain_runtime_authz.langgraph.resume import delivered, resumed, settled_beside, unheard
from langchain_runtime_authz.langgraph.run import RunHandle, SubjectLike, opened
from langchain_runtime_authz.langgraph.run_context import (
    HANDLE_KEY,
    Handle,
    beside,
    beside_scope,
    handle_in,
    run_scope,
    running,
)
from langchain_runtime_authz.langgraph.state_changes import (
    Moved,
    ReadHead,
    ReadMemory,
    ReadState,
    brought,
    is_below,
    others,
    removals,
    said_by,
    said_more,
    saver_of,
    taken_out,
    thread_config,
    writes,
)
from langchain_runtime_authz.ledger.base import Scope
from langchain_runtime_authz.ledger.changes import Change, DeleteMarks, SetMark
from langchain_runtime_authz.pep.corrections import altered
from langchain_runtime_authz.pep.engine import Commit, Engine, Flow, Record, Run, adrive, drive, new_id
from langchain_runtime_authz.pep.entry import Entry, Given, Left, close, open_child, open_entry

__all__ = ["Entering", "Entrance", "with_run"]

T = TypeVar("T")
_log = logging.getLogger(__name__)
_ANONYMOUS: Final = Subject(type="anonymous", id="anonymous")
MAX_CLAIMED: Final = 16  # names in one record


class AtCall(NamedTuple):
    """What a graph's entry found at its call: a parent (it is a child), or who opened the run.

    `beside`: code of another protected graph makes it, while that graph's state is read or edited: no human speaks.
    """

    parent: Run | None
    opener: RunHandle | None
    beside: bool = False


class Entrance:
    """Opens root entries and children for one `RuntimeAuthz`."""

    def __init__(
        self,
        engine: Engine,
        *,
        subject_from: Callable[[Mapping[str, Any]], SubjectLike | None] | None,
        task_channels: tuple[str, ...] = ("messages",),
        task_memory: tuple[tuple[str, ...], ...] = (),
    ) -> None:
        self.engine = engine
        self._memory = task_memory
        self._subject_from = subject_from
        self._channels = task_channels
        self.outlives = hasattr(engine.ledger, "anchor")  # the ledger, this process

    def scope(self, graph: str, thread: str) -> Scope:
        """The ledger key of a graph's thread."""
        return Scope(self.engine.tenant, self.engine.issuer.issuer, graph, thread)

    def at_call(self, config: Mapping[str, Any]) -> AtCall:
        """Whose entry a call is, by its config, else by the `with authz.run(...)` around it."""
        handle = handle_in(config)
        # A graph that code in a node or tool calls with a config of its own is a child all the same:
        # what that code hands on is no human's word.
        parent = handle.run if handle is not None else running()
        opener = opened(config) if parent is None else None
        engine = parent.engine if parent is not None else opener.engine if opener is not None else self.engine
        if engine is not self.engine:
            msg = "the run was opened by another RuntimeAuthz than the one that protects the graph"
            raise ConfigError(msg)
        return AtCall(parent, opener, beside())

    def _implicit(self, config: Mapping[str, Any]) -> RunHandle:
        found = self._subject_from(config) if self._subject_from is not None else None
        return RunHandle(self.engine, _ANONYMOUS if found is None else Subject.of(found), None, None)

    def _open(
        self,
        name: str,
        input: Any,
        config: Mapping[str, Any],
        at_call: AtCall,
        graph: Any,
    ) -> Flow[tuple[Run, Entry]]:
        handle = at_call.opener or self._implicit(config)
        thread = (config.get("configurable") or {}).get("thread_id")
        scope = self.scope(name, f"run:{new_id()}" if thread is None else str(thread))
        if handle.closed:
            raise AuthzDenied(Code.LEASE_ENDED, deny(Code.LEASE_ENDED).decision_id)
        human = handle.human and not at_call.beside
        resume = input is None or isinstance(input, Command)
        update = written(input)
        saver = saver_of(graph)
        head = (yield ReadHead(saver, config)) if saver is not None and thread is not None else None
        place, channels = dict(config), self._channels
        texts = human_texts(update) if human else []
        edited = human and any(writes(update, name) for name in others(channels))
        removes = bool(removals(update)) and human
        standing: frozenset[str] = frozenset()
        if edited or (head is not None and (removes or len(texts) > 1 or any(t.key is not None for t in texts))):
            state = (yield ReadState(graph, config)).values if head is not None else {}
            standing = frozenset(t.digest for t in human_texts(state))
            texts = unheard(texts, state)
            edits = brought(update, state, channels) if edited else []
            edits += taken_out(update, state) if removes else []
            # On a new thread only what the human declared says something.
            texts += edits if head is not None else [e for e in edits if e.text]
        if human and not texts and update is not None and not self._speaks(graph):
            # Whatever it is, it may change the task; no word of it is known to be the human's.
            texts = [HumanText(raw_digest(said_by(update)), "", "channel:input")]
        entry: Entry = yield from open_entry(
            self.engine,
            scope=scope,
            subject=handle.subject,
            run_id=handle.run_id,
            agent=name,
            task=handle.pinned_task(),
            given=Given(
                texts=texts,
                standing=standing,
                resume=resume,
                kept=saver is not None and thread is not None,
                head=head,
                memory=(yield self.memory(graph, handle.subject)) if saver is not None else None,
                below=ReadBelow(graph, place, self.watch(graph)) if head is not None else None,
                moved=lambda left: Moved(graph, place, head.id if head is not None else "", left, self.watch(graph)),
            ),
            grant=handle.grant,
        )
        if claimed := claimed_identities(config, handle.subject):
            # Ignored, and on record: only names, for the values are whatever a client wrote.
            yield Record(
                run_record,
                now=entry.now,
                event="identity_ignored",
                run_id=handle.run_id,
                jti=entry.run.jti,
                epoch=entry.run.epoch,
                scope=scope,
                agent=entry.run.agent,
                detail={"claimed": claimed[:MAX_CLAIMED]},
            )
        foreign_plans(entry.run, update)
        handle._enter(entry.run)
        self.engine.tally.decided(entry.run, "entry", name, "root entry")
        self.engine.tally.ran(entry.run, "entry", name, "root entry")
        return entry.run, entry

    def _speaks(self, graph: Any) -> bool:
        """Whether a graph has a channel in which a human says what the task is."""
        return graph is None or any(name in graph.channels for name in self._channels)

    def watch(self, graph: Any) -> tuple[str, ...]:
        """The channels whose edit changes a graph's task: the declared ones, or all where it has none of those."""
        return self._channels if self._speaks(graph) else tuple(n for n in graph.channels if not n.startswith("__"))

    def memory(self, graph: Any, subject: Subject) -> ReadMemory:
        """An effect: digest of what the store remembers for a subject, as far as it counts as the task."""
        own = [tuple(part.replace("{subject}", subject.id) for part in name) for name in self._memory]
        return ReadMemory(getattr(graph, "store", None), own)

    def enter(
        self,
        name: str,
        input: Any,
        config: Mapping[str, Any],
        at_call: AtCall,
        graph: Any = None,
    ) -> Entering[tuple[Any, Any]]:
        """A root entry, to be opened by `with` or `async with`; gives the input and config for the graph.

        `graph` is asked for its state where a correction waits that the input can not carry.

        Raises:
            AuthzDenied: on the way in: the subject may not start or resume here.
        """
        return _Root(self, name, input, config, at_call, graph)

    def enter_child(self, parent: Run, name: str, config: Mapping[str, Any], graph: Any = None) -> Entering[Any]:
        """A child agent below `parent`, likewise; gives the config for the child's graph.

        `graph` is asked for the state that it keeps, if it keeps one.
        """
        return _Child(self, parent, name, config, graph)

    def updated_inside(self, graph: Any, config: Mapping[str, Any], place: Any) -> Flow[None]:
        """A node or tool of ours updated the state of a graph below: what it left is no edit from outside.

        Raises:
            AuthzHalt: the ledger failed. The state is written, and counts as an edit from outside when it is next looked at.
        """
        handle = handle_in(config)
        run = handle.run if handle is not None else running()
        if run is not None:
            mark = mark_of(place, graph.get_name())
            change = SetMark(mark.name, mark.value(place["configurable"]["checkpoint_id"]))
            try:
                yield Commit(run.scope, None, [change])
            except Exception as exc:
                decision = run.engine.ledger_failed(exc)
                raise AuthzHalt(decision.reason, decision.decision_id) from exc

    def update(self, graph: Any, config: Any, supersteps: Any, update: Callable[[], Any]) -> Any:
        """`update_state` from outside every run: a correction where it alters what a task is made of.

        Raises:
            AuthzDenied: the ledger failed. The state is written, and the next root entry finds what was done.
        """
        opener = None if beside() else opened(config)  # else a protected graph's own code does it: no human speaks
        with beside_scope():
            before = graph.get_state(config)
            place = update()
            drive(self.engine, self._altered(graph, before, place, opener, supersteps))
        return place

    async def aupdate(self, graph: Any, config: Any, supersteps: Any, update: Callable[[], Awaitable[Any]]) -> Any:
        """Like `update`."""
        opener = None if beside() else opened(config)
        with beside_scope():
            before = await graph.aget_state(config)
            place = await update()
            await adrive(self.engine, self._altered(graph, before, place, opener, supersteps))
        return place

    def _altered(
        self, graph: Any, before: StateSnapshot, place: Any, handle: RunHandle | None, supersteps: Any
    ) -> Flow[None]:
        if not (yield from said_more(graph, before, place, self.watch(graph_at(graph, place)))):
            return
        texts: list[HumanText] = []
        if handle is not None and handle.human and not handle.closed:
            updates = [u[0] for step in supersteps for u in step]
            texts = [t for u in updates for t in human_texts(u)]
        by = handle.subject.principal if handle is not None else ""
        found = place["configurable"]
        scope = self.scope(graph.get_name(), str(found["thread_id"]))
        below = yield ReadBelow(graph, place, self.watch(graph))
        try:
            yield from altered(scope, texts, by, found["checkpoint_id"], below.digest if below is not None else None)
        except AuthzDenied:
            raise
        except Exception as exc:
            decision = self.engine.ledger_failed(exc)
            raise AuthzDenied(decision.reason, decision.decision_id) from exc


class Entering(Generic[T]):
    """Opens a run on the way in and closes it on the way out, without blocking where it is `async with`.

    A class and no generator: an event loop that ends closes generators in any order, an inner one
    before the stream that it serves.
    """

    def __init__(self, entrance: Entrance) -> None:
        self.entrance = entrance
        self.engine = entrance.engine
        self.run: Run | None = None
        self.raised = False  # what a task left that did not end is found by its next try

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.raised = kind is not None
        if self.run is not None:
            with run_scope(self.run):  # the checkpointer and what shows a state are the user's
                drive(self.engine, self._over(self.run, cut=False))

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.raised = kind is not None
        if self.run is not None:
            with run_scope(self.run):
                await adrive(self.engine, self._over(self.run, cut=kind is GeneratorExit))

    def _over(self, run: Run, *, cut: bool) -> Flow[None]:
        """`cut`: a stream that was closed before its end may still be writing."""
        return close(run, _ending(run))

    def __enter__(self) -> T:
        raise NotImplementedError

    async def __aenter__(self) -> T:
        raise NotImplementedError


class _Root(Entering[tuple[Any, Any]]):
    def __init__(
        self,
        entrance: Entrance,
        name: str,
        input: Any,
        config: Mapping[str, Any],
        at_call: AtCall,
        graph: Any,
    ) -> None:
        super().__init__(entrance)
        self.name, self.input, self.config, self.at_call, self.graph = name, input, config, at_call, graph

    def __enter__(self) -> tuple[Any, Any]:
        with beside_scope():  # the checkpointer's own code, before there is a run
            run, entry = drive(self.engine, self._open())
        self.run = run
        try:
            with run_scope(run):  # what reads the graph's state runs its reducers
                self.input = drive(self.engine, self._told(entry))
        except BaseException as exc:  # no task has ended with it
            self.__exit__(type(exc), exc, exc.__traceback__)
            raise
        return self.input, with_run(self.config, entry.run)

    async def __aenter__(self) -> tuple[Any, Any]:
        with beside_scope():
            run, entry = await adrive(self.engine, self._open())
        self.run = run
        try:
            with run_scope(run):
                self.input = await adrive(self.engine, self._told(entry))
        except BaseException as exc:
            await self.__aexit__(type(exc), exc, exc.__traceback__)
            raise
        return self.input, with_run(self.config, entry.run)

    def _open(self) -> Flow[tuple[Run, Entry]]:
        return self.entrance._open(self.name, self.input, self.config, self.at_call, self.graph)

    def _told(self, entry: Entry) -> Flow[Any]:
        """The input, with the answers in it put into the ledger and the pending corrections put into it."""
        given = self.input
        known = saver_of(self.graph) is not None and thread_config(self.config) is not None
        if known and isinstance(given, Command) and given.resume is not None:
            state = yield ReadState(self.graph, self.config)
            given = yield from resumed(entry, given, state, below=is_below(self.config), human=not self.at_call.beside)
        elif self.graph is not None and given is None and saver_of(self.graph) is not None:
            given = settled_beside(entry, (yield ReadState(self.graph, self.config)))
        if entry.pending:
            state = (yield ReadState(self.graph, self.config)) if known else None
            asked = [i.id for i in state.interrupts] if state is not None else []
            given = delivered(entry, given, state.values if state is not None else None, asked)
        return given

    def _over(self, run: Run, *, cut: bool) -> Flow[None]:
        left, saver = Left(), saver_of(self.graph)
        over: list[Change] = []
        edits: list[HumanText] = []
        if saver is not None and (place := thread_config(self.config)) is not None:
            watch, below = self.entrance.watch, None
            try:
                if not cut:
                    head = yield ReadHead(saver, place)
                    memory = yield self.entrance.memory(self.graph, run.subject)
                    # A tool's child waits only where a human is asked; after a failure its own mark tells.
                    below = yield ReadBelow(self.graph, place, watch(self.graph), nodes_only=not run.paused)
                    digest = below.digest if below is not None else None
                    left = Left(head.id if head is not None else None, memory, digest)
                    # Every task has ended, and with it what marks of tasks' children are for.
                    over = [DeleteMarks(OF_TASK)] if not (self.raised or run.paused or below is not None) else []
                edits = yield from written_beside(
                    run, self.graph, place, below.namespaces if below is not None else (), watch
                )
            except Exception as exc:  # noqa: BLE001  (as of a run that was cut)
                _log.warning("the state that run %s left was not read: %s", run.run_id, type(exc).__name__)
        yield from close(run, _ending(run), left, over, edits)


class _Child(Entering[Any]):
    def __init__(self, entrance: Entrance, parent: Run, name: str, config: Mapping[str, Any], graph: Any) -> None:
        super().__init__(entrance)
        self.parent, self.name, self.config, self.graph = parent, name, config, graph
        self.place: Place | None = None
        self.marked = False
        if graph is not None:
            self.config, number = counted_graph(config)
            self.place = place_below(graph, config, number)

    def __enter__(self) -> Any:
        self.run = drive(self.engine, self._enter())
        return with_run(self.config, self.run)

    async def __aenter__(self) -> Any:
        self.run = await adrive(self.engine, self._enter())
        return with_run(self.config, self.run)

    def _enter(self) -> Flow[Run]:
        return _child(self.parent, self.name, self._held())

    def _held(self) -> Flow[None]:
        if self.place is not None:
            self.marked = yield from held_against(self.parent, self.graph, self.place, self.entrance.watch(self.graph))

    def _over(self, run: Run, *, cut: bool) -> Flow[None]:
        marks: list[Change] = []
        if self.place is not None and not cut:
            try:
                marks = yield from left_at(self.graph, self.place, known=self.marked, again=self.raised)
            except Exception as exc:  # noqa: BLE001  (as of a root's)
                _log.warning("the state that %s left was not read: %s", "/".join(run.agent), type(exc).__name__)
        yield from close(run, _ending(run), also=marks)


def _child(parent: Run, name: str, held: Flow[None]) -> Flow[Run]:
    ticket = current_ticket()
    args = ticket.raw if ticket is not None and isinstance(ticket.raw, Mapping) else None
    parent.engine.tally.decided(parent, "agent", name, "child entry")
    try:
        yield from held
        kind = kind_of_child(ticket.tool if ticket is not None else None, args)
        mine = ticket is not None and ticket.agent == parent.agent  # else it is an outer agent's
        run = yield from open_child(parent, name, kind, call_id=ticket.call_id if ticket and mine else None)
        parent.engine.tally.ran(parent, "agent", name, "child entry")
        return run
    except AuthzDenied as denied:
        if ticket is not None:  # a tool edge: the tool's answer carries the denial
            raise
        raise AuthzHalt(denied.code, denied.decision_id) from None


def _ending(run: Run) -> Literal["suspended", "ended"]:
    return "suspended" if run.paused else "ended"


def with_run(config: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """`config` with the run's handle in it."""
    return {**config, "configurable": {**(config.get("configurable") or {}), HANDLE_KEY: Handle(run)}}
