"""OPA killed, paused and restarted under load: nothing is permitted while it is down, and it recovers by itself.

`LRA_OUTAGE_SECONDS` sets for how long, per case.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import Counter
from dataclasses import dataclass

import pytest

from langchain_runtime_authz.pdp.base import PDP, Evaluator
from langchain_runtime_authz.pdp.compose import CircuitBreaker
from langchain_runtime_authz.pdp.opa import OpaPDP
from langchain_runtime_authz.testing.example_request import example_request
from tests.integration_tests.services import OpaServer, our_threads
from tests.threads import until

SECONDS = float(os.environ.get("LRA_OUTAGE_SECONDS", "2"))
TIMEOUT = 0.3
REQUEST = example_request()
DOWN = {"pdp_unreachable", "pdp_timeout", "pdp_protocol", "pdp_undefined", "pdp_circuit_open"}


@dataclass
class Asked:
    """One decision under load."""

    began: float
    ended: float
    outcome: str
    reason: str


class Load:
    """Eight threads that ask all the time, half of them from event loops of their own."""

    def __init__(self, pdp: PDP) -> None:
        self.asked: list[Asked] = []
        self.errors: list[BaseException] = []
        self._evaluator = Evaluator(pdp, deadline=5)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._guarded, args=(i % 2 == 1,)) for i in range(8)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def _guarded(self, asynchronous: bool) -> None:
        try:
            if asynchronous:
                asyncio.run(self._ask_async())
            else:
                while not self._stop.wait(0.002):
                    began = time.monotonic()
                    self._note(began, self._evaluator.evaluate([REQUEST.to_json()])[0])
        except BaseException as exc:  # a test must see it
            self.errors.append(exc)

    async def _ask_async(self) -> None:
        while not self._stop.is_set():
            await asyncio.sleep(0.002)
            began = time.monotonic()
            self._note(began, (await self._evaluator.aevaluate([REQUEST.to_json()]))[0])

    def _note(self, began: float, decision) -> None:
        self.asked.append(Asked(began, time.monotonic(), decision.outcome, decision.reason))

    def permits_since(self, moment: float) -> int:
        """How many were asked after `moment` and permitted."""
        return sum(a.outcome == "permit" for a in list(self.asked) if a.began > moment)


@pytest.mark.parametrize("breaker", [False, True], ids=["plain", "breaker"])
def test_no_permit_while_down_and_recovery_by_itself(breaker: bool) -> None:
    """Killed, started again, paused, resumed, for as long as it takes, with eight threads asking."""
    before = our_threads()
    windows: list[tuple[float, float]] = []
    recoveries: list[float] = []
    with OpaServer() as server:
        opa = OpaPDP(server.url, timeout=TIMEOUT, pool_size=16)
        pdp: PDP = CircuitBreaker(opa, failures=5, reset_after=0.2) if breaker else opa
        with Load(pdp) as load:
            end = time.monotonic() + SECONDS
            cycle = 0
            while time.monotonic() < end or cycle < 2:
                began = time.monotonic()
                until(lambda began=began: load.permits_since(began) >= 50)
                recoveries.append(time.monotonic() - began)
                stop, go = ((server.kill, server.start), (server.pause, server.resume))[cycle % 2]
                stop()
                down = time.monotonic()
                time.sleep(0.8)
                windows.append((down, time.monotonic()))
                go()
                cycle += 1
            began = time.monotonic()
            until(lambda: load.permits_since(began) >= 50)
        opa.close()
    assert load.errors == []
    denied = Counter(a.reason for a in load.asked if a.outcome != "permit")
    assert set(denied) <= DOWN
    # Asked after it was down and answered before it was back; what was under way meanwhile says nothing.
    inside = [a for a in load.asked for start, stop in windows if start <= a.began and a.ended <= stop]
    assert len(inside) >= 8 * len(windows)
    assert sum(a.outcome == "permit" for a in inside) == 0
    late = max(a.ended - a.began for a in load.asked)
    print(
        f"{len(load.asked)} decisions, {len(windows)} outages, {len(inside)} asked inside them and none permitted; "
        f"denied {dict(denied)}; slowest {late:.2f} s; recovered within {max(recoveries):.2f} s",
    )
    assert late < TIMEOUT + 10  # eight threads on a machine that does other things too
    assert our_threads() <= before
