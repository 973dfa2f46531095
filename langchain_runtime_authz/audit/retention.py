"""Remove old segments of a decision log. Nothing removes them by itself."""

from __future__ import annotations

import time
from pathlib import Path

from langchain_runtime_authz.audit.chain import DROPPED, log_files, parse_line, verified, verify_chain
from langchain_runtime_authz.audit.sinks import ANCHOR, FileSink


def drop_segments(log: str | Path, before: float) -> list[str]:
    """Remove the closed segments whose last record is older than `before` (epoch seconds); return their names.

    First the log records the head of each, so that it still verifies, and repeats the newest anchor of each tenant's ledger.

    Raises:
        AuditError: `chain_broken`: nothing was removed.
        OSError: a file cannot be read or removed.
    """
    verified(log)
    sink, dropped = FileSink(log, durable=True), []
    for part in log_files(log)[:-1]:
        with part.open("rb") as file:
            whole = [record for line in file if (record := parse_line(line.rstrip(b"\n"))) is not None]
        if float(whole[-1]["ts"]) >= before:
            break
        report = verify_chain(part)
        about = {"segment": part.name, "records": report.records, "head": report.head}
        sink.write({"v": 1, "kind": DROPPED, "ts": time.time(), **about})
        held = {str(a.get("tenant")): a for r in whole if isinstance(a := r.get(ANCHOR), dict)}
        for anchor in [a for tenant, a in held.items() if sink.anchor(tenant) == a]:
            sink.write({"v": 1, "kind": ANCHOR, "ts": time.time(), ANCHOR: anchor})
        part.unlink(missing_ok=True)
        dropped.append(part.name)
    sink.close()
    return dropped
