"""The notebooks run from top to bottom, in a kernel of their own, without a complaint."""

import os
import pathlib
import re

import jax
import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "experiments" / "notebooks").glob("*.ipynb"))


def executed(path: pathlib.Path) -> nbformat.NotebookNode:
    """The notebook with its outputs; its programs are those of other tests, where they agree."""
    notebook = nbformat.read(path, as_version=4)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    client = NotebookClient(notebook, timeout=300, kernel_name="python3")
    with client.setup_kernel(env=environment, cwd=str(ROOT)):
        for number, cell in enumerate(notebook.cells):
            client.execute_cell(cell, number)
    return notebook


@pytest.mark.parametrize(
    ("name", "pictures", "said", "least", "most"),
    [
        ("1_quick_start", 7, r"every frame .*?\((.*) % of", 0, 1),  # exact geometry
        ("2_what_the_matcher_sees", 9, r"valid matches (.*) % are visible", 95, 100),
        ("3_inside_the_network", 9, r"largest change in the encoder: (.*)", 0, 0),
    ],
)
def test_runs_and_shows(name, pictures, said, least, most):
    notebook = executed(ROOT / "experiments" / "notebooks" / f"{name}.ipynb")
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    complaints = [out.text for out in outputs if out.get("name") == "stderr"]
    assert not complaints, complaints
    shown = [out.data for out in outputs if "data" in out]
    images = sum("image/png" in data or "data:image" in data.get("text/html", "") for data in shown)
    assert images == pictures
    printed = "".join(out.text for out in outputs if out.output_type == "stream")
    figure = re.search(said, printed)
    assert figure and least <= float(figure[1]) <= most


def test_all_notebooks_are_tested_and_carry_no_results():
    assert [path.stem[0] for path in NOTEBOOKS] == ["1", "2", "3"]
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells), path
        assert path.stat().st_size < 30_000, path
