"""Find a graph's coverage rows without running code, and add run-time counts."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import FunctionType, MethodType
from typing import Any, Final

from langchain_core.tools import BaseTool
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver, PersistentDict
from langgraph.graph import StateGraph

from langchain_runtime_authz.agent_profile import ANY
from langchain_runtime_authz.coverage.code_scan import code_of, provider_rows, secrets_of, tools_in_code
from langchain_runtime_authz.coverage.observers import ObservedEffect, what_is_unseen
from langchain_runtime_authz.coverage.report import AT_RUN_TIME, UNSEEN, CoverageReport, Part
from langchain_runtime_authz.errors import ConfigError
from langchain_runtime_authz.langgraph import object_graph
from langchain_runtime_authz.langgraph import private_api as private
from langchain_runtime_authz.langgraph.declared_effects import LAYER, EffectTool, governs_stores
from langchain_runtime_authz.langgraph.model_call import held_by_model
from langchain_runtime_authz.langgraph.node_gate import is_gated
from langchain_runtime_authz.langgraph.protect import Protection, agent_names, gates_remote, is_remote, owner_of
from langchain_runtime_authz.langgraph.tool_facts import IN_PLACE, facts_of, is_guarded
from langchain_runtime_authz.langgraph.tool_guard import acts_by_itself
from langchain_runtime_authz.pep.decision_counts import PointCounts, Target

_MODEL_NOTES: Final[Mapping[tuple[str, ...], str]] = {
    (): "held by code without an enforcement point",
    ("middleware",): "models that middleware before ours calls are not seen: call `authz.protect` on the root graph",
}
_ELSEWHERE: Final = "runs elsewhere, its steps are not seen: protect it there, and name its `url` in `agents`"
_UNPROTECTED: Final = "not protected: call `authz.protect` on the root graph"
_UNGATED: Final = "not gated: call `authz.protect` after the last change of the graph"
_BY_CODE: Final = "held by code: calls in a bare thread, of its bare function and outside runs pass; `authz.guard` it"
_DECLARE: Final = "declare it with `authz.effect`"
_OWN_THREAD: Final = "agent `{}` has a checkpointer: on a thread of its own, its questions do not reach the caller"
_CACHED: Final = "cache_policy: a cached result is served without a decision"
# Places of code that also runs before a run begins, or while a caller reads events.
_OUTSIDE_RUNS: Final = frozenset(("checkpointer", "stream_transformers"))
_TRANSFORMS: Final = ("init", "process", "finalize", "fail", "aprocess", "afinalize", "afail")
_UNPICKLERS: Final = (pickle.load, pickle.loads, pickle.Unpickler)


def coverage_of(graph: Any, protection: Protection) -> CoverageReport:
    """Return the coverage report of a graph."""
    if not isinstance(graph, private.Pregel):
        raise ConfigError(f"`coverage` takes a compiled graph, not {type(graph).__name__}")
    held = list(object_graph.reached_objects(graph, deep=True))
    found = [v for v in held if isinstance(v, object_graph.FoundGraph)]
    tools = [v for v in held if isinstance(v, BaseTool)]
    nodes = [node.bound for f in found for node in f.graph.nodes.values()]
    bound = [t for node in nodes if isinstance(node, private.ToolNode) for t in node.tools_by_name.values()]
    look = _Look(
        protection,
        hooked=owner_of(graph) is protection,
        reached=frozenset(id(f.graph) for f in object_graph.graphs_in(graph)),
        bound=frozenset(i for t in bound for i in (id(t), *_made_of(t))),
        functions={i: tool.name for tool in tools for i in _identities(object_graph.functions_of(tool))},
    )
    rows = [row for i, f in enumerate(found) for row in look.graph(f, root=i == 0)]
    pep = protection.run_opener.pep
    rows = _with_seen(rows, pep.tally.of(graph.get_name()))
    pdp = pep.evaluator.pdp.name
    if protection.run_opener.development:
        pdp += "; DEVELOPMENT: runs without a subject act as the user `developer`"
    if pep.observer is not None:
        rows = _with_observed(rows, (one for one in pep.observer.seen if one.graph == graph.get_name()))
    unknown = {*pep.agents} - {ANY, *agent_names(graph), *(row.graph for row in rows)}
    blind = what_is_unseen() if pep.observer is not None else ""
    return CoverageReport(graph.get_name(), pdp, tuple(_numbered(rows)), blind, tuple(sorted(unknown)))


def _loop_code(graph: Any) -> Iterator[tuple[str, Any]]:
    """Yield (route, code) for application code that a graph runs outside its nodes."""
    for name, channel in graph.channels.items():
        yield f"reducer of {name}", getattr(channel, "operator", None)
    if not type(graph.checkpointer).__module__.startswith(("langgraph.", "builtins")):
        yield "checkpointer", [v for v in vars(type(graph.checkpointer)).values() if isinstance(v, FunctionType)]
    for made in getattr(graph, "stream_transformers", ()):
        hooks = [getattr(made, name, None) for name in _TRANSFORMS] if isinstance(made, type) else [made]
        yield "stream_transformers", hooks
    for schema in getattr(getattr(graph, "builder", None), "schemas", ()):
        for name, function in validators_of(schema):
            yield f"{schema.__name__}.{name}", function


def _identities(functions: Iterable[Any]) -> Iterator[int]:
    for function in functions:
        found = function
        while found is not None:
            yield id(getattr(found, "__func__", found))
            found = getattr(found, "__wrapped__", None)


def _made_of(tool: BaseTool) -> set[object]:
    return {(tool.name, i) for i in _identities(object_graph.functions_of(tool))}


@dataclass(frozen=True, slots=True)
class _Look:
    protection: Protection
    hooked: bool  # below a protected root, the callback backstop sees every tool that starts
    reached: frozenset[int]
    bound: frozenset[object]  # the tools of the graphs' tool nodes, and what they are made of
    functions: Mapping[int, str] = field(repr=False)
    searched: dict[int, BaseTool] = field(default_factory=dict)

    def graph(self, found: object_graph.FoundGraph, *, root: bool) -> Iterator[Part]:
        graph, label = found.graph, found.label
        owner = owner_of(graph)
        layers: tuple[str, ...] = ()
        note = ""
        if owner is self.protection:
            layers = ("root entry" if root else "child entry",)
        elif owner is not None:
            note = "another RuntimeAuthz protects it"
        elif root or id(graph) in self.reached:
            note = _UNPROTECTED
        else:
            note = "not found by `protect`: call `authz.protect` on it too"
        route = f"{found.parent}/{found.route}" if not root else ""
        yield Part("entry" if root else "agent", label, label, layers, note, route)
        saver = graph.checkpointer
        if saver is not None and not isinstance(saver, bool) and (why := _unpickles(saver)):
            yield Part("checkpointer", type(saver).__name__, label, (), why)
        if graph.store is not None:
            governed = governs_stores(self.protection.profiles)
            note = "" if governed else "what nodes and tools write there is not decided: declare a profile `store.put`"
            yield Part("store", type(graph.store).__name__, label, ("store gate",) if layers and governed else (), note)
        for route, value in _loop_code(graph):
            yield from self._loop_tools(value, label, route)
        for name, node in graph.nodes.items():
            yield from self._node(name, node, graph, label)

    def _node(self, name: str, node: private.PregelNode, graph: Any, label: str) -> Iterator[Part]:
        bound = node.bound
        if bound is not private.DEFAULT_BOUND and (node.cache_policy is not None or graph.cache_policy is not None):
            yield Part("cached node", name, label, (), _CACHED, name)
        held = list(object_graph.walk_objects(object_graph.roots_of(node), deep=True, into_tools=False))
        if len(held) >= object_graph.MAX_WALKED:
            note = f"its code holds more than {object_graph.MAX_WALKED} values; some were not searched"
            yield Part("unsearched", name, label, (), note, name)
        gated: tuple[str, ...] = ("node gate",) if is_gated(bound) else ()
        if bound is not private.DEFAULT_BOUND and not isinstance(bound, private.Pregel):  # a graph has its own rows
            acts, missed = code_of(node)
            unseen = f"{UNSEEN}; not followed: {', '.join(missed)}" if missed else UNSEEN
            note = _UNGATED if not gated else "" if isinstance(bound, private.ToolNode) else unseen
            yield Part("node", name, label, gated, note, name)
            decided = governs_stores(self.protection.profiles)
            if seen := ", ".join(str(s) for s in acts if not (decided and s.kind == "store")):
                yield Part("effect", name, label, (), f"{seen}: {_DECLARE}", name)
        own = bound.tools_by_name.values() if isinstance(bound, private.ToolNode) else ()
        for tool in own:
            yield from self._tool(tool, label, name, ("tool node gate",) if gated else ())
        yield from self._held(held, label, name, gated, own, known=False)

    def _held(
        self, held: list[Any], label: str, route: str, gated: tuple[str, ...], own: Iterable[BaseTool], *, known: bool
    ) -> Iterator[Part]:
        """Yield rows for values in a node or tool. `known`: skip tools with a row."""
        for value in held:
            if not isinstance(value, BaseTool):
                yield from self._value(value, label, route, gated, held)
            elif not self._is_bound(value) and not (known and id(value) in self.searched):
                yield from self._tool(value, label, route, None)
        yield from self._bare_functions(held, label, route, own)

    def _is_bound(self, tool: BaseTool) -> bool:
        """Return True if a tool node holds the tool or a guarded copy of it."""
        made_of = _made_of(tool)
        return id(tool) in self.bound or (not is_guarded(tool) and bool(made_of) and made_of <= self.bound)

    def _loop_tools(self, value: Any, label: str, route: str) -> Iterator[Part]:
        """Yield rows for the tools in code that a graph runs outside its nodes."""
        outside = route in _OUTSIDE_RUNS
        look = replace(self, hooked=False) if outside else self
        for tool in object_graph.walk_objects([value], deep=True, into_tools=False):
            if isinstance(tool, BaseTool):
                for row in look._tool(tool, label, route, None):
                    unseen = outside and row.kind == "tool" and not row.layers
                    yield replace(row, note="runs outside every run, unseen: `authz.guard` it") if unseen else row

    def _value(
        self, value: Any, label: str, route: str, gated: tuple[str, ...], around: Iterable[Any]
    ) -> Iterator[Part]:
        """Yield rows for a value. `around`: all values in the same node or tool."""
        if isinstance(value, object_graph.model_types()):
            owners: Iterator[Any] = (v.__self__ if isinstance(v, MethodType) else v for v in around)
            # Recognised without importing langchain.
            ours = (o for o in owners if getattr(type(o), "__runtime_authz_middleware__", False) is True)
            listed = any(getattr(o, "_run_opener", None) is self.protection.run_opener for o in ours)
            hooked = bool(gated) and self.hooked  # the backstop needs an enforcement point around the call
            layers = (*gated, *(("middleware",) if listed else ()), *(("callback backstop",) if hooked else ()))
            yield Part("model", type(value).__name__, label, layers, _MODEL_NOTES.get(layers, ""), route)
            yield from provider_rows(held_by_model(value), label, route, strict=False)
        elif isinstance(value, dict) and isinstance(value.get("graph_id"), str) and isinstance(value.get("name"), str):
            # An agent of another server by its description: deepagents' `AsyncSubAgent`.
            yield Part("remote graph", value["name"], label, (), _ELSEWHERE, route)
        elif isinstance(value, Mapping):
            yield from provider_rows(tools_in_code(value), label, route, strict=False)
        elif isinstance(value, list | tuple):
            yield from provider_rows(value, label, route, strict=True)
        elif isinstance(value, StateGraph):
            layers = ("protected builder",) if owner_of(value) is self.protection else ()
            note = "" if layers else "a builder that is compiled at run time: call `authz.protect` on the builder"
            yield Part("agent", type(value).__name__, label, layers, note, route)
        elif isinstance(value, private.TaskFunction):
            name = str(getattr(value, "__name__", "task"))
            note = f"runs within its entrypoint's gate; {UNSEEN}"
            yield Part("task", name, label, gated, note, route)
            if value.cache_policy is not None:
                yield Part("cached node", name, label, (), _CACHED, f"{route}/{name}")
        elif is_remote(value):
            name = str(getattr(value, "name", None) or type(value).__name__)
            entry = self.protection.run_opener
            profile = entry.pep.child_profile(name)
            sent = gates_remote(value) is entry and profile is not None and profile.url
            yield Part("remote graph", name, label, ("child entry",) if sent else (), _ELSEWHERE, route)

    def _tool(self, tool: BaseTool, label: str, route: str, node: tuple[str, ...] | None) -> Iterator[Part]:
        guarded = is_guarded(tool)
        own = LAYER if isinstance(tool, EffectTool) else "tool guard"
        layers = (*(node or ()), *((own,) if guarded else ()))
        note = _UNPROTECTED
        if layers:
            profiled = facts_of(tool).profiled if guarded else self.protection.profiles.of(tool)
            note = "" if profiled.declared else f"unprofiled: {profiled.why}"
            if names := ", ".join(dict(validators_of(tool.args_schema))):
                note = "; ".join(filter(None, (note, f"its schema's validators run before the decision: {names}")))
        elif self.hooked and acts_by_itself(tool):
            note = "its class overrides an entry point without callbacks: `authz.guard` it"
        elif self.hooked:
            layers = ("tool guard" if hasattr(type(tool), IN_PLACE) else "callback backstop",)
            profiled = self.protection.profiles.of(tool)
            note = _BY_CODE if profiled.declared else f"unprofiled: {profiled.why}; {_BY_CODE}"
        held = list(object_graph.walk_objects(object_graph.functions_of(tool), deep=True, into_tools=False))
        keeping = [v for v in held if isinstance(v, private.Pregel) and isinstance(v.checkpointer, BaseCheckpointSaver)]
        note = "; ".join(filter(None, (note, *(_OWN_THREAD.format(v.get_name()) for v in keeping))))
        yield Part("tool", tool.name, label, layers, note, route)
        if id(tool) in self.searched:
            return  # its contents have rows already
        self.searched[id(tool)] = tool
        for where in dict.fromkeys(secrets_of(tool)):
            note = "a long-lived secret: use `current_call().credential()`, or keep it outside this process"
            yield Part("secret", tool.name, label, (), note, f"{route}/{where}")
        yield from self._held(held, label, f"{route}/{tool.name}", layers, (tool,), known=True)

    def _bare_functions(self, held: list[Any], label: str, route: str, own: Iterable[BaseTool]) -> Iterator[Part]:
        """Yield a row for each function of a tool that code may call without the tool."""
        known = {i for t in own for i in _identities(object_graph.functions_of(t))}
        known |= {id(v) for one in held if isinstance(one, list | tuple) for v in one}  # models are bound to lists
        for value in held:
            if isinstance(value, FunctionType | MethodType):
                ident = id(getattr(value, "__func__", value))
                name = self.functions.get(ident)
                if name is not None and ident not in known:
                    known.add(ident)
                    note = f"the function of tool `{name}` is held by plain code: call the tool instead"
                    yield Part("function", name, label, (), note, route)


def _unpickles(saver: Any) -> str:
    """Return why loading a checkpoint may run code; "" if it cannot."""
    if isinstance(getattr(saver, "storage", None), PersistentDict):
        return "its file is read by pickle, which runs what the file says: use a database"
    serde, seen = getattr(saver, "serde", None), 0
    while serde is not None and seen < 5:  # noqa: PLR2004  (a wrapper in a wrapper is rare)
        if getattr(serde, "pickle_fallback", False):
            return "pickle_fallback: a checkpoint can run code: leave it off"
        loads = getattr(type(serde), "loads_typed", None)
        known = type(serde).__module__.startswith("langgraph.checkpoint.serde.")
        used = object_graph.objects_loaded_by(loads) if isinstance(loads, FunctionType) and not known else ()
        if any(v is u for v in used for u in _UNPICKLERS):
            return f"{type(serde).__name__} unpickles, so a checkpoint can run code: use JsonPlusSerializer"
        if private.imports_anything(serde) and not isinstance(saver, InMemorySaver):
            how = "set LANGGRAPH_STRICT_MSGPACK=true or `allowed_msgpack_modules`"
            return f"its store can have any callable imported and called: {how}"
        serde, seen = getattr(serde, "serde", None), seen + 1
    return ""


def _with_seen(rows: list[Part], counted: Mapping[Target, tuple[tuple[str, ...], PointCounts]]) -> list[Part]:
    """Add run-time counts to rows, and a row for each part seen only at run time."""
    totals = {target: total for target, (_, total) in counted.items()}
    known = {(r.graph, r.kind, r.name) for r in rows if r.layers}
    seen = [replace(r, seen=totals.get((r.graph, r.kind, r.name), r.seen)) if r.layers else r for r in rows]
    note = "brought along or made at run time"
    return seen + [
        Part(kind, name, agent, layers, note, AT_RUN_TIME, total)
        for (agent, kind, name), (layers, total) in counted.items()
        if (agent, kind, name) not in known
    ]


def _with_observed(rows: list[Part], observed: Iterable[ObservedEffect]) -> list[Part]:
    """Add observed effects to the rows' notes, and rows for undeclared effects."""
    seen: dict[tuple[str, str, str], list[str]] = {}
    for one in observed:
        kind = {"node": "effect", "thread": "entry"}.get(one.by, one.by)
        seen.setdefault((kind, one.agent, one.agent if kind == "entry" else one.name), []).append(str(one))
    found = []
    for row in rows:
        texts = ", ".join(seen.pop((row.kind, row.graph, row.name), []))
        by = "threads without a run" if row.kind == "entry" else "observed"
        found.append(replace(row, note=f"{row.note}; {by}: {texts}".removeprefix("; ")) if texts else row)
    return found + [
        Part(kind, name, agent, (), f"observed: {', '.join(texts)}: {_DECLARE}", name)
        for (kind, agent, name), texts in seen.items()
        if kind == "effect"
    ]


# Kinds with several rows per route. Equal rows of other kinds are one finding.
_SEVERAL: Final = frozenset(("agent", "node", "tool", "model"))


def _numbered(rows: Iterable[Part]) -> Iterator[Part]:
    """Yield each row once, and set `place` in rows that would share an id."""
    places = Counter[str]()
    told: set[Part] = set()
    for row in rows:
        if row in told and row.kind not in _SEVERAL:
            continue
        told.add(row)
        yield replace(row, place=places[row.id])
        places[row.id] += 1


def validators_of(schema: object) -> Iterator[tuple[str, Any]]:
    """Yield name and function of a pydantic schema's validators, inherited ones too."""
    decorators = getattr(schema, "__pydantic_decorators__", None)
    for kind in ("validators", "field_validators", "root_validators", "model_validators"):
        for name, found in getattr(decorators, kind, {}).items():
            yield name, found.func
