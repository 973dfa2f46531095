"""Build the evaluation request of a step as JSON, from the state of the run. Pure.

A request has plain values in the order of `evaluation.EvaluationRequest`. The run caches parts that rarely change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from langchain_runtime_authz._display import error_text
from langchain_runtime_authz.digest import MAX_STRING, abbreviate_strings
from langchain_runtime_authz.evaluation import SCHEMA_VERSION
from langchain_runtime_authz.facts import history, plan
from langchain_runtime_authz.facts import provenance as tracing
from langchain_runtime_authz.facts.local_time import local_time
from langchain_runtime_authz.facts.normal_forms import forms_of
from langchain_runtime_authz.facts.output_reading import Observation, observe_output
from langchain_runtime_authz.facts.resource import source_tools
from langchain_runtime_authz.ledger.base import Approval, CallRow, Snapshot
from langchain_runtime_authz.pep.call import Call, DecidedCall
from langchain_runtime_authz.pep.call_mandate import mandate_json
from langchain_runtime_authz.pep.run import Run, agent_id
from langchain_runtime_authz.pep.thread_memory import TaskWords

SMALL: Final = 20_000  # characters; longer outputs are read in another thread


def argument_provenance(run: Run, snapshot: Snapshot, said: TaskWords, call: Call) -> dict[str, tracing.Provenance]:
    """Return argument name → provenance of a call's critical and date arguments."""
    if not call.traced.arguments:
        return {}
    own, texts = run.subject.properties.get("identifiers"), run.pep.memory.texts_read(run.scope)
    seen = texts.seen(snapshot.values, call.traced.keys) if texts is not tracing.NO_TEXTS else snapshot.values
    named = frozenset(f for v in own for f in forms_of(v, said=True)) if own and isinstance(own, list) else frozenset()
    return tracing.trace_arguments(call.traced, tracing.Evidence(said.words, named, seen, texts))


def wants_more(said: TaskWords, calls: Sequence[Call]) -> bool:
    """Return True if a value is not the user's, so outputs must be read in full."""
    items = [item for call in calls for argument in call.traced.arguments for item in argument.items or ()]
    return not all(said.words.said(part) for item in items for part in item.parts)


def _wrote(run: Run, call: Call, provenance: Mapping[str, tracing.Provenance]) -> bool:
    """Return True if the agent may have written an address that it fetches."""
    known = {name for name, found in provenance.items() if found.standing == "known"}
    values = (item.value for each in call.traced.arguments if each.name in known for item in each.items or ())
    return any(run.pep.memory.outputs(run.scope).written(one, float("inf"), cut=True) for one in values)


def observe_result(call: Call, output: object, failed: bool) -> Observation:
    """Read the beginning of a call's output or error."""
    output = error_text(output) if isinstance(output, BaseException) else output
    return observe_output(call.tool, call.profile, call.args, output, failed=failed)


_OUTGOING: Final = ("fetch", "send")  # their arguments leave even without a destination argument
_TOOLS_CALL: Final = {"name": "tools/call"}
_SHORT: Final = frozenset((int, float, bool, type(None)))
JSON = dict[str, Any]


def call_request(
    run: Run, snapshot: Snapshot, words: TaskWords, decided: DecidedCall, match: plan.PlanMatch, moved: frozenset[str]
) -> tuple[bytes | None, Mapping[str, tracing.Provenance]]:
    """Return a call's `request_json` and provenance. `moved`: see `outdated_tools`."""
    call, row, approval, recorded = decided.call, decided.row, decided.approval, snapshot.plan
    profile, args = call.profile, call.args
    provenance = argument_provenance(run, snapshot, words, call)
    stale = moved
    if changed := snapshot.history.changed:  # a repeated read found other content after the plan was recorded
        stale = moved | {tool for tool, step in changed.items() if step > (recorded.at if recorded is not None else 0)}
    bound = call.traced.bound
    shown: JSON = {}
    for name, value in args.items():
        short = name in bound or type(value) in _SHORT or (type(value) is str and len(value) <= MAX_STRING)
        shown[name] = value if short else abbreviate_strings(value)
    properties: JSON = {"effect": profile.effect, "sink": profile.sink, "data_class": profile.data_class}
    properties |= {"profiled": call.profiled, "target": call.traced.target}
    if profile.verdict is not None:
        properties["verdict"] = profile.verdict
    if profile.reaches:
        properties["reaches"] = profile.chain()
    shown_traces: JSON = {}
    for name, found in provenance.items():
        shown_traces[name] = found.to_json()
    outside = [name for name, found in provenance.items() if found.standing == "outside" and found.kind != "when"]
    backed = not outside and not (profile.effect == "fetch" and _wrote(run, call, provenance))
    state = "new" if row is None or row.state == "void" else "failed" if "failed" in (row.about or ()) else row.state
    body = request_json(
        run,
        snapshot,
        _TOOLS_CALL,
        {"type": "tool", "id": call.tool, "properties": properties},
        prompt={"model": match.model, "digest": match.prompt} if match.source == "model" else None,
        plan={
            "id": call.plan_id,
            "source": match.source,
            "planned": match.planned,
            "stale": match.stale,
            "position": match.position,
            "of": match.of,
            "changed": match.changed,
        },
        call={
            "id": call.call_id,
            "state": state,
            "args": shown,
            "args_digest": call.args_digest,
            "provenance": shown_traces,
            "mandate": mandate_json(decided.mandate, decided.standing, backed=backed),
            "sink": profile.sink if profile.effect in _OUTGOING else call.traced.effective_sink(profile.sink),
            "changed": sorted(stale & source_tools(provenance)) if stale else [],
            "repeats": decided.prior_calls,
        },
        approval=_granted(call, row, approval) if approval is not None else None,
    )
    return body, provenance


def _granted(call: Call, row: CallRow | None, approval: Approval) -> JSON | None:
    """Return the recorded approval of exactly this call, or None."""
    # A call whose tool paused continues under its spent approval. So does a read in a LangGraph task that restarts.
    again = (row is not None and row.state == "suspended") or not call.profile.side_effect
    if approval.state != "approved" and not (again and approval.state == "spent"):
        return None
    edited = call.edited_by == approval.call_key
    return {
        "source": approval.source,
        "approver": approval.approver,
        "authenticated": approval.authenticated,
        "args_digest": call.args_digest,
        "edited_from": approval.tool if edited else None,
        "approvers": list(approval.approvers) or [approval.approver],
    }


def request_json(
    run: Run,
    snapshot: Snapshot,
    action: Mapping[str, Any],
    resource: JSON,
    *,
    prompt: JSON | None = None,
    plan: JSON | None = None,
    call: JSON | None = None,
    approval: JSON | None = None,
) -> bytes | None:
    """Return a request as JSON; None if a string has no UTF-8 form."""
    now, steps, edges, zone = int(snapshot.now), snapshot.history, snapshot.edges, run.pep.zone
    try:
        subject, agent, grant = run.local.run_json or _of_run(run)
        task = run.local.task_json
        if not task or task[0] is not snapshot.task or task[1] != snapshot.epoch:
            task = _of_task(run, snapshot)
        return orjson.dumps(
            {
                "subject": subject,
                "action": action,
                "resource": resource,
                "context": {
                    "schema_version": SCHEMA_VERSION,
                    "now": now,
                    "task": task[2],
                    "agent": agent,
                    "delegation": history.edge_context(run.depth, edges)
                    if edges
                    else {"depth": run.depth, "edges": []},
                    "history": history.history_context(steps, snapshot.now, run.agent),
                    "lease": {
                        "jti": run.jti,
                        "epoch": run.epoch,
                        "exp": run.expires_at,
                        "grant": grant,
                        "seconds": max(now - run.entry.started_at, 0),
                        "steps": max(steps.steps - run.entry.steps_before, 0),
                    },
                    "prompt": prompt,
                    "plan": plan,
                    "call": call,
                    "approval": approval,
                    "local": local_time(zone, now) if zone is not None else None,
                },
            }
        )
    except (TypeError, ValueError, RecursionError):
        return None


def _of_run(run: Run) -> tuple[Any, Any, Any]:
    identity = run.pep.identity
    agent = {"path": run.agent, "id": agent_id(identity, run.agent), "attested": identity.attested}
    found = run.local.run_json = (
        orjson.Fragment(run.subject.model_dump_json()),
        orjson.Fragment(orjson.dumps(agent)),
        orjson.Fragment(orjson.dumps(run.grant.to_json() if run.grant is not None else None)),
    )
    return found


def _of_task(run: Run, snapshot: Snapshot) -> tuple[Any, int, Any]:
    task = snapshot.task
    body = {"id": task.id, "epoch": snapshot.epoch, "digest": task.digest}
    body |= {"text": task.text, "corrections": task.corrections}
    found = run.local.task_json = (task, snapshot.epoch, orjson.Fragment(orjson.dumps(body)))
    return found
