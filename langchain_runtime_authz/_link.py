"""HTTP exchanges with a PDP that may be down, slow, hostile or misconfigured.

The callers of a `Link`, from any thread and any event loop, share one event loop in a thread of its own: the
connection pool has one owner, and no other loop's end closes it. One deadline covers the whole exchange (a
place in the pool, the name, the handshake, every byte of the answer), which a blocking socket cannot promise.

Redirects, `~/.netrc`, proxies from the environment, cookies, retries and compression are off.
"""

from __future__ import annotations

import asyncio
import atexit
import importlib
import ipaddress
import os
import re
import ssl
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import CancelledError as FutureCancelled
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypedDict, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

from langchain_runtime_authz._files import bearer_token, tls_context
from langchain_runtime_authz._validate import checked_count, checked_seconds, wrong
from langchain_runtime_authz.errors import AuthzError, Code, ConfigError, PDPError

if TYPE_CHECKING:
    import aiohttp

KEEP_ALIVE: Final = 30.0  # seconds for which an idle connection is kept
_GRACE: Final = 0.25  # seconds beyond the deadline for the other thread to say so
_OK: Final = 200
_REFUSED: Final = (401, 403)
_URL: Final = re.compile(r"[!#-\[\]^_`a-~]+")  # printable ASCII without space, quote and backslash

T = TypeVar("T")


class Connection(TypedDict, total=False):
    """Settings of the connection to a PDP.

    Attributes:
        timeout: seconds for one exchange, everything included (1.0).
        ca_file: PEM file of the only authorities believed; the system's when absent.
        client_cert: PEM file, or pair of certificate and key file, for mutual TLS. It and `ca_file` are read
            again when they change; while they do not fit each other, everything is denied.
        tls: returns the context of mutual TLS, as `identity.spiffe.SpiffeIdentity.tls` does, in place of both.
        token_file: file whose content is sent as bearer token; read again when it changes.
        proxy: URL of an HTTP proxy. The environment's is never used.
        pool_size: connections that may be open at the same time (10).
    """

    timeout: float
    ca_file: str | Path | None
    client_cert: str | Path | tuple[str | Path, str | Path] | None
    tls: Callable[[], ssl.SSLContext] | None
    token_file: str | Path | None
    proxy: str | None
    pool_size: int


class Reply(NamedTuple):
    """A whole answer with status 200."""

    body: bytes
    headers: Mapping[str, str]


class _Pool:
    """An event loop in a thread, and the HTTP session that lives on it."""

    def __init__(self) -> None:
        self.session: aiohttp.ClientSession | None = None
        self.loop = asyncio.new_event_loop()
        self._names = ThreadPoolExecutor(2, thread_name_prefix="runtime-authz-names")
        self.loop.set_default_executor(self._names)
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._serve, name="runtime-authz-pdp", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
            self.loop.run_until_complete(self._close())
        finally:
            self.loop.close()

    def stop(self) -> None:
        """Tell the thread to end every exchange and itself. Idempotent.

        It does not wait: a finaliser may run within a lock that the thread needs to end.
        """
        if self._pid == os.getpid():  # a fork's copy has no thread to end
            with suppress(RuntimeError):  # it has ended
                self.loop.call_soon_threadsafe(self.loop.stop)

    def wait(self) -> None:
        """Wait until the thread has ended."""
        if self._pid == os.getpid() and threading.current_thread() is not self._thread:
            self._thread.join()

    async def _close(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if self.session is not None:
            await self.session.close()
        self._names.shutdown(wait=False)  # nobody waits for a name that still resolves


class Link:
    """A pool of connections to one PDP.

    Args:
        url: `http://host:port`, `https://…` or `unix:///path/of/a/socket`; a path is kept as prefix.
        timeout: see `Connection`, as for the rest.

    Raises:
        ConfigError: any of it is wrong. Nothing is connected before the first exchange.
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
    ) -> None:
        self.timeout = checked_seconds("timeout", timeout)
        self.pool_size = checked_count("pool_size", pool_size)
        parts = split_url("url", url)
        unix, secure = parts.scheme == "unix", parts.scheme == "https"
        here = unix or _is_this_machine(parts.hostname)
        self.private = secure or (here and proxy is None)
        for wrongly, msg in (
            (
                parts.username is not None or parts.query or parts.fragment,
                "the PDP's URL must have no user, query or fragment",
            ),
            (
                unix and (not parts.path.startswith("/") or parts.netloc),
                f"a unix socket is `unix:///path`, not {url!r}",
            ),
            (
                not unix and not (parts.scheme in ("http", "https") and parts.hostname),
                f"the PDP's URL must be http, https or unix, not {url!r}",
            ),
            (
                (ca_file, client_cert, tls) != (None, None, None) and not secure,
                "`ca_file`, `client_cert` and `tls` need an https URL",
            ),
            (
                tls is not None and (ca_file, client_cert) != (None, None),
                "`tls` takes the place of `ca_file` and `client_cert`; give one of them",
            ),
            (
                token_file is not None and not self.private,
                "a token is not sent in the clear: use https, a unix socket or a loopback address",
            ),
            (
                proxy is not None and not _is_proxy(proxy),
                "`proxy` must be an http or https URL",
            ),  # it may hold a password
            (proxy is not None and unix, "a unix socket is not reached by a proxy"),
        ):
            if wrongly:
                raise ConfigError(msg)
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
        """Return the URL of a path at this PDP.

        Raises:
            ConfigError: it is not such a path, or would lead to another server.
        """
        url = f"{self.root}{path}"
        if not isinstance(path, str) or not path.startswith("/") or not _URL.fullmatch(url) or "#" in path:
            raise wrong(name, "a path at the PDP that begins with `/`", path)
        here, there = urlsplit(self.root), urlsplit(url)
        # The sender resolves dots: they would leave the prefix.
        if here[:2] != there[:2] or {".", ".."} & set(unquote(there.path).split("/")):
            raise wrong(name, "a path at the PDP", path)
        return url

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do `work` on the link's loop within the deadline, blocking.

        Raises:
            PDPError: saying what is wrong with the PDP.
            TimeoutError: after the deadline.
        """
        future = self._begin(work)
        try:
            return future.result(self.timeout + _GRACE)
        except FutureCancelled as exc:  # by `close`
            raise PDPError(Code.PDP_ERROR, "closed") from exc
        except BaseException:
            future.cancel()
            raise

    async def arun(self, work: Callable[[], Awaitable[T]]) -> T:
        """Like `run`, without blocking the caller's event loop. Cancelling it ends the exchange."""
        future = self._begin(work)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if future.cancelled() and (task is None or not task.cancelling()):
                raise PDPError(Code.PDP_ERROR, "closed") from exc  # by `close`: nobody cancelled the caller
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
        """Close every connection and end the thread; every later exchange fails. Idempotent."""
        with self._lock:
            self._closed = True
            finalizer, pool, self._finalizer, self._pool = self._finalizer, self._pool, None, None
        if finalizer is not None and pool is not None:
            finalizer()
            pool.wait()

    # --- on the link's loop -------------------------------------------------------------------------

    def _connect(self) -> aiohttp.ClientSession:
        import aiohttp

        limits: dict[str, Any] = {"limit": self.pool_size, "keepalive_timeout": KEEP_ALIVE}
        connector: aiohttp.BaseConnector
        if self.socket_path is not None:
            connector = _clean(aiohttp.UnixConnector)(self.socket_path, **limits)
        else:
            connector = _clean(aiohttp.TCPConnector)(**limits)
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),  # `_bounded` is the only clock
            auto_decompress=False,
            trust_env=False,
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
        )

    @asynccontextmanager
    async def request(self, method: str, url: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """Make one request, once, within `run` or `arun`. Raises `PDPError` with the code of what failed."""
        import aiohttp

        headers = options.pop("headers", None) or {}
        if self._token is not None:
            headers = {**headers, "Authorization": f"Bearer {self._token.read()}"}
        if self._tls is not None:
            # Connections are kept by context, so those of a replaced certificate are not used again.
            try:
                options["ssl"] = self._tls()
            except AuthzError as exc:  # of an identity, or of the files
                raise PDPError(exc.code, exc.detail) from exc
        options |= {"headers": headers, "allow_redirects": False, "proxy": self._proxy}
        try:
            async with self._session.request(method, url, **options) as response:
                yield response
        except TimeoutError:
            raise
        except (aiohttp.ClientPayloadError, aiohttp.ClientResponseError) as exc:
            raise PDPError(Code.PDP_PROTOCOL, type(exc).__name__) from exc
        except (aiohttp.ClientConnectionError, OSError) as exc:
            # A peer that refuses our certificate says so in the middle of the exchange.
            tls = isinstance(exc, aiohttp.ClientSSLError) or isinstance(exc.__cause__ or exc, ssl.SSLError)
            raise PDPError(Code.PDP_TLS if tls else Code.PDP_UNREACHABLE, type(exc).__name__) from exc

    async def exchange(
        self, method: str, url: str, *, limit: int, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Send, and read a whole answer of at most `limit` bytes, within `run` or `arun`.

        Raises:
            PDPError: no answer, or one with another status than 200.
        """
        if body is not None:
            headers = {"Content-Type": "application/json", **(headers or {})}
        async with self.request(method, url, data=body, headers=headers) as response:
            try:
                return Reply(await _whole_body(response, limit), response.headers)
            except PDPError:
                response.close()  # nobody reads the rest
                raise


async def _whole_body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    if (status := response.status) != _OK:
        redirect = 300 <= status < 400  # noqa: PLR2004
        code = Code.PDP_UNAUTHORIZED if status in _REFUSED else Code.PDP_STATUS
        raise PDPError(Code.PDP_REDIRECT if redirect else code, str(status))
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


def split_url(name: str, url: object) -> SplitResult:
    """Return the parts of a URL that every reader takes apart alike.

    `urlsplit` drops tabs and line ends, and keeps a backslash in a name; other readers do not.
    """
    try:
        if isinstance(url, str) and _URL.fullmatch(url):
            parts = urlsplit(url)
            _ = parts.port  # raises if it is out of range
            return parts
    except ValueError:
        pass
    # It is not shown, as it may hold a password.
    raise ConfigError(f"`{name}` must be a URL; percent-encode non-ASCII characters, spaces and quotes in it")


def _clean(kind: type[Any]) -> type[Any]:
    """Return the connector class, without reuse of a connection that received more than was asked for.

    Otherwise the surplus (a wrong `Content-Length`, an answer sent twice) would answer the next question.
    """

    class Clean(kind):  # type: ignore[misc]
        async def connect(self, *args: Any, **kwargs: Any) -> Any:
            while (connection := await super().connect(*args, **kwargs)).protocol.should_close:
                connection.close()
            return connection

    return Clean


def _is_this_machine(host: str | None) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _is_proxy(url: str) -> bool:
    parts = split_url("proxy", url)
    return parts.scheme in ("http", "https") and bool(parts.hostname)


# A fork copies neither the thread nor its loop: the child makes its own at its next exchange. The parent's
# objects are kept unused, because closing them here would reach into the parent's sockets.
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


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
