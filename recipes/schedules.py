"""Learning rates that change with the optimizer's step: give one as `learning_rate=`.

A large rate covers ground at first and a small one settles at the end; a schedule
does both inside the compiled step, is saved with the model, and goes on where it
stopped, because the optimizer's own step counter drives it. Use one when you count in
steps. When you count in epochs, want the rate in the logs, or want to change it by
hand, use the callbacks of `callbacks/schedulers.py` instead; an optimizer that was
built with a schedule refuses them.

Steps are counted from 0, the first update. With `gradient_accumulation_steps` Keras
counts every micro-batch as a step.

This file is longer than most because every schedule comes with its formula, its limits
and an example.

```python
import keras
import numpy as np

from recipes.schedules import Exponential, Piecewise, PowerDecay, plot_schedules

schedules = {
    "power": PowerDecay(0.01, decay_steps=500),
    "exponential": Exponential(0.01, decay_steps=500),
    "piecewise": Piecewise([300, 800], [0.01, 0.005, 0.001]),
}
figure = plot_schedules(schedules, total_steps=1000)

model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile(keras.optimizers.SGD(learning_rate=schedules["power"]), loss="mse")
model.fit(np.ones((64, 4)), np.ones((64, 1)), epochs=2, verbose=0)
```

Reference: Senior, Heigold, Ranzato, Yang, "An Empirical Study of Learning Rates in Deep
Neural Networks for Speech Recognition", 2013,
https://doi.org/10.1109/ICASSP.2013.6638963
Revised: 0.1.0
"""

import itertools
import math
import numbers

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable(package="recipes")
class PowerDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Decay fast at first, then ever more slowly.

    For long runs whose length is not known beforehand: the rate never gets stuck near
    zero. Not for a run that must end at a small rate; `Exponential` gets there.
    With `power=1` it equals Keras's `InverseTimeDecay`, which has no power.

        rate(t) = eta0 / (1 + t / s) ** c

    t is the step, eta0 `initial_learning_rate`, s `decay_steps`, c `power`. With
    c = 1 the rate is eta0 at step 0, eta0/2 at step s, eta0/3 at step 2s.

    Example:
        >>> schedule = PowerDecay(0.1, decay_steps=1000)
        >>> [round(float(schedule(step)), 6) for step in (0, 1000, 2000)]
        [0.1, 0.05, 0.033333]

    Args:
        initial_learning_rate: rate at step 0, positive.
        decay_steps: steps until 1 + t/s is two, positive, not necessarily whole.
        power: exponent c, positive. 1 is the classic inverse-time decay.

    Raises:
        ValueError: an argument is not a positive finite number.

    Reference: Herbert Robbins, Sutton Monro, "A Stochastic Approximation Method",
        1951, https://doi.org/10.1214/aoms/1177729586
    """

    def __init__(
        self, initial_learning_rate: float, decay_steps: float, power: float = 1.0
    ):
        self.initial_learning_rate = _positive_number(
            "initial_learning_rate", initial_learning_rate
        )
        self.decay_steps = _positive_number("decay_steps", decay_steps)
        self.power = _positive_number("power", power)

    def __call__(self, step):
        """Return the rate at `step`, a float32 tensor of the same shape."""
        decay = 1 + ops.cast(step, "float32") / self.decay_steps
        return self.initial_learning_rate / ops.power(decay, self.power)

    def get_config(self) -> dict:
        """Return the constructor's arguments."""
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "decay_steps": self.decay_steps,
            "power": self.power,
        }


@keras.saving.register_keras_serializable(package="recipes")
class Exponential(keras.optimizers.schedules.LearningRateSchedule):
    """Multiply the rate by `factor` every `decay_steps` steps, smoothly.

    For a run of known length: choose `decay_steps` so that the last step has the rate
    you want there. It keeps falling, so a run that goes on much longer stands still.
    Keras's `ExponentialDecay` (3.15) is the same formula, but turns an integer initial
    rate into rates of zero and a negative factor into NaN, and computes in float16
    where that is the default type, which holds no step above 65,504.

        rate(t) = eta0 * factor ** (t / s)

    t is the step, eta0 `initial_learning_rate`, s `decay_steps`. It is eta0 at step 0
    and eta0 * factor exactly at step s.

    Example:
        >>> schedule = Exponential(0.1, decay_steps=1000)
        >>> [round(float(schedule(step)), 6) for step in (0, 1000, 2000)]
        [0.1, 0.01, 0.001]

    Args:
        initial_learning_rate: rate at step 0, positive.
        decay_steps: steps per factor, positive, not necessarily whole.
        factor: in (0, 1]. A tenth: `decay_steps` is then the steps per decade.

    Raises:
        ValueError: an argument is not a positive finite number, or `factor` > 1.
    """

    def __init__(
        self, initial_learning_rate: float, decay_steps: float, factor: float = 0.1
    ):
        self.initial_learning_rate = _positive_number(
            "initial_learning_rate", initial_learning_rate
        )
        self.decay_steps = _positive_number("decay_steps", decay_steps)
        self.factor = _positive_number("factor", factor)
        if self.factor > 1:
            raise ValueError(
                "`factor` must be at most 1, for the rate would grow. "
                f"Received: factor={factor}"
            )

    def __call__(self, step):
        """Return the rate at `step`, a float32 tensor of the same shape."""
        exponent = ops.cast(step, "float32") / self.decay_steps
        return self.initial_learning_rate * ops.power(self.factor, exponent)

    def get_config(self) -> dict:
        """Return the constructor's arguments."""
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "decay_steps": self.decay_steps,
            "factor": self.factor,
        }


@keras.saving.register_keras_serializable(package="recipes")
class Piecewise(keras.optimizers.schedules.LearningRateSchedule):
    """Hold one rate, then the next, as listed.

    For schedules found by hand or taken from a paper. Not where you would have to
    guess the boundaries: a plateau callback finds them while training.

    The rate is `values[i]` from step `boundaries[i - 1]` on and before step
    `boundaries[i]`, so a new value begins AT its boundary, as in PyTorch and optax.
    Keras's `PiecewiseConstantDecay` (3.15) changes one step later, cuts fractions off
    its boundaries, and adds values up where boundaries do not increase.

    Example:
        >>> schedule = Piecewise([100, 200], [0.1, 0.05, 0.01])
        >>> [round(float(schedule(step)), 6) for step in (99, 100, 199, 200)]
        [0.1, 0.05, 0.05, 0.01]

    Args:
        boundaries: steps at which the rate changes, whole, not negative, increasing.
        values: the rates, positive, one more than there are boundaries.

    Raises:
        ValueError: a value is not a positive finite number, boundaries are not whole
            or do not increase, or the lengths do not fit.
    """

    def __init__(self, boundaries: list[int], values: list[float]):
        if not isinstance(boundaries, (list, tuple, np.ndarray)) or not (
            all(_is_whole(boundary) for boundary in boundaries)
            and all(a < b for a, b in itertools.pairwise([-1, *boundaries]))
        ):
            raise ValueError(
                "`boundaries` must be increasing whole numbers, 0 or more. "
                f"Received: boundaries={boundaries}"
            )
        if not isinstance(values, (list, tuple, np.ndarray)) or (
            len(values) != len(boundaries) + 1
        ):
            raise ValueError(
                f"`values` must hold {len(boundaries) + 1} rates, one more "
                f"than there are boundaries. Received: values={values}"
            )
        self.boundaries = [int(boundary) for boundary in boundaries]
        self.values = [_positive_number("values", value) for value in values]

    def __call__(self, step):
        """Return the rate at `step`, a float32 tensor of the same shape."""
        step = ops.convert_to_tensor(step)
        boundaries = ops.convert_to_tensor(self.boundaries, dtype=step.dtype)
        # (..., 1) >= (boundaries,) -> (...): how many boundaries have been reached.
        reached = ops.expand_dims(step, -1) >= boundaries
        piece = ops.sum(ops.cast(reached, "int32"), axis=-1)
        return ops.take(ops.convert_to_tensor(self.values, dtype="float32"), piece)

    def get_config(self) -> dict:
        """Return the constructor's arguments."""
        return {"boundaries": self.boundaries, "values": self.values}


def plot_schedules(schedules: dict, total_steps: int):
    """Draw schedules before training with them.

    Takes any Keras schedule. The axis of rates is logarithmic where the rates drawn
    are positive and span more than a factor of 20.

    Args:
        schedules: `{label: schedule}`, at least one.
        total_steps: whole number of steps of the run, positive; steps 0 to
            `total_steps` - 1 are drawn, at most about 2000 of them.

    Returns:
        A matplotlib `Figure`.

    Raises:
        ValueError: `schedules` is no filled dictionary, or `total_steps` is not a
            positive whole number.
    """
    import matplotlib.pyplot as plt

    if not isinstance(schedules, dict) or not schedules:
        raise ValueError(
            "`schedules` must be a dictionary {label: schedule} with at "
            f"least one entry. Received: schedules={schedules}"
        )
    if not _is_whole(total_steps) or total_steps < 1:
        raise ValueError(
            "`total_steps` must be a positive whole number. "
            f"Received: total_steps={total_steps}"
        )
    steps = np.unique(np.linspace(0, total_steps - 1, 2000).astype("int32"))
    figure, axes = plt.subplots(layout="constrained")
    lowest, highest = math.inf, -math.inf
    for label, schedule in schedules.items():
        # Not schedule(steps): a Keras schedule with a warmup takes one step at a time.
        rates = ops.convert_to_numpy(ops.vectorized_map(schedule, steps))
        axes.plot(steps, rates, drawstyle="steps-post", label=label)
        lowest, highest = min(lowest, rates.min()), max(highest, rates.max())
    if 0 < 20 * lowest < highest:
        axes.set_yscale("log")
    axes.set(xlabel="step", ylabel="learning rate")
    axes.legend()
    # Closed, so that a notebook shows the figure once and open figures do not pile up.
    plt.close(figure)
    return figure


def _positive_number(name, value):
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    limits = np.finfo("float32")  # beyond them it would be 0 or infinite on the device
    if not (is_number and float(limits.tiny) <= value <= float(limits.max)):
        raise ValueError(
            f"`{name}` must be a positive finite number. Received: {name}={value!r}"
        )
    return float(value)


def _is_whole(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
