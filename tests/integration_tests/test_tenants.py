"""Two tenants on one PostgreSQL whose threads, messages and calls bear the same names: nothing of one is the other's."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from langchain_runtime_authz import AuthzDenied, Grant, RuntimeAuthz, ToolProfile, current_call
from langchain_runtime_authz.audit.sinks import MemorySink
from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.ledger.base import Query
from langchain_runtime_authz.ledger.postgres import PostgresLedger
from langchain_runtime_authz.testing import StaticPDP

from .services import ledger_schema

BANK = "https://bank.example"
THREADS = 100  # of each tenant
WORKERS = 16
SUBJECTS = {"acme": "alice", "globex": "bob"}
PROFILES = {"pay": ToolProfile(effect="pay", sink="external", audience=(BANK,))}


@pytest.fixture
def ledger() -> Iterator[PostgresLedger]:
    """One instance for all."""
    with ledger_schema() as (dsn, schema), PostgresLedger(dsn, schema=schema, timeout=60) as made:
        yield made


class House:
    """One tenant's agent, whose bank writes down whose token it was shown."""

    def __init__(self, ledger: PostgresLedger, name: str, tenant: str) -> None:
        self.name, self.subject = name, SUBJECTS[name]
        self.shown: list[tuple[str, str, str, str]] = []
        self.authz = RuntimeAuthz(pdp=StaticPDP(True), profiles=PROFILES, ledger=ledger, tenant=tenant, audit=MemorySink(100_000))

        @tool
        def pay(account: str) -> str:
            """Pay."""
            claims = current_call().credential(BANK).claims
            status = self.authz.ledger.status(tenant, claims["jti"])
            self.shown.append((claims["tenant"], claims["sub"], account, status))
            return f"paid by {self.name}"

        def agent(state: MessagesState) -> dict[str, Any]:
            if isinstance(state["messages"][-1], ToolMessage):
                return {"messages": [AIMessage("done", id="m-end")]}
            account = state["messages"][0].text
            calls = [{"name": "pay", "args": {"account": account}, "id": "call-1", "type": "tool_call"}]
            return {"messages": [AIMessage("", id="m-1", tool_calls=calls)]}

        builder = StateGraph(MessagesState)
        builder.add_node("agent", agent)
        builder.add_node("tools", ToolNode([pay]))
        builder.add_edge(START, "agent")
        builder.add_conditional_edges("agent", tools_condition, {"tools": "tools", END: END})
        builder.add_edge("tools", "agent")
        self.graph = self.authz.protect(builder.compile(checkpointer=InMemorySaver(), name="payer"))

    def given(self, number: int) -> tuple[Any, Any, Any]:
        """The run, the input and the config of a thread: the same for both tenants but for the subject."""
        run = self.authz.run(subject=self.subject, grant=Grant(tools=("pay",), budgets={"pay": 1}))
        return run, {"messages": [HumanMessage(f"account-{number}", id="h-1")]}, {"configurable": {"thread_id": f"t-{number}"}}

    def go(self, number: int) -> str:
        run, given, config = self.given(number)
        with run:
            return self._answer(self.graph.invoke(given, config))

    async def ago(self, number: int) -> str:
        run, given, config = self.given(number)
        async with run:
            return self._answer(await self.graph.ainvoke(given, config))

    def meddle(self, number: int) -> None:
        """Correct or revoke a thread of the same name as the other tenant's that runs at this moment."""
        if number % 2:
            self.authz.revoke(f"t-{number}", graph="payer")
        else:
            self.authz.correct(f"t-{number}", "stop", graph="payer")

    def state(self, number: int) -> Any:
        scope = self.authz.run_opener.scope("payer", f"t-{number}")
        return self.authz.ledger.load(scope, Query(agent=("payer",), log=True))

    def _answer(self, out: Any) -> str:
        return next(m.text for m in out["messages"] if isinstance(m, ToolMessage))


def run_all(houses: list[House]) -> list[str]:
    """Every thread of both: the even ones in sixteen threads, the odd ones in one event loop, all at once."""

    async def loop() -> list[str]:
        with ThreadPoolExecutor(WORKERS) as pool:
            running = asyncio.get_running_loop()
            threads = [running.run_in_executor(pool, h.go, n) for n in range(0, THREADS, 2) for h in houses]
            tasks = [h.ago(n) for n in range(1, THREADS, 2) for h in houses]
            return await asyncio.gather(*threads, *tasks)

    return asyncio.run(loop())


@pytest.mark.timeout(300)
def test_two_hundred_runs_of_two_tenants_never_cross(ledger: PostgresLedger) -> None:
    """Tokens, claims, budgets, epochs, subjects, revocations, histories and records each stay with their own."""
    houses = [House(ledger, name, name) for name in SUBJECTS]
    answers = Counter(run_all(houses))
    assert answers == {f"paid by {name}": THREADS for name in SUBJECTS}
    for house in houses:
        assert len(house.shown) == THREADS
        assert {(tenant, subject, status) for tenant, subject, _, status in house.shown} == {(house.name, house.subject, "live")}
        assert {account for _, _, account, _ in house.shown} == {f"account-{n}" for n in range(THREADS)}
        records = [r for r in house.authz.audit.records if r.get("scope")]  # type: ignore[attr-defined]
        assert len(records) > 4 * THREADS
        assert {r["scope"]["tenant"] for r in records} == {house.name}
        for number in range(THREADS):
            seen = house.state(number)
            assert (seen.subject, seen.epoch, seen.revoked) == (f"user:{house.subject}", 1, False)
            assert seen.history.calls == {"pay": 1}
            assert [t.text for t in seen.log] == [f"account-{number}"]
    jtis = [{r["jti"] for r in h.authz.audit.records if r.get("jti")} for h in houses]  # type: ignore[attr-defined]
    assert jtis[0].isdisjoint(jtis[1])
    mine, theirs = houses
    for jti in list(jtis[0])[:20]:
        assert ledger.status(mine.name, jti) != "unknown" and ledger.status(theirs.name, jti) == "unknown"


@pytest.mark.timeout(300)
def test_what_one_tenant_corrects_or_revokes_is_its_own(ledger: PostgresLedger) -> None:
    """While the other's threads of the same names run."""
    mine, theirs = (House(ledger, name, name) for name in SUBJECTS)
    with ThreadPoolExecutor(WORKERS) as pool:
        meddling = [pool.submit(mine.meddle, n) for n in range(40)]
        paid = [pool.submit(theirs.go, n) for n in range(40)]
        for job in meddling:
            job.result()
        assert {job.result() for job in paid} == {f"paid by {theirs.name}"}
    for number in range(40):
        assert (mine.state(number).revoked, mine.state(number).epoch) == ((True, 1) if number % 2 else (False, 2))
        assert (theirs.state(number).revoked, theirs.state(number).epoch) == (False, 1)


def test_with_one_tenant_for_both_they_do_cross(ledger: PostgresLedger) -> None:
    """The twin: the second finds its threads taken by the first one's subject."""
    mine, theirs = (House(ledger, name, "shared") for name in SUBJECTS)
    assert mine.go(0) == f"paid by {mine.name}"
    with pytest.raises(AuthzDenied) as caught:
        theirs.go(0)
    assert caught.value.code == Code.SUBJECT_MISMATCH
