"""The highest policy revision that was ever used, kept over restarts and between processes.

A file of one line next to the bundle, replaced as a whole under a lock. If it cannot be read or written, no policy
is used: only its absence is a first start, which the log reports. Anyone who may write there can go back: give it
to the service alone, and raise `at_least` with each deployment if that is not enough.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from langchain_runtime_authz._files import replace_file
from langchain_runtime_authz.authzen import strict_json
from langchain_runtime_authz.errors import Code, ConfigError
from langchain_runtime_authz.fork import file_lock
from langchain_runtime_authz.pap.bundle import Bundle

_log = logging.getLogger(__name__)
VERSION: Final = 1


class _Mark(NamedTuple):
    number: int
    digest: str


class HighestRevision:
    """The revision that was used last, kept in the file `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def check(self, bundle: Bundle) -> None:
        """Refuse what is older than, or another of the same number as, what was used. Raises `policy_older`."""
        self._checked(bundle)

    def advance(self, bundle: Bundle) -> None:
        """Keep that this revision is used from here on; on the disk before this returns. Raises like `check`."""
        with self._locked():
            mark = self._checked(bundle)  # another process may have been faster
            if mark is None:
                _log.warning("first start: %s does not exist; policy %s is the first", self.path, bundle.revision)
            if mark is None or mark.number < bundle.number:
                this = {"v": VERSION, "number": bundle.number, "digest": bundle.digest}
                replace_file(self.path, json.dumps(this).encode() + b"\n")

    def _checked(self, bundle: Bundle) -> _Mark | None:
        mark = self._read()
        this = _Mark(bundle.number, bundle.digest)
        if mark is not None and (this.number < mark.number or (this.number == mark.number and this != mark)):
            have = f"`{self.path.name}`: revision {mark.number} was used here before this revision {this.number}"
            raise ConfigError(f"{have}; raise its number", Code.POLICY_OLDER)
        return mark

    def _read(self) -> _Mark | None:
        try:
            document = strict_json(self.path.read_bytes())
            number, digest = document["number"], document["digest"]
            if document["v"] == VERSION and type(number) is int and number > 0 and isinstance(digest, str) and digest:
                return _Mark(number, digest)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise self._unkept(exc) from exc
        except (ValueError, KeyError, TypeError, RecursionError):
            pass  # told below
        msg = (
            f"`{self.path.name}` does not say which revision was used last; restore it, or remove it once you "
            "have made sure that the bundle is the newest"
        )
        raise ConfigError(msg, Code.POLICY_INVALID)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            with file_lock(self.path.with_name(self.path.name + ".lock")):
                yield
        except OSError as exc:
            raise self._unkept(exc) from exc

    def _unkept(self, exc: OSError) -> ConfigError:
        why = exc.strerror or type(exc).__name__
        return ConfigError(
            f"the highest revision cannot be kept in `{self.path}` ({why}); give `state=` a path that may be written",
            Code.POLICY_INVALID,
        )
