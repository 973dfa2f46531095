"""Find reads of resources that have changed since, and note new reads."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_runtime_authz.credential.ticket import Ticket
from langchain_runtime_authz.facts.resource import UNCHANGED, one_spelling, resource_of
from langchain_runtime_authz.ledger.base import Query, Scope, Snapshot
from langchain_runtime_authz.pep.call import Call
from langchain_runtime_authz.pep.run import Flow, Load, Run


def resource_scope(scope: Scope) -> Scope:
    """Return the ledger scope that holds the versions of a tenant's resources."""
    return Scope(scope.tenant, scope.issuer, "data:", "resources")


def outdated_tools(
    run: Run, snapshot: Snapshot, calls: Sequence[Call], keys: Sequence[str]
) -> Flow[tuple[frozenset[str], bool]]:
    """Return the tools whose reads are outdated, and True if outputs were dropped.

    An output in memory is dropped if its resource has a newer version, even if another process has read that version.
    `run.local.versions` receives the resource that each call will read, and its version. `keys`: the keys of the calls.
    """
    resources = snapshot.history.resources
    read = resources if any(call.profile.needs_mandate for call in calls) else {}
    found = {key: resource_of(call.profile, call.args) for call, key in zip(calls, keys, strict=True)}
    reading = {key: name for key, name in found.items() if name}
    # Older ledger rows hold names in other spellings. Of equal names, the newest read counts.
    seen = {one_spelling(name): (name, *told.split(" ", 1)) for name, told in read.items()}
    names = dict.fromkeys((*seen, *(name for name, _, _ in seen.values()), *reading.values()))
    if not names:
        return frozenset(), False
    marks = (yield Load(resource_scope(run.scope), Query(marks=tuple(names)))).marks
    current = {name: marks.get(name, UNCHANGED) for name in names}
    run.local.versions |= {key: (name, current[name]) for key, name in reading.items()}
    moved = frozenset(tool for name, (old, was, tool) in seen.items() if marks.get(name, current[old]) != was)
    return moved, run.pep.memory.outputs(run.scope).drop(current)


def version_read(run: Run, ticket: Ticket, call: Call, state: str) -> tuple[str, str, str] | None:
    """Return the resource that a call read, the tool and the version, or None."""
    read = run.local.versions.pop(ticket.call_key, None)
    return (read[0], call.tool, read[1]) if read is not None and state == "done" else None
