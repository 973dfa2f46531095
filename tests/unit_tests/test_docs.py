"""README and docs: the commands start from nothing, the links resolve, the snippets run, the tables are true."""

from __future__ import annotations

import ast
import re
import runpy
import shlex
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from typer.main import get_command

from langchain_runtime_authz import RuntimeAuthz, current_call, profile
from langchain_runtime_authz.cli import app
from langchain_runtime_authz.credential.keyring import KeyDirectory
from langchain_runtime_authz.mandate.mandate_file import load_mandate
from langchain_runtime_authz.testing import ScriptedChatModel
from langchain_runtime_authz.tool_profile import load_profiles
from tests import pages
from tests.cli import cli
from tests.gates.test_calls import BUDGETS

ROOT = Path(__file__).parents[2]
PAGES = {str(p.relative_to(ROOT)): p for p in (ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "examples" / "README.md", *ROOT.glob("docs/**/*.md"))}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}
README = TEXTS["README.md"]

each_page = pytest.mark.parametrize("page", sorted(PAGES))


def _blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def _python(text: str) -> list[str]:
    return [*_blocks("python", text), *(code for name, code in pages.files(text).items() if name.endswith(".py"))]


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


PLAYED = {  # a page's line: what plays it, and has the words of the group
    r"README\.md: python3 -m venv .*/(pytest) |.*: python -m (tests[\w.]+)|.*: \.ci/(\w+)": (".ci/run", ".ci/long", "tests/benchmarks/__main__.py"),
    r"README\.md: python3 |docs/.*: (?:python3 -m venv|\.venv/bin/python) ": ("tests/pages.py",),
    r".*: (?:\.venv/bin/)?runtime-authz |docs/operations\.md: (?:copy=|restore )|docs/audit\.md: (openssl) ": (
        "tests/integration_tests/test_documented_commands.py",
    ),
    r"(docs/deploy\.md): (?:kubectl|helm) ": (".ci/chart",),
    r"(docs/policies\.md): GOBIN=.*/opa@(v[\d.]+) ": (".ci/services",),
    r".*: (langgraph dev)": ("tests/integration_tests/test_agent_server_example.py",),
    r".*: python (notebooks/render)": ("tests/integration_tests/test_notebook.py",),
    r".*: python examples/jaeger/(serve\.py)": ("tests/integration_tests/test_jaeger.py",),
    r".*: python examples/(\w+\.py)": ("tests/unit_tests/test_examples.py",),
}
PROGRAM = re.compile(r"(python3?|pip|kubectl|helm|docker|go|npm|npx|langgraph|openssl|uvicorn|opa|psql|curl|systemctl|pytest) [\w./'-]|\.ci/\w+(?: |$)")
PYTHON = sorted(page for page in PAGES if _blocks("python", TEXTS[page]))
WITH_CODE = sorted(page for page in PAGES if _python(TEXTS[page]))


def test_files_stay_short() -> None:
    assert len(README.splitlines()) <= 200 and len(TEXTS["CHANGELOG.md"].splitlines()) <= 60


@pytest.mark.parametrize("heading", ["Run it", "Test it"])
def test_first_block_is_one_line(heading: str) -> None:
    """The first block under each heading is one line that starts from nothing."""
    section = re.search(rf"^## {heading}\n(.*?)(?=^## )", README, re.MULTILINE | re.DOTALL)
    first = _blocks("bash", section[1])[0]
    assert first.count("\n") == 1 and first.startswith("python3 -m venv .venv && ")
    assert "-c constraints.txt" in first


@each_page
def test_links_resolve(page: str) -> None:
    """Each relative link names a file, and each anchor a heading in it."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (PAGES[page].parent / path).resolve() if path else PAGES[page]
        if not target.exists() or (anchor and anchor not in _anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    assert broken == []


def test_readme_leads_to_every_page() -> None:
    """Each page is linked from another one, or stands in the site's menu."""
    linked = {link.partition("#")[0] for text in TEXTS.values() for link in re.findall(r"\]\(([^)\s]+)\)", text)}
    linked |= set(re.findall(r"([\w/]+\.md)$", (ROOT / ".mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    assert [p.name for p in PAGES.values() if p.parent != ROOT and not any(x.endswith(p.name) for x in linked)] == []


@pytest.mark.parametrize("page", WITH_CODE)
def test_imports_exist(page: str) -> None:
    """Each Python block compiles, and what it imports exists; from the package's root only what is public."""
    for code in _python(TEXTS[page]):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and f"{node.module}.py" not in pages.files(TEXTS[page]):
                for extra in ("mcp", "opentelemetry.exporter", "opentelemetry.instrumentation"):
                    if f"{node.module}.".startswith(f"{extra}."):
                        pytest.importorskip(str(node.module))
                module, names = import_module(str(node.module)), {alias.name for alias in node.names}
                assert [name for name in names if not hasattr(module, name)] == [], node.module
                assert node.module != "langchain_runtime_authz" or names <= set(module.__all__)


@profile(effect="pay", sink="external", critical={"recipient": "principal", "amount": "amount"}, intent=("pay",))
@tool
def send_money(recipient: str, amount: float) -> str:
    """Send money."""
    return f"Sent {amount:.2f} to {recipient}."


def _model(state: MessagesState) -> dict[str, Any]:
    last = state["messages"][-1]
    pays = isinstance(last, HumanMessage)
    call = {"name": "send_money", "args": {"recipient": "DE21", "amount": 45.0}, "id": f"call-{len(state['messages'])}"}
    return {"messages": [AIMessage("", tool_calls=[call]) if pays else AIMessage("done")]}


def _namespace() -> dict[str, Any]:
    builder = StateGraph(MessagesState)
    builder.add_node("model", _model)
    builder.add_node("tools", ToolNode([send_money]))
    builder.add_edge(START, "model")
    builder.add_conditional_edges("model", tools_condition)
    builder.add_edge("tools", "model")
    authz, graph = RuntimeAuthz(), builder.compile(checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "thread-1"}}
    return {"authz": authz, "graph": graph, "config": config, "model": ScriptedChatModel(script=[]), "tools": [send_money]}


@pytest.mark.filterwarnings("ignore:.*without a profile")
@pytest.mark.filterwarnings("ignore:the graph has no checkpointer")
@pytest.mark.enable_socket
@pytest.mark.parametrize("page", pages.STARTS, ids=lambda page: page.stem)
def test_start_pages_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each program and command of a start page runs, here without its installation; `tests.pages` runs that too."""
    text = page.read_text(encoding="utf-8")
    if "mcp]" in text:
        pytest.importorskip("langchain_mcp_adapters")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, content in pages.files(text).items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    install, *rest = pages.commands(text)
    assert install.startswith("python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt ") and rest
    for line in "".join(rest).splitlines():
        program, *args = shlex.split(line)
        for name in pages.files(text):  # each command is a process of its own
            monkeypatch.delitem(sys.modules, Path(name).stem, raising=False)
        if program == ".venv/bin/python":
            runpy.run_path(args[0], run_name="__main__")
        else:
            assert program == ".venv/bin/runtime-authz"
            result = cli(*args)
            assert result.exit_code == 0, result.output


@pytest.mark.filterwarnings("ignore:.*without a profile")
@pytest.mark.parametrize("page", [p for p in PYTHON if p not in ("docs/credentials.md", "docs/tracing.md")])
def test_snippets_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The Python blocks run offline, with a graph at hand: README's one after the other, those of a page each alone.

    Those of `docs/tracing.md` run with the receivers that they need, in the integration tier.
    """
    monkeypatch.chdir(tmp_path)
    KeyDirectory.create(tmp_path / "keys")
    names = _namespace()
    if page != "README.md":  # its first snippet protects the graph
        names["authz"].protect(names["graph"])
        with names["authz"].run(subject="alice"):
            names["graph"].invoke({"messages": [("user", "Pay 45 to DE21")]}, names["config"])
    for code in _blocks("python", TEXTS[page]):
        exec(compile(code, page, "exec"), names if page == "README.md" else dict(names))
    assert page != "README.md" or "send_money {'recipient': 'DE21'" in capsys.readouterr().out


@pytest.mark.parametrize("shown", ["Pay 45 EUR to DE21", "mandate=rent"])
def test_what_readme_orders_runs_unasked(shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first snippet's words and the mandate's snippet let the payment run."""
    monkeypatch.chdir(tmp_path)
    names, code = _namespace(), next(code for code in _blocks("python", README) if shown in code)
    if "protect(" not in code:
        names["authz"].protect(names["graph"])
    exec(code, names)
    state = names["graph"].get_state(names["config"])
    assert state.interrupts == ()
    assert "Sent 45.00 to DE21." in [m.text for m in state.values["messages"]]


def test_credential_snippets_run() -> None:
    """The snippets of a service accept the token of a call that is running."""
    names = _namespace()
    ran = []

    @profile(effect="read", sink="none", audience=("https://bank.example",))
    @tool
    def look() -> str:
        """Look."""
        names["token"] = current_call().credential().token
        for code in _blocks("python", TEXTS["docs/credentials.md"]):
            exec(compile(code, "docs/credentials.md", "exec"), names)
        ran.append(names["credential"].subject)
        return "seen"

    with names["authz"].run(subject="alice"):
        names["authz"].guard(look).invoke({})
    assert ran == ["alice"]


def test_commands_exist() -> None:
    """Each `runtime-authz` command that a page names is one, and has the options that it is shown with."""
    named = {line for text in TEXTS.values() for line in re.findall(r"runtime-authz ([a-z][^`\n|&#]*)", text)}
    assert named
    program = get_command(app)
    for line in sorted(named):
        command: Any = program
        words = line.split()
        while words and hasattr(command, "commands") and re.fullmatch("[a-z-]+", words[0]) and words[0] != "authz":
            assert words[0] in command.commands, line
            command = command.commands[words.pop(0)]
        options = {"--help", *(option for param in command.params for option in param.opts)}
        assert {word.partition("=")[0].strip("[].,;:)'") for word in words if word.startswith(("-", "[-"))} <= options, line


def programs(text: str) -> list[str]:
    """Return the command lines of a page: those of its shell blocks, and what looks like one elsewhere."""
    shown = re.findall(r"^ *```(\w*).*\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    other = [line.lstrip("$ ") for language, block in shown if language in ("", "text", "console") for line in block.splitlines()]
    likely = [line for line in (*other, *re.findall("`([^`\n]+)`", prose)) if PROGRAM.match(line)]
    return [*likely, *(line.strip() for language, block in shown if language == "bash" for line in block.splitlines())]


@pytest.mark.parametrize("page", sorted({*TEXTS, *(str(p.relative_to(ROOT)) for p in ROOT.glob("examples/**/*.md"))}))
def test_each_command_has_a_player(page: str) -> None:
    """A line that nothing plays is not shown."""
    for line in programs((ROOT / page).read_text(encoding="utf-8")):
        found, players = next(((m, by) for each, by in PLAYED.items() if (m := re.match(each, f"{page}: {line}"))), (None, ()))
        assert found is not None, line
        text = "".join((ROOT / player).read_text(encoding="utf-8") for player in players)
        assert [word for word in found.groups() if word and not re.search(rf"(?<!\w){re.escape(word)}(?![\w.])", text)] == [], line


def test_programs_exist() -> None:
    """Each module of `tests`, script of `.ci` and example that a page runs is there."""
    text = "\n".join(TEXTS.values())
    modules = {name.replace(".", "/") for name in re.findall(r"python -m (tests[.\w]+)", text)}
    files = set(re.findall(r"`(\.ci/\w+)", text)) | set(re.findall(r"python (examples/[\w/]+\.py)", text))
    assert modules and files
    assert [m for m in sorted(modules) if not ((ROOT / f"{m}.py").exists() or (ROOT / m / "__main__.py").exists())] == []
    assert [file for file in sorted(files) if not (ROOT / file).exists()] == []


def test_each_example_policy_is_listed() -> None:
    folder = ROOT / "examples" / "policies"
    rows = re.findall(r"^\| \[`(\w+)`\]", (folder / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == sorted(project.name for project in folder.iterdir() if project.is_dir())


def test_yaml_blocks_load(tmp_path: Path) -> None:
    """The profiles and mandates that are shown are ones."""
    shown = [text for t in TEXTS.values() for text in _blocks("yaml", t)]
    assert shown
    for text in shown:
        (tmp_path / "profiles.yaml").write_text(text)
        if "steps" in yaml.safe_load(text):
            assert load_mandate(tmp_path / "profiles.yaml").steps
            continue
        assert set(load_profiles(tmp_path / "profiles.yaml")) == set(yaml.safe_load(text)["tools"])


def test_budgets_are_those_of_the_gate() -> None:
    rows = re.findall(r"^\| an? .+ \| (\d+) \|$", TEXTS["docs/benchmarks.md"], re.MULTILINE)
    assert [int(n) for n in rows] == list(BUDGETS.values())


def test_the_rule_and_the_boundary_are_said() -> None:
    """README states the rule of the package and the limit of what it can do."""
    said = " ".join(README.split())
    assert "If the workload can choose its next action, its token is not trusted to define that action." in said
    assert "In one process this holds a hijacked *model* to what was ordered or approved. It does not hold hostile *code*." in said
