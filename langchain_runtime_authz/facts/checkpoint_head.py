"""Distinguish the state that a run left from a state that other code changed.

When a root entry ends, the ledger records its last checkpoint (`HEAD`) and the state of waiting child graphs (`BELOW`).
The records are *marks*: named values of a thread. The next root entry loads that checkpoint or a later one. Other code
wrote a later one, or a run that did not end regularly.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, Literal, NamedTuple

HEAD: Final = "head"  # the mark with the newest checkpoint id of the thread's protected runs
MEMORY: Final = "memory"  # the mark with the digest of the memory that protected runs left
BELOW: Final = "below"  # the mark with the digest of the state of waiting child graphs
UNRECORDED: Final = "unrecorded"  # the mark with a task change that the audit log may lack
OF_TASK: Final = "task:"  # prefix of marks that are deleted when the tasks of the root graph have ended
ANEW: Final = "task:anew"  # the mark with the id of a question that a graph without checkpoints asks anew each time
SLOTS: Final = 2**16  # number of marks that all lasting places share (`ChildMark`)
UNKNOWN: Final = ""  # the value of a mark if code of an ended run may still have written a checkpoint

Writer = Literal["ours", "outside", "fork"]


class Head(NamedTuple):
    """The checkpoint that a root entry loads."""

    id: str
    source: str = ""
    newest: str = ""  # the id of the thread's newest checkpoint, if the loaded one is older


class Below(NamedTuple):
    """The state of a root graph's waiting child graphs."""

    digest: str
    updates: tuple[str, ...] = ()  # ids of the checkpoints that `update_state` wrote
    namespaces: tuple[str, ...] = ()  # the child graphs' checkpoint namespaces


def outside_key(checkpoint: str) -> str:
    """Return the key under which a task records a checkpoint that other code wrote."""
    return f"checkpoint:{checkpoint}"


class ChildMark(NamedTuple):
    """The mark in the ledger for the checkpoint that a child graph left.

    `place`: digest of the child's thread and checkpoint namespace. `lasting`: later tasks load the child's state from
    this place too. A child may use a new thread, and so a new place, for each question. So lasting places share `SLOTS`
    marks. If two places share a mark, the mark holds the newer one.
    """

    place: str
    lasting: bool

    @property
    def name(self) -> str:
        return f"child:{int(self.place, 16) % SLOTS}" if self.lasting else f"{OF_TASK}{self.place}"

    def value(self, checkpoint: str | None) -> str:
        return f"{self.place} {checkpoint or UNKNOWN}"

    def left(self, marks: Mapping[str, str]) -> str | None:
        """Return the checkpoint id or `UNKNOWN` in this mark; None if `marks` lacks it."""
        place, _, checkpoint = marks.get(self.name, "").partition(" ")
        return checkpoint if place == self.place else None


def writer_of(head: Head, marks: Mapping[str, str], pinned: Collection[str | None], *, underway: bool) -> Writer:
    """Return who wrote `head`: "ours" (a run of ours), "fork" (it is old), "outside".

    `pinned`: the keys of the task's texts in the ledger. `underway`: a root entry has not ended, or its process died.
    That root entry may then have written newer checkpoints.
    """
    if head.id == marks.get(HEAD) or (not head.newest and outside_key(head.id) in pinned):
        return "ours"
    if head.newest:
        return "fork"
    if (underway or marks.get(HEAD) == UNKNOWN) and head.source in ("input", "loop", "fork"):
        return "ours"
    return "outside"
