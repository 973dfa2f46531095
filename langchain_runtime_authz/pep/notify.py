"""Notifications that a policy obliges to (`notify`).

A notifier accepts a notification at once, or raises. If it raises, a permit that depends on it becomes a deny
(`notify_unavailable`). `docs/recipes/webhook.md` has a notifier that delivers in the background.

A notification holds codes, ids and names, and the policy's own `topic` and `body`. It never holds arguments, texts of
the run or tokens.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Notifier(Protocol):
    def send(self, notification: Mapping[str, Any]) -> None:
        """Accept one notification, without waiting.

        Raises:
            AuditError: `notify_unavailable`; a permit that depends on it becomes a deny.
        """
        ...


class LogNotifier:
    """Write notifications to a standard logger, one JSON object each.

    Args:
        name: the logger's name.
        level: the level of the entries.
    """

    def __init__(self, name: str = "langchain_runtime_authz.notify", level: int = logging.WARNING) -> None:
        self._logger, self._level = logging.getLogger(name), level

    def send(self, notification: Mapping[str, Any]) -> None:
        self._logger.log(self._level, "%s", json.dumps(notification, sort_keys=True))
