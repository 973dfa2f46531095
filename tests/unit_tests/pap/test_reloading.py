"""A policy that changes while it decides: whole, forward, and never to something worse."""

import asyncio
import errno
import fcntl
import gc
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver

from langchain_runtime_authz import RuntimeAuthz, profile
from langchain_runtime_authz._locks import file_lock
from langchain_runtime_authz.errors import AuthzDenied, Code, ConfigError
from langchain_runtime_authz.evaluation import Decision
from langchain_runtime_authz.pap.bundle import Bundle, pack, read_bundle
from langchain_runtime_authz.pap.reloading import ReloadingPDP
from langchain_runtime_authz.pdp.base import PDP, BatchPDP, Evaluator, ObserveOnly
from langchain_runtime_authz.pdp.compose import CandidatePDP, CircuitBreaker, DenyOverrides
from langchain_runtime_authz.testing import ScriptedChatModel
from langchain_runtime_authz.testing.example_request import example_request
from langchain_runtime_authz.testing.static_pdp import StaticPDP
from tests.bundles import Key, files, mount, put
from tests.threads import until

KEY = Key()
DENY_WRITES = {"effects": {"write": "deny"}}
REQUEST = example_request()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return put(tmp_path / "policy.tar.gz", files(1))


@pytest.fixture
def following(source: Path) -> Iterator[Callable[..., ReloadingPDP]]:
    """PDPs that look only when they are told to."""
    made: list[ReloadingPDP] = []

    def follow(path: Path = source, **options: object) -> ReloadingPDP:
        made.append(ReloadingPDP(path, **{"poll": 3600, "pool_size": 2, **options}))
        return made[-1]

    yield follow
    for pdp in made:
        pdp.close()


def ask(pdp: PDP) -> Decision:
    return Evaluator(pdp).evaluate([REQUEST.to_json()])[0]


def test_another_directory_has_no_policy_for_it(
    source: Path, following: Callable[..., ReloadingPDP], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tool may work in an agent's own directory, where anything may lie under the source's name."""
    monkeypatch.chdir(tmp_path)
    pdp = following(Path(source.name))
    (tmp_path / "workspace").mkdir()
    put(tmp_path / "workspace" / source.name, files(9, DENY_WRITES))
    monkeypatch.chdir("workspace")
    assert not pdp.reload() and pdp.revision.startswith("1@")


def test_a_new_revision_decides_and_is_named(source: Path, following: Callable[..., ReloadingPDP]) -> None:
    """Answers bear the bundle's number and digest, one by one, in a batch and asynchronously."""
    pdp = following()
    assert isinstance(pdp, BatchPDP)
    first = ask(pdp)
    assert first.permit and first.policy_revision == pdp.revision
    assert pdp.revision.startswith("1@")
    put(source, files(2, DENY_WRITES))
    assert pdp.reload() and not pdp.reload()
    second = ask(pdp)
    assert (second.outcome, second.policy_revision) == ("deny", pdp.revision) and pdp.revision.startswith("2@")
    batch = Evaluator(pdp).evaluate([REQUEST.to_json(), REQUEST.to_json()])
    assert {(d.outcome, d.policy_revision) for d in batch} == {("deny", pdp.revision)}
    (decided,) = asyncio.run(Evaluator(pdp).aevaluate([REQUEST.to_json()]))
    assert decided.policy_revision == pdp.revision


def test_the_watch_finds_it(source: Path, following: Callable[..., ReloadingPDP]) -> None:
    pdp = following(poll=0.01)
    put(source, files(2, DENY_WRITES))
    until(lambda: pdp.revision.startswith("2@"))
    assert not ask(pdp).permit


def test_a_mounted_config_map_is_followed(tmp_path: Path, following: Callable[..., ReloadingPDP]) -> None:
    """The bundle is a link there, and an update swaps the one through which it leads, as `current -> release-2` does."""
    policies = tmp_path / "policies"
    mount(policies, {"b.tar.gz": pack(files(1, key=KEY))}, "2026_1")
    pdp = following(policies / "b.tar.gz", keys={"default": KEY.public})
    assert ask(pdp).permit and not pdp.reload()
    mount(policies, {"b.tar.gz": pack(files(2, DENY_WRITES, key=KEY))}, "2026_2")
    assert pdp.reload() and (ask(pdp).outcome, pdp.revision[:2]) == ("deny", "2@")
    mount(policies, {"b.tar.gz": pack(files(1, key=KEY))}, "2026_3")  # rolled back
    with pytest.raises(ConfigError, match="policy_older"):
        pdp.reload()
    assert pdp.revision.startswith("2@")


REFUSED: dict[str, tuple[dict[str, bytes] | bytes | None, Code]] = {
    "older": (files(4, key=KEY), Code.POLICY_OLDER),
    "another of the same number": (files(5, DENY_WRITES, key=KEY), Code.POLICY_OLDER),
    "unsigned": (files(6), Code.POLICY_UNSIGNED), "signed by another": (files(6, key=Key()), Code.POLICY_UNSIGNED),
    "no archive": (b"not gzip", Code.POLICY_INVALID), "gone": (None, Code.POLICY_INVALID),
    "no Wasm": (files(6, wasm=b"\0asm", key=KEY), Code.POLICY_INVALID),
    "its own case fails": (
        files(6, DENY_WRITES, key=KEY, cases=[{"name": "c", "request": json.loads(REQUEST.to_json()), "expect": "permit"}]),
        Code.POLICY_INVALID,
    ),
}


def test_a_refused_policy_forges_no_line_of_the_log(
    source: Path, following: Callable[..., ReloadingPDP], caplog: pytest.LogCaptureFixture
) -> None:
    """The names of its cases are shown, on the line that refuses it."""
    cases = [{"name": "c\nINFO policy 6 decides", "request": json.loads(REQUEST.to_json()), "expect": "permit"}]
    put(source, files(5, key=KEY))
    pdp = following(keys={"default": KEY.public})
    put(source, files(6, DENY_WRITES, key=KEY, cases=cases))
    with pytest.raises(ConfigError, match="INFO policy 6 decides"):
        pdp.reload()
    (line,) = [r.getMessage() for r in caplog.records if "INFO policy 6 decides" in r.getMessage()]
    assert line.isprintable()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_changes_nothing(source: Path, following: Callable[..., ReloadingPDP], name: str) -> None:
    """The last good one stays and decides, the status says why; and the next good one is taken."""
    put(source, files(5, key=KEY))
    pdp = following(keys={"default": KEY.public})
    before = pdp.revision
    made, code = REFUSED[name]
    if made is None:
        source.unlink()
    elif isinstance(made, bytes):
        source.write_bytes(made)
    else:
        put(source, made)
    for _ in range(2):
        with pytest.raises(ConfigError) as caught:
            pdp.reload()
        assert caught.value.code == code
    assert str(code) in pdp.status.refused and (ask(pdp).permit, ask(pdp).policy_revision) == (True, before)
    put(source, files(7, DENY_WRITES, key=KEY))
    assert pdp.reload() and (pdp.status.refused, pdp.status.signed_by) == ("", "default")
    assert not ask(pdp).permit


def test_what_was_refused_is_read_again_only_where_it_changed(
    source: Path, following: Callable[..., ReloadingPDP], monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the watch; it goes on being told, makes no policy fresh, and is looked at again after a minute or when asked."""
    reads: list[Path] = []

    def read(path: Path, keys: object) -> Bundle:
        reads.append(path)
        return read_bundle(path)

    monkeypatch.setattr("langchain_runtime_authz.pap.reloading.read_bundle", read)
    put(source, files(5))
    pdp, late = following(max_staleness=600), [0.0]
    real = time.monotonic
    monkeypatch.setattr("langchain_runtime_authz.pap.reloading.time.monotonic", lambda: real() + late[0])

    def polled() -> tuple[str, int]:
        reads.clear()
        with suppress(ConfigError):
            pdp._poll()
        return pdp.status.refused.partition(":")[0], len(reads)

    put(source, files(4))
    assert [polled() for _ in range(3)] == [(Code.POLICY_OLDER, 1), (Code.POLICY_OLDER, 0), (Code.POLICY_OLDER, 0)]
    source.write_bytes(b"not gzip")
    assert [polled() for _ in range(2)] == [(Code.POLICY_INVALID, 1), (Code.POLICY_INVALID, 0)]
    late[0] = 61
    assert [polled() for _ in range(2)] == [(Code.POLICY_INVALID, 1), (Code.POLICY_INVALID, 0)]
    with pytest.raises(ConfigError):
        pdp.reload()
    assert len(reads) == 1
    late[0] = 601
    assert ask(pdp).reasons == (Code.POLICY_STALE,)
    put(source, files(6, DENY_WRITES))
    pdp._poll()
    assert (ask(pdp).reason, pdp.status.refused) == (Code.EFFECT, "")


def test_what_could_not_be_read_is_read_again(
    source: Path, following: Callable[..., ReloadingPDP], monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A disk that fails for a moment, or a machine too busy for the policy's own cases: nothing changed, and yet."""
    case = {"name": "c", "request": json.loads(REQUEST.to_json()), "expect": "permit"}
    put(source, files(1, cases=[case]))
    pdp = following()
    put(source, files(2, cases=[case]))

    def fails(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    def slow(*_: object) -> object:
        raise TimeoutError

    for place, fault in (("pap.bundle._content", fails), ("pdp.wasm.WasmPDP.evaluate", slow)):
        with monkeypatch.context() as broken:
            broken.setattr(f"langchain_runtime_authz.{place}", fault)
            with pytest.raises(ConfigError):
                pdp._poll()
    pdp._poll()
    assert pdp.revision.startswith("2@")


def test_a_state_that_was_restored_is_looked_at(source: Path, following: Callable[..., ReloadingPDP]) -> None:
    """The bundle is the one that was refused; what was refused about it is gone."""
    pdp = following()
    kept = source.with_name(source.name + ".highest")
    good = kept.read_bytes()
    kept.write_text("?")
    put(source, files(2))
    with pytest.raises(ConfigError, match="restore it"):
        pdp._poll()
    kept.write_bytes(good)
    pdp._poll()
    assert pdp.revision.startswith("2@")


@pytest.mark.parametrize(("options", "code"), [
    ({"at_least": 2}, Code.POLICY_OLDER), ({"keys": {"default": KEY.public}}, Code.POLICY_UNSIGNED),
    ({"keys": {}}, Code.CONFIG), ({"poll": 0}, Code.CONFIG), ({"max_staleness": float("inf")}, Code.CONFIG),
], ids=["older", "unsigned", "no keys", "poll", "staleness"])
def test_there_is_no_start_without_a_policy(
    following: Callable[..., ReloadingPDP], options: dict[str, object], code: Code,
) -> None:
    with pytest.raises(ConfigError) as caught:
        following(**options)
    assert caught.value.code == code


def test_a_policy_that_can_not_be_confirmed_ends(
    source: Path, following: Callable[..., ReloadingPDP], monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beyond the maximum staleness everything is denied, until the source is in order again."""
    pdp = following(max_staleness=60)
    real = time.monotonic
    source.rename(source.with_name("away"))
    with pytest.raises(ConfigError):
        pdp.reload()
    assert ask(pdp).permit
    monkeypatch.setattr("langchain_runtime_authz.pap.reloading.time.monotonic", lambda: real() + 61)
    denied = ask(pdp)
    assert (denied.outcome, denied.reasons, denied.failure) == ("deny", (Code.POLICY_STALE,), "pdp")
    source.with_name("away").rename(source)
    pdp.reload()
    assert ask(pdp).permit


def test_profiles_and_grants_are_of_the_revision(source: Path, following: Callable[..., ReloadingPDP]) -> None:
    """What the guard knows of a tool changes with the policy; a request made under another profile is denied."""
    put(source, files(2, profiles={"book_invoice": {"effect": "write", "sink": "internal", "class": "confidential"}},
                      grants={"clerk": {"tools": ["book_invoice"]}}))  # fmt: skip
    pdp = following()
    authz = RuntimeAuthz(pdp=pdp)
    with authz.session(subject="alice", task="Book the bill", grant="clerk") as session:
        assert session.decide("book_invoice", {}).reason != Code.GRANT_TOOL
        assert session.decide("other", {}).reason == Code.GRANT_TOOL
    with pytest.raises(ConfigError, match="clerk"):
        authz.run(subject="alice", grant="clark")
    assert ask(pdp).permit
    put(source, files(3, profiles={"book_invoice": {"effect": "read", "sink": "none", "class": "public"}}))
    pdp.reload()
    assert authz.profiles.declared["book_invoice"].effect == "read"
    denied = ask(pdp)
    assert (denied.reasons, denied.failure) == ((Code.POLICY_CHANGED,), "pdp")


PERMITTED = {"effect": "send", "sink": "external", "critical": {"to": "principal"}, "verdict": "permit"}
ASKED = {**PERMITTED, "verdict": "ask"}


@tool
def send_mail(to: str) -> str:
    """Send a mail."""
    return f"sent to {to}"


@tool
def post_note(to: str) -> str:
    """Post a note."""
    return f"posted to {to}"


@tool
def look_up(key: str) -> str:
    """Look up a record."""
    return f"found {key}"


def calls_of(authz: RuntimeAuthz, *names: str, text: str = "Summarise my inbox") -> tuple[Any, Callable[[], dict[str, Any]]]:
    """An agent that makes these calls in one message, and a function that starts it on a new thread."""
    message = AIMessage("", tool_calls=[{"name": n, "args": {"to": "eve@x.org"}, "id": n} for n in names])
    saver = None if authz._pep.on_ask is not None else InMemorySaver()
    graph = authz.protect(create_agent(ScriptedChatModel(script=[message, AIMessage("done")] * 4), [send_mail, post_note], checkpointer=saver))
    threads = iter("1234")
    return graph, lambda: {"input": {"messages": [("user", text)]}, "config": {"configurable": {"thread_id": next(threads)}}}


def answered(state: dict[str, Any]) -> dict[str, str]:
    """Tool → what its call gave; "asked" if the run waits for an approver."""
    if asked := state.get("__interrupt__"):
        return {r["name"]: "asked" for r in asked[0].value["action_requests"]}
    return {m.name: m.content for m in state["messages"] if m.type == "tool"}


@pytest.mark.parametrize("left", [{"post_note": PERMITTED}, {}], ids=["one", "all"])
@pytest.mark.parametrize("form", ["sync", "async"])
def test_a_release_withdraws_a_profile_from_a_running_process(
    source: Path, following: Callable[..., ReloadingPDP], left: dict[str, Any], form: str,
) -> None:
    """The old release let the same agent mail unasked, and so it does while the release is the old one."""
    put(source, files(2, profiles={"send_mail": PERMITTED, "post_note": PERMITTED, "look_up": {"effect": "read", "sink": "none"}}))
    authz = RuntimeAuthz(pdp=(pdp := following()))
    graph, started = calls_of(authz, "send_mail")
    guarded = authz.guard(look_up)

    def played() -> dict[str, str]:
        with authz.run(subject="alice"):
            return answered(graph.invoke(**started()) if form == "sync" else asyncio.run(graph.ainvoke(**started())))

    def called() -> Any:
        with authz.run(subject="alice", task="Look around"):
            return guarded.invoke({"key": "7"}) if form == "sync" else asyncio.run(guarded.ainvoke({"key": "7"}))

    with authz.session(subject="alice", task="Look around") as session:
        assert played() == {"send_mail": "sent to eve@x.org"} and session.decide("send_mail", {"to": "eve@x.org"}).permit
        assert called() == "found 7"
        put(source, files(3, profiles=left))
        assert pdp.reload()
        assert played() == {"send_mail": "asked"}
        assert Code.UNPROFILED in session.decide("send_mail", {"to": "ann@x.org"}).reasons
    with pytest.raises(AuthzDenied):
        called()
    assert dict(authz.profiles.declared).keys() == left.keys()
    assert not authz.profiles.of(send_mail).declared and "send_mail" in str(authz.coverage(graph))


def test_a_release_withdraws_no_profile_of_the_tools_own(source: Path, following: Callable[..., ReloadingPDP]) -> None:
    """Without the release's profile, the tool's own counts, as it does in a new process."""
    own = profile(**ASKED)(send_mail.model_copy())
    put(source, files(2, profiles={"send_mail": PERMITTED}))
    authz = RuntimeAuthz(pdp=(pdp := following()))
    assert authz.profiles.of(own).profile.verdict == "permit"
    put(source, files(3))
    pdp.reload()
    for profiles in (authz.profiles, RuntimeAuthz(pdp=pdp).profiles):
        assert (profiles.of(own).profile.verdict, profiles.declared["send_mail"].verdict) == ("ask", "ask")


@pytest.mark.parametrize(("after", "reasons"), [
    ({}, ["policy_changed"]), ({"send_mail": {**ASKED, "critical": {}, "free": ["to"]}}, ["policy_changed"]),
    ({"send_mail": ASKED, "post_note": PERMITTED}, []),
], ids=["dropped", "other roles", "the same"])
def test_a_release_counts_for_a_call_that_waits(
    source: Path, following: Callable[..., ReloadingPDP], after: dict[str, Any], reasons: list[str],
) -> None:
    """It comes while a person is asked about the call: what they approved is a call of the old profile."""
    put(source, files(2, profiles={"send_mail": ASKED}))
    pdp = following()

    def release(question: dict[str, Any]) -> dict[str, Any]:
        put(source, files(3, profiles=after))
        pdp.reload()
        return {"decisions": [{"type": "approve"} for _ in question["action_requests"]]}

    authz = RuntimeAuthz(pdp=pdp, on_ask=release)
    graph, started = calls_of(authz, "send_mail")
    with authz.run(subject="alice"):
        found = answered(graph.invoke(**started()))
    sink: Any = authz.audit
    last = [r for r in sink.records if r["kind"] == "decision" and r["resource"] == "send_mail"][-1]
    assert (found["send_mail"] == "sent to eve@x.org", last["reasons"]) == (not reasons, reasons)


@pytest.mark.parametrize(("after", "asks"), [({"intent": ["mail"]}, False), ({}, True)], ids=["kept", "withdrawn"])
def test_words_order_by_the_present_release(
    source: Path, following: Callable[..., ReloadingPDP], after: dict[str, Any], asks: bool,
) -> None:
    """The task is the same; the release says anew which orders it has."""
    sends = {name: value for name, value in PERMITTED.items() if name != "verdict"}
    put(source, files(2, profiles={"send_mail": {**sends, "intent": ["mail"]}}))
    authz = RuntimeAuthz(pdp=(pdp := following()))
    with authz.session(subject="alice", task="Mail eve@x.org and ann@x.org") as session:
        assert session.decide("send_mail", {"to": "eve@x.org"}).permit
        put(source, files(3, profiles={"send_mail": {**sends, **after}}))
        pdp.reload()
        assert (session.decide("send_mail", {"to": "ann@x.org"}).outcome == "approval_required") is asks


@pytest.mark.parametrize(("own", "outdated"), [
    ({}, False), ({"question": "Send?"}, False), ({"critical": {}}, True), ({"critical": {}, "text": ["to"]}, True),
    ({"critical": {}, "free": ["to"]}, True), ({"audience": ["https://mail"]}, True), ({"verdict": None}, True),
], ids=["the same", "question", "critical", "text", "free", "audience", "verdict"])
def test_an_older_file_of_profiles_is_found(
    source: Path, following: Callable[..., ReloadingPDP], own: dict[str, Any], outdated: bool,
) -> None:
    """`profiles=` counts, but not where the policy says something else of the tool."""
    put(source, files(2, profiles={"send_mail": PERMITTED}))
    authz = RuntimeAuthz(pdp=following(), profiles={"send_mail": {**PERMITTED, **own}})
    with authz.session(subject="alice", task="Look around") as session:
        decided = session.decide("send_mail", {"to": "eve@x.org"})
    assert (decided.reason == Code.POLICY_CHANGED, decided.permit) == (outdated, not outdated)


def test_a_release_that_does_not_fit_a_tool_leaves_it_unprofiled(source: Path, following: Callable[..., ReloadingPDP]) -> None:
    """A new process does not start with it."""
    put(source, files(2, profiles={"send_mail": PERMITTED}))
    authz = RuntimeAuthz(pdp=(pdp := following()))
    graph, started = calls_of(authz, "send_mail")
    put(source, files(3, profiles={"send_mail": {**PERMITTED, "critical": {"recipient": "principal"}}}))
    pdp.reload()
    with authz.run(subject="alice"):
        assert answered(graph.invoke(**started())) == {"send_mail": "asked"}
    assert "recipient" in authz.profiles.of(send_mail).why
    with pytest.raises(ConfigError, match="recipient"):
        RuntimeAuthz(pdp=pdp).guard(send_mail)


@pytest.mark.parametrize("wrap", [
    ObserveOnly, CircuitBreaker, lambda pdp: CandidatePDP(pdp, StaticPDP(True)),
    lambda pdp: DenyOverrides(StaticPDP(True), CircuitBreaker(pdp)),
], ids=["observe", "breaker", "candidate", "deny-overrides"])
def test_what_stands_before_a_policy_hides_none_of_it(
    source: Path, following: Callable[..., ReloadingPDP], wrap: Callable[[PDP], PDP],
) -> None:
    """Observed without its profiles it would be another policy."""
    profiles = {"book_invoice": {"effect": "write", "sink": "internal", "class": "confidential"}}
    put(source, files(2, profiles=profiles, grants={"clerk": {"tools": ["book_invoice"]}}))
    pdp = following()
    wrapped = wrap(pdp)
    authz = RuntimeAuthz(pdp=wrapped)
    assert authz.profiles.declared["book_invoice"].effect == "write"
    with authz.session(subject="alice", task="t", grant="clerk") as session:
        assert session.decide("book_invoice", {}).reason != Code.UNPROFILED
    with pytest.raises(ConfigError, match="`profiles=`"):
        RuntimeAuthz(pdp=DenyOverrides(pdp, ObserveOnly(pdp)))
    assert RuntimeAuthz(pdp=DenyOverrides(pdp, ObserveOnly(pdp)), profiles={}).profiles.declared == {}
    wrapped.close()  # type: ignore[attr-defined]
    assert not ask(pdp).permit  # closed with it


def start(source: Path, **options: object) -> str:
    """The revision that a process started now would decide by."""
    pdp = ReloadingPDP(source, **{"poll": 3600, "pool_size": 1, **options})  # type: ignore[arg-type]
    pdp.close()
    return pdp.revision.partition("@")[0]


OLDER = {"an older one": files(4), "another of the same number": files(5, DENY_WRITES)}


@pytest.mark.parametrize("made", OLDER.values(), ids=OLDER)
def test_a_restart_does_not_go_back(tmp_path: Path, made: dict[str, bytes]) -> None:
    """What an earlier process used is the least that a later one takes."""
    source = put(tmp_path / "p.tar.gz", files(5))
    assert start(source) == "5" and start(source) == "5"
    put(source, made)
    with pytest.raises(ConfigError, match=Code.POLICY_OLDER):
        start(source)
    put(source, files(6))
    assert start(source) == "6"


def test_without_what_is_kept_a_restart_goes_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The unenforced twin, and what a first start is: the log tells it, and `at_least` still holds."""
    source = put(tmp_path / "p.tar.gz", files(5))
    start(source)
    put(source, files(4))
    (tmp_path / "p.tar.gz.highest").unlink()
    with pytest.raises(ConfigError, match=Code.POLICY_OLDER):
        start(source, at_least=5)
    caplog.clear()
    assert start(source) == "4" and "first start" in caplog.text


@pytest.mark.parametrize("text", ["", "{}", '{"v":1,"number":"9","digest":"x"}', '{"v":2,"number":9,"digest":"x"}', "5"])
def test_a_broken_state_is_no_first_start(source: Path, following: Callable[..., ReloadingPDP], text: str) -> None:
    """One sentence that says what to do; a running one keeps its policy."""
    pdp = following()
    source.with_name(source.name + ".highest").write_text(text)
    with pytest.raises(ConfigError, match="does not say which revision was used last; restore it") as caught:
        start(source)
    assert caught.value.code == Code.POLICY_INVALID
    put(source, files(6, DENY_WRITES))
    with pytest.raises(ConfigError, match="restore it"):
        pdp.reload()
    assert ask(pdp).permit


def test_there_is_no_start_where_nothing_can_be_kept(tmp_path: Path) -> None:
    source = put(tmp_path / "p.tar.gz", files(5))
    with pytest.raises(ConfigError, match="give `state=` a path"):
        start(source, state=tmp_path / "absent" / "highest")
    assert start(source, state=tmp_path / "elsewhere") == "5"
    put(source, files(4))
    with pytest.raises(ConfigError, match="revision 5"):
        start(source, state=tmp_path / "elsewhere")


def test_one_that_was_removed_meanwhile_is_written_anew(source: Path, following: Callable[..., ReloadingPDP]) -> None:
    pdp = following()
    kept = source.with_name(source.name + ".highest")
    kept.unlink()
    assert not pdp.reload() and json.loads(kept.read_bytes())["number"] == 1


def test_one_that_did_not_see_the_newer_takes_nothing_between(source: Path, following: Callable[..., ReloadingPDP]) -> None:
    """Two at one source: what the faster used, the slower does not go behind, though it never ran it."""
    slow, fast = following(), following()
    put(source, files(3))
    assert fast.reload()
    put(source, files(2, DENY_WRITES))
    for pdp in (slow, fast):
        with pytest.raises(ConfigError, match=Code.POLICY_OLDER):
            pdp.reload()
    assert (slow.revision[:2], fast.revision[:2]) == ("1@", "3@")


def test_a_closed_one_denies(following: Callable[..., ReloadingPDP]) -> None:
    pdp = following()
    pdp.close()
    pdp.close()
    assert ask(pdp).failure == "pdp"
    with pytest.raises(ConfigError):
        pdp.reload()


def forked(child: Callable[[], object], meanwhile: Callable[[], object] = lambda: None) -> int:
    """The exit status of a child that does this, after `meanwhile`; killed by a signal where it never ends."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        try:
            child()
            os._exit(0)
        finally:
            os._exit(1)
    meanwhile()
    return os.waitpid(pid, 0)[1]


def test_a_fork_under_a_reload_leaves_both_processes_free(source: Path, following: Callable[..., ReloadingPDP]) -> None:
    """The child waits for no lock of the parent's, and keeps none from it."""
    pdp = following()
    with pdp._lock:  # another thread reloads
        assert forked(pdp.close) == 0
    read, write = os.pipe()

    def free() -> None:
        file = os.open(source.with_name("other.lock"), os.O_RDWR)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(file)
        os.write(write, b"x")

    with ExitStack() as locked:
        locked.enter_context(file_lock(source.with_name("other.lock")))

        def unlocked() -> None:
            locked.close()
            free()

        assert forked(lambda: os.read(read, 1), unlocked) == 0


def test_one_that_is_forgotten_stops_watching(source: Path) -> None:
    before = threading.active_count()
    pdp = ReloadingPDP(source, poll=0.01)
    del pdp
    gc.collect()
    until(lambda: threading.active_count() <= before)
