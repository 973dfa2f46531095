"""Hold a ledger under test, its clock, and a thread of its own for each test of the contract."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import cached_property
from typing import Any, Final

from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.ledger.base import CallRow, Committed, Conflict, Guard, Ledger, Query, Scope, Snapshot
from langchain_runtime_authz.ledger.changes import Change
from langchain_runtime_authz.testing.clock import FrozenClock

ROOT: Final = ("root",)
TTL: Final = 60


def unique(kind: str = "jti") -> str:
    """Return a name that no other test has."""
    return f"{kind}-{secrets.token_hex(8)}"


class LedgerHarness:
    """Make the ledger once for each test, and close it."""

    def make_ledger(self, clock: Callable[[], float]) -> Ledger:
        """Return a ledger whose time is `clock` (epoch seconds). Its `close()`, if any, is called."""
        raise NotImplementedError

    @cached_property
    def clock(self) -> FrozenClock:
        """Return the ledger's time."""
        return FrozenClock()

    @cached_property
    def ledger(self) -> Ledger:
        """Return the ledger under test."""
        return self.make_ledger(self.clock)

    @cached_property
    def scope(self) -> Scope:
        """Return the test's own thread."""
        return Scope(unique("tenant"), "https://issuer.example", "graph", unique("thread"))

    def teardown_method(self) -> None:
        """Close the ledger, if it can be closed."""
        getattr(self.__dict__.get("ledger"), "close", int)()

    def commit(self, *changes: Change, guard: Guard | None = None) -> Committed | Conflict:
        """Commit to the test's thread."""
        return self.ledger.commit(self.scope, guard, changes)

    def do(self, *changes: Change, guard: Guard | None = None) -> Committed:
        """Commit, and fail if it is refused."""
        done = self.commit(*changes, guard=guard)
        assert isinstance(done, Committed), done
        return done

    def refuse(self, code: Code, *changes: Change, guard: Guard | None = None) -> Conflict:
        """Commit, and fail unless it is refused with `code`."""
        done = self.commit(*changes, guard=guard)
        assert isinstance(done, Conflict), done
        assert done.code == code
        return done

    def load(self, **query: Any) -> Snapshot:
        """Load the test's thread."""
        return self.ledger.load(self.scope, Query(**query))

    def row(self, key: str) -> CallRow | None:
        """Return a call's row."""
        return self.load(calls=(key,)).calls.get(key)
