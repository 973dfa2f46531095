"""Run a Jaeger binary on free loopback ports, with its storage in memory, until you press Ctrl-C.

`.ci/services` builds one and prints its path as LRA_JAEGER. Run `python examples/jaeger/serve.py "$LRA_JAEGER"`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

CONFIG = Path(__file__).with_name("jaeger.yaml")
READY = 60  # seconds


class Jaeger(NamedTuple):
    """Where a Jaeger listens."""

    otlp: str
    query: str


def free_ports(count: int) -> list[int]:
    """Return ports of this machine that nobody uses."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def serving(binary: str) -> Iterator[Jaeger]:
    """Run the binary until the block ends."""
    otlp, query, grpc = free_ports(3)
    ports = {"JAEGER_OTLP_PORT": str(otlp), "JAEGER_QUERY_PORT": str(query), "JAEGER_GRPC_PORT": str(grpc)}
    command = [binary, "--config", str(CONFIG)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env={**os.environ, **ports}, stdout=log, stderr=log)
        try:
            found = Jaeger(f"http://127.0.0.1:{otlp}", f"http://127.0.0.1:{query}")
            if not _answers(process, found.query):
                log.seek(0)
                raise RuntimeError(f"Jaeger did not start: {log.read().decode()[-2000:]}")
            yield found
        finally:
            process.kill()  # asked to end, it waits ten seconds for its connections; its storage is in memory
            process.wait()


def _answers(process: subprocess.Popen[bytes], query: str) -> bool:
    until = time.monotonic() + READY
    while process.poll() is None and time.monotonic() < until:
        with suppress(OSError):
            urllib.request.urlopen(f"{query}/api/services", timeout=5).close()
            return True
        time.sleep(0.1)
    return False


def main() -> None:
    """Run the binary that the command line or LRA_JAEGER names."""
    binary = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("LRA_JAEGER")
    if not binary:
        raise SystemExit("name the Jaeger binary: python examples/jaeger/serve.py PATH")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with serving(binary) as jaeger:
        print(f"send traces:  runtime-authz demo --otlp {jaeger.otlp}")
        print(f"read them:    {jaeger.query}/api/traces?service=runtime-authz-demo", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
