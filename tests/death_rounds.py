"""A process is killed inside a payment, and the thread is entered again in every order: asked, never paid twice.

`python -m tests.death_rounds --ledger sqlite|postgres --rounds N [--seed S]`, with `LRA_POSTGRES_DSN` for PostgreSQL.
Prints a line of JSON for each 250 rounds; exits with 1 where anything was broken.

Each round is a process that pays and is killed (SIGKILL) inside the tool, before or after the bank has booked it; or only
the call is cut off, and the same run orders it once more on another thread. Before that, another thread may have been asked
about such a payment. Then a random sequence of re-entries follows, each in a process of its own: with nothing new, with new
text, on another thread, after an approval of the earlier question; at once, after the lease lapsed, or a day later but one
minute. People resolve the call as it was, or the bank is asked (`on_unknown`). What must hold after each:

- until somebody found out, nothing more is booked, each order is asked about, and the question says why;
- afterwards, only a new order books more, or what was never booked;
- once the lease has lapsed, the call is listed as in doubt until then, and as nothing else.

`--twin` leaves the graph unprotected: the new order pays again, and the rounds stop at the first payment made twice.
"""

import json
import logging
import os
import random
import tempfile
import time
import warnings
from collections import Counter
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.graph import MessagesState

from langchain_runtime_authz import RuntimeAuthz, ToolProfile
from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.pdp.wasm import WasmPDP
from tests.kill_rounds import World, arguments, forked, load

WORLD = 250  # rounds in one ledger
LAPSE = 61.0
DAY = 86_340.0
PROFILES = {
    "pay": ToolProfile(effect="pay", sink="external", critical={"recipient": "principal", "amount": "amount"}, intent=("pay",))
}
ORDERS = ("Pay 45 EUR to DE21", "Now pay 45 EUR to DE21", "Pay 45 EUR to DE21, thanks", "Please pay 45 EUR to DE21")


class Deaths(World):
    """The bank and the ledger of `kill_rounds`; its own graph."""

    def worker(self, offset: float, **options: Any) -> RuntimeAuthz:
        """An instance under the shipped policy."""
        return RuntimeAuthz(ledger=self.ledger(offset), profiles=PROFILES, tenant="acme", **options)

    def payer(self, number: int, die: str = "") -> Any:
        """A model that pays what the newest order says, and a tool that may die before or after it has paid."""

        @tool
        def pay(recipient: str, amount: float) -> str:
            """Pay: the bank knows no idempotency."""
            if die == "before":
                os.kill(os.getpid(), 9)
            if die == "cut before":
                raise KeyboardInterrupt
            with self.bank() as bank:
                bank.execute("INSERT INTO booking VALUES (?, '', 'pay')", (f"pay-{number}-0",))
            if die == "after":
                os.kill(os.getpid(), 9)
            if die == "cut after":
                raise KeyboardInterrupt
            return "paid"

        def agent(state: MessagesState) -> dict[str, Any]:
            last = state["messages"][-1]
            if isinstance(last, ToolMessage):
                return {"messages": [AIMessage("done")]}
            call = {"name": "pay", "args": {"recipient": "DE21", "amount": 45}, "id": f"c{len(state['messages'])}"}
            return {"messages": [AIMessage("", tool_calls=[{**call, "type": "tool_call"}])]}

        return self.compiled(number, agent, [pay])


def enter(
    world: Deaths, number: int, offset: float, *, thread: str, text: str | None, die: str = "", happened: bool | None = None
) -> None:
    """One process's life; what it was told goes to a file. The bank says what `happened`, if it can."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    graph, config = world.payer(number, die), {"configurable": {"thread_id": f"{thread}-{number}"}}
    if not world.twin:
        authz = world.worker(offset, on_unknown=lambda _: happened)
        if thread == "early" and text is None:
            for asked in [one for one in authz.approvals() if one.subject == f"user:user-{number}"]:
                if "IN DOUBT" not in asked.question:
                    authz.approve(asked.id, by="carol")
        graph = authz.protect(graph)
    given = None if text is None else {"messages": [HumanMessage(text)]}
    if given is None and not graph.get_state(config).next:
        return
    with nullcontext() if world.twin else authz.run(subject=f"user-{number}"):
        if die.startswith("cut"):
            with suppress(KeyboardInterrupt):
                graph.invoke(given, config)
            thread, given = "same run", {"messages": [HumanMessage(ORDERS[1])]}
        out = graph.invoke(given, {"configurable": {"thread_id": f"{thread}-{number}"}})
    asked = [i.value["action_requests"][0]["description"] for i in out.get("__interrupt__", ())]
    doubts = [] if world.twin else [one.row.state for one in authz.unknown_calls() if one.subject == f"user:user-{number}"]
    (world.folder / f"told-{number}.json").write_text(json.dumps({"asked": asked, "doubts": doubts}))


def resolve(world: Deaths, number: int, offset: float, *, happened: bool) -> None:
    """Say what became of the round's call, as people do who asked the bank."""
    authz = world.worker(offset)
    for one in authz.unknown_calls():
        if one.subject == f"user:user-{number}":
            authz.resolve_call(one.row.key, happened=happened, by="user:carol", reason="asked the bank")


def rounds(world: Deaths, count: int, seed: int) -> dict[str, Any]:
    rng, broken, entries, began, clock = random.Random(seed), [], Counter[str](), time.monotonic(), 0.0
    number = paid = 0
    for number in range(count):
        clock += 2 * DAY
        die = rng.choice(("before", "after", "before", "after", "cut before", "cut after")[: 2 if world.twin else 6])
        happened, early, known = die.endswith("after"), not world.twin and rng.random() < 0.3, False
        told = world.folder / f"told-{number}.json"
        if early:
            os.waitpid(forked(enter, world, number, clock, thread="early", text="Hello"), 0)
        _, status = os.waitpid(forked(enter, world, number, clock, thread="t", text=ORDERS[0], die=die), 0)
        if os.WIFSIGNALED(status) == die.startswith("cut"):
            broken.append(f"round {number}: the process ended otherwise")
        if die.startswith("cut") and "IN DOUBT" not in told.read_text():
            broken.append(f"round {number}: the same run was not asked")
        lapsed, had = 0.0, int(happened)
        if world.booked(number).total() != had:
            broken.append(f"round {number}, {die}: booked {world.booked(number).total()} times")
        for step in range(rng.randint(2, 4)):
            lapsed = max(lapsed, rng.choice((0.0, 0.0, LAPSE, DAY)))
            ways = (("t", None), ("t", "new"), ("t", "new"), ("other", "new"), (f"other{step}", "new"), ("early", None))
            thread, text = rng.choice(ways[: 6 if early else 5])
            early = early and thread != "early"
            order = None if text is None else ORDERS[1 + step % 3]
            if lapsed and not known and not world.twin and rng.random() < 0.2:
                os.waitpid(forked(resolve, world, number, clock + lapsed, happened=happened), 0)
                known = True
            says = happened if lapsed and not world.twin and rng.random() < 0.2 else None
            told.unlink(missing_ok=True)
            where = f"round {number}, {die}, +{lapsed:.0f} s, {thread}, {order}"
            _, status = os.waitpid(forked(enter, world, number, clock + lapsed, thread=thread, text=order, happened=says), 0)
            entries[f"{'lapsed' if lapsed else 'at once'}, {'new text' if order else 'nothing new'}, {thread[:5]}"] += 1
            found = json.loads(told.read_text()) if told.exists() else None
            booked = world.booked(number).total()
            if status:
                broken.append(f"{where}: the entry failed")
            asks, had = known or says is False, booked - had
            free = asks and (order is not None or thread == "early" or booked == had)
            if had > free or (world.twin and booked > 1):
                broken.append(f"{where}: booked {booked} times, {had} of them now")
            had = booked
            if found is None or world.twin:
                continue
            known = known or (says is not None and not found["doubts"])
            if not asks and (order or thread == "early") and not any("IN DOUBT: the same payment" in q and Code.IN_DOUBT in q for q in found["asked"]):
                broken.append(f"{where}: not asked, or not told why: {found}")
            if lapsed and found["doubts"] != ["unknown"] * (not known):
                broken.append(f"{where}: in doubt are {found['doubts']}")
        paid += world.booked(number).total()
        if world.twin and broken:  # seen once is seen
            break
        for old in world.folder.glob(f"*-{number}.*"):
            old.unlink()
    return {
        "ledger": world.kind, "rounds": number + 1, "entries": sum(entries.values()), "orders": dict(sorted(entries.items())),
        "paid": paid, "seed": seed, "seconds": round(time.monotonic() - began), "broken": broken,
    }  # fmt: skip


def main() -> None:
    given = arguments(__doc__, rounds=10)
    with closing(WasmPDP()) as engine:  # once closed, it has no thread
        load(engine, PROFILES, ". ".join(ORDERS))
    broken = False
    for begun in range(0, given.rounds, WORLD):  # a list of questions ends at 1,000
        with tempfile.TemporaryDirectory() as folder:
            world = Deaths(Path(folder), given.ledger, os.environ.get("LRA_POSTGRES_DSN"), twin=given.twin)
            found = rounds(world, min(WORLD, given.rounds - begun), given.seed + begun)
        print(json.dumps(found), flush=True)
        broken |= bool(found["broken"])
    raise SystemExit(broken)


if __name__ == "__main__":
    main()
