"""The ledger contract, kept by the ledgers that need no service."""

from __future__ import annotations

from collections.abc import Callable

from langchain_runtime_authz.ledger.base import Ledger
from langchain_runtime_authz.ledger.memory import MemoryLedger
from langchain_runtime_authz.testing.ledger_suite import LedgerContract


class TestMemoryLedger(LedgerContract):
    """The default, and the reference for every other store."""

    def make_ledger(self, clock: Callable[[], float]) -> Ledger:
        """An empty one."""
        return MemoryLedger(clock=clock)
