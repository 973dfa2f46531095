"""A node's permit that is used again: only as long as its policy says, and never past a stop."""

from langchain_runtime_authz.credential.ticket import current_scope

from ._kit import *


class Policy:
    """Lets the model's node in until a tool was called. `ttl` is what it says of its permits."""

    def __init__(self, ttl: int, *, until_called: bool = True) -> None:
        self.ttl, self.until_called, self.entered = ttl, until_called, 0

    def __call__(self, request: Any) -> Any:
        if request.action.name != "node/enter" or request.resource.id == "tools":
            return True
        self.entered += 1
        denied = self.until_called and bool(request.context.history.calls)
        return {"decision": not denied, "context": {"ttl": self.ttl}}


def test_a_policy_that_reads_what_changes(kind: str, go: Any, ran: Any) -> None:
    """Asked at each entry, as it says nothing of how long its permit holds. With a `ttl` it is taken at its word."""
    for ttl, entered in ((0, 2), (30, 1)):
        authz, graph = protecting(BUILDERS[kind](replying([READ]), [read_tool(ran)]), StaticPDP(policy := Policy(ttl)))
        with authz.run(subject="alice", task="x"), contextlib.ExitStack() as stack:
            if ttl == 0:
                stack.enter_context(pytest.raises(AuthzHalt))
            go(graph, human())
        assert policy.entered == entered


STOPS: dict[str, tuple[Callable[[RuntimeAuthz, str], Any], str]] = {
    "revoke": (lambda authz, name: authz.revoke("t", graph=name), "revoked"),
    "correct": (lambda authz, name: authz.correct("t", "STOP", graph=name), "stale_epoch"),
    "unproven": (lambda authz, _: setattr(authz.identity, "expires_at", 0.0), "workload_unproven"),
}


@pytest.mark.parametrize("ttl", [0, 30])
@pytest.mark.parametrize("stop", STOPS)
def test_a_stop_between_two_entries(stop: str, ttl: int, kind: str, go: Any) -> None:
    """It counts at the next entry, whether a permit was kept or not."""
    act, code = STOPS[stop]
    authz = authz_with(StaticPDP(policy := Policy(ttl, until_called=False)))
    stopping = a_tool("read", lambda path: [act(authz, kind), "ok"][1], path=str)
    graph = authz.protect(BUILDERS[kind](replying([READ]), [stopping], checkpointer=InMemorySaver()))
    with authz.run(subject="alice", task="x"):
        assert code_of(lambda: go(graph, human(), THREAD)) == code
    assert policy.entered == 1


@pytest.mark.parametrize("stop", [*STOPS, "twin: none"])
@pytest.mark.parametrize("shape", ["own loop", "late"])
def test_a_node_that_asks_its_model_again_is_stopped(stop: str, shape: str) -> None:
    """The model's kept permit does not outlive the run: in a loop of one node, and in a node that was entered a while ago."""
    model, answers = replying(), list[Any]()

    def early(state: Any) -> None:
        answers.append(model.invoke(state["messages"]))

    def late(state: Any) -> None:
        current_scope.get().entered -= 1.05 * (shape == "late")
        if stop in STOPS:
            STOPS[stop][0](authz, "outer")
        answers.append(model.invoke(state["messages"]))

    nodes = {"early": early, "late": late} if shape == "late" else {"step": lambda state: [early(state), late(state)] and None}
    authz, graph = protecting(chain(nodes, name="outer"), StaticPDP(True))
    ended = said_by(lambda: told(authz, graph, human(), THREAD))
    assert (ended, len(answers)) == (STOPS[stop][1], 1) if stop in STOPS else len(answers) == 2


def test_a_run_that_may_have_ended_uses_no_kept_permit(kind: str, go: Any) -> None:
    """The ledger cannot say whether it lives, so the policy is asked again."""
    authz = authz_with(StaticPDP(policy := Policy(30, until_called=False)))
    read = a_tool("read", lambda path: [setattr(authz.ledger, "status", lambda *_: 1 / 0), "ok"][1], path=str)
    told(authz, authz.protect(BUILDERS[kind](replying([READ]), [read])), human(), go=go)
    assert policy.entered == 2
