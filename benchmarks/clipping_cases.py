"""Clip gradients whose right step is known, with Keras's optimizers and with ours.

    python benchmarks/clipping_cases.py

Writes a row for each case to benchmarks/results/clipping_cases.csv, whole or not at
all: the number that was measured, and whether it is the expected one. The right step is
that of the formula for the gradient of the whole batch. All on TensorFlow; the two
replicas are two logical devices of the CPU under `MirroredStrategy`.

An optimizer may say of a case "not offered", where it has no such option, "refused", by
a ValueError when it is made, or "fails", by another error in training.
"""

import argparse
import dataclasses
import os
import pathlib
from collections.abc import Callable

os.environ["KERAS_BACKEND"] = "tensorflow"  # replicas and sparse gradients
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import tensorflow as tf  # noqa: E402
from record import ROOT, surroundings, whole  # noqa: E402

from recipes.optimizers import ClippedOptimizer  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "clipping_cases.csv"
NOT_OFFERED, REFUSED, FAILS = "not offered", "refused", "fails"


@dataclasses.dataclass
class Case:
    name: str
    measure: str
    expected: tuple  # of what is right: numbers or words
    measured_with: Callable  # of (make,), where make(kind, clipping, **options)


# --- the two makers; a learning rate of 1 makes the step the clipped gradient


def keras_own(kind, clipping, *, skip=False, **options):
    """Keras's optimizer, which cannot skip a step."""
    return getattr(keras.optimizers, kind)(1.0, **clipping, **options)


def ours(kind, clipping, *, skip=False, **options):
    inner = getattr(keras.optimizers, kind)(1.0, **options)
    return ClippedOptimizer(inner, **clipping, skip_nonfinite=skip)


# --- measures: each returns a function from a maker to a number


def move(gradient, clipping, *, weights=0.0, of=-1, dtype="float32", **how):
    """How far one component moves in a step; of the last one, if not said."""

    def measure(make):
        variable = keras.Variable(np.zeros_like(gradient) + weights, dtype=dtype)
        before = keras.ops.convert_to_numpy(variable).ravel()[of]
        optimizer = make(how.get("kind", "SGD"), clipping, skip=how.get("skip", False))
        optimizer.apply([tf.constant(gradient, dtype)], [variable])
        after = keras.ops.convert_to_numpy(variable).ravel()[of]
        return float(before) - float(after)

    return measure


def length(gradient, clipping, **how):
    """The norm of a step from 0."""

    def measure(make):
        moves = [
            move(gradient, clipping, of=i, **how)(make) for i in range(len(gradient))
        ]
        return float(np.linalg.norm(moves))

    return measure


def end(gradients, clipping, **how):
    """A weight of 1 after steps with these gradients."""

    def measure(make):
        variable = keras.Variable(1.0)
        optimizer = make("SGD", clipping, **how)
        for gradient in gradients:
            optimizer.apply([tf.constant(gradient)], [variable])
        return float(variable)

    return measure


def repeated_id(clipping, *, jit_compile=False):
    """How far a row of an embedding moves whose id occurs four times."""

    def measure(make):
        table = keras.Variable(np.zeros((3, 1)), dtype="float32")
        optimizer = make("SGD", clipping)
        optimizer.build([table])

        @tf.function(jit_compile=jit_compile)
        def step():
            slices = tf.IndexedSlices(tf.fill((4, 1), -1.0), [1, 1, 1, 1], [3, 1])
            optimizer.apply([slices], [table])

        step()
        return float(table[1, 0])

    return measure


def distance_from_dense(kind, clipping):
    """Between the weights of a sparse and of a dense gradient after eight steps."""

    def measure(make):
        ends = []
        for is_sparse in (True, False):
            table = keras.Variable(np.zeros((2, 2)), dtype="float32")
            optimizer = make(kind, clipping)
            optimizer.build([table])
            rng = np.random.default_rng(0)
            for _ in range(8):
                rows = tf.constant(rng.normal(size=(3, 2)).astype("float32"))
                gradient = tf.IndexedSlices(rows, tf.constant([0, 0, 1]), (2, 2))
                if not is_sparse:
                    gradient = tf.math.unsorted_segment_sum(rows, gradient.indices, 2)
                optimizer.apply([gradient], [table])
            ends.append(keras.ops.convert_to_numpy(table))
        return float(np.abs(ends[0] - ends[1]).max())

    return measure


def two_replicas(clipping, gradients=(100.0, -1.0), *, scaled=False, **how):
    """A weight of 1 after steps with the sum of what two replicas found."""

    def measure(make):
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        with strategy.scope():
            variable = keras.Variable(1.0)
            optimizer = make("SGD", clipping, **how)
            if scaled:
                optimizer = keras.optimizers.LossScaleOptimizer(optimizer, 1.0)
            optimizer.build([variable])

        @tf.function
        def step():
            context = tf.distribute.get_replica_context()
            gradient = tf.constant(gradients)[context.replica_id_in_sync_group]
            optimizer.apply([gradient], [variable])

        for _ in range(how.get("gradient_accumulation_steps", 1)):
            strategy.run(step)
        return float(variable + 0)

    return measure


def unit(layer, shape, last_unit, clipping):
    """How far the last unit of a layer moves under a gradient of tens.

    Its weights are 1, all others 0: the norm over other axes would be another one.
    """

    def measure(make):
        built = layer()
        built.build((None, *shape))
        kernel = built.trainable_variables[0]
        weights = np.zeros(kernel.shape)
        weights[last_unit] = 1.0
        kernel.assign(weights)
        make("SGD", clipping).apply([tf.fill(kernel.shape, 10.0)], [kernel])
        return 1.0 - float(keras.ops.ravel(kernel)[-1])

    return measure


def second_moment(gradient, **how):
    def measure(make):
        optimizer = make("Adam", {}, **how)
        optimizer.apply([tf.constant(gradient)], [keras.Variable(0.0)])
        (moment,) = [v for v in optimizer.variables if "velocity" in v.path]
        return float(moment)

    return measure


def average(clipping):
    """The average of a weight that starts at 1, after two steps."""

    def measure(make):
        optimizer = make("SGD", clipping, use_ema=True, ema_momentum=0.5)
        variable = keras.Variable(1.0)
        for _ in range(2):
            optimizer.apply([tf.constant(50.0)], [variable])
        optimizer.finalize_variable_values([variable])
        return float(variable)

    return measure


def loss_scale(clipping):
    def measure(make):
        scaled = keras.optimizers.LossScaleOptimizer(
            make("SGD", clipping), initial_scale=1024.0
        )
        variable = keras.Variable(0.0)
        scaled.apply([tf.constant(1024.0 * 50)], [variable])
        return -float(variable)

    return measure


def rate_and_decay(clipping):
    def measure(make):
        optimizer = make("SGD", clipping, weight_decay=0.1)
        optimizer.learning_rate = 0.5
        variable = keras.Variable(1.0)
        optimizer.apply([tf.constant(50.0)], [variable])
        return float(variable)

    return measure


def norm_read(clipping):
    def measure(make):
        optimizer = make("SGD", clipping)
        optimizer.apply([tf.constant([30.0, 40.0])], [keras.Variable([0.0, 0.0])])
        return getattr(optimizer, "last_gradient_norm", NOT_OFFERED)

    return measure


BY_VALUE, BY_NORM, BY_ALL = (
    {"clipvalue": 1.0},
    {"clipnorm": 1.0},
    {"global_clipnorm": 1.0},
)
HALF_MORE = [{name: 1.5} for name in ("clipvalue", "clipnorm", "global_clipnorm")]
STEADY = [1.0] * 29 + [100.0]


def cases():
    """The cases, with what is right in each by the formulas."""
    rows = []

    def add(name, measure, expected, measured_with):
        expected = expected if isinstance(expected, tuple) else (expected,)
        rows.append(Case(name, measure, expected, measured_with))

    add(
        "dense gradient on one device",
        "length of the step, gradient [30, 40], clipnorm 1",
        1.0,
        length([30.0, 40.0], BY_NORM),
    )
    for clipping in (BY_VALUE, BY_NORM, BY_ALL):
        (name,) = clipping
        add(
            f"two replicas, {name}",
            f"weight 1 after a step, gradients 100 and -1, {name} 1",
            0.0,
            two_replicas(clipping),
        )
    add(
        "two replicas, adaptive",
        "weight 1 after a step, gradients 100 and -1, adaptive 0.5",
        0.5,
        two_replicas({"adaptive": 0.5}),
    )
    for clipping in HALF_MORE:
        (name,) = clipping
        add(
            f"embedding with a repeated id, {name}",
            f"distance a row moves, four gradients of -1, {name} 1.5",
            1.5,
            repeated_id(clipping),
        )
    add(
        "embedding with a repeated id, jit_compile",
        "distance a row moves, four gradients of -1, clipnorm 1.5",
        1.5,
        repeated_id(HALF_MORE[1], jit_compile=True),
    )
    for kind in ("SGD", "Adam", "RMSprop"):
        add(
            f"embedding with a repeated id, {kind}",
            "largest distance from the dense result after 8 steps, clipvalue 1e6",
            0.0,
            distance_from_dense(kind, {"clipvalue": 1e6}),
        )
    for clipping in ({"clipvalue": 0.0}, {"clipnorm": -1.0}, {"global_clipnorm": 0.0}):
        ((name, bound),) = clipping.items()
        add(
            f"{name} of {bound:g}",
            "length of the step, gradient [30, 40]",
            REFUSED,
            length([30.0, 40.0], clipping),
        )
    add(
        "value and norm together",
        "first component of the step, gradient [3, 4], clipvalue 2, clipnorm 1",
        2 / np.sqrt(8),
        move([3.0, 4.0], {"clipvalue": 2.0, "clipnorm": 1.0}, of=0),
    )
    for clipping in (BY_NORM, BY_ALL):
        (name,) = clipping
        add(
            f"1e20 in a gradient, {name}",
            f"length of the step, gradient [1e20, 0], {name} 1",
            1.0,
            length([1e20, 0.0], clipping),
        )
    add(
        "float16 gradient",
        "length of the step, gradient [30000, 40000], clipnorm 1",
        1.0,
        length([30000.0, 40000.0], BY_NORM, dtype="float16"),
    )
    for strange in (np.nan, np.inf):
        add(
            f"{strange} in a gradient, step to be skipped",
            f"weight 1 after gradients {strange} and 50, clipnorm 1",
            0.0,
            end([strange, 50.0], BY_NORM, skip=True),
        )
    add(
        "nan on one of two replicas, step to be skipped",
        "weight 1 after a step, gradients 100 and nan, clipnorm 1",
        1.0,
        two_replicas(BY_NORM, (100.0, np.nan), skip=True),
    )
    add(
        "nan on the second replica, under LossScaleOptimizer",
        "weight 1 after a step, gradients 100 and nan, clipnorm 1",
        1.0,
        two_replicas(BY_NORM, (100.0, np.nan), scaled=True, skip=True),
    )
    add(
        "1e20 in a gradient, step to be skipped",
        "Adam's second moment after gradient 1e20",
        0.0,
        second_moment(1e20, skip=True),
    )
    column, channel = np.s_[..., -1], np.s_[..., -1, -1]
    for layer, shape, last_unit in (
        (lambda: keras.layers.Dense(4), (9,), column),
        (lambda: keras.layers.Conv2D(4, 3), (5, 5, 4), column),
        (lambda: keras.layers.DepthwiseConv2D(3), (5, 5, 4), channel),
    ):
        add(
            f"adaptive, {type(layer()).__name__}",
            "distance each weight of 1 moves in its unit, gradient 10, adaptive 0.01",
            0.01,  # a hundredth of the weights, whatever their number
            unit(layer, shape, last_unit, {"adaptive": 0.01}),
        )
    add(
        "percentile",
        "weight 1 after gradients of 1, the 30th of 100, percentile 90",
        1.0 - 29 - np.percentile(STEADY, 90),
        end(STEADY, {"percentile": 90.0}),
    )
    add(
        "gradient accumulation",
        "weight 1 after 2 batches of gradient 50, clipnorm 1",
        (0.0, REFUSED),
        end([50.0, 50.0], BY_NORM, gradient_accumulation_steps=2),
    )
    add(
        "gradient accumulation on two replicas",
        "weight 1 after 2 batches, gradients 100 and -1, clipnorm 1",
        (0.0, REFUSED),
        two_replicas(BY_NORM, gradient_accumulation_steps=2),
    )
    add(
        "LossScaleOptimizer around it",
        "distance a weight moves, gradient 50 scaled by 1024, clipnorm 1",
        1.0,
        loss_scale(BY_NORM),
    )
    add(
        "average of the weights",
        "average of a weight from 1, two gradients of 50, clipnorm 1, momentum 0.5",
        0.5 * 0.0 + 0.5 * -1.0,
        average(BY_NORM),
    )
    add(
        "rate set, and weight decay",
        "weight 1 after gradient 50, clipnorm 1, rate set to 0.5, decay 0.1",
        1.0 - 0.5 * 0.1 - 0.5,
        rate_and_decay(BY_NORM),
    )
    add(
        "norm read while training",
        "norm of the gradient [30, 40]",
        50.0,
        norm_read(BY_NORM),
    )
    return rows


def outcome(case, make):
    """What a maker's optimizer did: a number, or a word."""
    try:
        return case.measured_with(make)
    except ValueError as error:
        return NOT_OFFERED if "not recognized" in str(error) else REFUSED
    except (RuntimeError, tf.errors.OpError):
        return FAILS


def holds(case, found):
    if isinstance(found, str):
        return found in case.expected
    numbers = [each for each in case.expected if not isinstance(each, str)]
    return any(np.isclose(found, each, rtol=1e-3, atol=1e-6) for each in numbers)


def row_of(case):
    found = {"keras": outcome(case, keras_own), "ours": outcome(case, ours)}
    return {
        "case": case.name,
        "measure": case.measure,
        "expected": " or ".join(map(shown, case.expected)),
        **{who: shown(value) for who, value in found.items()},
        **{f"{who}_holds": holds(case, value) for who, value in found.items()},
    }


def shown(value):
    if isinstance(value, str):
        return value
    return f"{0.0 if abs(value) < 1e-6 else value:.4g}"


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    options = parser.parse_args(arguments)
    # Before TensorFlow's first operation.
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 2,
    )
    facts = surroundings()
    facts = {key: facts[key] for key in ("versions", "machine", "commit")}
    table = pd.DataFrame([{**row_of(case), **facts} for case in cases()])
    with whole(options.results) as new:
        table.to_csv(new, index=False)
    print(table.iloc[:, :7].to_string())


if __name__ == "__main__":
    main()
