"""The permit for one call, and what a tool may ask of it while it runs.

A lease is a row in the ledger; here are only the pieces without a store. A `Ticket` goes from the gate
to the guard, is redeemed once as the tool starts and concluded as it ends, and between the two the
tool may have its credential minted: once per audience, for audiences of its profile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

from langchain_runtime_authz.authzen import Obligation
from langchain_runtime_authz.credential.token import REDACTED, Credential
from langchain_runtime_authz.errors import AuthzError, Code, CredentialError

__all__ = [
    "CallCredential",
    "CurrentCall",
    "Ticket",
    "current_call",
    "current_credential",
    "current_ticket",
    "ticket_scope",
]

_current_ticket: Final[ContextVar[Ticket | None]] = ContextVar("runtime_authz_ticket", default=None)


class CallCredential:
    """The credential of one call, with the key that makes its effect repeatable.

    Text forms, copies and pickles never hold the token.
    """

    __slots__ = ("_credential", "_idempotency_key")

    def __init__(self, credential: Credential, idempotency_key: str) -> None:
        self._credential = credential
        self._idempotency_key = idempotency_key

    @property
    def token(self) -> str:
        """The compact JWT. Send it to `audience`; never return or log it."""
        return self._credential.token

    @property
    def claims(self) -> Mapping[str, Any]:
        """The claims, read-only."""
        return self._credential.claims

    @property
    def audience(self) -> str:
        """The one resource that may accept the token."""
        return self._credential.audience

    @property
    def expires_at(self) -> int:
        """Epoch seconds."""
        return self._credential.expires_at

    @property
    def idempotency_key(self) -> str:
        """Stable over retry, replay, fork and thread copy of this call."""
        return self._idempotency_key

    def __repr__(self) -> str:
        return f"<CallCredential audience={self.audience!r}>"

    def __copy__(self) -> CallCredential:
        return self

    def __deepcopy__(self, memo: object) -> CallCredential:
        return self

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return (str, (REDACTED,))


class Ticket:
    """The permit for one call.

    Not a dataclass on purpose: serialisers print those field by field. Copies are the ticket itself,
    pickles a constant string.

    Attributes:
        tool: the tool's name.
        tool_ref: the tool object for which the call was decided; compared by identity.
        call_id: the model's id of the call, where it gave one.
        call_key: the ledger's key of the call.
        agent: path from the root agent.
        epoch: of the task, at the commit.
        args_digest: `digest.digest` of the decided arguments.
        parsed: the parsed arguments object that the tool receives.
        raw: the arguments as decided, without injected ones.
        decision_id: finds the audit record.
        jti: id of the tokens minted for the call.
        idempotency_key: stable over retry, replay, fork and thread copy.
        approval_key: the ledger's key of the approval that the call spent, if it did.
        audiences: for which a token may be minted.
        obligations: what the permit obliges.
        mint: makes the credential for one audience; `None` where there is none to make.
    """

    __slots__ = (
        "_concluded", "_lock", "_minted", "_redeemed",
        "agent", "approval_key", "args_digest", "audiences", "call_id", "call_key", "decision_id", "epoch", "idempotency_key",
        "jti", "mint", "obligations", "parsed", "raw", "tool", "tool_ref",
    )  # fmt: skip

    def __init__(
        self,
        *,
        tool: str,
        tool_ref: object,
        call_id: str | None,
        call_key: str,
        agent: tuple[str, ...],
        epoch: int,
        args_digest: str,
        decision_id: str,
        jti: str,
        idempotency_key: str,
        parsed: Mapping[str, Any] | str | None = None,
        raw: Mapping[str, Any] | str | None = None,
        audiences: tuple[str, ...] = (),
        obligations: tuple[Obligation, ...] = (),
        mint: Callable[[str], Credential] | None = None,
        approval_key: str = "",
    ) -> None:
        self.tool = tool
        self.approval_key = approval_key
        self.tool_ref = tool_ref
        self.call_id = call_id
        self.call_key = call_key
        self.agent = agent
        self.epoch = epoch
        self.args_digest = args_digest
        self.decision_id = decision_id
        self.jti = jti
        self.idempotency_key = idempotency_key
        self.parsed = parsed
        self.raw = raw
        self.audiences = audiences
        self.obligations = obligations
        self.mint = mint
        self._redeemed = False
        self._concluded = False
        self._minted: dict[str, CallCredential] = {}
        self._lock = threading.Lock()

    @property
    def redeemed(self) -> bool:
        """Whether the tool has started."""
        return self._redeemed

    @property
    def concluded(self) -> bool:
        """Whether the call is over."""
        return self._concluded

    def redeem(self) -> None:
        """Start the call.

        Raises:
            AuthzError: `call_in_progress`: redeemed before, or over.
        """
        with self._lock:
            if self._redeemed or self._concluded:
                raise AuthzError(Code.CALL_IN_PROGRESS)
            self._redeemed = True

    def conclude(self) -> None:
        """End the call: nothing is minted or handed out any more."""
        # Without the lock, so that the end of a call never waits for an issuer; see `credential`.
        self._concluded = True

    def credential(self, audience: str | None = None) -> CallCredential:
        """The credential for one audience, minted when first asked for.

        Args:
            audience: one of `audiences`; may be left out where there is exactly one.

        Raises:
            CredentialError: `audience`, or `credential_unavailable`: the tool is not running.
        """
        if audience is None:
            if len(self.audiences) != 1:
                raise CredentialError(Code.AUDIENCE, f"the profile of `{self.tool}` names {len(self.audiences)}")
            audience = self.audiences[0]
        if audience not in self.audiences:
            raise CredentialError(Code.AUDIENCE, f"`{self.tool}`")
        with self._lock:
            self._check_running()
            found = self._minted.get(audience)
            if found is None:
                if self.mint is None:
                    raise CredentialError(Code.CREDENTIAL_UNAVAILABLE)
                found = self._minted[audience] = CallCredential(self.mint(audience), self.idempotency_key)
                # INVARIANT: what was minted is listed before it is handed out, and not handed out
                # after the end: whoever concludes and then reads `minted_tokens` has seen them all.
                self._check_running()
            return found

    def _check_running(self) -> None:
        if not self._redeemed or self._concluded:
            raise CredentialError(Code.CREDENTIAL_UNAVAILABLE)

    def minted_tokens(self) -> tuple[str, ...]:
        """The tokens handed out, for searching what the tool returns."""
        return tuple(c.token for c in tuple(self._minted.values()))

    def __repr__(self) -> str:
        state = "concluded" if self._concluded else "redeemed" if self._redeemed else "unused"
        return f"<Ticket {self.tool!r} decision={self.decision_id} {state}>"

    def __copy__(self) -> Ticket:
        return self

    def __deepcopy__(self, memo: object) -> Ticket:
        return self

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return (str, ("[ticket]",))


def current_ticket() -> Ticket | None:
    """The ticket of the tool that runs in this context."""
    return _current_ticket.get()


@dataclass(frozen=True, slots=True)
class CurrentCall:
    """The call under way, for its tool. Holds nothing secret.

    Attributes:
        tool: the tool's name.
        call_id: the model's id of the call, where it gave one.
        agent: path from the root agent.
        idempotency_key: send it along with the effect: it is the same when the same call is tried again,
            replayed, or run in a fork or a copy of the thread.
        decision_id: finds the audit record.
    """

    tool: str
    call_id: str | None
    agent: tuple[str, ...]
    idempotency_key: str
    decision_id: str


def current_call() -> CurrentCall:
    """The call under way. Call it inside a tool; unlike `current_credential` it needs no audience.

    Raises:
        AuthzError: `no_run` outside a running tool.

    ```python
    @tool
    def pay(recipient: str, amount: float) -> str:
        bank.transfer(recipient, amount, idempotency_key=current_call().idempotency_key)
    ```
    """
    ticket = _current_ticket.get()
    if ticket is None or ticket.concluded:
        raise AuthzError(Code.NO_RUN)
    return CurrentCall(ticket.tool, ticket.call_id, ticket.agent, ticket.idempotency_key, ticket.decision_id)


@contextmanager
def ticket_scope(ticket: Ticket) -> Iterator[Ticket]:
    """Make `ticket` current around one tool."""
    previous = _current_ticket.get()
    _current_ticket.set(ticket)
    try:
        yield ticket
    finally:
        # Never by Token: a generator may be closed in another context, where a Token raises. And
        # only where it is still ours: that other context may run another tool.
        if _current_ticket.get() is ticket:
            _current_ticket.set(previous)


def current_credential(audience: str | None = None) -> CallCredential:
    """The credential of the call under way. Call it inside a tool.

    Blocks while an issuer outside this process signs.

    Args:
        audience: one of the tool's profile; may be left out where there is exactly one.

    Raises:
        CredentialError: `audience`, or `credential_unavailable` outside a running tool.

    ```python
    @tool
    def pay(recipient: str, amount: float) -> str:
        key = current_credential("https://bank.example")
        headers = {"Authorization": f"Bearer {key.token}", "Idempotency-Key": key.idempotency_key}
        ...
    ```
    """
    ticket = _current_ticket.get()
    if ticket is None:
        raise CredentialError(Code.CREDENTIAL_UNAVAILABLE)
    return ticket.credential(audience)
