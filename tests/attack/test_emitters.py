"""Humans change a task and machines don't, whatever either of them writes, in any order."""

import os
import random
from collections import Counter

from langgraph.checkpoint.sqlite import SqliteSaver

from tests.attack.emitters import HUMAN, IBAN, MACHINE, SYNC, Scene

from ._kit import *

STEPS = int(os.environ.get("LRA_STEPS", "100"))


MOVES = [*((act, 0) for act in MACHINE), *((act, 1) for act in HUMAN)]


def check_moves(scene: Scene, act: Any, epochs: int) -> None:
    scene.say("And at more things")
    before = scene.epoch
    for times in (1, 2):
        act(scene)
        assert scene.epoch == before + times * epochs
    assert epochs or not any(IBAN in t.text for t in scene.log)


@pytest.mark.parametrize(("act", "epochs"), MOVES)
def test_a_human_rotates_and_a_machine_does_not(act: Any, epochs: int) -> None:
    """Alone, and once more when it is done again, on a thread that has a past."""
    check_moves(Scene(InMemorySaver()), act, epochs)


def mixed(scene: Scene, steps: int, seed: int) -> Counter[tuple[str, str]]:
    """Random acts; who acted, against what the ledger says happened."""
    rng = scene.rng = random.Random(seed)
    seen: Counter[tuple[str, str]] = Counter()
    for _ in range(steps):
        kind = rng.choices(["machine", "human"], [9, 1])[0]
        act = rng.choice(MACHINE if kind == "machine" else HUMAN)
        before = scene.epoch
        act(scene)
        moved = scene.epoch - before
        seen[kind, "rotated" if moved == 1 else "not" if moved == 0 else f"{moved} times"] += 1
        assert moved == (kind == "human"), f"{getattr(act, '__name__', act)}: {moved} epochs (seed {seed})"
    assert IBAN not in " ".join(t.text for t in scene.log)  # a machine's text is not pinned as the user's
    return seen


def test_mixed_steps(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Acts of both in any order, on checkpointers in memory and in a file; the confusion matrix is printed."""
    total: Counter[tuple[str, str]] = Counter()
    for seed in range(max(STEPS // 50, 2)):
        if seed % 2:
            with SqliteSaver.from_conn_string(str(tmp_path / f"{seed}.sqlite")) as saver:
                total += mixed(Scene(saver, forms=SYNC), 25, seed)
        else:
            total += mixed(Scene(InMemorySaver()), 75, seed)
    with capsys.disabled():
        print(f"\n{'':10}{'rotated':>10}{'not':>10}")
        for kind in ("human", "machine"):
            print(f"{kind:10}{total[kind, 'rotated']:>10}{total[kind, 'not']:>10}")
    assert set(total) == {("human", "rotated"), ("machine", "not")}
