"""Check arguments of `RuntimeAuthz` and `production`, and give both one signature."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, runtime_checkable

from langchain_runtime_authz._validate import wrong
from langchain_runtime_authz.audit.sinks import AuditSink, MemorySink
from langchain_runtime_authz.errors import AuditError, Code, ConfigError, LedgerError
from langchain_runtime_authz.grant import Grant
from langchain_runtime_authz.ledger.base import Anchor, Anchored, Ledger, Query, Scope
from langchain_runtime_authz.ledger.memory import MemoryLedger
from langchain_runtime_authz.pdp.base import PDP, ObserveOnly
from langchain_runtime_authz.tool_profile import ToolProfile

if TYPE_CHECKING:
    from langchain_runtime_authz.authz import RuntimeAuthz
    from langchain_runtime_authz.credential.issuer import Issuer
    from langchain_runtime_authz.credential.keyring import KeyRing

P = ParamSpec("P")


@dataclass(frozen=True)
class TaskSources:
    """The places in a graph's state and store that hold the task.

    An edit of these places from outside the graph counts as a correction of the task.

    Attributes:
        channels: state channels that hold the user's text. Of `messages`, only messages with the user's role count.
        memory: namespaces of the graph's store, like `("memories", "{subject}")`.

    Raises `ConfigError` if a value is not a sequence of names.
    """

    channels: tuple[str, ...] = ("messages",)
    memory: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.memory, str):
            raise wrong("memory", "a sequence of namespaces", self.memory)
        object.__setattr__(self, "channels", _names("channels", self.channels))
        object.__setattr__(self, "memory", tuple(_names("memory", n) for n in self.memory))


@runtime_checkable
class PolicyBundlePDP(Protocol):
    """A PDP whose policy contains profiles and grants."""

    @property
    def profiles(self) -> Mapping[str, ToolProfile]: ...

    @property
    def grants(self) -> Mapping[str, Grant]: ...


def wrapped_pdps(pdp: PDP) -> list[PDP]:
    """Return a list of the PDP and all PDPs that it wraps."""
    return [pdp, *(found for inner in getattr(pdp, "wrapped_pdps", ()) for found in wrapped_pdps(inner))]


def resolve_grant(grant: Grant | str | None, policy: PolicyBundlePDP | None) -> Grant | None:
    """Return `grant`; look up a name in `policy`. Raises `ConfigError` if unknown."""
    if grant is None or isinstance(grant, Grant):
        return grant
    if not isinstance(grant, str):
        raise wrong("grant", "a `Grant`, or the name of one", grant)
    grants = policy.grants if policy is not None else {}
    if grant not in grants:
        raise ConfigError(f"the policy has no grant `{grant}`; it has: {', '.join(sorted(grants)) or 'none'}")
    return grants[grant]


def unfit_for_production(
    pdp: PDP | None = None,
    issuer: Issuer | None = None,
    ledger: Ledger | None = None,
    audit: AuditSink | str | Path | None = None,
    *,
    development: bool = False,
    **_: Any,
) -> list[str]:
    """Return why arguments are unfit for production: a sentence each, with a remedy."""
    found = []
    for one in wrapped_pdps(pdp) if pdp is not None else ():
        if isinstance(one, ObserveOnly):
            found.append("`pdp` only observes; give the PDP that it observes")
        elif type(one).__module__.startswith("langchain_runtime_authz.testing."):
            found.append(f"`pdp` asks a `{type(one).__name__}`, for tests; give `OpaPDP(url)` or `ReloadingPDP(url)`")
    if issuer is None or getattr(issuer, "ephemeral", False):
        found.append("`issuer` signs with a key that ends with the process; give `LocalIssuer(KeyDirectory(path))`")
    if ledger is None or isinstance(ledger, MemoryLedger):
        found.append("`ledger` is in memory; give `PostgresLedger(dsn)`, or `SqliteLedger(path)` on one host")
    if audit is None or isinstance(audit, MemorySink):
        found.append("`audit` is in memory; give the path of a file, or a sink of your own")
    if development:
        found.append("`development=True` names a subject for runs without one; give `subject_from`")
    return found


def refuse_older(ledger: Ledger, audit: AuditSink, tenant: str) -> None:
    """Raise `LedgerError` if the ledger lacks the newest commit in the audit log."""
    newest = getattr(audit, "anchor", None)
    found = newest(tenant) if callable(newest) else None
    if found is None:
        return
    try:
        anchor = Anchor(str(found["ledger"]), int(found["position"]), str(found["nonce"]))
    except (KeyError, TypeError, ValueError) as exc:
        raise AuditError(Code.CHAIN_BROKEN, "the newest record's `ledger` is not an anchor") from exc
    if not (isinstance(ledger, Anchored) and ledger.holds(tenant, anchor)):
        raise LedgerError(Code.LEDGER_ROLLED_BACK, f"the audit file names commit {anchor.position}")


def compare_withdrawn(
    ledger: Ledger, ring: KeyRing, scopes: Callable[[str], Iterable[Scope]], withdraw: Callable[[str], None]
) -> None:
    """Withdraw the compromised keys. Raise if a ring publishes a withdrawn one."""
    gone = [key.kid for key in ring.all_keys() if key.state == "compromised"]
    for kid in (*gone, *(jwk["kid"] for jwk in ring.jwks()["keys"])):
        revoked = [ledger.load(scope, Query()).revoked for scope in scopes(kid)]
        if kid in gone and not all(revoked):  # compromised by the command line while the application did not run
            withdraw(kid)
        elif any(revoked) and kid not in gone:
            raise ConfigError(f"the key {kid} was withdrawn, and is back; `runtime-authz keys compromise` withdraws it")


def _names(parameter: str, names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str) or not names or not all(isinstance(n, str) and n for n in names):
        raise wrong(parameter, "a sequence of names", names)
    return tuple(names)


def with_signature_of(
    init: Callable[Concatenate[RuntimeAuthz, P], None],
) -> Callable[[Callable[..., RuntimeAuthz]], Callable[Concatenate[type[RuntimeAuthz], P], RuntimeAuthz]]:
    """Return a decorator that gives a constructor the signature of `init`."""
    return lambda constructor: functools.update_wrapper(constructor, init, assigned=())
