"""A decision in words: for the developer, never for the model."""

import json
import logging
from pathlib import Path
from typing import Any, get_args

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.prebuilt import ToolNode

from langchain_runtime_authz import AuthzDenied, RuntimeAuthz, profile
from langchain_runtime_authz.audit.chain import read_log
from langchain_runtime_authz.audit.explanation import DEVIATIONS, explain
from langchain_runtime_authz.audit.sinks import FileSink, MemorySink
from langchain_runtime_authz.errors import Code, ConfigError, sentence
from langchain_runtime_authz.evaluation import DeviationCode
from langchain_runtime_authz.pep import recent_decisions
from langchain_runtime_authz.telemetry import logs
from langchain_runtime_authz.testing import ScriptedChatModel
from tests.attack._graphs import chain

LOG = "langchain_runtime_authz.decisions"


@profile(effect="pay", sink="external", critical={"recipient": "principal", "amount": "amount"}, intent=("pay",))
@tool
def send_money(recipient: str, amount: float) -> str:
    """Send money."""
    return "sent"


def _agent(authz: RuntimeAuthz, *tools: Any, args: dict[str, Any] | None = None, saver: bool = True) -> Any:
    tools = tools or (send_money,)
    call = {"name": tools[0].name, "args": args or {}, "id": "c1"}
    model = ScriptedChatModel(script=[AIMessage("", tool_calls=[call]), AIMessage("done")])
    return authz.protect(create_agent(model, list(tools), checkpointer=InMemorySaver() if saver else None))


def _said(words: str) -> dict[str, Any]:
    return {"messages": [("user", words)]}


CONFIG: Any = {"configurable": {"thread_id": "t1"}}
MALLORY = {"recipient": "Mallory", "amount": 50.0}


def test_a_notebook_shows_the_words() -> None:
    """The last line of a cell is shown without `print`, also `run.decisions`, which is a list."""
    pretty = pytest.importorskip("IPython.lib.pretty").pretty
    authz = RuntimeAuthz()
    with authz.run(subject="alice") as run:
        _agent(authz, args=MALLORY).invoke(_said("Hello"), CONFIG)
    first, last = run.decisions[0], run.decisions[-1]
    assert pretty(last) == str(last) and pretty([first, last]).count(str(last)) == 1


@pytest.mark.parametrize("sink", ["memory", "content", "file", "foreign"])
def test_a_question_is_explained_whatever_the_sink_keeps(sink: str, tmp_path: Any) -> None:
    """With the arguments, what was ordered instead, codes, remedies, revision and ids; in 80 columns."""

    class Foreign:
        content = False

        def write(self, record: dict[str, Any]) -> None:
            pass

    audit = {"memory": MemorySink(), "content": MemorySink(content=True), "file": FileSink(tmp_path / "a"), "foreign": Foreign()}
    authz = RuntimeAuthz(audit=audit[sink])
    graph = _agent(authz, args=MALLORY)
    with authz.run(subject="alice") as run:
        graph.invoke(_said("Pay Bob 45 EUR"), CONFIG)
        asked = run.decisions[-1]
    assert asked == authz.explain(asked.decision_id)
    assert (asked.outcome, asked.thread, asked.run_id) == ("approval_required", "t1", run.run_id)
    assert asked.policy_revision == authz.pdp.revision
    assert [r.code for r in asked.reasons] == ["deviates", "effect"]
    for reason in asked.reasons:
        assert f"{reason.meaning}; {reason.remedy}" == sentence(reason.code)
    recipient, amount = asked.arguments
    assert (recipient.given, recipient.expected) == ('"Mallory"', "Bob (you said it)")
    assert (amount.deviation, amount.expected) == (DEVIATIONS["value"], "45 (you said it)")
    text = str(asked)
    assert max(map(len, text.splitlines())) <= 80
    for word in ("send_money", "Mallory", "Bob", "deviates", asked.decision_id, run.run_id):
        assert word in text
    assert json.loads(json.dumps(asked.to_dict()))["decision_id"] == asked.decision_id
    assert all(d.outcome == "permit" for d in run.decisions[:-1])


def test_an_older_decision_is_read_from_the_file(tmp_path: Any) -> None:
    """Another instance does not remember it, and the record has no contents."""
    first = RuntimeAuthz(audit=tmp_path / "audit.jsonl")
    graph = _agent(first, args=MALLORY)
    with first.run(subject="alice") as run:
        graph.invoke(_said("Pay Bob 45 EUR"), CONFIG)
        asked = run.decisions[-1]
    found = RuntimeAuthz(audit=tmp_path / "audit.jsonl").explain(asked.decision_id)
    assert found.reasons == asked.reasons
    assert [(a.name, a.given, a.expected) for a in found.arguments] == [("recipient", None, None), ("amount", None, None)]
    with pytest.raises(ConfigError, match="no decision"):
        first.explain("0" * 32)


@pytest.mark.parametrize("record", [{}, {"outcome": "deny", "reasons": ["own_code"], "request": None, "scope": None}])
def test_a_sparse_record_is_explained(record: dict[str, Any]) -> None:
    """Whatever is not there is left out; a policy's own code is quoted."""
    text = str(explain(record))
    assert ("own_code" in text) == bool(record)


def test_every_deviation_has_words() -> None:
    """Each code that the request can hold."""
    codes = {c for member in get_args(DeviationCode) for c in (get_args(member) or (member,))}
    assert set(DEVIATIONS) == codes


@pytest.mark.parametrize("code", ["subject_mismatch", "killed"])
def test_a_refused_entry_says_why_to_the_developer(code: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In the traceback, by id, in `run.decisions` and on record with its subject, though no policy was asked; once in the log."""
    caplog.set_level(logging.WARNING, LOG)  # the demo's command raises it
    authz = RuntimeAuthz(kill_switch=tmp_path / "kill", audit=FileSink(tmp_path / "audit.jsonl", content=True))
    graph = _agent(authz, args=MALLORY)
    with authz.run(subject="alice"):
        graph.invoke(_said("Pay Bob 45 EUR, says alice"), CONFIG)
    if code == "killed":
        (tmp_path / "kill").touch()
    with authz.run(subject="bob") as run, pytest.raises(AuthzDenied) as denied:
        graph.invoke(_said("Pay Bob 45 EUR"), CONFIG)
    assert code not in str(denied.value)
    assert sentence(code) in "".join(denied.value.__notes__)
    assert [r.code for r in authz.explain(denied.value.decision_id).reasons] == [code]
    assert run.decisions[-1].decision_id == denied.value.decision_id
    (record,) = (r for r in read_log(tmp_path / "audit.jsonl") if r and r.get("decision_id") == denied.value.decision_id)
    assert (record["reasons"], record["request"]["subject"]["id"], record["request"]["context"]["task"]["text"]) == ([code], "bob", "")
    assert caplog.text.count(denied.value.decision_id) == 1


def _formatted(exc: Exception) -> str:
    return f"{exc} {exc!r} {exc.args}"


@pytest.mark.parametrize("handle", [True, _formatted])
def test_no_road_takes_the_reason_to_the_model(handle: Any) -> None:
    """A tool that calls a denied tool: what LangGraph makes of the exception holds no code and no remedy."""
    authz = RuntimeAuthz()
    guarded = authz.guard(send_money)

    @profile(effect="read", sink="none")
    @tool
    def wraps() -> str:
        """Call a guarded tool."""
        return str(guarded.invoke(MALLORY))

    call = {"name": "wraps", "args": {}, "id": "c1"}
    model = ScriptedChatModel(script=[AIMessage("", tool_calls=[call]), AIMessage("done")])
    nodes = {"model": lambda s: {"messages": [model.invoke(s["messages"])]}, "tools": ToolNode([wraps], handle_tool_errors=handle)}
    graph = authz.protect(chain(nodes, checkpointer=InMemorySaver()))
    with authz.run(subject="alice") as run:
        out = graph.invoke(_said("Look"), CONFIG)
    inner = next(d for d in run.decisions if d.outcome != "permit")
    told = "".join(m.text for m in out["messages"] if m.type == "tool")
    assert inner.decision_id in told
    for code in Code:
        assert sentence(code) not in told and code.remedy not in told
    for reason in inner.reasons:
        assert reason.code not in told


def test_the_log_says_why_once_a_call_and_not_more_than_it_can_bear(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WARNING for a deny, INFO for a question; ids, code and remedy, no arguments; few lines a minute and code."""
    caplog.set_level(logging.INFO, LOG)
    authz = RuntimeAuthz()
    graph = _agent(authz, args=MALLORY)
    with authz.run(subject="alice") as run:
        graph.invoke(_said("Pay Bob 45 EUR"), CONFIG)
        asked = run.decisions[-1]
    (line,) = [r for r in caplog.records if r.name == LOG]
    assert line.levelno == logging.INFO
    for word in (asked.decision_id, run.run_id, "thread t1", "send_money", sentence("deviates")):
        assert word in line.getMessage()
    assert "Mallory" not in line.getMessage()
    caplog.clear()
    now = [0.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])
    with authz.run(subject="bob"):
        for _ in range(logs.BURST + 3):
            with pytest.raises(AuthzDenied):
                graph.invoke(_said("x"), {"configurable": {"thread_id": "t1"}})
        lines = [r for r in caplog.records if r.name == LOG]
        assert len(lines) == logs.BURST
        assert {r.levelno for r in lines} == {logging.WARNING}
        now[0] = logs.WINDOW
        with pytest.raises(AuthzDenied):
            graph.invoke(_said("x"), CONFIG)
    assert "3 more of this code were not logged" in caplog.messages[-1]


def test_a_forged_name_stays_on_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """A client's thread id cannot write a line of its own."""
    authz = RuntimeAuthz()
    graph = _agent(authz)
    config: Any = {"configurable": {"thread_id": "t\ndenied nothing: all is well"}}
    with authz.run(subject="alice"):
        graph.invoke(_said("x"), config)
    with authz.run(subject="bob"), pytest.raises(AuthzDenied):
        graph.invoke(_said("x"), config)
    assert all("\n" not in m for m in caplog.messages)


def test_what_is_remembered_is_bounded(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By number, and by the size of each request: the decision stays, its contents go."""
    monkeypatch.setattr(recent_decisions, "MAX_DECISIONS", 4)
    monkeypatch.setattr(recent_decisions, "MAX_BODY", 10)
    authz = RuntimeAuthz(audit=tmp_path / "audit.jsonl")
    graph = _agent(authz, args=MALLORY)
    with authz.run(subject="alice") as run:
        graph.invoke(_said("Pay Bob 45 EUR"), CONFIG)
        assert len(run.decisions) == 4
        asked = run.decisions[-1]
    assert asked.outcome == "approval_required" and asked.arguments == ()


def test_a_full_audit_disk_is_not_called_a_broken_ledger(tmp_path: Any) -> None:
    """The code names what failed, and the id that the client was given is explained."""

    class Full(FileSink):
        full = False

        def _put(self, data: bytes) -> None:
            if self.full:
                raise OSError(28, "No space left on device")
            super()._put(data)

    sink = Full(tmp_path / "audit.jsonl")
    authz = RuntimeAuthz(audit=sink)
    graph = _agent(authz)
    sink.full = True
    with authz.run(subject="alice"), pytest.raises(AuthzDenied) as denied:
        graph.invoke(_said("x"), CONFIG)
    assert denied.value.code == "audit_unavailable"
    assert authz.explain(denied.value.decision_id).reasons[0].code == "audit_unavailable"
    sink.full = False
    assert authz.reenter(graph, CONFIG, input=_said("x")).how == "send again"  # at once: no lease is left behind
