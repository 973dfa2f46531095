"""`runtime-authz audit show | story | explain | who-approved`, `runtime-authz report`: read any decision log."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final, NamedTuple

from typer import Argument, Option

from langchain_runtime_authz.audit.story import MAX_STEPS, SIGNS, Step, Story, shown, tell
from langchain_runtime_authz.cli._app import Answer, Key
from langchain_runtime_authz.errors import ConfigError

KNOWN: Final = 5  # threads that an error names
LOG: Final = Path("audit.jsonl")
Log = Annotated[
    Path, Option("--log", envvar="RUNTIME_AUTHZ_AUDIT", metavar="FILE", help="What `RuntimeAuthz(audit=FILE)` wrote.")
]
Everything = Annotated[bool, Option("--all", help="Also the permitted steps of runs, nodes and models.")]


class Source(NamedTuple):
    log: Log = LOG
    key: Key = None

    def told(self, keep: Callable[[Step], bool], mark: str = "", limit: int = MAX_STEPS) -> Story:
        from langchain_runtime_authz.audit.chain import read_log
        from langchain_runtime_authz.audit.seal import opener

        return tell(read_log(self.log, mark, None if self.key is None else opener(self.key)), keep, limit)

    def thread(self, thread: str | None, everything: bool) -> Story:
        """Return the story of a thread, or of a whole log, and say whether the log is whole."""
        from langchain_runtime_authz.audit.chain import verify_log

        def keep(step: Step) -> bool:
            return thread in (None, step.lane.thread) and (everything or step.kind != "check")

        told = self.told(keep, thread or "")
        if not told.total:
            known = list(dict.fromkeys(s.lane.thread for s in self.told(lambda s: bool(s.lane.thread)).steps))
            names = ", ".join(shown(t, 40) for t in known[:KNOWN]) or "none"
            found = f"tells nothing of the thread `{shown(thread)}`; it has {len(known)} threads: {names}"
            raise ConfigError(f"{self.log.name} {found}")
        chain = verify_log(self.log)
        whole = f"whole, {chain.records} records, head {chain.head[:16]}"
        told.notes.append(f"{'chain':<9} {whole if chain.ok else f'BROKEN at {chain.where}: {chain.error}'}")
        return told


class Filter(NamedTuple):
    thread: Annotated[str | None, Option(help="LangGraph's thread_id.")] = None
    subject: Annotated[str | None, Option(help="On whose behalf, like user:alice.")] = None
    tool: Annotated[str | None, Option(help="A tool's name.")] = None
    since: Annotated[str | None, Option(metavar="TIME", help="ISO 8601, in UTC if it names no zone.")] = None
    until: Annotated[str | None, Option(metavar="TIME", help="Likewise.")] = None

    def keep(self) -> Callable[[Step], bool]:
        first, last = _time(self.since, -math.inf), _time(self.until, math.inf)

        def keep(step: Step) -> bool:
            of = self.subject in (None, step.subject, step.subject.partition(":")[2])
            at = first <= step.at <= last and self.thread in (None, step.lane.thread)
            return of and at and self.tool in (None, step.tool)

        return keep


def show(
    source: Source,
    steps: Filter,
    agent: Annotated[str | None, Option(help="An agent's name.")] = None,
    outcome: Annotated[str | None, Option(help=f"One of {', '.join(SIGNS)}.")] = None,
    limit: Annotated[int, Option(min=1, help="The newest steps to show.")] = 100,
    everything: Everything = False,
) -> Answer:
    """List what happened, newest last.

    \b
    Examples:
      runtime-authz audit show
      runtime-authz audit show --log audit.jsonl --outcome deny --since 2026-11-27 --json
    """
    if outcome is not None and outcome not in SIGNS:
        raise ConfigError(f"--outcome must be one of {', '.join(SIGNS)}")
    of = steps.keep()

    def keep(step: Step) -> bool:
        wanted = step.kind == outcome if outcome else everything or step.kind != "check"
        return wanted and of(step) and (agent is None or agent in step.lane.agent)

    return _listed(source.told(keep, steps.thread or "", limit))


def who_approved(source: Source, steps: Filter) -> Answer:
    """List every answer to a question: who gave it, to what, and whether the call ran.

    \b
    Example:
      runtime-authz audit who-approved --tool send_money --since 2026-11-01
    """
    of = steps.keep()
    return _listed(source.told(lambda s: s.kind == "answer" and of(s), steps.thread or ""))


def story(
    thread: Annotated[str, Argument(help="LangGraph's thread_id.")],
    source: Source,
    everything: Everything = False,
) -> Answer:
    """Tell what happened on a thread, as a tree of 80 columns.

    \b
    Example:
      runtime-authz audit story household --log audit.jsonl
    """
    told = source.thread(thread, everything)
    return Answer(told.to_dict(), str(told))


def report(
    source: Source,
    thread: Annotated[str | None, Argument(metavar="THREAD|FILE", help="A thread of the log, or a log.")] = None,
    output: Annotated[Path, Option("--output", "-o", metavar="FILE", help="The page to write.")] = Path("run.html"),
    everything: Everything = False,
) -> Answer:
    """Write one self-contained HTML page of what happened.

    It has a timeline of the agents, what was ordered next to what was done, and why each step was decided so.

    \b
    Examples:
      runtime-authz report household -o run.html
      runtime-authz report audit.jsonl -o log.html
    """
    from langchain_runtime_authz.audit.story_page import page

    if thread is not None and (Path(thread).is_file() or Path(thread).suffix == ".jsonl"):
        source, thread = source._replace(log=Path(thread)), None
    told = source.thread(thread, everything)
    output.write_text(page(told), encoding="utf-8")
    found = {"wrote": str(output), "steps": len(told.steps), "total": told.total}
    return Answer(found, f"wrote {output}: {len(told.steps)} of {told.total} steps")


def explain(decision: Annotated[str, Argument(help="A decision id, or its beginning.")], source: Source) -> Answer:
    """Say why a step was decided so, and what came of it.

    \b
    Example:
      runtime-authz audit explain 296e3f65
    """
    told = source.told(lambda s: bool(decision) and s.decision_id.startswith(decision))
    decided = [s for s in told.steps if s.record.get("kind") == "decision"]
    if len({s.decision_id for s in decided}) != 1:
        found = f"{len(decided)} decisions begin" if decided else "no decision begins"
        wanted = f"with `{shown(decision)}`; give the id that a message or `audit show` has"
        raise ConfigError(f"{source.log.name}: {found} {wanted}")
    step = decided[-1]
    return Answer({**step.to_dict(), "why": step.why()}, [*map(str, told.steps), step.why()])


def _time(text: str | None, default: float) -> float:
    if text is None:
        return default
    try:
        at = datetime.datetime.fromisoformat(text)
    except ValueError as exc:
        raise ConfigError(f"`{shown(text)}` is not a time; write it like 2026-11-27T08:00") from exc
    return (at if at.tzinfo is not None else at.replace(tzinfo=datetime.UTC)).timestamp()


def _listed(seen: Story) -> Answer:
    unread = f"; {seen.unread} lines are not records" if seen.unread else ""
    return Answer(seen.to_dict(), [*map(str, seen.steps), f"{len(seen.steps)} of {seen.total} steps{unread}"])
