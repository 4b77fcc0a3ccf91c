"""The table of versions: a set is tried once, and the row says what came of it."""

import pathlib
import sys

import keras
import pandas as pd
import pytest

ROOT = pathlib.Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))

import table  # noqa: E402
import versions  # noqa: E402


def test_a_set_is_tried_once_with_the_versions_that_are_there(tmp_path, monkeypatch):
    path = tmp_path / "versions.csv"
    monkeypatch.setattr(versions, "environment", lambda *_: sys.executable)
    monkeypatch.setattr(versions, "TESTS", ["convergence"])
    for _ in range(2):
        versions.main(["newest", "--results", str(path)])
    (row,) = versions.read(path)
    assert row["set"] == "newest" and row["backend"] == "tensorflow"
    assert row["versions"].startswith(f"keras {keras.version()}, ")
    assert int(row["passed"]) > 30 and row["failed"] == row["left_out"] == "0"
    line = table.versions_table(pd.read_csv(path)).splitlines()[2]
    assert line.endswith(f"| {row['passed']} | 0 | 0 |")


def test_failures_and_what_is_known_to_fail_are_counted(tmp_path, monkeypatch):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_few.py").write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert False\n"
        "@pytest.mark.xfail\n"
        "def test_known(): assert False\n"
        "@pytest.mark.skip\n"
        "def test_left_out(): pass\n"
    )
    monkeypatch.setattr(versions, "ROOT", tmp_path)
    monkeypatch.setattr(versions, "TESTS", ["few"])
    row = versions.tested(sys.executable, "tensorflow", tmp_path / "report.xml")
    counts = ("passed", "failed", "expected_to_fail", "left_out")
    assert [row[name] for name in counts] == [1, 1, 1, 1]


def test_a_set_that_is_not_there_is_refused(capsys):
    with pytest.raises(SystemExit):
        versions.main(["oldest"])
    assert "no such set: oldest" in capsys.readouterr().err
