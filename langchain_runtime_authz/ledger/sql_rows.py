"""Write the SQL that reads and stores a thread's rows, and parse the rows.

One statement reads the rows in `Needs`. The SQL works in SQLite and PostgreSQL. `?` stands for a parameter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, lru_cache
from math import inf
from operator import attrgetter
from typing import Any, Final, NamedTuple, TypeVar

from langchain_runtime_authz.digest import json_encoder
from langchain_runtime_authz.evaluation import Edge
from langchain_runtime_authz.facts.history import History
from langchain_runtime_authz.facts.output_reading import SeenValue
from langchain_runtime_authz.facts.plan import PlannedCall, PlanRecord
from langchain_runtime_authz.facts.task import HumanText, Task
from langchain_runtime_authz.grant import Grant
from langchain_runtime_authz.ledger import base as b
from langchain_runtime_authz.ledger.schema import ASKING, OPEN, Version
from langchain_runtime_authz.ledger.thread_cache import CachedThread
from langchain_runtime_authz.ledger.thread_state import Needs, Thread

Statement = tuple[str, Sequence[Any]]
Row = Sequence[Any]
V = TypeVar("V")
CHUNK: Final = 500  # keys in one statement

_OF: Final = "tenant = ? AND thread = ?"
_ONCE: Final = " ON CONFLICT DO NOTHING"
_ENCODE: Final = json_encoder(ascii_only=True, finite=False, ordered=False)
_STRING: Final = json.encoder.encode_basestring_ascii
_DECODE: Final = json.JSONDecoder().raw_decode  # does not skip blanks
_SEQ: Final = "CAST(seq AS DOUBLE PRECISION)"
_LEASE: Final = f"state, body FROM lease WHERE {_OF} AND "
_CALL: Final = f"key, state, jti, result, deed, about FROM call WHERE {_OF} AND "
_APPROVAL: Final = f"body FROM approval WHERE {_OF} AND "
_MARK: Final = f"name, value FROM mark WHERE {_OF} AND "
_PLAN: Final = f"body FROM plan WHERE {_OF} AND agent = ? AND "
_PLANNED: Final = f"SELECT message, epoch FROM planned WHERE {_OF} AND agent = ? AND call = ? ORDER BY seq DESC LIMIT 1"
_NEWEST: Final = (
    "m.version, m.reader, j.position, j.nonce, t.seen"
    " FROM (SELECT max(version) AS version, max(min_reader) AS reader FROM migration) m LEFT JOIN"
    f" (SELECT {{}} AS seen FROM thread WHERE {_OF}) t ON true LEFT JOIN"
    " (SELECT position, nonce, at FROM journal WHERE tenant = ? ORDER BY position DESC LIMIT 1) j ON true"
)
_BELOW: Final = (
    f"(WITH RECURSIVE below (jti) AS (SELECT jti FROM lease WHERE {_OF} AND jti IN {{}} UNION"
    f" SELECT l.jti FROM lease l JOIN below ON l.parent = below.jti WHERE l.tenant = ? AND l.thread = ?)"
    f" SELECT jti FROM below)"
)


@lru_cache(maxsize=4096)
def thread_key(scope: tuple[str, ...]) -> bytes:
    """Return the thread's key in every table: a digest of its scope's parts."""
    return hashlib.sha256(json.dumps(scope).encode()).digest()


@dataclass(slots=True)
class Fetch:
    """One read: the thread's rows in `needs`, the newest commit and the schema.

    Run `statement` and pass its rows to `read`. This sets `thread`, `seen`, `position`, `nonce`, `latest`, `clock` and
    `version`. `seen` changes with each commit of the thread, and is "" if the thread is new. A commit sets `before` to
    the thread as it was read. Rows in `cached` are not read.
    """

    tenant: str
    key: bytes
    needs: Needs
    cached: CachedThread | None = None
    since: float = 0.0  # ledger time; unknown calls that were claimed earlier are not in doubt any more
    thread: Thread = field(init=False)
    before: Thread = field(init=False)
    version: Version = field(init=False)
    position: int = 0
    nonce: str = ""
    latest: float = 0.0
    doubts: list[Row] = field(default_factory=list)
    locks: dict[str, str] = field(default_factory=dict)  # values of the rows in `Needs.locks`, by name
    clock: float = 0.0
    seen: str = ""
    drift: float = inf  # seconds by which the commit's time may differ from the store's
    _place: float = 0.0  # the current row's order; not part of its JSON, in which numbers lose digits
    _takers: list[Callable[..., object]] = field(default_factory=list)  # functions that store a row's columns

    def __post_init__(self) -> None:
        self.thread = Thread() if self.cached is None else self.cached.thread

    def statement(self, row: str, clock: str, seen: str, index: str) -> Statement:
        """Return the SQL. A row holds: index in `_takers`, order, columns as JSON.

        Args:
            row: the store's SQL function that makes a JSON list.
            clock: an SQL expression for the time.
            seen: an SQL expression over the thread's row, whose value changes with each commit of the thread.
            index: a clause that makes the store use its index `call_open`; "" if the store does so by itself.
        """
        n, cached, of = self.needs, self.cached, (self.tenant, self.key)
        parts, given = list[tuple[str, str]](), [*of, self.tenant]
        self._takers.append(self._journal)

        def add(taker: Callable[..., object], sql: str, *values: Any, place: str = "0.0") -> None:
            parts.append((place, sql))
            self._takers.append(taker)
            given.extend(values)

        calls = n.calls if cached is None else n.calls & cached.without
        if cached is None:
            self._rows(add)
        elif calls or n.log:
            self.thread = cached.thread.copied()
        t = self.thread
        if calls:
            keys = (*of, *map(to_json, calls))
            add(self._call, f"{_CALL}key IN {placeholders(len(calls))}", *keys, place="at")
            holders = f"SELECT jti FROM call WHERE {_OF} AND state = 'claimed' AND key IN {placeholders(len(calls))}"
            add(self._lease, f"{_LEASE}jti IN ({holders})", *of, *keys)
        if n.deeds:
            whose = f"t.subject = (SELECT subject FROM thread WHERE {_OF}) AND c.deed IN {placeholders(len(n.deeds))}"
            sql = ASKING.format(f"{OPEN} AND (c.state <> 'unknown' OR c.at > ?) AND {whose}", index=index)
            add(self._doubt, sql, self.tenant, self.since, *of, *sorted(n.deeds), place="at")
        for name in self.locks:
            add(self.locks.__setitem__, f"{_MARK}name = ?", self.tenant, b"", name)
        if n.log:
            add(_texts(t.log), f"body FROM said WHERE {_OF}", *of, place=_SEQ)
        return _union(tuple(parts), row, clock, seen), given

    def _rows(self, add: Callable[..., None]) -> None:
        """Add the statement's parts for the kinds of rows that `CachedThread` holds."""
        n, of = self.needs, (self.tenant, self.key)
        add(self._thread, f"scope, subject, history FROM thread WHERE {_OF}", *of)
        newest = f"(SELECT * FROM epoch WHERE {_OF} ORDER BY epoch DESC, digest DESC LIMIT 1) e"
        add(self._epoch, f"epoch, digest, body FROM {newest}", *of)
        add(self._revocation, f"agent, lifted FROM revocation WHERE {_OF}", *of, place=_SEQ)
        for taker, sql, names in (
            (self._lease, f"{_LEASE}jti", n.leases),
            (self._approval, f"{_APPROVAL}key", n.approvals),
            (self._budget, f"counter, spent FROM budget WHERE {_OF} AND counter", n.budgets),
            (self._mark, f"{_MARK}name", n.marks),
            *((self._value, f"body FROM value WHERE {_OF} AND key", some) for some in in_chunks(sorted(n.values))),
        ):
            if names:
                add(taker, f"{sql} IN {placeholders(len(names))}", *of, *map(to_json, names))
        if n.living:
            add(self._lease, f"{_LEASE}state = 'live'", *of)
        if n.below:
            jtis, below = [*map(to_json, n.below)], _BELOW.format(placeholders(len(n.below)))
            add(self._lease, f"{_LEASE}jti IN {below}", *of, *of, *jtis, *of)
            # A child's lease is never older than its parent's. The lease that holds a call may have been deleted.
            held = f"(jti IN {below} OR jti IN {placeholders(len(n.below))})"
            add(self._call, f"{_CALL}state = 'claimed' AND {held}", *of, *of, *jtis, *of, *jtis, place="at")
        if n.open:
            add(self._approval, f"{_APPROVAL}state IN ('asked', 'approved')", *of)
        for agent, message in n.plans:
            add(self._plan, f"{_PLAN}message = ?", *of, to_json(agent), to_json(message))
        for called in n.by_call:
            where = (*of, to_json(called[0]), *of, to_json(called[0]), to_json(called[1]))
            add(self._planned(called), f"{_PLAN}(message, epoch) = ({_PLANNED})", *where)
        if n.edges:
            add(self._edge, f"parent, child, kind FROM edge WHERE {_OF}", *of, place=_SEQ)
        for counter, span in n.rates:
            sql = f"counter, span, times FROM rate WHERE {_OF} AND counter = ? AND span = ?"
            add(self._rate, sql, *of, to_json(counter), span)
        if n.pending:
            add(_texts(self.thread.pending), f"body FROM delivery WHERE {_OF}", *of, place=_SEQ)
        for prefix in n.unmarked:
            begin = to_json(prefix)[:-1]  # names are JSON strings: drop the closing quotation mark
            add(self._mark, f"{_MARK}substr(name, 1, ?) = ?", *of, len(begin), begin)

    def read(self, rows: Sequence[Any]) -> None:
        """Store what the rows of `statement` hold."""
        rows = sorted(rows)
        self.clock = rows[0][1]
        for number, self._place, columns in rows[1:]:
            self._takers[number](*_DECODE(columns)[0])
        self._takers.clear()  # they refer to this object: a cycle

    def _thread(self, scope: str, subject: str, history: str) -> None:
        t = self.thread
        t.exists = bool(scope)  # a row without a scope exists only to be locked
        t.subject, t.history = json.loads(subject), parse_row(History, history)

    def _epoch(self, epoch: int, digest: str, body: str) -> None:
        told = json.loads(body)
        self.thread.epoch = epoch
        self.thread.task = Task(told.get("id", ""), digest, told.get("text", ""), told.get("corrections", 0))

    def _revocation(self, agent: str, lifted: int) -> None:
        revoked = self.thread.revoked
        (revoked.discard if lifted else revoked.add)(tuple(json.loads(agent)))

    def _journal(self, version: int, reader: int, position: int, nonce: str, seen: str | None) -> None:
        self.version, self.seen = Version(version or 0, reader or 0), seen or ""
        self.position, self.nonce, self.latest = position or 0, nonce or "", self._place

    def _lease(self, state: str, body: str) -> None:
        lease = _lease(state, body)
        self.thread.leases[lease.jti] = lease

    def _call(self, *row: Any) -> None:
        found = call_row(*(*row, self._place))
        self.thread.calls[found.key] = found

    def _doubt(self, *row: Any) -> None:
        self.doubts.append((*row, self._place))

    def _approval(self, body: str) -> None:
        asked = parse_row(b.Approval, body)
        self.thread.approvals[asked.call_key] = asked

    def _plan(self, body: str) -> None:
        plan = _plan(body)
        place = (plan.agent, plan.id)
        self.thread.plans[place] = {**self.thread.plans.get(place, {}), plan.epoch: plan}

    def _planned(self, place: tuple[b.AgentPath, str]) -> Callable[[str], None]:
        return lambda body: self.thread.by_call.update({place: _plan(body)})

    def _edge(self, *row: str) -> None:
        parent, child, kind = map(json.loads, row)
        edge = Edge.model_validate({"from": parent, "to": child, "kind": kind})
        self.thread.edges[parent, child, kind] = edge

    def _budget(self, counter: str, spent: int) -> None:
        self.thread.budgets[json.loads(counter)] = spent

    def _rate(self, counter: str, span: int, times: str) -> None:
        self.thread.rates[json.loads(counter), span] = tuple(json.loads(times))

    def _mark(self, name: str, value: str) -> None:
        self.thread.marks[json.loads(name)] = json.loads(value)

    def _value(self, body: str) -> None:
        seen = tuple(SeenValue(*one[: len(SeenValue._fields)]) for one in json.loads(body))
        self.thread.values[seen[0].key] = seen


@lru_cache(maxsize=1024)
def _union(parts: tuple[tuple[str, str], ...], row: str, clock: str, seen: str) -> str:
    several = []
    for number, (place, sql) in enumerate((("coalesce(j.at, 0.0)", _NEWEST.format(seen)), *parts)):
        columns, _, rest = sql.partition(" FROM ")
        several.append(f"SELECT {number}, {place}, CAST({row}({columns}) AS TEXT) FROM {rest}")
    return " UNION ALL ".join([*several, f"SELECT -1, {clock}, '[]'"])


class WrittenRows(NamedTuple):
    """A commit's writes: the thread's row, rows by `PUTS` name, keys by `DROPS` name."""

    thread: Row
    puts: Mapping[str, Sequence[Row]]
    drops: Mapping[str, Sequence[str]]


def changed_rows(f: Fetch, scope: b.Scope, now: float) -> WrittenRows:
    """Return the rows that a commit changed, to be written in any order."""
    t, before = f.thread, f.before
    puts, drops = dict[str, Sequence[Row]](), dict[str, Sequence[str]]()
    if t.log:  # a commit does not read earlier texts, so all of these are new
        puts["said"] = [(t.epoch, to_json(_fields(text))) for text in t.log]
    if t.revoked != before.revoked:
        changed = sorted(t.revoked ^ before.revoked)
        puts["revocation"] = [(to_json(agent), int(agent not in t.revoked), now) for agent in changed]
    if t.issued:
        puts["token"] = [(to_json(jti), to_json(call), to_json(of)) for jti, call, of in t.issued if call is not None]
    if t.plans != before.plans:
        puts["plan"] = [
            (*map(to_json, message), epoch, to_json(_fields(plans[epoch])))
            for message, plans in _changed(t.plans, before.plans)
            for epoch in plans.keys() - before.plans.get(message, {}).keys()
        ]
    if (t.epoch, t.task) != (before.epoch, before.task):
        body = to_json({"id": t.task.id, "text": t.task.text, "corrections": t.task.corrections})
        puts["epoch"] = [(t.epoch, t.task.digest, body, now)]
    if t.pending != before.pending:
        drops["delivery"] = [f.tenant]
        puts["delivery"] = [(to_json(_fields(text)),) for text in t.pending]
    for (name, columns), rows, old in zip(_ROWS.items(), _ALL(t), _ALL(before), strict=True):
        if rows == old:
            continue
        puts[name] = [columns(key, row) for key, row in _changed(rows, old)]
        if name in DROPS:
            drops[name] = [to_json(key) for key in old.keys() - rows.keys()]
    return WrittenRows((to_json(scope), to_json(t.subject), to_json(_fields(t.history)), now), puts, drops)


def _changed(rows: Mapping[Any, V], old: Mapping[Any, V]) -> list[tuple[Any, V]]:
    """Return new and changed rows. Rows that are the same object are not compared."""
    return [(k, row) for k, row in rows.items() if k not in old or (old[k] is not row and old[k] != row)]


class Write(NamedTuple):
    """Builds the SQL that inserts or updates rows of one table."""

    table: str
    columns: tuple[str, ...]  # after `tenant` and `thread`
    there: str = ""  # the ON CONFLICT clause for a row that exists

    def sql(self, rows: str) -> str:
        """Return the statement that writes `rows`, an SQL clause (`VALUES` or `SELECT`)."""
        return f"INSERT INTO {self.table} ({', '.join(('tenant', 'thread', *self.columns))}) {rows}{self.there}"


def _put(table: str, key: tuple[str, ...], *columns: str) -> Write:
    new = ", ".join(f"{c} = excluded.{c}" for c in columns)
    names = tuple(c for c in (*key, *columns) if c not in ("tenant", "thread"))
    return Write(table, names, f" ON CONFLICT ({', '.join(key)}) DO UPDATE SET {new}")


@cache
def placeholders(number: int) -> str:
    """Return `(?,?,…)` for `number` parameters."""
    return f"({','.join('?' * number)})"


def to_json(value: object) -> str:
    """Return a value as ASCII JSON."""
    return _STRING(value) if type(value) is str else "".join(_ENCODE(value, 0))


def _maybe(value: object) -> str | None:
    return None if value is None else to_json(value)


def _fields(row: Any) -> dict[str, Any]:
    names, values = _names(row.__class__)
    return dict(zip(names, values(row), strict=True))


@cache
def _names(kind: Any) -> tuple[tuple[str, ...], Callable[[object], tuple[Any, ...]]]:
    names = tuple(f.name for f in fields(kind))
    return names, attrgetter(*names)


def _of_lease(jti: str, lease: b.Lease) -> Row:
    body = to_json({**_fields(lease), "grant": None if lease.grant is None else lease.grant.to_json()})
    return to_json(jti), _maybe(lease.parent), lease.state, lease.expires_at, body


def _of_call(key: str, row: b.CallRow) -> Row:
    return to_json(key), row.state, to_json(row.jti), _maybe(row.result), row.deed, row.at, _maybe(row.about)


THREAD: Final = _put("thread", ("tenant", "thread"), "scope", "subject", "history", "at")
# Tables and columns, by the names in `WrittenRows.puts`.
PUTS: Final[Mapping[str, Write]] = {
    "epoch": Write("epoch", ("epoch", "digest", "body", "at"), _ONCE),
    "said": Write("said", ("epoch", "body")),
    "delivery": Write("delivery", ("body",)),
    "revocation": Write("revocation", ("agent", "lifted", "at")),
    "token": _put("token", ("tenant", "jti"), "thread", "key", "lease"),
    "plan": Write("plan", ("agent", "message", "epoch", "body"), _ONCE),
    "leases": _put("lease", ("tenant", "thread", "jti"), "parent", "state", "expires", "body"),
    "calls": _put("call", ("tenant", "thread", "key"), "state", "jti", "result", "deed", "at", "about"),
    "approvals": _put("approval", ("tenant", "thread", "key"), "state", "body"),
    "budgets": _put("budget", ("tenant", "thread", "counter"), "spent"),
    "rates": _put("rate", ("tenant", "thread", "counter", "span"), "times"),
    "marks": _put("mark", ("tenant", "thread", "name"), "value"),
    "by_call": Write("planned", ("agent", "call", "message", "epoch")),
    "edges": Write("edge", ("parent", "child", "kind"), _ONCE),
    "values": _put("value", ("tenant", "thread", "key"), "body"),
}
# Tables and the column of their keys, by the names in `WrittenRows.drops`.
DROPS: Final = {
    "delivery": ("delivery", "tenant"),  # all rows of the thread
    "calls": ("call", "key"),
    "approvals": ("approval", "key"),
    "marks": ("mark", "name"),
}
# Functions that return a row's columns, by the name of the rows in `Thread`.
_ROWS: Final[Mapping[str, Callable[[Any, Any], Row]]] = {
    "leases": _of_lease,
    "calls": _of_call,
    "approvals": lambda key, asked: (to_json(key), asked.state, to_json(_fields(asked))),
    "budgets": lambda counter, spent: (to_json(counter), spent),
    "rates": lambda rate, times: (to_json(rate[0]), rate[1], to_json(times)),
    "marks": lambda name, value: (to_json(name), to_json(value)),
    "by_call": lambda place, plan: (*map(to_json, place), to_json(plan.id), plan.epoch),
    "edges": lambda key, _: [*map(to_json, key)],
    "values": lambda key, seen: (to_json(key), to_json(seen)),
}
_ALL: Final = attrgetter(*_ROWS)


def in_chunks(keys: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Yield the keys or rows in chunks that fit the parameters of one statement."""
    for start in range(0, len(keys), CHUNK):
        yield keys[start : start + CHUNK]


def known_fields(kind: Any, body: str) -> dict[str, Any]:
    """Return the fields of a row of class `kind`, without those of a newer version."""
    found = json.loads(body)
    return {name: _frozen(found[name]) for name in _names(kind)[0] if name in found}


@lru_cache(maxsize=512)
def parse_row(kind: Any, body: str) -> Any:
    """Parse a row. The result is cached, so do not change it in place."""
    return kind(**known_fields(kind, body))


@lru_cache(maxsize=512)
def _lease(state: b.LeaseState, body: str) -> b.Lease:
    lease: b.Lease = parse_row(b.Lease, body)
    grant = None if lease.grant is None else Grant.model_validate(json.loads(body)["grant"])
    return replace(lease, grant=grant, state=state)


def _frozen(value: Any) -> Any:
    """Turn lists into tuples. JSON has no tuples, and rows hold no lists."""
    return tuple([_frozen(one) if type(one) is list else one for one in value]) if type(value) is list else value


@lru_cache(maxsize=512)
def _plan(body: str) -> PlanRecord:
    told = known_fields(PlanRecord, body)
    calls = tuple(PlannedCall(*call[: len(PlannedCall._fields)]) for call in told["calls"])
    return PlanRecord(**{**told, "calls": calls})


def _texts(texts: list[HumanText]) -> Callable[[str], None]:
    return lambda body: texts.append(HumanText(**known_fields(HumanText, body)))


def call_row(
    key: str, state: b.CallState, jti: str, result: str | None, deed: str, about: str | None, at: float
) -> b.CallRow:
    """Parse the columns of a call."""
    of_json = [None if text is None else json.loads(text) for text in (result, about)]
    return b.CallRow(json.loads(key), state, json.loads(jti), of_json[0], deed, at, of_json[1])
