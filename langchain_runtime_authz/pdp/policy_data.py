"""The data of the shipped policy: its shape, its check, and changes to it.

The Rego policy denies each request for which it reads malformed data. So this check names malformed members already at
start-up. `policies/rego/runtime_authz.rego` explains the members.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Annotated, Any, Final, Generic, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from langchain_runtime_authz.errors import Code, ConfigError, unreadable
from langchain_runtime_authz.evaluation import CallStanding, strict_json
from langchain_runtime_authz.facts.history import TIMES
from langchain_runtime_authz.tool_profile import Effect, Verdict

DATA_ROOT: Final = "runtime_authz_data"  # where the shipped policy finds its data
_NAMED: Final = 3  # malformed members that one error names; `runtime-authz policy check` lists all

T = TypeVar("T")
Row = dict[Literal[CallStanding, "backed"], Verdict]
_Limit = Literal[
    "max_denials", "max_streak", "max_per_minute", "max_unplanned", "max_tainted", "max_rotations", "max_depth", "max_steps",
    "max_seconds",
]  # fmt: skip
_EXACT: Final = 2**53 - 1  # the largest number that all engines read alike
Count = Annotated[int, Field(ge=0, le=_EXACT)]
Positive = Annotated[int, Field(ge=1, le=_EXACT)]
Name = Annotated[str, Field(min_length=1)]
Principal = Annotated[str, Field(pattern=r"^[^:]+:.")]


class _Closed(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _Plan(_Closed):
    stale: list[Effect]
    unplanned_permitted: list[Effect]


class _Anonymous(_Closed):
    effects: list[Effect]
    data_classes: list[str]


class _Approvers(_Closed):
    min: Positive = 1
    distinct_from_subject: bool = False
    who: list[Principal] = []


class _Fallback(_Closed):
    after: Positive
    who: list[Principal]


class _Asks(_Closed):
    run: Count = 0
    hour: Count = 0


class ApprovalTerms(_Closed):
    """The properties of a `require_approval` obligation."""

    expires_in: Positive = 1
    approvers: _Approvers = _Approvers()
    fallback: _Fallback = _Fallback(after=1, who=[])
    asks: _Asks = _Asks()


class _Approval(ApprovalTerms):
    sources: list[Literal["interrupt", "application", "hitl"]] = []
    authenticated: bool = True
    edits: Literal["args", "any", "none"] = "none"


class _Models(_Closed):
    providers: list[str] | None = None
    names: list[str] | None = None
    provider_tools: list[str]


class _Rate(_Closed):
    window: Positive
    max: Count


class _Budget(_Closed):
    max: Count
    counter: Name = "own"


class _Each(_Closed, Generic[T]):
    effects: dict[Effect, T] = {}
    tools: dict[str, T] = {}


def _counted(bounds: dict[_Limit, int | None]) -> dict[_Limit, int | None]:
    if (bounds.get("max_per_minute") or 0) > TIMES:
        raise ValueError(f"`max_per_minute` must be at most {TIMES}, because no more calls are counted; or give null")
    return bounds


class _Data(BaseModel):
    # Other keys are permitted, because a bundle may hold a newer policy. `merge_shipped` checks a data file's keys.
    model_config = ConfigDict(strict=True, extra="ignore")

    revision: str = ""
    effects: dict[Effect, Verdict | Row] = {}
    unprofiled: dict[Effect | Literal["*"], Verdict] = {}
    data_flow: dict[str, dict[Literal["internal", "external"], Verdict]] = {}
    declassify: list[CallStanding] = []
    plan: _Plan = _Plan(stale=[], unplanned_permitted=[])
    anonymous: _Anonymous = _Anonymous(effects=[], data_classes=[])
    attested: list[Effect] = []
    approvals: dict[Effect | Literal["*"], _Approval] = {}
    models: _Models = _Models(provider_tools=[])
    rates: dict[Effect, _Rate] = {}
    budget: _Each[_Budget] = _Each()
    notify: _Each[dict[Verdict, Name]] = _Each()
    redact: dict[str, list[str]] = {}
    ttl: dict[Literal["node/enter", "model/call"], Annotated[int, Field(ge=0, le=3600)]] = {}
    anomaly: Annotated[dict[_Limit, Count | None], AfterValidator(_counted)] = {}


def wrong_data(data: Mapping[str, Any]) -> list[str]:
    """Return `key: error` for each malformed member. `data` may lack shipped keys."""
    try:
        _Data.model_validate(data)
    except ValidationError as exc:
        return named_errors(exc)
    return []


def named_errors(exc: ValidationError) -> list[str]:
    """Return a text `key: error` for each error."""
    return [f"`{_at(e['loc'])}`: {_MESSAGES.get(e['type'], e['msg'])}" for e in exc.errors()]


def check_data(data: object, where: str) -> None:
    """Raise `policy_invalid`, with the first errors, if the data is malformed."""
    found = wrong_data(data) if isinstance(data, dict) else ["the shipped policy's data must be an object"]
    if found:
        more = f" (and {len(found) - _NAMED} more)" if len(found) > _NAMED else ""
        raise ConfigError(f"{where}: {'; '.join(found[:_NAMED])}{more}", Code.POLICY_INVALID)


_MESSAGES: Final = {
    "model_type": "must be an object",
    "extra_forbidden": "there is no such member",
    "string_pattern_mismatch": "must be `type:id`, like `user:carol`",
}


def _at(location: tuple[int | str, ...]) -> str:
    # Parts with a bracket are pydantic's names of a union's members.
    return ".".join(part for part in map(str, location) if "[" not in part)


def read_json(text: bytes | str, name: str) -> object:
    """Parse a JSON document of a policy. Errors (`policy_invalid`) call it `name`."""
    try:
        return strict_json(text)
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f"`{name}` is not JSON: {unreadable(exc)}", Code.POLICY_INVALID) from exc


def dumped(document: object) -> bytes:
    """Return canonical JSON. Raises `TypeError` or `ValueError` without a JSON form."""
    return json.dumps(document, allow_nan=False, sort_keys=True, separators=(",", ":")).encode()


def plain(document: object) -> dict[str, Any]:
    """Return a plain copy, which later changes to the caller's mapping do not affect."""
    if not isinstance(document, Mapping):
        raise ConfigError(f"the data must be an object, not {type(document).__name__}", Code.POLICY_INVALID)
    try:
        copy: dict[str, Any] = json.loads(dumped(dict(document)))
    except (TypeError, ValueError, RecursionError) as exc:
        raise ConfigError(f"the data has no exact JSON form: {exc}", Code.POLICY_INVALID) from exc
    return copy


def merge_data(shipped: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the shipped data with some members changed.

    Objects are merged member by member, at every depth. Any other value is replaced, a list as a whole. A null removes
    a member of an object. A top-level member cannot be removed.
    """
    return {**shipped, **{table: _changed(shipped.get(table), new) for table, new in changes.items()}}


def _changed(old: object, new: object) -> object:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    kept = {name: value for name, value in old.items() if name not in new}
    return kept | {name: _changed(old.get(name), value) for name, value in new.items() if value is not None}


def shipped_file(name: str) -> Traversable:
    """Return a file or directory of the shipped policy."""
    return resources.files("langchain_runtime_authz") / "policies" / name


def merge_shipped(given: Mapping[str, Any], *, own: bool = False) -> dict[str, Any]:
    """Return the whole data document of a policy that builds on the shipped one.

    `given` holds the members to change (`merge_data`), or an object `runtime_authz_data` with them, as data.json does.
    With `own`, `given` may hold other data next to `runtime_authz_data`, for the project's own rules. Raises
    `ConfigError` if a member is in the wrong object, or unknown to the shipped policy.
    """
    shipped: dict[str, Any] = strict_json(shipped_file("data.json").read_bytes())[DATA_ROOT]
    changes, rest, where = given, dict[str, Any](), "data.json: " if own else ""
    if DATA_ROOT in given and (own or len(given) == 1):
        changes, rest = given[DATA_ROOT], {name: held for name, held in given.items() if name != DATA_ROOT}
    if not isinstance(changes, Mapping):
        raise ConfigError(f"`{DATA_ROOT}` must be an object, not {type(changes).__name__}", Code.POLICY_INVALID)
    for unknown in sorted(set(changes) - set(shipped)):
        near = difflib.get_close_matches(unknown, shipped, n=1)
        hint = f" (did you mean `{near[0]}`?)" if near else ""
        more = f"; put data of your own rules next to `{DATA_ROOT}`" if own else ""
        msg = f"{where}the shipped policy has no data key `{unknown}`{hint}; it has: {', '.join(sorted(shipped))}{more}"
        raise ConfigError(msg, Code.POLICY_INVALID)
    if meant := sorted(set(rest) & set(shipped)):
        msg = f"`{meant[0]}` is outside `{DATA_ROOT}`, where the shipped policy does not read it; put it inside"
        raise ConfigError(f"{where}{msg}", Code.POLICY_INVALID)
    return {**rest, DATA_ROOT: merge_data(shipped, changes)}
