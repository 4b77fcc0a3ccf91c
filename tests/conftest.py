"""What holds for every test: a seed, and nothing kept from one file for the next."""

import gc

import keras
import pytest


@pytest.fixture(autouse=True)
def seed():
    """Whatever a test leaves to chance is the same in each run."""
    keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True, scope="module")
def fresh_session():
    """Compiled functions of a thousand models make every later test slower."""
    yield
    keras.utils.clear_session()
    gc.collect()
