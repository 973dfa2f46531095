"""What machines write, over three checkpointers and three ledgers: memory, an SQLite file, PostgreSQL."""

import os
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from langchain_runtime_authz.ledger.memory import MemoryLedger
from tests.attack.correction_places import opened
from tests.attack.emitters import Scene
from tests.attack.test_emitters import MOVES, check_moves, mixed
from tests.integration_tests.services import ledger_schema
from tests.tier import part

STEPS = int(os.environ.get("LRA_STEPS", "50"))  # in each place
AT_ONCE = 50  # steps of one thread


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, Any]]]:
    """Checkpointer and ledger of each."""
    path: Path = tmp_path_factory.mktemp("emitters") / "ledger.sqlite"
    with ledger_schema(graphs=True) as (dsn, schema), ExitStack() as stack:
        yield {
            "memory": {"saver": InMemorySaver(), "ledger": MemoryLedger()},
            "SQLite": stack.enter_context(opened({"file": str(path)})),
            "PostgreSQL": stack.enter_context(opened({"dsn": dsn, "schema": schema})),
        }


Places = dict[str, dict[str, Any]]


def scene(places: Places, name: str) -> Scene:
    held = places[name]
    return Scene(held["saver"], uuid.uuid4().hex, held["ledger"])


def decided(of: Scene) -> list[tuple[Any, ...]]:
    """What the policy was asked, but for what is new on each run."""
    return [
        (r.action.name, r.resource.id, r.context.task.epoch, r.context.plan and (r.context.plan.planned, r.context.plan.stale))
        for r in of.pdp.requests
    ]


@pytest.mark.parametrize(("act", "epochs", "place"), [(*move, place) for n, move in enumerate(MOVES) for place in part(["SQLite", "PostgreSQL"], 2, n)])
def test_a_human_rotates_and_a_machine_does_not(act: Any, epochs: int, place: str, places: Places) -> None:
    """A text that a serialiser returns says the same. In CI each act is in one of the places, in turn."""
    check_moves(scene(places, place), act, epochs)


@pytest.mark.timeout(3600)
def test_mixed_steps_are_decided_alike_everywhere(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    """The same acts in the same order: who rotates, and every question to the policy, is the same in all three."""
    total: dict[str, Counter[tuple[str, str]]] = {name: Counter() for name in places}
    took: Counter[str] = Counter()
    for seed in range(max(STEPS // AT_ONCE, 1)):
        asked = {}
        for name in places:
            begun = time.monotonic()
            there = scene(places, name)
            total[name] += mixed(there, AT_ONCE, seed)
            asked[name] = decided(there)
            took[name] += time.monotonic() - begun
        assert asked["memory"] == asked["SQLite"] == asked["PostgreSQL"]
        if (done := (seed + 1) * AT_ONCE) % 1000 == 0:
            with capsys.disabled():
                print(f"\n{done} acts in each place:", *(f"{name} {took[name]:.0f} s" for name in places), end="", flush=True)
    with capsys.disabled():
        print(f"\n{'':24}{'rotated':>10}{'not':>10}")
        for name, seen in total.items():
            for kind in ("human", "machine"):
                print(f"{name:12}{kind:12}{seen[kind, 'rotated']:>10}{seen[kind, 'not']:>10}")
    assert all(set(seen) == {("human", "rotated"), ("machine", "not")} for seen in total.values())
