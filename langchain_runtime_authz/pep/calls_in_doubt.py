"""Handle calls in doubt: ask an approver before the same deed is done again.

A call is in doubt if it began and nobody knows its outcome. For `LASTS` seconds, other calls with the same deed (effect
and target) ask an approver, on every thread of the subject. `RuntimeAuthz(on_unknown=...)` may find the outcome.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import CancelledError as Cancelled
from contextvars import Context
from dataclasses import replace
from functools import partial
from typing import Any, Final, Literal, NamedTuple
from weakref import ref

from langchain_runtime_authz._display import error_text
from langchain_runtime_authz._flow import in_thread
from langchain_runtime_authz._locks import PROCESS
from langchain_runtime_authz.credential.ticket import Ticket, current_ticket
from langchain_runtime_authz.errors import Code, ConfigError, LedgerError
from langchain_runtime_authz.evaluation import Decision
from langchain_runtime_authz.facts.normal_forms import key as digest
from langchain_runtime_authz.ledger.base import Approval, CallRow, Conflict, InDoubtCall, Query, Scope, Snapshot
from langchain_runtime_authz.ledger.call_changes import ResolveCall
from langchain_runtime_authz.ledger.changes import Revoke
from langchain_runtime_authz.ledger.schema import SEVERAL
from langchain_runtime_authz.pep.call import Call, DecidedCall
from langchain_runtime_authz.pep.decision_log import commit_recorded, record_anomaly, run_event, tool_label
from langchain_runtime_authz.pep.run import Commit, Effect, Flow, ListDoubts, Load, PepParts, Run
from langchain_runtime_authz.pep.thread_memory import TaskWords
from langchain_runtime_authz.telemetry.logs import get_logger

_log = get_logger(__name__)

DEADLINE: Final = 5.0  # seconds for all calls of `on_unknown` before one decision
RUNNING: Final[dict[str, ref[Ticket]]] = {}  # call key → ticket of a call that this process runs
# Call key → an end of a call that could not be recorded: its run, a function that retries, time of the last failure.
UNRECORDED_ENDS: Final[dict[str, tuple[Run, Callable[[], Flow[None]], float]]] = {}
_RECORDING: Final[dict[str, object]] = {}  # call keys whose lost ends a thread is recording now
MAX_LOST: Final = 1_000  # number of lost ends that are stored per ledger
REST: Final = 1.0  # seconds before another thread of the ledger retries a lost end
_SERVICE: Final = {"author": "service:on_unknown", "reason": "the service was asked"}
_AUTHOR: Final = re.compile(r"[a-z][a-z0-9_-]*:\S.*")
# After errors with these names, the outcome is unknown. Other errors are failures; both make later calls ask.
_LOST: Final = re.compile("Time(d)?out|Deadline|Connection|Network|Protocol|Incomplete|Chunked|Broken|Operational|EOF")


class UnknownCall(NamedTuple):
    """A call whose outcome `on_unknown` must find. `at`: ledger time of its permit."""

    tool: str
    idempotency_key: str
    args_digest: str
    subject: str
    thread: str
    at: float


Deeds = tuple[str, ...]
OnUnknown = Callable[[UnknownCall], "bool | Awaitable[bool | None] | None"]


def effect_names(words: TaskWords, call: Call) -> tuple[str, Deeds]:
    """Return the counter of equal calls, and the call's deeds.

    The first deed is the call's own: `effect:target`, `effect:SEVERAL` (several targets) or `effect:tool` (no target).
    The others find calls in doubt that may share a target. The last one also names the arguments, to find an equal call
    that failed; payments do not have it.
    """
    if call.error is not None or not call.profile.side_effect:
        return "", ()
    effect, several = call.profile.effect, f"{call.profile.effect}:{SEVERAL}"
    hit, targets = call.traced.effect_targets() if call.profiled else ("", ())
    deeds = tuple([f"{effect}:{target}" for target in targets]) or (f"{effect}:{digest(call.tool)}",)
    deeds = (several, *deeds) if len(targets) > 1 else (*deeds, several)
    deeds = deeds if effect == "pay" else (*deeds, f"{deeds[0]} {call.args_digest}")
    return (f"same:{words.turns}:{call.tool}:{hit}" if hit else ""), deeds


def facts_of_doubt(run: Run, call: Call) -> dict[str, Any]:
    """Return the facts of a call that `InDoubtCall.must_ask` compares with later ones."""
    by = f"{run.agent if call.profile.effect == 'pay' else run.jti} {tool_label(call.tool)}"
    of_call = {"by": by, "args_digest": call.args_digest, "plan": call.plan_id or call.batch}
    if call.plan_id is None and (ticket := current_ticket()) is not None:  # a tool's code makes the call
        of_call["within"] = ticket.call_key
    return {**of_call, "process": PROCESS[0], "entry": run.entry.name, "idempotent": call.profile.idempotent}


def look_up_doubts(run: Run, snapshot: Snapshot) -> Flow[Snapshot]:
    """Ask `on_unknown`, and return the snapshot with its answers.

    Also add calls that an approved question named as in doubt, and that are done by now.
    """
    if run.pep.on_unknown is not None:
        snapshot = yield from ask_service(run, snapshot)
    open_ = {one.name for one in snapshot.doubts}
    for name in [n for a in snapshot.approvals.values() if a.state == "approved" for n in a.doubts if n not in open_]:
        found: Sequence[InDoubtCall] = yield ListDoubts(run.scope.tenant, name.split(" ")[0])
        snapshot.doubts += tuple([one for one in found if one.row.state == "done"])
    return snapshot


def doubts_of(
    run: Run, snapshot: Snapshot, call: Call, key: str, deeds: Deeds, approval: Approval | None
) -> tuple[tuple[InDoubtCall, ...], tuple[InDoubtCall, ...]]:
    """Return `DecidedCall.doubts` and `DecidedCall.repeated`.

    `doubts` also has calls that the question named as in doubt, and that are done by now. An approver must hear of it.
    """
    if call.profile.idempotent and call.profile.effect != "pay":
        return (), ()
    about = facts_of_doubt(run, call)
    same = [one for one in snapshot.doubts if one.hits(deeds)]
    if key in snapshot.calls and snapshot.calls[key].state == "void" and all(one.row.key != key for one in same):
        same.append(InDoubtCall(run.scope, run.subject.principal, snapshot.calls[key]))
    for at, one in enumerate(same):
        if one.row.state == "claimed" and one.row.key in UNRECORDED_ENDS:
            same[at] = one._replace(row=one.row._replace(state="unknown"))
    asking = [one for one in same if one.must_ask(key, run.scope, about, snapshot.now)]
    repeated = tuple([one for one in same if one.row.key != key and (one in asking or one.unnoted(key))])
    keys = {name.split(" ")[0] for name in approval.doubts} if approval is not None else ()
    return (*asking, *[o for o in snapshot.doubts if o.row.state == "done" and o.row.key in keys]), repeated


def ask_despite(decided: DecidedCall) -> Decision:
    """Turn a permit into a question, unless an approval named all doubts of the call."""
    decision = decided.decision
    given = decided.approval is not None and decided.approval.state == "approved" and decided.doubts_shown
    if given or decision.outcome not in ("permit", "approval_required"):
        return decision
    obligations = decision.obligations if decision.outcome == "approval_required" else ()
    reasons = (str(Code.IN_DOUBT), *decision.reasons)
    return replace(decision, outcome="approval_required", reasons=reasons, obligations=obligations)


def state_of(exc: BaseException) -> Literal["failed", "unknown"]:
    """Return `unknown` for an error like a timeout or lost connection, else `failed`."""
    several, seen = [exc], set[int]()
    while several:
        one = several.pop()
        lost = not isinstance(one, Exception) or isinstance(one, TimeoutError | ConnectionError | EOFError | Cancelled)
        lost = lost or "timed out" in error_text(one).lower()
        if lost or any(_LOST.search(kind.__name__) for kind in type(one).__mro__):
            return "unknown"
        seen.add(id(one))
        causes = (one.__cause__, one.__context__, *(one.exceptions if isinstance(one, BaseExceptionGroup) else ()))
        several += [cause for cause in causes if cause is not None and id(cause) not in seen]
    return "failed"


def author_and_reason(author: object, reason: object) -> dict[str, Any]:
    """Return author and reason for a record. Raises `ConfigError` if one is invalid."""
    if not isinstance(author, str) or not author.isprintable() or not _AUTHOR.fullmatch(author):
        raise ConfigError("name the author as `type:id`, like `user:carol`")
    if not isinstance(reason, str) or not reason.isprintable() or not reason.strip():
        raise ConfigError("give the reason, in one line")
    return {"author": author, "reason": reason}


def resolve_doubt(of: Run | Scope, doubt: InDoubtCall, *, happened: bool, author: str, reason: str) -> Flow[None]:
    """Record the outcome of a call in doubt, in the audit log and then in the ledger.

    If the audit log fails (`AuditError`), the call stays in doubt. Raises `LedgerError` (`not_in_doubt`) if the call is
    not in doubt, and `ConfigError` if `author`, `reason` or `happened` is invalid.
    """
    if type(happened) is not bool:
        raise ConfigError(f"`happened` is True or False, not {type(happened).__name__}")
    said = {**author_and_reason(author, reason), "happened": happened}
    found: Snapshot = yield Load(doubt.scope, Query(calls=(doubt.row.key,)))
    if (row := found.calls.get(doubt.row.key)) is None or row.state != "unknown":
        raise LedgerError(Code.NOT_IN_DOUBT, doubt.row.key)

    def record(**detail: Any) -> Flow[None]:
        yield run_event(of, "resolved", found.now, detail=said | _call_ids(row) | detail)

    change = ResolveCall(doubt.row.key, happened, author, reason)
    done = yield from commit_recorded(doubt.scope, [change], record)
    if isinstance(done, Conflict):  # resolved by somebody else meanwhile
        raise LedgerError(done.code, doubt.row.key)


def ended_late(run: Run, row: CallRow, state: str) -> Flow[None]:
    """Record that a call ended after a person had resolved it. It may have run twice."""
    resolved = (row.about or {})["resolved"]
    _log.error("%s: call %s, resolved by %s, ended as %s", Code.ENDED_LATE, row.key, resolved["author"], state)
    said = {name: resolved[name] for name in ("author", "reason", "happened")}
    yield run_event(run, "ended_late", time.time(), detail={**said, **_call_ids(row), "state": state})


def _call_ids(row: CallRow) -> dict[str, str]:
    about = row.about or {}
    return {"call_key": row.key, "decision_id": about.get("decision_id", ""), "tool": tool_label(about.get("tool", ""))}


def _held_here(row: CallRow) -> bool:
    held = RUNNING.get(row.key) if (row.about or {}).get("process") == PROCESS[0] else None
    return held is not None and (ticket := held()) is not None and not ticket.concluded


def record_ends(pep: PepParts, scope: Scope | None = None, *, others: bool = False) -> Flow[None]:
    """Retry failed records of calls' ends, in the thread `scope` or in all (None).

    `others`: after those of `scope`, also retry those of other threads. Stop at the first failure.
    """
    for key, (run, _, failed) in sorted(_ends(pep), key=lambda one: one[1][0].scope != scope):
        rests = scope not in (None, run.scope) and (not others or time.monotonic() < failed + REST)
        if rests or _RECORDING.setdefault(key, mine := object()) is not mine:
            continue
        try:
            yield from end[1]() if (end := UNRECORDED_ENDS.get(key)) is not None else ()
        finally:
            del _RECORDING[key]
        if key in UNRECORDED_ENDS:
            return


def keep_end(run: Run, ticket: Ticket, record: Callable[[], Flow[None]] | None) -> None:
    """Store `record` for a retry, unless the call was claimed again."""
    key, held = ticket.call_key, RUNNING.get(ticket.call_key)
    if record is None or (held is not None and held() not in (None, ticket)):
        return
    UNRECORDED_ENDS[key] = run, record, time.monotonic() if UNRECORDED_ENDS.pop(key, None) else -REST
    for first, _ in _ends(run.pep)[:-MAX_LOST]:
        UNRECORDED_ENDS.pop(first, None)
        _log.error("%s: the end of call %s is dropped, as %d newer ones wait", Code.IN_DOUBT, first, MAX_LOST)


def revoke_late(run: Run, decision: Decision, failed: BaseException | None = None) -> Flow[None]:
    """Revoke the agent as `decision` demands. If it fails, `record_ends` retries it.

    `failed`: the error of the commit that should have revoked the agent. After a timeout or a cancellation, leave the
    revocation to `record_ends`, so that the denial does not wait again.
    """
    done, name = None, decision.decision_id
    try:
        timed_out = isinstance(failed, LedgerError) and failed.code == Code.LEDGER_TIMEOUT
        if failed is not None and (timed_out or not isinstance(failed, Exception)):
            raise failed
        done = yield Commit(run.scope, None, [Revoke(run.agent)])
        UNRECORDED_ENDS.pop(name, None)
        yield record_anomaly(run, decision.reason, name, done.now)
    except BaseException as exc:  # a failed commit, or the caller is cancelled; the step is denied already
        if done is None:
            keep_revocation(run, decision)
        if not isinstance(exc, Exception):
            raise
        run.pep.log_unrecorded("a revocation", exc, run, name)


def keep_revocation(run: Run, decision: Decision) -> None:
    """If `decision` demands a revocation, store it in `UNRECORDED_ENDS` for a retry."""
    if any(o.type == "revoke" for o in decision.obligations):
        UNRECORDED_ENDS[decision.decision_id] = run, partial(revoke_late, run, decision), time.monotonic()


def _ends(pep: PepParts) -> list[tuple[str, tuple[Run, Callable[[], Flow[None]], float]]]:
    return [(key, end) for key, end in [*UNRECORDED_ENDS.items()] if end[0].pep.ledger is pep.ledger]


def ask_service(run: Run, snapshot: Snapshot) -> Flow[Snapshot]:
    """Ask `on_unknown` about calls in doubt. Return the snapshot with the answers."""
    rows = [row for row in snapshot.calls.values() if row.state == "unknown"]
    own = [InDoubtCall(run.scope, run.subject.principal, row) for row in rows]
    keys, until = {one.row.key for one in own}, time.monotonic() + DEADLINE
    for one in (*own, *(d for d in snapshot.doubts if d.row.state == "unknown" and d.row.key not in keys)):
        about = one.row.about or {}
        if not about.get("idempotency_key") or _held_here(one.row) or time.monotonic() >= until:
            continue
        ids = about["tool"], about["idempotency_key"], about["args_digest"]
        asked = UnknownCall(*ids, one.subject, one.scope.thread, one.row.at)
        happened = yield AskService(asked, until - time.monotonic())
        # If another call with this deed happened, the doubt stays, so that an approver decides about a second one.
        if not isinstance(happened, bool) or (happened and one.row.key not in keys):
            continue
        try:
            yield from resolve_doubt(run, one, happened=happened, **_SERVICE)
        except Exception as exc:  # noqa: BLE001  (then it stays in doubt, or somebody else has resolved it)
            _log.error("call %s was not resolved: %s", about.get("decision_id", ""), type(exc).__name__)
            continue
        row = ResolveCall(one.row.key, happened, **_SERVICE).resolved(one.row, snapshot.now)
        snapshot.doubts = (*[d for d in snapshot.doubts if d.row.key != row.key], one._replace(row=row))
        if row.key in keys:
            snapshot.calls = {**snapshot.calls, row.key: row}
    return snapshot


def _ask_service(pep: PepParts, call: UnknownCall, seconds: float) -> object:
    try:
        return in_thread(lambda: asyncio.run(_awaited(_called(pep, call))), "on_unknown").result(seconds)
    except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001  (without an answer the call stays in doubt)
        return _failed(exc)


async def _aask_service(pep: PepParts, call: UnknownCall, seconds: float) -> object:
    async def asked() -> Any:
        return await _awaited(await asyncio.wrap_future(in_thread(lambda: _called(pep, call), "on_unknown")))

    task = asyncio.create_task(asked(), context=Context())
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        task.cancel()  # do not wait for a task that ignores this
    return task.result() if task.done() and not task.cancelled() else _failed(TimeoutError())


def _called(pep: PepParts, call: UnknownCall) -> Any:
    try:
        return pep.on_unknown(call) if pep.on_unknown is not None else None
    except BaseException as exc:  # noqa: BLE001  (as in `_ask_service`; what ends the callable's thread must not end ours)
        return _failed(exc)


async def _awaited(given: Any) -> object:
    try:
        return await given if inspect.isawaitable(given) else given
    except (Exception, SystemExit, KeyboardInterrupt) as exc:  # noqa: BLE001  (as in `_called`)
        return _failed(exc)


def _failed(exc: BaseException) -> object:
    _log.error("`on_unknown` gave no answer: %s", type(exc).__name__)
    return None


AskService: Final = Effect(_ask_service, _aask_service)  # takes an `UnknownCall` and seconds; no bool: unknown
