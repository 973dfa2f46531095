"""Where a token was minted, sent and verified, nothing secret is found in anything that a run leaves behind."""

import asyncio
import base64
import dataclasses
import json
import logging
import pickle
import traceback
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.errors import ParentCommand
from langgraph.types import Command, interrupt
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import BaseModel

from langchain_runtime_authz import ToolProfile, current_call
from langchain_runtime_authz.authz import RuntimeAuthz
from langchain_runtime_authz.credential.issuer import LocalIssuer
from langchain_runtime_authz.credential.signer import SigningKey
from langchain_runtime_authz.credential.verifier import Verifier
from langchain_runtime_authz.telemetry import spans as telemetry
from langchain_runtime_authz.testing import StaticPDP

from ..attack._graphs import agent_graph, asking, call, hand_written, human, node_graph, replying
from ..threads import serving

AUDIENCE = "https://127.0.0.1/bank"
THREAD = {"configurable": {"thread_id": "t"}}
MODES = ["values", "updates", "messages", "custom", "debug", "checkpoints", "tasks"]
MARKS = ("__authz", "runtime-authz-run", "RunHandle(", "<Ticket", "<CallCredential", "BEGIN PRIVATE KEY", "BEGIN EC PRIVATE")


class Bank:
    """A resource server on loopback that verifies each token while the call is under way."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.verified: list[str] = []
        self.failures: list[BaseException] = []
        self.verifier: Verifier | None = None
        self.url = ""

    def answer(self, request: Any, _: bytes) -> bytes:
        token = request.headers["Authorization"].removeprefix("Bearer ")
        self.tokens.append(token)
        try:
            self.verified.append(self.verifier.verify(token, audience=AUDIENCE, tenant="default").subject)
        except BaseException as exc:
            self.failures.append(exc)
        return f"you sent {token}".encode() if request.path == "/echo" else b'{"paid": true}'

    def pay(self, path: str = "/pay") -> str:
        """What a tool does: ask for the credential of its call, send it, return the answer."""
        credential = current_call().credential(AUDIENCE)
        headers = {"Authorization": f"Bearer {credential.token}", "Idempotency-Key": credential.idempotency_key}
        request = urllib.request.Request(self.url + path, data=b"{}", headers=headers, method="POST")
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode()


@pytest.fixture
def bank() -> Iterator[Bank]:
    made = Bank()
    with serving(made.answer) as server:
        made.url = f"http://127.0.0.1:{server.server_port}"
        yield made


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    # Not the process's provider, which can be set once only.
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(telemetry, "_tracer", provider.get_tracer("test"))
    return exporter


class Recorder(BaseCallbackHandler):
    """Keeps what every callback is given."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("on_"):
            events = object.__getattribute__(self, "events")
            return lambda *args, **kwargs: events.append((name, args, kwargs))
        return object.__getattribute__(self, name)


def texts(value: Any, depth: int = 14, seen: set[int] | None = None) -> Iterator[str]:
    """Every text in a value, as a serialiser would come across it: containers, models, attributes, bytes, repr."""
    seen = seen if seen is not None else set()
    if isinstance(value, str):
        yield value
        return
    if isinstance(value, bytes | bytearray):
        yield bytes(value).decode("latin-1")
        return
    if value is None or isinstance(value, bool | int | float):
        return
    if depth == 0 or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from texts(key, depth - 1, seen)
            yield from texts(item, depth - 1, seen)
        return
    if isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from texts(item, depth - 1, seen)
        return
    yield f"{type(value).__name__} {value!r} {value!s}"
    if isinstance(value, BaseException):
        yield "".join(traceback.format_exception(value))
        yield from texts(value.args, depth - 1, seen)
        yield from texts(value.__cause__, depth - 1, seen)
        yield from texts(value.__context__, depth - 1, seen)
    if isinstance(value, BaseModel):
        yield from texts(dict(value), depth - 1, seen)
        yield from texts(value.model_extra or {}, depth - 1, seen)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from texts({f.name: getattr(value, f.name) for f in dataclasses.fields(value)}, depth - 1, seen)
    elif not isinstance(value, type) and hasattr(value, "__dict__"):
        yield from texts({k: v for k, v in vars(value).items() if not callable(v)}, depth - 1, seen)


def secrets_of(key: ec.EllipticCurvePrivateKey, tokens: list[str]) -> dict[str, str]:
    """What must not be found: tokens in several codings, the key in several codings."""
    number = key.private_numbers().private_value.to_bytes(32, "big")
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    found = {
        "jwk d": base64.urlsafe_b64encode(number).rstrip(b"=").decode(), "key hex": number.hex(),
        "key bytes": number.decode("latin-1"), "key decimal": str(key.private_numbers().private_value),
        "pem": pem.splitlines()[1],
    }
    for i, token in enumerate(tokens):
        signature = token.rsplit(".", 1)[1]
        found[f"token {i}"] = token
        found[f"signature {i}"] = signature
        found[f"signature bytes {i}"] = base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4)).decode("latin-1")
        found[f"signature base64 {i}"] = base64.b64encode(signature.encode()).decode()[:-4]
    return found


def search(where: Mapping[str, Any], secrets: Mapping[str, str], marks: tuple[str, ...] = MARKS) -> list[str]:
    """Which secret or mark stands in which place."""
    hits = []
    for place, value in where.items():
        whole = "\n".join(texts(value))
        hits += [f"{name} in {place}" for name, secret in secrets.items() if secret in whole]
        hits += [f"{mark} in {place}" for mark in marks if mark in whole]
    return hits


class Scene:
    """A run that is recorded in every way there is."""

    def __init__(self, bank: Bank, tmp_path: Path, spans: InMemorySpanExporter, caplog: Any, *, ask: bool = False) -> None:
        caplog.set_level(logging.DEBUG)
        self.bank, self.path, self.spans, self.caplog = bank, tmp_path, spans, caplog
        self.key = ec.generate_private_key(ec.SECP256R1())
        pem = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        issuer = LocalIssuer(SigningKey.from_pem(pem))
        self.pdp = asking("pay") if ask else StaticPDP(True)
        self.authz = RuntimeAuthz(
            pdp=self.pdp, issuer=issuer, audit=tmp_path / "audit.jsonl",
            profiles={
                "pay": ToolProfile(effect="pay", sink="external", audience=(AUDIENCE,)),
                "ask_agent": ToolProfile(effect="write", sink="internal"),
            },
        )
        bank.verifier = Verifier(
            issuer=issuer.issuer, jwks=issuer.jwks(),
            status=lambda claims: self.authz.ledger.status(claims["tenant"], claims["jti"]),
        )
        self.recorder, self.collector = Recorder(), RunCollectorCallbackHandler()
        self.left: dict[str, Any] = {}
        self.handles: list[Any] = []

    @property
    def config(self) -> dict[str, Any]:
        return {**THREAD, "callbacks": [self.recorder, self.collector], "metadata": {"mine": "x"}, "tags": ["tag"]}

    def graph(self, kind: str, make: Any, saver: Any) -> Any:
        """`make` is the tool, in a graph of some kind, protected."""
        pay = call("pay", {"to": "bob"}, "call-pay")
        if kind == "hand":
            graph = hand_written(replying([pay]), [make], checkpointer=saver)
        elif kind == "agent":
            graph = agent_graph(replying([pay]), [make], checkpointer=saver)
        elif kind == "subgraph":
            graph = node_graph(hand_written(replying([pay]), [make], name="inner"), checkpointer=saver)
        else:
            inner = agent_graph(replying([pay]), [make], name="inner")

            @tool
            def ask_agent(request: str) -> str:
                """Ask the other agent."""
                return str(inner.invoke({"messages": [HumanMessage(request)]})["messages"][-1].content)

            outer = replying([call("ask_agent", {"request": "pay"}, "call-ask")])
            graph = agent_graph(outer, [ask_agent], name="outer", checkpointer=saver)
        return self.authz.protect(graph)

    def play(self, graph: Any, inputs: list[Any]) -> None:
        """Each input in a run of its own, streamed in every mode; then all that is left is looked at."""
        for i, given in enumerate(inputs):
            chunks: list[Any] = []
            self.left[f"stream {i}"] = chunks
            with self.authz.run(subject="alice", task="Pay") as run:
                try:
                    chunks.extend(graph.stream(given, self.config, stream_mode=MODES, subgraphs=True))
                except Exception as exc:
                    self.left[f"error {i}"] = exc
                self.handles += [repr(run), pickle.dumps(run)]
        self.left["state"] = graph.get_state(THREAD, subgraphs=True)
        self.left["history"] = list(graph.get_state_history(THREAD))

    async def aplay(self, graph: Any, inputs: list[Any]) -> None:
        """The same on the asynchronous road, with events in place of one of the streams."""
        for i, given in enumerate(inputs):
            chunks: list[Any] = []
            self.left[f"stream {i}"] = chunks
            async with self.authz.run(subject="alice", task="Pay"):
                try:
                    if i == 0:
                        async for chunk in graph.astream(given, self.config, stream_mode=MODES, subgraphs=True):
                            chunks.append(chunk)
                    else:
                        async for event in graph.astream_events(given, self.config, version="v2"):
                            chunks.append(event)
                except Exception as exc:
                    self.left[f"error {i}"] = exc
        self.left["state"] = await graph.aget_state(THREAD, subgraphs=True)
        self.left["history"] = [s async for s in graph.aget_state_history(THREAD)]

    def verdict(self, saver: Any = None) -> list[str]:
        """What was found where; everything that is searched is shown to hold something."""
        self.left["callbacks"] = self.recorder.events
        self.left["runs"] = [r.model_dump() for r in self.collector.traced_runs]
        self.left["files"] = {p.name: p.read_bytes() for p in self.path.iterdir() if p.is_file()}
        self.left["log"] = self.caplog.text
        self.left["spans"] = [s.to_json() for s in self.spans.get_finished_spans()]
        self.left["requests"] = [r.to_json() for r in self.pdp.requests]
        self.left["ledger"] = {k: v for k, v in vars(self.authz.ledger).items() if k != "_lock"}
        if isinstance(saver, InMemorySaver):
            self.left["saver"] = (dict(saver.storage), dict(saver.writes), dict(saver.blobs))
        for place in ("callbacks", "runs", "files", "spans", "requests", "state", "history", "stream 0"):
            assert self.left[place], place
        # The searched places do hold what the run was about.
        assert "call-pay" in "\n".join(texts(self.left["callbacks"]))
        assert "call-pay" in "\n".join(texts(self.left["stream 0"]))
        secrets = secrets_of(self.key, self.bank.tokens)
        return search(self.left, secrets) + search({"handles": self.handles}, secrets, ())

    def assert_used(self, count: int = 1) -> None:
        """The bank received verifiable tokens while they lived; now they are dead."""
        assert self.bank.failures == [] and self.bank.verified == ["alice"] * count
        for token in self.bank.tokens:
            payload = token.split(".")[1]
            jti = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["jti"]
            assert self.authz.ledger.status("default", jti) == "ended"


def paying(bank: Bank) -> Any:
    @tool
    def pay(to: str) -> str:
        """Pay somebody."""
        return bank.pay()

    return pay


def apaying(bank: Bank) -> Any:
    @tool
    async def pay(to: str) -> str:
        """Pay somebody."""
        return await asyncio.to_thread(bank.pay)

    return pay


KINDS = ["hand", "agent", "subgraph", "agent_as_tool"]
APPROVE = Command(resume={"decisions": [{"type": "approve"}]})


@pytest.mark.parametrize(("how", "kind"), [*(("sync", kind) for kind in KINDS), *(("async", kind) for kind in KINDS[:3])])
@pytest.mark.parametrize("store", ["memory", "sqlite"])
@pytest.mark.parametrize("ask", [False, True])
async def test_nothing_secret_is_left(how: str, kind: str, store: str, ask: bool, bank: Bank, tmp_path: Path, spans: Any, caplog: Any) -> None:
    """In all stream modes, with and without a question: no token, key or handle anywhere."""
    scene, file = Scene(bank, tmp_path, spans, caplog, ask=ask), str(tmp_path / "c.db")
    given = [human(), *([APPROVE] if ask else [])]
    async with AsyncExitStack() as stack:
        saver: Any = InMemorySaver()
        if store == "sqlite" and how == "sync":
            saver = stack.enter_context(SqliteSaver.from_conn_string(file))
        elif store == "sqlite":
            saver = await stack.enter_async_context(AsyncSqliteSaver.from_conn_string(file))
        if how == "sync":
            await asyncio.to_thread(lambda: scene.play(scene.graph(kind, paying(bank), saver), given))
        else:
            await scene.aplay(scene.graph(kind, apaying(bank), saver), given)
        assert scene.verdict(saver) == []
    assert not [k for k in scene.left if k.startswith("error")]
    scene.assert_used()


@dataclasses.dataclass
class Receipt:
    """A result that is no JSON."""

    sent: str


def _raised(error: BaseException) -> Any:
    raise error


# What a tool can do with its token that the careless tools of tests/attack do not.
LEAKS: dict[str, Callable[[Bank, str], Any]] = {
    "echo": lambda bank, token: bank.pay("/echo"),
    "interrupt": lambda bank, token: interrupt({"is this yours": token}),
    "parent command": lambda bank, token: _raised(ParentCommand(Command(update={"messages": [HumanMessage(token)]}))),
    "error group": lambda bank, token: _raised(ExceptionGroup("several", [ValueError(token), OSError(2, token)])),
    "credential itself": lambda bank, token: current_call().credential(AUDIENCE),
}


@pytest.mark.parametrize("kind", ["hand", "agent"])
@pytest.mark.parametrize("how", LEAKS)
def test_tool_that_gives_its_token_away(kind: str, how: str, bank: Bank, tmp_path: Path, spans: Any, caplog: Any) -> None:
    """A tool that echoes its token, in a result or an error: the token is taken out before anybody sees it."""

    @tool
    def pay(to: str) -> Any:
        """Pay somebody."""
        if how != "echo":
            bank.pay()
        return LEAKS[how](bank, current_call().credential(AUDIENCE).token)

    scene = Scene(bank, tmp_path, spans, caplog)
    saver = InMemorySaver()
    scene.play(scene.graph(kind, pay, saver), [human()])
    # Its text form is shown where a tool returns the credential itself; it does not hold the token.
    assert [hit for hit in scene.verdict(saver) if not hit.startswith("<CallCredential")] == []
    scene.assert_used()


@pytest.mark.parametrize("place", ["state", "stream", "callback", "sqlite", "audit", "log", "span", "error"])
def test_searcher_finds_what_is_planted(place: str, bank: Bank, tmp_path: Path, spans: Any, caplog: Any) -> None:
    """Positive control: a token put on purpose into any one of the places is found there."""
    scene = Scene(bank, tmp_path, spans, caplog)
    token = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9." + "c2lnbmF0dXJl" * 7
    bank.tokens.append(token)
    planted = call("pay", {"to": token if place in ("state", "stream", "callback", "sqlite") else "bob"}, "call-pay")

    @tool
    def pay(to: str) -> str:
        """Pay somebody."""
        if place == "log":
            logging.getLogger("x").debug("sent %s", token)
        if place == "span":
            telemetry._tracer.start_span(token).end()
        if place == "error":
            raise ValueError(token)
        return "paid"

    with SqliteSaver.from_conn_string(str(tmp_path / "c.db")) as saver:
        graph = scene.authz.protect(hand_written(replying([planted]), [pay], checkpointer=saver))
        scene.play(graph, [human()])
        if place == "audit":
            with (tmp_path / "audit.jsonl").open("a") as file:
                file.write(token)
        hits = scene.verdict()
    names = {
        "state": "state", "stream": "stream 0", "callback": "callbacks", "sqlite": "files", "audit": "files", "log": "log",
        "span": "spans", "error": "error 0",
    }
    assert f"token 0 in {names[place]}" in hits and f"signature 0 in {names[place]}" in hits


def test_searcher_finds_keys_and_handles() -> None:
    """Positive control: a private key in any coding, and a handle in a config."""
    key = ec.generate_private_key(ec.SECP256R1())
    secrets = secrets_of(key, [])
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    assert search({"a": {"x": [pem]}}, secrets) == ["pem in a", "BEGIN PRIVATE KEY in a"]
    number = key.private_numbers().private_value
    assert search({"a": Receipt(str(number))}, secrets) == ["key decimal in a"]
    assert search({"a": [{"configurable": {"__authz": 1}}]}, secrets) == ["__authz in a"]
