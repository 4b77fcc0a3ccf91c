import json
import math
import re

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callbacks.schedulers import (
    ExponentialScheduler,
    LearningRateLogger,
    OneCycleScheduler,
    PiecewiseScheduler,
    PlateauScheduler,
    PowerScheduler,
)
from recipes.optimizers import ClippedOptimizer, make_optimizer
from recipes.schedules import OneCycle

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
    recorder.history = history.history
    recorder.logged = recorder.history["learning_rate"]
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


def plateau(**options):
    defaults = {"factor": 0.5, "patience": 2, "min_delta": 0}
    return PlateauScheduler(**{**defaults, **options})


EVERY_KIND = {
    "power": lambda: PowerScheduler(0.1, decay_epochs=1.3, per="step"),
    "exponential": lambda: ExponentialScheduler(0.1, decay_epochs=1.3, per="step"),
    "piecewise": lambda: PiecewiseScheduler([1.4, 3], [0.3, 0.2, 0.1], per="step"),
    "power, epochs": lambda: PowerScheduler(0.1, decay_epochs=1.3),
    "one cycle": lambda: OneCycleScheduler(OneCycle(0.1, 30)),
    "plateau": lambda: plateau(patience=1),
    "plateau and formula": lambda: plateau(
        patience=1, schedule=PowerScheduler(0.7, decay_epochs=3).rate_at
    ),
}


def drive(scheduler, values, initial_epoch=0):
    """Call as fit does, with the monitored values; return the settings and the logs."""
    scheduler.set_model(make_model(optimizer=make_optimizer("momentum", 0.7)))
    scheduler.set_params({"steps": BATCHES})
    optimizer, used, logged = scheduler.model.optimizer, [], []
    scheduler.on_train_begin()
    for epoch, value in enumerate(values, initial_epoch):
        scheduler.on_epoch_begin(epoch)
        for batch in range(BATCHES):
            scheduler.on_train_batch_begin(batch)
            used.append((float(optimizer.learning_rate), float(optimizer.momentum)))
        logged.append({"val_loss": value})
        scheduler.on_epoch_end(epoch, logged[-1])
    return used, logged


@pytest.mark.parametrize("counted_on", [True, False])
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_run_stopped_at_any_epoch_has_the_rates_of_one_never_stopped(
    kind, counted_on
):
    values = [1.0, 0.9, 1.0, 1.0, 1.0, 1.0, 1.0]
    used, logged = drive(EVERY_KIND[kind](), values)
    assert len({logs["learning_rate"] for logs in logged}) > 2
    for stop in range(1, 7):
        stopped, resumed = EVERY_KIND[kind](), EVERY_KIND[kind]()
        drive(stopped, values[:stop])
        state = json.loads(json.dumps(stopped.get_state()))
        resumed.set_state(state)
        assert resumed.get_state() == state
        rest = drive(resumed, values[stop:], stop if counted_on else 0)
        assert rest == (used[stop * BATCHES :], logged[stop:])  # to the bit
        assert resumed.get_state()["epoch"] == 7
    # The state has survived the beginning of a fit once; the next starts afresh.
    assert drive(resumed, values[:2]) == (used[: 2 * BATCHES], logged[:2])
    assert resumed.get_state()["epoch"] == 2


def test_a_rate_rounded_by_the_optimizer_is_not_taken_for_somebody_elses():
    keras.config.set_floatx("bfloat16")
    try:
        used, _ = drive(EVERY_KIND["power"](), [1.0] * 3)  # a warning is an error
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")
    rates = [rate for rate, _ in used]
    assert rates == pytest.approx(0.1 / (1 + positions(3, "step") / 1.3), rel=2**-8)


def test_fit_resumes_as_it_is_driven_here():
    whole = train(linear_cycle(), model=make_model(optimizer=make_optimizer("adam")))
    resumed, model = linear_cycle(), make_model(optimizer=make_optimizer("adam"))
    resumed.set_state({"epoch": 1})
    rest = train(resumed, model=model, epochs=3, initial_epoch=1)
    assert rest.rates == whole.rates[BATCHES:]
    assert rest.history["momentum"] == whole.history["momentum"][1:]


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


PER_STEP = [
    PowerScheduler(0.1, decay_epochs=1, per="step"),
    OneCycleScheduler(OneCycle(0.1, 12), cycle_momentum=False),
]


@pytest.mark.parametrize("scheduler", PER_STEP)
def test_several_steps_in_one_call_are_refused_per_step(scheduler):
    model = make_model(steps_per_execution=4)
    with pytest.raises(
        ValueError, match="several run.*Received: steps_per_execution=4"
    ):
        train(scheduler, model=model)


def test_several_steps_in_one_call_have_the_rate_of_their_epoch():
    run = train(
        PowerScheduler(0.1, decay_epochs=1), model=make_model(steps_per_execution=4)
    )
    expected = 0.1 / (1 + np.arange(3))
    assert run.logged == close(expected)
    assert run.moved == pytest.approx(list(BATCHES * expected), rel=1e-4)


def test_an_update_of_accumulated_gradients_takes_the_rate_of_its_last_batch():
    optimizer = keras.optimizers.SGD(0.7, gradient_accumulation_steps=2)
    scheduler = PowerScheduler(0.1, decay_epochs=1, per="step")
    run = train(scheduler, model=make_model(optimizer=optimizer))
    rates = 0.1 / (1 + positions(3, "step"))
    assert run.rates == close(rates)
    updates = rates.reshape(3, BATCHES)[:, 1::2].sum(axis=1)
    assert run.moved == pytest.approx(updates.tolist(), rel=1e-4)


class Meddler(keras.callbacks.Callback):
    """Sets the rate itself at the end of the batches 1 and 7 of the run."""

    def __init__(self):
        super().__init__()
        self.batches = 0

    def on_train_batch_end(self, batch, logs=None):
        if self.batches in (1, 7):
            self.model.optimizer.learning_rate = 0.03125
        self.batches += 1


@pytest.mark.parametrize(
    ("scheduler", "was"),
    [
        (PowerScheduler(0.1, decay_epochs=1, per="step"), "0.0857143"),
        (PowerScheduler(0.1, decay_epochs=1), "0.1"),
        (plateau(schedule=PowerScheduler(0.1, decay_epochs=1).rate_at), "0.1"),
        (OneCycleScheduler(lambda step: 0.25, cycle_momentum=False), "0.25"),
    ],
)
def test_a_rate_set_by_somebody_else_is_named_once_and_overwritten(scheduler, was):
    script = Script([1.0, 0.9, 0.8])
    with pytest.warns(UserWarning) as warned:
        disturbed = train(script, scheduler, Meddler())
    (message,) = [str(w.message) for w in warned if w.category is UserWarning]
    name = type(scheduler).__name__
    assert message.startswith(f"{name} had set the learning rate to {was}, ")
    assert "set it to 0.03125" in message
    undisturbed = train(script, scheduler)
    kept = [0, BATCHES, 2 * BATCHES]
    assert [disturbed.rates[i] for i in kept] == [undisturbed.rates[i] for i in kept]


def test_two_schedulers_in_one_list_are_named():
    one = ExponentialScheduler(0.3, decay_epochs=1)
    with pytest.warns(UserWarning, match="PowerScheduler.* to 0.1,.* set it to 0.3[.]"):
        with pytest.warns(UserWarning, match="ExponentialScheduler"):
            train(PowerScheduler(0.1, decay_epochs=1), one)


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


@pytest.mark.parametrize("scheduler", PER_STEP)
def test_data_of_unknown_length_is_refused_per_step(scheduler):
    with pytest.raises(ValueError, match="`steps_per_epoch` .*Received: steps_per_ep"):
        make_model().fit(endless(), shuffle=False, verbose=0, callbacks=[scheduler])


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


@pytest.mark.parametrize("wrong", [None, math.nan, math.inf, -0.1, True, "0.1", [0.1]])
def test_a_schedule_that_returns_no_rate_is_named_with_what_it_returned(wrong):
    for scheduler in (
        PlateauScheduler("loss", schedule=lambda epoch: wrong),
        OneCycleScheduler(lambda step: wrong, cycle_momentum=False),
    ):
        received = re.escape(f"Received: schedule(0)={wrong!r}")
        with pytest.raises(ValueError, match=rf"`schedule\(0\)` .*{received}"):
            fit_briefly(scheduler, make_model())


# One cycle


def cycle(steps, peak=0.1, total_steps=18):
    """Rates and momenta of a linear cycle that rises for six steps."""
    knots = [0, total_steps / 3 - 1, total_steps - 1]
    rates = np.interp(steps, knots, [peak / 25, peak, peak / 250_000])
    return rates, np.interp(steps, knots, [0.95, 0.85, 0.95])


def linear_cycle(total_steps=18, **options):
    return OneCycleScheduler(
        OneCycle(0.1, total_steps, warmup_fraction=1 / 3, anneal="linear"), **options
    )


class MomentumRecorder(keras.callbacks.Callback):
    def __init__(self, name):
        super().__init__()
        self.name, self.momenta = name, []

    def on_train_batch_begin(self, batch, logs=None):
        optimizer = self.model.optimizer
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        self.momenta.append(float(getattr(optimizer, self.name)))


@pytest.mark.parametrize("epochs", [3, 5])
def test_weights_move_by_the_rates_and_momenta_of_the_cycle(epochs):
    # Five epochs are longer than planned: the last values hold.
    steps = np.arange(epochs * BATCHES)
    rates, momenta = cycle(np.minimum(steps, 17))
    moved, velocity = np.zeros(len(steps)), 0.0
    for step in steps:
        velocity = momenta[step] * velocity + rates[step]  # the gradient is 1
        moved[step] = velocity
    recorder = MomentumRecorder("momentum")
    model = make_model(optimizer=make_optimizer("momentum", 0.7))
    run = train(linear_cycle(), recorder, model=model, epochs=epochs)
    assert run.rates == close(rates)
    assert recorder.momenta == close(momenta)
    sums = moved.reshape(epochs, BATCHES).sum(axis=1)
    assert run.moved == pytest.approx(sums.tolist(), rel=1e-4)
    assert run.logged == run.rates[BATCHES - 1 :: BATCHES]
    assert run.history["momentum"] == recorder.momenta[BATCHES - 1 :: BATCHES]
    assert all(type(value) is float for value in run.history["momentum"])


class AdamOfSomebodyElse(keras.optimizers.Adam):
    def __init__(self):
        super().__init__()
        half = keras.initializers.Constant(0.5)
        self.beta_1 = self.add_variable((), half, name="beta_1")


@pytest.mark.parametrize(
    ("optimizer", "name"),
    [
        (AdamOfSomebodyElse(), "beta_1"),
        (make_optimizer("nadam"), "beta_1"),
        (make_optimizer("nesterov", clipnorm=1.0), "momentum"),
        (make_optimizer("rmsprop", momentum=0.5), "momentum"),
        (keras.optimizers.LossScaleOptimizer(make_optimizer("adam")), "beta_1"),
    ],
)
def test_the_momentum_is_found_by_either_name_and_inside_wrappers(optimizer, name):
    recorder, scheduler = MomentumRecorder(name), linear_cycle()
    model = make_model(optimizer=optimizer)
    first = train(scheduler, recorder, model=model, epochs=2)
    assert recorder.momenta == close(cycle(np.arange(12))[1])
    recorder.momenta.clear()
    second = train(scheduler, recorder, model=model, epochs=1)  # starts afresh
    assert recorder.momenta == close(cycle(np.arange(6))[1])
    assert second.rates == first.rates[:BATCHES]


def test_initial_epoch_is_honoured_by_the_cycle():
    model = make_model(optimizer=make_optimizer("momentum"))
    run = train(linear_cycle(), model=model, epochs=3, initial_epoch=1)
    assert run.rates == close(cycle(np.arange(6, 18))[0])


def test_without_the_momentum_any_optimizer_and_function_will_do():
    run = train(linear_cycle(cycle_momentum=False))
    assert run.rates == close(cycle(np.arange(18))[0])
    assert "momentum" not in run.history
    squares = OneCycleScheduler(lambda step: 1.0 + step**2, cycle_momentum=False)
    assert train(squares).rates == close(1.0 + np.arange(18) ** 2)


def test_a_momentum_set_by_somebody_else_is_named():
    class Meddler(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.optimizer.momentum = 0.5

    model = make_model(optimizer=make_optimizer("momentum"))
    with pytest.warns(UserWarning, match="had set the momentum to .* set it to 0.5[.]"):
        run = train(linear_cycle(), Meddler(), model=model)
    assert run.history["momentum"] == close(cycle(np.arange(5, 18, BATCHES))[1])


@pytest.mark.parametrize(
    "optimizer",
    [
        keras.optimizers.SGD(0.1, momentum=0.9),
        keras.optimizers.Adam(0.1),
        ClippedOptimizer(keras.optimizers.Adam(0.1), clipnorm=1.0),
        make_optimizer("sgd"),
    ],
)
def test_a_momentum_that_cannot_change_is_refused_at_the_start(optimizer):
    recorder, model = Recorder(), make_model(optimizer=optimizer)
    with pytest.raises(ValueError, match="make_optimizer.*`cycle_momentum=False`.*Rec"):
        fit_briefly(linear_cycle(), model, before=[recorder])
    assert recorder.rates == []


class Wrong:
    def __init__(self, momentum):
        self.momentum = momentum

    def __call__(self, step):
        return 0.1


def test_a_momentum_out_of_range_is_named():
    for wrong in (1.0, -0.1, None, math.nan):
        model = make_model(optimizer=make_optimizer("momentum"))
        scheduler = OneCycleScheduler(Wrong(lambda step, wrong=wrong: wrong))
        with pytest.raises(
            ValueError, match=r"momentum\(0\)` .*below 1.*momentum\(0\)="
        ):
            fit_briefly(scheduler, model)


def test_one_cycle_refuses_a_wrong_argument():
    for wrong in (0.1, None, lambda step: 0.1, Wrong(0.9)):
        with pytest.raises(ValueError, match="`schedule` must .*Received: schedule="):
            OneCycleScheduler(wrong)
    with pytest.raises(ValueError, match="`schedule` must .*Received: schedule=0.1"):
        OneCycleScheduler(0.1, cycle_momentum=False)
    for wrong in (1, None, "yes"):
        with pytest.raises(ValueError, match="`cycle_momentum` .*Received: cycle_mom"):
            OneCycleScheduler(OneCycle(0.1, 9), cycle_momentum=wrong)


# The rate in the logs


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


@pytest.mark.parametrize(
    ("accumulated", "last_updates"), [(2, [5, 11, 17]), (4, [3, 11, 15])]
)
@pytest.mark.parametrize("scaled", [False, True])
def test_logger_writes_the_rate_of_the_last_update_of_accumulated_gradients(
    scaled, accumulated, last_updates
):
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 4, 0.5)
    optimizer = keras.optimizers.SGD(schedule, gradient_accumulation_steps=accumulated)
    if scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0)
    model, recorder = make_model(optimizer=optimizer), Recorder()
    history = fit_briefly(LearningRateLogger(), model, before=[recorder])
    rates = 0.1 * 0.5 ** (np.arange(18) / 4)
    assert history["learning_rate"] == close(rates[last_updates])
    # The weights say at which rates the updates were made.
    updates = np.where((np.arange(18) + 1) % accumulated == 0, rates, 0)
    moved = updates.reshape(3, BATCHES).sum(axis=1).tolist()
    assert recorder.moved == pytest.approx(moved, rel=1e-4)


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


GOOD_STATE = {
    "epoch": 3,
    "best": 0.5,
    "wait": 1,
    "cooldown_counter": 0,
    "multiplier": 0.25,
    "rates": {"learning_rate": 0.1},
}


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        [],
        {},
        {"epoch": 1},
        {**GOOD_STATE, "more": 1},
        {**GOOD_STATE, "epoch": -1},
        {**GOOD_STATE, "epoch": 1.5},
        {**GOOD_STATE, "epoch": "3"},
        {**GOOD_STATE, "wait": None},
        {**GOOD_STATE, "best": math.nan},
        {**GOOD_STATE, "multiplier": math.inf},
        {**GOOD_STATE, "multiplier": True},
        {**GOOD_STATE, "rates": [0.1]},
        {**GOOD_STATE, "rates": {"learning_rate": None}},
    ],
    ids=str,
)
def test_a_state_that_get_state_cannot_have_given_is_refused(wrong):
    scheduler = PlateauScheduler()
    scheduler.set_state(GOOD_STATE)
    with pytest.raises(ValueError, match="`state` must .*Received: state="):
        scheduler.set_state(wrong)
    assert scheduler.get_state() == GOOD_STATE


@pytest.mark.parametrize(
    "wrong", [None, {}, {"epoch": -1}, {"epoch": None}, GOOD_STATE]
)
def test_a_formulas_state_is_checked_too(wrong):
    for scheduler in (PowerScheduler(0.1, decay_epochs=1), linear_cycle()):
        with pytest.raises(ValueError, match="`state` must .*keys epoch. Received: st"):
            scheduler.set_state(wrong)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_numpys_scalars_are_numbers_and_do_not_warn(kind):
    assert PowerScheduler(kind(0.5), decay_epochs=kind(2)).rate_at(2) == 0.25
