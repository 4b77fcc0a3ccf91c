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
# # Initial weights and activations
#
# **Summary.** A network can be lost before its first step: with equal weights all units
# stay one unit, with weights of the wrong size the signal fades or explodes from layer to
# layer. What the right size is depends on the activation. Here are the wrong starts, the
# formulae and where they come from, the chapter's activations with their slopes, and what
# can still go wrong with SELU and ReLU later.

# %% [markdown]
# ## How to choose, in a minute
#
# | activation | initial weights | and |
# |---|---|---|
# | ReLU, leaky ReLU, ELU, GELU, swish, mish | He | the first thing to try |
# | SELU | LeCun | standardized inputs, `AlphaDropout`, no skips |
# | sigmoid, tanh, softmax | Glorot | few layers, or the last one |
# | anything, where a formula fails | LSUV | one batch of the data |
#
# `initializer_for(activation)` looks it up; `check_model(model, x, y)` finds most of what
# follows before training does.

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
import functools
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from keras import initializers

from callbacks.monitors import ActivationMonitor
from recipes.check_model import check_model, signal_table
from recipes.fashion_mnist import draw_garments, epoch_batches, load, split_and_scale
from recipes.initializers import initializer_for, lsuv
from recipes.layers import Maxout, UnitPReLU, dense_block
from recipes.optimizers import make_optimizer

QUICK = bool(os.environ.get("QUICK"))
NUM_LAYERS, NUM_SELU_LAYERS, EPOCHS, SEEDS = (3, 4, 1, 1) if QUICK else (10, 100, 4, 3)
BATCH_SIZE = 128
SEED = 42

# Standardized for most of what follows, and as pixels from 0 to 1 for the rest.
if QUICK:
    drawn = draw_garments(700), draw_garments(100, seed=1)
    data, unit = (
        split_and_scale(*drawn, scale=scale, validation_size=200)
        for scale in ("standardize", "unit")
    )
else:
    data, unit = (
        load("../data/fashion-mnist", scale=scale) for scale in ("standardize", "unit")
    )
# Few images: a start is good or bad within a few hundred steps.
x_train, y_train, pixels = (
    data.x_train[:10_000],
    data.y_train[:10_000],
    unit.x_train[:10_000],
)
x_valid, y_valid, pixels_valid = data.x_valid, data.y_valid, unit.x_valid
x_probe, y_probe = data.x_train[-256:], data.y_train[-256:]

pd.set_option("display.float_format", "{:.3g}".format, "display.max_colwidth", None)
colours = "#0072B2 #E69F00 #009E73 #D55E00 #CC79A7 #56B4E9 #000000 #999999".split()
plt.rcParams.update({"figure.dpi": 42, "axes.grid": True, "grid.alpha": 0.3})
plt.rcParams.update({"axes.prop_cycle": plt.cycler(color=colours), "font.size": 13})
plt.rcParams["axes.titlesize"] = 13


# %% [markdown]
# One kind of network for most of what follows: hidden layers of 100 units, all kernels
# started in the same way. `start` makes a new initializer for each layer, because one
# unseeded Keras initializer (3.15) given to two layers starts both with the same weights.


# %%
def network(start, activation="relu", num_layers=NUM_LAYERS, optimizer=None):
    """A compiled network whose kernels all begin with what `start()` gives."""
    keras.utils.set_random_seed(SEED)
    stack = [keras.Input((28, 28)), keras.layers.Flatten(name="flatten")]
    for i in range(num_layers):
        layer = keras.layers.Dense(
            100, activation, kernel_initializer=start(), name=f"hidden_{i + 1}"
        )
        stack.append(layer)
    output = keras.layers.Dense(
        10, "softmax", kernel_initializer=start(), name="output"
    )
    return compiled([*stack, output], optimizer)


def compiled(stack, optimizer=None):
    model = keras.Sequential(stack)
    model.compile(
        optimizer or make_optimizer("momentum", 0.01),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def train(model, x=x_train, x_valid=x_valid, epochs=EPOCHS, callbacks=()):
    history = model.fit(
        epoch_batches(x, y_train, BATCH_SIZE, seed=SEED),
        epochs=epochs,
        validation_data=(x_valid, y_valid),
        callbacks=list(callbacks),
        verbose=0,
    )
    return pd.DataFrame(history.history, index=range(1, epochs + 1))


# %% [markdown]
# ## Starts that work, and starts that do not
#
# Ten layers of ReLU, and seven ways to start them. `check_model` looks before training;
# its first finding is in the table, and how many there are. Then four short epochs.

# %%
STARTS = {
    "zero": initializers.Zeros,
    "equal: 0.01": functools.partial(initializers.Constant, 0.01),
    "normal, deviation 0.01": functools.partial(initializers.RandomNormal, stddev=0.01),
    "normal, deviation 1": functools.partial(initializers.RandomNormal, stddev=1.0),
    "Glorot": initializers.GlorotNormal,
    "LeCun": initializers.LecunNormal,
    "He": initializers.HeNormal,
}
models, tables, histories, summary = {}, {}, {}, {}
for name, start in STARTS.items():
    model = models[name] = network(start)
    findings = check_model(model, x_train, y_train)
    table = signal_table(model, x_probe, y_probe).filter(like="hidden", axis="index")
    tables[name], histories[name] = table, train(model)
    summary[name] = {
        "first finding": findings[0].symptom if findings else "",
        "findings": len(findings),
        "std, last hidden": table["std"].iloc[-1],
        "gradient, first hidden": table["gradient_norm"].iloc[0],
        "val_accuracy": histories[name]["val_accuracy"].iloc[-1],
    }
pd.DataFrame(summary).T.rename_axis("start")

# %% [markdown]
# Look in the left panel for the lines that stay level, in the middle for how much of the
# gradient arrives at the first layer, and on the right for which loss leaves that of
# guessing, ln 10 = 2.3. (Zero weights have neither signal nor gradient, and no line.)

# %%
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.2))
for name, table in tables.items():
    layers = range(1, len(table) + 1)
    with np.errstate(divide="ignore"):
        left.plot(layers, table["std"], ".-", label=name)
        middle.plot(layers, table["gradient_norm"], ".-", label=name)
    right.plot(histories[name]["loss"], "o-", label=name)
left.set(title="standard deviation of the outputs", xlabel="hidden layer")
middle.set(title="norm of the gradient", xlabel="hidden layer")
right.set(title="training loss", xlabel="epoch", ylim=(0, 4))
left.set_yscale("log")
middle.set_yscale("log")
figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=7)
figure.tight_layout(rect=(0, 0.08, 1, 1))
plt.show()

# %% [markdown]
# - **Too small**: each layer makes the signal smaller, and each makes the gradient smaller
#   on its way back. Nothing arrives, nothing is learned.
# - **Too large**: the same with the other sign. The loss leaves the picture and the weights
#   become NaN. (Then the loss is 2.3 again, because TensorFlow's ReLU makes 0 of NaN.)
# - **Glorot and LeCun** lose a factor of about 1.4 per layer with ReLU. Over ten layers
#   that is a slow first epoch; over fifty it would be a factor of 30 million.
# - **He** stays level in both directions, and is ahead after the first epoch.

# %% [markdown]
# ### Equal weights stay equal
#
# Units that begin alike compute the same and receive the same gradient, so they stay
# alike for ever. (At first not even that much: with equal output weights the errors of
# the ten classes cancel, hence the small gradient in the middle panel.) Below are the
# incoming weights of six units of the first layer, as images, after training.

# %%
shown = ["zero", "equal: 0.01", "He"]
figure, panels = plt.subplots(3, 6, figsize=(8, 4.4), layout="constrained")
for row, name in zip(panels, shown, strict=True):
    kernel = models[name].layers[1].get_weights()[0]
    bound = np.abs(kernel).max() or 1.0
    for axes, weights in zip(row, kernel.T, strict=False):
        axes.imshow(
            weights.reshape(28, 28),
            "RdBu_r",
            vmin=-bound,
            vmax=bound,
            interpolation="nearest",
        )
        axes.set(xticks=[], yticks=[])
    row[0].set_ylabel(name)
plt.show()
spread = {
    name: max(np.ptp(w, axis=1).max() for w in model.get_weights()[:-2:2])
    for name, model in models.items()
}
pd.Series(spread, name="largest difference between two units of a hidden layer")

# %% [markdown]
# The zero weights have not moved: the slope of ReLU at 0 counts as 0, and no gradient comes
# through a kernel of zeros. The equal ones have learned, all the same thing, and 0 in the
# table means to the last bit. Ten layers of 100 units are then ten layers of one unit:
# worse than a model without any hidden layer, which this cell trains beside it. (For ten
# good layers to beat that one, four epochs on few images are too short.)

# %%
linear = train(network(initializers.GlorotNormal, num_layers=0))
accuracy = {
    "equal weights, 1000 hidden units": histories["equal: 0.01"]["val_accuracy"],
    "no hidden layer": linear["val_accuracy"],
    "He, 1000 hidden units": histories["He"]["val_accuracy"],
}
pd.DataFrame(accuracy).iloc[-1].rename("val_accuracy")

# %% [markdown]
# **Biases** may start at 0, as Keras starts them. The kernels already differ, so the
# gradients of the biases differ, and the biases with them:

# %%
biases = models["He"].layers[1].get_weights()[1]
print(f"first hidden layer, started at 0: {np.unique(biases).size} different biases,")
print(f"from {biases.min():.3f} to {biases.max():.3f}")

# %% [markdown]
# ## The right size
#
# **Forward.** A unit sums $n_{in}$ independent products, $z = \sum_i w_i x_i$, and weights
# have mean 0, so $\mathrm{Var}(z) = n_{in} \mathrm{Var}(w)\, E[x^2]$.
# The size stays if $\mathrm{Var}(w) = 1 / n_{in}$: **LeCun**.
#
# **Backward.** The gradient of an input sums over the $n_{out}$ units it feeds, so it
# stays if $\mathrm{Var}(w) = 1 / n_{out}$. Both at once only where $n_{in} = n_{out}$;
# halfway is $2 / (n_{in} + n_{out})$: **Glorot**.
#
# **ReLU** sets half of a symmetric $z$ to 0, which leaves $E[x^2] = \mathrm{Var}(z) / 2$.
# So twice the variance is needed, $\mathrm{Var}(w) = 2 / n_{in}$: **He**. With a slope $a$
# on the negative side $(1 + a^2) / 2$ is left, and $2 / ((1 + a^2)\, n_{in})$ is needed.
#
# **Uniform weights.** $U(a, b)$ has the variance $(b - a)^2 / 12$.
# So $U(-r, r)$ has $r^2 / 3$, and Glorot's limit is $r = \sqrt{6 / (n_{in} + n_{out})}$.
#
# All of it by numbers, from a million draws each:

# %%
rng = np.random.default_rng(SEED)
z = rng.normal(size=1_000_000)
x = np.maximum(rng.normal(size=(1000, 200)), 0)  # mean square 1/2, mean not 0
w = rng.normal(scale=0.3, size=(200, 1000))
laws = {
    "variance of U(-3, 1)": (rng.uniform(-3, 1, 1_000_000).var(), 4**2 / 12),
    "variance of a sum of 200 products": ((x @ w).var(), 200 * 0.3**2 * 0.5),
    "mean square after ReLU": (np.mean(np.maximum(z, 0) ** 2), 1 / 2),
    "mean square after leaky ReLU 0.2": (
        np.mean(np.maximum(z, 0.2 * z) ** 2),
        (1 + 0.2**2) / 2,
    ),
}
shape = fan_in, fan_out = 784, 100
for name, variance in {
    "LecunNormal": 1 / fan_in,
    "GlorotNormal": 2 / (fan_in + fan_out),
    "GlorotUniform": 2 / (fan_in + fan_out),
    "HeNormal": 2 / fan_in,
    "HeUniform": 2 / fan_in,
}.items():
    drawn = keras.ops.convert_to_numpy(getattr(initializers, name)(SEED)(shape))
    laws[f"variance of {name}, 784 to 100"] = drawn.var(), variance
    if name == "GlorotUniform":
        limit = np.sqrt(6 / (fan_in + fan_out))
        laws[f"largest of {name}, 784 to 100"] = drawn.max(), limit
pd.DataFrame(laws, index=["measured", "formula"]).T.rename_axis("law")

# %% [markdown]
# Glorot's normal form is sometimes written as standard normal weights times
# $\sqrt{2 / (n_l + n_{l-1})}$, the sizes of a layer and of the one before: the same thing.

# %% [markdown]
# ## The activations and their slopes
#
# The derivatives are computed by the backend's own differentiation, as in training. At each
# layer the gradient is multiplied by the dashed line, so look where it is near 0.


# %%
def slopes(function, z):
    """The derivative of `function` at each entry of z."""
    z = keras.ops.convert_to_tensor(z)
    if keras.backend.backend() == "jax":
        import jax

        return np.array(jax.grad(lambda z: keras.ops.sum(function(z)))(z))
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(z)
        values = function(z)
    return tape.gradient(values, z).numpy()


prelu = UnitPReLU(alpha_initializer=initializers.Constant(0.4))
maxout = Maxout(1, 3)
maxout.build((None, 1))
piece_slopes, piece_shifts = np.array([[-0.8, 0.2, 1.2]]), np.array([-1.2, 0.3, -0.8])
maxout.set_weights([piece_slopes, piece_shifts])
GALLERY = {
    r"sigmoid: $1 / (1 + e^{-z})$": keras.activations.sigmoid,
    r"tanh: $2\sigma(2z) - 1$": keras.activations.tanh,
    r"ReLU: $\max(0, z)$": keras.activations.relu,
    r"leaky ReLU: $\max(a z, z)$, $a=0.2$": keras.activations.leaky_relu,
    r"PReLU: $a$ is learned, here 0.4": prelu,
    r"ELU: $e^z - 1$ where $z<0$": keras.activations.elu,
    r"SELU: $\lambda z$; $\lambda \alpha (e^z - 1)$": keras.activations.selu,
    r"GELU: $z\,\Phi(z)$": functools.partial(keras.activations.gelu, approximate=False),
    r"swish: $z\,\sigma(z)$": keras.activations.silu,
    r"mish: $z \tanh(\ln(1 + e^z))$": keras.activations.mish,
    "Maxout: largest of 3 lines, learned": maxout,
}
z = np.linspace(-4, 4, 801, dtype="float32")[:, np.newaxis]
figure, panels = plt.subplots(3, 4, figsize=(13, 8), sharex=True, sharey=True)
for axes, (title, function) in zip(panels.flat, GALLERY.items(), strict=False):
    if function is maxout:
        axes.plot(z, z * piece_slopes + piece_shifts, color="0.7", lw=1)
    values = keras.ops.convert_to_numpy(function(keras.ops.convert_to_tensor(z)))
    axes.plot(z, values, color=colours[0], lw=2.5, label="$f(z)$")
    axes.plot(z, slopes(function, z), "--", color=colours[3], lw=2, label="$f'(z)$")
    axes.set(title=title, ylim=(-1.9, 3))
panels[-1, -1].axis("off")
panels[-1, -1].legend(
    *panels[0, 0].get_legend_handles_labels(), loc="center", fontsize=18
)
for axes in [*panels[-1, :-1], panels[1, -1]]:
    axes.set_xlabel("z")
    axes.tick_params(labelbottom=True)
figure.tight_layout()
plt.show()

# %% [markdown]
# The same as numbers, for $z$ from a standard normal distribution, as a good start gives it
# to the first layer. `E f²` is what becomes of the signal's mean square, `E f'²` of that of
# the gradient; `flat` is the share of $z$ at which the slope is below 0.05.

# %%
z = rng.normal(size=(200_000, 1)).astype("float32")
numbers = {}
for title, function in GALLERY.items():
    values = keras.ops.convert_to_numpy(function(keras.ops.convert_to_tensor(z)))
    derivative = slopes(function, z)
    numbers[title.partition(":")[0]] = {
        "least f": values.min(),
        "largest f'": derivative.max(),
        "E f": values.mean(),
        "E f²": np.square(values).mean(),
        "E f'²": np.square(derivative).mean(),
        "flat": np.mean(np.abs(derivative) < 0.05),
    }
pd.DataFrame(numbers).T.rename_axis("activation")

# %% [markdown]
# - **Sigmoid** has no slope above 0.25 and a mean of 0.5: of the gradient's mean square
#   each layer lets a twentieth through. **tanh** is centred, with slope 1 at 0; both
#   are flat on either side.
# - **ReLU** has slope 1 or 0. What is never positive never learns: it can die. **Leaky
#   ReLU** and **PReLU** keep a slope everywhere.
# - **ELU** has a mean nearer to 0. **SELU** is ELU times two constants, such that mean
#   0 and mean square 1 stay as they are.
# - **GELU**, **swish** and **mish** are smooth, dip below 0 and come back. Their slope is
#   a little above 1 in places, and negative in others.
# - **Maxout** has no shape of its own: it learns it, for several times the weights.

# %% [markdown]
# ## Which weights for which activation
#
# `initializer_for` takes the name, the function or the layer, whose slope it reads. To see
# what it is good for, a random signal goes through 20 layers of 100 units; 1 is what it
# began with, as root mean square.


# %%
def after_layers(activation, start, num_layers=20):
    keras.utils.set_random_seed(SEED)
    signal = keras.random.normal((256, 100))
    for _ in range(num_layers):
        signal = activation(keras.ops.matmul(signal, start()((100, 100))))
    return float(np.sqrt(np.mean(np.square(keras.ops.convert_to_numpy(signal)))))


names = ["sigmoid", "tanh", "relu", "elu", "selu", "gelu", "silu", "mish"]
activations = {name: keras.activations.get(name) for name in names}
activations |= {
    f"LeakyReLU({slope})": keras.layers.LeakyReLU(slope) for slope in (0.1, 0.5)
}
activations["PReLU, slopes 0.25"] = keras.layers.PReLU(initializers.Constant(0.25))
rows = {}
for name, activation in activations.items():
    start = initializer_for(activation)
    rows[name] = {
        "variance": f"{start.scale:.3g} / {start.mode}",
        "after 20 layers": after_layers(
            activation, lambda a=activation: initializer_for(a)
        ),
        "with Keras's default": after_layers(activation, initializers.GlorotUniform),
        "with He's, slope or not": after_layers(activation, initializers.HeNormal),
    }
pd.DataFrame(rows).T.rename_axis("activation")

# %% [markdown]
# For ReLU and its leaky kin the formula keeps the size, if the slope is in it; without, the
# signal grows. For ELU, GELU and mish it is a rule of thumb, and for swish a bad one: these
# come close to ReLU only for a large $z$. With tanh it fades, slowly. For sigmoid the number
# says little: it is the mean of 0.5, whatever comes in.
#
# ### Two kernels that Keras counts wrongly
#
# He's weights should double the mean square, so that ReLU can halve it. Keras (3.15) takes
# the last two axes of any kernel for inputs and outputs. In a depthwise kernel an output
# sees one channel, not all 32; in a transposed one the two axes are the other way round.

# %%
images = keras.random.normal((16, 12, 12, 32), seed=SEED)


def mean_square(layer):
    outputs = keras.ops.convert_to_numpy(layer(images))[:, 2:-2, 2:-2]  # no border
    return np.square(outputs).mean()


layers = keras.layers
he, ours = initializers.HeNormal, functools.partial(initializer_for, "relu")
depthwise, transposed = ours(kernel="depthwise"), ours(kernel="transposed")
pd.DataFrame(
    {
        "Conv2D": {
            "Keras's HeNormal": mean_square(
                layers.Conv2D(64, 3, kernel_initializer=he())
            ),
            "initializer_for": mean_square(
                layers.Conv2D(64, 3, kernel_initializer=ours())
            ),
        },
        "DepthwiseConv2D": {
            "Keras's HeNormal": mean_square(
                layers.DepthwiseConv2D(3, depthwise_initializer=he())
            ),
            "initializer_for": mean_square(
                layers.DepthwiseConv2D(3, depthwise_initializer=depthwise)
            ),
        },
        "Conv2DTranspose to 8 channels": {
            "Keras's HeNormal": mean_square(
                layers.Conv2DTranspose(8, 3, kernel_initializer=he())
            ),
            "initializer_for": mean_square(
                layers.Conv2DTranspose(8, 3, kernel_initializer=transposed)
            ),
        },
    }
).T.rename_axis("should be 2")

# %% [markdown]
# ## Where no formula fits: LSUV
#
# Twenty layers of swish on pixels from 0 to 1, not standardized: too small a signal, which
# swish, near 0 a line of slope 1/2, makes smaller at each layer. LSUV asks no formula. It
# runs a batch and scales each kernel, layer by layer, until $z$ has deviation 1.

# %%
start = functools.partial(initializer_for, "swish")
deep = functools.partial(network, start, "swish", 2 * NUM_LAYERS)
scaled = deep()
table = lsuv(scaled, pixels[:512])
table.iloc[[0, 1, 2, len(table) // 2, -3, -2, -1]]

# %%
runs = {
    "He, pixels 0 to 1": train(deep(), pixels, pixels_valid),
    "He, standardized": train(deep()),
    "LSUV, pixels 0 to 1": train(scaled, pixels, pixels_valid),
}
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
left.plot(range(1, len(table) + 1), table, ".-", label=["before LSUV", "after LSUV"])
left.set(yscale="log", xlabel="layer", title="deviation of z, pixels 0 to 1")
left.legend()
for name, history in runs.items():
    right.plot(history["loss"], "o-", label=name)
right.set(xlabel="epoch", title="training loss", xticks=runs[name].index)
right.legend()
plt.show()
pd.DataFrame({name: run.iloc[-1] for name, run in runs.items()}).T.rename_axis("run")

# %% [markdown]
# With He's weights on these pixels the network learns next to nothing in these epochs.
# Standardized inputs help it, and so does LSUV, without touching the inputs.

# %% [markdown]
# ## SELU: a hundred layers that keep their size
#
# With LeCun's weights and standardized inputs, mean 0 and deviation 1 are where SELU pulls
# every signal back to, at any depth. The same hundred layers, with one of the conditions
# broken in each:

# %%
lecun = initializers.LecunNormal
cases = {
    "as it should be": (lecun, None, x_train),
    "pixels 0 to 1": (lecun, None, pixels),
    "He's weights": (initializers.HeNormal, None, x_train),
    "Dropout(0.1)": (lecun, keras.layers.Dropout, x_train),
    "AlphaDropout(0.1)": (lecun, keras.layers.AlphaDropout, x_train),
}
signals, found = {}, {}
for name, (start, dropout, inputs) in cases.items():
    keras.utils.set_random_seed(SEED)
    stack = [keras.Input((28, 28)), keras.layers.Flatten()]
    for _ in range(NUM_SELU_LAYERS):
        stack.append(keras.layers.Dense(100, "selu", kernel_initializer=start()))
        if dropout:
            stack.append(dropout(0.1))
    model = compiled([*stack, keras.layers.Dense(10, "softmax")])
    signal, deviations = keras.ops.convert_to_tensor(inputs[:256]), []
    for layer in model.layers[:-1]:
        signal = layer(signal, training=True)
        if isinstance(layer, keras.layers.Dense):
            deviations.append(keras.ops.convert_to_numpy(signal).std())
    signals[name] = deviations
    findings = check_model(model, inputs[:256], y_train[:256])
    found[name] = {
        "findings": len(findings),
        "the first one": findings[0].symptom if findings else "",
        "advice": findings[0].advice if findings else "",
    }
figure, axes = plt.subplots(figsize=(10, 3.8), layout="constrained")
for name, deviations in signals.items():
    axes.plot(range(1, len(deviations) + 1), deviations, label=name)
axes.set(yscale="log", xlabel="hidden layer", ylabel="deviation of the outputs")
axes.set_yticks([0.5, 1, 2, 10, 100], ["0.5", "1", "2", "10", "100"])
axes.legend()
plt.show()
pd.DataFrame(found).T.rename_axis("case")

# %% [markdown]
# - Unscaled **inputs** harm the first layers; SELU brings the signal back within some ten.
# - **He's weights** are twice too strong: a little more at each layer, over 200 times in
#   the end. This is the one that ruins a deep network.
# - Plain **dropout** puts zeros where SELU has its mean, and the deviation settles at
#   another value. `AlphaDropout` puts SELU's lower bound there, and makes good for it.

# %% [markdown]
# ## ReLUs that die
#
# One step that is too large can move a unit's weights and bias so far that $z < 0$ for
# every image. Then its slope is 0 for every image, and it has no gradient to come back by.
# Five layers, Adam, at a rate of 0.05, some fifty times the usual; `ActivationMonitor`
# counts the units that are 0 on all of 512 images.


# %%
def normalized(optimizer):
    keras.utils.set_random_seed(SEED)
    stack = [keras.Input((28, 28)), keras.layers.Flatten()]
    for _ in range(NUM_LAYERS // 2):
        stack += dense_block(100, "relu", normalization="batch")
    return compiled([*stack, keras.layers.Dense(10, "softmax")], optimizer)


def five_layers(activation, optimizer):
    start = functools.partial(initializer_for, activation)
    return network(start, activation, NUM_LAYERS // 2, optimizer)


adam = keras.optimizers.Adam
dying = {
    "ReLU, rate 0.05": five_layers("relu", adam(0.05)),
    "lower rate: 0.001": five_layers("relu", adam(0.001)),
    "leaky ReLU, rate 0.05": five_layers("leaky_relu", adam(0.05)),
    "batch norm, rate 0.05": normalized(adam(0.05)),
}
monitors = {name: ActivationMonitor(x_valid[:512]) for name in dying}
runs = {name: train(model, callbacks=[monitors[name]]) for name, model in dying.items()}

# %% [markdown]
# The first of the four, layer by layer. Look where the dead share jumps.

# %%
with plt.rc_context({"axes.grid": False, "figure.dpi": 55}):
    figure = monitors["ReLU, rate 0.05"].plot()
figure  # noqa: B018

# %% [markdown]
# After training few units are left, if any, in the layers behind the first; signal and
# gradient have to pass through these:

# %%
table = signal_table(dying["ReLU, rate 0.05"], x_probe, y_probe)
table.filter(like="hidden", axis="index")[["std", "dead", "gradient_norm"]]

# %% [markdown]
# And the three repairs beside it:

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
dead = {}
for name, monitor in monitors.items():
    frame = monitor.to_frame()
    frame = frame[frame["layer"].str.startswith(("hidden", "activation"))]
    dead[name] = frame.groupby("epoch")["fraction_dead"].mean()
    left.plot(dead[name].index + 1, dead[name], "o-", label=name)
    right.plot(runs[name]["val_accuracy"], "o-", label=name)
left.set(title="share of hidden units that are dead", xlabel="epochs trained")
right.set_xticks(runs[name].index)
left.yaxis.set_major_formatter("{x:.0%}")
right.set(title="validation accuracy", xlabel="epoch")
left.legend()
plt.show()
pd.DataFrame(
    {
        name: {
            "dead": dead[name].iloc[-1],
            "loss": runs[name]["loss"].iloc[-1],
            "val_accuracy": runs[name]["val_accuracy"].iloc[-1],
        }
        for name in runs
    }
).T.rename_axis("run")

# %% [markdown]
# At the high rate most units are dead after the first epoch, few come back, and the
# accuracy stays behind. A lower rate keeps the units alive. Leaky ReLU and batch
# normalization bear the high rate better: the one has a slope on the way back, the
# other brings $z$ around 0 at each step, whatever the weights below do. (A leaky unit
# is never exactly 0, so it never counts as dead.)

# %% [markdown]
# ## The activations at work
#
# The same five layers with each activation and the weights that suit it, Adam at 0.001,
# short trainings from several seeds: one seed alone would tell a story of its own.


# %%
def accuracies_of(activation):
    """The validation accuracy of each seed; the model is compiled once for all."""
    stack = [keras.Input((28, 28)), keras.layers.Flatten()]
    for _ in range(NUM_LAYERS // 2):
        stack += dense_block(100, activation)
    model = compiled([*stack, keras.layers.Dense(10, "softmax")], adam(0.001))
    optimizer, accuracies = model.optimizer, []
    optimizer.build(model.trainable_variables)
    begin = [np.array(keras.ops.convert_to_numpy(v)) for v in optimizer.variables]
    for seed in range(SEEDS):
        keras.utils.set_random_seed(seed)
        model.set_weights(keras.models.clone_model(model).get_weights())
        for variable, value in zip(optimizer.variables, begin, strict=True):
            variable.assign(value)
        batches = epoch_batches(x_train, y_train, BATCH_SIZE, seed=seed)
        model.fit(batches, epochs=min(3, EPOCHS), verbose=0)
        scores = model.evaluate(x_valid, y_valid, verbose=0, return_dict=True)
        accuracies.append(scores["accuracy"])
    return accuracies


chosen = "sigmoid tanh relu leaky_relu prelu elu selu gelu swish mish maxout".split()
chosen = chosen[:2] if QUICK else chosen
accuracies = pd.DataFrame({name: accuracies_of(name) for name in chosen})
summary = accuracies.agg(["mean", "std"]).T.sort_values("mean")
figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
axes.errorbar(summary["mean"], summary.index, xerr=summary["std"], fmt="o", capsize=4)
axes.plot(accuracies[summary.index].T, summary.index, "x", color=colours[3])
axes.set(xlabel="validation accuracy after a short training; crosses: the seeds")
plt.show()
summary.rename_axis("activation")

# %% [markdown]
# Sigmoid is behind, as its slopes say. Between the others the differences are of the size
# of the seeds' own: on five layers choose by what you need, not by this table.

# %% [markdown]
# ## What to remember
#
# - Weights must differ; biases need not. `initializer_for` gives their size.
# - He for ReLU and its kin, LeCun for SELU, Glorot for the rest; LSUV where that fails.
# - Before training `check_model`, in doubt `signal_table`: level lines are what you want.
# - While training `ActivationMonitor`: units that die want a lower rate, a leak, or batch
#   normalization.
#
# Reference: Géron, *Hands-On Machine Learning*, 3rd edition, chapter 11; Glorot, Bengio,
# [Understanding the Difficulty of Training Deep Feedforward Neural
# Networks](https://proceedings.mlr.press/v9/glorot10a.html), 2010; He et al., [Delving Deep
# into Rectifiers](https://arxiv.org/abs/1502.01852), 2015; Klambauer et al.,
# [Self-Normalizing Neural Networks](https://arxiv.org/abs/1706.02515), 2017; Mishkin,
# Matas, [All You Need Is a Good Init](https://arxiv.org/abs/1511.06422), 2016.

# %%
print(f"keras {keras.version()} on {keras.backend.backend()}, numpy {np.__version__}")
print(f"{', '.join(keras.distribution.list_devices())}, {pd.Timestamp.now():%Y-%m-%d}")
