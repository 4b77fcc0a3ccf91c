import io
import json
import random
import warnings

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

from callbacks.monitors import ActivationMonitor, GradientMonitor

# Tiny models train sooner so; on JAX sooner when compiled.
BACKEND = keras.backend.backend()
EAGERLY = BACKEND == "tensorflow"


def rows(num_rows=16, width=3, seed=0):
    return np.random.default_rng(seed).normal(size=(num_rows, width)).astype("float32")


def stack(*stacked, width=3, loss="mse", optimizer="sgd", **options):
    model = keras.Sequential([keras.Input((width,)), *stacked])
    model.compile(optimizer, loss, **({"run_eagerly": EAGERLY} | options))
    return model


def fit(model, *callbacks, x=None, y=None, **options):
    x = rows(8, model.input_shape[-1]) if x is None else x
    y = np.ones((8, 1), "float32") if y is None else y
    options = {"batch_size": 8, "shuffle": False, "verbose": 0} | options
    return model.fit(x, y, callbacks=list(callbacks), **options).history


def first(monitor):
    """The reading before the first epoch, by layer or by layer and variable."""
    frame = monitor.to_frame()
    names = ["layer", "variable"] if "variable" in frame else ["layer"]
    return frame[frame["epoch"] == frame["epoch"].min()].set_index(names)


class Counting(layers.Layer):
    """A layer with a state that each call changes, also outside of training."""

    def build(self, shape):
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, inputs):
        self.count.assign_add(1.0)
        return inputs * self.count


class Plain(keras.Model):
    """A model with a weight of its own, an unused layer and no `training`."""

    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(2, "relu", name="hidden")
        self.unused = layers.Dense(2, name="unused")
        self.unused.build((None, 2))
        self.factor = self.add_weight(shape=(), initializer="ones", name="factor")

    def call(self, inputs):
        return keras.ops.mean(self.hidden(inputs), axis=-1, keepdims=True) * self.factor


def everything(run_eagerly):
    keras.utils.set_random_seed(3)
    model = stack(
        layers.Dense(6, "relu", kernel_regularizer="l2"),
        layers.BatchNormalization(),
        layers.Dropout(0.5),
        Counting(),
        layers.Dense(1, activity_regularizer="l2"),
        optimizer="adam",
        metrics=["mae"],
        run_eagerly=run_eagerly,
    )
    return model


# neither monitor changes anything


@pytest.mark.parametrize("run_eagerly", sorted({False, EAGERLY}))
def test_training_is_the_same_to_the_bit_with_and_without_them(run_eagerly):
    x, y = rows(), rows(16, 1, seed=1)
    ends = []
    for monitors in ([], [GradientMonitor(x, y), ActivationMonitor(x)]):
        model = everything(run_eagerly)
        history = fit(model, *monitors, x=x, y=y, epochs=2, shuffle=True)
        variables = model.variables + model.optimizer.variables
        variables += model.metrics_variables
        values = [keras.ops.convert_to_numpy(each) for each in variables]
        generators = [random.getstate(), np.random.get_state()[1].tolist()]
        ends.append((history, generators, values))
        assert not any("call" in vars(layer) for layer in model.layers)
    (history, generators, values), (*others, other_values) = ends
    assert [history, generators] == others
    for one, other in zip(values, other_values, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.skipif(BACKEND == "torch", reason="PyTorch compiles nothing")
def test_the_probe_is_compiled_once():
    def num_traces(epochs):
        calls = []

        def loss(y, outputs):
            calls.append(1)
            return keras.ops.mean(outputs)

        model = stack(layers.Dense(1), loss=loss, run_eagerly=False)
        probe = rows()
        fit(model, GradientMonitor(probe, probe[:, :1]), epochs=epochs)
        return len(calls)

    assert num_traces(epochs=1) == num_traces(epochs=4)


# gradients


def test_gradient_norm_is_that_of_the_numeric_gradient():
    # Batch normalization on the probe's statistics, dropout off, the penalty in.
    x, y = rows().astype("float64"), rows(16, 1, seed=1).astype("float64")
    model = stack(
        layers.Dense(4, "tanh", name="hidden"),
        layers.BatchNormalization(name="norm"),
        layers.Dropout(0.5),
        layers.Dense(1, kernel_regularizer=keras.regularizers.L2(0.1), name="out"),
        run_eagerly=False,
    )
    monitor = GradientMonitor(x, y)
    weights = [np.array(w, "float64") for w in model.trainable_weights]

    def loss(kernel, bias, gamma, beta, out_kernel, out_bias):
        h = np.tanh(x @ kernel + bias)
        h = (h - h.mean(axis=0)) / np.sqrt(h.var(axis=0) + 1e-3) * gamma + beta
        errors = h @ out_kernel + out_bias - y
        return np.mean(errors**2) + 0.1 * np.sum(out_kernel**2)

    expected = []
    for weight in weights:
        slopes = []
        for place in np.ndindex(weight.shape):
            ends = []
            for step in (1e-5, -2e-5):
                weight[place] += step
                ends.append(loss(*weights))
            weight[place] += 1e-5
            slopes.append((ends[0] - ends[1]) / 2e-5)
        expected.append(np.linalg.norm(slopes))
    fit(model, monitor)
    frame = first(monitor)
    np.testing.assert_allclose(frame["gradient_norm"], expected, rtol=1e-4, atol=1e-6)
    norms = [np.linalg.norm(weight) for weight in weights]
    np.testing.assert_allclose(frame["weight_norm"], norms, rtol=1e-5)
    ratios = np.divide(expected, norms, where=np.array(norms) > 0, out=np.ones(6))
    finite = frame["gradient_to_weight"][np.array(norms) > 0]
    np.testing.assert_allclose(finite, ratios[np.array(norms) > 0], rtol=1e-4)
    assert frame.index.tolist() == [
        ("hidden", "kernel"),
        ("hidden", "bias"),
        ("norm", "gamma"),
        ("norm", "beta"),
        ("out", "kernel"),
        ("out", "bias"),
    ]


def test_update_is_what_the_epoch_has_moved_the_weights():
    kernels = []

    class Remember(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            kernels.append(np.array(self.model.weights[0]))

    model = stack(layers.Dense(1, use_bias=False), run_eagerly=False)
    monitor = GradientMonitor(rows(), np.ones((16, 1)))
    fit(model, Remember(), monitor, epochs=3, batch_size=4)
    kernels.append(np.array(model.weights[0]))
    moved = np.linalg.norm(np.diff(kernels, axis=0), axis=(1, 2))
    frame = monitor.to_frame()
    assert np.isnan(frame["update_norm"][0]) and frame["epoch"][0] == -1
    np.testing.assert_allclose(frame["update_norm"][1:], moved, rtol=1e-5)
    norms = np.linalg.norm(kernels, axis=(1, 2))
    np.testing.assert_allclose(frame["weight_norm"], norms, rtol=1e-5)
    np.testing.assert_allclose(
        frame["update_to_weight"][1:], moved / norms[1:], rtol=1e-5
    )


@pytest.mark.parametrize("factor", [1e-30, 1e25])
def test_squares_of_gradients_neither_underflow_nor_overflow(factor):
    def loss(y, outputs):
        return keras.ops.sum(outputs) * factor

    x = rows()
    model = stack(layers.Dense(1, use_bias=False), loss=loss, optimizer="adam")
    monitor = GradientMonitor(x, x[:, :1])
    fit(model, monitor)
    expected = np.linalg.norm(x.sum(axis=0).astype("float64")) * factor
    np.testing.assert_allclose(first(monitor)["gradient_norm"], expected, rtol=1e-5)


def test_a_loss_scale_keeps_the_gradient_and_is_taken_out_again():
    def loss(y, outputs):  # 1e-9 is 0 in half precision
        return keras.ops.sum(keras.ops.cast(outputs, "float32")) * 1e-9

    x = rows()
    dense = layers.Dense(1, use_bias=False, dtype="mixed_float16")
    scaled = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(), initial_scale=2.0**15
    )
    monitor = GradientMonitor(x, x[:, :1])
    fit(stack(dense, loss=loss, optimizer=scaled), monitor)
    expected = np.linalg.norm(x.sum(axis=0)) * 1e-9
    np.testing.assert_allclose(first(monitor)["gradient_norm"], expected, rtol=1e-2)


def test_repeated_ids_of_an_embedding_add_up():
    def loss(y, outputs):
        return keras.ops.sum(outputs)

    ids = np.array([[1, 1, 2], [1, 0, 2]])
    model = keras.Sequential([keras.Input((3,)), layers.Embedding(4, 2)])
    model.compile("sgd", loss)  # on TensorFlow only compiled code has slices to add
    monitor = GradientMonitor(ids, ids)
    fit(model, monitor, x=ids, y=ids)
    counts = np.array([1, 3, 2, 0])  # of each id, for each of two columns
    expected = np.sqrt(2 * np.sum(counts**2))
    np.testing.assert_allclose(first(monitor)["gradient_norm"], expected, rtol=1e-6)


def test_several_inputs_and_outputs_by_name():
    inputs = {"a": keras.Input((3,), name="a"), "b": keras.Input((2,), name="b")}
    outputs = {
        "p": layers.Dense(1, use_bias=False, name="p")(inputs["a"]),
        "q": layers.Dense(1, use_bias=False, name="q")(inputs["b"]),
    }
    model = keras.Model(inputs, outputs)
    model.compile("sgd", {"p": "mse", "q": "mae"}, run_eagerly=EAGERLY)
    x = {"a": rows(), "b": rows(width=2, seed=1)}
    y = {"p": rows(width=1, seed=2), "q": rows(width=1, seed=3)}
    p, q = (np.array(model.get_layer(name).kernel) for name in "pq")
    monitor = GradientMonitor(x, y)
    model.fit(x, y, verbose=0, callbacks=[monitor])
    of_p = 2 * x["a"].T @ (x["a"] @ p - y["p"]) / 16
    of_q = x["b"].T @ np.sign(x["b"] @ q - y["q"]) / 16
    norms = first(monitor)["gradient_norm"].droplevel("variable")
    expected = [np.linalg.norm(of_p), np.linalg.norm(of_q)]
    np.testing.assert_allclose(norms[["p", "q"]], expected, rtol=1e-5)


def test_a_loss_of_layers_alone_needs_no_targets():
    x = rows()
    penalty = keras.regularizers.L2(0.1)  # of the outputs, per row
    model = stack(
        layers.Dense(1, use_bias=False, activity_regularizer=penalty), loss=None
    )
    kernel = np.array(model.weights[0])
    monitor = GradientMonitor(x, None)
    model.fit(x, verbose=0, callbacks=[monitor])
    expected = np.linalg.norm(0.2 * x.T @ (x @ kernel) / 16)
    np.testing.assert_allclose(first(monitor)["gradient_norm"], expected, rtol=1e-5)


def test_variables_of_nested_models_and_cells_are_named_by_their_layer():
    inner = keras.Sequential([layers.LSTM(2, name="memory")], name="inner")
    model = keras.Sequential(
        [keras.Input((4, 3)), inner, layers.Dense(1, use_bias=False, name="out")]
    )
    model.compile("sgd", "mse", run_eagerly=EAGERLY)
    monitor = GradientMonitor(np.ones((2, 4, 3)), np.ones((2, 1)))
    fit(model, monitor, x=np.ones((8, 4, 3)))
    assert first(monitor).index.tolist() == [
        ("inner/memory", "lstm_cell/kernel"),
        ("inner/memory", "lstm_cell/recurrent_kernel"),
        ("inner/memory", "lstm_cell/bias"),
        ("out", "kernel"),
    ]


def test_a_subclassed_model_shows_its_own_and_its_unused_weights():
    model = Plain()
    model(rows())
    model.compile("sgd", "mse", run_eagerly=EAGERLY)
    x = rows(8)
    gradients, activations = GradientMonitor(x, x[:, :1]), ActivationMonitor(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on TensorFlow, of the unused weights
        fit(model, gradients, activations, x=x)
    norms = first(gradients)["gradient_norm"]
    assert norms[model.name].index.tolist()[0].endswith("factor")
    assert norms["unused"].tolist() == [0, 0]
    assert first(activations).index.tolist() == ["hidden"]


def test_a_model_without_a_loss_is_refused():
    model = stack(layers.Dense(1), loss=None)
    with pytest.raises(ValueError, match="needs a loss|No loss to compute"):
        fit(model, GradientMonitor(rows(), rows(width=1)))


def test_a_model_without_trainable_weights_is_refused():
    model = stack(layers.Dense(1, trainable=False))
    with pytest.raises(ValueError, match="needs trainable weights. Received: model='s"):
        fit(model, GradientMonitor(rows(), rows(width=1)))


def test_a_model_that_fit_has_to_build_is_refused_or_built():
    model = keras.Sequential([layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=EAGERLY)
    for monitor in (GradientMonitor(rows(), rows(width=1)), ActivationMonitor(rows())):
        if BACKEND == "tensorflow":  # which builds in the first step
            with pytest.raises(
                ValueError, match=f"{type(monitor).__name__} reads.*buil"
            ):
                model.fit(rows(), rows(width=1), verbose=0, callbacks=[monitor])
        else:
            model.fit(rows(), rows(width=1), verbose=0, callbacks=[monitor])
            assert epochs_of(monitor) == [-1, 0]


# activations


def test_moments_and_dead_units_are_those_of_the_outputs():
    x = np.abs(rows()) + 0.1
    x[5, 2] = -1.0  # one row for which unit 2 is not 0
    kernel = np.diag([1.0, -1.0, -1.0]).astype("float32")
    model = stack(
        layers.Dense(3, "relu", use_bias=False), layers.Dense(1), run_eagerly=False
    )
    model.layers[0].set_weights([kernel])
    monitor = ActivationMonitor(x)
    fit(model, monitor)
    outputs = np.maximum(x @ kernel, 0)
    row = first(monitor).iloc[0]
    expected = {"mean": outputs.mean(), "std": outputs.std(), "fraction_dead": 1 / 3}
    between = outputs - outputs.mean(axis=0)
    expected["std_between_rows"] = np.sqrt(np.mean(between**2))
    np.testing.assert_allclose(
        row[[*expected]].astype(float), [*expected.values()], 1e-5
    )
    assert np.isnan(row["fraction_saturated"])


def test_saturated_is_where_the_slope_is_below_a_twentieth_of_its_greatest():
    s = (1 - np.sqrt(0.95)) / 2  # 4 s (1 - s) = 1 / 20
    edges = {  # where the slope is that, or where the flat end begins
        "sigmoid": np.log((1 - s) / s),
        "tanh": np.arctanh(np.sqrt(0.95)),
        "softsign": np.sqrt(20) - 1,
        "hard_sigmoid": 3,
        "sparse_sigmoid": 1,
        "hard_tanh": 1,
    }
    inputs = keras.Input((1,))
    branches = [
        layers.Activation(name, name=name)(layers.Rescaling(edge)(inputs))
        for name, edge in edges.items()
    ]
    function = layers.Activation(keras.ops.tanh, name="function")(inputs)
    relu = layers.ReLU(name="relu")(inputs)
    joined = layers.Concatenate()([*branches, function, relu])
    model = keras.Model(inputs, layers.Dense(1)(joined))
    model.compile("sgd", "mse", run_eagerly=EAGERLY)
    monitor = ActivationMonitor(np.array([[0.98], [-0.98], [1.02], [-1.02], [0.0]]))
    fit(model, monitor)
    saturated = first(monitor)["fraction_saturated"]
    np.testing.assert_allclose(saturated[[*edges]], 2 / 5)
    assert saturated["function"] == 0 and np.isnan(saturated["relu"])


def test_a_channel_is_dead_only_if_it_is_at_all_places():
    images = np.ones((4, 3, 3, 2), "float32")
    images[..., 1] = 0
    images[2, 1, 1, 1] = 1  # one pixel of one image
    last = layers.ZeroPadding2D(1)
    first_axis = layers.ZeroPadding2D(1, data_format="channels_first")
    for layer, x, expected in (
        (last, images, 0),
        (last, images[:2], 1 / 2),
        (first_axis, images[:2].transpose(0, 3, 1, 2), 1 / 2),
    ):
        model = keras.Sequential(
            [keras.Input(x.shape[1:]), layer, layers.Flatten(), layers.Dense(1)]
        )
        model.compile("sgd", "mse", run_eagerly=EAGERLY)
        monitor = ActivationMonitor(x)
        fit(model, monitor, x=x, y=np.ones((len(x), 1)))
        assert first(monitor)["fraction_dead"].iloc[0] == expected


def test_layers_are_in_order_with_their_models_and_uses():
    shared = layers.Dense(3, "relu", name="shared")
    inputs = keras.Input((3,))
    graph = keras.Model(inputs, shared(shared(inputs)), name="graph")
    block = keras.Sequential([layers.Dense(3, name="b"), layers.Dropout(0.5)])
    block.name = "block"
    model = stack(graph, block, layers.LayerNormalization(name="norm"), shared)
    model.add(layers.Dense(1, name="out"))
    monitor = ActivationMonitor(rows())
    fit(model, monitor)
    names = ["graph/shared", "graph/shared #2", "block/b", "norm"]
    assert first(monitor).index.tolist() == [*names, "graph/shared #3", "out"]


def test_normalization_is_on_batch_statistics_unless_it_is_frozen():
    x = 5 + 3 * rows(64)
    expected = [(0, 1), (x.mean(), x.std())]
    for trainable, (mean, deviation) in zip((True, False), expected, strict=True):
        norm = layers.BatchNormalization(trainable=trainable)
        monitor = ActivationMonitor(x)
        fit(stack(norm, layers.Dense(1)), monitor)
        found = first(monitor)[["mean", "std"]].iloc[0]
        np.testing.assert_allclose(found, [mean, deviation], atol=1e-3, rtol=1e-3)


def test_outputs_that_are_not_the_activation_are_not_called_saturated():
    class Wider(layers.Dense):
        def call(self, inputs):
            return super().call(inputs) * 5

    model = keras.Sequential([keras.Input((4, 3)), layers.LSTM(2), Wider(1, "tanh")])
    model.compile("sgd", "mse", run_eagerly=EAGERLY)
    monitor = ActivationMonitor(np.ones((2, 4, 3)))
    fit(model, monitor, x=np.ones((8, 4, 3)))
    assert first(monitor)["fraction_saturated"].isna().all()


def test_a_model_that_calls_no_layer_is_refused():
    class Bare(keras.Model):
        def __init__(self):
            super().__init__()
            self.kernel = self.add_weight(shape=(3, 1))

        def call(self, inputs):
            return inputs @ self.kernel

    model = Bare()
    model(rows())
    model.compile("sgd", "mse", run_eagerly=EAGERLY)
    with pytest.raises(ValueError, match="the model calls none. Received: model='bare"):
        fit(model, ActivationMonitor(rows()), x=rows(8))


# which epochs


def epochs_of(monitor):
    return monitor.to_frame()["epoch"].unique().tolist()


def linear_and_monitor(**options):
    model = stack(layers.Dense(1, kernel_initializer="ones", name="dense"))
    return model, GradientMonitor(rows(), np.ones((16, 1)), **options)


def test_readings_are_before_the_first_epoch_and_after_every_so_many():
    model, monitor = linear_and_monitor(every_epochs=2)
    fit(model, monitor, epochs=5)
    assert epochs_of(monitor) == [-1, 1, 3]
    fit(model, monitor, epochs=2)  # a second fit starts afresh
    assert epochs_of(monitor) == [-1, 1]
    fit(model, monitor, epochs=5, initial_epoch=2)
    assert epochs_of(monitor) == [1, 3]
    assert monitor.to_frame()["update_norm"].isna().tolist() == [True] * 2 + [False] * 2


def test_a_fit_after_an_interrupted_one_starts_afresh():
    def interrupt(batch, logs):
        raise KeyboardInterrupt

    model, monitor = linear_and_monitor()
    with pytest.raises(KeyboardInterrupt):
        fit(
            model, monitor, keras.callbacks.LambdaCallback(on_train_batch_end=interrupt)
        )
    model.set_weights([2 * weight for weight in model.get_weights()])
    fit(model, monitor)
    frame = monitor.to_frame()
    assert frame["epoch"].tolist() == [-1, -1, 0, 0]
    assert frame["update_norm"].isna().tolist() == [True, True, False, False]


@pytest.mark.parametrize("initial_epoch, every_epochs", [(0, 1), (2, 3)])
def test_a_resumed_run_has_the_table_of_one_that_was_not_stopped(
    initial_epoch, every_epochs
):
    model, whole = linear_and_monitor(every_epochs=every_epochs)
    fit(model, whole, epochs=4)
    model, monitor = linear_and_monitor(every_epochs=every_epochs)
    fit(model, monitor, epochs=2)
    state = json.loads(json.dumps(monitor.get_state()))
    _, monitor = linear_and_monitor(every_epochs=every_epochs)
    monitor.set_state(state)
    fit(model, monitor, epochs=initial_epoch + 2, initial_epoch=initial_epoch)
    assert monitor.to_frame().equals(whole.to_frame())
    fit(model, monitor)  # only once
    assert epochs_of(monitor)[0] == -1


# plots


def row(epoch, layer, **columns):
    return {"epoch": epoch, "layer": layer, **columns}


def drawn(figure):
    figure.savefig(io.BytesIO())  # warnings are errors
    panels = [axes for axes in figure.axes if axes.get_title()]
    return {axes.get_title(): axes for axes in panels}


def test_gradients_are_drawn_by_layer_in_the_order_of_the_layers():
    columns = {"weight_norm": 1.0, "update_norm": 0.1}
    gradients = {("z", "kernel"): 3e-9, ("z", "bias"): 4e-9, ("a", "kernel"): 0.0}
    monitor = GradientMonitor(rows(), rows())
    named = [
        row(0, layer, variable=variable, gradient_norm=norm, **columns)
        for (layer, variable), norm in gradients.items()
    ]
    named.append(row(1, "z", variable="kernel", gradient_norm=np.inf, **columns))
    named.append(row(1, "a", variable="kernel", gradient_norm=np.nan, **columns))
    monitor.set_state({"epoch": 2, "rows": named})
    panels = drawn(monitor.plot())
    assert list(panels) == ["gradient norm", "update to weight"]
    axes = panels["gradient norm"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["z", "a"]
    (image,) = axes.images
    low, high = image.get_clim()
    shown = np.asarray(image.get_array())
    np.testing.assert_allclose(shown[0, 0], np.log10(5e-9))
    assert shown[1, 0] < low  # 0 is black
    assert (shown[:, 1] > high).all()  # infinity and NaN are red
    assert image.to_rgba(shown)[1, 0].tolist() == [0, 0, 0, 1]
    assert image.to_rgba(shown)[0, 1].tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("num_layers, num_epochs", [(1, 1), (30, 14)])
def test_activations_are_drawn_without_saturation_where_none_is_known(
    num_layers, num_epochs
):
    values = {"mean": 1, "std": 0.5, "std_between_rows": 0.4, "fraction_dead": 0.25}
    table = [
        row(epoch, f"layer_{layer}", **values, fraction_saturated=np.nan)
        for epoch in range(num_epochs)
        for layer in range(num_layers)
    ]
    monitor = ActivationMonitor(rows())
    monitor.set_state({"epoch": num_epochs, "rows": table})
    panels = drawn(monitor.plot())
    deviations = ["standard deviation", "deviation between rows"]
    assert list(panels) == [*deviations, "dead units"]
    (image,) = panels["dead units"].images
    np.testing.assert_allclose(
        image.get_array(), np.full((num_layers, num_epochs), 0.25)
    )
    assert image.get_clim() == (0, 1)


def test_a_plot_of_nothing_is_refused():
    for monitor in (GradientMonitor(rows(), rows()), ActivationMonitor(rows())):
        assert len(monitor.to_frame()) == 0
        with pytest.raises(ValueError, match="no readings yet"):
            monitor.plot()


# wrong arguments


@settings(max_examples=20, deadline=None)
@given(
    st.one_of(
        st.integers(max_value=0), st.floats(), st.booleans(), st.text(), st.none()
    )
)
def test_every_epochs_is_a_positive_integer(wrong):
    with pytest.raises(ValueError, match="`every_epochs` must.* Received: every_epoch"):
        ActivationMonitor(rows(), every_epochs=wrong)


@pytest.mark.parametrize(
    "wrong, problem",
    [
        (None, "holds a NoneType, which is no array"),
        ([], "is empty"),
        ([[1.0, 2.0]], "holds a float, which is no array"),
        (np.array([["a"]]), "holds <U1, which are no numbers"),
        (np.array([[1.0, np.nan]]), "holds NaN or infinity"),
        ({"a": np.array([[np.inf]])}, "holds NaN or infinity"),
        (np.float64(1.0), r"holds an array of shape \(\)"),
        (np.ones((0, 3)), r"holds an array of shape \(0, 3\)"),
    ],
)
def test_a_probe_of_anything_but_rows_of_finite_numbers_is_refused(wrong, problem):
    for refuse in (
        lambda: ActivationMonitor(wrong),
        lambda: GradientMonitor(wrong, rows()),
    ):
        with pytest.raises(ValueError, match=f"`x` must.* but it {problem}. Received"):
            refuse()
    if wrong is not None:
        with pytest.raises(ValueError, match=f"`y` must.* but it {problem}. Received"):
            GradientMonitor(rows(), wrong)


def test_rows_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match=r"same number of rows. Received: \[15, 16\]"):
        GradientMonitor(rows(), rows(15))
    with pytest.raises(ValueError, match=r"same number of rows. Received: \[15, 16\]"):
        ActivationMonitor([rows(), rows(15)])


def test_the_probe_is_a_copy():
    x = rows()
    monitor, model = ActivationMonitor(x), stack(layers.ReLU(), layers.Dense(1))
    mean = np.maximum(x, 0).mean()
    x += 100
    fit(model, monitor)
    np.testing.assert_allclose(first(monitor)["mean"].iloc[0], mean, rtol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        {"epoch": 1},
        {"epoch": -1, "rows": []},
        {"epoch": 1.0, "rows": []},
        {"epoch": 1, "rows": [{"epoch": 0}]},
        {"epoch": 1, "rows": {}},
    ],
)
def test_a_state_of_another_form_is_refused(wrong):
    for monitor in (GradientMonitor(rows(), rows()), ActivationMonitor(rows())):
        with pytest.raises(
            ValueError, match="`state` must come from.*Received: state="
        ):
            monitor.set_state(wrong)
