"""The notebook runs offline from top to bottom."""

from __future__ import annotations

from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "first_steps.ipynb"

pytestmark = pytest.mark.integration


def test_it_is_stored_clean() -> None:
    """The notebook is valid nbformat 4.5, stored without outputs, for the kernel `python3`."""
    notebook = nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


def test_it_runs() -> None:
    """Every cell runs, and the harm, the question, the correction and the tables are shown."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = "\n".join(output.get("text", "") or str(output.get("data", "")) for output in outputs)
    expected = (
        "Sent 95.00 to US13.",
        "EXPECTED 'DE21'",
        "The user rejected this action",
        "halted: stale_epoch",
        "Sent 45.00 to PLUMBER.",
        "<table>",
        '"tools/call"',
    )
    assert [text for text in expected if text not in shown] == []
