"""Read a mandate from a file or its JSON form, and check it against profiles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from langchain_runtime_authz._validate import read_yaml
from langchain_runtime_authz.errors import Code, ConfigError, wrong_field
from langchain_runtime_authz.mandate.model import Free, Mandate
from langchain_runtime_authz.tool_profile import ToolProfile


def load_mandate(source: Mandate | Mapping[str, Any] | str | Path) -> Mandate:
    """Return a mandate from a `Mandate`, its JSON form, or the path of a YAML file.

    Raises `ConfigError` (`mandate_invalid`), which names the wrong field.
    """
    if isinstance(source, Mandate):
        return source
    where = "mandate"
    if isinstance(source, str | Path):
        where, source = Path(source).name, read_yaml(source, Code.MANDATE_INVALID)
    if not isinstance(source, (dict, Mapping)):
        raise ConfigError(f"{where}: it has no `steps`", Code.MANDATE_INVALID)
    try:
        return Mandate.model_validate(source)
    except ValidationError as exc:
        raise ConfigError(f"{where}: {wrong_field(exc)}", Code.MANDATE_INVALID) from exc


def check_mandate(mandate: Mandate, profiles: Mapping[str, ToolProfile]) -> Iterator[str]:
    """Yield a sentence for each error or risk in a mandate for these tools."""
    for step in mandate.steps:
        profile = profiles.get(step.tool)
        if profile is None:
            yield f"step `{step.id}`: there is no profile of `{step.tool}`{like_name(step.tool, profiles)}"
            continue
        if not profile.side_effect:
            continue
        for name in (*profile.critical, *profile.when):
            if isinstance(step.args.get(name), Free):
                yield f"step `{step.id}`: `{name}` decides what the call hits, and is free"


def like_name(tool: str, profiles: Mapping[str, ToolProfile]) -> str:
    """Return "; is `x` meant?" for the tool with the most similar name, or ""."""
    from difflib import get_close_matches

    return "".join(f"; is `{name}` meant?" for name in get_close_matches(tool, profiles, 1, 0.8))
