"""The rules of published tools that find faults in training, on a Run of ours.

Each rule is a function of a Run and gives whether it fires. Thresholds are those of the
tools' source or manuals. Their tools read tensors in every step, our monitors norms at
the end of each epoch, so:

- A mean absolute gradient is taken as 0.8 of the root mean square, as for normally
  distributed entries. What they ask of consecutive checks is asked of epochs.
- A unit that is active for less than 1% of the rows is one that is active for none of
  the 128 rows of the probe.
- Left out, for want of what they read: SageMaker's saturated activations, tree and
  image rules; AutoTrainer's dead ReLU (zero entries of gradients); TheDeepChecker's
  saturation, size of single updates, data ranges and over-fitting of one batch;
  DeepDiagnosis's dead ReLU (entries, not units).

Reference: Amazon, "List of Debugger built-in rules",
https://docs.aws.amazon.com/sagemaker/latest/dg/debugger-built-in-rules.html
Reference: Zhang, Shen, Ma, Zhai, Lin, "An Automated Monitoring and Repairing System for
DNN Training" (AutoTrainer), 2024, https://doi.org/10.1109/tdsc.2024.3450951
Reference: Ben Braiek, Khomh, "Testing Feedforward Neural Networks Training Programs"
(TheDeepChecker), 2022, https://arxiv.org/abs/2204.00694
Reference: Schoop, Huang, Hartmann, "UMLAUT: Debugging Deep Learning Programs using
Program Structure and Model Behavior", 2021, https://doi.org/10.1145/3411764.3445538
Reference: Wardat, Cruz, Le, Rajan, "DeepDiagnosis: Automatically Diagnosing Faults and
Recommending Actionable Fixes in Deep Learning Programs", 2022,
https://arxiv.org/abs/2112.04036
"""

import numpy as np

# --- what the rules read


def losses(run):
    return np.asarray(run.history.get("loss", []), dtype=float)


def accuracies(run):
    names = ("accuracy", "val_accuracy")
    return [np.asarray(run.history[n]) for n in names if n in run.history]


def kernels(run):
    """The gradient monitor's rows of kernels, with the number of entries of each."""
    if run.gradients is None:
        return None
    frame = run.gradients
    frame = frame[frame["variable"].str.contains("kernel")]
    sizes = {
        (layer.name, weight.name): int(np.prod(weight.shape))
        for layer in run.model.layers
        for weight in layer.weights
    }
    keys = zip(frame["layer"], frame["variable"].str.split("/").str[-1], strict=True)
    return frame.assign(entries=[sizes.get(key, np.nan) for key in keys])


def mean_gradients(run):
    """Mean absolute gradient, a row for each epoch and a column for each kernel."""
    frame = kernels(run)
    if frame is None:
        return np.zeros((0, 0))
    frame = frame.assign(
        mean=0.8 * frame["gradient_norm"] / np.sqrt(frame["entries"]),
        name=frame["layer"] + frame["variable"],
    )
    return frame.pivot(index="epoch", columns="name", values="mean").to_numpy()


def first_and_last(run):
    """Gradient norms of the first and the last kernel in each epoch."""
    frame = kernels(run)
    if frame is None:
        return np.ones(0), np.ones(0)
    groups = frame.groupby("epoch")["gradient_norm"]
    return groups.first().to_numpy(), groups.last().to_numpy()


def has_nonfinite(run):
    if run.gradients is None:
        return False
    columns = run.gradients[["gradient_norm", "weight_norm"]]
    return not np.isfinite(columns.to_numpy()).all()


def share(run, column):
    """The largest share of units or outputs in a hidden layer, by epoch."""
    if run.activations is None:
        return np.zeros(0)
    hidden = run.activations[run.activations["layer"] != "output"]
    return hidden.groupby("epoch")[column].max().fillna(0).to_numpy()


def has_relu(run):
    return run.settings["activation"] == "relu"


def rate(run):
    return float(run.model.optimizer.learning_rate)


def consecutive(flags, number):
    """Whether so many in a row are true."""
    windows = np.lib.stride_tricks.sliding_window_view
    return len(flags) >= number and bool(windows(flags, number).all(axis=1).any())


def changes(values):
    with np.errstate(all="ignore"):
        return values[1:] / values[:-1]


# --- SageMaker Debugger


def vanishing_1e_7(run):
    return bool((mean_gradients(run) < 1e-7).any())


def nonfinite(run):
    return has_nonfinite(run) or not np.isfinite(losses(run)).all()


def dying_relu(run):
    return has_relu(run) and bool((share(run, "fraction_dead") > 0.5).any())


def small_update(run):
    frame = kernels(run)
    return frame is not None and bool((frame["update_to_weight"] < 1e-8).any())


def large_update(run):
    frame = kernels(run)
    return frame is not None and bool((frame["update_to_weight"] > 10).any())


def loss_not_decreasing(run):
    loss = losses(run)
    return bool((loss[10:] > (1 - 0.001) * loss[:-10]).any())


def validation_above(run):
    loss = losses(run)
    validation = np.asarray(run.history.get("val_loss", loss))
    return bool((validation - loss > 0.1 * loss).any())


def poor_weights(run):
    """Unlike or hardly any signal, and a loss that has not fallen for five epochs."""
    frame, loss = kernels(run), losses(run)
    if frame is None or len(loss) < 6:
        return False
    start = frame[frame["epoch"] == -1]
    variances = start["weight_norm"] ** 2 / start["entries"]
    spread = 3.3 * start["gradient_norm"] / np.sqrt(start["entries"])
    is_poor = variances.max() > 10 * variances.min() or spread.min() < 0.001
    return bool(is_poor and loss[5] >= loss[0])


# --- AutoTrainer: nothing for a network that has learned


def has_learned(run):
    """Regression has no accuracy, and these rules do not judge it."""
    found = accuracies(run)
    return not found or max(each.max() for each in found) >= 0.7


def vanishing_ratio(run):
    first, last = first_and_last(run)
    return not has_learned(run) and bool(((first < 1e-3 * last) & (first < 1e-4)).any())


def exploding_ratio(run):
    first, last = first_and_last(run)
    loss = losses(run)
    return (
        bool((first > 70 * last).any()) or has_nonfinite(run) or not (loss < 1e3).all()
    )


def oscillating_accuracy(run):
    for accuracy in accuracies(run)[:1]:
        turns = np.flatnonzero(np.diff(np.sign(np.diff(accuracy)))) + 1
        swings = np.abs(np.diff(accuracy[turns])) >= 0.03
        return bool(swings.sum() >= 0.2 * len(accuracy))
    return False


def slow_accuracy(run):
    found = accuracies(run)
    if not found or has_learned(run):
        return False
    early = max(2, round(0.3 * len(found[0])))
    return all(np.diff(each[: early + 1]).max(initial=0) < 0.01 for each in found)


# --- TheDeepChecker


def vanishing_1e_6(run):
    means = mean_gradients(run)
    falling = [consecutive(changes(column) <= 0.5, 4) for column in means.T]
    return bool((means < 1e-6).any()) or any(falling)


def exploding_1e6(run):
    means = mean_gradients(run)
    rising = [consecutive(changes(column) >= 2, 4) for column in means.T]
    return bool((means > 1e6).any()) or any(rising)


def inactive_units(run):
    return dying_relu(run)


def rough_loss(run):
    loss = losses(run)[-50:]
    turns = (np.diff(np.sign(np.diff(loss))) != 0).sum()
    return len(loss) > 2 and bool(1 - turns / len(loss) < 0.5)


def flat_loss(run):
    return consecutive(changes(losses(run)) > 0.95, 4)


def unstable_activations(run):
    if run.activations is None:
        return False
    frame = run.activations
    start = frame[(frame["epoch"] == -1) & (frame["layer"] != "output")]
    return bool(((start["std"] < 0.5) | (start["std"] > 2)).any())


# --- UMLAUT


def nan_inputs(run):
    return not np.isfinite(run.train.x).all()


def rate_above_001(run):
    return rate(run) > 0.01


def rate_below_1e_7(run):
    return rate(run) < 1e-7


def validation_up(run):
    loss = losses(run)
    validation = np.asarray(run.history.get("val_loss", loss))
    return bool(((np.diff(validation) > 0) & (np.diff(loss) <= 0)).any())


def inputs_beyond_one(run):
    x = run.train.x
    return x.dtype.kind == "f" and bool(np.nanmax(np.abs(x)) > 1)


def no_softmax(run):
    is_crossentropy = "categorical" in run.settings["loss"]
    return is_crossentropy and run.settings["output_activation"] != "softmax"


def high_validation_accuracy(run):
    found = run.history.get("val_accuracy", [])
    return bool((np.asarray(found[3:]) > 0.95).any())


def much_dropout(run):
    return run.settings["dropout"] > 0.5


# --- DeepDiagnosis


def exploding_weights(run):
    return has_nonfinite(run)


def saturated_half(run):
    """Their bound is |z| > 5; the monitor's for sigmoid 4.36, for tanh 2.18."""
    return bool((share(run, "fraction_saturated") > 0.5).any())


def rate_below_1e_5(run):
    return rate(run) < 1e-5


def rate_above_01(run):
    return rate(run) > 0.1


def unchanged(run):
    """To four digits: the loss for 5 epochs, or the accuracy for 20."""
    loss_stands = consecutive(np.diff(np.round(losses(run), 4)) == 0, 5)
    accuracy = [np.round(each, 4) for each in accuracies(run)[:1]]
    return loss_stands or any(consecutive(np.diff(a) == 0, 20) for a in accuracy)


def output_out_of_range(run):
    low, high = {
        "sigmoid": (0, 1),
        "softmax": (0, 1),
        "tanh": (-1, 1),
        "relu": (0, np.inf),
    }.get(run.settings["output_activation"], (-np.inf, np.inf))
    is_sparse = run.settings["loss"].startswith("sparse")
    y = run.train.y
    return not is_sparse and bool(np.nanmin(y) < low or np.nanmax(y) > high)


# Rule -> the kinds of fault that it may stand for.
WEAK = ("saturating depth", "initial weights")
STRONG = ("exploding depth", "rate too high", "NaN data", "initial weights")
PLATEAU = ("rate too low", "rate too high", "optimizer settings")
RULES = {
    "SageMaker Debugger": {
        vanishing_1e_7: WEAK,
        nonfinite: STRONG,
        dying_relu: ("dead ReLU",),
        small_update: ("rate too low",),
        large_update: ("rate too high",),
        loss_not_decreasing: PLATEAU,
        validation_above: ("overfitting",),
        poor_weights: ("initial weights",),
    },
    "AutoTrainer": {
        vanishing_ratio: WEAK,
        exploding_ratio: STRONG,
        oscillating_accuracy: ("rate too high",),
        slow_accuracy: ("rate too low", "optimizer settings"),
    },
    "TheDeepChecker": {
        vanishing_1e_6: WEAK,
        exploding_1e6: STRONG,
        inactive_units: ("dead ReLU",),
        rough_loss: ("rate too high",),
        flat_loss: PLATEAU,
        unstable_activations: ("initial weights", "missing normalization"),
    },
    "UMLAUT": {
        nan_inputs: ("NaN data",),
        rate_above_001: ("rate too high",),
        rate_below_1e_7: ("rate too low",),
        validation_up: ("overfitting",),
        inputs_beyond_one: ("unscaled data",),
        no_softmax: ("output activation", "loss"),
        high_validation_accuracy: ("labels", "overfitting"),
        much_dropout: ("underfitting",),
    },
    "DeepDiagnosis": {
        vanishing_1e_7: WEAK,
        exploding_weights: STRONG,
        saturated_half: WEAK,
        rate_below_1e_5: ("rate too low",),
        rate_above_01: ("rate too high",),
        unchanged: PLATEAU,
        output_out_of_range: ("output activation", "loss", "labels"),
    },
}


def published(run):
    """Return `{tool: the rules that fire}` for a Run."""
    return {
        tool: [rule for rule in rules if rule(run)] for tool, rules in RULES.items()
    }
