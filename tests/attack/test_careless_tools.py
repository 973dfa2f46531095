"""ASI03 Identity and Privilege Abuse: a tool that prints, returns, raises, stores or streams its token.

The twin is the same graph without protection, whose tool was provisioned with a token that lives on: there
the token ends up in every one of the places.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Annotated, Any

import pytest
from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool, InjectedToolCallId, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_store, get_stream_writer
from langgraph.prebuilt import InjectedStore, ToolRuntime
from langgraph.store.memory import InMemoryStore
from langgraph.types import Command

from langchain_runtime_authz import RuntimeAuthz, ToolProfile, acurrent_credential, current_credential
from langchain_runtime_authz.testing import StaticPDP

from ._graphs import agent_graph, call, hand_written, human, replying

BANK = "https://bank.example"
STATIC = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9." + "c2lnbmF0dXJl" * 7
THREAD = {"configurable": {"thread_id": "t"}}


class Place:
    """One way to be careless: what the tool does with its token, and where that can be read."""

    def __init__(self, protected: bool) -> None:
        self.protected = protected
        self.token = STATIC

    def mine(self) -> str:
        if self.protected:
            self.token = current_credential().token
        return self.token

    def tool(self, how: str) -> BaseTool:
        return getattr(self, how)()  # type: ignore[no-any-return]

    def prints(self) -> BaseTool:
        @tool
        def careless() -> str:
            """Print."""
            print("calling with", self.mine())
            return "done"

        return careless

    def logs(self) -> BaseTool:
        @tool
        def careless() -> str:
            """Log."""
            logging.getLogger("bank.client").info("headers %s", {"Authorization": f"Bearer {self.mine()}"})
            return "done"

        return careless

    def logs_error(self) -> BaseTool:
        @tool
        def careless() -> str:
            """Log an error."""
            try:
                raise ValueError(f"refused {self.mine()}")
            except ValueError:
                logging.getLogger("bank.client").exception("failed")
            return "done"

        return careless

    def returns(self) -> BaseTool:
        @tool
        def careless() -> str:
            """Return."""
            return f"paid with {self.mine()}"

        return careless

    def returns_artifact(self) -> BaseTool:
        @tool(response_format="content_and_artifact")
        def careless() -> tuple[str, dict[str, str]]:
            """Return an artifact."""
            return "done", {"used": self.mine()}

        return careless

    def raises(self) -> BaseTool:
        @tool
        def careless() -> str:
            """Raise."""
            raise RuntimeError(f"refused {self.mine()}")

        return careless

    def updates_state(self) -> BaseTool:
        @tool
        def careless(ident: Annotated[str, InjectedToolCallId]) -> Any:
            """Update the state."""
            return Command(update={"messages": [ToolMessage(self.mine(), tool_call_id=ident)]})

        return careless

    def stores(self) -> BaseTool:
        @tool
        def careless() -> str:
            """Store."""
            get_store().put(("keys",), "bank", {"token": self.mine()})
            return "done"

        return careless

    def stores_injected(self) -> BaseTool:
        @tool
        def careless(store: Annotated[Any, InjectedStore()]) -> str:
            """Store."""
            store.put(("keys", self.mine().rpartition(".")[2]), "bank", {"deep": [self.mine()]})
            return "done"

        return careless

    def stores_by_runtime(self) -> BaseTool:
        @tool
        def careless(runtime: ToolRuntime) -> str:
            """Store."""
            runtime.store.put(("keys",), "bank", {"token": self.mine()})  # type: ignore[union-attr]
            assert runtime.store.get(("keys",), "bank") is not None  # type: ignore[union-attr]
            return "done"

        return careless

    def streams(self) -> BaseTool:
        @tool
        def careless() -> str:
            """Stream."""
            get_stream_writer()({"used": self.mine()})
            return "done"

        return careless

    def streams_by_runtime(self) -> BaseTool:
        @tool
        def careless(runtime: ToolRuntime) -> str:
            """Stream."""
            runtime.stream_writer(f"used {self.mine()}")
            return "done"

        return careless

    def prints_async(self) -> BaseTool:
        @tool
        async def careless() -> str:
            """Print."""
            if self.protected:
                self.token = (await acurrent_credential()).token
            await asyncio.to_thread(print, "calling with", self.token)
            return "done"

        return careless

    def stores_async(self) -> BaseTool:
        @tool
        async def careless() -> str:
            """Store."""
            await get_store().aput(("keys",), "bank", {"token": self.mine()})
            return "done"

        return careless


HOW = [name for name in vars(Place) if name not in ("mine", "tool") and not name.startswith("_")]


def played(how: str, kind: str, protected: bool, capsys: Any, caplog: Any) -> tuple[str, str, RuntimeAuthz]:
    """Everything that a run of the careless tool left behind, as one text; its token; the authz."""
    caplog.set_level(logging.DEBUG)
    place, store, saver = Place(protected), InMemoryStore(), InMemorySaver()
    authz = RuntimeAuthz(
        pdp=StaticPDP(True), profiles={"careless": ToolProfile(effect="pay", sink="external", audience=(BANK,))}
    )
    build = hand_written if kind == "hand" else agent_graph
    graph = build(replying([call("careless", {}, "c1")]), [place.tool(how)], checkpointer=saver, store=store)
    if protected:
        authz.protect(graph)
    left: list[Any] = []

    async def asynchronously() -> None:
        async for chunk in graph.astream(human(), THREAD, stream_mode=["values", "custom", "updates", "messages"]):
            left.append(chunk)

    def play() -> None:
        try:
            if how.endswith("_async"):
                asyncio.run(asynchronously())
            else:
                left.extend(graph.stream(human(), THREAD, stream_mode=["values", "custom", "updates", "messages"]))
        except Exception as exc:
            left.append(repr(exc))

    if protected:
        with authz.run(subject="alice", task="Pay"):
            play()
    else:
        play()
    out, err = capsys.readouterr()
    namespaces = store.list_namespaces()
    items = [item.dict() for namespace in namespaces for item in store.search(namespace)]
    state = [s.values for s in graph.get_state_history(THREAD)]
    texts = [out, err, caplog.text, *map(repr, (left, namespaces, items, state, authz.audit.records))]
    return "\n".join(texts), place.token, authz


@pytest.mark.parametrize("kind", ["hand", "agent"])
@pytest.mark.parametrize("how", HOW)
def test_a_careless_tool_gives_nothing_away(how: str, kind: str, capsys: Any, caplog: Any) -> None:
    """Redacted where it would have stood; the agent revoked; the operator alerted; nothing in any sink."""
    left, token, authz = played(how, kind, True, capsys, caplog)
    assert token != STATIC
    assert token not in left
    assert token.rpartition(".")[2] not in left
    assert token.rpartition(".")[2][-30:] not in left
    assert "[redacted credential]" in left
    assert "a credential was found in the output of careless" in left
    completions = [r for r in authz.audit.records if r["kind"] == "completion"]
    assert [r["leaked"] for r in completions] == [True]
    with authz.run(subject="alice", task="Pay again"), pytest.raises(Exception, match="not permitted"):
        graph = authz.protect(hand_written(replying(), [], name="hand" if kind == "hand" else "agent", checkpointer=InMemorySaver()))
        graph.invoke(human(), THREAD)


@pytest.mark.parametrize("how", HOW)
def test_unenforced_a_careless_tool_gives_its_token_away(how: str, capsys: Any, caplog: Any) -> None:
    """The twin: the same tool, unprotected, and the token that it was provisioned with is there to be read."""
    left, token, _ = played(how, "hand", False, capsys, caplog)
    assert token == STATIC
    assert token.rpartition(".")[2][-30:] in left
    assert "[redacted credential]" not in left
