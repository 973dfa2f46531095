"""A PDP for tests, with a fixed answer or a function. It remembers the requests."""

from __future__ import annotations

import json
from collections.abc import Callable

from langchain_runtime_authz.evaluation import EvaluationRequest, parse_request


class StaticPDP:
    """Answer every request with one decision, or with the result of a callable.

    Args:
        permit: `True`, `False`, or a callable that receives the request. If it returns a `bool`, that is
            the decision. Any other result is returned as the PDP's answer, so that a test can give a full
            document or a malformed one. Its exceptions are raised.
        name: the PDP's name in records and spans.
        deadline: seconds for one message's decisions.
    """

    revision = "static"
    in_process = True

    def __init__(
        self, permit: bool | Callable[[EvaluationRequest], object], *, name: str = "static", deadline: float = 2.0
    ) -> None:
        if not (isinstance(permit, bool) or callable(permit)):
            raise TypeError(f"`permit` must be a bool or a callable, not {type(permit).__name__}")
        self.name, self.deadline = name, deadline
        self.bodies: list[bytes] = []  # the JSON of every request, in order
        self._permit = None if isinstance(permit, bool) else permit
        self._answer = json.dumps({"decision": permit is True}).encode()

    @property
    def requests(self) -> list[EvaluationRequest]:
        """Return every request, in order."""
        return [parse_request(body) for body in self.bodies]

    def evaluate(self, body: bytes) -> object:
        """Remember the request and answer it."""
        self.bodies.append(body)
        if self._permit is None:
            return self._answer
        answer = self._permit(parse_request(body))
        return {"decision": answer} if isinstance(answer, bool) else answer

    async def aevaluate(self, body: bytes) -> object:
        """Remember the request and answer it."""
        return self.evaluate(body)
