"""`Evaluator` is total, and only a well-formed permit that came in time permits."""

import asyncio
import gc
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from langchain_runtime_authz._http import Link
from langchain_runtime_authz.errors import AuthzError, Code, ConfigError
from langchain_runtime_authz.evaluation import Decision, EvaluationRequest
from langchain_runtime_authz.pap.reloading import ReloadingPDP
from langchain_runtime_authz.pdp import authzen, opa
from langchain_runtime_authz.pdp.authzen import AuthzenPDP
from langchain_runtime_authz.pdp.base import Evaluator, ObserveOnly
from langchain_runtime_authz.pdp.cedar import CedarPDP
from langchain_runtime_authz.pdp.compose import CandidatePDP, CircuitBreaker, DenyOverrides
from langchain_runtime_authz.pdp.opa import OpaPDP
from langchain_runtime_authz.pdp.wasm import WasmPDP
from langchain_runtime_authz.telemetry import logs
from langchain_runtime_authz.testing.example_request import example_request
from langchain_runtime_authz.testing.static_pdp import StaticPDP
from tests.counted import python_calls
from tests.unit_tests.pdp.test_batch import decide as decisions

REQUEST = example_request()


class Panic(BaseException):
    """What an engine written in another language may raise."""


class AsyncPDP:
    """A PDP whose asynchronous side is a coroutine of the test's own."""

    name = "async"
    revision = "r1"

    def __init__(self, answer: Callable[[], Any]) -> None:
        self._answer = answer

    def evaluate(self, body: bytes) -> object:
        raise NotImplementedError

    async def aevaluate(self, body: bytes) -> object:
        return await self._answer()


def decide(pdp: Any) -> Decision:
    """One decision, the same by both entry points."""
    return decisions(pdp)[0]


def context(**members: object) -> dict[str, object]:
    """A permit with these members in its context."""
    return {"decision": True, "context": members}


@pytest.mark.parametrize("error", [ValueError("secret"), OSError(), Panic(), MemoryError(), TimeoutError()])
def test_what_the_engine_raises_denies(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    """An exception or a foreign panic is a deny, and its text is not logged."""

    def fail(_: EvaluationRequest) -> object:
        raise error

    evaluator = Evaluator(StaticPDP(fail))
    decisions = [*evaluator.evaluate([REQUEST.to_json()]), *asyncio.run(evaluator.aevaluate([REQUEST.to_json()]))]
    assert {(d.outcome, d.failure) for d in decisions} == {("deny", "pdp")}
    assert {d.reason for d in decisions} <= {Code.PDP_ERROR, Code.PDP_TIMEOUT}
    assert "secret" not in caplog.text
    (line,) = caplog.records[-1:]
    assert line.decision_id == decisions[-1].decision_id  # type: ignore[attr-defined]
    assert line.getMessage().endswith(f"(decision {decisions[-1].decision_id})")


def test_an_engine_that_is_down_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Five lines of a code a minute."""

    def fail(_: EvaluationRequest) -> object:
        raise OSError

    evaluator = Evaluator(StaticPDP(fail))
    assert {evaluator.evaluate([REQUEST.to_json()])[0].permit for _ in range(20)} == {False}
    assert len([r for r in caplog.records if "PDP static" in r.message]) == logs.BURST


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_what_stops_the_process_is_not_swallowed(error: type[BaseException]) -> None:
    def stop(_: EvaluationRequest) -> object:
        raise error

    with pytest.raises(error):
        Evaluator(StaticPDP(stop)).evaluate([REQUEST.to_json()])


def test_a_late_answer_is_thrown_away_async() -> None:
    """So it is where a coroutine blocks the loop instead of awaiting."""

    async def late() -> object:
        time.sleep(0.05)
        return {"decision": True}

    (decision,) = asyncio.run(Evaluator(AsyncPDP(late), deadline=0.02).aevaluate([REQUEST.to_json()]))
    assert (decision.reason, decision.failure) == (Code.PDP_TIMEOUT, "pdp")


def test_a_hanging_engine_is_left() -> None:
    """A coroutine that never ends is cancelled at the deadline."""
    cancelled: list[bool] = []

    async def hang() -> object:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        return {"decision": True}

    decisions = asyncio.run(Evaluator(AsyncPDP(hang), deadline=0.5).aevaluate([REQUEST.to_json(), REQUEST.to_json()]))
    assert [d.reason for d in decisions] == [Code.PDP_TIMEOUT] * 2
    assert cancelled == [True]


def test_the_revision_is_the_answers_or_the_pdps() -> None:
    """Every decision names a policy revision: the answer's, else the PDP's."""
    assert decide(StaticPDP(lambda _: context(policy={"revision": "r9"}))).policy_revision == "r9"
    assert decide(StaticPDP(True)).policy_revision == "static"
    assert decide(StaticPDP(lambda _: None)).policy_revision == "static"


@pytest.mark.parametrize("stray", [
    {"obligations": [{"id": "1", "type": "redact", "fields": ["iban"]}]}, {"obligation": {"id": "1"}},
    {"context": {"obligation": [{"id": "1"}]}}, {"context": {"Obligations": [], "obligations": []}},
], ids=str)
def test_an_obligation_of_another_pdp_in_another_place_is_no_plain_permit(stray: dict[str, Any]) -> None:
    """AuthZEN's answers may hold anything more; what would oblige is never passed over."""
    assert authzen._decision({"decision": True, "hint": 1, "context": {"hint": 1}}, "").permit
    decision = authzen._decision({"decision": True, **stray}, "")
    assert (decision.outcome, decision.reasons, decision.failure) == ("deny", (Code.PDP_MALFORMED,), "pdp")


def opa_says(*revisions: object) -> Any:
    """What OPA tells of bundles with these revisions."""
    bundles = {f"bundle-{i:0>99}": {"revision": r} for i, r in enumerate(revisions)}
    return opa._opened({"result": {"decision": True}, "provenance": {"bundles": bundles}})


def test_long_revisions_that_differ_at_their_ends_are_two() -> None:
    """Cut to a length they would be one, and what was permitted under it would outlast the policy."""
    by_opa = [opa._decision(*opa_says("r", "r", "r", last)) for last in ("r1", "r2")]
    by_authzen = [
        authzen._decision({"decision": True, "context": {"policy": {"revision": "r" * 300 + last}}}, "") for last in "12"
    ]
    for one, other in (by_opa, by_authzen):
        assert other is not None and one.permit
        assert other.permit and one.policy_revision != other.policy_revision


@pytest.mark.parametrize("missing", ["", None])
def test_a_bundle_without_a_revision_names_no_policy(missing: object) -> None:
    """The record says what OPA said; nobody could tell from it that the policy is another."""
    result, told = opa_says("r1", missing)
    assert not told.named
    assert opa._decision(result, told).policy_revision.endswith("@")  # type: ignore[union-attr]
    assert opa_says("r1", "r2")[1].named


@pytest.mark.parametrize("revision", [RuntimeError("gone"), 5, None])
def test_a_pdp_that_can_not_name_its_policy_still_denies(revision: Any) -> None:
    """`Evaluator` is total whatever a property of the engine does."""

    class Nameless(StaticPDP):
        broken = False

        @property
        def revision(self) -> Any:  # type: ignore[override]
            if self.broken and isinstance(revision, Exception):
                raise revision
            return revision

    pdp = Nameless(lambda _: None)
    evaluator = Evaluator(pdp)
    pdp.broken = True
    for (decision,) in (evaluator.evaluate([REQUEST.to_json()]), asyncio.run(evaluator.aevaluate([REQUEST.to_json()]))):
        assert (decision.reasons, decision.policy_revision) == ((Code.PDP_MALFORMED,), "")


ODD: list[Any] = [
    None, True, -1, 0, 5, 0.5, 1e308, float("nan"), float("inf"), 10**40, "", "x", "1", "\0", "a b", "../x", b"", b"x",
    [], [None], {}, {"a": 1}, {1: "a"}, (), ("a",), (1, 2), ("a", "b", "c"), object(), StaticPDP, Path("absent"), lambda: 1,
]
TEXT = "permit(principal, action, resource);"
MADE: list[tuple[Callable[..., Any], dict[str, Any], set[str]]] = [
    (OpaPDP, {}, {"url", "path", "batch", "timeout", "ca_file", "client_cert", "token_file", "proxy", "pool_size"}),
    (
        AuthzenPDP, {"url": "http://localhost"},
        {"url", "evaluation", "evaluations", "timeout", "ca_file", "client_cert", "token_file", "proxy", "pool_size"},
    ),
    (WasmPDP, {}, {"wasm", "data", "entrypoint", "pool_size", "timeout", "deadline"}),
    (CedarPDP, {}, {"entities", "deadline"}),
    (CedarPDP, {"policies": TEXT, "schema": "entity User;"}, {"policies", "schema", "obligations"}),
    (
        ReloadingPDP, {"source": Path("absent")},
        {"source", "keys", "at_least", "state", "poll", "max_staleness", "pool_size", "timeout"},
    ),
    (Evaluator, {"pdp": StaticPDP(True)}, {"pdp", "deadline"}),
    (ObserveOnly, {"real": StaticPDP(True)}, {"real"}),
    (partial(DenyOverrides, StaticPDP(True), StaticPDP(True, name="b")), {}, {"deadline"}),
    (lambda pdp: DenyOverrides(StaticPDP(True), pdp), {}, {"pdp"}),
    (CandidatePDP, {"real": StaticPDP(True), "candidate": StaticPDP(True)}, {"real", "candidate", "on_difference", "deadline"}),
    (CircuitBreaker, {"real": StaticPDP(True)}, {"real", "failures", "reset_after", "clock"}),
]


@pytest.mark.parametrize(
    ("make", "given", "name"), [(make, given, name) for make, given, names in MADE for name in sorted(names)],
    ids=lambda v: v if isinstance(v, str) else getattr(v, "__qualname__", ""),
)
def test_an_odd_setting_is_a_configuration_error(make: Callable[..., Any], given: dict[str, Any], name: str) -> None:
    """Of every constructor and setting: a value that can not be meant is refused with a code, or does what it says."""
    for value in ODD:
        try:
            made = make(**{**given, name: value})
        except AuthzError as exc:
            assert isinstance(exc, ConfigError), (value, exc)
            assert exc.code in (Code.CONFIG, Code.POLICY_INVALID), (value, exc)
        else:
            getattr(made, "close", lambda: None)()


@pytest.mark.parametrize(
    "endpoint",
    ["@evil.example/x", ".evil.example/x", ":1@evil.example/x", "", "x", "/x#y", "/x y", "/\n/x", "/\\evil", "/a/../x", "/a/%2e%2e/x",
     "https://pdp.example/x", None, 5],
)
def test_an_endpoint_stays_at_its_pdp(endpoint: Any) -> None:
    """No path of it leads to another server, or out of the prefix: it would receive what is not meant for it."""
    url = "https://pdp.example:8443/tenant"
    with pytest.raises(ConfigError, match="`evaluation`"):
        AuthzenPDP(url, evaluation=endpoint)
    if endpoint is not None:  # there is none
        with pytest.raises(ConfigError, match="`evaluations`"):
            AuthzenPDP(url, evaluations=endpoint)


@pytest.mark.parametrize(
    "url",
    ["http://[::1", "http://h:99999", "http://h:x", "http://h\n.evil.example", "http://evil.example\\@h", "http://h/\t", "h", "//h",
     "http://", "http://\u0131"],
)
def test_a_url_that_is_read_in_two_ways_is_refused(url: str) -> None:
    for made in (OpaPDP, AuthzenPDP, AuthzenPDP.discover):
        with pytest.raises(ConfigError):
            made(url)  # type: ignore[operator]
    with pytest.raises(ConfigError):
        OpaPDP(proxy=url)


@pytest.mark.parametrize("url", ["http://u:S3CRET word@p.example", "http://u:S3CRET@p.example:x", "ftp://u:S3CRET@p.example"])
def test_a_refused_url_is_not_shown(url: str) -> None:
    """A password in it would stand in whatever keeps the error."""
    for options in ({"url": url}, {"url": "http://h", "proxy": url}):
        with pytest.raises(ConfigError) as caught:
            OpaPDP(**options)
        assert "S3CRET" not in str(caught.value)


def test_a_token_is_not_sent_in_the_clear_to_a_proxy() -> None:
    """An address of this machine is none once a proxy stands between."""
    with pytest.raises(ConfigError, match="in the clear"):
        OpaPDP("http://127.0.0.1:8181", token_file=__file__, proxy="http://proxy.example:3128")
    for made in (AuthzenPDP, AuthzenPDP.discover):
        with pytest.raises(ConfigError, match="https"):
            made("http://127.0.0.1:8181", proxy="http://proxy.example:3128")  # type: ignore[operator]
        with pytest.raises(ConfigError, match="https"):
            made("http://pdp.example")  # type: ignore[operator]  (and nothing was asked)
    with pytest.raises(ConfigError, match="unix"):
        OpaPDP("unix:///run/opa.sock", proxy="http://proxy.example:3128")


@pytest.mark.parametrize("deadline", [0, -1, float("inf"), float("nan")])
def test_a_deadline_is_finite(deadline: float) -> None:
    with pytest.raises(ConfigError):
        Evaluator(StaticPDP(True), deadline=deadline)


def test_a_pdp_has_the_four_members() -> None:
    with pytest.raises(ConfigError, match="aevaluate"):
        Evaluator(object())  # type: ignore[arg-type]


@pytest.mark.parametrize(("answer", "reasons"), [
    (True, ()), (False, ("observed:deny", "no_permit")), (None, ("observed:deny", Code.PDP_MALFORMED)),
    (
        {"decision": False, "context": {"obligations": [{"id": "1", "type": "require_approval"}]}},
        ("observed:approval_required", "no_permit"),
    ),
])
def test_observe_only_permits_and_tells(answer: object, reasons: tuple[str, ...]) -> None:
    """It permits whatever the real PDP says, tells what that was, and its name says what it is."""
    pdp = ObserveOnly(StaticPDP(lambda _: answer, name="real"))
    assert (pdp.name, pdp.revision) == ("observe-only(real)", "static")
    decision = decide(pdp)
    assert (decision.outcome, decision.reasons) == ("permit", reasons)


@pytest.mark.parametrize(("n", "why"), [(64, "code_0"), (65, Code.PDP_MALFORMED)])
def test_observe_only_over_many_reasons_permits_and_tells(n: int, why: str) -> None:
    """As many as an answer may have, and one more: an answer that is malformed is told as that, and stops nothing."""
    answer = {"decision": False, "context": {"reasons": [{"code": f"code_{i}"} for i in range(n)]}}
    decision = decide(ObserveOnly(StaticPDP(lambda _: answer)))
    assert (decision.outcome, decision.reasons[:2]) == ("permit", ("observed:deny", why))
    assert not decide(StaticPDP(lambda _: answer)).permit  # unobserved


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("n", [1, 2])
def test_observe_only_over_a_late_engine_permits_and_tells(asynchronous: bool, n: int) -> None:
    """The observer and the enforcement point have one deadline, not one after the other."""
    async def hang(body: bytes) -> object:
        return await asyncio.Event().wait()

    late = StaticPDP(lambda _: time.sleep(0.1))
    late.aevaluate, late.in_process = hang, False  # type: ignore[method-assign]
    evaluator = Evaluator(ObserveOnly(ObserveOnly(late)), deadline=0.05)
    decisions = asyncio.run(evaluator.aevaluate([REQUEST.to_json()] * n)) if asynchronous else evaluator.evaluate([REQUEST.to_json()] * n)
    assert [(d.outcome, d.reasons) for d in decisions] == [("permit", ("observed:deny", Code.PDP_TIMEOUT))] * n


def test_observe_only_keeps_the_obligations_of_a_permit() -> None:
    """What a permit obliges to is carried out even while observing."""
    obliged = context(obligations=[{"id": "1", "type": "redact", "properties": {"fields": ["iban"]}}])
    (obligation,) = decide(ObserveOnly(StaticPDP(lambda _: obliged))).obligations
    assert (obligation.type, obligation.properties) == ("redact", {"fields": ["iban"]})


def test_an_observer_of_ones_own_is_asked() -> None:
    """A class that is derived from `ObserveOnly` and lets denials stand is no plain observer."""

    class DeniesAll(ObserveOnly):
        def evaluate(self, body: bytes) -> object:
            return self.real.evaluate(body)

        async def aevaluate(self, body: bytes) -> object:
            return await self.real.aevaluate(body)

    assert decide(ObserveOnly(StaticPDP(False))).permit and not decide(DeniesAll(StaticPDP(False))).permit


def test_a_forgotten_link_ends_its_thread_and_waits_for_nothing() -> None:
    """A finaliser comes in anywhere, also within the lock that a thread needs to end; closed, it has ended."""

    async def nothing() -> None: ...

    before = set(threading.enumerate())
    for forgotten in (True, False):
        link: Link | None = Link("http://127.0.0.1:9", timeout=60)
        link.run(nothing)
        (thread,) = set(threading.enumerate()) - before
        if forgotten:
            link = None
            with threading._active_limbo_lock:  # type: ignore[attr-defined]
                gc.collect()
            thread.join(60)
        else:
            link.close()
        assert not thread.is_alive()


@pytest.mark.parametrize(("make", "most"), [(partial(StaticPDP, True), 12), (WasmPDP, 25)], ids=["static", "wasm"])
def test_a_permit_in_this_process_takes_few_calls(make: Callable[[], Any], most: int) -> None:
    """Asked either way; asynchronously nothing is awaited: no task, no timeout, no other coroutine."""
    evaluator, bodies = Evaluator(make()), [REQUEST.to_json()]
    assert evaluator.evaluate(bodies)[0].permit  # the answer's text is known from here on

    with pytest.raises(StopIteration):
        evaluator.aevaluate(bodies).send(None)
    taken = len(python_calls(lambda: evaluator.evaluate(bodies)))
    print(f"{evaluator.pdp.name}: {taken} Python calls")
    assert taken <= most
