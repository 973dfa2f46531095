"""`runtime-authz inspect`: show what of a graph is governed, now and if protected."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from langchain_runtime_authz.cli._app import Printout, echo
from langchain_runtime_authz.cli.graph_target import Target, load_graph, tools_of
from langchain_runtime_authz.errors import ConfigError

if TYPE_CHECKING:
    from langchain_runtime_authz.cli.graph_target import Graph
    from langchain_runtime_authz.coverage.report import CoverageReport
    from langchain_runtime_authz.langgraph.tool_facts import Profiles


def inspect(
    target: Annotated[str, Target],
    fail_ungoverned: Annotated[
        bool, Option("--fail-ungoverned", help="Exit with 1 if anything is ungoverned.")
    ] = False,
    baseline: Annotated[Path | None, Option(metavar="FILE", help="With --fail-ungoverned: accept its rows.")] = None,
    write_baseline: Annotated[Path | None, Option(metavar="FILE", help="Write what is ungoverned now to FILE.")] = None,
    profiles: Annotated[
        list[str] | None, Option(metavar="FILE", help="Profiles or a ready set; may be repeated.")
    ] = None,
) -> Printout:
    """Show the governed parts of a graph, at present and under `protect`.

    The module is imported from the current directory, so its code runs. The graph is not invoked.

    runtime-authz inspect my_agent:graph
    runtime-authz inspect my_package.agents:build --profiles profiles.yaml
    runtime-authz inspect my_agent:graph --fail-ungoverned --json
    runtime-authz inspect my_agent:graph --write-baseline authz-baseline.json
    runtime-authz inspect my_agent:graph --fail-ungoverned --baseline authz-baseline.json
    """
    from langchain_runtime_authz.coverage.report import Baseline

    if baseline is not None and not fail_ungoverned:
        raise ConfigError("`--baseline` needs `--fail-ungoverned`; give both")
    accepted = Baseline.read(baseline) if baseline is not None else None
    if write_baseline is not None and write_baseline.exists():
        Baseline.read(write_baseline)  # refuse to overwrite a file that is not a baseline
    graph = load_graph(target)
    with redirect_stdout(sys.stderr):
        before, after, held = _look(graph, profiles)
    unprofiled = {t.name: t for t in tools_of(graph) if t.name in after.unprofiled}
    ids = [r.id for r in after.ungoverned]
    new = sorted(accepted.new(after.graph, ids)) if accepted is not None else sorted(ids)
    fixed = accepted.fixed(ids) if accepted is not None else ()
    seen = {"before": before and before.to_dict(), "after": after.to_dict(), "new": new, "fixed": fixed}
    drawn = {n: held.of(t).profile.model_dump(include={"effect", "sink"}) for n, t in unprofiled.items()}
    document = {"target": target, "protected_by_module": before is None, **seen, "unprofiled": drawn}
    text = list(_text(target, before, after))
    if accepted is not None:
        text.append(f"\n{baseline}: {len(ids) - len(new)} accepted, {len(new)} new, {len(fixed)} fixed.")
        text += [f"fixed: {i}; take it out with --write-baseline" for i in fixed]
    if write_baseline is not None:
        after.baseline().write(write_baseline)
        echo(f"{write_baseline}: {len(ids)} accepted", err=True)
    try:
        after.raise_if_ungoverned(accepted)
    except ConfigError as exc:
        return Printout(document, text, fail_ungoverned and exc)
    return Printout(document, text)


def _look(graph: Graph, profiles: list[str] | None) -> tuple[CoverageReport | None, CoverageReport, Profiles]:
    """Return (1) coverage now (None if protected), (2) under `protect`, (3) profiles."""
    from langchain_runtime_authz import RuntimeAuthz
    from langchain_runtime_authz.coverage.report_rows import coverage_of
    from langchain_runtime_authz.langgraph.protect import owner_of

    owner = owner_of(graph)
    if owner is not None:
        if profiles:
            raise ConfigError("the module protects the graph; give its `RuntimeAuthz` the profiles, not `--profiles`")
        return None, coverage_of(graph, owner), owner.profiles
    authz = RuntimeAuthz(profiles=profiles)
    before = authz.coverage(graph)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this command prints the same itself
        authz.protect(graph)
    return before, authz.coverage(graph), authz.profiles


def _text(target: str, before: CoverageReport | None, after: CoverageReport) -> Iterator[str]:
    if before is None:
        yield f"{target} is protected by its module.\n"
    else:
        governed = len(before.rows) - len(before.ungoverned)
        yield f"{target} as it is: {governed} governed, {len(before.ungoverned)} not."
        yield "\nUnder `authz.protect(graph)`:\n"
    yield f"{after}\n"
    if not after.unprofiled:
        yield "Every tool of a tool node has a profile." if after.tools else "No tool was found in a tool node."
        return
    yield f"{len(after.unprofiled)} of {len(after.tools)} tools have no profile: each of their calls asks or is denied."
    yield "If a file has them, name it by `--profiles`. Otherwise run `runtime-authz init` or `profile suggest`."
