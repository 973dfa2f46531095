"""Ask an approver in this process, by `RuntimeAuthz(on_ask=...)`.

`on_ask` runs outside the graph, in an empty context, with a copy of the question. Its answer counts as the subject's,
because the application is responsible for it.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Mapping
from contextvars import Context
from copy import deepcopy
from typing import Any, Final

from langchain_runtime_authz._display import labelled, printable
from langchain_runtime_authz.pep.run import Effect, PepParts

_log = logging.getLogger(__name__)
OnAsk = Callable[[dict[str, Any]], Any]


def ask_in_terminal(question: Mapping[str, Any]) -> dict[str, Any]:
    """Show each call in the terminal. Approve it if the user types `y`, else reject."""
    decisions = []
    for request in question["action_requests"]:
        print("\n".join(labelled("", line, 4) for line in request["description"].splitlines()))  # noqa: T201
        try:
            approved = input("Approve? [y/N] ").strip().lower() in ("y", "yes")
        except EOFError:
            approved = False
        decisions.append({"type": "approve" if approved else "reject"})
    return {"decisions": decisions}


def _ask(pep: PepParts, question: Mapping[str, Any]) -> Any:
    try:
        given = Context().run(pep.on_ask or ask_in_terminal, deepcopy(dict(question)))
        if inspect.iscoroutine(given):
            given.close()
            raise TypeError("asked by blocking code; use `ainvoke` with async nodes and tools, or a blocking `on_ask`")
    except Exception as exc:  # noqa: BLE001  (the application's code: without an answer the call is denied)
        return _failed(exc)
    return given


async def _aask(pep: PepParts, question: Mapping[str, Any]) -> Any:
    try:
        given = await asyncio.to_thread(Context().run, pep.on_ask or ask_in_terminal, deepcopy(dict(question)))
        return await Context().run(asyncio.ensure_future, given) if inspect.isawaitable(given) else given
    except Exception as exc:  # noqa: BLE001  (as in `_ask`)
        return _failed(exc)


def _failed(exc: Exception) -> None:
    _log.error("`on_ask` failed, so what it was asked about is denied: %s: %s", type(exc).__name__, printable(str(exc)))


AskHere: Final = Effect(_ask, _aask)  # takes a question in LangChain's form; returns the answer
