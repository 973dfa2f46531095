"""Describe providers' access tokens, because few providers follow RFC 9068."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from langchain_runtime_authz.credential import token as claim

AUTHORIZED_PARTY: Final = "azp"  # OpenID Connect Core §2
PAYLOAD_TYPE: Final = "typ"  # Keycloak's, in the payload
ID_ONLY: Final = ("nonce", "at_hash", "c_hash")  # OpenID Connect Core §2, §3.3.2.11
_PLAIN: Final = re.compile(r"[A-Za-z0-9.:/+_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Provider:
    """The profile of one provider's access tokens. No ID token matches a profile.

    `types`: accepted values of the header's `typ`, in lower case; '' accepts a header without it. `client`: claims; the
    first present one names the client. `required`: claims that each access token has. `payload`: the `typ` that the
    payload must have, if any. `user`: a claim of users' tokens only. `id_only`: claims of ID tokens only. `some`: an
    access token has at least one of these claims, an ID token has none; checked unless the header's `typ` is `at+jwt`.
    """

    name: str
    types: frozenset[str]
    client: tuple[str, ...]
    required: tuple[str, ...] = ()
    payload: str = ""
    user: str = ""
    id_only: tuple[str, ...] = ID_ONLY
    some: tuple[str, ...] = ()

    def mismatch(self, header: Mapping[str, Any], claims: Mapping[str, Any]) -> str | None:
        """Return why a token is not an access token of this provider; `None` if it is."""
        typ = typ_of(header)
        if typ not in self.types:
            wanted = " or ".join(sorted(t or "none" for t in self.types))
            return self._expected(f"the header's `typ` {wanted}", shown_claim(header.get("typ")))
        if self.payload and claims.get(PAYLOAD_TYPE) != self.payload:
            return self._expected(f"the payload's `typ` {self.payload}", shown_claim(claims.get(PAYLOAD_TYPE)))
        if only := [name for name in self.id_only if name in claims]:
            return self._expected("an access token", f"an ID token's `{only[0]}`")
        if self.client_of(claims) is None:
            known = (claim.CLIENT_ID, AUTHORIZED_PARTY, "cid", "appid")
            found = " and ".join(f"`{name}`" for name in known if name in claims) or "none"
            return self._expected(f"`{'` or `'.join(self.client)}` to name the client", found)
        if missing := [name for name in self.required if not claims.get(name)]:
            return self._expected(f"`{missing[0]}`", "none")
        if self.some and typ not in _AT and not any(name in claims for name in self.some):
            return self._expected(f"`{'` or `'.join(self.some)}`, which an ID token does not have", "none")
        return None

    def client_of(self, claims: Mapping[str, Any]) -> str | None:
        """Return the client for which the token was issued; `None` if no claim names it."""
        return next((found for name in self.client if (found := name_of(claims.get(name))) is not None), None)

    def _expected(self, wanted: str, found: str) -> str:
        return f"provider `{self.name}`: expected {wanted}, found {found}"


_JWT: Final = frozenset({"jwt"})
_AT: Final = frozenset({"at+jwt"})
PROVIDERS: Final = {
    profile.name: profile
    for profile in (
        # INVARIANT: the header's type proves that a token is an access token, so claims of ID tokens need no check.
        Provider("rfc9068", _AT, (claim.CLIENT_ID,), (claim.TOKEN_ID,), id_only=()),
        Provider("keycloak", _JWT | _AT, (AUTHORIZED_PARTY,), (claim.TOKEN_ID,), payload="Bearer", id_only=()),
        Provider("entra", _JWT, (AUTHORIZED_PARTY, "appid"), ("tid", "ver"), user="scp", some=("azpacr", "appidacr")),
        Provider("auth0", _JWT | _AT, (AUTHORIZED_PARTY, claim.CLIENT_ID), some=("scope", "permissions", "gty")),
        Provider("okta", _JWT | {""}, ("cid",), (claim.TOKEN_ID, "scp")),
    )
}


def typ_of(header: Mapping[str, Any]) -> str | None:
    """Return lower-case `typ` without `application/`; '' if absent, `None` if no text."""
    typ = header.get("typ", "")
    return typ.lower().removeprefix("application/") if isinstance(typ, str) else None


MAX_NAME: Final = 2048  # characters of a name


def name_of(value: object) -> str | None:
    """Return `value` if it is a printable text of 1 to `MAX_NAME` characters."""
    return value if isinstance(value, str) and 0 < len(value) <= MAX_NAME and value.isprintable() else None


def shown_claim(value: object) -> str:
    """Return a claim for an error message: short plain texts, else `another value`."""
    if value is None or value == "":
        return "none"
    values = value if isinstance(value, list) else [value]
    plain = all(isinstance(v, str) and _PLAIN.fullmatch(v) for v in values) and 0 < len(values) <= len(PROVIDERS)
    return ", ".join(f"`{v}`" for v in values) if plain else "another value"
