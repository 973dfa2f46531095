"""Hot reload under load: every decision is one revision's, and nothing is left behind. `LRA_RELOADS` says how many."""

import gc
import json
import os
import random
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from langchain_runtime_authz.errors import Code, ConfigError
from langchain_runtime_authz.pap.bundle import Bundle
from langchain_runtime_authz.pap.reloading import HighestRevision, ReloadingPDP
from langchain_runtime_authz.pdp.base import Evaluator
from langchain_runtime_authz.testing.example_request import example_request
from tests.bundles import Key, files, put

RELOADS = int(os.environ.get("LRA_RELOADS", "24"))
THREADS = 8
KEY = Key()
DENY_WRITES = {"effects": {"write": "deny"}}
REQUEST = example_request()


def test_reloads_under_load_tear_nothing(tmp_path: Path) -> None:
    """Eight threads decide while the policy changes: the revision named is the one that decided.

    Odd revisions permit the example, even ones deny it for one reason, so that a decision that mixed two
    of them, or named another, is found. Now and then an older and an unsigned one, which would permit, are
    put there and refused. Memory at the end is that of the first quarter.
    """
    source = put(tmp_path / "policy.tar.gz", files(1, key=KEY))
    pdp = ReloadingPDP(source, keys={"default": KEY.public}, poll=3600, pool_size=4, timeout=60)
    seen: Counter[tuple[str, str]] = Counter()
    wrong: list[object] = []
    stop = threading.Event()

    def load() -> None:
        evaluator = Evaluator(pdp, deadline=120)
        while not stop.is_set():
            for decision in evaluator.evaluate([REQUEST.to_json(), REQUEST.to_json()]) + evaluator.evaluate([REQUEST.to_json()]):
                number = decision.policy_revision.partition("@")[0]
                expected = ("permit", ()) if int(number) % 2 else ("deny", ("effect",))
                if (decision.outcome, decision.reasons) != expected:
                    wrong.append(decision)
                seen[number, decision.outcome] += 1
            time.sleep(0.001)  # the machine is not only theirs

    threads = [threading.Thread(target=load) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    grown, refused = [], []
    try:
        for number in range(2, RELOADS + 2):
            put(source, files(number, {} if number % 2 else DENY_WRITES, key=KEY))
            assert pdp.reload()
            if number % 10 == 0:
                refused += [_refused(pdp, source, files(number - 1, key=KEY)), _refused(pdp, source, files(number + 1))]
            if number % (RELOADS // 4) == 0:
                grown.append(_resident())
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        pdp.close()
    print(
        f"{RELOADS} reloads, {sum(seen.values())} decisions of {len(seen)} revisions by {THREADS} threads, "
        f"{len(refused)} refused, {len(wrong)} wrong, MiB {[round(mib, 1) for mib in grown]}",
    )
    assert wrong == [] and set(refused) == {Code.POLICY_OLDER, Code.POLICY_UNSIGNED}
    assert len({n for n, _ in seen}) > RELOADS // 10
    assert grown[-1] - grown[0] < min(RELOADS / 2, 24)


def _refused(pdp: ReloadingPDP, source: Path, made: dict[str, bytes]) -> Code | str:
    before = pdp.revision
    put(source, made)
    with pytest.raises(ConfigError) as caught:
        pdp.reload()
    assert pdp.revision == before
    return caught.value.code


def _resident() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_processes_that_share_a_state_never_go_back(tmp_path: Path) -> None:
    """Four processes try revisions in any order: what one was let to use, none falls behind afterwards."""
    children = []
    for seed in range(4):
        pid = os.fork()
        if pid == 0:
            os._exit(_climb(tmp_path / "highest", random.Random(seed)))
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 4
    assert json.loads((tmp_path / "highest").read_bytes())["number"] == 400


def _climb(state: Path, chance: random.Random) -> int:
    """0 if the state never fell behind what was advanced to, and each refusal was right."""
    try:
        highest, most = HighestRevision(state), 0
        for number in [*(chance.randint(1, 400) for _ in range(200)), 400]:
            try:
                highest.advance(Bundle(number, f"d{number}", b"", {}))
                most = max(most, number)
            except ConfigError:
                if json.loads(state.read_bytes())["number"] <= number:
                    return 2
            if json.loads(state.read_bytes())["number"] < most:
                return 3
    except BaseException:  # a fork's child says everything by its exit code
        return 1
    return 0


def test_a_forks_child_follows(tmp_path: Path) -> None:
    """The child watches by itself: it finds a revision that came after the fork."""
    source = put(tmp_path / "policy.tar.gz", files(1))
    pdp = ReloadingPDP(source, poll=0.05)
    evaluator = Evaluator(pdp, deadline=30)
    assert evaluator.evaluate([REQUEST.to_json()])[0].permit
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            put(source, files(2, DENY_WRITES))
            until = time.monotonic() + 30
            while evaluator.evaluate([REQUEST.to_json()])[0].permit and time.monotonic() < until:
                time.sleep(0.02)
            code = 0 if pdp.revision.startswith("2@") else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    pdp.close()
