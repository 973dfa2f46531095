"""The PDP protocol, and the one place where a PDP's answer becomes a `Decision`.

An engine answers with whatever it has; `Evaluator` is total: it never raises, never returns `None`,
and everything but a well-formed permit that came in time is a deny that says which of AuthZEN's
three failures it is. There is no other road from an engine to the enforcement step.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final, Protocol, runtime_checkable

from langchain_runtime_authz._validate import checked_seconds
from langchain_runtime_authz.authzen import (
    MAX_REQUEST_BYTES,
    Decision,
    EvaluationRequest,
    deny,
    parse_answer,
)
from langchain_runtime_authz.errors import Code, ConfigError, PDPError

__all__ = ["PDP", "BatchPDP", "Evaluator", "ObserveOnly", "bounded", "serialise"]

_log = logging.getLogger(__name__)

DEFAULT_DEADLINE: Final = 2.0  # seconds for one message's decisions
_STOPS: Final = (KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError)

Pairs = Sequence[tuple[EvaluationRequest, bytes | None]]


@runtime_checkable
class PDP(Protocol):
    """A policy decision point.

    `evaluate` receives the request and its JSON (serialised once for all readers) and returns the
    answer: JSON text, the parsed document `{"decision": …, "context": {…}}`, or the `Decision` that
    `parse_answer` made of either. It may raise: that is a deny, and a `PDPError` gives the deny its
    code. It should keep a deadline of its own, since a synchronous call can not be stopped
    from outside; a late answer is thrown away all the same.

    Attributes:
        name: low-cardinality name for spans and records, e.g. `wasm`.
        revision: of the loaded policy and data; empty where only the answer tells.
    """

    @property
    def name(self) -> str:
        """Low-cardinality name."""
        ...

    @property
    def revision(self) -> str:
        """Of the loaded policy and data."""
        ...

    def evaluate(self, request: EvaluationRequest, body: bytes) -> object:
        """Answer one request."""
        ...

    async def aevaluate(self, request: EvaluationRequest, body: bytes) -> object:
        """Answer one request without blocking the event loop."""
        ...


@runtime_checkable
class BatchPDP(PDP, Protocol):
    """A PDP that answers several requests at once: the calls of one model message.

    As many answers as requests, in their order; an answer that is an exception denies its request,
    what is raised denies every one of them.
    """

    def evaluate_batch(self, requests: Sequence[EvaluationRequest], bodies: Sequence[bytes]) -> Sequence[object]:
        """Answer every request."""
        ...

    async def aevaluate_batch(
        self,
        requests: Sequence[EvaluationRequest],
        bodies: Sequence[bytes],
    ) -> Sequence[object]:
        """Answer every request without blocking the event loop."""
        ...


class Evaluator:
    """A PDP with a deadline, made total.

    Args:
        pdp: the engine.
        deadline: seconds within which all requests of one batch must be answered.
    """

    def __init__(self, pdp: PDP, *, deadline: float = DEFAULT_DEADLINE) -> None:
        if isinstance(pdp, type) or not _is_pdp(pdp):
            is_ = f"the class {pdp.__name__}" if isinstance(pdp, type) else f"be {type(pdp).__name__}"
            msg = f"`pdp` must have name, revision, evaluate and aevaluate, not {is_}"
            raise ConfigError(msg)
        self.pdp = pdp
        self.deadline = checked_seconds("deadline", deadline)
        # Observing is done here and not in the observer: within the one deadline, what comes late is observed too.
        # By exactly this class: one that is derived from it may permit less, and is asked.
        self._observes = type(pdp) is ObserveOnly
        while type(pdp) is ObserveOnly:
            pdp = pdp.real
        self._asked = pdp
        self._batch = pdp if isinstance(pdp, BatchPDP) else None

    def evaluate(
        self,
        requests: Sequence[EvaluationRequest],
        bodies: Sequence[bytes | None] | None = None,
        *,
        until: float = math.inf,
    ) -> list[Decision]:
        """One decision per request, in order. Never raises but for `BaseException`s that stop the process.

        `bodies` are the requests' JSON where the caller has serialised them already (`serialise`);
        `until` is the end of the caller's own time (`time.monotonic`), where it comes before the deadline.
        """
        return self._given(self._decide(requests, bodies, min(until, time.monotonic() + self.deadline)))

    def _given(self, decisions: list[Decision]) -> list[Decision]:
        return [_observed(d) for d in decisions] if self._observes else decisions

    def _decide(
        self,
        requests: Sequence[EvaluationRequest],
        bodies: Sequence[bytes | None] | None,
        until: float,
    ) -> list[Decision]:
        pairs = list(_with_bodies(requests, bodies))
        if self._batch is None or len(pairs) == 1:
            return [self._one(r, b, until) for r, b in pairs]
        asked = [(r, b) for r, b in pairs if b is not None and self._unaskable(b) is None]
        if time.monotonic() >= until:
            return self._spread(pairs, partial(self._failed, Code.PDP_TIMEOUT))
        try:
            answers = self._batch.evaluate_batch([r for r, _ in asked], [b for _, b in asked]) if asked else []
        except _STOPS:
            raise
        except BaseException as exc:  # noqa: BLE001  (see `_one`)
            return self._spread(pairs, partial(self._raised, exc))
        return self._conclude_batch(pairs, len(asked), answers, until)

    @property
    def revision(self) -> str:
        """The PDP's revision; empty where it does not say one. Never raises."""
        try:
            revision = self.pdp.revision
        except Exception:  # noqa: BLE001  (a PDP that can not name its policy may still deny)
            return ""
        return revision if isinstance(revision, str) else ""

    def _one(self, request: EvaluationRequest, body: bytes | None, until: float) -> Decision:
        if (refused := self._unaskable(body)) is not None or body is None:
            return refused or deny(Code.UNCANONICAL_ARGUMENT, "mapping")
        if time.monotonic() >= until:
            return self._failed(Code.PDP_TIMEOUT)
        try:
            answer = self._asked.evaluate(request, body)
        except _STOPS:
            raise
        except BaseException as exc:  # noqa: BLE001  (an engine's panic may not be an `Exception`; all denies)
            return self._raised(exc)
        return self._conclude(answer, until)

    async def aevaluate(
        self,
        requests: Sequence[EvaluationRequest],
        bodies: Sequence[bytes | None] | None = None,
    ) -> list[Decision]:
        """Like `evaluate`, without blocking the event loop."""
        return self._given(await self._adecide(requests, bodies, time.monotonic() + self.deadline))

    async def _adecide(
        self,
        requests: Sequence[EvaluationRequest],
        bodies: Sequence[bytes | None] | None,
        until: float,
    ) -> list[Decision]:
        pairs = list(_with_bodies(requests, bodies))
        if self._batch is None or len(pairs) == 1:
            return [await self._aone(r, b, until) for r, b in pairs]
        asked = [(r, b) for r, b in pairs if b is not None and self._unaskable(b) is None]
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + until - time.monotonic()):
                answers = (
                    await self._batch.aevaluate_batch([r for r, _ in asked], [b for _, b in asked]) if asked else []
                )
        except _STOPS:
            raise
        except BaseException as exc:  # noqa: BLE001  (see `_one`)
            return self._spread(pairs, partial(self._raised, exc))
        return self._conclude_batch(pairs, len(asked), answers, until)

    async def _aone(self, request: EvaluationRequest, body: bytes | None, until: float) -> Decision:
        if (refused := self._unaskable(body)) is not None or body is None:
            return refused or deny(Code.UNCANONICAL_ARGUMENT, "mapping")
        left = until - time.monotonic()
        if left <= 0:
            return self._failed(Code.PDP_TIMEOUT)
        try:
            async with asyncio.timeout(left):
                answer = await self._asked.aevaluate(request, body)
        except _STOPS:
            raise
        except BaseException as exc:  # noqa: BLE001  (see `_one`)
            return self._raised(exc)
        return self._conclude(answer, until)

    def _conclude_batch(self, pairs: Pairs, asked: int, answers: Sequence[object], until: float) -> list[Decision]:
        # Which answer belongs to which request can not be guessed.
        if not isinstance(answers, list | tuple) or len(answers) != asked:
            return self._spread(pairs, partial(self._failed, Code.PDP_MALFORMED))
        each = iter(answers)
        return self._spread(pairs, lambda: self._conclude(next(each), until))

    def _spread(self, pairs: Pairs, decide: Callable[[], Decision]) -> list[Decision]:
        """A mapping error for each request that was not asked, `decide` for each that was."""
        return [self._unaskable(body) or decide() for _, body in pairs]

    def _unaskable(self, body: bytes | None) -> Decision | None:
        if body is None:
            return deny(Code.UNCANONICAL_ARGUMENT, "mapping", self.revision)
        if len(body) > MAX_REQUEST_BYTES:
            return deny(Code.REQUEST_TOO_LARGE, "mapping", self.revision)
        return None

    def _conclude(self, answer: object, until: float) -> Decision:
        if time.monotonic() > until:
            return self._failed(Code.PDP_TIMEOUT)
        if isinstance(answer, Decision):
            return answer
        if isinstance(answer, Exception):
            return self._raised(answer)
        return parse_answer(answer, self.revision) or self._failed(Code.PDP_MALFORMED)

    def _raised(self, exc: BaseException) -> Decision:
        match exc:
            case PDPError():
                return self._failed(exc.code, exc)
            case TimeoutError():
                return self._failed(Code.PDP_TIMEOUT, exc)
        return self._failed(Code.PDP_ERROR, exc)

    def _failed(self, code: str, exc: BaseException | None = None) -> Decision:
        # The type of the exception only: its text may quote the request.
        _log.warning("PDP %s: %s%s", self.pdp.name, code, f" ({type(exc).__name__})" if exc else "")
        return deny(code, "pdp", self.revision)


def _is_pdp(pdp: object) -> bool:
    try:
        return isinstance(pdp, PDP) and isinstance(pdp.name, str)
    except Exception:  # noqa: BLE001  (a property of it raised; what it is not, it can not be asked for)
        return False


def _with_bodies(
    requests: Sequence[EvaluationRequest],
    bodies: Sequence[bytes | None] | None,
) -> Iterator[tuple[EvaluationRequest, bytes | None]]:
    return zip(requests, bodies if bodies is not None else map(serialise, requests), strict=True)


def serialise(request: EvaluationRequest) -> bytes | None:
    """The request's JSON, or `None` where a string in it has no UTF-8 form (a lone surrogate)."""
    try:
        return request.to_json()
    except (ValueError, RecursionError):
        return None


MAX_REVISION: Final = 256


def bounded(revision: str) -> str:
    """A revision; too long a one as its fingerprint, since two that differ at their ends are not the same."""
    if len(revision) <= MAX_REVISION:
        return revision
    return "sha256:" + hashlib.sha256(revision.encode("utf-8", "surrogatepass")).hexdigest()


class ObserveOnly:
    """Asks the real PDP, records what it would have said, and permits.

    The only way to observe without stopping. Its name stands in coverage, in every span and in
    every record (`pdp = "observe-only(…)"`), and obligations of a permit are still carried out.
    What the enforcement point itself refuses, it refuses under this PDP too.

    A permit in place of another outcome says so in its reasons: `observed:deny`, then the real ones. An
    answer that is late or malformed is no exception: it would have denied (`observed:deny`,
    `pdp_malformed`), and an observer that stopped there would stop just what is to be observed.

    Args:
        real: the PDP whose decisions are observed.
    """

    def __init__(self, real: PDP) -> None:
        self._real = Evaluator(real)
        self.real = real
        self.name = f"observe-only({real.name})"

    @property
    def revision(self) -> str:
        """The observed policy's revision."""
        return self.real.revision

    @property
    def behind(self) -> tuple[PDP, ...]:
        """The PDPs that decide."""
        return (self.real,)

    def evaluate(self, request: EvaluationRequest, body: bytes) -> object:
        """Permit, with the real decision's outcome as the reason."""
        return _observed(self._real.evaluate([request], [body])[0])

    async def aevaluate(self, request: EvaluationRequest, body: bytes) -> object:
        """Permit, with the real decision's outcome as the reason."""
        return _observed((await self._real.aevaluate([request], [body]))[0])

    def evaluate_batch(self, requests: Sequence[EvaluationRequest], bodies: Sequence[bytes]) -> Sequence[object]:
        """Permit each, with the real decision's outcome as the reason."""
        return [_observed(d) for d in self._real.evaluate(requests, bodies)]

    async def aevaluate_batch(
        self,
        requests: Sequence[EvaluationRequest],
        bodies: Sequence[bytes],
    ) -> Sequence[object]:
        """Permit each, with the real decision's outcome as the reason."""
        return [_observed(d) for d in await self._real.aevaluate(requests, bodies)]

    def close(self) -> None:
        """Close the real PDP if it can be closed."""
        close_all(self.real)


def close_all(*pdps: PDP) -> None:
    """Close every PDP that can be closed."""
    for pdp in pdps:
        close = getattr(pdp, "close", None)
        if close is not None:
            close()


def _observed(real: Decision) -> Decision:
    """The permit in place of a decision; what could not be put to a PDP at all stays denied."""
    if real.permit or real.failure == "mapping":
        return real
    reasons = (f"observed:{real.outcome}", *real.reasons)
    return real.model_copy(
        update={"outcome": "permit", "reasons": reasons, "obligations": (), "failure": None, "ttl": 0},
    )
