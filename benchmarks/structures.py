"""Measure what a network's structure, normalization and inputs do to its training.

    KERAS_BACKEND=jax python benchmarks/structures.py
    KERAS_BACKEND=jax python benchmarks/structures.py --only depth

Four demonstrations, seeds 0 to 4. The first three train on a part of Fashion-MNIST's
training images and are scored on all validation images; the test images are not used.

- `deep`: a hundred hidden layers of 100 units with the book's plain SGD, on
  standardized images: SELU with LeCun's weights, ReLU with He's, and the latter with
  batch normalization before each ReLU.
- `depth`: plain, highway and residual networks of 10, 20 and 50 hidden layers of ReLU
  with momentum 0.9, a residual block counting as two layers. Highway gates start at
  the recipe's bias of -2, 12 percent open, and at -4, 2 percent.
- `normalization`: batch and layer normalization before and after the activation, and
  none, in the chapter's three layers of 100 ReLU, with batches of 1, of 32 and of all
  images. The epochs differ: compare within a batch size.
- `contours`: gradient descent on a linear model of two made inputs, the second with
  ten times the deviation: as they are, scaled to 0..1, and standardized.

`depth` and `normalization` are measured at several learning rates; the pictures and the
table show each network at the one with the best validation accuracy, the mean over the
seeds. In the csv, `fit_loss` and `fit_accuracy` are what `fit` printed for the last
epoch, `loss` and `accuracy` those of the same images afterwards, as `predict` answers.

Appends the rows of each run to benchmarks/results/structures.csv and leaves out what is
already there, so that it can be stopped and started again; draws structures_NAME.png
beside it. Takes about a quarter of an hour on JAX; TensorFlow traces a hundred layers
longer than it trains them.
"""

import argparse
import functools
import pathlib
import time
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
from recipes.layers import HighwayDense, ResidualDense, dense_block
from recipes.optimizers import make_optimizer

RESULTS = ROOT / "benchmarks" / "results" / "structures.csv"
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"]  # Okabe and Ito


# --- networks


relu_block = functools.partial(dense_block, activation="relu")
# Each makes the layers of one block of so many units.
DEEP = {
    "SELU, LeCun": functools.partial(dense_block, activation="selu"),
    "ReLU, He": relu_block,
    "ReLU, He, batch norm": functools.partial(relu_block, normalization="batch"),
}
STRUCTURES = {
    "plain": relu_block,
    "highway": lambda units: [HighwayDense(units, "relu")],
    "highway, gate bias -4": lambda units: [HighwayDense(units, "relu", gate_bias=-4)],
    "residual": lambda units: [ResidualDense(units, "relu")],
}
NORMALIZATIONS = {"no normalization": relu_block} | {
    f"{kind}, {position}": functools.partial(
        relu_block, normalization=kind, position=position
    )
    for kind in ("batch", "layer")
    for position in ("before", "after")
}
BLOCKS = DEEP | STRUCTURES | NORMALIZATIONS


def network(variant, num_layers, units):
    """A classifier of 28 x 28 images with that many hidden layers of weights."""
    num_blocks = num_layers // 2 if variant == "residual" else num_layers
    hidden = [layer for _ in range(num_blocks) for layer in BLOCKS[variant](units)]
    start = initializer_for("softmax")
    last = layers.Dense(10, "softmax", kernel_initializer=start)
    return keras.Sequential([keras.Input((28, 28)), layers.Flatten(), *hidden, last])


# --- training


class Setting(typing.NamedTuple):
    """What is trained; with rate and seed, what names a run in the csv."""

    demonstration: str
    variant: str
    layers: int
    units: int
    batch_size: int
    images: int


class Training(typing.NamedTuple):
    """How it is trained, and after how many epochs each it is measured."""

    scale: str
    optimizer: str
    rates: tuple
    epochs: int
    every: int


def settings():
    """Every setting and its training."""
    # Numbers of images that fill their batches: a ragged one is compiled once more.
    table = {}
    for variant in DEEP:
        setting = Setting("deep", variant, 100, 100, batch_size=32, images=9600)
        table[setting] = Training("standardize", "sgd", (0.001,), epochs=5, every=1)
    for variant in STRUCTURES:
        for depth in (10, 20, 50):
            setting = Setting("depth", variant, depth, 50, batch_size=32, images=4800)
            table[setting] = Training(
                "unit", "momentum", (0.0005, 0.002, 0.006, 0.02), 4, 4
            )
    for batch_size, epochs in ((1, 2), (32, 20), (800, 80)):
        for variant in NORMALIZATIONS:
            setting = Setting("normalization", variant, 3, 100, batch_size, images=800)
            table[setting] = Training("unit", "sgd", (0.01, 0.1), epochs, epochs)
    return table


@functools.cache
def loaded(scale):
    return fashion_mnist.load(train.DATA_FOLDER, scale=scale)


def measure(setting, training, data, runs):
    """Train a network for each (rate, seed); yield the run's rows.

    One compiled network takes the weights of each run in turn: to compile a hundred
    layers takes longer than to train them for an epoch.
    """
    x, y = data.x_train[: setting.images], data.y_train[: setting.images]
    parts = {"": (x, y), "val_": (data.x_valid, data.y_valid)}
    optimizer = make_optimizer(training.optimizer)
    model = train.compiled(
        network(setting.variant, setting.layers, setting.units), optimizer
    )
    optimizer.build(model.trainable_variables)
    fresh = [keras.ops.convert_to_numpy(v) for v in optimizer.variables]
    for rate, seed in runs:
        keras.utils.set_random_seed(seed)
        model.set_weights(
            network(setting.variant, setting.layers, setting.units).get_weights()
        )
        for variable, value in zip(optimizer.variables, fresh, strict=True):
            variable.assign(value)
        optimizer.learning_rate.assign(rate)
        batches = fashion_mnist.epoch_batches(x, y, setting.batch_size, seed=seed)
        rows, seconds = [], 0.0
        for epoch in range(0, training.epochs, training.every):
            until, begin = epoch + training.every, time.perf_counter()
            history = model.fit(
                batches, epochs=until, initial_epoch=epoch, shuffle=False, verbose=0
            ).history
            seconds += time.perf_counter() - begin
            row = {**setting._asdict(), "rate": rate, "seed": seed, "epochs": until}
            row |= {"steps": until * len(batches)}
            for name in ("loss", "accuracy"):
                row[f"fit_{name}"] = round(history[name][-1], 5)
            for prefix, part in parts.items():
                scores = model.evaluate(*part, batch_size=200, verbose=0)
                for name, score in zip(("loss", "accuracy"), scores, strict=True):
                    row[prefix + name] = round(score, 5)
            rows.append({**row, "seconds": round(seconds, 1)})
        yield rows


# --- contours


class Descent(typing.NamedTuple):
    """A descent on a mean squared error, and the weights on its way."""

    inputs: np.ndarray  # (rows, 2)
    targets: np.ndarray  # (rows,)
    path: np.ndarray  # (steps + 1, 3): two weights and the bias
    excess: np.ndarray  # (steps + 1,): loss above the least
    least: float
    rate: float
    condition_number: float


SCALES = {
    "unscaled": lambda x: x,
    "min-max": lambda x: (x - x.min(axis=0)) / np.ptp(x, axis=0),
    "standardized": lambda x: (x - x.mean(axis=0)) / x.std(axis=0),
}


def descent(variant, seed):
    """Descend from zero weights, until 1 % of the way to the least loss is left.

    With the best constant rate, 2 / (a + b), where a and b are the least and the
    largest eigenvalue of the loss's second derivatives.
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(200, 2)) * [1.0, 10.0]
    y = x @ [1.0, 0.3] + rng.normal(size=200)
    x = SCALES[variant](x)
    columns = np.column_stack([x, np.ones(len(x))])
    eigenvalues = np.linalg.eigvalsh(2 * columns.T @ columns / len(x))
    least = np.square(y - columns @ np.linalg.lstsq(columns, y)[0]).mean()
    rate = 2 / (eigenvalues[0] + eigenvalues[-1])
    path, excess = [np.zeros(3)], []
    while True:
        errors = columns @ path[-1] - y
        excess.append(np.square(errors).mean() - least)
        if excess[-1] <= 0.01 * excess[0]:
            break
        path.append(path[-1] - rate * 2 * columns.T @ errors / len(y))
    condition_number = eigenvalues[-1] / eigenvalues[0]
    return Descent(
        x, y, np.array(path), np.array(excess), least, rate, condition_number
    )


def descent_row(variant, seed):
    """A row of the csv."""
    found = descent(variant, seed)
    count, steps = len(found.inputs), len(found.path) - 1
    setting = Setting("contours", variant, 0, 1, batch_size=count, images=count)
    row = {**setting._asdict(), "rate": found.rate, "seed": seed}
    row |= {"epochs": steps, "steps": steps, "loss": found.least + found.excess[-1]}
    return row | {"condition_number": found.condition_number}


# --- pictures: each takes rows of the csv, and returns a figure


def at_best_rate(rows):
    """All rows of each setting at the rate with the best mean validation accuracy."""
    setting = list(Setting._fields)
    last = rows.groupby([*setting, "rate", "seed"]).tail(1)
    means = last.groupby([*setting, "rate"])["val_accuracy"].mean()
    best = means[means == means.groupby(setting).transform("max")].reset_index()
    best = best.drop_duplicates(setting)[[*setting, "rate"]]
    return rows.merge(best, on=[*setting, "rate"])


def draw_deep(rows):
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    titles = {
        "fit_accuracy": "training accuracy, as fit prints it",
        "val_accuracy": "validation accuracy, as predict answers",
    }
    for axes, (column, title) in zip(panels, titles.items(), strict=True):
        for color, (variant, runs) in zip(COLORS, by_variant(rows), strict=False):
            for _, run in runs.groupby("seed"):
                axes.plot(run["epochs"], run[column], color=color, alpha=0.3)
            mean = runs.groupby("epochs")[column].mean()
            axes.plot(mean, "o-", color=color, label=variant)
        axes.axhline(0.1, color="black", linestyle=":")
        axes.set(title=title, xlabel="epoch", ylim=(0, 1))
        axes.set_xticks(sorted(rows["epochs"].unique()))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy (dotted: chance)")
    panels[0].legend(title="100 hidden layers")
    return figure


def draw_depth(rows):
    rows = at_best_rate(rows)
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    depths = sorted(rows["layers"].unique())
    for axes, prefix in zip(panels, ("", "val_"), strict=True):
        for i, (variant, runs) in enumerate(by_variant(rows)):
            error = 1 - runs[f"{prefix}accuracy"]
            places = runs["layers"].map(depths.index) + (i - 1.5) * 0.06
            axes.plot(places, error, "o", color=COLORS[i], alpha=0.4)
            axes.plot(error.groupby(places).mean(), color=COLORS[i], label=variant)
        axes.set(title=f"{'validation' if prefix else 'training'} error", ylim=(0, 1))
        axes.set(xlabel="hidden layers")
        axes.set_xticks(range(len(depths)), depths)
        axes.grid(alpha=0.3)
        axes.axhline(0.9, color="black", linestyle=":")
    panels[0].set_ylabel("wrong of all images (dotted: chance)")
    panels[0].legend()
    return figure


def draw_normalization(rows):
    rows = at_best_rate(rows)
    sizes = sorted(rows["batch_size"].unique())
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    panels = figure.subplots(1, len(sizes), sharex=True, sharey=True, squeeze=False)
    for axes, size in zip(panels.flat, sizes, strict=True):
        for i, (_, runs) in enumerate(by_variant(rows[rows["batch_size"] == size])):
            score = runs["val_accuracy"]
            axes.plot(score, np.full(len(score), i), "o", color=COLORS[i], alpha=0.5)
            axes.plot(score.mean(), i, "|", color=COLORS[i], markersize=22)
        axes.axvline(0.1, color="black", linestyle=":")
        axes.set(title=f"batches of {size}", xlabel="validation accuracy", xlim=(0, 1))
        axes.grid(alpha=0.3)
    names = [variant for variant, _ in by_variant(rows)]
    panels[0, 0].set_yticks(range(len(names)), names)
    panels[0, 0].set_ylim(len(names) - 0.5, -0.5)
    panels[0, 0].set_ylabel("normalization, and where")
    return figure


def draw_contours(rows):
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    *maps, falls = figure.subplots(1, 3)
    shown = dict(zip(("unscaled", "standardized"), maps, strict=True))
    for color, variant in zip(COLORS, SCALES, strict=False):
        found = descent(variant, seed=0)
        steps = f"{variant}, {len(found.excess) - 1} steps"
        falls.plot(found.excess / found.excess[0], color=color, label=steps)
        if variant in shown:
            draw_path(shown[variant], found, color)
            shown[variant].set_title(f"loss over the weights: {variant}")
    falls.set(title="loss above the least, start = 1", xlabel="step", yscale="log")
    falls.legend(title="inputs")
    falls.grid(alpha=0.3)
    return figure


def draw_path(axes, found, color):
    """The loss over the two weights, the bias at its best, and the descent's path."""
    path = found.path[:, :2]
    low, high = path.min(axis=0), path.max(axis=0)
    middle, width = (low + high) / 2, 0.75 * (high - low).max()
    grid = np.linspace(middle - width, middle + width, 100)
    weights = np.stack(np.meshgrid(*grid.T), axis=-1)  # (100, 100, 2)
    residuals = found.targets - weights @ found.inputs.T
    loss = residuals.var(axis=-1)  # the best bias takes their mean away
    levels = loss.min() + np.ptp(loss) * np.linspace(0.05, 1, 12) ** 2
    axes.contour(*grid.T, loss, levels=levels, colors="gray", linewidths=0.8)
    axes.plot(*path.T, "o-", color=color, markersize=3, linewidth=1)
    axes.plot(*path[0], "s", color="black")
    axes.annotate("start", path[0], (6, -12), textcoords="offset points")
    axes.set(xlabel="weight of input 1", ylabel="weight of input 2", aspect="equal")


def by_variant(rows):
    """(variant, its rows), in the order of the file."""
    return rows.groupby("variant", sort=False)


DRAWINGS = {
    "deep": draw_deep,
    "depth": draw_depth,
    "normalization": draw_normalization,
    "contours": draw_contours,
}


# --- the command


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=DRAWINGS)
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to N - 1")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    options = parser.parse_args(arguments)
    path, names = options.results, [options.only] if options.only else list(DRAWINGS)
    facts = surroundings()

    def keep(rows):
        append([{**row, **facts} for row in rows], path)
        print(pd.DataFrame(rows).tail(1).to_string(index=False), flush=True)

    key = [*Setting._fields, "rate", "seed"]
    done = set()
    if path.exists():
        table = pd.read_csv(path, converters={"rate": float})  # to the last digit
        done.update(table[key].itertuples(index=False, name=None))
    for setting, training in settings().items():
        runs = [
            (rate, seed)
            for seed in range(options.seeds)
            for rate in training.rates
            if (*setting, rate, seed) not in done
        ]
        if runs and setting.demonstration in names:
            data = loaded(training.scale)
            for rows in measure(setting, training, data, runs):
                keep(rows)
    if "contours" in names:
        for variant in SCALES:
            for seed in range(options.seeds):
                row = descent_row(variant, seed)
                if tuple(row[name] for name in key) not in done:
                    keep([row])
    table = pd.read_csv(path)
    for name in names:
        rows = table[table["demonstration"] == name]
        if rows.empty:
            continue
        with whole(path.with_name(f"{path.stem}_{name}.png")) as new:
            DRAWINGS[name](rows).savefig(new, format="png", dpi=100)


if __name__ == "__main__":
    main()
