"""LangChain's MCP clients against protected MCP servers: whose token a call carries, and what a caller sees.

Client and server are of the SDK that is installed: SDK 1 with `langchain-mcp-adapters`, SDK 2 with `langchain.mcp` (`.ci/against mcp`).
If `LRA_MCP_PYTHON` names the Python of the other SDK, the rows of calls are also played against its server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from langchain_runtime_authz import Grant, current_call
from langchain_runtime_authz.errors import ConfigError
from tests.threads import until

from ..attack._graphs import answer_to, call, hand_written, human, replying
from .downstream_services import World, serving
from .mcp_services import FORGED, SDK, bare_mcp, mcp_app, tools_of
from .services import free_port

OTHER = os.environ.get("LRA_MCP_PYTHON")
SERVERS = ["own SDK", *(["other SDK"] if OTHER else [])]
PAY = call("pay", {"recipient": "bob"}, "c1")


class Bank:
    """A protected MCP server, in this process or by the other SDK in its own, and the agents' side."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.stack, self.port, self._printed = stack, free_port(), folder / "printed"
        self.url = f"http://127.0.0.1:{self.port}/mcp"
        self._served: list[str] = []

    def start(self, where: str = "own SDK", permit: Any = True, *, protected: bool = True, **options: Any) -> Bank:
        """Serve. `permit` is for the agents' decisions, and `options` are those of `ProtectedMcp`."""
        reads: dict[str, Any] = {"effect": "read", "sink": "none"}
        pays = {"effect": "pay", "sink": "external", "audience": (self.url,)}
        profiles = {"pay": pays, "note": pays, "wipe": reads, "list_bank": {**reads, "audience": (self.url,)}}
        self.world = World(self.stack, profiles, (self.url,), permit)
        self.authz, origin = self.world.authz, f"http://127.0.0.1:{self.port}"
        if where == "other SDK":
            self._other([str(self.port), self.world.issuer_url])
        else:
            server = self.world.server(self.url, status="introspection", origin=origin)
            app = mcp_app(server, self._served, **options) if protected else bare_mcp(self._served)
            self.stack.enter_context(serving(app, self.port))
        return self

    def _other(self, arguments: list[str]) -> None:
        command = [str(OTHER), "-W", "ignore", "-m", "tests.integration_tests.mcp_services", *arguments]
        with self._printed.open("wb") as out:
            process = self.stack.enter_context(subprocess.Popen(command, stdout=out, cwd=Path(__file__).parents[2]))
        self.stack.callback(process.kill)
        until(lambda: process.poll() is not None or self._answers(), 180)
        assert process.poll() is None, "the other server did not start"

    def _answers(self) -> bool:
        """Whatever it says."""
        with contextlib.suppress(httpx.HTTPError):
            return bool(httpx.get(self.url, trust_env=False).status_code)
        return False

    @property
    def served(self) -> list[str]:
        """What the server did, in any order."""
        return sorted(self._served or (self._printed.read_text().splitlines() if self._printed.exists() else []))

    def graph(self, tools: list[Any], *turns: Any, **options: Any) -> Any:
        """A protected agent that makes these calls."""
        return self.authz.protect(hand_written(replying(*turns), tools, handle_tool_errors=True, **options))


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[Bank]:
    with contextlib.ExitStack() as stack:
        yield Bank(tmp_path, stack)


@pytest.mark.parametrize("where", SERVERS)
@pytest.mark.parametrize("how", ["auth", "dpop"])
async def test_each_call_carries_its_own_users_token(bank: Bank, how: str, where: str) -> None:
    """Two users at the same time, through the tools of one client. Outside a protected call nobody is believed."""
    bank.start(where)
    tools = await tools_of(bank.url, how)
    assert {t.name for t in tools} >= {"pay", "wipe"}

    async def pays(user: str, recipient: str) -> Any:
        turns = [[call("pay", {"recipient": recipient}, "c1")], [call("wipe", {}, "c2")]]
        graph = bank.graph(tools, *turns)
        async with bank.authz.run(subject=user, task=f"Pay {recipient}"):
            return await graph.ainvoke(human())

    states = await asyncio.gather(*(pays(user, recipient) for user, recipient in (("alice", "bob"), ("carol", "dave")) * 3))
    assert bank.served == ["alice pays bob"] * 3 + ["carol pays dave"] * 3
    assert "paid bob for alice" in str(answer_to(states[0]["messages"], "c1").content)
    assert {answer_to(state["messages"], "c2").status for state in states} == {"error"}  # no audience, so no token
    with pytest.raises(BaseException):
        await next(t for t in tools if t.name == "pay").ainvoke({"recipient": "mallory"})
    assert len(bank.served) == 6


@pytest.mark.parametrize("protected", [True, False], ids=["protected", "unenforced"])
async def test_a_call_that_nobody_decided_is_not_served(bank: Bank, protected: bool) -> None:
    """Neither a denied call nor one past the agent's library reaches the tool. The bare twin serves the second one."""
    bank.start(permit=lambda r: r.action.name != "tools/call", protected=protected)
    tools = await tools_of(bank.url)
    graph = bank.graph(tools, [PAY])
    async with bank.authz.run(subject="alice", task="Pay bob"):
        assert answer_to((await graph.ainvoke(human()))["messages"], "c1").status == "error"
    assert bank.served == []
    with contextlib.nullcontext() if not protected else pytest.raises(BaseException):
        await next(t for t in tools if t.name == "pay").ainvoke({"recipient": "mallory"})
    assert bank.served == ([] if protected else ["anybody pays mallory"])


@pytest.mark.parametrize("where", SERVERS)
@pytest.mark.parametrize("name", ["wipe", "pay"])
async def test_a_token_is_for_its_own_tool(bank: Bank, name: str, where: str) -> None:
    """The token of a `pay` call runs `pay` with its arguments and not `wipe`; two methods in one body are none."""
    bank.start(where)
    url, answers = bank.url, {}

    @tool
    def pay(recipient: str) -> str:
        """Pay."""
        headers = {**current_call().credential(url).headers("POST", url), "Accept": "application/json, text/event-stream"}
        params = {"name": name, "arguments": {"recipient": "bob"} if name == "pay" else {}}
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        smuggled = json.dumps(message)[:-1] + ', "method": "tools/list"}'
        hidden = json.dumps(message).replace('"tools/call"', '"tools\\u002fcall"')
        bare = {k: v for k, v in headers.items() if k != "Authorization"}
        kind = {**bare, "Content-Type": "application/json"}
        with httpx.Client(trust_env=False) as client:
            answers["own"] = client.post(url, json=message, headers=headers).status_code
            other = {**message, "params": {**params, "arguments": {"recipient": "mallory"}}}
            answers["other"] = client.post(url, json=other, headers=headers).status_code
            answers["none"] = client.post(url, json=message, headers=bare).status_code
            answers["smuggled"] = client.post(url, content=smuggled, headers=kind).status_code
            answers["hidden"] = client.post(url, content=hidden, headers=kind).status_code
            answers["batch"] = client.post(url, json=[message], headers=bare).status_code
            answers["stream"] = client.get(url, headers=bare).status_code
        return "done"

    graph = bank.graph([pay], [PAY])
    with bank.authz.run(subject="alice", task="Pay bob"):
        graph.invoke(human())
    own = 200 if name == "pay" else 403
    assert answers == {"own": own, "other": 403, "none": 401, "smuggled": 400, "hidden": 401, "batch": 400, "stream": 401}
    assert bank.served == (["alice pays bob"] if name == "pay" else [])


async def test_an_error_of_the_server_is_a_failed_call(bank: Bank) -> None:
    """SDK 1 says `isError` and SDK 2 `is_error`: neither is told or recorded as a success."""
    bank.start()
    graph = bank.graph(await tools_of(bank.url), [call("pay", {"recipient": "nobody"}, "c1")])
    async with bank.authz.run(subject="alice", task="Pay nobody"):
        state = await graph.ainvoke(human())
    assert answer_to(state["messages"], "c1").status == "error"
    assert [r["state"] for r in bank.authz.audit.records if r["kind"] == "completion"] == ["failed"]  # type: ignore[attr-defined]


class Policy:
    """A PDP of the server, which keeps what it was asked."""

    name, revision = "server", "1"

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def evaluate(self, body: bytes) -> Any:
        """Permit alice to pay, ask about a note, and fail about the rest."""
        request = json.loads(body)
        self.asked.append(request)
        match request["resource"]["id"], request["subject"]["id"]:
            case "pay", "alice":
                return {"decision": True, "context": {}}
            case "note", "alice":
                asks = {"id": "approval", "type": "require_approval", "properties": {}}
                return {"decision": False, "context": {"reasons": [{"code": "x"}], "obligations": [asks]}}
            case "wipe", _:
                raise RuntimeError("the policy fails")
        return {"decision": False, "context": {}}

    async def aevaluate(self, body: bytes) -> Any:
        """See `evaluate`."""
        return self.evaluate(body)


NOTE = ["note"] if SDK == 2 else []
LISTINGS: dict[str, tuple[Any, list[str] | None, list[str], list[str]]] = {
    # what `listing` is, and what is seen: without a token, by alice, by bob
    "open": (lambda: "open", [*NOTE, "pay", "wipe"], [*NOTE, "pay", "wipe"], [*NOTE, "pay", "wipe"]),
    "granted": (lambda: "granted", None, ["pay"], ["pay"]),
    "by a policy": (Policy, None, [*NOTE, "pay"], []),
}


@pytest.mark.parametrize("json_response", [True, False], ids=["json", "events"])
@pytest.mark.parametrize("case", LISTINGS)
async def test_a_listing_shows_what_the_caller_may_call(bank: Bank, case: str, json_response: bool) -> None:
    """The agent lists the tools in a step of its own, decided like any other, with its user's token."""
    make, anonymous, alice, bob = LISTINGS[case]
    listing = make()
    bank.start(listing=listing, json_response=json_response)
    seen: dict[str, list[str] | None] = {}

    async def names() -> list[str] | None:
        try:
            return sorted(t.name for t in await tools_of(bank.url))
        except BaseException:  # groups of errors, by SDK 1
            return None

    grant = Grant(tools=["list_bank", "pay"]) if case == "granted" else None
    for user in ("alice", "bob"):
        async with bank.authz.run(subject=user, task="Look", grant=grant), bank.authz.effect("list_bank"):
            seen[user] = await names()
    assert (await names(), seen) == (anonymous, {"alice": alice, "bob": bob})
    if isinstance(listing, Policy):
        request = next(r for r in listing.asked if r["resource"]["id"] == "pay")
        assert (request["action"], request["context"]) == ({"name": "tools/call"}, {"agent": request["context"]["agent"]})


def test_a_listing_is_one_of_three() -> None:
    """A word that is not known does not open the list."""
    with pytest.raises(ConfigError):
        mcp_app(None, [], listing="close")  # type: ignore[arg-type]


MEMOS = {
    # the user's answer → what the server did, and whether it counts as a correction
    "declined": ({"action": "decline"}, [], False),
    "no words": ({"action": "accept", "content": {"memo": ""}}, ["alice notes bob: memo=''"], False),
    "words": ({"action": "accept", "content": {"memo": "rent for May"}}, ["alice notes bob: memo='rent for May'"], True),
}


if SDK == 2:  # by SDK 1 the application's own function answers, and no run waits

    @pytest.mark.parametrize("case", MEMOS)
    async def test_an_elicitations_answer_is_the_answer_to_the_tools_question(bank: Bank, case: str) -> None:
        """A closed answer leaves the task alone, and words correct it. Either way the tool runs once, with a token of its own."""
        answer, served, corrects = MEMOS[case]
        bank.start()
        graph = bank.graph(await tools_of(bank.url), [call("note", {"recipient": "bob"}, "c1")], checkpointer=InMemorySaver())
        config: Any = {"configurable": {"thread_id": "t"}}
        async with bank.authz.run(subject="alice", task="Pay bob"):
            asked = await graph.ainvoke(human(), config)
            (question,) = asked["__interrupt__"]
            assert question.value["type"] == "mcp_elicitation" and bank.served == []
            responses = {r["key"]: answer for r in question.value["requests"]}
            await graph.ainvoke(Command(resume={"responses": responses}), config)
        assert bank.served == served
        decisions = [r["request"] for r in bank.authz.audit.records if r["kind"] == "decision"]  # type: ignore[attr-defined]
        assert decisions[-1]["context"]["task"]["corrections"] == corrects

    @pytest.mark.parametrize("protected", [True, False], ids=["protected", "unenforced"])
    async def test_an_elicitations_answer_approves_nothing(bank: Bank, protected: bool) -> None:
        """A server asks as if about the payment that comes next. The user's yes to it is none to the payment, but for the twin's policy."""

        def asks(request: Any) -> Any:
            pays = request.action.name == "tools/call" and request.resource.id == "pay"
            approval = {"id": "a", "type": "require_approval", "properties": {}}
            denied = {"decision": False, "context": {"reasons": [{"code": "x"}], "obligations": [approval]}}
            return denied if pays and request.context.approval is None else True

        bank.start(permit=asks if protected else True)
        args = {"recipient": "mallory"}
        turns = [[call("note", args, "c1")], [call("pay", args, "c2")]]
        graph = bank.graph(await tools_of(bank.url), *turns, checkpointer=InMemorySaver())
        config: Any = {"configurable": {"thread_id": "t"}}
        async with bank.authz.run(subject="alice", task="Note for mallory"):
            (question,) = (await graph.ainvoke(human(), config))["__interrupt__"]
            (asked,) = question.value["requests"]
            assert asked["message"] == FORGED
            answer = {"action": "accept", "content": {"memo": "yes"}}
            state = await graph.ainvoke(Command(resume={"responses": {asked["key"]: answer}}), config)
            assert bool(state.get("__interrupt__")) is protected
        assert ("alice pays mallory" in bank.served) is not protected
