"""A protected stream ends as a stock one does: what it runs is cancelled, what it refuses is refused."""

from __future__ import annotations

from contextlib import aclosing

from ._kit import *


def _waiting(cancelled: list[str]) -> Any:
    async def wait(state: MessagesState) -> dict[str, Any]:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append("wait")
            raise
        return {}

    async def quick(state: MessagesState) -> dict[str, Any]:
        return {}

    builder = StateGraph(MessagesState)
    for name, step in (("wait", wait), ("quick", quick)):
        builder.add_node(name, step)
        builder.add_edge(START, name)
        builder.add_edge(name, END)
    return builder.compile(name="waiting")


@pytest.mark.parametrize("nested", [False, True], ids=["root", "child"])
async def test_closing_a_stream_cancels_what_it_runs(nested: bool, authz: Any) -> None:
    """At once, not when a garbage collector comes by."""
    for protected in (False, True):
        cancelled: list[str] = []
        graph = _waiting(cancelled)
        graph = node_graph(graph) if nested else graph
        graph = authz.protect(graph) if protected else graph
        async with authz.run(subject="alice", task="x"):
            held = graph.astream(human(), stream_mode="tasks", subgraphs=True)
            async with aclosing(held) as chunks:
                async for _, chunk in chunks:
                    if chunk["name"] == "quick" and "result" in chunk:
                        break
            assert cancelled == ["wait"], protected


@pytest.mark.parametrize("form", ["invoke", "ainvoke", "stream", "astream"])
@pytest.mark.parametrize("handed", [False, True], ids=["around", "by config"])
def test_call_without_a_thread_is_refused_by_langgraph(form: str, handed: bool, ran: Any, authz: Any) -> None:
    """With a checkpointer and no thread LangGraph says so; a run in the config does not hide that."""
    graph = node_graph(lambda s: ran.append("ran") or {}, checkpointer=InMemorySaver())
    with pytest.raises(ValueError, match="thread_id"):
        drive_form(form, graph, human())
    authz.protect(graph)
    with authz.run(subject="alice", task="x") as run, pytest.raises(ValueError, match="thread_id"):
        drive_form(form, graph, human(), run.config() if handed else None)
    assert ran == []
