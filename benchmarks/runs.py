"""Measure runs of train.py on Fashion-MNIST, a row for each run and seed.

    python benchmarks/runs.py recommended baseline dropout --seeds 5

Appends to benchmarks/results/runs.csv and leaves out what is already there, so that it
can be stopped and started again. Nothing else should run on the machine meanwhile.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import pandas as pd
from record import ROOT, commit, whole

RESULTS = ROOT / "benchmarks" / "results" / "runs.csv"


def measure(name, seed):
    """Train one run in a process of its own; return its row."""
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, "train.py", name, "--seed", str(seed)]
        command += ["--data", "fashion-mnist", "--output", output]
        subprocess.run(command, cwd=ROOT, check=True)
        folder = pathlib.Path(output) / f"{name}-{seed}"
        metrics = json.loads((folder / "metrics.json").read_text())
    row = {key: metrics[key] for key in ("run", "seed", "data", "epochs")}
    row["commit"] = commit()
    row["training_seconds"] = round(metrics["training_seconds"], 1)
    row["validation_accuracy"] = round(metrics["validation_accuracy"], 4)
    for kind, prefix in (("deterministic", ""), ("MC Dropout", "mc_")):
        for score, value in metrics["test"].get(kind, {}).items():
            row[prefix + score] = None if value is None else round(value, 4)
    versions = [f"{name} {number}" for name, number in metrics["versions"].items()]
    row["versions"] = ", ".join(versions)
    row["machine"] = f"{metrics['machine']}, {metrics['device']}"
    return row


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", help="names that train.py --list shows")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to N - 1")
    options = parser.parse_args()
    # As text, for a commit like 4e72448 is not a number.
    table = pd.DataFrame()
    if RESULTS.exists():
        table = pd.read_csv(RESULTS, dtype={"commit": str})
    done = set(zip(table["run"], table["seed"], strict=True)) if len(table) else set()
    for seed in range(options.seeds):
        for name in options.runs:
            if (name, seed) in done:
                continue
            table = pd.concat([table, pd.DataFrame([measure(name, seed)])])
            with whole(RESULTS) as new:
                table.to_csv(new, index=False)
            print(table.tail(1).T.to_string(), flush=True)


if __name__ == "__main__":
    main()
