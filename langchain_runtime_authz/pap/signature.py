"""Signatures of policy bundles, as OPA makes and verifies them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm

from langchain_runtime_authz.authzen import strict_json
from langchain_runtime_authz.errors import Code, ConfigError

MANIFEST: Final = ".manifest"
SIGNATURES: Final = ".signatures.json"
DATA: Final = "data.json"
# Asymmetric ones only: a reader that can verify a policy must not be able to sign one.
ALGORITHMS: Final = ("ES256", "ES384", "ES512", "EdDSA", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512")

Keys = Mapping[str, str | bytes]


def verified(files: Mapping[str, bytes], name: str, keys: Keys) -> str:
    """Return the id of the key whose signature holds exactly these files. Raises `policy_unsigned`."""
    import jwt

    try:
        document = strict_json(files[SIGNATURES])
        (token,) = document["signatures"]
        kid = jwt.get_unverified_header(token).get("kid", "")
        claims = jwt.decode(token, keys[kid], algorithms=list(ALGORITHMS))
        listed = {f["name"].lstrip("/"): (f["algorithm"], f["hash"]) for f in claims["files"]}
    except KeyError as exc:
        raise _unsigned(f"{name}: no signature by a key that is trusted here") from exc
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError, RecursionError) as exc:
        raise _unsigned(f"{name}: its signature does not verify ({type(exc).__name__})") from exc
    seen = {n: ("SHA-256", _file_hash(n, c)) for n, c in files.items() if n != SIGNATURES}
    if seen != listed:
        differ = sorted(n for n in {**seen, **listed} if seen.get(n) != listed.get(n))
        raise _unsigned(f"{name}: `{differ[0]}` is not what was signed")
    return str(kid)


def trusted(keys: Keys) -> dict[str, str | bytes]:
    """Return a copy of these keys. Raises `ConfigError` unless each can verify a signature, but not make one."""
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if not isinstance(keys, Mapping) or not keys:
        raise ConfigError("`keys` must map a key's id to its public key; leave it out to take unsigned bundles")
    for kid, pem in keys.items():
        try:
            load_pem_public_key(pem.encode() if isinstance(pem, str) else pem)
        except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
            raise ConfigError(f"`keys`: {kid!r} is not a public key in PEM form ({type(exc).__name__})") from exc
    return dict(keys)


def sign(files: Mapping[str, bytes], key: str | bytes, algorithm: str, key_id: str = "default") -> bytes:
    """Return the `.signatures.json` of these files. Raises `ConfigError` if the key cannot sign with that algorithm."""
    import jwt

    if algorithm not in ALGORITHMS:
        raise ConfigError(f"`{algorithm}` is none of {', '.join(ALGORITHMS)}")
    listed = [
        {"name": n, "hash": _file_hash(n, c), "algorithm": "SHA-256"}
        for n, c in sorted(files.items())
        if n != SIGNATURES
    ]
    try:
        token = jwt.encode({"files": listed, "keyid": key_id}, key, algorithm, headers={"kid": key_id})
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError) as exc:  # a public key has no `sign`
        raise ConfigError(f"the key cannot sign with {algorithm} ({type(exc).__name__})") from exc
    return json.dumps({"signatures": [token]}).encode()


class _Literal(str):
    """A number as it was written."""

    __slots__ = ()


def _file_hash(name: str, content: bytes) -> str:
    """OPA hashes what a JSON file says, not how it is laid out."""
    if name.rpartition("/")[2] in (MANIFEST, DATA):
        try:
            document = json.loads(content, parse_int=_Literal, parse_float=_Literal)
        except (ValueError, RecursionError):
            return ""
        content = _walk(document).encode()
    return hashlib.sha256(content).hexdigest()


def _walk(value: Any) -> str:
    match value:
        case dict():
            return "{" + ",".join(f"{_walk(k)}:{_walk(value[k])}" for k in sorted(value)) + "}"
        case list():
            return "[" + ",".join(map(_walk, value)) + "]"
        case _Literal():
            return str(value)
        case str():  # as Go's encoder writes it
            text = json.dumps(value, ensure_ascii=False)
            return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return json.dumps(value)


def _unsigned(detail: str) -> ConfigError:
    return ConfigError(detail, Code.POLICY_UNSIGNED)
