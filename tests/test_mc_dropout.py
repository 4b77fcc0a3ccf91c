import concurrent.futures
import json
import os

import keras
import numpy as np
import pytest

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


@pytest.mark.parametrize("inputs_per_mask", [1, 7, 500, None])
def test_numbers_do_not_depend_on_the_batch_size(inputs_per_mask):
    model, x = classifier(), data(530, 6)
    whole = sample(model, x, 4, inputs_per_mask=inputs_per_mask).samples
    for batch_size in (7, 32, 257):
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


def test_the_model_is_bit_identical_afterwards():
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
    np.testing.assert_array_equal(model(x), model(x))


def test_always_on_layers_are_sampled_like_plain_ones():
    x = data(3, 6)
    plain = sequential(layers.Dropout(0.5), layers.Dense(2))
    always = sequential(MCDropout(0.5), layers.Dense(2))
    always.set_weights(plain.get_weights())
    np.testing.assert_array_equal(sample(plain, x).samples, sample(always, x).samples)


# --- kinds of models


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.drop = layers.Dropout(0.5)
        self.head = layers.Dense(2)

    def call(self, inputs, training=None):
        return self.head(self.drop(inputs, training=training))


def test_subclassed_models_are_sampled():
    model = Subclassed()
    model(data(2, 6))
    assert sample(model, data(3, 6)).std.min() > 0


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
    frame = result.to_frame("abcd")
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


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "prediction.npz"
    path.write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match="prediction.npz is not a saved MCPrediction"):
        MCPrediction.load(path)


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
        ([layers.LSTM(3, dropout=0.2)], (5, 6), "cannot be sampled.*without a"),
        ([layers.GRU(3, recurrent_dropout=0.2)], (5, 6), "cannot be sampled"),
        ([layers.LSTM(3, dropout=np.float32(0.2))], (5, 6), "cannot be sampled"),
        ([layers.TimeDistributed(layers.Dropout(0.5))], (5, 6), "one time step"),
        ([layers.Dropout(0.5, noise_shape=(4, 6))], (6,), "fixed batch size"),
    ],
)
def test_models_that_would_be_silent_are_refused(stack, shape, message):
    with pytest.raises(ValueError, match=message):
        MCDropoutPredictor(sequential(*stack, shape=shape))


def test_attention_without_a_dropout_layer_is_refused():
    inputs = keras.Input((5, 8))
    outputs = layers.Attention(dropout=0.5)([inputs, inputs])
    with pytest.raises(ValueError, match="attention.*cannot be sampled"):
        MCDropoutPredictor(keras.Model(inputs, outputs))


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
    with pytest.raises(ValueError, match="as many in each"):
        predictor.predict((np.ones((3, 6)), np.ones((2, 6))))
    with pytest.raises(ValueError, match="`batch_size`"):
        predictor.predict(data(2, 6), batch_size=0)
    with pytest.raises(ValueError, match="`verbose`"):
        predictor.predict(data(2, 6), verbose="loud")
    with pytest.raises(ValueError, match="not finite"):
        predictor.predict(np.full((2, 6), np.nan), verbose=0)
    two = keras.Model(
        inputs := keras.Input((6,)), [layers.Dropout(0.5)(inputs), inputs]
    )
    with pytest.raises(ValueError, match="one output.*2 outputs"):
        MCDropoutPredictor(two).predict(data(2, 6), verbose=0)
