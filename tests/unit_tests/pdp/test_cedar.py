"""Cedar's answers as decisions: errors deny, annotations are reasons and obligations."""

import json
from collections.abc import Iterator
from importlib import resources
from itertools import product
from typing import Any, get_args

import cedarpy
import pytest

from langchain_runtime_authz.errors import Code, ConfigError
from langchain_runtime_authz.evaluation import CallStanding, Decision
from langchain_runtime_authz.pdp.base import Evaluator
from langchain_runtime_authz.pdp.cedar import CedarPDP, cedar_request
from langchain_runtime_authz.pdp.wasm import WasmPDP
from langchain_runtime_authz.testing.example_request import example_request
from langchain_runtime_authz.tool_profile import EFFECTS
from tests.bundles import policy_data
from tests.tier import part
from tests.unit_tests.test_controls import MODEL, TRIPS

FOLDER = resources.files("langchain_runtime_authz") / "policies" / "cedar"
SAMPLE = (FOLDER / "runtime_authz.cedar").read_text()
SCHEMA = (FOLDER / "runtime_authz.cedarschema").read_text()
TABLE = json.loads((FOLDER / "obligations.json").read_text())
EFFECT, VERDICT = "resource.properties.effect", "resource.properties.verdict"
GRANT = "context.lease.grant"
APPROVAL = {"source": "interrupt", "approver": "b", "authenticated": False, "args_digest": "sha256:" + "5e" * 32}
STANDING, BACKED, DEVIATIONS = (f"context.call.mandate.{name}" for name in ("standing", "backed", "deviations"))
UNORDERED = {STANDING: "outside"}
ALL = "permit (principal, action, resource);"


def ask(pdp: CedarPDP, overrides: dict[str, object] | None = None) -> Decision:
    (decision,) = Evaluator(pdp).evaluate([example_request(overrides).to_json()])
    return decision


def asking(approvers: dict[str, object]) -> dict[str, Any]:
    """A table with the question `boss`."""
    return {"boss": {"type": "require_approval", "properties": {"approvers": approvers}}}


@pytest.fixture(scope="module")
def sample() -> CedarPDP:
    return CedarPDP()


@pytest.fixture(scope="module")
def wasm() -> Iterator[WasmPDP]:
    """What the sample is measured by."""
    pdp = WasmPDP(pool_size=1)
    yield pdp
    pdp.close()


@pytest.mark.parametrize("attested", [[], ["pay", "send"], None], ids=str)
@pytest.mark.parametrize("proven", [True, False])
def test_a_proof_of_the_workload_is_demanded_as_in_rego(attested: list[str] | None, proven: bool) -> None:
    """By the data of the same name."""
    rego = WasmPDP(data={} if attested is None else {"attested": attested}, pool_size=1)
    cedar = CedarPDP(entities=[] if attested is None else [policy_data({"attested": attested})])
    for effect in EFFECTS:
        request = {EFFECT: effect, STANDING: "covered", "context.agent.attested": proven}
        (known,) = Evaluator(rego).evaluate([example_request(request).to_json()])
        assert ("not_attested" in known.reasons) is (not proven and effect in (attested or ()))
        given = ask(cedar, request)
        assert (given.outcome, given.reasons) == (known.outcome, known.reasons)
    rego.close()


def test_a_demand_that_is_misspelt_is_not_lost() -> None:
    """An effect that there is not demands a proof for each, and another shape is not loaded."""
    demanding = CedarPDP(entities=[policy_data({"attested": ["payments"]})])
    assert ask(demanding, {"context.agent.attested": False}).reasons == ("not_attested",)
    for wrong in ("pay", [1], {"pay": True}):
        with pytest.raises(ConfigError):
            CedarPDP(entities=[policy_data({"attested": wrong})])


ALIKE: list[dict[str, Any]] = [
    *(overrides for reason, (overrides, data) in TRIPS.items() if not data and reason not in ("no_permit", "unknown_action", "obligation:withhold_tools")),
    {}, {"context.lease.epoch": 1}, {"context.lease.grant": {"tols": []}}, {f"{GRANT}.max_depth": 0}, {f"{GRANT}.data_classes": []},
    {"context.plan": None}, {"context.plan": None, VERDICT: "permit"}, {"context.plan.changed": True, EFFECT: "read"},
    {"resource.properties.profiled": False, EFFECT: "delete"}, {VERDICT: "permit", "context.plan.stale": True},
    {VERDICT: "permit", STANDING: "deviates", DEVIATIONS: [{"argument": "", "code": "confirm"}]},
    {VERDICT: "ask", "context.approval": APPROVAL}, {EFFECT: "pay"}, {EFFECT: "pay", "context.plan.stale": True},
    *({EFFECT: "pay", **UNORDERED, "context.approval": {**APPROVAL, **a}} for a in ({}, {"source": "hitl"}, {"args_digest": "x"})),
    {"resource.properties": {"effect": "write", "sink": "internal", "profiled": True}, GRANT: None},
    {"context.call.sink": "external", "context.history.classes_read": ["new"]}, {"context.call.sink": "external"},
    {"context.call.sink": "external", EFFECT: "read", **UNORDERED}, {"context.history.denials": 25},
    {**MODEL, "resource.properties": {"tools": ["read_file"], "provider_tools": []}}, {"action.name": "run/start", "resource.type": "run"},
]
# Rego gives these another reason too, or calls them no request.
NO_PERMIT: list[dict[str, Any]] = [
    {"context.call": None, GRANT: None}, {EFFECT: "smite"}, {VERDICT: "maybe"}, {"resource.properties.reaches": "all"},
    {"resource.properties.reaches": [{"effect": "smite", "sink": "none"}]}, {**MODEL, "resource.properties": {"provider_tools": []}},
    {**MODEL, "resource.properties": {"tools": [1], "provider_tools": []}},
]


@pytest.mark.parametrize("overrides", [*ALIKE, *NO_PERMIT], ids=str)
def test_the_sample(sample: CedarPDP, wasm: WasmPDP, overrides: dict[str, object]) -> None:
    """Each rule of the shipped policy, in Cedar, as Rego has it."""
    decision = ask(sample, overrides)
    (rego,) = Evaluator(wasm).evaluate([example_request(overrides).to_json()])
    assert decision.policy_revision == sample.revision
    if overrides in NO_PERMIT:
        assert (decision.reasons, rego.outcome, "no_permit" in rego.reasons) == (("no_permit",), "deny", True)
    else:
        assert (decision.outcome, decision.reasons) == (rego.outcome, rego.reasons)
        assert [o.type for o in decision.obligations] == [o.type for o in rego.obligations]


@pytest.mark.parametrize("effect", EFFECTS)
def test_the_sample_is_the_shipped_data(sample: CedarPDP, wasm: WasmPDP, effect: str) -> None:
    """Of each effect, standing and effect that it sets going, the same outcome for the same reasons."""
    every = product(
        (("none", []), ("external", ["confidential"])), get_args(CallStanding), (True, False), (True, False),
        (None, "permit", "ask", "deny"), ((), ("read",), ("fetch",), ("pay",), ("fetch", "admin")),
    )  # fmt: skip
    asked = [
        example_request({
            EFFECT: effect, "resource.properties.sink": sink, "context.history.classes_held": held, STANDING: standing, BACKED: backed,
            "resource.properties.profiled": profiled, **({VERDICT: verdict} if verdict else {}),
            "resource.properties.reaches": [{"effect": e, "sink": "none", **({"verdict": "ask"} if e == "pay" else {})} for e in reached],
        })
        for (sink, held), standing, backed, profiled, verdict, reached in part([*every], 13, EFFECTS.index(effect))
    ]  # fmt: skip
    told = [[(d.outcome, d.reasons) for d in Evaluator(p, deadline=60).evaluate([r.to_json() for r in asked])] for p in (sample, wasm)]
    assert told[0] == told[1]
    assert {o for o, _ in told[0]} == {"permit", "deny", "approval_required"}


def test_no_other_version_and_no_other_mandate_is_permitted(sample: CedarPDP) -> None:
    """What this package would not send gets no permit either."""
    good = json.loads(example_request().to_json())
    assert Evaluator(sample).evaluate([json.dumps(good).encode()])[0].permit
    for path, values in (("schema_version", (1, 3, "2", None)), ("call", ({"args": {}, "args_digest": "x"},))):
        for value in values:
            wrong = {**good, "context": {**good["context"], path: value}}
            assert not Evaluator(sample).evaluate([json.dumps(wrong).encode()])[0].permit
    for mandate in (None, {}, {"standing": "covered"}, *({**good["context"]["call"]["mandate"], k: v} for k, v in (
        ("standing", "any"), ("standing", None), ("backed", 1), ("backed", None), ("deviations", None), ("source", 3)))):
        call = {**good["context"]["call"], "mandate": mandate}
        assert not Evaluator(sample).evaluate([json.dumps({**good, "context": {**good["context"], "call": call}}).encode()])[0].permit


@pytest.mark.parametrize("shown", [{"tools": ["pay"], "provider_tools": []}, {"tools": [], "provider_tools": ["web"]}])
def test_what_rego_withholds_cedar_denies(sample: CedarPDP, wasm: WasmPDP, shown: dict[str, object]) -> None:
    """Names computed by a policy do not fit into an annotation: then the model is not called at all."""
    overrides = {**MODEL, "resource.properties": shown}
    (rego,) = Evaluator(wasm).evaluate([example_request(overrides).to_json()])
    assert [o.type for o in rego.obligations] == ["withhold_tools"]
    assert ask(sample, overrides).reasons == ("no_permit",)


def test_a_policy_that_errs_denies() -> None:
    """Cedar itself permits here: it skips the `forbid` whose arithmetic overflows."""
    overflow = ALL + "forbid (principal, action, resource) when { context.now * 9223372036854775807 > 0 };"
    request = cedar_request(json.loads(example_request().to_json()))
    assert cedarpy.is_authorized(request, overflow, []).decision.value == "Allow"  # the harm
    decision = ask(CedarPDP(policies=overflow, schema=SCHEMA))
    assert (decision.outcome, decision.reason, decision.failure) == ("deny", Code.PDP_ERROR, "pdp")


def test_no_decision_denies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number beyond Cedar's, or a context that does not fit the schema, is no decision and a deny."""
    permissive = CedarPDP(policies=ALL, schema=SCHEMA)
    assert ask(permissive).permit
    for overrides in ({"context.now": 2**63}, {"resource.type": "agent"}):
        assert ask(permissive, overrides).reason == Code.PDP_ERROR
    for broken in ({"now": None}, {"now": 1.5}, {"more": True}):
        with monkeypatch.context() as other:
            made = lambda r, broken=broken: {**cedar_request(r), "context": {**cedar_request(r)["context"], **broken}}
            other.setattr("langchain_runtime_authz.pdp.cedar.cedar_request", made)
            assert ask(permissive).reason == Code.PDP_ERROR, broken


def test_one_failure_in_a_batch_leaves_the_others_alone(sample: CedarPDP) -> None:
    """Each request has its own answer."""
    asked = [example_request(), example_request({"context.now": 2**63}), example_request({STANDING: "forbidden"})]
    assert [d.reason or d.outcome for d in Evaluator(sample).evaluate([r.to_json() for r in asked])] == ["permit", "pdp_error", "forbidden"]


def test_nothing_permits_without_a_permit() -> None:
    """An empty policy set denies, with a reason of ours."""
    assert ask(CedarPDP(policies="", schema=SCHEMA)).reasons == ("no_permit",)


def test_what_else_an_asking_policy_obliges_to_stays_under_a_denial() -> None:
    """Nobody is asked in vain, and who is to be told is told; annotations of one's own are left alone."""
    policies = (
        '@advice("none") @reason("large") @obligation("approval told") forbid (principal, action, resource);'
        '@reason("closed") forbid (principal, action, resource) when { context.now > 0 };'
    )
    table = {**TABLE, "told": {"type": "notify", "properties": {"channel": "desk"}}}
    decision = ask(CedarPDP(policies=policies, schema=SCHEMA, obligations=table))
    assert (decision.outcome, decision.reasons) == ("deny", ("closed",))
    assert [o.id for o in decision.obligations] == ["told"]


@pytest.mark.parametrize(("terms", "approvers", "outcome"), [
    ({"who": ["user:bob"]}, ["user:alice"], "approval_required"),
    ({"who": ["user:bob"]}, ["user:bob", "user:mallory"], "approval_required"), ({"who": ["user:bob"]}, ["user:bob"], "permit"),
    ({"who": []}, ["user:bob"], "approval_required"), ({"min": 2}, ["user:bob"], "approval_required"),
    ({"min": 2}, ["user:bob", "user:carol"], "permit"), ({"distinct_from_subject": True}, ["user:alice"], "approval_required"),
    ({"distinct_from_subject": True}, ["user:bob"], "permit"), ({"who": ["user:bob"]}, [], "approval_required"),
    ({"distinct_from_subject": True}, [], "approval_required"), ({}, [], "approval_required"),
])
def test_an_approval_meets_the_terms_of_its_question(terms: dict[str, object], approvers: list[str], outcome: str) -> None:
    """Also if the rule itself asks only whether there is an approval."""
    rule = '@reason("boss") @obligation("boss") forbid (principal, action, resource) unless { context.approval.given };'
    pdp = CedarPDP(policies=ALL + rule, schema=SCHEMA, obligations=asking(terms))
    decision = ask(pdp, {"context.approval": {**APPROVAL, "source": "hitl", "approvers": approvers}})
    assert (decision.outcome, decision.reasons) == (outcome, () if outcome == "permit" else ("boss",))


def test_entities_are_groups() -> None:
    """Who is in which group is the deployment's own data."""
    policies = 'permit (principal in Group::"clerks", action, resource in ToolGroup::"books");'
    entities = [
        {"uid": {"type": "Subject", "id": "alice"}, "attrs": {}, "parents": [{"type": "Group", "id": "clerks"}]},
        {"uid": {"type": "Tool", "id": "book_invoice"}, "attrs": {}, "parents": [{"type": "ToolGroup", "id": "books"}]},
    ]
    pdp = CedarPDP(policies=policies, schema=SCHEMA, entities=entities)
    assert ask(pdp).permit and not ask(pdp, {"subject.id": "bob"}).permit
    assert not ask(pdp, {"resource.id": "other"}).permit
    assert pdp.revision != CedarPDP(policies=policies, schema=SCHEMA).revision


def test_hostile_names_are_names() -> None:
    """Quotes, newlines and NUL in an id stay one id."""
    pdp = CedarPDP(policies='permit (principal == Subject::"alice", action, resource);', schema=SCHEMA)
    for name in ('alice"', 'x", action, resource); permit (principal', "alice\x00", "alice\n", " alice", "Alice"):
        assert not ask(pdp, {"subject.id": name}).permit, name


@pytest.mark.parametrize(("arguments", "says"), [
    ({"policies": ALL}, "need a schema"),
    ({"policies": "permit (", "schema": SCHEMA}, "cannot be read"),
    ({"policies": ALL, "schema": "entity"}, "cannot be read"),
    ({"policies": ALL, "schema": SCHEMA, "entities": [{"uid": 1}]}, "cannot be read"),
    ({"policies": ALL, "schema": SCHEMA, "entities": [{"uid": {"type": "Usr", "id": "a"}, "attrs": {}, "parents": []}]}, "cannot be read"),
    ({"policies": ALL, "schema": SCHEMA, "obligations": {"unused": {"type": 5}}}, "`unused` is malformed"),
    ({"policies": "forbid (principal, action, resource) when { context.amonut > 1 };", "schema": SCHEMA}, "do not fit the schema"),
    ({"policies": f'@reason("two words") {ALL}', "schema": SCHEMA}, "not a reason code"),
    ({"policies": f'@obligation("absent") {ALL}', "schema": SCHEMA}, "`absent`"),
    ({"policies": f'@obligation("approval") {ALL}', "schema": SCHEMA, "obligations": TABLE}, "put that on a `forbid`"),
    ({"policies": f'@obligation("x") {ALL}', "schema": SCHEMA, "obligations": {"x": {"kind": 1}}}, "malformed"),
    ({"policies": ALL, "schema": SCHEMA, "obligations": asking({"who": ["bob"]})}, "must be `type:id`"),
    ({"policies": ALL, "schema": SCHEMA, "obligations": asking({"mim": 2})}, "`approvers.mim`: there is no such member"),
    ({"policies": f'@obligations("approval") {ALL}', "schema": SCHEMA}, "`@obligation` is meant"),
    ({"policies": f'@Obligation("approval") {ALL}', "schema": SCHEMA}, "`@obligation` is meant"),
    ({"policies": f'@reasons("x") {ALL}', "schema": SCHEMA}, "`@reason` is meant"),
    ({"policies": f"@obligation {ALL}", "schema": SCHEMA}, "names nothing"),
    ({"schema": SCHEMA}, "have their own schema"),
    ({"obligations": {}}, "have their own schema"),
])
def test_what_can_not_be_used_is_refused(arguments: dict[str, Any], says: str) -> None:
    """At construction, with what is wrong."""
    with pytest.raises(ConfigError, match=says):
        CedarPDP(**arguments)


RULES = """
@reason("amount")
forbid (principal, action == Action::"tools/call", resource)
when { context.call has amount && context.call.amount.greaterThan(decimal("1000.0")) };
@reason("limit")
forbid (principal, action == Action::"tools/call", resource)
when { context.call.numbers.hasTag("limit") && context.call.numbers.getTag("limit").greaterThan(decimal("10.0")) };
@reason("to")
forbid (principal, action == Action::"tools/call", resource)
when { context.call.args.hasTag("to") && context.call.args.getTag("to").containsAny(["evil", "7", "true"]) };
@reason("role")
forbid (principal, action == Action::"tools/call", resource)
when { context.subject.properties.hasTag("roles") && context.subject.properties.getTag("roles").contains("intern") };
@reason("late")
forbid (principal, action == Action::"tools/call", resource) when { context has local && context.local.hour >= 18 };
"""
OWN = {GRANT: None, "context.call.provenance": {"sum": {"kind": "amount", "class": "human", "standing": "told"}}}
OWN_RULES = CedarPDP(policies=SAMPLE + RULES, schema=SCHEMA, obligations=TABLE)
LATE = {"zone": "Europe/Berlin", "date": "2026-11-26", "weekday": 4, "hour": 18, "minute": 0}


@pytest.mark.parametrize(("args", "reasons"), [
    ({}, ("amount",)), ({"limit": 10}, ()), ({"limit": 11}, ("limit",)), ({"to": ["a", "evil"]}, ("to",)), ({"to": 7}, ("to",)),
    ({"to": True}, ("to",)), ({"to": "evil "}, ()), *(({"sum": amount}, ()) for amount in (1000, -1e300, "999.5")),
    *(({"sum": amount}, ("amount",)) for amount in (1000.00001, 1e300, "5,000", "NaN", None, True, [1, 2000], {"eur": 1})),
], ids=str)
def test_arguments_can_be_asked_for(args: dict[str, object], reasons: tuple[str, ...]) -> None:
    """A value that is not a number counts as the largest amount. Items of a list count each."""
    assert ask(OWN_RULES, {**OWN, "context.call.args": {"sum": 1, **args} if args else {}}).reasons == reasons


@pytest.mark.parametrize(("overrides", "reasons"), [
    ({"subject.properties": {"roles": ["clerk", "intern"]}}, ("role",)), ({"subject.properties": {"roles": "clerk", "depth": None}}, ()),
    ({"context.local": LATE}, ("late",)), ({"context.local": {**LATE, "hour": 17}}, ()),
], ids=str)
def test_properties_and_time_can_be_asked_for(overrides: dict[str, object], reasons: tuple[str, ...]) -> None:
    assert ask(OWN_RULES, {**OWN, "context.call.args": {"sum": 1}, **overrides}).reasons == reasons


def test_names_of_arguments_are_only_names(sample: CedarPDP) -> None:
    """Whatever an argument or a property is called, and however a value looks, the sample decides as before."""
    odd = {"__entity": {"type": "Tool", "id": "x"}, "__extn": {"fn": "ip", "arg": "1.1.1.1"}, "": 1, "\ud83d\ude00": "a\u0000b"}
    decision = ask(sample, {GRANT: None, "context.call.args": odd, "subject.properties": odd})
    assert decision.outcome == "permit"
