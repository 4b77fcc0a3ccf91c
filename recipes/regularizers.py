"""Max-norm that is right, and penalties or max-norm over a whole trained model.

`MaxNorm` holds the norm of each unit's incoming weights below a bound. Keras's own
(3.15) looks along axis 0, right for Dense and wrong for convolutions, shrinks weights
within the bound a little at every step, and zeroes large float16 weights. `regularize`
gives every kernel of a built model L1, L2 or max-norm and spares biases and
normalization. `project` enforces constraints where no optimizer step does, and
`regularization_table` shows what each weight pays and how far it is from its bound.

Not needed for L1 and L2 in layers you write yourself: they are Keras's own, with three
traps in 3.15. The string "l1l2" means no penalty at all: write `L1L2(l1=..., l2=...)`.
A `kernel_regularizer` set after the layer is built is ignored: `regularize` the model.
Penalties are part of `loss` and of `val_loss`, so neither compares with a run without
them: give the loss as a metric too, as below, and `mse` and `val_mse` are without.

This file is longer than most: a clone is trusted only if all it cannot do is refused.

```python
import keras
import numpy as np

from recipes.regularizers import MaxNorm, project, regularization_table, regularize

x, y = np.random.rand(64, 4), np.random.rand(64, 1)
penalty = keras.regularizers.L2(1e-4)
model = keras.Sequential([keras.Input((4,))])
model.add(keras.layers.Dense(8, "relu", kernel_regularizer=penalty))
model.add(keras.layers.Dense(8, "relu", kernel_constraint=MaxNorm(1.0)))

trained = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
tuned = regularize(trained, l2=1e-4, max_norm=3.0)  # a clone, to be compiled
project(tuned)
tuned.compile("sgd", "mse", metrics=["mse"])
tuned.fit(x, y, verbose=0)
print(regularization_table(tuned))
```

Reference: Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout: A Simple
Way to Prevent Neural Networks from Overfitting", 2014,
https://jmlr.org/papers/v15/srivastava14a.html
Revised: 0.2.0
"""

import math

import keras
import numpy as np
from keras import layers, ops

# The kernels of each kind of layer, in the order of its weights: the prefix of their
# arguments, and the axes that count units. One unit's weights lie along all others.
_LAST = {"kernel": (-1,)}
_DEPTHWISE = {"depthwise": (-2, -1)}  # kernel (..., channels, multiplier)
_SEPARABLE = {**_DEPTHWISE, "pointwise": (-1,)}
_TRANSPOSED = {"kernel": (-2,)}  # kernel (..., out, in)
_RECURRENT = {"kernel": (-1,), "recurrent": (-1,)}
_KERNELS = {
    layers.Dense: _LAST,
    layers.Conv1D: _LAST,
    layers.Conv2D: _LAST,
    layers.Conv3D: _LAST,
    layers.DepthwiseConv1D: _DEPTHWISE,
    layers.DepthwiseConv2D: _DEPTHWISE,
    layers.SeparableConv1D: _SEPARABLE,
    layers.SeparableConv2D: _SEPARABLE,
    layers.Conv1DTranspose: _TRANSPOSED,
    layers.Conv2DTranspose: _TRANSPOSED,
    layers.Conv3DTranspose: _TRANSPOSED,
    layers.Embedding: {"embeddings": (-2,)},
    layers.SimpleRNN: _RECURRENT,
    layers.LSTM: _RECURRENT,
    layers.GRU: _RECURRENT,
    layers.ConvLSTM1D: _RECURRENT,
    layers.ConvLSTM2D: _RECURRENT,
    layers.ConvLSTM3D: _RECURRENT,
}
_SPARED_LAYERS = (
    layers.BatchNormalization,
    layers.GroupNormalization,
    layers.LayerNormalization,
    layers.Normalization,
    layers.RMSNormalization,
    layers.PReLU,
)
_LOOKUP_LAYERS = (
    layers.IntegerLookup,
    layers.StringLookup,
    layers.TextVectorization,
)
_MANTISSA_BITS = {"float16": 10, "bfloat16": 7, "float32": 23, "float64": 52}


@keras.saving.register_keras_serializable(package="recipes")
class MaxNorm(keras.constraints.Constraint):
    """Scale each unit's incoming weights back to a norm of at most `max_value`.

    For the `kernel_constraint` of Dense and convolutional layers, mostly beside dropout
    and a high learning rate. Not for attention layers, which share one constraint among
    kernels that differ in their axes. Keras applies a constraint after an optimizer
    step, to the weights that had a gradient; `project` does the rest.

    w <- w * r (1 - s) / ||w|| where ||w|| > r, and w itself, bit for bit, elsewhere;
    ||w|| is the Euclidean norm along `axis` and r is `max_value`. The slack
    s = e + E sqrt(n), for n weights stored with relative spacing e and summed with E,
    covers the rounding, so that a second application changes no bit (in float16 down to
    r = 1e-4 sqrt(n), where its numbers end). NaN stays NaN, and infinity becomes NaN.

    Example:

    ```python
    import numpy as np

    from recipes.regularizers import MaxNorm

    w = np.array([[3.0, 0.3], [4.0, 0.4]], "float32")
    print(MaxNorm(1.0)(w))  # columns (0.6, 0.8) and (0.3, 0.4)
    ```

    Args:
        max_value: r, above 0. Usually 1 to 4.
        axis: Axis or axes along which one norm is taken. `None`: all but the last,
            right for Dense, Conv1D/2D/3D and recurrent layers; on a vector, each weight
            for itself. A depthwise 2D kernel needs `(0, 1)`, that of a Conv2DTranspose
            `(0, 1, 3)`, an embedding `1`. `regularize` knows them all.

    Raises:
        ValueError: If `max_value` is not a finite number above 0, `axis` is not made of
            distinct integers, or, when called, the weights have no such axis.
    """

    def __init__(self, max_value: float = 1.0, *, axis: int | list[int] | None = None):
        self.max_value = _check_number("max_value", max_value, above_zero=True)
        self.axis = _check_axis(axis)

    def __call__(self, w):
        """Return the weights within the bound, of the same shape and dtype."""
        w = ops.convert_to_tensor(w)
        axes = self._axes(w.shape)
        dtype = keras.backend.standardize_dtype(w.dtype)
        wide = "float64" if dtype == "float64" else "float32"
        size = math.prod(w.shape[axis] for axis in axes)
        slack = 2.0 ** -_MANTISSA_BITS[dtype]
        slack += 2.0 ** -_MANTISSA_BITS[wide] * math.sqrt(size)

        # ||w|| = scale * length: relative to the largest weight no square overflows.
        x = ops.cast(w, wide)
        scale = ops.max(ops.abs(x), axis=axes, keepdims=True)
        scale = ops.clip(scale, 1e-30, 1e30)  # beyond, 1 / scale may be flushed to 0
        x = x / scale
        squares = ops.sum(ops.square(x), axis=axes, keepdims=True)
        # Below 1 only where w is near 0. (On PyTorch `maximum` would return float32.)
        length = ops.sqrt(ops.clip(squares, 1.0, math.inf))
        shrunk = ops.cast(x * (self.max_value * (1.0 - slack) / length), dtype)
        return ops.where(scale * length > self.max_value, shrunk, w)

    def get_config(self):
        """Return the constructor's arguments."""
        return {"max_value": self.max_value, "axis": self.axis}

    def _axes(self, shape):
        rank = len(shape)
        if self.axis is None:
            return tuple(range(rank - 1))
        axes = [self.axis] if isinstance(self.axis, int) else self.axis
        distinct = {axis % rank for axis in axes if -rank <= axis < rank}
        if len(distinct) < len(axes):
            raise ValueError(
                f"`axis` must name distinct axes of weights of shape {tuple(shape)}. "
                f"Received: axis={self.axis}"
            )
        return tuple(sorted(distinct))


def regularize(
    model: keras.Model,
    *,
    l1: float = 0.0,
    l2: float = 0.0,
    max_norm: float | None = None,
) -> keras.Model:
    """Clone a built model, with penalties or max-norm on every kernel.

    For a trained model, or one that somebody else has written. Takes the kernels of
    Dense, convolutional, depthwise, separable, transposed, embedding and recurrent
    layers, also in nested models, Bidirectional and TimeDistributed; passes over layers
    without weights, normalization and PReLU. Not for other layers with weights, such as
    attention, which shares one constraint among kernels of different axes: which axes
    of theirs make up a unit is not known here, so they are refused.

    Added to the loss: l1 sum |w| + l2 sum w^2 over the weights w of all kernels (no
    factor 1/2). Max-norm is `MaxNorm(max_norm)` along the axes of one unit, one filter,
    one gate's unit, or one token's vector. It acts from the first optimizer step on, or
    at once with `project`. What was done shows in `regularization_table`.

    Example:

    ```python
    import keras

    from recipes.regularizers import regularization_table, regularize

    model = keras.Sequential([keras.Input((8, 3)), keras.layers.LSTM(4)])
    print(regularization_table(regularize(model, l2=0.01, max_norm=2.0)))
    ```

    Args:
        model: A built Sequential or Functional model. It is not changed.
        l1: Factor of the sum of absolute values, 0 or more.
        l2: Factor of the sum of squares, 0 or more.
        max_norm: Bound of each unit's incoming norm, above 0, or `None`.

    Returns:
        A model of the same class with the same weights, trained, adapted and frozen as
        they were, sharing none, not compiled.

    Raises:
        ValueError: If nothing is asked for, a number is out of its range, the model is
            unbuilt or subclassed, or layers are of another kind or already have what
            is asked for; all of them are listed.
    """
    l1, l2 = _check_number("l1", l1), _check_number("l2", l2)
    if max_norm is not None:
        max_norm = _check_number("max_norm", max_norm, above_zero=True)
    elif not (l1 or l2):
        raise ValueError(
            "One of `l1`, `l2` and `max_norm` must be given. "
            f"Received: l1={l1}, l2={l2}, max_norm={max_norm}"
        )
    _check_built(model)
    if not _is_graph(model):
        raise ValueError(f"`model` must not be subclassed. Received: model={model}")

    def options_of(layer):
        options = {}
        for prefix, _, axes in _kernels_of(layer):
            if l1 or l2:
                penalty = keras.regularizers.serialize(keras.regularizers.L1L2(l1, l2))
                options[f"{prefix}_regularizer"] = penalty
            if max_norm is not None:
                constraint = keras.constraints.serialize(MaxNorm(max_norm, axis=axes))
                options[f"{prefix}_constraint"] = constraint
        return options

    _check_layers(model, options_of)
    copies = {}  # by identity: a shared layer stays shared

    def copy_of(layer):
        if id(layer) not in copies:
            if _is_graph(layer):
                copies[id(layer)] = _clone(layer, copy_of)
            else:
                config = layer.get_config() | options_of(layer)
                for key, inner in _wrapped_by(layer).items():
                    config[key]["config"] |= options_of(inner)
                copies[id(layer)] = type(layer).from_config(config)
        return copies[id(layer)]

    clone = _clone(model, copy_of)
    for layer in _leaves(model):
        if layer.weights:
            copy_of(layer).set_weights(layer.get_weights())
        if isinstance(layer, layers.Normalization):
            copy_of(layer).finalize_state()  # it computes with a copy of its weights
    return clone


def project(model: keras.Model):
    """Apply the constraints of all weights of a built model, once and in place.

    For weights that no optimizer step has constrained: initial, loaded, frozen, or just
    overwritten by their moving average, as an optimizer with `use_ema=True` does at the
    end of `fit` (Keras 3.15 averages before the constraint and leaves the average
    unconstrained). Weights without a constraint are left alone. To have it called then,
    as the last act of every `fit`:

    ```python
    import keras
    import numpy as np

    from recipes.regularizers import MaxNorm, project

    layer = keras.layers.Dense(1, kernel_constraint=MaxNorm(0.1))
    model = keras.Sequential([keras.Input((4,)), layer])
    project(model)  # the initial weights
    model.compile(keras.optimizers.SGD(0.1, use_ema=True), "mse")
    last = keras.callbacks.LambdaCallback(on_train_end=lambda logs: project(model))
    model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0, callbacks=[last])
    ```

    Args:
        model: A built model of any class.

    Raises:
        ValueError: If the model is not built.
    """
    _check_built(model)
    for variable in model.weights:
        if variable.constraint is not None:
            variable.assign(variable.constraint(variable))


def regularization_table(model: keras.Model):
    """Show what each weight adds to the loss, and how far it is from its bound.

    For the question how much of `loss` is data and how much is penalty, and for seeing
    that a bound holds, whoever has set it: the norm is along the axes of one unit, not
    along those that the constraint takes. Not for penalties on activations, which
    depend on the data.

    Example:

    ```python
    import keras
    import numpy as np

    from recipes.regularizers import regularization_table, regularize

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model = regularize(model, l2=0.1)
    model.compile("sgd", "mse")
    loss = model.evaluate(np.ones((8, 4)), np.ones((8, 1)), verbose=0)
    penalty = regularization_table(model)["penalty"].sum()
    print(f"{loss:.3f} = data {loss - penalty:.3f} + penalty {penalty:.3f}")
    ```

    Args:
        model: A built model of any class; the axes of layers inside subclassed layers
            and models are not known.

    Returns:
        A DataFrame with a row for each kernel, and for every other weight that has a
        regularizer or a constraint, by its path. `penalty` is in units of the loss, 0
        for frozen weights, NaN without a regularizer; `largest_norm` is that of the
        unit with the largest, along `axis`, NaN where the axes are not known; `bound`
        is the constraint's `max_value`, NaN if it has none.

    Raises:
        ValueError: If the model is not built.
    """
    import pandas

    _check_built(model)
    known = {}
    for leaf in _leaves(model):
        for layer in (leaf, *_wrapped_by(leaf).values()):
            known |= {id(kernel): axes for _, kernel, axes in _kernels_of(layer)}
    rows = {}
    for weight in model.weights:
        axes, penalty = known.get(id(weight)), math.nan
        if axes is None and weight.regularizer is weight.constraint is None:
            continue
        if weight.regularizer is not None:  # Keras takes none on frozen weights
            penalty = weight.regularizer(weight) if weight.trainable else 0.0
            penalty = float(ops.convert_to_numpy(penalty))
        norm = math.nan
        if axes is not None:
            values = ops.convert_to_numpy(ops.cast(weight, "float32"))
            norm = np.sqrt(np.square(values, dtype="float64").sum(axis=axes)).max()
        rows[weight.path] = {
            "shape": tuple(weight.shape),
            "penalty": penalty,
            "axis": axes,
            "largest_norm": float(norm),
            "bound": float(getattr(weight.constraint, "max_value", math.nan)),
        }
    columns = ["shape", "penalty", "axis", "largest_norm", "bound"]
    table = pandas.DataFrame.from_dict(rows, orient="index", columns=columns)
    return table.rename_axis("weight")


def _is_graph(layer):
    return isinstance(layer, keras.Sequential) or (
        isinstance(layer, keras.Model) and hasattr(layer, "outputs")
    )


def _leaves(model):
    for layer in model.layers:
        yield from _leaves(layer) if _is_graph(layer) else [layer]


def _wrapped_by(layer):
    """Return {key in the config of a wrapper: layer inside}."""
    if type(layer) is layers.Bidirectional:
        return {"layer": layer.forward_layer, "backward_layer": layer.backward_layer}
    return {"layer": layer.layer} if type(layer) is layers.TimeDistributed else {}


def _kernels_of(layer):
    """Yield (prefix, kernel, axes of one unit) for each kernel of a built layer."""
    if type(layer) not in _KERNELS:  # perhaps an operation, which has no weights
        return
    kernels = _KERNELS[type(layer)].items()
    for (prefix, units), kernel in zip(kernels, layer.weights, strict=False):
        rank = len(kernel.shape)
        axes = tuple(axis for axis in range(rank) if axis - rank not in units)
        yield prefix, kernel, axes


def _clone(model, copy_of):
    # clone_model would compile the copy as well, and fail at a loss it cannot look up.
    compiled, model.compiled = model.compiled, False
    try:
        clone = keras.models.clone_model(model, clone_function=copy_of)
    finally:
        model.compiled = compiled
    if type(clone) is not type(model):
        raise ValueError(f"`model` must not be subclassed. Received: model={model}")
    return clone


def _check_built(model):
    if not isinstance(model, keras.Model) or not model.built:
        raise ValueError(
            f"`model` must be a built Keras model. Received: model={model}"
        )


def _check_layers(model, options_of):
    faults = []
    for leaf in _leaves(model):
        for layer in _wrapped_by(leaf).values() or [leaf]:
            name = f"{layer.name} ({type(layer).__name__})"
            if type(layer) in _KERNELS:
                for option in options_of(layer):
                    if getattr(layer, option) is not None:
                        faults.append(f"{name} has a {option} of its own")
                plain = len(_KERNELS[type(layer)]) + getattr(layer, "use_bias", False)
                if len(layer.weights) > plain:  # LoRA, quantized, PReLU inside
                    faults.append(f"{name} has weights beside kernel and bias")
            elif isinstance(layer, _LOOKUP_LAYERS):
                faults.append(f"{name} has a vocabulary that a clone would not have")
            elif layer.weights and not isinstance(layer, _SPARED_LAYERS):
                faults.append(f"{name} has weights whose units are not known here")
    if faults:
        raise ValueError(
            "`model` must have no weights but plain kernels, biases, normalization and "
            "PReLU slopes, and nothing to overwrite. "
            f"Received: {'; '.join(dict.fromkeys(faults))}"
        )


def _check_number(name, value, *, above_zero=False):
    is_number = isinstance(value, (int, float, np.integer, np.floating))
    is_number = is_number and not isinstance(value, bool)
    limits = np.finfo("float32")  # beyond them it would be 0 or infinite on the device
    lowest = float(limits.tiny) if above_zero else 0
    if not is_number or not lowest <= value <= float(limits.max):
        raise ValueError(
            f"`{name}` must be a finite number {'above 0' if above_zero else '>= 0'}. "
            f"Received: {name}={value!r}"
        )
    return float(value)


def _check_axis(axis):
    axes = axis if isinstance(axis, (list, tuple)) else [axis]
    axes = [int(a) if isinstance(a, np.integer) else a for a in axes]
    integers = {a for a in axes if type(a) is int}
    if axis is not None and not (axes and len(integers) == len(axes)):
        raise ValueError(
            "`axis` must be None, an integer or a list of distinct integers. "
            f"Received: axis={axis!r}"
        )
    return axes if isinstance(axis, (list, tuple)) else axes[0]
