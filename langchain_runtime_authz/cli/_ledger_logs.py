"""Find in audit logs the revocations and calls that a restored ledger lacks."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_runtime_authz.cli._app import iso_time, reading

if TYPE_CHECKING:
    from langchain_runtime_authz.ledger.base import InDoubtCall, Scope

Unfinished = tuple[dict[str, Any], "InDoubtCall | None"]  # a call as printed, and its row if the log has one


def read_logs(files: list[Path]) -> tuple[list[tuple[Scope, tuple[str, ...]]], list[Unfinished]]:
    """Return revoked agents and unfinished calls, which a backup may lack.

    An agent counts if the logs end with it revoked. A call with a side effect counts if it has a permit
    and no outcome. A reinstatement that the backup lacks is not repeated.
    """
    from langchain_runtime_authz.audit.chain import read_log, verify_or_raise
    from langchain_runtime_authz.ledger.base import LASTS
    from langchain_runtime_authz.ledger.changes import Reinstate, Revoke
    from langchain_runtime_authz.ledger.thread_state import Thread
    from langchain_runtime_authz.tool_profile import HARMLESS

    events: set[tuple[float, Scope, tuple[str, ...], str]] = set()
    threads: dict[Scope, Thread] = defaultdict(Thread)
    begun, ended, failed = dict[str, Unfinished](), Counter[str](), set[str]()
    for file in files:
        verify_or_raise(file)
        for record in filter(None, read_log(file)):
            with reading(file, record["seq"] + 1):
                event = record.get("event")
                if event in ("revoked", "reinstated"):
                    iso_time(record["ts"])
                    named = record["ts"], _scope(record), _texts(*record["agent"]), event
                    if {"refused", "unknown"} & {*record["detail"]}:  # this takes back the event recorded before
                        events.discard(max((e for e in events if e <= named and e[1:] == named[1:]), default=named))
                    else:
                        events.add(named)
                elif event == "resolved":
                    ended[record["detail"]["decision_id"]] += -1 if {"refused", "unknown"} & {*record["detail"]} else 1
                elif record["kind"] == "completion" and record["state"] == "failed":
                    failed.add(record["decision_id"])
                elif record["kind"] == "completion" and record["state"] != "unknown":
                    ended[record["decision_id"]] += 1
                elif record.get("action") == "tools/call" and record["outcome"] == "permit":
                    known = (record.get("request") or {}).get("resource", {}).get("properties", {})
                    acts = known.get("effect") not in HARMLESS
                    key, place = record["decision_id"], _scope(record)._asdict()
                    call = {"permitted_at": iso_time(record["ts"]), **place, "decision_id": key}
                    call |= {"tool": record["resource"], "call": None}
                    begun.update({key: (call, _doubt(record))} if acts else {})
    for at, scope, agent, event in sorted(events):
        (Revoke if event == "revoked" else Reinstate)(agent).apply(threads[scope], at)
    revoked = [(scope, agent) for scope, thread in threads.items() for agent in sorted(thread.revoked)]
    for key in failed & begun.keys():  # a failed call makes calls with the same deed ask for `LASTS` seconds
        call, doubt = begun[key]
        young = doubt is not None and time.time() - doubt.row.at < LASTS
        if doubt is None or not young:
            del begun[key]
        else:
            row = doubt.row._replace(about={**(doubt.row.about or {}), "failed": True})
            begun[key] = {**call, "failed": True}, doubt._replace(row=row)
    return revoked, [call for key, call in begun.items() if not ended[key]]


def _texts(*values: str) -> tuple[str, ...]:
    """Return the values; raise `TypeError` or `ValueError` if one is not a text."""
    "".join(values).encode()
    return values


def _scope(record: dict[str, Any]) -> Scope:
    from langchain_runtime_authz.ledger.base import Scope

    return Scope(*_texts(*(record["scope"][name] for name in Scope._fields)))


def _doubt(record: dict[str, Any]) -> InDoubtCall | None:
    """Return a permit's record as a call in doubt; `None` if it lacks the call's deed."""
    from langchain_runtime_authz.ledger.base import CallRow, InDoubtCall
    from langchain_runtime_authz.ledger.schema import SEVERAL

    claim, asked = record.get("claim"), record.get("request")
    if not claim or not asked:
        return None
    call, subject, ids = asked["context"]["call"], asked["subject"], ("decision_id", "run_id")
    about = {"tool": record["resource"], "args_digest": call["args_digest"], "call_id": call["id"]}
    about |= {"idempotency_key": claim["idempotency_key"], **{name: record[name] for name in ids}}
    deed, *also = _texts(*claim["deeds"])
    _texts(claim["call_key"], record["jti"], *(value for value in about.values() if value is not None))
    about |= {"targets": also} if deed.endswith(f":{SEVERAL}") else {}
    row = CallRow(claim["call_key"], "unknown", record["jti"], None, deed, record["ts"], about)
    return InDoubtCall(_scope(record), f"{subject['type']}:{subject['id']}", row)
