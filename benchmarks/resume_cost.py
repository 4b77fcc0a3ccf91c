"""Time what keeping the state adds to an epoch, beside Keras's BackupAndRestore.

    python benchmarks/resume_cost.py

Both callbacks stand in the same `fit`, so each epoch times both, on the same disk: with
`Resumable` the state has been handed to the disk when it returns (fsync), with Keras's
two files not. Epochs are short; the time does not depend on them, but on the size of
weights and optimizer.

Writes benchmarks/results/resume_cost.csv. Nothing else should run on the machine
meanwhile.
"""

import argparse
import pathlib
import tempfile
import time

import keras
import numpy as np
import pandas as pd
from record import ROOT, append, surroundings

import train
from callbacks.resumable import Resumable
from recipes.optimizers import make_optimizer

RESULTS = ROOT / "benchmarks" / "results" / "resume_cost.csv"


def book():
    """the chapter's net with plain SGD"""
    return train.compiled(train.network(), make_optimizer("sgd"))


def recommended():
    """the recommended run's net with Adam"""
    return train.recommended(train.Plan(20, 100))[0]


def wide():
    """ten million weights with Adam"""
    return train.compiled(
        train.network(hidden_units=(2800, 2800)), make_optimizer("adam")
    )


class Clock(keras.callbacks.Callback):
    """The time at which each epoch's end reaches this place in the list."""

    def __init__(self):
        super().__init__()
        self.times = []

    def on_epoch_end(self, epoch, logs=None):
        self.times.append(time.perf_counter())


def measure(build, epochs):
    """A row for each way to keep the state of one model."""
    keras.utils.set_random_seed(0)
    model = build()
    x, y = np.zeros((32, 28, 28), "float32"), np.zeros(32, "int32")
    with tempfile.TemporaryDirectory(dir=ROOT) as folder:
        ways = {
            "Resumable": Resumable(f"{folder}/ours", verbose=0),
            "Keras's BackupAndRestore": keras.callbacks.BackupAndRestore(
                f"{folder}/keras"
            ),
        }
        clocks = [Clock() for _ in range(len(ways) + 1)]
        callbacks = [clocks[0]]
        for way, clock in zip(ways.values(), clocks[1:], strict=True):
            callbacks += [way, clock]
        model.fit(x, y, epochs=epochs + 1, verbose=0, callbacks=callbacks)
    # Milliseconds; the first epoch makes the files.
    times = 1000 * np.array([clock.times[1:] for clock in clocks])
    variables = model.variables + model.optimizer.variables
    size = sum(np.prod(v.shape) * 4 for v in variables) / 1e6
    rows = []
    for way, taken in zip(ways, np.diff(times, axis=0), strict=True):
        row = {"model": build.__doc__, "megabytes": round(size, 1), "way": way}
        row["milliseconds"] = round(np.median(taken), 1)
        row["fastest"] = round(taken.min(), 1)
        row["slowest"] = round(taken.max(), 1)
        rows.append({**row, "epochs": epochs})
    return rows


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    options = parser.parse_args(arguments)
    facts = surroundings()
    rows = [
        {**row, **facts}
        for build in (book, recommended, wide)
        for row in measure(build, options.epochs)
    ]
    options.results.unlink(missing_ok=True)
    append(rows, options.results)
    print(pd.DataFrame(rows).iloc[:, :7].to_string(index=False))


if __name__ == "__main__":
    main()
