"""LangChain's own middleware beside ours: each call that runs is decided once, and so is each model that is asked."""

from langchain.agents import create_agent
from langchain.agents import middleware as builtin
from langchain.agents.middleware import AgentMiddleware
from langchain_core.decisions import BaseDecisionModel, ClassifierResponse

from ._kit import *
from .test_middleware import Seeing, built, said, seeing

go = params("sync", "async")


class Judge(BaseDecisionModel):
    """Finds nothing risky, and routes to `big`."""

    model: str = "judge-1"
    asked: list[str] = []

    @property
    def _provider(self) -> str:
        return "acme"

    def _classify(self, state: Any, questions: Any) -> ClassifierResponse:
        self.asked.extend(questions)
        harmless = {"type": "noul", "noul": 0.0}
        big = {"type": "choice", "choice": "big", "probabilities": {"big": 1.0}, "confidence": 1.0}
        answers = {k: big if type(q).__name__ == "Choice" else harmless for k, q in questions.items()}
        return ClassifierResponse.model_validate({"model": self.model, "answers": answers})


def aside(text: str = "aside", *calls: dict[str, Any]) -> Seeing:
    """A model that middleware asks for itself."""
    return Seeing(script=[AIMessage(text, tool_calls=list(calls))] * 9, bound=[], model_name="side-1")


def selecting(*names: str) -> Seeing:
    return aside("", call("ToolSelectionResponse", {"tools": list(names)}, "s"))


class Failing(Seeing):
    """A model that is down."""

    model_name: str = "failing-1"

    def _play(self, messages: Any) -> Any:
        raise ConnectionError("down")


Make = Callable[[Any, Path], AgentMiddleware[Any, Any, Any]]
"""From the agent's model and a directory."""

MIDDLEWARE: dict[str, Make] = {
    "AutoModeMiddleware": lambda model, _: builtin.AutoModeMiddleware(tools=["read"], classifier=Judge(asked=[])),
    "ContextEditingMiddleware": lambda model, _: builtin.ContextEditingMiddleware(edits=[builtin.ClearToolUsesEdit(trigger=1, keep=0)]),
    "FilesystemFileSearchMiddleware": lambda model, path: builtin.FilesystemFileSearchMiddleware(root_path=str(path)),
    "LLMToolEmulator": lambda model, _: builtin.LLMToolEmulator(tools=["pay"], model=aside()),
    "LLMToolSelectorMiddleware": lambda model, _: builtin.LLMToolSelectorMiddleware(model=selecting("pay", "read")),
    "ModelCallLimitMiddleware": lambda model, _: builtin.ModelCallLimitMiddleware(run_limit=9),
    "ModelFallbackMiddleware": lambda model, _: builtin.ModelFallbackMiddleware(aside()),
    "ModelRefusalMiddleware": lambda model, _: builtin.ModelRefusalMiddleware(),
    "ModelRetryMiddleware": lambda model, _: builtin.ModelRetryMiddleware(),
    "ModelRouterMiddleware": lambda model, _: builtin.ModelRouterMiddleware(
        choices={"big": builtin.ModelChoice(model=model, criteria="anything")}, instructions="x", classifier=Judge(asked=[])
    ),
    "PIIMiddleware": lambda model, _: builtin.PIIMiddleware("email", apply_to_output=True, apply_to_tool_results=True),
    "ProviderToolSearchMiddleware": lambda model, _: builtin.ProviderToolSearchMiddleware(searchable_tools=["read"]),
    "ShellToolMiddleware": lambda model, path: builtin.ShellToolMiddleware(path),
    "SummarizationMiddleware": lambda model, _: builtin.SummarizationMiddleware(
        model=aside(), trigger=("messages", 3), keep=("messages", 1)
    ),
    "TodoListMiddleware": lambda model, _: builtin.TodoListMiddleware(),
    "ToolCallLimitMiddleware": lambda model, _: builtin.ToolCallLimitMiddleware(run_limit=9),
    "ToolErrorMiddleware": lambda model, _: builtin.ToolErrorMiddleware(lambda error, request: "handled"),
    "ToolRetryMiddleware": lambda model, _: builtin.ToolRetryMiddleware(initial_delay=0.0, retry_on=lambda _: True),
}
PLAYED_ELSEWHERE = {"AgentMiddleware", "HumanInTheLoopMiddleware"}

# Ours alone before or after it, and a protected graph without ours.
PLACES = {"ours after it": ("middleware", "before"), "ours before it": ("middleware", "after"), "protected": ("protect", "before")}
names = pytest.mark.parametrize("name", MIDDLEWARE)
played = pytest.mark.parametrize(
    ("place", "go"), [("ours after it", "sync"), ("ours before it", "async"), ("protected", "sync"), ("protected", "async")]
)
pytestmark = pytest.mark.filterwarnings("ignore:The middleware:langchain_core._api.beta_decorator.LangChainBetaWarning")


class Anthropic(Seeing):
    """A model of a provider that has a search of its own."""

    def _get_ls_params(self, **kwargs: Any) -> Any:
        return {**super()._get_ls_params(), "ls_provider": "anthropic"}


def planning(name: str) -> Any:
    kind = Anthropic if name == "ProviderToolSearchMiddleware" else Seeing
    return kind(script=seeing([PAY, READ]).script, bound=[])


def test_every_middleware_of_langchain_is_played() -> None:
    """A new one in LangChain's list is played here, or somewhere else."""
    known = {n for n in builtin.__all__ if isinstance(getattr(builtin, n), type) and issubclass(getattr(builtin, n), AgentMiddleware)}
    assert known == set(MIDDLEWARE) | PLAYED_ELSEWHERE


@names
@played
def test_each_call_is_decided_once(name: str, place: str, go: str, tmp_path: Path, ran: Any) -> None:
    """As it was planned, and the denied one does not run."""
    pdp = deny_only("pay")
    authz = authz_with(pdp)
    stack, order = PLACES[place]
    model = planning(name)
    own: Any = {order: [MIDDLEWARE[name](model, tmp_path)]}
    assert_went_on(said(go, authz, built(stack, authz, model, [pay_tool(ran), read_tool(ran)], **own), human()))
    assert ran == [("read", "a")]
    assert sorted((r.resource.id, r.context.plan.planned) for r in calls_of(pdp)) == [("pay", True), ("read", True)]


@names
def test_the_unenforced_twin_pays(name: str, tmp_path: Path, ran: Any) -> None:
    """Unless the middleware only pretends to."""
    model = planning(name)
    create_agent(model, [pay_tool(ran), read_tool(ran)], middleware=[MIDDLEWARE[name](model, tmp_path)]).invoke(human())
    assert (PAID in ran) is (name != "LLMToolEmulator")


def test_an_emulated_call_is_given_back(ran: Any, authz: Any) -> None:
    """It was permitted and did not run: nothing of it is kept as done."""
    graph = built("protect", authz, seeing([PAY]), [pay_tool(ran)], before=[builtin.LLMToolEmulator(tools=["pay"], model=aside("Paid."))])
    state = said("sync", authz, graph, human())
    assert answer_to(state["messages"], "call-pay").text == "Paid." and ran == []
    assert completions(authz) == ["released"]


def test_a_call_over_the_limit_is_no_call(go: str, ran: Any, pdp: Any, authz: Any) -> None:
    """LangChain answers it before the tool node: it is not decided, and the others are."""
    limit = builtin.ToolCallLimitMiddleware(run_limit=1, exit_behavior="continue")
    graph = built("protect", authz, seeing([PAY, READ]), [pay_tool(ran), read_tool(ran)], before=[limit])
    assert_went_on(said(go, authz, graph, human()))
    assert ran == [PAID]
    assert [r.resource.id for r in calls_of(pdp)] == ["pay"]


OWN_MODELS = {
    "AutoModeMiddleware": ["judge-1"], "LLMToolEmulator": ["side-1"], "LLMToolSelectorMiddleware": ["side-1"],
    "ModelFallbackMiddleware": ["side-1"], "ModelRouterMiddleware": ["judge-1"], "SummarizationMiddleware": ["side-1"],
}


def _own_model(made: Any) -> Any:
    return next(v for v in (*vars(made).values(), *getattr(made, "models", ())) if isinstance(v, Judge | Seeing))


def _asking(name: str, path: Path) -> tuple[Any, Any]:
    """An agent's model and a middleware that asks one of its own."""
    model = Failing(script=[], bound=[]) if name == "ModelFallbackMiddleware" else planning(name)
    return model, MIDDLEWARE[name](model, path)


def _asked(made: Any) -> int:
    own = _own_model(made)
    return len(own.asked if isinstance(own, Judge) else own.prompts)


@pytest.mark.parametrize("name", OWN_MODELS)
def test_a_model_that_middleware_asks_is_decided(name: str, go: str, tmp_path: Path) -> None:
    """In a protected graph: a language model as a decision model. A denied one is not asked."""
    (own,) = OWN_MODELS[name]
    for permitted in (True, False):
        pdp = StaticPDP(lambda r, permitted=permitted: permitted or r.action.name != "model/call" or r.resource.id != own)
        authz = authz_with(pdp)
        model, made = _asking(name, tmp_path)
        graph = built("protect", authz, model, [pay_tool([]), read_tool([])], before=[made])
        if permitted:
            said(go, authz, graph, human())
        else:
            with pytest.raises(AuthzHalt):
                said(go, authz, graph, human())
        assert own in [r.resource.id for r in pdp.requests if r.action.name == "model/call"]
        assert (_asked(made) > 0) is permitted


@pytest.mark.parametrize("name", OWN_MODELS)
def test_the_unenforced_twin_asks(name: str, tmp_path: Path) -> None:
    """Whatever the policy would say of the model."""
    model, made = _asking(name, tmp_path)
    create_agent(model, [pay_tool([]), read_tool([])], middleware=[made]).invoke(human())
    assert _asked(made) > 0


@pytest.mark.parametrize("name", OWN_MODELS)
def test_coverage_names_the_models(name: str, tmp_path: Path) -> None:
    """Under a protected graph each is governed; under the middleware alone it says what is not seen of them."""
    for stack in ("protect", "middleware"):
        authz = authz_with(StaticPDP(True))
        model, made = _asking(name, tmp_path)
        graph = built(stack, authz, model, [pay_tool([])], before=[made])
        kind = type(_own_model(made)).__name__
        rows = [r for r in authz.coverage(graph).rows if r.kind == "model" and (r.name, r.route) != ("Failing", "model")]
        assert kind in {r.name for r in rows}
        assert len(rows) >= 1 + (name != "ModelFallbackMiddleware")
        for row in rows:
            assert row.governed or stack == "middleware"
            assert ("authz.protect" in row.note or not row.governed) is (stack == "middleware")


def test_a_selection_brings_nothing_back() -> None:
    """The selecting model names a tool outside the grant: the agent's model is not shown it."""
    model = seeing([READ])
    authz = authz_with(WasmPDP(pool_size=1))
    selector = MIDDLEWARE["LLMToolSelectorMiddleware"](model, Path())
    graph = built("both", authz, model, [pay_tool([]), read_tool([])], before=[selector])
    assert_went_on(said("sync", authz, graph, human(), grant=Grant(tools=("read",))))
    assert {tuple(t.name for t in bound) for bound in model.bound} == {("read",)}


@pytest.mark.parametrize("place", PLACES)
def test_a_shell_that_middleware_brings(place: str, tmp_path: Path) -> None:
    """Its commands are calls. What it runs as it starts is a node's plain side effect, which `coverage` says."""
    model = seeing([call("shell", {"command": "touch asked"}, "c1")])

    def shell(path: Path) -> Any:
        path.mkdir()
        return builtin.ShellToolMiddleware(path, startup_commands="touch started")

    create_agent(model, [], middleware=[shell(tmp_path / "free")]).invoke(human())
    assert sorted(p.name for p in (tmp_path / "free").iterdir()) == ["asked", "started"]

    authz = authz_with(deny_only("shell"))
    stack, order = PLACES[place]
    own: Any = {order: [shell(tmp_path / "held")]}
    graph = built(stack, authz, model, [], **own)
    assert_went_on(said("sync", authz, graph, human()))
    assert [p.name for p in (tmp_path / "held").iterdir()] == ["started"]
    (node,) = [r for r in authz.coverage(graph).rows if r.name == "ShellToolMiddleware.before_agent"]
    assert "not seen" in node.note or not node.governed
