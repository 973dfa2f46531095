"""Open the ledger that a command names, and check the application's audit log."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from typer import Argument, Option, echo

from langchain_runtime_authz.errors import ConfigError
from langchain_runtime_authz.ledger.schema import check_schema

if TYPE_CHECKING:
    from langchain_runtime_authz.ledger.admin import Admin
    from langchain_runtime_authz.ledger.sql_ledger import SqlLedger

Tenant = Annotated[str, Option("--tenant", help="As in RuntimeAuthz(tenant=...).")]
Reason = Annotated[str, Option("--reason", help="Why, for the record.")]
By = Annotated[str, Option("--by", help="Who does it, for the record: type:id, like user:carol.")]
Audit = Annotated[Path | None, Option("--audit", metavar="FILE", help="The application's audit log, to record it in.")]


class LedgerOptions(NamedTuple):
    """The options that name a ledger."""

    where: Annotated[str, Argument(metavar="LEDGER", help="A path, or a connection string of PostgreSQL.")]
    schema: Annotated[str, Option(help="PostgreSQL: the schema of the tables.")] = "runtime_authz"
    role: Annotated[str, Option(help="PostgreSQL: the role that the application takes.")] = "runtime_authz_app"

    def opened(self) -> SqlLedger:
        """Open the ledger as the application does. Refuse an unusable ledger."""
        from langchain_runtime_authz.ledger.admin import version

        with self.administered(look=True) as admin:
            check_schema(version(admin))
        if (postgres := self._postgres()) is not None:
            return postgres.PostgresLedger(self.where, schema=self.schema, role=self.role, max_size=1)  # type: ignore[no-any-return]
        from langchain_runtime_authz.ledger.sqlite import SqliteLedger

        return SqliteLedger(self.where)

    def administered(self, *, create: bool = False, look: bool = False) -> AbstractContextManager[Admin]:
        """Open the ledger for its owner. `create`: make it if missing. `look`: only read."""
        if (postgres := self._postgres()) is not None:
            options: Any = {"schema": self.schema, "role": self.role, "create": create, "look": look}
            return postgres.administer(self.where, **options)  # type: ignore[no-any-return]
        from langchain_runtime_authz.ledger import sqlite

        if not create and not (Path(self.where).is_file() and Path(self.where).stat().st_size):
            at = self.where or "an empty path"  # SQLite would create an empty ledger there
            raise ConfigError(f"there is no ledger at {at}; make one with `runtime-authz ledger migrate`")
        return sqlite.administer(self.where, create=create, look=look)

    def _postgres(self) -> ModuleType | None:
        """Return the module for a connection string of PostgreSQL, `None` for a path."""
        url = self.where.startswith(("postgresql://", "postgres://"))
        if not url and ("=" not in self.where or Path(self.where).exists()):
            return None
        try:
            from langchain_runtime_authz.ledger import postgres
        except ModuleNotFoundError as exc:
            raise ConfigError("PostgreSQL needs the extra: pip install 'langchain-runtime-authz[postgres]'") from exc
        return postgres


def checked_log(audit: Path | None, tenant: str) -> Path | None:
    """Return `audit` if it is the tenant's log; else raise. If it is `None`, warn."""
    from langchain_runtime_authz.audit.chain import read_log
    from langchain_runtime_authz.audit.sinks import tenant_of

    if audit is None:
        echo("note: no audit log records this; name the application's by --audit", err=True)
    elif not audit.is_file():
        raise ConfigError(f"there is no audit log at {audit}; name the application's own")
    else:
        tenants = (found for record in read_log(audit) if record and (found := tenant_of(record)) is not None)
        first = next(tenants, tenant)  # a new log holds no tenant yet
        if first != tenant and tenant not in tenants:
            raise ConfigError(f"{audit.name} is the log of tenant {first!r}; name the one of tenant {tenant!r}")
    return audit


def note_full(listed: Iterable[Sized]) -> None:
    """Warn if a tenant's list is full, so that it may lack older entries."""
    from langchain_runtime_authz.ledger.base import MAX_ASKED

    if any(len(found) >= MAX_ASKED for found in listed):
        echo(f"note: only the newest {MAX_ASKED} are listed; settle these to see older ones", err=True)
