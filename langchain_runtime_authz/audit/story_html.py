"""Draw a story as HTML: a self-contained page, or a fragment for notebooks. Pure.

The page loads nothing: its content security policy permits only its own style and script. All texts are escaped.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from functools import cache
from html import escape
from importlib import resources
from string import Template
from typing import Final

from langchain_runtime_authz._display import html_table
from langchain_runtime_authz.audit.story import SIGNS, Event, Record, Story, story_of

ROW: Final = 44  # pixels of a lane
TOP: Final = 34
NAMES: Final = 170
NEAR: Final = 26  # pixels between two steps at once
FAR: Final = 48  # pixels that a pause between two steps adds at most
PER_SECOND: Final = 8
TICK: Final = 90  # pixels between two labels of the time axis
NEWEST: Final = 100  # steps in a notebook
_CIRCLE: Final = "M-9 0a9 9 0 1 0 18 0a9 9 0 1 0-18 0z"
_SHAPES: Final = {
    "deny": "M-9-9h18v18h-18z",
    "ask": "M0-12l12 12l-12 12l-12-12z",
    "answer": "M-11 0l5-10h12l5 10l-5 10h-12z",
    "task": "M0-12l12 21h-24z",
    "revocation": "M-5-11h10l6 6v10l-6 6h-10l-6-6v-10z",
    "rotation": "M-9-9h14a4 4 0 0 1 4 4v14h-14a4 4 0 0 1-4-4z",
}


def html_page(story: Story) -> str:
    style, script = _asset("story.css"), _asset("story.js")
    policy = f"default-src 'none'; style-src '{_sha(style)}'; script-src '{_sha(script)}'; base-uri 'none'; form-action 'none'"
    title = f"Run report: {', '.join(list(story.facts.get('thread', ['no thread']))[:3])}"
    parts = {"policy": policy, "title": escape(title), "style": style, "script": script, "agents": _agents(story)}
    return Template(_asset("story.html")).substitute(_parts(story, linked=True), **parts)


def html_fragment(story: Story) -> str:
    """Return HTML to embed, without the script."""
    return f'<div class="rta"><style>{_asset("story.css")}</style>{"".join(_parts(story, linked=False).values())}</div>'


def newest_steps(records: Iterable[Record | None], run_id: str | None = None) -> str:
    """Return the newest steps on record, of one run or of all, as HTML for notebooks."""
    found = story_of(records, lambda s: s.kind != "check" and run_id in (None, s.record.get("run_id")), NEWEST)
    return html_fragment(found) if found.steps else "<p>nothing on record here</p>"


def _parts(story: Story, *, linked: bool) -> dict[str, str]:
    facts = f'<ul class="facts">{"".join(f"<li>{escape(line)}</li>" for line in story.heading())}</ul>'
    rows, timeline = story.ordered(), _timeline(story, linked=linked)
    orders = f"<h2>Ordered and done</h2>{html_table(('by', 'ordered', 'done'), rows)}" if rows else ""
    return {"facts": facts, "timeline": timeline, "orders": orders, "steps": _table(story, linked=linked)}


@cache
def _asset(name: str) -> str:
    return (resources.files("langchain_runtime_authz.audit") / name).read_text(encoding="utf-8")


def _sha(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _timeline(story: Story, *, linked: bool) -> str:
    lanes = {lane: TOP + ROW * i + ROW // 2 for i, lane in enumerate(story.lanes)}
    height, marks, rules, x, ticked, before = TOP + ROW * len(lanes), [], [], 0.0, 0.0, None
    for step in story.steps:
        gap = 0.0 if before is None else max(step.at - before, 0.0)
        x, before = x + NEAR + min(FAR, gap * PER_SECOND), step.at
        if x - ticked >= TICK or not ticked:
            ticked = x
            rules.append(f'<text class="soft" x="{x:.0f}" y="14" text-anchor="middle">{story.since(step)}</text>')
        if step.kind == "task":
            rules.append(f'<path class="axis" stroke-dasharray="4 4" d="M{x:.0f} 20V{height}"/>')
            rules.append(f'<text class="soft" x="{x + 3:.0f}" y="28">epoch {escape(step.epoch)}</text>')
        if step.to is not None:
            rules.append(f'<path class="edge" d="M{x:.0f} {lanes[step.lane]}L{x + 14:.0f} {lanes[step.to]}"/>')
        marks.append(_mark(story, step, x, lanes[step.lane], linked=linked))
    width = x + NEAR
    lines = "".join(f'<path class="axis" d="M0 {y}H{width:.0f}"/>' for y in lanes.values())
    names = "".join(
        f'<text x="{8 + 10 * max(len(lane.agent) - 1, 0)}" y="{y + 4}">{escape(story.name(lane)[:22])}</text>'
        for lane, y in lanes.items()
    )
    return (
        f'<div class="time"><svg aria-hidden="true" width="{NAMES}" height="{height}">{names}</svg>'
        f'<div class="lanes" role="region" tabindex="0" aria-label="Timeline. The table below holds the same steps.">'
        f'<svg width="{width:.0f}" height="{height}">{lines}{"".join(rules)}{"".join(marks)}</svg></div></div>'
    )


def _mark(story: Story, step: Event, x: float, y: int, *, linked: bool) -> str:
    sign, word = SIGNS[step.kind]
    told = escape(f"{word}: {step.what}, {story.name(step.lane)}, {story.since(step)}")
    tag, about = ("a", f' href="#s{step.number}" aria-label="{told}"') if linked else ("g", "")
    return (
        f'<{tag} class="mark k {step.kind}"{about} transform="translate({x:.0f} {y})"><title>{told}</title>'
        f'<path d="{_SHAPES.get(step.kind, _CIRCLE)}"/><text y="4">{sign}</text></{tag}>'
    )


def _agents(story: Story) -> str:
    told, depth = "", 0
    for lane, how in story.lanes.items():
        deep = max(len(lane.agent), 1)
        told += "<ul><li>" * (deep - depth) if deep > depth else "</li></ul>" * (depth - deep) + "</li><li>"
        told, depth = told + escape(f"{story.name(lane)} {how}"), deep
    return f"<h2>Agents</h2>{told}{'</li></ul>' * depth}" if len(story.lanes) > 1 else ""


def _table(story: Story, *, linked: bool) -> str:
    lanes = {lane: i for i, lane in enumerate(story.lanes)}
    rows = []
    for step in story.steps:
        sign, word = SIGNS[step.kind]
        ident = f' id="s{step.number}"' if linked else ""
        rows.append(
            f'<tr{ident} class="k {step.kind}" data-k="{step.kind}" data-l="{lanes[step.lane]}">'
            f'<td class="n">{story.since(step)}</td><td>{escape(story.name(step.lane))}</td>'
            f'<td class="w"><span aria-hidden="true">{sign}</span> {word}</td>'
            f"<td><details><summary>{escape(step.what + step.ended) or word}</summary><pre>{escape(step.why())}</pre></details></td>"
            f"<td>{escape(step.epoch)}</td></tr>"
        )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("time", "agent", "step", "what, and why", "epoch"))
    return f"<table class='steps'><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
