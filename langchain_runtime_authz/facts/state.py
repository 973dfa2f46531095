"""Tell the state that a protected run left from a state that was changed outside.

When a root entry ends, the ledger remembers the checkpoint that it left (`HEAD`) and what the waiting graphs below held
(`BELOW`). The next entry loads that one, a later one of a run in flight or a dead process, or one of other code.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, Literal, NamedTuple

HEAD: Final = "head"  # the mark that holds the newest checkpoint id of a thread's own runs
MEMORY: Final = "memory"  # the mark that holds the digest of the memory that a thread's runs left
BELOW: Final = "below"  # the mark that holds the digest of what the waiting children of a thread's runs held
UNRECORDED: Final = "unrecorded"  # the mark that holds a change of the task that the audit log may not have
OF_TASK: Final = "task:"  # begins the marks that are of no use once their root's tasks have ended
SLOTS: Final = 2**16
UNKNOWN: Final = ""  # a mark's value after a run that may still have been writing when it ended

Standing = Literal["ours", "outside", "fork"]


class Head(NamedTuple):
    """The checkpoint that a root entry loads. `newest` is the thread's, if the caller named an older one."""

    id: str
    source: str = ""
    newest: str = ""


class Below(NamedTuple):
    """The graphs that wait below a root: their digest, the checkpoints that an `update` left, their namespaces."""

    digest: str
    updates: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()


def outside_key(checkpoint: str) -> str:
    """Return the key under which an act from outside that left this checkpoint is pinned, once."""
    return f"checkpoint:{checkpoint}"


class ChildMark(NamedTuple):
    """The ledger's place for the checkpoint that a child's run left at a `place` (a digest).

    `lasting`: other tasks find the child's state there too. A child with a thread of its own for each question makes ever new
    places, so these share `SLOTS` marks. Of two in one slot the newer is remembered.
    """

    place: str
    lasting: bool

    @property
    def name(self) -> str:
        return f"child:{int(self.place, 16) % SLOTS}" if self.lasting else f"{OF_TASK}{self.place}"

    def value(self, checkpoint: str | None) -> str:
        return f"{self.place} {checkpoint or UNKNOWN}"

    def left(self, marks: Mapping[str, str]) -> str | None:
        """Return the checkpoint, `UNKNOWN`, or `None` if the place has no mark."""
        place, _, checkpoint = marks.get(self.name, "").partition(" ")
        return checkpoint if place == self.place else None


def standing(head: Head, marks: Mapping[str, str], pinned: Collection[str | None], *, underway: bool) -> Standing:
    """Return how `head` stands to what is known of the thread. `pinned` are the keys of the pinned texts.

    `underway`: a root entry has not ended, or its process died, so checkpoints newer than the mark may be its own.
    """
    if head.newest:
        return "fork"
    if head.id == marks.get(HEAD) or outside_key(head.id) in pinned:
        return "ours"
    if (underway or marks.get(HEAD) == UNKNOWN) and head.source in ("input", "loop", "fork"):
        return "ours"
    return "outside"
