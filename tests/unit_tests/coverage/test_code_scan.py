"""What a static look at a node's code sees: effects by kind, through helpers and closures, and never "none"."""

import json
import os
import smtplib
import subprocess
import urllib.parse
import urllib.request
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import requests
from langgraph.config import get_store
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.store.memory import InMemoryStore

from langchain_runtime_authz import RuntimeAuthz
from langchain_runtime_authz.coverage.code_scan import acting_nodes
from tests.attack._graphs import node_graph, pay_tool

AUTHZ = RuntimeAuthz(profiles={"mail": {"effect": "send"}})
SEND = AUTHZ.effect("mail")(lambda: requests.post("http://x"))


def helper() -> None:
    requests.post("http://x")


def deep(depth: int = 3) -> None:
    helper() if depth else deep(depth - 1)


def mails(state: Any) -> None:
    with smtplib.SMTP("mail.example") as server:
        server.sendmail("a", "b", "c")


def imports(state: Any) -> None:
    import http.client as client

    client.HTTPConnection("x").request("GET", "/")


def runs(state: Any) -> None:
    subprocess.run(["ls"], check=True)
    os.remove("x")


def writes(state: Any) -> None:
    with open("x", "w") as file:
        file.write("y")


def reads(state: Any) -> Any:
    with open("w") as file:  # a name is no mode
        return json.load(file)


def evaluates(state: Any) -> None:
    exec(state["code"], {})


def remembers(state: Any) -> None:
    get_store().put(("a",), "b", {})


def pure(state: Any) -> Any:
    try:
        return {"at": urllib.parse.quote(jwt.encode({}, "x"))}
    except httpx.HTTPError:
        return {"put": state["store_name"]}


def blocks(state: Any) -> None:
    with AUTHZ.effect("mail", to="bob"):
        requests.post("http://x")


def declared(state: Any) -> None:
    SEND()


class Client:
    """A node with a client of its own."""

    def __init__(self) -> None:
        self.session = httpx.Client()

    def __call__(self, state: Any) -> None:
        self.post()

    def post(self) -> None:
        self.session.post("http://x")


class Mail:
    """A helper that a node holds, makes, is given or inherits from."""

    def __init__(self) -> None:
        self.client = httpx.Client()

    def send(self) -> None:
        self.client.post("http://x")

    def render(self) -> str:
        return "text"


class Slots:
    __slots__ = ("mail",)

    def __init__(self) -> None:
        self.mail = Mail()


class Guarded:
    """Its tools decide by themselves."""

    pay = pay_tool([])
    notify = AUTHZ.effect("mail")(mails)

    @property
    def broken(self) -> Any:
        raise RuntimeError


class Logged(Mail):
    def send(self) -> None:
        os.remove("x")
        super().send()


class Nodes:
    """A node's object whose helpers act."""

    def __init__(self) -> None:
        self.mail, self.several, self.slots, self.logged = Mail(), [Mail()], Slots(), Logged()
        self.tools = Guarded()

    @property
    def own(self) -> Mail:
        return self.mail

    @cached_property
    def kept(self) -> Mail:
        return self.mail

    def held(self, state: Any) -> None:
        self.mail.send()

    def listed(self, state: Any) -> None:
        for mail in self.several:
            mail.send()

    def slotted(self, state: Any) -> None:
        self.slots.mail.send()

    def by_property(self, state: Any) -> None:
        self.own.send()

    def by_cache(self, state: Any) -> None:
        self.kept.send()

    def given(self, state: Any) -> None:
        given(self.mail)

    def renders(self, state: Any) -> None:
        self.mail.render()

    def guarded(self, state: Any) -> None:
        self.tools.pay.invoke({})
        self.tools.notify(state)
        self.tools.broken

    def inherited(self, state: Any) -> None:
        self.logged.send()


def given(mail: Mail) -> None:
    mail.send()


@lru_cache
def made() -> Mail:
    return Mail()


def imports_own(state: Any) -> None:
    from tests.unit_tests.coverage.test_code_scan import helper as own

    own()


NODES = Nodes()
SENDS = ["network (httpx.Client)"]


def closure() -> Any:
    client = httpx.Client()
    return lambda state: client.post("http://x")


CASES: dict[str, tuple[Any, list[str]]] = {
    "helper": (lambda s: helper(), ["network (requests.post)"]), "deep": (lambda s: deep(), ["network (requests.post)"]),
    "partial": (partial(lambda x, s: helper(), 1), ["network (requests.post)"]),
    "urllib": (lambda s: urllib.request.urlopen("http://x"), ["network (urllib.urlopen)"]),
    "mail": (mails, ["mail (smtplib.SMTP)"]), "imported inside": (imports, ["network (http.client)"]),
    "process": (runs, ["process (subprocess.run)", "write (os.remove)"]), "write": (writes, ["write (open)"]),
    "path": (lambda s: Path("x").write_text("y"), ["write (write_text)"]), "read": (reads, []),
    "code": (evaluates, ["code (exec)"]), "store": (remembers, ["store (store.put)"]),
    "object": (Client(), ["network (httpx.Client)"]),
    "closure": (closure(), ["network (httpx.Client)", "network (httpx.post)"]), "held object": (NODES.held, SENDS),
    "object in a list": (NODES.listed, SENDS), "object in a slot": (NODES.slotted, SENDS),
    "property": (NODES.by_property, SENDS), "cached property": (NODES.by_cache, SENDS),
    "handed on": (NODES.given, SENDS), "inherited": (NODES.inherited, ["network (httpx.Client)", "write (os.remove)"]),
    "made": (lambda s: Mail().send(), SENDS), "made elsewhere": (lambda s: made().send(), SENDS),
    "imported from the application": (imports_own, ["network (requests.post)"]),
    "harmless method of a client's holder": (NODES.renders, []),
    "tools and declared effects of an object": (NODES.guarded, []), "pure": (pure, []), "declared": (declared, []),
    "blocks": (blocks, []),
}


@pytest.mark.parametrize("case", sorted(CASES))
def test_effects_in_a_nodes_code(case: str) -> None:
    """Each is named by kind and by what; nothing is called."""
    node, expected = CASES[case]
    found = {name: [str(s) for s in seen] for name, seen in acting_nodes(node_graph(node)).items()}
    assert {name: sorted(set(seen)) for name, seen in found.items()} == ({"step": expected} if expected else {})


def test_nodes_without_code_of_the_application() -> None:
    """A tool node has rows of its own; a graph's node is that graph's; a declared node is an effect."""
    builder = StateGraph(MessagesState)
    node: Any
    for name, node in (
        ("tools", ToolNode([pay_tool([])])), ("inner", node_graph(remembers)),
        ("own", AUTHZ.effect("run", profile={"effect": "admin"}, arguments=lambda state: {})(evaluates)),
    ):
        builder.add_node(name, node)
        builder.add_edge(START, name)
    assert [*acting_nodes(builder.compile())] == ["step"]


@pytest.mark.parametrize("governed", [True, False])
def test_a_store_is_a_row_until_its_writes_have_a_profile(governed: bool) -> None:
    """With it, a node that writes there needs no declaration of its own."""
    authz = RuntimeAuthz(profiles={"store.put": {"effect": "write"}} if governed else None)
    report = authz.coverage(authz.protect(node_graph(remembers, store=InMemoryStore())))
    found = [(r.kind, r.name, r.layers) for r in report.rows if r.kind in ("store", "effect")]
    assert found == (
        [("store", "InMemoryStore", ("store gate",))] if governed else [("store", "InMemoryStore", ()), ("effect", "step", ())]
    )


def test_what_is_not_seen_is_a_number() -> None:
    """A node without a finding is never said to have no effects, and the lines fit a terminal."""
    authz = RuntimeAuthz()
    report = authz.coverage(authz.protect(node_graph(pure)))
    report.raise_if_ungoverned()
    assert "1 node runs code that is not seen" in str(report) and "none" not in str(report)
    assert [r.note for r in report.rows if r.kind == "node"] == ["its code is not seen; not followed: jwt"]
    declares = str(authz.coverage(authz.protect(node_graph(AUTHZ.effect("mail", arguments=lambda state: {})(mails)))))
    assert "declared effect" in declares
