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
# # Optimizers
#
# **Summary.** A loss is a valley: steep across, almost flat along. Plain gradient descent
# takes one rate for both, and so one that suits neither. Momentum chooses a better
# *direction*, AdaGrad and RMSprop a *step size* for each weight, Adam both. Here each walks
# through a valley of two weights, where one can watch, and then trains a network on
# Fashion-MNIST.

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

from callbacks.schedulers import OneCycleScheduler
from recipes.fashion_mnist import draw_garments, epoch_batches, load, split_and_scale
from recipes.initializers import initializer_for
from recipes.optimizers import CHAPTER_OPTIMIZERS, make_optimizer
from recipes.schedules import OneCycle

QUICK = bool(os.environ.get("QUICK"))
EPOCHS, NUM_LAYERS = (1, 1) if QUICK else (4, 3)
BATCH_SIZE = 128
SEED = 42

if QUICK:
    data = split_and_scale(
        draw_garments(800), draw_garments(200, seed=1), validation_size=200
    )
else:
    data = load("../data/fashion-mnist")

COLORS = ["#0072B2", "#D55E00", "#009E73", "#8C5AA8"]
plt.rcParams.update({"figure.dpi": 52, "font.size": 12})
plt.rcParams.update({"axes.prop_cycle": plt.cycler(color=COLORS)})
plt.rcParams.update({"axes.grid": True, "grid.alpha": 0.3})


def label_ends(axes, gap=0.09):
    """Write each line's label behind its end, moved where two would meet."""
    to_axes = axes.transData + axes.transAxes.inverted()
    lines = [line for line in axes.lines if not line.get_label().startswith("_")]
    ends = [to_axes.transform(line.get_xydata()[-1])[1] for line in lines]
    order = np.argsort(ends)
    places, top = np.arange(len(lines)) * gap, 1 - (len(lines) - 1) * gap
    # places + the least that rises with each line and is not below its end
    heights = places + np.maximum.accumulate(np.array(ends)[order] - places)
    heights = np.clip(heights, places + 0.02, places + top)
    for place, height in zip(order, heights, strict=True):
        style = {"color": lines[place].get_color(), "va": "center"}
        axes.text(
            1.02, height, lines[place].get_label(), **style, transform=axes.transAxes
        )


# %% [markdown]
# ## A narrow valley
#
# The loss of two weights $w$, 60 times as steep across the valley as along it:
#
# $$f(w) = \tfrac12\, w^\top H w, \qquad H \text{ with eigenvalues } 1 \text{ and } 60,
# \text{ turned by } 20°.$$
#
# It is turned because the optimizers with a step size for each weight would have it too easy
# if the valley ran along an axis. `descend` hands the gradient $Hw$ to a real optimizer.

# %%
ANGLE = np.deg2rad(20)
AXES = np.array([[np.cos(ANGLE), np.sin(ANGLE)], [-np.sin(ANGLE), np.cos(ANGLE)]])
HESSIAN = AXES.T @ np.diag([1.0, 60.0]) @ AXES
START = np.array([-4.0, 0.5])
STEPS = 10 if QUICK else 100


def valley(points):
    """Loss at `points`, an array (..., 2)."""
    return 0.5 * np.sum(points @ HESSIAN * points, axis=-1)


def descend(optimizer, num_steps=STEPS, watch=None):
    """The points that `optimizer` visits from START on, an array (steps + 1, 2)."""
    weights, points = keras.Variable(START), [START]
    for _ in range(num_steps):
        gradient = keras.ops.convert_to_tensor(HESSIAN @ points[-1], dtype="float32")
        optimizer.apply([gradient], [weights])
        points.append(keras.ops.convert_to_numpy(weights).astype("float64"))
        if watch is not None:
            watch(optimizer)
        if np.abs(points[-1]).max() > 20:  # it has left the valley for good
            break
    return np.array(points)


def best_descent(name, rates):
    """The rate of the lowest mean loss over the last third, and the points it visits."""
    descents = {rate: descend(make_optimizer(name, rate)) for rate in rates}
    kept = [rate for rate in rates if len(descents[rate]) == STEPS + 1]
    third = -STEPS // 3
    rate = min(kept, key=lambda rate: valley(descents[rate][third:]).mean())
    return rate, descents[rate]


# %% [markdown]
# Each optimizer gets the best of eight rates from 0.01 to 30. Nine of the chapter's ten;
# AdamW comes below.

# %%
RATES = [0.01, 1] if QUICK else [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30]
FAMILIES = {
    "direction": ["sgd", "momentum", "nesterov"],
    "step size": ["adagrad", "adadelta", "rmsprop"],
    "both": ["adam", "adamax", "nadam"],
}
descents = {
    name: best_descent(name, RATES) for names in FAMILIES.values() for name in names
}

# %% [markdown]
# A row for each idea: paths on the left, the loss of the same paths on the right. Look for
# three things: does it zigzag across, does it move along the floor, does it stop at the star?


# %%
def draw_valley(axes, x=(-5, 1.5), y=(-2.6, 1.2)):
    grid = np.meshgrid(np.linspace(*x, 150), np.linspace(*y, 150))
    levels = np.geomspace(0.03, 3000, 11)
    heights = valley(np.stack(grid, axis=-1))
    axes.contourf(*grid, heights, levels, norm="log", cmap="Greys", alpha=0.4)
    axes.plot(0, 0, "k*", ms=10, zorder=4)
    axes.plot(*START, "ko", ms=5, zorder=4)
    axes.set(xlim=x, ylim=y)
    axes.grid(False)


figure, panels = plt.subplots(
    3, 4, figsize=(14.5, 8), width_ratios=(1, 1, 1, 0.95), layout="constrained"
)
for row, (family, names) in zip(panels, FAMILIES.items(), strict=True):
    for axes, name, color in zip(row, names, COLORS, strict=False):
        rate, points = descents[name]
        draw_valley(axes)
        axes.plot(*points.T, ".-", color=color, lw=1, ms=5)
        axes.set_title(f"{name}, rate {rate:g}", color=color)
        axes.label_outer()
        row[-1].plot(valley(points), color=color, label=name)
    row[0].set_ylabel(f"better {family}" if family != "both" else "both", size=13)
    row[-1].set(yscale="log", ylim=(1e-6, 1e3))
    label_ends(row[-1])
panels[0, 0].annotate("start", START, (-4.6, 0.8))
panels[0, 0].annotate("minimum", (0, 0), (-0.6, 0.3))
panels[0, -1].set_title("loss")
panels[-1, -1].set_xlabel("step")
plt.show()

# %% [markdown]
# - **sgd** is the measure: its rate must stay below 2/60, or it would climb the walls, and at
#   that rate it creeps along the floor.
# - **momentum** adds up the gradients along the floor, and swings across it. **nesterov** takes
#   the gradient ahead of the swing, which damps it.
# - **adagrad**, **rmsprop** and **adadelta** take their step size from the gradients of
#   before. RMSprop's step does not shrink at the end, and it bounces there. Adadelta also
#   measures its step by its earlier steps, and begins with none.
# - **adam**, **adamax** and **nadam** have both. Adam swings like momentum, and Nadam does not.
#
# The best rates go from 0.01 to 30: one that suits one optimizer says nothing about
# another: that is the first reason why "Adam is better than SGD" is hard to measure.

# %%
adamw = descend(make_optimizer("adamw", descents["adam"][0]))
apart = np.abs(adamw - descents["adam"][1]).max()
print(
    f"AdamW with the chapter's weight decay of 1e-5 stays within {apart:.1g} of Adam."
)

# %% [markdown]
# ## AdaGrad stalls
#
# Both divide the rate $\eta$ by the size of the gradients $g$ of before, for each weight:
#
# $$\text{AdaGrad: } s \leftarrow s + g^2, \qquad
# \text{RMSprop: } s \leftarrow 0.9\, s + 0.1\, g^2, \qquad
# w \leftarrow w - \frac{\eta}{\sqrt s}\, g.$$
#
# AdaGrad's sum can only grow, so $\eta / \sqrt s$, the rate in effect, can only fall. It can be
# read from the optimizer. First in the valley, with rates that make about the same first step.


# %%
def effective_rates(optimizer):
    """AdaGrad's or RMSprop's rate / sqrt(s), for each weight."""
    sums = [
        np.ravel(keras.ops.convert_to_numpy(variable))
        for variable in optimizer.variables
        if variable.path.endswith(("accumulator", "velocity"))
    ]
    rate = float(keras.ops.convert_to_numpy(optimizer.learning_rate))
    return rate / np.sqrt(np.concatenate(sums) + 1e-7)


in_valley = {}
for label, optimizer in {
    "AdaGrad": make_optimizer("adagrad", 0.3, initial_accumulator_value=0.0),
    "RMSprop": make_optimizer("rmsprop", 0.1),
}.items():
    rates = []
    points = descend(
        optimizer, 2 * STEPS, lambda seen, to=rates: to.append(effective_rates(seen))
    )
    in_valley[label] = np.mean(rates, axis=1), valley(points)

# %% [markdown]
# Then on Fashion-MNIST: the chapter's three layers of 100 ReLU, with the same initial weights
# and the same order of images for every optimizer. Here a third run is needed, because
# Keras begins AdaGrad's sum not at 0 but at 0.1.


# %%
def train(optimizer, callbacks=()):
    """History of a run, by epoch."""
    keras.utils.set_random_seed(SEED)
    model = keras.Sequential([keras.Input((28, 28)), keras.layers.Flatten()])
    for _ in range(NUM_LAYERS):
        weights = initializer_for("relu")
        model.add(keras.layers.Dense(100, "relu", kernel_initializer=weights))
    model.add(keras.layers.Dense(10, "softmax"))
    model.compile(
        optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    history = model.fit(
        epoch_batches(data.x_train, data.y_train, BATCH_SIZE, seed=SEED),
        epochs=EPOCHS,
        validation_data=(data.x_valid, data.y_valid),
        callbacks=list(callbacks),
        verbose=0,
    )
    epochs = pd.RangeIndex(1, EPOCHS + 1, name="epoch")
    return pd.DataFrame(history.history, index=epochs)


class Record(keras.callbacks.Callback):
    """Keep what `read(optimizer)` gives after every `every_steps` steps."""

    def __init__(self, read, every_steps):
        super().__init__()
        self.read, self.every_steps = read, every_steps
        self.values = []

    def on_train_batch_end(self, batch, logs=None):
        if batch % self.every_steps == 0:
            self.values.append(self.read(self.model.optimizer))


on_network = {}
for label, optimizer in {
    "AdaGrad": make_optimizer("adagrad", 0.003, initial_accumulator_value=0.0),
    "RMSprop": make_optimizer("rmsprop"),
    "AdaGrad from 0.1": make_optimizer("adagrad", 0.003),
}.items():
    record = Record(
        lambda seen: np.median(effective_rates(seen)), every_steps=4 if QUICK else 20
    )
    history = train(optimizer, [record])
    on_network[label] = np.array(record.values), history

# %% [markdown]
# Look at the upper row first: whose rate falls, whose comes back?

# %%
steps_per_epoch = -(-len(data.x_train) // BATCH_SIZE)
figure, panels = plt.subplots(
    2, 2, figsize=(12, 6.4), sharex="col", layout="constrained"
)
for label, (rates, losses) in in_valley.items():
    panels[0, 0].plot(np.arange(1, len(rates) + 1), rates, label=label)
    panels[1, 0].plot(losses, label=label)
for label, (rates, run) in on_network.items():
    steps = np.linspace(1, EPOCHS * steps_per_epoch, len(rates))
    panels[0, 1].plot(steps, rates, label=label)
    panels[1, 1].plot(run.index * steps_per_epoch, run["loss"], ".-", label=label)
panels[0, 0].set(title="in the valley", ylabel="rate in effect, mean", yscale="log")
panels[0, 1].set(
    title="on Fashion-MNIST", ylabel="rate in effect, median", yscale="log"
)
panels[1, 0].set(xlabel="step", ylabel="loss", yscale="log")
panels[1, 1].set(xlabel="step", ylabel="training loss")
for axes in panels.flat:
    label_ends(axes)
plt.show()

# %% [markdown]
# - **In the valley**, the steep wall at the start has used up AdaGrad's rate, and it creeps
#   along the flat floor. RMSprop forgets the wall, its rate grows more than tenfold, and it
#   is there long before; then its rate, still that high, bounces it about.
# - **On Fashion-MNIST**, gradients never end, because each batch pulls another way: the sum
#   grows with the steps $t$, and AdaGrad's rate falls like $1/\sqrt t$, whether that is good
#   or not. RMSprop's stays. In these few epochs it costs AdaGrad little.
# - **From 0.1**, Keras's default, hardly anything adapts here: for the median weight the squared
#   gradients of all steps together are small beside 0.1. That is plain gradient descent with
#   3.2 times the rate. Give `initial_accumulator_value` when you want AdaGrad.

# %%
for label, (rates, _) in on_network.items():
    print(f"{label:18}rate at the end / after 20 steps: {rates[-1] / rates[1]:.2g}")

# %% [markdown]
# ## Adam with and without bias correction
#
# Adam keeps running means of $g$ and $g^2$, which start at 0:
#
# $$m \leftarrow \beta_1 m + (1 - \beta_1)\, g, \qquad v \leftarrow \beta_2 v + (1 - \beta_2)\, g^2,
# \qquad w \leftarrow w - \eta\,\frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)}}.$$
#
# The two divisors correct the start. Keras has no switch for them, so here is the rule in
# NumPy; with them it is Keras's, up to float32's rounding.


# %%
def adam_steps(gradients, *, correct, beta_1=0.9, beta_2=0.999, epsilon=1e-7):
    """Adam's steps in units of the rate, one for each of `gradients`."""
    mean, square, steps = 0.0, 0.0, []
    for t, gradient in enumerate(gradients, start=1):
        mean = beta_1 * mean + (1 - beta_1) * gradient
        square = beta_2 * square + (1 - beta_2) * gradient**2
        correction = np.sqrt(1 - beta_2**t) / (1 - beta_1**t) if correct else 1.0
        steps.append(correction * mean / (np.sqrt(square) + epsilon))
    return np.array(steps)


rng = np.random.default_rng(SEED)
gradients = rng.normal(1.0, 2.0, size=100).astype("float32")
weight, adam, from_keras = keras.Variable(0.0), make_optimizer("adam", 1.0), []
for gradient in gradients:
    weight.assign(0.0)
    adam.apply([keras.ops.convert_to_tensor(gradient)], [weight])
    from_keras.append(-float(keras.ops.convert_to_numpy(weight)))
for correct in (True, False):
    difference = np.abs(adam_steps(gradients, correct=correct) - from_keras).max()
    print(f"{correct=}: at most {difference:.1g} rates from Keras's 100 steps")

# %% [markdown]
# Left: the steps under a gradient that stays the same, where each should be one rate long.
# Right: the first ten steps in the valley at the rate 0.3; look how far the dots are apart.


# %%
def adam_descent(correct, rate=0.3, num_steps=10):
    """The points that Adam visits in the valley, an array (steps + 1, 2)."""
    gradients, points = [], [START]
    for _ in range(num_steps):
        gradients.append(HESSIAN @ points[-1])
        step = adam_steps(gradients, correct=correct)[-1]
        points.append(points[-1] - rate * step)
    return np.array(points)


figure, (left, right) = plt.subplots(
    1, 2, figsize=(12.5, 4), width_ratios=(1, 1.25), layout="constrained"
)
constant = np.ones(5000)
steps = np.arange(1, len(constant) + 1)
for correct, color in [(True, COLORS[0]), (False, COLORS[1])]:
    label = "corrected" if correct else "not corrected"
    lengths = adam_steps(constant, correct=correct)
    left.plot(steps, lengths, color=color)
    left.text(60, 1.25 if correct else 5.6, label, color=color)
    right.plot(*adam_descent(correct).T, ".-", color=color, lw=1)
    if not correct:
        print("first steps, not corrected:", *np.round(lengths[:10], 1), "rates")
        print(f"longest: step {lengths.argmax() + 1}, {lengths.max():.1f} rates")
left.set(xscale="log", ylim=(0, 7.5), xlabel="step", ylabel="step length / rate")
draw_valley(right)
plt.show()

# %% [markdown]
# Not corrected, Adam's first steps are *too long*, not too short: $m$ starts too small by a
# factor of 10, but $\sqrt v$ by 32. The error grows for ten steps and is gone only after some
# thousands, when $\beta_2^t$ is. It is a warm-up the wrong way round: the rate you have set,
# up to 6.6 times, just when the means know least. RMSprop has the same flaw, smaller:
# $1 / \sqrt{0.1} = 3.2$ rates at first, and no correction.

# %% [markdown]
# ## Momentum that changes while it trains
#
# Large momentum gets through the flat part, and swings in the steep one; so one may want less
# of it later. `optimizer.momentum = 0.5` looks as if it did that. The training step is compiled,
# though, and Keras 3.15 has compiled the old number into it, without a word. With
# `make_optimizer` the number lives in a variable.
#
# The valley again, as the loss of a linear neuron, trained by compiled steps: two inputs and
# targets of 0 make just that $f(w)$. The momentum goes from 0.97 to 0.5 after step 50.

# %%
inputs = np.sqrt([[1.0], [60.0]]) * AXES  # mean((inputs @ w)**2) is f(w)


def swing(optimizer, momentum_later):
    """Loss before each of 120 compiled steps, the momentum set after 50."""
    neuron = keras.layers.Dense(1, use_bias=False)
    model = keras.Sequential([keras.Input((2,)), neuron])
    neuron.set_weights([START[:, None]])
    model.compile(optimizer, loss="mse")
    losses = []
    for step in range(120):
        if step == 50 and momentum_later is not None:
            model.optimizer.momentum = momentum_later
        losses.append(float(model.train_on_batch(inputs, np.zeros((2, 1)))))
    return np.array(losses)


swings = {
    "never set": swing(make_optimizer("momentum", 0.01, momentum=0.97), None),
    "set, Keras": swing(keras.optimizers.SGD(0.01, momentum=0.97), 0.5),
    "set, make_optimizer": swing(make_optimizer("momentum", 0.01, momentum=0.97), 0.5),
}
equal = np.allclose(swings["set, Keras"], swings["never set"], rtol=1e-4)
print("Keras's losses with the momentum set are those of never setting it:", equal)

# %% [markdown]
# The other way round it is a recipe: one-cycle lowers the momentum while the rate is high, and
# brings it back. Here is what a run on Fashion-MNIST had in its optimizer after each step, read
# back from its variables.

# %%
total_steps = EPOCHS * steps_per_epoch


def rate_and_momentum(optimizer):
    values = optimizer.learning_rate, optimizer.momentum
    return [float(keras.ops.convert_to_numpy(value)) for value in values]


record = Record(rate_and_momentum, every_steps=1)
cycle = OneCycleScheduler(OneCycle(0.1, total_steps))
one_cycle = train(make_optimizer("momentum"), [cycle, record])

figure = plt.figure(figsize=(13, 4.2), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=(1.15, 1))
axes = left.subplots()
for (label, losses), style in zip(swings.items(), ["-", ":", "-"], strict=True):
    axes.plot(losses, style, lw=3 if style == ":" else 1.5, label=label)
axes.axvline(50, color="0.4", lw=1, ls="--")
axes.text(52, 3e3, "set to 0.5")
axes.set(yscale="log", ylim=(1e-4, 1e4), xlabel="step", ylabel="loss in the valley")
label_ends(axes)
panels = right.subplots(2, 1, sharex=True)
panels[0].set_title("in the optimizer during one-cycle")
for axes, values, label in zip(
    panels, np.transpose(record.values), ["learning rate", "momentum"], strict=True
):
    axes.plot(values)
    axes.set_ylabel(label)
panels[1].set_xlabel("step of training on Fashion-MNIST")
plt.show()
print(f"one-cycle's validation accuracy: {one_cycle['val_accuracy'].iloc[-1]:.4f}")

# %% [markdown]
# Left, the dotted line lies on the blue one: Keras has not noticed. The green one stops swinging
# at once. Right, rate and momentum mirror each other, as planned.

# %% [markdown]
# ## All ten on Fashion-MNIST
#
# The rates are the chapter's and Keras's defaults, 0.001 for all, and *not tuned*; one seed.
# So this is not a ranking. It shows what you get if you take the default.

# %%
runs = {
    name: on_network["RMSprop"][1] if name == "rmsprop" else train(make_optimizer(name))
    for name in CHAPTER_OPTIMIZERS
}

# %%
figure, panels = plt.subplots(
    1, 3, figsize=(14, 4.2), sharey=True, layout="constrained"
)
families = {**FAMILIES, "both": [*FAMILIES["both"], "adamw"]}
for axes, (family, names) in zip(panels, families.items(), strict=True):
    for name, run in runs.items():
        if name not in names:
            axes.plot(run["val_accuracy"], color="0.85", lw=1, label="_others")
    for name in names:
        accuracy = runs[name]["val_accuracy"]
        low = accuracy.iloc[-1] < 0.65
        label = f"{name}: {accuracy.iloc[-1]:.2f}, below" if low else name
        axes.plot(accuracy, ".-", label=label)
    axes.set(title=f"better {family}" if family != "both" else family, xlabel="epoch")
    axes.set(ylim=(0.65, 0.9), xticks=range(1, EPOCHS + 1))
    label_ends(axes)
panels[0].set_ylabel("validation accuracy")
plt.show()

# %% [markdown]
# At 0.001 plain gradient descent, AdaGrad and Adadelta are far behind. Is that the optimizer
# or the rate? Here are the same three at rates that are usual for them:

# %%
USUAL_RATES = {"sgd": 0.1, "adagrad": 0.03, "adadelta": 1.0}
usual = {
    f"{name}, {rate:g}": train(make_optimizer(name, rate))
    for name, rate in USUAL_RATES.items()
}


def numbers_kept_per_weight(name):
    optimizer = make_optimizer(name)
    optimizer.build([keras.Variable(np.zeros(1000))])
    return sum(np.prod(variable.shape) for variable in optimizer.variables) // 1000


table = pd.DataFrame(
    {
        label: {
            "training loss": run["loss"].iloc[-1],
            "validation loss": run["val_loss"].iloc[-1],
            "validation accuracy": run["val_accuracy"].iloc[-1],
            "numbers kept per weight": numbers_kept_per_weight(label.split(",")[0]),
        }
        for label, run in {**runs, **usual}.items()
    }
).T
table.astype({"numbers kept per weight": int}).round(4)

# %% [markdown]
# It was the rate: all three are now among the others. Differences of less than about half a
# point of accuracy say nothing here. AdamW is Adam again: 1e-5 is too little decay to see.

# %% [markdown]
# ## What to remember
#
# - Adam or Nadam at 0.001 is a good first guess. With time to tune, try Nesterov with a
#   schedule: it keeps half as much.
# - Compare optimizers only with a rate found for each (`LRFinder`, notebook 07).
# - AdaGrad is for sparse features; elsewhere RMSprop or Adam. Mind Keras's 0.1.
# - To change the momentum while training, make the optimizer with `make_optimizer`.
#
# Reference: Géron, *Hands-On Machine Learning*, 3rd edition, chapter 11; Duchi, Hazan,
# Singer, [Adaptive Subgradient Methods](https://jmlr.org/papers/v12/duchi11a.html), 2011;
# Kingma, Ba, [Adam](https://arxiv.org/abs/1412.6980), 2015.

# %%
print(f"keras {keras.version()} on {keras.backend.backend()}, numpy {np.__version__}")
print(f"{', '.join(keras.distribution.list_devices())}, {pd.Timestamp.now():%Y-%m-%d}")
