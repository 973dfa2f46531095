"""Policy bundles: one signed revision of policy, data, profiles, grants and cases.

A bundle has OPA's format (openpolicyagent.org/docs/management-bundles): a `.tar.gz` with `.manifest`, `data.json`,
`policy.wasm`, the Rego from which the Wasm was compiled, and `.signatures.json`. An OPA server can serve a bundle, and
this module reads a bundle of `opa build --signing-key`. Parts that OPA does not know are in the manifest's `metadata`,
which OPA signs and otherwise ignores:

| member | |
|---|---|
| `profiles` | each tool's `ToolProfile` |
| `grants` | `Grant`s by name |
| `cases` | requests and the decisions that they must get: tried before the bundle is used |
| `entrypoint` | the rule that answers; by default the first that `wasm` in the manifest names |
| `engine` | `cedar`: the bundle holds the files of `CEDAR` in place of Wasm and Rego |

`revision` in the manifest is a whole number that grows with every release.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import stat
import tarfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from langchain_runtime_authz.errors import Code, ConfigError, PDPError, wrong_field
from langchain_runtime_authz.evaluation import Decision, EvaluationRequest, Outcome, strict_json
from langchain_runtime_authz.grant import Grant
from langchain_runtime_authz.pdp.cedar import CedarPDP
from langchain_runtime_authz.pdp.policy_data import DATA_ROOT, check_data, read_json
from langchain_runtime_authz.pdp.wasm import WasmPDP
from langchain_runtime_authz.tool_profile import ToolProfile, load_profiles

MANIFEST: Final = ".manifest"
SIGNATURES: Final = ".signatures.json"
DATA: Final = "data.json"
# Asymmetric ones only: a reader that can verify a policy must not be able to sign one.
ALGORITHMS: Final = ("ES256", "ES384", "ES512", "EdDSA", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
WASM: Final = "policy.wasm"
CEDAR: Final = ("policies.cedar", "policies.cedarschema", "obligations.json", "entities.json")
MAX_BYTES: Final = 32 * 1024 * 1024
NUMBER: Final = re.compile(r"(?!0+\Z)[0-9]{1,15}")
ENTRYPOINT: Final = "runtime_authz/decision"

Keys = Mapping[str, str | bytes]


@pydantic_dataclass(frozen=True, config=ConfigDict(extra="forbid", defer_build=True))
class Case:
    """A request and its expected decision. `reasons` of `None` accept any reasons."""

    name: str
    request: EvaluationRequest
    expect: Outcome
    reasons: tuple[str, ...] | None = None

    def unlike(self, decision: Decision | None) -> str:
        """Return how the decision differs from the expected one, or an empty text."""
        if decision is None:
            return "the answer is malformed"
        reasons = None if self.reasons is None else sorted(self.reasons)
        if decision.outcome == self.expect and reasons in (None, sorted(decision.reasons)):
            return ""
        wanted = self.expect + ("" if reasons is None else f" {reasons}")
        return f"expected {wanted}, decided {decision.outcome} {sorted(decision.reasons)}"


@dataclass(frozen=True, slots=True)
class Bundle:
    """One revision in Rego or Cedar. `digest`: SHA-256 of all files but signatures."""

    number: int = 0
    digest: str = ""
    wasm: bytes | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    entrypoint: str = ENTRYPOINT
    profiles: Mapping[str, ToolProfile] = field(default_factory=dict)
    grants: Mapping[str, Grant] = field(default_factory=dict)
    cases: tuple[Case, ...] = ()
    signed_by: str = ""
    cedar: Mapping[str, str] = field(default_factory=dict)

    @property
    def revision(self) -> str:
        """Return the revision in decisions: number and digest."""
        return f"{self.number}@{self.digest[:16]}"

    def engine(self, name: str, label: str = "", **limits: Any) -> WasmPDP | CedarPDP:
        """Return the engine, or raise `ConfigError`. `label`: its revision in decisions."""
        if self.cedar:
            policies, schema, *documents = (self.cedar[file] for file in CEDAR)
            table, known = map(read_json, documents, CEDAR[2:])
            return CedarPDP(policies=policies, schema=schema, obligations=table, entities=known)  # type: ignore[arg-type]
        data = self.data
        if self.wasm is not None and DATA_ROOT in data:
            check_data(data[DATA_ROOT], name)
            data = {**data, DATA_ROOT: {**data[DATA_ROOT], **({"revision": label} if label else {})}}
        return WasmPDP(wasm=self.wasm, data=data, entrypoint=self.entrypoint, **limits)

    def self_test(self, pdp: WasmPDP | CedarPDP) -> None:
        """Test a policy on its cases and an empty request, or raise `ConfigError`."""
        with suppress(PDPError, RuntimeError, TimeoutError, KeyError):  # without an answer nothing is permitted
            decision = pdp.evaluate(b"{}")
            if isinstance(decision, Decision) and decision.permit:
                raise policy_error("it permits an empty request")
        for case in self.cases:
            try:
                answer = pdp.evaluate(case.request.to_json())
            except TimeoutError as exc:
                raise policy_error(f"case `{case.name}`: it was not decided in time") from exc
            except (PDPError, RuntimeError) as exc:
                wrong = f"it could not be decided ({type(exc).__name__})"
            else:
                wrong = case.unlike(answer if isinstance(answer, Decision) else None)
            if wrong:
                raise policy_error(f"case `{case.name}`: {wrong}")


_CASE: Final = TypeAdapter(Case)


def read_bundle(source: str | Path, keys: Keys | None = None) -> Bundle:
    """Return the bundle in a `.tar.gz`.

    Raises `ConfigError`: `policy_invalid`, or `policy_unsigned` if none of `keys` has signed it.
    """
    return parse_bundle(read_files(source), Path(source).name, keys)


def read_files(source: str | Path) -> dict[str, bytes]:
    """Return the files of a bundle by name, unverified, or raise `ConfigError`."""
    path = Path(source)
    try:
        return _archive(_content(path, path.name), path.name)
    except OSError as exc:
        raise policy_error(f"`{path.name}` cannot be read ({exc.strerror or type(exc).__name__})") from exc


def _content(file: Path, name: str) -> bytes:
    if not stat.S_ISREG(file.stat().st_mode):  # a pipe has no end
        raise policy_error(f"`{name}` is not a plain file; `runtime-authz policy build` writes a bundle")
    with file.open("rb") as source:
        content = source.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise policy_error(f"`{name}` is too large for a policy bundle")
    return content


def _archive(packed: bytes, name: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as stream:
            unpacked = stream.read(MAX_BYTES + 1)
        if len(unpacked) > MAX_BYTES:
            raise policy_error(f"`{name}` holds more than {MAX_BYTES} bytes")
        with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as tar:
            for member in tar:
                if member.isdir():
                    continue
                at = PurePosixPath(member.name.lstrip("/"))
                # A sparse file has the size in its header, whatever the archive holds.
                plain = member.isreg() and not member.issparse() and 0 <= member.size <= MAX_BYTES
                file = tar.extractfile(member) if plain else None
                if file is None or ".." in at.parts or at.as_posix() in found:
                    raise policy_error(f"`{name}` holds `{member.name}`, which is not a plain file, or holds it twice")
                found[at.as_posix()] = file.read()
    except gzip.BadGzipFile as exc:
        raise policy_error(f"`{name}` is not a policy bundle, which is a .tar.gz") from exc
    except (tarfile.TarError, EOFError, zlib.error, OverflowError) as exc:
        raise policy_error(f"`{name}` is not a policy bundle: {exc}") from exc
    return found


def parse_bundle(files: Mapping[str, bytes], name: str, keys: Keys | None) -> Bundle:
    """Return the verified bundle of these files. Raises as `read_bundle`."""
    signed_by = verified_key_id(files, name, keys) if keys is not None else ""
    manifest = json_object(files.get(MANIFEST, b"{}"), f"{name}: {MANIFEST}")
    metadata = manifest.get("metadata", {})
    if not isinstance(metadata, dict):
        raise policy_error(f"{name}: `metadata` must be an object")
    cedar = CEDAR if metadata.get("engine") == "cedar" else ()
    for needed in (MANIFEST, *(cedar or (DATA, WASM))):
        if needed not in files:
            raise policy_error(f"`{name}` holds no `{needed}`; `runtime-authz policy build` writes bundles")
    number = manifest.get("revision")
    if not isinstance(number, str) or not NUMBER.fullmatch(number):
        raise policy_error(f"{name}: its revision is {number!r}; give a whole number that grows with every release")
    return Bundle(
        number=int(number),
        digest=_digest(files),
        wasm=None if cedar else files[WASM],
        data={} if cedar else json_object(files[DATA], f"{name}: {DATA}"),
        entrypoint=_entrypoint(manifest, name),
        profiles=load_profiles(_member(metadata, "profiles", dict, name)),
        grants=load_grants(_member(metadata, "grants", dict, name), name),
        cases=load_cases(_member(metadata, "cases", list, name), name),
        signed_by=signed_by,
        cedar={file: files[file].decode(errors="replace") for file in cedar},
    )


def _entrypoint(manifest: Mapping[str, Any], name: str) -> str:
    match manifest:
        case {"metadata": {"entrypoint": str(own)}}:
            return own
        case {"wasm": [{"entrypoint": str(first)}, *_]}:
            return first
        case {"metadata": {"entrypoint": _}} | {"wasm": _}:
            raise policy_error(f"{name}: an entrypoint in the manifest must be text")
    return ENTRYPOINT


def _member(metadata: Mapping[str, Any], key: str, kind: type, name: str) -> Any:
    found = metadata.get(key, kind())
    if not isinstance(found, kind):
        raise policy_error(f"{name}: `{key}` in the manifest's metadata must be a {kind.__name__}")
    return found


def load_grants(source: Mapping[str, Any], where: str) -> dict[str, Grant]:
    """Return `Grant`s by name, or raise `ConfigError` with `where` in its message."""
    found = {}
    for name, fields in source.items():
        try:
            found[name] = Grant.model_validate(fields)
        except ValidationError as exc:
            raise policy_error(f"{where}: grant `{name}`: {wrong_field(exc)}") from exc
    return found


def load_cases(source: list[Any], where: str) -> tuple[Case, ...]:
    """Return the cases of a list, or raise `ConfigError` with `where` in its message."""
    found = []
    for i, fields in enumerate(source, 1):
        given = fields if isinstance(fields, dict) else {}
        name = str(given.get("name") or i)
        try:
            found.append(_CASE.validate_json(json.dumps({**given, "name": name})))
        except (ValidationError, TypeError, ValueError) as exc:
            why = wrong_field(exc) if isinstance(exc, ValidationError) else str(exc)
            raise policy_error(f"{where}: case `{name}`: {why}") from exc
    return tuple(found)


def _digest(files: Mapping[str, bytes]) -> str:
    hashes = {n: hashlib.sha256(c).hexdigest() for n, c in files.items() if n != SIGNATURES}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def pack(files: Mapping[str, bytes]) -> bytes:
    """Return a `.tar.gz` of these files; the same files give the same bytes."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo("/" + name)
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    return gzip.compress(plain.getvalue(), mtime=0)


def with_manifest(files: Mapping[str, bytes], revision: int, metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """Return `files` and a manifest. It omits `wasm`, which most OPA servers refuse."""
    manifest = {"revision": str(revision), "roots": [""], "rego_version": 1, "metadata": metadata}
    return {**files, MANIFEST: json.dumps(manifest, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()}


def json_object(content: bytes, name: str) -> dict[str, Any]:
    """Return the JSON object in the file `name`, or raise `ConfigError`."""
    document = read_json(content, name)
    if not isinstance(document, dict):
        raise policy_error(f"`{name}` must hold an object")
    return document


def policy_error(detail: str) -> ConfigError:
    """Return the error `policy_invalid`."""
    return ConfigError(detail, Code.POLICY_INVALID)


def verified_key_id(files: Mapping[str, bytes], name: str, keys: Keys) -> str:
    """Return the id of the key that signed these files, or raise `ConfigError`."""
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


def trusted_keys(keys: Keys) -> dict[str, str | bytes]:
    """Return a copy of these keys. Raises `ConfigError` unless all are public keys."""
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
    """Return the `.signatures.json` of `files`. Raises `ConfigError` for an unfit key."""
    import jwt

    if algorithm not in ALGORITHMS:
        raise ConfigError(f"`{algorithm}` is none of {', '.join(ALGORITHMS)}")
    if not key_id:
        raise ConfigError("the key's id is empty; give the id under which the key is trusted")
    hashed = {n: _file_hash(n, c) for n, c in sorted(files.items()) if n != SIGNATURES}
    listed = [{"name": n, "hash": digest, "algorithm": "SHA-256"} for n, digest in hashed.items()]
    try:
        token = jwt.encode({"files": listed, "keyid": key_id}, key, algorithm, headers={"kid": key_id})
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError) as exc:  # a public key lacks `sign`
        raise ConfigError(f"the key is not a private key in PEM form for {algorithm} ({type(exc).__name__})") from exc
    return json.dumps({"signatures": [token]}).encode()


class _Literal(str):
    """The text of a number, as written in a JSON file."""

    __slots__ = ()


def _file_hash(name: str, content: bytes) -> str:
    """Return a file's hash as OPA computes it, which ignores the layout of JSON."""
    if name.rpartition("/")[2] in (MANIFEST, DATA):
        try:
            content = _walk(json.loads(content, parse_int=_Literal, parse_float=_Literal)).encode()
        except (ValueError, RecursionError):
            return ""
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
