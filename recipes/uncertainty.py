"""Measure, score and plot how sure a classifier is, and whether it may be.

For softmax outputs of any model, and for the samples of MC Dropout or an ensemble. Of
the measures per input, mutual information (what the samples disagree about) finds
inputs unlike the training data, and confidence finds errors. The scores ask whether
the probabilities can be believed, the plots show where they cannot, and
`fit_temperature` repairs them on validation data.

Not for regression, and not for several labels per input: the classes of a row exclude
each other. The two classes of a sigmoid output `p` of shape `(inputs,)` are
`np.stack([1 - p, p], axis=-1)`.

NumPy in, NumPy out, natural logarithms (nats). `samples` are `(samples, inputs,
classes)`, `probabilities` `(inputs, classes)`, in any float type; the work is done in
float64. A row may miss the sum 1 by 0.001, as float16 does, and is divided by its sum,
so the laws between the measures hold. Every function refuses input of another shape or
range with a `ValueError` that names the argument. Every plot returns a `Figure` of its
own, outside pyplot: save it, or after `%matplotlib inline` let a notebook cell end
with it.

This file is longer than most because it holds sixteen functions, from the measure to
the picture of it, that share their checks.

```python
import numpy as np

from recipes.uncertainty import mutual_information, negative_log_likelihood
from recipes.uncertainty import plot_coverage

rng = np.random.default_rng(42)
labels = rng.integers(3, size=200)
logits = rng.normal(size=(50, 200, 3)) + 2 * np.eye(3)[labels]
samples = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)

mutual_information(samples)  # (200,)
mean = samples.mean(axis=0)  # the prediction: average probabilities, not scores
negative_log_likelihood(mean, labels)
plot_coverage(mean, labels).savefig("coverage.png")
```

Reference: Gal, "Uncertainty in Deep Learning", 2016, section 3.3.1,
https://www.cs.ox.ac.uk/people/yarin.gal/website/thesis/thesis.pdf
Reference: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks",
2017, https://arxiv.org/abs/1706.04599
Revised: 0.2.0
"""

import math
import numbers

import numpy as np

# Told apart by colour-blind readers: Okabe and Ito, https://jfly.uni-koeln.de/color/
_BLUE, _ORANGE = "#0072B2", "#E69F00"

# float16 softmax rows miss the sum 1 by up to 0.0005.
_SUM_TOLERANCE = 1e-3


def predictive_entropy(probabilities) -> np.ndarray:
    """Entropy of each prediction: the whole uncertainty, whatever its cause.

    H = -sum_c p_c ln p_c over the classes c, with 0 ln 0 = 0: exactly 0 for a one-hot
    row, ln(classes) for a uniform one. Give it the mean of the samples, not a sample.

    >>> predictive_entropy([[1.0, 0.0], [0.5, 0.5]]).round(4)
    array([0.    , 0.6931])

    Args:
        probabilities: `(inputs, classes)`.

    Returns:
        `(inputs,)`, in nats.
    """
    return _row_entropy(_check_rows("probabilities", probabilities, 2))


def expected_entropy(samples) -> np.ndarray:
    """Mean entropy of each input's samples: the noise that all samples agree on.

    EE = mean_t H(p_t) over the samples t: the part that more training data would not
    remove. Not the predictive entropy, which is the entropy of the mean.

    >>> expected_entropy([[[1.0, 0.0]], [[0.5, 0.5]]]).round(4)
    array([0.3466])

    Args:
        samples: `(samples, inputs, classes)`.

    Returns:
        `(inputs,)`, in nats.
    """
    return _row_entropy(_check_rows("samples", samples, 3)).mean(axis=0)


def mutual_information(samples) -> np.ndarray:
    """What the samples disagree about: the part of the uncertainty due to the model.

    MI = H(mean_t p_t) - mean_t H(p_t), predictive minus expected entropy; also known as
    BALD. High on inputs unlike the training data. 0 for a single sample, and never
    below: Jensen's inequality, with rounding clamped.

    >>> mutual_information([[[1.0, 0.0]], [[0.0, 1.0]]]).round(4)
    array([0.6931])

    Args:
        samples: `(samples, inputs, classes)`.

    Returns:
        `(inputs,)`, in nats.
    """
    samples = _check_rows("samples", samples, 3)
    expected = _row_entropy(samples).mean(axis=0)
    return np.maximum(_row_entropy(samples.mean(axis=0)) - expected, 0)


def variation_ratio(samples) -> np.ndarray:
    """Share of the samples that do not vote for the class with most votes.

    VR = 1 - max_c n_c / T, where n_c of the T samples have class c as their most
    probable one. A sample in which classes tie votes for the first of them; classes
    that tie in votes give the same ratio whichever is taken.

    >>> variation_ratio([[[0.9, 0.1]], [[0.6, 0.4]], [[0.7, 0.3]], [[0.2, 0.8]]])
    array([0.25])

    Args:
        samples: `(samples, inputs, classes)`.

    Returns:
        `(inputs,)`, from 0 to 1 - 1 / classes.
    """
    samples = _check_rows("samples", samples, 3)
    # (samples, inputs, classes) -> votes (inputs, classes)
    votes = np.eye(samples.shape[-1], dtype=bool)[samples.argmax(axis=-1)].sum(axis=0)
    return 1 - votes.max(axis=-1) / len(samples)


def negative_log_likelihood(probabilities, labels) -> float:
    """Mean surprise at the true labels: the score that training minimizes.

    NLL = -mean_i ln p_i[y_i] over the inputs i with label y_i. A label that was given
    the probability 0 makes it infinite, with no floor: the model called it impossible
    (the Brier score stays finite). Give it the mean of the samples; the mean of the
    samples' own NLLs is larger and scores another predictor.

    >>> round(negative_log_likelihood([[0.25, 0.75], [0.5, 0.5]], [0, 1]), 4)
    1.0397

    Args:
        probabilities: `(inputs, classes)`.
        labels: `(inputs,)`, integers from 0 to classes - 1.

    Returns:
        A float, in nats per input; 0 is perfect, ln(classes) a uniform guess.
    """
    probabilities, labels = _check_pair(probabilities, labels)
    with np.errstate(divide="ignore"):
        logs = np.log(probabilities[np.arange(len(labels)), labels])
    # abs, not minus: no log of a probability is above 0, and 0 shall not come out -0.
    return float(np.abs(logs.mean()))


def brier_score(probabilities, labels) -> float:
    """Mean squared distance between the probabilities and the one-hot labels.

    BS = mean_i sum_c (p_ic - [c = y_i])^2: summed over classes, so from 0 (perfect) to
    2 (sure and wrong), twice the two-class form that scores one probability. Finite
    where the negative log-likelihood is not.

    >>> brier_score([[0.5, 0.5], [1.0, 0.0]], [0, 0])
    0.25

    Args:
        probabilities: `(inputs, classes)`.
        labels: `(inputs,)`, integers from 0 to classes - 1.

    Returns:
        A float, from 0 to 2.
    """
    probabilities, labels = _check_pair(probabilities, labels)
    targets = np.eye(probabilities.shape[1])[labels]
    return float(np.square(probabilities - targets).sum(axis=1).mean())


def expected_calibration_error(probabilities, labels, *, num_bins: int = 15) -> float:
    """How far confidence is from accuracy, on average over bins of confidence.

    ECE = sum_b n_b / N |accuracy_b - confidence_b|, where bin b holds the n_b of the N
    inputs whose highest probability is at least b / num_bins and below (b + 1) /
    num_bins. Confidence 1 is in the last bin; empty bins count nothing. Depends on
    `num_bins` and is biased upwards on few inputs: compare equal settings only. A
    model that always predicts the class frequencies scores 0, so read it beside NLL.

    >>> round(expected_calibration_error([[0.9, 0.1], [0.9, 0.1]], [0, 1]), 4)
    0.4

    Args:
        probabilities: `(inputs, classes)`.
        labels: `(inputs,)`, integers from 0 to classes - 1.
        num_bins: Bins of equal width between 0 and 1; 15 as in Guo et al.

    Returns:
        A float, from 0 to 1.
    """
    confidence, correct, bins = _confidence_bins(probabilities, labels, num_bins)
    # n_b (accuracy_b - confidence_b); an empty bin adds 0.
    gaps = np.bincount(bins, weights=correct - confidence)
    return float(np.abs(gaps).sum() / len(confidence))


def accuracy_at_coverage(probabilities, labels, *, coverage=0.8):
    """Accuracy on the most confident share of the inputs; the rest goes to a human.

    Keeps coverage * inputs of them, rounded to the nearest whole number (halves to
    even) and at least one, in order of the highest probability. Inputs of equal
    confidence count with their mean accuracy, so their order does not matter.

    >>> probabilities = [[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.5, 0.5]]
    >>> accuracy_at_coverage(probabilities, [0, 0, 0, 0], coverage=[0.5, 0.75])
    array([1.        , 0.66666667])

    Args:
        probabilities: `(inputs, classes)`.
        labels: `(inputs,)`, integers from 0 to classes - 1.
        coverage: Share to keep, above 0 and up to 1; a number or an array of them.

    Returns:
        A float, or an array of the shape of `coverage`; at coverage 1 the accuracy.
    """
    accuracies = _accuracy_by_count(probabilities, labels)
    shares = _check_numbers("coverage", coverage)
    if not shares.size or not np.all((shares > 0) & (shares <= 1)):
        raise ValueError(
            f"`coverage` must be above 0 and at most 1. Received: coverage={coverage!r}"
        )
    kept = np.maximum(np.rint(shares * len(accuracies)).astype(int), 1)
    return accuracies[kept - 1] if shares.ndim else float(accuracies[kept - 1])


def auroc(scores, positives) -> float:
    """Probability that a positive scores above a negative; ties count half.

    AUROC = mean over all pairs (i positive, j negative) of [s_i > s_j] + [s_i = s_j] /
    2. 1/2 is chance, below it the scores point the wrong way. For inputs outside of
    the training distribution as positives, or for errors (`mean.argmax(1) != labels`).

    >>> auroc([0.1, 0.4, 0.4, 0.9], [False, False, True, True])
    0.875

    Args:
        scores: `(inputs,)`, finite, higher where a positive is expected.
        positives: `(inputs,)`, boolean, or integers 0 and 1; at least one of each.

    Returns:
        A float, from 0 to 1.
    """
    scores = _check_scores("scores", scores)
    positives = np.asarray(positives)
    if positives.dtype.kind not in "biu" or positives.shape != scores.shape:
        raise ValueError(
            f"`positives` must be {len(scores)} booleans, or 0 and 1, one per score. "
            f"Received: positives={positives!r}"
        )
    if set(positives.tolist()) != {0, 1}:
        raise ValueError(
            "`positives` must hold at least one positive (True or 1), one negative "
            f"(False or 0), and no other value. Received: positives={positives!r}"
        )
    positives = positives.astype(bool)
    negative_scores, positive_scores = np.sort(scores[~positives]), scores[positives]
    below = np.searchsorted(negative_scores, positive_scores, side="left")
    not_above = np.searchsorted(negative_scores, positive_scores, side="right")
    return float((below + not_above).mean() / (2 * len(negative_scores)))


def fit_temperature(probabilities, labels) -> float:
    """The temperature that makes probabilities believable, from validation data.

    The T from 0.01 to 100 with the lowest NLL of softmax(ln p / T): above 1 for an
    over-confident model, below 1 for one too careful, as MC Dropout often is. The most
    probable class stays, so accuracy does. Fit on data that neither trained the model
    nor will test it. An end of the range means that the minimum lies beyond it: 0.01 if
    every label is predicted right, 100 if a uniform guess is better than every T. Rows
    that are all uniform fit every T and give 1.

    The NLL is convex in 1 / T, with slope mean_i (E_q[l_i] - l_i[y_i]), where l = ln p
    and q = softmax(l / T); the zero of the slope is bisected.

    Example:

    ```python
    import numpy as np

    from recipes.uncertainty import apply_temperature, fit_temperature

    valid = np.array([[0.99, 0.01], [0.99, 0.01], [0.01, 0.99], [0.99, 0.01]])
    temperature = fit_temperature(valid, [0, 0, 1, 1])  # 4.18: right 3 times in 4
    apply_temperature(valid, temperature)  # 0.75 instead of 0.99
    ```

    Args:
        probabilities: `(inputs, classes)`. Below 1e-38 counts as 1e-38: a 0 is taken
            for a float32 softmax that underflowed, so a sure error stays finite.
        labels: `(inputs,)`, integers from 0 to classes - 1.

    Returns:
        A float for `apply_temperature`.

    Reference: Guo et al., 2017, section 4.2, https://arxiv.org/abs/1706.04599
    """
    probabilities, labels = _check_pair(probabilities, labels)
    logs = _finite_logs(probabilities)
    if not logs.any():
        return 1.0
    label_logs = logs[np.arange(len(labels)), labels]
    low, high = math.log(0.01), math.log(100)
    for _ in range(50):  # 9.2 / 2^50 = 1e-14
        middle = (low + high) / 2
        weights = np.exp(logs / math.exp(middle))
        expected_logs = (weights * logs).sum(axis=1) / weights.sum(axis=1)
        if (expected_logs - label_logs).mean() > 0:  # sharper is worse
            low = middle
        else:
            high = middle
    return math.exp(middle)


def apply_temperature(probabilities, temperature: float) -> np.ndarray:
    """Probabilities as sharp or as flat as a temperature says.

    softmax(ln p / T) of each row: T = 1 changes nothing, above 1 flattens, below 1
    sharpens. For a mean over samples apply it to the mean, as it was fitted.

    >>> apply_temperature([[0.8, 0.2]], 2.0).round(4)
    array([[0.6667, 0.3333]])

    Args:
        probabilities: `(inputs, classes)`. Below 1e-38 counts as 1e-38.
        temperature: Positive number, from `fit_temperature`.

    Returns:
        `(inputs, classes)`, float64.
    """
    logs = _finite_logs(_check_rows("probabilities", probabilities, 2))
    is_number = isinstance(temperature, numbers.Real)
    if not (is_number and temperature is not True and 0 < temperature < math.inf):
        raise ValueError(
            "`temperature` must be a positive finite number. "
            f"Received: temperature={temperature!r}"
        )
    weights = np.exp(logs / float(temperature))
    return weights / weights.sum(axis=1, keepdims=True)


def plot_reliability(probabilities, labels, *, num_bins: int = 15, axes=None):
    """Accuracy against confidence, bin by bin: off the diagonal is miscalibrated.

    Example:

    ```python
    import numpy as np

    from recipes.uncertainty import plot_reliability

    rng = np.random.default_rng(42)
    probabilities = rng.dirichlet([0.5, 0.5, 0.5], size=500)
    labels = rng.integers(3, size=500)  # right one time in three, however sure
    figure = plot_reliability(probabilities, labels)
    ```

    Args:
        probabilities: `(inputs, classes)`.
        labels: `(inputs,)`, integers from 0 to classes - 1.
        num_bins: As in `expected_calibration_error`.
        axes: Matplotlib axes to draw on; a new figure without.

    Returns:
        The matplotlib `Figure`.
    """
    confidence, correct, bins = _confidence_bins(probabilities, labels, num_bins)
    error = expected_calibration_error(probabilities, labels, num_bins=num_bins)
    counts = np.bincount(bins, minlength=num_bins)
    full = np.flatnonzero(counts)
    accuracies = np.bincount(bins, weights=correct)[full] / counts[full]
    confidences = np.bincount(bins, weights=confidence)[full] / counts[full]

    axes = _axes_or_new(axes)
    edges = np.arange(num_bins + 1) / num_bins
    width = 0.94 / num_bins
    axes.bar(
        edges[full] + 0.5 / num_bins, accuracies, width, color=_BLUE, label="accuracy"
    )
    axes.plot(confidences, accuracies, "ko", ms=4, label="at mean confidence")
    axes.plot([0, 1], [0, 1], "k--", lw=1, label="calibrated")
    shares = counts / counts.sum()
    axes.stairs(shares, edges, color=_ORANGE, lw=2, label="share of all inputs")
    axes.set(
        title=f"Calibration error {error:.3f}:\nover-confident below the diagonal",
        xlabel="confidence (highest probability)",
        ylabel="share of the inputs, from 0 to 1",
        xlim=(0, 1),
        ylim=(0, 1.02),
    )
    axes.legend(loc="upper left")
    return axes.figure


def plot_coverage(probabilities, labels, *, axes=None):
    """Accuracy on the inputs kept, when the least confident are refused.

    Example:

    ```python
    import numpy as np

    from recipes.uncertainty import plot_coverage

    rng = np.random.default_rng(42)
    probabilities = rng.dirichlet([0.5, 0.5, 0.5], size=500)
    labels = [rng.choice(3, p=row) for row in probabilities]  # as sure as it is right
    figure = plot_coverage(probabilities, labels)
    ```

    Args:
        probabilities: `(inputs, classes)`.
        labels: `(inputs,)`, integers from 0 to classes - 1.
        axes: Matplotlib axes to draw on; a new figure without.

    Returns:
        The matplotlib `Figure`.
    """
    accuracies = _accuracy_by_count(probabilities, labels)
    part = accuracy_at_coverage(probabilities, labels, coverage=0.8)

    axes = _axes_or_new(axes)
    shares = np.arange(1, len(accuracies) + 1) / len(accuracies)
    axes.plot(shares, accuracies, color=_BLUE, lw=2, label="most confident kept")
    axes.axhline(accuracies[-1], color="black", ls="--", lw=1, label="all kept")
    axes.set(
        title=f"Accuracy {accuracies[-1]:.3f} on all inputs,\n"
        f"{part:.3f} on the most confident 80 %",
        xlabel="coverage (share of inputs kept)",
        ylabel="accuracy on the inputs kept",
        xlim=(0, 1),
    )
    axes.grid(alpha=0.3)
    axes.legend()
    return axes.figure


def plot_most_uncertain(
    images, samples, *, labels=None, class_names=None, num_images: int = 5
):
    """The least certain inputs, each image beside its predictive distribution.

    Sorted by predictive entropy, highest first. Bars are the mean, dots the samples:
    dots far from their bar mean that the model does not know, dots close to bars of
    equal length that the image is ambiguous. Shows the ten most probable classes at
    most.

    Example:

    ```python
    import numpy as np

    from recipes.uncertainty import plot_most_uncertain

    rng = np.random.default_rng(42)
    images = rng.random((20, 8, 8))
    samples = rng.dirichlet([1.0, 1.0, 1.0], size=(50, 20))
    names = ["cat", "dog", "owl"]
    figure = plot_most_uncertain(images, samples, class_names=names, num_images=2)
    ```

    Args:
        images: `(inputs, height, width)`, or with 1 or 3 channels last. The range of
            the images shown is stretched to black and white.
        samples: `(samples, inputs, classes)`, or one prediction `(inputs, classes)`,
            drawn as bars alone.
        labels: `(inputs,)`, integers from 0 to classes - 1, named in the titles.
        class_names: One name per class; the numbers without.
        num_images: How many to show; all of them if there are fewer.

    Returns:
        The matplotlib `Figure`, with two axes per image.
    """
    from matplotlib.figure import Figure

    samples = _check_rows("samples", samples, 3 if np.ndim(samples) == 3 else 2)
    samples = samples.reshape(-1, *samples.shape[-2:])
    _, num_inputs, num_classes = samples.shape
    images = _check_images(images, num_inputs)
    if labels is not None:
        labels = _check_labels(labels, num_inputs, num_classes)
    names = range(num_classes) if class_names is None else class_names
    if np.ndim(names) != 1 or len(names) != num_classes:
        raise ValueError(
            f"`class_names` must hold {num_classes} names, one per class. "
            f"Received: class_names={class_names!r}"
        )
    _check_count("num_images", num_images)

    mean = samples.mean(axis=0)
    entropy, information = _row_entropy(mean), mutual_information(samples)
    chosen = np.argsort(-entropy, kind="stable")[:num_images]
    height = len(chosen) * (0.8 + 0.2 * min(num_classes, 10))
    figure = Figure(figsize=(8, height), layout="constrained")
    figure.suptitle("Least certain predictions, by predictive entropy")
    rows = figure.subplots(len(chosen), 2, squeeze=False, width_ratios=(1, 3))
    black, white = images[chosen].min(), images[chosen].max()
    for (left, right), i in zip(rows, chosen, strict=True):
        shown = (images[i] - black) / ((white - black) or 1)
        left.imshow(shown, cmap="gray", vmin=0, vmax=1)
        left.set(xticks=[], yticks=[])
        if labels is not None:
            left.set_title(f"label: {names[labels[i]]}", fontsize="medium")

        classes = np.sort(np.argsort(-mean[i], kind="stable")[:10])
        places = np.arange(len(classes))
        title = f"predicted: {names[mean[i].argmax()]}, entropy {entropy[i]:.2f} nats"
        right.barh(places, mean[i, classes], color=_ORANGE, label="mean")
        if len(samples) > 1:
            title += f", mutual information {information[i]:.2f} nats"
            x = samples[:, i, classes]
            # From the upper to the lower edge of the bar, in the order of sampling.
            y = places + np.linspace(-0.35, 0.35, len(x))[:, None]
            right.scatter(x, y, s=6, color=_BLUE, alpha=0.5, label="samples")
        right.set_title(title, fontsize="medium")
        right.set_yticks(places, [names[c] for c in classes])
        right.set(xlim=(0, 1.01), ylim=(len(classes) - 0.5, -0.5))
        right.grid(axis="x", alpha=0.3)
    right.set_xlabel("probability")
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower left", ncols=2)
    return figure


def plot_in_and_out(scores_in, scores_out, *, axes=None):
    """Scores of known inputs and of foreign ones: the less overlap, the better.

    Example:

    ```python
    import numpy as np

    from recipes.uncertainty import plot_in_and_out, predictive_entropy

    rng = np.random.default_rng(42)
    known = rng.dirichlet([0.2, 0.2, 0.2], size=300)
    foreign = rng.dirichlet([2.0, 2.0, 2.0], size=100)
    figure = plot_in_and_out(predictive_entropy(known), predictive_entropy(foreign))
    ```

    Args:
        scores_in: `(inputs,)`, uncertainty of inputs like the training data.
        scores_out: `(other inputs,)`, the same measure on inputs unlike it.
        axes: Matplotlib axes to draw on; a new figure without.

    Returns:
        The matplotlib `Figure`.
    """
    scores_in = _check_scores("scores_in", scores_in)
    scores_out = _check_scores("scores_out", scores_out)
    scores = np.concatenate([scores_in, scores_out])
    area = auroc(scores, np.arange(len(scores)) >= len(scores_in))

    axes = _axes_or_new(axes)
    edges = np.histogram_bin_edges(scores, bins=30)
    for values, color, name in (
        (scores_in, _BLUE, "known"),
        (scores_out, _ORANGE, "foreign"),
    ):
        shares = np.histogram(values, edges)[0] / len(values)
        label = f"{name} inputs ({len(values)})"
        axes.stairs(shares, edges, fill=True, alpha=0.4, color=color)
        axes.stairs(shares, edges, lw=2, color=color, label=label)
    axes.set(
        title=f"AUROC {area:.3f}: how often a foreign input\nscores above a known one",
        xlabel="uncertainty score (nats, if an entropy or information)",
        ylabel="share of inputs per bin",
    )
    axes.legend()
    return axes.figure


def plot_entropy_split(expected_entropy, mutual_information, *, axes=None):
    """Predictive entropy in its two parts: noise in the data, and what was not learned.

    The inputs stand in the order of their predictive entropy, averaged in 50 groups of
    equal size (each by itself if there are fewer). A model sure of its weights has no
    upper part: dropout that hardly changes the outputs, or a network that has seen
    plenty of data.

    Example:

    ```python
    import numpy as np

    from recipes.uncertainty import expected_entropy, mutual_information
    from recipes.uncertainty import plot_entropy_split

    rng = np.random.default_rng(42)
    samples = rng.dirichlet([0.5, 0.5, 0.5], size=(50, 200))
    figure = plot_entropy_split(expected_entropy(samples), mutual_information(samples))
    ```

    Args:
        expected_entropy: `(inputs,)`, nats; of `expected_entropy` or an `MCPrediction`.
        mutual_information: `(inputs,)`, nats, of the same samples.
        axes: Matplotlib axes to draw on; a new figure without.

    Returns:
        The matplotlib `Figure`.
    """
    lower = _check_scores("expected_entropy", expected_entropy)
    upper = _check_scores("mutual_information", mutual_information)
    if len(lower) != len(upper):
        raise ValueError(
            "`mutual_information` must be of the same inputs as `expected_entropy`. "
            f"Received: lengths {len(upper)} and {len(lower)}"
        )
    order = np.argsort(lower + upper, kind="stable")
    groups = np.array_split(order, min(50, len(order)))
    edges = np.cumsum([0, *map(len, groups)]) / len(order)
    lower, upper = ([part[group].mean() for group in groups] for part in (lower, upper))
    total = np.add(lower, upper)

    axes = _axes_or_new(axes)
    axes.stairs(
        lower, edges, fill=True, color=_BLUE, alpha=0.7, label="expected entropy"
    )
    axes.stairs(
        total,
        edges,
        baseline=lower,
        fill=True,
        color=_ORANGE,
        alpha=0.7,
        label="mutual information",
    )
    share = np.mean(mutual_information) / max(
        np.mean(mutual_information) + np.mean(expected_entropy), np.finfo(float).tiny
    )
    axes.set(
        title=f"Mutual information is {share:.0%}\nof the predictive entropy",
        xlabel="share of the inputs, from the surest on",
        ylabel="predictive entropy (nats)",
        xlim=(0, 1),
    )
    axes.legend(loc="upper left")
    return axes.figure


def _row_entropy(probabilities):
    # 0 ln 0 = 0. abs, not minus: no term is above 0, and 0 shall not come out -0.
    logs = np.log(np.where(probabilities > 0, probabilities, 1))
    return np.abs((probabilities * logs).sum(axis=-1))


def _finite_logs(probabilities):
    """Logarithms of rows, shifted so that the highest of each row is 0."""
    logs = np.log(np.maximum(probabilities, 1e-38))
    return logs - logs.max(axis=1, keepdims=True)


def _confidence_bins(probabilities, labels, num_bins):
    """Confidence, whether right, and bin of each input; each `(inputs,)`."""
    probabilities, labels = _check_pair(probabilities, labels)
    _check_count("num_bins", num_bins)
    confidence = probabilities.max(axis=1)
    bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    return confidence, probabilities.argmax(axis=1) == labels, bins


def _accuracy_by_count(probabilities, labels):
    """Accuracy on the 1, 2, ... most confident inputs: `(inputs,)`."""
    probabilities, labels = _check_pair(probabilities, labels)
    correct = probabilities.argmax(axis=1) == labels
    # Groups of equal confidence, the most confident group first.
    _, groups = np.unique(-probabilities.max(axis=1), return_inverse=True)
    means = np.bincount(groups, weights=correct) / np.bincount(groups)
    return np.cumsum(means[np.sort(groups)]) / np.arange(1, len(groups) + 1)


def _axes_or_new(axes):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    if axes is None:
        return Figure(figsize=(5.5, 4.2), layout="constrained").subplots()
    if not isinstance(axes, Axes):
        raise ValueError(f"`axes` must be Matplotlib's. Received: axes={axes!r}")
    return axes


def _check_numbers(name, value):
    try:
        return np.asarray(value, dtype="float64")
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`{name}` must be an array of numbers. Received: {name}={value!r}"
        ) from error


def _check_rows(name, value, num_axes):
    """Rows of probabilities in float64, each divided by its sum."""
    rows = _check_numbers(name, value)
    if rows.ndim != num_axes or 0 in rows.shape or rows.shape[-1] < 2:
        shape = ", ".join(("samples", "inputs", "classes")[-num_axes:])
        raise ValueError(
            f"`{name}` must have shape ({shape}), none of them 0, and at least two "
            "classes. Average samples with samples.mean(axis=0); stack a sigmoid "
            "output p of shape (inputs,) with np.stack([1 - p, p], axis=-1). "
            f"Received: {name}.shape={rows.shape}"
        )
    if not (rows.min() >= 0 and rows.max() <= 1 + _SUM_TOLERANCE):  # also if NaN
        raise ValueError(
            f"`{name}` must be finite and in [0, 1]; logits need a softmax first. "
            f"Received: {name}.min()={rows.min()}, {name}.max()={rows.max()}"
        )
    sums = rows.sum(axis=-1, keepdims=True)
    farthest = sums.flat[np.abs(sums - 1).argmax()]
    if abs(farthest - 1) > _SUM_TOLERANCE:
        raise ValueError(
            f"Rows of `{name}` must sum to 1 over the classes, the last axis, within "
            f"{_SUM_TOLERANCE}. Received: a row of {name} with sum={farthest:.6g}"
        )
    return rows / sums


def _check_labels(labels, num_inputs, num_classes):
    labels = np.asarray(labels)
    if labels.shape != (num_inputs,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"`labels` must be integers of shape ({num_inputs},), one per input. "
            f"Received: labels.shape={labels.shape}, labels.dtype={labels.dtype}"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"`labels` must be from 0 to {num_classes - 1}. "
            f"Received: labels.min()={labels.min()}, labels.max()={labels.max()}"
        )
    return labels


def _check_pair(probabilities, labels):
    rows = _check_rows("probabilities", probabilities, 2)
    return rows, _check_labels(labels, *rows.shape)


def _check_scores(name, value):
    scores = _check_numbers(name, value)
    if scores.ndim != 1 or not scores.size or not np.isfinite(scores).all():
        raise ValueError(
            f"`{name}` must have shape (inputs,), at least one, all finite. "
            f"Received: {name}.shape={scores.shape}, {name}={value!r}"
        )
    return scores


def _check_images(images, num_inputs):
    images = _check_numbers("images", images)
    is_image = images.ndim == 3 or (images.ndim == 4 and images.shape[-1] in (1, 3))
    if not is_image or len(images) != num_inputs or not np.isfinite(images).all():
        raise ValueError(
            f"`images` must be finite, of shape ({num_inputs}, height, width), or with "
            f"1 or 3 channels last. Received: images.shape={images.shape}"
        )
    return images


def _check_count(name, value):
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_integer or not 1 <= value <= 1_000_000:
        raise ValueError(
            f"`{name}` must be an integer from 1 to 1,000,000. "
            f"Received: {name}={value!r}"
        )
