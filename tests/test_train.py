"""train.py as its users meet it: the command line, the files, the refusals."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import keras
import numpy as np
import pandas as pd
import pytest

import train

ROOT = pathlib.Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))

from kill_and_resume import kill_and_resume  # noqa: E402

DRY = ["--dry-run", "--data", "garments"]


IS_JAX = keras.backend.backend() == "jax"
# All but one of each kind are for make test-all.
FEW = {"recommended", "clip_norm", "nadam", "one_cycle_scheduler", "l1", "dropout"}
FEW |= {"reused_layers"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in FEW))
        for name in train.RUNS
    ],
)
def test_every_run_trains_and_leaves_its_files(name, tmp_path, capsys):
    assert train.main([name, *DRY, "--output", str(tmp_path), "--seed", "3"]) == 0
    folder = tmp_path / f"{name}-3"
    files = ["curves.png", "history.csv", "metrics.json", "model.keras"]
    has_dropout = name in ("recommended", "dropout", "alpha_dropout")
    if has_dropout:
        files.append("uncertainty.png")
    assert sorted(os.listdir(folder)) == files
    assert os.listdir(tmp_path) == [folder.name]

    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["run"] == name and metrics["seed"] == 3 and metrics["epochs"] == 1
    assert metrics["versions"]["keras"] == keras.version()
    assert keras.backend.backend() in metrics["versions"]
    assert ("MC Dropout" in metrics["test"]) == has_dropout

    history = pd.read_csv(folder / "history.csv")
    assert len(history) == 1 and np.isfinite(history["loss"]).all()
    assert history["learning_rate"].iloc[0] > 0

    # The saved model gives the numbers in the file.
    model = keras.saving.load_model(folder / "model.keras", safe_mode=True)
    data, _ = train.load_data(train.command_line().parse_args([name, *DRY]))
    accuracy = (model.predict(data.x_test, verbose=0).argmax(1) == data.y_test).mean()
    assert metrics["test"]["deterministic"]["accuracy"] == pytest.approx(accuracy)

    printed = capsys.readouterr().out.strip().splitlines()
    assert "drawn garments" in printed[0] and "drawn garments" in printed[-1]
    assert "drawn garments" in metrics["data"]


def test_the_same_seed_trains_the_same_weights(tmp_path):
    def weights(output, seed):
        arguments = ["dropout", *DRY, "--output", str(output), "--seed", seed]
        assert train.main(arguments) == 0
        path = output / f"dropout-{seed}" / "model.keras"
        return keras.saving.load_model(path).get_weights()

    first, again = weights(tmp_path / "a", "1"), weights(tmp_path / "b", "1")
    other = weights(tmp_path / "a", "2")
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


def test_a_run_replaces_an_older_one_only_when_it_succeeds(tmp_path, monkeypatch):
    arguments = ["baseline", *DRY, "--output", str(tmp_path)]
    train.main(arguments)
    marker = tmp_path / "baseline-0" / "curves.png"
    marker.write_text("old")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(train, "plot_curves", full_disk)
    with pytest.raises(SystemExit) as leaving:
        train.main(arguments)
    assert leaving.value.code == 2
    assert marker.read_text() == "old" and os.listdir(tmp_path) == ["baseline-0"]
    monkeypatch.undo()
    train.main(arguments)
    assert marker.read_bytes() != b"old" and os.listdir(tmp_path) == ["baseline-0"]


@pytest.mark.parametrize("name", ["new", "baseline-0"])
def test_an_interrupt_while_results_are_moved_loses_no_older_ones(
    name, tmp_path, monkeypatch
):
    options = train.command_line().parse_args(["baseline", "--output", str(tmp_path)])
    with train.folder_in_the_making(options) as folder:
        (folder / "metrics.json").write_text("old")
    rename = pathlib.Path.rename

    def interrupted(path, target):
        if path.name == name:
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(pathlib.Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), train.folder_in_the_making(options):
        pass
    assert (tmp_path / "baseline-0" / "metrics.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["baseline-0"]


@pytest.mark.parametrize("asked", ["auto", "fashion-mnist"])
def test_only_auto_goes_on_with_garments(asked, tmp_path, monkeypatch, capsys):
    def cannot_be_had(*_, **__):
        print("Downloading data from https://...")
        raise FileNotFoundError("Fashion-MNIST was not found.\nFour ways")

    monkeypatch.setattr(train.fashion_mnist, "load", cannot_be_had)
    arguments = ["baseline", "--dry-run", "--data", asked, "--output", str(tmp_path)]
    if asked == "auto":
        assert train.main(arguments) == 0
        printed = capsys.readouterr().out.splitlines()
        assert "drawn garments" in printed[0] and "drawn garments" in printed[-1]
    else:
        with pytest.raises(SystemExit) as leaving:
            train.main(arguments)
        assert leaving.value.code == 2
        assert "not found. Four ways" in capsys.readouterr().err


def test_files_of_the_user_are_not_replaced(tmp_path, capsys):
    (tmp_path / "adam-0").mkdir()
    (tmp_path / "adam-0" / "notes.txt").touch()
    with pytest.raises(SystemExit) as leaving:
        train.main(["adam", *DRY, "--output", str(tmp_path)])
    assert leaving.value.code == 2 and "notes.txt" in capsys.readouterr().err
    assert os.listdir(tmp_path / "adam-0") == ["notes.txt"]


def test_list_names_every_run_with_one_line(capsys):
    assert train.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(train.RUNS)
    assert all(len(line.split()) > 3 for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recomended"], "no run 'recomended'; did you mean 'recommended'?"),
        (["xyzzy"], "no run 'xyzzy'; python train.py --list shows all"),
        (["--epochs", "0"], "must be a whole number from 1, not '0'"),
        (["--epochs", "many"], "not 'many'"),
        (["--seed", "-1"], "must be a whole number from 0, not '-1'"),
        (["--seed", str(2**32)], "must be a whole number"),
        (["--data", "/nowhere"], "/nowhere holds no"),
        (["--frobnicate"], "--frobnicate"),
        (["--output", "/dev/null/runs"], "/dev/null"),
    ],
)
def test_wrong_arguments_end_in_one_sentence_and_exit_code_2(
    arguments, message, capsys
):
    with pytest.raises(SystemExit) as leaving:
        train.main(arguments)
    assert leaving.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed and len(printed.splitlines()) == 1


def test_epochs_replaces_the_runs_own_number(tmp_path):
    train.main(["baseline", *DRY, "--epochs", "2", "--output", str(tmp_path)])
    assert len(pd.read_csv(tmp_path / "baseline-0" / "history.csv")) == 2


def test_the_script_runs_from_another_folder(tmp_path):
    result = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--list"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 0 and "recommended" in result.stdout


def test_a_run_that_diverges_keeps_its_record(tmp_path, monkeypatch):
    def diverging(plan):
        return train.compiled(train.network(), keras.optimizers.SGD(1e38)), []

    run = train.RUNS["baseline"]._replace(build=diverging)
    monkeypatch.setitem(train.RUNS, "baseline", run)
    assert train.main(["baseline", *DRY, "--output", str(tmp_path)]) == 0
    metrics = json.loads((tmp_path / "baseline-0" / "metrics.json").read_text())
    assert metrics["test"]["deterministic"]["accuracy"] is None


@pytest.mark.parametrize(
    "num_kills",
    [
        pytest.param(3, marks=[pytest.mark.slow] * IS_JAX),
        pytest.param(20, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_killed_and_started_again_it_ends_as_if_never_stopped(num_kills):
    backend, seed = keras.backend.backend(), num_kills
    assert kill_and_resume(num_kills, backend, seed) == num_kills


def test_resume_is_refused_in_one_sentence_with_other_options(
    tmp_path, monkeypatch, capsys
):
    def crash(*_):
        raise KeyboardInterrupt

    arguments = ["adam", *DRY, "--resume", "--output", str(tmp_path)]
    monkeypatch.setattr(train, "evaluate", crash)
    with pytest.raises(SystemExit):
        train.main(arguments)
    capsys.readouterr()
    monkeypatch.undo()
    with pytest.raises(SystemExit) as leaving:
        train.main([*arguments, "--epochs", "2"])
    assert leaving.value.code == 2
    printed = capsys.readouterr().err
    assert "cannot go on: `settings` must be those of the state" in printed
    assert len(printed.splitlines()) == 1
    assert train.main(arguments) == 0
    assert os.listdir(tmp_path) == ["adam-0"]


def test_a_full_disk_ends_a_resumable_run_in_one_sentence(tmp_path):
    # The limit on a file's size is met as a full disk is: writing fails in the middle.
    script = (
        "import resource, sys, train; resource.setrlimit(resource.RLIMIT_FSIZE, "
        "(500_000, 500_000)); sys.exit(train.main(sys.argv[1:]))"
    )
    arguments = ["adam", *DRY, "--resume", "--output", str(tmp_path)]
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert result.returncode == 2
    assert "train.py: the results cannot be written: " in result.stderr.splitlines()[-1]
    assert os.listdir(tmp_path) == [".adam-0.resume"]
    train.main(arguments)
    assert os.listdir(tmp_path) == ["adam-0"]


def test_a_folder_that_vanishes_ends_a_resumable_run_in_one_sentence(
    tmp_path, monkeypatch, capsys
):
    def vanish(*_):
        shutil.rmtree(tmp_path / "runs")
        return train.pd.DataFrame(), None

    monkeypatch.setattr(train, "evaluate", vanish)
    with pytest.raises(SystemExit) as leaving:
        train.main(["adam", *DRY, "--resume", "--output", str(tmp_path / "runs")])
    assert leaving.value.code == 2
    assert "the results cannot be written" in capsys.readouterr().err.splitlines()[-1]
    assert os.listdir(tmp_path) == []


def test_results_moved_away_by_a_killed_run_come_back(tmp_path):
    # Killed after the older results were moved away, before the new ones came.
    old = tmp_path / ".adam-0.resume" / "old"
    old.mkdir(parents=True)
    (old / "metrics.json").write_text("old")
    arguments = ["adam", "--resume", "--output", str(tmp_path)]
    options = train.command_line().parse_args(arguments)
    with pytest.raises(ZeroDivisionError), train.folder_in_the_making(options):
        raise ZeroDivisionError
    assert (tmp_path / "adam-0" / "metrics.json").read_text() == "old"
    assert not old.exists()


@pytest.mark.slow
def test_a_run_in_phases_is_resumed_in_each_as_if_never_stopped(tmp_path, monkeypatch):
    arguments = ["reused_layers", *DRY, "--epochs", "6", "--output"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert train.main([*arguments, str(whole)]) == 0

    ends = []
    end_epoch = train.LearningRateLogger.on_epoch_end

    def interrupted(self, epoch, logs=None):
        ends.append(epoch)
        if len(ends) in (2, 5, 8):  # the second epoch of each phase
            raise KeyboardInterrupt
        end_epoch(self, epoch, logs)

    monkeypatch.setattr(train.LearningRateLogger, "on_epoch_end", interrupted)
    for _ in range(3):
        with pytest.raises(SystemExit):
            train.main([*arguments, str(resumed), "--resume"])
    assert train.main([*arguments, str(resumed), "--resume"]) == 0
    assert ends == [0, 1, 1, 0, 1, 1, 0, 1, 1, 2, 3, 4, 5]
    assert os.listdir(resumed) == ["reused_layers-0"]
    folders = [output / "reused_layers-0" for output in (whole, resumed)]
    one, other = [(folder / "history.csv").read_text() for folder in folders]
    assert one == other
    one, other = [
        keras.saving.load_model(folder / "model.keras").get_weights()
        for folder in folders
    ]
    assert all((a == b).all() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    "name",
    [
        "few_labels",
        pytest.param("autoencoder", marks=pytest.mark.slow),
        pytest.param("auxiliary_task", marks=pytest.mark.slow),
    ],
)
def test_runs_with_few_labels_use_no_other(name, tmp_path, monkeypatch):
    data, source = train.load_data(train.command_line().parse_args([name, *DRY]))
    data.y_train[train.NUM_LABELS :] = 200  # no class: the loss would be no number
    monkeypatch.setattr(train, "load_data", lambda options: (data, source))
    assert train.main([name, *DRY, "--output", str(tmp_path)]) == 0
    metrics = json.loads((tmp_path / f"{name}-0" / "metrics.json").read_text())
    assert metrics["test"]["deterministic"]["negative_log_likelihood"] is not None


def test_diagnose_changes_no_number_and_leaves_its_files(tmp_path, capsys):
    def trained(*options):
        folder = tmp_path / "-".join(["runs", *options])
        arguments = ["dropout", *DRY, *options, "--output", str(folder)]
        assert train.main(arguments) == 0
        return folder / "dropout-0"

    plain, watched = trained(), trained("--diagnose")
    assert (plain / "history.csv").read_text() == (watched / "history.csv").read_text()
    weights = [
        keras.saving.load_model(folder / "model.keras").get_weights()
        for folder in (plain, watched)
    ]
    assert all((a == b).all() for a, b in zip(*weights, strict=True))
    files = {"diagnosis.json", "diagnosis.png"}
    assert set(os.listdir(watched)) - set(os.listdir(plain)) == files
    assert json.loads((watched / "diagnosis.json").read_text()) == []
    assert capsys.readouterr().out.count("Diagnosis: nothing was found.") == 1


def test_diagnose_names_what_is_wrong_also_of_a_resumed_run(
    tmp_path, monkeypatch, capsys
):
    def diverging(plan):
        return train.compiled(train.network(), keras.optimizers.SGD(1e38)), []

    def crash(*_):
        raise KeyboardInterrupt

    run = train.RUNS["baseline"]._replace(build=diverging)
    monkeypatch.setitem(train.RUNS, "baseline", run)
    arguments = ["baseline", *DRY, "--diagnose", "--output", str(tmp_path)]
    assert train.main(arguments) == 0
    path = tmp_path / "baseline-0" / "diagnosis.json"
    expected = path.read_text()
    assert json.loads(expected)[0]["symptom"] == "learning rate out of range"
    assert "1. learning rate out of range" in capsys.readouterr().out

    with monkeypatch.context() as interrupted, pytest.raises(SystemExit):
        interrupted.setattr(train, "evaluate", crash)
        train.main([*arguments, "--resume"])
    path.unlink()
    assert train.main([*arguments, "--resume"]) == 0
    assert path.read_text() == expected


def test_a_model_that_cannot_be_watched_is_diagnosed_without(
    tmp_path, monkeypatch, capsys
):
    class Bare(keras.Model):
        """No layer that could be watched."""

        def build(self, input_shape):
            self.w = self.add_weight(shape=(784, 10), initializer="zeros", name="w")

        def call(self, x):
            x = train.keras.ops.reshape(x, (-1, 784))
            return train.keras.ops.softmax(x @ self.w)

    def bare(plan):
        model = Bare()
        model(np.zeros((1, 28, 28)))
        return train.compiled(model, "sgd"), []

    monkeypatch.setitem(
        train.RUNS, "baseline", train.RUNS["baseline"]._replace(build=bare)
    )
    arguments = ["baseline", *DRY, "--diagnose", "--output", str(tmp_path)]
    assert train.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if "goes on without" in line]
    assert "without activations: ActivationMonitor sees the outputs of layers" in line
