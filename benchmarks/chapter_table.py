"""Train every network of the chapter's notebooks again, and ours beside them.

    KERAS_BACKEND=jax python benchmarks/chapter_table.py
    KERAS_BACKEND=jax python benchmarks/chapter_table.py power_3 one_cycle_2 --seeds 10
    python benchmarks/chapter_table.py --list

A row is one short function below, with what the notebook's stored output says. Those
that end in `_3` are the third edition's: pixels in 0..1, the last 5,000 training images
validate. Those in `_2` are the second's, whose first 5,000 validate. Schedules are this
collection's where Keras has none, with the notebook's numbers. Where the output does
not belong to the code printed above it, the code counts, and `remark` says so.

The rows that begin with `our_` train the same network for the same epochs, with recipes
that were chosen by validation accuracy, with seed 0; they are measured from seed 100.

The networks end in logits: on JAX Keras 3.15 takes a softmax's crossentropy from
probabilities of at least 1e-7, so that what is wrong with more certainty has no
gradient; on TensorFlow it finds the logits by itself.

Appends a line for each row and seed to benchmarks/results/chapter.csv and leaves out
what is already there, so that it can be stopped and started again. The test images are
read once, at the end of a run, and only where the notebook has read them. A seed takes
about a quarter of an hour on one core with JAX; on TensorFlow several times as long.
"""

import argparse
import functools
import math
import pathlib
import typing
from collections.abc import Callable

import keras
import numpy as np
import pandas as pd
from keras import layers
from keras.optimizers import SGD, Adam, Adamax, Nadam, RMSprop
from record import ROOT, append, surroundings

import train
from callbacks.lr_finder import LRFinder
from callbacks.schedulers import (
    ExponentialScheduler,
    PiecewiseScheduler,
    PlateauScheduler,
)
from recipes import fashion_mnist
from recipes.layers import ResidualDense
from recipes.mc_dropout import MCDropoutPredictor
from recipes.optimizers import make_optimizer
from recipes.schedules import Exponential, OneCycle, PowerDecay
from recipes.transfer import freeze, reuse, unfreeze

RESULTS = ROOT / "benchmarks" / "results" / "chapter.csv"
STEPS_PER_CALL = 191  # a ninth of an epoch of 1,719 steps: the same steps, sooner done
MC_SAMPLES = 100
CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
OUR_FIRST_SEED = 100


class Row(typing.NamedTuple):
    """A function below, and what the notebook's output says it comes to."""

    run: Callable
    family: str
    cell: int | None  # of the notebook, counted from 0
    scale: str
    recorded: dict
    remark: str = ""  # why the output is not this code's
    beside: str = ""  # the row of the book that ours is to be compared with

    @property
    def edition(self):
        """Which notebook, by the name's last digit."""
        return int((self.beside or self.run.__name__)[-1])


class Lesson(typing.NamedTuple):
    """The data and the seed of one run, and how to train on them."""

    data: fashion_mnist.FashionMNIST
    seed: int

    def train(
        self,
        model,
        optimizer,
        *,
        epochs,
        batch_size=32,
        callbacks=(),
        loss=CROSSENTROPY,
    ):
        """Compile and fit; return the last epoch's numbers, as `fit` prints them."""
        batches = fashion_mnist.epoch_batches(
            self.data.x_train, self.data.y_train, batch_size, seed=self.seed
        )
        model.compile(
            optimizer,
            loss,
            metrics=["accuracy"],
            steps_per_execution=min(STEPS_PER_CALL, len(batches)),
        )
        history = model.fit(
            batches,
            epochs=epochs,
            validation_data=(self.data.x_valid, self.data.y_valid),
            validation_batch_size=1000,
            callbacks=list(callbacks),
            verbose=0,
        ).history
        names = ("loss", "accuracy", "val_loss", "val_accuracy")
        return {name: history[name][-1] for name in names}

    def test(self, model):
        """Loss and accuracy on the test images."""
        loss, accuracy = model.evaluate(
            self.data.x_test, self.data.y_test, batch_size=1000, verbose=0
        )
        return {"test_loss": loss, "test_accuracy": accuracy}

    def test_mc_dropout(self, model):
        """Accuracy on the test images of the mean over samples."""
        predictor = MCDropoutPredictor(
            model, num_samples=MC_SAMPLES, from_logits=True, seed=self.seed
        )
        mean = predictor.predict(self.data.x_test, verbose=0).mean
        accuracy = np.mean(mean.argmax(axis=1) == self.data.y_test)
        return {"mc_test_accuracy": float(accuracy)}

    def of(self, classes):
        """The same lesson on the images of some classes, labelled from 0."""
        parts = []
        for x, y in zip(self.data[:6:2], self.data[1:6:2], strict=True):
            is_one = np.isin(y, classes)
            parts += [x[is_one], np.searchsorted(classes, y[is_one])]
        names = fashion_mnist.FashionMNIST._fields
        parts = dict(zip(names, parts, strict=False))  # the class names stay
        return self._replace(data=self.data._replace(**parts))

    def first(self, num_images):
        """The same lesson from the first so many training images."""
        data = self.data._replace(
            x_train=self.data.x_train[:num_images],
            y_train=self.data.y_train[:num_images],
        )
        return self._replace(data=data)


ROWS = {}


def row(family, cell=None, *, scale="unit", remark="", beside="", **recorded):
    """Put a function into `ROWS`, with the numbers that the notebook has recorded."""

    def register(run):
        ROWS[run.__name__] = Row(run, family, cell, scale, recorded, remark, beside)
        return run

    return register


# --- networks of the notebooks


def network(*hidden, classes=10):
    """Flat images, hidden layers, a logit for each class."""
    last = layers.Dense(classes)
    return keras.Sequential([keras.Input((28, 28)), layers.Flatten(), *hidden, last])


def dense(units, activation="relu", weights="he_normal", **options):
    """A layer with the weights that the notebooks give it."""
    return layers.Dense(units, activation, kernel_initializer=weights, **options)


def relu_100(num_layers=3):
    """The third edition's layers of 100 ReLU."""
    return [dense(100) for _ in range(num_layers)]


def selu_300_100():
    """The second edition's two layers of SELU."""
    return [dense(units, "selu", "lecun_normal") for units in (300, 100)]


def between(make, hidden):
    """One layer before each of the hidden ones, and one before the last."""
    return [part for layer in hidden for part in (make(), layer)] + [make()]


def notebook_one_cycle(max_rate):
    """A tenth of the rate, up and down in equal time, at last down to a thousandth."""
    return OneCycle(
        max_rate,
        25 * 430,
        warmup_fraction=0.45,
        anneal="linear",
        initial_divisor=10,
        final_divisor=1000,
        three_phase=True,
    )


# --- initial weights, activations, depth


@row("initialization, depth", 23, val_loss=0.4817, val_accuracy=0.8396)
def leaky_relu_2(lesson):
    """Leaky ReLU 0.3 in layers of 300 and 100, SGD 0.001, 10 epochs"""
    hidden = []
    for units in (300, 100):
        hidden += [dense(units, None), layers.LeakyReLU(negative_slope=0.3)]
    return lesson.train(network(*hidden), SGD(0.001), epochs=10)


@row("initialization, depth", 27, val_loss=0.4826, val_accuracy=0.8398)
def prelu_2(lesson):
    """PReLU in layers of 300 and 100, SGD 0.001, 10 epochs"""
    hidden = [dense(300, None), layers.PReLU(), dense(100, None), layers.PReLU()]
    return lesson.train(network(*hidden), SGD(0.001), epochs=10)


@row(
    "initialization, depth",
    37,
    scale="standardize",
    val_loss=0.5333,
    val_accuracy=0.8046,
)
def selu_deep_3(lesson):
    """100 layers of 100 SELU, SGD 0.001, 5 epochs"""
    hidden = [dense(100, "selu", "lecun_normal") for _ in range(100)]
    return lesson.train(network(*hidden), SGD(0.001), epochs=5)


@row(
    "initialization, depth",
    48,
    scale="standardize",
    val_loss=0.4907,
    val_accuracy=0.8218,
)
def selu_deep_2(lesson):
    """300 SELU and 99 layers of 100, SGD 0.001, 5 epochs"""
    hidden = [dense(u, "selu", "lecun_normal") for u in [300] + [100] * 99]
    return lesson.train(network(*hidden), SGD(0.001), epochs=5)


@row(
    "initialization, depth",
    42,
    scale="standardize",
    val_loss=0.7485,
    val_accuracy=0.7054,
)
def relu_deep_3(lesson):
    """100 layers of 100 ReLU, SGD 0.001, 5 epochs"""
    return lesson.train(network(*relu_100(100)), SGD(0.001), epochs=5)


@row(
    "initialization, depth",
    53,
    scale="standardize",
    val_loss=0.6638,
    val_accuracy=0.7380,
)
def relu_deep_2(lesson):
    """300 ReLU and 99 layers of 100, SGD 0.001, 5 epochs"""
    hidden = [dense(300), *relu_100(99)]
    return lesson.train(network(*hidden), SGD(0.001), epochs=5)


# --- batch normalization


@row("batch normalization", 51, val_loss=0.3676, val_accuracy=0.8650)
def batch_norm_after_3(lesson):
    """Normalized inputs, 300 and 100 ReLU normalized after, SGD 0.01, 2 epochs"""
    hidden = between(layers.BatchNormalization, [dense(300), dense(100)])
    return lesson.train(network(*hidden), SGD(0.01), epochs=2)


@row("batch normalization", 61, val_loss=0.3573, val_accuracy=0.8750)
def batch_norm_after_2(lesson):
    """Normalized inputs, 300 and 100 ReLU normalized after, SGD 0.001, 10 epochs"""
    hidden = [dense(units, weights="glorot_uniform") for units in (300, 100)]
    hidden = between(layers.BatchNormalization, hidden)
    return lesson.train(network(*hidden), SGD(0.001), epochs=10)


def normalized_before(weights):
    """300 and 100 ReLU without biases, normalized before the activation."""
    hidden = []
    for units in (300, 100):
        hidden.append(dense(units, None, weights, use_bias=False))
        hidden += [layers.BatchNormalization(), layers.Activation("relu")]
    return hidden


@row("batch normalization", 55, val_loss=0.3752, val_accuracy=0.8646)
def batch_norm_before_3(lesson):
    """300 and 100 ReLU normalized before, SGD 0.01, 2 epochs"""
    return lesson.train(network(*normalized_before("he_normal")), SGD(0.01), epochs=2)


@row("batch normalization", 65, val_loss=0.3875, val_accuracy=0.8660)
def batch_norm_before_2(lesson):
    """Normalized inputs, 300 and 100 ReLU normalized before, SGD 0.001, 10 epochs"""
    hidden = [layers.BatchNormalization(), *normalized_before("glorot_uniform")]
    return lesson.train(network(*hidden), SGD(0.001), epochs=10)


# --- reuse of pretrained layers

PULLOVER_AND_T_SHIRT, SANDAL_AND_SHIRT = (0, 2), (5, 6)


def task_a_hidden_2():
    """The hidden layers of the second edition's model A."""
    return [dense(u, "selu", "glorot_uniform") for u in (300, 100, 50, 50, 50)]


def model_a(lesson, classes_b, hidden):
    """Model A after 20 epochs on the eight other classes, and its numbers."""
    model = network(*hidden, classes=8)
    others = lesson.of([c for c in range(10) if c not in classes_b])
    return model, others.train(model, SGD(0.001), epochs=20)


def model_b(lesson, classes_b, hidden):
    """Model B after 20 epochs on 200 images of two classes; its numbers."""
    task = lesson.of(classes_b).first(200)
    model = binary(hidden)
    numbers = task.train(model, SGD(0.001), epochs=20, loss="binary_crossentropy")
    return numbers | task.test(model)


def model_b_on_a(lesson, classes_b, hidden):
    """Model B with the layers of A: 4 epochs frozen, 16 with all; its numbers."""
    trained, _ = model_a(lesson, classes_b, hidden)
    task = lesson.of(classes_b).first(200)
    model = binary(trained.layers[1:-1])
    for layer in model.layers[:-1]:
        layer.trainable = False
    task.train(model, SGD(0.001), epochs=4, loss="binary_crossentropy")
    for layer in model.layers[:-1]:
        layer.trainable = True
    numbers = task.train(model, SGD(0.001), epochs=16, loss="binary_crossentropy")
    return numbers | task.test(model)


def binary(hidden):
    """Hidden layers and one probability."""
    last = layers.Dense(1, "sigmoid")
    return keras.Sequential([keras.Input((28, 28)), layers.Flatten(), *hidden, last])


@row("transfer", 63, val_loss=0.2728, val_accuracy=0.9027)
def model_a_3(lesson):
    """Model A, eight classes, 3 layers of 100 ReLU, SGD 0.001, 20 epochs"""
    return model_a(lesson, PULLOVER_AND_T_SHIRT, relu_100())[1]


@row("transfer", 81, val_loss=0.2333, val_accuracy=0.9200)
def model_a_2(lesson):
    """Model A, eight classes, 300-100-50-50-50 SELU, SGD 0.001, 20 epochs"""
    return model_a(lesson, SANDAL_AND_SHIRT, task_a_hidden_2())[1]


@row(
    "transfer",
    64,
    val_loss=0.4225,
    val_accuracy=0.9367,
    test_loss=0.4317,
    test_accuracy=0.9185,
)
def model_b_3(lesson):
    """Model B from scratch, pullover or T-shirt from 200 images, 20 epochs"""
    return model_b(lesson, PULLOVER_AND_T_SHIRT, relu_100())


@row(
    "transfer",
    85,
    val_loss=0.1431,
    val_accuracy=0.9716,
    test_loss=0.1408,
    test_accuracy=0.9705,
)
def model_b_2(lesson):
    """Model B from scratch, sandal or shirt from 200 images, 20 epochs"""
    return model_b(lesson, SANDAL_AND_SHIRT, task_a_hidden_2())


@row(
    "transfer",
    76,
    val_loss=0.2492,
    val_accuracy=0.9377,
    test_loss=0.2546,
    test_accuracy=0.9385,
)
def model_b_on_a_3(lesson):
    """Model B on A, 4 epochs frozen and 16 not, SGD 0.001"""
    return model_b_on_a(lesson, PULLOVER_AND_T_SHIRT, relu_100())


@row(
    "transfer",
    96,
    val_loss=0.0652,
    val_accuracy=0.9878,
    test_loss=0.0562,
    test_accuracy=0.9940,
)
def model_b_on_a_2(lesson):
    """Model B on A, 4 epochs frozen and 16 not, SGD 0.001"""
    return model_b_on_a(lesson, SANDAL_AND_SHIRT, task_a_hidden_2())


# --- optimizers: three layers of 100 ReLU, 10 epochs


@row(
    "optimizers",
    80,
    remark="its output is that of momentum",
    val_loss=0.3656,
    val_accuracy=0.8672,
)
def sgd_3(lesson):
    """SGD 0.001"""
    return lesson.train(network(*relu_100()), SGD(0.001), epochs=10)


@row("optimizers", 83, val_loss=0.3656, val_accuracy=0.8672)
def momentum_3(lesson):
    """Momentum 0.9, rate 0.001"""
    return lesson.train(network(*relu_100()), SGD(0.001, 0.9), epochs=10)


@row("optimizers", 86, val_loss=0.3624, val_accuracy=0.8708)
def nesterov_3(lesson):
    """Nesterov's momentum 0.9, rate 0.001"""
    optimizer = SGD(0.001, 0.9, nesterov=True)
    return lesson.train(network(*relu_100()), optimizer, epochs=10)


@row("optimizers", 89, val_loss=0.4469, val_accuracy=0.8424)
def adagrad_3(lesson):
    """AdaGrad, rate 0.001"""
    optimizer = keras.optimizers.Adagrad(0.001)
    return lesson.train(network(*relu_100()), optimizer, epochs=10)


@row("optimizers", 92, val_loss=0.4781, val_accuracy=0.8636)
def rmsprop_3(lesson):
    """RMSProp 0.9, rate 0.001"""
    return lesson.train(network(*relu_100()), RMSprop(0.001, rho=0.9), epochs=10)


@row("optimizers", 95, val_loss=0.3879, val_accuracy=0.8696)
def adam_3(lesson):
    """Adam, rate 0.001"""
    return lesson.train(network(*relu_100()), Adam(0.001), epochs=10)


@row("optimizers", 98, val_loss=0.3282, val_accuracy=0.8780)
def adamax_3(lesson):
    """AdaMax, rate 0.001"""
    return lesson.train(network(*relu_100()), Adamax(0.001), epochs=10)


@row("optimizers", 101, val_loss=0.3813, val_accuracy=0.8740)
def nadam_3(lesson):
    """Nadam, rate 0.001"""
    return lesson.train(network(*relu_100()), Nadam(0.001), epochs=10)


@row("optimizers", 105, val_loss=0.3696, val_accuracy=0.8702)
def adamw_3(lesson):
    """AdamW, rate 0.001, decay 1e-5"""
    optimizer = keras.optimizers.AdamW(0.001, weight_decay=1e-5)
    return lesson.train(network(*relu_100()), optimizer, epochs=10)


# --- schedules: three layers of 100 ReLU, or 300 and 100 SELU on standardized pixels

third = functools.partial(row, "schedules")
second = functools.partial(row, "schedules", scale="standardize")


@third(113, val_loss=0.3569, val_accuracy=0.8714)
def power_3(lesson):
    """0.01 / (1 + t / 10000), SGD, 10 epochs"""
    return lesson.train(network(*relu_100()), SGD(PowerDecay(0.01, 10_000)), epochs=10)


@second(117, val_loss=0.3225, val_accuracy=0.8924)
def power_2(lesson):
    """0.01 / (1 + t / 10000), SGD, 25 epochs"""
    schedule = PowerDecay(0.01, 10_000)
    return lesson.train(network(*selu_300_100()), SGD(schedule), epochs=25)


@third(118, val_loss=0.3706, val_accuracy=0.8662)
def exponential_3(lesson):
    """0.01, ten times lower every 20,000 steps, SGD, 10 epochs"""
    schedule = Exponential(0.01, decay_steps=20_000)
    return lesson.train(network(*relu_100()), SGD(schedule), epochs=10)


@second(142, val_loss=0.3164, val_accuracy=0.8904)
def exponential_2(lesson):
    """0.01, ten times lower every 34,375 steps, SGD, 25 epochs"""
    schedule = Exponential(0.01, decay_steps=34_375)
    return lesson.train(network(*selu_300_100()), SGD(schedule), epochs=25)


@third(
    124,
    remark="its output is that of 25 epochs",
    val_loss=0.3296,
    val_accuracy=0.8812,
)
def exponential_by_epoch_3(lesson):
    """0.01 x 0.1^(epoch / 20), SGD, 20 epochs"""
    scheduler = ExponentialScheduler(0.01, decay_epochs=20)
    network_3 = network(*relu_100())
    return lesson.train(network_3, SGD(0.01), epochs=20, callbacks=[scheduler])


@second(124, val_loss=0.5699, val_accuracy=0.8928)
def exponential_by_epoch_2(lesson):
    """0.01 x 0.1^(epoch / 20), Nadam, 25 epochs"""
    scheduler = ExponentialScheduler(0.01, decay_epochs=20)
    network_2 = network(*selu_300_100())
    return lesson.train(network_2, Nadam(0.01), epochs=25, callbacks=[scheduler])


@third(
    130,
    remark="its output is that of 25 epochs",
    val_loss=0.3352,
    val_accuracy=0.8802,
)
def exponential_by_step_3(lesson):
    """0.01, ten times lower at the end, changed each step, SGD, 20 epochs"""
    schedule = Exponential(0.01, decay_steps=20 * 1719)
    return lesson.train(network(*relu_100()), SGD(schedule), epochs=20)


@second(129, val_loss=0.5833, val_accuracy=0.8880)
def exponential_by_step_2(lesson):
    """0.01, ten times lower every 34,375 steps, Nadam, 25 epochs"""
    schedule = Exponential(0.01, decay_steps=34_375)
    return lesson.train(network(*selu_300_100()), Nadam(schedule), epochs=25)


@third(
    133,
    remark="its boundaries lie beyond the last step: a constant rate",
    val_loss=0.3488,
    val_accuracy=0.8716,
)
def piecewise_by_step_3(lesson):
    """0.01, SGD, 10 epochs"""
    return lesson.train(network(*relu_100()), SGD(0.01), epochs=10)


@third(138, val_loss=0.4726, val_accuracy=0.8770)
def piecewise_3(lesson):
    """0.01, from epoch 5 0.005, from epoch 15 0.001, Nadam, 25 epochs"""
    scheduler = PiecewiseScheduler([5, 15], [0.01, 0.005, 0.001])
    network_3 = network(*relu_100())
    return lesson.train(network_3, Nadam(0.01), epochs=25, callbacks=[scheduler])


@second(135, val_loss=0.5533, val_accuracy=0.8868)
def piecewise_2(lesson):
    """0.01, from epoch 5 0.005, from epoch 15 0.001, Nadam, 25 epochs"""
    scheduler = PiecewiseScheduler([5, 15], [0.01, 0.005, 0.001])
    network_2 = network(*selu_300_100())
    return lesson.train(network_2, Nadam(0.01), epochs=25, callbacks=[scheduler])


@third(143, val_loss=0.3205, val_accuracy=0.8868)
def plateau_3(lesson):
    """0.01, halved after 5 epochs without gain, SGD, 25 epochs"""
    scheduler = PlateauScheduler(factor=0.5, patience=5)
    network_3 = network(*relu_100())
    return lesson.train(network_3, SGD(0.01), epochs=25, callbacks=[scheduler])


@second(139, val_loss=0.5241, val_accuracy=0.8936)
def plateau_2(lesson):
    """0.02, halved after 5 epochs without gain, momentum 0.9, 25 epochs"""
    scheduler = PlateauScheduler(factor=0.5, patience=5)
    network_2 = network(*selu_300_100())
    return lesson.train(network_2, SGD(0.02, 0.9), epochs=25, callbacks=[scheduler])


@third(160, val_loss=0.3016, val_accuracy=0.8920)
def one_cycle_3(lesson):
    """One cycle to 0.1, plain SGD, batches of 128, 25 epochs"""
    optimizer = SGD(notebook_one_cycle(0.1))
    return lesson.train(network(*relu_100()), optimizer, epochs=25, batch_size=128)


@second(151, val_loss=0.3170, val_accuracy=0.8934)
def one_cycle_2(lesson):
    """One cycle to 0.05, plain SGD, batches of 128, 25 epochs"""
    optimizer = SGD(notebook_one_cycle(0.05))
    return lesson.train(network(*selu_300_100()), optimizer, epochs=25, batch_size=128)


# --- the learning-rate range test


def range_test(lesson, hidden, low, high):
    """The rate at which the batch losses are lowest, of an epoch in batches of 128."""
    model = network(*hidden)
    model.compile(SGD(0.001), CROSSENTROPY)
    finder = LRFinder(low, high, num_steps=430)
    finder.run(model, lesson.data.x_train, lesson.data.y_train, batch_size=128)
    table = finder.to_frame()
    return {"rate_of_lowest_loss": table["learning_rate"][table["loss"].idxmin()]}


@third(155, remark="read off its figure", rate_of_lowest_loss=0.1)
def range_test_3(lesson):
    """Rate 0.0001 to 1 in an epoch, batches of 128"""
    return range_test(lesson, relu_100(), 1e-4, 1.0)


@second(149, remark="read off its figure", rate_of_lowest_loss=0.3)
def range_test_2(lesson):
    """Rate 0.00001 to 10 in an epoch, batches of 128"""
    return range_test(lesson, selu_300_100(), 1e-5, 10.0)


# --- regularization


def with_penalty(units, activation, *, last_weights):
    """Hidden layers and a last one with the penalty 0.01, as a whole network."""
    penalty = functools.partial(dense, kernel_regularizer=keras.regularizers.L2(0.01))
    hidden = [penalty(number, activation) for number in units]
    last = penalty(10, None, last_weights)
    return keras.Sequential([keras.Input((28, 28)), layers.Flatten(), *hidden, last])


@row(
    "regularization",
    167,
    remark="its output is that of He's weights in the last layer",
    val_loss=1.1269,
    val_accuracy=0.8182,
)
def l2_3(lesson):
    """Penalty 0.01 on 100-100-10, Glorot's last weights, SGD 0.02, 2 epochs"""
    model = with_penalty((100, 100), "relu", last_weights="glorot_normal")
    return lesson.train(model, SGD(0.02), epochs=2)


@row(
    "regularization",
    156,
    scale="standardize",
    val_loss=0.6826,
    val_accuracy=0.8382,
)
def l2_2(lesson):
    """Penalty 0.01 on 300-100-10 with ELU, Nadam, 2 epochs"""
    model = with_penalty((300, 100), "elu", last_weights="glorot_uniform")
    return lesson.train(model, Nadam(), epochs=2)


@row("regularization", 190, val_loss=0.3907, val_accuracy=0.8578)
def max_norm_3(lesson):
    """Max-norm 1 on 100-100 ReLU, momentum 0.9, rate 0.01, 10 epochs"""
    bound = keras.constraints.MaxNorm(1.0)
    hidden = [dense(100, kernel_constraint=bound) for _ in range(2)]
    return lesson.train(network(*hidden), SGD(0.01, 0.9), epochs=10)


@row(
    "regularization",
    184,
    scale="standardize",
    val_loss=0.3714,
    val_accuracy=0.8662,
)
def max_norm_2(lesson):
    """Max-norm 1 on 300-100 SELU, Nadam, 2 epochs"""
    options = {"kernel_constraint": keras.constraints.MaxNorm(1.0)}
    hidden = [dense(u, "selu", "lecun_normal", **options) for u in (300, 100)]
    return lesson.train(network(*hidden), Nadam(), epochs=2)


@row(
    "regularization",
    172,
    val_loss=0.3453,
    val_accuracy=0.8732,
    test_loss=0.3629,
    test_accuracy=0.8700,
    mc_test_accuracy=0.8717,
)
def dropout_3(lesson):
    """Dropout 0.2 before each of 100-100-10, momentum 0.9, rate 0.01, 10 epochs"""
    model = network(*between(lambda: layers.Dropout(0.2), relu_100(2)))
    numbers = lesson.train(model, SGD(0.01, 0.9), epochs=10)
    return numbers | lesson.test(model) | lesson.test_mc_dropout(model)


@row(
    "regularization",
    158,
    scale="standardize",
    val_loss=0.3395,
    val_accuracy=0.8722,
)
def dropout_2(lesson):
    """Dropout 0.2 before each of 300-100-10 with ELU, Nadam, 2 epochs"""
    hidden = [dense(300, "elu"), dense(100, "elu")]
    model = network(*between(lambda: layers.Dropout(0.2), hidden))
    return lesson.train(model, Nadam(), epochs=2)


@row(
    "regularization",
    161,
    scale="standardize",
    val_loss=0.4388,
    val_accuracy=0.8760,
    test_loss=0.4723,
    test_accuracy=0.8639,
)
def alpha_dropout_2(lesson):
    """AlphaDropout 0.2 before each of 300-100-10 with SELU, Nesterov, 20 epochs"""
    model = network(*between(lambda: layers.AlphaDropout(0.2), selu_300_100()))
    numbers = lesson.train(model, SGD(0.01, 0.9, nesterov=True), epochs=20)
    return numbers | lesson.test(model)


@row("regularization", 170, scale="standardize", mc_test_accuracy=0.8661)
def mc_alpha_dropout_2(lesson):
    """The same after one epoch more, mean of 100 samples"""
    model = network(*between(lambda: layers.AlphaDropout(0.2), selu_300_100()))
    lesson.train(model, SGD(0.01, 0.9, nesterov=True), epochs=21)
    return lesson.test_mc_dropout(model)


# --- ours beside them: the same network and epochs, recipes chosen on validation data


def one_cycle(lesson, peak, *, epochs, batch_size=125):
    """The schedule of a whole run."""
    return OneCycle(peak, epochs * math.ceil(len(lesson.data.x_train) / batch_size))


def adamw(schedule, weight_decay):
    """AdamW that lets biases and normalization be."""
    optimizer = make_optimizer("adamw", schedule, weight_decay=weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


@row("initialization, depth", scale="standardize", beside="selu_deep_3")
def our_deep_network(lesson):
    """50 residual blocks of two ReLU, AdamW, one cycle to 0.002, batches of 125"""
    hidden = [ResidualDense(100, "relu") for _ in range(50)]
    schedule = one_cycle(lesson, 0.002, epochs=5)
    options = {"weight_decay": 0.05, "global_clipnorm": 1.0}
    optimizer = make_optimizer("adamw", schedule, **options)
    return lesson.train(network(*hidden), optimizer, epochs=5, batch_size=125)


@row("batch normalization", beside="batch_norm_after_3")
def our_batch_norm_2_epochs(lesson):
    """One cycle to 0.005 with Adam, batches of 50"""
    hidden = between(layers.BatchNormalization, [dense(300), dense(100)])
    schedule = one_cycle(lesson, 0.005, epochs=2, batch_size=50)
    optimizer = make_optimizer("adam", schedule)
    return lesson.train(network(*hidden), optimizer, epochs=2, batch_size=50)


@row("batch normalization", beside="batch_norm_after_2")
def our_batch_norm_10_epochs(lesson):
    """One cycle to 0.004 with AdamW, weight decay 0.1, batches of 125"""
    hidden = between(layers.BatchNormalization, [dense(300), dense(100)])
    optimizer = adamw(one_cycle(lesson, 0.004, epochs=10), 0.1)
    return lesson.train(network(*hidden), optimizer, epochs=10, batch_size=125)


@row("transfer", beside="model_b_on_a_3")
def our_transfer(lesson):
    """Reused layers with the rate 0.02 in place of 0.001"""
    trained, _ = model_a(lesson, PULLOVER_AND_T_SHIRT, relu_100())
    task = lesson.of(PULLOVER_AND_T_SHIRT).first(200)
    head = layers.Dense(1, "sigmoid", name="head")
    model = reuse(trained, head=head)
    freeze(model, until=head)
    task.train(model, SGD(0.02), epochs=4, loss="binary_crossentropy")
    unfreeze(model)
    numbers = task.train(model, SGD(0.02), epochs=16, loss="binary_crossentropy")
    return numbers | task.test(model)


@row("optimizers", scale="standardize", beside="nadam_3")
def our_optimizer(lesson):
    """Standardized pixels, one cycle to 0.004 with Nadam, batches of 125"""
    optimizer = make_optimizer("nadam", one_cycle(lesson, 0.004, epochs=10))
    return lesson.train(network(*relu_100()), optimizer, epochs=10, batch_size=125)


@row("schedules", scale="standardize", beside="one_cycle_3")
def our_one_cycle_relu(lesson):
    """Standardized pixels, one cycle to 0.005 with AdamW, decay 0.35, batches of 125"""
    optimizer = adamw(one_cycle(lesson, 0.005, epochs=25), 0.35)
    return lesson.train(network(*relu_100()), optimizer, epochs=25, batch_size=125)


@row("schedules", scale="standardize", beside="one_cycle_2")
def our_one_cycle_selu(lesson):
    """One cycle to 0.002 with AdamW, weight decay 0.3, batches of 125"""
    optimizer = adamw(one_cycle(lesson, 0.002, epochs=25), 0.3)
    return lesson.train(network(*selu_300_100()), optimizer, epochs=25, batch_size=125)


@row("regularization", beside="dropout_3")
def our_dropout(lesson):
    """Dropout 0.05 and 0.1, one cycle to 0.004 with AdamW, decay 0.02, batches 125"""
    _, *hidden = between(lambda: layers.Dropout(0.1), relu_100(2))
    model = network(layers.Dropout(0.05), *hidden)
    optimizer = adamw(one_cycle(lesson, 0.004, epochs=10), 0.02)
    numbers = lesson.train(model, optimizer, epochs=10, batch_size=125)
    return numbers | lesson.test(model) | lesson.test_mc_dropout(model)


@row("regularization", scale="standardize", beside="alpha_dropout_2")
def our_alpha_dropout(lesson):
    """AlphaDropout 0.05, one cycle to 0.002 with AdamW, decay 0.2, batches of 125"""
    model = network(*between(lambda: layers.AlphaDropout(0.05), selu_300_100()))
    optimizer = adamw(one_cycle(lesson, 0.002, epochs=20), 0.2)
    numbers = lesson.train(model, optimizer, epochs=20, batch_size=125)
    return numbers | lesson.test(model)


# --- from the rows to the file


@functools.cache
def loaded(edition, scale):
    """Fashion-MNIST as the edition splits it."""
    data = fashion_mnist.load(train.DATA_FOLDER, scale=None)
    x = np.concatenate([data.x_train, data.x_valid])
    y = np.concatenate([data.y_train, data.y_valid])
    if edition == 2:  # its first images validate: they go to the end
        x, y = np.roll(x, -5000, axis=0), np.roll(y, -5000)
    test = data.x_test, data.y_test
    return fashion_mnist.split_and_scale((x, y), test, scale=scale)


def measure(name, seed):
    """Train a row with a seed; return its line of the csv."""
    chosen = ROWS[name]
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    lesson = Lesson(loaded(chosen.edition, chosen.scale), seed)
    numbers = chosen.run(lesson)
    return {"run": name, "seed": seed} | {
        measure: round(float(numbers.get(measure, np.nan)), 5) for measure in MEASURES
    }


def first_seed(name):
    """Ours are measured with other seeds than they were chosen with."""
    return OUR_FIRST_SEED if ROWS[name].beside else 0


MEASURES = ["loss", "accuracy", "val_loss", "val_accuracy", "test_loss"]
MEASURES += ["test_accuracy", "mc_test_accuracy", "rate_of_lowest_loss"]


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", help="names of --list; without any, all")
    parser.add_argument("--list", action="store_true", help="the rows, a line each")
    parser.add_argument(
        "--seeds", type=int, default=5, help="seeds 0 to N - 1, for ours from 100"
    )
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    options = parser.parse_args(arguments)
    unknown = [name for name in options.rows if name not in ROWS]
    if unknown:
        parser.error(f"no row {unknown[0]!r}; --list shows them")
    if options.list:
        width = max(map(len, ROWS))
        for name, each in ROWS.items():
            source = f" (cell {each.cell})" if each.cell else ""
            print(f"{name:{width}}  {each.run.__doc__}{source}")
        return
    facts = surroundings()
    path = options.results
    done = pd.read_csv(path)[["run", "seed"]].values.tolist() if path.exists() else []
    for seed in range(options.seeds):
        for name in options.rows or ROWS:
            if [name, first_seed(name) + seed] not in done:
                line = measure(name, first_seed(name) + seed)
                append([{**line, **facts}], path)
                print({key: value for key, value in line.items() if value == value})


if __name__ == "__main__":
    main()
