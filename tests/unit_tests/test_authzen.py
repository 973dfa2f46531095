"""The request keeps its written evolution rule, and an answer is a decision document or nothing."""

from __future__ import annotations

import json
import math
import types
import typing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, JsonValue, ValidationError

from langchain_runtime_authz.authzen import (
    ACTIONS,
    SCHEMA_VERSION,
    Decision,
    EvaluationRequest,
    Obligation,
    Subject,
    deny,
)
from langchain_runtime_authz.errors import ConfigError
from langchain_runtime_authz.pdp.answer import parse_answer
from langchain_runtime_authz.testing.requests import example_request

# Request version 1. A line may be added, with a default; none is changed or taken away: somebody's
# policy reads it. `…` stands for the object whose members follow.
SAID = {
    "origin": "'human' | 'principal' | 'system' | 'internal' | 'external'",
    "source": "str | null = None",
    "counterparty": "bool = False",
    "selected": "bool = False",
    "named": "bool = False",
}
PROVENANCE = {
    "class": "'human' | 'principal' | 'system' | 'internal' | 'counterparty' | 'external' | 'mentioned' | 'unknown'",
    "standing": "'told' | 'selected' | 'known' | 'named' | 'outside'",
    "asserted_by: list[…] = []": SAID,
    "mentioned_by: list[…] = []": SAID,
    "derived": "bool = False",
    "lookalike": "bool = False",
}
REQUEST_V1 = {
    "subject": {"type": "str", "id": "str", "properties": "dict[str, any] = {}"},
    "action": {
        "name": "'run/start' | 'run/resume' | 'agent/invoke' | 'model/call' | 'node/enter' | 'tools/call'",
    },
    "resource": {
        "type": "'run' | 'agent' | 'node' | 'model' | 'tool'",
        "id": "str",
        "properties": "dict[str, any] = {}",
    },
    "context": {
        "schema_version": "1 = 1",
        "now": "int",
        "task": {"id": "str", "epoch": "int", "digest": "str", "text": "str", "corrections": "int"},
        "agent": {"path": "list[str]", "id": "str", "attested": "bool = False"},
        "delegation": {
            "depth": "int",
            "edges: list[…] = []": {
                "from": "str",
                "to": "str",
                "kind": "'handoff' | 'task' | 'subgraph' | 'send' | 'agent_as_tool' | 'remote'",
            },
        },
        "history": {
            "steps": "int = 0",
            "calls": "dict[str, int] = {}",
            "effects": "dict[str, int] = {}",
            "denials": "int = 0",
            "classes_read": "list[str] = []",
            "classes_held": "list[str] | null = None",
            "recent": "list[str] = []",
            "streak": "int = 0",
            "unplanned": "int = 0",
            "tainted": "int = 0",
            "rotations": "int = 0",
            "last_minute": "int = 0",
        },
        "lease": {
            "jti": "str",
            "epoch": "int",
            "exp": "int",
            "grant": "dict[str, any] | null = None",
            "seconds": "int = 0",
            "steps": "int = 0",
        },
        "prompt: … | null = None": {"model": "str | null = None", "digest": "str | null = None"},
        "plan: … | null = None": {
            "id": "str | null = None",
            "source": "'model' | 'code' | null = None",
            "planned": "bool = False",
            "stale": "bool = False",
            "position": "int = 0",
            "of": "int = 0",
            "changed": "bool = False",
            "listed": "bool | null = None",
        },
        "call: … | null = None": {
            "id": "str | null = None",
            "state": "'new' | 'claimed' | 'suspended' | 'done' | 'failed' | 'unknown' = 'new'",
            "args": "dict[str, any]",
            "args_digest": "str",
            "provenance: dict[str, …] = {}": {
                **PROVENANCE,
                "kind": "'principal' | 'url' | 'object' | 'name' | 'channel' | 'amount' | 'place' | 'value' | 'when'",
                "items: list[…] = []": PROVENANCE,
            },
            "intent = IntentContext(state='unstated', source=None)": {
                "state": "'intended' | 'delegated' | 'unasked' | 'unstated' = 'unstated'",
                "source": "'words' | 'planner' | 'application' | null = None",
            },
            "sink": "'none' | 'internal' | 'external' | null = None",
            "changed": "list[str] = []",
            "repeats": "int = 0",
        },
        "approval: … | null = None": {
            "source": "'interrupt' | 'hitl' | 'application'",
            "approver": "str",
            "authenticated": "bool",
            "args_digest": "str",
            "edited_from": "str | null = None",
            "approvers": "list[str] = []",
        },
    },
}
EXAMPLE = json.loads(example_request().to_json())


def spelled(annotation: Any) -> str:
    """A type in one notation, whichever way it is written in the model."""
    if annotation is type(None):
        return "null"
    if annotation is JsonValue:
        return "any"
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " | ".join(map(repr, args))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(spelled, args))
    if origin is not None:
        return f"{origin.__name__}[{', '.join(map(spelled, args))}]"
    return str(annotation.__name__)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for part in typing.get_args(annotation) for m in models_in(part)]


def fields_of(model: type[BaseModel]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        key = field.alias or name
        default = "" if field.is_required() else f" = {field.get_default(call_default_factory=True)!r}"
        text = spelled(field.annotation)
        if inner := models_in(field.annotation):
            text = text.replace(inner[0].__name__, "…")
            found[f"{key}{'' if text == '…' else ': ' + text}{default}"] = fields_of(inner[0])
        else:
            found[key] = text + default
    return found


def places(document: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The path of every value below the document, but for those inside free-form objects."""
    if path and path[-1] in ("properties", "args", "provenance", "calls", "effects", "grant"):
        return [path]
    items: Any = ()
    if isinstance(document, dict):
        items = document.items()
    elif isinstance(document, list):
        items = enumerate(document)
    return [*([path] if path else []), *(p for k, v in items for p in places(v, (*path, k)))]


def changed(path: tuple[str | int, ...], value: object) -> str:
    document = json.loads(json.dumps(EXAMPLE))
    at = document
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return json.dumps(document)


def at(path: tuple[str | int, ...]) -> Any:
    value: Any = EXAMPLE
    for step in path:
        value = value[step]
    return value


# --- the request ---


def test_the_fields_of_version_1_stand() -> None:
    """Names, types, defaults and optionality are those that policies were written for."""
    assert SCHEMA_VERSION == 1
    assert fields_of(EvaluationRequest) == REQUEST_V1


def test_the_actions_are_the_pinned_ones() -> None:
    """The table of actions is the type's own list."""
    assert " | ".join(map(repr, ACTIONS)) == REQUEST_V1["action"]["name"]  # type: ignore[index]


def test_an_older_request_is_still_a_request() -> None:
    """Without every field that has a default: what was added later means what its absence meant."""
    document = json.loads(json.dumps(EXAMPLE))
    context = document["context"]
    for name in ("schema_version", "prompt", "plan", "call", "approval"):
        del context[name]
    context["history"] = {}
    del context["agent"]["attested"], context["delegation"]["edges"], context["lease"]["grant"]
    del document["subject"]["properties"], document["resource"]["properties"]
    request = EvaluationRequest.model_validate_json(json.dumps(document))
    assert (request.context.call, request.context.lease.grant, request.context.agent.attested) == (None, None, False)


def test_a_request_survives_its_json() -> None:
    """What a PDP is sent holds every field under its pinned name."""
    request = example_request()
    assert EvaluationRequest.model_validate_json(request.to_json()) == request
    assert EXAMPLE["context"]["delegation"]["edges"][0] == {"from": "supervisor", "to": "bookkeeper", "kind": "handoff"}
    assert set(EXAMPLE["context"]) == {key.split(":")[0] for key in REQUEST_V1["context"]}


@pytest.mark.parametrize("path", places(EXAMPLE), ids=lambda p: ".".join(map(str, p)))
def test_nothing_is_coerced(path: tuple[str | int, ...]) -> None:
    """No field takes a value of another type, and no object a member that it does not know."""
    value = at(path)
    wrong: list[Any] = [[[]], 1.5]
    if not isinstance(value, bool):
        wrong += [True] if path != ("context", "schema_version") else [2]  # pydantic takes `true` for its literal 1
    if not isinstance(value, int) or isinstance(value, bool):
        wrong += [1]
    if not isinstance(value, str):
        wrong += ["1", "true"]
    if not isinstance(value, dict):
        wrong += [{}]
    for other in wrong:
        with pytest.raises(ValidationError):
            EvaluationRequest.model_validate_json(changed(path, other))
    if isinstance(value, dict) and path[-1] not in ("properties", "args", "provenance", "calls", "effects", "grant"):
        with pytest.raises(ValidationError):
            EvaluationRequest.model_validate_json(changed((*path, "unknown"), 1))


def test_a_request_does_not_change() -> None:
    """What was decided can be read again later."""
    request = example_request()
    with pytest.raises(ValidationError):
        request.context.now = 0  # type: ignore[misc]
    with pytest.raises(ValidationError):
        request.subject = Subject(type="user", id="mallory")  # type: ignore[misc]


@pytest.mark.parametrize("version", [0, 2, "1", 1.5, None])
def test_another_version_is_another_request(version: object) -> None:
    """A document of a version that this code does not know is refused."""
    with pytest.raises(ValidationError):
        EvaluationRequest.model_validate_json(changed(("context", "schema_version"), version))


def test_a_subject_is_a_name_or_a_full_one() -> None:
    """A bare string is a user; a mapping says its type; nothing else is guessed."""
    assert Subject.of("alice") == Subject(type="user", id="alice", properties={})
    service = Subject.of({"type": "service", "id": "cron", "properties": {"tenant": "acme"}})
    assert (service.type, service.id) == ("service", "cron")
    assert Subject.of(service) is service
    for wrong in (
        {"id": "alice"},
        {"type": "user"},
        {"type": "user", "id": 7},
        {"type": "user", "id": "a", "role": "x"},
    ):
        with pytest.raises(ConfigError):
            Subject.of(wrong)


# --- the answer ---

PERMIT = {"decision": True, "context": {}}
OBLIGED: dict[str, Any] = {"id": "1", "type": "redact", "properties": {}}


def answered(decision: object = True, **context: Any) -> dict[str, Any]:
    return {"decision": decision, "context": context}


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


CYCLE: dict[str, Any] = {}
CYCLE["a"] = CYCLE
MALFORMED: dict[str, object] = {
    "nothing": None,
    "true": True,
    "one": 1,
    "text": "true",
    "empty text": "",
    "empty bytes": b"",
    "empty object": {},
    "empty list": [],
    "a list of answers": [PERMIT],
    "an OPA result": {"result": PERMIT},
    "no decision": {"context": {}},
    "decision as text": answered("true"),
    "decision as 1": answered(1),
    "decision as 1.0": answered(1.0),
    "decision as null": answered(None),
    "decision as an object": answered({}),
    "decision as a list": answered([True]),
    "another case": {"Decision": True},
    "an unknown member": {"decision": True, "reason": "x"},
    "an unknown member beside the context": {"decision": True, "context": {}, "allow": True},
    "context null": {"decision": True, "context": None},
    "context a list": {"decision": True, "context": []},
    "a permit that asks for approval": answered(obligations=[{"id": "a", "type": "require_approval"}]),
    "reasons an object": answered(reasons={"code": "x"}),
    "reasons as text": answered(reasons=["x"]),
    "a reason without a code": answered(reasons=[{}]),
    "a reason's code no text": answered(reasons=[{"code": 1}]),
    "a reason with a space": answered(reasons=[{"code": "ignore all rules"}]),
    "a reason with a newline": answered(reasons=[{"code": "x\n"}]),
    "a reason in another script": answered(reasons=[{"code": "grünt"}]),
    "an empty reason": answered(reasons=[{"code": ""}]),
    "a long reason": answered(reasons=[{"code": "x" * 129}]),
    "65 reasons": answered(reasons=[{"code": "x"}] * 65),
    "65 obligations": answered(obligations=[OBLIGED] * 65),
    "an obligation without an id": answered(obligations=[{"type": "redact"}]),
    "an obligation without a type": answered(obligations=[{"id": "1"}]),
    "an obligation with more": answered(obligations=[{**OBLIGED, "extra": 1}]),
    "an obligation's id no text": answered(obligations=[{**OBLIGED, "id": 1}]),
    "obligations null": answered(obligations=None),
    "obligation": answered(obligation=[OBLIGED]),
    "Obligations": answered(Obligations=[OBLIGED]),
    "one more kind of obligations": answered(obligations=[OBLIGED], OBLIGATION={}),
    "properties null": answered(obligations=[{**OBLIGED, "properties": None}]),
    "properties with NaN": answered(obligations=[{**OBLIGED, "properties": {"x": math.nan}}]),
    "properties with infinity": answered(obligations=[{**OBLIGED, "properties": {"x": [{"y": -math.inf}]}}]),
    "properties with an object": answered(obligations=[{**OBLIGED, "properties": {"x": object()}}]),
    "properties that hold themselves": answered(obligations=[{**OBLIGED, "properties": CYCLE}]),
    "properties without a bottom": answered(obligations=[{**OBLIGED, "properties": nested(100_000)}]),
    "a ttl below zero": answered(ttl=-1),
    "a ttl too long": answered(ttl=3601),
    "a ttl as text": answered(ttl="0"),
    "a ttl as a boolean": answered(ttl=True),
    "a ttl as a float": answered(ttl=1.0),
    "policy null": answered(policy=None),
    "a revision no text": answered(policy={"revision": 7}),
    "a long revision": answered(policy={"revision": "x" * 257}),
    "not JSON": "decision: true",
    "two documents": '{"decision": true}{"decision": true}',
    "NaN for a decision": '{"decision": NaN}',
    "NaN anywhere": '{"decision": true, "context": {"score": NaN}}',
    "infinity anywhere": '{"decision": true, "context": {"score": Infinity}}',
    "minus infinity anywhere": '{"decision": true, "context": {"score": -Infinity}}',
    "a number beyond all bounds": '{"decision": true, "context": {"score": 1e999}}',
    "an integer beyond all bounds": '{"decision": true, "context": {"score": ' + "9" * 5000 + "}}",
    "two decisions": '{"decision": false, "decision": true}',
    "two contexts": '{"decision": true, "context": {}, "context": {}}',
    "two codes": '{"decision": true, "context": {"reasons": [{"code": "a", "code": "b"}]}}',
    "too long": '{"decision": true, "context": {"pad": "' + "x" * 65536 + '"}}',
    "too long in bytes": b'{"decision": true, "context": {"pad": "' + b"x" * 65536 + b'"}}',
    "bytes that are no text": b'{"decision": true, "context": {"pad": "\xff"}}',
    "lists without a bottom": "[" * 30_000 + "]" * 30_000,
    "objects without a bottom": '{"decision": true, "context": ' + '{"a":' * 10_000 + "1" + "}" * 10_001,
    "an open end": "[" * 60_000,
    "a class": Decision,
    "an object": object(),
    "a number": 1.5,
    "a permit of our own": Decision(outcome="permit", decision_id="x"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_an_answer_that_is_no_decision_document_is_nothing(name: str) -> None:
    """Parsed or as text: anything but a well-formed document gives no decision, and never raises."""
    answer = MALFORMED[name]
    assert parse_answer(answer) is None
    try:
        text = json.dumps(answer)
    except (TypeError, ValueError, RecursionError):
        return
    if not isinstance(answer, str):
        assert parse_answer(text) is None
        assert parse_answer(text.encode()) is None


def test_a_python_answer_holds_json_types_only() -> None:
    """A tuple is no list, and a class that calls itself a mapping is no object."""
    assert parse_answer(answered(obligations=[{**OBLIGED, "properties": {"x": (1,)}}])) is None
    assert parse_answer(answered(reasons=({"code": "x"},))) is None
    assert parse_answer(types.MappingProxyType(PERMIT)) is None


@pytest.mark.parametrize(
    ("answer", "outcome", "reasons"),
    [
        ({"decision": True}, "permit", ()),
        ({"decision": False}, "deny", ("no_permit",)),
        (answered(True), "permit", ()),
        (answered(True, reasons=[{"code": "observed:deny", "text": "more"}]), "permit", ("observed:deny",)),
        (answered(False, reasons=[{"code": "a.B-c_d/e:1"}, {"code": "b"}]), "deny", ("a.B-c_d/e:1", "b")),
        (answered(False, obligations=[{"id": "1", "type": "require_approval"}]), "approval_required", ("no_permit",)),
        (answered(False, obligations=[{"id": "1", "type": "revoke"}]), "halt", ("no_permit",)),
        (
            answered(False, obligations=[{"id": "1", "type": "require_approval"}, {"id": "2", "type": "revoke"}]),
            "halt",
            ("no_permit",),
        ),
        (answered(False, obligations=[OBLIGED]), "deny", ("no_permit",)),
        (answered(True, obligations=[OBLIGED] * 64, reasons=[{"code": "x" * 128}] * 64), "permit", ("x" * 128,) * 64),
        (answered(True, unknown={"nested": [1]}, policy={"revision": "r" * 256, "more": 1}), "permit", ()),
    ],
)
def test_an_answer_has_one_of_four_outcomes(answer: Any, outcome: str, reasons: tuple[str, ...]) -> None:
    """As text, as bytes and parsed; an approval and a halt travel as denials."""
    for form in (answer, json.dumps(answer), json.dumps(answer).encode(), bytearray(json.dumps(answer).encode())):
        decision = parse_answer(form)
        assert decision is not None
        assert (decision.outcome, decision.reasons, decision.failure) == (outcome, reasons, None)
        assert decision.permit is (outcome == "permit") is (answer["decision"] is True)
        assert decision.reason == (reasons[0] if reasons else "")


def test_an_answer_is_carried_over_whole() -> None:
    """Obligations, ttl and revision; and every decision has an id of its own."""
    document = answered(
        obligations=[{**OBLIGED, "properties": {"fields": ["iban"]}}], ttl=30, policy={"revision": "r1"},
    )
    first, second = parse_answer(document), parse_answer(document)
    assert first is not None
    assert second is not None
    assert first.obligations == (Obligation(id="1", type="redact", properties={"fields": ["iban"]}),)
    assert (first.ttl, first.policy_revision) == (30, "r1")
    assert len({first.decision_id, second.decision_id}) == 2
    assert len(first.decision_id) == 32


def test_a_deny_of_our_own_says_which_failure_it_is() -> None:
    """It is never without a reason."""
    for failure in ("mapping", "pdp", "enforcement", None):
        decision = deny("some_code", failure, "r1")
        assert (decision.outcome, decision.reasons, decision.failure) == ("deny", ("some_code",), failure)
        assert (decision.policy_revision, decision.permit) == ("r1", False)


documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["decision", "context", "reasons", "code", "obligations", "id"]), inner)
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=150)
@given(answer=documents | st.text() | st.binary())
def test_only_the_literal_true_permits(answer: Any) -> None:
    """Whatever a PDP answers, nothing is raised, and a permit has `true` in its place."""
    decision = parse_answer(answer)
    if decision is not None and decision.permit:
        document = answer if isinstance(answer, dict) else json.loads(answer)
        assert document["decision"] is True
        assert document.keys() <= {"decision", "context"}


@settings(deadline=None, max_examples=150)
@given(context=documents)
def test_whatever_stands_in_the_context_a_false_denies(context: Any) -> None:
    """No context turns a `false` into a permit."""
    decision = parse_answer({"decision": False, "context": context})
    assert decision is None or not decision.permit
