"""Remote graphs: decide the edge, send the child's credential along, and end it with the call.

The other server's own instance verifies the credential and opens its run (`authz.run(subject=credential)`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, Final

from langgraph.pregel.protocol import PregelProtocol

from langchain_runtime_authz._url import is_under
from langchain_runtime_authz.authzen import deny
from langchain_runtime_authz.credential.current_call import current_ticket
from langchain_runtime_authz.errors import AuthzDenied, Code, ConfigError, CredentialError
from langchain_runtime_authz.langgraph._private import Pregel, ensure_graph_config
from langchain_runtime_authz.langgraph.root_entry import ChildEntry, RootEntry
from langchain_runtime_authz.pep.delegate import invitation
from langchain_runtime_authz.pep.engine import Flow, Run

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
    header = ""

    def __init__(self, root_entry: RootEntry, parent: Run, name: str, config: Mapping[str, Any], client: Any) -> None:
        super().__init__(root_entry, parent, name, config, None)
        self.profile, self.http = (
            self.engine.child_profile(name),
            getattr(getattr(client, "http", None), "client", None),
        )
        place = self.profile.url if self.profile is not None else None
        # INVARIANT: the credential is for the place that the profile names, whatever the client's address is.
        # Without a client nothing is sent: the graph itself says which one it lacks.
        if place is not None and client is not None and not is_under(str(getattr(self.http, "base_url", "")), place):
            self.refuse = Code.REMOTE_URL

    def _given(self, run: Run) -> Flow[dict[str, str]]:
        if self.http is None or self.profile is None or self.profile.url is None or self.profile.named is None:
            return {}
        try:
            credential = yield from invitation(run, self.profile.named)
        except CredentialError as exc:
            refused = deny(exc.code)
            raise AuthzDenied(refused.reason, refused.decision_id) from None
        if (ticket := current_ticket()) is not None:  # so that it is found in the tool's output
            ticket.track(credential.token)
        self.header = f"Bearer {credential.token}"
        _places[self.header] = self.profile.url, run.parts["invited"]
        _watch(self.http)
        return {"Authorization": self.header}

    def _leave(self, run: Run, *, raised: bool, cut: bool) -> Flow[None]:
        _places.pop(self.header, None)
        yield from super()._leave(run, raised=raised, cut=cut)


# The header of each call under way: the URL below which it may be sent, and the decision about its edge.
_places: Final[dict[str, tuple[str, str]]] = {}


def _check(request: Any) -> None:
    """Refuse a request that would carry a credential elsewhere: after a redirect, or to reconnect."""
    found = _places.get(request.headers.get("Authorization", ""))
    if found is not None and not is_under(str(request.url), found[0]):
        raise AuthzDenied(Code.REMOTE_URL, found[1])


async def _acheck(request: Any) -> None:
    _check(request)


def _watch(client: Any) -> None:
    """Have each request of an httpx client checked."""
    check, hooks = _acheck if hasattr(client, "aclose") else _check, client.event_hooks
    if check not in hooks["request"]:
        client.event_hooks = {**hooks, "request": [*hooks["request"], check]}


def _remote_class(base: Any, root_entry: RootEntry) -> Any:
    def entry(self: Any, config: Any, client: Any) -> Any:
        merged = ensure_graph_config(config)
        parent = root_entry.at_call(merged).parent
        name = str(getattr(self, "name", None) or getattr(self, "assistant_id", base.__name__))
        return _Remote(root_entry, parent, name, merged, client) if parent is not None else nullcontext({})

    # `invoke` and `ainvoke` come down to these.
    def stream(self: Any, input: Any, config: Any = None, **kwargs: Any) -> Iterator[Any]:
        with entry(self, config, getattr(self, "sync_client", None)) as headers:
            yield from base.stream(self, input, config, **_sent(kwargs, headers))

    async def astream(self: Any, input: Any, config: Any = None, **kwargs: Any) -> AsyncIterator[Any]:
        async with entry(self, config, getattr(self, "client", None)) as headers:
            async for chunk in base.astream(self, input, config, **_sent(kwargs, headers)):
                yield chunk

    # An agent that writes another one's state directs it.
    def update_state(self: Any, config: Any, *args: Any, **kwargs: Any) -> Any:
        with entry(self, config, getattr(self, "sync_client", None)) as headers:
            return base.update_state(self, config, *args, **_sent(kwargs, headers))

    async def aupdate_state(self: Any, config: Any, *args: Any, **kwargs: Any) -> Any:
        async with entry(self, config, getattr(self, "client", None)) as headers:
            return await base.aupdate_state(self, config, *args, **_sent(kwargs, headers))

    def events(name: str) -> Any:
        def streamed(self: Any, input: Any, config: Any = None, **kwargs: Any) -> Any:
            if root_entry.at_call(ensure_graph_config(config)).parent is not None:
                raise ConfigError(f"`{name}` of a remote graph is not decided; in a run, use `stream` or `invoke`")
            return getattr(base, name)(self, input, config, **kwargs)

        return streamed

    own = {f.__name__: f for f in (stream, astream, update_state, aupdate_state)}
    own |= {name: events(name) for name in ("stream_events", "astream_events")}
    namespace = {"__module__": base.__module__, "__doc__": base.__doc__, "__runtime_authz_remote__": root_entry, **own}
    return type(base)(base.__name__, (base,), namespace)


def _sent(kwargs: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
    own = {k: v for k, v in (kwargs.get("headers") or {}).items() if k.lower() != "authorization"}
    return {**kwargs, "headers": {**own, **headers}} if headers else kwargs
