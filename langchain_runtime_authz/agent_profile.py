"""Read agent profiles (`RuntimeAuthz(agents=...)`): grants and remote servers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from langchain_runtime_authz._url import checked_url, is_under
from langchain_runtime_authz.errors import Code, ConfigError, wrong_field
from langchain_runtime_authz.grant import Grant

ANY: Final = "*"
"""The key in `agents` of the profile for all child agents that have no profile by name."""


class AgentProfile(BaseModel):
    """The limits of an agent, in every graph.

    Attributes:
        grant: the most that a run of the agent may do. The grants of its parent agents limit the run too.
        url: the URL of another server that runs the agent (`RemoteGraph`): https, or http on this machine. A call's
            credential is sent only to this URL and to URLs below it. Without a `url`, no credential is sent.
        audience: the audience of that credential; by default the `url`.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")
    grant: Grant = Grant()
    url: str | None = None
    audience: str | None = None

    @property
    def named(self) -> str | None:
        """The audience of the agent's credential, or `None` if the agent has no `url`."""
        return None if self.url is None else self.audience or self.url


def load_agents(agents: Mapping[str, AgentProfile | Mapping[str, Any]] | None) -> dict[str, AgentProfile]:
    """Return the profiles by agent name, or raise `ConfigError` if one is invalid."""
    try:
        found = TypeAdapter(dict[str, AgentProfile]).validate_python(dict(agents or {}))
    except ValidationError as exc:
        raise ConfigError(f"agents: {wrong_field(exc, 'agent profile')}", Code.PROFILE_INVALID) from exc
    except (TypeError, ValueError):
        raise ConfigError("`agents` must be a mapping of names to `AgentProfile`", Code.PROFILE_INVALID) from None
    for name, profile in found.items():
        url, where = profile.url, f"agents[{name!r}].url"
        if url is not None and (not is_under(checked_url(url, where), url) or any(mark in url for mark in "?#")):
            msg = f"`{where}` must be a bare URL: ASCII, no user, dot segments, query or fragment"
            raise ConfigError(msg, Code.PROFILE_INVALID)
        if url is None and profile.audience is not None:
            msg = f"`agents[{name!r}].audience` needs the `url` to which the credential goes"
            raise ConfigError(msg, Code.PROFILE_INVALID)
    return found
