"""Record the end or denial of a call, and return budgets that it did not use."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from langchain_runtime_authz._display import printable
from langchain_runtime_authz._flow import Flow
from langchain_runtime_authz.audit.record import completion_record
from langchain_runtime_authz.credential.ticket import Ticket
from langchain_runtime_authz.errors import AuditError, Code
from langchain_runtime_authz.facts.checkpoint_head import OF_TASK
from langchain_runtime_authz.facts.output_reading import Observation
from langchain_runtime_authz.facts.resource import content_version, read_mark
from langchain_runtime_authz.facts.task import HumanText
from langchain_runtime_authz.ledger import changes as ledger
from langchain_runtime_authz.ledger.base import Committed, Conflict, Scope
from langchain_runtime_authz.ledger.call_changes import ConcludeCall, SpendBudget
from langchain_runtime_authz.mandate.call_matching import MANDATE, UNBOUNDED
from langchain_runtime_authz.pep import calls_in_doubt, decision_log
from langchain_runtime_authz.pep.approval_questions import own_question
from langchain_runtime_authz.pep.call import Call, DecidedCall, Denial
from langchain_runtime_authz.pep.call_mandate import chosen_arguments, counting_scope, task_key
from langchain_runtime_authz.pep.obligations import changes_owed
from langchain_runtime_authz.pep.outdated_reads import version_read
from langchain_runtime_authz.pep.request_builder import SMALL, observe_result
from langchain_runtime_authz.pep.run import Block, Commit, Run, Write
from langchain_runtime_authz.telemetry.logs import get_logger

_log = get_logger(__name__)


def refund_mandate(run: Run, shared: Scope | None, spent: Sequence[tuple[str, int]]) -> Flow[None]:
    """Subtract `spent` from the mandate's counters in the scope `shared`."""
    back = [SpendBudget(counter, UNBOUNDED, -by) for counter, by in spent if counter.startswith(MANDATE)]
    if shared is None or not back:
        return
    try:
        yield Commit(shared, None, back)
    except Exception as exc:  # noqa: BLE001  (then the step stays spent, and a person is asked)
        _log.error("a step of run %s was not given back: %s", run.run_id, type(exc).__name__)


def deny_call(run: Run, decided: DecidedCall) -> Flow[Denial]:
    """Record and count a denied call, and carry out its obligations."""
    call, decision = decided.call, decided.decision
    changes: list[ledger.Change] = [count_denial(decided)]
    obliged = {o.type for o in decision.obligations}
    text = HumanText(call.args_digest, "", f"data:{decision.decision_id}", own=False)
    rotation = [ledger.AdvanceEpoch(run.epoch, (text,))] if "rotate" in obliged else []
    changes += [ledger.Revoke(run.agent)] if "revoke" in obliged else []
    message = ""
    if decided.approval is not None and decided.approval.state in ("rejected", "answered"):
        message = decided.approval.message
    elif decision.reason == Code.STALE_EPOCH or decided.stale:
        message = run.untold()
        changes += [ledger.TakePending()] if message else []
    done: Committed | Conflict | None = None
    rotated = None
    try:
        done = yield Commit(run.scope, None, [*changes, *rotation])
        rotated = done.epoch if rotation and isinstance(done, Committed) else None
        if rotation and isinstance(done, Conflict):  # the task has changed already
            done = yield Commit(run.scope, None, changes)
    except Exception as exc:  # noqa: BLE001  (the call is denied already; what failed is its count)
        run.pep.log_unrecorded("the count of a denial", exc, run, decision.decision_id)
        yield from calls_in_doubt.revoke_late(run, decision, exc) if "revoke" in obliged else ()
    except BaseException:  # the caller is cancelled
        calls_in_doubt.keep_revocation(run, decision)
        raise
    now = getattr(done, "now", 0.0) or time.time()
    try:
        yield decision_log.call_record(run, decided, now)
        if done is not None:
            yield from decision_log.obliged_events(run, decision, now, rotated=rotated)
    except Exception as exc:  # noqa: BLE001  (the call is denied already; what failed is its record)
        run.pep.log_unrecorded("a denial", exc, run, decision.decision_id)
    for change in changes_owed(decision):
        try:
            yield Commit(run.scope, None, [change])  # if the counter is full, the commit does nothing
        except Exception as exc:  # noqa: BLE001  (the call is denied already; what failed is its obligation)
            run.pep.log_unrecorded("an obligation of a denial", exc, run, decision.decision_id)
    if decision.outcome != "approval_required":  # for a question, the notifications were sent when it was asked
        try:
            yield from decision_log.send_notifications(run, decision, "tools/call", call.tool, time.time())
        except AuditError as exc:
            _log.error("of denial %s nobody was told: %s", decision.decision_id, printable(str(exc)))
    return Denial(call, decision, message)


def count_denial(decided: DecidedCall, by: int = 1) -> ledger.RecordStep:
    """Return the change that counts a denial, or takes the count back (`by=-1`)."""
    call, counts = decided.call, decision_log.counts_against_agent(decided.decision)
    acts = counts and call.profile.side_effect and decided.match is not None
    tainted = acts and any(p.standing == "outside" and p.kind != "when" for p in decided.provenance.values())
    name = "*" if call.error == Code.UNKNOWN_TOOL else decision_log.tool_label(call.tool)  # a model made up the name
    return ledger.RecordStep(
        denials=by * counts,
        recent=f"deny:{name}" if by > 0 else None,
        unplanned=by * (acts and decided.match is not None and not decided.match.planned),
        tainted=by * tainted,
    )


def conclude_call(
    run: Run,
    ticket: Ticket,
    call: Call,
    state: Literal["done", "failed", "denied", "suspended", "unknown", "released"],
    result: str | None = None,
    *,
    output: object = None,
    question: str = "",
) -> Flow[None]:
    """Record the end of a call. If its output held a live token, revoke the agent.

    `state`: `denied` means that a step inside the call was denied; `released` means that the tool never began.
    `question`: id of the tool's own interrupt. The policy is not asked.
    """
    ticket.conclude()
    leaked, profile, side_effect = ticket.leaked, call.profile, call.profile.side_effect
    changes: list[ledger.Change] = []
    read: tuple[str, str, str] | None = None
    if state == "released":
        changes.append(released := ticket.undo())
        yield from refund_mandate(run, counting_scope(run, run.entry.mandate), released.refund)
    else:
        # A read may run again, so its end is not stored. The repeated read gets the answers to its questions in order.
        ended = "failed" if state == "denied" else state
        kept, result = ended if side_effect or state == "suspended" else None, result if side_effect else None
        changes.append(ConcludeCall(ticket.call_key, kept, result, jti=ticket.jti, denied=ended != state))
        if question:  # its answer must not count for a later question of the LangGraph task
            changes.append(ledger.SetMark(f"{OF_TASK}{question}", "own", once=True))
            changes += [own_question(run, ticket.call_key, call, question)] if side_effect else []
        read = version_read(run, ticket, call, state) if profile.resource is not None else None
        changes.append(ledger.RecordStep(data_class=profile.data_class, resource=read, agent=run.agent))
    if output is not None and state in ("done", "failed", "unknown"):
        about, small = (call, output, state != "done"), type(output) is str and len(output) < SMALL
        found = observe_result(*about) if small else (yield Block(observe_result, *about))
        _remember(run, call, found, output, read, done=state == "done")
        if found.sightings:
            changes.append(ledger.RecordValues(found.sightings))
        if not side_effect and state == "done":
            version = content_version(profile, output)
            changes.append(ledger.SetMark(read_mark(call.tool, call.args_digest), version, call.tool))
    if leaked:
        changes.append(ledger.Revoke(run.agent))
        _log.error("a credential was found in the output of %s; agent %s is revoked", call.tool, run.agent)
    if ticket.withheld:
        _log.error("output of %s could not be searched for its credential, and is withheld", call.tool)
    done = None
    try:
        done = yield (Commit, run.scope, None, changes)
        calls_in_doubt.UNRECORDED_ENDS.pop(ticket.call_key, None)
        if type(done) is Conflict and done.row is not None:
            yield from calls_in_doubt.ended_late(run, done.row, state)
            late = [replace(one, late=True) if type(one) is ConcludeCall else one for one in changes]
            done = yield (Commit, run.scope, None, late)
        if ticket.awaited and state == "done":
            yield from refund_mandate(run, counting_scope(run, run.entry.mandate) or run.scope, ((ticket.awaited, 1),))
        now = getattr(done, "now", 0.0)
        ids: dict[str, Any] = {"decision_id": ticket.decision_id, "call_key": ticket.call_key, "run_id": run.run_id}
        yield (Write, partial(completion_record, now=now, state=state, leaked=leaked, withheld=ticket.withheld, **ids))
        if leaked:
            yield decision_log.record_anomaly(run, "credential_leaked", ticket.decision_id, now)
    except Exception as exc:  # noqa: BLE001  (the call ran: a failing record must not lose its result)
        again = partial(conclude_call, run, ticket, call, state, result, question=question)
        lost = done is None and (side_effect or leaked) and state != "released"
        calls_in_doubt.keep_end(run, ticket, again if lost else None)
        run.pep.log_unrecorded("the end of a call", exc, run, ticket.decision_id)


def _remember(
    run: Run, call: Call, found: Observation, output: object, read: tuple[str, str, str] | None, *, done: bool
) -> None:
    """Store a call's output and destinations in memory, for questions and mandates."""
    memory, scope = run.pep.memory, run.scope
    if found.prose or found.rest is not None:
        memory.record_texts(scope, found)
    outputs = memory.record_destinations(scope, call.traced.destinations() if done and call.profile.side_effect else ())
    kept, about = output if found.held is None else found.held, (call.tool, call.profile, call.args)
    mandate = run.entry.mandate or run.entry.planned
    given = call.given if call.profile.side_effect else chosen_arguments(run, mandate, call)
    resource = (read[0], read[2]) if read is not None else None
    words = not (done and call.profiled)
    outputs.record(*about, kept, given=given, task=task_key(run), words=words, resource=resource)
