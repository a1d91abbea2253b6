"""The tutorial runs from top to bottom, and finds what it says that it finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import kgrec_fast

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "tutorial.ipynb"
FINDINGS = """
import json
metrics = {name: evaluate(x, data, "test", ks=[10])["ndcg@10"]
           for name, x in (("model", model), ("popularity", Popularity()))}
print(json.dumps({"auc": auc, "planted": float(data.truth.float().mean()), **metrics, **ndcg}))
"""


@pytest.fixture(scope="module")
def notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_runs_and_finds_the_planted_rationales(
    notebook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its process imports the package that is tested here.
    monkeypatch.setenv("PYTHONPATH", str(Path(kgrec_fast.__file__).parents[1]))
    copy = nbformat.from_dict(json.loads(json.dumps(notebook)))
    copy.cells.append(nbformat.v4.new_code_cell(FINDINGS))
    NotebookClient(copy, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    found = json.loads(copy.cells[-1].outputs[0].text)
    assert found["planted"] == 0.5
    assert found["auc"] > 0.75  # 0.5 is chance
    assert found["model"] > 2 * found["popularity"]
    assert found["all"] == pytest.approx(found["model"], rel=1e-3)
    assert found["upper half"] > found["lower half"]


def test_it_is_kept_with_its_outputs(notebook: Any) -> None:
    """The site and code hosts show the outputs in the file."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum("image/png" in out.get("data", {}) for cell in cells for out in cell.outputs) == 2
    assert not any(out.output_type == "error" for cell in cells for out in cell.outputs)
