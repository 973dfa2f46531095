"""Rows of all threads of a tenant: questions, calls in doubt, and where a jti stands."""

from __future__ import annotations

import json
from collections.abc import Sequence

from langchain_runtime_authz.ledger import base as b
from langchain_runtime_authz.ledger.rows import DOUBTS, OPEN, Row, Statement, call_row, encoded, parsed
from langchain_runtime_authz.ledger.state import Thread


def open_questions(tenant: str) -> Statement:
    """Return the statement for every open question of a tenant, least recently used thread first."""
    same = "t.tenant = a.tenant AND t.thread = a.thread"
    sql = f"SELECT t.scope, a.body FROM approval a JOIN thread t ON {same} WHERE a.tenant = ? AND a.state = 'asked'"
    return f"{sql} ORDER BY t.at, a.thread, a.key", (tenant,)


def question(row: Row) -> tuple[b.Scope, b.Approval]:
    """Read one row of `open_questions`."""
    scope, body = row
    return b.Scope(*json.loads(scope)), parsed(b.Approval, body)


def doubtful(tenant: str, key: str | None) -> Statement:
    """Return the statement for a tenant's calls without a completion, or for the call of that key."""
    columns, _, rest = DOUBTS.partition(" FROM ")
    if key is not None:
        return f"SELECT {columns}, c.at FROM {rest}c.key = ?", (tenant, encoded(key))
    return f"SELECT {columns}, c.at FROM {rest}{OPEN} ORDER BY c.at", (tenant,)


def doubt(row: Row, now: float) -> b.Doubt:
    """Read one row of `doubtful`."""
    scope, subject, expires, *call = row
    found = call_row(*call)
    if found.state == "claimed" and (expires is None or now >= expires):
        found = found._replace(state="unknown")
    return b.Doubt(b.Scope(*json.loads(scope)), json.loads(subject), found)


def opened(rows: Sequence[Row], now: float) -> dict[str, dict[str, Thread]]:
    """Return rows of doubts as `Thread.open`."""
    found: dict[str, dict[str, Thread]] = {}
    for scope, subject, call in (doubt(row, now) for row in rows):
        held = {call.jti: b.Lease(call.jti, "", (), 0, 0, int(now) + 1)}  # `doubt` has looked whether it lives
        thread = Thread(scope=scope, subject=subject, calls={call.key: call}, leases=held)
        found.setdefault(call.deed, {})[call.key] = thread
    return found


def lookup(tenant: str, jti: str) -> list[Statement]:
    """Return the statements that find a jti: as a token (thread, call, lease), and as a lease (thread)."""
    of = (tenant, encoded(jti))
    return [
        ("SELECT thread, key, lease FROM token WHERE tenant = ? AND jti = ?", of),
        ("SELECT thread FROM lease WHERE tenant = ? AND jti = ? ORDER BY thread LIMIT 1", of),
    ]


def located(results: Sequence[Sequence[Row]], jti: str) -> tuple[bytes, str | None, str] | None:
    """Read the results of `lookup`: the thread, the call whose token it is, the lease."""
    for thread, key, lease in results[0]:
        return bytes(thread), json.loads(key), json.loads(lease)
    for (thread,) in results[1]:
        return bytes(thread), None, jti
    return None
