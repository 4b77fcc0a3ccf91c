import contextlib

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.regularizers import MaxNorm, project, regularization_table, regularize

EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23}
if keras.backend.backend() != "jax":  # which has no float64 unless asked for
    EPSILON["float64"] = 2.0**-52


def numpy_of(x):
    wide = "float64" if "float64" in EPSILON else "float32"
    return keras.ops.convert_to_numpy(keras.ops.cast(x, wide)).astype("float64")


def norms_of(w, axis):
    return np.sqrt(np.sum(np.square(numpy_of(w)), axis=axis, keepdims=True))


def slack_of(dtype, size):
    return EPSILON[dtype] + EPSILON["float32"] * np.sqrt(size)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def weights_of(model):
    return [numpy_of(variable) for variable in model.weights]


# MaxNorm


@pytest.mark.parametrize("dtype", EPSILON)
@settings(max_examples=20, deadline=None)
@given(
    shape=st.sampled_from([(5,), (1, 1), (30, 4), (3, 4, 5), (2, 3, 2, 4, 3)]),
    max_value=st.floats(0.05, 20.0),
    scale=st.floats(1e-3, 1e3),
    seed=st.integers(0, 9),
    whole=st.booleans(),
)
def test_max_norm_is_the_projection_and_idempotent(
    dtype, shape, max_value, scale, seed, whole
):
    axis = tuple(range(len(shape))) if whole else tuple(range(len(shape) - 1))
    constraint = MaxNorm(max_value, axis=axis if whole else None)
    w = keras.ops.cast(scale * noise(*shape, seed=seed), dtype)
    once = constraint(w)
    assert keras.backend.standardize_dtype(once.dtype) == dtype
    before, after, norms = numpy_of(w), numpy_of(once), norms_of(w, axis)

    expected = np.where(norms > max_value, before * max_value / norms, before)
    tolerance = 2.0 * slack_of(dtype, before.size)
    smallest = 2.0**-24 if dtype == "float16" else 0.0
    np.testing.assert_allclose(after, expected, rtol=tolerance, atol=smallest)
    within = np.broadcast_to(norms <= max_value * (1.0 - 1e-6), before.shape)
    np.testing.assert_array_equal(after[within], before[within])
    assert np.all(norms_of(once, axis) <= max_value * (1.0 + 1e-6))
    np.testing.assert_array_equal(numpy_of(constraint(once)), after)


@pytest.mark.parametrize("dtype", EPSILON)
@pytest.mark.parametrize("rows", [784, 100_000])
def test_long_columns_are_projected_once_and_for_all(dtype, rows):
    w = keras.ops.cast(noise(rows, 4), dtype)
    once = MaxNorm(1.5)(w)
    assert np.all(norms_of(once, 0) <= 1.5)
    np.testing.assert_allclose(norms_of(once, 0), 1.5, rtol=2 * slack_of(dtype, rows))
    np.testing.assert_array_equal(numpy_of(MaxNorm(1.5)(once)), numpy_of(once))


class Repeated(keras.layers.Layer):
    """MaxNorm applied again and again, compiled with what surrounds it."""

    def call(self, w):
        return keras.ops.fori_loop(0, 10_000, lambda _, w: MaxNorm(1.0)(w), w)


def test_ten_thousand_applications_are_one():
    w = noise(4, 3) * np.float32([1e-5, 0.2, 50.0])
    model = keras.Sequential([keras.Input((3,), batch_size=4), Repeated()])
    repeated = model.predict(w, batch_size=4, verbose=0)
    np.testing.assert_array_equal(repeated[:, :2], w[:, :2])
    np.testing.assert_array_equal(repeated, numpy_of(MaxNorm(1.0)(w)))


@pytest.mark.parametrize(
    "dtype, size", [("float16", 6e4), ("float32", 3e38), ("bfloat16", 3e38)]
)
def test_large_weights_neither_overflow_nor_vanish(dtype, size):
    w = keras.ops.cast(np.full((64, 2), size, "float32"), dtype)
    np.testing.assert_allclose(
        numpy_of(MaxNorm(2.0)(w)), 0.25, rtol=12.0 * EPSILON[dtype]
    )


def test_zero_columns_stay_zero():
    w = noise(5, 3) * np.float32([0.0, 1.0, 9.0])
    projected = numpy_of(MaxNorm(1.0)(w))
    assert np.all(projected[:, 0] == 0.0) and np.all(np.isfinite(projected))
    assert np.all(numpy_of(MaxNorm(1.0)(np.zeros((2, 2), "float32"))) == 0.0)


@contextlib.contextmanager
def nan_alarm():
    """An error at the first operation whose result has a NaN."""
    if keras.backend.backend() == "jax":
        import jax

        with jax.debug_nans(True):
            yield
    elif keras.backend.backend() == "torch":
        import torch

        class Alarm(torch.overrides.TorchFunctionMode):
            def __torch_function__(self, function, types, args=(), kwargs=None):
                result = function(*args, **(kwargs or {}))
                if isinstance(result, torch.Tensor) and result.isnan().any():
                    raise FloatingPointError(f"NaN from {function}")
                return result

        with Alarm():
            yield
    else:
        import tensorflow as tf

        tf.debugging.enable_check_numerics()
        try:
            yield
        finally:
            tf.debugging.disable_check_numerics()


def test_zero_columns_raise_no_nan_alarm():
    w = keras.ops.convert_to_tensor(noise(5, 3) * np.float32([0.0, 1.0, 9.0]))
    with nan_alarm():
        MaxNorm(1.0)(w)


def test_nan_and_infinity_are_not_hidden_and_stay_in_their_column():
    w = np.float32([[np.nan, np.inf, 3.0], [1.0, 1.0, 4.0]])
    projected = numpy_of(MaxNorm(1.0)(w))
    assert np.all(np.isnan(projected[0, :2]))
    np.testing.assert_allclose(projected[:, 2], [0.6, 0.8], rtol=1e-6)


def test_default_axis_bounds_each_unit_and_each_filter():
    for layer, shape in (
        (keras.layers.Dense(7, kernel_initializer="ones"), (None, 40)),
        (keras.layers.Conv1D(6, 3, kernel_initializer="ones"), (None, 9, 8)),
        (keras.layers.Conv2D(5, 3, kernel_initializer="ones"), (None, 9, 9, 8)),
        (keras.layers.Conv3D(4, 3, kernel_initializer="ones"), (None, 9, 9, 9, 2)),
    ):
        layer.build(shape)
        kernel = numpy_of(MaxNorm(0.01)(layer.kernel))
        per_unit = np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), axis=0)
        np.testing.assert_allclose(per_unit, 0.01, rtol=1e-5)


def test_axis_may_be_one_many_negative_or_of_numpy():
    w = 1.0 + np.abs(noise(3, 4, 5, 6))
    for axis, positive in (
        (2, (2,)),
        (-1, (3,)),
        ([0, -3], (0, 1)),
        (np.int64(1), (1,)),
        ((0, 1, 3), (0, 1, 3)),
    ):
        norms = norms_of(MaxNorm(0.5, axis=axis)(w), positive)
        np.testing.assert_allclose(norms, 0.5, rtol=1e-5)


def test_max_norm_config_round_trip():
    for constraint in (MaxNorm(), MaxNorm(np.float32(0.5), axis=(0, np.int64(1)))):
        config = keras.constraints.serialize(constraint)
        again = keras.constraints.deserialize(config)
        assert type(again) is MaxNorm and again.get_config() == constraint.get_config()
    assert MaxNorm().get_config() == {"max_value": 1.0, "axis": None}
    assert MaxNorm(2, axis=(0, 1)).get_config() == {"max_value": 2.0, "axis": [0, 1]}


@pytest.mark.parametrize(
    "value", [0, -0.1, np.nan, np.inf, True, "1", None, [1.0], 1j], ids=repr
)
def test_wrong_max_value_is_refused(value):
    message = "`max_value` must be a finite number above 0.*Received: max_value="
    with pytest.raises(ValueError, match=message):
        MaxNorm(value)


@pytest.mark.parametrize(
    "axis", [[], (), True, [0, True], 0.0, "0", [0, 0], [None], {0}], ids=repr
)
def test_wrong_axis_is_refused(axis):
    with pytest.raises(ValueError, match="`axis` must be.*Received: axis="):
        MaxNorm(axis=axis)


@pytest.mark.parametrize("axis", [2, -3, [0, -2]], ids=repr)
def test_axis_the_weights_do_not_have_is_refused(axis):
    with pytest.raises(ValueError, match=r"`axis` must name distinct axes.*\(3, 2\)"):
        MaxNorm(axis=axis)(noise(3, 2))


def test_keras_fault_max_norm():
    keras_norm = keras.constraints.MaxNorm
    # Along axis 0 the norm of a filter is not bounded (3.15).
    filters = keras_norm(1.0)(10.0 * noise(3, 3, 8, 16))
    assert norms_of(filters, (0, 1, 2)).max() > 4.0
    # Weights within the bound decay (3.15).
    w = np.full((1, 1), 1e-4, "float32")
    for _ in range(300):
        w = keras_norm(1.0)(w)
    assert numpy_of(w)[0, 0] < 0.8e-4
    # Squares overflow in float16 (3.15).
    column = keras.ops.cast(np.full((4, 1), 300.0, "float32"), "float16")
    assert np.all(numpy_of(keras_norm(1.0)(column)) == 0.0)
    # A bound below zero or of NaN is accepted (3.15).
    keras_norm(-0.1), keras_norm(float("nan"))


class LargestNorms(keras.callbacks.Callback):
    """The largest norm of each constrained kernel, after every batch."""

    def __init__(self):
        super().__init__()
        self.norms = []

    def on_train_batch_end(self, batch, logs=None):
        kernels = [w for w in self.model.trainable_weights if w.constraint is not None]
        self.norms += [norms_of(w, tuple(range(len(w.shape) - 1))) for w in kernels]


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "float16"])
def test_norms_are_within_the_bound_after_every_batch(policy):
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(3, 3, kernel_constraint=MaxNorm(0.5), dtype=policy),
            keras.layers.Flatten(dtype=policy),
            keras.layers.Dense(2, kernel_constraint=MaxNorm(0.5), dtype=policy),
        ]
    )
    model.compile(keras.optimizers.SGD(0.1), "mse")
    watch = LargestNorms()
    x, y = noise(20, 6, 6, 2), 9.0 * noise(20, 2)
    model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[watch])
    assert len(watch.norms) == 2 * 2 * 3
    largest = [norms.max() for norms in watch.norms]
    assert max(largest) <= 0.5 and max(largest) > 0.49  # bounded, and the bound acts


# regularize


def dense_model():
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(5, "relu", bias_initializer="ones"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(2, bias_initializer="ones"),
        ],
        name="dense_model",
    )


def image_model():
    """Nested twice, one layer used in two models, an operation, all plain kernels."""
    shared = keras.layers.Dense(4, name="shared")
    inner = keras.Sequential([keras.Input((4,)), shared, keras.layers.ReLU()])
    inputs = keras.Input((6, 8, 2))
    x = keras.layers.Conv2D(4, 3, name="conv2d")(inputs)
    x = keras.layers.LayerNormalization()(x)
    x = keras.layers.Reshape((4, 6, 4, 1))(x)
    x = keras.layers.Conv3D(4, (4, 6, 4), name="conv3d")(x)
    x = keras.layers.Reshape((1, 4))(x)
    x = keras.layers.Conv1D(4, 1, name="conv1d")(x)
    x = keras.layers.Flatten()(x)
    block_input = keras.Input((4,))
    block = keras.Model(block_input, inner(block_input) + shared(block_input))
    return keras.Model(inputs, keras.ops.tanh(block(shared(x))) * 3.0)


def kernels_of(model):
    return [w for w in model.trainable_weights if w.name == "kernel"]


@pytest.mark.parametrize("make_model", [dense_model, image_model])
def test_clone_predicts_the_same_and_shares_nothing(make_model):
    model = make_model()
    for variable in model.weights:  # as if trained
        variable.assign_add(0.1 * np.abs(noise(*variable.shape)))
    before, config = weights_of(model), model.get_config()
    clone = regularize(model, l2=0.1, max_norm=1.0)

    x = noise(3, *model.input_shape[1:])
    expected = model.predict(x, verbose=0)
    np.testing.assert_array_equal(clone.predict(x, verbose=0), expected)
    assert np.any(expected != 0.0)
    assert type(clone) is type(model) and not clone.compiled
    assert len(clone.weights) == len(model.weights)
    assert not {id(v) for v in clone.variables} & {id(v) for v in model.variables}
    clone.compile("sgd", "mse")
    clone.fit(x, 0 * expected, verbose=0)
    assert model.get_config() == config and not model.losses
    for mine, theirs in zip(weights_of(model), before, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@settings(max_examples=8, deadline=None)
@given(l1=st.floats(0.0, 1.0), l2=st.floats(0.01, 1.0))
def test_penalty_is_the_sum_over_all_kernels(l1, l2):
    model = image_model()
    clone = regularize(model, l1=l1, l2=l2)
    kernels = [numpy_of(w) for w in kernels_of(model)]
    assert len(kernels) == 4
    expected = sum(l1 * np.abs(w).sum() + l2 * np.square(w).sum() for w in kernels)
    assert float(sum(clone.losses)) == pytest.approx(expected, rel=1e-5)


def test_penalty_is_part_of_loss_and_val_loss_and_spares_biases():
    clone = regularize(dense_model(), l2=0.5)
    clone.compile(keras.optimizers.SGD(0.0), "mse", metrics=["mse"])
    x, y = noise(8, 6), noise(8, 2)
    history = clone.fit(x, y, verbose=0, validation_data=(x, y)).history
    penalty = 0.5 * sum(np.square(numpy_of(w)).sum() for w in kernels_of(clone))
    for prefix in ("", "val_"):
        difference = history[f"{prefix}loss"][0] - history[f"{prefix}mse"][0]
        assert difference == pytest.approx(penalty, rel=1e-4)


def test_max_norm_of_the_clone_is_per_unit_and_acts_in_training():
    clone = regularize(image_model(), max_norm=0.3)
    for variable in clone.weights:
        expected = MaxNorm if variable.name == "kernel" else type(None)
        assert type(variable.constraint) is expected
    assert not clone.losses
    clone.compile(keras.optimizers.SGD(0.1), "mse")
    clone.fit(noise(4, 6, 8, 2), noise(4, 4), verbose=0)
    for kernel in kernels_of(clone):
        filters = numpy_of(kernel).reshape(-1, kernel.shape[-1])
        norms = np.linalg.norm(filters, axis=0)
        assert np.all(norms <= 0.3) and norms.max() == pytest.approx(0.3, rel=1e-4)


def test_clone_is_saved_and_loaded(tmp_path):
    stack = [keras.layers.LSTM(4), keras.layers.Dense(2)]
    nested = keras.Sequential([keras.Input((3, 6)), *stack])
    inputs = keras.Input((3, 6))
    for model in (dense_model(), keras.Model(inputs, nested(inputs))):
        clone = regularize(model, l1=0.1, l2=0.2, max_norm=0.7)
        clone.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
        for mine, theirs in zip(loaded.weights, clone.weights, strict=True):
            for role in ("regularizer", "constraint"):
                pair = getattr(mine, role), getattr(theirs, role)
                assert type(pair[0]) is type(pair[1])
                assert pair[0] is None or pair[0].get_config() == pair[1].get_config()
        assert (regularization_table(loaded)["bound"] == 0.7).all()
        x = noise(2, *model.input_shape[1:])
        np.testing.assert_array_equal(
            loaded.predict(x, verbose=0), model.predict(x, verbose=0)
        )


def test_original_stays_compiled_and_a_loss_keras_cannot_look_up_is_no_obstacle():
    def own_loss(y_true, y_pred):
        return keras.ops.mean(keras.ops.abs(y_true - y_pred))

    model = dense_model()
    model.compile("adam", own_loss)
    model.fit(noise(8, 6), noise(8, 2), verbose=0)
    optimizer = model.optimizer
    clone = regularize(model, l2=0.1)
    assert model.compiled and model.optimizer is optimizer and not clone.compiled
    for mine, theirs in zip(weights_of(model), weights_of(clone), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_frozen_layers_stay_frozen():
    model = image_model()
    model.get_layer("conv3d").trainable = False
    clone = regularize(model, l2=0.1)
    for mine, theirs in zip(
        clone.trainable_weights, model.trainable_weights, strict=True
    ):
        np.testing.assert_array_equal(numpy_of(mine), numpy_of(theirs))
    assert len(clone.losses) == 3  # Keras takes no penalty on frozen weights


def test_adapted_normalization_keeps_its_statistics():
    layer = keras.layers.Normalization()
    layer.adapt(5.0 + 2.0 * noise(50, 6))
    model = keras.Sequential([keras.Input((6,)), layer, keras.layers.Dense(2)])
    clone = regularize(model, l2=0.1)
    x = noise(3, 6)
    np.testing.assert_array_equal(
        clone.predict(x, verbose=0), model.predict(x, verbose=0)
    )


def test_functional_subclass_keeps_its_class():
    inputs = keras.Input((3,))
    model = OwnStep(inputs, keras.layers.Dense(2)(inputs))
    assert type(regularize(model, l2=0.1)) is OwnStep


class OwnStep(keras.Model):
    """A Functional model by its constructor, with room for a train_step."""


class OwnSequential(keras.Sequential):
    """Cloned by Keras as a plain Sequential."""


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2, kernel_constraint=MaxNorm(0.1))

    def call(self, x):
        return self.dense(x)


def test_what_is_there_already_is_refused_unless_it_is_left_alone():
    first = regularize(dense_model(), l2=0.1)
    both = regularize(first, max_norm=1.0)
    assert len(both.losses) == 2
    for name, options in (
        ("regularizer", {"l1": 1.0}),
        ("constraint", {"max_norm": 2}),
    ):
        with pytest.raises(ValueError, match=rf"\(Dense\) has a kernel_{name}.*Dense"):
            regularize(both, **options)


# For each kind: an input shape, and a slice of one unit of each of its kernels.
UNITS = {
    "Dense": ((4,), ["[:, u]"]),
    "Conv1D": ((4, 3), ["[:, :, u]"]),
    "Conv2D": ((4, 4, 3), ["[:, :, :, u]"]),
    "Conv3D": ((3, 3, 3, 3), ["[:, :, :, :, u]"]),
    "DepthwiseConv1D": ((4, 3), ["[:, u, 0]"]),
    "DepthwiseConv2D": ((4, 4, 3), ["[:, :, u, 0]"]),
    "SeparableConv1D": ((4, 3), ["[:, u, 0]", "[0, :, u]"]),
    "SeparableConv2D": ((4, 4, 3), ["[:, :, u, 0]", "[0, 0, :, u]"]),
    "Conv1DTranspose": ((4, 3), ["[:, u, :]"]),
    "Conv2DTranspose": ((4, 4, 3), ["[:, :, u, :]"]),
    "Conv3DTranspose": ((2, 2, 2, 3), ["[:, :, :, u, :]"]),
    "Embedding": ((4,), ["[u, :]"]),
    "SimpleRNN": ((4, 3), ["[:, u]", "[:, u]"]),
    "LSTM": ((4, 3), ["[:, u]", "[:, u]"]),
    "GRU": ((4, 3), ["[:, u]", "[:, u]"]),
    "ConvLSTM1D": ((2, 4, 3), ["[:, :, u]", "[:, :, u]"]),
    "ConvLSTM2D": ((2, 4, 4, 3), ["[:, :, :, u]", "[:, :, :, u]"]),
    "ConvLSTM3D": ((2, 3, 3, 3, 3), ["[:, :, :, :, u]", "[:, :, :, :, u]"]),
}


def model_of_one(kind):
    shape, units = UNITS[kind]
    convolution = "Conv" in kind and "Depthwise" not in kind
    arguments = {"Embedding": (5, 3)}.get(kind, (2 if "Depthwise" in kind else 5,))
    arguments = (5, 2) if convolution else arguments
    layer = getattr(keras.layers, kind)(*arguments)
    model = keras.Sequential([keras.Input(shape), layer])
    for number, weight in enumerate(layer.weights):
        weight.assign(np.abs(noise(*weight.shape, seed=number)) + 0.5)
    return model, units


@pytest.mark.parametrize("kind", UNITS)
def test_each_unit_of_each_kind_of_layer_gets_its_own_bound_and_penalty(kind):
    model, units = model_of_one(kind)
    clone = regularize(model, l2=0.5, max_norm=0.3)
    kernels = [numpy_of(weight) for weight in model.weights[: len(units)]]
    penalty = sum(0.5 * np.square(kernel).sum() for kernel in kernels)
    assert float(sum(clone.losses)) == pytest.approx(penalty, rel=1e-5)
    project(clone)
    for unit, weight, kernel in zip(units, clone.weights, kernels, strict=False):
        assert np.ndim(eval(f"kernel{unit}", {"kernel": kernel, "u": 0})) > 0
        for u in range(3):
            before = eval(f"kernel{unit}", {"kernel": kernel, "u": u})
            after = eval(f"kernel{unit}", {"kernel": numpy_of(weight), "u": u})
            expected = 0.3 * before / np.linalg.norm(before)
            np.testing.assert_allclose(after, expected, rtol=1e-5)
    for mine, theirs in zip(
        clone.weights[len(units) :], model.weights[len(units) :], strict=True
    ):
        np.testing.assert_array_equal(numpy_of(mine), numpy_of(theirs))


def test_every_kind_with_a_kernel_is_known_or_refused():
    named = {
        name
        for name in dir(keras.layers)
        if any(word in name for word in ("Dense", "Conv", "Embedding", "RNN", "LSTM"))
    }
    others = {"EinsumDense", "ReversibleEmbedding", "RNN", "StackedRNNCells"}
    others |= {"LSTMCell", "SimpleRNNCell"}
    aliases = {name for name in named if name.startswith(("Conv", "Depthwise", "Sep"))}
    aliases = {name for name in aliases if "volution" in name}
    assert named - aliases - others == set(UNITS) - {"GRU"}


def test_layers_in_wrappers_are_reached_both_ways():
    inputs = keras.Input((4, 3))
    x = keras.layers.TimeDistributed(keras.layers.Dense(2))(inputs)
    x = keras.layers.Bidirectional(keras.layers.GRU(2))(x)
    model = keras.Model(inputs, x)
    for weight in model.weights:
        weight.assign_add(np.abs(noise(*weight.shape)))
    clone = regularize(model, l1=0.1, max_norm=0.5)
    assert len(clone.losses) == 1 + 2 * 2
    kernels = [w for w in clone.weights if "kernel" in w.name]
    assert [w.constraint.max_value for w in kernels] == [0.5] * 5
    x = noise(3, 4, 3)
    expected = model.predict(x, verbose=0)
    np.testing.assert_array_equal(clone.predict(x, verbose=0), expected)
    with pytest.raises(ValueError, match=r"\(Dense\).*; forward_.*; backward_"):
        regularize(clone, l2=0.1)


@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.MultiHeadAttention(2, 3),
        keras.layers.GroupQueryAttention(3, 2, 1),
        keras.layers.AdditiveAttention(),
        keras.layers.Attention(use_scale=True),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_attention_is_refused_by_name(layer):
    inputs = keras.Input((4, 3))
    grouped = isinstance(
        layer, keras.layers.GroupQueryAttention | keras.layers.MultiHeadAttention
    )
    outputs = layer(inputs, inputs) if grouped else layer([inputs, inputs])
    message = rf"Received: {layer.name} \({type(layer).__name__}\) has weights"
    with pytest.raises(ValueError, match=message):
        regularize(keras.Model(inputs, outputs), l2=0.1)


@pytest.mark.parametrize(
    "layer, shape",
    [
        (keras.layers.EinsumDense("ab,bc->ac", 3), (4,)),
        (keras.layers.ReversibleEmbedding(5, 2), (3,)),
        (keras.layers.RNN(keras.layers.LSTMCell(2)), (4, 3)),
        (keras.layers.SpectralNormalization(keras.layers.Dense(2)), (4,)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_layers_with_weights_are_refused_by_name(layer, shape):
    block = keras.Sequential([keras.Input(shape), layer])
    inputs = keras.Input(shape)
    model = keras.Model(inputs, block(inputs))
    message = rf"Received: {layer.name} \({type(layer).__name__}\) has weights"
    with pytest.raises(ValueError, match=message):
        regularize(model, l2=0.1)


def test_attention_without_weights_passes():
    inputs = keras.Input((4, 3))
    x = keras.layers.Attention()([inputs, inputs])
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    assert len(regularize(model, l2=0.1).losses) == 1


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow only")
def test_a_vocabulary_is_refused_by_name():
    lookup = keras.layers.IntegerLookup(vocabulary=[5, 6], name="words")
    inputs = keras.Input((1,), dtype="int64")
    outputs = keras.layers.Dense(2)(keras.layers.Rescaling(1.0)(lookup(inputs)))
    with pytest.raises(ValueError, match=r"words \(IntegerLookup\) has a vocabulary"):
        regularize(keras.Model(inputs, outputs), l2=0.1)


@pytest.mark.parametrize("number", [10**400, 1e300])
def test_numbers_beyond_float32_are_refused(number):
    with pytest.raises(ValueError, match="`max_value`"):
        MaxNorm(number)
    with pytest.raises(ValueError, match="`max_value`"):
        MaxNorm(1e-320)


def test_slopes_of_prelu_are_copied_and_not_penalized():
    stack = [keras.layers.Dense(3), keras.layers.PReLU("ones")]
    clone = regularize(keras.Sequential([keras.Input((4,)), *stack]), l2=0.1)
    np.testing.assert_array_equal(clone.layers[1].get_weights(), np.ones((1, 3)))
    assert len(clone.losses) == 1


def test_dense_with_further_weights_is_refused():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="tall")])
    model.layers[0].enable_lora(2)
    with pytest.raises(ValueError, match=r"tall \(Dense\) has weights beside"):
        regularize(model, l2=0.1)


def test_unbuilt_subclassed_and_foreign_models_are_refused():
    subclassed = Subclassed()
    subclassed(noise(1, 3))
    own = OwnSequential([keras.Input((3,)), keras.layers.Dense(2)])
    unbuilt = keras.Sequential([keras.layers.Dense(2)])
    for model, message in (
        (subclassed, "`model` must not be subclassed"),
        (own, "`model` must not be subclassed"),
        (unbuilt, "`model` must be a built"),
        (keras.layers.Dense(2), "`model` must be a built"),
    ):
        with pytest.raises(ValueError, match=f"{message}.*Received: model="):
            regularize(model, l2=0.1)


def test_nothing_asked_for_is_refused():
    with pytest.raises(ValueError, match="`l1`, `l2` and `max_norm`.*Received: l1=0.0"):
        regularize(dense_model())


@pytest.mark.parametrize(
    "name, value",
    [("l1", -1), ("l1", True), ("l2", np.nan), ("l2", "0.1"), ("l2", None)]
    + [("max_norm", 0), ("max_norm", np.inf), ("max_norm", False), ("l1", np.inf)],
)
def test_wrong_numbers_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be.*Received: {name}="):
        regularize(dense_model(), **{name: value})


def test_keras_the_name_l1l2_is_no_penalty_at_all():  # (3.15)
    named = keras.layers.Dense(2, kernel_regularizer="l1l2")
    named.build((None, 3))
    assert float(sum(named.losses)) == 0.0
    with pytest.raises(ValueError, match="Could not interpret regularizer"):
        keras.regularizers.get("l1_l2")  # the name its docstring promises


def test_keras_a_regularizer_set_after_the_build_is_ignored():  # (3.15)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.layers[0].kernel_regularizer = keras.regularizers.L2(1.0)
    assert model.losses == []
    with pytest.raises(ValueError, match="has a kernel_regularizer of its own"):
        regularize(model, l2=1.0)  # which would hide what was meant


def test_keras_counts_penalties_into_val_loss():
    clone = regularize(dense_model(), l2=0.5)
    clone.compile("sgd", "mse", metrics=["mse"])
    x, y = noise(8, 6), noise(8, 2)
    loss, data_loss = clone.evaluate(x, y, verbose=0)
    penalty = regularization_table(clone)["penalty"].sum()
    assert penalty > 1.0
    assert loss - penalty == pytest.approx(data_loss, rel=1e-4)


# project


def test_project_bounds_initial_loaded_and_frozen_weights():
    model = regularize(image_model(), max_norm=0.3)
    model.get_layer("conv2d").trainable = False
    model.set_weights([9.0 + 0.0 * w for w in model.get_weights()])
    project(model)
    for variable in model.weights:
        if variable.name == "kernel":
            norms = norms_of(variable, tuple(range(len(variable.shape) - 1)))
            assert np.all(norms <= 0.3)
            np.testing.assert_allclose(norms, 0.3, rtol=1e-4)
        else:
            assert np.all(numpy_of(variable) == 9.0)
    first = weights_of(model)
    project(model)
    for once, twice in zip(first, weights_of(model), strict=True):
        np.testing.assert_array_equal(once, twice)


def test_project_mends_what_the_moving_average_overwrites():
    layer = keras.layers.Dense(2, kernel_constraint=MaxNorm(0.3))
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile(keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.5), "mse")
    model.fit(noise(16, 4), 9.0 * noise(16, 2), batch_size=4, verbose=0)
    # Keras 3.15 averages before the constraint and does not constrain the average.
    assert norms_of(layer.kernel, 0).max() > 0.31
    project(model)
    assert norms_of(layer.kernel, 0).max() <= 0.3


def test_project_takes_any_built_model():
    model = Subclassed()
    with pytest.raises(ValueError, match="`model` must be a built"):
        project(model)
    model(noise(1, 3))
    project(model)
    assert norms_of(model.dense.kernel, 0).max() <= 0.1
    plain = dense_model()
    before = weights_of(plain)
    project(plain)
    for mine, theirs in zip(weights_of(plain), before, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_project_may_be_called_at_the_end_of_a_fit():
    layer = keras.layers.Dense(2, kernel_constraint=MaxNorm(0.3))
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile(keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.5), "mse")
    last = keras.callbacks.LambdaCallback(on_train_end=lambda logs: project(model))
    x, y = noise(16, 4), 9.0 * noise(16, 2)
    model.fit(x, y, batch_size=4, verbose=0, callbacks=[last])
    assert norms_of(layer.kernel, 0).max() == pytest.approx(0.3, rel=1e-5)
    assert norms_of(layer.kernel, 0).max() <= 0.3


# regularization_table


def test_table_has_a_row_per_kernel_with_its_norm_bound_and_penalty():
    model = regularize(image_model(), l2=0.1, max_norm=0.5)
    table = regularization_table(model)
    kernels = {w.path: numpy_of(w) for w in kernels_of(model)}
    assert list(table.index) == list(kernels) and len(kernels) == 4
    for path, kernel in kernels.items():
        axes = tuple(range(kernel.ndim - 1))
        row = table.loc[path]
        assert row["shape"] == kernel.shape and tuple(row["axis"]) == axes
        expected = norms_of(kernel, axes).max()
        assert row["largest_norm"] == pytest.approx(expected, rel=1e-6)
        assert row["penalty"] == pytest.approx(0.1 * np.square(kernel).sum(), rel=1e-5)
    assert (table["bound"] == 0.5).all()
    assert table["penalty"].sum() == pytest.approx(float(sum(model.losses)), rel=1e-5)


def test_table_reads_any_model_and_shows_the_norm_along_the_right_axis():
    bound = keras.constraints.MaxNorm(1.0)  # along axis 0: wrong for filters (3.15)
    conv = keras.layers.Conv2D(4, 3, kernel_constraint=bound, bias_regularizer="l2")
    model = keras.Sequential([keras.Input((5, 5, 8)), conv])
    conv.kernel.assign(9.0 * noise(3, 3, 8, 4))
    project(model)
    table = regularization_table(model)
    assert list(table.index) == [conv.kernel.path, conv.bias.path]
    norm = norms_of(conv.kernel, (0, 1, 2)).max()
    assert norm > 4.0 and table["largest_norm"].iloc[0] == pytest.approx(norm, rel=1e-5)
    assert table["bound"].iloc[0] == 1.0
    assert np.isnan(table["penalty"].iloc[0]) and table["penalty"].iloc[1] == 0.0
    assert np.isnan(table["largest_norm"].iloc[1])

    subclassed = Subclassed()
    subclassed(noise(1, 3))
    assert regularization_table(subclassed)["bound"].tolist() == [0.1]


def test_table_counts_no_penalty_on_frozen_weights_as_keras_does():
    model = regularize(dense_model(), l2=0.1)
    model.layers[0].trainable = False
    table = regularization_table(model)
    assert table["penalty"].iloc[0] == 0.0 < table["penalty"].iloc[1]
    assert table["penalty"].sum() == pytest.approx(float(sum(model.losses)), rel=1e-5)


def test_table_of_a_model_without_kernels_is_empty_and_an_unbuilt_one_refused():
    model = keras.Sequential([keras.Input((3,)), keras.layers.ReLU()])
    table = regularization_table(model)
    assert len(table) == 0 and table["penalty"].sum() == 0.0
    with pytest.raises(ValueError, match="`model` must be a built.*Received: model="):
        regularization_table(keras.Sequential([keras.layers.Dense(2)]))
