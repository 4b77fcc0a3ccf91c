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
# # Dropout and MC Dropout
#
# **Summary.** A network that was trained with dropout can be asked a hundred times, each
# time with other units missing. Where the answers disagree, the network does not know.
# Here is how to ask without harming the network, what the answers are good for on
# Fashion-MNIST, and what they make worse.

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
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from keras import layers

from recipes.fashion_mnist import draw_garments, epoch_batches, load, split_and_scale
from recipes.initializers import initializer_for
from recipes.mc_dropout import MCDropout, MCDropoutPredictor
from recipes.optimizers import make_optimizer
from recipes.uncertainty import (
    accuracy_at_coverage,
    apply_temperature,
    auroc,
    brier_score,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    plot_in_and_out,
    plot_most_uncertain,
    plot_reliability,
    predictive_entropy,
)

QUICK = bool(os.environ.get("QUICK"))
EPOCHS = 1 if QUICK else 10
SAMPLES = 10 if QUICK else 100
SEED = 42

if QUICK:
    data = split_and_scale(
        draw_garments(1200), draw_garments(200, seed=1), validation_size=200
    )
else:
    data = load("../data/fashion-mnist")

BLUE, ORANGE = "#0072B2", "#E69F00"
plt.rcParams.update({"figure.dpi": 60, "font.size": 11})
plt.rcParams.update({"axes.grid": True, "grid.alpha": 0.3})
pd.set_option("display.max_colwidth", None)

# %% [markdown]
# ## What dropout does
#
# In training, each step leaves out every input $x_i$ of a layer with probability $p$,
# the rate, and makes the others larger:
#
# $$\tilde x_i = \frac{m_i}{1 - p}\, x_i, \qquad m_i = 0 \text{ with probability } p,
# \text{ otherwise } 1.$$
#
# $m$ is the mask, drawn anew for each input and step. The mean of $\tilde x_i$ over the
# masks is $x_i$, so in prediction nothing is left to do: dropout is off. This is what
# the first layer sees of one image at the rate 0.2:

# %%
image = data.x_test[:1]
drop = layers.Dropout(0.2, seed=SEED)
masked = [keras.ops.convert_to_numpy(drop(image, training=True)) for _ in range(100)]
shown = {"the image": image, "dropped, 1": masked[0], "dropped, 2": masked[1]}
shown |= {"dropped, 3": masked[2], "mean of 100": np.mean(masked, axis=0)}

figure, panels = plt.subplots(1, len(shown), figsize=(12, 2.9), layout="constrained")
for axes, (title, picture) in zip(panels, shown.items(), strict=True):
    axes.imshow(picture[0], cmap="gray", vmin=0, vmax=1.25)
    axes.set(title=title, xticks=[], yticks=[])
plt.show()

# %% [markdown]
# No unit can rely on another one being there, which works against overfitting. It has a
# second effect: the loss is minimized on average over the masks, so each of these thinned
# networks has learned to predict *on its own*. One may therefore keep dropping in
# prediction, and ask $T$ of them:
#
# $$\bar p(c) = \frac1T \sum_{t=1}^{T} p_t(c), \qquad
# s(c) = \sqrt{\frac1T \sum_{t=1}^{T} \big(p_t(c) - \bar p(c)\big)^2}.$$
#
# $p_t(c)$ is the probability that the network with the $t$-th masks gives to class $c$,
# $\bar p$ the prediction of MC Dropout, and $s$ the spread of its samples. Gal and
# Ghahramani showed that the $T$ networks can be read as draws from an approximate
# posterior over the weights.

# %% [markdown]
# ## The book's network
#
# Dropout 0.2 before each of three dense layers, trained by momentum 0.9 at the rate 0.01
# for ten epochs.

# %%
keras.utils.set_random_seed(SEED)
model = keras.Sequential([keras.Input((28, 28)), layers.Flatten()])
for _ in range(2):
    weights = initializer_for("relu")
    model.add(layers.Dropout(0.2))
    model.add(layers.Dense(100, "relu", kernel_initializer=weights))
model.add(layers.Dropout(0.2))
model.add(layers.Dense(10, "softmax"))
model.compile(
    make_optimizer("momentum", 0.01),
    loss="sparse_categorical_crossentropy",
    metrics=["accuracy"],
)
history = model.fit(
    epoch_batches(data.x_train, data.y_train, 32, seed=SEED),
    epochs=EPOCHS,
    validation_data=(data.x_valid, data.y_valid),
    verbose=0,
)
table = pd.DataFrame(history.history, index=pd.RangeIndex(1, EPOCHS + 1, name="epoch"))
table.iloc[[0, -1]].round(4)

# %% [markdown]
# The training numbers are the worse ones: they are measured with dropout on, and in the
# course of the epoch.
#
# ## One image, asked a hundred times
#
# `MCDropoutPredictor` takes the trained model as it is. Here is the first test image: the
# deterministic prediction (dropout off), the first samples, and the mean and deviation of
# all of them, for the classes that got any probability.

# %%
predictor = MCDropoutPredictor(model, num_samples=SAMPLES, seed=SEED)
sampled = predictor.predict(data.x_test, keep_samples=True, verbose=0)
plain = model.predict(data.x_test, batch_size=1000, verbose=0)

classes = np.flatnonzero(sampled.mean[0] >= 0.005)
names = [data.class_names[c] for c in classes]
rows = {"deterministic": plain[0]}
rows |= {f"sample {t + 1}": sampled.samples[t, 0] for t in range(8)}
rows |= {f"mean of {SAMPLES}": sampled.mean[0], "deviation": sampled.std[0]}
pd.DataFrame(rows, index=data.class_names).T[names].round(2)

# %%
figure, (left, right) = plt.subplots(
    1, 2, figsize=(11, 3.6), width_ratios=(1, 3), layout="constrained"
)
left.imshow(data.x_test[0], cmap="gray")
label = data.class_names[data.y_test[0]]
left.set(title=f"label: {label}", xticks=[], yticks=[])
jitter = np.linspace(-0.3, 0.3, SAMPLES)
for place, c in enumerate(classes):
    right.scatter(sampled.samples[:, 0, c], place + jitter, s=10, color=BLUE, alpha=0.6)
places = np.arange(len(classes))
right.plot([], [], "o", color=BLUE, label="samples")
right.plot(sampled.mean[0, classes], places, "D", ms=11, color=ORANGE, label="mean")
right.plot(plain[0, classes], places, "kx", ms=11, mew=3, label="deterministic")
right.set_yticks(places, names)
right.set(xlabel="probability", xlim=(-0.01, 1.01), ylim=(len(classes) - 0.5, -0.5))
right.legend(loc="center")
plt.show()

# %% [markdown]
# Most samples are about as sure as the deterministic pass, but some are in doubt, and a
# few name another class. So their mean is less sure than the one pass. The same for every
# image, as a table (the variation ratio is the share of samples that name another class
# than most; the entropies come further down):

# %%
sampled.to_frame(data.class_names).iloc[:5, :7].round(3)

# %% [markdown]
# ## Two traps on the way
#
# The book asks with `np.stack([model(x, training=True) for _ in range(100)])`. That
# switches *everything* to training: a BatchNormalization standardizes by the statistics
# of the images it is asked about, and updates its moving averages on them. To see it,
# train a small network with BatchNormalization and ask it about a hundred sandals.

# %%
keras.utils.set_random_seed(SEED)
normalized = keras.Sequential(
    [
        keras.Input((28, 28)),
        layers.Flatten(),
        layers.Dense(100, use_bias=False),
        layers.BatchNormalization(name="norm"),
        layers.Activation("relu"),
        layers.Dropout(0.2),
        layers.Dense(10, "softmax"),
    ]
)
normalized.compile(make_optimizer("adam"), loss="sparse_categorical_crossentropy")
normalized.fit(
    epoch_batches(data.x_train[:20000], data.y_train[:20000], 100, seed=SEED),
    epochs=EPOCHS // 4 or 1,
    verbose=0,
)
SANDAL = data.class_names.index("Sandal")
sandals = data.x_test[data.y_test == SANDAL][:100]


def state():
    """All numbers of the network: weights, moving statistics, states of the seeds."""
    return {
        variable.path.partition("/")[2]: keras.ops.convert_to_numpy(variable)
        for variable in normalized.variables
    }


def row(mean_of_samples=None):
    """What the samples said of the sandals, and what the network is now."""
    now = state()
    changed = [path for path in now if not np.array_equal(now[path], before[path])]
    predicted = normalized.predict(data.x_test, batch_size=1000, verbose=0)
    if mean_of_samples is None:
        mean_of_samples = normalized.predict(sandals, verbose=0)
    return {
        "probability of sandal": np.mean(mean_of_samples[:, SANDAL]),
        "changed in the network": ", ".join(changed) or "nothing",
        "mean of moving_mean": now["norm/moving_mean"].mean(),
        "accuracy on all test images": np.mean(predicted.argmax(axis=1) == data.y_test),
    }


before = state()
rows = {"as trained, deterministic": row()}
ours = MCDropoutPredictor(normalized, num_samples=SAMPLES, seed=SEED)
rows["after MCDropoutPredictor"] = row(ours.predict(sandals, verbose=0).mean)
book = np.stack([normalized(sandals, training=True) for _ in range(SAMPLES)])
rows["after the book's loop"] = row(book.mean(axis=0))
pd.DataFrame(rows).T.infer_objects().round(3)

# %% [markdown]
# The loop got it wrong twice. Standardized among themselves, the sandals lost what makes
# them sandals; and the network, which was only asked, is another one now and predicts
# worse. `MCDropoutPredictor` switches on dropout and nothing else, and leaves the network
# as it was to the bit.
#
# The second trap is silence. `Dropout(...)(x, training=True)` built into a Functional
# model looks as if it would always drop. On Keras 3.15 `predict` passes `training=False`
# to the model, and that wins:

# %%
inputs = keras.Input((4,))
dropped = layers.Dropout(0.5)(inputs, training=True)
functional = keras.Model(inputs, layers.Dense(3, "softmax")(dropped))
always = keras.Sequential([inputs, MCDropout(0.5), layers.Dense(3, "softmax")])
x = np.ones((1, 4))


def spread(predict):
    """Largest difference between 20 predictions of the same input."""
    predictions = [keras.ops.convert_to_numpy(predict()) for _ in range(20)]
    return np.ptp(predictions, axis=0).max()


ours = MCDropoutPredictor(functional, num_samples=20, seed=SEED)
samples = ours.predict(x, keep_samples=True, verbose=0).samples
pd.Series(
    {
        "training=True built in, model(x)": spread(lambda: functional(x)),
        "training=True built in, predict": spread(
            lambda: functional.predict(x, verbose=0)
        ),
        "the same model, MCDropoutPredictor": np.ptp(samples, axis=0).max(),
        "the layer MCDropout, predict": spread(lambda: always.predict(x, verbose=0)),
    },
    name="largest difference between 20 predictions",
).to_frame().round(3)

# %% [markdown]
# ## The images it is least certain of
#
# Sorted by the entropy of the mean, $H(\bar p) = -\sum_c \bar p(c) \ln \bar p(c)$.

# %%
plot_most_uncertain(
    data.x_test,
    sampled.samples,
    labels=data.y_test,
    class_names=data.class_names,
    num_images=2,
)

# %% [markdown]
# Both are odd specimens of their kind. The dots lie far from the bars' ends: one thinned
# network names one class, the next another.
#
# ## Can the probabilities be believed?
#
# Four ways to predict the same test images. A temperature divides the logarithms of the
# probabilities by one number, fitted on the validation images, and so makes them flatter
# (above 1) or sharper (below 1).

# %%
valid = {
    "deterministic": model.predict(data.x_valid, batch_size=1000, verbose=0),
    "MC Dropout": predictor.predict(data.x_valid, verbose=0).mean,
}
ways = {"deterministic": plain, "MC Dropout": sampled.mean}
temperatures = {name: fit_temperature(p, data.y_valid) for name, p in valid.items()}
for name, temperature in temperatures.items():
    ways[f"{name}, temperature"] = apply_temperature(ways[name], temperature)

table = pd.DataFrame(
    {
        name: {
            "temperature": temperatures.get(name.removesuffix(", temperature"))
            if name.endswith("temperature")
            else 1.0,
            "accuracy": np.mean(p.argmax(axis=1) == data.y_test),
            "negative log-likelihood": negative_log_likelihood(p, data.y_test),
            "Brier score": brier_score(p, data.y_test),
            "calibration error": expected_calibration_error(p, data.y_test),
            "accuracy on the surest 80 %": accuracy_at_coverage(p, data.y_test),
        }
        for name, p in ways.items()
    }
).T
table.round(4)

# %%
figure, panels = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
for axes, name in zip(
    panels, ["deterministic", "MC Dropout", "MC Dropout, temperature"], strict=True
):
    plot_reliability(ways[name], data.y_test, axes=axes)
    axes.set_title(name)
    if axes is not panels[0]:
        axes.get_legend().remove()
        axes.set(ylabel="", yticklabels=[])
plt.show()

# %% [markdown]
# MC Dropout makes the probabilities *worse* here: likelihood, Brier score and calibration
# error, at the same accuracy. The deterministic network was nearly calibrated; averaging
# takes confidence away where there was none too much, and the bars rise above the
# diagonal. (Those far to the left stand for a handful of images.) The temperature, well
# below 1, gives the confidence back. It does not touch the accuracy, for the most probable
# class stays the same. Averaging helps a network that is over-confident, and this one
# is not.
#
# ## Refusing the doubtful
#
# Let a human decide about the images of which the network is least sure:

# %%
shares = np.linspace(0.05, 1, 96)
figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
for name, color, style in (
    ("deterministic", "black", "--"),
    ("MC Dropout", ORANGE, "-"),
):
    kept = accuracy_at_coverage(ways[name], data.y_test, coverage=shares)
    axes.plot(shares, kept, style, color=color, lw=2, label=name)
axes.set(
    xlabel="coverage (share of images kept, by highest probability)",
    ylabel="accuracy on the images kept",
)
axes.legend()
plt.show()

# %% [markdown]
# Refusing pays off, but a hundred samples are not needed for it: the two lines can hardly
# be told apart.
#
# ## Two kinds of doubt
#
# The entropy of the mean is the sum of two parts:
#
# $$H(\bar p) = \frac1T \sum_t H(p_t) + I,$$
#
# the *expected entropy*, by which each thinned network is undecided for itself (the image
# could be either), and the *mutual information* $I$, by which the networks contradict
# each other (they do not know). To see both, show it images unlike any garment, made from
# the test images:

# %%
rng = np.random.default_rng(SEED)
pixels = data.x_test.reshape(len(data.x_test), -1)
foreign = {
    "inverted": 1 - data.x_test,
    "shuffled pixels": rng.permuted(pixels, axis=1).reshape(data.x_test.shape),
    "noise": rng.random(data.x_test.shape, dtype="float32"),
    "rotated by 90°": np.rot90(data.x_test, axes=(1, 2)),
}
foreign_plain = {
    name: model.predict(x, batch_size=1000, verbose=0) for name, x in foreign.items()
}
foreign_sampled = {name: predictor.predict(x, verbose=0) for name, x in foreign.items()}

is_wrong = sampled.mean.argmax(axis=1) != data.y_test
groups = {
    "test images, right": (sampled, ~is_wrong),
    "test images, wrong": (sampled, is_wrong),
    **{name: (p, np.full(len(p.mean), True)) for name, p in foreign_sampled.items()},
}
parts = pd.DataFrame(
    {
        name: {
            "expected entropy": p.expected_entropy[chosen].mean(),
            "mutual information": p.mutual_information[chosen].mean(),
        }
        for name, (p, chosen) in groups.items()
    }
).T

figure, (left, right) = plt.subplots(1, 2, figsize=(12, 3.9), layout="constrained")
parts[::-1].plot.barh(stacked=True, ax=left, color=[ORANGE, BLUE], width=0.7)
left.set(xlabel="mean per image, in nats", title="Doubt of six kinds of images")
dots = {
    "test images, right": "lightgray",
    "test images, wrong": ORANGE,
    "inverted": BLUE,
}
for name, color in dots.items():
    p, chosen = groups[name]
    some = np.flatnonzero(chosen)[:300]
    right.scatter(
        p.expected_entropy[some],
        p.mutual_information[some],
        s=8,
        color=color,
        label=name,
    )
right.set(
    xlabel="expected entropy, nats: the image is ambiguous",
    ylabel="mutual information, nats",
    title="300 images of each of three kinds",
)
right.legend(markerscale=2)
plt.show()
parts.assign(share=parts["mutual information"] / parts.sum(axis=1)).rename(
    columns={"share": "share of mutual information"}
).round(3)

# %% [markdown]
# A wrong prediction is mostly an ambiguous image: much doubt, and most of it expected
# entropy. The inverted images leave in another direction. The networks are rather sure
# of them one by one, and contradict each other; so most of that doubt is mutual
# information, though the doubt as a whole is smaller than about a garment.
#
# Which score finds what? An AUROC is the probability that a wrong prediction scores above
# a right one, or a foreign image above a test image. A half is chance; below it, the
# foreign images look *more* familiar than the garments.


# %%
def doubts(probabilities, samples):
    """Scores of one set of images, each higher where there is more doubt."""
    return {
        "deterministic, 1 - highest probability": 1 - probabilities.max(axis=1),
        "deterministic, entropy": predictive_entropy(probabilities),
        "MC, 1 - highest probability": 1 - samples.mean.max(axis=1),
        "MC, entropy of the mean": samples.predictive_entropy,
        "MC, expected entropy": samples.expected_entropy,
        "MC, mutual information": samples.mutual_information,
    }


known = doubts(plain, sampled)
table = {}
for score, values in known.items():
    wrong = is_wrong if score.startswith("MC") else plain.argmax(axis=1) != data.y_test
    table[score] = {"errors": auroc(values, wrong)}
    for name in foreign:
        others = doubts(foreign_plain[name], foreign_sampled[name])[score]
        is_foreign = np.repeat([False, True], [len(values), len(others)])
        table[score][name] = auroc(np.concatenate([values, others]), is_foreign)
table = pd.DataFrame(table).T
table.round(3)

# %%
figure, panels = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
plot_in_and_out(
    known["deterministic, entropy"],
    predictive_entropy(foreign_plain["shuffled pixels"]),
    axes=panels[0],
)
plot_in_and_out(
    sampled.mutual_information,
    foreign_sampled["shuffled pixels"].mutual_information,
    axes=panels[1],
)
panels[0].set_xlabel("entropy of the deterministic prediction, nats")
panels[1].set(xlabel="mutual information of MC Dropout, nats", ylabel="")
figure.suptitle("Test images against images of shuffled pixels")
plt.show()

# %% [markdown]
# - To find **foreign images**, take the mutual information. It is the best of the six
#   scores on inverted images, shuffled pixels and noise. The deterministic network is
#   *more* certain of an inverted image or of noise than of a garment.
# - To find **errors**, take the highest probability, with samples or without. The mutual
#   information, on which an ambiguous image is no matter of the network, is the worst.
# - Rotated garments stand out little by any score, and inverted ones not much. MC Dropout
#   sees some of what is foreign; it is no guard.

# %% [markdown]
# ## How many images share a mask
#
# `MCDropoutPredictor` gives each 500 neighbouring images the same masks in a sample
# (`inputs_per_mask=500`), which saves most of the work. For each image by itself this
# changes nothing: its samples are as many, as independent of each other, and follow the
# same law. What changes is the *joint* law of several images. Under a common mask they
# err together, so a score over a whole data set scatters more from seed to seed.

# %%
SEEDS, FEW = (2, 5) if QUICK else (10, 5)
rows = []
for inputs_per_mask in (1, 500, None):
    scores, deviations = [], []
    began = time.perf_counter()
    for seed in range(SEEDS):
        few = MCDropoutPredictor(
            model, num_samples=FEW, inputs_per_mask=inputs_per_mask, seed=seed
        ).predict(data.x_test, verbose=0)
        scores.append(negative_log_likelihood(few.mean, data.y_test))
        deviations.append(few.std[np.arange(len(few.std)), few.mean.argmax(axis=1)])
    seconds = (time.perf_counter() - began) / SEEDS
    rows.append(
        {
            "inputs_per_mask": str(inputs_per_mask),
            "mean spread s of one image": np.mean(deviations),
            "NLL of all images, mean": np.mean(scores),
            "NLL, deviation over seeds": np.std(scores, ddof=1),
            "seconds": seconds,
        }
    )
print(f"{FEW} samples of {len(data.x_test)} images, {SEEDS} seeds")
pd.DataFrame(rows).set_index("inputs_per_mask").round(4)

# %% [markdown]
# The first two columns agree, but for what the seeds scatter: an image alone cannot tell
# how its masks are shared. The third grows with sharing. (From ten seeds such a deviation
# is known to about a quarter.) Take 1 to measure small differences between scores, and
# `None` where all images are to be seen by the same networks.

# %% [markdown]
# ## What it costs

# %%
results = pathlib.Path("../benchmarks/results/mc_dropout_speed.csv")
if results.exists():
    speed = pd.read_csv(results)
    speed["times as fast as the book"] = (1 / speed["ratio_to_book"]).round(1)
    columns = ["inputs", "samples", "seconds_median", "times as fast as the book"]
    speed = speed.set_index(["machine", "backend", "model", "way"])[columns]
else:
    few, x = MCDropoutPredictor(model, num_samples=20, seed=SEED), data.x_test[:1000]
    ways = {
        "the book's loop": lambda: np.stack(
            [model(x, training=True) for _ in range(20)]
        ),
        "MCDropoutPredictor": lambda: few.predict(x, verbose=0),
    }
    seconds = {name: [] for name in ways}
    for _ in range(4):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
    speed = pd.DataFrame(seconds)[1:].median().rename("seconds").to_frame()
    speed["times as fast as the book"] = speed["seconds"].iloc[0] / speed["seconds"]
    print(f"20 samples of {len(x)} images, median of 3 after one to warm up")
speed.round(4)

# %% [markdown]
# What comes before the first dropout is computed once; behind it, dense layers are
# computed only for the units that a sample keeps, on all cores at once. The book's loop
# draws a mask for each image and computes every unit of it.
#
# ## What to remember
#
# - Ask a network that was trained with dropout through `MCDropoutPredictor`; do not put
#   the whole model into training for it.
# - Mutual information for images unlike the training data, highest probability for errors.
# - Do not expect better calibration. Look at the reliability, and fit a temperature on
#   validation data.
# - The rate of dropout is yours, and the spread follows it. It ranks images; it is not
#   an error bar.
#
# One network and one seed here; the same scores over several seeds are in
# [the results](../docs/results.md#what-mc-dropout-is-good-for).
#
# Reference: Géron, *Hands-On Machine Learning*, 3rd edition, chapter 11; Gal, Ghahramani,
# [Dropout as a Bayesian Approximation](https://arxiv.org/abs/1506.02142), 2016; Guo et
# al., [On Calibration of Modern Neural Networks](https://arxiv.org/abs/1706.04599), 2017.

# %%
print(f"keras {keras.version()} on {keras.backend.backend()}, numpy {np.__version__}")
print(f"{', '.join(keras.distribution.list_devices())}, {pd.Timestamp.now():%Y-%m-%d}")
