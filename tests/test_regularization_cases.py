"""The cases that cost no training hold; the others are in the csv that was recorded."""

import pathlib
import sys

import pandas as pd
import pytest

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import regularization_cases as cases  # noqa: E402

COLUMNS = ["case", "measure", "expected", "keras", "ours", "keras_holds", "ours_holds"]
COLUMNS += ["versions", "machine", "commit"]
TRAINED = ("one bad batch", "max-norm and a moving average", "data loss from val_loss")
CHEAP = [case for case in cases.CASES if not case.name.startswith(TRAINED)]


@pytest.mark.parametrize("case", CHEAP, ids=lambda case: case.name)
def test_ours_holds_and_keras_does_not_but_for_dense(case):
    row = cases.measure(case)
    assert row["ours_holds"]
    assert row["keras_holds"] == (case.name == "max-norm of a Dense unit")


def test_the_recorded_cases_are_those_of_the_script_and_ours_hold():
    table = pd.read_csv(cases.RESULTS, dtype={"commit": str})
    assert table.columns.tolist() == COLUMNS
    assert table["case"].tolist() == [case.name for case in cases.CASES]
    assert table["ours_holds"].all() and table[COLUMNS].notna().all(axis=None)


def test_results_are_written_whole_or_not_at_all(monkeypatch, tmp_path):
    def interrupted():
        raise KeyboardInterrupt

    number = cases.Case("one", "a number", "0", cases.zero, lambda: 1, lambda: 0)
    monkeypatch.setattr(cases, "RESULTS", tmp_path / "cases.csv")
    monkeypatch.setattr(cases, "CASES", [number, number._replace(ours=interrupted)])
    with pytest.raises(KeyboardInterrupt):
        cases.main([])
    assert not any(tmp_path.iterdir())
    monkeypatch.setattr(cases, "CASES", [number])
    cases.main([])
    (row,) = pd.read_csv(cases.RESULTS).to_dict("records")
    assert list(row) == COLUMNS
    assert (row["keras_holds"], row["ours_holds"]) == (False, True)
