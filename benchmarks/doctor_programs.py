"""Small faulty training programs with their repaired twins, for doctor_cases.py.

A base is a data set made by code and a network for it, with the settings that train it:
the repaired twin. A program is a base with one mistake in it, written as the settings
that differ. `run` trains one and looks at it as a user would, with `check_model`, both
monitors and validation data; `apply` turns the advice of a finding into new settings.
Programs were chosen by their scores alone, with no look at what is diagnosed in them.

Half of the bases are there to tune diagnoses on. The other half, whose data sets do
not occur in the first, are for one measurement at the end.
"""

import dataclasses
import pathlib
import sys
import typing
import warnings
from collections.abc import Callable

import keras
import numpy as np
from keras import layers

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from callbacks.lr_finder import LRFinder  # noqa: E402
from callbacks.monitors import ActivationMonitor, GradientMonitor  # noqa: E402
from callbacks.schedulers import LearningRateLogger  # noqa: E402
from recipes.check_model import check_model  # noqa: E402
from recipes.optimizers import make_optimizer  # noqa: E402

VALIDATION_ROWS, TEST_ROWS, PROBE_ROWS = 300, 1000, 128

# --- data sets: each gives inputs and targets for a number of rows


def blobs(rng, rows):
    """Six overlapping clouds in ten dimensions."""
    y = rng.integers(0, 6, rows)
    centers = np.random.default_rng(6).normal(size=(6, 10)) * 1.3
    return centers[y] + 1.3 * rng.normal(size=(rows, 10)), y


def rings(rng, rows):
    """An inner ring and an outer one."""
    y = rng.integers(0, 2, rows)
    radius = 1.0 + 0.9 * y + 0.15 * rng.normal(size=rows)
    angle = rng.uniform(0, 2 * np.pi, rows)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1), y


_SEGMENTS = "1110111 0010010 1011101 1011011 0111010 1101011 1101111 1010010 1111111 "
_SEGMENTS = (_SEGMENTS + "1111011").split()


def digits(rng, rows):
    """Seven-segment digits of 12 x 12 pixels, moved and noisy, from 0 to 255."""
    y = rng.integers(0, 10, rows)
    images = rng.normal(0.15, 0.1, size=(rows, 12, 12))
    slots = ((0, 0, 1, 5), (0, 0, 5, 1), (0, 4, 5, 1), (4, 0, 1, 5))
    slots += ((4, 0, 5, 1), (4, 4, 5, 1), (8, 0, 1, 5))
    for image, digit in zip(images, y, strict=True):
        down, right = rng.integers(0, 4), rng.integers(0, 8)
        for is_on, (top, left, height, width) in zip(
            _SEGMENTS[digit], slots, strict=True
        ):
            if is_on == "1":
                place = slice(top + down, top + down + height)
                image[place, left + right : left + right + width] += 0.7
    return np.clip(images, 0, 1)[..., None] * 255, y


def friedman(rng, rows):
    """Friedman's first function of five of ten features."""
    x = rng.uniform(size=(rows, 10))
    y = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2
    y += 10 * x[:, 3] + 5 * x[:, 4] + rng.normal(size=rows)
    return x, y[:, None]


def waves(rng, rows):
    """Four frequencies of noisy sine waves of 24 steps."""
    y = rng.integers(0, 4, rows)
    time = np.arange(24)
    turns = np.array([1.0, 1.7, 2.6, 3.6])[y] / 24
    phase = rng.uniform(0, 2 * np.pi, (rows, 1))
    x = np.sin(2 * np.pi * turns[:, None] * time + phase)
    return (x + 0.2 * rng.normal(size=x.shape))[..., None], y


def regions(rng, rows):
    """Four labels at once, each a bent region of six features."""
    x = rng.normal(size=(rows, 6))
    sides = [x[:, 0] * x[:, 1], x[:, 2] - x[:, 3] ** 2 + 0.7]
    sides += [np.abs(x[:, 4]) - np.abs(x[:, 5]), x[:, 0] + x[:, 2] - x[:, 4]]
    return x, (np.stack(sides, axis=1) > 0).astype(int)


def spirals(rng, rows):
    """Three arms of a spiral."""
    y = rng.integers(0, 3, rows)
    way = np.sqrt(rng.uniform(0.02, 1, rows))
    angle = 2 * np.pi * (way * 1.1 + y / 3) + 0.1 * rng.normal(size=rows)
    return 1.7 * np.stack([way * np.cos(angle), way * np.sin(angle)], axis=1), y


def wines(rng, rows):
    """Three kinds by six measurements in units of their own, from 0.1 to 1,000."""
    y = rng.integers(0, 3, rows)
    centers = np.array([[0, 1, -1, 1, 0, 0], [1, 0, 1, 0, -1, 0], [1, 1, 0, -1, 0, 1]])
    x = 1.2 * centers[y] + rng.normal(size=(rows, 6))
    x[:, 1] *= np.sign(x[:, 0] - 0.5)
    return x * [0.8, 0.1, 3, 15, 0.3, 300] + [13, 2, 20, 100, 1, 750], y


def adding(rng, rows):
    """The sum of the two numbers of twelve that are marked."""
    numbers = rng.uniform(-1, 1, (rows, 12))
    marks = np.zeros_like(numbers)
    marks[np.arange(rows), rng.integers(0, 6, rows)] = 1
    marks[np.arange(rows), rng.integers(6, 12, rows)] = 1
    return np.stack([numbers, marks], axis=2), (numbers * marks).sum(axis=1)[:, None]


def faint(rng, rows):
    """Two classes by two of four features, a quarter of the labels wrong."""
    x = rng.normal(size=(rows, 4))
    y = (x[:, 0] + x[:, 1] > 0) ^ (rng.uniform(size=rows) < 0.25)
    return x, y.astype(int)


def noisy_peak(rng, rows):
    """The larger of two of five features, under as much noise."""
    x = rng.normal(size=(rows, 5))
    y = 1.3 * np.maximum(x[:, :1], x[:, 1:2]) - 0.7
    return x, y + 0.9 * rng.normal(size=(rows, 1))


def checkerboard(rng, rows):
    """The fields of a 3 x 3 board, two colours."""
    x = rng.uniform(-1.5, 1.5, (rows, 2))
    return x, np.floor(x + 1.5).sum(axis=1).astype(int) % 2


def moons(rng, rows):
    """Two half moons in one another."""
    y = rng.integers(0, 2, rows)
    angle = np.pi * rng.uniform(size=rows)
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1) * (1 - 2 * y[:, None])
    x += np.stack([y - 0.5, 0.5 * y - 0.25], axis=1)
    return x + 0.12 * rng.normal(size=x.shape), y


def shapes(rng, rows):
    """Squares, crosses, discs and slopes of 12 x 12 pixels, from 0 to 255."""
    y = rng.integers(0, 4, rows)
    down, right = np.mgrid[:12, :12]
    images = rng.normal(0.3, 0.2, size=(rows, 12, 12))
    for image, shape in zip(images, y, strict=True):
        size = rng.uniform(2, 4)
        a, b = down - rng.uniform(4, 7), right - rng.uniform(4, 7)
        wide = np.maximum(abs(a), abs(b))
        image += (
            0.5
            * (
                abs(wide - size) < 0.6,
                (np.minimum(abs(a), abs(b)) < 0.6) & (wide < size),
                a**2 + b**2 < size**2,
                (abs(a - b) < 0.8) & (wide < size),
            )[shape]
        )
    return np.clip(images, 0, 1)[..., None] * 255, y


def arm(rng, rows):
    """Where the hand of a robot's arm with three joints is."""
    x = rng.uniform(-1.5, 1.5, (rows, 3))
    angle = np.cumsum(x, axis=1)
    return x, np.stack([np.cos(angle).sum(axis=1), np.sin(angle).sum(axis=1)], axis=1)


def letters(rng, rows):
    """Words of 16 letters: which of four is the most frequent."""
    y = rng.integers(0, 4, rows)
    x = rng.integers(0, 12, (rows, 16))
    chosen = rng.uniform(size=x.shape) < 0.25
    return np.where(chosen, y[:, None], x), y


def attributes(rng, rows):
    """Images of 10 x 10 with or without a row, a column and a dark corner."""
    y = rng.integers(0, 2, (rows, 3))
    x = rng.normal(0, 0.6, size=(rows, 10, 10))
    places = rng.integers(1, 9, (rows, 2))
    for image, has, (down, right) in zip(x, y, places, strict=True):
        image[down] += 1.2 * has[0]
        image[:, right] += 1.2 * has[1]
        image[:4, :4] -= 1.0 * has[2]
    return x[..., None], y


def pinwheel(rng, rows):
    """Five bent blades."""
    y = rng.integers(0, 5, rows)
    radius = 0.3 + 1.3 * rng.uniform(size=rows)
    angle = 2 * np.pi * y / 5 + 1.6 * radius + 0.16 * rng.normal(size=rows)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1), y


def chirps(rng, rows):
    """Signals of 40 steps that get higher, get lower, or stay, with noise."""
    y = rng.integers(0, 3, rows)
    time = np.linspace(0, 1, 40)
    bend = np.array([-2.5, 0.0, 2.5])[y][:, None]
    start = 4.5 - bend + rng.uniform(-0.5, 0.5, (rows, 1))
    phase = 2 * np.pi * (start * time + bend * time**2 + rng.uniform(size=(rows, 1)))
    return (np.sin(phase) + 0.3 * rng.normal(size=phase.shape))[..., None], y


def echoes(rng, rows):
    """The next value of a series that swings: it follows from the last few."""
    series = rng.normal(size=(rows, 40))
    for step in range(2, 40):
        series[:, step] += 1.6 * series[:, step - 1] - 0.9 * series[:, step - 2]
    series /= series.std()
    return series[:, 20:-1, None], series[:, -1:]


def houses(rng, rows):
    """Prices, by area, year, rooms, distance and a code for the region."""
    area, year = rng.gamma(6, 18, rows), rng.uniform(1900, 2020, rows)
    rooms, distance = np.round(area / 28 + rng.normal(size=rows)), rng.gamma(2, 4, rows)
    region = rng.integers(0, 4, rows)
    price = area * (900 + 12 * (year - 1900)) * np.exp(-distance / 12)
    price *= np.array([0.7, 1.0, 1.3, 1.6])[region]
    price += 15_000 * rooms + 15_000 * rng.normal(size=rows)
    return np.stack([area, year, rooms, distance, region], axis=1), price[:, None]


def rumours(rng, rows):
    """Three classes by three of six features, a third of the labels drawn anew."""
    x = rng.normal(size=(rows, 6))
    y = x[:, :3].argmax(axis=1)
    return x, np.where(rng.uniform(size=rows) < 0.3, rng.integers(0, 3, rows), y)


def tides(rng, rows):
    """A slope and a fold by two of five features, half of the variance noise."""
    x = rng.normal(size=(rows, 5))
    return x, x[:, :1] + np.abs(x[:, 1:2]) - 0.8 + 0.9 * rng.normal(size=(rows, 1))


# --- bases: a data set, a network, and the settings that train it

SETTINGS = {
    # data
    "rows": 2000,
    "x_unit": 1.0,
    "x_offset": 0.0,
    "missing": None,  # "x" or "y": NaN in a row of 30
    "mistake": None,  # in the labels
    "one_hot": False,
    "x": None,  # "finite": leave out the others
    "labels": None,  # "0 to n - 1", "0 to 1" or "finite"
    "scale": None,
    "target_scale": None,
    # network
    "layers": 2,
    "units": 32,
    "activation": "relu",
    "kernel_initializer": "he_normal",  # or the deviation of normal numbers
    "bias_initializer": "zeros",  # or a number; of hidden layers
    "normalization": None,
    "residual": False,
    "dropout": 0.0,
    "dropout_kind": "Dropout",
    "l2": 0.0,
    "output_units": None,  # as the task wants it
    "output_activation": "softmax",
    # training
    "loss": "sparse_categorical_crossentropy",
    "from_logits": False,
    "optimizer": "adam",
    "learning_rate": None,  # the optimizer's
    **dict.fromkeys(("momentum", "beta_1", "beta_2", "epsilon", "weight_decay")),
    **dict.fromkeys(("clipvalue", "clipnorm", "global_clipnorm")),
    "epochs": 20,
    "batch_size": 64,
}
OPTIMIZER = list(SETTINGS)[list(SETTINGS).index("learning_rate") : -2]

BINARY = {"output_activation": "sigmoid", "loss": "binary_crossentropy"}
REGRESSION = {"output_activation": "linear", "loss": "mean_squared_error"}


class Base(typing.NamedTuple):
    half: str  # "tune" or "unseen"
    data: Callable
    kind: str  # of its layers: dense, conv1d, conv2d, lstm, gru, rnn
    least_score: float  # of a healthy run
    settings: dict


def base(half, data, kind, least_score, **settings):
    return Base(half, data, kind, least_score, {**SETTINGS, **settings})


DEEP = {"layers": 10, "epochs": 25}
FEW_ROWS = {"rows": 300, "units": 16, "l2": 0.02, "learning_rate": 0.01,
            "batch_size": 16, "epochs": 40}  # fmt: skip
BASES = {
    # to tune on
    "blobs": base("tune", blobs, "dense", 0.8, learning_rate=0.003),
    "rings, tanh": base("tune", rings, "dense", 0.95, **BINARY, activation="tanh",
                        kernel_initializer="glorot_normal", learning_rate=0.01),
    "digits, convolutions": base("tune", digits, "conv2d", 0.9, scale="standardize",
                                 units=16, learning_rate=0.003),
    "digits, logits": base("tune", digits, "dense", 0.8, scale="standardize",
                           rows=4000, units=64, output_activation="linear",
                           from_logits=True, optimizer="momentum",
                           learning_rate=0.02, epochs=10),
    "friedman": base("tune", friedman, "dense", 0.85, **REGRESSION,
                     scale="standardize", target_scale="standardize",
                     learning_rate=0.003, epochs=30),
    "waves, LSTM": base("tune", waves, "lstm", 0.9, layers=1, units=24,
                        activation="tanh", kernel_initializer="glorot_normal",
                        learning_rate=0.01),
    "regions": base("tune", regions, "dense", 0.85, **BINARY, learning_rate=0.003,
                    epochs=25),
    "spirals, 10 layers": base("tune", spirals, "dense", 0.9, **DEEP,
                               learning_rate=0.001),
    "spirals, 10 layers normalized": base("tune", spirals, "dense", 0.9, layers=10,
                                          normalization="batch", learning_rate=0.003,
                                          kernel_initializer=0.05),
    "wines": base("tune", wines, "dense", 0.75, scale="standardize",
                  learning_rate=0.003),
    "adding, GRU": base("tune", adding, "gru", 0.85, **REGRESSION, layers=1,
                        activation="tanh", kernel_initializer="glorot_normal",
                        learning_rate=0.01, epochs=25),
    "faint": base("tune", faint, "dense", 0.62, **BINARY, **FEW_ROWS),
    "noisy peak": base("tune", noisy_peak, "dense", 0.35, **REGRESSION, **FEW_ROWS),
    # unseen
    "checkerboard": base("unseen", checkerboard, "dense", 0.9, **BINARY,
                         learning_rate=0.01, epochs=30),
    "moons, SELU": base("unseen", moons, "dense", 0.95, **BINARY, activation="selu",
                        kernel_initializer="lecun_normal", scale="standardize",
                        layers=3, learning_rate=0.003),
    "shapes, convolutions": base("unseen", shapes, "conv2d", 0.85, layers=3, units=12,
                                 normalization="batch", scale="standardize",
                                 optimizer="momentum", learning_rate=0.05),
    "arm": base("unseen", arm, "dense", 0.9, **REGRESSION, activation="elu",
                learning_rate=0.003, epochs=30),
    "letters, GRU": base("unseen", letters, "gru", 0.8, layers=1, activation="tanh",
                         kernel_initializer="glorot_normal", learning_rate=0.01,
                         epochs=12),
    "attributes": base("unseen", attributes, "conv2d", 0.85, **BINARY, units=12,
                       learning_rate=0.003),
    "pinwheel, 12 layers": base("unseen", pinwheel, "dense", 0.9, layers=12,
                                activation="elu", learning_rate=0.001, epochs=25),
    "pinwheel, 20 residual": base("unseen", pinwheel, "dense", 0.9, layers=20,
                                  residual=True, normalization="batch", units=24,
                                  learning_rate=0.003, epochs=12),
    "chirps, convolutions": base("unseen", chirps, "conv1d", 0.85, units=16,
                                 optimizer="rmsprop", learning_rate=0.005, epochs=30),
    "echoes, simple RNN": base("unseen", echoes, "rnn", 0.8, **REGRESSION, layers=1,
                               activation="tanh", units=16, learning_rate=0.003,
                               kernel_initializer="glorot_normal"),
    "houses": base("unseen", houses, "dense", 0.85, **REGRESSION, scale="standardize",
                   target_scale="standardize", learning_rate=0.003, epochs=30),
    "rumours": base("unseen", rumours, "dense", 0.62, **FEW_ROWS),
    "tides": base("unseen", tides, "dense", 0.35, **REGRESSION, **FEW_ROWS),
}  # fmt: skip


# --- programs: a base with one mistake


class Program(typing.NamedTuple):
    name: str
    kinds: tuple  # of fault that count as the root cause
    base: str
    mistake: dict

    @property
    def half(self):
        return BASES[self.base].half

    @property
    def settings(self):
        return {**BASES[self.base].settings, **self.mistake}


def program(base, name, *kinds, **mistake):
    return Program(f"{base}: {name}", kinds, base, mistake)


KINDS = ("loss", "output activation", "initial weights", "saturating depth",
         "exploding depth", "rate too high", "rate too low", "optimizer settings",
         "unscaled data", "NaN data", "labels", "dead ReLU", "overfitting",
         "underfitting", "too few epochs", "missing normalization")  # fmt: skip
(LOSS, OUTPUT, INITIAL, SATURATING, EXPLODING, HIGH, LOW, OPTIMIZER_SETTINGS, UNSCALED,
 MISSING, LABELS, DEAD, OVERFITTING, UNDERFITTING, FEW_EPOCHS,
 NORMALIZATION) = KINDS  # fmt: skip

PROGRAMS = [
    # to tune on
    program("digits, logits", "from_logits forgotten", LOSS, OUTPUT,
            from_logits=False),
    program("regions", "categorical loss of several labels", LOSS, OUTPUT,
            loss="categorical_crossentropy"),
    program("friedman", "logarithmic error of negative targets", LOSS,
            loss="mean_squared_logarithmic_error"),
    program("rings, tanh", "softmax of one unit", OUTPUT, LOSS,
            output_activation="softmax"),
    program("friedman", "ReLU for standardized targets", OUTPUT,
            output_activation="relu"),
    program("regions", "softmax for several labels", OUTPUT, LOSS,
            output_activation="softmax"),
    program("blobs", "all weights zero", INITIAL, kernel_initializer="zeros"),
    program("spirals, 10 layers", "all weights one", INITIAL, EXPLODING,
            kernel_initializer="ones"),
    program("rings, tanh", "weights of deviation 20", INITIAL,
            kernel_initializer=20.0),
    program("spirals, 10 layers", "sigmoid", SATURATING, activation="sigmoid",
            kernel_initializer="glorot_normal"),
    program("spirals, 10 layers", "softsign with small weights", SATURATING, INITIAL,
            activation="softsign", kernel_initializer=0.05),
    program("spirals, 10 layers", "weights of deviation 2", EXPLODING, INITIAL,
            kernel_initializer=2.0),
    program("adding, GRU", "ReLU in the recurrence, large weights", EXPLODING, INITIAL,
            activation="relu", kernel_initializer=5.0, optimizer="sgd",
            learning_rate=0.05),
    program("blobs", "Adam at 1", HIGH, learning_rate=1.0),
    program("digits, logits", "momentum at 3", HIGH, learning_rate=3.0),
    program("waves, LSTM", "Adam at 0.5", HIGH, learning_rate=0.5),
    program("blobs", "Adam at 2e-6", LOW, learning_rate=2e-6),
    program("friedman", "SGD at 1e-5", LOW, optimizer="sgd", learning_rate=1e-5),
    program("rings, tanh", "Adam at 2e-5", LOW, learning_rate=2e-5),
    program("digits, logits", "momentum 0.999", OPTIMIZER_SETTINGS, momentum=0.999),
    program("blobs", "Adam with epsilon 100", OPTIMIZER_SETTINGS, epsilon=100.0),
    program("friedman", "gradient clipped to 1e-5", OPTIMIZER_SETTINGS,
            optimizer="sgd", learning_rate=0.05, clipnorm=1e-5),
    program("wines", "raw measurements in small units", UNSCALED, scale=None,
            x_unit=20.0),
    program("friedman", "raw targets in other units", UNSCALED, target_scale=None,
            optimizer="sgd", learning_rate=0.05, x_unit=200.0, scale=None),
    program("rings, tanh", "coordinates in thousands", UNSCALED, x_unit=1000.0),
    program("wines", "missing values in one column", MISSING, missing="x"),
    program("friedman", "missing targets", MISSING, missing="y"),
    program("digits, convolutions", "labels shuffled", LABELS, mistake="shuffled"),
    program("wines", "classes numbered from one", LABELS, mistake="from one"),
    program("blobs", "labels a row off", LABELS, mistake="a row off"),
    program("digits, convolutions", "biases of -5", DEAD, INITIAL,
            bias_initializer=-5.0),
    program("regions", "biases of -8", DEAD, INITIAL, bias_initializer=-8.0),
    program("faint", "no penalty, wide, long", OVERFITTING, l2=0.0, units=128,
            epochs=120),
    program("noisy peak", "no penalty, wide, long", OVERFITTING, l2=0.0, units=128,
            learning_rate=0.003, epochs=120),
    program("spirals, 10 layers", "two units a layer", UNDERFITTING, units=2),
    program("regions", "dropout of 0.95", UNDERFITTING, dropout=0.95),
    program("blobs", "penalty of 3", UNDERFITTING, l2=3.0),
    program("adding, GRU", "five epochs", FEW_EPOCHS, epochs=5, learning_rate=0.001),
    program("digits, convolutions", "two epochs", FEW_EPOCHS, epochs=2),
    program("friedman", "six epochs", FEW_EPOCHS, epochs=6, optimizer="sgd",
            learning_rate=0.005),
    program("spirals, 10 layers normalized", "no normalization", NORMALIZATION,
            SATURATING, INITIAL, normalization=None),
    program("spirals, 10 layers normalized", "no normalization, sigmoid",
            NORMALIZATION, SATURATING, normalization=None, activation="sigmoid"),
    # unseen
    program("moons, SELU", "logits into the crossentropy", LOSS, OUTPUT,
            output_activation="linear"),
    program("houses", "Poisson's loss of negative targets", LOSS, loss="poisson"),
    program("attributes", "categorical loss of several labels", LOSS, OUTPUT,
            loss="categorical_crossentropy"),
    program("checkerboard", "softmax of one unit", OUTPUT, LOSS,
            output_activation="softmax"),
    program("arm", "sigmoid for coordinates", OUTPUT, output_activation="sigmoid"),
    program("attributes", "softmax for several labels", OUTPUT, LOSS,
            output_activation="softmax"),
    program("attributes", "all weights 0", INITIAL, kernel_initializer="zeros"),
    program("pinwheel, 12 layers", "weights of deviation 0.01", INITIAL, SATURATING,
            kernel_initializer=0.01),
    program("checkerboard", "all weights one", INITIAL, kernel_initializer="ones"),
    program("pinwheel, 12 layers", "sigmoid", SATURATING, activation="sigmoid",
            kernel_initializer="glorot_normal"),
    program("pinwheel, 12 layers", "saturated tanh", SATURATING, INITIAL,
            activation="tanh", kernel_initializer=1.5),
    program("pinwheel, 12 layers", "weights of deviation 1, SGD", EXPLODING, INITIAL,
            kernel_initializer=1.0, activation="relu", optimizer="sgd",
            learning_rate=0.01),
    program("pinwheel, 20 residual", "neither normalization nor small weights",
            EXPLODING, NORMALIZATION, INITIAL, normalization=None,
            kernel_initializer=0.6),
    program("arm", "Adam at 3", HIGH, learning_rate=3.0),
    program("letters, GRU", "SGD at 50", HIGH, optimizer="sgd", learning_rate=50.0),
    program("chirps, convolutions", "RMSprop at 0.3", HIGH, learning_rate=0.3),
    program("shapes, convolutions", "momentum at 1e-6", LOW, learning_rate=1e-6),
    program("checkerboard", "Adam at 1e-5", LOW, learning_rate=1e-5),
    program("letters, GRU", "SGD at 0.001", LOW, optimizer="sgd",
            learning_rate=0.001),
    program("arm", "Adadelta at Adam's rate", OPTIMIZER_SETTINGS, LOW,
            optimizer="adadelta", learning_rate=0.001),
    program("chirps, convolutions", "gradient clipped to 1e-4", OPTIMIZER_SETTINGS,
            optimizer="sgd", learning_rate=0.05, global_clipnorm=1e-4),
    program("letters, GRU", "weight decay of 50", OPTIMIZER_SETTINGS,
            optimizer="adamw", weight_decay=50.0),
    program("houses", "raw features", UNSCALED, scale=None, optimizer="sgd",
            learning_rate=0.01),
    program("houses", "raw prices", UNSCALED, target_scale=None),
    program("moons, SELU", "far from the origin", UNSCALED, scale=None, x_unit=50.0,
            x_offset=2000.0),
    program("houses", "missing areas", MISSING, missing="x"),
    program("chirps, convolutions", "gaps in the signals", MISSING, missing="x"),
    program("shapes, convolutions", "labels sorted", LABELS, mistake="sorted"),
    program("letters, GRU", "all labels the same", LABELS, mistake="all the same"),
    program("echoes, simple RNN", "targets shuffled", LABELS, mistake="shuffled"),
    program("checkerboard", "biases of -6", DEAD, INITIAL, bias_initializer=-6.0),
    program("attributes", "biases of -10", DEAD, INITIAL, bias_initializer=-10.0),
    program("rumours", "no penalty, wide, long", OVERFITTING, l2=0.0, units=128,
            learning_rate=0.003, epochs=120),
    program("tides", "no penalty, wide, long", OVERFITTING, l2=0.0, units=128,
            learning_rate=0.003, epochs=120),
    program("checkerboard", "no hidden layer", UNDERFITTING, layers=0),
    program("pinwheel, 12 layers", "one unit a layer", UNDERFITTING, units=1),
    program("arm", "penalty of 2", UNDERFITTING, l2=2.0),
    program("houses", "six epochs of plain SGD", FEW_EPOCHS, epochs=6,
            optimizer="sgd", learning_rate=0.003),
    program("echoes, simple RNN", "six epochs", FEW_EPOCHS, epochs=6,
            learning_rate=0.001),
    program("attributes", "one epoch", FEW_EPOCHS, epochs=1, learning_rate=0.001),
    program("shapes, convolutions", "no normalization", NORMALIZATION, HIGH,
            normalization=None, learning_rate=0.3),
    program("pinwheel, 20 residual", "no normalization, plain", NORMALIZATION,
            SATURATING, normalization=None, activation="sigmoid", residual=False),
]  # fmt: skip


# --- from settings to a run


def network(kind, x, output_units, settings):
    """Build the model; an input of whole numbers is embedded."""
    inputs = keras.Input(x.shape[1:])
    outputs = inputs
    if x.dtype.kind == "i":
        outputs = layers.Embedding(int(x.max()) + 1, 8, name="embedding")(outputs)
    if kind == "dense" and len(outputs.shape) > 2:
        outputs = layers.Flatten(name="flatten")(outputs)
    for number in range(1, settings["layers"] + 1):
        outputs = hidden(kind, number, outputs, settings)
    if kind.startswith("conv"):
        pooling = layers.GlobalMaxPooling2D, layers.GlobalMaxPooling1D
        outputs = pooling[kind == "conv1d"](name="pooling")(outputs)
    activation = settings["output_activation"]
    options = weights({**settings, "bias_initializer": "zeros"})
    dense = layers.Dense(output_units, activation, name="output", **options)
    return keras.Model(inputs, dense(outputs))


def hidden(kind, number, inputs, settings):
    """Apply one hidden layer with what belongs to it."""
    options, activation = weights(settings), settings["activation"]
    name, is_normalized = f"hidden_{number}", settings["normalization"] is not None
    if kind in RECURRENT:
        sequences = number < settings["layers"]
        make = RECURRENT[kind]
        outputs = make(settings["units"], activation, return_sequences=sequences,
                       name=name, **options)(inputs)  # fmt: skip
        return normalization(number)(outputs) if is_normalized else outputs
    if is_normalized:
        activation = None
    if kind == "dense":
        layer = layers.Dense(settings["units"], activation, name=name, **options)
    else:
        make = layers.Conv2D if kind == "conv2d" else layers.Conv1D
        layer = make(settings["units"], 3, padding="same", activation=activation,
                     name=name, **options)  # fmt: skip
    outputs = layer(inputs)
    if is_normalized:
        activation = layers.Activation(settings["activation"],
                                       name=f"activation_{number}")  # fmt: skip
        outputs = activation(normalization(number)(outputs))
    if settings["residual"] and inputs.shape == outputs.shape:
        outputs = layers.add([inputs, outputs], name=f"sum_{number}")
    if settings["dropout"]:
        dropout = getattr(layers, settings["dropout_kind"])
        outputs = dropout(settings["dropout"], name=f"dropout_{number}")(outputs)
    if kind.startswith("conv") and number < settings["layers"] and number <= 2:
        pooling = layers.MaxPooling2D if kind == "conv2d" else layers.MaxPooling1D
        outputs = pooling(2, name=f"pooling_{number}")(outputs)
    return outputs


def normalization(number):
    # Keras's 0.99 is for more than the thousand steps that there are.
    name = f"normalization_{number}"
    return layers.BatchNormalization(momentum=0.9, name=name)


RECURRENT = {"lstm": layers.LSTM, "gru": layers.GRU, "rnn": layers.SimpleRNN}


def weights(settings):
    """Arguments of a layer; a new initializer for each."""
    kernel, bias = settings["kernel_initializer"], settings["bias_initializer"]
    if not isinstance(kernel, str):
        kernel = keras.initializers.RandomNormal(stddev=kernel)
    if not isinstance(bias, str):
        bias = keras.initializers.Constant(bias)
    penalty = keras.regularizers.L2(settings["l2"]) if settings["l2"] else None
    return {
        "kernel_initializer": kernel,
        "bias_initializer": bias,
        "kernel_regularizer": penalty,
    }


class Data(typing.NamedTuple):
    x: np.ndarray
    y: np.ndarray
    num_outputs: int

    def rows(self, keep):
        return self._replace(x=self.x[keep], y=self.y[keep])


def load(make, settings, seed):
    """Draw the data with the mistakes that are in them: training, validation, test."""
    rng = np.random.default_rng(seed)
    rows = settings["rows"] + VALIDATION_ROWS + TEST_ROWS
    x, y = make(rng, rows)
    num_outputs = int(y.max()) + 1 if y.ndim == 1 else y.shape[1]
    is_binary = settings["loss"].lower().replace("_", "") == "binarycrossentropy"
    if num_outputs == 2 and is_binary and y.ndim == 1:
        num_outputs = 1
    if x.dtype.kind == "f":
        x = (x * settings["x_unit"] + settings["x_offset"]).astype("float32")
    learned = slice(0, settings["rows"] + VALIDATION_ROWS)
    y_learned = y[learned]
    if settings["mistake"] == "shuffled":
        y_learned = rng.permutation(y_learned)
    elif settings["mistake"] == "a row off":
        y_learned = np.roll(y_learned, 1, axis=0)
    elif settings["mistake"] == "sorted":
        y_learned = np.sort(y_learned, axis=0)
    elif settings["mistake"] == "all the same":
        y_learned = np.zeros_like(y_learned) + y_learned[0]
    elif settings["mistake"] == "from one":  # by the files, also of the test set
        y, y_learned = y + 1, y_learned + 1
    y = np.concatenate([y_learned, y[len(y_learned) :]])
    if settings["missing"] == "x":
        x[learned][rng.uniform(size=len(y_learned)) < 1 / 30, ..., 0] = np.nan
    if settings["missing"] == "y":
        y = y.astype("float32")
        y[learned][rng.uniform(size=len(y_learned)) < 1 / 30] = np.nan
    if settings["labels"] == "0 to n - 1":
        y = np.unique(y, return_inverse=True)[1].reshape(y.shape)
    elif settings["labels"] == "0 to 1":
        y = (y - np.nanmin(y)) / (np.nanmax(y) - np.nanmin(y))
    if settings["one_hot"]:
        y = keras.utils.to_categorical(y, num_outputs)
    if y.dtype.kind == "f":
        y = y.astype("float32")
    data = Data(x, y, num_outputs)
    ends = settings["rows"], learned.stop
    spans = slice(ends[0]), slice(*ends), slice(ends[1], None)
    return [data.rows(span) for span in spans]


def prepared(parts, settings):
    """Leave out rows and scale, as the training data say; return the way back for y."""

    def is_finite(values):
        return np.isfinite(values).reshape(len(values), -1).all(axis=1)

    if settings["x"] == "finite":
        parts = [part.rows(is_finite(part.x)) for part in parts]
    if settings["labels"] == "finite":
        parts = [part.rows(is_finite(part.y)) for part in parts]
    x, y = parts[0].x, parts[0].y
    mean, std = 0.0, 1.0
    if settings["scale"] == "standardize" and x.dtype.kind == "f":
        axes = tuple(range(x.ndim - 1)) if x.ndim > 2 else 0
        center, spread = x.mean(axis=axes), x.std(axis=axes) + 1e-7
        parts = [part._replace(x=(part.x - center) / spread) for part in parts]
    if settings["target_scale"] == "standardize" and y.dtype.kind == "f":
        mean, std = y.mean(axis=0), y.std(axis=0) + 1e-7
        parts = [part._replace(y=(part.y - mean) / std) for part in parts]
    return parts, mean, std


def compiled(base, data, settings):
    """Build the network of a base and compile it."""
    units = settings["output_units"] or data.num_outputs
    model = network(base.kind, data.x, units, settings)
    loss = settings["loss"]
    if "entropy" in loss.lower():
        camel = "".join(word.capitalize() for word in loss.split("_"))
        loss = getattr(keras.losses, camel if "_" in loss else loss)
        loss = loss(from_logits=settings["from_logits"])
    metrics = []
    if base.settings["loss"] != REGRESSION["loss"]:
        metrics = ["accuracy"]
        if base.settings["loss"] == BINARY["loss"]:
            threshold = 0.0 if settings["output_activation"] == "linear" else 0.5
            metrics = [keras.metrics.BinaryAccuracy("accuracy", threshold=threshold)]
    given = {k: settings[k] for k in OPTIMIZER if settings[k] is not None}
    optimizer = make_optimizer(settings["optimizer"], **given)
    model.compile(optimizer, loss, metrics=metrics)
    return model


def score(base, predictions, y, settings):
    """Accuracy, or R^2 but no less than 0; 0 of what is not finite."""
    if not np.isfinite(predictions).all():
        return 0.0
    if base.settings["loss"] == REGRESSION["loss"]:
        if predictions.shape != y.shape:
            return 0.0
        error = np.square(predictions - y).mean(axis=0) / y.var(axis=0)
        return max(0.0, 1 - float(error.mean()))
    if settings["one_hot"]:
        y = y.argmax(axis=-1)
    if predictions.shape[-1] == 1 or y.ndim > 1:
        threshold = 0.0 if settings["output_activation"] == "linear" else 0.5
        labels = (predictions > threshold).astype(int)
        labels = labels[:, 0] if y.ndim == 1 else labels
    else:
        labels = predictions.argmax(axis=-1)
    return float((labels == y).mean())


@dataclasses.dataclass
class Run:
    """What one training has shown.

    `gradients` and `activations` are `None` where a monitor could not run, `history` is
    empty and `error` says why if `fit` failed.
    """

    score: float
    checks: list
    history: dict
    gradients: object
    activations: object
    error: str
    model: object
    train: Data
    settings: dict


def probe_of(data):
    """Rows for the monitors, which refuse what is not finite."""
    finite = [np.isfinite(a).reshape(len(a), -1).all(axis=1) for a in data[:2]]
    rows = np.flatnonzero(finite[0] & finite[1])[:PROBE_ROWS]
    return data.x[rows], data.y[rows]


def run(base, settings, seed, *, look=True):
    """Train the base with these settings and score it.

    With `look`, see it before, meanwhile and after as a user would who asks why.
    """
    keras.utils.set_random_seed(seed)
    keras.backend.clear_session(free_memory=False)
    parts, mean, std = prepared(load(base.data, settings, seed), settings)
    train, valid, test = parts
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a user may not see them either
        model = compiled(base, train, settings)
        result = Run(0.0, [], {}, None, None, "", model, train, settings)
        monitors = []
        if look:
            result.checks = check_model(model, train.x, train.y)
            probe = probe_of(train)
            if len(probe[0]):
                monitors = [GradientMonitor(*probe), ActivationMonitor(probe[0])]
        try:
            history = model.fit(
                train.x,
                train.y,
                batch_size=settings["batch_size"],
                epochs=settings["epochs"],
                validation_data=(valid.x, valid.y),
                validation_batch_size=VALIDATION_ROWS,
                verbose=0,
                callbacks=[LearningRateLogger(), *monitors],
            )
        except Exception as error:  # what a user would see in place of a history
            result.error = f"{type(error).__name__}: {error}"[:300]
            return result
        predictions = keras.ops.convert_to_numpy(model(test.x, training=False))
    result.history = history.history
    if monitors:
        result.gradients, result.activations = (each.to_frame() for each in monitors)
    unscaled = predictions * std + mean if np.ndim(std) else predictions
    y = test.y * std + mean if np.ndim(std) else test.y
    result.score = score(base, unscaled, y, settings)
    return result


# --- from advice to new settings

CHECKS = {"labels": "check", "data": "check", "x": "varying"}  # a person's work
_PLAIN = {"kernel_initializer", "bias_initializer", "scale", "target_scale", "x",
          "labels", "normalization", "from_logits", *OPTIMIZER}  # fmt: skip


def apply(change, layer, settings, base=None, *, seed=0, history=None):
    """Return the settings with the `change` of a finding about `layer` made.

    `None` if it changes nothing, as where the advice is a person's work. The base and
    the seed are for a learning rate that is to be searched; the history says in which
    epoch the validation loss was least.
    """
    new = dict(settings)
    is_output = layer == "output"
    for name, value in change.items():
        match name, value:
            case _ if CHECKS.get(name) == value:
                pass
            case "learning_rate", "lower":
                new[name] = 0.1 * rate_of(settings)
            case "learning_rate", "search":
                new[name] = searched_rate(base, settings, seed)
            case "global_clipnorm", "lower":
                new[name] = (settings[name] or 10.0) / 10
                new |= {"clipnorm": None, "clipvalue": None}
            case "global_clipnorm", _:
                new |= {name: value, "clipnorm": None, "clipvalue": None}
            case "optimizer", _:
                new |= {**dict.fromkeys(OPTIMIZER), name: value}
            case "momentum", _ if "ad" in settings["optimizer"]:
                new["beta_1"] = value
            case "activation", _:
                new["output_activation" if is_output else name] = value
            case "loss", _:
                new |= {name: value, "from_logits": change.get("from_logits", False)}
            case "units", "higher":
                new |= {name: 4 * settings[name], "layers": settings["layers"] + 1}
            case "units", _:
                new["output_units" if is_output or layer is None else name] = value
            case "dropout", "AlphaDropout":
                new["dropout_kind"] = value
            case "regularization", "higher":
                new["dropout"] = min(0.5, settings["dropout"] + 0.3)
                new["l2"] = max(1e-3, 10 * settings["l2"])
            case "regularization", "lower":
                new |= {"dropout": 0.0, "l2": 0.0, "weight_decay": None}
            case "epochs", "higher":
                new[name] = 10 * settings[name]
            case "epochs", "lower":
                losses = np.nan_to_num(history["val_loss"], nan=np.inf)
                new[name] = 1 + int(np.argmin(losses))
            case _ if name in _PLAIN:
                new[name] = value
            case _:
                raise ValueError(f"no program can make the change {name}={value!r}")
    return None if new == settings else new


def rate_of(settings):
    """The learning rate of the settings, the optimizer's own if they have none."""
    given = make_optimizer(settings["optimizer"], settings["learning_rate"])
    return float(given.learning_rate)


def searched_rate(base, settings, seed):
    """The rate that the finder suggests, that of the settings if it finds none."""
    keras.utils.set_random_seed(seed)
    parts, *_ = prepared(load(base.data, settings, seed), settings)
    model = compiled(base, parts[0], settings)
    finder = LRFinder().run(
        model, parts[0].x, parts[0].y, batch_size=settings["batch_size"]
    )
    try:
        return float(finder.suggestion)
    except ValueError:  # the loss does not fall at any rate
        return settings["learning_rate"]
