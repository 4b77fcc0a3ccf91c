"""See in History how often the gradient was clipped, and hear when it was too often.

Give `ClippingLogger` to `fit(callbacks=[...])` with an optimizer that counts what it
clips, such as `recipes.optimizers.ClippedOptimizer`; Keras's own optimizers (3.15) do
not. Use it wherever you clip: a bound that is never reached does nothing, and one that
is reached all the time sets the length of the steps in place of the learning rate.

It reads the optimizer once per epoch and nothing between batches. To see *which* layer
has the large gradients, look at the gradients of each layer instead.

```python
import keras
import numpy as np

from callbacks.clipping_logger import ClippingLogger
from recipes.optimizers import make_optimizer

rng = np.random.default_rng(42)
x = rng.normal(size=(64, 3))
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
model.compile(make_optimizer("sgd", 0.1, global_clipnorm=5.0), loss="mse")
logger = ClippingLogger()
history = model.fit(x, x[:, :1], epochs=3, verbose=0, callbacks=[logger])
print(history.history["gradient_norm"], history.history["clipped_fraction"])
print(logger.finding)  # None, as long as half of the updates are left alone
```

Reference: Godbole, Dahl, Gilmer, Shallue, Nado, "Deep Learning Tuning Playbook", 2023,
https://github.com/google-research/tuning_playbook
Revised: 0.2.0
"""

import numbers
import warnings

import keras


class ClippingLogger(keras.callbacks.Callback):
    """Write the gradient's norm and the share of clipped updates to the logs.

    At the end of each epoch, for History and the callbacks placed after this one:

        gradient_norm:     norm over all gradients in the epoch's last step, before
                           clipping
        clipped_fraction:  share, 0 to 1, of the epoch's updates that were clipped
        skipped_steps:     steps of the epoch that were left out as not finite

    When more than half of all updates of the run were clipped, `finding` says so, with
    the advice to lower the learning rate, and a warning repeats it at the end of
    training. Not where most updates are clipped by intent: with `adaptive`, which
    changes some unit in nearly every step, and with a `percentile` below 50.

    It takes any optimizer with the attributes `last_gradient_norm`, `clipped_fraction`
    and `skipped_steps` and the method `reset_clipped_fraction`, which it calls at the
    beginning of each epoch, also inside a `LossScaleOptimizer`; inside a
    `MultiOptimizer` there are several, which it refuses.

    Attributes:
        finding: `None`, or the sentence with the numbers and the advice.

    Raises:
        TypeError: The optimizer does not offer these names (at the start of training).

    Reference: Godbole, Dahl, Gilmer, Shallue, Nado, 2023,
        https://github.com/google-research/tuning_playbook
    """

    def __init__(self):
        super().__init__()
        self.finding = None
        self._state = {"clipped": 0, "updates": 0}
        self._restored = False

    def on_train_begin(self, logs=None):
        """Start afresh, unless a state was set; refuse an optimizer without counts."""
        _counting(self.model.optimizer)
        self.finding = None
        if not self._restored:
            self._state = {"clipped": 0, "updates": 0}
        self._restored = False

    def on_epoch_begin(self, epoch, logs=None):
        """Count from here on."""
        optimizer = _counting(self.model.optimizer)
        optimizer.reset_clipped_fraction()
        self._skipped_before = optimizer.skipped_steps
        self._updates_before = int(optimizer.iterations + 0)

    def on_epoch_end(self, epoch, logs=None):
        """Add the three to the logs, and judge the run so far."""
        optimizer = _counting(self.model.optimizer)
        fraction = optimizer.clipped_fraction
        if logs is not None:
            logs["gradient_norm"] = optimizer.last_gradient_norm
            logs["clipped_fraction"] = fraction
            logs["skipped_steps"] = optimizer.skipped_steps - self._skipped_before
        updates = int(optimizer.iterations + 0) - self._updates_before
        self._state["updates"] += updates
        self._state["clipped"] += round(fraction * updates)
        self.finding = None if _by_intent(optimizer) else _finding(**self._state)

    def on_train_end(self, logs=None):
        """Warn of the finding."""
        if self.finding is not None:
            warnings.warn(self.finding, stacklevel=2)

    def get_state(self) -> dict:
        """Return what a resumed run needs, as a dictionary that JSON can hold."""
        return dict(self._state)

    def set_state(self, state: dict):
        """Go on counting in the next fit where the run that gave `state` stopped."""
        if not (isinstance(state, dict) and state.keys() == self._state.keys()) or any(
            isinstance(value, bool)
            or not isinstance(value, numbers.Integral)
            or not 0 <= value <= state["updates"]
            for value in state.values()
        ):
            raise ValueError(
                "`state` must come from get_state(), with the keys clipped, updates. "
                f"Received: state={state!r}"
            )
        self._state = dict(state)
        self._restored = True


def _counting(optimizer):
    """Return the optimizer that counts: this one or one inside it."""
    names = ("last_gradient_norm", "clipped_fraction", "skipped_steps")
    names += ("reset_clipped_fraction",)
    outermost = optimizer
    while not all(hasattr(optimizer, name) for name in names):
        if not hasattr(optimizer, "inner_optimizer"):
            missing = [name for name in names if not hasattr(optimizer, name)]
            raise TypeError(
                "ClippingLogger needs an optimizer that counts what it clips, such as "
                f"a ClippedOptimizer. {type(outermost).__name__} lacks "
                f"{', '.join(missing)}."
            )
        optimizer = optimizer.inner_optimizer
    return optimizer


def _by_intent(optimizer):
    """Whether most updates are meant to be clipped."""
    percentile = getattr(optimizer, "percentile", None)
    is_adaptive = getattr(optimizer, "adaptive", None) is not None
    return is_adaptive or (percentile is not None and percentile < 50)


def _finding(clipped, updates):
    if clipped <= updates / 2:
        return None
    return (
        f"{clipped} of {updates} updates were clipped, more than half: the bound, not "
        "the learning rate, sets the length of most steps. Lower the learning rate, "
        "say to a half, or raise the bound if you have chosen it too low."
    )
