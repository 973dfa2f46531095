"""One workload for the tests with SPIRE: a process with an agent in it, told by lines what to do next.

`python -m tests.integration_tests.spire_workload SOCKET WAIT` answers each line with one line of JSON.
"""

import contextlib
import json
import sys
import time
from typing import Any

from langchain_core.tools import tool

from langchain_runtime_authz import RuntimeAuthz, current_call, profile
from langchain_runtime_authz.errors import AuthzError
from langchain_runtime_authz.identity.spiffe import SpiffeIdentity, SvidVerifier
from langchain_runtime_authz.pdp.wasm import WasmPDP

from .spire import DOMAIN

API = "https://agent.example"


@profile(effect="read", sink="none", audience=(API,))
@tool
def look() -> str:
    """Look."""
    claims = current_call().credential(API).claims
    return json.dumps({"act": claims["act"]["sub"], "exp": claims["exp"]})


class Workload:
    def __init__(self, socket: str, wait: float) -> None:
        self.identity = SpiffeIdentity(DOMAIN, socket=socket, wait=wait)
        often = {"max_per_minute": None, "max_steps": 1_000_000, "max_denials": 1_000_000, "max_streak": 1_000_000}
        self.authz = RuntimeAuthz(pdp=WasmPDP(data={"attested": ["read"], "anomaly": often}), identity=self.identity)
        self.tool, self.open, self.run = self.authz.guard(look), contextlib.ExitStack(), None
        self.steps = 0

    def do(self, command: str, *arguments: str) -> dict[str, Any]:
        found = getattr(self, command)(*arguments)
        known = {"attested": self.identity.attested, "workload": self.identity.workload, "why": self.identity.why}
        return {**found, **known, "expires_at": self.identity.expires_at, "now": time.time()}

    def start(self) -> dict[str, Any]:
        """Open one run, and keep it."""
        self.open.close()
        self.open = contextlib.ExitStack()
        self.run: Any = self.open.enter_context(self.authz.run(subject="alice"))
        return self.step()

    def step(self) -> dict[str, Any]:
        """Take one step of the run."""
        self.steps += 1
        message = self.tool.invoke({"type": "tool_call", "id": f"c{self.steps}", "name": "look", "args": {}})
        if message.status == "success":
            return {"outcome": "permit", "run_id": self.run.run_id, **json.loads(message.content)}
        return {"outcome": "deny", "code": self.run.decisions[-1].reasons[0].code}

    def svid(self, audience: str) -> dict[str, Any]:
        began = time.perf_counter()
        token = self.identity.jwt_svid(audience)
        return {"token": token, "ms": (time.perf_counter() - began) * 1000}

    def verify(self, audience: str, token: str) -> dict[str, Any]:
        callers = SvidVerifier(DOMAIN, audience=audience, keys=self.identity.jwt_keys)
        began = time.perf_counter()
        caller = callers.verify(token)
        return {"caller": caller.id, "type": caller.type, "ms": (time.perf_counter() - began) * 1000}

    def look(self) -> dict[str, Any]:
        return {}


def main() -> None:
    workload = Workload(sys.argv[1], float(sys.argv[2]))
    print(json.dumps(workload.do("look")), flush=True)
    for line in sys.stdin:
        try:
            answer = workload.do(*line.split())
        except AuthzError as exc:
            answer = {"outcome": "deny", "code": exc.code, "detail": str(exc)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
