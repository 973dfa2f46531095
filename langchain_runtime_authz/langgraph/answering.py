"""What becomes of a decided call at a tool node: it runs, perhaps in another's place, or is answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from langchain_core.messages import ToolMessage

from langchain_runtime_authz.authzen import deny
from langchain_runtime_authz.credential.ticket import Ticket
from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.langgraph._private import skip_answers
from langchain_runtime_authz.langgraph.arguments import unknown
from langchain_runtime_authz.langgraph.messages import denial_message, edit_note, replay_message, with_note
from langchain_runtime_authz.langgraph.tool_execution import Held
from langchain_runtime_authz.pep.call import Denial, Replay
from langchain_runtime_authz.pep.engine import Run

__all__ = ["answered", "count", "instead", "told", "undecided"]


def count(run: Run, held: Sequence[Held]) -> None:
    """Count what the gate of a tool node decided."""
    for one in held:
        if one.call.tool_ref is not None and not one.left:  # without a tool the name is the model's own
            run.engine.tally.decided(run, "tool", one.call.tool, "tool node gate")


def undecided(call: Any) -> ToolMessage:
    """The answer to a call that reached the node on a road past its gate."""
    return denial_message(Denial(unknown(call["name"], None, None, None, {}), deny(Code.NO_RUN)), call.get("id"))


def answered(held: Held | None, call: Any, config: Any) -> ToolMessage | None:
    """The message that stands in place of the tool's, or `None` where the stock road goes on."""
    if held is None:
        return undecided(call)
    verdict = held.verdict
    if held.left:
        return None
    if not isinstance(verdict, Ticket):
        skip_answers(config, held.answers)
    if isinstance(verdict, Replay):
        return cast("ToolMessage", told(held, replay_message(verdict, call.get("id"))))
    if isinstance(verdict, Denial):
        # Malformed arguments and unknown names have stock answers that help the model; the tool
        # does not run on that road either: there is no ticket.
        if held.call.error in (Code.INVALID_ARGUMENTS, Code.UNKNOWN_TOOL):
            return None
        return denial_message(verdict, call.get("id"))
    return None


def instead(held: Held | None, call: Any) -> Any:
    """What runs: the call, or the one that a human put in its place."""
    if held is None or held.left or not held.call.amends:
        return call
    return {**call, "name": held.call.tool, "args": held.call.raw}


def told(held: Held | None, output: Any) -> Any:
    """The output; where a human put another call in the place of the model's, the model reads so."""
    if held is None or not held.replaced:
        return output
    return with_note(output, edit_note(held.call))
