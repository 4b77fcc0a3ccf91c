"""What holds for every test."""

import pathlib

import keras
import pytest

ROOT = pathlib.Path(__file__).parent.parent
# What CI runs on both backends: the modules, the code in their texts, train.py.
ON_BOTH_BACKENDS = {
    f"test_{path.stem}"
    for path in [*(ROOT / "recipes").glob("*.py"), *(ROOT / "callbacks").glob("*.py")]
} | {
    "test_draw_garments",
    "test_bad_input",
    "test_docstrings",
    "test_docs",
    "test_train",
    "two_devices",
}


def pytest_collection_modifyitems(items):
    """Leave tests of benchmarks, texts and the house to make test-all on JAX."""
    if keras.backend.backend() == "jax":
        for item in items:
            if item.path.stem not in ON_BOTH_BACKENDS:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def seed():
    """Whatever a test leaves to chance is the same in each run."""
    keras.utils.set_random_seed(0)
