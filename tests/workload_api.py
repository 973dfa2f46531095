"""A SPIFFE Workload API in this process: certificates, JWT-SVIDs and a socket like SPIRE's, to be bent by tests."""

import base64
import datetime
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from spiffe._proto import workload_pb2, workload_pb2_grpc

from langchain_runtime_authz.credential.signer import SigningKey


class Authority:
    """One trust domain's: signs X.509-SVIDs and JWT-SVIDs."""

    def __init__(self, trust_domain: str) -> None:
        self.trust_domain, self.jwt = trust_domain, SigningKey.generate()
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._signed(self._key.public_key(), f"spiffe://{trust_domain}", -60, 86400, ca=True)

    def _signed(self, key: Any, spiffe_id: str, starts: float, ends: float, *, ca: bool = False) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        usage = x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False)
        own = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, self.trust_domain)])
        made = (
            x509.CertificateBuilder()
            .subject_name(own if ca else x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "SPIRE")]))
            .issuer_name(own)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(seconds=starts))
            .not_valid_after(now + datetime.timedelta(seconds=ends))
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(spiffe_id)]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )
        if not ca:
            made = made.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        return made.sign(self._key, hashes.SHA256())

    def svid(self, path: str, *, starts: float = -10, ends: float = 60) -> workload_pb2.X509SVID:
        """An X.509-SVID, with the bundle of this authority."""
        key = ec.generate_private_key(ec.SECP256R1())
        spiffe_id = f"spiffe://{self.trust_domain}{path}"
        return workload_pb2.X509SVID(
            spiffe_id=spiffe_id,
            x509_svid=self._signed(key.public_key(), spiffe_id, starts, ends).public_bytes(serialization.Encoding.DER),
            x509_svid_key=key.private_bytes(
                serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
            bundle=self.certificate.public_bytes(serialization.Encoding.DER),
        )

    def jwt_svid(self, path: str, audience: Any, *, typ: str | None = "JWT", key: SigningKey | None = None, **claims: Any) -> str:
        """A JWT-SVID; a claim that is `None` is left out."""
        key, now = key or self.jwt, int(time.time())
        header = {"alg": key.alg, "kid": self.jwt.kid, **({"typ": typ} if typ is not None else {})}
        body = {"aud": audience, "sub": f"spiffe://{self.trust_domain}{path}", "iat": now, "exp": now + 60, **claims}
        text = ".".join(_b64(json.dumps({k: v for k, v in part.items() if v is not None}).encode()) for part in (header, body))
        return f"{text}.{_b64(key.sign(text.encode()))}"

    def bundle(self) -> dict[str, Any]:
        """The SPIFFE bundle, as a bundle endpoint serves it."""
        return {"keys": [{**self.jwt.public_jwk(), "use": "jwt-svid"}], "spiffe_refresh_hint": 300}


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class WorkloadApi(workload_pb2_grpc.SpiffeWorkloadAPIServicer):
    """The Workload API on a socket. `give` says what each stream sends next; without SVIDs it denies, as SPIRE does."""

    def __init__(self, socket: Path, authority: Authority) -> None:
        self.path, self.url, self.authority = socket, f"unix://{socket}", authority
        self._changed, self._version = threading.Condition(), 0
        self.svids: list[workload_pb2.X509SVID] = []
        self._server: grpc.Server | None = None

    def give(self, *svids: workload_pb2.X509SVID) -> None:
        with self._changed:
            self.svids, self._version = list(svids), self._version + 1
            self._changed.notify_all()

    def start(self) -> None:
        self._server = grpc.server(ThreadPoolExecutor(16))
        workload_pb2_grpc.add_SpiffeWorkloadAPIServicer_to_server(self, self._server)
        self._server.add_insecure_port(self.url)
        self._server.start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop(0).wait()
            self.path.unlink(missing_ok=True)

    def _versions(self, context: Any) -> Any:
        seen = -1
        while context.is_active():
            with self._changed:
                self._changed.wait_for(lambda: self._version != seen, 0.1)
                if self._version == seen:
                    continue
                seen = self._version
            if not self.svids:
                context.abort(grpc.StatusCode.PERMISSION_DENIED, "no identity issued")
            yield

    def FetchX509SVID(self, request: Any, context: Any) -> Any:
        for _ in self._versions(context):
            yield workload_pb2.X509SVIDResponse(svids=self.svids)

    def FetchJWTBundles(self, request: Any, context: Any) -> Any:
        keys = json.dumps(self.authority.bundle()).encode()
        for _ in self._versions(context):
            yield workload_pb2.JWTBundlesResponse(bundles={f"spiffe://{self.authority.trust_domain}": keys})

    def FetchJWTSVID(self, request: Any, context: Any) -> Any:
        if not self.svids:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "no identity issued")
        spiffe_id = self.svids[0].spiffe_id
        path = "/" + spiffe_id.removeprefix("spiffe://").partition("/")[2]
        token = self.authority.jwt_svid(path, list(request.audience))
        return workload_pb2.JWTSVIDResponse(svids=[workload_pb2.JWTSVID(spiffe_id=spiffe_id, svid=token)])
