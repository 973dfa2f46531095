"""An OPA server as PDP, on `opa-python-client`, with what that leaves open shut.

Of the client the asynchronous health check is used, on a hardened session
(`_http`): it retries, follows redirects, knows no CA file, unix socket or pool size. Decisions do
not go through its `query_rule`, which serialises a parsed input again and reads duplicate members.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from langchain_runtime_authz._http import Link, whole_body
from langchain_runtime_authz._validate import checked_seconds, wrong
from langchain_runtime_authz.authzen import (
    MAX_ANSWER_BYTES,
    Decision,
    parse_answer,
    strict_json,
)
from langchain_runtime_authz.errors import Code, PDPError
from langchain_runtime_authz.pdp.base import DEFAULT_DEADLINE, bounded

if TYPE_CHECKING:
    import aiohttp

__all__ = ["OpaPDP"]

DECISION: Final = "runtime_authz/decision"
BATCH: Final = "runtime_authz/batch"
_PATH: Final = re.compile(r"[A-Za-z_]\w*(/[A-Za-z_]\w*)*", re.ASCII)
_MAX_ID: Final = 128


class OpaPDP:
    """Asks an OPA server (`opa run --server`) for the rule at `path`.

    Thread-safe, usable from any number of event loops, and across forks. `close()` it.

    Args:
        url: of the server: `http://…`, `https://…` or `unix:///run/opa.sock`.
        path: the rule under `/v1/data` that answers `{"decision": …, "context": {…}}`.
        batch: the rule that answers `{"requests": [input, …]}` with a list of such documents, so that
            the calls of a message are one request. By default the shipped policy's for the shipped
            `path`, and none for another: then the calls are asked side by side.
        timeout: seconds for one request, everything included.
        ca_file: PEM file of the only authorities believed; the system's when absent.
        client_cert: PEM file, or pair of certificate and key file, for mutual TLS. It and `ca_file` are
            read again when they change; while they do not fit each other, everything is denied.
        token_file: file whose content is sent as bearer token; read again when it changes.
        proxy: URL of an HTTP proxy. The environment's is never used.
        pool_size: connections that may be open at the same time.
        deadline: seconds within which the calls of one message must be answered.

    Raises:
        ConfigError: any of it is wrong. The server is not asked before the first decision.

    Attributes:
        name: `opa`.
        revision: of the bundles that made the last answer: `name@revision`, sorted, with commas. Empty where
            one has no revision in its manifest. What is pushed beside bundles (`PUT /v1/data`) has none, and
            a run's kept permits (`node/enter`, `model/call`) outlast it.
    """

    name = "opa"

    def __init__(
        self,
        url: str = "http://127.0.0.1:8181",
        *,
        path: str = DECISION,
        batch: str | None = None,
        timeout: float = 1.0,
        ca_file: str | Path | None = None,
        client_cert: str | Path | tuple[str | Path, str | Path] | None = None,
        token_file: str | Path | None = None,
        proxy: str | None = None,
        pool_size: int = 10,
        deadline: float = DEFAULT_DEADLINE,
    ) -> None:
        self.deadline = checked_seconds("deadline", deadline)
        if batch is None and path == DECISION:
            batch = BATCH
        for name, rule in (("path", path), *((("batch", batch),) if batch is not None else ())):
            if not isinstance(rule, str) or not _PATH.fullmatch(rule):  # it becomes part of a URL
                raise wrong(name, "a rule's path, names separated by slashes", rule)
        self.revision = ""
        self._link = Link(
            url,
            timeout=timeout,
            ca_file=ca_file,
            client_cert=client_cert,
            token_file=token_file,
            proxy=proxy,
            pool_size=pool_size,
        )
        data = f"{self._link.root}/v1/data"
        self._url = f"{data}/{path}?provenance=true"
        self._batch_url = f"{data}/{batch}?provenance=true" if batch is not None else None

    def evaluate(self, body: bytes) -> object:
        """Answer one request. Raises `PDPError`, or `TimeoutError` after `timeout`."""
        return self._link.run(lambda session: self._ask(session, body))

    async def aevaluate(self, body: bytes) -> object:
        """Answer one request. Raises `PDPError`, or `TimeoutError` after `timeout`."""
        return await self._link.arun(lambda session: self._ask(session, body))

    def evaluate_batch(self, bodies: Sequence[bytes]) -> Sequence[object]:
        """Answer the calls of a message, within one `timeout`."""
        return self._link.run(lambda session: self._ask_all(session, bodies))

    async def aevaluate_batch(self, bodies: Sequence[bytes]) -> Sequence[object]:
        """Answer the calls of a message, within one `timeout`."""
        return await self._link.arun(lambda session: self._ask_all(session, bodies))

    def healthy(self) -> bool:
        """Whether decisions can be had: it is OPA, its bundles are active, and the rule at `path` is there.

        The rule is asked with an empty input, which must be answered with a decision, and not with a
        permit: give a rule of your own a default. Never raises.
        """
        try:
            return self._link.run(self._healthy)
        except (PDPError, TimeoutError):
            return False

    async def ahealthy(self) -> bool:
        """Like `healthy`."""
        try:
            return await self._link.arun(self._healthy)
        except (PDPError, TimeoutError):
            return False

    def close(self) -> None:
        """Close every connection; every later evaluation denies. Idempotent."""
        self._link.close()

    async def _healthy(self, session: aiohttp.ClientSession) -> bool:
        query: dict[str, Any] = {"bundles": "true"}
        if not await _client(self._link, session).check_health(query):
            return False
        nothing = await self._ask(session, b"{}")
        return nothing is not None and not nothing.permit

    async def _ask(self, session: aiohttp.ClientSession, body: bytes) -> Decision | None:
        return _decision(*await self._post(session, self._url, b'{"input":' + body + b"}", 1))

    async def _ask_all(self, session: aiohttp.ClientSession, bodies: Sequence[bytes]) -> Sequence[object]:
        if self._batch_url is None:
            return await asyncio.gather(*(self._ask(session, body) for body in bodies), return_exceptions=True)
        together = b'{"input":{"requests":[' + b",".join(bodies) + b"]}}"
        results, told = await self._post(session, self._batch_url, together, len(bodies))
        if not isinstance(results, list) or len(results) != len(bodies):
            raise PDPError(Code.PDP_MALFORMED, "another number of answers than of requests")
        return [_decision(result, told) for result in results]

    async def _post(self, session: aiohttp.ClientSession, url: str, body: bytes, n: int) -> tuple[object, _Told]:
        reply = await self._link.exchange(session, "POST", url, body=body, limit=n * MAX_ANSWER_BYTES)
        result, told = _opened(reply.body)
        self.revision = told.revision if told.named else ""
        return result, told


class _Told(NamedTuple):
    """What OPA tells beside the result.

    Attributes:
        own_id: OPA's decision id.
        revision: of its bundles.
        named: whether each of them has one.
    """

    own_id: str
    revision: str
    named: bool


def _opened(body: bytes) -> tuple[object, _Told]:
    """What OPA's envelope holds."""
    try:
        document = strict_json(body)
    except (ValueError, RecursionError) as exc:
        raise PDPError(Code.PDP_MALFORMED, type(exc).__name__) from exc
    if not isinstance(document, dict):
        raise PDPError(Code.PDP_MALFORMED, "no object")
    if "result" not in document:  # OPA's way to say `undefined`
        raise PDPError(Code.PDP_UNDEFINED)
    return document["result"], _told(document)


def _decision(result: object, told: _Told) -> Decision | None:
    """The decision, or `None` where the rule's value is no decision document."""
    decision = parse_answer(result)
    if decision is None:
        return None
    revision = told.revision or decision.policy_revision
    return replace(decision, pdp_decision_id=told.own_id, policy_revision=revision)


def _told(document: dict[str, Any]) -> _Told:
    own_id = document.get("decision_id")
    provenance = document.get("provenance")
    bundles = provenance.get("bundles") if isinstance(provenance, dict) else None
    every = bundles.items() if isinstance(bundles, dict) else ()
    each = {name: bundle.get("revision") if isinstance(bundle, dict) else None for name, bundle in every}
    return _Told(
        own_id[:_MAX_ID] if isinstance(own_id, str) else "",
        bounded(",".join(f"{name}@{revision or ''}" for name, revision in sorted(each.items()))),
        all(each.values()),
    )


def _client(link: Link, session: aiohttp.ClientSession) -> Any:
    """Their client on our session: one attempt, no redirect, our TLS and token."""
    from opa_client.opa_async import AsyncOpaClient

    class Client(AsyncOpaClient):  # type: ignore[misc]
        @asynccontextmanager
        async def _request(self, method: str, url: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:
            async with link.request(session, method, url, **options) as response:
                # Their check is content with any 200, which any server gives. OPA says `{}`.
                said = strict_json(await whole_body(response, MAX_ANSWER_BYTES))
                if not isinstance(said, dict) or "error" in said or "code" in said:
                    raise PDPError(Code.PDP_MALFORMED)
                yield response

        async def check_health(self, query: Any = None, diagnostic_url: str | None = None) -> bool:
            return bool(await super().check_health(query, diagnostic_url or f"{link.root}/health"))

    return Client()
