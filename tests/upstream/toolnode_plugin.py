"""Pytest plugin: LangGraph's own suite with `AuthzToolNode` in ToolNode's place, under a permitting PDP.

`-p tests.upstream.toolnode_plugin`. At the end it prints how often the PDP was asked about a tool
call, how often a tool ran by its ticket, and how many tickets came back unused (an interceptor
answered in the tool's place): asked = ran + unused, and more than zero.
"""

from __future__ import annotations

import langgraph.prebuilt
import langgraph.prebuilt.chat_agent_executor
import langgraph.prebuilt.tool_node

from langchain_runtime_authz import AuthzToolNode, RuntimeAuthz, ToolProfile
from langchain_runtime_authz.credential.lease import Ticket
from langchain_runtime_authz.testing import StaticPDP

# One upstream test counts that a read runs again on resume; an unprofiled tool would not.
_PROFILES = {"get_weather": ToolProfile(effect="read", sink="none")}
_pdp = StaticPDP(permit=True)
_authz = RuntimeAuthz(pdp=_pdp, profiles=_PROFILES)
_counts = {"ran": 0, "unused": 0}
_redeem, _conclude = Ticket.redeem, Ticket.conclude
def _counted_redeem(self: Ticket) -> None:
    _redeem(self)
    _counts["ran"] += 1


def _counted_conclude(self: Ticket) -> None:
    if not self.redeemed and not self.concluded:
        _counts["unused"] += 1
    _conclude(self)


Ticket.redeem, Ticket.conclude = _counted_redeem, _counted_conclude


class ToolNode(AuthzToolNode):
    """The drop-in with its `authz` filled in."""

    def __init__(self, tools, **kwargs):
        super().__init__(tools, authz=_authz, **kwargs)


for _module in (langgraph.prebuilt, langgraph.prebuilt.tool_node, langgraph.prebuilt.chat_agent_executor):
    _module.ToolNode = ToolNode


def pytest_runtest_setup(item):
    """Each test has a checkpointer of its own under one thread id, so each has a ledger of its own."""
    global _authz
    _authz = RuntimeAuthz(pdp=_pdp, profiles=_PROFILES)


def pytest_terminal_summary(terminalreporter):
    """Print the two counts."""
    asked = [r for r in _pdp.requests if r.action.name == "tools/call"]
    terminalreporter.write_line(
        f"tool calls decided: {len(asked)}; ran: {_counts['ran']}; unused tickets: {_counts['unused']}",
    )
