"""Root entries, children and corrections: where runs begin, end and are told of a changed task.

Each root entry (invoke, stream, batch element, resume) takes its own lease, at the epoch of the
state it loads. A later correction kills that lease and the old run drains; only a new root entry
plans anew.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from langchain_runtime_authz.audit.record import run_record
from langchain_runtime_authz.authzen import Edge, Resource, Subject
from langchain_runtime_authz.enforce.engine import Commit, Engine, Flow, Load, Record, Run, new_id
from langchain_runtime_authz.enforce.step import decide_step
from langchain_runtime_authz.errors import AuthzDenied, Code
from langchain_runtime_authz.facts.delegation import edge
from langchain_runtime_authz.facts.task import HumanText, changed
from langchain_runtime_authz.grant import Grant
from langchain_runtime_authz.ledger.base import (
    AdvanceEpoch,
    Approval,
    Conflict,
    EndLease,
    Lease,
    OpenThread,
    Query,
    RecordEdge,
    Reinstate,
    Revoke,
    Scope,
    Snapshot,
    TakeLease,
    TakePending,
)

__all__ = ["Entry", "close", "correct", "deliver", "open_child", "open_entry", "reinstate", "revoke"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """An opened root entry.

    `pending` are corrections that came beside the graph's input and that it has not seen yet, to be
    delivered with `deliver`; `asks` the questions that a resume value may answer.
    """

    run: Run
    pending: tuple[HumanText, ...]
    asks: tuple[Approval, ...]


def open_entry(
    engine: Engine,
    *,
    scope: Scope,
    subject: Subject,
    run_id: str,
    agent: str,
    task: HumanText | None,
    texts: Sequence[HumanText],
    resume: bool,
    grant: Grant | None,
) -> Flow[Entry]:
    """Open a root entry: pin the task, advance the epoch if a human changed it, take a lease.

    `task` is what `.run(task=)` said, `texts` the human-origin texts of the input.

    Raises:
        AuthzDenied: the subject may not start here, or the ledger is gone.
    """
    try:
        run, pending, asks = yield from _take_lease(engine, scope, subject, run_id, agent, task, texts, grant, resume)
    except AuthzDenied:
        raise
    except Exception as exc:  # a ledger that fails denies
        _log.error("ledger failed: %s: %s", type(exc).__name__, exc)
        raise AuthzDenied(Code.LEDGER_UNAVAILABLE, new_id()) from exc
    action = "run/resume" if resume else "run/start"
    decision = yield from decide_step(run, action, Resource(type="run", id=agent, properties={"graph": scope.graph}))
    if not decision.permit:
        yield from close(run, "ended")
        raise AuthzDenied(decision.reason, decision.decision_id)
    return Entry(run, pending, asks)


def _take_lease(
    engine: Engine,
    scope: Scope,
    subject: Subject,
    run_id: str,
    agent: str,
    task: HumanText | None,
    texts: Sequence[HumanText],
    grant: Grant | None,
    resume: bool,
) -> Flow[tuple[Run, tuple[HumanText, ...], tuple[Approval, ...]]]:
    owner = f"{subject.type}:{subject.id}"
    # Another entry may advance the epoch between our load and our commit: then look again.
    for _ in range(8):
        snapshot: Snapshot = yield Load(scope, Query(log=True, asks=True, agent=(agent,)))
        fresh = _fresh(snapshot.log, task, texts)
        first = not snapshot.log
        changes: list[OpenThread | AdvanceEpoch] = [OpenThread(owner)]
        if fresh:
            changes.append(AdvanceEpoch(snapshot.epoch, fresh, first=first))
        done = yield Commit(scope, None, changes)
        if isinstance(done, Conflict):
            if done.code == Code.STALE_EPOCH:
                continue
            raise AuthzDenied(done.code, new_id())
        now = int(done.now)
        run = Run(
            engine=engine,
            scope=scope,
            subject=subject,
            run_id=run_id,
            agent=(agent,),
            jti=new_id(),
            epoch=done.epoch,
            started_at=now,
            expires_at=now + engine.lease_ttl,
            grant=grant,
        )
        taken = yield Commit(scope, None, [TakeLease(_lease(run))])
        if isinstance(taken, Conflict):
            if taken.code == Code.STALE_EPOCH:
                continue
            raise AuthzDenied(taken.code, new_id())
        if fresh and not first:
            yield _record(run, "corrected", done.now, texts=len(fresh))
        yield _record(run, "resumed" if resume else "started", done.now, subject=owner)
        asks = snapshot.asks if not fresh or first else ()
        return run, snapshot.pending, asks
    raise AuthzDenied(Code.STALE_EPOCH, new_id())


def _fresh(pinned: Sequence[HumanText], task: HumanText | None, texts: Sequence[HumanText]) -> tuple[HumanText, ...]:
    """What the human says for the first time.

    `.run(task=)` with a pinned digest says nothing new, and the input that repeats the task says it
    once.
    """
    if task is None:
        return changed(pinned, texts)
    rest = changed([t for t in pinned if t.digest != task.digest], [t for t in texts if t.digest != task.digest])
    return rest if any(t.digest == task.digest for t in pinned) else (task, *rest)


def _lease(run: Run) -> Lease:
    return Lease(
        jti=run.jti,
        run_id=run.run_id,
        agent=run.agent,
        epoch=run.epoch,
        started_at=run.started_at,
        expires_at=run.expires_at,
        grant=run.grant,
        parent=run.parent.jti if run.parent is not None else None,
    )


def _record(run: Run, event: str, now: float, **detail: object) -> Record:
    return Record(
        run_record,
        now=now,
        event=event,
        run_id=run.run_id,
        jti=run.jti,
        epoch=run.epoch,
        scope=run.scope,
        agent=run.agent,
        detail=detail,
    )


def deliver(run: Run) -> Flow[None]:
    """The pending corrections go to the graph with this entry's input: they are pending no more."""
    yield Commit(run.scope, None, [TakePending()])


def open_child(parent: Run, name: str, kind: str, request: Grant | None = None) -> Flow[Run]:
    """Delegate to a child agent: decide `agent/invoke`, record the edge, take the child's own lease.

    The child's grant is `parent ⊓ request`; its jti is its own.

    Raises:
        AuthzDenied: the delegation is denied.
    """
    engine = parent.engine
    grant = request if parent.grant is None else parent.grant.attenuate(request)
    opened: Edge = edge(parent.agent, name, kind)  # type: ignore[arg-type]
    child = Run(
        engine=engine,
        scope=parent.scope,
        subject=parent.subject,
        run_id=parent.run_id,
        agent=(*parent.agent, name),
        jti=new_id(),
        epoch=parent.epoch,
        started_at=parent.started_at,
        expires_at=parent.expires_at,
        grant=grant,
        planned=parent.planned,
        parent=parent,
        foreign=parent.foreign,
        seen_from_model=parent.seen_from_model,
    )
    decision = yield from decide_step(
        parent,
        "agent/invoke",
        Resource(type="agent", id=name, properties={"kind": kind, "depth": len(parent.agent)}),
        extra=lambda _: [RecordEdge(opened), TakeLease(_lease(child))],
    )
    if not decision.permit:
        raise AuthzDenied(decision.reason, decision.decision_id)
    return child


def close(run: Run, state: Literal["suspended", "ended", "revoked"]) -> Flow[None]:
    """End a run's lease and every lease below it. The jtis are dead when this returns."""
    if run.closed:
        return
    run.closed = True
    try:
        done = yield Commit(run.scope, None, [EndLease(run.jti, state)])
        if run.parent is None:
            yield _record(run, state, getattr(done, "now", 0.0))
    except Exception as exc:  # noqa: BLE001  (what the run returned must not be lost; the lease lapses)
        _log.error("the end of run %s was not recorded: %s", run.run_id, type(exc).__name__)


def correct(scope: Scope, text: HumanText) -> Flow[int]:
    """A correction from beside the graph: pin it, epoch + 1, deliver it at the next root entry.

    Returns the new epoch.
    """
    for _ in range(8):
        snapshot: Snapshot = yield Load(scope, Query())
        done = yield Commit(scope, None, [AdvanceEpoch(snapshot.epoch, (text,), deliver=True)])
        if not isinstance(done, Conflict):
            yield Record(run_record, now=done.now, event="corrected", run_id="", epoch=done.epoch, scope=scope)
            return int(done.epoch)
    raise AuthzDenied(Code.STALE_EPOCH, new_id())


def revoke(scope: Scope, agent: tuple[str, ...]) -> Flow[None]:
    """Revoke an agent's subtree on a thread (`()` for all of it) until `reinstate`."""
    done = yield Commit(scope, None, [Revoke(agent)])
    now = getattr(done, "now", 0.0)
    yield Record(run_record, now=now, event="revoked", run_id="", scope=scope, agent=agent)


def reinstate(scope: Scope, agent: tuple[str, ...]) -> Flow[None]:
    """Lift a revocation."""
    done = yield Commit(scope, None, [Reinstate(agent)])
    now = getattr(done, "now", 0.0)
    yield Record(run_record, now=now, event="reinstated", run_id="", scope=scope, agent=agent)
