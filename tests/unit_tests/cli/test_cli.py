"""The command line: what it prints, how it fails, and with which exit code."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

import langchain_runtime_authz
from langchain_runtime_authz.audit.sinks import FileSink
from langchain_runtime_authz.cli import app
from tests.cli import cli
from tests.ids import shown

MODULE = """
from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

@tool
def send_mail(to: str, body: str) -> str:
    "Send a mail."
    return "sent"

@tool
def look_up(query: str) -> str:
    "Look something up."
    return "found"

print("a module may print")

def builder():
    b = StateGraph(MessagesState)
    b.add_node("model", lambda state: {})
    b.add_node("tools", ToolNode([send_mail, look_up]))
    b.add_edge(START, "model")
    b.add_conditional_edges("model", tools_condition)
    b.add_edge("tools", "model")
    return b

def build():
    return builder().compile()

graph = build()

if TYPE_CHECKING:
    from langgraph_sdk.runtime import ServerRuntime

def configured(config: RunnableConfig):
    return {True: build}[config["configurable"]["__is_for_execution__"]]()

async def awaited(settings: RunnableConfig):
    return builder()

@contextmanager
def held(config):
    yield build()

@asynccontextmanager
async def opened(runtime: ServerRuntime[int], config: RunnableConfig):
    yield build() if runtime.execution_runtime and config["recursion_limit"] else None

class Agents:
    payer = build()

def needs(model):
    return build()

def fails():
    raise ValueError("two\\nlines")

def leaves():
    raise SystemExit(0)
"""

PROFILES = {"send_mail": {"effect": "send"}, "look_up": {"effect": "read", "sink": "none"}}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    monkeypatch.chdir(tmp_path)
    before, path = set(sys.modules), list(sys.path)
    (tmp_path / "a_module.py").write_text(MODULE)
    yield cli
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if name.startswith(("a_", "protected_")):
            del sys.modules[name]


def _error(result: Any) -> str:
    """The one line of an error, without the inspected module's own print."""
    lines = [line for line in result.stderr.splitlines() if line != "a module may print"]
    assert len(lines) == 1, result.output
    assert "Traceback" not in result.output
    return lines[0]


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield the words and the object of each command."""
    for name, command in group.commands.items():
        yield from commands(command, (*path, name)) if hasattr(command, "commands") else [(" ".join((*path, name)), command)]


WITHOUT = {"replay-trace", "kill release", "kill status"}


@pytest.mark.parametrize("command", sorted({*dict(commands(get_command(app)))} - WITHOUT))
def test_help_has_an_example(run: Callable[..., Any], command: str) -> None:
    """The help of each command shows how it is called, each example on a line of its own."""
    result = run(*command.split(), "--help")
    assert result.exit_code == 0
    assert [line for line in result.output.splitlines() if line.strip().startswith(f"runtime-authz {command}")]
    if command.startswith("ledger "):
        assert "PostgreSQL" in result.output


def test_help_and_version(run: Callable[..., Any]) -> None:
    assert all(command in run("--help").output for command in ("demo", "inspect", "audit"))
    assert run("--version").output == f"runtime-authz {langchain_runtime_authz.__version__}\n"


def test_an_optional_argument_has_one_pair_of_brackets() -> None:
    """Typer writes them itself, so a name that has them too would have two."""
    for command in ("init", "doctor", "codes", "policy explain"):
        assert "[[" not in cli(*command.split(), "--help").stdout


def test_a_code_that_is_almost_one_is_named() -> None:
    """Any other word may be a code of the user's policy."""
    for word, hint in (("stale_epok", "did you mean `stale_epoch`?"), ("zzz", "look for it in your policy")):
        assert _error(cli("codes", word)).endswith(f"`{word}` is not a code of this package; {hint}")


def test_demo_plays(run: Callable[..., Any]) -> None:
    """`demo` runs offline and prints what the twin lost."""
    result = run("demo")
    assert result.exit_code == 0 and "ordered in your words" in result.output
    assert "alice rejects it" in result.output and "Without protection" in " ".join(result.output.split())


def test_demo_options_belong_together(run: Callable[..., Any]) -> None:
    """An option of the replay without `--agentdojo` is a usage error, and so is one of the bank's with it."""
    for words in (("--limit", "3"), ("--agentdojo", "--audit", "a")):
        result = run("demo", *words)
        assert result.exit_code == 2 and "--agentdojo" in result.stderr


@pytest.mark.parametrize(("line", "says"), [
    ("--fast", "No such option: --fast"), ("ledger --fast", "No such option: --fast"),
    ("ledger prun x", "No such command 'prun'"), ("ledger migrate", "Missing argument 'LEDGER'"),
    ("ledger prune x --older-than 3y", "Invalid value for --older-than: must be like 36h"),
    ("policy init x --engine z", "Invalid value for '--engine'"),
])
def test_a_wrong_command_line_is_an_error_like_any_other(run: Callable[..., Any], line: str, says: str) -> None:
    """After the command's usage, which a script need not read."""
    result = run(*line.split())
    usage, *_, error = result.stderr.splitlines()
    assert (result.exit_code, usage.startswith("Usage: "), result.stdout) == (2, True, "")
    assert error.startswith(f"error: config: {says}")


def test_an_option_without_its_value(run: Callable[..., Any]) -> None:
    """Click finds it before it knows the command, so there is no usage to show."""
    result = run("demo", "--otlp")
    assert (result.exit_code, result.stdout) == (2, "")
    assert _error(result) == "error: config: Option '--otlp' requires an argument"


@pytest.mark.parametrize("line", ["explain 296e3f65", "audit replay audit.jsonl", "kill show"])
def test_a_command_of_another_group_is_named(line: str) -> None:
    """Every one that has the name, as it is called."""
    result = cli(*line.split(), prog_name="runtime-authz", env={"COLUMNS": "200"})
    assert result.exit_code == 2
    named = re.findall(r"`(?:runtime-authz )?([\w -]+)`", result.output)
    assert named
    for command in named:
        assert cli(*command.split(), "--help").exit_code == 0


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "localhost:4318", "http://[::1"])
def test_demo_fails_if_its_traces_arrive_nowhere(run: Callable[..., Any], url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    monkeypatch.setattr("opentelemetry.trace.set_tracer_provider", lambda _: None)
    monkeypatch.setattr("langchain_runtime_authz.cli.demo.EXPORT", 0.5)
    result = run("demo", "--otlp", url)
    assert result.exit_code == 2
    assert _error(result).startswith(f"error: config: the traces did not reach {url}; is an")


def test_demo_says_which_extra_is_missing(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without AgentDojo the replay says what to install."""
    for name in [n for n in sys.modules if n.split(".")[0] == "agentdojo"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "agentdojo", None)
    result = run("demo", "--agentdojo")
    assert result.exit_code == 2 and "langchain-runtime-authz[agentdojo]" in _error(result)


def test_inspect_shows_both_states(run: Callable[..., Any]) -> None:
    """The graph's coverage is printed as it is and as it would be, and nothing of the module's own output."""
    result = run("inspect", "a_module:graph")
    assert result.exit_code == 0
    before, after = result.stdout.split("Under `authz.protect(graph)`")
    assert "0 governed, 5 not" in before and "5 governed, 0 not" in after
    assert "a module may print" not in result.stdout


@pytest.mark.parametrize("path", ["graph", "build", "builder", "Agents.payer", "configured", "awaited", "held", "opened"])
def test_inspect_finds_graphs(run: Callable[..., Any], path: str) -> None:
    """A graph, a builder, an attribute path, and each kind of factory that LangGraph's server takes lead to a graph."""
    result = run("inspect", f"a_module:{path}", "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert not any(row["governed"] for row in document["before"]["rows"])
    assert all(row["governed"] for row in document["after"]["rows"])
    assert document["unprofiled"] == {
        "send_mail": {"effect": "send", "sink": "external"}, "look_up": {"effect": "write", "sink": "external"},
    }


EFFECTS = """
import smtplib
from langgraph.graph import START, MessagesState, StateGraph

def send(state):
    with smtplib.SMTP("mail.example") as server:
        server.sendmail("a", "b", "c")

def think(state):
    return {}

b = StateGraph(MessagesState)
b.add_node(send)
b.add_node(think)
b.add_edge(START, "think")
b.add_edge("think", "send")
graph = b.compile(name="agent")
"""


def test_inspect_fails_on_effects_that_nobody_declared(run: Callable[..., Any], tmp_path: Path) -> None:
    """A node that sends mail is a finding until it is accepted; what is not seen is a number, and never a finding."""
    (tmp_path / "a_mailer.py").write_text(EFFECTS)
    result = run("inspect", "a_mailer:graph", "--fail-ungoverned")
    assert result.exit_code == 1
    assert "effect send (mail (smtplib.SMTP): declare it with `authz.effect`)" in _error(result)
    assert "1 node has effects that nobody declared" in result.stdout
    assert "2 nodes run code that is not seen" in result.stdout
    assert "No tool was found" in result.stdout and max(map(len, result.stdout.splitlines())) <= 80
    run("inspect", "a_mailer:graph", "--write-baseline", "base.json")
    assert run("inspect", "a_mailer:graph", "--fail-ungoverned", "--baseline", "base.json").exit_code == 0
    for command in (("profile", "suggest", "a_mailer:graph"), ("init", "a_mailer:graph", "--yes")):
        said = run(*command).stderr
        assert "(`send`: mail (smtplib.SMTP)): declare them with `authz.effect`" in said
        assert "has no tool" in said


def test_inspect_uses_given_profiles(run: Callable[..., Any], tmp_path: Path) -> None:
    """With profiles for every tool nothing is left to do."""
    (tmp_path / "profiles.yaml").write_text(yaml.safe_dump({"tools": PROFILES}))
    result = run("inspect", "a_module:graph", "--profiles", "profiles.yaml")
    assert result.exit_code == 0 and "runtime-authz init" not in result.stdout
    assert json.loads(run("inspect", "a_module:build", "--json", "--profiles", "profiles.yaml").stdout)["unprofiled"] == {}


def test_inspect_respects_the_modules_own_protection(run: Callable[..., Any], tmp_path: Path) -> None:
    """A graph that its module protects is shown as that module protects it."""
    (tmp_path / "protected_module.py").write_text(
        "from a_module import build\nfrom langchain_runtime_authz import RuntimeAuthz\n"
        f"graph = RuntimeAuthz(profiles={PROFILES!r}).protect(build())\n",
    )
    document = json.loads(run("inspect", "protected_module:graph", "--json").stdout)
    assert document["protected_by_module"] and document["before"] is None
    assert document["unprofiled"] == {}
    (tmp_path / "profiles.yaml").write_text(yaml.safe_dump({"tools": PROFILES}))
    result = run("inspect", "protected_module:graph", "--profiles", "profiles.yaml")
    assert result.exit_code == 2 and "--profiles" in _error(result)


UNGOVERNED = """
from langchain_runtime_authz.testing import ScriptedChatModel
from a_module import builder

model = ScriptedChatModel(script=[])
searching = [{"type": "web_search"}]
fetching = [{"type": "web_fetch"}]

def search(state):
    model.bind_tools(searching)
    return {}

def fetch(state):
    model.bind_tools(fetching)
    return {}

def build(*nodes):
    b = builder()
    for node in nodes:
        b.add_node(node)
    return b.compile(name="agent")

one = build(search)
two = build(search, fetch)
"""


@pytest.fixture
def ungoverned(tmp_path: Path) -> None:
    (tmp_path / "a_gap.py").write_text(UNGOVERNED)


def test_inspect_fails_on_what_stays_ungoverned(run: Callable[..., Any], ungoverned: None) -> None:
    """`--fail-ungoverned` is exit code 1 exactly when something is ungoverned under protection."""
    assert run("inspect", "a_module:graph", "--fail-ungoverned").exit_code == 0
    result = run("inspect", "a_gap:one", "--fail-ungoverned")
    assert result.exit_code == 1
    assert _error(result).startswith("error: ungoverned: in `agent`: provider tool web_search (runs at the model")
    assert run("inspect", "a_gap:one").exit_code == 0


def test_baseline_accepts_what_it_holds_and_nothing_new(run: Callable[..., Any], ungoverned: None, tmp_path: Path) -> None:
    """With a baseline the exit code is 1 for what is new only; what was fixed since is told."""
    written = run("inspect", "a_gap:one", "--write-baseline", "base.json")
    assert written.exit_code == 0
    document = json.loads((tmp_path / "base.json").read_text())
    assert document == {
        "version": 1, "graph": "agent",
        "ungoverned": [{"id": "provider-tool/agent/web_search/search", "note": "runs at the model provider, unseen"}],
    }
    options = ("--fail-ungoverned", "--baseline", "base.json")
    assert run("inspect", "a_gap:one", *options).exit_code == 0
    result = run("inspect", "a_gap:two", *options)
    assert result.exit_code == 1 and "provider tool web_fetch" in _error(result)
    assert "web_search" not in _error(result)
    seen = json.loads(run("inspect", "a_gap:two", "--json", *options).stdout)
    assert seen["new"] == ["provider-tool/agent/web_fetch/fetch"] and seen["fixed"] == []
    for file in ("base.json", "again.json"):
        assert run("inspect", "a_gap:two", "--write-baseline", file).exit_code == 0
    assert (tmp_path / "base.json").read_bytes() == (tmp_path / "again.json").read_bytes()
    ids = [row["id"] for row in json.loads((tmp_path / "base.json").read_text())["ungoverned"]]
    assert (ids, len(ids)) == (sorted(ids), 2)
    back = run("inspect", "a_gap:one", *options)
    assert back.exit_code == 0 and "base.json: 1 accepted, 0 new, 1 fixed." in back.stdout
    assert "fixed: provider-tool/agent/web_fetch/fetch" in back.stdout


def test_a_baseline_replaces_no_other_file(run: Callable[..., Any], ungoverned: None, tmp_path: Path) -> None:
    (tmp_path / "profiles.yaml").write_text("tools: {}\n")
    refused = run("inspect", "a_gap:one", "--write-baseline", "profiles.yaml")
    assert refused.exit_code == 2 and "profiles.yaml: not a JSON object" in _error(refused)
    assert (tmp_path / "profiles.yaml").read_text() == "tools: {}\n"


@pytest.mark.parametrize("text", [
    "", "[]", "{}", '{"version": 1}', '{"version": 2, "graph": "agent", "ungoverned": []}',
    '{"version": true, "graph": "agent", "ungoverned": []}', '{"version": 1, "graph": 5, "ungoverned": []}',
    '{"version": 1, "graph": "agent", "ungoverned": {}}', '{"version": 1, "graph": "agent", "ungoverned": ["x"]}',
    '{"version": 1, "graph": "agent", "ungoverned": [{"note": "x"}]}',
    '{"version": 1, "graph": "agent", "ungoverned": [{"id": "x"}, {"id": "x"}]}',
    '{"version": 1, "graph": "other", "ungoverned": []}', "\ud800", "[" * 100_000,
], ids=shown)
def test_baseline_that_is_none(run: Callable[..., Any], ungoverned: None, tmp_path: Path, text: str) -> None:
    """A malformed baseline, or one of another graph, is exit code 2 with a stable code; it accepts nothing."""
    (tmp_path / "base.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    result = run("inspect", "a_gap:one", "--fail-ungoverned", "--baseline", "base.json")
    assert result.exit_code == 2 and _error(result).startswith("error: baseline_invalid: ")


def test_baseline_that_is_alone(run: Callable[..., Any], ungoverned: None) -> None:
    """A baseline that nothing compares with is exit code 2."""
    result = run("inspect", "a_gap:one", "--baseline", "no.json")
    assert result.exit_code == 2 and "--fail-ungoverned" in _error(result)


@pytest.mark.parametrize(("target", "expected"), [
    ("a_module", "`a_module` must be `module:graph`"), ("a_module:", "must be `module:graph`"),
    ("./sub/a_module.py:graph", "there is no file `./sub/a_module.py`"), ("langgraph.json", "names no graphs"),
    ("./src/agent.ts:graph", "`./src/agent.ts` is not a Python file; name one"), ("json:graph", "`json` has no `graph`; name a module that has a graph"),
    ("a_missing_module:graph", "`a_missing_module` cannot be imported: ModuleNotFoundError: No module named 'a_missing_module'; correct it, or install"),
    ("a_module:grpah", "has no `grpah`; did you mean `graph`?"), ("a_module:zzz", "has no `zzz`; its graphs are graph"),
    ("a_module:send_mail", "is not a graph but StructuredTool; name one, like `my_agent:graph`"), ("a_module:needs", "needs `model`; name a function that needs at most"),
    ("a_module:fails", "`a_module:fails` failed: ValueError: two lines (a_module.py:"), ("a_module:leaves", "failed: SystemExit"),
])
def test_inspect_says_what_is_wrong(run: Callable[..., Any], target: str, expected: str) -> None:
    """A wrong target is one line with a stable code and exit code 2, never a traceback."""
    result = run("inspect", target)
    assert result.exit_code == 2
    error = _error(result)
    assert error.startswith("error: config: ") and expected in error


@pytest.fixture
def log(tmp_path: Path) -> tuple[Path, str]:
    sink = FileSink(tmp_path / "audit.jsonl")
    for number in range(3):
        sink.write({"v": 1, "kind": "run", "ts": 0, "number": number})
    sink.close()
    return sink.path, sink.head


def test_verify_accepts_a_whole_chain(run: Callable[..., Any], log: tuple[Path, str]) -> None:
    """A whole chain is exit code 0, with its records and its head; the pinned head is compared."""
    path, head = log
    result = run("audit", "verify", path)
    assert result.exit_code == 0 and result.stdout.splitlines()[:2] == ["records  3", f"head     {head}"]
    assert "its end is not verified" in result.stdout
    assert "pinned head" in run("audit", "verify", path, "--head", head).stdout


def test_verify_names_the_broken_line(run: Callable[..., Any], log: tuple[Path, str]) -> None:
    """An edited chain is exit code 1, the number of the line and what to do, on one line."""
    path, _ = log
    path.write_bytes(path.read_bytes().replace(b'"number":1', b'"number":7'))
    result = run("audit", "verify", path)
    assert result.exit_code == 1 and "BROKEN at line 3" in result.stdout
    error = _error(result)
    assert error.startswith("error: chain_broken: audit.jsonl, line 3: ") and "keep it as evidence" in error


def test_verify_usage_errors(run: Callable[..., Any], log: tuple[Path, str]) -> None:
    """A file that cannot be read and a head that is not one are exit code 2; an overwritten log is a finding."""
    other = log[0].with_name("notes.txt")
    for text, options in (("a\nb\n", ()), ("", ("--head", log[1]))):
        other.write_text(text)
        result = run("audit", "verify", other, *options)
        assert (result.exit_code, "no line is a record" in _error(result)) == (1, True)
    result = run("audit", "verify", "missing.jsonl")
    assert result.exit_code == 2 and _error(result) == "error: config: missing.jsonl: there is no such file or folder; correct the path"
    assert run("audit", "verify", log[0], "--head", "abc").exit_code == 2


@pytest.mark.parametrize("command", [
    ("learn", "{}"), ("learn", "trace.jsonl", "--profiles", "{}"), ("inspect", "{}"),
    ("init", "g.py:graph", "--yes", "--write", "{}"),
])
@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x80", b"[\n" * 1_500], ids=["binary", "nested"])
def test_unreadable_files_are_one_line(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], content: bytes
) -> None:
    """Whatever reads them, and the line names the file."""
    monkeypatch.chdir(tmp_path)
    Path("g.py").write_text("graph = None")
    Path("trace.jsonl").write_text('{"type": "tool_call", "tool": "add", "args": {}}\n')
    Path("langgraph.json").write_bytes(content)
    result = run(*(word.format("langgraph.json") for word in command))
    assert (result.exit_code, _error(result).startswith("error: ")) == (2, True)
    assert "langgraph.json" in _error(result)


def test_keys_are_made_listed_rotated_and_withdrawn(tmp_path: Path) -> None:
    """Each command shows the ring; a withdrawal says from when on everybody refuses the key."""
    from langchain_runtime_authz.credential import keyring

    keys = str(tmp_path / "keys")
    assert cli("keys", "list", keys).exit_code == 2
    made = cli("keys", "generate", keys, "--alg", "EdDSA")
    assert made.exit_code == 0 and cli("keys", "generate", keys).exit_code == 2
    first, second = (line.split()[0] for line in made.stdout.splitlines())
    assert [line.split()[1:3] for line in made.stdout.splitlines()] == [["EdDSA", "active"], ["EdDSA", "next"]]
    jwks = json.loads(cli("keys", "list", keys, "--jwks").stdout)
    assert [jwk["kid"] for jwk in jwks["keys"]] == [first, second]
    assert not any("d" in jwk for jwk in jwks["keys"])
    early = cli("keys", "rotate", keys)
    assert early.exit_code == 2
    assert early.stderr.startswith("error: config: verifiers may not know the next key yet")
    file = tmp_path / "keys" / "ring.json"
    document = json.loads(file.read_text())
    for key in document["keys"]:
        key["since"] -= 2 * keyring.CACHE_AGE
    file.write_text(json.dumps(document))
    assert cli("keys", "rotate", keys).stdout.split()[:3] == [second, "EdDSA", "active"]
    gone = cli("keys", "compromise", keys, second)
    assert gone.exit_code == 0 and f"withdrawn  {second}" in gone.stdout
    assert "refused    at once" in gone.stdout
    assert f"{second}  EdDSA  compromised" in cli("keys", "list", keys).stdout
    assert cli("keys", "compromise", keys, "nobody").exit_code == 2


def test_a_key_password_comes_from_the_environment(tmp_path: Path) -> None:
    """And without it, or with another, one line says so and no key is shown."""
    keys = str(tmp_path / "keys")
    assert cli("keys", "generate", keys, env={"RUNTIME_AUTHZ_KEY_PASSWORD": "word"}).exit_code == 0
    assert cli("keys", "list", keys, env={"RUNTIME_AUTHZ_KEY_PASSWORD": "word"}).exit_code == 0
    for env in ({}, {"RUNTIME_AUTHZ_KEY_PASSWORD": "another"}):
        refused = cli("keys", "list", keys, env=env)
        assert refused.exit_code == 2 and refused.stderr.count("\n") == 1
        assert "PRIVATE" not in refused.output


UNUSABLE: dict[str, bytes | None] = {
    "missing": None, "empty": b"", "binary": bytes(range(256)), "no-yaml": b"tools: [1,\n b: }\n",
    "no-json": b'{"a": 1,,}\n', "a-list": b"[1]\n", "deep": b"[\n" * 1_500,
}
EXAMPLES = Path(__file__).parents[3] / "examples"
READERS = (
    "approvals list @", "approvals approve ledger.db id --as bob --key k.pem --approvers @",
    "inspect a_module:graph --profiles @", "inspect a_module:graph --fail-ungoverned --baseline @", "keys list @",
    "ledger status @", "policy build @ -o out.tar.gz", "policy check @", "policy replay @", "policy explain @",
    "profile check @", "replay-trace @ --profiles langchain",
    f"replay-trace {EXAMPLES / 'coding_agent.jsonl'} --profiles langchain --mandate @", "revoke @ thread --graph g",
)
OURS_ONLY = ("Errno", "codec", "Traceback", "NoneType", "recursion", "char 0", "<unicode string>", "instance of", "b'")


@pytest.mark.parametrize("name", [*UNUSABLE, "directory"])
@pytest.mark.parametrize("command", READERS)
def test_what_can_not_be_used_is_one_line_with_a_code(run: Callable[..., Any], tmp_path: Path, command: str, name: str) -> None:
    """Whatever stands in a file's place: exit code 2, a stable code, and no words of Python's."""
    given = tmp_path / "given"
    if name == "directory":
        given.mkdir()
    elif (content := UNUSABLE[name]) is not None:
        given.write_bytes(content)
    result = run(*(given if word == "@" else word for word in command.split()))
    error = _error(result)
    assert result.exit_code == 2, error
    assert re.match(r"error: [a-z_]+: \S", error)
    assert not [word for word in OURS_ONLY if word in error], error
    assert not (tmp_path / "out.tar.gz").exists()
