"""Time ways to predict with MC Dropout on Fashion-MNIST's test images, side by side.

    python benchmarks/mc_dropout_speed.py book head blocks trunk spatial

The ways take turns in one process, so that a slow minute of the machine meets them all,
and a ratio is taken within a turn. Models have their initial weights: the time does not
depend on them. A way that takes too long is measured on fewer samples and scaled up, as
`measured_samples` says.

Appends to benchmarks/results/mc_dropout_speed.csv; a model that has been measured with
this backend on this machine is left out. Nothing else should run on the machine
meanwhile.
"""

import argparse
import pathlib
import time
import typing
from collections.abc import Callable

import keras
import numpy as np
import pandas as pd
from keras import layers
from record import ROOT, append, surroundings

import train
from recipes import fashion_mnist
from recipes.mc_dropout import MCDropout, MCDropoutPredictor

RESULTS = ROOT / "benchmarks" / "results" / "mc_dropout_speed.csv"
SAMPLES = 100  # as in the book
BOOK = "book's loop"
OURS = "MCDropoutPredictor"


# --- the ways: each takes a model, and returns a function of (inputs, samples)


def book_loop(model):
    def predict(x, num_samples):
        samples = np.stack([model(x, training=True) for _ in range(num_samples)])
        return samples.mean(axis=0), samples.std(axis=0)

    return predict


def book_exercise(model):
    mc_model = keras.Sequential(
        [keras.Input(model.input_shape[1:])]
        + [
            MCDropout(layer.rate) if isinstance(layer, layers.Dropout) else layer
            for layer in model.layers
        ]
    )
    return predict_loop(mc_model, batch_size=32)


class DropoutOn(keras.Model):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def call(self, x):
        return self.model(x, training=True)


def predict_with_dropout_on(model):
    return predict_loop(DropoutOn(model), batch_size=1000)


def predict_loop(mc_model, batch_size):
    def predict(x, num_samples):
        samples = [
            mc_model.predict(x, batch_size=batch_size, verbose=0)
            for _ in range(num_samples)
        ]
        return np.mean(samples, axis=0), np.std(samples, axis=0)

    return predict


def inputs_repeated(model):
    def predict(x, num_samples):
        means, deviations = [], []
        inputs_at_once = 10_000 // num_samples
        for start in range(0, len(x), inputs_at_once):
            batch = x[start : start + inputs_at_once]
            samples = model(np.repeat(batch, num_samples, axis=0), training=True)
            samples = keras.ops.convert_to_numpy(samples)
            samples = samples.reshape(len(batch), num_samples, -1)
            means.append(samples.mean(axis=1))
            deviations.append(samples.std(axis=1))
        return np.concatenate(means), np.concatenate(deviations)

    return predict


def graph_loop(model):
    import tensorflow as tf

    @tf.function
    def moments(x, num_samples):
        total = squares = tf.zeros((len(x), model.output_shape[-1]))
        for _ in tf.range(num_samples):
            sample = model(x, training=True)
            total += sample
            squares += sample**2
        mean = total / tf.cast(num_samples, total.dtype)
        mean_square = squares / tf.cast(num_samples, total.dtype)
        return mean, tf.sqrt(tf.maximum(mean_square - mean**2, 0))

    def predict(x, num_samples):
        mean, deviation = moments(tf.constant(x), tf.constant(num_samples))
        return mean.numpy(), deviation.numpy()

    return predict


def plain_predict(batch_size):
    def prepare(model):
        def predict(x, num_samples):
            return model.predict(x, batch_size=batch_size, verbose=0), None

        return predict

    return prepare


def ours(**options):
    """A predictor that is kept: what is timed is its second and later calls."""

    def prepare(model):
        predictors = {}

        def predict(x, num_samples):
            if num_samples not in predictors:
                predictors[num_samples] = MCDropoutPredictor(
                    model, num_samples=num_samples, seed=0, **options
                )
            # It holds the entropies and the mutual information too.
            prediction = predictors[num_samples].predict(x, verbose=0)
            return prediction.mean, prediction.std

        return predict

    return prepare


def ours_for_the_first_time(model):
    """A new predictor of a model it has never seen."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return ours()(copy)


class Way(typing.NamedTuple):
    prepare: Callable
    samples: int = SAMPLES
    is_kept: bool = True  # prepared once, and warmed up
    tensorflow_only: bool = False


WAYS = {
    BOOK: Way(book_loop),
    "book's exercise, batches of 32": Way(book_exercise),
    "loop of predict, batches of 1000": Way(predict_with_dropout_on),
    "inputs repeated in big batches": Way(inputs_repeated),
    "loop in one tf.function": Way(graph_loop, tensorflow_only=True),
    OURS: Way(ours()),
    f"{OURS}, first call": Way(ours_for_the_first_time, is_kept=False),
    f"{OURS}, inputs_per_mask=1": Way(ours(inputs_per_mask=1)),
    f"{OURS}, inputs_per_mask=None": Way(ours(inputs_per_mask=None)),
    "one plain predict, batches of 32": Way(plain_predict(32), samples=1),
    "one plain predict, batches of 1000": Way(plain_predict(1000), samples=1),
}


# --- the models


def book():
    """the book's net, dropout before each of three dense layers"""
    return train.network(hidden_units=(100, 100), dropout=lambda: layers.Dropout(0.2))


def head():
    """three convolutions and three dense layers, dropout before the last two"""
    return convolutional()


def trunk():
    """as `head`, with dropout also after each pooling"""
    return convolutional(lambda: layers.Dropout(0.25))


def spatial():
    """as `trunk`, where whole channels are dropped after pooling"""
    return convolutional(lambda: layers.SpatialDropout2D(0.25))


def convolutional(dropout=None):
    # The book's net of chapter 14 without its third stage, with half the filters.
    first, second = ([dropout()] if dropout else [] for _ in range(2))
    return keras.Sequential(
        [
            keras.Input((28, 28)),
            layers.Reshape((28, 28, 1)),
            layers.Conv2D(32, 7, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            *first,
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            *second,
            layers.Flatten(),
            layers.Dense(128, "relu"),
            layers.Dropout(0.5),
            layers.Dense(64, "relu"),
            layers.Dropout(0.5),
            layers.Dense(10, "softmax"),
        ]
    )


def blocks():
    """two blocks of two convolutions, pooling and dropout 0.25, as in older examples"""
    stack = [keras.Input((28, 28)), layers.Reshape((28, 28, 1))]
    for filters in (32, 64):
        for _ in range(2):
            stack.append(layers.Conv2D(filters, 3, padding="same", activation="relu"))
        stack += [layers.MaxPooling2D(), layers.Dropout(0.25)]
    stack += [layers.Flatten(), layers.Dense(512, "relu"), layers.Dropout(0.5)]
    return keras.Sequential([*stack, layers.Dense(10, "softmax")])


class Subject(typing.NamedTuple):
    build: Callable
    inputs: int
    measured_samples: dict  # way -> how many of its samples are measured


MODELS = {
    "book": Subject(
        book,
        10_000,
        {
            **{name: way.samples for name, way in WAYS.items()},
            "book's exercise, batches of 32": 5,
            "loop of predict, batches of 1000": 20,
        },
    ),
    "head": Subject(head, 10_000, {BOOK: 2, OURS: SAMPLES}),
    "blocks": Subject(blocks, 10_000, {BOOK: 2, OURS: 40}),
    "trunk": Subject(trunk, 10_000, {BOOK: 2, OURS: 40}),
    "spatial": Subject(spatial, 10_000, {BOOK: 2, OURS: 40}),
}


# --- measuring


def ways_here():
    """The names of the ways that this backend can go."""
    on_tensorflow = keras.backend.backend() == "tensorflow"
    return [n for n, way in WAYS.items() if on_tensorflow or not way.tensorflow_only]


def measure(name, x, repeats):
    """A row for each way to predict with one model."""
    subject = MODELS[name]
    x = x[: subject.inputs]
    keras.utils.set_random_seed(42)
    model = subject.build()
    ways = {n: WAYS[n] for n in ways_here() if n in subject.measured_samples}
    predicts = {n: way.prepare(model) for n, way in ways.items()}
    seconds = {n: np.zeros(repeats + 1) for n in ways}
    for repeat in range(repeats + 1):
        for n, way in ways.items():
            predict = predicts[n] if way.is_kept else way.prepare(model)
            measured = subject.measured_samples[n]
            began = time.perf_counter()
            predict(x, measured)
            elapsed = time.perf_counter() - began
            seconds[n][repeat] = elapsed * way.samples / measured
    rows = []
    for n, way in ways.items():
        counted = seconds[n][1:]  # The first turn warms up.
        row = {"model": name, "way": n, "inputs": len(x), "samples": way.samples}
        row["measured_samples"] = subject.measured_samples[n]
        row["seconds_median"] = round(np.median(counted), 4)
        row["seconds_min"] = round(counted.min(), 4)
        row["seconds_max"] = round(counted.max(), 4)
        row["ratio_to_book"] = round(np.median(counted / seconds[BOOK][1:]), 5)
        rows.append({**row, "repeats": repeats})
    return rows


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", choices=MODELS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    options = parser.parse_args(arguments)
    facts = surroundings()
    key, path = ["model", "backend", "machine"], options.results
    done = pd.read_csv(path)[key].values.tolist() if path.exists() else []
    x = fashion_mnist.load(train.DATA_FOLDER).x_test
    for name in options.models:
        if [name, facts["backend"], facts["machine"]] in done:
            continue
        rows = [{**row, **facts} for row in measure(name, x, options.repeats)]
        append(rows, path)
        print(pd.DataFrame(rows).iloc[:, :10].to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
