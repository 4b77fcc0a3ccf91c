"""The programs that diagnoses are measured with, and how advice changes them."""

import itertools
import json
import pathlib
import sys

import keras
import numpy as np
import pandas as pd
import pytest

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import doctor_cases as cases  # noqa: E402
import doctor_programs as programs  # noqa: E402
import doctor_published  # noqa: E402
import table  # noqa: E402

from recipes import check_model as checks  # noqa: E402
from recipes.diagnose import Finding  # noqa: E402

TINY = programs.base(
    "tune", programs.moons, "dense", 0.7, **programs.BINARY, rows=200, epochs=4,
    learning_rate=0.03, batch_size=8,
)  # fmt: skip


def finding(symptom, change, **evidence):
    return Finding(symptom, None, 0, evidence, "", "", change)


# --- the programs


def test_there_are_64_programs_and_each_kind_has_two_in_each_half():
    assert len(programs.PROGRAMS) >= 64
    names = [program.name for program in programs.PROGRAMS]
    assert len(set(names)) == len(names)
    for half, kind in itertools.product(("tune", "unseen"), programs.KINDS):
        of_kind = [
            program.name
            for program in programs.PROGRAMS
            if program.half == half and program.kinds[0] == kind
        ]
        assert len(of_kind) >= 2, (half, kind)


def test_the_halves_share_no_data_set():
    halves = {"tune": set(), "unseen": set()}
    for base in programs.BASES.values():
        halves[base.half].add(base.data)
    assert len(halves["tune"]) >= 8 and len(halves["unseen"]) >= 8
    assert not halves["tune"] & halves["unseen"]


def test_all_structures_occur_from_one_hidden_layer_to_twenty():
    bases = programs.BASES.values()
    assert {base.kind for base in bases} == {
        "dense", "conv1d", "conv2d", "lstm", "gru", "rnn",
    }  # fmt: skip
    depths = [base.settings["layers"] for base in bases]
    assert min(depths) == 1 and max(depths) == 20


def test_a_program_differs_from_its_twin_and_names_kinds_and_settings_that_exist():
    for program in programs.PROGRAMS:
        twin = programs.BASES[program.base].settings
        assert program.mistake.keys() <= programs.SETTINGS.keys(), program.name
        assert program.settings != twin, program.name
        assert set(program.kinds) <= set(programs.KINDS), program.name


def test_data_depend_on_the_seed_alone():
    for base in programs.BASES.values():
        small = {**base.settings, "rows": 50}
        first, same, other = (
            programs.load(base.data, small, seed)[0] for seed in (0, 0, 1)
        )
        np.testing.assert_array_equal(first.x, same.x)
        np.testing.assert_array_equal(first.y, same.y)
        assert not np.array_equal(first.x, other.x)
        assert len(first.x) == 50 and np.isfinite(first.x).all()


@pytest.mark.slow
def test_every_network_can_be_built_and_reads_its_data():
    for name, base in programs.BASES.items():
        small = {**base.settings, "rows": 40, "layers": min(3, base.settings["layers"])}
        (train, *_), _, _ = programs.prepared(programs.load(base.data, small, 0), small)
        model = programs.compiled(base, train, small)
        assert model.input_shape[1:] == train.x.shape[1:], name
        assert model.output_shape == (None, train.num_outputs), name
        assert model.layers[-1].name == "output"


def test_mistakes_in_labels_are_in_training_and_validation_data_only():
    settings = {**TINY.settings, "rows": 100}
    right = programs.load(programs.blobs, settings, 0)
    for mistake in ("shuffled", "a row off", "sorted", "all the same"):
        wrong = programs.load(programs.blobs, {**settings, "mistake": mistake}, 0)
        for part in range(3):
            np.testing.assert_array_equal(wrong[part].x, right[part].x)
            same = np.array_equal(wrong[part].y, right[part].y)
            assert same == (part == 2), mistake


def test_rows_with_missing_values_are_dropped_and_the_numbers_renumbered():
    settings = {**programs.SETTINGS, "rows": 300, "missing": "x"}
    holed = programs.load(programs.wines, settings, 0)
    assert np.isnan(holed[0].x).any() and np.isfinite(holed[2].x).all()
    (train, *_), _, _ = programs.prepared(
        holed, {**settings, "x": "finite", "scale": "standardize"}
    )
    assert np.isfinite(train.x).all() and 200 < len(train.x) < 300
    np.testing.assert_allclose(train.x.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(train.x.std(axis=0), 1, atol=1e-2)
    settings = {**programs.SETTINGS, "mistake": "from one"}
    assert programs.load(programs.wines, settings, 0)[0].y.min() == 1
    settings["labels"] = "0 to n - 1"
    assert programs.load(programs.wines, settings, 0)[0].y.min() == 0


def test_score_is_accuracy_or_r_squared_and_nothing_below_zero():
    regression = programs.BASES["friedman"]
    y = np.array([[0.0], [1.0], [2.0], [5.0]])
    score = programs.score(regression, y, y, regression.settings)
    assert score == 1
    mean = np.full_like(y, y.mean())
    assert programs.score(regression, mean, y, regression.settings) == 0
    assert programs.score(regression, -9 * y, y, regression.settings) == 0
    half = (y + mean) / 2  # a quarter of the variance is left
    assert programs.score(regression, half, y, regression.settings) == 0.75
    blobs = programs.BASES["blobs"]
    predictions = np.eye(3)[[0, 1, 2, 2]]
    found = programs.score(blobs, predictions, np.array([0, 1, 2, 0]), blobs.settings)
    assert found == 0.75
    assert programs.score(blobs, predictions * np.nan, y, blobs.settings) == 0


# --- the changes

CHANGES = [  # change, layer, what was, what is then
    ({"learning_rate": 0.5}, None, {}, {"learning_rate": 0.5}),
    ({"learning_rate": "lower"}, None, {"learning_rate": 1.0}, {"learning_rate": 0.1}),
    ({"activation": "elu"}, "hidden_1", {}, {"activation": "elu"}),
    ({"activation": "tanh"}, "output", {}, {"output_activation": "tanh"}),
    ({"loss": "hinge"}, "output", {}, {"loss": "hinge", "from_logits": False}),
    (
        {"loss": "BinaryCrossentropy", "from_logits": True},
        "output",
        {},
        {"loss": "BinaryCrossentropy", "from_logits": True},
    ),
    (
        {"kernel_initializer": "ones"},
        "hidden_1",
        {},
        {"kernel_initializer": "ones"},
    ),
    (
        {"bias_initializer": "zeros"},
        None,
        {"bias_initializer": -5.0},
        {"bias_initializer": "zeros"},
    ),
    ({"scale": "standardize"}, None, {}, {"scale": "standardize"}),
    ({"target_scale": "standardize"}, None, {}, {"target_scale": "standardize"}),
    ({"x": "finite"}, None, {}, {"x": "finite"}),
    ({"labels": "0 to n - 1"}, None, {}, {"labels": "0 to n - 1"}),
    ({"labels": "finite"}, None, {}, {"labels": "finite"}),
    ({"labels": "0 to 1"}, None, {}, {"labels": "0 to 1"}),
    ({"units": 7}, "output", {}, {"output_units": 7}),
    ({"units": "higher"}, None, {}, {"units": 128, "layers": 3}),
    ({"normalization": "batch"}, None, {}, {"normalization": "batch"}),
    (
        {"optimizer": "nadam"},
        None,
        {"learning_rate": 3.0, "epsilon": 10.0, "clipnorm": 1e-6},
        {
            "optimizer": "nadam",
            "learning_rate": None,
            "epsilon": None,
            "clipnorm": None,
        },
    ),
    ({"momentum": 0.9}, None, {"optimizer": "momentum"}, {"momentum": 0.9}),
    ({"momentum": 0.9}, None, {}, {"beta_1": 0.9}),
    (
        {"global_clipnorm": 1.0},
        None,
        {"clipnorm": 1e-6},
        {"clipnorm": None, "global_clipnorm": 1.0},
    ),
    ({"global_clipnorm": "lower"}, None, {}, {"global_clipnorm": 1.0}),
    (
        {"global_clipnorm": "lower"},
        None,
        {"global_clipnorm": 1.0},
        {"global_clipnorm": 0.1},
    ),
    ({"dropout": "AlphaDropout"}, None, {}, {"dropout_kind": "AlphaDropout"}),
    ({"regularization": "higher"}, None, {}, {"dropout": 0.3, "l2": 1e-3}),
    (
        {"regularization": "lower"},
        None,
        {"dropout": 0.9, "l2": 1.0, "weight_decay": 2.0},
        {"dropout": 0.0, "l2": 0.0, "weight_decay": None},
    ),
    ({"epochs": "higher"}, None, {}, {"epochs": 200}),
    ({"epochs": "lower"}, None, {}, {"epochs": 2}),
]


@pytest.mark.parametrize("number", range(len(CHANGES)))
def test_a_change_makes_what_it_names_and_nothing_else(number):
    change, layer, before, after = CHANGES[number]
    settings = {**programs.SETTINGS, **before}
    kept = dict(settings)
    history = {"val_loss": [3.0, 1.0, float("nan"), 2.0]}
    found = programs.apply(change, layer, settings, history=history)
    assert settings == kept
    rate = found.pop("learning_rate")
    expected = {**settings, **after}
    assert rate == pytest.approx(expected.pop("learning_rate"))
    assert found == expected


@pytest.mark.parametrize("change", [{"labels": "check"}, {"data": "check"}, {}])
def test_what_only_a_person_can_do_changes_nothing(change):
    assert programs.apply(change, None, programs.SETTINGS) is None


def test_a_change_that_is_already_made_changes_nothing():
    settings = {**programs.SETTINGS, "scale": "standardize"}
    assert programs.apply({"scale": "standardize"}, None, settings) is None


def test_a_change_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="no program can make the change units_='x'"):
        programs.apply({"units_": "x"}, None, programs.SETTINGS)


def test_every_changed_network_can_be_compiled():
    base = programs.BASES["moons, SELU"]
    train = programs.load(base.data, {**base.settings, "rows": 40}, 0)[0]
    for change, layer, before, _ in CHANGES:
        settings = {**base.settings, **before}
        history = {"val_loss": [1.0]}
        new = programs.apply(change, layer, settings, history=history) or settings
        if new["optimizer"] != "momentum" and "output_units" not in change:
            programs.compiled(base, train, new)


def test_every_symptom_of_the_checks_has_a_kind_of_fault():
    known = {*cases.SYMPTOMS, "learning rate out of range"}
    assert checks._TEXTS.keys() <= known
    assert {k for kinds in cases.SYMPTOMS.values() for k in kinds} <= {*programs.KINDS}


# --- runs


def test_a_run_scores_and_hands_on_what_was_seen():
    result = programs.run(TINY, TINY.settings, 0)
    assert result.score > TINY.least_score and result.error == ""
    assert {"loss", "val_loss", "accuracy", "val_accuracy"} <= result.history.keys()
    assert result.gradients["epoch"].max() == TINY.settings["epochs"] - 1
    assert "output" in set(result.activations["layer"])


def test_a_fit_that_fails_says_so(monkeypatch):
    def fails(*arguments, **options):
        raise ValueError("no")

    monkeypatch.setattr(keras.Model, "fit", fails)
    result = programs.run(TINY, TINY.settings, 0)
    assert (result.score, result.history) == (0.0, {})
    assert result.error == "ValueError: no"
    assert cases.findings_of(result) is result.checks


def test_a_finding_is_ranked_by_its_kind_and_the_rate_by_its_evidence():
    rate = finding("learning rate out of range", {}, learning_rate=9.0, high=1.0)
    low = finding("learning rate out of range", {}, learning_rate=0.0, high=1.0)
    assert cases.kinds_of(rate) == ("rate too high",)
    assert cases.kinds_of(low) == ("rate too low",)
    told = cases.told([low, rate], ("rate too high",))
    assert (told["flagged"], told["rank"], told["said"]) == (True, 2, "rate too low")
    assert cases.told([], ("labels",))["rank"] == 0


def test_the_command_measures_records_and_goes_on(monkeypatch, tmp_path):
    advice = finding("steps too short", {"learning_rate": 0.03})
    train = programs.load(programs.moons, {**TINY.settings, "rows": 8}, 0)[0]
    model = programs.compiled(TINY, train, TINY.settings)

    def run(base, settings, seed, *, look=True):
        score = 0.9 if settings["learning_rate"] == 0.03 else 0.5
        history = {"loss": [1.0, score], "val_loss": [1.0, score], "accuracy": [score]}
        return programs.Run(score, [], history, None, None, "", model, train, settings)

    def diagnose(history, *, gradients, activations, checks):
        return [advice] if history["accuracy"][-1] < 0.7 else []

    program = programs.Program(
        "small: slow", ("rate too low",), "small", {"learning_rate": 1e-6}
    )
    monkeypatch.setattr(cases, "diagnose", diagnose)
    for module in (cases, programs):
        monkeypatch.setattr(module, "BASES", {"small": TINY})
    monkeypatch.setattr(cases, "PROGRAMS", [program])
    monkeypatch.setattr(cases, "run", run)
    path = tmp_path / "cases.csv"
    cases.main(["--half", "tune", "--seeds", "0", "--results", str(path)])
    table = pd.read_csv(path)
    twin, faulty = table.to_dict("records")
    assert (twin["program"], twin["flagged"]) == ("small: repaired", False)
    assert (faulty["flagged"], faulty["rank"]) == (True, 1)
    assert faulty["score"] < 0.7 and faulty["twin_score"] == twin["score"]
    assert faulty["repaired"] and faulty["repaired_score"] == twin["score"]
    assert json.loads(faulty["change"]) == {"learning_rate": 0.03}
    assert [name for name in table if name.endswith(" flagged")] == [
        f"{tool} flagged" for tool in doctor_published.RULES
    ]
    monkeypatch.setattr(cases, "measure", None)  # there is nothing left to measure
    cases.main(["--half", "both", "--seeds", "0", "--results", str(path)])


@pytest.mark.parametrize("loss", ["binary_crossentropy", "BinaryCrossentropy"])
def test_a_binary_loss_has_one_output_by_either_name(loss):
    settings = {**programs.SETTINGS, "loss": loss, "rows": 20}
    assert programs.load(programs.moons, settings, 0)[0].num_outputs == 1


def test_advice_to_check_the_labels_is_right_only_where_they_are_wrong():
    advice = finding("labels unrelated to inputs", {"labels": "check"})
    right = programs.Program("x", ("labels",), "blobs", {"mistake": "shuffled"})
    wrong = programs.Program("x", ("overfitting",), "blobs", {"epochs": 99})
    assert cases.repaired(right, advice, None, 0, 1.0) == {"repaired": True}
    result = programs.Run(0.0, [], {}, None, None, "", None, None, {})
    assert cases.repaired(wrong, advice, result, 0, 1.0) == {"repaired": False}


def test_the_table_counts_runs_and_says_what_was_named_instead():
    facts = {"machine": "Abacus", "versions": "keras 3", "commit": "4e72448"}
    twin = {"half": "unseen", "program": "a: repaired", "kinds": None, "first": None}
    twin |= {"flagged": False, "rank": 0, "repaired": False, "seed": 0, "score": 0.9}
    twin |= {"Other flagged": True, "Other right": False, "twin_score": None, **facts}
    row = {**twin, "program": "a: fast", "kinds": "rate too high; labels"}
    row |= {"flagged": True, "first": "divergence", "rank": 1, "repaired": True}
    row |= {"score": 0.3, "twin_score": 0.9, "least_twin_score": 0.8}
    rows = [twin, {**twin, "flagged": True, "first": "plateau", "seed": 1}, row]
    rows += [{**row, "seed": 1, "first": "plateau", "rank": 2, "repaired": False}]
    rows += [{**row, "seed": 2, "flagged": False, "first": None, "rank": 0}]
    rows += [{**row, "half": "tune"}, {**twin, "half": "healthy"}]
    rows += [{**row, "program": "a: no fault", "seed": n, "score": 0.9} for n in (0, 1)]
    rows += [{**row, "program": "a: sick twin", "twin_score": 0.7}]
    text = table.doctor_table(pd.DataFrame(rows))
    assert (
        "| rate too high | 1 | 67 % (2 of 3) | 33 % (1 of 3) | 50 % (1 of 2) "
        "| plateau 1, nothing 1 |" in text
    )
    assert "| **all, tuned on** | 1 | 100 % (1 of 1) |" in text
    assert "| runs no rule was tuned on | aim | `diagnose` | Other |" in text
    assert "| faulty: flagged | 95 % | 67 % (2 of 3) | 100 % |" in text
    assert "| repaired: left alone | 95 % | 50 % (1 of 2) | 0 % |" in text
    assert "| root cause among what is said |  | 67 % (2 of 3) | 0 % |" in text
    assert "| root cause said first | 70 % | 33 % (1 of 3) |  |" in text
    assert "| first advice, alone, repairs | 80 % | 50 % (1 of 2) |  |" in text
    assert "no rule was tuned on | 50 % (1 of 2) | plateau 1 |" in text
    healthy = "| healthy runs of `train.py` on Fashion-MNIST | 100 % (1 of 1) |  |"
    assert healthy in text
    assert "Seeds: 3 of the half unseen, 1 of the half tune." in text
    assert "Left out, as no worse than a sound twin: a: no fault, a: sick twin." in text
    assert "commit 4e72448." in text


def test_the_confusion_counts_what_was_said_first_in_each_kind():
    row = {"half": "unseen", "program": "a", "kinds": "loss; labels", "rank": 1}
    row |= {"said": "labels", "flagged": True, "score": 0.1, "twin_score": 0.9}
    row |= {"least_twin_score": 0.5}
    rows = [row, {**row, "rank": 2, "said": "rate too low; dead ReLU"}]
    rows += [{**row, "rank": 0, "said": None}]
    rows += [{**row, "rank": 0, "said": None, "flagged": False}]
    counts = cases.confusion(pd.DataFrame(rows))
    (loss,) = counts.to_dict("records")
    assert counts.index.tolist() == ["loss"]
    said = {kind: number for kind, number in loss.items() if number}
    assert said == {"loss": 1, "rate too low": 1, "of no kind": 1, "nothing": 1}


# --- the rules of others


def watched(**history):
    """A run of two kernels over the epochs of the history."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="first"),
                              keras.layers.Dense(1, name="output")])  # fmt: skip
    model.compile("adam", "mse")
    rows = [
        {"epoch": epoch, "layer": layer, "variable": "kernel", "gradient_norm": 0.1,
         "weight_norm": 1.0, "update_norm": 0.01, "update_to_weight": 0.01}
        for epoch, layer in itertools.product(
            range(-1, len(history["loss"])), ("first", "output")
        )
    ]  # fmt: skip
    activations = [
        {"epoch": row["epoch"], "layer": row["layer"], "std": 1.0,
         "fraction_dead": 0.0, "fraction_saturated": 0.0}
        for row in rows
    ]  # fmt: skip
    ones = np.array([[0.5, -0.5]] * 4, "float32")
    data = programs.Data(ones, np.array([0, 1, 0, 1]), 1)
    settings = {**programs.SETTINGS, "loss": "binary_crossentropy"}
    settings["output_activation"] = "sigmoid"
    return programs.Run(0.9, [], history, pd.DataFrame(rows), pd.DataFrame(activations),
                        "", model, data, settings)  # fmt: skip


LEARNS = {"loss": [1.0, 0.5, 0.25, 0.12], "val_loss": [1.0, 0.5, 0.26, 0.13]}
LEARNS |= {"accuracy": [0.5, 0.7, 0.8, 0.9], "val_accuracy": [0.5, 0.7, 0.8, 0.9]}


def fired(run):
    return {
        tool: {rule.__name__ for rule in rules}
        for tool, rules in doctor_published.published(run).items()
    }


def test_no_published_rule_fires_on_a_run_that_learns():
    assert not any(fired(watched(**LEARNS)).values())


@pytest.mark.parametrize(
    ("column", "layer", "value", "rules"),
    [
        ("gradient_norm", "first", 1e-8, {"vanishing_1e_7", "vanishing_1e_6"}),
        ("gradient_norm", "first", 9.0, {"exploding_ratio"}),
        ("gradient_norm", "output", np.nan, {"nonfinite", "exploding_weights"}),
        ("update_to_weight", "first", 1e-9, {"small_update"}),
        ("update_to_weight", "first", 11.0, {"large_update"}),
    ],
)
def test_rules_that_read_gradients(column, layer, value, rules):
    run = watched(**LEARNS)
    run.gradients.loc[run.gradients["layer"] == layer, column] = value
    found = set.union(*fired(run).values())
    assert rules <= found <= rules | {"exploding_ratio"}


@pytest.mark.parametrize(
    ("column", "value", "rules"),
    [
        ("fraction_dead", 0.6, {"dying_relu", "inactive_units"}),
        ("fraction_saturated", 0.6, {"saturated_half"}),
        ("std", 3.0, {"unstable_activations"}),
    ],
)
def test_rules_that_read_activations(column, value, rules):
    run = watched(**LEARNS)
    run.activations[column] = value
    assert set.union(*fired(run).values()) == rules


def test_rules_that_read_curves():
    flat = watched(**{name: [0.5] * 24 for name in LEARNS})
    found = set.union(*fired(flat).values())
    assert found == {"loss_not_decreasing", "flat_loss", "unchanged", "slow_accuracy"}
    above = watched(**LEARNS | {"val_loss": [1.2, 1.3, 0.3, 0.13]})
    assert set.union(*fired(above).values()) == {"validation_above", "validation_up"}
    swings = [0.3, 0.8] * 6
    rough = watched(**{name: swings for name in LEARNS})
    assert {"rough_loss", "oscillating_accuracy"} <= set.union(*fired(rough).values())
    diverged = watched(**LEARNS | {"loss": [1.0, 2e3, np.nan, np.nan]})
    assert {"nonfinite", "exploding_ratio"} <= set.union(*fired(diverged).values())


def test_rules_that_read_the_program():
    run = watched(**LEARNS)
    run.model.optimizer.learning_rate = 0.5
    assert fired(run)["UMLAUT"] == {"rate_above_001"}
    assert fired(run)["DeepDiagnosis"] == {"rate_above_01"}
    run = watched(**LEARNS)
    run.train.x[0, 0] = np.nan
    assert fired(run)["UMLAUT"] == {"nan_inputs"}
    run.train.x[0, 0] = 255
    assert fired(run)["UMLAUT"] == {"inputs_beyond_one"}
    run = watched(**LEARNS)
    run.settings |= {"loss": "sparse_categorical_crossentropy", "dropout": 0.6}
    assert fired(run)["UMLAUT"] == {"no_softmax", "much_dropout"}
    run = watched(**LEARNS)
    run.settings["output_activation"] = "relu"
    run.train.y[0] = -1
    assert fired(run)["DeepDiagnosis"] == {"output_out_of_range"}
