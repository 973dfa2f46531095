"""However a run ends, nothing of it is alive: its jtis are dead for every reader of the ledger."""

import gc
import os
import signal

import anyio

from langchain_runtime_authz.ledger import SqliteLedger
from langchain_runtime_authz.testing.frozen_clock import FrozenClock

from ._kit import *

ENDS: dict[str, BaseException | None] = {
    "return": None, "exception": ValueError("no"), "KeyboardInterrupt": KeyboardInterrupt(), "SystemExit": SystemExit(1),
}
GO = call("act", {"to": "bob"}, "c1")


class House:
    """An agent with one tool, `act`, that does what the test says."""

    def __init__(self, act: Any, ledger: Any = None, saver: Any = InMemorySaver, **options: Any) -> None:
        now = a_tool("act", lambda to: str(act()), to=str)

        @tool("act")
        async def later(to: str) -> str:
            """Act."""
            found = act()
            return str(await found if asyncio.iscoroutine(found) else found)

        self.pdp = StaticPDP(True)
        profiles = {"act": ToolProfile(effect="write", sink="internal")}
        self.authz = RuntimeAuthz(pdp=self.pdp, ledger=ledger, profiles=profiles, **options)
        self.sync, self.nonblocking = (
            self.authz.protect(hand_written(replying([GO]), [t], checkpointer=saver(), name="g")) for t in (now, later)
        )

    def go(self, given: Any) -> Any:
        with self.authz.run(subject="alice"):
            return self.sync.invoke(given, THREAD)

    async def ago(self, given: Any) -> Any:
        async with self.authz.run(subject="alice"):
            return await self.nonblocking.ainvoke(given, THREAD)

    def states(self) -> set[str]:
        jtis = {r.context.lease.jti for r in self.pdp.requests}
        assert jtis
        return {self.authz.ledger.status("default", jti) for jti in jtis}

    def row(self) -> Any:
        scope = self.authz.run_opener.scope("g", "t")
        return self.authz.ledger._threads[scope].calls  # type: ignore[attr-defined]


@pytest.mark.parametrize("end", ENDS)
def test_a_run_that_ends_leaves_nothing_alive(end: str, how: str) -> None:
    """By return or by what its tool raises; alive inside, dead outside. What was cut is `unknown`."""
    error, inside = ENDS[end], []

    def act() -> str:
        inside.append(house.states())
        if error is not None:
            raise error
        return "done"

    house = House(act)
    if how == "async" and isinstance(error, KeyboardInterrupt | SystemExit):

        async def cut() -> None:
            await house.ago(human())

        with pytest.raises(type(error)):
            asyncio.run(cut())
    elif error is None:
        house.go(human()) if how == "sync" else asyncio.run(house.ago(human()))
    else:
        with pytest.raises(type(error)):
            house.go(human()) if how == "sync" else asyncio.run(house.ago(human()))
    assert inside == [{"live"}] and house.states() == {"ended"}
    (row,) = house.row().values()
    assert (row.state, "failed" in (row.about or {})) == ("unknown" if error else "done", isinstance(error, ValueError))


class Far(InMemorySaver):
    """Checkpoints that are read over a network."""

    async def aget_tuple(self, config: Any) -> Any:
        await asyncio.sleep(0.001)
        return await super().aget_tuple(config)


class Thinking(ScriptedChatModel):
    scope: Any

    async def _agenerate(self, *args: Any, **kwargs: Any) -> Any:
        self.scope.cancel()
        await asyncio.sleep(5)


@pytest.mark.parametrize("plans", [False, True], ids=["in the tool", "in the planner"])
async def test_a_run_whose_client_leaves_leaves_nothing_alive(plans: bool) -> None:
    """A scope of anyio, as around a streamed response, cancels again at each `await`."""
    with anyio.CancelScope() as scope:
        planner = Thinking(script=[], scope=scope) if plans else None
        house = House(lambda: (scope.cancel(), asyncio.sleep(5))[1], saver=Far, planner=planner)
        await house.ago(human())
    assert scope.cancelled_caught
    (thread,) = house.authz.ledger._threads.values()  # type: ignore[attr-defined]
    assert [lease.state for lease in thread.leases.values()] == ["ended"]


def test_an_abandoned_interrupt_holds_no_authority(how: str) -> None:
    """A question that nobody answers: the jti is dead as it is asked; who answers at last gets another one."""
    house = House(lambda: interrupt({"question": "?", "options": ["go"]}))
    enter = house.go if how == "sync" else lambda given: asyncio.run(house.ago(given))
    assert enter(human())["__interrupt__"] and house.states() == {"ended"}
    old = {r.context.lease.jti for r in house.pdp.requests}
    enter(Command(resume="go"))
    assert {r.context.lease.jti for r in house.pdp.requests[-2:]}.isdisjoint(old)
    assert house.states() == {"ended"}


def test_a_long_run_holds_its_open_entries_alone() -> None:
    """A service may open one run for all that it does."""
    house = House(lambda: "done")
    run = house.authz.run(subject={"type": "service", "id": "poller"})
    for n in range(3):
        house.sync.invoke(human(), run.config({"configurable": {"thread_id": str(n)}}))
    assert [entry.scope.thread for entry in run._entries] == ["2"] and run.jti == run._entries[0].jti
    waits = house.sync.stream(human(), run.config({"configurable": {"thread_id": "3"}}))
    next(waits)
    for n in "456":
        house.sync.invoke(human(), run.config({"configurable": {"thread_id": n}}))
    assert [entry.scope.thread for entry in run._entries] == ["3", "6"]
    run.close()
    assert house.states() == {"ended"}


def test_a_process_that_dies_holds_its_authority_until_its_lease_lapses(tmp_path: Path) -> None:
    """Kill -9 in the tool: another process sees the jti live until the lease's end, then dead, and the call unknown."""
    path, told = tmp_path / "ledger.db", tmp_path / "jti"
    clock = FrozenClock()
    pid = os.fork()
    if pid == 0:  # pragma: no cover
        try:

            def die() -> str:
                told.write_text(house.pdp.requests[-1].context.lease.jti)
                os.kill(os.getpid(), signal.SIGKILL)
                return "never"

            house = House(die, SqliteLedger(path, clock=clock))
            house.go(human())
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    ledger, jti = SqliteLedger(path, clock=clock), told.read_text()
    assert ledger.status("default", jti) == "live"
    clock.tick(61)
    assert ledger.status("default", jti) == "ended"


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "twin"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_that_is_closed_with_a_pending_run_denies_no_later_run(closed: bool) -> None:
    """The pending run is closed in the context of other code, and leaves it as it was. In the twin the run ends."""
    began: list[int] = []

    async def act() -> str:
        began.append(1)
        while closed and len(began) == 1:
            await asyncio.sleep(0.001)
        return "done"

    async def until_it_began() -> None:
        while not began:
            await asyncio.sleep(0.001)

    async def go(thread: str) -> Any:
        async with house.authz.run(subject="alice"):
            return await house.nonblocking.ainvoke(human(), {"configurable": {"thread_id": thread}})

    house = House(act)
    loop = asyncio.new_event_loop()
    task = loop.create_task(go("t"))
    loop.run_until_complete(until_it_began() if closed else task)
    loop.close()
    del task, loop
    gc.collect()
    house.pdp.requests.clear()
    asyncio.run(go("other"))
    assert house.pdp.requests[0].action.name == "run/start"  # and no delegation of the run that was closed
