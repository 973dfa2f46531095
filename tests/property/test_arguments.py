"""What a tool receives is what was decided, digest for digest, or it does not run.

Tools with generated schemas are called with generated arguments through each door. Each example
is one tool and one message of `SETS` calls; `LRA_FUZZ` says how many sets of arguments in all.
"""

import asyncio
import copy
import datetime as dt
import decimal
import enum
import itertools
import os
import sys
import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Optional, Union

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import BaseTool, InjectedToolCallId, StructuredTool, Tool
from langgraph.prebuilt import InjectedState, ToolNode, ToolRuntime
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model

from langchain_runtime_authz import AuthzDenied, RuntimeAuthz, ToolProfile
from langchain_runtime_authz.digest import as_json, digest
from langchain_runtime_authz.errors import MappingError
from langchain_runtime_authz.testing import ScriptedChatModel, StaticPDP
from tests.attack._graphs import chain, in_run, node_graph

SETS = 5
DOORS = ("tool node", "create_agent", "guard alone", "backstop")
WAYS = ("sync", "async")
FUZZ = settings(
    deadline=None, max_examples=-(-int(os.environ.get("LRA_FUZZ", "800")) // (SETS * len(DOORS) * len(WAYS))),
    phases=[Phase.generate],  # shrinking a message of calls takes minutes and tells little
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
tally: Counter[str] = Counter()


@pytest.fixture(scope="module", autouse=True)
def _say_how_many() -> Iterator[None]:
    yield
    print(f"\nsets of arguments: {dict(sorted(tally.items()))}")


class Color(enum.Enum):
    RED = "red"
    ONE = 1


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = 9


class Dog(BaseModel):
    model_config = ConfigDict(extra="allow")
    kind: Literal["dog"]
    name: str = Field(alias="called")


class Point(BaseModel):
    x: float
    y: float = 0
    tags: list[str] = Field(default_factory=list)


text = st.text(max_size=6)
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text | st.sampled_from(["1", " 2 ", "1e3", "NaN", "true"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)
small = st.integers(-9, 9)
numerals = small | small.map(str) | small.map(float) | st.booleans() | st.sampled_from([" 7 ", "1_000", "1.0", 2**60])
cats = st.fixed_dictionaries({"kind": st.just("cat")}, optional={"lives": numerals, "more": junk})
dogs = st.fixed_dictionaries({"kind": st.just("dog")}, optional={"called": text, "name": text, "more": junk})
points = st.fixed_dictionaries({"x": numerals}, optional={"y": numerals, "tags": st.lists(text, max_size=2), "z": junk})
when = st.sampled_from(["2026-11-24T10:00:00Z", "2026-11-24T10:00:00+02:00", "2026-11-24", 1764000000, "1764000000", 0.5])
idents = st.uuids().map(str) | st.uuids().map(lambda u: u.hex) | st.uuids().map(lambda u: u.urn)

# Annotation, and what a model would plausibly write.
KINDS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "int": (int, numerals), "bounded": (Annotated[int, Field(ge=0, le=5)], numerals), "float": (float, numerals | st.floats()),
    "bool": (bool, st.booleans() | st.sampled_from(["true", "off", "yes", 0, 1, "1", 1.0])), "str": (str, text),
    "stripped": (Annotated[str, BeforeValidator(lambda v: v.strip().upper() if isinstance(v, str) else v)], text),
    "strict": (Annotated[int, Field(strict=True)], numerals),
    "optional": (Optional[int], st.none() | numerals),  # noqa: UP045
    "union": (Union[int, str], numerals | text),  # noqa: UP007
    "list": (list[int], st.lists(numerals, max_size=3)), "set": (set[int], st.lists(numerals, max_size=3)),
    "tuple": (tuple[int, str], st.tuples(numerals, text).map(list)),
    "dict": (dict[str, float], st.dictionaries(text, numerals, max_size=3)),
    "keys": (dict[int, str], st.dictionaries(small.map(str), text, max_size=3)),
    "literal": (Literal["a", 1, True], st.sampled_from(["a", 1, True, "1", 1.0])),
    "enum": (Color, st.sampled_from(["red", 1, "1", "blue", True])), "datetime": (dt.datetime, when), "date": (dt.date, when),
    "delta": (dt.timedelta, st.sampled_from([1, "P1D", 0.5])),
    "decimal": (decimal.Decimal, numerals | st.sampled_from(["1.10", "1.1", "1E2", "NaN", "Infinity"])),
    "uuid": (uuid.UUID, idents), "bytes": (bytes, text), "point": (Point, points),
    "points": (list[Point], st.lists(points, max_size=2)),
    "pet": (Annotated[Union[Cat, Dog], Field(discriminator="kind")], cats | dogs),  # noqa: UP007
    "any": (Any, junk),
}
V1 = ("int", "float", "bool", "str", "optional", "union", "list", "set", "tuple", "dict", "enum", "datetime", "decimal")
MAKERS = ("model", "class", "function", "kwargs", "json", "single", *(("v1",) if sys.version_info < (3, 14) else ()))
_fresh = itertools.count()


class Made:
    """A generated tool, what its calls are written like, and what it received."""

    def __init__(self, maker: str, kinds: dict[str, str], aliases: set[str], defaults: dict[str, str], extra: str) -> None:
        self.maker, self.kinds, self.aliases, self.defaults, self.extra = maker, kinds, aliases, defaults, extra
        self.received: list[dict[str, Any]] = []
        self.supplied: list[dict[str, Any]] = []

    def __repr__(self) -> str:
        return f"Made({self.maker!r}, {self.kinds}, {self.aliases}, {self.defaults}, {self.extra!r})"

    @property
    def repeatable(self) -> bool:
        """Whether two parses of the same arguments give the same."""
        return "fresh" not in self.defaults.values()

    def take(self, supplied: dict[str, Any] | None = None, /, **received: Any) -> str:
        """The body of the tool: note what came, then spoil it."""
        self.received.append(_json(received))
        self.supplied.append(supplied or {})
        for value in received.values():
            if isinstance(value, list):
                value.append("spoilt")
            elif isinstance(value, dict):
                value["spoilt"] = True
        return "ran"

    def tool(self, door: str) -> BaseTool:
        """The tool, for a door: outside a ToolNode only the call's id is supplied."""
        return getattr(self, f"_{self.maker}")(door)

    def _fields(self, alias: Any, field: Any) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for name, kind in self.kinds.items():
            options: dict[str, Any] = {"alias": alias(name)} if name in self.aliases else {}
            how = self.defaults.get(name)
            if how == "fresh":
                options["default_factory"] = lambda: f"fresh-{next(_fresh)}"
            elif how == "list":
                options["default_factory"] = list
            elif how == "value":
                options["default"] = "1"  # not validated, as pydantic does it
            fields[name] = (KINDS[kind][0], field(**options) if options else ...)
        return fields

    def _schema(self) -> Any:
        config = ConfigDict(extra=self.extra, populate_by_name="z" in self.aliases)  # type: ignore[typeddict-item]
        return create_model("Schema", __config__=config, **self._fields(str.upper, Field))

    def _model(self, door: str) -> BaseTool:
        return StructuredTool(name="probe", description="Probe.", args_schema=self._schema(), func=self._sync, coroutine=self._coro)

    def _v1(self, door: str) -> BaseTool:
        import pydantic.v1 as v1

        config = type("Config", (), {"extra": self.extra, "allow_population_by_field_name": True})
        schema = v1.create_model("Schema", __config__=config, **self._fields(str.upper, v1.Field))
        return StructuredTool(name="probe", description="Probe.", args_schema=schema, func=self._sync, coroutine=self._coro)

    def _json(self, door: str) -> BaseTool:
        properties = {name: {"type": "string"} for name in self.kinds}
        schema = {"title": "probe", "description": "Probe.", "type": "object", "properties": properties, "required": []}
        return StructuredTool(name="probe", description="Probe.", args_schema=schema, func=self._sync, coroutine=self._coro)

    def _sync(self, **kwargs: Any) -> str:
        return self.take(**kwargs)

    async def _coro(self, **kwargs: Any) -> str:
        return self.take(**kwargs)

    def _class(self, door: str) -> BaseTool:
        made = self

        class Probe(BaseTool):
            name: str = "probe"
            description: str = "Probe."
            args_schema: Any = made._schema()

            def _run(self, **kwargs: Any) -> str:
                return made.take(**kwargs)

        return Probe()

    def _single(self, door: str) -> BaseTool:
        return Tool(name="probe", description="Probe.", func=lambda value: self.take(__arg1=value))

    def _kwargs(self, door: str) -> BaseTool:
        return self._function(door, rest=True)

    def _function(self, door: str, *, rest: bool = False) -> BaseTool:
        """A function of its own signature, with supplied arguments between the model's."""
        supplied = {"call_id": Annotated[str, InjectedToolCallId]}
        if door in ("tool node", "create_agent"):
            supplied |= {"state": Annotated[dict[str, Any], InjectedState], "runtime": ToolRuntime}
        scope: dict[str, Any] = {f"T_{n}": KINDS[k][0] for n, k in self.kinds.items()} | {"take": self.take, "Any": Any}
        scope |= {f"T_{n}": t for n, t in supplied.items()}
        needed = [n for n in self.kinds if n not in self.defaults]
        parts = [f"{n}: T_{n}" for n in needed] + [f"{n}: T_{n}" for n in supplied]
        parts += [f"{n}: T_{n} = '1'" for n in self.kinds if n in self.defaults]
        parts += ["**rest: Any"] if rest else []
        own = ", ".join(f"{n}={n}" for n in self.kinds) + (", **rest" if rest else "")
        given = ", ".join(f"{n!r}: {n}" for n in supplied)
        exec(f"def probe({', '.join(parts)}):\n  return take({{{given}}}, {own})", scope)
        return StructuredTool.from_function(scope["probe"], name="probe", description="Probe.")


def _json(value: dict[str, Any]) -> dict[str, Any]:
    try:
        return {k: as_json(v) for k, v in value.items()}
    except MappingError:
        return {"": "has no exact JSON form"}


@st.composite
def tools(draw: st.DrawFn, door: str) -> Made:
    # What a pydantic 1 schema refuses ends the run of a stock `create_agent`.
    maker = draw(st.sampled_from([m for m in MAKERS if m != "v1" or door != "create_agent"]))
    names = ["a", "b", "c"][: draw(st.integers(1, 3))]
    kinds = {n: draw(st.sampled_from(V1 if maker == "v1" else tuple(KINDS))) for n in names}
    aliases = set(draw(st.lists(st.sampled_from([*names, "z"]), max_size=2))) if maker in ("model", "class", "v1") else set()
    hows = ["value"] if maker in ("function", "kwargs") else ["value", "list", "fresh"]
    defaults = draw(st.dictionaries(st.sampled_from(names), st.sampled_from(hows), max_size=2))
    return Made(maker, kinds, aliases, defaults, draw(st.sampled_from(["allow", "ignore", "forbid"])))


@st.composite
def arguments(draw: st.DrawFn, made: Made) -> dict[str, Any]:
    """As a model writes them: mostly plausible, sometimes not, with names it made up or should not use."""
    if made.maker == "single":
        return {"__arg1": draw(text | junk)}
    written: dict[str, Any] = {}
    for name, kind in made.kinds.items():
        if name in made.defaults and draw(st.booleans()):
            continue
        key = name.upper() if name in made.aliases and draw(st.integers(0, 3)) else name
        written[key] = draw(KINDS[kind][1] if draw(st.integers(0, 7)) else junk)
    if not draw(st.integers(0, 3)):
        written[draw(st.sampled_from(["more", "runtime", "state", "call_id", "config", "A", "b"]))] = draw(junk)
    return written


def _permits(request: Any) -> bool:
    """Three of four, by what the call's arguments are."""
    return request.action.name != "tools/call" or int(request.context.call.args_digest[-1], 16) % 4 != 0


def _graph(door: str, tool: BaseTool, calls: list[dict[str, Any]]) -> Any:
    model = ScriptedChatModel(script=[AIMessage("", tool_calls=calls), AIMessage("done")])
    if door == "create_agent":
        return create_agent(model, [tool])
    return chain({"agent": lambda state: {"messages": [model.invoke(state["messages"])]}, "tools": ToolNode([tool], handle_tool_errors=True)})


def _messages(door: str, way: str, authz: RuntimeAuthz, tool: BaseTool, calls: list[dict[str, Any]]) -> list[Any]:
    """What the calls were answered with; an exception in an answer's place where the door raises it."""
    with authz.run(subject="alice", task="x"):
        if door == "guard alone":
            return _alone(way, authz.guard(tool), calls)
        if door == "backstop":
            return _unguarded(way, authz, tool, calls)
        graph = authz.protect(_graph(door, tool, calls))
        given = {"messages": [HumanMessage("go")]}
        state = graph.invoke(given) if way == "sync" else asyncio.run(graph.ainvoke(given))
    return [m for m in state["messages"] if isinstance(m, ToolMessage)]


def _alone(way: str, tool: BaseTool, calls: list[dict[str, Any]]) -> list[Any]:
    answers: list[Any] = []
    for call in calls:
        try:
            answers.append(tool.invoke(call) if way == "sync" else asyncio.run(tool.ainvoke(call)))
        except AuthzDenied:
            raise
        except Exception as refused:  # the schema's own
            answers.append(refused)
    return answers


def _unguarded(way: str, authz: RuntimeAuthz, tool: BaseTool, calls: list[dict[str, Any]]) -> list[Any]:
    """Call a tool that nobody guarded in a node function: it parses its arguments once more after the decision."""
    answers: list[Any] = []

    def act() -> None:
        for call in calls:
            try:
                answers.append(tool.invoke(call))
            except Exception as refused:
                answers.append(refused)

    async def aact() -> None:
        for call in calls:
            try:
                answers.append(await tool.ainvoke(call))
            except Exception as refused:
                answers.append(refused)

    graph = authz.protect(node_graph(in_run(act, aact)))
    given = {"messages": [HumanMessage("go")]}
    graph.invoke(given) if way == "sync" else asyncio.run(graph.ainvoke(given))
    return answers


def _stock(made: Made, door: str, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the unguarded tool receives of the same calls, from a ToolNode or by itself."""
    made.received.clear()
    made.supplied.clear()
    tool = made.tool(door)
    if door in ("guard alone", "backstop"):
        _alone("sync", tool, calls)
    else:
        _graph("tool node", tool, calls).invoke({"messages": [HumanMessage("go")]})
    return list(made.received)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("door", DOORS)
@FUZZ
@given(data=st.data())
def test_received_is_decided(door: str, way: str, data: st.DataObject) -> None:
    """Every run was permitted for exactly what it received; a denied call did not run; siblings are no help."""
    made = data.draw(tools(door))
    written = [data.draw(arguments(made)) for _ in range(SETS)]
    calls = [{"name": "probe", "args": a, "id": f"call-{i}", "type": "tool_call"} for i, a in enumerate(written)]
    pdp = StaticPDP(_permits, deadline=60)
    authz = RuntimeAuthz(pdp=pdp, profiles={"probe": ToolProfile(effect="write", sink="internal")})
    untouched = copy.deepcopy(calls)
    answers = _messages(door, way, authz, made.tool(door), calls)
    received, supplied = list(made.received), list(made.supplied)

    decided = [r for r in pdp.requests if r.action.name == "tools/call"]
    permitted = Counter(r.context.call.args_digest for r in decided if _permits(r))  # type: ignore[union-attr]
    got = Counter(digest(r) for r in received)
    assert all("" not in r for r in received), "ran with what has no exact JSON form"
    assert got <= permitted, (received, [r.context.call.args for r in decided])  # type: ignore[union-attr]
    for request in decided:
        assert digest(request.context.call.args) == request.context.call.args_digest  # type: ignore[union-attr]
    ran = [a for a in answers if isinstance(a, ToolMessage) and a.status == "success"]
    assert len(answers) == SETS and len(ran) == len(received)
    assert len(decided) <= SETS, "a call was decided twice"
    # The audit log says the same.
    records = [r for r in authz.audit.records if r["kind"] == "completion" and r["state"] == "done"]  # type: ignore[attr-defined]
    assert len(records) == len(received)
    for given_ in supplied:
        if given_:
            assert given_["call_id"] in {a.tool_call_id for a in ran}
            assert isinstance(given_.get("runtime", None), ToolRuntime | None)
            assert "messages" in given_.get("state", {"messages": ()})
    # What ran is what the tool would have received without us.
    if made.repeatable:
        stock = Counter(digest(r) for r in _stock(made, door, untouched) if "" not in r)
        assert got <= stock

    refused = len(decided) - sum(permitted.values())
    tally.update(all=SETS, ran=len(received), refused=refused, undecidable=SETS - len(decided))

