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
# # Reusing pretrained layers
#
# **Summary.** A network that has learned one task can lend its layers to another with few
# labels. First three ways in which that goes wrong in Keras without a word, and what
# `recipes.transfer` does about each. Then what it is worth: the book's example, over seeds,
# and layers that were pretrained without labels, compared with training from scratch.

# %% [markdown]
# ## Setup
#
# `QUICK=1` in the environment runs everything in seconds, on drawn garments. TensorFlow,
# because on JAX the forgotten `compile` below is an error that loses the weights.

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

from recipes.fashion_mnist import draw_garments, epoch_batches, load, split_and_scale
from recipes.initializers import initializer_for
from recipes.transfer import freeze, layerwise_optimizer, reuse, unfreeze

QUICK = bool(os.environ.get("QUICK"))
if QUICK:
    data = split_and_scale(
        draw_garments(700), draw_garments(100, seed=1), validation_size=200
    )
else:
    data = load("../data/fashion-mnist")
plt.rcParams.update({"figure.dpi": 72, "axes.grid": True, "grid.alpha": 0.3})


# %% [markdown]
# The book's two tasks. A: the eight classes that are neither T-shirt nor Pullover, with all
# their images. B: T-shirt or Pullover, with 200 images.


# %%
def task_a(x, y):
    is_a = ~np.isin(y, (0, 2))
    return x[is_a], np.unique(y[is_a], return_inverse=True)[1]


def task_b(x, y):
    is_b = np.isin(y, (0, 2))
    return x[is_b], (y[is_b] == 2).astype("float32")


def network(units, activation):
    model = keras.Sequential([keras.Input((28, 28)), keras.layers.Flatten()])
    for _ in range(3):
        weights = initializer_for("relu")
        model.add(keras.layers.Dense(100, "relu", kernel_initializer=weights))
    model.add(keras.layers.Dense(units, activation, name="head"))
    return model


def train(model, optimizer, x, y, epochs, seed=0, batch_size=32):
    is_binary = model.output_shape[-1] == 1
    loss = "binary_crossentropy" if is_binary else "sparse_categorical_crossentropy"
    model.compile(optimizer, loss, metrics=["accuracy"])
    batches = epoch_batches(x, y, batch_size, seed=seed)
    return model.fit(batches, epochs=epochs, verbose=0).history


def errors(model, x, y):
    return 1 - model.evaluate(x, y, batch_size=1000, verbose=0)[1]


keras.utils.set_random_seed(0)
model_a = network(8, "softmax")
train(model_a, keras.optimizers.Adam(), *task_a(data.x_train, data.y_train), 3, 0, 128)
valid_a = task_a(data.x_valid, data.y_valid)
valid_b = task_b(data.x_valid, data.y_valid)
x_b, y_b = (part[:200] for part in task_b(data.x_train, data.y_train))
print(f"model A: {errors(model_a, *valid_a):.1%} errors on the validation images of A")

# %% [markdown]
# ## A layer in two models is one layer
#
# The shortest way to reuse layers is to put them into a new model, as here. But then the
# two models share them, and what B learns, A forgets. `reuse` clones: a clone has copies of
# the weights. Look at the first column, which should not change.


# %%
def tuned_on_b(model):
    train(model, keras.optimizers.SGD(0.05), x_b, y_b, 10)
    return errors(model, *valid_b)


kept = model_a.get_weights()
rows = {"before": [errors(model_a, *valid_a), np.nan]}
model_b = reuse(model_a, head=keras.layers.Dense(1, "sigmoid", name="new_head"))
tuned = tuned_on_b(model_b)
rows["after B learned, with reuse"] = [errors(model_a, *valid_a), tuned]
head = keras.layers.Dense(1, "sigmoid", name="new_head")
model_b = keras.Sequential([keras.Input((28, 28)), *model_a.layers[:-1], head])
tuned = tuned_on_b(model_b)
rows["after B learned, with the layers themselves"] = [errors(model_a, *valid_a), tuned]
model_a.set_weights(kept)
table = pd.DataFrame(rows, index=["errors of A", "errors of B"]).T
table.map("{:.1%}".format, na_action="ignore").fillna("")

# %% [markdown]
# Model A was not compiled or fitted in between, and yet in the last row it is another.
#
# ## Frozen is what was frozen at the last `compile`
#
# The new last layer begins with random weights, and its first gradients would spoil what
# the layers below have learned. So these are frozen for the first epochs. In Keras the
# switch is `layer.trainable`, and it works at the next `compile`. Without one, `fit` trains
# on as before:

# %%
model_b = reuse(model_a, head=keras.layers.Dense(1, "sigmoid", name="new_head"))
model_b.compile(keras.optimizers.SGD(0.05), "binary_crossentropy")
model_b.fit(x_b, y_b, verbose=0)
for layer in model_b.layers[:-1]:
    layer.trainable = False  # and no compile
before = model_b.layers[1].get_weights()[0]
try:
    model_b.fit(x_b, y_b, epochs=5, verbose=0)
    moved = np.abs(model_b.layers[1].get_weights()[0] - before).max()
    print(f"frozen by Keras's switch: weights moved by up to {moved:.4f}")
except ValueError as error:  # JAX misses a variable
    print(error)

# %% [markdown]
# `freeze` and `unfreeze` take the compiled state away, so that the same mistake is an error:

# %%
freeze(model_b, until="new_head")
try:
    model_b.fit(x_b, y_b, verbose=0)
except ValueError as error:
    print(error)
model_b.compile(keras.optimizers.SGD(0.05), "binary_crossentropy")
before = model_b.layers[1].get_weights()[0]
model_b.fit(x_b, y_b, epochs=5, verbose=0)
moved = np.abs(model_b.layers[1].get_weights()[0] - before).max()
print(f"frozen by freeze, then compiled: weights moved by up to {moved:.4f}")

# %% [markdown]
# ## Batch normalization in frozen layers
#
# A BatchNormalization layer has weights that no gradient moves: its moving mean and
# variance, which it uses when it predicts. Many examples keep them still by calling the
# reused part with `training=False`. In Keras 3 (3.15) that has no effect: `fit` overrules
# the argument. What has an effect is `trainable = False`, which for this layer also means
# inference mode; `freeze` sets it everywhere.
#
# The picture shows the 30 moving means of a normalization that has learned from images as
# they are, after five more epochs on images of half the brightness.

# %%
keras.utils.set_random_seed(0)
trained = keras.Sequential([keras.Input((28, 28)), keras.layers.Flatten()])
trained.add(keras.layers.Dense(30))
trained.add(keras.layers.BatchNormalization())
trained.add(keras.layers.ReLU())
trained.add(keras.layers.Dense(8, "softmax"))
few_a = [part[:2000] for part in task_a(data.x_train, data.y_train)]
train(trained, keras.optimizers.Adam(), *few_a, 10)

dark = x_b / 2
learned = keras.ops.convert_to_numpy(trained.layers[2].moving_mean)


def means_after(model, norm):
    model.compile("sgd", "binary_crossentropy")
    model.fit(dark, y_b, epochs=5, verbose=0)
    return keras.ops.convert_to_numpy(norm.moving_mean)


head = keras.layers.Dense(1, "sigmoid", name="new_head")
frozen = reuse(trained, head=head)
freeze(frozen, until=head)

inputs = keras.Input((28, 28))
copy = reuse(trained, drop_last=2, head=keras.layers.ReLU(name="copied_relu"))
outputs = keras.layers.Dense(1, "sigmoid")(copy(inputs, training=False))
overruled = keras.Model(inputs, outputs)
copy.layers[1].trainable = False  # Dense; the rest is left to training=False

figure, axes = plt.subplots(figsize=(11, 3.5), layout="constrained")
for name, values, marker in (
    ("as learned", learned, "ks"),
    ("after training, frozen by freeze", means_after(frozen, frozen.layers[2]), "o"),
    (
        "after training, called with training=False",
        means_after(overruled, copy.layers[2]),
        "^",
    ),
):
    axes.plot(values, marker, label=name, markersize=9 if marker == "ks" else 5)
axes.set(xlabel="unit", ylabel="moving mean")
axes.legend()
plt.show()

# %% [markdown]
# With `freeze` the means stay on the black squares. With `training=False` they have moved
# on: the same image now gives other outputs, though no weight of a frozen layer has changed.
#
# ## A rate for the reused layers, another for the new one
#
# Once all layers train, the reused ones should take small steps and the new one large ones.
# `layerwise_optimizer` gives each group an optimizer of its own. The bars say how far each
# layer moved in ten epochs, as a share of the norm it had: with two rates the reused layers
# keep more of what they know.


# %%
def distances(optimizer_for):
    keras.utils.set_random_seed(1)
    head = keras.layers.Dense(1, "sigmoid", name="new_head")
    model = reuse(model_a, head=head)
    freeze(model, until=head)
    train(model, keras.optimizers.SGD(0.1), x_b, y_b, 4)
    unfreeze(model)
    kernels = [layer.kernel for layer in model.layers if hasattr(layer, "kernel")]
    before = [keras.ops.convert_to_numpy(kernel) for kernel in kernels]
    train(model, optimizer_for(model, head), x_b, y_b, 10)
    after = [keras.ops.convert_to_numpy(kernel) for kernel in kernels]
    pairs = zip(before, after, strict=True)
    return [np.linalg.norm(b - a) / np.linalg.norm(a) for a, b in pairs]


def one_rate(model, head):
    return keras.optimizers.SGD(0.1)


def two_rates(model, head):
    slow, fast = keras.optimizers.SGD(0.01), keras.optimizers.SGD(0.1)
    return layerwise_optimizer(model, until=head, reused=slow, new=fast)


moves = pd.DataFrame(
    {
        "rate 0.1 for all": distances(one_rate),
        "0.01 for reused layers, 0.1 for the new one": distances(two_rates),
    },
    index=["first layer", "second", "third", "new layer"],
)
axes = moves.plot.bar(figsize=(9, 3.5), rot=0, logy=True)
axes.set(ylabel="distance moved / norm before")
plt.show()

# %% [markdown]
# ## What it is worth: the book's example
#
# Task B from 200 images: from scratch for 20 epochs, or with the layers of A, frozen for 4
# epochs and then free for 16, with the book's rate of 0.001. Each seed draws other images
# and other initial weights. The errors are on the validation images of B.


# %%
def learn_b(seed, reused):
    images, labels = task_b(data.x_train, data.y_train)
    rows = np.random.default_rng(seed).permutation(len(images))[:200]
    images, labels = images[rows], labels[rows]
    keras.utils.set_random_seed(seed)
    if not reused:
        model = network(1, "sigmoid")
        train(model, keras.optimizers.SGD(0.001), images, labels, 20, seed)
        return errors(model, *valid_b)
    head = keras.layers.Dense(1, "sigmoid", name="new_head")
    model = reuse(model_a, head=head)
    freeze(model, until=head)
    train(model, keras.optimizers.SGD(0.001), images, labels, 4, seed)
    unfreeze(model)
    train(model, keras.optimizers.SGD(0.001), images, labels, 16, seed)
    return errors(model, *valid_b)


book = pd.DataFrame(
    {
        name: [learn_b(seed, reused) for seed in range(1 if QUICK else 3)]
        for name, reused in (("from scratch", False), ("reused", True))
    }
).rename_axis("seed")
book.map("{:.1%}".format)

# %% [markdown]
# Twice better, once worse: three seeds are an anecdote. `benchmarks/transfer.py` has measured twenty, each with a model
# A of its own, on the test images of B: with the book's rate, and with the rate that was
# best on the validation images, for each way its own. Below, a line is a seed.

# %%
results = pd.read_csv("../benchmarks/results/transfer.csv")
figure, panels = plt.subplots(1, 2, figsize=(12, 4), sharey=True, layout="constrained")
for axes, (choice, group) in zip(
    panels, results.groupby("choice", sort=False), strict=True
):
    table = 100 * group.pivot(index="seed", columns="way", values="test_error")
    table = table[list(group["way"].unique())]
    axes.plot(range(3), table.T, "o-", color="0.7", markersize=4)
    axes.plot(range(3), table.median(), "D-", color="#d55e00", lw=3, label="median")
    axes.set(xticks=range(3), xticklabels=["from scratch", "reused", "new layer x 10"])
    axes.set(
        title=f"{choice} rate" if choice != "chosen" else "chosen on validation data"
    )
panels[0].set(ylabel="errors on the test images, %")
panels[0].legend()
plt.show()
ratios = results.pivot(index=["choice", "seed"], columns="way", values="test_error")
ratios = ratios.rdiv(ratios["from scratch"], axis=0).groupby("choice", sort=False)
ratios.median().round(2)

# %% [markdown]
# The table has the median of the errors from scratch divided by the errors of each way:
# above 1 reuse is better. With the book's rate it is, for most draws, and more so where the
# new layer learns ten times as fast. But that rate is too low for so few steps: with rates
# chosen for each way, all make fewer errors, and nothing is left of the advantage. Reused
# layers had a head start, no better end.
#
# ## Pretraining without labels
#
# Where few images have labels, but many images are there, layers can be pretrained on a
# task whose labels cost nothing:
#
# - an **autoencoder** learns to redraw its input through the 100 units of its layers;
# - an **auxiliary task** here is to say by how many quarters an image was turned.
#
# Then the head is replaced, and 300 labelled images train all layers. `reuse` does both: a
# decoder is a head of two layers, too. As a measure of what could be gained at best, the
# layers of model A, which has seen the labels of eight classes. All four learn from the
# same 300 images, for as long.

# %%
NUM_LABELS = 50 if QUICK else 300
SEEDS = range(1 if QUICK else 3)
PRETRAINING_EPOCHS = 1 if QUICK else 3


def classes():
    return keras.layers.Dense(10, "softmax", name="classes")


def from_scratch(seed):
    return network(10, "softmax")


def from_model_a(seed):
    return reuse(model_a, head=classes())


def autoencoder(seed):
    decoder = [keras.layers.Dense(784, "sigmoid"), keras.layers.Reshape((28, 28))]
    painter = reuse(network(10, "softmax"), head=decoder)
    painter.compile("adam", "binary_crossentropy")
    batches = epoch_batches(data.x_train, data.x_train, 256, seed=seed)
    painter.fit(batches, epochs=PRETRAINING_EPOCHS, verbose=0)
    return reuse(painter, drop_last=2, head=classes())


def turned(seed):
    turns = np.random.default_rng(seed).integers(4, size=len(data.x_train))
    pairs = zip(data.x_train, turns, strict=True)
    images = np.stack([np.rot90(image, k) for image, k in pairs])
    model = network(4, "softmax")
    train(model, "adam", images, turns, PRETRAINING_EPOCHS, seed, batch_size=256)
    return reuse(model, head=classes())


starts = {
    "from scratch": from_scratch,
    "autoencoder": autoencoder,
    "auxiliary task": turned,
    "model A": from_model_a,
}
few = pd.DataFrame(
    index=pd.Index(SEEDS, name="seed"), columns=list(starts), dtype=float
)
for seed in SEEDS:
    rows = np.random.default_rng(seed).permutation(len(data.x_train))[:NUM_LABELS]
    for name, start in starts.items():
        keras.utils.set_random_seed(seed)
        model = start(seed)
        train(model, "adam", data.x_train[rows], data.y_train[rows], 25, seed)
        few.loc[seed, name] = 1 - errors(model, data.x_valid, data.y_valid)
figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
axes.plot(100 * few.T, "o-", color="0.7")
axes.plot(100 * few.mean(), "D", color="#d55e00", markersize=9, label="mean")
axes.set(ylabel="validation accuracy, %", title=f"{NUM_LABELS} labelled images")
axes.legend()
plt.show()
few.agg(["mean", "std"]).T.round(4)

# %% [markdown]
# Neither the autoencoder nor the quarter turns help: their means differ from that of
# training from scratch by less than the seeds do. The layers of model A gain four points,
# with every seed, but they have seen thousands of labels of eight of the ten classes. So it
# is the labels that count here, not the images. For deeper or convolutional networks, or
# longer pretraining, that may be otherwise: compare with training from scratch.

# %% [markdown]
# ## What to remember
#
# - Clone what you reuse; two models with the same layer are one model.
# - Compile after each change of `trainable`. `freeze` and `unfreeze` see to it.
# - BatchNormalization in a frozen part: `trainable = False`, not `training=False`.
# - Tune the rate from scratch before you say what reuse is worth.
#
# `python train.py reused_layers`, `autoencoder`, `auxiliary_task` and `few_labels` are the
# same with 500 labels, from the command line.
#
# Reference: Géron, *Hands-On Machine Learning*, 3rd edition, chapter 11; Yosinski et al.,
# [How Transferable Are Features in Deep Neural
# Networks?](https://arxiv.org/abs/1411.1792), 2014; Gidaris et al., [Unsupervised
# Representation Learning by Predicting Image
# Rotations](https://arxiv.org/abs/1803.07728), 2018.

# %%
print(f"keras {keras.version()} on {keras.backend.backend()}, numpy {np.__version__}")
print(f"{', '.join(keras.distribution.list_devices())}, {pd.Timestamp.now():%Y-%m-%d}")
