"""Find a good learning rate in one short run that leaves the model as it was.

`LRFinder` is the learning-rate range test: it trains a compiled model at a rate that
grows geometrically from batch to batch, records each batch's loss, stops when the loss
diverges, and puts everything back. Use it before `fit`, with the optimizer and batch
size you will train with, and again when one of them changes. It finds the order of
magnitude: do not use it to choose between 0.01 and 0.02, which differ no more than two
seeds do, nor on an optimizer built with a `LearningRateSchedule`, which is refused:
build it with a number for the test.

It calls `train_on_batch`, which starts the metrics afresh at each batch: the loss is
the batch's own, also of a short last batch and with `steps_per_execution` above 1,
which the running means in the logs of `fit` do not tell.

This file is longer than most because reading every kind of data, and putting all back
on every backend after any interruption, are part of the test.

```python
import keras
import numpy as np

from callbacks.lr_finder import LRFinder

rng = np.random.default_rng(42)
x = rng.normal(size=(256, 4))
y = x @ [[1.0], [-2.0], [3.0], [0.5]] + rng.normal(size=(256, 1))
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile(keras.optimizers.SGD(0.01), loss="mse")
finder = LRFinder(1e-4, num_steps=100).run(model, x, y)
print(finder.suggestions)
figure = finder.plot()
model.optimizer.learning_rate = finder.suggestion
```

Reference: Smith, "Cyclical Learning Rates for Training Neural Networks", 2015, section
3.3, https://arxiv.org/abs/1506.01186
Revised: 0.2.0
"""

import contextlib
import itertools
import math
import numbers
import random

import keras
import numpy as np

# A smaller or larger rate would be 0 or infinite on the device.
_FLOAT32 = 1.2e-38, 3.4e38

# rule: who published it
_RULES = {
    "tenth_of_minimum": "Gugger 2018",
    "steepest": "fastai 1",
    "valley": "fastai 2",
    "third_of_divergence": "Bengio 2012",
}


class LRFinder:
    """Train a few hundred steps at growing rates and suggest a rate to train with.

    With n steps from the rate a to the rate b, step t = 0 ... n - 1 trains at

        rate_t = a * (b / a) ** (t / (n - 1)).

    Its loss l_t is what the step minimizes: that of its own batch, with the weights
    before the step, and with the penalties of regularizers. The smoothed loss is the
    bias-corrected exponential average

        s_t = (1 - beta) * sum_i beta ** (t - i) * l_i / (1 - beta ** (t + 1)),

    i = 0 ... t, beta = `smoothing`. The run has diverged, and stops, at the first s_t
    that is not finite or exceeds the best s so far by more than (c - 1) * |best|, c =
    `divergence_factor`: for losses above 0, that exceeds c times the best. The first
    tenth of the n steps is not judged, nor searched for a suggestion: an average of few
    losses is as noisy as they are.

    `suggestions` holds the rates of four published rules, all read from s:

    - tenth_of_minimum: a tenth of the rate of the least s (Gugger 2018).
    - steepest: where s falls most per factor of the rate, before its minimum (fastai,
      version 1).
    - valley: half the length of the longest falling subsequence before its end (fastai,
      version 2).
    - third_of_divergence: a third of the rate at which the run stopped (Bengio 2012).

    `suggestion` is the first. On the chapter's network, over five seeds, it scattered
    by a factor of 1.2 to 1.3, no more than any other, and came next to the best
    constant rate of momentum and Adam, and well below that of plain SGD, so on the safe
    side; `valley` was too small for all three, and `third_of_divergence` far too large
    for two. For a one-cycle schedule the largest peak is the minimum itself, ten times
    `suggestion` (Smith 2018).

    Afterwards the model is as it was, to the bit, also when the run was interrupted:
    weights, statistics, seeds of dropout, optimizer with its learning rate and steps,
    metrics, compiled functions, `stop_training` and `history`; and so are the seeds of
    Python, NumPy and, on the CPU, PyTorch. Three things remain: a model or optimizer
    that was not built is, as `fit` would have built it; a data set or generator has
    given its batches; and other global generators, of Keras and the backend, have moved
    if a layer draws from them.

    Example:

    ```python
    import keras
    import numpy as np

    from callbacks.lr_finder import LRFinder

    x = np.random.default_rng(1).normal(size=(64, 3))
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(), loss="mse")
    finder = LRFinder(num_steps=100).run(model, x, x[:, :1], batch_size=16)
    print(finder.suggestion, finder.to_frame().tail())
    ```

    Args:
        min_learning_rate: Rate a of the first step, positive. 1e-6 moves no network in
            a few hundred steps, so the curve starts flat.
        max_learning_rate: Rate b of the last step, above a. 10 is more than SGD bears;
            the run ends before.
        num_steps: Steps n, at least 10; data that end before start again. `None` takes
            400, about an epoch of the chapter's. At 100, as in other libraries, the
            suggestion scattered by a factor of 1.5 to 2.2.
        epochs: Passes over the data, at least 1, in place of `num_steps`.
        smoothing: beta, from 0, no smoothing, to 0.999. 0.95 averages some 20 losses;
            more of it delays the curve, so that all suggested rates grow.
        divergence_factor: c, from 1. 2 did not stop before the minimum, even with
            batches of one row. At 4, as in other libraries, a ten-class network can die
            unseen: its loss, ln 10 = 2.3, is not 4 times the 0.6 it had reached.
        seed: From 0, for the order of an array's rows and a `PyDataset`'s batches.
            Fixed, so that two runs differ only in what you changed.

    Attributes:
        learning_rates: Rates of the steps taken, array `(steps,)`.
        losses: l, array `(steps,)`; only the last may be NaN or infinite.
        smoothed_losses: s, array `(steps,)`.
        diverged: Whether the run stopped because it diverged.

    Raises:
        ValueError: An argument is out of range, or `num_steps` and `epochs` are both
            given.

    Reference: Gugger, "How Do You Find A Good Learning Rate", 2018,
        https://sgugger.github.io/how-do-you-find-a-good-learning-rate.html
    Reference: fastai, https://fastai1.fast.ai/callbacks.lr_finder.html and
        https://docs.fast.ai/callback.schedule.html
    Reference: Bengio, "Practical Recommendations for Gradient-Based Training of Deep
        Architectures", 2012, https://arxiv.org/abs/1206.5533
    Reference: Smith, "A Disciplined Approach to Neural Network Hyper-Parameters", 2018,
        https://arxiv.org/abs/1803.09820
    """

    def __init__(
        self,
        min_learning_rate: float = 1e-6,
        max_learning_rate: float = 10.0,
        *,
        num_steps: int | None = None,
        epochs: int | None = None,
        smoothing: float = 0.95,
        divergence_factor: float = 2.0,
        seed: int = 0,
    ):
        self.min_learning_rate = _number_from_to(
            "min_learning_rate", min_learning_rate, *_FLOAT32
        )
        self.max_learning_rate = _number_from_to(
            "max_learning_rate", max_learning_rate, *_FLOAT32
        )
        if not self.min_learning_rate < self.max_learning_rate:
            raise ValueError(
                "`max_learning_rate` must be above `min_learning_rate`, "
                f"{min_learning_rate}. Received: max_learning_rate={max_learning_rate}"
            )
        if num_steps is not None and epochs is not None:
            raise ValueError(
                "Only one of `num_steps` and `epochs` may be given. "
                f"Received: num_steps={num_steps}, epochs={epochs}"
            )
        if epochs is not None:
            epochs = _number_from_to("epochs", epochs, 1, 1e9, whole=True)
        elif num_steps is None:
            num_steps = 400
        else:
            num_steps = _number_from_to("num_steps", num_steps, 10, 1e9, whole=True)
        self.num_steps, self.epochs = num_steps, epochs
        self.smoothing = _number_from_to("smoothing", smoothing, 0, 0.999)
        self.divergence_factor = _number_from_to(
            "divergence_factor", divergence_factor, 1, 1e9
        )
        self.seed = _number_from_to("seed", seed, 0, 2**63, whole=True)
        self._forget()

    def run(
        self,
        model: keras.Model,
        x,
        y=None,
        *,
        batch_size: int | None = None,
        sample_weight=None,
        class_weight: dict | None = None,
    ):
        """Train at growing rates, keep the losses, and put the model back.

        Args:
            model: Compiled model, its optimizer built with a number as learning rate.
            x: As for `fit`. Arrays with a row per sample, alone or in a list or dict;
                or a `tf.data.Dataset`, `PyDataset` (its epoch hooks are not called),
                generator or other iterable of `(inputs, targets)` or `(inputs, targets,
                sample_weights)`.
            y: Targets for arrays `x`.
            batch_size: Rows of arrays in a batch, at least 1; `None` takes 32, as `fit`
                does. The last batch of a pass may be shorter.
            sample_weight: Weights of the rows of arrays.
            class_weight: `{class: weight}`, as for `fit`.

        Returns:
            This object, so that `.suggestion` may follow.

        Raises:
            ValueError: The model is not compiled or its rate not one settable number,
                the data do not fit together, or they ended before the last step.
        """
        self._forget()
        _check_model(model)
        if not isinstance(class_weight, (dict, type(None))):
            raise ValueError(
                "`class_weight` must be a dictionary {class: weight}. "
                f"Received: class_weight={class_weight!r}"
            )
        batches, num_batches = _batches_from(x, y, sample_weight, batch_size, self.seed)
        num_steps = self._steps_of(num_batches)
        rates = np.geomspace(self.min_learning_rate, self.max_learning_rate, num_steps)

        self._num_unjudged = num_steps // 10
        losses, smoothed = [], []
        average, best, diverged = 0.0, math.inf, False
        batches = _build(model, batches)
        with _left_as_it_was(model), _seeds_left_as_they_were():
            for rate, (inputs, targets, weights) in zip(rates, batches, strict=False):
                model.optimizer.learning_rate = float(rate)
                logs = model.train_on_batch(
                    inputs,
                    targets,
                    sample_weight=weights,
                    class_weight=class_weight,
                    return_dict=True,
                )
                if "loss" not in logs:
                    raise ValueError(
                        "`model` must have a `train_step` that returns its loss as "
                        f'"loss". Received: {", ".join(logs)}'
                    )
                losses.append(float(logs["loss"]))
                average += (1 - self.smoothing) * (losses[-1] - average)
                smoothed.append(average / (1 - self.smoothing ** len(losses)))
                if len(losses) > self._num_unjudged:
                    best = min(best, smoothed[-1])
                bound = best + (self.divergence_factor - 1) * abs(best)
                if smoothed[-1] > bound or not math.isfinite(smoothed[-1]):
                    diverged = True
                    break
        if len(losses) < num_steps and not diverged:
            raise ValueError(
                f"`x` ended after {len(losses)} of {num_steps} batches. Give data that "
                "can start again, or fewer steps."
            )
        self.learning_rates = rates[: len(losses)]
        self.losses, self.smoothed_losses = np.array(losses), np.array(smoothed)
        self.diverged = diverged
        return self

    @property
    def suggestion(self) -> float:
        """The rate of `tenth_of_minimum`.

        Raises:
            ValueError: Nothing was run, the loss never fell, or it was least at the
                last step.
        """
        rates = self._rates_by_rule()
        if math.isnan(rates["steepest"]):
            raise ValueError(
                "No rate can be suggested: the smoothed loss did not fall. Lower "
                "`min_learning_rate`, or see whether the model trains at all. "
                f"Received: min_learning_rate={self.min_learning_rate:g}"
            )
        if math.isnan(rates["tenth_of_minimum"]):
            raise ValueError(
                "No rate can be suggested: the smoothed loss was least at the last "
                "step. Raise `max_learning_rate`. "
                f"Received: max_learning_rate={self.max_learning_rate:g}"
            )
        return rates["tenth_of_minimum"]

    @property
    def suggestions(self):
        """A DataFrame with a row for each rule; NaN where the rule has no answer."""
        import pandas

        columns = {"learning_rate": self._rates_by_rule(), "published_by": _RULES}
        return pandas.DataFrame(columns).rename_axis("rule")

    def to_frame(self):
        """Return a DataFrame: a row per step with its rate, loss and smoothed loss."""
        import pandas

        self._check_run()
        columns = {
            "learning_rate": self.learning_rates,
            "loss": self.losses,
            "smoothed_loss": self.smoothed_losses,
        }
        return pandas.DataFrame(columns).rename_axis("step")

    def plot(self):
        """Draw the losses over the rate, with the suggestions on the smoothed curve.

        Returns:
            A matplotlib `Figure`. Where the loss shoots up, the curve leaves it.
        """
        from matplotlib.figure import Figure

        self._check_run()
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        rates, smoothed = self.learning_rates, self.smoothed_losses
        for (rule, rate), marker in zip(
            self._rates_by_rule().items(), "osD^", strict=True
        ):
            if not math.isnan(rate):
                height = np.interp(math.log(rate), np.log(rates), smoothed)
                axes.plot(rate, height, marker, label=f"{rule}: {rate:.2g}", zorder=3)
        axes.plot(rates, self.losses, color="0.8", lw=1, label="loss of each batch")
        axes.plot(rates, smoothed, color="black", label="smoothed loss")
        axes.set(xscale="log", xlabel="learning rate", ylabel="training loss")
        axes.legend()
        known = np.isfinite(smoothed)
        if known.any():
            # Room above the highest point before the minimum, for the way up.
            way_down = smoothed[known][: smoothed[known].argmin() + 1]
            lowest, highest = self.losses[known].min(), way_down.max()
            margin = (highest - lowest) / 3 or 1.0
            axes.set_ylim(lowest - margin / 3, highest + margin)
        return figure

    def _steps_of(self, num_batches):
        """Return how many steps to take with data of so many batches, or None."""
        if self.epochs is None:
            return self.num_steps
        if num_batches is None or self.epochs * num_batches < 10:
            raise ValueError(
                "`epochs` must make at least 10 steps of data that tell their length, "
                f"which is {num_batches} batches here. Give `num_steps` instead. "
                f"Received: epochs={self.epochs}"
            )
        return self.epochs * num_batches

    def _forget(self):
        self.learning_rates = self.losses = self.smoothed_losses = self.diverged = None

    def _check_run(self):
        if self.losses is None:
            raise ValueError("There are no losses yet: `run` has to come to its end.")

    def _rates_by_rule(self):
        self._check_run()
        rates = dict.fromkeys(_RULES, math.nan)
        if self.diverged:
            rates["third_of_divergence"] = float(self.learning_rates[-1]) / 3
        known = np.isfinite(self.smoothed_losses)
        known[: self._num_unjudged] = False
        x, s = self.learning_rates[known], self.smoothed_losses[known]
        minimum = int(s.argmin()) if len(s) else 0
        if minimum > 0:
            fall = slice(minimum + 1)
            steepest = np.gradient(s[fall], np.log(x[fall])).argmin()
            rates["steepest"] = float(x[steepest])
            rates["valley"] = float(x[_valley(s)])
            if self.diverged or minimum < len(s) - 1:
                rates["tenth_of_minimum"] = float(x[minimum]) / 10
        return rates


def _valley(losses):
    # lengths[i]: of the longest falling subsequence that ends at i.
    lengths = np.ones(len(losses), dtype=int)
    for i in range(1, len(losses)):
        lengths[i] += lengths[:i][losses[:i] > losses[i]].max(initial=0)
    end, length = int(lengths.argmax()), int(lengths.max())
    return max(0, end - length + length // 3 + length // 6)


def _check_model(model):
    if not isinstance(model, keras.Model) or not model.compiled:
        raise ValueError(
            f"`model` must be a compiled keras.Model. Received: model={model!r}"
        )
    optimizer = model.optimizer
    if hasattr(optimizer, "optimizers"):
        problem = "has several learning rates; test one optimizer at a time"
    elif not isinstance(optimizer.learning_rate, keras.Variable):
        problem = (
            "was built with a LearningRateSchedule or a function, which sets the rate "
            "itself. Compile with a number for the test, such as SGD(0.01)"
        )
    else:
        return
    raise ValueError(
        f"`model` must have one settable learning rate, but its optimizer {problem}. "
        f"Received: optimizer={type(optimizer).__name__}"
    )


def _batches_from(x, y, sample_weight, batch_size, seed):
    """Return an iterator over batches, and how many a pass has, or None."""
    rng = np.random.default_rng(seed)
    data = (x, y, sample_weight)
    inputs = keras.tree.flatten(x)
    leaves = [leaf for leaf in keras.tree.flatten(data) if leaf is not None]
    if inputs and all(hasattr(leaf, "shape") for leaf in [*inputs, *leaves]):
        lengths = {leaf.shape[0] if leaf.shape else 0 for leaf in leaves}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(
                "`x`, `y` and `sample_weight` must have the same number of rows, at "
                f"least one. Received: {sorted(lengths)} rows"
            )
        (num_rows,) = lengths
        batch_size = 32 if batch_size is None else batch_size
        batch_size = _number_from_to("batch_size", batch_size, 1, 1e9, whole=True)
        batches = _batches_of_rows(data, num_rows, batch_size, rng)
        return batches, math.ceil(num_rows / batch_size)
    is_py_dataset = isinstance(x, keras.utils.PyDataset)
    is_iterable = is_py_dataset or hasattr(x, "__iter__")
    others = {"y": y, "sample_weight": sample_weight, "batch_size": batch_size}
    given = [name for name in others if others[name] is not None]
    if given or not is_iterable or isinstance(x, (list, tuple, dict, str)):
        raise ValueError(
            "`x` must be arrays, or a data set or generator that brings its targets, "
            "weights and batch size itself. "
            f"Received: {', '.join([f'x={type(x).__name__}', *given])}"
        )
    try:
        num_batches = x.num_batches if is_py_dataset else len(x)
    except TypeError:  # a generator, or a tf.data.Dataset that repeats or filters
        num_batches = None
    return _batches_of_passes(x, rng), num_batches


def _batches_of_rows(data, num_rows, batch_size, rng):
    data = keras.tree.map_structure(_as_array, data)
    while True:
        order = rng.permutation(num_rows)
        for start in range(0, num_rows, batch_size):
            rows = order[start : start + batch_size]
            yield keras.tree.map_structure(
                lambda array, rows=rows: None if array is None else array[rows], data
            )


def _batches_of_passes(x, rng):
    num_batches = 0
    while True:
        one_pass, before = x, num_batches
        if isinstance(x, keras.utils.PyDataset):
            size = x.num_batches
            order = itertools.count() if size is None else rng.permutation(size)
            one_pass = (x[int(index)] for index in order)
        for batch in one_pass:
            num_batches += 1
            batch = keras.utils.unpack_x_y_sample_weight(batch)
            yield keras.tree.map_structure(
                lambda leaf: leaf if keras.ops.is_tensor(leaf) else _as_array(leaf),
                batch,
            )
        if num_batches == before:  # a generator has come to its end
            return


def _as_array(value):
    if value is None:
        return None
    array = np.asarray(value)
    # As in fit: Python's and NumPy's floats are not meant to be double precision.
    return array.astype(keras.config.floatx()) if array.dtype == "float64" else array


def _build(model, batches):
    """Build what the first step would have to, and return the same batches."""
    with _seeds_left_as_they_were():
        first = next(batches, None)
    if first is None:
        raise ValueError("`x` must give at least one batch. Received: none")
    strategy = getattr(model, "distribute_strategy", None)  # TensorFlow's trainer's
    with strategy.scope() if strategy else contextlib.nullcontext():
        with keras.StatelessScope():
            model(first[0])
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
    return itertools.chain([first], batches)


@contextlib.contextmanager
def _left_as_it_was(model):
    variables = [
        *model.variables,
        *model.metrics_variables,
        *model.optimizer.variables,
    ]
    # Copies, for an array may share its memory with the variable.
    values = [np.array(keras.ops.convert_to_numpy(each)) for each in variables]
    # Of the model, because a step that was interrupted on JAX leaves a note there that
    # the variables are out of date, and the next fit would update them. Of losses and
    # metrics that the first step builds, because fit (3.15) on JAX draws one order of
    # the rows more if they are not built.
    unbuilt = [
        each for each in vars(model).values() if not getattr(each, "built", True)
    ]
    attributes = [_remember(each) for each in (model, *unbuilt)]
    try:
        yield
    finally:
        model.reset_metrics()
        for restore in attributes:
            restore()
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


@contextlib.contextmanager
def _seeds_left_as_they_were():
    states = random.getstate(), np.random.get_state(), _generator_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        _set_generator_state(states[2])


def _generator_state():
    """The state of PyTorch's generator, from which dropout without a seed draws."""
    if keras.backend.backend() != "torch":
        return None
    import torch

    return torch.get_rng_state().numpy()


def _set_generator_state(state):
    if keras.backend.backend() == "torch":
        import torch

        torch.set_rng_state(torch.tensor(state))


def _remember(owner):
    """Return a function that puts the attributes of `owner` back."""
    before = dict(vars(owner))
    lengths = {name: len(each) for name, each in before.items() if type(each) is list}

    def restore():
        for name in vars(owner).keys() - before.keys():
            del vars(owner)[name]
        vars(owner).update(before)
        for name, length in lengths.items():
            del before[name][length:]

    return restore


def _number_from_to(name, value, least, most, *, whole=False):
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (is_number and least <= value <= most) or (whole and value != int(value)):
        kind = f"a {'whole ' if whole else ''}number from {least:g} to {most:g}"
        raise ValueError(f"`{name}` must be {kind}. Received: {name}={value!r}")
    return int(value) if whole else float(value)
