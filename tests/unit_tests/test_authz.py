"""What `RuntimeAuthz` is made of: parts that are refused, and methods on either road."""

import inspect
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from langchain_runtime_authz import RuntimeAuthz
from langchain_runtime_authz.audit.sinks import MemorySink
from langchain_runtime_authz.authz import TaskSources
from langchain_runtime_authz.credential.issuer import LocalIssuer
from langchain_runtime_authz.credential.keyring import KeyDirectory, KeyRing
from langchain_runtime_authz.credential.signer import SigningKey
from langchain_runtime_authz.errors import ConfigError
from langchain_runtime_authz.ledger import MemoryLedger, SqliteLedger
from langchain_runtime_authz.pdp.base import ObserveOnly
from langchain_runtime_authz.pdp.compose import DenyOverrides
from langchain_runtime_authz.pdp.wasm import WasmPDP
from langchain_runtime_authz.testing import StaticPDP


def lasting(path: Path) -> dict[str, Any]:
    return {
        "ledger": SqliteLedger(path / "ledger.db"), "audit": path / "audit.jsonl",
        "issuer": LocalIssuer(KeyDirectory.create(path / "keys")),
    }


def refused(**parts: Any) -> str:
    with pytest.raises(ConfigError, match="not for production") as caught:
        RuntimeAuthz.production(**parts)
    return str(caught.value)


def test_production_names_every_part_that_does_not_last() -> None:
    """In one error, with what to give instead."""
    for parts in ({}, {"ledger": MemoryLedger(), "audit": MemorySink(), "issuer": LocalIssuer()}):
        text = refused(**parts)
        for word in ("`ledger`", "PostgresLedger", "`audit`", "`issuer`", "KeyDirectory"):
            assert word in text
        assert "`pdp`" not in text


def test_production_takes_parts_that_last(tmp_path: Path) -> None:
    parts = lasting(tmp_path)
    authz = RuntimeAuthz.production(**parts, tenant="acme")
    assert (authz.tenant, authz.ledger) == ("acme", parts["ledger"])


@pytest.mark.parametrize(("part", "word"), [
    ({"pdp": ObserveOnly(WasmPDP())}, "only observes"),
    ({"pdp": DenyOverrides(WasmPDP(), ObserveOnly(WasmPDP()))}, "only observes"),
    ({"pdp": StaticPDP(True)}, "`StaticPDP`"), ({"ledger": None}, "`ledger`"), ({"audit": None}, "`audit`"),
    ({"issuer": LocalIssuer(KeyRing())}, "`issuer`"), ({"issuer": LocalIssuer(SigningKey.generate())}, "`issuer`"),
], ids=lambda v: v if isinstance(v, str) else next(iter(v)))
def test_production_refuses_one(part: dict[str, Any], word: str, tmp_path: Path) -> None:
    """Each alone, however deep an observer is hidden."""
    text = refused(**{**lasting(tmp_path), **part})
    assert word in text and text.count("; give") == 1


def test_a_key_from_a_file_lasts(tmp_path: Path) -> None:
    key = SigningKey.from_pem(SigningKey.generate().to_pem())
    RuntimeAuthz.production(**{**lasting(tmp_path), "issuer": LocalIssuer(key)})


@pytest.mark.parametrize("wrong", [{"channels": "messages"}, {"channels": ()}, {"channels": (5,)}, {"memory": ["memories"]}, {"memory": [()]}])
def test_task_sources_are_names(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="sequence of names"):
        TaskSources(**wrong)


def test_task_sources_are_one_value() -> None:
    sources = TaskSources(["messages", "chat"], memory=[["memories", "{subject}"]])  # type: ignore[arg-type, list-item]
    assert sources == TaskSources(("messages", "chat"), (("memories", "{subject}"),))
    assert TaskSources() == TaskSources(("messages",), ())


def test_each_operation_has_two_roads() -> None:
    """One that blocks and one that does not, with one signature and their own names."""
    names = ["session", "correct", "approvals", "approve", "deny_approval", "data_changed", "revoke", "reinstate"]
    for name in names:
        one, other = getattr(RuntimeAuthz, name), getattr(RuntimeAuthz, f"a{name}")
        assert inspect.iscoroutinefunction(other) and not inspect.iscoroutinefunction(one)
        assert (one.__name__, other.__name__) == (name, f"a{name}")
        assert inspect.signature(one) == inspect.signature(other) and one.__doc__
        assert other.__doc__
    signature = inspect.signature(RuntimeAuthz.production)
    assert {**signature.parameters}.keys() == {**inspect.signature(RuntimeAuthz).parameters}.keys()


@pytest.mark.parametrize(("tool", "warned"), [("send_mony", True), ("send_money", False), ("look_up", False)])
def test_a_misspelt_tool_of_a_mandate_is_told_at_the_start(tool: str, warned: bool) -> None:
    """A tool without a profile, whose name is like no other, may be ordered."""
    authz = RuntimeAuthz(profiles={"send_money": {"effect": "pay"}})
    with pytest.warns(UserWarning, match="is `send_money` meant") if warned else nullcontext():
        authz.run(subject="alice", mandate={"steps": [{"id": "a", "tool": tool}]})
