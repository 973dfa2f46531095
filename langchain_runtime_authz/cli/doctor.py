"""`runtime-authz doctor`: check if this environment can decide, record and ask."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import distribution, distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

from typer import Argument, Option

from langchain_runtime_authz.cli._app import Printout
from langchain_runtime_authz.cli._ledger_options import LedgerOptions
from langchain_runtime_authz.cli.graph_target import load_graph
from langchain_runtime_authz.errors import AuthzError, Code, LedgerError, PDPError
from langchain_runtime_authz.pep.kill_switch import KILL_SWITCH, KillSwitch

EXPORTER: Final = "opentelemetry.exporter"
ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"


class Line(NamedTuple):
    """The result of one check, and what to do."""

    state: Literal["ok", "note", "fail"]
    what: str
    found: str
    do: str = ""


def doctor(
    target: Annotated[str | None, Argument(metavar="GRAPH", help="As for `inspect`.")] = None,
    ledger: Annotated[str | None, Option(metavar="LEDGER", help="A path, or a connection string.")] = None,
    audit: Annotated[Path | None, Option(metavar="FILE", help="Where the decision log is written.")] = None,
    keys: Annotated[Path | None, Option(metavar="DIR", help="The key directory.")] = None,
) -> Printout:
    """Check versions, engine, ledger, log, keys, tracing and a graph. Say what to do.

    Nothing is changed. Name the parts that your application uses. Exit code 1 if a line says `fail`.

    runtime-authz doctor my_agent:graph --ledger ledger.db --audit audit.jsonl --keys keys/
    """
    lines = [
        *_versions(),
        _checked("engine", _engine, "reinstall the package"),
        _checked("ledger", _ledger, f"runtime-authz ledger migrate {ledger}", ledger),
        _checked("audit log", _audit, "runtime-authz codes CODE", audit, ledger),
        _checked("keys", _keys, f"runtime-authz keys generate {keys}", keys),
        _checked("kill switch", _kill_switch, "name a file in a folder that exists"),
        _tracing(),
        *([_checked("graph", _graph, "name it as `module:graph`", target)] if target is not None else ()),
    ]
    failed = any(line.state == "fail" for line in lines)
    told = [f"{n.state:<5} {n.what:<12} {n.found}" + f"\n{'':<5} {'do':<12} {n.do}" * bool(n.do) for n in lines]
    return Printout({"ok": not failed, "lines": [line._asdict() for line in lines]}, told, failed)


def _checked(what: str, look: Callable[..., Line], do: str, *parts: Any) -> Line:
    """Return `look(*parts)`; a note if the first part is `None`; `fail` if it raises."""
    if None in parts[:1]:
        found = "not named: the default ends with the process"
        return Line("note", what, found, f"give your own to `RuntimeAuthz`, and name it by --{what.partition(' ')[0]}")
    try:
        return look(*parts)
    except (AuthzError, OSError, RuntimeError, ImportError) as exc:
        return Line("fail", what, " ".join(str(exc).split()), do)


def _versions() -> Iterator[Line]:
    from packaging.requirements import Requirement

    own, wrong, python = distribution("langchain-runtime-authz"), [], sys.version.split()[0]
    needs = [Requirement(each) for each in own.requires or ()]
    for need in needs:
        found = _version(need.name)
        if need.marker is None and not (found and need.specifier.contains(found, prereleases=True)):
            wrong.append(f"{need.name} {found or 'is missing'}, wanted {need.specifier}")

    def installed(extra: str) -> bool:
        return all(_version(n.name) for n in needs if n.marker and n.marker.evaluate({"extra": extra}))

    extras = ", ".join(filter(installed, own.metadata.get_all("Provides-Extra") or ()))
    yield Line("ok", "package", f"{own.version} on Python {python}, extras: {extras or 'none'}")
    if wrong:
        yield Line("fail", "dependencies", "; ".join(wrong), "install the package again, with -c constraints.txt")
    else:
        host = (f"{name} {_version(name)}" for name in ("langchain-core", "langgraph"))
        yield Line("ok", "dependencies", ", ".join(host))


def _version(name: str) -> str | None:
    return next((found.version for found in distributions(name=name)), None)


def _engine() -> Line:
    from langchain_runtime_authz.evaluation import Decision
    from langchain_runtime_authz.pdp.wasm import WasmPDP
    from langchain_runtime_authz.testing.example_request import example_request

    pdp = WasmPDP()
    answer = pdp.evaluate(example_request().to_json())
    if not isinstance(answer, Decision):
        raise PDPError(Code.PDP_MALFORMED)
    return Line("ok", "engine", f"{pdp.name}, {pdp.revision[:19]}: answered an example by `{answer.outcome}`")


def _ledger(where: str) -> Line:
    try:
        with LedgerOptions(where).opened() as ledger:
            ledger.check("default")
    except LedgerError as exc:
        if exc.code == Code.LEDGER_SCHEMA:
            raise
        return Line("fail", "ledger", " ".join(str(exc).split()), f"runtime-authz codes {exc.code}")
    return Line("ok", "ledger", f"{where.rpartition('@')[2]} can be used")


def _audit(file: Path, ledger: str | None) -> Line:
    from langchain_runtime_authz.audit.chain import read_log

    folder, old = os.access(file.parent, os.W_OK | os.X_OK), file.exists()
    if not folder or file.is_dir() or (old and not os.access(file, os.W_OK)):
        return Line("fail", "audit log", f"{file} cannot be written", "make its folder, or let this user write there")
    if not old or not file.stat().st_size:
        return Line("ok", "audit log", f"{file} can be written")
    if not file.is_file() or not any(read_log(file)):
        return Line("fail", "audit log", f"{file} is not a decision log", "name another file, or move it away")
    if ledger is not None:
        from langchain_runtime_authz._authz_config import refuse_older
        from langchain_runtime_authz.audit.sinks import FileSink

        with LedgerOptions(ledger).opened() as held:
            refuse_older(held, FileSink(file), "default")
    return Line("ok", "audit log", f"{file} can be continued")


def _keys(directory: Path) -> Line:
    from langchain_runtime_authz.credential.keyring import KeyDirectory

    return Line("ok", "keys", f"{directory}, signs with {KeyDirectory(directory).active.kid}")


def _kill_switch() -> Line:
    switch = KillSwitch.from_environment()
    if switch is None:
        return Line("note", "kill switch", f"{KILL_SWITCH} is not set", "set it, or give `kill_switch=`")
    if switch.engaged:
        return Line("fail", "kill switch", "engaged", f"runtime-authz kill release --file {switch.path}")
    return Line("ok", "kill switch", f"{switch.path}, not engaged")


def _tracing() -> Line:
    if not (endpoint := os.environ.get(ENDPOINT)):
        return Line("note", "tracing", f"{ENDPOINT} is not set", "set up an OpenTelemetry SDK to see spans")
    if find_spec(EXPORTER) is None:
        return Line("fail", "tracing", "no exporter is installed", "pip install opentelemetry-exporter-otlp")
    return Line("ok", "tracing", f"spans go to {endpoint}, if the application sets up the SDK")


def _graph(target: str) -> Line:
    graph: Any = load_graph(target)
    if graph.checkpointer is None:
        do = "compile it with a checkpointer, or give `on_ask=`; the Agent Server brings its own"
        return Line("note", "graph", f"{target} has no checkpointer: what would ask is denied", do)
    return Line("ok", "graph", f"{target}, checkpointer {type(graph.checkpointer).__name__}")
