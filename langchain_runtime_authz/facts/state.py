"""Whose work a thread's state is: what a run of ours left there, or what somebody did from outside.

A graph's state can be altered beside every entry: `update_state`, a fork from an older checkpoint,
another process that runs the graph unprotected. When a root entry ends, the ledger remembers the
checkpoint that it left (`HEAD`), and what the graphs below held that it left waiting (`BELOW`); the next entry loads either that one, or what a run in flight or a
dead process of ours went on to, or somebody else's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

__all__ = [
    "BELOW",
    "HEAD",
    "MEMORY",
    "OF_TASK",
    "UNKNOWN",
    "Below",
    "ChildMark",
    "Head",
    "Standing",
    "below_key",
    "fork_key",
    "memory_key",
    "outside_key",
    "standing",
]

HEAD: Final = "head"  # the mark that holds the newest checkpoint id of a thread's own runs

MEMORY: Final = "memory"  # the mark that holds the digest of the memory that a thread's runs left
BELOW: Final = "below"  # the mark that holds the digest of what the waiting children of a thread's runs held
OF_TASK: Final = "task:"  # how the marks begin that are of no use once their root's tasks have ended
SLOTS: Final = 2**16
UNKNOWN: Final = ""  # its value after a run that may still have been writing when it ended

Standing = Literal["ours", "outside", "fork"]


@dataclass(frozen=True, slots=True)
class Head:
    """The checkpoint that a root entry loads.

    `source` is LangGraph's `CheckpointMetadata.source` (input, loop, update, fork). `newest` is the thread's newest
    one, where the caller named another although the thread has moved on.
    """

    id: str
    source: str = ""
    newest: str = ""


class Below(NamedTuple):
    """What waits below a root: digest of what it holds, the checkpoints of it that an `update` left, and its namespaces."""

    digest: str
    updates: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()


def outside_key(checkpoint: str) -> str:
    """The key under which an act from outside that left this checkpoint is pinned, once."""
    return f"checkpoint:{checkpoint}"


def fork_key(jti: str) -> str:
    """The key under which the fork that a root entry begins with is pinned."""
    return f"fork:{jti}"


def memory_key(digest: str) -> str:
    """The key under which an edit of the memory is pinned."""
    return f"memory:{digest}"


def below_key(digest: str) -> str:
    """The key under which an edit of a waiting child's state is pinned."""
    return f"below:{digest}"


@dataclass(frozen=True, slots=True)
class ChildMark:
    """Where the ledger holds the checkpoint which the run of a child left at a `place` (a digest).

    `lasting`: other tasks than the one that called it find the child's state there. Such places may be ever new ones,
    as of a child that works on a thread of its own for each question: so they share `SLOTS` marks, and of two that meet
    in one the newer is remembered.
    """

    place: str
    lasting: bool

    @property
    def name(self) -> str:
        """The mark's name."""
        return f"child:{int(self.place, 16) % SLOTS}" if self.lasting else f"{OF_TASK}{self.place}"

    def value(self, checkpoint: str | None) -> str:
        """What stands in it."""
        return f"{self.place} {checkpoint or UNKNOWN}"

    def left(self, marks: Mapping[str, str]) -> str | None:
        """The checkpoint, `UNKNOWN`, or `None` where the place has no mark."""
        place, _, checkpoint = marks.get(self.name, "").partition(" ")
        return checkpoint if place == self.place else None


def standing(head: Head, marks: Mapping[str, str], pinned: Collection[str | None], *, underway: bool) -> Standing:
    """How `head` stands to what is known of the thread.

    `pinned` are the keys of the pinned texts; `underway`: a root entry has not ended, or its process
    died, so that checkpoints newer than the mark may be its own. An `update` never is.
    """
    if head.newest:
        return "fork"
    if head.id == marks.get(HEAD) or outside_key(head.id) in pinned:
        return "ours"
    if (underway or marks.get(HEAD) == UNKNOWN) and head.source in ("input", "loop", "fork"):
        return "ours"
    return "outside"
