"""Say how a thread goes on after an outage, from its checkpoints and the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Literal

from langgraph.types import Interrupt, StateSnapshot

from langchain_runtime_authz.errors import ConfigError
from langchain_runtime_authz.facts.state import HEAD, UNKNOWN
from langchain_runtime_authz.facts.task import ANSWER, CORRECTION
from langchain_runtime_authz.langgraph.checkpoints import read_state, thread_config
from langchain_runtime_authz.langgraph.human_texts import human_texts
from langchain_runtime_authz.langgraph.messages import messages_in, written
from langchain_runtime_authz.langgraph.state_changes import open_questions
from langchain_runtime_authz.ledger.base import Doubt, Query, Scope, Snapshot
from langchain_runtime_authz.pep.doubt import ListDoubts
from langchain_runtime_authz.pep.engine import Engine, Flow, Load, Perform

How = Literal["continue", "send again", "answer", "resolve", "wait", "done"]
_SENTENCES: Final[Mapping[How, str]] = {
    "continue": "the thread stopped on the way; enter it again with `None` as input",
    "send again": "the last input never entered the thread; send it again",
    "answer": "the thread waits for a person; answer with `Command(resume=...)` or `authz.approve`, pass a breakpoint with `None`",
    "resolve": "a call has a permit and no known outcome; find it out and call `authz.resolve_call`, then look again",
    "wait": "an entry is under way, or its process died in the last minute; look again in a minute",
    "done": "the thread has ended and nothing is left to do; if an input was denied since, send it again",
}


@dataclass(frozen=True, slots=True)
class Reentry:
    """Tell how a thread goes on.

    Attributes:
        how: what to do, or `done`.
        questions: LangGraph's interrupts that wait for an answer. There are none at a breakpoint.
        doubts: the calls of the thread that are in doubt.
        output: what the graph returned, if it went on.
    """

    how: How
    questions: tuple[Interrupt, ...] = ()
    doubts: tuple[Doubt, ...] = ()
    output: Any = None

    def __str__(self) -> str:
        """Return the sentence for people."""
        return f"{self.how}: {_SENTENCES[self.how]}"


def reentry(
    engine: Engine, scope: Scope, graph: Any, config: Mapping[str, Any], input: Any, *, go_on: bool
) -> Flow[Reentry]:
    """Return how the thread of `config` goes on; with `go_on`, enter the graph if that takes nothing new."""
    place = thread_config(config)
    if place is None or not graph.checkpointer:
        raise ConfigError("only a thread is entered again: the graph needs a checkpointer, the config a `thread_id`")
    doubts = tuple(one for one in (yield ListDoubts(engine.tenant, None)) if one.scope == scope)
    snapshot: Snapshot = yield Load(scope, Query(log=True, asks=True, marks=(HEAD,)))
    state: StateSnapshot = yield read_state(graph, place)
    found = Reentry("done", open_questions(state, snapshot.asks, snapshot.now), doubts)
    found = replace(found, how=_how(graph, found, snapshot, state, input))
    if go_on and found.how == "continue":
        output = yield Perform(partial(graph.invoke, None, config), partial(graph.ainvoke, None, config))
        found = replace(found, output=output)
    return found


def _how(graph: Any, found: Reentry, snapshot: Snapshot, state: StateSnapshot, input: Any) -> How:
    if snapshot.live:
        return "wait"
    if found.doubts:
        return "resolve"
    if state.created_at is None or _never_entered(snapshot, state, input):
        return "send again"
    if not state.next:
        return "done"
    # At a breakpoint somebody looks before the next node; a node that failed has begun.
    pauses = (graph.interrupt_before_nodes or graph.interrupt_after_nodes) and not any(t.error for t in state.tasks)
    return "answer" if found.questions or pauses else "continue"


def _never_entered(snapshot: Snapshot, state: StateSnapshot, input: Any) -> bool:
    """Return True if the newest text is not in the state: the input's, or that of an entry which ended at the root."""
    given = [t for t in human_texts(written(input)) if not t.past]
    if not given and snapshot.marks.get(HEAD) == UNKNOWN:
        given = [t for t in snapshot.log if t.own and t.text and not (t.key or "").startswith((ANSWER, CORRECTION))]
    heard = human_texts(messages_in(state.values))
    return bool(given) and not any((given[-1].key or t.key) == t.key and given[-1].digest == t.digest for t in heard)
