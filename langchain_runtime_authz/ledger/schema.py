"""The tables of the SQL ledgers, as versions to migrate up and down.

Evolution rule. A version only adds tables and columns. A new column's default means what its absence meant before.
`min_reader` is the lowest `SCHEMA` of a package that may still use the version. It is raised only if an older writer
would lose or misread data that a decision needs. A package works on its own `SCHEMA`, and on a newer version if the
`min_reader` permits it. It refuses an older schema (`ledger_schema`) until `runtime-authz ledger migrate` was run.

Fields that no query searches are JSON in the column `body`. Texts that a model or client may choose are ASCII JSON
strings, so that no character is special to a store. `HISTORY` names the tables that only grow: PostgreSQL's
application role may neither change nor delete rows there.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from langchain_runtime_authz.errors import Code, LedgerError


class Dialect(NamedTuple):
    """The SQL of one store where stores differ: names of types, and clauses."""

    serial: str
    bytes: str
    real: str
    compact: str  # follows the definition of a table whose rows are stored in the primary key's index
    lock: str  # follows a SELECT whose rows are to be locked


class Version(NamedTuple):
    """A ledger's schema version. Version 0 means that the ledger has no tables yet."""

    version: int
    min_reader: int


class Migration(NamedTuple):
    """One version: SQL to upgrade from the previous version, and to downgrade to it."""

    version: int
    min_reader: int
    up: tuple[str, ...]
    down: tuple[str, ...]


HISTORY: Final = ("epoch", "said", "revocation", "edge", "plan", "planned", "journal")
STATE: Final = ("thread", "delivery", "lease", "call", "token", "approval", "budget", "rate", "mark", "value")

_OF = "tenant TEXT NOT NULL, thread {d.bytes} NOT NULL"
_SEQ = "seq {d.serial}, " + _OF

MIGRATIONS: Final = (
    Migration(
        1,
        1,
        (
            f"CREATE TABLE thread ({_OF}, scope TEXT NOT NULL, subject TEXT NOT NULL, history TEXT NOT NULL,"
            " at {d.real} NOT NULL, PRIMARY KEY (tenant, thread)) {d.compact}",
            f"CREATE TABLE epoch ({_OF}, epoch INTEGER NOT NULL, digest TEXT NOT NULL, body TEXT NOT NULL,"
            " at {d.real} NOT NULL, PRIMARY KEY (tenant, thread, epoch, digest)) {d.compact}",
            f"CREATE TABLE said ({_SEQ}, epoch INTEGER NOT NULL, body TEXT NOT NULL)",
            "CREATE INDEX said_thread ON said (tenant, thread, seq)",
            f"CREATE TABLE delivery ({_SEQ}, body TEXT NOT NULL)",
            "CREATE INDEX delivery_thread ON delivery (tenant, thread, seq)",
            f"CREATE TABLE revocation ({_SEQ}, agent TEXT NOT NULL, lifted INTEGER NOT NULL, at {{d.real}} NOT NULL)",
            "CREATE INDEX revocation_thread ON revocation (tenant, thread, seq)",
            f"CREATE TABLE lease ({_OF}, jti TEXT NOT NULL, parent TEXT, state TEXT NOT NULL, expires {{d.real}} NOT NULL,"
            " body TEXT NOT NULL, PRIMARY KEY (tenant, thread, jti)) {d.compact}",
            "CREATE INDEX lease_jti ON lease (tenant, jti)",
            "CREATE INDEX lease_parent ON lease (tenant, thread, parent)",
            "CREATE INDEX lease_live ON lease (tenant, thread) WHERE state = 'live'",
            f"CREATE TABLE call ({_OF}, key TEXT NOT NULL, state TEXT NOT NULL, jti TEXT NOT NULL, result TEXT,"
            " PRIMARY KEY (tenant, thread, key)) {d.compact}",
            "CREATE INDEX call_claimed ON call (tenant, thread, jti) WHERE state = 'claimed'",
            "CREATE TABLE token (tenant TEXT NOT NULL, jti TEXT NOT NULL, thread {d.bytes} NOT NULL, key TEXT NOT NULL,"
            " lease TEXT NOT NULL, PRIMARY KEY (tenant, jti)) {d.compact}",
            "CREATE INDEX token_thread ON token (tenant, thread)",
            f"CREATE TABLE approval ({_OF}, key TEXT NOT NULL, state TEXT NOT NULL, body TEXT NOT NULL,"
            " PRIMARY KEY (tenant, thread, key)) {d.compact}",
            "CREATE INDEX approval_open ON approval (tenant, thread) WHERE state IN ('asked', 'approved')",
            f"CREATE TABLE budget ({_OF}, counter TEXT NOT NULL, spent BIGINT NOT NULL,"
            " PRIMARY KEY (tenant, thread, counter)) {d.compact}",
            f"CREATE TABLE rate ({_OF}, counter TEXT NOT NULL, span INTEGER NOT NULL, times TEXT NOT NULL,"
            " PRIMARY KEY (tenant, thread, counter, span)) {d.compact}",
            f"CREATE TABLE mark ({_OF}, name TEXT NOT NULL, value TEXT NOT NULL,"
            " PRIMARY KEY (tenant, thread, name)) {d.compact}",
            f"CREATE TABLE value ({_OF}, key TEXT NOT NULL, body TEXT NOT NULL,"
            " PRIMARY KEY (tenant, thread, key)) {d.compact}",
            f"CREATE TABLE plan ({_OF}, agent TEXT NOT NULL, message TEXT NOT NULL, epoch INTEGER NOT NULL,"
            " body TEXT NOT NULL, PRIMARY KEY (tenant, thread, agent, message, epoch)) {d.compact}",
            f"CREATE TABLE planned ({_SEQ}, agent TEXT NOT NULL, call TEXT NOT NULL, message TEXT NOT NULL,"
            " epoch INTEGER NOT NULL)",
            "CREATE INDEX planned_call ON planned (tenant, thread, agent, call, seq)",
            f"CREATE TABLE edge ({_SEQ}, parent TEXT NOT NULL, child TEXT NOT NULL, kind TEXT NOT NULL,"
            " UNIQUE (tenant, thread, parent, child, kind))",
        ),
        tuple(f"DROP TABLE {name}" for name in (*STATE, *HISTORY) if name != "journal"),
    ),
    Migration(
        2,
        1,
        (
            "CREATE TABLE journal (position {d.serial}, tenant TEXT NOT NULL, thread {d.bytes} NOT NULL,"
            " nonce TEXT NOT NULL, at {d.real} NOT NULL)",
            "CREATE INDEX journal_tenant ON journal (tenant, position)",
        ),
        ("DROP TABLE journal",),
    ),
    Migration(
        3,
        3,  # an older writer would not record the deed
        (
            "ALTER TABLE call ADD COLUMN deed TEXT NOT NULL DEFAULT ''",
            "ALTER TABLE call ADD COLUMN at {d.real} NOT NULL DEFAULT 0",
            "ALTER TABLE call ADD COLUMN about TEXT",
            "CREATE INDEX call_open ON call (tenant, deed) WHERE state IN ('claimed', 'unknown', 'void')",
        ),
        (
            "DROP INDEX call_open",
            "ALTER TABLE call DROP COLUMN about",
            "ALTER TABLE call DROP COLUMN at",
            "ALTER TABLE call DROP COLUMN deed",
        ),
    ),
)
SCHEMA: Final = MIGRATIONS[-1].version

NEWEST: Final = 20  # unknown calls, and void calls, read for one deed; the last unknown one stands for all older ones
SEVERAL: Final = "several"  # stands for more than one target in a deed; all calls of such a deed are read
DOUBTS: Final = (
    "t.scope, t.subject, l.expires, c.key, c.state, c.jti, c.result, c.deed, c.about, c.at FROM call c"
    " JOIN thread t ON t.tenant = c.tenant AND t.thread = c.thread"
    " LEFT JOIN lease l ON l.tenant = c.tenant AND l.thread = c.thread AND l.jti = c.jti WHERE c.tenant = ? AND "
)
OPEN: Final = "c.state IN ('claimed', 'unknown', 'void') AND c.deed <> ''"
ASKING: Final = (  # selects the same calls as `thread_state.calls_in_doubt`
    "scope, subject, expires, key, state, jti, result, deed,"
    f" CASE WHEN nth = {NEWEST} AND state = 'unknown' THEN NULL ELSE about END FROM"
    f" (SELECT CASE WHEN c.state = 'claimed' OR substr(c.deed, length(c.deed) - {len(SEVERAL)}) = ':{SEVERAL}' THEN 0"
    " ELSE row_number() OVER (PARTITION BY c.deed, c.state ORDER BY c.at DESC, c.key DESC) END AS nth,"
    f" {DOUBTS.replace('call c', 'call c{index}')}{{}}) AS found WHERE nth <= {NEWEST}"
)


def check_schema(found: Version) -> None:
    """Raise `LedgerError` (`ledger_schema`) if this package cannot use the schema."""
    if found.version < SCHEMA:
        raise LedgerError(Code.LEDGER_SCHEMA, f"it has version {found.version}, this package needs {SCHEMA}")
    if found.min_reader > SCHEMA:
        why = f"it has version {found.version} and admits packages from {found.min_reader} up, this one knows {SCHEMA}"
        raise LedgerError(Code.LEDGER_SCHEMA, why)
