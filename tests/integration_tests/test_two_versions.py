"""An upgrade and a rollback under load: an older package and this one, each in its own process, on one ledger.

The older package is the newest in the repository's history that has an older ledger schema, or else the one before the
last change of the ledger. Without a history (an sdist) this package stands in for it.
"""

from __future__ import annotations

import io
import json
import os
import re
import secrets
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from langchain_runtime_authz.audit.chain import verify_chain
from langchain_runtime_authz.ledger.schema import MIGRATIONS, SCHEMA
from tests.cli import cli
from tests.threads import until

ROOT = Path(__file__).parents[2]
SCHEMA_FILE = "langchain_runtime_authz/ledger/schema.py"
BUDGET = 20
# It runs under both packages: only what every version has had.
WORKER = """
import json, sys, threading, time
from langchain_runtime_authz import Grant, RuntimeAuthz, ToolProfile
from langchain_runtime_authz.errors import AuthzDenied
from langchain_runtime_authz.testing import StaticPDP
who, where, schema, log, budget = sys.argv[1:]
if schema:
    from langchain_runtime_authz.ledger.postgres import PostgresLedger
    ledger = PostgresLedger(where, schema=schema, max_size=4)
else:
    from langchain_runtime_authz.ledger.sqlite import SqliteLedger
    ledger = SqliteLedger(where)
profiles = {"pay": ToolProfile(effect="pay", sink="external")}
authz = RuntimeAuthz(pdp=StaticPDP(True), profiles=profiles, ledger=ledger, audit=log)
counts, wrong, going = {"own": 0, "purse": 0}, [], True

def pay(thread, grant=None, subject="alice"):
    try:
        with authz.session(subject=subject, thread=thread, grant=grant) as session:
            decision = session.decide("pay", {"to": thread})
            if decision.permit:
                session.observe("pay", {"to": thread}, "paid")
            return "permit" if decision.permit else str(decision.reason)
    except AuthzDenied as denied:
        return str(denied.code)

def own(number):
    turn = 0
    while going:
        turn += 1
        said = pay(f"{who}-{number}-{turn % 5}", subject=who)
        counts["own"] += said == "permit"
        if said != "permit":
            wrong.append(said)
        time.sleep(0.02)

def purse():
    while going:
        if pay("purse", Grant(budgets={"pay": int(budget)})) == "permit":
            counts["purse"] += 1
        time.sleep(0.02)

threads = [threading.Thread(target=own, args=(0,)), threading.Thread(target=own, args=(1,)), threading.Thread(target=purse)]
for each in threads:
    each.start()
for line in sys.stdin:
    command, _, thread = line.strip().partition(" ")
    if command == "revoke":
        authz.revoke(thread, graph="session")
        answer = "revoked"
    elif command == "pay":
        answer = pay(thread)
    elif command == "lose":
        with authz.session(subject="bob", thread=thread) as session:
            answer = session.decide("pay", {"to": thread}).outcome
    elif command == "counts":
        answer = {**counts, "wrong": wrong}
    else:
        break
    print(json.dumps(answer), flush=True)
going = False
for each in threads:
    each.join()
print(json.dumps({**counts, "wrong": wrong}), flush=True)
ledger.close()
"""


class Package:
    """A tree of the package, run in processes of its own."""

    def __init__(self, name: str, tree: Path, store: Store) -> None:
        self.name, self.tree, self.store = name, tree, store
        self.log = store.folder / f"{name}.jsonl"

    def _env(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(self.tree)}

    def schema(self, command: str, *args: str) -> int:
        """Run a command of the ledger's owner and return the schema's version."""
        words = ["ledger", command, self.store.where, *self.store.named, *args]
        code = f"from langchain_runtime_authz.cli import app; app({words!r})"
        other = [sys.executable, "-W", "ignore", "-c", code]
        said = cli(*words).stdout if self.tree == ROOT else subprocess.check_output(other, cwd=self.store.folder, env=self._env(), text=True)
        return int(re.findall(r"^schema +(\d+)", said, re.MULTILINE)[0])

    def start(self) -> Worker:
        return Worker(self)


class Worker:
    """A process that decides calls all the time, and answers commands."""

    def __init__(self, package: Package) -> None:
        self.errors = package.log.with_suffix(".err").open("a")
        args = [package.name, package.store.where, package.store.schema, str(package.log), str(BUDGET)]
        command = [sys.executable, "-W", "ignore", "-c", WORKER, *args]
        self.process = subprocess.Popen(
            command, env=package._env(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, cwd=package.store.folder
        )

    def ask(self, command: str) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def go_on(self, calls: int = 5) -> None:
        """Wait until it has had this many more calls permitted."""
        enough = self.ask("counts")["own"] + calls
        until(lambda: self.ask("counts")["own"] >= enough)

    def stop(self, *allowed: str) -> dict[str, Any]:
        said = self.ask("stop")
        assert self.process.wait(timeout=60) == 0
        self.errors.close()
        assert set(said["wrong"]) <= set(allowed)
        return said


class Store:
    """A ledger's place."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.folder = folder
        self.where = os.environ["LRA_POSTGRES_DSN"] if kind == "postgres" else str(folder / "ledger.db")
        self.schema = f"t_{secrets.token_hex(4)}" if kind == "postgres" else ""
        self.named = ["--schema", self.schema] if self.schema else []

    def drop(self) -> None:
        if self.schema:
            with psycopg.connect(self.where) as conn:
                conn.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(self.schema)))


def git(*args: str) -> bytes:
    return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, check=True).stdout


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of an older package."""
    try:
        changed = git("log", "--format=%H", "-200", "--", SCHEMA_FILE).decode().split()
        numbers = {one: git("show", f"{one}:{SCHEMA_FILE}").count(b"Migration(\n") for one in changed}
        highest = [max(numbers[one] for one in changed[at:]) for at in range(len(changed))]  # a schema that was taken back never was
        lower = [one for one, most in zip(changed, highest, strict=True) if most < SCHEMA and numbers[one] > 0]
        since = git("log", "--format=%H", "-1", "--", "langchain_runtime_authz/ledger").decode().strip()
        chosen = lower[0] if lower else f"{since}~"
        archive = git("archive", chosen, "langchain_runtime_authz")
    except (OSError, subprocess.CalledProcessError):
        return ROOT
    tree = tmp_path_factory.mktemp("older")
    with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
        packed.extractall(tree, filter="data")
    return tree


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made = Store(request.param, tmp_path)
    yield made
    made.drop()


@pytest.mark.timeout(600)
def test_an_upgrade_and_a_rollback_under_load_lose_nothing(store: Store, older: Path) -> None:
    """A budget is spent once, what either version revoked stays revoked, and a call in doubt stays in doubt.

    Both decide on one ledger if the newer schema admits the older package. Otherwise the older one denies meanwhile.
    """
    old, new = Package("old", older, store), Package("new", ROOT, store)
    before = old.schema("migrate")
    admitted = before >= MIGRATIONS[-1].min_reader
    late = set() if admitted else {"ledger_schema"}
    running = old.start()
    running.go_on()
    assert running.ask("revoke first") == "revoked"

    assert new.schema("migrate") == SCHEMA  # under load
    upgraded = new.start()
    upgraded.go_on()
    assert upgraded.ask("revoke second") == "revoked"
    assert [upgraded.ask(f"pay {thread}") for thread in ("first", "second")] == ["revoked", "revoked"]
    assert upgraded.ask("lose doubt") == "permit"
    if admitted:
        running.go_on()
    assert {running.ask(f"pay {thread}") for thread in ("first", "second")} == ({"revoked"} if admitted else late)
    listed = cli("calls", "list", store.where, *store.named, "--json")
    assert [one["thread"] for one in json.loads(listed.stdout)] == ["doubt"]
    spent = upgraded.stop()["purse"]

    if before < SCHEMA:  # back, under load
        assert new.schema("downgrade", "--to", str(before), "--yes", "--forget-doubts") == before
        refused = cli("approvals", "list", store.where, *store.named)
        assert (refused.exit_code, "ledger_schema" in refused.stderr) == (2, True)
    running.go_on()
    assert [running.ask(f"pay {thread}") for thread in ("first", "second")] == ["revoked", "revoked"]

    assert new.schema("migrate") == SCHEMA
    again = new.start()
    again.go_on()
    assert [again.ask(f"pay {thread}") for thread in ("first", "second")] == ["revoked", "revoked"]
    until(lambda: running.ask("counts")["purse"] + again.ask("counts")["purse"] + spent >= BUDGET)
    again.go_on()
    assert running.stop(*late)["purse"] + again.stop()["purse"] + spent == BUDGET
    assert all(verify_chain(package.log).ok for package in (old, new))
