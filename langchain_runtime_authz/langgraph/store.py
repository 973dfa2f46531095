"""The enforcement point of a graph's store: writes by nodes and tools are effects, once a profile is declared for them.

A profile for writes has one of these names: `store.put`, `store.delete`, or one of them with a pattern of namespaces,
like `store.put:memories.*`. The longest pattern that fits counts. If any such profile is declared, a write that none of
them fits is unprofiled. The arguments are `namespace` (its labels joined by dots), `key` and `value`.

These writes pass undecided: those outside every run, those of a thread without the run's context, and those inside a
permitted call of a tool with a declared side effect, which was decided with its own arguments.
"""

from __future__ import annotations

import asyncio
import fnmatch
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, cast

from langchain_core.tools import BaseTool
from langgraph.store.base import BaseStore, PutOp

from langchain_runtime_authz.credential.current_call import current_scope
from langchain_runtime_authz.langgraph.effect import Together, arrive, declared_tool
from langchain_runtime_authz.langgraph.kept import kept, lookalike
from langchain_runtime_authz.langgraph.run_context import running
from langchain_runtime_authz.langgraph.tool_arrival import Arrival
from langchain_runtime_authz.langgraph.tool_execution import ToolExecution
from langchain_runtime_authz.langgraph.tool_profiles import Profiles

PREFIX: Final = "store."
_PROPERTIES: Final[Mapping[str, Any]] = {"namespace": {"type": "string"}, "key": {"type": "string"}, "value": {}}


def governs_stores(profiles: Profiles) -> bool:
    """Return True if any profile for writes is declared."""
    return any(name.startswith(PREFIX) for name in profiles.declared)


def gate_store(store: object, profiles: Profiles) -> None:
    """Put the enforcement point into a store, in place: nodes may hold it themselves.

    It belongs to no instance: the run around a write decides.
    """
    base: Any = type(store)
    gated = getattr(base, "__runtime_authz_store__", False)
    if isinstance(store, BaseStore) and not gated and governs_stores(profiles):
        store.__class__ = _gated_class(base)


@kept
def _gated_class(base: Any) -> Any:
    @functools.wraps(base.batch)
    def batch(self: Any, ops: Iterable[Any]) -> list[Any]:
        with _Writes(self, list(ops)) as left:
            results: list[Any] = left.all(base.batch(self, left.ops))
        return results

    @functools.wraps(base.abatch)
    async def abatch(self: Any, ops: Iterable[Any]) -> list[Any]:
        async with _Writes(self, list(ops)) as left:
            results: list[Any] = left.all(await base.abatch(self, left.ops))
        return results

    @functools.wraps(base.put)
    def put(self: Any, namespace: tuple[str, ...], key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        with _Writes(self, [PutOp(namespace, key, value)]) as left:
            return base.put(self, namespace, key, value, *args, **kwargs) if left.ops else None

    @functools.wraps(base.aput)
    async def aput(self: Any, namespace: tuple[str, ...], key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        async with _Writes(self, [PutOp(namespace, key, value)]) as left:
            return await base.aput(self, namespace, key, value, *args, **kwargs) if left.ops else None

    @functools.wraps(base.delete)
    def delete(self: Any, namespace: tuple[str, ...], key: str) -> Any:
        with _Writes(self, [PutOp(namespace, key, None)]) as left:
            return base.delete(self, namespace, key) if left.ops else None

    @functools.wraps(base.adelete)
    async def adelete(self: Any, namespace: tuple[str, ...], key: str) -> Any:
        async with _Writes(self, [PutOp(namespace, key, None)]) as left:
            return await base.adelete(self, namespace, key) if left.ops else None

    own: dict[str, Any] = {f.__name__: f for f in (batch, abatch, put, aput, delete, adelete)}
    return lookalike(base, {**own, "__slots__": (), "__runtime_authz_store__": True})


class _Writes(Together):
    """The writes among operations, decided together. Inside, `ops` are those that are to be carried out."""

    __slots__ = ("_given", "_store", "ops")

    def __init__(self, store: Any, ops: Sequence[Any]) -> None:
        super().__init__()
        self._store, self._given = store, ops
        self.ops: Sequence[Any] = ops

    def arriving(self) -> Sequence[Arrival]:
        """Return the writes; none if they pass undecided."""
        if (profiles := _governing(self._store)) is None:
            return []
        return [arrive(_tool(profiles, op), _arguments(op)) for op in self._given if isinstance(op, PutOp)]

    def opened(self) -> _Writes:
        """Leave out the writes that happened before, when the node ran for the first time."""
        if self.begun:
            begun = iter(self.begun)
            self.ops = [op for op in self._given if not isinstance(op, PutOp) or isinstance(next(begun), ToolExecution)]
        return self

    def all(self, results: Sequence[Any]) -> list[Any]:
        """Return a result for each operation that was given."""
        found = dict(zip(map(id, self.ops), results, strict=True))
        return [found.get(id(op)) for op in self._given]


def _governing(store: Any) -> Profiles | None:
    """Return the profiles that writes are decided under here; `None` if they pass."""
    run, scope = running(), current_scope.get()
    if run is None or not governs_stores(profiles := cast("Profiles", run.engine.tools)):
        return None
    if type(scope) is ToolExecution:
        call = scope.call
        if call.tool.startswith(PREFIX) or (call.profiled and call.profile.side_effect):
            return None
    # A store that collects writes carries them out in a task of its own, which has the context of its first caller.
    return None if (own := getattr(store, "_task", None)) is not None and own is _current_task() else profiles


def _current_task() -> object:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop runs here
        return None


def _tool(profiles: Profiles, op: PutOp) -> BaseTool:
    name = f"{PREFIX}{'delete' if op.value is None else 'put'}"
    fits = [
        n for n in profiles.declared if n.startswith(f"{name}:") and fnmatch.fnmatchcase(_path(op), n[len(name) + 1 :])
    ]
    name = max(fits, key=len, default=name)
    if name not in profiles.writes:
        profiles.writes[name] = declared_tool(profiles, name, None, "Write to the graph's store.", _PROPERTIES)
    return profiles.writes[name]


def _path(op: PutOp) -> str:
    return ".".join(op.namespace)  # labels have no dots


def _arguments(op: PutOp) -> dict[str, Any]:
    own = {"namespace": _path(op), "key": op.key}
    return own if op.value is None else {**own, "value": op.value}
