"""Kill train.py at random moments, start it again, compare it with a run never stopped.

    python benchmarks/kill_and_resume.py --kills 20

Four runs take turns, two kills each: with dropout, with a callback that waits for a
plateau, with one that changes the momentum, with alpha dropout. SIGKILL comes at a
moment drawn between the first epoch and the end, once or twice, and then the run is
left to end. The weights, the optimizer's slots, history.csv and the scores must be
those of the run never stopped, to the bit, and nothing else may lie in the folder.

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

ROOT = pathlib.Path(__file__).parent.parent
RUNS = ["recommended", "plateau_scheduler", "one_cycle_scheduler", "alpha_dropout"]
EPOCHS = 12
LEFT = {"model.keras", "history.csv", "metrics.json", "curves.png", "uncertainty.png"}


def start(run, folder, backend):
    """Begin the run that the folder belongs to; return its process."""
    command = [sys.executable, str(ROOT / "train.py"), run, "--resume", "--dry-run"]
    command += ["--epochs", str(EPOCHS), "--output", str(folder), "--data", "garments"]
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONUNBUFFERED": "1"}
    with open(folder / "log", "ab") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment
        )


def seconds_until_training(process, folder):
    """Wait for the first epoch's line; return whether it came."""
    known = len((folder / "log").read_bytes())
    while process.poll() is None:
        if b"Epoch " in (folder / "log").read_bytes()[known:]:
            return True
        time.sleep(0.005)
    return False


def run_whole(run, folder, backend):
    """Run to the end; return the seconds from the first epoch on."""
    process = start(run, folder, backend)
    seconds_until_training(process, folder)
    began = time.perf_counter()
    if process.wait():
        raise RuntimeError((folder / "log").read_text())
    return time.perf_counter() - began


def kill_once(run, folder, backend, delay):
    """Run, and kill after the delay; return whether it was still alive then."""
    process = start(run, folder, backend)
    if seconds_until_training(process, folder):
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
    names |= {path.name for path in results.iterdir()} - LEFT
    found["left over"] = sorted(names)
    return found


def differences(expected, found):
    """Names of what is not the same."""
    names = expected.keys() | found.keys()
    return sorted(name for name in names if expected.get(name) != found.get(name))


def kill_and_resume(num_kills, backend, seed=0):
    """Return how many of the runs ended as if they had never been stopped."""
    rng = np.random.default_rng(seed)
    wholes, num_right = {}, 0
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(num_kills):
            run = RUNS[number // 2 % len(RUNS)]
            if run not in wholes:
                folder = pathlib.Path(scratch, run)
                folder.mkdir()
                wholes[run] = run_whole(run, folder, backend), outcome(run, folder)
            seconds, expected = wholes[run]
            folder = pathlib.Path(scratch, str(number))
            folder.mkdir()
            moments = [f"{rng.uniform(0, seconds):.3f}" for _ in range(1 + number % 2)]
            alive = [kill_once(run, folder, backend, float(m)) for m in moments]
            run_whole(run, folder, backend)
            wrong = differences(expected, outcome(run, folder))
            num_right += not wrong
            print(
                f"{backend} {number + 1:2}: {run}, {' and '.join(moments)} s of "
                f"{seconds:.1f}, killed {sum(alive)} times: "
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
    options = parser.parse_args(arguments)
    right = [kill_and_resume(options.kills, name) for name in options.backends]
    return int(sum(right) < options.kills * len(right))


if __name__ == "__main__":
    sys.exit(main())
