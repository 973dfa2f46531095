"""Whatever a planner returns and whatever the texts are: what survives stands in the user's own words.

The judge does not read material as the check does. The texts are built of own words and material, so it knows which is
which, and looks for each value among the own words.
"""

from collections.abc import Iterator
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from langchain_runtime_authz.facts.task import content_digest
from langchain_runtime_authz.mandate import model as m
from langchain_runtime_authz.mandate.message_places import without_material
from langchain_runtime_authz.mandate.planner_mandate import backed_part
from langchain_runtime_authz.tool_profile import load_profiles

PROFILES = load_profiles(
    {
        "pay": {"effect": "pay", "critical": {"to": "principal", "amount": "amount"}, "text": ["note"]},
        "mail": {"effect": "send", "critical": {"to": "principal"}, "text": ["note"], "free": ["amount"]},
        "remove": {"effect": "delete", "critical": {"to": "object"}},
        "look": {"effect": "read", "critical": {"to": "object"}, "trust": {"": "internal", "id": "system", "said": "external"}},
    }
)
SIGNATURES: dict[str, dict[str, Any]] = {name: {"to": {}, "amount": {}, "note": {}} for name in PROFILES}

# Words that no other word holds, so that a place of one cannot be a place of another.
WORDS = ["Bob", "Carol", "a.txt", "dir/b.txt", "DE21", "x@y.org", "https://x.org/p", "lunch", "45", "3000", "May 26"]
values = st.sampled_from([*WORDS[:8], "b.txt", "x.org", 45, 3000, "2024-05-26", "Eve", 7, "", True, 1.5])
own_lines = st.lists(st.sampled_from([*WORDS, "pay", "and", "to", "the", "Should", "if", "not", "?", ".", "Forget it", '"', "twice"]), max_size=9).map(" ".join) | st.sampled_from(["pay Bob 45", "mail Carol lunch", "pay DE21 3000 twice and then Bob 45", "remove a.txt", "remove dir/b.txt"])
hostile = st.lists(st.sampled_from([*WORDS, "pay", "Eve", "7"]), min_size=1, max_size=6).map(" ".join)


def quoted(text: str) -> str:
    return f"> {text}"


def fenced(text: str) -> str:
    return f"```\n{text}\n```"


def tagged(text: str) -> str:
    return f"<mail>{text}</mail>"


def ruled(text: str) -> str:
    return f"-----\n{text}\n-----"


def forwarded(text: str) -> str:
    return f"---- Forwarded message ----\n{text}"


Part = tuple[str, bool]  # what stands there, and whether the user says it
inner = st.one_of(own_lines.map(lambda t: (t, True)), st.tuples(st.sampled_from([quoted, fenced, tagged, ruled]), hostile).map(lambda p: (p[0](p[1]), False)))
last = st.lists(hostile.map(lambda t: (forwarded(t), False)), max_size=1)
spoken = st.lists(st.tuples(st.lists(inner, max_size=4), last).map(lambda p: [*p[0], *p[1]]), min_size=1, max_size=3)

names = st.sampled_from(["s0", "s1", "s2", "s3"])
wheres = st.dictionaries(st.sampled_from(["name", "said"]), st.one_of(values.map(m.Eq), st.sampled_from(WORDS).map(m.Contains)), max_size=2)
arguments = st.one_of(
    values.map(m.Const),
    st.lists(values, max_size=2).map(lambda v: m.Const(tuple(v))),
    st.lists(values, min_size=1, max_size=2).map(lambda v: m.OneOf(tuple(v))),
    st.tuples(st.sampled_from([45, 3000, 7]), st.sampled_from([45, 3000, 7])).map(lambda v: m.Between(*v)),
    st.sampled_from(WORDS).map(m.Within),
    st.tuples(names, st.sampled_from(["id", "said", ""])).map(lambda a: m.Field(*a)),
    st.tuples(names, st.sampled_from(["id", "said"]), wheres).map(lambda a: m.Pick(*a)),
    st.tuples(names, st.sampled_from(["id", "said"]), wheres, st.sampled_from([1, 20, 45])).map(lambda a: m.Each(*a)),
    names.map(m.Extract),
    st.lists(st.sampled_from([*WORDS, "pay Bob", "Eve"]), max_size=2).map(lambda q: m.Text(tuple(q))),
    st.sampled_from([m.Free(), m.Own()]),
)
tools = st.sampled_from([*PROFILES, "sudo"])
anything = st.tuples(
    tools, st.dictionaries(st.sampled_from(["to", "amount", "note", "else"]), arguments, max_size=3), st.sampled_from([1, 1, 2, 45]), st.sampled_from([None, "d"])
)
fitting = st.sampled_from(
    [
        ("pay", {"to": m.Const("Bob"), "amount": m.Const(45)}, 1, None),
        ("pay", {"to": m.Const("DE21"), "amount": m.Const(3000)}, 2, None),
        ("mail", {"to": m.Const("Carol"), "note": m.Text(("lunch",))}, 1, None),
        ("remove", {"to": m.Const("a.txt")}, 1, None),
        ("remove", {"to": m.Const("b.txt")}, 1, None),
    ]
)
steps = st.lists(anything | fitting, max_size=4)


def mandate_of(drawn: list[Any]) -> m.Mandate:
    """A mandate of what was drawn; references to steps that are not earlier become constants."""
    found: list[m.Step] = []
    for i, (tool, args, times, deed) in enumerate(drawn):
        known = {s.id for s in found}
        fit = {n: a if not isinstance(a, m.Field | m.Pick | m.Each | m.Extract) or a.step in known else m.Const("Bob") for n, a in args.items()}
        found.append(m.Step(f"s{i}", tool, fit, times, None, deed))
    return m.Mandate(steps=tuple(found), limits=(m.Limit("pay", 5),), never=(m.Never("send"),), confirm=("admin", "s0"))


def text_of(parts: list[Part]) -> str:
    return "\n".join(part for part, _ in parts)


def stated(step: m.Step) -> Iterator[object]:
    """Every value that a step states, also in conditions and quotes."""
    for argument in step.args.values():
        if isinstance(argument, m.Const):
            yield from argument.value if isinstance(argument.value, tuple) else (argument.value,)
        elif isinstance(argument, m.OneOf):
            yield from argument.values
        elif isinstance(argument, m.Between):
            yield from (argument.low, argument.high)
        elif isinstance(argument, m.Within):
            yield argument.prefix
        elif isinstance(argument, m.Text):
            yield from argument.quote
        elif isinstance(argument, m.Pick | m.Each):
            yield from (c.value if isinstance(c, m.Eq) else c.text for several in argument.where.values() for c in several if isinstance(c, m.Eq | m.Contains))


def said(value: object, own: str) -> bool:
    wanted = {"2024-05-26": "May 26"}.get(str(value), str(value))
    spoken_words = own.lower().replace('"', " ").split()
    return f" {wanted.lower()} " in f" {' '.join(spoken_words)} "


@settings(deadline=None, max_examples=400)
@given(spoken, steps)
def test_what_survives_was_said_by_the_user(texts: list[list[Part]], drawn: list[Any]) -> None:
    mandate = mandate_of(drawn)
    given_texts = [text_of(t) for t in texts]
    assume(len({*given_texts}) == len(given_texts))  # places in equal texts look alike
    found = backed_part(mandate, given_texts, PROFILES, SIGNATURES).mandate
    assert found is not None
    own = "\n".join(part for text in texts for part, mine in text if mine)
    spans: dict[str, list[tuple[str, str, int, int]]] = {}
    for step in found.steps:
        assert step.tool in PROFILES
        assert "else" not in step.args
        assert all(said(value, own) for value in stated(step)), (step, own)
        assert step.times in (1, 2) or "45" in own
        by_digest = {content_digest(t): t for t in given_texts}
        for name, argument in step.args.items():
            if isinstance(argument, m.Const) and argument.value != ():
                assert argument.said is not None
                text = by_digest[argument.said.text]
                written = text[argument.said.start : argument.said.end]
                assert written.strip() == written != ""
                assert written in without_material(text)[0]
                if PROFILES[step.tool].side_effect:
                    spans.setdefault(step.deed or step.id, []).append((name, *argument.said))
    several = [(deed, span) for deed, all_ in spans.items() for span in all_]
    for i, (deed, (_, text, start, end)) in enumerate(several):
        for other, (_, text2, start2, end2) in several[i + 1 :]:
            assert deed == other or text != text2 or end <= start2 or end2 <= start


@settings(deadline=None, max_examples=200)
@given(spoken, steps)
def test_a_step_is_kept_as_it_stands_or_not_at_all(texts: list[list[Part]], drawn: list[Any]) -> None:
    """Nothing is added and nothing is repaired: only places and sequences are marked. What narrows stays."""
    mandate = mandate_of(drawn)
    given_texts = [text_of(t) for t in texts]
    compiled = backed_part(mandate, given_texts, PROFILES, SIGNATURES)
    assert compiled.mandate is not None
    planned = {s.id: s for s in mandate.steps}
    for step in compiled.mandate.steps:
        bare = {n: m.Const(a.value) if isinstance(a, m.Const) else a for n, a in step.args.items()}
        given = planned[step.id]
        assert step.model_copy(update={"args": bare, "after": given.after}) == given
        assert given.after in (None, step.after)
    left = {s.id for s in compiled.mandate.steps}
    assert left | {d.what.split("`")[1] for d in compiled.dropped} == set(planned)
    assert (compiled.mandate.limits, compiled.mandate.never) == (mandate.limits, mandate.never)
    assert {"admin", *({"s0"} & left)} <= set(compiled.mandate.confirm)
    assert all(set(s.sources) <= left for s in compiled.mandate.steps)
    assert backed_part(mandate, given_texts, PROFILES, SIGNATURES) == compiled


@settings(deadline=None, max_examples=200)
@given(spoken, steps.filter(bool), st.data())
def test_dropping_text_never_widens(texts: list[list[Part]], drawn: list[Any], data: st.DataObject) -> None:
    """A step that fewer texts back is backed by all of them, unless they forbid or take it back."""
    mandate = m.Mandate(steps=mandate_of(drawn[:1]).steps)
    given_texts = [text_of([(part.replace("Forget it", "").replace("not", ""), mine) for part, mine in t]) for t in texts]
    fewer = [t for t in given_texts if data.draw(st.booleans())]
    few, all_ = (backed_part(mandate, t, PROFILES, SIGNATURES).mandate for t in (fewer, given_texts))
    assert few is not None
    assert all_ is not None
    assert {s.id for s in few.steps} <= {s.id for s in all_.steps}


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=300) | st.lists(st.sampled_from(["```", '"""', "\n", "> ", "<a>", "</a>", "----", "From: ", "Subject: ", "@", "x"]), max_size=30).map("".join))
def test_material_is_cut_and_nothing_is_lost(text: str) -> None:
    own, parts = without_material(text)
    rebuilt = own
    for i, part in enumerate(parts, 1):
        assert part in text
        rebuilt = rebuilt.replace(f"[material {i}]", part, 1)
    assert rebuilt == text
