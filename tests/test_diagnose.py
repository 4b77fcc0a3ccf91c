import ast
import importlib
import itertools
import textwrap

import keras
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.diagnose import CHANGES, Finding, diagnose_curves, plot_diagnosis
from recipes.fashion_mnist import draw_garments

few = settings(max_examples=25, deadline=None)
SEEDS = 150


def falling(num_epochs, constants, top=2.3, bottom=0.3):
    """An exponential fall through so many time constants."""
    part = np.arange(num_epochs) / (num_epochs - 1)
    return bottom + (top - bottom) * np.exp(-constants * part)


def made(kind, seed, noise=0.02):
    """A noisy history of a known kind; lengths, depths and speeds are drawn."""
    rng = np.random.default_rng([seed, len(kind)])
    n = int(rng.integers(12, 80))
    part = np.arange(n) / (n - 1)
    bottom = rng.uniform(0.1, 0.5)
    healthy = falling(n, rng.uniform(12, 20), bottom=bottom)
    loss, val_loss, accuracy = healthy, 1.1 * healthy, 1 - bottom / 2
    late = np.maximum(part - rng.uniform(0.2, 0.4), 0)
    if kind == "overfitting":
        loss = bottom * np.exp(-3 * part) + falling(n, 15, bottom=0)
        val_loss = 1.1 * healthy + late * rng.uniform(0.5, 2)
    elif kind == "overfitting, flat":
        loss = bottom * np.exp(-4 * part) + falling(n, 15, bottom=0)
    elif kind == "still learning":
        loss = falling(n, rng.uniform(1.5, 2.5), bottom=bottom)
        val_loss = 1.1 * loss
    elif kind == "data set":
        val_loss = bottom + falling(n, 2, bottom=0)
    elif kind == "slow learning":
        loss = falling(n, rng.uniform(0.15, 0.35))
        val_loss = 1.02 * loss
    elif kind == "plateau":
        loss, accuracy = 2.3 + 0.01 * falling(n, 10), 0.1
        val_loss = loss
    elif kind == "underfitting":
        loss, accuracy = falling(n, 15, bottom=1.4), 0.5
        val_loss = 1.02 * loss
    elif kind == "divergence":
        loss = healthy + late * rng.uniform(1, 3)
        val_loss = loss
    loss, val_loss = np.array([loss, val_loss]) * rng.normal(1, noise, (2, n))
    if kind == "oscillation":
        loss *= np.exp(rng.normal(0, 0.3, n))
        val_loss *= np.exp(rng.normal(0, 0.3, n))
    return {
        "loss": loss,
        "val_loss": val_loss,
        "accuracy": np.full(n, accuracy),
    }


def symptoms(history, **thresholds):
    return [finding.symptom for finding in diagnose_curves(history, **thresholds)]


# --- made curves


@pytest.mark.parametrize(
    ("noise", "limit"), [(0.0, 0.0), (0.01, 0.0), (0.03, 0.02), (0.05, 0.03)]
)
def test_healthy_curves_are_met_with_silence(noise, limit):
    alarms = [bool(symptoms(made("healthy", seed, noise))) for seed in range(SEEDS)]
    assert np.mean(alarms) <= limit


@pytest.mark.parametrize(
    "kind",
    [
        "overfitting",
        "overfitting, flat",
        "still learning",
        "data set",
        "slow learning",
        "plateau",
        "underfitting",
        "divergence",
        "oscillation",
    ],
)
def test_the_fault_is_named_first(kind):
    named = [symptoms(made(kind, seed))[:1] for seed in range(SEEDS)]
    assert np.mean([each == [kind.partition(",")[0]] for each in named]) >= 0.95


def test_a_wild_epoch_is_no_finding():
    history = {"loss": falling(30, 12), "val_loss": falling(30, 12, bottom=0.35)}
    for epoch, name, factor in itertools.product(range(30), history, (0.3, 3.0)):
        spiked = {**history, name: history[name].copy()}
        if epoch or factor > 1:  # the first loss is the scale of the others
            spiked[name][epoch] *= factor
        assert symptoms(spiked) == []


def test_a_movement_is_two_in_a_hundred_orders():
    # Of six values in random order so many may fall, by the ranks alone.
    levels = np.arange(10.0, 16.0)
    orders = list(itertools.permutations(levels))
    learning = ["still learning", "slow learning"]
    falls = [each for each in orders if set(symptoms({"loss": each})) & set(learning)]
    pairs = list(itertools.combinations(range(6), 2))
    scores = [sum(np.sign(each[j] - each[i]) for i, j in pairs) for each in orders]
    z = (np.array(scores) + 1) / np.sqrt(6 * 5 * 17 / 18)
    assert len(falls) == np.sum(z < -2.05) <= 0.02 * len(orders)


@few
@given(st.integers(0, 10**6), st.floats(1e-3, 1e6))
def test_the_unit_of_the_loss_does_not_matter(seed, unit):
    kinds = ("healthy", "overfitting", "oscillation", "slow learning", "divergence")
    history = made(kinds[seed % len(kinds)], seed)
    scaled = {**history}
    for name in ("loss", "val_loss"):
        scaled[name] = unit * history[name]
    assert symptoms(scaled) == symptoms(history)


@few
@given(
    st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=40),
    st.integers(0, 10**6),
)
def test_any_numbers_are_judged_without_complaint(loss, seed):
    order = np.random.default_rng(seed).permutation(len(loss))
    history = {"loss": loss, "val_loss": np.array(loss)[order]}
    for finding in diagnose_curves(history):
        assert 0 <= finding.epoch < len(loss)
        assert np.all(np.isfinite(list(finding.evidence.values())))
        assert all(to in CHANGES[knob] for knob, to in finding.change.items())
        assert str(finding).startswith(finding.symptom)


# --- the verdicts one by one


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_is_a_divergence_from_that_epoch_on(bad):
    (finding,) = diagnose_curves({"loss": [2.0, 1.0, bad], "val_loss": [2.0, bad, bad]})
    assert (finding.symptom, finding.epoch) == ("divergence", 2)
    assert finding.evidence == {"last_finite_loss": 1.0}
    (finding,) = diagnose_curves({"loss": [bad]})
    assert (finding.epoch, finding.evidence) == (0, {})


def test_a_validation_loss_alone_that_is_not_finite_points_to_the_data():
    healthy = falling(20, 12)
    (finding,) = diagnose_curves({"loss": healthy, "val_loss": [1.0] * 19 + [np.nan]})
    assert (finding.symptom, finding.epoch) == ("data set", 19)
    assert finding.change == {"data": "check"}
    assert symptoms({"loss": [1.0, 0.5], "val_loss": [1.0, np.inf]}) == ["data set"]


def test_a_loss_that_broke_down_and_stays_there_has_diverged():
    loss = np.concatenate([falling(20, 5), np.full(20, 2.3)])
    (finding,) = diagnose_curves({"loss": loss})
    assert finding.symptom == "divergence"
    assert finding.epoch < 20
    assert finding.evidence["rise_fraction"] > 5


def test_overfitting_begins_where_the_validation_loss_was_least():
    epochs = np.arange(60)
    history = {
        "loss": falling(60, 8, bottom=0.01),
        "val_loss": 0.5 + (epochs - 25.0) ** 2 / 1000,
        "val_accuracy": 0.8 - np.maximum(epochs - 25, 0) / 1000,
        "learning_rate": 1 / (1 + epochs),
    }
    (finding,) = diagnose_curves(history)
    assert finding.symptom == "overfitting"
    # 5% above the least: 0.025 = 5 ** 2 / 1000, five epochs to either side.
    assert abs(finding.epoch - 20) <= 1
    assert finding.evidence["val_accuracy_change"] == pytest.approx(-0.0245, abs=1e-3)
    assert finding.evidence["learning_rate"] == 1 / (1 + finding.epoch)


def test_a_small_gap_to_a_flat_validation_loss_is_silent():
    history = {"loss": falling(40, 8, bottom=0.2), "val_loss": np.full(40, 0.35)}
    assert symptoms(history) == []
    assert symptoms(history, min_gap=0.4) == ["overfitting"]


def test_a_true_rise_of_the_validation_loss_needs_no_wide_gap():
    epochs = np.arange(60)
    history = {
        "loss": falling(60, 4, bottom=0.35),
        "val_loss": falling(60, 15, 2.3, 0.5),
    }
    assert symptoms(history) == []
    history["val_loss"] = history["val_loss"] + 0.003 * np.maximum(epochs - 20, 0)
    (finding,) = diagnose_curves(history)
    assert finding.symptom == "overfitting"
    assert finding.evidence["gap_fraction"] < 0.5


def test_a_small_fall_of_the_validation_loss_alone_is_silent():
    # 5.1% of its level along the end, and 9% since the training loss has settled.
    val_loss = 0.5 - 0.051 * 0.5 / 12 * (np.arange(40) - 33)
    assert symptoms({"loss": falling(40, 20), "val_loss": val_loss}) == []
    both = {"loss": val_loss, "val_loss": val_loss}
    assert symptoms(both, slow_fall=0.01) == ["still learning"]


def test_without_validation_the_training_loss_tells_whether_it_still_learns():
    assert symptoms({"loss": falling(30, 2)}) == ["still learning"]
    assert symptoms({"loss": falling(30, 12)}) == []


def test_a_steady_fall_is_slow_only_while_little_has_come_of_it():
    # An exponential fall to 0: 30% takes -ln(0.7) = 0.36 time constants.
    assert symptoms({"loss": falling(30, 0.3, bottom=0.0)}) == ["slow learning"]
    assert symptoms({"loss": falling(30, 0.6, bottom=0.0)}) == ["still learning"]


def test_low_accuracy_makes_a_flat_curve_underfitting_and_high_no_plateau():
    settled = {"loss": falling(30, 15, bottom=1.4), "accuracy": [0.5] * 30}
    assert symptoms(settled) == ["underfitting"]
    assert symptoms(settled, min_accuracy=0.4) == []
    assert symptoms({"loss": settled["loss"]}) == []
    trained_before = {"loss": [0.05] * 30, "accuracy": [0.99] * 30}
    assert symptoms(trained_before) == []
    assert symptoms({"loss": [0.05] * 30}) == ["plateau"]


def test_oscillation_may_come_with_another_finding():
    # Peaks at epochs 1, 3 ... 37, and a rise at 39 that has not fallen again.
    loss = falling(40, 12) * np.where(np.arange(40) % 2, 1.2, 0.8)
    history = {"loss": loss, "val_loss": np.linspace(2.0, 0.5, 40)}
    oscillation, other = diagnose_curves(history)
    assert (oscillation.symptom, oscillation.epoch) == ("oscillation", 2)
    assert oscillation.evidence == {"swings": 19, "val_swings": 0, "epochs": 40}
    assert other.symptom == "data set"


def test_nothing_is_read_into_a_few_epochs_or_a_loss_of_almost_nothing():
    assert symptoms({"loss": [3.0, 2.0, 1.0, 2.0, 3.0]}) == []
    tiny = {"loss": np.append(falling(30, 20, bottom=0.0), [2e-5, 4e-5] * 10)}
    assert symptoms(tiny) == []


def test_a_loss_below_zero_is_judged_by_its_range():
    loss = falling(40, 2)
    assert symptoms({"loss": loss - 5, "val_loss": loss - 5}) == ["still learning"]
    healthy = falling(40, 12)
    assert symptoms({"loss": healthy - 5, "val_loss": healthy - 5}) == []


# --- real runs


@pytest.fixture(scope="module")
def train():
    """Train a network on drawn garments, from the same weights each time."""
    keras.utils.set_random_seed(0)
    hidden = keras.layers.Dense(30, "relu", kernel_initializer="he_normal")
    output = keras.layers.Dense(10, "softmax")
    model = keras.Sequential([keras.Input((784,)), hidden, output])
    model.compile(
        keras.optimizers.SGD(momentum=0.9),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    model.optimizer.build(model.trainable_variables)
    variables = model.variables + model.optimizer.variables
    beginning = [keras.ops.convert_to_numpy(each) for each in variables]

    def fit(learning_rate, *, rows=300, epochs=10, wrong_labels=0.0):
        for variable, value in zip(variables, beginning, strict=True):
            variable.assign(value)
        model.optimizer.learning_rate = learning_rate
        x, y = draw_garments(rows + 300)
        x = x.reshape(len(x), 784).astype("float32") / 255
        rng = np.random.default_rng(0)
        wrong = np.flatnonzero(rng.uniform(size=rows) < wrong_labels)
        y[wrong] = rng.integers(0, 10, len(wrong))
        return model.fit(
            x[:rows],
            y[:rows],
            validation_data=(x[rows:], y[rows:]),
            batch_size=100,
            epochs=epochs,
            verbose=0,
        )

    return fit


@pytest.mark.parametrize(
    ("learning_rate", "options", "expected"),
    [
        (0.05, {"rows": 2000, "epochs": 15}, []),
        (0.001, {}, ["slow learning"]),
        (0.03, {}, ["still learning"]),
        (0.1, {"wrong_labels": 0.5, "epochs": 30}, ["overfitting"]),
    ],
)
def test_a_real_run_is_judged_by_what_was_done(train, learning_rate, options, expected):
    assert symptoms(train(learning_rate, **options)) == expected


def test_a_real_run_at_far_too_high_a_rate_is_told_so(train):
    finding = diagnose_curves(train(1.0, epochs=15))[0]
    assert finding.change["learning_rate"] in ("lower", "search")


def test_a_real_run_that_diverges_is_told_so():
    x = np.random.default_rng(0).normal(size=(64, 4))
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(2.0), loss="mse")
    history = model.fit(x, x[:, :1], batch_size=64, epochs=8, verbose=0)
    assert symptoms(history) == ["divergence"]


# --- form


def test_history_dict_and_frame_are_the_same():
    values = {name: list(each) for name, each in made("overfitting", 0).items()}
    history = keras.callbacks.History()
    history.history = values
    frame = pd.DataFrame(values).rename_axis("epoch").assign(other="words")
    expected = diagnose_curves(values)
    assert expected == diagnose_curves(history) == diagnose_curves(frame)


def every_case():
    """A finding of each kind there is."""
    kinds = ("overfitting", "still learning", "data set", "slow learning", "plateau")
    kinds += ("underfitting", "divergence", "oscillation")
    histories = [made(kind, 1) for kind in kinds]
    histories += [{"loss": [np.nan]}, {"loss": [1.0], "val_loss": [np.nan]}]
    findings = [diagnose_curves(history)[0] for history in histories]
    assert len({finding.advice for finding in findings}) == 10
    return findings


def test_each_advice_is_code_that_names_recipes_which_exist():
    for finding in every_case():
        words, _, code = finding.advice.partition("\n")
        assert words.endswith(".") and finding.cause.endswith(".")
        tree = ast.parse(textwrap.dedent(code))
        imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
        assert imports
        for node in imports:
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name)
                assert f"{alias.name}(" in code
        assert finding.change
        assert all(to in CHANGES[knob] for knob, to in finding.change.items())


def test_a_finding_reads_as_symptom_place_numbers_cause_and_advice():
    finding = Finding(
        "dead units", "dense_1", 3, {"share": 0.51234}, "Cause.", "Advice.", {}
    )
    assert str(finding) == (
        "dead units in dense_1 since epoch 3 (share 0.512)\nCause.\nAdvice."
    )


def test_the_plot_shows_curves_marks_and_words():
    history = made("overfitting", 0)
    history["val_accuracy"] = history["accuracy"]
    findings = diagnose_curves(history)
    figure = plot_diagnosis(history, findings)
    above, below = figure.subfigs
    losses, accuracies = above.axes
    np.testing.assert_array_equal(losses.lines[0].get_ydata(), history["loss"])
    np.testing.assert_array_equal(losses.lines[1].get_ydata(), history["val_loss"])
    for axes in (losses, accuracies):
        assert axes.texts[0].get_text() == "1"
        assert axes.texts[0].get_position()[0] == findings[0].epoch
    words = " ".join(below.texts[0].get_text().split())
    assert words.startswith("1. overfitting since epoch")
    assert findings[0].cause in words
    assert "import" not in words


def test_the_plot_takes_a_broken_history_and_one_without_findings(tmp_path):
    broken = {"loss": [1.0, 2.0, np.inf, np.nan], "val_loss": [np.nan] * 4}
    plot_diagnosis(broken, diagnose_curves(broken)).savefig(tmp_path / "broken.png")
    figure = plot_diagnosis({"loss": [2.0, 1.0]}, [])
    assert figure.subfigs[1].texts[0].get_text().startswith("Nothing found")


# --- errors


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        [1.0, 2.0],
        {},
        {"val_loss": [1.0]},
        {"loss": []},
        {"loss": 1.0},
        {"loss": ["a"]},
        {"loss": [1.0, 2.0], "val_loss": [1.0]},
    ],
)
def test_a_history_of_another_form_is_refused(wrong):
    with pytest.raises(ValueError, match="`history` must .*Received: history"):
        diagnose_curves(wrong)


@pytest.mark.parametrize(
    "name",
    [
        "end_fraction",
        "min_change",
        "min_rise",
        "min_swing",
        "swing_fraction",
        "min_gap",
        "slow_fall",
        "min_fall",
        "min_accuracy",
        "divergence_factor",
    ],
)
def test_a_threshold_out_of_its_range_is_refused_by_name(name):
    for wrong in (0, -1, np.nan, np.inf, True, "0.5", None):
        with pytest.raises(ValueError, match=f"`{name}` must .*Received: {name}="):
            diagnose_curves({"loss": [1.0]}, **{name: wrong})
