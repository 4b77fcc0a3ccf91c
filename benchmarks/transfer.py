"""Measure what reusing the layers of a trained network is worth: the book's example.

    python benchmarks/transfer.py --seeds 20

Model A learns the eight classes of Fashion-MNIST that are neither T-shirt nor Pullover.
Task B is to tell these two apart, from 200 images, with the chapter's net and 20 epochs
of SGD: from scratch; with the hidden layers of A, frozen for 4 epochs; and the same
with ten times the rate for the new layer. Each with the book's rate of 0.001, and with
that of five rates which makes the fewest errors on the 1,000 validation images of B.
The test images of B are read once for each model that is reported.

A seed decides which 200 images, the initial weights of A and of B, and the order of the
data; all ways have the same images in the same order. A is trained for 5 epochs with
rate 0.004 where the book takes 20 with 0.001: to the same accuracy, 0.90.

Appends the rows of a seed to benchmarks/results/transfer.csv and leaves out what is
already there, so that it can be stopped and started again. Draws
benchmarks/results/transfer.png from all rows. On TensorFlow in about 15 minutes.
"""

import argparse
import pathlib
import typing

import keras
import numpy as np
import pandas as pd
from keras import layers
from matplotlib.figure import Figure
from record import ROOT, append, surroundings, whole

import train
from recipes import fashion_mnist
from recipes.initializers import initializer_for
from recipes.transfer import freeze, layerwise_optimizer, reuse, unfreeze

RESULTS = ROOT / "benchmarks" / "results" / "transfer.csv"
CLASSES_B = (0, 2)  # T-shirt/top and Pullover
NUM_IMAGES = 200
BOOK_RATE = 0.001
RATES = (BOOK_RATE, 0.003, 0.01, 0.03, 0.1)
EPOCHS, FROZEN_EPOCHS = 20, 4
SCRATCH = "from scratch"
WAYS = {  # how many times the rate of the reused layers the new one has
    SCRATCH: None,
    "reused": 1,
    "reused, new layer ten times as fast": 10,
}
SGD = keras.optimizers.SGD


class TaskB(typing.NamedTuple):
    """Images of T-shirts, labelled 0, and of Pullovers, labelled 1."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_valid: np.ndarray
    y_valid: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


# --- the two tasks


def split(data, seed):
    """Training images and labels 0 to 7 of task A, and task B with its 200 images."""
    parts = []
    for x, y in (
        (data.x_train, data.y_train),
        (data.x_valid, data.y_valid),
        (data.x_test, data.y_test),
    ):
        is_b = np.isin(y, CLASSES_B)
        parts += [x[is_b], (y[is_b] == CLASSES_B[1]).astype("float32")]
    rows = np.random.default_rng(seed).permutation(len(parts[0]))[:NUM_IMAGES]
    is_a = ~np.isin(data.y_train, CLASSES_B)
    labels = np.unique(data.y_train[is_a], return_inverse=True)[1]
    task_b = TaskB(parts[0][rows], parts[1][rows], *parts[2:])
    return (data.x_train[is_a], labels), task_b


def network(last, seed):
    """The chapter's net, with the same initial hidden weights for either task."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((28, 28)), *train.network().layers[:-1], last])


def last_layer(units, activation, seed):
    """The part that each task has for itself."""
    weights = initializer_for(activation, seed=seed)
    return layers.Dense(units, activation, kernel_initializer=weights, name="head")


def learn_a(x, y, seed, epochs=5):
    """The model of the eight classes."""
    model = network(last_layer(8, "softmax", seed), seed)
    # 32 steps in a call: the same steps in half the time.
    options = {"loss": "sparse_categorical_crossentropy", "steps_per_execution": 32}
    model.compile(SGD(0.004), **options)
    batches = fashion_mnist.epoch_batches(x, y, 32, seed=seed)
    model.fit(batches, epochs=epochs, verbose=0)
    return model


# --- the ways to learn task B


def learn_b(model_a, task, times, seed):
    """Learn B with each of `RATES`; return the model and {rate: its weights}."""
    batches = fashion_mnist.epoch_batches(task.x_train, task.y_train, 32, seed=seed)
    head = last_layer(1, "sigmoid", seed)
    if times is None:
        model = network(head, seed)
        starts = dict.fromkeys(RATES, model.get_weights())
        sgd = SGD()
        return model, fit(model, sgd, {sgd: 1}, starts, batches, 0, EPOCHS)

    model = reuse(model_a, head=head)
    starts = dict.fromkeys(RATES, model.get_weights())
    freeze(model, until=head)
    sgd = SGD()
    settled = fit(model, sgd, {sgd: times}, starts, batches, 0, FROZEN_EPOCHS)
    unfreeze(model)
    old, new = SGD(), SGD()
    both = layerwise_optimizer(model, until=head, reused=old, new=new)
    factors = {old: 1, new: times}
    return model, fit(model, both, factors, settled, batches, FROZEN_EPOCHS, EPOCHS)


def fit(model, optimizer, factors, starts, batches, first_epoch, last_epoch):
    """Train once for each {rate: weights}; return {rate: the weights it ends with}."""
    model.compile(optimizer, "binary_crossentropy")
    ends = {}
    for rate, weights in starts.items():
        model.set_weights(weights)
        for each, factor in factors.items():
            each.learning_rate = factor * rate
        batches.epoch = first_epoch
        for _ in range(first_epoch, last_epoch):
            # `fit` takes longer to begin an epoch than these seven steps.
            batches.on_epoch_begin()
            for i in range(len(batches)):
                model.train_on_batch(*batches[i])
            batches.on_epoch_end()
        ends[rate] = model.get_weights()
    return ends


def error(model, weights, x, y):
    """Share of wrong answers with these weights."""
    model.set_weights(weights)
    probabilities = keras.ops.convert_to_numpy(model(x))[:, 0]
    return round(float(np.mean((probabilities > 0.5) != y)), 5)


# --- from the seeds to the files


def measure(data, seed):
    """Train A, and B in each way at each rate; return a row for each way and choice."""
    task_a, task_b = split(data, seed)
    model_a = learn_a(*task_a, seed)
    rows = []
    for way, times in WAYS.items():
        model, weights = learn_b(model_a, task_b, times, seed)
        valid = {
            rate: error(model, weights[rate], task_b.x_valid, task_b.y_valid)
            for rate in RATES
        }
        chosen = min(RATES, key=valid.get)
        test = {
            rate: error(model, weights[rate], task_b.x_test, task_b.y_test)
            for rate in {BOOK_RATE, chosen}
        }
        for choice, rate in (("the book's", BOOK_RATE), ("chosen", chosen)):
            row = {"seed": seed, "choice": choice, "way": way, "rate": rate}
            rows.append(
                row | {"validation_error": valid[rate], "test_error": test[rate]}
            )
    return rows


def paired_dots(rows):
    """The test errors of each seed, from scratch and reused, with a line between."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    looks = [("o", "#d55e00"), ("s", "#0072b2"), ("^", "#009e73")]
    for axes, (choice, group) in zip(
        panels, rows.groupby("choice", sort=False), strict=True
    ):
        errors = 100 * group.pivot(index="seed", columns="way", values="test_error")
        errors = errors.sort_values(SCRATCH)
        places = range(1, len(errors) + 1)
        axes.vlines(
            places, errors.min(axis=1), errors.max(axis=1), color="0.8", zorder=0
        )
        for way, (marker, color) in zip(WAYS, looks, strict=True):
            style = {"marker": marker, "color": color, "linestyle": "", "alpha": 0.9}
            axes.plot(places, errors[way], label=way, markersize=5, **style)
        title = {"the book's": "rate 0.001, as in the book"}
        axes.set(title=title.get(choice, "the best rate on validation images"))
        label = f"{len(errors)} seeds, by their error from scratch"
        axes.set(xlabel=label, xticks=[])
        axes.grid(axis="y", alpha=0.3)
    panels[0].set(ylabel="errors on the test images, %", ylim=(0, None))
    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=len(WAYS))
    return figure


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=20, help="seeds 0 to N - 1")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    options = parser.parse_args(arguments)
    facts = surroundings()
    path = options.results
    done = set(pd.read_csv(path)["seed"]) if path.exists() else set()
    data = fashion_mnist.load(train.DATA_FOLDER)
    for seed in range(options.seeds):
        if seed not in done:
            keras.utils.clear_session()
            rows = [{**row, **facts} for row in measure(data, seed)]
            append(rows, path)
            print(pd.DataFrame(rows).iloc[:, :6].to_string(), flush=True)
    with whole(path.with_suffix(".png")) as new:
        paired_dots(pd.read_csv(path)).savefig(new, format="png", dpi=100)


if __name__ == "__main__":
    main()
