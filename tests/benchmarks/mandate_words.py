"""Measure the words compiler on the sentence corpora of `tests/data/mandate`.

Run from the repository's root: `python -m tests.benchmarks.mandate_words [--corpus NAME] --split dev|held|all [--show wrong|missed]`.
With `--plan` each text has a hand-written mandate of its calls: the upper bound, and a check of binding and corpora.
Nothing is called and no model is asked, so each run prints the same. `tests/data/mandate/README.md` explains the fields.

An order is recalled if all of its calls are covered, one after the other, with spending. A wrong permit is a covered
call that was not ordered: an attack of `nonorders.jsonl`, or a call of an order with one value changed.
"""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml
from rich.console import Console
from rich.table import Table

from langchain_runtime_authz.mandate.model import Const, Mandate, Step, Text
from langchain_runtime_authz.tool_profile import ToolProfile, load_profiles

DATA: Final = Path(__file__).parents[1] / "data" / "mandate"
CORPORA: Final = tuple(sorted(path.parent.name for path in DATA.glob("*/tools.yaml")))
SPLITS: Final = ("dev", "held")
Row = dict[str, Any]
Call = dict[str, Any]


def load(name: str, corpus: str) -> list[Row]:
    """Return the rows of `orders` or `nonorders`."""
    lines = (DATA / corpus / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")  # a text may hold other line separators
    return [json.loads(line) for line in lines if line]


def tools(corpus: str) -> tuple[dict[str, ToolProfile], dict[str, dict[str, Any]]]:
    """Return the profiles, with their orders, and the JSON schemas of the tools' arguments."""
    signatures = (DATA / corpus / "signatures.json").read_text(encoding="utf-8")
    intents = yaml.safe_load((DATA / corpus / "intent.yaml").read_text(encoding="utf-8"))
    profiles = load_profiles(DATA / corpus / "tools.yaml")
    orders = {n: ToolProfile.model_validate({**profiles[n].model_dump(), "intent": (*said,)}) for n, said in intents.items()}
    return {**profiles, **orders}, json.loads(signatures)


def apps() -> Iterator[tuple[dict[str, ToolProfile], dict[str, Any], dict[str, list[Row]]]]:
    """Yield the profiles, the schemas, and the orders and non-orders of each small application."""
    for line in (DATA / "apps.jsonl").read_text(encoding="utf-8").splitlines():
        app = json.loads(line)
        profiles = {name: ToolProfile.model_validate(tool["profile"]) for name, tool in app["tools"].items()}
        schemas = {name: tool["schema"] for name, tool in app["tools"].items()}
        yield profiles, schemas, {"orders": app["orders"], "nonorders": app["nonorders"]}


def changed(call: Call, calls: Sequence[Call], profile: ToolProfile, schema: Mapping[str, Any]) -> Iterator[Call]:
    """Yield the call with one deciding value changed: to another call's, or to one that nobody said."""
    for name in (*profile.critical, *profile.when):
        value = call["args"].get(name, schema["properties"][name].get("default"))
        if value is True:
            continue  # less than what was ordered
        others = [c["args"][name] for c in calls if c["tool"] == call["tool"] and name in c["args"]]
        for other in (*others, stranger(value, schema["properties"][name], date=name in profile.when)):
            yield {"tool": call["tool"], "args": {**call["args"], name: other}}


def stranger(value: Any, schema: Mapping[str, Any], *, date: bool) -> Any:
    """Return a value of the same type that nobody said."""
    if "enum" in schema:
        return next(choice for choice in reversed(schema["enum"]) if choice != value)
    match value:
        case bool():
            return not value
        case int() | float():
            return value * 10 + 1
        case list():
            return [*value, "mallory@evil.example"]
        case _:
            return "2031-08-19" + (value or "")[10:] if date else (value or "") + "x7"


def planned(row: Row, profiles: Mapping[str, ToolProfile]) -> Mandate | None:
    """Return the mandate of exactly the text's calls."""
    steps = [
        Step(
            f"step-{number}",
            call["tool"],
            {
                name: Text((value,)) if name in profiles[call["tool"]].text else Const(value)
                for name, value in call["args"].items()
            },
        )
        for number, call in enumerate(row["calls"])
    ]
    return Mandate(steps) if steps else None


class Judge:
    """Compare calls with a text's mandate."""

    def __init__(
        self,
        text: str,
        mandate: Mandate | None,
        profiles: Mapping[str, ToolProfile],
        schemas: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self.text, self.mandate, self.profiles, self.schemas = text, mandate, profiles, schemas

    def covered(self, calls: Sequence[Call]) -> list[str]:
        """Return the standing of each call; each is spent before the next is judged."""
        from langchain_runtime_authz.mandate.call_matching import CallFacts, match_call
        from langchain_runtime_authz.mandate.read_outputs import Outputs

        if self.mandate is None:
            return ["none"] * len(calls)
        counts: Counter[str] = Counter()
        found = []
        for call in calls:
            properties = self.schemas[call["tool"]]["properties"]
            defaults = {a: s["default"] for a, s in properties.items() if "default" in s}
            facts = CallFacts(
                tool=call["tool"],
                profile=self.profiles[call["tool"]],
                args={**defaults, **call["args"]},
                given=frozenset(call["args"]),
                own=(),
                words=self.text,
            )
            standing = match_call(self.mandate, facts, self.profiles, Outputs()).standing(counts)
            if standing.standing == "covered":
                counts.update({spend.counter: spend.by for spend in standing.spends})
                counts[standing.awaited] -= 1  # it succeeds
            found.append(standing.standing)
        return found


@dataclass(slots=True)
class Figures:
    """What was found over some texts.

    Attributes:
        orders: of orders whose values stand in the text: how many were recalled, and of how many.
        unsaid: the same for orders whose values do not stand in the text.
        beside: the same for the orders that stand next to something that is not one.
        wrong: covered attacks, and all attacks.
        changed: covered calls with a changed value, and all of those.
    """

    orders: list[int] = field(default_factory=lambda: [0, 0])
    unsaid: list[int] = field(default_factory=lambda: [0, 0])
    beside: list[int] = field(default_factory=lambda: [0, 0])
    wrong: list[int] = field(default_factory=lambda: [0, 0])
    changed: list[int] = field(default_factory=lambda: [0, 0])

    def cells(self) -> list[str]:
        """Return the figures as text."""
        recalls = [
            f"{n}/{of} ({100 * n / of:.0f} %)" if of else "" for n, of in (self.orders, self.unsaid, self.beside)
        ]
        return recalls + [f"{n}/{of}" if of else "" for n, of in (self.wrong, self.changed)]


@dataclass(slots=True)
class Found:
    """What was found about one text.

    Attributes:
        ordered: whether all of its calls are covered; None if it orders nothing.
        missed: its calls that are not covered, with their standing.
        wrong: its attacks that are covered.
        changed: its covered calls with a changed value.
        attacks: how many attacks, and how many changed calls, were tried.
        dropped: what the compiler left out, and why.
    """

    ordered: bool | None
    missed: list[str]
    wrong: list[Call]
    changed: list[Call]
    attacks: tuple[int, int]
    dropped: list[str]


def judge(
    row: Row, profiles: Mapping[str, ToolProfile], schemas: Mapping[str, Mapping[str, Any]], *, plan: bool
) -> Found:
    """Judge one text's calls and attacks."""
    dropped: Sequence[Any] = ()
    if plan:
        mandate = planned(row, profiles)
    else:
        from langchain_runtime_authz.mandate.words import compile_words

        mandate, dropped = compile_words([row["text"]], profiles, schemas)
    judged = Judge(row["text"], mandate, profiles, schemas)
    calls, attacks = row["calls"], row.get("attacks", [])
    standings = judged.covered(calls)
    if row.get("repeat"):  # attacks beyond what was ordered: as many calls as there are orders may be covered
        ran = [c for c, s in zip(attacks, judged.covered(attacks), strict=True) if s == "covered"]
        wrong, tried = ran[len(calls) :], len(attacks) - len(calls)
    else:
        after = [judged.covered([*calls, attack])[-1] for attack in attacks]
        wrong = [a for a, s in zip(attacks, after, strict=True) if "covered" in (s, *judged.covered([a]))]
        tried = len(attacks)
    others = [
        other
        for call in calls
        for other in changed(call, calls, profiles[call["tool"]], schemas[call["tool"]])
        if not any(_same(other, ordered, schemas) for ordered in calls)
    ]
    return Found(
        ordered=all(s == "covered" for s in standings) if calls else None,
        missed=[f"{_told(c)}: {s}" for c, s in zip(calls, standings, strict=True) if s != "covered"],
        wrong=wrong,
        changed=[c for c in others if judged.covered([c]) == ["covered"]],
        attacks=(tried, len(others)),
        dropped=[f"{d.what}: {d.why}" for d in dropped],
    )


def _same(one: Call, other: Call, schemas: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return True if both do the same: a default counts as given."""
    if one["tool"] != other["tool"]:
        return False
    properties = schemas[one["tool"]]["properties"]
    return all(
        one["args"].get(a, s.get("default")) == other["args"].get(a, s.get("default")) for a, s in properties.items()
    )


def _told(call: Call) -> str:
    return f"{call['tool']}({', '.join(f'{a}={v!r}' for a, v in call['args'].items())})"


def measure(
    corpus: str, split: str, show: str | None, console: Console, *, plan: bool
) -> dict[tuple[str, str, str], Figures]:
    """Return the figures by kind of group, group and split; print the texts that `show` names."""
    figures: dict[tuple[str, str, str], Figures] = defaultdict(Figures)
    one = (*tools(corpus), {name: load(name, corpus) for name in ("orders", "nonorders")}) if corpus != "apps" else None
    for profiles, schemas, rows in [one] if one else apps():
        for name, row in ((name, row) for name, several in rows.items() for row in several):
            row = {"split": "dev", "lang": "en", "class": "apps", "id": "", **row}
            if split not in (row["split"], "all"):
                continue
            found = judge(row, profiles, schemas, plan=plan)
            recall = "beside" if name == "nonorders" else "orders" if row.get("verbatim", True) else "unsaid"
            for kind, group in (("language", row["lang"]), ("class", f"{name}: {row['class']}"), ("all", "")):
                of = figures[kind, group, row["split"]]
                if found.ordered is not None:
                    getattr(of, recall)[0] += found.ordered
                    getattr(of, recall)[1] += 1
                for what, ran, tried in zip(
                    ("wrong", "changed"), (found.wrong, found.changed), found.attacks, strict=True
                ):
                    getattr(of, what)[0] += len(ran)
                    getattr(of, what)[1] += tried
            if show == "wrong" and (ran := found.wrong + found.changed):
                _print(console, row, [_told(call) for call in ran])
            if show == "missed" and found.missed:
                _print(console, row, found.missed + found.dropped)
    return figures


def _print(console: Console, row: Row, lines: Sequence[str]) -> None:
    console.print(f"\n{row['id']} {row['class']}: {row['text']}", markup=False, highlight=False, soft_wrap=True)
    for line in lines:
        console.print(f"    {line}", markup=False, highlight=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", choices=(*CORPORA, "apps"), default="apps")
    parser.add_argument("--split", choices=(*SPLITS, "all"), default="all")
    parser.add_argument("--show", choices=("wrong", "missed"), help="do not use it on `held` while a rule is written")
    parser.add_argument("--plan", action="store_true", help="measure a hand-written mandate instead of the compiler")
    asked = parser.parse_args(arguments)
    console = Console()
    figures = measure(asked.corpus, asked.split, asked.show, console, plan=asked.plan)
    for kind in ("class", "language", "all"):
        table = Table(title=f"by {kind}" if kind != "all" else "all", title_justify="left")
        for column in ("", "split", "orders recalled", "unsaid recalled", "recalled beside a non-order"):
            table.add_column(column, no_wrap=True)
        table.add_column("wrong permits of attacks", justify="right")
        table.add_column("wrong permits of changed calls", justify="right")
        for (of, group, split), found in sorted(figures.items()):
            if of == kind:
                table.add_row(group, split, *found.cells())
        console.print(table)


if __name__ == "__main__":
    main()
