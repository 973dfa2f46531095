"""Requests made from a good one: of the same types, or of any shape at all."""

import json
import random
from typing import Any

from langchain_runtime_authz.testing.example_request import NOW, example_request

DIGEST = "sha256:" + "5e" * 32
BASE = json.loads(example_request().to_json())

APPROVAL = {"source": "interrupt", "approver": "bob", "authenticated": True, "args_digest": DIGEST}
# Values that are plausible where they are put, so that every rule has its say.
PLAUSIBLE: dict[str, list[object]] = {
    "subject.type": ["anonymous", "service", ""], "action.name": ["run/start", "agent/invoke", "model/call", "tools/list"],
    "resource.type": ["run", "agent", "model"], "resource.id": ["read_file", "delete_all"],
    "resource.properties.effect": ["read", "fetch", "send", "pay", "delete", "admin", "smite"],
    "resource.properties.sink": ["none", "external", "elsewhere"],
    "resource.properties.data_class": ["public", "internal", "secret"], "resource.properties.profiled": [False, None],
    "context.schema_version": [1, 3, 2.0, "2"], "context.now": [NOW + 59.5, NOW + 60, str(NOW), 0],
    "context.task.epoch": [1, 2.0, "2"], "context.delegation.depth": [0, 2, 3, "1"], "context.plan": [None],
    "context.plan.planned": [False, "true"], "context.plan.stale": [True, None], "context.plan.changed": [True, None, "false"],
    "context.call.args.amount": [100, 100.0, 1e2, 100.1, -1, 2**60, 1e300, "1", True, None, [1]],
    "context.call.args.account": ["UK13", "", 1, None], "context.call.args_digest": ["", "sha256:other"],
    "resource.properties.reaches": [
        [], [{"effect": "pay", "sink": "external"}],
        [{"effect": "write", "sink": "internal"}, {"effect": "smite", "sink": "none"}], [{"effect": "send"}], "all",
    ],
    "context.call.mandate.standing": ["deviates", "forbidden", "outside", "none", "elsewise"],
    "context.call.mandate.backed": [True, "true", 1],
    "context.call.mandate.deviations": [[{"argument": "amount", "code": "value"}], [{"argument": "amount"}], None],
    "context.call.mandate": [
        None, {"standing": "covered"},
        {"standing": "none", "backed": True, "source": None, "step": None, "digest": None, "deviations": []},
        {"standing": "outside", "backed": False, "source": "words", "step": None, "digest": DIGEST, "deviations": []},
    ],
    "context.call.sink": ["none", "external", "internal", None, "elsewhere"],
    "context.call.provenance": [
        {}, None, {"account": {"kind": "principal", "class": "external", "standing": "outside"}},
        {"account": {"kind": "url", "class": "human", "standing": "told"}, "amount": {"kind": "amount"}},
    ],
    "context.call.changed": [["read_file"], None, "read_file"], "context.history.streak": [9, 10, "10", None],
    "context.history.unplanned": [2, 3], "context.history.tainted": [4, 5], "context.history.rotations": [5, 6],
    "context.history.last_minute": [99, 100], "context.lease.seconds": [3599, 3600, 2**53], "context.lease.steps": [999, 1000],
    "context.history.denials": [24, 25, 1e9, "25"],
    "context.history.classes_read": [[], ["secret"], ["public"], ["internal", "x"], [["public"]], [1], "secret"],
    "context.lease.exp": [NOW, 2**60, "zz"], "context.lease.epoch": [1, 2.0, None],
    "context.lease.grant": [None, {}, {"tools": None}, {"tool": []}, []],
    "context.lease.grant.tools": [[], ["delete_all"], {"x": "book_invoice"}, "book_invoice"],
    "context.lease.grant.args": [
        {"book_invoice": {"amount": {"ge": 0, "le": "x"}}}, {"book_invoice": {"amount": {"one_of": [100.0, 98.7, "1", True]}}},
        {"book_invoice": []}, {"book_invoice": {"absent": {}}}, None,
    ],
    "context.lease.grant.sinks": [["external"], None], "context.lease.grant.max_depth": [0, 1, "1"],
    "context.lease.grant.expires_at": [NOW, None, "zz"],
    "context.approval": [
        APPROVAL, APPROVAL | {"authenticated": False}, APPROVAL | {"source": "hitl"}, APPROVAL | {"args_digest": "sha256:other"},
        "yes",
    ],
}
ANYTHING: list[object] = [None, True, False, 0, -1, 1.5, 2**60, "", "zz", "permit", "*", [], [[]], {}, {"a": [None]}]


def mutate(document: Any, rng: random.Random) -> None:
    """Replace, or now and then delete, one to four members."""
    for path in rng.sample(sorted(PLAUSIBLE), rng.randint(1, 4)):
        *parents, last = path.split(".")
        at = document
        for name in parents:
            at = at.get(name) if isinstance(at, dict) else None
        if not isinstance(at, dict):
            continue
        choice = rng.random()
        if choice < 0.1:
            at.pop(last, None)
        else:
            at[last] = rng.choice(ANYTHING if choice < 0.25 else PLAUSIBLE[path])


STRINGS = ["", "a", "book_invoice", "public", "UK12", "UK12\x00;rm", "\u2028", "ß", 'x" \\', "0", "true", "*", "é" * 300]


def same_type(value: Any, rng: random.Random) -> Any:
    """Another value of the same JSON type."""
    match value:
        case bool():
            return not value
        case int() | float():
            return rng.choice([0, 1, -1, 2, 3, 24, 25, 26, 100, NOW, NOW + 60, 2**53, value + 1, value - 1, value + 0.5])
        case str():
            return rng.choice(STRINGS)
        case list():
            kept = [v for v in value if rng.random() < 0.6]
            return kept + rng.choice([[], kept[:1], ["public"], ["secret"]])
        case dict():
            return {k: v for k, v in value.items() if rng.random() < 0.8}
    return value


def nodes(document: Any) -> list[tuple[Any, Any]]:
    """Every place in a document: container and key."""
    found: list[tuple[Any, Any]] = []
    items = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in list(items):
        found.append((document, key))
        if isinstance(value, dict | list):
            found.extend(nodes(value))
    return found


def type_preserving(rng: random.Random) -> dict[str, Any]:
    """One to five values replaced by plausible or perturbed ones of the same type."""
    document = json.loads(json.dumps(BASE))
    for _ in range(rng.randint(1, 5)):
        if rng.random() < 0.6:
            path = rng.choice(sorted(PLAUSIBLE))
            *parents, last = path.split(".")
            at = document
            for name in parents:
                at = at.get(name) if isinstance(at, dict) else None
            if not isinstance(at, dict) or (last not in at and last != "reaches"):
                continue
            at.setdefault(last, [])
            alike = [v for v in PLAUSIBLE[path] if type(v) is type(at[last])] or [at[last]]
            at[last] = json.loads(json.dumps(rng.choice(alike)))
        else:
            container, key = rng.choice(nodes(document))
            container[key] = same_type(container[key], rng)
    return document


def wild(rng: random.Random) -> Any:
    """Types changed, keys deleted, moved and added, anywhere; now and then no request at all."""
    if rng.random() < 0.01:
        return rng.choice(ANYTHING)
    document = json.loads(json.dumps(BASE))
    for _ in range(rng.randint(1, 6)):
        places = nodes(document)
        if not places:
            break
        container, key = rng.choice(places)
        choice = rng.random()
        if choice < 0.25 and isinstance(container, dict):
            container.pop(key)
        elif choice < 0.35 and isinstance(container, dict):
            container[rng.choice(STRINGS)] = container.pop(key)
        elif choice < 0.5:
            container[key] = json.loads(json.dumps(rng.choice(places)[0]))
        elif choice < 0.6:
            container[key] = [container[key]] * rng.randint(1, 3)
        else:
            container[key] = json.loads(json.dumps(rng.choice(ANYTHING)))
    if rng.random() < 0.5:
        mutate(document, rng) if isinstance(document, dict) else None
    return document
