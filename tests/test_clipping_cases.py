"""The cases are about TensorFlow's replicas and slices: its suite runs them."""

import os
import pathlib
import subprocess
import sys

import keras
import pandas as pd
import pytest

if keras.backend.backend() == "jax":
    pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "clipping_cases.py"
RESULTS = ROOT / "benchmarks" / "results" / "clipping_cases.csv"
FACTS = ["versions", "machine", "commit"]

# What Keras 3.15 does. A case that is no longer here has been repaired in Keras.
KERAS_WRONG = {
    "two replicas, clipvalue": "1",
    "two replicas, clipnorm": "1",
    "two replicas, global_clipnorm": "1",
    "embedding with a repeated id, clipvalue": "4",
    "embedding with a repeated id, clipnorm": "3",
    "embedding with a repeated id, global_clipnorm": "3",
    "embedding with a repeated id, jit_compile": "3",
    "embedding with a repeated id, Adam": "1.835",
    "embedding with a repeated id, RMSprop": "6.646",
    "clipvalue of 0": "50",
    "clipnorm of -1": "50",
    "global_clipnorm of 0": "50",
    "value and norm together": "refused",
    "1e20 in a gradient, clipnorm": "0",
    "1e20 in a gradient, global_clipnorm": "nan",
    "float16 gradient": "0",
    "nan in a gradient, step to be skipped": "nan",
    "inf in a gradient, step to be skipped": "nan",
    "nan on one of two replicas, step to be skipped": "nan",
    "nan on the second replica, under LossScaleOptimizer": "nan",
    "1e20 in a gradient, step to be skipped": "inf",
    "gradient accumulation on two replicas": "fails",
}
KERAS_LACKS = [
    "two replicas, adaptive",
    "adaptive, Dense",
    "adaptive, Conv2D",
    "adaptive, DepthwiseConv2D",
    "percentile",
    "norm read while training",
]


def read(path):
    table = pd.read_csv(path, dtype=str, keep_default_na=False, index_col="case")
    return table.replace({"True": True, "False": False})


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    path = tmp_path_factory.mktemp("cases") / "cases.csv"
    result = subprocess.run(
        [sys.executable, SCRIPT, "--results", path],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert [each.name for each in path.parent.iterdir()] == ["cases.csv"]
    return read(path)


def test_ours_is_right_in_every_case(measured):
    assert measured["ours_holds"].all()


def test_a_dense_gradient_of_moderate_size_keras_clips_rightly(measured):
    assert measured.loc["dense gradient on one device", "keras_holds"]


def test_keras_still_clips_wrongly_where_this_table_says_so(measured):
    wrong = measured[~measured["keras_holds"].astype(bool)]["keras"]
    lacks = dict.fromkeys(KERAS_LACKS, "not offered")
    assert wrong.to_dict() == {**KERAS_WRONG, **lacks}


def test_the_results_are_what_the_command_gives(measured):
    kept = read(RESULTS)
    assert list(kept.columns) == list(measured.columns)
    pd.testing.assert_frame_equal(
        kept.drop(columns=FACTS), measured.drop(columns=FACTS)
    )
    assert (kept[FACTS] != "").all(axis=None)
