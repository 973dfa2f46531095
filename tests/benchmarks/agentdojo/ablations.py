"""Remove one part of the comparison with the mandate, in this process, to see what it is worth."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from langchain_runtime_authz.facts.call_arguments import scalars
from langchain_runtime_authz.mandate import call_matching
from langchain_runtime_authz.mandate.argument_matching import FITS, ArgumentMatcher, Finding
from langchain_runtime_authz.mandate.model import Const, OneOf
from langchain_runtime_authz.mandate.read_outputs import text_of
from langchain_runtime_authz.mandate.value_matching import is_same, text_holds

_MANY = 10**6


@contextmanager
def without_roles() -> Iterator[None]:
    """A value that the mandate names, or that stands in the user's words, fits any argument."""
    compared = ArgumentMatcher.check

    def check(self: Any, argument: Any, value: object, kind: str) -> Finding:
        found = compared(self, argument, value, kind)
        if found.code not in ("value", "missing", "untrusted", "ambiguous"):
            return found
        several = [a for step in self._steps.values() for a in step.args.values()]
        named = [a.value for a in several if isinstance(a, Const)] + [a.values for a in several if isinstance(a, OneOf)]
        known = [v for value in named for v in (value if isinstance(value, tuple) else (value,))]
        items = scalars(value, 100) or []
        said = lambda item: any(is_same(item, k, kind) for k in known) or text_holds(item, self._call.words)
        return FITS if items and all(said(item) for item in items) else found

    with patch.object(ArgumentMatcher, "check", check):
        yield


@contextmanager
def without_consumption() -> Iterator[None]:
    """A step may be taken again and again."""
    compared = call_matching._stand

    def stand(match: Any, counts: Any, spends: Any) -> Any:
        found = compared(match._replace(plan=match.plan._replace(counter="")), counts, spends)
        return found._replace(spends=(*found.spends, call_matching.Spend(match.plan.counter, _MANY)))

    with patch.object(call_matching, "_stand", stand):
        yield


@contextmanager
def without_recomputation() -> Iterator[None]:
    """Any value that a tool of the plan returned is the value of a field."""

    def lax(compared: Callable[..., Finding]) -> Callable[..., Finding]:
        def check(self: Any, argument: Any, items: Any, *kind: str) -> Finding:
            found = compared(self, argument, items, *kind)
            if not found.code:
                return found
            texts = [text_of(o.value) for step in self._steps.values() for o in self._outputs.of(step.tool)]
            seen = all(any(text_holds(item, text) for text in texts) for item in items)
            return FITS if seen else found

        return check

    with (
        patch.object(ArgumentMatcher, "_read", lax(ArgumentMatcher._read)),
        patch.object(ArgumentMatcher, "_extract", lax(ArgumentMatcher._extract)),
    ):
        yield


@contextmanager
def without_text_rule() -> Iterator[None]:
    """A free text may hold anything."""
    with patch.object(ArgumentMatcher, "text", lambda *_, **__: FITS):
        yield
