"""Undo the step that makes the loss or a weight NaN or infinite, and train on.

One bad batch, or a rate too high for one step, turns weights into NaN, and all that
follows is lost: Keras's `TerminateOnNaN` (3.15) looks only at the loss, after the
update, and restores nothing; `ModelCheckpoint` and `BackupAndRestore` then write the
NaN. With this guard the weights are finite after each of its calls, whatever a step has
done.

It costs a copy of the training state on the device, and in each step a pass over it to
look and one to copy. That does not grow with the batch, so it is felt where steps are
small: with Adam, 266,000 weights and batches of 32 on two CPU cores, a step took 4.3 ms
instead of 2.2 on TensorFlow, and 2.4 instead of 1.1 on JAX; with `every_steps=10`, 3.9
and 1.6.

Not a cure for a run that diverges at every rate, which it ends. Where only a gradient
is bad, now and then, `ClippedOptimizer(skip_nonfinite=True)` keeps the step out at less
cost; the two go together, and the counters of what is undone are undone, too.

This file is longer than most: what it cannot protect it must find and refuse.

```python
import keras
import numpy as np

from callbacks.nonfinite_guard import NonFiniteGuard

x = np.ones((64, 4))
x[40] = np.nan  # one bad row
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile(keras.optimizers.Adam(), loss="mse")
guard = NonFiniteGuard("skip")
callbacks = [guard, keras.callbacks.ModelCheckpoint("model.keras")]  # in this order
model.fit(x, np.ones((64, 1)), batch_size=8, verbose=0, callbacks=callbacks)
print(guard.to_frame())
```

Reference: Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways", 2022,
section 5.1, https://arxiv.org/abs/2204.02311
Revised: 0.2.0
"""

import gc
import math
import numbers
import threading

import keras
import numpy as np

_KEEPERS = (
    keras.callbacks.BackupAndRestore,
    keras.callbacks.EarlyStopping,
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.OrbaxCheckpoint,
    keras.callbacks.SwapEMAWeights,
)


class NonFiniteGuard(keras.callbacks.Callback):
    """Roll back to the last good state when a step ends in NaN or infinity.

    For long unattended runs, mixed precision, and data that nobody has checked. Bad is
    a step after which the logged loss, a weight, a statistic or a slot of the optimizer
    is not finite. The loss alone comes too late: TensorFlow's ReLU makes 0 of NaN, so a
    batch of NaN has a finite loss; and where a squared gradient overflows, Adam's slot
    is infinite and its weights are NaN only one step later.

    The state is that before the step: weights, statistics of normalization, seeds of
    dropout, optimizer slots and steps, metrics. So the loss in History is the mean over
    the steps that were kept, NaN if an epoch has none, and with "skip" the run is, to
    the bit, the one without the bad batches. What callbacks set meanwhile stays as it
    is: learning rate and momentum. With `steps_per_execution` above 1 all steps of one
    execution are undone together.

    Place it before the callbacks that write or keep weights; behind one of Keras's it
    is refused at the start of training. The model must be built before. A scheduler
    that sets the rate by a formula overwrites the lowered rate: combine it with "skip".

    Example:

    ```python
    import keras
    import numpy as np

    from callbacks.nonfinite_guard import NonFiniteGuard

    x = np.linspace(-9, 9, 64)[:, None]
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(1e30), loss="mse")  # far too high
    guard = NonFiniteGuard("rollback", factor=1e-11, patience=5, verbose=0)
    model.fit(x, x, epochs=4, verbose=0, callbacks=[guard])
    print(guard.to_frame()["learning_rate"].tolist())  # what it was lowered to
    ```

    Args:
        policy: What to do once the state is restored. "rollback": multiply the learning
            rate by `factor` and go on with the next batch, for steps that were too
            long. "skip": go on at the same rate, for bad data. "stop": end training.
        factor: In (0, 1), of "rollback". A half, as after a divergence by hand; each
            bad step lowers the rate again, and nothing raises it.
        patience: Bad steps in a row, at least 1, at the last of which training ends
            under any policy. Three show that it is not the batch.
        every_steps: Steps from one copy of the state to the next, at least 1. With more
            a step costs less, and the good steps since the last copy are lost, too.
            The first step of an epoch always makes one.
        verbose: 1 prints a line for each bad step, 0 none.

    Attributes:
        events: List of what happened in the last `fit`, a dictionary for each bad step:
            "epoch" and "step" in it, from 0, "loss" as logged, "variable", the path of
            the first that was not finite or "", "learning_rate" from then on, NaN if it
            is a schedule's, and "action".

    Raises:
        ValueError: An argument is none of these. At the start of training: a callback
            stands before that must stand behind, `callbacks` is not a list (on JAX and
            PyTorch, where Keras 3.15 runs a lone callback beside the training), the
            model is not built, its weights are not finite already, or "rollback" cannot
            set the rate because it is a schedule's.
    """

    def __init__(
        self,
        policy: str = "rollback",
        *,
        factor: float = 0.5,
        patience: int = 3,
        every_steps: int = 1,
        verbose: int = 1,
    ):
        super().__init__()
        if not isinstance(policy, str) or policy not in ("rollback", "skip", "stop"):
            raise ValueError(
                '`policy` must be "rollback", "skip" or "stop". '
                f"Received: policy={policy!r}"
            )
        if not isinstance(factor, numbers.Real) or not 0 < factor < 1:
            raise ValueError(
                "`factor` must be a number between 0 and 1. "
                f"Received: factor={factor!r}"
            )
        if not isinstance(verbose, int) or verbose not in (0, 1):
            raise ValueError(f"`verbose` must be 0 or 1. Received: verbose={verbose!r}")
        self.policy = policy
        self.factor = float(factor)
        self.patience = _positive_integer("patience", patience)
        self.every_steps = _positive_integer("every_steps", every_steps)
        self.verbose = verbose
        self.events = []
        self._in_a_row = 0
        self._restored = False

    def on_train_begin(self, logs=None):
        """Refuse what the guard cannot protect; build the optimizer's slots."""
        model = self.model
        self._refuse_keepers_before()
        if not model.built:
            raise ValueError(
                "NonFiniteGuard needs a state to go back to, so the model must be "
                "built before fit(): give it a keras.Input, or call it on a batch. "
                f"Received: model={model}"
            )
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        if self.policy == "rollback" and not _settable_rates(model.optimizer):
            raise ValueError(
                'The policy "rollback" lowers the learning rate, but the optimizer was '
                "built with a LearningRateSchedule or a function, which sets it. Build "
                'it with a number, or choose "skip". Received: policy="rollback"'
            )
        if not self._restored:
            self.events = []
            self._in_a_row = 0
        self._restored = False
        self._thread = threading.get_ident()
        # One call in each step instead of one for each variable.
        self._copies_of = _compiled(_copies_of)
        self._sum_of_all = _compiled(_sum_of_all)

    def on_epoch_begin(self, epoch, logs=None):
        """Look at the weights that the epoch begins with."""
        self._epoch, self._step = epoch, 0
        self._copies, self._num_kept = None, 0
        broken = self._first_nonfinite()
        if broken:
            raise ValueError(
                "The weights are not finite before the first step, so there is no good "
                f"state to go back to. Received: {broken} at the begin of epoch {epoch}"
            )

    def on_train_batch_begin(self, batch, logs=None):
        """Copy the state, every so often."""
        if self._copies is None or batch >= self._next_copy:
            state = _state(self.model)
            copies = self._copies_of([variable.value for variable in state])
            self._copies = list(zip(state, copies, strict=True))
            self._num_kept_in_copy = self._num_kept
            self._next_copy = batch + self.every_steps

    def on_train_batch_end(self, batch, logs=None):
        """Keep the step, or undo it."""
        if threading.get_ident() != self._thread:
            raise ValueError(
                "`callbacks` must be a list, such as fit(callbacks=[guard]): Keras "
                "runs a lone callback beside the training, where it comes too late. "
                f"Received: callbacks={type(self).__name__}(...)"
            )
        self._step = batch
        loss = (logs or {}).get("loss", 0.0)
        broken = self._first_nonfinite()
        if broken or not math.isfinite(loss):
            self._roll_back(loss, broken)
        else:
            self._in_a_row = 0
            self._num_kept += 1

    def on_epoch_end(self, epoch, logs=None):
        """Look once more, and leave no mean over nothing in the logs."""
        broken = self._first_nonfinite()
        if broken:  # by a callback that stands behind
            self._roll_back(math.nan, broken)
        if self._num_kept == 0:
            for name in self.model.get_metrics_result():
                if name in logs:
                    logs[name] = math.nan

    def on_train_end(self, logs=None):
        """Free the copy."""
        self._copies = None

    def get_state(self) -> dict:
        """Return what a resumed run needs, as a dictionary that JSON can hold."""
        return {"events": list(self.events), "in_a_row": self._in_a_row}

    def set_state(self, state: dict):
        """Go on in the next fit where the run that gave `state` stopped."""
        if not isinstance(state, dict) or state.keys() != {"events", "in_a_row"}:
            raise ValueError(
                "`state` must come from get_state(), with the keys events, in_a_row. "
                f"Received: state={state!r}"
            )
        self.events = list(state["events"])
        self._in_a_row = state["in_a_row"]
        self._restored = True

    def to_frame(self):
        """Return a DataFrame with a row for each bad step of the last `fit`."""
        import pandas

        columns = ["epoch", "step", "loss", "variable", "learning_rate", "action"]
        return pandas.DataFrame(self.events, columns=columns)

    def _first_nonfinite(self):
        """Return the path of the first variable with NaN or infinity, or ""."""
        model = self.model
        variables = model.trainable_variables + model.non_trainable_variables
        for optimizer in _optimizers_inside(model.optimizer):
            variables = variables + optimizer.variables
        variables = [v for v in variables if keras.backend.is_float_dtype(v.dtype)]
        if _is_finite(self._sum_of_all([v.value for v in variables])):
            return ""
        return next((v.path for v in variables if not _is_finite(v)), "")

    def _roll_back(self, loss, broken):
        model = self.model
        kept_as_they_are = {id(v) for v in _set_by_callbacks(model.optimizer)}
        model.reset_metrics()  # also those that the first step has made
        for variable, value in self._copies:
            if id(variable) not in kept_as_they_are:
                # Again a copy: JAX gives the next step the buffer itself to overwrite.
                variable.assign(keras.ops.copy(value))
        self._num_kept = self._num_kept_in_copy

        rates = _settable_rates(model.optimizer)
        self._in_a_row += 1
        action = "skipped"
        if self.policy == "stop" or self._in_a_row >= self.patience:
            model.stop_training = True
            action = "stopped"
        elif self.policy == "rollback":
            for rate in rates:
                rate.assign(rate * self.factor)
            action = "rate lowered"
        event = {
            "epoch": self._epoch,
            "step": self._step,
            "loss": loss,
            "variable": broken,
            "learning_rate": float(rates[0]) if rates else math.nan,
            "action": action,
        }
        self.events.append(event)
        if self.verbose:
            print(
                f"\nNonFiniteGuard: epoch {self._epoch}, step {self._step}: loss {loss}"
                f"{', ' + broken + ' not finite' if broken else ''}; rolled back, "
                f"{action}, learning rate {event['learning_rate']:g}"
            )

    def _refuse_keepers_before(self):
        # A callback is not handed its siblings. Their list belongs to whatever else
        # holds the very dictionary of parameters that Keras gave to this one.
        for owner in gc.get_referrers(self.params):
            fields = getattr(owner, "__dict__", owner)
            siblings = fields.get("callbacks") if isinstance(fields, dict) else None
            if not (isinstance(siblings, list) and self in siblings):
                continue
            for sibling in siblings[: siblings.index(self)]:
                if isinstance(sibling, _KEEPERS):
                    name = type(sibling).__name__
                    raise ValueError(
                        f"`callbacks` must have NonFiniteGuard before {name}, which "
                        "would write or keep weights that the guard has not yet seen. "
                        f"Received: callbacks=[..., {name}, ..., NonFiniteGuard]"
                    )


def _state(model):
    """Return all that a step changes."""
    state = model.trainable_variables + model.non_trainable_variables
    return state + model.optimizer.variables + model.metrics_variables


def _copies_of(values):
    return [keras.ops.copy(value) for value in values]


def _sum_of_all(values):
    # One number to fetch: not finite if a value is not, or if the sum overflows.
    return sum(keras.ops.sum(keras.ops.cast(value, "float32")) for value in values)


def _compiled(function):
    """Return the function, compiled where the backend does so."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function, autograph=False)
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    return function


def _is_finite(x):
    return bool(np.all(np.isfinite(keras.ops.convert_to_numpy(x))))


def _optimizers_inside(optimizer):
    """Return those that hold slots and rates: not the wrappers, with their counters."""
    found = []
    for each in getattr(optimizer, "optimizers", [optimizer]):
        while hasattr(each, "inner_optimizer"):
            each = each.inner_optimizer
        found.append(each)
    return found


def _settable_rates(optimizer):
    rates = [each.learning_rate for each in _optimizers_inside(optimizer)]
    return [rate for rate in rates if isinstance(rate, keras.Variable)]


def _set_by_callbacks(optimizer):
    """Return the variables that callbacks set while training: rates and momenta."""
    momenta = [
        getattr(each, name, None)
        for each in _optimizers_inside(optimizer)
        for name in ("momentum", "beta_1")
    ]
    return _settable_rates(optimizer) + [
        m for m in momenta if isinstance(m, keras.Variable)
    ]


def _positive_integer(name, value):
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(
            f"`{name}` must be an integer, at least 1. Received: {name}={value!r}"
        )
    return int(value)
