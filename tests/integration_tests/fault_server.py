"""A PDP that misbehaves on purpose, one way per path prefix: `/<fault>/…`.

Threads and plain sockets, so that every byte is under control. `open` counts connections that are
still open, `asked` the requests that came in per path.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def permit(path: str, request: bytes) -> bytes:
    """The permit that a healthy server of this kind gives: what must not get through."""
    document: object = {"decision": True}
    if path.endswith("/evaluations"):
        document = {"evaluations": [document] * len(json.loads(request)["evaluations"])}
    elif path.endswith("/batch?provenance=true"):
        document = [document] * len(json.loads(request)["input"]["requests"])
    return json.dumps({"result": document} if "/v1/data/" in path else document).encode()


def whole(body: bytes, head: bytes = HEAD, length: int | None = None) -> bytes:
    """A response with a `Content-Length`."""
    return head + b"Content-Length: %d\r\n\r\n" % (len(body) if length is None else length) + body


def status(line: str, extra: str = "") -> Callable[[socket.socket, bytes], None]:
    """Another status than 200, with the permit as body where HTTP allows one."""
    head = f"HTTP/1.1 {line}\r\n{extra}".encode()
    if line[:3] in ("204", "304"):
        return lambda conn, body: conn.sendall(head + b"\r\n")
    return lambda conn, body: conn.sendall(whole(body, head))


def drip(conn: socket.socket, text: bytes) -> None:
    """A byte at a time, for ever."""
    while True:
        for byte in text:
            conn.sendall(bytes((byte,)))
            time.sleep(0.02)


def hang(conn: socket.socket, body: bytes) -> None:
    """Nothing, until the other side goes."""
    conn.recv(1)


def flood(conn: socket.socket, piece: bytes, times: int = 10_000_000) -> None:
    """The same again and again."""
    for _ in range(times):
        conn.sendall(piece)


def chunked(conn: socket.socket, size: int) -> None:
    """Spaces in chunks, without a length in front."""
    conn.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    for _ in range(size // 65536):
        conn.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
    conn.sendall(b"0\r\n\r\n")


def reset(conn: socket.socket, body: bytes) -> None:
    """RST in place of an answer."""
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raise ConnectionError


def leave(conn: socket.socket, body: bytes) -> None:
    """FIN in place of an answer."""
    raise ConnectionError


def answered(body: bytes) -> Callable[[socket.socket, bytes], None]:
    """A fixed body with status 200."""
    return lambda conn, _: conn.sendall(whole(body))


def altered(change: Callable[[bytes], bytes]) -> Callable[[socket.socket, bytes], None]:
    """The permit, spoilt."""
    return lambda conn, body: conn.sendall(whole(change(body)))


def half(conn: socket.socket, body: bytes) -> None:
    """Half of the body, then gone."""
    conn.sendall(whole(body[: len(body) // 2], length=len(body)))
    raise ConnectionError


BOMB = gzip.compress(b" " * 10_000_000)
PERMIT = b'"decision": true'

# name → (what it does, the code of the denial for OPA, for AuthZEN where it differs)
FAULTS: dict[str, tuple[Callable[[socket.socket, bytes], None], str, str | None]] = {
    "hangs": (hang, "pdp_timeout", None),
    "drips-head": (lambda c, b: drip(c, b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 4000), "pdp_timeout", None),
    "drips-body": (lambda c, b: (c.sendall(whole(b"", length=10_000)), drip(c, b" "))[0], "pdp_timeout", None),
    "continues-for-ever": (lambda c, b: drip(c, b"HTTP/1.1 100 Continue\r\n\r\n"), "pdp_timeout", None),
    "body-too-short": (lambda c, b: (c.sendall(whole(b, length=len(b) + 10)), hang(c, b))[0], "pdp_timeout", None),
    "redirects": (status("302 Found", "Location: /permits\r\n"), "pdp_redirect", None),
    "redirects-the-post": (status("307 Temporary Redirect", "Location: /permits\r\n"), "pdp_redirect", None),
    "not-modified": (status("304 Not Modified"), "pdp_redirect", None),
    "unauthorized": (status("401 Unauthorized", "WWW-Authenticate: Bearer\r\n"), "pdp_unauthorized", None),
    "forbidden": (status("403 Forbidden"), "pdp_unauthorized", None),
    "fails-with-json": (status("500 Internal Server Error", "Content-Type: application/json\r\n"), "pdp_status", None),
    "unavailable": (status("503 Service Unavailable", "Retry-After: 0\r\n"), "pdp_status", None),
    "no-content": (status("204 No Content"), "pdp_status", None),
    "created": (status("201 Created"), "pdp_status", None),
    "html": (
        lambda c, b: c.sendall(whole(b'<html>"decision": true</html>', b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n")),
        "pdp_malformed", None,
    ),
    "empty": (answered(b""), "pdp_malformed", None),
    "null": (answered(b"null"), "pdp_malformed", None),
    "true": (answered(b"true"), "pdp_malformed", None),
    "array": (altered(lambda b: b"[" + b + b"]"), "pdp_malformed", None),
    "no-result": (answered(b"{}"), "pdp_undefined", "pdp_malformed"),
    "half-a-document": (altered(lambda b: b[:-1]), "pdp_malformed", None),
    "half-a-body": (half, "pdp_protocol", None),
    "length-too-small": (lambda c, b: c.sendall(whole(b, length=len(b) - 3)), "pdp_protocol", None),
    "length-no-number": (lambda c, b: c.sendall(HEAD + b"Content-Length: many\r\n\r\n" + b), "pdp_protocol", None),
    "two-lengths": (
        lambda c, b: c.sendall(HEAD + b"Content-Length: 2\r\nContent-Length: %d\r\n\r\n" % len(b) + b), "pdp_protocol", None,
    ),
    "broken-chunks": (lambda c, b: c.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + b), "pdp_protocol", None),
    "no-http": (lambda c, b: c.sendall(b"SSH-2.0-x\r\n" * 10 + b), "pdp_protocol", None),
    "endless-head": (lambda c, b: flood(c, b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 65536), "pdp_protocol", None),
    "leaves": (leave, "pdp_unreachable", None),
    "resets": (reset, "pdp_unreachable", None),
    "gzip-bomb": (lambda c, b: c.sendall(whole(BOMB, HEAD + b"Content-Encoding: gzip\r\n")), "pdp_malformed", None),
    "gzip": (lambda c, b: c.sendall(whole(gzip.compress(b), HEAD + b"Content-Encoding: gzip\r\n")), "pdp_malformed", None),
    "ten-megabytes": (altered(lambda b: b" " * 10_000_000 + b), "pdp_too_large", None),
    "ten-megabytes-in-chunks": (lambda c, b: chunked(c, 10_000_000), "pdp_too_large", None),
    "no-utf8": (altered(lambda b: b.replace(b"{", b'{"\xff": 1, ', 1)), "pdp_malformed", None),
    "utf16": (altered(lambda b: b.decode().encode("utf-16")), "pdp_malformed", None),
    "duplicate-keys": (altered(lambda b: b.replace(PERMIT, b'"decision": false, ' + PERMIT)), "pdp_malformed", None),
    "text": (altered(lambda b: b.replace(PERMIT, b'"decision": "true"')), "pdp_malformed", None),
    "number": (altered(lambda b: b.replace(PERMIT, b'"decision": 1')), "pdp_malformed", None),
    "nan": (altered(lambda b: b.replace(PERMIT, PERMIT + b', "context": {"ttl": NaN}')), "pdp_malformed", None),
    "deep": (answered(b"[" * 60_000), "pdp_malformed", None),
    "two-documents": (altered(lambda b: b + b), "pdp_malformed", None),
}


class FaultServer:
    """Serves on loopback until the end of the `with` block."""

    def __init__(self, certificate: Path | None = None) -> None:
        self.asked: Counter[str] = Counter()
        self.open = 0
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._tls = None
        if certificate is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(certificate)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        self.url = f"http{'s' if certificate else ''}://127.0.0.1:{self.port}"

    def __enter__(self) -> FaultServer:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with self._lock:
            self.open += 1
            self._connections.add(connection)
        try:
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._tls is not None:
                    connection = self._tls.wrap_socket(connection, server_side=True)
                with connection, connection.makefile("rb") as reader:
                    while self._answer(connection, reader):
                        pass
        except (OSError, ValueError):
            pass
        finally:
            with self._lock:
                self.open -= 1
                self._connections = {c for c in self._connections if c.fileno() >= 0}

    def _answer(self, connection: socket.socket, reader) -> bool:
        line = reader.readline().decode()
        if not line:
            return False
        path = line.split(" ")[1]
        length = 0
        while (header := reader.readline().decode().strip()) != "":
            name, _, value = header.partition(":")
            length = int(value) if name.lower() == "content-length" else length
        body = reader.read(length)
        with self._lock:
            self.asked[path] += 1
        self.answer(connection, path, body)
        return True

    def answer(self, connection: socket.socket, path: str, body: bytes) -> None:
        """Misbehave as the path says."""
        fault = path.split("/")[1]
        good = permit(path, body)
        if fault in FAULTS:
            FAULTS[fault][0](connection, good)
        else:
            connection.sendall(whole(good))

    def closed(self, seconds: float = 30.0) -> bool:
        """Whether every connection is closed, soon."""
        until = time.monotonic() + seconds
        while self.open and time.monotonic() < until:
            time.sleep(0.01)
        return self.open == 0
