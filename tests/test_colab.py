"""The notebook runs from top to bottom in a headless kernel, at toy size."""

import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
def test_the_notebook_trains_shows_measures_and_resumes(tmp_path, monkeypatch):
    notebook = nbformat.read(ROOT / "colab" / "quick_start.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are stripped before a commit"
    toy = {"EPOCHS = 16": "EPOCHS = 1", "runs/colab": str(tmp_path / "run"), "warmup_epochs=1": "warmup_epochs=0.1"}
    for cell in notebook.cells:
        for written, small in toy.items():
            cell.source = cell.source.replace(written, small)
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    where = {"metadata": {"path": str(ROOT)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    printed = "".join(output.get("text", "") for output in outputs)
    shown = [output.data["text/html"] for output in outputs if output.output_type == "display_data"]
    assert '"evaluation": "knn/accuracy"' in printed
    assert "Resuming stage train at step 62." in printed
    assert len(shown) == 2
    assert all("data:image/png;base64," in page for page in shown)
