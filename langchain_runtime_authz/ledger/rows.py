"""A thread's rows in SQL: what brings those that a step needs, and what keeps those that it changed.

Portable between SQLite and PostgreSQL: `?` stands for a parameter. Each function makes statements; a store
runs them, all of one list in one round trip.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Any, Final, TypeVar, cast

from langchain_runtime_authz.authzen import Edge
from langchain_runtime_authz.facts.history import History
from langchain_runtime_authz.facts.plan import PlannedCall, PlanRecord
from langchain_runtime_authz.facts.provenance.observe import Sighting
from langchain_runtime_authz.facts.task import HumanText, Task
from langchain_runtime_authz.grant import Grant
from langchain_runtime_authz.ledger import base as b
from langchain_runtime_authz.ledger.schema import Version
from langchain_runtime_authz.ledger.state import Needs, Thread

__all__ = ["Fetch", "Row", "Statement", "keep", "located", "lookup", "open_questions", "question", "thread_key"]

Statement = tuple[str, Sequence[Any]]
Row = Sequence[Any]
CHUNK: Final = 500  # keys in one statement
K = TypeVar("K")
V = TypeVar("V")

_OF: Final = "tenant = ? AND thread = ?"
_LEASE: Final = f"SELECT state, body FROM lease WHERE {_OF} AND "
_CALL: Final = f"SELECT key, state, jti, result FROM call WHERE {_OF} AND "
_NEWEST: Final = (
    "SELECT m.version, m.reader, j.position, j.nonce, j.at"
    " FROM (SELECT max(version) AS version, max(min_reader) AS reader FROM migration) m LEFT JOIN"
    " (SELECT position, nonce, at FROM journal WHERE tenant = ? ORDER BY position DESC LIMIT 1) j ON true"
)
_BELOW: Final = (
    f"WITH RECURSIVE below (jti) AS (SELECT jti FROM lease WHERE {_OF} AND jti IN {{}} UNION"
    f" SELECT l.jti FROM lease l JOIN below ON l.parent = below.jti WHERE l.tenant = ? AND l.thread = ?) "
)


def thread_key(scope: b.Scope) -> bytes:
    """What names a thread in every table. Of the JSON form, so that no separator in a part reads as two parts."""
    return hashlib.sha256(json.dumps(scope).encode()).digest()


class _Tracked(dict[K, V]):
    """Rows that know which of them were written since they were brought."""

    __slots__ = ("touched",)

    def __init__(self) -> None:
        super().__init__()
        self.touched: set[K] = set()

    def __setitem__(self, key: K, value: V) -> None:
        self.touched.add(key)
        super().__setitem__(key, value)

    def __delitem__(self, key: K) -> None:
        self.touched.add(key)
        super().__delitem__(key)

    def pop(self, key: K, default: Any = None) -> Any:
        self.touched.add(key)
        return super().pop(key, default)


def _touched(rows: dict[K, Any]) -> set[K]:
    return cast("_Tracked[K, Any]", rows).touched  # made so by `Fetch.statements`


def _text(value: object) -> str:
    """Any string, or a list of them, in ASCII."""
    return json.dumps(value, separators=(",", ":"))


def _in(values: Collection[object]) -> str:
    return f"({','.join('?' * len(values))})"


@dataclass(slots=True)
class Fetch:
    """The rows of one thread that `needs` names, the tenant's newest commit, and the schema.

    Run `statements`, hand their results to `read`, and `thread`, `position`, `latest` and `version` are there.
    """

    tenant: str
    key: bytes
    needs: Needs
    locked: str = ""  # behind the thread's row: what locks it
    thread: Thread = field(init=False)
    before: Thread = field(init=False)  # subject, epoch, history, revocations and deliveries as they were
    version: Version = field(init=False)
    position: int = 0
    nonce: str = ""
    latest: float = 0.0
    _readers: list[Callable[[Sequence[Row]], None]] = field(default_factory=list)

    def statements(self) -> list[Statement]:
        """What to run, in this order."""
        t = self.thread = Thread(
            leases=_Tracked(), plans=_Tracked(), by_call=_Tracked(), calls=_Tracked(), approvals=_Tracked(),
            edges=_Tracked(), budgets=_Tracked(), rates=_Tracked(), marks=_Tracked(),
            values=_Tracked(),
        )  # fmt: skip
        n = self.needs
        found: list[Statement] = []
        of = (self.tenant, self.key)

        def add(reader: Callable[[Sequence[Row]], None], sql: str, *more: Any) -> None:
            self._readers.append(reader)
            found.append((sql, (*of, *more)))

        add(self._thread, f"SELECT scope, subject, history FROM thread WHERE {_OF}{self.locked}")
        newest = "ORDER BY epoch DESC, digest DESC LIMIT 1"
        add(self._epoch, f"SELECT epoch, digest, body FROM epoch WHERE {_OF} {newest}")
        add(self._revoked, f"SELECT agent, lifted FROM revocation WHERE {_OF} ORDER BY seq")
        self._readers.append(self._journal)
        found.append((_NEWEST, (self.tenant,)))

        if n.leases:
            add(self._leases, f"{_LEASE}jti IN {_in(n.leases)}", *map(_text, n.leases))
        if n.living:
            add(self._leases, f"{_LEASE}state = 'live'")
        if n.below:
            below = _BELOW.format(_in(n.below))
            more = (*map(_text, n.below), *of, *of)
            add(self._leases, f"{below}{_LEASE}jti IN (SELECT jti FROM below)", *more)
            # A child's lease is never older than its parent's, and a call may be held by a lease that is gone.
            held = f"(jti IN (SELECT jti FROM below) OR jti IN {_in(n.below)})"
            add(self._calls, f"{below}{_CALL}state = 'claimed' AND {held}", *more, *map(_text, n.below))
        if n.calls:
            keys = _in(n.calls)
            add(self._calls, f"{_CALL}key IN {keys}", *map(_text, n.calls))
            holders = f"SELECT jti FROM call WHERE {_OF} AND state = 'claimed' AND key IN {keys}"
            add(self._leases, f"{_LEASE}jti IN ({holders})", *of, *map(_text, n.calls))
        columns = f"SELECT body FROM approval WHERE {_OF} AND "
        if n.approvals:
            add(self._approvals, f"{columns}key IN {_in(n.approvals)}", *map(_text, n.approvals))
        if n.open:
            add(self._approvals, f"{columns}state IN ('asked', 'approved') ORDER BY key")
        for plan in n.plans:
            where = (_text(plan[0]), _text(plan[1]))
            add(self._plans, f"SELECT body FROM plan WHERE {_OF} AND agent = ? AND message = ?", *where)
        for agent, call in n.by_call:
            record = (
                f"SELECT message, epoch FROM planned WHERE {_OF} AND agent = ? AND call = ? ORDER BY seq DESC LIMIT 1"
            )
            sql = f"SELECT body FROM plan WHERE {_OF} AND agent = ? AND (message, epoch) = ({record})"
            add(self._planned(agent, call), sql, _text(agent), *of, _text(agent), _text(call))
        if n.edges:
            add(self._edges, f"SELECT parent, child, kind FROM edge WHERE {_OF} ORDER BY seq")
        if n.budgets:
            names = [_text(c) for c in n.budgets]
            add(self._budgets, f"SELECT counter, spent FROM budget WHERE {_OF} AND counter IN {_in(names)}", *names)
        for counter, span in n.rates:
            sql = f"SELECT counter, span, times FROM rate WHERE {_OF} AND counter = ? AND span = ?"
            add(self._rates, sql, _text(counter), span)
        if n.marks:
            names = [_text(m) for m in n.marks]
            add(self._marks, f"SELECT name, value FROM mark WHERE {_OF} AND name IN {_in(names)}", *names)
        for prefix in n.unmarked:
            begin = _text(prefix)[:-1]  # names are JSON
            add(self._marks, f"SELECT name, value FROM mark WHERE {_OF} AND substr(name, 1, ?) = ?", len(begin), begin)
        for some in _chunks(sorted(n.values)):
            sql = f"SELECT body FROM value WHERE {_OF} AND key IN {_in(some)}"
            add(self._values, sql, *map(_text, some))
        if n.log:
            add(self._texts(t.log), f"SELECT body FROM said WHERE {_OF} ORDER BY seq")
        if n.pending:
            add(self._texts(t.pending), f"SELECT body FROM delivery WHERE {_OF} ORDER BY seq")
        return found

    def read(self, results: Sequence[Sequence[Row]]) -> None:
        """Take the results of `statements`."""
        for reader, rows in zip(self._readers, results, strict=True):
            reader(rows)
        t = self.thread
        brought: tuple[dict[Any, Any], ...] = (
            t.leases, t.plans, t.by_call, t.calls, t.approvals, t.edges, t.budgets, t.rates, t.marks,
            t.values,
        )  # fmt: skip
        for table in brought:
            _touched(table).clear()
        self.before = replace(t, revoked=set(t.revoked), pending=list(t.pending))

    def _thread(self, rows: Sequence[Row]) -> None:
        for scope, subject, history in rows:
            t = self.thread  # without a scope it is only a row to lock
            t.exists, t.subject, t.history = bool(scope), json.loads(subject), _history(json.loads(history))

    def _epoch(self, rows: Sequence[Row]) -> None:
        for epoch, digest, body in rows:
            said = json.loads(body)
            self.thread.epoch = epoch
            self.thread.task = Task(said.get("id", ""), digest, said.get("text", ""), said.get("corrections", 0))

    def _revoked(self, rows: Sequence[Row]) -> None:
        for agent, lifted in rows:
            change = self.thread.revoked.discard if lifted else self.thread.revoked.add
            change(tuple(json.loads(agent)))

    def _journal(self, rows: Sequence[Row]) -> None:
        for version, reader, position, nonce, at in rows:
            self.version = Version(version or 0, reader or 0)
            self.position, self.nonce, self.latest = position or 0, nonce or "", at or 0.0

    def _leases(self, rows: Sequence[Row]) -> None:
        for state, body in rows:
            held = json.loads(body)
            grant = None if held["grant"] is None else Grant.from_json(held["grant"])
            lease = b.Lease(**{**_known(b.Lease, held), "grant": grant, "state": state})
            self.thread.leases[lease.jti] = lease

    def _calls(self, rows: Sequence[Row]) -> None:
        for key, state, jti, result in rows:
            row = b.CallRow(json.loads(key), state, json.loads(jti), None if result is None else json.loads(result))
            self.thread.calls[row.key] = row

    def _approvals(self, rows: Sequence[Row]) -> None:
        for (body,) in rows:
            asked = b.Approval(**_known(b.Approval, json.loads(body)))
            self.thread.approvals[asked.call_key] = asked

    def _plans(self, rows: Sequence[Row]) -> None:
        for (body,) in rows:
            plan = _plan(json.loads(body))
            known = self.thread.plans.get((plan.agent, plan.id), {})
            self.thread.plans[plan.agent, plan.id] = {**known, plan.epoch: plan}

    def _planned(self, agent: b.AgentPath, call: str) -> Callable[[Sequence[Row]], None]:
        def read(rows: Sequence[Row]) -> None:
            for (body,) in rows:
                self.thread.by_call[(agent, call)] = _plan(json.loads(body))

        return read

    def _edges(self, rows: Sequence[Row]) -> None:
        for row in rows:
            parent, child, kind = map(json.loads, row)
            edge = Edge.model_validate({"from": parent, "to": child, "kind": kind})
            self.thread.edges[(parent, child, kind)] = edge

    def _budgets(self, rows: Sequence[Row]) -> None:
        for counter, spent in rows:
            self.thread.budgets[json.loads(counter)] = spent

    def _rates(self, rows: Sequence[Row]) -> None:
        for counter, span, times in rows:
            self.thread.rates[(json.loads(counter), span)] = tuple(json.loads(times))

    def _marks(self, rows: Sequence[Row]) -> None:
        for name, value in rows:
            self.thread.marks[json.loads(name)] = json.loads(value)

    def _values(self, rows: Sequence[Row]) -> None:
        for (body,) in rows:
            seen = tuple(Sighting(*one[: len(Sighting._fields)]) for one in json.loads(body))
            self.thread.values[seen[0].key] = seen

    def _texts(self, texts: list[HumanText]) -> Callable[[Sequence[Row]], None]:
        def read(rows: Sequence[Row]) -> None:
            texts.extend(HumanText(**_known(HumanText, json.loads(body))) for (body,) in rows)

        return read


def keep(f: Fetch, scope: b.Scope, now: float) -> list[Statement]:
    """What keeps the thread as `state.apply` left it."""
    t, before = f.thread, f.before
    of = (f.tenant, f.key)
    found: list[Statement] = []

    def add(sql: str, *values: Any) -> None:
        found.append((sql, values))

    add(_PUT_THREAD, *of, _text(scope), _text(t.subject), _text(_fields(t.history)), now)
    if (t.epoch, t.task) != (before.epoch, before.task):
        body = _text({"id": t.task.id, "text": t.task.text, "corrections": t.task.corrections})
        add(_PUT_EPOCH, *of, t.epoch, t.task.digest, body, now)
    for text in t.log:  # a commit does not bring what was said before
        add(f"INSERT INTO said ({_KEY}, epoch, body) VALUES (?, ?, ?, ?)", *of, t.epoch, _text(_fields(text)))
    if t.pending != before.pending:
        add(f"DELETE FROM delivery WHERE {_OF}", *of)
        for text in t.pending:
            add(f"INSERT INTO delivery ({_KEY}, body) VALUES (?, ?, ?)", *of, _text(_fields(text)))
    for agent in sorted(t.revoked ^ before.revoked):
        add(_PUT_REVOCATION, *of, _text(agent), int(agent not in t.revoked), now)
    for jti in _touched(t.leases):
        lease = t.leases[jti]
        body = _text({**_fields(lease), "grant": None if lease.grant is None else lease.grant.to_json()})
        parent = None if lease.parent is None else _text(lease.parent)
        add(_PUT_LEASE, *of, _text(jti), parent, lease.state, lease.expires_at, body)
    for key in _touched(t.calls):
        row = t.calls.get(key)
        if row is None:
            add(f"DELETE FROM call WHERE {_OF} AND key = ?", *of, _text(key))
        else:
            result = None if row.result is None else _text(row.result)
            add(_PUT_CALL, *of, _text(key), row.state, _text(row.jti), result)
    for jti, call, lease_jti in t.issued:
        if call is not None:
            add(_PUT_TOKEN, f.tenant, _text(jti), f.key, _text(call), _text(lease_jti))
    for key in _touched(t.approvals):
        asked = t.approvals.get(key)
        if asked is None:
            add(f"DELETE FROM approval WHERE {_OF} AND key = ?", *of, _text(key))
        else:
            add(_PUT_APPROVAL, *of, _text(key), asked.state, _text(_fields(asked)))
    for counter in _touched(t.budgets):
        add(_PUT_BUDGET, *of, _text(counter), t.budgets[counter])
    for counter, span in _touched(t.rates):
        add(_PUT_RATE, *of, _text(counter), span, _text(t.rates[counter, span]))
    for name in _touched(t.marks):
        if name in t.marks:
            add(_PUT_MARK, *of, _text(name), _text(t.marks[name]))
        else:
            add(f"DELETE FROM mark WHERE {_OF} AND name = ?", *of, _text(name))
    for some in _chunks(sorted(_touched(t.values))):
        add(_put("value", ("tenant", "thread", "key"), "body", rows=len(some)), *_flat(of, some, t.values))
    for message in _touched(t.plans):
        for plan in t.plans[message].values():
            where = (_text(plan.agent), _text(plan.id), plan.epoch)
            add(
                f"INSERT INTO plan ({_KEY}, agent, message, epoch, body) VALUES (?, ?, ?, ?, ?, ?){_ONCE}",
                *of,
                *where,
                _text(_fields(plan)),
            )
    for agent, call_id in _touched(t.by_call):
        plan = t.by_call[agent, call_id]
        sql = f"INSERT INTO planned ({_KEY}, agent, call, message, epoch) VALUES (?, ?, ?, ?, ?, ?)"
        add(sql, *of, _text(agent), _text(call_id), _text(plan.id), plan.epoch)
    for edge in [e for e in t.edges if e in _touched(t.edges)]:
        add(f"INSERT INTO edge ({_KEY}, parent, child, kind) VALUES (?, ?, ?, ?, ?){_ONCE}", *of, *map(_text, edge))
    return found


_KEY: Final = "tenant, thread"
_ONCE: Final = " ON CONFLICT DO NOTHING"


@cache
def _put(table: str, key: tuple[str, ...], *columns: str, rows: int = 1) -> str:
    names = (*key, *columns)
    new = ", ".join(f"{c} = excluded.{c}" for c in columns)
    return (
        f"INSERT INTO {table} ({', '.join(names)}) VALUES {', '.join([_in(names)] * rows)} "
        f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET {new}"
    )


_PUT_THREAD: Final = _put("thread", ("tenant", "thread"), "scope", "subject", "history", "at")
_PUT_EPOCH: Final = f"INSERT INTO epoch ({_KEY}, epoch, digest, body, at) VALUES (?, ?, ?, ?, ?, ?){_ONCE}"
_PUT_REVOCATION: Final = f"INSERT INTO revocation ({_KEY}, agent, lifted, at) VALUES (?, ?, ?, ?, ?)"
_PUT_LEASE: Final = _put("lease", ("tenant", "thread", "jti"), "parent", "state", "expires", "body")
_PUT_CALL: Final = _put("call", ("tenant", "thread", "key"), "state", "jti", "result")
_PUT_TOKEN: Final = _put("token", ("tenant", "jti"), "thread", "key", "lease")
_PUT_APPROVAL: Final = _put("approval", ("tenant", "thread", "key"), "state", "body")
_PUT_BUDGET: Final = _put("budget", ("tenant", "thread", "counter"), "spent")
_PUT_MARK: Final = _put("mark", ("tenant", "thread", "name"), "value")
_PUT_RATE: Final = _put("rate", ("tenant", "thread", "counter", "span"), "times")


def _flat(of: tuple[str, bytes], keys: Sequence[str], values: Mapping[str, tuple[Sighting, ...]]) -> list[Any]:
    return [column for key in keys for column in (*of, _text(key), _text(values[key]))]


def _chunks(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    """Few enough for one statement's parameters."""
    for start in range(0, len(keys), CHUNK):
        yield keys[start : start + CHUNK]


def _fields(row: Any) -> dict[str, Any]:
    return {f.name: getattr(row, f.name) for f in fields(row)}


def _known(kind: Any, body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that this version knows: a newer one may have kept more."""
    return {f.name: _frozen(body[f.name]) for f in fields(kind) if f.name in body}


def _frozen(value: Any) -> Any:
    """JSON knows no tuples, and rows no lists."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _history(body: Mapping[str, Any]) -> History:
    return History(**_known(History, body))


def _plan(body: Mapping[str, Any]) -> PlanRecord:
    calls = tuple(PlannedCall(*call[: len(PlannedCall._fields)]) for call in body["calls"])
    return PlanRecord(**{**_known(PlanRecord, body), "calls": calls})


def open_questions(tenant: str) -> Statement:
    """Every open question of a tenant, of the thread that was used least recently first."""
    same = "t.tenant = a.tenant AND t.thread = a.thread"
    sql = f"SELECT t.scope, a.body FROM approval a JOIN thread t ON {same} WHERE a.tenant = ? AND a.state = 'asked'"
    return f"{sql} ORDER BY t.at, a.thread, a.key", (tenant,)


def question(row: Row) -> tuple[b.Scope, b.Approval]:
    """One row of `open_questions`."""
    scope, body = row
    return b.Scope(*json.loads(scope)), b.Approval(**_known(b.Approval, json.loads(body)))


def lookup(tenant: str, jti: str) -> list[Statement]:
    """Where a jti is: as a token (thread, call, lease), and as a lease (thread)."""
    of = (tenant, _text(jti))
    return [
        ("SELECT thread, key, lease FROM token WHERE tenant = ? AND jti = ?", of),
        ("SELECT thread FROM lease WHERE tenant = ? AND jti = ? ORDER BY thread LIMIT 1", of),
    ]


def located(results: Sequence[Sequence[Row]], jti: str) -> tuple[bytes, str | None, str] | None:
    """What `lookup` found: the thread, the call whose token it is, the lease."""
    for thread, key, lease in results[0]:
        return bytes(thread), json.loads(key), json.loads(lease)
    for (thread,) in results[1]:
        return bytes(thread), None, jti
    return None
