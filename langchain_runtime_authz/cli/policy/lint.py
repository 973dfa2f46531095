"""What is wrong with a policy that OPA would not say: found in text and data, nothing is run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from langchain_runtime_authz.authzen import IntentContext

__all__ = ["lint_data", "lint_rego"]

_NEGATED: Final = re.compile(r"\bnot\s+[^\n{]*?(?:[^=:<>!]|\b)(==|!=|<=|>=|<|>)(?!=)")
_CALL: Final = re.compile(r"\b([a-z_][a-z0-9_]*(?:\.[a-z_][a-z0-9_]*)*)\(")
# Not native to Wasm (openpolicyagent.org/docs/policy-reference, "Wasm Support"): they would need a host function.
_HOSTED: Final = re.compile(
    r"^(http|io\.jwt|crypto|time|opa|rego|rand|uuid|net\.lookup_ip_addr|graphql|semver|units|yaml|providers|"
    r"json\.(match_schema|verify_schema|patch)|strings\.(any_prefix_match|any_suffix_match|render_template)|"
    r"glob\.quote_meta|regex\.(globs_match|split|template_match|replace)|urlquery|hex|print|trace|sprintf)(\.|$)",
)
_STRING: Final = re.compile(r'"(?:\\.|[^"\\])*"|`[^`]*`')


def lint_rego(files: Mapping[str, str]) -> Iterator[str]:
    """`file:line: what is wrong`, for each finding."""
    for name, text in files.items():
        for number, line in enumerate(text.splitlines(), 1):
            code = _STRING.sub('""', line).partition("#")[0]
            if _NEGATED.search(code):
                yield (
                    f"{name}:{number}: a negated comparison is undefined, not true, where an operand is missing; "
                    "write the condition as a rule and negate that"
                )
            for called in _CALL.findall(code):
                if _HOSTED.match(called):
                    yield f"{name}:{number}: `{called}` is not native to Wasm; compute it before the request is made"


class _Data(BaseModel):
    # Open: which keys there are is checked against the shipped data itself.
    model_config = ConfigDict(strict=True, extra="ignore")


_INTENTS: Final = (*get_args(IntentContext.model_fields["state"].annotation), "*")


def _intent(name: str) -> str:
    if name not in _INTENTS:
        msg = f"must be one of {', '.join(_INTENTS)}"
        raise ValueError(msg)
    return name


Intent = Annotated[str, AfterValidator(_intent)]
Verdict = Literal["permit", "ask", "deny"]
Worths = dict[str, Verdict]
EffectName = Literal["read", "fetch", "write", "send", "pay", "delete", "admin"]
Count = Annotated[int, Field(ge=0)]


class _Plan(_Data):
    stale: list[EffectName]
    unplanned_permitted: list[EffectName]


class _Anonymous(_Data):
    effects: list[EffectName]
    data_classes: list[str]


class _Approval(_Data):
    sources: list[Literal["interrupt", "application", "hitl"]]
    authenticated: bool


class _Rate(_Data):
    window: Annotated[int, Field(ge=1)]
    max: Count


class _Closed(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


Name = Annotated[str, Field(min_length=1)]


class _Budget(_Closed):
    max: Count
    counter: Name = "own"


class _Budgets(_Closed):
    effects: dict[EffectName, _Budget] = {}
    tools: dict[str, _Budget] = {}


Told = dict[Verdict, Name]


class _Notify(_Closed):
    effects: dict[EffectName, Told] = {}
    tools: dict[str, Told] = {}


class _ShippedData(_Data):
    effects: dict[EffectName, Verdict | dict[Intent, Worths]] = {}
    unprofiled: dict[EffectName | Literal["*"], Verdict] = {}
    data_flow: dict[str, dict[Literal["internal", "external"], Verdict]] = {}
    declassify: list[Literal["told", "selected", "known", "outside"]] = []
    plan: _Plan | None = None
    anonymous: _Anonymous | None = None
    approvals: dict[EffectName | Literal["*"], _Approval] = {}
    rates: dict[EffectName, _Rate] = {}
    budget: _Budgets = _Budgets()
    notify: _Notify = _Notify()
    redact: dict[str, list[str]] = {}
    anomaly: dict[str, Count | None] = {}


def lint_data(data: Mapping[str, Any]) -> Iterator[str]:
    """`data.json: key: what is wrong`, for each finding in the shipped policy's data."""
    try:
        _ShippedData.model_validate(data)
    except ValidationError as exc:
        for error in exc.errors():
            at = ".".join(str(p) for p in error["loc"] if "[" not in str(p))
            yield f"data.json: `{at}`: {error['msg']}"
