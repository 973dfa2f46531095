"""`runtime-authz learn`: propose profiles and a mandate from a log or trace."""

from __future__ import annotations

import difflib
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from typer import Argument, Option

from langchain_runtime_authz.cli._app import Printout, reading, yaml_flow
from langchain_runtime_authz.cli.init import completed
from langchain_runtime_authz.errors import ConfigError

if TYPE_CHECKING:
    from langchain_runtime_authz.tool_profile import ToolProfile

ENOUGH: Final = 3  # number of questions about a tool; if all were approved, `verdict: permit` is proposed
CHOICES: Final = 5  # values of an argument that a mandate lists
WIDTH: Final = 80  # characters of a value that are shown
LEARNED: Final = "draft_learned"


@dataclass(slots=True)
class _Seen:
    profiled: bool = False  # by a file, by the code or by a library
    outcomes: Counter[str] = field(default_factory=Counter)
    args: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    approved: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  # the user's words, and the arguments

    def __str__(self) -> str:
        o = self.outcomes
        counts = {"ran": o["permit"], "asked": o["approval_required"], "with values from outside": o["outside"]}
        counts |= {outcome: o[outcome] for outcome in ("approved", "rejected", "deny")}
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def learn(
    log: Annotated[Path, Argument(metavar="LOG.jsonl", help="An audit log with its contents, or a trace.")],
    profiles: Annotated[Path, Option(metavar="FILE", help="The file to make or complete.")] = Path("authz.yaml"),
    write: Annotated[bool, Option("--write", help="Write the drafts into FILE.")] = False,
    as_json: bool = False,
) -> Printout:
    """Propose profiles and a mandate from recorded runs, as a diff to review.

    Record with `RuntimeAuthz(audit=FileSink("audit.jsonl", content=True))`; with `pdp=ObserveOnly(WasmPDP())` nothing
    is stopped meanwhile. Each proposed profile is a draft, so its tool asks as before. The mandate has no effect until
    your code gives it to a run. Reviewed profiles stay as they are. If calls of their tools were approved, orders
    (`intent`) are proposed by which the users' words would have covered these calls.

    runtime-authz learn audit.jsonl
    runtime-authz learn audit.jsonl --profiles authz.yaml --write
    """
    from langchain_runtime_authz.tool_profile import load_profiles

    seen = _seen_in_log(log)
    if not seen:
        raise ConfigError(f"`{log.name}` has no call of a tool; give an audit log or a trace with some")
    declared = load_profiles(profiles) if profiles.exists() else {}
    old = profiles.read_text(encoding="utf-8") if profiles.exists() else ""
    ask = load_profiles(dict.fromkeys(seen, "ask"))
    elsewhere = [n for n, one in seen.items() if one.profiled and n not in declared]
    stanzas = {n: _draft(n, one) for n, one in seen.items() if n not in elsewhere and declared.get(n, ask[n]) == ask[n]}
    mandate = "".join(_steps(seen))
    mandates = {LEARNED: f"  {LEARNED}:\n    steps:\n{mandate}"} if mandate else {}
    after = completed(old if profiles.exists() else "tools:\n", tools=stanzas, mandates=mandates)
    diff = difflib.unified_diff(old.splitlines(True), after.splitlines(True), str(profiles), f"{profiles} (proposed)")
    text = "".join(diff).removesuffix("\n")
    orders = {n: said for n, one in seen.items() if n in declared and (said := _approved_orders(n, declared, one))}
    if write:
        profiles.write_text(after, encoding="utf-8")
        load_profiles(profiles)
    if not as_json:
        if not any(one.args for one in seen.values()):
            typer.echo("note: the log has no arguments; record with `FileSink(path, content=True)`", err=True)
        profiled = f"; profiled elsewhere: {', '.join(elsewhere)}" if elsewhere else ""
        typer.echo(f"tools called: {len(seen)}, drafts: {len(stanzas)}{profiled}", err=True)
        for name, several in orders.items():
            typer.echo(f"orders that were approved, for `intent` of {name}: {yaml_flow(several)}", err=True)
    called = {n: one.outcomes for n, one in seen.items()}
    return Printout({"called": called, "drafts": list(stanzas), "orders": orders, "proposed": after}, text)


def _seen_in_log(log: Path) -> dict[str, _Seen]:
    from langchain_runtime_authz.audit.chain import read_lines

    found: dict[str, _Seen] = {}
    with log.open("rb") as file:
        for number, line in enumerate(read_lines(file), 1):
            with reading(log, number):
                _count(found, json.loads(line))
                "".join(found)  # raises `TypeError` unless all tools' names are texts
    return found


def _count(found: dict[str, _Seen], record: Mapping[str, Any]) -> None:
    if record.get("type") == "tool_call" and not record.get("unwanted"):
        _ran(found.setdefault(record["tool"], _Seen()), record["args"])
    elif record.get("event") == "approval" and record["detail"]["verdict"] in ("reject", "deny"):
        counts = -1 if "refused" in record["detail"] else 1  # the answer was counted, and then the ledger refused it
        found.setdefault(record["detail"]["tool"], _Seen()).outcomes["rejected"] += counts
    elif record.get("action") == "tools/call" and "unknown_tool" not in record["reasons"]:
        one, request = found.setdefault(record["resource"], _Seen()), record["request"] or {}
        observed = [r.partition(":")[2] for r in record["reasons"] if r.startswith("observed:")]
        one.outcomes.update([*observed, *([record["outcome"]] if not observed else [])])
        one.profiled = request.get("resource", {}).get("properties", {}).get("profiled", one.profiled)
        if request.get("context", {}).get("approval"):
            one.outcomes["approved"] += 1
            if not record["erased"]:
                one.approved.append((request["context"]["task"]["text"], request["context"]["call"]["args"]))
        if record["outcome"] == "permit" and observed != ["deny"]:
            call = {"args": {}, "provenance": {}} if record["erased"] else request["context"]["call"]
            outside = {name for name, found in call["provenance"].items() if found["standing"] == "outside"}
            one.outcomes["outside"] += bool(outside)  # a mandate cannot order a value that an outsider wrote
            _ran(one, call["args"], outside, count=bool(observed))


def _ran(one: _Seen, args: Mapping[str, Any], outside: Collection[str] = (), *, count: bool = True) -> None:
    one.outcomes["permit"] += count
    for path, value in _values_by_path(args):
        one.args[path] += [] if path in outside else [value]


def _values_by_path(args: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield a call's values by path: `files.path` holds the `path` of each file."""
    for name, value in args.items():
        rows = value if isinstance(value, list) and all(isinstance(row, Mapping) for row in value) else []
        if isinstance(value, Mapping):
            yield from _values_by_path(value, f"{before}{name}.")
        elif rows:
            found = [dict(_values_by_path(row, f"{before}{name}.")) for row in rows]
            yield from ((path, [row[path] for row in found if path in row]) for path in dict.fromkeys(chain(*found)))
        else:
            yield before + name, value


def _draft(name: str, seen: _Seen) -> str:
    from langchain_core.tools import StructuredTool

    from langchain_runtime_authz.cli._profile_proposal import propose

    schema = {"type": "object", "properties": {n: _schema(values) for n, values in seen.args.items()}}
    tool = StructuredTool(name=name, description=name, args_schema=schema, func=print)
    text = propose(tool).yaml().splitlines()
    text[1] = f"    draft: true  # DOUBT: {seen}; remove this line once reviewed"
    text = [line for line in text if not line.startswith("    digest:")]
    text.insert(2, "    verdict: ask  # as long as nobody reviewed it")
    if seen.outcomes["approved"] >= ENOUGH and seen.outcomes["rejected"] == 0:
        text.append("    # verdict: permit  # DOUBT: every question was approved; you would answer for each call")
    text += [f"    # {yaml_flow(n)}: {_varied(values)}" for n, values in seen.args.items()]
    return "\n".join(text) + "\n"


def _approved_orders(name: str, profiles: Mapping[str, ToolProfile], seen: _Seen) -> list[str]:
    """Return orders that would have permitted approved calls, the most frequent first."""
    from langchain_runtime_authz.cli._order_proposal import proposed_order

    if profiles[name].draft or not profiles[name].needs_mandate or profiles[name].verdict is not None:
        return []
    found = Counter(proposed_order(name, profiles, said, args) for said, args in seen.approved)
    return [order for order, _ in found.most_common() if order is not None]


def _schema(values: list[Any]) -> dict[str, Any]:
    kinds = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
    kind = kinds.get(type(next((v for v in values if v is not None), "")), "string")
    items = [*chain(*(value for value in values if isinstance(value, list)))]
    return {"type": kind, "items": _schema(items)} if kind == "array" else {"type": kind}


def _distinct(values: list[Any]) -> list[Any]:
    return list({json.dumps(v, sort_keys=True): v for v in values}.values())


def _varied(values: list[Any]) -> str:
    """Describe an argument's values in one line: the only value, or the first few."""
    several = _distinct(values)
    items = several if len(several) == 1 else _distinct([*chain(*(v if isinstance(v, list) else [v] for v in several))])
    shown = [text if len(text := yaml_flow(v)) <= WIDTH else f"{text[:WIDTH]}…" for v in items[:CHOICES]]
    shown += ["…"] if len(items) > CHOICES else []
    said = "always" if len(several) == 1 else f"{len(several)} values in {len(values)} calls, of"
    return f"{said} {', '.join(shown)}" if several else "always from outside"


def _steps(seen: Mapping[str, _Seen]) -> Iterator[str]:
    for name, one in seen.items():
        known = one.args and all(one.args.values())
        if not one.outcomes["approval_required"] or not known or one.outcomes["rejected"]:
            continue
        yield f"      - id: {yaml_flow(name)}\n        tool: {yaml_flow(name)}\n        args:\n"
        for argument, values in one.args.items():
            yield f"          {_ordered(yaml_flow(argument), values)}\n"


def _ordered(argument: str, values: list[Any]) -> str:
    """Return an argument's line in a step: its only value, a choice, or any text."""
    several = _distinct(values)
    scalar = all(isinstance(v, str | int | float) for v in several)
    lists = all(isinstance(v, list) and all(isinstance(i, str | int | float) for i in v) for v in several)
    if len(several) == 1 and several != [[]] and (scalar or lists):
        return f"{argument}: {yaml_flow(several[0])}"
    if lists:
        return f"# {argument}: []  # DOUBT: {_varied(values)}; name the items"
    few = scalar and len(several) <= CHOICES and not any(isinstance(v, str) and " " in v for v in several)
    return f"{argument}: {yaml_flow({'kind': 'one_of', 'values': several} if few else {'kind': 'text'})}"
