"""JSON forms of Python values, canonical JSON (RFC 8785), and SHA-256 digests.

`as_json` turns parsed arguments into exactly equal JSON values, or refuses them. The PDP decides on this JSON, and its
digest is compared again before the tool runs. So the call that runs is the call that was decided.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import decimal
import enum
import hashlib
import json
import math
import re
import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePath
from typing import Any, Final, cast
from uuid import UUID

import rfc8785
from pydantic import BaseModel

from langchain_runtime_authz.errors import Code, MappingError
from langchain_runtime_authz.evaluation import MAX_DEPTH, MAX_REQUEST_BYTES, strict_json

Encoder = Callable[[object, int], Iterable[str]]
MAX_INT: Final = 2**53 - 1  # RFC 8785 §3.2.2.3 / RFC 7493: parsers may round larger integers
_PLAIN_FLOAT: Final = 1e-4  # below it Python writes a float with an exponent
MAX_VALUES: Final = MAX_REQUEST_BYTES // 2  # each value takes at least two bytes of JSON
MAX_STRING: Final = 4096  # characters; a request has digest and length of a longer free text
_PLAIN_FORMS: Final[Any] = ((str, str.__str__), (int, int.__int__), (float, float.__float__))
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
# Types whose `repr` holds the whole value.
_EXACT_REPR: Final = (bool, float, complex, decimal.Decimal, UUID, PurePath, datetime.timedelta, datetime.tzinfo)


def parse_object(data: str | bytes) -> dict[str, Any]:
    """Parse a JSON object in UTF-8 with unique members and finite numbers.

    Follows RFC 7515 §5.2 and RFC 7519 §4. Raises `ValueError` for anything else, and for JSON nested too deeply.
    """
    try:
        value = strict_json(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not an object")  # noqa: TRY004  (one exception for every kind of bad input)
    return value


def json_encoder(*, ascii_only: bool, finite: bool = True, ordered: bool = True) -> Encoder:
    """Return a JSON encoder. `finite`: refuse NaN, infinities. `ordered`: sort names."""
    spelled = json.encoder.encode_basestring_ascii if ascii_only else json.encoder.encode_basestring
    made = json.JSONEncoder(sort_keys=ordered, separators=(",", ":"), allow_nan=not finite, ensure_ascii=ascii_only)
    encode: Any = json.encoder.c_make_encoder  # type: ignore[attr-defined]  # `None` on other interpreters
    if encode is None:
        return lambda value, _: (made.encode(value),)
    return cast("Encoder", encode(None, made.default, spelled, None, ":", ",", ordered, False, not finite))


# Writes the RFC 8785 form, but only of values that `_flat` accepts.
_encode: Final = json_encoder(ascii_only=False)


def _flat(value: object) -> bool:
    """Return True for a mapping of scalars whose `_encode` form is its RFC 8785 form."""
    if type(value) is not dict or len(value) > MAX_VALUES:
        return False
    for name, held in value.items():
        # RFC 8785 sorts names by UTF-16 units, `_encode` by code points. For ASCII both orders are the same.
        if type(name) is not str or not name.isascii() or "\x00" in name:
            return False
        kind = type(held)
        if kind is str:
            if not (held.isascii() or held.isprintable()) or "\x00" in held:  # a lone surrogate is not printable
                return False
        elif kind is int:
            if not -MAX_INT <= held <= MAX_INT:
                return False
        elif kind is float:
            if not _PLAIN_FLOAT <= abs(held) <= MAX_INT and held != 0:
                return False
        elif held is not None and kind is not bool:
            return False
    return True


def digest(value: Any) -> str:
    """Return `sha256:<hex>` of the RFC 8785 form of a JSON value."""
    try:
        if _flat(value):
            for name, held in value.items():
                if type(held) is float and held.is_integer():  # RFC 8785 writes 5.0 as 5
                    value = {**value, name: int(held)}
            data = "".join(_encode(value, 0)).encode()
        else:
            data = rfc8785.dumps(value)
    except Exception as exc:  # `CanonicalizationError`, or raised by an object that is not a JSON value
        raise MappingError(Code.UNCANONICAL_ARGUMENT) from exc
    return "sha256:" + hashlib.sha256(data).hexdigest()


def as_json(value: object) -> Any:
    """Return the JSON value that represents `value` exactly.

    Scalars, mappings with string keys, lists, tuples, pydantic models, dataclasses, enums, dates, times, decimals,
    UUIDs and paths have a JSON form. Everything else is refused: non-finite numbers, integers beyond 2^53, lone
    surrogates, NUL, sets, bytes, nesting beyond 32 levels, objects that raise when they are read.

    Raises `MappingError`: `uncanonical_argument` for such a value, `request_too_large` for too many values. A value
    that occurs several times counts each time.
    """
    if type(value) is float and math.isfinite(value):
        return value
    if type(value) is dict and _flat(value):
        return dict(value)
    return _project(value, 0, [MAX_VALUES])


def same_json(one: object, other: object) -> bool:
    """Return True if two values have the same JSON form."""
    try:
        return digest(as_json(one)) == digest(as_json(other))
    except (MappingError, RecursionError):
        return False


def _project(value: object, depth: int, left: list[int]) -> Any:
    # Exact types only: a subclass may misreport its value, so `_project_object` converts it first.
    if type(value) is str:
        if "\x00" in value or (not value.isascii() and _SURROGATE.search(value) is not None):
            raise MappingError(Code.UNCANONICAL_ARGUMENT)
        return value
    if value is None or type(value) is bool:
        return value
    if type(value) is int or type(value) is float:
        if not (-MAX_INT <= value <= MAX_INT if type(value) is int else math.isfinite(value)):
            raise MappingError(Code.UNCANONICAL_ARGUMENT)
        return value
    try:
        return _project_object(value, depth, left)
    except MappingError:
        raise
    except Exception as exc:  # raised by the object's own code: it has no JSON form
        raise MappingError(Code.UNCANONICAL_ARGUMENT) from exc


def _project_object(value: object, depth: int, left: list[int]) -> Any:
    if depth >= MAX_DEPTH:
        raise MappingError(Code.UNCANONICAL_ARGUMENT)
    listed = list(value) if isinstance(value, list | tuple) else None
    named = members_of(value) if listed is None else None
    left[0] -= len(listed or named or ())
    if left[0] < 0:
        raise MappingError(Code.REQUEST_TOO_LARGE)
    if listed is not None:
        return [_project(v, depth + 1, left) for v in listed]
    if named is not None:
        if not all(isinstance(key, str) for key, _ in named):
            raise MappingError(Code.UNCANONICAL_ARGUMENT)
        items = {_project(str.__str__(k), depth, left): _project(v, depth + 1, left) for k, v in named}
        if len(items) != len(named):  # two names are equal in JSON, so one would hide the other
            raise MappingError(Code.UNCANONICAL_ARGUMENT)
        return items
    if isinstance(value, enum.Enum):
        return _project(value.value, depth + 1, left)
    if isinstance(value, datetime.date | datetime.time):
        return _project(value.isoformat(), depth + 1, left)
    if isinstance(value, decimal.Decimal) and value.is_finite():
        return str(value)
    if isinstance(value, UUID | PurePath):
        return _project(str(value), depth + 1, left)
    # Use the value of a scalar's subclass, not its own `__str__`.
    for kind, plain in _PLAIN_FORMS:
        if isinstance(value, kind):
            return _project(plain(value), depth, left)
    raise MappingError(Code.UNCANONICAL_ARGUMENT)


def members_of(value: object) -> list[tuple[Any, Any]] | None:
    """Return (name, value) pairs of a mapping, model or dataclass; None for others."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, BaseModel):
        return [(n, getattr(value, n)) for n in type(value).model_fields] + list((value.model_extra or {}).items())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    return None


def abbreviate_strings(value: Any, limit: int = MAX_STRING) -> Any:
    """Return `value` with each long string replaced by its digest and length."""
    if isinstance(value, str):
        if len(value) <= limit:
            return value
        return {"digest": "sha256:" + hashlib.sha256(value.encode()).hexdigest(), "length": len(value)}
    if isinstance(value, dict):
        return {k: abbreviate_strings(v, limit) for k, v in value.items()}
    if isinstance(value, list):
        return [abbreviate_strings(v, limit) for v in value]
    return value


def json_text(value: object) -> str:
    """Return JSON text, with `str` of unknown objects; the fingerprint if that fails."""
    try:
        return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    except Exception:  # noqa: BLE001  (a foreign `items` or `__str__` may fail in any way)
        return fingerprint(value)


def fingerprint(value: object) -> str:
    """Return `sha256:<hex>` of any value's content, to detect a changed value.

    A checkpointer's copy of a value has the same fingerprint, even if an object comes back as a mapping. If an
    object cannot be read, raises, or lies deeper than `2 * MAX_DEPTH` levels, only its class counts.
    """
    return "sha256:" + _look(value, 0, {}).hex()


def _look(value: object, depth: int, seen: dict[int, tuple[object, bytes]]) -> bytes:
    """Return a value's hash. Each object is read once, even if it holds itself."""
    if (known := seen.get(id(value))) is not None:
        return known[1]
    if isinstance(value, enum.Enum):
        value = value.value
    try:
        held = _scalar(value)
        if held is None:
            seen[id(value)] = value, b"itself"  # kept, so that its id is not reused
            held = _within(value, depth + 1, seen)
    except Exception:  # noqa: BLE001  (raised by the object's own code)
        held = _class(value)
    found = hashlib.sha256(held).digest()
    if id(value) in seen:
        seen[id(value)] = value, found
    return found


def _scalar(value: object) -> bytes | None:
    """Return a scalar, text or array as bytes; `None` if it holds other objects."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a checkpointer may return 1 for 1.0
    if isinstance(value, int) and not isinstance(value, bool):
        return b"number" + format(value, "x").encode()  # Python limits the length of decimal text
    if value is None or isinstance(value, _EXACT_REPR):
        return b"told" + repr(value).encode()
    if isinstance(value, str):
        return b"text" + value.encode("utf-8", "surrogatepass")
    if isinstance(value, datetime.date | datetime.time):
        return b"time" + value.isoformat().encode()
    with contextlib.suppress(TypeError):  # it has no buffer
        view = memoryview(value)  # type: ignore[arg-type]
        if "O" not in view.format:
            return f"bytes {view.format} {view.shape}".encode() + view.tobytes()
    return None


def _within(value: object, depth: int, seen: dict[int, tuple[object, bytes]]) -> bytes:
    if depth > 2 * MAX_DEPTH:
        return _class(value)
    if isinstance(value, list | tuple | collections.deque):
        return b"list" + b"".join([_look(item, depth, seen) for item in value])
    if isinstance(value, set | frozenset):
        return b"set" + b"".join(sorted(_look(item, depth, seen) for item in value))
    held = members_of(value)
    if held is None and not isinstance(value, type | types.ModuleType):
        held = list(getattr(value, "__dict__", {}).items())
    if not held and not isinstance(value, Mapping):
        return _class(value)
    return b"map" + b"".join(sorted(_look(k, depth, seen) + _look(v, depth, seen) for k, v in held or ()))


def _class(value: object) -> bytes:
    kind: Any = value if isinstance(value, type | types.FunctionType) else type(value)
    return f"class {kind.__module__}.{kind.__qualname__}".encode()
