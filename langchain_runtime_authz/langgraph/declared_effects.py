"""Decide effects without a tool: `authz.effect`, and writes to a graph's store.

The request has `context.plan.source` `code`. So the shipped policy asks about side effects that no mandate covers.

Writes to a graph's store are decided if a profile for any of them is declared: `store.put`, `store.delete` or, for a
pattern of namespaces, `store.put:memories.*`. The longest matching pattern counts. A write that matches none is
unprofiled. Writes outside a run's context, or inside a permitted call that has a side effect, are not decided.
"""

from __future__ import annotations

import asyncio
import fnmatch
import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, TypeVar, cast, get_type_hints

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.callbacks.manager import BaseRunManager
from langchain_core.runnables import RunnableConfig, ensure_config
from langchain_core.tools import BaseTool, StructuredTool
from langgraph.errors import GraphInterrupt
from langgraph.prebuilt import ToolRuntime
from langgraph.runtime import Runtime
from langgraph.store.base import BaseStore, PutOp
from langgraph.types import StreamWriter

from langchain_runtime_authz._flow import FlowContext, both, run_within
from langchain_runtime_authz._validate import checked_text, wrong
from langchain_runtime_authz.credential.ticket import CurrentCall, current_call, current_scope
from langchain_runtime_authz.errors import AuthzDenied, Code, ConfigError
from langchain_runtime_authz.evaluation import deny
from langchain_runtime_authz.langgraph import call_messages, tool_execution
from langchain_runtime_authz.langgraph.decide_and_ask import decide_together
from langchain_runtime_authz.langgraph.graph_entry import AuthzParts
from langchain_runtime_authz.langgraph.node_calls import PATIENCE, NodeCalls
from langchain_runtime_authz.langgraph.private_api import subclass_like, weakly_cached
from langchain_runtime_authz.langgraph.run_context import current_run
from langchain_runtime_authz.langgraph.tool_arrival import CodeCall, NodeCall, OutsideCall, arrival_by_hand
from langchain_runtime_authz.langgraph.tool_execution import RunCode, ToolExecution
from langchain_runtime_authz.langgraph.tool_facts import Profiles, facts_of, guard_of, is_guarded
from langchain_runtime_authz.langgraph.tool_guard import guard_tool
from langchain_runtime_authz.pep.call import Call, Denial, Replay
from langchain_runtime_authz.pep.run import Flow, new_id
from langchain_runtime_authz.tool_profile import METADATA_KEY, ToolProfile, load_profiles

LAYER: Final = "declared effect"
PREFIX: Final = "store."
_PROPERTIES: Final[Mapping[str, Any]] = {"namespace": {"type": "string"}, "key": {"type": "string"}, "value": {}}
_SUPPLIED: Final = (Runtime, ToolRuntime, BaseStore, BaseCallbackManager, BaseRunManager)  # LangGraph supplies these
_SUPPLIED_TYPES: Final = (RunnableConfig, RunnableConfig | None, StreamWriter)
F = TypeVar("F", bound=Callable[..., Any])
Arrival = CodeCall | OutsideCall


class EffectTool(StructuredTool, defer_build=True):
    """Represents a declared effect where a tool is needed. It runs nothing."""

    by_application: ClassVar = True


def effect(
    authz: AuthzParts, name: str, /, *, profile: ToolProfile | Mapping[str, Any] | None = None,
    arguments: Callable[..., Mapping[str, Any]] | None = None, **given: Any,
) -> DeclaredEffect:  # fmt: skip
    """Declare the effect of a function or a block, to decide it like a tool call.

    ```python
    @authz.effect("send_mail", profile={"effect": "send", "critical": {"to": "principal"}, "text": ["body"]})
    def send(to: str, body: str) -> str: ...

    with authz.effect("send_mail", to=to, body=body) as call:
        smtp.send(to, body, key=call.idempotency_key)
    ```

    Args:
        authz: the `RuntimeAuthz` that decides.
        name: names the effect in policies, mandates, grants and records.
        profile: the effect's profile; by default the declared profile of this name. Without a profile, each call asks.
        arguments: maps the function's arguments to the call's, as for a node: `lambda state: {"code": state["code"]}`.
        **given: the arguments of a block.

    Raises:
        ConfigError: an argument is wrong.
    """
    checked_text("name", name)
    declared = load_profiles({name: profile})[name] if profile is not None else None
    return DeclaredEffect(authz.profiles, name, declared, arguments, given)


def declared_tool(
    profiles: Profiles, name: str, declared: ToolProfile | None, description: str, properties: Mapping[str, Any]
) -> BaseTool:
    """Return a guarded tool that represents an effect. `properties`: JSON schemas."""
    required = [name for name, one in properties.items() if "default" not in one]
    schema = {"type": "object", "properties": dict(properties), "required": required}
    held = {METADATA_KEY: declared} if declared is not None else None
    tool = EffectTool(name=name, description=description or name, args_schema=schema, metadata=held)
    guarded = guard_tool(tool, profiles)
    guard_of(guarded).by_application = True
    return guarded


def effect_arrival(tool: BaseTool, args: Mapping[str, Any]) -> Arrival:
    """Return the call of an effect. Raises `AuthzDenied` outside every run."""
    found = arrival_by_hand(tool, facts_of(tool)._replace(injected=frozenset()), args, ensure_config())
    if not isinstance(found, CodeCall | OutsideCall):
        raise AuthzDenied(Code.NO_RUN, deny(Code.NO_RUN).decision_id)
    return replace(found, layer=LAYER)


class EffectBlock(FlowContext[Any]):
    """A `with` or `async with` block's calls, decided together: all begin, or none."""

    output: Any = None
    _open = False  # the block was entered, and has not ended
    _node: NodeCalls | None = None  # the hand-written node that the calls are in

    def __init__(self, arrivals: Sequence[Arrival]) -> None:
        self._arrivals = arrivals

    def arriving(self) -> Sequence[Arrival]:
        """Return the calls that begin when the block is entered."""
        return self._arrivals

    def opened(self) -> Any:
        """Return the value of `with … as`."""
        return self

    @property
    def runs(self) -> bool:
        """True if the first call must run, because no earlier execution ran it."""
        return isinstance(self.begun[0], ToolExecution)

    def first_output(self) -> Any:
        """Return the first call's stored output. If it is not stored, raise."""
        result = call_messages.stored_result(getattr(self.begun[0], "result", None))
        if "content" not in result:  # the output was too long, or not JSON
            raise self.unrepeatable()
        return result["content"]

    def unrepeatable(self) -> AuthzDenied:
        """Return the denial of a call that ran before, if its output is not stored."""
        denied, run = AuthzDenied(Code.OUTCOME_UNKNOWN, new_id()), self._run
        run.pep.recent.refused(denied, run.scope, run.run_id)  # for `authz.explain`
        return denied

    def __enter__(self) -> Any:
        return self._started(super().__enter__())

    async def __aenter__(self) -> Any:
        return self._started(await super().__aenter__())

    def _started(self, entered: Any) -> Any:
        """Mark the calls as started. If cancelled earlier, they are released."""
        for one in self.begun:
            if isinstance(one, ToolExecution):
                one.admits(tool_execution.FUNCTION)
        return entered

    def _enter(self) -> Flow[Any]:
        arrivals = self.arriving()
        if self._open:
            raise ConfigError("the block of this effect is open; call `authz.effect` again for another one")
        self._open, self.begun = True, list[ToolExecution | Replay]()
        self.pep = arrivals[0].pep if arrivals else None
        return self._beginning(arrivals)

    def _beginning(self, arrivals: Sequence[Arrival]) -> Flow[Any]:
        calls: list[CodeCall] = []
        for one in arrivals:
            calls.append(one if isinstance(one, CodeCall) else (yield from one.in_run()))
        if calls:
            self._run, self._node = calls[0].run, calls[0].node if isinstance(calls[0], NodeCall) else None
            try:
                self.begun = yield from _begin(calls, self._node)
            except GraphInterrupt:
                if self._node is not None:
                    yield (tool_execution.Finish, self._node, PATIENCE)  # waits like `NodeCalls.leave`
                raise
        return self.opened()

    def _over(self, exc: BaseException | None, *, cut: bool) -> Flow[None]:
        failed, under_way, self._open = exc, [one for one in self.begun if isinstance(one, ToolExecution)], False
        concludes = tool_execution.ConcludeApart if isinstance(exc, GeneratorExit) else tool_execution.Conclude
        for one in under_way:
            failed = one.clean_error(failed) if failed is not None else None
        try:
            for one in reversed(under_way):
                if (over := one.end(failed, self.output)) is not None:
                    yield (concludes, over)
        finally:
            if under_way and self._node is not None:
                self._node.running -= 1
        if failed is not None and failed is not exc:
            raise failed from None

    def returns(self, value: Any) -> Any:
        """Return the call's output, filtered by its obligations."""
        one: Any = self.begun[0]
        self.output = one.clean(value)
        return self.output


@dataclass(eq=False, repr=False)
class DeclaredEffect(EffectBlock):
    """Decides the call of a function or block. A call that ran is not repeated."""

    _profiles: Profiles
    _name: str
    _declared: ToolProfile | None
    _arguments: Callable[..., Mapping[str, Any]] | None
    _given: Mapping[str, Any]

    def __call__(self, function: F) -> F:
        """Wrap a function, or copy a tool, to decide each call. Raises `ConfigError`."""
        is_tool = isinstance(function, BaseTool)
        if not (callable(function) or is_tool) or isinstance(function, type) or is_guarded(function):
            raise wrong(f"effect `{self._name}`", "a function, or a tool that nobody guards", function)
        if out := [*self._given, *(["arguments"] if self._arguments and is_tool else ())]:
            raise ConfigError(f"effect `{self._name}`: a function brings its own arguments; leave {out} out")
        if _is(inspect.isgeneratorfunction, function) or _is(inspect.isasyncgenfunction, function):
            raise ConfigError(f"effect `{self._name}`: a generator runs later; use `with authz.effect(...)` inside it")
        if isinstance(function, BaseTool):
            held = {METADATA_KEY: self._declared} if self._declared is not None else {}
            update = {"name": self._name, "metadata": {**(function.metadata or {}), **held}}
            copy = guard_tool(function.model_copy(update=update), self._profiles)
            guard_of(copy).by_application = True
            return copy  # a tool of the same class
        named, signature, left_out = self._arguments, inspect.signature(function), _left_out(function)
        # The schema gets the defaults, because a mandate need not order an argument with its default value.
        own = {n: p.default for n, p in signature.parameters.items() if n not in left_out and named is None}
        properties = {n: {"default": v} if isinstance(v, str | int | float | None) else {} for n, v in own.items()}
        properties |= self._named_arguments() if named is not None else {}
        tool = declared_tool(self._profiles, self._name, self._declared, inspect.getdoc(function) or "", properties)

        def flow(*args: Any, **kwargs: Any) -> Flow[Any]:
            def code(one: EffectBlock) -> Flow[Any]:
                return one.returns((yield (RunCode, run))) if one.runs else one.first_output()

            run = functools.partial(function, *args, **kwargs)
            given = _bound(signature, left_out, args, kwargs) if named is None else dict(named(*args, **kwargs))
            return run_within(EffectBlock([effect_arrival(tool, given)]), code)

        made: Any = functools.wraps(function)(both(flow)[_is(inspect.iscoroutinefunction, function)])
        made.__runtime_authz_effect__ = tool
        return made  # type: ignore[no-any-return]  # of the function's own signature

    def _named_arguments(self) -> dict[str, Any]:
        """Return name → empty schema, for the arguments that the profile names."""
        found = self._profiles.declared.get(self._name) or self._declared
        paths = [path for named in found.named().values() for path in named] if found is not None else []
        return {path.split(".")[0]: {} for path in sorted(paths)}

    def arriving(self) -> Sequence[Arrival]:
        tool = declared_tool(self._profiles, self._name, self._declared, "", self._named_arguments())
        return [effect_arrival(tool, self._given)]

    def opened(self) -> CurrentCall:
        if not self.runs:
            raise self.unrepeatable()
        return current_call()


def _begin(calls: Sequence[CodeCall], node: NodeCalls | None) -> Flow[list[ToolExecution | Replay]]:
    run, config, ahead = calls[0].run, calls[0].config, Counter[Any]()
    placed, batch = list[Call](), new_id() if calls[1:] else None
    for one in calls:
        placed.append(replace(one.call, place=one.place(ahead[one.key]), batch=batch))
        ahead[one.key] += 1
    deciding = decide_together if node is None else node.decide_all
    waiting = yield from deciding(run, placed, config)
    for one, pending in zip(calls, waiting, strict=True):
        one.note(pending)
    denied = next((pending.verdict for pending in waiting if isinstance(pending.verdict, Denial)), None)
    if denied is not None:
        for pending in waiting:
            yield from pending.give_back()
        call_messages.answer_message(denied, None)  # raises
    begun: list[ToolExecution | Replay] = []
    for one, pending in zip(calls, waiting, strict=True):
        arrived = one.decided(pending)
        if isinstance(pending.verdict, Replay):
            begun.append(pending.verdict)
        else:
            execution = ToolExecution(guard_of(cast("BaseTool", one.call.input.tool)), arrived)
            execution.begin()
            begun.append(execution)
    if node is not None and any(isinstance(one, ToolExecution) for one in begun):
        node.running += 1
    return begun


def _bound(
    signature: inspect.Signature, left_out: frozenset[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    given: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            given |= value if given.keys().isdisjoint(value) else {name: value}  # `f(to, /, **more)` may get two `to`
        elif name not in left_out and not isinstance(value, _SUPPLIED):
            given[name] = list(value) if isinstance(value, tuple) else value
    return given


def _is(kind: Callable[[Any], bool], function: Any) -> bool:
    return kind(function) or kind(getattr(type(function), "__call__", None))  # noqa: B004  (its kind is asked)


def _left_out(function: Any) -> frozenset[str]:
    """Return the parameters that callers do not choose, like `self` or a config."""
    first = next(iter(inspect.signature(function).parameters), "")
    try:
        hints = get_type_hints(function if inspect.isroutine(function) else type(function).__call__)
    except Exception:  # noqa: BLE001  (annotations that cannot be resolved are ignored)
        hints = {}
    return frozenset({first} & {"self", "cls"}).union(name for name, hint in hints.items() if hint in _SUPPLIED_TYPES)


def governs_stores(profiles: Profiles) -> bool:
    """Return True if a profile for writes to stores is declared."""
    return any(name.startswith(PREFIX) for name in profiles.declared)


def gate_store(store: object, profiles: Profiles) -> None:
    """Guard a store in place, so that each write in a run is decided."""
    gated = hasattr(type(store), "__runtime_authz_store__")
    if isinstance(store, BaseStore) and not gated and governs_stores(profiles):
        store.__class__ = _gated_class(type(store))  # nodes may hold this object, so it is changed in place


@weakly_cached
def _gated_class(base: Any) -> Any:
    def write(name: str) -> Any:
        own = getattr(base, name)
        signature = inspect.signature(own)

        def batch(store: Any, ops: Iterable[Any]) -> Flow[list[Any]]:
            def code(left: _StoreWrites) -> Flow[list[Any]]:
                return left.all((yield (RunCode, own, store, left.ops)))

            return run_within(_StoreWrites(store, list(ops)), code)

        def put(*given: Any, **kwargs: Any) -> Flow[Any]:
            def code(left: _StoreWrites) -> Flow[Any]:
                return (yield (RunCode, run)) if left.ops else None

            run = functools.partial(own, *given, **kwargs)
            store, namespace, key, *more = signature.bind(*given, **kwargs).arguments.values()
            value = more[0] if name.endswith("put") else None
            return run_within(_StoreWrites(store, [PutOp(namespace, key, value)]), code)

        blocking, awaiting = both(batch) if name.endswith("batch") else both(put)
        return functools.wraps(own)(awaiting if name.startswith("a") else blocking)

    own = {name: write(name) for form in ("put", "delete", "batch") for name in (form, f"a{form}")}
    return subclass_like(base, {**own, "__slots__": (), "__runtime_authz_store__": True})


class _StoreWrites(EffectBlock):
    """The writes in a batch of store operations, decided together."""

    def __init__(self, store: Any, ops: Sequence[Any]) -> None:
        self._store, self._given, self.ops = store, ops, ops

    def arriving(self) -> Sequence[Arrival]:
        if (profiles := _governing(self._store)) is None:
            return []
        return [_write(profiles, op) for op in self._given if isinstance(op, PutOp)]

    def opened(self) -> _StoreWrites:
        """Remove from `ops` the writes that an earlier execution of the node made."""
        if self.begun:
            begun = iter(self.begun)
            self.ops = [op for op in self._given if not isinstance(op, PutOp) or isinstance(next(begun), ToolExecution)]
        return self

    def all(self, results: Sequence[Any]) -> list[Any]:
        """Return a result for each given operation; None for one removed from `ops`."""
        found = dict(zip(map(id, self.ops), results, strict=True))
        return [found.get(id(op)) for op in self._given]


def _governing(store: Any) -> Profiles | None:
    run, scope = current_run(), current_scope.get()
    if run is None or not governs_stores(profiles := cast("Profiles", run.pep.tools)):
        return None
    if type(scope) is ToolExecution:
        call = scope.call
        if call.tool.startswith(PREFIX) or (call.profiled and call.profile.side_effect):
            return None
    with suppress(RuntimeError):  # no loop runs here
        # A batching store's background task performs writes that were decided already, in its first caller's context.
        if (own := getattr(store, "_task", None)) is not None and own is asyncio.current_task():
            return None
    return profiles


def _write(profiles: Profiles, op: PutOp) -> Arrival:
    name, path = f"{PREFIX}{'delete' if op.value is None else 'put'}", ".".join(op.namespace)  # parts have no dots
    own = [n for n in profiles.declared if n.startswith(f"{name}:")]
    name = max((n for n in own if fnmatch.fnmatchcase(f"{name}:{path}", n)), key=len, default=name)
    if name not in profiles.writes:
        profiles.writes[name] = declared_tool(profiles, name, None, "Write to the graph's store.", _PROPERTIES)
    value = {} if op.value is None else {"value": op.value}
    return effect_arrival(profiles.writes[name], {"namespace": path, "key": op.key, **value})
