"""What several devices change and cost: a model for 1 to 64, measured as far as two.

    python benchmarks/devices.py                       the model's table and picture
    python benchmarks/devices.py --train adam --dry-run
    KERAS_BACKEND=jax python benchmarks/devices.py --compare
    KERAS_BACKEND=jax python benchmarks/devices.py --measure

`--train` is `train.py --distribute` on two logical CPUs, for machines without GPUs.
`--compare` trains every run of train.py for an epoch on 512 drawn garments, on one
device and on two logical CPUs, and appends to benchmarks/results/devices.csv by how
much the losses and weights differ; what is there is not trained again.

The model adds up a step's arithmetic, its fixed cost and the ring in which the devices
exchange gradients; docs/distributed.md explains it. `--measure` times the steps of
three networks on one device and on two logical CPUs: two processes take turns, an epoch
each, so that what else the machine does meets both. On JAX it reads from the compiled
step how many bytes it adds up over the devices. It appends a row for each network to
benchmarks/results/devices_steps.csv. Two logical CPUs share the cores of one: they show
the cost, and no gain is to be expected. Nothing else should run on the machine
meanwhile.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from record import ROOT, append, surroundings, whole  # noqa: E402

import train  # noqa: E402
from recipes.distribute import EvenBatches, all_devices  # noqa: E402
from recipes.fashion_mnist import epoch_batches  # noqa: E402
from recipes.optimizers import make_optimizer  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "devices.csv"
IS_JAX = keras.backend.backend() == "jax"
# An assumption for the table, not a machine that was seen: GPUs with 20 TFLOP/s in
# training and 20 GB/s between them, 10 microseconds for a message, half a millisecond
# for what a step takes beside the arithmetic.
FLOPS, BYTES_PER_SECOND, LATENCY, FIXED = 20e12, 20e9, 10e-6, 0.5e-3
NUMBERS_OF_DEVICES = (1, 2, 4, 8, 16, 32, 64)
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
# On one device, too, another order of the rows within the batches changes the weights
# of twenty SELU layers by 2e-3: these runs are compared in double precision as well.
ENLARGING = ("selu", "cifar10_selu")
# What each replica of MirroredStrategy does by itself, and an odd batch changes.
OF_A_PART = {
    "dropout": (keras.layers.Dropout, keras.layers.AlphaDropout),
    "batch normalization": keras.layers.BatchNormalization,
}


# --- the model


def exchanged_bytes(weights, num_devices):
    """What each device sends in a step, and receives, in a ring."""
    return 2 * (num_devices - 1) / num_devices * 4 * weights


def parts_of_a_step(weights, batch_size, num_devices):
    """Seconds for each part of the model; nothing overlaps."""
    exchange = exchanged_bytes(weights, num_devices) / BYTES_PER_SECOND
    return {
        "arithmetic": 6 * weights * batch_size / num_devices / FLOPS,
        "fixed": FIXED,
        "exchange: bytes": exchange,
        "exchange: latency": 2 * (num_devices - 1) * LATENCY,
    }


def step_seconds(weights, batch_size, num_devices):
    """All parts together."""
    return sum(parts_of_a_step(weights, batch_size, num_devices).values())


def speed_up(case, num_devices):
    """How many times as fast as one device, by the model."""
    return step_seconds(*case, 1) / step_seconds(*case, num_devices)


def modelled():
    """Milliseconds a step and speed-up over one device, as a table for the docs."""
    names = " | ".join(CASES)
    lines = [f"| devices | {names} |", "| ---: |" + " ---: |" * len(CASES)]
    for num_devices in NUMBERS_OF_DEVICES:
        cells = [
            f"{1000 * step_seconds(*case, num_devices):.2f} ms, "
            f"{speed_up(case, num_devices):.2f}x"
            for case in CASES.values()
        ]
        lines.append(f"| {num_devices} | {' | '.join(cells)} |")
    return "\n".join(lines)


def picture():
    """Speed-up by the number of devices, and what a step is made of."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    places = range(len(NUMBERS_OF_DEVICES))
    colors = ("#0072B2", "#D55E00", "#009E73")
    for (name, case), color, marker in zip(CASES.items(), colors, "os^", strict=True):
        values = [speed_up(case, number) for number in NUMBERS_OF_DEVICES]
        left.plot(places, values, marker + "-", color=color, label=name)
    left.plot(
        places,
        NUMBERS_OF_DEVICES,
        ":",
        color="0.4",
        label="as many times as devices",
    )
    left.axhline(1, color="0.4", linewidth=0.8)
    left.set(title="Modelled: times as fast as one device", yscale="log")
    ticks = (0.25, 0.5, *NUMBERS_OF_DEVICES)
    left.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    left.minorticks_off()

    name, case = list(CASES.items())[-1]
    parts = [parts_of_a_step(*case, number) for number in NUMBERS_OF_DEVICES]
    below = np.zeros(len(parts))
    for part, color in zip(parts[0], ("#56B4E9", "0.6", "#E69F00", "k"), strict=True):
        heights = 1000 * np.array([each[part] for each in parts])
        right.bar(places, heights, 0.7, below, color=color, label=part)
        below += heights
    right.set(title=f"Modelled: a step of {name}", ylabel="milliseconds")
    right.set_ylim(0, 1.05 * max(below))
    for axes in (left, right):
        axes.set_xticks(places, NUMBERS_OF_DEVICES)
        axes.set(xlabel="devices, the same batch")
        axes.legend(frameon=False, fontsize="small")
    return figure


# --- the same numbers


def split_cpu(num_devices):
    """Make as many logical devices of the CPU, before anything is computed."""
    if IS_JAX:
        import jax

        jax.config.update("jax_num_cpu_devices", num_devices)
    else:
        import tensorflow as tf

        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * num_devices,
        )


@contextlib.contextmanager
def precision(floatx):
    """Keras's floating-point type, for a while; JAX has to be told of float64, too."""
    before = keras.config.floatx()
    with contextlib.ExitStack() as stack:
        if IS_JAX and floatx == "float64":
            import jax

            stack.enter_context(jax.enable_x64(True))
        stack.callback(keras.config.set_floatx, before)
        keras.config.set_floatx(floatx)
        yield


def why_not(name, model, floatx):
    """What keeps a run on two devices from the numbers of one; empty if nothing."""
    if name in ENLARGING and floatx == "float32":
        return "enlarges rounding errors"
    if IS_JAX and train.RUNS[name].batch_size % 2 == 0:
        return ""
    return " and ".join(
        part
        for part, kinds in OF_A_PART.items()
        if any(isinstance(layer, kinds) for layer in model.layers)
    )


def compared(name, floatx, folder):
    """A row: a run of train.py on one device beside the same on all there are."""
    outcomes = []
    with precision(floatx):
        for part, more in (("one", []), ("all", ["--distribute"])):
            arguments = [name, "--dry-run", "--data", "garments", *more]
            train.main([*arguments, "--output", str(folder / part)])
            results = folder / part / f"{name}-0"
            history = pd.read_csv(results / "history.csv", index_col="epoch")
            model = keras.saving.load_model(results / "model.keras")
            metrics = json.loads((results / "metrics.json").read_text())
            outcomes.append((model.get_weights(), history))
    (weights, history), (other_weights, other_history) = outcomes
    pairs = zip(weights, other_weights, strict=True)
    losses = [column for column in history if column.endswith("loss")]
    losses, other_losses = history[losses], other_history[losses]
    return {
        "run": name,
        "floatx": floatx,
        "devices": metrics["num_devices"],
        "steps": int(model.optimizer.iterations),
        "why_not": why_not(name, model, floatx),
        "loss_difference": float(np.max(abs(losses - other_losses) / losses)),
        "weight_difference": max(float(np.max(abs(a - b))) for a, b in pairs),
    }


def compare(options, facts):
    """Append a row for each run that is not there yet."""
    key = ["run", "floatx", "backend"]
    done = []
    if options.results.exists():
        done = pd.read_csv(options.results)[key].values.tolist()
    for name in options.runs or train.RUNS:
        for floatx in ("float32", *["float64"] * (name in ENLARGING)):
            if [name, floatx, facts["backend"]] in done:
                continue
            with (
                tempfile.TemporaryDirectory() as folder,
                open(os.devnull, "w") as nowhere,
                contextlib.redirect_stdout(nowhere),
            ):
                row = compared(name, floatx, pathlib.Path(folder))
            keras.utils.clear_session()
            append([{**row, **facts}], options.results)
            print(", ".join(map(str, row.values())), flush=True)


# --- the time of a step


class Turns(keras.callbacks.Callback):
    """Begin an epoch when a line comes in; answer with the milliseconds of a step."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps

    def on_epoch_begin(self, epoch, logs=None):
        sys.stdin.readline()
        self.began = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        seconds = time.perf_counter() - self.began
        print(1000 * seconds / self.steps, flush=True)


def take_turns(network, num_devices, steps, epochs):
    """Train when told to, in this process."""
    split_cpu(num_devices)
    hidden_units, batch_size = NETWORKS[network]
    rng = np.random.default_rng(0)
    x = rng.random((steps * batch_size, 28, 28), dtype="float32")
    y = rng.integers(10, size=len(x))
    with all_devices() as devices:
        model = train.network(hidden_units=hidden_units)
        model = train.compiled(model, make_optimizer("sgd"))
        facts = {"weights": model.count_params(), "batch_size": batch_size}
        print(json.dumps({**facts, "devices": devices.num_devices}), flush=True)
        batches = EvenBatches(epoch_batches(x, y, batch_size, seed=0), devices)
        options = {"shuffle": False, "verbose": 0, "callbacks": [Turns(steps)]}
        model.fit(batches, epochs=epochs, **options)


def bytes_added_up(folder):
    """Of the all-reduce operations in the compiled steps that JAX has left there."""
    steps = list(folder.glob("*train_step*after_optimizations.txt"))
    total = 0
    for line in steps[0].read_text().splitlines() if steps else []:
        if match := re.search(r"= (.*?) all-reduce(-start)?\(", line):
            for shape in re.findall(r"(?:f|s|u)32\[([\d,]*)\]", match[1]):
                total += 4 * int(np.prod([int(n) for n in shape.split(",") if n]))
    return total


def copied_bytes_per_second():
    """How fast this machine copies memory: what two logical CPUs exchange by."""
    source, target = np.ones((2, 50_000_000), "float32")
    seconds = []
    for _ in range(7):
        began = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - began)
    return source.nbytes / np.median(seconds)


def worker(network, num_devices, options, folder):
    """A process that waits for its turns."""
    dump = f"--xla_dump_to={folder} --xla_dump_hlo_as_text"
    dump += " --xla_dump_hlo_module_re=.*train_step.*"
    flags = f"{os.environ.get('XLA_FLAGS', '')} {dump}" if num_devices > 1 else ""
    sizes = ["--steps", str(options.steps), "--epochs", str(options.epochs)]
    return subprocess.Popen(
        [sys.executable, __file__, "--worker", network, str(num_devices), *sizes],
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def answer(process):
    """What a worker says next."""
    line = process.stdout.readline()
    if not line:
        raise RuntimeError("A worker ended too soon; what it said stands above.")
    return json.loads(line)


def measure(network, options):
    """A row: one device and two take turns."""
    load = os.getloadavg()[0]
    speed = copied_bytes_per_second()
    with tempfile.TemporaryDirectory() as folder:
        workers = [worker(network, number, options, folder) for number in (1, 2)]
        try:
            one, two = map(answer, workers)
            times = {0: [], 1: []}
            for epoch in range(options.epochs):
                for number in (0, 1) if epoch % 2 else (1, 0):
                    print(file=workers[number].stdin, flush=True)
                    times[number].append(answer(workers[number]))
        finally:
            for process in workers:
                process.kill()
                process.communicate()
        added_up = bytes_added_up(pathlib.Path(folder)) if IS_JAX else None
    times = pd.DataFrame(times).iloc[1:]  # without the epoch that compiles
    ratios = times[1] / times[0]
    alone, together = times.median()
    exchange = 1000 * exchanged_bytes(one["weights"], 2) / speed
    return {
        "network": network,
        **{name: one[name] for name in ("weights", "batch_size")},
        "devices": two["devices"],
        "milliseconds_of_one": round(alone, 3),
        "milliseconds": round(together, 3),
        # The cores are shared, so the arithmetic takes as long as on one device.
        "modelled_milliseconds": round(alone + exchange, 3),
        "ratio": round(ratios.median(), 3),
        "lower_quartile": round(ratios.quantile(0.25), 3),
        "upper_quartile": round(ratios.quantile(0.75), 3),
        "copied_gigabytes_per_second": round(speed / 1e9, 2),
        "bytes_added_up": added_up,
        "epochs": len(times),
        "steps": options.steps,
        "load": round(load, 2),
    }


def measure_all(options, facts):
    """Append a row for each network that is not there yet."""
    path = options.results.with_name(f"{options.results.stem}_steps.csv")
    key = ["network", "backend", "machine"]
    done = pd.read_csv(path)[key].values.tolist() if path.exists() else []
    for network in NETWORKS:
        if [network, facts["backend"], facts["machine"]] not in done:
            row = measure(network, options)
            append([{**row, **facts}], path)
            print(", ".join(map(str, row.values())), flush=True)


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", nargs=argparse.REMAINDER, metavar="ARGUMENT")
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--runs", nargs="+", choices=train.RUNS, metavar="NAME")
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--steps", type=int, default=50, help="in an epoch")
    parser.add_argument("--epochs", type=int, default=21)
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.train:
        split_cpu(2)
        sys.exit(train.main([*options.train, "--distribute"]))
    elif options.worker:
        network, num_devices = options.worker
        take_turns(network, int(num_devices), options.steps, options.epochs)
    elif options.compare:
        split_cpu(2)
        compare(options, surroundings())
    elif options.measure:
        measure_all(options, surroundings())
    else:
        print(modelled())
        with whole(options.results.with_suffix(".png")) as new:
            picture().savefig(new, format="png", dpi=100)


if __name__ == "__main__":
    main()
