"""List what an installation adds to LangGraph and LangChain: packages, size, import time, and why.

`python -m tests.benchmarks.dependencies [--rounds N] [--write]`. Reads the metadata of what is installed here. Sizes are of the
installed files. An import is CPU of a process that has imported LangGraph before, the median of rounds in processes of their own.
"""

import argparse
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import generated
from tests.benchmarks.per_call import TREE, machine

WHY = {  # what imports it, and why it is not written here
    "aiohttp": ("aiohttp", "one bounded HTTP exchange, for engines, key sets and token exchange; on import of these"),
    "cryptography": ("cryptography.x509", "signatures and X.509; on import of credentials"),
    "httpx": ("httpx", "`httpx.Auth` of the client that sends credentials; LangSmith has it anyway"),
    "orjson": ("orjson", "each request and record; LangSmith has it anyway"),
    "pydantic": ("pydantic", "what is parsed from outside; LangChain has it anyway"),
    "pyjwt": ("jwt", "JWT and JWK; on import of credentials"),
    "opa-python-client": ("opa_client", "OPA's client, for its health; on use of `OpaPDP`"),
    "opentelemetry-api": ("opentelemetry.trace", "spans and metrics"),
    "opentelemetry-sdk": ("opentelemetry.sdk.trace", "traces of `demo --trace`, and what an exporter needs; on use"),
    "pyyaml": ("yaml", "profiles, policies' projects and mandates in YAML; LangChain has it anyway"),
    "rfc8785": ("rfc8785", "canonical JSON for digests"),
    "rich": ("rich", "tables of the CLI"),
    "typer": ("typer", "the CLI"),
    "wasmtime": ("wasmtime", "runs the shipped policy in the process; on use of `WasmPDP`"),
    "langchain": ("", "`create_agent` and middleware"), "postgres": ("", "`PostgresLedger`"), "cedar": ("", "`CedarPDP`"),
    "seal": ("", "sealed audit arguments (JWE)"), "agentdojo": ("", "`demo --agentdojo`"), "fastapi": ("", "a service that verifies credentials"),
    "mcp": ("", "tools of MCP servers"), "notebook": ("", "the notebooks"), "spiffe": ("", "workload identity"), "otlp": ("", "an exporter"),
}  # fmt: skip


def closure(names: Iterable[str]) -> set[str]:
    """Return what these requirements install here, with all that they need."""
    found: set[str] = set()
    todo = [Requirement(name) for name in names]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        wanted = todo.pop()
        name, extras = canonicalize_name(wanted.name), frozenset(wanted.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            needs = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        found.add(name)
        for need in map(Requirement, needs):
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                todo.append(need)
    return found


def megabytes(names: Iterable[str]) -> float:
    """Return the size of the installed files."""
    paths = {file.locate() for name in names for file in distribution(name).files or () if file.suffix != ".pyc"}
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6


def import_ms(module: str) -> float:
    """Return the CPU of an import after LangGraph's."""
    host = "import langgraph.graph, langgraph.prebuilt, langchain_core.tools, langgraph.checkpoint.memory"
    code = f"{host}, time\nbegun = time.process_time()\nimport {module}\nprint((time.process_time() - begun) * 1e3)"
    return float(subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout)


def table(rounds: int) -> list[str]:
    """Return the tables as lines of Markdown."""
    project = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]
    host = closure(["langgraph", "langchain"])
    ours = closure(project["dependencies"]) - host
    lines = [f"LangGraph and LangChain: {len(host)} packages, {megabytes(host):.0f} MB. Added: {len(ours)}, {megabytes(ours):.0f} MB. {machine()}.", ""]
    lines += ["| dependency | packages it adds | MB | import, ms | why |", "|---|---|---|---|---|"]
    for requirement in map(Requirement, project["dependencies"]):
        name = canonicalize_name(requirement.name)
        if name in WHY:  # LangGraph itself is not
            adds, (module, why) = closure([str(requirement)]) - host, WHY[name]
            took = statistics.median(import_ms(module) for _ in range(rounds))
            lines.append(f"| {name} | {len(adds)} | {megabytes(adds):.1f} | {took:.0f} | {why} |")
    lines += ["", "| extra | packages it adds | MB | for |", "|---|---|---|---|"]
    for name, wanted in project["optional-dependencies"].items():
        adds = closure(wanted) - host - ours
        missing = [w for w in wanted if not closure([w])]
        lines.append(f"| {name} | {'not installed here' if missing else len(adds)} | {'' if missing else f'{megabytes(adds):.1f}'} | {WHY[name][1]} |")
    return lines


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write the tables into docs/_generated")
    options = parser.parse_args()
    text = "\n".join(table(options.rounds))
    print(text)
    if options.write:
        generated.write("dependencies", text)


if __name__ == "__main__":
    main()
