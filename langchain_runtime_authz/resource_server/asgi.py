"""Read an ASGI request's body or form field, and answer with JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

from langchain_runtime_authz.credential.token import MAX_TOKEN

if TYPE_CHECKING:  # works without Starlette
    from starlette.types import Receive, Scope, Send

MAX_BODY: Final = MAX_TOKEN + 4096


class FormEndpoint:
    """An ASGI application that answers a posted form with JSON."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = [(name.lower(), value) for name, value in scope["headers"]]
        if scope["method"] == "POST":
            status, body, *extra = await self._answer(headers, receive)
        else:
            status, body, *extra = 405, {"error": "invalid_request"}, ("allow", "POST")
        await send_json(send, status, body, [("cache-control", "no-store"), *extra])

    async def _answer(self, headers: list[tuple[bytes, bytes]], receive: Receive) -> tuple[Any, ...]:
        """Return the status, the body, and more headers."""
        raise NotImplementedError


async def form_field(headers: list[tuple[bytes, bytes]], receive: Receive, name: str) -> str | None:
    """Return a form field's value; `None` unless the form has exactly one such field."""
    kinds = [value.partition(b";")[0].strip().lower() for name, value in headers if name == b"content-type"]
    if kinds != [b"application/x-www-form-urlencoded"]:
        return None
    body = await read_body(receive, MAX_BODY)
    try:
        form = parse_qsl(body.decode(), max_num_fields=16) if body is not None else ()
    except ValueError:
        return None
    found = [value for key, value in form if key == name]
    return found[0] if len(found) == 1 else None


async def read_body(receive: Receive, limit: int) -> bytes | None:
    """Return an ASGI request's body; `None` if incomplete or over `limit` bytes."""
    body, more = bytearray(), True  # grows in place: a client may send the body byte by byte
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if message["type"] != "http.request" or len(body) > limit:
            return None
    return bytes(body)


async def send_json(send: Send, status: int, body: Any, headers: Iterable[tuple[str, str]]) -> None:
    """Send a whole ASGI answer with a JSON body."""
    data = json.dumps(body, default=dict).encode()  # `dict` for the read-only mappings of a token's claims
    sent = [*headers, ("content-type", "application/json"), ("content-length", str(len(data)))]
    pairs = [(name.lower().encode(), value.encode()) for name, value in sent]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": data})
