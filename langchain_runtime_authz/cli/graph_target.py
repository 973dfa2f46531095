"""Load the graph that a command names, and its tools."""

from __future__ import annotations

import asyncio
import difflib
import importlib
import json
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, redirect_stdout, suppress
from importlib.util import module_from_spec, spec_from_file_location
from inspect import Parameter, isawaitable, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from typer import Argument

from langchain_runtime_authz.cli._app import echo
from langchain_runtime_authz.errors import ConfigError

Target = Argument(metavar="MODULE:GRAPH", help="A graph, a builder, or a factory like those of LangGraph's server.")

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool
    from langgraph.pregel import Pregel

    Graph = Pregel[Any, Any, Any, Any]


def tools_of(graph: Graph) -> Iterator[BaseTool]:
    """Return all tools that a graph can reach."""
    from langchain_core.tools import BaseTool

    from langchain_runtime_authz.langgraph.object_graph import reached_objects

    return (value for value in reached_objects(graph) if isinstance(value, BaseTool))


def graph_tools(target: str) -> list[BaseTool]:
    """Return a graph's tools, one for each name. Print nodes that act without a tool."""
    from langchain_runtime_authz.coverage.code_scan import acting_nodes
    from langchain_runtime_authz.langgraph.tool_facts import digest_of, made_by_langgraph

    found: dict[str, BaseTool] = {}
    with warnings.catch_warnings(), redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        graph = load_graph(target)
        for tool in tools_of(graph):
            first = found.setdefault(tool.name, tool)
            if digest_of(first) != digest_of(tool) and not (made_by_langgraph(first) and made_by_langgraph(tool)):
                raise ConfigError(f"two tools are named `{tool.name}`; rename one, or each of their calls asks")
        acting = "; ".join(f"`{n}`: {', '.join(map(str, seen))}" for n, seen in acting_nodes(graph).items())
    if acting:
        echo(f"Nodes that act without a tool ({acting}): declare them with `authz.effect`.", err=True)
    if not found:
        raise ConfigError(
            f"`{target}` has no tool to profile; declare what its nodes do by `authz.effect`, each with its `profile=`"
        )
    return list(found.values())


def load_graph(target: str) -> Graph:
    """Return the graph at `module:path`, `file.py:graph` or `langgraph.json[:name]`."""
    from langgraph.graph import StateGraph
    from langgraph.pregel import Pregel

    file, _, name = target.partition(":")
    target = _of_server(Path(file), name) if file.endswith(".json") else target
    found = load_object(target, "my_agent:graph", Pregel | StateGraph, "graph")
    if isinstance(found, StateGraph):
        with _user_code(f"`{target}` does not compile"):
            found = found.compile()
    return found  # type: ignore[no-any-return]


def load_object(target: str, example: str, kind: Any, named: str) -> Any:
    """Return the `kind` at `module:path`, or what the factory there makes."""
    name, colon, path = target.partition(":")
    if not colon or not name or not path:
        raise ConfigError(f"`{target}` must be `module:{example.partition(':')[2]}`, like `{example}`")
    found: Any = _imported(name)
    for step in path.split("."):
        if not hasattr(found, step):
            _unknown(name, found, step)
        found = getattr(found, step)
    if not isinstance(found, kind) and callable(found):
        found = _called(target, found, kind)
    if not isinstance(found, kind):
        raise ConfigError(f"`{target}` is not a {named} but {type(found).__name__}; name one, like `{example}`")
    return found


def _imported(name: str) -> Any:
    sys.path.insert(0, str(Path.cwd()))
    if "/" in name and not name.endswith(".py"):  # like a graph in JavaScript
        raise ConfigError(f"`{name}` is not a Python file; name one, or a module like `my_agent`")
    if name.endswith(".py") and not Path(name).is_file():
        raise ConfigError(f"there is no file `{name}`; name a file, or a module like `my_agent`")
    with _user_code(f"`{name}` cannot be imported"):
        if not name.endswith(".py"):
            return importlib.import_module(name)
        spec: Any = spec_from_file_location(Path(name).stem, name)
        module = module_from_spec(spec)
        sys.path.insert(0, str(Path(name).parent.resolve()))
        sys.modules.setdefault(spec.name, module)
        spec.loader.exec_module(module)
        return module


def _of_server(file: Path, name: str) -> str:
    """Return the target that LangGraph's server would load, by its `langgraph.json`."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        graphs = {n: g if isinstance(g, str) else g["path"] for n, g in config["graphs"].items()}
        dependencies = [str(d) for d in config.get("dependencies", ())]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise ConfigError(f"`{file}` names no graphs ({type(exc).__name__}); name one, like `my_agent:graph`") from exc
    if not name and len(graphs) != 1:
        raise ConfigError(f"`{file}` has {len(graphs)} graphs; name one: {', '.join(f'`{file}:{n}`' for n in graphs)}")
    if name and name not in graphs:
        raise ConfigError(f"`{file}` has no graph `{name}`; it has {', '.join(graphs)}")
    sys.path[:0] = [str((file.parent / d).resolve()) for d in dependencies if d.startswith(".")]
    warnings.filterwarnings("ignore", "the graph has no checkpointer")  # the server brings one
    path = graphs[name] if name else next(iter(graphs.values()))
    return str(file.parent / path) if path.partition(":")[0].endswith(".py") else path


def _called(target: str, factory: Any, kind: Any) -> Any:
    """Return what a factory makes, called as LangGraph's server calls it for a run."""
    from langchain_core.runnables import ensure_config
    from langgraph.store.memory import InMemoryStore
    from langgraph_sdk.runtime import _ExecutionRuntime

    parameters, given = list[Parameter](), dict[str, Any]()
    with suppress(TypeError, ValueError):  # it has no signature
        parameters = [p for p in signature(factory).parameters.values() if p.default is p.empty]
    for p in parameters:
        if "Runtime" in str(p.annotation):
            given[p.name] = _ExecutionRuntime(access_context="threads.create_run", store=InMemoryStore())
        elif re.search("config|cfg", str(p), re.IGNORECASE):
            given[p.name] = ensure_config({"configurable": {"__is_for_execution__": True}})
        elif p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            needs = f"`{target}` needs `{p.name}`"
            raise ConfigError(f"{needs}; name a function that needs at most a `RunnableConfig` and a `ServerRuntime`")
    with _user_code(f"`{target}` failed"):
        made = factory(**given)
        return made if isinstance(made, kind) else asyncio.run(_entered(made))


async def _entered(made: Any) -> Any:
    """Return what a coroutine returns, or a context manager yields."""
    async with AsyncExitStack() as stack:
        if hasattr(made, "__aenter__"):
            return await stack.enter_async_context(made)
        if hasattr(made, "__enter__"):
            return stack.enter_context(made)
        return await made if isawaitable(made) else made


@contextmanager
def _user_code(what: str) -> Iterator[None]:
    try:
        with redirect_stdout(sys.stderr):
            yield
    except (Exception, SystemExit) as exc:  # user code may raise anything
        frames = [f for f in traceback.extract_tb(exc.__traceback__) if "importlib" not in f.filename]
        last = frames[-1]  # this module's own if the user's code did not begin
        where = f" ({Path(last.filename).name}:{last.lineno})" if last.filename != __file__ else ""
        raise ConfigError(f"{what}: {type(exc).__name__}: {exc}{where}; correct it, or install what it needs") from exc


def _unknown(module: str, owner: Any, name: str) -> NoReturn:
    from langgraph.graph import StateGraph
    from langgraph.pregel import Pregel

    names = [n for n in dir(owner) if not n.startswith("_")]
    close = difflib.get_close_matches(name, names, n=1)
    graphs = [n for n in names if isinstance(getattr(owner, n, None), Pregel | StateGraph)]
    has = f"its graphs are {', '.join(graphs)}" if graphs else "name a module that has a graph"
    hint = f"did you mean `{close[0]}`?" if close else has
    raise ConfigError(f"`{module}` has no `{name}`; {hint}")
