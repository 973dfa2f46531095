"""Find effects and secrets in a graph's code without running the code.

The scan may miss some. It follows a node's function to its closures and to the application's functions that it calls.
It follows a member of an application's object or class if the code uses the member's name anywhere (rapid type
analysis). Of installed packages, it notes only those that act or have a network client.

Secrets are searched in tools, by type (`SecretStr`), by name (`api_key`, an `Authorization` header) or by the form of
well-known tokens. Their values are never shown. A tool that holds a key can use it without a permit. So replace the key
by the call's own credential (`current_call().credential()`).
"""

from __future__ import annotations

import dis
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property, lru_cache, partial, partialmethod
from importlib.util import resolve_name
from inspect import signature
from types import CodeType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any, Final, NamedTuple

from langchain_core.tools import BaseTool
from langgraph.pregel.protocol import PregelProtocol
from langgraph.store.base import BaseStore
from pydantic import SecretBytes, SecretStr

from langchain_runtime_authz.coverage.report import Part
from langchain_runtime_authz.langgraph import object_graph
from langchain_runtime_authz.langgraph.declared_effects import effect
from langchain_runtime_authz.langgraph.model_call import tool_names
from langchain_runtime_authz.langgraph.private_api import Pregel, PregelNode, ToolNode

MAX_VALUES: Final = 10_000  # number of values searched from one node
_MAKING: Final = ("__init__", "__new__", "__post_init__")
_DESCRIPTORS: Final = (property, cached_property, partialmethod, classmethod, staticmethod)
# Kind of effect → modules, and functions of `os` and `asyncio`.
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
_METHODS: Final = ("unlink", "write_bytes", "write_text")  # methods of a path that write
_STORE: Final = frozenset(("put", "aput", "delete", "adelete", "batch", "abatch"))
_MODE: Final = re.compile(r"[wax][bt]?\+?|r[bt]?\+[bt]?")
_ENDS: Final = frozenset(("POP_TOP", "BEFORE_WITH", "RETURN_VALUE", "STORE_FAST", "STORE_DEREF"))


class EffectInCode(NamedTuple):
    """An effect that the scan found in code: its kind, and the name that causes it."""

    kind: str  # network, mail, process, write, database, store, code
    by: str

    def __str__(self) -> str:
        return f"{self.kind} ({self.by})"


def acting_nodes(graph: object_graph.AnyGraph) -> dict[str, tuple[EffectInCode, ...]]:
    """Return node name → effects in its code. Nodes of subgraphs are included."""
    nodes = (item for found in object_graph.graphs_in(graph) for item in found.graph.nodes.items())
    return {name: seen for name, node in nodes if (seen := code_of(node)[0])}


def code_of(node: PregelNode) -> tuple[tuple[EffectInCode, ...], tuple[str, ...]]:
    """Return the effects in a node's code, and names of parts that were not searched."""
    if isinstance(node.bound, ToolNode | Pregel):
        return (), ()
    missed: dict[str, None] = {}
    seen = dict.fromkeys(
        EffectInCode(*s) for value in _reached(object_graph.roots_of(node), missed) for s in _in_value(value)
    )
    return tuple(seen), tuple(missed)


def _reached(roots: Iterable[Any], missed: dict[str, None]) -> Iterator[Any]:
    """Yield the values to search for effects. Add names of skipped ones to `missed`."""
    todo, seen = deque(roots), dict[Any, Any]()
    names, waiting = set[str](), dict[str, list[Any]]()  # names used so far; members whose names are not used yet
    while todo:
        value = todo.popleft()
        # Each access creates a new method object.
        key = (id(value.__self__), id(value.__func__)) if type(value) is MethodType else id(value)
        if key in seen:
            continue
        if len(seen) >= MAX_VALUES:
            missed[f"more than {MAX_VALUES} values"] = None
            return
        seen[key] = value
        try:
            counts, further = _reach(value, missed)
            members = list(_members(value))
        except Exception:  # noqa: BLE001  (a proxy without an object behind it)
            missed[f"a value of the type {type(value).__name__}"] = None
            continue
        todo.extend(further)
        for name, member in members:
            (todo if name in names else waiting.setdefault(name, [])).append(member)
        if counts:
            for name in {*object_graph.names_in(value.__code__), ""} - names if isinstance(value, FunctionType) else ():
                names.add(name)
                todo.extend(waiting.pop(name, ()))
            yield value


def _reach(value: Any, missed: dict[str, None]) -> tuple[bool, Iterable[Any]]:
    """Return True if the value must be searched, and the values to continue with."""
    function = value.__func__ if isinstance(value, MethodType) else value
    if _has_rows(value) or hasattr(function, "__runtime_authz_effect__"):
        return False, ()
    if not isinstance(function, FunctionType):
        wrapped = (getattr(value, "__dict__", None) or {}).get("__wrapped__")  # the function behind a cache
        return (True, ()) if _kind_of(value) is not None else (False, (*object_graph.held_by(value), wrapped))
    if _package(function) not in object_graph.LIBRARIES and "site-packages" not in function.__code__.co_filename:
        if any(type(v) is MethodType and v.__func__ is effect for v in object_graph.objects_loaded_by(function)):
            return False, ()
        if value is not function:
            return False, (function, value.__self__)
        return True, (*object_graph.held_by(function), *_imported_inside(function, missed))
    # In a library's function, only the application's values are followed.
    if _package(function) not in object_graph.LIBRARIES:
        if (package := object_graph.root_of(function.__globals__.get("__name__"))) not in object_graph.LIBRARIES:
            missed[package] = None
        return False, (*object_graph.cells_of(function).values(), getattr(function, "__wrapped__", None))
    return False, () if value is function and function.__closure__ is None else object_graph.held_by(value)


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name, member) of an application's object or class.

    The name is "" if Python uses the member without naming it (`__call__`), and "super" if a subclass overrides it.
    """
    cls, made = (value, False) if isinstance(value, type) else (type(value), True)
    bases = [base for base in cls.__mro__ if _is_own(base.__module__)]
    if not bases or _has_rows(value) or isinstance(value, FunctionType | MethodType):
        return
    if made:
        yield from (getattr(value, "__dict__", None) or {}).items()
    told = set[str]()
    for name, held in (item for base in bases for item in vars(base).items()):
        parts = (getattr(held, n, None) for n in ("fget", "func", "__func__")) if isinstance(held, _DESCRIPTORS) else ()
        member = next(filter(None, parts), held)
        if isinstance(member, FunctionType):
            unnamed = name.startswith("__") and not (made and name in _MAKING)
            yield "super" if name in told else "" if unnamed else name, MethodType(member, value)
        else:
            yield name, getattr(value, name, None) if made and isinstance(member, MemberDescriptorType) else member
        told.add(name)


def _imported_inside(function: FunctionType, missed: dict[str, None]) -> Iterator[Any]:
    """Yield values that `function` imports in its code. Add unloaded ones to `missed`."""
    for code in object_graph.nested_codes(function.__code__):
        level = 0
        for step in dis.get_instructions(code):
            level = step.argval if isinstance(step.argval, int) else level  # the level is loaded before the name
            if step.opname == "IMPORT_NAME":
                name = resolve_name("." * level + step.argval, function.__globals__.get("__package__"))
                if name not in sys.modules and object_graph.root_of(name) not in object_graph.LIBRARIES:
                    missed[name] = None  # the scan imports nothing
                held = vars(sys.modules[name]) if name in sys.modules and _is_own(name) else {}
                yield from (held[n] for n in object_graph.names_in(code) if n in held)


def _has_rows(value: Any) -> bool:
    return isinstance(value, (BaseTool, Pregel, *object_graph.model_types()))


@lru_cache(maxsize=4096)
def _is_own(module: str) -> bool:
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return object_graph.root_of(module) not in object_graph.LIBRARIES and "site-packages" not in file


def _in_value(value: Any) -> Iterator[tuple[str, str]]:
    for used in object_graph.objects_loaded_by(value) if isinstance(value, FunctionType) else (value,):
        if (kind := _kind_of(used)) is not None:
            name = getattr(used, "__name__", None) or type(used).__name__
            yield kind, f"{_package(used).replace('posix', 'os')}.{name}"
    for code in object_graph.nested_codes(value.__code__) if isinstance(value, FunctionType) else ():
        yield from _in_code(code, value.__globals__)


def _in_code(code: CodeType, names: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    called, opened, before = {*code.co_names}, False, ""
    for step in dis.get_instructions(code):
        name = step.argval if isinstance(step.argval, str) else ""
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME") and name not in names:  # a builtin
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


def _kind_of(value: Any) -> str | None:
    with suppress(Exception):  # a foreign object may raise
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
    return "network" if found is None and package not in object_graph.LIBRARIES and _reaches_out(package) else found


def _module_of(value: Any) -> str:
    named = callable(value) and not isinstance(value, (BaseStore, *object_graph.model_types()))
    module = getattr(value, "__module__", None) if named else None
    return module if isinstance(module, str) else type(value).__module__


def _package(value: Any) -> str:
    return _module_of(value).split(".", 1)[0]


@lru_cache(maxsize=256)
def _reaches_out(package: str) -> bool:
    own = [m for n, m in list(sys.modules.items()) if n == package or n.startswith(f"{package}.")]
    if not any("site-packages" in (getattr(m, "__file__", None) or "") for m in own):
        return False
    held = {v.__name__ for m in own for v in list(vars(m).values()) if isinstance(v, ModuleType)}
    return any(name in _CLIENTS or name.split(".", 1)[0] in _CLIENTS for name in held)


MAX_ITEMS: Final = 100
_CODE: Final = (FunctionType, MethodType, partial)
MAX_DEPTH: Final = 4
MIN_LENGTH: Final = 8  # characters of a named secret; shorter texts are placeholders

_NAMES: Final = re.compile(
    r"(^|_)(api_?keys?|access_?keys?|private_?keys?|secret_?keys?|signing_?keys?|secrets?|tokens?|passwords?|passwd"
    r"|passphrase|pwd|credentials?|authorization|auth|bearer|cookies?)$"
)
_FORMS: Final = re.compile(
    r"""\b(?:sk|pk|rk)[-_](?:live|test|proj|ant)?[-_]?[A-Za-z0-9_-]{16,}   # OpenAI, Anthropic, Stripe
    |\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_[A-Za-z0-9_]{20,}|\bglpat-[A-Za-z0-9_-]{16,}
    |\bxox[abposr]-[A-Za-z0-9-]{10,}|\bhf_[A-Za-z0-9]{20,}|\bAIza[A-Za-z0-9_-]{30,}
    |\b(?:AKIA|ASIA)[A-Z0-9]{16}\b
    |\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.                        # a JWT
    |-----BEGIN\ [A-Z ]*PRIVATE\ KEY-----
    |^(?:Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,}$
    |\b[a-z][a-z0-9+.-]*://[^\s/:@]+:[^\s/@]+@                             # a URL with a password
    """,
    re.VERBOSE,
)


def secrets_of(tool: BaseTool) -> Iterator[str]:
    """Yield where a tool holds long-lived secrets, such as `field api_key`."""
    seen: dict[int, Any] = {}
    known = BaseTool.model_fields.keys() | {"func", "coroutine"}
    fields = {k: v for k, v in vars(tool).items() if k not in known}
    private = {k: v for k, v in (tool.__pydantic_private__ or {}).items() if not k.startswith("_authz")}
    for name, value in {**fields, **private}.items():
        yield from _secret_in(f"field {name}", name, value, seen, 0)
    yield from _secret_in("metadata", "metadata", tool.metadata, seen, 0)
    for function in object_graph.functions_of(tool):
        yield from _secret_in("", "", function, seen, -1)


def _secret_in(where: str, name: str, value: Any, seen: dict[int, Any], depth: int) -> Iterator[str]:
    if isinstance(value, SecretStr | SecretBytes):
        if len(value):
            yield where
    elif isinstance(value, str | bytes):
        text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
        prose = any(c.isspace() for c in text.strip()) or text.startswith(("http://", "https://", "/", "${", "env:"))
        if _FORMS.search(text) or (_secret_name(name) and len(text) >= MIN_LENGTH and not prose):
            yield where
    elif name.lstrip("_") == "auth" and object_graph.module_of(value) in ("httpx", "requests", "aiohttp"):
        yield where  # a client's object that adds a credential to each request
    elif depth < MAX_DEPTH and (ident := id(_function(value))) not in seen:
        if isinstance(value, _CODE) and where:
            own = not isinstance(value, partial) and object_graph.root_of(getattr(value, "__module__", None))
            if own in object_graph.LIBRARIES:  # the arguments of a `partial` are the application's
                return
            where = f"{where.removesuffix(' > ')} > "
        seen[ident] = value
        for place, key, inner in _parts(name, value):
            yield from _secret_in(where + place, key, inner, seen, depth + bool(place))


def _function(value: Any) -> Any:
    return value.__func__ if isinstance(value, MethodType) else value


def _parts(name: str, value: Any) -> Iterator[tuple[str, str, Any]]:
    if isinstance(value, partial):
        yield from ((f"argument {i}", "", v) for i, v in enumerate(value.args))
        yield from ((f"argument {n}", n, v) for n, v in value.keywords.items())
        yield "", "", value.func
    elif isinstance(value, MethodType) and not isinstance(value.__self__, BaseTool):
        yield "self", "", value.__self__
    if isinstance(function := _function(value), FunctionType):
        code, names = function.__code__, function.__globals__
        yield "", "", getattr(function, "__wrapped__", None)
        yield from ((f"closure {n}", n, v) for n, v in object_graph.cells_of(function).items())
        yield from ((f"global {n}", n, names[n]) for n in dict.fromkeys(object_graph.names_in(code)) if n in names)
        given = signature(function, follow_wrapped=False).parameters.values()
        yield from ((f"default of {p.name}", p.name, p.default) for p in given if p.default is not p.empty)
        constants = (c for own in object_graph.nested_codes(code) for c in own.co_consts)
        texts = (c for c in constants if isinstance(c, str) and c != function.__doc__)
        yield "constant in its code", "", next(filter(_FORMS.search, texts), None)
    elif isinstance(value, Mapping):
        for key, inner in list(value.items())[:MAX_ITEMS]:
            # A key may itself be a secret, so a key is shown only if it is a common name of secrets.
            yield (f"[{key}]" if _secret_name(key) else "[…]", key if isinstance(key, str) else "", inner)
    elif isinstance(value, list | tuple | set | frozenset):
        yield from (("[…]", name, inner) for inner in list(value)[:MAX_ITEMS])
    elif not isinstance(value, PregelProtocol | BaseTool | type) and object_graph.module_of(value) not in _NEVER:
        fields = {**(getattr(value, "__dict__", None) or {}), **(getattr(value, "__pydantic_private__", None) or {})}
        yield from ((f".{key.lstrip('_')}", key, inner) for key, inner in fields.items() if isinstance(key, str))


# Our objects mint a credential per call and hold no long-lived secret. Objects of the others hold no data of a tool.
_NEVER: Final = frozenset(("builtins", "langchain_runtime_authz", "threading", "_thread", "asyncio", "logging", "re"))


def _secret_name(name: object) -> bool:
    if not isinstance(name, str):
        return False
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.lstrip("_")).replace("-", "_").lower()
    return _NAMES.search(snake) is not None


# A `type` that does not mark a provider tool: of local tools, content blocks, messages, JSON schemas and dumped objects.
_BLOCKS = (
    "ai any array assistant audio auto boolean constructor ephemeral file human image image_url integer json_object "
    "json_schema not_implemented null number object reasoning secret string system text thinking tool_call tool_result "
    "tool_use user"
)
_NO_TOOL: Final = frozenset(("function", "custom", *_BLOCKS.split()))
_GOOGLE: Final = frozenset(("google_search", "google_search_retrieval", "code_execution", "url_context", "google_maps"))


def tools_in_code(bound: Any) -> list[Any]:
    """Return the tools bound to a model, with one entry for all remote MCP servers."""
    if not isinstance(bound, dict):  # other mappings may refuse a string
        return []
    tools, servers = bound.get("tools"), bound.get("mcp_servers")
    listed = list(tools) if isinstance(tools, list | tuple) else []
    addressed = isinstance(servers, list) and any(isinstance(s, Mapping) and "url" in s for s in servers)
    return [*listed, {"type": "mcp_servers"}] if addressed else listed


def provider_rows(tools: Iterable[Any], label: str, route: str, *, strict: bool) -> Iterator[Part]:
    """Yield rows of provider tools. `strict`: none, unless all of `tools` are tools."""
    # `strict`: the list may contain anything, so it counts only if all entries are tools.
    named = [(tool, _provider_tool(tool)) for tool in tools]
    if not strict or all(name is not None or _runs_here(tool) for tool, name in named):
        note = "runs at the model provider, unseen"
        yield from (Part("provider tool", name, label, (), note, route) for _, name in named if name is not None)


def _runs_here(tool: Any) -> bool:
    if not isinstance(tool, dict):  # other mappings may refuse a string
        return isinstance(tool, BaseTool | FunctionType)
    return tool.get("type") in ("function", "custom") or bool(tool_names(tool)[0])


def _provider_tool(tool: Any) -> str | None:
    if not isinstance(tool, Mapping) or not tool or not all(isinstance(k, str) for k in tool):
        return None
    own, others = tool_names(tool)
    # Google names the tool by its only key.
    if own or not others or not (isinstance(tool.get("type"), str) or (len(tool) == 1 and others[0] in _GOOGLE)):
        return None
    return others[0] if others[0] not in _NO_TOOL else None
