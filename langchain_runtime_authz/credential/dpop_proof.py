"""Make and read DPoP proofs (RFC 9449).

A proof shows that the sender of a token holds the key to which the token is bound. A server's memory of proofs and
nonces is in `resource_server.dpop`.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from typing import Any, Final

from jwt.utils import base64url_encode

from langchain_runtime_authz._url import normal_target
from langchain_runtime_authz.credential.jws import is_signed_by, parse_jws, refuse, sign_compact
from langchain_runtime_authz.credential.signer import ALGORITHMS, Alg, Secret, SigningKey, jwk_thumbprint
from langchain_runtime_authz.credential.token import LEEWAY
from langchain_runtime_authz.errors import Code, ConfigError, CredentialError

TYP: Final = "dpop+jwt"  # §4.2
HEADER: Final = ("typ", "alg", "jwk")
_CODE: Final = Code.PROOF_INVALID
MAX_AGE: Final = 30  # seconds for which a proof is accepted; then its `jti` may be forgotten
MAX_NAME: Final = 512  # characters of `jti` and `nonce`


class ProofKey(Secret):
    """A holder's key for one call, never shown. `jkt` is its RFC 7638 thumbprint."""

    __slots__ = ("_key", "jkt")

    def __init__(self, alg: Alg = "ES256") -> None:
        self._key = SigningKey.generate(alg)
        self.jkt = self._key.kid

    def proof(self, htm: str, htu: str, *, token: str, nonce: str | None = None) -> str:
        """Return a proof for one request and the `token` that it sends (§4.2).

        `htm`: the method. `htu`: the absolute http(s) URL (else `ConfigError`). `nonce`: the server's last nonce.
        """
        target = normal_target(htu)
        if target is None:
            raise ConfigError("a proof is for an absolute http(s) URL")
        jwk = {k: v for k, v in self._key.public_jwk().items() if k not in ("kid", "alg", "use")}
        claims: dict[str, Any] = {"jti": secrets.token_urlsafe(16), "htm": htm, "htu": target, "iat": int(time.time())}
        claims |= {"ath": token_digest(token), **({"nonce": nonce} if nonce is not None else {})}
        return sign_compact(TYP, claims, self._key, jwk)


def read_proof(
    proof: object,
    *,
    htm: str,
    htu: str,
    token: str,
    jkt: str,
    now: float,
    is_nonce: Callable[[str | None], bool] = lambda _: True,
) -> str:
    """Return the `jti` of a checked proof (§4.3).

    Raises `CredentialError`: `proof_invalid` or `proof_nonce`. The caller must refuse replays, and take `htu` from the
    server's settings, not from a `Host` header. `is_nonce` receives the proof's nonce, after all other checks.
    """
    jws = parse_jws(proof, typ=TYP, members=HEADER, algorithms=ALGORITHMS, code=_CODE)
    if not is_signed_by(jws, jws.header["jwk"]):
        refuse("its `jwk` is not a public key for its algorithm", _CODE)
    claims = jws.claims
    jti, nonce, issued = claims.get("jti"), claims.get("nonce"), claims.get("iat")
    if not isinstance(jti, str) or not 0 < len(jti) <= MAX_NAME:
        refuse("`jti` must be a string", _CODE)
    if nonce is not None and (not isinstance(nonce, str) or len(nonce) > MAX_NAME):
        refuse("`nonce` must be a string", _CODE)
    if type(issued) is not int:
        refuse("`iat` must be an integer", _CODE)
    if claims.get("htm") != htm:
        refuse("it is for another method", _CODE)
    target = normal_target(claims["htu"]) if isinstance(claims.get("htu"), str) else None
    if target is None or target != normal_target(htu):
        refuse("it is for another URL", _CODE)
    if not now - MAX_AGE <= issued <= now + LEEWAY:
        refuse("it is too old, or from the future", _CODE)
    if claims.get("ath") != token_digest(token):
        refuse("it is for another token", _CODE)
    if jwk_thumbprint(jws.header["jwk"]) != jkt:
        refuse("it was made with another key than the token's", _CODE)
    if not is_nonce(nonce):
        raise CredentialError(Code.PROOF_NONCE)
    return jti


def token_digest(token: str) -> str:
    """Return `ath` (§4.2): base64url of SHA-256 over the token's ASCII."""
    return base64url_encode(hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()).decode()
