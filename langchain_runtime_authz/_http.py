"""One HTTP exchange with a PDP that may be down, slow, hostile or misconfigured.

Sync and async callers, from any thread and any event loop, meet on one event loop that a `Link`
keeps in a thread of its own: the connection pool has one owner, no loop's end takes it along, and
the deadline is one number for everything (waiting for a place in the pool, the name, the handshake,
sending, every byte of the answer), which a blocking socket can not promise.

What is off, and stays off: redirects, `~/.netrc`, proxies from the environment, cookies, retries,
compression (so there is nothing to unpack, and no bomb).
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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from concurrent.futures import CancelledError as FutureCancelled
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

from langchain_runtime_authz._validate import checked_count, checked_path, checked_seconds, wrong
from langchain_runtime_authz.errors import Code, ConfigError, PDPError

if TYPE_CHECKING:
    import aiohttp

__all__ = ["Link", "Reply", "split_url", "whole_body"]

KEEP_ALIVE: Final = 30.0  # seconds for which an idle connection is kept
_GRACE: Final = 0.25  # seconds beyond the deadline for the other thread to say so
_OK: Final = 200
_REFUSED: Final = (401, 403)
_URL: Final = re.compile(r"[!#-\[\]^_`a-~]+")  # printable ASCII without space, quote and backslash

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reply:
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
        """End every exchange, close every connection, end the thread. Idempotent.

        It is not waited for here: a finaliser may come in within a lock that the thread needs to end.
        """
        if self._pid == os.getpid():  # a fork's copy has no thread to end
            with suppress(RuntimeError):  # it has ended
                self.loop.call_soon_threadsafe(self.loop.stop)

    def wait(self) -> None:
        """Until the thread has ended."""
        if self._pid == os.getpid() and threading.current_thread() is not self._thread:
            self._thread.join()

    async def _close(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if self.session is not None:
            await self.session.close()
        self._names.shutdown(wait=False)  # a name that still resolves is not waited for


class Link:
    """A pool of connections to one PDP.

    Args:
        url: `http://host:port`, `https://…` or `unix:///path/of/a/socket`; a path is kept as prefix.
        timeout: seconds for one exchange, everything included.
        ca_file: PEM file of the only authorities believed; the system's when absent.
        client_cert: PEM file, or pair of certificate and key file, for mutual TLS. It and `ca_file` are read
            again when they change.
        token_file: file whose content is sent as bearer token; read again when it changes.
        proxy: URL of an HTTP proxy. The environment's is never used.
        pool_size: connections that may be open at the same time.

    Raises:
        ConfigError: any of it is wrong. Nothing is connected before the first exchange.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float,
        ca_file: str | Path | None = None,
        client_cert: str | Path | tuple[str | Path, str | Path] | None = None,
        token_file: str | Path | None = None,
        proxy: str | None = None,
        pool_size: int = 10,
    ) -> None:
        self.timeout = checked_seconds("timeout", timeout)
        self.pool_size = checked_count("pool_size", pool_size)
        parts = split_url("url", url)
        if parts.username is not None or parts.query or parts.fragment:
            msg = "the PDP's URL must have no user, query or fragment"
            raise ConfigError(msg)
        self.socket_path = parts.path if parts.scheme == "unix" else None
        if self.socket_path is not None:
            if not self.socket_path.startswith("/") or parts.netloc:
                msg = f"a unix socket is `unix:///path`, not {url!r}"
                raise ConfigError(msg)
            self.root = "http://localhost"
        elif parts.scheme in ("http", "https") and parts.hostname:
            self.root = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        else:
            msg = f"the PDP's URL must be http, https or unix, not {url!r}"
            raise ConfigError(msg)
        secure = parts.scheme == "https"
        here = self.socket_path is not None or _loopback(parts.hostname)
        self.private = secure or (here and proxy is None)
        if (ca_file is not None or client_cert is not None) and not secure:
            msg = "`ca_file` and `client_cert` need an https URL"
            raise ConfigError(msg)
        if token_file is not None and not self.private:
            msg = "a token is not sent in the clear: use https, a unix socket or a loopback address"
            raise ConfigError(msg)
        if proxy is not None and (
            split_url("proxy", proxy).scheme not in ("http", "https") or not urlsplit(proxy).hostname
        ):
            raise ConfigError("`proxy` must be an http or https URL")  # it is not shown: it may hold a password
        if proxy is not None and self.socket_path is not None:
            raise ConfigError("a unix socket is not reached by a proxy")
        importlib.import_module("aiohttp")  # dear: here rather than in the first decision

        self._tls = _Tls(ca_file, client_cert) if secure else None
        self._proxy = proxy
        self._token = _Token(checked_path("token_file", token_file)) if token_file is not None else None
        self._lock = threading.Lock()
        self._pool: _Pool | None = None
        self._closed = False
        self._finalizer: weakref.finalize[Any, Link] | None = None
        _links.add(self)

    def below(self, name: str, path: object) -> str:
        """The URL of a path at this PDP.

        Raises:
            ConfigError: it is no such path, or would lead to another server.
        """
        url = f"{self.root}{path}"
        if not isinstance(path, str) or not path.startswith("/") or not _URL.fullmatch(url) or "#" in path:
            raise wrong(name, "a path at the PDP that begins with `/`", path)
        here, there = urlsplit(self.root), urlsplit(url)
        # Dots are resolved by whoever sends: they would leave the prefix.
        if here[:2] != there[:2] or {".", ".."} & set(unquote(there.path).split("/")):
            raise wrong(name, "a path at the PDP", path)
        return url

    # --- callers ------------------------------------------------------------------------------------

    def run(self, work: Callable[[aiohttp.ClientSession], Awaitable[T]]) -> T:
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

    async def arun(self, work: Callable[[aiohttp.ClientSession], Awaitable[T]]) -> T:
        """Like `run`, without blocking the caller's event loop. Cancelling it ends the exchange."""
        future = self._begin(work)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if future.cancelled() and (task is None or not task.cancelling()):
                raise PDPError(Code.PDP_ERROR, "closed") from exc  # by `close`: nobody cancelled the caller
            raise

    def _begin(self, work: Callable[[aiohttp.ClientSession], Awaitable[T]]) -> Future[T]:
        with self._lock:
            if self._closed:
                raise PDPError(Code.PDP_ERROR, "closed")
            if (pool := self._pool) is None:
                pool = self._pool = _Pool()
                self._finalizer = weakref.finalize(self, pool.stop)
            return asyncio.run_coroutine_threadsafe(self._bounded(work, pool), pool.loop)

    async def _bounded(self, work: Callable[[aiohttp.ClientSession], Awaitable[T]], pool: _Pool) -> T:
        if pool.session is None:
            pool.session = self._connect()
        async with asyncio.timeout(self.timeout):
            return await work(pool.session)

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
    async def request(
        self,
        session: aiohttp.ClientSession,
        method: str,
        url: str,
        **options: Any,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request, once. Raises `PDPError` with the code of what failed."""
        import aiohttp

        headers = options.pop("headers", None) or {}
        if self._token is not None:
            headers = {**headers, "Authorization": f"Bearer {self._token.read()}"}
        if self._tls is not None:
            # Connections are kept by context: those of a certificate that was replaced serve nobody any more.
            options["ssl"] = self._tls.read()
        try:
            async with session.request(
                method,
                url,
                headers=headers,
                allow_redirects=False,
                proxy=self._proxy,
                **options,
            ) as response:
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
        self,
        session: aiohttp.ClientSession,
        method: str,
        url: str,
        *,
        limit: int,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Send, and read a whole answer of at most `limit` bytes.

        Raises:
            PDPError: no answer, or one with another status than 200.
        """
        if body is not None:
            headers = {"Content-Type": "application/json", **(headers or {})}
        async with self.request(session, method, url, data=body, headers=headers) as response:
            status = response.status
            if status != _OK:
                response.close()  # its body is read by nobody
                raise PDPError(_by_status(status), str(status))
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                response.close()
                raise PDPError(Code.PDP_MALFORMED, "compressed although `identity` was asked for")
            return Reply(await whole_body(response, limit), response.headers)


async def whole_body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """All of an answer's body, of at most `limit` bytes."""
    if (response.content_length or 0) > limit:
        response.close()
        raise PDPError(Code.PDP_TOO_LARGE)
    read = bytearray()
    async for chunk in response.content.iter_any():
        read += chunk
        if len(read) > limit:
            response.close()
            raise PDPError(Code.PDP_TOO_LARGE)
    return bytes(read)


def split_url(name: str, url: object) -> SplitResult:
    """The parts of a URL that every reader takes apart alike.

    `urlsplit` drops tabs and line ends and takes a backslash for a name's; who connects need not.
    """
    try:
        if isinstance(url, str) and _URL.fullmatch(url):
            parts = urlsplit(url)
            _ = parts.port  # out of its range it raises
            return parts
    except ValueError:
        pass
    # It is not shown: it may hold a password.
    raise ConfigError(f"`{name}` must be a URL; percent-encode in it what is no printable ASCII, spaces and quotes")


def _by_status(status: int) -> Code:
    if 300 <= status < 400:  # noqa: PLR2004
        return Code.PDP_REDIRECT
    return Code.PDP_UNAUTHORIZED if status in _REFUSED else Code.PDP_STATUS


def _clean(kind: type[Any]) -> type[Any]:
    """The connector, reusing no connection on which more came than was asked for.

    Otherwise the surplus (a wrong `Content-Length`, an answer sent twice) would be taken as the
    answer to the next question.
    """

    class Clean(kind):  # type: ignore[misc]
        async def connect(self, *args: Any, **kwargs: Any) -> Any:
            while (connection := await super().connect(*args, **kwargs)).protocol.should_close:
                connection.close()
            return connection

    return Clean


def _loopback(host: str | None) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


class _Tls:
    """Authorities and a client certificate in files that somebody else renews."""

    def __init__(
        self,
        ca_file: str | Path | None,
        client_cert: str | Path | tuple[str | Path, str | Path] | None,
    ) -> None:
        chain = client_cert if isinstance(client_cert, tuple) else () if client_cert is None else (client_cert,)
        if (client_cert is not None and not chain) or len(chain) > 2:  # noqa: PLR2004
            raise wrong("client_cert", "a file, or a pair of certificate and key", client_cert)
        self._ca_file = None if ca_file is None else checked_path("ca_file", ca_file)
        self._chain = tuple(checked_path("client_cert", file) for file in chain)
        self._watched = [file for file in (self._ca_file, *self._chain) if file is not None]
        self._seen: object = None
        try:
            self._context = self._load()
        except (OSError, ValueError) as exc:  # `ssl.SSLError` is an `OSError`
            msg = f"the CA file or the client certificate can not be loaded: {exc}"
            raise ConfigError(msg) from exc

    def read(self) -> ssl.SSLContext:
        """The context of the files as they are now: another one once one of them was replaced."""
        try:
            if _states(self._watched) != self._seen:
                self._context = self._load()
        except (OSError, ValueError) as exc:
            detail = "the CA file or the client certificate can not be loaded"
            raise PDPError(Code.PDP_TLS, f"{detail} ({type(exc).__name__})") from exc
        return self._context

    def _load(self) -> ssl.SSLContext:
        seen = _states(self._watched)  # before reading: what is replaced meanwhile is read again
        context = ssl.create_default_context(cafile=self._ca_file)
        if self._chain:
            context.load_cert_chain(self._chain[0], self._chain[-1])  # one file may hold both
        self._seen = seen
        return context


def _states(files: Iterable[Path]) -> tuple[tuple[int, int, int], ...]:
    """What tells one state of these files from another."""
    return tuple((s.st_mtime_ns, s.st_ino, s.st_size) for s in (file.stat() for file in files))


class _Token:
    """A bearer token in a file that somebody else renews (a projected service account token)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: object = None
        self._text = ""
        try:
            self.read()
        except PDPError as exc:
            raise ConfigError(str(exc)) from exc

    def read(self) -> str:
        """The token as the file has it now."""
        try:
            seen = _states([self._path])
            if seen != self._seen:
                text = self._path.read_text("ascii").strip()
                if not text or not text.isprintable() or " " in text:
                    raise PDPError(Code.PDP_UNAUTHORIZED, f"`{self._path.name}` holds no token")
                self._text, self._seen = text, seen
        except (OSError, ValueError) as exc:
            raise PDPError(Code.PDP_UNAUTHORIZED, f"`{self._path.name}`: {type(exc).__name__}") from exc
        return self._text


# A fork copies neither the thread nor its loop: the child makes its own at its next exchange. The
# parent's are kept alive unused, because closing them here would reach into the parent's sockets.
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
