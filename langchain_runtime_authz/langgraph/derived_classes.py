"""Subclass a class under its own name, and cache results while a class lives."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any, TypeVar

T = TypeVar("T")


def weakly_cached(look: Callable[[Any], T]) -> Callable[[Any], T]:
    """Cache the result of `look` for each class or function, as long as that exists.

    A result that is a class is cached only while the class is in use, because it may keep its base alive.
    """
    found: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

    @functools.wraps(look)
    def remembered(thing: Any) -> T:
        if not isinstance(thing, (type, FunctionType)):
            return look(thing)
        try:
            known = found[thing]
            known = known() if known.__class__ is weakref.ref else known
        except KeyError:
            known = None
        if known is None:
            known = look(thing)
            found[thing] = weakref.ref(known) if isinstance(known, type) else known
        return known  # type: ignore[no-any-return]

    return remembered


def subclass_like(base: Any, members: Mapping[str, Any], *before: type) -> Any:
    """Subclass `before` and `base`, with `members` and the name and docs of `base`."""
    shown = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    metaclass: Any = type(base)
    return metaclass(base.__name__, (*before, base), {**shown, **members})
