"""The shipped policy decides as `Grant` and the rows of `effects` in Python, and no mutation permits without a lease."""

import copy
import json
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from langchain_runtime_authz.evaluation import CallStanding
from langchain_runtime_authz.grant import Constraint, Grant
from langchain_runtime_authz.pdp.base import PolicyFailed
from langchain_runtime_authz.pdp.policy_data import DATA_ROOT
from langchain_runtime_authz.pdp.wasm import WasmPDP
from langchain_runtime_authz.testing.example_request import NOW, example_request
from tests.bundles import DATA, WASM

EFFECTS = ("compute", "read", "fetch", "write", "send", "pay", "delete", "admin")
PERMISSIVE = {
    "effects": dict.fromkeys(EFFECTS, "permit"),
    "data_flow": {name: {"external": "permit"} for name in ("internal", "confidential", "secret", "*")},
}
BASE = json.loads(example_request({"context.lease.grant": None}).to_json())
# Numbers that have one exact JSON form (`digest.as_json` refuses the other integers).
MAX_INT = 2**53 - 1

SLOW_IS_FINE = settings(deadline=None, max_examples=300)


@pytest.fixture(scope="module")
def pdp() -> Iterator[WasmPDP]:
    """The shipped policy with nothing against the call but its grant."""
    permissive = WasmPDP(data=PERMISSIVE, pool_size=1)
    yield permissive
    permissive.close()


names = st.sampled_from(["a", "b", "c", "", "ü", "A"])
numbers = (
    st.integers(-3, 3) | st.sampled_from(
        [-0.0, 0.5, 1.0, 2.0, 2.5, 0.1, 0.30000000000000004, 1e-300, 5e-324]
    ) | st.integers(-MAX_INT, MAX_INT) | st.floats(-MAX_INT, MAX_INT)
)
scalars = (st.booleans() | numbers | st.sampled_from(["", "1", "true", "a", "\u2028", '"', "1.0"]) | st.text(max_size=3))
values = scalars | st.none() | st.lists(scalars, max_size=2) | st.dictionaries(names, scalars, max_size=2)
maybe_names = st.none() | st.lists(names, max_size=4)
constraints = st.builds(Constraint, one_of=st.none() | st.lists(scalars, max_size=4), ge=st.none() | numbers, le=st.none() | numbers)
grants = st.builds(
    Grant, tools=maybe_names, args=st.dictionaries(names, st.dictionaries(names, constraints, max_size=2), max_size=2),
    data_classes=maybe_names, sinks=st.none() | st.lists(st.sampled_from(["none", "internal", "external"]), max_size=3),
    audiences=st.none() | st.lists(st.sampled_from(["https://bank.example"]), max_size=1),
    max_depth=st.none() | st.integers(0, 3), budgets=st.dictionaries(names, st.integers(0, 3), max_size=2),
    expires_at=st.none() | st.integers(NOW - 1, NOW + 1),
)


def answer_to(pdp: WasmPDP, document: object) -> tuple[bool, set[str]]:
    """Decision and codes; an engine that stops is a deny (`Evaluator`)."""
    try:
        answer = pdp.document(json.dumps(document).encode())
    except PolicyFailed:
        return False, {"pdp_error"}
    assert isinstance(answer, dict) and answer.keys() == {"decision", "context"}
    codes = [reason["code"] for reason in answer["context"]["reasons"]]
    assert codes == sorted(set(codes))
    assert answer["decision"] is (not codes)
    return answer["decision"], set(codes)


@SLOW_IS_FINE
@given(
    grant=grants, tool=names, args=st.dictionaries(names, values, max_size=4), data_class=names,
    sink=st.sampled_from(["none", "internal", "external"]), depth=st.integers(0, 3),
)
def test_the_policy_refuses_what_the_grant_refuses(
    pdp: WasmPDP, grant: Grant, tool: str, args: dict[str, object], data_class: str, sink: str, depth: int,
) -> None:
    """A grant_* code exactly when `Grant.refuses` gives one, and that one among them."""
    document = copy.deepcopy(BASE)
    document["resource"]["id"] = tool
    document["resource"]["properties"].update(data_class=data_class, sink=sink)
    document["context"]["delegation"]["depth"] = depth
    document["context"]["call"]["args"] = args
    document["context"]["lease"]["grant"] = grant.to_json()
    code = grant.refuses(tool=tool, args=args, data_class=data_class, sink=sink, depth=depth, now=NOW)
    permitted, codes = answer_to(pdp, document)
    assert permitted is (code is None)
    assert {c for c in codes if not c.startswith("grant_")} == set()
    assert code is None or str(code) in codes


@SLOW_IS_FINE
@given(constraint=constraints, value=values, data=st.data())
@example(Constraint(one_of=(1,)), True, None)
@example(Constraint(one_of=("1",)), 1, None)
@example(Constraint(ge=0), "zz", None)
@example(Constraint(one_of=(0,)), -0.0, None)
def test_a_constraint_holds_the_same_values(pdp: WasmPDP, constraint: Constraint, value: object, data: st.DataObject | None) -> None:
    """`Constraint.permits` and its Rego agree on every JSON value."""
    if data is not None and constraint.one_of and data.draw(st.booleans()):
        value = data.draw(st.sampled_from(constraint.one_of))
    document = copy.deepcopy(BASE)
    document["context"]["call"]["args"] = {"x": value}
    document["context"]["lease"]["grant"] = Grant(args={BASE["resource"]["id"]: {"x": constraint}}).to_json()
    permitted, codes = answer_to(pdp, document)
    assert permitted is constraint.permits(value) and codes <= {"grant_argument"}


VERDICTS = ("permit", "ask", "deny")
STANDINGS: tuple[str, ...] = get_args(CallStanding)
CODES = {"deviates": "deviates", "forbidden": "forbidden", "outside": "not_ordered", "none": "not_ordered"}
verdicts = st.sampled_from(VERDICTS)
tables = st.dictionaries(
    st.sampled_from(EFFECTS), verdicts | st.dictionaries(st.sampled_from([*STANDINGS, "backed"]), verdicts, max_size=6),
)


def verdict(row: Any, standing: str, backed: bool) -> str:
    """What a row says to a call, in Python."""
    if isinstance(row, str):
        return row
    if backed and standing not in ("covered", "forbidden") and "backed" in row:
        return str(row["backed"])
    return str(row.get(standing, "deny"))


@settings(deadline=None, max_examples=150)
@given(
    table=tables, effects=st.lists(st.sampled_from(EFFECTS), min_size=1, max_size=3),
    standing=st.sampled_from(STANDINGS), backed=st.booleans(), confirm=st.booleans(),
    said=st.lists(st.none() | verdicts, min_size=3, max_size=3),
)
def test_the_policy_decides_as_the_row_says(
    table: dict[str, Any], effects: list[str], standing: str, backed: bool, confirm: bool, said: list[str | None],
) -> None:
    """For the call and what it can set going alike, the strictest verdict counts; the reason names the standing.

    The verdict of a profile adds to it; the tool's own `permit` lifts what asks, unless the mandate is against the call.
    """
    document = copy.deepcopy(BASE)
    document["resource"]["properties"]["effect"] = effects[0]
    chain = [{"effect": e, "sink": "none"} | ({"verdict": v} if v else {}) for e, v in zip(effects, said, strict=False)]
    document["resource"]["properties"] |= {**chain[0], "reaches": chain[1:]}
    deviations = [{"argument": "", "code": "confirm"}] if confirm else []
    document["context"]["call"]["mandate"].update(standing=standing, backed=backed, deviations=deviations)
    pdp = WasmPDP(wasm=WASM, data={DATA_ROOT: {**DATA, "effects": table}}, pool_size=1)
    try:
        answer: Any = pdp.document(json.dumps(document).encode())
    finally:
        pdp.close()
    by_row = max((verdict(table.get(e, "deny"), standing, backed) for e in effects), key=VERDICTS.index)
    by_profile = max((v or "permit" for v in said[: len(effects)]), key=VERDICTS.index)
    worst = max(by_row, by_profile, key=VERDICTS.index)
    if (worst, said[0], by_profile) == ("ask", "permit", "permit") and standing != "forbidden" and not confirm:
        worst = "permit"
    asked = "require_approval" in {o["type"] for o in answer["context"]["obligations"]}
    assert (answer["decision"], asked) == (worst == "permit", worst == "ask")
    codes = {reason["code"] for reason in answer["context"]["reasons"]}
    told = {"effect"} | {CODES[s] for s in [standing] if s in CODES} if by_row == worst else set()
    if (standing, worst) == ("forbidden", "deny"):  # no approval helps, so none is spoken of
        told -= {"effect"}
    assert codes == (set() if worst == "permit" else told | ({"verdict"} if by_profile == worst else set()))


def paths(document: object, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every path into a JSON document."""
    entries = (document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ())
    for key, value in entries:
        yield (*at, key)
        yield from paths(value, (*at, key))


FULL = json.loads(example_request().to_json())
PATHS = sorted(paths(FULL), key=str)
wild = st.recursive(values, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3))


def put(document: object, path: tuple[str | int, ...], value: object, *, delete: bool) -> None:
    """Replace or delete what stands at `path`, if an earlier mutation left it there."""
    *parents, last = path
    at: object = document
    try:
        for key in parents:
            at = at[key]  # type: ignore[index]
        if delete:
            del at[last]  # type: ignore[attr-defined]
        else:
            at[last] = value  # type: ignore[index]
    except (KeyError, IndexError, TypeError):
        return


mutations = st.lists(st.tuples(st.sampled_from(PATHS), wild, st.booleans()), max_size=6)


@SLOW_IS_FINE
@given(mutations=mutations)
def test_no_mutation_breaks_the_answer(pdp: WasmPDP, mutations: list[tuple[tuple[str | int, ...], object, bool]]) -> None:
    """Whatever is deleted or replaced: one whole answer, a permit only without a reason, and with a lease."""
    document = copy.deepcopy(FULL)
    for path, value, delete in mutations:
        put(document, path, value, delete=delete)
    permitted, _ = answer_to(pdp, document)
    if permitted:
        context = document["context"]
        assert type(context["now"]) in (int, float) and type(context["lease"]["exp"]) in (int, float)
        assert context["lease"]["exp"] > context["now"]
        assert context["lease"]["epoch"] == context["task"]["epoch"]


@SLOW_IS_FINE
@given(mutations=mutations, lease=st.sampled_from(["absent", "expired", "other epoch", "null"]))
def test_nothing_permits_without_a_lease(pdp: WasmPDP, mutations: list[tuple[tuple[str | int, ...], object, bool]], lease: str) -> None:
    """No mutation elsewhere makes up for a lease that is missing, expired or of another epoch."""
    document = copy.deepcopy(FULL)
    for path, value, delete in mutations:
        if path[:1] != ("context",) or path[1:2] not in ((), ("lease",), ("now",), ("task",)):
            put(document, path, value, delete=delete)
    context = document["context"]
    if lease == "absent":
        del context["lease"]
    elif lease == "null":
        context["lease"] = None
    elif lease == "expired":
        context["lease"]["exp"] = context["now"]
    else:
        context["lease"]["epoch"] += 1
    permitted, codes = answer_to(pdp, document)
    assert not permitted
    assert codes & {"lease_invalid", "pdp_error"}


@SLOW_IS_FINE
@given(document=wild)
def test_no_other_document_permits(pdp: WasmPDP, document: object) -> None:
    """A JSON value that is no request at all is denied."""
    assert answer_to(pdp, document)[0] is False
