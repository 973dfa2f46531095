"""What the process was seen to do for nodes and tools: recorded, in `coverage`, and refused by the tripwire."""

import contextlib
import http.client
import os
import subprocess
import sys

import httpx

from tests.threads import serving

from ._kit import *

how = params("sync", "async")


@pytest.fixture
def port() -> Iterator[int]:
    """The port of a server on loopback that answers everything."""
    with serving(lambda *_: 200) as server:
        yield server.server_port


def observing(strict: bool = False, **options: Any) -> RuntimeAuthz:
    authz = authz_with(StaticPDP(True), **options)
    authz.observe_process(strict=strict)
    return authz


def seen(authz: RuntimeAuthz) -> list[tuple[str, str]]:
    """Who was seen to do what, in order."""
    return [(r["by"], r["what"]) for r in authz.audit.records if r["kind"] == "observation"]  # type: ignore[attr-defined]


def post(port: int) -> None:
    connection = http.client.HTTPConnection("localhost", port)
    connection.request("POST", "/")
    connection.close()


async def apost(port: int) -> None:
    async with httpx.AsyncClient() as client:
        await client.post(f"http://127.0.0.1:{port}/")


def acts(tmp_path: Path, port: int) -> dict[str, Any]:
    """Effects by kind."""
    (tmp_path / "old").touch()
    return {
        "connect": lambda: post(port), "write": lambda: (tmp_path / "new").write_text("x"),
        "delete": lambda: os.remove(tmp_path / "old"), "program": lambda: subprocess.run([sys.executable, "-c", ""], check=True),
    }


@pytest.mark.parametrize("kind", ["connect", "write", "delete", "program"])
def test_a_nodes_effect_is_recorded_and_named(kind: str, tmp_path: Path, port: int) -> None:
    """An audit record with a digest of the target, and a row that a baseline must accept."""
    act = acts(tmp_path, port)[kind]
    authz = observing()
    graph = authz.protect(node_graph(in_run(act)))
    told(authz, graph, human())
    assert ("node step", kind) in seen(authz)
    assert all(r["name"].startswith("sha256:") for r in authz.audit.records if r["kind"] == "observation")  # type: ignore[attr-defined]
    (row,) = [r for r in authz.coverage(graph).rows if r.kind == "effect"]
    assert not row.governed and f"observed: {kind} " in row.note
    with pytest.raises(ConfigError, match="observed"):
        authz.coverage(graph).raise_if_ungoverned()


def test_an_asynchronous_client_is_seen(port: int) -> None:
    """A client on asyncio connects for the node that awaits it."""
    authz = observing()
    graph = authz.protect(node_graph(in_run(lambda: None, lambda: apost(port))))
    run_as(authz, graph, human(), how="async")
    assert ("node step", "connect") in seen(authz)


def test_mail_is_seen_with_its_recipient() -> None:
    """Where an event carries content, the target is finer than a host."""
    authz = observing()
    graph = authz.protect(node_graph(in_run(lambda: sys.audit("smtplib.send", None, b"rcpt TO:<eve@x.example>\r\n"))))
    told(authz, graph, human())
    assert [str(one) for one in authz._pep.observer.seen] == ["mail eve@x.example"]


@pytest.mark.parametrize("swallows", [True, False])
def test_strict_stops_a_node_that_acts_undeclared(how: str, swallows: bool, port: int, tmp_path: Path, ran: Any) -> None:
    """The effect does not happen, and the graph stops though the node goes on. The twin, not strict, acts."""

    def act() -> None:
        with contextlib.suppress(OSError) if swallows else nullcontext():
            (tmp_path / "x").write_text("harm")
        ran.append("after")

    for strict in (True, False):
        authz = observing(strict)
        graph = authz.protect(node_graph(in_run(act)))
        if strict:
            assert code_of(lambda: run_as(authz, graph, human(), how=how), AuthzHalt) == "undeclared"
            assert not (tmp_path / "x").exists()
            assert [r["refused"] for r in authz.audit.records if r["kind"] == "observation"] == [True]  # type: ignore[attr-defined]
        else:
            run_as(authz, graph, human(), how=how)
    assert (tmp_path / "x").read_text() == "harm"
    assert ran == ["after"] * (2 if swallows else 1)


def test_strict_lets_declared_effects_pass(port: int, tmp_path: Path) -> None:
    """A declared effect and a tool do what they are for; a tool that reads may connect, and nothing else."""
    authz = observing(strict=True, profiles={**PROFILES, "save": {"effect": "write"}})
    save = authz.effect("save")(lambda text: (tmp_path / "saved").write_text(text))

    @tool
    def read(path: str) -> str:
        """Read."""
        post(port)
        if path == "bad":
            (tmp_path / "bad").touch()
        return path

    graph = authz.protect(hand_written(replying([READ]), [read]))
    told(authz, graph, human())
    told(authz, authz.protect(node_graph(in_run(lambda: save("x")))), human())
    assert (tmp_path / "saved").read_text() == "x"
    bad = authz.protect(hand_written(replying([call("read", {"path": "bad"}, "1")]), [read]))
    with contextlib.suppress(AuthzDenied):
        told(authz, bad, human())
    assert not (tmp_path / "bad").exists()


def test_a_model_may_connect(port: int) -> None:
    """A connection while a model is asked is the model's."""

    def respond(messages: list[Any]) -> AIMessage:
        post(port)
        return AIMessage("done")

    authz = observing(strict=True)
    graph = authz.protect(hand_written(ScriptedChatModel(script=[respond]), [read_tool([])]))
    told(authz, graph, human())
    assert {by for by, _ in seen(authz)} == {"model agent"}
    authz.coverage(graph).raise_if_ungoverned()


def test_an_honest_agent_is_no_finding(how: str, tmp_path: Path, ran: Any) -> None:
    """Ledger, audit file, credentials and lazy imports are not the nodes' effects."""
    authz = observing(strict=True, ledger=SqliteLedger(tmp_path / "l.db"), audit=tmp_path / "audit.jsonl")
    graph = authz.protect(hand_written(replying([PAY]), [pay_tool(ran)], checkpointer=InMemorySaver()))
    assert_went_on(run_as(authz, graph, human(), THREAD, how=how))
    assert ran == [PAID] and not authz._pep.observer.seen


def test_a_thread_without_the_run_is_nobodys(tmp_path: Path) -> None:
    """It is recorded while a run is open, and never refused."""
    authz = observing(strict=True)

    def act() -> None:
        os.path.exists(tmp_path)
        with open(os.devnull, "w"):
            pass
        side_by_side(lambda: (tmp_path / "x").write_text("x"))

    graph = authz.protect(node_graph(in_run(act)))
    told(authz, graph, human())
    assert (tmp_path / "x").exists() and seen(authz) == [("thread (unattributed)", "write")]
    assert "threads without a run: write" in str(authz.coverage(graph)).replace("\n", " ").replace("        ", "")


def test_without_observation_nothing_is_recorded(tmp_path: Path, port: int) -> None:
    """Another instance's runs, and code outside every run, are none of its business."""
    observing()
    other = authz_with(StaticPDP(True))
    told(other, other.protect(node_graph(in_run(lambda: post(port)))), human())
    assert seen(other) == []
    assert "pooled connections" not in str(other.coverage(node_graph(lambda s: {})))


def test_the_report_names_what_an_observation_cannot_see() -> None:
    """"Not seen" is never "has none"."""
    authz = observing()
    graph = authz.protect(node_graph(in_run(lambda: None)))
    told(authz, graph, human())
    shown = str(authz.coverage(graph))
    assert "not seen: pooled connections, C libraries, child processes" in shown and "none" not in shown
