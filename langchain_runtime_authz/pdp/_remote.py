"""Common parts of the PDPs behind HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Unpack

from langchain_runtime_authz._http import Link, PDPConnection
from langchain_runtime_authz._validate import checked_seconds
from langchain_runtime_authz.authzen import Decision
from langchain_runtime_authz.errors import PDPError


class RemotePDP:
    """A PDP that is asked through a `Link`.

    Thread-safe, usable from any number of event loops, and across forks. `close()` it.
    """

    def __init__(self, url: str, deadline: float, **connection: Unpack[PDPConnection]) -> None:
        self.deadline = checked_seconds("deadline", deadline)
        self.revision = ""
        self._link = Link(url, **connection)

    async def _ask(self, body: bytes) -> Decision | None:
        raise NotImplementedError

    async def _ask_all(self, bodies: Sequence[bytes]) -> Sequence[object]:
        """Ask one by one, at the same time."""
        return await asyncio.gather(*map(self._ask, bodies), return_exceptions=True)

    async def _healthy(self) -> bool:
        raise NotImplementedError

    def evaluate(self, body: bytes) -> object:
        """Answer one request. Raises `PDPError`, or `TimeoutError` after `timeout`."""
        return self._link.run(lambda: self._ask(body))

    async def aevaluate(self, body: bytes) -> object:
        """Answer one request. Raises `PDPError`, or `TimeoutError` after `timeout`."""
        return await self._link.arun(lambda: self._ask(body))

    def evaluate_batch(self, bodies: Sequence[bytes]) -> Sequence[object]:
        """Answer the calls of a message, within one `timeout`."""
        return self._link.run(lambda: self._ask_all(bodies))

    async def aevaluate_batch(self, bodies: Sequence[bytes]) -> Sequence[object]:
        """Answer the calls of a message, within one `timeout`."""
        return await self._link.arun(lambda: self._ask_all(bodies))

    def healthy(self) -> bool:
        """Return True if decisions can be had. Never raises.

        The PDP must answer a question about nothing with a decision that is not a permit.
        """
        try:
            return self._link.run(self._healthy)
        except (PDPError, TimeoutError):
            return False

    async def ahealthy(self) -> bool:
        """Like `healthy`."""
        try:
            return await self._link.arun(self._healthy)
        except (PDPError, TimeoutError):
            return False

    def close(self) -> None:
        """Close every connection; every later evaluation denies. Idempotent."""
        self._link.close()
