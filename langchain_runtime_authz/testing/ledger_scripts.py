"""Drive a ledger under test, by single commits and random scripts of commits."""

from __future__ import annotations

import asyncio
import random
import secrets
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, fields
from functools import cached_property
from typing import Any, Final, NamedTuple, cast

from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.evaluation import Edge
from langchain_runtime_authz.facts.output_reading import SeenValue
from langchain_runtime_authz.facts.plan import PlannedCall, PlanRecord
from langchain_runtime_authz.facts.task import HumanText
from langchain_runtime_authz.grant import Constraint, Grant
from langchain_runtime_authz.ledger import base, call_changes, changes
from langchain_runtime_authz.ledger.base import Committed, Conflict, Guard, Lease, Ledger, Query, Scope, Snapshot
from langchain_runtime_authz.ledger.changes import Change
from langchain_runtime_authz.testing.frozen_clock import FrozenClock

DIGEST: Final = "sha256:" + "0" * 64
ROOT: Final = ("root",)
TTL: Final = 60
AGENTS: Final = (ROOT, ("root", "a"), ("root", "a", "b"), ("root", "ab"), ())
NAMES: Final = ("k", "K", "k'\"%_")
TEXTS: Final = ("pay", "päy 'it' \"now\"\n\x1f😀\u2028", "", "x" * 10_000)
DEEDS: Final = dict(zip(NAMES, ("pay:x", "send:x", ""), strict=True))  # each call's deed, by its key
GRANT: Final = Grant(
    tools=("pay", "read"),
    args={"pay": {"amount": Constraint(ge=0, le=10.5), "to": Constraint(one_of=("UK12", 3, True))}},
    data_classes=("internal",),
    sinks=(),
    max_depth=2,
    budgets={"pay": 1, "effect:pay": 2},
    expires_at=1_764_003_600,
)


class ScriptStep(NamedTuple):
    """One commit of a script, with a query and a jti to look up after the commit."""

    seconds: int
    scope: Scope
    guard: Guard | None
    changes: tuple[Change, ...]
    query: Query
    jti: str


class Script:
    """Random commits. They share few names and leases, so that they affect each other."""

    def __init__(self, seed: int, scope: Scope, now: Callable[[], float]) -> None:
        self.by, self.now, self.count = random.Random(seed), now, 0  # noqa: S311  (no secret)
        self.scopes = [scope, *(scope._replace(**{part: f"{getattr(scope, part)}/%_"}) for part in Scope._fields)]
        self.jtis: dict[Scope, list[str]] = {}

    def new(self) -> str:
        """Return a new jti."""
        self.count += 1
        return f"{self.scopes[0].thread}-{self.count}"

    def step(self, epoch: Callable[[Scope], int]) -> ScriptStep:
        """Return the next step. `epoch` returns a scope's current epoch."""
        pick = self.by.choice
        scope = pick([*self.scopes, self.scopes[0], self.scopes[0]])
        todo: tuple[Change, ...] = (changes.OpenThread("user:alice"),)  # the first commit of each thread
        new, at = scope not in self.jtis, epoch(scope)
        jti = pick(self.jtis.setdefault(scope, [f"{scope.thread}-nobody"])[-4:])
        if not new:
            todo = tuple(self.change(jti, at + pick((0,) * 6 + (-1, 1))) for _ in range(pick((1, 1, 1, 2, 4))))
        self.jtis[scope] += [c.lease.jti for c in todo if isinstance(c, changes.TakeLease)]
        claims = any(isinstance(change, call_changes.ClaimCall) for change in todo)  # a claim needs a lease
        agent, name = pick(AGENTS), pick(NAMES)
        more = {"plan": (agent, name)} if pick((True, False)) else {"planned_call": (agent, name)}
        known: Any = {
            **more,
            **dict.fromkeys(("calls", "marks", "values", "counters"), NAMES),
            "deeds": ("pay:x", "send:x"),
        }
        query = pick((Query(), *[Query(jti=jti, agent=agent, log=True, questions=True, **known)] * 3))
        guard = Guard(jti, at) if claims or (not new and pick((True, False, False))) else None
        return ScriptStep(pick((0, 0, 0, 0, 1, 30, TTL + 1)), scope, guard, todo, query, jti)

    def change(self, jti: str, epoch: int) -> Change:
        """Return a random change under the lease `jti`."""
        pick, now = self.by.choice, int(self.now())
        name, agent, yes = pick(NAMES), pick(AGENTS), pick((True, False))
        who, tool, number = pick(("user:alice", "user:alice", "user:bob")), pick(("pay", "read")), pick((1, 2, 3))
        origin: Any = pick(("system", "external"))
        place: Any = {
            "agent": agent,
            "plan_id": name,
            "place": 1,
            "call_id": name,
            "tool": tool,
            "within": ((ROOT, name),),
        }
        about = {"args_digest": pick("de"), "process": pick("pq"), "entry": str(number)}
        planned = (PlannedCall(0, name, tool, "d"), PlannedCall(1, None, "read", "e", tool, "d"))
        text = HumanText(f"d{number}", pick(TEXTS), pick((None, name)), pick((True, False)), who, past=yes, mixed=yes)
        texts = (text, HumanText("d", "pay"))[: pick((1, 2))]
        lost = call_changes.DoubtCall(base.CallRow(name, "unknown", jti, None, DEEDS[name], now, about))
        makers: tuple[Callable[[], Change], ...] = (
            lambda: changes.OpenThread(who),
            lambda: changes.AdvanceEpoch(epoch, texts, first=yes, deliver=pick((True, False)), keep=(name,)),
            changes.TakePending,
            lambda: changes.Redeliver(texts),
            lambda: changes.SetMark(name, tool, pick(("", "lookup")), once=yes, instead=pick((None, None, "pay"))),
            lambda: changes.DeleteMarks(pick(("k", "k'\"%", ""))),
            lambda: changes.RecordStep(tool, tool, pick((0, 1)), pick((None, "secret")), name, yes, 1, 1, (name, tool, "1"), agent),
            *[lambda: changes.TakeLease(Lease(self.new(), "run", agent, epoch, now, now + TTL, pick((None, GRANT)), pick((None, jti))))] * 3,
            lambda: changes.RenewLease(jti, now + pick((-1, 10, 2 * TTL))),
            lambda: changes.EndLease(jti, pick(("suspended", "ended", "revoked"))),
            lambda: changes.Revoke(agent),
            *[lambda: changes.Reinstate(agent)] * 2,
            lambda: changes.RecordPlan(PlanRecord(name, agent, epoch, "model", planned)),
            lambda: changes.RecordEdge(Edge.model_validate({"from": name, "to": tool, "kind": pick(("task", "handoff"))})),
            lambda: changes.RecordValues((SeenValue(name, origin, yes, pick((True, False)), tool),)),
            *[lambda: call_changes.ClaimCall(name, jti, yes, (self.new(),), DEEDS[name], about, pick(("", who)), pick(((), None)))] * 4,
            *[lambda: call_changes.ReleaseCall(name, ((name, number),), pick(("", *NAMES)))] * 2,
            *[lambda: call_changes.ConcludeCall(name, pick(("done", "failed", "suspended", "unknown", None)), pick((None, "1")))] * 2,
            lambda: call_changes.ResolveCall(name, number > 1, who, tool) if yes else call_changes.RepeatCall(name, now) if number == 2 else lost,
            lambda: call_changes.SpendBudget(name, 4, pick((number, -1))),
            *[lambda: call_changes.SpendRate("k", pick((10, 100)), 1)] * 2,
            *[lambda: call_changes.AskApproval(base.Approval(
                name, tool, epoch, "task", number, 1, id=self.new(), subject=who, needed=pick((1, 1, 2)), distinct=yes,
                expires_at=pick((0, now + TTL)), eligible=pick(((), (who,))), fallback=("user:bob",), fallback_at=now + 1,
                allowed=("approve", "edit"), interrupt_id="i", run_id="r", question=pick(TEXTS), trace="t", **place,
            ))] * 2,
            *[lambda: call_changes.AnswerApproval(name, pick(("approved", "approved", "rejected", "answered", "malformed")), who, yes, tool, name)] * 2,
            *[lambda: call_changes.SpendApproval(name, tool)] * 2,
        )  # fmt: skip
        return pick(makers)()


def answers_of(ledger: Ledger, step: ScriptStep, form: str = "") -> Iterator[tuple[str, object]]:
    """Commit a step, and yield answers as (name, value). `form` is `a` for async."""

    def ask(verb: str, *args: Any) -> Any:
        if not form:
            return getattr(ledger, verb)(*args)

        async def wait() -> object:
            return await cast("Awaitable[object]", getattr(ledger, f"a{verb}")(*args))

        return asyncio.run(wait())

    tenant = step.scope.tenant
    yield "commit", ask("commit", step.scope, step.guard, step.changes)
    yield "status", ask("status", tenant, step.jti)
    if step.query.log:
        yield "asked", sorted(ask("asked", tenant), key=repr)
        yield "doubts", [sorted(ask("doubts", tenant, *key), key=repr) for key in ((), (NAMES[0],))]
    yield from comparable_state(ask("load", step.scope, step.query)).items()


def comparable_state(seen: Snapshot) -> dict[str, object]:
    """Return a snapshot's fields in a form that does not depend on a store's order."""
    found = {field.name: getattr(seen, field.name) for field in fields(seen)}
    found |= {name: dict(found[name]) for name in ("calls", "approvals", "marks", "counters")}
    found |= {name: sorted(found[name], key=repr) for name in ("questions", "doubts")}
    found |= {name: [astuple(text) for text in found[name]] for name in ("log", "pending")}
    return found | {"values": {key: set(sightings) for key, sightings in seen.values.items()}}


def unique_name(kind: str = "jti") -> str:
    """Return a name that no other test has, beginning with `kind`."""
    return f"{kind}-{secrets.token_hex(8)}"


class LedgerHarness:
    """Make one ledger for each test, and close it after the test."""

    def make_ledger(self, clock: Callable[[], float]) -> Ledger:
        """Return a ledger that reads `clock` (epoch seconds). `close()` is optional."""
        raise NotImplementedError

    @cached_property
    def clock(self) -> FrozenClock:
        return FrozenClock()

    @cached_property
    def ledger(self) -> Ledger:
        return self.make_ledger(self.clock)

    @cached_property
    def scope(self) -> Scope:
        return Scope(unique_name("tenant"), "https://issuer.example", "graph", unique_name("thread"))

    def teardown_method(self) -> None:
        getattr(self.__dict__.get("ledger"), "close", int)()

    def commit(self, *changes: Change, guard: Guard | None = None) -> Committed | Conflict:
        return self.ledger.commit(self.scope, guard, changes)

    def do(self, *changes: Change, guard: Guard | None = None) -> Committed:
        """Commit, and fail if it is refused."""
        done = self.commit(*changes, guard=guard)
        assert isinstance(done, Committed), done
        return done

    def refuse(self, code: Code, *changes: Change, guard: Guard | None = None) -> Conflict:
        """Commit, and fail unless it is refused with `code`."""
        done = self.commit(*changes, guard=guard)
        assert isinstance(done, Conflict), done
        assert done.code == code
        return done

    def load(self, **query: Any) -> Snapshot:
        return self.ledger.load(self.scope, Query(**query))

    def row(self, key: str) -> base.CallRow | None:
        """Return the row of the call `key`."""
        return self.load(calls=(key,)).calls.get(key)

    def lease(self, agent: tuple[str, ...] = ROOT, *, parent: Lease | None = None, grant: Grant | None = None) -> Lease:
        """Take a new lease for an agent."""
        now = int(self.clock())
        below = parent.jti if parent is not None else None
        lease = Lease(unique_name(), "run-1", agent, self.load().epoch, now, now + TTL, grant, below)
        self.do(changes.TakeLease(lease))
        return lease

    def status(self, jti: str) -> str:
        return self.ledger.status(self.scope.tenant, jti)

    def approved(self, key: str, **asked: Any) -> None:
        """Ask for an approval of the call, and approve it."""
        self.do(call_changes.AskApproval(base.Approval(key, DIGEST, **{"epoch": 1, **asked})))
        self.do(call_changes.AnswerApproval(key, "approved", "user:alice", authenticated=True))

    def race(self, jobs: Sequence[tuple[Sequence[Change], Guard | None]]) -> list[Committed | Conflict]:
        """Commit each job in its own thread, all at once."""
        gate, _ = threading.Barrier(len(jobs)), (self.ledger, self.scope)  # create both before the threads start

        def run(job: tuple[Sequence[Change], Guard | None]) -> Committed | Conflict:
            gate.wait()
            return self.commit(*job[0], guard=job[1])

        with ThreadPoolExecutor(len(jobs)) as pool:
            return list(pool.map(run, jobs))

    def claimed(
        self, thread: str, process: str = "p1", args: str = "d", kind: Any = call_changes.ClaimCall, **more: Any
    ) -> Code | None:
        """Claim a call in a run of its own. Return a refusal's code, or `None`."""
        about = {"args_digest": args, "process": process, "entry": unique_name()}
        scope, now = self.scope._replace(thread=thread), int(self.clock())
        lease = Lease(unique_name(), about["entry"], ROOT, 1, now, now + TTL)
        self.ledger.commit(scope, None, [changes.OpenThread("user:alice"), changes.TakeLease(lease)])
        claim = kind(unique_name(), lease.jti, False, about=about, **{"deed": "pay:x", "subject": "user:alice", **more})
        done = self.ledger.commit(scope, Guard(lease.jti, 1), [claim])
        return done.code if isinstance(done, Conflict) else None
