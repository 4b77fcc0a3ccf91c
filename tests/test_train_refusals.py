"""What stands in train.py's way: one sentence, exit code 2, nothing half-written."""

import os
import pathlib
import pickle
import shutil

import keras
import numpy as np
import pytest

import train

DRY = ["--dry-run", "--data", "garments"]


class Trap:
    """Whoever unpickles it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def leaves(arguments, capsys):
    """The exit code and the last sentence of a run that does not end well."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as leaving:
        train.main(arguments)
    return leaving.value.code, capsys.readouterr().err


def refusal(arguments, capsys):
    """The one sentence of a run that is refused."""
    code, printed = leaves(arguments, capsys)
    assert code == 2 and printed.startswith("train.py: ")
    assert printed.count("\n") == 1
    return printed


def interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.fixture
def untrained(monkeypatch):
    """Let nothing be trained; return the calls."""
    calls = []
    monkeypatch.setattr(train, "train", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(train, "load_data", lambda options: (None, "no data"))
    return calls


@pytest.fixture
def small_run(monkeypatch):
    """A `baseline` without hidden layers."""

    def build(plan):
        return train.compiled(train.network_of(), "sgd"), []

    run = train.RUNS["baseline"]._replace(build=build)
    monkeypatch.setitem(train.RUNS, "baseline", run)


# --- output folders


def under_a_file(output):
    output.write_text("")
    return output / "runs", output


def is_a_file(output):
    output.write_text("")
    return output, output


def run_folder_is_a_file(output):
    output.mkdir()
    (output / "adam-0").write_text("")
    return output, output / "adam-0"


def run_folder_is_a_dead_link(output):
    output.mkdir()
    (output / "adam-0").symlink_to("nowhere")
    return output, output / "adam-0"


def scratch_is_a_file(output):
    output.mkdir()
    (output / ".adam-0.resume").write_text("")
    return output, output / ".adam-0.resume"


def of_the_system(output):
    return pathlib.Path("/proc/runs"), "/proc/runs"  # root must not write there, either


def name_too_long(output):
    output.mkdir()
    return output / ("x" * 300), "File name too long"


@pytest.mark.parametrize(
    "obstacle",
    [
        under_a_file,
        is_a_file,
        run_folder_is_a_file,
        run_folder_is_a_dead_link,
        scratch_is_a_file,
        of_the_system,
        name_too_long,
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_training(
    obstacle, untrained, tmp_path, capsys
):
    output, named = obstacle(tmp_path / "output")
    before = sorted(tmp_path.rglob("*"))
    printed = refusal(["adam", "--resume", "--output", str(output)], capsys)
    assert "the results cannot be written to " in printed and str(named) in printed
    assert printed.endswith("once this is mended, the same command goes on\n")
    assert not untrained and sorted(tmp_path.rglob("*")) == before


def test_results_that_are_read_only_are_refused_before_training(
    untrained, tmp_path, monkeypatch, capsys
):
    (tmp_path / "adam-0").mkdir()
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    printed = refusal(["adam", "--output", str(tmp_path)], capsys)
    assert f"{tmp_path}/adam-0: it is read-only; " in printed
    assert printed.endswith("mend this, or name another folder with --output\n")
    assert not untrained


@pytest.mark.parametrize(
    "name",
    [
        "model.keras",
        "metrics.json",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("history.csv", "curves.png", "diagnosis.json", "diagnosis.png")
        ),
    ],
)
def test_a_disc_full_at_the_end_leaves_what_stood_before(
    name, small_run, tmp_path, monkeypatch, capsys
):
    old = tmp_path / "baseline-0"
    old.mkdir()
    for file in ("model.keras", "metrics.json"):
        (old / file).write_text("old")
    right = train.train

    def on_a_full_disc(options, data, source, folder, *more):
        (folder / name).symlink_to("/dev/full")
        right(options, data, source, folder, *more)

    monkeypatch.setattr(train, "train", on_a_full_disc)
    arguments = ["baseline", *DRY, "--output", str(tmp_path)]
    arguments += ["--diagnose"] * name.startswith("diagnosis")
    printed = refusal(arguments, capsys)
    assert f"{old}: [Errno 28] No space left on device; mend this" in printed
    assert os.listdir(tmp_path) == ["baseline-0"]
    assert [(old / file).read_text() for file in os.listdir(old)] == ["old", "old"]


# --- interrupts, and what is no refusal


@pytest.mark.parametrize("where", ["load_data", "train"])
def test_an_interrupt_says_how_to_go_on(
    where, untrained, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(train, where, interrupt)
    arguments = ["adam", "--output", str(tmp_path)]
    assert leaves(arguments, capsys) == (
        130,
        "\ntrain.py: interrupted, no results were written; "
        "with --resume it would go on from the last epoch next time\n",
    )
    assert os.listdir(tmp_path) == []
    code, printed = leaves([*arguments, "--resume"], capsys)
    assert code == 130
    assert printed.endswith("; the same command goes on from the last epoch\n")


@pytest.mark.parametrize("options", [[], ["--resume"]], ids=["", "resume"])
@pytest.mark.parametrize("error", [ValueError, RuntimeError, KeyError, AttributeError])
def test_a_mistake_in_the_code_is_not_called_the_users(
    error, options, untrained, tmp_path, monkeypatch
):
    def mistaken(*_):
        raise error("a mistake")

    monkeypatch.setattr(train, "train", mistaken)
    with pytest.raises(error, match="a mistake"):
        train.main(["adam", *options, "--output", str(tmp_path)])


# --- the state of a run that goes on


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A folder in which a run was interrupted, the names of its states, the data."""
    output = tmp_path_factory.mktemp("stopped")
    data = train.load_data(train.command_line().parse_args(DRY))
    with pytest.MonkeyPatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(train, "evaluate", interrupt)
        patched.setattr(train, "load_data", lambda options: data)
        train.main(["baseline", *DRY, "--resume", "--output", str(output)])
    names = os.listdir(output / ".baseline-0.resume" / "state-0")
    assert sorted(names) == ["fit0-epoch000000.npz", "fit0-epoch000001.npz"]
    return output, names, data


def pickle_inside(path, content):
    with np.load(path, allow_pickle=False) as whole:
        parts = dict(whole)
    trap = np.array([Trap(path.with_name("sprung"))], dtype=object)
    np.savez(path, **(parts | {"state": trap}))


def pickle_instead(path, content):
    path.write_bytes(pickle.dumps(Trap(path.with_name("sprung"))))


DAMAGES = {
    "empty": lambda path, content: path.write_bytes(b""),
    "noise": lambda path, content: path.write_bytes(np.random.bytes(len(content))),
    "half": lambda path, content: path.write_bytes(content[: len(content) // 2]),
    "a pickle": pickle_instead,
    "a pickle inside": pickle_inside,
    "another state": lambda path, content: np.savez(path, state=np.array("{}")),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_state_that_is_damaged_is_refused_and_left_alone(
    kind, stopped, tmp_path, monkeypatch, capsys
):
    output, names, data = stopped
    monkeypatch.setattr(train, "load_data", lambda options: data)
    output = shutil.copytree(output, tmp_path / "runs")
    folder = output / ".baseline-0.resume" / "state-0"
    for name in names:
        DAMAGES[kind](folder / name, (folder / name).read_bytes())
    damaged = {name: (folder / name).read_bytes() for name in names}
    arguments = ["baseline", *DRY, "--resume", "--output", str(output)]
    printed = refusal(arguments, capsys)
    assert "cannot go on: " in printed and str(folder) in printed
    assert "delete the folder to train anew" in printed
    assert os.listdir(output) == [".baseline-0.resume"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == damaged


# --- data


@pytest.mark.parametrize(
    ("folder", "problem"),
    [
        ("missing", "cannot be read (No such file or directory)"),
        ("file", "cannot be read (Not a directory)"),
        ("empty", "holds no *-ubyte.gz files"),
    ],
)
def test_a_folder_without_data_is_refused(folder, problem, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    output = tmp_path / "runs"
    arguments = ["adam", "--data", str(tmp_path / folder), "--output", str(output)]
    printed = refusal(arguments, capsys)
    assert f"--data: {tmp_path / folder} {problem}; name the folder" in printed
    assert not output.exists()


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b half of a gz", b"<html>"])
def test_damaged_data_are_refused_by_name(content, tmp_path, capsys):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(content)
    printed = refusal(["adam", "--data", str(tmp_path)], capsys)
    assert str(path) in printed and "replace it" in printed
    assert os.listdir(tmp_path) == [path.name]


# --- models


def test_results_of_an_older_run_are_replaced_unread(small_run, tmp_path):
    arguments = ["baseline", *DRY, "--output", str(tmp_path)]
    path = tmp_path / "baseline-0" / "model.keras"
    path.parent.mkdir()
    path.write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    assert train.main(arguments) == 0
    assert os.listdir(tmp_path) == ["baseline-0"]
    assert keras.saving.load_model(path, safe_mode=True).count_params() == 7850
