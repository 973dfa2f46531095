"""Encrypt the contents of records to an auditor's public key (JWE, RFC 7516).

A sealed record has a member `sealed` in place of contents. The chain binds the sealed contents to their line, and a
digest inside them binds them to their record.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from langchain_runtime_authz.audit.record import ERASED, locate_member
from langchain_runtime_authz.errors import Code, ConfigError, unreadable
from langchain_runtime_authz.facts.task import content_digest

SEALED: Final = "sealed"
# JSON pointers to contents. `_split` also seals others, and leaves a digest or `*` in their place.
_POINTERS: Final = (*(f"/request{p}" for p in ERASED), "/expected", "/detail/mandate", "/detail/message")
_CURVES: Final = ("X25519", "P-256", "P-384", "P-521")
_NAMES: Final = frozenset(("tool", "model", "graph", "chain"))  # observations whose name is not contents
Change = Callable[[dict[str, Any]], dict[str, Any]]


def sealer(recipient: str | bytes | Path) -> Change:
    """Return the function that seals a record to a public key (PEM or its path)."""
    jwe, key = _imported_key("seal_to", recipient)
    if key.is_private:
        raise ConfigError("`seal_to` is a private key; give the public key, and keep the private one from this process")
    header = {"alg": "ECDH-ES", "enc": "A256GCM", "kid": key.thumbprint()}

    def sealed(record: dict[str, Any]) -> dict[str, Any]:
        left, contents = _split(record)
        if not contents:
            return record
        text = json.dumps({"of": _digest(left), "contents": contents}, allow_nan=False)
        return {**left, SEALED: jwe.encrypt_compact(header, text.encode(), key)}

    return sealed


def opener(*private: str | bytes | Path) -> Change:
    """Return the function that restores the contents of sealed records.

    Pass the private keys of all public keys to which the log was sealed. The function raises `ConfigError` if no key
    opens a record, or if its contents belong to another record.
    """
    keys = [_imported_key("the key", one) for one in private]
    if not all(key.is_private for _, key in keys):
        raise ConfigError("the key is public; give the private key that belongs to `seal_to`")

    def opened(record: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(sealed := record.get(SEALED), str):
            return record
        left = {name: value for name, value in record.items() if name not in (SEALED, "seq", "prev")}
        for jwe, key in keys:
            with suppress(Exception):  # for another key or a damaged text, the library may raise anything
                inner = json.loads(jwe.decrypt_compact(sealed, key).plaintext)
                break
        else:
            raise ConfigError("the key does not open all of this log; give each private key that it was sealed to")
        whole = json.loads(json.dumps(left))
        try:
            for pointer, value in inner["contents"].items():
                node, last = locate_member(whole, pointer)
                node[last] = value
            whole.update({"erased": []} if "erased" in left else {})
            own = inner["of"] == _digest(left) and _split(whole) == (left, inner["contents"])
        except (AttributeError, KeyError, TypeError, ValueError):
            own = False
        if not own:  # anybody can seal to a public key, so never replace what the record itself holds
            raise ConfigError(f"record {record.get('seq')} holds the sealed contents of another one; verify the log")
        return {**whole, "seq": record.get("seq"), "prev": record.get("prev")}

    return opened


def _split(record: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the record without contents, and the contents by JSON pointer."""
    left = json.loads(json.dumps(record, allow_nan=False))
    digested = {"data_changed": "/detail/resource", "planned": "/detail/tools"}.get(record.get("event", ""), "")
    if record.get("kind") == "observation" and record.get("what") not in _NAMES:
        digested = "/name"
    elif Code.UNKNOWN_TOOL in record.get("reasons", ()):  # a model invented the name, which may hold contents
        digested = "/resource"
    contents = {}
    for pointer in (*_POINTERS, digested):
        node, last = locate_member(left, pointer)
        if last not in node:
            continue
        contents[pointer] = held = node.pop(last)
        if pointer == digested:
            node[last] = ["*"] * len(held) if isinstance(held, list) else content_digest(str(held))
    if left.get("kind") == "decision":
        left["erased"] = [p.removeprefix("/request") for p in contents if p.startswith("/request")]
    return left, contents


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _imported_key(name: str, source: str | bytes | Path) -> tuple[Any, Any]:
    try:
        from joserfc import jwe
        from joserfc.jwk import ECKey, OKPKey
    except ImportError as exc:
        raise ConfigError("sealed contents need `pip install langchain-runtime-authz[seal]`") from exc
    try:
        text = source if isinstance(source, bytes) else None if isinstance(source, Path) else source.encode()
        text = Path(source).read_bytes() if text is None or b"-----BEGIN" not in text else text  # type: ignore[arg-type]
    except OSError as exc:
        raise ConfigError(f"{name}: the file cannot be read: {unreadable(exc)}") from exc
    for kind in (OKPKey, ECKey):
        with suppress(Exception):  # each kind of key refuses others in its own way
            key: Any = kind.import_key(text)
            jwe.encrypt_compact({"alg": "ECDH-ES", "enc": "A256GCM"}, b"", key)
            if key["crv"] in _CURVES:
                return jwe, key
    raise ConfigError(
        f"{name} must be a key in PEM, of X25519 or a NIST curve; `openssl genpkey -algorithm X25519` makes one"
    )
