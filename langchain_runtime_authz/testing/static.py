"""A PDP for tests, with a fixed answer, which keeps the requests."""

from __future__ import annotations

from collections.abc import Callable

from langchain_runtime_authz.authzen import EvaluationRequest

__all__ = ["StaticPDP"]


class StaticPDP:
    """Answer every request alike, or by a callable.

    Args:
        permit: `True`, `False`, or a callable. A callable's `bool` becomes the decision. Any other result is the whole
            answer, so a test can return a full or a malformed document.
        name: the PDP's name in records and spans.

    Attributes:
        requests: every request, in order.
    """

    revision = "static"

    def __init__(self, permit: bool | Callable[[EvaluationRequest], object], *, name: str = "static") -> None:
        if not (isinstance(permit, bool) or callable(permit)):
            raise TypeError(f"`permit` must be a bool or a callable, not {type(permit).__name__}")
        self.name = name
        self.requests: list[EvaluationRequest] = []
        self._permit = permit

    def evaluate(self, request: EvaluationRequest, body: bytes) -> object:
        """Keep the request and answer it."""
        self.requests.append(request)
        answer = self._permit if isinstance(self._permit, bool) else self._permit(request)
        return {"decision": answer} if isinstance(answer, bool) else answer

    async def aevaluate(self, request: EvaluationRequest, body: bytes) -> object:
        """Keep the request and answer it."""
        return self.evaluate(request, body)
