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
# # Penalties, max-norm, and a guard against NaN
#
# **Summary.** L1, L2 and max-norm all keep weights small, each in its own way, and the
# picture of the weights shows which. Keras's max-norm looks along the wrong axis in a
# convolution; a picture shows that, too. Last, one bad image ruins a run from end to end,
# and a guard makes it a run like any other.

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
import pandas as pd

from callbacks.nonfinite_guard import NonFiniteGuard
from recipes.fashion_mnist import draw_garments, epoch_batches, load, split_and_scale
from recipes.initializers import initializer_for
from recipes.regularizers import MaxNorm, regularization_table, regularize

QUICK = bool(os.environ.get("QUICK"))
EPOCHS = 1 if QUICK else 20
BATCH_SIZE = 128
SEED = 42

if QUICK:
    data = split_and_scale(
        draw_garments(700), draw_garments(100, seed=1), validation_size=200
    )
else:
    data = load("../data/fashion-mnist")
# Few images, so that there is something to overfit.
x_train, y_train = data.x_train[:10_000], data.y_train[:10_000]
plt.rcParams.update({"figure.dpi": 72, "axes.grid": True, "grid.alpha": 0.3})


# %% [markdown]
# One network for all, with the same initial weights and the same order of images. The loss
# is given a second time, as a metric: `loss` and `val_loss` contain the penalties,
# `data_loss` and `val_data_loss` do not, so only these two compare between runs.


# %%
def network():
    keras.utils.set_random_seed(SEED)
    model = keras.Sequential([keras.Input((28, 28)), keras.layers.Flatten()])
    for _ in range(2):
        weights = initializer_for("relu")
        model.add(keras.layers.Dense(100, "relu", kernel_initializer=weights))
    model.add(keras.layers.Dense(10, "softmax"))
    return model


def train(model, x=x_train, epochs=EPOCHS, callbacks=()):
    data_loss = keras.metrics.SparseCategoricalCrossentropy(name="data_loss")
    model.compile(
        keras.optimizers.Adam(),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy", data_loss],
    )
    history = model.fit(
        epoch_batches(x, y_train, BATCH_SIZE, seed=SEED),
        epochs=epochs,
        validation_data=(data.x_valid, data.y_valid),
        callbacks=list(callbacks),
        verbose=0,
    )
    return pd.DataFrame(history.history)


# %% [markdown]
# ## What each does to the weights
#
# - L1 adds $\lambda \sum |w|$ to the loss: every weight is pulled towards 0 with the same
#   force, and those that do not pull back end there.
# - L2 adds $\lambda \sum w^2$: the pull grows with the weight, so large ones shrink most
#   and few end at 0.
# - Max-norm adds nothing: after each step it scales the incoming weights of a unit back
#   to a norm of at most $r$, and leaves them alone below it.
#
# `regularize` gives one of them to every kernel of a model, no bias, and keeps the weights.

# %%
models = {
    "none": network(),
    "L1, 0.0001": regularize(network(), l1=0.0001),
    "L2, 0.001": regularize(network(), l2=0.001),
    "max-norm, 1": regularize(network(), max_norm=1.0),
}
histories = {name: train(model) for name, model in models.items()}

# %% [markdown]
# Look at the upper row for the height of the middle bar, the weights next to 0, and for the
# width; in the lower row for where the norms of the 100 units end.

# %%
figure, panels = plt.subplots(2, 4, figsize=(15, 6), sharex="row", sharey="row")
for (name, model), weights, norms in zip(models.items(), *panels, strict=True):
    kernel = model.layers[1].get_weights()[0]
    weights.hist(kernel.ravel(), bins=np.linspace(-0.4, 0.4, 81), log=True)
    near_zero = np.mean(np.abs(kernel) < 0.005)
    weights.set(title=f"{name}: {near_zero:.0%} within 0.005 of 0", xlabel="weight")
    norms.hist(np.linalg.norm(kernel, axis=0), bins=np.linspace(0, 4, 41))
    norms.set(xlabel="norm of a unit's incoming weights")
panels[0, 0].set(ylabel="weights of the first layer")
panels[1, 0].set(ylabel="units")
figure.tight_layout()
plt.show()

# %% [markdown]
# L1 makes a needle at 0: most pixels do not matter to a unit. L2 makes a narrow bell
# instead. Both have switched whole units off, the bar at norm 0. With max-norm all 100
# units stand at the bound of 1, and none is off.

# %% [markdown]
# ## What each does to the fit
#
# Left the loss that Keras reports, in the middle the same without penalties. Look at how
# far apart the runs are in each of the two.

# %%
figure, panels = plt.subplots(1, 3, figsize=(15, 4), layout="constrained")
for axes, column in zip(
    panels, ["val_loss", "val_data_loss", "data_loss"], strict=True
):
    for name, history in histories.items():
        axes.plot(history.index + 1, history[column], ".-", label=name)
    axes.set(xlabel="epoch", title=column)
panels[2].set(yscale="log")
panels[0].legend()
plt.show()

# %% [markdown]
# By `val_loss` the penalties look bad; that is the penalty itself. By `val_data_loss` the
# runs are hardly apart. What differs is the training loss, right: the plain run has fitted
# its 10,000 images best, and gained little by it. On this small network none of the three
# helps, as the accuracies below say (one seed: a point more or less means nothing). They are
# for networks that can learn their data by heart.

# %%
pd.DataFrame({name: history.iloc[-1] for name, history in histories.items()}).T.round(4)

# %% [markdown]
# The table of a model says what each weight adds to the loss, and how near its bound it is.

# %%
tuned = models["L2, 0.001"]
table = regularization_table(tuned)
loss = tuned.evaluate(data.x_valid, data.y_valid, verbose=0, return_dict=True)["loss"]
penalty = table["penalty"].sum()
print(f"loss {loss:.3f} = data {loss - penalty:.3f} + penalty {penalty:.3f}")
table.round(3)

# %% [markdown]
# In layers you write yourself, L1 and L2 are Keras's own, with two traps that say nothing:

# %%
named = keras.layers.Dense(2, kernel_regularizer="l1l2")
named.build((None, 3))
print("the name l1l2:", float(sum(named.losses)))
late = keras.layers.Dense(2)
late.build((None, 3))
late.kernel_regularizer = keras.regularizers.L2(1.0)
print("set after the build:", late.losses)

# %% [markdown]
# ## The axis of a filter
#
# A filter of a 3x3 convolution over 8 channels has 72 weights, along the axes 0, 1 and 2 of
# the kernel. Keras's `MaxNorm` takes axis 0 unless told otherwise, right for Dense. In the
# picture each bar is one of 16 filters; they should end at the dashed line or below it.

# %%
kernel = np.random.default_rng(SEED).normal(size=(3, 3, 8, 16)).astype("float32")
kernel *= np.linspace(0.02, 0.4, 16, dtype="float32")
bounded = {
    "before": kernel,
    "Keras's MaxNorm(1.0)": keras.constraints.MaxNorm(1.0)(kernel),
    "ours, MaxNorm(1.0)": MaxNorm(1.0)(kernel),
}
figure, panels = plt.subplots(
    1, 3, figsize=(15, 3.5), sharey=True, layout="constrained"
)
for axes, (name, values) in zip(panels, bounded.items(), strict=True):
    norms = np.linalg.norm(keras.ops.convert_to_numpy(values).reshape(-1, 16), axis=0)
    axes.bar(range(16), norms, color=np.where(norms > 1.001, "tab:red", "tab:blue"))
    axes.axhline(1.0, color="black", ls="--")
    axes.set(title=f"{name}: largest norm {norms.max():.2f}", xlabel="filter")
panels[0].set(ylabel="norm of the filter")
plt.show()

# %% [markdown]
# Keras has bounded each column of three weights, which were below 1 already, and none of
# the filters. `regularize` knows the axes of every kind of layer, and refuses those where
# there is no right one.
#
# The second fault shows only after many steps: weights well inside the bound should not
# change at all.

# %%
ours = theirs = np.full((1, 1), 1e-4, "float32")
steps, decay = 30 if QUICK else 2000, []
for _ in range(steps):
    ours, theirs = MaxNorm(1.0)(ours), keras.constraints.MaxNorm(1.0)(theirs)
    decay.append((float(ours[0, 0]), float(theirs[0, 0])))
figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
axes.plot(np.array(decay) * 1e4, lw=2, label=["ours", "Keras's"])
axes.set(xlabel="applications, one for each training step", ylabel="weight / 0.0001")
axes.legend()
plt.show()

# %% [markdown]
# Keras divides by the norm plus 1e-7, so each step takes 1e-7 off the norm: a unit that
# learns slowly is gone after 1,000 steps.

# %% [markdown]
# ## One bad image
#
# One pixel of one of the images is NaN, so one batch in each epoch is bad. The same run
# four times: with good data, with the bad image, with Keras's `TerminateOnNaN` against it,
# and with the guard. Look at where each curve goes after the first bad batch.

# %%
poisoned = x_train.copy()
poisoned[len(poisoned) // 2, 14, 14] = np.nan

guard = NonFiniteGuard("skip", verbose=0)
short = 1 if QUICK else 6
runs = {
    "good data": (x_train, []),
    "bad image": (poisoned, []),
    "bad image, TerminateOnNaN": (poisoned, [keras.callbacks.TerminateOnNaN()]),
    "bad image, NonFiniteGuard": (poisoned, [guard]),
}
results, broken = {}, {}
for name, (images, callbacks) in runs.items():
    model = network()
    losses = []
    losses_of_batches = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs, losses=losses: losses.append(
            logs["loss"]
        )
    )
    history = train(model, images, short, [*callbacks, losses_of_batches])
    results[name] = losses, history["val_accuracy"]
    weights = np.concatenate([w.ravel() for w in model.get_weights()])
    broken[name] = np.mean(~np.isfinite(weights))

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4), layout="constrained")
widths = [6, 6, 2, 2]  # so that curves on top of each other are seen
for (name, (losses, accuracy)), width in zip(results.items(), widths, strict=True):
    left.plot(losses, lw=width, label=name)
    right.plot(accuracy.index + 1, accuracy, "o-", lw=width, label=name)
left.set(xlabel="batch", ylabel="loss, mean since the epoch began")
right.set(xlabel="epoch", ylabel="validation accuracy")
right.legend()
plt.show()
pd.Series(broken, name="share of weights that are NaN")

# %% [markdown]
# Only a thousandth of the weights is NaN, those of the bad pixel, and from that batch on
# the network guesses. Its loss is finite: TensorFlow's ReLU makes 0 of NaN, so the answer is
# the same for every image, and the loss that of guessing, ln 10 = 2.3. `TerminateOnNaN`
# looks at the loss, and never stops. The guard looks at the weights, too, and its curve runs
# along that of the good data. What happened is in its table:

# %%
guard.to_frame()

# %% [markdown]
# ## What to remember
#
# - L1 for few weights, L2 for small ones, max-norm for large rates and dropout.
# - Compare `val_data_loss`, not `val_loss`, between runs with different penalties.
# - In convolutions, say which axes make up a filter; `regularize` does.
# - `NonFiniteGuard` first in the list, then the callbacks that write weights.
#
# Reference: Géron, *Hands-On Machine Learning*, 3rd edition, chapter 11; Srivastava et
# al., [Dropout](https://jmlr.org/papers/v15/srivastava14a.html), 2014.

# %%
print(f"keras {keras.version()} on {keras.backend.backend()}, numpy {np.__version__}")
print(f"{', '.join(keras.distribution.list_devices())}, {pd.Timestamp.now():%Y-%m-%d}")
