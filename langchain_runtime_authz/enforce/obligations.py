"""Obligations: what each type demands of the PEP. One table; a type not in it denies.

| type | properties | carried out |
|---|---|---|
| `redact` | `fields`: names | in the tool's result, before anything else sees it |
| `require_approval` | `expires_in` (s, optional) | as a question to a human; its answer counts so long from the question |
| `rate_limit` | `counter`, `window` (s), `max` | in the commit that claims the call, atomically |
| `budget` | `counter`, `max` | likewise, for the whole task: at most `max` permits |
| `notify` | `channel` | told once it is recorded (`enforce.notify`); a permit that can not be told is a deny |
| `revoke` | | the agent's subtree, with the deny |
| `rotate` | | the task's epoch, with the deny: what was planned is void |
| `withhold_tools` | `tools`, `provider_tools`: names | a model is not shown these |

With a deny, `notify`, `revoke` and `rotate` are carried out too, and `rate_limit` and `budget` count the
attempt where there is room; `redact` and `withhold_tools` then have nothing to act on.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, Final, Literal

from langchain_runtime_authz.authzen import Obligation
from langchain_runtime_authz.ledger.base import Change, SpendBudget, SpendRate

__all__ = ["REDACTED", "demands", "redact"]

REDACTED: Final = "[redacted]"
POLICY_BUDGET: Final = "policy:"  # before a counter, so that it is none of the grant's


def demands(obligation: Obligation) -> Change | Literal[True] | None:
    """The change that must be committed with the permit; `True` for none; `None` if not understood.

    An obligation of a known type with properties of another shape is not understood.
    """
    props = obligation.properties
    match obligation.type:
        case "revoke" | "rotate":
            return True
        case "require_approval":
            return True if "expires_in" not in props or _positive(props["expires_in"]) else None
        case "withhold_tools":
            return True if _names(props.get("tools")) and _names(props.get("provider_tools")) else None
        case "redact":
            fields = props.get("fields")
            if isinstance(fields, list) and fields and all(isinstance(f, str) for f in fields):
                return True
        case "rate_limit":
            counter, window, maximum = props.get("counter"), props.get("window"), props.get("max")
            if isinstance(counter, str) and _positive(window) and _natural(maximum):
                return SpendRate(counter, window, maximum)  # type: ignore[arg-type]
        case "budget":
            counter, maximum = props.get("counter"), props.get("max")
            if isinstance(counter, str) and counter and _natural(maximum):
                return SpendBudget(POLICY_BUDGET + counter, maximum)  # type: ignore[arg-type]
        case "notify":
            channel = props.get("channel")
            return True if isinstance(channel, str) and channel else None
    return None


def _names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def _natural(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _positive(value: object) -> bool:
    return _natural(value) and value != 0


def redact(value: Any, fields: Collection[str]) -> Any:
    """`value` with each named field's content replaced, at any depth.

    Text that is JSON is treated as what it says; other text can not be searched by field, so all of
    it goes: an obligation is carried out or the content is not shown. The text of a content block
    counts as text by itself.
    """
    if not fields:
        return value
    if isinstance(value, str):
        parsed = _structure(value)
        return REDACTED if parsed is None else json.dumps(_inside(parsed, fields), ensure_ascii=False)
    return _inside(value, fields) if isinstance(value, dict | list | tuple) else None if value is None else REDACTED


def _inside(value: Any, fields: Collection[str]) -> Any:
    """Below a structure: scalars under other names stay, and text that is JSON is searched too."""
    if isinstance(value, dict):
        if value.get("type") == "text" and isinstance(value.get("text"), str):
            return {**value, "text": redact(value["text"], fields)}
        return {k: REDACTED if k in fields else _inside(v, fields) for k, v in value.items()}
    if isinstance(value, list):
        return [_inside(v, fields) for v in value]
    if isinstance(value, tuple):
        return tuple(_inside(v, fields) for v in value)
    if isinstance(value, str) and (parsed := _structure(value)) is not None:
        return json.dumps(_inside(parsed, fields), ensure_ascii=False)
    return value


def _structure(text: str) -> dict[str, Any] | list[Any] | None:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict | list) else None
