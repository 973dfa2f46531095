"""Eight processes decide on one ledger while a ninth revokes their thread, or engages the kill switch.

`python -m tests.revocation_rounds --ledger sqlite|postgres --trials N`, with `LRA_POSTGRES_DSN` for PostgreSQL.
Prints one line of JSON; exits with 1 where anything was broken.

`--tree` instead spreads a tree of 50 agents over four processes, and revokes one agent with the six below it. The other 43
go on. Ten trials share a thread: between two of them the agent is reinstated, and delegated anew with the six.

Each trial is a thread on which every process decides one call after the other; the engine permits all.
After a random while the thread is revoked, or the file of the kill switch appears, by turns. Then:

- a call whose decision began after the revocation had returned is denied, in each process, and so are those after it;
- the reason is `revoked`, or `killed`.

The figures are milliseconds from the moment at which the revocation returned (`acknowledged`) or was called (`called`) to
the last permit of all processes. `--twin` revokes another thread and makes another file: the calls go on being permitted.
"""

import json
import logging
import multiprocessing as mp
import os
import platform
import random
import statistics
import tempfile
import time
import warnings
from itertools import cycle, islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from langchain_runtime_authz import RuntimeAuthz, ToolProfile
from langchain_runtime_authz.errors import AuthzError, Code
from langchain_runtime_authz.pep.kill_switch import KillSwitch
from langchain_runtime_authz.testing import StaticPDP
from tests.kill_rounds import World, arguments

WORKERS, TREE_WORKERS, TREE_TRIALS = 8, 4, 10
BRANCHES = LEAVES = 7  # below the root, and the agents of each branch with its head: 1 + 7 * 7 = 50
HIT_BRANCH = 3
HIT = ("bank", f"branch-{HIT_BRANCH}")
MORE = 1  # decisions after the first denial
PATIENCE = 1.0  # seconds after a revocation at which a process that is still permitted gives up
EXPECTED = {"revoke": Code.REVOKED, "kill": Code.KILLED, "agent": Code.REVOKED}
PROFILES = {"look": ToolProfile(effect="read")}


def instance(world: World) -> RuntimeAuthz:
    """One process's own."""
    about = {"ledger": world.ledger(0), "profiles": PROFILES, "tenant": "acme", "kill_switch": world.folder / "kill"}
    return RuntimeAuthz(pdp=StaticPDP(permit=True), **about)


def patient(act: Any, *args: Any, **options: Any) -> Any:
    """Do it again while the ledger is too busy, as it says."""
    while True:
        try:
            return act(*args, **options)
        except AuthzError as exc:
            if exc.code != Code.LEDGER_TIMEOUT:
                raise


class Asked:
    """One agent, and what it was answered."""

    def __init__(self, session: Any, *, hit: bool = True) -> None:
        self.session, self.hit, self.number = session, hit, 0
        self.permits, self.denials = list[tuple[float, float]](), list[tuple[float, str]]()

    def ask(self) -> None:
        self.number, begun = self.number + 1, time.monotonic()
        decision = self.session.decide("look", {"at": str(self.number)})
        if decision.permit:
            self.permits.append((begun, time.monotonic()))
            self.session.observe("look", {"at": str(self.number)}, "seen")
        elif decision.reason != Code.LEDGER_TIMEOUT:  # SQLite lets one process write at a time
            self.denials.append((begun, decision.reason))


def agents_of(session: Any, share: int, branches: range = range(BRANCHES)) -> list[Asked]:
    """One process's share of the branches. It opens the heads of all, and decides for every fourth agent."""
    heads = {i: patient(session.delegate, f"branch-{i}") for i in branches}
    mine = [(i, j) for i in branches for j in range(LEAVES) if (i * LEAVES + j) % TREE_WORKERS == share]
    of = lambda i, j: heads[i] if j == 0 else patient(heads[i].delegate, f"agent-{i}-{j}")
    asked = [Asked(of(i, j), hit=f"branch-{i}" == HIT[1]) for i, j in mine]
    return [Asked(session, hit=False), *asked] if share == 0 and len(branches) == BRANCHES else asked


def decide_on(world: World, pipe: Connection, share: int | None) -> None:
    """One process's life: on each thread that it is told, decide until it is denied, and say when and why."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    authz = instance(world)
    session, asked, at = None, list[Asked](), ""
    while thread := pipe.recv():
        if thread != at:
            if session is not None:
                session.close()
            session, at = patient(authz.session, subject="alice", task="Look around", agent="bank", thread=thread), thread
            asked = [Asked(session)] if share is None else agents_of(session, share)
        else:
            again = agents_of(session, share, range(HIT_BRANCH, HIT_BRANCH + 1))
            asked = [*(Asked(one.session, hit=False) for one in asked if not one.hit), *again]
        for one in asked if share is not None else ():
            one.ask()  # each has been permitted before
        pipe.send("ready")
        pipe.recv()  # go
        until = float("inf")
        hit, others = [one for one in asked if one.hit], cycle([one for one in asked if not one.hit])
        while any(len(one.denials) <= MORE for one in hit):
            for one in (*hit, *islice(others, 1)):
                one.ask()
            if any(one.permits and one.permits[-1][0] > until for one in hit):
                break
            time.sleep(0.005)
            if until == float("inf") and pipe.poll():
                until = pipe.recv() + PATIENCE
        if until == float("inf"):
            pipe.recv()
        pipe.send([(one.hit, one.permits, one.denials) for one in asked])


def heard(pipe: Connection) -> Any:
    """Return what a process says; it has died if it says nothing for a minute."""
    if not pipe.poll(60):
        raise SystemExit("a process is silent")
    return pipe.recv()


def trial(authz: RuntimeAuthz, world: World, pipes: list[Connection], number: int, wait: float, *, tree: bool) -> dict[str, Any]:
    """Revoke one thread or agent, and return what each process was answered."""
    what, thread = "agent" if tree else ("revoke", "kill")[number % 2], f"trial-{number // TREE_TRIALS if tree else number}"
    if tree and number % TREE_TRIALS:
        authz.reinstate(thread, graph="bank", agent=HIT)
    for pipe in pipes:
        pipe.send(thread)
    for pipe in pipes:
        heard(pipe)
    for pipe in pipes:
        pipe.send("go")
    time.sleep(wait)
    called = time.monotonic()
    if what == "kill":
        KillSwitch(world.folder / ("other" if world.twin else "kill")).engage("trial")
    else:
        authz.revoke("other" if world.twin else thread, graph="bank", agent=HIT if tree else ())
    acknowledged = time.monotonic()
    for pipe in pipes:
        pipe.send(acknowledged)
    found = [(worker, *one) for worker, pipe in enumerate(pipes) for one in heard(pipe)]
    KillSwitch(world.folder / "kill").release()
    broken = []
    for worker, hit, permits, denials in found:
        late = [begun for begun, _ in permits if begun > acknowledged]
        after = [begun for begun, _ in permits if denials and begun > denials[0][0]]
        if hit and (late or after):
            broken.append(f"{thread}, {what}: process {worker} was permitted {len(late)} times after it, {len(after)} after a denial")
        told = {reason for _, reason in denials}
        if (len(denials) <= MORE or told != {EXPECTED[what]}) if hit else told:
            broken.append(f"{thread}, {what}: process {worker} was told {sorted(told)} of an agent that is {'' if hit else 'not '}revoked")
    newest = max((ended for _, hit, permits, _ in found if hit for _, ended in permits), default=called)
    decided = sum(len(permits) + len(denials) for *_, permits, denials in found)
    return {"what": what, "called": newest - called, "acknowledged": newest - acknowledged, "decided": decided, "broken": broken}


def figures(seconds: list[float]) -> dict[str, float]:
    """Milliseconds. A last permit before the moment itself counts as 0."""
    sorted_ms = sorted(max(0.0, 1000 * s) for s in seconds)
    at = lambda share: round(sorted_ms[min(len(sorted_ms) - 1, int(share * len(sorted_ms)))], 1)
    return {"p50": round(statistics.median(sorted_ms), 1), "p95": at(0.95), "p99": at(0.99), "max": round(sorted_ms[-1], 1)}


def rounds(world: World, count: int, seed: int, *, tree: bool) -> dict[str, Any]:
    rng, fork, began = random.Random(seed), mp.get_context("fork"), time.monotonic()
    ends = [fork.Pipe() for _ in range(TREE_WORKERS if tree else WORKERS)]
    shares = enumerate(there for _, there in ends)
    workers = [fork.Process(target=decide_on, args=(world, there, share if tree else None), daemon=True) for share, there in shares]
    for worker in workers:
        worker.start()
    pipes, authz = [here for here, _ in ends], instance(world)
    done: list[dict[str, Any]] = []
    for number in range(count):
        done.append(trial(authz, world, pipes, number, (0.02 + rng.random() * 0.05) * (4 if tree else 1), tree=tree))
        if world.twin and done[-1]["broken"]:  # seen once is seen
            break
    for pipe in pipes:
        pipe.send(None)
    for worker in workers:
        worker.join(30)
    by = {what: [d for d in done if d["what"] == what] for what in EXPECTED}
    return {
        "ledger": world.kind, "trials": len(done), "workers": len(workers), "agents": 1 + BRANCHES * LEAVES if tree else 1, "decisions": sum(d["decided"] for d in done),
        **{what: {m: figures([d[m] for d in of]) for m in ("called", "acknowledged")} for what, of in by.items() if of},
        "seed": seed, "seconds": round(time.monotonic() - began), "machine": f"{os.cpu_count()} cores, {platform.platform()}",
        "load": round(os.getloadavg()[0], 1), "broken": [b for d in done for b in d["broken"]],
    }  # fmt: skip


def main() -> None:
    given = arguments(__doc__, "tree", trials=20)
    RuntimeAuthz()  # loads the libraries once for all processes
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), given.ledger, os.environ.get("LRA_POSTGRES_DSN"), twin=given.twin)
        found = rounds(world, given.trials, given.seed, tree=given.tree)
    print(json.dumps(found))
    raise SystemExit(bool(found["broken"]))


if __name__ == "__main__":
    main()
