"""An obligation is understood to the last property, or not at all."""

from typing import Any

import pytest

from langchain_runtime_authz.evaluation import Obligation
from langchain_runtime_authz.ledger.call_changes import SpendBudget, SpendRate
from langchain_runtime_authz.pep.obligations import QuestionTerms, change_demanded


def obligation(kind: str, **properties: Any) -> Obligation:
    return Obligation(id="o", type=kind, properties=properties)


RATE: dict[str, Any] = {"counter": "pay", "window": 60, "max": 5}
TOOLS: dict[str, Any] = {"tools": [], "provider_tools": []}
UNDERSTOOD: list[tuple[str, dict[str, Any], object]] = [
    ("require_approval", {}, True), ("require_approval", {"expires_in": 1}, True), ("revoke", {}, True),
    ("withhold_tools", {"tools": [], "provider_tools": ["web"]}, True), ("revoke", {"because": "x"}, True),
    ("rotate", {"because": "x"}, True), ("redact", {"fields": ["iban"]}, True), ("redact", {"fields": ["iban", "pin"]}, True),
    ("rate_limit", RATE, SpendRate("pay", 60, 5)), ("rate_limit", {**RATE, "window": 1, "max": 0}, SpendRate("pay", 1, 0)),
    ("budget", {"counter": "pay", "max": 3}, SpendBudget("policy:pay", 3)), ("notify", {"channel": "log"}, True),
]
NOT_UNDERSTOOD: dict[str, list[dict[str, Any]]] = {
    "": [{}], "Redact": [{"fields": ["iban"]}], "notify": [{}, {"channel": ""}, {"channel": ["log"]}],
    "budget": [
        {"counter": "pay"}, {"counter": "", "max": 1}, {"counter": "pay", "max": True},
        {"counter": "pay", "max": 2**53 + 1}, {"counter": "pay", "max": 1, "per": "subject"},
    ],
    "require_approval": [{"aprovers": {"min": 2}}, *({"expires_in": n} for n in (10**30, 0, -1, "60", True, None))],
    "redact": [
        {"fields": ["iban"], "paths": ["pin"]}, {}, {"field": ["iban"]},
        *({"fields": names} for names in ([], "iban", ["iban", 1], {"iban": True})),
    ],
    "withhold_tools": [
        {**TOOLS, "models": ["a"]}, {}, {"tools": ["a"]}, {"provider_tools": ["a"]}, {**TOOLS, "tools": "a"}, {**TOOLS, "tools": [1]},
    ],
    "rate_limit": [
        {}, *({n: RATE[n] for n in RATE if n != left} for left in RATE), {**RATE, "per": "subject"}, {**RATE, "counter": 1},
        *({**RATE, "window": n} for n in (10**30, 0, -1, True, 60.0, "60")), *({**RATE, "max": n} for n in (-1, True, None)),
    ],
}


@pytest.mark.parametrize(("kind", "properties", "demanded"), UNDERSTOOD, ids=str)
def test_what_is_understood(kind: str, properties: dict[str, Any], demanded: object) -> None:
    """What must be committed with the permit, or that there is nothing to commit."""
    assert change_demanded(obligation(kind, **properties)) == demanded


@pytest.mark.parametrize(("kind", "properties"), [(k, p) for k, each in NOT_UNDERSTOOD.items() for p in each], ids=str)
def test_what_is_not_understood(kind: str, properties: dict[str, Any]) -> None:
    """An unknown type, and a known one with properties of another shape, or with one more: it may be what counts."""
    assert change_demanded(obligation(kind, **properties)) is None


def test_a_list_of_nobody_is_not_anybody() -> None:
    """A rule may find nobody who may approve. Then only those may who are named for later."""
    term = QuestionTerms.of({"approvers": {"who": []}, "fallback": {"after": 60, "who": ["user:carol"]}})
    assert term is not None
    assert [term.admits(who) for who in ("user:bob", "user:carol")] == [False, True]
    assert QuestionTerms().strictest(term).eligible and not QuestionTerms().eligible
