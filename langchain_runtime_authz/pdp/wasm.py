"""The default PDP: Rego compiled by OPA to Wasm, evaluated in this process.

The decisions are those of an OPA server. `pdp._wasm_host` stops an evaluation that takes too long, releases the GIL
during evaluations, and offers no host function to the policy.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from langchain_runtime_authz._validate import checked_count, checked_path, checked_seconds, checked_text
from langchain_runtime_authz.errors import Code, ConfigError, PDPError, unreadable
from langchain_runtime_authz.evaluation import strict_json
from langchain_runtime_authz.pdp.base import DEFAULT_DEADLINE, InProcess, PolicyFailed
from langchain_runtime_authz.pdp.response import parse_answer, parse_json

if TYPE_CHECKING:
    from langchain_runtime_authz.pdp._wasm_host import Program

DATA_ROOT: Final = "runtime_authz_data"  # where the shipped policy finds its data
MAX_BATCH_BYTES: Final = 1024 * 1024  # calls of a larger message are evaluated one by one
SHIPPED: Final = resources.files("langchain_runtime_authz") / "policies"

Json = Mapping[str, object]


class WasmPDP(InProcess):
    """Decide by a policy compiled by `opa build -t wasm`, run in this process.

    Thread-safe, and usable in a fork's child. The first instance of a policy takes about 0.15 s to compile.

    Args:
        wasm: path or bytes of a compiled policy; by default the shipped one.
        data: for the shipped policy: the members of its data.json to change (`merge_data`), or an edited copy of
            data.json. For a policy of your own: its whole data document.
        entrypoint: the rule that answers `{"decision": …, "context": {…}}`. The policy may also have an entrypoint
            `batch`, which answers `{"requests": [input, …]}` with a list of such documents. Then one evaluation decides
            the calls of a message.
        pool_size: evaluations that may run at the same time. Evaluations on event loops are not counted.
        timeout: seconds of CPU after which an evaluation is stopped (and denied). Waiting for a CPU does not count.
        deadline: seconds of CPU within which the calls of one message must be answered.

    Raises `ConfigError` (`policy_invalid`), which says what is wrong with the policy or the data.

    Attributes:
        revision: fingerprint of the policy and its data.
    """

    name = "wasm"

    def __init__(
        self,
        *,
        wasm: str | Path | bytes | None = None,
        data: Json | None = None,
        entrypoint: str = "runtime_authz/decision",
        pool_size: int = 4,
        timeout: float = 1.0,
        deadline: float = DEFAULT_DEADLINE,
    ) -> None:
        self._entrypoint = checked_text("entrypoint", entrypoint)
        self.deadline = checked_seconds("deadline", deadline)
        code = wasm
        if not isinstance(code, bytes):
            at: Traversable = SHIPPED / "policy.wasm" if code is None else checked_path("wasm", code)
            code = _read(at, "policy")
        document = _canonical({} if data is None else data)
        if wasm is None:
            document = merge_shipped(document)
            if data is not None:
                # Imported here, because unchanged data needs no check.
                from langchain_runtime_authz.pdp.policy_data import check_data

                check_data(document[DATA_ROOT], "data")
        self.revision = "sha256:" + hashlib.sha256(code + _dump(document)).hexdigest()[:16]
        if wasm is None:
            # The fingerprint replaces any revision in the data, so that no answer can claim another policy.
            document = {DATA_ROOT: {**_member(document), "revision": self.revision}}
        limits: Any = {
            "pool_size": checked_count("pool_size", pool_size),
            "timeout": checked_seconds("timeout", timeout),
        }
        self.program = _program(code, _dump(document), self._entrypoint, **limits)
        batch = self._entrypoint.rpartition("/")[0] + "/batch"
        self._batch = batch if batch in self.program.entrypoints else None

    def evaluate(self, body: bytes) -> object:
        """Answer one request. Raises `TimeoutError`, `PDPError` or `PolicyFailed`."""
        if len(body) > MAX_BATCH_BYTES:
            raise PDPError(Code.PDP_ERROR, "the input is too large")
        return parse_answer(self.program.evaluate(body, self._entrypoint), self.revision)

    def document(self, body: bytes) -> object:
        """Return the policy's unchecked answer to any input, for comparing policies only."""
        return parse_json(self.program.evaluate(body, self._entrypoint))

    def evaluate_batch(self, bodies: Sequence[bytes]) -> Sequence[object]:
        """Answer a message's calls in one evaluation, if there is an entrypoint `batch`."""
        if self._batch is None or sum(map(len, bodies)) > MAX_BATCH_BYTES:
            return [self._tried(body) for body in bodies]
        answers = parse_json(self.program.evaluate(b'{"requests":[' + b",".join(bodies) + b"]}", self._batch))
        if not isinstance(answers, list):
            raise PDPError(Code.PDP_MALFORMED, "the batch is not a list")
        return [parse_answer(answer, self.revision) for answer in answers]

    def close(self) -> None:
        """Free the engine; later requests are denied. Idempotent."""
        self.program.close()

    def _tried(self, body: bytes) -> object:
        try:
            return self.evaluate(body)
        except Exception as exc:  # noqa: BLE001  (a deny of this request alone)
            return exc


def _read(path: Traversable, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        msg = f"the {what} file `{path.name}` cannot be read ({exc.strerror})"
        raise ConfigError(msg, Code.POLICY_INVALID) from exc


def read_json(text: bytes | str, name: str) -> object:
    """Parse a JSON document of a policy. Errors (`policy_invalid`) call it `name`."""
    try:
        return strict_json(text)
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f"`{name}` is not JSON: {unreadable(exc)}", Code.POLICY_INVALID) from exc


def _dump(document: object) -> bytes:
    return json.dumps(document, allow_nan=False, sort_keys=True, separators=(",", ":")).encode()


def _canonical(document: object) -> dict[str, object]:
    """Return a plain copy, which later changes to the caller's mapping do not affect."""
    if not isinstance(document, Mapping):
        raise ConfigError(f"the data must be an object, not {type(document).__name__}", Code.POLICY_INVALID)
    try:
        copy: dict[str, object] = json.loads(_dump(dict(document)))
    except (TypeError, ValueError, RecursionError) as exc:
        raise ConfigError(f"the data has no exact JSON form: {exc}", Code.POLICY_INVALID) from exc
    return copy


def _member(document: Json) -> dict[str, object]:
    inner = document[DATA_ROOT]
    if not isinstance(inner, dict):
        raise ConfigError(f"`{DATA_ROOT}` must be an object, not {type(inner).__name__}", Code.POLICY_INVALID)
    return inner


def merge_data(shipped: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the shipped data with some members changed.

    Objects are merged member by member, at every depth. Any other value is replaced, a list as a whole. A null removes
    a member of an object. A top-level member cannot be removed.
    """
    return {**shipped, **{table: _changed(shipped.get(table), new) for table, new in changes.items()}}


def _changed(old: object, new: object) -> object:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    kept = {name: value for name, value in old.items() if name not in new}
    return kept | {name: _changed(old.get(name), value) for name, value in new.items() if value is not None}


def merge_shipped(given: Mapping[str, Any], *, own: bool = False) -> dict[str, Any]:
    """Return the whole data document of a policy that builds on the shipped one.

    `given` holds the members to change (`merge_data`) at its top, or in its member `runtime_authz_data`, as data.json
    does. With `own`, its other members are data of a project's own rules. Raises `ConfigError` for an unknown member.
    """
    shipped = _member(_canonical(read_json((SHIPPED / "data.json").read_bytes(), "data.json")))
    inner, rest, where = given, dict[str, Any](), "data.json: " if own else ""
    if DATA_ROOT in given and (own or len(given) == 1):
        inner, rest = _member(given), {k: v for k, v in given.items() if k != DATA_ROOT}
    for key in sorted(set(inner) - set(shipped)):
        near = difflib.get_close_matches(key, shipped, n=1)
        hint = f" (did you mean `{near[0]}`?)" if near else ""
        more = f"; put data of your own rules next to `{DATA_ROOT}`" if own else ""
        msg = f"{where}the shipped policy has no data key `{key}`{hint}; it has: {', '.join(shipped)}{more}"
        raise ConfigError(msg, Code.POLICY_INVALID)
    if meant := sorted(set(rest) & set(shipped)):
        msg = f"`{meant[0]}` is outside `{DATA_ROOT}`, where the shipped policy does not read it; put it inside"
        raise ConfigError(f"{where}{msg}", Code.POLICY_INVALID)
    return {**rest, DATA_ROOT: merge_data(shipped, inner)}


def _program(code: bytes, data: bytes, entrypoint: str, pool_size: int, timeout: float) -> Program:
    # Imported here, because wasmtime is the slowest import of the package, and only this PDP needs it.
    from langchain_runtime_authz.pdp._wasm_host import Program

    try:
        program = Program(code, data, pool_size=pool_size, timeout=timeout)
    except (PolicyFailed, TimeoutError) as exc:
        msg = f"not a policy compiled by `opa build -t wasm`: {exc or type(exc).__name__}"
        raise ConfigError(msg, Code.POLICY_INVALID) from exc
    try:
        if program.builtins:
            # The host would have to run these in Python, where the timeout cannot stop them.
            msg = f"the policy calls {', '.join(sorted(program.builtins))}, which Wasm does not have"
            raise ConfigError(msg, Code.POLICY_INVALID)
        if entrypoint not in program.entrypoints:
            have = ", ".join(sorted(program.entrypoints)) or "none"
            raise ConfigError(f"the policy has no entrypoint `{entrypoint}`; it has: {have}", Code.POLICY_INVALID)
        with suppress(PDPError):
            program.evaluate(b"{}", entrypoint)
    except (PolicyFailed, TimeoutError) as exc:
        program.close()
        raise ConfigError(f"the policy cannot be evaluated: {exc or type(exc).__name__}", Code.POLICY_INVALID) from exc
    except BaseException:
        program.close()
        raise
    return program
