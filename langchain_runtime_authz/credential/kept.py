"""One document behind a URL: kept for a while, and fetched by one of those who ask for it.

What is believed is at most `max_age` seconds old, also where the server does not answer any more; and it is
asked for at most every `min_refresh` seconds, whatever is asked of this process.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Final, Generic, NamedTuple, TypeVar

from langchain_runtime_authz._http import Answer, Fetcher

__all__ = ["Kept"]

OK: Final = 200

T = TypeVar("T")


class _Copy(NamedTuple, Generic[T]):
    value: T
    at: float  # monotonic


class Kept(Generic[T]):
    """What a document says. Safe to use from many threads and event loops.

    It is fetched anew when half of `max_age` has passed (who asks meanwhile gets the old one), and where the
    copy does not hold what is asked for.

    Args:
        fetcher: makes the exchange.
        url: of the document.
        headers: of the request.
        read: the document's JSON object (`None`: it did not come) and what was read before (`None`: nothing),
            to what it says. `None` leaves the old copy in place.
        max_age: seconds for which a copy is believed.
        min_refresh: least seconds between two fetches.
        monotonic: seconds.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        url: str,
        headers: Mapping[str, str],
        read: Callable[[Mapping[str, Any] | None, T | None], T | None],
        *,
        max_age: float,
        min_refresh: float,
        monotonic: Callable[[], float],
    ) -> None:
        self._fetcher, self._url, self._headers, self._read = fetcher, url, headers, read
        self._max_age, self._min_refresh, self._monotonic = max_age, min_refresh, monotonic
        self._lock = threading.Lock()
        self._copy: _Copy[T] | None = None
        self._asked = float("-inf")
        self._pending: Future[None] | None = None

    def get(self, holds: Callable[[T], bool] = lambda _: True) -> T | None:
        """What the newest copy says, `None` where none may be believed; fetched where the copy does not hold it."""
        known, pending, mine = self._look(holds)
        if mine is not None:
            try:
                self._keep(self._fetcher.send("GET", self._url, headers=self._headers))
            finally:
                self._done(mine)
        elif pending is not None and not known:
            pending.result()
        return self._believed()

    async def aget(self, holds: Callable[[T], bool] = lambda _: True) -> T | None:
        """Like `get`, without blocking the event loop."""
        known, pending, mine = self._look(holds)
        if mine is not None:
            try:
                self._keep(await self._fetcher.asend("GET", self._url, headers=self._headers))
            finally:
                self._done(mine)
        elif pending is not None and not known:
            # Shielded: who gives up waiting does not end the fetch for the others.
            await asyncio.shield(asyncio.wrap_future(pending))
        return self._believed()

    def _look(self, holds: Callable[[T], bool]) -> tuple[bool, Future[None] | None, Future[None] | None]:
        """Whether a copy that may be believed holds it; the fetch under way; the fetch that the caller has to make."""
        with self._lock:
            now, copy = self._monotonic(), self._copy
            age = float("inf") if copy is None else now - copy.at
            known = copy is not None and age < self._max_age and holds(copy.value)
            if self._pending is not None:
                return known, self._pending, None
            if (known and age < self._max_age / 2) or now - self._asked < self._min_refresh:
                return known, None, None
            self._asked, self._pending = now, Future()
            return known, None, self._pending

    def _keep(self, answer: Answer | None) -> None:
        value = self._read(answer.body if answer is not None and answer.status == OK else None, self._before())
        if value is not None:
            with self._lock:
                # Its age counts from when it was asked for: what is old by then was old at its source.
                self._copy = _Copy(value, self._asked)

    def _before(self) -> T | None:
        with self._lock:
            return None if self._copy is None else self._copy.value

    def _done(self, mine: Future[None]) -> None:
        with self._lock:
            self._pending = None
        mine.set_result(None)

    def _believed(self) -> T | None:
        with self._lock:
            copy = self._copy
            return None if copy is None or not self._monotonic() - copy.at < self._max_age else copy.value
