import json
import subprocess
import sys
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.schedules import Exponential, Piecewise, PowerDecay, plot_schedules

few = settings(max_examples=15, deadline=None)
rates = st.floats(1e-6, 10.0)
lengths = st.one_of(st.integers(1, 10**7), st.floats(0.5, 1e7))


def evaluate(schedule, steps):
    return np.float64(keras.ops.convert_to_numpy(schedule(np.asarray(steps))))


def steps_of(length):
    """Steps at the start, around `length`, far beyond, and some in between."""
    around = [0, 1, int(length), int(length) + 1, int(5 * length), 10**7]
    return np.array(around).clip(max=10**7).astype("int32")


def assert_close(actual, expected):
    """To a millionth of the peak: the rates are computed in float32."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6 * expected.max())


@few
@given(rates, lengths, st.floats(0.1, 3.0))
def test_power_decay_is_its_formula(initial, decay_steps, power):
    t = steps_of(decay_steps)
    actual = evaluate(PowerDecay(initial, decay_steps, power), t)
    assert_close(actual, initial / (1 + t / decay_steps) ** power)


@few
@given(rates, lengths, st.floats(0.01, 1.0))
def test_exponential_is_its_formula(initial, decay_steps, factor):
    t = steps_of(decay_steps)
    actual = evaluate(Exponential(initial, decay_steps, factor), t)
    assert_close(actual, initial * factor ** (t / decay_steps))


@few
@given(st.lists(st.integers(0, 10**7), unique=True, max_size=6), st.data())
def test_piecewise_changes_at_its_boundaries(boundaries, data):
    boundaries = sorted(boundaries)
    values = [data.draw(rates) for _ in range(len(boundaries) + 1)]
    t = np.array([0, 10**7, *boundaries, *(max(b - 1, 0) for b in boundaries)])
    expected = np.array(values)[np.searchsorted(boundaries, t, side="right")]
    assert_close(evaluate(Piecewise(boundaries, values), t), expected)


def test_rate_is_half_at_decay_steps():
    assert evaluate(PowerDecay(0.5, decay_steps=1000), [1000]) == 0.25


def test_power_one_is_inverse_time_decay_and_exponential_is_kerass():
    t = np.arange(0, 4000, 37)
    keras_schedules = keras.optimizers.schedules
    inverse = keras_schedules.InverseTimeDecay(0.01, 1000, 1.0)
    np.testing.assert_allclose(
        evaluate(PowerDecay(0.01, 1000), t), evaluate(inverse, t), rtol=1e-6
    )
    decay = keras_schedules.ExponentialDecay(0.01, 1000, 0.1)
    np.testing.assert_allclose(
        evaluate(Exponential(0.01, 1000), t), evaluate(decay, t), rtol=2e-6
    )


def test_piecewise_changes_one_step_before_kerass():
    t = np.arange(0, 20)
    theirs = keras.optimizers.schedules.PiecewiseConstantDecay([4, 9], [0.3, 0.2, 0.1])
    ours = evaluate(Piecewise([5, 10], [0.3, 0.2, 0.1]), t)
    np.testing.assert_allclose(ours, evaluate(theirs, t), rtol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "formula"),
    [
        (PowerDecay(0.1, 3, 2.0), lambda t: 0.1 / (1 + t / 3) ** 2),
        (Exponential(0.1, 3, 0.5), lambda t: 0.1 * 0.5 ** (t / 3)),
        (Piecewise([2, 4], [3.0, 2.0, 1.0]), lambda t: 3.0 - (t >= 2) - (t >= 4)),
    ],
)
def test_fractional_and_scalar_steps(schedule, formula):
    t = np.array([0.0, 1.5, 2.0, 3.75, 4.25])
    np.testing.assert_allclose(evaluate(schedule, t), formula(t), rtol=1e-6)
    assert evaluate(schedule, 4).shape == ()
    np.testing.assert_allclose(evaluate(schedule, 4), formula(4), rtol=1e-6)


@pytest.mark.parametrize("steps_per_execution", [1, 3])
@pytest.mark.parametrize("optimizer", ["sgd", "scaled"])
def test_movement_in_fit_is_the_sum_of_the_rates(optimizer, steps_per_execution):
    # The loss is the sum of the weights, so each step moves a weight by the rate.
    def fitted(schedule):
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        sgd = keras.optimizers.SGD(schedule)
        if optimizer == "scaled":
            sgd = keras.optimizers.LossScaleOptimizer(sgd)
        model.compile(
            sgd,
            loss=lambda y, outputs: keras.ops.mean(outputs),
            steps_per_execution=steps_per_execution,
        )
        before = model.get_weights()[1]
        model.fit(np.ones((22, 1)), np.ones((22, 1)), 4, epochs=2, verbose=0)
        return (before - model.get_weights()[1]).item()

    t = np.arange(12)  # six batches in each epoch, the last one ragged
    assert fitted(PowerDecay(0.1, 4)) == pytest.approx(np.sum(0.1 / (1 + t / 4)))
    assert fitted(Exponential(0.1, 4)) == pytest.approx(np.sum(0.1 * 0.1 ** (t / 4)))
    assert fitted(Piecewise([5, 7], [0.1, 0.2, 0.3])) == pytest.approx(
        5 * 0.1 + 2 * 0.2 + 5 * 0.3
    )


def test_saved_model_loads_in_a_fresh_process_and_goes_on(tmp_path):
    schedules = [PowerDecay(0.1, 4.5, 2), Exponential(0.1, 4), Piecewise([2], [0.2, 1])]
    for index, schedule in enumerate(schedules):
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.Adam(schedule), loss="mse")
        model.fit(np.ones((3, 1)), np.ones((3, 1)), batch_size=1, verbose=0)
        model.save(tmp_path / f"{index}.keras")
    program = (
        "import json, sys, keras, recipes.schedules\n"
        "for index in range(3):\n"
        "    model = keras.models.load_model(f'{sys.argv[1]}/{index}.keras')\n"
        "    print(json.dumps(float(model.optimizer.learning_rate)))\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", program, str(tmp_path)]
    root = Path(__file__).parents[1]
    output = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, check=True)
    loaded = [json.loads(line) for line in output.stdout.splitlines()]
    assert loaded == pytest.approx([0.1 / (1 + 3 / 4.5) ** 2, 0.1 * 0.1**0.75, 1.0])


@pytest.mark.parametrize(
    "schedule",
    [
        PowerDecay(np.float32(0.5), np.int64(7), 2),
        Exponential(1, 10.5, 0.5),
        Piecewise(np.array([3, 5]), np.array([0.5, 0.25, 1], "float32")),
    ],
)
def test_config_is_plain_and_gives_the_same_schedule(schedule):
    config = json.loads(json.dumps(schedule.get_config()))
    assert type(schedule).from_config(config).get_config() == config
    restored = keras.optimizers.schedules.deserialize(
        keras.optimizers.schedules.serialize(schedule)
    )
    assert type(restored) is type(schedule) and restored.get_config() == config


def test_rates_stay_exact_where_the_default_dtype_is_short():
    default = keras.config.floatx()
    keras.config.set_floatx("float16")  # holds no step above 65504
    try:
        assert evaluate(PowerDecay(1.0, 10**6), [10**6]) == 0.5
        assert evaluate(Piecewise([70_000], [1.0, 0.5]), [69_999]) == 1.0
        np.testing.assert_allclose(evaluate(Exponential(1.0, 10**6), [10**6]), 0.1)
    finally:
        keras.config.set_floatx(default)


def test_plot_shows_every_schedule_up_to_the_last_step():
    warmup = keras.optimizers.schedules.CosineDecay(
        0.0, 90, warmup_target=0.1, warmup_steps=10
    )
    figure = plot_schedules({"ours": PowerDecay(0.1, 50), "warmup": warmup}, 100)
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == ["ours", "warmup"]
    steps, drawn = axes.lines[0].get_data()
    np.testing.assert_array_equal(steps, np.arange(100))
    np.testing.assert_allclose(drawn, 0.1 / (1 + steps / 50), rtol=1e-6)
    assert axes.lines[1].get_ydata()[5] == pytest.approx(0.05)
    assert axes.get_yscale() == "linear"
    assert plt.get_fignums() == []  # open figures do not pile up


def test_plot_is_logarithmic_where_rates_span_decades_and_never_with_a_zero():
    wide = Piecewise([10_000_000], [1.0, 0.01])
    (axes,) = plot_schedules({"wide": wide}, 20_000_000).axes
    assert axes.get_yscale() == "log" and len(axes.lines[0].get_xdata()) <= 2000
    vanishing = Exponential(1.0, 1)
    (axes,) = plot_schedules({"vanishing": vanishing}, 1000).axes
    assert axes.get_yscale() == "linear"


@pytest.mark.parametrize(
    "wrong", [0, -1, np.nan, np.inf, 10**400, 1e300, 1e-320, True, "1", None]
)
def test_numbers_that_make_no_rate_are_refused(wrong):
    for schedule in (PowerDecay, Exponential):
        with pytest.raises(ValueError, match="`initial_learning_rate`.*Received: ini"):
            schedule(wrong, 10)
        with pytest.raises(ValueError, match="`decay_steps` .*Received: decay_steps="):
            schedule(0.1, wrong)
    with pytest.raises(ValueError, match="`power` .*Received: power="):
        PowerDecay(0.1, 10, wrong)
    with pytest.raises(ValueError, match="`factor` .*Received: factor="):
        Exponential(0.1, 10, wrong)
    with pytest.raises(ValueError, match="`values` .*Received: values="):
        Piecewise([5], [0.1, wrong])


def test_a_factor_that_grows_is_refused():
    with pytest.raises(ValueError, match="`factor` .*Received: factor=1.5"):
        Exponential(0.1, 10, 1.5)


@pytest.mark.parametrize("wrong", [[2.5], [-1], [True], ["2"], 2, None])
def test_boundaries_that_are_no_steps_are_refused(wrong):
    with pytest.raises(ValueError, match="`boundaries` .*Received: boundaries="):
        Piecewise(wrong, [0.1, 0.2])


def test_boundaries_and_values_must_fit():
    for boundaries in ([5, 5], [5, 4]):
        with pytest.raises(ValueError, match="increasing.*Received: boundaries="):
            Piecewise(boundaries, [0.3, 0.2, 0.1])
    for values in ([0.1], [0.3, 0.2, 0.1], 0.1):
        with pytest.raises(ValueError, match="must hold 2 rates.*Received: values="):
            Piecewise([5], values)


def test_plot_refuses_what_it_cannot_draw():
    with pytest.raises(ValueError, match="Received: schedules={}"):
        plot_schedules({}, 10)
    for wrong in (0, 1.5, True, None):
        with pytest.raises(ValueError, match="Received: total_steps="):
            plot_schedules({"power": PowerDecay(0.1, 10)}, wrong)
