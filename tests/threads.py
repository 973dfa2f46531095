"""Run work in threads at the same time, wait for what others do, and answer them."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def nothing_blocks() -> Iterator[None]:
    """As a fixture: raise `BlockingError` if a call that waits is made on a running loop with our code in the stack.

    The detector of `langgraph dev` leaves these out too: importlib and tokenizers look at files, and thread pools at locks.
    A lock of ours is held for a few lines of pure code, never across I/O.
    """
    import blockbuster

    from langchain_runtime_authz.mandate.languages import languages

    languages()  # an application makes its first `RuntimeAuthz`, which reads them, before its loop runs
    looks = ("os.stat", "os.listdir", "os.remove", "threading.Lock.acquire", "threading.Lock.acquire_lock")
    detector = blockbuster.BlockBuster(scanned_modules=["langchain_runtime_authz"])
    for name in list(detector.functions):
        if name in looks or name.startswith("os.path."):
            del detector.functions[name]
    detector.activate()
    yield
    detector.deactivate()


def together(work: Callable[[], object], times: int = 8) -> None:
    """Run `work` in so many threads at once and wait for all of them."""
    threads = [threading.Thread(target=work) for _ in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def until(what: Callable[[], Any], seconds: float = 60.0, told: Callable[[], str] = lambda: "it did not come in time") -> Any:
    """Wait until it is so, and return what it is then. `told` is what a failure says."""
    ends = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < ends, told()
        time.sleep(0.01)
    return found


@contextmanager
def serving(answer: Callable[[Any, bytes], Any], **headers: str) -> Iterator[ThreadingHTTPServer]:
    """A server on loopback. `answer` is given each request and its body, and returns a status or the body of a 200."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            said = answer(self, self.rfile.read(int(self.headers["Content-Length"] or 0)))
            status, body = (said, b"") if isinstance(said, int) else (200, said)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_PATCH = do_POST

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()
