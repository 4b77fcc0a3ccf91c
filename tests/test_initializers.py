import functools

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.initializers import initializer_for, lsuv

HE = (
    "relu relu6 leaky_relu threshold elu celu gelu glu silu swish mish hard_silu "
    "hard_swish softplus squareplus sparse_plus"
).split()
LECUN = ["selu"]
GLOROT = (
    "tanh hard_tanh softsign sigmoid hard_sigmoid sparse_sigmoid linear tanh_shrink "
    "soft_shrink hard_shrink softmax sparsemax log_softmax log_sigmoid exponential"
).split()
# Layer class, its arguments, input shape without the batch, `kernel`.
KERNELS = {
    "Dense": (keras.layers.Dense, (90,), (60,), "dense"),
    "Conv1D": (keras.layers.Conv1D, (40, 3), (9, 60), "dense"),
    "Conv2D": (keras.layers.Conv2D, (30, (2, 3)), (9, 9, 50), "dense"),
    "Depthwise1D": (keras.layers.DepthwiseConv1D, (5,), (9, 300), "depthwise_1d"),
    "Depthwise2D": (keras.layers.DepthwiseConv2D, ((2, 3),), (9, 9, 800), "depthwise"),
    "Multiplied2D": (keras.layers.DepthwiseConv2D, (3,), (9, 9, 400), "depthwise"),
    "Transposed1D": (keras.layers.Conv1DTranspose, (40, 3), (9, 60), "transposed"),
    "Transposed2D": (
        keras.layers.Conv2DTranspose,
        (20, (2, 3)),
        (9, 9, 60),
        "transposed",
    ),
    "Transposed3D": (keras.layers.Conv3DTranspose, (8, 2), (5, 5, 5, 60), "transposed"),
}


def make_layer(name, initializer):
    layer_class, arguments, _, kind = KERNELS[name]
    prefix = "depthwise" if "depthwise" in kind else "kernel"
    options = {f"{prefix}_initializer": initializer}
    if name != "Dense":
        options["padding"] = "same"
    if name in ("Depthwise1D", "Multiplied2D"):
        options["depth_multiplier"] = 2
    return layer_class(*arguments, **options)


def numpy_of(x):
    return keras.ops.convert_to_numpy(x)


@functools.cache
def counted_fans(name):
    """Fans counted through the layer itself: all weights one, stride one."""
    shape = KERNELS[name][2]
    layer = make_layer(name, "ones")
    middle = (0, *(size // 2 for size in shape[:-1]), 0)
    fan_in = numpy_of(layer(np.ones((1, *shape), "float32")))[middle]
    impulse = np.zeros((1, *shape), "float32")
    impulse[middle] = 1.0
    return fan_in, numpy_of(layer(impulse)).sum()


def keras_activations():
    plumbing = {"get", "serialize", "deserialize"}
    module = vars(keras.activations)
    return {name for name, value in module.items() if callable(value)} - plumbing


def test_every_activation_of_keras_is_decided():
    assert keras_activations() == {*HE, *LECUN, *GLOROT}


@pytest.mark.parametrize("name", sorted(keras_activations()))
def test_scheme_of_each_activation_by_name_and_function(name):
    slope = 0.2 if name == "leaky_relu" else 0.0
    expected = {
        name in HE: (2.0 / (1.0 + slope**2), "fan_in"),
        name in LECUN: (1.0, "fan_in"),
        name in GLOROT: (1.0, "fan_avg"),
    }[True]
    forms = [name, getattr(keras.activations, name)]
    forms += [getattr(keras.ops, name)] if hasattr(keras.ops, name) else []
    if name != "threshold":  # Keras's function has no defaults: no layer can hold it
        forms += [keras.layers.Activation(name)]
    for form in forms:
        initializer = initializer_for(form)
        assert (initializer.scale, initializer.mode) == expected


@pytest.mark.parametrize("name", sorted({*HE} - {"relu6", "threshold", "glu"}))
def test_he_is_for_activations_that_pass_half_the_mean_square(name):
    # Far from zero f(z) is max(z, a z), whose mean square He's scale makes good.
    z = 1e3 * np.random.default_rng(0).standard_normal(100_000).astype("float32")
    passed = np.mean(np.square(numpy_of(getattr(keras.activations, name)(z)) / 1e3))
    assert initializer_for(name).scale * passed == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(
    "activation, at_minus_one",
    [
        ("leaky_relu", keras.activations.leaky_relu(np.float32([-1.0]))),
        (keras.ops.leaky_relu, keras.ops.leaky_relu(np.float32([-1.0]))),
        (keras.layers.LeakyReLU(), keras.layers.LeakyReLU()(np.float32([-1.0]))),
        (keras.layers.PReLU(), keras.layers.PReLU()(np.float32([[-1.0]]))),
        (keras.layers.ReLU(), keras.layers.ReLU()(np.float32([-1.0]))),
    ],
    ids=["name", "function", "LeakyReLU", "PReLU", "ReLU"],
)
def test_default_slope_is_the_one_keras_computes_with(activation, at_minus_one):
    slope = -float(numpy_of(at_minus_one).ravel()[0])
    expected = 2.0 / (1.0 + slope**2)
    assert initializer_for(activation).scale == pytest.approx(expected, rel=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.0, 3.0))
def test_slope_of_a_layer_is_in_the_gain(slope):
    expected = 2.0 / (1.0 + slope**2)
    constant = keras.initializers.Constant(slope)
    for layer in (
        keras.layers.LeakyReLU(slope),
        keras.layers.ReLU(negative_slope=slope),
        keras.layers.PReLU(alpha_initializer=constant),
        keras.layers.Activation(keras.layers.LeakyReLU(slope)),
    ):
        assert initializer_for(layer).scale == pytest.approx(expected, rel=1e-6)


def test_random_slopes_of_prelu_count_with_their_mean_square():
    slopes = keras.initializers.RandomUniform(-1.0, 1.0, seed=1)  # mean square 1/3
    scale = initializer_for(keras.layers.PReLU(alpha_initializer=slopes)).scale
    assert scale == pytest.approx(2.0 / (1.0 + 1.0 / 3.0), rel=0.03)


def test_layers_without_slope():
    assert initializer_for(keras.layers.ELU()).scale == 2.0
    assert initializer_for(keras.layers.Softmax()).mode == "fan_avg"
    assert initializer_for(None).mode == "fan_avg"
    assert initializer_for("prelu").scale == 2.0  # no function in Keras, but a name


def test_every_activation_layer_of_keras_is_decided():
    package = keras.layers.ReLU.__module__.rpartition(".")[0]
    for cls in vars(keras.layers).values():
        if getattr(cls, "__module__", "").startswith(package):
            arguments = ["relu"] if cls is keras.layers.Activation else []
            initializer_for(cls(*arguments))


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
@pytest.mark.parametrize("name", KERNELS)
def test_deviation_of_real_kernels_follows_the_law(name, distribution):
    *_, shape, kind = KERNELS[name]
    fan_in, fan_out = counted_fans(name)
    variances = {
        "relu": 2.0 / fan_in,
        keras.layers.LeakyReLU(0.5): 1.6 / fan_in,
        "selu": 1.0 / fan_in,
        "tanh": 2.0 / (fan_in + fan_out),
    }
    for activation, variance in variances.items():
        start = initializer_for(
            activation, kernel=kind, distribution=distribution, seed=3
        )
        layer = make_layer(name, start)
        layer.build((None, *shape))
        weights = numpy_of(layer.kernel)
        sampling_error = 1.0 / np.sqrt(2.0 * weights.size)  # of a normal's deviation
        ratio = weights.std() / np.sqrt(variance)
        assert abs(ratio - 1.0) < 4.0 * sampling_error
        largest = np.abs(weights).max() / np.sqrt(variance)
        # A normal cut at 2 deviations keeps .8796 of its own; a uniform ends at 3^.5.
        assert largest <= (2.0 / 0.8796 if distribution == "normal" else 3**0.5) + 1e-3


def test_keras_fault_depthwise_and_transposed_fans():
    # Keras 3.15 takes channels x window for a depthwise fan-in, and the output channels
    # of a transposed convolution for its inputs.
    depthwise = keras.initializers.HeUniform()((3, 3, 256, 1))
    assert np.abs(numpy_of(depthwise)).max() <= np.sqrt(6.0 / (9 * 256))
    transposed = keras.initializers.HeUniform()((3, 3, 4, 256))
    assert np.abs(numpy_of(transposed)).max() > 5.0 * np.sqrt(6.0 / (9 * 256))


def test_wrong_rank_for_depthwise_is_an_error_when_built():
    start = initializer_for("relu", kernel="depthwise")
    layer = keras.layers.DepthwiseConv1D(3, depthwise_initializer=start)
    with pytest.raises(IndexError):
        layer.build((None, 9, 4))


def test_transposed_scale_times_stride_keeps_the_variance():
    start = initializer_for("relu", kernel="transposed", seed=0)
    start.scale *= 2**2
    layer = keras.layers.Conv2DTranspose(32, 4, strides=2, kernel_initializer=start)
    x = np.random.default_rng(0).standard_normal((4, 12, 12, 32)).astype("float32")
    inside = numpy_of(layer(x))[:, 4:-4, 4:-4]
    assert inside.var() == pytest.approx(2.0, rel=0.1)  # ReLU takes half of it


@pytest.mark.parametrize(
    "activation, function, scale",
    [
        ("relu", lambda z: np.maximum(z, 0.0), 1.0),
        (keras.layers.LeakyReLU(0.3), lambda z: np.maximum(z, 0.3 * z), 1.0),
        (
            "selu",
            lambda z: 1.0507010 * np.where(z > 0, z, 1.6732632 * np.expm1(z)),
            1.0,
        ),
        ("tanh", np.tanh, 1e-3),
        (None, lambda z: z, 1.0),
    ],
    ids=["relu", "leaky_relu", "selu", "tanh", "linear"],
)
def test_mean_square_survives_twenty_layers(activation, function, scale):
    width = 512
    signal = scale * np.random.default_rng(0).standard_normal((128, width))
    powers = []
    for seed in range(20):
        kernel = numpy_of(initializer_for(activation, seed=seed)((width, width)))
        z = signal @ kernel
        powers.append(np.mean(np.square(z)))
        signal = function(np.clip(z, -50.0, 50.0))
    # Finite width lets ReLU's log power wander by (5 * 20 / width)^.5 = .44; half the
    # gain at each layer would be a factor of 10^6.
    assert 1.0 / 3.0 < powers[-1] / powers[0] < 3.0


def test_each_call_gives_a_fresh_instance_with_its_own_values():
    first, second = initializer_for("relu"), initializer_for("relu")
    assert first is not second
    layers = [
        keras.layers.Dense(8, kernel_initializer=start) for start in (first, second)
    ]
    for layer in layers:
        layer.build((None, 8))
    assert np.any(numpy_of(layers[0].kernel) != numpy_of(layers[1].kernel))


def test_keras_fault_one_instance_gives_equal_layers():
    shared = keras.initializers.HeNormal()
    layers = [keras.layers.Dense(8, kernel_initializer=shared) for _ in range(2)]
    for layer in layers:
        layer.build((None, 8))
    assert np.all(numpy_of(layers[0].kernel) == numpy_of(layers[1].kernel))


def test_equal_seeds_give_equal_values_and_a_generator_does_not():
    draws = [
        numpy_of(initializer_for("relu", seed=seed)((4, 4)))
        for seed in (5, np.int64(5), 6)
    ]
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    start = initializer_for("relu", seed=keras.random.SeedGenerator(1))
    assert not np.array_equal(numpy_of(start((4, 4))), numpy_of(start((4, 4))))


def test_global_seed_makes_unseeded_initializers_repeat():
    draws = []
    for _ in range(2):
        keras.utils.set_random_seed(1)
        draws.append(numpy_of(initializer_for("relu")((4, 4))))
    assert np.array_equal(*draws)


def test_model_with_initializers_is_saved_and_loaded(tmp_path):
    model = keras.Sequential(
        [keras.Input((6, 6, 3))]
        + [
            keras.layers.DepthwiseConv2D(
                3, depthwise_initializer=initializer_for("relu", kernel="depthwise")
            ),
            keras.layers.Conv2DTranspose(
                2, 3, kernel_initializer=initializer_for("relu", kernel="transposed")
            ),
            keras.layers.Dense(2, kernel_initializer=initializer_for("tanh", seed=1)),
        ]
    )
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for before, after in zip(model.layers, loaded.layers, strict=True):
        assert before.get_config() == after.get_config()
    for before, after in zip(model.get_weights(), loaded.get_weights(), strict=True):
        assert np.array_equal(before, after)


@pytest.mark.parametrize("kernel", ["dense", "depthwise", "depthwise_1d", "transposed"])
def test_config_round_trip(kernel):
    start = initializer_for("relu", kernel=kernel, distribution="uniform", seed=2)
    again = type(start).from_config(start.get_config())
    assert again.get_config() == start.get_config()
    shape = (3, 4, 5, 6)
    assert np.array_equal(numpy_of(start(shape)), numpy_of(again(shape)))


@pytest.mark.parametrize(
    "activation",
    ["Relu", "relus", np.tanh, np.maximum, 3, keras.layers.Dense(1), keras.layers.ReLU]
    + [keras.layers.Activation(np.tanh), ["relu"], np.ones(2)],
    ids=str,
)
def test_unknown_activation_is_refused_with_what_is_known(activation):
    with pytest.raises(ValueError, match="PReLU.*leaky_relu, .*Received: activation="):
        initializer_for(activation)


def test_function_with_a_known_name_is_still_unknown():
    def relu(x):
        return x**2

    with pytest.raises(ValueError, match="`activation` must be"):
        initializer_for(relu)


@pytest.mark.parametrize(
    "argument",
    [
        {"kernel": "conv"},
        {"kernel": None},
        {"kernel": ["dense"]},
        {"distribution": "truncated_normal"},
        {"distribution": 1},
        {"seed": True},
        {"seed": 1.0},
        {"seed": -1},
        {"seed": 2**32},
        {"seed": "1"},
    ],
    ids=str,
)
def test_wrong_option_is_refused_by_name(argument):
    (name,) = argument
    with pytest.raises(ValueError, match=f"`{name}` must be .*Received: {name}="):
        initializer_for("relu", **argument)


# lsuv


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def dense_stack(activation="relu", depth=3, width=32, **options):
    stack = [
        keras.layers.Dense(width, activation, name=f"dense_{n}", **options)
        for n in range(depth)
    ]
    return keras.Sequential([keras.Input((16,)), *stack])


def branched_model():
    """Convolutions, skip, nested model, normalization and dropout, in one."""
    block = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8, "gelu")])
    inputs = keras.Input((6, 6, 2))
    x = keras.layers.Conv2D(8, 3, activation="tanh")(inputs)
    short = keras.layers.Conv2D(8, 1, use_bias=False)(x)
    x = keras.layers.BatchNormalization()(short)
    x = keras.layers.PReLU()(x)
    x = keras.layers.Conv2D(8, 3, padding="same")(x) + short
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dropout(0.5, seed=1)(block(x))
    x = keras.layers.Dense(3, activation=keras.layers.LeakyReLU(0.1))(x)
    return keras.Model(inputs, x)


def kernels_of(model):
    return [numpy_of(w) for w in model.weights if w.name == "kernel"]


def parts_of(model):
    for layer in model.layers:
        yield from parts_of(layer) if hasattr(layer, "layers") else [layer]


def state_of(model):
    return [numpy_of(v) for v in model.variables if v.name != "kernel"]


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "sigmoid"])
def test_lsuv_gives_each_layer_unit_variance_before_its_activation(activation):
    model = dense_stack(activation)
    x = 3.0 + 7.0 * noise(100, 16)
    functions = {
        "relu": lambda z: np.maximum(z, 0),
        "tanh": np.tanh,
        "gelu": lambda z: numpy_of(keras.activations.gelu(z)),
        "sigmoid": lambda z: 1.0 / (1.0 + np.exp(-z)),
    }

    def deviations():
        signal, found = x, []
        for kernel in kernels_of(model):
            found.append((signal @ kernel).std())
            signal = functions[activation](signal @ kernel)
        return found

    before = deviations()
    table = lsuv(model, x)
    assert list(table.index) == [layer.path for layer in model.layers]
    np.testing.assert_allclose(table["before"], before, rtol=1e-3)
    np.testing.assert_allclose(table["after"], deviations(), rtol=1e-3)
    np.testing.assert_allclose(table["after"], 1.0, atol=0.1)
    assert abs(table["before"] - 1.0).max() > 1.0


def test_kernels_of_lsuv_are_orthonormal_up_to_one_factor():
    model = dense_stack("tanh", width=12)
    lsuv(model, noise(100, 16))
    for kernel in kernels_of(model):
        squares = kernel.T @ kernel
        expected = np.eye(12) * squares[0, 0]
        np.testing.assert_allclose(squares, expected, atol=1e-4 * squares[0, 0])


def test_lsuv_takes_convolutions_skips_and_nested_models():
    model = branched_model()
    x = 9.0 * noise(32, 6, 6, 2)
    table = lsuv(model, x)
    assert len(table) == len(kernels_of(model)) == 5
    np.testing.assert_allclose(table["after"], 1.0, atol=0.1)
    conv = model.layers[1]
    z = numpy_of(keras.ops.conv(x, conv.kernel))
    assert z.std() == pytest.approx(table["after"].iloc[0], rel=1e-4)
    # The table again, from the outputs that Keras gives where nothing follows them.
    last = keras.Model(model.input, model.layers[-1].output)
    outputs = numpy_of(last(x))
    linear = np.where(outputs > 0, outputs, outputs / 0.1)
    assert linear.std() == pytest.approx(table["after"].iloc[-1], rel=1e-3)


def test_lsuv_changes_nothing_but_kernels():
    model = branched_model()
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    for variable in [*model.weights, *model.optimizer.variables]:
        variable.assign(numpy_of(variable) + 1)
    frozen = model.layers[1]
    frozen.trainable = False
    start = frozen.get_weights()
    before = state_of(model) + [numpy_of(v) for v in model.optimizer.variables]
    activations = [getattr(part, "activation", None) for part in parts_of(model)]
    calls = [part.call for part in parts_of(model)]
    table = lsuv(model, noise(32, 6, 6, 2))
    assert len(table) == 4
    after = state_of(model) + [numpy_of(v) for v in model.optimizer.variables]
    for old, new in zip(before + start, after + frozen.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    again = [getattr(part, "activation", None) for part in parts_of(model)]
    assert all(a is b for a, b in zip(activations, again, strict=True))
    assert calls == [part.call for part in parts_of(model)]
    assert "call" not in vars(model.layers[-1])


def test_lsuv_wakes_a_network_up_whose_inputs_are_small():
    x = 0.01 * noise(100, 16)
    model = dense_stack("tanh", depth=12)
    glorot = numpy_of(model(x)).std()
    lsuv(model, x)
    assert numpy_of(model(x)).std() > 0.5 > 20 * glorot


def test_biases_are_part_of_the_outputs_and_take_several_scalings():
    model = dense_stack(depth=2)
    for layer in model.layers:
        layer.bias.assign(0.5 * np.sign(noise(32)))
    x = noise(100, 16)
    table = lsuv(model, x, tolerance=0.001)
    first = x @ kernels_of(model)[0] + numpy_of(model.layers[0].bias)
    assert first.std() == pytest.approx(1.0, abs=0.002)
    np.testing.assert_allclose(table["after"], 1.0, atol=0.001)


def test_target_and_tolerance_are_kept():
    model, x = dense_stack(), noise(100, 16)
    np.testing.assert_allclose(lsuv(model, x, target_std=3)["after"], 3.0, rtol=0.1)
    # Orthonormal kernels of one square layer keep the deviation of white noise.
    square = keras.Sequential([keras.Input((16,)), keras.layers.Dense(16)])
    lsuv(square, x, tolerance=0.3)
    kernel = kernels_of(square)[0]
    np.testing.assert_allclose(kernel.T @ kernel, np.eye(16), atol=1e-5)


def test_global_seed_makes_lsuv_repeat():
    models = dense_stack(), dense_stack()
    for model in models:
        keras.utils.set_random_seed(3)
        lsuv(model, noise(100, 16))
    for first, second in zip(*map(kernels_of, models), strict=True):
        np.testing.assert_array_equal(first, second)
    assert np.any(kernels_of(models[0])[1] != kernels_of(models[0])[2])


def test_lsuv_works_in_mixed_precision():
    model = dense_stack(dtype="mixed_float16")
    np.testing.assert_allclose(lsuv(model, noise(100, 16))["after"], 1.0, atol=0.1)


@pytest.mark.parametrize(
    "layer, shape",
    [
        (keras.layers.LSTM(3), (4, 2)),
        (keras.layers.DepthwiseConv1D(3), (4, 2)),
        (keras.layers.Conv1DTranspose(3, 2), (4, 2)),
        (keras.layers.TimeDistributed(keras.layers.Dense(3)), (4, 2)),
        (keras.layers.EinsumDense("ab,bc->ac", 3), (4,)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_layers_that_lsuv_does_not_treat_are_refused_by_name(layer, shape):
    model = keras.Sequential([keras.Input(shape), layer, keras.layers.Dense(2)])
    before = model.get_weights()
    message = rf"Received: {layer.name} \({type(layer).__name__}\)$"
    with pytest.raises(ValueError, match=message):
        lsuv(model, noise(5, *shape))
    layer.trainable = False
    assert len(lsuv(model, noise(5, *shape))) == 1
    for old, new in zip(before[:-2], model.get_weights()[:-2], strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_layer_called_twice_is_refused_and_nothing_changed():
    inputs = keras.Input((8,))
    twice = keras.layers.Dense(8, name="twice")
    model = keras.Model(inputs, twice(keras.layers.Dense(8)(twice(inputs))))
    before = kernels_of(model)
    with pytest.raises(ValueError, match="once. Received: twice, which"):
        lsuv(model, noise(5, 8))
    for old, new in zip(before, kernels_of(model), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf], ids=str)
def test_outputs_that_cannot_be_scaled_are_refused_and_nothing_changed(value):
    model = dense_stack()
    before = kernels_of(model)
    with pytest.raises(ValueError, match="`x` must give each.*Received: dense_0, with"):
        lsuv(model, np.full((5, 16), value, "float32"))
    model.layers[1].bias.assign(100.0 * noise(32))  # whose deviation alone is 100
    with pytest.raises(ValueError, match="`x` must give each.*Received: dense_1, with"):
        lsuv(model, noise(5, 16))
    for old, new in zip(before, kernels_of(model), strict=True):
        np.testing.assert_array_equal(old, new)
    assert model.layers[0].activation is keras.activations.relu


def test_unbuilt_subclassed_and_kernelless_models_are_refused():
    class Own(keras.Model):
        def call(self, x):
            return x

    own = Own()
    own(noise(2, 3))
    unbuilt = keras.Sequential([keras.layers.Dense(2)])
    for model in (own, unbuilt, keras.layers.Dense(2)):
        with pytest.raises(ValueError, match="`model` must be a built.*: model="):
            lsuv(model, noise(2, 3))
    empty = keras.Sequential([keras.Input((3,)), keras.layers.ReLU()])
    with pytest.raises(ValueError, match="Received: no such kernel"):
        lsuv(empty, noise(2, 3))


@pytest.mark.parametrize(
    "name, value",
    [("target_std", value) for value in (0, -1.0, np.nan, np.inf, True, "1", None)]
    + [("tolerance", value) for value in (0.0, 1, -0.1, np.nan, False, "0.1")],
)
def test_wrong_numbers_of_lsuv_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be.*Received: {name}="):
        lsuv(dense_stack(), noise(2, 16), **{name: value})
