"""Find where a tool holds a long-lived secret, and never show the secret.

A tool with a key of its own does not need a permit to use it. Replace such a key by the credential per call
(`current_call().credential`). A secret is found by its type (`SecretStr`), its name (`api_key`, an `Authorization`
header) or the form of well-known tokens. Other secrets are not found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any, Final

from langchain_core.tools import BaseTool
from langgraph.pregel.protocol import PregelProtocol
from pydantic import SecretBytes, SecretStr

from langchain_runtime_authz.langgraph.object_graph import LIBRARIES, functions_of, module_of

MAX_ITEMS: Final = 100
MAX_DEPTH: Final = 4
MIN_LENGTH: Final = 8  # of a text under a secret's name: shorter ones are examples and placeholders

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
    """Yield where a tool holds a long-lived secret: `closure client.headers[authorization]`, `field api_key`."""
    seen: dict[int, Any] = {}
    known = BaseTool.model_fields.keys() | {"func", "coroutine"}
    fields = {k: v for k, v in vars(tool).items() if k not in known}
    private = {k: v for k, v in (tool.__pydantic_private__ or {}).items() if not k.startswith("_authz")}
    for name, value in {**fields, **private}.items():
        yield from _look(f"field {name}", name, value, seen, 0)
    yield from _look("metadata", "metadata", tool.metadata, seen, 0)
    for function in functions_of(tool):
        yield from _in_function("", function, seen, 0)


def _in_function(where: str, function: Any, seen: dict[int, Any], depth: int) -> Iterator[str]:
    if isinstance(function, partial):
        for i, value in enumerate(function.args):
            yield from _look(f"{where}argument {i}", "", value, seen, depth)
        for name, value in function.keywords.items():
            yield from _look(f"{where}argument {name}", name, value, seen, depth)
        yield from _in_function(where, function.func, seen, depth)
    if isinstance(function, MethodType):
        if not isinstance(function.__self__, BaseTool):
            yield from _look(f"{where}self", "", function.__self__, seen, depth)
        function = function.__func__
    if not isinstance(function, FunctionType) or id(function) in seen or depth > MAX_DEPTH:
        return
    seen[id(function)] = function
    wrapped = getattr(function, "__wrapped__", None)
    if wrapped is not None:
        yield from _in_function(where, wrapped, seen, depth)
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            value = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
        yield from _named(f"{where}closure {name}", name, value, seen, depth)
    for name in dict.fromkeys(_texts(code, names=True)):
        if name in function.__globals__:
            yield from _named(f"{where}global {name}", name, function.__globals__[name], seen, depth)
    positional = code.co_varnames[: code.co_argcount]
    defaults = function.__defaults__ or ()
    given = dict(zip(positional[len(positional) - len(defaults) :], defaults, strict=True))
    for name, value in {**given, **(function.__kwdefaults__ or {})}.items():
        yield from _look(f"{where}default of {name}", name, value, seen, depth)
    if any(_FORMS.search(text) for text in _texts(code, names=False) if text != function.__doc__):
        yield f"{where}constant in its code"


def _named(where: str, name: str, value: Any, seen: dict[int, Any], depth: int) -> Iterator[str]:
    if isinstance(value, FunctionType | MethodType | partial):
        if str(getattr(value, "__module__", None) or "").split(".", 1)[0] not in LIBRARIES:
            yield from _in_function(f"{where} > ", value, seen, depth + 1)
    else:
        yield from _look(where, name, value, seen, depth)


def _texts(code: CodeType, *, names: bool) -> Iterator[str]:
    yield from code.co_names if names else (c for c in code.co_consts if isinstance(c, str))
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _texts(constant, names=names)


def _look(where: str, name: str, value: Any, seen: dict[int, Any], depth: int) -> Iterator[str]:
    if isinstance(value, SecretStr | SecretBytes):
        if len(value):
            yield where
    elif isinstance(value, str | bytes):
        text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
        if _FORMS.search(text) or (_secret_name(name) and len(text) >= MIN_LENGTH and not _prose(text)):
            yield where
    elif _is_auth(name, value):
        yield where
    elif depth < MAX_DEPTH and id(value) not in seen:
        seen[id(value)] = value
        for place, key, inner in _parts(name, value):
            yield from _look(where + place, key, inner, seen, depth + 1)


def _parts(name: str, value: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield the parts of a value, each with its place and its name."""
    if isinstance(value, Mapping):
        for key, inner in list(value.items())[:MAX_ITEMS]:
            # A key may itself be a secret: only a name that says "secret" is shown.
            yield (f"[{key}]" if _secret_name(key) else "[…]", key if isinstance(key, str) else "", inner)
    elif isinstance(value, list | tuple | set | frozenset):
        yield from (("[…]", name, inner) for inner in list(value)[:MAX_ITEMS])
    elif not isinstance(value, PregelProtocol | BaseTool | FunctionType | type) and module_of(value) not in _NEVER:
        fields = {**(getattr(value, "__dict__", None) or {}), **(getattr(value, "__pydantic_private__", None) or {})}
        yield from ((f".{key.lstrip('_')}", key, inner) for key, inner in fields.items() if isinstance(key, str))


# Ours hold keys of other parts, and mint per call; the others do not hold data of a tool.
_NEVER: Final = frozenset(("builtins", "langchain_runtime_authz", "threading", "_thread", "asyncio", "logging", "re"))


def _is_auth(name: str, value: Any) -> bool:
    """Return True for a client's `auth`: an object that adds a credential to each request."""
    return name.lstrip("_") == "auth" and module_of(value) in ("httpx", "requests", "aiohttp")


def _secret_name(name: object) -> bool:
    if not isinstance(name, str):
        return False
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.lstrip("_")).replace("-", "_").lower()
    return _NAMES.search(snake) is not None


def _prose(text: str) -> bool:
    return any(c.isspace() for c in text.strip()) or text.startswith(("http://", "https://", "/", "${", "env:"))
