"""Obligations: what each type demands of the PEP. One table; a type not in it denies.

| type | properties | carried out |
|---|---|---|
| `redact` | `fields`: names | in the tool's result, before anything else sees it |
| `require_approval` | | as a question to a human |
| `rate_limit` | `counter`, `window` (s), `max` | in the commit that claims the call, atomically |
| `revoke` | | the agent's subtree, with the deny |
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, Final, Literal

from langchain_runtime_authz.authzen import Obligation
from langchain_runtime_authz.ledger.base import Change, SpendRate

__all__ = ["REDACTED", "demands", "redact"]

REDACTED: Final = "[redacted]"


def demands(obligation: Obligation) -> Change | Literal[True] | None:
    """The change that must be committed with the permit; `True` for none; `None` if not understood.

    An obligation of a known type with properties of another shape is not understood.
    """
    props = obligation.properties
    match obligation.type:
        case "require_approval" | "revoke":
            return True
        case "redact":
            fields = props.get("fields")
            if isinstance(fields, list) and fields and all(isinstance(f, str) for f in fields):
                return True
        case "rate_limit":
            counter, window, maximum = props.get("counter"), props.get("window"), props.get("max")
            if isinstance(counter, str) and _positive(window) and _natural(maximum):
                return SpendRate(counter, window, maximum)  # type: ignore[arg-type]
    return None


def _natural(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _positive(value: object) -> bool:
    return _natural(value) and value != 0


def redact(value: Any, fields: Collection[str]) -> Any:
    """`value` with each named field's content replaced, at any depth.

    Text that is JSON is treated as what it says; other text can not be searched by field, so all of
    it goes: an obligation is carried out or the content is not shown.
    """
    if not fields:
        return value
    if isinstance(value, str):
        try:
            parsed = json.loads(value)
        except ValueError:
            return REDACTED
        if not isinstance(parsed, dict | list):
            return REDACTED
        return json.dumps(redact(parsed, fields), ensure_ascii=False)
    if isinstance(value, dict):
        return {k: REDACTED if k in fields else _inside(v, fields) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return (
            type(value)(_inside(v, fields) for v in value)
            if isinstance(value, list)
            else tuple(_inside(v, fields) for v in value)
        )
    return REDACTED if value is not None else None


def _inside(value: Any, fields: Collection[str]) -> Any:
    # Below a structure, scalars under other names stay; structures are searched further.
    return redact(value, fields) if isinstance(value, dict | list | tuple) else value
