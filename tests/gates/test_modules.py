"""Keep the page that says where each thing is: one row a module, with the first line of its docstring and its names.

`python -m tests.gates.test_modules` writes the page anew.
"""

import ast
import re
from pathlib import Path
from typing import NamedTuple

import langchain_runtime_authz
from tests import generated

PACKAGE = Path(langchain_runtime_authz.__file__).parent


class Module(NamedTuple):
    """What the page says of a module: the first line of its docstring, and the functions and classes for others."""

    says: str
    names: list[str]


def modules() -> dict[Path, Module]:
    """Return what the page says of each module that has code, by its path in the package."""
    trees = {path.relative_to(PACKAGE): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
    return {path: Module(first_line(tree), names_in(tree)) for path, tree in trees.items() if len(tree.body) > 1}


def first_line(tree: ast.Module) -> str:
    """Return the first line of a module's docstring."""
    return (ast.get_docstring(tree) or "").partition("\n")[0].replace("|", "\\|")


def names_in(tree: ast.Module) -> list[str]:
    """Return the names of a module's functions and classes, but for the private ones."""
    found = [each.name for each in tree.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    return list(dict.fromkeys(name for name in found if not name.startswith("_")))


def table() -> str:
    """Return a list of modules for each room."""
    lines: list[str] = []
    rooms: dict[str, list[str]] = {}
    for path, module in modules().items():
        names = ", ".join(f"`{name}`" for name in module.names)
        rooms.setdefault(path.parent.as_posix(), []).append(f"| `{path.name}` | {module.says} | {names} |")
    for room, rows in rooms.items():
        lines += ["", f"## {'The root' if room == '.' else f'`{room}/`'}", "", "| module | what it does | functions and classes |", "|---|---|---|", *rows]
    return "\n".join(lines).strip()


def test_each_module_is_on_the_page() -> None:
    assert generated.read("modules") == table(), "run `python -m tests.gates.test_modules`"


def test_the_text_names_modules_that_exist() -> None:
    """Each word in the text above the lists is a room, a module or a public name."""
    text = (Path(__file__).parents[2] / "docs" / "_generated" / "modules.md").read_text(encoding="utf-8").partition("<!-- modules:begin")[0]
    known = {"RuntimeAuthz", "runtime-authz", *(part for path in modules() for part in path.with_suffix("").parts)}
    assert [word for word in re.findall(r"`([^`]+?)/?`", text) if word not in known] == []


def test_each_module_says_what_is_in_it() -> None:
    """In one line that fits the page, and in words of its own."""
    said = [module.says for module in modules().values()]
    assert [line for line in said if not 0 < len(line) <= 120] == []
    assert len(set(said)) == len(said)


if __name__ == "__main__":
    generated.write("modules", table())
