"""`model/call`: which model may be called, and which tools it may be shown.

A permit is cached per agent, epoch, policy revision, model and tool set, if the PDP names its revision and
nothing must be counted or told each time. Our middleware takes withheld tools (`withhold_tools`) out of the
request. Without it the agent's own tools stay, since their calls are decided anyway. A tool that the provider
runs cannot be stopped later, so a model call with a withheld provider tool is denied.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from langchain_runtime_authz.authzen import Decision, deny
from langchain_runtime_authz.digest import digest
from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.pep.engine import Flow, Run
from langchain_runtime_authz.pep.obligations import keepable
from langchain_runtime_authz.pep.steps import decide_step

MAX_KEPT: Final = 256  # tool sets whose permits are kept per agent and entry


@dataclass(frozen=True, slots=True)
class ModelCall:
    """A model and what it is shown. `prompt` is the digest of its instructions (system messages)."""

    model: str
    provider: str | None
    tools: tuple[str, ...]
    provider_tools: tuple[str, ...]
    prompt: str | None


def decide_model(run: Run, call: ModelCall) -> Flow[Decision]:
    revision = run.engine.evaluator.revision
    key = (run.epoch, revision, call.model, call.provider, call.tools, call.provider_tools)
    if revision and (kept := run.models.get(key)) is not None:
        return kept
    names = sorted(call.tools)
    properties = {
        "provider": call.provider,
        "tools": list(call.tools),
        "provider_tools": list(call.provider_tools),
        "tools_digest": digest({"tools": names, "provider_tools": sorted(call.provider_tools)}),
    }
    resource = {"type": "model", "id": call.model, "properties": properties}
    prompt = {"model": call.model, "digest": call.prompt}
    decision = yield from decide_step(run, "model/call", resource, prompt=prompt)
    if decision.permit and keepable(decision, revision) and len(run.models) < MAX_KEPT:
        run.models[key] = decision
    return decision


def withheld(decision: Decision) -> tuple[frozenset[str], frozenset[str]]:
    """Return the agent's own tools and the provider's that a permit withholds."""
    own: set[str] = set()
    provider: set[str] = set()
    for obligation in decision.obligations:
        if obligation.type == "withhold_tools":
            own.update(obligation.properties["tools"])
            provider.update(obligation.properties["provider_tools"])
    return frozenset(own), frozenset(provider)


def shown(decision: Decision, call: ModelCall) -> Decision:
    """Return the decision if nothing can be taken out of the request any more."""
    if decision.permit and withheld(decision)[1].intersection(call.provider_tools):
        return replace(deny(Code.PROVIDER_TOOL), decision_id=decision.decision_id)
    return decision
