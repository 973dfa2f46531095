"""The public surface, and what importing it costs."""

import pkgutil
import subprocess
import sys

import pytest

import langchain_runtime_authz
from langchain_runtime_authz import resource_server

EXPORTS = (
    *("RuntimeAuthz", "profile", "ToolProfile", "Grant", "Constraint", "Mandate", "current_call"),
    *("AuthzMiddleware", "AuthzToolNode", "AuthzCallbackHandler", "AuthzError", "AuthzDenied", "AuthzHalt"),
)
HEAVY = ("langchain", "langchain_core", "langgraph", "deepagents", "wasmtime", "typer", "agentdojo", "opa_client")


def loaded(code: str, *names: str) -> list[str]:
    """Return those of the named modules that a new process has loaded after `code`."""
    code += f"; import sys; print(*(m for m in {names!r} if m in sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return found.stdout.split()


def test_the_exports() -> None:
    """These and no others, each by its own name."""
    assert set(langchain_runtime_authz.__all__) == set(EXPORTS)
    assert langchain_runtime_authz.__all__ == sorted(langchain_runtime_authz.__all__, key=_isort)
    assert set(EXPORTS) <= set(dir(langchain_runtime_authz))
    for name in EXPORTS:
        assert getattr(langchain_runtime_authz, name).__name__ == name
    with pytest.raises(AttributeError):
        langchain_runtime_authz.Decision


def test_the_root_loads_nothing_heavy() -> None:
    """Neither the root, nor what a service needs that verifies tokens, nor the PDP's own types."""
    services = [m.name for m in pkgutil.iter_modules(resource_server.__path__, "langchain_runtime_authz.resource_server.")]
    assert len(services) >= 4
    names = ", ".join([*EXPORTS[1:7], "AuthzDenied"])
    code = f"import {', '.join(services)}; from langchain_runtime_authz.pdp import PDP, Decision, EvaluationRequest"
    assert loaded(f"{code}; from langchain_runtime_authz import {names}", *HEAVY) == []


def test_no_driver_and_no_engine_is_loaded_before_it_is_used() -> None:
    """Neither by the command line, nor by the ledgers but PostgreSQL's, nor by the modules of the PDPs."""
    code = "from langchain_runtime_authz.ledger import MemoryLedger, SqliteLedger; import langchain_runtime_authz.cli; "
    code += "import langchain_runtime_authz.pdp.wasm, langchain_runtime_authz.pdp.cedar"
    own = "langchain_runtime_authz.demo", "psycopg", "aiohttp", "cedarpy", "langchain", "wasmtime", "agentdojo"
    assert loaded(code, *own) == []


def _isort(name: str) -> tuple[int, str]:
    # Constants, classes, functions: the order in which ruff keeps `__all__`.
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)
