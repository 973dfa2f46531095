"""MkDocs hooks: README as the first page, and reference pages made from the package, so that none of them can be stale."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from typer.main import get_command

ROOT = Path(__file__).parents[1]


def on_files(files: Files, config: Any) -> Files:
    """Add the first page, without its links that leave `docs/`, and the reference."""
    home = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](").replace('="docs/', '="')
    here = re.compile(r"\[([^\]]+)\]\((?!https?:|#)([^)#]+)([^)]*)\)")
    pages = {"index.md": here.sub(lambda link: link[0] if (ROOT / "docs" / link[2]).is_file() else link[1], home)}
    pages |= {f"reference/{name}.md": make() for name, make in REFERENCE.items()}
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Take out links that leave `docs/`: they lead to files of the repository, which a test of the repository checks."""
    up = page.file.src_uri.count("/") + 1
    return re.sub(rf"\[([^\]]+)\]\((?:\.\./){{{up}}}[^)]+\)", r"\1", markdown)


def _api() -> str:
    """Return the public classes and functions of the package with their docstrings."""
    package, lines = import_module("langchain_runtime_authz"), ["# Python", "", "Import these names from `langchain_runtime_authz`."]
    for name in package.__all__:
        thing = getattr(package, name)
        lines += ["", f"## {name}", "", _doc(thing, name)]
        if inspect.isclass(thing):
            for member, value in sorted(inspect.getmembers(thing, callable)):
                called = inspect.unwrap(value)
                if member[0] != "_" and getattr(called, "__module__", "").startswith(package.__name__) and called.__doc__:
                    lines += ["", f"### {name}.{member}", "", _doc(called, member)]
    return "\n".join(lines)


def _doc(thing: Any, name: str) -> str:
    try:
        head = f"{name}{inspect.signature(thing)}"
    except ValueError:
        head = name
    return f"```text\n{head}\n\n{inspect.getdoc(thing) or ''}\n```"


def _cli() -> str:
    """Return each command's `--help`."""
    lines = ["# Command line", "", "Exit codes: 0; 1 for a finding; 2 if a command could not do its work."]

    def add(command: Any, path: str) -> None:
        context = command.make_context(path, [], resilient_parsing=True, max_content_width=100, terminal_width=100)
        lines.extend(["", f"## {path}", "", "```text", command.get_help(context), "```"])
        for name, sub in getattr(command, "commands", {}).items():
            add(sub, f"{path} {name}")

    add(get_command(import_module("langchain_runtime_authz.cli").app), "runtime-authz")
    return "\n".join(lines)


def _request() -> str:
    """Return the fields of the request that policies read."""
    schema = import_module("langchain_runtime_authz.evaluation").request_schema()
    head = "A policy reads this as `input`. `runtime-authz policy schema` prints the JSON Schema."
    return "\n".join(["# Request", "", head, *_object("Request", schema), *(x for n, s in schema["$defs"].items() for x in _object(n, s))])


def _data() -> str:
    """Return the keys of the shipped policy's data, as its Rego file explains them."""
    policies = ROOT / "langchain_runtime_authz" / "policies"
    rego = (policies / "rego" / "runtime_authz.rego").read_text(encoding="utf-8")
    told = "\n".join(line.removeprefix("#").removeprefix(" ") for line in rego.split("package ")[0].splitlines())
    text = (policies / "data.json").read_text(encoding="utf-8")
    head = "# Policy data\n\n[Policies](../policies.md#change-the-data) says how to change it. The shipped policy explains it:"
    return f"{head}\n\n```text\n{told}\n```\n\n## Shipped values\n\n```json\n{text}\n```"


def _object(name: str, schema: dict[str, Any]) -> list[str]:
    if "properties" not in schema:
        return []
    lines = ["", f"## {name}", "", *_prose(schema), "", "| field | type | |", "|---|---|---|"]
    for field, of in schema["properties"].items():
        about = " ".join(of.get("description", "").split()).replace("|", "\\|")
        lines.append(f"| `{field}` | {_type(of)} | {about} |")
    return lines


def _prose(schema: dict[str, Any]) -> list[str]:
    return str(schema.get("description", "")).splitlines()


def _type(of: dict[str, Any]) -> str:
    if ref := of.get("$ref", "").rpartition("/")[2]:
        return ref if ref == "JsonValue" else f"[{ref}](#{ref.lower()})"
    if "enum" in of or "const" in of:
        return ", ".join(f"`{x}`" for x in of.get("enum", [of.get("const")]))
    if several := of.get("anyOf"):
        return " or ".join(_type(x) for x in several)
    if of.get("type") == "array":
        return f"list of {_type(of.get('items', {}))}"
    return str(of.get("type", "any"))


def _module(title: str, name: str) -> str:
    return f"# {title}\n\n{inspect.getdoc(import_module(name))}\n"


def _claims() -> str:
    """Return the token's claims, with the comments that explain them."""
    name = "langchain_runtime_authz.credential.token"
    source = inspect.getsource(import_module(name))
    told = re.findall(r'^((?:# .+\n)*)(\w+): Final = "([^"]+)"(?:  # (?!noqa)(.+))?$', source, re.MULTILINE)
    lines, above = ["", "| claim or value | constant | |", "|---|---|---|"], ""
    for comment, constant, claim, beside in told:
        above = " ".join(comment.replace("#", "").split()) or above
        lines.append(f"| `{claim}` | `{constant}` | {beside or above} |")
    return _module("Token claims", name) + "\n".join(lines)


def _controls() -> str:
    """Return the published controls, each with the rules and the attacks of this project."""
    document = import_module("langchain_runtime_authz.cli.controls").controls_document()
    lines = ["# Controls", "", f"Each rule stands in `{document['policy']}`. `runtime-authz controls` adds the tests.",
             "A control without a rule is not claimed."]
    for framework in document["frameworks"]:
        lines += ["", f"## {framework['title']}", "", f"Source: <{framework['source']}>. Titles: {framework['titles_from']}.", ""]
        lines += ["| control | title | rules | attacks played |", "|---|---|---|---|"]
        for control in framework["controls"]:
            rules = ", ".join(f"`{rule['reason']}`" for rule in control["rules"]) or "none"
            lines.append(f"| {control['id']} | {control['title']} | {rules} | {len(control['attacks'])} |")
    return "\n".join(lines)


REFERENCE = {
    "api": _api,
    "cli": _cli,
    "request": _request,
    "data": _data,
    "claims": _claims,
    "audit": lambda: _module("Audit record", "langchain_runtime_authz.audit.record"),
    "controls": _controls,
}
