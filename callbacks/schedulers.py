"""Learning rates that follow the run, the momentum with them, and both in the logs.

Give one scheduler to `fit(callbacks=[...])` with an optimizer built with a float rate.
Use them where you count in epochs, want History to show the rate, cut the rate when
progress stalls, or move the momentum too. Not together: each overwrites what another
has set, and warns the first time it does (`PlateauScheduler(schedule=...)` is how a
formula and cuts combine). And not with an optimizer built with a
`LearningRateSchedule`, which sets its own rate; there `LearningRateLogger` shows it.

All write the last rate used in the epoch to `logs["learning_rate"]`, Keras's key, which
reaches History and the callbacks placed after them: a `CSVLogger` placed before them
does not see it. Where they count steps, a step is a batch, also with
`gradient_accumulation_steps`, as in Keras's schedules: an update takes the rate of its
last batch. With `steps_per_execution` above 1 no callback runs between the steps, so
those that set the rate before each step refuse it.

This file is longer than most because the schedulers share how positions are counted,
and how rates are refused, set, logged and resumed.

```python
import keras
import numpy as np

from callbacks.schedulers import PlateauScheduler, PowerScheduler

x = np.ones((64, 4))
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile(keras.optimizers.SGD(learning_rate=0.01), loss="mse")
power = PowerScheduler(0.01, decay_epochs=2, per="step")
history = model.fit(x, x[:, :1], epochs=3, verbose=0, callbacks=[power])
print(history.history["learning_rate"])

plateau = PlateauScheduler("loss", patience=2, schedule=power.rate_at)
model.fit(x, x[:, :1], epochs=3, verbose=0, callbacks=[plateau])
```

Reference: Senior, Heigold, Ranzato, Yang, "An Empirical Study of Learning Rates in Deep
Neural Networks for Speech Recognition", 2013,
https://doi.org/10.1109/ICASSP.2013.6638963
Revised: 0.2.0
"""

import bisect
import itertools
import math
import numbers
import sys
import warnings
from collections.abc import Callable

import keras
import numpy as np


class _Scheduler:
    """Mixin: where in the run a callback is, and what it has set there."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self._epoch = 0  # the epoch in training, or after its end the next one
        self._earlier_epochs = 0  # those of the run that a state was taken from
        self._restored = False
        self._own = {}  # what this callback has set in this fit, by name
        self._warned = False

    def get_state(self) -> dict:
        """Return what a resumed run needs, as a dictionary that JSON can hold."""
        return {"epoch": self._epoch}

    def set_state(self, state: dict):
        """Go on in the next fit where the run that gave `state` stopped.

        An `initial_epoch` given to that fit counts; without one, its first epoch is
        the one after the state's last.
        """
        _check_state(state, self.get_state())
        self._epoch = state["epoch"]
        self._restored = True

    def on_train_end(self, logs=None):
        """Let the next fit begin afresh, also after one that had no epoch left."""
        self._restored = False

    def _begin_fit(self, several=False):
        _refuse_unsettable(self.model.optimizer, self, several)
        self._earlier_epochs = 0
        self._own = {}
        self._warned = False
        if not self._restored:
            self._epoch = 0

    def _begin_epoch(self, epoch):
        if self._restored and epoch == 0:
            self._earlier_epochs = self._epoch
        self._restored = False
        self._epoch = self._earlier_epochs + epoch

    def _set(self, name, variable, value):
        held = float(keras.ops.convert_to_numpy(variable))
        own = self._own.get(name)
        if own is not None and held != own and not self._warned:
            warnings.warn(
                f"{type(self).__name__} had set the {name} to {own:g}, and something "
                f"else then set it to {held:g}. That is overwritten, now and from here "
                "on without a word: use only one of the two.",
                stacklevel=2,
            )
            self._warned = True
        variable.assign(value)
        # As it was rounded there, without reading it back in every step.
        self._own[name] = float(np.asarray(value, variable.dtype))


class _FormulaScheduler(_Scheduler, keras.callbacks.Callback):
    """What the schedulers by formula share; a subclass adds `rate_at(position)`.

    position = epoch, or with per="step" (epoch * steps + batch) / steps.
    """

    def __init__(self, per):
        super().__init__()
        if not isinstance(per, str) or per not in ("epoch", "step"):
            raise ValueError(f'`per` must be "epoch" or "step". Received: per={per!r}')
        self.per = per

    def on_train_begin(self, logs=None):
        self._begin_fit()
        if self.per == "step":
            _refuse_uncountable_steps(self)

    def on_epoch_begin(self, epoch, logs=None):
        self._begin_epoch(epoch)
        self._set_before(0)

    def on_train_batch_begin(self, batch, logs=None):
        if self.per == "step":
            self._set_before(batch)

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs.update(_last_rates(self.model.optimizer))
        self._epoch += 1

    def _set_before(self, batch):
        position = self._epoch
        if self.per == "step":
            steps = self.params["steps"]
            # Whole numbers until the division: 1 + 36 / 100 would miss 1.36 epochs.
            position = (position * steps + batch) / steps
        rate = self.model.optimizer.learning_rate
        self._set("learning rate", rate, self.rate_at(position))


class PowerScheduler(_FormulaScheduler):
    """Decay fast at first, then ever more slowly.

    For long runs whose length is not known beforehand. Not for a run that must end at
    a small rate; `ExponentialScheduler` gets there.

        rate(p) = eta0 / (1 + p / s) ** c

    p is the position in epochs, eta0 `initial_learning_rate`, s `decay_epochs`, c
    `power`. With c = 1 the rate is eta0 in epoch 0 and eta0/2 in epoch s.

    Example:
        >>> PowerScheduler(0.1, decay_epochs=10).rate_at(10)
        0.05

    Args:
        initial_learning_rate: Rate at position 0, positive; the optimizer's own rate
            is overwritten.
        decay_epochs: Epochs until 1 + p/s is two, positive, not necessarily whole.
        power: Exponent c, positive. 1 is the classic inverse-time decay.
        per: "epoch", one rate for the whole epoch, or "step", where p grows with every
            batch.

    Raises:
        ValueError: An argument is not a positive finite number, or `per` is neither.

    Reference: Herbert Robbins, Sutton Monro, "A Stochastic Approximation Method",
        1951, https://doi.org/10.1214/aoms/1177729586
    """

    def __init__(
        self,
        initial_learning_rate: float,
        *,
        decay_epochs: float,
        power: float = 1.0,
        per: str = "epoch",
    ):
        super().__init__(per)
        self.initial_learning_rate = _number(
            "initial_learning_rate", initial_learning_rate
        )
        self.decay_epochs = _number("decay_epochs", decay_epochs)
        self.power = _number("power", power)

    def rate_at(self, position: float) -> float:
        """Return the rate at a position in epochs."""
        decay = 1 + position / self.decay_epochs
        return self.initial_learning_rate / decay**self.power


class ExponentialScheduler(_FormulaScheduler):
    """Multiply the rate by `factor` every `decay_epochs` epochs.

    For a run of known length: choose `decay_epochs` so that the last epoch has the
    rate you want there. The first batch is trained at the initial rate, and the rate
    is computed from the position, not from the last rate, so it does not drift.

        rate(p) = eta0 * factor ** (p / s)

    p is the position in epochs, eta0 `initial_learning_rate`, s `decay_epochs`.

    Example:
        >>> round(ExponentialScheduler(0.1, decay_epochs=20).rate_at(20), 6)
        0.01

    Args:
        initial_learning_rate: Rate at position 0, positive; the optimizer's own rate
            is overwritten.
        decay_epochs: Epochs per factor, positive, not necessarily whole.
        factor: In (0, 1]. A tenth: `decay_epochs` is then the epochs per decade.
        per: "epoch", one rate for the whole epoch, or "step", where p grows with every
            batch.

    Raises:
        ValueError: An argument is not a positive finite number, `factor` > 1, or `per`
            is neither.
    """

    def __init__(
        self,
        initial_learning_rate: float,
        *,
        decay_epochs: float,
        factor: float = 0.1,
        per: str = "epoch",
    ):
        super().__init__(per)
        self.initial_learning_rate = _number(
            "initial_learning_rate", initial_learning_rate
        )
        self.decay_epochs = _number("decay_epochs", decay_epochs)
        self.factor = _number("factor", factor, maximum=1)

    def rate_at(self, position: float) -> float:
        """Return the rate at a position in epochs."""
        return self.initial_learning_rate * self.factor ** (
            position / self.decay_epochs
        )


class PiecewiseScheduler(_FormulaScheduler):
    """Hold one rate, then the next, as listed.

    For schedules found by hand or taken from a paper. Not where you would have to
    guess the boundaries: `PlateauScheduler` finds them while training.

    The rate is `values[i]` from epoch `boundaries_epochs[i - 1]` on and before epoch
    `boundaries_epochs[i]`: a new value begins at its boundary.

    Example:
        >>> scheduler = PiecewiseScheduler([5, 15], [0.01, 0.005, 0.001])
        >>> [scheduler.rate_at(epoch) for epoch in (4, 5, 14, 15)]
        [0.01, 0.005, 0.005, 0.001]

    Args:
        boundaries_epochs: Epochs at which the rate changes, 0 or more, increasing;
            with per="epoch" whole, with per="step" also fractions.
        values: The rates, positive, one more than there are boundaries.
        per: "epoch" or "step": whether the rate may change inside an epoch.

    Raises:
        ValueError: A value is not a positive finite number, boundaries do not increase
            or are not whole where they must, or the lengths do not fit.
    """

    def __init__(
        self,
        boundaries_epochs: list[float],
        values: list[float],
        *,
        per: str = "epoch",
    ):
        super().__init__(per)
        if not _is_list(boundaries_epochs):
            raise ValueError(
                "`boundaries_epochs` must be a list. "
                f"Received: boundaries_epochs={boundaries_epochs}"
            )
        self.boundaries_epochs = [
            _number("boundaries_epochs", boundary, zero=True, whole=per == "epoch")
            for boundary in boundaries_epochs
        ]
        if any(a >= b for a, b in itertools.pairwise(self.boundaries_epochs)):
            raise ValueError(
                "`boundaries_epochs` must increase. "
                f"Received: boundaries_epochs={boundaries_epochs}"
            )
        if not _is_list(values) or len(values) != len(boundaries_epochs) + 1:
            raise ValueError(
                f"`values` must hold {len(boundaries_epochs) + 1} rates, one more "
                f"than `boundaries_epochs`. Received: values={values}"
            )
        self.values = [_number("values", value) for value in values]

    def rate_at(self, position: float) -> float:
        """Return the rate at a position in epochs."""
        return self.values[bisect.bisect_right(self.boundaries_epochs, position)]


class OneCycleScheduler(_FormulaScheduler):
    """Raise the rate to its peak and lower it again, step by step; the momentum back.

    For a run of known length at a high peak rate, found with a range test: few epochs
    then do the work of many. Not for a run that may go on: beyond the schedule's end
    its last values hold. Before the run's step t, counted in batches from 0:

        learning_rate = schedule(t),  momentum = schedule.momentum(t)

    The momentum, with Adam and its kin `beta_1`, is in the logs as "momentum". Keras's
    optimizers (3.15) compile theirs into the step; `make_optimizer` keeps it in a
    variable. Without `cycle_momentum` the optimizer may be Keras's.

    Example:

    ```python
    import keras
    import numpy as np

    from callbacks.schedulers import OneCycleScheduler
    from recipes.optimizers import make_optimizer
    from recipes.schedules import OneCycle

    x = np.ones((64, 4))
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(make_optimizer("momentum"), loss="mse")
    one_cycle = OneCycleScheduler(OneCycle(0.1, total_steps=6))  # 3 epochs of 2
    history = model.fit(x, x[:, :1], epochs=3, verbose=0, callbacks=[one_cycle])
    print(history.history["learning_rate"], history.history["momentum"])
    ```

    Args:
        schedule: Function from the step to the rate, such as
            `recipes.schedules.OneCycle`, whose method `momentum` gives the momentum.
            One that takes arrays of steps, too, is called once for each epoch.
        cycle_momentum: Whether to set the momentum, too. If not, `schedule` needs no
            such method.

    Raises:
        ValueError: `schedule` is no such function, the optimizer's momentum cannot be
            changed (at the start of training), or `schedule` returns no rate, or no
            momentum of at least 0 and below 1.

    Reference: Leslie N. Smith, "A disciplined approach to neural network
        hyper-parameters: Part 1", 2018, https://arxiv.org/abs/1803.09820
    """

    def __init__(
        self, schedule: Callable[[int], float], *, cycle_momentum: bool = True
    ):
        super().__init__("step")
        if not isinstance(cycle_momentum, bool):
            raise ValueError(
                "`cycle_momentum` must be True or False. "
                f"Received: cycle_momentum={cycle_momentum!r}"
            )
        momentum = getattr(schedule, "momentum", None) if cycle_momentum else schedule
        if not (callable(schedule) and callable(momentum)):
            raise ValueError(
                "`schedule` must be a function from the step to the rate, and with "
                "`cycle_momentum` have a method `momentum`, such as OneCycle(...). "
                f"Received: schedule={schedule!r}"
            )
        self.schedule = schedule
        self.cycle_momentum = cycle_momentum

    def on_train_begin(self, logs=None):
        """Refuse an optimizer whose rate or momentum cannot be set."""
        super().on_train_begin(logs)
        if self.cycle_momentum and _momentum_of(self.model.optimizer) is None:
            raise ValueError(
                "OneCycleScheduler cycles the momentum, and this optimizer has none "
                "that can be changed while it trains. Make it with make_optimizer, as "
                'in make_optimizer("momentum"), or pass `cycle_momentum=False`. '
                f"Received: optimizer={type(_innermost(self.model.optimizer)).__name__}"
            )

    def on_epoch_begin(self, epoch, logs=None):
        """Set what the first step needs; compute what the others of the epoch do."""
        self._begin_epoch(epoch)
        self._first = self._epoch * self.params["steps"]
        steps = self._first + np.arange(self.params["steps"])
        self._rates = _for_all(self.schedule, steps)
        if self.cycle_momentum:
            self._momenta = _for_all(self.schedule.momentum, steps)
        self._set_before(0)

    def on_epoch_end(self, epoch, logs=None):
        """Log the rate and the momentum of the last step."""
        if logs is not None and self.cycle_momentum:
            momentum = _momentum_of(self.model.optimizer)
            logs["momentum"] = float(keras.ops.convert_to_numpy(momentum))
        super().on_epoch_end(epoch, logs)

    def _set_before(self, batch):
        step = self._first + batch
        rate = _result(f"schedule({step})", self._rates(step))
        self._set("learning rate", self.model.optimizer.learning_rate, rate)
        if self.cycle_momentum:
            name = f"schedule.momentum({step})"
            momentum = _result(name, self._momenta(step), below=1)
            self._set("momentum", _momentum_of(self.model.optimizer), momentum)


class PlateauScheduler(_Scheduler, keras.callbacks.ReduceLROnPlateau):
    """Cut the rate when the monitored quantity has stopped improving.

    For runs whose good boundaries nobody knows. Keras's `ReduceLROnPlateau` counts,
    and what it lacks (3.15) is added: a formula and cuts combine, an epoch whose
    monitored value is NaN or infinite neither improves, nor counts, nor cuts, a
    mistyped `monitor` or an optimizer built with a schedule is refused at once, and
    the counters can be saved. It wants the monitored value in every epoch, so leave
    `validation_freq` at 1.

        rate(p) = max(min_lr, schedule(p) * factor ** n)

    p is the epoch, n the number of cuts so far. Without `schedule` the rate is the
    optimizer's, touched at cuts only, and a second fit starts from what it has become;
    with one, from the schedule.

    Example:

    ```python
    import keras
    import numpy as np

    from callbacks.schedulers import PlateauScheduler

    x = np.ones((64, 4))
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(learning_rate=0.01), loss="mse")
    plateau = PlateauScheduler("loss", factor=0.5, patience=5)
    model.fit(x, x[:, :1], epochs=2, verbose=0, callbacks=[plateau])
    ```

    Args:
        monitor: Name of the quantity, as in the logs.
        factor: What a cut multiplies the rate by, between 0 and 1.
        patience: Epochs without improvement before a cut, 0 or more.
        verbose: 1 prints a line at each cut.
        mode: "min", "max", or "auto" to tell from the name.
        min_delta: Change that counts as improvement, 0 or more.
        cooldown: Epochs after a cut in which none are counted, 0 or more.
        min_lr: The lowest rate, 0 or more.
        schedule: Function from the epoch to the rate before cuts, such as the
            `rate_at` of another scheduler of this file.

    Raises:
        ValueError: An argument is out of its range, at the first epoch's end `monitor`
            is not in the logs, or `schedule` returns no finite number, 0 or more.
        TypeError: At the start of training, the optimizer's rate is not settable.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        *,
        patience: int = 10,
        verbose: int = 0,
        mode: str = "auto",
        min_delta: float = 1e-4,
        cooldown: int = 0,
        min_lr: float = 0.0,
        schedule: Callable[[int], float] | None = None,
    ):
        if not isinstance(monitor, str):
            raise ValueError(f"`monitor` must be a name. Received: monitor={monitor!r}")
        if not isinstance(mode, str) or mode not in ("auto", "min", "max"):
            raise ValueError(
                f'`mode` must be "auto", "min" or "max". Received: mode={mode!r}'
            )
        if schedule is not None and not callable(schedule):
            raise ValueError(
                "`schedule` must be a function from the epoch to the rate, "
                "such as PowerScheduler(...).rate_at. "
                f"Received: schedule={schedule!r}"
            )
        super().__init__(
            monitor=monitor,
            factor=_number("factor", factor, below=1),
            patience=_number("patience", patience, zero=True, whole=True),
            verbose=verbose,
            mode=mode,
            min_delta=_number("min_delta", min_delta, zero=True),
            cooldown=_number("cooldown", cooldown, zero=True, whole=True),
            min_lr=_number("min_lr", min_lr, zero=True),
        )
        self.schedule = schedule
        self.multiplier = 1.0
        self._rates = {}

    def on_train_begin(self, logs=None):
        """Start afresh, unless a state was set."""
        self._begin_fit(several=self.schedule is None)
        if not self._restored:
            super().on_train_begin(logs)
            self.multiplier = 1.0
            self._rates = {}

    def on_epoch_begin(self, epoch, logs=None):
        """Set the schedule's rate times the cuts."""
        if self._restored:
            for key, optimizer in _optimizers(self.model.optimizer).items():
                if key in self._rates:
                    optimizer.learning_rate = self._rates[key]
        self._begin_epoch(epoch)
        if self.schedule is not None:
            name = f"schedule({self._epoch})"
            rate = _result(name, self.schedule(self._epoch)) * self.multiplier
            variable = self.model.optimizer.learning_rate
            self._set("learning rate", variable, max(rate, self.min_lr))

    def on_epoch_end(self, epoch, logs=None):
        """Log the rate used, then let Keras count and cut."""
        logs = {} if logs is None else logs
        if self.monitor not in logs:
            raise ValueError(
                "`monitor` must name a value that is in the logs of every "
                f"epoch: {', '.join(logs)}. Received: monitor={self.monitor!r}"
            )
        used = _last_rates(self.model.optimizer)
        logs.update(used)
        if math.isfinite(logs[self.monitor]):
            super().on_epoch_end(epoch, logs)
        self._rates = _last_rates(self.model.optimizer)
        if self._rates != used:
            self.multiplier *= self.factor
            self._own = {}  # the cut is not somebody else's
        self._epoch += 1

    def get_state(self) -> dict:
        """Return what a resumed run needs, as a dictionary that JSON can hold."""
        return {
            **super().get_state(),
            "best": None if self.best is None else float(self.best),
            "wait": self.wait,
            "cooldown_counter": self.cooldown_counter,
            "multiplier": self.multiplier,
            "rates": dict(self._rates),
        }

    def set_state(self, state: dict):
        """Go on in the next fit where the run that gave `state` stopped."""
        super().set_state(state)
        self.best = state["best"]
        self.wait = state["wait"]
        self.cooldown_counter = state["cooldown_counter"]
        self.multiplier = state["multiplier"]
        self._rates = dict(state["rates"])


class LearningRateLogger(keras.callbacks.Callback):
    """Write the rate of the epoch's last update to the logs.

    For an optimizer built with a schedule, whose rate Keras (3.15) does not log. The
    schedulers above, and Keras's, log theirs by themselves; a rate that an earlier
    callback has logged is left as it is. Place it before callbacks that change the
    rate at the end of an epoch without logging it. It reads nothing between batches.

    A `MultiOptimizer` is logged as `learning_rate_<name>` for each of its optimizers,
    as Keras does.

    Example:

    ```python
    import keras
    import numpy as np

    from callbacks.schedulers import LearningRateLogger

    x = np.ones((64, 4))
    rate = keras.optimizers.schedules.CosineDecay(0.1, decay_steps=4)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(learning_rate=rate), loss="mse")
    history = model.fit(
        x, x[:, :1], epochs=2, verbose=0, callbacks=[LearningRateLogger()]
    )
    print(history.history["learning_rate"])
    ```
    """

    def on_epoch_end(self, epoch, logs=None):
        """Add the rates to the logs."""
        if logs is not None:
            for key, rate in _last_rates(self.model.optimizer).items():
                logs.setdefault(key, rate)


def _optimizers(optimizer):
    """Return {key in the logs: optimizer}, with the keys of Keras's callbacks."""
    if hasattr(optimizer, "optimizers"):
        return {f"learning_rate_{each.name}": each for each in optimizer.optimizers}
    return {"learning_rate": optimizer}


def _innermost(optimizer):
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer


def _momentum_of(optimizer):
    """Return the variable of the momentum; None if it is compiled into the step."""
    optimizer = _innermost(optimizer)
    held = (getattr(optimizer, name, None) for name in ("momentum", "beta_1"))
    return next((each for each in held if isinstance(each, keras.Variable)), None)


def _last_rates(optimizer):
    """Return {key in the logs: rate of the last update}."""
    rates = {}
    for key, each in _optimizers(optimizer).items():
        each = _innermost(each)
        # A schedule is evaluated at the counter of batches, one ahead after a step, and
        # an update is made at the last batch of every few. In the scope the counter is
        # what it was at the last update; the optimizer itself is not changed.
        every = each.gradient_accumulation_steps or 1
        at_update = [
            (counter, keras.ops.maximum(counter.value // every * every - 1, 0))
            for counter in each.variables
            if counter.name == "iteration"
        ]
        with keras.StatelessScope(state_mapping=at_update):
            rates[key] = float(keras.ops.convert_to_numpy(each.learning_rate))
    return rates


def _refuse_unsettable(optimizer, callback, several):
    kind = type(callback).__name__
    if hasattr(optimizer, "optimizers") and not several:
        raise TypeError(
            f"{kind} sets one learning rate, but a MultiOptimizer has several. Give "
            "each of its optimizers a LearningRateSchedule."
        )
    for each in _optimizers(optimizer).values():
        if not isinstance(each.learning_rate, keras.Variable):
            raise TypeError(
                f"{kind} sets the learning rate, but the optimizer was built with a "
                "LearningRateSchedule or a function, which sets it too. Build it with "
                "a number, such as SGD(learning_rate=0.01), or keep the schedule and "
                "use LearningRateLogger to see it."
            )


def _refuse_uncountable_steps(callback):
    kind = type(callback).__name__
    if callback.params["steps"] is None:
        raise ValueError(
            f"{kind} counts steps, and the data does not tell how many an epoch has. "
            "Pass `steps_per_epoch` to fit(). Received: steps_per_epoch=None"
        )
    steps = callback.model.steps_per_execution
    if steps > 1:
        raise ValueError(
            f"{kind} sets the rate before each step, and with `steps_per_execution` "
            "above 1 several run between two of its calls. Compile with 1, or give "
            "the optimizer a LearningRateSchedule instead. "
            f"Received: steps_per_execution={steps}"
        )


def _check_state(state, own):
    """Refuse a state that has not the form of `own`, the callback's present one."""
    fine = isinstance(state, dict) and state.keys() == own.keys()
    for key, value in state.items() if fine else ():
        if key == "rates":
            fine &= isinstance(value, dict) and all(map(_is_number, value.values()))
        elif key == "best":
            fine &= value is None or _is_number(value)
        else:
            whole = key != "multiplier"
            fine &= _is_number(value) and 0 <= value and not (whole and value % 1)
    if not fine:
        raise ValueError(
            f"`state` must come from get_state(), with the keys {', '.join(own)}. "
            f"Received: state={state!r}"
        )


def _for_all(function, steps):
    """Return `function`, with its values at `steps` looked up if it takes an array.

    Called for one step after another, a schedule made of tensor operations costs
    milliseconds.
    """
    try:
        values = keras.ops.convert_to_numpy(function(steps))
    except Exception:  # whatever a function of one number says to many
        return function
    if values.shape != steps.shape:
        return function
    return dict(zip(steps.tolist(), values.tolist(), strict=True)).__getitem__


def _result(name, value, below=math.inf):
    """Return what a schedule has returned, perhaps a tensor, as a number."""
    if getattr(value, "shape", None) == ():
        value = keras.ops.convert_to_numpy(value).item()
    return _number(name, value, zero=True, below=below)


def _is_number(value):
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if isinstance(value, np.generic):
        value = value.item()  # float32 would be compared in float32, and warn
    return is_number and abs(value) <= sys.float_info.max  # false for NaN


def _is_list(value):
    return isinstance(value, (list, tuple, np.ndarray)) and np.ndim(value) > 0


def _number(name, value, *, zero=False, whole=False, maximum=math.inf, below=math.inf):
    """Return `value`, a positive number or also zero, as a Python number."""
    if (
        not (_is_number(value) and (0 <= value if zero else 0 < value))
        or not (value <= maximum and value < below)
        or (whole and value != int(value))
    ):
        kind = "whole number" if whole else "finite number"
        least = "0 or more" if zero else "positive"
        most = f", at most {maximum}" if maximum < math.inf else ""
        most += f", below {below}" if below < math.inf else ""
        raise ValueError(
            f"`{name}` must be a {kind}, {least}{most}. Received: {name}={value!r}"
        )
    return int(value) if whole else float(value)
