"""Open a run when a root or child graph starts, and close the run when it ends.

Outside `authz.run(...)` a root graph opens an implicit run. Its subject comes from `subject_from`, or is `anonymous`.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from langgraph.errors import GraphInterrupt
from langgraph.types import Command, StateSnapshot

from langchain_runtime_authz._flow import FlowContext
from langchain_runtime_authz.credential.ticket import current_ticket
from langchain_runtime_authz.errors import AuditError, AuthzDenied, Code, ConfigError, LedgerError
from langchain_runtime_authz.evaluation import Subject, deny
from langchain_runtime_authz.facts.checkpoint_head import OF_TASK, REPEATED, STOPPED, CheckpointHead
from langchain_runtime_authz.facts.history import kind_of_child
from langchain_runtime_authz.facts.plan import raw_digest
from langchain_runtime_authz.facts.task import HumanText
from langchain_runtime_authz.identity.subjects import ANONYMOUS, DEVELOPER, NO_SUBJECT, claimed_identities
from langchain_runtime_authz.langgraph import checkpoints, run_context
from langchain_runtime_authz.langgraph import graph_input as inputs
from langchain_runtime_authz.langgraph import private_api as private
from langchain_runtime_authz.langgraph.messages import foreign_plans, human_texts, update_in
from langchain_runtime_authz.langgraph.object_graph import is_workflow, label_of
from langchain_runtime_authz.langgraph.tool_facts import Profiles
from langchain_runtime_authz.langgraph.void_calls import answer_void_calls
from langchain_runtime_authz.ledger.base import Scope
from langchain_runtime_authz.ledger.changes import Change, DeleteMarks, Redeliver, SetMark
from langchain_runtime_authz.pep.approval_questions import approval_ids
from langchain_runtime_authz.pep.child_agent import open_child
from langchain_runtime_authz.pep.corrections import record_state_edit
from langchain_runtime_authz.pep.decision_log import run_event
from langchain_runtime_authz.pep.run import Commit, Flow, PepParts, Run, new_id
from langchain_runtime_authz.pep.run_lifecycle import EntryFacts, OpenedEntry, RunEnd, close_run, open_entry
from langchain_runtime_authz.telemetry.logs import get_logger

T = TypeVar("T")
_log = get_logger(__name__)
NOTHING: Final[tuple[Sequence[HumanText], frozenset[str]]] = ((), frozenset())
MAX_CLAIMED: Final = 16  # number of field names in one record
Owner = Run | run_context.RunHandle | None


class RunOpener:
    """Opens the runs of one `RuntimeAuthz` for root and child graphs."""

    def __init__(
        self,
        pep: PepParts,
        *,
        subject_from: Callable[[Mapping[str, Any]], run_context.Caller | None] | None,
        task_channels: tuple[str, ...] = ("messages",),
        task_memory: tuple[tuple[str, ...], ...] = (),
        development: bool = False,
    ) -> None:
        self.pep, self.development, self._warned = pep, development, development
        self._memory = task_memory
        self._subject_from = subject_from
        self.channels, self.other_channels = task_channels, inputs.other_watched(task_channels)

    def scope(self, graph: str, thread: str) -> Scope:
        """Return the ledger scope of a graph's thread."""
        return Scope(self.pep.tenant, self.pep.issuer.issuer, graph, thread)

    def owner(self, config: Mapping[str, Any]) -> Owner:
        """Return the run around a call or None. `ConfigError` if another instance's."""
        # If the config names no run, the run around the code counts. So a graph that a node or tool calls with a config
        # of its own is a child. The text that the code passes to the graph is not the user's.
        found = run_context.target_in(config) or run_context.current_run() or run_context.surrounding_run()
        if found is not None and found.pep is not self.pep:
            raise ConfigError("the run was opened by another RuntimeAuthz than the one that protects the graph")
        return found

    def watch(self, graph: Any) -> tuple[str, ...]:
        """Return the channels whose edits change the task: the declared ones, else all."""
        if self.has_task_channel(graph):
            return self.channels
        return tuple(n for n in graph.channels if not n.startswith("__"))

    def has_task_channel(self, graph: Any) -> bool:
        """Return True if the graph has a channel that is declared to hold the task."""
        return graph is None or any(name in graph.channels for name in self.channels)

    def memory(self, graph: Any, subject: Subject) -> Flow[str | None]:
        """Return the digest of the subject's `TaskSources.memory`; None if not set."""
        own = [tuple(part.replace("{subject}", subject.id) for part in name) for name in self._memory]
        return checkpoints.read_memory(getattr(graph, "store", None), own)

    def enter(self, name: str, input: Any, config: Mapping[str, Any], owner: Owner, graph: Any = None) -> RunEntry[Any]:
        """Return the context manager that opens a run.

        Entering it raises `AuthzDenied` if the run is denied. For a root entry, it yields the input and the config to
        run the graph with; for a child entry, only the config.
        """
        if isinstance(owner, Run):
            name = label_of(graph, private.node_of_task(config) or "LangGraph") if graph is not None else name
            return ChildEntry(self, owner, name, config, graph)
        entering = RootEntry(self, name, config, graph)
        entering.input, entering.handle = input, owner
        return entering

    def implicit(self, config: Mapping[str, Any]) -> run_context.RunHandle:
        """Return the handle of a run that no `authz.run(...)` opened."""
        found = self._subject_from(config) if self._subject_from is not None else None
        if found is None and not self._warned:
            self._warned = True
            _log.warning(NO_SUBJECT)
        nobody = DEVELOPER if self.development else ANONYMOUS
        return run_context.RunHandle(self.pep, nobody if found is None else run_context.as_caller(found), None)

    def update(self, graph: Any, config: Any, supersteps: Any, write: tuple[Any, ...]) -> Flow[Any]:
        """Perform an `update_state` outside every run, and record it as a correction."""
        handle = run_context.run_handle(config or {})
        before: StateSnapshot = yield checkpoints.read_state(graph, config)
        place = yield write
        if not (
            yield from checkpoints.update_changed(graph, before, place, self.watch(private.graph_at(graph, place)))
        ):
            return place  # no watched channel changed
        texts: list[HumanText] = []
        if handle is not None and handle.human and not handle.closed:
            texts = [t for step in supersteps for update in step for t in human_texts(update[0])]
        by = handle.subject.principal if handle is not None else ""
        found = place["configurable"]
        scope = self.scope(graph.get_name(), str(found["thread_id"]))
        waiting = yield from checkpoints.read_waiting(graph, place, self.watch(graph))
        try:
            yield from record_state_edit(scope, texts, by, found["checkpoint_id"], waiting.digest if waiting else None)
        except AuthzDenied:
            raise
        except Exception as exc:
            decision = self.pep.deny_for_failure(exc)
            raise AuthzDenied(decision.reason, decision.decision_id) from exc
        return place

    def update_inside(self, graph: Any, config: Mapping[str, Any] | None, write: tuple[Any, ...]) -> Flow[Any]:
        """Perform an `update_state` inside a run, and record its checkpoint as ours."""
        place = yield write
        run = run_context.target_in(config) or run_context.current_run()
        if isinstance(run, Run):
            mark = checkpoints.mark_of(place, graph.get_name())
            try:
                yield Commit(run.scope, None, [SetMark(mark.name, mark.value(place["configurable"]["checkpoint_id"]))])
            except Exception as exc:
                decision = run.pep.deny_for_failure(exc)
                raise run_context.AuthzHalt(decision.reason, decision.decision_id) from exc
        return place


class RunEntry(FlowContext[T]):
    """A context manager that opens a graph's run, and closes it."""

    apart = True

    def __init__(self, run_opener: RunOpener, name: str, config: Mapping[str, Any], graph: Any) -> None:
        self.run_opener, self.pep, self.run_id = run_opener, run_opener.pep, ""
        self.name, self.config, self.graph, self.saver = name, config, graph, checkpoints.saver_of(graph)
        self.run: Run | None = None

    def _over(self, exc: BaseException | None, *, cut: bool) -> Flow[None] | None:
        """Record the outcome. Return the flow that closes the run; None without a run."""
        if exc is not None:
            run_context.pass_question_up(self.run, exc)
        if isinstance(exc, AuthzDenied):  # reports it, unless an enforcement point has
            thread = str((self.config.get("configurable") or {}).get("thread_id") or "")
            self.pep.recent.refused(exc, self.run_opener.scope(self.name, thread), self.run_id)
        if (run := self.run) is None:
            return None
        if exc is not None and run.span is not None:
            run.span.fail(type(exc))
        return self._leave(run, raised=exc is not None, cut=cut)

    def _leave(self, run: Run, *, raised: bool, cut: bool) -> Flow[None]:
        """Close the run. `raised`: it failed. `cut`: its stream was closed early."""
        # In both cases, tasks of the graph may still run and write.
        raise NotImplementedError


class RootEntry(RunEntry[tuple[Any, Any]]):
    """Opens and closes the run of one root entry."""

    input: Any = None
    handle: run_context.RunHandle | None = None
    head: CheckpointHead | None = None
    stopped = False  # the thread's last run paused, failed or was cut
    hidden: Any = None  # messages for the state, if the graph's input schema lacks them
    lost: Sequence[Change] = ()  # makes corrections pending again, unless a checkpoint holds them

    def _enter(self) -> Flow[tuple[Any, Any]]:
        owner, pep, config, graph = self.run_opener, self.pep, self.config, self.graph
        handle = self.handle or owner.implicit(config)
        inputs.drop_old_answer(config)
        self.run_id = handle.run_id
        if handle.closed:
            raise AuthzDenied(Code.LEASE_ENDED, deny(Code.LEASE_ENDED).decision_id)
        configurable = config.get("configurable") or {}
        thread = configurable.get("thread_id")
        saver, update = self.saver, update_in(self.input)
        if saver is not None:
            config = self.config = yield from checkpoints.at_replay(graph, config, self.input)
        # LangGraph must read the state itself, after the lease is taken: another run may end in between.
        head = (yield from checkpoints.read_head(saver, config)) if saver is not None and thread is not None else None
        self.head = head
        watch = owner.watch(graph) if head is not None else ()
        texts, shown = (yield from self._texts(update, head)) if handle.human and update is not None else NOTHING
        task, number = configurable.get(private.keys.CONFIG_KEY_TASK_ID), 0
        if task and graph is not None:
            config, number = private.counted_graph(config)
        if task:  # an unprotected graph's task repeats its input when it runs again
            texts = [t if t.key is not None else replace(t, key=f"{task} {number} {i}") for i, t in enumerate(texts)]
        entry: OpenedEntry = yield from open_entry(
            pep,
            owner.scope(self.name, f"run:{new_id()}" if thread is None else str(thread)),
            handle.subject,
            handle.run_id,
            self.name,
            given=EntryFacts(
                texts=texts,
                shown=shown,
                resume=self.input is None or isinstance(self.input, Command),
                kept=saver is not None and thread is not None,
                head=head,
                memory=(yield from owner.memory(graph, handle.subject)) if saver is not None else None,
                waiting=partial(checkpoints.read_waiting, graph, config, watch) if head is not None else None,
                moved=partial(checkpoints.task_changed_between, graph, config, watch, head.id)
                if head is not None
                else None,
            ),
            **handle.brings(),
            workflow=partial(is_workflow, graph),
        )
        run = self.run = entry.run
        self.stopped = entry.stopped
        self.lost = [Redeliver(entry.pending)] if saver is not None and entry.pending else ()
        if claimed := claimed_identities(config, handle.subject):
            # An identity that a client put into the config is ignored. Record only the names of its fields.
            yield run_event(run, "identity_ignored", entry.now, detail={"claimed": claimed[:MAX_CLAIMED]})
        foreign_plans(run, update)
        handle.enter(run)
        pep.tally.count(run, "entry", self.name, "root entry", decided=1, ran=1)
        given = self.input
        if task:
            config = yield from self._answered(run, config, number)
        if saver is not None or entry.pending:
            given = yield from self._delivered(entry)
        return given, run_context.with_run(config, run)

    def _answered(self, run: Run, config: Mapping[str, Any], number: int) -> Flow[Mapping[str, Any]]:
        """Record the answer with which an unprotected parent graph was resumed.

        Return the config to use. `number`: the index of this graph among those that the parent's task calls.
        """
        if (together := private.superstep_id(config)) is not None:
            # Calls of one message may be tasks of one superstep. They get one `entry`, or each would ask about the others.
            run.entry.name = f"{together} {run.run_id if self.handle is not None else ''}"
        namespace: str | None = private.agent_ns(config)
        if self.graph is not None:
            place = private.place_below(self.graph, config, number)
            namespace = place.config["configurable"]["checkpoint_ns"] if place is not None else None
        answers = (yield from inputs.record_answer(run, config, namespace)) if namespace is not None else None
        if answers is None:
            return config
        if self.graph is None:
            inputs.keyed_answers(config, answers)
            return config
        private.take_plain_answer(config := private.with_answers(config, answers))
        return config

    def _texts(self, update: Any, head: CheckpointHead | None) -> Flow[tuple[Sequence[HumanText], frozenset[str]]]:
        """Return the user's new texts, and the digests of those in the state."""
        channels, texts = self.run_opener.channels, human_texts(update)
        edited = bool(inputs.names_written(update, self.run_opener.other_channels))
        removes, shown = head is not None and bool(inputs.removed_message_ids(update)), frozenset[str]()
        if edited or (head is not None and (removes or len(texts) > 1 or any(t.key is not None for t in texts))):
            state = (yield checkpoints.read_state(self.graph, self.config)).values if head is not None else {}
            shown = frozenset(t.digest for t in human_texts(state))
            texts = inputs.without_known_history(texts, state)
            edits = inputs.edits_in_input(update, state, channels) if edited else []
            edits += inputs.taken_out(update, state) if removes else []
            # On a new thread, an edit counts only if it has a user's text.
            texts += edits if head is not None else [e for e in edits if e.text]
        if not texts and not self.run_opener.has_task_channel(self.graph):
            # Without a channel for the task, any input may change the task, but is not known to be the user's text.
            say, parts = checkpoints.content_of, update if isinstance(update, Mapping) else {}
            says = {str(n): say(v) for n, v in parts.items()} if parts is update else say(update)
            texts = [HumanText(raw_digest(says), "", "channel:input")]
        return texts, shown

    def _delivered(self, entry: OpenedEntry) -> Flow[Any]:
        given, state, place = self.input, None, checkpoints.thread_config(self.config)
        resumes = isinstance(given, Command) and given.resume is not None
        older = self.head is not None and bool(self.head.newest)
        # A root config may name a child's checkpoint, from `get_state(subgraphs=True)`.
        in_child = bool(self.config["configurable"].get("checkpoint_ns")) if resumes else False
        if not in_child:
            entry.run.keyed_thread = private.thread_of(self.config)
        again = given is None and not older and bool((self.config.get("configurable") or {}).get("checkpoint_id"))
        left = entry.stopped or (self.head is not None and self.head.waits)  # an earlier run left calls open, perhaps
        if self.saver is not None and place is not None and (resumes or again or entry.pending or left):
            # Read the newest checkpoint without its id: only then does LangGraph leave out answered questions.
            state = yield checkpoints.read_state(self.graph, self.config if older else place)
        if state is not None and resumes:
            plain = in_child or entry.anew in {i.id for i in state.interrupts if not approval_ids(i.value)}
            strict = private.resumes_strictly(self.config)
            given = yield from inputs.record_resume(entry, given, state, plain=plain, older=older, strict=strict)
        elif state is not None and again and inputs.open_questions(state, entry) != state.interrupts:
            given = Command(resume={})  # a question was answered outside the graph, and a replay would ask it again
        found, given = None, private.state_update(self.graph, given) if entry.pending or left else given
        if state is not None and left:
            found = yield from answer_void_calls(entry.run, self.graph, self.config, state, given)
        hidden = isinstance(given, dict) and private.hides_messages(self.graph)
        told = {} if hidden else given
        if entry.pending:
            asked = [i.id for i in state.interrupts] if state is not None else []
            self.lost = [Redeliver(inputs.untold_texts(entry.pending, given, asked))] if self.lost else ()
            values = {"messages": found.messages} if found is not None else state.values if state is not None else None
            told = inputs.deliver_corrections(entry, told, values, asked, self.graph)
        told = found.put_into(told) if found is not None else told
        if hidden:
            self.hidden = told.get("messages")
        return given if hidden else told

    def _leave(self, run: Run, *, raised: bool, cut: bool) -> Flow[None]:
        left, over, edits = RunEnd(), list[Change](), list[HumanText]()
        busy = bool(run.entry.children)  # child agents may still run and write, as after `gather` failed
        saver, watch = self.saver, self.run_opener.watch
        if saver is not None and (place := checkpoints.thread_config(self.config)) is not None:
            try:
                waiting = None
                if not cut:
                    head = yield from checkpoints.read_head(saver, place)
                    memory = yield from self.run_opener.memory(self.graph, run.subject)
                    # A tool's child waits only if the run paused. After a failure, the child's own mark counts.
                    waiting = yield from checkpoints.read_waiting(
                        self.graph, place, watch(self.graph), nodes_only=not run.paused
                    )
                    children = waiting.digest if waiting is not None and not busy else None
                    if head is not None and head.id == run.entry.first_checkpoint:  # this entry wrote no checkpoint
                        head = self.head or head
                    elif head is not None:
                        self.lost = ()
                    left = RunEnd(head.id if head is not None else None, memory, children)
                    # If all tasks have ended, the marks of their children are not needed any more.
                    over = [] if raised or run.paused or waiting is not None else [DeleteMarks(OF_TASK)]
                namespaces = waiting.namespaces if waiting is not None else ()
                edits = yield from checkpoints.updates_during(run, self.graph, place, namespaces, watch)
            except (CancelledError, KeyboardInterrupt):
                yield from close_run(run, also=self.lost)
                raise
            except Exception as exc:  # noqa: BLE001  (the run is closed all the same, without the state)
                _log.warning("the state that run %s left was not read: %s", run.run_id, type(exc).__name__)
        if saver is not None and (stops := raised or cut or run.paused) != self.stopped:
            over.append(SetMark(STOPPED, "yes") if stops else DeleteMarks(STOPPED))
        over += [SetMark(REPEATED, min(run.entry.asked_anew))] if len(run.entry.asked_anew) == 1 else []
        yield from close_run(run, left, over if cut else [*over, *self.lost], edits)


class ChildEntry(RunEntry[Any]):
    """Opens and closes a child agent's run around the child's graph."""

    remote = False
    refuse: Code | None = None

    def __init__(self, run_opener: RunOpener, parent: Run, name: str, config: Mapping[str, Any], graph: Any) -> None:
        super().__init__(run_opener, name, config, graph)
        self.parent, self.run_id = parent, parent.run_id
        self.place: private.StatePlace | None = None
        self.marked = False
        if graph is not None:
            self.config, number = private.counted_graph(config)
            self.place = private.place_below(graph, config, number)

    def _enter(self) -> Flow[Any]:
        ticket, parent, name = current_ticket(), self.parent, self.name
        args = ticket.raw if ticket is not None and isinstance(ticket.raw, Mapping) else None
        tally = self.pep.tally
        tally.count(parent, "agent", name, "child entry", decided=1)
        try:
            if self.place is not None:
                watch = self.run_opener.watch(self.graph)
                self.marked = yield from checkpoints.check_child(parent, self.graph, self.place, watch)
            kind = kind_of_child(ticket.tool if ticket is not None else None, args, sent=private.is_sent(self.config))
            kind = "remote" if self.remote else kind
            mine = ticket is not None and ticket.agent == parent.agent  # otherwise the ticket is an outer agent's
            call_id = ticket.call_id if ticket is not None and mine else None
            self.run = yield from open_child(parent, name, kind, call_id=call_id, refuse=self.refuse)
            if not private.lent_checkpointer(
                self.config
            ):  # a graph on its own thread gets answers without interrupt ids
                self.run.keyed_thread = None
            given = yield from self._given(self.run)
        except AuthzDenied as denied:
            if ticket is not None:  # a tool called the child, so the tool's message carries the denial
                raise
            raise run_context.AuthzHalt(denied.code, denied.decision_id) from None
        except (LedgerError, AuditError) as exc:  # not a denial: halt, so that a resume starts the tool again
            decision = self.pep.deny_for_failure(exc, parent)
            raise run_context.AuthzHalt(decision.reason, decision.decision_id) from exc
        tally.count(parent, "agent", name, "child entry", ran=1)
        return given

    def _given(self, run: Run) -> Flow[Any]:
        return run_context.with_run(self.config, run)
        yield

    def _over(self, exc: BaseException | None, *, cut: bool) -> Flow[None] | None:
        if isinstance(exc, GraphInterrupt) and exc.args and getattr(self.graph, "checkpointer", None) is False:
            self.parent.entry.asked_anew.update(i.id for i in exc.args[0])
        return super()._over(exc, cut=cut)

    def _leave(self, run: Run, *, raised: bool, cut: bool) -> Flow[None]:
        marks: list[Change] = []
        if run.paused and not raised and not cut:  # a child on its caller's thread would raise the question instead
            _log.warning("agent %s asks on its own thread, so its caller gets no answer", "/".join(run.agent))
        if self.place is not None and not cut:
            try:
                marks = yield from checkpoints.mark_child(self.graph, self.place, known=self.marked, again=raised)
            except (CancelledError, KeyboardInterrupt):
                yield from close_run(run)
                raise
            except Exception as exc:  # noqa: BLE001  (as for a root entry)
                _log.warning("the state that %s left was not read: %s", "/".join(run.agent), type(exc).__name__)
        yield from close_run(run, also=marks)


class AuthzParts(Protocol):
    """The parts of a `RuntimeAuthz` that enforcement points use."""

    profiles: Profiles
    run_opener: RunOpener
