"""Check settings and their files, and read JSON values of unknown types.

An error names the setting that is invalid.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from langchain_runtime_authz.errors import Code, ConfigError, unreadable

_SHOWN = 60  # characters of a value in an error


def wrong(name: str, wanted: str, value: object) -> ConfigError:
    """Return an error which says that the setting `name` must be `wanted`."""
    text = repr(value)
    return ConfigError(f"`{name}` must be {wanted}, not {text if len(text) <= _SHOWN else text[:_SHOWN] + '…'}")


def checked_seconds(name: str, value: Any) -> float:
    """Return `value` as a positive number of seconds, or raise `ConfigError`."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) <= threading.TIMEOUT_MAX:
        raise wrong(name, "a positive number of seconds", value)
    return float(value)


def checked_count(name: str, value: Any) -> int:
    """Return `value` if it is a whole number from 1 on, or raise `ConfigError`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise wrong(name, "a whole number from 1", value)
    return int(value)


def checked_text(name: str, value: Any) -> str:
    """Return `value` if it is text and not empty, or raise `ConfigError`."""
    if not isinstance(value, str) or not value:
        raise wrong(name, "text", value)
    return value


def checked_names(name: str, value: Any) -> tuple[str, ...]:
    """Return a list of names as a tuple. Raises `ConfigError`, also for a single text."""
    if isinstance(value, str) or not all(isinstance(one, str) and one for one in value):
        raise wrong(name, "a list of names", value)
    return tuple(value)


def checked_path(name: str, value: Any) -> Path:
    """Return `value` as an absolute path, or raise `ConfigError`."""
    if not isinstance(value, str | os.PathLike) or not os.fspath(value) or "\0" in str(value):
        raise wrong(name, "a path", value)
    return Path(value).absolute()


def of_kind(name: str, value: Any, kind: Any, wanted: str) -> Any:
    """Return `value` if it is a `kind`. Else raise `ConfigError`: must be `wanted`."""
    if not isinstance(value, kind):
        raise wrong(name, wanted, value)
    return value


checked_callable = partial(of_kind, kind=Callable, wanted="something to call")


def as_mapping(value: object) -> Mapping[str, Any]:
    """Return a parsed JSON object; an empty mapping in place of any other value."""
    return value if isinstance(value, Mapping) else {}


def as_list(value: object) -> Sequence[Any]:
    """Return a parsed JSON array; an empty tuple in place of any other value."""
    return value if isinstance(value, list | tuple) else ()


def read_yaml(path: str | Path, code: Code) -> Any:
    """Read a YAML file.

    Raises `ConfigError`, which names the line. It refuses repeated names. It also refuses numbers like `0123` and
    `12:30`, which parsers read differently.
    """
    import yaml  # only where a file is read

    class Unique(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> Any:
            node, names = super().compose_mapping_node(anchor), set[str]()
            # PyYAML would silently use the last value. Only scalars are compared, because other keys may be huge.
            for key in [k for k, _ in node.value if isinstance(k, yaml.ScalarNode)]:
                if key.value in names:
                    raise yaml.MarkedYAMLError(problem=f"{key.value!r} stands here twice", problem_mark=key.start_mark)
                names.add(key.value)
            return node

        def construct_yaml_int(self, node: Any) -> Any:  # PyYAML would take 0123 for 83, and 12:30 for 750
            if node.value.lstrip("+-")[1:] and (node.value.lstrip("+-")[0] == "0" or ":" in node.value):
                raise yaml.MarkedYAMLError(problem=f"{node.value!r} needs quotes", problem_mark=node.start_mark)
            return super().construct_yaml_int(node)

    Unique.add_constructor("tag:yaml.org,2002:int", Unique.construct_yaml_int)
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), Unique)  # noqa: S506  (a safe loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as exc:
        raise ConfigError(f"{Path(path).name} cannot be read: {unreadable(exc)}", code) from exc
