"""Ask a server that speaks the OpenID AuthZEN Authorization API 1.0 over HTTPS.

The request is sent unchanged, because it is an AuthZEN evaluation already. Only these members of the answer's `context`
are read, and an obligation is never dropped:

| member | read as |
|---|---|
| `obligations` | the obligations profile's objects; members other than `id` and `type` are the properties |
| … `notification` | our `notify`: `to` becomes `channel`; `topic` and `body` stay |
| … `custom` of the vendor `langchain-runtime-authz` | our obligation that `action` names |
| … `step-up`, `session_termination`, other `custom` | not supported, so the call is denied |
| `reasons` (`[{code}]`), `reason` (text that is a code) | reason codes |
| `ttl`, `policy` (`{revision}`) | as in our own answers |
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, Self, Unpack
from urllib.parse import urlsplit

from langchain_runtime_authz._http import Link, PDPConnection
from langchain_runtime_authz._validate import wrong
from langchain_runtime_authz.errors import Code, ConfigError, PDPError
from langchain_runtime_authz.evaluation import MAX_ANSWER_BYTES, REASON_CODE, Decision, deny
from langchain_runtime_authz.pdp.base import DEFAULT_DEADLINE, RemotePDP, short_revision
from langchain_runtime_authz.pdp.response import is_misspelt, parse_answer, parse_json

WELL_KNOWN: Final = "/.well-known/authzen-configuration"
REQUEST_ID: Final = "X-Request-ID"

VENDOR: Final = "langchain-runtime-authz"  # whose `custom` obligations are ours


class AuthzenPDP(RemotePDP):
    """Ask an AuthZEN PDP.

    Thread-safe, usable from any number of event loops, and across forks. `close()` it.

    Args:
        url: the PDP's identifier: an https URL (http and `unix:///…` on this machine only).
        evaluation: path of the evaluation endpoint, below `url`.
        evaluations: path of the endpoint for all calls of a message. With `None`, each call is a request of its own, and
            the requests run concurrently. Calls of one resource are never sent together: some PDPs answer them alike.
        deadline: seconds within which the calls of one message must be answered.
        connection: `timeout`, `ca_file`, `client_cert`, `token_file`, `proxy`, `pool_size`: see `_http.PDPConnection`.

    Attributes:
        revision: the policy revision in the last answer; empty if the answer has none.
    """

    name = "authzen"

    def __init__(
        self,
        url: str,
        *,
        evaluation: str = "/access/v1/evaluation",
        evaluations: str | None = "/access/v1/evaluations",
        deadline: float = DEFAULT_DEADLINE,
        **connection: Unpack[PDPConnection],
    ) -> None:
        super().__init__(url, deadline, **connection)
        _private(self._link, url)
        self._url = self._link.below("evaluation", evaluation)
        self._batch_url = self._link.below("evaluations", evaluations) if evaluations is not None else None

    @classmethod
    def discover(cls, url: str, *, deadline: float = DEFAULT_DEADLINE, **connection: Unpack[PDPConnection]) -> Self:
        """Fetch a PDP's metadata (AuthZEN 1.0 §9), and return a PDP with its endpoints.

        Raises `ConfigError` if the metadata cannot be fetched, is another PDP's, or names endpoints of another origin.
        """
        _private(Link(url), url).close()  # refuses a URL that cannot be a PDP's
        parts = urlsplit(url)
        origin, path = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
        link = _private(Link(origin, **connection), url)
        try:
            where = link.below("url", WELL_KNOWN + path)
            reply = link.run(lambda: link.exchange("GET", where, limit=MAX_ANSWER_BYTES))
            metadata = parse_json(reply.body)
        except (PDPError, TimeoutError) as exc:
            raise ConfigError(f"the PDP's metadata cannot be had: {exc or type(exc).__name__}") from exc
        finally:
            link.close()
        if not isinstance(metadata, dict) or metadata.get("policy_decision_point") != url:
            raise ConfigError(f"the metadata is not that of {url!r}")
        evaluation, evaluations = (metadata.get(f"access_{name}_endpoint") for name in ("evaluation", "evaluations"))
        batch = _below(origin, evaluations) if "access_evaluations_endpoint" in metadata else None
        return cls(origin, evaluation=_below(origin, evaluation), evaluations=batch, deadline=deadline, **connection)

    async def _ask(self, body: bytes) -> Decision:
        document, sent_id = await self._post(self._url, body, 1)
        return self._heard(_decision(document, sent_id))

    async def _ask_all(self, bodies: Sequence[bytes]) -> Sequence[object]:
        if self._batch_url is None or _alike(bodies):
            return await super()._ask_all(bodies)
        together = b'{"options":{"evaluations_semantic":"execute_all"},"evaluations":[' + b",".join(bodies) + b"]}"
        document, sent_id = await self._post(self._batch_url, together, len(bodies))
        answers = document.get("evaluations") if isinstance(document, dict) else None
        if not isinstance(answers, list) or len(answers) != len(bodies):
            raise PDPError(Code.PDP_MALFORMED, "another number of answers than of requests")
        return [self._heard(_decision(answer, sent_id)) for answer in answers]

    async def _post(self, url: str, body: bytes, n: int) -> tuple[object, str]:
        headers = {REQUEST_ID: (sent_id := secrets.token_hex(16))}
        reply = await self._link.exchange("POST", url, body=body, limit=n * MAX_ANSWER_BYTES, headers=headers)
        if reply.headers.get(REQUEST_ID, sent_id) != sent_id:
            raise PDPError(Code.PDP_MALFORMED, "the answer to another request")
        return parse_json(reply.body), sent_id

    def _heard(self, decision: Decision) -> Decision:
        if decision.failure is None:
            self.revision = decision.policy_revision
        return decision


def _alike(bodies: Sequence[bytes]) -> bool:
    resources = [request.get("resource", {}) for request in map(json.loads, bodies)]
    return len({(r.get("type"), r.get("id")) for r in resources}) < len(resources)


def _private(link: Link, url: str) -> Link:
    if not link.private:
        raise wrong("url", "https, as AuthZEN goes over it", url)
    return link


def _below(origin: str, endpoint: object) -> str:
    """Return the endpoint's path. Refuse another origin: it would get our credentials."""
    if not isinstance(endpoint, str) or not endpoint.startswith(origin + "/"):
        raise ConfigError(f"the endpoint {endpoint!r} of the metadata is not below {origin}")
    return endpoint.removeprefix(origin)


def _decision(answer: object, sent_id: str) -> Decision:
    """Return the decision, or a deny that says that the answer is malformed."""
    context = answer.get("context", {}) if isinstance(answer, dict) else None
    decision = None
    # An obligation outside `context` would be ignored. Its meaning is not guessed: the answer is malformed.
    stray = isinstance(answer, dict) and ("obligations" in answer or is_misspelt(answer) or is_misspelt(context))
    if isinstance(answer, dict) and isinstance(context, dict) and not stray:
        decision = parse_answer({"decision": answer.get("decision"), "context": _projected(context)})
    return replace(decision or deny(Code.PDP_MALFORMED, "pdp"), pdp_decision_id=sent_id)


def _projected(context: dict[str, Any]) -> dict[str, Any]:
    known: dict[str, Any] = {}
    if "obligations" in context:
        given = context["obligations"]
        # Pass on a malformed obligation, so that `parse_answer` refuses the answer: an obligation is never dropped.
        known["obligations"] = [_obligation(o) for o in given] if isinstance(given, list) else given
    several = given if isinstance(given := context.get("reasons"), list) else []
    codes = [context.get("reason"), *(r.get("code") for r in several if isinstance(r, dict))]
    known["reasons"] = [{"code": c} for c in codes if isinstance(c, str) and REASON_CODE.fullmatch(c)][:64]
    if (ttl := context.get("ttl")) is not None:
        known["ttl"] = ttl if isinstance(ttl, int) else 0  # in another form, nothing is kept
    if isinstance(policy := context.get("policy"), dict) and isinstance(policy.get("revision"), str):
        known["policy"] = {"revision": short_revision(policy["revision"])}
    return known


def _obligation(given: object) -> object:
    """Return an obligation in our form, with its other members as `properties`."""
    if not isinstance(given, dict):
        return given
    rest = {k: v for k, v in given.items() if k not in ("id", "type")}
    inner = rest.pop("properties", {})
    properties = {**rest, **inner} if isinstance(inner, dict) else inner
    kind = given.get("type")
    match kind, properties:
        case "notification", {"to": to, "body": body, **more} if not {"channel", "body"} & more.keys():
            kind, properties = "notify", {**more, "body": body, "channel": to}
        case "custom", {"vendor": vendor, "action": action, **ours} if vendor == VENDOR:
            kind, properties = action, ours
    return {"id": given.get("id"), "type": kind, "properties": properties}
