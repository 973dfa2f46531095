"""Keep what is found out about classes and functions, and keep none of them alive; make classes that look like others."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any, TypeVar

T = TypeVar("T")


def kept(look: Callable[[Any], T]) -> Callable[[Any], T]:
    """Keep what `look` finds out about a class or function for as long as that lives."""
    found: weakref.WeakKeyDictionary[Any, T] = weakref.WeakKeyDictionary()

    @functools.wraps(look)
    def known(thing: Any) -> T:
        if not isinstance(thing, (type, FunctionType)):
            return look(thing)
        if thing not in found:
            found[thing] = look(thing)
        return found[thing]

    return known


def lookalike(base: Any, members: Mapping[str, Any], *before: type) -> Any:
    """Make a subclass of a class with these members, which shows the class's own name, module and docstring."""
    shown = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    metaclass: Any = type(base)
    return metaclass(base.__name__, (*before, base), {**shown, **members})
