"""The local time of a request: of the zone, with its summer time."""

from datetime import UTC, datetime

import pytest

from langchain_runtime_authz import RuntimeAuthz
from langchain_runtime_authz.errors import ConfigError
from langchain_runtime_authz.evaluation import LocalContext
from langchain_runtime_authz.facts.local_time import checked_zone, local_time
from langchain_runtime_authz.ledger.memory import MemoryLedger
from langchain_runtime_authz.testing.example_request import NOW
from langchain_runtime_authz.testing.frozen_clock import FrozenClock
from langchain_runtime_authz.testing.static_pdp import StaticPDP


@pytest.mark.parametrize(("at", "zone", "date", "weekday", "clock"), [
    ("2026-01-15T17:30", "Europe/Berlin", "2026-01-15", 4, (18, 30)),
    ("2026-07-15T17:30", "Europe/Berlin", "2026-07-15", 3, (19, 30)),
    ("2026-12-31T23:15", "Asia/Kathmandu", "2027-01-01", 5, (5, 0)),
])
def test_the_clock_is_the_zones(at: str, zone: str, date: str, weekday: int, clock: tuple[int, int]) -> None:
    seconds = datetime.fromisoformat(at).replace(tzinfo=UTC).timestamp()
    found = LocalContext(**local_time(checked_zone(zone), seconds))
    assert found == LocalContext(zone=zone, date=date, weekday=weekday, hour=clock[0], minute=clock[1])


@pytest.mark.parametrize("name", ["Berlin", "", "../etc/passwd", "/etc/localtime", 7, None])
def test_another_name_is_refused(name: object) -> None:
    with pytest.raises(ConfigError, match="IANA"):
        checked_zone(name)
    if name is not None:
        with pytest.raises(ConfigError, match="IANA"):
            RuntimeAuthz(zone=name)  # type: ignore[arg-type]


@pytest.mark.parametrize("zone", ["Asia/Kathmandu", None])
def test_each_request_holds_the_time_of_the_configured_zone(zone: str | None) -> None:
    """A model's, a node's or a tool's; without a zone it is null."""
    pdp = StaticPDP(permit=True)
    authz = RuntimeAuthz(pdp=pdp, zone=zone, ledger=MemoryLedger(clock=FrozenClock(NOW)))
    session = authz.session(subject="alice", task="Read it", thread="t")
    session.decide("read_file", {"path": "a"})
    asked = [r.context for r in pdp.requests]
    expected = None if zone is None else LocalContext(**local_time(checked_zone(zone), NOW))
    assert asked
    assert {c.local for c in asked} == {expected}
