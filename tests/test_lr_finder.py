import bisect
import functools
import importlib.util
import itertools
import math
import random

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callbacks.lr_finder import LRFinder
from recipes.optimizers import ClippedOptimizer

few = settings(max_examples=20, deadline=None)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(22, 3)).astype("float32")
Y = (X @ [[1.0], [-2.0], [0.5]] + 1).astype("float32")
WEIGHTS = RNG.uniform(0.5, 2, size=22).astype("float32")
# Of four rows, the last of two.
BATCHES = [(X[i : i + 4], Y[i : i + 4], WEIGHTS[i : i + 4]) for i in range(0, 22, 4)]


class Batches(keras.utils.PyDataset):
    """Given batches, for which numbers are drawn.

    It must not be told that an epoch has ended.
    """

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        random.random(), np.random.normal()
        return self.batches[index]

    def on_epoch_end(self):
        raise RuntimeError("told")


class InterruptedModel(keras.Sequential):
    """Stopped by its user in the seventh step, after the step's work is done."""

    steps = []

    def make_train_function(self, force=False):
        if self.train_function is None:
            super().make_train_function()
            work = self.train_function

            def train_function(*args):
                self.steps.append("step")
                result = work(*args)
                if len(self.steps) == 7:
                    raise KeyboardInterrupt
                return result

            self.train_function = train_function


def linear_model(optimizer=None, *, loss="mse", regularizer=None, **compile_options):
    options = {"kernel_initializer": "ones", "kernel_regularizer": regularizer}
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, **options)])
    model.compile(optimizer or keras.optimizers.SGD(0.01), loss, **compile_options)
    return model


def deep_model(optimizer="adam", *, kind=keras.Sequential, **compile_options):
    """What a run could leave its marks on. Not built, and PReLU builds late anyway."""
    keras.utils.set_random_seed(1)
    model = kind(
        [
            keras.layers.Dense(8, activation=keras.layers.PReLU()),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(1),
        ]
    )
    model.compile(optimizer, "mse", metrics=["mae"], **compile_options)
    return model


def state(model):
    variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


def same(values, others):
    return len(values) == len(others) and all(map(np.array_equal, values, others))


def fit(model, **options):
    history = model.fit(X, Y, batch_size=11, epochs=2, verbose=0, **options)
    return [*state(model), *history.history.values()]


@functools.cache
def model_that_loses_its_targets():
    model = linear_model(loss=lambda y, outputs: keras.ops.mean(y + 0 * outputs))
    model.make_train_function()  # which each run then finds, and leaves
    return model


def read(losses, **options):
    """A finder that was shown these losses, one per step."""
    batches = ((X[:1], np.full((1, 1), loss, "float32")) for loss in losses)
    options = {"smoothing": 0, "divergence_factor": 1e9, **options}
    finder = LRFinder(1e-3, 1.0, num_steps=len(losses), **options)
    return finder.run(model_that_loses_its_targets(), batches)


@functools.cache
def fit_without_a_run():
    return fit(deep_model())


# --- the losses


def descent(model, rates, *, penalty=0.0, weighted=False):
    """Losses of gradient descent with the batches above, by hand."""
    w, b = (np.asarray(value, "float64") for value in model.get_weights())
    losses = []
    for rate, (x, y, weights) in zip(rates, itertools.cycle(BATCHES), strict=False):
        weights = weights[:, None] if weighted else 1
        error = x @ w + b - y
        losses.append(np.mean(weights * error**2) + penalty * np.sum(w**2))
        w = w - rate * (2 * x.T @ (weights * error) / len(x) + 2 * penalty * w)
        b = b - rate * 2 * np.mean(weights * error)
    return pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize("steps_per_execution", [1, 4])
def test_each_loss_is_that_of_its_batch_alone_also_of_a_short_one(steps_per_execution):
    model = linear_model(steps_per_execution=steps_per_execution, metrics=["mae"])
    finder = LRFinder(1e-3, 0.3, num_steps=14, divergence_factor=1e9)
    expected = descent(model, np.geomspace(1e-3, 0.3, 14))
    batches = (batch[:2] for batch in itertools.cycle(BATCHES))
    assert finder.run(model, batches).losses.tolist() == expected


def test_penalties_and_sample_weights_are_in_the_loss():
    model = linear_model(regularizer=keras.regularizers.L2(0.1))
    expected = descent(model, np.geomspace(1e-3, 0.3, 14), penalty=0.1, weighted=True)
    finder = LRFinder(1e-3, 0.3, num_steps=14, divergence_factor=1e9)
    assert finder.run(model, itertools.cycle(BATCHES)).losses.tolist() == expected


def test_a_custom_train_step_is_used_and_must_tell_its_loss():
    class Model(keras.Sequential):
        def train_step(self, *args):
            result = super().train_step(*args)
            logs = result[0] if keras.backend.backend() == "jax" else result
            logs[self.key] = logs.pop("loss") * 0 + 7
            return result

    model = Model([keras.Input((3,)), keras.layers.Dense(1)])
    model.key = "loss"
    model.compile("sgd", "mse")
    assert LRFinder(num_steps=10).run(model, X, Y).losses.tolist() == [7.0] * 10
    model.key = "error"
    with pytest.raises(ValueError, match="returns its loss.*Received: error"):
        LRFinder().run(model, X, Y)


def test_class_weights_are_in_the_loss():
    model = linear_model(loss=lambda y, outputs: y[:, 0] + 0 * outputs[:, 0])
    classes = np.array([[0.0], [1.0], [1.0], [1.0]])
    finder = LRFinder(num_steps=10)
    finder.run(model, X[:4], classes, batch_size=4, class_weight={0: 5.0, 1: 3.0})
    assert finder.losses.tolist() == [(5 * 0 + 3 * 1 + 3 * 1 + 3 * 1) / 4] * 10


def test_rates_grow_by_one_factor_from_the_first_to_the_last():
    rates = read([1] * 12).learning_rates
    assert rates[0] == 1e-3 and rates[-1] == 1.0
    assert rates[1:] / rates[:-1] == pytest.approx(1000 ** (1 / 11))


@few
@given(
    st.lists(st.floats(-100, 100, width=32), min_size=10, max_size=15),
    st.floats(0, 0.999),
)
def test_smoothed_loss_is_a_mean_that_forgets(losses, beta):
    for t, smoothed in enumerate(read(losses, smoothing=beta).smoothed_losses):
        weights = beta ** np.arange(t, -1.0, -1.0)
        expected = np.average(losses[: t + 1], weights=weights)
        assert smoothed == pytest.approx(expected, abs=1e-9)


# --- where it ends


@few
@given(st.lists(st.floats(0.015625, 10, width=32), min_size=10, max_size=30))
def test_stops_at_the_first_loss_above_the_factor_times_the_best(losses):
    finder = read(losses, divergence_factor=3)
    first = len(losses) // 10  # these are not judged
    above = [
        t >= first and losses[t] > 3 * min(losses[first : t + 1])
        for t in range(len(losses))
    ]
    end = above.index(True) + 1 if True in above else len(losses)
    assert finder.losses.tolist() == losses[:end]
    assert len(finder.learning_rates) == end
    assert finder.diverged == any(above)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_and_spoils_no_other(bad):
    finder = read([4, 3, 2, 1, 1.5, 1.5, 1.5, bad, 0, 0])
    assert finder.diverged and len(finder.losses) == 8
    assert finder.losses[:7].tolist() == [4, 3, 2, 1, 1.5, 1.5, 1.5]
    assert finder.suggestion == finder.learning_rates[3] / 10


def test_falling_below_zero_is_no_divergence():
    falling = [3, 2, 1, 0, -1, -2, -3, -4, -5, -6, -7]
    assert not read(falling, divergence_factor=2).diverged
    finder = read([*falling, -1, 0.5, 0.5], divergence_factor=2)
    assert finder.diverged and finder.losses[-1] == 0.5  # more than 7 above -7


# --- the suggestions


def test_tenth_of_minimum_is_a_tenth_of_the_rate_of_the_least_loss():
    finder = read([0, 5, 4, 4, 3, 2, 1, 1.5, 1.2, 2])  # the first tenth does not count
    assert finder.suggestion == finder.learning_rates[6] / 10
    assert finder.suggestions.learning_rate["tenth_of_minimum"] == finder.suggestion


def test_steepest_is_the_turning_point_of_the_fall_not_of_a_later_one():
    u = np.linspace(0, 1, 61)
    fall = 2 / (1 + np.exp(30 * (u - 0.4)))  # steepest at u = 0.4
    up_and_down = np.where(u > 0.7, 4, 0) - np.where(u > 0.9, 3.5, 0)
    steepest = read(fall + up_and_down).suggestions.learning_rate["steepest"]
    assert steepest == pytest.approx(1e-3 * 1000**0.4, rel=1e-6)


@few
@given(st.lists(st.integers(1, 20), min_size=10, max_size=40))
def test_valley_is_halfway_down_the_longest_falling_subsequence(losses):
    finder = read(losses)
    first = len(losses) // 10
    if np.argmin(losses[first:]) == 0:  # no fall
        assert math.isnan(finder.suggestions.learning_rate["valley"])
        return
    tails, lengths = [], []  # patience sorting
    for loss in losses[first:]:
        place = bisect.bisect_left(tails, -loss)
        tails[place : place + 1] = [-loss]
        lengths.append(place + 1)
    longest = max(lengths)
    index = lengths.index(longest) - longest + int(longest / 3) + int(longest / 6)
    expected = finder.learning_rates[first:][max(index, 0)]
    assert finder.suggestions.learning_rate["valley"] == expected


def test_third_of_divergence_needs_a_divergence():
    losses = [5, 4, 3, 2, 1, 1, 1, 2, 9, 9]
    finder = read(losses, divergence_factor=3)
    rates = finder.suggestions.learning_rate
    assert rates["third_of_divergence"] == finder.learning_rates[8] / 3
    assert math.isnan(read(losses).suggestions.learning_rate["third_of_divergence"])


def test_no_suggestion_without_a_fall_or_without_its_end():
    with pytest.raises(ValueError, match="did not fall.*min_learning_rate=0.001"):
        read([1, 1, 2, 3, 4, 5, 6, 7, 8, 9]).suggestion  # noqa: B018
    with pytest.raises(ValueError, match="last step.*max_learning_rate=1"):
        read([9, 8, 7, 6, 5, 4, 3, 2, 1, 0]).suggestion  # noqa: B018
    with pytest.raises(ValueError, match="did not fall"):
        read([math.nan] * 10).suggestion  # noqa: B018


def test_table_has_a_row_for_each_step():
    finder = read([5, 4, 3, 2, 1, 1, 1, 1, 2, 9, 9], smoothing=0.5)
    table = finder.to_frame()
    assert table.index.name == "step" and len(table) == 11
    assert table["loss"].tolist() == finder.losses.tolist()
    assert table["smoothed_loss"].tolist() == finder.smoothed_losses.tolist()
    assert table["learning_rate"].tolist() == finder.learning_rates.tolist()


@pytest.mark.parametrize(
    "losses", [[5, 4, 3, 2, 1, 1, 2, 1e6, math.nan, 1], [math.nan] * 10, [1] * 10]
)
def test_plot_marks_each_rate_and_keeps_its_limits_whatever_the_losses(losses):
    finder = read(losses)
    axes = finder.plot().axes[0]
    names = finder.suggestions.learning_rate.dropna().index
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert [label.split(":")[0] for label in labels[: len(names)]] == list(names)
    assert np.isfinite(axes.get_ylim()).all() and axes.get_xscale() == "log"
    if not math.isnan(finder.suggestions.learning_rate["steepest"]):
        low, high = axes.get_ylim()
        assert low < 1 and 5 < high < 9


# --- the data


def kinds_of_data():
    import pandas as pd

    yield keras.ops.convert_to_tensor(X), keras.ops.convert_to_tensor(Y)
    yield X.astype("float64"), Y.astype("float64")
    yield pd.DataFrame(X), pd.DataFrame(Y)
    yield Batches([(X, Y)]), None
    yield ((X, Y) for _ in range(10)), None
    yield ([X.astype("float64"), Y] for _ in range(10)), None
    if importlib.util.find_spec("tensorflow"):
        import tensorflow as tf

        slices = tf.data.Dataset.from_tensor_slices((X, Y))
        yield slices.batch(22), None
        yield slices.repeat().batch(22), None


def test_any_kind_of_data_gives_the_losses_of_arrays():
    finder = LRFinder(1e-3, 0.1, num_steps=10)
    model = linear_model()
    model.make_train_function()  # once for all
    expected = finder.run(model, X, Y, batch_size=22).losses
    assert expected.tolist() != [expected[0]] * 10
    for x, y in kinds_of_data():
        batch_size = None if y is None else 22
        losses = finder.run(model, x, y, batch_size=batch_size).losses
        assert losses == pytest.approx(expected, rel=1e-5)


def seen(data, y=None, *, seed=0, num_steps=22, **options):
    """The targets of the batches in the order in which they came."""
    finder = LRFinder(
        num_steps=num_steps, smoothing=0, divergence_factor=1e9, seed=seed
    )
    return finder.run(model_that_loses_its_targets(), data, y, **options).losses


def test_a_pass_takes_each_row_once_in_an_order_that_the_seed_decides():
    targets = np.arange(1.0, 12.0)[:, None]
    orders = seen(X[:11], targets, batch_size=1).reshape(2, 11).tolist()
    assert [sorted(order) for order in orders] == [targets[:, 0].tolist()] * 2
    assert orders[0] != orders[1]
    again = seen(X[:11], targets, batch_size=1).reshape(2, 11).tolist()
    assert again == orders
    other = seen(X[:11], targets, batch_size=1, seed=1).reshape(2, 11).tolist()
    assert other != orders


def test_a_pass_takes_each_batch_of_a_data_set_once():
    batches = [(X[:2], np.full((2, 1), value)) for value in range(1, 12)]
    passes = seen(Batches(batches)).reshape(2, 11)
    assert (np.sort(passes) == range(1, 12)).all() and (passes[0] != passes[1]).any()
    endless = Batches(batches * 2)
    endless.__class__ = type("Endless", (Batches,), {"num_batches": None})
    assert seen(endless).tolist() == [*range(1, 12)] * 2


def test_epochs_count_the_batches_of_the_data():
    def num_steps(x, y=None, **options):
        finder = LRFinder(1e-5, 1e-4, epochs=3, divergence_factor=1e9)
        return len(finder.run(linear_model(), x, y, **options).losses)

    assert num_steps(X, Y, batch_size=4) == 18
    assert num_steps(Batches(BATCHES)) == 18
    for data in [itertools.cycle(BATCHES), Batches(BATCHES[:3])]:
        with pytest.raises(ValueError, match="at least 10 steps.*epochs=3"):
            num_steps(data)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (X, {"y": Y[:5]}, r"same number of rows.*\[5, 22\] rows"),
        (X[:0], {"y": Y[:0]}, r"at least one.*\[0\] rows"),
        (np.float32(1), {}, r"\[0\] rows"),
        (X, {"y": Y, "batch_size": 0}, "batch_size=0"),
        (X, {"y": Y, "batch_size": 2.5}, "batch_size=2.5"),
        (Batches(BATCHES), {"y": Y}, "brings its targets.*x=Batches, y"),
        (Batches(BATCHES), {"batch_size": 4}, "x=Batches, batch_size"),
        (iter(BATCHES), {"sample_weight": WEIGHTS}, "list_iterator, sample_weight"),
        (X.tolist(), {"y": Y}, "must be arrays.*x=list, y"),
        (X.tolist(), {}, "must be arrays.*x=list"),
        (7, {}, "must be arrays.*x=int"),
        (iter([]), {}, "at least one batch"),
        (iter(BATCHES), {}, "ended after 6 of 400 batches"),
    ],
)
def test_data_that_do_not_fit_are_refused(data, options, message):
    model = linear_model()
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        LRFinder(1e-5, 1e-4).run(model, data, **options)
    assert same(model.get_weights(), before)


# --- the model afterwards


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda: keras.optimizers.Adam(use_ema=True, ema_overwrite_frequency=3),
        lambda: keras.optimizers.SGD(0.01, 0.9, gradient_accumulation_steps=3),
        lambda: ClippedOptimizer(keras.optimizers.Nadam(), clipnorm=0.1),
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adamax()),
    ],
)
def test_a_diverged_run_leaves_every_bit_of_a_trained_model(make_optimizer):
    model = deep_model(make_optimizer())
    for _ in range(4):
        model.train_on_batch(X, Y)
    model.stop_training = "as it was"
    before, attributes = state(model), dict(vars(model))
    random_states = random.getstate(), np.random.get_state()[1].tolist()
    finder = LRFinder(1e-2, 1e30, num_steps=15).run(model, Batches([(X, Y)]))
    assert finder.diverged
    assert same(state(model), before)
    assert dict(vars(model)) == attributes
    assert (random.getstate(), np.random.get_state()[1].tolist()) == random_states


@pytest.mark.parametrize("built", [False, True])
def test_fit_after_a_run_is_fit_without_it(built):
    model = deep_model()
    if built:
        model(X)
        model.optimizer.build(model.trainable_variables)
    assert LRFinder(1e-3, 1e10, num_steps=15).run(model, X, Y, batch_size=11).diverged
    assert same(fit(model), fit_without_a_run())


def test_an_interrupted_run_leaves_no_trace():
    InterruptedModel.steps.clear()
    model = deep_model(kind=InterruptedModel)
    finder = LRFinder(1e-3, 1.0)
    with pytest.raises(KeyboardInterrupt):
        finder.run(model, X, Y, batch_size=11)
    assert len(model.steps) == 7
    with pytest.raises(ValueError, match="come to its end"):
        finder.suggestion  # noqa: B018
    assert same(fit(model), fit_without_a_run())


def test_an_error_in_the_data_leaves_no_trace():
    def batches():
        yield from [(X[:11], Y[:11])] * 7
        raise OSError("disk")

    model = deep_model()
    finder = LRFinder().run(linear_model(), X, Y, batch_size=22)
    with pytest.raises(OSError, match="disk"):
        finder.run(model, batches())
    assert finder.losses is None  # those of the first run would mislead
    assert same(fit(model), fit_without_a_run())


def test_momentum_and_steps_of_a_diverged_run_are_gone():
    model = linear_model(keras.optimizers.SGD(0.01, momentum=0.9))
    assert LRFinder(1.0, 1e30, num_steps=20).run(model, X, Y).diverged
    assert [float(np.sum(np.abs(v))) for v in model.optimizer.variables[2:]] == [0, 0]
    assert int(model.optimizer.iterations) == 0
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01)
    assert np.isfinite(fit(model)[-1]).all()


def test_a_second_run_repeats_the_first():
    model = deep_model()
    finder = LRFinder(1e-4, 1.0, num_steps=15)
    first = finder.run(model, X, Y, batch_size=11).losses
    assert np.array_equal(finder.run(model, X, Y, batch_size=11).losses, first)


def test_several_inputs_and_outputs_are_left_unbuilt():
    inputs = {name: keras.Input((3,), name=name) for name in "ab"}
    total = keras.layers.Add()(list(inputs.values()))
    outputs = {name: keras.layers.Dense(1, name=name)(total) for name in "cd"}
    model = keras.Model(inputs, outputs)
    metric = keras.metrics.MeanAbsoluteError("mae")
    metrics = {"c": [metric], "d": ["mae"]}
    model.compile("sgd", {"c": "mse", "d": "mae"}, {"c": 1.0, "d": 2.0}, metrics)
    names, attributes = model.metrics_names, set(vars(model))
    x, y = {"a": X, "b": X}, {"c": Y, "d": Y}
    finder = LRFinder(1e-5, 1e-4, num_steps=10)
    losses = finder.run(model, x, y, batch_size=22).losses
    assert model.metrics_names == names and set(vars(model)) == attributes
    assert float(metric.result()) == 0
    # The first loss is that of the untouched model.
    expected = [np.asarray(model.predict(x, verbose=0)[name]) - Y for name in "cd"]
    expected = np.mean(expected[0] ** 2) + 2 * np.mean(np.abs(expected[1]))
    assert losses[0] == pytest.approx(expected, rel=1e-5)
    logs = model.evaluate(x, y, verbose=0, return_dict=True)
    assert sorted(logs) == ["c_loss", "c_mae", "d_loss", "d_mae", "loss"]
    assert model.metrics_names.count("c_loss") == 1


def test_clipping_takes_part():
    rate, bound = 0.5, 0.01
    optimizer = ClippedOptimizer(keras.optimizers.SGD(0.1), global_clipnorm=bound)
    model = linear_model(optimizer, loss=lambda y, outputs: keras.ops.mean(outputs))
    finder = LRFinder(rate, rate * (1 + 1e-6), num_steps=10).run(model, X, Y)
    # Gradient g of the mean output: the mean input, and 1 for the bias. A step of
    # length rate * bound along it takes rate * bound * |g| off the loss.
    length = np.sqrt(np.sum(X.mean(axis=0) ** 2) + 1)
    assert -np.diff(finder.losses) == pytest.approx(rate * bound * length, rel=1e-3)


def test_mixed_precision_is_left_as_it_was():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = deep_model()
    finally:
        keras.config.set_dtype_policy("float32")
    model.train_on_batch(X, Y)
    before = state(model)
    LRFinder(1e-4, 1e6, num_steps=20).run(model, X, Y, batch_size=22)
    assert same(state(model), before)


# --- wrong arguments


def test_optimizers_whose_rate_is_not_one_number_are_refused():
    schedule = keras.optimizers.schedules.CosineDecay(0.1, decay_steps=10)
    optimizers = keras.optimizers
    pairs = [(optimizers.SGD(), "dense"), (optimizers.Adam(), "other")]
    for optimizer, message in [
        (optimizers.SGD(schedule), "Compile with a number.*optimizer=SGD"),
        (ClippedOptimizer(optimizers.Adam(schedule), clipnorm=1.0), "with a number"),
        (optimizers.MultiOptimizer(pairs), "several learning rates"),
    ]:
        with pytest.raises(ValueError, match=message):
            LRFinder().run(linear_model(optimizer), X, Y)


@pytest.mark.parametrize("model", [keras.Sequential([keras.Input((3,))]), "model"])
def test_a_model_that_is_not_compiled_is_refused(model):
    with pytest.raises(ValueError, match="`model` must be a compiled keras.Model"):
        LRFinder().run(model, X, Y)


def test_there_is_nothing_to_see_before_a_run():
    finder = LRFinder()
    for see in [
        lambda: finder.suggestion,
        lambda: finder.suggestions,
        finder.to_frame,
        finder.plot,
    ]:
        with pytest.raises(ValueError, match="no losses yet"):
            see()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        *itertools.product(
            ["min_learning_rate", "max_learning_rate"], [0, -1, math.inf, "1", True]
        ),
        *itertools.product(["num_steps"], [9, 10.5, math.inf, True, "ten"]),
        *itertools.product(["epochs"], [0, 1.5, math.inf, True]),
        *itertools.product(["smoothing"], [-0.1, 1, None, False]),
        *itertools.product(["divergence_factor"], [0.9, math.inf, None]),
        *itertools.product(["seed"], [-1, 0.5, None]),
        *[
            (name, math.nan)
            for name in ["min_learning_rate", "num_steps", "epochs", "seed"]
        ],
        ("max_learning_rate", 1e-6),
    ],
)
def test_wrong_arguments_are_named(name, wrong):
    with pytest.raises(ValueError, match=f"`{name}`.* Received: {name}={wrong!r}$"):
        LRFinder(**{name: wrong})


def test_steps_and_epochs_exclude_each_other():
    with pytest.raises(ValueError, match="Received: num_steps=50, epochs=1"):
        LRFinder(num_steps=50, epochs=1)


def test_numbers_of_numpy_are_numbers():
    finder = LRFinder(np.float32(1e-6), np.float64(1e-3), num_steps=np.int64(20))
    assert len(finder.run(linear_model(), X, Y).losses) == 20
