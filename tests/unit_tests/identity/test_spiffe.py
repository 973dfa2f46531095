"""A workload by its SVIDs: from a Workload API in this process, which rotates, fails, lies and comes back."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.tools import tool

from langchain_runtime_authz import RuntimeAuthz, current_call, profile
from langchain_runtime_authz.errors import AuthzDenied, AuthzError, ConfigError, PDPError
from langchain_runtime_authz.identity.spiffe import SpiffeIdentity, SvidVerifier, bundle_keys, trust_domain_of
from langchain_runtime_authz.identity.workload import Identity
from langchain_runtime_authz.pdp.opa import OpaPDP
from langchain_runtime_authz.pdp.wasm import WasmPDP
from langchain_runtime_authz.testing import StaticPDP
from tests.threads import until
from tests.workload_api import Authority, WorkloadApi

BANK, ELSE, API = Authority("bank.example"), Authority("else.example"), "https://agent.example"
PAYER = "spiffe://bank.example/payer"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[WorkloadApi]:
    found = WorkloadApi(tmp_path / "agent.sock", BANK)
    found.start()
    yield found
    found.stop()


@pytest.fixture
def identify(api: WorkloadApi) -> Iterator[Callable[..., SpiffeIdentity]]:
    made: list[SpiffeIdentity] = []

    def identity(trust_domain: str = "bank.example", wait: float = 10.0, **options: Any) -> SpiffeIdentity:
        made.append(SpiffeIdentity(trust_domain, socket=api.url, wait=wait, **options))
        return made[-1]

    yield identity
    for each in made:
        each.close()


def test_an_agent_is_named_below_its_workload(api: WorkloadApi, identify: Callable[..., SpiffeIdentity]) -> None:
    """And cannot take another workload's name: a SPIFFE id has no fragment."""
    api.give(BANK.svid("/payer"))
    identity = identify()
    assert isinstance(identity, Identity)
    assert (identity.attested, identity.workload, identity.why) == (True, PAYER, None)
    assert 0 < identity.expires_at - time.time() <= 61
    assert identity.agent_id(()) == PAYER and identity.agent_id(("root", "a/b")) == f"{PAYER}#root/a%2Fb"
    assert trust_domain_of(identity.agent_id(("root",))) is None


def test_a_rotation_is_followed(api: WorkloadApi, identify: Callable[..., SpiffeIdentity]) -> None:
    api.give(BANK.svid("/payer", ends=30))
    identity = identify()
    before = identity.expires_at
    api.give(BANK.svid("/payer", ends=600))
    until(lambda: identity.expires_at > before)
    assert identity.attested


def forged() -> Any:
    svid = Authority("bank.example").svid("/payer")
    svid.bundle = BANK.svid("/x").bundle
    return svid


UNPROVEN: dict[str, tuple[Callable[[], Any], str]] = {
    "of another trust domain": (lambda: ELSE.svid("/payer"), "expected an SVID of `bank.example`, found `else.example`"),
    "expired": (lambda: BANK.svid("/payer", starts=-60, ends=-1), "expired"),
    "of the future": (lambda: BANK.svid("/payer", starts=60, ends=120), "synchronise the clocks"),
    "of another workload": (lambda: BANK.svid("/reader"), "of another workload"),
    "not in the bundle": (forged, "does not end in the trust domain's bundle"),
}


@pytest.mark.parametrize("name", UNPROVEN)
def test_what_does_not_prove_the_workload(name: str, api: WorkloadApi, identify: Callable[..., SpiffeIdentity]) -> None:
    """Ends the proof at once; the next good one is believed without a restart."""
    api.give(BANK.svid("/payer"))
    identity = identify()
    svid, why = UNPROVEN[name]
    api.give(svid())
    until(lambda: not identity.attested)
    assert why in str(identity.why) and identity.expires_at == 0
    with pytest.raises(AuthzError) as refused:
        identity.jwt_svid(API)
    assert refused.value.code == "workload_unproven"
    api.give(BANK.svid("/payer"))
    until(lambda: identity.attested)


def test_the_api_goes_and_comes_back(api: WorkloadApi, identify: Callable[..., SpiffeIdentity]) -> None:
    """The proof outlives it, until it ends; then the same process is proven again."""
    api.give(BANK.svid("/payer", ends=2))
    identity = identify()
    api.stop()
    until(lambda: not identity.attested)
    api.give(BANK.svid("/payer"))
    api.start()
    until(lambda: identity.attested)


def test_a_process_without_a_registration_entry(api: WorkloadApi, identify: Callable[..., SpiffeIdentity]) -> None:
    """Is unproven and starts nothing, until there is an entry for it."""
    identity = identify(wait=0.5)
    assert not identity.attested
    until(lambda: "PERMISSION_DENIED" in str(identity.why))
    api.give(BANK.svid("/payer"))
    until(lambda: identity.attested)


def test_an_id_is_picked_among_several(api: WorkloadApi, identify: Callable[..., SpiffeIdentity]) -> None:
    api.give(BANK.svid("/reader"), BANK.svid("/payer"))
    assert identify(spiffe_id=PAYER).workload == PAYER
    missing = identify(spiffe_id="spiffe://bank.example/none", wait=1.0)
    assert "wanted SPIFFE id" in str(missing.why)


@profile(effect="read", sink="none", audience=(API,))
@tool
def look() -> str:
    """Look."""
    claims = current_call().credential(API).claims
    seen.append(claims)
    return "seen"


seen: list[Any] = []


def test_nothing_outlives_the_proof(api: WorkloadApi, identify: Callable[..., SpiffeIdentity]) -> None:
    """Lease and token end with the SVID, the agent is attested, and without a proof each step is denied."""
    api.give(BANK.svid("/payer", ends=20))
    identity, pdp = identify(), StaticPDP(True)
    authz = RuntimeAuthz(pdp=pdp, identity=identity)
    guarded = authz.guard(look)
    with authz.run(subject="alice") as run:
        assert guarded.invoke({}) == "seen" and seen[-1]["exp"] <= identity.expires_at
        assert seen[-1]["act"]["sub"].startswith(PAYER + "#")
        asked = pdp.requests[-1].context
        assert (asked.agent.attested, asked.lease.exp <= identity.expires_at) == (True, True)
        api.give(ELSE.svid("/payer"))
        until(lambda: not identity.attested)
        denied = guarded.invoke({"type": "tool_call", "id": "1", "name": "look", "args": {}})
        assert denied.status == "error" and run.decisions[-1].reasons[0].code == "workload_unproven"
    with pytest.raises(AuthzDenied) as refused, authz.run(subject="alice"):
        guarded.invoke({})
    assert refused.value.code == "workload_unproven"
    api.give(BANK.svid("/payer"))
    until(lambda: identity.attested)
    with authz.run(subject="alice"):
        assert guarded.invoke({}) == "seen"


def test_a_policy_demands_an_attested_agent(api: WorkloadApi, identify: Callable[..., SpiffeIdentity]) -> None:
    """For the effects that the shipped policy's data lists; a name that nobody vouches for is not enough."""
    api.give(BANK.svid("/payer"))
    for identity, status in ((None, "error"), (identify(), "success")):
        authz = RuntimeAuthz(pdp=WasmPDP(data={"attested": ["read"]}), identity=identity)
        with authz.run(subject="alice") as run:
            message = authz.guard(look).invoke({"type": "tool_call", "id": "1", "name": "look", "args": {}})
        assert message.status == status
        assert status == "success" or run.decisions[-1].reasons[0].code == "not_attested"


def test_a_jwt_svid_for_another_service(api: WorkloadApi, identify: Callable[..., SpiffeIdentity]) -> None:
    """It is fetched from the Workload API, and another workload verifies it by the bundle from there."""
    api.give(BANK.svid("/payer"))
    identity = identify()
    until(lambda: identity.jwt_keys("bank.example"))
    caller = SvidVerifier("bank.example", audience=API, keys=identity.jwt_keys).verify(identity.assertion(API)())
    assert (caller.type, caller.id, caller.properties["attested"]) == ("service", PAYER, True)
    shown = BANK.jwt_svid("/payer", API)
    api.give(ELSE.svid("/payer"))
    until(lambda: not identity.attested)  # as after an outage that outlasts the proof: a key may be withdrawn by now
    with pytest.raises(AuthzError, match="identity_unavailable: "):
        SvidVerifier("bank.example", audience=API, keys=identity.jwt_keys).verify(shown)


VERIFIER = SvidVerifier("bank.example", audience=API, keys={"bank.example": bundle_keys(BANK.bundle())}.get)
NOW = int(time.time())
BAD_SVIDS = {
    "another audience": lambda: BANK.jwt_svid("/payer", "https://else.example"),
    "audience within": lambda: BANK.jwt_svid("/payer", API + "/x"),
    "no audience": lambda: BANK.jwt_svid("/payer", None),
    "another trust domain": lambda: ELSE.jwt_svid("/payer", API),
    "another trust domain's key": lambda: BANK.jwt_svid("/payer", API, key=ELSE.jwt),
    "expired": lambda: BANK.jwt_svid("/payer", API, exp=int(time.time()) - 60),
    "no expiry": lambda: BANK.jwt_svid("/payer", API, exp=None),
    "of the future": lambda: BANK.jwt_svid("/payer", API, iat=int(time.time()) + 600, exp=int(time.time()) + 900),
    "a year": lambda: BANK.jwt_svid("/payer", API, exp=int(time.time()) + 365 * 86400),
    "a user": lambda: BANK.jwt_svid("/payer", API, sub="alice"),
    "no path": lambda: BANK.jwt_svid("", API),
    "a fragment": lambda: BANK.jwt_svid("/payer#root", API),
    "dots": lambda: BANK.jwt_svid("/x/../payer", API),
    "an access token": lambda: BANK.jwt_svid("/payer", API, typ="at+jwt"),
}


@pytest.mark.parametrize("name", BAD_SVIDS)
def test_an_svid_that_proves_nothing(name: str) -> None:
    token = BAD_SVIDS[name]()  # it expires, so it is made when it is used
    with pytest.raises(AuthzError) as refused:
        VERIFIER.verify(token)
    assert refused.value.code == "identity_invalid" and token not in str(refused.value)


def test_an_svid_that_does() -> None:
    """With or without a type and an issue time (JWT-SVID §2, §3), and within the leeway of the clocks."""
    for token in (BANK.jwt_svid("/payer", API), BANK.jwt_svid("/payer", [API, "x"], typ=None, iat=None), BANK.jwt_svid("/payer", API, typ="JOSE")):
        assert VERIFIER.verify(token).id == PAYER
    assert VERIFIER.verify(BANK.jwt_svid("/payer", API, iat=NOW + 4, exp=NOW + 60), now=NOW).id == PAYER


def test_a_bundle_that_is_not_at_hand() -> None:
    verifier = SvidVerifier("bank.example", audience=API, keys={}.get)
    with pytest.raises(AuthzError) as refused:
        verifier.verify(BANK.jwt_svid("/payer", API))
    assert refused.value.code == "identity_unavailable"


def test_a_bundles_other_keys_are_left_out() -> None:
    document = BANK.bundle()
    own = document["keys"][0]
    assert list(bundle_keys(document)) == [BANK.jwt.kid]
    for keys in ([{**own, "use": "x509-svid"}], [own, own], [{**own, "d": "x"}], [{**own, "kid": 5}], ["x"], None):
        assert bundle_keys({"keys": keys}) == {}


@pytest.mark.parametrize(
    "arguments", [("Bank.example",), ("",), ("bank.example/x",), ("spiffe://bank.example",)], ids=str
)  # fmt: skip
def test_a_trust_domain_that_is_not_one(arguments: tuple[str, ...]) -> None:
    for make in (SpiffeIdentity, lambda d: SvidVerifier(d, audience=API, keys={}.get)):
        with pytest.raises(ConfigError):
            make(*arguments)
    with pytest.raises(ConfigError):
        SpiffeIdentity("bank.example", spiffe_id="spiffe://else.example/x")


@given(st.text(alphabet="abc/.:#%?@-_ A\u00e9", max_size=12), st.text(alphabet="abc/.#%?@-_ A\u00e9", max_size=12))
def test_a_spiffe_id_has_one_spelling(domain: str, path: str) -> None:
    """What passes has a plain domain and plain segments, none of which leads up."""
    text = f"spiffe://{domain}/{path}"
    if (found := trust_domain_of(text)) is not None:
        segments = text.removeprefix(f"spiffe://{found}/").split("/")
        assert found == found.lower()
        assert all(s not in ("", ".", "..") and not set(s) & set("#%?@ ") for s in segments)


class Opa:
    """An engine that permits, and demands an SVID: it shows its own and notes the clients' ids and certificates."""

    def __init__(self, authority: Authority, path: str, folder: Path) -> None:
        noted = self.noted = list[tuple[str, str]]()

        class Answer(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                shown = self.connection.getpeercert()
                noted.append((shown["subjectAltName"][0][1], shown["serialNumber"]))
                body = b'{"result": {"decision": true}}'
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        own, file = authority.svid(path), folder / "opa.pem"
        file.write_text("".join(map(ssl.DER_cert_to_PEM_cert, [own.x509_svid])) + serialization.load_der_private_key(
            own.x509_svid_key, None).private_bytes(*PEM).decode())  # fmt: skip
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=BANK.svid("/any").bundle)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Opa:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


PEM = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def test_the_pdp_is_asked_by_mutual_tls(api: WorkloadApi, identify: Callable[..., SpiffeIdentity], tmp_path: Path) -> None:
    """Both sides show their SVIDs. A rotation is shown at the next request; without a proof, nothing is sent."""
    api.give(BANK.svid("/payer"))
    identity = identify()
    with Opa(BANK, "/opa", tmp_path) as opa:
        tls = identity.tls("spiffe://bank.example/opa")
        authz = RuntimeAuthz(pdp=OpaPDP(opa.url, tls=tls), identity=identity)
        with authz.session(subject="alice") as session:
            assert session.decide("read", {}).permit
            session.observe("read", {}, "")
            first, before = opa.noted[-1], identity.expires_at
            assert tls() is tls()
            api.give(BANK.svid("/payer", ends=600))
            until(lambda: identity.expires_at > before)
            assert session.decide("read", {}).permit
        assert {name for name, _ in opa.noted} == {PAYER}
        assert opa.noted[-1] != first and httpx.Client(verify=tls()).post(opa.url, json={}).status_code == 200
        asked = len(opa.noted)
        api.give(ELSE.svid("/payer"))
        until(lambda: not identity.attested)
        with pytest.raises(PDPError, match="workload_unproven: "):
            authz.pdp.evaluate(b"{}")
        assert len(opa.noted) == asked


@pytest.mark.parametrize(("authority", "path"), [(BANK, "/other"), (ELSE, "/opa")], ids=["another workload", "another domain"])
def test_another_workload_is_not_asked(
    authority: Authority, path: str, api: WorkloadApi, identify: Callable[..., SpiffeIdentity], tmp_path: Path
) -> None:
    """It stands at the PDP's address, and its certificate is current: `pdp_tls`, before a request is sent."""
    api.give(BANK.svid("/payer"))
    tls = identify().tls("spiffe://bank.example/opa")
    with Opa(authority, path, tmp_path) as opa:
        with pytest.raises(PDPError, match="pdp_tls: "):
            OpaPDP(opa.url, tls=tls).evaluate(b"{}")
        with pytest.raises(httpx.ConnectError):
            httpx.Client(verify=tls()).post(opa.url, json={})
    assert opa.noted == []


def test_a_peer_is_named_by_its_spiffe_id(api: WorkloadApi, identify: Callable[..., SpiffeIdentity]) -> None:
    """A host name proves no workload, plain HTTP none, and a domain whose bundle is not at hand neither."""
    api.give(BANK.svid("/payer"))
    identity = identify()
    for wrong in ("opa.bank.example", "https://opa", "spiffe://bank.example"):
        with pytest.raises(ConfigError):
            identity.tls(wrong)
    with pytest.raises(ConfigError):
        OpaPDP("http://127.0.0.1:1", tls=identity.tls("spiffe://bank.example/opa"))
    with pytest.raises(AuthzError) as unknown:
        identity.tls("spiffe://else.example/opa")()
    assert unknown.value.code == "workload_unproven"
