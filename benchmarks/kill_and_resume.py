"""Kill train.py at random moments, start it again, compare it with a run never stopped.

    python benchmarks/kill_and_resume.py --kills 20
    python benchmarks/kill_and_resume.py --kills 4 --devices 2

Four runs take turns, two kills each: with dropout, with a callback that waits for a
plateau, with one that changes the momentum, with alpha dropout. SIGKILL comes at a
moment drawn between the first epoch and the end, once or twice; a run that has ended
before it is begun again, and killed after half the time. Then it is left to end. The
weights, the optimizer's slots, history.csv and the scores must be those of the run
never stopped, to the bit, and nothing else may lie in the folder. On two devices these
are logical CPUs, and all is as with `train.py --distribute`.

Prints a line for each kill and how many were as they should be on each backend. The
process ends with 1 if one was not.
"""

import argparse
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import zipfile

import h5py
import numpy as np
from record import ROOT

from train import FILES

RUNS = ["recommended", "plateau_scheduler", "one_cycle_scheduler", "alpha_dropout"]
EPOCHS = 12
SCRIPTS = {1: ["train.py"], 2: ["benchmarks/devices.py", "--train"]}


def start(run, folder, backend, devices):
    """Begin the run that the folder belongs to; return its process."""
    command = [sys.executable, *SCRIPTS[devices], run, "--resume", "--dry-run"]
    command += ["--epochs", str(EPOCHS), "--output", str(folder), "--data", "garments"]
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONUNBUFFERED": "1"}
    with open(folder / "log", "ab") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=ROOT
        )


def training_begins(process, folder):
    """Wait for the first epoch's line; return whether it came."""
    known = len((folder / "log").read_bytes())
    while process.poll() is None:
        if b"Epoch " in (folder / "log").read_bytes()[known:]:
            return True
        time.sleep(0.005)
    return False


def run_whole(run, folder, backend, devices):
    """Run to the end; return the seconds from the first epoch on."""
    process = start(run, folder, backend, devices)
    training_begins(process, folder)
    began = time.perf_counter()
    if process.wait():
        raise RuntimeError((folder / "log").read_text())
    return time.perf_counter() - began


def is_killed(run, folder, backend, devices, delay):
    """Run, and kill after the delay; return whether it was still alive then."""
    process = start(run, folder, backend, devices)
    if training_begins(process, folder):
        time.sleep(delay)
    is_alive = process.poll() is None
    process.kill()
    process.wait()
    return is_alive


def outcome(run, folder):
    """Return all that must be the same, by name."""
    results = folder / f"{run}-0"
    found = {"history": (results / "history.csv").read_bytes()}
    with zipfile.ZipFile(results / "model.keras") as archive:
        weights = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(weights) as file:
        file.visititems(
            lambda name, item: (
                found.update({name: item[()].tobytes()})
                if isinstance(item, h5py.Dataset)
                else None
            )
        )
    metrics = json.loads((results / "metrics.json").read_text())
    del metrics["training_seconds"]
    for scores in metrics["test"].values():
        del scores["seconds"]
    found["metrics"] = json.dumps(metrics, sort_keys=True)
    names = {path.name for path in folder.iterdir()} - {"log", results.name}
    names |= {path.name for path in results.iterdir()} - FILES
    found["left over"] = sorted(names)
    return found


def differences(expected, found):
    """Names of what is not the same."""
    names = expected.keys() | found.keys()
    return sorted(name for name in names if expected.get(name) != found.get(name))


def kill_and_resume(num_kills, backend, seed=0, devices=1):
    """Return how many of the runs ended as if they had never been stopped."""
    rng = np.random.default_rng(seed)
    wholes, num_right = {}, 0
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(num_kills):
            run = RUNS[number // 2 % len(RUNS)]
            if run not in wholes:
                folder = pathlib.Path(scratch, run)
                folder.mkdir()
                whole = run_whole(run, folder, backend, devices)
                wholes[run] = whole, outcome(run, folder)
            seconds, expected = wholes[run]
            folder = pathlib.Path(scratch, str(number))
            folder.mkdir()
            moments = rng.uniform(0, seconds, size=1 + number % 2)
            for i in range(len(moments)):
                while not is_killed(run, folder, backend, devices, moments[i]):
                    moments[i] /= 2
            run_whole(run, folder, backend, devices)
            wrong = differences(expected, outcome(run, folder))
            num_right += not wrong
            print(
                f"{backend} {number + 1:2}: {run}, killed after "
                f"{' and '.join(f'{m:.3f}' for m in moments)} s of {seconds:.1f}: "
                f"{'the same' if not wrong else 'NOT the same: ' + ', '.join(wrong)}",
                flush=True,
            )
    print(f"{backend}: {num_right} of {num_kills} ended bit-identical", flush=True)
    return num_right


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="on each backend")
    parser.add_argument("--backends", nargs="+", default=["tensorflow", "jax"])
    parser.add_argument("--devices", type=int, choices=SCRIPTS, default=1)
    options = parser.parse_args(arguments)
    right = [
        kill_and_resume(options.kills, name, devices=options.devices)
        for name in options.backends
    ]
    return int(sum(right) < options.kills * len(right))


if __name__ == "__main__":
    sys.exit(main())
