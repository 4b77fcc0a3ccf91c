"""The benchmark of whole epochs: what is asked, timed, divided and written."""

import io
import json
import pathlib
import sys
import types

import keras
import numpy as np
import pandas as pd
import pytest

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import epoch_speed  # noqa: E402
import table  # noqa: E402

from recipes import fashion_mnist  # noqa: E402

HERE = {"tensorflow": "TensorFlow", "jax": "JAX"}[keras.backend.backend()]
FACTS = {"machine": "Abacus", "versions": "keras 3", "commit": "4e72448"}


@pytest.fixture
def garments(monkeypatch):
    data = fashion_mnist.split_and_scale(
        fashion_mnist.draw_garments(156),
        fashion_mnist.draw_garments(1, seed=1),
        validation_size=20,
    )
    monkeypatch.setattr(epoch_speed.fashion_mnist, "load", lambda folder: data)
    return data


@pytest.fixture
def trainer(garments, tmp_path):
    names = ("x_train", "y_train", "x_valid", "y_valid")
    path = tmp_path / "data.npz"
    np.savez(path, **{name: getattr(garments, name) for name in names})
    return epoch_speed.Trainer(path)


def test_only_the_epoch_itself_is_timed(trainer, monkeypatch):
    moments = iter([3.0, 5.0, 10.0, 14.0])
    clock = types.SimpleNamespace(perf_counter=lambda: next(moments))
    monkeypatch.setattr(epoch_speed, "time", clock)
    seconds = [trainer.epoch("dropout", epoch_speed.OURS, 136) for _ in range(2)]
    assert seconds == [2, 4] and len(trainer.models) == 1
    model = trainer.models["dropout", epoch_speed.OURS]
    assert int(model.optimizer.iterations) == 10 and model.steps_per_execution == 50


def test_ways_differ_in_what_their_names_say(trainer):
    way = "rate set before each step"
    assert trainer.epoch("no dropout", way, 40) > 0
    model = trainer.models["no dropout", way]
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01 / 1.05)
    assert not any(isinstance(each, keras.layers.Dropout) for each in model.layers)
    assert epoch_speed.compiled(model, epoch_speed.WAYS["jit_compile=True"]).jit_compile


def test_parts_of_an_epoch_end_with_a_batch_of_the_same_size():
    assert epoch_speed.part_of_epoch(1.0, 55_000) == 55_000
    for share in (0.05, 0.1, 0.5):
        rows = epoch_speed.part_of_epoch(share, 55_000)
        assert rows % 32 == 55_000 % 32 and rows == pytest.approx(
            share * 55_000, abs=32
        )


def test_the_books_cycle_is_three_straight_lines():
    cycle = epoch_speed.BookOneCycle(1000)  # 101 of them last, 449 up, 449 down
    cycle.set_model(types.SimpleNamespace(optimizer=types.SimpleNamespace()))
    rates = []
    for step in range(1000):
        cycle.on_train_batch_begin(step)
        rates.append(cycle.model.optimizer.learning_rate)
    assert rates[0] == 0.01 and rates[449] == 0.1 and rates[898] == pytest.approx(0.01)
    # The book's formula, at a step of the last tenth.
    slope = (0.01 / 1000 - 0.01) / (1000 - 898)
    assert rates[950] == pytest.approx(0.01 + slope * (950 - 898))
    np.testing.assert_allclose(np.diff(rates[:449]), 0.09 / 449, rtol=1e-9)


def test_races_train_on_all_rows_and_say_how_long_and_how_well(trainer, monkeypatch):
    def short(x, y, seed):
        optimizer, compile_options, options = epoch_speed.adamw(2)(x, y, seed)
        return optimizer, compile_options, options | {"verbose": 0}

    monkeypatch.setitem(epoch_speed.RACERS, "short", short)
    answer = trainer.race("short", 3)
    assert answer["seconds"] > 0 and 0 <= answer["val_accuracy"] <= 1


def test_accuracy_is_that_on_the_validation_images(trainer, monkeypatch):
    monkeypatch.setattr(epoch_speed, "EPOCHS", 1)
    accuracy = trainer.accuracy(epoch_speed.OURS, 1)["val_accuracy"]
    assert accuracy * 20 == pytest.approx(round(accuracy * 20))  # 20 images


def test_ratios_are_taken_within_a_round_after_one_that_compiles(monkeypatch):
    # TensorFlow's plain fit takes 8, 4 and 6 seconds, another way of its 1, 2 and 1.
    turns = {"plain fit": [99, 8, 4, 6], "no progress bar": [99, 1, 2, 1]}
    asked = []

    class Fake:
        def ask(self, task, network, way, num_rows):
            asked.append(num_rows)
            return turns[way].pop(0)

    rows = [("TensorFlow", "dropout", way) for way in turns]
    left_out = ("JAX", "dropout", "plain fit")
    monkeypatch.setattr(epoch_speed, "ROWS", [*rows, left_out])
    plain, other = epoch_speed.measure_epochs({"TensorFlow": Fake()}, 3200, rounds=3)
    assert plain["seconds"] == 6 and plain["ratio"] == plain["low"] == 1
    assert (other["ratio"], other["low"], other["high"]) == (6, 2, 8)
    assert sorted(set(asked)) == [160, 3200]


def test_what_is_measured_is_written_once(garments, monkeypatch, tmp_path, capsys):
    asked = []

    class Fake:
        def __init__(self, name, command):
            self.name = name

        def ask(self, task, *arguments):
            asked.append(task)
            answers = {"facts": "torch 9", "epoch": 2.0}
            return answers.get(task, {"seconds": 1.5, "val_accuracy": 0.87654})

        def end(self):
            asked.append("end")

    monkeypatch.setattr(epoch_speed, "Child", Fake)
    arguments = ["epochs", "race", "--rounds", "1", "--seeds", "2"]
    arguments += ["--results", str(tmp_path), "--torch-python", "false"]
    epoch_speed.main(arguments)
    assert "PyTorch is left out: false has no torch" in capsys.readouterr().out
    speeds = pd.read_csv(tmp_path / "epoch_speed.csv")
    assert set(speeds["process"]) == {"TensorFlow", "TensorFlow, one thread", "JAX"}
    assert speeds["versions"].str.endswith("torch 9").all()
    runs = pd.read_csv(tmp_path / "epoch_runs.csv")
    assert len(runs) == 2 * len(epoch_speed.RACE)
    assert (runs["val_accuracy"] == 0.8765).all() and set(runs["seed"]) == {0, 1}
    assert asked.count("end") == 3
    asked.clear()
    epoch_speed.main(arguments)
    assert set(asked) == {"facts", "end"}


def test_answers_go_to_the_output_and_nothing_else_does(
    garments, trainer, tmp_path, monkeypatch
):
    answers = io.StringIO()
    request = json.dumps(["epoch", "dropout", epoch_speed.PLAIN, 40])
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{request}\n"))
    monkeypatch.setattr(sys, "stdout", answers)
    epoch_speed.serve(tmp_path / "data.npz")
    assert json.loads(answers.getvalue()) > 0


@pytest.mark.slow
def test_a_process_trains_when_asked(trainer, tmp_path):
    command = epoch_speed.command_for(HERE, sys.executable, tmp_path / "data.npz")
    child = epoch_speed.Child(HERE, command)
    try:
        assert child.ask("facts").startswith(keras.backend.backend())
        assert child.ask("epoch", "dropout", epoch_speed.OURS, 40) > 0
        with pytest.raises(RuntimeError, match="has died at"):
            child.ask("epoch", "no such network", epoch_speed.OURS, 40)
    finally:
        child.end()


# --- tables


def test_table_of_epochs_names_each_process_and_the_part_that_was_measured():
    columns = ["process", "network", "way", "seconds", "share_measured"]
    columns += ["ratio", "low", "high", "rounds"]
    made = [
        ("TensorFlow", "dropout", "plain fit", 5.123, 1.0, 1.0, 1.0, 1.0, 7),
        ("JAX", "dropout", "jit", 40.3, 0.1, 0.127, 0.1, 0.2, 7),
    ]
    text = table.epoch_table(pd.DataFrame(made, columns=columns).assign(**FACTS))
    assert "| TensorFlow | dropout | plain fit | 5.1 | 1.0 |" in text
    assert (
        "| JAX | dropout | jit, scaled from a tenth | 40 | 0.13 (0.10 to 0.20)" in text
    )
    assert "7 rounds" in text and "4e72448" in text


def test_table_of_runs_compares_with_the_first_way_seed_by_seed():
    rows = pd.DataFrame(
        {
            "task": ["race"] * 4 + ["accuracy"] * 4,
            "seed": [0, 1] * 4,
            "process": "TensorFlow",
            "way": ["book"] * 2
            + ["ours"] * 2
            + ["plain fit"] * 2
            + ["as train.py"] * 2,
            "seconds": [30, 40, 10, 20, None, None, None, None],
            "val_accuracy": [0.89, 0.88, 0.9, 0.88, 0.86, 0.88, 0.87, 0.87],
        }
    )
    race, accuracy = table.epoch_runs_tables(rows.assign(**FACTS)).split("\n\n")[:2]
    book = "| TensorFlow | book | 0.8850 ± 0.0071 | | 35 ± 7 | 1 |"
    ours = "| TensorFlow | ours | 0.8900 ± 0.0141 | 0.0050 ± 0.0071 | 15 ± 7 | 2.5 |"
    assert book in race and ours in race
    assert (
        "| TensorFlow | as train.py | 0.8700 ± 0.0000 | 0.0000 ± 0.0141 |" in accuracy
    )
