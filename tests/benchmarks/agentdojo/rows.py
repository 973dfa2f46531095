"""Who holds authority: from nothing, over tokens, to the runtime decision, and each of its signals removed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import langchain_runtime_authz
from langchain_runtime_authz import Grant, RuntimeAuthz
from langchain_runtime_authz.authzen import EvaluationRequest
from langchain_runtime_authz.pdp.opa import OpaPDP
from langchain_runtime_authz.pdp.wasm import WasmPDP
from langchain_runtime_authz.profile import ToolProfile
from langchain_runtime_authz.testing import StaticPDP

from .engines import DEADLINE, TwoEngines

Profiles = Mapping[str, ToolProfile]
_DATA = json.loads(
    (Path(langchain_runtime_authz.__file__).parent / "policies" / "data.json").read_text(),
)["runtime_authz_data"]


@dataclass(frozen=True)
class Row:
    """One kind of authority.

    `stamp` is the share of questions that the human approves unread; `None`: nobody is there to ask.
    `policy` and `profiles` change what the shipped policy reads, for ablations.
    """

    name: str
    kind: str = "ours"
    stamp: float | None = 0.0
    policy: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    profiles: Callable[[ToolProfile], ToolProfile] | None = None


class Authority:
    """A row at work on one suite: makes the `RuntimeAuthz`, and what a run is opened with."""

    def __init__(self, row: Row, suite: Any, profiles: Profiles, *, engine: str = "wasm", url: str = "") -> None:
        """`engine` of our own rows: `wasm`, `opa` (the server at `url`), or `both`: Wasm, and the server beside it."""
        self.row = row
        self._two: TwoEngines | None = None
        self.graph: Any = None
        self.allowed: list[tuple[str, str]] = []
        self.tools: set[str] = set()
        self.used = _used(suite)
        if row.profiles is not None:
            profiles = {n: row.profiles(p) for n, p in profiles.items()}
        # What is measured is the decision, not how busy the machine is.
        options: dict[str, Any] = {"profiles": profiles}
        if row.kind == "ours" and engine == "opa":
            options["pdp"] = OpaPDP(url, timeout=DEADLINE, deadline=DEADLINE)
        elif row.kind == "ours" and engine == "both":
            options["pdp"] = self._two = TwoEngines(data_of(row), url)
        elif row.kind == "ours":
            options["pdp"] = WasmPDP(data=data_of(row), deadline=DEADLINE)
        else:
            options["pdp"] = StaticPDP(permit=self._permits, deadline=DEADLINE)
        self.authz = RuntimeAuthz(**options) if row.kind != "nothing" else None

    def settle(self) -> tuple[int, list[str]]:
        """How many decisions of the last run a second engine was asked for, and which of its answers differ."""
        return self._two.settle() if self._two is not None else (0, [])

    def start(self, calls: Sequence[Any]) -> dict[str, Any]:
        """What `RuntimeAuthz.run` gets for a user task with these calls."""
        self.tools = {c.function for c in calls}
        self.allowed = [(c.function, _spelled(c.args)) for c in calls]
        return {"grant": Grant(tools=tuple(self.tools))} if self.row.kind == "task token" else {}

    def _permits(self, request: EvaluationRequest) -> bool:
        tool = request.resource.id
        if request.resource.type != "tool" or self.row.kind == "static token":
            return True
        if self.row.kind == "trimmed token":
            return tool in self.used
        if self.row.kind == "task token":
            return tool in ((request.context.lease.grant or {}).get("tools") or ())
        args = request.context.call.args if request.context.call is not None else {}
        given = {k: v for k, v in args.items() if v not in (None, "", [])}
        return any(t == tool and json.loads(a).items() <= given.items() for t, a in self.allowed)


def data_of(row: Row) -> dict[str, Any]:
    """What the shipped policy reads under a row."""
    return {**_DATA, **(row.policy(copy.deepcopy(_DATA)) if row.policy is not None else {})}


def _spelled(args: Mapping[str, Any]) -> str:
    return json.dumps({k: v for k, v in args.items() if v not in (None, "", [])}, default=str)


def _used(suite: Any) -> set[str]:
    env = suite.load_and_inject_default_environment({})
    tasks = suite.user_tasks.values()
    return {c.function for t in tasks for c in t.ground_truth(t.init_environment(env.model_copy(deep=True)))}


ROWS: tuple[Row, ...] = (
    Row("nothing", "nothing"),
    Row("static token", "static token"),
    Row("trimmed token", "trimmed token"),
    Row("per-task tool token (oracle)", "task token"),
    Row("ours, nobody to ask", stamp=None),
    Row("ours, asks, 0 % unread"),
    Row("ours, asks, 10 % unread", stamp=0.1),
    Row("ours, asks, 50 % unread", stamp=0.5),
    Row("ours, asks, 100 % unread", stamp=1.0),
    Row("exact plan (oracle)", "plan"),
)


# --- ablation: each signal removed in turn -------------------------------------------------------------


def _worth(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def apply(data: dict[str, Any]) -> dict[str, Any]:
        change(data["worth"])
        return {"worth": data["worth"]}

    return apply


def _no_named(worth: dict[str, Any]) -> None:
    for row in worth.values():
        row.pop("named", None)
    worth["*"]["named"] = "outside"


def _no_selection(worth: dict[str, Any]) -> None:
    worth["*"]["selected"] = "known"


def _no_delegation(data: dict[str, Any]) -> dict[str, Any]:
    for rows in data["effects"].values():
        if isinstance(rows, dict) and "unasked" in rows:
            rows["delegated"] = rows["unasked"]
    return {"effects": data["effects"]}


def _no_flow(data: dict[str, Any]) -> dict[str, Any]:
    return {"data_flow": {"*": {"internal": "permit", "external": "permit"}}}


def _one_trust(profile: ToolProfile) -> ToolProfile:
    """Trust per tool: what the tool's own system says of its output as a whole."""
    trust = profile.trust if isinstance(profile.trust, str) else profile.trust.get("", "external")
    return profile.model_copy(update={"trust": trust, "prose": (), "counterparty": ()})


ABLATIONS: tuple[Row, ...] = (
    Row("all signals", stamp=None),
    Row("without the task's words", stamp=None, profiles=lambda p: p.model_copy(update={"intent": ()})),
    Row("without delegation", stamp=None, policy=_no_delegation),
    Row(
        "without provenance",
        stamp=None,
        policy=lambda d: {
            "worth": {k: {"*": "told"} for k in ("*", *d["worth"])},
            "effects": {
                e: {i: dict.fromkeys(r, r["told"]) for i, r in t.items()} if isinstance(t, dict) else t
                for e, t in d["effects"].items()
            },
        },
    ),
    Row("without trust per field", stamp=None, profiles=_one_trust),
    Row("without counterparties", stamp=None, profiles=lambda p: p.model_copy(update={"counterparty": ()})),
    Row("without prose", stamp=None, profiles=lambda p: p.model_copy(update={"prose": ()})),
    Row("without selected records", stamp=None, policy=_worth(_no_selection)),
    Row("without named sources", stamp=None, policy=_worth(_no_named)),
    Row(
        "without derived numbers",
        stamp=None,
        profiles=lambda p: p.model_copy(
            update={"critical": {n: "value" if k == "amount" else k for n, k in p.critical.items()}},
        ),
    ),
    Row("without data flow", stamp=None, policy=_no_flow),
    Row("without declassification", stamp=None, policy=lambda _: {"declassify": []}),
)
