"""Time what schedules, callbacks, clipping and monitors add to a training step.

    python benchmarks/training_speed.py schedules callbacks clipping monitors

All variants train the same small net and take turns in an order drawn anew for each
round, so that a slow moment of the machine meets them all; what one adds is its time
less that of plain training in the same round. `microseconds` is the median over the
rounds, `low` and `high` bound it with 95 % confidence. "plain training, again" is no
variant at all: what it seems to add is the error of the measurement.

A turn is an epoch of 400 steps. For the monitors, which compile in each fit, it is the
five after the first; their probe is 256 rows, four batches.

Appends to benchmarks/results/training_speed.csv; a group that has been measured with
this backend on this machine is left out. Nothing else should run on the machine
meanwhile.
"""

import argparse
import pathlib
import statistics
import time
import typing
from collections.abc import Callable

import keras
import numpy as np
import pandas as pd
from record import ROOT, append, surroundings

from callbacks.clipping_logger import ClippingLogger
from callbacks.monitors import ActivationMonitor, GradientMonitor
from callbacks.nonfinite_guard import NonFiniteGuard
from callbacks.schedulers import (
    ExponentialScheduler,
    LearningRateLogger,
    OneCycleScheduler,
    PiecewiseScheduler,
    PlateauScheduler,
    PowerScheduler,
)
from recipes import schedules
from recipes.optimizers import make_optimizer

RESULTS = ROOT / "benchmarks" / "results" / "training_speed.csv"
STEPS = 400  # of an epoch
BATCH_SIZE = 64
PROBE_SIZE = 256
PLAIN = "plain training"


class Variant(typing.NamedTuple):
    optimizer: Callable = keras.optimizers.SGD
    callbacks: Callable = list


def with_schedule(schedule):
    return Variant(lambda: keras.optimizers.SGD(schedule))


def with_callback(make, optimizer=keras.optimizers.SGD):
    return Variant(optimizer, lambda: [make()])


def with_clipping(**bounds):
    return Variant(lambda: make_optimizer("sgd", **bounds))


def gradient_monitor(every_epochs=1):
    return GradientMonitor(*made_data(PROBE_SIZE), every_epochs=every_epochs)


def activation_monitor(every_epochs=1):
    return ActivationMonitor(made_data(PROBE_SIZE)[0], every_epochs=every_epochs)


def made_data(num_rows):
    x = np.random.default_rng(0).random((num_rows, 784), np.float32)
    return x, np.arange(num_rows) % 10


POWER = schedules.PowerDecay(0.01, 1000)

GROUPS = {
    "schedules": {
        "Keras's CosineDecay": with_schedule(
            keras.optimizers.schedules.CosineDecay(0.01, 10_000)
        ),
        "PowerDecay": with_schedule(POWER),
        "Exponential": with_schedule(schedules.Exponential(0.01, 1000)),
        "Piecewise": with_schedule(schedules.Piecewise([100, 200], [0.01, 0.02, 0.01])),
        "OneCycle": with_schedule(schedules.OneCycle(0.01, 10_000)),
        "Cosine": with_schedule(schedules.Cosine(0.01, 10_000)),
        "Cosine, restarts": with_schedule(schedules.Cosine(0.01, 1000, restarts=True)),
        "Cyclical": with_schedule(schedules.Cyclical(0.001, 0.01, 100)),
        "Warmup": with_schedule(schedules.Warmup(POWER, 100)),
        "Joined": with_schedule(schedules.Joined([POWER, POWER], [100])),
        "Floor": with_schedule(schedules.Floor(POWER, 0.001)),
        "InEpochs": with_schedule(schedules.InEpochs(POWER, STEPS)),
    },
    "callbacks": {
        "PowerScheduler, each epoch": with_callback(
            lambda: PowerScheduler(0.01, decay_epochs=10)
        ),
        "PowerScheduler, each step": with_callback(
            lambda: PowerScheduler(0.01, decay_epochs=10, per="step")
        ),
        "ExponentialScheduler, each step": with_callback(
            lambda: ExponentialScheduler(0.01, decay_epochs=10, per="step")
        ),
        "PiecewiseScheduler, each epoch": with_callback(
            lambda: PiecewiseScheduler([1], [0.01, 0.005])
        ),
        "PlateauScheduler": with_callback(lambda: PlateauScheduler("loss")),
        "OneCycleScheduler, rate and momentum": with_callback(
            lambda: OneCycleScheduler(schedules.OneCycle(0.01, 10_000)),
            lambda: make_optimizer("momentum"),
        ),
        "LearningRateLogger": with_callback(LearningRateLogger),
        "NonFiniteGuard": with_callback(NonFiniteGuard),
        "NonFiniteGuard, every 10 steps": with_callback(
            lambda: NonFiniteGuard(every_steps=10)
        ),
    },
    "clipping": {
        "Keras's clipvalue": Variant(lambda: keras.optimizers.SGD(clipvalue=1.0)),
        "Keras's clipnorm": Variant(lambda: keras.optimizers.SGD(clipnorm=1.0)),
        "Keras's global_clipnorm": Variant(
            lambda: keras.optimizers.SGD(global_clipnorm=1.0)
        ),
        "clipvalue": with_clipping(clipvalue=1.0),
        "clipnorm": with_clipping(clipnorm=1.0),
        "global_clipnorm": with_clipping(global_clipnorm=1.0),
        "adaptive": with_clipping(adaptive=0.05),
        "percentile": with_clipping(percentile=90),
        "skip_nonfinite": with_clipping(skip_nonfinite=True),
        "global_clipnorm, ClippingLogger": with_callback(
            # A bound that is not reached: the logger would warn of the other.
            ClippingLogger,
            lambda: make_optimizer("sgd", global_clipnorm=1e3),
        ),
    },
    "monitors": {
        "GradientMonitor, each epoch": with_callback(gradient_monitor),
        "GradientMonitor, every 5 epochs": with_callback(lambda: gradient_monitor(5)),
        "ActivationMonitor, each epoch": with_callback(activation_monitor),
        "ActivationMonitor, every 5 epochs": with_callback(
            lambda: activation_monitor(5)
        ),
    },
}
# Epochs in a turn, after one that is not timed; else the first is the turn.
EPOCHS_AFTER_THE_FIRST = {"monitors": 5}


def prepare(variant, epochs_after_the_first):
    """A function that trains and returns the seconds of its turn."""
    keras.utils.set_random_seed(0)
    hidden = [keras.layers.Dense(100, "relu") for _ in range(2)]
    model = keras.Sequential(
        [keras.Input((784,)), *hidden, keras.layers.Dense(10, "softmax")]
    )
    model.compile(variant.optimizer(), loss="sparse_categorical_crossentropy")
    x, y = made_data(STEPS * BATCH_SIZE)

    def train():
        times = [time.perf_counter()]  # and at the end of each epoch
        clock = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: times.append(time.perf_counter())
        )
        callbacks = [*variant.callbacks(), clock]
        options = {"epochs": 1 + epochs_after_the_first, "verbose": 0}
        model.fit(x, y, batch_size=BATCH_SIZE, callbacks=callbacks, **options)
        return times[-1] - times[-1 - max(epochs_after_the_first, 1)]

    return train


def measure(variants, rounds, epochs_after_the_first=0):
    """A row for each variant: what it adds to plain training."""
    variants = {PLAIN: Variant(), f"{PLAIN}, again": Variant(), **variants}
    trains = {
        name: prepare(variant, epochs_after_the_first)
        for name, variant in variants.items()
    }
    steps = STEPS * (epochs_after_the_first or 1)
    progress = keras.utils.Progbar(rounds + 1, unit_name="round")
    random = np.random.default_rng(0)
    turns = []
    for _ in range(rounds + 1):
        names = random.permutation(list(trains))
        turns.append({name: trains[name]() for name in names})
        progress.add(1)
    # Seconds of a step, in microseconds; the first round compiles.
    seconds = pd.DataFrame(turns[1:]) * 1e6 / steps
    step = seconds[PLAIN].median()
    rows = []
    for name in variants:
        added = (seconds[name] - seconds[PLAIN]).sort_values().to_numpy()
        median, low, high = median_and_interval(added)
        row = {"name": name, "step_microseconds": round(seconds[name].median(), 1)}
        row |= {"microseconds": round(median, 1), "low": round(low, 1)}
        row |= {"high": round(high, 1), "share_of_step": round(median / step, 4)}
        rows.append({**row, "steps": steps, "rounds": rounds})
    return rows


def median_and_interval(values, confidence=0.95):
    """Median of sorted values, and the two of them that bound the population's.

    As many values lie below the population's median as heads fall in as many throws.
    """
    throws = statistics.NormalDist(len(values) / 2, len(values) ** 0.5 / 2)
    rank = max(int(throws.inv_cdf((1 - confidence) / 2)), 0)
    return np.median(values), values[rank], values[-1 - rank]


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("groups", nargs="+", choices=GROUPS)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    options = parser.parse_args(arguments)
    facts = surroundings()
    key, path = ["group", "backend", "machine"], options.results
    done = pd.read_csv(path)[key].values.tolist() if path.exists() else []
    for group in options.groups:
        if [group, facts["backend"], facts["machine"]] in done:
            continue
        epochs = EPOCHS_AFTER_THE_FIRST.get(group, 0)
        rows = measure(GROUPS[group], options.rounds, epochs)
        append([{"group": group, **row, **facts} for row in rows], path)
        print(pd.DataFrame(rows).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
