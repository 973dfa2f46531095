"""The PDP protocol, and the evaluator that turns each answer into a `Decision`.

An engine may return anything, or raise. `Evaluator` still returns one decision for each request. A missing, late or
malformed answer becomes a deny, whose `failure` says why. `Evaluator` raises only interrupts and cancellations.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol, Unpack, runtime_checkable

from langchain_runtime_authz._http import Link, PDPConnection
from langchain_runtime_authz._validate import checked_seconds
from langchain_runtime_authz.errors import Code, ConfigError, PDPError
from langchain_runtime_authz.evaluation import MAX_REQUEST_BYTES, Decision, deny
from langchain_runtime_authz.pdp.response import parse_answer
from langchain_runtime_authz.telemetry import metrics
from langchain_runtime_authz.telemetry.logs import get_logger, lines_left_out

_log = get_logger(__name__)

DEFAULT_DEADLINE: Final = 2.0  # seconds for one message's decisions
MAX_REVISION: Final = 256
_STOPS: Final = (KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError)


class PolicyFailed(RuntimeError):
    """A policy cannot be loaded or evaluated. The message never quotes the input."""


@runtime_checkable
class PDP(Protocol):
    """A policy decision point.

    `evaluate` receives the JSON of an AuthZEN request, which `evaluation.parse_request` parses. It returns JSON text, the
    parsed document `{"decision": …, "context": {…}}`, or the `Decision` that `parse_answer` made of either. If it
    raises, the request is denied; a `PDPError` gives the deny its code. A synchronous `evaluate` cannot be stopped
    from outside, so it must keep a deadline itself. A request that is answered too late is denied.

    Attributes:
        deadline: optional; seconds within which the calls of one message must be answered (2.0).
        in_process: optional; true if `evaluate` never waits. Then it runs on event loops, and its deadline is CPU time.
    """

    @property
    def name(self) -> str:
        """Return the name in spans and records, e.g. `wasm`. Few values are possible."""

    @property
    def revision(self) -> str:
        """Return the version of policy and data; empty if only the answers state it."""

    def evaluate(self, body: bytes) -> object:
        """Return the answer to one request."""

    async def aevaluate(self, body: bytes) -> object:
        """Answer like `evaluate`, without blocking the event loop."""


@runtime_checkable
class BatchPDP(PDP, Protocol):
    """A PDP that answers several requests at once: the calls of one model message.

    `evaluate_batch` returns as many answers as requests, in the order of the requests. An exception in the list denies
    its request; a raised exception denies all requests.
    """

    def evaluate_batch(self, bodies: Sequence[bytes]) -> Sequence[object]:
        """Return an answer to each request, in order."""

    async def aevaluate_batch(self, bodies: Sequence[bytes]) -> Sequence[object]:
        """Answer like `evaluate_batch`, without blocking the event loop."""


class InProcess:
    """Derive the other methods of a PDP that never waits from `evaluate`."""

    in_process = True
    evaluate: Callable[[bytes], object]

    async def aevaluate(self, body: bytes) -> object:
        return self.evaluate(body)

    def evaluate_batch(self, bodies: Sequence[bytes]) -> Sequence[object]:
        return [self._tried(body) for body in bodies]

    def _tried(self, body: bytes) -> object:
        try:
            return self.evaluate(body)
        except Exception as exc:  # noqa: BLE001  (a deny of this request alone)
            return exc

    async def aevaluate_batch(self, bodies: Sequence[bytes]) -> Sequence[object]:
        return self.evaluate_batch(bodies)


class RemotePDP:
    """A PDP that is asked over HTTP, through a `Link`."""

    _ask: Callable[[bytes], Awaitable[Decision | None]]

    def __init__(self, url: str, deadline: float, **connection: Unpack[PDPConnection]) -> None:
        self.deadline = checked_seconds("deadline", deadline)
        self.revision = ""
        self._link = Link(url, **connection)

    async def _ask_all(self, bodies: Sequence[bytes]) -> Sequence[object]:
        return await asyncio.gather(*map(self._ask, bodies), return_exceptions=True)

    def evaluate(self, body: bytes) -> object:
        return self._link.run(lambda: self._ask(body))

    async def aevaluate(self, body: bytes) -> object:
        return await self._link.arun(lambda: self._ask(body))

    def evaluate_batch(self, bodies: Sequence[bytes]) -> Sequence[object]:
        return self._link.run(lambda: self._ask_all(bodies))

    async def aevaluate_batch(self, bodies: Sequence[bytes]) -> Sequence[object]:
        return await self._link.arun(lambda: self._ask_all(bodies))

    def close(self) -> None:
        """Close every connection; later requests are denied. Idempotent."""
        self._link.close()


class Evaluator:
    """Ask a PDP; always return decisions. `deadline`: seconds, of CPU if `in_process`."""

    def __init__(self, pdp: PDP, *, deadline: float | None = None) -> None:
        if isinstance(pdp, type) or not isinstance(pdp, PDP) or not isinstance(pdp.name, str):
            is_ = f"the class {pdp.__name__}" if isinstance(pdp, type) else f"be {type(pdp).__name__}"
            raise ConfigError(f"`pdp` must have name, revision, evaluate and aevaluate, not {is_}")
        self.pdp, self._left_out = pdp, lines_left_out()
        given = getattr(pdp, "deadline", DEFAULT_DEADLINE) if deadline is None else deadline
        self.deadline = checked_seconds("deadline", given)
        self.in_process = getattr(pdp, "in_process", False) is True
        # A PDP that never waits is limited by CPU time, so that a busy machine does not cause denials.
        self._now = time.thread_time if self.in_process else time.monotonic
        # `ObserveOnly` is unwrapped: the evaluator asks the real PDP and replaces its denials, late answers included.
        # A class derived from `ObserveOnly` may permit less, so it is asked itself.
        self._observes = type(pdp) is ObserveOnly
        while type(pdp) is ObserveOnly:
            pdp = pdp.real
        self._inner = pdp
        self._batch = pdp if isinstance(pdp, BatchPDP) else None

    @property
    def revision(self) -> str:
        """Return the PDP's revision, or an empty text if it has none. Never raises."""
        try:
            revision = self.pdp.revision
        except Exception:  # noqa: BLE001  (a PDP that cannot name its policy may still deny)
            return ""
        return revision if isinstance(revision, str) else ""

    def evaluate(self, bodies: Sequence[bytes | None], *, within: float = math.inf) -> list[Decision]:
        """Return a decision for each request, in order, after at most `within` seconds."""
        began = time.monotonic()
        until = self._now() + min(self.deadline, within)
        asked: list[bytes] = []
        for body in bodies:
            if body is not None and len(body) <= MAX_REQUEST_BYTES:
                asked.append(body)
        decided: list[Decision] = []
        batch = self._batch if len(asked) > 1 else None
        questions: Sequence[Any] = [asked] if batch is not None else asked
        for what in questions:
            answer: object = TimeoutError()
            try:
                if self._now() < until:
                    answer = self._inner.evaluate(what) if batch is None else batch.evaluate_batch(what)
            except _STOPS:
                raise
            except BaseException as exc:  # noqa: BLE001  (an engine's panic may not be an `Exception`; all of them deny)
                answer = exc
            if batch is None:
                decided += [self._concluded(answer, until)]
            else:
                decided = self._concluded_all(answer, len(asked), until)
            del answer  # an exception's traceback refers to this frame: a cycle
        return self._placed(bodies, decided, began)

    async def aevaluate(self, bodies: Sequence[bytes | None]) -> list[Decision]:
        if self.in_process:
            return self.evaluate(bodies)
        began = time.monotonic()
        until = began + self.deadline
        asked = [b for b in bodies if b is not None and len(b) <= MAX_REQUEST_BYTES]
        if self._batch is not None and len(asked) > 1:
            answers = await self._aask(self._batch.aevaluate_batch, asked, until)
            return self._placed(bodies, self._concluded_all(answers, len(asked), until), began)
        decided = [self._concluded(await self._aask(self._inner.aevaluate, b, until), until) for b in asked]
        return self._placed(bodies, decided, began)

    async def _aask(self, ask: Callable[[Any], Awaitable[object]], what: object, until: float) -> object:
        left = until - time.monotonic()
        if left <= 0:
            return TimeoutError()
        try:
            async with asyncio.timeout(left):
                return await ask(what)
        except _STOPS:
            raise
        except BaseException as exc:  # noqa: BLE001  (see `evaluate`)
            return exc

    def _concluded_all(self, answers: object, asked: int, until: float) -> list[Decision]:
        if isinstance(answers, BaseException):
            return [self._concluded(answers, until) for _ in range(asked)]
        # If the numbers differ, answers cannot be assigned to requests.
        if not isinstance(answers, list | tuple) or len(answers) != asked:
            return [self._failed(Code.PDP_MALFORMED) for _ in range(asked)]
        return [self._concluded(answer, until) for answer in answers]

    def _concluded(self, answer: object, until: float) -> Decision:
        if isinstance(answer, BaseException):
            if isinstance(answer, PDPError):
                return self._failed(answer.code, answer)
            return self._failed(Code.PDP_TIMEOUT if isinstance(answer, TimeoutError) else Code.PDP_ERROR, answer)
        if self._now() > until:
            return self._failed(Code.PDP_TIMEOUT)
        if isinstance(answer, Decision):
            return answer
        return parse_answer(answer, self.revision) or self._failed(Code.PDP_MALFORMED)

    def _failed(self, code: str, exc: BaseException | None = None) -> Decision:
        # Log only the exception's type, because its text may quote the request; ours does not.
        decision = deny(code, "pdp", self.revision)
        if (left_out := self._left_out(code)) is not None:
            why = f": {exc}" if isinstance(exc, PolicyFailed) else ""
            what, ids = f"{code} ({type(exc).__name__}{why})" if exc else code, {"decision_id": decision.decision_id}
            more = f"; {left_out} more were not logged" if left_out else ""
            _log.warning("PDP %s: %s (decision %s)%s", self.pdp.name, what, decision.decision_id, more, extra=ids)
        return decision

    def _placed(self, bodies: Sequence[bytes | None], decided: list[Decision], began: float) -> list[Decision]:
        """Return a decision for each body: a deny if the body was not sent to the PDP."""
        if metrics.instruments.proxy._real_meter is not None:  # noqa: SLF001  (a look without a call)
            metrics.time_engine(self.pdp.name, began)
        if self._observes:
            decided = [_observed(d) for d in decided]
        if len(decided) == len(bodies):
            return decided
        each, found = iter(decided), []
        for body in bodies:
            asked = body is not None and len(body) <= MAX_REQUEST_BYTES
            code = Code.UNCANONICAL_ARGUMENT if body is None else Code.REQUEST_TOO_LARGE
            found.append(next(each) if asked else deny(code, "mapping", self.revision))
        return found


def short_revision(revision: str) -> str:
    """Return a revision, or its digest if it is long: cut revisions could be equal."""
    if len(revision) <= MAX_REVISION:
        return revision
    return "sha256:" + hashlib.sha256(revision.encode("utf-8", "surrogatepass")).hexdigest()


class Composed:
    """Base of PDPs that wrap PDPs. A single request is evaluated as a batch of one."""

    # Makes this PDP's decisions from the requests and the first PDP's decisions.
    _after: Callable[[Sequence[bytes], Sequence[Decision]], Sequence[Decision]]

    def __init__(self, kind: str, pdps: Sequence[PDP], deadline: float | None) -> None:
        self._all = [Evaluator(pdp, deadline=deadline) for pdp in pdps]
        self._real = self._all[0]
        self.name = f"{kind}({','.join(pdp.name for pdp in pdps)})"
        self.deadline = max(e.deadline for e in self._all)
        self.in_process = all(e.in_process for e in self._all)

    @property
    def revision(self) -> str:
        return self._real.pdp.revision

    @property
    def wrapped_pdps(self) -> tuple[PDP, ...]:
        """Return the wrapped PDPs."""
        return (self._real.pdp,)

    def evaluate(self, body: bytes) -> object:
        return self.evaluate_batch([body])[0]

    async def aevaluate(self, body: bytes) -> object:
        return (await self.aevaluate_batch([body]))[0]

    def evaluate_batch(self, bodies: Sequence[bytes]) -> Sequence[Decision]:
        return self._after(bodies, self._real.evaluate(bodies))

    async def aevaluate_batch(self, bodies: Sequence[bytes]) -> Sequence[Decision]:
        return self._after(bodies, await self._real.aevaluate(bodies))

    def close(self) -> None:
        """Close the wrapped PDPs."""
        for each in self._all:
            if (close := getattr(each.pdp, "close", None)) is not None:
                close()


class ObserveOnly(Composed):
    """Ask the real PDP, record its decision, and permit.

    This is the only way to observe without enforcing. Its name (`observe-only(…)`) stands in the coverage report, in
    every span and in every record. Obligations of real permits are carried out. The PEP's own denials still apply.

    A permit that replaces another outcome has the reason `observed:<outcome>`, followed by the real reasons. Late and
    malformed answers are replaced in the same way (`observed:deny`, `pdp_malformed`).

    Args:
        real: the PDP whose decisions are observed.
    """

    def __init__(self, real: PDP) -> None:
        super().__init__("observe-only", [real], None)
        self.real = real

    def _after(self, _bodies: Sequence[bytes], decisions: Sequence[Decision]) -> Sequence[Decision]:
        return [_observed(d) for d in decisions]


def _observed(real: Decision) -> Decision:
    """Replace a denial by a permit, except for a request that could not be sent."""
    if real.permit or real.failure == "mapping":
        return real
    reasons = (f"observed:{real.outcome}", *real.reasons)
    return replace(real, outcome="permit", reasons=reasons, obligations=(), failure=None, ttl=0)
