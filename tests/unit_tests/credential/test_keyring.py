"""Keys over time: rotation without downtime, withdrawal at once, and a directory that others share."""

import copy
import fcntl
import json
import os
import pickle
import shutil
import signal
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from langchain_runtime_authz.credential import keyring as module
from langchain_runtime_authz.credential.issuer import LocalIssuer
from langchain_runtime_authz.credential.keyring import KEEP_RETIRED, KeyDirectory, KeyRing
from langchain_runtime_authz.credential.signer import SigningKey
from langchain_runtime_authz.credential.verifier import KeySource, Verifier
from langchain_runtime_authz.errors import ConfigError, CredentialError
from langchain_runtime_authz.testing.frozen_clock import FrozenClock
from tests.unit_tests.credential.tokens import BANK, NOW, a_request


class Kms:
    """A signer outside this process, as far as an issuer can tell."""

    def __init__(self) -> None:
        self._key = SigningKey.generate()
        self.alg, self.kid = self._key.alg, self._key.kid

    def sign(self, signing_input: bytes) -> bytes:
        return self._key.sign(signing_input)

    def public_jwk(self) -> dict[str, str]:
        return self._key.public_jwk()


def states(ring: KeyRing) -> list[str]:
    return [info.state for info in ring.all_keys()]


def published(ring: KeyRing) -> set[str]:
    return {jwk["kid"] for jwk in ring.jwks()["keys"]}


def test_a_key_is_published_before_it_signs_and_after() -> None:
    """Next, active, retired: always in the set; a retired one until its last token and every copy is old."""
    clock = FrozenClock(1000.0)
    ring = KeyRing(clock=clock)
    first, second = (info.kid for info in ring.all_keys())
    assert published(ring) == {first, second}
    clock.now += 60
    assert ring.rotate().kid == second == ring.active.kid
    assert states(ring) == ["active", "next", "retired"] and first in published(ring)
    assert len(published(ring)) == 3
    clock.now += KEEP_RETIRED
    assert first not in published(ring) and ring.get(first) is None
    assert isinstance(ring, KeySource)


def test_a_key_nobody_knows_yet_does_not_sign() -> None:
    """Two rotations in a row would leave verifiers behind: the second one is refused, and changes nothing."""
    clock = FrozenClock(1000.0)
    ring = KeyRing(clock=clock)
    before = ring.all_keys()
    clock.now += 59
    with pytest.raises(ConfigError, match="rotate in 1 s"):
        ring.rotate()
    assert ring.all_keys() == before


@pytest.mark.parametrize("state", ["active", "next", "retired"])
async def test_a_compromised_key_is_gone_at_once(state: str) -> None:
    """Whatever it was: its tokens are refused, another key signs, and it never comes back."""
    clock = FrozenClock(1000.0)
    ring = KeyRing(clock=clock)
    issuer = LocalIssuer(ring)
    verifier = Verifier(issuer=issuer.issuer, jwks=ring)
    clock.now += 60
    ring.rotate()
    token = issuer.issue(a_request())
    victim = next(info.kid for info in ring.all_keys() if info.state == state)
    done = ring.compromise(victim)
    assert (done.kid, done.refused_by) == (victim, clock.now + 60)
    assert done.active == ring.active.kid != victim
    assert victim not in published(ring) and sorted(states(ring))[:1] == ["active"]
    assert {"active", "next", "compromised"} <= set(states(ring))
    if state == "active":
        with pytest.raises(CredentialError, match="credential_key: "):
            await verifier.averify(token, audience=BANK, now=NOW)
    else:
        assert verifier.verify(token, audience=BANK, now=NOW).token == token
    fresh = issuer.issue(a_request())
    assert verifier.verify(fresh, audience=BANK, now=NOW).kid != victim
    assert ring.compromise(victim).active == ring.active.kid  # twice is no error
    with pytest.raises(ConfigError):
        ring.compromise("nobody")


async def test_a_signer_elsewhere_signs_in_a_thread() -> None:
    """The event loop does not wait for a KMS; for a key in this process there is no thread."""
    ran: list[int] = []
    kms = Kms()
    sign = kms.sign
    kms.sign = lambda data: ran.append(threading.get_ident()) or sign(data)  # type: ignore[method-assign,func-returns-value]
    issuer = LocalIssuer(kms)
    token = await issuer.aissue(a_request())
    assert Verifier(issuer=issuer.issuer, jwks=issuer.jwks).verify(token, audience=BANK, now=NOW).kid == kms.kid
    assert ran != [threading.get_ident()]


def test_a_ring_remembers_a_bounded_past() -> None:
    """Thousands of rotations leave a bounded ring, which still knows what was compromised."""
    clock = FrozenClock(1000.0)
    ring = KeyRing("EdDSA", clock=clock, cache_age=0)
    bad = ring.active.kid
    ring.compromise(bad)
    for _ in range(200):
        clock.now += KEEP_RETIRED
        ring.rotate()
    assert len(ring.all_keys()) <= module.MAX_KEPT + 2 and ring.all_keys()[-1].kid == bad


def test_a_ring_shows_no_key() -> None:
    """Not in text, and nowhere to be copied or pickled to; nor an issuer that holds it."""
    ring = KeyRing()
    for holder in (ring, LocalIssuer(ring)):
        for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError):
                attempt(holder)
        assert ring.active.kid in repr(holder)
    assert "object at" not in repr(ring._keys)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    KeyDirectory.create(path)
    return path


def opened(path: Path, **options: Any) -> KeyDirectory:
    return KeyDirectory(path, **options)


def seen_again(ring: KeyDirectory) -> KeyDirectory:
    """As if a second had passed."""
    ring._looked = float("-inf")
    return ring


@pytest.mark.parametrize(("alg", "password"), [("ES256", None), ("EdDSA", b"correct horse"), ("RS256", b"correct horse")])
def test_a_directory_is_the_same_ring_in_every_process(tmp_path: Path, alg: Any, password: bytes | None) -> None:
    """What one signs the other verifies; private keys are the owner's alone."""
    made = KeyDirectory.create(tmp_path / "keys", alg, password)
    other = KeyDirectory(tmp_path / "keys", password)
    issuer = LocalIssuer(made)
    token = issuer.issue(a_request())
    assert Verifier(issuer=issuer.issuer, jwks=other).verify(token, audience=BANK, now=NOW).kid == other.active.kid
    files = sorted((tmp_path / "keys").glob("*.pem"))
    assert [file.stat().st_mode & 0o077 for file in files] == [0, 0]
    assert all((b"ENCRYPTED" in file.read_bytes()) == (password is not None) for file in files)
    if password is not None:
        with pytest.raises(ConfigError):
            KeyDirectory(tmp_path / "keys", b"wrong")


def test_a_child_forked_under_a_change_keeps_no_lock(directory: Path) -> None:
    """Another process may rotate as soon as this one is done, though the child lives on."""
    read, write = os.pipe()
    with opened(directory)._changing():
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            os.read(read, 1)
            os._exit(0)
    other = os.open(directory / "ring.lock", os.O_RDWR)
    try:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.write(write, b"x")
        for descriptor in (other, read, write):
            os.close(descriptor)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_rotation_elsewhere_is_seen(directory: Path) -> None:
    """The other process signs with the new key; the file of the old one is gone, its public part is not."""
    here, there = (opened(directory, cache_age=0) for _ in range(2))
    here._lag = there._lag = 0
    old = here.active.kid
    there.rotate()
    assert seen_again(here).active.kid == there.active.kid != old
    assert here.get(old) is not None and not (directory / f"{old}.pem").exists()
    here.rotate()
    there.rotate()  # takes up the other's change first
    assert states(there).count("retired") == 3 and states(seen_again(here)) == states(there)


@pytest.mark.parametrize("whole", [True, False], ids=["changed", "twin"])
def test_a_ring_that_changes_while_it_is_read_is_read_again(directory: Path, whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its old key's file is gone by then. The twin's directory only lost the file: it signs nothing."""
    here, there, signer = opened(directory), opened(directory), module._signer
    bad = there.active.kid

    def late(*given: Any) -> SigningKey:
        monkeypatch.setattr(module, "_signer", signer)
        there.compromise(bad) if whole else (directory / f"{bad}.pem").unlink()
        return signer(*given)

    monkeypatch.setattr(module, "_signer", late)
    here._stamp = None
    if not whole:
        with pytest.raises(CredentialError, match="keys_unavailable: "):
            _ = seen_again(here).active
    else:
        assert seen_again(here).active.kid == there.active.kid != bad


def test_a_compromise_elsewhere_is_seen(directory: Path) -> None:
    """Within a second no process publishes it or signs with it; in the file it stays named for ever."""
    here, there = opened(directory), opened(directory)
    bad = here.active.kid
    there.compromise(bad)
    assert seen_again(here).get(bad) is None and here.active.kid == there.active.kid
    assert bad in json.dumps(json.loads((directory / "ring.json").read_text()))
    assert not (directory / f"{bad}.pem").exists()


def test_a_compromise_while_nothing_ran_reaches_the_ledger(directory: Path) -> None:
    """The application learns of it at its start, once. A key that nobody withdrew stays."""
    from langchain_runtime_authz import RuntimeAuthz
    from langchain_runtime_authz.ledger.base import Query
    from langchain_runtime_authz.ledger.memory import MemoryLedger
    from langchain_runtime_authz.pep.mint_tokens import key_scopes
    from langchain_runtime_authz.testing import StaticPDP

    bad, ledger = opened(directory).active.kid, MemoryLedger()
    opened(directory).compromise(bad)
    made = [RuntimeAuthz(pdp=StaticPDP(True), ledger=ledger, issuer=LocalIssuer(opened(directory))) for _ in "12"]
    of = lambda kid: all(ledger.load(each, Query()).revoked for each in key_scopes("default", made[0].issuer.issuer, kid))
    assert of(bad) and not of(opened(directory).active.kid)
    assert [len(authz.audit.records) for authz in made] == [1, 0]  # type: ignore[attr-defined]


@pytest.mark.parametrize("changes", [False, True])
def test_a_compromise_by_the_command_line_reaches_the_ledger(directory: Path, changes: bool) -> None:
    """The issuing process sees it in the directory, and tells the ledger, which services ask. Also if it `changes` the ring then."""
    from langchain_runtime_authz import RuntimeAuthz
    from langchain_runtime_authz.ledger.base import Query
    from langchain_runtime_authz.pep.mint_tokens import key_scopes
    from langchain_runtime_authz.testing import StaticPDP

    here, there = opened(directory), opened(directory)
    authz = RuntimeAuthz(pdp=StaticPDP(True), issuer=LocalIssuer(here, issuer="https://issuer.example"))
    revoked = lambda kid: all(authz.ledger.load(each, Query()).revoked for each in key_scopes("default", "https://issuer.example", kid))
    first, second = (info.kid for info in here.all_keys())
    there.compromise(first)
    assert not revoked(first)
    if changes:
        here.compromise(here.all_keys()[-1].kid)
    assert (seen_again(here).active.kid == second) is not changes
    deadline = time.monotonic() + 60
    while not revoked(first) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert revoked(first)
    authz.compromise_key(second)
    assert revoked(second) and not revoked(here.active.kid)


@pytest.mark.parametrize("tenant", ["default", "another"])
@pytest.mark.parametrize("told", [True, False], ids=["told", "twin"])
def test_an_old_copy_of_a_directory_brings_no_withdrawn_key_back(directory: Path, told: bool, tenant: str, tmp_path: Path) -> None:
    """Neither to the processes that saw the withdrawal, nor to new ones. The twin's ledger is new: it cannot know."""
    from langchain_runtime_authz import RuntimeAuthz
    from langchain_runtime_authz.ledger.memory import MemoryLedger
    from langchain_runtime_authz.testing import StaticPDP

    ledger, issuer = MemoryLedger(), LocalIssuer(opened(directory))
    authz = RuntimeAuthz(pdp=StaticPDP(True), issuer=issuer, ledger=ledger)
    shutil.copytree(directory, yesterday := tmp_path / "yesterday")
    bad = issuer.ring.active.kid  # type: ignore[union-attr]
    authz.compromise_key(bad)
    shutil.rmtree(directory)
    shutil.copytree(yesterday, directory)
    assert seen_again(issuer.ring).jwks() == {"keys": []}
    again = LocalIssuer(opened(directory))
    assert again.ring is not None and again.ring.active.kid == bad
    with pytest.raises(ConfigError, match="was withdrawn") if told else nullcontext():
        RuntimeAuthz(pdp=StaticPDP(True), issuer=again, ledger=ledger if told else MemoryLedger(), tenant=tenant)
    again.ring.compromise(bad)
    RuntimeAuthz(pdp=StaticPDP(True), issuer=again, ledger=ledger)
    assert seen_again(issuer.ring).active.kid == again.ring.active.kid != bad


def test_a_withdrawal_by_an_older_version_counts(directory: Path) -> None:
    """It stands under one tenant. Once the ring says the same, it is written for all."""
    from langchain_runtime_authz import RuntimeAuthz
    from langchain_runtime_authz.ledger.base import Query
    from langchain_runtime_authz.ledger.changes import Revoke
    from langchain_runtime_authz.ledger.memory import MemoryLedger
    from langchain_runtime_authz.pep.mint_tokens import key_scopes
    from langchain_runtime_authz.testing import StaticPDP

    ring, ledger = opened(directory), MemoryLedger()
    bad, issuer = ring.active.kid, LocalIssuer(ring)
    of_all, own = key_scopes("default", issuer.issuer, bad)
    ledger.commit(own, None, [Revoke(())])
    with pytest.raises(ConfigError, match="was withdrawn"):
        RuntimeAuthz(pdp=StaticPDP(True), issuer=issuer, ledger=ledger)
    ring.compromise(bad)
    RuntimeAuthz(pdp=StaticPDP(True), issuer=issuer, ledger=ledger)
    assert ledger.load(of_all, Query()).revoked


def _drop(path: Path) -> None:
    (path / "ring.json").unlink()


def _write(text: str) -> Any:
    return lambda path: (path / "ring.json").write_text(text)


def _swap(path: Path) -> None:
    one, two = sorted(path.glob("*.pem"))
    one.write_bytes(two.read_bytes())


def _edit(change: Any) -> Any:
    def edit(path: Path) -> None:
        document = json.loads((path / "ring.json").read_text())
        change(document["keys"])
        (path / "ring.json").write_text(json.dumps(document))

    return edit


DAMAGE: dict[str, Any] = {
    "gone": _drop, "empty": _write(""), "no object": _write("[]"), "another version": _write('{"v": 2, "keys": []}'),
    "no keys": _write('{"v": 1, "keys": []}'), "bomb": _write("[" * 100_000),
    "a path for a kid": _edit(lambda keys: keys[0].update(kid="../../etc/passwd")),
    "two active": _edit(lambda keys: keys[1].update(state="active")),
    "a foreign state": _edit(lambda keys: keys[0].update(state="trusted")),
    "twins": _edit(lambda keys: keys.append({**keys[0], "state": "retired"})), "another key in the file": _swap,
    "no private key": lambda path: [file.unlink() for file in path.glob("*.pem")],
    "readable by others": lambda path: [os.chmod(file, 0o644) for file in path.glob("*.pem")],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_directory_signs_nothing(directory: Path, damage: str) -> None:
    """It does not open, and who has it open stops signing and publishing, without a word of the key."""
    here = opened(directory)
    DAMAGE[damage](directory)
    with pytest.raises(ConfigError) as caught:
        opened(directory)
    assert "PRIVATE" not in str(caught.value)
    here._stamp = None
    with pytest.raises(CredentialError, match="keys_unavailable: "):
        _ = seen_again(here).active
    assert here.jwks() == {"keys": []}
    with pytest.raises(ConfigError):
        here.rotate()


def test_a_directory_holds_one_ring(directory: Path) -> None:
    """Making another over it is refused; so is an algorithm that is none."""
    with pytest.raises(ConfigError):
        KeyDirectory.create(directory)
    with pytest.raises(ConfigError):
        KeyDirectory.create(directory / "x", "HS256")  # type: ignore[arg-type]
