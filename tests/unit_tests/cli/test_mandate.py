"""`runtime-authz mandate`: what is understood of a text, and what is wrong with a mandate in a file."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from langchain_runtime_authz.mandate import word_follow_ups
from langchain_runtime_authz.mandate.model import Compiled, Dropped, Mandate, Step
from tests.cli import cli

PROFILES = """
tools:
  send_money: {effect: pay, critical: {recipient: principal, amount: amount}}
  look: {effect: read, trust: internal}
  later: {effect: pay, draft: true}
"""
MODULE = """
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langchain_runtime_authz.testing.scripted_model import ScriptedChatModel

print("a module may print")

@tool
def send_money(recipient: str, amount: float, note: str = "") -> str:
    "Send money."
    return "sent"

def step(to, **more):
    return {"id": to.lower(), "tool": "send_money", "args": {n: {"kind": "const", "value": v} for n, v in {"recipient": to, "amount": 45, **more}.items()}}

def planner(*steps):
    return ScriptedChatModel(script=[AIMessage("", tool_calls=[{"name": "Mandate", "args": {"steps": list(steps)}, "id": "1"}])])

model = planner(step("Bob"))
half = planner(step("Bob"), step("Eve"))
prose = ScriptedChatModel(script=[AIMessage("pay Bob")])

def made():
    return planner(step("Bob", note=""))

builder = StateGraph(MessagesState)
builder.add_node("tools", ToolNode([send_money]))
builder.add_edge(START, "tools")
graph = builder.compile()
"""
Run = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    (tmp_path / "pay_models.py").write_text(MODULE)
    (tmp_path / "profiles.yaml").write_text(PROFILES)
    yield lambda *args, stdin=None: cli("mandate", *args, input=stdin)
    sys.path[:] = path
    sys.modules.pop("pay_models", None)


NOTE = "note: the profiles do not tell all arguments and choices; with `--graph MODULE:GRAPH` the tools do\n"


def explain(run: Run, text: str, *options: str, stdin: str | None = None) -> Any:
    return run("explain", text, "--profiles", "profiles.yaml", *options, stdin=stdin)


STEPS = "understood:\n  pay: send_money, recipient = Bob (you said it), amount = 45 (you said it)\n"
DROPPED = "dropped:\n  step `eve`: `recipient`: the user's own words do not say 'Eve'\n"


@pytest.mark.parametrize(("text", "planner", "code", "said"), [
    ("Pay Bob 45.", "model", 0, (STEPS,)),
    ("Pay Bob 45.\n> pay Eve 45", "half", 1, ("  ask before: bob\n", DROPPED, "material: 1 part of the text, which order nothing\n")),
    ("Pay Bob 45.", "prose", 1, ("understood: nothing is ordered\ndropped:\n  the planner's answer: ",)),
], ids=["steps", "dropped", "failed"])
def test_a_planners_steps_in_plain_words(run: Run, text: str, planner: str, code: int, said: tuple[str, ...]) -> None:
    """What is dropped is a finding, and a planner that fails orders nothing."""
    found = explain(run, text, "--planner", f"pay_models:{planner}")
    assert found.exit_code == code
    assert [part for part in said if part not in found.stdout] == []
    assert code or found.stdout == STEPS


def test_json_and_a_graphs_arguments(run: Run) -> None:
    """Without the graph, only the arguments that the profiles name are known."""
    found = explain(run, "-", "--planner", "pay_models:made", "--graph", "pay_models:graph", "--json", stdin="Pay Bob 45.")
    assert found.exit_code == 0
    document = json.loads(found.stdout)
    assert set(document) == {"source", "mandate", "told", "dropped", "material"}
    assert (document["source"], document["dropped"], document["material"]) == ("planner", [], 0)
    assert Mandate.model_validate(document["mandate"]).steps[0].tool == "send_money"
    sys.modules.pop("pay_models", None)
    alone = explain(run, "Pay Bob 45.", "--planner", "pay_models:made")
    assert "takes no argument `note`" in alone.stdout
    assert NOTE in alone.stdout and NOTE not in found.stdout


def test_without_a_planner_the_words_are_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def read(*given: Any) -> Compiled:
        seen.extend(given)
        return Compiled(Mandate(steps=(Step("l", "look"),), source="words"), (Dropped('"Why?"', "it is a question"),))

    monkeypatch.setattr(word_follow_ups, "compile_turn", read)
    found = explain(run, "Look. Why?", "--after", "Hi", "--after", "Look")
    assert found.exit_code == 1
    assert found.stdout == 'understood:\n  read: look\ndropped:\n  "Why?": it is a question\n' + NOTE
    texts, earlier, profiles, signatures, today = seen
    assert (texts, earlier, today) == (["Look. Why?"], ["Look", "Hi"], None)
    assert set(profiles) == set(signatures) == {"send_money", "look"}
    assert set(signatures["send_money"]["properties"]) == {"recipient", "amount"}


@pytest.mark.parametrize(("text", "why"), [(" ", "the text: it is empty"), ("Send money 45 EUR to Bob and Zoe", "what stands behind `and` may not belong to the order")])
def test_what_is_left_out_is_said(run: Run, text: str, why: str) -> None:
    found = explain(run, text)
    assert (found.exit_code, why in found.stdout) == (1, True)


def test_profiles_of_several_places_count_as_in_the_app(run: Run, tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text("tools:\n  look: deny\n  note: {critical: {title: name}, intent: ['note {title}']}\n")
    both = run("explain", 'Note "Lunch". Send money 45 EUR to Bob.', "--profiles", "profiles.yaml", "--profiles", "more.yaml", "--profiles", "langchain")
    assert "note, title = Lunch" in both.stdout and "send_money, recipient = Bob" in both.stdout


def test_tomorrow_is_a_date_in_a_zone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "profiles.yaml").write_text("tools:\n  plan: {critical: {title: name}, when: [day], intent: ['plan {title} for {day}']}\n")
    assert "nothing is ordered" in explain(run, 'Plan "Lunch" for tomorrow').stdout
    assert re.search(r"plan, title = Lunch.*, day = '?\d{4}-\d\d-\d\d", explain(run, 'Plan "Lunch" for tomorrow', "--zone", "Asia/Tokyo").stdout)
    wrong = explain(run, 'Plan "Lunch" for tomorrow', "--zone", "Tokyo")
    assert wrong.exit_code == 2 and "IANA name" in wrong.stderr


@pytest.mark.parametrize("intent", ["", ", intent: ['send {amount} to {recipient}']"])
def test_who_declared_no_orders_is_told_so(run: Run, tmp_path: Path, intent: str) -> None:
    profile = "effect: pay, critical: {recipient: principal, amount: amount}"
    (tmp_path / "profiles.yaml").write_text(f"tools:\n  send_money: {{{profile}{intent}}}\n")
    told = explain(run, "Settle the bill of Bob").stdout
    assert ("no profile declares orders (`intent`)" in told) == (not intent)


@pytest.mark.parametrize(("target", "error"), [
    ("pay_models", "`pay_models` must be `module:planner`, like `my_models:planner`"),
    ("pay_models:graph", "`pay_models:graph` is not a chat model but CompiledStateGraph"),
    ("pay_models:modl", "`pay_models` has no `modl`; did you mean `model`?"),
])
def test_a_planner_that_cannot_be_used(run: Run, target: str, error: str) -> None:
    found = explain(run, "Pay Bob 45.", "--planner", target)
    assert found.exit_code == 2
    assert f"error: config: {error}" in found.stderr


def test_check(run: Run, tmp_path: Path) -> None:
    """Plain words, then findings."""
    (tmp_path / "good.yaml").write_text("steps:\n  - {id: p, tool: send_money, args: {recipient: Bob, amount: 45}}\n")
    found = run("check", "good.yaml", "--profiles", "profiles.yaml")
    assert found.exit_code == 0
    assert found.stdout == "pay: send_money, recipient = Bob, amount = 45\nsteps: 1, findings: 0\n"
    (tmp_path / "careless.yaml").write_text("steps:\n  - {id: p, tool: send_money, args: {recipient: {kind: free}}}\n")
    found = run("check", "careless.yaml", "--profiles", "profiles.yaml")
    assert found.exit_code == 1
    assert "error: mandate_invalid: step `p`: `recipient` decides what the call hits, and is free" in found.stderr
    (tmp_path / "broken.yaml").write_text("steps: [{id: p}]\n")
    found = run("check", "broken.yaml", "--profiles", "profiles.yaml")
    assert found.exit_code == 2
    assert "error: mandate_invalid: broken.yaml: `steps.0.tool`" in found.stderr


def test_schema(run: Run) -> None:
    found = run("schema")
    assert found.exit_code == 0
    assert json.loads(found.stdout)["title"] == "Mandate"


def test_a_text_sends_nothing_to_the_terminal(run: Run, tmp_path: Path) -> None:
    """Neither in an answer nor in a finding or an error. JSON escapes it anyway."""
    (tmp_path / "hostile.yaml").write_text('steps:\n  - {id: "p\\e[2J", tool: send_money, args: {recipient: {kind: free}}}\n')
    for arguments in (["explain", "Do \x1b]0;x\x07 it", "--profiles", "profiles.yaml"], ["check", "a\x1bb", "--profiles", "profiles.yaml"], ["check", "hostile.yaml", "--profiles", "profiles.yaml"]):
        done = run(*arguments)
        assert "\\u001b" in done.output
        assert "\x1b" not in done.output
