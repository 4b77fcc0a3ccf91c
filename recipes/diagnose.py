"""Tell from the loss curves what is wrong with a training run, and what to change.

`diagnose_curves` reads what `fit` has returned and gives its verdicts in words, with
the numbers they rest on and the lines of code that help. Use it after a run that
disappoints, or after every run: for a healthy one it says nothing. It cannot say more
than curves do: not which layer is at fault, nor whether a loss that has settled could
be lower. With fewer than six epochs it reports only a loss that is not finite, and it
wants a validation loss for every epoch or none.

How the curves move at the end of the run settles the verdict:

    training   validation      verdict
    falls      falls           still learning; slow learning, if it has hardly begun
    falls      flat or rises   overfitting, if the two are far apart or the rise is real
    flat       falls           look at the data set
    flat       flat            converged, which is no finding; plateau; underfitting
    rises                      divergence

Oscillation may come with any of them. That a curve moves is not read off two epochs:
ranks must show it, and the change must matter.

This file is longer than most because each verdict brings its remedy along.

```python
import numpy as np

from recipes.diagnose import diagnose_curves, plot_diagnosis

epochs = np.arange(30)
history = {  # or what model.fit(...) has returned
    "loss": 2.0 * np.exp(-epochs / 5) + 0.1,
    "val_loss": 1.7 * np.exp(-epochs / 3) + 0.6 + 0.02 * epochs,
}
findings = diagnose_curves(history)
for finding in findings:
    print(finding)
figure = plot_diagnosis(history, findings)
```

Reference: Zhang, Shen, Ma, Zhai, Lin, "An Automated Monitoring and Repairing System for
DNN Training" (AutoTrainer), 2024, https://doi.org/10.1109/tdsc.2024.3450951
Revised: 0.2.0
"""

import math
import numbers
import textwrap
import typing

import keras
import numpy as np

# What `Finding.change` may hold, and what a program may make of it.
CHANGES = {
    "learning_rate": ("lower", "higher", "search"),  # by a factor of 3, or LRFinder
    "global_clipnorm": ("lower",),  # or clip at all, say at 1.0
    "epochs": ("lower", "higher"),  # lower: end where the validation loss was least
    "regularization": ("lower", "higher"),  # dropout rate, penalties
    "units": ("higher",),  # wider or more layers
    "data": ("check",),  # for a person, not a program
}

_COLUMNS = ("loss", "val_loss", "accuracy", "val_accuracy", "learning_rate")
# Five epochs in order are one case of 120, six one of 720.
_FEWEST = 6
# One-sided, 2 of 100 curves without a trend exceed it at their end; and 1 of 200, asked
# where more epochs can answer, and behind a lowest point, where some rise is likely.
_SIGNIFICANT, _VERY_SIGNIFICANT = 2.05, 2.6
_BLUE, _ORANGE, _GREY = "#0072B2", "#E69F00", "0.45"


class Finding(typing.NamedTuple):
    """One thing that is wrong with a run; `print` shows it in words.

    Attributes:
        symptom: "divergence", "oscillation", "overfitting", "data set", "slow
            learning", "plateau", "underfitting" or "still learning".
        layer: Name of the layer it is in, `None` where it is the whole network.
        epoch: Since when, counted from 0 for the first row of the history.
        evidence: `{name: number}`, what the verdict rests on. Levels of losses are
            medians over several epochs; names ending in `_fraction` are relative.
        cause: The likeliest causes, in a sentence or two.
        advice: A line of words, then lines of code, each indented by four blanks.
        change: The advice as data, `{name: direction}`, out of `CHANGES`.
    """

    symptom: str
    layer: str | None
    epoch: int | None
    evidence: dict
    cause: str
    advice: str
    change: dict

    def __str__(self):
        return f"{_headline(self)}\n{self.cause}\n{self.advice}"


def diagnose_curves(
    history,
    *,
    end_fraction: float = 1 / 3,
    min_change: float = 0.05,
    min_rise: float = 0.1,
    divergence_factor: float = 1.5,
    min_swing: float = 0.1,
    swing_fraction: float = 0.2,
    min_gap: float = 0.5,
    slow_fall: float = 0.3,
    min_fall: float = 0.1,
    min_accuracy: float = 0.7,
) -> list[Finding]:
    """Read the curves of a run and say what is wrong with it.

    The end of the run is its last `end_fraction`, at least six epochs. A curve moves
    there if the Mann-Kendall test says so at a level of 2%,

        z = (S - sign(S)) / sqrt(n (n - 1) (2 n + 5) / 18),  |z| > 2.05,

    S the number of pairs of the n epochs that rise less those that fall, and if its
    change, Sen's median slope times n - 1, is at least `min_change` of its level. What
    has happened since an epoch, or in the whole run, must show at 1/2%, |z| > 2.6. So
    one wild epoch changes nothing, and of 500 made healthy runs with a noise of 3% from
    epoch to epoch one got a finding, with 5% three.

    Overfitting takes two of three signs: since the validation loss first came within
    `min_change` of its lowest level the training loss has fallen; the validation loss
    has risen; the gap between them is wide.

    Levels below a thousandth of the first training loss count as that: nothing is read
    into 0.0001 and 0.0002. A loss that goes below 0 has no level; both curves are then
    lifted until the lowest value is a quarter of their range.

    Example:

    ```python
    from recipes.diagnose import diagnose_curves

    hardly_falls = {"loss": [2.3 - 0.01 * epoch for epoch in range(20)]}
    for finding in diagnose_curves(hardly_falls):
        print(finding.symptom, finding.evidence, finding.change)
    ```

    Args:
        history: A Keras `History`, or a dict of lists or DataFrame with a row per
            epoch: loss, and as far as they are there val_loss, accuracy, val_accuracy
            and learning_rate. Other columns are passed over.
        end_fraction: Share of the epochs that make the end.
        min_change: Least relative change along the end that counts as movement. 5%, as
            TheDeepChecker asks of a loss that learns.
        min_rise: Least relative rise above the lowest level, with a significant z since
            then, that counts as rising. 10%, the ratio of SageMaker Debugger's rule
            Overfit.
        divergence_factor: At this many times its lowest level, above 1, the training
            loss has diverged even if it no longer rises. Noise does not take medians
            of five epochs that far.
        min_swing: Least relative rise of a curve to a peak, and fall from it, that
            make a swing, over one epoch or several. 10%: more than three times the
            noise of most losses, which are means over an epoch.
        swing_fraction: Swings per epoch, at least three in all, in the training or the
            validation loss of an oscillating run. 0.2, as in AutoTrainer.
        min_gap: Share of the validation loss by which the training loss is below it
            when a flat validation loss counts as overfitting. At a half, the one is
            twice the other; healthy runs reach a third.
        slow_fall: Share of the first training loss below which a fall is slow, if it
            is also steady: from the middle third of the run to the last at least a
            third of what it was from the first three epochs to the middle. 30%: an
            exponential fall is slow within 0.4 of its time constant.
        min_fall: Share of the first training loss by which one that is not a plateau
            has fallen. 10%: from 2.3 to 2.07 with ten classes.
        min_accuracy: Training accuracy, if there is one, below which a flat curve is
            underfitting, and from which on it is no plateau. 0.7, as in AutoTrainer;
            only you know what your data allow.

    Returns:
        List of `Finding`, likeliest root cause first, empty for a healthy run.

    Raises:
        ValueError: `history` has no loss or columns of different lengths, or a
            threshold is not between 0 and 1, `divergence_factor` not above 1.

    Reference: Mann, "Nonparametric Tests Against Trend", 1945,
        https://doi.org/10.2307/1907187
    Reference: Sen, "Estimates of the Regression Coefficient Based on Kendall's Tau",
        1968, https://doi.org/10.2307/2285891
    Reference: Ben Braiek, Khomh, "Testing Feedforward Neural Networks Training
        Programs" (TheDeepChecker), 2022, https://arxiv.org/abs/2204.00694
    Reference: Amazon, "List of Debugger built-in rules",
        https://docs.aws.amazon.com/sagemaker/latest/dg/debugger-built-in-rules.html
    """
    for name, value in (
        ("end_fraction", end_fraction),
        ("min_change", min_change),
        ("min_rise", min_rise),
        ("min_swing", min_swing),
        ("swing_fraction", swing_fraction),
        ("min_gap", min_gap),
        ("slow_fall", slow_fall),
        ("min_fall", min_fall),
        ("min_accuracy", min_accuracy),
    ):
        _number_between(name, value, 0, 1)
    _number_between("divergence_factor", divergence_factor, 1, math.inf)
    curves = _curves_of(history)
    loss, val_loss = curves["loss"], curves.get("val_loss")
    if not np.isfinite(loss).all():
        bad = int(np.argmin(np.isfinite(loss)))
        before = {"last_finite_loss": loss[bad - 1]} if bad else {}
        return [_verdict("not finite", bad, curves, before)]
    findings = []
    if val_loss is not None and not np.isfinite(val_loss).all():
        bad = int(np.argmin(np.isfinite(val_loss)))
        there = {"loss": loss[bad]}
        findings.append(_verdict("validation not finite", bad, curves, there))
        val_loss = None
    if len(loss) < _FEWEST:
        return findings

    loss, val_loss = _lifted(loss, val_loss)
    first, num_epochs = loss[0], len(loss)
    floor = max(0.001 * first, np.finfo("float64").eps)
    end = num_epochs - max(_FEWEST, round(end_fraction * num_epochs))
    train = _shape(loss, end, floor, min_change, min_rise)
    swings = [_swings(loss, min_swing, floor)]
    if val_loss is not None:
        swings.append(_swings(val_loss, min_swing, floor))
    most = max(swings, key=len)
    is_oscillating = len(most) >= max(3, swing_fraction * num_epochs)
    if is_oscillating:
        names = ("swings", "val_swings")
        seen = {name: len(each) for name, each in zip(names, swings, strict=False)}
        seen["epochs"] = num_epochs
        findings.append(_verdict("oscillation", most[0], curves, seen))
    # Large swings alone take medians of five epochs far above the lowest of them.
    has_broken_down = train.rise >= divergence_factor - 1 and not is_oscillating
    if train.rises or has_broken_down:
        seen = {"rise_fraction": train.rise, "rise_z": train.rise_z}
        return findings + [_verdict("divergence", train.best_epoch, curves, seen)]

    seen = {
        "fall_fraction": 1 - train.end / max(first, floor),
        "end_change_fraction": train.change,
        "end_z": train.z,
    }
    falls = train.falls
    if val_loss is not None:
        validation = _shape(val_loss, end, floor, min_change, min_rise)
        seen["val_end_change_fraction"] = validation.change
        seen["val_end_z"] = validation.z

        best = validation.best_epoch
        since = {
            "loss_change_fraction": _change_since(best, loss, train, floor),
            "val_loss_rise_fraction": validation.rise,
            "gap_fraction": 1 - train.end / max(validation.end, floor),
        }
        signs = (
            since["loss_change_fraction"] <= -min_change,
            validation.rises,
            since["gap_fraction"] >= min_gap,
        )
        if best <= end and sum(signs) >= 2:
            if "val_accuracy" in curves:
                then, now = (
                    np.median(curves["val_accuracy"][part])
                    for part in (slice(best - 2, best + 3), slice(end, None))
                )
                since["val_accuracy_change"] = now - then
            return findings + [_verdict("overfitting", best, curves, since)]

        falls, best = validation.falls, train.best_epoch
        change = _change_since(best, val_loss, validation, floor)
        z = _trend(val_loss[best:])[1]
        settled = best <= end and z < -_VERY_SIGNIFICANT
        if falls and settled and change <= -min_rise:
            since = {"val_loss_change_fraction": change, "val_loss_z": z}
            return findings + [_verdict("data set", best, curves, since)]
        falls = falls and train.change <= validation.change / 4

    early = np.median(loss[:3])
    _, middle, late = (np.median(part) for part in np.array_split(loss, 3))
    if (
        _trend(loss)[1] < -_VERY_SIGNIFICANT
        and late > (1 - slow_fall) * first
        and middle - late >= (early - middle) / 3
    ):
        return findings + [_verdict("slow learning", 0, curves, seen)]
    if falls:
        return findings + [_verdict("still learning", end, curves, seen)]
    accuracy = math.nan
    if "accuracy" in curves:
        accuracy = seen["accuracy"] = np.median(curves["accuracy"][end:])
    if train.end > (1 - min_fall) * first and not accuracy >= min_accuracy:
        return findings + [_verdict("plateau", 0, curves, seen)]
    if accuracy < min_accuracy and not train.falls:
        return findings + [_verdict("underfitting", end, curves, seen)]
    return findings


def plot_diagnosis(history, findings: list[Finding]):
    """Draw the curves, mark the findings on them, and put them in words below.

    Args:
        history: As for `diagnose_curves`.
        findings: What it has returned; the number of each stands at its epoch.

    Returns:
        A matplotlib `Figure`: the losses, beside them the accuracies if there are any,
        and the words. Values that are not finite leave gaps.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    curves = _curves_of(history)
    paragraphs, marks = [], {}
    for number, finding in enumerate(findings, 1):
        words = f"{number}. {_headline(finding)}. {finding.cause} {finding.advice}"
        # Only the words of the advice, not its code.
        words = textwrap.fill(words.partition("\n")[0], 112, subsequent_indent="    ")
        paragraphs.append(words)
        marks.setdefault(finding.epoch, []).append(str(number))
    text = (
        "\n".join(paragraphs) or "Nothing found: these are the curves of a sound run."
    )

    text_height = 0.3 + 0.17 * (text.count("\n") + 1)  # inches
    figure = Figure(figsize=(8, 3.2 + text_height), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[3.2, text_height])
    below.text(0.02, 0.97, text, va="top", fontsize=9)
    panels = [name for name in ("loss", "accuracy") if name in curves]
    for name, axes in zip(
        panels, above.subplots(1, len(panels), squeeze=False)[0], strict=True
    ):
        for key, label, color in (
            (name, "training", _BLUE),
            (f"val_{name}", "validation", _ORANGE),
        ):
            if key in curves:
                values = np.where(np.isfinite(curves[key]), curves[key], np.nan)
                axes.plot(values, color=color, marker=".", label=label)
        for epoch, there in marks.items():
            axes.axvline(epoch, color=_GREY, ls=":")
            above_axes = axes.get_xaxis_transform()
            axes.text(epoch, 1.02, ", ".join(there), transform=above_axes, ha="center")
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


class _Shape(typing.NamedTuple):
    """What the verdicts need to know of one curve."""

    end: float  # level there
    change: float  # along it, relative
    z: float
    falls: bool
    best_epoch: int  # the first whose level is hardly above the lowest
    rise: float  # from the lowest level to the last, relative
    rise_z: float  # since best_epoch
    rises: bool


def _shape(values, end, floor, min_change, min_rise):
    end_level = np.median(values[end:])
    change, z = _trend(values[end:])
    change /= max(end_level, floor)
    falls = change <= -min_change and z < -_SIGNIFICANT

    # levels[0] is that of epoch 2, the middle of the first five.
    levels = np.median(np.lib.stride_tricks.sliding_window_view(values, 5), axis=1)
    lowest = levels.min()
    unit = max(lowest, floor)
    best_epoch = 2 + int(np.argmax(levels <= lowest + min_change * unit))
    rise = (levels[-1] - lowest) / unit
    rise_z = _trend(values[best_epoch:])[1]
    rises = rise >= min_rise and rise_z > _VERY_SIGNIFICANT
    return _Shape(end_level, change, z, falls, best_epoch, rise, rise_z, rises)


def _change_since(epoch, values, shape, floor):
    """Return the relative change from the level around an epoch to that of the end."""
    then = np.median(values[epoch - 2 : epoch + 3])
    return (shape.end - then) / max(then, floor)


def _trend(values):
    """Return the change along the values by Sen's slope, and Mann and Kendall's z."""
    if len(values) > 300:  # the pairs grow with the square
        values = np.array([np.median(part) for part in np.array_split(values, 300)])
    n = len(values)
    earlier, later = np.triu_indices(n, k=1)
    rises = values[later] - values[earlier]
    change = np.median(rises / (later - earlier)) * (n - 1)
    score = np.sign(rises).sum()
    deviation = math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    return change, (score - np.sign(score)) / deviation


def _swings(values, min_swing, floor):
    """Return the epochs at which a rise and a fall of `min_swing` were complete."""
    epochs, is_rising = [], False
    turn = values[0]  # the lowest value since the last fall, or highest since the rise
    for epoch, value in enumerate(values):
        if is_rising:
            turn = max(turn, value)
            if turn - value > min_swing * max(value, floor):
                epochs.append(epoch)
                is_rising, turn = False, value
        else:
            turn = min(turn, value)
            if value - turn > min_swing * max(turn, floor):
                is_rising, turn = True, value
    return epochs


def _lifted(loss, val_loss):
    """Return both curves, above 0, so that changes relative to them mean something."""
    both = loss if val_loss is None else np.concatenate([loss, val_loss])
    if both.min() < 0:
        lift = np.ptp(both) / 4 - both.min()
        loss = loss + lift
        val_loss = None if val_loss is None else val_loss + lift
    return loss, val_loss


def _curves_of(history):
    """Return {column: array} of the known columns."""
    if isinstance(history, keras.callbacks.History):
        history = history.history
    try:
        curves = {
            name: np.asarray(history[name], dtype="float64")
            for name in _COLUMNS
            if name in history
        }
    except (TypeError, ValueError) as error:
        raise ValueError(
            "`history` must be a History, or a dict or DataFrame of numbers. "
            f"Received: history={history!r}"
        ) from error
    shapes = {name: values.shape for name, values in curves.items()}
    expected = shapes.get("loss", ())
    if len(expected) != 1 or 0 in expected or set(shapes.values()) != {expected}:
        raise ValueError(
            "`history` must have a loss for each epoch, at least one, and as many "
            f"values in each other column. Received: history with shapes {shapes}"
        )
    return curves


def _verdict(case, epoch, curves, evidence):
    symptom, cause, words, code, change = _CASES[case]
    if "learning_rate" in curves:
        evidence = {**evidence, "learning_rate": curves["learning_rate"][epoch]}
    evidence = {name: float(value) for name, value in evidence.items()}
    advice = f"{words}\n{textwrap.indent(code, '    ')}"
    return Finding(symptom, None, int(epoch), evidence, cause, advice, dict(change))


def _headline(finding):
    where = f" in {finding.layer}" if finding.layer else ""
    when = "" if finding.epoch is None else f" since epoch {finding.epoch}"
    seen = ", ".join(f"{name} {value:.3g}" for name, value in finding.evidence.items())
    return f"{finding.symptom}{where}{when} ({seen})"


def _number_between(name, value, low, high):
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (is_number and low < value < high):
        raise ValueError(
            f"`{name}` must be a number between {low} and {high}. "
            f"Received: {name}={value!r}"
        )
    return float(value)


# case: symptom, cause, advice in words and in code, change
_CASES = {
    "not finite": (
        "divergence",
        "The training loss is NaN or infinite: a step was far too long, or a batch "
        "holds values that are not finite.",
        "Lower the learning rate to a third, clip the gradient, and undo the steps "
        "that break it; if it breaks at any rate, look at the data.",
        """\
from callbacks.nonfinite_guard import NonFiniteGuard
from recipes.optimizers import make_optimizer
model.compile(make_optimizer("adam", 3e-4, global_clipnorm=1.0), loss="mse")
model.fit(x, y, callbacks=[NonFiniteGuard()])""",
        {"learning_rate": "lower", "global_clipnorm": "lower", "data": "check"},
    ),
    "divergence": (
        "divergence",
        "The training loss rises: the steps are too long for where they have come to. "
        "If it rises at a tenth of the rate, too, then the architecture, the loss or "
        "the data is wrong.",
        "Find the learning rate with a range test, and clip the gradient.",
        """\
from callbacks.lr_finder import LRFinder
from recipes.optimizers import make_optimizer
model.compile(make_optimizer("adam", global_clipnorm=1.0), loss="mse")
model.optimizer.learning_rate = LRFinder().run(model, x, y).suggestion""",
        {"learning_rate": "lower", "global_clipnorm": "lower"},
    ),
    "oscillation": (
        "oscillation",
        "The steps leap over the minimum again and again: the learning rate is too "
        "high for this batch size.",
        "Lower the learning rate to a third, let it decay, or enlarge the batch.",
        """\
from callbacks.schedulers import ExponentialScheduler
model.fit(x, y, callbacks=[ExponentialScheduler(3e-4, decay_epochs=20)])""",
        {"learning_rate": "lower"},
    ),
    "validation not finite": (
        "data set",
        "The validation loss is NaN or infinite and the training loss is not: the "
        "validation data hold values that are not finite or far outside the training "
        "data, or nothing was validated in that epoch.",
        "Look at them, and scale them by the numbers of the training data.",
        """\
from recipes.fashion_mnist import split_and_scale
print(np.isfinite(x_valid).all(), x_valid.min(), x_valid.max())
data = split_and_scale((x, y), (x_test, y_test), scale="standardize")""",
        {"data": "check"},
    ),
    "data set": (
        "data set",
        "The validation loss falls and the training loss does not, so they measure "
        "different things. The two sets are unlike, or training sees another network, "
        "by strong dropout or batch normalization whose moving averages lag behind.",
        "Shuffle before you split, scale both alike, and compare with the training "
        "loss of the network as it predicts.",
        """\
from recipes.fashion_mnist import split_and_scale
data = split_and_scale((x, y), (x_test, y_test), scale="standardize")
print(model.evaluate(data.x_train, data.y_train))""",
        {"data": "check"},
    ),
    "overfitting": (
        "overfitting",
        "The training loss falls where the validation loss does not: the network "
        "learns its training samples by heart.",
        "Stop at the best epoch, and add dropout, penalties or data. If the accuracy "
        "does not suffer with the loss, calibrating the probabilities is enough.",
        """\
from recipes.regularizers import regularize
from recipes.uncertainty import fit_temperature
model = regularize(model, l2=1e-4)  # to be compiled again
keras.layers.Dropout(0.2)  # before each Dense layer
keras.callbacks.EarlyStopping(patience=5, restore_best_weights=True)
temperature = fit_temperature(model.predict(x_valid), y_valid)""",
        {"regularization": "higher", "epochs": "lower"},
    ),
    "slow learning": (
        "slow learning",
        "The training loss falls steadily, but hardly: the learning rate is too low.",
        "Raise the learning rate threefold, or find it with a range test.",
        """\
from callbacks.lr_finder import LRFinder
model.optimizer.learning_rate = LRFinder().run(model, x, y).suggestion""",
        {"learning_rate": "higher"},
    ),
    "still learning": (
        "still learning",
        "The loss was still falling when training ended: too few epochs.",
        "Train on until the training loss has converged.",
        """\
from callbacks.convergence import StopWhenConverged
model.fit(x, y, epochs=1000, callbacks=[StopWhenConverged(0.01)])""",
        {"epochs": "higher"},
    ),
    "plateau": (
        "plateau",
        "The training loss has hardly left its first value: the learning rate is far "
        "too low or too high, or the gradient does not arrive, as with saturated or "
        "dead units. In a network that was trained before it is no fault.",
        "Find the learning rate with a range test, and take initial weights that fit "
        "the activation.",
        """\
from callbacks.lr_finder import LRFinder
from recipes.initializers import initializer_for
keras.layers.Dense(100, "relu", kernel_initializer=initializer_for("relu"))
model.optimizer.learning_rate = LRFinder().run(model, x, y).suggestion""",
        {"learning_rate": "search"},
    ),
    "underfitting": (
        "underfitting",
        "The training loss has settled and the training accuracy is low: the network "
        "is stuck, at a learning rate too high for it to go on, or too small, or held "
        "down too strongly.",
        "Cut the learning rate where the loss stays; then widen the layers, drop and "
        "penalize less.",
        """\
from callbacks.schedulers import PlateauScheduler
from recipes.initializers import initializer_for
keras.layers.Dense(300, "relu", kernel_initializer=initializer_for("relu"))
model.fit(x, y, callbacks=[PlateauScheduler("loss", factor=0.3, patience=5)])""",
        {"learning_rate": "search", "units": "higher", "regularization": "lower"},
    ),
}
