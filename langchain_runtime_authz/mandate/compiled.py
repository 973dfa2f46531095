"""The result of a compiler: a mandate, and what it left out with the reason."""

from __future__ import annotations

from typing import NamedTuple

from langchain_runtime_authz.mandate.model import Mandate


class Dropped(NamedTuple):
    """Something that was not taken over into the mandate: a step, a limit or a sentence, and the reason."""

    what: str
    why: str


class Compiled(NamedTuple):
    """A mandate, or None if nothing was ordered, and what was left out."""

    mandate: Mandate | None
    dropped: tuple[Dropped, ...] = ()
