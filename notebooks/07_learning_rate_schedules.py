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
# is what each schedule does to the rate, to the loss and to the accuracy on
# Fashion-MNIST, and what goes wrong with the rate in Keras 3.

# %% [markdown]
# ## Setup
#
# `QUICK=1` in the environment runs everything in seconds, on drawn garments.

# %% tags=["hide-output"]
import inspect
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

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
from recipes.schedules import Exponential, Piecewise, PowerDecay, plot_schedules

QUICK = bool(os.environ.get("QUICK"))
EPOCHS = 4 if QUICK else 12
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
plt.rcParams.update({"figure.dpi": 72, "axes.grid": True, "grid.alpha": 0.3})


# %% [markdown]
# One network for all: the chapter's three layers of 100 ReLU with momentum 0.9. The same
# seed gives every run the same initial weights and, through `epoch_batches`, the same
# order of images, so that runs differ in the learning rate and in nothing else.


# %%
def train(learning_rate, callbacks=()):
    """History of a run at `learning_rate`: a number or a schedule."""
    keras.utils.set_random_seed(SEED)
    model = keras.Sequential([keras.Input((28, 28)), keras.layers.Flatten()])
    for _ in range(3):
        weights = initializer_for("relu")
        model.add(keras.layers.Dense(100, "relu", kernel_initializer=weights))
    model.add(keras.layers.Dense(10, "softmax"))
    model.compile(
        make_optimizer("momentum", learning_rate),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
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
    figure, panels = plt.subplots(1, 3, figsize=(15, 4), layout="constrained")
    columns = ["loss", "val_accuracy", "learning_rate"]
    for label, history in runs.items():
        for axes, column in zip(panels, columns, strict=True):
            axes.plot(history.index + 1, history[column], ".-", label=label)
            axes.set(xlabel="epoch", title=column.replace("_", " "))
    panels[0].set(yscale="log")
    panels[2].set(yscale="log")
    panels[1].legend()
    plt.show()


# %% [markdown]
# ## The problem: no constant rate is right all the time

# %%
constant = {f"constant {rate}": train(rate) for rate in (0.002, 0.05, 0.3)}
plot_runs(constant)

# %% [markdown]
# The small rate falls smoothly and is still on its way at the end. The middle one is fast,
# but its validation accuracy jumps from epoch to epoch: near the bottom its steps are too
# long. The large one shows what too large means.

# %% [markdown]
# ## What the schedules do to the rate
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
# ## What they do to the training

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
