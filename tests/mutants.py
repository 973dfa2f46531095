"""Change the package's code, one place at a time, and see whether a test notices.

`python -m tests.mutants ROOM… [--number N] [--seed N] [--first N] [--jobs N] [--traces FILE]`. A room is a folder of the package. The
unit tier runs once, to learn which tests run which line; `--traces` keeps that for the next time. Then each mutant's tests run, in a
process of their own and with a copy of the package: first those that run few lines, and then, if they pass, the others. Prints a
table and the survivors: code that nothing needs, or that no test watches. Asserts nothing.
"""

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGE = "langchain_runtime_authz"
TIERS = ("tests/unit_tests", "tests/attack", "tests/property", "tests/contract")
SECONDS = 1.0  # for a test of a mutant, on average; a mutant that takes longer is stopped, and counts as noticed
SWAPS: dict[type, type] = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Is: ast.IsNot,
    ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


class Mutant(NamedTuple):
    """A changed place of a function that begins at line `begin`: the old text, the new one, and the file with it."""

    file: str
    line: int
    old: str
    new: str
    source: str
    begin: int


def changes(node: ast.AST) -> Iterator[ast.AST | str]:
    """Yield what may stand in the place of a node (of an `if`: of its condition): another node, or a text."""
    match node:
        case ast.Compare(ops=[op]) if type(op) in SWAPS:
            yield ast.Compare(node.left, [SWAPS[type(op)]()], node.comparators)
        case ast.BoolOp(op=op):
            yield ast.BoolOp(SWAPS[type(op)](), node.values)
            for left_out in range(len(node.values)):
                rest = [value for number, value in enumerate(node.values) if number != left_out]
                yield rest[0] if len(rest) == 1 else ast.BoolOp(op, rest)
        case ast.BinOp(op=op) if type(op) in SWAPS:
            yield ast.BinOp(node.left, SWAPS[type(op)](), node.right)
        case ast.UnaryOp(op=ast.Not()):
            yield node.operand
        case ast.IfExp():
            yield node.body
            yield node.orelse
        case ast.Constant(value=bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(value=int() as value):
            yield ast.Constant(value + 1)
        case ast.If():
            yield "True"
            yield "False"
        case ast.Raise() | ast.Assign() | ast.AugAssign() | ast.Delete() | ast.Expr(value=ast.Call()):
            yield "pass"
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
            yield "return None"


def mutants(file: Path) -> Iterator[Mutant]:
    """Yield every change of a file's functions."""
    source = file.read_text()
    lines = source.encode().splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    whole = source.encode()
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    seen = set[int]()
    inside = ((function, each) for function in functions for statement in function.body for each in ast.walk(statement))
    for function, node in inside:
        if id(node) in seen or not hasattr(node, "lineno"):
            continue
        seen.add(id(node))
        place: Any = node.test if isinstance(node, ast.If) else node
        begin, end = starts[place.lineno - 1] + place.col_offset, starts[place.end_lineno - 1] + place.end_col_offset
        for change in changes(node):
            new = change if isinstance(change, str) else f"({ast.unparse(change)})"
            changed = (whole[:begin] + new.encode() + whole[end:]).decode()
            old = " ".join(whole[begin:end].decode().split())
            name = str(file.relative_to(ROOT))
            yield Mutant(name, place.lineno, old, " ".join(new.split()), changed, function.lineno)


class Tracing:
    """A plugin of pytest that notes which tests run which line."""

    def __init__(self, rooms: list[Path], out: str) -> None:
        import coverage

        self.coverage = coverage.Coverage(data_file=out, include=[f"{room}/*" for room in rooms], messages=False)
        self.coverage.start()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.coverage.switch_context(nodeid)

    def pytest_unconfigure(self) -> None:
        self.coverage.stop()
        self.coverage.save()


def traced(rooms: list[Path], jobs: int, kept: Path) -> dict[tuple[str, int], list[str]]:
    """Return the tests that run each line, from the file `kept`, which is made if it is missing."""
    import coverage

    files = [str(file.relative_to(ROOT)) for tier in TIERS for file in sorted((ROOT / tier).rglob("test_*.py"))]
    if not kept.exists():
        code = "import sys, json; from tests.mutants import trace; trace(*json.loads(sys.argv[1]))"
        parts = [f"{kept}.{job}" for job in range(jobs)]
        given = [json.dumps([[str(room) for room in rooms], part, files[job::jobs]]) for job, part in enumerate(parts)]
        running = [subprocess.Popen([sys.executable, "-c", code, one], cwd=ROOT) for one in given]
        for process in running:
            process.wait()
        whole = coverage.Coverage(data_file=str(kept))
        whole.combine(parts)
        whole.save()
    data = coverage.CoverageData(str(kept))
    data.read()
    found = dict[tuple[str, int], list[str]]()
    for file in data.measured_files():
        for line, tests in data.contexts_by_lineno(file).items():
            found[str(Path(file).relative_to(ROOT)), line] = [test for test in tests if test]
    return found


def watching(mutant: Mutant, by_line: dict[tuple[str, int], list[str]]) -> list[str]:
    """Return the tests that run a mutant's line, or the nearest line above it in its function.

    Coverage does not see what a generator runs after `throw`.
    """
    lines = range(mutant.line, mutant.begin - 1, -1)
    return next((by_line[mutant.file, line] for line in lines if by_line.get((mutant.file, line))), [])


def trace(rooms: list[str], out: str, files: list[str]) -> None:
    import pytest

    pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", *files], [Tracing([*map(Path, rooms)], out)])


def survives(mutant: Mutant, tests: list[str]) -> bool:
    """Return True if every test passes with the change."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "tests", "docs", "examples", "notebooks", "deploy", ".ci", "constraints.txt"):
            (tree / name).symlink_to(ROOT / name)
        shutil.copytree(ROOT / PACKAGE, tree / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
        (tree / mutant.file).write_text(mutant.source)
        (tree / "ids").write_text("\n".join(tests))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--rootdir={tree}", f"@{tree}/ids"]
        env = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
        process = subprocess.Popen(command, cwd=tree, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            process.communicate(timeout=60 + SECONDS * len(tests))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.communicate()
            return False
        return process.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rooms", nargs="+")
    for name, default in (("number", 300), ("seed", 1), ("first", 200), ("jobs", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--traces", type=Path, default=ROOT / ".mutants.coverage")
    options = parser.parse_args()
    rooms = [ROOT / PACKAGE / room for room in options.rooms]
    by_line = traced(rooms, options.jobs, options.traces)
    often = Counter(test for tests in by_line.values() for test in tests)
    print("| room | mutants | killed | score |\n|---|---|---|---|")
    survivors: list[Mutant] = []
    for room in rooms:
        every = [mutant for file in sorted(room.rglob("*.py")) for mutant in mutants(file)]
        chosen = random.Random(options.seed).sample(every, min(options.number, len(every)))

        def played(mutant: Mutant) -> bool:
            tests = sorted(watching(mutant, by_line), key=lambda test: often[test])
            parts = tests[: options.first], tests[options.first :]
            return all(survives(mutant, part) for part in parts if part)

        with ThreadPoolExecutor(options.jobs) as pool:
            left = []
            for mutant, lives in zip(chosen, pool.map(played, chosen), strict=True):
                if lives:
                    left.append(mutant)
                    print(f"{mutant.file}:{mutant.line}: {mutant.old} → {mutant.new}", file=sys.stderr, flush=True)
        survivors += left
        killed = len(chosen) - len(left)
        print(f"| {room.name} | {len(chosen)} | {killed} | {killed / len(chosen):.0%} |", flush=True)
    print()
    for mutant in sorted(survivors):
        print(f"- `{mutant.file}:{mutant.line}`: `{mutant.old}` → `{mutant.new}`")


if __name__ == "__main__":
    main()
