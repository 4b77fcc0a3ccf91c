"""Time the book's plain `fit` and what makes it faster, seconds per epoch; and a race.

    python benchmarks/epoch_speed.py epochs race --torch-python PATH
    python benchmarks/epoch_speed.py accuracy

epochs: the chapter's dropout net on the 55,000 images in batches of 32, in every way of
    `ROWS`: Keras on TensorFlow and on JAX, each in processes of its own that wait for
    their turns, and the plain loop of PyTorch, of the Python that --torch-python names.
    The ways take turns in an order drawn anew for each round, so that a slow moment of
    the machine meets them all. Timed is the epoch without validation, after one that
    compiles. `ratio`: how many times as fast as TensorFlow's plain `fit` of the same
    network in the same round; the median over the rounds, `low` and `high` bound it
    with 95 % confidence.
accuracy: validation accuracy of the same net after five epochs, by plain `fit` and by
    what `train.py` does, over seeds.
race: the book's 25 epochs of one cycle by plain `fit` against fewer epochs of
    `OneCycle`, which runs inside the step; all on three layers of 100 ReLU and batches
    of 128. Our optimizers and rates were chosen on the validation images with seeds
    100 and 101. Seconds are those of the whole call of `fit` on a new model, its
    compilation and the validation after each epoch included; the ways take turns.

Appends to benchmarks/results/epoch_speed.csv and epoch_runs.csv, and leaves out what is
there of the same machine. Nothing else should run on it during `epochs` and `race`.
"""

import argparse
import contextlib
import functools
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import typing
from collections.abc import Callable

import keras
import numpy as np
import pandas as pd
from keras import layers
from record import ROOT, append, surroundings
from training_speed import median_and_interval

import train
from callbacks.schedulers import LearningRateLogger, PowerScheduler
from recipes import fashion_mnist, schedules
from recipes.optimizers import make_optimizer

RESULTS = ROOT / "benchmarks" / "results"
BATCH_SIZE = 32
EPOCHS = 5  # of `accuracy`
SERVE = "--serve"  # how this script starts itself, to train when asked

# --- the networks, and the ways to train them


def dropout_net():
    """the chapter's net with dropout 0.2 before each layer"""
    return train.network(hidden_units=(100, 100), dropout=lambda: layers.Dropout(0.2))


def dense_net():
    """the same without dropout"""
    return train.network(hidden_units=(100, 100))


NETWORKS = {"dropout": dropout_net, "no dropout": dense_net}


def arrays(x, y):
    return {"x": x, "y": y, "batch_size": BATCH_SIZE}


def epoch_batches(x, y, seed=0):
    return {"x": fashion_mnist.epoch_batches(x, y, BATCH_SIZE, seed=seed)}


def tf_data(x, y):
    import tensorflow as tf

    batches = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x))
    batches = batches.batch(BATCH_SIZE).prefetch(tf.data.AUTOTUNE)
    return {"x": batches, "shuffle": False}


class Way(typing.NamedTuple):
    """What differs from plain `fit`."""

    data: Callable = arrays
    callbacks: Callable = list
    verbose: int = 1
    share: float = 1.0  # of the epoch that is measured
    compile: dict = {}


def several(number, **more):
    return Way(compile={"steps_per_execution": number}, **more)


PLAIN, OURS = "plain fit", "as train.py"
FAST = "steps_per_execution=50"
COMPILED = "jit_compile=True"
WAYS = {
    PLAIN: Way(),
    "no progress bar": Way(verbose=0),
    "rate set before each step": Way(
        callbacks=lambda: [PowerScheduler(0.01, decay_epochs=10, per="step")]
    ),
    "epoch_batches": Way(epoch_batches),
    "steps_per_execution=10": several(10),
    FAST: several(50),
    "steps_per_execution=200": several(200),
    f"{FAST}, tf.data": several(50, data=tf_data),
    COMPILED: Way(compile={"jit_compile": True}, share=0.1),
    f"{COMPILED}, {FAST}": Way(
        compile={"jit_compile": True, "steps_per_execution": 50}, share=0.1
    ),
    # epoch_batches, 50 steps at once, the rate in History
    OURS: several(50, data=epoch_batches, callbacks=lambda: [LearningRateLogger()]),
}

ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
PROCESSES = {
    "TensorFlow": {"KERAS_BACKEND": "tensorflow"},
    "TensorFlow, one thread": {"KERAS_BACKEND": "tensorflow", **ONE_THREAD},
    "JAX": {"KERAS_BACKEND": "jax"},
    "PyTorch": {},
    "PyTorch, one thread": {"OMP_NUM_THREADS": "1"},
}
LOOPS = ["plain loop, DataLoader", "plain loop, batches by indexing"]
ROWS = [
    *(("TensorFlow", "dropout", way) for way in WAYS),
    *(("TensorFlow, one thread", "dropout", way) for way in (PLAIN, FAST, OURS)),
    *(("JAX", "dropout", way) for way in (PLAIN, "epoch_batches", FAST, OURS)),
    *(("PyTorch", "dropout", loop) for loop in LOOPS),
    *(("PyTorch, one thread", "dropout", loop) for loop in LOOPS),
    *(
        ("TensorFlow", "no dropout", way)
        for way in (PLAIN, FAST, COMPILED, f"{COMPILED}, {FAST}")
    ),
]


# --- the race


class BookOneCycle(keras.callbacks.Callback):
    """The book's one cycle: a rate set before each step, in three straight lines."""

    def __init__(self, num_steps, start_rate=0.01, max_rate=0.1):
        super().__init__()
        last_steps = num_steps // 10 + 1
        half = (num_steps - last_steps) // 2
        self.steps = [0, half, 2 * half, num_steps]
        self.rates = [start_rate, max_rate, start_rate, start_rate / 1000]
        self.step = 0

    def on_train_batch_begin(self, batch, logs=None):
        rate = float(np.interp(self.step, self.steps, self.rates))
        self.model.optimizer.learning_rate = rate
        self.step += 1


def book_race(x, y, seed):
    num_steps = -(-len(x) // 128)
    options = {"x": x, "y": y, "batch_size": 128, "epochs": 25}
    options["callbacks"] = [BookOneCycle(25 * num_steps)]
    return keras.optimizers.SGD(), {}, options


def our_race(epochs, optimizer, max_rate, x, y, seed, **more):
    batches = fashion_mnist.epoch_batches(x, y, 128, seed=seed)
    schedule = schedules.OneCycle(max_rate, epochs * len(batches))
    options = {"x": batches, "epochs": epochs, "callbacks": [LearningRateLogger()]}
    optimizer = make_optimizer(optimizer, schedule, **more)
    return optimizer, {"steps_per_execution": 50}, options


def nesterov(epochs):
    return functools.partial(our_race, epochs, "nesterov", 0.1)


def adamw(epochs):
    return functools.partial(our_race, epochs, "adamw", 0.004, weight_decay=0.02)


RACERS = {
    "the book's: 25 epochs, plain `fit`": book_race,
    "Nesterov 0.9, peak 0.1, 12 epochs": nesterov(12),
    "AdamW, peak 0.004, 14 epochs": adamw(14),
    "Nesterov 0.9, peak 0.1, 20 epochs": nesterov(20),
}
RACE = [
    *(("TensorFlow", racer) for racer in list(RACERS)[:3]),
    *(("JAX", racer) for racer in list(RACERS)[1:]),
]
ACCURACY = [
    (process, way) for process in ("TensorFlow", "JAX") for way in (PLAIN, OURS)
]


# --- in the processes that train


class Trainer:
    """Answers requests; keeps a model for each way."""

    def __init__(self, path):
        with np.load(path, allow_pickle=False) as data:
            self.data = {name: data[name] for name in data}
        self.models = {}

    def facts(self):
        """Name and version of the backend."""
        return f"{keras.backend.backend()} {train.backend_version()}"

    def epoch(self, network, way, num_rows):
        """Seconds of one epoch."""
        if (network, way) not in self.models:
            keras.utils.set_random_seed(0)
            self.models[network, way] = compiled(NETWORKS[network](), WAYS[way])
        moments = []
        clock = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: moments.append(time.perf_counter()),
            on_epoch_end=lambda epoch, logs: moments.append(time.perf_counter()),
        )
        x, y = self.data["x_train"][:num_rows], self.data["y_train"][:num_rows]
        self.models[network, way].fit(
            **WAYS[way].data(x, y),
            verbose=WAYS[way].verbose,
            callbacks=[*WAYS[way].callbacks(), clock],
        )
        began, ended = moments
        return ended - began

    def accuracy(self, way, seed):
        """Validation accuracy of a new dropout net."""
        keras.utils.set_random_seed(seed)
        model = compiled(dropout_net(), WAYS[way])
        x, y = self.data["x_train"], self.data["y_train"]
        data = epoch_batches(x, y, seed) if way == OURS else WAYS[way].data(x, y)
        model.fit(**data, epochs=EPOCHS, callbacks=WAYS[way].callbacks(), verbose=0)
        return {"val_accuracy": self.validated(model)}

    def race(self, racer, seed):
        """Seconds and validation accuracy of a whole `fit`."""
        keras.utils.set_random_seed(seed)
        x, y = self.data["x_train"], self.data["y_train"]
        optimizer, compile_options, options = RACERS[racer](x, y, seed)
        model = train.network()
        loss = "sparse_categorical_crossentropy"
        model.compile(optimizer, loss, metrics=["accuracy"], **compile_options)
        options["validation_data"] = self.data["x_valid"], self.data["y_valid"]
        began = time.perf_counter()
        model.fit(**options)
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "val_accuracy": self.validated(model)}

    def validated(self, model):
        """Accuracy on the validation images."""
        x, y = self.data["x_valid"], self.data["y_valid"]
        return model.evaluate(x, y, batch_size=500, verbose=0)[1]


def compiled(model, way):
    """The model with the book's optimizer, ready for `fit`."""
    loss = "sparse_categorical_crossentropy"
    optimizer = make_optimizer("momentum", 0.01)
    model.compile(optimizer, loss, metrics=["accuracy"], **way.compile)
    return model


def serve(path):
    """Answer each line of the input by one of the output, and print nothing else."""
    trainer, answers = Trainer(path), sys.stdout
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        for line in sys.stdin:
            task, *arguments = json.loads(line)
            answer = getattr(trainer, task)(*arguments)
            print(json.dumps(answer), file=answers, flush=True)


# --- in the process that asks


class Child:
    """A process that trains when asked, and waits at no cost meanwhile."""

    def __init__(self, name, command):
        self.name = name
        self.process = subprocess.Popen(
            list(map(str, command)),
            env={**os.environ, **PROCESSES[name]},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, *request):
        """The answer to a request."""
        print(json.dumps(request), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.name} has died at {request}")
        return json.loads(answer)

    def end(self):
        """Let the process end, whether or not it is in the middle of an answer."""
        self.process.kill()
        self.process.communicate()


def command_for(name, torch_python, path):
    """How to start a process; None, said in a sentence, where it cannot be had."""
    if name.startswith("PyTorch"):
        command = [torch_python, "-c", "import torch"]
        if not subprocess.run(command, stderr=subprocess.DEVNULL).returncode:
            return [torch_python, ROOT / "benchmarks" / "torch_epochs.py", path]
        print(f"{name} is left out: {torch_python} has no torch (--torch-python).")
    elif importlib.util.find_spec(PROCESSES[name]["KERAS_BACKEND"]):
        return [sys.executable, __file__, SERVE, path]
    else:
        print(f"{name} is left out: it is not installed.")
    return None


def part_of_epoch(share, num_rows):
    """How many rows are about this share, with a last batch of the epoch's size."""
    return num_rows - BATCH_SIZE * int((1 - share) * num_rows / BATCH_SIZE)


def measure_epochs(children, num_rows, rounds):
    """A row for each way: seconds of an epoch, and how many times as fast it is."""
    ways = [row for row in ROWS if row[0] in children]
    shares = [WAYS[way].share if way in WAYS else 1.0 for _, _, way in ways]
    random = np.random.default_rng(0)
    seconds = {row: [] for row in ways}
    progress = keras.utils.Progbar(rounds + 1, unit_name="round")
    for number in range(rounds + 1):
        for i in random.permutation(len(ways)):
            process, *which = ways[i]
            # The first turn compiles.
            rows = part_of_epoch(shares[i] if number else 0.05, num_rows)
            elapsed = children[process].ask("epoch", *which, rows)
            if number:
                seconds[ways[i]].append(elapsed * num_rows / rows)
        progress.add(1)
    measured = []
    for row, share in zip(ways, shares, strict=True):
        of_way = np.array(seconds[row])
        facts = dict(zip(("process", "network", "way"), row, strict=True))
        facts |= {"seconds": round(np.median(of_way), 3), "share_measured": share}
        plain = np.array(seconds["TensorFlow", row[1], PLAIN])
        ratios = np.sort(plain / of_way)
        for name, value in zip(
            ("ratio", "low", "high"), median_and_interval(ratios), strict=True
        ):
            facts[name] = round(value, 3)
        measured.append({**facts, "rounds": rounds})
    return measured


def measure_runs(task, children, seed):
    """A row for each way to train with this seed."""
    turns = ACCURACY if task == "accuracy" else RACE
    turns = [turn for turn in turns if turn[0] in children]
    rows = {}
    for i in np.random.default_rng(seed).permutation(len(turns)):
        process, way = turns[i]
        answer = children[process].ask(task, way, seed)
        answer = {name: round(value, 4) for name, value in answer.items()}
        row = {"task": task, "seed": seed, "process": process, "way": way}
        rows[i] = {"seconds": None, **row, **answer}
    return [rows[i] for i in sorted(rows)]


def done_here(path, machine):
    """What has been measured on this machine."""
    if not path.exists():
        return pd.DataFrame(columns=["task", "seed"])
    rows = pd.read_csv(path)
    return rows[rows["machine"] == machine]


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tasks = ["epochs", "accuracy", "race"]
    parser.add_argument("tasks", nargs="+", choices=tasks)
    parser.add_argument("--rounds", type=int, default=7, help="of `epochs`")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to N - 1")
    parser.add_argument("--torch-python", default=sys.executable, metavar="PATH")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    options = parser.parse_args(arguments)
    facts = surroundings()
    del facts["backend"]
    data = fashion_mnist.load(train.DATA_FOLDER)
    children = {}
    with tempfile.TemporaryDirectory() as scratch:
        try:
            path = pathlib.Path(scratch, "data.npz")
            names = ("x_train", "y_train", "x_valid", "y_valid")
            np.savez(path, **{name: getattr(data, name) for name in names})
            for name in PROCESSES:
                command = command_for(name, options.torch_python, path)
                if command:
                    children[name] = Child(name, command)
            known = facts["versions"].split(", ")
            known += [child.ask("facts") for child in children.values()]
            facts["versions"] = ", ".join(dict.fromkeys(known))
            measure(options, children, len(data.x_train), facts)
        finally:
            for child in children.values():
                child.end()


def measure(options, children, num_rows, facts):
    """Measure what is not there yet."""
    path = options.results / "epoch_speed.csv"
    if "epochs" in options.tasks and not len(done_here(path, facts["machine"])):
        rows = measure_epochs(children, num_rows, options.rounds)
        append([{**row, **facts} for row in rows], path)
        print(pd.DataFrame(rows).to_string(index=False), flush=True)
    path = options.results / "epoch_runs.csv"
    for task in ("accuracy", "race"):
        done = done_here(path, facts["machine"])
        done = set(done.loc[done["task"] == task, "seed"])
        for seed in range(options.seeds) if task in options.tasks else ():
            if seed not in done:
                rows = measure_runs(task, children, seed)
                append([{**row, **facts} for row in rows], path)
                print(pd.DataFrame(rows).to_string(index=False), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == [SERVE]:
        serve(sys.argv[2])
    else:
        main()
