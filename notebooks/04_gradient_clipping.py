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
# # Gradient clipping
#
# **Summary.** Where gradients are products over many layers or time steps, now and then
# one is a thousand times as long as the others, and a single step throws the weights
# away. Clipping shortens such a step. Here is what it does to one gradient, to a network
# that explodes, and how to see whether the bound is well chosen; at the end, where
# Keras 3.15 clips something else than it was asked to.

# %% [markdown]
# ## Setup
#
# `QUICK=1` in the environment runs everything in seconds, on drawn garments. TensorFlow,
# because the last section is about its replicas: two logical devices of the CPU.

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
import warnings

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tensorflow as tf

from callbacks.clipping_logger import ClippingLogger
from recipes.fashion_mnist import draw_garments, epoch_batches, load, split_and_scale
from recipes.initializers import initializer_for
from recipes.optimizers import make_optimizer

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)
tf.get_logger().setLevel("ERROR")
QUICK = bool(os.environ.get("QUICK"))
EPOCHS = 2 if QUICK else 5
NUM_IMAGES = 256 if QUICK else 6400
BATCH_SIZE = 64
SEED = 42
RATE = 0.3  # too large for the recurrent network, on purpose

if QUICK:
    data = split_and_scale(
        draw_garments(512), draw_garments(64, seed=1), validation_size=200
    )
else:
    data = load("../data/fashion-mnist")
x, y = data.x_train[:NUM_IMAGES], data.y_train[:NUM_IMAGES]
plt.rcParams.update({"figure.dpi": 60, "axes.grid": True, "grid.alpha": 0.3})

# %% [markdown]
# ## One gradient, clipped by value and by norm
#
# With a learning rate of 1, the step *is* the clipped gradient. Look at the direction.


# %%
def clipped(gradient, **clipping):
    """The gradient that is left of one, by the optimizer itself."""
    weights = keras.Variable(np.zeros(len(gradient)), dtype="float32")
    optimizer = make_optimizer("sgd", 1.0, **clipping)
    optimizer.apply([keras.ops.convert_to_tensor(gradient, "float32")], [weights])
    return -keras.ops.convert_to_numpy(weights)


gradient = [100.0, 1.0]
ways = {
    "clipvalue=1": clipped(gradient, clipvalue=1.0),
    "clipnorm=1": clipped(gradient, clipnorm=1.0),
}
figure, axes = plt.subplots(figsize=(6, 4.5), layout="constrained")
for (label, (right, up)), color in zip(ways.items(), ("C1", "C0"), strict=True):
    arrow = {"width": 3, "headwidth": 10, "color": color}
    axes.annotate("", (right, up), (0, 0), arrowprops=arrow)
    axes.plot([], [], color=color, lw=3, label=f"{label}: [{right:.4f}, {up:.4f}]")
axes.plot([0, 1.5], [0, 0.015], "k:", label="direction of the gradient [100, 1]")
circle = np.linspace(0, np.pi / 2, 50)
axes.plot(np.cos(circle), np.sin(circle), "--", color="C0", alpha=0.5)
axes.plot([0, 1, 1], [1, 1, 0], "--", color="C1", alpha=0.5)
axes.set(xlim=(-0.05, 1.5), ylim=(-0.05, 1.55), aspect="equal")
axes.set(title="[100, 1], clipped", xlabel="first weight", ylabel="second weight")
axes.legend(loc="upper left")
plt.show()

# %% [markdown]
# By value (the square), the two components come out equal: the step turns by 44 degrees
# towards a weight that hardly mattered. By norm (the circle), it only gets shorter.

# %% [markdown]
# ## A network that explodes
#
# A recurrent network with ReLU reads the 28 rows of an image one after the other. Its
# gradient holds the same matrix 28 times as a factor. A bound of 1e30 is never reached:
# it clips nothing, and lets us read the norm of the gradient after every step.


# %%
class StepNorms(keras.callbacks.Callback):
    """Keeps the norm of the gradient of each step."""

    def __init__(self):
        super().__init__()
        self.norms = []

    def on_train_batch_end(self, batch, logs=None):
        self.norms.append(self.model.optimizer.last_gradient_norm)


def train(learning_rate, **clipping):
    """History, norm of each step, and the logger's finding."""
    keras.utils.set_random_seed(SEED)
    model = keras.Sequential(
        [
            keras.Input((28, 28)),
            keras.layers.SimpleRNN(64, activation="relu"),
            keras.layers.Dense(10, "softmax"),
        ]
    )
    model.compile(
        make_optimizer("sgd", learning_rate, **clipping),
        loss="sparse_categorical_crossentropy",
    )
    steps, logger = StepNorms(), ClippingLogger()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the finding is printed below
        history = model.fit(
            epoch_batches(x, y, BATCH_SIZE, seed=SEED),
            epochs=EPOCHS,
            callbacks=[steps, logger],
            verbose=0,
        )
    return pd.DataFrame(history.history), np.array(steps.norms), logger.finding


def plot_runs(runs, last="clipped_fraction"):
    """Norms by step; loss and one more column by epoch."""
    figure, panels = plt.subplots(1, 3, figsize=(15, 4), layout="constrained")
    for label, (history, norms, _) in runs.items():
        panels[0].plot(norms, label=label, lw=0.8)
        panels[1].plot(history.index + 1, history["loss"], ".-", label=label)
        panels[2].plot(history.index + 1, history[last], ".-", label=label)
    panels[0].set(yscale="log", xlabel="step", title="norm of the gradient")
    panels[1].set(xlabel="epoch", title="training loss", ylim=(0.5, 2.5))
    panels[2].set(xlabel="epoch", title=last.replace("_", " "))
    panels[1].legend()
    plt.show()


# %% [markdown]
# Look at the left panel for the step after which a line stops: from there on all is NaN.

# %%
free = train(RATE, global_clipnorm=1e30)
tamed = train(RATE, global_clipnorm=2.0)
plot_runs({"not clipped": free, "global_clipnorm 2": tamed})
norms = free[1]
if np.isfinite(norms).all():
    print(f"Not clipped: norms from {norms.min():.2f} to {norms.max():.2f}.")
else:
    first = int(np.argmin(np.isfinite(norms)))
    print(f"Not clipped: the first norm that is not finite is that of step {first}.")
    before = ", ".join(f"{norm:.2g}" for norm in norms[first - 6 : first])
    print(f"The six before it: {before}")
print(f"Clipped: loss {tamed[0]['loss'].iloc[-1]:.3f} after {EPOCHS} epochs.")

# %% [markdown]
# One long step led to a place where the next gradient was longer still. The clipped run
# meets long gradients too, and walks on.
#
# Can such steps just be left out? `skip_nonfinite` keeps NaN out of the weights, but it
# comes too late: by then the weights are in a place where every gradient is NaN.

# %%
skipping = train(RATE, global_clipnorm=1e30, skip_nonfinite=True)
print(skipping[0][["loss", "skipped_steps"]])

# %% [markdown]
# ## How large should the bound be?
#
# Measure first: train without clipping at a rate that holds, and take the 90th percentile
# of the norms.

# %%
_, calm_norms, _ = train(0.02, global_clipnorm=1e30)
bound = float(np.percentile(calm_norms, 90))
figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
axes.hist(calm_norms, bins=np.geomspace(calm_norms.min(), calm_norms.max(), 40))
axes.axvline(bound, color="C3", label=f"90th percentile: {bound:.2f}")
axes.set(xscale="log", xlabel="norm of the gradient", title="at rate 0.02, not clipped")
axes.legend()
plt.show()

# %% [markdown]
# Then watch how often it is reached. `ClippingLogger` writes the share of clipped updates
# into History. Look at the right panel: a bound that does its work is reached now and then.
# In the middle, a line that leaves the panel has exploded; guessing gives a loss of 2.3.

# %%
runs = {
    f"global_clipnorm {each:.2f}": train(RATE, global_clipnorm=each)
    for each in (bound / 8, bound, bound * 8)
}
plot_runs(runs)
for label, (_, _, finding) in runs.items():
    print(f"{label}: {finding}")

# %% [markdown]
# The large bound let steps through that this network does not survive. Under the small one
# nearly every step is clipped, so nearly every step is equally long: the bound sets the
# length, together with the rate, and the gradient has no say. That can train well for a
# while, but it does not slow down by itself near the goal. The finding says so.

# %% [markdown]
# ## Bounds that need no number
#
# `percentile` clips at a percentile of the last 100 norms: the bound follows the run.
# `adaptive` compares each unit's gradient with the weights of that unit.

# %%
following = {
    f"global_clipnorm {bound:.2f}": runs[f"global_clipnorm {bound:.2f}"],
    "percentile 90": train(RATE, percentile=90),
    "percentile 10": train(RATE, percentile=10),
    "adaptive 0.05": train(RATE, adaptive=0.05),
}
plot_runs(following)

# %% [markdown]
# The shares are those that were asked for: about a tenth at percentile 90, most at
# percentile 10. With `adaptive` some unit is beyond its bound in nearly every step, so its
# share says little. One seed each: which is lowest here says nothing yet.

# %% [markdown]
# ## Two replicas
#
# A batch is split over two devices, and their gradients are added. Keras 3.15 clips each
# part *before* they are added: two parts of length 1 make a step of up to 2. Compare the
# solid line (one device) with the dashed one (two) in each panel; both should be one line.


# %%
def losses(strategy, optimizer_maker):
    with strategy.scope():
        keras.utils.set_random_seed(SEED)
        model = keras.Sequential([keras.Input((28, 28)), keras.layers.Flatten()])
        weights = initializer_for("relu")
        model.add(keras.layers.Dense(50, "relu", kernel_initializer=weights))
        model.add(keras.layers.Dense(10, "softmax"))
        model.compile(optimizer_maker(), loss="sparse_categorical_crossentropy")
    history = model.fit(
        x, y, batch_size=BATCH_SIZE, epochs=EPOCHS, shuffle=False, verbose=0
    )
    return history.history["loss"]


makers = {
    "Keras's SGD(global_clipnorm=0.2)": lambda: keras.optimizers.SGD(
        0.1, global_clipnorm=0.2
    ),
    "ClippedOptimizer(global_clipnorm=0.2)": lambda: make_optimizer(
        "sgd", 0.1, global_clipnorm=0.2
    ),
}
strategies = {
    "one device": (tf.distribute.get_strategy(), "-"),
    "two replicas": (tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), "--"),
}
figure, panels = plt.subplots(1, 2, figsize=(11, 4), sharey=True, layout="constrained")
for axes, (title, maker) in zip(panels, makers.items(), strict=True):
    found = {}
    for label, (strategy, style) in strategies.items():
        found[label] = losses(strategy, maker)
        axes.plot(range(1, EPOCHS + 1), found[label], style, lw=2.5, label=label)
    axes.set(title=title, xlabel="epoch", ylabel="training loss")
    axes.legend()
    difference = np.abs(np.subtract(*found.values())).max()
    print(f"{title}: the losses differ by at most {difference:.2g}.")
plt.show()

# %% [markdown]
# With Keras's own optimizer, the same program trains differently on two devices, and
# nothing says so. `ClippedOptimizer` clips the sum. More such cases, with their numbers,
# are in `benchmarks/clipping_cases.py`.
