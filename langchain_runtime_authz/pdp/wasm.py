"""The default PDP: Rego compiled by OPA to Wasm, evaluated in this process.

The decisions are those of an OPA server. `pdp._wasm_host` stops an evaluation that takes too long, releases the GIL
during evaluations, and offers no host function to the policy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from langchain_runtime_authz._validate import checked_count, checked_path, checked_seconds, checked_text
from langchain_runtime_authz.errors import Code, ConfigError, PDPError
from langchain_runtime_authz.pdp.base import DEFAULT_DEADLINE, InProcess, PolicyFailed
from langchain_runtime_authz.pdp.policy_data import DATA_ROOT, check_data, dumped, merge_shipped, plain, shipped_file
from langchain_runtime_authz.pdp.response import parse_answer, parse_json

if TYPE_CHECKING:
    from langchain_runtime_authz.pdp._wasm_host import Program

MAX_BATCH_BYTES: Final = 1024 * 1024  # calls of a larger message are evaluated one by one

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
            at: Traversable = shipped_file("policy.wasm") if code is None else checked_path("wasm", code)
            code = _read(at, "policy")
        document = plain({} if data is None else data)
        if wasm is None:
            document = merge_shipped(document)
            if data is not None:
                check_data(document[DATA_ROOT], "data")
        self.revision = "sha256:" + hashlib.sha256(code + dumped(document)).hexdigest()[:16]
        if wasm is None:
            # The fingerprint replaces any revision in the data, so that no answer can claim another policy.
            document = {DATA_ROOT: {**document[DATA_ROOT], "revision": self.revision}}
        limits: Any = {
            "pool_size": checked_count("pool_size", pool_size),
            "timeout": checked_seconds("timeout", timeout),
        }
        self.program = _program(code, dumped(document), self._entrypoint, **limits)
        batch = self._entrypoint.rpartition("/")[0] + "/batch"
        self._batch = batch if batch in self.program.entrypoints else None

    def evaluate(self, body: bytes) -> object:
        """Answer one request. Raises `TimeoutError`, `PDPError` or `PolicyFailed`."""
        return parse_answer(self.program.evaluate(body, self._entrypoint), self.revision)

    def document(self, body: bytes) -> object:
        """Return the policy's unchecked answer to any input, for comparing policies only."""
        return parse_json(self.program.evaluate(body, self._entrypoint))

    def evaluate_batch(self, bodies: Sequence[bytes]) -> Sequence[object]:
        """Answer a message's calls in one evaluation, if there is an entrypoint `batch`."""
        if self._batch is None or sum(map(len, bodies)) > MAX_BATCH_BYTES:
            return super().evaluate_batch(bodies)
        answers = parse_json(self.program.evaluate(b'{"requests":[' + b",".join(bodies) + b"]}", self._batch))
        if not isinstance(answers, list):
            raise PDPError(Code.PDP_MALFORMED, "the batch is not a list")
        return [parse_answer(answer, self.revision) for answer in answers]

    def close(self) -> None:
        """Free the engine; later requests are denied. Idempotent."""
        self.program.close()


def _read(path: Traversable, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        msg = f"the {what} file `{path.name}` cannot be read ({exc.strerror})"
        raise ConfigError(msg, Code.POLICY_INVALID) from exc


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
