"""Return a full, valid request to start a test from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from langchain_runtime_authz.evaluation import EvaluationRequest

NOW: Final = 1764000000
_EXAMPLE: Final = Path(__file__).with_name("request.json").read_text(encoding="utf-8")


def example_request(overrides: Mapping[str, object] | None = None, *, now: int = NOW) -> EvaluationRequest:
    """Return a `tools/call` that the shipped policy permits, with fields replaced.

    Args:
        overrides: dotted path → JSON value: `{"context.plan.stale": True}`. A mapping replaces the whole old value.
        now: the request's time, in epoch seconds. Lease and grant end as long after `now` as they do in the example.

    Raises `KeyError` if a path leads through a value that is not an object, `ValidationError` if the result is invalid.
    """
    document = json.loads(_EXAMPLE)
    context = document["context"]
    context["now"] = now
    context["lease"]["exp"] += now - NOW
    context["lease"]["grant"]["expires_at"] += now - NOW
    for path, value in (overrides or {}).items():
        *parents, last = path.split(".")
        at = document
        for name in parents:
            at = at[name]
            if not isinstance(at, dict):
                raise KeyError(path)
        at[last] = value
    return EvaluationRequest.model_validate_json(json.dumps(document))
