"""The laws of several devices, for a process that has two: test_distribute.py runs it.

The devices have to be there before a backend computes anything, so this is no file for
the process of the other tests.
"""

import contextlib
import pathlib
import sys

import keras
import numpy as np
import pytest

import train
from callbacks.resumable import Resumable
from callbacks.schedulers import PlateauScheduler, PowerScheduler
from recipes.distribute import EvenBatches, all_devices, prepare_replicas
from recipes.fashion_mnist import epoch_batches
from recipes.mc_dropout import MCDropoutPredictor
from recipes.optimizers import make_optimizer
from recipes.regularizers import MaxNorm
from recipes.schedules import PowerDecay

sys.path.append(str(pathlib.Path(__file__).parent.parent / "benchmarks"))

import devices as benchmark  # noqa: E402
from kill_and_resume import kill_and_resume  # noqa: E402

IS_JAX = keras.backend.backend() == "jax"
if not IS_JAX:
    import tensorflow as tf
benchmark.split_cpu(2)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 6)).astype("float32")
Y = (X[:, :1] * X[:, 1:2] + X[:, 2:3]).astype("float32")


def network(*layers, **compiled):
    hidden = keras.layers.Dense(8, "tanh", kernel_constraint=MaxNorm(0.8))
    model = keras.Sequential([keras.Input((6,)), hidden, *layers])
    model.add(keras.layers.Dense(1, kernel_regularizer="l2"))
    model.compile(
        **{"optimizer": make_optimizer("momentum", 0.05), **compiled}, loss="mse"
    )
    return model


def trained(
    build, *, on_two, num_rows=40, epochs=3, callbacks=(), batch_size=16, **options
):
    """The model and its losses; on one device by Keras alone."""
    keras.utils.set_random_seed(1)
    batches = epoch_batches(X[:num_rows], Y[:num_rows], batch_size, seed=0)
    with all_devices() if on_two else contextlib.nullcontext() as devices:
        model = build()
        if on_two:
            assert tuple(devices) == (2, 1, 0)
            prepare_replicas(model)
            batches = EvenBatches(batches, devices)
        history = model.fit(
            batches,
            epochs=epochs,
            verbose=0,
            callbacks=list(callbacks),
            shuffle=False,
            **options,
        )
    return model, history.history


def largest_difference(model, other):
    pairs = zip(model.get_weights(), other.get_weights(), strict=True)
    return max(np.abs(a - b).max() for a, b in pairs)


def both(build, make_callbacks=list, **options):
    one = trained(build, on_two=False, callbacks=make_callbacks(), **options)
    two = trained(build, on_two=True, callbacks=make_callbacks(), **options)
    return *one, *two


def test_clipping_schedule_and_max_norm_give_the_weights_of_one_device():
    def build():
        schedule = PowerDecay(0.3, decay_steps=4)
        clipped = make_optimizer("momentum", schedule, global_clipnorm=0.5)
        return network(optimizer=clipped)

    # The last batch of 5 is filled up to 6: that row counts in the epoch's mean loss.
    one, losses, two, losses_of_two = both(build, num_rows=37)
    assert largest_difference(one, two) < 1e-6
    np.testing.assert_allclose(losses["loss"], losses_of_two["loss"], rtol=1 / 37)
    assert one.optimizer.clipped_fraction == two.optimizer.clipped_fraction > 0
    norms = np.linalg.norm(two.get_weights()[0], axis=0)
    assert norms.max() <= 0.8 and (norms > 0.79).any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_rows", "batch_size"), [(40, 16), (33, 16), (7, 7)], ids=str
)
def test_batches_of_any_size_take_the_step_of_one_device(num_rows, batch_size):
    options = {"num_rows": num_rows, "batch_size": batch_size}
    validation = {"validation_data": (X, Y), "validation_batch_size": 20}
    one, losses, two, losses_of_two = both(network, **options, **validation)
    assert largest_difference(one, two) < 1e-6
    rtol = 1 / 33 if num_rows == 33 else 1e-5
    np.testing.assert_allclose(losses["loss"], losses_of_two["loss"], rtol=rtol)
    np.testing.assert_allclose(losses["val_loss"], losses_of_two["val_loss"], rtol=1e-5)


@pytest.mark.slow
def test_rates_from_callbacks_are_those_of_one_device():
    def make_callbacks():
        return [PowerScheduler(0.05, decay_epochs=2, per="step")]

    one, losses, two, losses_of_two = both(network, make_callbacks)
    assert largest_difference(one, two) < 1e-6
    assert losses["learning_rate"] == losses_of_two["learning_rate"]


WITHIN_THE_OPTIMIZER = {
    "gradient_accumulation_steps": {"gradient_accumulation_steps": 2},
    "ema_overwrite_frequency": {"use_ema": True, "ema_overwrite_frequency": 2},
}
WITHIN_FIT = {"steps_per_execution": 2, "jit_compile": True}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * IS_JAX)
        for name in [*WITHIN_THE_OPTIMIZER, *WITHIN_FIT]
    ],
)
def test_what_replicas_cannot_do_is_refused_and_jax_does_it(name):
    def build():
        if name in WITHIN_FIT:
            return network(**{name: WITHIN_FIT[name]})
        sgd = keras.optimizers.SGD(0.05, **WITHIN_THE_OPTIMIZER[name])
        return network(optimizer=sgd)

    if IS_JAX:
        one, losses, two, losses_of_two = both(build)
        assert largest_difference(one, two) < 1e-6
        np.testing.assert_allclose(losses["loss"], losses_of_two["loss"], rtol=1e-5)
    else:
        with pytest.raises(ValueError, match=rf"Keras 3\.15 cannot .* {name}: use"):
            trained(build, on_two=True)


@pytest.mark.slow
def test_averaged_weights_are_those_of_one_device():
    def build():
        sgd = keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.9)
        return network(optimizer=sgd)

    def swap():
        return [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)]

    one, _, two, _ = both(build, swap)
    assert largest_difference(one, two) < 1e-6
    last, _ = trained(
        lambda: network(optimizer=keras.optimizers.SGD(0.05)), on_two=False
    )
    assert largest_difference(one, last) > 1e-3


def test_replicas_draw_masks_of_their_own():
    def masks(prepared):
        with all_devices():
            layer = keras.layers.Dropout(0.5, seed=3)
            model = keras.Sequential([keras.Input((64,)), layer])
            model.compile("sgd", "mse")
            if prepared:
                prepare_replicas(model)
                prepare_replicas(model)
        if IS_JAX:
            halves = np.split(np.array(layer(np.ones((2, 64)), training=True)), 2)
        else:
            run = tf.function(model.distribute_strategy.run)
            halves = run(lambda: layer(tf.ones((1, 64)), training=True))
            halves = model.distribute_strategy.experimental_local_results(halves)
        return [np.array(half) > 0 for half in halves], layer.seed_generator.state

    (first, second), state = masks(prepared=True)
    assert 0.3 < np.mean(first != second) < 0.7
    (plain, other), plain_state = masks(prepared=False)
    assert (first == plain).all()
    assert (plain == other).all() == (not IS_JAX)  # what Keras 3.15 does
    assert (np.array(state + 0) == np.array(plain_state + 0)).all()


@pytest.mark.slow
def test_synchronized_batch_norm_is_that_of_one_device():
    def build():
        # On JAX it is so without, and the argument is refused.
        return network(keras.layers.BatchNormalization(synchronized=not IS_JAX))

    one, losses, two, losses_of_two = both(build)
    assert largest_difference(one, two) < 1e-5
    np.testing.assert_allclose(losses["loss"], losses_of_two["loss"], rtol=1e-5)


@pytest.mark.slow
def test_mc_dropout_predicts_there_as_on_one_device():
    def predicted(on_two):
        model, _ = trained(
            lambda: network(keras.layers.Dropout(0.5, seed=1)), on_two=on_two, epochs=1
        )
        keras.utils.set_random_seed(0)
        for weights in model.weights:
            weights.assign(np.random.normal(size=weights.shape))
        with all_devices() if on_two else contextlib.nullcontext():
            predictor = MCDropoutPredictor(model, num_samples=5, seed=4)
            return predictor.predict(X, keep_samples=True, verbose=0).samples

    np.testing.assert_allclose(predicted(True), predicted(False), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_resumed_on_two_devices_it_ends_as_if_never_stopped(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 2 and stops:
                raise stops.pop()

    def run(folder):
        keras.utils.set_random_seed(1)
        batches = epoch_batches(X, Y, 16, seed=0)
        with all_devices() as devices:
            model = network(keras.layers.Dropout(0.5))
            prepare_replicas(model)
            batches = EvenBatches(batches, devices)
            plateau = PlateauScheduler("loss", patience=1)
            keep = Resumable(folder, callbacks=[plateau], data=batches)
            model.fit(
                batches, epochs=5, verbose=0, shuffle=False, callbacks=[Stop(), keep]
            )
        return model

    stops = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped")
    resumed, whole = run(tmp_path / "stopped"), run(tmp_path / "whole")
    assert largest_difference(resumed, whole) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", train.RUNS)
def test_every_run_gives_the_losses_and_weights_of_one_device(name, tmp_path):
    floatx = "float64" if name in benchmark.ENLARGING else "float32"
    row = benchmark.compared(name, floatx, tmp_path)
    assert row["devices"] == 2 and row["steps"] > 1
    bound = {"float32": 1e-4, "float64": 1e-9}[floatx]
    if not row["why_not"]:
        assert row["weight_difference"] < bound and row["loss_difference"] < bound, row


@pytest.mark.slow
def test_killed_on_two_devices_it_ends_as_if_never_stopped():
    assert kill_and_resume(2, keras.backend.backend(), devices=2) == 2


def test_train_says_what_it_cannot_share(tmp_path, capsys):
    arguments = ["adam", "--dry-run", "--data", "garments", "--distribute"]
    data, source = train.load_data(train.command_line().parse_args(arguments))
    odd = data._replace(x_test=data.x_test[:33], y_test=data.y_test[:33])
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as leaving:
        patch.setattr(train, "load_data", lambda options: (odd, source))
        train.main([*arguments, "--output", str(tmp_path)])
    assert leaving.value.code == 2
    assert "2 devices cannot share the last 1 images" in capsys.readouterr().err
