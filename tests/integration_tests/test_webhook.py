"""The webhook of the obligation `notify`, against a server on loopback."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from langchain_runtime_authz.pep.notify import WebhookNotifier
from tests.integration_tests.fault_server import FaultServer


class Hook(BaseHTTPRequestHandler):
    answers: list[int]
    heard: list[tuple[str, dict[str, Any], str | None]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.heard.append((self.path, body, self.headers["X-Request-ID"]))
        self.send_response(self.answers.pop(0) if self.answers else 204)
        self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[tuple[str, type[Hook]]]:
    kind = type("OneHook", (Hook,), {"answers": [], "heard": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/hook?x=1", kind
        server.shutdown()
        thread.join()


def test_it_arrives_in_order_and_again_until_it_is_taken(hook: tuple[str, type[Hook]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures and redirects are no delivery; the decision's id tells a repetition. No proxy is asked."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    url, kind = hook
    kind.answers[:] = [500, 302]
    notifier = WebhookNotifier(url)
    for n in range(5):
        notifier.send({"decision_id": str(n)})
    assert notifier.close(30) == 0
    assert [i for _, _, i in kind.heard] == ["0", "0", "0", "1", "2", "3", "4"]
    assert {path for path, _, _ in kind.heard} == {"/hook?x=1"}
    assert kind.heard[-1][1] == {"decision_id": "4"}


def test_a_receiver_that_drips_blocks_no_channel() -> None:
    """Bytes that keep coming, in the head as in the body, are late like none: the next attempt is heard."""
    with FaultServer() as server:
        for fault in ("drips-head", "continues-for-ever", "hangs"):
            notifier = WebhookNotifier(f"{server.url}/{fault}/hook", timeout=0.3)
            notifier.send({"decision_id": "1"})
            heard = until(lambda fault=fault: server.asked[f"/{fault}/hook"] > 1)
            assert notifier.close(0) == 1
            assert heard
        notifier = WebhookNotifier(f"{server.url}/drips-body/hook", timeout=5)
        notifier.send({"decision_id": "1"})
        assert notifier.close(30) == 0  # the status says it arrived
        assert until(lambda: server.open == 0)


def until(check: Callable[[], bool]) -> bool:
    """Whether it came true within a minute."""
    ends = time.monotonic() + 60
    while not check() and time.monotonic() < ends:
        time.sleep(0.01)
    return check()


def test_send_does_not_wait_for_a_server_that_hangs() -> None:
    """The socket accepts and says nothing: sending costs nothing, and what waits is told at the end."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        notifier = WebhookNotifier(f"http://127.0.0.1:{silent.getsockname()[1]}/", timeout=0.2)
        began = time.monotonic()
        for n in range(100):
            notifier.send({"decision_id": str(n)})
        assert time.monotonic() - began < 10  # one attempt after another would take twenty seconds
        assert notifier.close(0.5) == 100
