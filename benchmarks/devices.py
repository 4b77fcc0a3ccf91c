"""What training on several devices costs: a model for 1 to 64, measured as far as two.

    python benchmarks/devices.py                       the model's table, for the docs
    KERAS_BACKEND=jax python benchmarks/devices.py --measure

The model adds up a step's arithmetic, its fixed cost and the ring in which the devices
exchange gradients; docs/distributed.md explains it. `--measure` times the steps of
three networks on one device and on two logical CPUs, each in a process of its own, and
on JAX reads from the compiled step how many bytes it adds up over the devices. It
appends a row for each to benchmarks/results/devices.csv; what is there is not measured
again. Two logical CPUs share the cores of one: they show the cost, and no gain is to be
expected. Nothing else should run on the machine meanwhile.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from mc_dropout_speed import ROOT, append, surroundings  # noqa: E402
from resume_cost import Clock  # noqa: E402

import train  # noqa: E402
from recipes.distribute import EvenBatches, all_devices  # noqa: E402
from recipes.fashion_mnist import epoch_batches  # noqa: E402
from recipes.optimizers import make_optimizer  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "devices.csv"
# An assumption for the table, not a machine that was seen: GPUs with 20 TFLOP/s in
# training and 20 GB/s between them, 10 microseconds for a message, half a millisecond
# for what a step takes beside the arithmetic.
FLOPS, BYTES_PER_SECOND, LATENCY, FIXED = 20e12, 20e9, 10e-6, 0.5e-3
# Weights and rows in a batch, by what the docs call them.
CASES = {
    "the chapter's, batch 32": (99_710, 32),
    "25 million weights, batch 256": (25_000_000, 256),
    "25 million weights, batch 4096": (25_000_000, 4096),
}
NETWORKS = {  # hidden units, and rows in a batch
    "the chapter's": ((100, 100, 100), 32),
    "the chapter's, large batch": ((100, 100, 100), 1024),
    "ten million weights": ((2800, 2800), 1024),
}


def exchanged_bytes(weights, num_devices):
    """What each device sends in a step, and receives, in a ring."""
    return 2 * (num_devices - 1) / num_devices * 4 * weights


def step_seconds(weights, batch_size, num_devices):
    """The model: nothing overlaps."""
    arithmetic = 6 * weights * batch_size / num_devices / FLOPS
    exchange = exchanged_bytes(weights, num_devices) / BYTES_PER_SECOND
    return FIXED + arithmetic + exchange + 2 * (num_devices - 1) * LATENCY


def modelled():
    """Milliseconds a step and speed-up over one device, as a table for the docs."""
    names = " | ".join(CASES)
    lines = [f"| devices | {names} |", "| ---: |" + " ---: |" * len(CASES)]
    for num_devices in (1, 2, 4, 8, 16, 32, 64):
        cells = []
        for case in CASES.values():
            seconds = step_seconds(*case, num_devices)
            ratio = step_seconds(*case, 1) / seconds
            cells.append(f"{1000 * seconds:.2f} ms, {ratio:.2f}x")
        lines.append(f"| {num_devices} | {' | '.join(cells)} |")
    return "\n".join(lines)


def split_cpu(num_devices):
    """Make as many logical devices of the CPU, before anything is computed."""
    if keras.backend.backend() == "jax":
        import jax

        jax.config.update("jax_num_cpu_devices", num_devices)
    else:
        import tensorflow as tf

        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * num_devices,
        )


def milliseconds_of_steps(network, num_devices, steps, epochs):
    """Mean milliseconds of a step in each epoch but the first, in this process."""
    split_cpu(num_devices)
    hidden_units, batch_size = NETWORKS[network]
    rng = np.random.default_rng(0)
    x = rng.random((steps * batch_size, 28, 28), dtype="float32")
    y = rng.integers(10, size=len(x))
    clock = Clock()
    with all_devices() as devices:
        model = train.network(hidden_units=hidden_units)
        model = train.compiled(model, make_optimizer("sgd"))
        batches = EvenBatches(epoch_batches(x, y, batch_size, seed=0), devices)
        options = {"shuffle": False, "verbose": 0, "callbacks": [clock]}
        model.fit(batches, epochs=epochs + 1, **options)
    return {
        "weights": model.count_params(),
        "batch_size": batch_size,
        "devices": devices.num_devices,
        "milliseconds": (1000 * np.diff(clock.times) / steps).tolist(),
    }


def bytes_added_up(folder):
    """Of the all-reduce operations in the compiled steps that JAX has left there."""
    steps = list(folder.glob("*train_step*after_optimizations.txt"))
    total = 0
    for line in steps[0].read_text().splitlines() if steps else []:
        if match := re.search(r"= (.*?) all-reduce(-start)?\(", line):
            for shape in re.findall(r"(?:f|s|u)32\[([\d,]*)\]", match[1]):
                total += 4 * int(np.prod([int(n) for n in shape.split(",") if n]))
    return total


def measure(network, num_devices, options):
    """A row: one process."""
    flags = os.environ.get("XLA_FLAGS", "")
    with tempfile.TemporaryDirectory() as folder:
        dump = f"--xla_dump_to={folder} --xla_dump_hlo_as_text"
        dump += " --xla_dump_hlo_module_re=.*train_step.*"
        worker = ["--worker", network, str(num_devices)]
        sizes = ["--steps", str(options.steps), "--epochs", str(options.epochs)]
        printed = subprocess.run(
            [sys.executable, __file__, *worker, *sizes],
            env={**os.environ, "XLA_FLAGS": f"{flags} {dump}", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
        is_jax = keras.backend.backend() == "jax"
        added_up = bytes_added_up(pathlib.Path(folder)) if is_jax else None
    found = json.loads(printed.splitlines()[-1])
    times = found.pop("milliseconds")
    return {
        "network": network,
        **found,
        "milliseconds": round(float(np.median(times)), 3),
        "fastest": round(min(times), 3),
        "slowest": round(max(times), 3),
        "epochs": options.epochs,
        "steps": options.steps,
        "bytes_added_up": added_up,
    }


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--steps", type=int, default=50, help="in an epoch")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--worker", nargs=2, metavar=("NETWORK", "DEVICES"))
    options = parser.parse_args(arguments)
    if options.worker:
        network, num_devices = options.worker[0], int(options.worker[1])
        sizes = options.steps, options.epochs
        print(json.dumps(milliseconds_of_steps(network, num_devices, *sizes)))
        return
    if not options.measure:
        print(modelled())
        return
    facts = surroundings()
    key = ["network", "devices", "backend", "machine"]
    done = []
    if options.results.exists():
        done = pd.read_csv(options.results)[key].values.tolist()
    for network in NETWORKS:
        for num_devices in (1, 2):
            if [network, num_devices, facts["backend"], facts["machine"]] in done:
                continue
            row = {**measure(network, num_devices, options), **facts}
            append([row], options.results)
            print(pd.DataFrame([row]).iloc[:, :7].to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
