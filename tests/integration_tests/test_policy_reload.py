"""Hot reload under load: every decision is one revision's, and nothing is left behind. `LRA_RELOADS` says how many."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections import Counter
from pathlib import Path

from langchain_runtime_authz.pdp.base import Evaluator
from langchain_runtime_authz.pdp.reloading import ReloadingPDP
from langchain_runtime_authz.testing.requests import example_request
from tests.bundles import files, put

RELOADS = int(os.environ.get("LRA_RELOADS", "200"))
DENY_WRITES = {"effects": {"write": "deny"}}
REQUEST = example_request()


def test_reloads_under_load_tear_nothing(tmp_path: Path) -> None:
    """Four threads decide while the policy changes: the revision named is the one that decided.

    Odd revisions permit the example, even ones deny it for one reason, so that a decision that mixed two
    of them, or named another, is found. Memory after the second half is that after the first.
    """
    source = put(tmp_path / "policy.tar.gz", files(1))
    pdp = ReloadingPDP(source, poll=3600, pool_size=4, timeout=30)
    seen: Counter[tuple[str, str]] = Counter()
    wrong: list[object] = []
    stop = threading.Event()

    def load() -> None:
        evaluator = Evaluator(pdp, deadline=60)
        while not stop.is_set():
            for decision in evaluator.evaluate([REQUEST, REQUEST]) + evaluator.evaluate([REQUEST]):
                number = decision.policy_revision.partition("@")[0]
                expected = ("permit", ()) if int(number) % 2 else ("deny", ("effect",))
                if (decision.outcome, decision.reasons) != expected:
                    wrong.append(decision)
                seen[number, decision.outcome] += 1
            time.sleep(0.001)  # the machine is not only theirs

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    grown = []
    try:
        for number in range(2, RELOADS + 2):
            put(source, files(number, {} if number % 2 else DENY_WRITES))
            assert pdp.reload()
            if number % (RELOADS // 4) == 0:
                grown.append(_resident())
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        pdp.close()
    print(f"{RELOADS} reloads, {sum(seen.values())} decisions of {len(seen)} revisions, MiB {grown}")
    assert wrong == []
    assert len({n for n, _ in seen}) > RELOADS // 10
    assert grown[-1] - grown[0] < 24


def _resident() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_a_forks_child_follows(tmp_path: Path) -> None:
    """The child watches by itself: it finds a revision that came after the fork."""
    source = put(tmp_path / "policy.tar.gz", files(1))
    pdp = ReloadingPDP(source, poll=0.05)
    evaluator = Evaluator(pdp, deadline=30)
    assert evaluator.evaluate([REQUEST])[0].permit
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            put(source, files(2, DENY_WRITES))
            until = time.monotonic() + 30
            while evaluator.evaluate([REQUEST])[0].permit and time.monotonic() < until:
                time.sleep(0.02)
            code = 0 if pdp.revision.startswith("2@") else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    pdp.close()
