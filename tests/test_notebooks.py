"""The notebooks of examples/: they hold no output, and run from the first cell to the last."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs pip install 'resd[dev]'")
nbclient = pytest.importorskip("nbclient", reason="needs pip install 'resd[dev]'")
EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def test_there_are_two_and_they_hold_no_output() -> None:
    assert [file.stem for file in NOTEBOOKS] == ["first_run", "teach_it_your_language"]
    for file in NOTEBOOKS:
        notebook = nbformat.read(file, as_version=4)
        nbformat.validate(notebook)
        for cell in notebook.cells:
            assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_it_runs(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a minute on one core; what it says of the student at its end holds."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(file, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    said = "".join(
        str(output.get("text", output.get("data", {}).get("text/plain", "")))
        for cell in notebook.cells
        for output in cell.get("outputs", ())
    )
    if file.stem == "first_run":
        pattern = r"base ([0-9.]+), base with the playbook ([0-9.]+), student ([0-9.]+)"
        base, told, student = map(float, re.search(pattern, said).groups())  # type: ignore[union-attr]
        assert base < 0.1 and min(told, student) > 0.3
    else:
        assert float(re.search(r"mean@2 ([0-9.]+)", said).group(1)) > 0.3  # type: ignore[union-attr]
    assert len(list((tmp_path / "runs").iterdir())) == 1
