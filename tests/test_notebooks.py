"""Each notebook runs, and its two files hold the same cells."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jupytext
import keras
import pytest

FOLDER = pathlib.Path(__file__).parent.parent / "notebooks"
SCRIPTS = sorted(FOLDER.glob("[0-9]*.py"))

every_notebook = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
# These are for make test-all; and all on JAX, where each compiles for half a minute.
LONG = {"01", "02", "03", "05", "06", "08", "10"}
IS_JAX = keras.backend.backend() == "jax"


@every_notebook
def test_script_and_notebook_hold_the_same_cells(script):
    source = jupytext.read(script).cells
    executed = jupytext.read(script.with_suffix(".ipynb")).cells
    assert [(c.cell_type, c.source) for c in source] == [
        (c.cell_type, c.source) for c in executed
    ]


@every_notebook
def test_notebook_was_executed_in_order_and_is_small(script):
    path = script.with_suffix(".ipynb")
    cells = json.loads(path.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    for number, cell in enumerate(code, start=1):
        hidden = "hide-output" in cell["metadata"].get("tags", [])
        assert cell["execution_count"] == (None if hidden else number)
    assert path.stat().st_size < 400_000
    assert str(FOLDER.parent) not in path.read_text()


def test_the_first_cell_installs_the_zip_file_in_colab_alone(monkeypatch, tmp_path):
    first, *others = [
        next(
            cell.source
            for cell in jupytext.read(script).cells
            if cell.cell_type == "code"
        )
        for script in SCRIPTS
    ]
    assert all(other == first for other in others)
    asked = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: asked.append(command))
    monkeypatch.chdir(tmp_path)
    exec(first, {})
    assert not asked
    # As a host packs it, in a folder of its own.
    (tmp_path / "packed" / "main" / "notebooks").mkdir(parents=True)
    (tmp_path / "packed" / "main" / "recipes").mkdir()
    shutil.make_archive("keras-training-recipes", "zip", "packed")
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    for _ in range(2):  # run again, it does nothing
        exec(first, {})
    assert asked == [[sys.executable, "-m", "pip", "install", "-q", ".."]]
    assert pathlib.Path("../recipes").is_dir()


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(
            script,
            marks=[pytest.mark.slow] * (IS_JAX or script.stem[:2] in LONG),
            id=script.stem,
        )
        for script in SCRIPTS
    ],
)
def test_notebook_runs_on_small_data(script):
    result = subprocess.run(
        [sys.executable, script.name],
        cwd=FOLDER,
        env={**os.environ, "QUICK": "1", "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
