"""Approvals over a restart on SQLite, in every kind of agent: approved once, edited as edited, rejected never."""

import asyncio
from typing import Any

import pytest
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from langchain_runtime_authz.ledger.memory import MemoryLedger
from tests.attack._approvals import (
    ANN,
    APPROVE,
    BOB,
    BUILDERS,
    EVE,
    FOUR,
    FRAMEWORKS,
    REJECT,
    THREAD,
    TWO,
    Scene,
    edit,
    human,
    resume,
)

KINDS = [*BUILDERS, *FRAMEWORKS]
EDITED = ("bob", 2.0, "USD")


pytestmark = pytest.mark.filterwarnings("ignore")


def _play(kind: str, path: str, *turns: Any) -> tuple[list[Any], list[Any]]:
    """One process per turn: the checkpoints are opened anew. What ran, and what each turn came back with."""
    ran, states, ledger = [], [], MemoryLedger()
    for given in turns:
        with SqliteSaver.from_conn_string(path) as saver:
            s = Scene(kind, lambda saver=saver: saver, ledger=ledger)
            s.ran = ran
            s.start()
            states.append(s.say(given))
    return ran, states


def _aplay(kind: str, path: str, *turns: Any) -> tuple[list[Any], list[Any]]:
    """The same on the asynchronous road."""
    ran, ledger = [], MemoryLedger()

    async def one(given: Any) -> Any:
        async with AsyncSqliteSaver.from_conn_string(path) as saver:
            s = Scene(kind, lambda: saver, ledger=ledger)
            s.ran = ran
            s.start()
            async with s.authz.run(subject="alice", task="x"):
                return await s.graph.ainvoke(given, THREAD)

    return ran, [asyncio.run(one(given)) for given in turns]


ways = pytest.mark.parametrize("play", [_play, _aplay], ids=["sync", "async"])
kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
@ways
def test_three_asked_payments_of_five_calls(kind: str, play: Any, tmp_path: Any) -> None:
    """Each approved call runs once, the edited one as edited, the rejected never, and no answer counts twice."""
    answer = resume(APPROVE, edit("bob", "2"), REJECT)
    again = resume(APPROVE, APPROVE, APPROVE)
    ran, states = play(kind, str(tmp_path / "checkpoints.db"), human(), answer, again, None)
    (asked,) = states[0]["__interrupt__"]
    assert [a["args"]["recipient"] for a in asked.value["action_requests"]] == ["ann", "bob", "eve"]
    assert "__interrupt__" not in states[1]
    assert states[1]["messages"][-1].content == "done"
    assert sorted(ran) == sorted([ANN, EDITED, TWO, FOUR])


@kinds
def test_the_unenforced_twin(kind: str, tmp_path: Any) -> None:
    """Without us nobody is asked and everybody is paid."""
    with SqliteSaver.from_conn_string(str(tmp_path / "checkpoints.db")) as saver:
        s = Scene(kind, lambda: saver)
        s.build().invoke(human(), THREAD)
    assert sorted(s.ran) == sorted([ANN, BOB, EVE, TWO, FOUR])
