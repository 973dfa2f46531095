"""Grants form a lattice: everything that delegation relies on follows from `meet`."""

import json
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from langchain_runtime_authz.grant import Constraint, Grant

MANY = settings(deadline=None, max_examples=150)
NOW = 1_764_000_000

# Few names and numbers, so that two grants meet often.
names = st.sampled_from(["a", "b", "c"])
numbers = st.integers(-3, 3) | st.sampled_from([-0.0, 0.5, 1.0, 2.0, 2.5, -1.5])
scalars = st.booleans() | numbers | st.sampled_from(["", "1", "true", "a", "1.0"])
values = scalars | st.none() | st.lists(scalars, max_size=2) | st.dictionaries(names, scalars, max_size=2)
constraints = st.builds(Constraint, one_of=st.none() | st.lists(scalars, max_size=4), ge=st.none() | numbers, le=st.none() | numbers)
maybe_names = st.none() | st.lists(names, max_size=3)
grants = st.builds(
    Grant, tools=maybe_names, args=st.dictionaries(names, st.dictionaries(names, constraints, max_size=2), max_size=2),
    data_classes=maybe_names, sinks=maybe_names, audiences=maybe_names, steps=maybe_names, max_depth=st.none() | st.integers(0, 3),
    budgets=st.dictionaries(names, st.integers(0, 3), max_size=2), expires_at=st.none() | st.integers(NOW - 1, NOW + 1),
)
calls = st.fixed_dictionaries(
    {
        "tool": names, "args": st.dictionaries(names, values, max_size=3), "data_class": names, "sink": names,
        "depth": st.integers(0, 3), "now": st.sampled_from([NOW - 1, NOW - 0.5, NOW, NOW + 1]),
    }
)
# Every value that can tell two constraints of the numbers above apart, and some that are no numbers.
SAMPLES: tuple[object, ...] = (
    *(n / 4 for n in range(-16, 17)), *range(-4, 5), -1e308, 1e308,
    *(True, False, None, "", "1", "true", "a", "1.0", "0", "null", [], [1], {}, {"a": 1}),
)


def permitted(constraint: Constraint) -> list[bool]:
    return [constraint.permits(value) for value in SAMPLES]


@MANY
@given(a=grants, b=grants, c=grants)
def test_meet_is_a_semilattice(a: Grant, b: Grant, c: Grant) -> None:
    """Idempotent, commutative, associative, with `Grant()` at the top."""
    assert a.meet(a) == a and a.meet(b) == b.meet(a)
    assert a.meet(b).meet(c) == a.meet(b.meet(c))
    assert a.meet(Grant()) == Grant().meet(a) == a


@MANY
@given(a=grants, b=grants, c=grants)
def test_meet_is_monotone(a: Grant, b: Grant, c: Grant) -> None:
    """A smaller grant gives a smaller meet; and the meet is the greatest that both cover."""
    smaller = a.meet(b)
    assert a.meet(c).covers(smaller.meet(c)) and a.covers(smaller)
    assert b.covers(smaller)
    below_both = smaller.meet(c)
    assert a.covers(below_both) and b.covers(below_both)
    assert smaller.covers(below_both)
    if a.covers(c) and b.covers(c):
        assert smaller.covers(c)


@MANY
@given(a=grants, b=grants, call=calls)
def test_the_meet_permits_what_both_permit(a: Grant, b: Grant, call: dict[str, Any]) -> None:
    """Nothing more and nothing less, for any call."""
    both = a.refuses(**call) is None and b.refuses(**call) is None
    assert (a.meet(b).refuses(**call) is None) is both


@MANY
@given(parent=grants, request=st.none() | grants, further=st.none() | grants, call=calls)
def test_attenuation_never_widens(parent: Grant, request: Grant | None, further: Grant | None, call: dict[str, Any]) -> None:
    """Over any number of delegations, whatever is asked for; asking for nothing gives the parent's."""
    child = parent.attenuate(request)
    grandchild = child.attenuate(further)
    assert parent.covers(child) and parent.covers(grandchild)
    assert parent.attenuate(None) == parent
    assert request is None or request.covers(child)
    if grandchild.refuses(**call) is None:
        assert parent.refuses(**call) is None
    for counter, limit in parent.budgets.items():
        assert grandchild.budgets[counter] <= limit


@MANY
@given(grant=grants)
def test_a_grant_survives_json(grant: Grant) -> None:
    """Through text and back, and its form is the same again."""
    data = json.loads(json.dumps(grant.to_json()))
    assert Grant.model_validate(data) == grant
    assert Grant.model_validate(data).to_json() == data == grant.to_json()
    assert Grant.model_validate({}) == Grant()


@MANY
@given(a=constraints, b=constraints)
@example(Constraint(ge=2, le=2.0), Constraint(one_of=[2]))
@example(Constraint(one_of=[1]), Constraint(one_of=[True]))
@example(Constraint(one_of=[0]), Constraint(one_of=[False]))
@example(Constraint(ge=3, le=2), Constraint(one_of=[]))
@example(Constraint(one_of=[1, 5], ge=2), Constraint(one_of=[5.0]))
@example(Constraint(one_of=["a"], ge=0), Constraint(one_of=[]))
@example(Constraint(one_of=[-0.0]), Constraint(one_of=[0]))
def test_a_constraint_has_one_normal_form(a: Constraint, b: Constraint) -> None:
    """Two constraints are equal exactly when they permit the same values, and then hash alike."""
    assert (a == b) is (permitted(a) == permitted(b))
    assert a != b or hash(a) == hash(b)
    assert a.meet(b) == b.meet(a)
    assert permitted(a.meet(b)) == [x and y for x, y in zip(permitted(a), permitted(b), strict=True)]


@MANY
@given(one_of=st.lists(scalars, max_size=4), ge=st.none() | numbers, le=st.none() | numbers, value=values)
def test_a_constraint_permits_what_it_says(one_of: list[Any], ge: float | None, le: float | None, value: object) -> None:
    """By the plain reading of its fields: numbers by value, everything else by type and value."""
    same = lambda x, y: x == y and isinstance(x, bool) is isinstance(y, bool)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    within = number and (ge is None or value >= ge) and (le is None or value <= le)  # type: ignore[operator]
    bounded = ge is not None or le is not None
    assert Constraint(ge=ge, le=le).permits(value) is (within or not bounded)
    listed = any(same(value, v) for v in one_of)
    assert Constraint(one_of=one_of, ge=ge, le=le).permits(value) is (listed and (within or not bounded))


@given(tool=names, name=names, constraint=constraints, args=st.dictionaries(names, values, max_size=2))
def test_a_constrained_argument_must_be_present(tool: str, name: str, constraint: Constraint, args: dict[str, Any]) -> None:
    """Even where its constraint permits every value."""
    assume(name not in args)
    grant = Grant(args={tool: {name: constraint}})
    call = {"tool": tool, "data_class": "x", "sink": "none", "depth": 0, "now": NOW}
    assert grant.refuses(args=args, **call) == "grant_argument"  # type: ignore[arg-type]
    assert (grant.refuses(args={**args, name: 1}, **call) is None) is constraint.permits(1)  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [
    {"args": {"pay": ["amount"]}}, {"args": {"pay": None}}, {"args": {"pay": {"amount": None}}},
    {"args": {"pay": {"amount": {"max": 10}}}}, {"args": {"pay": {"amount": {"one_of": [None]}}}},
    {"args": {"pay": {"amount": {"one_of": [[1]]}}}}, {"args": {"pay": {"amount": {"one_of": [float("nan")]}}}},
    {"args": {"pay": {"amount": {"one_of": "abc"}}}}, {"args": {"pay": {"amount": {"ge": "1"}}}}, {"args": {"pay": {"amount": {"le": True}}}},
    {"args": {"pay": {"amount": {"ge": float("nan")}}}}, {"args": {"pay": {"amount": {"le": float("inf")}}}},
    {"args": ["pay"]}, {"args": None}, {"tools": "pay"}, {"tools": [1]}, {"tools": {"pay": 1}}, {"max_depth": -1},
    {"max_depth": True}, {"max_depth": 1.0}, {"budgets": {"pay": -1}}, {"budgets": {"pay": None}},
    {"expires_at": "tomorrow"}, {"expires_at": 1.5}, {"tool": ["pay"]},
])
def test_what_can_not_be_read_is_no_grant(data: dict[str, Any]) -> None:
    """A field that is misspelt or of another shape is refused; it never means "no limit"."""
    with pytest.raises(ValidationError):
        Grant.model_validate(data)


@given(one_of=st.lists(st.one_of(values, st.binary(), st.builds(object)), min_size=1, max_size=3))
def test_a_list_that_holds_more_than_scalars_is_refused(one_of: list[Any]) -> None:
    """With `ValidationError`, whatever it holds."""
    assume(not all(isinstance(v, str | int | float | bool) for v in one_of))
    with pytest.raises(ValidationError):
        Constraint(one_of=one_of)
