"""The ready profiles: they load, claim nothing mild, fit the tools that are installed, and believe no others."""

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.tools import BaseTool, StructuredTool

from langchain_runtime_authz import Mandate, RuntimeAuthz
from langchain_runtime_authz.langgraph.tool_facts import Profiles, package_of
from langchain_runtime_authz.mandate.model import Step, Text
from langchain_runtime_authz.tool_profile import SHIPPED, ToolProfile, load_profiles, raise_by_hints

# Where a set's tools are defined. A package that is not installed is not checked.
MODULES = {
    "exa": ["langchain_exa.tools"], "files": ["langchain_community.tools.file_management"],
    "gmail": ["langchain_google_community.gmail"], "google-calendar": ["langchain_google_community.calendar"],
    "google-search": [f"langchain_google_community.{m}" for m in ("search", "places_api", "geocoding")],
    "google-sheets": ["langchain_google_community.sheets"], "google-tasks": ["langchain_google_community.tasks"],
    "office365": ["langchain_community.tools.office365"], "playwright": ["langchain_community.tools.playwright"],
    "python": ["langchain_experimental.tools.python.tool"], "requests": ["langchain_community.tools.requests.tool"],
    "search": [
        *(f"langchain_community.tools.{m}.tool" for m in ("ddg_search", "wikipedia", "arxiv", "pubmed", "brave_search", "searchapi")),
        *(f"langchain_community.tools.{m}.tool" for m in ("google_serper", "searx_search", "tavily_search", "you", "stackexchange")),
    ],
    "shell": ["langchain_community.tools.shell.tool"],
    "slack": ["langchain_community.tools.slack"],
    "sql": ["langchain_community.tools.sql_database.tool"],
    "tavily": [f"langchain_tavily.tavily_{m}" for m in ("search", "extract", "crawl", "map", "research")],
}  # fmt: skip
TOOLKITS = {
    "github": ("langchain_community", "agent_toolkits.github.toolkit:GitHubToolkit.from_github_api_wrapper", "utilities.github:GitHubAPIWrapper"),
    "gitlab": ("langchain_community", "agent_toolkits.gitlab.toolkit:GitLabToolkit.from_gitlab_api_wrapper", "utilities.gitlab:GitLabAPIWrapper"),
    "jira": ("langchain_community", "agent_toolkits.jira.toolkit:JiraToolkit.from_jira_api_wrapper", "utilities.jira:JiraAPIWrapper"),
}  # fmt: skip


def tools_in(name: str) -> Iterator[BaseTool]:
    """Each tool of a module, and of the modules below it, made without what it needs to run."""
    module = importlib.import_module(name)
    for found in list(vars(module).values()):
        if isinstance(found, type) and issubclass(found, BaseTool) and found.__module__ == name:
            fields = found.model_fields
            if isinstance(fields["name"].default, str):
                yield found.model_construct(
                    **{n: None if f.default_factory or f.is_required() else f.default for n, f in fields.items()}
                )
    for below in pkgutil.iter_modules(getattr(module, "__path__", ()), f"{name}."):
        yield from tools_in(below.name)


def toolkit(package: str, make: str, wrapper: str) -> list[BaseTool]:
    def named(path: str) -> Any:
        module, _, attribute = path.partition(":")
        found = importlib.import_module(f"{package}.{module}")
        for step in attribute.split("."):
            found = getattr(found, step)
        return found

    made: list[BaseTool] = named(make)(named(wrapper).model_construct()).tools
    return made


def own_tools(name: str) -> list[BaseTool]:
    """The tools that the middleware of LangChain and deepagents brings."""
    from langchain.agents.middleware import FilesystemFileSearchMiddleware, ShellToolMiddleware, TodoListMiddleware

    if name == "deepagents":
        from deepagents.middleware.filesystem import FilesystemMiddleware

        return [*FilesystemMiddleware().tools, *TodoListMiddleware().tools]
    return [
        *ShellToolMiddleware().tools, *TodoListMiddleware().tools,
        *FilesystemFileSearchMiddleware(root_path=str(Path.cwd())).tools,
    ]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_set_loads_and_claims_nothing_mild(name: str) -> None:
    """Each profile is as risky as its name says, is pinned, and names only arguments that its tool takes."""
    for tool, one in load_profiles(name).items():
        assert raise_by_hints(one, None, tool).effect == one.effect, tool
        assert one.arguments is not None
        assert {*one.critical, *one.when, *one.text, *one.free} <= set(one.arguments), tool
        assert (one.origin is None) is name.startswith("mcp-")  # nothing that comes over the wire can prove where it is from
        assert one.trust in ("external", "internal") and (one.draft, one.verdict) == (False, None)
        if {"command", "commands", "code"} & one.critical.keys() or "ython" in tool:
            assert (one.effect, one.sink) == ("admin", "external")
        if one.effect == "fetch":
            assert one.sink == "external"
        assert one.sink == "none" or one.critical or one.text or one.effect == "fetch", tool


@pytest.mark.parametrize("name", sorted({*SHIPPED} - {n for n in SHIPPED if n.startswith("mcp-")}))
def test_a_set_fits_the_installed_tools(name: str) -> None:
    """Each tool of the set that the package still has is profiled."""
    declared = load_profiles(name)
    origin = next(iter(declared.values())).origin
    assert origin is not None
    pytest.importorskip(origin)
    if name in ("deepagents", "langchain"):
        tools = own_tools(name)
    elif name in TOOLKITS:
        tools = toolkit(*TOOLKITS[name])
    else:
        tools = [t for module in MODULES[name] for t in tools_in(module)]
    known = [t for t in tools if t.name in declared]
    assert known
    held = Profiles(declared)
    assert {t.name: held.of(t).why for t in known} == {t.name: "" for t in known}


def foreign_tool(name: str, arguments: tuple[str, ...]) -> BaseTool:
    schema = {"type": "object", "properties": {a: {"type": "string"} for a in arguments}}
    return StructuredTool(name=name, description="Look.", args_schema=schema, func=lambda **_: "")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_foreign_tool_of_the_name_is_not_believed(name: str) -> None:
    """A tool from elsewhere, or with one more argument, keeps asking, and the reason says why."""
    for tool, one in load_profiles(name).items():
        assert one.arguments is not None
        same = Profiles({tool: one}).of(foreign_tool(tool, one.arguments))
        assert same.declared is (one.origin is None)
        assert (f"the tool of `{one.origin}`" in same.why) is (one.origin is not None)
        own = one.model_copy(update={"origin": package_of(foreign_tool(tool, ()))})
        other = Profiles({tool: own}).of(foreign_tool(tool, (*one.arguments, "more")))
        assert (other.declared, other.why) == (False, "its profile is for other arguments (more)")
        assert Profiles({tool: own}).of(foreign_tool(tool, (*one.arguments, "config"))).declared  # LangChain supplies it


def test_a_set_and_ones_own_profile_combine() -> None:
    """The later profile counts, without the pins of the earlier one."""
    held = Profiles(load_profiles(["files", {"read_file": ToolProfile(effect="read", sink="none")}]))
    assert held.of(foreign_tool("read_file", ("path",))).declared


WRITES = [("deepagents", "write_file"), ("deepagents", "edit_file"), ("files", "write_file"), ("mcp-filesystem", "write_file")]


@pytest.mark.parametrize(("name", "tool"), WRITES)
def test_a_search_leaves_unasked_after_a_file_was_written(name: str, tool: str) -> None:
    """What a write answers is not data that was read. The twin is a read of the file, after which a search asks."""
    path = {"mcp-filesystem": "path"}.get(name, "file_path")
    args = {path: "notes.md", **dict.fromkeys(load_profiles(name)[tool].text, "x")}
    order = Mandate(steps=(Step("write", tool, {path: "notes.md", **dict.fromkeys(load_profiles(name)[tool].text, Text())}),))
    for first, asked in (((tool, args), "permit"), (("read_file", {path: "notes.md"}), "approval_required")):
        authz = RuntimeAuthz(profiles=[name, {"web": {"effect": "fetch", "sink": "external", "text": ["query"], "class": "public"}}])
        with authz.session(subject="alice", task="Write notes.md, then search", mandate=order) as session:
            assert session.decide(*first).permit
            session.observe(*first, "done")
            assert session.decide("web", {"query": "tides"}).outcome == asked
