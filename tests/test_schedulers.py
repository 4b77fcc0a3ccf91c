import json
import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callbacks.schedulers import (
    ExponentialScheduler,
    LearningRateLogger,
    PiecewiseScheduler,
    PlateauScheduler,
    PowerScheduler,
)

few = settings(max_examples=25, deadline=None)
BATCHES = 6  # of four rows in an epoch, the last one ragged with two


class Recorder(keras.callbacks.Callback):
    """Rates seen before each batch, and what a weight of gradient 1 moved by."""

    def __init__(self):
        super().__init__()
        self.rates, self.moved = [], []

    def bias(self):
        return self.model.get_weights()[1].item()

    def on_epoch_begin(self, epoch, logs=None):
        self.before = self.bias()

    def on_train_batch_begin(self, batch, logs=None):
        self.rates.append(float(self.model.optimizer.learning_rate))

    def on_epoch_end(self, epoch, logs=None):
        self.moved.append(self.before - self.bias())


class Script(keras.callbacks.Callback):
    """Writes a monitored value into the logs, epoch by epoch."""

    def __init__(self, values, key="val_loss"):
        super().__init__()
        self.values, self.key = values, key

    def on_epoch_end(self, epoch, logs=None):
        logs[self.key] = self.values[epoch]


def make_model(learning_rate=0.7, *, optimizer=None, **compile_options):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(
        optimizer or keras.optimizers.SGD(learning_rate),
        loss=lambda y, outputs: keras.ops.mean(outputs),
        **compile_options,
    )
    return model


def train(*callbacks, epochs=3, model=None, rows=22, **options):
    recorder = Recorder()
    data = np.ones((rows, 1), "float32")
    history = (model or make_model()).fit(
        data,
        data,
        batch_size=4,
        epochs=epochs,
        verbose=0,
        callbacks=[*callbacks, recorder],
        **options,
    )
    recorder.logged = history.history["learning_rate"]
    return recorder


def positions(epochs, per, first_epoch=0):
    """Position of every batch in epochs."""
    batches = np.arange(first_epoch * BATCHES, epochs * BATCHES)
    return batches / BATCHES if per == "step" else batches // BATCHES


def close(expected):
    return pytest.approx(np.asarray(expected).tolist(), rel=1e-6)


def formulas(per):
    """(scheduler, closed form) of each kind."""
    boundaries = [1, 1.5] if per == "step" else [1, 2]
    return [
        (
            PowerScheduler(0.1, decay_epochs=2, power=1.5, per=per),
            lambda p: 0.1 / (1 + p / 2) ** 1.5,
        ),
        (
            ExponentialScheduler(0.1, decay_epochs=1.5, factor=0.3, per=per),
            lambda p: 0.1 * 0.3 ** (p / 1.5),
        ),
        (
            PiecewiseScheduler(boundaries, [0.3, 0.2, 0.1], per=per),
            lambda p: np.select([p < 1, p < boundaries[1]], [0.3, 0.2], 0.1),
        ),
    ]


@few
@given(st.floats(1e-6, 10), st.floats(0.1, 1e4), st.floats(0.05, 1), st.floats(0, 1e5))
def test_rate_at_is_the_formula(initial, decay_epochs, number, position):
    turns = position / decay_epochs
    power = PowerScheduler(initial, decay_epochs=decay_epochs, power=number)
    assert power.rate_at(position) == pytest.approx(initial * (1 + turns) ** -number)
    exponential = ExponentialScheduler(
        initial, decay_epochs=decay_epochs, factor=number
    )
    expected = math.exp(math.log(initial) + turns * math.log(number))
    assert exponential.rate_at(position) == pytest.approx(expected, rel=1e-9)


@few
@given(st.lists(st.integers(0, 50), unique=True, max_size=5).map(sorted))
def test_piecewise_value_begins_at_its_boundary(boundaries):
    values = [float(number) for number in range(1, len(boundaries) + 2)]
    scheduler = PiecewiseScheduler(boundaries, values)
    for epoch in range(60):
        assert scheduler.rate_at(epoch) == 1 + sum(b <= epoch for b in boundaries)


@pytest.mark.parametrize("per", ["epoch", "step"])
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_rates_used_in_fit_are_the_formula(kind, per):
    scheduler, formula = formulas(per)[kind]
    run = train(scheduler)
    expected = formula(positions(3, per))
    assert run.rates == close(expected)
    assert run.rates[0] == close(formula(np.array(0.0)))  # no decay before batch one
    # An oracle apart from the variable we read: gradient 1 moves a weight by the rate.
    moved = expected.reshape(3, BATCHES).sum(axis=1).tolist()
    assert run.moved == pytest.approx(moved, rel=1e-4)
    assert run.logged == close(expected[BATCHES - 1 :: BATCHES])
    assert all(type(rate) is float for rate in run.logged)


def test_one_batch_in_an_epoch():
    run = train(PowerScheduler(0.1, decay_epochs=1, per="step"), rows=3)
    assert run.rates == run.logged == close([0.1, 0.1 / 2, 0.1 / 3])


@pytest.mark.parametrize("per", ["epoch", "step"])
def test_second_fit_starts_afresh(per):
    scheduler, model = ExponentialScheduler(0.1, decay_epochs=1, per=per), make_model()
    first, second = train(scheduler, model=model), train(scheduler, model=model)
    assert second.rates == first.rates


@pytest.mark.parametrize("per", ["epoch", "step"])
def test_initial_epoch_is_honoured(per):
    run = train(PowerScheduler(0.1, decay_epochs=2, per=per), epochs=5, initial_epoch=3)
    assert run.rates == close(0.1 / (1 + positions(5, per, first_epoch=3) / 2))


@pytest.mark.parametrize("counted_on", [True, False])
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_a_state_set_before_fit_survives_its_beginning_once(kind, counted_on):
    whole, formula = formulas("step")[kind]
    train(whole, epochs=2)
    state = json.loads(json.dumps(whole.get_state()))
    resumed, model = formulas("step")[kind][0], make_model()
    resumed.set_state(state)
    assert resumed.get_state() == state
    options = {"epochs": 4, "initial_epoch": 2} if counted_on else {"epochs": 2}
    run = train(resumed, model=model, **options)
    assert run.rates == close(formula(positions(4, "step", first_epoch=2)))
    assert resumed.get_state() == {"epoch": 4}
    again = train(resumed, model=model, epochs=1)
    assert again.rates == close(formula(positions(1, "step")))


@pytest.mark.parametrize(
    "scheduler",
    [
        PowerScheduler(0.1, decay_epochs=1),
        PlateauScheduler("loss", schedule=lambda p: 0.1 / (1 + p)),
    ],
)
def test_a_state_set_while_training_begins_lasts_for_that_fit_only(scheduler):
    state = {**scheduler.get_state(), "epoch": 3}

    class Restore(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            scheduler.set_state(state)

    model = make_model()
    restored = train(scheduler, Restore(), model=model, epochs=1)
    assert restored.logged == close([0.1 / 4])
    assert train(scheduler, model=model, epochs=1).logged == close([0.1])


def test_one_rate_for_each_call_of_several_steps():
    model = make_model(steps_per_execution=4)
    run = train(PowerScheduler(0.1, decay_epochs=1, per="step"), model=model, epochs=2)
    batches = np.array([0, 4, 6, 10])  # six batches: a call of four, a call of two
    assert run.rates == close(0.1 / (1 + batches / 6))
    sums = [4 * run.rates[0] + 2 * run.rates[1], 4 * run.rates[2] + 2 * run.rates[3]]
    assert run.moved == pytest.approx(sums, rel=1e-4)


def test_no_drift_over_40_000_steps():
    scheduler = ExponentialScheduler(0.01, decay_epochs=1, per="step")
    scheduler.set_model(make_model())
    scheduler.set_params({"steps": 40_000})
    scheduler.on_train_begin()
    scheduler.on_epoch_begin(0)
    for batch in range(0, 40_000, 199):  # 199 * 201 = 39,999, the last batch
        scheduler.on_train_batch_begin(batch)
    rate = float(scheduler.model.optimizer.learning_rate)
    assert rate == pytest.approx(0.01 * 0.1 ** (39_999 / 40_000), rel=1e-7)


def test_fractional_boundary_is_met_by_the_batch_it_names():
    # In floating point 1 + 36 / 100 is less than 1.36.
    scheduler = PiecewiseScheduler([1.36, 2.47], [3.0, 2.0, 1.0], per="step")
    scheduler.set_model(make_model())
    scheduler.set_params({"steps": 100})
    scheduler.on_train_begin()
    rates = []
    for epoch in range(3):
        scheduler.on_epoch_begin(epoch)
        for batch in range(100):
            scheduler.on_train_batch_begin(batch)
            rates.append(float(scheduler.model.optimizer.learning_rate))
    assert rates == [3.0] * 136 + [2.0] * 111 + [1.0] * 53


def endless():
    while True:
        yield np.ones((4, 1), "float32"), np.ones((4, 1), "float32")


def test_steps_per_epoch_tells_the_length_of_unknown_data():
    scheduler = PowerScheduler(0.1, decay_epochs=1, per="step")
    history = make_model().fit(
        endless(),
        epochs=2,
        steps_per_epoch=5,
        shuffle=False,
        verbose=0,
        callbacks=[scheduler],
    )
    assert history.history["learning_rate"] == close([0.1 / 1.8, 0.1 / 2.8])


def test_data_of_unknown_length_is_refused_per_step():
    with pytest.raises(ValueError, match="steps_per_epoch"):
        make_model().fit(
            endless(),
            shuffle=False,
            verbose=0,
            callbacks=[PowerScheduler(0.1, decay_epochs=1, per="step")],
        )


def test_loss_scale_optimizer_is_scheduled():
    inner = keras.optimizers.SGD(0.7)
    model = make_model(optimizer=keras.optimizers.LossScaleOptimizer(inner))
    run = train(PowerScheduler(0.1, decay_epochs=1), model=model)
    assert run.logged == close([0.1, 0.1 / 2, 0.1 / 3])
    assert run.moved == pytest.approx([0.6, 0.3, 0.2], rel=1e-4)


def two_rates(kernel_rate, bias_rate):
    kernel = keras.optimizers.SGD(kernel_rate, name="kernel")
    bias = keras.optimizers.SGD(bias_rate, name="bias")
    return keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(kernel, {".*bias": bias})
    )


def fit_briefly(callback, model, epochs=3, before=()):
    data = np.ones((22, 1), "float32")
    callbacks = [*before, callback]
    return model.fit(
        data, data, batch_size=4, epochs=epochs, verbose=0, callbacks=callbacks
    ).history


@pytest.mark.parametrize(
    "callback",
    [
        PowerScheduler(0.1, decay_epochs=1),
        PlateauScheduler("loss", schedule=lambda epoch: 0.1),
    ],
)
def test_an_optimizer_of_several_rates_is_refused(callback):
    with pytest.raises(TypeError, match="MultiOptimizer has several"):
        fit_briefly(callback, make_model(optimizer=two_rates(0.1, 0.2)))


@pytest.mark.parametrize(
    "rate", [keras.optimizers.schedules.CosineDecay(0.1, 5), lambda: 0.1]
)
@pytest.mark.parametrize(
    "callback",
    [
        ExponentialScheduler(0.1, decay_epochs=1),
        PiecewiseScheduler([1], [0.2, 0.1]),
        PlateauScheduler("loss"),
    ],
)
def test_an_optimizer_built_with_a_schedule_is_refused_at_the_start(callback, rate):
    recorder, model = Recorder(), make_model(rate)
    with pytest.raises(TypeError, match="Build it with a number"):
        fit_briefly(callback, model, before=[recorder])
    assert recorder.rates == []


def test_csv_logger_sees_the_rate_when_it_comes_later(tmp_path):
    logger = keras.callbacks.CSVLogger(str(tmp_path / "log.csv"))
    train(PowerScheduler(0.1, decay_epochs=1), logger, epochs=1)
    assert "learning_rate" in (tmp_path / "log.csv").read_text().splitlines()[0]


def plateau(**options):
    defaults = {"factor": 0.5, "patience": 2, "min_delta": 0}
    return PlateauScheduler(**{**defaults, **options})


@few
@given(
    st.lists(st.sampled_from([0.5, 1.0, 1.5, 2.0]), min_size=1, max_size=12),
    st.integers(0, 3),
    st.integers(0, 2),
    st.sampled_from([0.0, 0.1]),
    st.sampled_from(["min", "max"]),
)
def test_counting_is_kerass(values, patience, cooldown, min_lr, mode):
    options = dict(factor=0.5, patience=patience, cooldown=cooldown, mode=mode)
    options["min_lr"] = min_lr
    logged = []
    for scheduler in (
        keras.callbacks.ReduceLROnPlateau(**options),
        PlateauScheduler(**options),
        PlateauScheduler(**options, schedule=lambda epoch: 0.7),
    ):
        scheduler.set_model(make_model(0.7))
        scheduler.on_train_begin()
        rates = []
        for epoch, value in enumerate(values):
            scheduler.on_epoch_begin(epoch)
            logs = {"val_loss": value}
            scheduler.on_epoch_end(epoch, logs)
            rates.append(logs["learning_rate"])
        logged.append(rates)
    assert logged[1] == logged[0]
    assert logged[2] == close(logged[0])


def test_plateau_logs_the_rate_used_before_the_cut():
    run = train(Script([1, 1, 1, 1, 1.0]), plateau(), epochs=5)
    expected = [0.7, 0.7, 0.7, 0.35, 0.35]
    assert run.logged == run.rates[::BATCHES] == close(expected)
    assert run.moved == pytest.approx([BATCHES * rate for rate in expected], rel=1e-4)


def test_schedule_and_cuts_multiply():
    power = PowerScheduler(0.8, decay_epochs=2)
    run = train(Script([1.0] * 6), plateau(schedule=power.rate_at), epochs=6)
    cuts = np.array([0, 0, 0, 1, 1, 2])
    assert run.logged == close(0.8 / (1 + np.arange(6) / 2) * 0.5**cuts)
    assert run.rates[::BATCHES] == run.logged


def test_schedule_and_cuts_stay_above_min_lr():
    exponential = ExponentialScheduler(0.8, decay_epochs=3)
    scheduler = plateau(schedule=exponential.rate_at, min_lr=0.1)
    run = train(Script([1.0] * 6), scheduler, epochs=6)
    cuts = np.array([0, 0, 0, 1, 1, 1])
    expected = 0.8 * 0.1 ** (np.arange(6) / 3) * 0.5**cuts
    assert run.logged == close(np.maximum(expected, 0.1))


def test_a_keras_schedule_can_be_multiplied():
    cosine = keras.optimizers.schedules.CosineDecay(0.8, 4)
    run = train(Script([1.0] * 4), plateau(schedule=cosine), epochs=4)
    expected = 0.4 * (1 + np.cos(np.pi * np.arange(4) / 4)) * [1, 1, 1, 0.5]
    assert run.logged == close(expected)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_nonfinite_monitor_neither_improves_nor_counts_nor_cuts(value):
    scheduler = plateau()
    run = train(Script([1.0, 1.0, value, value, value, 1.0, 1.0]), scheduler, epochs=7)
    assert run.logged == close([0.7] * 6 + [0.35])
    assert scheduler.best == 1.0
    alone = train(Script([value] * 5), plateau(), epochs=5)
    assert alone.logged == close([0.7] * 5)


@pytest.mark.parametrize(
    "schedule", [None, PowerScheduler(0.7, decay_epochs=3).rate_at]
)
@pytest.mark.parametrize("stop", [1, 4])
@pytest.mark.parametrize("counted_on", [True, False])
def test_plateau_resumes_as_if_nothing_had_happened(schedule, stop, counted_on):
    values = [1.0, 0.9, 1.0, 1.0, 1.0, 1.0, 1.0]
    whole = train(Script(values), plateau(cooldown=1, schedule=schedule), epochs=7)
    first = plateau(cooldown=1, schedule=schedule)
    train(Script(values), first, epochs=stop)
    state = json.loads(json.dumps(first.get_state()))
    resumed, model = plateau(cooldown=1, schedule=schedule), make_model()
    resumed.set_state(state)
    assert resumed.get_state() == state
    if counted_on:
        options = {"epochs": 7, "initial_epoch": stop}
        rest = train(Script(values), resumed, model=model, **options)
    else:
        rest = train(Script(values[stop:]), resumed, model=model, epochs=7 - stop)
    assert rest.logged == close(whole.logged[stop:])
    train(Script(values), resumed, model=model, epochs=1)
    fresh = resumed.get_state()
    assert (fresh["wait"], fresh["multiplier"], fresh["epoch"]) == (0, 1.0, 1)


def test_plateau_cuts_and_restores_each_rate_of_several():
    scheduler = plateau()
    model = make_model(optimizer=two_rates(0.4, 0.8))
    history = fit_briefly(scheduler, model, epochs=4, before=[Script([1.0] * 4)])
    assert history["learning_rate_kernel"] == close([0.4, 0.4, 0.4, 0.2])
    assert history["learning_rate_bias"] == close([0.8, 0.8, 0.8, 0.4])
    resumed = plateau()
    resumed.set_state(scheduler.get_state())
    model = make_model(optimizer=two_rates(0.1, 0.1))
    history = fit_briefly(resumed, model, epochs=1, before=[Script([0.5])])
    assert history["learning_rate_kernel"] == close([0.2])
    assert history["learning_rate_bias"] == close([0.4])


def test_a_monitor_that_is_not_logged_is_refused_at_the_first_epochs_end():
    recorder = Recorder()
    with pytest.raises(ValueError, match="every epoch: loss. Received: monitor='val_"):
        fit_briefly(PlateauScheduler(), make_model(), before=[recorder])
    assert len(recorder.moved) == 1


@pytest.mark.parametrize("wrong", [math.nan, -0.1])
def test_a_schedule_that_returns_no_rate_is_refused(wrong):
    scheduler = PlateauScheduler("loss", schedule=lambda epoch: wrong)
    with pytest.raises(ValueError, match=r"schedule\(0\)"):
        fit_briefly(scheduler, make_model())


@pytest.mark.parametrize("steps_per_execution", [1, 4])
@pytest.mark.parametrize("scaled", [False, True])
def test_logger_writes_the_rate_of_the_last_step_of_a_schedule(
    scaled, steps_per_execution
):
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 4, 0.5)
    optimizer = keras.optimizers.SGD(schedule)
    if scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model = make_model(optimizer=optimizer, steps_per_execution=steps_per_execution)
    history = fit_briefly(LearningRateLogger(), model)
    last_steps = np.array([5, 11, 17])
    assert history["learning_rate"] == close(0.1 * 0.5 ** (last_steps / 4))
    assert all(type(rate) is float for rate in history["learning_rate"])
    assert int(model.optimizer.iterations) == 18


def test_logger_counts_micro_batches_as_the_schedule_does():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 4, 0.5)
    optimizer = keras.optimizers.SGD(schedule, gradient_accumulation_steps=2)
    history = fit_briefly(LearningRateLogger(), make_model(optimizer=optimizer))
    assert history["learning_rate"] == close(0.1 * 0.5 ** (np.array([5, 11, 17]) / 4))


def test_logger_writes_fixed_rates_and_one_for_each_of_several():
    assert train(LearningRateLogger()).logged == close([0.7] * 3)
    model = make_model(optimizer=two_rates(0.1, 0.2))
    history = fit_briefly(LearningRateLogger(), model)
    assert history["learning_rate_kernel"] == close([0.1] * 3)
    assert history["learning_rate_bias"] == close([0.2] * 3)


def test_logger_keeps_the_rate_that_plateau_logged_before_its_cut():
    callbacks = [Script([1.0] * 4), plateau(), LearningRateLogger()]
    assert train(*callbacks, epochs=4).logged == close([0.7] * 3 + [0.35])


def test_nothing_is_read_between_the_batches():
    for callback in (LearningRateLogger(), PowerScheduler(0.1, decay_epochs=1)):
        callback.set_model(None)  # so that touching the model would raise
        callback.on_train_batch_begin(0)
        callback.on_train_batch_end(0)


@pytest.mark.parametrize("wrong", [0, -1, math.nan, math.inf, True, "1", None])
def test_numbers_that_make_no_rate_are_refused(wrong):
    for scheduler in (PowerScheduler, ExponentialScheduler):
        with pytest.raises(ValueError, match="`initial_learning_rate` .*Received: in"):
            scheduler(wrong, decay_epochs=1)
        with pytest.raises(ValueError, match="`decay_epochs` .*Received: decay_ep"):
            scheduler(0.1, decay_epochs=wrong)
    with pytest.raises(ValueError, match="`power` .*Received: power="):
        PowerScheduler(0.1, decay_epochs=1, power=wrong)
    for factor in (wrong, 1.5):
        with pytest.raises(ValueError, match="`factor` .*Received: factor="):
            ExponentialScheduler(0.1, decay_epochs=1, factor=factor)
    with pytest.raises(ValueError, match="`values` .*Received: values="):
        PiecewiseScheduler([1], [0.1, wrong])
    with pytest.raises(ValueError, match="`factor` .*Received: factor="):
        PlateauScheduler(factor=wrong)


def test_per_must_be_epoch_or_step():
    for wrong in ("batch", None, ["step"]):
        with pytest.raises(ValueError, match="`per` .*Received: per="):
            PowerScheduler(0.1, decay_epochs=1, per=wrong)


def test_boundaries_must_fit():
    for wrong in ([2.5], [-1], [math.nan], [True], 2, None, ["2"]):
        with pytest.raises(ValueError, match="Received: boundaries_epochs="):
            PiecewiseScheduler(wrong, [0.2, 0.1])
    for wrong in ([2, 2], [3, 2]):
        with pytest.raises(ValueError, match="must increase.*Received: boundaries_ep"):
            PiecewiseScheduler(wrong, [0.3, 0.2, 0.1])
    for wrong in ([0.1], [0.3, 0.2, 0.1], 0.1):
        with pytest.raises(ValueError, match="must hold 2 rates.*Received: values="):
            PiecewiseScheduler([1], wrong)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("monitor", None),
        ("mode", "down"),
        ("factor", 1.0),
        ("patience", 1.5),
        ("patience", -1),
        ("cooldown", math.inf),
        ("min_delta", -1e-4),
        ("min_delta", True),
        ("min_lr", math.nan),
        ("schedule", 0.1),
        ("schedule", PowerScheduler(0.1, decay_epochs=1)),
    ],
)
def test_plateau_refuses_a_wrong_argument(name, wrong):
    with pytest.raises(ValueError, match=f"{name}.*Received:? {name}="):
        PlateauScheduler(**{name: wrong})
