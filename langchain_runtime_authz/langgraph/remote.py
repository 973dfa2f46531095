"""Remote graphs: decide the edge, send the child's credential along, and end it with the call.

The other server's own instance verifies the credential and opens its run (`authz.run(subject=credential)`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import nullcontext
from typing import Any, NoReturn

from langgraph.pregel.protocol import PregelProtocol

from langchain_runtime_authz.authzen import deny
from langchain_runtime_authz.credential.current_call import current_ticket
from langchain_runtime_authz.errors import AuthzDenied, ConfigError, CredentialError
from langchain_runtime_authz.langgraph._private import Pregel, ensure_graph_config
from langchain_runtime_authz.langgraph.root_entry import ChildEntry, RootEntry
from langchain_runtime_authz.pep.delegate import invitation
from langchain_runtime_authz.pep.engine import Flow, Run
from langchain_runtime_authz.profile import ANY_AGENT

__all__ = ["gate_remote", "gates_remote", "is_remote"]


def is_remote(value: object) -> bool:
    """Return True for a graph that another server runs."""
    return isinstance(value, PregelProtocol) and not isinstance(value, Pregel)


def gates_remote(value: object) -> object:
    """Return the root entry under which the edge to a remote graph is decided, or `None`."""
    return getattr(type(value), "__runtime_authz_remote__", None)


def gate_remote(graph: Any, root_entry: RootEntry) -> None:
    """Have each call of a remote graph decided, in place. A graph that another instance gates stays as it is."""
    if gates_remote(graph) is None:
        graph.__class__ = _remote_class(type(graph), root_entry)


class _Remote(ChildEntry):
    """Gives the headers of the call."""

    remote = True

    def _given(self, run: Run) -> Flow[dict[str, str]]:
        audience = self.engine.agents.get(self.name, ANY_AGENT).audience
        if audience is None:
            return {}
        try:
            credential = yield from invitation(run, audience)
        except CredentialError as exc:
            refused = deny(exc.code)
            raise AuthzDenied(refused.reason, refused.decision_id) from None
        if (ticket := current_ticket()) is not None:  # so that it is found in the tool's output
            ticket.track(credential.token)
        return {"Authorization": f"Bearer {credential.token}"}


def _remote_class(base: Any, root_entry: RootEntry) -> Any:
    def entry(self: Any, config: Any) -> Any:
        merged = ensure_graph_config(config)
        parent = root_entry.at_call(merged).parent
        name = str(getattr(self, "name", None) or getattr(self, "assistant_id", base.__name__))
        return _Remote(root_entry, parent, name, merged, None) if parent is not None else nullcontext({})

    # `invoke` and `ainvoke` come down to these.
    def stream(self: Any, input: Any, config: Any = None, **kwargs: Any) -> Iterator[Any]:
        with entry(self, config) as headers:
            yield from base.stream(self, input, config, **_sent(kwargs, headers))

    async def astream(self: Any, input: Any, config: Any = None, **kwargs: Any) -> AsyncIterator[Any]:
        async with entry(self, config) as headers:
            async for chunk in base.astream(self, input, config, **_sent(kwargs, headers)):
                yield chunk

    def events(*_: Any, **__: Any) -> NoReturn:
        raise ConfigError("events of a remote graph are not decided; use `stream` or `invoke`")

    own = {"stream": stream, "astream": astream, "stream_events": events, "astream_events": events}
    namespace = {"__module__": base.__module__, "__doc__": base.__doc__, "__runtime_authz_remote__": root_entry, **own}
    return type(base)(base.__name__, (base,), namespace)


def _sent(kwargs: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
    own = {k: v for k, v in (kwargs.get("headers") or {}).items() if k.lower() != "authorization"}
    return {**kwargs, "headers": {**own, **headers}} if headers else kwargs
