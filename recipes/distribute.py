"""Train one model on all devices: each batch is shared, the numbers stay those of one.

Keras has what it takes: `tf.distribute.MirroredStrategy` on TensorFlow, and on JAX
`keras.distribution.DataParallel`, also over several hosts. `all_devices` enters the one
that the backend has. The rest of this file is for what goes wrong there in Keras 3.15:
`EvenBatches` for batches whose rows cannot be shared evenly, `prepare_replicas` for
dropout masks that are the same on each replica, and for what fails only in `fit`.

When one device takes longer over a batch than the devices take to exchange a gradient
as large as the weights. Not for a model that does not fit on one device (see
`keras.distribution.ModelParallel`), and not for a small one: the batch stays the same,
so each device has less to do, and pays for the exchange.

This file is longer than most because Keras's own ways are kept, and what goes wrong on
them has to be said.

```python
import keras
import numpy as np

from recipes.distribute import EvenBatches, all_devices, prepare_replicas
from recipes.fashion_mnist import epoch_batches

batches = epoch_batches(np.ones((100, 3)), np.ones((100, 1)), 32, seed=42)
with all_devices() as devices:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("adam", loss="mse")
    prepare_replicas(model)
    model.fit(EvenBatches(batches, devices), epochs=2, shuffle=False, verbose=0)
print(f"trained on {devices.num_devices}")
```

Reference: TensorFlow, "Distributed training with TensorFlow",
https://www.tensorflow.org/guide/distributed_training
Reference: Keras, "Distributed training with JAX and Keras", 2024,
https://keras.io/guides/distribution
Revised: 0.2.0
"""

import contextlib
import functools
import operator
import os
from typing import NamedTuple

import keras
import numpy as np

_HOSTS = "KERAS_DISTRIBUTION_"  # what the environment variables of Keras begin with


class Devices(NamedTuple):
    """How many devices train together, and which part of them is this process's.

    Made by `all_devices`, or by hand for `EvenBatches`.

    Args:
        num_devices: Devices of all processes together, from 1.
        num_processes: Processes, usually one on each host. All have equally many
            devices.
        process_id: Number of this process, from 0.
    """

    num_devices: int
    num_processes: int = 1
    process_id: int = 0


@contextlib.contextmanager
def all_devices():
    """Make what is built and trained inside use every device there is.

    On TensorFlow all GPUs of this machine, or its logical CPUs if it has none; on JAX
    all devices of JAX's kind. Build, compile and fit inside. With one device nothing is
    changed. On a machine with several, `CUDA_VISIBLE_DEVICES=0,1` leaves the others
    out.

    Several hosts need JAX: start the same program on each, with the environment
    variables that Keras reads, `KERAS_DISTRIBUTION_JOB_ADDRESSES` (address and port of
    the first), `KERAS_DISTRIBUTION_NUM_PROCESSES` and `KERAS_DISTRIBUTION_PROCESS_ID`.
    If one of them is set, `keras.distribution.initialize` joins the hosts, so JAX must
    not have computed anything before. Each process gives `fit` its own share of a
    batch, which `EvenBatches` takes.

    Example:

    ```python
    import keras

    from recipes.distribute import all_devices

    with all_devices() as devices:
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    print(devices.num_devices, devices.process_id)
    ```

    Returns:
        A context manager that gives the `Devices`.

    Raises:
        ValueError: The backend is neither TensorFlow nor JAX, or there are several
            hosts and the backend is not JAX.
    """
    backend = keras.backend.backend()
    hosts = [name for name in os.environ if name.startswith(_HOSTS)]
    if backend not in ("tensorflow", "jax"):
        raise ValueError(
            "Several devices need the backend 'tensorflow' or 'jax'. "
            f"Received: backend={backend!r}"
        )
    if backend == "jax":
        if hosts:
            _join_hosts()
        distribution = keras.distribution.DataParallel(auto_shard_dataset=False)
        num_devices = distribution.num_model_replicas
        scope = distribution.scope
        process = distribution.num_processes, distribution.data_shard_id
    else:
        hosts += ["TF_CONFIG"] if "TF_CONFIG" in os.environ else []
        if hosts:
            raise ValueError(
                "Several hosts need the backend 'jax': Keras 3.15 cannot fit under "
                "TensorFlow's MultiWorkerMirroredStrategy. "
                f"Received: {', '.join(hosts)} in the environment"
            )
        strategy = _mirrored_strategy()
        num_devices = strategy.num_replicas_in_sync
        scope, process = strategy.scope, (1, 0)
    with scope() if num_devices > 1 else contextlib.nullcontext():
        yield Devices(num_devices, *process)


class EvenBatches(keras.utils.PyDataset):
    """Batches filled up to a number of rows that the devices can share evenly.

    For the last batch of an epoch, above all. Keras 3.15 weighs the replicas of
    MirroredStrategy alike, whatever number of rows each has got, so the step of an
    uneven batch is another one than on one device, without a word; an uneven first
    batch fails; JAX refuses every uneven one.

    A batch of n rows is filled up to m with its first rows again. The filled rows have
    weight 0, the others

        w = m / n

    so that the mean over m rows is that over the n: the loss, its gradient and the step
    are those of one device. Batches that are even pass with weights of 1.

    The filled rows still are in the means that Keras logs: by m instead of n in the
    epoch's mean loss, and as rows in `metrics`, but not in `weighted_metrics`. They are
    in the statistics of batch normalization, too, and m / n of the work; so choose a
    batch size that the number of devices divides, and only the last one is filled.

    Give it to `fit` with `shuffle=False`. MirroredStrategy reads ahead, also of epochs
    that are not played, so there the order of the batches must not depend on the order
    in which they are asked for; that of `epoch_batches` is kept. Not for validation,
    whose batches should be even by their size, nor for generators in disguise, whose
    k-th batch is another one each time.

    Example:

    ```python
    import numpy as np

    from recipes.distribute import Devices, EvenBatches
    from recipes.fashion_mnist import epoch_batches

    batches = epoch_batches(np.ones((7, 3)), np.ones((7, 1)), 7, seed=42)
    x, y, weights = EvenBatches(batches, Devices(num_devices=2))[0]
    print(weights)  # 8 / 7, seven times, and 0
    ```

    Args:
        batches: A `keras.utils.PyDataset` of `(x, y)` or `(x, y, weights)` with a known
            number of batches, for one device; its arrays may be nested. Without
            weights, of targets with several axes the loss has to take the mean over the
            last, as Keras's do but the sparse ones. Where it has an
            `epoch`, this has it, too, as `callbacks.resumable.Resumable` needs it.
        devices: The `Devices`. With several processes all must have the same `batches`,
            in the same order, of which this process gets its share.

    Returns:
        A `keras.utils.PyDataset` of `(x, y, weights)`.

    Raises:
        ValueError: `batches` is no such `PyDataset`, or the numbers of `devices` do not
            fit together.
    """

    def __init__(self, batches, devices):
        super().__init__()
        if not isinstance(batches, keras.utils.PyDataset):
            raise ValueError(
                "`batches` must be a keras.utils.PyDataset, such as epoch_batches(). "
                f"Received: batches={batches!r}"
            )
        _check_devices(devices)
        self.batches, self.devices = batches, devices
        self._reads_ahead = (
            keras.backend.backend() == "tensorflow" and devices.num_devices > 1
        )
        self._is_looked_at = False

    @property
    def epoch(self):
        """Number of the epoch that is played next."""
        return self.batches.epoch

    @epoch.setter
    def epoch(self, epoch):
        self.batches.epoch = epoch

    @property
    def workers(self):
        """One. Keras asks once for it, at the beginning of `fit`."""
        self._is_looked_at = self._reads_ahead
        return 1

    def __len__(self):
        return self.batches.num_batches

    def on_epoch_begin(self):
        """Begin an epoch; under a strategy `fit` first looks at a batch only."""
        if not self._is_looked_at:
            self.batches.on_epoch_begin()

    def on_epoch_end(self):
        """End an epoch that was played."""
        if not self._is_looked_at:
            if self._reads_ahead and hasattr(self.batches, "epoch"):
                self.epoch += 1
            self.batches.on_epoch_end()
        self._is_looked_at = False

    def __getitem__(self, index):
        batch = self.batches.__getitem__
        if self._reads_ahead:
            batch = getattr(self.batches, "batch_at", batch)
        x, y, *weights = batch(index)
        num_rows = len(keras.tree.flatten(y)[0])
        num_devices, num_processes, process_id = self.devices
        rows = np.arange(-(-num_rows // num_devices) * num_devices)
        weight = np.where(rows < num_rows, len(rows) / num_rows, 0).astype("float32")
        mine = np.split(rows, num_processes)[process_id]
        share = mine % num_rows
        x, y, *weights = keras.tree.map_structure(
            lambda array: np.asarray(array)[share], (x, y, *weights)
        )
        weight = weight[mine]
        if weights:
            weights = keras.tree.map_structure(
                lambda each: each * _with_rank(weight, each.ndim), weights
            )
        else:
            # A loss has a value for each row, or for all but the last axis of y.
            rank = y.ndim - 1 if isinstance(y, np.ndarray) else 1
            weights = [_with_rank(weight, rank)]
        return x, y, *weights


def _with_rank(weight, rank):
    return weight.reshape(-1, *[1] * (rank - 1))


def prepare_replicas(model):
    """Give each replica its own dropout masks, and refuse what replicas cannot do.

    Call it between `compile` and `fit`. Only the replicas of MirroredStrategy need it:
    on JAX, or with one device, it does nothing.

    Under MirroredStrategy each layer's seed has a copy on each replica, and all copies
    count alike: in Keras 3.15 the replicas drop the same units in their parts of the
    batch, which makes the gradient noisier than it is on one device. Here a number of
    the replica's own is added to the seed wherever a layer draws from it, and replica 0
    keeps its masks. The seeds that are saved stay as they are. A layer that keeps its
    `keras.random.SeedGenerator` anywhere but in an attribute of its own is not reached.

    Normalization over the batch is left alone: each replica has the statistics of its
    own part, unless the layer was made with `synchronized=True`.

    Example:

    ```python
    import keras

    from recipes.distribute import prepare_replicas

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dropout(0.5)])
    model.compile("sgd", loss="mse")
    prepare_replicas(model)
    ```

    Args:
        model: A compiled model, built inside `all_devices()` or another scope of
            MirroredStrategy. It is changed in place.

    Raises:
        ValueError: The model is not compiled; or on several replicas it was compiled
            with `gradient_accumulation_steps`, `ema_overwrite_frequency`,
            `steps_per_execution` or `jit_compile`, none of which works there in Keras
            3.15.
    """
    if getattr(model, "optimizer", None) is None:
        raise ValueError("`model` must be compiled. Received: a model that is not")
    if keras.backend.backend() != "tensorflow":
        return
    if model.distribute_strategy.num_replicas_in_sync == 1:
        return
    _refuse_what_replicas_cannot(model)
    for layer in model._flatten_layers():
        for generator in vars(layer).values():
            is_generator = isinstance(generator, keras.random.SeedGenerator)
            if is_generator and "next" not in vars(generator):
                generator.next = functools.partial(_seed_of_this_replica, generator)


def _seed_of_this_replica(generator, ordered=True):
    """Draw the next seed of the class's own method, moved by the replica's number."""
    import tensorflow as tf

    seed = type(generator).next(generator, ordered)
    replica = tf.distribute.get_replica_context()
    if replica is None:  # while the model is built
        return seed
    # Far apart, for layers are often seeded with 1, 2, 3.
    distance = tf.constant([1_640_531_527, 0], seed.dtype)
    return seed + distance * tf.cast(replica.replica_id_in_sync_group, seed.dtype)


def _refuse_what_replicas_cannot(model):
    refused = []
    for optimizer in _nested_optimizers(model.optimizer):
        if (getattr(optimizer, "gradient_accumulation_steps", None) or 1) > 1:
            refused.append("gradient_accumulation_steps: use a larger batch")
        if getattr(optimizer, "ema_overwrite_frequency", None):
            refused.append(
                "ema_overwrite_frequency: use None and keras.callbacks.SwapEMAWeights"
            )
    if model.steps_per_execution > 1:
        refused.append("steps_per_execution: use 1")
    if model.jit_compile:
        refused.append("jit_compile: use False")
    if refused:
        raise ValueError(
            "Keras 3.15 cannot train several replicas of MirroredStrategy with what "
            "`model` was compiled with; the JAX backend can. "
            f"Received: {'; '.join(dict.fromkeys(refused))}"
        )


def _nested_optimizers(optimizer):
    """Yield the optimizer and those inside it."""
    yield optimizer
    inner = [getattr(optimizer, "inner_optimizer", optimizer)]
    for each in [*inner, *getattr(optimizer, "optimizers", [])]:
        if each is not optimizer:
            yield from _nested_optimizers(each)


def _check_devices(devices):
    try:
        num_devices, num_processes, process_id = map(operator.index, devices)
    except (TypeError, ValueError):
        num_devices = num_processes = process_id = 0
    if not (0 <= process_id < num_processes and num_devices >= 1) or (
        num_devices % num_processes
    ):
        raise ValueError(
            "`devices` must be Devices with at least one device, equally many for each "
            "process, and a process_id below num_processes. "
            f"Received: devices={devices!r}"
        )


# Once in a process: a second strategy would mix its messages with those of the first.
@functools.cache
def _mirrored_strategy():
    import tensorflow as tf

    return tf.distribute.MirroredStrategy()


@functools.cache
def _join_hosts():
    keras.distribution.initialize()
