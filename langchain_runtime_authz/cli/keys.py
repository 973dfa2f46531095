"""`runtime-authz keys`: the issuer's signing keys in a directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from typer import Argument, Option

from langchain_runtime_authz.cli._app import App, Printout, iso_time

if TYPE_CHECKING:
    from langchain_runtime_authz.credential.keyring import KeyDirectory

app = App(help="Make, rotate and withdraw signing keys.")

Directory = Annotated[Path, Argument(help="The key directory.")]
_PASSWORD: Final = "RUNTIME_AUTHZ_KEY_PASSWORD"  # noqa: S105  (a name)
_HELP: Final = "The password of the key. Give it in the environment rather than here."
Password = Annotated[str | None, Option("--password", envvar=_PASSWORD, show_envvar=True, help=_HELP)]


@app.command("generate")
def generate(
    directory: Directory,
    alg: Annotated[str, Option(help="ES256, EdDSA or RS256.")] = "ES256",
    password: Password = None,
) -> Printout:
    """Make a directory with a signing key and the next signing key.

    runtime-authz keys generate keys/
    runtime-authz keys generate keys/ --alg EdDSA
    """
    from langchain_runtime_authz.credential.keyring import KeyDirectory

    ring = KeyDirectory.create(directory, alg, as_bytes(password))  # type: ignore[arg-type]  # checked there
    return _ring_answer(ring, wrote=str(directory))


@app.command("list")
def list_(
    directory: Directory,
    jwks: Annotated[bool, Option("--jwks", help="Print the public key set (RFC 7517) instead.")] = False,
    password: Password = None,
) -> Printout:
    """List the keys, or print the key set that verifiers need.

    runtime-authz keys list keys/
    runtime-authz keys list keys/ --jwks > jwks.json
    """
    ring = _opened(directory, password)
    return Printout(ring.jwks(), json.dumps(ring.jwks(), indent=2)) if jwks else _ring_answer(ring)


@app.command("rotate")
def rotate(directory: Directory, password: Password = None) -> Printout:
    """Sign with the next key from now on. Verifiers know that key already.

    runtime-authz keys rotate keys/
    """
    ring = _opened(directory, password)
    return _ring_answer(ring, active=ring.rotate().kid)


@app.command("compromise")
def compromise(
    directory: Directory,
    kid: Annotated[str, Argument(help="The key, as `keys list` names it.")],
    password: Password = None,
) -> Printout:
    """Withdraw a key from the key set for good, and refuse every token that it signed.

    Prints the time until which verifiers with a cached key set may still accept such tokens.

    runtime-authz keys compromise keys/ K7gNU3sdo-OL0wNhqoVWhr3g6s1xYv72ol_pe_Unols
    """
    ring = _opened(directory, password)
    done = ring.compromise(kid)
    by = iso_time(done.refused_by)
    text = (f"withdrawn  {done.kid}", f"signing    {done.active}")
    until = f"refused    at once by the issuer and by introspection; everywhere by {by}"
    return _ring_answer(ring, *text, until, withdrawn=done.kid, active=done.active, refused_by=by)


def as_bytes(password: str | None) -> bytes | None:
    """Return a password as bytes; `None` if it is missing or empty."""
    return password.encode() if password else None


def _opened(directory: Path, password: str | None) -> KeyDirectory:
    from langchain_runtime_authz.credential.keyring import KeyDirectory

    return KeyDirectory(directory, as_bytes(password))


def _ring_answer(ring: KeyDirectory, *more: str, **done: Any) -> Printout:
    keys = [{"kid": k.kid, "alg": k.alg, "state": k.state, "since": iso_time(k.since)} for k in ring.all_keys()]
    lines = [f"{k['kid']}  {k['alg']:<5}  {k['state']:<11}  since {k['since']}" for k in keys]
    return Printout({**done, "keys": keys}, [*lines, *more])
