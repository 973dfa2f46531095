"""See effects in the code of a node, without running it.

The look reaches the node's function, its closures, the functions of the application that it calls, and what these
hold. It does not enter installed packages: it only sees that one is used which reaches out. What is found is an
effect. What is not found says nothing: code has many ways to act.
"""

from __future__ import annotations

import dis
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Final, NamedTuple

from langchain_core.tools import BaseTool
from langgraph.store.base import BaseStore

from langchain_runtime_authz.langgraph._private import Pregel, PregelNode, ToolNode
from langchain_runtime_authz.langgraph.effect import effect
from langchain_runtime_authz.langgraph.model_types import model_types
from langchain_runtime_authz.langgraph.object_graph import LIBRARIES, AnyGraph, graphs_in, held_by, loaded, roots_of

MAX_FUNCTIONS: Final = 2000  # looked at from one node
# Kinds of effects by the modules, and by the functions of `os` and `asyncio`, that have them.
_NETWORK = "aiohttp curl_cffi ftplib grpc http.client httplib2 httpx paramiko pycurl requests urllib.request urllib3 websockets"
_KINDS: Final = {
    name: kind
    for kind, names in {
        "network": f"{_NETWORK} socket",
        "mail": "aiosmtplib imaplib poplib smtplib",
        "process": "pexpect pty subprocess",
        "write": "aiofiles shutil",
        "database": "aiosqlite asyncpg duckdb mysql psycopg psycopg2 pymongo pymysql redis sqlalchemy sqlite3",
    }.items()
    for name in names.split()
}
_CLIENTS: Final = frozenset(f"{_NETWORK} aiosmtplib smtplib".split())
_PROCESSES: Final = ("system", "popen", "exec", "spawn", "posix_spawn", "fork", "create_subprocess")
_CHANGES: Final = frozenset(
    ("remove", "unlink", "rename", "replace", "rmdir", "makedirs", "mkdir", "truncate", "chmod", "symlink")
)
_METHODS: Final = ("unlink", "write_bytes", "write_text")  # of a path
_STORE: Final = frozenset(("put", "aput", "delete", "adelete", "batch", "abatch"))
_MODE: Final = re.compile(r"[wax][bt]?\+?|r[bt]?\+[bt]?")
_ENDS: Final = frozenset(("POP_TOP", "BEFORE_WITH", "RETURN_VALUE", "STORE_FAST", "STORE_DEREF"))


class Sighting(NamedTuple):
    """An effect that code has: its kind (`network`, `mail`, `process`, `write`, `database`, `store`, `code`), and by what."""

    kind: str
    by: str

    def __str__(self) -> str:
        return f"{self.kind} ({self.by})"


def acting_nodes(graph: AnyGraph) -> dict[str, tuple[Sighting, ...]]:
    """Return the nodes of a graph, and of those below it, in whose code an effect is seen."""
    nodes = (item for found in graphs_in(graph) for item in found.graph.nodes.items())
    return {name: seen for name, node in nodes if (seen := code_of(node))}


def code_of(node: PregelNode) -> tuple[Sighting, ...]:
    """Return the effects that are seen in a node's own code."""
    if isinstance(node.bound, ToolNode | Pregel):
        return ()
    return tuple(dict.fromkeys(Sighting(*s) for value in _reached(roots_of(node)) for s in _in_value(value)))


def _reached(roots: Iterable[Any]) -> Iterator[Any]:
    """Yield the application's functions, and the clients that they hold, up to declared effects, tools and graphs."""
    todo, seen = deque(roots), dict[int, Any]()
    while todo and len(seen) < MAX_FUNCTIONS:
        value = todo.popleft()
        if id(value) not in seen:
            seen[id(value)] = value
            with suppress(Exception):  # a proxy that has nothing behind it here
                counts, further = _look(value)
                todo.extend(further)
                if counts:
                    yield value


def _look(value: Any) -> tuple[bool, Iterable[Any]]:
    """Return whether a value is looked into for effects, and what it holds that is reached."""
    function = value.__func__ if isinstance(value, MethodType) else value
    if isinstance(value, (BaseTool, Pregel, *model_types())) or hasattr(function, "__runtime_authz_effect__"):
        return False, ()
    if not isinstance(function, FunctionType):
        return (True, ()) if _kind_of(value) is not None else (False, held_by(value))
    own = _package(function) not in LIBRARIES and "site-packages" not in function.__code__.co_filename
    if own:
        blocks = any(type(v) is MethodType and v.__func__ is effect for v in loaded(function))
        return value is function and not blocks, () if blocks else held_by(value)
    # Of a library's function only what the application put into it is reached.
    library = _package(function) not in LIBRARIES or (value is function and function.__closure__ is None)
    return False, () if library else held_by(value)


def _in_value(value: Any) -> Iterator[tuple[str, str]]:
    for used in loaded(value) if isinstance(value, FunctionType) else (value,):
        if (kind := _kind_of(used)) is not None:
            name = getattr(used, "__name__", None) or type(used).__name__
            yield kind, f"{_package(used).replace('posix', 'os')}.{name}"
    for code in _codes(value.__code__) if isinstance(value, FunctionType) else ():
        yield from _in_code(code, value.__globals__)


def _in_code(code: CodeType, names: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    called, opened, before = {*code.co_names}, False, ""
    for step in dis.get_instructions(code):
        name = step.argval if isinstance(step.argval, str) else ""
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME") and name not in names:  # else it is the application's own
            opened = opened or name == "open"
            if name in ("exec", "eval"):
                yield "code", name
        elif step.opname == "IMPORT_NAME" and (kind := _kind_of_module(name)) is not None:
            yield kind, name
        elif opened and step.opname == "LOAD_CONST" and before != "LOAD_GLOBAL" and _MODE.fullmatch(name):
            yield "write", "open"
        opened = opened and step.opname not in _ENDS
        before = step.opname
    yield from (("write", name) for name in _METHODS if name in called)
    if not {"store", "get_store"}.isdisjoint((*code.co_varnames, *code.co_freevars, *called)):
        yield from (("store", f"store.{name}") for name in sorted(called & _STORE))


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _kind_of(value: Any) -> str | None:
    """Return the kind of effect that a loaded or held value stands for."""
    with suppress(Exception):  # of a foreign object
        if isinstance(value, ModuleType) or (isinstance(value, type) and issubclass(value, BaseException)):
            return None
        module, name = _module_of(value), str(getattr(value, "__name__", ""))
        if module.split(".")[0] not in ("posix", "nt", "os", "asyncio"):
            return _kind_of_module(module)
        return "process" if name.startswith(_PROCESSES) else "write" if name in _CHANGES else None
    return None


def _kind_of_module(module: str) -> str | None:
    package = module.split(".", 1)[0]
    found = _KINDS.get(module) or _KINDS.get(package)
    return "network" if found is None and package not in LIBRARIES and _reaches_out(package) else found


def _module_of(value: Any) -> str:
    named = callable(value) and not isinstance(value, (BaseStore, *model_types()))
    module = getattr(value, "__module__", None) if named else None
    return module if isinstance(module, str) else type(value).__module__


def _package(value: Any) -> str:
    return _module_of(value).split(".", 1)[0]


@lru_cache(maxsize=256)
def _reaches_out(package: str) -> bool:
    """Return True if an installed package holds a client of the network, so that its code acts wherever it is called."""
    own = [m for n, m in list(sys.modules.items()) if n == package or n.startswith(f"{package}.")]
    if not any("site-packages" in (getattr(m, "__file__", None) or "") for m in own):
        return False
    held = {v.__name__ for m in own for v in list(vars(m).values()) if isinstance(v, ModuleType)}
    return any(name in _CLIENTS or name.split(".", 1)[0] in _CLIENTS for name in held)
