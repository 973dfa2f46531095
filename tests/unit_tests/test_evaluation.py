"""The request keeps its written evolution rule.

`policies/request.schema.json` is version 2, field by field, and `test_policy.py` compares it with the model. A field may be
added, with a default. None is changed or taken away, because somebody's policy reads it.
"""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from langchain_runtime_authz.errors import ConfigError
from langchain_runtime_authz.evaluation import Context, EvaluationRequest, Subject
from langchain_runtime_authz.testing.example_request import example_request

EXAMPLE = json.loads(example_request().to_json())


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
    assert set(EXAMPLE["context"]) == {field.alias or name for name, field in Context.model_fields.items()}


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
