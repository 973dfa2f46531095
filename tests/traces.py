"""Show spans as a tree of text, from an SDK's memory or from Jaeger's query API."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from opentelemetry.sdk.trace import ReadableSpan


class Shown(NamedTuple):
    """One span, wherever it was read."""

    name: str
    trace: str
    id: str
    parent: str | None
    start: int
    attributes: Mapping[str, Any]
    links: tuple[tuple[str, str], ...]  # (trace, span)
    events: tuple[tuple[str, Mapping[str, Any]], ...]


def of_sdk(spans: Iterable[ReadableSpan]) -> list[Shown]:
    """Return the spans of an in-memory exporter."""
    return [
        Shown(
            s.name, f"{s.context.trace_id:032x}", f"{s.context.span_id:016x}",
            f"{s.parent.span_id:016x}" if s.parent else None, s.start_time or 0, dict(s.attributes or {}),
            tuple((f"{x.context.trace_id:032x}", f"{x.context.span_id:016x}") for x in s.links),
            tuple((e.name, dict(e.attributes or {})) for e in s.events),
        )
        for s in spans if s.context is not None
    ]  # fmt: skip


def of_jaeger(traces: Iterable[Mapping[str, Any]]) -> list[Shown]:
    """Return the spans of an answer of `/api/traces`."""
    found = []
    for span in (s for t in traces for s in t["spans"]):
        refs = [(r["refType"], r["traceID"], r["spanID"]) for r in span["references"]]
        parent = next((i for kind, _, i in refs if kind == "CHILD_OF"), None)
        logs = [{f["key"]: _value(f["value"]) for f in log["fields"]} for log in span["logs"]]
        found.append(
            Shown(
                span["operationName"], span["traceID"], span["spanID"], parent, span["startTime"],
                {t["key"]: _value(t["value"]) for t in span["tags"]},
                tuple((t, i) for kind, t, i in refs if kind == "FOLLOWS_FROM"),
                tuple((str(log.pop("event", "")), log) for log in logs),
            )
        )  # fmt: skip
    return found


def _value(value: Any) -> Any:
    """Return a list that Jaeger keeps as JSON as a tuple, anything else as it is."""
    return tuple(json.loads(value)) if isinstance(value, str) and value.startswith("[") else value


def tree(spans: Iterable[Shown]) -> str:
    """Draw each trace: a line a span with its outcome and links, and its events below it."""
    every = sorted(spans, key=lambda s: s.start)
    number = {s.id: i for i, s in enumerate(every, 1)}
    below: dict[str | None, list[Shown]] = {}
    for span in every:
        below.setdefault(span.parent if span.parent in number else None, []).append(span)

    def lines(span: Shown, indent: str) -> Iterator[str]:
        outcome = span.attributes.get("runtime_authz.decision") or span.attributes.get("runtime_authz.run.state")
        reasons = span.attributes.get("runtime_authz.reasons") or ()
        said = f"  {outcome}" if outcome else ""
        said += f" ({', '.join(reasons)})" if reasons else ""
        linked = "".join(f"  -> [{number[i]}]" for _, i in span.links if i in number)
        yield f"{indent}[{number[span.id]}] {span.name}{said}{linked}"
        for name, about in span.events:
            epochs = [about.get(f"runtime_authz.credential.epoch{end}") for end in (".before", "")]
            found = [about.get(f"runtime_authz.{name}") for name in ("to", "tools", "tool", "verdict")]
            more = [" ".join(v) if isinstance(v, tuple) else str(v) for v in found if v]
            more += [f"epoch {epochs[0]} -> {epochs[1]}"] if epochs[0] is not None else []
            yield f"{indent}    * {name.removeprefix('runtime_authz.')} {' '.join(more)}".rstrip()
        for child in below.get(span.id, []):
            yield from lines(child, indent + "    ")

    return "\n".join(line for root in below.get(None, []) for line in lines(root, ""))
