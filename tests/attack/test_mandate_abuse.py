"""A model that is hijacked entirely takes from an application's mandate no more than it orders, once."""

from __future__ import annotations

from ._house import *

BILL_OF = {"id": "bill", "tool": "bill", "args": {"month": {"kind": "one_of", "values": ["May", "June"]}}}
FROM_BILL = {
    "id": "pay",
    "tool": "pay",
    "args": {"to": {"kind": "field", "step": "bill", "path": "iban"}, "amount": {"kind": "field", "step": "bill", "path": "total"}},
}


def ordered(key: str) -> dict[str, Any]:
    return {"steps": [BILL_OF, FROM_BILL], "key": key}


def two_months(authz: RuntimeAuthz | None, read: bool, amount: float, go: Any) -> list[Any]:
    """What ran in June, after the bill of May was read and paid in the same thread."""
    house = House(bill={**BILL, "total": 45})
    steps = (("bill", {"month": "May"}), pay(BILL["iban"], 45), AIMessage("done"))
    again = ((("bill", {"month": "June"}),) if read else ()) + (pay(BILL["iban"], amount),)
    graph = graph_of(house, *steps, *again)
    if authz is not None:
        graph = authz.protect(graph)
    for said, key in (("Pay May", "05"), ("Pay June", "06")):
        with authz.run(subject="alice", mandate=ordered(key)) if authz is not None else nullcontext():
            go(graph, {"messages": [HumanMessage(said)]}, THREAD)
        house.bill = {**BILL, "total": 99}
        ran, house.ran = house.ran, []
    return ran


@pytest.mark.parametrize("source", ["application", "planner", "words"])
def test_a_key_is_spent_once_over_all_threads_whoever_compiled_it(source: str, go: Any) -> None:
    """An application may hand over what a planner wrote down for it."""
    for authz, ran in ((None, 2), (ours(), 1)):
        house = House()
        graph = graph_of(house, pay(), AIMessage("done"), pay())
        if authz is not None:
            graph = authz.protect(graph)
        order = {"steps": [{"id": "p", "tool": "pay", "args": {"to": BOB, "amount": 45}}], "source": source, "key": "2026-12"}
        for thread in ("a", "b"):
            with authz.run(subject="alice", mandate=order) if authz is not None else nullcontext():
                go(graph, {"messages": [HumanMessage("Go")]}, {"configurable": {"thread_id": thread}})
        assert len(house.ran) == ran


def test_a_new_order_takes_no_value_of_what_was_read_for_an_old_one(go: Any) -> None:
    """The bill of May is not paid as that of June, whether June's was read or not."""
    for read in (False, True):
        assert two_months(None, read, 45, go) == [("pay", BILL["iban"], 45.0)]
        assert two_months(ours(), read, 45, go) == []
