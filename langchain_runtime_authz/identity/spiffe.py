"""Prove this workload by SPIFFE, and verify other workloads. Extra: `spiffe`.

A JWT-SVID has neither `jti` nor `client_id`, so `OidcVerifier` does not accept it as an access token.
"""

from __future__ import annotations

import datetime
import re
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from langchain_runtime_authz.credential import token as claim
from langchain_runtime_authz.credential.jwks import Keys, usable_keys
from langchain_runtime_authz.credential.jws import is_signed_by, parse_jws
from langchain_runtime_authz.credential.signer import ALGORITHMS
from langchain_runtime_authz.errors import AuthzError, Code, ConfigError
from langchain_runtime_authz.evaluation import Subject
from langchain_runtime_authz.identity.oidc import audiences_of, check_times, refusal
from langchain_runtime_authz.identity.providers import shown_claim, typ_of
from langchain_runtime_authz.identity.workload import Proof, WorkloadIdentity

if TYPE_CHECKING:  # `spiffe` loads gRPC
    from cryptography.x509 import Certificate
    from spiffe import WorkloadApiClient, X509Svid
    from spiffe.workloadapi.x509_context import X509Context

TYPES: Final = ("", "jwt", "jose")  # JWT-SVID §2.3
TIMEOUT: Final = 2.0  # seconds for fetching a JWT-SVID
MAX_PAUSE: Final = 5.0  # seconds between two retries
# SPIFFE-ID §2: no query, fragment, port, dot segments or empty segments
_DOMAIN: Final = re.compile(r"[a-z0-9._-]{1,255}")
_ID: Final = re.compile(r"spiffe://([a-z0-9._-]{1,255})((?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._-]+)+)")
MAX_ID: Final = 2048


class SpiffeIdentity(WorkloadIdentity):
    """The identity of this process, proven by its newest X.509-SVID.

    The SVID must be current and of the trust domain, and its chain must end in that domain's bundle.

    Args:
        trust_domain: like `bank.example`. SVIDs of other trust domains are refused.
        spiffe_id: the id to use, if the Workload API may give several.
        socket: address of the Workload API, like `unix:///run/agent.sock`; by default $SPIFFE_ENDPOINT_SOCKET.
        wait: seconds for which the constructor waits for the first SVID.
    """

    def __init__(
        self,
        trust_domain: str,
        *,
        spiffe_id: str | None = None,
        socket: str | None = None,
        wait: float = 5.0,
    ) -> None:
        try:
            import spiffe  # noqa: F401  (takes seconds on a slow machine, so not later while a call waits)
        except ImportError:
            raise ConfigError("SPIFFE needs the extra: pip install 'langchain-runtime-authz[spiffe]'") from None
        self.trust_domain = checked_domain(trust_domain)
        if spiffe_id is not None and trust_domain_of(spiffe_id) != trust_domain:
            raise ConfigError("`spiffe_id` must be a SPIFFE id of the trust domain")
        self._wanted, self._socket = spiffe_id, socket
        self._client: WorkloadApiClient | None = None
        self._jwt_keys: dict[str, Keys] = {}
        self._x509: X509Context | None = None  # the context whose SVID proves the workload
        super().__init__(wait=wait)

    def jwt_keys(self, trust_domain: str) -> Keys | None:
        """Return a trust domain's JWT keys; `None` without its bundle or a current proof."""
        # If the Workload API is gone, its bundles may hold withdrawn keys. Then the proof soon expires too.
        return self._jwt_keys.get(trust_domain) if self.attested else None

    def jwt_svid(self, audience: str) -> str:
        """Return a JWT-SVID for `audience`, or raise `AuthzError`. Never log it."""
        client, own = self._client, self._id
        if client is None or own is None or not self.attested:
            self._unproven()
        from spiffe import SpiffeId
        from spiffe.errors import PySpiffeError

        try:
            svid = client.fetch_jwt_svid({audience}, SpiffeId(own), timeout=TIMEOUT)
        except (PySpiffeError, ValueError) as exc:  # `ValueError`: the channel was closed meanwhile
            raise AuthzError(Code.WORKLOAD_UNPROVEN, type(exc).__name__) from None
        if str(svid.spiffe_id) != own:
            raise AuthzError(Code.WORKLOAD_UNPROVEN, "the JWT-SVID is of another workload")
        return str(svid.token)

    def assertion(self, audience: str) -> Callable[[], str]:
        """Return a function that gives JWT-SVIDs, for `TokenExchange(client_assertion=)`."""
        return lambda: self.jwt_svid(audience)

    def tls(self, peer: str) -> Callable[[], ssl.SSLContext]:
        """Return a function that gives TLS contexts for `peer` (`OpaPDP(url, tls=...)`).

        This workload presents its X.509-SVID. The peer's SVID must name `peer` and chain to the bundle of its trust
        domain; the host name is not checked. Call the function for each connection, because SVIDs rotate. Raises
        `ConfigError` if `peer` is not a SPIFFE id. The function raises `AuthzError` (`workload_unproven`) without a
        current proof or that bundle.
        """
        domain = trust_domain_of(peer)
        if domain is None:
            raise ConfigError("`peer` must be a SPIFFE id, like `spiffe://bank.example/opa`")
        kept: list[Any] = [None, None]

        def context() -> ssl.SSLContext:
            shown = self._x509
            if shown is None or not self.attested:
                self._unproven()
            if kept[0] is not shown:
                kept[:] = shown, mutual_tls(self._own(shown)[0], _bundle(shown, str(domain)), peer)
            return kept[1]  # type: ignore[no-any-return]

        return context

    def _own(self, context: X509Context) -> list[X509Svid]:
        return [s for s in context.x509_svids if self._wanted in (None, str(s.spiffe_id))]

    def _watch(self) -> None:
        pause = 0.1
        while not self._closed.is_set():
            ended = threading.Event()
            pause = 0.1 if self._connected(ended) else min(pause * 2, MAX_PAUSE)
            self._closed.wait(pause)

    def _connected(self, ended: threading.Event) -> bool:
        """Receive proofs until the stream ends (`ended`) or `close`. True if any arrived."""
        from spiffe import WorkloadApiClient
        from spiffe.errors import PySpiffeError

        got = False

        def over(exc: Exception) -> None:
            self._miss(str(exc))
            ended.set()

        def renewed(context: X509Context) -> None:
            nonlocal got
            got = True
            self._update(context)

        try:
            client = WorkloadApiClient(self._socket)
        except PySpiffeError as exc:
            self._miss(str(exc))
            return False
        try:
            # An API without JWT-SVIDs may still have X.509-SVIDs. So the library retries the JWT bundles by itself.
            streams = [
                client.stream_x509_contexts(renewed, over, retry_connect=False),
                client.stream_jwt_bundles(self._bundled, lambda _: None),
            ]
            self._client = client
            while not ended.wait(0.2) and not self._closed.is_set():
                pass
            for stream in streams:
                stream.cancel()
        finally:
            self._client = None
            client.close()
        return got

    def _update(self, context: X509Context) -> None:
        svid = next(iter(self._own(context)), None)
        if svid is None:
            self._refuse("the Workload API gives no SVID with the wanted SPIFFE id")
            return
        domain = svid.spiffe_id.trust_domain.name
        wrong = f"expected an SVID of `{self.trust_domain}`, found `{domain}`" if domain != self.trust_domain else None
        if wrong := wrong or why_unproven(svid.cert_chain, _bundle(context, self.trust_domain)):
            self._refuse(wrong)
            return
        self._accept(Proof(str(svid.spiffe_id), svid.cert_chain[0].not_valid_after_utc.timestamp()))
        self._x509 = context if self.attested else None  # `_accept` refuses another workload's proof

    def _bundled(self, bundles: Any) -> None:
        from jwt.algorithms import ECAlgorithm, RSAAlgorithm

        def jwk(key: Any) -> Any:
            return (RSAAlgorithm if hasattr(key.public_numbers(), "n") else ECAlgorithm).to_jwk(key, as_dict=True)

        keys = {b.trust_domain.name: b.jwt_authorities for b in bundles.bundles}
        self._jwt_keys = {domain: {kid: jwk(key) for kid, key in each.items()} for domain, each in keys.items()}


def _bundle(context: X509Context, trust_domain: str) -> set[Certificate]:
    from spiffe import TrustDomain

    found = context.x509_bundle_set.get_bundle_for_trust_domain(TrustDomain(trust_domain))
    return set() if found is None else found.x509_authorities


def mutual_tls(svid: X509Svid, authorities: set[Certificate], peer: str) -> ssl.SSLContext:
    """Return a TLS context that accepts only `peer`, or raise without `authorities`."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    if not authorities:
        raise AuthzError(Code.WORKLOAD_UNPROVEN, f"the bundle of `{trust_domain_of(peer)}` is not at hand")

    def checking(base: Any) -> Any:
        def do_handshake(self: Any, *args: Any) -> None:
            base.do_handshake(self, *args)
            found = [value for kind, value in (self.getpeercert() or {}).get("subjectAltName", ()) if kind == "URI"]
            if found != [peer]:
                raise ssl.SSLCertVerificationError(
                    f"expected `{peer}`, found {shown_claim(found[0] if found else None)}"
                )

        return type(base.__name__, (base,), {"do_handshake": do_handshake})

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # a workload is named by its SPIFFE id
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # an authority need not be self-signed
    context.sslobject_class, context.sslsocket_class = checking(ssl.SSLObject), checking(ssl.SSLSocket)
    context.load_verify_locations(cadata=b"".join(a.public_bytes(Encoding.DER) for a in authorities))
    with tempfile.NamedTemporaryFile() as file:  # readable by this user only; Python loads keys only from files
        file.write(svid.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        file.write(b"".join(certificate.public_bytes(Encoding.PEM) for certificate in svid.cert_chain))
        file.flush()
        context.load_cert_chain(file.name)
    return context


def why_unproven(chain: list[Certificate], authorities: set[Certificate]) -> str | None:
    """Return why a chain, leaf first, does not prove its leaf now; `None` if it does."""
    from cryptography.x509.verification import ExtensionPolicy, PolicyBuilder, Store, VerificationError

    now, leaf = time.time(), chain[0]
    if now < leaf.not_valid_before_utc.timestamp() - claim.LEEWAY:
        return "the SVID is not valid yet; synchronise the clocks"
    if now >= leaf.not_valid_after_utc.timestamp():
        return "the SVID has expired"
    if not authorities:
        return "the trust domain has no bundle"
    at = max(now, leaf.not_valid_before_utc.timestamp())
    policy = PolicyBuilder().store(Store(list(authorities))).time(datetime.datetime.fromtimestamp(at, datetime.UTC))
    # X509-SVID §4 asks for other extensions than the Web PKI. The library checked them when it parsed the leaf.
    policy = policy.extension_policies(
        ca_policy=ExtensionPolicy.webpki_defaults_ca(), ee_policy=ExtensionPolicy.permit_all()
    )
    try:
        policy.build_client_verifier().verify(leaf, chain[1:])
    except VerificationError:
        return "the SVID's chain does not end in the trust domain's bundle"
    return None


class SvidVerifier:
    """Verify the JWT-SVIDs of other workloads (JWT-SVID §4), without fetching keys.

    The subject is a `service`, whose id is the SPIFFE id. It is never a user.

    Args:
        trust_domains: the trust domains whose workloads are accepted.
        audience: this service, as in the token's `aud`.
        keys: returns the keys of a trust domain, or `None` for an unknown one: `SpiffeIdentity.jwt_keys`, or
            `{"bank.example": bundle_keys(document)}.get`.
    """

    def __init__(
        self,
        *trust_domains: str,
        audience: str,
        keys: Callable[[str], Keys | None],
    ) -> None:
        if not trust_domains or not audience or not callable(keys):
            raise ConfigError("a verifier of SVIDs needs `trust_domains`, an `audience` and `keys`")
        self._domains = frozenset(map(checked_domain, trust_domains))
        self._audience, self._keys = audience, keys

    def verify(self, token: str, *, now: float | None = None) -> Subject:
        """Return the workload that a token proves. No error quotes the token.

        Raises `AuthzError`: `identity_invalid` for a refused token, `identity_unavailable` without the domain's bundle.
        """
        jws = parse_jws(token, typ=None, algorithms=ALGORITHMS, code=Code.IDENTITY_INVALID)
        if typ_of(jws.header) not in TYPES:
            raise refusal(f"expected the header's `typ` JWT, JOSE or none, found {shown_claim(jws.header.get('typ'))}")
        workload = jws.claims.get(claim.SUBJECT)
        domain = trust_domain_of(workload)
        if domain not in self._domains:
            wanted = ", ".join(f"`{d}`" for d in sorted(self._domains))
            raise refusal(f"expected a workload of {wanted}, found {shown_claim(domain)}")
        keys = self._keys(str(domain))
        if keys is None:
            raise AuthzError(Code.IDENTITY_UNAVAILABLE, f"the bundle of `{domain}` is not at hand")
        if not is_signed_by(jws, keys.get(str(jws.header["kid"]))):
            raise refusal("it is not signed with a key of the trust domain's bundle")
        if self._audience not in audiences_of(jws.claims):
            raise refusal(f"expected `aud` {self._audience}, found {shown_claim(jws.claims.get(claim.AUDIENCE))}")
        check_times(jws.claims, time.time() if now is None else now, issued=False)
        properties: dict[str, Any] = {"trust_domain": domain, "attested": True}
        return Subject(type="service", id=str(workload), properties=properties)

    async def averify(self, token: str, *, now: float | None = None) -> Subject:
        return self.verify(token, now=now)


def trust_domain_of(spiffe_id: object) -> str | None:
    """Return a SPIFFE id's trust domain; `None` if the value is not a workload's id."""
    if not isinstance(spiffe_id, str) or len(spiffe_id) > MAX_ID:
        return None
    found = _ID.fullmatch(spiffe_id)
    return None if found is None else found[1]


def checked_domain(trust_domain: str) -> str:
    """Return `trust_domain` if it is a valid name, or raise `ConfigError`."""
    if not isinstance(trust_domain, str) or not _DOMAIN.fullmatch(trust_domain):
        raise ConfigError("a trust domain is a name in lower case, like `bank.example`")
    return trust_domain


def bundle_keys(document: Mapping[str, Any]) -> Keys:
    """Return the usable JWT keys of a SPIFFE bundle (Trust Domain and Bundle §4.2)."""
    own = [j for j in document.get("keys") or () if isinstance(j, Mapping) and j.get("use") == "jwt-svid"]
    return usable_keys({"keys": [{k: v for k, v in jwk.items() if k != "use"} for jwk in own]}) or {}
