"""Commit changes of the task. Record each in the audit log, at once or in a retry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from langchain_runtime_authz.errors import AuthzDenied, Code, LedgerError
from langchain_runtime_authz.facts.checkpoint_head import UNRECORDED
from langchain_runtime_authz.facts.task import HumanText
from langchain_runtime_authz.ledger.base import Committed, Conflict, Query, Scope, Snapshot
from langchain_runtime_authz.ledger.changes import Change, SetMark
from langchain_runtime_authz.pep.decision_log import run_event
from langchain_runtime_authz.pep.run import ATTEMPTS, Commit, Flow, Load, Run, new_id


def trace_change(of: Run | Scope, done: Committed, texts: Sequence[HumanText], source: str) -> tuple[Any, ...]:
    """Trace a committed task change. Return the `Write` effect that records it."""
    authors = [t.author for t in texts if t.author]
    detail = {"source": source, "author": (authors or [""])[0], "texts": len(texts), "from_epoch": done.epoch - 1}
    return run_event(of, "corrected", done.now, detail=detail, epoch=done.epoch)


def unrecorded_mark(epoch: int, pinned: int, texts: Sequence[HumanText], source: str) -> SetMark:
    """Return the mark of a task change not yet audited. `pinned`: texts before it."""
    return SetMark(UNRECORDED, f"{epoch} {source} {pinned} {pinned + len(texts)}")


def clear_mark(mark: str) -> SetMark:
    """Return the change that clears `mark`, unless a newer task change replaced it."""
    return SetMark(UNRECORDED, "", instead=mark)


def settle(of: Run | Scope, before: Snapshot) -> Flow[str]:
    """Record the task change of the mark `UNRECORDED`, if set. Return the mark or ""."""
    if left := before.marks.get(UNRECORDED, ""):
        epoch, source, start, end = left.split()
        yield trace_change(of, Committed(before.now, int(epoch)), before.log[int(start) : int(end)], source)
    return left


def change_task(
    of: Run | Scope, source: str, change: Callable[[Snapshot], tuple[Sequence[Change], Sequence[HumanText]] | None]
) -> Flow[Committed | None]:
    """Commit and record the task change that `change` returns, if any.

    An earlier change that the audit log lacks is recorded first. Raises `AuthzDenied` (`stale_epoch`) if others change
    the task at each of `ATTEMPTS` tries.
    """
    scope = of.scope if isinstance(of, Run) else of
    for _ in range(ATTEMPTS):
        before: Snapshot = yield Load(scope, Query(log=True, marks=(UNRECORDED,)))
        if (made := change(before)) is None:
            return None
        yield from settle(of, before)
        changes, texts = made
        mark = unrecorded_mark(before.epoch + 1, len(before.log), texts, source)
        done: Committed | Conflict = yield Commit(scope, None, [*changes, mark])
        if isinstance(done, Committed):
            yield from record_change(of, done, mark, texts, source)
            return done
    raise AuthzDenied(Code.STALE_EPOCH, new_id())


def record_change(
    of: Run | Scope, done: Committed, mark: SetMark, texts: Sequence[HumanText], source: str
) -> Flow[None]:
    """Record a committed task change in the audit log. Then clear its ledger mark."""
    yield trace_change(of, done, texts, source)
    with suppress(LedgerError):  # if the mark stays, the change is recorded twice
        yield Commit(of.scope if isinstance(of, Run) else of, None, [clear_mark(mark.value)])
