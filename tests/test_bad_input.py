"""Every public name refuses what it cannot use by naming the argument, or uses it."""

import importlib
import inspect
import pathlib

import keras
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callbacks.lr_finder import LRFinder
from recipes.distribute import Devices
from recipes.fashion_mnist import epoch_batches
from recipes.mc_dropout import MCDropoutPredictor
from recipes.schedules import OneCycle

ROOT = pathlib.Path(__file__).parent.parent
NAN, INFINITY = float("nan"), float("inf")
HOSTILE = {
    "None": None,
    "empty text": "",
    "text": "no such thing",
    "bytes": b"bytes",
    "truth": True,
    "minus one": -1,
    "zero": 0,
    "half": 0.5,
    "not a number": NAN,
    "infinity": INFINITY,
    "minus infinity": -INFINITY,
    "huge": 1e308,
    "huge integer": 10**30,
    "complex": 1j,
    "empty list": [],
    "list of None": [None],
    "empty tuple": (),
    "empty mapping": {},
    "mapping": {"a": 1},
    "object": object(),
    "class": dict,
    "function": len,
    "empty array": np.zeros(0),
    "array of NaN": np.full((4, 3), NAN),
    "array of infinities": np.full((4, 3), INFINITY),
    "array of text": np.array(["a", "b"]),
    "array of objects": np.array([None, {}], dtype=object),
    "scalar array": np.array(3.0),
    "wrong shape": np.zeros((2, 3, 5, 7)),
    "empty frame": pd.DataFrame(),
    "generator": range(0),
}


def rows(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def labels(number, classes=3):
    return np.arange(number) % classes


def network(*, compiled=True, dropout=False):
    stack = [keras.Input((4,)), keras.layers.Dense(5, "relu")]
    stack += [keras.layers.Dropout(0.5)] * dropout
    model = keras.Sequential([*stack, keras.layers.Dense(3, "softmax")])
    if compiled:
        model.compile("sgd", "sparse_categorical_crossentropy")
    return model


def probabilities(*shape):
    positive = np.abs(rows(*shape)) + 0.1
    return positive / positive.sum(axis=-1, keepdims=True)


def garments(number):
    images = np.zeros((number, 28, 28), "uint8")
    return images, labels(number).astype("uint8")


def schedule():
    return keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)


def history():
    names = ("loss", "val_loss", "accuracy", "val_accuracy")
    return pd.DataFrame({name: np.linspace(1, 0.5, 8) for name in names})


def prediction():
    predictor = MCDropoutPredictor(network(dropout=True), num_samples=2)
    return predictor.predict(rows(6, 4), verbose=0)


def saved_prediction():
    prediction().save("saved.npz")
    return "saved.npz"


# Arguments that each public name accepts.
ACCEPTED = {
    "recipes.check_model.check_model": lambda: {
        "model": network(),
        "x": rows(6, 4),
        "y": labels(6),
    },
    "recipes.check_model.signal_table": lambda: {
        "model": network(),
        "x": rows(6, 4),
        "y": labels(6),
    },
    "recipes.check_model.check_gradients": lambda: {
        "model": network(),
        "x": rows(6, 4),
        "y": labels(6),
        "num_entries": 1,
    },
    "recipes.diagnose.diagnose": lambda: {"history": history()},
    "recipes.diagnose.diagnose_curves": lambda: {"history": history()},
    "recipes.diagnose.plot_diagnosis": lambda: {
        "history": history(),
        "findings": [],
    },
    "recipes.distribute.EvenBatches": lambda: {
        "batches": epoch_batches(rows(6, 4), labels(6), 2, seed=0),
        "devices": Devices(num_devices=1),
    },
    "recipes.distribute.prepare_replicas": lambda: {"model": network()},
    "recipes.fashion_mnist.load": lambda: {"data_dir": ROOT / "nowhere"},
    "recipes.fashion_mnist.split_and_scale": lambda: {
        "train": garments(8),
        "test": garments(4),
        "validation_size": 3,
    },
    "recipes.fashion_mnist.draw_garments": lambda: {"num_samples": 3},
    "recipes.fashion_mnist.epoch_batches": lambda: {
        "x": rows(6, 4),
        "y": labels(6),
        "batch_size": 2,
        "seed": 0,
    },
    "recipes.initializers.initializer_for": lambda: {"activation": "relu"},
    "recipes.initializers.lsuv": lambda: {"model": network(), "x": rows(6, 4)},
    "recipes.layers.Maxout": lambda: {"units": 4, "num_pieces": 2},
    "recipes.layers.HighwayDense": lambda: {"units": 4, "activation": "relu"},
    "recipes.layers.ResidualDense": lambda: {"units": 4, "activation": "relu"},
    "recipes.layers.ResidualConv2D": lambda: {"filters": 4, "activation": "relu"},
    "recipes.layers.dense_block": lambda: {"units": 4, "activation": "relu"},
    "recipes.layers.MaxPieces": lambda: {"num_pieces": 2},
    "recipes.mc_dropout.MCDropoutPredictor": lambda: {"model": network(dropout=True)},
    "recipes.optimizers.make_optimizer": lambda: {"name": "adam"},
    "recipes.optimizers.ClippedOptimizer": lambda: {
        "inner": keras.optimizers.SGD(),
        "clipnorm": 1.0,
    },
    "recipes.regularizers.MaxNorm": lambda: {"max_value": 1.0},
    "recipes.regularizers.regularize": lambda: {"model": network(), "l2": 0.1},
    "recipes.regularizers.project": lambda: {"model": network()},
    "recipes.regularizers.regularization_table": lambda: {"model": network()},
    "recipes.schedules.PowerDecay": lambda: {
        "initial_learning_rate": 0.1,
        "decay_steps": 10,
    },
    "recipes.schedules.Exponential": lambda: {
        "initial_learning_rate": 0.1,
        "decay_steps": 10,
    },
    "recipes.schedules.Piecewise": lambda: {
        "boundaries": [5],
        "values": [0.1, 0.01],
    },
    "recipes.schedules.OneCycle": lambda: {
        "max_learning_rate": 0.1,
        "total_steps": 10,
    },
    "recipes.schedules.Cosine": lambda: {
        "initial_learning_rate": 0.1,
        "decay_steps": 10,
    },
    "recipes.schedules.Cyclical": lambda: {
        "minimum_learning_rate": 0.01,
        "maximum_learning_rate": 0.1,
        "half_cycle_steps": 5,
    },
    "recipes.schedules.Warmup": lambda: {
        "schedule": schedule(),
        "warmup_steps": 5,
    },
    "recipes.schedules.Joined": lambda: {
        "schedules": [schedule(), 0.1],
        "boundaries": [5],
    },
    "recipes.schedules.Floor": lambda: {"schedule": schedule(), "minimum": 0.01},
    "recipes.schedules.InEpochs": lambda: {
        "schedule": schedule(),
        "steps_per_epoch": 5,
    },
    "recipes.schedules.plot_schedules": lambda: {
        "schedules": {"a": schedule()},
        "total_steps": 10,
    },
    "recipes.transfer.reuse": lambda: {
        "model": network(),
        "head": keras.layers.Dense(1),
    },
    "recipes.transfer.freeze": lambda: {
        "model": (m := network()),
        "until": m.layers[-1],
    },
    "recipes.transfer.unfreeze": lambda: {"model": network()},
    "recipes.transfer.layerwise_optimizer": lambda: {
        "model": (m := network()),
        "until": m.layers[-1],
        "reused": keras.optimizers.SGD(),
        "new": keras.optimizers.SGD(),
    },
    **dict.fromkeys(
        ["recipes.uncertainty.predictive_entropy"],
        lambda: {"probabilities": probabilities(6, 3)},
    ),
    **dict.fromkeys(
        [
            "recipes.uncertainty.expected_entropy",
            "recipes.uncertainty.mutual_information",
            "recipes.uncertainty.variation_ratio",
        ],
        lambda: {"samples": probabilities(4, 6, 3)},
    ),
    **dict.fromkeys(
        [
            "recipes.uncertainty.negative_log_likelihood",
            "recipes.uncertainty.brier_score",
            "recipes.uncertainty.expected_calibration_error",
            "recipes.uncertainty.accuracy_at_coverage",
            "recipes.uncertainty.fit_temperature",
            "recipes.uncertainty.plot_reliability",
            "recipes.uncertainty.plot_coverage",
        ],
        lambda: {
            "probabilities": probabilities(6, 3),
            "labels": labels(6),
        },
    ),
    "recipes.uncertainty.auroc": lambda: {
        "scores": rows(6),
        "positives": np.arange(6) % 2,
    },
    "recipes.uncertainty.apply_temperature": lambda: {
        "probabilities": probabilities(6, 3),
        "temperature": 2.0,
    },
    "recipes.uncertainty.plot_most_uncertain": lambda: {
        "images": rows(6, 5, 5),
        "samples": probabilities(4, 6, 3),
    },
    "recipes.uncertainty.plot_in_and_out": lambda: {
        "scores_in": rows(6),
        "scores_out": rows(6),
    },
    "recipes.uncertainty.plot_entropy_split": lambda: {
        "expected_entropy": np.abs(rows(6)),
        "mutual_information": np.abs(rows(6)),
    },
    "callbacks.convergence.StopWhenConverged": lambda: {"min_delta": 0.01},
    "callbacks.lr_finder.LRFinder": dict,
    "callbacks.monitors.GradientMonitor": lambda: {
        "x": rows(6, 4),
        "y": labels(6),
    },
    "callbacks.monitors.ActivationMonitor": lambda: {"x": rows(6, 4)},
    "callbacks.nonfinite_guard.NonFiniteGuard": dict,
    "callbacks.resumable.Resumable": lambda: {"directory": "resume"},
    "callbacks.schedulers.PowerScheduler": lambda: {
        "initial_learning_rate": 0.1,
        "decay_epochs": 5,
    },
    "callbacks.schedulers.ExponentialScheduler": lambda: {
        "initial_learning_rate": 0.1,
        "decay_epochs": 5,
    },
    "callbacks.schedulers.PiecewiseScheduler": lambda: {
        "boundaries_epochs": [5],
        "values": [0.1, 0.01],
    },
    "callbacks.schedulers.OneCycleScheduler": lambda: {"schedule": OneCycle(0.1, 10)},
    "callbacks.schedulers.PlateauScheduler": dict,
}

# Refused on some machines: without the data, without 64 bits.
NOT_ACCEPTED_EVERYWHERE = {
    "recipes.fashion_mnist.load",
    "recipes.check_model.check_gradients",
}
# The object that each is called on, made anew for each call, and accepted arguments.
METHODS = {
    "recipes.mc_dropout.MCDropoutPredictor.predict": lambda: (
        MCDropoutPredictor(network(dropout=True), num_samples=2),
        {"x": rows(6, 4), "verbose": 0},
    ),
    "recipes.mc_dropout.MCPrediction.to_frame": lambda: (prediction(), {}),
    "recipes.mc_dropout.MCPrediction.save": lambda: (prediction(), {"path": "here"}),
    "recipes.mc_dropout.MCPrediction.load": lambda: (
        prediction(),
        {"path": saved_prediction()},
    ),
    "callbacks.lr_finder.LRFinder.run": lambda: (
        LRFinder(num_steps=10),
        {"model": network(), "x": rows(6, 4), "y": labels(6)},
    ),
}
# Keras's own classes with another default or variable: Keras checks their arguments.
OF_KERAS = {
    "recipes.layers.UnitPReLU",
    "recipes.mc_dropout.MCDropout",
    "recipes.mc_dropout.MCAlphaDropout",
    *(f"recipes.optimizers.{name}" for name in ("SGD", "RMSprop", "Adam", "Adamax")),
    *(f"recipes.optimizers.{name}" for name in ("Nadam", "AdamW")),
}
# What is returned, not made by the reader; and what takes no argument.
OTHERS = {
    "recipes.check_model.ModelFinding",
    "recipes.diagnose.Finding",
    "recipes.distribute.Devices",
    "recipes.distribute.all_devices",
    "recipes.fashion_mnist.FashionMNIST",
    "recipes.mc_dropout.MCPrediction",
    "callbacks.clipping_logger.ClippingLogger",
    "callbacks.resumable.StateError",
    "callbacks.schedulers.LearningRateLogger",
}


# It says "initializer identifier" of a `kernel_initializer`.
LOOKED_UP_BY_KERAS = {"kernel_initializer", "kernel_regularizer", "kernel_constraint"}
# What the model says of them, it says in its backend's words.
FED_TO_THE_MODEL = {("predict", "x"), ("run", "y"), ("run", "sample_weight")}
# Of any kind, size and shape.
ANYTHING = st.one_of(
    st.sampled_from(list(HOSTILE.values())),
    st.text(max_size=5),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.lists(st.floats() | st.none() | st.text(max_size=2), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Whatever is written is written here; nothing is downloaded."""
    monkeypatch.chdir(tmp_path)

    def no_network():
        raise OSError("no network")

    monkeypatch.setattr(keras.datasets.fashion_mnist, "load_data", no_network)


def resolved(name):
    """The public function or class, or the method of a class."""
    folder, file, *attributes = name.split(".")
    found = importlib.import_module(f"{folder}.{file}")
    for attribute in attributes:
        found = getattr(found, attribute)
    return found


def arguments(name):
    """What it takes, without `self` and the catch-alls."""
    catch_all = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    parameters = inspect.signature(resolved(name)).parameters.values()
    return [p.name for p in parameters if p.kind not in catch_all and p.name != "self"]


def call(name, **replaced):
    """Call it with accepted arguments, or others in the place of some."""
    if name in METHODS:
        receiver, accepted = METHODS[name]()
        return getattr(receiver, name.split(".")[-1])(**accepted | replaced)
    return resolved(name)(**ACCEPTED[name]() | replaced)


def complaint(name, argument, value):
    """What is wrong with how the value is met; None if it is refused well, or used."""
    try:
        call(name, **{argument: value})
    except Exception as error:
        is_named = argument in str(error) or argument in LOOKED_UP_BY_KERAS
        is_named |= name in NOT_ACCEPTED_EVERYWHERE
        is_refused = isinstance(error, (ValueError, TypeError)) and is_named
        is_refused |= isinstance(error, FileNotFoundError) and (
            str(value) in str(error) or name in NOT_ACCEPTED_EVERYWHERE
        )
        is_the_models = (name.split(".")[-1], argument) in FED_TO_THE_MODEL
        if is_refused or is_the_models:
            left = list(pathlib.Path().glob(".*"))  # what was being written
            return f"{argument}={value!r} leaves {left}" if left else None
        return f"{argument}={value!r}: {type(error).__name__}: {error}"


def test_every_public_name_is_tried():
    public = set()
    for path in [*(ROOT / "recipes").glob("*.py"), *(ROOT / "callbacks").glob("*.py")]:
        module = f"{path.parent.name}.{path.stem}"
        for name, value in vars(importlib.import_module(module)).items():
            is_own = getattr(value, "__module__", None) == module and callable(value)
            if is_own and not name.startswith("_"):
                public.add(f"{module}.{name}")
    assert public - OF_KERAS - OTHERS == set(ACCEPTED)
    assert OF_KERAS | OTHERS <= public


@pytest.mark.parametrize(
    "name", sorted({*ACCEPTED, *METHODS} - NOT_ACCEPTED_EVERYWHERE)
)
def test_accepted_arguments_are_accepted(name):
    call(name)


@pytest.mark.parametrize(
    "name",
    [*ACCEPTED, *[pytest.param(name, marks=pytest.mark.slow) for name in METHODS]],
)
def test_what_no_argument_means_is_refused_by_its_name_or_used(name):
    complaints = [
        complaint(name, argument, value)
        for argument in arguments(name)
        for value in HOSTILE.values()
    ]
    assert [text for text in complaints if text] == []


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([(name, a) for name in ACCEPTED for a in arguments(name)]),
    ANYTHING,
)
def test_anything_is_refused_by_the_arguments_name_or_used(place, value):
    assert complaint(*place, value) is None
