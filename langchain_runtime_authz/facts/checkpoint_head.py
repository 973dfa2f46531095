"""Distinguish the state that a run left from a state that other code changed.

When a root entry ends, the ledger records its last checkpoint (`HEAD`) and the state of waiting child graphs (`BELOW`).
The next root entry loads that checkpoint, or a later one: of a run that did not end regularly, or of other code.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, Literal, NamedTuple

HEAD: Final = "head"  # the mark with the newest checkpoint id of the thread's protected runs
MEMORY: Final = "memory"  # the mark with the digest of the memory that these runs left
BELOW: Final = "below"  # the mark with the digest of the state of their waiting children
UNRECORDED: Final = "unrecorded"  # the mark with a task change that the audit log may lack
OF_TASK: Final = "task:"  # prefix of marks that are deleted when the tasks of the root graph have ended
ANEW: Final = "task:anew"  # the mark with the id of a question that its graph, without checkpoints, asks anew each time
SLOTS: Final = 2**16  # marks that lasting places share
UNKNOWN: Final = ""  # the value of a mark if a run may have written after its end

Writer = Literal["ours", "outside", "fork"]


class Head(NamedTuple):
    """The checkpoint that a root entry loads. `newest`: a newer one of the thread."""

    id: str
    source: str = ""
    newest: str = ""


class Below(NamedTuple):
    """A root's waiting child graphs: digest of states, updates, and namespaces."""

    digest: str
    updates: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()


def outside_key(checkpoint: str) -> str:
    """Return the key of the pinned text for a change from outside."""
    return f"checkpoint:{checkpoint}"


class ChildMark(NamedTuple):
    """The mark for the checkpoint that a child graph left.

    `place`: digest of the child's thread and checkpoint namespace. `lasting`: other tasks find the child's state at
    this place too. A child may use a new thread, and so a new place, for each question. So lasting places share `SLOTS`
    marks; of two places in one slot, the newer is kept.
    """

    place: str
    lasting: bool

    @property
    def name(self) -> str:
        return f"child:{int(self.place, 16) % SLOTS}" if self.lasting else f"{OF_TASK}{self.place}"

    def value(self, checkpoint: str | None) -> str:
        return f"{self.place} {checkpoint or UNKNOWN}"

    def left(self, marks: Mapping[str, str]) -> str | None:
        """Return the recorded checkpoint id or `UNKNOWN`, or None without a mark."""
        place, _, checkpoint = marks.get(self.name, "").partition(" ")
        return checkpoint if place == self.place else None


def writer_of(head: Head, marks: Mapping[str, str], pinned: Collection[str | None], *, underway: bool) -> Writer:
    """Return who wrote the checkpoint `head`: we, a fork, or code outside.

    `pinned` are the keys of the pinned texts. `underway`: a root entry has not ended, or its process died. Newer
    checkpoints may then be of that root entry.
    """
    if head.id == marks.get(HEAD) or (not head.newest and outside_key(head.id) in pinned):
        return "ours"
    if head.newest:
        return "fork"
    if (underway or marks.get(HEAD) == UNKNOWN) and head.source in ("input", "loop", "fork"):
        return "ours"
    return "outside"
