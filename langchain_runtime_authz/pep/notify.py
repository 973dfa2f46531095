"""Notifications that a policy obliges to (`notify`): who is told, and what happens when nobody can be.

An obligation is a must. A notifier *accepts* a notification at once, or raises: then a permit is no
permit (`notify_unavailable`). What it accepted it delivers in the background, in order, until it
succeeds; while the oldest waits longer than `max_lag`, or too many wait, nothing more is accepted. So a
step never waits for a network, and no permit goes on for long while nobody is told.

A notification holds codes, ids and names, and the `topic` and `body` that the policy itself wrote; never
arguments, texts of the run or tokens.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

from langchain_runtime_authz._link import Link, split_url
from langchain_runtime_authz._validate import checked_count, checked_seconds
from langchain_runtime_authz.errors import AuditError, Code, ConfigError, PDPError
from langchain_runtime_authz.fork import forkable_lock

__all__ = ["LogNotifier", "Notifier", "WebhookNotifier"]

_log = logging.getLogger(__name__)
FIRST_PAUSE: Final = 0.2  # seconds after a failed delivery; doubled each time
LONGEST_PAUSE: Final = 10.0
_OK: Final = range(200, 300)
_HEADER: Final = re.compile(r"[\x20-\x7e]+")


@runtime_checkable
class Notifier(Protocol):
    """Tells somebody."""

    def send(self, notification: Mapping[str, Any]) -> None:
        """Accept one notification, at once.

        Raises:
            AuditError: `notify_unavailable`; a permit that depends on it is a deny.
        """
        ...


class LogNotifier:
    """Writes notifications to a standard logger, one JSON object each.

    Args:
        name: of the logger.
        level: of the entries.
    """

    def __init__(self, name: str = "langchain_runtime_authz.notify", level: int = logging.WARNING) -> None:
        self._logger, self._level = logging.getLogger(name), level

    def send(self, notification: Mapping[str, Any]) -> None:
        """Write one notification."""
        self._logger.log(self._level, "%s", json.dumps(notification, sort_keys=True))


class WebhookNotifier:
    """Posts notifications as JSON; `X-Request-ID` is the decision's id, by which a repeated one is known.

    Delivered means a 2xx answer. No redirect is followed, and no proxy or netrc of the environment is
    used. What waits is lost with the process: the decision log is the record, this is the bell. A
    fork's child begins with nothing waiting.

    Args:
        url: `http://` or `https://`.
        headers: sent along, like `Authorization`; not in the clear, as any of them may be a secret.
        timeout: seconds for one delivery, everything included.
        capacity: notifications that may wait.
        max_lag: seconds that the oldest may wait before nothing more is accepted.
        ca_file: PEM file of the only authorities believed.

    Raises:
        ConfigError: any of it is wrong.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 5.0,
        capacity: int = 1000,
        max_lag: float = 60.0,
        ca_file: str | Path | None = None,
    ) -> None:
        parts = split_url("url", url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("a notifier needs an http:// or https:// URL")
        self._headers = {"Content-Type": "application/json", **(headers or {})}
        if not all(isinstance(t, str) and _HEADER.fullmatch(t) for pair in self._headers.items() for t in pair):
            raise ConfigError("`headers` must be names and values of printable ASCII")  # not shown: one may be a secret
        self._capacity, self._max_lag = checked_count("capacity", capacity), checked_seconds("max_lag", max_lag)
        # What holds for a PDP holds for whoever is told: one deadline, no redirect, nothing of the environment.
        self._link = Link(f"{parts.scheme}://{parts.netloc}", timeout=timeout, ca_file=ca_file)
        if headers and not self._link.private:
            raise ConfigError("`headers` are not sent in the clear: use https or a loopback address")
        self._url = self._link.below("url", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
        self._host = parts.hostname
        self._lock = forkable_lock()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._begin()

    @property
    def waiting(self) -> int:
        """Notifications that are not delivered yet."""
        return len(self._queue)

    def send(self, notification: Mapping[str, Any]) -> None:
        """Accept one notification.

        Raises:
            AuditError: `notify_unavailable`: closed, too many wait, or the oldest waits too long.
        """
        body = json.dumps(notification, sort_keys=True).encode()
        with self._lock:
            if self._pid != os.getpid():
                self._begin()
            late = bool(self._queue) and time.monotonic() - self._queue[0][0] > self._max_lag
            if self._closed or late or len(self._queue) >= self._capacity:
                raise AuditError(Code.NOTIFY_UNAVAILABLE, f"{self!r}: {len(self._queue)} wait")
            self._queue.append((time.monotonic(), str(notification.get("decision_id", "")), body))
            if self._thread is None:
                arguments = (weakref.ref(self), self._wake)
                name = "runtime-authz-notify"
                thread = threading.Thread(target=_deliver, args=arguments, name=name, daemon=True)
                thread.start()
                self._thread = thread
        self._wake.set()

    def close(self, timeout: float = 5.0) -> int:
        """Accept nothing more, give what waits `timeout` seconds to arrive; returns how many did not."""
        self._closed = True
        until = time.monotonic() + timeout
        while self._queue and time.monotonic() < until:
            time.sleep(0.01)
        self._abandoned = True
        self._link.close()
        self._wake.set()
        return len(self._queue)

    def deliver_next(self) -> bool:
        """Deliver the oldest, if one waits; whether there was none, or it arrived."""
        if not self._queue:
            return True
        _, decision_id, body = self._queue[0]
        try:
            status = self._link.run(lambda: self._post(body, decision_id))
        except (PDPError, TimeoutError, ValueError) as exc:
            _log.warning("%r: not delivered (%s)", self, type(exc.__cause__ or exc).__name__)
            return False
        if status not in _OK:
            _log.warning("%r: not delivered (status %d)", self, status)
            return False
        self._queue.popleft()
        return True

    async def _post(self, body: bytes, decision_id: str) -> int:
        headers = {**self._headers, "X-Request-ID": decision_id}
        async with self._link.request("POST", self._url, data=body, headers=headers) as response:
            response.close()  # its body is read by nobody
            return response.status

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._queue: deque[tuple[float, str, bytes]] = deque()
        self._wake = threading.Event()
        self._thread = None
        self._abandoned = False

    def __repr__(self) -> str:
        return f"<WebhookNotifier {self._host}>"  # a path may hold a secret


def _deliver(of: weakref.ref[WebhookNotifier], wake: threading.Event) -> None:
    pause = 0.0
    while True:
        if pause:
            time.sleep(pause)
        else:
            wake.wait(1.0)  # no longer, so that a notifier that was forgotten ends its thread
        notifier = of()
        if notifier is None or notifier._abandoned:  # noqa: SLF001  (its own thread)
            return
        wake.clear()
        arrived = True
        while arrived and notifier.waiting:
            arrived = notifier.deliver_next()
        pause = 0.0 if arrived else min(LONGEST_PAUSE, pause * 2 or FIRST_PAUSE)
        del notifier
