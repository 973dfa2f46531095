"""A hijacked agent stays near an order: it changes the sequence, the currency or the zone, or adds a link.

Or it searches for what it read.
"""

from __future__ import annotations

from langchain_core.tools import ToolException

from langchain_runtime_authz.demo.agent import agent_graph as demo_graph

from ._house import *

TEXT, CURRENCY = {"type": "string"}, {"type": "string", "default": "EUR"}
TOOLS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # tool → its profile, its arguments
    "copy": ({"critical": {"source": "object", "target": "object"}, "intent": ("copy {source} to {target}",)}, {"source": TEXT, "target": TEXT}),
    "drop": ({"effect": "delete", "critical": {"database": "object"}, "intent": ("drop {database}",)}, {"database": TEXT}),
    "alarm": ({"effect": "admin", "critical": {"mode": "value"}, "intent": ("arm alarm {mode=on}", "disarm alarm {mode=off}")}, {"mode": TEXT}),
    "wire": ({"effect": "pay", "critical": {"to": "principal", "amount": "amount"}, "intent": ("wire",)}, {"to": TEXT, "amount": {"type": "number"}, "unit": CURRENCY}),
    "meet": ({"critical": {"title": "name"}, "when": ("start",), "text": ("note",), "intent": ("plan {title} on {start}",)}, {"title": TEXT, "start": TEXT, "note": {**TEXT, "default": ""}}),
    "diary": ({"effect": "read", "sink": "none", "data_class": "confidential"}, {}),
    "search": ({"effect": "fetch", "critical": {"site": "url"}, "text": ("query",)}, {"query": TEXT, "site": {**TEXT, "default": ""}}),
}  # fmt: skip
SAVE, OVERWRITE = ("copy", {"source": "db-2", "target": "db-3"}), ("copy", {"source": "db-1", "target": "db-2"})
BACKUP, DROP = ("copy", {"source": "db-1", "target": "db-2"}), ("drop", {"database": "db-1"})
ARM, DISARM = ("alarm", {"mode": "on"}), ("alarm", {"mode": "off"})


def meet(start: str, **more: str) -> Call:
    return ("meet", {"title": "Lunch", "start": start, **more})


def ran(said: str, *calls: Call | AIMessage, go: Any, protected: bool, planned: Sequence[Call] = (), failing: str = "", **options: Any) -> list[Call]:
    """Return the calls that ran before the user was asked. The tool `failing` fails."""
    happened: list[Call] = []

    def act(name: str, **given: Any) -> str:
        happened.append((name, given))
        if name == failing:
            raise ToolException("the disk is full")
        return "done"

    tools = []
    for name, (_, args) in TOOLS.items():
        schema = {"title": name, "type": "object", "properties": args, "required": [n for n, s in args.items() if "default" not in s]}
        tools.append(StructuredTool(name=name, description="Act.", args_schema=schema, func=lambda name=name, **given: act(name, **given), handle_tool_error=True))
    graph: Any = demo_graph(model(*calls), tools)
    graph.checkpointer = InMemorySaver()
    if planned:
        steps = [{"id": f"s{n}", "tool": tool, "args": {k: {"kind": "const", "value": v} for k, v in args.items()}} for n, (tool, args) in enumerate(planned)]
        options["planner"] = ScriptedChatModel(script=[says({"name": "Mandate", "args": {"steps": steps}, "id": "m"})])
    authz = RuntimeAuthz(profiles={name: ToolProfile(**profile) for name, (profile, _) in TOOLS.items()}, **options) if protected else None
    graph = authz.protect(graph) if authz is not None else graph
    with authz.run(subject="alice") if authz is not None else nullcontext():
        go(graph, {"messages": [HumanMessage(said)]}, THREAD)
    return happened


@pytest.mark.parametrize(("said", "calls", "planned"), [
    ("Copy db-2 to db-3. Copy db-1 to db-2.", (SAVE, OVERWRITE), False),
    ("Disarm the alarm. Arm the alarm.", (DISARM, ARM), False),
    ("Kopiere db-2 nach db-3. Kopiere db-1 nach db-2.", (SAVE, OVERWRITE), True),
    ("Copy db-1 to db-2, then drop db-1.", (BACKUP, DROP), True),
    ("Copy db/1 to db-2. Drop db.", (("copy", {"source": "db/1", "target": "db-2"}), ("drop", {"database": "db"})), True),
])
def test_orders_that_share_a_target_are_taken_in_sequence(said: str, calls: tuple[Call, Call], planned: bool, go: Any) -> None:
    first, second = calls
    given = {"go": go, "planned": calls if planned else ()}
    assert ran(said, first, second, protected=True, **given) == [first, second]
    assert ran(said, second, first, protected=True, **given) == []
    assert ran(said, second, first, protected=False, **given) == [second, first]


@pytest.mark.parametrize(("calls", "failing"), [((BACKUP, DROP), "copy"), ((at_once(BACKUP, DROP),), "")])
def test_a_step_waits_until_the_one_before_it_has_succeeded(calls: tuple[Any, ...], failing: str, go: Any) -> None:
    """A failed backup is none, and neither is one that is made at the same time."""
    said, given = "Copy db-1 to db-2, then drop db-1.", {"go": go, "planned": (BACKUP, DROP), "failing": failing}
    assert DROP not in ran(said, *calls, protected=True, **given)
    assert DROP in ran(said, *calls, protected=False, **given)


@pytest.mark.parametrize(("said", "calls"), [
    ("Copy db-1 to db-2. Drop db-3.", (BACKUP, ("drop", {"database": "db-3"}))),
    ("Copy a.txt and b.txt to disk-7", (("copy", {"source": "a.txt", "target": "disk-7"}), ("copy", {"source": "b.txt", "target": "disk-7"}))),
    ("Wire Bob 45 and Ann 30", (("wire", {"to": "Bob", "amount": 45}), ("wire", {"to": "Ann", "amount": 30}))),
])
def test_other_orders_are_taken_in_any_sequence(said: str, calls: tuple[Call, Call], go: Any) -> None:
    assert [name for name, _ in ran(said, *calls[::-1], go=go, protected=True)] == [name for name, _ in calls[::-1]]


@pytest.mark.parametrize(("said", "near", "ordered", "options"), [
    ("Wire Bob 45 JPY", ("wire", {"to": "Bob", "amount": 45}), ("wire", {"to": "Bob", "amount": 45, "unit": "JPY"}), {}),
    ('Plan "Lunch" on 5 June at 17:00', meet("2027-06-05T17:00-11:00"), meet("2027-06-05T17:00"), {}),
    ('Plan "Lunch" on 5 June at 17:00', meet("2027-06-05T17:00Z"), meet("2027-06-05T15:00Z"), {"zone": "Europe/Berlin"}),
    ('Plan "Lunch" on 5 June', meet("2027-06-05", note="See EVIL.COM"), meet("2027-06-05", note="See you"), {}),
    ('Plan "Lunch" on 5 June', meet("2027-06-05", note="Ping @eve"), meet("2027-06-05"), {}),
])
def test_what_is_near_an_order_is_asked_about(said: str, near: Call, ordered: Call, options: dict[str, Any], go: Any) -> None:
    assert len(ran(said, ordered, go=go, protected=True, **options)) == 1
    assert ran(said, near, go=go, protected=True, **options) == []
    assert len(ran(said, near, go=go, protected=False)) == 1


def test_a_query_leaves_also_if_it_names_no_address(go: Any) -> None:
    """What was read may not go outside, in any argument."""
    diary, search = ("diary", {}), ("search", {"query": "what alice wrote"})
    assert [name for name, _ in ran("Find me a hotel", search, go=go, protected=True)] == ["search"]
    assert [name for name, _ in ran("Find me a hotel", diary, search, go=go, protected=True)] == ["diary"]
    assert [name for name, _ in ran("Find me a hotel", diary, search, go=go, protected=False)] == ["diary", "search"]
