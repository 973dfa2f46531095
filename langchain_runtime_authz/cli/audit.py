"""`runtime-authz audit` and `report`: show and verify our audit log."""

from __future__ import annotations

import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import typer
from typer import Argument, Option

from langchain_runtime_authz.audit.story import MAX_STEPS, SIGNS, Event, Story, safe_text, story_of
from langchain_runtime_authz.cli._app import App, Key, Printout, lines, parse_time
from langchain_runtime_authz.cli.controls import POLICIES, controls_document
from langchain_runtime_authz.errors import AuditError, Code, ConfigError

app = App(help="Read the decision log.")
SIX_MONTHS: Final = 184  # days
MAX_SHOWN: Final = 1_000_000  # steps
LOG: Final = Path("audit.jsonl")
Log = Annotated[Path, Option("--audit", envvar="RUNTIME_AUTHZ_AUDIT", metavar="FILE", help="The decision log.")]
Everything = Annotated[bool, Option("--all", help="Also the permitted steps of runs, nodes and models.")]


class LogOptions(NamedTuple):
    """The options that name a log and the keys to its sealed contents."""

    log: Log = LOG
    key: Key = None

    def story(self, keep: Callable[[Event], bool], mark: str = "", limit: int = MAX_STEPS) -> Story:
        """Return the story of the newest `limit` steps that `keep` accepts."""
        from langchain_runtime_authz.audit.chain import read_log
        from langchain_runtime_authz.audit.encryption import opener

        return story_of(read_log(self.log, mark, opener(*self.key) if self.key else None), keep, limit)

    def thread(self, thread: str | None, everything: bool) -> Story:
        """Return the story of one thread, or of all, with a note on the log's chain."""
        from langchain_runtime_authz.audit.chain import verify_log

        def keep(step: Event) -> bool:
            return thread in (None, step.lane.thread) and (everything or step.kind != "check")

        told = self.story(keep, thread or "")
        if not told.total:
            known = list(dict.fromkeys(s.lane.thread for s in self.story(lambda s: bool(s.lane.thread)).steps))
            names = ", ".join(safe_text(t, 40) for t in known[:5])
            other = f"the thread `{safe_text(thread)}`; it has {len(known)} threads: {names}"
            wanted = other if known else "any thread"
            raise ConfigError(f"{self.log.name} has no record of {wanted}")
        chain = verify_log(self.log)
        since = " since a file was moved" if chain.moved else ""
        whole = f"whole{since}, {chain.records} records, head {chain.head[:16]}"
        told.notes.append(f"{'chain':<9} {whole if chain.ok else f'BROKEN at {chain.where}: {chain.error}'}")
        return told


class StepFilter(NamedTuple):
    """The options that select steps of a log."""

    thread: Annotated[str | None, Option(help="LangGraph's thread_id.")] = None
    subject: Annotated[str | None, Option(help="On whose behalf, like user:alice.")] = None
    tool: Annotated[str | None, Option(help="A tool's name.")] = None
    since: Annotated[str | None, Option(metavar="TIME", help="ISO 8601, in UTC if it names no zone.")] = None
    until: Annotated[str | None, Option(metavar="TIME", help="Likewise.")] = None

    def keep(self) -> Callable[[Event], bool]:
        """Return a function that is true for the selected steps."""
        first = -math.inf if self.since is None else parse_time(self.since)
        last = math.inf if self.until is None else parse_time(self.until)

        def keep(step: Event) -> bool:
            of = self.subject in (None, step.subject, step.subject.partition(":")[2])
            at = first <= step.at <= last and self.thread in (None, step.lane.thread)
            return of and at and self.tool in (None, step.tool)

        return keep


@app.command("show")
def show(
    source: LogOptions,
    steps: StepFilter,
    agent: Annotated[str | None, Option(help="An agent's name.")] = None,
    outcome: Annotated[str | None, Option(help=f"One of {', '.join(SIGNS)}.")] = None,
    limit: Annotated[int, Option(min=1, max=MAX_SHOWN, help="The newest steps to show.")] = 100,
    everything: Everything = False,
) -> Printout:
    """List what happened, newest last.

    runtime-authz audit show
    runtime-authz audit show --audit audit.jsonl --outcome deny --since 2026-11-27 --json
    """
    if outcome is not None and outcome not in SIGNS:
        raise ConfigError(f"--outcome must be one of {', '.join(SIGNS)}")
    of = steps.keep()

    def keep(step: Event) -> bool:
        wanted = step.kind == outcome if outcome else everything or step.kind != "check"
        return wanted and of(step) and (agent is None or agent in step.lane.agent)

    seen = source.story(keep, steps.thread or "", limit)
    unread = f"; {seen.unread} lines are not records" if seen.unread else ""
    return Printout(seen.to_dict(), [*map(str, seen.steps), f"{len(seen.steps)} of {seen.total} steps{unread}"])


@app.command("who-approved")
def who_approved(source: LogOptions, steps: StepFilter) -> Printout:
    """List every answer to a question, with approver, call, and whether the call ran.

    runtime-authz audit who-approved --tool send_money --since 2026-11-01
    """
    return show(source, steps, outcome="answer", limit=MAX_STEPS)


@app.command("story")
def story(
    thread: Annotated[str, Argument(help="LangGraph's thread_id.")], source: LogOptions, everything: Everything = False
) -> Printout:
    """Tell what happened on a thread, as a tree of 80 columns.

    runtime-authz audit story household --audit audit.jsonl
    """
    told = source.thread(thread, everything)
    return Printout(told.to_dict(), str(told))


def report(
    source: LogOptions,
    thread: Annotated[str | None, Argument(metavar="THREAD|FILE", help="A thread of the log, or a log.")] = None,
    output: Annotated[Path, Option("--output", "-o", metavar="FILE", help="The page to write.")] = Path("run.html"),
    everything: Everything = False,
) -> Printout:
    """Write one self-contained HTML page of what happened.

    The page has a timeline of the agents, the orders next to the calls that were made, and the reasons of each step.

    runtime-authz report household -o run.html
    runtime-authz report audit.jsonl -o log.html
    """
    from langchain_runtime_authz.audit.chain import log_files
    from langchain_runtime_authz.audit.story_html import html_page

    if thread is not None and (Path(thread).is_file() or Path(thread).suffix == ".jsonl"):
        source, thread = source._replace(log=Path(thread)), None
    if output.exists() and any(map(output.samefile, log_files(source.log))):
        raise ConfigError(f"`{output}` is the log; name another file for the page")
    told = source.thread(thread, everything)
    output.touch(0o600)  # as private as a log; a page that exists keeps its mode
    output.write_text(html_page(told), encoding="utf-8")
    found = {"wrote": str(output), "steps": len(told.steps), "total": told.total}
    return Printout(found, f"wrote {output}: {len(told.steps)} of {told.total} steps")


@app.command("explain")
def explain(decision: Annotated[str, Argument(help="A decision id or its beginning.")], source: LogOptions) -> Printout:
    """Explain a decision, and show its outcome.

    runtime-authz audit explain 296e3f65
    """
    told = source.story(lambda s: bool(decision) and s.decision_id.startswith(decision))
    decided = [s for s in told.steps if s.record.get("kind") == "decision"]
    if len({s.decision_id for s in decided}) != 1:
        found = f"{source.log.name}: {f'{len(decided)} decisions begin' if decided else 'no decision begins'}"
        raise ConfigError(f"{found} with `{safe_text(decision)}`; give the id that a message or `audit show` has")
    step = decided[-1]
    return Printout({**step.to_dict(), "why": step.why()}, [*map(str, told.steps), step.why()])


@app.command("verify")
def verify(
    file: Annotated[Path, Argument(help="The log that `RuntimeAuthz(audit=FILE)` wrote, or an evidence pack (.zip).")],
    head: Annotated[str | None, Option(metavar="HASH", help="A head that was printed earlier, kept elsewhere.")] = None,
) -> Printout:
    """Verify all segments of a decision log, alone or in an evidence pack.

    Keep the printed head elsewhere, and give it by --head: edits and cuts before that line are detected, also in a
    log that has grown since. Without --head, an edit of the last line and a cut at the end are not detected.

    runtime-authz audit verify audit.jsonl
    runtime-authz audit verify audit.jsonl --head "$(cat pinned-head)"
    """
    from langchain_runtime_authz.audit.chain import PACK, read_log, verify_log
    from langchain_runtime_authz.audit.evidence_pack import verify_pack

    if head is not None and not re.fullmatch(r"[0-9a-f]{64}", head):
        raise typer.BadParameter("must be 64 hexadecimal digits", param_hint="--head")
    manifest = ""
    if file.suffix == PACK:
        report, manifest = verify_pack(file, head)
    else:
        report = verify_log(file, head)
        if not report.ok and not any(read_log(file)):
            report = replace(report, error="no line is a record: the log was overwritten, or this is another file")
    if unknown := report.code == Code.CHAIN_PRUNED:
        result = "what remains is whole, but the log up to the pinned head cannot be checked"
    elif not report.ok:
        result = f"BROKEN at {report.where}"
    elif head is None:
        result = "whole, but no head was given: its end is not verified"
    else:
        result = f"whole, and holds the pinned head, {report.later} records before its end"
    found = {"manifest": manifest or None, "records": report.records, "head": report.head, "result": result}
    if manifest:
        found["note"] = "compare the manifest with the digest that you kept: a head covers the log, not the policy"
    if report.moved:
        found["note"] = f"the log before it was moved away; verify that file with --head {safe_text(report.moved)}"
    broken = AuditError(report.code, f"{file.name}{'' if unknown else f', {report.where}'}: {report.error}")
    return Printout({"ok": None if unknown else report.ok, **found}, lines(found), not report.ok and broken)


@app.command("prune")
def prune(
    log: Log,
    days: Annotated[float, Option("--older-than", min=0, metavar="DAYS", help="Age of a segment's last record.")],
    as_json: bool = False,
) -> Printout:
    """Remove old closed segments of a log. Nothing else removes segments.

    `FileSink(max_bytes=, max_age=)` closes segments. The log first records each removed head, and so still verifies.

    runtime-authz audit prune --audit audit.jsonl --older-than 400
    """
    from langchain_runtime_authz.audit.sinks import drop_segments

    dropped = drop_segments(log, time.time() - days * 86_400)
    if days < SIX_MONTHS:
        note = "note     the EU AI Act, article 26(6), asks deployers of high-risk systems for at least six months"
        typer.echo(note, err=as_json)
    return Printout({"removed": dropped}, [*(f"removed  {n}" for n in dropped), f"{len(dropped)} segments removed"])


@app.command("pack")
def pack(
    log: Log = LOG,
    output: Annotated[Path, Option("--output", "-o", metavar="FILE", help="The archive.")] = Path("evidence.zip"),
    policy: Annotated[Path | None, Option(metavar="PATH", help="The policy used; default: the shipped one.")] = None,
) -> Printout:
    """Write an evidence pack: log, head, policy, data, controls, and their digests.

    Keep the printed manifest digest somewhere else: all in the archive can be rewritten. A pinned head covers the log
    alone, and not the policy.

    runtime-authz audit pack -o evidence.zip
    runtime-authz audit verify evidence.zip --head "$(cat pinned-head)"
    """
    from langchain_runtime_authz.audit.chain import PACK, read_log
    from langchain_runtime_authz.audit.evidence_pack import write_pack
    from langchain_runtime_authz.cli.policy.open_policy import open_policy

    if output.suffix != PACK:
        raise typer.BadParameter(f"must end in {PACK}", param_hint="--output")
    source = open_policy(policy)
    with closing(source.pdp()) as engine:
        revision = engine.revision
    seen = Counter(str(r["policy_revision"]) for r in read_log(log) if r and r.get("policy_revision"))
    texts = {f"policy/{Path(name).name}": text.encode() for name, text in source.rego.items()}
    texts["policy/data.json"] = json.dumps(source.data, indent=2).encode()
    texts["controls.json"] = json.dumps(controls_document(), indent=2).encode()
    shipped = {"policy/shipped_data.json": (POLICIES / "data.json").read_bytes()}  # changed by `data.json`
    texts |= shipped if source.wasm is None else {"policy/policy.wasm": source.wasm}
    named = {"name": source.name, "revision": revision, "revisions_in_log": dict(seen)}
    chain, digest = write_pack(output, log, texts, named)
    found = {"records": chain.records, "head": chain.head, "policy": revision, "manifest": digest}
    other = sorted(seen.keys() - {revision})
    note = f"other policies decided too: {', '.join(other)}" if other else None
    return Printout({**found, "other": other, "wrote": str(output)}, lines({**found, "note": note, "wrote": output}))
