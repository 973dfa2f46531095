"""What happens to a run is on record: the plan, the order, questions and answers, changes of the task, delegation."""

from contextlib import nullcontext
from typing import Any, get_args

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from langchain_runtime_authz import Mandate, RuntimeAuthz
from langchain_runtime_authz.audit.record import Event
from langchain_runtime_authz.audit.sinks import MemorySink
from langchain_runtime_authz.errors import AuditError, AuthzDenied, AuthzError, Code, LedgerError
from langchain_runtime_authz.facts.task import HumanText, content_digest
from langchain_runtime_authz.ledger.call_changes import AnswerApproval
from langchain_runtime_authz.ledger.memory import MemoryLedger
from langchain_runtime_authz.pep.run import drive
from langchain_runtime_authz.pep.run_lifecycle import _pinned
from langchain_runtime_authz.testing import FrozenClock, ScriptedChatModel, StaticPDP

from ...attack._approvals import FIVE, Scene, edit, payment
from ...attack._kit import THREAD, human

ONE = [payment("ann", 10, "c1")]


def scene(**options: Any) -> Scene:
    saver = InMemorySaver()
    return Scene("agent", lambda: saver, plan=options.pop("plan", ONE), **options)


def events(authz: RuntimeAuthz, name: str) -> list[dict[str, Any]]:
    records = authz.audit.records  # type: ignore[attr-defined]
    return [r for r in records if r["kind"] == "run" and r["event"] == name]


def details(authz: RuntimeAuthz, name: str) -> list[dict[str, Any]]:
    return [r["detail"] for r in events(authz, name)]


class Disk:
    """It is full for a while."""

    content = waits = False

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.full = ""

    def write(self, record: dict[str, Any]) -> None:
        if self.full in (record.get("event"), "everything"):
            raise OSError(28, "no space left")
        self.records.append(record)


ANSWERS = {
    "approve": {"type": "approve"}, "edit": edit("ann", 5), "reject": {"type": "reject", "message": "not today"},
    "respond": {"type": "respond", "message": "ask me tomorrow"}, "malformed": {"type": "later"},
}


@pytest.mark.parametrize("verdict", ANSWERS)
@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_question_and_its_answer(verdict: str, how: str) -> None:
    """Who answered what, to which question of which decision; an answer that changes the task names its author."""
    s = scene()
    s.say(human(), how=how)
    s.say(Command(resume={"decisions": [ANSWERS[verdict]]}), how=how)
    (asked,) = details(s.authz, "asked")
    (question,) = asked["questions"]
    (answer,) = details(s.authz, "approval")
    asks = [r for r in s.authz.audit.records if r.get("outcome") == "approval_required"]  # type: ignore[attr-defined]
    assert (asked["source"], question["tool"]) == ("interrupt", "pay")
    assert question["decision_id"] == asks[0]["decision_id"]
    assert {k: answer[k] for k in ("approval", "call_key", "args_digest")} == {
        k: question[k] for k in ("approval", "call_key", "args_digest")
    }
    assert (answer["verdict"], answer["approver"], answer["authenticated"]) == (verdict, "user:alice", True)
    assert "message" not in answer and ("message_digest" in answer) is (verdict in ("reject", "respond"))
    rotates = verdict in ("edit", "reject", "respond")
    assert [d["author"] for d in details(s.authz, "corrected")] == ["user:alice"] * rotates
    for rotated in events(s.authz, "rotated"):
        assert (rotated["detail"]["from_epoch"], rotated["epoch"]) == (1, 2)
        assert rotated["detail"]["from_jti"] != rotated["jti"]
    assert len(events(s.authz, "rotated")) == rotates


def test_an_answer_that_does_not_count_is_refused_on_record() -> None:
    """Also where somebody answers in the graph who may not."""
    terms = {"id": "a", "type": "require_approval", "properties": {"approvers": {"distinct_from_subject": True}}}
    ask = {"decision": False, "context": {"reasons": [{"code": "effect"}], "obligations": [terms]}}
    s = scene(pdp=StaticPDP(lambda r: ask if r.action.name == "tools/call" and not r.context.approval else True))
    s.say(human())
    with pytest.raises(AuthzDenied):
        s.say(Command(resume={"decisions": [{"type": "approve"}]}))
    first, again = details(s.authz, "approval")  # each answer is recorded before it counts
    assert again == {**first, "refused": "approval_not_distinct"} and first["verdict"] == "approve"


@pytest.mark.parametrize("place", ["in the graph", "outside"])
def test_an_answer_without_an_answer_of_the_ledger_is_marked(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may count or not."""
    s = scene()
    (ask,) = s.say(human())["__interrupt__"][0].value["action_requests"]
    commit = s.authz.ledger.commit

    def broken(scope: Any, guard: Any, changes: Any) -> Any:
        if any(isinstance(c, AnswerApproval) for c in changes):
            raise LedgerError(Code.LEDGER_UNAVAILABLE)
        return commit(scope, guard, changes)

    monkeypatch.setattr(s.authz.ledger, "commit", broken)
    with pytest.raises(AuthzError):
        s.authz.approve(ask["approval_id"], by="bob") if place == "outside" else s.say(Command(resume={"decisions": [{"type": "approve"}]}))
    first, again = details(s.authz, "approval")
    assert again == {**first, "unknown": "ledger_unavailable"} and first["verdict"] == "approve"


def test_a_plan_is_on_record_once() -> None:
    s = scene(plan=FIVE)
    s.say(human())
    s.say(Command(resume={"decisions": [{"type": "approve"}] * 3}))
    (planned,) = details(s.authz, "planned")
    assert planned["source"] == "model" and planned["tools"] == ["pay", "write", "pay", "write", "pay"]


def test_what_the_task_orders_is_on_record() -> None:
    """By the application or by the user's words; its values only with contents."""
    ordered = {"steps": [{"id": "rent", "tool": "pay", "args": {"to": "ann", "amount": 10}}]}
    for content in (False, True):
        authz = RuntimeAuthz(audit=MemorySink(content=content))
        authz.session(subject="alice", mandate=Mandate.model_validate(ordered)).close()
        (kept,) = details(authz, "mandate")
        assert (kept["source"], kept["steps"]) == ("application", [{"id": "rent", "tool": "pay"}])
        assert ("mandate" in kept, "ann" in str(kept)) == (content, content)


def test_changes_of_the_task_and_delegation() -> None:
    """With their author, the epoch before and the child's lease."""
    authz = RuntimeAuthz(pdp=StaticPDP(permit=True))
    session = authz.session(subject="alice", task="x", thread="t")
    session.delegate("child")
    authz.correct("t", "pay less", graph="session", by="bob")
    authz.revoke("t", graph="session", by="user:carol", reason="incident 42")
    authz.reinstate("t", graph="session", by="user:carol")
    (delegated,) = events(authz, "delegated")
    assert delegated["agent"] == ["session"]
    assert {k: delegated["detail"][k] for k in ("to", "kind")} == {"to": "child", "kind": "subgraph"}
    assert delegated["detail"]["jti"] != delegated["jti"]
    (corrected,) = events(authz, "corrected")
    assert (corrected["epoch"], corrected["detail"]) == (
        2, {"source": "correct", "author": "user:bob", "texts": 1, "from_epoch": 1},
    )
    assert details(authz, "revoked") == [{"author": "user:carol", "reason": "incident 42"}]
    assert details(authz, "reinstated") == [{"author": "user:carol", "reason": ""}]


def test_a_revocation_by_policy_names_its_decision() -> None:
    revoke = {"id": "r", "type": "revoke", "properties": {}}
    no = {"decision": False, "context": {"reasons": [{"code": "anomaly"}], "obligations": [revoke]}}
    authz = RuntimeAuthz(pdp=StaticPDP(lambda r: no if r.action.name == "tools/call" else True))
    denied = authz.session(subject="alice", task="x").decide("pay", {})
    (revoked,) = details(authz, "revoked")
    assert (revoked["reason"], revoked["decision_id"]) == ("anomaly", denied.decision_id)


@pytest.mark.parametrize("full", ["approval", "twin: nothing"])
@pytest.mark.parametrize("where", ["in the graph", "outside", "the first of two"])
def test_an_approval_that_cannot_be_recorded_does_not_count(where: str, full: str) -> None:
    """The approver is told so, and asked again. An answer that is on record counts."""
    disk, first = Disk(), where == "the first of two"
    terms = {"id": "a", "type": "require_approval", "properties": {"approvers": {"min": 1 + first}}}
    asks = {"decision": False, "context": {"reasons": [{"code": "effect"}], "obligations": [terms]}}
    s = scene(audit=disk, pdp=StaticPDP(lambda r: asks if r.action.name == "tools/call" and not r.context.approval else True))
    (ask,) = s.say(human())["__interrupt__"][0].value["action_requests"]

    def approve() -> None:
        if where != "in the graph":
            s.authz.approve(ask["approval_id"], by="bob")
        else:
            s.say(Command(resume={"decisions": [{"type": "approve"}]}))

    disk.full = full
    with pytest.raises(AuditError) if full == "approval" else nullcontext():
        approve()
    disk.full = ""
    assert not first or s.authz.approve(ask["approval_id"], by="carol") == (full == "approval")
    s.say(None)
    assert len(s.ran) == (full != "approval")
    if full == "approval":
        approve()
        s.say(None)
    assert (len(s.ran), len(details(s.authz, "approval"))) == (1, 1 + first)


@pytest.mark.parametrize("full", ["approval", "twin: nothing"])
@pytest.mark.parametrize("kind", ["hand", "agent"])
def test_an_approval_beside_a_rejection_does_not_count_without_its_record(kind: str, full: str) -> None:
    """The rejection changes the task."""
    disk = Disk()
    s = scene(audit=disk, plan=[payment("ann", 10, "c1"), payment("eve", 10, "c2")])
    s.kind = kind
    s.start()
    asked = s.say(human())["__interrupt__"]
    said = [{"type": "approve"}, ANSWERS["reject"]]
    answers = {i.id: {"decisions": [said.pop(0) for _ in i.value["action_requests"]]} for i in asked}
    disk.full = full
    with pytest.raises(AuditError) if full == "approval" else nullcontext():
        s.say(Command(resume=answers))
    disk.full = ""
    s.say(None)
    assert len(s.ran) == (full != "approval")
    if full == "approval":  # the rejection does not count either, so both are asked about
        s.say(Command(resume=answers))
    assert len(s.ran) == 1


@pytest.mark.parametrize("full", ["reinstated", "twin: nothing"])
def test_a_reinstatement_that_cannot_be_recorded_is_none(full: str) -> None:
    """The operator is told so. What was revoked stays so, and nothing else is."""
    disk = Disk()
    authz = RuntimeAuthz(audit=disk, pdp=StaticPDP(permit=True))
    opened = {"subject": "alice", "task": "pay ann", "thread": "t"}
    authz.session(**opened).close()
    for thread, agent in (("t", ()), ("other", ("session", "payer"))):
        authz.session(**opened | {"thread": thread}).close()
        authz.revoke(thread, graph="session", agent=agent)
    disk.full = full
    for thread in ("t", "other"):
        with pytest.raises(AuditError) if full == "reinstated" else nullcontext():
            authz.reinstate(thread, graph="session", by="user:mallory")
    disk.full = ""
    authz.session(**opened | {"thread": "other"}).close()
    with pytest.raises(AuthzDenied, match="revoked") if full == "reinstated" else nullcontext():
        authz.session(**opened)


def test_operators_acts_have_the_ledgers_time() -> None:
    """Its clock may be behind this process's: `ledger restored` puts the acts in their order by these times."""
    authz = RuntimeAuthz(ledger=MemoryLedger(clock=FrozenClock(1000.0)), pdp=StaticPDP(permit=True))
    authz.reinstate("t", graph="session")
    authz.revoke("t", graph="session")
    assert [r["ts"] for r in authz.audit.records] == [1000.0, 1000.0]  # type: ignore[attr-defined]


@pytest.mark.parametrize("full", ["corrected", "everything", "started"])
@pytest.mark.parametrize("again", ["pay eve", "pay bob"])
def test_a_change_of_the_task_is_on_record_once(full: str, again: str) -> None:
    """Also one that the log could not take: the next entry records it before its lease begins. Denied until then."""
    disk = Disk()
    authz = RuntimeAuthz(audit=disk, pdp=StaticPDP(permit=True))
    authz.session(subject="alice", task="pay ann", thread="t").close()
    disk.full = full
    for _ in range(2):
        with pytest.raises(AuthzError):
            authz.session(subject="alice", task="pay eve", thread="t")
    disk.full = ""
    for _ in range(2):
        authz.session(subject="alice", task=again, thread="t").close()
    told = [(r["epoch"], r["detail"]) for r in events(authz, "corrected")]
    assert told == [
        (epoch, {"source": "input", "author": "user:alice", "texts": 1, "from_epoch": epoch - 1})
        for epoch in ((2,) if again == "pay eve" else (2, 3))
    ]


def test_an_edit_from_outside_is_on_record_once() -> None:
    disk = Disk()
    authz = RuntimeAuthz(audit=disk, pdp=StaticPDP(permit=True))
    run = authz.session(subject="alice", task="pay ann", thread="t")._run
    edits = [HumanText(content_digest(to), "", to, own=False) for to in ("a", "b")]
    drive(run.pep, _pinned(run, edits[:1]))
    disk.full = "corrected"
    with pytest.raises(AuditError):
        drive(run.pep, _pinned(run, edits[1:]))
    disk.full = ""
    for _ in range(2):
        authz.session(subject="alice", thread="t").close()
    assert [(r["epoch"], r["detail"]["source"]) for r in events(authz, "corrected")] == [(2, "state"), (3, "state")]


ROADS = {
    "answer": lambda s, _: s.say(Command(resume={"decisions": [ANSWERS["respond"]]})),
    "answer outside": lambda s, ask: s.authz.deny_approval(ask["approval_id"], by="bob", message="not today"),
    "correct": lambda s, _: s.authz.correct(THREAD["configurable"]["thread_id"], "pay eve instead", graph=s.graph.name),
    "update_state": lambda s, _: s.graph.update_state(THREAD, human("pay eve")),
}


@pytest.mark.parametrize("road", ROADS)
def test_a_change_of_the_task_by_another_road_is_on_record_once(road: str) -> None:
    """The log is full when it is made."""
    disk = Disk()
    s = scene(audit=disk)
    (ask,) = s.say(human())["__interrupt__"][0].value["action_requests"]
    disk.full = "corrected"
    with pytest.raises(AuthzError):
        ROADS[road](s, ask)
    assert details(s.authz, "corrected") == []
    disk.full = ""
    for _ in range(2):
        s.say(None)
    assert [(d["source"], d["from_epoch"]) for d in details(s.authz, "corrected")] == [(road.split(maxsplit=1)[0], 1)]


@pytest.mark.parametrize("again", ["", "corrected"])
def test_a_later_change_does_not_hide_one_that_is_not_on_record(again: str) -> None:
    """It is made once the earlier one is on record; until then it is refused."""
    disk = Disk()
    authz = RuntimeAuthz(audit=disk, pdp=StaticPDP(permit=True))
    authz.session(subject="alice", task="pay ann", thread="t").close()
    disk.full = "corrected"
    with pytest.raises(AuthzError):
        authz.correct("t", "pay eve", graph="session")
    disk.full = again
    with pytest.raises(AuthzError) if again else nullcontext():
        authz.correct("t", "pay bob", graph="session")
    disk.full = ""
    authz.session(subject="alice", thread="t").close()
    assert [r["epoch"] for r in events(authz, "corrected")] == ([2] if again else [2, 3])


def test_a_planners_mandate_counts_once_it_is_on_record(monkeypatch: pytest.MonkeyPatch) -> None:
    order = Mandate.model_validate({"steps": [{"id": "rent", "tool": "pay", "args": {"to": "ann"}}]})

    class Planner:
        def plan(self, *_: Any) -> Mandate:
            return order

        aplan = plan

    monkeypatch.setattr("langchain_runtime_authz.langgraph.model_planner.ModelPlanner", lambda *_: Planner())
    disk = Disk()
    authz = RuntimeAuthz(audit=disk, pdp=StaticPDP(permit=True), planner=ScriptedChatModel(script=[]))
    disk.full = "mandate"
    with pytest.raises(AuthzError):
        authz.session(subject="alice", task="pay ann", thread="t")
    disk.full = ""
    for _ in range(2):
        authz.session(subject="alice", task="pay ann", thread="t").close()
    assert [kept["source"] for kept in details(authz, "mandate")] == ["planner"]


def test_every_event_is_documented() -> None:
    from langchain_runtime_authz.audit import record

    table = [line for line in (record.__doc__ or "").splitlines() if line.startswith("| `")]
    assert set(get_args(Event)) <= {name.strip("` ") for line in table for name in line.split("|")[1].split(",")}
