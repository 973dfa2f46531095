"""Hold a plan until the next commit of its thread, to save a commit.

A tool node's claims and denials, questions, and the end of a run all commit, and other nodes commit what is held. If the
process dies before that, the plan is lost, and its calls are decided as unplanned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from langchain_runtime_authz._locks import forkable_lock
from langchain_runtime_authz.facts.plan import PlanRecord
from langchain_runtime_authz.ledger.base import Committed, Conflict, Guard, Ledger, Query, Scope, Snapshot
from langchain_runtime_authz.ledger.changes import Change, RecordPlan

MAX_HELD: Final = 1024  # threads


class HeldPlans:
    """Loads from and commits to a ledger as if the plans that are held were in it."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.held: dict[Scope, Sequence[RecordPlan]] = {}  # thread → its plans
        self._lock = forkable_lock()

    def hold(self, scope: Scope, plans: Sequence[RecordPlan]) -> bool:
        """Hold plans of a thread, if none are held. Otherwise return False: commit them."""
        with self._lock:
            free = bool(plans) and scope not in self.held and len(self.held) < MAX_HELD
            if free:
                self.held[scope] = plans
        return free

    def load(self, scope: Scope, query: Query) -> Snapshot:
        return self._planned(scope, query, self._ledger.load(scope, query))

    async def aload(self, scope: Scope, query: Query) -> Snapshot:
        return self._planned(scope, query, await self._ledger.aload(scope, query))

    def commit(self, scope: Scope, guard: Guard | None, changes: Sequence[Change]) -> Committed | Conflict:
        held = self.held.get(scope, ())
        return self._freed(scope, held, self._ledger.commit(scope, guard, [*held, *changes]))

    async def acommit(self, scope: Scope, guard: Guard | None, changes: Sequence[Change]) -> Committed | Conflict:
        held = self.held.get(scope, ())
        return self._freed(scope, held, await self._ledger.acommit(scope, guard, [*held, *changes]))

    def _planned(self, scope: Scope, query: Query, found: Snapshot) -> Snapshot:
        """Add a held plan that the query asks for, as it would be recorded."""
        for record in self.held.get(scope, ()):
            new, known = record.plan, found.plan
            newer = query.plan == (new.agent, new.id) and (known is None or known.epoch < new.epoch)
            if newer or (query.planned_call and _plans(new, *query.planned_call)):
                found.plan = replace(new, at=found.history.steps)
        return found

    def _freed(self, scope: Scope, held: Sequence[RecordPlan], done: Committed | Conflict) -> Committed | Conflict:
        """Let go of plans that were committed."""
        if held and isinstance(done, Committed):
            with self._lock:
                if self.held.get(scope) is held:
                    del self.held[scope]
        return done


def _plans(plan: PlanRecord, agent: tuple[str, ...], call: str) -> bool:
    return plan.agent == agent and any(call == one.call_id for one in plan.calls)
