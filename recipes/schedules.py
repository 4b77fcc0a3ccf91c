"""Learning rates that change with the optimizer's step: give one as `learning_rate=`.

A large rate covers ground at first and a small one settles at the end; a schedule
does both inside the compiled step, is saved with the model, and goes on where it
stopped, because the optimizer's own step counter drives it. Use one when you count in
steps. When you want the rate in the logs, or want to change it by hand, use the
callbacks of `callbacks/schedulers.py` instead; an optimizer that was built with a
schedule refuses them.

| run | schedule |
|---|---|
| of known length | `Cosine`, `OneCycle`, `Exponential` |
| of open length | `PowerDecay`, `Cosine` with restarts, `Cyclical` |
| with boundaries known beforehand | `Piecewise`, `Joined` |

`Warmup`, `Joined`, `Floor` and `InEpochs` take any Keras schedule, each other, or a
number for a constant rate. Steps are counted from 0, the first update, and what is
said to begin at a step has begun in that step's update. With
`gradient_accumulation_steps` Keras counts every micro-batch as a step.

This file is longer than most because every schedule comes with its formula, its limits
and an example.

```python
import keras
import numpy as np

from recipes.schedules import Cosine, Floor, OneCycle, Warmup, plot_schedules

schedules = {
    "one-cycle": OneCycle(0.05, total_steps=1000),
    "warm-up, cosine": Warmup(Cosine(0.02, decay_steps=900), warmup_steps=100),
}
schedules["floor"] = Floor(schedules["warm-up, cosine"], 0.002)
figure = plot_schedules(schedules, total_steps=1000)

model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile(keras.optimizers.SGD(learning_rate=schedules["floor"]), loss="mse")
model.fit(np.ones((64, 4)), np.ones((64, 1)), epochs=2, verbose=0)
```

Reference: Senior, Heigold, Ranzato, Yang, "An Empirical Study of Learning Rates in Deep
Neural Networks for Speech Recognition", 2013,
https://doi.org/10.1109/ICASSP.2013.6638963
Reference: Smith, Topin, "Super-Convergence", 2018, https://arxiv.org/abs/1708.07120
Revised: 0.2.0
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

    PyTorch, optax and timm lack it: their polynomial schedules end at a given step.

    Example:
        >>> schedule = PowerDecay(0.1, decay_steps=1000)
        >>> [round(float(schedule(step)), 6) for step in (0, 1000, 2000)]
        [0.1, 0.05, 0.033333]

    Args:
        initial_learning_rate: Rate at step 0, positive.
        decay_steps: Steps until 1 + t/s is two, positive, not necessarily whole.
        power: Exponent c, positive. 1 is the classic inverse-time decay.

    Raises:
        ValueError: An argument is not a positive finite number.

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
        decay = 1 + _clock(step).since(0) / self.decay_steps
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
    rate into rates of zero and a negative factor into NaN, and raises a rounded factor
    to a large power: 0.99999 per step is 0.1% low after 100,000 steps.

        rate(t) = eta0 * factor ** (t / s) = eta0 * exp(t * ln(factor) / s)

    t is the step, eta0 `initial_learning_rate`, s `decay_steps`. It is eta0 at step 0
    and eta0 * factor at step s.

    So is optax's `exponential_decay`. PyTorch's `ExponentialLR` takes the factor of one
    of its own steps, usually an epoch; timm's `StepLRScheduler` falls in stairs.

    Example:
        >>> schedule = Exponential(0.1, decay_steps=1000)
        >>> [round(float(schedule(step)), 6) for step in (0, 1000, 2000)]
        [0.1, 0.01, 0.001]

    Args:
        initial_learning_rate: Rate at step 0, positive.
        decay_steps: Steps per factor, positive, not necessarily whole.
        factor: In (0, 1]. A tenth: `decay_steps` is then the steps per decade.

    Raises:
        ValueError: An argument is not a positive finite number, or `factor` > 1.
    """

    def __init__(
        self, initial_learning_rate: float, decay_steps: float, factor: float = 0.1
    ):
        self.initial_learning_rate = _positive_number(
            "initial_learning_rate", initial_learning_rate
        )
        self.decay_steps = _positive_number("decay_steps", decay_steps)
        self.factor = _positive_number("factor", factor, maximum=1)

    def __call__(self, step):
        """Return the rate at `step`, a float32 tensor of the same shape."""
        # Finite in float32: 0 times infinity is no number.
        per_step = max(math.log(self.factor) / self.decay_steps, -1e38)
        return self.initial_learning_rate * ops.exp(per_step * _clock(step).since(0))

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
    guess the boundaries: a plateau callback finds them while training. Boundaries
    behind the run's last step never take effect; `InEpochs(Piecewise([5, 15], ...),
    steps_per_epoch)` states them in epochs.

    The rate is `values[i]` from step `boundaries[i - 1]` on and before step
    `boundaries[i]`, so a new value begins AT its boundary, as in PyTorch's
    `MultiStepLR` and optax's `piecewise_constant_schedule`, which take factors; timm's
    `MultiStepLRScheduler` changes one step earlier. Keras's `PiecewiseConstantDecay`
    (3.15) changes one step later, cuts fractions off its boundaries, and adds values up
    where boundaries do not increase.

    Example:
        >>> schedule = Piecewise([100, 200], [0.1, 0.05, 0.01])
        >>> [round(float(schedule(step)), 6) for step in (99, 100, 199, 200)]
        [0.1, 0.05, 0.05, 0.01]

    Args:
        boundaries: Steps at which the rate changes, whole, not negative, increasing.
        values: The rates, positive, one more than there are boundaries.

    Raises:
        ValueError: A value is not a positive finite number, boundaries are not whole
            or do not increase, or the lengths do not fit.
    """

    def __init__(self, boundaries: list[int], values: list[float]):
        self.boundaries = _boundaries(boundaries)
        values = _list("values", values, length=len(self.boundaries) + 1)
        self.values = [_positive_number("values", value) for value in values]

    def __call__(self, step):
        """Return the rate at `step`, a float32 tensor of the same shape."""
        piece, _ = _clock(step).latest([0, *self.boundaries])
        return ops.take(ops.convert_to_tensor(self.values, dtype="float32"), piece)

    def get_config(self) -> dict:
        """Return the constructor's arguments."""
        return {"boundaries": self.boundaries, "values": self.values}


@keras.saving.register_keras_serializable(package="recipes")
class OneCycle(keras.optimizers.schedules.LearningRateSchedule):
    """Rise to a large rate, then fall to almost nothing by the last step.

    For short runs of known length at the largest rate that trains (find it with a
    range test); the momentum moves against the rate, and `.momentum` gives it to a
    callback. Not for a run that may go on: afterwards the rate stays where it ended.

    PyTorch's `OneCycleLR`, number for number. With T `total_steps`, f
    `warmup_fraction` and m the maximum, the rate passes through

        m / d1 at step 0,  m at step f*T - 1,  m / (d1 * d2) at step T - 1, the last

    where d1 is `initial_divisor` and d2 `final_divisor`; the momentum goes from
    `max_momentum` to `base_momentum` and back. With `three_phase` the fall takes as
    long as the rise and ends at m / d1 at step `2*f*T - 2`, where the momentum is back;
    from there the rate alone goes on to its end. In between, p being the part of the
    phase that has passed, a value goes from a to b as

        a * w + b * (1 - w),  w = (1 + cos(pi * p)) / 2 or, linear, 1 - p

    A rise that would end at step 0 or before is left out. PyTorch stops with an error
    after step T, and on a rise that ends at step 0; optax's `cosine_onecycle_schedule`
    reaches peak and end one step later; timm has none.

    Example:
        >>> schedule = OneCycle(0.1, total_steps=10, anneal="linear")
        >>> [round(float(schedule(step)), 6) for step in (0, 1, 2, 9, 1000)]
        [0.004, 0.052, 0.1, 0.0, 0.0]
        >>> [round(float(schedule.momentum(step)), 6) for step in (0, 1, 2, 9)]
        [0.95, 0.9, 0.85, 0.95]

    Args:
        max_learning_rate: Rate at the peak, positive.
        total_steps: Steps of the run, whole, positive.
        warmup_fraction: Part of the run that rises, in [0, 1), with `three_phase` at
            most 0.5.
        anneal: "cosine", or "linear" as in the paper.
        initial_divisor: Maximum over initial rate, 1 or more.
        final_divisor: Initial over final rate, at least 1 / `initial_divisor`.
        three_phase: Whether to return to the initial rate before the last descent, as
            in the paper.
        base_momentum: Momentum at the peak, in [0, `max_momentum`].
        max_momentum: Momentum at both ends, in [0, 1).

    Raises:
        ValueError: An argument is of the wrong kind or out of its range.

    Reference: Smith, Topin, "Super-Convergence: Very Fast Training of Neural Networks
        Using Large Learning Rates", 2018, https://arxiv.org/abs/1708.07120
    """

    def __init__(
        self,
        max_learning_rate: float,
        total_steps: int,
        *,
        warmup_fraction: float = 0.3,
        anneal: str = "cosine",
        initial_divisor: float = 25.0,
        final_divisor: float = 1e4,
        three_phase: bool = False,
        base_momentum: float = 0.85,
        max_momentum: float = 0.95,
    ):
        self.max_learning_rate = _positive_number(
            "max_learning_rate", max_learning_rate
        )
        self.total_steps = _whole_number("total_steps", total_steps)
        self.warmup_fraction = _fraction("warmup_fraction", warmup_fraction)
        self.anneal = _one_of("anneal", anneal, ("cosine", "linear"))
        self.initial_divisor = _positive_number("initial_divisor", initial_divisor)
        self.final_divisor = _positive_number("final_divisor", final_divisor)
        self.three_phase = _one_of("three_phase", three_phase, (False, True))
        self.base_momentum = _fraction("base_momentum", base_momentum)
        self.max_momentum = _fraction("max_momentum", max_momentum)
        if self.warmup_fraction == 1 or (three_phase and self.warmup_fraction > 0.5):
            raise ValueError(
                "`warmup_fraction` must leave steps for the fall: below 1, with "
                "`three_phase` at most 0.5. "
                f"Received: warmup_fraction={warmup_fraction}"
            )
        if self.initial_divisor < 1 or self.initial_divisor * self.final_divisor < 1:
            raise ValueError(
                "`initial_divisor` and `final_divisor` must put no rate above the "
                "maximum. Received: "
                f"initial_divisor={initial_divisor}, final_divisor={final_divisor}"
            )
        if not self.base_momentum <= self.max_momentum < 1:
            raise ValueError(
                "`base_momentum` must not exceed `max_momentum`, nor that reach 1. "
                f"Received: base_momentum={base_momentum}, max_momentum={max_momentum}"
            )

    def __call__(self, step):
        """Return the rate at `step`, a float32 tensor of the same shape."""
        initial = self.max_learning_rate / self.initial_divisor
        final = initial / self.final_divisor
        return self._through(step, initial, self.max_learning_rate, initial, final)

    def momentum(self, step):
        """Return the momentum at `step`, a float32 tensor of the same shape."""
        high = self.max_momentum
        return self._through(step, high, self.base_momentum, high, high)

    def _through(self, step, initial, peak, middle, final):
        rise = self.warmup_fraction * self.total_steps - 1
        knots = [(0, initial), (rise, peak), (2 * rise, middle)]
        knots = [*knots[: 3 if self.three_phase else 2], (self.total_steps - 1, final)]
        phases = list(itertools.pairwise(knots))
        clock = _clock(step)
        value = 0.0
        for (begin, first), (end, last) in phases if rise > 0 else phases[-1:]:
            part = ops.minimum(clock.since(begin) / (end - begin), 1)
            weight = _half_cosine(part) if self.anneal == "cosine" else 1 - part
            here = weight * first + (1 - weight) * last
            value = ops.where(clock.reached(begin), here, value)
        return value

    def get_config(self) -> dict:
        """Return the constructor's arguments."""
        return {
            "max_learning_rate": self.max_learning_rate,
            "total_steps": self.total_steps,
            "warmup_fraction": self.warmup_fraction,
            "anneal": self.anneal,
            "initial_divisor": self.initial_divisor,
            "final_divisor": self.final_divisor,
            "three_phase": self.three_phase,
            "base_momentum": self.base_momentum,
            "max_momentum": self.max_momentum,
        }


@keras.saving.register_keras_serializable(package="recipes")
class Cosine(keras.optimizers.schedules.LearningRateSchedule):
    """Fall along half a cosine, once or again and again.

    For a run of known length: slow at both ends, steep between. With `restarts`, for a
    run that may stop at the end of any cycle. Not for an open end without restarts,
    where nothing is learned after the fall.

        rate(t) = eta0 * (a + (1 - a) * q ** i * (1 + cos(pi * p)) / 2)

    eta0 is `initial_learning_rate` and a `final_fraction`. Without restarts i = 0 and
    p = min(t / s, 1), s being `decay_steps`: eta0 at step 0, a * eta0 at step s and
    ever after. With restarts, p is the part of cycle i = 0, 1, ... that has passed;
    the cycle is s * g ** i steps long, g being `length_factor` and q `peak_factor`. A
    cycle begins AT its first step, so the top is at steps 0, s, s + s*g, ..., and the
    last step of a cycle is still a little above the bottom.

    Without restarts this is Keras's `CosineDecay` (3.15), which takes pi for 3 when the
    rate is an integer. Keras's `CosineDecayRestarts` finds the cycle in float32, by a
    logarithm: some restarts come a step early or late (10 steps, doubling: that of step
    81,910), and between them it is off by nearly 1e-4 after a million steps.

    PyTorch's `CosineAnnealingLR` rises again after the end; optax's and timm's stay.
    Restarts come at the same steps in PyTorch (`T_mult`), timm (`cycle_mul`) and
    optax's `sgdr_schedule`; timm's `cycle_decay` shrinks a peak as a whole, q only what
    is above the bottom.

    Example:
        >>> schedule = Cosine(0.1, decay_steps=1000, final_fraction=0.1)
        >>> [round(float(schedule(step)), 6) for step in (0, 500, 1000, 5000)]
        [0.1, 0.055, 0.01, 0.01]
        >>> schedule = Cosine(0.1, 1000, restarts=True, length_factor=2)
        >>> [round(float(schedule(step)), 6) for step in (999, 1000, 2000, 3000)]
        [0.0, 0.1, 0.05, 0.1]

    Args:
        initial_learning_rate: Rate at step 0, positive.
        decay_steps: Steps of the (first) fall, positive, with `restarts` whole.
        final_fraction: The bottom as a part of the initial rate, in [0, 1].
        restarts: Whether to jump back to the top at the bottom.
        length_factor: How many times as long the next cycle is, whole, 1 or more.
        peak_factor: How many times as high it is above the bottom, in (0, 1].

    Raises:
        ValueError: An argument is of the wrong kind or out of its range, or a factor is
            given without `restarts`.

    Reference: Loshchilov, Hutter, "SGDR: Stochastic Gradient Descent with Warm
        Restarts", 2017, https://arxiv.org/abs/1608.03983
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: float,
        *,
        final_fraction: float = 0.0,
        restarts: bool = False,
        length_factor: int = 1,
        peak_factor: float = 1.0,
    ):
        self.initial_learning_rate = _positive_number(
            "initial_learning_rate", initial_learning_rate
        )
        self.restarts = _one_of("restarts", restarts, (False, True))
        check_steps = _whole_number if self.restarts else _positive_number
        self.decay_steps = check_steps("decay_steps", decay_steps)
        self.final_fraction = _fraction("final_fraction", final_fraction)
        self.length_factor = _whole_number("length_factor", length_factor)
        self.peak_factor = _positive_number("peak_factor", peak_factor, maximum=1)
        if not self.restarts and (self.length_factor, self.peak_factor) != (1, 1):
            raise ValueError(
                "`length_factor` and `peak_factor` mean nothing without `restarts`. "
                f"Received: length_factor={length_factor}, peak_factor={peak_factor}"
            )

    def __call__(self, step):
        """Return the rate at `step`, a float32 tensor of the same shape."""
        clock = _clock(step)
        if self.restarts:
            cycle, part = clock.cycles(self.decay_steps, self.length_factor)
            peak = ops.exp(math.log(self.peak_factor) * cycle)
        else:
            part, peak = ops.minimum(clock.since(0) / self.decay_steps, 1), 1.0
        above = (1 - self.final_fraction) * peak * _half_cosine(part)
        return self.initial_learning_rate * (self.final_fraction + above)

    def get_config(self) -> dict:
        """Return the constructor's arguments."""
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "decay_steps": self.decay_steps,
            "final_fraction": self.final_fraction,
            "restarts": self.restarts,
            "length_factor": self.length_factor,
            "peak_factor": self.peak_factor,
        }


@keras.saving.register_keras_serializable(package="recipes")
class Cyclical(keras.optimizers.schedules.LearningRateSchedule):
    """Go up and down between two rates.

    For runs of open length when a range test has shown where the loss falls (minimum)
    and where it grows ragged (maximum); stop at the end of a cycle, where the rate is
    low. Not for the last percent: a rate that goes to nothing gets further.

        rate(t) = low + (high - low) * (1 - |x - 1|) * scale,  x = t / h modulo 2

    low and high are the two rates, h `half_cycle_steps`, t the step: low at step 0, the
    top at step h, low again at step 2h, where the next cycle begins. scale is 1 for
    "triangular", 1 / 2 ** (number of whole cycles so far) for "triangular2", and
    `factor_per_step` ** t for "exp_range".

    PyTorch's `CyclicLR` gives the same numbers (`step_size_up` is h, `gamma` the
    factor), and cycles the momentum too unless told not to; optax and timm have none.

    Example:
        >>> schedule = Cyclical(0.01, 0.05, 1000)
        >>> [round(float(schedule(step)), 6) for step in (0, 500, 1000, 2000)]
        [0.01, 0.03, 0.05, 0.01]

    Args:
        minimum_learning_rate: The lower rate, positive.
        maximum_learning_rate: The upper rate of the first cycle, above the lower one.
        half_cycle_steps: Steps from the lower to the upper rate, whole, positive. 2 to
            10 times the steps of an epoch in the paper.
        mode: "triangular", "triangular2" or "exp_range".
        factor_per_step: In (0, 1], for "exp_range" only, and needed there; the paper
            has 0.99994.

    Raises:
        ValueError: An argument is of the wrong kind or out of its range.

    Reference: Smith, "Cyclical Learning Rates for Training Neural Networks", 2017,
        https://arxiv.org/abs/1506.01186
    """

    def __init__(
        self,
        minimum_learning_rate: float,
        maximum_learning_rate: float,
        half_cycle_steps: int,
        *,
        mode: str = "triangular",
        factor_per_step: float | None = None,
    ):
        self.minimum_learning_rate = _positive_number(
            "minimum_learning_rate", minimum_learning_rate
        )
        self.maximum_learning_rate = _positive_number(
            "maximum_learning_rate", maximum_learning_rate
        )
        if not self.minimum_learning_rate < self.maximum_learning_rate:
            raise ValueError(
                "`maximum_learning_rate` must be above `minimum_learning_rate`. "
                f"Received: maximum_learning_rate={maximum_learning_rate}"
            )
        self.half_cycle_steps = _whole_number("half_cycle_steps", half_cycle_steps)
        self.mode = _one_of("mode", mode, ("triangular", "triangular2", "exp_range"))
        if (mode == "exp_range") != (factor_per_step is not None):
            raise ValueError(
                '`factor_per_step` must be given with mode="exp_range", and only then. '
                f"Received: factor_per_step={factor_per_step}"
            )
        self.factor_per_step = factor_per_step
        if factor_per_step is not None:
            self.factor_per_step = _positive_number(
                "factor_per_step", factor_per_step, maximum=1
            )

    def __call__(self, step):
        """Return the rate at `step`, a float32 tensor of the same shape."""
        clock = _clock(step)
        cycle, part = clock.cycles(2 * self.half_cycle_steps)
        height = 1 - ops.abs(2 * part - 1)
        if self.mode == "triangular2":
            height *= ops.power(0.5, cycle)
        elif self.mode == "exp_range":
            height *= ops.exp(math.log(self.factor_per_step) * clock.since(0))
        low, high = self.minimum_learning_rate, self.maximum_learning_rate
        return low + (high - low) * height

    def get_config(self) -> dict:
        """Return the constructor's arguments."""
        return {
            "minimum_learning_rate": self.minimum_learning_rate,
            "maximum_learning_rate": self.maximum_learning_rate,
            "half_cycle_steps": self.half_cycle_steps,
            "mode": self.mode,
            "factor_per_step": self.factor_per_step,
        }


@keras.saving.register_keras_serializable(package="recipes")
class Warmup(keras.optimizers.schedules.LearningRateSchedule):
    """Rise in a straight line to where another schedule starts, then follow it.

    For large rates, large batches and adaptive optimizers, whose first steps are the
    least trustworthy. Not around `OneCycle`, which warms up by itself.

        rate(t) = schedule(0) * (t + 1) / (w + 1)    before step w
        rate(t) = schedule(t - w)                    from step w on

    w is `warmup_steps`. The first update already moves, by 1 / (w + 1) of the rate at
    the end; all w of them are below it, and the wrapped schedule counts from its own 0
    at step w. A run of n steps leaves it n - w.

    Elsewhere the line starts at a given rate, at step 0 of the line: 0 in optax's and
    timm's usual settings, so that the first update moves nothing, and a third of the
    end in PyTorch's `LinearLR`. timm's cosine has run through w steps unseen when it
    takes over, unless `warmup_prefix=True`; the `decay_steps` of optax's
    `warmup_cosine_decay_schedule` include the warm-up.

    Example:
        >>> schedule = Warmup(Cosine(0.1, decay_steps=1000), warmup_steps=4)
        >>> [round(float(schedule(step)), 6) for step in (0, 1, 3, 4, 504)]
        [0.02, 0.04, 0.08, 0.1, 0.05]

    Args:
        schedule: A Keras schedule, or a positive number for a constant rate.
        warmup_steps: Steps below the full rate, whole; 0 for no warm-up.

    Raises:
        ValueError: `schedule` is neither, or `warmup_steps` not whole or negative.

    Reference: Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1
        Hour", 2017, https://arxiv.org/abs/1706.02677
    """

    def __init__(
        self,
        schedule: keras.optimizers.schedules.LearningRateSchedule | float,
        warmup_steps: int,
    ):
        self.schedule = _schedule("schedule", schedule)
        self.warmup_steps = _whole_number("warmup_steps", warmup_steps, minimum=0)

    def __call__(self, step):
        """Return the rate at `step`, a float32 tensor of the same shape."""
        clock = _clock(step)
        one_step = 1 / clock.unit
        line = (clock.since(0) + one_step) / (self.warmup_steps + one_step)
        # Before its beginning, the schedule's clock stands at 0.
        return ops.minimum(line, 1) * _rate(
            self.schedule, clock.starting_at(self.warmup_steps)
        )

    def get_config(self) -> dict:
        """Return the constructor's arguments."""
        return {
            "schedule": keras.saving.serialize_keras_object(self.schedule),
            "warmup_steps": self.warmup_steps,
        }

    @classmethod
    def from_config(cls, config):
        """Rebuild the wrapped schedule, then this one around it."""
        return cls(**keras.saving.deserialize_keras_object(config))


@keras.saving.register_keras_serializable(package="recipes")
class Joined(keras.optimizers.schedules.LearningRateSchedule):
    """Follow one schedule, then the next.

    For any number of schedules, each counting its steps from its own beginning. For
    constant rates `Piecewise` is shorter.

        rate(t) = schedules[i](t - boundaries[i - 1])

    from step `boundaries[i - 1]` on and before step `boundaries[i]`: a schedule begins
    AT its boundary, with its own step 0, as in optax's `join_schedules` and PyTorch's
    `SequentialLR`; timm has none.

    Example:
        >>> schedule = Joined([0.1, Exponential(0.1, 50), 0.001], [100, 200])
        >>> [round(float(schedule(step)), 6) for step in (99, 100, 150, 200)]
        [0.1, 0.1, 0.01, 0.001]

    Args:
        schedules: Keras schedules, or positive numbers for constant rates; one or more.
        boundaries: Steps at which the next one begins, whole, not negative, increasing;
            one fewer than there are schedules.

    Raises:
        ValueError: A schedule is neither, boundaries are not whole or do not increase,
            or the lengths do not fit.
    """

    def __init__(
        self,
        schedules: list[keras.optimizers.schedules.LearningRateSchedule | float],
        boundaries: list[int],
    ):
        self.boundaries = _boundaries(boundaries)
        schedules = _list("schedules", schedules, length=len(self.boundaries) + 1)
        self.schedules = [_schedule("schedules", schedule) for schedule in schedules]

    def __call__(self, step):
        """Return the rate at `step`, a float32 tensor of the same shape."""
        clock = _clock(step)
        rate = _rate(self.schedules[0], clock)
        for begin, schedule in zip(self.boundaries, self.schedules[1:], strict=True):
            later = _rate(schedule, clock.starting_at(begin))
            rate = ops.where(clock.reached(begin), later, rate)
        return rate

    def get_config(self) -> dict:
        """Return the constructor's arguments."""
        return {
            "schedules": keras.saving.serialize_keras_object(self.schedules),
            "boundaries": self.boundaries,
        }

    @classmethod
    def from_config(cls, config):
        """Rebuild the joined schedules, then this one from them."""
        return cls(**keras.saving.deserialize_keras_object(config))


@keras.saving.register_keras_serializable(package="recipes")
class Floor(keras.optimizers.schedules.LearningRateSchedule):
    """Keep a schedule from falling below a rate.

    For a schedule that would fall so far that the rest of the run learns nothing. A
    warm-up inside is lifted too: put `Warmup` around the floor.

        rate(t) = max(schedule(t), minimum)

    The curve is cut off. The `end_value` of optax, PyTorch's `eta_min` and timm's
    `lr_min` squeeze it instead, as `final_fraction` of `Cosine` does.

    Example:
        >>> schedule = Floor(PowerDecay(0.1, decay_steps=1000), 0.04)
        >>> [round(float(schedule(step)), 6) for step in (0, 1000, 2000)]
        [0.1, 0.05, 0.04]

    Args:
        schedule: A Keras schedule, or a positive number for a constant rate.
        minimum: The lowest rate, positive.

    Raises:
        ValueError: `schedule` is neither, or `minimum` not a positive finite number.
    """

    def __init__(
        self,
        schedule: keras.optimizers.schedules.LearningRateSchedule | float,
        minimum: float,
    ):
        self.schedule = _schedule("schedule", schedule)
        self.minimum = _positive_number("minimum", minimum)

    def __call__(self, step):
        """Return the rate at `step`, a float32 tensor of the same shape."""
        return ops.maximum(_rate(self.schedule, _clock(step)), self.minimum)

    def get_config(self) -> dict:
        """Return the constructor's arguments."""
        return {
            "schedule": keras.saving.serialize_keras_object(self.schedule),
            "minimum": self.minimum,
        }

    @classmethod
    def from_config(cls, config):
        """Rebuild the wrapped schedule, then this one around it."""
        return cls(**keras.saving.deserialize_keras_object(config))


@keras.saving.register_keras_serializable(package="recipes")
class InEpochs(keras.optimizers.schedules.LearningRateSchedule):
    """State a schedule in epochs instead of steps.

    For settings that hold whatever the batch size: every number of steps in the wrapped
    schedule then means epochs. The rate moves within an epoch, too. Not for half an
    epoch of warm-up, where a whole number is asked: put `Warmup`, in steps, around this
    one. Nor for `OneCycle`, which would end one epoch early, at `total_steps` - 1.

        rate(t) = schedule(t / n)

    n is `steps_per_epoch`: the number of batches, the ragged last one included
    (`math.ceil(num_samples / batch_size)`). Epoch e begins at step e * n exactly.

    timm's schedulers (by default) and PyTorch's, stepped once per epoch, hold the rate
    during an epoch; optax counts steps alone.

    Example:
        >>> schedule = InEpochs(Piecewise([5, 15], [0.1, 0.05, 0.01]), 1719)
        >>> [round(float(schedule(step)), 6) for step in (8594, 8595, 25785)]
        [0.1, 0.05, 0.01]

    Args:
        schedule: A Keras schedule, or a positive number for a constant rate.
        steps_per_epoch: Whole, positive.

    Raises:
        ValueError: `schedule` is neither, or `steps_per_epoch` not whole or positive.
    """

    def __init__(
        self,
        schedule: keras.optimizers.schedules.LearningRateSchedule | float,
        steps_per_epoch: int,
    ):
        self.schedule = _schedule("schedule", schedule)
        self.steps_per_epoch = _whole_number("steps_per_epoch", steps_per_epoch)

    def __call__(self, step):
        """Return the rate at `step`, a float32 tensor of the same shape."""
        return _rate(self.schedule, _clock(step).in_units_of(self.steps_per_epoch))

    def get_config(self) -> dict:
        """Return the constructor's arguments."""
        return {
            "schedule": keras.saving.serialize_keras_object(self.schedule),
            "steps_per_epoch": self.steps_per_epoch,
        }

    @classmethod
    def from_config(cls, config):
        """Rebuild the wrapped schedule, then this one around it."""
        return cls(**keras.saving.deserialize_keras_object(config))


def plot_schedules(schedules: dict, total_steps: int):
    """Draw schedules before training with them.

    Takes any Keras schedule. Up to four share one pair of axes, to be compared; more
    get a panel each, to be told apart. Rates have a logarithmic axis where all of them
    are positive and half lie below an eighth of the highest, otherwise one from 0. The
    momentum of a `OneCycle` is dotted, with its axis on the right.

    Example:

    ```python
    from recipes.schedules import Cosine, PowerDecay, plot_schedules

    schedules = {"power": PowerDecay(0.1, 200), "cosine": Cosine(0.1, 1000)}
    figure = plot_schedules(schedules, total_steps=1000)
    ```

    Args:
        schedules: `{label: schedule}`, at least one.
        total_steps: Whole number of steps of the run, positive; steps 0 to
            `total_steps` - 1 are drawn, at most about 2000 of them.

    Returns:
        A matplotlib `Figure`.

    Raises:
        ValueError: `schedules` is no filled dictionary, or `total_steps` is not a
            positive whole number.
    """
    import matplotlib.pyplot as plt

    if (
        not isinstance(schedules, dict)
        or not schedules
        or not all(map(callable, schedules.values()))
    ):
        raise ValueError(
            "`schedules` must be a dictionary {label: schedule} with at "
            f"least one entry. Received: schedules={schedules}"
        )
    total_steps = _whole_number("total_steps", total_steps)
    steps = np.unique(np.linspace(0, total_steps - 1, 2000).astype("int32"))
    if len(schedules) <= 4:
        figure, axes = plt.subplots(layout="constrained")
        panels = [axes] * len(schedules)
        axes.set(xlabel="step", ylabel="learning rate")
    else:
        num_rows = math.ceil(len(schedules) / 3)
        figure = plt.figure(figsize=(10, 2.2 * num_rows), layout="constrained")
        panels = [figure.add_subplot(num_rows, 3, i + 1) for i in range(len(schedules))]
        figure.supxlabel("step")
        figure.supylabel("learning rate")
    right = {}
    # Not schedule(steps): a Keras schedule with a warmup takes one step at a time, and
    # on PyTorch one that is no part of a batch.
    one_by_one = ops.map if keras.backend.backend() == "torch" else ops.vectorized_map
    for axes, (label, schedule) in zip(panels, schedules.items(), strict=True):
        rates = one_by_one(schedule, ops.convert_to_tensor(steps))
        rates = ops.convert_to_numpy(rates)
        (line,) = axes.plot(steps, rates, drawstyle="steps-post", label=label)
        if isinstance(schedule, OneCycle):
            momentum = ops.convert_to_numpy(schedule.momentum(steps))
            if axes not in right:
                right[axes] = axes.twinx()
                right[axes].set_ylabel("momentum")
            right[axes].plot(steps, momentum, ":", color=line.get_color())
    for axes in dict.fromkeys(panels):
        rates = np.concatenate([line.get_ydata() for line in axes.lines])
        if rates.min() > 0 and 8 * np.median(rates) < rates.max():
            axes.set_yscale("log")
            # Otherwise the last steps of a cosine take up most of the decades.
            axes.set_ylim(bottom=np.quantile(rates, 0.02) / 2)
        else:
            axes.set_ylim(bottom=min(rates.min(), 0))
        if len(axes.lines) == len(schedules):
            axes.legend()
        else:
            axes.set_title(axes.lines[0].get_label(), fontsize="medium")
    # Closed, so that a notebook shows the figure once and open figures do not pile up.
    plt.close(figure)
    return figure


_LAST_STEP = 2**31 - 1  # JAX counts steps in 32 bits


class _Clock:
    """The time that a schedule has run, in its own unit; whole steps stay whole.

    float32 knows no odd number above 2 ** 24, and the cosine of a large number is
    noise. So steps are subtracted, and taken modulo a cycle, before they are cast.
    """

    def __init__(self, step, origin=0, unit=1):
        self.step = step  # tensor, at least `origin`
        self.origin = origin  # step at which the schedule begins, whole
        self.unit = unit  # steps in a unit of the schedule, whole

    def starting_at(self, time):
        """The clock of a schedule that begins at `time`; it stands at 0 before."""
        origin = self._step_at(time)
        return _Clock(ops.maximum(self.step, origin), origin, self.unit)

    def in_units_of(self, unit):
        return _Clock(self.step, self.origin, self.unit * unit)

    def now(self):
        return self.step - self.origin if self.unit == 1 else self.since(0)

    def since(self, time):
        """Units since `time`, which may be fractional; float32, 0 before it."""
        return ops.maximum(self._steps_since(time), 0) / float(self.unit)

    def reached(self, time):
        return self._steps_since(time) >= 0

    def latest(self, times):
        """Index of the last of the rising `times` reached, from 0; units since it."""
        begins = [self._step_at(time) for time in times]
        begins = ops.convert_to_tensor(begins, dtype=self.step.dtype)
        # (..., 1) >= (times,) -> (...): how many have been reached.
        reached = ops.expand_dims(self.step, -1) >= begins
        index = ops.sum(ops.cast(reached, "int32"), axis=-1) - 1
        since = ops.cast(self.step - ops.take(begins, index), "float32")
        return index, since / float(self.unit)

    def cycles(self, length, growth=1):
        """Number of whole cycles passed, and the part passed of the present one."""
        if growth == 1:
            steps, period = self.step - self.origin, length * self.unit
            whole = min(period, _LAST_STEP)
            cycle = ops.cast(ops.floor_divide(steps, whole), "float32")
            return cycle, ops.cast(ops.mod(steps, whole), "float32") / float(period)
        # length * (1 + growth + growth ** 2 + ...); 31 cycles outlast the counter.
        lengths = (length * growth**i for i in range(31))
        cycle, since = self.latest([0, *itertools.accumulate(lengths)])
        cycle = ops.cast(cycle, "float32")
        return cycle, since / (length * ops.power(float(growth), cycle))

    def _step_at(self, time):
        return min(self.origin + time * self.unit, _LAST_STEP)

    def _steps_since(self, time):
        begin = self._step_at(time)
        whole = math.ceil(begin)
        return ops.cast(self.step - whole, "float32") + (whole - begin)


def _clock(step):
    if isinstance(step, _Clock):
        return step
    step = ops.convert_to_tensor(step)
    whole = "int" in keras.backend.standardize_dtype(step.dtype)
    dtype = "int" if whole else keras.backend.result_type(step.dtype, "float32")
    return _Clock(ops.maximum(ops.cast(step, dtype), 0))


def _rate(schedule, clock):
    if isinstance(schedule, float):
        return ops.full_like(clock.since(0), schedule)
    if type(schedule).__module__ == __name__:
        return schedule(clock)  # those of this file read a clock, all others a number
    return ops.cast(schedule(clock.now()), "float32")


def _half_cosine(part):
    # (1 + cos(pi * part)) / 2 from 1 to 0, as a square: exact at the ends, never below.
    return ops.square(ops.sin((1 - part) * (math.pi / 2)))


def _positive_number(name, value, maximum=math.inf):
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    limits = np.finfo("float32")  # beyond them it would be 0 or infinite on the device
    maximum = min(maximum, float(limits.max))
    if not (is_number and float(limits.tiny) <= value <= maximum):
        most = ", at most 1" if maximum == 1 else ""
        raise ValueError(
            f"`{name}` must be a positive finite number{most}. "
            f"Received: {name}={value!r}"
        )
    return float(value)


def _fraction(name, value):
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (is_number and 0 <= value <= 1):
        raise ValueError(
            f"`{name}` must be a number from 0 to 1. Received: {name}={value!r}"
        )
    return float(value)


def _whole_number(name, value, minimum=1):
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not (is_whole and minimum <= value <= _LAST_STEP):
        raise ValueError(
            f"`{name}` must be a whole number, {minimum} or more and below 2 ** 31. "
            f"Received: {name}={value!r}"
        )
    return int(value)


def _one_of(name, value, options):
    if not isinstance(value, (str, bool, int, np.bool_)) or value not in options:
        raise ValueError(
            f"`{name}` must be one of {options}. Received: {name}={value!r}"
        )
    return options[options.index(value)]


def _schedule(name, value):
    if isinstance(value, keras.optimizers.schedules.LearningRateSchedule):
        return value
    if isinstance(value, numbers.Real):
        return _positive_number(name, value)
    raise ValueError(
        f"`{name}` must be a LearningRateSchedule, or a positive number for a constant "
        f"rate. Received: {name}={value!r}"
    )


def _boundaries(boundaries):
    boundaries = [
        _whole_number("boundaries", boundary, minimum=0)
        for boundary in _list("boundaries", boundaries)
    ]
    if any(a >= b for a, b in itertools.pairwise(boundaries)):
        raise ValueError(
            f"`boundaries` must increase. Received: boundaries={boundaries}"
        )
    return boundaries


def _list(name, values, length=None):
    entries = values.tolist() if isinstance(values, np.ndarray) else values
    if not isinstance(entries, (list, tuple)) or length not in (None, len(entries)):
        count = "" if length is None else f" of {length}, one more than the boundaries"
        raise ValueError(f"`{name}` must be a list{count}. Received: {name}={values}")
    return entries
