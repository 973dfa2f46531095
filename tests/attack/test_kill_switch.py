"""The kill switch stops everything, whatever else is down."""

from langchain_runtime_authz.pep.kill_switch import KILL_SWITCH, KillSwitch
from tests.cli import cli

from ._kit import *


def paying(authz: RuntimeAuthz, ran: list[Any], **options: Any) -> Any:
    return authz.protect(hand_written(replying([PAY]), [pay_tool(ran)], **options))


def test_a_run_does_not_start(tmp_path: Path, ran: Any) -> None:
    """Denied at the root, and let in again when it is released."""
    authz = authz_with(StaticPDP(True), kill_switch=tmp_path / "kill")
    graph = paying(authz, ran)
    KillSwitch(tmp_path / "kill").engage("drill")
    assert code_of(lambda: told(authz, graph, human())) == "killed"
    assert ran == [] and KillSwitch(tmp_path / "kill").release() is True
    told(authz, graph, human())
    assert ran == [PAID]


def test_a_node_that_asks_its_model_again_is_stopped(tmp_path: Path) -> None:
    """Although the model's permit is kept for the run."""
    model, answers = replying(), list[Any]()

    def loop(state: Any) -> Any:
        for _ in range(2):
            answers.append(model.invoke(state["messages"]))
            (tmp_path / "kill").touch()

    authz, graph = protecting(node_graph(loop), StaticPDP(True), kill_switch=tmp_path / "kill")
    assert code_of(lambda: told(authz, graph, human())) == "killed"
    assert len(answers) == 1


def test_it_is_engaged_between_judgement_and_claim(tmp_path: Path, ran: Any) -> None:
    """The last look is at the point of no return."""
    switch = tmp_path / "kill"

    def permit(request: Any) -> bool:
        if request.resource.id == "pay":
            switch.touch()
        return True

    authz, graph = protecting(hand_written(replying([READ], [PAY]), [pay_tool(ran), read_tool([])]), StaticPDP(permit), kill_switch=switch)
    with authz.run(subject="alice"), pytest.raises(AuthzDenied):
        graph.invoke(human())
    assert ran == [] and reasons(authz, "pay") == ["killed"]


def test_tokens_are_dead_while_it_is_engaged(tmp_path: Path) -> None:
    """For whoever asks this instance about a jti."""
    authz = authz_with(StaticPDP(True), kill_switch=tmp_path / "kill")
    with authz.session(subject="alice", task="Pay") as session:
        claims = {"tenant": "default", "jti": session.jti}
        assert authz._status(claims) == "live"
        (tmp_path / "kill").touch()
        assert authz._status(claims) == "revoked"


class Down:
    name, revision = "down", "0"

    def evaluate(self, *args: Any) -> Any:
        raise ConnectionError

    aevaluate = load = aload = commit = acommit = status = astatus = evaluate


def test_it_works_while_everything_else_is_down(tmp_path: Path, ran: Any) -> None:
    """Its own code is what the operator reads, not that of the outage."""
    authz = authz_with(Down(), ledger=Down(), kill_switch=tmp_path / "kill")
    guarded = authz.guard(pay_tool(ran))
    graph = paying(authz, ran)
    (tmp_path / "kill").touch()
    with authz.run(subject="alice"):
        for attempt in (lambda: guarded.invoke({"to": "bob", "amount": 5}), lambda: graph.invoke(human())):
            assert code_of(lambda: attempt()) == "killed"
    assert ran == []


def test_it_works_while_the_file_of_the_ledger_is_gone(tmp_path: Path, ran: Any) -> None:
    """Whoever starts, and whoever had started, is told of the switch; after its release of the ledger."""
    file, switch = tmp_path / "ledger.db", KillSwitch(tmp_path / "kill")
    with SqliteLedger(file) as ledger:
        authz = authz_with(StaticPDP(True), ledger=ledger, kill_switch=tmp_path / "kill")
        graph = paying(authz, ran)
        session = authz.session(subject="alice", task="Pay")
        authz._pep.evaluator.pdp = Down()
        file.rename(tmp_path / "away.db")
        for engaged, code in ((True, "killed"), (False, "ledger_unavailable")):
            switch.engage("drill") if engaged else switch.release()
            assert session.decide("pay", {"to": "bob", "amount": 5}).reason == code
            assert code_of(lambda: told(authz, graph, human())) == code
    assert ran == []


def test_what_can_not_be_looked_at_is_engaged(tmp_path: Path) -> None:
    """A folder that is gone, or a file in its place: nobody could engage it any more."""
    folder = tmp_path / "run"
    folder.mkdir()
    switch = KillSwitch(folder / "kill")
    assert switch.engaged is False
    folder.rmdir()
    assert switch.engaged is True
    folder.write_text("no folder")
    assert switch.engaged is True
    with pytest.raises(ConfigError, match="folder"):
        KillSwitch(folder / "kill")


@pytest.mark.parametrize("engaged", [True, False], ids=["engaged", "twin: not engaged"])
def test_code_that_changes_the_directory_does_not_lose_it(engaged: bool, tmp_path: Path, ran: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path is of the directory in which the application began. A daemon or a tool may go elsewhere."""
    (tmp_path / "workspace").mkdir()
    monkeypatch.chdir(tmp_path)
    authz = authz_with(StaticPDP(True), kill_switch="kill")
    graph = paying(authz, ran)
    monkeypatch.chdir("workspace")
    if engaged:
        KillSwitch(tmp_path / "kill").engage("incident")
        assert code_of(lambda: told(authz, graph, human())) == "killed"
    else:
        told(authz, graph, human())
    assert ran == ([] if engaged else [PAID])


def test_the_environment_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators set it without touching the application."""
    monkeypatch.setenv(KILL_SWITCH, str(tmp_path / "kill"))
    (tmp_path / "kill").touch()
    authz = authz_with(StaticPDP(True))
    with authz.run(subject="alice"), pytest.raises(AuthzDenied):
        paying(authz, []).invoke(human())


def test_the_command_line(tmp_path: Path) -> None:
    """Engage keeps the first reason; status tells by its exit code; release lifts it."""
    file = ["--file", str(tmp_path / "kill")]
    assert cli("kill", "status", *file).exit_code == 0
    assert "incident 42" in cli("kill", "engage", *file, "--reason", "incident 42").output
    assert "incident 42" in cli("kill", "engage", *file, "--reason", "other").output
    status = cli("kill", "status", *file)
    assert (status.exit_code, "incident 42" in status.output) == (1, True)
    assert "released" in cli("kill", "release", *file).output
    assert "not engaged" in cli("kill", "release", *file).output
    for held in (b"", b"2026-11-28T19:35:23Z why\n"):  # by `touch`; by `engage`
        (tmp_path / "kill").write_bytes(held)
        assert "released" in cli("kill", "release", *file).output
    for held in (b"tools: {}\n", b"\xff\x00", b"2026-11-28", b"{" * 10_000):
        (tmp_path / "kill").write_bytes(held)
        refused = cli("kill", "release", *file)
        assert (refused.exit_code, "is not the file of a kill switch" in refused.output) == (2, True)
        assert (tmp_path / "kill").read_bytes() == held
    missing = cli("kill", "engage", "--file", str(tmp_path / "no" / "kill"))
    assert (missing.exit_code, missing.output.startswith("error: config")) == (2, True)
