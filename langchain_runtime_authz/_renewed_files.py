"""Read certificates and tokens from files, again after each change of a file."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from langchain_runtime_authz._validate import checked_path, wrong
from langchain_runtime_authz.errors import Code, ConfigError, PDPError

T = TypeVar("T")


class Renewed(Generic[T]):
    """Cache `load()` until a file changes. A failing first load raises `ConfigError`."""

    def __init__(self, files: Sequence[Path], load: Callable[[], T], code: Code, what: str) -> None:
        self._files, self._load, self._code, self._what = files, load, code, what
        self._seen: object = None
        try:
            self.read()
        except PDPError as exc:
            raise ConfigError(exc.detail or what) from exc.__cause__

    def read(self) -> T:
        """Return `load()` of the current files, or raise `PDPError`."""
        try:
            seen = [file_stamp(file) for file in self._files]
            if seen != self._seen:  # `seen` is older than the load, so a change meanwhile is noticed next time
                self._value, self._seen = self._load(), seen
        except (OSError, ValueError) as exc:  # `ssl.SSLError` is an `OSError`
            raise PDPError(self._code, f"{self._what} cannot be loaded ({type(exc).__name__})") from exc
        return self._value


def file_stamp(file: Path) -> tuple[int, int, int, int]:
    """Return a value that changes whenever the file changes. Raises `OSError`."""
    s = file.stat()
    return s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns


def replace_file(file: Path, data: bytes, mode: int = 0o666) -> None:
    """Replace a file atomically and durably, with permissions of at most `mode`."""
    temporary = file.with_name(f".{file.name}.new")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(file)


def tls_context(
    ca_file: str | Path | None, client_cert: str | Path | tuple[str | Path, str | Path] | None
) -> Renewed[ssl.SSLContext]:
    """Return the TLS context for these files, renewed when a file changes."""
    given = client_cert if isinstance(client_cert, tuple) else () if client_cert is None else (client_cert,)
    if (client_cert is not None and not given) or len(given) > 2:  # noqa: PLR2004
        raise wrong("client_cert", "a file, or a pair of certificate and key", client_cert)
    authorities = [] if ca_file is None else [checked_path("ca_file", ca_file)]
    chain = [checked_path("client_cert", file) for file in given]

    def load() -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=authorities[0] if authorities else None)
        if chain:
            context.load_cert_chain(chain[0], chain[-1])  # one file may hold both
        return context

    return Renewed([*authorities, *chain], load, Code.PDP_TLS, "the CA file or the client certificate")


def bearer_token(path: str | Path) -> Renewed[str]:
    """Return the bearer token in a file, like a projected service account token."""
    file = checked_path("token_file", path)

    def load() -> str:
        text = file.read_text("ascii").strip()
        if not text or not text.isprintable() or " " in text:
            raise ValueError("the file holds no token")
        return text

    return Renewed([file], load, Code.PDP_UNAUTHORIZED, f"the token in `{file.name}`")
