"""Enforce without LangGraph: in other agent loops, for recorded traces, in tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from langchain_runtime_authz._flow import drive_apart, methods
from langchain_runtime_authz.credential.ticket import Ticket
from langchain_runtime_authz.digest import as_json, digest
from langchain_runtime_authz.errors import AuthzError, Code, MappingError
from langchain_runtime_authz.evaluation import Decision, deny
from langchain_runtime_authz.facts.call_arguments import traced_arguments
from langchain_runtime_authz.facts.plan import PlanRecord, plan_calls
from langchain_runtime_authz.facts.task import CORRECTION, HumanText, content_digest
from langchain_runtime_authz.grant import Grant
from langchain_runtime_authz.ledger.base import Approval, Conflict
from langchain_runtime_authz.ledger.call_changes import AnswerApproval, AskApproval
from langchain_runtime_authz.ledger.changes import RecordPlan
from langchain_runtime_authz.pep.approval_questions import question_lines, terms_of
from langchain_runtime_authz.pep.call import Call, DecidedCall
from langchain_runtime_authz.pep.calls_in_doubt import state_of
from langchain_runtime_authz.pep.child_agent import open_child
from langchain_runtime_authz.pep.claim_calls import claim_call
from langchain_runtime_authz.pep.conclude_calls import conclude_call, count_denial
from langchain_runtime_authz.pep.corrections import record_correction
from langchain_runtime_authz.pep.decide_calls import decide_calls
from langchain_runtime_authz.pep.run import Commit, Flow, PepParts, Run, drive, new_id
from langchain_runtime_authz.pep.run_lifecycle import close_run, open_entry
from langchain_runtime_authz.tool_profile import UNPROFILED, raise_by_hints


class Session:
    """One agent's run, in steps: `decide`, run the tool yourself, `observe`.

    `RuntimeAuthz.session` opens it. Each decided call counts as planned, with `plan.source` `code`. Methods that do I/O
    have an async form with the prefix `a`. A `with` block closes the session.
    """

    def __init__(self, run: Run, parent: Session | None = None, grant: Grant | None = None) -> None:
        self._run = run
        self._parent, self._requested = parent, grant
        self._steps = 0
        self._open: dict[tuple[str, str], list[tuple[Call, Ticket]]] = {}
        self._questions: dict[str, tuple[Call, DecidedCall]] = {}
        self._last: DecidedCall | None = None

    @property
    def jti(self) -> str:
        """The jti of the session's lease."""
        return self._run.jti

    @property
    def epoch(self) -> int:
        """The epoch of the task that the session works on."""
        return self._run.epoch

    @property
    def _pep(self) -> PepParts:
        return self._run.pep

    def evidence(self, decision: Decision) -> tuple[str, ...]:
        """Return lines about the last decision's arguments: their values and sources.

        The lines quote tool outputs, so do not show them to a model. For any other decision, return ().
        """
        last = self._last
        if last is None or last.decision.decision_id != decision.decision_id or last.body is None:
            return ()
        return question_lines(self._run, last)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        (drive_apart if kind is GeneratorExit else drive)(self._pep, self._close())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def _decide(self, tool: str, args: Mapping[str, Any]) -> Flow[Decision]:
        """Decide one call. If it is permitted, run the tool, then call `observe`.

        A failure is a deny, not an exception. Arguments without an exact JSON form are denied (`uncanonical_argument`).
        """
        self._steps += 1
        call = self._call(tool, args, f"{self._run.run_id}:{self._run.jti}:{self._steps}")
        if call.error is None and call.plan_id is not None:
            planned = plan_calls([{"id": call.call_id, "name": tool, "args": call.raw}])
            record = PlanRecord(call.plan_id, self._run.agent, self._run.epoch, "code", planned)
            try:
                yield Commit(self._run.scope, None, [RecordPlan(record)])
            except Exception as exc:  # noqa: BLE001  (a ledger that fails denies)
                return self._run.pep.deny_for_failure(exc, self._run)
        return (yield from self._decide_and_claim(call))

    decide, adecide = methods(_decide)

    def _decide_and_claim(self, call: Call) -> Flow[Decision]:
        (decided,) = yield from decide_calls(self._run, [call])
        decided, verdict = yield from claim_call(self._run, decided)
        self._last = decided
        if isinstance(verdict, Ticket):
            verdict.redeem()
            self._open.setdefault((call.tool, call.args_digest), []).append((call, verdict))
            return decided.decision
        if decided.needs_approval:
            self._questions[decided.decision.decision_id] = (call, decided)
        if any(o.type == "rotate" for o in decided.decision.obligations):
            yield from self._reopen()
        return getattr(verdict, "decision", decided.decision)

    def _approve(self, decision: Decision) -> Flow[Decision]:
        """Approve an `approval_required` call as the subject, and decide it again."""
        asked = self._questions.pop(decision.decision_id, None)
        if asked is None:
            return deny(Code.APPROVAL_VOID)
        call, decided = asked
        subject = self._run.subject
        question = Approval(epoch=self._run.epoch, source="application", **terms_of(self._run, decided))
        answer = AnswerApproval(decided.key, "approved", subject.principal, authenticated=subject.type == "user")
        try:
            yield Commit(self._run.scope, self._run.guard, [AskApproval(question)])
            # The question was counted as a denial, so take that back.
            done = yield Commit(self._run.scope, self._run.guard, [answer, count_denial(decided, -1)])
            if isinstance(done, Conflict):
                return deny(done.code)
        except Exception as exc:  # noqa: BLE001  (a ledger that fails denies)
            return self._run.pep.deny_for_failure(exc, self._run)
        return (yield from self._decide_and_claim(call))

    approve, aapprove = methods(_approve)

    def _observe(
        self, tool: str, args: Mapping[str, Any], output: object, error: BaseException | None = None
    ) -> Flow[None]:
        """Record a permitted call's output or failure.

        Raises `AuthzError` (`no_call`) if no permitted call of this tool with these arguments is open.
        """
        found = self._open.get((tool, digest(as_json(dict(args)))))
        if not found:
            raise AuthzError(Code.NO_CALL, f"`{tool}`")
        call, ticket = found.pop(0)
        state, output = "done" if error is None else state_of(error), output if error is None else error
        yield from conclude_call(self._run, ticket, call, state, output=output)

    observe, aobserve = methods(_observe)

    def _correct(self, text: str) -> Flow[int]:
        """Change the task as the subject, and return the new epoch.

        The session continues under a new lease. You may still observe permitted calls; earlier questions are void.
        """
        run = self._run
        yield from record_correction(run.scope, HumanText(content_digest(text), text, CORRECTION + new_id()))
        return (yield from self._reopen())

    correct, acorrect = methods(_correct)

    def _delegate(self, to: str, grant: Grant | None = None) -> Flow[Session]:
        """Open a child agent's session, limited by both grants. Raises `AuthzDenied`."""
        return Session((yield from open_child(self._run, to, "subgraph", grant)), self, grant)

    delegate, adelegate = methods(_delegate)

    def _close(self) -> Flow[None]:
        """End the session's lease, and so the tokens of the session and its children."""
        return close_run(self._run)

    close, aclose = methods(_close)

    def _reopen(self) -> Flow[int]:
        """Take new leases for the session and its parents, after a change of the task."""
        run = self._run
        self._questions.clear()
        if self._parent is not None:
            epoch = yield from self._parent._reopen()  # noqa: SLF001
            self._run = yield from open_child(self._parent._run, run.agent[-1], "subgraph", self._requested)  # noqa: SLF001
            return epoch
        entry = yield from open_entry(run.pep, run.scope, run.subject, run.run_id, run.agent[0], grant=run.grant)
        self._run = entry.run
        return entry.run.epoch

    def _call(self, tool: str, args: Mapping[str, Any], plan_id: str) -> Call:
        declared = self._pep.tools.declared.get(tool)
        profile = declared or raise_by_hints(UNPROFILED, None, tool)
        error, projected = None, dict[str, Any]()
        try:
            projected = as_json(dict(args))
        except MappingError as exc:
            error = Code(exc.code)
        return Call(
            tool=tool,
            profile=profile,
            profiled=declared is not None,
            call_id=plan_id,
            plan_id=plan_id,
            position=0,
            raw=projected,
            args=projected,
            args_digest=digest(projected),
            traced=traced_arguments(profile, projected),
            given=frozenset(projected),
            declared=declared,
            error=error,
        )
