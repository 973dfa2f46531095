"""Async flows: one thread for effects that block in a row; cancelling loses nothing that was done."""

import asyncio
import gc
import socket
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar, copy_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph

from langchain_runtime_authz import RuntimeAuthz, _flow, profile
from langchain_runtime_authz._flow import Effect, Flow, adrive, drive
from langchain_runtime_authz.ledger import SqliteLedger
from langchain_runtime_authz.ledger.call_changes import ClaimCall
from langchain_runtime_authz.pdp.opa import OpaPDP
from langchain_runtime_authz.testing import ScriptedChatModel, StaticPDP

var: ContextVar[str] = ContextVar("var", default="outside")


def act(_: object, do: Any) -> Any:
    return do()


async def aact(_: object, do: Any) -> Any:
    return do()


BLOCKS, LOOPS, QUICK, FOREIGN = Effect(act, aact), Effect(act, aact), Effect(act), Effect(act)
ENGINE = SimpleNamespace(non_blocking=frozenset((QUICK,)), blocking=frozenset((BLOCKS,)), threaded=frozenset((BLOCKS, QUICK)))


def thread() -> str:
    return threading.current_thread().name.partition("_")[0]


def test_effects_that_block_share_a_thread_until_one_needs_the_loop() -> None:
    def flow() -> Flow[list[Any]]:
        order = (BLOCKS, QUICK, BLOCKS, LOOPS, QUICK, BLOCKS, FOREIGN, BLOCKS)
        found = []
        for effect in order:
            found.append((yield effect(thread)))
        return [*found, thread()]

    ours, here = "runtime-authz", threading.current_thread().name
    assert asyncio.run(adrive(ENGINE, flow())) == [ours, ours, ours, here, here, ours, here, ours, ours]
    assert set(drive(ENGINE, flow())) == {here}


@pytest.mark.parametrize("fails", [False, True])
def test_what_a_flow_makes_current_in_a_thread_is_current_afterwards(fails: bool) -> None:
    def flow() -> Flow[list[str]]:
        yield LOOPS(thread)
        before = var.get()
        var.set("inside")
        try:
            found = [before, (yield LOOPS(var.get)), (yield BLOCKS(var.get))]
            if fails:
                raise LookupError
            return found
        finally:
            var.set(before)

    async def main() -> None:
        if fails:
            with pytest.raises(LookupError):
                await adrive(ENGINE, flow())
        else:
            assert await adrive(ENGINE, flow()) == ["outside", "inside", "inside"]
        assert var.get() == "outside"

    asyncio.run(main())


def test_what_another_task_makes_current_meanwhile_stays() -> None:
    context, slow = copy_context(), Slow()
    context.run(var.set, "before")

    def flow() -> Flow[None]:
        yield BLOCKS(slow)

    async def main() -> None:
        task = asyncio.create_task(adrive(ENGINE, flow()), context=context)
        await asyncio.to_thread(slow.began.wait, 5)
        context.run(var.set, "meanwhile")
        slow.ends.set()
        await task

    asyncio.run(main())
    assert context[var] == "meanwhile"


def test_an_exception_from_a_thread_is_freed_at_once() -> None:
    held = weakref.WeakSet[Slow]()

    def flow() -> Flow[None]:
        yield BLOCKS(thread)
        held.add(one := Slow())  # noqa: F841  (its frame holds it)
        raise LookupError

    async def main() -> None:
        with suppress(LookupError):
            await adrive(ENGINE, flow())
        for _ in range(100):  # until the thread, too, has let go of it
            await asyncio.sleep(0.001 * len(held))
        assert not held

    gc.disable()
    try:
        asyncio.run(main())
    finally:
        gc.enable()


@pytest.mark.parametrize("then", [BLOCKS, LOOPS])
def test_an_exception_reaches_the_flow_and_its_own_reaches_the_caller(then: Effect) -> None:
    def flow() -> Flow[None]:
        with pytest.raises(ZeroDivisionError):
            yield BLOCKS(lambda: 1 / 0)
        yield then(thread)
        raise LookupError

    with pytest.raises(LookupError):
        asyncio.run(adrive(ENGINE, flow()))


class Slow:
    """Something that a thread does, and that ends when it is told to."""

    def __init__(self) -> None:
        self.began, self.ends = threading.Event(), threading.Event()

    def __call__(self) -> str:
        self.began.set()
        assert self.ends.wait(5)
        return "done"

    async def cancel(self, task: asyncio.Task[Any]) -> None:
        """Cancel a task that waits for this, twice, and let this end."""
        await asyncio.to_thread(self.began.wait, 5)
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0.02)
        assert not task.done()  # what is being written is not left behind
        self.ends.set()


@pytest.mark.parametrize("fails", [False, True])
def test_a_cancelled_flow_goes_on_to_the_event_loop_and_hears_of_it_there(fails: bool) -> None:
    slow, seen = Slow(), []

    def flow() -> Flow[None]:
        try:
            yield BLOCKS(lambda: slow() and fails and 1 / 0)
        except ZeroDivisionError as exc:
            seen.append(type(exc))
        seen.append((yield BLOCKS(thread)))
        try:
            yield LOOPS(lambda: seen.append("went on"))
        except BaseException as exc:
            seen.append(type(exc))
            seen.append((yield BLOCKS(thread)))
            raise

    async def main() -> None:
        task = asyncio.create_task(adrive(ENGINE, flow()))
        await slow.cancel(task)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    failure = [ZeroDivisionError] if fails else []
    assert seen == [*failure, "runtime-authz", asyncio.CancelledError, "runtime-authz"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_timeout_that_passes_while_a_flow_ends_is_raised_there_and_nowhere_else(fails: bool) -> None:
    slow, got = Slow(), []

    def flow() -> Flow[None]:
        yield BLOCKS(thread)
        if slow() and fails:
            raise LookupError

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: got.append(context["message"]))
        loop.call_later(0.2, slow.ends.set)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await adrive(ENGINE, flow())
        await asyncio.sleep(0.01)

    asyncio.run(main())
    gc.collect()
    assert not got


def test_a_scope_of_anyio_ends_a_flow_that_it_cancels() -> None:
    slow = Slow()

    def flow() -> Flow[None]:
        yield BLOCKS(thread)
        slow()

    async def main() -> bool:
        asyncio.get_running_loop().call_later(0.2, slow.ends.set)
        with anyio.move_on_after(0.05) as scope:
            await adrive(ENGINE, flow())
            await anyio.sleep(5)
        return scope.cancelled_caught

    assert asyncio.run(main())


def test_a_cancelled_flow_gives_back_although_no_thread_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scope of anyio, as around a streamed response, cancels again at each `await`."""
    busy, given = Slow(), []

    def flow() -> Flow[None]:
        try:
            yield BLOCKS(thread)
            pool.submit(busy)
            yield Effect(act, lambda *_: anyio.sleep(5))(thread)
        finally:
            yield BLOCKS(lambda: given.append("back"))

    async def main() -> None:
        asyncio.get_running_loop().call_later(0.2, busy.ends.set)
        with anyio.move_on_after(0.05):
            await adrive(ENGINE, flow())

    with ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(_flow, "_threads", lambda: pool)
        asyncio.run(main())
    assert given == ["back"]


def test_a_closed_flow_performs_no_further_effect() -> None:
    slow, seen = Slow(), []

    def flow() -> Flow[None]:
        yield BLOCKS(thread)
        slow()
        for _ in range(2):
            yield BLOCKS(lambda: seen.append(thread()))

    async def main() -> None:
        driven = adrive(ENGINE, flow())
        driven.send(None)
        assert slow.began.wait(5)
        with suppress(ValueError):  # the thread runs the flow
            driven.close()
        slow.ends.set()
        _flow._threads().shutdown()

    asyncio.run(main())
    _flow._threads.cache_clear()
    assert len(seen) <= 1


async def look_at(authz: RuntimeAuthz) -> list[str]:
    """Return the statuses of one run's tool calls."""

    @profile(effect="read", sink="none")
    @tool
    async def look() -> str:
        """Look."""
        return "seen"

    script = [AIMessage("", tool_calls=[{"name": "look", "args": {}, "id": "c1"}]), AIMessage("done")]
    agent = authz.protect(create_agent(ScriptedChatModel(script=script), [look], checkpointer=InMemorySaver()))
    with authz.run(subject="alice"):
        state = await agent.ainvoke({"messages": [("user", "Look")]}, {"configurable": {"thread_id": "1"}})
    return [m.status for m in state["messages"] if m.type == "tool"]


def statuses(authz: RuntimeAuthz) -> list[str]:
    return asyncio.run(look_at(authz))


@pytest.mark.parametrize("by", ["tool node", "loop", "function", "block"])
def test_a_call_whose_claim_is_cancelled_is_given_back(by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise its outcome counts as unknown, and a person has to look."""
    ledger, slow, sent = SqliteLedger(tmp_path / "ledger"), Slow(), []
    commit = ledger.commit

    def claims(scope: Any, guard: Any, changes: Any) -> Any:
        done = commit(scope, guard, changes)
        if any(type(change) is ClaimCall for change in changes):
            slow()
        return done

    async def post() -> str:
        """Post."""
        sent.append(1)
        return "posted"

    async def block() -> str:
        async with authz.effect("post", profile=does):
            return await post()

    monkeypatch.setattr(ledger, "commit", claims)
    authz = RuntimeAuthz(ledger=ledger, audit=tmp_path / "audit", pdp=StaticPDP(True))
    does = {"effect": "send", "sink": "internal"}
    posts = profile(**does)(tool(post))
    acts = {"function": authz.effect("post", profile=does)(post), "block": block, "loop": lambda: posts.ainvoke({})}
    if by == "tool node":
        script = [AIMessage("", tool_calls=[{"name": "post", "args": {}, "id": "c1"}]), AIMessage("done")]
        agent = create_agent(ScriptedChatModel(script=script), [posts], checkpointer=InMemorySaver())
    else:

        async def model(state: MessagesState) -> dict[str, Any]:
            return {"messages": [AIMessage("", tool_calls=[{"name": "post", "args": {}, "id": "c1"}])]}

        async def act(state: MessagesState) -> dict[str, Any]:
            return {"messages": [ToolMessage(await acts[by](), tool_call_id="c1")]}

        builder = StateGraph(MessagesState)
        builder.add_node(model).add_node(act).add_edge(START, "model").add_edge("model", "act")
        agent = builder.compile(checkpointer=InMemorySaver())
    authz.protect(agent)

    async def run(given: Any) -> Any:
        with authz.run(subject="alice"):
            return await agent.ainvoke(given, {"configurable": {"thread_id": "1"}})

    async def main() -> None:
        task = asyncio.create_task(run({"messages": [("user", "Post")]}))
        await slow.cancel(task)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not sent and not authz.unknown_calls()
        assert [m.content for m in (await run(None))["messages"] if m.type == "tool"] == ["posted"]

    asyncio.run(main())
    assert sent == [1]


def test_a_run_with_files_changes_threads_once_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authz = RuntimeAuthz(ledger=SqliteLedger(tmp_path / "ledger"), audit=tmp_path / "audit")
    pool, jobs = _flow._threads(), []
    submit = pool.submit
    monkeypatch.setattr(pool, "submit", lambda *job: (jobs.append(job), submit(*job))[1])
    assert statuses(authz) == ["success"]
    # The run's start, the model's node, the model, its plan, the call, its end, the node again, and the end.
    assert len(jobs) == 8


def test_own_async_methods_of_a_ledger_and_a_pdp_are_awaited(tmp_path: Path) -> None:
    called = []

    class Told(SqliteLedger):
        async def acommit(self, scope: Any, guard: Any, changes: Any) -> Any:
            called.append("commit")
            return await super().acommit(scope, guard, changes)

    class Asked(OpaPDP):
        async def aevaluate(self, body: bytes) -> Any:
            called.append("evaluate")
            return {"decision": True}

        async def aevaluate_batch(self, bodies: Any) -> Any:
            return [await self.aevaluate(body) for body in bodies]

    authz = RuntimeAuthz(ledger=Told(tmp_path / "ledger"), audit=tmp_path / "audit", pdp=Asked("http://127.0.0.1:9"))
    assert statuses(authz) == ["success"]
    assert {"commit", "evaluate"} == set(called)


def test_a_pdp_that_hangs_holds_no_thread(tmp_path: Path) -> None:
    """Otherwise it would stop the other instances of the process, which share them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        pdp = OpaPDP(f"http://127.0.0.1:{server.getsockname()[1]}", timeout=5, deadline=5)
        asks = RuntimeAuthz(ledger=SqliteLedger(tmp_path / "ledger"), pdp=pdp)
        works = RuntimeAuthz(ledger=SqliteLedger(tmp_path / "other"), audit=tmp_path / "audit", pdp=StaticPDP(True))

        async def main() -> None:
            slow = [asyncio.create_task(look_at(asks)) for _ in range(_flow.THREADS)]
            await asyncio.sleep(1)
            assert await asyncio.wait_for(look_at(works), 3) == ["success"]
            for task in slow:
                task.cancel()
            await asyncio.wait(slow, timeout=3)
            assert all(task.done() for task in slow)

        asyncio.run(main())
        pdp.close()


def test_a_sink_and_a_notifier_that_need_the_event_loop_have_it(tmp_path: Path) -> None:
    """Parts that do not wait are called on it, even if the ledger waits."""
    kinds, told = [], []

    class Queued:
        content = False

        def write(self, record: dict[str, Any]) -> None:
            asyncio.get_running_loop().call_soon(kinds.append, record["kind"])

    class Desk:
        def send(self, notification: Any) -> None:
            asyncio.get_running_loop().call_soon(told.append, notification["resource"])

    tell = {"id": "n", "type": "notify", "properties": {"channel": "desk"}}
    answer = {"decision": True, "context": {"obligations": [tell]}}
    pdp = StaticPDP(lambda request: answer if request.resource.type == "tool" else True)
    authz = RuntimeAuthz(ledger=SqliteLedger(tmp_path / "ledger"), audit=Queued(), pdp=pdp, notify={"desk": Desk()})
    assert statuses(authz) == ["success"]
    assert told == ["look"] and {"run", "decision", "completion"} <= set(kinds)
