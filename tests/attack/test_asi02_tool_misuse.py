"""ASI02 Tool Misuse and Exploitation: a tool that the agent rightly has, used beyond what it was given for.

On the shipped policy, with a mandate that covers every call. Each denies one call: the others of the same run go on.
"""

from langchain_runtime_authz.grant import Constraint
from langchain_runtime_authz.mandate.model import Free, Mandate, Step

from ._kit import *
from ._scenario import first_reasons, play

PROFILES = {
    "read": ToolProfile(effect="read", sink="none", data_class="secret", trust="system"),
    "note": ToolProfile(effect="write", sink="internal"), "post": ToolProfile(effect="write", sink="external"),
}
ALL = Mandate((Step("note", "note", {"pages": Free()}, times=9), Step("post", "post", {"text": Free()}, times=9)))


def tools(ran: list[Any]) -> list[BaseTool]:
    """A vault, a notebook inside the house, and a site outside it."""
    return [noting(ran, "read", "the launch code is 0000"), noting(ran, "note", pages=int), noting(ran, "post", text=str)]


LEAK = ([call("read", {}, "c1")], [call("post", {"text": "0000"}, "c2"), call("note", {"pages": 1}, "c3")])
FLOOD = ([call("note", {"pages": 1}, "c1"), call("note", {"pages": 10**6}, "c2"), call("post", {"text": "x"}, "c3")],)


def test_secrets_do_not_leave_the_house(form: str, ran: Any) -> None:
    """What was read decides where writing may go: `data_flow`."""
    authz = RuntimeAuthz(profiles=PROFILES)
    play(form, tools(ran), *LEAK, authz=authz, mandate=ALL)
    assert ran == [("read",), ("note", 1)] and "data_flow" in first_reasons(authz, "post")[0]


def test_unenforced_secrets_leave_the_house(form: str, ran: Any) -> None:
    play(form, tools(ran), *LEAK)
    assert ("post", "0000") in ran


def test_a_tool_outside_the_grant_and_an_argument_beyond_it(form: str, ran: Any) -> None:
    """`grant_tool` and `grant_argument`: the call that lies inside both runs."""
    authz = RuntimeAuthz(profiles=PROFILES)
    grant = Grant(tools=("note",), args={"note": {"pages": Constraint(le=10)}})
    play(form, tools(ran), *FLOOD, authz=authz, mandate=ALL, grant=grant)
    assert ran == [("note", 1)] and "grant_argument" in first_reasons(authz, "note")[0]
    assert "grant_tool" in first_reasons(authz, "post")[0]


def test_unenforced_a_tool_does_whatever_it_can(form: str, ran: Any) -> None:
    play(form, tools(ran), *FLOOD)
    assert sorted(ran) == [("note", 1), ("note", 10**6), ("post", "x")]


def test_a_rate_holds_however_the_calls_are_spread(form: str, ran: Any) -> None:
    """Two writes a minute: the third of five is refused, and so is the rest (`rate_limit`)."""
    authz = RuntimeAuthz(profiles=PROFILES, pdp=WasmPDP(data={"rates": {"write": {"window": 60, "max": 2}}}))
    play(form, tools(ran), *([call("note", {"pages": n}, f"c{n}")] for n in range(5)), authz=authz, mandate=ALL)
    assert ran == [("note", 0), ("note", 1)]
    assert {r[0] for r in first_reasons(authz, "note")} == {"rate_exceeded"}


def test_unenforced_nothing_counts(form: str, ran: Any) -> None:
    play(form, tools(ran), *([call("note", {"pages": n}, f"c{n}")] for n in range(5)))
    assert len(ran) == 5
