"""Two users in one process: each step under its own subject, and nothing lives on after its run."""

from collections.abc import AsyncIterator

from ._kit import *

USERS = ("alice", "bob")


def who(user: str, ident: str = "call-who") -> dict[str, Any]:
    """A call that says for whom it was planned."""
    return call("who", {"user": user}, ident)


def _speaking(ran: list[Any], hold: Any = None) -> Any:
    @tool
    def who(user: str) -> str:
        """Say for whom."""
        if hold is not None:
            hold(user)
        ran.append(user)
        return user

    return who


def _model() -> Any:
    """Plans a call for whoever the human message names, three rounds long."""
    def respond(messages: list[Any]) -> AIMessage:
        user = next(m.content for m in reversed(messages) if isinstance(m, HumanMessage))
        rounds = sum(isinstance(m, AIMessage) for m in messages)
        return AIMessage("", tool_calls=[who(user, f"call-{rounds}")]) if rounds < 3 else AIMessage("done")

    return ScriptedChatModel(script=[respond] * 500)


def build(kind: str, ran: list[Any], hold: Any = None, pdp: Any = None) -> tuple[RuntimeAuthz, StaticPDP, Any]:
    pdp = pdp or StaticPDP(True)
    profiles = {"who": ToolProfile(effect="write", sink="internal", audience=("https://who.example",))}
    authz = authz_with(pdp, profiles=profiles)
    if kind == "subgraph":
        graph = node_graph(hand_written(_model(), [_speaking(ran, hold)], name="inner"))
    else:
        graph = BUILDERS[kind](_model(), [_speaking(ran, hold)])
    return authz, pdp, authz.protect(graph)


def check(authz: RuntimeAuthz, pdp: StaticPDP, *, calls: int | None = None) -> None:
    """Every request's subject is the one its call names; every jti that was seen is dead."""
    for request in calls_of(pdp):
        assert request.subject.id == request.context.call.args["user"]
        assert request.context.task.text == request.subject.id
    if calls is not None:
        assert len(calls_of(pdp)) == calls
    jtis = {r.context.lease.jti: r.subject.id for r in pdp.requests}
    assert len(jtis) >= 2
    owners: dict[str, set[str]] = {}
    for request in pdp.requests:
        owners.setdefault(request.context.lease.jti, set()).add(request.subject.id)
    assert all(len(names) == 1 for names in owners.values())
    assert {authz.ledger.status("default", jti) for jti in jtis} <= {"ended", "stale", "revoked"}


def dead(authz: RuntimeAuthz, pdp: StaticPDP, user: str | None = None) -> bool:
    """Return True if every jti that was seen, of one user or of all, is ended."""
    return {authz.ledger.status("default", r.context.lease.jti) for r in pdp.requests if user in (None, r.subject.id)} == {"ended"}


kind = params(["hand", "agent", "subgraph"])
mode = params(["config", "with+config"])


def _streaming(authz: Any, graph: Any, user: str, mode: str) -> Iterator[Any]:
    if mode == "config":
        run = authz.run(subject=user)
        try:
            yield from graph.stream(human(user), run.config(), subgraphs=True)
        finally:
            run.close()
        return
    with authz.run(subject=user) as run:
        yield from graph.stream(human(user), run.config(), subgraphs=True)


def in_turn(streams: list[Iterator[Any]]) -> None:
    """Step each once, and again, until all are over."""
    while streams:
        streams = [stream for stream in streams if next(stream, None) is not None]


def test_two_generators_consumed_in_turn(kind: str, mode: str, ran: Any) -> None:
    """Steps of two streams alternate; each is decided under the subject that opened it."""
    authz, pdp, graph = build(kind, ran)
    in_turn([_streaming(authz, graph, user, mode) for user in USERS])
    assert sorted(ran) == ["alice"] * 3 + ["bob"] * 3
    check(authz, pdp, calls=6)


def test_several_entries_of_one_generator_with_config(kind: str, ran: Any) -> None:
    """A generator that enters the graph several times stays its own user with `run.config()`."""
    authz, pdp, graph = build(kind, ran)

    def talk(user: str) -> Iterator[Any]:
        with authz.run(subject=user) as run:
            for _ in range(2):
                yield from graph.stream(human(user), run.config())

    in_turn([talk(user) for user in USERS])
    check(authz, pdp, calls=12)


def test_code_beside_an_open_generator_is_nobody(ran: Any) -> None:
    """While a generator with `run.config()` is paused, code beside it does not act as its user."""
    authz, pdp, graph = build("hand", ran)
    stream = _streaming(authz, graph, "alice", "config")
    next(stream)
    seen = len(pdp.requests)
    graph.invoke(human("anonymous"))
    assert {r.subject.id for r in pdp.requests[seen:]} == {"anonymous"}
    stream.close()


def test_run_around_an_open_generator_is_its_own(ran: Any) -> None:
    """A run that steps another user's generator stays its own user afterwards."""
    authz, pdp, graph = build("hand", ran)
    with authz.run(subject="alice"):
        stream = _streaming(authz, graph, "bob", "config")
        next(stream)
        graph.invoke(human("alice"))
        list(stream)
        graph.invoke(human("alice"))
    check(authz, pdp, calls=9)


def test_nested_runs(ran: Any) -> None:
    """The innermost run counts."""
    authz, pdp, graph = build("hand", ran)
    with authz.run(subject="alice"):
        graph.invoke(human("alice"))
        told(authz, graph, human("bob"), subject="bob")
        graph.invoke(human("alice"))
    check(authz, pdp, calls=9)


def _plain(authz: Any, act: Callable[[], Any]) -> Iterator[Any]:
    with authz.run(subject="alice"):
        yield act()
        yield act()


def _stack(authz: Any, act: Callable[[], Any]) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(authz.run(subject="alice"))
        yield act()


def _nested(authz: Any, act: Callable[[], Any]) -> Iterator[Any]:
    @contextlib.contextmanager
    def acting() -> Iterator[None]:
        with authz.run(subject="alice"):
            yield

    with acting():
        yield act()


@pytest.mark.parametrize("opens", [_plain, _stack, _nested])
@pytest.mark.parametrize("form", ["here", "thread", "task", "tool"])
def test_a_generators_run_counts_only_by_its_config(opens: Any, form: str) -> None:
    """A paused generator leaves its run behind for the code that steps it, so the run is never taken from there."""
    authz, pdp, graph = build("hand", [])
    who = authz.guard(_speaking([]))
    acts: dict[str, Callable[[], Any]] = {
        "here": lambda: graph.invoke(human("alice")), "thread": lambda: graph.batch([human("alice")] * 2),
        "task": lambda: asyncio.run(graph.ainvoke(human("alice"))), "tool": lambda: who.invoke({"user": "alice"}),
    }
    with pytest.raises(ConfigError, match=r"run\.config\(\)"):
        next(opens(authz, acts[form]))
    assert pdp.requests == []


def test_an_async_generators_run_counts_only_by_its_config() -> None:
    authz, pdp, graph = build("hand", [])

    async def plain() -> AsyncIterator[Any]:
        async with authz.run(subject="alice"):
            yield await graph.ainvoke(human("alice"))

    async def stack() -> AsyncIterator[Any]:
        async with contextlib.AsyncExitStack() as opened:
            await opened.enter_async_context(authz.run(subject="alice"))
            yield await graph.ainvoke(human("alice"))

    for opens in (plain, stack):
        with pytest.raises(ConfigError, match=r"run\.config\(\)"):
            asyncio.run(anext(opens()))  # type: ignore[arg-type]
    assert pdp.requests == []


def test_code_beside_a_generators_plain_run_is_refused() -> None:
    """It could be taken for the generator's user; once the generator has ended, it is nobody again."""
    authz, pdp, graph = build("hand", [])
    paused = _plain(authz, lambda: None)
    next(paused)
    with pytest.raises(ConfigError):
        graph.invoke(human("anonymous"))
    told(authz, graph, human("bob"), subject="bob")
    paused.close()
    graph.invoke(human("anonymous"))
    check(authz, pdp, calls=6)


def test_code_after_interleaved_generators_is_nobody(ran: Any) -> None:
    """After generators ended out of order, a later entry is under an implicit run, not a dead one."""
    authz, pdp, graph = build("hand", ran)
    first, second = (_streaming(authz, graph, user, "with+config") for user in USERS)
    next(first)
    next(second)
    list(first)
    list(second)
    seen = len(pdp.requests)
    graph.invoke(human("anonymous"))
    assert {r.subject.id for r in pdp.requests[seen:]} == {"anonymous"}
    told(authz, graph, human("carol"), subject="carol")
    check(authz, pdp)


async def _astreaming(authz: Any, graph: Any, user: str, mode: str) -> AsyncIterator[Any]:
    if mode == "config":
        run = authz.run(subject=user)
        try:
            async for chunk in graph.astream(human(user), run.config(), subgraphs=True):
                yield chunk
        finally:
            await run.aclose()
        return
    async with authz.run(subject=user) as run:
        async for chunk in graph.astream(human(user), run.config(), subgraphs=True):
            yield chunk


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_async_generators_consumed_in_turn(kind: str, mode: str, elsewhere: bool, ran: Any) -> None:
    """Step two in turn, in one task or each step in a task of its own, as web frameworks do it."""
    authz, pdp, graph = build(kind, ran)
    streams = [_astreaming(authz, graph, user, mode) for user in USERS]
    while streams:
        for stream in list(streams):
            step: Any = anext(stream, None)
            if await (asyncio.create_task(step) if elsewhere else step) is None:
                streams.remove(stream)
    assert sorted(ran) == ["alice"] * 3 + ["bob"] * 3
    check(authz, pdp, calls=6)


async def test_concurrent_tasks(kind: str, ran: Any) -> None:
    """Twenty tasks of two users at the same time."""
    authz, pdp, graph = build(kind, ran)

    async def one(user: str) -> None:
        async with authz.run(subject=user):
            await asyncio.sleep(0)
            assert_went_on(await graph.ainvoke(human(user)))

    await asyncio.gather(*(one(USERS[i % 2]) for i in range(20)))
    check(authz, pdp, calls=60)


def test_concurrent_threads(kind: str, ran: Any) -> None:
    """Ten threads of two users at the same time, and batches with threads of their own."""
    authz, pdp, graph = build(kind, ran)
    failures: list[BaseException] = []

    def one(user: str) -> None:
        try:
            with authz.run(subject=user):
                for state in graph.batch([human(user)] * 3):
                    assert_went_on(state)
        except BaseException as exc:
            failures.append(exc)

    side_by_side(*[lambda user=user: one(user) for user in USERS] * 5)
    assert failures == []
    check(authz, pdp, calls=90)


async def test_abatch_of_two_users(kind: str, ran: Any) -> None:
    """Batch elements with a run each in their configs."""
    authz, pdp, graph = build(kind, ran)
    runs = [authz.run(subject=user) for user in USERS]
    await graph.abatch([human(user) for user in USERS], [run.config() for run in runs])
    graph.batch([human(user) for user in USERS], [run.config() for run in runs])
    for run in runs:
        await run.aclose()
    check(authz, pdp, calls=12)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_closed_early(kind: str, mode: str, steps: int, ran: Any) -> None:
    """A stream that is closed after some steps: its leases are dead at once, the other user's go on."""
    authz, pdp, graph = build(kind, ran)
    left, right = (_streaming(authz, graph, user, mode) for user in USERS)
    for _ in range(steps):
        next(left)
        next(right)
    left.close()
    assert dead(authz, pdp, "alice")
    list(right)
    assert ran.count("bob") == 3
    check(authz, pdp)


@pytest.mark.parametrize("elsewhere", [True, False])
async def test_aclosed_early(kind: str, mode: str, elsewhere: bool, ran: Any) -> None:
    """`aclose()`, also from another task than the one that stepped."""
    authz, pdp, graph = build(kind, ran)
    left, right = (_astreaming(authz, graph, user, mode) for user in USERS)
    for _ in range(2):
        await anext(left)
        await anext(right)
    closing = left.aclose()  # type: ignore[attr-defined]
    await (asyncio.create_task(closing) if elsewhere else closing)
    assert dead(authz, pdp, "alice")
    async for _ in right:
        pass
    assert ran.count("bob") == 3
    check(authz, pdp)


async def test_dropped_without_closing(kind: str, ran: Any) -> None:
    """A stream that is simply dropped is closed by the garbage collector, and its leases with it."""
    import gc

    authz, pdp, graph = build(kind, ran)
    with authz.run(subject="alice"):
        stream = graph.stream(human("alice"))
        next(stream)
        del stream
        gc.collect()
        assert dead(authz, pdp)


def hanging_graph(kind: str, pdp: Any, ran: list[Any], hangs: Callable[[], Any]) -> tuple[RuntimeAuthz, Any]:
    """Return a graph whose tool hangs for alice, once `hangs` was called."""

    @tool
    async def who(user: str) -> str:
        """Hang for alice."""
        if user == "alice":
            hangs()
            await asyncio.sleep(60)
        ran.append(user)
        return user

    authz = authz_with(pdp, profiles={"who": ToolProfile(effect="write", sink="internal")})
    graph = hand_written(_model(), [who], name="inner") if kind != "agent" else agent_graph(_model(), [who])
    return authz, authz.protect(node_graph(graph) if kind == "subgraph" else graph)


async def test_cancelled_in_a_tool(kind: str, ran: Any, pdp: Any) -> None:
    """A task cancelled in the middle of a tool: dead leases, call unknown, the other user unharmed."""
    started = asyncio.Event()
    authz, graph = hanging_graph(kind, pdp, ran, started.set)

    async def one(user: str) -> Any:
        async with authz.run(subject=user):
            return await graph.ainvoke(human(user))

    hanging, other = asyncio.create_task(one("alice")), asyncio.create_task(one("bob"))
    await started.wait()
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging
    assert_went_on(await other)
    assert ran == ["bob"] * 3
    check(authz, pdp)
    assert completions(authz).count("unknown") == 1


def test_run_closed_in_the_middle_of_its_stream(kind: str, ran: Any) -> None:
    """The next gate after `run.close()` halts; no tool runs but one that was under way already."""
    closed = threading.Event()  # else a stream of subgraphs, which runs ahead of its reader in a thread, may be over before
    authz, pdp, graph = build(kind, ran, lambda _: closed.wait(10) if ran else None)
    run = authz.run(subject="alice")
    stream = graph.stream(human("alice"), run.config(), subgraphs=True)
    next(stream)
    next(stream)
    done = list(ran)
    run.close()
    closed.set()
    assert code_of(lambda: list(stream), AuthzHalt) == "lease_ended"
    assert len(ran) - len(done) in (0, 1)
    with pytest.raises(AuthzDenied):
        graph.invoke(human("alice"), run.config())
    assert dead(authz, pdp)


async def test_run_closed_in_the_middle_of_its_astream(kind: str, ran: Any) -> None:
    authz, pdp, graph = build(kind, ran)
    run = authz.run(subject="alice")
    stream = graph.astream(human("alice"), run.config(), subgraphs=True)
    await anext(stream)
    await anext(stream)
    done = list(ran)
    await run.aclose()
    with pytest.raises(AuthzHalt):
        async for _ in stream:
            pass
    assert ran == done and dead(authz, pdp)


@pytest.mark.parametrize("forged", ["alice", {"run": "x"}, 1, object(), None], ids=shown)
def test_forged_handle_is_no_handle(forged: Any, ran: Any) -> None:
    """Whatever stands under `__authz` but a handle of ours counts as no run."""
    pdp = deny_only("pay")
    authz, graph = protecting(hand_written(replying([PAY]), [pay_tool(ran)]), pdp)
    graph.invoke(human(), {"configurable": {"__authz": forged}})
    assert {r.subject.id for r in pdp.requests} == {"anonymous"}


def test_loop_that_ends_with_an_open_stream(kind: str, ran: Any) -> None:
    """`asyncio.run` ends over a stream nobody closed: its leases are dead, and nothing is reported."""
    reported: list[Any] = []
    kept: list[Any] = []
    authz, pdp, graph = build(kind, ran)

    async def go() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        stream = graph.astream(human("alice"), authz.run(subject="alice").config(), subgraphs=True)
        await anext(stream)
        kept.append(stream)

    asyncio.run(go())
    assert reported == [] and dead(authz, pdp)


def _reducing(spoke: list[Any]) -> Any:
    """A graph of three steps whose reducer calls a tool, which nobody guarded."""
    note = _speaking(spoke)

    def reduce(old: str, new: str) -> str:
        if new.startswith("of "):
            note.invoke({"user": new})
        return new

    step = lambda state: {"said": f"of {state['said'].removeprefix('of ')}"}
    return chain(dict.fromkeys(("one", "two", "three"), step), TypedDict("state_with", {"said": Annotated[str, reduce]}))


@pytest.mark.parametrize("go", ["sync", "async"])
def test_what_runs_between_nodes_belongs_to_the_stream_that_is_stepped(go: str, pdp: Any) -> None:
    """Two streams consumed in turn: each one's reducers under its own subject, and the consumer under nobody's."""
    from langchain_runtime_authz.langgraph.run_context import current_run

    spoke: list[Any] = []
    authz = RuntimeAuthz(pdp=pdp, profiles={"who": ToolProfile(effect="read")})
    graph = authz.protect(_reducing(spoke))
    runs = {user: authz.run(subject=user) for user in USERS}
    with contextlib.ExitStack() as stack:
        for run in runs.values():
            stack.enter_context(run)
        configs = {u: run.config() for u, run in runs.items()}
        given = {u: {"said": u} for u in USERS}
        if go == "sync":
            streams = [graph.stream(given[u], configs[u]) for u in USERS]
            while streams:
                streams = [s for s in streams if next(s, None) is not None]
                assert current_run() is None
        else:

            async def _go() -> None:
                open_ones: list[AsyncIterator[Any]] = [graph.astream(given[u], configs[u]) for u in USERS]
                while open_ones:
                    open_ones = [s for s in open_ones if await anext(s, None) is not None]
                    assert current_run() is None

            asyncio.run(_go())
    assert sorted(spoke) == ["of alice"] * 3 + ["of bob"] * 3
    decided = [(r.subject.id, r.context.call.args["user"]) for r in calls_of(pdp)]
    assert sorted(decided) == [("alice", "of alice")] * 3 + [("bob", "of bob")] * 3


@pytest.mark.parametrize("corrects", [False, True])
def test_a_run_that_begins_while_another_pays_sees_the_result(corrects: bool) -> None:
    """The other run ends while the policy is asked about the start. On the state from before, the model would pay again."""
    paying, go_on, asked = threading.Event(), threading.Event(), list[Any]()

    class Slow(list[Any]):
        def append(self, paid: Any) -> None:
            super().append(paid)
            paying.set()
            assert go_on.wait(5)

    def respond(messages: list[Any]) -> AIMessage:
        return says(text="done") if any(m.type == "tool" for m in messages) else says(PAY)

    def permits(request: Any) -> bool:
        if request.action.name.startswith("run/") and not asked.append(request) and len(asked) == 2:
            go_on.set()
            other.join(5)
        return True

    model = ScriptedChatModel(script=[respond] * 9)
    authz, graph = protecting(hand_written(model, [pay_tool(ran := Slow())], checkpointer=InMemorySaver()), StaticPDP(permits))
    other = threading.Thread(target=lambda: said_by(lambda: told(authz, graph, human("Pay the bill"), THREAD)))
    other.start()
    assert paying.wait(5)
    if corrects:
        authz.correct("t", "And say when it is done", graph=graph.get_name())
    told(authz, graph, {"messages": []} if corrects else human("Thanks"), THREAD)
    assert len(ran) == 1
