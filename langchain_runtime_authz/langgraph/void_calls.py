"""Answer calls that had not run to their end when the task changed.

No node answers such a call if the thread goes on elsewhere than at the waiting task. But providers refuse a history in
which a tool call has no tool message, or in which another message comes before it. So the root entry answers it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import BaseTool
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.runtime import Runtime
from langgraph.types import Command, Overwrite, StateSnapshot

from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.evaluation import deny
from langchain_runtime_authz.langgraph import checkpoints, messages
from langchain_runtime_authz.langgraph import private_api as private
from langchain_runtime_authz.langgraph.call_messages import denial_message, replay_message
from langchain_runtime_authz.langgraph.graph_input import removed_message_ids
from langchain_runtime_authz.langgraph.object_graph import roots_of, walk_objects
from langchain_runtime_authz.langgraph.tool_batch import MessageCalls
from langchain_runtime_authz.langgraph.tool_facts import Profiles
from langchain_runtime_authz.langgraph.tool_guard import acts_by_itself, guard_tool
from langchain_runtime_authz.ledger.base import Query
from langchain_runtime_authz.pep.call import Call, Replay
from langchain_runtime_authz.pep.conclude_calls import deny_call
from langchain_runtime_authz.pep.decide_calls import decide_calls
from langchain_runtime_authz.pep.run import Flow, Load, Run


class Answered(NamedTuple):
    """A state's messages, with the answers to void calls at the index `at`."""

    messages: list[Any]
    answers: Sequence[ToolMessage]
    at: int
    reducer: Any

    def put_into(self, given: Any) -> Any:
        """Return the input that also brings the answers to the state."""
        if isinstance(given, dict) and self.at + len(self.answers) == len(self.messages):
            return messages.with_messages(given, self.answers)
        # Another message follows the calls, so the list must be replaced to put the answers before that one.
        update = given.update if isinstance(given, Command) else given
        merged = {**(update or {}), "messages": Overwrite(self.reducer(self.messages, messages.messages_in(update)))}
        return merged if isinstance(given, dict) else Command(update=merged)


def answer_void_calls(run: Run, graph: Any, config: Any, state: StateSnapshot, given: object) -> Flow[Answered | None]:
    """Answer the open calls of a state's newest AI message, if their plan is void.

    Return None if there are none, if a waiting task will answer them, or if the input `given` does.
    """
    # A read by id leaves out what other tasks of the unfinished step wrote. A new input drops that.
    left: StateSnapshot = yield checkpoints.read_state(graph, checkpoints.place_of(state, config))
    before = messages.messages_in(left.values)
    place = next((i for i in reversed(range(len(before))) if isinstance(before[i], AIMessage)), None)
    reducer = private.appending_reducer(graph.channels.get("messages"))
    if place is None or reducer is None or not isinstance(given, dict | None):
        return None
    message, at, gone = before[place], place + 1, removed_message_ids(given)
    while at < len(before) and isinstance(before[at], ToolMessage):
        at += 1
    waiting = any(isinstance(graph.nodes[name].bound, private.ToolNode) for name in state.next if name in graph.nodes)
    if given is None and (at == len(before) or state.interrupts or waiting):
        return None  # the thread continues at the task that waits
    sent = [messages.as_message(m) for m in messages.messages_in(given)]
    told = {m.tool_call_id for m in (*before[place:], *sent) if isinstance(m, ToolMessage)}
    again = next((m for m in sent if m is not None and m.id == message.id and m.id), message)  # a client may edit it
    open_ids = {c["id"] for c in message.tool_calls} & {c["id"] for c in getattr(again, "tool_calls", ())} - told
    if not open_ids or not gone.isdisjoint((REMOVE_ALL_MESSAGES, message.id)):
        return None
    plan = (yield Load(run.scope, Query(planned_call=(run.agent, next(iter(open_ids)))))).plan
    if plan is None or plan.epoch == run.epoch:
        return None
    profiles = cast("Profiles", run.pep.tools)
    tools = private.ToolNode([*_tools_of(graph, profiles).values()])
    found = MessageCalls(tools, profiles, [message], config, Runtime(), standalone=True)
    answers = yield from _answers(run, [c for c in found.describe() if c.call_id in open_ids])
    return Answered([*before[:at], *answers, *before[at:]], answers, at, reducer)


def _tools_of(graph: Any, profiles: Profiles) -> Mapping[str, BaseTool]:
    found: dict[str, BaseTool] = {}
    for node in graph.nodes.values():
        for held in walk_objects(roots_of(node)):
            if isinstance(held, BaseTool) and not acts_by_itself(held):
                found.setdefault(held.name, guard_tool(held, profiles))
    return found


def _answers(run: Run, calls: Sequence[Call]) -> Flow[list[ToolMessage]]:
    answers = []
    for one in (yield from decide_calls(run, calls)):
        if one.replay and one.row is not None:  # it was done, and the state lacks its result
            answers.append(replay_message(Replay(one.call, one.row.result), one.call.call_id))
            continue
        # The policy may permit a read of an older task, but no node runs it. So deny what is not refused already.
        known = one.decision.failure == "enforcement" and one.stale
        denied = one if known else one.with_decision(deny(Code.STALE_EPOCH))
        answers.append(denial_message((yield from deny_call(run, denied)), one.call.call_id))
    return answers
