"""Turn a request into Cedar's principal, action, resource and context.

Cedar has no loops (for delegation chains or a grant's constraints), counts, nulls or fractions. So these values are
computed here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from typing import Any, Final

from pydantic import ValidationError

from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.grant import Grant

Json = Mapping[str, Any]
_TYPES: Final = {"run": "Run", "agent": "Agent", "node": "Node", "model": "Model", "tool": "Tool"}
_COUNTED: Final = ("steps", "denials", "streak", "unplanned", "tainted", "rotations", "last_minute", "classes_read")
_MAX_DECIMAL: Final = Decimal("922337203685477.5807")
_DIGITS: Final = Decimal("0.0001")
_NO_MANDATE: Final[Json] = {"standing": "none", "backed": False, "source": None, "deviations": []}


def cedar_request(request: Json) -> dict[str, Any]:
    """Return the request for Cedar's schema, with values that Cedar cannot compute."""
    ctx, resource, action = request["context"], request["resource"], request["action"]["name"]
    properties, name, history, lease = resource["properties"], resource["id"], ctx["history"], ctx["lease"]
    effect, sink = _string(properties.get("effect")), _string(properties.get("sink"))
    plan, call, approval = ctx["plan"] or {}, ctx["call"] or {}, ctx["approval"] or {}
    of_this = bool(approval and call) and approval["args_digest"] == call["args_digest"] != ""
    effects, sinks, verdicts = _reached(properties, effect, sink, call.get("sink"))
    mandate: Json = call["mandate"] if call else _NO_MANDATE
    edges = ctx["delegation"]["edges"]
    args: Json = call.get("args", {})
    people = sorted(set(approval.get("approvers") or [])) if of_this else []
    return {
        "principal": {"type": "Subject", "id": request["subject"]["id"]},
        "action": {"type": "Action", "id": action},
        "resource": {"type": _TYPES[resource["type"]], "id": name},
        "context": {
            "schema_version": ctx["schema_version"],
            "now": ctx["now"],
            "subject": {"kind": request["subject"]["type"], "properties": _ref("Texts", "subject")},
            "agent": {"attested": ctx["agent"]["attested"]},
            "task": {"epoch": ctx["task"]["epoch"], "corrections": ctx["task"]["corrections"]},
            "lease": {key: lease[key] for key in ("epoch", "exp", "seconds", "steps")},
            "grant_refusal": _refusal(action, name, properties, ctx),
            "delegation": {"depth": ctx["delegation"]["depth"], "kinds": sorted({e["kind"] for e in edges})},
            "history": {
                **{key: history[key] for key in _COUNTED},
                "classes_held": history["classes_read"] if history["classes_held"] is None else history["classes_held"],
                "of_effect": history["effects"].get(effect, 0),
                "of_tool": history["calls"].get(name, 0),
            },
            "model": {"withheld": action == "model/call" and _shows_too_much(properties, lease["grant"])},
            "plan": {key: plan.get(key, False) for key in ("planned", "stale", "changed")},
            "call": {
                "given": bool(call),
                "args": _ref("Texts", "call"),
                "numbers": _ref("Numbers", "call"),
                **_amount(call),
                "mandate": {
                    "standing": mandate["standing"],
                    "backed": mandate["backed"],
                    "source": mandate["source"] or "",
                    "deviations": sorted({deviation["code"] for deviation in mandate["deviations"]}),
                },
                "changed": bool(call.get("changed")),
                "repeats": call.get("repeats", 0),
            },
            "approval": {
                "given": of_this,
                "source": approval.get("source", ""),
                "authenticated": approval.get("authenticated", False),
                "approvers": people,
                "people": len(people),
                "by_subject": f"{request['subject']['type']}:{request['subject']['id']}" in people,
            },
            **({"local": ctx["local"]} if ctx.get("local") is not None else {}),
            "tool": {
                "effect": effect,
                "effects": sorted(effects),
                "sink": sink,
                "sinks": sorted(sinks),
                "data_class": _string(properties.get("data_class")),
                "profiled": properties.get("profiled") is True,
                "verdicts": sorted(verdicts),
                "allowed": _allowed(properties, verdicts, mandate),
            },
        },
        "entities": [
            _tagged("Texts", "subject", _texts(request["subject"].get("properties", {}))),
            _tagged("Texts", "call", _texts(args)),
            _tagged("Numbers", "call", {n: _decimal(v) for n, v in args.items() if type(v) in (int, float)}),
        ],
    }


def _ref(kind: str, name: str) -> Json:
    return {"__entity": {"type": kind, "id": name}}


def _tagged(kind: str, name: str, tags: Json) -> Json:
    return {"uid": {"type": kind, "id": name}, "attrs": {}, "parents": [], "tags": tags}


def _texts(values: Json) -> dict[str, list[str]]:
    listed = {n: value if isinstance(value, list) else [value] for n, value in values.items() if value is not None}
    return {n: sorted({v if isinstance(v, str) else json.dumps(v) for v in each}) for n, each in listed.items()}


def _amount(call: Json) -> Json:
    found = [call["args"].get(n) for n, traced in call.get("provenance", {}).items() if traced["kind"] == "amount"]
    each = [one for value in found for one in (value if isinstance(value, list) else [value])]
    return {"amount": _decimal(*each)} if each else {}


def _decimal(*values: object) -> Json:
    """Return the largest value as a Cedar decimal. A non-number counts as the maximum."""
    largest = -_MAX_DECIMAL
    for value in values:
        try:
            number = Decimal(str(value))
            largest = max(largest, min(number, _MAX_DECIMAL))
        except InvalidOperation:  # no number, or NaN
            largest = _MAX_DECIMAL
    return {"__extn": {"fn": "decimal", "arg": f"{largest.quantize(_DIGITS, ROUND_CEILING):f}"}}


def _reached(properties: Json, effect: str, sink: str, own: str | None) -> tuple[set[str], set[str], set[str]]:
    """Return effects, sinks, verdicts of a call and calls it causes. `own`: its sink."""
    reaches = properties.get("reaches", [])
    each: list[Json] = [r if isinstance(r, dict) else {} for r in (reaches if isinstance(reaches, list) else [None])]
    said = [p["verdict"] for p in (properties, *each) if "verdict" in p] if isinstance(reaches, list) else []
    effects = {effect, *(_string(r.get("effect")) for r in each)}
    sinks = {sink if own is None else own, *(_string(r.get("sink")) for r in each), *([sink] if each else [])}
    return effects, sinks, {_string(verdict) for verdict in said}


def _allowed(properties: Json, verdicts: set[str], mandate: Json) -> bool:
    """Return True if the profile permits, and neither verdicts nor mandate object."""
    against = mandate["standing"] == "forbidden" or "confirm" in {d["code"] for d in mandate["deviations"]}
    answered = (properties.get("profiled"), properties.get("verdict")) == (True, "permit")
    return answered and not (against or "ask" in verdicts)


def _shows_too_much(properties: Json, grant: Json | None) -> bool:
    """Return True if a model is shown a tool outside the grant, or a provider tool."""
    shown, provided = (properties.get(name) for name in ("tools", "provider_tools"))
    if not isinstance(shown, list) or provided != []:
        return True
    granted = (grant or {}).get("tools")
    return not all(
        isinstance(n, str) and (granted is None or (isinstance(granted, list) and n in granted)) for n in shown
    )


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""


def _refusal(action: str, name: str, properties: Json, ctx: Json) -> str:
    calls = action == "tools/call"
    if calls and "data_class" not in properties:
        return Code.GRANT_DATA_CLASS  # an unknown class is outside every grant
    if ctx["lease"]["grant"] is None:
        return ""
    try:
        grant = Grant.model_validate(ctx["lease"]["grant"])
    except ValidationError:
        return Code.LEASE_INVALID
    if calls and grant.data_classes is not None and not isinstance(properties["data_class"], str):
        return Code.GRANT_DATA_CLASS
    if not calls:  # other steps are limited in time and depth only
        grant = Grant(max_depth=grant.max_depth if action == "agent/invoke" else None, expires_at=grant.expires_at)
    refusal = grant.refuses(
        tool=name,
        args=ctx["call"]["args"] if ctx["call"] is not None else {},
        data_class=_string(properties.get("data_class")),
        sink=_string(properties.get("sink")),
        depth=ctx["delegation"]["depth"],
        now=ctx["now"],
    )
    return str(refusal or "")
