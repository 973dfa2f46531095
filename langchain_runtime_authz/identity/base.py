"""Which workload an agent is."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

__all__ = ["Identity"]


@runtime_checkable
class Identity(Protocol):
    """Names agents. Pure where nothing is attested: asked on the hot path."""

    @property
    def attested(self) -> bool:
        """Whether somebody outside this process vouches for the name."""
        ...

    def agent_id(self, path: tuple[str, ...]) -> str:
        """The id of the agent at `path`, root first; two paths never share one."""
        ...
