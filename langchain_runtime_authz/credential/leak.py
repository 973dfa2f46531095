"""Search what a tool returns, or raises, for the live tokens of its call.

A token is useless without its signature, so the signature segment is what is looked for: as it is,
in base64 (both alphabets, at any alignment), percent-encoded, and broken over lines. This catches
tools that echo what they were given. It does not catch a tool that hides a token on purpose.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import unquote

__all__ = ["REDACTED", "UNSEARCHED", "scrub"]

REDACTED: Final = "[redacted credential]"
UNSEARCHED: Final = "[not searched for credentials]"
MAX_NODES: Final = 1_000_000
MAX_DEPTH: Final = 64

_T = TypeVar("_T")


def scrub(value: _T, tokens: Iterable[str]) -> tuple[_T, bool]:
    """`value` without the tokens, and whether one was found.

    Looks into strings, bytes, mappings (keys too), lists, tuples, sets and exceptions (arguments,
    notes, attributes; cause and context are dropped where anything was found, and an exception that
    still shows a token becomes another). Where nothing was found, the very same object comes back.
    The caller takes messages and models apart.

    Work is linear in the size of `value`. What is nested deeper than 64, lies beyond a million nodes
    or contains itself is not searched, and therefore not passed on: a constant takes its place.

    Args:
        value: what the tool returned or raised.
        tokens: compact JWTs.
    """
    patterns = [_forms(token) for token in tokens if token]
    if not patterns:
        return value, False
    search = _Search(patterns)
    return search.walk(value, 0), search.found


class _Search:
    def __init__(self, forms: list[tuple[str, ...]]) -> None:
        self.found = False
        self._forms = [form for group in forms for form in group]
        self._nodes = 0
        self._open: set[int] = set()

    def walk(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return self._text(value)
        if value is None or isinstance(value, int | float):
            return value
        if isinstance(value, bytes | bytearray):
            text = value.decode("latin-1")
            clean = self._text(text)
            return value if clean is text else type(value)(clean.encode("latin-1"))
        if not isinstance(value, Mapping | list | tuple | set | frozenset | BaseException):
            return value
        self._nodes += 1
        if depth >= MAX_DEPTH or self._nodes > MAX_NODES or id(value) in self._open:
            return UNSEARCHED
        self._open.add(id(value))
        try:
            return self._container(value, depth + 1)
        finally:
            self._open.discard(id(value))

    def _container(self, value: Any, depth: int) -> Any:
        if isinstance(value, BaseException):
            return self._exception(value, depth)
        if isinstance(value, Mapping):
            pairs = [(k, v, self.walk(k, depth), self.walk(v, depth)) for k, v in value.items()]
            self._nodes += len(pairs)
            if all(k is k2 and v is v2 for k, v, k2, v2 in pairs):
                return value
            return {k2: v2 for _, _, k2, v2 in pairs}
        items = list(value)
        self._nodes += len(items)
        clean = [self.walk(item, depth) for item in items]
        if all(a is b for a, b in zip(items, clean, strict=True)):
            return value
        if isinstance(value, tuple) and hasattr(value, "_make"):
            return value._make(clean)
        kind = next(k for k in (list, tuple, set, frozenset) if isinstance(value, k))
        return kind(clean)

    def _exception(self, exc: BaseException, depth: int) -> BaseException:
        outer, self.found = self.found, False
        for linked in (exc.__cause__, exc.__context__):
            if linked is not None:
                self.walk(linked, depth)
        args = self.walk(exc.args, depth)
        state = {k: self.walk(v, depth) for k, v in vars(exc).items()}
        self._text(_shown(exc))
        if self.found:
            exc.args = args
            for name, attribute in state.items():
                if attribute is not vars(exc).get(name):
                    vars(exc)[name] = attribute
            exc.__cause__ = exc.__context__ = None
            regrown = isinstance(exc, BaseExceptionGroup) and any(
                self.walk(member, depth) is not member for member in exc.exceptions
            )
            if regrown or self._text(shown := _shown(exc)) is not shown:  # a text of its own making
                exc = RuntimeError(f"{type(exc).__name__}: {REDACTED}")
        self.found = self.found or outer
        return exc

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
