"""The parts of the benchmarks that are not measurements."""

import functools
import itertools
import pathlib
import sys
import types

import keras
import numpy as np
import pandas as pd
import pytest
from keras import layers

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import mc_dropout_speed as speed  # noqa: E402
import record  # noqa: E402
import structures  # noqa: E402
import table  # noqa: E402
import training_speed  # noqa: E402
import transfer  # noqa: E402
import uncertainty  # noqa: E402

import train  # noqa: E402
from recipes import fashion_mnist  # noqa: E402
from recipes.mc_dropout import MCDropoutPredictor  # noqa: E402

FACTS = {
    "machine": "Abacus",
    "versions": "keras 3",
    "commit": "4e72448",  # not a number
    "backend": "other",
}
TEMPERATURE = ", temperature"


def tiny():
    """one dropout before one dense layer"""
    dense = layers.Dense(3, "softmax")
    return keras.Sequential([keras.Input((4,)), layers.Dropout(0.5), dense])


def softmax(logits):
    exponentials = np.exp(logits)
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    return tiny()


@pytest.fixture
def garments(monkeypatch):
    data = fashion_mnist.split_and_scale(
        fashion_mnist.draw_garments(112),
        fashion_mnist.draw_garments(64, seed=1),
        validation_size=48,
    )
    monkeypatch.setattr(fashion_mnist, "load", lambda folder: data)
    return data


# --- speed


@pytest.mark.parametrize(
    "name", [name for name in speed.ways_here() if speed.WAYS[name].samples > 1]
)
def test_each_way_gives_mean_and_deviation_over_all_masks(name, model):
    x = np.array([1.0, -0.5, 2.0, 0.7], "float32")
    kernel, bias = model.get_weights()
    masks = np.array(list(itertools.product([0, 1], repeat=4)))
    exact = softmax((masks * x / 0.5) @ kernel + bias)  # (16, classes)

    # Equal inputs count like samples, save where they share their masks. Few samples
    # of each for the ways that take long for one.
    inputs, num_samples = 1500, 300 if name.startswith(speed.OURS) else 6
    mean, deviation = speed.WAYS[name].prepare(model)(
        np.tile(x, (inputs, 1)), num_samples
    )
    assert mean.shape == deviation.shape == (inputs, 3)
    sharing = {
        speed.OURS: 500,
        f"{speed.OURS}, first call": 500,
        f"{speed.OURS}, inputs_per_mask=None": inputs,
    }
    draws = num_samples * inputs / sharing.get(name, 1)

    error = np.abs(mean.mean(axis=0) - exact.mean(axis=0))
    np.testing.assert_array_less(error, 5 * exact.std(axis=0) / np.sqrt(draws))
    # E deviation^2 = (1 - 1 / T) variance; 0 if all samples were the same.
    variance = (deviation**2).mean(axis=0) * num_samples / (num_samples - 1)
    np.testing.assert_allclose(variance, exact.var(axis=0), rtol=5 * np.sqrt(2 / draws))


@pytest.mark.parametrize("batch_size", [32, 1000])
def test_the_plain_way_drops_nothing(batch_size, model):
    x = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
    way = speed.WAYS[f"one plain predict, batches of {batch_size}"]
    mean, _ = way.prepare(model)(x, 1)
    kernel, bias = model.get_weights()
    np.testing.assert_allclose(mean, softmax(x @ kernel + bias), rtol=1e-4)


def test_big_batches_of_repeated_inputs_keep_inputs_apart(model):
    # 10,000 rows at a time: 33 inputs of 300 samples, then the remaining 7.
    x = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
    model.layers[0].rate = 0.0
    mean, deviation = speed.inputs_repeated(model)(x, 300)
    np.testing.assert_allclose(mean, model.predict(x, verbose=0), rtol=1e-4)
    np.testing.assert_allclose(deviation, 0, atol=1e-5)


@pytest.mark.parametrize("name", ["head", "trunk", "spatial"])
def test_convolutional_models_have_the_dropouts_they_name(name, monkeypatch):
    monkeypatch.setattr(keras, "Sequential", list)  # unbuilt: that takes seconds
    kinds = [type(layer).__name__ for layer in speed.MODELS[name].build()]
    dropouts = [kind for kind in kinds if "Dropout" in kind]
    extra = {"head": [], "trunk": ["Dropout"] * 2, "spatial": ["SpatialDropout2D"] * 2}
    assert dropouts == [*extra[name], "Dropout", "Dropout"]


def test_speed_is_scaled_recorded_and_resumed(monkeypatch, tmp_path, garments):
    seconds = 0.0

    def takes(cost):
        def predict(x, num_samples):
            nonlocal seconds
            seconds += cost * num_samples

        return speed.Way(lambda model: predict)

    clock = types.SimpleNamespace(perf_counter=lambda: seconds)
    monkeypatch.setattr(speed, "time", clock)
    monkeypatch.setitem(speed.WAYS, speed.BOOK, takes(2.0))
    monkeypatch.setitem(speed.WAYS, speed.OURS, takes(0.5))
    subject = speed.Subject(tiny, 50, {speed.BOOK: 10, speed.OURS: 100})
    monkeypatch.setitem(speed.MODELS, "tiny", subject)
    monkeypatch.setattr(record, "commit", lambda: "abc")
    monkeypatch.setattr(speed, "RESULTS", tmp_path / "speed.csv")
    other = {"model": "tiny", "way": speed.BOOK, **FACTS}
    pd.DataFrame([other]).to_csv(speed.RESULTS, index=False)

    speed.main(["tiny", "--repeats", "2"])
    rows = pd.read_csv(speed.RESULTS)
    assert rows["backend"].tolist() == ["other", *[keras.backend.backend()] * 2]
    numbers = ["inputs", "samples", "measured_samples", "seconds_median", "repeats"]
    book, ours = rows[1:][numbers].values.tolist()
    assert book == [50, 100, 10, 200, 2]
    assert ours == [50, 100, 100, 50, 2]
    assert rows["ratio_to_book"].tolist()[1:] == [1, 0.25]

    written = speed.RESULTS.read_text()
    assert written.count("4e72448") == 1
    speed.main(["tiny", "--repeats", "2"])
    assert speed.RESULTS.read_text() == written


def test_ratios_are_taken_within_a_turn_after_a_warm_up(monkeypatch):
    # Begin and end of the book's way, then of ours; the machine gets slower.
    turns = [0, 99, 0, 1], [0, 10, 0, 5], [0, 20, 0, 10], [0, 60, 0, 15]
    clock = types.SimpleNamespace(perf_counter=itertools.chain(*turns).__next__)
    monkeypatch.setattr(speed, "time", clock)
    for name in (speed.BOOK, speed.OURS):
        way = speed.Way(lambda model: lambda x, num_samples: None)
        monkeypatch.setitem(speed.WAYS, name, way)
    subject = speed.Subject(tiny, 2, {speed.BOOK: 100, speed.OURS: 100})
    monkeypatch.setitem(speed.MODELS, "tiny", subject)
    book, ours = speed.measure("tiny", np.zeros((2, 4)), repeats=3)
    assert [book[f"seconds_{name}"] for name in ("median", "min", "max")] == [
        20,
        10,
        60,
    ]
    assert ours["ratio_to_book"] == 0.5  # of 1/2, 1/2 and 1/4


def test_only_the_first_call_meets_a_new_model_each_time(monkeypatch):
    models = []

    class Predictor:
        def __init__(self, model, **options):
            models.append(model)

        def predict(self, x, verbose):
            return types.SimpleNamespace(mean=None, std=None)

    monkeypatch.setattr(speed, "MCDropoutPredictor", Predictor)
    names = [speed.BOOK, speed.OURS, f"{speed.OURS}, first call"]
    subject = speed.Subject(tiny, 2, dict.fromkeys(names, 2))
    monkeypatch.setitem(speed.MODELS, "tiny", subject)
    speed.measure("tiny", np.zeros((2, 4), "float32"), repeats=2)
    assert len(models) == len({id(model) for model in models}) == 1 + 3
    for model in models[1:]:
        for mine, yours in zip(model.weights, models[0].weights, strict=True):
            np.testing.assert_array_equal(mine.numpy(), yours.numpy())


def test_speed_table_says_what_was_scaled_and_what_is_slower():
    columns = ["model", "inputs", "way", "samples", "measured_samples"]
    columns += ["seconds_median", "seconds_min", "seconds_max", "ratio_to_book"]
    made = [
        ("book", 10_000, speed.BOOK, 100, 100, 12.34, 9.7, 120.6, 1.0),
        ("book", 10_000, "slow", 100, 5, 61.0, 60.0, 62.0, 4.94),
        ("head", 1000, speed.OURS, 100, 100, 0.554, 0.5, 0.6, 0.0123),
    ]
    rows = pd.DataFrame(made, columns=columns).assign(repeats=5, **FACTS)
    both = pd.concat([rows, rows.assign(backend="jax", machine="Fingers")])
    text = table.speed_table(both)
    assert text.count("| model |") == 2
    for line in (
        "| `book` | 10,000 | book's loop | 100 | 12 (9.7 to 121) | 1.0 |",
        "| `book` | 10,000 | slow | 100, scaled from 5 | 61 (60 to 62) | 0.20 |",
        "| `head` | 1,000 | MCDropoutPredictor | 100 | 0.55 (0.50 to 0.60) | 81 |",
        "5 repeats; Fingers; keras 3; commit 4e72448.",
    ):
        assert text.count(line) == (1 if "Fingers" in line else 2)
    assert f"`book`: {speed.book.__doc__}; `head`: {speed.head.__doc__}." in text


# --- training speed


@pytest.mark.parametrize("group", training_speed.GROUPS)
def test_variants_train_and_are_compared_with_plain_training(group, monkeypatch):
    monkeypatch.setattr(training_speed, "STEPS", 2)
    variants = dict(list(training_speed.GROUPS[group].items())[1::4])
    epochs = training_speed.EPOCHS_AFTER_THE_FIRST.get(group, 0)
    rows = pd.DataFrame(training_speed.measure(variants, 2, epochs)).set_index("name")
    assert (rows["steps"] == 2 * max(epochs, 1)).all()
    assert [*rows.index[2:]] == [*variants]
    assert (rows.loc[training_speed.PLAIN, ["microseconds", "low", "high"]] == 0).all()
    assert (rows["low"] <= rows["microseconds"]).all()
    assert (rows["microseconds"] <= rows["high"]).all()
    assert (rows["step_microseconds"] > 0).all()


@pytest.mark.parametrize("epochs_after_the_first, seconds", [(0, 10), (1, 1), (3, 3)])
def test_the_first_epoch_is_not_timed_where_others_are(
    epochs_after_the_first, seconds, monkeypatch
):
    now = 0.0

    class Slow(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            nonlocal now
            now += 10 if epoch == 0 else 1

    clock = types.SimpleNamespace(perf_counter=lambda: now)
    monkeypatch.setattr(training_speed, "time", clock)
    monkeypatch.setattr(training_speed, "STEPS", 2)
    variant = training_speed.with_callback(Slow)
    train_once = training_speed.prepare(variant, epochs_after_the_first)
    assert [train_once(), train_once()] == [seconds, seconds]


def test_the_interval_of_a_median_holds_it_in_95_of_100_cases():
    samples = np.sort(np.random.default_rng(0).exponential(size=(2000, 40)))
    median = np.log(2)
    held = [
        low <= median <= high
        for _, low, high in map(training_speed.median_and_interval, samples)
    ]
    assert 0.94 < np.mean(held) < 0.985  # whole ranks: at least 0.95
    assert training_speed.median_and_interval([1, 2, 9])[0] == 2


def test_table_of_what_a_step_costs():
    columns = ["name", "step_microseconds", "microseconds", "low", "high"]
    made = [
        (training_speed.PLAIN, 1000.0, 0.0, 0.0, 0.0),
        ("OneCycle", 1031.0, 31.4, -2.0, 50.2),
    ]
    rows = pd.DataFrame(made, columns=columns).assign(
        share_of_step=[0, 0.0314], rounds=40, steps=400, **FACTS
    )
    text = table.step_table(rows)
    assert "| OneCycle | 31 (-2 to 50) | 3.1 % |" in text
    assert "Plain step: 1000 microseconds. 40 rounds of 400 steps" in text
    assert "| plain training |" not in text


def test_table_of_the_finder_takes_every_rule():
    rows = pd.DataFrame(
        {"seed": range(3), "steepest": [0.1, 0.3, 0.2], "minimum": 1.0, "steps": 9}
    ).assign(**FACTS)
    text = table.finder_table(rows)
    assert (
        "| steepest | 0.2 | 0.1 | 0.3 |" in text and "| minimum | 1 | 1 | 1 |" in text
    )
    assert "3 seeds; Abacus" in text


def test_table_of_cases_marks_what_does_not_hold():
    columns = ["case", "measure", "expected", "keras", "ours"]
    rows = pd.DataFrame([("two replicas", "norm", 1, 2, 1)], columns=columns)
    text = table.cases_table(rows.assign(keras_holds=False, ours_holds=True, **FACTS))
    assert "| two replicas | norm | 1 | 2 ✗ | 1 |" in text


# --- uncertainty


def test_foreign_images_are_made_of_the_test_images(garments):
    images = garments.x_test
    sets = uncertainty.out_sets(images)
    for foreign in sets.values():
        assert foreign.shape == images.shape and foreign.dtype == np.float32
        assert foreign.min() >= 0 and foreign.max() <= 1
        assert not np.array_equal(foreign, images)
    np.testing.assert_allclose(sets["inverted"] + images, 1, atol=1e-6)
    np.testing.assert_array_equal(sets["rotated"][:, ::-1].swapaxes(1, 2), images)
    pixels = [np.sort(x.reshape(len(x), -1)) for x in (sets["shuffled"], images)]
    np.testing.assert_array_equal(*pixels)
    # Each image by an order of its own: no place is black in all of them any more.
    assert not images.any(axis=0).all() and sets["shuffled"].any(axis=0).all()
    for name, again in uncertainty.out_sets(images).items():
        np.testing.assert_array_equal(again, sets[name])


def test_scores_find_errors_and_foreign_images():
    sure, unsure, even = [0.98, 0.01, 0.01], [0.6, 0.2, 0.2], [1 / 3, 1 / 3, 1 / 3]
    probabilities = {
        "valid": np.array([even] * 3),
        "test": np.array([sure, sure, unsure, sure]),
        "inverted": np.array([even, even]),
        "noise": np.array([sure, sure]),
    }
    labels = np.array([0, 0, 1, 0])
    information = {"test": np.arange(4.0), "inverted": [9, 9], "noise": [-1, 1.5]}
    row = uncertainty.scores(probabilities, labels, information)
    assert row["accuracy"] == 0.75
    assert row["negative log likelihood"] == round(
        -(3 * np.log(0.98) + np.log(0.2)) / 4, 5
    )
    # Of four inputs three are kept at coverage 0.8, the surest.
    assert row["accuracy at coverage 0.8"] == 1
    for score in ("confidence", "entropy"):
        assert row[f"errors by {score}"] == 1
        assert row[f"inverted by {score}"] == 1
        assert row[f"noise by {score}"] == 0.375  # 6 ties and 2 below, of 8 pairs
    assert row["errors by mutual information"] == round(2 / 3, 5)
    assert row["inverted by mutual information"] == 1
    assert row["noise by mutual information"] == 0.25


def test_uncertainty_is_measured_recorded_and_resumed(monkeypatch, tmp_path, garments):
    def trained(run, data, seed):
        keras.utils.set_random_seed(seed)
        return train.network(hidden_units=(), dropout=lambda: layers.Dropout(0.2))

    def fitted_on_validation_data(probabilities, labels):
        assert labels is garments.y_valid and len(probabilities) == len(labels)
        return 3.0

    monkeypatch.setattr(uncertainty, "fit_temperature", fitted_on_validation_data)
    predictor = functools.partial(MCDropoutPredictor, num_samples=10)
    monkeypatch.setattr(uncertainty, "MCDropoutPredictor", predictor)
    monkeypatch.setattr(uncertainty, "trained", trained)
    monkeypatch.setattr(uncertainty, "RUNS", ("dropout",))
    monkeypatch.setattr(uncertainty, "RESULTS", tmp_path / "uncertainty.csv")
    monkeypatch.setattr(record, "commit", lambda: "abc")
    uncertainty.main(["--seeds", "1"])
    rows = pd.read_csv(uncertainty.RESULTS).set_index("kind")
    kinds = ("deterministic", "MC Dropout")
    assert rows.index.tolist() == [k + end for k in kinds for end in ("", TEMPERATURE)]
    for kind in kinds:
        plain, tempered = rows.loc[kind], rows.loc[kind + TEMPERATURE]
        assert plain["temperature"] == 1 and tempered["temperature"] == 3
        assert plain["accuracy"] == tempered["accuracy"]
        assert plain["Brier score"] != tempered["Brier score"]
    # The temperature acts on the mean, the mutual information is of the samples.
    information = rows.filter(like=" by mutual information")
    assert information.shape == (4, 5)
    assert information.dropna().index.tolist() == ["MC Dropout"]
    assert rows.drop(columns=information).notna().all(axis=None)

    written = uncertainty.RESULTS.read_text()
    uncertainty.main(["--seeds", "1"])
    assert uncertainty.RESULTS.read_text() == written


def test_training_is_that_of_the_training_script(monkeypatch, garments):
    class Training(Exception):
        pass

    class Model:
        def fit(self, batches, epochs, callbacks, **others):
            batches.on_epoch_begin()
            first = batches[0][0].tobytes()
            raise Training(
                self.plan[:2], epochs, callbacks[-1], first, np.random.random()
            )

    def build(plan):
        Model.plan = plan
        return Model(), ["callback"]

    run = train.Run(build, epochs=2, batch_size=10, scale="unit")
    monkeypatch.setitem(train.RUNS, "tiny", run)
    options = train.command_line().parse_args(["baseline", "--seed", "3"])
    options.run = "tiny"
    with pytest.raises(Training) as theirs:
        train.train(options, garments, "garments", folder=None)
    with pytest.raises(Training) as ours:
        uncertainty.trained(run, garments, seed=3)
    assert ours.value.args == theirs.value.args


def test_uncertainty_table_is_bold_only_where_no_seed_disagrees():
    made = [
        # kind, seed, accuracy, likelihood, errors by confidence, by mutual information
        ("deterministic", 0, 0.86, 0.36, 0.90, None),
        ("MC Dropout", 0, 0.87, 0.38, 0.89, 0.80),
        ("deterministic", 1, 0.86, 0.38, 0.88, None),
        ("MC Dropout", 1, 0.85, 0.39, 0.89, 0.80),
    ]
    columns = ["kind", "seed", "accuracy", "negative log likelihood"]
    columns += ["errors by confidence", "errors by mutual information"]
    rows = pd.DataFrame(made, columns=columns).assign(run="book", **FACTS)
    same = ["Brier score", "calibration error", "errors by entropy"]
    rows = rows.assign(**dict.fromkeys(same, 0.5))
    rows["accuracy at coverage 0.8"] = [0.9, 0.8] * 2
    text = table.uncertainty_table(rows.assign(temperature=1.0))
    # The sample deviation of 0.36 and 0.38 is 0.0141, of 0.87 and 0.85 the same.
    for line in (
        "| book | deterministic | 0.8600 ± 0.0000 | **0.3700 ± 0.0141** | **0.5000",
        "| book | MC Dropout | 0.8600 ± 0.0141 | 0.3850 ± 0.0071 | **0.5000",
        "| **0.9000 ± 0.0000** | 1.00 ± 0.00 |",
        "| 0.8000 ± 0.0000 | 1.00 ± 0.00 |",
        "| book | deterministic | confidence | 0.890 ± 0.014 |",
        "| book | MC Dropout | confidence | 0.890 ± 0.000 |",
        "| book | MC Dropout | mutual information | 0.800 ± 0.000 |",
        "2 seeds",
    ):
        assert line in text
    assert "deterministic | mutual" not in text


# --- transfer


def test_task_b_has_other_images_for_each_seed_and_task_a_none_of_its_classes(garments):
    (x_a, y_a), first = transfer.split(garments, 0)
    _, second = transfer.split(garments, 1)
    assert set(y_a) == set(range(8)) and len(x_a) == len(y_a)
    is_b = np.isin(garments.y_train, (0, 2))
    assert len(x_a) + len(first.x_train) == len(garments.y_train)  # of few, all
    assert sorted(map(float, first.y_train)) == sorted(garments.y_train[is_b] / 2)
    for x, y in ((first.x_train, first.y_train), (first.x_test, first.y_test)):
        for image, label in zip(x, y, strict=True):
            images = np.concatenate([garments.x_train, garments.x_test])
            labels = np.concatenate([garments.y_train, garments.y_test])
            place = (images == image).all(axis=(1, 2)).argmax()
            assert labels[place] == 2 * label
    assert not np.array_equal(first.x_train, second.x_train)
    assert np.array_equal(first.x_test, second.x_test)


def test_the_ways_to_learn_task_b_begin_and_move_as_they_say(monkeypatch, garments):
    monkeypatch.setattr(transfer, "RATES", (0.0, 0.1))
    monkeypatch.setattr(transfer, "EPOCHS", 6)
    _, task = transfer.split(garments, 0)
    head = transfer.last_layer(8, "softmax", 1)
    trained = transfer.network(head, 1)
    a = trained.get_weights()
    starts = {}
    for way, times in transfer.WAYS.items():
        model, ends = transfer.learn_b(trained, task, times, seed=0)
        starts[way], moved = ends[0.0], ends[0.1]
        assert all((x != y).any() for x, y in zip(starts[way], moved, strict=True))
        expected = transfer.network(transfer.last_layer(1, "sigmoid", 0), 0)
        expected = expected.get_weights()
        if way != transfer.SCRATCH:
            expected[:-2] = a[:-2]
        for x, y in zip(starts[way], expected, strict=True):
            np.testing.assert_array_equal(x, y)
    monkeypatch.setattr(transfer, "EPOCHS", transfer.FROZEN_EPOCHS)
    _, ends = transfer.learn_b(trained, task, 1, seed=0)
    for x, y in zip(ends[0.1][:-2], a[:-2], strict=True):
        np.testing.assert_array_equal(x, y)
    for x, y in zip(trained.get_weights(), a, strict=True):
        np.testing.assert_array_equal(x, y)


def test_transfer_is_measured_recorded_resumed_and_drawn(
    monkeypatch, tmp_path, garments
):
    monkeypatch.setattr(transfer, "EPOCHS", 5)
    monkeypatch.setattr(
        transfer, "learn_a", functools.partial(transfer.learn_a, epochs=1)
    )
    monkeypatch.setattr(transfer, "RATES", (transfer.BOOK_RATE, 0.1))
    reads = []
    true_error = transfer.error

    def counted(model, weights, x, y):
        reads.append(len(y))
        return true_error(model, weights, x, y)

    monkeypatch.setattr(transfer, "error", counted)
    monkeypatch.setattr(record, "commit", lambda: "abc")
    path = tmp_path / "transfer.csv"
    transfer.main(["--seeds", "1", "--results", str(path)])
    rows = pd.read_csv(path)
    assert len(rows) == 2 * len(transfer.WAYS)
    test_errors = rows.drop_duplicates(["way", "rate"])
    num_test = np.isin(garments.y_test, transfer.CLASSES_B).sum()
    assert reads.count(num_test) == len(test_errors)
    assert rows["test_error"].between(0, 1).all()
    assert path.with_suffix(".png").stat().st_size < 200_000

    written = path.read_text()
    transfer.main(["--seeds", "1", "--results", str(path)])
    assert path.read_text() == written
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "transfer.csv",
        "transfer.png",
    ]


def test_transfer_table_compares_within_a_seed_and_a_choice():
    made = [
        ("the book's", transfer.SCRATCH, (0.08, 0.10, 0.12)),
        ("the book's", "reused", (0.04, 0.10, 0.15)),
        ("chosen", transfer.SCRATCH, (0.05, 0.05, 0.05)),
    ]
    rows = pd.DataFrame(
        [
            {"seed": seed, "choice": choice, "way": way, "test_error": error}
            for choice, way, errors in made
            for seed, error in enumerate(errors)
        ]
    )
    text = table.transfer_table(rows.assign(**FACTS))
    for line in (
        "| the book's | from scratch | 10.00 ± 2.00 | 1 |  |",
        "| the book's | reused | 9.67 ± 5.51 | 1.00 (0.80 to 2.00) | 1 of 3 |",
        "| chosen | from scratch | 5.00 ± 0.00 | 1 |  |",
    ):
        assert line in text


# --- structures


@pytest.fixture
def small_structures(monkeypatch, garments):
    monkeypatch.setattr(structures, "loaded", lambda scale: garments)
    deep = structures.Setting("deep", "SELU, LeCun", 2, 4, 16, 64)
    depth = deep._replace(demonstration="depth", variant="residual")
    monkeypatch.setattr(
        structures,
        "settings",
        lambda: {
            deep: structures.Training("unit", "sgd", (0.001,), 2, 1),
            depth: structures.Training("unit", "momentum", (0.1, 1e-9), 2, 2),
        },
    )


def test_structures_are_measured_recorded_drawn_and_resumed(
    small_structures, garments, monkeypatch, tmp_path
):
    monkeypatch.setattr(record, "commit", lambda: "abc")
    path = tmp_path / "structures.csv"
    arguments = ["--only", "depth", "--seeds", "2", "--results", str(path)]
    structures.main(arguments)
    rows = pd.read_csv(path)
    assert rows[["rate", "seed"]].values.tolist() == [
        [0.1, 0], [1e-9, 0], [0.1, 1], [1e-9, 1],
    ]  # fmt: skip
    assert (rows["steps"] == 2 * 4).all() and (rows["epochs"] == 2).all()
    # A rate of nearly nothing leaves the weights of the seed, and the next run is not
    # begun with the weights and the momentum of the one before.
    for row in rows[rows["rate"] == 1e-9].itertuples():
        keras.utils.set_random_seed(row.seed)
        model = train.compiled(structures.network("residual", 2, 4), "sgd")
        x, y = garments.x_valid, garments.y_valid
        loss = model.evaluate(x, y, verbose=0)[0]
        np.testing.assert_allclose(row.val_loss, loss, rtol=1e-4)
    assert rows["val_loss"].nunique() == 4

    written = path.read_text()
    structures.main(arguments)
    assert path.read_text() == written
    structures.main(arguments[2:])
    rows = pd.read_csv(path)
    assert rows["demonstration"].tolist()[4:] == ["deep"] * 4 + ["contours"] * 6
    assert rows["epochs"].tolist()[4:8] == [1, 2, 1, 2]
    structures.main(arguments[2:])
    assert len(pd.read_csv(path)) == len(rows)
    for name in ("deep", "depth", "contours"):
        assert (tmp_path / f"structures_{name}.png").stat().st_size > 1000
    text = table.structures_table(rows)
    assert "| depth | residual | 2 | 4 | 16 |" in text
    assert "| standardized |" in text and "2 seeds; " in text


def test_networks_are_as_deep_as_they_say():
    def kernels(variant):
        model = structures.network(variant, 10, 4)
        shapes = [tuple(w.shape) for w in model.weights if w.path.endswith("kernel")]
        return shapes.count((4, 4))

    # The first layer and the last are of other shapes; highway layers have two kernels.
    assert kernels("plain") == kernels("batch, after") == kernels("SELU, LeCun") == 9
    assert kernels("residual") == 9
    assert kernels("highway") == 2 * 9


@pytest.mark.parametrize("variant", structures.SCALES)
def test_a_descent_is_that_of_keras_and_ends_near_the_least_loss(variant):
    found = structures.descent(variant, seed=3)
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    model.set_weights([np.zeros((2, 1)), np.zeros(1)])
    model.compile(keras.optimizers.SGD(found.rate), "mse")
    for weights in found.path[:3]:
        flat = np.concatenate([w.ravel() for w in model.get_weights()])
        np.testing.assert_allclose(flat, weights, rtol=1e-4, atol=1e-6)
        model.train_on_batch(found.inputs, found.targets[:, None])

    columns = np.column_stack([found.inputs, np.ones(len(found.inputs))])
    best = np.linalg.solve(columns.T @ columns, columns.T @ found.targets)
    losses = np.square(found.path @ columns.T - found.targets).mean(axis=1)
    excess = losses - np.square(columns @ best - found.targets).mean()
    np.testing.assert_allclose(found.excess, excess)
    assert excess[-1] <= 0.01 * excess[0] < excess[-2]
    np.testing.assert_allclose(
        found.condition_number, np.linalg.cond(columns.T @ columns)
    )


def test_the_inputs_of_a_descent_are_scaled_as_it_says():
    unscaled, unit, standardized = (
        structures.descent(variant, seed=0).inputs for variant in structures.SCALES
    )
    assert unscaled[:, 1].std() > 8 * unscaled[:, 0].std()
    assert (unit.min(axis=0) == 0).all() and (unit.max(axis=0) == 1).all()
    np.testing.assert_allclose(standardized.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(standardized.std(axis=0), 1)


def test_the_best_rate_is_that_of_the_mean_over_the_seeds_after_the_last_epoch():
    made = [
        # rate, seed, epochs, validation accuracy
        (0.1, 0, 1, 0.9),
        (0.1, 0, 2, 0.1),
        (0.1, 1, 2, 0.8),
        (0.3, 0, 2, 0.5),
        (0.3, 1, 2, 0.6),
    ]
    rows = pd.DataFrame(made, columns=["rate", "seed", "epochs", "val_accuracy"])
    setting = dict.fromkeys(structures.Setting._fields, 1)
    other = rows.assign(**{**setting, "layers": 2, "rate": 0.7})
    best = structures.at_best_rate(pd.concat([rows.assign(**setting), other]))
    assert best["rate"].tolist() == [0.3, 0.3] + [0.7] * 5


# --- the pages


def test_a_page_takes_the_tables_there_are(monkeypatch, tmp_path):
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    readme = "<!-- uncertainty -->\nold\n<!-- end of uncertainty -->\n"
    assert table.rendered(readme) == readme
    pd.DataFrame([FACTS]).to_csv(tmp_path / "uncertainty.csv")
    rows = "uncertainty.csv", table.measured_with
    monkeypatch.setitem(table.TABLES, "uncertainty", rows)
    facts = "Abacus; keras 3; commit 4e72448."
    assert table.rendered(readme) == readme.replace("old", facts)
    assert table.rendered("no block") == "no block"


@pytest.mark.parametrize(
    "number, text",
    [(0.0123, "0.012"), (0.996, "1.0"), (9.99, "10"), (12.34, "12"), (1234, "1234")],
)
def test_two_digits(number, text):
    assert table.two_digits(number) == text
