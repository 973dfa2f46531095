"""Send HTTP requests by aiohttp, on an event loop in a thread of its own.

A `Link` has one event loop in one thread, which all callers share, on any thread or event loop. So the connection pool
has one owner, and stays open when a caller's loop ends. One deadline covers the whole exchange: waiting for a
connection, name, handshake, and every byte of the answer. A blocking socket cannot promise that.

Redirects, `~/.netrc`, proxies from the environment, cookies, retries and compression are off.
"""

from __future__ import annotations

import asyncio
import atexit
import base64
import importlib
import os
import ssl
import threading
import weakref
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import CancelledError as FutureCancelled
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypedDict, TypeVar, Unpack
from urllib.parse import quote_plus, unquote, urlencode, urlsplit

from langchain_runtime_authz._flow import Flow, Perform, both
from langchain_runtime_authz._renewed_files import bearer_token, tls_context
from langchain_runtime_authz._url import checked_url, is_loopback, is_plain_url, split_url
from langchain_runtime_authz._validate import checked_count, checked_seconds, wrong
from langchain_runtime_authz.errors import AuthzError, Code, ConfigError, PDPError
from langchain_runtime_authz.evaluation import MAX_ANSWER_BYTES, strict_json

if TYPE_CHECKING:
    import aiohttp

KEEP_ALIVE: Final = 30.0  # seconds for which an idle connection stays open
_GRACE: Final = 0.25  # seconds after the deadline for the other thread to report it
_OK: Final = 200
_NONE: Final[Mapping[str, str]] = {}
_PLAIN: Final = {"Accept": "application/json", "Accept-Encoding": "identity"}
_REFUSED: Final = (401, 403)

T = TypeVar("T")


class Connection(TypedDict, total=False):
    """Settings of a connection.

    Attributes:
        timeout: seconds for one exchange, everything included (1.0).
        ca_file: PEM file of the only trusted authorities; by default the system's.
        client_cert: PEM file, or pair of certificate and key file, for mutual TLS. These files and `ca_file` are
            read again when they change. While certificate and key do not match, every step is denied.
        tls: a function that returns the TLS context, like `identity.spiffe.SpiffeIdentity.tls`. It takes the place of
            `ca_file` and `client_cert`.
        proxy: URL of an HTTP proxy. A proxy in the environment is never used.
        pool_size: connections that may be open at the same time (10).
    """

    timeout: float
    ca_file: str | Path | None
    client_cert: str | Path | tuple[str | Path, str | Path] | None
    tls: Callable[[], ssl.SSLContext] | None
    proxy: str | None
    pool_size: int


class PDPConnection(Connection, total=False):
    """Settings of the connection to a PDP."""

    token_file: str | Path | None  # its content is sent as bearer token; read again when it changes


class Reply(NamedTuple):
    """A complete HTTP response."""

    status: int
    body: bytes
    headers: Mapping[str, str]


class Answer(NamedTuple):
    """An HTTP status, and the JSON object of the body, which `repr` hides."""

    status: int
    body: dict[str, Any] | None  # None: the body is not a JSON object

    def __repr__(self) -> str:
        return f"<Answer {self.status}>"


class _Pool:
    """An event loop in a thread, and the HTTP session that lives on it."""

    def __init__(self) -> None:
        self.session: aiohttp.ClientSession | None = None
        self.loop = asyncio.new_event_loop()
        self._names = ThreadPoolExecutor(2, thread_name_prefix="runtime-authz-names")
        self.loop.set_default_executor(self._names)
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._serve, name="runtime-authz-http", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
            self.loop.run_until_complete(self._close())
        finally:
            self.loop.close()

    def stop(self) -> None:
        """End all exchanges and the thread, without waiting for either."""
        if self._pid == os.getpid():  # in a fork, the thread does not exist
            # Never wait here: a garbage collection may call this while the current thread holds our lock.
            with suppress(RuntimeError):  # the loop is closed
                self.loop.call_soon_threadsafe(self.loop.stop)

    def wait(self) -> None:
        if self._pid == os.getpid() and threading.current_thread() is not self._thread:
            self._thread.join()

    async def _close(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if self.session is not None:
            await self.session.close()
        self._names.shutdown(wait=False)  # do not wait for DNS look-ups


class Link:
    """A pool of connections to one server.

    `url` is `http://host:port`, `https://…` or `unix:///path/of/a/socket`. A path in `url` is the prefix of all
    requests. The other arguments are as in `Connection`. Nothing connects before the first exchange.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 1.0,
        ca_file: str | Path | None = None,
        client_cert: str | Path | tuple[str | Path, str | Path] | None = None,
        tls: Callable[[], ssl.SSLContext] | None = None,
        token_file: str | Path | None = None,
        proxy: str | None = None,
        pool_size: int = 10,
        keep_alive: bool = True,
    ) -> None:
        self.timeout = checked_seconds("timeout", timeout)
        self.pool_size, self._keep_alive = checked_count("pool_size", pool_size), keep_alive
        parts = split_url("url", url)
        unix, secure = parts.scheme == "unix", parts.scheme == "https"
        here = unix or is_loopback(parts.hostname)
        self.private = secure or (here and proxy is None)
        if parts.username is not None or parts.query or parts.fragment:
            raise ConfigError("its URL must have no user, query or fragment")
        if unix and (not parts.path.startswith("/") or parts.netloc):
            raise ConfigError(f"a unix socket is `unix:///path`, not {url!r}")
        if not unix and not (parts.scheme in ("http", "https") and parts.hostname):
            raise ConfigError(f"its URL must be http, https or unix, not {url!r}")
        if (ca_file, client_cert, tls) != (None, None, None) and not secure:
            raise ConfigError("`ca_file`, `client_cert` and `tls` need an https URL")
        if tls is not None and (ca_file, client_cert) != (None, None):
            raise ConfigError("`tls` takes the place of `ca_file` and `client_cert`; give one of them")
        if token_file is not None and not self.private:
            raise ConfigError("a token is not sent in the clear: use https, a unix socket or a loopback address")
        if proxy is not None and not ((at := split_url("proxy", proxy)).scheme in ("http", "https") and at.hostname):
            raise ConfigError("`proxy` must be an http or https URL")  # not shown: it may hold a password
        if proxy is not None and unix:
            raise ConfigError("a unix socket is not reached by a proxy")
        self.socket_path = parts.path if unix else None
        self.root = "http://localhost" if unix else f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        importlib.import_module("aiohttp")  # slow, so here rather than in the first decision
        self._tls = (tls or tls_context(ca_file, client_cert).read) if secure else None
        self._token = bearer_token(token_file) if token_file is not None else None
        self._proxy = proxy
        self._lock = threading.Lock()
        self._pool: _Pool | None = None
        self._closed = False
        self._finalizer: weakref.finalize[Any, Link] | None = None
        _links.add(self)

    def below(self, name: str, path: object) -> str:
        """Return the URL of `path`; `ConfigError` if it is not below the link's URL."""
        url = f"{self.root}{path}"
        if not isinstance(path, str) or not path.startswith("/") or not is_plain_url(url) or "#" in path:
            raise wrong(name, "a path at the PDP that begins with `/`", path)
        here, there = urlsplit(self.root), urlsplit(url)
        # aiohttp resolves `..`, which would leave the prefix.
        if here[:2] != there[:2] or {".", ".."} & set(unquote(there.path).split("/")):
            raise wrong(name, "a path at the PDP", path)
        return url

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run `work` on the link's loop and wait; raise `PDPError` or `TimeoutError`."""
        future = self._begin(work)
        try:
            return future.result(self.timeout + _GRACE)
        except FutureCancelled as exc:  # cancelled by `close`
            raise PDPError(Code.PDP_ERROR, "closed") from exc
        except BaseException:
            future.cancel()
            raise

    async def arun(self, work: Callable[[], Awaitable[T]]) -> T:
        """Await `work` on the link's loop; cancelling the caller ends the exchange."""
        future = self._begin(work)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if future.cancelled() and (task is None or not task.cancelling()):
                raise PDPError(Code.PDP_ERROR, "closed") from exc  # cancelled by `close`, not by the caller
            raise

    def _begin(self, work: Callable[[], Awaitable[T]]) -> Future[T]:
        with self._lock:
            if self._closed:
                raise PDPError(Code.PDP_ERROR, "closed")
            if (pool := self._pool) is None:
                pool = self._pool = _Pool()
                self._finalizer = weakref.finalize(self, pool.stop)
            return asyncio.run_coroutine_threadsafe(self._bounded(work, pool), pool.loop)

    async def _bounded(self, work: Callable[[], Awaitable[T]], pool: _Pool) -> T:
        if pool.session is None:
            pool.session = self._connect()
        self._session = pool.session
        async with asyncio.timeout(self.timeout):
            return await work()

    def close(self) -> None:
        """Close all connections and end the thread; later exchanges fail. Idempotent."""
        with self._lock:
            self._closed = True
            finalizer, pool, self._finalizer, self._pool = self._finalizer, self._pool, None, None
        if finalizer is not None and pool is not None:
            finalizer()
            pool.wait()

    def _connect(self) -> aiohttp.ClientSession:
        import aiohttp

        kept = {"keepalive_timeout": KEEP_ALIVE} if self._keep_alive else {"force_close": True}
        limits: dict[str, Any] = {"limit": self.pool_size, **kept}
        connector: aiohttp.BaseConnector
        if self.socket_path is not None:
            connector = _clean(aiohttp.UnixConnector)(self.socket_path, **limits)
        else:
            connector = _clean(aiohttp.TCPConnector)(**limits)
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),  # `_bounded` sets the only deadline
            auto_decompress=False,
            trust_env=False,
        )

    async def exchange(
        self,
        method: str,
        url: str,
        *,
        limit: int,
        body: bytes | None = None,
        headers: Mapping[str, str] = _NONE,
        any_status: bool = False,
    ) -> Reply:
        """Send one request and return the response.

        Raises `PDPError`, also for a body of over `limit` bytes and, unless `any_status`, for a status other than 200.
        """
        import aiohttp

        own: dict[str, Any] = {}
        if self._tls is not None:
            # aiohttp reuses only connections with the same context. Each replaced certificate makes a new context.
            try:
                own["ssl"] = self._tls()
            except AuthzError as exc:  # of an identity, or of the files
                raise PDPError(exc.code, exc.detail) from exc
        sent = {**_PLAIN, **({} if body is None else {"Content-Type": "application/json"}), **headers}
        if self._token is not None:
            sent["Authorization"] = f"Bearer {self._token.read()}"
        asked = self._session.request(
            method, url, data=body, headers=sent, allow_redirects=False, proxy=self._proxy, **own
        )
        try:
            async with asked as response:
                try:
                    whole = await _whole_body(response, limit, any_status=any_status)
                except PDPError:
                    response.close()  # nobody reads the rest
                    raise
                return Reply(response.status, whole, response.headers)
        except TimeoutError:
            raise
        except (aiohttp.ClientPayloadError, aiohttp.ClientResponseError) as exc:
            raise PDPError(Code.PDP_PROTOCOL, type(exc).__name__) from exc
        except (aiohttp.ClientConnectionError, OSError) as exc:
            # A peer that refuses our certificate says so in the middle of the exchange.
            tls = isinstance(exc, aiohttp.ClientSSLError) or isinstance(exc.__cause__ or exc, ssl.SSLError)
            raise PDPError(Code.PDP_TLS if tls else Code.PDP_UNREACHABLE, type(exc).__name__) from exc


class Fetcher:
    """Fetch small JSON objects from one endpoint, such as a key set."""

    def __init__(self, url: str, **connection: Unpack[Connection]) -> None:
        self.url = checked_url(url, "url")
        parts = urlsplit(url)
        connection.setdefault("timeout", 2.0)
        # A POST is never repeated. So it never uses an idle connection, which the server may be closing.
        self._link = Link(f"{parts.scheme}://{parts.netloc}", keep_alive=False, **connection)
        if not self._link.private:
            raise ConfigError("a secret is not sent to a proxy in the clear: use https")

    def _send(
        self, method: str, headers: Mapping[str, str], form: Mapping[str, Any] | None = None
    ) -> Flow[Answer | None]:
        """Return the answer; None if the exchange fails or its answer is unacceptable."""
        exchange = partial(self._exchange, method, headers, form)
        try:
            return (yield Perform(self._link.run, self._link.arun, exchange))  # type: ignore[no-any-return]
        except (PDPError, TimeoutError, ValueError):
            return None

    send, asend = both(_send)

    async def _exchange(self, method: str, headers: Mapping[str, str], form: Mapping[str, Any] | None) -> Answer:
        body = None if form is None else urlencode(form).encode()
        own = {} if form is None else {"Content-Type": "application/x-www-form-urlencoded"}
        reply = await self._link.exchange(
            method, self.url, limit=MAX_ANSWER_BYTES, body=body, headers={**headers, **own}, any_status=True
        )
        try:
            document = strict_json(reply.body)
        except (ValueError, RecursionError):
            document = None
        return Answer(reply.status, document if isinstance(document, dict) else None)


def basic_auth(name: str, secret: str) -> str:
    """Return the `Authorization` header of a client with a secret (RFC 6749 §2.3.1)."""
    return "Basic " + base64.b64encode(f"{quote_plus(name)}:{quote_plus(secret)}".encode()).decode()


async def _whole_body(response: aiohttp.ClientResponse, limit: int, *, any_status: bool) -> bytes:
    if 300 <= (status := response.status) < 400:  # noqa: PLR2004
        raise PDPError(Code.PDP_REDIRECT, str(status))
    if status != _OK and not any_status:
        raise PDPError(Code.PDP_UNAUTHORIZED if status in _REFUSED else Code.PDP_STATUS, str(status))
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise PDPError(Code.PDP_MALFORMED, "compressed although `identity` was asked for")
    read = bytearray()
    if (response.content_length or 0) <= limit:
        async for chunk in response.content.iter_any():
            read += chunk
            if len(read) > limit:
                break
        else:
            return bytes(read)
    raise PDPError(Code.PDP_TOO_LARGE)


def _clean(kind: type[Any]) -> type[Any]:
    """Return a connector class that drops idle connections with unread data."""

    class Clean(kind):  # type: ignore[misc]
        async def connect(self, *args: Any, **kwargs: Any) -> Any:
            while (connection := await super().connect(*args, **kwargs)).protocol.should_close:
                connection.close()
            return connection

    return Clean


# A fork copies neither the thread nor its loop, so the child makes its own at its next exchange. It never closes the
# parent's objects, because that would close the parent's sockets.
_links: weakref.WeakSet[Link] = weakref.WeakSet()
_of_the_parent: list[object] = []


@atexit.register
def _exiting() -> None:
    for link in list(_links):
        link.close()


def _forked() -> None:
    for link in list(_links):
        if link._finalizer is not None:  # noqa: SLF001
            link._finalizer.detach()  # noqa: SLF001
        _of_the_parent.append(link._pool)  # noqa: SLF001
        link._lock, link._pool, link._finalizer = threading.Lock(), None, None  # noqa: SLF001


os.register_at_fork(after_in_child=_forked)
