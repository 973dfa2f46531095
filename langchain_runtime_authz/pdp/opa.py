"""An OPA server as PDP, asked by `opa-python-client` through our own `Link`.

The client alone would retry, follow redirects, and accept answers of any size and with duplicate members. It supports
no CA file, unix socket or pool size.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cache
from typing import Any, Final, NamedTuple, Unpack

from langchain_runtime_authz._http import Link, PDPConnection
from langchain_runtime_authz._validate import wrong
from langchain_runtime_authz.errors import Code, PDPError
from langchain_runtime_authz.evaluation import MAX_ANSWER_BYTES, Decision
from langchain_runtime_authz.pdp.base import DEFAULT_DEADLINE, RemotePDP, short_revision
from langchain_runtime_authz.pdp.response import parse_answer, parse_json

DECISION: Final = "runtime_authz/decision"
BATCH: Final = "runtime_authz/batch"
_PATH: Final = re.compile(r"[A-Za-z_]\w*(/[A-Za-z_]\w*)*", re.ASCII)
_MAX_ID: Final = 128


class OpaPDP(RemotePDP):
    """Ask an OPA server (`opa run --server`) for the rule at `path`.

    Thread-safe, usable from any number of event loops, and across forks. `close()` it.

    Args:
        url: URL of the server: `http://…`, `https://…` or `unix:///run/opa.sock`.
        path: the rule under `/v1/data` that answers `{"decision": …, "context": {…}}`.
        batch: the rule that answers `{"requests": [input, …]}` with a list of such documents, so that the calls of a
            message are one request. With the default `path`, the default is the shipped policy's rule. If there is
            no such rule, each call is a request of its own, and the requests run concurrently.
        deadline: seconds within which the calls of one message must be answered.
        connection: `timeout`, `ca_file`, `client_cert`, `token_file`, `proxy`, `pool_size`: see `_http.PDPConnection`.

    Attributes:
        revision: `name@revision` of each bundle behind the last answer, sorted, joined by commas. Empty if a bundle's
            manifest has no revision. Data pushed outside bundles (`PUT /v1/data`) does not change this revision. So a
            run's cached permits (`node/enter`, `model/call`) outlast such a push: they last for their `ttl`, and those
            of models and tool nodes without one for the run.
    """

    name = "opa"

    def __init__(
        self,
        url: str = "http://127.0.0.1:8181",
        *,
        path: str = DECISION,
        batch: str | None = None,
        deadline: float = DEFAULT_DEADLINE,
        **connection: Unpack[PDPConnection],
    ) -> None:
        if batch is None and path == DECISION:
            batch = BATCH
        for name, rule in (("path", path), *((("batch", batch),) if batch is not None else ())):
            if not isinstance(rule, str) or not _PATH.fullmatch(rule):  # it becomes part of a URL
                raise wrong(name, "a rule's path, names separated by slashes", rule)
        super().__init__(url, deadline, **connection)
        self._path, self._batch = path, batch
        self._client = _client_class()(self._link)

    async def _ask(self, body: bytes) -> Decision | None:
        return _decision(*await self._query(self._path, body))

    async def _ask_all(self, bodies: Sequence[bytes]) -> Sequence[object]:
        if self._batch is None:
            return await super()._ask_all(bodies)
        results, metadata = await self._query(self._batch, b'{"requests":[' + b",".join(bodies) + b"]}", len(bodies))
        if not isinstance(results, list) or len(results) != len(bodies):
            raise PDPError(Code.PDP_MALFORMED, "another number of answers than of requests")
        return [_decision(result, metadata) for result in results]

    async def _query(self, path: str, body: bytes, n: int = 1) -> tuple[object, _Metadata]:
        answer = await self._client.query_rule((body, n), path, query_params={"provenance": "true"})
        result, metadata = _opened(answer)
        self.revision = metadata.revision if metadata.named else ""
        return result, metadata


class _Metadata(NamedTuple):
    """OPA's metadata of a result. `named`: each bundle has a revision."""

    own_id: str
    revision: str
    named: bool


def _decision(result: object, metadata: _Metadata) -> Decision | None:
    decision = parse_answer(result)
    if decision is None:
        return None
    revision = metadata.revision or decision.policy_revision
    return replace(decision, pdp_decision_id=metadata.own_id, policy_revision=revision)


def _opened(document: object) -> tuple[object, _Metadata]:
    if not isinstance(document, dict):
        raise PDPError(Code.PDP_MALFORMED, "not an object")
    if "result" not in document:  # OPA's answer for `undefined`
        raise PDPError(Code.PDP_UNDEFINED)
    own_id = document.get("decision_id")
    provenance = document.get("provenance")
    bundles = provenance.get("bundles") if isinstance(provenance, dict) else None
    every = bundles.items() if isinstance(bundles, dict) else ()
    each = {name: bundle.get("revision") if isinstance(bundle, dict) else None for name, bundle in every}
    return document["result"], _Metadata(
        own_id[:_MAX_ID] if isinstance(own_id, str) else "",
        short_revision(",".join(f"{name}@{revision or ''}" for name, revision in sorted(each.items()))),
        all(each.values()),
    )


class _Answer:
    """An answer of `Link` in the form that OPA's client reads."""

    status = 200

    def __init__(self, body: bytes) -> None:
        self._document = parse_json(body)

    def raise_for_status(self) -> None:
        """Do nothing: for a bad status, `Link` has raised already."""

    async def json(self) -> Any:
        return self._document


@cache
def _client_class() -> Any:
    """Return a subclass of OPA's client that sends each request once, by a `Link`."""
    from opa_client.opa_async import AsyncOpaClient

    class Client(AsyncOpaClient):  # type: ignore[misc]
        def __init__(self, link: Link) -> None:
            super().__init__()
            self.link, self.root_url = link, f"{link.root}/v1"

        @asynccontextmanager
        async def _request(self, method: str, url: str, json: Any) -> AsyncIterator[_Answer]:
            request, answers = json["input"]
            body, limit = b'{"input":' + request + b"}", answers * MAX_ANSWER_BYTES
            yield _Answer((await self.link.exchange(method, url, body=body, limit=limit)).body)

    return Client
