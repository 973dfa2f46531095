"""Delegation only attenuates: along every path of a tree, and for budgets over the whole tree."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_runtime_authz import Grant, Mandate, RuntimeAuthz
from langchain_runtime_authz.errors import AuthzDenied
from langchain_runtime_authz.testing import StaticPDP
from langchain_runtime_authz.tool_profile import ToolProfile
from tests.property.test_grant_lattice import calls, grants

MANY = settings(deadline=None, max_examples=60)
NAMES = ("a", "b", "c")  # of agents as of tools: an agent that is named like its parent is in many a tree
PROFILES = {name: ToolProfile(effect="read", sink="none", data_class="a") for name in NAMES}
roles = st.dictionaries(st.sampled_from(NAMES), grants, max_size=3)
steps = st.lists(st.tuples(st.integers(0, 5), st.sampled_from(NAMES), st.none() | grants), min_size=1, max_size=6)


@MANY
@given(roles=roles, first=st.none() | grants, steps=steps, call=calls)
def test_no_path_widens(roles, first, steps, call):
    """A descendant's grant is the meet of all on its path. It permits nothing that one of them refuses."""
    authz = RuntimeAuthz(pdp=StaticPDP(True), agents={name: {"grant": grant} for name, grant in roles.items()})
    tree = [(authz.session(subject="alice", agent="a", grant=first), [first, roles.get("a")])]
    for place, name, asked in steps:
        above, path = tree[place % len(tree)]
        own = [*path, roles.get(name), asked]
        try:
            tree.append((above.delegate(name, asked), own))
        except AuthzDenied as denied:
            assert denied.code == "budget_exhausted"
    for session, path in tree:
        known = [grant for grant in path if grant is not None]
        held = session._run.grant
        assert (held is None) == (known == [])
        if held is None:
            continue
        assert all(grant.covers(held) for grant in known)
        assert held.covers(held.meet(Grant()))
        if held.refuses(**call) is None:
            assert all(grant.refuses(**call) is None for grant in known)


@MANY
@given(budgets=st.dictionaries(st.sampled_from(NAMES), st.integers(0, 3)), roles=roles, work=st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from(NAMES)), max_size=20))  # fmt: skip
def test_a_tree_spends_a_budget_once(budgets, roles, work):
    """However the work is spread over a tree of agents, together they get no more than the root was given."""
    authz = RuntimeAuthz(pdp=StaticPDP(True), profiles=PROFILES, agents={n: {"grant": g} for n, g in roles.items()})
    root = authz.session(subject="alice", agent="root", grant=Grant(budgets=budgets))
    agents = [root, *(root.delegate(name) for name in NAMES)]
    agents += [agents[1].delegate("a"), agents[2].delegate("c")]
    done: Counter[str] = Counter()
    for i, (place, tool) in enumerate(work):
        if agents[place].decide(tool, {"n": i}).permit:
            done[tool] += 1
            agents[place].observe(tool, {"n": i}, "ok")
    assert all(done[tool] <= limit for tool, limit in budgets.items())


parts = st.none() | st.lists(st.sampled_from(NAMES), max_size=3)


@MANY
@given(first=parts, own=st.dictionaries(st.sampled_from(NAMES), parts), tree=st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from(NAMES), parts), max_size=5),
    work=st.lists(st.tuples(st.integers(0, 5), st.sampled_from(NAMES)), max_size=20), times=st.integers(1, 2))  # fmt: skip
def test_a_tree_spends_a_step_once_and_each_agent_its_part(first, own, tree, work, times):
    """A child spends the steps that everybody above it, its role and its request leave it; all together no more than ordered."""
    writes = {name: ToolProfile(effect="write") for name in NAMES}
    mandate = Mandate(steps=[{"id": n, "tool": n, "args": {"n": {"kind": "free"}}, "times": times} for n in NAMES])
    unasked = StaticPDP(lambda r: r.action.name != "tools/call" or r.context.call.mandate.standing == "covered")
    agents = {name: {"grant": {"steps": part}} for name, part in own.items()}
    authz = RuntimeAuthz(pdp=unasked, profiles=writes, agents=agents)
    made = [(authz.session(subject="alice", agent="root", mandate=mandate, grant=Grant(steps=first)), [first])]
    for place, name, asked in tree:
        above, path = made[place % len(made)]
        made.append((above.delegate(name, Grant(steps=asked)), [*path, own.get(name), asked]))
    spent: Counter[str] = Counter()
    for i, (place, step) in enumerate(work):
        session, path = made[place % len(made)]
        theirs = all(part is None or step in part for part in path)
        decision = session.decide(step, {"n": i})
        assert decision.permit == (theirs and spent[step] < times)
        if decision.permit:
            spent[step] += 1
            session.observe(step, {"n": i}, "ok")
