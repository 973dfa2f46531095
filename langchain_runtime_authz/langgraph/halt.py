"""The hard stop, for places where no message can carry a denial."""

from __future__ import annotations

from langgraph.errors import GraphBubbleUp

from langchain_runtime_authz.errors import AuthzDenied

__all__ = ["AuthzHalt"]


class AuthzHalt(AuthzDenied, GraphBubbleUp):
    """Stops the graph and leaves the thread resumable.

    A `GraphBubbleUp`, so that RetryPolicy does not retry it, `handle_tool_errors` and error-handling
    middleware do not swallow it, and no error is written to the checkpoint.
    """
