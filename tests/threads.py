"""Run work in threads at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable


def together(work: Callable[[], object], times: int = 8) -> None:
    """Run `work` in so many threads at once and wait for all of them."""
    threads = [threading.Thread(target=work) for _ in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
