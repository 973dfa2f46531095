"""What a story tells of a run, and that no text in a record is more than text in it."""

import json
import unicodedata
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from rich.cells import cell_len

from langchain_runtime_authz import Mandate, RuntimeAuthz
from langchain_runtime_authz.audit.sinks import FileSink, MemorySink
from langchain_runtime_authz.audit.story import SIGNS, Story, story_of
from langchain_runtime_authz.audit.story_html import html_fragment, html_page
from langchain_runtime_authz.evaluation import deny
from langchain_runtime_authz.testing import StaticPDP
from langchain_runtime_authz.tool_profile import ToolProfile

from ...attack._approvals import FIVE, Scene
from ...attack._kit import human

PAY = ToolProfile(effect="pay", sink="external", critical={"to": "principal", "amount": "amount"})


def played(**options: Any) -> Scene:
    """Three payments are asked about: one is approved, two are rejected, the task is corrected meanwhile."""
    saver = InMemorySaver()
    s = Scene("agent", lambda: saver, plan=FIVE, **options)
    s.say(human())
    approve, reject = {"type": "approve"}, {"type": "reject"}
    s.say(Command(resume={"decisions": [approve, reject, reject]}))
    s.authz.correct("t", "Pay nobody", by="bob")
    s.authz.revoke("t", by="user:carol", reason="incident 42")
    return s


def told(s: Scene) -> Story:
    return story_of(s.authz.audit.records)  # type: ignore[attr-defined]


def test_a_story_has_every_act_in_its_order() -> None:
    """Who asked, who answered, what ran, who changed the task, who revoked."""
    story = told(played())
    kinds = [s.kind for s in story.steps if s.kind not in ("check", "run", "plan")]
    assert kinds[:6] == ["permit"] * 2 + ["ask"] * 3 + ["answer"] or sorted(kinds) == sorted(
        ["ask"] * 3 + ["answer"] * 3 + ["permit"] * 3 + ["deny"] * 2 + ["task", "revocation"]
    )
    answers = [s for s in story.steps if s.kind == "answer"]
    assert [(a.what.split()[0], a.end) for a in answers] == [("approve", "ran"), ("reject", ""), ("reject", "")]
    assert all("by user:alice" in a.what and a.decision_id for a in answers)
    assert {s.end for s in story.steps if s.kind == "permit"} == {"done"}
    (task,) = [s for s in story.steps if s.kind == "task"]
    assert task.what == "by user:bob (correct), epoch 1 → 2"
    (revoked,) = [s for s in story.steps if s.kind == "revocation"]
    assert revoked.what == "revoked by user:carol: incident 42"
    assert "\n".join(story.heading()).count("user:alice") == 1


def test_what_was_ordered_stands_beside_what_was_done() -> None:
    """A step that ran, one that did not, and a deed that nobody ordered."""
    ordered = {"steps": [{"id": i, "tool": "pay", "args": {"to": i, "amount": 1}} for i in ("ann", "bob")]}
    authz = RuntimeAuthz(pdp=StaticPDP(permit=True), profiles={"pay": PAY})
    session = authz.session(subject="alice", mandate=Mandate.model_validate(ordered))
    session.decide("pay", {"to": "ann", "amount": 1})
    session.decide("pay", {"to": "eve", "amount": 1})
    story = story_of(authz.audit.records)  # type: ignore[attr-defined]
    assert [done.partition(" s ")[2] or done for _, _, done in story.ordered()] == ["pay", "not done", "pay"]
    assert len(story.unordered) == 1 and "not done" in str(story)
    assert "not done" in html_page(story)


def test_a_read_that_was_ordered_and_made_is_not_left_undone() -> None:
    """It spends no step, so no row of the order could name it."""
    ordered = {"steps": [{"id": tool, "tool": tool, "args": {"to": "ann"}} for tool in ("look", "pay")]}
    authz = RuntimeAuthz(profiles={"pay": PAY, "look": "reads"})
    session = authz.session(subject="alice", mandate=Mandate.model_validate(ordered))
    session.decide("look", {"to": "ann"})
    assert [done for _, _, done in story_of(authz.audit.records).ordered()] == ["read", "not done"]  # type: ignore[attr-defined]


def test_delegation_is_a_tree() -> None:
    authz = RuntimeAuthz(pdp=StaticPDP(permit=True))
    session = authz.session(subject="alice", task="x")
    session.delegate("payer").delegate("auditor").decide("look", {})
    story = story_of(authz.audit.records)  # type: ignore[attr-defined]
    assert [lane.agent for lane in sorted(story.lanes)] == [("session",), ("session", "payer"), ("session", "payer", "auditor")]
    assert "    payer (subgraph)" in str(story) and "<ul><li>session <ul>" in html_page(story)


def test_a_long_story_keeps_the_newest_and_counts_all() -> None:
    records = [{"kind": "run", "event": "started", "ts": i, "scope": {"thread": "t"}, "agent": ["a"]} for i in range(5000)]
    story = story_of(records, limit=100)
    assert (story.total, len(story.steps), story.steps[0].at) == (5000, 100, 4900)
    assert "5000, the newest 100 are shown" in "\n".join(story.heading())


HOSTILE = [
    "\x1b[2J\x1b]0;owned\x07", "\u202egnp.exe", "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>',
    "\ud800", "a\nb\r\x00", "</pre></table>", "x" * 10_000_000, "＜b＞漢字" * 60, "javascript:alert(1)", "{{7*7}}",
]
TEXT = st.sampled_from(HOSTILE[:7]) | st.text(max_size=40)
VALUE = st.recursive(TEXT | st.none() | st.booleans() | st.floats() | st.integers(), lambda v: st.lists(v, max_size=3) | st.dictionaries(TEXT, v, max_size=3), max_leaves=6)
FIELDS = {
    "decision": ("ts", "decision_id", "outcome", "reasons", "policy_revision", "action", "resource", "run_id", "scope", "agent", "request"),
    "run": ("ts", "event", "run_id", "jti", "epoch", "scope", "agent", "detail"),
    "completion": ("ts", "decision_id", "state", "error"),
    "mint": ("ts", "decision_id", "audience"),
    "mint_refused": ("ts", "decision_id", "reason", "tool"),
}
EVENTS = st.sampled_from(["planned", "mandate", "asked", "approval", "delegated", "corrected", "rotated", "revoked", "data_changed", "new"])
DETAIL = st.fixed_dictionaries({}, optional=dict.fromkeys(("to", "kind", "jti", "author", "source", "steps", "tools", "questions", "mandate", "tool", "digest", "call_key"), VALUE))


@st.composite
def records(draw: Any) -> list[dict[str, Any]]:
    found = []
    for kind in draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=6)):
        record = {"kind": kind, **{name: draw(VALUE) for name in FIELDS[kind]}}
        if draw(st.booleans()):
            record |= {"scope": {"thread": draw(TEXT), "graph": draw(TEXT)}, "agent": draw(st.lists(TEXT, max_size=2)), "ts": 1.5}
        if kind == "run" and draw(st.booleans()):
            record |= {"event": draw(EVENTS), "detail": draw(DETAIL)}
        found.append(record)
    return found


class Tags(HTMLParser):
    """The tags and attributes of a page, and its text outside of style and script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.scripts = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.scripts += tag == "script"
        self.attributes |= {name for name, _ in attrs}
        for name, value in attrs:
            assert name != "href" or value[:2] == "#s"


PLAIN = Tags(html_page(Story()))


def assert_inert(story: Story) -> None:
    text = str(story)
    for line in [text, *map(str, story.steps)]:
        first, *others = line.splitlines()
        assert max(map(cell_len, [first, *others])) <= 80
        assert line == text or not any(other[:5].strip() for other in others)
    for shown in (text, html_page(story), html_fragment(story), json.dumps(story.to_dict())):
        bad = {c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") and c != "\n"}
        assert not bad
        shown.encode()
    found = Tags(html_page(story))
    assert found.scripts == 1
    extra = {"a", "title", "rect", "details", "summary", "time", "option", "label", "input", "text", "path", "td", "tr", "span", "pre", "ul", "li", "table"}
    assert found.tags <= PLAIN.tags | extra | {"h2", "thead", "tbody", "th"}
    assert not {name for name in found.attributes if name.startswith("on") or name in ("src", "style", "srcdoc", "action")}


@settings(deadline=None, max_examples=60)
@given(records())
def test_no_record_breaks_a_story(found: list[dict[str, Any]]) -> None:
    """Whatever its fields hold, in whatever type: lines of 80 columns, no markup, nothing that controls or reorders."""
    assert_inert(story_of(found))


@pytest.fixture(scope="module")
def real() -> list[dict[str, Any]]:
    return played(audit=MemorySink(content=True)).authz.audit.records  # type: ignore[no-any-return]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_text_in_every_field_is_only_text(text: str, real: list[dict[str, Any]]) -> None:
    """Also 10 MB of it, at once in each field of a real run."""

    def spoiled(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: spoiled(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [spoiled(v) for v in value]
        return text if isinstance(value, str) and key not in ("kind", "event", "outcome", "action") else value

    assert_inert(story_of([spoiled(r) for r in real]))


def test_the_page_may_load_nothing() -> None:
    """Its own style and script run by their digests; no other."""
    text = html_page(told(played()))
    assert "default-src 'none'; style-src 'sha256-" in text
    assert "unsafe" not in text.partition("</head>")[0].partition("<style>")[0]
    assert text.count("<script>") == text.count("<style>") == 1
    assert "http" not in text.replace("http-equiv", "")


def test_notebooks_show_runs_decisions_and_logs(tmp_path: Any) -> None:
    """Static fragments: no script, no links; a run's holds its own steps only."""
    s = played()
    with s.authz.run(subject="alice") as run:
        pass
    other = RuntimeAuthz(pdp=StaticPDP(permit=True), audit=FileSink(tmp_path / "audit.jsonl"))
    other.session(subject="alice", task="x").decide("look", {})
    shown = {
        "log": s.authz.audit._repr_html_(),  # type: ignore[attr-defined]
        "file": other.audit._repr_html_(),  # type: ignore[attr-defined]
        "run": run._repr_html_(), "decision": deny("<b>")._repr_html_(),
        "mandate": Mandate.model_validate({"steps": [{"id": "1", "tool": "<b>", "args": {"to": "\u202e"}}]})._repr_html_(),
    }
    for text in shown.values():
        assert "<script" not in text and "<b>" not in text
        assert "\u202e" not in text
    assert "incident 42" in shown["log"] and "look" in shown["file"]
    assert "nothing on record" in shown["run"]


def test_every_kind_has_a_sign() -> None:
    assert len({sign for sign, _ in SIGNS.values()}) == len(SIGNS)
