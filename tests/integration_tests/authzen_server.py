"""A small PDP that conforms to AuthZEN 1.0: evaluation, evaluations, metadata, over any engine of ours."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Engine = Callable[[dict[str, Any]], dict[str, Any]]


class AuthzenServer(ThreadingHTTPServer):
    """Serves on loopback until the end of the `with` block.

    `engine` answers one merged request. `metadata` replaces members of the metadata document.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, engine: Engine, *, certificate: Path | None = None, **metadata: Any) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.engine = engine
        self.asked: list[tuple[str, str | None, dict[str, Any]]] = []
        self.url = f"http{'s' if certificate else ''}://127.0.0.1:{self.server_address[1]}"
        self.metadata = {
            "policy_decision_point": self.url, "access_evaluation_endpoint": f"{self.url}/access/v1/evaluation",
            "access_evaluations_endpoint": f"{self.url}/access/v1/evaluations", **metadata,
        }
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)

    def __enter__(self) -> AuthzenServer:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()
        self.server_close()


def evaluations(engine: Engine, request: dict[str, Any]) -> list[dict[str, Any]]:
    """AuthZEN 1.0 §7: top-level members are defaults."""
    answers = []
    for item in request["evaluations"]:
        try:
            answers.append(engine(merged(item, request)))
        except ValueError:  # §7.1.2: one that fails is a deny
            answers.append({"decision": False})
    return answers


def merged(item: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Return one evaluation in full. It inherits the members that it omits; unknown members of the whole stay with it."""
    return {**{name: value for name, value in defaults.items() if name not in ("evaluations", "options")}, **item}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: AuthzenServer

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        known = self.path.startswith("/.well-known/authzen-configuration")
        self._reply(200 if known else 404, self.server.metadata if known else {})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            request = json.loads(body)
            self.server.asked.append((self.path, self.headers.get("X-Request-ID"), request))
            match self.path.removeprefix(self.server.metadata.get("prefix", "")):
                case "/access/v1/evaluations" if request.get("evaluations"):
                    self._reply(200, {"evaluations": evaluations(self.server.engine, request)})
                case "/access/v1/evaluation" | "/access/v1/evaluations":
                    assert {"subject", "action", "resource"} <= request.keys()
                    self._reply(200, self.server.engine(request))
                case _:
                    self._reply(404, {})
        except (ValueError, KeyError, AssertionError):
            self._reply(400, {"error": "not an evaluation"})

    def _reply(self, status: int, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if (sent := self.headers.get("X-Request-ID")) is not None:
            self.send_header("X-Request-ID", sent)
        self.end_headers()
        self.wfile.write(body)
