import keras
import numpy as np
import pytest
from keras import layers

from callbacks.nonfinite_guard import NonFiniteGuard

ROWS = 8  # of a batch


def data(num_batches=6, bad=(), seed=0):
    """Batches of which some are NaN; and the same data without those."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num_batches, ROWS, 3)).astype("float32")
    y = rng.standard_normal((num_batches, ROWS, 1)).astype("float32")
    good = [batch for batch in range(num_batches) if batch not in bad]
    clean = x[good].reshape(-1, 3), y[good].reshape(-1, 1)
    x[list(bad)] = np.nan
    return (x.reshape(-1, 3), y.reshape(-1, 1)), clean


def network(optimizer=None, **options):
    """Everything that has a state: statistics, seeds, slots, a metric."""
    keras.utils.set_random_seed(1)
    stack = [layers.Dense(4, "tanh"), layers.BatchNormalization()]
    stack += [layers.Dropout(0.5, seed=2), layers.Dense(1)]
    model = keras.Sequential([keras.Input((3,)), *stack])
    optimizer = optimizer or keras.optimizers.Adam(0.01)
    options = {"metrics": ["mae"], "run_eagerly": True} | options
    model.compile(optimizer, "mse", **options)
    return model


def linear(optimizer="sgd", loss="mse"):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1, use_bias=False)])
    model.compile(optimizer, loss, run_eagerly=True)
    return model


def fit(model, xy, *callbacks, **options):
    options = {"batch_size": ROWS, "shuffle": False, "verbose": 0} | options
    return model.fit(*xy, callbacks=list(callbacks), **options).history


def guard(policy="skip", **options):
    return NonFiniteGuard(policy, **({"verbose": 0} | options))


def state_of(model):
    variables = model.variables + model.optimizer.variables
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


def assert_same_state(model, other):
    for mine, theirs in zip(state_of(model), state_of(other), strict=True):
        np.testing.assert_array_equal(mine, theirs)


class Watch(keras.callbacks.Callback):
    """Whether all is finite each time a callback behind the guard is called."""

    def __init__(self):
        super().__init__()
        self.finite = []

    def look(self, *arguments):
        values = state_of(self.model)
        self.finite.append(all(np.isfinite(value).all() for value in values))

    def on_train_batch_end(self, batch, logs=None):
        self.look()

    def on_epoch_end(self, epoch, logs=None):
        self.look()


# the state


@pytest.mark.parametrize(
    "optimizer, run_eagerly",  # a compiled step takes a second to compile
    [
        (lambda: keras.optimizers.SGD(0.1, momentum=0.9), False),
        (
            lambda: keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1, 9)),
            True,
        ),
        (lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.RMSprop()), True),
    ],
    ids=["momentum", "Adam by a schedule", "RMSprop scaled"],
)
def test_skipping_is_training_without_the_bad_batches_to_the_bit(
    optimizer, run_eagerly
):
    poisoned, clean = data(bad=(0, 3, 4))
    guarded, undisturbed = (
        network(optimizer(), run_eagerly=run_eagerly) for _ in range(2)
    )
    mine = fit(guarded, poisoned, guard(), epochs=2)
    theirs = fit(undisturbed, clean, epochs=2)
    assert_same_state(guarded, undisturbed)
    assert mine == theirs  # also the losses


def test_with_fewer_copies_the_good_steps_since_the_last_are_lost():
    poisoned, _ = data(num_batches=8, bad=(5,))
    guarded, undisturbed = network(), network()
    fit(guarded, poisoned, guard(every_steps=3))
    _, kept = data(num_batches=8, bad=(3, 4, 5))
    fit(undisturbed, kept)
    assert_same_state(guarded, undisturbed)


def test_each_epoch_begins_with_a_copy_and_may_go_back_to_it_twice():
    poisoned, _ = data(num_batches=4, bad=(1, 2))
    guarded, undisturbed = (network(run_eagerly=False) for _ in range(2))
    history = fit(guarded, poisoned, guard(every_steps=100), epochs=2)
    _, kept = data(num_batches=4, bad=(0, 1, 2))
    assert history == fit(undisturbed, kept, epochs=2)
    assert_same_state(guarded, undisturbed)


def test_steps_of_one_execution_are_undone_together():
    poisoned, _ = data(bad=(3,))
    guarded, undisturbed = (
        network(steps_per_execution=2, run_eagerly=False) for _ in range(2)
    )
    watch = guard()
    fit(guarded, poisoned, watch)
    _, kept = data(bad=(2, 3))
    fit(undisturbed, kept)
    assert_same_state(guarded, undisturbed)
    assert [event["step"] for event in watch.events] == [3]


@pytest.mark.parametrize(
    "policy, value", [("rollback", np.nan), ("skip", np.inf), ("stop", np.nan)]
)
def test_whoever_stands_behind_the_guard_meets_finite_weights_only(policy, value):
    (x, y), _ = data(bad=(2,))
    x[np.isnan(x)] = value
    watch = Watch()
    model = network()
    fit(model, (x, y), guard(policy), watch, epochs=2)
    assert len(watch.finite) == (3 + 1 if policy == "stop" else 2 * (6 + 1))
    assert all(watch.finite)


def test_a_gradient_of_nan_behind_a_finite_loss_is_seen_at_its_own_step():
    def length(y_true, y_pred):  # its derivative at 0 is 0 / 0
        return keras.ops.sqrt(keras.ops.sum(keras.ops.square(y_pred)))

    (x, y), clean = data()
    x[2 * ROWS : 3 * ROWS] = 0.0
    model, watch = linear("sgd", length), guard()
    fit(model, (x, y), watch)
    (event,) = watch.events
    assert event["step"] == 2 and np.isfinite(event["loss"])
    assert event["variable"] == model.layers[0].kernel.path
    assert all(np.isfinite(value).all() for value in state_of(model))


def overflowing():
    """A batch whose gradient is finite, 1e20, and its square is not."""
    x, y = np.ones((5 * ROWS, 3), "float32"), np.zeros((5 * ROWS, 1), "float32")
    y[ROWS : 2 * ROWS] = 1e20
    model = linear(
        keras.optimizers.Adam(0.1), lambda y, p: keras.ops.mean(p * (1.0 + y))
    )
    model.set_weights([np.zeros((3, 1))])
    return model, (x, y)


def test_keras_adam_turns_nan_one_step_after_a_gradient_whose_square_overflows():
    model, (x, y) = overflowing()
    fit(model, (x[: 2 * ROWS], y[: 2 * ROWS]))
    assert np.isfinite(model.get_weights()[0]).all()  # too late to go back from here
    fit(model, (x[:ROWS], y[:ROWS]))
    if keras.backend.backend() != "torch":  # where it never moves again
        assert np.isnan(model.get_weights()[0]).all()


def test_a_slot_that_is_infinite_is_rolled_back_though_loss_and_weights_are_finite():
    model, xy = overflowing()
    watch = guard()
    fit(model, xy, watch)
    (event,) = watch.events
    assert event["step"] == 1 and "velocity" in event["variable"]
    np.testing.assert_allclose(model.get_weights()[0], -0.4, rtol=1e-3)


def test_an_epoch_without_a_good_step_has_no_loss():
    poisoned, _ = data(num_batches=2, bad=(0, 1))
    model = network()
    before = model.get_weights()
    valid = data(num_batches=1)[0]
    history = fit(model, poisoned, guard(), validation_data=valid)
    assert np.isnan(history["loss"]).all() and np.isnan(history["mae"]).all()
    assert np.isfinite(history["val_loss"]).all()
    for mine, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(mine, theirs)


class Poison(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.set_weights([np.nan * w for w in self.model.get_weights()])


def test_what_a_callback_before_the_guard_does_at_the_end_of_an_epoch_is_undone():
    watch, model = guard(), network()
    fit(model, data()[0], Poison(), watch)
    assert all(np.isfinite(value).all() for value in state_of(model))
    assert [(e["step"], np.isnan(e["loss"])) for e in watch.events] == [(5, True)]


# checkpoints


def checkpoints(folder):
    backup = keras.callbacks.BackupAndRestore(folder / "b", 1, delete_checkpoint=False)
    each = keras.callbacks.ModelCheckpoint(folder / "step.keras", save_freq=1)
    best = folder / "best.weights.h5"
    best = keras.callbacks.ModelCheckpoint(
        best, "loss", save_best_only=True, save_weights_only=True
    )
    return backup, each, best


def written(folder):
    """Whether the weights of each checkpoint are finite."""
    finite = {}
    for path in sorted(folder.rglob("*.keras")) + sorted(folder.rglob("*.h5")):
        model = network()
        model.optimizer.build(model.trainable_variables)
        model.load_weights(path)
        finite[path.name] = all(np.isfinite(w).all() for w in model.get_weights())
    return finite


@pytest.mark.parametrize("policy", ["rollback", "stop"])
def test_no_checkpoint_holds_nan(policy, tmp_path):
    poisoned, _ = data(bad=(2, 5))
    fit(network(), poisoned, guard(policy), *checkpoints(tmp_path))
    names = {"step.keras", "best.weights.h5", "latest.weights.h5"}
    assert written(tmp_path).items() >= dict.fromkeys(names, True).items()
    assert all(written(tmp_path).values())


def test_keras_writes_nan_into_checkpoints_and_stops_too_late(tmp_path):
    poisoned, _ = data(bad=(2, 5))
    terminate = keras.callbacks.TerminateOnNaN()
    fit(network(), poisoned, terminate, *checkpoints(tmp_path)[:2])
    assert written(tmp_path) == {"step.keras": False, "latest.weights.h5": False}


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("name", ["ModelCheckpoint", "BackupAndRestore"])
def test_a_guard_behind_a_callback_that_writes_is_refused(name, position, tmp_path):
    keeper = getattr(keras.callbacks, name)(str(tmp_path / "model.keras"))
    callbacks = [keeper]
    callbacks.insert(position, Watch())
    message = f"NonFiniteGuard before {name}.*Received: callbacks=.*{name}"
    with pytest.raises(ValueError, match=message):
        fit(linear(), data()[0], *callbacks, guard())
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("keeper", ["EarlyStopping", "SwapEMAWeights"])
def test_a_guard_behind_a_callback_that_keeps_weights_is_refused(keeper):
    with pytest.raises(ValueError, match=f"NonFiniteGuard before {keeper}"):
        fit(linear(), data()[0], getattr(keras.callbacks, keeper)(), guard())


def test_the_order_in_an_earlier_fit_does_not_count():
    watch = guard()
    keeper = keras.callbacks.EarlyStopping("loss")
    with pytest.raises(ValueError, match="before EarlyStopping"):
        fit(linear(), data()[0], keeper, watch)
    fit(linear(), data()[0], watch, keeper)


def test_a_lone_callback_comes_too_late_but_on_tensorflow_and_is_refused():
    model, watch = linear(), guard()
    (x, y), _ = data(bad=(2,))
    if keras.backend.backend() != "tensorflow":
        with pytest.raises(ValueError, match=r"must be a list.*Received: callbacks="):
            model.fit(x, y, batch_size=ROWS, verbose=0, callbacks=watch)
    else:
        model.fit(x, y, batch_size=ROWS, verbose=0, callbacks=watch)
        assert len(watch.events) >= 1


# the policies


def test_rollback_lowers_the_rate_for_good_and_records_it():
    poisoned, _ = data(bad=(1, 4))
    model = linear(keras.optimizers.SGD(0.5))
    watch = guard("rollback", factor=0.1)
    fit(model, poisoned, watch)
    table = watch.to_frame()
    np.testing.assert_allclose(table["learning_rate"], [0.05, 0.005], rtol=1e-6)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.005)
    assert table["step"].tolist() == [1, 4] and table["epoch"].tolist() == [0, 0]
    assert table["action"].tolist() == ["rate lowered"] * 2
    assert table["variable"].tolist() == [model.layers[0].kernel.path] * 2


def test_rollback_lowers_every_rate_of_a_multi_optimizer():
    first, last = keras.optimizers.SGD(0.5), keras.optimizers.Adam(0.25)
    many = keras.optimizers.MultiOptimizer(
        lambda variable: first if "bias" in variable.path else last
    )
    model = network(many)
    fit(model, data(bad=(3,))[0], guard("rollback"))
    assert float(first.learning_rate) == 0.25 and float(last.learning_rate) == 0.125


@pytest.mark.parametrize("policy", ["rollback", "skip"])
def test_patience_is_the_number_of_bad_steps_in_a_row_that_ends_training(policy):
    watch = guard(policy, patience=2)
    fit(linear(), data(bad=(0, 2, 4))[0], watch)  # never two in a row
    assert len(watch.events) == 3
    model = linear()
    history = fit(model, data(bad=(1, 3, 4))[0], watch, epochs=5)
    assert [event["step"] for event in watch.events] == [1, 3, 4]
    assert watch.events[-1]["action"] == "stopped"
    assert len(history["loss"]) == 1 and np.isfinite(history["loss"][0])


def test_stop_ends_training_with_the_last_good_state():
    poisoned, _ = data(bad=(4,))
    guarded, undisturbed = network(), network()
    history = fit(guarded, poisoned, guard("stop"), epochs=3)
    x, y = data()[0]
    assert history == fit(undisturbed, (x[: 4 * ROWS], y[: 4 * ROWS]))
    assert_same_state(guarded, undisturbed)


class Rate(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        self.model.optimizer.learning_rate = 0.1 / (1 + batch)


def test_a_rate_that_a_callback_sets_is_not_rolled_back():
    model, watch = linear(keras.optimizers.SGD(0.5)), guard()
    fit(model, data(bad=(5,))[0], watch, Rate())
    assert float(model.optimizer.learning_rate) == pytest.approx(0.1 / 6)
    assert watch.events[0]["learning_rate"] == pytest.approx(0.1 / 6)


def test_a_rate_that_cannot_be_set_is_refused_unless_it_need_not_be():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    with pytest.raises(ValueError, match='LearningRateSchedule.*Received: policy="r'):
        fit(linear(keras.optimizers.SGD(schedule)), data()[0], guard("rollback"))
    watch = guard("skip")
    fit(linear(keras.optimizers.SGD(schedule)), data(bad=(1,))[0], watch)
    assert np.isnan(watch.to_frame()["learning_rate"]).tolist() == [True]


def test_a_second_fit_starts_afresh_and_a_good_one_has_an_empty_table(capsys):
    watch, model = guard("rollback", verbose=1), linear()
    fit(model, data(bad=(1,))[0], watch)
    said = capsys.readouterr().out
    assert "epoch 0, step 1" in said and "rate lowered" in said
    fit(model, data()[0], watch)
    assert watch.events == [] and capsys.readouterr().out == ""
    columns = ["epoch", "step", "loss", "variable", "learning_rate", "action"]
    assert watch.to_frame().columns.tolist() == columns and watch.to_frame().empty


def test_the_state_of_a_guard_that_has_seen_nothing_can_be_taken():
    state = NonFiniteGuard().get_state()
    other = NonFiniteGuard()
    other.set_state(state)
    assert other.get_state() == state


# errors


def test_a_model_without_a_good_state_is_refused():
    unbuilt = keras.Sequential([layers.Dense(1)])
    unbuilt.compile("sgd", "mse")
    ruined = network()
    ruined.layers[0].kernel.assign(np.full((3, 4), np.inf))
    message = "not finite before the first step.*Received: .*kernel.* epoch 0"
    with pytest.raises(ValueError, match=message):
        fit(ruined, data()[0], guard())
    if keras.backend.backend() == "tensorflow":  # JAX builds before the callbacks
        with pytest.raises(ValueError, match="must be built before fit.*Received"):
            fit(unbuilt, data()[0], guard())


@pytest.mark.parametrize(
    "name, value",
    [("policy", "ignore"), ("policy", None), ("verbose", 3), ("every_steps", 0)]
    + [("factor", value) for value in (0, 1, -0.5, np.nan, True, "0.5", None)]
    + [("patience", value) for value in (0, -1, 1.5, True, None)],
)
def test_wrong_arguments_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be.*Received: {name}="):
        NonFiniteGuard(**{name: value})


def test_numbers_of_numpy_are_numbers():
    made = NonFiniteGuard(factor=np.float32(0.25), patience=np.int64(2))
    assert made.factor == 0.25 and made.patience == 2
