"""The tutorial runs from its first cell to its last, as a newcomer would run it."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TUTORIAL = Path(__file__).parents[2] / "examples" / "tutorial.ipynb"


@pytest.mark.slow
@pytest.mark.spark
def test_the_tutorial_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("TUTORIAL_FOLDER", str(tmp_path / "tutorial"))
    notebook = nbformat.read(TUTORIAL, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # none is kept
    NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": tmp_path}}
    ).execute()
    printed = str([cell.get("outputs") for cell in notebook.cells])
    for told in ("encoded", "nats per validation patient", "[BOS]", "sampled_again"):
        assert told in printed
    assert "error: " not in printed
