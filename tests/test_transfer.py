import keras
import numpy as np
import pytest

from recipes.layers import ResidualConv2D
from recipes.transfer import freeze, layerwise_optimizer, reuse, unfreeze


def numpy_of(x):
    return keras.ops.convert_to_numpy(keras.ops.cast(x, "float32"))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def with_random_weights(model):
    """As after training, at less cost; the adapted statistics stay."""
    for number, weight in enumerate(model.weights):
        if weight.path.split("/")[-2] != "scaled":
            drawn = 0.4 * noise(*weight.shape, seed=number)
            weight.assign(0.5 + np.abs(drawn) if "variance" in weight.name else drawn)
    return model


def trained_stack():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,))])
    model.add(keras.layers.Normalization(name="scaled"))
    model.add(keras.layers.Dense(6, "relu", name="first"))
    model.add(keras.layers.BatchNormalization(name="norm"))
    model.add(keras.layers.Dropout(0.2, name="drop"))
    model.add(keras.layers.Dense(5, "tanh", name="second"))
    model.add(keras.layers.Dense(3, "softmax", name="old_head"))
    model.layers[0].adapt(3.0 + noise(50, 4))
    model.compile("sgd", "sparse_categorical_crossentropy")
    return with_random_weights(model)


def trained_graph():
    """A skip, a nested model, a shared layer, an operation, and a linear tail."""
    block = keras.Sequential([keras.Input((6,)), keras.layers.Dense(6)], name="block")
    block.add(keras.layers.BatchNormalization(name="inner_norm"))
    block.compile("sgd", "mse")
    shared = keras.layers.Dense(6, name="shared")
    inputs = {"a": keras.Input((6,), name="a"), "b": keras.Input((6,), name="b")}
    x = keras.layers.Add(name="sum")([shared(inputs["a"]), shared(inputs["b"])])
    x = keras.ops.tanh(x) + block(x)
    features = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Dense(4, "relu", name="tail")(features)
    x = keras.layers.Dense(3, name="old_head")(x)
    model = keras.Model(inputs, x)
    model.compile("sgd", "mse")
    data = {"a": noise(32, 6), "b": noise(32, 6, seed=1)}
    return with_random_weights(model), keras.Model(inputs, features), data


def new_head(units=2):
    return keras.layers.Dense(units, name="new_head")


def values_of(model):
    return [numpy_of(weight) for weight in model.weights]


def assert_equal(before, after):
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)


# reuse


@pytest.mark.parametrize("drop_last", [0, 2])
def test_the_head_stands_on_the_old_features(drop_last):
    trained, x = trained_stack(), noise(7, 4)
    head = new_head()
    model = reuse(trained, drop_last=drop_last, head=head)
    last = trained.layers[-1 - drop_last]
    features = keras.Model(trained.inputs[0], last.output)(x)
    kernel, bias = head.get_weights()
    expected = numpy_of(features) @ kernel + bias
    np.testing.assert_allclose(numpy_of(model(x)), expected, atol=1e-5)
    assert type(model) is keras.Sequential and model.layers[-1] is head
    names = [layer.name for layer in trained.layers][: 6 - drop_last]
    assert [layer.name for layer in model.layers] == [*names, "new_head"]


@pytest.mark.parametrize("drop_last", [1, 2])
def test_graphs_are_reused_with_skips_nested_models_and_shared_layers(drop_last):
    trained, features, data = trained_graph()
    if drop_last == 1:
        features = keras.Model(trained.input, trained.get_layer("tail").output)
    head = new_head()
    model = reuse(trained, drop_last=drop_last, head=[head, keras.layers.ReLU()])
    kernel, bias = head.get_weights()
    expected = np.maximum(numpy_of(features(data)) @ kernel + bias, 0)
    np.testing.assert_allclose(numpy_of(model(data)), expected, atol=1e-5)
    names = {weight.path for weight in features.weights}
    assert {w.path for w in model.weights} - {w.path for w in head.weights} == names
    assert len(model.weights) == len(features.weights) + 2


def test_neither_model_changes_the_other():
    trained, _, x = trained_graph()
    before, optimizer = values_of(trained), trained.optimizer
    model = reuse(trained, head=new_head())
    assert not {id(v) for v in model.variables} & {id(v) for v in trained.variables}
    model.compile("sgd", "mse")
    model.fit(x, noise(32, 2), verbose=0)
    assert_equal(before, values_of(trained))
    assert trained.compiled and trained.optimizer is optimizer
    after = values_of(model)
    trained.fit(x, noise(32, 3), verbose=0)
    assert_equal(after, values_of(model))


def test_the_clone_is_not_compiled_whatever_the_loss():
    graph, _, data = trained_graph()
    graph.get_layer("block").compile("sgd", lambda y, z: keras.ops.mean(z))
    for trained, x in ((trained_stack(), noise(32, 4)), (graph, data)):
        trained.compile("sgd", lambda y, z: keras.ops.mean(z), metrics=["mae"])
        model = reuse(trained, head=new_head())
        with pytest.raises(ValueError, match="must call `compile"):
            model.fit(x, noise(32, 2), verbose=0)
    assert graph.get_layer("block").compiled
    assert not model.get_layer("block").compiled


def test_what_is_frozen_stays_frozen_in_the_clone():
    trained, _, _ = trained_graph()
    trained.get_layer("block").layers[0].trainable = False
    trained.get_layer("shared").trainable = False
    model = reuse(trained, head=new_head())
    frozen = {w.path for w in trained.weights} - {
        w.path for w in trained.trainable_weights
    }
    assert frozen == {w.path for w in model.weights} - {
        w.path for w in model.trainable_weights
    }
    assert not model.get_layer("block").layers[0].trainable

    attention = keras.layers.MultiHeadAttention(2, 3)
    inputs = keras.Input((4, 3))
    x = keras.layers.Flatten()(attention(inputs, inputs))
    attention.trainable = False
    model = reuse(keras.Model(inputs, keras.layers.Dense(2)(x)), head=new_head())
    assert len(model.trainable_weights) == 2


def test_the_head_may_be_a_stack_of_its_own():
    head = keras.Sequential([keras.layers.Dense(5), keras.layers.Dense(2)])
    model = reuse(trained_stack(), head=head)
    assert model.output_shape == (None, 2) and model.layers[-1] is head
    freeze(model, until=head)
    assert len(model.trainable_weights) == 4


def test_the_clone_is_saved_and_loaded(tmp_path):
    for trained, x in (
        (trained_stack(), noise(5, 4)),
        (trained_graph()[0], {"a": noise(5, 6), "b": noise(5, 6)}),
    ):
        model = reuse(trained, head=new_head())
        freeze(model, until="new_head")
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        np.testing.assert_array_equal(numpy_of(loaded(x)), numpy_of(model(x)))
        frozen = [w.path.split("/")[-2:] for w in model.non_trainable_weights]
        again = [w.path.split("/")[-2:] for w in loaded.non_trainable_weights]
        assert again == frozen


class OwnSequential(keras.Sequential):
    """Could train in its own way."""


class OwnModel(keras.Model):
    """A Functional model with a class of its own."""


def test_models_that_cannot_be_cloned_are_refused():
    own = OwnSequential([keras.Input((3,)), keras.layers.Dense(2), new_head()])
    inputs = keras.Input((3,))
    features = keras.layers.Dense(2)(inputs)
    graph = OwnModel(inputs, keras.layers.Dense(2)(features))
    several = keras.Model(inputs, [features, new_head()(features)])
    unbuilt = keras.Sequential([keras.layers.Dense(2), keras.layers.Dense(2)])
    nested = keras.Sequential([keras.Input((3,)), own, keras.layers.Dense(2)])
    head = keras.layers.Dense(1, name="head")
    for model, message in (
        (nested, r"`model` must not hold .* Received: .* \(OwnSequential\)"),
        (own, "`model` must be .*, not subclassed. Received: model="),
        (graph, "`model` must be .*, not subclassed. Received: model="),
        (several, "`model` must have one output. Received: a model with 2"),
        (unbuilt, "`model` must be a built .*Received: model="),
        (keras.layers.Dense(1), "`model` must be a built .*Received: model="),
    ):
        with pytest.raises(ValueError, match=message):
            reuse(model, head=head)
        assert not head.built


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow only")
def test_a_vocabulary_is_refused_by_name():
    lookup = keras.layers.IntegerLookup(vocabulary=[5, 6], name="words")
    inputs = keras.Input((1,), dtype="int64")
    outputs = keras.layers.Dense(2)(keras.layers.Rescaling(1.0)(lookup(inputs)))
    with pytest.raises(ValueError, match=r"Received: words \(IntegerLookup\)"):
        reuse(keras.Model(inputs, outputs), head=new_head())


class Forgetful(keras.layers.Dense):
    """Has a config without its width."""

    def get_config(self):
        return super().get_config() | {"units": 1}


def test_weights_that_the_config_does_not_make_are_refused_by_name():
    model = keras.Sequential([keras.Input((4,)), Forgetful(3, name="wide")])
    model.add(keras.layers.Dense(2))
    with pytest.raises(ValueError, match=r"Received: wide \(Forgetful\)"):
        reuse(model, head=new_head())


@pytest.mark.parametrize("drop_last", [-1, 6, 1.0, True, None, "1"])
def test_wrong_drop_last_is_refused(drop_last):
    with pytest.raises(ValueError, match="`drop_last` must be.*Received: drop_last="):
        reuse(trained_stack(), drop_last=drop_last, head=new_head())


def test_a_graph_is_not_cut_where_it_is_no_chain():
    inputs = keras.Input((3,))
    left, right = keras.layers.Dense(2)(inputs), keras.layers.Dense(2)(inputs)
    total = keras.layers.Add(name="sum")([left, right])
    model = keras.Model(inputs, keras.layers.Dense(2, name="last")(total))
    assert reuse(model, head=new_head()).output_shape == (None, 2)
    with pytest.raises(ValueError, match="Received: drop_last=2, with sum among them"):
        reuse(model, drop_last=2, head=new_head())
    hidden = keras.layers.Dense(2, name="hidden")(left)
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.ops.relu(hidden)))
    with pytest.raises(ValueError, match="Received: drop_last=2, with hidden among"):
        reuse(model, drop_last=2, head=new_head())
    twice = keras.layers.Dense(3, name="twice")
    model = keras.Model(inputs, twice(twice(inputs)))
    with pytest.raises(ValueError, match="`drop_last` must"):
        reuse(model, head=new_head())


def test_wrong_heads_are_refused():
    trained = trained_stack()
    built = keras.layers.Dense(2)
    built.build((None, 5))
    for head in (built, [], None, "dense", [new_head(), 3], trained.layers[1]):
        with pytest.raises(ValueError, match="`head` must be a layer.*Received: head"):
            reuse(trained, head=head)
    with pytest.raises(ValueError, match="`head` must have layers.*: second"):
        reuse(trained, head=keras.layers.Dense(2, name="second"))
    assert reuse(trained, head=keras.layers.Dense(2, name="old_head"))


# freeze and unfreeze


def test_until_is_the_first_layer_that_learns():
    model = reuse(trained_stack(), head=new_head())
    for until in ("drop", 3, -3, np.int64(3), model.get_layer("drop")):
        unfreeze(model)
        freeze(model, until)
        trainable = [w.path.split("/")[-2] for w in model.trainable_weights]
        assert trainable == ["second"] * 2 + ["new_head"] * 2
        flags = [layer.trainable for layer in model.layers]
        assert flags == [False] * 3 + [True] * 3


def test_until_may_lie_in_a_nested_model():
    model, _, _ = trained_graph()
    freeze(model, until="inner_norm")
    block = model.get_layer("block")
    assert [layer.trainable for layer in block.layers] == [False, True]
    assert not model.get_layer("shared").trainable
    assert model.get_layer("norm").trainable
    unfreeze(model)
    freeze(model, until="block")
    assert all(layer.trainable for layer in block.layers)


def nested_images():
    base = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Conv2D(2, 3)])
    base.add(keras.layers.BatchNormalization())
    model = keras.Sequential([keras.Input((4, 4, 1)), ResidualConv2D(1, "relu"), base])
    model.add(keras.layers.BatchNormalization())
    model.add(keras.layers.Flatten())
    model.compile("sgd", "mse")
    return with_random_weights(model)


@pytest.mark.parametrize("graph", [False, True], ids=["stack", "graph"])
def test_frozen_batch_normalization_is_in_inference_mode(graph):
    inputs = keras.Input((4, 4, 1))
    trained = nested_images()
    if graph:
        trained = keras.Model(inputs, keras.layers.Dense(3)(trained(inputs)))
    head = new_head(8)
    model = reuse(trained, drop_last=int(graph), head=head)
    freeze(model, until=head)
    model.compile(keras.optimizers.SGD(1e-4), "mse")
    x, y = 5.0 - noise(16, 4, 4, 1, seed=3), noise(16, 8)
    expected = np.mean(np.square(model.predict(x, verbose=0) - y))
    before = values_of(model)
    history = model.fit(x, y, batch_size=16, epochs=3, verbose=0).history
    assert history["loss"][0] == pytest.approx(expected, rel=1e-5)
    assert history["loss"][-1] < expected
    assert_equal(before[:-2], values_of(model)[:-2])
    assert np.any(before[-2] != values_of(model)[-2])


def test_keras_training_false_does_not_freeze_batch_normalization():  # (3.15)
    norm = keras.layers.BatchNormalization()
    base = keras.Sequential([keras.Input((4,)), norm])
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(1)(base(inputs, training=False)))
    model.compile("sgd", "mse")
    model.fit(5.0 + noise(8, 4), noise(8, 1), verbose=0)
    assert np.all(numpy_of(norm.moving_mean) != 0.0)


def test_a_forgotten_compile_is_an_error_and_in_keras_it_is_not():
    x, y = noise(32, 4), np.arange(32) % 3
    model = trained_stack()
    model.fit(x, y, verbose=0)
    first = model.get_layer("first")
    before = numpy_of(first.kernel)
    first.trainable = False
    if keras.backend.backend() == "tensorflow":  # JAX finds a variable missing
        model.fit(x, y, verbose=0)  # and Keras (3.15) does not say that it trains on
        assert np.any(numpy_of(first.kernel) != before)

    model = trained_stack()
    methods = [model.fit, model.train_on_batch]
    if keras.backend.backend() != "torch":  # where evaluate asks for no compile
        methods.append(model.evaluate)
    for change in (lambda: freeze(model, "second"), lambda: unfreeze(model)):
        change()
        for method in methods:
            with pytest.raises(ValueError, match="must call `compile"):
                method(x, y)
        assert model.predict(x, verbose=0).shape == (32, 3)
        model.compile("sgd", "sparse_categorical_crossentropy")


def test_unfreeze_trains_everything_again():
    model = reuse(trained_stack(), head=new_head())
    freeze(model, until="new_head")
    unfreeze(model)
    assert len(model.trainable_weights) == 2 + 2 + 2 + 2
    model.compile("sgd", "mse")
    before = values_of(model)
    model.fit(3.0 + noise(8, 4), noise(8, 2), verbose=0)
    changed = [np.any(a != b) for a, b in zip(before, values_of(model), strict=True)]
    assert changed == [False] * 3 + [True] * (len(before) - 3)  # Normalization's own


def test_unfreeze_may_leave_batch_normalization_frozen_wherever_it_is():
    model = nested_images()
    freeze(model, until=2)
    unfreeze(model, batch_normalization=False)
    frozen = [w.path for w in model.weights if not w.trainable]
    assert len(frozen) == 3 * 4 + 2  # the last one, never frozen, has two statistics
    clone = reuse(model, drop_last=0, head=new_head())
    flags = [w.trainable for w in model.weights]
    assert [w.trainable for w in clone.weights] == [*flags, True, True]
    model.compile("sgd", "mse")
    statistics = {
        w.path: numpy_of(w) for w in model.weights if w.name.startswith("moving_")
    }
    model.fit(noise(16, 4, 4, 1), noise(16, 8), verbose=0)
    moved = [
        path
        for path, value in statistics.items()
        if np.any(next(numpy_of(w) for w in model.weights if w.path == path) != value)
    ]
    assert len(moved) == 2 and len(statistics) == 8


@pytest.mark.parametrize(
    "until", ["nowhere", 99, -99, 0, "scaled", True, None, 1.0, new_head()], ids=str
)
def test_wrong_until_is_refused(until):
    model = trained_stack()
    with pytest.raises(ValueError, match="`until` must be one layer.*Received: until="):
        freeze(model, until)
    assert model.compiled and all(layer.trainable for layer in model.layers)


def test_ambiguous_names_and_wrong_models_are_refused():
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="same")])
    outer = [keras.layers.Dense(4, name="other"), inner]
    outer += [keras.layers.Dense(4, name="same")]
    model = keras.Sequential([keras.Input((4,)), *outer])
    with pytest.raises(ValueError, match="`until` must be one layer"):
        freeze(model, "same")
    freeze(model, model.layers[-1])
    unbuilt = keras.Sequential([keras.layers.Dense(2)])
    for wrong in (unbuilt, keras.layers.Dense(2), None):
        with pytest.raises(ValueError, match="`model` must be a built.*: model="):
            freeze(wrong, 0)
        with pytest.raises(ValueError, match="`model` must be a built.*: model="):
            unfreeze(wrong)
    with pytest.raises(ValueError, match="`batch_normalization` must be True or False"):
        unfreeze(model, batch_normalization=None)


# layerwise_optimizer


def steps_under(optimizer, model, x, y):
    before = values_of(model)
    model.compile(optimizer, "mse")
    model.fit(x, y, batch_size=len(y), verbose=0)
    steps = [new - old for old, new in zip(before, values_of(model), strict=True)]
    model.set_weights(before)
    return steps


def test_each_group_has_its_own_learning_rate():
    model, _, x = trained_graph()
    y, sgd = noise(32, 3), keras.optimizers.SGD
    unit = steps_under(sgd(1.0), model, x, y)
    for until in ("inner_norm", "old_head"):
        optimizer = layerwise_optimizer(model, until, reused=sgd(0.01), new=sgd(0.5))
        found = steps_under(optimizer, model, x, y)
        freeze(model, until)
        for weight, step, whole in zip(model.weights, found, unit, strict=True):
            if not weight.name.startswith("moving"):
                rate = 0.5 if weight.trainable else 0.01
                np.testing.assert_allclose(step, rate * whole, atol=1e-5)
        unfreeze(model)


def test_a_loaded_model_goes_on_with_both_learning_rates(tmp_path):
    model = reuse(trained_stack(), head=new_head())
    model.get_layer("drop").rate = 0.0
    adam = keras.optimizers.Adam
    optimizer = layerwise_optimizer(
        model, "new_head", reused=adam(1e-3), new=adam(0.1, global_clipnorm=1.0)
    )
    model.compile(optimizer, "mse")
    x, y = noise(16, 4), noise(16, 2)
    model.fit(x, y, batch_size=16, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    loaded.get_layer("drop").rate = 0.0
    for each in (model, loaded):
        each.fit(x, y, batch_size=16, verbose=0)
    for mine, theirs in zip(values_of(model), values_of(loaded), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
    assert sorted(float(o.learning_rate) for o in loaded.optimizer.optimizers) == (
        pytest.approx([1e-3, 0.1])
    )


def test_frozen_layers_need_no_optimizer():
    model = reuse(trained_stack(), head=new_head())
    freeze(model, "second")
    sgd = keras.optimizers.SGD
    optimizer = layerwise_optimizer(model, "new_head", reused=sgd(0.1), new=sgd(0.2))
    model.compile(optimizer, "mse")
    before = values_of(model)
    model.fit(noise(8, 4), noise(8, 2), verbose=0)
    changed = [np.any(a != b) for a, b in zip(before, values_of(model), strict=True)]
    assert changed == [w.trainable for w in model.weights]


def test_wrong_optimizers_are_refused():
    model, sgd = trained_stack(), keras.optimizers.SGD()
    built = keras.optimizers.SGD()
    built.build(model.trainable_variables)
    for reused, new, name in (
        ("sgd", keras.optimizers.SGD(), "reused"),
        (keras.optimizers.SGD(), 0.1, "new"),
        (sgd, sgd, "reused"),
        (keras.optimizers.SGD(), built, "new"),
    ):
        with pytest.raises(ValueError, match=f"`{name}` must be a new.*: {name}="):
            layerwise_optimizer(model, -1, reused=reused, new=new)
    with pytest.raises(ValueError, match="`until` must be one layer"):
        layerwise_optimizer(model, 0, reused=sgd, new=keras.optimizers.SGD())


def test_names_that_do_not_tell_the_groups_apart_are_refused():
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="same")])
    model = keras.Sequential([keras.Input((4,)), inner])
    model.add(keras.layers.Dense(4, name="same"))
    adam = keras.optimizers.Adam
    with pytest.raises(ValueError, match="`model` must have other names.*same/kernel"):
        layerwise_optimizer(model, -1, reused=adam(), new=adam())


def test_keras_on_tensorflow_thaws_no_layer_that_was_frozen_alone():  # (3.15)
    model = trained_stack()
    model.layers[1].trainable = False
    model.trainable = True
    thawed = model.layers[1].trainable
    assert thawed == (keras.backend.backend() != "tensorflow")
    unfreeze(model)
    assert model.layers[1].trainable
