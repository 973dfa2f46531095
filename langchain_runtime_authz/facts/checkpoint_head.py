"""Tell whether our runs or other code wrote the state that a root entry loads.

When a root entry ends, the ledger records its last checkpoint (`HEAD`) and the state of waiting child graphs (`CHILDREN`).
These are *marks*: texts that the ledger stores by name for a thread. If the next root entry loads a later checkpoint,
then other code wrote it, or a run of ours that ended without a record.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, Literal, NamedTuple

HEAD: Final = "head"  # mark: id of the newest checkpoint that a protected run of the thread wrote
MEMORY: Final = "memory"  # mark: digest of the memory that protected runs left
CHILDREN: Final = "below"  # mark: digest of the state of waiting child graphs
UNRECORDED: Final = "unrecorded"  # mark: a task change that the audit log may lack
STOPPED: Final = "stopped"  # mark: the thread's last run paused, failed or was cut, so calls may be open
OF_TASK: Final = "task:"  # prefix of marks that are deleted when all LangGraph tasks have ended
REPEATED: Final = "task:anew"  # mark: id of a question that a graph without checkpoints repeats in each run
SLOTS: Final = 2**16  # number of marks that children share: `ChildMark`
UNKNOWN: Final = ""  # value of a mark: code of an ended run may have written a checkpoint since

Writer = Literal["ours", "outside", "fork"]


class CheckpointHead(NamedTuple):
    """The checkpoint that a root entry loads. `source`: LangGraph's name of its cause."""

    id: str
    source: str = ""
    newest: str = ""  # the id of the thread's newest checkpoint, if the loaded one is older
    waits: bool = False  # nodes wait to run, as at a breakpoint


class ChildStates(NamedTuple):
    """The state of a root graph's waiting child graphs."""

    digest: str
    updates: tuple[str, ...] = ()  # ids of the checkpoints that `update_state` wrote
    namespaces: tuple[str, ...] = ()  # the child graphs' checkpoint namespaces


def outside_key(checkpoint: str) -> str:
    """Return the key under which a task records a checkpoint that other code wrote."""
    return f"checkpoint:{checkpoint}"


class ChildMark(NamedTuple):
    """The ledger's mark with the last checkpoint that a child graph wrote.

    A child may use a new thread each time it is called. To bound the number of marks, children whose state outlives
    the task share `SLOTS` marks. A shared mark holds the checkpoint that was written last.
    """

    place: str  # digest of the child's thread and checkpoint namespace
    lasting: bool  # a later task may load the child's state too

    @property
    def name(self) -> str:
        """Return the name of the mark in the ledger."""
        return f"child:{int(self.place, 16) % SLOTS}" if self.lasting else f"{OF_TASK}{self.place}"

    def value(self, checkpoint: str | None) -> str:
        """Return the mark's value: `place`, a blank, and the checkpoint id or `UNKNOWN`."""
        return f"{self.place} {checkpoint or UNKNOWN}"

    def left(self, marks: Mapping[str, str]) -> str | None:
        """Return the checkpoint id or `UNKNOWN` from this mark; None if not in `marks`."""
        place, _, checkpoint = marks.get(self.name, "").partition(" ")
        return checkpoint if place == self.place else None


def writer_of(
    head: CheckpointHead, marks: Mapping[str, str], pinned: Collection[str | None], *, underway: bool
) -> Writer:
    """Return who wrote the checkpoint `head`, by the thread's `marks` in the ledger.

    "ours": a protected run or a recorded correction wrote it. "outside": other code wrote it. "fork": the thread has a
    newer checkpoint. `pinned`: keys of the task's texts in the ledger. `underway`: an earlier root entry has not ended,
    or its process died, so it may have written checkpoints that the marks lack.
    """
    if head.id == marks.get(HEAD) or (not head.newest and outside_key(head.id) in pinned):
        return "ours"
    if head.newest:
        return "fork"
    if (underway or marks.get(HEAD) == UNKNOWN) and head.source in ("input", "loop", "fork"):
        return "ours"
    return "outside"
