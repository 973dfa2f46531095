"""The suite that ships finds a store that forgets a kind of change, a part of a snapshot, or that a commit is whole."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest

from langchain_runtime_authz.facts.plan import PlanRecord
from langchain_runtime_authz.facts.task import HumanText
from langchain_runtime_authz.ledger import call_changes, changes
from langchain_runtime_authz.ledger.base import (
    Approval,
    CallRow,
    Committed,
    Conflict,
    Lease,
    Ledger,
    Query,
    Scope,
    Snapshot,
)
from langchain_runtime_authz.ledger.changes import Change, Unrefusable
from langchain_runtime_authz.ledger.memory import MemoryLedger
from langchain_runtime_authz.testing.ledger_suite import LedgerContract, UnknownChange

KINDS = sorted({k for m in (call_changes, changes) for k in vars(m).values() if isinstance(k, type) and issubclass(k, Change)} - {Change, Unrefusable, UnknownChange}, key=lambda k: k.__name__)
EMPTY = {f.name: getattr(MemoryLedger(clock=lambda: 0.0).load(Scope("t", "i", "g", "x"), Query()), f.name) for f in fields(Snapshot)}


HOLDERS = {"Approval": ("approvals", "questions"), "CallRow": ("calls",), "HumanText": ("log", "pending"), "Lease": ("lease",), "PlanRecord": ("plan",)}
PARTS: list[tuple[str, str]] = [(row.__name__, part) for row in (Approval, CallRow, HumanText, Lease, PlanRecord) for part in getattr(row, "_fields", None) or [f.name for f in fields(row)]]  # type: ignore[arg-type]
NOTHING = "lost"


class Broken(MemoryLedger):
    forgets: type[Change] | None = None
    hides = ""
    loses: tuple[str, str] = ("", "")
    joins: Any = staticmethod(lambda scope: scope)
    halves = False

    def lost(self, row: Any) -> Any:
        part = {self.loses[1]: NOTHING}
        return row and (row._replace(**part) if hasattr(row, "_replace") else replace(row, **part))

    def load(self, scope: Scope, query: Query) -> Snapshot:
        seen = super().load(self.joins(scope), query)
        if self.hides:
            setattr(seen, self.hides, EMPTY[self.hides])
        for name in HOLDERS.get(self.loses[0], ()):
            rows = getattr(seen, name)
            many = tuple(map(self.lost, rows)) if isinstance(rows, tuple) else {k: self.lost(v) for k, v in rows.items()} if isinstance(rows, dict) else self.lost(rows)
            setattr(seen, name, many)
        return seen

    def commit(self, scope: Scope, guard: Any, changes: Any) -> Committed | Conflict:
        kept = [change for change in changes if self.forgets is None or not isinstance(change, self.forgets)]
        done = super().commit(self.joins(scope), guard, kept)
        if self.halves and isinstance(done, Conflict):
            super().commit(scope, guard, kept[:-1])
        return done


def found(**broken: Any) -> bool:
    class Contract(LedgerContract):
        def make_ledger(self, clock: Callable[[], float]) -> Ledger:
            return type("Made", (Broken,), broken)(clock=clock)  # type: ignore[no-any-return]

    try:
        Contract().test_it_answers_as_the_reference_does()
    except AssertionError:
        return True
    return False


def test_a_whole_store_passes() -> None:
    assert not found()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_forgotten_change_is_found(kind: type[Change]) -> None:
    assert found(forgets=kind)


@pytest.mark.parametrize("part", sorted(EMPTY))
def test_a_forgotten_part_is_found(part: str) -> None:
    assert found(hides=part)


@pytest.mark.parametrize(("row", "part"), PARTS)
def test_a_lost_column_is_found(row: str, part: str) -> None:
    assert found(loses=(row, part))


@pytest.mark.parametrize("part", Scope._fields)
def test_joined_threads_are_found(part: str) -> None:
    """Threads that differ in one part of the scope, or by a separator, are not one."""
    assert found(joins=staticmethod(lambda scope: scope._replace(**{part: getattr(scope, part).partition("/%")[0]})))


def test_half_a_commit_is_found() -> None:
    assert found(halves=True)
