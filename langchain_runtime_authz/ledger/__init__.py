"""Export the ledgers: `MemoryLedger`, `SqliteLedger` and `PostgresLedger`.

Each class is imported at its first use, so that only `PostgresLedger` needs the extra `postgres`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from langchain_runtime_authz.ledger.memory import MemoryLedger
    from langchain_runtime_authz.ledger.postgres import PostgresLedger
    from langchain_runtime_authz.ledger.sqlite import SqliteLedger

__all__ = ["MemoryLedger", "PostgresLedger", "SqliteLedger"]

_MODULES: Final = {"MemoryLedger": "memory", "PostgresLedger": "postgres", "SqliteLedger": "sqlite"}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
