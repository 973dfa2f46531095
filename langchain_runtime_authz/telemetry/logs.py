"""Add ids to the package's log records, and limit how often a code is logged.

`trace_id`, `span_id`, `thread_id`, `run_id` and `decision_id` are attributes of each record, empty if unknown. A call
site may pass other values as `extra`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Final

from opentelemetry import trace

from langchain_runtime_authz._locks import forkable_lock
from langchain_runtime_authz.credential.ticket import current_scope
from langchain_runtime_authz.errors import Code

BURST: Final = 5  # lines of one code
WINDOW: Final = 60.0  # seconds
MAX_CODES: Final = 256  # a policy may invent codes
_KNOWN: Final = frozenset(Code)


def get_logger(name: str) -> logging.Logger:
    """Return the logger `name`, whose records get ids of trace, thread, run, decision."""
    log = logging.getLogger(name)
    log.addFilter(_add_ids)  # adding it again changes nothing
    return log


def _add_ids(record: logging.LogRecord) -> bool:
    scope, span = current_scope.get(), trace.get_current_span().get_span_context()
    run: Any = scope.run
    found = {
        "trace_id": f"{span.trace_id:032x}" if span.is_valid else "",
        "span_id": f"{span.span_id:016x}" if span.is_valid else "",
        "thread_id": run.scope.thread if run is not None else "",
        "run_id": run.run_id if run is not None else "",
        "decision_id": scope.ticket.decision_id if scope.ticket is not None else "",
    }
    vars(record).update(found | vars(record))
    return True


def lines_left_out() -> Callable[[str], int | None]:
    """Return a function that limits each code to `BURST` lines in `WINDOW` seconds.

    It takes a code, and returns `None` if this line must be left out, else how many were left out before it.
    """
    lines, lock = dict[str, tuple[float, int]](), forkable_lock()  # for each code: begin of its window, lines in it

    def left_out(code: str) -> int | None:
        now = time.monotonic()
        with lock:
            code = code if code in _KNOWN or code in lines or len(lines) < MAX_CODES else ""
            begun, count = lines.get(code, (now, 0))
            more = 0
            if now - begun >= WINDOW:
                begun, count, more = now, 0, max(count - BURST, 0)
            lines[code] = begun, count + 1
        return more if count < BURST else None

    return left_out
