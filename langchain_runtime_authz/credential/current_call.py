"""The current call: its properties and credentials, for the tool that runs."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

from langchain_runtime_authz._flow import Flow, both
from langchain_runtime_authz.credential.ticket import CallCredential, Refusals, Ticket
from langchain_runtime_authz.errors import AuthzError, Code, CredentialError


@dataclass(slots=True, eq=False, repr=False)
class CodeScope:
    """The authorization state of the running code, held in one context variable.

    `refusals`: records refused requests for a token if the code has no ticket. `task`: the node's Pregel task.
    `counts`: how often each unplanned call was made so far, to tell equal calls apart. `entered`: when the code began
    (monotonic seconds).
    """

    ticket: Ticket | None = None
    refusals: Refusals | None = None
    run: Any = None
    counts: dict[str, int] | None = None
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
        """The tool's name."""
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
    """Return the error for a token wanted outside a call. Record it if there is a run."""
    told, finder = current_scope.get().refusals, _finder.get()
    if (told := finder() if told is None and finder is not None else told) is None:
        # Without a run there is no log, only the error.
        return CredentialError(Code.CREDENTIAL_UNAVAILABLE, "there is no run here, so this refusal is not recorded")
    yield told.refused(Code.CREDENTIAL_UNAVAILABLE, audience)
    return CredentialError(Code.CREDENTIAL_UNAVAILABLE)


def tell_by(finder: Callable[[], Refusals | None]) -> None:
    """Set the function that finds the run's `Refusals` for unguarded code."""
    _finder.set(finder)
