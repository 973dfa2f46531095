"""Who believes: the only road from a string to a `Credential`.

Offline by itself: a token is good until `exp` plus leeway. With `status` it is also asked whether the
token's call, task and run are still alive, and anything but `live` refuses.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn

from jwt import PyJWK, PyJWS, PyJWTError
from jwt.utils import base64url_decode, base64url_encode

from langchain_runtime_authz.credential.keys import ALGORITHMS
from langchain_runtime_authz.credential.token import (
    ACTOR,
    AUDIENCE,
    AUTHORIZATION_DETAILS,
    CLIENT_ID,
    CONFIRMATION,
    EXPIRES_AT,
    ISSUED_AT,
    ISSUER,
    JKT,
    MAX_TOKEN,
    MAX_TTL,
    NOT_BEFORE,
    SUBJECT,
    SUBJECT_TYPE,
    TASK,
    TENANT,
    TOKEN_ID,
    TRANSACTION,
    TYP,
    Credential,
    parse_object,
    seal,
)
from langchain_runtime_authz.errors import Code, ConfigError, CredentialError

__all__ = ["Verifier"]

MAX_LEEWAY: Final = 60  # seconds
MAX_KEYS: Final = 64  # parsed and kept
PARTS: Final = 3  # of a compact JWS: header, payload, signature
_COMPACT: Final = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
_KEY_TYPES: Final = {"ES256": ("EC", "P-256"), "EdDSA": ("OKP", "Ed25519")}
_NAMES: Final = (ISSUER, SUBJECT, SUBJECT_TYPE, AUDIENCE, TOKEN_ID, TRANSACTION, CLIENT_ID, TENANT)

KeySet = Mapping[str, Any]


class Verifier:
    """Verifies the tokens of one issuer.

    Args:
        issuer: the `iss` that is believed.
        jwks: its JWK set (RFC 7517 §5), or what returns it. A callable is asked at every
            verification, so that a withdrawn key is refused at once: let it cache.
        algorithms: allow-list (RFC 8725 §3.1), of ES256 and EdDSA.
        leeway: seconds by which clocks may differ, at most 60.
        status: what is known of a token beyond its text, from its claims: `live`, or any other word.

    Raises:
        ConfigError: an argument is wrong.
    """

    def __init__(
        self,
        *,
        issuer: str,
        jwks: KeySet | Callable[[], KeySet],
        algorithms: Sequence[str] = ALGORITHMS,
        leeway: int = 5,
        status: Callable[[Mapping[str, Any]], str] | None = None,
    ) -> None:
        if not isinstance(issuer, str) or not issuer:
            msg = "`issuer` must be a name"
            raise ConfigError(msg)
        if isinstance(algorithms, str) or not algorithms or not set(algorithms) <= set(ALGORITHMS):
            msg = f"`algorithms` must be some of {', '.join(ALGORITHMS)}"
            raise ConfigError(msg)
        if type(leeway) is not int or not 0 <= leeway <= MAX_LEEWAY:
            msg = f"`leeway` must be between 0 and {MAX_LEEWAY} seconds"
            raise ConfigError(msg)
        self._issuer = issuer
        self._jwks = jwks
        self._algorithms = frozenset(algorithms)
        self._leeway = leeway
        self._status = status
        self._parsed: dict[str, tuple[dict[str, Any], PyJWK]] = {}  # kid → JWK and its parsed key

    def verify(self, token: str, *, audience: str, tenant: str | None = None, now: int | None = None) -> Credential:
        """The credential that `token` is.

        Args:
            token: compact JWS (RFC 7515 §7.1).
            audience: who asks: must be the token's `aud`, exactly.
            tenant: whose data is asked for; `None` only where there is one tenant.
            now: epoch seconds; the clock by default.

        Raises:
            CredentialError: `credential_invalid`, `audience` or `credential_revoked`. Never quotes
                the token.
        """
        if not isinstance(token, str):
            _refuse("it is not a string")
        if len(token) > MAX_TOKEN:
            _refuse("it is too large")
        parts = _COMPACT.fullmatch(token)
        if parts is None:
            _refuse("it is not a compact JWS")
        # Base64 has spare bits: one token must have one spelling.
        decoded = [data for part in parts.groups() if (data := _decoded(part)) is not None]
        if len(decoded) != PARTS:
            _refuse("it is not base64url")
        header = _object(decoded[0])
        if header is None:
            _refuse("its header is not a JSON object")
        alg = self._checked_header(header)
        if not _is_signed(token, self._key(header["kid"], alg), alg):
            _refuse("its signature is wrong")
        claims = _object(decoded[1])
        if claims is None:
            _refuse("its claims are not a JSON object")
        _check_shape(claims)
        self._check_meaning(claims, tenant, int(time.time()) if now is None else now)
        if claims[AUDIENCE] != audience:
            raise CredentialError(Code.AUDIENCE, "the token is for another audience")
        credential = _sealed(token, claims)
        if credential is None:
            _refuse("its claims are nested too deeply")
        if self._status is not None and not _is_live(self._status, credential.claims):
            raise CredentialError(Code.CREDENTIAL_REVOKED)
        return credential

    def _checked_header(self, header: dict[str, Any]) -> str:
        # Closed: `crit` (RFC 7515 §4.1.11), `jwk`, `jku`, `x5u`, `b64` have no say here.
        if set(header) != {"typ", "alg", "kid"}:
            _refuse("its header holds other members than typ, alg and kid")
        if header["typ"] != TYP:
            _refuse("its `typ` is another")
        alg = header["alg"]
        if not isinstance(alg, str) or alg not in self._algorithms:
            _refuse("its `alg` is not permitted")
        if not isinstance(header["kid"], str):
            _refuse("its `kid` is not a string")
        return alg

    def _key(self, kid: str, alg: str) -> PyJWK:
        found = self._found(kid)
        if len(found) != 1:
            _refuse("its key is not one of the issuer's")
        jwk = found[0]
        # RFC 8725 §3.1: the key, not the header, says what it is for.
        if (jwk.get("kty"), jwk.get("crv")) != _KEY_TYPES[alg] or jwk.get("alg", alg) != alg:
            _refuse("its key is for another algorithm")
        if jwk.get("use", "sig") != "sig":
            _refuse("its key is not for signatures")
        kept = self._parsed.get(kid)
        if kept is not None and kept[0] == jwk:
            return kept[1]
        key = _read_key(jwk, alg)
        if key is None:
            _refuse("its key can not be read")
        if len(self._parsed) >= MAX_KEYS:
            self._parsed.clear()
        self._parsed[kid] = (jwk, key)
        return key

    def _found(self, kid: str) -> list[dict[str, Any]]:
        try:
            jwks = self._jwks() if callable(self._jwks) else self._jwks
            return [dict(jwk) for jwk in jwks["keys"] if jwk.get("kid") == kid]
        except Exception:  # noqa: BLE001  (whatever fetches keys may fail in any way: no key, no belief)
            return []

    def _check_meaning(self, claims: dict[str, Any], tenant: str | None, now: int) -> None:
        issued, expires = claims[ISSUED_AT], claims[EXPIRES_AT]
        if claims[ISSUER] != self._issuer:
            _refuse("its `iss` is another")
        if not now < expires + self._leeway:
            _refuse("it has expired")
        if issued > now + self._leeway or claims.get(NOT_BEFORE, issued) > now + self._leeway:
            _refuse("it is not yet valid")
        if not 0 < expires - issued <= MAX_TTL + self._leeway:
            _refuse("it lives too long")
        if tenant is not None and claims[TENANT] != tenant:
            _refuse("its tenant is another")


def _check_shape(claims: dict[str, Any]) -> None:
    for name in _NAMES:
        if not isinstance(claims.get(name), str) or not claims[name]:
            _refuse(f"`{name}` must be a string")
    for name in (EXPIRES_AT, ISSUED_AT, *([NOT_BEFORE] if NOT_BEFORE in claims else [])):
        if type(claims.get(name)) is not int:
            _refuse(f"`{name}` must be an integer")
    task, actor, details = (claims.get(name) for name in (TASK, ACTOR, AUTHORIZATION_DETAILS))
    if not (
        isinstance(task, dict)
        and isinstance(task.get("id"), str)
        and isinstance(task.get("digest"), str)
        and type(task.get("epoch")) is int
        and task["epoch"] >= 0
    ):
        _refuse(f"`{TASK}` must hold id, epoch and digest")
    if not isinstance(actor, dict) or actor.get(SUBJECT) != claims[CLIENT_ID]:
        _refuse(f"`{ACTOR}` must name the client")
    if not isinstance(details, list) or not details:
        _refuse(f"`{AUTHORIZATION_DETAILS}` must be an array")
    if not all(isinstance(detail, dict) and isinstance(detail.get("type"), str) for detail in details):
        _refuse(f"`{AUTHORIZATION_DETAILS}` must hold objects with a type")
    if CONFIRMATION in claims:
        cnf = claims[CONFIRMATION]
        if not isinstance(cnf, dict) or not isinstance(cnf.get(JKT), str):
            _refuse(f"`{CONFIRMATION}` must hold jkt")


def _is_live(status: Callable[[Mapping[str, Any]], str], claims: Mapping[str, Any]) -> bool:
    try:
        return status(claims) == "live"
    except Exception:  # noqa: BLE001  (what is not known to live is dead)
        return False


# The helpers below answer instead of raising: an exception's context would quote what was parsed.


def _is_signed(token: str, key: PyJWK, alg: str) -> bool:
    try:
        PyJWS(algorithms=[alg]).decode_complete(token, key, algorithms=[alg])
    except (PyJWTError, ValueError, TypeError):
        return False
    return True


def _read_key(jwk: dict[str, Any], alg: str) -> PyJWK | None:
    try:
        return PyJWK(jwk, algorithm=alg)
    except (PyJWTError, ValueError, TypeError):
        return None


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        return parse_object(data)
    except ValueError:
        return None


def _sealed(token: str, claims: dict[str, Any]) -> Credential | None:
    try:
        return seal(token, claims)
    except ValueError:
        return None


def _decoded(segment: str) -> bytes | None:
    try:
        data = base64url_decode(segment)
    except ValueError:
        return None
    return data if base64url_encode(data).decode() == segment else None


def _refuse(why: str) -> NoReturn:
    raise CredentialError(Code.CREDENTIAL_INVALID, why)
