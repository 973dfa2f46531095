"""Make a tool node's calls from their message, and run them in order.

LangGraph runs a message's calls in one task, or each call in its own task. `AuthzMiddleware` decides its
calls by the same classes.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, cast

from langchain_core.messages import ToolCall
from langchain_core.tools import BaseTool
from langgraph.errors import GraphBubbleUp, GraphInterrupt
from langgraph.prebuilt import ToolRuntime

from langchain_runtime_authz.credential.ticket import Ticket, current_scope
from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.evaluation import deny
from langchain_runtime_authz.facts.plan import calls_digest, plan_calls
from langchain_runtime_authz.langgraph import call_messages, decide_and_ask, interrupts, messages
from langchain_runtime_authz.langgraph.private_api import ToolNode
from langchain_runtime_authz.langgraph.run_context import AuthzHalt
from langchain_runtime_authz.langgraph.tool_execution import PAUSE, Finish, Locks, PendingCall, RunCode, under_lock
from langchain_runtime_authz.langgraph.tool_facts import GUARDED, Profiles, ToolFacts, guard_of
from langchain_runtime_authz.langgraph.tool_guard import guard_tool
from langchain_runtime_authz.pep.call import Call, DecidedCall, Denial, Replay
from langchain_runtime_authz.pep.decide_steps import Entry
from langchain_runtime_authz.pep.lease import OVER
from langchain_runtime_authz.pep.run import Effect, Flow, Run

_SEVERAL: Final = 2  # from this number of calls on
PATIENCE: Final = 5.0  # seconds that a call waits for earlier ones to begin; the node may never run them
_decide_together: Final = partial(decide_and_ask.decide_together, gate=True)
_Batch = tuple[Locks, list[DecidedCall]]  # for calls of one message in separate tasks; the first task fills the list


class MessageCalls:
    """The calls of one execution of a tool node, and the message that planned them."""

    def __init__(
        self, node: ToolNode, profiles: Profiles, input: Any, config: Any, runtime: Any, *,
        entry: Entry = None, wrappers: Sequence[object] = (), standalone: bool = False,
    ) -> None:  # fmt: skip
        self._entry, self._wrapped = entry, any(wrappers)
        self.reviewed = interrupts.reviewed_tools(*wrappers) if self._wrapped else frozenset[str]()
        self.node, self.profiles, self.config, self.runtime = node, profiles, config, runtime
        calls, input_type = node._parse_input(input)
        self.state = node._extract_state(input, config) if input_type == "tool_calls" else input
        found = messages.planned_message(self.state, node._messages_key, calls[0] if calls else None)
        self.plan_id, self.planned, self.position = found
        self.siblings: Sequence[Any] = calls
        # False if this task has one of several calls of a message. A node that is its own root entry (`standalone`)
        # shares no run with the tasks of the other calls, so it decides only its own.
        self.together = standalone or input_type != "tool_calls" or len(self.planned) < _SEVERAL or len(calls) != 1
        if not self.together:
            answered, mine = messages.answered_calls(self.state), {self.position: calls[0]}
            planned = enumerate(self.planned)
            self.siblings = [mine.get(i, c) for i, c in planned if i in mine or c.get("id") not in answered]
            self.together = len(self.siblings) == 1
        self.calls: Sequence[Any] = calls if self.together else [calls[0]]
        # Of several calls, all questions are numbered together.
        self.counting: Any = interrupts.counting_questions(dict(config))[0] if self.calls[1:] else config

    def decide(self, run: Run) -> Flow[list[PendingCall]]:
        """Decide this graph task's calls in order. Ask all questions before one runs."""
        if not self.together:
            return self._decide_mine(run)
        decide = self._decide_wrapped if self._wrapped else _decide_together
        return decide(run, self.describe(), self.config, entry=self._entry)

    def _decide_wrapped(self, run: Run, calls: Sequence[Call], config: Any, *, entry: Entry) -> Flow[list[PendingCall]]:
        known = [call for call in calls if call.error is not Code.UNKNOWN_TOOL]
        decided = iter((yield from _decide_together(run, known, config, entry=entry)))
        return [_brought(run, call) if call.error is Code.UNKNOWN_TOOL else next(decided) for call in calls]

    def _decide_mine(self, run: Run) -> Flow[list[PendingCall]]:
        mine = self.calls[0]
        if self.position is not None and mine["args"] != self.planned[self.position]["args"]:  # a wrapper edited it
            return (
                yield from _decide_together(run, [self._describe(mine, self.position)], self.config, entry=self._entry)
            )
        locks, decided = self._batch(run)
        yield from under_lock(locks, self._decide_all(run, decided))
        alike = [i for i, d in enumerate(decided) if d.call.call_id == self.calls[0].get("id")]
        # Search by id first: a call's position in its plan may differ from that in the message.
        mine = next(i for i in alike if len(alike) == 1 or decided[i].call.position == self.position)
        if self._wrapped and decided[mine].call.error is Code.UNKNOWN_TOOL:
            return [_brought(run, decided[mine].call)]
        return [(yield from decide_and_ask.decide_one_of(run, decided, mine, self.config))]

    def _decide_all(self, run: Run, decided: list[DecidedCall]) -> Flow[None]:
        if not decided:
            decided += yield from decide_and_ask.decide_message(run, self.describe(), self.config, self._entry)
        elif self._entry is not None:
            yield from self._entry.enter()

    def _batch(self, run: Run) -> _Batch:
        """Return the batch of the message, found by its list of calls or an equal list."""
        tools = id(self.node._tools_by_name)  # another node's tools may have the same names
        with run.local.lock:
            planned, batch = run.local.batches.get(same := (tools, id(self.planned)), (None, None))
            if planned is not self.planned:
                alike = (tools, f"{self.plan_id} {calls_digest(plan_calls(self.planned))}")
                batch = run.local.batches.setdefault(alike, ((threading.Lock(), threading.Lock()), []))
                run.local.batches[same] = (self.planned, batch)  # holds the list, so that its id is not reused
            return cast("_Batch", batch)

    def describe(self) -> list[Call]:
        """Return the calls to decide, with their positions in the message."""
        described = []
        free = dict(enumerate(self.planned))
        for call in self.siblings:
            # By identity first, because two calls may be equal. A call that is sent again gets the same position.
            place = next(iter(free)) if free and next(iter(free.values())) is call else messages.place_of(call, free)
            if place is None:
                place = messages.place_of(call, dict(enumerate(self.planned)))
            free.pop(place, None)  # type: ignore[arg-type]  # `None` is not a key
            described.append(self._describe(call, place))
        return described

    def _describe(
        self, call: Any, position: int | None, facts: ToolFacts | None = None, *, amended: bool = False
    ) -> Call:
        node, call_id = self.node, call.get("id")
        plan_id = self.plan_id if position is not None else None
        tool = node._tools_by_name.get(call["name"])
        if tool is None:
            return call_messages.unknown_call(call["name"], call_id, plan_id, position, call["args"])
        if getattr(type(tool), GUARDED, None) is None:  # `tools_by_name` is mutable: a tool was added
            tool = node._tools_by_name[call["name"]] = guard_tool(tool, self.profiles)
        sent, facts = call["args"], facts or guard_of(tool).facts(tool)
        known = node._injected_args.get(call["name"])
        injects = known is None or known.state or known.store or known.runtime
        injected = self._injected(call, tool) if injects else sent

        def amend(name: str, args: dict[str, Any]) -> Call:
            return self._describe({**call, "name": name, "args": args}, position, amended=True)

        base: Any = getattr(type(tool), GUARDED)
        described = call_messages.describe_call(
            tool,
            facts,
            partial(call_messages.parse_call, tool, injected, call_id, partial(base._parse_input, tool)),
            call_id=call_id,
            plan_id=plan_id,
            position=position,
            raw=sent,
            sent=call_messages.not_injected(injected, facts.injected),
            amend=amend,
            reviewed=call["name"] in self.reviewed,
        )
        planned = None if position is None or amended else self.planned[position]
        if planned is None or planned["name"] != call["name"] or planned["args"] == sent:
            return described

        def describe(facts: ToolFacts, args: Any) -> Call:
            return self._describe({**call, "args": args}, position, facts, amended=True)

        return call_messages.as_planned(described, sent, planned["args"], facts, describe) or described

    def _injected(self, call: Any, tool: BaseTool) -> Any:
        same = ("context", "store", "stream_writer", "execution_info", "server_info")
        tools, given = list(self.node.tools_by_name.values()), {name: getattr(self.runtime, name) for name in same}
        own: Any = ToolRuntime(state=self.state, tool_call_id=call.get("id"), config=self.config, tools=tools, **given)
        try:
            return self.node._inject_tool_args(cast("ToolCall", dict(call)), own, tool)["args"]
        except Exception:  # noqa: BLE001  (LangGraph raises it again before the tool runs, where a wrapper may handle it)
            return call["args"]


def _brought(run: Run, call: Call) -> PendingCall:
    """Return a call of a tool that a wrapper may bring. The tool's guard decides it."""
    one = PendingCall(run, call, None)
    one.used = False  # until the call arrives at a tool
    return one


class CallQueue:
    """A tool node's calls, and which of them have begun and ended.

    If a call asks, or another call is ordered after it, they run one after the other.
    """

    def __init__(self, config: Any, calls: Sequence[Any], waiting: Sequence[PendingCall], layer: str = "") -> None:
        self.pep = waiting[0].run.pep if waiting else None
        self._config, self._calls = config, calls
        self._waiting: dict[int, tuple[int, PendingCall]] = {}  # id of the call → its index and its decision
        self._serial = False
        self._asked: dict[int, GraphInterrupt] = {}  # index of the call → what it raised to ask
        for call, one in zip(calls, waiting, strict=True):  # of an object that is sent twice, the first counts
            self._waiting.setdefault(id(call), (len(self._waiting), one))
            awaited = type(one.verdict) is Ticket and bool(one.verdict.awaited)  # another call is ordered after it
            self._serial |= bool(one.paused or one.answers or one.for_review or awaited)
            if layer and type(one.verdict) is Denial and (why := one.verdict.decision).failure and why.reason in OVER:
                raise AuthzHalt(why.reason, why.decision_id)  # the call stays open, for when the thread continues
            if layer and one.call.input.tool is not None and not one.for_review:  # without a tool, the name is made up
                one.run.pep.tally.count(one.run, "tool", one.call.tool, layer, decided=1)
        self._thread = threading.get_ident() if self._serial else 0  # calls in this thread run in order anyway
        self._begun: set[int] = set()  # indexes of calls
        self._done: set[int] = set()

    def run(self, call: Any, code: Callable[..., Any], *more: Any) -> Flow[Any]:
        """Run `code` with the call or its edit, or return the message that denies it.

        The tool's guard finds the call's decision in the current scope. `more`: further arguments of `code`.
        """
        found = self._waiting.get(id(call)) or self._find_copied(call)
        if found is None:  # the call was not decided
            denial = Denial(call_messages.unknown_call(call["name"], None, None, None, {}), deny(Code.NO_RUN))
            return call_messages.denial_message(denial, call.get("id"))
        place, one = found
        self._begun.add(place)
        if self._serial:
            try:
                yield (_AwaitEarlier, self, place)
                if self._asked:
                    raise GraphInterrupt(())  # its question would get the answer to an earlier call's question
            except BaseException:  # cancelled or held: later calls must not wait for this one
                self._done.add(place)
                raise
        first, before = not self._asked, current_scope.get()
        one.ticket, one.refusals, one.counts, one.task = before.ticket, before.refusals, before.counts, before.task
        one.entered = before.entered
        current_scope.set(one)
        try:
            if type(one.verdict) is Ticket and not one.call.edited_by:
                output = yield (RunCode, code, call, *more)
            elif (output := self._answer(one, call)) is None:
                edited = bool(one.call.edited_by) and not one.for_review
                own = {**call, "name": one.call.tool, "args": one.call.raw} if edited else call
                output = _note_edit(one, (yield (RunCode, code, own, *more)))
                if one.call.error is Code.UNKNOWN_TOOL and one.for_review and one.take():  # no wrapper brought the tool
                    yield from _decide_together(one.run, [one.call], self._config)
        except BaseException as exc:
            if current_scope.get() is one:  # else it is closed in another context
                current_scope.set(before)
            yield from self._failed(place, one, exc, first=first)
            raise
        current_scope.set(before)
        self._done.add(place)
        if one.question is not None:  # code before the tool swallowed it
            raise one.question
        return output

    def _find_copied(self, call: Any) -> tuple[int, PendingCall] | None:
        """Return index and decision of the call that `call` is a copy of, or None."""
        for each in self._calls:
            if each == call:
                return self._waiting[id(each)]
        self._done.update(self._waiting[id(each)][0] for each in self._calls if each.get("id") == call.get("id"))
        return None

    def _answer(self, one: PendingCall, call: Any) -> Any:
        """Return the message for a call that must not run; None if the call runs."""
        verdict = one.verdict
        if one.for_review or isinstance(verdict, Ticket):
            return None
        interrupts.keep_numbers(self._config, one.answers)
        if isinstance(verdict, Replay):
            return _note_edit(one, call_messages.replayed_result(verdict, call.get("id")))
        # Malformed arguments and unknown names get ToolNode's own error. Without a ticket, the tool cannot run.
        if isinstance(verdict, Denial) and one.call.error not in (Code.INVALID_ARGUMENTS, Code.UNKNOWN_TOOL):
            return call_messages.denial_message(verdict, call.get("id"))
        return None

    def _failed(self, place: int, one: PendingCall, exc: BaseException, *, first: bool) -> Flow[None]:
        """Record the question of the tool itself, or of a review before it."""
        if isinstance(exc, GraphInterrupt):
            self._asked[place] = exc
        if one.for_review and one.call.reviewed and isinstance(exc, Exception):
            yield from interrupts.note_failed(one.run, one.call, exc, self._config, first=first)
        try:
            if place in self._asked:
                yield (Finish, self, place)
        finally:
            self._done.add(place)
        if one.question is not None and isinstance(exc, Exception) and not isinstance(exc, GraphBubbleUp):
            raise one.question

    def question(self, exc: GraphInterrupt) -> GraphInterrupt:
        """Return the first call's question, to show it instead of `exc`."""
        return next((q for _, q in sorted(self._asked.items()) if q.args and q.args[0]), exc)

    def wait(self, place: int) -> None:
        """Wait in a thread for the calls before an index."""
        until = time.monotonic() + PATIENCE
        while self._thread != threading.get_ident() and (left := set(range(place)) - self._done):
            if left.isdisjoint(self._begun) and time.monotonic() > until:
                break
            time.sleep(PAUSE)

    async def finish(self, place: int | None = None) -> None:
        """Wait for the running calls, or those before an index.

        The question or failure of another call would cancel them.
        """
        running = self._begun if place is None else self._begun.intersection(range(place))
        while not self._done.issuperset(running):  # noqa: ASYNC110
            await asyncio.sleep(PAUSE)


# LangGraph starts coroutines in order, so those of earlier calls have begun.
_AwaitEarlier: Final = Effect(lambda _, queue, place: queue.wait(place), lambda _, queue, place: queue.finish(place))


def _note_edit(one: PendingCall, output: Any) -> Any:
    """Return the output, with a note if an approver replaced the model's call."""
    return output if not one.replaced else call_messages.with_note(output, call_messages.edit_note(one.call))


def give_back(waiting: Sequence[PendingCall]) -> Flow[None]:
    """Release the calls that did not run."""
    for one in waiting:
        yield from one.give_back()


def open_tickets(waiting: Sequence[PendingCall]) -> bool:
    """Return True if a permitted call did not run: a wrapper answered or changed it."""
    for one in waiting:
        if type(one.verdict) is Ticket and not one.verdict.redeemed:
            return True
    return False
