import functools
import importlib
import random
import re

import keras
import numpy as np
import pytest
from keras import layers

from recipes.check_model import (
    ModelFinding,
    check_gradients,
    check_model,
    signal_table,
)
from recipes.initializers import initializer_for
from recipes.layers import ResidualDense
from recipes.mc_dropout import MCDropout
from recipes.optimizers import make_optimizer
from recipes.schedules import Cosine, OneCycle, Warmup

SPARSE = "sparse_categorical_crossentropy"


@pytest.fixture(autouse=True)
def _seeded():
    random.seed(0)  # from which Keras draws the seeds of layers without one


def data(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def classes(rows, num_classes, seed=1):
    return np.random.default_rng(seed).integers(0, num_classes, size=rows)


def dense(units, activation=None, **options):
    start = initializer_for(activation, seed=units)
    return layers.Dense(units, activation, **{"kernel_initializer": start, **options})


def compiled(*stack, loss=SPARSE, optimizer="adam"):
    model = keras.Sequential(stack)
    model.compile(optimizer, loss=loss)
    return model


def small(*top, loss=SPARSE, first="relu", **options):
    """Six inputs, 20 units and `top`: few shapes, as each is compiled anew on JAX."""
    top = top or (dense(3, "softmax"),)
    return compiled(keras.Input((6,)), dense(20, first), *top, loss=loss, **options)


LOSSES = keras.losses
X, Y, BINARY = data(64, 6), classes(64, 3), classes(64, 2)
WORDS = np.random.default_rng(0).integers(0, 50, size=(64, 9))
MULTI_HOT = np.random.default_rng(4).integers(0, 2, size=(64, 5)).astype("float32")
ONE_HOT = np.eye(5, dtype="float32")[classes(64, 5)]
SPOILT = np.where(np.arange(384).reshape(64, 6) == 100, np.nan, X)
# Between 0 and 1, as images are.
PIXELS = np.random.default_rng(2).random((64, 6)).astype("float32")
NORMAL = keras.initializers.RandomNormal
SHARED = keras.initializers.GlorotNormal(seed=8)
SMOOTH = LOSSES.CategoricalCrossentropy(label_smoothing=0.1)


def numpy_of(x):
    return keras.ops.convert_to_numpy(x)


def norm(x):
    return np.sqrt(np.square(x, dtype="float64").sum())


# --- signal_table


@functools.cache
def two_layers():
    """A tanh and a softmax layer, their table, and the same by hand."""
    rng = np.random.default_rng(3)
    x, y = data(64, 6), classes(64, 3)
    weights = [rng.normal(size=s) * 0.5 for s in ((6, 20), (20,), (20, 3), (3,))]
    model = compiled(
        keras.Input((6,)),
        layers.Dense(20, "tanh", name="hidden"),
        layers.Dense(3, "softmax", name="top"),
    )
    model.set_weights(weights)
    z1 = x @ weights[0] + weights[1]
    h = np.tanh(z1)
    z2 = h @ weights[2] + weights[3]
    p = np.exp(z2) / np.exp(z2).sum(axis=1, keepdims=True)
    error2 = (p - np.eye(3)[y]) / 64
    error1 = error2 @ weights[2].T * (1 - h**2)
    by_hand = {"x": x, "w2": weights[2], "h": h, "p": p, "e1": error1, "e2": error2}
    return signal_table(model, x, y), by_hand


def test_outputs_and_gradients_equal_backpropagation_by_hand():
    table, hand = two_layers()
    assert list(table.index) == ["hidden", "top"]
    assert list(table.activation) == ["tanh", "softmax"]
    h, p, e1, e2 = (hand[name] for name in ("h", "p", "e1", "e2"))
    expected = {
        "mean": [h.mean(), p.mean()],
        "std": [h.std(), p.std()],
        "gradient_norm": [norm(e1), norm(e2)],
        "weight_gradient_norm": [
            np.hypot(norm(hand["x"].T @ e1), norm(e1.sum(axis=0))),
            np.hypot(norm(h.T @ e2), norm(e2.sum(axis=0))),
        ],
    }
    for column, values in expected.items():
        np.testing.assert_allclose(table[column], values, rtol=1e-4)


def test_factors_are_the_norm_of_a_units_weights_and_the_slope():
    table, hand = two_layers()
    slope = np.sqrt(np.square(1 - hand["h"] ** 2).mean())
    weights = norm(hand["w2"]) / np.sqrt(3)
    assert table.activation_factor["hidden"] == pytest.approx(slope, rel=1e-4)
    assert table.weight_factor["top"] == pytest.approx(weights, rel=0.1)
    expected = norm(hand["e2"]) * table.weight_factor["top"] * slope
    assert table["product"]["hidden"] == pytest.approx(expected, rel=1e-4)
    assert table["product"]["top"] == pytest.approx(norm(hand["e2"]), rel=1e-4)


def test_shares_of_each_region_equal_those_of_the_closed_slopes():
    table, hand = two_layers()
    part = 1 - hand["h"] ** 2
    assert table.saturated["hidden"] == pytest.approx((part < 0.05).mean(), abs=1e-3)
    assert table.sensitive["hidden"] == pytest.approx((part >= 0.5).mean(), abs=1e-3)
    spread = (1 - np.square(hand["p"]).sum(axis=1)) / (1 - 1 / 3)
    assert table.saturated["top"] == pytest.approx((spread < 0.05).mean())
    assert table.sensitive["top"] == pytest.approx((spread >= 0.5).mean())


@pytest.mark.parametrize(
    "activation, slope, largest",
    [
        ("sigmoid", lambda z: 1 / (2 + np.exp(z) + np.exp(-z)), 0.25),
        ("relu", lambda z: z > 0, 1.0),
        (layers.LeakyReLU(0.01), lambda z: np.where(z > 0, 1.0, 0.01), 1.0),
        (layers.PReLU(), lambda z: z > 0, 1.0),
        ("elu", lambda z: np.exp(np.minimum(z, 0)), 1.0),
        ("softsign", lambda z: 1 / (1 + np.abs(z)) ** 2, 1.0),
    ],
)
def test_regions_of_each_kind_of_activation(activation, slope, largest):
    z = np.linspace(-6.03, 6.01, 384).reshape(64, 6).astype("float32")
    part = slope(z.astype("float64")) / largest
    identity = {"kernel_initializer": "identity"}
    if isinstance(activation, keras.Layer):
        stack = layers.Dense(6, **identity), activation
    else:
        stack = (layers.Dense(6, activation, **identity),)
    model = compiled(keras.Input((6,)), *stack, loss="mse")
    row = signal_table(model, z, z).iloc[-1]
    assert row.saturated == pytest.approx((part < 0.05).mean())
    assert row.sensitive == pytest.approx((part >= 0.5).mean())
    assert row.dead == pytest.approx((part < 0.05).all(axis=0).mean())
    rms = np.sqrt(np.square(part * largest).mean())
    assert row.activation_factor == pytest.approx(rms, rel=1e-4)


def test_dead_units_are_those_that_no_row_wakes():
    bias = keras.initializers.Constant([-100.0] * 3 + [0.0] * 17)
    hidden = dense(20, "relu", bias_initializer=bias)
    model = compiled(keras.Input((6,)), hidden, dense(3, "softmax"))
    table = signal_table(model, X, Y)
    assert table.dead.iloc[0] == pytest.approx(3 / 20)
    table = signal_table(linear_regression(), X, X[:, :1])
    assert np.isnan(table.dead.iloc[0])


def linear_regression():
    return compiled(keras.Input((6,)), layers.Dense(1), loss="mse")


def test_product_of_factors_follows_the_measured_norm_through_a_chain():
    start = initializer_for("sigmoid", seed=keras.random.SeedGenerator(0))
    stack = [layers.Dense(20, "sigmoid", kernel_initializer=start) for _ in range(6)]
    model = compiled(keras.Input((6,)), *stack, dense(3, "softmax"))
    table = signal_table(model, X, Y)
    ratio = table["product"] / table.gradient_norm
    assert ratio.between(0.5, 2).all()  # over a fall of four orders; 20 units are few
    # Slopes of at most 1/4, and a norm of the weights near 1: it vanishes.
    assert (table.activation_factor.iloc[:-1] <= 0.25).all()
    assert table.gradient_norm.iloc[0] < 1e-3 * table.gradient_norm.iloc[-1]


def test_paths_that_meet_add_their_squares():
    inputs = keras.Input((100,))
    trunk = layers.Dense(100, name="trunk")(inputs)
    branch = layers.Dense(100, name="branch")(trunk)
    merged = layers.Add(name="merged")([trunk, branch])
    model = keras.Model(inputs, layers.Dense(1, name="top")(merged))
    model.compile(loss="mse")
    table = signal_table(model, data(64, 100), data(64, 1))
    product, gain = table["product"], table.weight_factor["branch"]
    assert product["branch"] == pytest.approx(product["merged"], rel=1e-5)
    expected = product["merged"] * np.sqrt(1 + gain**2)
    assert product["trunk"] == pytest.approx(expected, rel=1e-5)
    assert product["trunk"] == pytest.approx(table.gradient_norm["trunk"], rel=0.3)


def test_the_product_ends_at_a_layer_with_several_outputs():
    inputs = keras.Input((6,))
    below = layers.Dense(4, name="below")(inputs)
    split = layers.Lambda(lambda z: (z[:, :2], z[:, 2:]), name="split")(below)
    model = keras.Model(inputs, layers.Add(name="top")(split))
    model.compile(loss="mse")
    table = signal_table(model, X, X[:, :2])
    assert table["product"].notna().tolist() == [False, False, True]
    assert (table.gradient_norm > 0).all()


def test_nested_models_and_shared_layers_have_a_row_per_call():
    shared = layers.Dense(6, "tanh", name="shared")
    inner = keras.Sequential([keras.Input((6,)), shared], name="inner")
    inputs = keras.Input((6,))
    block = keras.Model(inputs, layers.Dense(6, name="last")(inner(inputs)), name="out")
    x = keras.Input((6,))
    model = keras.Model(x, inner(block(layers.Flatten(name="flat")(x))))
    model.compile(loss="mse")
    table = signal_table(model, X, X)
    names = {"flat": 0, "out/inner/shared": 1, "out/last": 2}
    rows = list(table.index)
    assert [rows.index(name) for name in names] == [0, 1, 2]
    assert rows[3] == "out/inner/shared (call 2)"
    assert table["product"].notna().all()
    again = table.weight_gradient_norm
    assert again.iloc[1] == again.iloc[3]


class Own(keras.Model):
    """A subclassed model with a layer of its own kind and one called twice."""

    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(6, "relu", name="hidden")
        self.top = layers.Dense(1, name="top")

    def call(self, inputs, training=False):
        return self.top(self.hidden(self.hidden(inputs)))


def test_a_subclassed_model_is_read_too():
    model = Own()
    model.compile(loss="mse")
    model(X)
    table = signal_table(model, X, X[:, :1])
    assert list(table.index) == ["hidden", "hidden (call 2)", "top"]
    assert table["product"].notna().all()


def test_batch_normalization_is_read_on_the_batch_and_dropout_is_off():
    x = 5 + 3 * X
    model = compiled(
        keras.Input((6,)),
        layers.Dense(6, kernel_initializer="identity", name="same"),
        layers.BatchNormalization(epsilon=1e-9, name="norm"),
        layers.Dropout(0.5, name="dropout"),
        MCDropout(0.5, name="always"),
        layers.GaussianNoise(0.9, name="noise"),
        dense(3, "softmax"),
    )
    table = signal_table(model, x, Y)
    assert table["mean"]["norm"] == pytest.approx(0.0, abs=1e-4)
    assert table["std"]["norm"] == pytest.approx(1.0, abs=1e-4)
    for name in ("dropout", "always", "noise"):
        assert table["std"][name] == table["std"]["norm"]
        assert table["product"][name] == table["product"]["norm"]
    assert table.weight_factor["norm"] == pytest.approx(1 / x.std(), rel=0.1)


def sequence():
    return compiled(
        keras.Input((9,), dtype="int32"),
        layers.Embedding(50, 8, name="words"),
        layers.Conv1D(8, 3, activation="relu", name="conv"),
        layers.LSTM(5, name="lstm"),
        dense(3, "softmax", name="top"),
    )


def test_embedding_recurrent_and_convolutional_layers_have_rows():
    table = signal_table(sequence(), WORDS, Y)
    assert list(table.index) == ["words", "conv", "lstm", "top"]
    assert table["product"].notna().all() and (table.weight_gradient_norm > 0).all()
    assert np.isnan(table.saturated["lstm"]) and np.isnan(table.weight_factor["words"])
    ratio = table["product"] / table.gradient_norm
    assert ratio.between(0.3, 3).all()


def test_mixed_precision_and_several_outputs_and_losses():
    inputs = keras.Input((6,))
    hidden = layers.Dense(20, "relu", dtype="mixed_bfloat16", name="hidden")(inputs)
    left = layers.Dense(1, name="left")(hidden)
    right = layers.Dense(3, "softmax", name="right")(hidden)
    model = keras.Model(inputs, [left, right])
    model.compile("adam", loss=["mse", SPARSE])
    table = signal_table(model, X, [X[:, :1], Y])
    assert (table.gradient_norm > 0).all() and (table["std"] > 0).all()
    assert check_model(model, X, [X[:, :1], Y]) == []
    assert not model._compile_loss.built and model._compile_loss.metrics == []


# --- nothing changes


def noisy_model():
    random.seed(5)
    return compiled(
        keras.Input((6,)),
        layers.Dense(20, activity_regularizer="l2", kernel_regularizer="l2"),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.Dropout(0.5, seed=5),  # on PyTorch none else is random.seed's
        dense(3, "softmax"),
    )


def state(model):
    parts = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
    values = [numpy_of(variable).copy() for variable in parts]
    owners = [*model._flatten_layers(), model.optimizer, model._compile_loss]
    return values, [{k: id(v) for k, v in vars(o).items()} for o in owners], len(parts)


def assert_same_numbers(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_nothing_in_the_model_changes():
    ends = []
    for is_looked_at in (False, True):
        model = noisy_model()
        for _ in range(2):  # before the first fit, and after
            if is_looked_at:
                before, num_losses = state(model), len(model.losses)
                check_model(model, X, Y)
                signal_table(model, X, Y)
                after = state(model)
                assert_same_numbers(before[0], after[0])
                assert before[1:] == after[1:]
                assert len(model.losses) == num_losses
            loss = model.fit(X, Y, shuffle=False, verbose=0).history["loss"]
            ends.append([loss, *state(model)[0]])
    assert_same_numbers(ends[0], ends[2])
    assert_same_numbers(ends[1], ends[3])


def test_a_pass_that_fails_leaves_the_model_as_it_was():
    class Failing(keras.layers.Layer):
        def call(self, inputs):
            if fails:
                raise RuntimeError("no")
            return inputs

    fails = False
    model = small(Failing(), dense(3, "softmax"))
    before, fails = state(model)[1], True
    with pytest.raises(RuntimeError, match="no"):
        signal_table(model, X, Y)
    assert state(model)[1] == before


# --- check_model on healthy models


def convolutional():
    return compiled(
        keras.Input((8, 8, 1)),
        layers.Conv2D(4, 3, use_bias=False, kernel_initializer=initializer_for("relu")),
        layers.BatchNormalization(),
        layers.Activation("relu"),
        layers.MaxPooling2D(),
        layers.SeparableConv2D(4, 3, activation="relu"),
        layers.GlobalAveragePooling2D(),
        dense(3, "softmax"),
    )


def residual():
    inputs = x = keras.Input((6,))
    for _ in range(10):
        branch = layers.Dense(6, "relu")(layers.LayerNormalization()(x))
        x = layers.Add()([x, branch])
    model = keras.Model(inputs, layers.Dense(1)(layers.LayerNormalization()(x)))
    model.compile("adam", loss="mse")
    return model


def chapter():
    """The chapter's network on images whose frame is dark in every row."""
    x = np.random.default_rng(2).integers(0, 256, size=(64, 28, 28)) / 255
    x[:, :4] = 0.0
    hidden = dense(100, "relu"), layers.Dropout(0.2), dense(100, "relu")
    start = keras.Input((28, 28)), layers.Flatten(), layers.Dropout(0.2)
    return compiled(*start, *hidden, dense(10, "softmax")), x, classes(64, 10)


def healthy(x, y, *top, **options):
    return lambda: (small(*top, **options), x, y)


def decoder():
    return dense(6, "sigmoid"), layers.Reshape((2, 3)), layers.Flatten()


BYTES = np.round(255 * PIXELS)
HEALTHY = {
    "the chapter's": chapter,
    "classes": healthy(X, Y),
    "tanh": healthy(PIXELS, Y, first="tanh", optimizer=make_optimizer("momentum", 0.1)),
    "swish": healthy(PIXELS, Y, first="swish", optimizer=make_optimizer("rmsprop")),
    "bytes, scaled inside": lambda: (
        compiled(keras.Input((6,)), layers.Rescaling(1 / 255), dense(3, "softmax")),
        BYTES,
        Y,
    ),
    "bytes, normalized inside": lambda: (
        compiled(keras.Input((6,)), layers.BatchNormalization(), dense(3, "softmax")),
        BYTES,
        Y,
    ),
    "selu": healthy(
        X,
        Y,
        layers.AlphaDropout(0.1),
        dense(20, "selu"),
        dense(3, "softmax"),
        first="selu",
        optimizer=make_optimizer("nesterov", 0.01, clipnorm=1.0),
    ),
    "regression": healthy(X, data(64), dense(1), loss="mse"),
    "regression of several": healthy(
        X, np.tanh(X[:, :5]), dense(5, "tanh"), loss="mae"
    ),
    "autoencoder": healthy(PIXELS, PIXELS, *decoder(), loss="binary_crossentropy"),
    "multi-label": healthy(
        X, MULTI_HOT, dense(5, "sigmoid"), loss="binary_crossentropy"
    ),
    "binary": healthy(X, BINARY, dense(1, "sigmoid"), loss="binary_crossentropy"),
    "one-hot": healthy(X, ONE_HOT, dense(5, "softmax"), loss=SMOOTH),
    "sparse from logits": healthy(
        X, Y, dense(3), loss=LOSSES.SparseCategoricalCrossentropy(from_logits=True)
    ),
    "categorical from logits": healthy(
        X, ONE_HOT, dense(5), loss=LOSSES.CategoricalCrossentropy(from_logits=True)
    ),
    "binary from logits": healthy(
        X, BINARY[:, None], dense(1), loss=LOSSES.BinaryCrossentropy(from_logits=True)
    ),
    "convolutional": lambda: (convolutional(), data(64, 8, 8, 1), Y),
    "residual": lambda: (residual(), X, data(64, 1)),
    "LSTM": lambda: (sequence(), WORDS, Y),
    "a schedule": healthy(
        X, Y, optimizer=make_optimizer("momentum", Warmup(Cosine(0.1, 900), 100))
    ),
    "one cycle": healthy(X, Y, optimizer=make_optimizer("sgd", OneCycle(0.5, 1000))),
    "zero weights of the output": healthy(
        X, data(64, 1), dense(1, kernel_initializer="zeros"), loss="mse"
    ),
    "residual blocks that end in zeros": lambda: (
        compiled(
            keras.Input((6,)),
            ResidualDense(6, "relu"),
            ResidualDense(6, "relu"),
            dense(3, "softmax"),
        ),
        X,
        Y,
    ),
    "a straight bottleneck": lambda: (
        compiled(keras.Input((6,)), dense(2), dense(6), loss="mse"),
        X,
        X,
    ),
    "logarithmic error": healthy(
        X, PIXELS[:, 0], dense(1), loss="mean_squared_logarithmic_error"
    ),
    "a loss of one's own": healthy(
        X, X[:, :3], dense(3), loss=lambda y, p: keras.ops.abs(y - p)
    ),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_model_has_no_finding(name):
    model, x, y = HEALTHY[name]()
    assert check_model(model, x, y) == []


# --- check_model on models that are not


def deep(activation, units=20, depth=14):
    return compiled(
        keras.Input((units,)),
        *(layers.Dense(units, activation) for _ in range(depth)),
        dense(3, "softmax"),
    )


FAULTY = {
    "NaN": (small, SPOILT, Y, "inputs not finite", {"x": "finite"}),
    "constant": (small, np.ones((64, 6)), Y, "inputs constant", {"x": "varying"}),
    "bytes": (small, 255 * np.abs(X), Y, "inputs unscaled", {"scale": "standardize"}),
    "tiny": (small, 1e-4 * X, Y, "inputs unscaled", {"scale": "standardize"}),
    "softmax of one": (
        lambda: small(dense(1, "softmax"), loss="binary_crossentropy"),
        X,
        BINARY,
        "softmax of one unit",
        {"activation": "sigmoid", "loss": "binary_crossentropy"},
    ),
    "sigmoid, sparse": (
        lambda: small(dense(3, "sigmoid")),
        X,
        Y,
        "sigmoid for exclusive classes",
        {"activation": "softmax"},
    ),
    "one sigmoid, sparse": (
        lambda: small(dense(1, "sigmoid")),
        X,
        BINARY,
        "one unit for a sparse loss",
        {"units": 1, "activation": "sigmoid", "loss": "binary_crossentropy"},
    ),
    "one sigmoid for classes": (
        lambda: small(dense(1, "sigmoid"), loss="binary_crossentropy"),
        X,
        Y,
        "labels out of range",
        {"units": 3, "activation": "softmax", "loss": SPARSE},
    ),
    "no from_logits": (
        lambda: small(dense(3)),
        X,
        Y,
        "logits taken for probabilities",
        {"loss": "SparseCategoricalCrossentropy", "from_logits": True},
    ),
    "ReLU for probabilities": (
        lambda: small(dense(3, "relu")),
        X,
        Y,
        "logits taken for probabilities",
        {"activation": "softmax"},
    ),
    "softmax twice": (
        lambda: small(
            dense(3, "softmax"),
            loss=LOSSES.SparseCategoricalCrossentropy(from_logits=True),
        ),
        X,
        Y,
        "probabilities taken for logits",
        {"loss": "SparseCategoricalCrossentropy", "from_logits": False},
    ),
    "sigmoid twice": (
        lambda: small(
            dense(1, "sigmoid"), loss=LOSSES.BinaryCrossentropy(from_logits=True)
        ),
        X,
        BINARY,
        "probabilities taken for logits",
        {"loss": "BinaryCrossentropy", "from_logits": False},
    ),
    "ReLU for negative targets": (
        lambda: small(dense(1, "relu"), loss="mse"),
        X,
        X[:, 0],
        "targets outside the range of the output",
        {"activation": "linear"},
    ),
    "tanh for large targets": (
        lambda: small(dense(1), layers.Activation("tanh"), loss="mae"),
        X,
        3 * X[:, 0],
        "targets outside the range of the output",
        {"activation": "linear"},
    ),
    "multi-label softmax": (
        lambda: small(dense(5, "softmax"), loss="categorical_crossentropy"),
        X,
        MULTI_HOT,
        "softmax for several labels at once",
        {"activation": "sigmoid", "loss": "binary_crossentropy"},
    ),
    "multi-label softmax, binary loss": (
        lambda: small(dense(5, "softmax"), loss="binary_crossentropy"),
        X,
        MULTI_HOT,
        "softmax for several labels at once",
        {"activation": "sigmoid", "loss": "binary_crossentropy"},
    ),
    "labels from 1": (small, X, Y + 1, "labels out of range", {"labels": "0 to n - 1"}),
    "too many classes": (small, X, classes(64, 7), "labels out of range", {"units": 7}),
    "labels of -1 and 1": (
        lambda: small(dense(1, "sigmoid"), loss="binary_crossentropy"),
        X,
        2 * BINARY - 1,
        "labels out of range",
        {"labels": "0 to 1"},
    ),
    "text": (small, X, np.array(["a", "b"])[BINARY], "labels are no numbers", None),
    "NaN labels": (
        lambda: small(dense(1), loss="mse"),
        X,
        SPOILT[:, 4],
        "labels not finite",
        {"labels": "finite"},
    ),
    "one-hot, sparse": (
        lambda: small(dense(5, "softmax")),
        X,
        ONE_HOT,
        "one-hot labels for a sparse loss",
        {"loss": "categorical_crossentropy"},
    ),
    "numbers, categorical": (
        lambda: small(dense(3, "softmax"), loss="categorical_crossentropy"),
        X,
        Y[:, None],
        "class numbers for a categorical loss",
        {"loss": SPARSE},
    ),
    "numbers, squared error": (
        lambda: small(dense(3, "softmax"), loss="mse"),
        X,
        Y,
        "class numbers for a categorical loss",
        {"loss": SPARSE},
    ),
    "numbers, a sigmoid per class": (
        lambda: small(dense(3, "sigmoid"), loss="binary_crossentropy"),
        X,
        Y,
        "class numbers for a categorical loss",
        {"loss": SPARSE, "activation": "softmax"},
    ),
    "numbers, categorical from logits": (
        lambda: small(dense(3), loss=LOSSES.CategoricalCrossentropy(from_logits=True)),
        X,
        Y,
        "class numbers for a categorical loss",
        {"loss": SPARSE, "from_logits": True},
    ),
    "logarithm of negative targets": (
        lambda: small(dense(1), loss="mean_squared_logarithmic_error"),
        X,
        X[:, 0],
        "targets outside the range of the loss",
        {"loss": "mean_squared_error"},
    ),
    "logits of tanh": (
        lambda: small(
            dense(3, "tanh"),
            loss=LOSSES.SparseCategoricalCrossentropy(from_logits=True),
        ),
        X,
        Y,
        "logits with bounds",
        {"activation": "linear"},
    ),
    "no activations": (
        lambda: small(layers.Dropout(0.1), dense(8), dense(3, "softmax"), first=None),
        X,
        Y,
        "linear hidden layers",
        {"activation": "relu", "kernel_initializer": "he_normal"},
    ),
    "two units a layer": (
        lambda: deep("relu", units=2),
        data(64, 2),
        Y,
        "layers too narrow",
        {"units": 16},
    ),
    "wild regression": (
        lambda: small(
            layers.Dense(1, kernel_initializer=NORMAL(0, 9.0, 1)), loss="mse"
        ),
        X,
        X[:, 0],
        "initial loss above chance",
        {"kernel_initializer": "he_normal"},
    ),
    "wrong width": (
        lambda: small(dense(1), loss="mse"),
        X,
        data(64, 4),
        "labels do not fit the output",
        {"units": 4},
    ),
    "dollars": (
        lambda: small(dense(1), loss="mse"),
        X,
        2e5 + 8e4 * X[:, 0],
        "targets unscaled",
        {"target_scale": "standardize"},
    ),
    "off-centre targets": (
        lambda: small(dense(1), loss="mse"),
        X,
        50 + X[:, 0],
        "initial loss above chance",
        {"target_scale": "standardize"},
    ),
    "sure at first": (
        lambda: small(layers.Dense(3, "softmax", kernel_initializer=NORMAL(0, 9.0, 1))),
        X,
        Y,
        "initial loss above chance",
        {"kernel_initializer": "he_normal"},
    ),
    "zero": (
        lambda: small(
            dense(9, "relu", kernel_initializer="zeros"), dense(3, "softmax")
        ),
        X,
        Y,
        "zero weights",
        {"kernel_initializer": "he_normal"},
    ),
    "equal": (
        lambda: small(
            dense(9, "tanh", kernel_initializer=keras.initializers.Constant(0.1)),
            dense(3, "softmax"),
        ),
        X,
        Y,
        "symmetric weights",
        {"kernel_initializer": "glorot_normal"},
    ),
    "one initializer": (
        lambda: small(
            *(dense(20, "relu", kernel_initializer=SHARED) for _ in range(2)),
            dense(3, "softmax"),
        ),
        X,
        Y,
        "the same weights in two layers",
        {"kernel_initializer": "he_normal"},
    ),
    "SELU, not standardized": (
        lambda: small(dense(20, "selu"), dense(3, "softmax")),
        np.abs(X),
        Y,
        "SELU on inputs that are not standardized",
        {"scale": "standardize"},
    ),
    "SELU, He": (
        lambda: small(
            dense(20, kernel_initializer="he_normal"),
            layers.Activation("selu"),
            dense(3, "softmax"),
        ),
        X,
        Y,
        "SELU without LeCun's weights",
        {"kernel_initializer": "lecun_normal"},
    ),
    "SELU, plain dropout": (
        lambda: small(dense(20, "selu"), layers.Dropout(0.1), dense(3, "softmax")),
        X,
        Y,
        "plain dropout with SELU",
        {"dropout": "AlphaDropout"},
    ),
    "vanishing": (
        lambda: deep("sigmoid"),
        data(64, 20),
        Y,
        "vanishing gradient",
        {"activation": "relu", "kernel_initializer": "he_normal"},
    ),
    "exploding": (
        lambda: compiled(
            keras.Input((20,)),
            *(
                layers.Dense(20, kernel_initializer=NORMAL(0.0, 0.6, seed))
                for seed in range(10)
            ),
            layers.Dense(1),
            loss="huber",
        ),
        data(64, 20),
        data(64),
        "exploding gradient",
        {"kernel_initializer": "he_normal", "global_clipnorm": 1.0},
    ),
    "saturated": (
        lambda: small(
            dense(20, "tanh", kernel_initializer=NORMAL(0, 2.0, 1)), dense(3, "softmax")
        ),
        X,
        Y,
        "saturated units",
        {"kernel_initializer": "glorot_normal"},
    ),
    "dead": (
        lambda: small(
            dense(20, "relu", bias_initializer=keras.initializers.Constant(-30.0)),
            dense(3, "softmax"),
        ),
        X,
        Y,
        "dead units",
        {"activation": "leaky_relu", "kernel_initializer": "he_normal"},
    ),
    "Adam at 1": (
        lambda: small(optimizer=make_optimizer("adam", 1.0, clipnorm=1.0)),
        X,
        Y,
        "learning rate out of range",
        {"learning_rate": 0.001},
    ),
    "SGD at 1e-8": (
        lambda: small(optimizer=keras.optimizers.SGD(1e-8)),
        X,
        Y,
        "learning rate out of range",
        {"learning_rate": 0.01},
    ),
    "peak of a schedule": (
        lambda: small(optimizer=make_optimizer("adamw", Warmup(Cosine(3.0, 500), 50))),
        X,
        Y,
        "learning rate out of range",
        {"learning_rate": 0.001},
    ),
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_fault_is_found_and_nothing_else(name):
    make, x, y, symptom, change = FAULTY[name]
    findings = check_model(make(), x, y)
    assert [each.symptom for each in findings] == [symptom]
    assert change is None or findings[0].change == change
    check_is_well_made(findings[0])


def check_is_well_made(finding):
    """Evidence of finite numbers; sentences; names that can be imported."""
    assert isinstance(finding, ModelFinding)
    for value in finding.evidence.values():
        assert isinstance(value, int | float) and not np.isnan(value)
    assert finding.cause.endswith(".") and finding.advice.endswith(".")
    names = re.findall(r"((?:recipes|callbacks|keras)(?:\.\w+)+)", finding.advice)
    assert names
    for name in names:
        module, *rest = name.split(".")
        if module != "keras":
            module = f"{module}.{rest.pop(0)}"
        found = importlib.import_module(module)
        for part in rest:
            found = getattr(found, part)


def test_evidence_holds_what_was_measured():
    (finding,) = check_model(small(), 255 * np.abs(X), Y)
    rms = np.sqrt(np.square(255 * X.astype("float64")).mean())
    assert finding.evidence["root_mean_square"] == pytest.approx(rms, rel=1e-4)
    (finding,) = check_model(small(dense(1), loss="mse"), X, 50 + X[:, 0])
    chance = X[:, 0].var()
    assert finding.evidence["chance"] == pytest.approx(chance, rel=1e-4)
    assert 30**2 < finding.evidence["initial"] < 70**2


def test_layer_of_a_finding_is_its_name_in_the_table():
    inner = keras.Sequential(
        [keras.Input((6,)), dense(9, "relu", kernel_initializer="zeros", name="zero")],
        name="inner",
    )
    model = compiled(keras.Input((6,)), inner, dense(3, "softmax"))
    (finding,) = check_model(model, X, Y)
    assert finding.layer == "inner/zero"


# --- check_gradients


@pytest.fixture
def double_precision():
    is_jax = keras.backend.backend() == "jax"
    if is_jax:
        import jax

        jax.config.update("jax_enable_x64", True)
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    if is_jax:
        jax.config.update("jax_enable_x64", False)


def twice(x, slope):
    """2 x, whose gradient claims to be `slope`."""

    @keras.ops.custom_gradient
    def function(x):
        def backward(*args, upstream=None):
            return slope * (args[0] if upstream is None else upstream)

        return 2.0 * x, backward

    return function(x)


@keras.saving.register_keras_serializable(package="test")
class Twice(keras.layers.Layer):
    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def call(self, inputs):
        return twice(inputs, self.slope)


def squares(y_true, y_pred):
    """A loss without a mean, which Keras 3.15 takes in float32 on JAX."""
    return keras.ops.sum(keras.ops.square(y_true - y_pred), axis=-1)


def test_right_gradients_agree_with_differences(double_precision):
    regularized = {"kernel_regularizer": "l2", "activity_regularizer": "l2"}
    first = layers.Dense(6, "sigmoid", **regularized)
    model = compiled(
        keras.Input((6,)), first, layers.Dropout(0.5), Twice(2.0), dense(3, "softmax")
    )
    table = check_gradients(model, X[:8], Y[:8], num_entries=4)
    assert list(table.index) == [v.path for v in model.trainable_variables]
    assert list(table.entries) == [4, 4, 4, 3]
    assert (table.relative_error < 1e-6).all() and (table.gradient_norm > 0).all()


def test_wrong_gradients_are_seen_below_the_layer_that_makes_them(double_precision):
    stack = layers.Dense(6, "sigmoid"), Twice(3.0), layers.Dense(1)
    model = compiled(keras.Input((6,)), *stack, loss=squares)
    error = check_gradients(model, X[:8], X[:8, :1], num_entries=2).relative_error
    # ||3 g - 2 g|| / (||3 g|| + ||2 g||)
    assert error.iloc[:2].tolist() == pytest.approx([0.2, 0.2], rel=1e-4)
    assert (error.iloc[2:] < 1e-6).all()


def test_gradient_and_difference_of_a_quadratic_are_its_closed_form(double_precision):
    model = compiled(keras.Input((6,)), layers.Dense(1), loss=squares)
    x, y = X[:8].astype("float64"), data(8, 1, seed=2).astype("float64")
    weights = [data(6, 1, seed=3), data(1, seed=4)]
    model.set_weights(weights)
    table = check_gradients(model, x, y)
    residue = 2 * (x @ weights[0] + weights[1] - y) / 8
    expected = [norm(x.T @ residue), norm(residue.sum(axis=0))]
    np.testing.assert_allclose(table.gradient_norm, expected, rtol=1e-10)
    np.testing.assert_allclose(table.difference_norm, expected, rtol=1e-7)


def test_means_in_float32_are_refused_where_keras_takes_them(double_precision):
    stack = layers.Dense(6), layers.BatchNormalization(), layers.Dense(1)
    model = compiled(keras.Input((6,)), *stack, loss="mse")
    problem = {"jax": "moves in steps", "torch": "mean of every loss in float32"}
    backend = keras.backend.backend()
    if backend in problem:
        message = f"{problem[backend]}.*Received: backend='{backend}'"
        with pytest.raises(ValueError, match=message):
            check_gradients(model, X[:8], X[:8, :1])
    else:
        error = check_gradients(model, X[:8], X[:8, :1], num_entries=2).relative_error
        assert (error < 1e-6).all()


def test_gradients_in_float32_are_refused():
    with pytest.raises(
        ValueError, match="must compute in float64.*Received: .*float32"
    ):
        check_gradients(linear_regression(), X, X[:, :1])


def test_a_layer_or_loss_in_float32_is_refused(double_precision):
    for options in ({"dtype": "float32"}, {}):
        model = keras.Sequential([keras.Input((6,)), layers.Dense(1, **options)])
        model.compile(
            loss=LOSSES.MeanSquaredError(dtype=None if options else "float32")
        )
        with pytest.raises(ValueError, match="its losses too.*Received: float32$"):
            check_gradients(model, X, X[:, :1])


def test_double_precision_that_the_backend_would_ignore_is_refused(monkeypatch):
    model = linear_regression()
    monkeypatch.setattr(keras.config, "floatx", lambda: "float64")
    with pytest.raises(ValueError) as error:
        check_gradients(model, X, X[:, :1])
    is_jax = keras.backend.backend() == "jax"
    assert ("JAX without x64" in str(error.value)) == is_jax


# --- arguments


@pytest.mark.parametrize("function", [check_model, signal_table, check_gradients])
def test_models_and_data_that_cannot_be_read_are_refused(function):
    x, y = X, X[:, :1]
    unbuilt = keras.Sequential([layers.Dense(1)])
    unbuilt.compile(loss="mse")
    plain = keras.Sequential([keras.Input((6,)), layers.Dense(1)])
    for model in (unbuilt, plain, "model"):
        with pytest.raises(
            ValueError, match="`model` must be .*built.*Received: model="
        ):
            function(model, x, y)


@pytest.mark.parametrize("function", [check_model, signal_table])
def test_data_that_are_no_arrays_of_equal_rows_are_refused(function):
    model, x, y = linear_regression(), X, X[:, :1]
    for name, arguments in {
        "x": (iter([x]), y),
        "y": (x, None),
    }.items():
        with pytest.raises(
            ValueError, match=f"`{name}` must be arrays.*Received: {name}="
        ):
            function(model, *arguments)
    for arguments in ((x, y[:5]), (x[:0], y[:0])):
        with pytest.raises(ValueError, match="same number of rows.*Received: .* rows"):
            function(model, *arguments)


@pytest.mark.parametrize(
    "name, value",
    [
        ("num_entries", 0),
        ("num_entries", 2.5),
        ("num_entries", True),
        ("step", 0.0),
        ("step", np.nan),
        ("step", "small"),
        ("seed", -1),
        ("seed", None),
    ],
)
def test_arguments_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be a .*Received: {name}="):
        check_gradients(linear_regression(), X, X[:, :1], **{name: value})
