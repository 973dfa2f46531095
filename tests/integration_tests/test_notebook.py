"""Each notebook runs offline from top to bottom, and is stored with what it showed."""

import base64
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
MAX_CELLS = 15
MAX_PICTURE = 60_000  # bytes

pytestmark = [pytest.mark.integration, pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem[:2] for path in NOTEBOOKS])]


def pictures(notebook: Any) -> list[bytes]:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [output for output in outputs if output.output_type == "error"] == []
    return [base64.b64decode(o.data["image/png"]) for o in outputs if "image/png" in o.get("data", {})]


def test_it_is_stored_as_executed(path: Path) -> None:
    """It is valid, short, executed in its order, and has one small picture."""
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3" and len(notebook.cells) <= MAX_CELLS
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    (picture,) = pictures(notebook)
    assert len(picture) < MAX_PICTURE


def test_it_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`notebooks/render` executes every cell. The cells assert what the notebook claims."""
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    assert any("\nassert " in cell.source for cell in nbformat.read(copy, as_version=4).cells)
    monkeypatch.setenv("PATH", os.environ["PATH"])  # the program prepends its own
    monkeypatch.setattr(sys, "argv", ["render", str(copy)])
    runpy.run_path(str(path.with_name("render")), run_name="__main__")
    assert len(pictures(nbformat.read(copy, as_version=4))) == 1
