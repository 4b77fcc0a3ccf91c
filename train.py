"""Train on Fashion-MNIST with the recipes of this collection.

    python train.py                          the `recommended` run
    python train.py dropout --seed 3         any other run
    python train.py --list                   all of them, a line each
    python train.py adam --dry-run           one epoch on 512 images, in seconds
    python train.py adam --resume            goes on where it was killed, if it was
    python train.py adam --diagnose          says what is wrong with it, if anything
    python train.py adam --distribute        on all devices (docs/distributed.md)

A run is one short function below: it returns a compiled model and its callbacks.
The runs whose names begin with cifar10 are the chapter's exercise on CIFAR-10, which
Keras downloads, checks and unpickles; `--data garments` tries them on made images of
its shape.

Results go to runs/NAME-SEED/: model.keras, history.csv, metrics.json, curves.png and,
for runs with dropout, uncertainty.png; with --diagnose diagnosis.json and .png.
"""

import argparse
import contextlib
import difflib
import itertools
import json
import os
import pathlib
import platform
import shutil
import sys
import tempfile
import time
import typing
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no complaints about a missing GPU

import keras
import numpy as np
import pandas as pd
from keras import layers
from matplotlib.figure import Figure

from callbacks.monitors import ActivationMonitor, GradientMonitor
from callbacks.resumable import Resumable, StateError
from callbacks.schedulers import (
    ExponentialScheduler,
    LearningRateLogger,
    OneCycleScheduler,
    PiecewiseScheduler,
    PlateauScheduler,
    PowerScheduler,
)
from recipes import fashion_mnist, uncertainty
from recipes.check_model import check_model
from recipes.diagnose import diagnose, plot_diagnosis
from recipes.distribute import Devices, EvenBatches, all_devices, prepare_replicas
from recipes.initializers import initializer_for
from recipes.layers import HighwayDense, Maxout, ResidualDense, dense_block
from recipes.mc_dropout import MCDropoutPredictor
from recipes.optimizers import make_optimizer
from recipes.regularizers import MaxNorm, regularize
from recipes.schedules import (
    Cosine,
    Cyclical,
    Exponential,
    Floor,
    InEpochs,
    OneCycle,
    Piecewise,
    PowerDecay,
    Warmup,
)
from recipes.transfer import freeze, reuse, unfreeze

DATA_FOLDER = pathlib.Path(__file__).parent / "data" / "fashion-mnist"
MC_SAMPLES = 100  # as in the book
NUM_LABELS = 500  # in runs that pretrain
ONE_DEVICE = Devices(num_devices=1)
PROBE_ROWS = 256  # what --diagnose watches the gradients and activations on
STEPS_AT_ONCE = 50  # at most
FILES = {"model.keras", "history.csv", "metrics.json", "curves.png", "uncertainty.png"}
FILES |= {"diagnosis.json", "diagnosis.png"}


class Run(typing.NamedTuple):
    """How a function below is trained, and by which name it is called."""

    build: Callable
    epochs: int
    batch_size: int
    scale: str
    num_labels: int | None = None  # None: all training images have one
    dataset: str = "Fashion-MNIST"

    @property
    def description(self):
        """One line for the lists of runs."""
        not_measured = "" if self.dataset == "Fashion-MNIST" else " Not measured."
        return self.build.__doc__ + not_measured


class Plan(typing.NamedTuple):
    """What a run may need to know about the training ahead."""

    epochs: int
    steps_per_epoch: int
    data: fashion_mnist.FashionMNIST | None = None
    fit: Callable | None = None  # (model, x, y, epochs=...): a phase before the last

    @property
    def first_epochs(self):
        """Epochs of each phase before the last: a fifth of those of the last."""
        return -(-self.epochs // 5)

    @property
    def total_steps(self):
        """Number of weight updates in the whole run, or in its last phase."""
        return self.epochs * self.steps_per_epoch


RUNS = {}


def run(*, epochs=10, batch_size=32, scale="unit", **options):
    """Put a function into `RUNS`: batch size 32 and 10 epochs are the chapter's."""

    def register(build):
        RUNS[build.__name__] = Run(build, epochs, batch_size, scale, **options)
        return build

    return register


def network(
    activation="relu",
    *,
    hidden_units=(100, 100, 100),
    initializer=None,
    dropout=None,
    image_shape=(28, 28),
    **dense_options,
):
    """Dense layers as in the chapter; `dropout()` makes the layer before each."""
    stack = [keras.Input(image_shape), layers.Flatten()]
    initializer = initializer or (lambda: initializer_for(activation))
    for units in hidden_units:
        if dropout:
            stack.append(dropout())
        weights = initializer()
        stack.append(
            layers.Dense(units, activation, kernel_initializer=weights, **dense_options)
        )
    if dropout:
        stack.append(dropout())
    return keras.Sequential([*stack, last_layer()])


def network_of(*hidden, image_shape=(28, 28)):
    """The chapter's network with other hidden layers."""
    return keras.Sequential(
        [keras.Input(image_shape), layers.Flatten(), *hidden, last_layer()]
    )


def last_layer(units=10):
    """A probability for each class."""
    weights = initializer_for("softmax")
    return layers.Dense(units, "softmax", kernel_initializer=weights, name="classes")


def compiled(model, optimizer):
    """The model, ready for `fit`."""
    model.compile(
        optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    return model


# --- the recommended run, and what to compare it with


@run(epochs=20, batch_size=256)
def recommended(plan):
    """He weights, dropout, Adam with a rate that falls twentyfold, MC Dropout."""
    model = keras.Sequential(
        [
            keras.Input((28, 28)),
            layers.Flatten(),
            layers.Dense(512, "relu", kernel_initializer=initializer_for("relu")),
            layers.Dropout(0.2),
            layers.Dense(256, "relu", kernel_initializer=initializer_for("relu")),
            layers.Dropout(0.2),
            layers.Dense(10, "softmax", kernel_initializer=initializer_for("softmax")),
        ]
    )
    schedule = Exponential(0.002, decay_steps=plan.total_steps, factor=0.05)
    return compiled(model, make_optimizer("adam", schedule)), []


@run()
def baseline(plan):
    """No recipe: the chapter's three layers of 100 ReLU, Keras's weights, plain SGD."""
    model = network(initializer=lambda: "glorot_uniform")
    return compiled(model, keras.optimizers.SGD(0.01)), []


# --- initial weights: the activation decides


@run()
def he_normal(plan):
    """ReLU with He's normal weights, what `initializer_for("relu")` gives."""
    return compiled(network("relu"), make_optimizer("sgd", 0.01)), []


@run()
def he_uniform(plan):
    """ReLU with He's uniform weights."""
    model = network(initializer=lambda: initializer_for("relu", distribution="uniform"))
    return compiled(model, make_optimizer("sgd", 0.01)), []


@run()
def glorot_normal(plan):
    """Activation tanh with Glorot's weights."""
    return compiled(network("tanh"), make_optimizer("sgd", 0.01)), []


@run(scale="standardize")
def lecun_normal(plan):
    """SELU with LeCun's weights on standardized inputs."""
    return compiled(network("selu"), make_optimizer("sgd", 0.01)), []


# --- normalization and structures


@run()
def batch_norm_before(plan):
    """Batch normalization before each activation, in the place of the biases."""
    blocks = [dense_block(100, "relu", normalization="batch") for _ in range(3)]
    return compiled(network_of(*sum(blocks, [])), make_optimizer("sgd", 0.01)), []


@run()
def batch_norm_after(plan):
    """Batch normalization after each activation."""
    options = {"normalization": "batch", "position": "after"}
    blocks = [dense_block(100, "relu", **options) for _ in range(3)]
    return compiled(network_of(*sum(blocks, [])), make_optimizer("sgd", 0.01)), []


@run()
def maxout(plan):
    """Units that take the largest of two affine functions."""
    model = network_of(*[Maxout(100, 2) for _ in range(3)])
    return compiled(model, make_optimizer("sgd", 0.01)), []


@run(scale="standardize")
def selu(plan):
    """Twenty SELU layers, which keep mean and variance by themselves."""
    model = network("selu", hidden_units=[100] * 20)
    return compiled(model, make_optimizer("sgd", 0.01)), []


@run()
def plain(plan):
    """Twenty ReLU layers with He's weights: what the next two compare with."""
    model = network("relu", hidden_units=[100] * 20)
    return compiled(model, make_optimizer("sgd", 0.01)), []


@run()
def highway(plan):
    """Twenty highway layers, whose gates let their input through at first."""
    model = network_of(*[HighwayDense(100, "relu") for _ in range(20)])
    return compiled(model, make_optimizer("sgd", 0.01)), []


@run()
def residual(plan):
    """Ten residual blocks of two layers, which add to their input."""
    model = network_of(*[ResidualDense(100, "relu") for _ in range(10)])
    return compiled(model, make_optimizer("sgd", 0.01)), []


# --- gradient clipping


@run()
def clip_value(plan):
    """Each component of the gradient within 0.01: its direction changes."""
    return compiled(network(), make_optimizer("momentum", 0.01, clipvalue=0.01)), []


@run()
def clip_norm(plan):
    """The gradient of each variable within norm 0.5: its direction stays."""
    return compiled(network(), make_optimizer("momentum", 0.01, clipnorm=0.5)), []


@run()
def clip_global_norm(plan):
    """All gradients together within norm 1: the direction of the step stays."""
    optimizer = make_optimizer("momentum", 0.01, global_clipnorm=1.0)
    return compiled(network(), optimizer), []


# --- optimizers, with the chapter's hyper-parameters


@run()
def sgd(plan):
    """Plain gradient descent, rate 0.001."""
    return compiled(network(), make_optimizer("sgd")), []


@run()
def momentum(plan):
    """Momentum 0.9, rate 0.001."""
    return compiled(network(), make_optimizer("momentum")), []


@run()
def nesterov(plan):
    """Momentum 0.9 with the gradient at the look-ahead point, rate 0.001."""
    return compiled(network(), make_optimizer("nesterov")), []


@run()
def adagrad(plan):
    """AdaGrad, rate 0.001: its steps only shrink."""
    return compiled(network(), make_optimizer("adagrad")), []


@run()
def adadelta(plan):
    """AdaDelta: step sizes in the units of the weights."""
    return compiled(network(), make_optimizer("adadelta")), []


@run()
def rmsprop(plan):
    """RMSProp, decay 0.9, rate 0.001."""
    return compiled(network(), make_optimizer("rmsprop")), []


@run()
def adam(plan):
    """Adam, rate 0.001."""
    return compiled(network(), make_optimizer("adam")), []


@run()
def adamax(plan):
    """AdaMax: Adam with the maximum norm, rate 0.001."""
    return compiled(network(), make_optimizer("adamax")), []


@run()
def nadam(plan):
    """Nadam: Adam with Nesterov's look-ahead, rate 0.001."""
    return compiled(network(), make_optimizer("nadam")), []


@run()
def adamw(plan):
    """AdamW: Adam with decoupled weight decay 1e-5, rate 0.001."""
    return compiled(network(), make_optimizer("adamw")), []


# --- learning-rate schedules inside the compiled step


@run()
def power_decay(plan):
    """Rate 0.01 / (1 + t / 10000), as in the book."""
    schedule = PowerDecay(0.01, decay_steps=10_000)
    return compiled(network(), make_optimizer("momentum", schedule)), []


@run()
def exponential_decay(plan):
    """Rate from 0.01, ten times lower every 20,000 steps, as in the book."""
    schedule = Exponential(0.01, decay_steps=20_000)
    return compiled(network(), make_optimizer("momentum", schedule)), []


@run()
def piecewise_decay(plan):
    """Rate 0.01, then 0.005, then 0.001, changed at a half and at four fifths."""
    boundaries = [plan.total_steps // 2, plan.total_steps * 4 // 5]
    schedule = Piecewise(boundaries, [0.01, 0.005, 0.001])
    return compiled(network(), make_optimizer("momentum", schedule)), []


@run(batch_size=128)
def one_cycle(plan):
    """Up to rate 0.1 and down to nearly nothing in the run, at momentum 0.9."""
    schedule = OneCycle(0.1, plan.total_steps)
    return compiled(network(), make_optimizer("momentum", schedule)), []


@run()
def cosine_decay(plan):
    """Rate from 0.01 to 0 along half a cosine."""
    schedule = Cosine(0.01, decay_steps=plan.total_steps)
    return compiled(network(), make_optimizer("momentum", schedule)), []


@run()
def cosine_restarts(plan):
    """Rate from 0.01 to 0, and again in cycles of 1, 2, 4 epochs; never below 1e-4."""
    schedule = Cosine(0.01, decay_steps=1, restarts=True, length_factor=2)
    schedule = Floor(InEpochs(schedule, plan.steps_per_epoch), 1e-4)
    return compiled(network(), make_optimizer("momentum", schedule)), []


@run()
def cyclical(plan):
    """Rate between 0.001 and 0.02, up in one epoch and down in the next."""
    schedule = Cyclical(0.001, 0.02, half_cycle_steps=plan.steps_per_epoch)
    return compiled(network(), make_optimizer("momentum", schedule)), []


@run()
def warmup(plan):
    """Half an epoch of rising rate, then Adam's rate 0.001 to 0 along a cosine."""
    warmup_steps = plan.steps_per_epoch // 2
    schedule = Cosine(0.001, decay_steps=plan.total_steps - warmup_steps)
    return compiled(
        network(), make_optimizer("adam", Warmup(schedule, warmup_steps))
    ), []


# --- learning-rate schedules as callbacks, in epochs


@run()
def power_scheduler(plan):
    """Rate 0.01 / (1 + epoch / 5), before each step."""
    scheduler = PowerScheduler(0.01, decay_epochs=5, per="step")
    return compiled(network(), make_optimizer("momentum", 0.01)), [scheduler]


@run()
def exponential_scheduler(plan):
    """Rate from 0.01, ten times lower in 20 epochs, before each epoch."""
    scheduler = ExponentialScheduler(0.01, decay_epochs=20)
    return compiled(network(), make_optimizer("momentum", 0.01)), [scheduler]


@run()
def piecewise_scheduler(plan):
    """Rate 0.01, from epoch 5 0.005, from epoch 8 0.001."""
    scheduler = PiecewiseScheduler([5, 8], [0.01, 0.005, 0.001])
    return compiled(network(), make_optimizer("momentum", 0.01)), [scheduler]


@run(batch_size=128)
def one_cycle_scheduler(plan):
    """Up to rate 0.1 and down again, while the momentum goes down and up again."""
    scheduler = OneCycleScheduler(OneCycle(0.1, plan.total_steps))
    return compiled(network(), make_optimizer("momentum")), [scheduler]


@run()
def plateau_scheduler(plan):
    """Rate from 0.01, halved when the validation loss has not fallen for 2 epochs."""
    scheduler = PlateauScheduler(factor=0.5, patience=2)
    return compiled(network(), make_optimizer("momentum", 0.01)), [scheduler]


# --- regularization


@run()
def l1(plan):
    """Penalty 1e-5 times the absolute weights of every kernel."""
    model = regularize(network(), l1=1e-5)
    return compiled(model, make_optimizer("momentum", 0.01)), []


@run()
def l2(plan):
    """Penalty 1e-4 times the squared hidden weights, by Keras's own argument."""
    model = network(kernel_regularizer=keras.regularizers.L2(1e-4))
    return compiled(model, make_optimizer("momentum", 0.01)), []


@run()
def l1_l2(plan):
    """Penalties of 1e-6 times the absolute and 1e-4 times the squared weights."""
    model = regularize(network(), l1=1e-6, l2=1e-4)
    return compiled(model, make_optimizer("momentum", 0.01)), []


@run()
def max_norm(plan):
    """The incoming weights of each hidden unit within norm 1, as in the book."""
    model = network(kernel_constraint=MaxNorm(1.0))
    return compiled(model, make_optimizer("momentum", 0.01)), []


@run()
def dropout(plan):
    """Dropout 0.2 before each layer, as in the book, and MC Dropout on the result."""
    model = network(hidden_units=(100, 100), dropout=lambda: layers.Dropout(0.2))
    return compiled(model, make_optimizer("momentum", 0.01)), []


@run(scale="standardize")
def alpha_dropout(plan):
    """SELU with AlphaDropout 0.1, which keeps mean and variance, and MC Dropout."""
    model = network("selu", dropout=lambda: layers.AlphaDropout(0.1))
    return compiled(model, make_optimizer("nesterov", 0.01)), []


# --- the most that dense layers give here


@run(epochs=25, batch_size=125)
def rows_and_columns(plan):
    """Dense layers along the rows, then the columns, of an image; dropout, AdamW."""
    along = []
    for _ in range(6):  # each sees all rows alike, then all columns
        along += [ResidualDense(28, "relu"), layers.Permute((2, 1))]
    model = keras.Sequential(
        [
            keras.Input((28, 28)),
            *along,
            layers.Flatten(),
            layers.Dropout(0.3),
            *dense_block(512, "relu", normalization="batch"),
            layers.Dropout(0.5),
            last_layer(),
        ]
    )
    schedule = OneCycle(0.004, plan.total_steps, warmup_fraction=0.25)
    optimizer = make_optimizer("adamw", schedule, weight_decay=0.15)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return compiled(model, optimizer), []


# --- few labels, and what was learned without them


@run(epochs=25, num_labels=NUM_LABELS)
def few_labels(plan):
    """Only 500 images have labels: what the next three compare with."""
    return compiled(network(), make_optimizer("adam")), []


@run(epochs=25, num_labels=NUM_LABELS)
def autoencoder(plan):
    """Layers that learned to redraw all images, then the 500 labels."""
    decoder = [layers.Dense(784, "sigmoid"), layers.Reshape((28, 28))]
    painter = reuse(network(), head=decoder)
    painter.compile(make_optimizer("adam"), "binary_crossentropy")
    images = plan.data.x_train
    plan.fit(painter, images, images, epochs=plan.first_epochs)
    model = reuse(painter, drop_last=2, head=last_layer())
    return compiled(model, make_optimizer("adam")), []


@run(epochs=25, num_labels=NUM_LABELS)
def auxiliary_task(plan):
    """Layers that learned which way up all images are, then the 500 labels."""
    images = plan.data.x_train
    turns = np.random.default_rng(0).integers(4, size=len(images))
    turned = np.stack([np.rot90(*pair) for pair in zip(images, turns, strict=True)])
    model = reuse(network(), head=last_layer(4))
    compiled(model, make_optimizer("adam"))
    plan.fit(model, turned, turns, epochs=plan.first_epochs)
    model = reuse(model, head=last_layer())
    return compiled(model, make_optimizer("adam")), []


@run(epochs=25, num_labels=NUM_LABELS)
def reused_layers(plan):
    """Layers that learned eight classes, then the 500 labels of ten: first frozen."""
    x, y = plan.data.x_train, plan.data.y_train
    is_other = ~np.isin(y, (0, 2))  # neither T-shirt nor Pullover, as in the book
    labels = np.unique(y[is_other], return_inverse=True)[1]
    model = compiled(reuse(network(), head=last_layer(8)), make_optimizer("adam"))
    plan.fit(model, x[is_other], labels, epochs=plan.first_epochs)

    model = reuse(model, head=last_layer())
    freeze(model, until="classes")
    compiled(model, make_optimizer("adam"))
    plan.fit(model, x[:NUM_LABELS], y[:NUM_LABELS], epochs=plan.first_epochs)
    unfreeze(model)
    return compiled(model, make_optimizer("adam", 1e-4)), []


# --- the chapter's exercise: twenty layers of 100 units on CIFAR-10

CIFAR10 = {"epochs": 100, "dataset": "CIFAR-10"}
CIFAR10_SHAPE = (32, 32, 3)
CIFAR10_CLASSES = tuple(
    "airplane automobile bird cat deer dog frog horse ship truck".split()
)


def best_epoch():
    """Stop after 20 epochs without a lower validation loss, with its best weights."""
    return keras.callbacks.EarlyStopping(patience=20, restore_best_weights=True)


@run(**CIFAR10, scale=None)
def cifar10_swish(plan):
    """CIFAR-10, pixels from 0 to 255: swish, He's weights, Nadam at 5e-5."""
    model = network("swish", hidden_units=[100] * 20, image_shape=CIFAR10_SHAPE)
    return compiled(model, make_optimizer("nadam", 5e-5)), [best_epoch()]


@run(**CIFAR10, scale=None)
def cifar10_batch_norm(plan):
    """The same with batch normalization before each activation, Nadam at 5e-4."""
    blocks = [dense_block(100, "swish", normalization="batch") for _ in range(20)]
    model = network_of(*sum(blocks, []), image_shape=CIFAR10_SHAPE)
    return compiled(model, make_optimizer("nadam", 5e-4)), [best_epoch()]


@run(**CIFAR10, scale="standardize")
def cifar10_selu(plan):
    """CIFAR-10, standardized: SELU, LeCun's weights, Nadam at 7e-4."""
    model = network("selu", hidden_units=[100] * 20, image_shape=CIFAR10_SHAPE)
    return compiled(model, make_optimizer("nadam", 7e-4)), [best_epoch()]


def cifar10_selu_dropout():
    """The network of the last two runs."""
    blocks = [dense_block(100, "selu") for _ in range(20)]
    hidden = [*sum(blocks, []), layers.AlphaDropout(0.1)]
    return network_of(*hidden, image_shape=CIFAR10_SHAPE)


@run(**CIFAR10, scale="standardize")
def cifar10_alpha_dropout(plan):
    """The same with AlphaDropout 0.1 before the last layer, Nadam at 5e-4."""
    model = cifar10_selu_dropout()
    return compiled(model, make_optimizer("nadam", 5e-4)), [best_epoch()]


@run(**CIFAR10 | {"epochs": 15}, batch_size=128, scale="standardize")
def cifar10_one_cycle(plan):
    """That network in 15 epochs of plain SGD, whose rate goes up to 0.05 and down."""
    # The book's cycle: up from a tenth and back, 45 % each, then down a thousandfold.
    shape = {"warmup_fraction": 0.45, "anneal": "linear", "three_phase": True}
    divisors = {"initial_divisor": 10.0, "final_divisor": 1000.0}
    schedule = OneCycle(0.05, plan.total_steps, **shape, **divisors)
    return compiled(cifar10_selu_dropout(), make_optimizer("sgd", schedule)), []


# --- from the command line to the files


def main(arguments=None):
    """Train one run and return the process's exit code."""
    parser = command_line()
    options = parser.parse_args(arguments)
    if options.list:
        width = max(map(len, RUNS))
        for name, one in RUNS.items():
            print(f"{name:<{width}}  {one.description}")
        return 0
    try:
        with contextlib.ExitStack() as stack:
            try:
                data, source = load_data(options)
                devices = stack.enter_context(devices_of(options, data))
            except (OSError, ValueError) as error:
                parser.error(str(error))
            try:
                with folder_in_the_making(options) as folder:
                    train(options, data, source, folder, devices)
            except OSError as error:
                way_out = "mend this, or name another folder with --output"
                if options.resume:
                    way_out = "once this is mended, the same command goes on"
                where = run_folder(options)
                parser.error(
                    f"the results cannot be written to {where}: {error}; {way_out}"
                )
            except StateError as error:
                parser.error(f"cannot go on: {error}")
    except KeyboardInterrupt:
        next_time = "with --resume it would go on from the last epoch next time"
        if options.resume:
            next_time = "the same command goes on from the last epoch"
        parser.exit(
            130, f"\ntrain.py: interrupted, no results were written; {next_time}\n"
        )
    print(f"Written to {run_folder(options)}, from {source}.")
    return 0


@contextlib.contextmanager
def devices_of(options, data):
    """All devices with --distribute, otherwise the one that Keras chooses."""
    if not options.distribute:
        yield ONE_DEVICE
        return
    with all_devices() as devices:
        here = devices.num_devices // devices.num_processes
        for rows in (32, len(data.x_valid) % 32, len(data.x_test) % 32):
            if rows % here:
                raise ValueError(
                    f"--distribute: {here} devices cannot share the last {rows} images "
                    "evenly; leave some out, as with CUDA_VISIBLE_DEVICES=0,1"
                )
        if devices.process_id:  # the files at the usual place are those of process 0
            options.output /= f"process-{devices.process_id}"
        yield devices


def train(options, data, source, folder, devices=ONE_DEVICE):
    """Train the run that the options name; leave its files in `folder`."""
    chosen = RUNS[options.run]
    print(f"{options.run}, seed {options.seed}, on {source}.")
    keras.utils.set_random_seed(options.seed)
    epochs = options.epochs or (1 if options.dry_run else chosen.epochs)
    settings = {"run": options.run, "seed": options.seed, "epochs": epochs}
    settings |= {"data": source, "dry_run": options.dry_run}
    settings |= {"diagnose": True} if options.diagnose else {}
    settings |= {"devices": devices.num_devices} if options.distribute else {}
    phases = itertools.count()

    def fit(model, x, y, *, epochs, callbacks=(), **more):
        batches = fashion_mnist.epoch_batches(
            x, y, chosen.batch_size, seed=options.seed
        )
        if devices.num_devices > 1:
            batches = EvenBatches(batches, devices)
            prepare_replicas(model)
        model.steps_per_execution = steps_at_once(len(batches), callbacks, devices)
        phase = next(phases)
        if options.resume:
            state = folder.with_name(f"state-{phase}")
            resumable = Resumable(
                state, callbacks=callbacks, data=batches, settings=settings
            )
            callbacks = [resumable]
        # For runs without a scheduler: the schedulers log the rate themselves.
        callbacks = [LearningRateLogger(), *callbacks]
        more |= {"epochs": epochs, "callbacks": callbacks, "shuffle": False}
        history = model.fit(batches, **more)
        model.steps_per_execution = 1  # `predict` on TensorFlow would unroll them
        # The next phase begins alike, however many epochs were left of this one.
        keras.utils.set_random_seed((options.seed + phase + 1) % 2**32)
        return history

    began = time.perf_counter()
    labelled = data.x_train[: chosen.num_labels], data.y_train[: chosen.num_labels]
    num_steps = -(-len(labelled[0]) // chosen.batch_size)
    model, callbacks = chosen.build(Plan(epochs, num_steps, data, fit))
    checks, monitors = examine(model, *labelled) if options.diagnose else ([], {})
    callbacks = [*callbacks, *monitors.values()]
    history = fit(
        model,
        *labelled,
        epochs=epochs,
        callbacks=callbacks,
        validation_data=(data.x_valid, data.y_valid),
    )
    seconds = time.perf_counter() - began
    history = pd.DataFrame(history.history).rename_axis("epoch")
    model.save(folder / "model.keras")
    if devices.num_processes > 1:
        # A process cannot read predictions that lie on other hosts: each makes its own.
        keras.distribution.set_distribution(None)
        model = keras.saving.load_model(folder / "model.keras")
    table, prediction = evaluate(model, data, options.seed)

    history.to_csv(folder / "history.csv")
    plot_curves(history, options.run).savefig(folder / "curves.png", dpi=100)
    if prediction is not None:
        plot_uncertainty(data, prediction).savefig(folder / "uncertainty.png", dpi=100)
    if options.diagnose:
        tables = {name: monitor.to_frame() for name, monitor in monitors.items()}
        write_diagnosis(history, tables, checks, folder)
    metrics = {
        "run": options.run,
        "seed": options.seed,
        "data": source,
        "dry_run": options.dry_run,
        "epochs": len(history),  # fewer than asked for where a callback stopped it
        "batch_size": chosen.batch_size,
        "training_seconds": seconds,
        "validation_accuracy": validation_accuracy(model, data),
        # JSON has no NaN and no infinity.
        "test": table.astype(object)
        .where(np.isfinite(table), None)
        .to_dict(orient="index"),
        "device": device_names(),
        "num_devices": devices.num_devices,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": {
            "python": platform.python_version(),
            "keras": keras.version(),
            keras.backend.backend(): backend_version(),
            "numpy": np.__version__,
        },
    }
    text = json.dumps(metrics, indent=2, allow_nan=False) + "\n"
    (folder / "metrics.json").write_text(text)
    print(f"\nTest set, {len(data.y_test)} images:\n{table.round(4).to_string()}\n")


def steps_at_once(num_steps, callbacks, devices=ONE_DEVICE):
    """How many steps of an epoch to take without Python in between: the same numbers.

    One, where a callback sets something before each step, on PyTorch, and on several
    devices, for Keras (3.15) cannot there. Else groups of nearly the same size.
    """
    acts_each_step = any(getattr(each, "per", "") == "step" for each in callbacks)
    is_torch = keras.backend.backend() == "torch"
    if acts_each_step or is_torch or devices.num_devices > 1:
        return 1
    num_groups = -(-num_steps // STEPS_AT_ONCE)
    return -(-num_steps // num_groups)


def examine(model, x, y):
    """What is wrong before training, and monitors to see what goes wrong in it."""
    probe = x[:PROBE_ROWS], y[:PROBE_ROWS]
    checks, monitors = [], {}
    try:
        checks = check_model(model, x, y)
    except ValueError as error:
        print_refusal("checks", error)
    for name, make in {
        "gradients": lambda: GradientMonitor(*probe),
        "activations": lambda: ActivationMonitor(probe[0]),
    }.items():
        try:
            monitors[name] = readable(make(), model)
        except ValueError as error:
            print_refusal(name, error)
    return checks, monitors


def print_refusal(name, error):
    """Say in one line what --diagnose cannot look at."""
    print(f"--diagnose goes on without {name}: {' '.join(str(error).split())}")


def readable(monitor, model):
    """The monitor, after one reading: in `fit` it is too late to be refused."""
    monitor.set_model(model)
    monitor.on_train_begin()
    monitor.on_epoch_begin(0)
    monitor.on_train_end()
    return monitor


def write_diagnosis(history, tables, checks, folder):
    """Print what is wrong with the run, and leave it and its picture in the folder."""
    findings = diagnose(history, checks=checks, **tables)
    print("\nDiagnosis:" if findings else "\nDiagnosis: nothing was found.")
    for number, finding in enumerate(findings, 1):
        print(f"{number}. {finding}")
    records = []
    for finding in findings:
        # JSON has no NaN and no infinity.
        numbers = finding.evidence.items()
        evidence = {name: v if np.isfinite(v) else None for name, v in numbers}
        records.append({**finding._asdict(), "evidence": evidence})
    text = json.dumps(records, indent=2, allow_nan=False) + "\n"
    (folder / "diagnosis.json").write_text(text)
    figure = plot_diagnosis(history, findings, **tables)
    figure.savefig(folder / "diagnosis.png", dpi=100)


def validation_accuracy(model, data):
    """Of the weights as they are: the best epoch's where a callback restored them."""
    predicted = model.predict(data.x_valid, verbose=0).argmax(axis=1)
    return float(np.mean(predicted == data.y_valid))


def evaluate(model, data, seed):
    """Scores on the test set, a row for each way to predict; the MC Dropout samples."""
    began = time.perf_counter()
    probabilities = model.predict(data.x_test, verbose=0)
    seconds = time.perf_counter() - began
    rows = {"deterministic": {**scores(probabilities, data.y_test), "seconds": seconds}}
    prediction = None
    if has_dropout(model) and np.isfinite(probabilities).all():
        began = time.perf_counter()
        predictor = MCDropoutPredictor(model, num_samples=MC_SAMPLES, seed=seed)
        prediction = predictor.predict(data.x_test, keep_samples=True)
        seconds = time.perf_counter() - began
        row = {**scores(prediction.mean, data.y_test), "seconds": seconds}
        rows["MC Dropout"] = row
    return pd.DataFrame(rows).T, prediction


def load_data(options):
    """The data that `--data` asks for, scaled as the run wants them, and their name."""
    if RUNS[options.run].dataset == "CIFAR-10":
        return load_cifar10(options)
    scale = RUNS[options.run].scale
    data_dir = DATA_FOLDER
    if options.data not in ("auto", "fashion-mnist", "garments"):
        data_dir = pathlib.Path(options.data)
        try:
            has_files = any(name.endswith("-ubyte.gz") for name in os.listdir(data_dir))
            problem = "holds no *-ubyte.gz files"
        except OSError as error:
            has_files, problem = False, f"cannot be read ({error.strerror})"
        if not has_files:
            raise ValueError(
                f"--data: {data_dir} {problem}; name the folder of Fashion-MNIST's "
                "four, or leave --data away to have them looked for"
            )
    if options.data != "garments":
        try:
            # Keras tells of its download on stdout, whose first line is this script's.
            with contextlib.redirect_stdout(sys.stderr):
                data = fashion_mnist.load(data_dir, scale=scale)
        except FileNotFoundError:
            if options.data != "auto":
                raise
        else:
            return shortened(data) if options.dry_run else data, "Fashion-MNIST"
    num_train, num_held_out = (512, 512) if options.dry_run else (20_000, 4_000)
    data = fashion_mnist.split_and_scale(
        fashion_mnist.draw_garments(num_train + num_held_out, seed=1),
        fashion_mnist.draw_garments(num_held_out, seed=2),
        scale=scale,
        validation_size=num_held_out,
    )
    return data, "drawn garments, NOT Fashion-MNIST"


def load_cifar10(options):
    """CIFAR-10 or, only if asked for, garments of its shape; and their name."""
    if options.data == "garments":
        num_train, num_held_out = (512, 512) if options.dry_run else (20_000, 4_000)
        pairs = [
            coloured_garments(num_train + num_held_out, seed=1),
            coloured_garments(num_held_out, seed=2),
        ]
        names, source = fashion_mnist.CLASS_NAMES, "drawn garments, NOT CIFAR-10"
    elif options.data == "auto":
        try:
            with contextlib.redirect_stdout(sys.stderr):
                pairs = keras.datasets.cifar10.load_data()
        except Exception as error:  # Keras 3.15 raises no other kind for a network
            raise FileNotFoundError(
                f"CIFAR-10 cannot be had: {error}. Keras downloads it once, and then "
                "finds it in its cache; --data garments tries the run on made images"
            ) from error
        num_held_out, names, source = 5000, CIFAR10_CLASSES, "CIFAR-10"
    else:
        raise ValueError(
            f"--data: {options.run} trains on CIFAR-10, which Keras downloads, or on "
            f"made images of its shape: auto or garments, not {options.data!r}"
        )
    (x, y), (x_test, y_test) = pairs
    # As in the book, the first 5,000 validate.
    data = fashion_mnist.split_and_scale(
        (np.roll(x, -num_held_out, axis=0), np.roll(y.ravel(), -num_held_out)),
        (x_test, y_test.ravel()),
        scale=RUNS[options.run].scale,
        validation_size=num_held_out,
    )
    data = data._replace(class_names=names)
    return shortened(data) if options.dry_run else data, source


def coloured_garments(num_samples, *, seed):
    """Garments in the shape of CIFAR-10, each in a colour of its own."""
    images, labels = fashion_mnist.draw_garments(num_samples, seed=seed)
    images = np.pad(images, [(0, 0), (2, 2), (2, 2)])[..., None]
    colours = np.random.default_rng(seed).uniform(0.3, 1, (num_samples, 1, 1, 3))
    return (images * colours).astype("uint8"), labels


def shortened(data):
    """The first 512 images of each part."""
    return data._replace(
        **{name: getattr(data, name)[:512] for name in data._fields[:-1]}
    )


def has_dropout(model):
    """Whether MC Dropout has anything to sample."""
    kinds = (layers.Dropout, layers.AlphaDropout)
    return any(isinstance(layer, kinds) for layer in model.layers)


def scores(probabilities, labels):
    """Measures on the test set; NaN for a run that has diverged."""
    measures = {
        "accuracy": lambda p, y: np.mean(p.argmax(axis=1) == y),
        "negative_log_likelihood": uncertainty.negative_log_likelihood,
        "calibration_error": uncertainty.expected_calibration_error,
    }
    if not np.isfinite(probabilities).all():
        return dict.fromkeys(measures, np.nan)
    return {name: measure(probabilities, labels) for name, measure in measures.items()}


def backend_version():
    """Version of the library that computes."""
    return sys.modules[keras.backend.backend()].__version__


def device_names():
    """What computes, in words."""
    if keras.backend.backend() != "torch":
        return ", ".join(keras.distribution.list_devices())
    import torch  # whose devices Keras 3.15 does not list

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def plot_curves(history, title):
    """Loss, accuracy and learning rate by epoch."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    figure.suptitle(title)
    epochs = history.index + 1
    panels = figure.subplots(1, 3)
    names = ("loss", "accuracy", "learning_rate")
    for axes, name in zip(panels, names, strict=True):
        axes.plot(epochs, history[name], "o-", markersize=3, label="training")
        if f"val_{name}" in history:
            axes.plot(
                epochs, history[f"val_{name}"], "s--", markersize=3, label="validation"
            )
            axes.legend()
        axes.set(
            xlabel="epoch", ylabel=name.replace("_", " "), xlim=(0.5, len(epochs) + 0.5)
        )
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels[2].set(yscale="log", title="last rate of each epoch")
    return figure


def plot_uncertainty(data, prediction):
    """The test images whose predictions are least certain, beside their samples."""
    # A pixel that hardly ever varies, standardized, is huge where it does.
    black, white = np.percentile(data.x_test, [1, 99])
    return uncertainty.plot_most_uncertain(
        np.clip(data.x_test, black, white),
        prediction.samples,
        labels=data.y_test,
        class_names=data.class_names,
    )


def run_folder(options):
    """Where a run's files lie."""
    return options.output / f"{options.run}-{options.seed}"


@contextlib.contextmanager
def folder_in_the_making(options):
    """A new folder that becomes the run's own only when all went well."""
    target = run_folder(options)
    target.parent.mkdir(parents=True, exist_ok=True)
    # What would be in the way in the end is refused before training.
    if os.path.lexists(target):
        foreign = sorted(set(os.listdir(target)) - FILES)
        if foreign:
            raise FileExistsError(f"it holds {foreign[0]}, which is not from here")
        if not os.access(target, os.W_OK):
            raise PermissionError("it is read-only")
    with scratch_folder(options) as scratch:
        making, old = scratch / "new", scratch / "old"
        if old.exists() and not target.exists():  # killed between the two renamings
            old.rename(target)
        for leftover in (making, old):
            shutil.rmtree(leftover, ignore_errors=True)
        making.mkdir()
        yield making
        try:
            if target.exists():
                target.rename(old)
            making.rename(target)
        except BaseException:
            if old.exists() and not target.exists():
                old.rename(target)
            raise


@contextlib.contextmanager
def scratch_folder(options):
    """A folder beside the results, which with --resume outlives all but success."""
    target = run_folder(options)
    if options.resume:
        scratch = target.with_name(f".{target.name}.resume")
        scratch.mkdir(exist_ok=True)
        yield scratch
        shutil.rmtree(scratch)
    else:
        with tempfile.TemporaryDirectory(
            dir=target.parent, prefix=f".{target.name}-"
        ) as scratch:
            yield pathlib.Path(scratch)


class OneSentenceParser(argparse.ArgumentParser):
    """Ends with one sentence and exit code 2, without repeating the usage."""

    def error(self, message):
        """Say what is wrong and leave."""
        self.exit(2, f"train.py: {' '.join(message.split())}\n")


def run_name(text):
    """One of `RUNS`, or an error that suggests the nearest."""
    if text in RUNS:
        return text
    nearest = difflib.get_close_matches(text, RUNS, n=1)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    raise argparse.ArgumentTypeError(
        f"there is no run {text!r}; {hint}python train.py --list shows all"
    )


def whole_number(minimum):
    """An argument type: an integer from `minimum`."""

    def parse(text):
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or not minimum <= number < 2**32:
            raise argparse.ArgumentTypeError(
                f"must be a whole number from {minimum}, not {text!r}"
            )
        return number

    return parse


def command_line():
    """The options of this script."""
    parser = OneSentenceParser(
        prog="train.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run", nargs="?", default="recommended", type=run_name, help="a name of --list")
    add("--list", action="store_true", help="show all runs, a line each")
    add("--epochs", type=whole_number(1), help="instead of the run's own number")
    add("--seed", type=whole_number(0), default=0, help="weights, order, dropout (0)")
    add(
        "--data",
        default="auto",
        metavar="{auto,fashion-mnist,garments,DIR}",
        help="auto: Fashion-MNIST, or drawn garments where it cannot be had",
    )
    add("--output", type=pathlib.Path, default=pathlib.Path("runs"), metavar="DIR")
    add("--dry-run", action="store_true", help="one epoch on 512 images")
    add("--resume", action="store_true", help="keep the state, go on where it stopped")
    add("--diagnose", action="store_true", help="say what is wrong with the run")
    add("--distribute", action="store_true", help="use all devices, see docs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
