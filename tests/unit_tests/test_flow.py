"""Async flows: one thread for effects that block in a row; cancelling loses nothing that was done."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver

from langchain_runtime_authz import RuntimeAuthz, _flow, profile
from langchain_runtime_authz._flow import Effect, Flow, adrive, drive
from langchain_runtime_authz.ledger import SqliteLedger
from langchain_runtime_authz.testing import ScriptedChatModel

var: ContextVar[str] = ContextVar("var", default="outside")


def act(_: object, do: Any) -> Any:
    return do()


async def aact(_: object, do: Any) -> Any:
    return do()


BLOCKS, LOOPS, QUICK = Effect(act, aact), Effect(act, aact), Effect(act)
ENGINE = SimpleNamespace(prompt=frozenset(), blocking=frozenset((BLOCKS,)))


def thread() -> str:
    return threading.current_thread().name.partition("_")[0]


def test_effects_that_block_share_a_thread_until_one_needs_the_loop() -> None:
    def flow() -> Flow[list[Any]]:
        order = (BLOCKS, BLOCKS, QUICK, BLOCKS, LOOPS, QUICK, BLOCKS)
        found = []
        for effect in order:
            found.append((yield effect(thread)))
        return [*found, thread()]

    ran, here = [], threading.current_thread().name
    _flow._threads().submit(ran.append, 1).result()
    ours = "runtime-authz"
    assert asyncio.run(adrive(ENGINE, flow())) == [ours, ours, ours, ours, here, here, ours, ours]
    assert set(drive(ENGINE, flow())) == {here}


def test_what_a_flow_makes_current_in_a_thread_is_current_afterwards() -> None:
    def flow() -> Flow[list[str]]:
        yield BLOCKS(thread)
        before = var.get()
        var.set("inside")
        try:
            return [before, (yield LOOPS(var.get)), (yield BLOCKS(var.get))]
        finally:
            var.set(before)

    async def main() -> None:
        assert await adrive(ENGINE, flow()) == ["outside", "inside", "inside"]
        assert var.get() == "outside"

    asyncio.run(main())


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
def test_a_cancelled_flow_ends_the_effect_and_hears_of_it_there(fails: bool) -> None:
    slow, seen = Slow(), []

    def flow() -> Flow[None]:
        try:
            yield BLOCKS(lambda: slow() and fails and 1 / 0)
            seen.append("went on")
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
    assert seen == [asyncio.CancelledError, "runtime-authz"]


def test_a_flow_that_has_ended_keeps_its_value_and_its_caller_is_cancelled_next() -> None:
    slow, got = Slow(), []

    def flow() -> Flow[str]:
        yield BLOCKS(thread)
        return slow()

    async def caller() -> None:
        try:
            async with asyncio.timeout(30):
                got.append(await adrive(ENGINE, flow()))
                await asyncio.sleep(0)
                got.append("went on")
        except TimeoutError:
            got.append("timeout")

    async def main() -> None:
        task = asyncio.create_task(caller())
        await slow.cancel(task)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert got == ["done"]


def test_a_run_with_files_changes_threads_once_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @profile(effect="read", sink="none")
    @tool
    def look() -> str:
        """Look."""
        return "seen"

    script = [AIMessage("", tool_calls=[{"name": "look", "args": {}, "id": "c1"}]), AIMessage("done")]
    authz = RuntimeAuthz(ledger=SqliteLedger(tmp_path / "ledger"), audit=tmp_path / "audit")
    agent = authz.protect(create_agent(ScriptedChatModel(script=script), [look], checkpointer=InMemorySaver()))
    pool, jobs = _flow._threads(), []
    submit = pool.submit
    monkeypatch.setattr(pool, "submit", lambda *job: (jobs.append(job), submit(*job))[1])

    async def main() -> None:
        with authz.run(subject="alice"):
            state = await agent.ainvoke({"messages": [("user", "Look")]}, {"configurable": {"thread_id": "1"}})
        assert [m.status for m in state["messages"] if m.type == "tool"] == ["success"]

    asyncio.run(main())
    # The run's start, the model's node, the model, its plan, the call, the node again, and the run's end.
    assert len(jobs) == 7
