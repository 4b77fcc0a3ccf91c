"""A resumed run is compared, to the bit, with one that was never stopped."""

import errno
import gc
import os
import re
import warnings

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import callbacks.resumable
from callbacks.clipping_logger import ClippingLogger
from callbacks.nonfinite_guard import NonFiniteGuard
from callbacks.resumable import Resumable, StateError
from callbacks.schedulers import (
    ExponentialScheduler,
    OneCycleScheduler,
    PlateauScheduler,
)
from recipes.fashion_mnist import epoch_batches
from recipes.optimizers import make_optimizer
from recipes.schedules import OneCycle

EPOCHS, BATCHES = 5, 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 6)).astype("float32")  # the last batch is ragged
Y = (X[:, 0] > X[:, 1]).astype("int32")


@pytest.fixture(autouse=True)
def nothing_left():
    """What crashed runs of many tests leave is taken away a hundred times as slowly."""
    yield
    gc.collect()


class Crash(Exception):
    pass


class CrashAt(keras.callbacks.Callback):
    """Crash in an epoch: at a batch, in the validation, or when all is done."""

    def __init__(self, epoch, moment):
        super().__init__()
        self.crash = (epoch, moment)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self.crash_if(batch)

    def on_test_batch_end(self, batch, logs=None):
        self.crash_if("validation")

    def on_epoch_end(self, epoch, logs=None):
        self.crash_if("end")

    def crash_if(self, moment):
        if (self.epoch, moment) == self.crash:
            raise Crash


def network(optimizer=None, dtype="float32", run_eagerly=True):
    # Eager steps are slow, but compiling them takes longer still.
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, "relu", dtype=dtype),
            keras.layers.BatchNormalization(dtype=dtype),
            keras.layers.Dropout(0.3, dtype=dtype),
            keras.layers.Dense(2, "softmax", dtype=dtype),
        ]
    )
    model.compile(
        optimizer or keras.optimizers.Adam(0.01),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        run_eagerly=run_eagerly,
    )
    return model


def program(directory, crash=None, callbacks=lambda: [], epochs=EPOCHS, **model):
    """A whole training program: returns all that it ends with."""
    model = network(**{name: make() for name, make in model.items()})
    batches = epoch_batches(X, Y, 16, seed=3)
    kept = callbacks()
    resumable = Resumable(directory, callbacks=kept, data=batches, verbose=0)
    history = model.fit(
        batches,
        epochs=epochs,
        validation_data=(X[:20], Y[:20]),
        callbacks=[resumable] + ([CrashAt(*crash)] if crash else []),
        verbose=0,
    )
    variables = model.variables + model.optimizer.variables
    arrays = [keras.ops.convert_to_numpy(v).astype("float64") for v in variables]
    return arrays, history.history, history.epoch, kept


def assert_same_end(one, other):
    for x, y in zip(one[0], other[0], strict=True):
        np.testing.assert_array_equal(x, y)
    np.testing.assert_equal(one[1], other[1])
    assert one[2] == other[2]
    for x, y in zip(one[3], other[3], strict=True):
        if hasattr(x, "get_state"):
            assert x.get_state() == y.get_state()


def assert_stops_leave_no_trace(folder, crashes, **options):
    never_stopped = program(folder / "whole", **options)
    for crash in crashes:
        with pytest.raises(Crash):
            program(folder / "parts", crash, **options)
    assert_same_end(program(folder / "parts", **options), never_stopped)
    return never_stopped


@pytest.mark.parametrize(
    "crashes",
    [
        [(0, 1)],
        [(EPOCHS - 1, "end")],
        [(0, 2), (1, 0), (1, 3), (3, "end"), (4, "validation")],
    ],
)
def test_a_stop_at_any_moment_leaves_no_trace(tmp_path, crashes):
    end = assert_stops_leave_no_trace(tmp_path, crashes)
    assert end[2] == list(range(EPOCHS))
    assert len(end[1]["val_accuracy"]) == EPOCHS


def test_the_initial_weights_are_kept_whatever_those_of_the_next_process(
    tmp_path, monkeypatch
):
    never_stopped = program(tmp_path / "whole")
    with pytest.raises(Crash):
        program(tmp_path / "parts", (0, 2))
    set_seed = keras.utils.set_random_seed
    monkeypatch.setattr(keras.utils, "set_random_seed", lambda seed: set_seed(seed + 1))
    assert_same_end(program(tmp_path / "parts"), never_stopped)


def test_compiled_steps_go_on_to_the_bit_as_well(tmp_path):
    assert_stops_leave_no_trace(tmp_path, [(2, 1)], run_eagerly=lambda: False)


def test_without_crash_it_changes_nothing(tmp_path):
    with_state = program(tmp_path)
    model = network()
    history = model.fit(
        epoch_batches(X, Y, 16, seed=3),
        epochs=EPOCHS,
        validation_data=(X[:20], Y[:20]),
        verbose=0,
    )
    assert history.history == with_state[1]
    weights = [keras.ops.convert_to_numpy(v) for v in model.variables]
    for x, y in zip(weights, with_state[0], strict=False):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    "model",
    [
        {"optimizer": lambda: keras.optimizers.SGD(0.1, momentum=0.9, use_ema=True)},
        {"optimizer": lambda: make_optimizer("nadam", global_clipnorm=0.1)},
        {"dtype": lambda: "bfloat16"},
        pytest.param(
            {
                "optimizer": lambda: keras.optimizers.LossScaleOptimizer(
                    keras.optimizers.Adam(0.01)
                )
            },
            marks=pytest.mark.slow,
        ),
    ],
    ids=["moving average", "clipped", "bfloat16", "loss scaling"],
)
def test_all_of_the_optimizer_is_kept(tmp_path, model):
    assert_stops_leave_no_trace(tmp_path, [(0, 3), (2, 1)], **model)


@pytest.mark.parametrize(
    "callbacks",
    [
        lambda: [
            NonFiniteGuard("skip", verbose=0),
            ExponentialScheduler(0.02, decay_epochs=3, per="step"),
        ],
        lambda: [PlateauScheduler("loss", patience=1, min_delta=0.5)],
        lambda: [
            keras.callbacks.ReduceLROnPlateau("loss", 0.5, 2, min_delta=0.5),
            keras.callbacks.TerminateOnNaN(),
        ],
        lambda: [
            keras.callbacks.LearningRateScheduler(lambda epoch: 0.01 / (1 + epoch))
        ],
    ],
    ids=["guard and exponential", "plateau", "Keras's plateau", "Keras's scheduler"],
)
def test_the_callbacks_go_on_where_they_were(tmp_path, callbacks):
    assert_stops_leave_no_trace(tmp_path, [(1, 2), (3, 1)], callbacks=callbacks)


def test_one_cycle_goes_on_with_rate_and_momentum(tmp_path):
    assert_stops_leave_no_trace(
        tmp_path,
        [(2, 2)],
        optimizer=lambda: make_optimizer("momentum", global_clipnorm=5.0),
        callbacks=lambda: [
            OneCycleScheduler(OneCycle(0.1, EPOCHS * BATCHES)),
            ClippingLogger(),
        ],
    )


def test_early_stopping_counts_on_and_restores_the_best_weights(tmp_path):
    def callbacks():
        early = keras.callbacks.EarlyStopping(
            "loss", patience=2, min_delta=9.0, restore_best_weights=True
        )
        return [early]

    end = assert_stops_leave_no_trace(tmp_path, [(1, 2), (2, 0)], callbacks=callbacks)
    assert end[2] == [0, 1, 2]  # It stopped, and the resumed run with it.
    assert end[3][0].best_epoch == 0


def test_a_run_that_had_stopped_by_itself_does_not_go_on(tmp_path):
    def callbacks():
        return [keras.callbacks.EarlyStopping("loss", patience=1, min_delta=9.0)]

    end = assert_stops_leave_no_trace(tmp_path, [(1, "end")], callbacks=callbacks)
    assert end[2] == [0, 1]


def test_a_checkpoint_of_the_best_is_not_overwritten_by_a_worse_one(tmp_path):
    best = tmp_path / "best.weights.h5"

    def callbacks():
        # The smallest accuracy is that of one of the first epochs.
        return [
            keras.callbacks.ModelCheckpoint(
                best,
                "accuracy",
                0,
                save_best_only=True,
                save_weights_only=True,
                mode="min",
            )
        ]

    never_stopped = program(tmp_path / "whole", callbacks=callbacks)
    lowest = int(np.argmin(never_stopped[1]["accuracy"]))
    assert lowest < 3
    content = best.read_bytes()
    best.unlink()
    with pytest.raises(Crash):
        program(tmp_path / "parts", (3, 1), callbacks=callbacks)
    written = best.stat().st_mtime_ns
    program(tmp_path / "parts", callbacks=callbacks)
    assert best.stat().st_mtime_ns == written
    assert len(content) == best.stat().st_size


def test_the_next_fit_is_not_shortened(tmp_path):
    for directory in (tmp_path, tmp_path):
        model = network()
        batches = epoch_batches(X, Y, 16, seed=3)
        resumable = Resumable(directory, data=batches, verbose=0)
        fit = {"verbose": 0, "epochs": 2}
        first = model.fit(batches, callbacks=[resumable], **fit)
        second = model.fit(batches, callbacks=[resumable], **fit)
        plain = model.fit(batches, **fit)
        for history in (first, second, plain):
            assert history.epoch == [0, 1]
        assert second.history["loss"] != first.history["loss"]
        # The second time, the first two are complete already.


def test_nor_is_the_fit_after_one_that_went_on_and_was_broken_off(tmp_path):
    with pytest.raises(Crash):
        program(tmp_path, (2, 1))
    model, batches = network(), epoch_batches(X, Y, 16, seed=3)
    resumable = Resumable(tmp_path, data=batches, verbose=0)
    with pytest.raises(Crash):
        callbacks = [resumable, CrashAt(3, 1)]
        model.fit(batches, epochs=EPOCHS, callbacks=callbacks, verbose=0)
    assert model.fit(batches, epochs=2, verbose=0).epoch == [0, 1]


def test_phases_that_are_complete_are_not_repeated(tmp_path):
    def two_phases(crash=None):
        model, batches = network(), epoch_batches(X, Y, 16, seed=3)
        scheduler = ExponentialScheduler(0.02, decay_epochs=3)
        counted = []
        count = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: counted.append(batch)
        )
        kept = Resumable(
            tmp_path / "state", callbacks=[scheduler], data=batches, verbose=0
        )
        fit = {"verbose": 0, "epochs": 2}
        one = model.fit(batches, callbacks=[count, kept], **fit)
        crashes = [CrashAt(*crash)] if crash else []
        two = model.fit(batches, callbacks=[count, kept, *crashes], **fit)
        return model.get_weights(), one.history, two.history, len(counted)

    with pytest.raises(Crash):
        two_phases(crash=(1, 2))
    resumed = two_phases()
    assert resumed[3] == BATCHES
    (tmp_path / "state").rename(tmp_path / "other")
    never_stopped = two_phases()
    assert resumed[1:3] == never_stopped[1:3]
    for x, y in zip(resumed[0], never_stopped[0], strict=True):
        np.testing.assert_array_equal(x, y)


def test_an_interrupted_fit_goes_on_in_the_same_process(tmp_path):
    never_stopped = program(tmp_path / "whole")
    model, batches = network(), epoch_batches(X, Y, 16, seed=3)
    resumable = Resumable(tmp_path / "parts", data=batches, verbose=0)
    fit = {"epochs": EPOCHS, "validation_data": (X[:20], Y[:20]), "verbose": 0}
    with pytest.raises(Crash):
        model.fit(batches, callbacks=[resumable, CrashAt(2, 1)], **fit)
    history = model.fit(batches, callbacks=[resumable], **fit)
    assert history.history == never_stopped[1]


def test_history_has_what_callbacks_before_it_have_logged(tmp_path):
    def fit(epochs):
        model, batches = network(), epoch_batches(X, Y, 16, seed=3)
        log = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: logs.update(ten=10.0 * epoch)
        )
        resumable = Resumable(tmp_path, data=batches, verbose=0)
        return model.fit(batches, epochs=epochs, verbose=0, callbacks=[log, resumable])

    assert fit(1).history["ten"] == [0]
    assert fit(3).history["ten"] == [0, 10, 20]


def test_what_the_callbacks_inside_add_to_the_logs_is_in_history(tmp_path):
    class Log(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["ten"] = 10.0 * epoch

        def get_state(self):
            return {}

        def set_state(self, state):
            pass

    def fit(epochs):
        model, batches = network(), epoch_batches(X, Y, 16, seed=3)
        resumable = Resumable(tmp_path, callbacks=[Log()], data=batches, verbose=0)
        return model.fit(batches, epochs=epochs, verbose=0, callbacks=[resumable])

    assert fit(1).history["ten"] == [0]
    assert fit(3).history["ten"] == [0, 10, 20]


def test_a_state_that_a_callback_does_not_know_is_refused(tmp_path):
    class Log(keras.callbacks.Callback):
        def get_state(self):
            return {"old": 1}

        def set_state(self, state):
            raise ValueError(f"`state` must have new. Received: state={state}")

    def fit(epochs):
        resumable = Resumable(tmp_path, callbacks=[Log()], verbose=0)
        network().fit(X, Y, epochs=epochs, verbose=0, callbacks=[resumable])

    fit(1)
    with pytest.raises(StateError, match="with another Log; delete the folder.*new"):
        fit(2)


def test_only_the_last_two_states_are_kept(tmp_path):
    program(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["fit0-epoch000004.npz", "fit0-epoch000005.npz"]


def test_a_damaged_state_is_passed_over_with_a_warning(tmp_path):
    never_stopped = program(tmp_path / "whole")
    with pytest.raises(Crash):
        program(tmp_path / "parts", (3, 1))
    newest = tmp_path / "parts" / "fit0-epoch000003.npz"
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="epoch000003.npz is damaged"):
        resumed = program(tmp_path / "parts")
    assert_same_end(resumed, never_stopped)


@pytest.mark.parametrize("of_the_other", [2, -1])
def test_hosts_go_on_from_the_newest_epoch_that_all_have(
    of_the_other, tmp_path, monkeypatch
):
    never_stopped = program(tmp_path / "whole")
    with pytest.raises(Crash):
        program(tmp_path / "parts", (of_the_other + 1, 1))  # one epoch more than it
    seen = []

    def both(epoch):
        seen.append(epoch)
        return [epoch, of_the_other]

    monkeypatch.setattr(callbacks.resumable, "_of_all_processes", both)
    assert_same_end(program(tmp_path / "parts"), never_stopped)
    assert seen == [of_the_other + 1, of_the_other]


def test_hosts_more_than_an_epoch_apart_are_refused(tmp_path, monkeypatch):
    with pytest.raises(Crash):
        program(tmp_path, (3, 1))
    names = sorted(path.name for path in tmp_path.iterdir())
    for others in ([-1], [1, 3], [5]):
        apart = [3, *others]
        monkeypatch.setattr(
            callbacks.resumable, "_of_all_processes", lambda epoch, each=apart: each
        )
        with pytest.raises(ValueError, match=re.escape(f"epochs {apart} (-1: none)")):
            program(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_damaged_states_alone_are_refused_and_left_alone(tmp_path):
    with pytest.raises(Crash):
        program(tmp_path, (0, 1))
    path = tmp_path / "fit0-epoch000000.npz"
    path.write_bytes(b"")
    with pytest.raises(StateError, match="all are damaged: fit0-epoch000000.npz"):
        program(tmp_path)
    np.savez(path, state=np.array("{}"))  # whole, but of another program
    with pytest.raises(StateError, match="delete the folder to train anew"):
        program(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(StateError):
        program(tmp_path)
    assert path.read_bytes() == b""


@pytest.fixture(scope="module")
def two_states(tmp_path_factory):
    folder = tmp_path_factory.mktemp("state")
    with pytest.raises(Crash):
        program(folder, (2, 1))
    paths = sorted(folder.iterdir())
    return [path.read_bytes() for path in paths], [path.name for path in paths]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_damage_goes_unnoticed(two_states, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    contents, names = two_states
    resumable = Resumable(folder)
    whole = bytearray(contents[1])
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        whole[place] ^= data.draw(st.integers(1, 255))
    else:
        del whole[place:]
    for content, name in zip([contents[0], bytes(whole)], names, strict=True):
        (folder / name).write_bytes(content)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state, path = resumable._newest_state()
    if caught:
        assert path.name == names[0]
    else:  # A byte that no reader looks at, such as the time of writing.
        (folder / names[1]).write_bytes(contents[1])
        np.testing.assert_equal(state, resumable._newest_state()[0])


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_loses_nothing(tmp_path, monkeypatch, failing):
    never_stopped = program(tmp_path / "whole")
    right, calls = getattr(os, failing), []

    def full(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return right(*arguments)

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(
        OSError, match="state of training cannot be written to .*No space"
    ):
        program(tmp_path / "parts")
    names = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert names == ["fit0-epoch000001.npz", "fit0-epoch000002.npz"]
    assert_same_end(program(tmp_path / "parts"), never_stopped)


def test_a_folder_that_cannot_be_made_is_named_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written to .*file/state"):
        program(tmp_path / "file" / "state")


def test_data_in_an_unknown_order_are_pointed_out(tmp_path):
    def fit(epochs, **order):
        model = network()
        resumable = Resumable(tmp_path, verbose=0)
        model.fit(X, Y, epochs=epochs, verbose=0, callbacks=[resumable], **order)
        return model.get_weights()

    fit(2, shuffle=False)
    with pytest.warns(UserWarning, match=r"order is not known.*\(shuffle=False\)"):
        resumed = fit(4, shuffle=False)
    whole = network()
    whole.fit(X, Y, epochs=4, verbose=0, shuffle=False)
    for x, y in zip(resumed, whole.get_weights(), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_state_of_other_settings_is_refused(tmp_path):
    def fit(settings):
        resumable = Resumable(tmp_path, settings=settings, verbose=0)
        network().fit(X, Y, shuffle=False, verbose=0, callbacks=[resumable])

    fit({"rate": 0.1, "sizes": (2, 3)})
    fit({"rate": 0.1, "sizes": (2, 3)})
    with pytest.raises(
        ValueError, match="which are {'rate': 0.1.*Received: settings={'rat"
    ):
        fit({"rate": 0.2, "sizes": (2, 3)})


def test_a_state_of_another_program_is_refused(tmp_path):
    program(tmp_path, epochs=1)
    with pytest.raises(ValueError, match="with other variables.*Received: variables="):
        program(tmp_path, optimizer=lambda: "sgd")
    with pytest.raises(
        ValueError, match=r"other callbacks: \[\].*\['TerminateOnNaN'\]"
    ):
        program(tmp_path, callbacks=lambda: [keras.callbacks.TerminateOnNaN()])


def test_misuse_is_refused_at_the_start_of_training(tmp_path):
    early = keras.callbacks.EarlyStopping("loss")
    for order in (1, -1):
        callbacks = [Resumable(tmp_path, callbacks=[early]), early][::order]
        with pytest.raises(
            ValueError, match="runs already. Received: EarlyStopping in"
        ):
            network().fit(X, Y, verbose=0, callbacks=callbacks)
    with pytest.raises(ValueError, match="must be a list"):
        network().fit(X, Y, verbose=0, callbacks=Resumable(tmp_path))
    unbuilt = keras.Sequential([keras.layers.Dense(1)])
    unbuilt.compile("sgd", "mse")
    if keras.backend.backend() == "tensorflow":  # JAX builds it before
        with pytest.raises(ValueError, match="must be built before fit"):
            unbuilt.fit(X, Y, verbose=0, callbacks=[Resumable(tmp_path)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"directory": ""}, "`directory` must be"),
        ({"directory": 3}, "Received: directory=3"),
        ({"callbacks": keras.callbacks.EarlyStopping()}, "`callbacks` must be a list"),
        ({"callbacks": [keras.callbacks.History()]}, "get_state.*Received: History"),
        ({"callbacks": ["early"]}, "`callbacks` must be Keras callbacks.*: str"),
        ({"data": np.ones(3)}, "`data` must have an integer attribute `epoch`"),
        ({"settings": {"rate": np.ones(2)}}, "`settings` must be None or a dictionary"),
        (
            {"settings": {"rate": float("nan")}},
            "`settings` must be None or a dictionary",
        ),
        ({"settings": [0.1]}, "Received: settings=\\[0.1\\]"),
        ({"verbose": 2}, "`verbose` must be 0 or 1. Received: verbose=2"),
    ],
)
def test_bad_argument_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Resumable(**{"directory": "state", **arguments})


def test_it_says_that_it_goes_on(tmp_path, capsys):
    for _ in range(2):
        resumable = Resumable(tmp_path)
        network().fit(X, Y, shuffle=False, verbose=0, callbacks=[resumable])
    path = tmp_path / "fit0-epoch000001.npz"
    assert capsys.readouterr().out == f"Resumable: going on from {path}\n"
