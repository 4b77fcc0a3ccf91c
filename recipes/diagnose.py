"""Tell from curves, gradients and activations why a network does not train.

`diagnose` puts together what three of this collection have seen, each of them optional:
the findings of `check_model` before training, the tables of `GradientMonitor` and
`ActivationMonitor` during it, and the curves. One report comes out, the likeliest root
cause first: what follows from a cause is named with it, and not advised on. Use it
after a run that disappoints, or after every run: for a healthy one it says nothing.
`diagnose_curves` reads the curves alone, of any run that left a history.

It cannot say whether a loss that has settled could be lower, and it does not see the
optimizer, only how far its steps went. With fewer than six epochs the curves say only
whether the loss is finite and whether it has fallen at all.

How the curves move at the end of the run settles their verdict:

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

from recipes.diagnose import diagnose, plot_diagnosis

epochs = np.arange(30)
history = {  # or what model.fit(...) has returned
    "loss": 2.0 * np.exp(-epochs / 5) + 0.1,
    "val_loss": 1.7 * np.exp(-epochs / 3) + 0.6 + 0.02 * epochs,
}
findings = diagnose(history)  # and gradients=gradient_monitor.to_frame(), ...
for finding in findings:
    print(finding)
figure = plot_diagnosis(history, findings)
```

Reference: Zhang, Shen, Ma, Zhai, Lin, "An Automated Monitoring and Repairing System for
DNN Training" (AutoTrainer), 2024, https://doi.org/10.1109/tdsc.2024.3450951
Reference: Ben Braiek, Khomh, "TheDeepChecker: Testing Deep Neural Network Training
Programs", 2022, https://arxiv.org/abs/2204.00694
Revised: 0.2.0
"""

import math
import numbers
import textwrap
import typing

import keras
import numpy as np

# What `Finding.change` may hold, and what a program may make of it. A type stands for
# any value of it, and without another meaning "lower" and "higher" are tenfold.
CHANGES = {
    "x": ("finite", "varying"),
    "scale": ("standardize",),
    "target_scale": ("standardize",),
    "labels": ("finite", "0 to n - 1", "0 to 1", "check"),  # check: for a person
    "loss": (str,),
    "from_logits": (bool,),
    "activation": (str,),  # of the finding's layer, and of those like it
    "units": ("higher", int),  # wider layers; of the finding's layer
    "kernel_initializer": (str,),
    "bias_initializer": (str,),
    "normalization": ("batch",),
    "dropout": ("AlphaDropout",),
    "regularization": ("lower", "higher"),  # dropout, penalties, weight decay
    "optimizer": (str,),  # of make_optimizer, with its defaults
    "learning_rate": ("lower", "search", float),  # search: by LRFinder
    "momentum": (float,),
    "global_clipnorm": ("lower", float),  # lower: or clip at all, at 1.0
    "epochs": ("lower", "higher"),  # lower: end where the validation loss was least
    "data": ("check",),  # for a person, not a program
}

_COLUMNS = ("loss", "val_loss", "accuracy", "val_accuracy", "learning_rate")
# Five epochs in order are one case of 120, six one of 720.
_FEWEST = 6
# One-sided, 2 of 100 curves without a trend exceed it at their end; and 1 of 200, asked
# where more epochs can answer, and behind a lowest point, where some rise is likely.
_SIGNIFICANT, _VERY_SIGNIFICANT = 2.05, 2.6
_BLUE, _ORANGE, _GREY = "#0072B2", "#E69F00", "0.45"

# Bounds of the verdicts on tables, all of them orders of magnitude, not fine lines.
_DEAD = 0.7  # of a layer's units, as in AutoTrainer, which counts the gradient's zeros
_SATURATED = 0.5  # of a layer's outputs, as in TheDeepChecker and SageMaker Debugger
_VANISHING = 1e-3  # first gradient to last, as in AutoTrainer
_FADING = 0.05  # deviation between rows, last hidden layer to first
_GROWING = 30.0  # deviation of a hidden layer to that of the first
_TINY = 1e-30  # instead of 0, to divide by
_STILL = 0.01  # update to weights: no layer has moved as far in any epoch
_LEAP = 3.0  # growth of the weights in an epoch: nothing is left of the initial ones
_HELD_BACK = 0.3  # an epoch's update to one step of plain gradient descent
_GATHERING = 1.5  # update of the fourth epoch to that of the first, at equal rates
_SHRUNK = 0.3  # weights to initial weights
_CONSTANT = 0.01  # deviation of outputs between rows to the initial
_STEP_DOWN = 0.05  # of the loss, in an epoch: what counts as movement elsewhere
_GAIN = 0.1  # of accuracy, or of the first loss: training gains it, validation does not

_CURVES = {"divergence", "oscillation", "plateau", "slow learning", "underfitting"}
_CURVES |= {"still learning", "data set", "labels unrelated to inputs"}
_STEPS = {"steps held back", "steps too long", "steps too short", "dying units"}
_STEPS |= {"units driven to saturation", "momentum too high"}
_SIGNALS = {"dead units", "saturated units", "exploding gradient", "fading signal"}
_SIGNALS |= {"missing normalization", "vanishing gradient"}
_ALL = _SIGNALS | _STEPS | _CURVES
_ALL |= {"penalties too strong", "overfitting"}

# The order of the report, from the data by the model and its steps to the curves: what
# is seen, and what else it explains, which then is no finding of its own. Others come
# last, as they are found.
_ORDER = (
    ("inputs not finite", _ALL),
    ("labels not finite", _ALL),
    ("inputs constant", _ALL),
    ("labels are no numbers", _ALL),
    ("labels do not fit the output", _ALL),
    ("labels out of range", _ALL),
    ("one-hot labels for a sparse loss", _ALL),
    ("class numbers for a categorical loss", _ALL),
    ("softmax of one unit", _ALL),
    ("softmax for several labels at once", _ALL),
    ("one unit for a sparse loss", _ALL),
    ("targets outside the range of the output", _ALL),
    ("targets outside the range of the loss", _ALL),
    ("probabilities taken for logits", _ALL),
    ("logits taken for probabilities", _ALL),
    ("logits with bounds", _ALL),
    ("sigmoid for exclusive classes", _ALL),
    ("inputs unscaled", _ALL),
    ("targets unscaled", _ALL),
    ("zero weights", _ALL),
    ("symmetric weights", _ALL),
    ("SELU on inputs that are not standardized", _SIGNALS | _CURVES),
    ("SELU without LeCun's weights", _SIGNALS | _CURVES),
    ("initial loss above chance", _ALL),
    ("linear hidden layers", _ALL),
    ("layers too narrow", _ALL),
    ("saturated units", _ALL),
    ("dead units", _ALL),
    ("exploding gradient", _ALL),
    ("fading signal", _ALL),
    ("missing normalization", _ALL),
    ("vanishing gradient", _ALL),
    ("learning rate out of range", _ALL),
    ("steps held back", _STEPS | _CURVES),
    ("momentum too high", _STEPS | _CURVES),
    ("steps too long", _STEPS | _CURVES),
    ("dying units", _CURVES),
    ("units driven to saturation", _CURVES),
    ("penalties too strong", _STEPS | _CURVES),
    ("steps too short", _CURVES),
    ("labels unrelated to inputs", _CURVES | {"overfitting"}),
    ("divergence", _CURVES),
    ("oscillation", _CURVES),
    ("overfitting", set()),
    ("data set", set()),
    ("slow learning", set()),
    ("plateau", set()),
    ("underfitting", set()),
    ("still learning", set()),
)


class Finding(typing.NamedTuple):
    """One thing that is wrong with a run; `print` shows it in words.

    Attributes:
        symptom: What was seen, in a few words, the same at each occurrence: one of
            `check_model`'s; of the tables "dead units", "dying units", "saturated
            units", "units driven to saturation", "exploding gradient", "fading signal",
            "missing normalization", "vanishing gradient", "steps held back", "momentum
            too high", "steps too long", "steps too short", "penalties too strong"; of
            the curves "labels unrelated to inputs", "divergence", "oscillation",
            "overfitting", "data set", "slow learning", "plateau", "underfitting" or
            "still learning".
        layer: Name of the layer it is in, `None` where it is the whole network.
        epoch: Since when, counted from 0 for the first row of the history; -1 before
            the first.
        evidence: `{name: number}`, what the verdict rests on. Levels of losses are
            medians over several epochs; names ending in `_fraction` are relative.
        cause: The likeliest causes, in a sentence or two, and what they explain.
        advice: What to do, in words, and then as code; that of the curves and tables in
            lines of their own, each indented by four blanks.
        change: The advice as data, `{name: direction or value}`, out of `CHANGES`.
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


def diagnose(history, *, gradients=None, activations=None, checks=()) -> list[Finding]:
    """Say what is wrong with a run, the likeliest root cause first.

    Give it all that there is. With `history` alone it says what `diagnose_curves` says,
    and whether the labels have anything to do with the inputs.

    What a run has overcome is not reported: signals and gradients that before training
    hardly passed, and an initial loss above chance, where the curves are sound and the
    loss has come below three quarters of chance.

    What is found is put in the order of cause and effect: data, labels, output and
    initial weights; signals and gradients that do not pass the layers; steps that are
    too long or too short; the curves. A finding that an earlier one explains is named
    in that one's `cause`, and left out.

    Beyond the curves, whose bounds are arguments of `diagnose_curves`, found are

    - labels unrelated to inputs: validation never gets better than training was in its
      first epoch, but training does, by 0.1 in accuracy (or of the loss, where there is
      no accuracy); or neither does, though all layers move
    - still learning: in three to five epochs, if each was a step down, by 5% as a rule
      and in the last, and in two, if the second was one by 20%
    - plateau: an output that is the same for all rows

    and, if the run struggles, which means that its curves say something other than
    overfitting or that in three to five epochs the loss has not fallen by a tenth,

    - dead units: 70% of a hidden layer's; dying units, if not from the start
    - saturated units: 50% of a hidden layer's outputs; units driven to saturation, if
      not from the start
    - exploding gradient: before training, outputs of a hidden layer deviate thirty
      times as far as those of the first
    - vanishing gradient: before training, the last hidden layer's outputs differ
      between rows a twentieth as far as those of the first; or the gradient at the
      first kernel is a thousandth of that at the last, then and in most epochs
    - instead of the former, fading signal, if outputs of any unit deviate as little,
      and else missing normalization, if activations have no bounds
    - steps too short: no layer has moved by 1% of its weights in any epoch; steps held
      back: an epoch's update is three tenths of one plain step, rate times gradient
    - steps too long: the weights have tripled; momentum too high: in the first four
      epochs updates grow by half, and gradients do not
    - penalties too strong: a layer's weights have shrunk to three tenths

    Example:

    ```python
    import keras
    import numpy as np

    from callbacks.monitors import ActivationMonitor, GradientMonitor
    from recipes.check_model import check_model
    from recipes.diagnose import diagnose

    x = np.random.default_rng(0).normal(size=(256, 8))
    y = x[:, :1] * x[:, 1:2] > 0
    model = keras.Sequential([keras.Input((8,))])
    for _ in range(8):
        model.add(keras.layers.Dense(8, activation="sigmoid"))
    model.add(keras.layers.Dense(1, activation="sigmoid"))
    model.compile("sgd", loss="binary_crossentropy")
    checks = check_model(model, x, y)
    monitors = GradientMonitor(x, y), ActivationMonitor(x)
    history = model.fit(x, y, epochs=3, verbose=0, callbacks=monitors)
    gradients, activations = (monitor.to_frame() for monitor in monitors)
    tables = {"gradients": gradients, "activations": activations}
    for finding in diagnose(history, checks=checks, **tables):
        print(finding)
    ```

    Args:
        history: As for `diagnose_curves`.
        gradients: What `GradientMonitor.to_frame()` has returned, or nothing.
        activations: What `ActivationMonitor.to_frame()` has returned, or nothing.
        checks: What `check_model` has returned before training: anything with symptom,
            layer, evidence, cause, advice and change.

    Returns:
        List of `Finding`, likeliest root cause first, empty for a healthy run.

    Raises:
        ValueError: `history`, a table or `checks` is of another form.

    Reference: Zhang, Shen, Ma, Zhai, Lin, 2024,
        https://doi.org/10.1109/tdsc.2024.3450951
    """
    run = _run_of(history, gradients, activations)
    # Of two that have seen the same, the later one has seen more.
    findings = _looks(run) + _findings_of(checks) + run.verdicts
    return _root_causes([each for each in findings if not _is_overcome(each, run)])


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
    min_accuracy_gap: float = 0.1,
    min_progress: float = 0.1,
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

    Levels below a fiftieth of the first training loss count as that: nothing is read
    into 0.001 and 0.002. A loss that goes below 0 has no level; both curves are then
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
            Overfit. A training loss that diverges rises by as much of its first value.
        divergence_factor: At this many times its lowest level, above 1, the training
            loss has diverged even if it no longer rises. Noise does not take medians
            of five epochs that far.
        min_swing: Least relative rise of a curve to a peak, and fall from it, that
            make a swing, over one epoch or several: of the loss there, or of half
            the first training loss, if that is more. 10%: more than three times the
            noise of most losses, which are means over an epoch.
        swing_fraction: Swings per epoch, at least three in all, in the training or the
            validation loss of an oscillating run. 0.2, as in AutoTrainer.
        min_gap: Share of the validation loss by which the training loss is below it
            when a flat validation loss counts as overfitting. At a half, the one is
            twice the other; healthy runs reach a third.
        min_accuracy_gap: What the validation accuracy, if there is one, must then be
            below the training accuracy. 0.1, as in AutoTrainer.
        min_progress: Share of the training loss's whole fall that the end must have
            brought if the run is still learning. 10%: an exponential fall has ended
            after 2.7 time constants.
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
        ("min_accuracy_gap", min_accuracy_gap),
        ("min_progress", min_progress),
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
    floor = max(0.02 * loss[0], np.finfo("float64").eps)
    end = len(loss) - max(_FEWEST, round(end_fraction * len(loss)))
    train, validation = (
        None if each is None else _shape(each, end, floor, min_change, min_rise)
        for each in (loss, val_loss)
    )
    pair = _Pair(curves, loss, val_loss, end, floor, train, validation)
    oscillation = _oscillation(pair, min_swing, swing_fraction)
    # Large swings alone take medians of five epochs far above the lowest of them.
    factor = math.inf if oscillation else divergence_factor
    verdict = (
        _divergence(pair, min_rise, factor)
        or _overfitting(pair, min_change, min_gap, min_accuracy_gap)
        or _unlike_sets(pair, min_rise)
        or _slow_learning(pair, slow_fall)
        or _still_learning(pair, min_progress)
        or _plateau(pair, min_fall, min_accuracy)
        or _underfitting(pair, min_accuracy)
    )
    return findings + [each for each in (oscillation, verdict) if each]


def plot_diagnosis(
    history, findings: list[Finding], *, gradients=None, activations=None
):
    """Draw a page: curves, layers over epochs, the findings marked and in words below.

    Example:

    ```python
    from recipes.diagnose import diagnose_curves, plot_diagnosis

    history = {"loss": [2.3 - 0.01 * epoch for epoch in range(20)]}
    figure = plot_diagnosis(history, diagnose_curves(history))
    ```

    Args:
        history: As for `diagnose_curves`.
        findings: What it, or `diagnose`, has returned; the number of each stands at its
            epoch, and on the maps in the row of its layer.
        gradients: What `GradientMonitor.to_frame()` has returned, or nothing.
        activations: What `ActivationMonitor.to_frame()` has returned, or nothing.

    Returns:
        A matplotlib `Figure`: the losses, beside them the accuracies if there are any;
        gradient norms and update ratios, dead and saturated shares as maps; and the
        words. Values that are not finite leave gaps.
    """
    from matplotlib.figure import Figure

    curves = _curves_of(history)
    maps = _maps_of(gradients, activations)
    if not isinstance(findings, (list, tuple)) or not all(
        isinstance(finding, Finding) for finding in findings
    ):
        raise ValueError(
            "`findings` must be what diagnose() has returned. "
            f"Received: findings={findings!r}"
        )
    text = "\n".join(_paragraphs(findings))
    text = text or "Nothing found: this is a sound run."
    most = max((len(table.layers) for table, _ in maps.values()), default=0)
    heights = [3.2, *[0.9 + 0.18 * most] * math.ceil(len(maps) / 2)]  # inches
    heights.append(0.3 + 0.17 * (text.count("\n") + 1))
    figure = Figure(figsize=(8, sum(heights)), layout="constrained")
    above, *middle, below = figure.subfigures(len(heights), 1, height_ratios=heights)
    below.text(0.02, 0.97, text, va="top", fontsize=9)
    _draw_curves(above, curves, findings)
    for number, (title, (table, values)) in enumerate(maps.items()):
        if number % 2 == 0:
            row = middle[number // 2].subplots(1, 2)
            row[1].set_visible(number + 1 < len(maps))
        _draw_map(row[number % 2], title, table, values, findings)
    return figure


def _paragraphs(findings):
    """Return the findings in words, numbered; of the advice only the words."""
    paragraphs = []
    for number, finding in enumerate(findings, 1):
        words = f"{number}. {_headline(finding)}. {finding.cause} {finding.advice}"
        words = words.partition("\n")[0]
        paragraphs.append(textwrap.fill(words, 112, subsequent_indent="    "))
    return paragraphs


def _draw_curves(figure, curves, findings):
    from matplotlib.ticker import MaxNLocator

    marks = {}
    for number, finding in enumerate(findings, 1):
        if finding.epoch is not None and finding.epoch >= 0:
            marks.setdefault(finding.epoch, []).append(str(number))
    panels = [name for name in ("loss", "accuracy") if name in curves]
    for name, axes in zip(
        panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True
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


def _maps_of(gradients, activations):
    """Return {title: (table, values)} of what there is to draw."""
    maps = {}
    gradients = _table("gradients", gradients, _GRADIENT_COLUMNS)
    if gradients:
        norm, weight, update = (gradients.columns[name] for name in _GRADIENT_COLUMNS)
        with np.errstate(divide="ignore", invalid="ignore"):
            maps["gradient norm"] = gradients, norm
            maps["update to weight in an epoch"] = gradients, update / weight
    activations = _table("activations", activations, _ACTIVATION_COLUMNS)
    if activations:
        maps["dead units"] = activations, activations.columns["fraction_dead"]
        saturated = activations.columns["fraction_saturated"]
        if np.isfinite(saturated).any():
            maps["saturated outputs"] = activations, saturated
    return maps


def _draw_map(axes, title, table, values, findings):
    """Draw a row per layer and a column per reading: shares, or powers of ten."""
    from matplotlib import colormaps

    is_share = title in ("dead units", "saturated outputs")
    known = np.isfinite(values) & (values > 0)
    if is_share:
        shown, limits = np.where(np.isfinite(values), values, np.nan), (0, 1)
    else:
        shown = np.log10(values, where=known, out=np.full(values.shape, np.nan))
        high = math.ceil(shown[known].max()) if known.any() else 0
        # At least four powers of ten: small differences should not look large.
        limits = min(high - 4, math.floor(shown[known].min(initial=high))), high
    colours = colormaps["Reds" if is_share else "viridis"].with_extremes(bad="0.8")
    image = axes.imshow(shown, colours, aspect="auto", vmin=limits[0], vmax=limits[1])
    bar = axes.figure.colorbar(image, ax=axes, format="{x:.0%}" if is_share else None)
    if not is_share:
        ticks = np.arange(
            limits[0], limits[1] + 1, math.ceil((limits[1] - limits[0]) / 6)
        )
        bar.set_ticks(ticks, labels=[f"$10^{{{tick}}}$" for tick in ticks])
    places = range(0, len(table.epochs), math.ceil(len(table.epochs) / 10))
    axes.set_xticks(places, table.epochs[places])
    axes.set_yticks(range(len(table.layers)), table.layers, fontsize=7)
    axes.set(title=title, xlabel="epoch (-1: before the first)")
    circle = {"boxstyle": "circle", "facecolor": "white", "alpha": 0.9}
    for number, finding in enumerate(findings, 1):
        if finding.layer in table.layers:
            column = np.searchsorted(table.epochs, finding.epoch or 0)
            column = min(column, len(table.epochs) - 1)
            row = table.layers.index(finding.layer)
            axes.text(column, row, number, ha="center", va="center", bbox=circle)


# --- what is seen, put together


class _Table(typing.NamedTuple):
    """What a monitor has read: in each column an array of layers by readings."""

    layers: list
    epochs: np.ndarray
    columns: dict


class _Run(typing.NamedTuple):
    """All that there is to judge a run by."""

    curves: dict
    verdicts: list  # on the curves
    struggles: bool
    gradients: _Table | None  # the readings before any that is not finite
    hidden: _Table | None  # activations without the output's, likewise


_GRADIENT_COLUMNS = ("gradient_norm", "weight_norm", "update_norm")
_ACTIVATION_COLUMNS = ("std", "std_between_rows")
_ACTIVATION_COLUMNS += ("fraction_dead", "fraction_saturated")


def _run_of(history, gradients, activations):
    curves = _curves_of(history)
    verdicts = diagnose_curves(history)
    gradients = _table("gradients", gradients, _GRADIENT_COLUMNS)
    activations = _table("activations", activations, _ACTIVATION_COLUMNS)
    if not verdicts:
        verdicts = _constant_output(curves, activations)
    loss = curves["loss"]
    hardly_falls = 3 <= len(loss) < _FEWEST and loss[-1] > 0.9 * loss[0]
    struggles = any(verdict.symptom != "overfitting" for verdict in verdicts)
    return _Run(
        curves,
        verdicts,
        struggles or hardly_falls,
        _finite_part(gradients, _GRADIENT_COLUMNS[:2], None),
        # Outputs may be sure, and then are saturated or 0 by right.
        _finite_part(activations, _ACTIVATION_COLUMNS[:2], -1),
    )


def _constant_output(curves, activations):
    """A plateau that a loss does not show which began there: the same for all rows."""
    if activations is None:
        return []
    between = activations.columns["std_between_rows"][-1]
    level = _CONSTANT * between[0]
    if "accuracy" in curves and curves["accuracy"][-1] < 0.7:
        level = max(level, activations.columns["std"][-1, -1] / 10)
    if not between[-1] < level:
        return []
    epoch, evidence = len(curves["loss"]) - 1, {"output_std_between_rows": between[-1]}
    return [_verdict("plateau", epoch, curves, evidence, activations.layers[-1])]


def _table(name, frame, columns):
    """Return a monitor's table by layer, with the norms over all kernels of each."""
    if frame is None:
        return None
    try:
        layer = np.asarray(frame["layer"], dtype="str")
        epochs = np.asarray(frame["epoch"], dtype="int64")
        values = {each: np.asarray(frame[each], dtype="float64") for each in columns}
        kernels = np.full(len(layer), True)
        if "variable" in frame:
            # Biases and what normalization has start at 0 or 1 and tell nothing.
            variable = np.asarray(frame["variable"], dtype="str")
            kernels = np.char.find(variable, "kernel") >= 0
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(
            f"`{name}` must be what to_frame() of its monitor has returned, with the "
            f"columns epoch, layer, {', '.join(columns)}. Received: {name}={frame!r}"
        ) from error
    if not len(layer):
        return None
    if kernels.any():
        layer, epochs = layer[kernels], epochs[kernels]
        values = {each: value[kernels] for each, value in values.items()}
    layers = list(dict.fromkeys(layer.tolist()))
    rows = [layers.index(each) for each in layer.tolist()]
    epochs, places = np.unique(epochs, return_inverse=True)
    grids = {}
    for each, value in values.items():
        grids[each] = np.zeros((len(layers), len(epochs)))
        np.add.at(grids[each], (rows, places), np.square(value))
    return _Table(layers, epochs, {each: np.sqrt(grid) for each, grid in grids.items()})


def _finite_part(table, names, last_layer):
    """Return layers to the last, and readings to the first that is not finite."""
    if table is None:
        return None
    finite = np.all([np.isfinite(table.columns[name]) for name in names], axis=(0, 1))
    end = len(finite) if finite.all() else int(np.argmin(finite))
    layers = table.layers[:last_layer]
    columns = {name: each[:last_layer, :end] for name, each in table.columns.items()}
    return _Table(layers, table.epochs[:end], columns) if layers and end else None


def _findings_of(checks):
    """Return what `check_model` has found as findings of before the first epoch."""
    try:
        return [
            Finding(
                each.symptom,
                each.layer,
                -1,
                dict(each.evidence),
                each.cause,
                each.advice,
                dict(each.change),
            )
            for each in checks
        ]
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            "`checks` must be findings as check_model returns them, with symptom, "
            "layer, evidence, cause, advice and change. "
            f"Received: checks={checks!r}"
        ) from error


def _is_overcome(finding, run):
    """Whether a bad start has come to nothing: the run has learned in spite of it."""
    if run.struggles:
        return False
    if finding.symptom == "initial loss above chance":
        return run.curves["loss"][-1] < 0.75 * finding.evidence.get("chance", 0.0)
    return finding.symptom in _SIGNALS and len(run.curves["loss"]) >= _FEWEST


def _root_causes(findings):
    """Return the findings in their order, but for those that others explain."""
    places = {symptom: place for place, (symptom, _) in enumerate(_ORDER)}
    explained = dict(_ORDER)
    roots, followers = {}, {}
    for finding in sorted(findings, key=lambda f: places.get(f.symptom, len(places))):
        symptom = finding.symptom
        root = symptom if symptom in roots else None
        for earlier in reversed(roots):
            if symptom in explained.get(earlier, ()):
                root = earlier
        if root is None:
            roots[symptom] = finding
        elif (symptom, finding.layer) != (root, roots[root].layer):
            where = f" in {finding.layer}" if finding.layer else ""
            followers.setdefault(root, []).append(f"{symptom}{where}")
    report = []
    for symptom, finding in roots.items():
        if symptom in followers:
            named = ", ".join(dict.fromkeys(followers[symptom]))
            finding = finding._replace(cause=f"{finding.cause} It explains: {named}.")
        report.append(finding)
    return report


# --- what each look at the tables finds, or None


def _looks(run):
    """Return the findings of all that can be looked at."""
    looks = [_unrelated_labels, _early_end]
    if run.gradients and run.struggles:
        looks += [_penalties_too_strong, _vanishing_gradient, _steps_held_back]
        looks += [_steps_too_short, _steps_too_long, _momentum_too_high]
    if run.hidden and run.struggles:
        looks += [_dead_units, _saturated_units, _exploding_gradient, _fading_signal]
    return [finding for look in looks if (finding := look(run))]


def _dead_units(run):
    dead = run.hidden.columns["fraction_dead"]
    is_bad = dead[:, -1] > _DEAD
    if not is_bad.any():
        return None
    row = int(np.argmax(is_bad))
    case = "dead units" if dead[row, 0] > _DEAD else "dying units"
    since = _since(dead[row] > _DEAD, run.hidden.epochs)
    evidence = {"dead_fraction": dead[row, -1], "initially_dead_fraction": dead[row, 0]}
    return _verdict(case, since, run.curves, evidence, run.hidden.layers[row])


def _saturated_units(run):
    saturated = np.nan_to_num(run.hidden.columns["fraction_saturated"])
    is_bad = saturated[:, -1] > _SATURATED
    if not is_bad.any():
        return None
    row = int(np.argmax(is_bad))
    is_born_so = saturated[row, 0] > _SATURATED
    case = "saturated units" if is_born_so else "units driven to saturation"
    since = _since(saturated[row] > _SATURATED, run.hidden.epochs)
    evidence = {"saturated_fraction": saturated[row, -1]}
    evidence["initially_saturated_fraction"] = saturated[row, 0]
    return _verdict(case, since, run.curves, evidence, run.hidden.layers[row])


def _exploding_gradient(run):
    """Does the signal grow with depth, and with it the gradient?"""
    std = run.hidden.columns["std"][:, 0]
    growth = std.max() / max(std[0], _TINY)
    if growth <= _GROWING:
        return None
    layer = run.hidden.layers[int(np.argmax(std))]
    evidence = {"std_to_first": growth}
    return _verdict("exploding gradient", -1, run.curves, evidence, layer)


def _fading_signal(run):
    """Do the rows still differ behind the last hidden layer, at the first reading?"""
    columns = {name: values[:, 0] for name, values in run.hidden.columns.items()}
    kept, spread = (
        columns[name][-1] / max(columns[name][0], _TINY)
        for name in ("std_between_rows", "std")
    )
    if kept >= _FADING:
        return None
    is_bounded = np.isfinite(columns["fraction_saturated"]).any()
    case = "saturating depth" if is_bounded else "missing normalization"
    change = {}
    if spread < _FADING:
        case = "fading signal"
        change["kernel_initializer"] = "glorot_normal" if is_bounded else "he_normal"
    evidence = {"between_rows_last_to_first": kept, "std_last_to_first": spread}
    layer = run.hidden.layers[-1]
    return _verdict(case, -1, run.curves, evidence, layer, **change)


def _vanishing_gradient(run):
    norms = run.gradients.columns["gradient_norm"]
    ratios = norms[0] / np.maximum(norms[-1], _TINY)
    # That it vanishes later on may be the work of units that have died.
    if max(ratios[0], np.median(ratios)) >= _VANISHING or norms[-1, 0] == 0:
        return None
    evidence = {"first_to_last": ratios[0], "last": norms[-1, 0]}
    layer = run.gradients.layers[0]
    return _verdict("vanishing gradient", -1, run.curves, evidence, layer)


def _steps_too_short(run):
    weights, updates = _measured(run, "weight_norm", "update_norm")
    moves = updates / np.maximum(weights, _TINY)
    if not moves.size or moves.max() >= _STILL:
        return None
    evidence = {"update_to_weight": moves.max()}
    return _verdict("steps too short", 0, run.curves, evidence)


def _steps_held_back(run):
    gradients, updates = _measured(run, "gradient_norm", "update_norm")
    if "learning_rate" not in run.curves or not updates.size:
        return None
    rates = run.curves["learning_rate"]
    rate = np.median(rates[np.isfinite(rates)])
    lengths = np.linalg.norm(gradients, axis=0) * rate
    ratio = np.median(np.linalg.norm(updates, axis=0) / np.maximum(lengths, _TINY))
    if not ratio < _HELD_BACK:
        return None
    return _verdict("steps held back", 0, run.curves, {"update_to_step": ratio})


def _momentum_too_high(run):
    """Do steps still get longer after epochs of gradients that do not?"""
    gradients, updates = (
        np.linalg.norm(each, axis=0)
        for each in _measured(run, "gradient_norm", "update_norm")
    )
    rates = run.curves.get("learning_rate", np.ones(len(updates)))
    if min(len(updates), len(rates)) < _FEWEST:
        return None
    speeds = updates[:4] / np.maximum(rates[:4], _TINY)
    before = np.linalg.norm(run.gradients.columns["gradient_norm"][:, 0])
    growth = speeds[3] / max(speeds[0], _TINY)
    is_rising = (np.diff(speeds) > 0).all() and growth > _GATHERING
    if not is_rising or gradients[:3].max() > before:
        return None
    evidence = {"update_to_first_update": growth}
    return _verdict("momentum too high", 3, run.curves, evidence)


def _steps_too_long(run):
    norms = np.linalg.norm(run.gradients.columns["weight_norm"], axis=0)
    growth = norms / max(norms[0], _TINY)
    if growth.max() <= _LEAP:
        return None
    since = run.gradients.epochs[int(np.argmax(growth > _LEAP))]
    evidence = {"weights_to_initial": growth.max()}
    return _verdict("steps too long", since, run.curves, evidence)


def _penalties_too_strong(run):
    weights = run.gradients.columns["weight_norm"]
    ratios = weights[:, -1] / np.maximum(weights[:, 0], _TINY)
    if ratios.min() >= _SHRUNK:
        return None
    layer = run.gradients.layers[int(np.argmin(ratios))]
    evidence = {"weights_to_initial": ratios.min()}
    return _verdict("penalties too strong", 0, run.curves, evidence, layer)


def _unrelated_labels(run):
    """Is validation never better than training in its first epoch?"""
    name, sign = ("accuracy", 1) if "val_accuracy" in run.curves else ("loss", -1)
    if f"val_{name}" not in run.curves or len(run.curves["loss"]) < _FEWEST:
        return None
    train, validation = (sign * run.curves[each] for each in (name, f"val_{name}"))
    if not np.isfinite([train, validation]).all():
        return None
    levels = np.lib.stride_tricks.sliding_window_view(validation, 5)
    best = np.median(levels, axis=1).max()
    unit = 1.0 if name == "accuracy" else max(abs(train[0]), _TINY)
    gain = (np.median(train[-3:]) - train[0]) / unit
    val_gain = (best - train[0]) / unit
    if val_gain > _GAIN / 5 or (gain < _GAIN and not _moves_for_nothing(run)):
        return None
    evidence = {f"{name}_gain": gain, f"val_{name}_gain": val_gain}
    return _verdict("labels unrelated to inputs", 0, run.curves, evidence)


def _moves_for_nothing(run):
    """Whether weights move and signals pass, and yet nothing is learned."""
    stuck = {"plateau", "underfitting"} & {each.symptom for each in run.verdicts}
    if not (stuck and run.gradients and run.hidden):
        return False
    weights, updates = _measured(run, "weight_norm", "update_norm")
    moves = updates / np.maximum(weights, _TINY)
    return bool(moves.size) and np.median(moves, axis=1).min() > _STILL / 10


def _early_end(run):
    """In fewer epochs than make a trend: has each of them been a clear step down?"""
    both = [run.curves[name] for name in ("loss", "val_loss") if name in run.curves]
    num_epochs = len(both[0])
    if not 2 <= num_epochs < _FEWEST or not np.isfinite(both).all():
        return None
    falls = [-np.diff(each) / np.maximum(np.abs(each[:-1]), _TINY) for each in both]
    # Of two epochs one is no trend: it must be a leap.
    least = _STEP_DOWN if num_epochs > 2 else 4 * _STEP_DOWN
    late = [(np.median(each), each[-1]) for each in falls]
    if np.min(falls) <= 0 or np.min(late) < least:
        return None
    evidence = {"last_fall_fraction": falls[0][-1]}
    return _verdict("still learning", num_epochs - 1, run.curves, evidence)


def _since(is_bad, epochs):
    """Return the epoch since which it has been so to the end."""
    good = np.flatnonzero(~is_bad)
    return epochs[good[-1] + 1 if len(good) else 0]


def _measured(run, *names):
    """Return columns of the gradients at the readings that have updates."""
    measured = np.isfinite(run.gradients.columns["update_norm"]).all(axis=0)
    return [run.gradients.columns[name][:, measured] for name in names]


# --- curves


class _Shape(typing.NamedTuple):
    """What the verdicts need to know of one curve."""

    end: float  # level there
    change: float  # along it, relative
    z: float
    falls: bool
    best_epoch: int  # the first whose level is hardly above the lowest
    height: float  # of the last level above the lowest
    rise: float  # the same, relative to the lowest
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
    height = levels[-1] - lowest
    rise = height / unit
    rise_z = _trend(values[best_epoch:])[1]
    rises = rise >= min_rise and rise_z > _VERY_SIGNIFICANT
    return _Shape(end_level, change, z, falls, best_epoch, height, rise, rise_z, rises)


class _Pair(typing.NamedTuple):
    """The losses, what is to be known of each, and the columns they came with."""

    curves: dict
    loss: np.ndarray
    val_loss: np.ndarray | None
    end: int  # its first epoch
    floor: float  # losses below it count as that
    train: _Shape
    validation: _Shape | None

    def evidence(self):
        """Return what is measured of each run whose loss does not rise."""
        train, validation = self.train, self.validation
        seen = {
            "fall_fraction": 1 - train.end / max(self.loss[0], self.floor),
            "end_change_fraction": train.change,
            "end_z": train.z,
        }
        if validation is not None:
            seen["val_end_change_fraction"] = validation.change
            seen["val_end_z"] = validation.z
        last = train if validation is None else validation
        fall = max(self.loss[0] - train.end, self.floor)
        seen["end_part_of_fall_fraction"] = -last.change * last.end / fall
        return seen

    def accuracy(self):
        """Return {"accuracy": that of the end}, or nothing."""
        if "accuracy" not in self.curves:
            return {}
        return {"accuracy": np.median(self.curves["accuracy"][self.end :])}


def _oscillation(pair, min_swing, swing_fraction):
    both = {"swings": pair.loss, "val_swings": pair.val_loss}
    floor = max(pair.loss[0] / 2, pair.floor)
    swings = {
        name: _swings(values, min_swing, floor)
        for name, values in both.items()
        if values is not None
    }
    most, num_epochs = max(swings.values(), key=len), len(pair.loss)
    if len(most) < max(3, swing_fraction * num_epochs):
        return None
    seen = {name: len(epochs) for name, epochs in swings.items()}
    return _verdict("oscillation", most[0], pair.curves, seen | {"epochs": num_epochs})


def _divergence(pair, min_rise, divergence_factor):
    train = pair.train
    is_rising = train.rises or train.rise >= divergence_factor - 1
    if not is_rising or train.height < min_rise * pair.loss[0]:
        return None
    seen = {"rise_fraction": train.rise, "rise_z": train.rise_z}
    return _verdict("divergence", train.best_epoch, pair.curves, seen)


def _overfitting(pair, min_change, min_gap, min_accuracy_gap):
    curves, end, train, validation = pair.curves, pair.end, pair.train, pair.validation
    if validation is None or validation.best_epoch > end:
        return None
    best = validation.best_epoch
    gap = (validation.end - train.end) / max(validation.end, pair.floor)
    since = {
        "loss_change_fraction": _change_since(best, pair.loss, train, pair.floor),
        "val_loss_rise_fraction": validation.rise,
        "gap_fraction": gap,
    }
    is_wide = gap >= min_gap
    if "accuracy" in curves and "val_accuracy" in curves:
        ends = [np.median(curves[each][end:]) for each in ("accuracy", "val_accuracy")]
        since["accuracy_gap"] = ends[0] - ends[1]
        is_wide = is_wide and since["accuracy_gap"] >= min_accuracy_gap
    has_fallen = since["loss_change_fraction"] <= -min_change
    if sum((has_fallen, validation.rises, is_wide)) < 2:
        return None
    if "val_accuracy" in curves:
        then, now = (
            np.median(curves["val_accuracy"][part])
            for part in (slice(best - 2, best + 3), slice(end, None))
        )
        since["val_accuracy_change"] = now - then
    return _verdict("overfitting", best, curves, since)


def _unlike_sets(pair, min_rise):
    best = pair.train.best_epoch
    if pair.validation is None or not pair.validation.falls or best > pair.end:
        return None
    change = _change_since(best, pair.val_loss, pair.validation, pair.floor)
    z = _trend(pair.val_loss[best:])[1]
    if not (z < -_VERY_SIGNIFICANT and change <= -min_rise):
        return None
    since = {"val_loss_change_fraction": change, "val_loss_z": z}
    return _verdict("data set", best, pair.curves, since)


def _slow_learning(pair, slow_fall):
    loss = pair.loss
    early = np.median(loss[:3])
    _, middle, late = (np.median(part) for part in np.array_split(loss, 3))
    is_slow = late > (1 - slow_fall) * loss[0]
    is_steady = middle - late >= (early - middle) / 3
    if not (is_slow and is_steady and _trend(loss)[1] < -_VERY_SIGNIFICANT):
        return None
    return _verdict("slow learning", 0, pair.curves, pair.evidence())


def _still_learning(pair, min_progress):
    train, validation = pair.train, pair.validation
    falls, seen = train.falls, pair.evidence()
    if validation is not None:
        falls = validation.falls and train.change <= validation.change / 4
    if not falls or seen["end_part_of_fall_fraction"] < min_progress:
        return None
    return _verdict("still learning", pair.end, pair.curves, seen)


def _plateau(pair, min_fall, min_accuracy):
    accuracy = pair.accuracy()
    has_learned = accuracy.get("accuracy", 0.0) >= min_accuracy
    if has_learned or pair.train.end <= (1 - min_fall) * pair.loss[0]:
        return None
    return _verdict("plateau", 0, pair.curves, pair.evidence() | accuracy)


def _underfitting(pair, min_accuracy):
    train, validation, accuracy = pair.train, pair.validation, pair.accuracy()
    # What falls to the validation loss from above is dropout or a penalty.
    is_settled = not train.falls or (
        validation is not None and train.end > validation.end
    )
    if not (is_settled and accuracy.get("accuracy", 1.0) < min_accuracy):
        return None
    return _verdict("underfitting", pair.end, pair.curves, pair.evidence() | accuracy)


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


def _verdict(case, epoch, curves, evidence, layer=None, **changes):
    symptom, cause, words, code, change = _CASES[case]
    rates = curves.get("learning_rate", [math.nan])
    rate = rates[min(max(epoch, 0), len(rates) - 1)]
    if math.isfinite(rate):
        evidence = {**evidence, "learning_rate": rate}
    evidence = {name: float(value) for name, value in evidence.items()}
    advice = f"{words}\n{textwrap.indent(code, '    ')}"
    return Finding(
        symptom, layer, int(epoch), evidence, cause, advice, change | changes
    )


def _headline(finding):
    where = f" in {finding.layer}" if finding.layer else ""
    when = "" if finding.epoch is None else f" since epoch {finding.epoch}"
    if finding.epoch is not None and finding.epoch < 0:
        when = " before the first epoch"
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


_FIND_THE_RATE = """\
from callbacks.lr_finder import LRFinder
model.optimizer.learning_rate = LRFinder().run(model, x, y).suggestion"""
_WEIGHTS_FOR_RELU = """\
from recipes.initializers import initializer_for
keras.layers.Dense(100, "relu", kernel_initializer=initializer_for("relu"))"""

# case: symptom, cause, advice in words and in code, change
_CASES = {
    "dead units": (
        "dead units",
        "Most units of the layer are off for every row, so no gradient reaches their "
        "weights, and they stay off: biases or initial weights put them there.",
        "Start with zero biases and weights made for the activation, or let some "
        "signal through.",
        """\
from recipes.initializers import initializer_for
weights = initializer_for("leaky_relu")
keras.layers.Dense(100, "leaky_relu", kernel_initializer=weights)""",
        {
            "activation": "leaky_relu",
            "kernel_initializer": "he_normal",
            "bias_initializer": "zeros",
        },
    ),
    "dying units": (
        "dying units",
        "Most units of the layer have been switched off for every row by a step that "
        "was too long: the learning rate is too high.",
        "Find the learning rate with a range test.",
        _FIND_THE_RATE,
        {"learning_rate": "search"},
    ),
    "saturated units": (
        "saturated units",
        "Most outputs of the layer start on the flat ends of its activation, where no "
        "gradient comes through: the initial weights or the inputs are too large.",
        "Scale the inputs, and start with weights made for the activation.",
        """\
from recipes.initializers import initializer_for
keras.layers.Dense(100, "tanh", kernel_initializer=initializer_for("tanh"))""",
        {"kernel_initializer": "glorot_normal"},
    ),
    "units driven to saturation": (
        "units driven to saturation",
        "Steps that were too long have driven most outputs of the layer to the flat "
        "ends of its activation, where no gradient comes through.",
        "Find the learning rate with a range test.",
        _FIND_THE_RATE,
        {"learning_rate": "search"},
    ),
    "vanishing gradient": (
        "vanishing gradient",
        "Weights times slopes are below 1 layer by layer: what reaches the first "
        "layers is too small to move them.",
        "Take ReLU with weights made for it, batch normalization, or residual layers.",
        _WEIGHTS_FOR_RELU,
        {"activation": "relu", "kernel_initializer": "he_normal"},
    ),
    "saturating depth": (
        "vanishing gradient",
        "Behind several layers with slopes below 1 all rows look the same: the output "
        "learns only how frequent the targets are, and no gradient comes back.",
        "Take ReLU with weights made for it, batch normalization, or residual layers.",
        _WEIGHTS_FOR_RELU,
        {"activation": "relu", "kernel_initializer": "he_normal"},
    ),
    "fading signal": (
        "fading signal",
        "The signal fades from layer to layer: the initial weights are too small.",
        "Start with weights made for the activation.",
        _WEIGHTS_FOR_RELU,
        {"kernel_initializer": "he_normal"},
    ),
    "missing normalization": (
        "missing normalization",
        "On the way through the layers all rows come to look the same, though units "
        "differ: depth without normalization.",
        "Put batch normalization between the layers.",
        """\
from recipes.layers import dense_block
dense_block(100, "relu", normalization="batch")""",
        {"normalization": "batch"},
    ),
    "exploding gradient": (
        "exploding gradient",
        "Signals grow layer by layer, and gradients with them: the initial weights are "
        "too large.",
        "Start with weights made for the activation, and clip the gradient.",
        """\
from recipes.initializers import initializer_for
from recipes.optimizers import make_optimizer
keras.layers.Dense(100, "relu", kernel_initializer=initializer_for("relu"))
model.compile(make_optimizer("adam", global_clipnorm=1.0), loss="mse")""",
        {"kernel_initializer": "he_normal", "global_clipnorm": 1.0},
    ),
    "steps held back": (
        "steps held back",
        "A whole epoch moves the weights less than one plain step would, the learning "
        "rate times the gradient: the optimizer holds its steps back, by a bound of "
        "clipping that is too small, an epsilon that is too large, or a sum of "
        "gradients that only grows.",
        "Take an optimizer with its usual settings, and clip, if at all, near the "
        "gradient's usual norm.",
        """\
from recipes.optimizers import make_optimizer
model.compile(make_optimizer("adam"), loss="mse")""",
        {"optimizer": "adam"},
    ),
    "steps too short": (
        "steps too short",
        "No layer moves by a hundredth of its weights in an epoch, though gradients "
        "reach all of them: the learning rate is too low.",
        "Find the learning rate with a range test.",
        _FIND_THE_RATE,
        {"learning_rate": "search"},
    ),
    "steps too long": (
        "steps too long",
        "The first steps have thrown the weights far from where they began: the "
        "learning rate is too high.",
        "Find the learning rate with a range test.",
        _FIND_THE_RATE,
        {"learning_rate": "search"},
    ),
    "momentum too high": (
        "momentum too high",
        "The steps get longer from epoch to epoch though the gradient does not: each "
        "carries the sum of so many before it that it cannot turn in time.",
        "Take a momentum of 0.9.",
        """\
from recipes.optimizers import make_optimizer
model.compile(make_optimizer("momentum", 0.01), loss="mse")""",
        {"momentum": 0.9},
    ),
    "penalties too strong": (
        "penalties too strong",
        "The weights shrink to little of what they were: penalties, weight decay or "
        "the noise of dropout weigh more than the data.",
        "Drop less, and take a hundredth of the penalty, or none.",
        """\
from recipes.regularizers import regularize
model = regularize(model, l2=1e-5)  # to be compiled again""",
        {"regularization": "lower"},
    ),
    "labels unrelated to inputs": (
        "labels unrelated to inputs",
        "Nothing that is learned of the training samples holds for the validation "
        "samples: their labels are in another order than the inputs, or do not depend "
        "on them.",
        "Look at some samples with their labels, and shuffle both by one permutation.",
        """\
from recipes.fashion_mnist import epoch_batches
order = np.random.default_rng(0).permutation(len(x))
x, y = x[order], y[order]
batches = epoch_batches(x, y, 32, seed=0)""",
        {"labels": "check"},
    ),
    "not finite": (
        "divergence",
        "The training loss is NaN or infinite: a step was far too long, or a batch "
        "holds values that are not finite.",
        "Lower the learning rate to a tenth, clip the gradient, and undo the steps "
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
        {"learning_rate": "search", "global_clipnorm": "lower"},
    ),
    "oscillation": (
        "oscillation",
        "The steps leap over the minimum again and again: the learning rate is too "
        "high for this batch size.",
        "Lower the learning rate to a tenth, let it decay, or enlarge the batch.",
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
        "Find the learning rate with a range test.",
        _FIND_THE_RATE,
        {"learning_rate": "search"},
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
