"""What a model is shown is read as what it is: the agent's own tools, or ones that the provider runs."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool

from langchain_runtime_authz import RuntimeAuthz
from langchain_runtime_authz.evaluation import EvaluationRequest, Subject
from langchain_runtime_authz.grant import Grant
from langchain_runtime_authz.langgraph.model_call import decide_shown, instructions_digest, tool_names
from langchain_runtime_authz.langgraph.run_context import AuthzHalt
from langchain_runtime_authz.ledger.base import HumanText, Scope
from langchain_runtime_authz.ledger.changes import AdvanceEpoch
from langchain_runtime_authz.pdp.compose import DenyOverrides
from langchain_runtime_authz.pep import decide_steps
from langchain_runtime_authz.pep.decide_steps import ModelCall, decide_model, decide_step, enter_node
from langchain_runtime_authz.pep.lease import take_lease
from langchain_runtime_authz.pep.obligations import withheld_tools
from langchain_runtime_authz.pep.run import Commit, drive
from langchain_runtime_authz.pep.run_lifecycle import open_entry
from langchain_runtime_authz.testing import StaticPDP
from tests.attack._graphs import authz_with
from tests.ids import shown as ident


@tool
def look(path: str) -> str:
    """Look."""
    return path


def plain(path: str) -> str:
    """A function that is bound as a tool."""
    return path


OWN = [
    look, plain, {"type": "function", "function": {"name": "look", "parameters": {}}},
    {"type": "function", "name": "look", "parameters": {}}, {"name": "look", "description": "x", "input_schema": {}},
    {"type": "custom", "name": "look", "input_schema": {}}, {"toolSpec": {"name": "look", "inputSchema": {}}},
    {"function_declarations": [{"name": "look"}]}, {"functionDeclarations": [{"name": "look"}]},
    {"title": "look", "properties": {}},
]
PROVIDERS = [
    ({"type": "web_search"}, "web_search"),
    ({"type": "web_search_20250305", "name": "web_search", "max_uses": 5}, "web_search_20250305"),
    ({"type": "mcp", "server_label": "x", "server_url": "https://x.example"}, "mcp"),
    ({"google_search": {}}, "google_search"), ({"code_execution": {}}, "code_execution"), ({"name": "bash"}, "bash"),
    (17, "int"), (["look"], "list"),
]


@pytest.mark.parametrize("entry", OWN, ids=ident)
def test_own_tools(entry: Any) -> None:
    """They have arguments that the agent's own code receives, in every provider's spelling."""
    assert tool_names(entry) in ((("look",), ()), (("plain",), ()))


@pytest.mark.parametrize(("entry", "name"), PROVIDERS, ids=ident)
def test_provider_tools(entry: Any, name: str) -> None:
    """Whatever nothing of the agent's can receive; what is not understood counts as one."""
    own, provider = tool_names(entry)
    assert name in provider and own == ()


def test_an_entry_may_be_both() -> None:
    """One of Gemini's holds declarations and tools of its own."""
    assert tool_names({"function_declarations": [{"name": "look"}], "google_search": {}}) == (("look",), ("google_search",))


def test_instructions_are_the_system_messages() -> None:
    """The digest does not grow with the conversation, and another instruction is another digest."""
    said = [SystemMessage("Be good")]
    assert instructions_digest(said) == instructions_digest([*said, HumanMessage("x"), HumanMessage("y" * 10_000)])
    assert instructions_digest(said) != instructions_digest([SystemMessage("Be bad")])
    assert instructions_digest([HumanMessage("x")]) is None


def entered(pdp: Any, authz: Any = None, **how: Any) -> Any:
    authz = authz or authz_with(pdp)
    pep = authz._pep
    flow = open_entry(pep, Scope("default", pep.issuer.issuer, "g", "t"), Subject(type="user", id="alice"), "r", "g", **how)
    return authz, drive(pep, flow).run


CALL = ModelCall("m", "p", ("look",), ("web",), None)


def test_a_permit_is_kept_per_tool_set_prompt_epoch_and_revision() -> None:
    """Asked once; asked again when any of them changes. A denial is never kept."""
    pdp = StaticPDP(True)
    authz, run = entered(pdp)
    asked = lambda: len([r for r in pdp.requests if r.action.name == "model/call"])
    for _ in range(3):
        assert drive(run.pep, decide_model(run, CALL)).permit
    assert asked() == 1
    drive(run.pep, decide_model(run, ModelCall("m", "p", ("look", "more"), ("web",), None)))
    drive(run.pep, decide_model(run, ModelCall("other", "p", ("look",), ("web",), None)))
    drive(run.pep, decide_model(run, CALL._replace(prompt="sha256:other")))
    assert asked() == 4
    pdp.revision = "another"
    drive(run.pep, decide_model(run, CALL))
    assert asked() == 5
    pdp = StaticPDP(lambda r: r.action.name != "model/call")
    authz, run = entered(pdp)
    for _ in range(2):
        assert not drive(run.pep, decide_model(run, CALL)).permit
    assert asked() == 2


@pytest.mark.parametrize(("obligation", "revision", "asked"), [
    (None, "r1", 1), ({"type": "budget", "properties": {"counter": "c", "max": 9}}, "r1", 3),
    ({"type": "rate_limit", "properties": {"counter": "c", "max": 9, "window": 60}}, "r1", 3),
    ({"type": "notify", "properties": {"channel": "log"}}, "r1", 3), (None, "", 3),
], ids=str)
def test_a_permit_is_kept_only_where_that_loses_nothing(obligation: Any, revision: str, asked: int) -> None:
    """Not where each is to be counted or told, nor where nobody could tell that the policy is another."""
    obligations = [{"id": "1", **obligation}] if obligation else []
    pdp = StaticPDP(lambda _: {"decision": True, "context": {"obligations": obligations}})
    _, run = entered(pdp)
    pdp.revision = revision
    for step in (lambda: decide_model(run, ModelCall("m", None, (), (), None)), lambda: enter_node(run, "n", lasting=True)):
        pdp.bodies.clear()
        for _ in range(3):
            drive(run.pep, step())
        assert len(pdp.requests) == asked


def enter_plain(run: Any, name: str = "n") -> Any:
    """What the gate of any other node does."""
    return drive(run.pep, enter_node(run, name, lasting=False))


def lasting(seconds: int | None, **context: Any) -> StaticPDP:
    """Permits for a time."""
    return StaticPDP(lambda _: {"decision": True, "context": {"ttl": seconds, **context}})


def asked(pdp: StaticPDP, *steps: Callable[[], Any]) -> int:
    pdp.bodies.clear()
    for step in steps:
        assert step().permit
    return len(pdp.requests)


CHANGES: dict[str, Callable[[Any, StaticPDP, pytest.MonkeyPatch], Any]] = {
    "revision": lambda run, pdp, patch: setattr(pdp, "revision", "another"),
    "unnamed revision": lambda run, pdp, patch: setattr(pdp, "revision", ""),
    "epoch": lambda run, pdp, patch: run.move_to(drive(run.pep, corrected(run)), run.jti),
    "time": lambda run, pdp, patch: patch.setattr(decide_steps, "time", Later(30)),
}


class Later:
    """The clocks, some seconds later."""

    def __init__(self, seconds: float) -> None:
        self.time_ns = time.time_ns
        self.monotonic = lambda: time.monotonic() + seconds


def corrected(run: Any) -> Any:
    """Another epoch, into which the run was taken."""
    task = HumanText("sha256:x", "go on", "k")
    done = yield (Commit, run.scope, None, [AdvanceEpoch(run.epoch, (task,))])
    run.epoch, run.jti = done.epoch, "next"
    yield (Commit, run.scope, None, [take_lease(run)])
    return done.epoch


@pytest.mark.parametrize("change", CHANGES)
def test_a_nodes_permit_is_kept_while_what_it_was_based_on_stands(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked once; asked again when the change came, whatever its `ttl`."""
    pdp = lasting(3600)
    _, run = entered(pdp)
    assert asked(pdp, *[lambda: enter_plain(run)] * 3) == 1
    assert asked(pdp, *[lambda: enter_plain(run)] * 3) == 0
    CHANGES[change](run, pdp, monkeypatch)
    assert asked(pdp, lambda: enter_plain(run)) == 1


def test_a_nodes_permit_is_of_its_node_and_run() -> None:
    """Another node, another run and another agent are asked about."""
    pdp = lasting(3600)
    authz, run = entered(pdp)
    assert asked(pdp, lambda: enter_plain(run), lambda: enter_plain(run, "m")) == 2
    _, other = entered(pdp, authz)
    assert asked(pdp, lambda: enter_plain(other)) == 1
    assert asked(pdp, lambda: enter_plain(other), lambda: enter_plain(run)) == 0


@pytest.mark.parametrize(("other", "times"), [(30, 1), (None, 3), (0, 3)])
def test_a_nodes_permit_is_kept_only_if_each_engine_says_so(other: int | None, times: int) -> None:
    one, next_to_it = lasting(30), lasting(other)
    next_to_it.name = "other"
    _, run = entered(DenyOverrides(one, next_to_it))
    assert asked(one, *[lambda: enter_plain(run)] * 3) == times


NOTICE = [{"id": "1", "type": "notify", "properties": {"channel": "log"}}]
UNKEPT: dict[str, tuple[StaticPDP, dict[str, Any]]] = {
    "no ttl": (lasting(None), {}), "ttl 0": (lasting(0), {}), "obligation": (lasting(3600, obligations=NOTICE), {}),
    "a grant that ends": (lasting(3600), {"grant": Grant(expires_at=int(time.time()) + 3600)}),
    "another revision": (lasting(3600, policy={"revision": "old"}), {}),
}


@pytest.mark.parametrize("why", UNKEPT)
def test_a_nodes_permit_is_not_kept(why: str) -> None:
    """Each entry is asked about."""
    pdp, how = UNKEPT[why]
    _, run = entered(pdp, **how)
    assert asked(pdp, *[lambda: enter_plain(run)] * 3) == 3


def test_a_permit_that_is_not_on_record_is_not_kept() -> None:
    """The sink fails once; the next entry is decided and recorded."""
    pdp, sink = lasting(3600), FailingOnce()
    _, run = entered(pdp, RuntimeAuthz(pdp=pdp, audit=sink))
    sink.fails = True
    assert enter_plain(run).reason == "audit_unavailable"
    assert asked(pdp, *[lambda: enter_plain(run)] * 2) == 1


class FailingOnce:
    """A sink that is full once."""

    fails = content = False

    def write(self, record: dict[str, Any]) -> None:
        if self.fails:
            self.fails = False
            raise OSError


def test_a_policy_may_keep_a_model_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its `ttl` counts, also 0, where a permit without one holds as long as its revision."""
    for pdp, now, more in ((lasting(20), 1, 1), (lasting(0), 2, 1), (lasting(None), 1, 0)):
        _, run = entered(pdp)
        ask = partial(drive, run.pep)
        assert asked(pdp, *[lambda: ask(decide_model(run, CALL))] * 2) == now
        with monkeypatch.context() as patch:
            patch.setattr(decide_steps, "time", Later(20))
            assert asked(pdp, lambda: ask(decide_model(run, CALL))) == more


STEPS: list[Callable[[Any], Any]] = [lambda run: decide_model(run, CALL), lambda run: enter_node(run, "n", lasting=True)]


@pytest.mark.parametrize("step", STEPS, ids=["model", "node"])
def test_a_permit_stands_only_under_the_revision_that_its_answer_names(step: Callable[[Any], Any]) -> None:
    """Replicas on two revisions: what the older permits is not the newer's permit, however they take turns."""
    turns = iter(["r1", "r2", "r1", "r2"])

    def answer(request: EvaluationRequest) -> object:
        if request.action.name not in ("model/call", "node/enter"):
            return True
        pdp.revision = now = next(turns)
        return {"decision": True, "context": {"policy": {"revision": now}}}

    pdp = StaticPDP(answer)
    _, run = entered(pdp)

    def asked() -> int:
        pdp.bodies.clear()
        drive(run.pep, step(run))
        return len(pdp.requests)

    assert [asked(), asked()] == [1, 1]  # the second stood under r1 as it was asked, and r2 permitted
    for heard in ("r1", "r2"):  # by another thread
        pdp.revision = heard
        assert [asked(), asked()] == [1, 0]


def test_a_model_call_of_a_corrected_task_is_refused() -> None:
    """The lease is of another epoch: the engine is not asked."""
    pdp = StaticPDP(True)
    authz, run = entered(pdp)
    authz.correct("t", "STOP", graph="g")
    assert drive(run.pep, decide_model(run, CALL)).reason == "stale_epoch"


def test_what_is_withheld() -> None:
    """A provider's tool that nothing can take out any more denies; an agent's own is decided when it is called."""
    props = {"tools": ["look"], "provider_tools": ["web"]}
    answer = {"decision": True, "context": {"obligations": [{"id": "w", "type": "withhold_tools", "properties": props}]}}
    authz, run = entered(StaticPDP(lambda r: answer if r.action.name == "model/call" else True))
    decision = drive(run.pep, decide_model(run, CALL))
    assert withheld_tools(decision) == ({"look"}, {"web"})
    with pytest.raises(AuthzHalt) as halted:
        drive(run.pep, decide_shown(run, CALL))
    assert (halted.value.code, halted.value.decision_id) == ("provider_tool", decision.decision_id)
    drive(run.pep, decide_shown(run, ModelCall("m", "p", ("look",), (), None)))


@pytest.mark.parametrize("kind", ["redact", "withhold_tools"])
def test_an_obligation_counts_only_where_it_is_carried_out(kind: str) -> None:
    """Nothing is redacted from a model call, and nothing is withheld from a node."""
    props = {"redact": {"fields": ["a"]}, "withhold_tools": {"tools": [], "provider_tools": []}}[kind]
    answer = {"decision": True, "context": {"obligations": [{"id": "o", "type": kind, "properties": props}]}}
    authz, run = entered(StaticPDP(lambda r: answer if r.action.name in ("model/call", "node/enter") else True))
    model = drive(run.pep, decide_model(run, CALL))
    node = drive(run.pep, decide_step(run, "node/enter", {"type": "node", "id": "n", "properties": {}}))
    assert (model.permit, node.permit) == (kind == "withhold_tools", False)
    assert node.reasons == ("unknown_obligation", kind)
