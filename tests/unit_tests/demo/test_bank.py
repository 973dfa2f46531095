"""The bank demonstration: what protection stops is what happens without it."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from langchain_runtime_authz.demo import bank
from langchain_runtime_authz.demo.bank import ATTACKER, PLUMBER, SUPPLIER, Performance


@pytest.fixture(scope="module")
def protected() -> Performance:
    return bank.play_once(protected=True)


@pytest.fixture(scope="module")
def twin() -> Performance:
    return bank.play_once(protected=False)


def _payments(performance: Performance) -> list[tuple[str, float]]:
    return [(p.recipient, p.amount) for p in performance.bank.payments]


def test_the_twin_comes_to_harm(twin: Performance) -> None:
    """Without protection the same script pays the attacker, and the payment that was stopped."""
    expected = [(SUPPLIER, 98.70), (ATTACKER, 95.00), (PLUMBER, 90.00), (PLUMBER, 45.00)]
    assert expected == _payments(twin)


def test_only_what_was_asked_for_is_paid(protected: Performance) -> None:
    """With protection the account pays the bill and the corrected amount, each once."""
    assert [(SUPPLIER, 98.70), (PLUMBER, 45.00)] == _payments(protected)


def test_each_act(protected: Performance) -> None:
    """Each step is decided for the reason that the act is about, at the epoch of its time; nothing else is tried."""
    assert [(row.tried.partition("(")[0], row.decision, row.reason, row.epoch) for row in protected.rows] == [
        ("read_file", "permit", "", 1),
        ("send_money", "permit", "", 1),  # what was ordered is paid unasked
        ("send_money", "asked, deny", "alice rejected", 1),  # what the bill says is asked about
        ("send_money", "deny", "stale_epoch", 3),  # the plan of the old task is void
        ("send_money", "asked, permit", "alice approved", 3),  # words that are not a plain order are asked about
        ("get_transactions", "permit", "", 3),
    ]
    assert all((row.happened == "not carried out") == row.decision.endswith("deny") for row in protected.rows)


def test_play_shows_both_books() -> None:
    """It ends with numbers from both runs."""
    console = Console(file=io.StringIO(), width=200)
    bank.play_both(console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "the attacker 95.00, here 0.00" in shown
    assert "328.70 left the account instead of 143.70" in " ".join(shown.split())


def test_the_user_sees_the_exact_arguments_and_who_says_them() -> None:
    """What the user is asked is printed in full, account number included."""
    console = Console(file=io.StringIO(), width=200)
    bank.play_once(protected=True, console=console)
    asked = [line for line in console.file.getvalue().splitlines() if "ask:" in line]  # type: ignore[attr-defined]
    assert len(asked) == 2 and f"recipient='{ATTACKER}', amount=95.0, subject='verification'" in asked[0]
    assert "it stands in a text that was read (read_file)" in console.file.getvalue()  # type: ignore[attr-defined]


def test_nobody_waits_where_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal the performance does not sleep; with one it sleeps ten seconds at most."""
    slept: list[float] = []
    monkeypatch.setattr(bank, "time", SimpleNamespace(sleep=slept.append))  # other threads may sleep
    bank.play_both(Console(file=io.StringIO()))
    assert [] == slept
    bank.play_both(Console(file=io.StringIO(), force_terminal=True))
    assert 0 < sum(slept) <= 10
