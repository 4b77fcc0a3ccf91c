# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Learning-rate schedules
#
# **Summary.** A large learning rate gets down quickly and then rattles; a small one would
# settle but takes for ever. A schedule begins with the one and ends with the other. Here
# is how to find the rate to begin with, what each schedule does to it, to the loss and to
# the accuracy on Fashion-MNIST, and what goes wrong with the rate in Keras 3.

# %% [markdown]
# ## How to choose, in a minute
#
# 1. **Find the rate**: `LRFinder().run(model, x, y).suggestion`, with the optimizer and the
#    batch size you will train with. It is on the safe side; a schedule may begin higher.
# 2. **Let it fall** by a factor of 10 to 100 or more. Which curve matters less than that it
#    falls.
#
# | your run | schedule |
# |---|---|
# | has a fixed number of epochs | `Cosine`, or `Exponential` |
# | is short, and you can push it | `OneCycle`, its peak up to ten times the suggestion |
# | has an open end | `PowerDecay`; `PlateauScheduler`, if you would watch it anyway |
# | may be stopped at the end of any cycle | `Cosine(restarts=True)`, `Cyclical` |
# | follows a paper | `Piecewise`, `Joined`, all of it `InEpochs` |
# | jumps at the start, or has large batches | `Warmup` around any of them |
#
# 3. **Look at it** before you train: `plot_schedules`.

# %% [markdown]
# ## Setup
#
# `QUICK=1` in the environment runs everything in seconds, on drawn garments.

# %% tags=["hide-output"]
# In Colab: unpack and install the zip file of the repository, which you have uploaded.
import os
import pathlib
import shutil
import subprocess
import sys

if "google.colab" in sys.modules and not os.path.exists("../recipes"):
    shutil.unpack_archive("keras-training-recipes.zip", "repository")
    os.chdir(next(pathlib.Path("repository").rglob("notebooks")))
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", ".."], check=True)

# %% tags=["hide-output"]
import inspect
import logging
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from callbacks.lr_finder import LRFinder
from callbacks.schedulers import (
    ExponentialScheduler,
    LearningRateLogger,
    PiecewiseScheduler,
    PlateauScheduler,
    PowerScheduler,
)
from recipes.fashion_mnist import draw_garments, epoch_batches, load, split_and_scale
from recipes.initializers import initializer_for
from recipes.optimizers import make_optimizer
from recipes.schedules import (
    Cosine,
    Cyclical,
    Exponential,
    Floor,
    InEpochs,
    Joined,
    OneCycle,
    Piecewise,
    PowerDecay,
    Warmup,
    plot_schedules,
)

QUICK = bool(os.environ.get("QUICK"))
EPOCHS, NUM_LAYERS = (4, 1) if QUICK else (10, 3)
BATCH_SIZE = 128
SEED = 42

if QUICK:
    data = split_and_scale(
        draw_garments(1200), draw_garments(200, seed=1), validation_size=200
    )
else:
    data = load("../data/fashion-mnist")

STEPS_PER_EPOCH = -(-len(data.x_train) // BATCH_SIZE)
TOTAL_STEPS = EPOCHS * STEPS_PER_EPOCH
# TensorFlow warns of each new function, and each schedule is one.
logging.getLogger("tensorflow").setLevel("ERROR")
plt.rcParams.update({"figure.dpi": 52, "font.size": 12})
plt.rcParams.update({"axes.grid": True, "grid.alpha": 0.3})


# %% [markdown]
# One network for all: the chapter's three layers of 100 ReLU with momentum 0.9. The same
# seed gives every run the same initial weights and, through `epoch_batches`, the same
# order of images, so that runs differ in the learning rate and in nothing else.


# %%
def build(learning_rate):
    """A fresh model, compiled with `learning_rate`: a number or a schedule."""
    keras.utils.set_random_seed(SEED)
    model = keras.Sequential([keras.Input((28, 28)), keras.layers.Flatten()])
    for _ in range(NUM_LAYERS):
        weights = initializer_for("relu")
        model.add(keras.layers.Dense(100, "relu", kernel_initializer=weights))
    model.add(keras.layers.Dense(10, "softmax"))
    model.compile(
        make_optimizer("momentum", learning_rate),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def train(learning_rate, callbacks=()):
    """History of a run at `learning_rate`: a number or a schedule."""
    model = build(learning_rate)
    history = model.fit(
        epoch_batches(data.x_train, data.y_train, BATCH_SIZE, seed=SEED),
        epochs=EPOCHS,
        validation_data=(data.x_valid, data.y_valid),
        callbacks=[LearningRateLogger(), *callbacks],
        verbose=0,
    )
    return pd.DataFrame(history.history)


def plot_runs(runs):
    """Training loss, validation accuracy and rate of each run, by epoch."""
    figure, panels = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    columns = ["loss", "val_accuracy", "learning_rate"]
    for label, history in runs.items():
        for axes, column in zip(panels, columns, strict=True):
            axes.plot(history.index + 1, history[column], ".-", label=label)
            axes.set(xlabel="epoch", title=column.replace("_", " "))
    panels[2].set(yscale="log")
    panels[2].yaxis.set_minor_formatter("")
    panels[1].legend()
    plt.show()


# %% [markdown]
# ## Too low, right, slightly high, far too high
#
# Four constant rates from the same weights, and the loss of each batch, smoothed. Which
# curve is lowest after a hundred steps, and which at the end?

# %%
model = build(0.001)
model.optimizer.build(model.trainable_variables)
STATE = [*model.variables, *model.optimizer.variables]
START = [np.array(keras.ops.convert_to_numpy(variable)) for variable in STATE]


def smoothed_losses(learning_rate, num_steps):
    """Running mean of the batches' losses from the first step on."""
    for variable, value in zip(STATE, START, strict=True):
        variable.assign(value)
    model.optimizer.learning_rate = learning_rate
    rng = np.random.default_rng(SEED)
    losses = []
    for _ in range(num_steps):
        rows = rng.choice(len(data.x_train), BATCH_SIZE, replace=False)
        loss, _ = model.train_on_batch(data.x_train[rows], data.y_train[rows])
        losses.append(float(loss))
    return pd.Series(losses).ewm(alpha=0.03).mean()


FOUR_RATES = {
    "far too high": (1.0, "#D55E00", "center"),
    "slightly high": (0.2, "#E69F00", "bottom"),
    "too low": (0.001, "#0072B2", "top"),
    "right": (0.02, "#009E73", "center"),
}
num_steps = 20 if QUICK else 800
figure, axes = plt.subplots(figsize=(10, 4.6), layout="constrained")
for label, (rate, color, side) in FOUR_RATES.items():
    losses = smoothed_losses(rate, num_steps)
    axes.plot(losses, color=color, lw=2)
    place, text = (num_steps, losses.iloc[-1]), f"  {label}: {rate:g}"
    if losses.max() > 5:  # it leaves the picture at the top
        place, text = (num_steps / 100, 3.5), f"{text}, up to {losses.max():.0e}"
    axes.annotate(text, place, color=color, va=side, size=13, annotation_clip=False)
ticks = [0.3, 0.5, 1, 2, 4]
axes.set(xlim=(-num_steps / 40, num_steps), ylim=(0.3, 4), yscale="log")
axes.set(xlabel="step", ylabel="training loss")
axes.set_yticks(ticks, map(str, ticks))
axes.minorticks_off()
plt.show()

# %% [markdown]
# Too low is safe and slow. Slightly high is the treacherous one: its loss does fall, and then
# stays high. Far too high explodes within a few steps. The right rate is the fast one that
# is also lowest at the end.

# %% [markdown]
# ## Finding it
#
# `LRFinder` trains at a rate that grows from step to step, and puts the model back as it
# was. Look where the black curve falls, where it is lowest, and where it shoots up.

# %%
for variable, value in zip(STATE, START, strict=True):
    variable.assign(value)
finder = LRFinder(num_steps=60 if QUICK else 400)
finder.run(model, data.x_train, data.y_train, batch_size=BATCH_SIZE)
finder.plot()

# %%
finder.suggestions.round(4)

# %% [markdown]
# `finder.suggestion` is the first rule's: a tenth of the rate where the loss is lowest. It
# tells the order of magnitude, on the safe side. A schedule, which does not stay there, may
# begin higher; for the peak of a one-cycle the minimum itself is the limit.

# %% [markdown]
# ## The problem: no constant rate is right all the time

# %%
constant = {f"constant {rate}": train(rate) for rate in (0.002, 0.05)}
plot_runs(constant)

# %% [markdown]
# The small rate falls smoothly and is still on its way at the end. The larger one is fast,
# but its validation accuracy jumps from epoch to epoch: near the bottom its steps are too
# long.

# %% [markdown]
# ## The whole family
#
# All schedules of this collection over 1000 steps, with a largest rate of 0.1. Row by row:
# those that fall smoothly, in stairs or to a floor; that rise once first; that rise again
# and again. Dotted: the momentum that goes with `OneCycle`. (`InEpochs` has its boundaries
# in epochs, here of 100 steps.)

# %%
family = {
    "PowerDecay": PowerDecay(0.1, 100),
    "Exponential": Exponential(0.1, 700),
    "Cosine": Cosine(0.1, 1000),
    "Piecewise": Piecewise([400, 800], [0.1, 0.03, 0.01]),
    "InEpochs: Piecewise by epoch": InEpochs(
        Piecewise([2, 4, 6, 8], [0.1, 0.07, 0.05, 0.03, 0.01]), steps_per_epoch=100
    ),
    "Floor: under PowerDecay": Floor(PowerDecay(0.1, 100), 0.03),
    "Warmup: before Cosine": Warmup(Cosine(0.1, 800), 200),
    "OneCycle": OneCycle(0.1, 1000),
    "OneCycle, linear, three phases": OneCycle(
        0.1, 1000, anneal="linear", three_phase=True
    ),
    "Cosine, restarts": Cosine(0.1, 250, restarts=True),
    "Cosine, longer and lower restarts": Cosine(
        0.1, 143, restarts=True, length_factor=2, peak_factor=0.6
    ),
    "Joined: Cyclical, then Exponential": Joined(
        [Cyclical(0.02, 0.1, 125), Exponential(0.02, 500)], [500]
    ),
    "Cyclical, triangular": Cyclical(0.02, 0.1, 125),
    "Cyclical, triangular2": Cyclical(0.02, 0.1, 125, mode="triangular2"),
    "Cyclical, exp_range": Cyclical(
        0.02, 0.1, 125, mode="exp_range", factor_per_step=0.9985
    ),
}
figure = plot_schedules(family, 1000)
figure.set_size_inches(11, 8.5)
for i, axes in enumerate(figure.axes[: len(family)]):
    axes.set(ylim=(0, 0.105), yticks=[0, 0.05, 0.1], xticks=[0, 500, 1000])
    axes.tick_params(labelleft=i % 3 == 0, labelbottom=i >= len(family) - 3)
figure  # noqa: B018

# %% [markdown]
# ## Three of them at work
#
# - power: $\eta(t) = \eta_0 / (1 + t/s)^c$, fast at first and then ever more slowly
# - exponential: $\eta(t) = \eta_0 \cdot 0.1^{t/s}$, the same factor over equal times
# - piecewise constant: a list of rates and of the steps at which they begin
#
# $t$ is the optimizer's step. Schedules are objects that the compiled training step evaluates.

# %%
schedules = {
    "power": PowerDecay(0.05, decay_steps=TOTAL_STEPS // 10),
    "exponential": Exponential(0.05, decay_steps=TOTAL_STEPS / 1.5),
    "piecewise": Piecewise(
        [TOTAL_STEPS // 2, TOTAL_STEPS * 4 // 5], [0.05, 0.01, 0.002]
    ),
}
plot_schedules(schedules, TOTAL_STEPS)

# %% [markdown]
# Inside there is little more than the formula:

# %%
print(inspect.getsource(PowerDecay.__call__))

# %% [markdown]
# ## What the three do to the training

# %%
scheduled = {label: train(schedule) for label, schedule in schedules.items()}
plot_runs({"constant 0.05": constant["constant 0.05"], **scheduled})

# %% [markdown]
# Compare the right panel with the left: where `piecewise` cuts the rate, its training
# loss drops a step, and with all three the validation accuracy jumps less and ends above
# that of the constant rate.

# %% [markdown]
# ## The same by epochs, as callbacks
#
# Callbacks count in epochs, and they can react. `PlateauScheduler` cuts the rate when the
# validation loss has not fallen for some epochs; `schedule=` gives it a formula to cut.

# %%
power = PowerScheduler(0.05, decay_epochs=EPOCHS / 10, per="step")
with_callbacks = {
    "power by step": train(0.05, [power]),
    "exponential": train(0.05, [ExponentialScheduler(0.05, decay_epochs=EPOCHS / 1.5)]),
    "piecewise": train(
        0.05,
        [PiecewiseScheduler([EPOCHS // 2, EPOCHS * 4 // 5], [0.05, 0.01, 0.002])],
    ),
    "plateau": train(0.05, [PlateauScheduler(factor=0.2, patience=1)]),
    "plateau on power": train(
        0.05, [PlateauScheduler(factor=0.2, patience=1, schedule=power.rate_at)]
    ),
}
plot_runs(with_callbacks)

# %% [markdown]
# With a patience of one epoch, the plateau took every wobble for a standstill: it cut so
# often that the rate was gone before the loss was down. Give it several epochs.

# %% [markdown]
# ## All together
#
# One seed each: differences of less than about half a point of accuracy say nothing.

# %%
runs = {
    **constant,
    **{f"{label}, in the optimizer": run for label, run in scheduled.items()},
    **{f"{label}, callback": run for label, run in with_callbacks.items()},
}
table = pd.DataFrame(
    {
        label: {
            "training loss": run["loss"].iloc[-1],
            "validation loss": run["val_loss"].iloc[-1],
            "validation accuracy": run["val_accuracy"].iloc[-1],
            "its largest fall in the last half": -run["val_accuracy"]
            .iloc[EPOCHS // 2 :]
            .diff()
            .min(),
        }
        for label, run in runs.items()
    }
).T
table.round(4)

# %% [markdown]
# ## What goes wrong with the rate in Keras 3
#
# `SGD(decay=...)`, the book's power schedule, is ignored with a warning:

# %%
import warnings

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    keras.optimizers.SGD(0.01, decay=1e-4)
print(caught[0].message)

# %% [markdown]
# With a schedule, Keras logs no learning rate, and `optimizer.learning_rate` read after a
# step is already that of the next one. An integer rate turns into zero without a word:

# %%
cut = keras.optimizers.schedules.ExponentialDecay(1, decay_steps=10, decay_rate=0.5)
print("Keras, from 1:", [float(cut(step)) for step in (0, 5, 10)])
ours = Exponential(1, decay_steps=10, factor=0.5)
print("ours, from 1: ", [round(float(ours(step)), 4) for step in (0, 5, 10)])

# %% [markdown]
# And where boundaries do not increase, rates add up; ours refuses them:

# %%
tangled = keras.optimizers.schedules.PiecewiseConstantDecay([5, 2], [1.0, 0.1, 0.01])
print("Keras at step 3:", float(tangled(3)))
try:
    Piecewise([5, 2], [1.0, 0.1, 0.01])
except ValueError as error:
    print("ours:", error)

# %% [markdown]
# ## What to remember
#
# - Take the largest rate that still trains, and let it fall by a factor of 10 to 100.
# - Power decay when the length of the run is open, exponential when it is known.
# - In the optimizer it is saved with the model; as a callback it can react and is logged.
# - Do not combine two callbacks that set the rate: the later one wins.
#
# Reference: Géron, *Hands-On Machine Learning*, 3rd edition, chapter 11; Senior et al.,
# [An Empirical Study of Learning Rates](https://doi.org/10.1109/ICASSP.2013.6638963),
# 2013.

# %%
print(f"keras {keras.version()} on {keras.backend.backend()}, numpy {np.__version__}")
print(f"{', '.join(keras.distribution.list_devices())}, {pd.Timestamp.now():%Y-%m-%d}")
