"""Count the statements and the transactions that a ledger's database sees in a turn of an agent."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import START, MessagesState, StateGraph

from langchain_runtime_authz import RuntimeAuthz, ToolProfile
from langchain_runtime_authz.ledger import sqlite
from langchain_runtime_authz.ledger.base import Guard, Ledger, Scope
from langchain_runtime_authz.ledger.call_changes import ConcludeCall
from langchain_runtime_authz.ledger.changes import Change
from langchain_runtime_authz.testing import StaticPDP
from tests.benchmarks.per_call import MANDATE, TASK, Script, agent_graph

PROFILES = {"book": ToolProfile(effect="write", sink="internal", critical={"account": "principal", "amount": "amount"})}


SQLITE, POSTGRES = 5, 6  # statements of one more turn
INVOKE = 9  # and of an invoke with SQLite


@contextmanager
def seen_by_postgres() -> Iterator[list[str]]:
    """Note the statements that psycopg is told to carry out."""
    import psycopg

    seen: list[str] = []
    execute: Any = psycopg.Cursor.execute

    def noted(self: Any, query: Any, *args: Any, **options: Any) -> Any:
        text = str(query)
        seen.append("INSERT INTO journal" if "INSERT INTO journal" in text else kind(text))
        return execute(self, query, *args, **options)

    with patch.object(psycopg.Cursor, "execute", noted):
        yield seen


def turn_and_invoke(ledger: Ledger, seen: list[str]) -> tuple[list[str], list[str]]:
    """Return the statements of one more turn, and of an invoke with one turn; `seen` is where they are noted."""
    script = Script()
    graph = RuntimeAuthz(pdp=StaticPDP(permit=True), profiles=PROFILES, ledger=ledger)
    protected = graph.protect(agent_graph(script))
    counts: list[list[str]] = []
    for number, turns in enumerate((1, 1, 2)):  # the first one warms up
        seen.clear()
        script.left = turns
        place = {"configurable": {"thread_id": f"t{number}"}}
        protected.invoke({"messages": [("user", TASK)]}, graph.run(subject="alice", task=TASK, mandate=MANDATE).config(place))
        counts.append(list(seen))
    _, one, two = counts
    more = list(two)
    for statement in one:
        if statement in more:
            more.remove(statement)
    return more, one


def writes(statements: Sequence[str]) -> int:
    """Return how many transactions wrote: each has an entry in the journal, and waits once for the disk."""
    return sum("INSERT INTO journal" in text for text in statements)


def kind(text: str) -> str:
    """Return a statement without its values."""
    return " ".join(text.split()[:4])


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note the statements of SQLite connections that are made from here on."""
    noted: list[str] = []

    class Noting(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            noted.append("INSERT INTO journal" if sql.startswith("INSERT INTO kept") else kind(sql))
            return super().execute(sql, *args)

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Noting))
    return noted


def test_sqlite(tmp_path: Path, seen: list[str]) -> None:
    with sqlite.SqliteLedger(tmp_path / "ledger.db") as ledger:
        turn, invoke = turn_and_invoke(ledger, seen)
    assert (len(turn) <= SQLITE, writes(turn)) == (True, 3), (len(turn), turn)
    assert (len(invoke) <= INVOKE, writes(invoke)) == (True, 5), (len(invoke), invoke)


def test_the_gate_catches_a_tenth_more(tmp_path: Path, seen: list[str]) -> None:
    """Planted in a turn's last commit: the budgets leave less room than that."""

    class Wasteful(sqlite.SqliteLedger):
        def commit(self, scope: Scope, guard: Guard | None, changes: Sequence[Change]) -> Any:
            if any(isinstance(change, ConcludeCall) for change in changes):
                for _ in range(-(-SQLITE // 10)):
                    self.asked(scope.tenant)
            return super().commit(scope, guard, changes)

    with Wasteful(tmp_path / "ledger.db") as ledger:
        turn, _ = turn_and_invoke(ledger, seen)
    assert len(turn) > SQLITE


def test_a_long_thread_is_left_as_fast_as_a_short_one(tmp_path: Path) -> None:
    """SQLite's own instructions are counted: they grow if an entry reads all checkpoints of its thread."""
    taken: list[int] = []
    with SqliteSaver.from_conn_string(str(tmp_path / "graph.db")) as saver:
        graph = StateGraph(MessagesState).add_node("say", lambda _: {}).add_edge(START, "say").compile(checkpointer=saver)
        authz = RuntimeAuthz(pdp=StaticPDP(permit=True))
        protected = authz.protect(graph)
        for _ in range(8):
            seen: list[None] = []
            saver.conn.set_progress_handler(partial(seen.append, None), 1)
            protected.invoke({"messages": [("user", "x")]}, authz.run(subject="alice").config({"configurable": {"thread_id": "t"}}))
            taken.append(len(seen))
    assert taken[-1] == taken[-2]
