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
# # A network that does not train
#
# **Summary.** One network with six mistakes in it, and a report that names them. We make
# the change of its first finding, train again, read the next report, and so on until it
# has nothing more to say. After each repair comes the score. It stays at chance for a
# while: as long as one mistake is left that stops everything, the others cannot show.

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
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display

from callbacks.lr_finder import LRFinder
from callbacks.monitors import ActivationMonitor, GradientMonitor
from callbacks.schedulers import LearningRateLogger
from recipes.check_model import check_model
from recipes.diagnose import diagnose, plot_diagnosis
from recipes.fashion_mnist import draw_garments, epoch_batches, load, split_and_scale

QUICK = bool(os.environ.get("QUICK"))
SEED = 42

if QUICK:
    data = split_and_scale(
        draw_garments(700), draw_garments(100, seed=1), validation_size=200, scale=None
    )
else:
    data = load("../data/fashion-mnist", scale=None)
# Few images: enough to see a network learn, or not.
x_train, y_train = data.x_train[:5000].astype("float32"), data.y_train[:5000]
x_valid, y_valid = data.x_valid[:2000].astype("float32"), data.y_valid[:2000]
plt.rcParams["figure.dpi"] = 72
plt.close(plt.figure())  # from here on Jupyter shows figures made without pyplot, too

# %% [markdown]
# ## The network
#
# Ten hidden layers of 50 units for ten kinds of garments. All that will be changed stands
# in one dictionary, so that each repair is one entry in it.

# %%
settings = {
    "scale": None,
    "activation": "sigmoid",
    "kernel_initializer": "small",
    "output_activation": "sigmoid",
    "learning_rate": 10.0,
    "epochs": 3 if QUICK else 10,
}


def scaled(x, scale):
    if scale is None:
        return x
    return (x - x_train.mean()) / x_train.std()


def network(settings):
    keras.utils.set_random_seed(SEED)
    model = keras.Sequential([keras.Input((28, 28)), keras.layers.Flatten()])
    for number in range(1, 11):
        weights = settings["kernel_initializer"]
        if weights == "small":
            weights = keras.initializers.RandomNormal(stddev=0.05)
        model.add(
            keras.layers.Dense(
                50,
                settings["activation"],
                kernel_initializer=weights,
                name=f"hidden_{number}",
            )
        )
    output = keras.layers.Dense(10, settings["output_activation"], name="output")
    model.add(output)
    optimizer = keras.optimizers.SGD(settings["learning_rate"])
    loss = "sparse_categorical_crossentropy"
    model.compile(optimizer, loss=loss, metrics=["accuracy"])
    return model


# %% [markdown]
# Three look at the run: `check_model` before the first step, the two monitors during it,
# on 256 images, and the curves after it. `diagnose` puts together what they saw.


# %%
scores = {}


def train_and_diagnose(settings, repair):
    """Train; note the validation accuracy under the name of the repair."""
    model = network(settings)
    x = scaled(x_train, settings["scale"])
    checks = check_model(model, x, y_train)
    monitors = GradientMonitor(x[:256], y_train[:256]), ActivationMonitor(x[:256])
    history = model.fit(
        epoch_batches(x, y_train, 64, seed=SEED),
        epochs=settings["epochs"],
        validation_data=(scaled(x_valid, settings["scale"]), y_valid),
        callbacks=[LearningRateLogger(), *monitors],
        verbose=0,
    )
    scores[repair] = history.history["val_accuracy"][-1]
    tables = dict(
        zip(("gradients", "activations"), (m.to_frame() for m in monitors), strict=True)
    )
    findings = diagnose(history, checks=checks, **tables)
    print(f"validation accuracy {scores[repair]:.1%}, findings: {len(findings)}\n")
    return findings, history, tables


# %% [markdown]
# ## Before any repair

# %%
findings, history, tables = train_and_diagnose(settings, "as it was")
for finding in findings:
    print(finding, end="\n\n")

# %% [markdown]
# Three findings, though nine things look wrong: the first names in its cause the six that
# it explains, and these are not reported on their own. The same on a page:

# %%
figure = plot_diagnosis(history, findings, **tables)
display(figure)

# %% [markdown]
# A finding holds its advice as data, too. `repaired` makes the change of the *first*
# finding, and that one alone.


# %%
def repaired(settings, finding):
    change = dict(finding.change)
    if finding.layer == "output" and "activation" in change:
        change["output_activation"] = change.pop("activation")
    if change.get("learning_rate") == "lower":
        change["learning_rate"] = settings["learning_rate"] / 10
    if change.get("learning_rate") == "search":
        x = scaled(x_train, settings["scale"])
        change["learning_rate"] = (
            LRFinder().run(network(settings), x, y_train).suggestion
        )
    if change.get("epochs") == "higher":
        change["epochs"] = 4 * settings["epochs"]
    return settings | change


def next_repair(settings, findings, repair):
    """Make the change of the first finding, train again, show the next first one."""
    if findings:
        print(f"changed: {findings[0].change}")
        settings = repaired(settings, findings[0])
    findings, history, tables = train_and_diagnose(settings, repair)
    if findings:
        print(findings[0])
    return settings, findings, history, tables


# %% [markdown]
# ## 1. The output
#
# Each garment is of one kind, so the ten outputs should share out a probability of 1.

# %%
settings, findings, history, tables = next_repair(settings, findings, "softmax")

# %% [markdown]
# Right, and no use yet. The next report has one finding less.
#
# ## 2. The inputs
#
# Bytes from 0 to 255 come in, and initial weights are made for numbers near 1.

# %%
settings, findings, history, tables = next_repair(settings, findings, "scaled inputs")

# %% [markdown]
# ## 3. The initial weights
#
# With the inputs in order, the next mistake comes to light: what tells one image from
# another is gone behind ten layers of small weights.

# %%
settings, findings, history, tables = next_repair(
    settings, findings, "Glorot's weights"
)

# %% [markdown]
# ## 4. The activation
#
# The weights were not all. A sigmoid has a slope of at most 1/4, and ten of them in a row
# leave no gradient, whatever the weights.

# %%
settings, findings, history, tables = next_repair(settings, findings, "ReLU")

# %% [markdown]
# ## 5. The learning rate
#
# Signals pass now, in both directions. The rate of 10 was named from the beginning, as the
# last of the list: with the first four mistakes in place no rate would have helped.

# %%
settings, findings, history, tables = next_repair(settings, findings, "rate of 0.01")

# %% [markdown]
# The first repair that shows in the score: the last one that was needed to learn at all.
#
# ## 6. The learning rate, again
#
# 0.01 is the usual rate of plain SGD, and too high for this network: look at the
# validation loss in the picture below.

# %%
display(plot_diagnosis(history, findings, **tables))

# %%
settings, findings, history, tables = next_repair(settings, findings, "rate of 0.001")

# %% [markdown]
# ## 7. The epochs
#
# Smooth now, and slow. The score is lower than with the higher rate: training ended on
# the way down.

# %%
settings, findings, history, tables = next_repair(settings, findings, "more epochs")

# %% [markdown]
# Nothing left to say: the loss still creeps down, but the curves hold no mistake.
#
# ## Score after each repair

# %%
names = list(scores)
shares = 100 * np.array(list(scores.values()))
figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
bars = axes.barh(names, shares, color="#0072b2")
axes.bar_label(bars, fmt="%.0f %%", padding=3)
axes.axvline(10, color="0.45", ls=":")
axes.text(16, 0, "dotted: chance, 10 %", color="0.45", va="center")
axes.set(
    xlim=(0, 100), xlabel="validation accuracy, %", title="after each repair, in order"
)
axes.invert_yaxis()
plt.show()

# %% [markdown]
# Read from the top: four right repairs change nothing that the score could show, and the
# fifth takes it from chance to most of what can be had. Whoever tries one change at a time
# and keeps what helps would have thrown the first four away. That is why the report goes
# from the data by the model to the steps and the curves.
#
# How often the first finding is the root cause, and how often its change is enough, is
# measured on small faulty programs: see
# [When it does not train](../docs/results.md#when-it-does-not-train).
