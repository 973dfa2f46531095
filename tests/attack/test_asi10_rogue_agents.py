"""ASI10 Rogue Agents: an agent that tries door after door, acts beside its plan, or goes on after it was stopped.

On the shipped policy.
"""

from langchain_runtime_authz.mandate.model import Mandate, Never

from ._kit import *
from ._scenario import first_reasons, play

PROFILES = {
    "look": ToolProfile(effect="read", sink="none", data_class="public", trust="system"),
    "wipe": ToolProfile(effect="admin", sink="internal"), "write": ToolProfile(effect="write", sink="internal"),
}
DOORS = [*([call("wipe", {"n": n}, f"c{n}")] for n in range(4)), [call("look", {"n": 9}, "c9")]]


def tools(ran: list[Any], during: Any = lambda: None) -> list[BaseTool]:
    """`during` happens as `look` runs."""
    look = a_tool("look", lambda n: [ran.append(("look", n)), during()][0], n=int)
    return [look, noting(ran, "wipe", n=int), noting(ran, "write", n=int)]


def test_door_after_door_revokes(form: str, ran: Any) -> None:
    """Forbidden calls in a row: `denial_streak` takes away what it was permitted too, on every later entry until reinstated."""
    authz = RuntimeAuthz(profiles=PROFILES, pdp=WasmPDP(data={"anomaly": {"max_streak": 4}}))
    with pytest.raises(Exception, match="not permitted"):
        play(form, tools(ran), *DOORS, authz=authz, text="Look", mandate=Mandate(never=(Never("admin"),)))
    assert ran == [] and first_reasons(authz, "look")[0][0] == "denial_streak"


def test_unenforced_it_finds_the_open_door(form: str, ran: Any) -> None:
    play(form, tools(ran), *DOORS)
    assert ran[0] == ("wipe", 0)


def test_a_call_beside_the_plan(form: str, protected: bool, ran: Any) -> None:
    """A node calls a tool that no model planned: `unplanned`. The same code unprotected writes."""
    write = tools(ran)[2]
    authz = RuntimeAuthz(profiles=PROFILES)
    given = authz.guard(write) if protected else write

    def act() -> None:
        given.invoke(call("write", {"n": 1}, "c1"))

    async def aact() -> None:
        await given.ainvoke(call("write", {"n": 1}, "c1"))

    graph = node_graph(in_run(act, aact))
    if protected:
        graph = authz.protect(graph)
        with authz.run(subject="alice", task="Look"):
            drive_form(form, graph, human("Look"))
    else:
        drive_form(form, graph, human("Look"))
    assert ran == ([] if protected else [("write", 1)])
    assert any("unplanned" in r for r in first_reasons(authz, "write")) is protected


@pytest.mark.parametrize("profiles", [{}, {"write": "ask"}], ids=repr)
def test_a_call_of_code_that_a_person_is_asked_about(profiles: Any, form: str, ran: Any) -> None:
    """Nobody planned it: it runs once if it is approved, and only so."""
    write = tools(ran)[2]
    authz = RuntimeAuthz(profiles=profiles)
    given = authz.guard(write)

    def act() -> None:
        given.invoke({"n": 1})

    async def aact() -> None:
        await given.ainvoke({"n": 1})

    graph = authz.protect(node_graph(in_run(act, aact), checkpointer=InMemorySaver()))
    with authz.run(subject="alice", task="Look"):
        (out,) = drive_form(form, graph, human("Look"), THREAD)
    assert (len(out["__interrupt__"]), ran) == (1, [])
    with authz.run(subject="alice"):
        drive_form(form, graph, resume(APPROVE), THREAD)
    assert ran == [("write", 1)]


STOPPED = ([call("look", {"n": 1}, "c1")], [call("write", {"n": 2}, "c2")])


def test_after_a_revocation_nothing_happens(form: str, ran: Any) -> None:
    """The operator stops it while it looks; the run ends, another entry may not begin, and a reinstated one may."""
    authz = RuntimeAuthz(profiles=PROFILES)
    with pytest.raises(Exception, match="not permitted"):
        play(form, tools(ran, lambda: authz.revoke("t")), *STOPPED, authz=authz, text="Look and write")
    with pytest.raises(Exception, match="not permitted"):
        play(form, tools(ran), *STOPPED, authz=authz, text="Look and write")
    assert ran == [("look", 1)]


def test_unenforced_after_a_revocation_it_goes_on(form: str) -> None:
    ran, revoked = [], []
    play(form, tools(ran, lambda: revoked.append("t")), *STOPPED)
    assert (ran, revoked) == ([("look", 1), ("write", 2)], ["t"])
