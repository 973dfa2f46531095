"""Which agent can know data of which class."""

import time
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from langchain_runtime_authz.evaluation import HistoryContext
from langchain_runtime_authz.facts.history import (
    MAX_NAMES,
    CountedStep,
    History,
    classes_known,
    confine_to_agent,
    count_step,
    handed_down,
    history_context,
    reveal_known,
)
from langchain_runtime_authz.facts.resource import one_spelling

ROOT = ("r",)
A, B, X, Y = ("r", "a"), ("r", "b"), ("r", "a", "x"), ("r", "a", "y")
AGENTS = (ROOT, A, B, X, Y)
BELOW = [(p, c) for p in AGENTS for c in AGENTS if c[:-1] == p]


def read(history: History, name: str, agent: tuple[str, ...]) -> History:
    confined = confine_to_agent(history.confined, history.classes_read, name, agent)
    return replace(history, classes_read=tuple(sorted({*history.classes_read, name})), confined=confined)


def test_a_sibling_is_not_judged_by_anothers_reads() -> None:
    """Its parents and children are."""
    history = read(History(), "secret", A)
    assert [a for a in AGENTS if classes_known(history, a)] == [ROOT, A, X, Y]


def test_who_is_put_to_work_later_may_have_been_told() -> None:
    """By the common parent, which knows what came back."""
    history = read(read(History(), "secret", X), "internal", B)
    again = replace(history, confined=handed_down(history.confined, A))
    assert (classes_known(again, Y), classes_known(again, B)) == (["secret"], ["internal"])
    again = replace(history, confined=handed_down(history.confined, ROOT))
    assert classes_known(again, B) == classes_known(again, Y) == ["internal", "secret"]


def test_what_is_kept_is_bounded() -> None:
    """What has no room is known to all."""
    history = History()
    for i in range(MAX_NAMES + 3):
        history = read(history, f"c{i:03}", A)
    assert len(history.confined) == MAX_NAMES
    assert classes_known(history, B) == [f"c{i:03}" for i in range(MAX_NAMES, MAX_NAMES + 3)]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.sampled_from(AGENTS), st.sampled_from(["p", "q"])),
        st.tuples(st.just("act"), st.sampled_from(AGENTS)), st.tuples(st.just("spawn"), st.sampled_from(BELOW)),
        st.tuples(st.just("answer"), st.sampled_from(BELOW)), st.tuples(st.just("enter")), st.tuples(st.just("forget")),
    ),
    max_size=24,
)


@given(STEPS)
def test_nobody_knows_more_than_is_told(steps: list[tuple[object, ...]]) -> None:
    """Whatever flows by reading, acting, handing down and answering, the flow rule sees it at whom it reached."""
    history, world = History(), set[str]()
    knows: dict[tuple[str, ...], set[str]] = {a: set() for a in AGENTS}
    for kind, *what in steps:
        if kind == "read":
            agent, name = what
            history = read(history, name, agent)  # type: ignore[arg-type]
            knows[agent].add(name)  # type: ignore[index, arg-type]
        elif kind == "act":
            history = replace(history, confined=reveal_known(history.confined, what[0]))  # type: ignore[arg-type]
            world |= knows[what[0]]  # type: ignore[index]
        elif kind == "spawn":
            parent, child = what[0]  # type: ignore[misc]
            history = replace(history, confined=handed_down(history.confined, parent))
            knows[child] |= knows[parent]
        elif kind == "answer":  # the ledger is not told
            parent, child = what[0]  # type: ignore[misc]
            knows[parent] |= knows[child]
        elif kind == "enter":
            history = replace(history, confined=handed_down(history.confined, ()))
            world |= set().union(*knows.values())
        else:
            history = replace(history, confined=())
        for agent in AGENTS:
            assert knows[agent] | world <= set(classes_known(history, agent))


def test_the_request_holds_it_as_its_model_says() -> None:
    history = count_step(History(), CountedStep(call="pay", effect="pay", data_class="secret", recent="pay", agent=A), 100.0)
    told = history_context(history, 120.0, B)
    assert HistoryContext.model_validate(told).model_dump() == told
    assert (told["classes_read"], told["classes_held"], told["last_minute"]) == (["secret"], [], 1)


def test_a_long_name_of_dates_takes_bounded_time() -> None:
    began = time.process_time()
    assert one_spelling("5 May 2026 " * 60_000).startswith("5may2026")
    assert time.process_time() - began < 2


def test_a_resource_outlasts_a_thousand_other_reads() -> None:
    """Otherwise a hijacked model reads others until the one that was declared changed is forgotten."""
    history = count_step(History(), CountedStep(resource=("bill:12", "read", "0")), 0)
    for n in range(1000):
        history = count_step(history, CountedStep(resource=(f"bill:x{n}", "read", "0")), 0)
    assert history.resources["bill:12"] == "0 read"
