"""The recipe for a webhook: its code, against a server on loopback."""

import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from langchain_runtime_authz.errors import AuditError, Code
from langchain_runtime_authz.pep.run import Notifier
from tests.threads import serving

RECIPE = Path(__file__).parents[2] / "docs" / "recipes" / "webhook.md"


def test_the_recipe_delivers_in_order_until_each_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures and redirects are repeated under the decision's id; a full queue refuses."""
    namespace: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", RECIPE.read_text(), re.DOTALL)[0], namespace)
    answers, heard, finished = [500, 302], [], threading.Event()

    def hook(request: Any, body: bytes) -> int:
        ident = json.loads(body)["decision_id"]
        heard.append((ident, request.headers["X-Request-ID"], request.headers["Authorization"]))
        if ident == "2":
            finished.set()
        return answers.pop(0) if answers else 204

    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda _: sleep(0.01))
    with serving(hook, Location="/elsewhere") as server:
        webhook = namespace["Webhook"](f"http://127.0.0.1:{server.server_port}/hook", "t")
        assert isinstance(webhook, Notifier)
        for n in range(3):
            webhook.send({"decision_id": str(n)})
        assert finished.wait(30)
    assert heard == [(i, i, "Bearer t") for i in ("0", "0", "0", "1", "2")]
    webhook._waiting.maxsize = 1
    with pytest.raises(AuditError, match=Code.NOTIFY_UNAVAILABLE):
        for _ in range(3):
            webhook.send({"decision_id": "3"})
