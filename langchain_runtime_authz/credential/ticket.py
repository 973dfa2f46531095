"""The ticket: the permit of one call and its tokens; and the call that runs now.

An enforcement point passes a `Ticket` to the guard of the tool. The ticket is redeemed once, when the tool starts, and
concluded when the tool ends. Meanwhile the tool may get a credential for each audience of both profile and grant.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from langchain_runtime_authz._flow import Flow, Perform, both, running_loop
from langchain_runtime_authz.credential.token import ISSUED_AT, MARGIN, Credential, Sealed
from langchain_runtime_authz.errors import AuthzError, Code, CredentialError
from langchain_runtime_authz.evaluation import Obligation

if TYPE_CHECKING:
    from langchain_runtime_authz.credential.dpop_proof import ProofKey


class CallCredential(Sealed):
    """The credential of one call, and the call's idempotency key.

    Text forms and pickles hold neither the token nor its key. `copy` and `deepcopy` return the same object.

    Attributes:
        token: the compact JWT. Send it to `audience`; never return or log it.
        claims: the claims, read-only.
        audience: the one resource that may accept the token.
        expires_at: epoch seconds.
        idempotency_key: stable over retry, replay, fork and thread copy of this call.
        scheme: `Bearer` (RFC 6750), or `DPoP` (RFC 9449) if the token is bound to a key.
    """

    __slots__ = ("_key", "audience", "claims", "expires_at", "idempotency_key", "kept_until", "scheme", "token")

    def __init__(self, credential: Credential, idempotency_key: str, since: float, key: ProofKey | None = None) -> None:
        self.token, self.claims = credential.token, credential.claims
        self.audience, self.expires_at = credential.audience, credential.expires_at
        self.idempotency_key, self._key = idempotency_key, key
        self.scheme = "Bearer" if key is None else "DPoP"
        # In this process's monotonic time: `expires_at` is by the ledger's clock, which may differ from the local one.
        self.kept_until = since + self.expires_at - credential.claims[ISSUED_AT] - MARGIN

    def headers(self, method: str, url: str, nonce: str | None = None) -> dict[str, str]:
        """Return the headers that authorize one request: the token and, for DPoP, a proof.

        `url` is absolute, and `nonce` is the server's last `DPoP-Nonce`.
        """
        headers = {"Authorization": f"{self.scheme} {self.token}"}
        if self._key is not None:
            headers["DPoP"] = self._key.proof(method, url, token=self.token, nonce=nonce)
        return headers

    def __repr__(self) -> str:
        return f"<CallCredential audience={self.audience!r}>"


class Minting:
    """A token being minted. Concurrent requests for the same audience wait for it."""

    __slots__ = ("_loop", "key", "over", "since")

    def __init__(self, *, dpop: bool) -> None:
        self.over: Future[None] = Future()
        self.since = time.monotonic()
        self.key: ProofKey | None = None
        self._loop = running_loop()
        if dpop:
            from langchain_runtime_authz.credential.dpop_proof import ProofKey

            self.key = ProofKey()

    @property
    def jkt(self) -> str | None:
        return None if self.key is None else self.key.jkt

    def wait(self) -> None:
        """Wait for the token; on the event loop that mints it, raise `CredentialError`."""
        if self._loop is not None and self._loop is running_loop():
            raise CredentialError(Code.CREDENTIAL_UNAVAILABLE, "another task is minting it; await `acredential`")
        self.over.result()

    async def await_(self) -> None:
        """Wait for the token without blocking the event loop."""
        # Shielded: a cancelled caller must not cancel the minting for others.
        await asyncio.shield(asyncio.wrap_future(self.over))


class Refusals(Protocol):
    """Records each refusal to mint a token, before the caller gets the error."""

    def refused(self, code: str, audience: str | None) -> tuple[Any, ...]:
        """Return the `_flow` effect that records a refused token for `audience`."""


class Ticket(Sealed):
    """The permit for one call.

    `raw`: the arguments that were decided, without injected ones. `reaches`: audiences for which a token may be
    exchanged. `awaited`: the mandate's counter that a success of the call lowers. `redeemed`: the tool has started.
    `leaked`: a token was found in the output. `withheld`: a part of the output could not be searched.

    `mint` takes an audience and the thumbprint of a key or `None`, and returns the `_flow` effect that mints the token.
    `status_check` takes an audience and returns an effect that raises if the run was revoked or its task changed.
    `undo` returns the `ReleaseCall` that takes the claim back if the tool never starts.

    This is not a dataclass, because serialisers write every field of a dataclass, secrets included.
    """

    _pickled = "[ticket]"
    __slots__ = (
        "__weakref__", "_lock", "_minted", "_minting", "_others", "_refusals", "_status_check", "agent", "audiences",
        "awaited", "call_id", "call_key", "concluded", "decision_id", "epoch", "idempotency_key", "jti", "leaked", "mint",
        "obligations", "raw", "reaches", "redeemed", "tool", "undo", "withheld",
    )  # fmt: skip

    def __init__(
        self,
        *,
        tool: str,
        call_id: str | None,
        call_key: str,
        agent: tuple[str, ...],
        epoch: int,
        decision_id: str,
        jti: str,
        idempotency_key: str,
        raw: Mapping[str, Any] | str | None = None,
        audiences: tuple[str, ...] = (),
        obligations: tuple[Obligation, ...] = (),
        undo: Any = None,
        awaited: str = "",
        mint: Callable[[str, str | None], tuple[Any, ...]] | None = None,
        status_check: Callable[[str], tuple[Any, ...]] | None = None,
        refusals: Refusals | None = None,
        reaches: tuple[str, ...] = (),
    ) -> None:
        self.tool, self.call_id, self.call_key, self.agent, self.epoch = tool, call_id, call_key, agent, epoch
        self.decision_id, self.jti, self.idempotency_key = decision_id, jti, idempotency_key
        self.raw, self.audiences, self.reaches, self.obligations = raw, audiences, reaches, obligations
        self.undo, self.awaited, self.mint = undo, awaited, mint
        self._refusals, self._status_check = refusals, status_check
        self.redeemed = self.concluded = self.leaked = self.withheld = False
        self._minted: dict[str, CallCredential] = {}
        self._minting: dict[str, Minting] = {}
        self._others: list[str] = []
        self._lock = threading.Lock()

    def redeem(self) -> None:
        """Start the call. Raises `call_in_progress` if it was started before or has ended."""
        with self._lock:
            if self.redeemed or self.concluded:
                raise AuthzError(Code.CALL_IN_PROGRESS)
            self.redeemed = True

    def withdraw(self) -> bool:
        """Keep a call from starting. Return False if it has started or ended already."""
        with self._lock:
            ours = not (self.redeemed or self.concluded)
            self.concluded = self.concluded or ours
        return ours

    def conclude(self) -> None:
        """End the call: nothing is minted any more. Takes no lock, so it never waits."""
        self.concluded = True

    def minting(self, audience: str | None = None, *, dpop: bool = False) -> Flow[CallCredential]:
        """Return an audience's credential, minted anew if missing or soon to expire."""
        try:
            known = self._audience(audience)
            self.check_running()
            if self._status_check is not None:  # a revoked or corrected call gets neither a new token nor its first one
                yield self._status_check(known)
            found, mine = self._begin(known, dpop)
            while not mine and isinstance(found, Minting):
                yield Perform(found.wait, found.await_)
                found, mine = self._begin(known, dpop)
            if isinstance(found, CallCredential):
                return found
            try:
                if self.mint is None:
                    raise CredentialError(Code.CREDENTIAL_UNAVAILABLE)
                return self._made(known, (yield self.mint(known, found.jkt)), found)
            finally:
                with self._lock:
                    del self._minting[known]
                found.over.set_result(None)
        except CredentialError as exc:
            yield from self.refused(exc, audience)
            raise

    credential, acredential = both(minting)

    def refused(self, error: CredentialError, audience: str | None) -> Flow[CredentialError]:
        """Record that nothing is minted for `audience`, and return `error`."""
        if self._refusals is not None:
            yield self._refusals.refused(error.code, audience)
        return error

    def _audience(self, audience: str | None) -> str:
        if audience is None:
            if len(self.audiences) != 1:
                detail = f"profile and grant of `{self.tool}` share {len(self.audiences)}, so that one must be named"
                raise CredentialError(Code.AUDIENCE, detail)
            audience = self.audiences[0]
        if audience not in self.audiences:
            raise CredentialError(Code.AUDIENCE, f"`{self.tool}`")
        return audience

    def _begin(self, audience: str, dpop: bool) -> tuple[CallCredential | Minting, bool]:
        """Return the credential, or its minting; and True if the caller must mint it."""
        with self._lock:
            self.check_running()
            if (found := self._minted.get(audience)) is not None:
                if (found.scheme == "DPoP") != dpop:
                    detail = f"`{self.tool}` has the token for this audience as {found.scheme}"
                    raise CredentialError(Code.CREDENTIAL_UNAVAILABLE, detail)
                if time.monotonic() < found.kept_until:
                    return found, False
            if (under_way := self._minting.get(audience)) is not None:
                return under_way, False
            mine = self._minting[audience] = Minting(dpop=dpop)
            return mine, True

    def _made(self, audience: str, credential: Credential, mine: Minting) -> CallCredential:
        made = CallCredential(credential, self.idempotency_key, mine.since, mine.key)
        with self._lock:
            if (old := self._minted.get(audience)) is not None:  # the old token is valid until it expires
                self._others.append(old.token)
            self._minted[audience] = made
            # INVARIANT: after `conclude`, `minted_tokens` holds all tokens of the call. For this, a token is listed
            # before the tool gets it, and a concluded call gets none.
            self.check_running()
        return made

    def check_running(self) -> None:
        """Raise `credential_unavailable` unless the call is running."""
        if not self.redeemed or self.concluded:
            raise CredentialError(Code.CREDENTIAL_UNAVAILABLE)

    def track(self, token: str) -> None:
        """Add a token that the call got by exchange, to search the output for it."""
        self._others.append(token)

    def minted_tokens(self) -> tuple[str, ...]:
        """Return all tokens that the call got, to search the tool's output for them."""
        return (*(c.token for c in tuple(self._minted.values())), *self._others)

    def __repr__(self) -> str:
        state = "concluded" if self.concluded else "redeemed" if self.redeemed else "unused"
        return f"<Ticket {self.tool!r} decision={self.decision_id} {state}>"


@dataclass(slots=True, eq=False, repr=False)
class CodeScope:
    """The authorization state of the running code, held in one context variable.

    `refusals`: records refused requests for a token if the code has no ticket. `run`: its `pep.run.Run`. `task`: id of
    the node's Pregel task. `counts`: how often each unplanned call was made so far, to tell equal calls apart.
    `entered`: when the code began (monotonic seconds).
    """

    ticket: Ticket | None = None
    refusals: Refusals | None = None
    run: Any = None
    counts: dict[Any, int] | None = None
    task: str = ""
    entered: float = 0.0


NO_SCOPE: Final = CodeScope()
current_scope: Final[ContextVar[CodeScope]] = ContextVar("runtime_authz_scope", default=NO_SCOPE)
# Returns the run's `Refusals` for code that no enforcement point guards; `None` if the run is over.
_finder: Final[ContextVar[Callable[[], Refusals | None] | None]] = ContextVar("runtime_authz_finder", default=None)


def current_ticket() -> Ticket | None:
    """Return the ticket of the call under way, or `None` outside a tool."""
    return current_scope.get().ticket


class CurrentCall:
    """The call under way, as its tool sees it. A copy or pickle holds no secret."""

    __slots__ = ("_running", "_ticket")

    def __init__(self, ticket: Ticket | None) -> None:
        self._ticket = ticket
        self._running = ticket is not None and not ticket.concluded

    def _call(self) -> Ticket:
        if self._ticket is None or not self._running:
            raise AuthzError(Code.NO_RUN)
        return self._ticket

    @property
    def tool(self) -> str:
        return self._call().tool

    @property
    def call_id(self) -> str | None:
        """The model's id of the call, if it gave one."""
        return self._call().call_id

    @property
    def agent(self) -> tuple[str, ...]:
        """The agent's path, from the root agent."""
        return self._call().agent

    @property
    def idempotency_key(self) -> str:
        """A key of the effect, stable over retry, replay, fork and copy of the thread."""
        return self._call().idempotency_key

    @property
    def decision_id(self) -> str:
        """The id by which the decision is found in the audit log."""
        return self._call().decision_id

    def _credential(self, audience: str | None = None, *, dpop: bool = False) -> Flow[CallCredential]:
        """Return the call's credential for one audience, minted anew if it soon expires.

        Blocks while the ledger answers, and while an issuer outside this process signs; `acredential` does not.

        Args:
            audience: an audience of both the tool's profile and the grant; optional if there is only one.
            dpop: bind the token to a new key of this call (RFC 9449). The credential's `headers` then add a proof.

        Raises `CredentialError`: `audience` if it is not permitted; `credential_unavailable` outside a running tool;
        `credential_revoked` if the run was revoked or its task changed, even if the token was minted before.

        ```python
        @tool
        def pay(recipient: str, amount: float) -> str:
            credential = current_call().credential("https://bank.example", dpop=True)
            headers = credential.headers("POST", "https://bank.example/payments")
            ...
        ```
        """
        if self._ticket is None:
            raise (yield from refused_outside(audience))
        return (yield from self._ticket.minting(audience, dpop=dpop))

    credential, acredential = both(_credential)

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return (str, ("[call]",))


def current_call() -> CurrentCall:
    """Return the call under way. Outside a running tool, any use of the result raises."""
    return CurrentCall(current_ticket())


def refused_outside(audience: str | None) -> Flow[CredentialError]:
    """Return the error for a token request outside a call. Record it if a run is open."""
    told, finder = current_scope.get().refusals, _finder.get()
    if (told := finder() if told is None and finder is not None else told) is None:
        # Without a run there is no log, only the error.
        return CredentialError(Code.CREDENTIAL_UNAVAILABLE, "there is no run here, so this refusal is not recorded")
    yield told.refused(Code.CREDENTIAL_UNAVAILABLE, audience)
    return CredentialError(Code.CREDENTIAL_UNAVAILABLE)


def set_refusals_finder(finder: Callable[[], Refusals | None]) -> None:
    """Set the function that finds the run's `Refusals` for unguarded code."""
    _finder.set(finder)
