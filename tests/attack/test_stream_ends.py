"""A protected stream ends as a stock one does: what it runs is cancelled, what it refuses is refused."""

import gc
import threading
from contextlib import aclosing

from langchain_runtime_authz.ledger.changes import TakeLease
from tests.threads import until

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


def collected_under_a_lock(authz: Any, graph: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Collect garbage while a thread holds the ledger's lock, and see that the thread ends."""
    collected, apply = [], TakeLease.apply

    def collects(*given: Any) -> None:
        collected.append(gc.collect())
        apply(*given)

    monkeypatch.setattr(TakeLease, "apply", collects)
    other = threading.Thread(target=lambda: told(authz, graph, human(), {"configurable": {"thread_id": "u"}}), daemon=True)
    other.start()
    other.join(20)
    assert collected and not other.is_alive()


def test_a_garbage_collection_may_end_an_effect_anywhere(authz: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a block in a generator that a node left."""
    gc.freeze()  # a collection looks at what this test makes

    def paying() -> Any:
        with authz.effect("pay", profile={"effect": "send", "critical": {"to": "principal"}}, to="ann"):
            yield {}

    def node(state: Any) -> Any:
        left: list[Any] = [paying()]
        left.append(left)  # a cycle
        return next(left[0])

    graph = authz.protect(node_graph(node, checkpointer=InMemorySaver()))
    told(authz, graph, human(), THREAD)
    collected_under_a_lock(authz, graph, monkeypatch)
    assert until(lambda: authz.unknown_calls())


@pytest.mark.parametrize("ends", ["stream", "run", "session"])
def test_a_garbage_collection_may_end_a_stream_anywhere(authz: Any, monkeypatch: pytest.MonkeyPatch, ends: str) -> None:
    """Also while the thread holds a lock of the ledger: it must not wait for itself. So with a generator's own run."""
    gc.freeze()
    graph = authz.protect(node_graph(lambda s: {}, checkpointer=InMemorySaver()))
    run, left = authz.run(subject="alice", task="x"), []
    stream, session = graph.stream(human(), run.config(THREAD)), authz.session(subject="alice", task="x")

    def within(opened: Any) -> Any:
        with opened:
            yield next(stream)

    left += [stream if ends == "stream" else within(run if ends == "run" else session), left]  # a cycle
    next(left[0])
    jti = session._run.jti if ends == "session" else run.jti
    stream = stream if ends != "stream" else None
    del left
    collected_under_a_lock(authz, graph, monkeypatch)
    assert until(lambda: authz.ledger.status("default", jti) == "ended")
