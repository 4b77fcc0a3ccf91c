"""See layer by layer whether gradients vanish, units die or saturate, while training.

Give `GradientMonitor` and `ActivationMonitor` to `fit(callbacks=[...])` when a network
does not learn, or learns slowly, and the loss does not say where. Both read the model
on a probe, a fixed batch of your choice, before the first epoch and at the end of each:
the first says how strong the gradient is in every layer and how far the weights move,
the second what every layer gives to the next. They change nothing: weights, statistics,
seeds, optimizer, metrics and History are, to the bit, those of a run without them.

In the probe dropout and everything else that is random is off, so that two readings
differ only in the weights. `BatchNormalization` standardizes by the probe's own mean
and variance, as it does in training: by its moving statistics, which begin at 0 and 1,
a deep normalized network would seem to vanish before the first epoch. One that is
frozen by `trainable=False` uses its moving statistics, as it does in training.

A reading costs about a training step on the probe, and the first one of a `fit` one to
three seconds for compilation. Take a probe like a training batch, some 32 to 512 rows:
with fewer, a unit counts as dead that is only rare; with more, each epoch is longer.
They look only at the end of epochs: a gradient that explodes within one is for a logger
of norms in the optimizer. Of your own code, `call` and `compute_loss` are seen, not
`train_step`.

This file is longer than most: two monitors share the probe, the state and the picture.

```python
import keras
import numpy as np

from callbacks.monitors import ActivationMonitor, GradientMonitor

rng = np.random.default_rng(42)
x = rng.normal(size=(64, 8))
y = x[:, :1] > 0
model = keras.Sequential([keras.Input((8,))])
for _ in range(4):
    model.add(keras.layers.Dense(8, activation="sigmoid"))
model.add(keras.layers.Dense(1, activation="sigmoid"))
model.compile("adam", loss="binary_crossentropy")
gradients, activations = GradientMonitor(x, y), ActivationMonitor(x)
model.fit(x, y, epochs=2, verbose=0, callbacks=[gradients, activations])
print(gradients.to_frame().groupby(["epoch", "layer"])["gradient_norm"].max())
figure = activations.plot()
```

Reference: Glorot, Bengio, "Understanding the Difficulty of Training Deep Feedforward
Neural Networks", 2010, https://proceedings.mlr.press/v9/glorot10a.html
Reference: Lu, Shin, Su, Karniadakis, "Dying ReLU and Initialization: Theory and
Numerical Examples", 2019, https://arxiv.org/abs/1903.06733
Revised: 0.2.0
"""

import contextlib
import math
import numbers
import reprlib

import keras
import numpy as np

# The slope of an activation over its greatest, from its output. By name, so that it may
# be the function of Keras, of keras.ops or of the backend.
_SLOPES = {
    "sigmoid": lambda output: 4 * output * (1 - output),
    "hard_sigmoid": lambda output: keras.ops.sign(output * (1 - output)),
    "sparse_sigmoid": lambda output: keras.ops.sign(output * (1 - output)),
    "tanh": lambda output: 1 - output**2,
    "hard_tanh": lambda output: keras.ops.sign(1 - output**2),
    "softsign": lambda output: (1 - keras.ops.abs(output)) ** 2,
}

_MOST_NUMBERS = 12  # columns of a plot with room for a number in each cell


class _Monitor(keras.callbacks.Callback):
    """Take readings, and keep them: subclasses say what a reading is."""

    def __init__(self, every_epochs):
        super().__init__()
        self.every_epochs = _positive_integer("every_epochs", every_epochs)
        self._rows = []
        self._epoch = 0  # how many are complete
        self._earlier_epochs = 0  # those of the run that a state was taken from
        self._restored = False

    def on_train_begin(self, logs=None):
        """Start afresh, unless a state was set; refuse a model without weights."""
        if not self.model.built:
            raise ValueError(
                f"{type(self).__name__} reads the model before the first step, so it "
                "must be built before fit(): give it a keras.Input, or call it on a "
                f"batch. Received: model={self.model}"
            )
        self._earlier_epochs = 0
        if not self._restored:
            self._epoch, self._rows = 0, []
        probe = self._probe
        self._compiled_probe = probe if self.model.run_eagerly else _compiled(probe)

    def on_epoch_begin(self, epoch, logs=None):
        """Read the model before the first epoch of the run."""
        if self._restored and epoch == 0:
            self._earlier_epochs = self._epoch
        self._restored = False
        self._epoch = self._earlier_epochs + epoch
        if not self._rows:
            self._read()

    def on_epoch_end(self, epoch, logs=None):
        """Read the model, every so often."""
        self._epoch += 1
        if self._epoch % self.every_epochs == 0:
            self._read()

    def on_train_end(self, logs=None):
        """Let the next fit begin afresh, and free the compiled probe."""
        self._restored = False
        self._compiled_probe = None

    def get_state(self) -> dict:
        """Return what a resumed run needs, as a dictionary that JSON can hold."""
        return {"epoch": self._epoch, "rows": [dict(row) for row in self._rows]}

    def set_state(self, state: dict):
        """Add to the readings of the run that gave `state` in the next fit.

        An `initial_epoch` given to that fit counts; without one, its first epoch is
        the one after the state's last.
        """
        columns = ["epoch", *self._columns]
        if not (
            isinstance(state, dict)
            and state.keys() == {"epoch", "rows"}
            and type(state["epoch"]) is int
            and state["epoch"] >= 0
            and isinstance(state["rows"], list)
            and all(isinstance(row, dict) for row in state["rows"])
            and all(row.keys() == set(columns) for row in state["rows"])
        ):
            raise ValueError(
                "`state` must come from get_state(), with the keys epoch, rows, where "
                f"a row has {', '.join(columns)}. Received: state={state!r}"
            )
        self._epoch = state["epoch"]
        self._rows = [dict(row) for row in state["rows"]]
        self._restored = True

    def _read(self):
        self._rows += [{"epoch": self._epoch - 1, **row} for row in self._reading()]

    def _frame(self):
        import pandas

        return pandas.DataFrame(self._rows, columns=["epoch", *self._columns])

    def _check_has_readings(self):
        if not self._rows:
            raise ValueError("There are no readings yet: `fit` has to begin an epoch.")


class GradientMonitor(_Monitor):
    """Record the norm of gradient, weights and update of each variable.

    For gradients that vanish or explode with depth, layers that stand still, and
    learning rates far off. The gradient is that of the whole loss that was compiled,
    penalties and `add_loss` included, on the probe, before any clipping, and without
    the weights of classes and samples. With w a trainable variable, g the gradient for
    it, and w0 what w was at the beginning of the epoch, the columns are

        gradient_norm:       ||g||
        weight_norm:         ||w||
        update_norm:         ||w - w0||, how far the epoch has moved the weights
        gradient_to_weight:  ||g|| / ||w||
        update_to_weight:    ||w - w0|| / ||w||

    where ||.|| is the square root of the sum of squares over all entries. The rule of
    thumb that an update should be about a thousandth of the weights is for one step: an
    epoch of n steps in one direction moves n times as far. An `update_to_weight` that
    is a hundred times smaller in one layer than in the others is a layer that does not
    learn; one near 1 says that little is left of the weights the epoch began with.
    Zero weights, such as biases at the start, have the ratios NaN or infinity.

    With a loss scale (`LossScaleOptimizer`, mixed precision) the gradient is computed
    under the scale, so that it does not underflow, and given without it; it is not
    finite where training would leave the step out, too.

    It keeps a copy of the trainable weights during the epochs that it reads.

    Example:

    ```python
    import keras
    import numpy as np

    from callbacks.monitors import GradientMonitor

    x = np.random.default_rng(1).normal(size=(64, 3))
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", loss="mse")
    monitor = GradientMonitor(x[:32], x[:32, :1])
    model.fit(x, x[:, :1], epochs=2, verbose=0, callbacks=[monitor])
    print(monitor.to_frame()[["epoch", "variable", "update_to_weight"]])
    ```

    Args:
        x: Inputs of the probe: an array with a row per sample, or a list, tuple or
            dictionary of them, as for `fit`. Finite numbers; a copy is kept.
        y: Targets in the same form; `None` for a model without.
        every_epochs: Epochs from one reading to the next, at least 1. With 3 the model
            is read before the first epoch, and at the end of the epochs 2, 5, 8, ...

    Raises:
        ValueError: An argument is none of these. At the first epoch: the model has no
            loss or no trainable weights, or it is not built.

    Reference: Glorot, Bengio, 2010, section 4.2,
        https://proceedings.mlr.press/v9/glorot10a.html
    """

    _columns = ("layer", "variable", "gradient_norm", "weight_norm", "update_norm")

    def __init__(self, x, y, *, every_epochs: int = 1):
        super().__init__(every_epochs)
        self._x, self._y = _checked_arrays(x=x, y=y)
        self._before = None

    def on_train_begin(self, logs=None):
        """Start afresh, unless a state was set; refuse a model without gradients."""
        super().on_train_begin(logs)
        self._before = None  # what a fit that was interrupted has left
        if not self.model.trainable_variables:
            raise ValueError(
                "GradientMonitor needs trainable weights. "
                f"Received: model={self.model.name!r}, which has none"
            )

    def on_epoch_begin(self, epoch, logs=None):
        """Remember the weights, if the end of this epoch will be read."""
        super().on_epoch_begin(epoch, logs)
        if (self._epoch + 1) % self.every_epochs == 0:
            self._before = _copies(self.model.trainable_variables)

    def to_frame(self):
        """Return a DataFrame with a row for each variable in each reading.

        The columns are epoch, layer, variable and those above. The epoch is the last
        one that was complete, so -1 before the first; `update_norm` is NaN there.
        Layers inside a model inside the model are named "inner/layer".
        """
        frame = self._frame()
        frame["gradient_to_weight"] = frame["gradient_norm"] / frame["weight_norm"]
        frame["update_to_weight"] = frame["update_norm"] / frame["weight_norm"]
        return frame

    def plot(self):
        """Draw the gradient norm and the update-to-weight ratio over layers and epochs.

        A row is a layer, the first on top, with the norms over all its variables
        together; colours are logarithmic.

        Returns:
            A matplotlib `Figure`. A gradient that vanishes or explodes is a change of
            colour from top to bottom.
        """
        self._check_has_readings()
        frame = self._frame()
        norms = {
            name: _by_layer_and_epoch(frame, name, np.linalg.norm)
            for name in ("gradient_norm", "weight_norm", "update_norm")
        }
        ratio = norms["update_norm"] / norms["weight_norm"]
        # Before the first epoch there is no update, which is no fault of the weights.
        ratio = ratio.mask(norms["weight_norm"].isna(), math.inf)
        return _heat_maps(
            {
                "gradient norm": norms["gradient_norm"].fillna(math.inf),
                "update to weight": ratio,
            }
        )

    def _reading(self):
        model = self.model
        trainable = _copies(model.trainable_variables)
        norms = self._compiled_probe(
            trainable,
            _copies(model.non_trainable_variables),
            self._before or trainable,
            model.optimizer.scale_loss(keras.ops.ones(())),
            self._x,
            self._y,
        )
        norms = keras.ops.convert_to_numpy(norms).tolist()
        if self._before is None:
            norms[2] = [math.nan] * len(trainable)
        self._before = None
        places = _places_of_variables(model)
        return [
            dict(zip(self._columns, (*place, *of_one), strict=True))
            for place, *of_one in zip(places, *norms, strict=True)
        ]

    def _probe(self, trainable, others, before, scale, x, y):
        model = self.model
        variables = model.trainable_variables + model.non_trainable_variables

        def scaled_loss(values):
            mapping = zip(variables, values + others, strict=True)
            with keras.StatelessScope(mapping, collect_losses=True):
                outputs = model(x, training=False)
                _check_has_loss(model)
                return model.compute_loss(x=x, y=y, y_pred=outputs) * scale

        with _called_instead(_calls_on_batch_statistics(model)):
            gradients = _gradients_of(scaled_loss, trainable)
        pairs = zip(trainable, before, strict=True)
        return keras.ops.stack(
            [
                keras.ops.stack([_length(each) / scale for each in gradients]),
                keras.ops.stack([_length(each) for each in trainable]),
                keras.ops.stack([_length(after - old) for after, old in pairs]),
            ]
        )


class ActivationMonitor(_Monitor):
    """Record mean, deviation, dead and saturated share of each layer's outputs.

    For signals that fade or grow with depth, ReLU units that have died, and sigmoid or
    tanh layers that are stuck on their flat ends. The columns are

        mean, std:           over all outputs, of every row and unit
        std_between_rows:    of each output over the rows, root mean square of all
        fraction_dead:       share of the units that are exactly 0 for every row
        fraction_saturated:  share of all outputs at which the slope of the activation
                             is below a twentieth of its greatest

    A unit is an entry of the last axis, in images a channel, dead only if it is 0 at
    all places; of the axis after the first for layers with `data_format=
    "channels_first"`. ReLU, ReLU6 and threshold units are 0 where no gradient passes;
    leaky ReLU, ELU, SiLU and GELU cannot die in this sense.

    Where `std_between_rows` falls from layer to layer, all inputs come to look the
    same. `std` does not tell: units that differ but never change keep it up.

    Saturated are, with z the input of the activation, |z| > 4.36 for sigmoid, 2.18 for
    tanh and 3.47 for softsign, and the flat ends of hard_sigmoid, sparse_sigmoid and
    hard_tanh. Known are Keras's own layers with one of these; NaN elsewhere. A sigmoid
    that ends a classifier is saturated when it is sure, which is no fault; where it
    underflows, it is dead as well.

    Layers are in the order in which the probe passes them, those of a model inside the
    model as "inner/layer"; the second use of a shared layer is "layer #2". A layer made
    of other layers, such as a recurrent or attention layer or one of your own, is one
    row, with the first of its outputs. Layers that hand on their input as it is, as
    dropout does here, have none, nor has what a model computes outside of layers.

    Example:

    ```python
    import keras
    import numpy as np

    from callbacks.monitors import ActivationMonitor

    x = np.random.default_rng(1).normal(size=(64, 3))
    dense = keras.layers.Dense(4, "relu", bias_initializer="ones")
    model = keras.Sequential([keras.Input((3,)), dense, keras.layers.Dense(1)])
    model.compile("sgd", loss="mse")
    monitor = ActivationMonitor(x[:32])
    model.fit(x, x[:, :1], epochs=2, verbose=0, callbacks=[monitor])
    print(monitor.to_frame()[["epoch", "layer", "fraction_dead"]])
    ```

    Args:
        x: Inputs of the probe: an array with a row per sample, or a list, tuple or
            dictionary of them, as for `fit`. Finite numbers; a copy is kept.
        every_epochs: Epochs from one reading to the next, at least 1. With 3 the model
            is read before the first epoch, and at the end of the epochs 2, 5, 8, ...

    Raises:
        ValueError: An argument is none of these. At the first epoch: the model is not
            built, or calls no layer whose outputs could be seen.

    Reference: Lu, Shin, Su, Karniadakis, 2019, https://arxiv.org/abs/1903.06733
    """

    _columns = ("layer", "mean", "std", "std_between_rows")
    _columns += ("fraction_dead", "fraction_saturated")

    def __init__(self, x, *, every_epochs: int = 1):
        super().__init__(every_epochs)
        (self._x,) = _checked_arrays(x=x)

    def to_frame(self):
        """Return a DataFrame with a row for each layer in each reading.

        The columns are epoch, layer and those above. The epoch is the last one that was
        complete, so -1 before the first.
        """
        return self._frame()

    def plot(self):
        """Draw deviations, dead and saturated share over layers and epochs.

        A row is a layer, the first on top; the colours of deviations are logarithmic,
        and shares go from white to red. Saturation is left out where none is known.

        Returns:
            A matplotlib `Figure`.
        """
        self._check_has_readings()
        frame = self._frame()
        tables = {
            column: _by_layer_and_epoch(frame, column, "first")
            for column in self._columns[1:]
        }
        shares = {"dead units": tables["fraction_dead"]}
        if frame["fraction_saturated"].notna().any():
            shares["saturated outputs"] = tables["fraction_saturated"]
        return _heat_maps(
            {
                "standard deviation": tables["std"].fillna(math.inf),
                "deviation between rows": tables["std_between_rows"].fillna(math.inf),
            },
            shares,
        )

    def _reading(self):
        variables = self.model.trainable_variables + self.model.non_trainable_variables
        values = keras.ops.convert_to_numpy(
            self._compiled_probe(_copies(variables), self._x)
        )
        return [
            dict(zip(self._columns, (name, *row), strict=True))
            for name, row in zip(self._names, values.tolist(), strict=True)
        ]

    def _probe(self, values, x):
        model = self.model
        variables = model.trainable_variables + model.non_trainable_variables
        calls = _calls_on_batch_statistics(model)
        names, statistics = [], []  # in the order of the calls

        def recorded(layer, name):
            call = calls.get(layer, layer.call)

            def call_and_record(*inputs, **options):
                outputs = call(*inputs, **options)
                tensors = keras.tree.flatten(outputs)
                is_new = not any(outputs is each for each in inputs)
                if is_new and tensors and _holds_floats(tensors[0]):
                    names.append(name)
                    statistics.append(_statistics(layer, tensors[0]))
                return outputs

            return call_and_record

        calls |= {
            each: recorded(each, name) for each, name in _single_layers(model).items()
        }
        mapping = zip(variables, values, strict=True)
        with keras.StatelessScope(mapping), _called_instead(calls):
            model(x, training=False)
        if not names:
            raise ValueError(
                "ActivationMonitor sees the outputs of layers, and the model calls "
                f"none. Received: model={model.name!r} ({type(model).__name__})"
            )
        uses = [names[: place + 1].count(name) for place, name in enumerate(names)]
        self._names = [
            name if use == 1 else f"{name} #{use}"
            for name, use in zip(names, uses, strict=True)
        ]
        return keras.ops.stack(statistics)


def _statistics(layer, outputs):
    """Return mean, deviation, dead and saturated share of a layer's outputs."""
    outputs = keras.ops.cast(outputs, "float32")
    rank = len(outputs.shape)
    is_first = getattr(layer, "data_format", None) == "channels_first"
    axis_of_units = 1 if is_first else rank - 1
    axes = [axis for axis in range(rank) if axis == 0 or axis != axis_of_units]
    is_dead = keras.ops.all(keras.ops.equal(outputs, 0), axis=axes)
    slope_of = _SLOPES.get(_activation_of(layer))
    is_saturated = slope_of(outputs) < 0.05 if slope_of else math.nan
    return keras.ops.stack(
        [
            keras.ops.mean(outputs),
            keras.ops.std(outputs),
            keras.ops.sqrt(keras.ops.mean(keras.ops.var(outputs, axis=0))),
            keras.ops.mean(keras.ops.cast(is_dead, "float32")),
            keras.ops.mean(keras.ops.cast(is_saturated, "float32")),
        ]
    )


def _activation_of(layer):
    """Return the name of the function whose values a layer's outputs are, or None."""
    # The outputs of LSTM and GRU, and of anybody's layer, need not be the activation's.
    is_keras_own = type(layer).__module__.startswith("keras.")
    if is_keras_own and not hasattr(layer, "recurrent_activation"):
        return getattr(getattr(layer, "activation", None), "__name__", None)
    return None


def _length(x):
    """Return the square root of the sum of squares, which must not underflow to 0."""
    x = keras.ops.cast(x, "float32")
    largest = keras.ops.max(keras.ops.abs(x))
    is_usable = (largest > 0) & keras.ops.isfinite(largest)
    unit = keras.ops.where(is_usable, largest, keras.ops.ones_like(largest))
    return unit * keras.ops.sqrt(keras.ops.sum(keras.ops.square(x / unit)))


def _gradients_of(function, values):
    """Return the gradients of a function of a list of tensors for each of them."""
    if keras.backend.backend() == "tensorflow":
        return _gradients_by_tape(function, values)
    if keras.backend.backend() == "jax":
        import jax

        return jax.grad(function)(values)
    return _gradients_by_torch(function, values)


def _gradients_by_tape(function, values):
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(values)
        result = function(values)
    gradients = tape.gradient(result, values, unconnected_gradients="zero")
    # An embedding's is a list of rows, of which several may be the same row's.
    return [tf.convert_to_tensor(gradient) for gradient in gradients]


def _gradients_by_torch(function, values):
    import torch

    values = [value.detach().requires_grad_() for value in values]
    return torch.autograd.grad(function(values), values, materialize_grads=True)


def _compiled(function):
    """Return the function, compiled where the backend does so."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function, autograph=False)
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    return function


def _copies(variables):
    # JAX gives the buffers themselves to the next step to overwrite.
    return [keras.ops.copy(variable.value) for variable in variables]


def _holds_floats(tensor):
    return keras.backend.is_float_dtype(keras.backend.standardize_dtype(tensor.dtype))


def _check_has_loss(model):
    # On JAX, Keras (3.15) takes a model without a loss, and computes 0.
    is_keras_own = type(model).compute_loss is keras.Model.compute_loss
    if is_keras_own and model.loss is None and not model.losses:
        raise ValueError(
            "GradientMonitor needs a loss: the model was compiled with none, adds none "
            "in its layers, and does not override compute_loss. "
            f"Received: model={model.name!r} ({type(model).__name__})"
        )


def _single_layers(model, prefix=""):
    """Return {layer: name} of the layers that are not models of layers."""
    leaves = {}
    for layer in model.layers:
        name = prefix + layer.name
        if isinstance(layer, keras.Model):
            leaves = _single_layers(layer, f"{name}/") | leaves
        elif not isinstance(layer, keras.layers.InputLayer):
            leaves.setdefault(layer, name)
    return leaves


def _places_of_variables(model):
    """Return (layer, variable) for each of the model's trainable variables."""
    places = {}
    for layer, name in _single_layers(model).items():
        for variable in layer.trainable_variables:
            # In "outer/layer/cell/kernel" the part behind the layer
            inner = variable.path.rpartition(f"{layer.name}/")[2]
            places.setdefault(id(variable), (name, inner))
    return [
        places.get(id(variable), (model.name, variable.path))
        for variable in model.trainable_variables
    ]


def _calls_on_batch_statistics(model):
    """Return for each batch normalization a `call` that says it is training."""

    def in_training(call):
        return lambda *inputs, **options: call(*inputs, **options | {"training": True})

    return {
        layer: in_training(layer.call)
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    }


@contextlib.contextmanager
def _called_instead(calls):
    """Let layers run other functions as their `call`, past Keras's bookkeeping."""
    before = {layer: vars(layer)["call"] for layer in calls if "call" in vars(layer)}
    for layer, call in calls.items():
        vars(layer)["call"] = call
    try:
        yield
    finally:
        for layer in calls:
            del vars(layer)["call"]
        for layer, call in before.items():
            vars(layer)["call"] = call


def _checked_arrays(**structures):
    """Return copies as tensors; refuse what is not rows of finite numbers."""
    lengths = set()
    for name, structure in structures.items():
        if structure is None and name == "y":
            continue
        leaves = keras.tree.flatten(structure)
        problems = [_problem_with(leaf) for leaf in leaves] or ["is empty"]
        if any(problems):
            raise ValueError(
                f"`{name}` must be an array of finite numbers with at least one row, "
                "or a list, tuple or dictionary of such arrays, but it "
                f"{next(filter(None, problems))}. "
                f"Received: {name}={reprlib.repr(structure)}"
            )
        lengths |= {int(leaf.shape[0]) for leaf in leaves}
    if len(lengths) != 1:
        raise ValueError(
            f"`{'`, `'.join(structures)}` must have the same number of rows. "
            f"Received: {sorted(lengths)} rows"
        )
    return [keras.tree.map_structure(_copy, each) for each in structures.values()]


def _problem_with(leaf):
    if not hasattr(leaf, "shape"):
        return f"holds a {type(leaf).__name__}, which is no array"
    array = keras.ops.convert_to_numpy(leaf)
    if array.dtype.kind not in "biuf":
        return f"holds {array.dtype}, which are no numbers"
    if array.ndim == 0 or array.size == 0:
        return f"holds an array of shape {array.shape}"
    return None if np.isfinite(array).all() else "holds NaN or infinity"


def _copy(leaf):
    if leaf is None:
        return None
    array = np.array(keras.ops.convert_to_numpy(leaf))
    # As in fit: NumPy's floats are not meant to be double precision.
    is_double = array.dtype == "float64"
    array = array.astype(keras.config.floatx()) if is_double else array
    return keras.ops.convert_to_tensor(array)


def _positive_integer(name, value):
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(
            f"`{name}` must be an integer, at least 1. Received: {name}={value!r}"
        )
    return int(value)


def _by_layer_and_epoch(frame, column, combine):
    """Return a DataFrame with a row per layer, in their order, a column per epoch."""
    groups = frame.groupby(["layer", "epoch"], sort=False)[column]
    return groups.agg(combine).unstack("epoch").loc[frame["layer"].unique()]


def _heat_maps(norms, shares=None):
    """Draw tables side by side, given by their titles."""
    from matplotlib.figure import Figure

    tables = norms | (shares or {})
    layers, epochs = next(iter(tables.values())).axes
    width = 0.4 if len(epochs) <= _MOST_NUMBERS else 0.1  # of a cell, in inches
    height = 0.23 if len(layers) <= 15 else 0.16
    num_lines = math.ceil(len(tables) / 2)
    size = (
        3.5 + 2 * min(0.8 + width * len(epochs), 6.0),
        num_lines * (1.2 + height * max(len(layers), 5)),
    )
    figure = Figure(size, layout="constrained")
    every_axes = iter(figure.subplots(num_lines, 2, sharey=True, squeeze=False).flat)
    places = range(0, len(epochs), math.ceil(len(epochs) / _MOST_NUMBERS))
    names = [name if len(name) < 32 else f"...{name[-28:]}" for name in layers]
    for (title, table), axes in zip(tables.items(), every_axes, strict=False):
        draw = _draw_norms if title in norms else _draw_shares
        draw(axes, table.to_numpy(dtype="float64"))
        axes.set(title=title, xlabel="epoch (-1: before the first)")
        axes.set_xticks(places, epochs[places], fontsize=8)
        axes.set_yticks(range(len(layers)), names, fontsize=8)
    for axes in every_axes:  # the last, where the tables are an odd number
        axes.remove()
    return figure


def _draw_norms(axes, values):
    """Colour the powers of ten: 0 black, what is infinite red, what is unknown grey."""
    from matplotlib import colormaps

    is_known = (values > 0) & (values < np.inf)
    powers = np.log10(values, where=is_known, out=np.full(values.shape, np.nan))
    known = powers[is_known]
    high = math.ceil(known.max()) if len(known) else 0
    # At least four powers of ten: small differences should not look large.
    low = min(high - 4, math.floor(known.min(initial=high)))
    powers[values == 0], powers[values == np.inf] = low - 1, high + 1
    colours = colormaps["viridis"].with_extremes(bad="0.8", under="black", over="red")
    image = axes.imshow(powers, colours, aspect="auto", vmin=low, vmax=high)
    bar = axes.figure.colorbar(image, ax=axes, extend="both", shrink=0.9)
    bar.set_label("black: exactly 0, red: not finite", fontsize=7)
    ticks = np.arange(low, high + 1, math.ceil((high - low) / 6))
    bar.set_ticks(ticks, labels=[f"$10^{{{tick}}}$" for tick in ticks])
    _write_numbers(axes, image, powers, values, "{:.2g}")


def _draw_shares(axes, values):
    """Colour from white, none, to red, all; what is unknown is grey."""
    from matplotlib import colormaps

    colours = colormaps["Reds"].with_extremes(bad="0.8")
    image = axes.imshow(values, colours, aspect="auto", vmin=0, vmax=1)
    axes.figure.colorbar(image, ax=axes, shrink=0.9, format="{x:.0%}")
    _write_numbers(axes, image, values, values, "{:.0%}")


def _write_numbers(axes, image, shown, values, form):
    if values.shape[1] > _MOST_NUMBERS:
        return
    lightness = image.to_rgba(shown)[..., :3] @ (0.3, 0.6, 0.1)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value) and value != 0:  # those the colour tells
            colour = "black" if lightness[row, column] > 0.5 else "white"
            style = {"ha": "center", "va": "center", "fontsize": 6, "color": colour}
            axes.text(column, row, form.format(value), **style)
