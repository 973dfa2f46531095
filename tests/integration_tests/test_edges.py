"""The edges of deepagents, supervisors and swarms, held to what the attack suite says of every edge."""

from deepagents import create_deep_agent
from langgraph_supervisor import create_supervisor
from langgraph_swarm import create_handoff_tool, create_swarm

from tests.attack._kit import Any, BaseTool, InMemorySaver, ScriptedChatModel, call, hand_written, params, says
from tests.attack.edges import KINDS, Edged, payer
from tests.attack.test_edges import (  # noqa: F401 - pytest collects them here, with the fixtures of this file
    how,
    test_a_childs_grant_is_its_own_under_its_parents,
    test_a_denied_edge_never_starts_the_child,
    test_a_revoked_agent_is_not_invoked_again,
    test_a_token_names_the_child_and_is_good_for_its_call_only,
    test_an_agent_that_no_role_names_gets_the_default_role,
    test_the_edge_is_decided_and_recorded_before_the_childs_first_step,
)


def task(*tools: BaseTool) -> Edged:
    """The task tool of deepagents starts the child."""
    ran: list[Any] = []
    child, model = payer(ran, *tools)
    parent = ScriptedChatModel(
        script=[says(call("task", {"description": "pay bob", "subagent_type": "payer"}, "t1")), says(text="done")] * 4
    )
    spec = {"name": "payer", "description": "pays", "runnable": child}
    graph = create_deep_agent(model=parent, tools=[], subagents=[spec], checkpointer=InMemorySaver(), name="root")
    return Edged(graph, ran, model, parent)


def supervisor(*tools: BaseTool) -> Edged:
    """A supervisor hands over."""
    ran: list[Any] = []
    child, model = payer(ran, *tools)
    parent = ScriptedChatModel(script=[says(call("transfer_to_payer", {}, "h1")), says(text="done")] * 4)
    built = create_supervisor([child], model=parent).compile(name="root", checkpointer=InMemorySaver())
    return Edged(built, ran, model, parent)


def swarm(*tools: BaseTool) -> Edged:
    """A peer hands over."""
    ran: list[Any] = []
    child, model = payer(ran, *tools)
    parent = ScriptedChatModel(script=[says(call("transfer_to_payer", {}, "h1")), says(text="done")] * 4)
    front = hand_written(parent, [create_handoff_tool(agent_name="payer")], name="front")
    built = create_swarm([front, child], default_active_agent="front").compile(name="root", checkpointer=InMemorySaver())
    return Edged(built, ran, model, parent)


KINDS.update({task: ("task", "root"), supervisor: ("handoff", "supervisor"), swarm: ("handoff", "front")})
build = params(task, supervisor, swarm, ids=["task", "supervisor", "swarm"])
