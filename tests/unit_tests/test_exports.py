"""The public surface, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import langchain_runtime_authz

HEAVY = ("langchain", "wasmtime", "typer", "agentdojo", "opa_client")


def test_all_is_what_can_be_imported() -> None:
    """`__all__` is sorted and is exactly the public names at the root."""
    public = {
        name
        for name, value in vars(langchain_runtime_authz).items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType)
        and getattr(value, "__module__", "").startswith("langchain_runtime_authz")
    }
    # The middleware is resolved when it is asked for, so that `langchain` stays optional.
    assert set(langchain_runtime_authz.__all__) - {"AuthzMiddleware"} == public - {"AuthzMiddleware"}
    assert langchain_runtime_authz.AuthzMiddleware.__name__ == "AuthzMiddleware"
    assert langchain_runtime_authz.__all__ == sorted(langchain_runtime_authz.__all__, key=_isort)


def _isort(name: str) -> tuple[int, str]:
    # Constants, classes, functions: the order in which ruff keeps `__all__`.
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def test_root_import_is_light() -> None:
    """Importing the root loads no optional or heavy dependency."""
    code = f"import sys, langchain_runtime_authz; print([m for m in {HEAVY!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_cli_import_is_light() -> None:
    """Importing the command line loads neither the engine nor what only its commands need."""
    code = (
        "import sys, langchain_runtime_authz.cli; "
        "print([m for m in sys.modules if m.startswith('langchain_runtime_authz.demo') or m in "
        "('wasmtime', 'aiohttp', 'cedarpy', 'agentdojo', 'langchain')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_ledgers_are_loaded_when_they_are_asked_for() -> None:
    """By their names; only PostgreSQL's needs its driver."""
    code = (
        "import sys; from langchain_runtime_authz.ledger import MemoryLedger, SqliteLedger; import langchain_runtime_authz.cli; "
        "print(MemoryLedger.__name__, SqliteLedger.__name__, [m for m in sys.modules if m.startswith('psycopg')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "MemoryLedger SqliteLedger []"
