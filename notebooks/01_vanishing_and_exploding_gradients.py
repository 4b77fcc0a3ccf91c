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
# # Vanishing and exploding gradients
#
# **Summary.** The gradient of a layer near the input is a product with a factor for each
# layer above it. If the factors are a little below 1, nothing is left of it, and the
# layer does not learn; if they are a little above, it throws the weights away. Here are
# the factors, in numbers, what they do to 20 layers and to 56 time steps, how to see it
# in a network of your own, and which remedy helps how much.

# %% [markdown]
# ## What to do, in a minute
#
# 1. **Look before you train**: `signal_table(model, x, y)` shows signal and gradient of
#    each layer on one batch.
# 2. **Look while you train**: `GradientMonitor` and `ActivationMonitor` draw the same over
#    layers and epochs.
# 3. **Repair**, in this order:
#
# | what you see | remedies |
# |---|---|
# | gradient falls towards the input | ReLU or its kin, with weights that suit it (`initializer_for`); batch normalization; highway or residual layers; over time steps an LSTM |
# | gradient grows towards the input, loss jumps or is NaN | clipping; regularization; smaller initial weights; batch normalization |
# | neither, in a layer with a gradient of your own | `check_gradients` |

# %% [markdown]
# ## Setup
#
# `QUICK=1` in the environment runs everything in seconds, on drawn garments. TensorFlow,
# because the section on time steps uses its tape.

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

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tensorflow as tf

from callbacks.monitors import ActivationMonitor, GradientMonitor
from recipes.check_model import check_gradients, signal_table
from recipes.fashion_mnist import draw_garments, epoch_batches, load, split_and_scale
from recipes.initializers import initializer_for
from recipes.layers import HighwayDense, ResidualDense, dense_block
from recipes.optimizers import make_optimizer
from recipes.regularizers import project, regularize

tf.get_logger().setLevel("ERROR")
QUICK = bool(os.environ.get("QUICK"))
NUM_LAYERS = 3 if QUICK else 20
NUM_IMAGES = 400 if QUICK else 12_800
EPOCHS = 1 if QUICK else 2
BATCH_SIZE = 64
SEED = 42

if QUICK:
    data = split_and_scale(
        draw_garments(700),
        draw_garments(100, seed=1),
        validation_size=200,
        scale="standardize",
    )
else:
    data = load("../data/fashion-mnist", scale="standardize")
x_train, y_train = data.x_train[:NUM_IMAGES], data.y_train[:NUM_IMAGES]
x_probe, y_probe = x_train[:256], y_train[:256]
plt.rcParams.update({"figure.dpi": 36, "font.size": 12})
plt.rcParams.update({"axes.grid": True, "grid.alpha": 0.3})
COLORS = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"]
plt.rcParams["axes.prop_cycle"] = plt.cycler(color=COLORS)

# %% [markdown]
# ## What backpropagation multiplies
#
# Take the smallest deep network there is: one unit in each layer, $a_l = f(w_l a_{l-1})$.
# By the chain rule, the gradient $q$ layers down is that at the top times $q$ factors,
#
# $$\frac{\partial L}{\partial a_{t-q}} = \frac{\partial L}{\partial a_t}
# \prod_{l=t-q+1}^{t} w_l f'(z_l).$$
#
# In a layer of many units, each path through the network contributes one such product,
# and the gradient is their sum. So two numbers matter: the weight, and the slope of the
# activation. The sigmoid's slope is $s(1-s)$, which is never more than 1/4.

# %%
z = np.linspace(-8, 8, 401)
sigmoid = 1 / (1 + np.exp(-z))
curves = {
    "sigmoid": (sigmoid, sigmoid * (1 - sigmoid)),
    "tanh": (np.tanh(z), 1 - np.tanh(z) ** 2),
    "ReLU": (np.maximum(z, 0), np.where(z > 0, 1.0, 0.0)),
}
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.5), layout="constrained")
for name, (value, slope) in curves.items():
    left.plot(z, value, lw=2, label=name)
    right.plot(z, slope, lw=2, label=name)
left.set(ylim=(-1.2, 2.2), xlabel="z", title="activation")
right.axhline(0.25, color="black", ls=":")
right.set(xlabel="z", title="slope (dotted: 1/4)")
left.legend()
plt.show()
print(f"largest slope of the sigmoid: {curves['sigmoid'][1].max()}")

# %% [markdown]
# One unit per layer, ten layers, all weights 1: the product of the ten factors, and the
# slope of the output by the input from a small difference. They are the same number.


# %%
def chain(a, weights):
    """Output of the units one behind the other, and the factors on the way."""
    factors = []
    for w in weights:
        output = 1 / (1 + np.exp(-w * a))
        factors.append(w * output * (1 - output))
        a = output
    return a, factors


weights, h = np.ones(10), 1e-4
_, factors = chain(0.5, weights)
difference = (chain(0.5 + h, weights)[0] - chain(0.5 - h, weights)[0]) / (2 * h)
print("factors:", np.round(factors, 3))
print(f"their product {np.prod(factors):.4g}, by difference {difference:.4g}")

# %% [markdown]
# A factor of 1/4 is extreme. But no factor is harmless if there are enough of it: the
# table has $r^q$ for factors $r$ (rows) and numbers of layers $q$ (columns).

# %%
depths = [1, 5, 10, 20, 50, 100, 1000]
powers = pd.DataFrame(
    {q: [r**q for r in (0.25, 0.9, 0.99, 1.0, 1.01, 1.1)] for q in depths},
    index=pd.Index([0.25, 0.9, 0.99, 1.0, 1.01, 1.1], name="factor"),
)
powers.map("{:.2g}".format)

# %% [markdown]
# With r = 0.99 there is a third left after 100 layers, and nothing after 1000; with 1.01
# the gradient is 20,000 times too long there. Only a factor of 1 lasts.

# %% [markdown]
# ## Gradient against depth
#
# 20 hidden layers of 100 units, before training, five activations with five initial
# weights each. `signal_table` sends 256 images up and their error back down. Layer 20 is
# next to the output: read each line from the right to the left, as the gradient runs.

# %%
WEIGHTS = {
    "normal, deviation 0.01": lambda: keras.initializers.RandomNormal(stddev=0.01),
    "uniform, variance 1/(3n)": lambda: keras.initializers.VarianceScaling(
        1 / 3, "fan_in", "uniform"
    ),
    "Glorot": lambda: initializer_for("tanh"),
    "He": lambda: initializer_for("relu"),
    "normal, deviation 1": lambda: keras.initializers.RandomNormal(stddev=1.0),
}
ACTIVATIONS = ["sigmoid", "tanh", "relu", "elu", "selu"]


def deep(block):
    """A network of blocks, lists of layers that `block(i)` returns, and an output."""
    keras.utils.set_random_seed(SEED)
    hidden = [layer for i in range(NUM_LAYERS) for layer in block(i)]
    output = keras.layers.Dense(10, "softmax", name="output")
    start = [keras.Input((28, 28)), keras.layers.Flatten()]
    model = keras.Sequential([*start, *hidden, output])
    model.compile("sgd", loss="sparse_categorical_crossentropy")
    return model


def plain(activation, weights):
    """Blocks of a single Dense layer."""
    return lambda i: [
        keras.layers.Dense(
            100, activation, kernel_initializer=weights(), name=f"hidden_{i + 1}"
        )
    ]


def signals(block):
    """The rows of `signal_table` for the hidden layers."""
    table = signal_table(deep(block), x_probe, y_probe)
    return table.filter(like="hidden_", axis="index").reset_index()


tables = {
    (activation, name): signals(plain(activation, weights))
    for activation in ACTIVATIONS
    for name, weights in WEIGHTS.items()
}

# %%
layer_numbers = np.arange(1, NUM_LAYERS + 1)
TICKS = [1, 5, 10, 15, 20]
figure, panels = plt.subplots(
    1, 5, figsize=(17, 4.2), sharey=True, layout="constrained"
)
for axes, activation in zip(panels, ACTIVATIONS, strict=True):
    for name in WEIGHTS:
        norms = tables[activation, name]["gradient_norm"]
        axes.plot(layer_numbers, norms, lw=2, label=name)
    axes.set(title=activation, xlabel="hidden layer", yscale="log", ylim=(1e-12, 1e6))
    axes.set_xticks(TICKS)
panels[0].set(ylabel="norm of the gradient")
panels[0].legend(loc="lower right", fontsize=9)
plt.show()

# %%
pd.DataFrame(
    {
        name: [
            tables[activation, name]["gradient_norm"].iloc[0]
            / tables[activation, name]["gradient_norm"].iloc[-1]
            for activation in ACTIVATIONS
        ]
        for name in WEIGHTS
    },
    index=pd.Index(ACTIVATIONS, name="first over last layer"),
).map("{:.1g}".format)

# %% [markdown]
# The lines are straight on a logarithmic axis: each layer multiplies by about the same
# factor. (Lines that leave the picture go on; the table has their ends.) For all but the
# sigmoid there are weights at which the line is nearly level: He's for ReLU, Glorot's or
# He's for the others. The range is narrow. He's deviation is 1.4 times Glorot's, that of
# the uniform weights 0.6 times, and over 20 layers so little costs powers of ten. The
# sigmoid loses with all of the usual weights. Only a deviation of 1, ten times Glorot's,
# makes up for its slope; what that does to the units is seen below. To the other four
# the same weights are an explosion.
#
# This is one seed. The same over five, with their spread, is drawn by
# [`benchmarks/signals.py`](../benchmarks/signals.py):
# [gradients against depth](../benchmarks/results/signals_depth.png).

# %% [markdown]
# ## The product of the factors beside the measured norm
#
# `signal_table` also measures the two factors of each layer: `weight_factor`, the norm of
# the weights behind one pre-activation, and `activation_factor`, the slope, both as root
# mean squares. Here they are for three layers of the sigmoid with Glorot's weights:

# %%
COLUMNS = ["weight_factor", "activation_factor", "product", "gradient_norm"]
chosen = [0, NUM_LAYERS // 2, NUM_LAYERS - 1]
table = tables["sigmoid", "Glorot"].set_index("layer")[COLUMNS]
table.iloc[chosen].map("{:.3g}".format)

# %% [markdown]
# The weights hand on all of it, and the slope takes three quarters. If that is the whole
# explanation, the product of these numbers from the output down is the gradient's norm.
# Dots are the product, lines the norm.

# %%
CASES = [
    ("sigmoid", "Glorot"),
    ("tanh", "Glorot"),
    ("relu", "He"),
    ("relu", "normal, deviation 1"),
    ("selu", "Glorot"),
]
figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
for (activation, name), color in zip(CASES, COLORS, strict=True):
    table = tables[activation, name]
    label = f"{activation}, {name}"
    axes.plot(layer_numbers, table["gradient_norm"], color=color, label=label)
    axes.plot(layer_numbers, table["product"], "o", ms=5, color=color)
axes.set(xlabel="hidden layer", ylabel="norm of the gradient", yscale="log")
axes.set(xticks=TICKS)
axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
ratios = pd.concat(
    [table["product"] / table["gradient_norm"] for table in tables.values()]
)
print(f"product / norm, all 25 networks: {ratios.min():.2f} to {ratios.max():.2f}")

# %% [markdown]
# It is. Over thirty powers of ten, two numbers per layer tell what becomes of the
# gradient. A remedy has to change one of them, or lead past the layer.

# %% [markdown]
# ## The sensitive region, and batch normalization
#
# The slope is near its largest only in the middle. Call the region where it is at least
# half of that *sensitive*: for the sigmoid, |z| < 1.76. Large initial weights throw the
# pre-activations out of it at once. Batch normalization brings them back, because it
# standardizes them: 92 % of a normal distribution lie within.


# %%
def normalized(weights):
    """Blocks of Dense, batch normalization and sigmoid."""
    return lambda i: [
        keras.layers.Dense(100, kernel_initializer=weights(), use_bias=False),
        keras.layers.BatchNormalization(),
        keras.layers.Activation("sigmoid", name=f"hidden_{i + 1}"),
    ]


figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4), layout="constrained")
for name, color in zip(["normal, deviation 1", "Glorot"], COLORS, strict=False):
    with_and_without = {
        "without": (tables["sigmoid", name], "-"),
        "with batch norm": (signals(normalized(WEIGHTS[name])), "--"),
    }
    for has, (table, style) in with_and_without.items():
        line = {"ls": style, "color": color, "lw": 2, "label": f"{name}, {has}"}
        left.plot(layer_numbers, table["sensitive"], **line)
        right.plot(layer_numbers, table["gradient_norm"], **line)
left.set(title="share in the sensitive region", ylim=(0, 1.03))
right.set(title="norm of the gradient", yscale="log")
for axes in (left, right):
    axes.set(xlabel="hidden layer", xticks=TICKS)
right.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# With a deviation of 1, four fifths of the units hang on the flat ends. Their gradient
# is level all the same, carried by the few units that are sensitive. Glorot's line shows
# the opposite: nearly everything is sensitive, and the gradient is lost, since the best
# slope of 1/4 is still 1/4. So the region is one thing and the product another. Batch
# normalization repairs both: dividing by the deviation of the pre-activations, which is
# small behind a sigmoid, it makes the factor of the weights larger by as much. The dashed
# lines lie on one another: the scale of the initial weights has no influence any more.
#
# With five seeds: [picture](../benchmarks/results/signals_normalization.png).

# %% [markdown]
# ## ReLU lets the signal grow
#
# A bounded activation bounds the signal and starves the gradient. ReLU does neither: what
# the weights do to the gradient on the way down, they do to the signal on the way up.

# %%
figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
for name in WEIGHTS:
    axes.plot(layer_numbers, tables["relu", name]["std"], lw=2, label=name)
for name, style in [("Glorot", ":"), ("normal, deviation 1", "--")]:
    spread = tables["sigmoid", name]["std"]
    label = f"sigmoid, {name}"
    axes.plot(layer_numbers, spread, style, color="black", label=label)
axes.set(xlabel="hidden layer", ylabel="deviation of the output", yscale="log")
axes.set(title="colours: ReLU, by initial weights", xticks=TICKS)
axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
for name in ("He", "Glorot", "normal, deviation 1"):
    spread = tables["relu", name]["std"]
    growth = (spread.iloc[-1] / spread.iloc[0]) ** (1 / (NUM_LAYERS - 1))
    print(f"{name}: times {growth:.2f} from layer to layer")

# %% [markdown]
# With 100 inputs of which half arrive, a layer with weights of variance $v$ multiplies the
# signal by $\sqrt{50 v}$: that is 7.1 for a deviation of 1, 0.71 for Glorot's 1/100, and
# 1 for He's 2/100, which was chosen for that. The sigmoid (black) stays where it is,
# whatever the weights.

# %% [markdown]
# ## Seen from outside: the lower layers do not move
#
# The 20 sigmoid layers in training. `GradientMonitor` and `ActivationMonitor` read 256
# images before the first epoch and after each. The first layer is on top: look for a
# change of colour from top to bottom.


# %%
def train(model, rate=0.01, epochs=EPOCHS, callbacks=(), name="momentum", **clipping):
    """Training losses by epoch and the validation accuracy after the last."""
    model.compile(
        make_optimizer(name, rate, **clipping),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    history = model.fit(
        epoch_batches(x_train, y_train, BATCH_SIZE, seed=SEED),
        epochs=epochs,
        callbacks=list(callbacks),
        verbose=0,
    )
    _, accuracy = model.evaluate(data.x_valid, data.y_valid, batch_size=500, verbose=0)
    return history.history["loss"], accuracy


def kernels(model):
    return [layer.get_weights()[0] for layer in model.layers if layer.get_weights()]


model = deep(plain("sigmoid", WEIGHTS["Glorot"]))
before = kernels(model)
gradients = GradientMonitor(x_probe, y_probe)
activations = ActivationMonitor(x_probe)
losses, accuracy = train(model, callbacks=[gradients, activations])
print(f"losses {np.round(losses, 3)}, validation accuracy {accuracy:.3f}")
with plt.rc_context({"axes.grid": False, "figure.dpi": 70}):
    figure = gradients.plot()
figure  # noqa: B018

# %%
moved = [
    np.linalg.norm(new - old) / np.linalg.norm(old)
    for old, new in zip(before, kernels(model), strict=True)
]
names = [layer.name for layer in model.layers if layer.get_weights()]
table = pd.DataFrame(
    {"moved, of the initial norm": moved}, index=pd.Index(names, name="layer")
)
table.iloc[[0, 1, -3, -2, -1]].map("{:.1g}".format)

# %% [markdown]
# What the other monitor has read: how far the outputs of a unit differ from image to
# image (root mean square over the units). It has a heat map as well, `activations.plot()`.

# %%
readings = activations.to_frame()
figure, axes = plt.subplots(figsize=(8, 3.5), layout="constrained")
for epoch, color in [(-1, COLORS[0]), (EPOCHS - 1, COLORS[3])]:
    rows = readings[readings["epoch"] == epoch]
    rows = rows[rows["layer"].str.startswith("hidden_")]
    label = "before training" if epoch < 0 else f"after {EPOCHS} epochs"
    style = "-" if epoch < 0 else "--"
    line = {"ls": style, "color": color, "lw": 2, "label": label}
    axes.plot(layer_numbers, rows["std_between_rows"], **line)
axes.set(xlabel="hidden layer", xticks=TICKS, yscale="log")
axes.set(ylabel="deviation between images")
axes.legend()
plt.show()

# %% [markdown]
# The layers next to the output move, and those next to the input are what they were at
# the start, to the last digit: their updates are too small to change a number in single
# precision. But what the top could learn from is not there either. From the tenth layer
# on, two images differ by less than a millionth, which is rounding: the layers that do
# not move have made them all alike. So the loss stays at ln 10 = 2.3, that of guessing.

# %% [markdown]
# ## Exploding: steps that overshoot
#
# The same depth with ReLU, and weights with a deviation of 0.2, which is 1.4 times He's:
# over 20 layers a factor of 1000. Loss and gradient of each batch, with plain SGD. A line
# that stops is NaN from there on.


# %%
class EachBatch(keras.callbacks.Callback):
    """Keeps the loss of each batch and the norm of its gradient."""

    def on_train_begin(self, logs=None):
        self.losses, self.norms = [], []

    def on_train_batch_begin(self, batch, logs=None):
        self.model.reset_metrics()  # the loss is a mean since the last reset

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(logs["loss"])
        self.norms.append(self.model.optimizer.last_gradient_norm)


def large(weights=lambda: keras.initializers.RandomNormal(stddev=0.2)):
    return deep(plain("relu", weights))


def he():
    return large(WEIGHTS["He"])


NOT_REACHED = 1e30  # a bound that clips nothing, but lets us read the norm
RUNS = {
    "rate 0.01": (large, 0.01, NOT_REACHED),
    "rate 0.00001": (large, 0.00001, NOT_REACHED),
    "rate 0.01, norm clipped at 1": (large, 0.01, 1.0),
    "He's weights, rate 0.1": (he, 0.1, NOT_REACHED),
    "He's weights, rate 0.1, clipped at 1": (he, 0.1, 1.0),
}
summary = {}
figure, (left, right) = plt.subplots(1, 2, figsize=(15, 4), layout="constrained")
for (label, (build, rate, bound)), color in zip(RUNS.items(), COLORS, strict=True):
    batches, model = EachBatch(), build()
    length = np.linalg.norm([np.linalg.norm(kernel) for kernel in kernels(model)])
    train(model, rate, 1, [batches], "sgd", global_clipnorm=bound)
    left.plot(batches.losses, lw=1.5, color=color, label=label)
    right.plot(batches.norms, lw=1.5, color=color, label=label)
    finite = np.isfinite(batches.losses)
    summary[label] = {
        "all weights": length,
        "first gradient": batches.norms[0],
        "first step": rate * min(batches.norms[0], bound),
        "first loss": batches.losses[0],
        "second loss": batches.losses[1],
        "last loss": batches.losses[-1],
        "finite for": finite.sum(),
    }
left.set(xlabel="batch", title="training loss", yscale="log", ylim=(0.3, 1e7))
right.set(xlabel="batch", title="norm of the gradient", yscale="log", ylim=(0.1, 1e7))
right.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
pd.DataFrame(summary).T.map("{:.3g}".format)

# %% [markdown]
# The first gradient is so long that at a rate of 0.01 the first step is several times the
# length of all the weights together. The second loss is 1e30, the third NaN. A rate a
# thousand times smaller survives that, and so does clipping: each step is then 0.01 long,
# whatever the gradient. Both runs walk down, and after 200 batches both are still far
# above 2.3, the loss of guessing. Clipping keeps a network alive; it does not repair the
# weights it began with.
#
# The two runs with He's weights begin well, but the rate is too high for them. Not
# clipped, the loss hovers near 2 while the gradient jumps up and down tenfold, until
# within a few batches all is NaN. Here the long steps are the exception, and clipping
# them is the remedy.

# %% [markdown]
# ## The same over time steps
#
# A recurrent layer is a deep network whose layers share their weights: each time step
# contributes a factor. It reads the 28 rows of an image and then 28 empty rows, so that
# what it has seen lies 28 to 56 steps back when it must answer. The picture has the norm
# of the gradient by what it reads at each step, before training.
#
# The textbook says that a simple network forgets and an LSTM does not. In Keras it
# depends on the start: `SimpleRNN` has an *orthogonal* recurrent matrix, which changes no
# vector's length, and the LSTM's forget gate is half open.

# %%
STEPS = 56
FORGET = slice(32, 64)  # of the bias, after the 32 of the input gate


def read_rows(layer, forget_bias=None):
    """A network with one recurrent layer of 32 units."""
    keras.utils.set_random_seed(SEED)
    model = keras.Sequential([keras.Input((STEPS, 28)), layer])
    model.add(keras.layers.Dense(10, "softmax"))
    if forget_bias is not None:
        bias = np.copy(keras.ops.convert_to_numpy(layer.cell.bias))
        bias[FORGET] = forget_bias
        layer.cell.bias.assign(bias)
    return model


def with_empty_rows(images):
    return np.pad(images, [(0, 0), (0, STEPS - 28), (0, 0)])


def simple(gain):
    orthogonal = keras.initializers.Orthogonal(gain)
    return keras.layers.SimpleRNN(32, recurrent_initializer=orthogonal)


RECURRENT = {
    "SimpleRNN, half of Keras's start": lambda: read_rows(simple(0.5)),
    "SimpleRNN, Keras's start": lambda: read_rows(simple(1.0)),
    "SimpleRNN, twice Keras's start": lambda: read_rows(simple(2.0)),
    "LSTM, Keras's start": lambda: read_rows(keras.layers.LSTM(32)),
    "LSTM, forget gate open": lambda: read_rows(keras.layers.LSTM(32), 5.0),
}


def gradient_by_step(model):
    images = tf.constant(with_empty_rows(x_probe))
    with tf.GradientTape() as tape:
        tape.watch(images)
        losses = keras.losses.sparse_categorical_crossentropy(y_probe, model(images))
        loss = tf.reduce_mean(losses)
    return np.linalg.norm(tape.gradient(loss, images).numpy(), axis=(0, 2))


figure, axes = plt.subplots(figsize=(10, 4), layout="constrained")
by_step = {name: gradient_by_step(build()) for name, build in RECURRENT.items()}
for (name, norms), color in zip(by_step.items(), COLORS, strict=True):
    style = "--" if name.startswith("LSTM") else "-"
    axes.plot(range(1, STEPS + 1), norms, style, lw=2, color=color, label=name)
axes.axvline(28, color="black", ls=":")
axes.set(xlabel="time step (dotted: the last row of the image)", yscale="log")
axes.set(ylabel="norm of the gradient", ylim=(1e-15, 1e6))
axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
empty = STEPS - 28
factors = {name: (n[-1] / n[28]) ** (1 / (empty - 1)) for name, n in by_step.items()}
pd.Series(
    {name: 1 / factor for name, factor in factors.items()},
    name="factor per empty step, back in time",
).round(3)

# %% [markdown]
# Look at the empty rows, on the right, where the lines are straight. For `SimpleRNN` the
# factor of a step is that of the matrix times the slope of tanh. Half of Keras's matrix
# makes one half of it, and the first rows have no influence at all; twice the matrix
# explodes, though not by 2, because tanh saturates. With Keras's own start it is a little
# below 1: not the tenfold loss per step that textbooks draw, and better than Keras's LSTM,
# whose forget gate starts at $s(1) = 0.73$ (other paths through the cell add to that).
#
# So what is the LSTM for? Its state is carried on by
#
# $$c_t = f_t\, c_{t-1} + i_t\, g_t,$$
#
# and the factor of this path is $f_t$ alone: no matrix, no slope. Where the gate is open,
# it is 1 and stays 1, whatever training does to the other weights; the first LSTM had no
# forget gate at all. The orthogonal matrix of the simple network is only its start. With a
# forget bias of 5 the gate is at $s(5) = 0.993$, and the line is nearly level.
#
# With five seeds: [picture](../benchmarks/results/signals_time.png).
#
# Does it matter? Three of them after a short training:

# %%
number = NUM_IMAGES if QUICK else 6400
rows = with_empty_rows(x_train[:number])
valid_rows = with_empty_rows(data.x_valid)
found = {}
for name in list(RECURRENT)[1:2] + list(RECURRENT)[3:]:
    model = RECURRENT[name]()
    model.compile(
        make_optimizer("adam", 0.003),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    model.fit(
        epoch_batches(rows, y_train[:number], BATCH_SIZE, seed=SEED),
        epochs=EPOCHS,
        verbose=0,
    )
    found[name] = model.evaluate(valid_rows, data.y_valid, batch_size=500, verbose=0)
pd.DataFrame(found, index=["validation loss", "validation accuracy"]).T.round(3)

# %% [markdown]
# The LSTM with its gate open learns from the rows of 28 to 56 steps ago. The same LSTM as
# Keras starts it has forgotten them, and would first have to learn to open its gate, with
# a gradient that hardly arrives. Where inputs matter long after, start with a large forget
# bias. (One seed, two epochs.)

# %% [markdown]
# ## Is the gradient right?
#
# Before you blame depth in a layer of your own, check its gradient against differences of
# the loss, in double precision. Here a sigmoid with a gradient by hand, in which the
# factor 1 - s has been forgotten, sits in the second of four layers.


# %%
@keras.ops.custom_gradient
def sigmoid_with_a_fault(z):
    s = keras.ops.sigmoid(z)

    def gradient(*args, upstream=None):
        upstream = args[0] if upstream is None else upstream
        return upstream * s  # it should be s * (1 - s)

    return s, gradient


def four_layers(second):
    keras.utils.set_random_seed(SEED)
    model = keras.Sequential(
        [keras.Input((28, 28)), keras.layers.Flatten()], name="net"
    )
    for name, activation in [("1", "sigmoid"), ("2", second), ("3", "sigmoid")]:
        model.add(keras.layers.Dense(20, activation, name=f"hidden_{name}"))
    model.add(keras.layers.Dense(10, "softmax", name="output"))
    model.compile(loss="sparse_categorical_crossentropy")
    return model


keras.config.set_floatx("float64")
keras.config.set_dtype_policy("float64")
checks = {
    name: check_gradients(four_layers(second), x_probe[:16], y_probe[:16])
    for name, second in [("Keras's", "sigmoid"), ("with a fault", sigmoid_with_a_fault)]
}
keras.config.set_floatx("float32")
keras.config.set_dtype_policy("float32")
pd.DataFrame({name: check["relative_error"] for name, check in checks.items()}).map(
    "{:.0e}".format
)

# %% [markdown]
# Right gradients agree to eight digits or so. The fault does not only show, the table
# says where it is: everything above it is right, and everything from the faulty layer
# down is wrong, because all of that has the factor in its product. In single precision the
# differences would be noise, and the function refuses it.

# %% [markdown]
# ## The remedies against vanishing, one by one
#
# The same 20 layers of sigmoid with Glorot's weights, and one change at a time, in the
# order of the table at the beginning. All with momentum 0.9, a rate of 0.01, and the
# same batches in the same order. A residual layer is two layers of weights, so that there
# are ten of these.


# %%
def block(activation, weights=None, normalization=None):
    return lambda i: dense_block(
        100, activation, kernel_initializer=weights, normalization=normalization
    )


def highway(activation):
    return lambda i: [HighwayDense(100, activation)]


def residual(activation):
    return lambda i: [ResidualDense(100, activation)] if i % 2 == 0 else []


REMEDIES = {
    "sigmoid, Glorot": block("sigmoid"),
    "tanh, Glorot": block("tanh"),
    "ReLU, Glorot": block("relu", "glorot_uniform"),
    "ReLU, He": block("relu"),
    "sigmoid, batch norm": block("sigmoid", normalization="batch"),
    "ReLU, He, batch norm": block("relu", normalization="batch"),
    "sigmoid, highway": highway("sigmoid"),
    "ReLU, highway": highway("relu"),
    "sigmoid, residual": residual("sigmoid"),
    "ReLU, residual": residual("relu"),
}


def results(models, clipped=()):
    """A row for each: the gradient at the start, and what a short training gives."""
    rows = {}
    for name, model in models.items():
        model.compile(loss="sparse_categorical_crossentropy")
        norms = signal_table(model, x_probe, y_probe)["gradient_norm"]
        clipping = {"global_clipnorm": 1.0} if name in clipped else {}
        losses, accuracy = train(model, **clipping)
        rows[name] = {
            "gradient, input / output": f"{norms.iloc[0] / norms.iloc[-1]:.1g}",
            "training loss": round(losses[-1], 2),
            "validation accuracy": round(accuracy, 3),
        }
    return pd.DataFrame(rows).T


results({name: deep(each) for name, each in REMEDIES.items()})

# %% [markdown]
# The first row is the network that does not learn, and the first column says why. Each
# remedy makes it learn; ReLU with Glorot's weights, which is what Keras gives you unless
# you ask, is the slowest of those that do, since its gradient still loses a factor of 1000.
# Batch normalization rescues even the sigmoid. Its accuracy lags behind its loss after so
# few steps: the moving statistics, which are used on validation data, take some hundred
# steps to settle. The layers with a path around them are among the best, whatever the
# activation inside.
#
# One remedy went wrong: highway layers with ReLU are NaN at this rate. Nothing bounds what
# twenty of them may add to the signal; with the sigmoid inside, which is bounded, they
# train. And more is not better: batch normalization adds nothing to ReLU with He's
# weights here. One seed and two epochs: differences of a few points say nothing.

# %% [markdown]
# ## The remedies against exploding, one by one
#
# The 20 layers of ReLU with a deviation of 0.2 again, now with the same momentum and rate
# as above.


# %%
def large_with_batch_norm(i):
    weights = keras.initializers.RandomNormal(stddev=0.2)
    return block("relu", weights, "batch")(i)


bounded = regularize(large(), max_norm=2**0.5)  # the norm of He's weights
project(bounded)  # before the first step: after it would be too late
exploding = {
    "as it is": large(),
    "norm clipped at 1": large(),
    "L2, 0.001": regularize(large(), l2=0.001),
    "max-norm 1.41 from the start": bounded,
    "smaller weights: He": large(WEIGHTS["He"]),
    "batch norm": deep(large_with_batch_norm),
}
results(exploding, clipped=[name for name in exploding if "clipped" in name])

# %% [markdown]
# Clipping and L2 work on the steps, and the first step is already lost, or too short to get
# away from weights as wrong as these: L2 alone is NaN, and the clipped run is still far
# from the others. What repairs the network is what changes the weights before the
# first step (He's, or max-norm at the same norm) or takes their size out of the product
# (batch normalization). Clipping is for networks that are right, and now and then meet a
# gradient that is not: [the notebook on clipping](04_gradient_clipping.ipynb).

# %% [markdown]
# ## What to remember
#
# - The gradient of a layer is a product over all layers above it. Two numbers per layer,
#   weights and slope, tell what becomes of it; `signal_table` shows both.
# - A sigmoid loses at least three quarters per layer at usual weights; with ReLU it is
#   the weights that decide, and He's make the factor 1.
# - What no one wants to see in a heat map is a change of colour from top to bottom.
# - Batch normalization and paths around the layers help even where activation and weights
#   are wrong. Clipping stops an explosion, and does not cure its cause.
# - For long sequences an LSTM, its forget gate open at the start.
#
# Reference: Bengio, Simard,
# Frasconi, [Learning Long-Term Dependencies with Gradient Descent Is
# Difficult](https://ieeexplore.ieee.org/document/279181), 1994; Glorot, Bengio,
# [Understanding the Difficulty of Training Deep Feedforward Neural
# Networks](https://proceedings.mlr.press/v9/glorot10a.html), 2010; Gers, Schmidhuber,
# Cummins, Learning to Forget: Continual Prediction with LSTM, 2000.

# %%
print(f"keras {keras.version()} on {keras.backend.backend()}, numpy {np.__version__}")
print(f"{', '.join(keras.distribution.list_devices())}, {pd.Timestamp.now():%Y-%m-%d}")
