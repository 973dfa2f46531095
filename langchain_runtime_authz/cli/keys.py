"""`runtime-authz keys`: the issuer's signing keys in a directory."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from langchain_runtime_authz.cli._errors import Json, reporting, show

if TYPE_CHECKING:
    from langchain_runtime_authz.credential.keyring import KeyDirectory

app = typer.Typer(help="Make, rotate and withdraw signing keys.", no_args_is_help=True, rich_markup_mode=None)

Directory = Annotated[Path, typer.Argument(help="The key directory.")]
Password = Annotated[
    str | None,
    typer.Option(
        "--password",
        envvar="RUNTIME_AUTHZ_KEY_PASSWORD",
        show_envvar=True,
        help="The password of the key. Give it in the environment rather than here.",
    ),
]


@app.command("generate")
def generate(
    directory: Directory,
    alg: Annotated[str, typer.Option("--alg", help="ES256, EdDSA or RS256.")] = "ES256",
    password: Password = None,
    as_json: Json = False,
) -> None:
    """Make a directory with a signing key and the next one.

    \b
    Examples:
      runtime-authz keys generate keys/
      runtime-authz keys generate keys/ --alg EdDSA
    """  # noqa: D301  (`\b` keeps the lines apart)
    from langchain_runtime_authz.credential.keyring import KeyDirectory

    with reporting():
        ring = KeyDirectory.create(directory, alg, _bytes(password))  # type: ignore[arg-type]  # checked there
        _show(ring, as_json, wrote=str(directory))


@app.command("list")
def list_(
    directory: Directory,
    jwks: Annotated[bool, typer.Option("--jwks", help="Print the public key set (RFC 7517) instead.")] = False,
    password: Password = None,
    as_json: Json = False,
) -> None:
    """List the keys, or print the key set that verifiers need.

    \b
    Examples:
      runtime-authz keys list keys/
      runtime-authz keys list keys/ --jwks > jwks.json
    """  # noqa: D301
    with reporting():
        ring = _opened(directory, password)
        if jwks:
            typer.echo(json.dumps(ring.jwks(), indent=1))
        else:
            _show(ring, as_json)


@app.command("rotate")
def rotate(directory: Directory, password: Password = None, as_json: Json = False) -> None:
    """Sign with the next key from now on. Verifiers have it already.

    \b
    Examples:
      runtime-authz keys rotate keys/
    """  # noqa: D301
    with reporting():
        ring = _opened(directory, password)
        _show(ring, as_json, active=ring.rotate().kid)


@app.command("compromise")
def compromise(
    directory: Directory,
    kid: Annotated[str, typer.Argument(help="The key, as `keys list` names it.")],
    password: Password = None,
    as_json: Json = False,
) -> None:
    """Withdraw a key for good: remove it from the key set, and refuse every token that it signed.

    Prints the time until which verifiers with a cached key set may accept it.

    \b
    Examples:
      runtime-authz keys compromise keys/ K7gNU3sdo-OL0wNhqoVWhr3g6s1xYv72ol_pe_Unols
    """  # noqa: D301
    with reporting():
        ring = _opened(directory, password)
        done = ring.compromise(kid)
        by = _time(done.refused_by)
        _show(ring, as_json, withdrawn=done.kid, active=done.active, refused_by=by)
    if not as_json:
        typer.echo(f"withdrawn  {done.kid}\nsigning    {done.active}")
        typer.echo(f"refused    at once by the issuer and by introspection; everywhere by {by}")


def _opened(directory: Path, password: str | None) -> KeyDirectory:
    from langchain_runtime_authz.credential.keyring import KeyDirectory

    return KeyDirectory(directory, _bytes(password))


def _bytes(password: str | None) -> bytes | None:
    return password.encode() if password else None


def _show(ring: KeyDirectory, as_json: bool, **done: Any) -> None:
    keys = [{"kid": k.kid, "alg": k.alg, "state": k.state, "since": _time(k.since)} for k in ring.infos()]
    lines = [f"{k['kid']}  {k['alg']:<5}  {k['state']:<11}  since {k['since']}" for k in keys]
    show({**done, "keys": keys}, as_json, "\n".join(lines))


def _time(at: float) -> str:
    return dt.datetime.fromtimestamp(at, dt.UTC).isoformat(timespec="seconds")
