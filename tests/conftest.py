"""What holds for every test."""

import keras
import pytest


@pytest.fixture(autouse=True)
def seed():
    """Whatever a test leaves to chance is the same in each run."""
    keras.utils.set_random_seed(0)
