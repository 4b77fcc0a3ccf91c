import ast
import collections
import importlib
import itertools
import textwrap

import keras
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.diagnose import (
    _ORDER,
    CHANGES,
    Finding,
    diagnose,
    diagnose_curves,
    plot_diagnosis,
)
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
        loss, val_loss = loss + 1, val_loss + 1
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


# --- tables and checks: made ones, of 5 layers and 12 epochs


READINGS = np.arange(-1, 12)
SHAPE = (5, len(READINGS))  # hidden_1 ... hidden_4, output
LAYERS = [f"hidden_{number}" for number in range(1, 5)] + ["output"]


def frame(**columns):
    """A monitor's table from arrays of layers by readings."""
    grid = {"epoch": np.tile(READINGS, 5), "layer": np.repeat(LAYERS, len(READINGS))}
    return pd.DataFrame(grid | {name: each.ravel() for name, each in columns.items()})


def gradient_table(gradient=0.5, weight=5.0, move=0.05):
    """Healthy, but for what is given; with biases, which say nothing."""
    gradient, weight, move = (
        np.broadcast_to(each, SHAPE).astype(float).copy()
        for each in (gradient, weight, move)
    )
    move[:, 0] = np.nan
    norms = {"gradient_norm": gradient, "weight_norm": weight}
    kernels = frame(**norms, update_norm=move * weight).assign(variable="kernel")
    biases = kernels.assign(variable="bias", weight_norm=0.0, gradient_norm=1e9)
    return pd.concat([kernels, biases], ignore_index=True)


def activation_table(std=0.8, between=0.7, dead=0.1, saturated=np.nan):
    columns = {
        "std": std,
        "std_between_rows": between,
        "fraction_dead": dead,
        "fraction_saturated": saturated,
    }
    columns = {name: np.broadcast_to(each, SHAPE) for name, each in columns.items()}
    return frame(**columns)


DEPTH = np.arange(5.0)[:, None]
EPOCHS = READINGS[None, :]
FROM_3 = EPOCHS >= 3
HIDDEN_2 = DEPTH == 1
STUCK = {"loss": np.full(12, 2.3), "accuracy": np.full(12, 0.1)}
SOUND = {"loss": falling(12, 14), "accuracy": np.full(12, 0.9)}


@pytest.mark.parametrize(
    ("symptom", "layer", "epoch", "tables"),
    [
        (
            "vanishing gradient",
            "hidden_1",
            -1,
            {"gradients": gradient_table(10.0 ** (DEPTH - 4))},
        ),
        (
            "vanishing gradient",
            "hidden_4",
            -1,
            {"activations": activation_table(between=0.1**DEPTH, saturated=0.0)},
        ),
        (
            "fading signal",
            "hidden_4",
            -1,
            {"activations": activation_table(std=0.1**DEPTH, between=0.1**DEPTH)},
        ),
        (
            "missing normalization",
            "hidden_4",
            -1,
            {"activations": activation_table(between=0.1**DEPTH)},
        ),
        (
            "exploding gradient",
            "hidden_4",
            -1,
            {"activations": activation_table(std=5.0**DEPTH, between=5.0**DEPTH)},
        ),
        (
            "dead units",
            "hidden_2",
            -1,
            {"activations": activation_table(dead=0.9 * HIDDEN_2 + 0 * EPOCHS)},
        ),
        (
            "dying units",
            "hidden_2",
            3,
            {"activations": activation_table(dead=0.9 * HIDDEN_2 * FROM_3)},
        ),
        (
            "saturated units",
            "hidden_2",
            -1,
            {"activations": activation_table(saturated=0.8 * HIDDEN_2 + 0 * EPOCHS)},
        ),
        (
            "units driven to saturation",
            "hidden_2",
            3,
            {"activations": activation_table(saturated=0.8 * HIDDEN_2 * FROM_3)},
        ),
        ("steps too short", None, 0, {"gradients": gradient_table(move=0.001)}),
        (
            "steps held back",
            None,
            0,
            {"gradients": gradient_table(gradient=100.0, move=0.001)},
        ),
        (
            "steps too long",
            None,
            3,
            {"gradients": gradient_table(weight=5.0 + 50 * HIDDEN_2 * FROM_3)},
        ),
        (
            "momentum too high",
            None,
            3,
            {"gradients": gradient_table(move=0.01 * (EPOCHS + 2) + 0 * DEPTH)},
        ),
        (
            "penalties too strong",
            "hidden_1",
            0,
            {"gradients": gradient_table(weight=5 * np.exp(-EPOCHS / 3))},
        ),
    ],
    ids=lambda each: each if isinstance(each, str) and " " in each else "",
)
def test_each_fault_in_the_tables_is_the_root_of_the_plateau(
    symptom, layer, epoch, tables
):
    history = {**STUCK, "learning_rate": np.full(12, 0.01)}
    assert symptoms(history) == ["plateau"]
    (finding,) = diagnose(history, **tables)
    assert (finding.symptom, finding.layer, finding.epoch) == (symptom, layer, epoch)
    assert "It explains: " in finding.cause and "plateau" in finding.cause
    assert_is_in_order(finding)
    assert diagnose(SOUND, **tables) == []


def test_a_sound_run_is_met_with_silence():
    tables = {"gradients": gradient_table(), "activations": activation_table()}
    assert diagnose(SOUND, **tables) == []
    (finding,) = diagnose(STUCK, **tables)
    assert finding.symptom == "plateau"
    overfitted = made("overfitting", 0)
    assert [each.symptom for each in diagnose(overfitted)] == ["overfitting"]


def test_outputs_may_be_saturated_or_zero():
    is_output = (DEPTH == 4) + 0.0 * EPOCHS
    table = activation_table(dead=is_output, saturated=is_output)
    (finding,) = diagnose(STUCK, activations=table)
    assert finding.symptom == "plateau"


def check(symptom, layer=None, **change):
    """What `check_model` returns, by the names of its attributes alone."""
    Check = collections.namedtuple(
        "Check", "symptom layer evidence cause advice change"
    )
    return Check(symptom, layer, {"value": 1.0}, "Cause.", "Advice.", change)


def test_what_was_seen_before_training_explains_what_was_seen_in_it():
    dying = activation_table(dead=0.9 * HIDDEN_2 * FROM_3)
    unscaled = check("inputs unscaled", "hidden_1", scale="standardize")
    rate = check("learning rate out of range", learning_rate=0.001)
    (root,) = diagnose(STUCK, activations=dying, checks=[rate, unscaled])[:1]
    assert root == Finding(
        "inputs unscaled",
        "hidden_1",
        -1,
        {"value": 1.0},
        "Cause. It explains: dying units in hidden_2, plateau.",
        "Advice.",
        {"scale": "standardize"},
    )
    (finding,) = diagnose(STUCK, activations=dying, checks=[rate])
    assert finding.symptom == "learning rate out of range"
    (finding,) = diagnose(STUCK, activations=dying)
    assert finding.symptom == "dying units"


def test_each_symptom_explains_only_what_comes_behind_it():
    seen = [symptom for symptom, _ in _ORDER]
    assert len(set(seen)) == len(seen)
    start = {"loss": [9.0, 9.0, 9.0]}  # nothing that could have been overcome
    for place, (symptom, explained) in enumerate(_ORDER):
        found = diagnose(start, checks=[check(each) for each in [*seen[::-1], symptom]])
        assert found[0].symptom == seen[0]
        alone = diagnose(start, checks=[check(each) for each in (seen[-1], symptom)])
        assert alone[0].symptom == symptom
        assert (len(alone) == 1) == (seen[-1] in explained or place == len(seen) - 1)


def test_a_bad_start_is_no_finding_once_it_is_overcome():
    loss = check("initial loss above chance")
    loss = loss._replace(evidence={"initial": 9.0, "chance": 2.3})
    assert diagnose(SOUND, checks=[loss, check("vanishing gradient", "a")]) == []
    high = {"loss": falling(12, 14, top=90.0, bottom=2.0)}
    (finding,) = diagnose(high, checks=[loss])
    assert finding.symptom == "initial loss above chance"
    (finding,) = diagnose(STUCK, checks=[check("vanishing gradient", "a")])
    assert finding.symptom == "vanishing gradient"


def test_what_nobody_here_knows_comes_last_and_a_symptom_once():
    several = [
        check("gremlins"),
        check("zero weights", "a"),
        check("zero weights", "b"),
    ]
    first, second = diagnose(SOUND, checks=several)
    assert (first.symptom, second.symptom) == ("zero weights", "gremlins")
    assert first.cause == "Cause. It explains: zero weights in b."


def test_labels_that_tell_nothing_are_found_by_a_validation_that_learns_nothing():
    shuffled = {
        "loss": falling(20, 4),
        "val_loss": np.linspace(2.3, 5, 20),
        "accuracy": np.linspace(0.1, 0.9, 20),
        "val_accuracy": np.full(20, 0.1),
    }
    (finding,) = diagnose(shuffled)
    assert finding.symptom == "labels unrelated to inputs"
    assert "It explains: overfitting" in finding.cause
    values = {name: shuffled[name] for name in ("loss", "val_loss")}
    assert diagnose(values)[0].symptom == "labels unrelated to inputs"
    shuffled["val_accuracy"] = np.full(20, 0.6)
    assert diagnose(shuffled)[0].symptom == "overfitting"


def test_labels_tell_nothing_where_all_layers_learn_and_the_loss_stays():
    history = {**STUCK, "val_loss": STUCK["loss"], "val_accuracy": STUCK["accuracy"]}
    tables = {"gradients": gradient_table(), "activations": activation_table()}
    (finding,) = diagnose(history, **tables)
    assert finding.symptom == "labels unrelated to inputs"
    (finding,) = diagnose(history, activations=tables["activations"])
    assert finding.symptom == "plateau"


def test_longer_steps_by_a_rate_that_warms_up_are_no_momentum():
    rates = 0.001 * np.arange(1.0, 13)
    table = gradient_table(move=0.01 * (EPOCHS + 2) + 0 * DEPTH)
    (finding,) = diagnose({**STUCK, "learning_rate": rates}, gradients=table)
    assert finding.symptom == "plateau"


def test_a_few_epochs_say_still_learning_only_if_each_was_a_clear_step():
    assert diagnose({"loss": [2.0, 1.7], "val_loss": [2.0, 1.7]}) == []
    assert diagnose({"loss": [2.0, 1.5], "val_loss": [2.0, 1.5]}) != []
    (finding,) = diagnose({"loss": [2.0, 1.5, 1.2], "val_loss": [1.9, 1.4, 1.0]})
    assert (finding.symptom, finding.epoch) == ("still learning", 2)
    assert diagnose({"loss": [2.0, 1.5, 1.2], "val_loss": [1.9, 1.4, 1.5]}) == []
    assert diagnose({"loss": [2.0, 1.5, 1.49]}) == []
    # One shorter step among clear ones, but not the last.
    assert len(diagnose({"loss": [2.0, 1.8, 1.75, 1.6, 1.4]})) == 1
    assert diagnose({"loss": [2.0, 1.8, 1.6, 1.4, 1.35]}) == []


@few
@given(st.integers(1, 5), st.integers(0, 10**6))
def test_tables_in_any_state_are_judged_without_complaint(num_epochs, seed):
    rng = np.random.default_rng(seed)
    bad = rng.choice([0.0, np.nan, np.inf, 1e-30, 1e30, 1.0], (9, *SHAPE))
    columns = [
        "gradient_norm weight_norm update_norm",
        "std std_between_rows fraction_dead fraction_saturated",
    ]
    tables = [frame(**dict(zip(names.split(), bad, strict=False))) for names in columns]
    tables = [table[table["epoch"] < num_epochs] for table in tables]
    loss = rng.choice([1.0, 2.0, np.nan], num_epochs)
    history = {"loss": loss, "learning_rate": rng.choice([0.1, np.nan], num_epochs)}
    both = {"gradients": tables[0], "activations": tables[1]}
    for finding in diagnose(history, **both):
        assert_is_in_order(finding)


def assert_is_in_order(finding):
    """Numbers that are finite, a change that is known, a code that names recipes."""
    assert np.all(np.isfinite(list(finding.evidence.values())))
    assert finding.change
    for knob, to in finding.change.items():
        kinds = tuple(each for each in CHANGES[knob] if isinstance(each, type))
        assert to in CHANGES[knob] or isinstance(to, kinds)
    assert finding.advice.partition("\n")[0].endswith(".")
    tree = ast.parse(textwrap.dedent(finding.advice.partition("\n")[2]))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert imports
    for node in imports:
        module = importlib.import_module(node.module)
        assert all(hasattr(module, alias.name) for alias in node.names)
        assert all(f"{alias.name}(" in finding.advice for alias in node.names)


@pytest.mark.parametrize("name", ["gradients", "activations", "checks"])
def test_tables_and_checks_of_another_form_are_refused(name):
    for wrong in ([1.0], 1.0, {"epoch": [0]}, pd.DataFrame({"layer": ["a"]})):
        with pytest.raises(ValueError, match=f"`{name}` must be .*Received: {name}="):
            diagnose(SOUND, **{name: wrong})
    assert diagnose(SOUND, **{name: []} if name == "checks" else {name: None}) == []


def test_the_plot_marks_findings_on_the_maps_of_their_layers():
    tables = {
        "gradients": gradient_table(),
        "activations": activation_table(dead=0.9 * HIDDEN_2 * FROM_3),
    }
    findings = diagnose(STUCK, **tables)
    figure = plot_diagnosis(STUCK, findings, **tables)
    _, *maps, below = figure.subfigs
    axes = {each.get_title(): each for part in maps for each in part.axes}
    dead = axes["dead units"]
    (mark,) = [text for text in dead.texts if text.get_text() == "1"]
    column = list(READINGS).index(findings[0].epoch)
    assert mark.get_position() == (column, LAYERS.index("hidden_2"))
    shown = dead.images[0].get_array()
    np.testing.assert_array_equal(shown[1], 0.9 * (READINGS >= 3))
    ratios = axes["update to weight in an epoch"].images[0].get_array()
    np.testing.assert_allclose(ratios[:, 1:], np.log10(0.05))
    assert "saturated outputs" not in axes  # nothing is known of it


def test_the_plot_takes_tables_that_are_not_finite(tmp_path):
    bad = np.where(FROM_3, np.nan, 0.0) + 0 * DEPTH
    tables = {
        "gradients": gradient_table(gradient=bad, weight=np.inf),
        "activations": activation_table(dead=bad, saturated=bad),
    }
    plot_diagnosis(STUCK, [], **tables).savefig(tmp_path / "bad.png")


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
        assert finding.cause.endswith(".")
        assert_is_in_order(finding)


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
        "min_accuracy_gap",
        "min_progress",
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
