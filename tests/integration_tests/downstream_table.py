"""What a real service answers to a call's token, and to the same token in the wrong moment, place or hands.

`python -m tests.integration_tests.downstream_table` prints the table; `test_downstream.py` asserts it.
"""

import contextlib
import sys
from dataclasses import dataclass, field
from typing import Any

import httpx
import jwt
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from rich.console import Console
from rich.table import Table

from langchain_runtime_authz import AuthzHalt, RuntimeAuthz, ToolProfile, current_call
from langchain_runtime_authz.credential.dpop_proof import ProofKey
from langchain_runtime_authz.credential.issuer import LocalIssuer
from langchain_runtime_authz.credential.keyring import KeyRing
from langchain_runtime_authz.downstream.httpx_auth import CallAuth
from langchain_runtime_authz.errors import CredentialError
from langchain_runtime_authz.testing import StaticPDP

from ..attack._graphs import call, hand_written, human, replying
from .downstream_services import Codes, bank_app, issuer_app, resource_server, serving
from .mcp_services import mcp_app
from .services import free_port

STATUSES = ("ledger", "introspection", "offline")
ONLINE = {"ledger", "introspection"}
COLUMNS = [(status, dpop, "http") for dpop in (False, True) for status in STATUSES]
COLUMNS += [("introspection", dpop, "mcp") for dpop in (False, True)]
THREAD = "thread-1"


@dataclass
class Scene:
    """A protected agent, its issuer's endpoints and the services, all real."""

    status: str
    dpop: bool
    kind: str = "http"
    rows: dict[str, str] = field(default_factory=dict)

    def play(self) -> dict[str, str]:
        """Every row of the table: situation → what the service answered."""
        ports = [free_port() for _ in range(5)]
        bank, other, elsewhere, strict = (f"http://127.0.0.1:{port}" for port in ports[1:])
        self.bank, self.authz = bank, self._authz(bank)
        issuer_url = f"http://127.0.0.1:{ports[0]}"

        def server(audience: str, **options: Any) -> Any:
            made = resource_server(self.authz, issuer_url, audience, status=self.status, **options)
            return mcp_app(made, []) if self.kind == "mcp" else bank_app(made)

        with contextlib.ExitStack() as stack:
            self.codes = stack.enter_context(Codes())
            stack.enter_context(serving(issuer_app(self.authz, (bank, other, elsewhere, strict)), ports[0]))
            stack.enter_context(serving(server(bank), ports[1]))
            stack.enter_context(serving(server(other), ports[2]))
            # The same name, another tenant's data.
            stack.enter_context(serving(server(bank, tenant="umbrella"), ports[3]))
            stack.enter_context(serving(server(bank, require_proof=True), ports[4]))
            self.other, self.elsewhere, self.strict = other, elsewhere, strict
            self.http = stack.enter_context(httpx.Client())
            self.client = stack.enter_context(httpx.Client(base_url=bank, auth=CallAuth(dpop=self.dpop)))
            self._calls()
        return self.rows

    def _authz(self, bank: str) -> RuntimeAuthz:
        profiles = {
            name: ToolProfile(effect="pay", sink="external", idempotent=True, audience=(bank,))
            for name in ("pay", "pay_and_be_corrected", "keep", "lose_key")
        }
        return RuntimeAuthz(
            pdp=StaticPDP(True), profiles=profiles, issuer=LocalIssuer(KeyRing(cache_age=0), issuer="https://issuer.example")
        )

    def _calls(self) -> None:
        kept: list[Any] = []

        @tool
        def pay(recipient: str = "bob") -> str:
            """Pay, as a tool should."""
            mine = self._mine()
            answer = self._post(self.bank, {}, client=self.client)
            self._note("during the call", answer)
            if self.kind == "http":
                assert answer.json()["by"] == [mine.claims["act"]["sub"]]
            else:
                assert "paid bob for alice" in answer.text
            self._probe("for another audience", self.other)
            self._probe("for another tenant", self.elsewhere)
            self._forms()
            kept.append(self._mine())
            return "paid"

        @tool
        def pay_and_be_corrected(recipient: str = "bob") -> str:
            """Pay, while a human changes the task."""
            mine = self._mine()
            self.authz.correct(THREAD, "Stop: pay nothing.", graph="bank")
            self._send("after a correction", self.bank, mine)
            try:
                self._mine()
            except CredentialError as refused:
                self.rows["asked for again, after a correction"] = refused.code
            return "paid"

        @tool
        def keep(recipient: str = "bob") -> str:
            """Keep a token for later."""
            kept.append(self._mine())
            return "kept"

        @tool
        def lose_key(recipient: str = "bob") -> str:
            """The issuer's key gets into the wrong hands during the call."""
            mine = self._mine()
            self.authz.compromise_key(jwt.get_unverified_header(mine.token)["kid"])
            self._probe("once its key is withdrawn", self.bank)
            return "lost"

        turns = [[call("pay", {}, "c1")], [call("keep", {}, "c2")], [call("pay_and_be_corrected", {}, "c3")]]
        graph = hand_written(replying(*turns), [pay, pay_and_be_corrected, keep], checkpointer=InMemorySaver(), name="bank")
        self.authz.protect(graph)
        last = self.authz.protect(hand_written(replying([call("lose_key", {}, "c4")]), [lose_key], name="last"))
        config = {"configurable": {"thread_id": THREAD}}
        with self.authz.run(subject="alice", task="Pay the bill"):
            try:
                graph.invoke(human(), config)
            except AuthzHalt as halt:  # what was corrected ends
                assert halt.code == "stale_epoch", halt.code
            self._send("after the call", self.bank, kept[0])
        self._send("after the run", self.bank, kept[1])
        with self.authz.run(subject="alice", task="Pay the bill"):
            last.invoke(human())

    @property
    def path(self) -> str:
        """Of the resource, below each service's own address."""
        return "/mcp" if self.kind == "mcp" else "/payments"

    def _mine(self) -> Any:
        mine = current_call().credential(self.bank, dpop=self.dpop)
        self.tool = mine.claims["authorization_details"][0]["identifier"]
        return mine

    def _probe(self, row: str, url: str) -> None:
        self._send(row, url, self._mine())

    def _send(self, row: str, url: str, credential: Any) -> None:
        """As a thief would who has the token and even the key."""
        known_as = self.bank if url == self.elsewhere else url
        self._note(row, self._post(url, credential.headers("POST", known_as + self.path)))

    def _post(self, base: str, headers: Any, *, path: str = "", client: Any = None, **options: Any) -> httpx.Response:
        pairs = list(headers.items()) if isinstance(headers, dict) else headers
        if self.kind == "mcp":
            params = {"name": options.pop("tool", self.tool), "arguments": {"recipient": "bob"}}
            options["json"] = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
            pairs = [*pairs, ("Accept", "application/json, text/event-stream")]
        return (client or self.http).post(base + (path or self.path), headers=pairs, **options)

    def _forms(self) -> None:
        mine, url = self._mine(), self.bank + self.path
        bearer = {"Authorization": f"Bearer {mine.token}"}
        self._note("as plain Bearer", self._post(self.bank, bearer))
        self._note("at a service that demands proofs", self._post(self.strict, bearer))
        naked = {"Authorization": f"DPoP {mine.token}"}
        self._note("without its proof", self._post(self.bank, naked))
        stranger = ProofKey().proof("POST", url, token=mine.token)
        self._note("with a stranger's proof", self._post(self.bank, {**naked, "DPoP": stranger}))
        if self.dpop:
            good = mine.headers("POST", url)
            self._note("with a proof for another method", self.http.get(url, headers=good))
            self._note("with a proof for another URL", self._post(self.bank, good, path="/only-transfer"))
            assert self._post(self.bank, good).status_code == 200
            self._note("with a proof used before", self._post(self.bank, good))
        self._note("twice in one request", self._post(self.bank, [*bearer.items(), *bearer.items()]))
        self._note("in the query", self._post(self.bank, {}, params={"access_token": mine.token}))
        if self.kind == "mcp":
            other = self._post(self.bank, mine.headers("POST", url), tool="wipe")
        else:
            other = self._post(self.bank, mine.headers("POST", self.bank + "/only-transfer"), path="/only-transfer")
        self._note("for another tool", other)
        altered = {"Authorization": f"{mine.scheme} {mine.token[:-8]}AAAAAAAA"}
        self._note("altered", self._post(self.bank, altered))
        self._note("with none", self._post(self.bank, {}))

    def _note(self, row: str, answer: httpx.Response) -> None:
        code = self.codes.seen.pop() if self.codes.seen else ""
        challenge = answer.headers.get("WWW-Authenticate", "")
        if answer.status_code == 401:
            assert "Bearer" in challenge or "DPoP" in challenge, row
        self.rows[row] = f"{answer.status_code} {code}".strip()


def table() -> Table:
    """The printed form: one column for each way to ask, and each way to send."""
    shown = Table(title="One call's token, at real services")
    shown.add_column("presented")
    columns = {}
    for status, dpop, kind in COLUMNS:
        name = f"{'MCP' if kind == 'mcp' else 'FastAPI'}, {'DPoP' if dpop else 'Bearer'}, {status}"
        columns[name] = Scene(status, dpop, kind).play()
    for name in columns:
        shown.add_column(name)
    rows = dict.fromkeys(row for column in columns.values() for row in column)
    for row in rows:
        shown.add_row(row, *(column.get(row, "–") for column in columns.values()))
    return shown


if __name__ == "__main__":
    Console(width=220).print(table())
    sys.exit(0)
