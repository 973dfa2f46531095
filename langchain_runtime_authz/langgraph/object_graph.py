"""Find the graphs, tools, models and functions that an object refers to.

With `deep`, also search attributes of application objects. Graphs and models are found but not searched, because the
coverage report lists them on their own.
"""

from __future__ import annotations

import dis
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from inspect import unwrap
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any, Final

from langchain_core.language_models import BaseLanguageModel
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langgraph.graph import StateGraph
from langgraph.pregel.protocol import PregelProtocol

from langchain_runtime_authz.langgraph.private_api import DEFAULT_BOUND, Pregel, PregelNode, TaskFunction, ToolNode

AnyGraph = Pregel[Any, Any, Any, Any]

DECISIONS: Final = "langchain_core.decisions.base"  # slow to import, and rarely used

MAX_HELD: Final = 1000  # items of a list or mapping; a longer one is data, not agents
MAX_WALKED: Final = 20_000  # number of values searched from one node
MAX_DEPTH: Final = 3  # levels of attributes that `deep` searches in an object

# Module-level functions of these packages hold no agents. Their closures may, and are followed.
_KNOWN = "langchain langchain_core langchain_runtime_authz langgraph langsmith opentelemetry pydantic pydantic_core"
LIBRARIES: Final = sys.stdlib_module_names.union(_KNOWN.split(), ["typing_extensions"])
_SCALARS: Final = (str, bytes, bytearray, int, float, complex, type(None))
_LEAVES: Final = (*_SCALARS, type, ModuleType, CodeType, BuiltinFunctionType)
_PLAIN: Final = frozenset(_LEAVES)
_OF: Final = "__runtime_authz_of__"  # attribute of a guarded tool's function: the original
_CONTAINERS: Final = (list, tuple, set, frozenset, deque)


@dataclass(frozen=True, slots=True)
class FoundGraph:
    """A graph, its agent's name (`label`), and its parent's label and node (`route`)."""

    graph: AnyGraph
    label: str
    parent: str = ""
    route: str = ""


def graphs_in(root: AnyGraph) -> Iterator[FoundGraph]:
    """Yield `root` and each graph that its code can run, also inside a tool."""
    return (value for value in reached_objects(root) if isinstance(value, FoundGraph))


def reached_objects(root: AnyGraph, *, deep: bool = False) -> Iterator[Any]:
    """Yield each object that `root` refers to, once. Graphs come as `FoundGraph`s."""
    walked: dict[Any, Any] = {id(root): root}
    todo = deque([FoundGraph(root, root.get_name())])
    while todo:
        yield (found := todo.popleft())
        # Tool nodes come first: a model node holds the same tools, but does not run them.
        for name, node in sorted(found.graph.nodes.items(), key=lambda n: not isinstance(n[1].bound, ToolNode)):
            for value in walk_objects(roots_of(node), deep=deep, walked=walked):
                if not isinstance(value, Pregel):
                    yield value
                else:
                    todo.append(FoundGraph(value, label_of(value, name), found.label, name))


def label_of(graph: AnyGraph, node: str) -> str:
    """Return an agent's name: the graph's name or, if the graph has none, the node's."""
    name = graph.get_name()
    return node if name == "LangGraph" else name


def roots_of(node: PregelNode) -> list[Any]:
    """Return a node's runnable, and the functions on its outgoing edges."""
    return [node.bound, *node.writers, *node.subgraphs] if node.bound is not DEFAULT_BOUND else list(node.writers)


def walk_objects(
    roots: Iterable[Any], *, deep: bool = False, into_tools: bool = True, walked: dict[Any, Any] | None = None
) -> Iterator[Any]:
    """Yield the objects to which `roots` refer, nearest first, without those `walked`."""
    # `walked` keeps its objects alive, so that the id of a temporary object is not reused.
    walked = {} if walked is None else walked
    todo = deque((root, 0) for root in roots)
    left = MAX_WALKED
    while todo and left:
        value, depth = todo.popleft()
        try:
            # Each access creates a new method object.
            key = (id(value.__self__), id(value.__func__)) if isinstance(value, MethodType) else id(value)
            if isinstance(value, _LEAVES) or key in walked:
                continue
            inside = [(v, 0) for v in held_by(value, MAX_WALKED if deep else MAX_HELD) if type(v) not in _PLAIN]
            inside += [(v, depth + 1) for v in _attributes(value)] if deep and depth < MAX_DEPTH else []
        except Exception:  # noqa: BLE001, S112  (a proxy without an object behind it)
            continue
        walked[key] = value
        left -= 1
        yield value
        if into_tools or not isinstance(value, BaseTool):
            todo.extend(inside)


def held_by(value: Any, limit: int = MAX_HELD) -> Iterable[Any]:
    """Return the objects in a value; () for a graph, or if over `limit`."""
    if isinstance(value, BaseTool):
        return functions_of(value)
    if isinstance(value, FunctionType):
        cells = list(cells_of(value).values())
        plain = not cells and not hasattr(value, "__wrapped__")
        if hasattr(value, _OF) or (plain and root_of(value.__module__) in LIBRARIES):
            return ()
        defaults = (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())
        return [*cells, *objects_loaded_by(value), *defaults, getattr(value, "__wrapped__", None)]
    if isinstance(value, MethodType):
        return _held_by_method(value)
    if isinstance(value, _CONTAINERS):
        return list(value) if len(value) <= limit else ()
    if isinstance(value, (StateGraph, PregelProtocol, *model_types())):
        return ()
    if isinstance(value, partial):
        return (value.func, *value.args, *value.keywords.values())
    if isinstance(value, Mapping):
        return list(value.values()) if len(value) <= limit else ()
    if isinstance(value, TaskFunction):
        return (value.func,)
    if isinstance(value, Runnable):
        return list(getattr(value, "__dict__", {}).values())
    call = vars(type(value)).get("__call__")
    return (MethodType(call, value),) if isinstance(call, FunctionType) and module_of(value) not in LIBRARIES else ()


def cells_of(function: FunctionType) -> dict[str, Any]:
    """Return the names and values of a function's closure variables."""
    held = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # not assigned yet
            held[name] = cell.cell_contents
    return held


def objects_loaded_by(function: FunctionType) -> Iterator[Any]:
    """Yield the closure variables, globals and attributes that a function loads."""
    cells, names = cells_of(function), function.__globals__
    for is_global, name, attributes in _chains(function.__code__):
        value = names.get(name) if is_global else cells.get(name)
        yield value
        for attribute in attributes:
            try:
                value = getattr(value, attribute, None)
            except Exception:  # noqa: BLE001  (a foreign property that fails is skipped)
                break
            yield value


@lru_cache(maxsize=4096)
def _chains(code: CodeType) -> tuple[tuple[bool, str, tuple[str, ...]], ...]:
    """Return the variables that code loads. `a.b` is `(is_global, "a", ("b",))`."""
    chains: list[tuple[bool, str, tuple[str, ...]]] = []
    for own in nested_codes(code):
        going = False
        for instruction in dis.get_instructions(own):
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_DEREF"):
                chains.append((instruction.opname == "LOAD_GLOBAL", instruction.argval, ()))
                going = True
            elif going and instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                is_global, name, attributes = chains[-1]
                chains[-1] = (is_global, name, (*attributes, instruction.argval))
            else:
                going = False
    return tuple(dict.fromkeys(chains))


def nested_codes(code: CodeType) -> Iterator[CodeType]:
    """Yield a code object, and those of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from nested_codes(constant)


def names_in(code: CodeType) -> Iterator[str]:
    """Yield the names of globals and attributes that code uses."""
    return (name for own in nested_codes(code) for name in own.co_names)


def _held_by_method(method: MethodType) -> list[Any]:
    owner = method.__self__
    by_itself = isinstance(owner, BaseTool) and method.__name__ not in ("_run", "_arun")
    if by_itself or isinstance(owner, (tuple, PregelProtocol, *model_types())):
        return [owner]
    held: list[Any] = [method.__func__]
    fields = getattr(owner, "__dict__", None) or {}
    function = unwrap(method.__func__)
    if isinstance(function, FunctionType):
        held += [fields[name] for name in names_in(function.__code__) if name in fields]
        # A method may call other methods of its object. LangChain's middleware may hold the application's objects.
        held += [
            MethodType(found, owner)
            for name in names_in(function.__code__)
            if isinstance(found := getattr(type(owner), name, None), FunctionType)
            and root_of(found.__module__) not in LIBRARIES - {"langchain"}
        ]
    return held


def _attributes(value: Any) -> list[Any]:
    if isinstance(value, (FunctionType, MethodType, PregelProtocol, *model_types())):
        return []
    if module_of(value) in LIBRARIES and not isinstance(value, SimpleNamespace):
        return []
    return list((getattr(value, "__dict__", None) or {}).values())


def functions_of(tool: BaseTool) -> list[Any]:
    """Return a tool's `func` and `coroutine`, and its class's own `_run` and `_arun`."""
    held = [getattr(f, _OF, f) for name in ("func", "coroutine") if callable(f := getattr(tool, name, None))]
    for name in ("_run", "_arun"):
        origin: Any = unwrap(getattr(type(tool), name))
        if isinstance(origin, (FunctionType, MethodType)) and root_of(origin.__module__) not in LIBRARIES:
            held.append(MethodType(origin, tool))
    return held


def module_of(value: object) -> str:
    """Return the top-level package of a value's class."""
    return root_of(type(value).__module__)


def root_of(module: str | None) -> str:
    """Return the top-level package of a module's name."""
    return (module or "").split(".", 1)[0]


def is_workflow(graph: Any) -> bool:
    """Return True if a graph has no tool node, so that it only orchestrates agents."""
    return not any(isinstance(node.bound, ToolNode) for node in getattr(graph, "nodes", {}).values())


def model_types() -> tuple[type, ...]:
    """Return the base classes of models, without importing rare ones."""
    base = getattr(sys.modules.get(DECISIONS), "BaseDecisionModel", None)
    return (BaseLanguageModel, *(base.__subclasses__() if base is not None else ()))
