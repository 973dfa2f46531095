"""Act on a thread from outside: answer, revoke, reinstate, declare changed data.

After an answer, the graph stays paused, and the process that resumes it finds the answer. A rejection with a reason is
a correction: it advances the epoch, and voids all other questions and approvals. The graph then asks these questions
again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from langchain_runtime_authz.errors import AuthzError, Code, ConfigError, LedgerError
from langchain_runtime_authz.facts.checkpoint_head import UNRECORDED
from langchain_runtime_authz.facts.resource import one_spelling
from langchain_runtime_authz.facts.task import content_digest
from langchain_runtime_authz.ledger.base import Approval, Committed, Conflict, ListsQuestions, Query, Scope, Snapshot
from langchain_runtime_authz.ledger.call_changes import AnswerApproval
from langchain_runtime_authz.ledger.changes import AdvanceEpoch, Change, RecordPlan, Reinstate, Revoke, SetMark
from langchain_runtime_authz.pep.approval_answers import answer_event, correcting_texts
from langchain_runtime_authz.pep.calls_in_doubt import UNRECORDED_ENDS, record_ends
from langchain_runtime_authz.pep.corrections import carried_plans, record_change, record_unrecorded, unrecorded_mark
from langchain_runtime_authz.pep.decision_log import commit_recorded, run_event
from langchain_runtime_authz.pep.outdated_reads import resource_scope
from langchain_runtime_authz.pep.run import Commit, Effect, Flow, Load, PepParts, Perform, new_id

if TYPE_CHECKING:
    from langchain_runtime_authz.credential.approval_statement import Approvers, Question, Verdict
    from langchain_runtime_authz.evaluation import Subject
    from langchain_runtime_authz.facts.plan import PlanRecord
    from langchain_runtime_authz.facts.task import HumanText


def _store(pep: PepParts) -> ListsQuestions:
    if not isinstance(pep.ledger, ListsQuestions):
        raise ConfigError("this ledger cannot list open questions: it lacks `asked`")
    return pep.ledger


ListAsked: Final = Effect(  # takes a question's id, or None for all; returns the tenant's open questions
    lambda pep, one: _store(pep).asked(pep.tenant, one),
    lambda pep, one: _store(pep).aasked(pep.tenant, one),
)


def answer_outside_graph(
    approvers: Approvers,
    id: str,
    verdict: Verdict,
    *,
    by: Subject | None,
    statement: str | None,
    message: str = "",
    content: bool = False,
) -> Flow[int]:
    """Answer the open question `id`. Return how many approvals are still needed.

    Give either `by`, the approver, or a signed `statement`; otherwise it raises `ConfigError`. `content`: the audit log
    stores the `message` itself, not only its digest. The other errors are those of `RuntimeAuthz.approve`.
    """
    from langchain_runtime_authz.credential.approval_statement import HERE, Statement  # this loads the signing library

    if (by is None) == (statement is None):
        raise ConfigError("an approval needs an approver: give either `by` or a signed `statement`")
    found: Sequence[tuple[Scope, Approval]] = yield ListAsked(id)
    about = question_of(found)
    ((scope, asked),) = found
    now = (yield Load(scope, Query())).now
    if 0 < asked.expires_at <= now:
        raise AuthzError(Code.APPROVAL_EXPIRED)
    if by is not None:
        if by.type != "user":
            raise AuthzError(Code.APPROVAL_APPROVER)
        said = Statement(by.principal, verdict, issuer=HERE, jti=new_id())
    else:
        said = yield Perform(approvers.verify, approvers.averify, statement, about, message=message, now=now)
    if said.verdict != verdict:
        raise AuthzError(Code.APPROVAL_VOID)
    given = AnswerApproval(
        call_key=asked.call_key,
        state="approved" if verdict == "approve" else "rejected",
        approver=said.approver,
        authenticated=True,
        message=message,
        id=asked.id,
    )
    texts, plans, pinned = yield from _correction(scope, asked, given)
    change: list[Change] = []
    if texts:
        change = [AdvanceEpoch(asked.epoch, texts, deliver=True), *(RecordPlan(p) for p in plans)]
        change.append(mark := unrecorded_mark(asked.epoch + 1, pinned, texts, "answer"))

    def record(**detail: Any) -> Flow[None]:
        detail |= {"verdict": said.verdict, "by": said.issuer, "statement": said.jti}
        yield answer_event(scope, asked, given, now, content=content, **detail)

    done: Committed | Conflict = yield from commit_recorded(scope, [given, *change], record)
    if isinstance(done, Conflict):
        raise AuthzError(done.code)
    if texts:
        yield from record_change(scope, done, mark, texts, "answer")
    if verdict != "approve" or asked.needed == 1:
        return 0
    after: Snapshot = yield Load(scope, Query(calls=(asked.call_key,)))  # others may have approved meanwhile
    left = after.approvals.get(asked.call_key)
    return 0 if left is None else max(left.needed - len(left.approvers), 0)


def _correction(
    scope: Scope, asked: Approval, given: AnswerApproval
) -> Flow[tuple[tuple[HumanText, ...], list[PlanRecord], int]]:
    """Return the answer's texts, the plans to keep, and how many texts came before."""
    texts = correcting_texts([asked], [given])
    if not texts:
        return (), [], 0
    snapshot: Snapshot = yield Load(scope, Query(log=True, marks=(UNRECORDED,)))
    yield from record_unrecorded(scope, snapshot)
    # An approver's text can order something only if the approver is the thread's subject.
    own = given.approver == snapshot.subject
    said = tuple(replace(t, author=given.approver, own=own) for t in texts)
    plans = yield from carried_plans(scope, asked.epoch, [asked], [given])
    return said, plans, len(snapshot.log)


def open_question(id: str) -> Flow[Question]:
    """Return the open question with this id. Raises `AuthzError` (`approval_void`)."""
    return question_of((yield ListAsked(id)))


def question_of(found: Sequence[tuple[Scope, Approval]]) -> Question:
    """Return the only question in `found`. Raises `AuthzError` for none or several."""
    if len(found) != 1:
        raise AuthzError(Code.APPROVAL_VOID)
    ((scope, asked),) = found
    from langchain_runtime_authz.credential.approval_statement import Question

    of_thread = {"issuer": scope.issuer, "tenant": scope.tenant, "graph": scope.graph, "thread": scope.thread}
    return Question(id=asked.id, **of_thread, epoch=asked.epoch, tool=asked.tool, args_digest=asked.args_digest)


def _commit(scope: Scope, change: Change) -> Flow[float]:
    """Commit a change and return the ledger's time, or raise `LedgerError`."""
    done: Committed | Conflict = yield Commit(scope, None, [change])
    if isinstance(done, Conflict):
        raise LedgerError(done.code)
    return done.now


def data_changed(scope: Scope, resource: str, *, content: bool) -> Flow[None]:
    """Declare that a resource changed. `content`: record its name, not only a digest."""
    now = yield from _commit(resource_scope(scope), SetMark(one_spelling(resource), new_id()))
    detail = {"resource": resource if content else content_digest(resource)}
    yield run_event(scope, "data_changed", now, detail=detail)


def _checked(scope: Scope, agent: tuple[str, ...]) -> None:
    """Raise `ConfigError` if an agent's path does not begin with the graph's name."""
    if agent and agent[0] != scope.graph:
        raise ConfigError(f"an agent's path begins with the name of its graph: {scope.graph!r}, not {agent[0]!r}")


def revoke_agents(scope: Scope, agent: tuple[str, ...], by: str = "", reason: str = "") -> Flow[None]:
    """Revoke an agent and those below it until `reinstate_agents`; `()` revokes all."""
    _checked(scope, agent)
    now = yield from _commit(scope, Revoke(agent))
    yield run_event(scope, "revoked", now, detail={"author": by, "reason": reason}, agent=agent)


def withdraw_key(of_all: Scope, own: Scope) -> Flow[None]:
    """Revoke a signing key under its two scopes (`mint_tokens.key_scopes`)."""
    yield from _commit(of_all, Revoke(()))
    yield from revoke_agents(own, ())


def reinstate_agents(pep: PepParts, scope: Scope, agent: tuple[str, ...], by: str = "", reason: str = "") -> Flow[None]:
    """Record that revocations are lifted, then lift them.

    Raises `LedgerError`, also while the record of a call's end waits for a retry, because it may revoke the agent again.
    """
    _checked(scope, agent)
    yield from record_ends(pep, scope)  # so that a revocation that waits for the ledger is lifted too
    if any(run.scope == scope and run.pep.ledger is pep.ledger for run, *_ in [*UNRECORDED_ENDS.values()]):
        raise LedgerError(Code.LEDGER_UNAVAILABLE, "an end that may revoke the agent is not recorded yet: try again")
    now = (yield Load(scope, Query())).now

    def record(**detail: Any) -> Flow[None]:
        told = {"author": by, "reason": reason, **detail}
        yield run_event(scope, "reinstated", now, detail=told, agent=agent)

    done = yield from commit_recorded(scope, [Reinstate(agent)], record)
    if isinstance(done, Conflict):
        raise LedgerError(done.code)
