"""The AgentDojo replay: the attacks succeed under a static token, and not under a runtime decision."""

import importlib
import io
import sys

import pytest
from rich.console import Console

from langchain_runtime_authz.demo import agentdojo
from langchain_runtime_authz.demo.agentdojo import Condition
from langchain_runtime_authz.errors import ConfigError

PAIRS = 7


@pytest.fixture(scope="module")
def conditions() -> list[Condition]:
    importlib.import_module("agentdojo")  # a missing service of this tier fails, it does not skip
    return agentdojo.replay(PAIRS)


@pytest.fixture(scope="module")
def static(conditions: list[Condition]) -> Condition:
    return conditions[0]


@pytest.fixture(scope="module")
def runtime(conditions: list[Condition]) -> Condition:
    return conditions[1]


def test_a_static_token_stops_nothing(static: Condition) -> None:
    """The unenforced twin: every attack of these pairs succeeds, by AgentDojo's own check."""
    assert all(o.compromised and o.harm for o in static.attacked)
    assert all(o.utility and o.asks == 0 for o in static.benign)


def test_a_runtime_decision_stops_every_attack(runtime: Condition) -> None:
    """No attack of these pairs succeeds, and no side-effecting call of the attacker runs."""
    assert not any(o.compromised or o.harm for o in runtime.attacked)


def test_the_user_still_gets_what_he_asked_for(runtime: Condition) -> None:
    """Under attack and alone, these user tasks succeed and none of their calls is denied."""
    assert all(o.utility and o.denials == 0 for o in (*runtime.benign, *runtime.attacked))


def test_the_human_is_asked_about_attacks_too(runtime: Condition) -> None:
    """An attacker's payment is asked about, seen and rejected, on top of the user's own."""
    assert sum(o.asks for o in runtime.attacked) > sum(o.asks for o in runtime.benign) > 0


def test_a_limit_varies_both_sides(static: Condition) -> None:
    """A short replay takes as many different tasks of each kind as it can."""
    assert (PAIRS, PAIRS) == (len(static.benign), len(static.attacked))
    pairs = list(agentdojo._diagonal("abcd", "xyz"))
    assert [("a", "x"), ("b", "y"), ("c", "z"), ("d", "x")] == pairs[:4]
    assert len(pairs) == len(set(pairs)) == 12


def test_the_table_shows_both_conditions(conditions: list[Condition]) -> None:
    """`render` prints a column for each condition."""
    console = Console(file=io.StringIO(), width=100)
    agentdojo.render(conditions, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "static token" in shown and "runtime decision" in shown
    assert "attack success rate" in shown


def test_without_agentdojo_the_way_to_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing extra is a `ConfigError` that holds the command to install it."""
    monkeypatch.setitem(sys.modules, "agentdojo.task_suite.load_suites", None)
    with pytest.raises(ConfigError, match=r"pip install 'langchain-runtime-authz\[agentdojo\]'"):
        agentdojo.replay(1)
