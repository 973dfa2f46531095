"""Keep the page that says where each thing is: one row a module, from the first line of its docstring.

`python -m tests.gates.test_modules` writes the page anew.
"""

import ast
from pathlib import Path

import langchain_runtime_authz
from tests import generated

PACKAGE = Path(langchain_runtime_authz.__file__).parent


def modules() -> dict[Path, str]:
    """Return the first line of each module that has code, by its path in the package."""
    trees = {path.relative_to(PACKAGE): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
    return {path: (ast.get_docstring(tree) or "").partition("\n")[0].replace("|", "\\|") for path, tree in trees.items() if len(tree.body) > 1}


def table() -> str:
    """Return a list of modules for each room."""
    lines: list[str] = []
    rooms: dict[str, list[str]] = {}
    for path, says in modules().items():
        rooms.setdefault(path.parent.as_posix(), []).append(f"| `{path.name}` | {says} |")
    for room, rows in rooms.items():
        lines += ["", f"## {'The root' if room == '.' else f'`{room}/`'}", "", "| module | |", "|---|---|", *rows]
    return "\n".join(lines).strip()


def test_each_module_is_on_the_page() -> None:
    assert generated.read("modules") == table(), "run `python -m tests.gates.test_modules`"


def test_each_module_says_what_is_in_it() -> None:
    """In one line that fits the page, and in words of its own."""
    said = list(modules().values())
    assert [line for line in said if not 0 < len(line) <= 120] == []
    assert len(set(said)) == len(said)


if __name__ == "__main__":
    generated.write("modules", table())
