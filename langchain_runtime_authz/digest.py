"""Canonical JSON and digests (RFC 8785, SHA-256).

`project` turns a parsed Python value into the JSON value that the PDP is asked about, exactly or
not at all. What runs is what was decided because both sides compare `digest(project(args))`.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import hashlib
import math
import pathlib
import uuid
from collections.abc import Mapping
from typing import Any, Final

import rfc8785
from pydantic import BaseModel

from langchain_runtime_authz.authzen import MAX_DEPTH, MAX_REQUEST_BYTES
from langchain_runtime_authz.errors import Code, MappingError

__all__ = ["MAX_STRING", "abbreviate", "digest", "project"]

MAX_INT: Final = 2**53 - 1  # RFC 8785 §3.2.2.3 / RFC 7493: beyond it two integers may look alike
MAX_VALUES: Final = MAX_REQUEST_BYTES // 2  # each takes two bytes of JSON at least
MAX_STRING: Final = 4096  # longer free text travels as digest and length


def digest(value: Any) -> str:
    """`sha256:<hex>` of the RFC 8785 form of a JSON value.

    Raises:
        MappingError: `uncanonical_argument`.
    """
    try:
        data = rfc8785.dumps(value)
    except Exception as exc:  # `CanonicalizationError`, and what objects raise that are no JSON value
        raise MappingError(Code.UNCANONICAL_ARGUMENT) from exc
    return "sha256:" + hashlib.sha256(data).hexdigest()


def project(value: object) -> Any:
    """The JSON value that stands for `value`, exactly.

    Scalars, mappings with string keys, lists, tuples, pydantic models, dataclasses, enums, dates,
    times, decimals, UUIDs and paths have a JSON form. Everything else has not: non-finite numbers,
    integers beyond 2^53, lone surrogates, NUL, sets, bytes, nesting beyond 32, objects that raise
    when looked at.

    Raises:
        MappingError: `uncanonical_argument`, or `request_too_large` for more values than any request
            could hold (few lists that hold each other many times are many values).
    """
    return _project(value, 0, [MAX_VALUES])


def _project(value: object, depth: int, left: list[int]) -> Any:
    # Exact types only: a subclass may lie, see `_project_object`.
    if type(value) is str:
        if "\x00" in value or (not value.isascii() and _has_surrogate(value)):
            raise MappingError(Code.UNCANONICAL_ARGUMENT)
        return value
    if value is None or type(value) is bool:
        return value
    if type(value) is int:
        if -MAX_INT <= value <= MAX_INT:
            return value
        raise MappingError(Code.UNCANONICAL_ARGUMENT)
    if type(value) is float:
        if math.isfinite(value):
            return value
        raise MappingError(Code.UNCANONICAL_ARGUMENT)
    try:
        return _project_object(value, depth, left)
    except MappingError:
        raise
    except Exception as exc:  # code of the object's own: what raises has no JSON form
        raise MappingError(Code.UNCANONICAL_ARGUMENT) from exc


def _project_object(value: object, depth: int, left: list[int]) -> Any:
    if depth >= MAX_DEPTH:
        raise MappingError(Code.UNCANONICAL_ARGUMENT)
    if isinstance(value, Mapping):
        return _project_items(list(value.items()), depth, left)
    if isinstance(value, list | tuple):
        items = list(value)
        _spend(left, len(items))
        return [_project(v, depth + 1, left) for v in items]
    if isinstance(value, BaseModel):
        fields = [(name, getattr(value, name)) for name in type(value).model_fields]
        return _project_items(fields + list((value.model_extra or {}).items()), depth, left)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _project_items([(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)], depth, left)
    if isinstance(value, enum.Enum):
        return _project(value.value, depth + 1, left)
    if isinstance(value, datetime.date | datetime.time):
        return _project(value.isoformat(), depth + 1, left)
    if isinstance(value, decimal.Decimal) and value.is_finite():
        return str(value)
    if isinstance(value, uuid.UUID | pathlib.PurePath):
        return _project(str(value), depth + 1, left)
    # Subclasses of scalars, by what they hold and not by what they say of themselves.
    if isinstance(value, str):
        return _project(str.__str__(value), depth, left)
    if isinstance(value, int):
        return _project(int.__int__(value), depth, left)
    if isinstance(value, float):
        return _project(float.__float__(value), depth, left)
    raise MappingError(Code.UNCANONICAL_ARGUMENT)


def _project_items(items: list[tuple[object, object]], depth: int, left: list[int]) -> dict[str, Any]:
    _spend(left, len(items))
    projected: dict[str, Any] = {}
    for key, value in items:
        if not isinstance(key, str):
            raise MappingError(Code.UNCANONICAL_ARGUMENT)
        projected[_project(str.__str__(key), depth, left)] = _project(value, depth + 1, left)
    if len(projected) != len(items):  # two names that JSON can not tell apart: one would hide the other
        raise MappingError(Code.UNCANONICAL_ARGUMENT)
    return projected


def _spend(left: list[int], values: int) -> None:
    left[0] -= values
    if left[0] < 0:
        raise MappingError(Code.REQUEST_TOO_LARGE)


def _has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def abbreviate(value: Any, limit: int = MAX_STRING) -> Any:
    """`value` with each string longer than `limit` replaced by its digest and length.

    Keeps a request small where a tool is handed a document. Never applied to a critical argument.
    """
    if isinstance(value, str):
        if len(value) <= limit:
            return value
        return {"digest": "sha256:" + hashlib.sha256(value.encode()).hexdigest(), "length": len(value)}
    if isinstance(value, dict):
        return {k: abbreviate(v, limit) for k, v in value.items()}
    if isinstance(value, list):
        return [abbreviate(v, limit) for v in value]
    return value
