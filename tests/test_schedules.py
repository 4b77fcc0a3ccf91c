import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.schedules import (
    Cosine,
    Cyclical,
    Exponential,
    Floor,
    InEpochs,
    Joined,
    OneCycle,
    Piecewise,
    PowerDecay,
    Warmup,
    plot_schedules,
)

few = settings(max_examples=15, deadline=None)
rates = st.floats(1e-6, 10.0)
lengths = st.one_of(st.integers(1, 10**7), st.floats(0.5, 1e7))
whole_lengths = st.integers(1, 10**7)
keras_schedules = keras.optimizers.schedules


def evaluate(schedule, steps):
    return np.float64(keras.ops.convert_to_numpy(schedule(np.asarray(steps))))


def steps_of(*lengths):
    """Steps at the start, around each length, some in between, and far beyond."""
    around = [int(length) + near for length in lengths for near in (-1, 0, 1, 2)]
    scattered = np.geomspace(2, 1e9, 50).astype(int)
    return np.array([0, 1, *around, *scattered, 10**9 + 1]).clip(0, 10**9 + 1)


def assert_close(actual, expected, peak=None):
    """To a millionth of the peak: the rates are computed in float32."""
    peak = expected.max() if peak is None else peak
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6 * peak)


# The formulae in float64: functions of the time t, an array in the schedule's unit, and
# of the length of one step in that unit.


def power_formula(initial, decay_steps, power):
    return lambda t, one: initial / (1 + t / decay_steps) ** power


def exponential_formula(initial, decay_steps, factor):
    return lambda t, one: initial * np.float64(factor) ** (t / decay_steps)


def piecewise_formula(boundaries, values):
    values = np.array(values)
    return lambda t, one: values[np.searchsorted(boundaries, t, side="right")]


def cosine_formula(initial, decay_steps, final_fraction):
    def rate(t, one):
        part = np.minimum(t / decay_steps, 1)
        above = (1 - final_fraction) * (1 + np.cos(np.pi * part)) / 2
        return initial * (final_fraction + above)

    return rate


def restarts_formula(initial, decay_steps, final_fraction, length_factor, peak_factor):
    def one_rate(t):
        length, cycle = decay_steps, 0
        if length_factor == 1:
            cycle, t = t // length, math.fmod(t, length)
        while t >= length:
            t, length, cycle = t - length, length * length_factor, cycle + 1
        above = (1 - final_fraction) * peak_factor**cycle
        return initial * (
            final_fraction + above * (1 + math.cos(math.pi * t / length)) / 2
        )

    return lambda t, one: np.array([one_rate(each) for each in t.tolist()])


def cyclical_formula(low, high, half_cycle, mode, factor):
    def rate(t, one):
        # Smith 2017, section 3.1; there the cycles count from 1.
        cycle = np.floor(1 + t / (2 * half_cycle))
        height = np.maximum(0, 1 - np.abs(t / half_cycle - 2 * cycle + 1))
        scale = {"triangular": 1.0, "triangular2": 0.5 ** (cycle - 1)}
        if mode == "exp_range":
            scale[mode] = factor**t
        return low + (high - low) * height * scale[mode]

    return rate


def warmup_formula(formula, warmup):
    def rate(t, one):
        after = formula(np.maximum(t - warmup, 0), one)
        return after * np.minimum(1, (t + one) / (warmup + one))

    return rate


def joined_formula(formulae, boundaries):
    def rate(t, one):
        result = formulae[0](t, one)
        for boundary, formula in zip(boundaries, formulae[1:], strict=True):
            here = t >= boundary
            result[here] = formula(t[here] - boundary, one)
        return result

    return rate


def one_cycle_by_pytorch(
    peak,
    total_steps,
    fraction,
    anneal,
    initial_divisor,
    final_divisor,
    three_phase,
    low,
    high,
):
    """PyTorch's OneCycleLR, step by step in plain Python: a rate and a momentum each.

    Beyond the last step, where PyTorch raises, that of the last step.
    """
    initial = peak / initial_divisor
    final = initial / final_divisor
    rise_end = float(fraction * total_steps) - 1
    if three_phase:
        phases = [
            (rise_end, initial, peak, high, low),
            (float(2 * fraction * total_steps) - 2, peak, initial, low, high),
            (total_steps - 1, initial, final, high, high),
        ]
    else:
        phases = [
            (rise_end, initial, peak, high, low),
            (total_steps - 1, peak, final, low, high),
        ]

    def blend(start, end, part):
        if anneal == "linear":
            return (end - start) * part + start
        return end + (start - end) / 2.0 * (math.cos(math.pi * part) + 1)

    def values(step):
        step = min(step, total_steps - 1)
        start_step = 0.0
        for index, (end_step, *ends) in enumerate(phases):
            if step <= end_step or index == len(phases) - 1:
                part = (step - start_step) / (end_step - start_step)
                return blend(*ends[:2], part), blend(*ends[2:], part)
            start_step = end_step

    return values


@st.composite
def leaves(draw):
    """A schedule with a formula, its formula, and its peak."""
    peak, length = draw(rates), draw(st.integers(1, 5000))
    kind = draw(
        st.sampled_from(["power", "exponential", "cosine", "restarts", "cycle"])
    )
    if kind == "power":
        return PowerDecay(peak, length, 2), power_formula(peak, length, 2), peak
    if kind == "exponential":
        return Exponential(peak, length), exponential_formula(peak, length, 0.1), peak
    if kind == "cosine":
        return Cosine(peak, length), cosine_formula(peak, length, 0.0), peak
    if kind == "restarts":
        growth = draw(st.integers(1, 3))
        options = {"final_fraction": 0.1, "length_factor": growth, "peak_factor": 0.7}
        schedule = Cosine(peak, length, restarts=True, **options)
        return schedule, restarts_formula(peak, length, 0.1, growth, 0.7), peak
    schedule = Cyclical(peak / 10, peak, length, mode="triangular2")
    return (
        schedule,
        cyclical_formula(peak / 10, peak, length, "triangular2", None),
        peak,
    )


@st.composite
def around(draw, inner):
    """One of the wrappers, around what `inner` draws."""
    kind = draw(st.sampled_from([Warmup, Joined, Floor, InEpochs]))
    schedule, formula, peak = draw(inner)
    if kind is Warmup:
        steps = draw(st.integers(0, 3000))
        return Warmup(schedule, steps), warmup_formula(formula, steps), peak
    if kind is Floor:
        floored = Floor(schedule, peak / 3)
        return floored, lambda t, one: np.maximum(formula(t, one), peak / 3), peak
    if kind is InEpochs:
        n = draw(st.integers(1, 2000))
        return InEpochs(schedule, n), lambda t, one: formula(t / n, one / n), peak
    second, second_formula, second_peak = draw(inner)
    first, last = draw(st.tuples(st.integers(0, 3000), st.integers(3001, 10**6)))
    formulae = [formula, second_formula, lambda t, one: np.full_like(t, peak)]
    joined = Joined([schedule, second, peak], [first, last])
    return joined, joined_formula(formulae, [first, last]), max(peak, second_peak)


def everything():
    """A nest with every class in it, and a schedule of Keras."""
    cosine = Cosine(0.1, 4, restarts=True, length_factor=2, peak_factor=0.5)
    cycle = Cyclical(0.01, 0.1, 3, mode="exp_range", factor_per_step=0.99)
    joined = Joined(
        [
            Warmup(cosine, 3),
            OneCycle(0.2, 6, three_phase=True, anneal="linear"),
            InEpochs(Floor(PowerDecay(0.1, 2.5), 0.05), 3),
            Joined([Exponential(0.1, 5), cycle, Piecewise([2], [0.3, 0.2])], [2, 4]),
            keras_schedules.ExponentialDecay(0.1, 10, 0.5),
            0.01,
        ],
        [8, 14, 20, 27, 33],
    )
    return InEpochs(Warmup(Floor(joined, 0.02), 2), 1)


@few
@given(rates, lengths, st.floats(0.1, 3.0))
def test_power_decay_is_its_formula(initial, decay_steps, power):
    t = steps_of(decay_steps, 5 * decay_steps)
    actual = evaluate(PowerDecay(initial, decay_steps, power), t)
    assert_close(actual, power_formula(initial, decay_steps, power)(t, 1))


@few
@given(rates, lengths, st.one_of(st.floats(0.01, 1.0), st.just(0.99999)))
def test_exponential_is_its_formula(initial, decay_steps, factor):
    t = steps_of(decay_steps, 5 * decay_steps)
    actual = evaluate(Exponential(initial, decay_steps, factor), t)
    assert_close(actual, exponential_formula(initial, decay_steps, factor)(t, 1))


@few
@given(st.lists(st.integers(0, 10**9), unique=True, max_size=6), st.data())
def test_piecewise_changes_at_its_boundaries(boundaries, data):
    boundaries = sorted(boundaries)
    values = [data.draw(rates) for _ in range(len(boundaries) + 1)]
    t = steps_of(*boundaries)
    actual = evaluate(Piecewise(boundaries, values), t)
    assert_close(actual, piecewise_formula(boundaries, values)(t, 1))


@settings(max_examples=40, deadline=None)
@given(
    rates,
    st.one_of(st.integers(1, 30), whole_lengths),
    st.one_of(st.just(0.3), st.floats(0, 0.99)),
    st.sampled_from(["cosine", "linear"]),
    st.floats(1, 1000),
    st.floats(1, 1e5),
    st.booleans(),
)
def test_one_cycle_is_pytorchs(
    peak, total, fraction, anneal, first, final, three_phase
):
    fraction = fraction / 2 if three_phase else fraction
    rise_end = fraction * total - 1
    if rise_end == 0:
        return  # PyTorch divides by zero; test_a_rise_of_one_step_starts_at_the_peak
    schedule = OneCycle(
        peak,
        total,
        warmup_fraction=fraction,
        anneal=anneal,
        initial_divisor=first,
        final_divisor=final,
        three_phase=three_phase,
        base_momentum=0.8,
        max_momentum=0.9,
    )
    t = steps_of(max(rise_end, 0), max(2 * rise_end, 0), total - 1)
    pytorch = one_cycle_by_pytorch(
        peak, total, fraction, anneal, first, final, three_phase, 0.8, 0.9
    )
    expected = np.array([pytorch(step) for step in t.tolist()])
    actual = evaluate(schedule, t)
    assert_close(actual, expected[:, 0], peak)
    assert actual.min() >= 0
    assert_close(evaluate(schedule.momentum, t), expected[:, 1], 1.0)


@few
@given(rates, lengths, st.floats(0, 1))
def test_cosine_is_its_formula(initial, decay_steps, final_fraction):
    t = steps_of(decay_steps / 2, decay_steps)
    actual = evaluate(Cosine(initial, decay_steps, final_fraction=final_fraction), t)
    assert_close(actual, cosine_formula(initial, decay_steps, final_fraction)(t, 1))
    assert actual.min() >= 0


@few
@given(
    rates,
    st.one_of(st.integers(1, 30), whole_lengths),
    st.floats(0, 1),
    st.integers(1, 4),
    st.sampled_from([0.3, 0.999, 1.0]),
)
def test_cosine_restarts_at_whole_steps(initial, steps, bottom, growth, peak_factor):
    options = {"length_factor": growth, "peak_factor": peak_factor}
    schedule = Cosine(initial, steps, final_fraction=bottom, restarts=True, **options)
    begins = itertools.accumulate(steps * growth**i for i in range(20))
    t = steps_of(*begins)
    formula = restarts_formula(initial, steps, bottom, growth, peak_factor)
    assert_close(evaluate(schedule, t), formula(t, 1), initial)


@pytest.mark.parametrize("mode", ["triangular", "triangular2", "exp_range"])
@few
@given(
    rates,
    st.floats(0.01, 0.9),
    st.one_of(st.integers(1, 30), whole_lengths),
    st.sampled_from([0.9, 0.99994, 1.0]),
)
def test_cyclical_is_smiths_formula(mode, high, fraction, half_cycle, factor):
    low = fraction * high
    factor = factor if mode == "exp_range" else None
    schedule = Cyclical(low, high, half_cycle, mode=mode, factor_per_step=factor)
    t = steps_of(half_cycle, 2 * half_cycle, 7 * half_cycle)
    formula = cyclical_formula(low, high, half_cycle, mode, factor)
    assert_close(evaluate(schedule, t), formula(t, 1), high)


@settings(max_examples=50, deadline=None)
@given(st.recursive(leaves(), around, max_leaves=4), st.integers(0, 10**6))
def test_every_nest_is_its_formula(nest, middle):
    schedule, formula, peak = nest
    t = steps_of(*range(2, 60, 4), middle)
    assert_close(evaluate(schedule, t), formula(np.float64(t), 1.0), peak)
    again = keras_schedules.deserialize(keras_schedules.serialize(schedule))
    np.testing.assert_array_equal(evaluate(again, t), evaluate(schedule, t))


def test_rate_is_half_at_decay_steps():
    assert evaluate(PowerDecay(0.5, decay_steps=1000), [1000]) == 0.25


def test_ends_are_met_to_the_bit():
    """Top and bottom are values the user gave: no rounding, nothing below."""
    far = [0, 1000, 1001, 10**9]
    single = np.float64(np.float32(0.1))
    assert evaluate(Cosine(0.1, 1000), far).tolist() == [single, 0, 0, 0]
    cycle = OneCycle(1.0, 1001, warmup_fraction=0.0, initial_divisor=2, final_divisor=4)
    assert evaluate(cycle, far[1:]).tolist() == [0.125] * 3


def test_power_one_is_inverse_time_decay_and_exponential_is_kerass():
    t = np.arange(0, 4000, 37)
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
    theirs = keras_schedules.PiecewiseConstantDecay([4, 9], [0.3, 0.2, 0.1])
    ours = evaluate(Piecewise([5, 10], [0.3, 0.2, 0.1]), t)
    # One by one, for Keras's (3.15) takes no arrays on PyTorch.
    theirs = [float(theirs(step)) for step in t]
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_cosine_is_kerass_where_that_is_right():
    t = np.arange(0, 700)
    theirs = keras_schedules.CosineDecay(0.5, 300, alpha=0.1)
    ours = Cosine(0.5, 300, final_fraction=0.1)
    assert_close(evaluate(ours, t), evaluate(theirs, t))
    # Exactly doubled lengths, few of them: the logarithm in float32 still suffices.
    theirs = keras_schedules.CosineDecayRestarts(0.5, 100, 2.0, 0.5, 0.1)
    options = {"final_fraction": 0.1, "length_factor": 2, "peak_factor": 0.5}
    ours = Cosine(0.5, 100, restarts=True, **options)
    t = np.array([0, 50, 99, 100, 299, 300, 640])  # one at a time, and slow
    expected = np.array([float(theirs(step)) for step in t.tolist()])
    assert_close(evaluate(ours, t), expected)


def test_cosine_restarts_where_keras_misses_the_step():
    late = 10 * (2**13 - 1)
    assert float(keras_schedules.CosineDecayRestarts(1.0, 10)(late)) < 0.01
    ours = Cosine(1.0, 10, restarts=True, length_factor=2)
    assert evaluate(ours, [late]) == 1.0 and evaluate(ours, [late - 1]) < 0.01


def test_integer_rates_are_rates():
    t = np.arange(0, 30)
    for schedule in (PowerDecay, Exponential, Cosine):
        np.testing.assert_array_equal(
            evaluate(schedule(1, 10), t), evaluate(schedule(1.0, 10), t)
        )
    np.testing.assert_array_equal(evaluate(Warmup(1, 4), [0, 4]), np.float32([0.2, 1]))


def test_warmup_moves_at_once_and_hands_over_at_its_last_step():
    warm = Warmup(Piecewise([2], [0.5, 0.1]), 4)
    expected = [0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.1]
    np.testing.assert_allclose(evaluate(warm, np.arange(7)), expected, rtol=1e-6)
    without = Warmup(Exponential(0.5, 3), 0)
    t = np.arange(9)
    np.testing.assert_array_equal(
        evaluate(without, t), evaluate(Exponential(0.5, 3), t)
    )


def test_warmup_of_whole_epochs_rises_within_them():
    inside = InEpochs(Warmup(Cosine(0.1, 7), 2), 1719)
    outside = Warmup(InEpochs(Cosine(0.1, 7), 1719), 2 * 1719)
    t = np.arange(0, 10 * 1719, 97)
    assert_close(evaluate(inside, t), evaluate(outside, t))


def test_steps_are_told_apart_where_float32_cannot():
    begin = 10**9  # there float32 counts in steps of 64
    t = begin + np.array([0, 1, 5, 9, 10])
    expected = cosine_formula(0.1, 10, 0.0)(np.float64(t - begin), 1)
    assert_close(evaluate(Warmup(Cosine(0.1, 10), begin), t), expected)
    joined = Joined([0.3, Piecewise([1], [0.1, 0.2])], [begin])
    assert_close(evaluate(joined, t[:3] - 1), np.array([0.3, 0.1, 0.2]))
    short = OneCycle(0.1, begin, warmup_fraction=1 - 1e-8, anneal="linear")
    middle = 0.1 * (1 + 1 / 25e4) / 2
    assert evaluate(short, begin - 6) == pytest.approx(middle, rel=1e-4)


def test_epochs_of_epochs_multiply():
    t = np.arange(0, 900, 7)
    twice = InEpochs(Joined([0.1, InEpochs(Cosine(0.1, 9), 3)], [2]), 10)
    assert_close(evaluate(twice, t), evaluate(Joined([0.1, Cosine(0.1, 270)], [20]), t))


# What the chapter's hand-made schedules get wrong.


def test_one_cycle_longer_than_planned_holds_the_final_rate():
    schedule = OneCycle(0.1, 20)
    held = evaluate(schedule, [19, 20, 39, 10**9])
    np.testing.assert_allclose(held, [0.1 / 25 / 1e4] * 4, rtol=1e-6)


def test_one_cycle_ends_at_its_final_rate_on_the_last_step():
    last = evaluate(OneCycle(0.05, 10_750, final_divisor=100), [10_749])
    np.testing.assert_allclose(last, 0.05 / 25 / 100, rtol=1e-6)


def test_one_cycle_moves_momentum_against_the_rate():
    schedule, t = OneCycle(0.1, 50), np.arange(50)
    opposite = np.diff(evaluate(schedule, t)) * np.diff(evaluate(schedule.momentum, t))
    assert opposite.max() < 0
    assert evaluate(schedule.momentum, 14) == pytest.approx(0.85)  # 0.3 * 50 - 1


def test_one_cycle_takes_zero_for_zero():
    schedule = OneCycle(1.0, 10, warmup_fraction=0, base_momentum=0, anneal="linear")
    # As in PyTorch the fall has begun when there is no rise: 1/10 of it at step 0.
    assert evaluate(schedule, 0) == pytest.approx(0.9, abs=1e-5)
    assert evaluate(schedule.momentum, 0) == pytest.approx(0.095)


def test_a_rise_of_one_step_starts_at_the_peak():
    assert evaluate(OneCycle(0.3, 10, warmup_fraction=0.1), 0) == pytest.approx(0.3)
    three = OneCycle(0.3, 10, warmup_fraction=0.1, three_phase=True)
    assert evaluate(three, [0, 9]) == pytest.approx([0.3 / 25, 0.3 / 25e4])


def test_exponential_does_not_drift_over_a_long_run():
    steps = 25 * 1719
    step_by_step = np.float32(0.01)
    factor = np.float32(0.1 ** (1 / steps))
    for _ in range(steps):
        step_by_step *= factor
    assert abs(step_by_step / 0.001 - 1) > 1e-4  # what multiplying the rate does
    assert evaluate(Exponential(0.01, steps), steps) == pytest.approx(1e-3, rel=1e-6)


def test_first_update_is_made_at_the_initial_rate():
    for schedule in (Exponential(0.5, 3), Cosine(0.5, 3), PowerDecay(0.5, 3)):
        optimizer = keras.optimizers.SGD(schedule)
        weight = keras.Variable([1.0])
        optimizer.apply([keras.ops.ones(1)], [weight])
        assert keras.ops.convert_to_numpy(weight).item() == 0.5


def test_piecewise_in_epochs_changes_inside_the_run():
    """Boundaries that miss the run are the chapter's; epochs cannot be miscounted."""
    schedule = InEpochs(Piecewise([5, 15], [0.01, 0.005, 0.001]), 1719)
    t = np.array([0, 5 * 1719 - 1, 5 * 1719, 15 * 1719 - 1, 15 * 1719, 10**9])
    expected = [0.01, 0.01, 0.005, 0.005, 0.001, 0.001]
    np.testing.assert_allclose(evaluate(schedule, t), expected, rtol=1e-6)


@pytest.mark.parametrize("steps_per_execution", [1, 3])
@pytest.mark.parametrize("optimizer", ["sgd", "scaled"])
def test_movement_in_fit_is_the_sum_of_the_rates(optimizer, steps_per_execution):
    # The loss is the sum of the weights, so each step moves a weight by the rate.
    def fitted(schedule, fits=1):
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
        for _ in range(fits):
            model.fit(np.ones((22, 1)), np.ones((22, 1)), 4, epochs=2, verbose=0)
        return (before - model.get_weights()[1]).item()

    t = np.arange(12)  # six batches in each epoch, the last one ragged
    assert fitted(PowerDecay(0.1, 4)) == pytest.approx(np.sum(0.1 / (1 + t / 4)))
    nest = Joined([Warmup(0.1, 3), Piecewise([2], [0.2, 0.3])], [5])
    expected = 0.1 * (1 + 2 + 3 + 4 + 4) / 4 + 2 * 0.2 + 5 * 0.3
    assert fitted(nest) == pytest.approx(expected)
    # A second fit goes on where the first stopped: here, after the cycle's end.
    pytorch = one_cycle_by_pytorch(0.1, 12, 0.3, "cosine", 25, 1e4, False, 0.85, 0.95)
    expected = sum(pytorch(step)[0] for step in range(24))
    assert fitted(OneCycle(0.1, 12), fits=2) == pytest.approx(expected)


def test_every_optimizer_takes_them():
    schedule = everything()
    for name in (
        "SGD Adam AdamW Adamax Nadam RMSprop Adagrad Adadelta Adafactor Ftrl Lion Lamb"
    ).split():
        optimizer = getattr(keras.optimizers, name)(learning_rate=schedule)
        optimizer.apply([keras.ops.ones((2, 2))], [keras.Variable(np.ones((2, 2)))])
        rate = keras.ops.convert_to_numpy(optimizer.learning_rate)
        assert rate == evaluate(schedule, 1)
        again = type(optimizer).from_config(optimizer.get_config())
        assert keras.ops.convert_to_numpy(again.learning_rate) == evaluate(schedule, 0)


def test_saved_model_loads_in_a_fresh_process_and_goes_on(tmp_path):
    schedules = [
        PowerDecay(0.1, 4.5, 2),
        Piecewise([2], [0.2, 1]),
        OneCycle(0.1, 9, three_phase=True),
        everything(),
    ]
    for index, schedule in enumerate(schedules):
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.Adam(schedule), loss="mse")
        model.fit(np.ones((3, 1)), np.ones((3, 1)), batch_size=1, verbose=0)
        model.save(tmp_path / f"{index}.keras")
    program = (
        "import json, sys, keras, recipes.schedules\n"
        "for index in range(4):\n"
        "    path = f'{sys.argv[1]}/{index}.keras'\n"
        "    optimizer = keras.models.load_model(path, safe_mode=True).optimizer\n"
        "    rates = [float(optimizer.learning_rate)]\n"
        "    for step in (9, 15, 22, 24, 29, 31, 40):\n"
        "        optimizer.iterations.assign(step)\n"
        "        rates += [float(optimizer.learning_rate)]\n"
        "    print(json.dumps(rates))\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", program, str(tmp_path)]
    root = Path(__file__).parents[1]
    output = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, check=True)
    for schedule, line in zip(schedules, output.stdout.splitlines(), strict=True):
        expected = evaluate(schedule, [3, 9, 15, 22, 24, 29, 31, 40])
        assert json.loads(line) == pytest.approx(expected.tolist(), rel=1e-6)


@pytest.mark.parametrize(
    "schedule",
    [
        PowerDecay(np.float32(0.5), np.int64(7), 2),
        Exponential(1, 10.5, 0.5),
        Piecewise(np.array([3, 5]), np.array([0.5, 0.25, 1], "float32")),
        OneCycle(1, np.int32(10), three_phase=np.True_, warmup_fraction=0),
        Cosine(1, 10, restarts=True, length_factor=np.int64(2)),
        Cyclical(1, 2, 3, mode="exp_range", factor_per_step=np.float32(0.5)),
        Warmup(Floor(1, np.float64(0.5)), np.int64(3)),
        Joined((1, 2), np.array([4])),
        everything(),
    ],
)
def test_config_is_plain_and_gives_the_same_schedule(schedule):
    config = json.loads(json.dumps(schedule.get_config()))
    assert type(schedule).from_config(config).get_config() == config
    restored = keras_schedules.deserialize(keras_schedules.serialize(schedule))
    assert type(restored) is type(schedule) and restored.get_config() == config


@pytest.mark.parametrize(
    ("schedule", "formula"),
    [
        (PowerDecay(0.1, 3, 2.0), power_formula(0.1, 3, 2.0)),
        (Exponential(0.1, 3, 0.5), exponential_formula(0.1, 3, 0.5)),
        (Piecewise([2, 4], [3.0, 2.0, 1.0]), piecewise_formula([2, 4], [3.0, 2, 1])),
        (Cosine(0.1, 3.5), cosine_formula(0.1, 3.5, 0.0)),
        (Cosine(0.1, 2, restarts=True), restarts_formula(0.1, 2, 0.0, 1, 1.0)),
        (
            Cosine(0.1, 1, restarts=True, length_factor=2),
            restarts_formula(0.1, 1, 0.0, 2, 1.0),
        ),
        (Cyclical(1, 2, 1), cyclical_formula(1, 2, 1, "triangular", None)),
        (
            InEpochs(Joined([1.0, Exponential(0.1, 3)], [2]), 2),
            lambda t, one: np.where(t < 4, 1.0, 0.1 * 0.1 ** ((t / 2 - 2) / 3)),
        ),
    ],
)
def test_steps_of_any_kind(schedule, formula):
    fractional = np.array([0.0, 1.5, 2.0, 3.75, 4.25])
    np.testing.assert_allclose(
        evaluate(schedule, fractional), formula(fractional, 1), rtol=1e-6, atol=1e-8
    )
    expected = formula(np.float64([4]), 1)[0]
    kinds = [4, 4.0, np.int64(4), np.float32(4), np.uint8(4), np.float16(4)]
    kinds += [
        keras.ops.convert_to_tensor(4),
        keras.Variable(4, dtype="int32", trainable=False),
    ]
    for step in kinds:
        rate = schedule(step)
        assert keras.backend.standardize_dtype(rate.dtype) == "float32"
        assert rate.shape == () and float(rate) == pytest.approx(expected, rel=1e-6)
    assert schedule(np.full((2, 3), 4)).shape == (2, 3)


def test_nothing_is_infinite_or_no_number_in_what_is_not_taken(monkeypatch):
    where, seen = keras.ops.where, []

    def checked_where(condition, a, b):
        seen.extend(np.asarray(keras.ops.convert_to_numpy(x)) for x in (a, b))
        return where(condition, a, b)

    monkeypatch.setattr(keras.ops, "where", checked_where)
    t = np.array([-5, 0, 1, 7, 40, 10**6, 2**31 - 1])
    assert np.isfinite(evaluate(everything(), t)).all()
    extreme = [
        OneCycle(1, 1),
        OneCycle(1, 1, three_phase=True),
        OneCycle(1, 10, warmup_fraction=0.1, three_phase=True),
        OneCycle(3e38, 2**31 - 1, final_divisor=3e38),
        Exponential(1, 1e-37, 1e-37),
        PowerDecay(1, 1e-37, 1e37),
        Cosine(1, 1, restarts=True, peak_factor=1e-37),
        Cosine(1, 2**31 - 1, restarts=True, length_factor=2**31 - 1),
        Cyclical(1, 2, 2**31 - 1, mode="exp_range", factor_per_step=1e-37),
        InEpochs(Joined([Cyclical(1, 2, 2**30), 1], [2**31 - 1]), 2**31 - 1),
        InEpochs(InEpochs(Warmup(Cosine(1, 1), 2**31 - 1), 2**31 - 1), 2**31 - 1),
    ]
    for schedule in extreme:
        values = evaluate(schedule, t)
        assert np.isfinite(values).all() and values.min() >= 0
    assert all(np.isfinite(values).all() for values in seen)


def test_schedules_of_others_see_the_time_in_their_own_steps():
    inverse = keras_schedules.InverseTimeDecay(0.1, 10, 1.0)
    ours = PowerDecay(0.1, 10)

    class Doubled(PowerDecay):
        def __call__(self, step):
            return super().__call__(2 * step)

    t = np.arange(0, 200, 7)
    for wrap in (
        lambda schedule: Warmup(schedule, 11),
        lambda schedule: Joined([0.5, schedule], [33]),
        lambda schedule: InEpochs(schedule, 13),
        lambda schedule: InEpochs(Joined([0.5, schedule], [5]), 13),
    ):
        assert_close(evaluate(wrap(inverse), t), evaluate(wrap(ours), t))
    doubled = evaluate(InEpochs(Doubled(0.1, 20), 13), t)
    assert_close(doubled, evaluate(InEpochs(ours, 13), t))


def test_rates_stay_exact_where_the_default_dtype_is_short():
    default = keras.config.floatx()
    keras.config.set_floatx("float16")  # holds no step above 65504
    try:
        assert evaluate(PowerDecay(1.0, 10**6), [10**6]) == 0.5
        assert evaluate(Piecewise([70_000], [1.0, 0.5]), [69_999]) == 1.0
        actual = evaluate(Exponential(1.0, 10**6), [10**6])
        np.testing.assert_allclose(actual, 0.1, rtol=1e-6)
        nest = InEpochs(Warmup(Cosine(1.0, 10**5, restarts=True), 10), 10)
        np.testing.assert_allclose(evaluate(nest, [1_500_100]), 0.5, rtol=1e-6)
        cycle = OneCycle(1.0, 10**6, anneal="linear", initial_divisor=2)
        assert evaluate(cycle, [299_999]) == 1.0
    finally:
        keras.config.set_floatx(default)


def test_plot_shows_every_schedule_up_to_the_last_step():
    warmup = keras_schedules.CosineDecay(0.0, 90, warmup_target=0.1, warmup_steps=10)
    figure = plot_schedules({"ours": PowerDecay(0.1, 50), "warmup": warmup}, 100)
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == ["ours", "warmup"]
    steps, drawn = axes.lines[0].get_data()
    np.testing.assert_array_equal(steps, np.arange(100))
    np.testing.assert_allclose(drawn, 0.1 / (1 + steps / 50), rtol=1e-6)
    assert axes.lines[1].get_ydata()[5] == pytest.approx(0.05)
    assert axes.get_yscale() == "linear" and axes.get_ylim()[0] == 0
    assert plt.get_fignums() == []  # open figures do not pile up


def test_plot_gives_each_of_many_its_panel_and_one_cycle_its_momentum():
    schedules = {str(peak): Cosine(peak, 20) for peak in (0.1, 0.2, 0.3, 0.4)}
    schedules["cycle"] = OneCycle(0.5, 20)
    *panels, momentum = plot_schedules(schedules, 20).axes
    assert [axes.get_title() for axes in panels] == list(schedules)
    for axes, schedule in zip(panels, schedules.values(), strict=True):
        (line,) = axes.lines
        np.testing.assert_allclose(
            line.get_ydata(), evaluate(schedule, np.arange(20)), rtol=1e-4, atol=1e-7
        )
    drawn = momentum.lines[0].get_ydata()
    assert drawn[0] == pytest.approx(0.95) and drawn[5] == pytest.approx(0.85)


def test_plot_of_two_cycles_has_one_axis_of_momentum():
    cycles = {"two": OneCycle(0.5, 20), "three": OneCycle(0.5, 20, three_phase=True)}
    rates, momentum = plot_schedules(cycles, 20).axes
    assert len(rates.lines) == 2 and len(momentum.lines) == 2


def test_plot_is_logarithmic_where_rates_span_decades_and_never_with_a_zero():
    wide = Piecewise([5_000_000], [1.0, 0.01])
    (axes,) = plot_schedules({"wide": wide}, 20_000_000).axes
    assert axes.get_yscale() == "log" and len(axes.lines[0].get_xdata()) <= 2000
    for flat in (Exponential(1.0, 1), Cosine(1.0, 1000)):
        (axes,) = plot_schedules({"flat": flat}, 1000).axes
        assert axes.get_yscale() == "linear"


no_numbers = [0, -1, np.nan, np.inf, 10**400, 1e300, 1e-320, True, "1", None]
no_counts = [0, -1, 2.0, 2.5, np.nan, np.inf, 2**31, True, "1", None]


@pytest.mark.parametrize("wrong", no_numbers)
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("initial_learning_rate", lambda wrong: PowerDecay(wrong, 10)),
        ("decay_steps", lambda wrong: PowerDecay(0.1, wrong)),
        ("power", lambda wrong: PowerDecay(0.1, 10, wrong)),
        ("initial_learning_rate", lambda wrong: Exponential(wrong, 10)),
        ("decay_steps", lambda wrong: Exponential(0.1, wrong)),
        ("factor", lambda wrong: Exponential(0.1, 10, wrong)),
        ("values", lambda wrong: Piecewise([5], [0.1, wrong])),
        ("max_learning_rate", lambda wrong: OneCycle(wrong, 10)),
        ("initial_divisor", lambda wrong: OneCycle(0.1, 10, initial_divisor=wrong)),
        ("final_divisor", lambda wrong: OneCycle(0.1, 10, final_divisor=wrong)),
        ("initial_learning_rate", lambda wrong: Cosine(wrong, 10)),
        ("decay_steps", lambda wrong: Cosine(0.1, wrong)),
        (
            "peak_factor",
            lambda wrong: Cosine(0.1, 10, restarts=True, peak_factor=wrong),
        ),
        ("minimum_learning_rate", lambda wrong: Cyclical(wrong, 0.1, 10)),
        ("maximum_learning_rate", lambda wrong: Cyclical(0.1, wrong, 10)),
        (
            "factor_per_step",
            lambda wrong: Cyclical(1, 2, 3, mode="exp_range", factor_per_step=wrong),
        ),
        ("minimum", lambda wrong: Floor(0.1, wrong)),
        ("schedule", lambda wrong: Floor(wrong, 0.1)),
        ("schedule", lambda wrong: Warmup(wrong, 10)),
        ("schedule", lambda wrong: InEpochs(wrong, 10)),
        ("schedules", lambda wrong: Joined([0.1, wrong], [10])),
    ],
)
def test_numbers_that_make_no_rate_are_refused(name, make, wrong):
    with pytest.raises(ValueError, match=f"`{name}` .*Received: {name}="):
        make(wrong)


@pytest.mark.parametrize("wrong", no_counts)
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("total_steps", lambda wrong: OneCycle(0.1, wrong)),
        ("decay_steps", lambda wrong: Cosine(0.1, wrong, restarts=True)),
        (
            "length_factor",
            lambda wrong: Cosine(0.1, 10, restarts=True, length_factor=wrong),
        ),
        ("half_cycle_steps", lambda wrong: Cyclical(0.1, 0.2, wrong)),
        ("steps_per_epoch", lambda wrong: InEpochs(0.1, wrong)),
        ("warmup_steps", lambda wrong: Warmup(0.1, -1 if wrong == 0 else wrong)),
        ("total_steps", lambda wrong: plot_schedules({"a": Cosine(1, 2)}, wrong)),
    ],
)
def test_counts_that_are_not_whole_are_refused(name, make, wrong):
    with pytest.raises(ValueError, match=f"`{name}` .*Received: {name}="):
        make(wrong)


@pytest.mark.parametrize("wrong", [-0.1, 1.1, np.nan, True, "0.5", None])
def test_fractions_outside_their_range_are_refused(wrong):
    for name in ("warmup_fraction", "base_momentum", "max_momentum"):
        with pytest.raises(ValueError, match=f"`{name}` .*Received: {name}="):
            OneCycle(0.1, 10, **{name: wrong})
    with pytest.raises(ValueError, match="`final_fraction` .*Received: final_frac"):
        Cosine(0.1, 10, final_fraction=wrong)


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("`factor` .*Received: factor=1.5", lambda: Exponential(0.1, 10, 1.5)),
        ("`anneal` .*Received: anneal='cos'", lambda: OneCycle(1, 9, anneal="cos")),
        ("Received: three_phase='no'", lambda: OneCycle(1, 9, three_phase="no")),
        ("Received: warmup_fraction=1", lambda: OneCycle(1, 9, warmup_fraction=1)),
        (
            "Received: warmup_fraction=0.6",
            lambda: OneCycle(1, 9, warmup_fraction=0.6, three_phase=True),
        ),
        ("`initial_div.*Received: init", lambda: OneCycle(1, 9, initial_divisor=0.5)),
        ("`final_divisor` .*Received: ", lambda: OneCycle(1, 9, final_divisor=0.01)),
        ("Received: base_momentum=0.99", lambda: OneCycle(1, 9, base_momentum=0.99)),
        ("max_momentum=1", lambda: OneCycle(1, 9, max_momentum=1)),
        ("Received: restarts=2", lambda: Cosine(1, 9, restarts=2)),
        ("`length_factor` .*Received: length", lambda: Cosine(1, 9, length_factor=2)),
        ("`peak_factor` .*Received: .*peak_fa", lambda: Cosine(1, 9, peak_factor=0.5)),
        (
            "`peak_factor` .*Received: peak_factor=2",
            lambda: Cosine(1, 9, restarts=True, peak_factor=2),
        ),
        ("`maximum_learning_rate` .*=0.1", lambda: Cyclical(0.2, 0.1, 9)),
        ("`mode` .*Received: mode='up'", lambda: Cyclical(1, 2, 9, mode="up")),
        ("Received: factor_per_step=None", lambda: Cyclical(1, 2, 9, mode="exp_range")),
        (
            "Received: factor_per_step=0.9",
            lambda: Cyclical(1, 2, 9, factor_per_step=0.9),
        ),
        ("`schedule` .*Received: schedule=<", lambda: Warmup(lambda step: 0.1, 10)),
        ("`schedule` .*Received: schedule=<", lambda: Floor(Cosine, 0.1)),
    ],
)
def test_what_means_nothing_is_refused(message, make):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("wrong", [[2.5], [-1], [True], ["2"], [2**31], 2, None])
def test_boundaries_that_are_no_steps_are_refused(wrong):
    for make in (Piecewise, lambda boundaries, rates: Joined(rates, boundaries)):
        with pytest.raises(ValueError, match="`boundaries` .*Received: boundaries="):
            make(wrong, [0.1, 0.2])


def test_boundaries_and_values_must_fit():
    for boundaries in ([5, 5], [5, 4]):
        with pytest.raises(ValueError, match="increase.*Received: boundaries="):
            Piecewise(boundaries, [0.3, 0.2, 0.1])
        with pytest.raises(ValueError, match="increase.*Received: boundaries="):
            Joined([0.3, 0.2, 0.1], boundaries)
    for values in ([0.1], [0.3, 0.2, 0.1], 0.1, None):
        with pytest.raises(ValueError, match="list of 2.*Received: values="):
            Piecewise([5], values)
        with pytest.raises(ValueError, match="list of 2.*Received: schedules="):
            Joined(values, [5])


def test_plot_refuses_what_it_cannot_draw():
    for wrong in ({}, [Cosine(1, 2)], None):
        with pytest.raises(ValueError, match="Received: schedules="):
            plot_schedules(wrong, 10)
