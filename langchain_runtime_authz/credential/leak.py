"""Search what a tool returns, or raises, for the live tokens of its call.

A token is useless without its signature, so the signature segment is what is looked for: as it is,
in base64 (both alphabets, at any alignment), percent-encoded, and broken over lines. Objects are
searched for what a serialiser would write of them, whatever their text shows. This catches
tools that echo what they were given. It does not catch a tool that hides a token on purpose.
"""

from __future__ import annotations

import base64
import copyreg
import dataclasses
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from types import FunctionType, MappingProxyType, ModuleType
from typing import Any, Final, TypeVar
from urllib.parse import unquote

__all__ = ["REDACTED", "UNSEARCHED", "Search", "scrub"]

REDACTED: Final = "[redacted credential]"
UNSEARCHED: Final = "[not searched for credentials]"
MAX_NODES: Final = 1_000_000
MAX_DEPTH: Final = 64

_T = TypeVar("_T")


def scrub(value: _T, tokens: Iterable[str]) -> tuple[_T, bool]:
    """`value` without the tokens, and whether one was found. See `Search`.

    Args:
        value: what the tool returned or raised.
        tokens: compact JWTs.
    """
    search = Search(tokens)
    return search.clean(value), search.found


class Search:
    """Takes tokens out of values.

    Looks into strings, bytes, mappings (keys too), lists, tuples, sets and exceptions (arguments,
    notes, attributes; cause and context are dropped where anything was found, and an exception that
    still shows a token becomes another). Any other object is taken apart as LangGraph's serialiser and
    pickle would, and goes as a whole where a token stands in it. Where nothing was found, the very same
    object comes back. The caller takes messages and commands apart.

    Work is linear in the size of what is searched. What is nested deeper than 64, lies beyond a million
    nodes, contains itself, or can not be taken apart (a generator, a socket) is not searched, and
    therefore not passed on: a constant takes its place.

    Args:
        tokens: compact JWTs.

    Attributes:
        found: whether a token stood in anything so far.
        withheld: whether anything was not passed on because it could not be searched.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        self.found = self.withheld = False
        self._forms = [form for token in tokens if token for form in _forms(token)]
        self._nodes = 0
        self._open: set[int] = set()
        self._raised = False

    def clean(self, value: _T) -> _T:
        """`value` without the tokens."""
        self._nodes = 0  # each value has its own limit: a message is searched part by part, and then whole
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
        # Only the plain kinds have nothing but their content. What is raised is written by its text.
        raised = isinstance(value, BaseException) and (depth == 0 or self._raised)
        return clean if clean is not value or kind in _PLAIN or raised else self._whole(value)

    def _whole(self, value: Any) -> Any:
        """An object that is passed on as it is, or not at all."""
        if self._raised:
            return value
        holds = self._holds(value)
        if holds is None:
            self.withheld = True
            return UNSEARCHED
        return REDACTED if holds else value

    def _holds(self, value: Any) -> bool | None:
        """Whether a token stands in what would be written of `value`; `None` where that can not be told."""
        todo: list[Any] = [value]
        seen: dict[int, Any] = {}  # with the objects: the id of one that is gone is given to another
        while todo:
            one = todo.pop()
            if one is None or type(one) in _NUMBERS or isinstance(one, _EMPTY) or id(one) in seen:
                continue
            seen[id(one)] = one
            self._nodes += 1
            if isinstance(one, str):
                shows = self._text(one) is not one
            elif isinstance(one, bytes | bytearray | memoryview):
                shows = self._bytes(data := bytes(one)) is not data
            else:
                shows = False
            if shows:
                return True
            if type(one) in _TEXTS:
                continue
            try:
                todo += islice(_parts(one), MAX_NODES - self._nodes - len(todo) + 1)
            except Exception:  # noqa: BLE001  (a foreign `__reduce__`; what can not be taken apart is not known)
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
        self._text(_shown(exc))
        if self.found:
            exc.args = args
            for name, attribute in state.items():
                if attribute is not vars(exc).get(name):
                    vars(exc)[name] = attribute
            exc.__cause__ = exc.__context__ = None
            regrown = isinstance(exc, BaseExceptionGroup) and any(
                self._walk(member, depth) is not member for member in exc.exceptions
            )
            if regrown or self._text(shown := _shown(exc)) is not shown:  # a text of its own making
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
        # Wrapped, the position is lost: the whole text goes.
        # A text inside another one's quotes has its line ends written out.
        if ("\n" in clean or "\\n" in clean or "\r" in clean) and self._in(_unwrapped(clean)):
            clean = REDACTED
        if clean is not text:
            self.found = True
        return clean

    def _in_run(self, run: re.Match[str]) -> str:
        return REDACTED if "%" in run[0] and self._in(unquote(run[0])) else run[0]

    def _in(self, text: str) -> bool:
        return any(form in text for form in self._forms)


_NUMBERS: Final = frozenset((bool, int, float))
_TEXTS: Final = frozenset((str, bytes, bytearray, memoryview))
_PLAIN: Final = _TEXTS | {dict, list, tuple, set, frozenset, MappingProxyType}
# Written by name, or holding nothing.
_EMPTY: Final = (type, FunctionType, ModuleType, type(threading.Lock()), type(threading.RLock()))
# What LangGraph's serialiser asks an object for, the first that it has.
_ASKED: Final = ("model_dump", "get_secret_value", "dict", "_asdict")
_PROTOCOL: Final = 4  # of pickle


def _parts(value: Any) -> Iterator[Any]:
    """What would be written of an object, by LangGraph's serialiser or by pickle.

    Raises:
        Exception: whatever its own methods raise; `TypeError` where it can not be pickled.
    """
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
    # A pickler reduces with what was registered for the kind, else asks the object.
    reducer = copyreg.dispatch_table.get(kind)
    reduced = value.__reduce_ex__(_PROTOCOL) if reducer is None else reducer(value)
    if isinstance(reduced, tuple):  # else a name
        maker, arguments, *rest = reduced
        state, items, pairs, *_ = (*rest, None, None, None)
        yield from (maker, arguments, state)
        yield from items or ()
        yield from chain.from_iterable(pairs or ())


def _shown(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception:  # noqa: BLE001  (a foreign `__str__`; what can not be shown shows no token)
        return ""


def _unwrapped(text: str) -> str:
    # By way of bytes, where the deletion is one pass in C.
    text = text.replace("\\r", "").replace("\\n", "")
    data = text.encode("utf-8", "surrogatepass").translate(None, b" \t\r\n")
    return data.decode("utf-8", "surrogatepass")


# What may stand around a signature: header and payload, or more of the same base64 or percent-encoding.
_BEFORE: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.%+/-")
_AFTER: Final = _BEFORE | {"="}
# Shorter texts stand in others by chance: a token that has none this long is not found.
MIN_FORM: Final = 12
_ESCAPED: Final = re.compile(r"[A-Za-z0-9_.%+/=-]{12,}")


def _without(text: str, form: str) -> str:
    """`text` with the whole run around each occurrence of `form` replaced. One pass."""
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
    """Texts of which one stands in whatever holds the token's signature."""
    signature = token.rpartition(".")[2]
    if len(signature) < 2 * MIN_FORM:  # no signature: somebody else's token, whole
        signature = token
    forms = [signature]
    for alignment in range(3):
        # Only the characters that depend on nothing but the signature.
        padded = base64.b64encode(b"\0" * alignment + signature.encode())
        known = padded[(0, 2, 3)[alignment] : (alignment + len(signature)) * 8 // 6].decode()
        forms += [known, known.translate(_URL_SAFE)]
    return tuple(form for form in dict.fromkeys(forms) if len(form) >= MIN_FORM)


_URL_SAFE: Final = str.maketrans("+/", "-_")
