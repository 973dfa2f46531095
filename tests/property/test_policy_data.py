"""Data of another shape never widens what the shipped policy permits, and is refused before it decides anything."""

import copy
import json
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_runtime_authz.errors import ConfigError
from langchain_runtime_authz.evaluation import CallStanding, Decision
from langchain_runtime_authz.pdp.base import Evaluator
from langchain_runtime_authz.pdp.policy_data import DATA_ROOT, merge_data, wrong_data
from langchain_runtime_authz.pdp.wasm import WasmPDP
from langchain_runtime_authz.testing.example_request import example_request
from langchain_runtime_authz.tool_profile import EFFECTS
from tests.bundles import DATA, WASM
from tests.tier import part

# The shipped data with something in each table, so that there is a demand to lose.
APPROVAL = {
    "sources": ["interrupt"], "authenticated": True, "expires_in": 60, "edits": "args",
    "approvers": {"min": 2, "distinct_from_subject": True, "who": ["user:bob", "user:carol"]},
    "fallback": {"after": 60, "who": ["user:dave"]}, "asks": {"run": 5, "hour": 10},
}
STRICT: dict[str, Any] = json.loads(json.dumps({
    **DATA, "approvals": {"*": APPROVAL, "pay": APPROVAL, "write": {**APPROVAL, "approvers": {"who": ["user:bob"]}}},
    "models": {"providers": ["openai"], "names": ["model-1"], "provider_tools": ["search"]},
    "rates": {"write": {"window": 60, "max": 2}, **DATA["rates"]},
    "budget": {"effects": {"write": {"max": 3}}, "tools": {"book_invoice": {"max": 1, "counter": "books"}}},
    "notify": {"effects": {"write": {"permit": "desk", "ask": "desk", "deny": "desk"}}, "tools": {"book_invoice": {"permit": "log"}}},
    "redact": {"book_invoice": ["iban", "name"]}, "ttl": {"node/enter": 30, "model/call": 60},
}))

EFFECT, SINK, CALL_SINK = "resource.properties.effect", "resource.properties.sink", "context.call.sink"
STANDING, BACKED = "context.call.mandate.standing", "context.call.mandate.backed"
FREE = {"context.lease.grant": None}
OUT = {SINK: "external", CALL_SINK: "external", **FREE}


def _approved(**changes: object) -> dict[str, object]:
    given = {
        "source": "interrupt", "approver": "bob", "authenticated": True, "args_digest": "sha256:" + "5e" * 32,
        "approvers": ["user:bob", "user:carol"], **changes,
    }
    return {EFFECT: "pay", STANDING: "outside", **FREE, "context.approval": given}


def _model(name: str, **properties: object) -> dict[str, object]:
    told = {"tools": [], "provider_tools": [], **properties}
    return {"action.name": "model/call", "resource": {"type": "model", "id": name, "properties": told}, **FREE}


REQUESTS = [
    example_request(overrides)
    for overrides in (
        {},
        *({EFFECT: e, STANDING: s, BACKED: b, **FREE} for e in EFFECTS for s in get_args(CallStanding) for b in (True, False)),
        {"context.plan.stale": True}, {"context.plan.planned": False}, {"context.call.changed": ["read_file"]},
        {EFFECT: "pay", **FREE, "context.call.changed": ["read_file"]}, {EFFECT: "pay", **FREE, "context.plan.stale": True},
        {"subject.type": "anonymous", EFFECT: "read", "resource.properties.data_class": "public", **FREE},
        {"subject.type": "anonymous", EFFECT: "read"}, {"subject.type": "anonymous"}, {"resource.properties.profiled": False},
        {"resource.properties.profiled": False, EFFECT: "delete"},
        *({**OUT, "context.history.classes_read": [c]} for c in ("public", "internal", "confidential", "secret", "own")),
        {**OUT, STANDING: "deviates"}, {**OUT, STANDING: "outside"},
        *({f"context.history.{n}": 10_000} for n in ("denials", "streak", "unplanned", "tainted", "rotations", "last_minute")),
        {"context.delegation.depth": 100, **FREE}, {"context.lease.steps": 10_000, "context.lease.seconds": 10_000}, _approved(),
        _approved(authenticated=False), _approved(source="hitl"), _approved(edited_from="book_invoice"),
        _approved(edited_from="other"), _approved(approvers=["user:bob"]), _approved(approvers=["user:alice", "user:bob"]),
        _approved(approvers=["user:bob", "user:mallory"]), _model("model-1", provider="openai"),
        _model("model-1", provider="openai", provider_tools=["search", "run_code"]), _model("model-2", provider="openai"),
        _model("model-1", provider="other"), _model("model-1"),
    )
]
BODIES = [r.to_json() for r in REQUESTS]


def _paths(value: object, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from _paths(value[key], (*at, key))


# Of the big table some rows: all of its cells are read by one rule.
PATHS = [p for p in _paths(STRICT) if p[0] != "effects" or set(p[1:2]) <= {"read", "fetch", "write"}]


def _put(path: tuple[Any, ...], value: object) -> tuple[dict[str, Any], object]:
    """The data with `value` at a path, and what stood there."""
    data = copy.deepcopy(STRICT)
    at: Any = data
    for key in path[:-1]:
        at = at[key]
    was, at[path[-1]] = at.get(path[-1]) if isinstance(at, dict) else at[path[-1]], value
    return data, was


@pytest.fixture(scope="module")
def pdp() -> Iterator[WasmPDP]:
    """The shipped policy on the strict data."""
    strict = WasmPDP(wasm=WASM, data={DATA_ROOT: STRICT}, pool_size=1)
    yield strict
    strict.close()


@pytest.fixture(scope="module")
def before(pdp: WasmPDP) -> list[Decision]:
    return _decided(pdp)


def _decided(pdp: WasmPDP) -> list[Decision]:
    return Evaluator(pdp, deadline=60).evaluate(BODIES)


def _demands(decision: Decision) -> set[str]:
    """What a decision obliges to, each demand as one text; an approval by each of its terms."""
    return {
        json.dumps([o.type, part], sort_keys=True)
        for o in decision.obligations
        for part in (o.properties.items() if o.type == "require_approval" else [o.properties])
    }


def _never_wider(pdp: WasmPDP, before: list[Decision], data: dict[str, Any], path: tuple[Any, ...]) -> None:
    """Past the check of the shape, as an OPA server would take it: what was refused or asked stays so."""
    changed = WasmPDP(wasm=WASM, data={DATA_ROOT: data}, pool_size=1)
    try:
        after = _decided(changed)
    finally:
        changed.close()
    for request, was, now in zip(REQUESTS, before, after, strict=True):
        asked = f"{request.action.name} {request.resource.properties}"
        if now.permit:
            assert was.permit, (path, asked, was.reasons)
        if now.permit or (now.outcome, was.outcome) == ("approval_required", "approval_required"):
            lost = _demands(was) - _demands(now)
            # A demand of another shape is one that the PEP refuses (`unknown_obligation`).
            types = {o.type for o in was.obligations} - {o.type for o in now.obligations}
            assert not types, (path, asked, lost)
        if now.outcome == "approval_required":
            assert was.outcome in ("permit", "approval_required"), (path, asked, was.reasons)


def test_the_strict_data_asks_permits_and_denies(before: list[Decision]) -> None:
    """Or nothing could be lost."""
    outcomes = {d.outcome for d in before}
    assert outcomes >= {"permit", "deny", "approval_required", "halt"}
    assert {o.type for d in before for o in d.obligations} >= {
        "rate_limit", "budget", "notify", "redact", "require_approval", "revoke", "rotate", "withhold_tools",
    }
    assert wrong_data(STRICT) == []


@pytest.mark.parametrize(("turn", "value"), [*enumerate([None, True, 0.5, "permit", [], {}])], ids=repr)
def test_no_other_type_at_any_place_permits_more(pdp: WasmPDP, before: list[Decision], turn: int, value: object) -> None:
    """Every member at every depth of data.json, replaced by a type that it does not have, in the long tier by each."""
    for path in part(PATHS, 6, turn):
        data, was = _put(path, value)
        if type(was) is not type(value) and wrong_data(data):
            _never_wider(pdp, before, data, path)


words = st.sampled_from(
    ["permit", "ask", "deny", "covered", "backed", "outside", "none", "pay", "write", "admin", "*", "interrupt", "hitl", "user:bob",
     "user:mallory", "other", "openai", "run_code", "desk", "effects", "max", "window", "public", "secret", ""],
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 100) | st.floats(-1, 2) | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4), max_leaves=8,
)


@settings(deadline=None, max_examples=250)
@given(path=st.sampled_from(PATHS), value=anything)
def test_nothing_of_another_shape_permits_more(pdp: WasmPDP, before: list[Decision], path: tuple[Any, ...], value: object) -> None:
    """The same with plausible contents: names of effects, approvers and verdicts in the wrong kind of thing."""
    data, was = _put(path, value)
    if type(was) is not type(value) and wrong_data(data):
        _never_wider(pdp, before, data, path)


@settings(deadline=None, max_examples=60)
@given(path=st.sampled_from(PATHS), value=anything)
def test_what_has_another_shape_is_refused_at_construction(path: tuple[Any, ...], value: object) -> None:
    """With the key, and the same finding that `runtime-authz policy check` prints."""
    data, _ = _put(path, value)
    if found := wrong_data(merge_data(DATA, data)):
        with pytest.raises(ConfigError) as caught:
            WasmPDP(data=data)
        assert caught.value.code == "policy_invalid"
        assert all(f"`{path[0]}" in line for line in found)
        assert any(line in str(caught.value) for line in found)


# What the shape allows and what widens on purpose: the only members whose `null` says "no limit".
NO_LIMIT = {("anomaly", name) for name in DATA["anomaly"]} | {("models", "providers"), ("models", "names")}


def test_null_means_no_limit_only_where_it_is_documented() -> None:
    for path in PATHS:
        data, _ = _put(path, None)
        assert (not wrong_data(data)) == (path in NO_LIMIT), path


def _change(path: tuple[Any, ...], value: object) -> dict[str, Any]:
    """The smallest document that changes one member."""
    for key in reversed(path):
        value = {key: value}
    return value  # type: ignore[return-value]


def _without(path: tuple[Any, ...]) -> dict[str, Any]:
    data = copy.deepcopy(STRICT)
    at: Any = data
    for key in path[:-1]:
        at = at[key]
    at.pop(path[-1], None)
    return data


MEMBERS = [p for p in _paths(STRICT) if all(isinstance(key, str) for key in p)]
TABLES = [p for p in MEMBERS if isinstance(_put(p, None)[1], dict)]
places = st.sampled_from(MEMBERS) | st.builds(lambda table, name: (*table, name), st.sampled_from(TABLES), words)
single = st.none() | st.booleans() | st.integers(0, 9) | words | st.lists(words, max_size=2)


@given(path=places, value=single)
def test_changing_one_member_changes_no_other(path: tuple[Any, ...], value: object) -> None:
    """It is replaced whole, added, or removed by null. A whole table cannot be removed: its null is refused."""
    removed = value is None and len(path) > 1
    before = copy.deepcopy(STRICT)
    assert merge_data(STRICT, _change(path, value)) == (_without(path) if removed else _put(path, value)[0])
    assert before == STRICT


@pytest.mark.parametrize(("data", "asked", "kept"), [
    ({"rates": {"pay": {"max": 1}}}, {EFFECT: "send", **FREE}, ["rate_limit"]),
    ({"rates": {"pay": {"max": 1}}}, {EFFECT: "pay", **FREE}, ["rate_limit"]),
    ({"anomaly": {"max_denials": 5}}, {"context.history.streak": 10}, ["revoke"]),
    ({"approvals": {"pay": {"authenticated": True}}}, {EFFECT: "pay", STANDING: "none", **FREE}, ["require_approval"]),
], ids=str)
def test_tightening_one_bound_keeps_the_others(data: dict[str, Any], asked: dict[str, object], kept: list[str]) -> None:
    pdps = [WasmPDP(pool_size=1), WasmPDP(data=data, pool_size=1)]
    body = example_request(asked).to_json()
    before, after = (Evaluator(p).evaluate([body])[0] for p in pdps)
    for pdp in pdps:
        pdp.close()
    assert (after.outcome, after.reasons) == (before.outcome, before.reasons)
    assert [o.type for o in after.obligations] == kept
    for was, now in zip(before.obligations, after.obligations, strict=True):
        assert was.properties.items() - now.properties.items() <= {("max", 5)} if was.type == "rate_limit" else was == now
