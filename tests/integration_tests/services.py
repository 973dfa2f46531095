"""Real services for the integration tests: OPA as a process, and certificates to serve with."""

from __future__ import annotations

import datetime
import ipaddress
import os
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.threads import until

POLICIES = Path(__file__).parents[2] / "langchain_runtime_authz" / "policies"
SHIPPED = (POLICIES / "rego" / "runtime_authz.rego", POLICIES / "data.json")


def opa_binary() -> str:
    """The OPA binary; without one the tests that need it fail."""
    binary = os.environ.get("LRA_OPA") or shutil.which("opa")
    assert binary, "no OPA: set LRA_OPA to the binary or put `opa` on the PATH"
    return binary


def answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def free_port() -> int:
    """A port on loopback that nobody listens on.

    Below those that a system gives to connections by itself, or another test's may have it before it is used.
    """
    while True:
        port = 15_000 + secrets.randbelow(17_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextmanager
def ledger_schema(*, graphs: bool = False) -> Iterator[tuple[str, str]]:
    """The address of the PostgreSQL that `.ci/services` starts, and a schema of its own; with `graphs`, one for checkpoints too."""
    import psycopg

    from langchain_runtime_authz.ledger.admin import migrate
    from langchain_runtime_authz.ledger.postgres import administer

    dsn, schema = os.environ["LRA_POSTGRES_DSN"], f"t_{secrets.token_hex(4)}"
    with administer(dsn, schema=schema, create=True) as admin:
        migrate(admin)
    with psycopg.connect(dsn) as conn:
        if graphs:
            conn.execute(f"CREATE SCHEMA {schema}_graphs")
    yield dsn, schema
    with psycopg.connect(dsn) as conn:
        conn.execute(f"DROP SCHEMA IF EXISTS {schema}, {schema}_graphs CASCADE")


class OpaServer:
    """`opa run --server` that can be killed, paused and started again at the same address."""

    def __init__(self, *arguments: str | Path, address: str | None = None, wait: bool = True) -> None:
        self.address = address or f"127.0.0.1:{free_port()}"
        self.url = self.address if self.address.startswith("unix://") else f"http://{self.address}"
        self._arguments = [str(a) for a in arguments or SHIPPED]
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self.start(wait=wait)
        except BaseException:
            self.kill()
            raise

    def __enter__(self) -> OpaServer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()

    def start(self, *, wait: bool = True) -> None:
        """Start it; return when it listens."""
        command = [opa_binary(), "run", "--server", "--addr", self.address, "--log-level", "error", *self._arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if wait:
            until(self._up, told=lambda: "OPA does not listen")

    def _up(self) -> bool:
        assert self._process.poll() is None, "OPA ended at once"
        return self._listens()

    def _listens(self) -> bool:
        local = self.address.startswith("unix://")
        where = self.address.removeprefix("unix://") if local else ("127.0.0.1", int(self.address.rpartition(":")[2]))
        with socket.socket(socket.AF_UNIX if local else socket.AF_INET) as probe:
            return probe.connect_ex(where) == 0

    def kill(self) -> None:
        """End it without a chance to say so."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def ended(self) -> int:
        """Wait until it ends by itself; its exit code."""
        return self._process.wait(20)

    def pause(self) -> None:
        """Connections stay open and nothing answers."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)  # a busy process goes on for a moment

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def get(self, path: str) -> tuple[int, bytes]:
        """One GET, by nothing of ours."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as exc:
            return exc.code, exc.read()


class Authority:
    """A certificate authority of a test."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._certificate = self._signed(self._name, self._key, ca=True)
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, host: str) -> Path:
        """A PEM file with key and certificate for a host name or address."""
        key = ec.generate_private_key(ec.SECP256R1())
        try:
            name: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            name = x509.DNSName(host)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        certificate = self._signed(subject, key, names=x509.SubjectAlternativeName([name]))
        file = self._folder / f"{host}-{id(key)}.pem"
        private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        file.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
        return file

    def _signed(self, subject, key, *, ca: bool = False, names=None) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        own = self._key.public_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(own), critical=False)
        )
        if ca:
            usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
            builder = builder.add_extension(usage, critical=True)
        if names is not None:
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self._key, hashes.SHA256())


def our_threads() -> set[threading.Thread]:
    """Threads of this package; what a test of another file left alive is among them before a test begins."""
    return {t for t in threading.enumerate() if t.name.startswith("runtime-authz")}
