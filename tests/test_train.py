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
WITH_DROPOUT = {"recommended", "dropout", "alpha_dropout"}
WITH_DROPOUT |= {"cifar10_alpha_dropout", "cifar10_one_cycle"}
CIFAR10 = [name for name, run in train.RUNS.items() if run.dataset == "CIFAR-10"]


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
    has_dropout = name in WITH_DROPOUT
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
    unmeasured = [line.split()[0] for line in lines if line.endswith("Not measured.")]
    assert unmeasured == CIFAR10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recomended"], "no run 'recomended'; did you mean 'recommended'?"),
        (["xyzzy"], "no run 'xyzzy'; python train.py --list shows all"),
        (["--epochs", "0"], "must be a whole number from 1, not '0'"),
        (["--epochs", "many"], "not 'many'"),
        (["--seed", "-1"], "must be a whole number from 0, not '-1'"),
        (["--seed", str(2**32)], "must be a whole number"),
        (["--data", "/nowhere"], "/nowhere cannot be read (No such file"),
        (["--frobnicate"], "--frobnicate"),
        (["--output", "/dev/null/runs"], "/dev/null"),
        (["cifar10_selu", "--data", "fashion-mnist"], "not 'fashion-mnist'"),
        (["cifar10_selu", "--data", "/nowhere"], "auto or garments, not '/nowhere'"),
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
        pytest.param(1, marks=[pytest.mark.slow] * IS_JAX),
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
    last = result.stderr.splitlines()[-1]
    assert "train.py: the results cannot be written to " in last
    assert last.endswith("once this is mended, the same command goes on")
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


# --- CIFAR-10


def made_cifar10():
    """As Keras's loader gives it: labels in a column; each image tells its row."""
    rows = np.arange(5_600)
    x = np.zeros((len(rows), 32, 32, 3), "uint8")
    x[:, 0, 0, 0], x[:, 0, 0, 1] = rows // 256, rows % 256
    y = (rows % 10).astype("uint8")[:, None]
    return (x, y), (x[:40], y[:40])


def cifar10(scale, monkeypatch):
    """The data of a run on CIFAR-10, without a download."""
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", made_cifar10)
    name = next(name for name in CIFAR10 if train.RUNS[name].scale == scale)
    return train.load_data(train.command_line().parse_args([name]))


def test_the_first_5000_of_cifar10_validate(monkeypatch):
    data, source = cifar10(None, monkeypatch)
    x = data.x_valid.astype(int)
    assert (x[:, 0, 0, 0] * 256 + x[:, 0, 0, 1] == np.arange(5000)).all()
    x = data.x_train.astype(int)
    assert (x[:, 0, 0, 0] * 256 + x[:, 0, 0, 1] == np.arange(5000, 5600)).all()
    for y, first in ((data.y_train, 5000), (data.y_valid, 0), (data.y_test, 0)):
        assert y.shape == (len(y),) and (y == (first + np.arange(len(y))) % 10).all()
    assert source == "CIFAR-10" and data.class_names[8] == "ship"


def test_cifar10_is_standardized_by_its_training_part(monkeypatch):
    data, _ = cifar10("standardize", monkeypatch)
    (x, _), _ = made_cifar10()
    seen = x[5000:].reshape(600, -1).astype(float)
    deviation = np.where(seen.std(axis=0) == 0, 1, seen.std(axis=0))
    for given, raw in ((data.x_train, x[5000:]), (data.x_valid, x[:5000])):
        raw = raw.reshape(len(raw), -1)
        expected = (raw - seen.mean(axis=0)) / deviation
        np.testing.assert_allclose(given.reshape(len(raw), -1), expected, atol=1e-4)


def test_a_run_on_cifar10_ends_in_one_sentence_where_it_cannot_be_had(
    tmp_path, monkeypatch, capsys
):
    def no_network():
        print("Downloading data from https://...")
        raise Exception("URL fetch failure on https://...: None")

    monkeypatch.setattr(keras.datasets.cifar10, "load_data", no_network)
    with pytest.raises(SystemExit) as leaving:
        train.main(["cifar10_selu", "--dry-run", "--output", str(tmp_path)])
    assert leaving.value.code == 2 and os.listdir(tmp_path) == []
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()[1:]  # after Keras's own
    assert line.startswith("train.py: CIFAR-10 cannot be had: URL fetch failure")


@pytest.mark.parametrize("name", CIFAR10)
def test_runs_on_cifar10_are_those_of_the_book(name):
    run = train.RUNS[name]
    model, callbacks = run.build(train.Plan(run.epochs, steps_per_epoch=10))
    assert model.input_shape == (None, 32, 32, 3)
    dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    assert [layer.units for layer in dense] == [100] * 20 + [10]
    kinds = {type(layer).__name__ for layer in model.layers}
    assert ("AlphaDropout" in kinds) == (name in WITH_DROPOUT)
    assert ("BatchNormalization" in kinds) == (name == "cifar10_batch_norm")
    if name == "cifar10_one_cycle":
        assert (run.epochs, run.batch_size, callbacks) == (15, 128, [])
        rate = model.optimizer._learning_rate  # the schedule: 150 steps
        rates = [float(rate(step)) for step in range(150)]
        assert max(rates) == pytest.approx(0.05, rel=0.02)
        assert rates[0] == pytest.approx(0.005)
        assert rates[-1] == pytest.approx(0.005 / 1000)
    else:
        rates = {"swish": 5e-5, "batch_norm": 5e-4, "selu": 7e-4, "alpha_dropout": 5e-4}
        rate = rates[name.removeprefix("cifar10_")]
        assert type(model.optimizer).__name__ == "Nadam"
        assert float(model.optimizer.learning_rate) == pytest.approx(rate)
        assert (run.epochs, run.batch_size) == (100, 32)
        (early,) = callbacks
        assert early.monitor == "val_loss" and early.patience == 20


@pytest.mark.parametrize(
    "options",
    [[], pytest.param(["--resume", "--diagnose"], marks=pytest.mark.slow)],
    ids=["alone", "watched"],
)
def test_a_run_that_stops_early_keeps_its_best_epoch(options, tmp_path, monkeypatch):
    def build(plan):
        # The rate is so high that the validation loss soon rises.
        shape = {"image_shape": train.CIFAR10_SHAPE}
        model = train.network_of(train.layers.AlphaDropout(0.1), **shape)
        early = train.best_epoch()
        early.patience = 2
        return train.compiled(model, keras.optimizers.Adam(0.05)), [early]

    run = train.RUNS["cifar10_selu"]._replace(build=build)
    monkeypatch.setitem(train.RUNS, "cifar10_selu", run)
    arguments = ["cifar10_selu", *DRY, "--epochs", "20", "--output", str(tmp_path)]
    assert train.main([*arguments, *options]) == 0
    folder = tmp_path / "cifar10_selu-0"
    assert "uncertainty.png" in os.listdir(folder)
    history = pd.read_csv(folder / "history.csv")
    best = history["val_loss"].idxmin()
    assert len(history) == best + 1 + 2 < 20
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["epochs"] == len(history)
    accuracy = history["val_accuracy"]
    assert metrics["validation_accuracy"] == pytest.approx(accuracy[best])
    assert accuracy[best] != accuracy.iloc[-1]


# --- several steps at once


def test_steps_taken_at_once_change_no_number(tmp_path, monkeypatch):
    def outcome(steps_at_once):
        monkeypatch.setattr(train, "STEPS_AT_ONCE", steps_at_once)
        output = tmp_path / str(steps_at_once)
        train.main(["dropout", *DRY, "--output", str(output), "--epochs", "2"])
        folder = output / "dropout-0"
        model = keras.saving.load_model(folder / "model.keras")
        return (folder / "history.csv").read_text(), model.get_weights()

    history, weights = outcome(1)
    other_history, other_weights = outcome(7)  # of 16 steps: 6, 6, and 4
    assert other_history == history
    for one, other in zip(weights, other_weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_steps_of_an_epoch_are_in_groups_of_nearly_the_same_size():
    for num_steps, size in ((1719, 50), (215, 43), (51, 26), (50, 50), (2, 2)):
        assert train.steps_at_once(num_steps, []) == size


def test_a_callback_that_acts_before_each_step_gets_each_step():
    for per, size in (("step", 1), ("epoch", 50)):
        scheduler = train.PowerScheduler(0.1, decay_epochs=1, per=per)
        assert train.steps_at_once(1719, [scheduler]) == size
    cycle = train.OneCycleScheduler(train.OneCycle(0.1, 10))
    assert train.steps_at_once(1719, [cycle]) == 1


def test_several_devices_get_one_step_at_a_time():
    assert train.steps_at_once(1719, [], train.Devices(num_devices=2)) == 1
