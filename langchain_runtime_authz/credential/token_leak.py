"""Search the output of a tool for the live tokens of its call.

A token is useless without its signature. So the search is for the signature segment: plain, in base64 (both alphabets,
any alignment), escaped for a URL, JSON or HTML (up to three times), and broken over lines. An object is searched in the
form that a serialiser would write. The search finds tokens that a careless tool leaks, but not those that it hides.
"""

from __future__ import annotations

import base64
import copyreg
import dataclasses
import html
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from types import FunctionType, MappingProxyType, ModuleType
from typing import Any, Final, TypeVar
from urllib.parse import unquote

from langchain_runtime_authz._display import error_text

REDACTED: Final = "[redacted credential]"
UNSEARCHED: Final = "[not searched for credentials]"
MAX_NODES: Final = 1_000_000
MAX_DEPTH: Final = 64

_T = TypeVar("_T")


class TokenSearch:
    """Removes tokens from values. The caller splits messages and commands into parts.

    Strings, bytes, mappings (keys too), lists, tuples, sets and exceptions (arguments, notes, attributes) are searched
    inside. An exception with a token loses its cause and context; if its text still shows the token, another exception
    replaces it. Any other object is searched in the form that LangGraph's serialiser and pickle would write, and
    replaced as a whole. A value without a token is returned unchanged. `found`: a token was removed.

    The time is linear in the size of the value. A constant replaces a part that cannot be searched, and `withheld` is
    set: nesting deeper than 64, more than a million nodes, a cycle, a generator, a socket.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        self.found = self.withheld = False
        self._forms = [form for token in tokens if token for form in _forms(token)]
        self._nodes = 0
        self._open: set[int] = set()
        self._raised = False

    def clean(self, value: _T) -> _T:
        """Return `value` without tokens; the same object if it has none."""
        self._nodes = 0  # per value; a message is searched in parts, then as a whole
        return self._walk(value, 0) if self._forms else value

    def _walk(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if value is None or kind in _NUMBERS:
            return value
        if isinstance(value, str):
            clean: Any = self._text(value)
        elif isinstance(value, bytes | bytearray):
            clean = self._bytes(value)
        elif isinstance(value, Mapping | list | tuple | set | frozenset | BaseException):
            self._nodes += 1
            if depth >= MAX_DEPTH or self._nodes > MAX_NODES or id(value) in self._open:
                self.withheld = True
                return UNSEARCHED
            self._open.add(id(value))
            try:
                clean = self._container(value, depth + 1)
            finally:
                self._open.discard(id(value))
        else:
            return self._whole(value)
        # Subclasses of the plain types may have attributes. LangGraph writes only the text of a raised exception.
        raised = isinstance(value, BaseException) and (depth == 0 or self._raised)
        return clean if clean is not value or kind in _PLAIN or raised else self._whole(value)

    def _whole(self, value: Any) -> Any:
        if self._raised:
            return value
        holds = self._holds(value)
        if holds is None:
            self.withheld = True
            return UNSEARCHED
        return REDACTED if holds else value

    def _holds(self, value: Any) -> bool | None:
        """Return True if a serialiser would write a token for `value`; `None` if unknown."""
        todo: list[Any] = [value]
        seen: dict[int, Any] = {}  # holds the objects, so that no id is reused
        while todo:
            one = todo.pop()
            if one is None or type(one) in _NUMBERS or isinstance(one, _EMPTY) or id(one) in seen:
                continue
            seen[id(one)] = one
            self._nodes += 1
            if isinstance(one, str) and self._text(one) is not one:
                return True
            if isinstance(one, bytes | bytearray | memoryview) and self._bytes(data := bytes(one)) is not data:
                return True
            if type(one) in _TEXTS:
                continue
            try:
                todo += islice(_parts(one), MAX_NODES - self._nodes - len(todo) + 1)
            except Exception:  # noqa: BLE001  (a foreign `__reduce__` may fail in any way)
                return None
            if self._nodes + len(todo) > MAX_NODES:
                return None
        return False

    def _container(self, value: Any, depth: int) -> Any:
        if isinstance(value, BaseException):
            return self._exception(value, depth)
        if isinstance(value, Mapping):
            pairs = [(k, v, self._walk(k, depth), self._walk(v, depth)) for k, v in value.items()]
            self._nodes += len(pairs)
            if all(k is k2 and v is v2 for k, v, k2, v2 in pairs):
                return value
            return {k2: v2 for _, _, k2, v2 in pairs}
        items = list(value)
        self._nodes += len(items)
        clean = [self._walk(item, depth) for item in items]
        if all(a is b for a, b in zip(items, clean, strict=True)):
            return value
        if isinstance(value, tuple) and hasattr(value, "_make"):
            return value._make(clean)
        kind = next(k for k in (list, tuple, set, frozenset) if isinstance(value, k))
        return kind(clean)

    def _exception(self, exc: BaseException, depth: int) -> BaseException:
        outer, self.found = self.found, False
        before, self._raised = self._raised, True
        for linked in (exc.__cause__, exc.__context__):
            if linked is not None:
                self._walk(linked, depth)
        args = self._walk(exc.args, depth)
        state = {k: self._walk(v, depth) for k, v in vars(exc).items()}
        self._text(error_text(exc))
        if self.found:
            exc.args = args
            for name, attribute in state.items():
                if attribute is not vars(exc).get(name):
                    vars(exc)[name] = attribute
            exc.__cause__ = exc.__context__ = None
            regrown = isinstance(exc, BaseExceptionGroup) and any(
                self._walk(member, depth) is not member for member in exc.exceptions
            )
            if regrown or self._text(shown := error_text(exc)) is not shown:  # its text is not from its arguments
                exc = RuntimeError(f"{type(exc).__name__}: {REDACTED}")
        self.found, self._raised = self.found or outer, before
        return exc

    def _bytes(self, data: bytes | bytearray) -> bytes | bytearray:
        text = data.decode("latin-1")
        clean = self._text(text)
        if clean is text and b"\0" in data and self._in(text.replace("\0", "")):  # UTF-16, UTF-32
            self.found, clean = True, REDACTED
        return data if clean is text else type(data)(clean.encode("latin-1"))

    def _text(self, text: str) -> str:
        clean = text
        for form in self._forms:
            if form in clean:
                clean = _without(clean, form)
        if "%" in clean and (cleaner := _ESCAPED.sub(self._in_run, clean)) != clean:
            clean = cleaner
        if self._in_escapes(clean):
            clean = REDACTED
        # Remove line breaks to find a broken token. Its position is then unknown, so the whole text is replaced.
        # In a quoted text, a line break may be an escape.
        if ("\n" in clean or "\\n" in clean or "\r" in clean) and self._in(_unwrapped(clean)):
            clean = REDACTED
        if clean is not text:
            self.found = True
        return clean

    def _in_run(self, run: re.Match[str]) -> str:
        return REDACTED if "%" in run[0] and self._in(unquote(run[0])) else run[0]

    def _in_escapes(self, text: str) -> bool:
        for _ in range(MAX_ESCAPES):
            before, text = text, _ESCAPE.sub(_unescaped, text)
            if text == before:
                return False
            if self._in(text) or self._in(_unwrapped(text)):
                return True
        return False

    def _in(self, text: str) -> bool:
        return any(form in text for form in self._forms)


_NUMBERS: Final = frozenset((bool, int, float))
_TEXTS: Final = frozenset((str, bytes, bytearray, memoryview))
_PLAIN: Final = _TEXTS | {dict, list, tuple, set, frozenset, MappingProxyType}
# Serialisers write these by name, or write nothing.
_EMPTY: Final = (type, FunctionType, ModuleType, type(threading.Lock()), type(threading.RLock()))
# LangGraph's serialiser calls the first of these methods that an object has.
_ASKED: Final = ("model_dump", "get_secret_value", "dict", "_asdict")
_PROTOCOL: Final = 4  # of pickle


def _parts(value: Any) -> Iterator[Any]:
    """Yield the parts of an object that LangGraph's serialiser or pickle would write."""
    kind = type(value)
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield inner
    elif isinstance(value, list | tuple | set | frozenset):
        yield from value
    if kind in _PLAIN:
        return
    asked = next((name for name in _ASKED if callable(getattr(kind, name, None))), None)
    if asked is not None:
        yield getattr(value, asked)()
    elif dataclasses.is_dataclass(kind):
        yield from (getattr(value, field.name) for field in dataclasses.fields(kind))
    reducer = copyreg.dispatch_table.get(kind)  # pickle prefers a registered reducer to the object's own
    reduced = value.__reduce_ex__(_PROTOCOL) if reducer is None else reducer(value)
    if isinstance(reduced, tuple):  # otherwise a text: the name of a global, which pickle writes alone
        maker, arguments, *rest = reduced
        state, items, pairs, *_ = (*rest, None, None, None)
        yield from (maker, arguments, state)
        yield from items or ()
        yield from chain.from_iterable(pairs or ())


MAX_ESCAPES: Final = 3
# Escapes of a token's characters and of escapes, and a broken line of a shell.
_ESCAPE: Final = re.compile(
    r"\\(?:u00([2-7][0-9A-Fa-f])|x([2-7][0-9A-Fa-f])|[-+/._~=\\]|\r?\n)|%([2-7][0-9A-Fa-f])"
    r"|&(?:#[0-9]{2,7}|#[Xx][0-9A-Fa-f]{2,6}|amp|bsol|equals|lowbar|percnt|period|plus|sol);?"
)


def _unescaped(escape: re.Match[str]) -> str:
    if code := escape[1] or escape[2] or escape[3]:
        return chr(int(code, 16))
    return html.unescape(escape[0]) if escape[0][0] == "&" else escape[0][1:].strip()


def _unwrapped(text: str) -> str:
    # `bytes.translate` deletes in one pass in C. A mail ends a broken line by `=` (RFC 2045 §6.7).
    text = text.replace("\\r", "").replace("\\n", "")
    data = text.encode("utf-8", "surrogatepass").translate(None, b" \t\r\n=")
    return data.decode("utf-8", "surrogatepass")


# Characters around a signature: header and payload, or more of the same base64 or percent-encoding.
_BEFORE: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.%+/-")
_AFTER: Final = _BEFORE | {"="}
MIN_FORM: Final = 12  # shorter texts occur in others by chance, so shorter tokens are not searched for
_ESCAPED: Final = re.compile(r"[A-Za-z0-9_.%+/=-]{12,}")


def _without(text: str, form: str) -> str:
    """Redact each `form` and the token characters directly around it."""
    parts: list[str] = []
    done, at = 0, text.find(form)
    while at >= 0:
        start, end = at, at + len(form)
        while start > done and text[start - 1] in _BEFORE:
            start -= 1
        while end < len(text) and text[end] in _AFTER:
            end += 1
        parts += (text[done:start], REDACTED)
        done, at = end, text.find(form, end)
    return "".join([*parts, text[done:]])


def _forms(token: str) -> tuple[str, ...]:
    """Return texts to search for: each encoding of the signature contains one of them."""
    token = token.rstrip("=")  # `_unwrapped` removes every `=` from the text that is searched
    signature = token.rpartition(".")[2]
    if len(signature) < 2 * MIN_FORM:  # an opaque token without a signature: search for all of it
        signature = token
    forms = [signature]
    for alignment in range(3):
        # Keep the characters that depend on no byte before or after the signature.
        padded = base64.b64encode(b"\0" * alignment + signature.encode())
        known = padded[(0, 2, 3)[alignment] : (alignment + len(signature)) * 8 // 6].decode()
        forms += [known, known.translate(_URL_SAFE)]
    return tuple(form for form in dict.fromkeys(forms) if len(form) >= MIN_FORM)


_URL_SAFE: Final = str.maketrans("+/", "-_")
