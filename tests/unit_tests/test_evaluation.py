"""The request keeps its written evolution rule."""

import json
import types
import typing
from typing import Any

import pytest
from pydantic import BaseModel, JsonValue, ValidationError

from langchain_runtime_authz.errors import ConfigError
from langchain_runtime_authz.evaluation import SCHEMA_VERSION, ActionName, EvaluationRequest, MandateContext, Subject
from langchain_runtime_authz.testing.example_request import example_request

# Request version 2. A line may be added, with a default; none is changed or taken away: somebody's
# policy reads it. `…` stands for the object whose members follow.
SAID = {
    "origin": "'human' | 'principal' | 'system' | 'internal' | 'external'", "source": "str | null = None",
    "counterparty": "bool = False",
}
PROVENANCE = {
    "class": "'human' | 'principal' | 'system' | 'internal' | 'counterparty' | 'external' | 'mentioned' | 'unknown'",
    "standing": "'told' | 'known' | 'outside'", "asserted_by: list[…] = []": SAID, "mentioned_by: list[…] = []": SAID,
    "lookalike": "bool = False",
}
REQUEST_V2 = {
    "subject": {"type": "str", "id": "str", "properties": "dict[str, any] = {}"},
    "action": {
        "name": "'run/start' | 'run/resume' | 'agent/invoke' | 'model/call' | 'node/enter' | 'tools/call'",
    },
    "resource": {
        "type": "'run' | 'agent' | 'node' | 'model' | 'tool'", "id": "str", "properties": "dict[str, any] = {}",
    },
    "context": {
        "schema_version": "2 = 2", "now": "int",
        "task": {"id": "str", "epoch": "int", "digest": "str", "text": "str", "corrections": "int"},
        "agent": {"path": "list[str]", "id": "str", "attested": "bool = False"},
        "delegation": {
            "depth": "int",
            "edges: list[…] = []": {
                "from": "str", "to": "str", "kind": "'handoff' | 'task' | 'subgraph' | 'send' | 'agent_as_tool' | 'remote'",
            },
        },
        "history": {
            "steps": "int = 0", "calls": "dict[str, int] = {}", "effects": "dict[str, int] = {}", "denials": "int = 0",
            "classes_read": "list[str] = []", "classes_held": "list[str] | null = None", "recent": "list[str] = []",
            "streak": "int = 0", "unplanned": "int = 0", "tainted": "int = 0", "rotations": "int = 0", "last_minute": "int = 0",
        },
        "lease": {
            "jti": "str", "epoch": "int", "exp": "int", "grant": "dict[str, any] | null = None", "seconds": "int = 0",
            "steps": "int = 0",
        },
        "prompt: … | null = None": {"model": "str | null = None", "digest": "str | null = None"},
        "plan: … | null = None": {
            "id": "str | null = None", "source": "'model' | 'code' | null = None", "planned": "bool = False",
            "stale": "bool = False", "position": "int = 0", "of": "int = 0", "changed": "bool = False",
        },
        "call: … | null = None": {
            "id": "str | null = None", "state": "'new' | 'claimed' | 'suspended' | 'done' | 'failed' | 'unknown' = 'new'",
            "args": "dict[str, any]", "args_digest": "str",
            "provenance: dict[str, …] = {}": {
                **PROVENANCE,
                "kind": "'principal' | 'url' | 'object' | 'name' | 'channel' | 'amount' | 'place' | 'value' | 'when'",
                "items: list[…] = []": PROVENANCE,
            },
            f"mandate = {MandateContext()!r}": {
                "standing": "'covered' | 'deviates' | 'forbidden' | 'outside' | 'none' = 'none'",
                "backed": "bool = False", "source": "'application' | 'planner' | 'words' | null = None",
                "step": "str | null = None", "digest": "str | null = None",
                "deviations: list[…] = []": {
                    "argument": "str",
                    "code": "'value' | 'missing' | 'undeclared' | 'unordered' | 'unread' | 'ambiguous' | 'untrusted' | 'extract' "
                    "| 'text' | 'condition' | 'spent' | 'after' | 'part' | 'confirm' | 'limit' | 'suspended'",
                },
            },
            "sink": "'none' | 'internal' | 'external' | null = None", "changed": "list[str] = []", "repeats": "int = 0",
        },
        "approval: … | null = None": {
            "source": "'interrupt' | 'hitl' | 'application'", "approver": "str", "authenticated": "bool",
            "args_digest": "str", "edited_from": "str | null = None", "approvers": "list[str] = []",
        },
        "local: … | null = None": {"zone": "str", "date": "str", "weekday": "int", "hour": "int", "minute": "int"},
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


def test_the_fields_of_version_2_stand() -> None:
    """Names, types, defaults and optionality are those that policies were written for."""
    assert SCHEMA_VERSION == 2 and fields_of(EvaluationRequest) == REQUEST_V2


def test_the_actions_are_the_pinned_ones() -> None:
    """The table of actions is the type's own list."""
    assert " | ".join(map(repr, typing.get_args(ActionName))) == REQUEST_V2["action"]["name"]  # type: ignore[index]


def test_an_older_request_is_still_a_request() -> None:
    """Without every field that has a default: what was added later means what its absence meant."""
    document = json.loads(json.dumps(EXAMPLE))
    context = document["context"]
    for name in ("schema_version", "prompt", "plan", "call", "approval", "local"):
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
    assert set(EXAMPLE["context"]) == {key.split(":")[0] for key in REQUEST_V2["context"]}


@pytest.mark.parametrize("path", places(EXAMPLE), ids=lambda p: ".".join(map(str, p)))
def test_nothing_is_coerced(path: tuple[str | int, ...]) -> None:
    """No field takes a value of another type, and no object a member that it does not know."""
    value = at(path)
    wrong: list[Any] = [[[]], 1.5]
    if not isinstance(value, bool):
        wrong += [True]
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


@pytest.mark.parametrize("version", [0, 1, 3, "2", 2.5, None])
def test_another_version_is_another_request(version: object) -> None:
    """A document of a version that this code does not know is refused."""
    with pytest.raises(ValidationError):
        EvaluationRequest.model_validate_json(changed(("context", "schema_version"), version))


def test_an_intent_of_version_1_is_no_mandate() -> None:
    """The fields that version 2 took away are refused in a request of version 2."""
    for path, value in ((("context", "call", "intent"), {"state": "intended", "source": "words"}), (("context", "plan", "listed"), True)):
        with pytest.raises(ValidationError):
            EvaluationRequest.model_validate_json(changed(path, value))


def test_a_subject_is_a_name_or_a_full_one() -> None:
    """A bare string is a user; a mapping says its type; nothing else is guessed."""
    assert Subject.of("alice") == Subject(type="user", id="alice", properties={})
    service = Subject.of({"type": "service", "id": "cron", "properties": {"tenant": "acme"}})
    assert (service.type, service.id) == ("service", "cron") and Subject.of(service) is service
    for wrong in (
        {"id": "alice"}, {"type": "user"}, {"type": "user", "id": 7}, {"type": "user", "id": "a", "role": "x"},
        {"type": "", "id": "alice"},
        {"type": "oidc:user", "id": "alice"}, "user:alice",  # four eyes would take `alice` for another person
    ):
        with pytest.raises(ConfigError):
            Subject.of(wrong)
