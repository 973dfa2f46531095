"""Deny every step of every process while a file exists.

The switch uses neither PDP nor ledger, so it works while both are down. An unreadable path counts as an existing file.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from langchain_runtime_authz.errors import ConfigError

MAX_REASON: Final = 500  # characters shown
_MADE: Final = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)?")  # how a switch's file begins; empty after `touch`
KILL_SWITCH: Final = "RUNTIME_AUTHZ_KILL_SWITCH"  # environment variable with the file's path


class KillSwitch:
    """Watches one path. Raises `ConfigError` if the path's folder does not exist."""

    __slots__ = ("path",)

    def __init__(self, path: str | Path) -> None:
        if not isinstance(path, str | os.PathLike) or Path(path) == Path():  # the working directory always exists
            raise ConfigError("the kill switch needs the path of a file")
        self.path = Path(path).absolute()  # the working directory may change
        if not self.path.parent.is_dir():
            raise ConfigError(f"the folder of the kill switch `{self.path}` does not exist; create it")

    @classmethod
    def from_environment(cls) -> KillSwitch | None:
        """Return the switch at the path in `RUNTIME_AUTHZ_KILL_SWITCH`; `None` if unset."""
        path = os.environ.get(KILL_SWITCH)
        return cls(path) if path else None

    @property
    def engaged(self) -> bool:
        """True if every step is denied: the file exists, or that is unknown."""
        try:
            os.lstat(self.path)  # a dangling link engages the switch too
        except FileNotFoundError:
            # Without the folder, nobody could engage the switch, so it counts as engaged.
            return not self.path.parent.is_dir()
        except OSError:
            return True
        return True

    def engage(self, reason: str = "") -> None:
        """Deny everything from now on. Engaging the switch again keeps the first reason."""
        try:
            with self.path.open("x", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {reason}\n")
        except FileExistsError:
            return

    def release(self) -> bool:
        """Remove the switch's file. Return True if there was one.

        If the file's folder is gone, the switch stays engaged. Raises `ConfigError` if the file is not empty and
        `engage` did not write it.
        """
        with suppress(FileNotFoundError), self.path.open("rb") as file:  # a dangling link is released too
            if not _MADE.fullmatch(file.read(20)):
                raise ConfigError(f"`{self.path}` is not the file of a kill switch; if it is, remove it by hand")
        try:
            self.path.unlink()
        except FileNotFoundError:
            return False
        return True

    def reason(self) -> str:
        """Return time and reason of engaging the switch, in one line; "" if unreadable."""
        try:
            with self.path.open(encoding="utf-8") as file:
                return " ".join(file.read(MAX_REASON).split())
        except (OSError, UnicodeDecodeError):
            return ""
