"""A workload by a projected token: a file that the platform replaces, as Kubernetes does with a symbolic link."""

import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from langchain_runtime_authz.errors import AuthzError, ConfigError
from langchain_runtime_authz.identity.oidc import TokenFileIdentity
from tests.threads import until
from tests.unit_tests.identity.test_oidc import APP, IDP, KEY, OTHER, Provider, token, verifier

ACCOUNT = "system:serviceaccount:bank:payer"


def projected(key: Any = KEY, **claims: Any) -> str:
    """As the API server of Kubernetes writes it: no `typ`, a list of audiences, no client."""
    now = int(time.time())
    own = {"aud": [APP], "sub": ACCOUNT, "client_id": None, "iat": now, "nbf": now, "exp": now + 600}
    return token(key, header={"typ": None}, **{**own, **claims})


def replaced(path: Path, text: str) -> None:
    new = path.with_name("..data_tmp")
    new.write_text(text)
    new.replace(path)


def test_a_file_that_is_replaced(tmp_path: Path) -> None:
    """Proves the service account; a new token extends the proof, and one that proves nothing ends it."""
    path = tmp_path / "token"
    replaced(path, projected())
    identity = TokenFileIdentity(path, verifier(client_id=APP), every=0.01)
    try:
        assert identity.workload == f"{IDP}#{ACCOUNT}"
        assert identity.agent_id(("root",)) == f"{IDP}#{ACCOUNT}/root"
        before = identity.expires_at
        later = projected(exp=int(time.time()) + 900)
        replaced(path, later)
        until(lambda: identity.expires_at > before)
        assert identity.token() == later
        for bad in (projected(OTHER), projected(aud=["else"]), projected(act={"sub": "x"}), projected(sub="another")):
            replaced(path, bad)
            until(lambda: not identity.attested)
            with pytest.raises(AuthzError) as refused:
                identity.token()
            assert refused.value.code == "workload_unproven"
            replaced(path, projected())
            until(lambda: identity.attested)
    finally:
        identity.close()


@pytest.mark.parametrize("cut", [0, 50, -1], ids=["empty", "a part", "all but a character"])
def test_a_half_written_file_costs_nothing(cut: int, tmp_path: Path) -> None:
    """Only a platform that replaces the file writes it at once. A cut signature is refused if it stays."""
    path, whole = tmp_path / "token", projected()
    path.write_text(whole)
    identity = TokenFileIdentity(path, verifier(client_id=APP), every=60)
    try:
        path.write_text(whole[:cut])
        identity._look()
        assert identity.attested and identity.token() == whole
        path.write_text(later := projected(exp=int(time.time()) + 900))
        identity._look()
        assert identity.token() == later
        for _ in range(2):
            path.write_text(whole[:cut])
            identity._look()
        assert identity.attested == (cut >= 0)
    finally:
        identity.close()


def test_what_cannot_be_asked_or_read_ends_the_proof_with_the_token_only(tmp_path: Path) -> None:
    """A file that is gone for a moment, or a platform that is down, costs nothing while the token lasts."""
    path, provider = tmp_path / "token", Provider()
    identity = TokenFileIdentity(path, verifier(provider, client_id=APP), wait=0.2, every=0.01)
    try:
        assert "cannot be read" in str(identity.why)
        replaced(path, projected(exp=int(time.time()) + 2))
        until(lambda: identity.attested)
        path.unlink()
        provider.keys = provider.document = httpx.Response(503)
        assert identity.attested
        until(lambda: not identity.attested)
        replaced(path, projected(KEY))
        until(lambda: identity.attested)
    finally:
        identity.close()


@pytest.mark.parametrize("options", [{"every": 0}, {"wait": -1}, {"verifier": None}], ids=str)
def test_an_identity_that_cannot_work(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        TokenFileIdentity(**{"path": tmp_path / "token", "verifier": verifier(), **options})
