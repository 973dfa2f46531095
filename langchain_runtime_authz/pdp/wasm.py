"""The default PDP: Rego compiled by OPA to Wasm, evaluated in this process.

The verdicts are OPA's own, with no server to run. On top of that (`pdp._rego`): a deadline that stops
a running evaluation, the GIL free meanwhile, and no host function that a policy could call.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Final, overload

from langchain_runtime_authz._validate import checked_count, checked_path, checked_seconds, checked_text, wrong
from langchain_runtime_authz.authzen import EvaluationRequest, parse_answer, strict_json
from langchain_runtime_authz.errors import Code, ConfigError, PDPError, unreadable
from langchain_runtime_authz.fork import forkable_lock

if TYPE_CHECKING:
    from langchain_runtime_authz.pdp._rego import Program

__all__ = ["WasmPDP"]

DATA_ROOT: Final = "runtime_authz_data"  # where the shipped policy finds its data
MAX_BATCH_BYTES: Final = 1024 * 1024  # beyond it the calls of a message are evaluated one by one
_ENVELOPE: Final = 1024
_SHIPPED: Final = resources.files("langchain_runtime_authz") / "policies"

Json = Mapping[str, object]


class WasmPDP:
    """A policy compiled by `opa build -t wasm`, run in-process.

    Thread-safe, and usable in a fork's child. Construct it once: compiling costs about 0.15 s.

    Args:
        wasm: path or bytes of a compiled policy; the shipped one when absent.
        data: mapping, or path of a JSON file. For the shipped policy: the keys of its data.json to
            replace, each as a whole (`{"rates": {…}}`), or an edited copy of data.json. For a policy
            of your own: its whole data document.
        entrypoint: the rule that answers `{"decision": …, "context": {…}}`. A policy with an
            entrypoint `batch` beside it, which answers `{"requests": [input, …]}` with a list of such
            documents, decides the calls of a message in one evaluation.
        pool_size: evaluations that may run at the same time.
        timeout: seconds after which an evaluation is stopped (and denied).
        like: another one, whose compiled code is shared where the policy is the same.

    Raises:
        ConfigError: `policy_invalid`, saying what is wrong with the policy or the data.

    Attributes:
        name: `wasm`.
        revision: fingerprint of the policy and its data.
    """

    name = "wasm"

    def __init__(
        self,
        *,
        wasm: str | Path | bytes | None = None,
        data: Json | str | Path | None = None,
        entrypoint: str = "runtime_authz/decision",
        pool_size: int = 4,
        timeout: float = 1.0,
        like: WasmPDP | None = None,
    ) -> None:
        self._entrypoint = checked_text("entrypoint", entrypoint)
        self._pool_size = checked_count("pool_size", pool_size)
        self._timeout = checked_seconds("timeout", timeout)
        if like is not None and not isinstance(like, WasmPDP):
            raise wrong("like", "a WasmPDP", like)
        self._swap = forkable_lock()
        self._closed = False
        self._loaded: _Loaded = self._load(wasm, data, None if like is None else like._loaded)  # noqa: SLF001

    @property
    def revision(self) -> str:
        """Fingerprint of the policy and its data."""
        return self._loaded.revision

    def replace(
        self,
        *,
        wasm: str | Path | bytes | None = None,
        data: Json | str | Path | None = None,
    ) -> str:
        """Put another policy and its data in this one's place, at once and together.

        Both are given anew, as to the constructor. They are compiled and tried beside the running
        policy; evaluations under way end on the policy that they began with, and every answer names
        the revision that made it. Returns the new revision.

        Raises:
            ConfigError: `policy_invalid`: it can not be used, and nothing was changed.
        """
        new = self._load(wasm, data, self._loaded)
        with self._swap:
            old = new if self._closed else self._loaded
            if not self._closed:
                self._loaded = new
        old.program.close()
        return new.revision

    def evaluate(self, request: EvaluationRequest, body: bytes) -> object:
        """Answer one request.

        Raises:
            TimeoutError: no engine was free, or the evaluation did not end, within `timeout`.
            RuntimeError: the evaluation failed, or the PDP was closed.
        """
        answer, revision = self._run(body)
        return parse_answer(answer, revision)

    def document(self, body: bytes) -> object:
        """The policy's answer to any input, as it stands: for comparing policies, not for deciding."""
        return self._run(body)[0]

    async def aevaluate(self, request: EvaluationRequest, body: bytes) -> object:
        """Answer one request.

        Inline on purpose: about 0.2 ms of CPU is less than a hop to a thread costs under load, and
        `timeout` bounds the worst case. (Other threads may hold every pooled instance: then the
        loop waits for one of those evaluations.)
        """
        return self.evaluate(request, body)

    def evaluate_batch(self, requests: Sequence[EvaluationRequest], bodies: Sequence[bytes]) -> Sequence[object]:
        """Answer the calls of a message in one evaluation, where the policy has the entrypoint for it."""
        given = None
        if sum(map(len, bodies)) <= MAX_BATCH_BYTES:
            given = self._run(b'{"requests":[' + b",".join(bodies) + b"]}", batch=True)
        if given is None:
            return [self._tried(request, body) for request, body in zip(requests, bodies, strict=True)]
        answers, revision = given
        if not isinstance(answers, list):
            raise PDPError(Code.PDP_MALFORMED, "the batch is no list")
        return [parse_answer(answer, revision) for answer in answers]

    async def aevaluate_batch(
        self,
        requests: Sequence[EvaluationRequest],
        bodies: Sequence[bytes],
    ) -> Sequence[object]:
        """Answer the calls of a message in one evaluation, inline (see `aevaluate`)."""
        return self.evaluate_batch(requests, bodies)

    def close(self) -> None:
        """Free the engine; every later evaluation denies. Idempotent."""
        with self._swap:
            self._closed = True
            self._loaded.program.close()

    def _tried(self, request: EvaluationRequest, body: bytes) -> object:
        try:
            return self.evaluate(request, body)
        except Exception as exc:  # noqa: BLE001  (a deny of this request alone)
            return exc

    @overload
    def _run(self, body: bytes) -> tuple[object, str]: ...
    @overload
    def _run(self, body: bytes, *, batch: bool) -> tuple[object, str] | None: ...
    def _run(self, body: bytes, *, batch: bool = False) -> tuple[object, str] | None:
        from langchain_runtime_authz.pdp._rego import PolicyFailed, Undefined

        if len(body) > MAX_BATCH_BYTES + _ENVELOPE:
            raise PDPError(Code.PDP_ERROR, "the input is too large")
        while True:
            loaded = self._loaded
            entrypoint = loaded.batch if batch else self._entrypoint
            if entrypoint is None:
                return None
            try:
                return loaded.program.evaluate(body, entrypoint), loaded.revision
            except Undefined as exc:
                raise PDPError(Code.PDP_UNDEFINED) from exc
            except PolicyFailed:
                if loaded is self._loaded or not loaded.program.closed:
                    raise
                # Replaced between the two lines above: the new one answers.

    def _load(
        self,
        wasm: str | Path | bytes | None,
        data: Json | str | Path | None,
        loaded: _Loaded | None,
    ) -> _Loaded:
        code = _read_wasm(wasm)
        document = _canonical(_read_data(data))
        if wasm is None:
            document = _merge_shipped(document)
            if data is not None:
                # Imported late: a policy as it is shipped needs no check.
                from langchain_runtime_authz.pdp.shipped_data import check_data

                check_data(document[DATA_ROOT], "data")
        revision = "sha256:" + hashlib.sha256(code + _dump(document)).hexdigest()[:16]
        if wasm is None:
            # The fingerprint takes the place of any label, so that no answer can claim another policy.
            document = {DATA_ROOT: {**_member(document), "revision": revision}}
        known = loaded.program if loaded is not None and loaded.code == code and not loaded.program.closed else code
        program = _program(known, _dump(document), self._entrypoint, self._pool_size, self._timeout)
        batch = self._entrypoint.rpartition("/")[0] + "/batch"
        return _Loaded(program, code, revision, batch if batch in program.entrypoints else None)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """One policy with one data document: what is swapped."""

    program: Program
    code: bytes
    revision: str
    batch: str | None


def _read_wasm(source: str | Path | bytes | None) -> bytes:
    if isinstance(source, bytes):
        return source
    path: Traversable = _SHIPPED / "policy.wasm" if source is None else checked_path("wasm", source)
    return _read(path, "policy")


def _read_data(source: Json | str | Path | None) -> object:
    if source is None:
        return {}
    if not isinstance(source, str | Path):
        return source
    path = checked_path("data", source)
    return _parse(_read(path, "data"), path.name)


def _read(path: Traversable, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        msg = f"the {what} file `{path.name}` can not be read ({exc.strerror})"
        raise ConfigError(msg, Code.POLICY_INVALID) from exc


def _parse(text: bytes, name: str) -> object:
    try:
        return strict_json(text)
    except (ValueError, RecursionError) as exc:
        msg = f"`{name}` is not JSON: {unreadable(exc)}"
        raise ConfigError(msg, Code.POLICY_INVALID) from exc


def _dump(document: object) -> bytes:
    return json.dumps(document, allow_nan=False, sort_keys=True, separators=(",", ":")).encode()


def _canonical(document: object) -> dict[str, object]:
    """An own, plain copy: what the caller does to his mapping afterwards changes nothing."""
    if not isinstance(document, Mapping):
        msg = f"the data must be an object, not {type(document).__name__}"
        raise ConfigError(msg, Code.POLICY_INVALID)
    try:
        copy: dict[str, object] = json.loads(_dump(dict(document)))
    except (TypeError, ValueError, RecursionError) as exc:
        msg = f"the data has no exact JSON form: {exc}"
        raise ConfigError(msg, Code.POLICY_INVALID) from exc
    return copy


def _member(document: Json) -> dict[str, object]:
    inner = document[DATA_ROOT]
    if not isinstance(inner, dict):
        msg = f"`{DATA_ROOT}` must be an object, not {type(inner).__name__}"
        raise ConfigError(msg, Code.POLICY_INVALID)
    return inner


def _merge_shipped(given: dict[str, object]) -> dict[str, object]:
    """The shipped data with each given key in place of its own."""
    shipped = _member(_canonical(_parse((_SHIPPED / "data.json").read_bytes(), "data.json")))
    if set(given) == {DATA_ROOT}:  # an edited copy of data.json
        given = _member(given)
    for key in sorted(set(given) - set(shipped)):
        near = difflib.get_close_matches(key, shipped, n=1)
        hint = f" (did you mean `{near[0]}`?)" if near else ""
        msg = f"the shipped policy has no data key `{key}`{hint}; it has: {', '.join(shipped)}"
        raise ConfigError(msg, Code.POLICY_INVALID)
    return {DATA_ROOT: {**shipped, **given}}


def _program(known: bytes | Program, data: bytes, entrypoint: str, pool_size: int, timeout: float) -> Program:
    # Imported late: wasmtime is the dearest import of the package, and other PDPs do without it.
    from langchain_runtime_authz.pdp._rego import PolicyFailed, Program, Undefined

    try:
        program = Program(known, data, pool_size=pool_size, timeout=timeout)
    except (PolicyFailed, TimeoutError) as exc:
        msg = f"not a policy compiled by `opa build -t wasm`: {exc or type(exc).__name__}"
        raise ConfigError(msg, Code.POLICY_INVALID) from exc
    try:
        if program.builtins:
            # They would run in Python, beyond the deadline, or not exist at all.
            msg = f"the policy calls {', '.join(sorted(program.builtins))}, which Wasm does not have"
            raise ConfigError(msg, Code.POLICY_INVALID)
        if entrypoint not in program.entrypoints:
            have = ", ".join(sorted(program.entrypoints)) or "none"
            msg = f"the policy has no entrypoint `{entrypoint}`; it has: {have}"
            raise ConfigError(msg, Code.POLICY_INVALID)
        with suppress(Undefined):
            program.evaluate(b"{}", entrypoint)
    except (PolicyFailed, TimeoutError) as exc:
        program.close()
        msg = f"the policy can not be evaluated: {exc or type(exc).__name__}"
        raise ConfigError(msg, Code.POLICY_INVALID) from exc
    except BaseException:
        program.close()
        raise
    return program
