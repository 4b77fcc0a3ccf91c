"""The networks are those that are named, and the record is what the README says."""

import pathlib
import sys

import keras
import numpy as np
import pandas as pd
import pytest
from keras import layers

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import signals  # noqa: E402
import table  # noqa: E402

from recipes import fashion_mnist  # noqa: E402

COLUMNS = ["network", "weights", "place"]
COLUMNS += [
    f"{quantity} {which}"
    for quantity in ("gradient", "product", "std", "sensitive")
    for which in ("median", "min", "max")
]
COLUMNS += ["seeds", "versions", "machine", "commit"]
FIGURES = ["signals_depth.png", "signals_normalization.png", "signals_time.png"]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(signals, "NUM_IMAGES", 8)
    monkeypatch.setattr(signals, "NUM_LAYERS", 2)
    monkeypatch.setattr(signals, "NUM_STEPS", 4)
    monkeypatch.setattr(signals, "STEPS_PER_RECORD", 2)


def images(num_images):
    x, y = fashion_mnist.draw_garments(num_images)
    return (x / 255).astype("float32"), y


@pytest.mark.parametrize(
    "weights, variance",
    [*zip(signals.WEIGHTS, [1e-4, 1 / 300, 2 / 200, 2 / 100, 1], strict=True)],
)
def test_weights_of_a_square_layer_have_the_variance_named(weights, variance, small):
    keras.utils.set_random_seed(0)
    model = signals.deep("tanh", signals.WEIGHTS[weights])
    kernel = model.get_layer("place_2").get_weights()[0]
    assert kernel.shape == (100, 100)
    np.testing.assert_allclose(kernel.var(), variance, rtol=0.06)  # 4 deviations


def test_batch_normalization_stands_before_each_sigmoid(small):
    weights = signals.WEIGHTS["He"]
    plain, normalized = (
        [type(layer).__name__ for layer in signals.deep(network, weights).layers]
        for network in ("sigmoid", signals.NORMALIZED)
    )
    assert plain == ["Flatten", *["Dense"] * 3]
    block = ["Dense", "BatchNormalization", "Activation"]
    assert normalized == ["Flatten", *block * 2, "Dense"]


@pytest.mark.parametrize("network, name", signals.CELLS)
def test_unrolled_cells_are_keras_layers(network, name, small):
    keras.utils.set_random_seed(0)
    model = signals.unrolled(signals.CELLS[network, name]())
    layer = getattr(layers, network)(signals.UNITS)
    x, _ = images(5)
    outputs = layer(layers.Reshape((4, -1))(x))
    own, default = model.get_weights(), layer.get_weights()
    if "Keras" in name:
        np.testing.assert_array_equal(own[2], default[2])
        size = np.linalg.norm(own[1]), np.linalg.norm(default[1])
        np.testing.assert_allclose(*size, rtol=1e-5)  # orthogonal
    layer.set_weights(own[:3])
    outputs = layer(layers.Reshape((4, -1))(x))
    expected = outputs @ own[3] + own[4]
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=1e-5)


def test_gradient_by_time_step_is_that_of_backpropagation_through_time(small):
    keras.utils.set_random_seed(0)
    x, y = images(6)
    model = signals.unrolled(signals.simple_cell(2.0))
    kernel, recurrent, _, output, _ = model.get_weights()
    read, states = x.reshape(6, 4, -1), [np.zeros((6, signals.UNITS))]
    for t in range(4):
        states.append(np.tanh(read[:, t] @ kernel + states[-1] @ recurrent))
    exponentials = np.exp(states[-1] @ output)
    error = exponentials / exponentials.sum(axis=1, keepdims=True) - np.eye(10)[y]
    error = error @ output.T
    norms = []
    for state in states[:0:-1]:
        error = error * (1 - state**2)
        norms.append(np.linalg.norm(error @ kernel.T))
        error = error @ recurrent.T
    rows = signals.places(model, x, y)
    assert rows["place"].tolist() == [2, 4]
    np.testing.assert_allclose(rows["gradient"], [norms[2] / norms[0], 1], rtol=1e-4)


@pytest.mark.slow
def test_record_and_pictures_are_written_and_drawn_again(small, monkeypatch, tmp_path):
    x, y = images(20)
    data = fashion_mnist.FashionMNIST(x, y, x, y, x, y, ())
    monkeypatch.setattr(fashion_mnist, "load", lambda folder, scale: data)
    # One of each kind will do.
    monkeypatch.setattr(signals, "ACTIVATIONS", ["relu"])
    name = "Glorot, LeCun"  # which each picture has
    monkeypatch.setattr(signals, "WEIGHTS", {name: signals.WEIGHTS[name]})
    cells = dict(list(signals.CELLS.items())[2:4])
    monkeypatch.setattr(signals, "CELLS", cells)
    path = tmp_path / "signals.csv"
    signals.main(["--seeds", "2", "--results", str(path)])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["signals.csv", *FIGURES]
    rows = pd.read_csv(path)
    assert rows.columns.tolist() == COLUMNS
    assert len(rows) == 2 * 2 + 2 * 2  # networks and cells, two places each
    assert rows["network"].unique().tolist() == [
        "relu",
        signals.NORMALIZED,
        "SimpleRNN",
        "LSTM",
    ]
    for quantity in ("gradient", "product", "std", "sensitive"):
        bounds = rows[[f"{quantity} {which}" for which in ("min", "median", "max")]]
        bounds = bounds.dropna()
        assert len(bounds) and (np.diff(bounds, axis=1) >= 0).all()
    last = rows[rows["place"] == rows.groupby("network")["place"].transform("max")]
    assert (last[["gradient min", "gradient max"]] == 1).all(axis=None)

    written = path.read_bytes()
    (tmp_path / FIGURES[0]).unlink()
    signals.main(["--draw", "--results", str(path)])
    assert path.read_bytes() == written and (tmp_path / FIGURES[0]).exists()


def test_nothing_is_written_when_a_measurement_is_interrupted(monkeypatch, tmp_path):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(fashion_mnist, "load", lambda folder, scale: None)
    monkeypatch.setattr(signals, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        signals.main(["--results", str(tmp_path / "signals.csv")])
    assert not any(tmp_path.iterdir())


def test_the_record_is_what_the_readme_says():
    rows = pd.read_csv(signals.RESULTS, dtype={"commit": str})
    assert rows.columns.tolist() == COLUMNS and (rows["seeds"] == 5).all()
    names = ["network", "weights"]
    assert len(rows[names].drop_duplicates()) == 6 * 5 + len(signals.CELLS)
    by_name = rows.groupby(names)
    first, last = by_name.first(), by_name.last()
    gradient = first["gradient median"]

    usual = ["uniform, variance 1/(3n)", "Glorot, LeCun", "He"]
    assert (gradient["sigmoid"][usual] < 1e-8).all()
    assert 0.1 < gradient["sigmoid"]["normal, deviation 1"] < 1
    assert gradient["tanh", "normal, deviation 1"] > 1e5
    for activation, weights in (
        ("relu", "He"), ("selu", "Glorot, LeCun"), ("tanh", "He"), ("elu", "He"),
    ):  # fmt: skip
        assert 0.1 < gradient[activation, weights] < 10
    assert gradient["relu", "Glorot, LeCun"] < 3e-3
    # The product explains the norm within a factor of two, but not through time.
    deep = rows[~rows["network"].isin(["SimpleRNN", "LSTM"])]
    ratio = deep["product median"] / deep["gradient median"]
    assert ratio.between(1 / 2, 2).all()

    normalized = gradient[signals.NORMALIZED]
    assert (normalized.drop("normal, deviation 0.01").between(1, 10)).all()
    assert normalized["normal, deviation 0.01"] < 0.1
    sensitive = last["sensitive median"]
    assert sensitive["sigmoid", "normal, deviation 1"] < 0.3
    assert sensitive["sigmoid", "Glorot, LeCun"] > 0.99
    assert (sensitive[signals.NORMALIZED] > 0.9).all()
    std = last["std median"]
    assert std["relu", "normal, deviation 1"] > 1e15
    assert 0.1 < std["relu", "He"] < 10
    assert (std["sigmoid"] < 0.5).all()

    assert gradient["SimpleRNN", "recurrent weights doubled"] > 100
    assert gradient["SimpleRNN", "recurrent weights of Keras"] < 1e-3
    assert gradient["LSTM", "forget bias 1, of Keras"] < 1e-3
    assert gradient["LSTM", "forget bias 0"] < 1e-8
    assert 0.1 < gradient["LSTM", "forget bias 5"] < 10


def test_table_of_signals_reads_the_first_layer_and_marks_the_healthy():
    made = [
        ("relu", "He", 1, 0.71), ("relu", "He", 2, 1.0),
        ("relu", "Glorot", 1, 0.00094), ("selu", "He", 1, 28.4),
        ("LSTM", "forget bias 0", 4, 0.5),
    ]  # fmt: skip
    columns = ["network", "weights", "place", "gradient median"]
    facts = {"machine": "Abacus", "versions": "keras 3", "commit": "4e72448"}
    rows = pd.DataFrame(made, columns=columns).assign(seeds=5, **facts)
    lines = table.signals_table(rows).splitlines()
    assert lines[0] == "| hidden layers | He | Glorot |"
    assert lines[2:4] == ["| relu | **0.71** | 0.00094 |", "| selu | 28 |  |"]
    assert lines[-1].endswith("5 seeds; Abacus; keras 3; commit 4e72448.")
    assert "LSTM" not in table.signals_table(rows)
