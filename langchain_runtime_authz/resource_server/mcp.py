"""Protect an MCP server (streamable HTTP): tool calls need a credential."""

from __future__ import annotations

import json
import re
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from http import HTTPStatus
from typing import Any, Final, Literal

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from langchain_runtime_authz.credential import token as claim
from langchain_runtime_authz.credential.authorization_details import check_whole_call
from langchain_runtime_authz.digest import parse_object
from langchain_runtime_authz.errors import AuthzError, Code, ConfigError, CredentialError
from langchain_runtime_authz.pdp.base import PDP, Evaluator
from langchain_runtime_authz.resource_server.asgi import read_body
from langchain_runtime_authz.resource_server.server import (
    BAD_REQUEST,
    NO_SESSION,
    ProtectedApp,
    ResourceServer,
    send_refusal,
)

# Methods that need no token, because they do not reach a tool.
OPEN: Final = frozenset({"initialize", "notifications/initialized", "ping", "server/discover", "tools/list"})
MAX_BODY: Final = 4 * 1024 * 1024
MAX_LEFT: Final = 1024  # ids of requests whose client left before the answer
MAX_SESSIONS: Final = 10_000  # with an owner, and as many without; the SDKs keep as many open
_SESSION: Final = b"mcp-session-id"
_STANDING: Final = "_GET_stream"  # the SDKs' name of the session's stream that a GET opens
_BOM: Final = b"\xef\xbb\xbf"
_EVENT: Final = re.compile(rb"(?:\r\n|\r(?!\n)|\n){2}")  # the end of a server-sent event


class ProtectedMcp(ProtectedApp):
    """An MCP server that serves a `tools/call` only with a token minted for this call.

    The request must have the token's tool and arguments (`credential.authorization_details.check_whole_call`). `initialize`,
    `server/discover`, `ping` and `tools/list` need no token; every other request needs one. A session belongs to the
    subject of its first token, and another subject's request is answered as for an unknown session (404). In a session, a
    request is refused if an earlier one with its id is unanswered: the SDKs could send an answer to the wrong caller.

    Args:
        app: the server's ASGI application (`FastMCP.streamable_http_app()`).
        server: decides which callers may use it.
        prefix: the prefix that the client adds to the tools' names (`tool_name_prefix` of the adapters).
        accept: standings of calls that are served, as in `credential.authorization_details.check_call`; `None` for every standing.
        listing: the tools that `tools/list` shows. `open`: all tools, to everybody. `granted`: the tools in the grant
            of the caller's token; a caller without a token is refused. A PDP: the granted tools that the PDP permits
            or would ask about. For each tool it receives the default request of AuthZEN's MCP binding. A tool
            without a decision is not shown.
    """

    def __init__(
        self,
        app: ASGIApp,
        server: ResourceServer,
        *,
        prefix: str = "",
        accept: Collection[str] | None = None,
        listing: Literal["open", "granted"] | PDP = "open",
    ) -> None:
        super().__init__(app, server)
        if isinstance(listing, str) and listing not in ("open", "granted"):
            raise ConfigError("`listing` is `open`, `granted` or a PDP")
        self._of_tools, self._filters = server.for_tools, listing != "open"
        self._evaluator = None if isinstance(listing, str) else Evaluator(listing)
        self._prefix, self._accept = prefix, accept
        self._busy: set[int] = set()
        self._left: deque[int] = deque(maxlen=MAX_LEFT)
        self._owners: OrderedDict[bytes, tuple[str, str, str]] = OrderedDict()  # by session, the longest unused first
        self._new: OrderedDict[bytes, None] = OrderedDict()  # sessions before their first token

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def bad() -> None:
            await send_refusal(self._server.refusal(BAD_REQUEST), scope, send)

        sessions = _sessions(scope)
        if len(sessions) > 1:
            return await bad()
        if scope["type"] != "http" or scope["method"] != "POST":
            # A resumed stream repeats events, which could hold an unfiltered list.
            resumed = self._filters and any(name.lower() == b"last-event-id" for name, _ in scope["headers"])
            await (bad() if resumed else super()._guarded(scope, receive, send))
            return None
        body = await read_body(receive, MAX_BODY)
        try:  # parsed strictly, so that this check and the application cannot read different methods
            message = parse_object(body or b"")
        except ValueError:
            return await bad()
        again = _again(body or b"", receive)
        if not sessions or not {"id", "method"} <= message.keys():
            await self._served(message, scope, again, send if sessions else self._opening(send))
            return None
        named = message["id"]
        key = hash((*sessions, str(named)))
        if type(named) not in (int, str) or named == _STANDING or key in self._busy or key in self._left:
            return await bad()
        ended = False

        async def sending(sent: Message) -> None:
            nonlocal ended
            await send(sent)
            ended = ended or (sent["type"] == "http.response.body" and not sent.get("more_body", False))

        self._busy.add(key)
        try:
            await self._served(message, scope, again, sending)
        finally:
            self._busy.remove(key)
            if not ended and "credential" in scope.get("state", {}):  # the server may still produce the answer
                self._left.append(key)

    async def _served(self, message: dict[str, Any], scope: Scope, again: Receive, send: Send) -> None:
        method, params = message.get("method"), message.get("params")
        if method == "tools/list" and self._filters:
            await self._admit(scope, again, self._listed(scope, send), self._server.of)
            return
        if isinstance(method, str) and method in OPEN and not (method == "initialize" and _sessions(scope)):
            for session in _sessions(scope):
                for kept in (self._owners, self._new):
                    if session in kept:
                        kept.move_to_end(session)
            await self._app(scope, again, self._with_nonce(send))
            return
        if method != "tools/call":
            await super()._guarded(scope, again, send)
            return
        name, given = (params.get("name"), params.get("arguments")) if isinstance(params, dict) else (None, None)
        given = {} if given is None else given
        if not isinstance(name, str) or not isinstance(given, dict):
            await send_refusal(self._server.refusal(BAD_REQUEST), scope, send)
            return
        # INVARIANT: the checked name and arguments are those in the body that the application reads.
        tool = self._prefix + name
        narrowed = self._of_tools(tool)

        async def of(connection: HTTPConnection) -> claim.Credential:
            credential = await narrowed.of(connection)
            check_whole_call(credential, tool=tool, args=given, accept=self._accept)
            return credential

        await self._admit(scope, again, send, of)

    def _opening(self, send: Send) -> Send:
        """Return a `send` that notes the session that an answer opens."""

        async def sending(message: Message) -> None:
            for session in _sessions(message):
                _keep(self._new, session, None)
            await send(message)

        return sending

    async def _admit(
        self, scope: Scope, receive: Receive, send: Send, of: Callable[[HTTPConnection], Awaitable[Any]]
    ) -> None:
        admitted = False

        async def owning(connection: HTTPConnection) -> claim.Credential:
            nonlocal admitted
            credential: claim.Credential = await of(connection)
            for session in _sessions(scope):
                owner = (credential.issuer, credential.tenant, credential.principal)
                if self._owners.get(session, owner if session in self._new else None) != owner:
                    raise CredentialError(NO_SESSION)
                self._new.pop(session, None)
                _keep(self._owners, session, owner)
            admitted = True
            return credential

        async def sending(message: Message) -> None:
            # Only an owner's request ends its session: not a refusal, and not a request without a token.
            if admitted and message["type"] == "http.response.start":
                status, deletes = message["status"], scope["method"] == "DELETE"
                if status == HTTPStatus.NOT_FOUND or (deletes and status < HTTPStatus.MULTIPLE_CHOICES):
                    for session in _sessions(scope):
                        self._owners.pop(session, None)
            await send(message)

        await super()._admit(scope, receive, sending, owning)

    def _listed(self, scope: Scope, send: Send) -> Send:
        """Return a `send` that lists only tools that the caller may see, or refuses."""
        start: Message = {}
        body = bytearray()

        async def sending(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
            body.extend(message.get("body", b""))
            if message["type"] != "http.response.body" or message.get("more_body", False):
                return
            data: bytes | None = bytes(body)
            if start["status"] < 400:  # noqa: PLR2004
                data = await self._shown(start, bytes(body), scope.get("state", {}).get("credential"))
            if data is None:
                await send_refusal(self._server.refusal(Code.STATUS_UNAVAILABLE), scope, send)
                return
            headers = [(k, v) for k, v in start.get("headers", ()) if k.lower() != b"content-length"]
            await send({**start, "headers": [*headers, (b"content-length", b"%d" % len(data))]})
            await send({"type": "http.response.body", "body": data})

        return sending

    async def _shown(self, start: Message, body: bytes, credential: object) -> bytes | None:
        """Return a body with only the tools that the caller may see; `None` if unreadable."""
        kinds = [v.partition(b";")[0].strip() for k, v in start.get("headers", ()) if k.lower() == b"content-type"]
        try:
            if not isinstance(credential, claim.Credential):
                return None
            if kinds == [b"text/event-stream"]:
                events = _EVENT.split(body.removeprefix(_BOM))
                events = [await self._event(event, credential) for event in events if event]
                return b"".join(event + b"\n\n" for event in events)
            return await self._message(body, credential) if kinds == [b"application/json"] else None
        except (AuthzError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None

    async def _event(self, event: bytes, credential: claim.Credential) -> bytes:
        lines = event.splitlines()
        data = b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:"))
        if not data:
            return event
        rest = [line for line in lines if not line.startswith(b"data:")]
        return b"\n".join([*rest, b"data: " + await self._message(data, credential)])

    async def _message(self, data: bytes, credential: claim.Credential) -> bytes:
        """Return a JSON-RPC message with only the tools that the caller may see."""
        message = parse_object(data)
        if "result" in message:
            result = message["result"]
            tools = {tool["name"]: tool for tool in result["tools"]}
            shown = await self._permitted(credential, list(tools))
            own = {"ttlMs": 0, "cacheScope": "private"}  # MCP 2026-07-28: a cache must not show it to another caller
            result.update({"tools": [tools[name] for name in shown], **{k: v for k, v in own.items() if k in result}})
        return json.dumps(message, ensure_ascii=False).encode()

    async def _permitted(self, credential: claim.Credential, names: Sequence[str]) -> Sequence[str]:
        granted = credential.grant.tools
        named = [name for name in names if granted is None or self._prefix + name in granted]
        if self._evaluator is None:
            return named
        decided = await self._evaluator.aevaluate([self._question(credential, name) for name in named])
        seen = zip(named, decided, strict=True)
        return [name for name, d in seen if d.permit or d.outcome == "approval_required"]

    def _question(self, credential: claim.Credential, name: str) -> bytes:
        """Return the default request for a `tools/call` (AuthZEN COAZ, MCP binding)."""
        properties: dict[str, Any] = {"tenant": credential.tenant, "agents": list(credential.actors)}
        subject = {"type": credential.subject_type, "id": credential.subject, "properties": properties}
        call = {"action": {"name": "tools/call"}, "resource": {"type": "tool", "id": self._prefix + name}}
        return json.dumps({"subject": subject, **call, "context": {"agent": credential.actor}}).encode()


def _sessions(headed: Scope | Message) -> list[bytes]:
    """Return the session ids in the headers of a request or answer."""
    return [value for name, value in headed.get("headers", ()) if name.lower() == _SESSION]


def _keep(kept: OrderedDict[bytes, Any], session: bytes, value: object) -> None:
    kept[session] = value
    kept.move_to_end(session)
    if len(kept) > MAX_SESSIONS:  # the forgotten one is answered as unknown
        kept.popitem(last=False)


def _again(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receiving() -> Message:
        return messages.pop() if messages else await receive()

    return receiving
