"""Measure max-norm, penalties and the non-finite guard beside what Keras has for them.

    python benchmarks/regularization_cases.py

Each case is a number that Keras's own means reach, and ours, and what it should be.
Writes benchmarks/results/regularization_cases.csv anew, whole or not at all.
"""

import argparse
import os
import pathlib
import tempfile
import typing
from collections.abc import Callable

import keras
import numpy as np
import pandas as pd
from keras import layers
from record import ROOT, surroundings, whole

from callbacks.nonfinite_guard import NonFiniteGuard
from recipes.regularizers import (
    MaxNorm,
    project,
    regularization_table,
    regularize,
)

RESULTS = ROOT / "benchmarks" / "results" / "regularization_cases.csv"
KERAS, OURS = keras.constraints.MaxNorm, MaxNorm


class Case(typing.NamedTuple):
    name: str
    measure: str
    expected: str
    holds: Callable  # of a measured number
    keras: Callable  # measures
    ours: Callable


def at_most(bound):
    return lambda number: number <= bound * (1 + 1e-6)


def near(value):
    return lambda number: abs(number - value) <= 1e-4 * abs(value)


def zero(number):
    return number == 0


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def numpy_of(x):
    return keras.ops.convert_to_numpy(keras.ops.cast(x, "float32")).astype("float64")


def norms(w, axis):
    return np.sqrt(np.square(numpy_of(w)).sum(axis=axis))


# --- max-norm


def largest_norm(layer, shape, axis, by_keras):
    """Of one unit of a trained layer, under a bound of 1 along default axes."""

    def measure():
        model = keras.Sequential([keras.Input(shape), layer()])
        if not by_keras:
            model = regularize(model, max_norm=1.0)
        kernel = model.layers[0].weights[0]
        kernel.assign(9.0 * noise(*kernel.shape))
        kernel.assign(KERAS(1.0)(kernel)) if by_keras else project(model)
        return norms(kernel, axis).max()

    return measure


def bounded(name, layer, shape, axis):
    measures = [
        largest_norm(layer, shape, axis, by_keras) for by_keras in (True, False)
    ]
    measure = f"largest norm of {name}, bound 1"
    return Case(f"max-norm of {name}", measure, "at most 1", at_most(1.0), *measures)


def after_many(constraint):
    @keras.saving.register_keras_serializable(package="benchmarks")
    class Repeated(layers.Layer):
        def call(self, w):
            return keras.ops.fori_loop(0, 10_000, lambda _, w: constraint(1.0)(w), w)

    w = np.full((1, 1), 1e-4, "float32")
    return float(keras.Sequential([Repeated()]).predict(w, verbose=0)[0, 0])


def changed_again(constraint, dtype):
    once = constraint(1.0)(keras.ops.cast(noise(100, 200), dtype))
    return int(np.sum(numpy_of(constraint(1.0)(once)) != numpy_of(once)))


def large_column(constraint):
    column = keras.ops.cast(np.full((4, 1), 300.0, "float32"), "float16")
    return float(norms(constraint(1.0)(column), 0)[0])


def accepted(constraint):
    count = 0
    for value in (-0.1, 0.0, float("nan"), "0.1", None):
        try:
            constraint(value)
            count += 1
        except ValueError:
            pass
    return count


def after_average(constraint, callbacks):
    layer = layers.Dense(2, kernel_constraint=constraint(0.3))
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile(keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.5), "mse")
    options = {"batch_size": 4, "verbose": 0, "callbacks": callbacks(model)}
    model.fit(noise(16, 4), 9.0 * noise(16, 2), **options)
    return norms(layer.kernel, 0).max()


def projecting(model):
    end = keras.callbacks.LambdaCallback(on_train_end=lambda logs: project(model))
    return [end]


# --- penalties; expected is 0.01 times the sum of squares, here 0.12


def dense(**options):
    layer = layers.Dense(3, kernel_initializer="ones", **options)
    return keras.Sequential([keras.Input((4,)), layer])


def set_after_build():
    model = dense()
    model.layers[0].kernel_regularizer = keras.regularizers.L2(0.01)
    return float(sum(model.losses))


def validation_loss_without_penalty(subtract):
    """The part of `val_loss` that is not the data's, for a penalty of 0.12."""
    model = dense(kernel_regularizer=keras.regularizers.L2(0.01))
    model.compile(keras.optimizers.SGD(0.0), "mse", metrics=["mse"])
    x, y = noise(8, 4), noise(8, 3)
    options = {"verbose": 0, "validation_data": (x, y)}
    history = model.fit(x, y, **options).history
    penalty = regularization_table(model)["penalty"].sum() if subtract else 0.0
    return history["val_loss"][0] - penalty - history["val_mse"][0]


# --- one bad batch


def poisoned_run(callbacks):
    """Train on ten batches, the sixth of which is NaN; return the model."""
    keras.utils.set_random_seed(0)
    x, y = noise(80, 4), noise(80, 3)
    x[40:48] = np.nan
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(8, "tanh"), layers.Dense(3)]
    )
    model.compile("adam", "mse")
    options = {"batch_size": 8, "shuffle": False, "epochs": 2, "verbose": 0}
    model.fit(x, y, callbacks=callbacks, **options)
    return model


def nonfinite_weights(model):
    return int(sum(np.sum(~np.isfinite(w)) for w in model.get_weights()))


def nonfinite_in_file(guard, keeper):
    with tempfile.TemporaryDirectory() as folder:
        if keeper == "ModelCheckpoint":
            path = os.path.join(folder, "model.keras")
            poisoned_run([guard, keras.callbacks.ModelCheckpoint(path)])
            return nonfinite_weights(keras.saving.load_model(path))
        backup = keras.callbacks.BackupAndRestore(folder, delete_checkpoint=False)
        model = poisoned_run([guard, backup])
        model.load_weights(os.path.join(folder, "latest.weights.h5"))
        return nonfinite_weights(model)


def guard():
    return NonFiniteGuard("skip", verbose=0)


terminate = keras.callbacks.TerminateOnNaN


def epochs_trained(watcher):
    return len(poisoned_run([watcher]).history.history["loss"])


L2_PENALTY = 0.01 * 12
CASES = [
    bounded("a Dense unit", lambda: layers.Dense(5), (40,), 0),
    bounded("a Conv2D filter", lambda: layers.Conv2D(16, 3), (9, 9, 8), (0, 1, 2)),
    bounded("a Conv2DTranspose filter",
            lambda: layers.Conv2DTranspose(16, 3), (9, 9, 8), (0, 1, 3)),
    bounded("a depthwise filter", lambda: layers.DepthwiseConv2D(3), (9, 9, 8), (0, 1)),
    bounded("an embedding vector", lambda: layers.Embedding(5, 40), (4,), 1),
    Case("weights inside the bound", "weight 1e-4 after 10,000 applications",
         "1e-4", near(1e-4), lambda: after_many(KERAS), lambda: after_many(OURS)),
    *[
        Case(f"max-norm twice, {dtype}", "of 20,000 weights, changed again",
             "0", zero, lambda dtype=dtype: changed_again(KERAS, dtype),
             lambda dtype=dtype: changed_again(OURS, dtype))
        for dtype in ("float32", "float16", "bfloat16")
    ],
    Case("large float16 weights", "norm of a column of 300s, bound 1", "1",
         lambda number: abs(number - 1) < 0.01,
         lambda: large_column(KERAS), lambda: large_column(OURS)),
    Case("senseless bounds", "of -0.1, 0, NaN, '0.1' and None, accepted", "0", zero,
         lambda: accepted(KERAS), lambda: accepted(OURS)),
    Case("max-norm and a moving average", "largest norm after fit, bound 0.3",
         "at most 0.3", at_most(0.3), lambda: after_average(KERAS, lambda model: []),
         lambda: after_average(OURS, projecting)),
    Case("penalty for a built model", "penalty, l2 = 0.01", "0.12", near(L2_PENALTY),
         set_after_build, lambda: float(sum(regularize(dense(), l2=0.01).losses))),
    Case('penalty named "l1l2"', "penalty, l1 = l2 = 0.01", "0.24",
         near(2 * L2_PENALTY),
         lambda: float(sum(dense(kernel_regularizer="l1l2").losses)),
         lambda: float(sum(regularize(dense(), l1=0.01, l2=0.01).losses))),
    Case("data loss from val_loss", "what remains of the penalty 0.12", "0",
         lambda number: abs(number) < 1e-6,
         lambda: validation_loss_without_penalty(subtract=False),
         lambda: validation_loss_without_penalty(subtract=True)),
    Case("one bad batch", "of 67 weights, not finite after it", "0", zero,
         lambda: nonfinite_weights(poisoned_run([terminate()])),
         lambda: nonfinite_weights(poisoned_run([guard()]))),
    Case("one bad batch, epochs", "epochs trained of 2", "2", near(2),
         lambda: epochs_trained(terminate()), lambda: epochs_trained(guard())),
    *[
        Case(f"one bad batch, {keeper}", "of 67 weights, not finite in the file", "0",
             zero, lambda keeper=keeper: nonfinite_in_file(terminate(), keeper),
             lambda keeper=keeper: nonfinite_in_file(guard(), keeper))
        for keeper in ("ModelCheckpoint", "BackupAndRestore")
    ],
]  # fmt: skip


def measure(case):
    keras.utils.set_random_seed(0)
    row = {"case": case.name, "measure": case.measure, "expected": case.expected}
    numbers = {"keras": case.keras(), "ours": case.ours()}
    row |= {who: f"{number:.5g}" for who, number in numbers.items()}
    holds = {f"{who}_holds": case.holds(number) for who, number in numbers.items()}
    return row | {who: bool(answer) for who, answer in holds.items()}


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    path = parser.parse_args(arguments).results
    facts = {k: v for k, v in surroundings().items() if k != "backend"}
    table = pd.DataFrame([{**measure(case), **facts} for case in CASES])
    with whole(path) as new:
        table.to_csv(new, index=False)
    print(table.iloc[:, :7].to_string(index=False))


if __name__ == "__main__":
    main()
