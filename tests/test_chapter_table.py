import math
import pathlib
import sys

import keras
import numpy as np
import pandas as pd
import pytest
import scipy.stats

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "benchmarks"))

import chapter_table  # noqa: E402
import table  # noqa: E402

from recipes import fashion_mnist  # noqa: E402


@pytest.fixture(scope="module")
def garments():
    return fashion_mnist.split_and_scale(
        fashion_mnist.draw_garments(500, seed=1),
        fashion_mnist.draw_garments(100, seed=2),
        validation_size=100,
    )


@pytest.fixture
def short(monkeypatch, garments):
    """One epoch on few garments wherever a row would train on Fashion-MNIST."""
    train = chapter_table.Lesson.train

    def one_epoch(lesson, *arguments, epochs, **options):
        return train(lesson, *arguments, epochs=1, **options)

    monkeypatch.setattr(chapter_table.Lesson, "train", one_epoch)
    monkeypatch.setattr(chapter_table, "loaded", lambda edition, scale: garments)
    monkeypatch.setattr(chapter_table, "MC_SAMPLES", 3)


def test_second_edition_validates_on_the_first_images(monkeypatch):
    images = np.zeros((60_000, 28, 28), "uint8")
    images[:5000] = 255
    labels = np.arange(60_000) % 10
    whole = fashion_mnist.FashionMNIST(
        images[:55_000],
        labels[:55_000],
        images[55_000:],
        labels[55_000:],
        images[:10],
        labels[:10],
        fashion_mnist.CLASS_NAMES,
    )
    monkeypatch.setattr(fashion_mnist, "load", lambda *_, **__: whole)
    split = chapter_table.loaded.__wrapped__
    second, third = split(2, "unit"), split(3, "unit")
    assert second.x_valid.min() == 1 and second.x_train.max() == 0
    np.testing.assert_array_equal(second.y_train, labels[5000:])
    assert third.x_valid.max() == 0 and third.x_train[:5000].min() == 1


def test_one_cycle_is_the_notebooks():
    # Its half is (iterations - last) // 2 steps, its last phase a tenth and one.
    total, top = 25 * 430, 0.1
    last = total // 10 + 1
    half = (total - last) // 2
    corners = [0, half, 2 * half, total]
    expected = np.interp(
        np.arange(0, total, 100), corners, [top / 10, top, top / 10, top / 1e4]
    )
    schedule = chapter_table.notebook_one_cycle(top)
    rates = [float(schedule(step)) for step in range(0, total, 100)]
    np.testing.assert_allclose(rates, expected, atol=1e-3 * top)


def test_classes_are_labelled_anew_and_images_keep_their_labels(garments):
    lesson = chapter_table.Lesson(garments, 0).of([2, 5])
    is_one = np.isin(garments.y_test, [2, 5])
    np.testing.assert_array_equal(lesson.data.x_test, garments.x_test[is_one])
    np.testing.assert_array_equal(lesson.data.y_test == 1, garments.y_test[is_one] == 5)
    assert len(lesson.first(7).data.x_train) == len(lesson.first(7).data.y_train) == 7
    assert lesson.data.class_names == garments.class_names


def test_frozen_layers_stay_and_move_once_all_train(garments, monkeypatch):
    seen = []
    train = chapter_table.Lesson.train

    def watched(lesson, model, *arguments, **options):
        before = model.layers[1].get_weights()[0]
        numbers = train(lesson, model, *arguments, **options | {"epochs": 1})
        seen.append(np.ptp(model.layers[1].get_weights()[0] - before) > 0)
        return numbers

    monkeypatch.setattr(chapter_table.Lesson, "train", watched)
    lesson = chapter_table.Lesson(garments, 0)
    hidden = chapter_table.relu_100()
    chapter_table.model_b_on_a(lesson, (0, 2), hidden)
    assert seen == [True, False, True]


def test_rows_are_measured_recorded_and_not_repeated(short, tmp_path):
    path = tmp_path / "chapter.csv"
    names = ["range_test_3", "model_b_3", "dropout_3"]
    chapter_table.main([*names, "--seeds", "1", "--results", str(path)])
    written = path.read_text()
    chapter_table.main([*names, "--seeds", "1", "--results", str(path)])
    assert path.read_text() == written
    rows = pd.read_csv(path).set_index("run")
    assert list(rows.index) == names
    assert 1e-4 <= rows.loc["range_test_3", "rate_of_lowest_loss"] <= 1
    for name in names[1:]:
        for measure in chapter_table.ROWS[name].recorded:
            assert not math.isnan(rows.loc[name, measure]), (name, measure)
    assert math.isnan(rows.loc["model_b_3", "mc_test_accuracy"])


@pytest.mark.slow
@pytest.mark.parametrize("name", chapter_table.ROWS)
def test_every_row_gives_what_the_notebook_has_recorded(short, name):
    numbers = chapter_table.measure(name, 0)
    row = chapter_table.ROWS[name]
    recorded = row.recorded or chapter_table.ROWS[row.beside].recorded
    accuracies = {m for m in recorded if m.endswith("accuracy")} or set(recorded)
    assert all(np.isfinite(numbers[measure]) for measure in accuracies)


def test_unknown_row_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        chapter_table.main(["power_4"])
    assert "power_4" in capsys.readouterr().err


def test_every_row_says_what_it_is_and_what_was_recorded():
    for name, row in chapter_table.ROWS.items():
        assert row.run.__doc__ and row.edition in (2, 3), name
        assert bool(row.recorded) != bool(row.beside), name
        assert row.beside in {"", *chapter_table.ROWS}, name


def test_prediction_interval_holds_as_often_as_it_says():
    samples = np.random.default_rng(0).normal(3.0, 2.0, (2000, 6))
    num_inside = 0
    for sample in samples:
        low, high = table.prediction_interval(pd.Series(sample[:5]))
        num_inside += low <= sample[5] <= high
    # Four deviations of a share of 2,000.
    assert abs(num_inside / 2000 - 0.95) < 0.02


def test_gain_interval_is_welchs():
    random = np.random.default_rng(0)
    ours, theirs = random.normal(0.9, 0.01, 4), random.normal(0.88, 0.003, 6)
    expected = scipy.stats.ttest_ind(ours, theirs, equal_var=False)
    found = table.gain_interval(pd.Series(ours), pd.Series(theirs))
    np.testing.assert_allclose(found, expected.confidence_interval(), rtol=1e-9)


def test_table_says_whether_the_recorded_number_is_inside():
    facts = {"versions": "v", "machine": "m", "commit": "c"}
    accuracies = [0.871, 0.872, 0.873, 0.874, 0.875]
    rows = pd.DataFrame(
        [
            {"run": name, "seed": seed, "val_accuracy": accuracy, "val_loss": 0.1}
            | facts
            for name in ("power_3", "sgd_3")
            for seed, accuracy in enumerate(accuracies)
        ]
    )
    lines = table.chapter_rows(rows).splitlines()
    sgd, power = (line for line in lines if line.startswith("| `"))
    cells = [cell.strip() for cell in power.split("|")]
    # 0.8714 is within 0.873 +- 2.776 x 0.00158 x sqrt(1.2); 0.3569 is not 0.1.
    assert cells[4:7] == ["0.8714", "0.8730 ± 0.0016", "yes"]
    assert cells[9] == "**no**: 0.1000 to 0.1000"
    assert "†" in sgd and "1 of 1 for the accuracy" in table.chapter_rows(rows)


def test_same_seed_gives_the_same_numbers(short):
    first, second = (chapter_table.measure("momentum_3", 1) for _ in range(2))
    assert keras.tree.map_structure(str, first) == keras.tree.map_structure(str, second)
