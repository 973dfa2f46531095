"""The evaluation request of a step: the state of the run, in the words of `authzen`. Pure."""

from __future__ import annotations

from typing import Final

from langchain_runtime_authz.authzen import (
    Action,
    AgentContext,
    ApprovalContext,
    CallContext,
    Context,
    EvaluationRequest,
    LeaseContext,
    PlanContext,
    PromptContext,
    Resource,
    TaskContext,
)
from langchain_runtime_authz.digest import abbreviate
from langchain_runtime_authz.facts import delegation, history, plan
from langchain_runtime_authz.facts.source import (
    changed_since,
    sources,
)
from langchain_runtime_authz.ledger.base import (
    Approval,
    CallRow,
    Snapshot,
)
from langchain_runtime_authz.pep.call import Call
from langchain_runtime_authz.pep.engine import Run
from langchain_runtime_authz.pep.provenance import TaskWords, arguments, effective_sink, intent
from langchain_runtime_authz.profile import argument

__all__ = ["context_of", "request_of"]

_TOOLS_CALL: Final = Action(name="tools/call")


def request_of(
    run: Run,
    snapshot: Snapshot,
    said: TaskWords,
    call: Call,
    match: plan.Match,
    row: CallRow | None,
    approval: Approval | None,
    moved: frozenset[str],
    repeats: int,
) -> EvaluationRequest:
    """What is asked about one call.

    `row` and `approval` are what the ledger holds of it, `moved` the tools whose resources somebody
    said changed since they were read, `repeats` how often the same was done for this task.
    """
    prof = call.profile
    traced = arguments(run, snapshot, said, call)
    at = snapshot.plan.at if snapshot.plan is not None else 0
    stale = moved | set(changed_since(snapshot.history.changed, at))
    critical = {name.split(".")[0] for name in prof.critical}
    target = {name: argument(call.args, name) for name in prof.critical if name.split(".")[0] in call.args}
    args = {k: v if k in critical else abbreviate(v) for k, v in call.args.items()}
    granted = None
    # A call that paused by itself re-enters under the approval it has spent already, and so does a
    # read whose task is entered again: the same call, by its key.
    again = (row is not None and row.state == "suspended") or not prof.side_effect
    usable = ("approved", "spent") if again else ("approved",)
    # What a review saw, and what a human wrote, is held against the arguments as written.
    exact = approval is not None and (approval.args_digest == call.args_digest or approval.source == "hitl")
    if approval is not None and approval.state in usable and (exact or call.amends == approval.call_key):
        granted = ApprovalContext(
            source=approval.source,
            approver=approval.approver,
            authenticated=approval.authenticated,
            args_digest=call.args_digest,
            edited_from=approval.tool if call.amends == approval.call_key else None,
            approvers=list(approval.approvers) or [approval.approver],
        )
    return EvaluationRequest(
        subject=run.subject,
        action=_TOOLS_CALL,
        resource=Resource(
            type="tool",
            id=call.tool,
            properties={
                "effect": prof.effect,
                "sink": prof.sink,
                "data_class": prof.data_class,
                "profiled": call.profiled,
                "target": target,
                **({"reaches": prof.chain()} if prof.reaches else {}),
            },
        ),
        context=context_of(
            run,
            snapshot,
            plan=PlanContext(
                id=call.plan_id,
                source=match.source,
                planned=match.planned,
                stale=match.stale,
                position=match.position,
                of=match.of,
                changed=match.changed,
                listed=snapshot.plan.lists(prof.intent) if snapshot.plan is not None else None,
            ),
            call=CallContext(
                id=call.call_id,
                state=row.state if row is not None else "new",
                args=args,
                args_digest=call.args_digest,
                provenance=traced,
                changed=sorted(stale & sources(traced)) if stale else [],
                intent=intent(run, said, call),
                sink=effective_sink(prof, call.args),  # type: ignore[arg-type]
                repeats=repeats,
            ),
            approval=granted,
            prompt=PromptContext(model=match.model, digest=match.prompt) if match.source == "model" else None,
        ),
    )


def context_of(
    run: Run,
    snapshot: Snapshot,
    *,
    plan: PlanContext | None = None,
    call: CallContext | None = None,
    approval: ApprovalContext | None = None,
    prompt: PromptContext | None = None,
) -> Context:
    """The state of the run, and what is asked about."""
    task = snapshot.task
    return Context(
        now=int(snapshot.now),
        task=TaskContext(
            id=task.id,
            epoch=snapshot.epoch,
            digest=task.digest,
            text=task.text,
            corrections=task.corrections,
        ),
        agent=AgentContext(
            path=list(run.agent),
            id=run.engine.identity.agent_id(run.agent),
            attested=run.engine.identity.attested,
        ),
        delegation=delegation.to_context(run.agent, snapshot.edges),
        history=history.to_context(snapshot.history, snapshot.now, run.agent),
        lease=LeaseContext(
            jti=run.jti,
            epoch=run.epoch,
            exp=run.expires_at,
            grant=run.grant.to_json() if run.grant is not None else None,
            seconds=max(int(snapshot.now) - run.started_at, 0),
            steps=max(snapshot.history.steps - run.steps_before, 0),
        ),
        plan=plan,
        call=call,
        approval=approval,
        prompt=prompt,
    )
