import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.optimizers import ClippedOptimizer, make_optimizer

ROOT = pathlib.Path(__file__).parent.parent
BOUNDS = ("clipvalue", "clipnorm", "global_clipnorm")  # that Keras has, too
EPSILON = 1e-7
IS_TORCH = keras.backend.backend() == "torch"


def variables_like(arrays):
    return [keras.Variable(np.asarray(array, "float32")) for array in arrays]


def tensors(arrays):
    return [
        None
        if array is None
        else keras.ops.convert_to_tensor(np.asarray(array, "float32"))
        for array in arrays
    ]


def values(variables):
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


def handed_on(gradients, weights=None, **bounds):
    """What the inner optimizer receives, and the wrapper that handed it on."""
    if weights is None:
        weights = [np.zeros_like(g) for g in gradients]
    variables = variables_like(weights)
    # The momentum after its first step is the gradient to the bit; weights are not.
    inner = keras.optimizers.SGD(1.0, momentum=0.5)
    optimizer = ClippedOptimizer(inner, **bounds)
    optimizer.apply(tensors(gradients), variables)
    return [-value for value in values(inner.momentums)], optimizer


def clip(
    gradients,
    weights=None,
    clipvalue=None,
    adaptive=None,
    clipnorm=None,
    global_clipnorm=None,
):
    """The formulas of the docstring, in float64; units are columns, or a whole bias."""
    gradients = [np.asarray(g, "float64") for g in gradients]
    if clipvalue:
        gradients = [
            np.minimum(np.maximum(g, -clipvalue), clipvalue) for g in gradients
        ]
    if adaptive:
        for i, (g, w) in enumerate(zip(gradients, weights, strict=True)):
            axis = 0 if g.ndim == 2 else None
            norm, size = (np.sqrt(np.sum(np.square(x), axis)) for x in (g, w))
            bound = adaptive * np.maximum(size, 1e-3)
            gradients[i] = g * bound / np.maximum(norm, bound)
    if clipnorm:
        norms = [np.sqrt(np.sum(g**2)) for g in gradients]
        gradients = [
            g * clipnorm / max(n, clipnorm)
            for g, n in zip(gradients, norms, strict=True)
        ]
    if global_clipnorm:
        norm = np.sqrt(sum(np.sum(g**2) for g in gradients))
        gradients = [
            g * global_clipnorm / max(norm, global_clipnorm) for g in gradients
        ]
    return gradients


def linear_model(optimizer, num_inputs=3, **compile_options):
    model = keras.Sequential(
        [keras.Input((num_inputs,)), keras.layers.Dense(1, kernel_initializer="zeros")]
    )
    model.compile(optimizer, loss="mse", **compile_options)
    return model


def linear_data(num_samples=32, num_inputs=3):
    rng = np.random.default_rng(42)
    x = rng.normal(size=(num_samples, num_inputs)).astype("float32")
    return x, (x.sum(axis=1, keepdims=True) + 1).astype("float32")


def run_python(script, backend, *arguments):
    result = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


# The update rules. `s` holds a rule's state, 0 at first; t counts from 1; mu is the
# momentum, or beta_1, of this step.


def sgd(w, g, t, s, rate):
    return w - rate * g


def momentum(w, g, t, s, rate, mu=0.9):
    s["m"] = mu * s.get("m", 0) - rate * g
    return w + s["m"]


def nesterov(w, g, t, s, rate, mu=0.9):
    # The gradient is the one at the look-ahead point, which is where w stands.
    s["m"] = mu * s.get("m", 0) - rate * g
    return w + mu * s["m"] - rate * g


def adagrad(w, g, t, s, rate):
    s["sum"] = s.get("sum", 0.1) + g**2
    return w - rate * g / np.sqrt(s["sum"] + EPSILON)


def adadelta(w, g, t, s, rate):
    s["g2"] = 0.95 * s.get("g2", 0) + 0.05 * g**2
    step = np.sqrt(s.get("d2", 0) + EPSILON) / np.sqrt(s["g2"] + EPSILON) * g
    s["d2"] = 0.95 * s.get("d2", 0) + 0.05 * step**2
    return w - rate * step


def rmsprop(w, g, t, s, rate, mu=0.0):
    s["v"] = 0.9 * s.get("v", 0) + 0.1 * g**2
    s["m"] = mu * s.get("m", 0) + rate * g / np.sqrt(s["v"] + EPSILON)
    return w - s["m"]


def adam(w, g, t, s, rate, mu=0.9):
    s["m"] = mu * s.get("m", 0) + (1 - mu) * g
    s["v"] = 0.999 * s.get("v", 0) + 0.001 * g**2
    corrected_rate = rate * np.sqrt(1 - 0.999**t) / (1 - mu**t)
    return w - corrected_rate * s["m"] / (np.sqrt(s["v"]) + EPSILON)


def adamax(w, g, t, s, rate, mu=0.9):
    s["m"] = mu * s.get("m", 0) + (1 - mu) * g
    s["u"] = np.maximum(0.999 * s.get("u", 0), np.abs(g))
    return w - rate / (1 - mu**t) * s["m"] / (s["u"] + EPSILON)


def nadam(w, g, t, s, rate, mu=0.9):
    def decayed(t):
        return mu * (1 - 0.5 * 0.96**t)

    s["m"] = mu * s.get("m", 0) + (1 - mu) * g
    s["v"] = 0.999 * s.get("v", 0) + 0.001 * g**2
    s["product"] = s.get("product", 1) * decayed(t)
    m = decayed(t + 1) * s["m"] / (1 - s["product"] * decayed(t + 1))
    m = m + (1 - decayed(t)) * g / (1 - s["product"])
    return w - rate * m / (np.sqrt(s["v"] / (1 - 0.999**t)) + EPSILON)


def adamw(w, g, t, s, rate, mu=0.9):
    return adam(w - 0.1 * rate * w, g, t, s, rate, mu)


RULES = [
    sgd,
    momentum,
    nesterov,
    adagrad,
    adadelta,
    rmsprop,
    adam,
    adamax,
    nadam,
    adamw,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_twenty_steps_follow_the_paper(rule):
    # Larger than the chapter's numbers, so that every term can be seen.
    rate = 1.0 if rule is adadelta else 0.01
    options = {"weight_decay": 0.1} if rule is adamw else {}
    optimizer = make_optimizer(rule.__name__, rate, **options)
    rng = np.random.default_rng(0)
    expected = rng.uniform(-1, 1, size=(3, 2))
    (variable,) = variables_like([expected])
    state = {}
    for t in range(1, 21):
        gradient = rng.normal(size=(3, 2))
        expected = rule(expected, gradient, t, state, rate)
        optimizer.apply(tensors([gradient]), [variable])
    np.testing.assert_allclose(variable, expected, atol=2e-6, rtol=0)


def test_hyper_parameters_are_the_chapters():
    adam_betas = {"beta_1": 0.9, "beta_2": 0.999}
    chapter = {
        "sgd": ("SGD", {"momentum": 0.0, "nesterov": False}),
        "momentum": ("SGD", {"momentum": 0.9, "nesterov": False}),
        "nesterov": ("SGD", {"momentum": 0.9, "nesterov": True}),
        "adagrad": ("Adagrad", {}),
        "adadelta": ("Adadelta", {"rho": 0.95}),
        "rmsprop": ("RMSprop", {"rho": 0.9}),
        "adam": ("Adam", adam_betas),
        "adamax": ("Adamax", adam_betas),
        "nadam": ("Nadam", adam_betas),
        "adamw": ("AdamW", adam_betas | {"weight_decay": 1e-5}),
    }
    for name, (kind, hyper_parameters) in chapter.items():
        optimizer = make_optimizer(name)
        config = optimizer.get_config()
        assert type(optimizer).__name__ == kind
        assert config["learning_rate"] == pytest.approx(0.001)
        assert config.items() >= hyper_parameters.items()


def test_options_win_over_the_table_and_leave_it_alone():
    first = make_optimizer("momentum", momentum=0.5)
    second = make_optimizer("momentum")
    assert (first.momentum, second.momentum) == (0.5, 0.9)


def test_keras_own_class_is_left_where_no_momentum_is_named():
    for name, kind in {
        "sgd": keras.optimizers.SGD,
        "rmsprop": keras.optimizers.RMSprop,
        "adagrad": keras.optimizers.Adagrad,
        "adadelta": keras.optimizers.Adadelta,
    }.items():
        assert type(make_optimizer(name)) is type(kind())  # PyTorch's own kind of it
    for name in ("sgd", "rmsprop"):
        for named in (0, 0.5):
            optimizer = make_optimizer(name, momentum=named)
            assert isinstance(optimizer.momentum, keras.Variable)


@pytest.mark.parametrize("rate", [1, np.float32(0.5), np.int64(2)])
def test_a_rate_of_any_number_type_is_taken(rate):
    assert float(make_optimizer("sgd", rate).learning_rate) == rate


def test_a_schedule_is_taken():
    schedule = keras.optimizers.schedules.InverseTimeDecay(0.5, 1, 1.0)
    for bounds in ({}, {"clipvalue": 9.0}):
        optimizer = make_optimizer("sgd", schedule, **bounds)
        (variable,) = variables_like([[0.0]])
        for _ in range(2):
            optimizer.apply(tensors([[1.0]]), [variable])
        np.testing.assert_allclose(variable, [-0.5 - 0.25])


# The momentum

NAMES = {  # of those with a momentum: (Keras's class, arguments)
    "momentum": (keras.optimizers.SGD, {"momentum": 0.9}),
    "nesterov": (keras.optimizers.SGD, {"momentum": 0.9, "nesterov": True}),
    "rmsprop": (keras.optimizers.RMSprop, {"momentum": 0.9}),
    "adam": (keras.optimizers.Adam, {}),
    "adamax": (keras.optimizers.Adamax, {}),
    "nadam": (keras.optimizers.Nadam, {}),
    "adamw": (keras.optimizers.AdamW, {"weight_decay": 1e-5}),
}


def pair(name, **options):
    """Keras's own optimizer, and the one of that name."""
    keras_class, arguments = NAMES[name]
    named = {"momentum": 0.9} if name == "rmsprop" else {}
    yield keras_class(0.01, **{**arguments, **options})
    yield make_optimizer(name, 0.01, **named, **options)


def ten_steps(optimizer, jit_compile):
    """Weights after ten steps; TensorFlow has sparse gradients for the embedding."""
    keras.utils.set_random_seed(0)
    ids = np.random.default_rng(0).integers(0, 7, (20, 3))
    model = keras.Sequential(
        [
            keras.Input((3,), dtype="int32"),
            keras.layers.Embedding(7, 2),
            keras.layers.Flatten(),
            keras.layers.Dense(1),
        ]
    )
    model.compile(optimizer, loss="mse", jit_compile=jit_compile)
    model.fit(ids, ids.sum(axis=1), batch_size=2, shuffle=False, verbose=0)
    return np.concatenate([value.ravel() for value in values(model.weights)])


@pytest.mark.parametrize(
    ("name", "how"),
    [(name, how) for name in NAMES for how in ("plainly", "with options")]
    + [
        # PyTorch writes and compiles C++ for it.
        pytest.param(name, "compiled", marks=[pytest.mark.slow] * IS_TORCH)
        for name in ("nesterov", "adam")
    ],
)
def test_an_untouched_momentum_takes_keras_own_steps(name, how):
    jit_compile = how == "compiled" or keras.backend.backend() == "jax"
    options = {}
    if how == "with options":
        options = {"weight_decay": 0.1, "gradient_accumulation_steps": 2}
        options |= {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 3}
        options |= {"amsgrad": True} if name in ("adam", "adamw") else {}
        options |= {"centered": True} if name == "rmsprop" else {}
    both = pair(name, **options)
    theirs, ours = (ten_steps(each, jit_compile=jit_compile) for each in both)
    if IS_TORCH:  # whose own optimizers take other paths to the same numbers
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    elif name in ("momentum", "nesterov", "nadam"):
        np.testing.assert_array_equal(ours, theirs)
    else:  # 1 - beta_1 rounded as a float32, and RMSprop's terms in another order
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-7)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_weights_in_half_precision_take_keras_own_steps_as_well(name, dtype):
    results = []
    # Keras's beta_2 of 0.999 is 1 in bfloat16, and a step of Adam then 0.
    options = {"beta_2": 0.75} if name.startswith(("ada", "nad")) else {}
    for optimizer in pair(name, **options):
        weights = keras.Variable(np.zeros(3), dtype=dtype)
        for gradient in ([1.0, -2.0, 0.5], [3.0, 1.0, 0.0], [-1.0, 1.0, 1.0]):
            gradient = keras.ops.convert_to_tensor(gradient, dtype=dtype)
            optimizer.apply([gradient], [weights])
        assert weights.dtype == dtype
        results.append(keras.ops.convert_to_numpy(keras.ops.cast(weights, "float32")))
    assert abs(results[0]).max() > 0.01
    np.testing.assert_allclose(*results, rtol=2**-6, atol=2e-4)


class SetMomentum(keras.callbacks.Callback):
    """Sets the momentum before each step, and reads it after the step."""

    def __init__(self, name, momenta):
        super().__init__()
        self.name, self.momenta, self.read = name, momenta, []

    def on_train_batch_begin(self, batch, logs=None):
        setattr(self.model.optimizer, self.name, self.momenta[batch])

    def on_train_batch_end(self, batch, logs=None):
        self.read.append(float(getattr(self.model.optimizer, self.name)))


@pytest.mark.parametrize(
    ("rule", "how"),
    [(rule, {}) for rule in (momentum, nesterov, rmsprop, adam, adamax, nadam, adamw)]
    + [(rule, {"jit_compile": True}) for rule in (momentum, adam)]
    + [(rule, {"clipvalue": 9.0}) for rule in (nesterov, nadam)],
)
def test_a_momentum_set_between_steps_holds_from_the_next(rule, how):
    rng = np.random.default_rng(1)
    x, momenta = rng.normal(size=(10, 3)), rng.uniform(0, 0.99, 10)
    momenta[4] = 0.0
    options = {"weight_decay": 0.1} if rule is adamw else {}
    options |= {"momentum": 0.5} if rule is rmsprop else {}
    options |= how if "clipvalue" in how else {}
    optimizer = make_optimizer(rule.__name__, 0.01, **options)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(
        optimizer,
        # The gradient is the row, whatever the weights are.
        loss=lambda y, outputs: keras.ops.sum(outputs),
        jit_compile=how.get("jit_compile", "auto"),
    )
    expected, state = model.get_weights()[0], {}
    for t, (row, mu) in enumerate(zip(x, momenta, strict=True), 1):
        expected = rule(expected, row[:, None], t, state, 0.01, mu)
    by_name = "momentum" if rule in (momentum, nesterov, rmsprop) else "beta_1"
    setter = SetMomentum(by_name, momenta)
    model.fit(x, x, batch_size=1, shuffle=False, verbose=0, callbacks=[setter])
    np.testing.assert_allclose(model.get_weights()[0], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(setter.read, momenta, rtol=1e-6)


def test_the_adams_call_it_momentum_too():
    for name in ("adam", "adamax", "nadam", "adamw"):
        optimizer = make_optimizer(name)
        optimizer.momentum = 0.25
        assert float(optimizer.beta_1) == 0.25
        assert float(make_optimizer(name, clipnorm=1.0).momentum) == np.float32(0.9)


@pytest.mark.parametrize("name", NAMES)
def test_the_momentum_is_saved_as_a_readable_number_and_as_a_variable(name):
    *_, optimizer = pair(name)
    config = keras.saving.serialize_keras_object(optimizer)
    assert config["registered_name"] == f"recipes>{type(optimizer).__name__}"
    key = "beta_1" if "beta_1" in config["config"] else "momentum"
    assert config["config"][key] == 0.9
    optimizer.momentum = 0.75
    again = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(optimizer), safe_mode=True
    )
    assert again.get_config() == {**optimizer.get_config(), key: 0.75}
    (held,) = [v for v in again.variables if v is again.momentum]
    assert float(held) == 0.75


# Clipping


@given(
    st.lists(
        st.tuples(
            st.sampled_from([(), (3,), (2, 4), (0, 2)]),
            st.integers(-15, 25),
            st.integers(0),
        ),
        min_size=1,
        max_size=3,
    ),
    st.fixed_dictionaries(
        {}, optional={name: st.floats(1e-3, 1e3) for name in (*BOUNDS, "adaptive")}
    ).filter(bool),
)
@settings(max_examples=20, deadline=None)
def test_clipping_is_the_formula(parts, bounds):
    gradients, weights = [], []
    for shape, exponent, seed in parts:
        rng = np.random.default_rng(seed)
        gradients.append((10.0**exponent * rng.normal(size=shape)).astype("f4"))
        weights.append(rng.normal(size=shape).astype("f4"))
    found, optimizer = handed_on(gradients, weights, **bounds)
    for one, other in zip(found, clip(gradients, weights, **bounds), strict=True):
        np.testing.assert_allclose(one, other, rtol=3e-6, atol=1e-36)
    norm = np.sqrt(sum(np.sum(g.astype("f8") ** 2) for g in gradients))
    assert optimizer.last_gradient_norm == pytest.approx(norm, rel=3e-6)


@given(st.integers(0), st.floats(1e-3, 1e3), st.sampled_from([*BOUNDS, "adaptive"]))
@settings(max_examples=12, deadline=None)
def test_a_gradient_inside_its_bound_is_unchanged_to_the_bit(seed, bound, name):
    rng = np.random.default_rng(seed)
    gradients = [rng.normal(size=5), rng.normal(size=(2, 3))]
    norm = np.sqrt(sum(np.sum(g**2) for g in gradients))
    gradients = [(g / norm * bound * 0.999).astype("f4") for g in gradients]
    weights = [np.ones(5), np.ones((2, 3))]  # units of norm 1 and more
    found, optimizer = handed_on(gradients, weights, **{name: bound})
    for one, other in zip(found, gradients, strict=True):
        np.testing.assert_array_equal(one, other)
    assert optimizer.clipped_fraction == 0.0


def test_norms_keep_the_direction_and_the_value_does_not():
    gradient = np.array([100.0, 1.0])
    (by_value,), _ = handed_on([gradient], clipvalue=1.0)
    np.testing.assert_array_equal(by_value, [1.0, 1.0])
    for name in ("clipnorm", "global_clipnorm"):
        (by_norm,), _ = handed_on([gradient], **{name: 1.0})
        np.testing.assert_allclose(by_norm, gradient / np.linalg.norm(gradient))


def test_clipnorm_is_per_variable_and_global_clipnorm_over_all():
    gradients = [[3.0, 4.0], [0.0, 12.0]]  # norms 5 and 12, together 13
    (small, large), _ = handed_on(gradients, clipnorm=6.0)
    np.testing.assert_allclose([small, large], [[3.0, 4.0], [0.0, 6.0]])
    (small, large), _ = handed_on(gradients, global_clipnorm=6.5)
    np.testing.assert_allclose([small, large], [[1.5, 2.0], [0.0, 6.0]])


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("strange", [1.0, np.nan, np.inf, -np.inf])
def test_one_device_takes_keras_own_step_also_with_nan_and_infinity(name, strange):
    gradients = tensors([[2.0, strange, -0.1], [[0.5], [-3.0]]])
    steps = []
    for optimizer in (
        keras.optimizers.Adam(0.1, **{name: 1.0}),
        make_optimizer("adam", 0.1, **{name: 1.0}),
    ):
        variables = variables_like([np.ones(3), np.ones((2, 1))])
        optimizer.apply(gradients, variables)
        steps.append(np.concatenate([value.ravel() for value in values(variables)]))
    np.testing.assert_allclose(*steps, rtol=1e-6)


@pytest.mark.parametrize("name", [*BOUNDS, "adaptive"])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_an_id_that_occurs_four_times_is_clipped_once(name, kind):
    ids = np.array([[1, 1, 1, 1]])
    weights = {}
    for repeated in (True, False):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [keras.Input((4,)), keras.layers.Embedding(3, 1), keras.layers.Flatten()]
        )
        if not repeated:  # The same function, its gradient dense by construction.
            model = keras.Sequential(
                [keras.Input((3,)), keras.layers.Dense(1, use_bias=False)]
            )
        model.set_weights([np.array([[0.0], [1.0], [0.0]])])
        model.compile(
            make_optimizer(kind, 1.0, **{name: 1.5}),
            loss=lambda y, outputs: keras.ops.sum(outputs),
        )
        x = ids if repeated else np.array([[0.0, 4.0, 0.0]])
        model.fit(x, np.zeros((1, 1)), epochs=2, verbose=0)
        (weights[repeated],) = values(model.weights)
        assert model.optimizer.last_gradient_norm == pytest.approx(4.0)
    np.testing.assert_allclose(weights[True], weights[False], rtol=1e-6)
    if kind == "sgd" and name != "adaptive":
        np.testing.assert_allclose(weights[True], [[0.0], [-2.0], [0.0]])


# Units: the input shape of a layer, and which axes of its weights number them

UNITS = {
    "dense": (keras.layers.Dense(3), (4,), {"kernel": "io->o", "bias": "o->"}),
    "conv": (
        keras.layers.Conv2D(3, 2),
        (4, 4, 2),
        {"kernel": "hwio->o", "bias": "o->"},
    ),
    "one filter": (keras.layers.Conv2D(1, 2), (4, 4, 3), {"kernel": "hwio->o"}),
    "depthwise": (
        keras.layers.DepthwiseConv2D(2, depth_multiplier=2),
        (4, 4, 3),
        {"kernel": "hwcm->cm", "bias": "o->"},
    ),
    "depthwise over time": (
        keras.layers.DepthwiseConv1D(2, name="block_dwconv"),
        (4, 3),
        {"kernel": "tcm->cm"},
    ),
    "separable": (
        keras.layers.SeparableConv2D(3, 2),
        (4, 4, 2),
        {"depthwise_kernel": "hwcm->cm", "pointwise_kernel": "hwio->o"},
    ),
    "transposed": (
        keras.layers.Conv2DTranspose(3, 2),
        (4, 4, 2),
        {"kernel": "hwoi->o"},
    ),
    "embedding": (keras.layers.Embedding(5, 3), (4,), {"embeddings": "id->i"}),
    "normalization": (keras.layers.LayerNormalization(), (4,), {"gamma": "o->"}),
    "recurrent": (
        keras.layers.GRU(2),
        (4, 3),
        {"kernel": "io->o", "recurrent_kernel": "io->o", "bias": "to->"},
    ),
    "attention": (
        keras.layers.MultiHeadAttention(2, 4),
        None,
        {"query/kernel": "ihd->hd", "attention_output/kernel": "hdo->o"},
    ),
}


@pytest.mark.parametrize("kind", UNITS)
def test_each_unit_of_a_layer_has_its_own_bound(kind):
    layer, shape, expected = UNITS[kind]
    if not layer.built:
        layer.build(*[(None, *shape)] if shape else [(None, 5, 6)] * 2)
    rng = np.random.default_rng(0)
    variables = layer.trainable_variables
    for variable in variables:
        variable.assign(rng.normal(size=variable.shape))
    before = [each.astype("float64") for each in values(variables)]
    # Some units far inside their bound, some far beyond.
    gradients = [10.0 ** rng.uniform(-4, 1, size=v.shape) for v in variables]
    make_optimizer("sgd", 1.0, adaptive=0.1).apply(tensors(gradients), variables)
    for end, sums in expected.items():
        (i,) = [i for i, v in enumerate(variables) if v.path.endswith("/" + end)]
        letters, units = sums.split("->")
        norms, sizes = (
            np.sqrt(np.einsum(sums, np.square(x))) for x in (gradients[i], before[i])
        )
        factors = np.minimum(0.1 * np.maximum(sizes, 1e-3) / norms, 1)
        scaled = np.einsum(f"{letters},{units}->{letters}", gradients[i], factors)
        (after,) = values(variables[i : i + 1])
        np.testing.assert_allclose(before[i] - after, scaled, rtol=1e-4, atol=1e-6)


def test_a_unit_of_weights_near_0_may_move_by_a_thousandth_of_the_bound():
    (found,), _ = handed_on([[3.0, -4.0]], adaptive=0.1)
    np.testing.assert_allclose(found, [0.6e-4, -0.8e-4], rtol=1e-6)


def test_unit_axes_of_ones_own():
    dense = keras.layers.Dense(2, use_bias=False, name="mine")
    last = keras.layers.Dense(2, use_bias=False, name="logits")
    kernels = [
        dense.kernel for dense in (dense, last) if dense.build((None, 2)) is None
    ]
    for kernel in kernels:
        kernel.assign([[3.0, 0.0], [4.0, 0.0]])
    optimizer = ClippedOptimizer(
        keras.optimizers.SGD(1.0), adaptive=0.1, unit_axes={"mine": [0], "logits": None}
    )
    optimizer.apply(tensors([[[30.0, 40.0], [0.0, 40.0]]] * 2), kernels)
    mine, logits = values(kernels)
    np.testing.assert_allclose(mine, [[3 - 0.18, -0.24], [4.0, -0.4]], rtol=1e-6)
    np.testing.assert_array_equal(logits, [[3.0 - 30.0, -40.0], [4.0, -40.0]])
    again = ClippedOptimizer.from_config(optimizer.get_config())
    assert again.get_config() == optimizer.get_config()


# The percentile


def rows_model(optimizer, num_inputs=1, **compile_options):
    """A model whose gradient is the row, whatever its weights are."""
    dense = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
    model = keras.Sequential([keras.Input((num_inputs,)), dense])
    model.compile(
        optimizer, loss=lambda y, outputs: keras.ops.sum(outputs), **compile_options
    )
    return model


def fit_rows(model, rows):
    rows = np.asarray(rows, "float32").reshape(len(rows), -1)
    model.fit(rows, rows, batch_size=1, shuffle=False, verbose=0)


def percentile_steps(norms, percentile, clipnorm=np.inf):
    """Clipped norms, and how many were shortened, by numpy's own percentile."""
    window, steps = [], []
    for norm in norms:
        if norm < 1e19:  # false for NaN
            shorter = min(norm, clipnorm)
            window = [*window, shorter][-100:] if norm else window
            bound = np.percentile(window, percentile) if len(window) >= 20 else np.inf
            steps.append(min(shorter, bound))
    return np.array(steps)


@pytest.mark.parametrize(
    "bounds", [{"percentile": 90.0}, {"percentile": 37, "clipnorm": 1.5}]
)
def test_the_percentile_is_that_of_the_last_100_norms(bounds):
    norms = np.random.default_rng(0).lognormal(size=150)
    norms[[0, 60, 70]] = np.nan, np.inf, 1e20  # skipped
    norms[[10, 61]] = 0.0
    model = rows_model(make_optimizer("sgd", 1.0, skip_nonfinite=True, **bounds))
    fit_rows(model, norms)
    steps = percentile_steps(norms, **bounds)
    np.testing.assert_allclose(values(model.weights)[0], 1 - steps.sum(), rtol=1e-5)
    shortened = (steps < norms[norms < 1e19]).mean()
    assert model.optimizer.clipped_fraction == pytest.approx(shortened)
    assert model.optimizer.skipped_steps == 3
    # The same step by step, at the end of the window and beyond.
    before = values(model.weights)[0]
    fit_rows(model, [50.0])
    steps = percentile_steps([*norms, 50.0], **bounds)
    moved = before - values(model.weights)[0]
    np.testing.assert_allclose(moved, steps[-1], rtol=1e-3)


def test_a_norm_that_is_not_finite_stays_out_of_the_window_without_skipping_too():
    norms = np.random.default_rng(1).lognormal(size=30)
    model = rows_model(make_optimizer("sgd", 1.0, percentile=50))
    fit_rows(model, [*norms, np.inf])
    assert np.isnan(values(model.weights)[0]).all()
    model.set_weights([np.ones((1, 1))])
    fit_rows(model, [100.0])
    expected = np.percentile([*norms, 100.0], 50)
    np.testing.assert_allclose(1 - values(model.weights)[0], expected, rtol=1e-5)


# Skipping


@pytest.mark.parametrize("strange", [np.nan, np.inf, -np.inf, 1e20])
def test_a_skipped_step_changes_nothing_but_is_counted(strange):
    schedule = keras.optimizers.schedules.InverseTimeDecay(0.5, 1, 1.0)
    clipping = {"clipvalue": 5.0, "skip_nonfinite": True}
    model = rows_model(make_optimizer("adam", schedule, **clipping), 2)
    fit_rows(model, [[1.0, 2.0]])
    optimizer = model.optimizer
    state = values(model.weights + optimizer.inner_optimizer.variables)
    fit_rows(model, [[1.0, strange]] * 3)
    after = values(model.weights + optimizer.inner_optimizer.variables)
    for one, other in zip(state, after, strict=True):
        np.testing.assert_array_equal(one, other)
    assert int(optimizer.iterations) == 1
    assert optimizer.skipped_steps == 3
    assert not optimizer.last_gradient_norm < 1e20
    assert optimizer.clipped_fraction == 0.0


SKIPPING = [(rule.__name__, {}) for rule in RULES] + [
    ("momentum", {"use_ema": True, "ema_overwrite_frequency": 2}),
    ("adamw", {"weight_decay": 0.1, "clipnorm": 0.5}),
    ("adam", {"clipvalue": 0.5}),
]


@pytest.mark.parametrize(
    ("name", "options", "how"),
    [(name, options, {}) for name, options in SKIPPING]
    + [("nadam", {"clipnorm": 0.5}, {"jit_compile": True})],
)
def test_training_goes_on_as_if_skipped_steps_had_not_been(name, options, how):
    rows = np.random.default_rng(0).normal(size=(6, 3))
    with_gaps = np.insert(rows, [0, 2, 5], np.inf, axis=0)
    ends = []
    for each in (rows, with_gaps):
        optimizer = make_optimizer(name, 0.1, skip_nonfinite=True, **options)
        model = rows_model(optimizer, 3, **how)
        model.layers[0].kernel.constraint = keras.constraints.MaxNorm(1.5)
        fit_rows(model, each)
        ends.append(values(model.weights + optimizer.inner_optimizer.variables))
        assert optimizer.skipped_steps == len(each) - 6
    for one, other in zip(*ends, strict=True):
        np.testing.assert_array_equal(one, other)


def test_without_skipping_the_weights_are_spoilt():
    model = rows_model(make_optimizer("sgd", clipnorm=1.0))
    fit_rows(model, [np.nan])
    assert np.isnan(values(model.weights)[0]).all()
    assert model.optimizer.skipped_steps == 0
    assert model.optimizer.clipped_fraction == 0.0


def test_mixed_precision_clips_the_gradient_of_full_precision():
    x, y = linear_data()
    norms = []
    for policy in ("float32", "mixed_float16"):
        dense = keras.layers.Dense(1, kernel_initializer="zeros", dtype=policy)
        model = keras.Sequential([keras.Input((3,)), dense])
        optimizer = make_optimizer("sgd", 0.1, clipnorm=1.0, skip_nonfinite=True)
        if policy == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        model.compile(optimizer, loss="mse")
        model.fit(x, y, batch_size=32, verbose=0)
        clipped = getattr(optimizer, "inner_optimizer", None)
        clipped = clipped if isinstance(clipped, ClippedOptimizer) else optimizer
        norms.append([clipped.last_gradient_norm, *model.get_weights()[0].ravel()])
        assert clipped.skipped_steps == 0
    np.testing.assert_allclose(*norms, rtol=2e-3)


def test_the_share_of_clipped_updates_can_be_counted_anew():
    model = rows_model(make_optimizer("sgd", clipnorm=1.0))
    fit_rows(model, [0.5, 3.0])
    assert model.optimizer.clipped_fraction == 0.5
    model.optimizer.reset_clipped_fraction()
    assert model.optimizer.clipped_fraction == 0.0
    fit_rows(model, [3.0, 3.0, 0.1])
    assert model.optimizer.clipped_fraction == pytest.approx(2 / 3)
    assert int(model.optimizer.iterations) == 5


REPLICAS = """
import json, sys
import keras, numpy as np, tensorflow as tf
from recipes import optimizers
from recipes.optimizers import make_optimizer

optimizers._WARMUP = 1
cpu = tf.config.list_physical_devices("CPU")[0]
two = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(cpu, two)
mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
gradients = tf.constant([[200.0, 1.0], [-2.0, 0.5]])  # of two replicas

def steps(strategy, **bounds):
    with strategy.scope():
        variables = [keras.Variable([0.0, 0.0]), keras.Variable(np.zeros((3, 2)))]
        optimizer = make_optimizer("momentum", 1.0, **bounds)
        optimizer.build(variables)
        spoilt = tf.Variable([[0.0], [0.0]])

    @tf.function
    def step():
        context = tf.distribute.get_replica_context()
        of_replicas = gradients + spoilt
        mine = of_replicas[context.replica_id_in_sync_group]
        if context.num_replicas_in_sync == 1:
            mine = tf.reduce_sum(of_replicas, axis=0)
        rows = tf.IndexedSlices(tf.stack([mine, mine]), [1, 1], [3, 2])
        optimizer.apply([mine, rows], variables)

    def state(variables):
        parts = [strategy.experimental_local_results(v.value) for v in variables]
        assert all((p[0].numpy() == p[-1].numpy()).all() for p in parts)
        return [p[0].numpy().ravel().tolist() for p in parts]

    strategy.run(step)
    optimizer.momentum = 0.5
    if bounds.get("skip_nonfinite"):
        before = state(variables + optimizer.inner_optimizer.variables)
        spoilt.assign([[0.0], [np.nan]])
        strategy.run(step)
        spoilt.assign([[0.0], [0.0]])
        assert before == state(variables + optimizer.inner_optimizer.variables)
    if "percentile" in bounds:
        spoilt.assign([[9.0], [0.0]])
    strategy.run(step)
    numbers = [optimizer.last_gradient_norm, optimizer.clipped_fraction]
    return state(variables) + [numbers + [optimizer.skipped_steps]]

def train(strategy):
    with strategy.scope():
        dense = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
        model = keras.Sequential([keras.Input((1,)), dense])
        optimizer = make_optimizer("sgd", 1.0, clipnorm=1.0)
        model.compile(
            keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=8.0),
            loss=lambda y, outputs: outputs,
        )
    x = np.array([[200.0], [-2.0]])
    model.fit(x, x, batch_size=2, epochs=2, verbose=0)
    return model.get_weights()[0].tolist() + [[optimizer.last_gradient_norm]]

one = tf.distribute.get_strategy()
cases = json.loads(sys.argv[1])
results = [[steps(s, **bounds) for s in (one, mirrored)] for bounds in cases]
print(json.dumps(results + [[train(one), train(mirrored)]]))
"""


@pytest.mark.skipif(
    not importlib.util.find_spec("tensorflow"), reason="TensorFlow is not installed"
)
def test_two_replicas_take_the_step_of_one_device():
    every_bound = {"clipvalue": 50.0, "clipnorm": 40.0, "global_clipnorm": 30.0}
    cases = [{name: bound} for name, bound in every_bound.items()] + [every_bound]
    cases += [{"clipnorm": 40.0, "skip_nonfinite": True}]
    not_by_formula = [{"adaptive": 0.5}, {"percentile": 50, "skip_nonfinite": True}]
    cases += not_by_formula
    printed = run_python(REPLICAS, "tensorflow", json.dumps(cases))
    *results, (one_fit, two_fit) = json.loads(printed.splitlines()[-1])
    batch = [np.array([198.0, 1.5]), np.array([[0, 0], [396.0, 3.0], [0, 0]])]
    norm = np.sqrt(sum(np.sum(g**2) for g in batch))
    for (one, two), bounds in zip(results, cases, strict=True):
        assert one == two
        *ends, (last_norm, fraction, skipped) = one
        assert skipped == ("skip_nonfinite" in bounds)
        assert fraction == (0.5 if "percentile" in bounds else 1.0)
        if bounds in not_by_formula:
            continue
        assert last_norm == pytest.approx(norm)
        formula = {name: bounds.get(name) for name in BOUNDS}
        # Two steps with one gradient, the second of momentum 0.5: 1 + 1.5 times of it.
        for end, gradient in zip(ends, clip(batch, **formula), strict=True):
            np.testing.assert_allclose(end, -2.5 * gradient.ravel(), rtol=1e-5)
    # The mean over the batch is 99: a step of 1.0, twice.
    assert one_fit == two_fit == [[-2.0], [99.0]]


def test_missing_gradients_are_left_out():
    variables = variables_like([[1.0], [1.0, 1.0]])
    optimizer = make_optimizer("sgd", 1.0, global_clipnorm=1.0)
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply(tensors([None, [3.0, 4.0]]), variables)
    np.testing.assert_array_equal(variables[0], [1.0])
    np.testing.assert_allclose(variables[1], [1 - 0.6, 1 - 0.8])
    assert optimizer.last_gradient_norm == 5.0
    with pytest.raises(ValueError, match="No gradients provided"):
        optimizer.apply([None, None], variables)


def test_a_value_that_overwrites_its_variable_is_no_gradient():
    variables = variables_like([[1.0], [1.0]])
    variables[0].overwrite_with_gradient = True
    optimizer = make_optimizer("sgd", 1.0, global_clipnorm=1.0)
    optimizer.apply(tensors([[50.0], [4.0]]), variables)
    np.testing.assert_array_equal(values(variables), [[50.0], [0.0]])
    assert optimizer.last_gradient_norm == 4.0


def test_half_precision_gradients_neither_overflow_nor_change_type():
    variable = keras.Variable(np.zeros(2), dtype="float16")
    optimizer = make_optimizer("sgd", 1.0, clipnorm=1e-3)
    gradient = keras.ops.convert_to_tensor(np.array([3e4, -4e4], "float16"))
    optimizer.apply([gradient], [variable])
    assert optimizer.last_gradient_norm == pytest.approx(5e4, rel=1e-3)
    np.testing.assert_allclose(values([variable])[0], [-6e-4, 8e-4], rtol=1e-3)


def test_every_bound_takes_gradients_in_double_precision():
    # JAX has none, unless it is told to at its start.
    dtype = "float32" if keras.backend.backend() == "jax" else "float64"
    variable = keras.Variable(np.ones(2), dtype=dtype)
    every_bound = {name: 1.0 for name in (*BOUNDS, "adaptive")}
    optimizer = make_optimizer("sgd", 1.0, percentile=50, **every_bound)
    optimizer.apply([keras.ops.convert_to_tensor([3.0, 4.0], dtype)], [variable])
    np.testing.assert_allclose(variable, 1 - np.sqrt([0.5, 0.5]), rtol=1e-6)


# Training


@pytest.mark.parametrize("options", [{}, {"jit_compile": True}])
def test_history_is_that_of_a_loop_in_numpy(options):
    x, y = linear_data()
    w, b, losses, norms, clipped = np.zeros((3, 1)), np.zeros(1), [], [], []
    for _ in range(8):
        error = x @ w + b - y
        losses.append(np.mean(error**2))
        gradients = [2 * x.T @ error / len(x), 2 * error.mean(axis=0)]
        norms.append(np.sqrt(sum(np.sum(g**2) for g in gradients)))
        clipped.append(norms[-1] > 2.0)
        step = clip(gradients, global_clipnorm=2.0)
        w, b = w - 0.2 * step[0], b - 0.2 * step[1]
    assert 0 < sum(clipped) < 8

    model = linear_model(make_optimizer("sgd", 0.2, global_clipnorm=2.0), **options)
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(
            (model.optimizer.last_gradient_norm, model.optimizer.clipped_fraction)
        )
    )
    history = model.fit(x, y, batch_size=32, epochs=8, verbose=0, callbacks=[watch])
    np.testing.assert_allclose(history.history["loss"], losses, rtol=1e-5)
    fractions = np.cumsum(clipped) / np.arange(1, 9)
    np.testing.assert_allclose(seen, np.stack([norms, fractions], 1), rtol=1e-5)
    assert int(model.optimizer.iterations) == 8


def test_callbacks_set_the_learning_rate():
    x, y = linear_data()
    model = linear_model(make_optimizer("momentum", 0.5, clipvalue=1.0))
    schedule = keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (epoch + 1))
    history = model.fit(x, y, epochs=2, verbose=0, callbacks=[schedule])
    np.testing.assert_allclose(history.history["learning_rate"], [0.1, 0.05])
    inner = model.optimizer.inner_optimizer
    assert float(inner.learning_rate) == pytest.approx(0.05)


@pytest.mark.parametrize("exclude", [False, True])
def test_weight_decay_comes_from_inside_and_can_be_excluded(exclude):
    (variable,) = variables_like([[2.0]])
    optimizer = make_optimizer("adamw", 0.5, clipnorm=1.0)
    assert optimizer.weight_decay == 1e-5
    optimizer.weight_decay = 0.1
    if exclude:
        optimizer.exclude_from_weight_decay(var_list=[variable])
    optimizer.apply(tensors([[0.0]]), [variable])
    np.testing.assert_allclose(variable, [2.0 if exclude else 2.0 * (1 - 0.5 * 0.1)])


def test_averaged_weights_are_those_of_keras_own_optimizer():
    x, y = linear_data()
    weights = []
    for wrap in (lambda o: o, lambda o: ClippedOptimizer(o, clipvalue=1e6)):
        model = linear_model(wrap(keras.optimizers.SGD(0.1, use_ema=True)))
        swap = keras.callbacks.SwapEMAWeights()
        model.fit(x, y, epochs=2, shuffle=False, verbose=0, callbacks=[swap])
        weights.append(np.concatenate([v.ravel() for v in values(model.weights)]))
    np.testing.assert_array_equal(*weights)


def test_loss_scaling_is_undone_before_clipping():
    fixed = make_optimizer("sgd", 1.0, clipvalue=3.5, loss_scale_factor=1024.0)
    inside = make_optimizer("sgd", 1.0, clipvalue=3.5)
    dynamic = keras.optimizers.LossScaleOptimizer(inside, initial_scale=1024.0)
    of_several = keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(make_optimizer("sgd", 1.0, clipvalue=3.5)),
        loss_scale_factor=1024.0,
    )
    for optimizer in (fixed, dynamic, of_several):
        model = linear_model(optimizer, num_inputs=2)
        model.compile(optimizer, loss=lambda y, outputs: outputs)
        model.fit(np.array([[3.0, 4.0]]), np.zeros((1, 1)), verbose=0)
        kernel, bias = values(model.weights)
        np.testing.assert_array_equal(kernel.ravel(), [-3.0, -3.5])
        np.testing.assert_array_equal(bias, [-1.0])
    assert fixed.last_gradient_norm == pytest.approx(np.sqrt(26))
    assert inside.last_gradient_norm == pytest.approx(np.sqrt(26))
    again = ClippedOptimizer.from_config(fixed.get_config())
    assert again.loss_scale_factor == 1024.0


def test_half_precision_training_skips_the_infinite_step_and_does_not_count_it():
    dynamic = keras.optimizers.LossScaleOptimizer(
        make_optimizer("adam", 0.1, clipnorm=1.0), initial_scale=2.0
    )
    x, y = linear_data()
    model = linear_model(dynamic)
    model.fit(x, y, batch_size=32, verbose=0)
    model.fit(x * np.inf, y, batch_size=32, verbose=0)
    assert np.isfinite(values(model.weights)[0]).all()
    assert np.isfinite(model.optimizer.inner_optimizer.last_gradient_norm)
    assert int(model.optimizer.iterations) == 1


# Saving


RESUME = """
import sys
import keras, numpy as np
import recipes.optimizers

model = keras.models.load_model(sys.argv[1])
data = np.load(sys.argv[2])
optimizer = model.optimizer
print(int(optimizer.iterations), optimizer.skipped_steps)
print(optimizer.last_gradient_norm)
print(optimizer.clipped_fraction, float(optimizer.beta_1))
model.fit(data["x"], data["y"], batch_size=8, shuffle=False, verbose=0)
weights = [keras.ops.convert_to_numpy(v) for v in model.weights + optimizer.variables]
np.savez(sys.argv[3], *weights)
"""


def test_a_fresh_process_trains_on_as_if_nothing_had_happened(tmp_path):
    x, y = linear_data(240)
    clipping = {"clipvalue": 1.0, "global_clipnorm": 0.9, "percentile": 50}
    model = linear_model(make_optimizer("nadam", 0.1, **clipping, skip_nonfinite=True))
    model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    optimizer = model.optimizer
    optimizer.beta_1 = 0.625
    x[0] = np.nan  # from here on
    model.fit(x[:8], y[:8], batch_size=8, verbose=0)
    state = (60, 1, optimizer.last_gradient_norm, optimizer.clipped_fraction, 0.625)
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", x=x, y=y)
    model.fit(x, y, batch_size=8, shuffle=False, verbose=0)

    files = [tmp_path / name for name in ("model.keras", "data.npz", "weights.npz")]
    printed = run_python(RESUME, keras.backend.backend(), *files)
    assert tuple(map(float, printed.split()[-5:])) == pytest.approx(state, nan_ok=True)
    resumed = np.load(files[2])
    expected = values(model.weights + optimizer.variables)
    assert len(resumed.files) == len(expected)
    for name, value in zip(resumed.files, expected, strict=True):
        np.testing.assert_array_equal(resumed[name], value)


def test_weights_files_and_set_weights_carry_the_whole_state(tmp_path):
    x, y = linear_data()
    model = linear_model(make_optimizer("adam", clipnorm=1e-3))
    model.fit(x, y, verbose=0)
    model.optimizer.beta_1 = 0.25
    model.save_weights(tmp_path / "all.weights.h5")
    state = values(model.optimizer.variables)

    loaded = linear_model(make_optimizer("adam", clipnorm=1e-3))
    loaded.optimizer.build(loaded.trainable_variables)
    loaded.load_weights(tmp_path / "all.weights.h5")
    given = make_optimizer("adam", clipnorm=1e-3)
    given.build(variables_like(values(model.trainable_variables)))
    given.set_weights(state)
    for optimizer in (loaded.optimizer, given):
        assert (optimizer.clipped_fraction, float(optimizer.beta_1)) == (1.0, 0.25)
        for one, other in zip(values(optimizer.variables), state, strict=True):
            np.testing.assert_array_equal(one, other)


def test_configuration_survives_the_round_trip():
    optimizer = make_optimizer(
        "adamw",
        0.25,
        clipvalue=2,
        global_clipnorm=np.float32(3),
        adaptive=0.5,
        percentile=90,
        skip_nonfinite=np.True_,
    )
    config = keras.saving.serialize_keras_object(optimizer)
    assert config["registered_name"] == "recipes>ClippedOptimizer"
    again = keras.saving.deserialize_keras_object(config, safe_mode=True)
    assert again.get_config() == optimizer.get_config()
    assert (again.clipvalue, again.clipnorm, again.global_clipnorm) == (2.0, None, 3.0)
    assert (again.adaptive, again.percentile, again.skip_nonfinite) == (0.5, 90.0, True)


# Errors


def test_an_unknown_name_is_answered_with_all_names_and_the_nearest():
    with pytest.raises(
        ValueError, match="sgd, momentum.*mean 'adamax'.*name='Adamaxx'"
    ):
        make_optimizer("Adamaxx")
    with pytest.raises(ValueError, match="nadam, adamw. Received: name=None$"):
        make_optimizer(None)


@pytest.mark.parametrize("options", [{"lr": 0.1}, {"decay": 1e-4}, {"kwargs": 1}])
def test_an_option_keras_does_not_know_is_named(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"optimizers.SGD. Received: {name}={value}$"):
        make_optimizer("sgd", **options)


@pytest.mark.parametrize(
    "wrong", [np.nan, -0.1, 1.0, 1 - 1e-9, np.inf, True, "0", None]
)
def test_a_fraction_out_of_its_range_is_refused(wrong):
    for name, option in [
        ("momentum", "momentum"),
        ("rmsprop", "momentum"),
        ("rmsprop", "rho"),
        ("adadelta", "rho"),
        ("adam", "beta_1"),
        ("adamw", "beta_2"),
        ("sgd", "ema_momentum"),
    ]:
        message = (
            f"`{option}` must be a number, at least 0 and below 1. Received: {option}="
        )
        with pytest.raises(ValueError, match=message):
            make_optimizer(name, **{option: wrong})
    for name, option in [("momentum", "momentum"), ("nadam", "beta_1")]:
        for bounds in ({}, {"clipnorm": 1.0}):
            optimizer = make_optimizer(name, **bounds)
            with pytest.raises(ValueError, match=f"`{option}` must .*: {option}="):
                setattr(optimizer, option, wrong)
            assert float(getattr(optimizer, option)) == np.float32(0.9)


@pytest.mark.parametrize(
    ("name", "option", "wrong"),
    [
        ("adam", "epsilon", np.nan),
        ("adam", "epsilon", None),
        ("adamw", "weight_decay", -0.1),
        ("adamw", "weight_decay", None),
        ("sgd", "weight_decay", np.inf),
        ("adagrad", "initial_accumulator_value", np.nan),
        ("sgd", "loss_scale_factor", 0),
        ("sgd", "gradient_accumulation_steps", 1),
        ("sgd", "gradient_accumulation_steps", 2.5),
        ("sgd", "ema_overwrite_frequency", 0),
        ("sgd", "nesterov", "no"),
        ("adam", "amsgrad", 1),
        ("sgd", "use_ema", None),
    ],
)
def test_an_option_out_of_its_range_is_refused(name, option, wrong):
    with pytest.raises(ValueError, match=f"`{option}` must be .*Received: {option}="):
        make_optimizer(name, **{option: wrong})


def test_options_of_any_number_type_and_none_are_taken():
    optimizer = make_optimizer(
        "momentum",
        momentum=np.float32(0.5),
        nesterov=np.True_,
        weight_decay=None,
        gradient_accumulation_steps=np.int64(2),
    )
    config = optimizer.get_config()
    assert (config["momentum"], config["nesterov"]) == (0.5, True)
    assert config["gradient_accumulation_steps"] == 2


def test_a_momentum_that_keras_compiles_into_the_step_cannot_be_set_through_clipping():
    inner = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer = ClippedOptimizer(inner, clipnorm=1.0)
    assert optimizer.momentum == 0.9
    with pytest.raises(TypeError, match="`momentum` of SGD is fixed.*make_optimizer"):
        optimizer.momentum = 0.5
    assert not hasattr(optimizer, "beta_1")


@pytest.mark.parametrize("name", ["learning_rate", *BOUNDS, "adaptive", "percentile"])
@pytest.mark.parametrize(
    "value", [0, -1.0, np.nan, np.inf, 1e300, 10**400, True, np.True_, "1", [1.0]]
)
def test_a_rate_or_bound_that_is_no_positive_number_is_refused(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be .* Received: {name}="):
        make_optimizer("sgd", **{name: value})


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        ("adam", "must be a Keras optimizer. Received: inner=str"),
        (keras.optimizers.Adam(clipvalue=1.0), "clip a second time.*inner=Adam"),
        (make_optimizer("sgd", clipnorm=1), "clip a second time.*=ClippedOptimizer"),
        (
            keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()),
            "put the ClippedOptimizer inside the LossScaleOptimizer",
        ),
        (keras.optimizers.SGD(gradient_accumulation_steps=2), "instead of their mean"),
    ],
)
def test_an_inner_optimizer_that_clips_wraps_or_accumulates_is_refused(inner, message):
    with pytest.raises(ValueError, match=f"`inner` .*{message}"):
        ClippedOptimizer(inner, clipnorm=1.0)


def test_no_bound_is_refused():
    message = "At least one of clipvalue, .*Received: clipvalue=None, .*=False$"
    with pytest.raises(ValueError, match=message):
        ClippedOptimizer(keras.optimizers.SGD())


@pytest.mark.parametrize("wrong", [100, 101.0, 1e-9])
def test_a_percentile_out_of_its_range_is_refused(wrong):
    with pytest.raises(ValueError, match="above 0 and below 100. Received: percentile"):
        make_optimizer("sgd", percentile=wrong)


@pytest.mark.parametrize("wrong", [1, None, "no"])
def test_skip_nonfinite_is_true_or_false(wrong):
    with pytest.raises(ValueError, match="`skip_nonfinite` must be True or False"):
        ClippedOptimizer(keras.optimizers.SGD(), skip_nonfinite=wrong)


@pytest.mark.parametrize(
    "wrong",
    [{"kernel": 0.5}, {"kernel": [0.5]}, {"": [0]}, {0: [0]}, [("kernel", [0])]],
)
def test_unit_axes_that_are_no_axes_are_refused(wrong):
    with pytest.raises(ValueError, match="`unit_axes` must be .*Received: unit_axes="):
        ClippedOptimizer(keras.optimizers.SGD(), adaptive=1.0, unit_axes=wrong)


def test_unit_axes_without_adaptive_are_refused():
    with pytest.raises(ValueError, match="needs `adaptive`. Received: unit_axes"):
        ClippedOptimizer(keras.optimizers.SGD(), clipnorm=1, unit_axes={"a": None})


@pytest.mark.parametrize("wrong", [{"kernal": [1]}, {"kernel": [2]}, {"kernel": [-3]}])
def test_unit_axes_that_fit_no_variable_are_refused(wrong):
    inner = keras.optimizers.SGD()
    optimizer = ClippedOptimizer(inner, adaptive=1.0, unit_axes=wrong)
    dense = keras.layers.Dense(2)
    dense.build((None, 3))
    with pytest.raises(ValueError, match="must name parts .*dense.*/kernel, dense"):
        optimizer.build(dense.trainable_variables)


def test_variables_must_be_known_before_gradients_come_alone():
    with pytest.raises(ValueError, match="must already be built"):
        make_optimizer("sgd", clipnorm=1.0).apply(tensors([[1.0]]))
