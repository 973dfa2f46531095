"""Write a call into its token (RFC 9396 §2), and check a call against its token.

By default a token holds digests of the arguments, so that logs and introspection do not show the values. A digest is
made like that of a disclosure (RFC 9901 §4.2.3): base64url(SHA-256(base64url(JSON of [salt, name, value]))). The JSON
is canonical (RFC 8785) and the value in normal form, so that a service can recompute the digest from its request. The
salt is in the token, so a reader of the token can test a guess of a value.

In normal form an amount is a number, a text has no blanks around it, and a time in UTC ends in `Z`. If a token holds a
number, a service may pass it as a text like `-98.70`, because paths and forms hold only texts. Services read other texts
in different ways.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from decimal import Decimal
from typing import Any, Final, NoReturn

import rfc8785

from langchain_runtime_authz.credential import token as names
from langchain_runtime_authz.digest import as_json
from langchain_runtime_authz.errors import Code, CredentialError
from langchain_runtime_authz.facts.call_arguments import uncovered
from langchain_runtime_authz.facts.normal_forms import forms_of
from langchain_runtime_authz.tool_profile import ToolProfile

MAX_DETAIL: Final = 4096  # bytes of JSON
_UTC: Final = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{5,18})\+00:00")
_DECIMAL: Final = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,10})?")
ORDERED: Final = ("covered", names.APPROVED)
"""What a service accepts by default: calls that the mandate covers, and calls that an approver approved."""


def authorization_details(
    profile: ToolProfile,
    tool: str,
    args: Mapping[str, Any],
    *,
    step: str | None,
    standing: str,
    source: str | None,
    mandate: str | None,
    salt: str,
    approved: bool = False,
) -> list[dict[str, Any]]:
    """Return the authorization details of a permitted call.

    The detail holds the arguments that decide what the call affects. An argument that was not given is `null`. If an
    entry for each argument makes the detail larger than 4 kB of JSON, one digest covers all arguments. `salt` must
    be new for each token. Raises `CredentialError` (`credential_unavailable`) if an argument has no exact JSON form.
    """
    detail: dict[str, Any] = {
        "type": names.CALL_TYPE,
        "actions": ["tools/call"],
        "identifier": tool,
        names.STEP: step,
        names.STANDING: standing,
        names.SOURCE: source,
        names.MANDATE: mandate,
    }
    if approved:
        detail[names.APPROVED] = True
    if audiences := profile.exchange_audiences:
        detail[names.REACHES] = list(audiences)
    if profile.side_effect:
        detail[names.OPEN_ARGUMENTS] = [*profile.text, *profile.free]
    decisive = {name: bound_value(args, name) for name in _decisive(profile, args)}
    amounts = {name for name, kind in profile.critical.items() if kind == "amount"}
    values = _normal_arguments(decisive, _amount, amounts)
    if values is None:
        raise CredentialError(Code.CREDENTIAL_UNAVAILABLE, f"the arguments of `{tool}`")
    for entry in _entries(values, salt, plain=profile.token == "plain"):  # noqa: S105  (a mode)
        found = {**detail, **entry}
        if len(rfc8785.dumps(found)) <= MAX_DETAIL:
            break
    if names.ARGUMENTS_DIGEST in found and profile.side_effect:  # an open argument has no bound member then
        bound = [f"{name}." for name in (*profile.critical, *profile.when)]
        left_open = [n for n in found[names.OPEN_ARGUMENTS] if not any(name.startswith(f"{n}.") for name in bound)]
        found[names.OPEN_ARGUMENTS] = left_open
    return [found]


def _decisive(profile: ToolProfile, args: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of the arguments that the token binds."""
    yield from profile.critical
    yield from profile.when
    if profile.side_effect:
        yield from _beyond(args, {*profile.critical, *profile.when, *profile.text, *profile.free})


def _beyond(args: Mapping[str, Any], covered: Collection[str]) -> list[str]:
    """Return the names of arguments that `covered` does not fully cover."""
    roots = {name.partition(".")[0] for name in covered}
    open_names = (n for n, v in args.items() if n not in roots or any(True for _ in uncovered(n, v, covered)))
    return sorted(n for n in open_names if not (n in covered and _is_name(args, n)))


def _is_name(args: Mapping[str, Any], path: str) -> bool:
    """Return True if `path` is the name of an argument, not the path of a member."""
    return path in args and path.partition(".")[0] not in args


def bound_value(args: Mapping[str, Any], path: str) -> Any:
    """Return the value at `path`, or `None` if there is none.

    A list is read item by item: `None` stands for an item without the member. A list of one item becomes the item, and
    a list of nothing but `None` becomes `None`.
    """
    name, *inner = [path] if _is_name(args, path) else path.split(".")
    value: Any = args.get(name)
    for step in inner:
        value = [v.get(step) if isinstance(v, Mapping) else v for v in (value if isinstance(value, list) else [value])]
    if inner and all(v is None for v in value):
        return None
    return value[0] if inner and len(value) == 1 else value


def _entries(values: dict[str, Any], salt: str, *, plain: bool) -> Iterator[dict[str, Any]]:
    """Yield encodings of the arguments, each shorter than the previous one."""
    if plain:
        yield {names.ARGUMENTS: values}
    digests = {name: argument_digest(salt, name, value) for name, value in values.items()}
    yield {names.SALT: salt, names.ARGUMENT_DIGESTS: digests}
    yield {names.SALT: salt, names.ARGUMENTS_DIGEST: _digest_of_all(salt, values)}


def _normal_arguments(
    args: Mapping[str, Any], read: Callable[[str], Any], only: Collection[str] | None = None
) -> dict[str, Any] | None:
    """Return arguments in normal form, or `None`.

    `read` reads the texts of the arguments in `only`, or of all.
    """
    try:
        held = as_json(dict(args))
        return {name: _normal(v, read if only is None or name in only else _plain) for name, v in held.items()}
    except Exception:  # noqa: BLE001  (raised by an object's own code, for example)
        return None


def _normal(value: Any, read: Callable[[str], Any]) -> Any:
    """Return a value in normal form. `read` reads each text in it."""
    if isinstance(value, dict):
        return {name: _normal(held, read) for name, held in value.items()}
    if isinstance(value, list):
        return [_normal(held, read) for held in value]
    return read(value) if isinstance(value, str) else value


def _plain(text: str) -> str:
    """Return a text without the blanks around it, and a time in UTC with a `Z`."""
    utc = _UTC.fullmatch(text := text.strip())
    return f"{utc[1]}Z" if utc else text


def _amount(text: str) -> Any:
    """Return the only number that a model can mean by a text, or the plain text."""
    read = [Decimal(form[4:]) for form in forms_of(text) or () if form.startswith("num:")]
    if len(read) != 1:  # `1,200` may mean two numbers
        return _plain(text)
    # Such a number has at most 15 digits, which a double holds exactly.
    return int(read[0]) if read[0] == read[0].to_integral_value() else float(read[0])


def _decimal(text: str) -> Any:
    """Return the number that every service reads in a text, or the plain text."""
    return float(text.strip()) if _DECIMAL.fullmatch(text.strip()) else _plain(text)


def argument_digest(salt: str, name: str, value: Any) -> str:
    """Return the digest of an argument. `value` is in normal form."""
    return disclosure_digest(rfc8785.dumps([salt, name, value]))


def _digest_of_all(salt: str, values: Mapping[str, Any]) -> str:
    return argument_digest(salt, names.ARGUMENTS, {name: held for name, held in values.items() if held is not None})


def disclosure_digest(disclosure: bytes) -> str:
    """Return the digest of a disclosure's JSON (RFC 9901 §4.2.3)."""
    return _base64url(hashlib.sha256(_base64url(disclosure).encode()).digest())


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def check_call(
    credential: names.Credential,
    *,
    tool: str,
    args: Mapping[str, Any],
    step: str | None = None,
    accept: Collection[str] | None = ORDERED,
) -> None:
    """Check that a credential was minted for this call.

    Args:
        credential: the verified credential.
        tool: the tool whose call the service carries out.
        args: the arguments that the service will use, by their names in the tool's profile; `None` for a missing
            argument. If the token holds one digest over all arguments, give all; otherwise some are enough.
        step: id of the mandate's step that must cover the call, if the service demands one.
        accept: accepted standings (`evaluation.MandateContext`); `approved` stands for any call that an approver approved.
            `None` accepts every standing.

    Raises `CredentialError`: `credential_tool` (another tool's token), `credential_call` (another step, standing or
    arguments, or an argument that the token does not hold).
    """
    detail = _call(credential, tool)
    as_text, as_number = _normal_arguments(args, _plain), _normal_arguments(args, _decimal)
    if step is not None and detail.get(names.STEP) != step:
        _refuse("the step")
    approved = detail.get(names.APPROVED) is True and names.APPROVED in (accept or ())
    if accept is not None and not approved and detail.get(names.STANDING) not in tuple(accept):
        _refuse("the standing")
    if as_text is None or as_number is None:
        _refuse("an argument without an exact JSON form")
    salt, held = str(detail.get(names.SALT)), _digests(detail)
    if held is None:
        if detail.get(names.ARGUMENTS_DIGEST) not in (_digest_of_all(salt, as_text), _digest_of_all(salt, as_number)):
            _refuse("the arguments")
        return
    for name, text in as_text.items():
        if held.get(name) not in [argument_digest(salt, name, value) for value in (text, as_number[name])]:
            _refuse(f"the argument `{name}`")


def check_whole_call(
    credential: names.Credential, *, tool: str, args: Mapping[str, Any], accept: Collection[str] | None = ORDERED
) -> None:
    """Check that a credential was minted for exactly these arguments.

    Any value is accepted for `text` and `free` arguments, and for a read's arguments that its profile does not name.
    """
    detail = _call(credential, tool)
    held, others = _digests(detail), detail.get(names.OPEN_ARGUMENTS)
    given = {name: value for name, value in args.items() if value is not None}
    if held is None:  # one digest over all arguments of a side effect that its profile does not leave open
        if others is None:
            _refuse("the names of the arguments")
        held = {name: None for name in given if name not in others}
    elif others is not None and (added := _beyond(given, {*held, *others})):
        _refuse(f"the argument `{added[0]}`")
    check_call(credential, tool=tool, args={name: bound_value(given, name) for name in held}, accept=accept)


def _call(credential: names.Credential, tool: str) -> Mapping[str, Any]:
    found = [d for d in credential.claims[names.AUTHORIZATION_DETAILS] if d.get("type") == names.CALL_TYPE]
    if tool not in credential.tools or any(detail.get("identifier") != tool for detail in found):
        raise CredentialError(Code.CREDENTIAL_TOOL)
    if len(found) != 1:
        _refuse("the call")
    detail: Mapping[str, Any] = found[0]
    return detail


def _digests(detail: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return each argument's digest, or `None` if the token holds one common digest."""
    if isinstance(digests := detail.get(names.ARGUMENT_DIGESTS), Mapping):
        return digests
    shown = detail.get(names.ARGUMENTS)
    values = _normal_arguments(shown, _plain) if isinstance(shown, Mapping) else None
    salt = str(detail.get(names.SALT))
    return None if values is None else {name: argument_digest(salt, name, held) for name, held in values.items()}


def _refuse(what: str) -> NoReturn:
    raise CredentialError(Code.CREDENTIAL_CALL, what)
