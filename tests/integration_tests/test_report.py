"""The report in a browser: read by people, by keyboard and by screen readers, in both themes, whatever it holds."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from langchain_runtime_authz import RuntimeAuthz
from langchain_runtime_authz.audit.sinks import MemorySink
from langchain_runtime_authz.audit.story import story_of
from langchain_runtime_authz.audit.story_html import html_page
from langchain_runtime_authz.demo.bank import play_once
from langchain_runtime_authz.testing import StaticPDP
from langchain_runtime_authz.tool_profile import ToolProfile
from tests.unit_tests.audit.test_story import HOSTILE

pytestmark = pytest.mark.integration
THEMES = ("light", "dark")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=os.environ["LRA_CHROMIUM"], args=["--no-sandbox"])


@pytest.fixture(scope="module")
def demo(tmp_path_factory: Any) -> Path:
    """The report of the demonstration's run."""
    log = tmp_path_factory.mktemp("demo") / "audit.jsonl"
    play_once(protected=True, log=log)
    from langchain_runtime_authz.audit.chain import read_log

    return written(log.with_suffix(".html"), story_of(read_log(log), lambda s: s.kind != "check"))


@pytest.fixture(scope="module")
def many(tmp_path_factory: Any) -> Path:
    """The report of five agents and 300 steps."""
    return agents(tmp_path_factory, 295)


@pytest.fixture(scope="module")
def few(tmp_path_factory: Any) -> Path:
    """The same with few steps."""
    return agents(tmp_path_factory, 10)


def agents(tmp_path_factory: Any, steps: int) -> Path:
    authz = RuntimeAuthz(
        pdp=StaticPDP(lambda r: r.resource.id != "drop"), audit=MemorySink(),
        profiles={name: ToolProfile(effect="read") for name in ("look", "drop")},
    )
    root = authz.session(subject="alice", task="x", agent="supervisor")
    team = [root, *(root.delegate(f"worker-{i}") for i in range(4))]
    for i in range(steps):
        team[i % 5].decide("drop" if i % 7 == 0 else "look", {})
    story = story_of(authz.audit.records, lambda s: s.kind != "check")  # type: ignore[attr-defined]
    assert len(story.lanes) == 5 and story.total >= steps + 5
    return written(tmp_path_factory.mktemp("many") / "run.html", story)


def written(path: Path, story: Any) -> Path:
    path.write_text(html_page(story), encoding="utf-8")
    return path


def opened(browser: Browser, path: Path, theme: str = "light") -> tuple[Page, list[str]]:
    """Open a report; also return what it complains of and asks the network for."""
    shown = browser.new_context(color_scheme=theme, viewport={"width": 1200, "height": 760}).new_page()  # type: ignore[arg-type]
    seen: list[str] = []
    shown.on("console", lambda m: seen.append(m.text))
    shown.on("pageerror", lambda e: seen.append(str(e)))
    shown.on("dialog", lambda d: seen.append(d.message))
    shown.on("request", lambda r: None if r.url == path.as_uri() else seen.append(r.url))
    shown.goto(path.as_uri())
    return shown, seen


@pytest.mark.parametrize(("what", "theme"), [("demo", "light"), ("demo", "dark"), ("few", "light")])
def test_axe_finds_nothing(browser: Browser, request: Any, what: str, theme: str) -> None:
    """Neither as it opens nor with explanations open. Pictures go to $LRA_SCREENSHOTS."""
    shown, seen = opened(browser, request.getfixturevalue(what), theme)
    assert Axe().run(shown).violations_count == 0
    shown.locator(".mark.deny").first.click()
    shown.locator("summary").first.click()
    found = Axe().run(shown)
    assert found.violations_count == 0, found.generate_report()
    assert seen == []
    if folder := os.environ.get("LRA_SCREENSHOTS"):
        shown.evaluate("scrollTo(0, 0)")
        shown.screenshot(path=Path(folder) / f"report-{what}-{theme}.png")


def test_the_themes_differ(browser: Browser, demo: Path) -> None:
    grounds = {t: opened(browser, demo, t)[0].evaluate("getComputedStyle(document.body).backgroundColor") for t in THEMES}
    assert grounds["light"] != grounds["dark"]


def test_a_keyboard_is_enough(browser: Browser, demo: Path) -> None:
    """To the steps, along them, into an explanation, and to the filters."""
    shown, _ = opened(browser, demo)

    def focus(what: str = "class") -> Any:
        return shown.evaluate(f"document.activeElement.getAttribute('{what}')")

    for _ in range(40):
        shown.keyboard.press("Tab")
        if "mark" in (focus() or ""):
            break
    first = focus("href")
    shown.keyboard.press("ArrowRight")
    shown.keyboard.press("ArrowRight")
    shown.keyboard.press("ArrowLeft")
    assert focus("href") != first
    shown.keyboard.press("End")
    last = focus("href")
    shown.keyboard.press("Home")
    assert focus("href") == first
    shown.keyboard.press("Enter")
    assert "started" in shown.locator("#why").inner_text() and last != first
    shown.locator("fieldset input").first.focus()
    shown.keyboard.press("Space")
    rows = shown.locator("tr.k").count()
    left = shown.locator("tr.k:visible").count()
    assert 0 < left < rows
    assert shown.locator("output").inner_text() == f"{left} of {rows} steps"
    assert shown.locator(".mark:visible").count() == left


def test_each_step_is_read_out(browser: Browser, demo: Path) -> None:
    """Every mark has a name of its own words, and the table holds the same steps."""
    shown, _ = opened(browser, demo)
    names = shown.evaluate("[...document.querySelectorAll('.mark')].map((m) => m.getAttribute('aria-label'))")
    assert len(names) == shown.locator("tr.k").count()
    assert any(n.startswith("denied: send_money") for n in names)
    assert all(n.split(":")[0] for n in names)


def test_filters_by_agent_and_text(browser: Browser, many: Path) -> None:
    shown, _ = opened(browser, many)
    shown.locator("select").select_option(label="worker-2")
    assert shown.locator("tr.k:visible").count() == 59
    shown.locator("[type=search]").fill("drop")
    assert 0 < shown.locator("tr.k:visible").count() < 59
    assert set(shown.locator("tr.k:visible td:nth-child(3)").all_inner_texts()) == {"✗ denied"}


def test_without_script_it_is_whole(browser: Browser, demo: Path) -> None:
    """The marks are links to rows that open by themselves."""
    shown = browser.new_context(java_script_enabled=False).new_page()
    shown.goto(demo.as_uri())
    assert not shown.locator("fieldset").is_visible() and shown.locator("tr.k:visible").count() > 0


def test_five_agents_and_300_steps_open_at_once(browser: Browser, many: Path) -> None:
    """Rows that are out of view are not laid out, but are found and read out."""
    opened(browser, many)
    shown, seen = opened(browser, many)
    devtools = shown.context.new_cdp_session(shown)
    devtools.send("Performance.enable", {"timeDomain": "threadTicks"})
    shown.reload()
    took = shown.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    cpu = {m["name"]: m["value"] for m in devtools.send("Performance.getMetrics")["metrics"]}["TaskDuration"]
    print(f"5 agents, {shown.locator('tr.k').count()} steps: open in {took / 1000:.2f} s, {cpu:.2f} s of CPU")
    assert seen == [] and shown.get_by_role("row").count() > 300


def test_hostile_texts_do_nothing(browser: Browser, tmp_path: Path) -> None:
    """No dialog, no error, no request, no element of their own."""
    texts = [t for t in HOSTILE if len(t) < 1000]
    records = [
        {"kind": k, "ts": float(i), "scope": {"thread": t, "graph": t}, "agent": [t], "resource": t, "run_id": t, "reasons": [t],
         "action": t, "outcome": t, "event": t, "decision_id": t, "policy_revision": t, "detail": {"subject": t, t: t}}
        for i, t in enumerate(texts) for k in ("decision", "run", "mint_refused")
    ]
    shown, seen = opened(browser, written(tmp_path / "run.html", story_of(records)))
    for mark in shown.locator(".mark").all():
        mark.dispatch_event("click")
    assert seen == [] and shown.locator("img, iframe, b, a:not(.mark)").count() == 0
    assert shown.locator("script").count() == 1
