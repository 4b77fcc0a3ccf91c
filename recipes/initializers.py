"""Initial weights chosen from the activation that follows, or measured on a batch.

For every layer that has an activation: Keras starts each kernel with Glorot, which is
right for tanh and sigmoid, halves the signal's power at every ReLU, and knows nothing
of the slope of a leaky one. `initializer_for` looks the activation up and returns one
of Keras's own initializers, a fresh one each call, because one unseeded instance given
to two layers starts both with the same weights (Keras 3.15). `lsuv` does without a
formula: it scales the kernels of a built model until a batch of your data leaves each
layer with unit variance, whatever the activations, the skips and the pooling between.

Not for recurrent, embedding, attention and einsum kernels, whose fans are other axes;
and not needed where batch normalization follows every layer, though it does no harm.

This file is longer than most: the first way is a table of all activations of Keras, the
second a list of all that it must leave alone.

```python
import keras
import numpy as np

from recipes.initializers import initializer_for, lsuv

model = keras.Sequential([keras.Input((28, 28, 1))])
model.add(keras.layers.Conv2D(8, 3, kernel_initializer=initializer_for("relu")))
leaky = keras.layers.LeakyReLU(0.1)
start = initializer_for(leaky, kernel="depthwise")
model.add(keras.layers.DepthwiseConv2D(3, depthwise_initializer=start))
model.add(leaky)
model.add(keras.layers.Flatten())
start = initializer_for("softmax")
model.add(keras.layers.Dense(10, activation="softmax", kernel_initializer=start))

plain = [keras.layers.Dense(32, activation="tanh") for _ in range(10)]
model = keras.Sequential([keras.Input((64,)), *plain])
print(lsuv(model, np.random.rand(128, 64)))
```

Reference: He, Zhang, Ren, Sun, "Delving Deep into Rectifiers", 2015,
https://arxiv.org/abs/1502.01852
Reference: Glorot, Bengio, "Understanding the Difficulty of Training Deep Feedforward
Neural Networks", 2010, https://proceedings.mlr.press/v9/glorot10a.html
Reference: Klambauer et al., "Self-Normalizing Neural Networks", 2017,
https://arxiv.org/abs/1706.02515
Reference: Mishkin, Matas, "All You Need Is a Good Init", 2016,
https://arxiv.org/abs/1511.06422
Revised: 0.2.0
"""

import contextlib
import numbers

import keras
import numpy as np

# The question asked of each activation f: is f(z) close to max(z, a z) for large |z|?
# Then it lets through (1 + a^2) / 2 of its input's mean square, and He makes that good.
# An activation that is bounded, or close to z on both sides, or that ends a network
# (no layer follows whose signal is to be kept) has no such factor: Glorot, which weighs
# the forward signal against the gradient.
_SCHEMES = {
    "relu": "he",  # max(z, 0)
    "relu6": "he",  # ReLU wherever |z| is near 1; the cap at 6 is hardly reached
    "leaky_relu": "he",  # max(z, a z)
    "prelu": "he",  # max(z, a z), a learned
    "threshold": "he",  # z above a threshold, a constant below
    "elu": "he",  # ReLU with a smooth floor at -1
    "celu": "he",  # ELU in another parametrization
    "gelu": "he",  # z times a soft step
    "silu": "he",  # z times a soft step
    "swish": "he",  # Keras's second name of silu
    "mish": "he",  # z times a soft step
    "hard_silu": "he",  # z times a piecewise linear step
    "hard_swish": "he",  # Keras's second name of hard_silu
    "glu": "he",  # one half of the units times a soft step of the other half
    "softplus": "he",  # ReLU with the corner rounded
    "squareplus": "he",  # ReLU with the corner rounded
    "sparse_plus": "he",  # ReLU with the corner rounded
    "selu": "lecun",  # its two constants are derived for a variance of 1 / fan_in
    "tanh": "glorot",  # bounded, z near zero
    "hard_tanh": "glorot",  # bounded, z near zero
    "softsign": "glorot",  # bounded, z near zero
    "sigmoid": "glorot",  # bounded
    "hard_sigmoid": "glorot",  # bounded
    "sparse_sigmoid": "glorot",  # bounded
    "linear": "glorot",  # z
    "tanh_shrink": "glorot",  # close to z on both sides
    "soft_shrink": "glorot",  # close to z on both sides
    "hard_shrink": "glorot",  # close to z on both sides
    "softmax": "glorot",  # bounded, ends a network
    "sparsemax": "glorot",  # bounded, ends a network
    "log_softmax": "glorot",  # ends a network
    "log_sigmoid": "glorot",  # ends a network
    "exponential": "glorot",  # ends a network; as a hidden one it explodes anyway
}

_SCALE_AND_MODE = {
    "he": (2.0, "fan_in"),
    "lecun": (1.0, "fan_in"),
    "glorot": (1.0, "fan_avg"),
}

# Keras takes the last two axes of a kernel for (in, out) and the others for space. The
# kernel of a transposed convolution is (..., out, in): its fan-in is what Keras calls
# fan-out, at any rank. A depthwise kernel is (..., in, multiplier) and each output
# sees one channel: no list of axes serves both ranks, but -4 is an error where wrong.
_FAN_AXES = {
    "dense": {},
    "transposed": {},
    "depthwise": {"input_axes": (-4, -3), "output_axes": (-4, -3, -1)},
    "depthwise_1d": {"input_axes": (-3,), "output_axes": (-3, -1)},
}

_DISTRIBUTIONS = {"normal": "truncated_normal", "uniform": "uniform"}

_LEAKY_RELU_SLOPE = 0.2  # of the function; the layer LeakyReLU has 0.3

# What LSUV scales, and what it may pass over although it has weights.
_SCALABLE = (
    keras.layers.Dense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
)
_PASSED_OVER = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.Normalization,
    keras.layers.RMSNormalization,
    keras.layers.PReLU,
)
_MOST_SCALINGS = 10  # one will do, but for biases and small floats


def initializer_for(
    activation,
    *,
    kernel: str = "dense",
    distribution: str = "normal",
    seed: int | keras.random.SeedGenerator | None = None,
) -> keras.initializers.Initializer:
    """Return a fresh Keras initializer that suits the activation after the kernel.

    For the `kernel_initializer` (or `depthwise_initializer`) of a layer. Not for
    biases: they start at zero.

    The variance of a weight is, with a the slope for negative inputs:

    - ReLU and its kin (He): 2 / ((1 + a^2) fan_in)
    - SELU (LeCun): 1 / fan_in
    - sigmoid, tanh, softmax, linear and their kin (Glorot): 2 / (fan_in + fan_out)

    fan_in is the number of inputs one output is summed from, fan_out the number of
    outputs one input enters, both away from the border and at stride 1.

    Example:

    ```python
    import keras

    from recipes.initializers import initializer_for

    start = initializer_for(keras.layers.LeakyReLU(0.5), distribution="uniform")
    print(start.scale, start.mode)  # 1.6 fan_in
    ```

    Args:
        activation: What follows the kernel: `None` (linear), a name, a function of
            `keras.activations` or `keras.ops`, or an activation layer, whose slope is
            read. A PReLU counts with the root mean square of its initial slopes.
        kernel: `"dense"`, also for ordinary and pointwise convolutions;
            `"depthwise"` for the depthwise kernel of DepthwiseConv2D and
            SeparableConv2D, `"depthwise_1d"` for that of the 1D layers (fan_in is the
            window alone; Keras multiplies it by the channels); `"transposed"` for
            Conv1D/2D/3DTranspose (fan_in is the window times the input channels; Keras
            takes the output channels). With stride s in d dimensions only one in s^d
            of those inputs meets in one output: multiply `scale` by s^d to keep the
            variance there, too.
        distribution: `"normal"` (cut at two deviations, the variance made good) or
            `"uniform"`; the variance is the same.
        seed: An integer from 0 to 2^32 - 1 for the same values at every call, a
            `keras.random.SeedGenerator`, or `None` for a new seed.

    Returns:
        A new `keras.initializers.VarianceScaling`.

    Raises:
        ValueError: If the activation is not one of Keras's, or another argument is not
            one of those listed.
    """
    scheme, slope = _scheme_and_slope(activation)
    _check_choice("kernel", kernel, _FAN_AXES)
    _check_choice("distribution", distribution, _DISTRIBUTIONS)
    scale, mode = _SCALE_AND_MODE[scheme]
    if kernel == "transposed" and mode == "fan_in":
        mode = "fan_out"
    return keras.initializers.VarianceScaling(
        scale=scale / (1.0 + slope**2),
        mode=mode,
        distribution=_DISTRIBUTIONS[distribution],
        seed=_check_seed(seed),
        # Lists, as JSON gives them back; fresh, as they stay in the initializer
        **{name: list(axes) for name, axes in _FAN_AXES[kernel].items()},
    )


def lsuv(model: keras.Model, x, *, target_std: float = 1.0, tolerance: float = 0.1):
    """Start a model with orthonormal kernels, scaled to unit variance on a batch.

    Layer-sequential unit-variance initialization, for deep networks before their
    training, above all where no formula fits: unusual activations, skips, pooling,
    inputs that are not standardized. Not after training, which it would undo, and not
    beside batch normalization before each activation, which scales by itself.

    Each kernel W, as a matrix of one column per unit, first becomes a random
    orthonormal one. Then, in the order of the computation,

    W <- W s / std(z) until |std(z) / s - 1| <= t

    with s the `target_std`, t the `tolerance`, and z = W x + b the outputs of the layer
    *before* its activation, over all inputs, units and positions of the batch, as in
    the paper; one scaling is enough unless biases are not zero.

    The model runs as it predicts: dropout off, batch normalization with its moving
    statistics. Nothing in it changes but those kernels. Frozen layers keep theirs.

    Example:

    ```python
    import keras
    import numpy as np

    from recipes.initializers import lsuv

    deep = [keras.layers.Dense(16, activation="gelu") for _ in range(5)]
    model = keras.Sequential([keras.Input((8,)), *deep])
    print(lsuv(model, np.random.rand(100, 8)))  # "after" is 1 in all rows
    ```

    Args:
        model: A built Sequential or Functional model, which may be nested, whose
            trainable kernels are those of Dense, Conv1D, Conv2D and Conv3D layers,
            each called once.
        x: One batch as the model takes it, some hundred inputs. It runs at once.
        target_std: s, above 0.
        tolerance: t, above 0 and below 1. The paper's 0.1 bounds the variance.

    Returns:
        A DataFrame with one row per treated layer, in the order of the computation:
        std(z) `before`, with the weights the model had, and `after`.

    Raises:
        ValueError: If an argument is out of its range, the model is unbuilt,
            subclassed or has other trainable weights, a layer is called more than
            once, or has outputs that cannot be scaled: without variance on `x`, not
            finite, or ruled by biases. The model is then as it was.
    """
    import pandas

    target_std = _number_between("target_std", target_std, 1e-6, 1e6)
    tolerance = _number_between("tolerance", tolerance, 0.0, 1.0)
    layers = _layers_to_scale(model)
    try:
        model(x, training=False)
    except Exception as error:  # whose kind depends on the backend
        raise ValueError(
            f"`x` must be inputs that the model takes. Received: x={x!r}"
        ) from error
    before, after = {}, {}

    def measure(layer, linear):
        if layer in before:
            raise ValueError(
                "`model` must call each layer with a kernel once. "
                f"Received: {layer.name}, which is called more than once"
            )
        outputs = linear()
        before[layer] = _deviation(outputs)
        return outputs

    def scale(layer, linear):
        kernel = keras.initializers.Orthogonal()(layer.kernel.shape, "float32")
        for _ in range(_MOST_SCALINGS):
            layer.kernel.assign(kernel)
            outputs = linear()
            deviation = after[layer] = _deviation(outputs)
            if abs(deviation / target_std - 1.0) <= tolerance:
                return outputs
            if not 0.0 < deviation < np.inf:
                break
            kernel = kernel * (target_std / deviation)
        raise ValueError(
            "`x` must give each layer outputs that its kernel can scale to a "
            f"deviation of {target_std}. Received: {layer.name}, with {deviation}"
        )

    kernels = [keras.ops.convert_to_numpy(layer.kernel) for layer in layers]
    try:
        for treatment in (measure, scale):
            with _linear_parts_through(treatment, layers):
                model(x, training=False)
    except BaseException:
        for layer, kernel in zip(layers, kernels, strict=True):
            layer.kernel.assign(kernel)
        raise
    return pandas.DataFrame(
        {"before": [before[layer] for layer in after], "after": after.values()},
        index=pandas.Index([layer.path for layer in after], name="layer"),
    )


def _scheme_and_slope(activation):
    layers = keras.layers
    if isinstance(activation, layers.Activation):
        return _scheme_and_slope(activation.activation)
    if isinstance(activation, (layers.LeakyReLU, layers.ReLU)):
        return "he", float(activation.negative_slope)
    if isinstance(activation, layers.PReLU):
        slopes = keras.ops.convert_to_numpy(activation.alpha_initializer((1000,)))
        return "he", float(np.sqrt(np.mean(np.square(slopes, dtype="float64"))))
    if isinstance(activation, layers.ELU):
        return "he", 0.0
    if isinstance(activation, layers.Softmax):
        return "glorot", 0.0
    name = _name_of(activation)
    return _SCHEMES[name], _LEAKY_RELU_SLOPE if name == "leaky_relu" else 0.0


def _name_of(activation):
    if activation is None:
        return "linear"
    for name in _SCHEMES:
        if isinstance(activation, str):
            found = activation == name
        else:  # by identity: another function may bear the same name
            functions = [getattr(m, name, None) for m in (keras.activations, keras.ops)]
            found = any(activation is function for function in functions)
        if found:
            return name
    raise ValueError(
        "`activation` must be None, a Keras activation layer (Activation, ELU, "
        "LeakyReLU, PReLU, ReLU, Softmax), or one of these, by name or as the function "
        f"of Keras: {', '.join(_SCHEMES)}. Received: activation={activation!r}"
    )


def _check_choice(name, value, choices):
    if not isinstance(value, str) or value not in choices:
        raise ValueError(
            f"`{name}` must be one of {', '.join(map(repr, choices))}. "
            f"Received: {name}={value!r}"
        )


def _check_seed(seed):
    if seed is None or isinstance(seed, keras.random.SeedGenerator):
        return seed
    is_integer = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool)
    if not is_integer or not 0 <= seed < 2**32:  # the range JAX accepts
        raise ValueError(
            "`seed` must be None, an integer from 0 to 2**32 - 1, or a "
            f"keras.random.SeedGenerator. Received: seed={seed!r}"
        )
    return int(seed)


def _layers_to_scale(model):
    if not _is_built_graph(model):
        raise ValueError(
            "`model` must be a built Sequential or Functional model. "
            f"Received: model={model}"
        )
    layers, others = [], []
    for layer in dict.fromkeys(_layers_inside(model)):
        if not getattr(layer, "trainable_weights", None):  # or an operation
            continue
        plain = 1 + getattr(layer, "use_bias", False)  # more: LoRA, PReLU inside
        if type(layer) in _SCALABLE and len(layer.weights) == plain:
            layers.append(layer)
        elif not isinstance(layer, _PASSED_OVER):
            others.append(f"{layer.name} ({type(layer).__name__})")
    if others or not layers:
        raise ValueError(
            "`model` must have kernels to scale, and no trainable weights but those of "
            "plain Dense and convolutional layers, normalization and PReLU. "
            f"Received: {', '.join(others) or 'no such kernel'}"
        )
    return layers


def _is_built_graph(layer):
    is_graph = isinstance(layer, keras.Sequential) or hasattr(layer, "outputs")
    return isinstance(layer, keras.Model) and layer.built and is_graph


def _layers_inside(model):
    for layer in model.layers:
        yield from _layers_inside(layer) if _is_built_graph(layer) else [layer]


@contextlib.contextmanager
def _linear_parts_through(treatment, layers):
    """Run each layer as activation(treatment(layer, its linear part)), for a while."""

    def treated(layer, call, activation):
        def run(*args, **kwargs):
            layer.activation = None
            try:
                outputs = treatment(layer, lambda: call(*args, **kwargs))
            finally:
                layer.activation = activation
            return activation(outputs)

        return run

    try:
        for layer in layers:  # past Keras's own bookkeeping of attributes
            layer.__dict__["call"] = treated(layer, layer.call, layer.activation)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("call", None)


def _deviation(outputs):
    with np.errstate(all="ignore"):  # infinite outputs have none
        outputs = keras.ops.convert_to_numpy(keras.ops.cast(outputs, "float32"))
        return float(np.std(outputs, dtype="float64"))


def _number_between(name, value, low, high):
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (is_number and low < value < high):
        raise ValueError(
            f"`{name}` must be a number between {low} and {high}. "
            f"Received: {name}={value!r}"
        )
    return float(value)
