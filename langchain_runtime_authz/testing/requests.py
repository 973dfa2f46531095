"""A full, valid request to start a test from."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import JsonValue

from langchain_runtime_authz.authzen import EvaluationRequest

__all__ = ["NOW", "example_request"]

NOW = 1764000000

_DIGEST = "sha256:" + "5e" * 32
_EXAMPLE: dict[str, JsonValue] = {
    "subject": {"type": "user", "id": "alice", "properties": {"tenant": "acme"}},
    "action": {"name": "tools/call"},
    "resource": {
        "type": "tool",
        "id": "book_invoice",
        "properties": {
            "effect": "write",
            "sink": "internal",
            "data_class": "confidential",
            "profiled": True,
            "target": {"account": "UK12"},
        },
    },
    "context": {
        "schema_version": 1,
        "now": NOW,
        "task": {"id": "task-1", "epoch": 2, "digest": _DIGEST, "text": "Book the December bill", "corrections": 1},
        "prompt": {"model": "model-1", "digest": _DIGEST},
        "agent": {
            "path": ["supervisor", "bookkeeper"],
            "id": "spiffe://example.org/agent/bookkeeper",
            "attested": True,
        },
        "delegation": {"depth": 1, "edges": [{"from": "supervisor", "to": "bookkeeper", "kind": "handoff"}]},
        "plan": {
            "id": "plan-1",
            "source": "model",
            "planned": True,
            "stale": False,
            "position": 1,
            "of": 2,
            "changed": False,
            "listed": True,
        },
        "call": {
            "id": "call-1",
            "state": "new",
            "args": {"account": "UK12", "amount": 98.7},
            "args_digest": _DIGEST,
            "changed": [],
            "repeats": 0,
            "provenance": {
                "account": {
                    "kind": "principal",
                    "class": "human",
                    "standing": "told",
                    "asserted_by": [
                        {"origin": "human", "source": None, "counterparty": False, "selected": False, "named": False}
                    ],
                    "mentioned_by": [],
                    "derived": False,
                    "lookalike": False,
                    "items": [],
                },
                "amount": {
                    "kind": "amount",
                    "class": "mentioned",
                    "standing": "named",
                    "asserted_by": [],
                    "mentioned_by": [
                        {
                            "origin": "external",
                            "source": "read_file",
                            "counterparty": False,
                            "selected": False,
                            "named": True,
                        }
                    ],
                    "derived": False,
                    "lookalike": False,
                    "items": [],
                },
            },
            "intent": {"state": "intended", "source": "words"},
            "sink": "internal",
        },
        "history": {
            "steps": 7,
            "calls": {"read_file": 1},
            "effects": {"read": 1},
            "denials": 0,
            "classes_read": ["confidential"],
            "recent": ["read_file"],
            "streak": 0,
            "unplanned": 0,
            "tainted": 0,
            "rotations": 0,
            "last_minute": 2,
        },
        "lease": {
            "jti": "lease-1",
            "epoch": 2,
            "exp": NOW + 60,
            "grant": {
                "tools": ["book_invoice", "read_file"],
                "args": {"book_invoice": {"amount": {"le": 100}, "account": {"one_of": ["UK12"]}}},
                "data_classes": ["confidential"],
                "sinks": ["internal", "none"],
                "max_depth": 2,
                "expires_at": NOW + 3600,
            },
            "seconds": 5,
            "steps": 7,
        },
        "approval": None,
    },
}


def example_request(overrides: Mapping[str, object] | None = None) -> EvaluationRequest:
    """A `tools/call` that the shipped policy permits, with some fields replaced.

    Args:
        overrides: dotted path → JSON value: `{"context.plan.stale": True}`. A mapping replaces what
            stood there as a whole.

    Raises:
        KeyError: a path leads through something that is no object.
        pydantic.ValidationError: the result is no valid request.
    """
    document = json.loads(json.dumps(_EXAMPLE))
    for path, value in (overrides or {}).items():
        *parents, last = path.split(".")
        at = document
        for name in parents:
            at = at[name]
            if not isinstance(at, dict):
                raise KeyError(path)
        at[last] = value
    return EvaluationRequest.model_validate_json(json.dumps(document))
