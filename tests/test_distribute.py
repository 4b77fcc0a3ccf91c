"""What needs one device is tested here, what needs two in two_devices.py."""

import os
import pathlib
import socket
import subprocess
import sys
import time

import keras
import numpy as np
import pandas as pd
import pytest

import train

sys.path.append(str(pathlib.Path(__file__).parent.parent / "benchmarks"))

import devices as benchmark  # noqa: E402

from recipes.distribute import Devices, EvenBatches, all_devices, prepare_replicas
from recipes.fashion_mnist import epoch_batches

ROOT = pathlib.Path(__file__).parent.parent
BACKEND = keras.backend.backend()
only_on_jax = pytest.mark.skipif(BACKEND != "jax", reason="several hosts need JAX")
DRY = ["adam", "--dry-run", "--data", "garments", "--distribute"]
X = np.arange(22.0).reshape(11, 2)
Y = np.arange(11)


@pytest.mark.parametrize(
    "which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)]
)
def test_two_devices_train_as_one(which):
    command = [sys.executable, "-m", "pytest", "-q", "tests/two_devices.py"]
    result = subprocess.run(
        [*command, "-m", which, "-p", "no:cacheprovider"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def start_two_processes(arguments):
    """train.py twice, joined on 127.0.0.1."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    hosts = {"JOB_ADDRESSES": address, "NUM_PROCESSES": "2"}
    processes = []
    for number in range(2):
        each = {**hosts, "PROCESS_ID": str(number)}
        each = {f"KERAS_DISTRIBUTION_{key}": value for key, value in each.items()}
        processes.append(
            subprocess.Popen(
                [sys.executable, "train.py", *arguments, "--distribute"],
                env={**os.environ, **each},
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return processes


def end_well(processes):
    printed = [process.communicate(timeout=900)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed


def outcome(folder):
    """The weights and the history that a run has left."""
    model = keras.saving.load_model(folder / "model.keras")
    return model.get_weights(), pd.read_csv(folder / "history.csv")


# Plain, clipped, schedules in the step and in a callback, max-norm, and what is drawn
# and counted over the whole batch.
ON_TWO_HOSTS = ["baseline", "clip_norm", "one_cycle", "one_cycle_scheduler", "max_norm"]
ON_TWO_HOSTS += ["dropout", "batch_norm_before"]


@pytest.mark.slow
@only_on_jax
@pytest.mark.parametrize("name", ON_TWO_HOSTS)
def test_two_processes_train_as_one(name, tmp_path):
    arguments = [name, "--dry-run", "--data", "garments", "--epochs", "2", "--output"]
    end_well(start_two_processes([*arguments, str(tmp_path / "two")]))
    assert train.main([*arguments, str(tmp_path / "one")]) == 0
    weights, history = outcome(tmp_path / "one" / f"{name}-0")
    for part in ("two", "two/process-1"):
        others, history_of_two = outcome(tmp_path / part / f"{name}-0")
        for one, other in zip(weights, others, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
        pd.testing.assert_frame_equal(history, history_of_two, rtol=1e-4)


@pytest.mark.slow
@only_on_jax
def test_two_processes_killed_go_on_from_the_epoch_that_both_have(tmp_path):
    name = "plateau_scheduler"
    arguments = [name, "--dry-run", "--data", "garments", "--epochs", "12"]
    arguments += ["--resume", "--output"]
    end_well(start_two_processes([*arguments, str(tmp_path / "whole")]))

    folders = [tmp_path / "killed", tmp_path / "killed" / "process-1"]
    processes = start_two_processes([*arguments, str(folders[0])])
    while not all(any(folder.rglob("*epoch000003.npz")) for folder in folders):
        time.sleep(0.01)
        assert all(process.poll() is None for process in processes)
    for process in processes:
        process.kill()
        process.communicate()
    states = [sorted(folder.glob(".*/state-0/*.npz")) for folder in folders]
    if states[0][-1].name == states[1][-1].name:
        states[1][-1].unlink()  # as if it had been killed an epoch sooner
    end_well(start_two_processes([*arguments, str(folders[0])]))

    weights, history = outcome(tmp_path / "whole" / f"{name}-0")
    for folder in folders:
        others, resumed = outcome(folder / f"{name}-0")
        assert all((a == b).all() for a, b in zip(weights, others, strict=True))
        pd.testing.assert_frame_equal(history, resumed)
        left = {path.name for path in folder.iterdir()} - {"process-1"}
        assert left == {f"{name}-0"}


# --- the batches: what each device gets, and that it is the same in all


@pytest.mark.parametrize("num_devices", [1, 2, 3, 4, 64])
def test_the_weighted_mean_over_the_filled_rows_is_that_over_the_rows(num_devices):
    batches = epoch_batches(X, Y, 11, seed=0)
    x, y, weights = EvenBatches(batches, Devices(num_devices))[0]
    assert len(x) == len(y) == len(weights) == -(-11 // num_devices) * num_devices
    assert (x[:11] == X).all() and set(y) == set(Y)
    values = np.sin(x[:, 0])
    assert np.mean(weights * values) == pytest.approx(np.mean(np.sin(X[:, 0])))
    assert (weights[11:] == 0).all()


def test_the_shares_of_the_processes_make_up_the_batch():
    batches = epoch_batches(X, Y, 11, seed=0)
    whole = EvenBatches(batches, Devices(6))[0]
    shares = [EvenBatches(batches, Devices(6, 3, number))[0] for number in range(3)]
    for part, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert [len(each) for each in parts] == [4, 4, 4]
        assert (part == np.concatenate(parts)).all()


class Nested(keras.utils.PyDataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return {"a": X, "b": [X[:, 0]]}, Y, np.linspace(0, 1, 11)


def test_nested_arrays_and_weights_of_their_own_are_kept():
    even = EvenBatches(Nested(), Devices(4))
    x, y, weights = even[0]
    assert (x["a"][:11] == X).all() and (x["b"][0][:11] == X[:, 0]).all()
    assert len(y) == 12 and weights[11] == 0
    np.testing.assert_allclose(weights[:11], np.linspace(0, 1, 11) * 12 / 11)
    assert not hasattr(even, "epoch")


@pytest.mark.parametrize("shape", [(7, 1), (7, 4), (7, 4, 3), (7, 4, 3, 2)])
def test_targets_of_any_rank_keep_the_loss(shape):
    y = np.random.default_rng(0).random(shape).astype("float32")
    even = EvenBatches(epoch_batches(np.ones((7, 1)), y, 7, seed=0), Devices(4))
    _, filled, weights = even[0]
    loss = keras.losses.MeanSquaredError()
    expected = np.mean(np.square(y))
    assert float(loss(filled, 0 * filled, weights)) == pytest.approx(expected, rel=1e-5)


def test_epochs_are_counted_as_without():
    class Record(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(even.epoch)

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", loss="mse")
    even = EvenBatches(epoch_batches(X, Y, 4, seed=0), Devices(1))
    seen = []
    for _ in range(2):
        model.fit(even, epochs=2, shuffle=False, verbose=0, callbacks=[Record()])
    assert seen == [1, 2, 3, 4] and even.batches.epoch == 4
    even.epoch = 0
    assert even.batches.epoch == 0


def test_one_device_is_left_as_it_is():
    before = keras.distribution.distribution()
    with all_devices() as devices:
        assert devices == Devices(1) == (1, 1, 0)
        assert keras.distribution.distribution() is before
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dropout(0.5)])
        model.compile("sgd", loss="mse", steps_per_execution=2)
        prepare_replicas(model)
    assert "next" not in vars(model.layers[0].seed_generator)


# --- errors


@pytest.mark.parametrize(
    "devices",
    [
        Devices(0),
        Devices(3, 2, 0),
        Devices(2, 2, 2),
        Devices(2, 2, -1),
        Devices(1.5),
        2,
    ],
    ids=str,
)
def test_devices_that_cannot_be_are_refused(devices):
    with pytest.raises(ValueError, match="`devices` must be .* Received: devices="):
        EvenBatches(epoch_batches(X, Y, 4, seed=0), devices)


def test_other_data_are_refused():
    with pytest.raises(ValueError, match="`batches` must be a keras.utils.PyDataset"):
        EvenBatches((X, Y), Devices(2))


def test_a_model_that_is_not_compiled_is_refused():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="`model` must be compiled"):
        prepare_replicas(model)


def test_a_backend_without_is_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", "torch".lower)
    with pytest.raises(ValueError, match="'tensorflow' or 'jax'. Received: backend="):
        all_devices().__enter__()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="JAX can")
@pytest.mark.parametrize("name", ["KERAS_DISTRIBUTION_PROCESS_ID", "TF_CONFIG"])
def test_several_hosts_on_tensorflow_are_refused_in_a_sentence(
    name, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv(name, "0")
    with pytest.raises(SystemExit) as leaving:
        train.main([*DRY, "--output", str(tmp_path)])
    assert leaving.value.code == 2
    printed = capsys.readouterr().err
    assert "Several hosts need the backend 'jax'" in printed and name in printed
    assert len(printed.splitlines()) == 1


# --- what it costs


def test_two_devices_gave_the_numbers_of_one_where_nothing_speaks_against_it():
    rows = pd.read_csv(benchmark.RESULTS)
    same = rows[rows["why_not"].isna()]
    bounds = np.where(same["floatx"] == "float64", 1e-9, 1e-5)
    for name in ("weight_difference", "loss_difference"):
        assert (same[name] < bounds).all()
    assert (rows["devices"] == 2).all() and set(rows["run"]) <= set(train.RUNS)


def test_the_model_is_that_of_the_docs_by_hand():
    # 100 weights on 4 devices: of 400 bytes each device sends 6 quarters.
    assert benchmark.exchanged_bytes(100, 4) == 600
    seconds = benchmark.step_seconds(1_000_000, 100, 2)
    assert seconds == pytest.approx(0.5e-3 + 3e8 / 20e12 + 4e6 / 20e9 + 2e-5)
    assert benchmark.exchanged_bytes(100, 1) == 0


@pytest.mark.slow
def test_measuring_leaves_a_row_where_one_device_and_two_took_turns(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(benchmark, "NETWORKS", {"the chapter's": ((100,) * 3, 32)})
    arguments = ["--measure", "--steps", "2", "--epochs", "3"]
    for _ in range(2):  # the second finds all done
        benchmark.main([*arguments, "--results", str(tmp_path / "devices.csv")])
    (row,) = pd.read_csv(tmp_path / "devices_steps.csv").to_dict("records")
    assert row["weights"] == 99_710 and row["devices"] == 2 and row["epochs"] == 2
    assert row["lower_quartile"] <= row["ratio"] <= row["upper_quartile"]
    assert row["modelled_milliseconds"] > row["milliseconds_of_one"] > 0
    if BACKEND == "jax":
        # Every weight once, and the two numbers of the logged loss.
        assert row["bytes_added_up"] == 4 * (99_710 + 2)
    else:
        assert np.isnan(row["bytes_added_up"])
