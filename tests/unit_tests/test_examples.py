"""The examples: each short, each runs offline, each shows something."""

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SHOWN = {
    "create_agent.py": ("Approve send_money?", "EXPECTED DE21 (you said it)", "tool   Sent 98.70 to DE21.", "tool   The user rejected", "ai     Paid."),
    "hand_written.py": ("Sent 98.70 to DE21.", "This action is not permitted", "'forbidden'"),
    "service.py": ("alice, by urn:langchain-runtime-authz:agent:", "one call later: 401"),
    "session.py": ("permit ()", "approval_required", "EXPECTED 98.7", "approved: permit", "deny ('grant_argument',)", "epoch: 2"),
}


def test_every_example_is_run() -> None:
    """No example is left out here."""
    assert sorted(SHOWN) == sorted(p.name for p in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", SHOWN)
def test_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An example has fewer than 55 lines and prints what it is there to show."""
    path = EXAMPLES / name
    assert len(path.read_text(encoding="utf-8").splitlines()) < 55
    runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    assert [text for text in SHOWN[name] if text not in printed] == []


@pytest.mark.parametrize(("name", "module", "needs"), [
    ("create_agent.py", "langchain.agents", "the extra `langchain`"), ("service.py", "fastapi", "the extra `fastapi`"),
    ("agent_server/bank.py", "langchain.agents", "the extra `langchain`"),
    ("deepagents_code/agent.py", "deepagents_code.agent", "the package `deepagents-code`"),
])
def test_an_example_says_what_it_needs(name: str, module: str, needs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence, with the command that installs it, in place of a missing module."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises((SystemExit, ImportError), match=rf"^This example needs {needs}: .*`pip install [^`]+`\.$"):
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_a_denial_can_be_found_by_its_id(capsys: pytest.CaptureFixture[str]) -> None:
    """The decision id that the model is told is the one under which the operator finds the reason."""
    runpy.run_path(str(EXAMPLES / "hand_written.py"), run_name="__main__")
    model, operator = capsys.readouterr().out.splitlines()[-2:]
    assert f"(decision {operator.split()[4]})" in model
