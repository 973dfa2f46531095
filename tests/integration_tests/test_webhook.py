"""The recipe for a webhook: its code, against a server on loopback."""

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from langchain_runtime_authz.errors import AuditError, Code
from langchain_runtime_authz.pep.run import Notifier

RECIPE = Path(__file__).parents[2] / "docs" / "recipes" / "webhook.md"


def test_the_recipe_delivers_in_order_until_each_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures and redirects are repeated under the decision's id; a full queue refuses."""
    namespace: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", RECIPE.read_text(), re.DOTALL)[0], namespace)
    answers, heard, finished = [500, 302], [], threading.Event()

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            heard.append((body["decision_id"], self.headers["X-Request-ID"], self.headers["Authorization"]))
            self.send_response(answers.pop(0) if answers else 204)
            self.send_header("Location", "/elsewhere")
            self.end_headers()
            if body["decision_id"] == "2":
                finished.set()

        def log_message(self, *arguments: object) -> None:
            pass

    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda _: sleep(0.01))
    with ThreadingHTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        webhook = namespace["Webhook"](f"http://127.0.0.1:{server.server_port}/hook", "t")
        assert isinstance(webhook, Notifier)
        for n in range(3):
            webhook.send({"decision_id": str(n)})
        assert finished.wait(30)
        server.shutdown()
    assert heard == [(i, i, "Bearer t") for i in ("0", "0", "0", "1", "2")]
    webhook._waiting.maxsize = 1
    with pytest.raises(AuditError, match=Code.NOTIFY_UNAVAILABLE):
        for _ in range(3):
            webhook.send({"decision_id": "3"})
