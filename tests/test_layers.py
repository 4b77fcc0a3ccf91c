import itertools
import math

import keras
import numpy as np
import pytest

from recipes.initializers import initializer_for
from recipes.layers import (
    HighwayDense,
    Maxout,
    MaxPieces,
    ResidualConv2D,
    ResidualDense,
    UnitPReLU,
    dense_block,
)


def sigmoid(z):
    return 1.0 / (1.0 + np.exp(-z))


def elu(z, alpha=1.0):
    return np.where(z > 0, z, alpha * np.expm1(np.minimum(z, 0)))


# The activations of the chapter; the slopes of PReLU start at 0.
ACTIVATIONS = {
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "relu": lambda z: np.maximum(z, 0),
    "leaky_relu": lambda z: np.maximum(z, 0.2 * z),
    "prelu": lambda z: np.maximum(z, 0),
    "maxout": lambda z: np.maximum(*np.split(z, 2, axis=-1)),
    "elu": elu,
    "selu": lambda z: 1.05070098 * elu(z, 1.67326324),
    "gelu": lambda z: z * (1 + np.vectorize(math.erf)(z / math.sqrt(2))) / 2,
    "swish": lambda z: z * sigmoid(z),
    "mish": lambda z: z * np.tanh(np.log1p(np.exp(z))),
}
ALL = {
    "Maxout": lambda: Maxout(4, 3),
    "HighwayDense": lambda: HighwayDense(4, "prelu", gate_bias=-1),
    "ResidualDense": lambda: ResidualDense(4, keras.layers.LeakyReLU(0.1)),
    "dense_block": lambda: dense_block(4, "maxout", normalization="layer"),  # a list
    "UnitPReLU": lambda: UnitPReLU("ones"),
    "MaxPieces": lambda: MaxPieces(3),
}


def numpy_of(x):
    return keras.ops.convert_to_numpy(keras.ops.cast(x, "float32"))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def built_with_random_weights(layer, x):
    """Build; give all weights, those that start at zero, too, other values."""
    layer(x)
    for number, weight in enumerate(layer.weights):
        if weight.name != "alpha":
            weight.assign(np.abs(noise(*weight.shape, seed=number)) - 0.3)
    return [numpy_of(w) for w in layer.weights if w.name != "alpha"]


# Maxout


@pytest.mark.parametrize(
    "units, num_pieces, shape", [(1, 2, (3,)), (5, 4, (2, 3)), (2, 3, (2, 2, 3))]
)
def test_maxout_takes_the_largest_of_its_affine_pieces(units, num_pieces, shape):
    x = noise(4, *shape)
    layer = Maxout(units, num_pieces)
    kernel, bias = built_with_random_weights(layer, x)
    pieces = (x @ kernel + bias).reshape(*x.shape[:-1], num_pieces, units)
    np.testing.assert_allclose(numpy_of(layer(x)), pieces.max(axis=-2), atol=1e-5)
    assert layer.compute_output_shape((None, *shape)) == (None, *shape[:-1], units)


def test_maxout_multiplies_the_mean_square_as_it_says():
    for num_pieces, factor in {2: 1.0, 3: 1.28, 4: 1.55, 5: 1.8}.items():
        largest = noise(200_000, num_pieces).max(axis=1)  # of independent numbers
        assert np.mean(np.square(largest)) == pytest.approx(factor, abs=0.02)
    outputs = numpy_of(Maxout(256, 3)(noise(500, 256)))
    assert np.mean(np.square(outputs)) == pytest.approx(1.28, rel=0.1)


def test_max_pieces_compares_inputs_a_block_apart():
    outputs = MaxPieces(3)(np.array([[1.0, 9.0, 5.0, 2.0, 3.0, 4.0]]))
    np.testing.assert_array_equal(numpy_of(outputs), [[5.0, 9.0]])


# HighwayDense and ResidualDense


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_highway_mixes_by_its_gate(activation):
    width = 3 if activation in ("tanh", "maxout") else 4
    x = noise(5, width)
    layer = HighwayDense(4, activation)
    w, b, w_gate, b_gate, *projection = built_with_random_weights(layer, x)
    assert len(projection) == (width != 4)
    transformed = ACTIVATIONS[activation](x @ w + b)
    gate = sigmoid(x @ w_gate + b_gate)
    carried = x @ projection[0] if projection else x
    expected = transformed * gate + carried * (1 - gate)
    np.testing.assert_allclose(numpy_of(layer(x)), expected, atol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_residual_adds_to_its_input(activation):
    width = 3 if activation in ("tanh", "maxout") else 4
    x = noise(5, width)
    layer = ResidualDense(4, activation)
    w1, b1, w2, b2, *projection = built_with_random_weights(layer, x)
    assert len(projection) == (width != 4)
    residual = ACTIVATIONS[activation](x @ w1 + b1) @ w2 + b2
    expected = residual + (x @ projection[0] if projection else x)
    np.testing.assert_allclose(numpy_of(layer(x)), expected, atol=1e-5)


def test_highway_starts_with_its_gate_nearly_closed():
    x = noise(20, 32)
    for gate_bias in (None, -5):
        options = {} if gate_bias is None else {"gate_bias": gate_bias}
        layer = HighwayDense(32, "tanh", **options)
        layer.build(x.shape)
        opened = sigmoid(x @ numpy_of(layer.gate.kernel) + (gate_bias or -2))
        transformed = np.tanh(x @ numpy_of(layer.transform[0].kernel))
        expected = transformed * opened + x * (1 - opened)
        np.testing.assert_allclose(numpy_of(layer(x)), expected, atol=1e-5)


def test_residuals_start_as_the_identity_or_a_projection():
    x, images = noise(20, 8), noise(2, 5, 5, 3)
    np.testing.assert_array_equal(numpy_of(ResidualDense(8, "relu")(x)), x)
    layer = ResidualConv2D(3, "relu")
    np.testing.assert_array_equal(numpy_of(layer(images)), images)
    layer.residual[-1].beta.assign(np.ones(3))
    np.testing.assert_allclose(numpy_of(layer(images)), images + 1, atol=1e-6)
    layer = ResidualDense(5, "relu")
    outputs = numpy_of(layer(x))
    np.testing.assert_allclose(outputs, x @ layer.carry[0].get_weights()[0], atol=1e-5)


def test_a_change_of_the_input_comes_through_many_layers():
    x, change = noise(5, 4), 0.1 * noise(5, 4, seed=1)

    def passed_on(make):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((4,)), *(make() for _ in range(10))])
        outputs = numpy_of(model(x + change)) - numpy_of(model(x))
        return np.linalg.norm(outputs) / np.linalg.norm(change)

    assert passed_on(lambda: keras.layers.Dense(4, "sigmoid")) < 1e-3
    assert passed_on(lambda: HighwayDense(4, "sigmoid")) > 0.1
    assert passed_on(lambda: ResidualDense(4, "sigmoid")) == pytest.approx(1.0)


# ResidualConv2D


@pytest.mark.parametrize(
    "activation, strides, training", [("prelu", 1, True), ("maxout", (1, 2), False)]
)
def test_residual_convolution_adds_to_its_input(activation, strides, training):
    x = noise(2, 5, 5, 3)
    layer = ResidualConv2D(4, activation, strides=strides)
    built_with_random_weights(layer, x)
    for weight in layer.weights:
        if weight.name == "moving_variance":
            weight.assign(1.0 + np.abs(numpy_of(weight)))

    def conv(*args):
        return keras.layers.Conv2D(*args, padding="same", use_bias=False)

    norms = [keras.layers.BatchNormalization() for _ in range(3)]
    convs = [conv(8 if activation == "maxout" else 4, 3, strides), conv(4, 3)]
    convs += [conv(4, 1, strides)]
    weights = iter([numpy_of(w) for w in layer.weights if w.name != "alpha"])

    def run(part, z):
        part.build(tuple(z.shape))
        part.set_weights(list(itertools.islice(weights, len(part.weights))))
        return part(z, training=training) if "norm" in part.name else part(z)

    z = numpy_of(run(norms[0], run(convs[0], x))).astype("float64")
    z = ACTIVATIONS[activation](z).astype("float32")
    expected = run(norms[1], run(convs[1], z))
    expected += run(norms[2], run(convs[2], x))
    before = layer.non_trainable_variables[0].numpy()
    outputs = numpy_of(layer(x, training=training))
    np.testing.assert_allclose(outputs, numpy_of(expected), rtol=1e-3, atol=1e-3)
    assert training == np.any(layer.non_trainable_variables[0].numpy() != before)
    assert layer.compute_output_shape(x.shape) == outputs.shape
    assert layer.compute_output_shape((None, None, None, 3)) == (None, None, None, 4)


# dense_block


NORMALIZED = {
    "batch": lambda z: (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-3),
    "layer": lambda z: (
        (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-3)
    ),
}


@pytest.mark.parametrize(
    "activation, normalization",
    [(name, "batch") for name in ACTIVATIONS]
    + [("relu", None), ("maxout", None), ("relu", "layer"), ("maxout", "layer")],
)
def test_block_normalizes_before_or_after_the_activation(activation, normalization):
    x = noise(50, 6)
    f, normalize = ACTIVATIONS[activation], NORMALIZED.get(normalization, lambda z: z)
    for position in ("before", "after"):
        block = dense_block(
            5, activation, normalization=normalization, position=position
        )
        assert len(block) == (2 if normalization is None else 3)
        outputs = x
        for layer in block:
            is_batch = isinstance(layer, keras.layers.BatchNormalization)
            outputs = layer(outputs, **({"training": True} if is_batch else {}))
        outputs = numpy_of(outputs)
        z = x @ block[0].get_weights()[0]
        expected = f(normalize(z)) if position == "before" else normalize(f(z))
        np.testing.assert_allclose(outputs, expected, atol=1e-3)
        bias_is_redundant = normalization is not None and position == "before"
        assert block[0].use_bias != bias_is_redundant
        assert outputs.shape == (50, 5)


def kerass_activations():
    plumbing = {"get", "serialize", "deserialize", "threshold"}  # which has no default
    names = {n for n, f in vars(keras.activations).items() if callable(f)} - plumbing
    forms = [(name, name) for name in sorted(names)]
    forms += [(keras.activations.mish, "mish"), (None, None)]
    forms += [(keras.layers.Activation("selu"), "selu"), ("prelu", "prelu")]
    forms += [(kind, kind) for kind in map(make_layer, ("LeakyReLU", "ReLU", "PReLU"))]
    return forms


def make_layer(name):
    return getattr(keras.layers, name)()


@pytest.mark.parametrize("activation, known", kerass_activations())
def test_initial_weights_suit_the_activation(activation, known):
    expected = initializer_for(known)
    kernel = dense_block(4, activation)[0].kernel_initializer
    he_without_slope = 2.0 if expected.scale > 1.0 else 1.0
    assert (kernel.scale, kernel.mode) == (he_without_slope, expected.mode)


def test_initializer_may_be_given():
    for layer in (
        dense_block(4, "relu", kernel_initializer="ones")[0],
        HighwayDense(4, "relu", kernel_initializer="ones").transform[0],
        ResidualDense(4, "relu", kernel_initializer="ones").residual[0],
        ResidualConv2D(4, "relu", kernel_initializer="ones").residual[0],
        Maxout(4, 2, kernel_initializer="ones").parts[0],
    ):
        assert isinstance(layer.kernel_initializer, keras.initializers.Ones)


def test_slopes_of_an_activation_layer_are_not_shared():
    slopes = keras.layers.PReLU()
    blocks = [*dense_block(4, slopes), *dense_block(4, slopes)]
    model = keras.Sequential([keras.Input((3,)), *blocks])
    assert len([w for w in model.weights if w.name == "alpha"]) == 2
    assert not slopes.built


# What they all promise


def test_sequences_of_unknown_length_and_their_masks_pass():
    tokens = np.array([[1, 2, 3], [2, 1, 0]])
    inputs = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(4, 6, mask_zero=True)(inputs)
    *stack, pieces = keras.tree.flatten([make() for make in ALL.values()])
    for layer in [*stack, keras.layers.Dense(6), pieces]:
        x = layer(x)
        assert x.shape[:2] == (None, None)
    model = keras.Model(inputs, [x, keras.layers.GlobalAveragePooling1D()(x)])
    every, averages = map(numpy_of, model(tokens))
    np.testing.assert_allclose(averages[0], every[0].mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(averages[1], every[1, :2].mean(axis=0), atol=1e-6)


def test_all_are_saved_and_loaded(tmp_path):
    images = [ResidualConv2D(4, "gelu", strides=2), keras.layers.Flatten()]
    *parts, pieces = keras.tree.flatten([make() for make in ALL.values()])
    model = keras.Sequential([keras.Input((5, 5, 3)), *images, *parts])
    model.add(keras.layers.Dense(6))
    model.add(pieces)
    for number, weight in enumerate(model.trainable_variables):
        weight.assign(noise(*weight.shape, seed=number))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    x = noise(2, 5, 5, 3)
    np.testing.assert_array_equal(numpy_of(loaded(x)), numpy_of(model(x)))
    for mine, theirs in zip(model.layers, loaded.layers, strict=True):
        assert mine.get_config() == theirs.get_config()


@pytest.mark.parametrize(
    "kind, activation",
    [
        (HighwayDense, "mish"),
        (HighwayDense, keras.activations.tanh),
        (ResidualDense, None),
        (ResidualDense, "prelu"),
        (ResidualConv2D, MaxPieces(3)),
    ],
)
def test_config_makes_an_equal_layer(kind, activation):
    layer = kind(
        4,
        activation,
        kernel_initializer=keras.initializers.HeUniform(seed=3),
        kernel_regularizer="l2",
        kernel_constraint=keras.constraints.MaxNorm(2.0),
        trainable=False,
        name="a",
    )
    x = noise(2, 5, 5, 3) if kind is ResidualConv2D else noise(5, 3)
    again = kind.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    layer(x), again(x)
    assert [w.path for w in again.weights] == [w.path for w in layer.weights]
    again.set_weights(layer.get_weights())
    np.testing.assert_array_equal(numpy_of(again(x)), numpy_of(layer(x)))


def test_regularizers_and_constraints_are_on_every_kernel():
    options = {"kernel_regularizer": "l2", "kernel_constraint": "non_neg"}
    for layer, shape, kernels in (
        (Maxout(4, 2, **options), (None, 3), 1),
        (HighwayDense(4, "relu", **options), (None, 3), 3),
        (ResidualDense(4, "relu", **options), (None, 3), 3),
        (ResidualConv2D(4, "relu", **options), (None, 5, 5, 3), 3),
    ):
        layer.build(shape)
        found = [w for w in layer.weights if w.name == "kernel"]
        assert len(found) == len(layer.losses) == kernels
        assert all(w.constraint is not None for w in found)
        others = [w for w in layer.weights if w.name != "kernel"]
        assert all(w.constraint is w.regularizer is None for w in others)


@pytest.mark.parametrize("kind", [HighwayDense, ResidualDense, ResidualConv2D, Maxout])
def test_a_frozen_layer_has_no_trainable_part(kind):
    x = noise(2, 5, 5, 3)
    layer = kind(4, 2 if kind is Maxout else "prelu", trainable=False)
    model = keras.Sequential([keras.Input((5, 5, 3)), layer])
    before = layer.get_weights()
    model(x, training=True)
    assert model.trainable_variables == []
    for old, new in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    layer.trainable = True
    assert len(model.trainable_variables) > 1


def test_mixed_precision_computes_in_half_and_keeps_whole_weights():
    options = {"dtype": "mixed_float16"}
    x = noise(2, 5, 5, 3)
    for layer in (
        Maxout(4, 2, **options),
        HighwayDense(4, "maxout", **options),
        ResidualDense(4, keras.layers.LeakyReLU(0.1), **options),
        ResidualConv2D(4, "prelu", strides=2, **options),
    ):
        outputs = layer(x)
        assert keras.backend.standardize_dtype(outputs.dtype) == "float16"
        assert {w.dtype for w in layer.weights} == {"float32"}
        whole = type(layer).from_config(layer.get_config() | {"dtype": "float32"})
        whole.build(x.shape)
        whole.set_weights(layer.get_weights())
        expected = numpy_of(whole(x))
        np.testing.assert_allclose(numpy_of(outputs), expected, rtol=0.1, atol=0.1)


# Errors


@pytest.mark.parametrize("count", [0, -1, 2.0, True, "4", None, np.nan], ids=str)
def test_wrong_counts_are_refused_by_name(count):
    for name, make in (
        ("units", lambda n: Maxout(n, 2)),
        ("num_pieces", lambda n: Maxout(4, n)),
        ("num_pieces", MaxPieces),
        ("units", lambda n: HighwayDense(n, "relu")),
        ("units", lambda n: ResidualDense(n, "relu")),
        ("units", lambda n: dense_block(n, "relu")),
        ("filters", lambda n: ResidualConv2D(n, "relu")),
        ("kernel_size", lambda n: ResidualConv2D(4, "relu", kernel_size=n)),
        ("strides", lambda n: ResidualConv2D(4, "relu", strides=(1, n))),
    ):
        with pytest.raises(ValueError, match=f"`{name}` must be .*Received: {name}="):
            make(count)
    assert Maxout(np.int64(4), np.int32(2)).units == 4


@pytest.mark.parametrize(
    "activation", ["Relu", "", 3, keras.layers.ReLU, lambda z: z, ["relu"]]
)
def test_unknown_activations_are_refused(activation):
    for make in (dense_block, HighwayDense, ResidualDense, ResidualConv2D):
        with pytest.raises(ValueError, match="`activation` must be.*Received: activ"):
            make(4, activation)


@pytest.mark.parametrize(
    "options",
    [{"normalization": "Batch"}, {"normalization": True}, {"normalization": ["batch"]}]
    + [{"position": "between"}, {"position": None}],
    ids=str,
)
def test_wrong_options_of_the_block_are_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"`{name}` must be one of.*Received: {name}="):
        dense_block(4, "relu", **options)


@pytest.mark.parametrize("gate_bias", [np.nan, np.inf, "-2", True, None])
def test_wrong_gate_bias_is_refused(gate_bias):
    with pytest.raises(ValueError, match="`gate_bias` must be.*Received: gate_bias="):
        HighwayDense(4, "relu", gate_bias=gate_bias)


def test_inputs_that_cannot_be_divided_are_refused():
    with pytest.raises(ValueError, match="`num_pieces` must divide the 5 inputs"):
        MaxPieces(2)(noise(3, 5))
    with pytest.raises(ValueError, match="`strides` must be one or two integers"):
        ResidualConv2D(4, "relu", strides=(1, 2, 1))
