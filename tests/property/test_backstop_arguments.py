"""Through schemas that coerce, rename, fill in, drop and transform: what the tool received is what was decided.

Digest for digest, or the call was denied and the tool did not run: here where nobody guarded the tool,
so that it parses its arguments once more after the decision.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import BaseTool, StructuredTool
from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.v1 import BaseModel as BaseModelV1
from pydantic.v1 import Field as FieldV1
from pydantic.v1 import ValidationError as ValidationErrorV1

from langchain_runtime_authz import AuthzDenied, RuntimeAuthz, ToolProfile
from langchain_runtime_authz.digest import digest, project
from langchain_runtime_authz.testing import StaticPDP
from tests.attack._graphs import chain


class Colour(Enum):
    RED = "red"
    ONE = 1


class Inner(BaseModel):
    model_config = ConfigDict(extra="allow")
    x: int = 3
    deep: dict[str, float] = Field(default_factory=dict)


class Coercing(BaseModel):
    a: int
    b: float = 1.5
    c: bool = False
    d: str = Field("x", min_length=1)


class Renaming(BaseModel):
    a: int = Field(validation_alias=AliasChoices("a", "A", "amount"))
    b: str = Field("b", alias="bee")


class Choosing(BaseModel):
    a: int | str | list[int] | None = None
    b: Literal["x", 1, True] = "x"
    c: Colour = Colour.RED
    d: dict[str, int] | float = 0.5


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    a: int
    b: str | None = None


class Open(BaseModel):
    model_config = ConfigDict(extra="allow", str_strip_whitespace=True)
    a: str = ""


class Nested(BaseModel):
    a: Inner = Field(default_factory=Inner)
    b: list[Inner] = Field(default_factory=list)
    c: tuple[int, str] = (1, "x")


class Transforming(BaseModel):
    a: Annotated[str, BeforeValidator(lambda v: str(v).upper()[:20])]
    b: date | datetime | None = None
    c: Decimal | None = None
    d: set[int] | None = None


class Old(BaseModelV1):
    a: int = FieldV1(1, alias="amount")
    b: list[float] = []


JSON_SCHEMA = {
    "title": "tool", "description": "d", "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}, "required": ["a"],
}
SCHEMAS: dict[str, Any] = {
    c.__name__: c for c in (Coercing, Renaming, Choosing, Strict, Open, Nested, Transforming, Old)
} | {"JSON": JSON_SCHEMA}

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**60), 2**60), st.integers(-5, 5), st.floats(allow_nan=True),
    st.sampled_from(["", " ", "1", "1.5", "true", "x", "red", "1_000", "1e3", "2026-01-02", "NaN", "\ud800", "a\x00"]),
    st.text(max_size=6),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["x", "deep", "y"]), inner, max_size=2),
    max_leaves=5,
)
likely = st.sampled_from([1, 5, "7", "x", 2.0, True, None, {"x": 1}, [1, 2], {"x": "4", "y": "more"}])
names = st.sampled_from(["a", "a", "a", "A", "amount", "b", "bee", "c", "d", "extra"])
arguments = st.dictionaries(names, likely | likely | values, max_size=4)


def tool_of(schema: Any, got: list[dict[str, Any]]) -> BaseTool:
    """A tool that keeps what it received."""

    def tool(**kwargs: Any) -> str:
        got.append(dict(kwargs))
        return "ok"

    return StructuredTool(name="tool", description="d", args_schema=schema, func=tool)


def in_graph(node: Any) -> Any:
    """A graph of one node."""
    return chain({"node": node})


def unguarded(authz: RuntimeAuthz, tool: BaseTool) -> Any:
    """A node function that calls it."""
    given: list[Any] = []
    graph = authz.protect(in_graph(RunnableLambda(lambda _: tool.invoke(given[-1]) and None)))

    def act(args: dict[str, Any]) -> None:
        given.append(args)
        graph.invoke({"messages": []})

    return act


@pytest.mark.parametrize("schema", SCHEMAS)
def test_what_the_tool_received_is_what_was_decided(schema: str) -> None:
    """For any arguments: equal digests, or a denial (or the tool's own refusal) and no run."""
    got: list[dict[str, Any]] = []
    pdp = StaticPDP(True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        authz = RuntimeAuthz(pdp=pdp, profiles={"tool": ToolProfile(effect="write", sink="internal")})
        act = unguarded(authz, tool_of(SCHEMAS[schema], got))
        outcomes: set[str] = set()

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(arguments)
        def run(args: dict[str, Any]) -> None:
            got.clear()
            pdp.bodies.clear()
            with suppress(AuthzDenied, ValidationError, ValidationErrorV1):
                act(args)
            if not got:
                outcomes.add("refused")
                return
            (received,) = got
            (request,) = [r for r in pdp.requests if r.action.name == "tools/call"]
            assert request.context.call is not None
            assert request.context.call.args_digest == digest({k: project(v) for k, v in received.items()})
            outcomes.add("ran")

        with authz.run(subject="alice"):
            run()
    assert "ran" in outcomes
