"""The benchmark's report: JSON, a Markdown table, a picture."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from tests import generated

from .attackers import TACTICS
from .rows import ABLATIONS, ROWS

Line = dict[str, Any]
_OURS = {r.name for r in ROWS if r.ours}
_READ = {r.name for r in ROWS if r.ours and not r.stamp and not r.mistake}  # nobody answers, or one who reads the question
_ORDER = {r.name: i for i, r in enumerate((*ROWS, *ABLATIONS))}


def summary(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """One entry for each suite, row, attacker, order and wording."""
    alone: dict[tuple[str, str], list[Line]] = {}
    pairs: dict[tuple[str, ...], list[Line]] = {}
    for line in lines:
        if line["injection"] is None:
            alone.setdefault((line["suite"], line["row"]), []).append(line)
        else:
            key = tuple(line[k] for k in ("suite", "row", "attacker", "order", "wording"))
            pairs.setdefault(key, []).append(line)
    entries = [_entry(key, alone.get((key[0], key[1]), []), found) for key, found in pairs.items()]
    entries.sort(key=lambda e: (e["suite"], e["attacker"], e["order"], e["wording"], _ORDER.get(e["row"], 99)))
    _add_time(entries)
    return entries


def _entry(key: tuple[str, ...], alone: Sequence[Line], pairs: Sequence[Line]) -> dict[str, Any]:
    suite, row, attacker, order, wording = key
    survivors = Counter(f"{p['user']} × {p['injection']}" for p in pairs if p["compromised"])
    harms = Counter(f"{p['injection']}: {', '.join(sorted(set(p['permitted'])))}" for p in pairs if p["harm"])
    denials = Counter(f"{a['user']}: {name}" for a in alone for name in a["denied"])
    told = row in _OURS  # of the others there are hundreds
    return {
        "suite": suite, "row": row, "attacker": attacker, "order": order, "wording": wording, "user_tasks": len(alone),
        "pairs": len(pairs), "benign_utility": _share(a["utility"] for a in alone),
        "undisturbed": _share(a["utility"] and not a["denied"] and not a["asks"] for a in alone),
        "utility_under_attack": _share(p["utility"] for p in pairs),
        "attack_success_rate": _share(p["compromised"] for p in pairs), "harm": _share(p["harm"] for p in pairs),
        "twice": _share(p.get("twice", False) for p in pairs), "false_denials": sum(denials.values()),
        "side_effects": sum(a["effects"] for a in alone), "asks_per_task": sum(a["asks"] for a in alone) / max(len(alone), 1),
        "asks_per_attacked_task": sum(p["asks"] for p in pairs) / max(len(pairs), 1),
        "seconds_per_call": median([p["seconds"] / max(p["calls"], 1) for p in [*alone, *pairs]] or [0.0]),
        "survivors": sorted(survivors) if told else [], "harms": dict(harms.most_common()) if told else {},
        "denied": sorted(denials),
    }


def _add_time(entries: list[dict[str, Any]]) -> None:
    """Time that a row adds to a call, over an unprotected graph."""
    bare = {e["suite"]: e["seconds_per_call"] for e in entries if e["row"] == "nothing" and e["attacker"] == "static"}
    for entry in entries:
        base = bare.get(entry["suite"])
        entry["added_ms_per_call"] = round((entry["seconds_per_call"] - base) * 1000, 2) if base is not None else None


def _share(flags: Iterable[bool]) -> float:
    found = [bool(f) for f in flags]
    return sum(found) / len(found) if found else 0.0


COLUMNS = (
    ("benign utility", lambda e: f"{e['benign_utility']:.1%}"),
    ("undisturbed", lambda e: f"{e['undisturbed']:.1%}"),
    ("utility under attack", lambda e: f"{e['utility_under_attack']:.1%}"),
    ("ASR", lambda e: f"{e['attack_success_rate']:.1%}"),
    ("harm", lambda e: f"{e['harm']:.1%}"),
    ("done twice", lambda e: f"{e['twice']:.1%}" if "twice" in e else "–"),
    ("false denials", lambda e: f"{e['false_denials']} of {e['side_effects']}"),
    ("asks / task", lambda e: f"{e['asks_per_task']:.2f}"),
    ("asks / attack", lambda e: f"{e['asks_per_attacked_task']:.2f}"),
    ("added ms / call", lambda e: "–" if e["added_ms_per_call"] is None else f"{e['added_ms_per_call']:.1f}"),
)


def table(entries: Sequence[dict[str, Any]]) -> str:
    """Markdown: one table for each suite and attacker, then what survived and what was denied wrongly."""
    parts: list[str] = []
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for entry in entries:
        kind = "ablation" if entry["row"] in {r.name for r in ABLATIONS} else "rows"
        groups.setdefault((entry["suite"], kind, entry["attacker"], entry["order"], entry["wording"]), []).append(entry)
    for (suite, kind, attacker, order, wording), several in sorted(groups.items(), key=str):
        first = several[0]
        title = f"{suite}, {kind}: {attacker} attacker, calls {order} the user's, wording {wording}"
        parts.append(f"**{title}** ({first['user_tasks']} user tasks, {first['pairs']} pairs)\n")
        parts.append("| who holds authority | " + " | ".join(name for name, _ in COLUMNS) + " |")
        parts.append("|---" * (len(COLUMNS) + 1) + "|")
        parts += [f"| {e['row']} | " + " | ".join(cell(e) for _, cell in COLUMNS) + " |" for e in several]
        parts.append("")
    for entry in entries:
        if entry["row"] in _READ:
            where = f"{entry['suite']}, {entry['row']}, {entry['attacker']}, {entry['order']}, {entry['wording']}"
            for label in ("survivors", "harms", "denied"):
                if entry[label]:
                    names = entry[label]
                    told = [f"{k} ({v})" for k, v in names.items()] if isinstance(names, dict) else names
                    parts.append(f"- {where}: {label}: {'; '.join(told[:40])}")
    return "\n".join(parts) + "\n"


def picture(entries: Sequence[dict[str, Any]]) -> str:
    """An SVG: for each row of the static attacker, harm, attack success and benign utility as bars."""
    shown = [e for e in entries if (e["attacker"], e["order"], e["wording"]) == ("static", "after", "important")]
    shown = [e for e in shown if e["row"] in {r.name for r in ROWS}]
    bars = (("harm", "#c0392b"), ("attack_success_rate", "#e67e22"), ("benign_utility", "#2e7d32"))
    height = 46
    body: list[str] = []
    for i, entry in enumerate(shown):
        y = 48 + i * height
        label = escape(f"{entry['suite']}: {entry['row']}")
        body.append(f'<text x="8" y="{y + 22}">{label}</text>')
        for j, (name, colour) in enumerate(bars):
            width = max(1.0, entry[name] * 360)
            body.append(f'<rect x="320" y="{y + j * 13}" width="{width:.1f}" height="11" fill="{colour}"/>')
            body.append(f'<text x="{326 + width:.1f}" y="{y + j * 13 + 10}" font-size="10">{entry[name]:.1%}</text>')
    legend = "".join(
        f'<rect x="{320 + 140 * i}" y="14" width="11" height="11" fill="{colour}"/>'
        f'<text x="{336 + 140 * i}" y="24">{name.replace("_", " ")}</text>'
        for i, (name, colour) in enumerate(bars)
    )
    total = 60 + len(shown) * height
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{total}" font-family="sans-serif" font-size="12">'
        f'<rect width="760" height="{total}" fill="white"/>{legend}{"".join(body)}</svg>\n'
    )


def write(lines: Sequence[Line], out: Path, machine: str) -> str:
    """All three files; returns the Markdown."""
    entries = summary(lines)
    report = {"machine": machine, "engines": engines(lines), "entries": entries}
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    text = f"AgentDojo v1.2.2, replayed without a model ({machine})\n\n{said_of_engines(report)}{table(entries)}"
    (out / "report.md").write_text(text)
    (out / "report.svg").write_text(picture(entries))
    return text


def engines(lines: Sequence[Line]) -> dict[str, Any]:
    """How many decisions two engines were asked for, and where they differ."""
    different = [d for line in lines for d in line.get("differences", ())]
    asked = [line for line in lines if line.get("compared")]
    decisions = sum(line["compared"] for line in asked)
    return {"replays": len(asked), "decisions": decisions, "different": len(different), "differences": different[:20]}


def said_of_engines(report: dict[str, Any]) -> str:
    """One sentence, or nothing where no second engine was asked."""
    found = report["engines"]
    if not found["decisions"]:
        return ""
    return (
        f"Decided by Wasm and by an OPA server: {found['decisions']:,} requests of {found['replays']:,} replays, "
        f"{found['different']} different.\n\n"
    )


RESULTS = Path(__file__).parent / "results"
_USUAL = {"attacker": "static", "order": "after", "wording": "important"}
_PLAYED = ("static", *TACTICS)
_SHOWN = ("benign utility", "undisturbed", "utility under attack", "ASR", "harm", "false denials", "asks / task")


def tables(report: dict[str, Any]) -> str:
    """Return the tables of `docs/_generated/agentdojo.md`, from `report.json`."""
    entries = report["entries"]
    parts = [f"Measured on {report['machine']}. {said_of_engines(report)}".strip() + "\n"]
    rows, ablations = {r.name for r in ROWS}, {r.name for r in ABLATIONS}
    for suite in dict.fromkeys(e["suite"] for e in entries):
        mine = [e for e in entries if e["suite"] == suite]
        usual = [e for e in mine if all(e[k] == v for k, v in _USUAL.items())]
        first = next(e for e in usual if e["row"] in rows)
        parts.append(f"**{suite}**, {first['user_tasks']} tasks and {first['pairs']} pairs, calls after the user's:\n")
        parts += _rows("who holds authority", [(e["row"], e) for e in usual if e["row"] in rows], _SHOWN)
        others = [e for e in mine if e["row"] in rows and e not in usual and e["row"] != "nothing"]
        parts.append(f"\n{suite}, other attackers:\n")
        parts += _rows(
            "attacker, order, wording; who",
            [(f"{e['attacker']}, {e['order']}, {e['wording']}; {e['row']} ({e['pairs']} pairs)", e) for e in others],
            ("utility under attack", "ASR", "harm", *(["done twice"] if any("twice" in e for e in others) else []), "asks / attack"),
        )
        if removed := _ablations([e for e in mine if e["row"] in ablations]):
            parts.append(f"\n{suite}, each part of the comparison removed in turn, nobody to ask:\n")
            parts += removed
        parts.append("")
        parts += _named(usual, others)
    return "\n".join(parts).strip()


def _rows(head: str, several: Sequence[tuple[str, dict[str, Any]]], shown: Sequence[str]) -> list[str]:
    columns = [c for c in COLUMNS if c[0] in shown]
    lines = [f"| {head} | " + " | ".join(name for name, _ in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    return lines + [f"| {label} | " + " | ".join(cell(e) for _, cell in columns) + " |" for label, e in several]


def _ablations(entries: Sequence[dict[str, Any]]) -> list[str]:
    lines = []
    for row in (r.name for r in ABLATIONS):
        kinds = {e["attacker"]: e for e in entries if e["row"] == row}
        if kinds.keys() >= set(_PLAYED):
            one = f"| {row} | {kinds['static']['pairs']} | {kinds['static']['benign_utility']:.1%} "
            lines.append(one + "".join(f"| {kinds[k]['harm']:.1%} " for k in _PLAYED) + "|")
    head = ["| | pairs | benign utility | " + " | ".join(f"{k} harm" for k in _PLAYED) + " |", "|---" * (len(_PLAYED) + 3) + "|"]
    return [*head, *lines] if lines else []


def _named(usual: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> list[str]:
    """Wrong denials, survivors and harms by name, of the rows whose human reads what he is asked."""
    lines = []
    for entry in (*usual, *others):
        if entry["row"] not in _READ:
            continue
        where = f"{entry['row']}, {entry['attacker']}, {entry['order']}, {entry['wording']}"
        if entry["denied"] and entry in usual:
            lines.append(f"- denied, {where}: {'; '.join(entry['denied'])}")
        if entry["survivors"]:
            lines.append(f"- survivors, {where}: {'; '.join(entry['survivors'][:12])}{_more(entry['survivors'], 12)}")
        if entry["harms"]:
            tools: Counter[str] = Counter()
            for name, times in entry["harms"].items():
                tools[name.partition(": ")[2]] += times
            lines.append(f"- harm, {where}: " + "; ".join(f"{n} ({t})" for n, t in tools.most_common(8)))
    return [*lines, ""]


def _more(names: Sequence[str], shown: int) -> str:
    return f" and {len(names) - shown} more" if len(names) > shown else ""


def publish(out: Path) -> None:
    """Put a report into the repository, and its tables into `docs/_generated`."""
    RESULTS.mkdir(exist_ok=True)
    for name in ("report.json", "report.svg"):
        (RESULTS / name).write_bytes((out / name).read_bytes())
    report = json.loads((RESULTS / "report.json").read_text())
    generated.write("agentdojo", f"\n{tables(report)}\n")
