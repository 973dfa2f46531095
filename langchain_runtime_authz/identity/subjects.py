"""Find the subject of a run (`subject_from=`): `platform_user`, `BearerSubject`.

A name that a client writes into `configurable` or metadata is not an identity. It is ignored, and
`claimed_identities` lists it for the audit log.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, overload

from langchain_runtime_authz._flow import Flow, Perform, both
from langchain_runtime_authz._validate import checked_names
from langchain_runtime_authz.credential.ticket import current_scope
from langchain_runtime_authz.credential.token import Credential, Sealed
from langchain_runtime_authz.errors import AuthzError, Code, ConfigError, CredentialError
from langchain_runtime_authz.evaluation import Subject

if TYPE_CHECKING:  # `verifier` loads the signing library
    from langchain_runtime_authz.credential.verifier import Verifier

PLATFORM_USER: Final = "langgraph_auth_user"
CRON: Final = ("cron_id", "langgraph_cron_id")
# Keys of `configurable` and metadata under which clients and examples name a caller.
CLAIMS: Final = frozenset(
    f"{PLATFORM_USER} {PLATFORM_USER}_id user_id user username user_name userid subject sub email identity principal "
    "actor role roles x-user-id x-forwarded-user".split()
)
ANONYMOUS: Final = Subject(type="anonymous", id="anonymous")
DEVELOPER: Final = Subject(type="user", id="developer", properties={"development": True})
NO_SUBJECT: Final = (
    "a run has no subject, so it is `anonymous`, which may read public data only; use `authz.run(subject=...)`, "
    "`RuntimeAuthz(subject_from=...)` on a server, or `development=True` on your own machine"
)
_PLAIN: Final = (Mapping, list, tuple, set, str, bytes, int, float)


@overload
def platform_user(config: Mapping[str, Any], *, properties: Sequence[str] = ()) -> Subject | None: ...
@overload
def platform_user(*, properties: Sequence[str]) -> Callable[[Mapping[str, Any]], Subject | None]: ...
def platform_user(
    config: Mapping[str, Any] | None = None, *, properties: Sequence[str] = ()
) -> Subject | Callable[[Mapping[str, Any]], Subject | None] | None:
    """Return the user whom LangGraph Platform authenticated for the run, or `None`.

    The user must be the server's own object, with `is_authenticated` and `identity`, which JSON cannot hold. A mapping
    or text of the same name came from the client. The subject of a cron job is a `service`, named like its creator.

    Args:
        config: the run's config. Without it, a function for `subject_from` is returned:
            `RuntimeAuthz(subject_from=platform_user(properties=["tenant"]))`.
        properties: names of members of the user, like `tenant` or `permissions`, that policies read in
            `subject.properties`. A member that the user lacks is left out.

    Raises `ConfigError` if the value of such a member is not JSON.
    """
    if config is None:
        return partial(platform_user, properties=checked_names("properties", properties))
    configurable = _part(config, "configurable")
    user = configurable.get(PLATFORM_USER)
    if user is None or isinstance(user, _PLAIN) or getattr(user, "is_authenticated", None) is not True:
        return None
    identity = getattr(user, "identity", None)
    if not isinstance(identity, str) or not identity:
        return None
    found = {name: value for name in properties if (value := _member(user, name)) is not None}
    places = (configurable, _part(config, "metadata"))
    # A client may pretend to be a cron job, and then only loses authority. A rule that demands two different persons is
    # not evaded, because it compares names without types.
    cron = next((str(p[name]) for p in places for name in CRON if p.get(name)), None)
    if cron is not None:
        return Subject.of({"type": "service", "id": identity, "properties": {**found, "cron": cron}})
    return Subject.of({"type": "user", "id": identity, "properties": found})


def _member(user: Any, name: str) -> Any:
    try:
        value = user[name]
    except (KeyError, TypeError, AttributeError):
        value = getattr(user, name, None)
    return list(value) if isinstance(value, tuple | set | frozenset) else value


def claimed_identities(config: Mapping[str, Any], subject: Subject) -> list[str]:
    """Return the keys under which a config names a caller other than `subject`."""
    found: list[str] = []
    for place in ("configurable", "metadata"):
        for key, value in _part(config, place).items():
            if isinstance(key, str) and key.lower() in CLAIMS and not _same(value, subject):
                found.append(f"{place}.{key}")
    return sorted(found)


def _same(value: object, subject: Subject) -> bool:
    if value is None or value == "":
        return True
    if not isinstance(value, _PLAIN):  # the server's own user object
        value = getattr(value, "identity", None)
    return isinstance(value, str) and value == subject.id


def _part(config: Mapping[str, Any], name: str) -> Mapping[Any, Any]:
    part = config.get(name) or {}
    return part if isinstance(part, (dict, Mapping)) else {}


class TokenVerifier(Protocol):
    """Verifies a token: `OidcVerifier`, `SvidVerifier`."""

    def verify(self, token: str) -> Subject:
        """Return the subject of a token, or raise `AuthzError` to refuse the token."""

    async def averify(self, token: str) -> Subject:
        """Verify like `verify`, without blocking the event loop."""


class BearerSubject:
    """Takes the subject from the bearer token (RFC 6750) of the current request.

    Handle each request inside `with presented(...)`, which holds the token. A config never does: LangGraph stores it.

    Args:
        verifier: verifies the users' tokens. If it is a `credential.verifier.Verifier`, the callers are agents of
            another server, and the run takes over the credential's subject, grant and chain of agents.
        audience: this server's URL or URLs, as in `aud` of such agents' credentials.

    Raises `ConfigError` for a `credential.verifier.Verifier` without `audience`.
    """

    def __init__(self, verifier: TokenVerifier | Verifier, *, audience: str | Collection[str] | None = None) -> None:
        from langchain_runtime_authz.credential.verifier import Verifier

        if isinstance(verifier, Verifier) and not audience:
            raise ConfigError("`BearerSubject` of agents of other servers needs this server's URL as its `audience`")
        given: dict[str, Any] = {} if audience is None else {"audience": audience}
        self._verify = partial(verifier.verify, **given), partial(verifier.averify, **given)
        self._shown: ContextVar[_Shown | None] = ContextVar("runtime_authz_caller", default=None)

    def __call__(self, config: Mapping[str, Any]) -> Subject | Credential | None:
        """Return the caller of the current request; `None` outside a request."""
        shown = self._shown.get()
        return None if shown is None or shown.over else shown.subject

    def token(self) -> str:
        """Return the current request's token, for `ExchangeAuth(subject_token=...)`.

        Raises `CredentialError` (`credential_unavailable`) outside a request, or in another subject's run.
        """
        shown, run = self._shown.get(), current_scope.get().run
        # INVARIANT: a user's token is never used in another user's run, whatever context a task was started in.
        # A `Credential` is not a user's token: it is for this server only.
        user = shown.subject.principal if shown is not None and isinstance(shown.subject, Subject) else None
        if shown is None or shown.over or run is None or run.subject.principal != user:
            raise CredentialError(Code.CREDENTIAL_UNAVAILABLE, "there is no request of the run's subject here")
        return shown.token

    def presented(self, authorization: str | None) -> _Presented:
        """Return a context manager that yields the subject of an `Authorization` header.

        Entering it raises `AuthzError` (`identity_invalid` or `identity_unavailable`) if the token is not accepted.
        """
        return _Presented(self._verify, self._shown, authorization)


class _Shown(Sealed):
    """A verified token and its subject. Its text form shows neither.

    `over`: the request has ended. A task that was started in the request may keep its context for longer.
    """

    __slots__ = ("over", "subject", "token")

    def __init__(self, subject: Subject | Credential, token: str) -> None:
        self.subject, self.token, self.over = subject, token, False


class _Presented:
    __slots__ = ("_authorization", "_own", "_previous", "_shown", "_verify")

    def __init__(self, verify: tuple[Any, Any], shown: ContextVar[_Shown | None], authorization: str | None) -> None:
        self._verify, self._shown, self._authorization = verify, shown, authorization

    def _enter(self) -> Flow[Subject | Credential]:
        scheme, _, token = (self._authorization or "").partition(" ")
        self._authorization, token = None, token.strip()
        if scheme.lower() != "bearer" or not token:
            raise AuthzError(Code.IDENTITY_INVALID, "the request has no bearer token")
        subject: Subject | Credential = yield Perform(*self._verify, token)
        self._previous, self._own = self._shown.get(), _Shown(subject, token)
        self._shown.set(self._own)
        return subject

    __enter__, __aenter__ = both(_enter)

    def __exit__(self, *exc: object) -> None:
        self._own.over = True
        if self._shown.get() is self._own:  # else it is closed in another context
            self._shown.set(self._previous)

    async def __aexit__(self, *exc: object) -> None:
        self.__exit__()
