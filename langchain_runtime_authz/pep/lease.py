"""Take a run's lease, check at each step that it is live, and renew it."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.ledger.base import Lease, Snapshot
from langchain_runtime_authz.ledger.changes import RenewLease, TakeLease
from langchain_runtime_authz.pep import calls_in_doubt
from langchain_runtime_authz.pep.run import LEASE_TTL, MAX_LIFETIME, Commit, Flow, Run

# After these codes of `lease_refusal`, the run stops. After `stale_epoch` it continues, and calls get error messages.
OVER: Final = frozenset((Code.KILLED, Code.REVOKED, Code.LEASE_ENDED, Code.LEASE_EXPIRED, Code.WORKLOAD_UNPROVEN))


def take_lease(run: Run) -> TakeLease:
    """Return the change that takes the run's lease."""
    lease = Lease(
        jti=run.jti,
        run_id=run.run_id,
        agent=run.agent,
        epoch=run.epoch,
        started_at=run.entry.started_at,
        expires_at=run.expires_at,
        grant=run.grant,
        parent=run.parent.jti if run.parent is not None else None,
    )
    return TakeLease(lease)


def lease_refusal(run: Run, snapshot: Snapshot) -> Code | None:
    """Return the code of the reason why the run may not continue; None if it may."""
    lease = snapshot.lease
    if run.pep.kill_switch is not None and run.pep.killed:
        return Code.KILLED
    if snapshot.revoked or (lease is not None and lease.state == "revoked"):
        return Code.REVOKED
    if run.closed or lease is None:
        return Code.LEASE_ENDED
    # Check this before the lease's state: a correction ends leases too, and `stale_epoch` is the better reason.
    if snapshot.epoch != run.epoch:
        return Code.STALE_EPOCH
    if lease.state != "live":
        return Code.LEASE_ENDED
    if snapshot.now >= lease.started_at + MAX_LIFETIME:
        return Code.LEASE_EXPIRED
    try:
        ends = run.pep.identity.expires_at
    except Exception:  # noqa: BLE001  (if the application's identity fails, the workload is unproven)
        ends = 0.0
    return Code.WORKLOAD_UNPROVEN if ends is not None and snapshot.now >= ends else None


def renew_lease(run: Run, snapshot: Snapshot) -> Flow[None]:
    """Renew the run's lease if half its time is over, up to the maximum lifetime."""
    lease, pep = snapshot.lease, run.pep
    yield from calls_in_doubt.record_ends(pep, run.scope)
    if lease is not None and lease.state == "live" and lease.epoch == snapshot.epoch:
        until = pep.lease_end(snapshot.now, lease.started_at)
        if lease.expires_at - snapshot.now < LEASE_TTL / 2 and until > lease.expires_at:
            yield Commit(run.scope, run.guard, [RenewLease(run.jti, until)])
            run.expires_at = until
            snapshot.lease = replace(lease, expires_at=until)
