"""Stop training when the training loss has converged, and not before.

Give `StopWhenConverged` to `fit(callbacks=[...])` where you train to the end: to
compare optimizers or depths by the training loss they reach, or to fit a small model.
Keras's `EarlyStopping` (3.15) waits for `patience` epochs without a new best value,
which noise may bring or withhold. This one stops when it is shown that the loss no
longer changes; the noisier the loss, the more epochs it wants to see.

Not against overfitting: the training loss goes on falling there, and `EarlyStopping` on
the validation loss is right. Nor with a learning rate that decays to nothing, where any
loss settles, and not where a plateau may be left again: one that lasts looks the same.

```python
import keras
import numpy as np

from callbacks.convergence import StopWhenConverged

x = np.random.default_rng(42).normal(size=(64, 3))
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
model.compile(keras.optimizers.SGD(0.3), loss="mse")
stop = StopWhenConverged(min_delta=0.001, patience=5)
model.fit(x, x[:, :1], batch_size=64, epochs=60, verbose=0, callbacks=[stop])
print(stop.stopped_epoch, stop.finding)
```

Reference: Schuirmann, "A Comparison of the Two One-Sided Tests Procedure and the Power
Approach for Assessing the Equivalence of Average Bioavailability", 1987,
https://doi.org/10.1007/BF01068419
Revised: 0.2.0
"""

import math
import numbers

import keras
import numpy as np


class StopWhenConverged(keras.callbacks.Callback):
    """Stop when the training loss is shown to change by less than `min_delta`.

    After each epoch a line is laid by least squares through the losses l_t of the last
    m epochs, t = 1 ... m, with m = `patience`, twice that, four times that and so on.
    With the line's slope b and its standard error s,

        b = sum_t (t - (m + 1) / 2) l_t / q,  q = sum_t (t - (m + 1) / 2) ** 2,
        s = sqrt(sum_t r_t ** 2 / (m - 2) / q),  r_t the residuals,

    the loss has converged if for one of the m

        patience * (|b| + 2 s) < min_delta.

    This is a test of equivalence (Schuirmann 1987): not that no change is seen, which
    is soon so in noise, but that a change of `min_delta` would be. Two standard errors
    are 95% on each side from m = 7 on. A loss that rises is not converged.

    Without noise `patience` epochs are enough. With noise of deviation d from epoch to
    epoch, 4 s is below `min_delta` / patience from m = (200 (patience d / min_delta)
    ** 2) ** (1/3) on, and few runs go on beyond the next m that is looked at.

    An epoch whose loss is NaN or infinite ends what was seen: the count begins behind
    it. A second `fit` starts afresh.

    Example:

    ```python
    import keras
    import numpy as np

    from callbacks.convergence import StopWhenConverged

    x = np.ones((32, 2))
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1), loss="mse")
    stop = StopWhenConverged(1e-4, patience=4)
    model.fit(x, x[:, :1], epochs=50, verbose=0, callbacks=[stop])
    ```

    Args:
        min_delta: Change of the training loss over `patience` epochs that is not worth
            training for, above 0, in units of the loss, which is why it has no default.
            0.01 is little for a cross-entropy.
        patience: Epochs, at least 3, in which a change of `min_delta` would have to
            show. 10: long enough to average noise, short against most runs.

    Attributes:
        stopped_epoch: The epoch, from 0, at whose end training was stopped, `None` as
            long as it was not.
        finding: `None`, or a sentence with the numbers that stopped it.

    Raises:
        ValueError: An argument is out of its range; at the end of an epoch, the logs
            have no loss.

    Reference: Schuirmann, 1987, https://doi.org/10.1007/BF01068419
    """

    def __init__(self, min_delta: float, patience: int = 10):
        super().__init__()
        if not _is_finite_number(min_delta) or min_delta <= 0:
            raise ValueError(
                "`min_delta` must be a finite number above 0. "
                f"Received: min_delta={min_delta!r}"
            )
        is_whole = isinstance(patience, numbers.Integral)
        if not is_whole or isinstance(patience, bool) or patience < 3:
            raise ValueError(
                "`patience` must be an integer, at least 3, so that a line through as "
                f"many epochs has an error. Received: patience={patience!r}"
            )
        self.min_delta = float(min_delta)
        self.patience = int(patience)
        self.stopped_epoch = self.finding = None
        self._losses = []
        self._restored = False

    def on_train_begin(self, logs=None):
        """Start afresh, unless a state was set."""
        self.stopped_epoch = self.finding = None
        if not self._restored:
            self._losses = []
        self._restored = False

    def on_epoch_end(self, epoch, logs=None):
        """Look at the loss, and stop if it has converged."""
        logs = logs or {}
        if "loss" not in logs:
            raise ValueError(
                '`logs` of every epoch must have the training loss as "loss". '
                f"Received: logs with {', '.join(logs) or 'nothing'}"
            )
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            self._losses = []
            return
        self._losses.append(loss)
        num_epochs = self.patience
        while num_epochs <= len(self._losses):
            slope, error = _line(self._losses[-num_epochs:])
            change, margin = self.patience * slope, self.patience * 2 * error
            if abs(change) + margin < self.min_delta:
                self.model.stop_training = True
                self.stopped_epoch = epoch
                self.finding = (
                    f"The training loss has converged at epoch {epoch}: over the last "
                    f"{num_epochs} epochs it changed by {change:.2g} +- {margin:.2g} "
                    f"in {self.patience} epochs, less than {self.min_delta:g}."
                )
                return
            num_epochs *= 2

    def get_state(self) -> dict:
        """Return what a resumed run needs, as a dictionary that JSON can hold."""
        return {"losses": list(self._losses)}

    def set_state(self, state: dict):
        """Go on in the next fit where the run that gave `state` stopped."""
        if (
            not (isinstance(state, dict) and state.keys() == {"losses"})
            or not isinstance(state["losses"], list)
            or not all(map(_is_finite_number, state["losses"]))
        ):
            raise ValueError(
                "`state` must come from get_state(), with the losses. "
                f"Received: state={state!r}"
            )
        self._losses = [float(loss) for loss in state["losses"]]
        self._restored = True


def _line(losses):
    """Return the slope of the least-squares line, and its standard error."""
    times = np.arange(len(losses)) - (len(losses) - 1) / 2
    squares = np.sum(times**2)
    slope = np.sum(times * losses) / squares
    residuals = losses - np.mean(losses) - slope * times
    return slope, math.sqrt(np.sum(residuals**2) / (len(losses) - 2) / squares)


def _is_finite_number(value):
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return is_number and -math.inf < value < math.inf  # false for NaN
