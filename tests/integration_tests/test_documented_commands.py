"""Each command of README, docs and examples runs, in a folder that holds what the pages speak of.

A `runtime-authz` line is played as it stands; `held` says what its metavariables are there. The lines of a page run in order, in
a folder of their own. Text may name a command without what it needs: then its help opens. `pytest -s` prints how many ran.
`PLAYED` of `test_docs.py` names what plays the lines of other programs.
"""

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from typer.testing import CliRunner

from langchain_runtime_authz import RuntimeAuthz, ToolProfile
from langchain_runtime_authz.audit.sinks import FileSink
from langchain_runtime_authz.cli import app
from langchain_runtime_authz.credential.signer import SigningKey
from langchain_runtime_authz.ledger.sqlite import SqliteLedger
from langchain_runtime_authz.testing import StaticPDP
from tests import pages
from tests.integration_tests.services import opa_binary
from tests.unit_tests.test_docs import _blocks as blocks

ROOT = Path(__file__).parents[2]
PAGES = {str(p.relative_to(ROOT)): p for p in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md"))}

LISTED = {
    "demo --agentdojo": "half a minute; `test_demo_agentdojo.py` plays it",
    "demo --otlp URL": "needs a receiver; `test_jaeger.py` sends to a real Jaeger",
    "demo --otlp http://127.0.0.1:4318": "the same",
    "approvals approve ledger.db ID --as bob --key bob/KID.pem --approvers approvers.json": "needs a question that waits; `test_approvals.py` answers",
    "policy try request.json my-policy --watch": "does not end by itself; `test_policy.py` watches",
}
OF_THE_HOUR = "policy replay audit.jsonl examples/policies/bank"  # nobody pays outside 8 to 18 o'clock in Berlin
FINDS = {  # leave with 1: what they find is what their pages speak of
    "kill status --file /run/agents/kill", "policy diff audit.jsonl OLD NEW", "policy replay audit.jsonl POLICY", OF_THE_HOUR,
    "policy replay audit.jsonl examples/policies/read_only",
    "profile check profiles.yaml my_agent:graph",  # of drafts
    'mandate explain "What the user says" --profiles authz.yaml --graph my_agent.py:graph',
}
MAKES = {"init": "authz.yaml", "keys generate": "keys", "policy init": "my-policy", "profile suggest": "profiles.yaml"}  # anew

MODELS = """
from langchain_core.messages import AIMessage
from langchain_runtime_authz.testing import ScriptedChatModel

pay = {"id": "bob", "tool": "send_money", "args": {n: {"kind": "const", "value": v} for n, v in (("recipient", "Bob"), ("amount", 45))}}
planner = ScriptedChatModel(script=[AIMessage("", tool_calls=[{"name": "Mandate", "args": {"steps": [pay]}, "id": "1"}])])
"""
MANDATE = "steps:\n  - {id: pay, tool: send_money, args: {recipient: DE21, amount: 45}}\n"


def cli(*args: object) -> Any:
    done = CliRunner().invoke(app, [str(a) for a in args], input="y" + 20 * "\n", env={"COLUMNS": "120", "OPA": opa_binary()})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def lines(text: str) -> list[tuple[str, bool]]:
    """Return the lines that a page shows, and whether each stands in a block: then it is complete."""
    text = re.sub(
        r"runtime-authz (\w+) (\w+(?: \| \w+)+)", lambda m: " `".join(f"runtime-authz {m[1]} {verb}`" for verb in m[2].split(" | ")), text,
    )  # fmt: skip
    return [
        (line.strip(), number % 2 == 1)
        for number, part in enumerate(re.split(r"^ *```", text, flags=re.MULTILINE))
        for line in re.findall(r"(?<![\w-])runtime-authz ([a-z][^`\n|&#]*)", part)
    ]


def printed(text: str) -> dict[str, set[str]]:
    """Return what a page shows that its lines print."""
    found = re.findall(r"^```console\n\$ runtime-authz ([^\n]+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return {line: set(output.splitlines()) - {"..."} for line, output in found}


def late(log: Path) -> bool:
    """Return True if the log has a step outside the hours of the bank's policy."""
    times = (json.loads(line)["ts"] for line in log.read_text(encoding="utf-8").splitlines())
    return any(not 8 <= datetime.fromtimestamp(at, ZoneInfo("Europe/Berlin")).hour < 18 for at in times)


def fresh(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Work in the folder, and import its modules."""
    patch.chdir(folder)
    patch.syspath_prepend(str(folder))
    for file in folder.glob("*.py"):
        patch.setitem(sys.modules, file.stem, None)  # so that what is imported goes afterwards
        patch.delitem(sys.modules, file.stem)


def left(page: Path) -> str:
    """Return a page's text; without the blocks of a start page, which `test_start_pages_run` plays."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^```bash\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL) if page in pages.STARTS else text


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder, and what the pages' words are in it."""
    folder = tmp_path_factory.mktemp("documented")
    with pytest.MonkeyPatch.context() as patch:
        for name, content in pages.files((ROOT / "docs/start.md").read_text(encoding="utf-8")).items():
            (folder / name).write_text(content, encoding="utf-8")
        fresh(patch, folder)
        assert cli("init", "my_agent.py:graph", "--yes").exit_code == 0
        runpy.run_path("main.py", run_name="__main__")  # writes the log of `thread-1`
        shown = blocks("yaml", PAGES["docs/profiles.md"].read_text(encoding="utf-8"))
        (folder / "profiles.yaml").write_text(next(block for block in shown if "critical:" in block))
        (folder / "langgraph.json").write_text('{"dependencies": ["."], "graphs": {"agent": "./my_agent.py:graph"}}')
        for command in ("demo --audit audit.jsonl", "keys generate keys", "policy init my-policy"):
            assert cli(*command.split()).exit_code == 0, command
        shutil.copytree(ROOT / "examples", folder / "examples")
        (folder / "my_models.py").write_text(MODELS)
        (folder / "mandate.yaml").write_text(MANDATE)
        (folder / "request.json").write_text(cli("policy", "schema", "--example").stdout)
        (folder / "release.pem").write_bytes(SigningKey.generate().to_pem())
        with SqliteLedger("ledger.db") as ledger:
            authz = RuntimeAuthz(pdp=StaticPDP(True), ledger=ledger, profiles={"pay": ToolProfile(effect="pay", sink="external")})
            with authz.session(subject="alice", task="pay", thread="thread-1", agent="agent") as session:
                assert session.decide("pay", {"n": 1}).permit  # and nobody knows its outcome
        steps = json.loads(cli("audit", "who-approved", "--json").stdout)["steps"]
        held = {
            "LEDGER": "ledger.db", "DSN": "migrated.db", "/run/agents/kill": "kill", "296e3f65": steps[0]["decision_id"][:8],
            "KEYS": "keys", "KID": json.loads(cli("keys", "list", "keys", "--json").stdout)["keys"][0]["kid"],
            "CALL": json.loads(cli("calls", "list", "ledger.db", "--json").stdout)[0]["call"],
            "$(cat pinned-head)": json.loads(cli("audit", "verify", "audit.jsonl", "--json").stdout)["head"],
            "THREAD": "thread-1", "NAME": "agent", "PATH": "agent", "TYPE:ID": "user:carol", "WHY": "a drill", "CODE": "no_permit",
            "ID": steps[0]["decision_id"], "VERSION": "1",
            "OLD": "examples/policies/read_only", "NEW": "examples/policies/spend_limit", "POLICY": "examples/policies/read_only",
        }  # fmt: skip
    return folder, held


def played(line: str, held: dict[str, str]) -> list[str]:
    words = shlex.split(line.replace("[", "").replace("]", ""))
    file = "kill" if words[0] == "kill" else "mandate.yaml" if words[0] == "mandate" else "audit.jsonl"
    return [{**held, "FILE": file}.get(word, word) for word in words]


pytestmark = pytest.mark.integration
ran: Counter[str] = Counter()


@pytest.mark.filterwarnings("ignore:.*without a profile")
@pytest.mark.filterwarnings("ignore:the graph has no checkpointer")
@pytest.mark.parametrize("page", sorted(name for name, path in PAGES.items() if lines(left(path))))
def test_documented_lines_run(
    page: str, prepared: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each line of the page, in order."""
    folder, held = prepared
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    for name, content in pages.files(PAGES[page].read_text(encoding="utf-8")).items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.setattr("langchain_runtime_authz.cli.init._interactive", lambda: True)
    fresh(monkeypatch, tmp_path)
    failed, shown = [], printed(PAGES[page].read_text(encoding="utf-8"))
    for line, complete in lines(left(PAGES[page])):
        if line in LISTED:
            ran["listed"] += 1
            continue
        words = played(line, held)
        for made in (Path(made) for command, made in MAKES.items() if line.startswith(command)):
            shutil.rmtree(made) if made.is_dir() else made.unlink(missing_ok=True)
        done, kind = cli(*words), "ran"
        if done.exit_code == 2 and re.search("^Usage: | requires an argument", done.output) and not complete:
            options = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
            done, kind = cli(*words[:options], "--help", *words[options:], "--help"), "named"
        finds = line in FINDS and (line != OF_THE_HOUR or late(Path("audit.jsonl")))
        if done.exit_code != finds or (complete and shown.get(line, set()) - set(done.stdout.splitlines())):
            failed.append((line, done.exit_code, done.output[-300:]))
        ran[kind] += 1
    assert failed == []


def test_the_documented_copy_is_restored(prepared: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's own lines back a ledger up, put the copy back, and accept it."""
    shutil.copytree(prepared[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / "backups").mkdir()
    (block,) = (b for b in blocks("bash", PAGES["docs/operations.md"].read_text(encoding="utf-8")) if "restore" in b)
    found = os.pathsep.join([str(ROOT / "deploy/app"), str(Path(sys.executable).parent), os.environ["PATH"]])
    played = block.replace("/var/backups", "backups")
    done = subprocess.run(["bash", "-euc", played], cwd=tmp_path, env={**os.environ, "PATH": found}, input="y\n", text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "backups").iterdir())) == 1


def test_the_documented_key_opens_what_it_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's own line makes the auditor's key pair."""
    monkeypatch.chdir(tmp_path)
    line = re.search(r"^openssl .+$", PAGES["docs/audit.md"].read_text(encoding="utf-8"), re.MULTILINE)
    subprocess.run(line[0], shell=True, check=True)
    authz = RuntimeAuthz(pdp=StaticPDP(True), audit=FileSink("audit.jsonl", seal_to=Path("auditor.pub")))
    with authz.session(subject="alice", task="look", thread="t", agent="a") as session:
        session.decide("look", {"at": "the hidden place"})
    assert "the hidden place" not in Path("audit.jsonl").read_text(encoding="utf-8")
    assert "the hidden place" in cli("audit", "show", "--audit", "audit.jsonl", "--json", "--key", "auditor.pem").stdout


def test_listed_lines_are_documented() -> None:
    """A line that no page shows any more is not listed either."""
    shown = {line for page in PAGES.values() for line, _ in lines(left(page))}
    assert (LISTED.keys() | FINDS) - shown == set()
    print("\n" + ", ".join(f"{count} {kind}" for kind, count in sorted(ran.items())))
