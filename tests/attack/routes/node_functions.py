"""Tools that the code of a node calls by itself: no model planned them, no tool node runs them."""

from __future__ import annotations

import asyncio
import threading
from contextvars import copy_context
from typing import Any

from . import Bank, Kit, Play, Route
from .parts import ARGS, in_node


def _invoke(kit: Kit, bank: Bank) -> Play:
    pay = kit.tool(bank.tool())
    return in_node(kit, lambda _: pay.invoke(ARGS), lambda _: pay.ainvoke(ARGS))


def _no_callbacks(kit: Kit, bank: Bank) -> Play:
    pay = kit.tool(bank.tool())
    none: Any = {"callbacks": []}
    return in_node(kit, lambda _: pay.invoke(ARGS, none), lambda _: pay.ainvoke(ARGS, none))


def _in_thread(work: Any) -> None:
    """Run it in a thread of its own; what it raises is lost, as it would be."""

    def quietly() -> None:
        try:
            work()
        except Exception:
            return

    thread = threading.Thread(target=quietly)
    thread.start()
    thread.join()


def _thread_with_context(kit: Kit, bank: Bank) -> Play:
    pay = kit.tool(bank.tool())

    def act(_: Any) -> None:
        context = copy_context()
        _in_thread(lambda: context.run(pay.invoke, ARGS))

    async def aact(_: Any) -> None:
        await asyncio.to_thread(pay.invoke, ARGS)

    return in_node(kit, act, aact)


ROUTES = [
    Route("invoke_in_node", "`tool.invoke` in a node function", _invoke, closed_by=("entry", "guard")),
    Route("no_callbacks", "`tool.invoke(…, callbacks=[])`", _no_callbacks, closed_by=("entry", "guard")),
    Route(
        "thread_with_context",
        "`tool.invoke` in a thread that was given the node's context",
        _thread_with_context,
        closed_by=("entry", "guard"),
    ),
]
