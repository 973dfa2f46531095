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

from langchain_runtime_authz.authzen import MAX_DEPTH
from langchain_runtime_authz.errors import Code, MappingError

__all__ = ["MAX_STRING", "abbreviate", "digest", "project"]

MAX_INT: Final = 2**53 - 1  # RFC 8785 §3.2.2.3 / RFC 7493: beyond it two integers may look alike
MAX_STRING: Final = 4096  # longer free text travels as digest and length


def digest(value: Any) -> str:
    """`sha256:<hex>` of the RFC 8785 form of a JSON value.

    Raises:
        MappingError: `uncanonical_argument`.
    """
    try:
        data = rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, ValueError, RecursionError) as exc:
        raise MappingError(Code.UNCANONICAL_ARGUMENT) from exc
    return "sha256:" + hashlib.sha256(data).hexdigest()


def project(value: object, _depth: int = 0) -> Any:
    """The JSON value that stands for `value`, exactly.

    Scalars, mappings with string keys, lists, tuples, pydantic models, dataclasses, enums, dates,
    times, decimals, UUIDs and paths have a JSON form. Everything else has not: non-finite numbers,
    integers beyond 2^53, lone surrogates, NUL, sets, bytes, nesting beyond 32.

    Raises:
        MappingError: `uncanonical_argument`.
    """
    kind = type(value)
    if kind is str:
        if "\x00" in value or not value.isascii() and _has_surrogate(value):  # type: ignore[operator,attr-defined]
            raise MappingError(Code.UNCANONICAL_ARGUMENT)
        return value
    if value is None or kind is bool:
        return value
    if kind is int:
        if -MAX_INT <= value <= MAX_INT:  # type: ignore[operator]
            return value
        raise MappingError(Code.UNCANONICAL_ARGUMENT)
    if kind is float:
        if math.isfinite(value):  # type: ignore[arg-type]
            return value
        raise MappingError(Code.UNCANONICAL_ARGUMENT)
    if _depth >= MAX_DEPTH:
        raise MappingError(Code.UNCANONICAL_ARGUMENT)
    return _project_object(value, _depth + 1)


def _project_object(value: object, depth: int) -> Any:
    if isinstance(value, Mapping):
        if not all(isinstance(k, str) for k in value):
            raise MappingError(Code.UNCANONICAL_ARGUMENT)
        return {project(str(k)): project(v, depth) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [project(v, depth) for v in value]
    if isinstance(value, BaseModel):
        fields = {name: getattr(value, name) for name in type(value).model_fields}
        return project({**fields, **(value.model_extra or {})}, depth)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return project({f.name: getattr(value, f.name) for f in dataclasses.fields(value)}, depth)
    if isinstance(value, enum.Enum):
        return project(value.value, depth)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal) and value.is_finite():
        return str(value)
    if isinstance(value, uuid.UUID | pathlib.PurePath):
        return project(str(value))
    for base in (str, int, float):  # subclasses of scalars, booleans already gone
        if isinstance(value, base):
            return project(base(value))
    raise MappingError(Code.UNCANONICAL_ARGUMENT)


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
