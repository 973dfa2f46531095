"""Observe what runs outside enforcement points: by callbacks and an audit hook.

The callbacks see code that gets them from its caller, and record names only. The hook gives evidence, not protection,
because one line of code can bypass it. It sees connections, not requests, and opened files, not writes. It does not see
pooled connections, C and Rust libraries, uvloop, child processes and threads without the run's context.
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables.config import var_child_runnable_config

from langchain_runtime_authz.audit.record import observation_record
from langchain_runtime_authz.credential.ticket import current_scope
from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.evaluation import deny
from langchain_runtime_authz.langgraph.graph_entry import AuthzParts
from langchain_runtime_authz.langgraph.private_api import starting_graph, starting_tool
from langchain_runtime_authz.langgraph.protect import owner_of
from langchain_runtime_authz.langgraph.run_context import AuthzHalt, current_run
from langchain_runtime_authz.langgraph.tool_execution import ToolExecution
from langchain_runtime_authz.langgraph.tool_facts import is_guarded
from langchain_runtime_authz.pep.run import Flow, Run, Write
from langchain_runtime_authz.telemetry.spans import record_observation

_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_PACKAGE: Final = __name__.split(".", 1)[0]
Reader = Callable[[tuple[Any, ...]], tuple[str, Any] | None]


class ObservedEffect(NamedTuple):
    """An observed effect: where it happened, which code caused it, kind and target."""

    graph: str
    agent: str
    by: str  # node, tool, model, thread
    name: str
    kind: str  # connect, mail, write, delete, program, native
    target: str

    def __str__(self) -> str:
        return f"{self.kind} {self.target}"


_observers: weakref.WeakSet[Observer] = weakref.WeakSet()
_names: dict[str, str] = {}  # address → the shortest host name that it was resolved from
_busy = threading.local()


def observe_process(authz: AuthzParts, *, strict: bool = False) -> None:
    """Record effects of nodes and tools in the audit log and the coverage report.

    The hook stays for the life of the process, because CPython cannot remove an audit hook.

    Args:
        authz: the instance.
        strict: also refuse undeclared effects: of a node's or model's own code, and of a read-only tool. Tools and
            models may always connect. The code receives a `PermissionError`, and the graph stops after the node. This
            finds mistakes, but does not stop an attacker.
    """
    _install()
    pep = authz.run_opener.pep
    object.__setattr__(pep, "observer", Observer(strict, shows=pep.audit.content))
    _observers.add(pep.observer)


class Observer:
    """Notes the observed effects of one instance. `seen`: those noted so far."""

    def __init__(self, strict: bool, *, shows: bool) -> None:
        self._strict, self._shows = strict, shows
        self.seen: dict[ObservedEffect, None] = {}
        self.newest: Any = None  # the run of the last effect
        self._pending: list[Callable[[], dict[str, Any]]] = []
        self._tripped: set[tuple[str, str]] = set()

    def note(self, run: Run, by: str, name: str, effect: tuple[str, str], call: Any, task: str) -> None:
        """Note an effect. Raises `PermissionError` if it is refused."""
        one = ObservedEffect(run.scope.graph, run.agent[-1], by, name, *effect)
        may = call.profile.side_effect if by == "tool" else by == "thread"  # for a thread, nothing can be declared
        refused = self._strict and not may and not (by in ("tool", "model") and one.kind == "connect")
        if one not in self.seen or refused:
            self.seen[one] = None
            target = one.target if self._shows else "sha256:" + hashlib.sha256(one.target.encode()).hexdigest()
            record = partial(observation_record, now=time.time(), what=one.kind, name=target, by=f"{by} {name}")
            self._pending.append(partial(record, run_id=run.run_id, refused=refused))
        if refused:
            self._tripped.add((run.jti, task))
            raise PermissionError(13, f"{by} `{name}` did what nobody declared: {one}; use `authz.effect`")

    def conclude(self, run: Run, task: str) -> Flow[None]:
        """Record the effects of an ended node. Raises `AuthzHalt` if one was refused."""
        while self._pending:
            yield (Write, self._pending.pop(0))
        if (run.jti, task) in self._tripped:
            self._tripped.discard((run.jti, task))
            raise AuthzHalt(Code.UNDECLARED, deny(Code.UNDECLARED).decision_id)


def what_is_unseen() -> str:
    """Return a sentence about what cannot be observed."""
    also = ", nor what uvloop connects or starts" if "uvloop" in sys.modules else ""
    return f"not seen: pooled connections, C libraries, child processes, threads without the run{also}"


@cache
def _install() -> None:
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        answer = resolve(host, *args, **kwargs)  # the audit event lacks the addresses, so note the names here
        if isinstance(host, str) and len(_names) < 10_000:  # noqa: PLR2004
            for *_, address in answer:
                _names[str(address[0])] = min(_names.get(str(address[0]), host), host, key=len)
        return answer

    socket.getaddrinfo = getaddrinfo
    sys.addaudithook(_hook)


def _hook(event: str, args: tuple[Any, ...]) -> None:
    reader = _EVENTS.get(event)
    if reader is None or getattr(_busy, "on", False):
        return
    _busy.on = True
    try:
        _heard(reader, args)
    finally:
        _busy.on = False


def _heard(reader: Reader, args: tuple[Any, ...]) -> None:
    scope = current_scope.get()
    run, call = scope.run, scope.call if type(scope) is ToolExecution else None
    if run is None:  # a thread without a run: it is unknown which open run started it
        acting = [(o, o.newest, "thread", "(unattributed)") for o in list(_observers) if o.newest and not o.newest.over]
    elif (own := run.pep.observer) is None or not (call or scope.task):  # the graph's loop
        return
    else:
        own.newest = run
        metadata: Mapping[str, Any] = (var_child_runnable_config.get() or {}).get("metadata") or {}
        by = "tool" if call else "model" if run.models.running else "node"
        acting = [(own, run, by, call.tool if call else str(metadata.get("langgraph_node", "")))]
    if acting and (effect := _effect_of_event(reader, args)) is not None and not _by_library():
        for observer, of, by, name in acting:
            observer.note(of, by, name, effect, call, scope.task)


def _by_library() -> bool:
    """Return True if this package itself causes the event, not code that it runs."""
    frame: Any = sys._getframe(3)
    while frame is not None:
        package, _, module = str(frame.f_globals.get("__name__", "")).partition(".")
        if package == _PACKAGE:
            return not module.startswith(("langgraph.", "testing.", "demo."))
        frame = frame.f_back
    return False


def _effect_of_event(reader: Reader, args: tuple[Any, ...]) -> tuple[str, str] | None:
    """Return an audit event's kind and target; None if it is not an effect."""
    with suppress(Exception):  # an argument of an unexpected type
        kind, target = reader(args) or ("", None)
        if target is not None and "__pycache__" not in str(target) and target != os.devnull:
            return kind, str(target)
    return None


def _path(path: Any) -> str | None:
    return None if isinstance(path, int) or path is None else os.path.realpath(os.fsdecode(path))


def _connect(address: Any) -> tuple[str, Any]:
    if not isinstance(address, tuple):
        return "connect", f"unix:{os.fsdecode(address)}"
    return "connect", f"{_names.get(str(address[0]), address[0])}:{address[1]}"


def _mailed(line: Any) -> tuple[str, Any] | None:
    text = line.decode("latin1") if isinstance(line, bytes) else str(line)
    return ("mail", text[8:].strip().strip("<>")) if text[:8].upper() == "RCPT TO:" else None


def _program(name: Any) -> tuple[str, Any]:
    first = name[0] if isinstance(name, list | tuple) else name
    return "program", Path(os.fsdecode(first).split(" ")[0]).name


_EVENTS: Final[dict[str, Reader]] = {
    "open": lambda a: ("write", _path(a[0])) if isinstance(a[2], int) and a[2] & _WRITING else None,
    **dict.fromkeys(("os.remove", "os.rmdir", "shutil.rmtree"), lambda a: ("delete", _path(a[0]))),
    **dict.fromkeys(("os.mkdir", "os.truncate", "os.chmod", "os.chown"), lambda a: ("write", _path(a[0]))),
    **dict.fromkeys(("os.rename", "os.link", "os.symlink"), lambda a: ("write", _path(a[1]))),
    "sqlite3.connect": lambda a: ("write", _path(a[0])) if a[0] not in (":memory:", b":memory:", "") else None,
    **dict.fromkeys(("socket.connect", "socket.sendto"), lambda a: _connect(a[1])),
    "http.client.send": lambda a: _connect((a[0].host, a[0].port)),
    "smtplib.send": lambda a: _mailed(a[1]),
    "subprocess.Popen": lambda a: _program(a[0] or a[1]),
    **dict.fromkeys(("os.system", "os.exec", "os.posix_spawn"), lambda a: _program(a[0])),
    "os.fork": lambda _: ("program", "fork"),
    "ctypes.dlopen": lambda a: ("native", a[0]),
}


class AuthzCallbackHandler(BaseCallbackHandler):
    """Records tools, models and graphs that run outside enforcement points.

    It never enforces, and it never fails a graph. Pass it to code that is not protected yet: `graph.invoke(value,
    {"callbacks": [handler]})`. It writes an audit record `observation`, and an event on the current span, for each of
    these: an unprotected graph, an unguarded tool outside every run, a model outside every protected node, and a chain
    outside every graph and protected node.

    It records names only, no arguments, inputs or outputs. It does not see code that does not receive the caller's
    callbacks: `callbacks=[]`, another thread, a plain function call.

    Args:
        authz: the `RuntimeAuthz` to whose audit sink it writes. If a record cannot be written, LangChain logs that.
    """

    run_inline = True  # so that the handler sees the caller's context, which holds the current run
    ignore_retriever = True
    ignore_retry = True
    ignore_custom_event = True

    def __init__(self, authz: AuthzParts) -> None:
        self._pep = authz.run_opener.pep

    def on_tool_start(self, serialized: dict[str, Any] | None, input_str: str, **kwargs: Any) -> None:
        if current_run() is not None:
            return  # guarded, or decided by the callback backstop
        if (started := starting_tool()) is None or not is_guarded(started[0]):
            self._observe("tool", _name(serialized, kwargs) if started is None else started[0].name)

    def on_chat_model_start(self, serialized: dict[str, Any] | None, messages: Any, **kwargs: Any) -> None:
        if current_run() is None:
            self._observe("model", _name(serialized, kwargs))

    on_llm_start = on_chat_model_start  # type: ignore[assignment]  # prompts in the place of messages

    def on_chain_start(self, serialized: dict[str, Any] | None, inputs: Any, **kwargs: Any) -> None:
        graph = starting_graph()
        if graph is not None:
            if owner_of(graph) is None:
                self._observe("graph", graph.get_name())
        elif kwargs.get("run_type") == "llm":  # a decision model
            if current_run() is None:
                self._observe("model", _name(serialized, kwargs))
        elif current_run() is None and "langgraph_node" not in (kwargs.get("metadata") or {}):
            self._observe("chain", _name(serialized, kwargs))

    def _observe(self, what: Literal["tool", "model", "graph", "chain"], name: str) -> None:
        record_observation(what, name)
        self._pep.write(partial(observation_record, now=time.time(), what=what, name=name))


def _name(serialized: dict[str, Any] | None, kwargs: dict[str, Any]) -> str:
    given = kwargs.get("name") or (serialized or {}).get("name")
    return str(given) if given else "unnamed"
