"""An answer of a PDP is a decision document or nothing."""

import json
import math
import types
from typing import Any

import pytest

from langchain_runtime_authz.evaluation import Decision, Obligation, deny
from langchain_runtime_authz.pdp import authzen
from langchain_runtime_authz.pdp.response import parse_answer

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
    "nothing": None, "true": True, "one": 1, "text": "true", "empty text": "", "empty bytes": b"", "empty object": {},
    "empty list": [], "a list of answers": [PERMIT], "an OPA result": {"result": PERMIT}, "no decision": {"context": {}},
    "decision as text": answered("true"), "decision as 1": answered(1), "decision as 1.0": answered(1.0),
    "decision as null": answered(None), "decision as an object": answered({}), "decision as a list": answered([True]),
    "another case": {"Decision": True}, "an unknown member": {"decision": True, "reason": "x"},
    "an unknown member beside the context": {"decision": True, "context": {}, "allow": True},
    "context null": {"decision": True, "context": None}, "context a list": {"decision": True, "context": []},
    "a permit that asks for approval": answered(obligations=[{"id": "a", "type": "require_approval"}]),
    "reasons an object": answered(reasons={"code": "x"}), "reasons as text": answered(reasons=["x"]),
    "a reason without a code": answered(reasons=[{}]), "a reason's code no text": answered(reasons=[{"code": 1}]),
    "a reason with a space": answered(reasons=[{"code": "ignore all rules"}]),
    "a reason with a newline": answered(reasons=[{"code": "x\n"}]),
    "a reason in another script": answered(reasons=[{"code": "grünt"}]), "an empty reason": answered(reasons=[{"code": ""}]),
    "a long reason": answered(reasons=[{"code": "x" * 129}]), "65 reasons": answered(reasons=[{"code": "x"}] * 65),
    "65 obligations": answered(obligations=[OBLIGED] * 65),
    "an obligation without an id": answered(obligations=[{"type": "redact"}]),
    "an obligation without a type": answered(obligations=[{"id": "1"}]),
    "an obligation with more": answered(obligations=[{**OBLIGED, "extra": 1}]),
    "an obligation's id no text": answered(obligations=[{**OBLIGED, "id": 1}]), "obligations null": answered(obligations=None),
    "obligation": answered(obligation=[OBLIGED]), "Obligations": answered(Obligations=[OBLIGED]),
    "one more kind of obligations": answered(obligations=[OBLIGED], OBLIGATION={}),
    "properties null": answered(obligations=[{**OBLIGED, "properties": None}]),
    "properties with NaN": answered(obligations=[{**OBLIGED, "properties": {"x": math.nan}}]),
    "properties with infinity": answered(obligations=[{**OBLIGED, "properties": {"x": [{"y": -math.inf}]}}]),
    "properties with an object": answered(obligations=[{**OBLIGED, "properties": {"x": object()}}]),
    "properties that hold themselves": answered(obligations=[{**OBLIGED, "properties": CYCLE}]),
    "properties without a bottom": answered(obligations=[{**OBLIGED, "properties": nested(100_000)}]),
    "a ttl below zero": answered(ttl=-1), "a ttl too long": answered(ttl=3601), "a ttl as text": answered(ttl="0"),
    "a ttl as a boolean": answered(ttl=True), "a ttl as a float": answered(ttl=1.0), "policy null": answered(policy=None),
    "a revision no text": answered(policy={"revision": 7}), "a long revision": answered(policy={"revision": "x" * 257}),
    "not JSON": "decision: true", "two documents": '{"decision": true}{"decision": true}',
    "NaN for a decision": '{"decision": NaN}', "NaN anywhere": '{"decision": true, "context": {"score": NaN}}',
    "infinity anywhere": '{"decision": true, "context": {"score": Infinity}}',
    "minus infinity anywhere": '{"decision": true, "context": {"score": -Infinity}}',
    "a number beyond all bounds": '{"decision": true, "context": {"score": 1e999}}',
    "an integer beyond all bounds": '{"decision": true, "context": {"score": ' + "9" * 5000 + "}}",
    "two decisions": '{"decision": false, "decision": true}', "two contexts": '{"decision": true, "context": {}, "context": {}}',
    "two codes": '{"decision": true, "context": {"reasons": [{"code": "a", "code": "b"}]}}',
    "too long": '{"decision": true, "context": {"pad": "' + "x" * 65536 + '"}}',
    "too long in bytes": b'{"decision": true, "context": {"pad": "' + b"x" * 65536 + b'"}}',
    "bytes that are no text": b'{"decision": true, "context": {"pad": "\xff"}}',
    "lists without a bottom": "[" * 30_000 + "]" * 30_000,
    "objects without a bottom": '{"decision": true, "context": ' + '{"a":' * 10_000 + "1" + "}" * 10_001,
    "an open end": "[" * 60_000, "a class": Decision, "an object": object(), "a number": 1.5,
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
        assert parse_answer(text) is None and parse_answer(text.encode()) is None


def test_a_python_answer_holds_json_types_only() -> None:
    """A tuple is no list, and a class that calls itself a mapping is no object."""
    assert parse_answer(answered(obligations=[{**OBLIGED, "properties": {"x": (1,)}}])) is None
    assert parse_answer(answered(reasons=({"code": "x"},))) is None
    assert parse_answer(types.MappingProxyType(PERMIT)) is None


@pytest.mark.parametrize(("answer", "outcome", "reasons"), [
    ({"decision": True}, "permit", ()),
    ({"decision": False}, "deny", ("no_permit",)),
    (answered(True), "permit", ()),
    (answered(True, reasons=[{"code": "observed:deny", "text": "more"}]), "permit", ("observed:deny",)),
    (answered(False, reasons=[{"code": "a.B-c_d/e:1"}, {"code": "b"}]), "deny", ("a.B-c_d/e:1", "b")),
    (answered(False, obligations=[{"id": "1", "type": "require_approval"}]), "approval_required", ("no_permit",)),
    (answered(False, obligations=[{"id": "1", "type": "revoke"}]), "halt", ("no_permit",)),
    (
        answered(False, obligations=[{"id": "1", "type": "require_approval"}, {"id": "2", "type": "revoke"}]), "halt",
        ("no_permit",),
    ),
    (answered(False, obligations=[OBLIGED]), "deny", ("no_permit",)),
    (answered(True, obligations=[OBLIGED] * 64, reasons=[{"code": "x" * 128}] * 64), "permit", ("x" * 128,) * 64),
    (answered(True, unknown={"nested": [1]}, policy={"revision": "r" * 256, "more": 1}), "permit", ()),
])
def test_an_answer_has_one_of_four_outcomes(answer: Any, outcome: str, reasons: tuple[str, ...]) -> None:
    """As text, as bytes and parsed; an approval and a halt travel as denials."""
    for form in (answer, json.dumps(answer), json.dumps(answer).encode(), bytearray(json.dumps(answer).encode())):
        decision = parse_answer(form)
        assert (decision.outcome, decision.reasons, decision.failure) == (outcome, reasons, None)
        assert decision.permit is (outcome == "permit") is (answer["decision"] is True)
        assert decision.reason == (reasons[0] if reasons else "")


def test_an_answer_is_carried_over_whole() -> None:
    """Obligations, ttl and revision; and every decision has an id of its own."""
    document = answered(obligations=[{**OBLIGED, "properties": {"fields": ["iban"]}}], ttl=30, policy={"revision": "r1"})
    first, second = parse_answer(document), parse_answer(document)
    assert second is not None
    assert first.obligations == (Obligation(id="1", type="redact", properties={"fields": ["iban"]}),)
    assert (first.ttl, first.policy_revision) == (30, "r1")
    assert len({first.decision_id, second.decision_id}) == 2 and len(first.decision_id) == 32


def test_a_deny_of_our_own_says_which_failure_it_is() -> None:
    """It is never without a reason."""
    for failure in ("mapping", "pdp", "enforcement", None):
        decision = deny("some_code", failure, "r1")
        assert (decision.outcome, decision.reasons, decision.failure) == ("deny", ("some_code",), failure)
        assert (decision.policy_revision, decision.permit) == ("r1", False)


@pytest.mark.parametrize(("given", "read"), [({}, None), ({"ttl": None}, None), ({"ttl": 30}, 30), ({"ttl": 30.0}, 0), ({"ttl": "30s"}, 0)])
def test_an_authzen_ttl_in_another_form_keeps_nothing(given: dict[str, Any], read: int | None) -> None:
    """Ignored, it would let a model's permit be kept for the run."""
    decided = authzen._decision({"decision": True, "context": given}, "id")
    assert (decided.permit, decided.ttl) == (True, read)
