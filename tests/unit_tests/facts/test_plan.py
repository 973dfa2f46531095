"""A call is held against what was announced, and every call has a key of its own."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_runtime_authz.facts import plan as plan_module
from langchain_runtime_authz.facts.plan import (
    PlanMatch,
    PlannedCall,
    PlanRecord,
    calls_digest,
    carry_plan,
    match_plan,
    plan_calls,
    raw_digest,
)


def call_key(scope: Any, agent: Any, epoch: int, *parts: Any) -> str:
    """The ledger's key of a call, of whole parts."""
    return plan_module.call_key(f"{json.dumps([scope, agent])[:-1]}, {epoch}", *parts)


CALLS = [
    {"id": "c1", "name": "pay", "args": {"amount": 10}}, {"id": "c2", "name": "pay", "args": {"amount": 20}},
    {"id": None, "name": "read", "args": {}},
]
PLAN = PlanRecord("m1", ("root",), 2, "model", plan_calls(CALLS))


def held(
    plan: PlanRecord | None = PLAN,
    *,
    epoch: int = 2,
    position: int | None = 0,
    call_id: str | None = "c1",
    tool: str = "pay",
    args: object = None,
) -> PlanMatch:
    args = {"amount": 10} if args is None else args
    return match_plan(plan, epoch, position, call_id, tool, args)


@pytest.mark.parametrize("difference", [
    {"args": {"amount": 11}}, {"args": {"amount": "10"}}, {"args": {"amount": True}},
    {"args": {"amount": 10, "to": "mallory"}}, {"args": {}}, {"args": '{"amount": 10}'}, {"tool": "wire"},
    {"call_id": "c2"}, {"call_id": None}, {"position": 1}, {"position": 3}, {"position": None, "call_id": "c9"},
    {"position": None, "call_id": "c2"},
])
def test_a_call_that_differs_is_changed(difference: dict[str, Any]) -> None:
    """In arguments, tool, id or place; and never planned at the same time."""
    found = held(**difference)
    assert (found.planned, found.changed, found.of) == (False, True, 3)


@pytest.mark.parametrize("args", [{"amount": float("nan")}, {"amount": float("inf")}, {"a": {1}}, {"a": b"x"}])
def test_arguments_that_are_not_json_never_match(args: object) -> None:
    """Not even themselves."""
    assert raw_digest(args) == "uncanonical"
    plan = PlanRecord("m1", ("root",), 2, "model", plan_calls([{"id": "c1", "name": "pay", "args": args}]))
    assert held(plan, args=args).changed and held(plan, args="uncanonical").changed


def test_a_carried_plan_holds_what_the_approver_left() -> None:
    """Rejected calls are gone, edited ones stand as edited, each at its own place."""
    calls = [{"id": f"c{n}", "name": "pay", "args": {"amount": n}} for n in range(3)]
    plan = PlanRecord("m1", ("root",), 2, "model", plan_calls(calls))
    edited = PlannedCall(2, "c2", "wire", raw_digest({"amount": 7}))
    left = carry_plan(plan, 3, {1: None, 2: edited})
    assert (left.epoch, left.origin, [c.position for c in left.calls]) == (3, 2, [0, 2])

    def stands(position: int, tool: str, args: object) -> PlanMatch:
        return match_plan(left, 3, position, f"c{position}", tool, args)

    assert stands(0, "pay", {"amount": 0}).planned and stands(2, "wire", {"amount": 7}).planned
    assert (stands(2, "wire", {"amount": 7}).position, stands(2, "wire", {"amount": 7}).of) == (2, 2)
    for refused in (stands(1, "pay", {"amount": 1}), stands(2, "pay", {"amount": 2}), stands(2, "wire", {"amount": 8})):
        assert refused.changed and not refused.planned
    # Carried on, the calls' keys still come from where they were planned.
    assert carry_plan(left, 9, {}).origin == 2
    # However often it was edited, what the model announced can stand again; what was rejected cannot.
    twice = carry_plan(left, 4, {2: PlannedCall(2, "c2", "wire", raw_digest({"amount": 8}))})
    back = carry_plan(twice, 5, {}, (0, 1, 2))
    assert back.calls == (plan.calls[0], plan.calls[2])


SCOPE = ("acme", "issuer", "graph", "thread")
BASE: tuple[Any, ...] = (SCOPE, ("root",), 1, "m1", 0, "pay", "sha256:00")


def test_every_part_makes_another_key() -> None:
    """Scope, agent, epoch, message, place, tool and arguments."""
    others: tuple[Any, ...] = (("acme", "issuer", "graph", "t2"), ("root", "a"), 2, "m2", 1, "wire", "sha256:01")
    keys = {call_key(*BASE)}
    for i, other in enumerate(others):
        keys.add(call_key(*BASE[:i], other, *BASE[i + 1 :]))
    assert len(keys) == 1 + len(others)


# Names that look like two where they are joined by a separator.
nasty = st.text(st.sampled_from(["a", "\x1f", "\n", " ", ",", '"', "\\", "/", "\ud800", "é"]), max_size=4)
parts = st.tuples(
    st.lists(nasty, min_size=4, max_size=4).map(tuple), st.lists(nasty, max_size=3).map(tuple), st.integers(1, 3),
    nasty, st.integers(0, 2), nasty, nasty,
)


@given(a=parts, b=parts)
def test_keys_are_equal_exactly_where_calls_are(a: Any, b: Any) -> None:
    """Ids and names are a model's to choose: none of them can make one call look like another."""
    assert (call_key(*a) == call_key(*b)) is (a == b)


calls = st.lists(st.builds(PlannedCall, st.integers(0, 2), st.none() | nasty | st.just("None"), nasty, nasty), max_size=3)


@given(a=calls, b=calls)
def test_a_digest_of_calls_is_of_these_calls(a: list[PlannedCall], b: list[PlannedCall]) -> None:
    """A message with one strange call is not the message with two."""
    assert (calls_digest(a) == calls_digest(b)) is (a == b)


def test_the_order_of_calls_counts() -> None:
    assert len({calls_digest(p) for p in itertools.permutations(PLAN.calls)}) == 6
