"""kill -9 at random instants: each intent is booked at most once, and nothing that was acknowledged is lost.

`.ci/long` runs a thousand rounds on SQLite and two hundred on PostgreSQL.
"""

import io
import json
import multiprocessing as mp
import sys
from contextlib import redirect_stdout, suppress
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(600)
FORKS = mp.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.death_rounds", "tests.revocation_rounds"])  # imported once, for the processes of all rounds


def played(out: Connection, module: str, *args: str) -> None:
    """Play rounds in this process, and send what they print."""
    sys.argv = [module, *args]
    with redirect_stdout(io.StringIO()) as said, suppress(SystemExit):
        import_module(f"tests.{module}").main()
    out.send(said.getvalue())


def play(*args: str, module: str = "kill_rounds") -> dict[str, Any]:
    """Rounds in processes of their own, and what they found."""
    here, there = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=played, args=(there, module, *args))
    process.start()
    there.close()
    found: dict[str, Any] = json.loads(here.recv().splitlines()[-1])
    process.join()
    print(found)
    return found


@pytest.mark.parametrize(("ledger", "rounds"), [("sqlite", 6), ("postgres", 3)])
def test_a_killed_process_pays_nothing_twice(ledger: str, rounds: int) -> None:
    """Bookings, revocations, dead jtis, the audit chain and its anchor, after every round."""
    found = play("--ledger", ledger, "--rounds", str(rounds))
    assert found["broken"] == [] and found["rounds"] == rounds
    assert found["killed"] and found["midway"] and found["booked"] + found["unknown"] == found["intents"]
    assert found["acknowledged"] > 0


@pytest.mark.parametrize(("ledger", "rounds"), [("sqlite", 6), ("postgres", 3)])
def test_a_payment_whose_process_died_is_asked_about(ledger: str, rounds: int) -> None:
    """In every order of entering again: never paid twice, and each new order says that the first has no outcome."""
    found = play("--ledger", ledger, "--rounds", str(rounds), module="death_rounds")
    assert found["broken"] == [] and found["rounds"] == rounds


@pytest.mark.parametrize("module", ["kill_rounds", "death_rounds"])
def test_without_protection_it_is_paid_twice(module: str) -> None:
    """The twin: the same graph, the same kills; a new order after the death."""
    assert play("--rounds", "60", "--seed", "1", "--twin", module=module)["broken"]


@pytest.mark.parametrize("tree", [(), ("--tree",)], ids=["thread", "agent of a tree"])
@pytest.mark.parametrize("ledger", ["sqlite", "postgres"])
def test_all_processes_stop(ledger: str, tree: tuple[str, ...]) -> None:
    """A revocation and the kill switch: no process is permitted what it asks afterwards. In a tree, the others go on."""
    trials = 2 if tree else 6
    found = play("--ledger", ledger, "--trials", str(trials), *tree, module="revocation_rounds")
    assert found["broken"] == [] and found["trials"] == trials
    assert found["decisions"] > trials * found["workers"] * 2


@pytest.mark.parametrize("tree", [(), ("--tree",)], ids=["thread", "agent of a tree"])
def test_without_a_revocation_they_go_on(tree: tuple[str, ...]) -> None:
    """The twin: another thread is revoked."""
    assert play("--trials", "1", "--twin", *tree, module="revocation_rounds")["broken"]
