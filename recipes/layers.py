"""Maxout, highway and residual layers, and a Dense block with its normalization.

Networks of ten layers and more, where plain Dense layers stop learning: `HighwayDense`
and `ResidualDense` pass their input on beside what they compute, so the gradient
reaches the first layer whatever the depth; `ResidualConv2D` does so for images.
`Maxout` learns the activation itself. `dense_block` lists Dense, activation and batch
or layer normalization in the right order, with initial weights that suit the
activation. All are made of Keras's layers. They take the activations by the names Keras
has, and `"prelu"` and `"maxout"`, which are no names in Keras (3.15).

Not needed for a few layers: there a plain Dense with ReLU and He weights trains as
well. Not for the last layer of a network, which is a plain Dense.

This file is longer than most: the layers share how they make their activation.

```python
import keras
import numpy as np

from recipes.layers import HighwayDense, Maxout, ResidualDense, dense_block

model = keras.Sequential([keras.Input((28, 28)), keras.layers.Flatten()])
for layer in dense_block(32, "elu", normalization="batch"):
    model.add(layer)
model.add(Maxout(16, 3))
model.add(HighwayDense(16, "relu"))
model.add(ResidualDense(16, "gelu"))
model.add(keras.layers.Dense(10, activation="softmax"))
model.compile("adam", "sparse_categorical_crossentropy")
model.fit(np.random.rand(32, 28, 28), np.zeros(32), verbose=0)

x = inputs = keras.Input((5, 4))  # on sequences, too, as Dense is
for layer in [*dense_block(4, "prelu"), ResidualDense(8, "swish")]:
    x = layer(x)
model = keras.Model(inputs, x)
```

Reference: Goodfellow, Warde-Farley, Mirza, Courville, Bengio, "Maxout Networks", 2013,
https://arxiv.org/abs/1302.4389
Reference: Srivastava, Greff, Schmidhuber, "Highway Networks", 2015,
https://arxiv.org/abs/1505.00387
Reference: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", 2015,
https://arxiv.org/abs/1512.03385
Reference: Ioffe, Szegedy, "Batch Normalization", 2015, https://arxiv.org/abs/1502.03167
Revised: 0.2.0
"""

import functools
import math
import numbers

import keras
from keras import layers, ops

# For the kernel before an activation or layer of that name, in lower case without
# underscores. All others start with Glorot.
_HE = {"relu", "relu6", "leakyrelu", "prelu", "unitprelu", "threshold", "elu", "celu"}
_HE |= {"gelu", "glu", "silu", "mish", "hardsilu"}  # swish is silu
_HE |= {"softplus", "squareplus", "sparseplus"}
_LECUN = {"selu", "maxpieces"}

_NORMALIZATIONS = {
    "batch": layers.BatchNormalization,
    "layer": layers.LayerNormalization,
}


@keras.saving.register_keras_serializable(package="recipes")
class Maxout(layers.Layer):
    """Give each unit the largest of several affine functions of the input.

    For networks with dropout, with whose averaging it goes well, and where the shape of
    the activation should be learned: a convex piecewise linear one, of which ReLU and
    the absolute value are cases. It costs `num_pieces` times the weights of Dense.

    y_u = max over k of (w_uk x + b_uk), for unit u and k = 1 ... `num_pieces`.

    Example:

    ```python
    import numpy as np

    from recipes.layers import Maxout

    print(Maxout(10, 3)(np.ones((2, 4))).shape)  # (2, 10)
    ```

    Args:
        units: Number of outputs, 1 or more.
        num_pieces: Affine functions per unit, 2 or more; 2 to 5 are usual.
        kernel_initializer: Of all pieces. LeCun keeps the mean square of the signal
            for two pieces; 3, 4 and 5 multiply it by 1.28, 1.55 and 1.80.
        kernel_regularizer: Penalty on the weights, or `None`.
        kernel_constraint: Usually max-norm, which the paper trains with, or `None`.

    Raises:
        ValueError: If `units` or `num_pieces` is not an integer in its range.
    """

    def __init__(
        self,
        units: int,
        num_pieces: int,
        *,
        kernel_initializer="lecun_normal",
        kernel_regularizer=None,
        kernel_constraint=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.units = _checked_count("units", units)
        self.num_pieces = _checked_count("num_pieces", num_pieces, minimum=2)
        self.supports_masking = True
        dense = layers.Dense(
            self.units * self.num_pieces,
            kernel_initializer=kernel_initializer,
            kernel_regularizer=kernel_regularizer,
            kernel_constraint=kernel_constraint,
            dtype=self.dtype_policy,
            name="pieces",
        )
        self.parts = [dense, MaxPieces(self.num_pieces, dtype=self.dtype_policy)]

    def build(self, input_shape):
        """Create the weights for inputs of the given shape."""
        _build_in_turn(self.parts, input_shape, self.trainable)

    def call(self, inputs):
        """Return the outputs, of shape (..., units)."""
        return _in_turn(self.parts, inputs)

    def compute_output_shape(self, input_shape):
        """Return the shape of the outputs."""
        return _shape_after(self.parts, input_shape)

    def get_config(self):
        """Return the constructor's arguments."""
        config = {"units": self.units, "num_pieces": self.num_pieces}
        return super().get_config() | config | _kernel_config(self.parts[0])


@keras.saving.register_keras_serializable(package="recipes")
class HighwayDense(layers.Layer):
    """Mix a Dense layer's outputs with its inputs, by a gate that is learned.

    For stacks of ten layers and more of one width. The gate starts nearly closed, so at
    first a stack passes most of its inputs on and of the gradient back; training opens
    it where the layer has something to add. Per layer sigmoid(-b') of the input pass:
    with b' = -2 that is 0.08 after 20 layers and 0.002, too little, after 50, where -4
    leaves 0.4. The deeper the stack, the more negative `gate_bias` has to be.

    y = H(x) T(x) + x (1 - T(x)), element by element, where H(x) = f(W x + b) with the
    activation f, and T(x) = sigmoid(W' x + b') is the gate. Where the inputs have
    another width than `units`, P x with a learned matrix P takes the place of x in the
    second term.

    Example:

    ```python
    import keras

    from recipes.layers import HighwayDense

    model = keras.Sequential([keras.Input((64,))])
    for _ in range(20):
        model.add(HighwayDense(32, "relu"))  # the first one projects
    ```

    Args:
        units: Number of outputs, 1 or more.
        activation: f, as in `dense_block`.
        gate_bias: Initial b', any finite number. At -2 the gate lets 12 percent of
            H(x) through, which suits ten to twenty layers; the paper names -1 and -3.
        kernel_initializer: Of W; `None` suits the activation. W' and P have Glorot.
        kernel_regularizer: Penalty on W, W' and P, or `None`.
        kernel_constraint: Constraint of W, W' and P, or `None`.

    Raises:
        ValueError: If an argument is not one of those listed.
    """

    def __init__(
        self,
        units: int,
        activation,
        *,
        gate_bias: float = -2.0,
        kernel_initializer=None,
        kernel_regularizer=None,
        kernel_constraint=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.units = _checked_count("units", units)
        self.gate_bias = _checked_bias("gate_bias", gate_bias)
        self.supports_masking = True
        self._dense = functools.partial(
            layers.Dense,
            kernel_regularizer=kernel_regularizer,
            kernel_constraint=kernel_constraint,
            dtype=self.dtype_policy,
        )
        self.transform = _with_activation(
            functools.partial(self._dense, name="hidden"),
            self.units,
            activation,
            kernel_initializer,
            dtype=self.dtype_policy,
            name="activation",
        )
        self._activation_config = _activation_config(activation)
        bias = keras.initializers.Constant(self.gate_bias)
        self.gate = self._dense(
            self.units, "sigmoid", bias_initializer=bias, name="gate"
        )

    def build(self, input_shape):
        """Create the weights for inputs of the given shape."""
        self.carry = []
        if input_shape[-1] != self.units:
            self.carry = [self._dense(self.units, use_bias=False, name="carry")]
        for parts in (self.transform, [self.gate], self.carry):
            _build_in_turn(parts, input_shape, self.trainable)

    def call(self, inputs):
        """Return the outputs, of shape (..., units)."""
        transformed, gate = _in_turn(self.transform, inputs), self.gate(inputs)
        return transformed * gate + _in_turn(self.carry, inputs) * (1 - gate)

    def compute_output_shape(self, input_shape):
        """Return the shape of the outputs."""
        return (*input_shape[:-1], self.units)

    def get_config(self):
        """Return the constructor's arguments."""
        config = {"units": self.units, "activation": self._activation_config}
        config |= {"gate_bias": self.gate_bias} | _kernel_config(self.transform[0])
        return super().get_config() | config


@keras.saving.register_keras_serializable(package="recipes")
class ResidualDense(layers.Layer):
    """Add what two Dense layers compute to their input.

    For stacks of any depth. It starts as the identity, or as the projection where the
    widths differ, since the second kernel starts at zero: a deep stack neither
    amplifies nor loses its signal and gradient, without normalization. Each block is
    two layers of weights: count two where depths are compared.

    y = F(x) + x, where F(x) = W2 f(W1 x + b1) + b2 with the activation f. Where the
    inputs have another width than `units`, y = F(x) + P x with a learned matrix P.

    Example:

    ```python
    import keras

    from recipes.layers import ResidualDense

    model = keras.Sequential([keras.Input((64,))])
    for _ in range(25):
        model.add(ResidualDense(32, "relu"))  # the first one projects
    ```

    Args:
        units: Number of outputs, and of hidden units, 1 or more.
        activation: f, as in `dense_block`.
        kernel_initializer: Of W1; `None` suits the activation. W2 is zero, P Glorot.
        kernel_regularizer: Penalty on W1, W2 and P, or `None`.
        kernel_constraint: Constraint of W1, W2 and P, or `None`.

    Raises:
        ValueError: If an argument is not one of those listed.

    Reference: Zhang, Dauphin, Ma, "Fixup Initialization: Residual Learning Without
    Normalization", 2019, https://arxiv.org/abs/1901.09321 (the zeros)
    """

    def __init__(
        self,
        units: int,
        activation,
        *,
        kernel_initializer=None,
        kernel_regularizer=None,
        kernel_constraint=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.units = _checked_count("units", units)
        self.supports_masking = True
        self._dense = functools.partial(
            layers.Dense,
            kernel_regularizer=kernel_regularizer,
            kernel_constraint=kernel_constraint,
            dtype=self.dtype_policy,
        )
        hidden, after = _with_activation(
            functools.partial(self._dense, name="hidden"),
            self.units,
            activation,
            kernel_initializer,
            dtype=self.dtype_policy,
            name="activation",
        )
        self._activation_config = _activation_config(activation)
        last = self._dense(self.units, kernel_initializer="zeros", name="last")
        self.residual = [hidden, after, last]

    def build(self, input_shape):
        """Create the weights for inputs of the given shape."""
        self.carry = []
        if input_shape[-1] != self.units:
            self.carry = [self._dense(self.units, use_bias=False, name="carry")]
        for parts in (self.residual, self.carry):
            _build_in_turn(parts, input_shape, self.trainable)

    def call(self, inputs):
        """Return the outputs, of shape (..., units)."""
        return _in_turn(self.residual, inputs) + _in_turn(self.carry, inputs)

    def compute_output_shape(self, input_shape):
        """Return the shape of the outputs."""
        return (*input_shape[:-1], self.units)

    def get_config(self):
        """Return the constructor's arguments."""
        config = {"units": self.units, "activation": self._activation_config}
        return super().get_config() | config | _kernel_config(self.residual[0])


@keras.saving.register_keras_serializable(package="recipes")
class ResidualConv2D(layers.Layer):
    """Add what two convolutions with batch normalization compute to their input.

    For deep networks on images, channels last. It starts as the identity, or as the
    projection where the shapes differ, since the last normalization's scale starts at
    zero. No activation follows the sum, so the way past all blocks is linear: a
    network of such blocks ends with pooling and Dense.

    y = F(x) + x, where F(x) = N2(W2 * f(N1(W1 * x))) with convolutions *, batch
    normalizations N1 and N2 in the place of biases, and the activation f. Where strides
    or channels differ, N3(W3 * x) with a 1 x 1 convolution takes the place of x.

    Example:

    ```python
    import keras

    from recipes.layers import ResidualConv2D

    model = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Conv2D(8, 3)])
    model.add(ResidualConv2D(8, "relu"))
    model.add(ResidualConv2D(16, "relu", strides=2))  # projects
    model.add(keras.layers.GlobalAveragePooling2D())
    ```

    Args:
        filters: Number of output channels, 1 or more.
        activation: f, as in `dense_block`.
        kernel_size: Height and width of W1 and W2, one integer or two.
        strides: Steps of W1 and W3 along height and width, one integer or two. The
            outputs have a size of ceil(size / strides).
        kernel_initializer: Of W1; `None` suits the activation. W2 and W3 have Glorot.
        kernel_regularizer: Penalty on W1, W2 and W3, or `None`.
        kernel_constraint: Constraint of W1, W2 and W3, or `None`.

    Raises:
        ValueError: If an argument is not one of those listed.

    Reference: Goyal et al., "Accurate, Large Minibatch SGD", 2017,
    https://arxiv.org/abs/1706.02677 (the zeros)
    Reference: He, Zhang, Ren, Sun, "Identity Mappings in Deep Residual Networks", 2016,
    https://arxiv.org/abs/1603.05027 (the linear way past)
    """

    def __init__(
        self,
        filters: int,
        activation,
        *,
        kernel_size: int | tuple[int, int] = 3,
        strides: int | tuple[int, int] = 1,
        kernel_initializer=None,
        kernel_regularizer=None,
        kernel_constraint=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters = _checked_count("filters", filters)
        self.kernel_size = _checked_pair("kernel_size", kernel_size)
        self.strides = _checked_pair("strides", strides)
        self._conv = functools.partial(
            layers.Conv2D,
            padding="same",
            data_format="channels_last",
            use_bias=False,
            kernel_regularizer=kernel_regularizer,
            kernel_constraint=kernel_constraint,
            dtype=self.dtype_policy,
        )
        self._norm = functools.partial(
            layers.BatchNormalization, dtype=self.dtype_policy
        )
        first, after = _with_activation(
            functools.partial(
                self._conv,
                kernel_size=self.kernel_size,
                strides=self.strides,
                name="first",
            ),
            self.filters,
            activation,
            kernel_initializer,
            dtype=self.dtype_policy,
            name="activation",
        )
        self._activation_config = _activation_config(activation)
        self.residual = [
            first,
            self._norm(name="first_norm"),
            after,
            self._conv(self.filters, self.kernel_size, name="last"),
            self._norm(gamma_initializer="zeros", name="last_norm"),
        ]

    def build(self, input_shape):
        """Create the weights for inputs of the given shape."""
        self.carry = []
        if self.strides != (1, 1) or input_shape[-1] != self.filters:
            projection = self._conv(self.filters, 1, self.strides, name="carry")
            self.carry = [projection, self._norm(name="carry_norm")]
        for parts in (self.residual, self.carry):
            _build_in_turn(parts, input_shape, self.trainable)

    def call(self, inputs):
        """Return the outputs, of shape (batch, height, width, filters)."""
        return _in_turn(self.residual, inputs) + _in_turn(self.carry, inputs)

    def compute_output_shape(self, input_shape):
        """Return the shape of the outputs."""
        return _shape_after(self.residual, input_shape)

    def get_config(self):
        """Return the constructor's arguments."""
        config = {"filters": self.filters, "activation": self._activation_config}
        config |= {"kernel_size": self.kernel_size, "strides": self.strides}
        return super().get_config() | config | _kernel_config(self.residual[0])


def dense_block(
    units: int,
    activation,
    *,
    normalization: str | None = None,
    position: str = "before",
    kernel_initializer=None,
) -> list[keras.Layer]:
    """List a Dense layer, its activation and its normalization, in the right order.

    For every hidden layer; not for the output layer. A list, so that each layer is one
    of the model's own, under a name to freeze or watch it by, and masks pass (through
    a Sequential inside a model they do not, in Keras 3.15).

    f(N(W x)) with `position="before"` the activation f, N(f(W x + b)) with `"after"`,
    f(W x + b) without normalization N. Batch normalization standardizes each unit over
    the batch, layer normalization each input over its units; both then scale and shift
    by learned numbers. Before the activation the shift takes the place of b.

    Example:

    ```python
    import keras

    from recipes.layers import dense_block

    model = keras.Sequential([keras.Input((64,)), *dense_block(32, "relu")])
    for _ in range(20):
        for layer in dense_block(32, "swish", normalization="batch"):
            model.add(layer)

    x = inputs = keras.Input((64,))
    for layer in dense_block(32, "maxout", normalization="layer", position="after"):
        x = layer(x)
    model = keras.Model(inputs, x)
    ```

    Args:
        units: Number of outputs, 1 or more.
        activation: A name (`"sigmoid"`, `"tanh"`, `"relu"`, `"leaky_relu"` with slope
            0.2, `"elu"`, `"selu"`, `"gelu"`, `"swish"`, `"mish"` and the others of
            `keras.activations`; `"prelu"`, one learned slope per unit; `"maxout"`, two
            pieces), a function, an activation layer, which is copied, such as
            `keras.layers.LeakyReLU(0.1)` or `MaxPieces(3)`, or `None`: linear.
        normalization: `"batch"`, `"layer"` or `None`. Layer normalization for small
            batches; batch normalization elsewhere.
        position: Of the normalization, `"before"` or `"after"` the activation.
        kernel_initializer: Of W. `None` suits the activation: He for ReLU and its kin,
            LeCun for SELU and maxout, Glorot for the others.

    Returns:
        A list of two or three new layers, to be called one after the other.

    Raises:
        ValueError: If an argument is not one of those listed.
    """
    units = _checked_count("units", units)
    _checked_word("normalization", normalization, (None, *_NORMALIZATIONS))
    _checked_word("position", position, ("before", "after"))
    before = position == "before"
    dense = functools.partial(
        layers.Dense, use_bias=not (before and normalization is not None)
    )
    block = _with_activation(dense, units, activation, kernel_initializer, name=None)
    if normalization is not None:
        block.insert(1 if before else 2, _NORMALIZATIONS[normalization]())
    return block


@keras.saving.register_keras_serializable(package="recipes")
class MaxPieces(layers.Layer):
    """Take the largest of each unit's values: the activation inside `Maxout`.

    For maxout after something else than a Dense layer: a convolution, a normalization.
    Of n outputs, output u is the largest of the inputs u, u + n, u + 2n ...

    Example:

    ```python
    import numpy as np

    from recipes.layers import MaxPieces

    print(MaxPieces(2)(np.array([[1.0, 5.0, 3.0, 4.0]])))  # [[3., 5.]]
    ```

    Args:
        num_pieces: Values per unit, 2 or more.

    Raises:
        ValueError: If `num_pieces` is not an integer above 1, or, when called, does not
            divide the number of inputs.
    """

    def __init__(self, num_pieces: int = 2, **kwargs):
        super().__init__(**kwargs)
        self.num_pieces = _checked_count("num_pieces", num_pieces, minimum=2)
        self.supports_masking = True

    def build(self, input_shape):
        """Check that the inputs can be divided."""
        if input_shape[-1] % self.num_pieces:
            raise ValueError(
                f"`num_pieces` must divide the {input_shape[-1]} inputs. "
                f"Received: num_pieces={self.num_pieces}"
            )

    def call(self, inputs):
        """Return the outputs, of shape (..., inputs / num_pieces)."""
        pieces = ops.split(inputs, self.num_pieces, axis=-1)
        return functools.reduce(ops.maximum, pieces)

    def compute_output_shape(self, input_shape):
        """Return the shape of the outputs."""
        return (*input_shape[:-1], input_shape[-1] // self.num_pieces)

    def get_config(self):
        """Return the constructor's arguments."""
        return super().get_config() | {"num_pieces": self.num_pieces}


@keras.saving.register_keras_serializable(package="recipes")
class UnitPReLU(layers.PReLU):
    """Learn one slope for the negative inputs of each unit, at every position.

    The `"prelu"` of this file. Keras's own learns one for each position as well, unless
    told, and cannot take sequences of unknown length.

    f(z) = z where z > 0, and a_u z elsewhere, with the slope a_u of unit u, first 0.

    Example:

    ```python
    import numpy as np

    from recipes.layers import UnitPReLU

    layer = UnitPReLU(alpha_initializer="ones")
    print(layer(np.array([[-2.0, 3.0]])), layer.alpha.shape)  # [[-2., 3.]] (2,)
    ```

    Args:
        kwargs: The arguments of `keras.layers.PReLU` but `shared_axes`.
    """

    def build(self, input_shape):
        """Create the slopes for inputs of the given shape."""
        self.shared_axes = list(range(1, len(input_shape) - 1))
        super().build(input_shape)


def _with_activation(make, units, activation, kernel_initializer, **options):
    """Return [a linear layer, its activation], as wide as the activation needs it."""
    after = _activation_layer(activation, options)
    width = units * getattr(after, "num_pieces", 1)
    if kernel_initializer is None:
        kernel_initializer = _initializer_before(after)
    return [make(width, kernel_initializer=kernel_initializer), after]


def _activation_layer(activation, options):
    if isinstance(activation, dict):  # from a config
        activation = keras.activations.get(activation)
    if isinstance(activation, layers.Layer):
        config = activation.get_config() | options
        return type(activation).from_config(config)  # a copy, to share no slopes
    if isinstance(activation, str) and activation in ("prelu", "maxout"):
        return {"prelu": UnitPReLU, "maxout": MaxPieces}[activation](**options)
    is_lambda = getattr(activation, "__name__", None) == "<lambda>"  # cannot be loaded
    try:
        if isinstance(activation, type) or is_lambda:
            raise ValueError
        return layers.Activation(activation, **options)
    except ValueError:
        raise ValueError(
            "`activation` must be None, 'prelu', 'maxout', a name or function of "
            "keras.activations, another named function, or an activation layer. "
            f"Received: activation={activation!r}"
        ) from None


def _activation_config(activation):
    if activation is None or isinstance(activation, (str, dict)):
        return activation
    return keras.activations.serialize(activation)


def _initializer_before(layer):
    kind = layer.activation if isinstance(layer, layers.Activation) else layer
    name = getattr(kind, "__name__", type(kind).__name__).lower().replace("_", "")
    if name in _HE:
        return "he_normal"
    return "lecun_normal" if name in _LECUN else "glorot_uniform"


def _kernel_config(layer):
    return {
        "kernel_initializer": keras.initializers.serialize(layer.kernel_initializer),
        "kernel_regularizer": keras.regularizers.serialize(layer.kernel_regularizer),
        "kernel_constraint": keras.constraints.serialize(layer.kernel_constraint),
    }


def _in_turn(parts, x):
    for layer in parts:
        x = layer(x)
    return x


def _shape_after(parts, shape):
    for layer in parts:
        shape = layer.compute_output_shape(shape)
    return tuple(shape)


def _build_in_turn(parts, shape, trainable):
    for layer in parts:
        layer.build(shape)
        shape = layer.compute_output_shape(shape)
        if not trainable:  # parts of a layer that was made, or loaded, frozen
            layer.trainable = False


def _checked_count(name, value, minimum=1):
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_integer or value < minimum:
        raise ValueError(
            f"`{name}` must be an integer, at least {minimum}. "
            f"Received: {name}={value!r}"
        )
    return int(value)


def _checked_pair(name, value):
    pair = value if isinstance(value, (list, tuple)) else (value, value)
    if len(pair) != 2:
        raise ValueError(
            f"`{name}` must be one or two integers. Received: {name}={value!r}"
        )
    return tuple(_checked_count(name, number) for number in pair)


def _checked_bias(name, value):
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        raise ValueError(
            f"`{name}` must be a finite number. Received: {name}={value!r}"
        )
    return float(value)


def _checked_word(name, value, options):
    if not isinstance(value, (str, type(None))) or value not in options:
        raise ValueError(
            f"`{name}` must be one of {options}. Received: {name}={value!r}"
        )
