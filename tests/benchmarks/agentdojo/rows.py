"""Who holds authority: from nothing, over tokens, to the mandate, and each part of the comparison removed."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import langchain_runtime_authz
from langchain_runtime_authz import Grant, RuntimeAuthz
from langchain_runtime_authz.evaluation import EvaluationRequest
from langchain_runtime_authz.mandate.model import Mandate
from langchain_runtime_authz.pdp.opa import OpaPDP
from langchain_runtime_authz.pdp.wasm import WasmPDP
from langchain_runtime_authz.testing import StaticPDP
from langchain_runtime_authz.tool_profile import ToolProfile

from .ablations import without_consumption, without_recomputation, without_roles, without_text_rule
from .engines import DEADLINE, TwoEngines
from .plans import Mistake, mistaken

Profiles = Mapping[str, ToolProfile]
DATA = json.loads((Path(langchain_runtime_authz.__file__).parent / "policies" / "data.json").read_text())["runtime_authz_data"]


@dataclass(frozen=True)
class Row:
    """One kind of authority.

    Attributes:
        kind: `words` and `plan` are ours: who compiles the mandate.
        stamp: the share of questions that the user approves unread; `None`: nobody is there to ask.
        reads: the agent makes the reads that the plan names before all else.
        mistake: what is wrong with the plan, for this share of its steps or arguments.
        profiles: changes the profiles, for ablations.
        without: removes a part of the comparison with the mandate, for ablations.
    """

    name: str
    kind: str = "plan"
    stamp: float | None = 0.0
    reads: bool = False
    mistake: Mistake | None = None
    share: float = 0.0
    profiles: Callable[[ToolProfile], ToolProfile] | None = None
    without: Callable[[], AbstractContextManager[Any]] = nullcontext

    @property
    def ours(self) -> bool:
        """True if the mandate decides."""
        return self.kind in ("words", "plan")


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
        if row.ours and engine == "opa":
            options["pdp"] = OpaPDP(url, timeout=DEADLINE, deadline=DEADLINE)
        elif row.ours and engine == "both":
            options["pdp"] = self._two = TwoEngines(DATA, url)
        elif row.ours:
            options["pdp"] = WasmPDP(data=DATA, deadline=DEADLINE)
        else:
            options["pdp"] = StaticPDP(permit=self._permits, deadline=DEADLINE)
        self.authz = RuntimeAuthz(**options) if row.kind != "nothing" else None

    def settle(self) -> tuple[int, list[str]]:
        """How many decisions of the last run a second engine was asked for, and which of its answers differ."""
        return self._two.settle() if self._two is not None else (0, [])

    def start(self, calls: Sequence[Any], plan: Mandate, seed: str) -> dict[str, Any]:
        """What `RuntimeAuthz.run` gets for a user task with these calls and this plan."""
        self.tools = {c.function for c in calls}
        self.allowed = [(c.function, _spelled(c.args)) for c in calls]
        if self.row.kind == "plan":
            return {"mandate": mistaken(plan, self.row.mistake, self.row.share, seed)}
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


def _spelled(args: Mapping[str, Any]) -> str:
    return json.dumps({k: v for k, v in args.items() if v not in (None, "", [])}, default=str)


def _used(suite: Any) -> set[str]:
    env = suite.load_and_inject_default_environment({})
    tasks = suite.user_tasks.values()
    return {c.function for t in tasks for c in t.ground_truth(t.init_environment(env.model_copy(deep=True)))}


_SHARES = ((0.0, "0 %"), (0.1, "10 %"), (0.5, "50 %"), (1.0, "100 %"))
PLAN = "hand-written plan (upper bound)"


def _ours(name: str, kind: str) -> Iterator[Row]:
    yield Row(f"{name}, nobody to ask", kind, stamp=None)
    for stamp, share in _SHARES:
        yield Row(f"{name}, asks, {share} unread", kind, stamp=stamp)


ROWS: tuple[Row, ...] = (
    Row("nothing", "nothing"), Row("static token", "static token"), Row("trimmed token", "trimmed token"),
    Row("per-task tool token (oracle)", "task token"), *_ours("words", "words"), *_ours(PLAN, "plan"),
    Row(f"{PLAN}, its reads made first, nobody to ask", stamp=None, reads=True),
    Row(f"{PLAN}, its reads made first, asks, 0 % unread", reads=True),
    *(
        Row(f"plan, {share:.0%} of {what}, nobody to ask", stamp=None, reads=True, mistake=mistake, share=share)
        for mistake, what in (("dropped", "steps left out"), ("widened", "arguments free"))
        for share in (0.05, 0.1)
    ),
    Row("exact plan (oracle)", "exact plan"),
)


def _one_trust(profile: ToolProfile) -> ToolProfile:
    """Trust per tool: what the tool's own system says of its output as a whole."""
    trust = profile.trust if isinstance(profile.trust, str) else profile.trust.get("", "external")
    return profile.model_copy(update={"trust": trust, "prose": (), "counterparty": ()})


ABLATIONS: tuple[Row, ...] = (
    Row("the whole comparison", stamp=None, reads=True),
    Row("without roles", stamp=None, reads=True, without=without_roles),
    Row("without consumption", stamp=None, reads=True, without=without_consumption),
    Row("without recomputation", stamp=None, reads=True, without=without_recomputation),
    Row("without the text rule", stamp=None, reads=True, without=without_text_rule),
    Row("without trust per field", stamp=None, reads=True, profiles=_one_trust),
    Row("without counterparties", stamp=None, reads=True, profiles=lambda p: p.model_copy(update={"counterparty": ()})),
    Row("without prose", stamp=None, reads=True, profiles=lambda p: p.model_copy(update={"prose": ()})),
)
