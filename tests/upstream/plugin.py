"""Pytest plugin: an upstream suite with this package under it, everything permitted.

`LRA_VARIANT` says what is put in place: `stock` nothing, `toolnode` our ToolNode in ToolNode's place,
`guarded` every tool of every ToolNode guarded, `gated` every compiled graph protected. Outcomes by
test id, and how often a step was decided and ran, go to the directory `LRA_OUT` as JSON.

Executions are not counted by the gates: a tool's where its ticket is redeemed, inside `_run`, and a
node's where LangGraph calls it. A plugin that reaches nothing shows as nothing decided.
"""

import copy
import functools
import inspect
import itertools
import json
import os
import sys
import threading
from collections import Counter
from pathlib import Path

import langgraph.prebuilt.tool_node
import pytest
from langgraph.func import entrypoint
from langgraph.graph import StateGraph
from langgraph.pregel import Pregel
from langgraph.pregel._read import DEFAULT_BOUND, PregelNode

from langchain_runtime_authz import AuthzToolNode, RuntimeAuthz, ToolProfile
from langchain_runtime_authz.credential.ticket import Ticket
from langchain_runtime_authz.langgraph.protect import protect
from langchain_runtime_authz.langgraph.tool_execution import PendingCall
from langchain_runtime_authz.testing import StaticPDP

VARIANT = os.environ["LRA_VARIANT"]
OUT = Path(os.environ["LRA_OUT"])
READS = os.environ.get("LRA_READS", "").split()

_counts: Counter[str] = Counter()
_lock = threading.Lock()


def _count(what: str) -> bool:
    with _lock:
        _counts[what] += 1
    return True


class _Permitting(StaticPDP):
    """Permits and counts. Each look at its revision gives another, so that no permit is kept."""

    _revisions = itertools.count()

    @property
    def revision(self) -> str:
        return str(next(self._revisions))

    def evaluate(self, body):
        return {"decision": _count(f"decided {json.loads(body)['action']['name']}")}


_authz = RuntimeAuthz(
    pdp=_Permitting(True, deadline=60),
    # A side effect that happened is not repeated on resume; some upstream tests count that a read is.
    profiles={name: ToolProfile(effect="read", sink="none") for name in READS},
)


def _forget() -> None:
    """Tests use one thread id with a checkpointer each: each has a ledger of its own too."""
    _authz.ledger.__init__()
    _authz.profiles.__init__(_authz.profiles.declared)


def _in_a_run(test):
    """The test inside a run of its own, as a program would be."""
    if inspect.iscoroutinefunction(test):

        @functools.wraps(test)
        async def around(*args, **kwargs):
            _forget()
            async with _authz.run(subject="alice", task="x"):
                return await test(*args, **kwargs)

    else:

        @functools.wraps(test)
        def around(*args, **kwargs):
            _forget()
            with _authz.run(subject="alice", task="x"):
                return test(*args, **kwargs)

    return around


def _count_tickets() -> None:
    redeem, withdraw, conclude = Ticket.redeem, Ticket.withdraw, Ticket.conclude

    def counted_redeem(self):
        redeem(self)
        _count("ran tools/call")

    def counted_withdraw(self):
        unused = withdraw(self)
        if unused:
            _count("unused tools/call")
        return unused

    def counted_conclude(self):
        if not self.redeemed and not self.concluded:
            _count("unused tools/call")
        conclude(self)

    Ticket.redeem, Ticket.withdraw, Ticket.conclude = counted_redeem, counted_withdraw, counted_conclude
    made = PendingCall.__init__

    def counted_pending(self, *args, **kwargs):
        made(self, *args, **kwargs)
        if self.for_review:
            _count("left tools/call")

    PendingCall.__init__ = counted_pending


def _counted(inner):
    """What LangGraph calls for a node, counted; of its own type still, as LangGraph looks at that."""

    def invoke(self, *args, **kwargs):
        _count("ran node/enter")
        return inner.invoke(*args, **kwargs)

    async def ainvoke(self, *args, **kwargs):
        _count("ran node/enter")
        return await inner.ainvoke(*args, **kwargs)

    async def astream(self, *args, **kwargs):
        _count("ran node/enter")
        async for chunk in inner.astream(*args, **kwargs):
            yield chunk

    own, cls = copy.copy(inner), type(inner)
    methods = {"invoke": invoke, "ainvoke": ainvoke, "astream": astream}
    object.__setattr__(own, "__class__", type(cls)(cls.__name__, (cls,), {"__module__": cls.__module__, **methods}))
    return own


def _count_nodes() -> None:
    made = PregelNode.node.func

    def node(self):
        inner = made(self)
        return inner if self.bound is DEFAULT_BOUND or isinstance(self.bound, Pregel) else _counted(inner)

    PregelNode.node = functools.cached_property(node)
    PregelNode.node.__set_name__(PregelNode, "node")
    alone = PregelNode.invoke

    def invoke(self, *args, **kwargs):
        _count("ran node/enter")
        return alone(self, *args, **kwargs)

    PregelNode.invoke = invoke  # a test calls a node by itself


def _put_toolnode() -> None:
    stock = langgraph.prebuilt.tool_node.ToolNode

    class ToolNode(AuthzToolNode):
        """The drop-in with its `authz` filled in."""

        def __init__(self, tools, **kwargs):
            super().__init__(tools, authz=_authz, **kwargs)

    for name, module in list(sys.modules.items()):
        if not name.startswith("langchain_runtime_authz") and getattr(module, "ToolNode", None) is stock:
            module.ToolNode = ToolNode


def _guard_tools() -> None:
    stock = langgraph.prebuilt.tool_node.ToolNode
    made = stock.__init__

    def init(self, *args, **kwargs):
        made(self, *args, **kwargs)
        self._tools_by_name.update({n: _authz.guard(t) for n, t in self._tools_by_name.items()})

    stock.__init__ = functools.wraps(made)(init)


def _protect_graphs() -> None:
    def protecting(cls, name, *, only=None):
        made = getattr(cls, name)

        @functools.wraps(made)
        def method(self, *args, **kwargs):
            graph = made(self, *args, **kwargs)
            graph = self if name == "__init__" else graph
            if only is None or type(graph) is only:
                protect(graph, _authz._protection)
            return None if name == "__init__" else graph

        setattr(cls, name, method)

    protecting(StateGraph, "compile")
    protecting(entrypoint, "__call__")
    protecting(Pregel, "__init__", only=Pregel)
    _count_nodes()


if VARIANT != "stock":
    _count_tickets()
    {"toolnode": _put_toolnode, "guarded": _guard_tools, "gated": _protect_graphs}[VARIANT]()


def pytest_collection_modifyitems(items):
    """Each test gets a run of its own."""
    if VARIANT != "stock":
        for item in items:
            if hasattr(item, "obj"):
                item.obj = _in_a_run(item.obj)


_outcomes: dict[str, str] = {}
_uneven: dict[str, dict[str, int]] = {}


def unbalanced(counts) -> bool:
    """Whether a decision has no execution, or an execution no decision."""
    met = counts["ran tools/call"] + counts["unused tools/call"]
    # What a human rejected in a review is refused without a question to the policy.
    tools = met <= counts["decided tools/call"] <= met + counts["left tools/call"]
    return not tools or counts["decided node/enter"] != counts["ran node/enter"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Remember the tests after which decisions and executions do not match."""
    before = Counter(_counts)
    result = yield
    now = Counter({k: n - before[k] for k, n in _counts.items()})
    if unbalanced(now):
        _uneven[item.nodeid] = dict(now)
    return result


def pytest_runtest_logreport(report):
    """Failed in any phase is failed."""
    if report.failed or (report.when == "call" and report.passed) or (report.skipped and report.when != "teardown"):
        if _outcomes.get(report.nodeid) != "failed":
            _outcomes[report.nodeid] = report.outcome


def pytest_collectreport(report):
    """A file that can not be collected is a failure."""
    if report.failed:
        _outcomes[report.nodeid] = "failed"


def pytest_sessionfinish(session):
    """Workers write what they counted, the controller what came out."""
    if not hasattr(session.config, "workerinput"):
        (OUT / "outcomes.json").write_text(json.dumps(_outcomes))
    (OUT / f"counts-{os.getpid()}.json").write_text(json.dumps({"counts": _counts, "uneven": _uneven}))
