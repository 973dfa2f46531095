"""A `task` of the functional API that LangGraph tries again repeats its calls. Each attack has its unenforced twin."""

from langgraph.func import entrypoint, task

from ._kit import *
from .test_loops import bill
from .test_loops_again import BOTH, by_ids, fresh
from .test_loops_at_once import flaky

AGAIN = RetryPolicy(max_attempts=3, initial_interval=0.001, jitter=False, retry_on=ConnectionError)
ANN = BOTH[0]
PAY_ANN = {"to": "ann", "amount": "5"}


def failing(times: int = 1) -> Callable[[], None]:
    """Return a function that fails a number of times."""
    left = [ConnectionError("late")] * times

    def fails() -> None:
        if left:
            raise left.pop()

    return fails


def functional(act: Any, how: str, *given: Any, times: int = 1, **options: Any) -> Any:
    """An entrypoint with a task for each of `given`, which do `act` side by side. `options`: the task's."""

    def work(value: Any) -> Any:
        return act(value)

    async def awork(value: Any) -> Any:
        return await asyncio.to_thread(act, value)

    made = task(work if how == "sync" else awork, **{"retry_policy": AGAIN, **options})

    @entrypoint(checkpointer=InMemorySaver())
    def agent(_: Any) -> Any:
        return [one.result() for one in [made(value) for value in given]]

    @entrypoint(checkpointer=InMemorySaver())
    async def aagent(_: Any) -> Any:
        return await asyncio.gather(*[made(value) for value in given])

    return agent if how == "sync" else aagent


def governed(protected: bool, graph: Any, *pdp: Any, **options: Any) -> tuple[Any, Any]:
    return protecting(graph, *pdp or (StaticPDP(True),), **options) if protected else (authz_with(StaticPDP(True)), graph)


@pytest.mark.parametrize("where", ["tool", "below a tool", "effect"])
def test_a_task_that_is_tried_again_pays_once(where: str, how: str, protected: bool) -> None:
    """It pays twice on purpose, then fails late. The next try repeats both payments, and makes no third."""
    ran: list[Any] = []
    pay, fails = bill(ran), failing(2)
    outer = a_tool("write", lambda text: [pay.invoke(PAY_ANN), text][1], text=str)
    authz = authz_with(StaticPDP(True))
    plain = lambda: ran.append(ANN)
    effect = authz.effect("mail", profile={"effect": "send"})(plain) if protected else plain
    acts = {"tool": lambda: pay.invoke(PAY_ANN), "below a tool": lambda: outer.invoke({"text": "a"}), "effect": effect}

    def act(_: Any) -> str:
        for _ in range(2):
            acts[where]()
        fails()
        return "done"

    graph = functional(act, how, "a")
    graph = authz.protect(graph) if protected else graph
    assert run_as(authz, graph, human(), THREAD, how=how) == ["done"]
    assert ran == [ANN] * (2 if protected else 6)


@pytest.mark.parametrize("shape", ["one task", "a task each"])
def test_a_task_that_makes_a_models_calls_repeats_them(shape: str, how: str, protected: bool) -> None:
    """The model pays ann twice in one message. If its own task fails, it is asked again, and its calls have new ids."""
    ran: list[Any] = []
    model, pay, fails = fresh("ann", "ann"), bill(ran), failing(2)
    think = task(lambda messages: model.invoke(messages))

    def act(made: Any) -> str:
        return [pay.invoke(made["args"]), fails()][0]

    def both(_: Any) -> list[str]:
        return [pay.invoke(c["args"]) for c in model.invoke([HumanMessage("Pay")]).tool_calls] + [fails()][1:]

    one = functional(both, how, "a")
    each = task(act, retry_policy=AGAIN)
    several = entrypoint(checkpointer=InMemorySaver())(lambda _: [[f.result() for f in [each(c) for c in think([HumanMessage("Pay")]).result().tool_calls]]])
    graph = one if shape == "one task" else several
    authz, graph = governed(protected, graph)
    assert run_as(authz, graph, human(), THREAD, how="sync" if shape != "one task" else how) == [["paid", "paid"]]
    assert ran == [ANN] * 2 if protected else len(ran) > 2


@pytest.mark.parametrize("by", ["code", "model"])
def test_each_try_of_a_task_has_its_own_answer(by: str, how: str, protected: bool) -> None:
    """The tool pays, then its connection fails. Unenforced, it pays three times unasked."""
    tried: list[str] = []
    save = flaky(tried)
    model = replying([call("save", {"path": "eve"}, "c1")])

    def act(_: Any) -> Any:
        (c,) = model.invoke([HumanMessage("Save")]).tool_calls if by == "model" else [{"args": {"path": "eve"}}]
        return save.invoke(c["args"])

    graph = functional(act, how, "a")
    authz, graph = governed(protected, graph, WasmPDP(), profiles={})
    for answered in range(3 if protected else 0):
        run_as(authz, graph, resume(APPROVE) if answered else human(), THREAD, how=how)
        assert len(tried) == answered and graph.get_state(THREAD).interrupts
    assert run_as(authz, graph, resume(APPROVE) if protected else human(), THREAD, how=how) == ["saved"]
    assert len(tried) == 3 and not graph.get_state(THREAD).interrupts


@pytest.mark.parametrize("times", [0, 1])
def test_tasks_side_by_side_that_make_equal_calls_make_each_once(times: int, how: str, protected: bool) -> None:
    """The second begins first when both run again after an answer. Unenforced, they pay again, and so does each try."""
    ran: list[Any] = []
    pay, fails, turns = bill(ran), {name: failing(times) for name in "ab"}, {name: threading.Event() for name in "ab"}

    def act(name: str) -> Any:
        assert name == first or turns[first].wait(5)
        pay.invoke(PAY_ANN)
        turns[name].set()
        fails[name]()
        both.wait(5)
        return interrupt(name)

    first, both = "a", threading.Barrier(2)
    authz, graph = governed(protected, functional(act, how, "a", "b"))
    run_as(authz, graph, human(), THREAD, how=how)
    for event in turns.values():
        event.clear()
    first = "b"
    while asked := graph.get_state(THREAD).interrupts:
        state = run_as(authz, graph, Command(resume={i.id: i.value for i in asked}), THREAD, how=how)
        both = threading.Barrier(1)
    assert state == ["a", "b"]
    assert len(ran) == 2 if protected else len(ran) > 2


@pytest.mark.parametrize("inside", ["task", "node"])
@pytest.mark.parametrize("asks", [True, False])
def test_a_call_with_a_config_of_its_own_belongs_to_its_task(inside: str, asks: bool, protected: bool) -> None:
    """Two tasks make two equal calls each. A config that names no task merges none of them, and no try repeats one."""
    ran: list[Any] = []

    def save(path: str, config: RunnableConfig) -> str:
        ran.append({name: value for name, value in config["configurable"].items() if not name.startswith("__")})
        return path

    pay, fails, own = StructuredTool.from_function(save, name="pay", description="Save."), failing(2), {"configurable": {"tenant": "a"}}

    def act(_: Any = None) -> str:
        for _ in range(2):
            pay.invoke({"path": "a"}, own)
        fails()
        return "done"

    if inside == "task":
        graph = functional(act, "sync", "a", "b")
    else:
        graph = chain({name: in_run(act) for name in "ab"}, checkpointer=InMemorySaver(), retry_policy=AGAIN)
    authz, graph = governed(protected, graph, asking("pay") if asks else StaticPDP(True), profiles={"pay": {"effect": "write"}})
    run_as(authz, graph, human(), THREAD)
    while graph.get_state(THREAD).interrupts:
        run_as(authz, graph, by_ids(graph, {"decisions": [APPROVE]}), THREAD)
    assert ran == [own["configurable"]] * (4 if protected else 8)


@pytest.mark.parametrize("by", ["code", "model"])
@pytest.mark.parametrize("fails", [0, 1])
def test_a_tool_node_in_a_task_asks_about_each_call(by: str, fails: int, how: str, protected: bool) -> None:
    """Each call of its message runs once, after its own question. Unenforced, nobody asks, and each try pays again."""
    ran: list[Any] = []
    names, late = ["ann", "bob", "cy"], failing(fails)
    message = lambda: says(*[call("pay", {"to": name, "amount": "5"}, name) for name in names])
    model, tools = ScriptedChatModel(script=[lambda _: message()] * 20), ToolNode([bill(ran)])

    def act(_: Any) -> list[str]:
        made = model.invoke([HumanMessage("Pay")]) if by == "model" else message()
        return [[m.text for m in tools.invoke({"messages": [made]})["messages"]], late()][0]

    graph = functional(act, how, "a")
    authz, graph = governed(protected, graph, asking("pay"))
    state, shown = run_as(authz, graph, human(), THREAD, how=how), list[str]()
    while asked := graph.get_state(THREAD).interrupts:
        assert len(asked) == 1 and {to for to, *_ in ran} <= set(shown)
        shown += [one["args"]["recipient"] for one in asked[0].value["action_requests"]]
        state = run_as(authz, graph, resume(APPROVE), THREAD, how=how)
    assert state == [["paid"] * 3] and sorted(shown) == (names if protected else [])
    assert sorted(to for to, *_ in ran) == sorted(names * (1 if protected else 1 + fails))
