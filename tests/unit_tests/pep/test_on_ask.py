"""Questions that are answered in the process that asks, and subjects for runs without one."""

import logging
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.tools import StructuredTool, tool
from langgraph.checkpoint.memory import InMemorySaver

from langchain_runtime_authz import RuntimeAuthz, profile
from langchain_runtime_authz.audit.sinks import MemorySink
from langchain_runtime_authz.errors import AuthzDenied, ConfigError
from langchain_runtime_authz.langgraph.run_context import current_run
from langchain_runtime_authz.pep.on_ask import ask_in_terminal
from langchain_runtime_authz.testing import ScriptedChatModel


def approving(question: dict[str, Any]) -> Any:
    return {"decisions": [{"type": "approve"} for _ in question["action_requests"]]}


async def aapproving(question: dict[str, Any]) -> Any:
    return approving(question)


def rejecting(question: dict[str, Any]) -> Any:
    return {"decisions": [{"type": "reject", "message": "not today"} for _ in question["action_requests"]]}


def first_only(question: dict[str, Any]) -> Any:
    kinds = ("approve" if r["args"]["recipient"] == "Bob" else "reject" for r in question["action_requests"])
    return {"decisions": [{"type": kind} for kind in kinds]}


def raising(question: dict[str, Any]) -> Any:
    raise RuntimeError("the screen is off")


BILLS = {"messages": [("user", "See to the bills")]}


def agent(on_ask: Any, *, saver: bool = False, **options: Any) -> tuple[list[str], Any, RuntimeAuthz]:
    """An agent that makes two calls in one message; who was paid, and the graph."""
    paid: list[str] = []

    @profile(effect="pay", sink="external", critical={"recipient": "principal"}, intent=("pay",))
    @tool
    def send_money(recipient: str) -> str:
        """Send money."""
        paid.append(recipient)
        return "sent"

    calls = [{"name": "send_money", "args": {"recipient": name}, "id": name} for name in ("Bob", "Eve")]
    model = ScriptedChatModel(script=[AIMessage("", tool_calls=calls), AIMessage("done")])
    authz = RuntimeAuthz(on_ask=on_ask, **options)
    return paid, authz.protect(create_agent(model, [send_money], checkpointer=InMemorySaver() if saver else None)), authz


def played(on_ask: Any, *, saver: bool = False, **options: Any) -> tuple[list[str], Any, RuntimeAuthz]:
    """The two calls in one process; who was paid, and the state."""
    paid, graph, authz = agent(on_ask, saver=saver, **options)
    config: Any = {"configurable": {"thread_id": "1"}} if saver else {}
    with authz.run(subject="alice"):
        return paid, graph.invoke(BILLS, config), authz


@pytest.mark.parametrize("saver", [False, True])
@pytest.mark.parametrize(
    ("on_ask", "expected"),
    [(approving, ["Bob", "Eve"]), (rejecting, []), (first_only, ["Bob"]), (raising, []), (lambda q: "yes", []),
     (aapproving, []), (lambda q: {"decisions": []}, [])],
)  # fmt: skip
def test_questions_are_answered_without_a_pause(on_ask: Any, expected: list[str], saver: bool) -> None:
    """Exactly what was approved runs; anything but a decision denies, and no graph pauses."""
    paid, out, authz = played(on_ask, saver=saver)
    assert sorted(paid) == expected and "__interrupt__" not in out
    assert out["messages"][-1].text == "done" and ("not today" in str(out["messages"])) is (on_ask is rejecting)
    permitted = [r for r in authz.audit.records if r.get("resource") == "send_money" and r.get("outcome") == "permit"]
    approvals = [r["request"]["context"]["approval"] for r in permitted]
    assert {(a["approver"], a["source"]) for a in approvals} <= {("user:alice", "application")}
    assert len(permitted) == len(expected)


@pytest.mark.parametrize("content", [True, False])
def test_a_reason_is_recorded_where_content_is(content: bool) -> None:
    _, _, authz = played(rejecting, audit=MemorySink(content=content))
    details = [r["detail"] for r in authz.audit.records if r.get("event") == "approval"]  # type: ignore[attr-defined]
    assert [d.get("message") for d in details] == (["not today"] * 2 if content else [None] * 2)


def test_a_question_says_what_it_leaves_out() -> None:
    """An approver knows that they do not see all arguments, and can compare the digest."""
    asked: list[Any] = []
    schema = {"title": "send", "description": "Send.", "type": "object", "properties": {f"a{n}": {"type": "string"} for n in range(51)}}
    authz = RuntimeAuthz(on_ask=asked.append, profiles={"send": {"effect": "send", "verdict": "ask", "question": "Send {a0} with {a50}?"}})
    send = authz.guard(StructuredTool.from_function(lambda **_: "sent", args_schema=schema, name="send", description="Send."))
    with authz.run(subject="alice"), pytest.raises(AuthzDenied):
        send.invoke({f"a{n}": "x" for n in range(50)})
    (request,) = asked[0]["action_requests"]
    assert request["description"].startswith("Approve send?")  # an argument of the profile's own question is not given
    assert len(request["args"]) == 50 and "and 10 more arguments; the call's digest is sha256:" in request["description"]


@pytest.mark.parametrize("on_ask", [approving, aapproving, raising])
async def test_an_asynchronous_run_takes_both_kinds(on_ask: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A plain function does not block the event loop."""
    seen: list[Any] = []

    def spying(question: dict[str, Any]) -> Any:
        seen.append(current_run())
        question["action_requests"][0]["args"]["recipient"] = "Mallory"  # its copy
        return on_ask(question)

    paid, graph, authz = agent(spying)
    async with authz.run(subject="alice"):
        await graph.ainvoke(BILLS)
    assert sorted(paid) == ([] if on_ask is raising else ["Bob", "Eve"])
    assert ("`on_ask` failed" in caplog.text) is (on_ask is raising)
    assert set(seen) == {None}, "it runs outside the graph"


@pytest.mark.parametrize(("typed", "kind"), [("y", "approve"), ("YES", "approve"), ("", "reject"), ("n", "reject"), (None, "reject")])
def test_the_terminal_rejects_all_but_yes(typed: str | None, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def answered(_prompt: str) -> str:
        if typed is None:
            raise EOFError
        return typed

    monkeypatch.setattr("builtins.input", answered)
    assert ask_in_terminal({"action_requests": [{"description": "Approve pay?"}]}) == {"decisions": [{"type": kind}]}
    assert "Approve pay?" in capsys.readouterr().out


def test_no_value_begins_a_line_of_the_terminal(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Only the question's own lines begin at the left. The twin is the terminal's own wrapping after 80 columns."""
    forged = "- recipient 'bob': you said it"
    line = f'- recipient "{"x" * 67}{forged}"'
    assert line[80:].startswith(forged)
    monkeypatch.setattr("builtins.input", lambda _: "")
    ask_in_terminal({"action_requests": [{"description": f"Pay?\n{line}"}]})
    shown = capsys.readouterr().out.splitlines()
    assert max(map(len, shown)) <= 80
    assert [text[:5] for text in shown if text[:4].strip()] == ["Pay?", "- rec"]


def _warned(build: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        build()
    return [str(w.message) for w in caught]


@pytest.mark.parametrize(("on_ask", "saver", "warns"), [(None, False, True), (None, True, False), (approving, False, False)])
def test_protect_warns_where_nobody_can_be_asked(on_ask: Any, saver: bool, warns: bool) -> None:
    """In one sentence, which names both remedies."""
    said = [w for w in _warned(lambda: played(on_ask, saver=saver)) if "checkpointer" in w]
    assert len(said) == warns
    assert all("on_ask" in w for w in said)


def test_an_anonymous_run_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    """With the remedy; development names a subject instead, loudly, and production refuses it."""
    model = ScriptedChatModel(script=[AIMessage("done")] * 9)
    for development, subject in ((False, "anonymous"), (True, "developer")):
        caplog.clear()
        authz = RuntimeAuthz(development=development)
        graph = authz.protect(create_agent(model, []))
        for _ in range(2):
            graph.invoke({"messages": [("user", "hello")]})
        said = [r for r in caplog.records if r.levelno == logging.WARNING]
        assert len(said) == 1
        assert ("DEVELOPMENT" if development else "subject_from") in said[0].getMessage()
        subjects = [r["request"]["subject"] for r in authz.audit.records if r.get("request")]
        assert {s["id"] for s in subjects} == {subject}
        assert all((s["properties"] == {"development": True}) is development for s in subjects)
        assert ("DEVELOPMENT" in str(authz.coverage(graph))) is development
    with pytest.raises(ConfigError, match="development"):
        RuntimeAuthz.production(development=True)
    with pytest.raises(ConfigError, match="on_ask"):
        RuntimeAuthz(on_ask="yes")  # type: ignore[arg-type]
