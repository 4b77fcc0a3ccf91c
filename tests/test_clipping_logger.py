import json
import warnings

import keras
import numpy as np
import pytest

from callbacks.clipping_logger import ClippingLogger
from recipes.optimizers import make_optimizer


def rows_model(wrap=None, **clipping):
    """A model whose gradient is the row, whatever its weights are."""
    optimizer = make_optimizer("sgd", 0.1, **clipping)
    dense = keras.layers.Dense(1, use_bias=False)
    model = keras.Sequential([keras.Input((1,)), dense])
    model.traces = 0

    def loss(y, outputs):
        model.traces += 1
        return keras.ops.sum(outputs)

    model.compile(wrap(optimizer) if wrap else optimizer, loss=loss)
    return model


def fit_rows(model, rows, callback, epochs=1):
    rows = np.asarray(rows, "float32").reshape(-1, 1)
    return model.fit(
        rows,
        rows,
        batch_size=1,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=[callback],
    ).history


EPOCHS = [[0.5, -2.0, 0.1, 3.0], [np.nan, 0.2, np.inf, 0.4], [2.0, 5.0, 0.3, np.nan]]


@pytest.mark.parametrize("wrap", [None, keras.optimizers.LossScaleOptimizer])
def test_each_epoch_is_counted_by_itself(wrap):
    # With a scale the step that is not finite is kept back further outside.
    if wrap:
        epochs = np.nan_to_num(EPOCHS, nan=0.1, posinf=0.1)
    else:
        epochs = np.array(EPOCHS)
    model = rows_model(wrap, clipnorm=1.0, skip_nonfinite=True)
    batches = ((row, row) for row in epochs.astype("float32").reshape(-1, 1, 1))
    logger = ClippingLogger()
    history = model.fit(
        batches,
        epochs=3,
        steps_per_epoch=4,
        shuffle=False,
        verbose=0,
        callbacks=[logger],
    ).history
    finite = np.isfinite(epochs)
    clipped = np.sum(np.abs(epochs) > 1, axis=1, where=finite)
    np.testing.assert_allclose(history["gradient_norm"], np.abs(epochs[:, -1]), 1e-6)
    np.testing.assert_allclose(history["clipped_fraction"], clipped / finite.sum(1))
    assert history["skipped_steps"] == (4 - finite.sum(axis=1)).tolist()
    if keras.backend.backend() != "torch":  # where each step calls the loss
        assert model.traces <= 2  # TensorFlow traces the symbolic build and the step


def test_training_is_the_same_with_and_without_it():
    ends = []
    for callbacks in ([], [ClippingLogger()]):
        keras.utils.set_random_seed(0)
        model = rows_model(clipnorm=1.0, percentile=90)
        rows = np.random.default_rng(0).lognormal(size=(40, 1))
        model.fit(rows, rows, batch_size=1, verbose=0, callbacks=callbacks)
        ends.append([np.asarray(v.value) for v in model.optimizer.variables[5:]])
    for one, other in zip(*ends, strict=True):
        np.testing.assert_array_equal(one, other)


def test_more_than_half_clipped_is_a_finding_and_a_warning():
    logger = ClippingLogger()
    model = rows_model(clipnorm=1.0)
    with pytest.warns(
        UserWarning, match="^6 of 8 updates were clipped.*Lower the lear"
    ):
        fit_rows(model, [2.0, 3.0, 4.0, 0.1], logger, epochs=2)
    assert logger.finding.startswith("6 of 8 updates were clipped")
    fit_rows(model, [2.0, 0.1], logger)  # a second fit counts afresh
    assert logger.finding is None


def test_half_clipped_is_no_finding():
    logger = ClippingLogger()
    fit_rows(rows_model(clipnorm=1.0), [2.0, 3.0, 0.2, 0.1], logger)
    assert logger.finding is None


@pytest.mark.parametrize(
    ("clipping", "is_finding"),
    [
        ({"adaptive": 0.01}, False),
        ({"percentile": 10}, False),
        ({"percentile": 10, "clipnorm": 1e-3}, False),
        ({"percentile": 50, "clipnorm": 1e-3}, True),
        ({"clipvalue": 1e-3, "skip_nonfinite": True}, True),
    ],
)
def test_clipping_most_by_intent_is_no_finding(clipping, is_finding):
    logger = ClippingLogger()
    rows = np.linspace(1, 2, 50)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # Keras 3.15's own: reading a variable under NumPy 2.
        warnings.filterwarnings("ignore", "__array__", DeprecationWarning)
        history = fit_rows(rows_model(**clipping), rows, logger)
    assert history["clipped_fraction"][0] > 0.5
    assert (logger.finding is not None) == is_finding
    assert [str(each.message) for each in caught] == [logger.finding] * is_finding


def test_a_resumed_run_judges_the_whole():
    first, second = ClippingLogger(), ClippingLogger()
    with pytest.warns(UserWarning, match="^3 of 3 updates"):
        fit_rows(rows_model(clipnorm=1.0), [2.0, 3.0, 4.0], first)
    second.set_state(json.loads(json.dumps(first.get_state())))
    with pytest.warns(UserWarning, match="^3 of 5 updates"):
        fit_rows(rows_model(clipnorm=1.0), [0.2, 0.3], second)
    assert second.get_state() == {"clipped": 3, "updates": 5}
    fit_rows(rows_model(clipnorm=1.0), [0.2], second)  # only once
    assert second.get_state() == {"clipped": 0, "updates": 1}


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        {},
        {"clipped": 1},
        {"clipped": 2, "updates": 1},
        {"clipped": -1, "updates": 1},
        {"clipped": 0.5, "updates": 1},
        {"clipped": True, "updates": 1},
    ],
)
def test_a_state_of_another_form_is_refused(wrong):
    with pytest.raises(ValueError, match="`state` must come from.* Received: state="):
        ClippingLogger().set_state(wrong)


def test_an_optimizer_that_does_not_count_is_refused_by_what_it_lacks():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    inner = keras.optimizers.SGD(clipnorm=1.0)
    for optimizer in (inner, keras.optimizers.LossScaleOptimizer(inner)):
        model.compile(optimizer, loss="mse")
        message = (
            f"a ClippedOptimizer. {type(optimizer).__name__} lacks last_gradient_norm, "
            "clipped_fraction, skipped_steps, reset_clipped_fraction.$"
        )
        with pytest.raises(TypeError, match=message):
            fit_rows(model, [1.0], ClippingLogger())
