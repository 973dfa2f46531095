"""Cedar as PDP, in this process, by the official engine (extra `cedar`).

Cedar skips a policy that fails to evaluate, even a `forbid`. Here every error that Cedar reports denies, and so does
any answer but `Allow`. A schema is required, so that a misspelt attribute is found when the policies are loaded.

Cedar answers without reasons and obligations, so a policy is annotated with them: `@reason("code")`, and
`@obligation("name …")`, whose names are keys of the argument `obligations`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from difflib import get_close_matches
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from langchain_runtime_authz._validate import checked_seconds, wrong
from langchain_runtime_authz.errors import Code, ConfigError, PDPError
from langchain_runtime_authz.evaluation import REASON_CODE, Obligation, strict_json
from langchain_runtime_authz.grant import Grant
from langchain_runtime_authz.pdp.base import DEFAULT_DEADLINE, InProcess
from langchain_runtime_authz.pdp.policy_data import ApprovalTerms, named_errors
from langchain_runtime_authz.pdp.response import parse_answer, parse_obligation

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


def _reached(properties: Json, effect: str, sink: str, actual: str | None) -> tuple[set[str], set[str], set[str]]:
    """Return (effects, sinks, verdicts) of a call and of all calls that it can start."""
    reaches = properties.get("reaches", [])
    each: list[Json] = [r if isinstance(r, dict) else {} for r in (reaches if isinstance(reaches, list) else [None])]
    said = [p["verdict"] for p in (properties, *each) if "verdict" in p] if isinstance(reaches, list) else []
    effects = {effect, *(_string(r.get("effect")) for r in each)}
    sinks = {sink if actual is None else actual, *(_string(r.get("sink")) for r in each), *([sink] if each else [])}
    return effects, sinks, {_string(verdict) for verdict in said}


def _allowed(properties: Json, verdicts: set[str], mandate: Json) -> bool:
    """Return True if the profile permits, no verdict is `ask`, and the mandate agrees."""
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


SHIPPED: Final = resources.files("langchain_runtime_authz") / "policies" / "cedar"
ASKS: Final = "require_approval"


class CedarPDP(InProcess):
    """Decide by Cedar policies.

    Thread-safe. An evaluation is never interrupted, because each one ends. An answer after the `deadline` denies.

    Args:
        policies: text or path; by default the shipped sample.
        schema: text or path of a Cedar schema (not in the JSON form). Required with your own `policies`.
        entities: entities in Cedar's JSON form (a list, or the path of a file), for example groups, or `Data::"policy"`.
        obligations: `{"type": …, "properties": {…}}` by name, for `@obligation`.
        deadline: seconds of CPU time within which the calls of one message must be answered.

    Raises `ConfigError` (`policy_invalid`) if an argument does not parse, or policies or entities do not fit the schema.

    Attributes:
        revision: fingerprint of policies, schema, entities and obligations.
    """

    name = "cedar"

    def __init__(
        self,
        *,
        policies: str | Path | None = None,
        schema: str | Path | None = None,
        entities: Sequence[Mapping[str, Any]] | Path | None = None,
        obligations: Mapping[str, Mapping[str, Any]] | None = None,
        deadline: float = DEFAULT_DEADLINE,
    ) -> None:
        self.deadline = checked_seconds("deadline", deadline)
        try:
            import cedarpy
        except ImportError as exc:
            raise ConfigError("CedarPDP needs `pip install langchain-runtime-authz[cedar]`") from exc
        if policies is None:
            if schema is not None or obligations is not None:
                raise ConfigError("the shipped Cedar policies have their own schema and obligations")
            policies = _text("policies", SHIPPED / "runtime_authz.cedar")
            schema = _text("schema", SHIPPED / "runtime_authz.cedarschema")
            obligations = strict_json(_text("obligations", SHIPPED / "obligations.json"))
        elif schema is None:
            raise ConfigError("Cedar policies need a schema, or a misspelt attribute disables a `forbid`")
        source, shape = _text("policies", policies), _text("schema", schema)
        if not isinstance(entities, Path | list | tuple | None):
            raise wrong("entities", "a list of entities, or a path", entities)
        known = _text("entities", entities) if isinstance(entities, Path) else _dump(list(entities or ()))
        table = _table(obligations or {})
        self._evaluate_all = cedarpy.is_authorized_batch
        try:
            self._policies = cedarpy.PolicySet.from_str(source)
            self._schema = cedarpy.Schema.from_str(shape)
            self._entities = cedarpy.Entities.from_json_str(known, self._schema)
            checked = cedarpy.validate_policies(source, self._schema)
            parsed = json.loads(cedarpy.policies_to_json_str(source))["staticPolicies"]
        except (ValueError, KeyError) as exc:
            msg = f"the Cedar policies, schema or entities cannot be read: {exc}"
            raise ConfigError(msg, Code.POLICY_INVALID) from exc
        if not checked.validation_passed:
            called = {name: (policy.get("annotations") or {}).get("reason", name) for name, policy in parsed.items()}
            found = dict.fromkeys(e.error.replace(f"`{e.policy_id}`", called[e.policy_id]) for e in checked.errors)
            raise ConfigError(f"the Cedar policies do not fit the schema: {'; '.join(found)}", Code.POLICY_INVALID)
        self._says = {name: _annotated(name, policy, table) for name, policy in parsed.items()}
        whole = "\0".join([source, shape, known, _dump(dict(obligations or {}))])
        self.revision = f"sha256:{hashlib.sha256(whole.encode()).hexdigest()[:16]}"

    def evaluate(self, body: bytes) -> object:
        """Answer one request. Raises `PDPError` if Cedar reports an error."""
        request = json.loads(body)
        verdict, said = self._judged(request)
        if verdict == "Allow" and request["context"]["approval"]:
            # Once an approval is given, Cedar's answer does not name the terms that it must meet. So evaluate without
            # the approval: Cedar then asks for it, with the terms as properties of the obligation.
            asking = self._judged({**request, "context": {**request["context"], "approval": None}})
            if not all(_meets(request, o.properties) for s in asking[1] for o in s.obligations if o.type == ASKS):
                verdict, said = asking
        obligations = {o.id: asdict(o) for s in said for o in s.obligations}
        # If a policy denies outright, do not ask for an approval. Other obligations stay.
        if verdict == "Deny" and (denying := [s for s in said if not s.asks]):
            said = denying
            obligations = {name: o for name, o in obligations.items() if o["type"] != ASKS}
        codes = sorted({s.reason for s in said}) if verdict == "Deny" else []
        context = {
            "reasons": [{"code": code} for code in codes],
            "obligations": [obligations[name] for name in sorted(obligations)],
        }
        return parse_answer({"decision": verdict == "Allow", "context": context}, self.revision)

    def close(self) -> None:
        """Do nothing: this PDP holds only memory."""

    def _judged(self, request: Json) -> tuple[str, list[_Said]]:
        """Return Cedar's verdict, and the annotations of the policies that determined it."""
        asked = cedar_request(request)
        own = asked.pop("entities", None)
        known = self._entities.with_added_json_str(json.dumps(own)) if own else self._entities
        (result,) = self._evaluate_all([asked], self._policies, known, self._schema)
        verdict = result.decision.value
        if result.diagnostics.errors or verdict not in ("Allow", "Deny"):
            # Report only the number of errors, because their texts may quote the request.
            raise PDPError(Code.PDP_ERROR, f"Cedar: {verdict}, {len(result.diagnostics.errors)} errors")
        return verdict, [self._says[name] for name in sorted(result.diagnostics.reasons)]


class _Said(NamedTuple):
    reason: str
    obligations: tuple[Obligation, ...]
    asks: bool


def _table(given: object) -> dict[str, Obligation]:
    if not isinstance(given, Mapping):
        raise wrong("obligations", "a mapping of names to obligations", given)
    found = {}
    for name, fields in given.items():
        try:
            found[name] = parse_obligation({"id": name, **fields})
            if found[name].type == ASKS:
                ApprovalTerms.model_validate(found[name].properties)
        except (TypeError, ValidationError) as exc:
            why = "; ".join(named_errors(exc)) if isinstance(exc, ValidationError) else "it must be an object"
            raise ConfigError(f"the obligation `{name}` is malformed: {why}", Code.POLICY_INVALID) from exc
    return found


def _meets(request: Json, terms: Json) -> bool:
    """Return True if enough people approved, and the `terms` permit each approver."""
    rule, people = terms.get("approvers", {}), set(request["context"]["approval"].get("approvers") or ())
    alone = rule.get("distinct_from_subject") and f"{request['subject']['type']}:{request['subject']['id']}" in people
    eligible = people <= {*rule.get("who", people), *terms.get("fallback", {}).get("who", ())}
    return len(people) >= (rule.get("min", 1) if "approvers" in terms else 0) and eligible and not alone


def _annotated(name: str, policy: Mapping[str, Any], table: Mapping[str, Obligation]) -> _Said:
    notes = policy.get("annotations") or {}
    for note in notes.keys() - {"id", "reason", "obligation"}:
        if meant := get_close_matches(note.lower(), ("reason", "obligation"), 1, 0.8):
            msg = f"policy `{name}` is annotated `@{note}`, which says nothing; `@{meant[0]}` is meant, or another word"
            raise ConfigError(msg, Code.POLICY_INVALID)
    reason = notes.get("reason") or notes.get("id") or name
    if not REASON_CODE.fullmatch(reason):
        raise ConfigError(f"`{reason}` is not a reason code: letters, digits and _.:/- only", Code.POLICY_INVALID)
    listed = (notes.get("obligation") or "").split()
    if "obligation" in notes and not listed:
        raise ConfigError(f"`@obligation` of policy `{reason}` names nothing", Code.POLICY_INVALID)
    if absent := [wanted for wanted in listed if wanted not in table]:
        raise ConfigError(f"the obligation `{absent[0]}` of policy `{reason}` is not in the table", Code.POLICY_INVALID)
    obligations = tuple(table[wanted] for wanted in listed)
    if policy.get("effect") == "permit" and any(o.type in (ASKS, "revoke") for o in obligations):
        msg = f"policy `{reason}` permits and obliges to `approval` or `revoke`; put that on a `forbid`"
        raise ConfigError(msg, Code.POLICY_INVALID)
    return _Said(reason, obligations, any(o.type == ASKS for o in obligations))


def _text(name: str, source: object) -> str:
    if isinstance(source, str):
        return source
    if not isinstance(source, Path | Traversable):
        raise wrong(name, "text or a path", source)
    try:
        return source.read_text("utf-8")
    except (OSError, ValueError) as exc:
        raise ConfigError(f"`{source.name}` cannot be read ({type(exc).__name__})", Code.POLICY_INVALID) from exc


def _dump(document: object) -> str:
    try:
        return json.dumps(document, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as exc:
        raise ConfigError(f"entities and obligations must be JSON: {exc}", Code.POLICY_INVALID) from exc
