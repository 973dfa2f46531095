"""A SPIRE server and agent of this machine, for tests: real attestation by user id, real rotation."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from tests.threads import until

from .services import free_port

DOMAIN = "bank.example"
NODE = f"spiffe://{DOMAIN}/node"

SERVER = """
server {{
  bind_address = "127.0.0.1"
  bind_port = "{port}"
  socket_path = "{home}/server.sock"
  trust_domain = "{domain}"
  data_dir = "{home}/server"
  log_level = "INFO"
  log_file = "{home}/server.log"
  jwt_issuer = "https://spire.{domain}"
}}
plugins {{
  DataStore "sql" {{ plugin_data {{ database_type = "sqlite3" connection_string = "{home}/server.sqlite3" }} }}
  KeyManager "memory" {{ plugin_data {{}} }}
  NodeAttestor "join_token" {{ plugin_data {{}} }}
}}
"""
AGENT = """
agent {{
  data_dir = "{home}/agent"
  log_level = "INFO"
  log_file = "{home}/agent.log"
  server_address = "127.0.0.1"
  server_port = "{port}"
  socket_path = "{home}/agent.sock"
  trust_domain = "{domain}"
  trust_bundle_path = "{home}/bundle.pem"
}}
plugins {{
  KeyManager "disk" {{ plugin_data {{ directory = "{home}/agent" }} }}
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  WorkloadAttestor "unix" {{ plugin_data {{}} }}
}}
"""


def spire_binaries() -> Path:
    """Where the binaries are; without them the tests that need them fail."""
    found = Path(os.environ.get("LRA_SPIRE", ""))
    assert (found / "spire-server").is_file(), 'no SPIRE: `eval "$(.ci/identity)"` builds it and sets LRA_SPIRE'
    return found


class Spire:
    """`home` must be short: a Unix socket's path has about a hundred characters."""

    def __init__(self, home: Path) -> None:
        self.home, self.port, self.bin = home, free_port(), spire_binaries()
        self.socket = f"unix://{home}/agent.sock"
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Spire:
        for name, text in (("server", SERVER), ("agent", AGENT)):
            (self.home / name).mkdir(parents=True)
            (self.home / f"{name}.conf").write_text(text.format(home=self.home, port=self.port, domain=DOMAIN))
        self._spawn("server", "spire-server", "run", "-config", f"{self.home}/server.conf")
        until(lambda: self.server("healthcheck").returncode == 0)
        (self.home / "bundle.pem").write_text(self.server("bundle", "show").stdout)
        token = self.server("token", "generate", "-spiffeID", NODE).stdout.split()[-1]
        self.start_agent("-joinToken", token)
        return self

    def __exit__(self, *_: object) -> None:
        for name in ("agent", "server"):
            self.stop(name)

    def start_agent(self, *options: str) -> None:
        self._spawn("agent", "spire-agent", "run", "-config", f"{self.home}/agent.conf", *options)
        command = (str(self.bin / "spire-agent"), "healthcheck", "-socketPath", f"{self.home}/agent.sock")
        until(lambda: subprocess.run(command, capture_output=True, check=False).returncode == 0)

    def stop(self, name: str) -> None:
        process = self._running.pop(name, None)
        if process is not None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(20)

    def server(self, *command: str) -> subprocess.CompletedProcess[str]:
        where = ("-socketPath", f"{self.home}/server.sock")
        return subprocess.run([self.bin / "spire-server", *command, *where], capture_output=True, text=True, check=False)

    def entry(self, path: str, *selectors: str, ttl: int = 60) -> str:
        """Register a workload; return the entry's id."""
        named = [part for selector in selectors for part in ("-selector", selector)]
        made = self.server(
            "entry", "create", "-parentID", NODE, "-spiffeID", f"spiffe://{DOMAIN}{path}", *named,
            "-x509SVIDTTL", str(ttl), "-jwtSVIDTTL", str(ttl),
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        return next(line.split(":", 1)[1].strip() for line in made.stdout.splitlines() if line.startswith("Entry ID"))

    def log(self, name: str, *words: str) -> list[str]:
        """Lines of a log that hold all words."""
        lines = (self.home / f"{name}.log").read_text().splitlines()
        return [line for line in lines if all(word in line for word in words)]

    def _spawn(self, name: str, program: str, *arguments: str) -> None:
        out = (self.home / f"{name}.out").open("ab")
        self._running[name] = subprocess.Popen([self.bin / program, *arguments], stdout=out, stderr=out)
