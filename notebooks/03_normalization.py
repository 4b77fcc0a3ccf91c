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
# # Normalization
#
# **Summary.** A layer learns best from inputs with mean 0 and deviation 1.
# Standardizing gives them to the first layer, batch and layer normalization to all the
# others. Here is why it matters, what the two compute, where to put them, the three
# surprises of batch normalization, and what it can and cannot do for a hundred layers.

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
from keras import layers

from recipes.check_model import signal_table
from recipes.fashion_mnist import draw_garments, epoch_batches, load, split_and_scale
from recipes.layers import HighwayDense, dense_block
from recipes.optimizers import make_optimizer

QUICK = bool(os.environ.get("QUICK"))
SEED = 42


def images(scale):
    """Fashion-MNIST, its pixels from 0 to 255 if `scale` is `None`."""
    if QUICK:
        parts = draw_garments(700), draw_garments(100, seed=1)
        return split_and_scale(*parts, scale=scale, validation_size=200)
    return load("../data/fashion-mnist", scale=scale)


raw, unit, data = images(None), images("unit"), images("standardize")

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
plt.rcParams.update({"figure.dpi": 50, "font.size": 12})
plt.rcParams.update({"axes.grid": True, "grid.alpha": 0.3})

# %% [markdown]
# ## Why inputs must be scaled
#
# The smallest network there is: two weights, to tell T-shirts from trousers by an
# image's mean brightness, 0 to 255, and the width of the garment, 0 to 1. No bias and
# the squared error, so that the whole loss is a bowl over two weights, which can be
# drawn.

# %%
rows = np.flatnonzero(np.isin(raw.y_train, [0, 1]))[:2000]
pictures = raw.x_train[rows].astype("float64")
target = np.where(raw.y_train[rows] == 0, 1.0, -1.0)  # T-shirt, trouser
brightness = pictures.mean(axis=(1, 2))
width = (pictures > 0).any(axis=1).mean(axis=1)
x = np.stack([brightness, width], axis=1)
scaled = {
    "unscaled": x,
    "min-max": (x - x.min(axis=0)) / np.ptp(x, axis=0),
    "standardized": (x - x.mean(axis=0)) / x.std(axis=0),
}

# %% [markdown]
# Twenty steps of gradient descent from the same weights, each time with a rate of nine
# tenths of that at which descent diverges. Along a line the loss is the same, from one
# line to the next it is ten times as high above the least. Look at how far the path
# gets towards the star.

# %%
grid = np.stack(np.meshgrid(*[np.linspace(-6, 6, 121)] * 2), axis=-1)
figure, panels = plt.subplots(1, 3, figsize=(14, 5.3), layout="constrained")
for axes, (name, x) in zip(panels, scaled.items(), strict=True):
    curvature = 2 * x.T @ x / len(x)
    smallest, largest = np.linalg.eigvalsh(curvature)
    best = np.linalg.solve(x.T @ x, x.T @ target)
    above = np.einsum("...i,ij,...j", grid - best, curvature / 2, grid - best)
    w, rate = np.array([5.0, -4.0]), 0.9 * 2 / largest
    path = [w]
    for _ in range(20):
        w = w - rate * 2 * x.T @ (x @ w - target) / len(x)
        path.append(w)
    axes.contour(*grid.T, above.T, 10.0 ** np.arange(-3, 7), colors=BLUE, linewidths=1)
    axes.plot(*np.transpose(path), "o-", color=RED, ms=5)
    axes.plot(*best, "*", color="black", ms=16)
    ratio = np.format_float_positional(largest / smallest, 2, fractional=False)
    axes.set(title=f"{name}\nrate {rate:.2g}, curvatures {ratio.rstrip('.')} to 1")
    axes.set(xlabel="weight of brightness", xlim=(-6, 6), ylim=(-6, 6), aspect="equal")
panels[0].set(ylabel="weight of width")
plt.show()

# %% [markdown]
# The gradient of a weight is the error times the weight's input. So the rate must suit
# the large input, and with it the path crosses from wall to wall while the weight of
# the small one hardly moves. Min-max brings the inputs to one size. But they are never
# negative, so in each row both weights want to move the same way, or both the other:
# the valley runs aslant, and the path creeps along it. With mean 0 as well the bowl is
# nearly round, and downhill is where the star is.
#
# ## Four ways to scale the images
#
# The same for real: 10,000 images, two layers of 100 ReLU, plain SGD for two epochs,
# for each kind of inputs at six rates. `Normalization` is a layer that has looked at
# the training data once, with `adapt`; batch normalization as the first layer looks at
# each batch. Both travel with the model, so nobody can forget to scale what it is
# given.

# %%
NUM_IMAGES = 300 if QUICK else 10_000
RATES = [0.01, 1.0] if QUICK else [1e-5, 1e-4, 0.001, 0.01, 0.1, 1.0]


def adapted():
    layer = layers.Normalization()
    layer.adapt(raw.x_train[:NUM_IMAGES].reshape(NUM_IMAGES, -1).astype("float32"))
    return layer


ways = {
    "0 to 255": (raw, []),
    "0 to 1": (unit, []),
    "standardized": (data, []),
    "0 to 255, Normalization": (raw, [adapted()]),
    "0 to 255, BatchNormalization": (raw, [layers.BatchNormalization()]),
}
accuracy = pd.DataFrame(index=list(ways), columns=RATES, dtype=float)
for way, (part, first) in ways.items():
    keras.utils.set_random_seed(SEED)
    hidden = [*first, *dense_block(100, "relu"), *dense_block(100, "relu")]
    model = keras.Sequential(
        [keras.Input((28, 28)), layers.Flatten(), *hidden, layers.Dense(10, "softmax")]
    )
    model.compile(
        make_optimizer("sgd"), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    start = model.get_weights()
    x, y = part.x_train[:NUM_IMAGES].astype("float32"), part.y_train[:NUM_IMAGES]
    x_valid = part.x_valid.astype("float32")
    for rate in RATES:
        model.set_weights(start)
        model.optimizer.learning_rate = rate
        model.fit(epoch_batches(x, y, 128, seed=SEED), epochs=2, verbose=0)
        accuracy.loc[way, rate] = model.evaluate(x_valid, part.y_valid, 1000, 0)[1]

figure, axes = plt.subplots(figsize=(9, 3.6), layout="constrained")
axes.imshow(accuracy, cmap="viridis", aspect="auto", vmin=0.1, vmax=0.85)
for (row, column), value in np.ndenumerate(accuracy):
    color = "white" if value < 0.5 else "black"
    axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=color)
axes.set_xticks(range(len(RATES)), [f"{rate:g}" for rate in RATES])
axes.set_yticks(range(len(ways)), list(ways))
axes.set(xlabel="learning rate", title="validation accuracy after two epochs")
axes.grid(visible=False)
plt.show()

# %% [markdown]
# Raw pixels need a rate hundreds of times smaller, learn less even at the best one, and
# above it soon nothing. The three that standardize agree with each other, and forgive a
# rate that is ten times off. A scale of 0 to 1 is in between: the right size, but not
# centred.
#
# ## What the two normalizations compute
#
# What happens to the inputs of the first layer happens to those of every other, and
# worse: they change while the layers below learn. So one normalizes there as well. Of
# the pre-activations $z$ of a batch, with a row $i$ for each image and a column $j$ for
# each unit,
#
# $$\text{batch normalization:}\quad y_{ij} = \gamma_j \frac{z_{ij} - \mu_j}
# {\sqrt{\sigma_j^2 + \varepsilon}} + \beta_j, \qquad
# \text{layer normalization:}\quad y_{ij} = \gamma_j \frac{z_{ij} - \mu_i}
# {\sqrt{\sigma_i^2 + \varepsilon}} + \beta_j$$
#
# with mean $\mu$ and variance $\sigma^2$ of a column in the one, of a row in the other;
# $\gamma$ and $\beta$ are learned, and $\varepsilon$ = 0.001 keeps from dividing by 0.
# Look for the stripes that each of the two takes away.

# %%
keras.utils.set_random_seed(SEED)
dense = layers.Dense(40, kernel_initializer="he_normal")
x = unit.x_train[:24].reshape(24, -1)
x = x[x.mean(axis=1).argsort()]  # from dark to bright
z = dense(x)
z = keras.ops.convert_to_numpy(z)
batch_norm, layer_norm = layers.BatchNormalization(), layers.LayerNormalization()
shown = {
    "pre-activations": z,
    "batch normalization: each column": batch_norm(z, training=True),
    "layer normalization: each row": layer_norm(z),
}
figure, panels = plt.subplots(1, 3, figsize=(14, 3.8), layout="constrained")
for axes, (title, values) in zip(panels, shown.items(), strict=True):
    values = keras.ops.convert_to_numpy(values)
    image = axes.imshow(values, cmap="PuOr", vmin=-3, vmax=3, aspect="auto")
    axes.set(title=title, xlabel="unit", xticks=[], yticks=[])
    axes.grid(visible=False)
panels[0].set(ylabel="image, from dark to bright")
figure.colorbar(image, ax=panels, extend="both")
plt.show()

# %% [markdown]
# On the left the rows grow stronger downwards, because bright images give large sums,
# and some columns have one colour: units that are positive, or negative, for nearly all
# images, so that a ReLU behind them is always on, or always off. Batch normalization
# takes away the columns: now each unit is on for some images and off for others. Layer
# normalization evens out the rows, so that a dark image counts as much as a bright one,
# and keeps the columns.
#
# ### By hand
#
# Keras's layer against the formula in NumPy. While training it also keeps moving
# averages, $\mu_{\text{moving}} \leftarrow m\,\mu_{\text{moving}} + (1 - m)\,\mu_j$
# with the momentum $m$ = 0.99, the same for the variance, and uses them in place of the
# batch's own once training is over.

# %%
rng = np.random.default_rng(SEED)
gamma, beta = rng.normal(size=(2, 40)).astype("float32")
layer = layers.BatchNormalization(momentum=0.99)
layer.build(z.shape)
layer.gamma.assign(gamma)
layer.beta.assign(beta)


def normalized(z, mean, variance):
    return gamma * (z - mean) / np.sqrt(variance + 0.001) + beta


mean, variance = z.mean(axis=0), z.var(axis=0)
moving_mean = 0.99 * 0 + 0.01 * mean  # starts at 0
moving_variance = 0.99 * 1 + 0.01 * variance  # starts at 1
pairs = {
    "output, training": (layer(z, training=True), normalized(z, mean, variance)),
    "moving mean": (layer.moving_mean, moving_mean),
    "moving variance": (layer.moving_variance, moving_variance),
    "output, inference": (
        layer(z, training=False),
        normalized(z, moving_mean, moving_variance),
    ),
}
for name, (keras_has, by_hand) in pairs.items():
    difference = np.abs(keras.ops.convert_to_numpy(keras_has) - by_hand).max()
    print(f"{name:18} largest difference {difference:.0e}")

# %% [markdown]
# The same, up to rounding. (The variance is that of the batch, with division by the
# number of rows, in the moving average, too.)
#
# ### Nothing is lost
#
# A layer that forces mean 0 and deviation 1 on its outputs could do less than one that
# does not. That is what $\gamma$ and $\beta$ are for: with
# $\gamma_j = \sqrt{\sigma_j^2 + \varepsilon}$ and $\beta_j = \mu_j$ the normalization
# is undone, so all that the network could compute before, it still can.

# %%
layer.gamma.assign(np.sqrt(variance + 0.001))
layer.beta.assign(mean)
difference = keras.ops.convert_to_numpy(layer(z, training=True)) - z
print(f"largest difference between output and input: {np.abs(difference).max():.0e}")

# %% [markdown]
# ### What no longer matters
#
# The scale of the weights below, and their bias: the mean and the deviation of the
# batch take them out again. So initial weights matter less, and a bias in front of
# batch normalization is a waste of memory: `use_bias=False`, as `dense_block` has it.

# %%
relu_of = {
    "ReLU(z)": keras.ops.relu,
    "ReLU(batch normalization(z))": lambda z: keras.ops.relu(
        layers.BatchNormalization(epsilon=1e-7)(z, training=True)
    ),
}
changes = {"weights times 10": 10 * z, "bias plus 5": z + 5}
pd.DataFrame(
    {
        name: {
            change: float(keras.ops.max(keras.ops.abs(function(new) - function(z))))
            for change, new in changes.items()
        }
        for name, function in relu_of.items()
    }
).rename_axis("largest change of the output").round(4)

# %% [markdown]
# ## First surprise: an image's output depends on its company
#
# The first image, in two batches that have nothing else in common, through a layer in
# training, and once training is over:

# %%
other = dense(unit.x_train[100:124].reshape(24, -1))
company = np.concatenate([z[:1], keras.ops.convert_to_numpy(other)[1:]])
kinds = {
    "batch normalization, training": (layers.BatchNormalization(), True),
    "batch normalization, inference": (layers.BatchNormalization(), False),
    "layer normalization, always": (layers.LayerNormalization(), True),
}
for name, (layer, training) in kinds.items():
    change = layer(z, training=training)[0] - layer(company, training=training)[0]
    print(f"{name:31} {float(keras.ops.max(keras.ops.abs(change))):.2f}")

# %% [markdown]
# In training, an image gets a little noise from the others in its batch, other noise in
# each epoch: that is why batch normalization also regularizes. In inference it must not
# be so, hence the moving averages. Layer normalization needs none. (On several devices
# each normalizes by its own part of the batch; `BatchNormalization(synchronized=True)`
# by the whole one, on TensorFlow.)
#
# ## Second surprise: good in training, bad in validation
#
# Moving averages start at 0 and 1 and lag behind. After $n$ steps they still hold $m^n$
# of where they started, and what they took in long ago is from weights that are gone.
# Each layer adds to it. Ten layers of 100, on 2,000 images in batches of 64, so only 32
# steps an epoch, with Keras's momentum of 0.99, and with 0.9:

# %%
x, y = data.x_train[:2000], data.y_train[:2000]
DEPTH, EPOCHS = (2, 2) if QUICK else (10, 12)


def network(momentum):
    """Dense, batch normalization, ReLU, and that `DEPTH` times."""
    keras.utils.set_random_seed(SEED)
    hidden = []
    for _ in range(DEPTH):
        dense, norm, relu = dense_block(100, "relu", normalization="batch")
        norm.momentum = momentum
        hidden += [dense, norm, relu]
    model = keras.Sequential(
        [keras.Input((28, 28)), layers.Flatten(), *hidden, layers.Dense(10, "softmax")]
    )
    model.compile(
        make_optimizer("momentum", 0.01),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


models = {momentum: network(momentum) for momentum in (0.99, 0.9)}
figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.2), layout="constrained")
for (momentum, model), color in zip(models.items(), [RED, BLUE], strict=True):
    history = model.fit(
        epoch_batches(x, y, 64, seed=SEED),
        epochs=EPOCHS,
        validation_data=(data.x_valid, data.y_valid),
        validation_batch_size=1000,
        verbose=0,
    ).history
    steps = np.arange(0, 32 * EPOCHS + 1)
    left.plot(steps / 32, momentum**steps, color=color, label=f"momentum {momentum}")
    epochs = np.arange(1, EPOCHS + 1)
    right.plot(epochs, history["val_accuracy"], "o-", color=color)
right.plot(epochs, history["accuracy"], "--", color="black", label="training, both")
left.set(xlabel="epoch of 32 steps", ylabel="share of the start values", ylim=(0, 1))
right.set(xlabel="epoch", ylabel="accuracy", ylim=(0, 1))
left.legend()
right.legend(loc="lower right")
plt.show()

# %% [markdown]
# Both networks train alike, to the last digit: training does not use the moving
# averages. But for the first epochs the red one is far worse in validation than in
# training, which looks like overfitting and is none. A momentum of 0.9 is the remedy
# where an epoch has few steps. Another needs no training at all: set the averages to
# those of the training images, once, at the end. Here after a single epoch:

# %%
model = network(0.99)
model.fit(epoch_batches(x, y, 64, seed=SEED), epochs=1, verbose=0)
lagging = model.evaluate(data.x_valid, data.y_valid, 1000, verbose=0)[1]
for layer in model.layers:
    if isinstance(layer, layers.BatchNormalization):
        layer.momentum = 0.0  # the next batch counts, and nothing else
model(x, training=True)
refreshed = model.evaluate(data.x_valid, data.y_valid, 1000, verbose=0)[1]
print(f"validation accuracy {lagging:.2f}, with fresh averages {refreshed:.2f}")

# %% [markdown]
# ## Third surprise: batches of one image
#
# With one row, each unit's mean is that row, so $z - \mu$ = 0: whatever the image, the
# output is $\beta$, here 7.

# %%
for layer in (layers.BatchNormalization(), layers.LayerNormalization()):
    layer.build((None, 40))
    layer.beta.assign(np.full(40, 7.0))
    for image in (0, 1):
        output = layer(z[image : image + 1], training=True)
        first = keras.ops.convert_to_numpy(output)[0, :4].round(2)
        print(f"{type(layer).__name__:18} image {image}: {first} ...")

# %% [markdown]
# To the layers above all images look alike, and to those below comes no gradient. Layer
# normalization does not care. (In a convolution the places of an image are rows, too,
# so a batch of one still works there.)
#
# ## Before the activation, after it, or not at all
#
# The chapter's network, three layers of 100 ReLU, on a part of the images, by the size
# of the batch. Each dot is a seed, the bar their mean, at the best of the measured
# learning rates. Above what `fit` prints, with the statistics of each batch; below new
# images, with the moving averages.


# %%
# Written by benchmarks/structures.py, which trains what takes too long here.
measured = pd.read_csv("../benchmarks/results/structures.csv")


def results(demonstration):
    """The last row of each run, at the rate with the best mean validation accuracy."""
    case = ["variant", "layers", "batch_size"]
    rows = measured[measured["demonstration"] == demonstration]
    last = rows.groupby([*case, "rate", "seed"], sort=False).tail(1)
    means = last.groupby([*case, "rate"], sort=False)["val_accuracy"].mean()
    best = means.groupby(case, sort=False).idxmax()
    return last.set_index([*case, "rate"]).sort_index().loc[list(best)].reset_index()


found = results("normalization")
sizes, names = sorted(found["batch_size"].unique()), list(found["variant"].unique())
figure, panels = plt.subplots(
    2, len(sizes), figsize=(12, 5.6), sharex=True, sharey=True, layout="constrained"
)
for column, size in enumerate(sizes):
    for row, score in enumerate(["fit_accuracy", "val_accuracy"]):
        axes = panels[row, column]
        for place, name in enumerate(names):
            runs = found[(found["batch_size"] == size) & (found["variant"] == name)]
            color = (
                "black"
                if name.startswith("no")
                else BLUE
                if "batch" in name
                else ORANGE
            )
            axes.plot(runs[score], [place] * len(runs), "o", color=color, alpha=0.4)
            axes.plot(runs[score].mean(), place, "|", color=color, ms=22, mew=3)
        axes.axvline(0.1, color="black", ls=":")
        axes.set(xlim=(0, 1.03))
        axes.set(xlabel=f"{'validation' if row else 'training'} accuracy")
    panels[0, column].set(title=f"batches of {size}{', all' if size > 100 else ''}")
axes.set_yticks(range(len(names)), names)
axes.set_ylim(len(names) - 0.5, -0.5)
plt.show()
scores = found.groupby(["variant", "batch_size"], sort=False)["val_accuracy"]
table = scores.agg(["mean", "std"]).round(3)
table["rate"] = found.groupby(["variant", "batch_size"], sort=False)["rate"].first()
table.unstack()

# %% [markdown]
# With batches of one, batch normalization guesses and layer normalization learns. With
# batches of 32 batch normalization fits the training images best; on new ones no two
# rows differ by much more than their seeds do. Three layers hardly need it. With all
# images in one batch it fits them nearly without a fault, and on new ones is no better
# than none, or worse: the second surprise again, since there were only 80 steps, and
# 0.99 to the power of 80 is still 0.45. Before or after makes little difference where
# batches are right; before needs fewer numbers, and can be folded:
#
# ## For inference it costs nothing
#
# Once training is over, batch normalization is a fixed scale and shift of each unit.
# Where it stands before the activation, the Dense layer in front of it can take them
# over:
#
# $$W'_{kj} = s_j W_{kj}, \qquad b'_j = \beta_j - s_j \mu_j, \qquad
# s_j = \gamma_j / \sqrt{\sigma_j^2 + \varepsilon}$$


# %%
def folded(model):
    """The same network without batch normalization, for inference alone."""
    *hidden, last = model.layers[1:]
    twin = keras.Sequential([keras.Input((28, 28)), layers.Flatten()])
    for dense, norm, relu in zip(*[iter(hidden)] * 3, strict=True):
        gamma, beta, mean, variance = norm.get_weights()
        scale = gamma / np.sqrt(variance + norm.epsilon)
        twin.add(layers.Dense(dense.units, activation=relu.activation))
        twin.layers[-1].set_weights(
            [dense.get_weights()[0] * scale, beta - scale * mean]
        )
    twin.add(layers.Dense(10, activation="softmax"))
    twin.layers[-1].set_weights(last.get_weights())
    return twin


trained = models[0.9]
twin = folded(trained)
before = trained.predict(data.x_valid, 1000, verbose=0)
after = twin.predict(data.x_valid, 1000, verbose=0)
print(f"layers {len(trained.layers)} -> {len(twin.layers)}, ", end="")
print(f"numbers {trained.count_params():,} -> {twin.count_params():,}")
print(f"largest difference of a probability {np.abs(before - after).max():.0e}")
print(f"same answer for {np.mean(before.argmax(1) == after.argmax(1)):.2%} of images")

# %% [markdown]
# Layer normalization cannot be folded: its scale is another one for each image.
#
# ## A hundred layers, before the first step
#
# Three ways to keep the signal's size: SELU with LeCun's weights normalizes itself,
# He's weights keep the size of a ReLU's signal in the mean, and batch normalization
# enforces it. One batch of 256 images through 100 hidden layers and back, before
# training. Look for the curve that leaves the middle of its panel.

# %%
NUM_LAYERS, NUM_ROWS = (8, 64) if QUICK else (100, 256)
kinds = {
    "SELU, LeCun": ("selu", None),
    "ReLU, He": ("relu", None),
    "ReLU, He, batch norm": ("relu", "batch"),
}
styles = dict(zip(kinds, [GREEN, RED, BLUE], strict=True))
x, y = data.x_train[:NUM_ROWS], data.y_train[:NUM_ROWS]
figure, panels = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
for name, (activation, normalization) in kinds.items():
    keras.utils.set_random_seed(SEED)
    stack = [keras.Input((28, 28)), layers.Flatten()]
    for _ in range(NUM_LAYERS):
        stack += dense_block(100, activation, normalization=normalization)
    model = keras.Sequential([*stack, layers.Dense(10, "softmax")])
    model.compile(loss="sparse_categorical_crossentropy")
    table = signal_table(model, x, y)
    deviation = table.loc[table["activation"] == activation, "std"]
    gradient = table["weight_gradient_norm"][table.index.str.startswith("dense")][:-1]
    between_rows, signal = [], x
    for layer in model.layers[:-1]:
        signal = layer(signal, training=True)
        if isinstance(layer, layers.Activation):
            values = keras.ops.convert_to_numpy(signal)
            between_rows.append(np.sqrt(values.var(axis=0).mean()))
    curves = deviation, between_rows, gradient
    for axes, curve in zip(panels, curves, strict=True):
        axes.plot(range(1, NUM_LAYERS + 1), curve, color=styles[name], lw=2, label=name)
titles = (
    "deviation of all outputs",
    "deviation between images",
    "gradient by the weights",
)
for axes, title in zip(panels, titles, strict=True):
    axes.set(title=title, xlabel="hidden layer")
panels[0].set(ylim=(0, 1.5))
panels[1].set(ylim=(0, 1.5))
panels[2].set(yscale="log")
panels[0].legend()
plt.show()

# %% [markdown]
# The signal's size is kept by all three, left. But with He's weights alone the images
# become more and more alike, in the middle: of what arrives in deep layers, most is the
# same for every image. Batch normalization keeps them apart, at a price, right: on the
# way back the gradient grows to hundreds of millions of times what it was. The reason
# is that the outputs of a ReLU have a mean. Batch normalization takes it away, and with
# it $1/\pi$ of the signal's power; it makes the rest larger by $1/\sqrt{1 - 1/\pi}$ =
# 1.21, and on its way back the gradient as well, in every layer, and $1.21^{100}$ is
# $2 \cdot 10^8$. SELU keeps the signal, and the gradient within a factor of a hundred.
#
# ## A hundred layers, trained
#
# The book's run: plain SGD at a rate of 0.001, batches of 32, part of the images. Mean
# and deviation of five seeds. On the left what `fit` prints, on the right what
# `predict` answers.

# %%
deep = measured[measured["demonstration"] == "deep"]
figure, panels = plt.subplots(
    1, 2, figsize=(13, 4.2), sharey=True, layout="constrained"
)
columns = {"fit_accuracy": "training accuracy", "val_accuracy": "validation accuracy"}
for axes, (column, title) in zip(panels, columns.items(), strict=True):
    for name, runs in deep.groupby("variant", sort=False):
        by_epoch = runs.pivot(index="epochs", columns="seed", values=column)
        mean, spread = by_epoch.mean(axis=1), by_epoch.std(axis=1)
        axes.errorbar(
            mean.index, mean, spread, color=styles[name], fmt="o-", label=name
        )
    axes.axhline(0.1, color="black", ls=":")
    axes.set(title=title, xlabel="epoch", ylim=(0, 1), xticks=by_epoch.index)
panels[0].legend()
plt.show()

# %% [markdown]
# As the picture before the first step said: SELU learns, ReLU hardly, and with batch
# normalization a hundred plain layers guess. It repairs the signal, not a depth without
# a way past.
#
# ## Deeper, and worse on the training images
#
# A deeper network could do all that a shallower one does: its further layers would only
# have to pass on what they get. Plain layers do not find even that. Highway and
# residual layers begin with it, because the input goes past them:
# $y = H(x)\,T(x) + x\,(1 - T(x))$ with a gate $T$ that starts nearly closed, and
# $y = F(x) + x$ with an $F$ that starts at 0. The error on the *training* images, so
# that nobody can blame overfitting, at the best of the measured learning rates (dotted:
# guessing):

# %%
found = results("depth")
depths = sorted(found["layers"].unique())
figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
named = found.groupby("variant", sort=False)
for place, (name, runs) in enumerate(named):
    color = [RED, BLUE, ORANGE, GREEN][place]
    error, at = 1 - runs["accuracy"], runs["layers"].map(depths.index)
    axes.plot(at + 0.05 * (place - 1), error, "o", color=color, alpha=0.4)
    axes.plot(error.groupby(at).mean(), color=color, lw=2, label=name)
axes.set(xlabel="hidden layers", ylabel="training error", ylim=(0, 1))
axes.axhline(0.9, color="black", ls=":")
axes.set_xticks(range(len(depths)), depths)
axes.legend()
plt.show()
errors = 1 - found.set_index(["variant", "layers"])[["accuracy", "val_accuracy"]]
errors.columns = ["training error", "validation error"]
errors.groupby(["variant", "layers"], sort=False).agg(["mean", "std"]).round(3)

# %% [markdown]
# Plain layers get worse with depth, residual ones do not. Highway layers with the
# recipe's gate of -2 nearly keep up to 20, and of 50 they learn next to nothing at any
# rate; with a gate of -4 they keep up. Why? At -2 a gate is open by 12 percent: it
# takes away 12 percent of the input, and gives back less. How much of the difference
# between images is left after the last of 50?

# %%
for gate_bias in (-2, -3, -4):
    keras.utils.set_random_seed(SEED)
    signal = unit.x_train[:256].reshape(256, -1)
    between_rows = []
    for _ in range(NUM_LAYERS // 2):
        signal = HighwayDense(100, "relu", gate_bias=gate_bias)(signal)
        values = keras.ops.convert_to_numpy(signal)
        between_rows.append(np.sqrt(values.var(axis=0).mean()))
    left = between_rows[-1] / between_rows[0]
    print(f"gate_bias {gate_bias}: {left:.0%} of that after the first")

# %% [markdown]
# The deeper the stack, the further closed its gates should start. A residual layer adds
# without taking anything away, and needs no such care.
#
# ## Batch or layer normalization?
#
# | | batch | layer |
# |---|---|---|
# | mean and variance | of a unit, over the batch | of an image, over the units |
# | training and inference | differ: moving averages | are the same |
# | batches of a few rows | noisy; of one row, nothing | the same as any |
# | regularizes | a little, by its noise | no |
# | inference | free, once folded | costs a pass over the units |
# | at home in | images, convolutions | sequences, transformers |
#
# ## What to remember
#
# - Standardize the inputs, or let the first layer do it.
# - `dense_block(units, "relu", normalization="batch")`: Dense without bias, batch
#   normalization, ReLU.
# - Few steps an epoch: `momentum = 0.9`. Few rows a batch: layer normalization.
# - Far better in training than in validation, early on: look at the moving averages
#   before you blame overfitting.
# - To use a trained model's batch normalization as it is: `trainable = False`, as
#   `freeze` of `recipes/transfer.py` does.
# - Tens of layers: residual or highway layers. `signal_table` shows where signal or
#   gradient are lost.
#
# Reference: Géron, *Hands-On Machine Learning*, 3rd edition, chapter 11; Ioffe,
# Szegedy, [Batch Normalization](https://arxiv.org/abs/1502.03167), 2015; Ba, Kiros,
# Hinton, [Layer Normalization](https://arxiv.org/abs/1607.06450), 2016; Yang et al., [A
# Mean Field Theory of Batch Normalization](https://arxiv.org/abs/1902.08129), 2019; He,
# Zhang, Ren, Sun, [Deep Residual Learning](https://arxiv.org/abs/1512.03385), 2015.

# %%
print(f"keras {keras.version()} on {keras.backend.backend()}, numpy {np.__version__}")
print(f"{', '.join(keras.distribution.list_devices())}, {pd.Timestamp.now():%Y-%m-%d}")
