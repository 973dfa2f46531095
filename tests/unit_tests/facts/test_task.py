"""The task only grows, and only by what a human says for the first time."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_runtime_authz.facts.task import (
    MAX_TASK_TEXT,
    HumanText,
    Task,
    content_digest,
    content_text,
    extend_task,
    new_texts,
)


def said(text: str, key: str | None = None) -> HumanText:
    return HumanText(content_digest(text), text, key)


plain = st.builds(said, st.sampled_from(["a", "b", "c"]))
keyed = st.builds(said, st.sampled_from(["a", "b", "c"]), st.sampled_from(["1", "2", "3"]))
texts = st.lists(plain | keyed, max_size=5)


@pytest.mark.parametrize(("content", "text"), [
    ("pay", "pay"), ("", ""), ([], ""), (["pay", "now"], "pay\nnow"), ([{"type": "text", "text": "pay"}], "pay"),
    ([{"type": "text", "text": "pay"}, {"type": "image", "url": "x"}, "now"], "pay\n[image]\nnow"),
    ([{"type": "text"}], "[text]"), ([{}], "[None]"), ([7], "7"), (None, "None"), ({"text": "x"}, "{'text': 'x'}"),
])
def test_the_words_of_a_content(content: object, text: str) -> None:
    """Text as it stands, other blocks by their type."""
    assert content_text(content) == text


@given(content=st.recursive(st.none() | st.text() | st.integers(), lambda i: st.lists(i) | st.dictionaries(st.text(), i)))
def test_any_content_has_words_and_a_digest(content: Any) -> None:
    """Also one that no message should have."""
    assert isinstance(content_text(content), str) and content_digest(content).startswith("sha256:")
    assert content_digest(content) == content_digest(content)


def test_a_text_and_its_block_are_one_content() -> None:
    """Providers write the same words in several forms."""
    block = {"type": "text", "text": "pay"}
    assert content_digest("pay") == content_digest([block]) == content_digest(["pay"])
    assert content_digest("pay\nnow") == content_digest([block, "now"])
    assert content_digest("pay") != content_digest("pay ")


def test_media_count_by_their_bytes() -> None:
    """Another picture under the same words is another content."""

    def picture(data: str) -> list[dict[str, str]]:
        return [{"type": "text", "text": "pay this"}, {"type": "image", "base64": data}]

    assert content_text(picture("AAAA")) == content_text(picture("BBBB"))
    assert content_digest(picture("AAAA")) != content_digest(picture("BBBB"))
    assert content_digest(picture("AAAA")) != content_digest("pay this\n[image]")
    assert content_digest([{"type": "image", "data": b"A"}]) != content_digest([{"type": "image", "data": b"B"}])  # not JSON


def test_the_digest_chains_over_every_text_in_order() -> None:
    """One text more, less or elsewhere is another task; its id is that of its first texts."""
    first = extend_task(Task(), [said("pay")], correction=False)
    second = extend_task(first, [said("never above 10")], correction=True)
    assert (first.text, first.corrections) == ("pay", 0)
    assert (second.text, second.corrections) == ("pay\nnever above 10", 1)
    assert first.id == second.id == first.digest[7:23] != ""
    assert first.digest != second.digest
    assert extend_task(first, [], correction=True) is first  # nothing said changes nothing
    at_once = extend_task(Task(), [said("pay"), said("never above 10")], correction=False)
    assert at_once.digest == second.digest
    assert extend_task(Task(), [said("never above 10"), said("pay")], correction=False).digest != second.digest


@given(old=st.lists(plain, max_size=3), new=st.lists(plain, min_size=1, max_size=3))
def test_two_corrections_are_one_after_the_other(old: list[HumanText], new: list[HumanText]) -> None:
    """Pinning in steps gives the digest and words of pinning at once."""
    step = extend_task(extend_task(Task(), old, correction=False), new, correction=True)
    once = extend_task(Task(), [*old, *new], correction=False)
    assert (step.digest, step.text) == (once.digest, once.text)
    assert step.digest != extend_task(Task(), old, correction=False).digest


def test_the_newest_words_travel() -> None:
    """The text in a request is bounded and keeps its end; the digest is of all of it."""
    long = said("x" * MAX_TASK_TEXT + "y")
    task = extend_task(Task(), [long], correction=False)
    assert len(task.text) == MAX_TASK_TEXT and task.text.startswith("…x")
    task = extend_task(task, [said("never above 10")], correction=True)
    assert len(task.text) == MAX_TASK_TEXT and task.text.endswith("xy\nnever above 10")
    other = extend_task(Task(), [said("z" + long.text)], correction=False)
    assert extend_task(other, [said("never above 10")], correction=True).digest != task.digest
    exact = extend_task(Task(), [said("x" * MAX_TASK_TEXT)], correction=False)
    assert exact.text == "x" * MAX_TASK_TEXT


@pytest.mark.parametrize(("pinned", "incoming", "fresh"), [
    ([], [], []), ([], ["a"], ["a"]), (["a"], [], []), (["a"], ["b"], ["b"]), (["a"], ["a", "b"], ["b"]),
    (["a", "b"], ["a", "b"], []), (["a", "b"], ["a"], ["a"]), (["a"], ["a"], ["a"]),
    (["a", "b"], ["a", "c"], ["c"]), (["a", "b"], ["b", "a"], ["a"]), (["a", "b", "c"], ["a", "b"], []),
    (["a", "b"], ["a", "b", "a"], ["a"]),
])
def test_texts_without_ids(pinned: list[str], incoming: list[str], fresh: list[str]) -> None:
    """A history that is repeated in its order, with gaps, is nothing new; one text alone was just said."""
    assert [t.text for t in new_texts([*map(said, pinned)], [*map(said, incoming)])] == fresh


@pytest.mark.parametrize(("pinned", "incoming", "fresh"), [
    ([("a", "1")], [("a", "1")], []), ([("a", "1")], [("b", "1")], ["b"]), ([("a", "1")], [("b", "2")], ["b"]),
    ([("a", "1")], [("a", "2")], ["a"]), ([("a", "1"), ("b", "2")], [("b", "2")], []),
    ([("a", "1"), ("b", "2")], [("b", "2"), ("a", "1")], []),
    ([("a", "1"), ("b", "2")], [("a", "1"), ("c", "2"), ("d", "3")], ["c", "d"]),
    ([("a", "1"), ("b", "1")], [("b", "1")], []), ([("a", "1"), ("b", "1")], [("a", "1")], ["a"]),
    ([("a", "1")], [("a", "1"), ("b", None)], ["b"]),
])
def test_texts_with_ids(pinned: list[tuple[str, str | None]], incoming: list[tuple[str, str | None]], fresh: list[str]) -> None:
    """A known id with an equal text is nothing new, with another text a correction; leaving out is none."""
    assert [t.text for t in new_texts([said(*p) for p in pinned], [said(*i) for i in incoming])] == fresh


@given(pinned=texts, incoming=texts)
def test_what_is_new_was_sent(pinned: list[HumanText], incoming: list[HumanText]) -> None:
    """In its order; a text never seen before is always new; and on an empty thread everything is."""
    fresh = new_texts(pinned, incoming)
    sent = iter(incoming)
    assert all(any(f is s for s in sent) for f in fresh)
    known = {t.digest for t in pinned}
    assert all(t in fresh for t in incoming if t.digest not in known)
    assert new_texts([], incoming) == tuple(incoming)
