import json
import re
import types

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callbacks.convergence import StopWhenConverged

few = settings(max_examples=30, deadline=None)


def play(losses, callback=None, *, min_delta=0.01, patience=10, first_epoch=0):
    """Call the hooks as `fit` does, and return the callback."""
    callback = callback or StopWhenConverged(min_delta, patience)
    callback.set_model(types.SimpleNamespace(stop_training=False))
    callback.on_train_begin()
    for epoch, loss in enumerate(losses, first_epoch):
        callback.on_epoch_end(epoch, {"loss": loss})
        if callback.model.stop_training:
            break
    callback.on_train_end()
    return callback


def decay(seed, num_epochs=60, noise=0.01):
    rng = np.random.default_rng(seed)
    smooth = 0.3 + 2 * np.exp(-np.arange(num_epochs) / rng.uniform(1, 10))
    return smooth + rng.normal(0, noise * rng.uniform(), num_epochs)


@few
@given(st.floats(0, 3), st.integers(3, 20), st.floats(1e-3, 1e3))
def test_a_line_has_converged_if_it_falls_by_less_than_min_delta(times, patience, unit):
    # `times` min_delta in `patience` epochs
    losses = 9 * unit - times * unit / patience * np.arange(40)
    stopped_epoch = play(losses, min_delta=unit, patience=patience).stopped_epoch
    if abs(times - 1) > 1e-6:
        assert stopped_epoch == (patience - 1 if times < 1 else None)


@few
@given(st.integers(0, 10**6), st.integers(3, 15))
def test_it_stops_where_the_confidence_limits_of_polyfit_say(seed, patience):
    losses, min_delta = decay(seed), 0.02
    expected = None
    for epoch in reversed(range(len(losses))):
        for num_epochs in (patience * 2**k for k in range(6)):
            if num_epochs <= epoch + 1:
                part = losses[epoch + 1 - num_epochs : epoch + 1]
                line, covariance = np.polyfit(range(num_epochs), part, 1, cov=True)
                limit = abs(line[0]) + 2 * np.sqrt(covariance[0, 0])
                if patience * limit < min_delta:
                    expected = epoch
    assert (
        play(losses, min_delta=min_delta, patience=patience).stopped_epoch == expected
    )


def test_noise_does_not_stop_a_loss_that_falls():
    stopped = 0
    for seed in range(60):
        noise = np.random.default_rng(seed).normal(0, 0.01, 80)
        losses = 1 - 0.02 / 10 * np.arange(80) + noise  # twice min_delta
        stopped += play(losses, min_delta=0.01).stopped_epoch is not None
    assert stopped <= 3


@pytest.mark.parametrize("noise", [0.002, 0.01, 0.03])
def test_noise_does_not_keep_a_loss_from_converging(noise):
    least = (200 * (10 * noise / 0.01) ** 2) ** (1 / 3)
    promised = next(m for m in (10, 20, 40, 80, 160) if m >= least)
    late = 0
    for seed in range(60):
        losses = np.random.default_rng(seed).normal(1, noise, promised)
        late += play(losses).stopped_epoch is None
    assert late <= 6


def test_a_step_is_seen_until_it_is_behind():
    losses = [2.0] * 9 + [1.0] * 30
    assert play(losses).stopped_epoch == 9 + 10 - 1


def test_a_rising_loss_is_not_converged():
    assert play(1 + 0.002 * np.arange(100)).stopped_epoch is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_count_begins_behind_a_loss_that_is_not_finite(bad):
    assert play([bad] * 100).finding is None
    assert play([1.0] * 9 + [bad] + [1.0] * 30).stopped_epoch == 10 + 10 - 1


def test_the_finding_says_what_stopped_it():
    stop = play([0.5] * 20, first_epoch=100)
    assert stop.stopped_epoch == 109
    assert stop.finding == (
        "The training loss has converged at epoch 109: over the last 10 epochs it "
        "changed by 0 +- 0 in 10 epochs, less than 0.01."
    )
    assert play(np.arange(30.0, 0, -1)).finding is None


@few
@given(st.integers(0, 10**6), st.integers(0, 59))
def test_a_run_that_was_broken_off_stops_where_it_would_have(seed, num_played):
    losses = decay(seed)
    whole = play(losses)
    if whole.stopped_epoch is not None:
        num_played = min(num_played, whole.stopped_epoch)
    first, second = play(losses[:num_played]), StopWhenConverged(0.01)
    second.set_state(json.loads(json.dumps(first.get_state())))
    play(losses[num_played:], second, first_epoch=num_played)
    assert (second.stopped_epoch, second.finding) == (
        whole.stopped_epoch,
        whole.finding,
    )


def test_a_second_fit_starts_afresh():
    stop = play([1.0] * 9)
    assert play([1.0] * 9, stop).stopped_epoch is None
    assert play([1.0] * 10, stop).stopped_epoch == 9
    assert play([], stop).stopped_epoch is None and stop.finding is None
    stop.set_state({"losses": [1.0] * 9})
    assert play([1.0], stop).stopped_epoch == 0
    assert play([1.0], stop).stopped_epoch is None  # only once


def test_fit_ends_when_its_loss_has_converged():
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(64, 3)).astype("float32")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1), loss="mse")
    stop = StopWhenConverged(1e-3, 4)
    history = model.fit(
        x,
        x[:, :1] + 1,
        epochs=30,
        initial_epoch=2,
        batch_size=32,
        verbose=0,
        callbacks=[stop],
    )
    losses = history.history["loss"]
    assert stop.stopped_epoch == history.epoch[-1] < 29
    assert np.ptp(losses[-4:]) < 1e-3
    assert stop.get_state()["losses"] == losses


@pytest.mark.parametrize("wrong", [0, -0.1, np.nan, np.inf, "1", None, True])
def test_a_wrong_min_delta_is_refused(wrong):
    message = f"`min_delta` must be .* Received: min_delta={re.escape(repr(wrong))}$"
    with pytest.raises(ValueError, match=message):
        StopWhenConverged(wrong)


@pytest.mark.parametrize("wrong", [2, 0, -3, 5.0, np.nan, "5", None, True])
def test_a_wrong_patience_is_refused(wrong):
    with pytest.raises(ValueError, match="`patience` must be .* Received: patience="):
        StopWhenConverged(0.1, wrong)


def test_numpy_numbers_are_numbers():
    stop = StopWhenConverged(np.float32(0.5), np.int64(4))
    assert (stop.min_delta, stop.patience) == (0.5, 4)


@pytest.mark.parametrize("logs", [None, {}, {"accuracy": 1.0}])
def test_logs_without_a_loss_are_refused(logs):
    with pytest.raises(ValueError, match="must have the training loss .* Received: lo"):
        StopWhenConverged(0.1).on_epoch_end(0, logs)


@pytest.mark.parametrize(
    "wrong",
    [None, {}, {"losses": 1.0}, {"losses": [np.nan]}, {"losses": [True]}, {"loss": []}],
)
def test_a_state_of_another_form_is_refused(wrong):
    with pytest.raises(ValueError, match="`state` must come from .* Received: state="):
        StopWhenConverged(0.1).set_state(wrong)
