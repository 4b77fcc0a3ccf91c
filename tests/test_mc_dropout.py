import concurrent.futures
import json
import os
import pathlib
import pickle
import tracemalloc

import keras
import numpy as np
import pandas as pd
import pytest

from recipes import mc_dropout
from recipes.mc_dropout import (
    MCAlphaDropout,
    MCDropout,
    MCDropoutPredictor,
    MCPrediction,
)

layers = keras.layers


def sequential(*stack, shape=(6,)):
    return keras.Sequential([keras.Input(shape), *stack])


def sample(model, x, num_samples=50, **options):
    options = {"seed": 7, **options}
    batch_size = options.pop("batch_size", None)
    predictor = MCDropoutPredictor(model, num_samples=num_samples, **options)
    return predictor.predict(x, batch_size=batch_size, keep_samples=True, verbose=0)


def data(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def classifier():
    return sequential(
        layers.Dropout(0.2),
        layers.Dense(8, "relu"),
        layers.Dropout(0.5),
        layers.Dense(4, "softmax"),
    )


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.drop = layers.Dropout(0.5)
        self.head = layers.Dense(2)

    def call(self, inputs, training=None):
        return self.head(self.drop(inputs, training=training))


def everything_of(model):
    """All that a prediction must leave alone, as bytes."""
    variables = model.variables + model.optimizer.variables
    for layer in model._flatten_layers():
        variables += [generator.state for generator in layer._seed_generators]
    states = [keras.ops.convert_to_numpy(variable) for variable in variables]
    attributes = [sorted(layer.__dict__) for layer in model._flatten_layers()]
    nodes = [len(layer._inbound_nodes) for layer in model._flatten_layers()]
    return [s.tobytes() for s in states], attributes, nodes, model.to_json()


# --- the law of the samples


@pytest.mark.parametrize("inputs_per_mask", [1, 3, None])
def test_mean_and_variance_of_a_linear_model_are_the_closed_form(inputs_per_mask):
    p, num_samples = 0.3, 1000
    model = sequential(layers.Dropout(p), layers.Dense(1))
    x = data(5, 6)
    kernel, bias = data(6, 1, seed=1), np.float32([0.5])
    model.layers[-1].set_weights([kernel, bias])
    result = sample(model, x, num_samples, inputs_per_mask=inputs_per_mask)
    mean = (x @ kernel + bias)[:, 0]
    variance = p / (1 - p) * ((x * kernel[:, 0]) ** 2).sum(axis=1)
    z = (result.mean[:, 0] - mean) / np.sqrt(variance / num_samples)
    assert np.abs(z).max() < 4
    # The deviation of a sample variance is below 2 var / sqrt(T) for these sums.
    np.testing.assert_allclose(result.std[:, 0] ** 2, variance, rtol=8 / 31)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_share_of_dropped_entries_is_the_rate(p, dtype):
    model = sequential(layers.Dropout(p, dtype=dtype), shape=(1000,))
    samples = sample(model, np.ones((1, 1000)), 100).samples
    deviation = np.sqrt(p * (1 - p) / samples.size)
    assert abs((samples == 0).mean() - p) < 4 * deviation


@pytest.mark.parametrize(
    "layer",
    [layers.Dropout(0.4), layers.GaussianDropout(0.4), layers.AlphaDropout(0.4)],
    ids=lambda layer: type(layer).__name__,
)
def test_moments_are_those_of_the_keras_layer_in_training(layer):
    model = sequential(layer, shape=(200,))
    x = np.full((1, 200), 0.7, "float32")
    ours = sample(model, x, 400).samples
    keras.utils.set_random_seed(0)
    theirs = keras.ops.convert_to_numpy(layer(np.repeat(x, 400, 0), training=True))
    # 80,000 draws each: 4 deviations of the difference of two means.
    scale = 4 * theirs.std() * np.sqrt(2 / ours.size)
    assert abs(ours.mean() - theirs.mean()) < scale
    np.testing.assert_allclose(ours.std(), theirs.std(), rtol=0.02)


@pytest.mark.parametrize(
    ("layer", "shape", "same_along"),
    [
        (layers.SpatialDropout1D(0.5), (5, 16), (1,)),
        (layers.SpatialDropout2D(0.5), (4, 5, 16), (1, 2)),
        (layers.SpatialDropout3D(0.5), (2, 3, 4, 16), (1, 2, 3)),
        (layers.Dropout(0.5, noise_shape=(None, 1, 16)), (5, 16), (1,)),
    ],
)
def test_spatial_dropout_drops_whole_channels(layer, shape, same_along):
    model = sequential(layer, shape=shape)
    samples = sample(model, np.ones((3, *shape)), 20).samples
    along = tuple(axis + 1 for axis in same_along)
    spread = samples.max(axis=along) - samples.min(axis=along)
    assert (spread == 0).all()
    assert {0.0, 2.0} == set(np.unique(samples))


def test_samples_differ_from_each_other():
    samples = sample(sequential(layers.Dropout(0.5), shape=(64,)), data(2, 64), 30)
    assert len(np.unique(samples.samples[:, 0], axis=0)) == 30


def test_a_layer_used_twice_and_two_layers_draw_two_masks():
    inputs = keras.Input((300,))
    drop, other = layers.Dropout(0.5), layers.Dropout(0.5)
    for pair in ([drop(inputs), drop(inputs)], [drop(inputs), other(inputs)]):
        model = keras.Model(inputs, layers.Subtract()(pair))
        samples = sample(model, np.ones((1, 300)), 5).samples
        assert samples.any(axis=-1).all()


def inputs_layer(layer, *shapes, **options):
    """A model of one layer that is called with inputs of these shapes."""
    inputs = [keras.Input(shape) for shape in shapes]
    outputs = layer(*inputs, **options)
    return keras.Model(inputs, outputs)


KINDS = {
    "SimpleRNN": lambda: inputs_layer(layers.SimpleRNN(3, dropout=0.4), (4, 6)),
    "LSTM": lambda: inputs_layer(layers.LSTM(3, dropout=0.4), (4, 6)),
    "LSTM recurrent": lambda: inputs_layer(
        layers.LSTM(3, recurrent_dropout=0.4), (4, 6)
    ),
    "GRU both": lambda: inputs_layer(
        layers.GRU(3, dropout=0.3, recurrent_dropout=0.3), (4, 6)
    ),
    "Bidirectional": lambda: inputs_layer(
        layers.Bidirectional(layers.LSTM(3, dropout=0.4)), (4, 6)
    ),
    "stacked cells": lambda: inputs_layer(
        layers.RNN([layers.GRUCell(3, dropout=0.4), layers.LSTMCell(3, dropout=0.4)]),
        (4, 6),
    ),
    "ConvLSTM2D": lambda: inputs_layer(
        layers.ConvLSTM2D(2, 2, dropout=0.4, recurrent_dropout=0.4), (3, 4, 4, 1)
    ),
    "MultiHeadAttention": lambda: inputs_layer(
        layers.MultiHeadAttention(2, 4, dropout=0.4), (4, 6), (5, 6)
    ),
    "GroupQueryAttention": lambda: inputs_layer(
        layers.GroupQueryAttention(4, 4, 2, dropout=0.4), (4, 6), (5, 6)
    ),
    "Attention": lambda: keras.Model(
        pair := [keras.Input((4, 6)), keras.Input((5, 6))],
        layers.Attention(dropout=0.4)(pair),
    ),
    "AdditiveAttention": lambda: keras.Model(
        pair := [keras.Input((4, 6)), keras.Input((5, 6))],
        layers.AdditiveAttention(dropout=0.4)(pair),
    ),
    "TimeDistributed": lambda: inputs_layer(
        layers.TimeDistributed(layers.Dropout(0.4)), (4, 6)
    ),
}


# JAX compiles some of them for seconds; `make test` has the compiled samples of all.
LONG_ON_JAX = {"ConvLSTM2D", "stacked cells", "Bidirectional", "GRU both"}
LONG_ON_JAX |= {"MultiHeadAttention", "GroupQueryAttention"}


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            kind,
            marks=[pytest.mark.slow]
            * (keras.backend.backend() == "jax" and kind in LONG_ON_JAX),
        )
        for kind in KINDS
    ],
)
def test_moments_are_those_of_keras_in_training(kind):
    model = KINDS[kind]()
    for variable in model.trainable_variables:
        variable.assign(data(*variable.shape, seed=len(variable.path)))
    x = [1 + data(1, *inputs.shape[1:], seed=3) for inputs in model.inputs]
    num_rows, num_samples = 100, 6
    ours = sample(
        model, [np.repeat(a, num_rows, 0) for a in x], num_samples, inputs_per_mask=1
    ).samples
    ours = ours.reshape(num_rows * num_samples, -1).astype(np.float64)
    keras.utils.set_random_seed(0)
    theirs = model([np.repeat(a, len(ours), 0) for a in x], training=True)
    theirs = keras.ops.convert_to_numpy(theirs).reshape(ours.shape)
    assert ours.std(axis=0).max() > 0.01
    # Differences of two means of 600 draws, in their standard deviations.
    error = np.sqrt((ours.var(axis=0) + theirs.var(axis=0)) / len(ours)) + 1e-6
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) / error).max() < 4.5
    np.testing.assert_allclose(
        ours.std(axis=0), theirs.std(axis=0), rtol=0.35, atol=0.01
    )


@pytest.mark.parametrize(
    "layer", [layers.SimpleRNN, layers.LSTM, layers.GRU], ids=lambda kind: kind.__name__
)
def test_recurrent_layers_keep_one_mask_for_all_time_steps(layer):
    # Without recurrent weights, equal inputs of all steps give equal gates.
    recurrent = layer(
        6,
        dropout=0.5,
        return_sequences=True,
        activation="linear" if layer is layers.SimpleRNN else "tanh",
        recurrent_initializer="zeros",
    )
    model = sequential(recurrent, shape=(5, 6))
    samples = sample(model, np.ones((3, 5, 6)), 8, inputs_per_mask=1).samples
    if layer is layers.SimpleRNN:
        np.testing.assert_allclose(samples, samples[:, :, :1].repeat(5, 2), atol=1e-6)
    # A state that forgets at a constant rate moves one way only.
    steps = np.diff(samples, axis=2)
    assert ((steps >= -1e-6).all(axis=2) | (steps <= 1e-6).all(axis=2)).all()
    firsts = samples[:, :, 0].reshape(24, -1)
    assert len(np.unique(firsts, axis=0)) > 12


def test_a_recurrent_mask_is_one_for_all_time_steps():
    recurrent = layers.SimpleRNN(
        6, "linear", recurrent_dropout=0.5, return_sequences=True, use_bias=False
    )
    model = sequential(recurrent, shape=(4, 6))
    recurrent.set_weights([np.eye(6, dtype="float32")] * 2)
    samples = sample(model, np.ones((2, 4, 6)), 20, inputs_per_mask=1).samples
    # h1 = 1, h2 = 1 + m, h3 = 1 + m (1 + m), ...
    mask = samples[:, :, 1] - 1
    assert set(np.unique(mask)) == {0.0, 2.0}
    np.testing.assert_allclose(samples[:, :, 2], 1 + mask + mask**2, rtol=1e-6)
    np.testing.assert_allclose(
        samples[:, :, 3], 1 + mask + mask**2 + mask**3, rtol=1e-6
    )


def test_entries_of_a_mask_are_independent():
    model = sequential(layers.Dropout(0.5), shape=(40,))
    kept = sample(model, np.ones((50, 40)), 40, inputs_per_mask=1).samples > 0
    for axis in range(3):  # neighbours in samples, in inputs, in units
        one, other = (
            np.take(kept, range(start, kept.shape[axis] - 1 + start), axis)
            for start in (0, 1)
        )
        table = [(one == a) & (other == b) for a in (0, 1) for b in (0, 1)]
        counts = np.array([cells.sum() for cells in table])
        expected = counts.sum() / 4
        # Chi-square with 3 degrees of freedom: 16.3 is passed once in a thousand.
        assert ((counts - expected) ** 2 / expected).sum() < 16.3


# --- masks, inputs and seeds


@pytest.mark.parametrize("inputs_per_mask", [1, 2, 100, 500, None])
def test_inputs_share_masks_as_asked(inputs_per_mask):
    model = sequential(layers.Dropout(0.5), shape=(64,))
    result = sample(model, np.ones((600, 64)), 2, inputs_per_mask=inputs_per_mask)
    for masks in result.samples:
        block = np.arange(600) // (inputs_per_mask or 600)
        starts = np.unique(block, return_index=True)[1]
        np.testing.assert_array_equal(masks, masks[starts][block])
        assert len(np.unique(masks, axis=0)) == len(starts)


@pytest.mark.parametrize("inputs_per_mask", [1, 7, 100, None])
@pytest.mark.parametrize("build", [classifier, Subclassed])
def test_numbers_do_not_depend_on_the_batch_size(build, inputs_per_mask):
    model, x = build(), data(150, 6)
    model(x[:1])
    whole = sample(model, x, 4, inputs_per_mask=inputs_per_mask).samples
    for batch_size in (29, 64):
        parts = sample(
            model, x, 4, inputs_per_mask=inputs_per_mask, batch_size=batch_size
        )
        np.testing.assert_allclose(parts.samples, whole, atol=1e-6)


def test_an_input_keeps_its_masks_when_others_follow_it():
    model, x = classifier(), data(40, 6)
    few = sample(model, x[:10], inputs_per_mask=1).samples
    np.testing.assert_allclose(
        few, sample(model, x, inputs_per_mask=1).samples[:, :10], atol=1e-6
    )


def test_fifty_samples_are_the_first_fifty_of_a_hundred():
    model, x = classifier(), data(5, 6)
    np.testing.assert_array_equal(
        sample(model, x, 50).samples, sample(model, x, 100).samples[:50]
    )


def test_seed_alone_decides():
    model, x = classifier(), data(5, 6)
    keras.utils.set_random_seed(1)
    state = np.random.get_state()[1].copy()
    first = sample(model, x, seed=3).samples
    assert (np.random.get_state()[1] == state).all()
    keras.utils.set_random_seed(2)
    np.testing.assert_array_equal(first, sample(model, x, seed=3).samples)
    assert (first != sample(model, x, seed=4).samples).any()
    assert MCDropoutPredictor(model).seed != MCDropoutPredictor(model).seed


# --- only dropout, and without trace


def compiled_with_everything():
    model = sequential(
        layers.GaussianNoise(1.0),
        layers.Dense(6),
        layers.BatchNormalization(),
        layers.Dropout(0.5),
        layers.Dense(3, "softmax"),
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(data(32, 6), np.arange(32) % 3, verbose=0)
    return model


def test_batch_normalization_and_noise_stay_in_inference():
    model, x = compiled_with_everything(), data(9, 6)
    noise, dense, normalization, drop, head = model.layers
    gamma, beta, mean, variance = normalization.get_weights()
    gain = gamma / np.sqrt(variance + normalization.epsilon)
    kernel, bias = dense.get_weights()
    folded = sequential(
        layers.Dense(6), layers.Dropout(0.5), layers.Dense(3, "softmax")
    )
    folded.set_weights(
        [kernel * gain, (bias - mean) * gain + beta, *head.get_weights()]
    )
    np.testing.assert_allclose(
        sample(model, x).samples, sample(folded, x).samples, atol=1e-5
    )


def test_augmentation_stays_off():
    x = data(3, 4, 4, 1)
    plain = sequential(layers.Dropout(0.5), shape=(4, 4, 1))
    augmented = sequential(
        layers.RandomFlip(), layers.RandomContrast(0.9), *plain.layers, shape=(4, 4, 1)
    )
    np.testing.assert_array_equal(
        sample(augmented, x).samples, sample(plain, x).samples
    )


@pytest.mark.parametrize("is_thinned", [True, False])
def test_the_model_is_bit_identical_afterwards(is_thinned, monkeypatch):
    if not is_thinned:
        monkeypatch.setattr(mc_dropout, "_chain_steps", lambda plan, layers: None)
    model, x = compiled_with_everything(), data(9, 6)
    prediction = model.predict(x, verbose=0)
    before = everything_of(model)
    sample(model, x)
    assert everything_of(model) == before
    np.testing.assert_array_equal(prediction, model.predict(x, verbose=0))
    # What this avoids: the book's one-liner moves the statistics.
    model(x, training=True)
    assert everything_of(model) != before


def test_the_model_is_bit_identical_after_an_interruption():
    @keras.saving.register_keras_serializable(package="tests")
    class Interrupts(layers.Layer):
        armed = False

        def call(self, inputs):
            if self.armed:
                raise KeyboardInterrupt
            return inputs

    model = sequential(layers.Dropout(0.5), Interrupts(), layers.Dense(2))
    model.compile("sgd", "mse")
    before = everything_of(model)
    Interrupts.armed = True
    with pytest.raises(KeyboardInterrupt):
        sample(model, data(4, 6))
    Interrupts.armed = False
    assert everything_of(model) == before
    x = data(4, 6)
    outputs = [keras.ops.convert_to_numpy(model(x)) for _ in range(2)]
    np.testing.assert_array_equal(*outputs)


def test_always_on_layers_are_sampled_like_plain_ones():
    x = data(3, 6)
    plain = sequential(layers.Dropout(0.5), layers.Dense(2))
    always = sequential(MCDropout(0.5), layers.Dense(2))
    always.set_weights(plain.get_weights())
    np.testing.assert_array_equal(sample(plain, x).samples, sample(always, x).samples)


# --- kinds of models


def test_subclassed_models_are_sampled():
    model = Subclassed()
    model(data(2, 6))
    assert sample(model, data(3, 6)).std.min() > 0


def test_inputs_may_come_from_another_prediction():
    model, x = classifier(), data(6, 6)
    means = sample(model, x).mean
    batches = (np.tile(sample(model, x).mean, 2)[:, :6] for _ in range(2))
    np.testing.assert_allclose(
        sample(model, batches).mean[:6], sample(model, np.tile(means, 2)[:, :6]).mean
    )


def test_threads_take_turns():
    model, x = classifier(), data(5, 6)
    alone = sample(model, x).samples
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        together = [pool.submit(sample, model, x) for _ in range(3)]
    for one in together:
        np.testing.assert_array_equal(one.result().samples, alone)


def test_dropout_of_another_signature_is_sampled():
    class Masked(layers.Dropout):
        def call(self, inputs, training=None, mask=None):
            return super().call(inputs, training=training)

    x = np.ones((1, 6, 4))
    model = sequential(layers.Masking(), Masked(np.float32(0.5)), shape=(6, 4))
    result = sample(model, x)
    assert result.std.min() > 0
    assert json.dumps(result.settings)


def test_dropout_three_models_deep_is_sampled():
    model = sequential(layers.Dropout(0.5), layers.Dense(6))
    for _ in range(2):
        model = sequential(model, layers.Dense(6))
    assert sample(model, data(3, 6)).std.min() > 0


def test_attention_weights_are_dropped_in_multi_head_attention():
    inputs = keras.Input((5, 8))
    outputs = layers.MultiHeadAttention(2, 4, dropout=0.5)(inputs, inputs)
    assert sample(keras.Model(inputs, outputs), data(3, 5, 8)).std.min() > 0


@pytest.mark.parametrize("container", [tuple, lambda ab: {"a": ab[0], "b": ab[1]}])
def test_several_inputs(container):
    inputs = container([keras.Input((6,), name="a"), keras.Input((6,), name="b")])
    summed = layers.Add()(list(keras.tree.flatten(inputs)))
    model = keras.Model(inputs, layers.Dropout(0.5)(summed))
    x = container([data(7, 6), data(7, 6, seed=1)])
    np.testing.assert_array_equal(
        sample(model, x).samples,
        sample(
            sequential(layers.Dropout(0.5)), data(7, 6) + data(7, 6, seed=1)
        ).samples,
    )


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="tf.function is TensorFlow's"
)
def test_a_call_traced_before_is_sampled_and_stays_deterministic():
    import tensorflow as tf

    class Traced(Subclassed):
        @tf.function
        def call(self, inputs, training=None):
            return self.head(self.drop(inputs, training=training))

    model, x = Traced(), data(3, 6)
    before = model(x).numpy()
    assert sample(model, x).std.min() > 0
    assert not tf.config.functions_run_eagerly()
    np.testing.assert_array_equal(model(x), before)
    never_traced = Traced()
    never_traced.built = True
    sample(never_traced, x)
    np.testing.assert_array_equal(never_traced(x), never_traced(x))


def test_several_outputs_come_back_in_their_structure():
    inputs = keras.Input((6,))
    hidden = layers.Dropout(0.5)(inputs)
    outputs = {
        "class": layers.Dense(3, "softmax")(hidden),
        "value": layers.Dense(1)(hidden),
        "fixed": layers.Dense(2)(inputs),
    }
    model = keras.Model(inputs, outputs)
    x = data(4, 6)
    results = sample(model, x)
    assert set(results) == {"class", "value", "fixed"}
    assert results["class"].mutual_information.shape == (4,)
    assert results["value"].std.min() > 0 and results["value"].mean.shape == (4, 1)
    assert results["fixed"].std.max() == 0
    alone = sample(keras.Model(inputs, outputs["value"]), x)
    np.testing.assert_allclose(results["value"].samples, alone.samples, atol=1e-6)
    logits = {"class": True, "fixed": False, "value": False}
    results = sample(model, x, from_logits=logits)
    np.testing.assert_allclose(results["value"].samples, alone.samples, atol=1e-6)


def test_an_input_cut_into_pieces_keeps_its_masks():
    class Windows(keras.Model):
        def __init__(self):
            super().__init__()
            self.drop = layers.Dropout(0.5)

        def call(self, inputs):
            pieces = keras.ops.reshape(inputs, (-1, 3))
            return keras.ops.reshape(self.drop(pieces), (-1, 6))

    model, x = Windows(), np.ones((9, 6))
    model(x)
    whole = sample(model, x, 20, inputs_per_mask=1).samples
    np.testing.assert_array_equal(
        whole, sample(model, x, 20, inputs_per_mask=1, batch_size=2).samples
    )
    assert (whole[:, :, :3] != whole[:, :, 3:]).any()
    shared = sample(model, x, 20, inputs_per_mask=None).samples
    np.testing.assert_array_equal(shared, shared[:, :1].repeat(9, 1))


class Block(keras.Model):
    """Two dropout layers, of which one may be switched off by the code itself."""

    def __init__(self, **options):
        super().__init__()
        self.first = layers.Dropout(0.5, name="first")
        self.second = layers.Dropout(0.5, name="second")
        self.options = options

    def call(self, inputs):
        return self.second(self.first(inputs), **self.options)


def test_training_false_in_the_code_is_honoured_and_reported():
    model, x = Block(training=False), np.ones((3, 6))
    model(x)
    with pytest.warns(UserWarning, match="training=False.*off: second"):
        result = sample(model, x)
    assert set(np.unique(result.samples)) == {0.0, 2.0}  # 4 with both
    assert result.settings["left_off"] == ["second"]
    assert [name for name, _ in result.settings["rates"]] == ["first"]
    model = Block()
    model(x)
    assert set(np.unique(sample(model, x).samples)) == {0.0, 4.0}


@pytest.mark.filterwarnings("ignore:The code of.*training=False")
def test_training_false_is_honoured_where_units_are_left_out(monkeypatch):
    inputs = keras.Input((6,))
    hidden = layers.Dense(8)(layers.Dropout(0.3)(inputs))
    outputs = layers.Dense(2)(layers.Dropout(0.05)(hidden, training=False))
    model, x = keras.Model(inputs, outputs), data(3, 6)
    fast = sample(model, x).samples
    monkeypatch.setattr(mc_dropout, "_chain_steps", lambda plan, layers: None)
    np.testing.assert_allclose(fast, sample(model, x).samples, atol=1e-5)


def test_a_model_that_switches_all_dropout_off_is_refused():
    class Frozen(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = Subclassed()

        def call(self, inputs):
            return self.inner(inputs, training=False)

    frozen = Frozen()
    frozen(data(2, 6))
    with pytest.raises(ValueError, match="all of its dropout layers.*training=False"):
        sample(frozen, data(2, 6))


def test_dropout_behind_a_condition_on_training_is_refused():
    class Conditional(Subclassed):
        def call(self, inputs, training=None):
            return self.head(self.drop(inputs) if training else inputs)

    class HalfConditional(Subclassed):
        def call(self, inputs, training=None):
            hidden = self.drop(inputs)
            return self.head(self.drop(hidden) if training else hidden)

    for model in (Conditional(), HalfConditional()):
        model(data(2, 6))
        with pytest.raises(ValueError, match="dropout.*only where.*training=True"):
            sample(model, data(2, 6))


def test_what_a_pass_would_change_stays():
    class Moves(keras.Model):
        def __init__(self):
            super().__init__()
            self.normalize = layers.BatchNormalization()
            self.noise = layers.GaussianNoise(1.0)
            self.drop = layers.Dropout(0.5)

        def call(self, inputs):
            hidden = self.normalize(inputs, training=True)
            return self.drop(self.noise(hidden, training=True))

    model = Moves()
    model(data(2, 6))
    model.compile("adam", "mse")
    before = everything_of(model)
    sample(model, data(9, 6))
    assert everything_of(model) == before


# --- the fast ways, held to the plain one


def residual():
    inputs = keras.Input((6,))
    hidden = layers.Dropout(0.3)(layers.Dense(6, "relu")(inputs))
    outputs = layers.Dense(3)(layers.Dropout(0.3)(layers.Add()([inputs, hidden])))
    return keras.Model(inputs, outputs)


def branches():
    inputs = keras.Input((6,))
    left = layers.Dense(4)(layers.Dropout(0.3)(inputs))
    right = layers.Dense(4)(layers.Dropout(0.3)(inputs))
    return keras.Model(inputs, layers.Multiply()([left, right]))


def twice():
    drop = layers.Dropout(0.3)
    return sequential(drop, layers.Dense(6, "tanh"), drop, layers.Dense(3))


def images():
    return sequential(
        layers.Conv2D(2, 3),
        layers.Dropout(0.3),
        layers.Flatten(),
        layers.Dropout(0.6),
        layers.Dense(4, "relu"),
        layers.Dropout(0.3),
        layers.Dense(3, "softmax"),
        shape=(5, 5, 1),
    )


def spatial():
    return sequential(
        layers.SpatialDropout2D(0.3),
        layers.Conv2D(4, 2, activation="relu"),
        layers.SpatialDropout2D(0.3),
        layers.Flatten(),
        layers.Dropout(0.3),
        layers.Dense(3),
        shape=(5, 5, 3),
    )


def stack(*behind, head=3):
    return lambda: sequential(
        layers.Dense(8, "relu"),
        layers.Dropout(0.3),
        layers.Dense(7),
        *(make() for make in behind),
        layers.Dense(head, "softmax"),
    )


ZOO = {  # whether dropped units are left out, and the model
    "dense": (True, classifier),
    "mostly dropped": (
        True,
        lambda: sequential(
            layers.Dropout(0.9), layers.Dense(5, "relu"), layers.Dense(2)
        ),
    ),
    "sigmoid after dropout": (
        True,
        stack(lambda: layers.Dropout(0.4), lambda: layers.Activation("sigmoid")),
    ),
    "softplus, unknown here": (
        True,
        stack(lambda: layers.Activation("softplus"), lambda: layers.Dropout(0.4)),
    ),
    "all that is known": (
        True,
        stack(
            *(
                lambda name=name: layers.Activation(name)
                for name in ("elu", "selu", "tanh", "sigmoid", "relu", "linear")
            ),
            lambda: layers.Dropout(0.4),
        ),
    ),
    "softmax before dropout": (
        True,
        stack(lambda: layers.Activation("softmax"), lambda: layers.Dropout(0.4)),
    ),
    "layer normalization after dropout": (
        True,
        stack(lambda: layers.Dropout(0.4), layers.LayerNormalization),
    ),
    "batch normalization before dropout": (
        True,
        stack(layers.BatchNormalization, layers.ReLU, lambda: layers.Dropout(0.4)),
    ),
    "batch normalization after dropout": (
        True,
        stack(lambda: layers.Dropout(0.4), layers.BatchNormalization),
    ),
    "alpha": (True, stack(lambda: layers.AlphaDropout(0.4))),
    "gaussian": (True, stack(lambda: layers.GaussianDropout(0.4))),
    "gaussian first": (
        True,
        lambda: sequential(layers.GaussianDropout(0.2), layers.Dense(3)),
    ),
    "alpha first": (
        True,
        lambda: sequential(layers.AlphaDropout(0.2), layers.Dense(3)),
    ),
    "two in a row": (
        True,
        stack(lambda: layers.Dropout(0.4), lambda: layers.AlphaDropout(0.4)),
    ),
    "dropout last": (
        True,
        lambda: sequential(layers.Dropout(0.4), layers.Dense(4), layers.Dropout(0.5)),
    ),
    "noise shape": (True, stack(lambda: layers.Dropout(0.4, noise_shape=(None, 1)))),
    "no bias, prelu": (
        True,
        stack(
            lambda: layers.Dense(9, use_bias=False, activation=layers.PReLU()),
            lambda: layers.Dropout(0.4),
        ),
    ),
    "noise and no rate": (
        True,
        stack(
            lambda: layers.GaussianNoise(1.0),
            lambda: layers.Dropout(0.0),
            lambda: layers.Dropout(0.4),
        ),
    ),
    "one layer twice": (True, twice),
    "images": (True, images),
    "images by channel": (
        False,
        lambda: sequential(
            layers.Dropout(0.3),
            layers.Flatten(data_format="channels_first"),
            layers.Dense(3),
            shape=(3, 4, 2),
        ),
    ),
    "spatial": (False, spatial),
    "nested": (
        True,
        lambda: sequential(
            layers.Dense(6), classifier(), sequential(layers.Dense(2), shape=(4,))
        ),
    ),
    "residual": (False, residual),
    "residual behind dropout": (
        False,
        lambda: sequential(layers.Dropout(0.3), residual(), layers.Dense(3)),
    ),
    "two branches": (False, branches),
    "time steps": (
        False,
        lambda: sequential(
            layers.Dropout(0.4), layers.Dense(4), layers.Dropout(0.4), shape=(5, 6)
        ),
    ),
    "bfloat16": (
        False,
        lambda: sequential(
            layers.Dropout(0.4, dtype="bfloat16"), layers.Dense(4, dtype="bfloat16")
        ),
    ),
}


@pytest.mark.parametrize("inputs_per_mask", [1, 70, 500, None])
@pytest.mark.parametrize("name", ZOO)
def test_fast_samples_are_the_plain_ones(name, inputs_per_mask, monkeypatch):
    is_thinned, build = ZOO[name]
    model = build()
    for variable in model.variables:
        if "float" in variable.dtype:
            values = data(*variable.shape, seed=len(variable.path))
            is_variance = variable.path.endswith("variance")
            variable.assign(np.abs(values) + 0.5 if is_variance else values)
    x = data(150, *model.input_shape[1:])
    monkeypatch.setattr(mc_dropout, "_SAMPLES_PER_COMPILATION", 5)
    fast = sample(model, x, 5, inputs_per_mask=inputs_per_mask)
    assert fast.settings["thinned"] == is_thinned
    # Plain: the whole model for each sample, nothing taken over from the last.
    monkeypatch.setattr(mc_dropout, "_graph", lambda operation: None)
    monkeypatch.setattr(mc_dropout, "_compile", lambda function: None)
    plain = sample(model, x, 5, inputs_per_mask=inputs_per_mask)
    assert not plain.settings["thinned"]
    # Compiled functions round bfloat16, of 8 bits, at other places.
    tolerance = 2**-6 if name == "bfloat16" else 1e-5
    atol = tolerance * np.abs(plain.samples).max()
    np.testing.assert_allclose(fast.samples, plain.samples, atol=atol)


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_samples_are_the_plain_ones(kind, monkeypatch):
    model = KINDS[kind]()
    x = [data(20, *inputs.shape[1:], seed=3) for inputs in model.inputs]
    monkeypatch.setattr(mc_dropout, "_SAMPLES_PER_COMPILATION", 3)
    compiled = sample(model, x, 3, inputs_per_mask=7)
    monkeypatch.setattr(mc_dropout, "_compile", lambda function: None)
    plain = sample(model, x, 3, inputs_per_mask=7)
    assert plain.std.max() > 0
    np.testing.assert_allclose(compiled.samples, plain.samples, atol=1e-5)


def test_large_products_taken_in_parts_are_the_whole():
    for shape in [(3, 5, 7), (40, 300, 70), (100, 784, 513), (700, 9, 33), (600, 1, 9)]:
        left, right = data(*shape[:2]), data(*shape[1:], seed=1)
        np.testing.assert_allclose(
            mc_dropout._matmul(left, right),
            left.astype(np.float64) @ right,
            atol=1e-5 * np.sqrt(shape[1]),
        )


def test_no_two_transposed_matrices_are_multiplied(monkeypatch):
    # OpenBLAS 0.3.31 takes such products wrongly, now and then, in several threads.
    products = []

    def matmul(left, right, **options):
        products.append(right.strides[-1] == right.itemsize or right.shape[-1] == 1)
        return multiply(left, right, **options)

    multiply = np.matmul
    monkeypatch.setattr(np, "matmul", matmul)
    for shape in [(3, 5, 7), (100, 784, 513), (700, 9, 33)]:
        left, right = data(*shape[:2]), data(*shape[1:], seed=1)
        expected = left.astype(np.float64) @ right
        product = mc_dropout._matmul(np.asfortranarray(left), np.asfortranarray(right))
        np.testing.assert_allclose(product, expected, atol=1e-3)
    assert len(products) > 5 and all(products)


class Counts(layers.Layer):
    calls = 0

    def call(self, inputs):
        Counts.calls += 1
        return inputs


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("skip", [False, True])
def test_what_no_dropout_precedes_is_computed_once(depth, skip):
    inputs = keras.Input((6,))
    fixed = Counts()(inputs)
    hidden = layers.Dropout(0.5)(fixed)
    outputs = layers.Add()([hidden, fixed]) if skip else layers.Dense(2)(hidden)
    model = keras.Model(inputs, outputs)
    for _ in range(depth):
        model = sequential(layers.Dense(6), model)
    calls = []
    for num_samples in (2, 30):
        Counts.calls = 0
        assert sample(model, data(4, 6), num_samples).std.max() > 0
        calls.append(Counts.calls)
    assert calls[0] == calls[1]


@pytest.mark.parametrize("build", [classifier, residual])
def test_a_second_call_compiles_nothing_and_sees_new_weights(build, monkeypatch):
    traces = []
    compile_function = mc_dropout._compile

    def compile_and_count(function):
        def traced(*arguments):
            traces.append(function)
            return function(*arguments)

        return compile_function(traced)

    monkeypatch.setattr(mc_dropout, "_compile", compile_and_count)
    model, x = build(), data(40, 6)
    predictor = MCDropoutPredictor(model, num_samples=25, seed=1)
    before = predictor.predict(x, batch_size=20, verbose=0)
    compiles = keras.backend.backend() != "torch" and not before.settings["thinned"]
    assert len(traces) == compiles
    model.set_weights([1 + weights for weights in model.get_weights()])
    after = predictor.predict(x, batch_size=20, keep_samples=True, verbose=0)
    assert len(traces) == compiles
    expected = sample(model, x, 25, seed=1)
    np.testing.assert_allclose(after.samples, expected.samples, rtol=1e-5, atol=1e-5)
    assert (before.mean != after.mean).any()


@pytest.mark.parametrize("is_eager", [False, True])
def test_code_that_is_not_keras_runs_for_every_sample(is_eager):
    def numbered(inputs):
        numbered.calls += 1
        return 0 * inputs + numbered.calls

    numbered.calls = 0
    layer = layers.Activation(numbered) if is_eager else layers.Lambda(numbered)
    model = sequential(layers.Dropout(0.5), layer, shape=(5, 6))
    model.compile(run_eagerly=is_eager)
    samples = sample(model, data(2, 5, 6), 30).samples[:, 0, 0, 0]
    np.testing.assert_array_equal(np.diff(samples), 1)


def test_compiled_functions_are_neither_made_nor_replaced():
    model, x = compiled_with_everything(), data(9, 6)
    model.predict(x, verbose=0)
    functions = model.predict_function, model.train_function
    sample(model, x)
    assert (model.predict_function, model.train_function) == functions


def test_memory_does_not_grow_with_the_number_of_samples():
    for model in (classifier(), residual()):
        peaks = []
        for num_samples in (20, 220):
            predictor = MCDropoutPredictor(model, num_samples=num_samples, seed=1)
            tracemalloc.start()
            predictor.predict(data(100, 6), verbose=0)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        of_all_samples = 200 * 100 * model.output_shape[-1] * 8
        assert peaks[1] - peaks[0] < of_all_samples / 2


# --- where inputs come from


class Batches(keras.utils.PyDataset):
    def __init__(self, *parts):
        super().__init__()
        self.parts = parts

    def __len__(self):
        return len(self.parts)

    def __getitem__(self, index):
        return self.parts[index]


def test_batches_of_any_source_give_the_same_samples():
    model, x = classifier(), data(23, 6)
    expected = sample(model, x).samples
    parts = np.split(x, [1, 9, 16])
    for source in (
        Batches(*parts),
        Batches(*((part, part[:, 0], part[:, 0]) for part in parts)),
        iter(parts),
        ((part, part[:, 0]) for part in parts),
        keras.ops.convert_to_tensor(x),
        pd.DataFrame(x),
    ):
        np.testing.assert_allclose(sample(model, source).samples, expected, atol=1e-6)


def test_sequences_of_other_lengths_are_not_joined():
    model = sequential(layers.GRU(3, dropout=0.4), shape=(None, 6))
    parts = [data(3, 4, 6), data(2, 4, 6, seed=1), data(4, 5, 6, seed=2)]
    samples = sample(model, iter(parts), 3).samples
    short = sample(model, np.concatenate(parts[:2]), 3).samples
    np.testing.assert_allclose(samples[:, :5], short, atol=1e-6)
    # Sequences of one mask: those after the short ones have the same.
    long = sample(model, parts[2], 3).samples
    np.testing.assert_allclose(samples[:, 5:], long, atol=1e-6)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="tf.data is TensorFlow's"
)
def test_tf_data_of_known_and_unknown_length():
    import tensorflow as tf

    model, x = classifier(), data(23, 6)
    expected = sample(model, x).samples
    whole = tf.data.Dataset.from_tensor_slices((x, x[:, 0], x[:, 1])).batch(5)
    unknown = whole.map(lambda x, y, w: (x, y)).filter(lambda x, y: True)
    for source in (whole, unknown, unknown.map(lambda x, y: x)):
        np.testing.assert_allclose(sample(model, source).samples, expected, atol=1e-6)


@pytest.mark.parametrize("source", ["dict", "tuple"])
def test_several_inputs_in_batches(source):
    pair = {"a": keras.Input((6,), name="a"), "b": keras.Input((6,), name="b")}
    added = layers.Add()(list(pair.values()))
    inputs = pair if source == "dict" else tuple(pair.values())
    model = keras.Model(inputs, layers.Dropout(0.5)(added))
    x = {"a": data(7, 6), "b": data(7, 6, seed=1)}
    if source == "tuple":
        x = tuple(x.values())
    batches = [
        (
            keras.tree.map_structure(lambda a, r=rows: a[r], x),
            np.ones(len(range(7)[rows])),
        )
        for rows in (slice(0, 4), slice(4, 7))
    ]
    np.testing.assert_allclose(
        sample(model, iter(batches)).samples, sample(model, x).samples, atol=1e-6
    )


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_whole_numbers_and_half_precision(policy):
    keras.utils.set_random_seed(0)  # in bfloat16 some weights leave a class no spread
    model = sequential(
        layers.Rescaling(1 / 255, dtype=policy),
        layers.Dense(8, "relu", dtype=policy),
        layers.Dropout(0.5, dtype=policy),
        layers.Dense(3, "softmax", dtype=policy),
    )
    x = np.random.default_rng(0).integers(0, 256, (5, 6), dtype=np.uint8)
    result = sample(model, x)
    assert result.std.min() > 0 and result.mutual_information.min() > 0
    np.testing.assert_allclose(result.mean.sum(axis=1), 1, atol=5e-3)


# --- as many samples as an input needs


def settled_and_unsettled():
    """A model whose first inputs have one class in all samples, and the last do not."""
    model = sequential(layers.Dropout(0.5), layers.Dense(2, "softmax"), shape=(8,))
    kernel = np.tile(np.float32([[1, -1]]), (8, 1))
    model.layers[-1].set_weights([kernel, np.float32([0, 0])])
    sure = np.full((5, 8), 3.0)
    unsure = np.tile([1.0, -1.0], (5, 4))
    return model, np.concatenate([sure, unsure]).astype("float32")


@pytest.mark.parametrize("inputs_per_mask", [1, 500])
def test_an_input_whose_class_has_settled_is_left_alone(inputs_per_mask):
    model, x = settled_and_unsettled()
    predictor = MCDropoutPredictor(
        model, num_samples=100, seed=1, inputs_per_mask=inputs_per_mask
    )
    full = predictor.predict(x, keep_samples=True, verbose=0)
    few = predictor.predict(x, keep_samples=True, min_samples=20, verbose=0)
    assert (few.num_samples[:5] == 20).all() and few.num_samples[5:].max() == 100
    np.testing.assert_array_equal(few.mean.argmax(axis=1), full.mean.argmax(axis=1))
    for row, count in enumerate(few.num_samples):
        same = few.samples[:count, row], full.samples[:count, row]
        np.testing.assert_allclose(*same, atol=1e-6)
        assert np.isnan(few.samples[count:, row]).all()
        np.testing.assert_allclose(few.mean[row], same[0].mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(few.std[row], same[0].std(axis=0), atol=1e-6)
    assert list(few.to_frame()["num_samples"]) == list(few.num_samples)
    assert full.num_samples == 100 and "num_samples" not in full.to_frame()


def test_settled_classes_are_those_of_all_samples():
    model, x = classifier(), data(400, 6)
    predictor = MCDropoutPredictor(model, num_samples=1000, inputs_per_mask=1, seed=2)
    full = predictor.predict(x, verbose=0)
    few = predictor.predict(x, min_samples=20, verbose=0)
    early = few.num_samples < 1000
    assert early.any() and few.num_samples.min() >= 20
    wrong = full.mean.argmax(axis=1) != few.mean.argmax(axis=1)
    assert not wrong[~early].any()
    assert wrong[early].mean() <= 0.01


def test_a_dense_map_has_settled_where_all_its_positions_have():
    model, x = settled_and_unsettled()
    sure, unsure = x[[0, -1]]
    inputs = keras.Input((2, 8))
    maps = np.stack([[sure, sure], [sure, unsure], [unsure, sure]])
    positions = keras.Model(inputs, model.layers[1](model.layers[0](inputs)))
    counts = (
        MCDropoutPredictor(positions, seed=1, inputs_per_mask=1)
        .predict(maps, min_samples=20, verbose=0)
        .num_samples
    )
    assert counts[0] == 20 and counts[1:].min() > 20


def test_min_samples_of_regression_is_refused():
    model = sequential(layers.Dropout(0.5), layers.Dense(2))
    with pytest.raises(ValueError, match="`min_samples` needs"):
        MCDropoutPredictor(model).predict(data(3, 6), min_samples=5, verbose=0)


# --- what is computed


def test_statistics_are_those_of_the_kept_samples():
    result = sample(classifier(), data(9, 6), 40)
    samples = result.samples.astype(np.float64)
    mean = samples.mean(axis=0)
    np.testing.assert_allclose(result.mean, mean, atol=1e-6)
    np.testing.assert_allclose(result.std, samples.std(axis=0), atol=1e-6)
    total = -(mean * np.log(mean)).sum(axis=-1)
    expected = -(samples * np.log(samples)).sum(axis=-1).mean(axis=0)
    votes = np.stack([(samples.argmax(-1) == c).mean(axis=0) for c in range(4)])
    np.testing.assert_allclose(result.predictive_entropy, total, atol=1e-6)
    np.testing.assert_allclose(result.expected_entropy, expected, atol=1e-6)
    np.testing.assert_allclose(result.mutual_information, total - expected, atol=1e-6)
    np.testing.assert_allclose(result.variation_ratio, 1 - votes.max(axis=0))


def test_a_small_deviation_beside_a_large_mean_survives():
    model = sequential(layers.Dropout(0.5), layers.Dense(1))
    model.layers[-1].set_weights([np.full((6, 1), 0.01, "float32"), np.float32([1000])])
    result = sample(model, np.ones((1, 6)), 100)
    exact = result.samples.astype(np.float64).std(axis=0)
    np.testing.assert_allclose(result.std, exact, rtol=1e-9)


def test_logits_pass_the_softmax_before_they_are_averaged():
    logits = sequential(layers.Dropout(0.5), layers.Dense(3))
    softmax = sequential(layers.Dropout(0.5), layers.Dense(3, "softmax"))
    softmax.set_weights(logits.get_weights())
    np.testing.assert_allclose(
        sample(logits, data(5, 6), from_logits=True).mean,
        sample(softmax, data(5, 6)).mean,
        atol=1e-6,
    )


def test_a_single_logit_passes_the_sigmoid():
    logit = sequential(layers.Dropout(0.5), layers.Dense(1))
    sigmoid = sequential(layers.Dropout(0.5), layers.Dense(1, "sigmoid"))
    sigmoid.set_weights(logit.get_weights())
    np.testing.assert_allclose(
        sample(logit, data(5, 6), from_logits=True).mean,
        sample(sigmoid, data(5, 6)).mean,
        atol=1e-6,
    )


def test_dense_maps_have_measures_at_every_position():
    model = sequential(layers.Dropout(0.5), layers.Dense(3, "softmax"), shape=(3, 3, 3))
    result = sample(model, data(3, 3, 3, 3))
    mean = result.samples.astype(np.float64).mean(axis=0)
    total = -(mean * np.log(mean)).sum(axis=-1)
    np.testing.assert_allclose(result.predictive_entropy, total, atol=1e-5)
    assert result.variation_ratio.shape == (3, 3, 3)


def test_regression_has_mean_and_deviation_only():
    result = sample(sequential(layers.Dropout(0.5), layers.Dense(2)), data(3, 6))
    assert result.predictive_entropy is None and result.variation_ratio is None
    assert list(result.to_frame(["u", "v"])) == ["mean u", "mean v", "std u", "std v"]


def test_one_sample_has_deviation_zero():
    result = sample(classifier(), data(1, 6), 1)
    assert (result.std == 0).all() and (result.mutual_information == 0).all()


def test_samples_are_kept_only_on_request():
    predictor = MCDropoutPredictor(classifier(), num_samples=2)
    assert predictor.predict(data(3, 6), verbose=0).samples is None


def test_frame_names_the_predicted_class():
    result = sample(classifier(), data(9, 6))
    frame = result.to_frame(list("abcd"))
    winner = result.mean.argmax(axis=1)
    assert list(frame["predicted"]) == ["abcd"[i] for i in winner]
    np.testing.assert_array_equal(frame["probability"], result.mean.max(axis=1))
    np.testing.assert_array_equal(frame["std"], result.std[np.arange(9), winner])
    with pytest.raises(ValueError, match="class_names"):
        result.to_frame("abc")


@pytest.mark.parametrize("keep_samples", [True, False])
def test_saved_prediction_loads_with_its_settings(tmp_path, keep_samples):
    predictor = MCDropoutPredictor(classifier(), num_samples=3, seed=5)
    result = predictor.predict(data(4, 6), keep_samples=keep_samples, verbose=0)
    result.save(tmp_path / "prediction.npz")
    loaded = MCPrediction.load(tmp_path / "prediction.npz")
    for name, value in vars(result).items():
        np.testing.assert_equal(getattr(loaded, name), value)
    assert loaded.settings["seed"] == 5
    assert [rate for _, rate in loaded.settings["rates"]] == [0.2, 0.5]
    assert os.listdir(tmp_path) == ["prediction.npz"]
    with pytest.raises(ValueError, match="`path`"):
        result.save(tmp_path / "nowhere" / "prediction.npz")


class Trap:
    """Whoever unpickles it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path, whole: path.write_bytes(b"PK nothing"),
        lambda path, whole: path.write_bytes(b""),
        lambda path, whole: path.write_bytes(whole[: len(whole) // 2]),
        lambda path, whole: path.write_bytes(pickle.dumps(Trap(path.parent / "a"))),
        lambda path, whole: np.savez(path, mean=np.array([Trap(path.parent / "a")])),
        lambda path, whole: np.savez(path, weights=np.ones(3)),
        lambda path, whole: np.savez(path, facts=json.dumps({"num_samples": 5})),
    ],
    ids=["noise", "empty", "half", "pickle", "pickle inside", "npz", "no mean"],
)
def test_a_damaged_file_is_named(damage, tmp_path):
    path = tmp_path / "prediction.npz"
    predictor = MCDropoutPredictor(classifier(), num_samples=2)
    predictor.predict(data(3, 6), verbose=0).save(path)
    damage(path, path.read_bytes())
    with pytest.raises(ValueError, match="`path`.*Received: path=.*prediction.npz"):
        MCPrediction.load(path)
    assert os.listdir(tmp_path) == ["prediction.npz"]


@pytest.mark.parametrize("failing", ["open", "replace"])
def test_a_full_disk_leaves_the_older_prediction(failing, tmp_path, monkeypatch):
    path = tmp_path / "prediction.npz"
    path.write_text("old")
    prediction = MCDropoutPredictor(classifier(), num_samples=2).predict(
        data(3, 6), verbose=0
    )
    with monkeypatch.context() as full, pytest.raises(OSError) as error:
        if failing == "replace":
            full.setattr(os, "replace", lambda *_: open("/dev/full/no"))
        else:
            new = tmp_path / f".prediction.npz.{os.getpid()}.new"
            new.symlink_to("/dev/full")
        prediction.save(path)
    assert f"cannot be written to {path}: [Errno " in str(error.value)
    assert path.read_text() == "old" and os.listdir(tmp_path) == [path.name]


# --- the book's layers


@pytest.mark.parametrize("layer", [MCDropout, MCAlphaDropout])
def test_always_on_layers_drop_in_predict_and_load_in_safe_mode(layer, tmp_path):
    model = sequential(layer(0.5, noise_shape=(None, 6), seed=3))
    model.save(tmp_path / "model.keras")
    model = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    x = np.ones((4, 6))
    first, second = model.predict(x, verbose=0), model.predict(x, verbose=0)
    assert (first != second).any()
    assert model.layers[0].get_config()["noise_shape"] in [(None, 6), [None, 6]]


# --- refusals


@pytest.mark.parametrize(
    ("stack", "shape", "message"),
    [
        ([layers.Dense(2)], (6,), "no dropout.*dense"),
        ([layers.Dropout(0.0)], (6,), "no dropout.*dropout"),
        ([layers.Dropout(0.5, noise_shape=(4, 6))], (6,), "fixed batch size"),
    ],
)
def test_models_that_would_be_silent_are_refused(stack, shape, message):
    with pytest.raises(ValueError, match=message):
        MCDropoutPredictor(sequential(*stack, shape=shape))


def test_stateful_layers_are_refused():
    model = keras.Sequential(
        [
            keras.Input(batch_shape=(2, 5, 6)),
            layers.LSTM(3, stateful=True, dropout=0.5),
        ]
    )
    with pytest.raises(ValueError, match="'lstm.*stateful"):
        MCDropoutPredictor(model)


def test_dropout_that_a_layer_draws_for_itself_is_refused():
    class Draws(layers.Layer):
        dropout = 0.5

        def call(self, inputs, training=None):
            return keras.random.dropout(inputs, 0.5) if training else inputs

    class Cell(layers.LSTMCell):
        pass

    for layer, shape in ((Draws(), (6,)), (layers.RNN(Cell(3, dropout=0.5)), (5, 6))):
        with pytest.raises(ValueError, match="cannot be sampled"):
            MCDropoutPredictor(sequential(layer, shape=shape))


def test_a_dropout_that_is_never_reached_is_refused():
    class Forgetful(Subclassed):
        def call(self, inputs):
            return self.head(inputs)

    model = Forgetful()
    model(data(2, 6))
    with pytest.raises(ValueError, match="reached none"):
        sample(model, data(2, 6))


@pytest.mark.parametrize(
    "options",
    [
        {"num_samples": 0},
        {"num_samples": 2.5},
        {"num_samples": True},
        {"inputs_per_mask": 0},
        {"inputs_per_mask": "all"},
        {"seed": -1},
        {"from_logits": 1},
    ],
)
def test_bad_arguments_are_named(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"`{name}`.*Received"):
        MCDropoutPredictor(classifier(), **options)


def test_bad_models_and_inputs_are_named():
    with pytest.raises(ValueError, match="`model` must be a built"):
        MCDropoutPredictor(keras.Sequential([layers.Dropout(0.5)]))
    predictor = MCDropoutPredictor(classifier(), num_samples=2)
    with pytest.raises(ValueError, match="at least one input"):
        predictor.predict(np.empty((0, 6)))
    with pytest.raises(ValueError, match="at least one input"):
        predictor.predict(iter([]))
    with pytest.raises(ValueError, match="as many in each"):
        predictor.predict((np.ones((3, 6)), np.ones((2, 6))))
    with pytest.raises(ValueError, match="`batch_size`"):
        predictor.predict(data(2, 6), batch_size=0)
    with pytest.raises(ValueError, match="`verbose`"):
        predictor.predict(data(2, 6), verbose="loud")
    with pytest.raises(ValueError, match="`keep_samples`"):
        predictor.predict(data(2, 6), keep_samples="all")
    for bad in (1, 3, 2.0):
        with pytest.raises(ValueError, match="`min_samples`.*Received"):
            predictor.predict(data(2, 6), min_samples=bad)
    with pytest.raises(ValueError, match="`from_logits` must be one bool"):
        MCDropoutPredictor(classifier(), from_logits=[True] * 3).predict(data(2, 6))
    with pytest.raises(ValueError, match="not finite"):
        predictor.predict(np.full((2, 6), np.nan), verbose=0)
