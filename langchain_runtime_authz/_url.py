"""Check and compare URLs strictly, because servers read paths differently."""

from __future__ import annotations

import ipaddress
import re
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from langchain_runtime_authz._text import normalize
from langchain_runtime_authz.errors import ConfigError

_URL: Final = re.compile(r"[!#-\[\]^_`a-~]+")  # printable ASCII without space, quote and backslash
_PORTS: Final = {"http": 80, "https": 443}
_UNRESERVED: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_ESCAPE: Final = re.compile(r"%([0-9A-Fa-f]{2})")
_BROKEN: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_SLASH: Final = re.compile(r"[/\\]")
_AFTER: Final = re.compile(r"[;?#]")  # some servers ignore what follows in a segment


def is_plain_url(url: str) -> bool:
    """Return True if all parsers split the text alike: no tabs, blanks or backslashes."""
    return _URL.fullmatch(url) is not None


def split_url(name: str, url: object) -> SplitResult:
    """Return the parts of a plain URL. Raises `ConfigError` for other values."""
    try:
        if isinstance(url, str) and is_plain_url(url):
            parts = urlsplit(url)
            _ = parts.port  # raises if it is out of range
            return parts
    except ValueError:
        pass
    # The error does not show the URL, which may hold a password.
    raise ConfigError(f"`{name}` must be a URL; percent-encode non-ASCII characters, spaces and quotes in it")


def is_loopback(host: str | None) -> bool:
    """Return True if a host name or address is this machine itself."""
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def checked_url(url: str, name: str) -> str:
    """Return `url` if it is https, or http to this machine; else raise `ConfigError`."""
    parts = split_url(name, url)
    safe = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname))
    if not safe or not parts.hostname or parts.username or parts.fragment:
        raise ConfigError(f"`{name}` must be an https URL")
    return url


def normal_target(url: str) -> str | None:
    """Return an http(s) URL normalised, without query and fragment; else None."""
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme.lower(), parts.hostname, parts.port
    except ValueError:
        return None
    if scheme not in _PORTS or not host or parts.username is not None or not url.isascii() or not url.isprintable():
        return None
    if _BROKEN.search(parts.path):  # normalising `%%32e` would give `%2e`, and then `.`
        return None
    host = f"[{host}]" if ":" in host else host
    netloc = host if port in (None, _PORTS[scheme]) else f"{host}:{port}"
    return f"{scheme}://{netloc}{_ESCAPE.sub(_unescaped, parts.path) or '/'}"  # RFC 3986 §6.2.2, §6.2.3


def _unescaped(match: re.Match[str]) -> str:
    char = chr(int(match[1], 16))
    return char if char in _UNRESERVED else match[0].upper()


def is_under(url: str, base: str) -> bool:
    """Return True if `url` is `base` or lies below it. Both must be http(s) URLs."""
    target, root = normal_target(url), normal_target(base)
    if target is None or root is None or not _is_plain(urlsplit(target).path):
        return False
    return target == root or target.startswith(root if root.endswith("/") else root + "/")


def _is_plain(path: str) -> bool:
    """Return True if all servers read the path alike, and it has no segment like `..`."""
    try:
        read = normalize("NFKC", unquote(path, errors="strict"))
    except UnicodeDecodeError:
        return False
    heads = (_AFTER.split(segment, 1)[0] for segment in _SLASH.split(read))
    return read.isprintable() and "%" not in read and not any(head and not head.strip(". ") for head in heads)
