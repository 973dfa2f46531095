"""What the policy is told of a call that was made before, and which conflicts are decided again."""

from collections.abc import Sequence
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.prebuilt import ToolNode
from langgraph.types import RetryPolicy

from langchain_runtime_authz import RuntimeAuthz
from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.ledger.base import Committed, Conflict, Guard, Scope
from langchain_runtime_authz.ledger.call_changes import ClaimCall
from langchain_runtime_authz.ledger.changes import Change
from langchain_runtime_authz.ledger.memory import MemoryLedger
from langchain_runtime_authz.testing import StaticPDP
from tests.attack._graphs import hand_written
from tests.attack._house import BOB, PROFILES, THREAD, House, at_once, calls_of, model

PAY = ("pay", {"to": BOB, "amount": 45.0})


def played(house: House, *calls: Any, **options: Any) -> list[Any]:
    """Return the policy's view of each call of the first tool, in a graph whose node is tried twice."""
    pdp = StaticPDP(True)
    authz = RuntimeAuthz(profiles=PROFILES, pdp=pdp, **options)
    policy = RetryPolicy(max_attempts=2, initial_interval=0.001, jitter=False, retry_on=Exception)
    node = ToolNode(house.tools(), handle_tool_errors=False)
    graph = authz.protect(hand_written(model(at_once(*calls)), node, checkpointer=InMemorySaver(), retry_policy=policy))
    with authz.run(subject="alice", task="Pay"):
        graph.invoke({"messages": [HumanMessage("Pay")]}, THREAD)
    return [request.context.call for request in calls_of(pdp, calls[0][0])]


def test_the_calls_of_a_message_are_counted_together() -> None:
    other = ("pay", {"to": BOB, "amount": 46.0})
    assert [seen.repeats for seen in played(House(), PAY, other, PAY, PAY)] == [0, 0, 1, 2]
    note = ("note", {"title": "x", "text": ""})  # without critical arguments, no two calls are known to be the same
    assert [seen.repeats for seen in played(House(), note, note)] == [0, 0]


@pytest.mark.parametrize(("error", "state"), [(RuntimeError("no"), "failed"), (TimeoutError("late"), "unknown")], ids=["failed", "late"])
def test_a_retried_call_is_not_shown_as_new(error: Exception, state: str) -> None:
    """Its failure may have come after its effect, and a call that timed out may still go on."""

    class Failing(House):
        def did(self, *what: Any) -> str:
            self.ran.append(what)
            raise error

    house = Failing()
    assert ([seen.state for seen in played(house, PAY)], len(house.ran)) == (["new", state], 1)


@pytest.mark.parametrize(("code", "ran"), [(Code.IN_DOUBT, 1), (Code.BUDGET_EXHAUSTED, 0)])
def test_a_call_that_is_no_longer_in_doubt_runs(code: Code, ran: int) -> None:
    """Another agent's equal call was in doubt at the claim and is settled at the second look. Other conflicts are final."""

    class Contested(MemoryLedger):
        left = 1

        def commit(self, scope: Scope, guard: Guard | None, changes: Sequence[Change]) -> Committed | Conflict:
            if self.left and any(isinstance(change, ClaimCall) for change in changes):
                self.left -= 1
                return Conflict(code)
            return super().commit(scope, guard, changes)

    house = House()
    assert len(played(house, PAY, ledger=Contested())) == 2
    assert len(house.ran) == ran
