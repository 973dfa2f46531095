"""`runtime-authz audit show | story | explain | who-approved`, `runtime-authz report`: read any decision log."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

import typer

from langchain_runtime_authz.audit.story import SIGNS, Step, Story, clock, shown, tell
from langchain_runtime_authz.cli._errors import Json, Key, reporting
from langchain_runtime_authz.cli._errors import show as answer
from langchain_runtime_authz.errors import ConfigError

__all__ = ["explain", "report", "show", "story", "who_approved"]

KNOWN: Final = 5  # threads that an error names
Log = Annotated[
    Path,
    typer.Option("--log", envvar="RUNTIME_AUTHZ_AUDIT", metavar="FILE", help="What `RuntimeAuthz(audit=FILE)` wrote."),
]
Everything = Annotated[bool, typer.Option("--all", help="Also the permitted steps of runs, nodes and models.")]
Thread = Annotated[str | None, typer.Option("--thread", help="LangGraph's thread_id.")]
Agent = Annotated[str | None, typer.Option("--agent", help="An agent's name.")]
Subject = Annotated[str | None, typer.Option("--subject", help="On whose behalf, like user:alice.")]
Tool = Annotated[str | None, typer.Option("--tool", help="A tool's name.")]
Since = Annotated[str | None, typer.Option("--since", metavar="TIME", help="ISO 8601, in UTC if it names no zone.")]
Until = Annotated[str | None, typer.Option("--until", metavar="TIME", help="Likewise.")]
LOG: Final = Path("audit.jsonl")


def show(
    log: Log = LOG,
    thread: Thread = None,
    subject: Subject = None,
    agent: Agent = None,
    tool: Tool = None,
    outcome: Annotated[str | None, typer.Option("--outcome", help=f"One of {', '.join(SIGNS)}.")] = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="The newest steps to show.")] = 100,
    everything: Everything = False,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """List what happened, newest last.

    \b
    Examples:
      runtime-authz audit show
      runtime-authz audit show --log audit.jsonl --outcome deny --since 2026-11-27 --json
    """  # noqa: D301  (`\b` keeps the lines apart)
    with reporting():
        if outcome is not None and outcome not in SIGNS:
            raise ConfigError(f"--outcome must be one of {', '.join(SIGNS)}")
        found = filtered(since, until, thread=thread, subject=subject, agent=agent, tool=tool)
        seen = _told(
            log,
            thread or "",
            lambda s: found(s) and (s.kind == outcome if outcome else _shown(s, everything)),
            limit,
            key,
        )
    _print(seen, as_json)


def who_approved(
    log: Log = LOG,
    thread: Thread = None,
    subject: Subject = None,
    tool: Tool = None,
    since: Since = None,
    until: Until = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """List every answer to a question: who gave it, to what, and whether the call ran.

    \b
    Example:
      runtime-authz audit who-approved --tool send_money --since 2026-11-01
    """  # noqa: D301
    with reporting():
        found = filtered(since, until, thread=thread, subject=subject, tool=tool)
        seen = _told(log, thread or "", lambda s: s.kind == "answer" and found(s), key=key)
    _print(seen, as_json)


def story(
    thread: Annotated[str, typer.Argument(help="LangGraph's thread_id.")],
    log: Log = LOG,
    everything: Everything = False,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Tell what happened on a thread, as a tree of 80 columns.

    \b
    Example:
      runtime-authz audit story household --log audit.jsonl
    """  # noqa: D301
    with reporting():
        told = _thread(log, thread, everything, key)
    typer.echo(json.dumps(told.to_dict(), indent=2) if as_json else str(told))


def report(
    thread: Annotated[str | None, typer.Argument(metavar="THREAD|FILE", help="A thread of the log, or a log.")] = None,
    log: Log = LOG,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The page to write.")] = Path(
        "run.html"
    ),
    everything: Everything = False,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Write one self-contained HTML page of what happened.

    It has a timeline of the agents, what was ordered next to what was done, and why each step was decided so.

    \b
    Examples:
      runtime-authz report household -o run.html
      runtime-authz report audit.jsonl -o log.html
    """  # noqa: D301
    from langchain_runtime_authz.audit.story_page import page

    with reporting():
        if thread is not None and (Path(thread).is_file() or Path(thread).suffix == ".jsonl"):
            log, thread = Path(thread), None
        told = _thread(log, thread, everything, key)
        output.write_text(page(told), encoding="utf-8")
    found = {"wrote": str(output), "steps": len(told.steps), "total": told.total}
    answer(found, as_json, f"wrote {output}: {len(told.steps)} of {told.total} steps")


def explain(
    decision: Annotated[str, typer.Argument(help="A decision id, or its beginning.")],
    log: Log = LOG,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Say why a step was decided so, and what came of it.

    \b
    Example:
      runtime-authz audit explain 296e3f65
    """  # noqa: D301
    with reporting():
        told = _told(log, "", lambda s: bool(decision) and s.decision_id.startswith(decision), key=key)
        decided = [s for s in told.steps if s.record.get("kind") == "decision"]
        if len({s.decision_id for s in decided}) != 1:
            found = f"{len(decided)} decisions begin" if decided else "no decision begins"
            raise ConfigError(
                f"{log.name}: {found} with `{shown(decision)}`; give the id that a message or `audit show` has"
            )
        step = decided[-1]
    if as_json:
        typer.echo(json.dumps({**step.to_dict(), "why": step.why()}, indent=2))
        return
    for one in told.steps:
        typer.echo(f"{clock(one.at)} {SIGNS[one.kind][1]:<12} {one.what}" + (f" [{one.end}]" if one.end else ""))
    typer.echo(step.why())


def filtered(since: str | None, until: str | None, **wanted: str | None) -> Callable[[Step], bool]:
    """Return the filter of steps that these options name: thread, subject, agent and tool."""
    first, last = (None if text is None else _time(text) for text in (since, until))

    def keep(step: Step) -> bool:
        user = step.subject
        has = {"thread": (step.lane.thread,), "subject": (user, user.partition(":")[2]), "agent": step.lane.agent}
        has["tool"] = (step.tool,)
        late, early = first is None or step.at >= first, last is None or step.at <= last
        return late and early and all(value is None or value in has[name] for name, value in wanted.items())

    return keep


def _time(text: str) -> float:
    try:
        at = datetime.datetime.fromisoformat(text)
    except ValueError as exc:
        raise ConfigError(f"`{shown(text)}` is not a time; write it like 2026-11-27T08:00") from exc
    return (at if at.tzinfo is not None else at.replace(tzinfo=datetime.UTC)).timestamp()


def _shown(step: Step, everything: bool) -> bool:
    return everything or step.kind != "check"


def _told(
    log: Path, mark: str, keep: Callable[[Step], bool], limit: int | None = None, key: Path | None = None
) -> Story:
    from langchain_runtime_authz.audit.chain import read_log
    from langchain_runtime_authz.audit.seal import opener

    records = read_log(log, mark, None if key is None else opener(key))
    return tell(records, keep) if limit is None else tell(records, keep, limit)


def _thread(log: Path, thread: str | None, everything: bool, key: Path | None) -> Story:
    """Return the story of a thread, or of a whole log, and say whether the log is whole."""
    from langchain_runtime_authz.audit.chain import verify_log

    told = _told(log, thread or "", lambda s: thread in (None, s.lane.thread) and _shown(s, everything), key=key)
    if not told.total:
        known = list(dict.fromkeys(s.lane.thread for s in _told(log, "", lambda s: bool(s.lane.thread)).steps))
        names = ", ".join(shown(t, 40) for t in known[:KNOWN]) or "none"
        raise ConfigError(
            f"{log.name} tells nothing of the thread `{shown(thread)}`; it has {len(known)} threads: {names}"
        )
    chain = verify_log(log)
    whole = f"whole, {chain.records} records, head {chain.head[:16]}"
    told.notes.append(f"{'chain':<9} {whole if chain.ok else f'BROKEN at {chain.where}: {chain.error}'}")
    return told


def _print(seen: Story, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(seen.to_dict(), indent=2))
        return
    for step in seen.steps:
        end = f" [{step.end}]" if step.end else ""
        about = f" {step.decision_id[:8]}" if step.decision_id else ""
        place = f"{shown(step.lane.thread, 40)} {step.subject}".strip()
        typer.echo(f"{clock(step.at)} {SIGNS[step.kind][0]} {SIGNS[step.kind][1]:<12} {place}  {step.what}{end}{about}")
    typer.echo(
        f"{len(seen.steps)} of {seen.total} steps" + (f"; {seen.unread} lines are not records" if seen.unread else "")
    )
