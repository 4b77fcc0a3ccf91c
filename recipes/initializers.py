"""Initial weights chosen from the activation that follows them, with the right fans.

For every layer that has an activation: Keras starts each kernel with Glorot, which is
right for tanh and sigmoid, halves the signal's power at every ReLU, and knows nothing
of the slope of a leaky one. `initializer_for` looks the activation up and returns one
of Keras's own initializers, a fresh one each call, because one unseeded instance given
to two layers starts both with the same weights (Keras 3.15).

Not for recurrent, embedding, attention and einsum kernels, whose fans are other axes;
and not needed where batch normalization follows every layer, though it does no harm.

```python
import keras
from recipes.initializers import initializer_for

model = keras.Sequential([keras.Input((28, 28, 1))])
model.add(keras.layers.Conv2D(8, 3, kernel_initializer=initializer_for("relu")))
leaky = keras.layers.LeakyReLU(0.1)
start = initializer_for(leaky, kernel="depthwise")
model.add(keras.layers.DepthwiseConv2D(3, depthwise_initializer=start))
model.add(leaky)
model.add(keras.layers.Flatten())
start = initializer_for("softmax")
model.add(keras.layers.Dense(10, activation="softmax", kernel_initializer=start))
```

Reference: He, Zhang, Ren, Sun, "Delving Deep into Rectifiers", 2015,
https://arxiv.org/abs/1502.01852
Reference: Glorot, Bengio, "Understanding the Difficulty of Training Deep Feedforward
Neural Networks", 2010, https://proceedings.mlr.press/v9/glorot10a.html
Reference: Klambauer et al., "Self-Normalizing Neural Networks", 2017,
https://arxiv.org/abs/1706.02515
Revised: 0.1.0
"""

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


def initializer_for(activation, *, kernel="dense", distribution="normal", seed=None):
    """A fresh Keras initializer that suits the activation after the kernel.

    For the `kernel_initializer` (or `depthwise_initializer`) of a layer. Not for
    biases: they start at zero.

    The variance of a weight is, with a the slope for negative inputs:

    - ReLU and its kin (He): 2 / ((1 + a^2) fan_in)
    - SELU (LeCun): 1 / fan_in
    - sigmoid, tanh, softmax, linear and their kin (Glorot): 2 / (fan_in + fan_out)

    fan_in is the number of inputs one output is summed from, fan_out the number of
    outputs one input enters, both away from the border and at stride 1.

    ```python
    import keras
    from recipes.initializers import initializer_for

    start = initializer_for(keras.layers.LeakyReLU(0.5), distribution="uniform")
    print(start.scale, start.mode)  # 1.6 fan_in
    ```

    Args:
        activation: what follows the kernel: `None` (linear), a name, a function of
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
        seed: an integer from 0 to 2^32 - 1 for the same values at every call, a
            `keras.random.SeedGenerator`, or `None` for a new seed.

    Returns:
        A new `keras.initializers.VarianceScaling`.

    Raises:
        ValueError: if the activation is not one of Keras's, or another argument is not
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


def _scheme_and_slope(activation):
    layers = keras.layers
    if isinstance(activation, layers.Activation):
        return _scheme_and_slope(activation.activation)
    if isinstance(activation, layers.LeakyReLU | layers.ReLU):
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
    is_integer = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
    if not is_integer or not 0 <= seed < 2**32:  # the range JAX accepts
        raise ValueError(
            "`seed` must be None, an integer from 0 to 2**32 - 1, or a "
            f"keras.random.SeedGenerator. Received: seed={seed!r}"
        )
    return int(seed)
