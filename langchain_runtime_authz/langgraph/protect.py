"""Protect a graph and all graphs that it reaches, and decide remote calls.

`protect` replaces a compiled graph's class by a dynamic subclass, so the graph and its copies are protected. The
subclass overrides `stream` and `astream`, which all other entry methods use. They open a run or, inside a run, a
child's run.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Collection, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NoReturn

from langchain_core.tools import BaseTool
from langgraph.graph import StateGraph
from langgraph.pregel.protocol import PregelProtocol

from langchain_runtime_authz._url import is_under
from langchain_runtime_authz.agent_profile import ANY
from langchain_runtime_authz.credential.ticket import current_ticket
from langchain_runtime_authz.errors import AlreadyProtected, AuthzDenied, Code, ConfigError, CredentialError
from langchain_runtime_authz.langgraph import callback_backstop as ambient
from langchain_runtime_authz.langgraph import object_graph
from langchain_runtime_authz.langgraph import private_api as private
from langchain_runtime_authz.langgraph.declared_effects import gate_store
from langchain_runtime_authz.langgraph.graph_entry import ChildEntry, Owner, RunOpener
from langchain_runtime_authz.langgraph.node_gate import gate_bound, gate_tool_node, guard_held, is_gated
from langchain_runtime_authz.langgraph.object_graph import AnyGraph, FoundGraph, graphs_in, reached_objects
from langchain_runtime_authz.langgraph.run_context import HANDLE_KEY, current_run, run_scope, without_handle
from langchain_runtime_authz.langgraph.tool_facts import ProfiledTool, Profiles, facts_of, is_guarded
from langchain_runtime_authz.langgraph.tool_guard import acts_by_itself, guard_in_place
from langchain_runtime_authz.pep.child_agent import child_credential
from langchain_runtime_authz.pep.run import Flow, Perform, Run, adrive, drive, new_id

_SHOW_CONFIGS: Final = frozenset(("debug", "checkpoints"))  # stream modes


@dataclass(frozen=True, slots=True)
class Protection:
    """The parts that the enforcement points of one `RuntimeAuthz` share."""

    run_opener: RunOpener
    profiles: Profiles
    classes: dict[type, type] = field(default_factory=dict)


def owner_of(graph: object) -> Protection | None:
    """Return the protection of a graph or builder, or None."""
    # Only `protect` sets the attribute. `isinstance` would fail after a reload of this module.
    found: Protection | None = getattr(type(graph), "__runtime_authz__", None)
    return found


def protect(target: Any, protection: Protection) -> dict[str, ProfiledTool]:
    """Protect a graph and those below it in place, and return their tools' profiles.

    For a builder, protect each graph that it compiles, and return none.
    """
    if isinstance(target, StateGraph):
        _protect_builder(target, protection)
        return {}
    if not isinstance(target, private.Pregel):
        raise ConfigError(f"`protect` takes a compiled graph, not {type(target).__name__}")
    graphs = [found.graph for found in graphs_in(target)]
    # Check all before changing any, so that a refused `protect` changes nothing.
    for graph in graphs:
        owner = owner_of(graph)
        if owner is not None and owner is not protection:
            raise AlreadyProtected(graph.get_name())
    return {name: profiled for graph in graphs for name, profiled in _protect_one(graph, protection)}


def agent_names(graph: AnyGraph) -> frozenset[str]:
    """Return the run-time names of the agents in a graph, including remote ones."""
    reached = reached_objects(graph, deep=True)
    held = ((v, v.label if isinstance(v, FoundGraph) else getattr(v, "name", "")) for v in reached)
    return frozenset(str(name) for value, name in held if isinstance(value, FoundGraph) or is_remote(value))


def misspelt_agents(agents: Collection[str], graph: AnyGraph) -> Iterator[tuple[str, str]]:
    """Yield each name in `agents` that no agent of the graph has, and a similar name."""
    if agents:  # a name without a similar one may belong to another graph
        from difflib import get_close_matches

        known = agent_names(graph)
        yield from ((n, m) for n in {*agents} - known - {ANY} for m in get_close_matches(n, known - {*agents}, n=1))


def _protect_one(graph: AnyGraph, protection: Protection) -> Iterator[tuple[str, ProfiledTool]]:
    channels = frozenset(
        name for name, channel in graph.channels.items() if private.appending_reducer(channel) is not None
    )
    for name, node in graph.nodes.items():
        yield from _gate_node(name, node, protection, channels)
    if owner_of(graph) is None:
        base = type(graph)
        if base not in protection.classes:
            protection.classes[base] = _protected_class(base, protection)
        graph.__class__ = protection.classes[base]


def _gate_node(
    name: str, node: private.PregelNode, protection: Protection, channels: frozenset[str]
) -> Iterator[tuple[str, ProfiledTool]]:
    """Add enforcement points to a node that has none; yield its tools' profiles."""
    bound = node.bound
    opens = not (bound is private.DEFAULT_BOUND or isinstance(bound, private.Pregel) or is_gated(bound))
    if opens and isinstance(bound, private.ToolNode) and not hasattr(type(bound), "__runtime_authz_gated__"):
        bound = gate_tool_node(bound, protection.profiles)
    for held in object_graph.walk_objects(object_graph.roots_of(node)):
        if is_guarded(held):
            yield held.name, facts_of(held).profiled
        elif not opens:
            continue
        elif isinstance(held, private.ToolNode) and held is not node.bound:
            guard_held(held, protection.profiles)
        elif isinstance(held, BaseTool) and not acts_by_itself(held):
            guard_in_place(held)
            yield held.name, protection.profiles.of(held)  # known to a planner before its first call
        elif is_remote(held) and gates_remote(held) is None:  # unless an instance decides its calls already
            held.__class__ = _remote_class(type(held), protection.run_opener)
    if opens:
        node.bound = gate_bound(bound, name, channels)
        private.reset_node(node)


def _protect_builder(builder: Any, protection: Protection) -> None:
    base = type(builder)
    owner = owner_of(builder)
    if owner is not None:
        if owner is not protection:
            raise AlreadyProtected(base.__name__)
        return

    def compile_(self: Any, *args: Any, **kwargs: Any) -> Any:
        protect(graph := base.compile(self, *args, **kwargs), protection)
        return graph

    builder.__class__ = private.subclass_like(base, {"__runtime_authz__": protection, "compile": compile_})


def _next(chunks: AsyncGenerator[Any, None]) -> Awaitable[Any]:
    """Return the next chunk of a stream, without registering it with the event loop."""
    # The event loop would close a registered stream while its consumer closes it.
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(firstiter=None, finalizer=None)
    try:
        return chunks.__anext__()
    finally:
        sys.set_asyncgen_hooks(*hooks)


def _without_config(graph: Any) -> Any:
    """Return the graph without its bound config, which the call's config includes."""
    if graph.config:
        graph = copy.copy(graph)
        graph.config = None
    return graph


def _protected_class(base: Any, protection: Protection) -> Any:
    """Make a subclass of a graph class whose `stream` and `astream` open a run."""
    run_opener = protection.run_opener

    def begin(graph: Any, input: Any, config: Any, kwargs: dict[str, Any], own: Any, ours: Any) -> Any:
        # Not a generator: the run that is open at the *call* counts, not the one at the first `next`.
        if graph.store is not None:
            gate_store(graph.store, protection.profiles)
        merged = private.merged_config(graph.config, config)
        owner = run_opener.owner(merged)
        if kwargs.get("stream_mode") is None:  # LangGraph would choose the mode by the caller's config
            mode = "values" if config is not None and private.task_id(config) else graph.stream_mode
            kwargs = {**kwargs, "stream_mode": mode}
        # LangGraph refuses a call without a thread only if `configurable` is empty. So leave out our handle.
        if (
            not isinstance(owner, Run)
            and graph.checkpointer
            and not ((merged.get("configurable") or {}).keys() - {HANDLE_KEY})
        ):
            return own(_without_config(graph), input, {**merged, "configurable": {}}, **kwargs)
        return ours(graph, input, merged, owner, kwargs)

    def chunks_of(own: Any, graph: Any, input: Any, at: Any, entered: Any, options: dict[str, Any]) -> Any:
        """Return stream, scope of its steps, and True if chunks contain configs."""
        given, config = input, entered
        if not isinstance(at, ChildEntry):
            given, config = entered
            if at.hidden is not None:
                graph, given = private.with_hidden_messages(graph, given, at.hidden)
            config = ambient.with_backstop(config)
            if graph.checkpointer:
                config = private.with_sync_durability(config)
        modes = options["stream_mode"]
        shows = not _SHOW_CONFIGS.isdisjoint((modes,) if isinstance(modes, str) else modes)
        return own(_without_config(graph), given, config, **options), run_scope(at.run, span=at.run.span), shows

    def stream(self: Any, input: Any, config: Any = None, **kwargs: Any) -> Iterator[Any]:
        return begin(self, input, config, kwargs, base.stream, _stream)  # type: ignore[no-any-return]

    def _stream(self: Any, input: Any, config: Any, owner: Owner, options: dict[str, Any]) -> Iterator[Any]:
        at = run_opener.enter(self.get_name(), input, config, owner, self)
        with at as entered:
            chunks, scope, shows = chunks_of(base.stream, self, input, at, entered, options)
            try:
                while True:
                    with scope:  # the run is current only during each step
                        try:
                            chunk = next(chunks)
                        except StopIteration:
                            return
                    yield without_handle(chunk) if shows else chunk
            except BaseException:
                with scope:
                    chunks.close()
                raise

    def astream(self: Any, input: Any, config: Any = None, **kwargs: Any) -> AsyncIterator[Any]:
        return begin(self, input, config, kwargs, base.astream, _astream)  # type: ignore[no-any-return]

    async def _astream(self: Any, input: Any, config: Any, owner: Owner, options: dict[str, Any]) -> AsyncIterator[Any]:
        at = run_opener.enter(self.get_name(), input, config, owner, self)
        async with at as entered:
            chunks, scope, shows = chunks_of(base.astream, self, input, at, entered, options)
            try:
                while True:
                    with scope:
                        try:
                            chunk = await _next(chunks)
                        except StopAsyncIteration:
                            return
                    yield without_handle(chunk) if shows else chunk
            except BaseException:  # cancel running tasks when the caller leaves, not at garbage collection
                with scope:
                    await chunks.aclose()
                raise

    def written(self: Any, config: Any, supersteps: Any) -> Flow[Any]:
        # `update_state` uses this.
        write = Perform(
            partial(base.bulk_update_state, self, config, supersteps),
            partial(base.abulk_update_state, self, config, supersteps),
        )
        if current_run() is not None or private.checkpointer_of(config):
            return run_opener.update_inside(self, config, write)
        return run_opener.update(self, config, supersteps, write)

    def bulk_update_state(self: Any, config: Any, supersteps: Any) -> Any:
        return drive(run_opener.pep, written(self, config, supersteps))

    async def abulk_update_state(self: Any, config: Any, supersteps: Any) -> Any:
        return await adrive(run_opener.pep, written(self, config, supersteps))

    own = {f.__name__: f for f in (stream, astream, bulk_update_state, abulk_update_state)}
    return private.subclass_like(base, {"__runtime_authz__": protection, "__deepcopy__": _deep_copied, **own})


def _deep_copied(graph: Any, _: dict[int, Any]) -> NoReturn:
    # LangGraph marks missing values by the identity of an object, which a deep copy loses.
    raise ConfigError(f"graph `{graph.get_name()}`", Code.DEEP_COPY)


def is_remote(value: object) -> bool:
    """Return True for a graph that another server runs."""
    return isinstance(value, PregelProtocol) and not isinstance(value, private.Pregel)


def gates_remote(value: object) -> object:
    """Return the root entry that decides a remote graph's calls, or None."""
    return getattr(type(value), "__runtime_authz_remote__", None)


class _Remote(ChildEntry):
    remote = True
    header = ""

    def __init__(self, run_opener: RunOpener, parent: Run, name: str, config: Mapping[str, Any], client: Any) -> None:
        super().__init__(run_opener, parent, name, config, None)
        self.profile = self.pep.child_profile(name)
        self.http = getattr(getattr(client, "http", None), "client", None)
        place = self.profile.url if self.profile is not None else None
        # INVARIANT: the credential goes only to the URL in the profile, so a client with another address is refused.
        # Without a client, nothing is sent, and the graph itself reports that.
        if place is not None and client is not None and not is_under(str(getattr(self.http, "base_url", "")), place):
            self.refuse = Code.REMOTE_URL

    def _given(self, run: Run) -> Flow[dict[str, str]]:
        if self.http is None or self.profile is None or self.profile.url is None or self.profile.named is None:
            return {}
        try:
            credential = yield from child_credential(run, self.profile.named)
        except CredentialError as exc:
            raise AuthzDenied(exc.code, new_id()) from None
        if (ticket := current_ticket()) is not None:  # so that the token is found in the tool's output
            ticket.track(credential.token)
        self.header = f"Bearer {credential.token}"
        _places[self.header] = self.profile.url, run.delegation
        _watch(self.http)
        return {"Authorization": self.header}

    def _leave(self, run: Run, *, raised: bool, cut: bool) -> Flow[None]:
        _places.pop(self.header, None)
        yield from super()._leave(run, raised=raised, cut=cut)


# `Authorization` header of a running call → the URL below which it may be sent, and the delegation's decision id.
_places: Final[dict[str, tuple[str, str]]] = {}


def _check(request: Any) -> None:
    """Refuse to send a credential to another URL than its profile's, by a redirect."""
    found = _places.get(request.headers.get("Authorization", ""))
    if found is not None and not is_under(str(request.url), found[0]):
        raise AuthzDenied(Code.REMOTE_URL, found[1])


async def _acheck(request: Any) -> None:
    _check(request)


def _watch(client: Any) -> None:
    check, hooks = _acheck if hasattr(client, "aclose") else _check, client.event_hooks
    if check not in hooks["request"]:
        client.event_hooks = {**hooks, "request": [*hooks["request"], check]}


def _remote_class(base: Any, run_opener: RunOpener) -> Any:
    def entry(self: Any, config: Any, client: Any) -> Any:
        merged = private.ensure_graph_config(config)
        parent = run_opener.owner(merged)
        name = str(getattr(self, "name", None) or getattr(self, "assistant_id", base.__name__))
        return _Remote(run_opener, parent, name, merged, client) if isinstance(parent, Run) else nullcontext({})

    # `invoke` and `ainvoke` use these.
    def stream(self: Any, input: Any, config: Any = None, **kwargs: Any) -> Iterator[Any]:
        with entry(self, config, getattr(self, "sync_client", None)) as headers:
            yield from base.stream(self, input, config, **_sent(kwargs, headers))

    async def astream(self: Any, input: Any, config: Any = None, **kwargs: Any) -> AsyncIterator[Any]:
        async with entry(self, config, getattr(self, "client", None)) as headers:
            async for chunk in base.astream(self, input, config, **_sent(kwargs, headers)):
                yield chunk

    # A write to a remote agent's state directs the agent, so it is decided like a call of the agent.
    def update_state(self: Any, config: Any, *args: Any, **kwargs: Any) -> Any:
        with entry(self, config, getattr(self, "sync_client", None)) as headers:
            return base.update_state(self, config, *args, **_sent(kwargs, headers))

    async def aupdate_state(self: Any, config: Any, *args: Any, **kwargs: Any) -> Any:
        async with entry(self, config, getattr(self, "client", None)) as headers:
            return await base.aupdate_state(self, config, *args, **_sent(kwargs, headers))

    def events(name: str) -> Any:
        def streamed(self: Any, input: Any, config: Any = None, **kwargs: Any) -> Any:
            if isinstance(run_opener.owner(private.ensure_graph_config(config)), Run):
                raise ConfigError(f"`{name}` of a remote graph is not decided; in a run, use `stream` or `invoke`")
            return getattr(base, name)(self, input, config, **kwargs)

        return streamed

    own = {f.__name__: f for f in (stream, astream, update_state, aupdate_state)}
    own |= {name: events(name) for name in ("stream_events", "astream_events")}
    return private.subclass_like(base, {"__runtime_authz_remote__": run_opener, **own})


def _sent(kwargs: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
    own = {k: v for k, v in (kwargs.get("headers") or {}).items() if k.lower() != "authorization"}
    return {**kwargs, "headers": {**own, **headers}} if headers else kwargs
