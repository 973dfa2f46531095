"""kill -9 at random instants, and what must hold after the restart.

`python -m tests.kill_rounds --ledger sqlite|postgres --rounds N [--seed S]`, with `LRA_POSTGRES_DSN` for PostgreSQL.
Prints one line of JSON; exits with 1 where anything was broken.

Each round is a process that carries out a plan of payments on one thread, opens, corrects, revokes and closes
others, and is killed while it does, every second one in the middle of its payments; and one that takes the thread up again and ends it. The bank is a file of
its own, which the payments reach outside every transaction of the ledger. Afterwards, in a third process:

- each intent was booked at most once, and exactly once where the graph was told so;
- every revocation, and every end of a jti, that was acknowledged before the kill, holds;
- the audit chain verifies, and its newest anchor is in the ledger.

`--twin` leaves the tools unguarded and the graph unprotected, and stops at the first intent that was booked twice.
"""

import argparse
import json
import os
import random
import secrets
import signal
import sqlite3
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from langchain_runtime_authz import RuntimeAuthz, ToolProfile, current_call
from langchain_runtime_authz.audit.chain import verify_chain
from langchain_runtime_authz.audit.sinks import FileSink
from langchain_runtime_authz.ledger.base import Anchor, Query, Scope
from langchain_runtime_authz.testing import StaticPDP
from tests.threads import until

STEPS = 4  # messages of a plan; each pays once and books once
LAPSE = 120.0  # seconds by which the clock goes on before a restart: the dead one's leases have lapsed
PROFILES = {
    "pay": ToolProfile(effect="pay", sink="external", critical={"intent": "object"}),
    "book": ToolProfile(effect="write", sink="internal", idempotent=True),
}


class World:
    """Where one series of rounds takes place."""

    def __init__(self, folder: Path, ledger: str, dsn: str | None, *, twin: bool) -> None:
        self.folder, self.kind, self.dsn, self.twin = folder, ledger, dsn, twin
        self.schema = f"kill_{secrets.token_hex(4)}"
        with self.bank() as bank:
            bank.execute("CREATE TABLE booking (intent TEXT, key TEXT, tool TEXT)")
            bank.execute("CREATE UNIQUE INDEX idempotency ON booking (key) WHERE tool = 'book'")
        if ledger == "postgres":
            from langchain_runtime_authz.ledger.admin import migrate
            from langchain_runtime_authz.ledger.postgres import administer

            with administer(dsn, schema=self.schema, create=True) as admin:
                migrate(admin)

    def bank(self) -> sqlite3.Connection:
        """The bank's books; every statement is a transaction."""
        return sqlite3.connect(self.folder / "bank.db", isolation_level=None, timeout=30)

    def booked(self, number: int) -> Counter[str]:
        """How often each intent of a round was."""
        with self.bank() as bank:
            rows = bank.execute("SELECT intent FROM booking WHERE intent LIKE ?", (f"%-{number}-%",)).fetchall()
        return Counter(intent for (intent,) in rows)

    def acknowledged(self, number: int) -> Path:
        """What a round was told that is so, one line each."""
        return self.folder / f"acknowledged-{number}"

    def audit(self, number: int) -> Path:
        """One chain for fifty rounds."""
        return self.folder / f"audit-{number // 50}.jsonl"

    def ledger(self, offset: float) -> Any:
        """Opened anew, its clock ahead by `offset`."""
        clock = lambda: time.time() + offset
        if self.kind == "postgres":
            from langchain_runtime_authz.ledger.postgres import PostgresLedger

            return PostgresLedger(self.dsn, schema=self.schema, max_size=4, clock=clock)
        from langchain_runtime_authz.ledger.sqlite import SqliteLedger

        return SqliteLedger(self.folder / "ledger.db", clock=clock)

    def authz(self, number: int, offset: float) -> RuntimeAuthz:
        return RuntimeAuthz(
            pdp=StaticPDP(permit=True), ledger=self.ledger(offset), audit=FileSink(self.audit(number)), profiles=PROFILES,
            tenant="acme",
        )

    def graph(self, number: int) -> Any:
        """A model that announces one payment and one booking per message, and a checkpointer."""

        def write(intent: str, kind: str, key: str) -> str:
            time.sleep(0.004)  # a bank is slower than a file: time to be killed before it has booked, and after
            with self.bank() as bank:
                done = bank.execute("INSERT INTO booking VALUES (?, ?, ?) ON CONFLICT DO NOTHING", (intent, key, kind))
            time.sleep(0.004)
            return "booked" if done.rowcount else "booked before"

        @tool
        def pay(intent: str) -> str:
            """Pay: the bank knows no idempotency here."""
            return write(intent, "pay", "" if self.twin else current_call().idempotency_key)

        @tool
        def book(intent: str) -> str:
            """Book: the bank keeps one booking for a key."""
            return write(intent, "book", secrets.token_hex(8) if self.twin else current_call().idempotency_key)

        def agent(state: MessagesState) -> dict[str, Any]:
            step = sum(bool(getattr(m, "tool_calls", None)) for m in state["messages"])
            if step == STEPS:
                return {"messages": [AIMessage("done")]}
            calls = [
                {"name": name, "args": {"intent": f"{name}-{number}-{step}"}, "id": f"{name}-{step}", "type": "tool_call"}
                for name in ("pay", "book")
            ]
            return {"messages": [AIMessage("", tool_calls=calls)]}

        return self.compiled(number, agent, [pay, book])

    def compiled(self, number: int, agent: Any, tools: list[Any]) -> Any:
        """A graph of this agent and its tools, with a checkpointer of the round's own."""
        builder = StateGraph(MessagesState).add_node("agent", agent).add_node("tools", ToolNode(tools)).add_edge(START, "agent")
        builder.add_conditional_edges("agent", tools_condition, {"tools": "tools", END: END}).add_edge("tools", "agent")
        conn = sqlite3.connect(self.folder / f"checkpoints-{number}.db", check_same_thread=False, timeout=30)
        return builder.compile(checkpointer=SqliteSaver(conn), name="bank")


def work(world: World, number: int, offset: float, *, again: bool) -> None:
    """One process's life: carry the plan out, while another thread opens, corrects, revokes and closes."""
    warnings.simplefilter("ignore")
    config = {"configurable": {"thread_id": f"round-{number}"}}
    if world.twin:
        graph = world.graph(number)
        graph.invoke(None if again and graph.get_state(config).next else {"messages": [HumanMessage("Pay")]}, config)
        return
    authz = world.authz(number, offset)
    graph = authz.protect(world.graph(number))
    said = os.open(world.acknowledged(number), os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def tell(*words: str) -> None:
        os.write(said, (" ".join(words) + "\n").encode())

    def others() -> None:
        for i in range(10 if again else 1000):
            time.sleep(0.02)
            thread = f"side-{number}-{again:d}-{i}"
            session = authz.session(subject="alice", task="Pay", agent="bank", thread=thread)
            session.decide("pay", {"intent": thread})
            if i % 3 == 0:
                authz.correct(thread, "stop", graph="bank")
                tell("dead", session.jti)
            elif i % 3 == 1:
                authz.revoke(thread, graph="bank")
                tell("revoked", thread)
                tell("dead", session.jti)
            else:
                session.close()
                tell("dead", session.jti)

    threading.Thread(target=others, daemon=True).start()
    with authz.run(subject="alice"):
        begun = again and bool(graph.get_state(config).next or graph.get_state(config).values)
        out = graph.invoke(None if begun else {"messages": [HumanMessage("Pay", id="task")]}, config)
    if again:
        told = {m.tool_call_id: m.status for m in out["messages"] if isinstance(m, ToolMessage)}
        path = world.folder / f"told-{number}.json"
        path.write_text(json.dumps({"end": out["messages"][-1].content, "told": told}))


def forked(function: Any, *args: Any, **options: Any) -> int:
    """Run in a process of its own; its id."""
    assert threading.active_count() == 1  # a lock that another thread holds would stay held in the child
    pid = os.fork()
    if pid:
        return pid
    try:
        function(*args, **options)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def verify(world: World, number: int, offset: float) -> list[str]:
    """What does not hold after a round."""
    broken = []
    booked = world.booked(number)
    broken += [f"{intent} was booked {n} times" for intent, n in booked.items() if n > 1]
    if world.twin:
        return broken
    found = json.loads((world.folder / f"told-{number}.json").read_text())
    if found["end"] != "done" or len(found["told"]) != 2 * STEPS:
        broken.append(f"the graph did not end: {found}")
    for call, status in found["told"].items():
        name, step = call.split("-")
        if status == "success" and booked[f"{name}-{number}-{step}"] != 1:
            broken.append(f"{call} was told to be booked")
    ledger = world.ledger(offset)
    lines = world.acknowledged(number).read_text().splitlines()
    issuer = issuer_of(world.audit(number))
    for what, name in (line.split() for line in lines):
        if what == "dead" and (status := ledger.status("acme", name)) not in ("ended", "revoked", "stale"):
            broken.append(f"jti {name} is {status}")
        if what == "revoked" and not ledger.load(Scope("acme", issuer, "bank", name), Query(agent=("bank",))).revoked:
            broken.append(f"the revocation of {name} is lost")
    report = verify_chain(world.audit(number))
    if not report.ok:
        broken.append(f"the chain is broken at line {report.error_line}: {report.error}")
    anchor = FileSink(world.audit(number)).anchor("acme")
    if anchor is None or not ledger.holds(anchor.pop("tenant"), Anchor(**anchor)):
        broken.append(f"the ledger lacks {anchor}")
    ledger.close()
    return broken


def issuer_of(path: Path) -> str:
    """As the records say."""
    for line in path.read_text().splitlines():
        scope = json.loads(line).get("scope") if line.startswith("{") and line.endswith("}") else None
        if scope:
            return str(scope["issuer"])
    return ""


def rounds(world: World, count: int, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    killed, midway, unknown, broken, worst, started = 0, 0, 0, [], 0.3, time.monotonic()
    for number in range(count):
        begun = time.monotonic()
        pid = forked(work, world, number, 2 * number * LAPSE, again=False)
        if number % 2:
            time.sleep(rng.random() * worst)
        else:  # between its first booking and its last
            until(lambda number=number: world.booked(number))
            time.sleep(rng.random() * 0.02)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        killed += os.WIFSIGNALED(status)
        done = world.booked(number).total()
        midway += 0 < done < 2 * STEPS
        if not done:  # it was killed before it began: later next time
            worst = min(worst * 1.2, 3)
        if number % 2 and not os.WIFSIGNALED(status):  # it was too fast: kill sooner next time
            worst = max(0.05, (time.monotonic() - begun) * 0.9)
        offset = (2 * number + 1) * LAPSE
        _, status = os.waitpid(forked(work, world, number, offset, again=True), 0)
        if status:
            broken.append(f"round {number}: the restart failed")
            continue
        broken += [f"round {number}: {what}" for what in verify(world, number, offset)]
        unknown += 2 * STEPS - len(world.booked(number))
        if world.twin and broken:  # seen once is seen
            break
        for old in world.folder.glob(f"*-{number}.db*"):
            old.unlink()
    with world.bank() as bank:
        (bookings,) = bank.execute("SELECT count(*) FROM booking").fetchone()
    count = number + 1
    lines = [w for n in range(count) if world.acknowledged(n).exists() for w in world.acknowledged(n).read_text().splitlines()]
    return {
        "ledger": world.kind, "rounds": count, "killed": killed, "midway": midway, "seed": seed, "intents": count * STEPS * 2,
        "booked": bookings, "unknown": unknown, "acknowledged": len(lines), "seconds": round(time.monotonic() - started),
        "broken": broken,
    }  # fmt: skip


def arguments(doc: str | None, *flags: str, **numbers: int) -> argparse.Namespace:
    """Read what every program of rounds takes: a ledger, how many rounds, a seed, whether it is the twin, and its own."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--ledger", choices=("sqlite", "postgres"), default="sqlite")
    for name, default in {**numbers, "seed": random.SystemRandom().randrange(10**6)}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    for name in ("twin", *flags):
        parser.add_argument(f"--{name}", action="store_true")
    return parser.parse_args()


def load(pdp: Any, profiles: dict[str, ToolProfile], task: str = "Pay") -> None:
    """Decide a payment here: what that loads and compiles, all processes have, as they are forks of this one."""
    with RuntimeAuthz(pdp=pdp, profiles=profiles).session(subject="alice", task=task) as session:
        session.decide("pay", {"recipient": "DE21", "amount": 45})


def main() -> None:
    given = arguments(__doc__, rounds=30)
    load(StaticPDP(permit=True), PROFILES)
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), given.ledger, os.environ.get("LRA_POSTGRES_DSN"), twin=given.twin)
        found = rounds(world, given.rounds, given.seed)
    print(json.dumps(found))
    raise SystemExit(bool(found["broken"]))


if __name__ == "__main__":
    main()
