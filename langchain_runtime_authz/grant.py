"""Grants, and the lattice that they form.

`a.meet(b)`, also written `a ⊓ b`, is the greatest grant that both permit. `a.covers(b)` holds exactly if `a ⊓ b = b`.
`None` in a field means no limit, the top of that field; `Grant()` is the top of the lattice.
`tests/property/test_grant_lattice.py` tests that meet is idempotent, commutative, associative and monotone, and that
`permits` respects it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from langchain_runtime_authz.errors import Code

Scalar = str | int | float | bool


def _json_scalar(value: object) -> str:
    """Return a scalar as JSON text, in which 1.0 equals 1, but `true` does not."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value)


def _sorted_scalars(value: object) -> object:
    if isinstance(value, list | tuple | set | frozenset) and all(isinstance(v, Scalar) for v in value):
        unique = {_json_scalar(v): int(v) if isinstance(v, float) and v.is_integer() else v for v in value}
        return tuple(unique[k] for k in sorted(unique))
    return value


Names = Annotated[tuple[str, ...], BeforeValidator(_sorted_scalars)]
Scalars = Annotated[tuple[Scalar, ...], BeforeValidator(_sorted_scalars)]
Limit = Annotated[int, Field(ge=0)]


class _Frozen(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class Constraint(_Frozen):
    """Limit the values of one argument.

    Attributes:
        one_of: the permitted scalars; empty permits nothing.
        ge: the least number permitted. Only numbers are then permitted.
        le: the greatest number permitted. Only numbers are then permitted.
    """

    one_of: Scalars | None = None
    ge: int | float | None = None
    le: int | float | None = None

    @model_validator(mode="before")
    @classmethod
    def _normalise(cls, data: Any) -> Any:
        """Bring the constraint to a normal form, so that equal meanings compare equal."""
        if not isinstance(data, Mapping):
            return data
        data = {k: v for k, v in data.items() if v is not None}
        ge, le, one_of = data.get("ge"), data.get("le"), data.get("one_of")
        for bound in (ge, le):
            if bound is not None and not _within(bound, None, None):
                return data
        if isinstance(one_of, list | tuple | set | frozenset):
            if ge is not None or le is not None:
                kept = [v for v in one_of if _within(v, ge, le)]
                return {k: v for k, v in data.items() if k not in ("ge", "le")} | {"one_of": kept}
        elif ge is not None and le is not None and ge >= le:
            point = (ge,) if ge == le else ()
            return {k: v for k, v in data.items() if k not in ("ge", "le")} | {"one_of": point}
        return data

    def __eq__(self, other: object) -> bool:
        """Compare by meaning: `True` is not `1`, although Python compares them equal."""
        return self._meaning() == other._meaning() if isinstance(other, Constraint) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._meaning())

    def _meaning(self) -> tuple[object, ...]:
        keys = None if self.one_of is None else tuple(_json_scalar(v) for v in self.one_of)
        return keys, self.ge, self.le

    def permits(self, value: object) -> bool:
        """Return True if `value` (a JSON value) satisfies the constraint."""
        if self.one_of is not None:
            return isinstance(value, Scalar) and _json_scalar(value) in {_json_scalar(v) for v in self.one_of}
        if self.ge is None and self.le is None:
            return True
        return _within(value, self.ge, self.le)

    def meet(self, other: Constraint) -> Constraint:
        """Return the greatest constraint that both permit."""
        if self.one_of is not None and other.one_of is not None:
            theirs = {_json_scalar(v) for v in other.one_of}
            one_of: tuple[Scalar, ...] | None = tuple(v for v in self.one_of if _json_scalar(v) in theirs)
        else:
            one_of = self.one_of if self.one_of is not None else other.one_of
        return Constraint(one_of=one_of, ge=_bound(max, self.ge, other.ge), le=_bound(min, self.le, other.le))


class Grant(_Frozen):
    """The most that a run or child agent may do (RFC 9396 `authorization_details`).

    Attributes:
        tools: names of tools; `None` leaves every reachable tool to policy.
        args: tool → argument → `Constraint`. A constrained argument must be present.
        data_classes: only tools whose profile has one of these data classes may be used.
        sinks: only tools whose profile has one of these sinks (`none`, `internal`, `external`) may be used.
        audiences: audiences for which a tool may get a token. A tool for other audiences may run, but gets no token.
        steps: ids of the mandate's steps that the run may use up. Calls of other steps deviate, so a person is asked.
        max_depth: the greatest delegation depth at which the grant holds.
        budgets: counter → number of permitted calls, counted over all runs and agents of a thread. A counter is a
            tool's name, `effect:<effect>`, or `agent/invoke` for delegations.
        expires_at: epoch seconds from which nothing is permitted.
    """

    tools: Names | None = None
    args: dict[str, dict[str, Constraint]] = {}
    data_classes: Names | None = None
    sinks: Names | None = None
    audiences: Names | None = None
    steps: Names | None = None
    max_depth: Limit | None = None
    budgets: dict[str, Limit] = {}
    expires_at: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _normalise(cls, data: Any) -> Any:
        """Drop empty constraints, so that grants of equal meaning compare equal."""
        if isinstance(data, Mapping) and isinstance(data.get("args"), Mapping):
            args = {
                tool: {name: Constraint.model_validate(c) for name, c in named.items()}
                if isinstance(named, Mapping)
                else named  # pydantic refuses it: a malformed constraint must not count as no constraint
                for tool, named in data["args"].items()
                if not isinstance(named, Mapping) or named
            }
            return {**data, "args": args}
        return data

    def meet(self, other: Grant) -> Grant:
        """Return `self ⊓ other`, the greatest grant that both permit."""
        return Grant(
            tools=_intersect(self.tools, other.tools),
            args=_union(self.args, other.args, lambda a, b: _union(a, b, Constraint.meet)),
            data_classes=_intersect(self.data_classes, other.data_classes),
            sinks=_intersect(self.sinks, other.sinks),
            audiences=_intersect(self.audiences, other.audiences),
            steps=_intersect(self.steps, other.steps),
            max_depth=_bound(min, self.max_depth, other.max_depth),
            budgets=_union(self.budgets, other.budgets, min),
            expires_at=_bound(min, self.expires_at, other.expires_at),
        )

    def covers(self, other: Grant) -> bool:
        """Return True if this grant permits everything that `other` permits."""
        return self.meet(other) == other

    def attenuate(self, request: Grant | None) -> Grant:
        """Return a child's grant: `self ⊓ request`, or `self` if `request` is None."""
        # INVARIANT: self.covers(self.attenuate(x)) for every x.
        return self if request is None else self.meet(request)

    def refuses(
        self, *, tool: str, args: Mapping[str, object], data_class: str, sink: str, depth: int, now: float
    ) -> Code | None:
        """Return the code with which this grant refuses a call, or None for a permit.

        Budgets are not checked here, because the ledger counts them atomically with the claim.
        """
        if self.expires_at is not None and not now < self.expires_at:
            return Code.GRANT_EXPIRED
        if self.max_depth is not None and not depth <= self.max_depth:
            return Code.GRANT_DEPTH
        if self.tools is not None and tool not in self.tools:
            return Code.GRANT_TOOL
        if self.data_classes is not None and data_class not in self.data_classes:
            return Code.GRANT_DATA_CLASS
        if self.sinks is not None and sink not in self.sinks:
            return Code.GRANT_SINK
        for name, constraint in self.args.get(tool, {}).items():
            if name not in args or not constraint.permits(args[name]):
                return Code.GRANT_ARGUMENT
        return None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, without the fields that set no limit."""
        return self.model_dump(mode="json", exclude_defaults=True, exclude_none=True)


def _within(value: object, ge: float | None, le: float | None) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return (ge is None or value >= ge) and (le is None or value <= le)


def _bound(choose: Any, a: Any, b: Any) -> Any:
    return b if a is None else a if b is None else choose(a, b)


def _intersect(a: tuple[str, ...] | None, b: tuple[str, ...] | None) -> tuple[str, ...] | None:
    return _bound(lambda one, other: tuple(sorted({*one} & {*other})), a, b)  # type: ignore[no-any-return]


def _union(a: Mapping[str, Any], b: Mapping[str, Any], both: Any) -> dict[str, Any]:
    return {k: both(a[k], b[k]) if k in a and k in b else a.get(k, b.get(k)) for k in {**a, **b}}
