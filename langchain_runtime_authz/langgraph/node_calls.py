"""The calls that a hand-written node makes: found in the plan, held while a question is open, answered at the end.

A call without an id is the newest message's call of that tool with the same arguments; an equal one is the next.
Code that swallows a question does not lose it: other calls of the node are held, and its enforcement point raises the
question when the node ends. The node runs anew with the answer; the ledger answers the calls that ran.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from langchain_core.messages import AIMessage, ToolMessage
from langgraph.errors import GraphInterrupt

from langchain_runtime_authz.authzen import deny
from langchain_runtime_authz.credential.ticket import Ticket
from langchain_runtime_authz.errors import AuthzDenied, Code
from langchain_runtime_authz.facts.plan import PlannedCall, PlanRecord, raw_digest
from langchain_runtime_authz.langgraph._private import counting_questions
from langchain_runtime_authz.langgraph.inputs import answered_calls, newest_messages, sent_calls, supplied, unknown
from langchain_runtime_authz.langgraph.interrupts import decide_together, skip_answers_to
from langchain_runtime_authz.langgraph.messages import denial_message, record_plans, replay_message
from langchain_runtime_authz.langgraph.run_context import AuthzHalt
from langchain_runtime_authz.langgraph.tool_execution import PAUSE, Pending
from langchain_runtime_authz.langgraph.tool_profiles import ToolFacts
from langchain_runtime_authz.ledger.base import Query
from langchain_runtime_authz.pep.call import Call, Denial, Replay
from langchain_runtime_authz.pep.engine import Flow, Load, Run

Place = tuple[str, int]  # a message's id, and a call's position in it
Describe = Callable[[ToolFacts, Any], Call]  # gives the call of these arguments


class NodeCalls:
    """One execution of a hand-written node. It decides its calls one by one: no question takes the answer to another."""

    def __init__(self, given: Any, config: Mapping[str, Any]) -> None:
        self._given = given
        self.config, self._numbers = counting_questions(dict(config))  # the node runs with it
        self.locks, self._asking = (threading.Lock(), threading.Lock()), threading.Lock()
        self._closed = False
        self.question: GraphInterrupt | None = None  # the first that was raised inside
        self._announced: list[AIMessage] = []
        self._held: list[Call] = []
        self._taken: set[Place] = set()
        # The outputs, denials and replays of its calls by call id; denials of calls that no message holds by tool.
        self._came: dict[str | None, Any] = {}
        self._begun: set[str | None] = set()
        self.running = 0  # guarded tools that are decided or run

    # --- the plan ---

    def announce(self, message: AIMessage) -> None:
        if message.tool_calls:
            self._announced.append(message)

    def _find(
        self, run: Run, call: Call, facts: ToolFacts, given: Any, describe: Describe
    ) -> Flow[tuple[Call, Place | None]]:
        inside = [m for m in reversed(self._announced) if any(c["name"] == call.tool for c in m.tool_calls)][:1]
        if inside:
            yield from record_plans(run, self._given, inside)
        messages = inside or [message for _, message in newest_messages(self._given)]
        queries: list[tuple[Query, dict[int, Any]]]
        queries = [(Query(plan=(run.agent, m.id or "")), dict(enumerate(m.tool_calls))) for m in messages]
        if not messages:
            queries = [(Query(planned_call=(run.agent, c["id"])), {-1: c}) for c in sent_calls(self._given)]
        done = answered_calls(self._given)
        for query, calls in queries:
            if not any(c["name"] == call.tool for c in calls.values()):
                continue
            plan: PlanRecord | None = (yield Load(run.scope, query)).plan
            several = plan.calls if plan is not None else ()
            if len(several) > 1:  # each node may be sent one of them, with the message
                mine = {c["id"] for c in sent_calls(self._given)}
                several = tuple(sorted(several, key=lambda p: p.call_id not in mine))
            for planned in several:
                written = calls.get(planned.position) or calls.get(-1)
                place = (plan.id if plan is not None else "", planned.position)
                if place in self._taken or planned.call_id in done or planned.tool != call.tool or written is None:
                    continue
                if call.call_id in (None, planned.call_id) and written["id"] == planned.call_id:
                    found = _as_planned(call, planned, written["args"], facts, given, describe)
                    if found is not None:
                        self._taken.add(place)
                        return replace(found, plan_id=place[0], position=place[1]), place
        return call, None

    # --- deciding, one call at a time ---

    def decide(
        self, run: Run, call: Call, facts: ToolFacts, given: Any, describe: Describe, unplanned: Callable[[Call], Call]
    ) -> Flow[tuple[Pending, Place | None]]:
        """Decide a call as the message holds it, else as `unplanned` gives it. Raises as `decide_all` does."""
        call, place = yield from self._find(run, call, facts, given, describe)
        (one,) = yield from self.decide_all(run, [call if place is not None else unplanned(call)])
        if isinstance(one.verdict, Ticket):
            self._begun.add(one.call.call_id)
        elif place is not None:
            self._came[one.call.call_id] = one.verdict
        elif isinstance(one.verdict, Denial):
            self._came[one.call.tool] = one.verdict
        return one, place

    def decide_all(self, run: Run, calls: list[Call]) -> Flow[list[Pending]]:
        if self._closed:  # the model was told that they were not carried out
            raise AuthzDenied(Code.NOT_REACHED, deny(Code.NOT_REACHED).decision_id)
        if self.question is not None:
            raise self.question
        return (yield from self._decided(run, calls))

    def _decided(self, run: Run, calls: list[Call]) -> Flow[list[Pending]]:
        mine: list[bool] = []

        def turn() -> bool:
            # A coroutine and a worker thread are decided at once, and neither can wait for the other.
            if self._asking.acquire(blocking=False):
                mine.append(True)
            return bool(mine) and self.question is None

        try:
            return (yield from decide_together(run, calls, self.config, had=lambda: len(self._numbers), turn=turn))
        except GraphInterrupt as exc:
            if exc.args and exc.args[0]:
                self.question = exc
            else:  # its question would take the answer to another
                self._held = [*self._held, *calls]
            raise
        finally:
            if mine:
                self._asking.release()

    def ended(self, call: Call, place: Place | None, output: Any, exc: BaseException | None) -> None:
        """Note what a permitted call came to. One that came to nothing frees its place: the same may come again."""
        if isinstance(exc, GraphInterrupt):
            self.question = self.question or exc  # the tool's own
        if place is not None and exc is None:
            self._came[call.call_id] = output
        elif place is not None:
            self._taken.discard(place)

    async def finish(self) -> None:
        """Wait for the tools that still run: what they come to is recorded."""
        while self.running > 0:  # noqa: ASYNC110  (threads end calls too)
            await asyncio.sleep(PAUSE)

    # --- the end of the node ---

    @property
    def asks(self) -> bool:
        return self.question is not None or bool(self._held)

    def over(self, run: Run, exc: BaseException | None) -> Flow[None]:
        if not self.asks or isinstance(exc, AuthzHalt) or (exc is not None and not isinstance(exc, Exception)):
            return
        run.pause()
        if self.question is None and skip_answers_to(self.config, len(self._numbers)):
            for one in (yield from self._decided(run, self._held)):  # raises, unless it was answered elsewhere
                yield from one.give_back()
        # INVARIANT: nothing that the node returns is written while a question is open.
        raise self.question or GraphInterrupt(())

    def answered(self, denied: AuthzDenied, channels: Collection[str]) -> dict[str, Any] | None:
        """Return an update that answers the message's open calls, for good; `None` if no channel can carry it."""
        done = answered_calls(self._given)
        held = [(name, m.tool_calls) for name, m in newest_messages(self._given)]
        if not held and len(channels) == 1:
            held = [(*channels, list(sent_calls(self._given)))]  # type: ignore[list-item]  # there is one
        for name, calls in held:
            if name in channels and (left := [c for c in calls if c["id"] not in done]):
                self._closed = True
                return {name: [self._answer(c, denied) for c in left]}
        return None

    def _answer(self, call: Mapping[str, Any], denied: AuthzDenied) -> ToolMessage:
        ident, name = call["id"], call["name"]
        came = self._came.get(ident, self._came.get(name))
        if isinstance(came, Denial):
            return denial_message(came, ident)
        if isinstance(came, Replay):
            return replay_message(came, ident)
        if isinstance(came, ToolMessage):
            return came.model_copy(update={"tool_call_id": ident})
        if ident in self._came:
            return ToolMessage(came if isinstance(came, str) else str(came), name=name, tool_call_id=ident)
        code = Code.CALL_IN_PROGRESS if ident in self._begun else Code.NOT_REACHED
        own = unknown(name, ident, None, None, {})
        return denial_message(Denial(own, replace(deny(code), decision_id=denied.decision_id)), ident)


def _as_planned(
    call: Call, planned: PlannedCall, written: Any, facts: ToolFacts, given: Any, describe: Describe
) -> Call | None:
    """Return the call as its message holds it, or `None`. What the code adds is critical, unless the profile injects it."""
    if raw_digest(call.raw) == planned.args_digest:
        return replace(call, call_id=planned.call_id)
    if raw_digest(written) != planned.args_digest:  # an approver put another in its place
        return None
    sent = given if isinstance(given, Mapping) else {}
    added = {k for k in sent if k not in written and not supplied(k, sent[k], facts.injected)}
    own = added & set(facts.profiled.profile.injected)
    # What changes nothing is not the code's word: the model wrote it under another name, an alias.
    own = {k for k in own if describe(facts, {n: v for n, v in sent.items() if n != k}).args_digest != call.args_digest}
    if own:
        facts = facts._replace(injected=facts.injected | own)
        call = describe(facts, given)
    handed = {k: v for k, v in sent.items() if supplied(k, v, facts.injected)}
    as_written = describe(facts, {**written, **handed})
    if call.error is None and as_written.error is None and as_written.args_digest == call.args_digest:
        return replace(call, call_id=planned.call_id, raw=written)
    extra = added - own
    merged = describe(facts, {**written, **handed, **{k: sent[k] for k in extra}})
    if not extra or call.error is not None or merged.error is not None or merged.args_digest != call.args_digest:
        return None
    before = as_written.args if as_written.error is None else written
    changed = {k for k, v in call.args.items() if k not in before or before[k] != v}
    profile = facts.profiled.profile
    rest = {name: tuple(k for k in getattr(profile, name) if k not in changed) for name in ("when", "text", "free")}
    critical = {**dict.fromkeys(changed, "value"), **profile.critical}
    profile = profile.model_copy(update={**rest, "critical": critical})
    facts = facts._replace(profiled=facts.profiled._replace(profile=profile))
    return replace(describe(facts, given), call_id=planned.call_id, raw=written)
