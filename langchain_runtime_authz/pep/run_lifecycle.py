"""Open a root run in the ledger with its lease and texts, and close any run.

Each root entry (invoke, stream, batch element, resume) takes a lease at the epoch of the state that it loads. A later
correction ends this lease, so that further steps of the old run are denied. Only a new root entry plans again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple

from langchain_runtime_authz.errors import AuthzDenied, Code
from langchain_runtime_authz.evaluation import Subject, deny
from langchain_runtime_authz.facts import checkpoint_head as heads
from langchain_runtime_authz.facts.history import make_edge
from langchain_runtime_authz.facts.local_time import local_day
from langchain_runtime_authz.facts.task import HumanText, content_digest, new_texts
from langchain_runtime_authz.grant import Grant
from langchain_runtime_authz.ledger import changes as ledger
from langchain_runtime_authz.ledger.base import Approval, Committed, Conflict, Query, Scope, Snapshot
from langchain_runtime_authz.ledger.thread_state import Thread
from langchain_runtime_authz.ledger.thread_state import take_snapshot as ledger_snapshot
from langchain_runtime_authz.mandate.follow_ups import TurnBefore, TurnInContext
from langchain_runtime_authz.mandate.model import Mandate
from langchain_runtime_authz.pep import call_mandate, corrections
from langchain_runtime_authz.pep.calls_in_doubt import UNRECORDED_ENDS, record_ends
from langchain_runtime_authz.pep.decide_steps import decide_step
from langchain_runtime_authz.pep.decision_log import run_event, step_record
from langchain_runtime_authz.pep.lease import take_lease
from langchain_runtime_authz.pep.request_builder import request_json
from langchain_runtime_authz.pep.run import ATTEMPTS, Commit, EntryState, Flow, Load, PepParts, Perform, Run, new_id
from langchain_runtime_authz.pep.thread_memory import Turn, earlier_texts, newest_turn, turns_before
from langchain_runtime_authz.telemetry.metrics import count_metric
from langchain_runtime_authz.telemetry.spans import run_span


class OpenedEntry(NamedTuple):
    """A root entry, the corrections that the graph may lack, and the open questions."""

    run: Run
    pending: tuple[HumanText, ...]
    questions: tuple[Approval, ...]
    now: float = 0.0
    anew: str | None = None  # interrupt id of a question that a child graph without checkpoints repeats
    stopped: bool = False  # the thread's last run paused, failed or was cut, so calls may be open


class EntryFacts(NamedTuple):
    """The facts of a root entry: a new input or a resume, and the state to load."""

    texts: Sequence[HumanText] = ()
    shown: frozenset[str] = frozenset()  # digests of all texts with the user's role in the loaded state
    resume: bool = False
    kept: bool = False  # a checkpointer stores the state, so another writer may erase texts in it
    head: heads.CheckpointHead | None = None
    moved: Callable[[str], Flow[bool]] | None = None  # returns True if the state changed since the given checkpoint
    memory: str | None = None  # digest of the store's memory, if that is a task source
    waiting: Callable[[], Flow[heads.ChildStates | None]] | None = None  # reads the waiting child graphs


class RunEnd(NamedTuple):
    """A run's last checkpoint id, and digests of memory and waiting child graphs."""

    head: str | None = None
    memory: str | None = None
    children: str | None = None


def open_entry(
    pep: PepParts,
    scope: Scope,
    subject: Subject,
    run_id: str,
    agent: str,
    *,
    task: HumanText | None = None,
    grant: Grant | None = None,
    application: call_mandate.ApplicationMandate | None = None,
    given: EntryFacts = EntryFacts(),  # noqa: B008  (a constant)
    workflow: Callable[[], bool] = bool,
    upstream: tuple[str, ...] = (),
) -> Flow[OpenedEntry]:
    """Open a root entry: record the task, take a lease, ask the policy.

    Raises `AuthzDenied` if the entry is denied. `workflow`: returns True if the graph orchestrates agents. `upstream`:
    agents of other servers that delegated to this root.
    """
    granted = pep.granted(pep.agents.get(agent), grant)
    entry = EntryState(jti := new_id(), upstream, given.kept)
    run = Run(pep, scope, subject, run_id, entry, (agent,), jti, granted, depth=len(upstream))
    run.span = run_span(run, workflow)
    try:
        if pep.kill_switch is not None and pep.killed:
            raise (yield from _refused(run, given, Code.KILLED))
        opened, known = yield from _take_lease(run, task, application, given)
        action = "run/resume" if given.resume else "run/start"
        resource = {"type": "run", "id": agent, "properties": {"graph": scope.graph}}
        decision = yield from decide_step(run, action, resource, known=known)
        if decision.outcome != "permit":
            raise AuthzDenied(decision.reason, decision.decision_id)
        if pep.planner is not None and entry.mandate is None:
            entry.planned = yield from _planned(run, known)
        return opened
    except BaseException as exc:
        if entry.first_snapshot is not None:  # no step ran, and the graph did not receive earlier corrections
            yield from close_run(run, also=[ledger.Redeliver(entry.first_snapshot.pending)])
        elif run.span is not None:
            run.span.end()
        if isinstance(exc, AuthzDenied) or not isinstance(exc, Exception) or exc is entry.state_error:
            raise
        decision = pep.deny_for_failure(exc, run)  # a ledger that fails denies
        raise AuthzDenied(decision.reason, decision.decision_id) from exc


def _planned(run: Run, known: Snapshot) -> Flow[Mandate | None]:
    """Return the planner's mandate for the newest turn. Later root entries reuse it."""
    said, planner = newest_turn(known.log), run.pep.planner
    if planner is None or not said.texts:
        return None
    name, older = f"mandate:{said.key}", [*turns_before(known.log, said, run.pep.zone)]
    kept: Snapshot = yield Load(run.scope, Query(marks=(name, *(f"mandate:{turn.key}" for turn in older))))
    if name not in kept.marks:
        today = local_day(run.pep.zone, said.at)
        turn = TurnInContext(said.texts, earlier_texts(known.log, said), today, _mandates_before(kept, older))
        found: Mandate | None = yield Perform(planner.plan, planner.aplan, turn)
        if found is not None:
            found = found.of("planner", name)
            yield call_mandate.mandate_event(run, found)  # record it before it counts, because only this entry does
        yield Commit(run.scope, None, [ledger.SetMark(name, found.model_dump_json() if found else "", once=True)])
        kept = yield Load(run.scope, Query(marks=(name,)))  # another process may have been first
    return Mandate.model_validate_json(kept.marks[name]) if kept.marks[name] else None


def _mandates_before(kept: Snapshot, turns: Iterable[Turn]) -> tuple[TurnBefore, ...]:
    """Return the mandates of the turns directly before this one, the newest last."""
    found = list[TurnBefore]()
    for turn in turns:
        if (mandate := kept.marks.get(f"mandate:{turn.key}")) is None:
            break
        found.insert(0, TurnBefore(turn.texts[0], Mandate.model_validate_json(mandate) if mandate else Mandate()))
    return tuple(found)


def _take_lease(
    run: Run, task: HumanText | None, application: call_mandate.ApplicationMandate | None, given: EntryFacts
) -> Flow[tuple[OpenedEntry, Snapshot]]:
    scope, owner, entry = run.scope, run.subject.principal, run.entry
    of_state = (heads.HEAD, heads.MEMORY, heads.CHILDREN, heads.UNRECORDED, heads.REPEATED, heads.STOPPED)
    marked = (*of_state, call_mandate.APPLICATION_MANDATE)
    query = Query(log=True, questions=True, agent=run.agent, marks=marked)
    entry.first_checkpoint = (given.head.newest or given.head.id) if given.head is not None else ""
    yield from record_ends(run.pep, scope) if UNRECORDED_ENDS else ()  # an end may revoke the agent
    # If another entry advances the epoch between load and commit, load again.
    for _ in range(ATTEMPTS):
        snapshot: Snapshot = yield (Load, scope, query)
        # A client that sends a history without ids also returns texts that machines wrote with the user's role.
        machines = given.shown and given.shown - {t.digest for t in snapshot.log if t.own}
        said = [t.by(owner, own=t.digest not in machines) for t in _fresh(snapshot.log, task, given.texts)]
        edits = (yield from _edits(snapshot, given, run)) if snapshot.exists else ()
        fresh = (*edits, *said)
        first = not snapshot.log and not edits
        rotates, source = bool(fresh) and not first, "input" if said else "state"
        run.move_to(snapshot.epoch + rotates, run.jti)
        entry.started_at = int(snapshot.now)
        run.expires_at = run.pep.lease_end(snapshot.now, entry.started_at)
        entry.text_count, entry.steps_before = len(snapshot.log) + len(fresh), snapshot.history.steps
        # INVARIANT: a lease begins only after the audit log has the task change of its epoch.
        left = (yield from corrections.record_unrecorded(run, snapshot)) if heads.UNRECORDED in snapshot.marks else ""
        opening: list[ledger.Change] = [ledger.OpenThread(owner)]
        opening += [ledger.RecordEdge(make_edge(entry.upstream[:1], run.agent[0], "remote"))] if entry.upstream else []
        if fresh:
            # An older run may overwrite these texts in the state, so they stay pending until a run with them ends.
            opening.append(ledger.AdvanceEpoch(snapshot.epoch, fresh, first=first, deliver=given.kept and not first))
        call_mandate.recall_mandate(run, snapshot.marks.get(call_mandate.APPLICATION_MANDATE))
        marks = application.apply(run) if application is not None else []
        taken = take_lease(run)
        lease: list[ledger.Change] = [taken, *marks]
        if rotates:
            mark = corrections.unrecorded_mark(snapshot.epoch + 1, len(snapshot.log), fresh, source)
            opening.append(mark)
            left = mark.value
        lease += [corrections.clear_mark(left)] if left else []
        # A commit checks a lease against the epoch before the commit, so a new epoch needs a separate commit.
        for changes in (opening, lease) if rotates else ([*opening, *lease],):
            done: Committed | Conflict = yield (Commit, scope, None, changes)
            if isinstance(done, Conflict):
                break
            if changes is opening:
                yield corrections.trace_change(run, done, fresh, source)
        if isinstance(done, Conflict):
            if done.code == Code.STALE_EPOCH:
                continue
            raise (yield from _refused(run, given, done.code))
        if application is not None:
            application.epochs.setdefault(scope, run.epoch)
        if given.resume and run.span is not None:
            run.span.link(*(a.trace for a in snapshot.questions))
        count_metric("leases")
        entry.first_snapshot = _snapshot_after(snapshot, [*opening[1:], taken], done.now)  # without `OpenThread`
        yield run_event(run, "resumed" if given.resume else "started", done.now, detail={"subject": owner})
        if marks and entry.mandate is not None:
            yield call_mandate.mandate_event(run, entry.mandate)
        questions = () if rotates else snapshot.questions
        anew, stopped = snapshot.marks.get(heads.REPEATED), heads.STOPPED in snapshot.marks
        return OpenedEntry(run, snapshot.pending, questions, done.now, anew, stopped), entry.first_snapshot
    raise (yield from _refused(run, given, Code.STALE_EPOCH))


def _refused(run: Run, given: EntryFacts, code: Code) -> Flow[AuthzDenied]:
    """Record a refused entry with its subject, and return the error to raise."""
    decision, now, action, agent = deny(code), time.time(), "run/resume" if given.resume else "run/start", run.agent[0]
    resource = {"type": "run", "id": agent, "properties": {"graph": run.scope.graph}}
    nothing = ledger_snapshot(Thread(), Query(), now)  # an empty thread, because the real one may be another subject's
    body = request_json(run, nothing, {"name": action}, resource)
    with suppress(Exception):  # a failing record does not change the refusal
        yield step_record(run, decision, action, agent, body, None, now)
    return AuthzDenied(code, decision.decision_id)


def _snapshot_after(before: Snapshot, changes: Sequence[ledger.Change], now: float) -> Snapshot:
    """Return the snapshot that a load after the commit of `changes` would give."""
    t = Thread(epoch=before.epoch, task=before.task, history=before.history)
    for change in changes:
        change.apply(t, now)
    (before.lease,) = t.leases.values()
    before.now, before.exists, before.epoch, before.task, before.history = now, True, t.epoch, t.task, t.history
    before.log = (*before.log, *t.log)
    return before


def _edits(snapshot: Snapshot, given: EntryFacts, run: Run) -> Flow[tuple[HumanText, ...]]:
    """Return others' edits of the state, as texts to record with the task."""
    found = [*(yield from _state_edit(snapshot, given, run))]
    if snapshot.underway:  # a run of ours, at work or interrupted, may have made the change
        return tuple(found)
    children: heads.ChildStates | None = None
    if given.waiting is not None and snapshot.marks.get(heads.CHILDREN):
        children = yield from _of_graph(run, given.waiting())
    digest = children.digest if children is not None else None
    for name, now in ((heads.MEMORY, given.memory), (heads.CHILDREN, digest)):
        if now is not None and snapshot.marks.get(name) not in (None, heads.UNKNOWN, now):
            found.append(HumanText(now, "", f"{name}:{now}", own=False))
            # A child compares its state with the checkpoint that it left. So it may have recorded some edits already.
            known = {t.key for t in snapshot.log}
            updates = children.updates if children and name == heads.CHILDREN else ()
            edits = [e for e in updates if heads.outside_key(e) not in known]
            found += [HumanText(content_digest(e), "", heads.outside_key(e), own=False) for e in edits]
    return tuple(found)


def _state_edit(snapshot: Snapshot, given: EntryFacts, run: Run) -> Flow[tuple[HumanText, ...]]:
    head = given.head
    if head is None or given.moved is None:
        return ()
    how = heads.writer_of(head, snapshot.marks, {t.key for t in snapshot.log}, underway=snapshot.underway)
    if how == "fork":
        return (HumanText(content_digest(head.id), "", f"fork:{run.jti}", own=False),)
    left = snapshot.marks.get(heads.HEAD, heads.UNKNOWN)
    if how == "outside" and (left == heads.UNKNOWN or (yield from _of_graph(run, given.moved(left)))):
        return (HumanText(content_digest(head.id), "", heads.outside_key(head.id), own=False),)
    return ()


def _of_graph(run: Run, read: Flow[Any]) -> Flow[Any]:
    """Read the graph's state. A failure of its checkpointer is not one of the ledger."""
    try:
        return (yield from read)
    except Exception as exc:
        run.entry.state_error = exc
        raise


def record_child_edit(
    run: Run,
    mark: heads.ChildMark,
    read: Callable[[], Flow[heads.CheckpointHead | None]],
    moved: Callable[[str, str], Flow[bool]],
) -> Flow[bool]:
    """If a child's state was edited since its last run, record that.

    Return False if no run of the child left a checkpoint, else True. Raises `AuthzDenied` if an edit was recorded.
    """
    snapshot: Snapshot = yield Load(run.scope, Query(marks=(mark.name,)))
    if not (left := mark.left(snapshot.marks)):
        return left is not None
    head = yield from read()
    if head is None or head.id == left or head.source != "update" or not (yield from moved(head.id, left)):
        return True
    text = HumanText(content_digest(head.id), "", heads.outside_key(head.id), own=False)
    if (yield from _pinned(run, (text,))):
        raise AuthzDenied(Code.STALE_EPOCH, new_id())
    return True


def _pinned(run: Run, texts: Sequence[HumanText]) -> Flow[bool]:
    """Record an edit in a new epoch. Return False if the ledger had it before."""

    def edit(snapshot: Snapshot) -> tuple[list[ledger.Change], Sequence[HumanText]] | None:
        known = texts[-1].key in {t.key for t in snapshot.log}
        return None if known else ([ledger.AdvanceEpoch(snapshot.epoch, (*texts,))], texts)

    return (yield from corrections.change_task(run, "state", edit)) is not None


def _fresh(pinned: Sequence[HumanText], task: HumanText | None, texts: Sequence[HumanText]) -> tuple[HumanText, ...]:
    """Return the texts that the ledger lacks. A new `task` comes first."""
    if task is None:
        return new_texts(pinned, texts)
    known, told = [t for t in pinned if t.digest != task.digest], [t for t in texts if t.digest != task.digest]
    rest = new_texts(known, told) if told else ()
    return rest if len(known) < len(pinned) else (task, *rest)


def close_run(
    run: Run,
    left: RunEnd = RunEnd(),  # noqa: B008  (a constant)
    also: Sequence[ledger.Change] = (),
    edits: Sequence[HumanText] = (),
) -> Flow[None]:
    """End the leases of a run and its children. Record `left` and `edits`."""
    if run.closed and left.head is None and not also:
        return
    entry, root = run.entry, run.parent is None
    ending: Literal["suspended", "ended"] = "suspended" if run.paused else "ended"
    if not run.closed:
        count_metric("leases", by=-1)
    run.closed = True
    entry.children.discard(run.jti)
    over: list[ledger.Change] = [ledger.EndLease(run.jti, ending), *also]
    if root and entry.has_checkpointer:
        for name, value in zip((heads.HEAD, heads.MEMORY, heads.CHILDREN), left, strict=True):
            over.append(ledger.SetMark(name, value or heads.UNKNOWN))
    try:
        yield from record_ends(run.pep, run.scope) if UNRECORDED_ENDS else ()
        if edits:
            yield from _pinned(run, edits)
        done = None
        if root and not entry.undelivered:
            done = yield (Commit, run.scope, run.guard, [ledger.TakePending(), *over])
            if isinstance(done, Conflict) and entry.has_checkpointer:
                # The task changed meanwhile, and this run's last write may have erased newer texts in the state.
                snapshot: Snapshot = yield Load(run.scope, Query(log=True))
                over.append(ledger.Redeliver(tuple(t for t in snapshot.log[entry.text_count :] if t.text)))
        if done is None or isinstance(done, Conflict):
            done = yield (Commit, run.scope, None, over)
        if root:
            yield run_event(run, ending, getattr(done, "now", 0.0), detail={})
    except Exception as exc:  # noqa: BLE001  (what the run returned must not be lost; the lease lapses)
        run.pep.log_unrecorded("the end of a run", exc, run)
    finally:
        if run.span is not None:
            run.span.end(ending, run.epoch)
