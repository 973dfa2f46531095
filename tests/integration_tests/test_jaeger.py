"""A supervisor's day, sent to a real Jaeger by two processes, and read back through its query API.

`LRA_JAEGER=… pytest tests/integration_tests/test_jaeger.py -s` prints the tree that `docs/tracing.md` shows.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.unit_tests.cli.test_cli import run, test_demo_fails_if_its_traces_arrive_nowhere  # noqa: F401  (the unit tier lacks the exporter)

from ..traced_day import SERVICE
from ..traces import Shown, of_jaeger, tree

ROOT = Path(__file__).parents[2]
BINARY = os.environ.get("LRA_JAEGER", "")

pytestmark = [pytest.mark.integration, pytest.mark.skipif(not BINARY, reason="LRA_JAEGER names no Jaeger; `.ci/services` builds one")]


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / "jaeger" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(query: str, service: str, count: int) -> list[Shown]:
    """Return a service's spans, once Jaeger has this many traces with all that they refer to."""
    until = time.monotonic() + 60
    while True:
        with urllib.request.urlopen(f"{query}/api/traces?service={service}&limit=50") as answer:
            traces = json.load(answer)["data"] or []
        if len(traces) >= count or time.monotonic() > until:
            return of_jaeger(traces)
        time.sleep(0.2)


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> list[Shown]:
    directory = tmp_path_factory.mktemp("day")
    with example("serve").serving(BINARY) as jaeger:
        for part in ("ask", "resume"):
            command = [sys.executable, "-m", "tests.traced_day", jaeger.otlp, str(directory), part]
            subprocess.run(command, cwd=ROOT, check=True, timeout=300)
        found = read(jaeger.query, SERVICE, 3)
    print("\n" + tree(found))
    return found


def one(spans: list[Shown], name: str, **attributes: Any) -> Shown:
    wanted = {f"runtime_authz.{k}": v for k, v in attributes.items()}
    (found,) = [s for s in spans if s.name == name and wanted.items() <= dict(s.attributes).items()]
    return found


def test_the_page_shows_this_day(day: list[Shown]) -> None:
    """The tree of `docs/tracing.md` has the same lines; what runs at once may come in another order."""
    lines = lambda text: sorted(re.sub(r"\[\d+\]", "[]", line) for line in text.splitlines())
    (shown,) = re.findall(r"^```text\n(.*?)^```$", (ROOT / "docs" / "tracing.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert lines(shown) == lines(tree(day))


def test_links(day: list[Shown]) -> None:
    """A tool leads to its decision, a sub-agent to its own, and the resume to the question of the other process."""
    by_id = {s.id: s for s in day}
    for span in day:
        if span.name.startswith("execute_tool"):
            ((_, decision),) = span.links
            assert by_id[decision].name == span.name.replace("execute_tool", "authorize")
            assert by_id[decision].attributes["runtime_authz.decision"] == "permit"
    question = one(day, "authorize send_money", decision="approval_required")
    permit = one(day, "authorize send_money", decision="permit")
    resume = next(s for s in day if s.parent is None and s.trace == permit.trace)
    assert resume.links == ((question.trace, question.id),)
    assert (question.trace, question.id) in permit.links and question.trace != permit.trace


def test_contents_are_in_no_span(day: list[Shown]) -> None:
    told = json.dumps([(s.name, dict(s.attributes), s.events) for s in day])
    for secret in ("DE21", "alice", "December", "eyJ"):
        assert secret not in told
    assert {s.attributes["gen_ai.conversation.id"] for s in day} == {"day"}


def test_the_demo_can_be_looked_at() -> None:
    """The program of `examples/jaeger/serve.py` prints where to send `runtime-authz demo`."""
    demo = [sys.executable, "-c", "from langchain_runtime_authz.cli import app; app()", "demo", "--otlp"]
    command = [sys.executable, ROOT / "examples" / "jaeger" / "serve.py", BINARY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as served:
        try:
            otlp, query = (re.findall(r"http://[\d.:]+", served.stdout.readline())[0] for _ in range(2))
            subprocess.run([*demo, otlp], cwd=ROOT, check=True, capture_output=True, timeout=300)
            found = read(query, "runtime-authz-demo", 2)
        finally:
            served.terminate()  # a shell's background job ignores SIGINT
    assert {s.name for s in found} >= {"invoke_agent LangGraph", "execute_tool send_money"}
