"""MC Dropout for a trained Keras model: the mean and spread of many dropped-out passes.

Use it to rank inputs by how unsure the model is (mutual information finds inputs unlike
the training data), on any model that was trained with dropout. Do not count on better
calibration: averaging makes predictions less confident, which helps an over-confident
network and harms another.

Only dropout is switched on. The book's `model(x, training=True)` also moves the
statistics of BatchNormalization and turns augmentation on, and a `Dropout(...)(x,
training=True)` built into a Functional model is silent in `predict` on Keras 3.15.

What precedes the first dropout is computed once for all samples. Dense layers behind it
are computed only for the units that a sample keeps, which on a CPU takes a tenth of the
time that a loop of calls takes; other layers are compiled with the masks as arguments.
Masks are drawn here: the model's seeds stay where they are, and the numbers do not
depend on the batch size.

This file is longer than most because one file has to hold the predictor for every kind
of dropout and model, its fast way, the result, and the book's two layers.

```python
import keras
import numpy as np

from recipes.mc_dropout import MCDropoutPredictor

model = keras.Sequential(
    [keras.Input((4,)), keras.layers.Dropout(0.2), keras.layers.Dense(3, "softmax")]
)
x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
prediction = MCDropoutPredictor(model, num_samples=20, seed=42).predict(x, verbose=0)
print(prediction.to_frame(["cat", "dog", "owl"]))
```

Reference: Gal, Ghahramani, "Dropout as a Bayesian Approximation: Representing Model
Uncertainty in Deep Learning", 2016, https://arxiv.org/abs/1506.02142
Revised: 0.2.0
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import inspect
import itertools
import json
import math
import numbers
import os
import pathlib
import statistics
import threading
import typing
import warnings
from collections.abc import Callable

import keras
import numpy as np

# The masks are put into the model's own layers, so two threads must not do it at once.
_ONE_AT_A_TIME = threading.RLock()

# Masks are drawn for at least this many inputs at a time, from one generator.
_INPUTS_PER_STREAM = 32

# From so many inputs to a mask it is faster to leave out units than to multiply masks.
_INPUTS_PER_THINNING = 64

# From so many samples on a forward pass is worth its compilation.
_SAMPLES_PER_COMPILATION = 20


@keras.saving.register_keras_serializable(package="recipes")
class MCDropout(keras.layers.Dropout):
    """Dropout that also drops in `predict` and `evaluate`, as in the book.

    For a model that shall always sample, in place of `keras.layers.Dropout`; arguments
    are those of `keras.layers.Dropout`. To sample from a model that has plain dropout,
    leave it as it is and use `MCDropoutPredictor`.

    Example:

    ```python
    import keras
    import numpy as np

    from recipes.mc_dropout import MCDropout

    model = keras.Sequential([keras.Input((4,)), MCDropout(0.5)])
    x = np.ones((2, 4))
    samples = [model.predict(x, verbose=0) for _ in range(10)]
    print(np.std(samples, axis=0))
    ```
    """

    def call(self, inputs, training=None):
        """Drop, whatever `training` says."""
        return super().call(inputs, training=True)


@keras.saving.register_keras_serializable(package="recipes")
class MCAlphaDropout(keras.layers.AlphaDropout):
    """AlphaDropout that also drops in `predict` and `evaluate`; for SELU networks.

    Arguments are those of `keras.layers.AlphaDropout`.
    """

    def call(self, inputs, training=None):
        """Drop, whatever `training` says."""
        return super().call(inputs, training=True)


class MCDropoutPredictor:
    """Predict many times with dropout on, everything else as in `predict`.

    For input x and sample t the model computes p_t(x) with masks m_t drawn anew, and

        mean = 1/T sum_t p_t(x),    std = sqrt(1/T sum_t (p_t(x) - mean)^2),
        predictive entropy = H(mean) = expected entropy + mutual information.

    Masks depend on (`seed`, layer, sample, input) alone: the same seed gives the same
    numbers (to float rounding) whatever the batch size, and the first 50 of 100 samples
    are the 50 of a run with 50. The model's weights, statistics, seeds, flags and
    compiled functions stay as they are, also when a run is interrupted.

    Sampled are Dropout, SpatialDropout, GaussianDropout, AlphaDropout and subclasses,
    `dropout` and `recurrent_dropout` of recurrent layers (one mask for all time steps)
    and that of the four attention layers, in Sequential, Functional, nested and
    subclassed models. A dropout that the model's own code calls with `training=False`
    stays off, with a warning. Refused by name, because they would stay silent or draw
    by another law: stateful layers, cells and layers that draw for themselves, dropout
    that only `if training:` reaches, and masks of a fixed batch size.

    How it is computed does not change the numbers, but for rounding. Behind the first
    dropout of a Sequential or Functional model, dense layers, activations and
    normalizations run in NumPy on all cores, for kept units only; on a CPU, in float32,
    and if their first sample is the model's own. Elsewhere (convolutions, recurrence,
    residual connections after a dropout, GPUs) each sample is a forward pass, from 20
    samples on compiled. The predictor keeps what it has compiled: weights may change
    between two calls, but after a change of the layers make a new one. Models with
    layers that are not Keras's own, or with `run_eagerly`, run uncompiled.

    Example:

    ```python
    import keras
    import numpy as np

    from recipes.mc_dropout import MCDropoutPredictor

    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
    )
    prediction = MCDropoutPredictor(model, seed=1).predict(np.ones((3, 4)), verbose=0)
    print(prediction.mean, prediction.std)
    ```

    Args:
        model: A built Keras model with at least one dropout of rate above 0. Outputs
            whose last axis holds probabilities also get entropies and votes; for those
            of a sigmoid, stack 1 - p and p of the kept samples.
        num_samples: T, at least 1. 100 as in the book: the mean is then known to a
            tenth of the spread.
        inputs_per_mask: How many neighbouring inputs share the masks of a sample, from
            1 (a mask for each input) to `None` (one for all). The samples of each
            input have the same law in any case, so its mean, deviation and entropies
            are as exact. Sharing ties inputs to each other: differences between them
            scatter less, and scores over a data set more. 500 is nearly as fast as
            one for all, and ties only small parts of a large data set.
        from_logits: Whether the outputs are logits, for several outputs also one bool
            for each. Before averaging they pass a softmax, a single one the sigmoid.
        seed: Integer from 0; `None` takes a new one, kept in the attribute `seed`.

    Raises:
        ValueError: An argument out of range, or a model that is not built, has no
            active dropout, or has dropout of a refused kind; layers are named.

    Reference: Gal, Ghahramani, 2016, https://arxiv.org/abs/1506.02142
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        num_samples: int = 100,
        inputs_per_mask: int | None = 500,
        from_logits=False,
        seed: int | None = None,
    ):
        if not isinstance(model, keras.Model) or not model.built:
            raise ValueError(
                "`model` must be a built keras.Model: call it on data, or give it an "
                f"Input. Received: model={model!r}"
            )
        flags = keras.tree.flatten(from_logits)
        if not flags or not all(isinstance(flag, bool) for flag in flags):
            raise ValueError(
                f"`from_logits` must be a bool, or one for each output. "
                f"Received: from_logits={from_logits!r}"
            )
        self.model = model
        self.num_samples = _integer("num_samples", num_samples, minimum=1)
        self.inputs_per_mask = inputs_per_mask
        if inputs_per_mask is not None:
            self.inputs_per_mask = _integer("inputs_per_mask", inputs_per_mask, 1)
        self.from_logits = from_logits
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        self.seed = _integer("seed", seed, minimum=0)
        self._switched = _SwitchedOn(model, _dropping_layers(model))

    def predict(
        self,
        x,
        *,
        batch_size: int | None = None,
        keep_samples: bool = False,
        min_samples: int | None = None,
        verbose: int | str = "auto",
    ):
        """Sample the predictions of `x`.

        Args:
            x: Array `(inputs, ...)`, or a tuple, list or dict of such arrays for a
                model with several inputs; or a `tf.data.Dataset`, `PyDataset` or other
                iterable of batches, each `x`, `(x, y)` or `(x, y, sample_weight)`. It
                is read once, to its end.
            batch_size: Inputs given to the model at a time; changes memory and speed,
                not results. `None` takes at most 512.
            keep_samples: Whether to keep all samples, `(samples, inputs, ...)` in
                float32. Without them memory does not grow with `num_samples`.
            min_samples: If given, an input is sampled no further once its class has
                settled: after `min_samples`, twice as many and so on, the 99 %
                interval of the likeliest class's mean lies above those of all others.
                `num_samples` of the result then counts the samples of each input, and
                kept samples beyond are NaN. 20 is a good beginning. It saves time where
                only the class is wanted: entropies of few samples are less exact.
            verbose: 0 for silence, 1 or `"auto"` for a progress bar, 2 for one line.

        Returns:
            An `MCPrediction`; for a model with several outputs, the structure of its
            outputs with one in each place.

        Raises:
            ValueError: No inputs, inputs of different lengths, outputs that are not
                finite, `min_samples` for outputs that are not probabilities, or
                dropout that a forward pass does not reach.
        """
        if batch_size is None:
            # A whole block, if that is a fair size: then a batch has one mask.
            block = self.inputs_per_mask or 0
            batch_size = block if _INPUTS_PER_THINNING <= block <= 512 else 512
        batch_size = _integer("batch_size", batch_size, minimum=1)
        if not isinstance(keep_samples, bool):
            raise ValueError(
                "`keep_samples` must be a bool. "
                f"Received: keep_samples={keep_samples!r}"
            )
        if not isinstance(verbose, (str, int)) or verbose not in ("auto", 0, 1, 2):
            raise ValueError(
                f"`verbose` must be 0, 1, 2 or 'auto'. Received: verbose={verbose!r}"
            )
        looks = [self.num_samples]
        if min_samples is not None:
            looks = self._looks(_integer("min_samples", min_samples, 2))
        total = None
        if _is_array_like(x):
            x = keras.tree.map_structure(_to_numpy, x)
            total = _num_inputs(x) * self.num_samples
        verbose = 1 if verbose == "auto" else int(verbose)
        progress = _Progress(total, verbose)
        with _ONE_AT_A_TIME, self._switched as switched:
            batches = _runs(
                _source_parts(x), lambda row: row - row % batch_size + batch_size
            )
            first = next(batches, None)
            if first is None:
                raise ValueError(
                    "`x` must hold at least one input. Received: an empty data set"
                )
            batches = itertools.chain([first], batches)
            structure = switched.discover(_few(first[1], 2))
            flags = self._from_logits_of(keras.tree.flatten(structure))
            steps = self._chain_steps(switched, first[1])
            if steps is None:
                sources, run = self._passes(switched, batches), map
            else:
                sources, run = self._chains(switched, batches, steps), _in_threads
            work = functools.partial(
                _sampled, looks=looks, flags=flags, keep=keep_samples, progress=progress
            )
            parts = list(run(work, sources))
        settings = self._settings(switched)
        settings |= {"min_samples": min_samples, "thinned": steps is not None}
        predictions = []
        for of_one_output in zip(*parts, strict=True):
            joined = _joined(of_one_output)
            if min_samples is None:
                joined["num_samples"] = self.num_samples
            predictions.append(MCPrediction(**joined, settings=settings))
        return keras.tree.pack_sequence_as(structure, predictions)

    def _settings(self, switched):
        """What gave the numbers of a prediction."""
        return {
            "seed": self.seed,
            "inputs_per_mask": self.inputs_per_mask,
            "from_logits": self.from_logits,
            # Pairs, for nested models may hold layers of equal names.
            "rates": [
                [layer.name, rate]
                for layer in switched.reached
                for rate in _rates(layer)
            ],
            "left_off": switched.left_off,
            "keras": keras.version(),
            "backend": keras.backend.backend(),
            "numpy": np.__version__,
        }

    def _looks(self, min_samples):
        """The numbers of samples after which inputs may be left alone."""
        if min_samples > self.num_samples:
            raise ValueError(
                f"`min_samples` must be at most num_samples={self.num_samples}. "
                f"Received: min_samples={min_samples}"
            )
        looks = [min_samples]
        while looks[-1] < self.num_samples:
            looks.append(min(2 * looks[-1], self.num_samples))
        return looks

    def _from_logits_of(self, outputs):
        flags = keras.tree.flatten(self.from_logits)
        if len(flags) not in (1, len(outputs)):
            raise ValueError(
                f"`from_logits` must be one bool, or one for each of {len(outputs)} "
                f"outputs. Received: from_logits={self.from_logits!r}"
            )
        return flags * (len(outputs) // len(flags))

    def _noise(self):
        return _Noise(self.seed, self.inputs_per_mask)

    def _passes(self, switched, batches):
        for first, x in batches:
            rows = np.arange(first, first + _num_inputs(x))
            is_long = self.num_samples >= _SAMPLES_PER_COMPILATION
            yield _Passes(switched, x, rows, self._noise(), is_compiled=is_long)

    def _chains(self, switched, batches, steps):
        features = (
            keras.ops.convert_to_numpy(switched.features(x)) for _, x in batches
        )
        for first, values in _runs(features, self._end_of_piece):
            rows = np.arange(first, first + len(values))
            yield _Chain(steps, values, rows, self._noise())

    def _end_of_piece(self, row):
        """Where the inputs end that one thread computes with this one: at one mask.

        512 are enough for fast products, and leave the values in a core's cache.
        """
        if (self.inputs_per_mask or 0) < _INPUTS_PER_THINNING:
            return row - row % 512 + 512
        place = row % self.inputs_per_mask
        return row - place + min(self.inputs_per_mask, place - place % 512 + 512)

    def _chain_steps(self, switched, x):
        """The steps of the model behind its first dropout, where they are proven right.

        That is on a CPU, which NumPy computes on, and where they give the model's own
        outputs for some first inputs.
        """
        steps = _chain_steps(switched.plan, switched.layers)
        if steps is None:
            return None
        x = _few(x, 8)
        rows = np.arange(_num_inputs(x))
        features = switched.features(x)
        if "cpu" not in str(features.device).lower():
            return None
        features = keras.ops.convert_to_numpy(features)
        (right,) = _Passes(switched, x, rows, self._noise()).samples(1)
        (ours,) = _Chain(steps, features, rows, self._noise()).samples(1)
        with np.errstate(invalid="ignore"):
            tolerance = 1e-4 * np.abs(right).max()
            is_right = bool((np.abs(ours - right) <= tolerance).all())
        return steps if is_right else None


@dataclasses.dataclass(frozen=True)
class MCPrediction:
    """What `MCDropoutPredictor.predict` returns.

    Shapes: `mean` and `std` are `(inputs, ...)` as the model's output; the four
    measures are `(inputs,)` (or one per position, for dense maps), in nats.

    Attributes:
        mean: Mean of the samples, float64.
        std: Deviation of the samples (divided by T, so 0 for one sample).
        num_samples: T, or with `min_samples` that of each input.
        samples: All samples, `(samples, inputs, ...)` in float32, or `None`.
        predictive_entropy: Entropy of the mean, H(mean): the whole uncertainty. `None`,
            as are the other measures, if the outputs are not probabilities.
        expected_entropy: Mean of the samples' entropies: what is noise in the data.
        mutual_information: Their difference, from 0: what the model does not know.
        variation_ratio: Share of the samples that do not vote for the class with most
            votes.
        settings: Seed, rates of the layers, versions and options that gave these
            numbers; `thinned` tells whether dropped units were left out.
    """

    mean: np.ndarray
    std: np.ndarray
    num_samples: int | np.ndarray
    samples: np.ndarray | None
    predictive_entropy: np.ndarray | None
    expected_entropy: np.ndarray | None
    mutual_information: np.ndarray | None
    variation_ratio: np.ndarray | None
    settings: dict

    def to_frame(self, class_names=None):
        """Return a DataFrame with a row for each input.

        Args:
            class_names: Names of the output's last axis, for the columns.

        Returns:
            A DataFrame: for probabilities the predicted class, its mean probability and
            deviation, the four measures and the mean of every class; otherwise mean and
            deviation of every output.

        Raises:
            ValueError: Outputs of more than one axis, or not one name for each class.
        """
        import pandas

        if self.mean.ndim != 2:
            raise ValueError(
                "to_frame needs outputs (inputs, classes). "
                f"Received: shape {self.mean.shape}"
            )
        num_outputs = self.mean.shape[1]
        names = range(num_outputs) if class_names is None else class_names
        if np.ndim(names) != 1 or len(names) != num_outputs:
            raise ValueError(
                f"`class_names` must name {num_outputs} outputs. "
                f"Received: class_names={names}"
            )
        columns = {f"mean {name}": self.mean[:, i] for i, name in enumerate(names)}
        if self.predictive_entropy is None:
            for i, name in enumerate(names):
                columns[f"std {name}"] = self.std[:, i]
            return pandas.DataFrame(columns)
        winner = self.mean.argmax(axis=1)
        row = np.arange(len(winner))
        counts = (
            {} if np.isscalar(self.num_samples) else {"num_samples": self.num_samples}
        )
        return pandas.DataFrame(
            {
                "predicted": [names[i] for i in winner],
                "probability": self.mean[row, winner],
                "std": self.std[row, winner],
                "predictive_entropy": self.predictive_entropy,
                "expected_entropy": self.expected_entropy,
                "mutual_information": self.mutual_information,
                "variation_ratio": self.variation_ratio,
                **counts,
                **columns,
            }
        )

    def save(self, path):
        """Write everything to one npz file, whole or not at all, without pickle.

        Raises:
            ValueError: `path` is not that of a file in an existing folder.
            OSError: The file cannot be written, with the reason. What was there before
                is still there.
        """
        path = _path(path)
        arrays = {k: v for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        facts = {k: v for k, v in vars(self).items() if isinstance(v, (int, dict))}
        if not path.name or not path.parent.is_dir():
            raise ValueError(
                f"`path` must name a file in an existing folder. Received: path={path}"
            )
        new = path.with_name(f".{path.name}.{os.getpid()}.new")
        try:
            with open(new, "wb") as file:
                np.savez_compressed(file, facts=json.dumps(facts), **arrays)
            os.replace(new, path)
        except OSError as error:
            problem = f"The prediction cannot be written to {path}: {error}"
            raise OSError(problem) from error
        finally:
            with contextlib.suppress(OSError):  # where none could be made either
                new.unlink()

    @classmethod
    def load(cls, path):
        """Read what `save` wrote.

        Raises:
            ValueError: The file is not one that `save` wrote; names it.
        """
        try:
            with open(_path(path), "rb") as file:  # NumPy leaves a damaged one open
                with np.load(file, allow_pickle=False) as archive:
                    arrays = dict(archive)
            facts = json.loads(str(arrays.pop("facts")))
            missing = {"mean", "std", "num_samples", "settings"} - {*arrays, *facts}
            if missing:
                raise ValueError(f"it has no {', '.join(sorted(missing))}")
            absent = dict.fromkeys(f.name for f in dataclasses.fields(cls))
            return cls(**{**absent, **arrays, **facts})
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ValueError(
                "`path` must name a file that MCPrediction.save wrote. "
                f"Received: path={path} ({error})"
            ) from error


def _path(path):
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(f"`path` must be a path. Received: path={path!r}")
    return pathlib.Path(path)


def _integer(name, value, minimum):
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise ValueError(f"`{name}` must be an integer. Received: {name}={value!r}")
    if value < minimum:
        raise ValueError(
            f"`{name}` must be at least {minimum}. Received: {name}={value}"
        )
    return int(value)


# --- the inputs


def _source_parts(x):
    """Yield the inputs of a data source in the parts it gives, as NumPy arrays."""
    if isinstance(x, keras.utils.PyDataset):
        parts = (_inputs_of(x[index]) for index in range(len(x)))
    elif _is_array_like(x):
        parts = [x]
    else:
        parts = map(_inputs_of, x)
    for part in parts:
        yield keras.tree.map_structure(_to_numpy, part)


def _runs(parts, end_of):
    """Join and cut parts anew: yield (number of the first input, inputs).

    `end_of` gives the number of the input at which the run of another ends. Inputs of
    different shapes, as sequences of different lengths, are never joined.
    """

    def pieces():
        first = 0
        for part in parts:
            done, num_inputs = 0, _num_inputs(part)
            while done < num_inputs:
                rows = slice(done, min(num_inputs, done + end_of(first) - first))
                yield first, keras.tree.map_structure(lambda a, r=rows: a[r], part)
                first += rows.stop - done
                done = rows.stop

    def run(piece):
        first, inputs = piece
        return end_of(first), [a.shape[1:] for a in keras.tree.flatten(inputs)]

    for _, group in itertools.groupby(pieces(), run):
        firsts, inputs = zip(*group, strict=True)
        joined = keras.tree.map_structure(
            lambda *arrays: np.concatenate(arrays), *inputs
        )
        yield firsts[0], joined


def _is_array_like(x):
    return (
        isinstance(x, (tuple, list, dict))
        or keras.ops.is_tensor(x)
        or hasattr(x, "__array__")
        or isinstance(x, type)  # of which an iterable is made, but which is none
        or not hasattr(x, "__iter__")
    )


def _few(x, num_inputs):
    return keras.tree.map_structure(lambda array: array[:num_inputs], x)


def _inputs_of(part):
    return keras.utils.unpack_x_y_sample_weight(part)[0]


def _to_numpy(array):
    if keras.ops.is_tensor(array):
        return keras.ops.convert_to_numpy(array)
    array = np.asarray(array)
    if array.dtype == object:
        raise ValueError(f"`x` must hold arrays of numbers. Received: {array!r}")
    return array


def _num_inputs(x):
    lengths = {len(array) if array.ndim else 0 for array in keras.tree.flatten(x)}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            "`x` must hold at least one input, and as many in each of its arrays. "
            f"Received: lengths {sorted(lengths)}"
        )
    return lengths.pop()


# --- which layers drop


def _dropping_layers(model):
    """The layers of `model` with active dropout, each once, in the tree's order."""
    layers = list(dict.fromkeys(model._flatten_layers()))
    dropping = [layer for layer in layers if _rates(layer)]
    known = {id(cell) for layer in dropping for cell in _cells(layer)}
    known |= {id(layer) for layer in dropping}
    for layer in layers:
        reason = None
        own_rates = [
            getattr(layer, name, 0) for name in ("dropout", "recurrent_dropout")
        ]
        if getattr(layer, "stateful", False):
            reason = "is stateful, so that its outputs depend on the batches before"
        elif any(not type(c).__module__.startswith("keras.") for c in _cells(layer)):
            if _rates(layer):
                reason = "has dropout in a cell that is not one of Keras's own"
        elif any(isinstance(rate, numbers.Real) and rate > 0 for rate in own_rates):
            if not any(id(inner) in known for inner in layer._flatten_layers()):
                reason = "draws its dropout without a dropout layer"
        if reason:
            raise ValueError(
                f"Layer {layer.name!r} ({type(layer).__name__}) cannot be sampled: it "
                f"{reason}."
            )
    if not dropping:
        names = [f"{layer.name} ({type(layer).__name__})" for layer in layers]
        raise ValueError(
            "`model` has no dropout with a rate above 0: all samples would be equal. "
            f"Layers looked at: {', '.join(names)}"
        )
    for layer in dropping:
        batch_axis = (getattr(layer, "noise_shape", None) or (None,))[0]
        if batch_axis not in (None, 1):
            raise ValueError(
                f"Layer {layer.name!r} has a noise_shape with a fixed batch size, so "
                f"its masks belong to batches. Received: {layer.noise_shape}"
            )
    return dropping


def _is_dropout(layer):
    kinds = (
        keras.layers.Dropout,
        keras.layers.AlphaDropout,
        keras.layers.GaussianDropout,
    )
    return isinstance(layer, kinds)


def _rates(layer):
    """The rates above 0 with which a layer itself drops."""
    if _is_dropout(layer):
        rates = [layer.rate]
    elif isinstance(layer, keras.layers.Attention):  # AdditiveAttention is one
        rates = [layer.dropout]
    else:
        rates = [getattr(c, k, 0) for c in _cells(layer) for k in _CELL_MASKS]
    return [float(rate) for rate in rates if rate > 0]


_CELL_MASKS = ("dropout", "recurrent_dropout")


def _cells(layer):
    """The cells of a recurrent layer that can drop by themselves."""
    if not isinstance(layer, keras.layers.RNN):
        return []
    cells = getattr(layer.cell, "cells", [layer.cell])
    return [cell for cell in cells if hasattr(cell, "get_dropout_mask")]


# --- the masks


class _Noise:
    """Random numbers for some inputs of a data set, sample after sample.

    The masks of input i come from block i // inputs_per_mask, and these from streams of
    their own: what an input gets depends neither on the inputs computed with it nor
    on how many samples follow.
    """

    def __init__(self, seed, inputs_per_mask):
        self.seed = seed
        self.inputs_per_mask = inputs_per_mask
        self.streams = {}

    def of(self, layer, key, shape, rows, count=1):
        """Factor and offset (or None) of a layer's dropout in the next samples.

        They are `(count, rows or 1, *shape)`, where `shape` is that of one input.
        """
        if isinstance(layer, keras.layers.GaussianDropout):
            # Multiplied by N(1, p / (1 - p)).
            deviation = np.float32(np.sqrt(layer.rate / (1 - layer.rate)))
            return 1 + deviation * self._draw(key, shape, rows, count, _Normals), None
        kept = self.kept(key, _mask_shape(layer, shape), rows, layer.rate, count)
        if isinstance(layer, keras.layers.AlphaDropout):
            # Klambauer et al. 2017: a (x kept + s (1 - kept)) + b keeps mean 0 and
            # variance 1, with s the lower limit of SELU.
            s = -1.6732632423543772 * 1.0507009873554805
            a = ((1 - layer.rate) * (1 + layer.rate * s**2)) ** -0.5
            b = -a * s * layer.rate
            return kept * np.float32(a), np.float32(a * s) * ~kept + np.float32(b)
        return kept * _keep_scale(layer.rate), None

    def kept(self, key, shape, rows, rate, count=1):
        """What is not dropped, `(count, rows or 1, *shape)`."""
        return self._draw(key, shape, rows, count, _Bits) >= round(rate * 2**32)

    def is_shared(self, rows):
        """Whether all of these inputs have one mask."""
        return self.inputs_per_mask is None or (
            rows[0] // self.inputs_per_mask == rows[-1] // self.inputs_per_mask
        )

    def _draw(self, key, shape, rows, count, kind):
        if self.inputs_per_mask is None:
            return self._next(key, 0, (1, *shape), count, kind)
        per_stream = -(-_INPUTS_PER_STREAM // self.inputs_per_mask)
        blocks = rows // self.inputs_per_mask
        streams = blocks // per_stream
        if blocks[0] == blocks[-1]:
            drawn = self._next(key, streams[0], (per_stream, *shape), count, kind)
            place = blocks[0] % per_stream
            return drawn[:, place : place + 1]
        streams, own = np.unique(streams, return_inverse=True)
        drawn = [self._next(key, s, (per_stream, *shape), count, kind) for s in streams]
        drawn = np.concatenate(drawn, axis=1)
        places = own * per_stream + blocks % per_stream
        if np.array_equal(places, np.arange(drawn.shape[1])):
            return drawn
        return drawn[:, places]

    def _next(self, key, stream, shape, count, kind):
        name = (key, int(stream))
        if name not in self.streams:
            self.streams[name] = kind([self.seed, *key, int(stream)])
        return self.streams[name].next(count, shape)


class _Bits:
    """Integers from 0 to 2**32 - 1.

    32 bits whatever the model's type: Keras 3.15 draws in bfloat16 under that policy,
    and drops .1016 where .1 was asked for.
    """

    def __init__(self, seed):
        self.generator = np.random.PCG64(seed)

    def next(self, count, shape):
        size = math.prod(shape)
        words = -(-size // 2)  # of 64 bits; none serves two samples
        bits = self.generator.random_raw(count * words).view(np.uint32)
        return bits.reshape(count, -1)[:, :size].reshape(count, *shape)


class _Normals:
    """Standard normal numbers."""

    def __init__(self, seed):
        self.generator = np.random.Generator(np.random.PCG64(seed))

    def next(self, count, shape):
        return self.generator.standard_normal((count, *shape), dtype=np.float32)


def _keep_scale(rate):
    return np.float32(0 if rate == 1 else 1 / (1 - rate))


def _mask_shape(layer, shape):
    """The shape of one input's mask: with ones where a mask is shared."""
    spatial = (
        keras.layers.SpatialDropout1D,
        keras.layers.SpatialDropout2D,
        keras.layers.SpatialDropout3D,
    )
    if isinstance(layer, spatial):
        if getattr(layer, "data_format", None) == "channels_first":
            return (shape[0], *(1 for _ in shape[1:]))
        return (*(1 for _ in shape[:-1]), shape[-1])
    if layer.noise_shape is None:
        return shape
    pairs = zip(layer.noise_shape[1:], shape, strict=True)
    return tuple(size if fixed is None else fixed for fixed, size in pairs)


# --- the model with nothing but its dropout switched on


class _SwitchedOn:
    """While entered, forward passes of a model drop as `noise` says, and nothing else.

    Layers get a `call` of their own, as an attribute that hides their class's method:
    written past Keras's tracking of attributes and taken away without a trace. States
    that a pass would change (seeds, statistics) change in a scope that is thrown away.
    """

    def __init__(self, model, layers):
        self.model = model
        self.layers = layers
        graph = _graph(model)
        self.plan = graph and _Plan(graph, (), {id(layer) for layer in layers})
        self.plans = self.plan.all() if self.plan else []
        self.compiled = None
        # Code that is not Keras's own may hold functions compiled by its user, which
        # would not meet the masks. What cannot be traced has `run_eagerly`.
        if not model.run_eagerly and all(map(self._is_keras, model._flatten_layers())):
            self.compiled = _compile(self._pass_with)

    def _is_keras(self, layer):
        return layer in self.layers or (
            type(layer).__module__.startswith("keras.")
            and not isinstance(layer, keras.layers.Lambda)
        )

    def __enter__(self):
        self.x = self.noise = self.given = self.next_plan = None
        self.only_fixed = False
        self.training = [[] for _ in self.layers]
        with contextlib.ExitStack() as stack:
            if keras.backend.backend() == "tensorflow" and not self.compiled:
                stack.enter_context(_eager_tensorflow_functions())
            for number, layer in enumerate(self.layers):
                if _is_dropout(layer):
                    call = self._dropout_call(number, layer)
                elif isinstance(layer, keras.layers.Attention):
                    call = self._attention_call(number, layer)
                else:
                    call = self._recurrent_call(number, layer)
                stack.enter_context(_attribute(layer, "call", call))
            for graph in {plan.graph for plan in self.plans}:
                run = self._graph_run(graph)
                stack.enter_context(_attribute(graph, "_run_through_graph", run))
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *exception):
        self.stack.close()
        self._begin(None, None, None)

    def discover(self, x):
        """Learn which dropout the model's own code switches off; return its outputs.

        Keras hands `training=True` down to every layer but those whose caller says
        otherwise.
        """
        self.discovering = True
        output = self._pass(x, training=True)
        self.discovering = False
        pairs = list(zip(self.layers, self.training, strict=True))
        self.reached = [layer for layer, calls in pairs if any(calls)]
        self.left_off = [layer.name for layer, calls in pairs if not all(calls)]
        if not any(self.training):
            names = ", ".join(layer.name for layer in self.layers)
            raise ValueError(
                f"The forward pass of {self.model.name!r} reached none of its dropout "
                f"layers: {names}"
            )
        if not self.reached:
            raise ValueError(
                f"The code of {self.model.name!r} calls all of its dropout layers with "
                f"training=False: {', '.join(self.left_off)}"
            )
        if self.left_off:
            warnings.warn(
                f"The code of {self.model.name!r} calls dropout layers with "
                f"training=False, so they stay off: {', '.join(self.left_off)}",
                stacklevel=3,
            )
        self.forward(x, None, None)
        for layer, calls, now in zip(
            self.layers, self.training, self.num_calls, strict=True
        ):
            if now < len(calls):
                raise ValueError(
                    f"Layer {layer.name!r} is called only where the model's own code "
                    "sees training=True, and so cannot be sampled alone."
                )
        return output

    def forward(self, x, rows, noise, is_compiled=False):
        """The outputs with the dropout that `noise` draws, or None for no dropout.

        `rows` are the numbers of the inputs in the whole data set. The first pass for
        them is not compiled: from it are known the values that no dropout precedes,
        and which random numbers are asked for.
        """
        is_first = x is not self.x or noise is not self.noise
        if is_first:
            self._begin(x, rows, noise)
        if is_first or not (is_compiled and self.compiled):
            self.draws = []
            return self._pass(x, training=False)
        return self.compiled(
            [variable.value for variable in self.model.variables],
            [plan.values for plan in self.plans],
            [draw() for draw in self.draws],
            keras.tree.map_structure(keras.ops.convert_to_tensor, x),
        )

    def _begin(self, x, rows, noise):
        self.x, self.rows, self.noise = x, rows, noise
        self.draws = []
        for plan in self.plans:
            plan.values = None

    def _pass_with(self, variables, values, draws, x):
        """A pass as a function of everything that changes from one to the next."""
        kept = [plan.values for plan in self.plans]
        for plan, of_plan in zip(self.plans, values, strict=True):
            plan.values = of_plan
        self.given = iter(draws)
        try:
            variables = zip(self.model.variables, variables, strict=True)
            return self._pass(x, training=False, variables=variables)
        finally:
            self.given = None
            for plan, of_plan in zip(self.plans, kept, strict=True):
                plan.values = of_plan

    def features(self, x):
        """What the first node behind which the plan is a chain is given."""
        self.only_fixed = True
        features = self.forward(x, None, None)
        self.only_fixed = False
        return features

    def _pass(self, x, training, variables=()):
        self.num_calls = [0] * len(self.layers)
        self.next_plan = None if training else self.plan
        with keras.StatelessScope(state_mapping=variables):
            return self.model(x, training=training)

    def _visit(self, number, training, inputs):
        """The key of this call's random numbers, or None if nothing is dropped."""
        call = self.num_calls[number]
        self.num_calls[number] += 1
        if self.discovering:
            self.training[number].append(bool(training))
            return None
        if self.given is None:
            _refuse_tracing(inputs, self.layers[number])
        flags = self.training[number] or [True]
        if self.noise is None or not flags[min(call, len(flags) - 1)]:
            return None
        return number, call

    def _per_input(self, layer, shape):
        """Split the batch axis of `shape`: (pieces of one input, shape of a piece)."""
        pieces, rest = divmod(shape[0], len(self.rows))
        if rest or not pieces:
            raise ValueError(
                f"Layer {layer.name!r} gets {shape[0]} rows where the batch has "
                f"{len(self.rows)}: masks cannot be told to belong to inputs."
            )
        return pieces, tuple(shape[1:])

    def _factor_and_offset(self, layer, key, tensor):
        def draw(key, shape):
            return self.noise.of(layer, key, shape, self.rows)

        return self._drawn(layer, key, tensor, draw)

    def _kept(self, layer, key, tensor, rate):
        """Keras's own way to drop, as a factor: 0, or 1 / (1 - rate)."""

        def draw(key, shape):
            return [self.noise.kept(key, shape, self.rows, rate) * _keep_scale(rate)]

        return self._drawn(layer, key, tensor, draw)[0]

    def _drawn(self, layer, key, tensor, draw):
        """What `draw` gives for every piece of an input, as tensors.

        In a compiled pass they are its arguments, drawn in the order of the first.
        """
        pieces, shape = self._per_input(layer, tensor.shape)

        def masks():
            drawn = [draw((*key, piece), shape) for piece in range(pieces)]
            return [
                None if parts[0] is None else self._of_all_pieces(parts)
                for parts in zip(*drawn, strict=True)
            ]

        if self.given is None:
            self.draws.append(masks)
            arrays = masks()
        else:
            arrays = next(self.given)
        return [a if a is None else keras.ops.cast(a, tensor.dtype) for a in arrays]

    def _of_all_pieces(self, parts):
        """Masks `(1, rows or 1, ...)` of an input's pieces as those of all rows."""
        mask = parts[0][0]
        if len(parts) > 1:
            shape = (len(self.rows), *mask.shape[1:])
            parts = [np.broadcast_to(part[0], shape) for part in parts]
            mask = np.stack(parts, axis=1).reshape(-1, *mask.shape[1:])
        return mask

    def _dropout_call(self, number, layer):
        def call(inputs, *_, training=True, **__):
            key = self._visit(number, training, inputs)
            if key is None:
                return inputs
            factor, offset = self._factor_and_offset(layer, key, inputs)
            return inputs * factor if offset is None else inputs * factor + offset

        return call

    def _attention_call(self, number, layer):
        original, apply_scores = layer.call, layer._apply_scores

        def call(inputs, *args, training=True, **kwargs):
            key = self._visit(number, training, keras.tree.flatten(inputs)[0])

            def apply(scores, value, scores_mask=None, training=False):
                result, weights = apply_scores(scores, value, scores_mask=scores_mask)
                if key is None:
                    return result, weights
                weights = weights * self._kept(layer, key, weights, layer.dropout)
                return keras.ops.matmul(weights, value), weights

            with _attribute(layer, "_apply_scores", apply):
                return original(inputs, *args, **kwargs)

        return call

    def _recurrent_call(self, number, layer):
        original = layer.call

        def call(inputs, *args, training=True, **kwargs):
            key = self._visit(number, training, keras.tree.flatten(inputs)[0])
            with contextlib.ExitStack() as stack:
                for place, cell in enumerate(_cells(layer)):
                    for kind, name in enumerate(_CELL_MASKS):
                        mask = self._cell_mask(cell, name, key, 2 * place + kind)
                        stack.enter_context(_attribute(cell, f"get_{name}_mask", mask))
                return original(inputs, *args, training=key is not None, **kwargs)

        return call

    def _cell_mask(self, cell, name, key, place):
        """A cell's method that returns its mask: one for all time steps."""
        drawn = []
        rate = getattr(cell, name)

        def mask(step_input):
            if rate == 0:
                return None
            count = getattr(cell, "dropout_mask_count", None)
            for gate in range(len(drawn), count or 1):
                if key is None:
                    drawn.append(keras.ops.ones_like(step_input))
                else:
                    own_key = (*key, place, gate)
                    drawn.append(self._kept(cell, own_key, step_input, rate))
            return drawn[0] if count is None else drawn

        return mask

    def _graph_run(self, graph):
        original = graph._run_through_graph

        def run(inputs, operation_fn=lambda operation: operation, **kwargs):
            plan, self.next_plan = self.next_plan, None
            if plan is None or plan.graph is not graph:
                return original(inputs, operation_fn=operation_fn, **kwargs)
            return plan.run(inputs, operation_fn, self)

        return run


@contextlib.contextmanager
def _attribute(owner, name, value):
    """Give an object an attribute for a while, past Keras's own bookkeeping."""
    before = owner.__dict__.get(name)
    owner.__dict__[name] = value
    try:
        yield
    finally:
        if before is None:
            del owner.__dict__[name]
        else:
            owner.__dict__[name] = before


def _refuse_tracing(inputs, layer):
    if keras.backend.backend() == "jax":
        import jax

        traced = isinstance(inputs, jax.core.Tracer)
    else:
        traced = not hasattr(inputs, "numpy")
    if traced:
        raise ValueError(
            f"Layer {layer.name!r} runs inside a function that is traced, where one "
            "mask would be used for ever. Sample without compiling that function."
        )


def _compile(function):
    """The function compiled by the backend, or None where Keras does not do so."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function, autograph=False)
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    return None


@contextlib.contextmanager
def _eager_tensorflow_functions():
    """Run a `tf.function` in the user's model eagerly, so that it meets the masks."""
    import tensorflow as tf

    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


# --- what no dropout precedes is computed once


def _graph(operation):
    """The Functional graph that an operation is, or None where none can be seen."""
    graph = getattr(operation, "_functional", operation)  # a Sequential has one inside
    is_keras = all(
        getattr(type(o).call, "__module__", "").startswith("keras.")
        for o in (operation, graph)
        if hasattr(type(o), "call")
    )
    has_graph = all(
        hasattr(graph, n) for n in ("_nodes_by_depth", "_run_through_graph")
    )
    return graph if is_keras and has_graph else None


class _Plan:
    """The nodes of a graph, sorted into those before any dropout and the others."""

    def __init__(self, graph, random_inputs, dropping):
        self.graph = graph
        self.fixed = []
        self.random = []
        self.inner = {}  # node of a model in the model: its own plan
        random = set(random_inputs)
        for depth in sorted(graph._nodes_by_depth, reverse=True):
            for node in graph._nodes_by_depth[depth]:
                if node.is_input:
                    continue
                drops = _contains(node.operation, dropping)
                sources = [id(tensor) for tensor in node.input_tensors]
                if not drops and random.isdisjoint(sources):
                    self.fixed.append(node)
                    continue
                self.random.append(node)
                random |= {id(tensor) for tensor in node.outputs}
                inner = _graph(node.operation) if drops else None
                if inner is not None and len(inner.inputs) == len(sources):
                    pairs = zip(inner.inputs, sources, strict=True)
                    known = [id(tensor) for tensor, i in pairs if i in random]
                    self.inner[node] = _Plan(inner, known, dropping)
        read = [tensor for node in self.random for tensor in node.input_tensors]
        self.kept = {id(t) for t in (*read, *graph.outputs)} - random
        self.values = None  # of the tensors kept, for the inputs at hand

    def all(self):
        """This plan and those of the models in the model."""
        return [self, *(one for plan in self.inner.values() for one in plan.all())]

    def chain(self):
        """The random nodes in order, if each reads the one before it alone, or None.

        All nodes lead to the output: a path, if each reads and gives one tensor.
        """
        chain = []
        for node in self.random:
            call = node.arguments
            options = [v for k, v in call.kwargs.items() if k != "training"]
            alone = len(node.input_tensors) == len(call.args) == len(node.outputs) == 1
            if not alone or options != [None] * len(options):
                return None
            nodes = self.inner[node].chain() if node in self.inner else [node]
            if nodes is None:
                return None
            chain += nodes
        return chain if len(self.graph.outputs) == 1 else None

    def run(self, inputs, operation_fn, owner):
        """As Keras runs the graph, but the fixed nodes only once for these inputs."""
        given = zip(self.graph.inputs, keras.tree.flatten(inputs), strict=True)
        values = {id(tensor): value for tensor, value in given}
        if self.values is None:
            everything = dict(values)
            self._execute(self.fixed, everything, operation_fn, owner)
            self.values = {i: v for i, v in everything.items() if i in self.kept}
        values = {**self.values, **values}
        if owner.only_fixed:
            first = self.random[0]
            if first not in self.inner:
                return values[id(first.input_tensors[0])]
            self._execute([first], values, operation_fn, owner)
            return values[id(first.outputs[0])]
        self._execute(self.random, values, operation_fn, owner)
        outputs = [values[id(tensor)] for tensor in self.graph.outputs]
        return keras.tree.pack_sequence_as(self.graph.output, outputs)

    def _execute(self, nodes, values, operation_fn, owner):
        for node in nodes:
            args, kwargs = node.arguments.fill_in(values)
            owner.next_plan = self.inner.get(node)
            outputs = operation_fn(node.operation)(*args, **kwargs)
            outputs = zip(node.outputs, keras.tree.flatten(outputs), strict=True)
            values.update((id(tensor), value) for tensor, value in outputs)


def _contains(operation, layers):
    inside = getattr(operation, "_flatten_layers", lambda: [])()
    return any(id(layer) in layers for layer in inside)


# --- dense layers behind the first dropout, in NumPy


class _Drop(typing.NamedTuple):
    layer: keras.layers.Layer
    key: tuple
    shape: tuple  # of one input


class _Dense(typing.NamedTuple):
    kernel: np.ndarray
    bias: np.ndarray  # (units, 1)


class _Each(typing.NamedTuple):
    """A function of each unit by itself: of the values and the numbers of the units."""

    function: Callable


class _Whole(typing.NamedTuple):
    """A function of all units of an input together."""

    function: Callable


class _Mask(typing.NamedTuple):
    """A dropout's masks: `factor` and `offset` (or None) are `(units, inputs or 1)`."""

    factor: np.ndarray
    offset: np.ndarray | None
    kept: np.ndarray | None  # the units that are not dropped, where inputs share a mask


class _Chain:
    """Dropout, dense layers and activations, computed only for what is kept.

    Where inputs share a mask, a dropped unit is neither computed nor read: its column
    is left out of the kernel before it and its row out of the kernel behind it. That
    holds where a dense layer reads it; before anything else the full width is put
    together again. Values are `(units, inputs)`, so that whole rows are left out.
    """

    def __init__(self, steps, x, rows, noise):
        # A softmax at the end is taken of many samples together.
        self.ends_in_softmax = steps[-1] is _SOFTMAX
        self.steps = steps[:-1] if self.ends_in_softmax else steps
        self.rows = rows
        self.noise = noise
        self.x = np.ascontiguousarray(x.reshape(len(x), -1).T)
        self.most = 1  # samples at a time
        self.scaled_kernel = self.product = None
        if noise.is_shared(rows):
            self.most = 32
            if isinstance(steps[1], _Dense):
                self.scaled_kernel = steps[1].kernel

    def narrow(self, active):
        """Go on with these of the inputs alone."""
        self.x = self.x[:, active]
        self.rows = self.rows[active]
        if self.product is not None:
            self.product = self.product[:, active]

    def samples(self, count):
        """The next samples of every output, here one `(count, inputs, units)`."""
        masks = [
            self._masks(step, count) if isinstance(step, _Drop) else [None] * count
            for step in self.steps
        ]
        values = np.stack([self._sample(m) for m in zip(*masks, strict=True)])
        values = _softmax(values) if self.ends_in_softmax else values
        return [values.swapaxes(1, 2)]

    def _sample(self, masks):
        # The values of the units `present` (None: all), to which `mask` is still due.
        values, present, mask = self.x, None, None
        for place, step in enumerate(self.steps):
            if isinstance(step, _Dense):
                wanted = self._wanted(place, masks)
                values = self._dense(step, values, present, mask, wanted)
                present, mask = wanted, None
                continue
            if mask is not None:
                values, present, mask = _full_width(values, present, mask), None, None
            if isinstance(step, _Each):
                values = step.function(values, present)
            elif isinstance(step, _Whole):
                values = step.function(values)
            elif masks[place].kept is not None:
                mask = masks[place]
            else:
                values = np.multiply(values, masks[place].factor, order="C")
                if masks[place].offset is not None:
                    values += masks[place].offset
        if mask is not None:
            values = _full_width(values, present, mask)
        return values

    def _masks(self, drop, count):
        factors, offsets = (
            [None] * count
            if part is None
            else np.broadcast_to(part, (*part.shape[:2], *drop.shape))
            .reshape(*part.shape[:2], -1)
            .swapaxes(1, 2)
            for part in self.noise.of(
                drop.layer, drop.key, drop.shape, self.rows, count
            )
        )
        is_shared = factors.shape[2] == 1
        return [
            _Mask(factor, offset, factor[:, 0].nonzero()[0] if is_shared else None)
            for factor, offset in zip(factors, offsets, strict=True)
        ]

    def _wanted(self, place, masks):
        """The units that the dropout behind a dense layer keeps, where it sees them."""
        for step, mask in zip(self.steps[place + 1 :], masks[place + 1 :], strict=True):
            if not isinstance(step, _Each):
                return mask and mask.kept
        return None

    def _dense(self, step, values, present, mask, wanted):
        kernel, bias = step
        if mask is not None and mask.offset is not None:
            bias = bias + kernel.T @ mask.offset
        if mask is None:
            values = _matmul(_columns(kernel, wanted).T, values)
        elif values is self.x and self._is_mostly_kept(mask):
            # factor (x W - x[dropped] W[dropped]) with factor x W known: shorter.
            dropped = (mask.factor[:, 0] == 0).nonzero()[0]
            part = _columns(self.scaled_kernel[dropped], wanted).T
            part = _matmul(part, values.take(dropped, axis=0))
            values = np.subtract(_rows(self.product, wanted), part, out=part)
        else:
            if present is None:
                present = mask.kept
                values = values.take(present, axis=0)
            kernel = _columns(kernel[present] * mask.factor[present], wanted)
            values = _matmul(kernel.T, values)
        values += _rows(bias, wanted)
        return values

    def _is_mostly_kept(self, mask):
        """Whether more units are kept than dropped, and all that are by one factor."""
        if self.scaled_kernel is None or 2 * len(mask.kept) <= len(mask.factor):
            return False
        if self.product is None:
            factor = mask.factor[mask.kept]
            if (factor != factor[0]).any():
                self.scaled_kernel = None
                return False
            self.scaled_kernel = self.scaled_kernel * factor[0]
            self.product = _matmul(self.scaled_kernel.T, self.x)
        return True


def _rows(matrix, wanted):
    return matrix if wanted is None else matrix.take(wanted, axis=0)


def _columns(matrix, wanted):
    return matrix if wanted is None else matrix[:, wanted]


def _full_width(values, present, mask):
    """All units after dropout, `(units, inputs)`."""
    if present is not None:
        narrow = values
        values = np.zeros((len(mask.factor), narrow.shape[1]), narrow.dtype)
        values[present] = narrow
    values = values * mask.factor
    return values if mask.offset is None else values + mask.offset


def _matmul(left, right):
    """`left @ right` on one core, for the others compute other inputs meanwhile.

    NumPy's OpenBLAS takes all cores from about 64**3 multiplications on, and several
    threads that do so wait for each other: so the product is taken in small parts.
    """
    # With OpenBLAS 0.3.31, in NumPy 2.4, some products of two transposed matrices are
    # wrong when several threads take them. `left` is transposed; `right` must not be.
    right = np.ascontiguousarray(right)
    num_columns = right.shape[1]
    width = 64**3 // max(left.size, 1)
    if width >= num_columns:
        return np.matmul(left, right)
    if width < 8:
        half = max(left.shape) // 2
        if len(left) >= left.shape[1]:
            return np.concatenate(
                [_matmul(left[:half], right), _matmul(left[half:], right)]
            )
        result = _matmul(left[:, :half], right[:half])
        result += _matmul(left[:, half:], right[half:])
        return result
    width = -(-num_columns // -(-num_columns // width))  # parts of nearly equal width
    whole = num_columns - num_columns % width
    result = np.empty((len(left), num_columns), right.dtype)

    def parts(matrix):
        return matrix[:, :whole].reshape(len(matrix), -1, width).swapaxes(0, 1)

    np.matmul(left, parts(right), out=parts(result))
    if whole < num_columns:
        np.matmul(left, right[:, whole:], out=result[:, whole:])
    return result


def _chain_steps(plan, layers):
    """The nodes behind the first dropout as steps of a `_Chain`, or None."""
    nodes = plan and plan.chain()
    if not nodes:
        return None
    steps = []
    numbers = {id(layer): number for number, layer in enumerate(layers)}
    calls = dict.fromkeys(numbers, 0)
    for node in nodes:
        operation = node.operation
        number = numbers.get(id(operation))
        shape = node.input_tensors[0].shape[1:]
        if getattr(operation, "compute_dtype", "float32") != "float32":
            return None
        if number is not None:
            key = (number, calls[id(operation)], 0)
            calls[id(operation)] += 1
            steps.append(_Drop(operation, key, shape))
        elif type(operation) in _SILENT or _is_dropout(operation):
            continue
        elif len(node.outputs[0].shape) != 2:
            return None
        elif type(operation) is keras.layers.Flatten:
            # Units keep their order, so the dropout before may as well come after.
            if operation.data_format != "channels_last":
                return None
        elif len(shape) != 1:
            return None
        else:
            new = _steps_of(operation)
            if new is None:
                return None
            steps += new
    # A dropout of images that nobody flattens would change their shape.
    is_flat = len(nodes[-1].outputs[0].shape) == 2
    return steps if is_flat and len(steps) > 1 else None


_SILENT = (
    keras.layers.ActivityRegularization,
    keras.layers.GaussianNoise,
    keras.layers.Identity,
)


def _steps_of(operation):
    """The steps of one operation on `(inputs, units)`; None if it is not Keras's."""
    kind = type(operation)
    if kind is keras.layers.Dense and operation.quantization_mode is None:
        kernel = keras.ops.convert_to_numpy(operation.kernel)
        bias = np.zeros(kernel.shape[1], kernel.dtype)
        if operation.use_bias:
            bias = keras.ops.convert_to_numpy(operation.bias)
        return [_Dense(kernel, bias[:, np.newaxis]), *_activation(operation.activation)]
    if kind is keras.layers.Activation:
        return _activation(operation.activation)
    if kind is keras.layers.BatchNormalization and operation.axis in (-1, 1):
        return [_normalization(operation)]
    if kind.__module__.startswith("keras."):
        return [_Whole(_in_keras(operation))]
    return None


def _activation(function):
    known = {
        keras.activations.relu: lambda values: np.maximum(values, 0, out=values),
        keras.activations.tanh: np.tanh,
        keras.activations.sigmoid: lambda values: 0.5 * np.tanh(0.5 * values) + 0.5,
        keras.activations.elu: _elu,
        keras.activations.selu: lambda values: 1.05070098 * _elu(values, 1.67326324),
    }
    if function is keras.activations.linear:
        return []
    if function is keras.activations.softmax:
        return [_SOFTMAX]
    if function in known:
        return [_Each(lambda values, _: known[function](values))]
    return [_Whole(_in_keras(function))]


def _elu(values, alpha=1.0):
    return np.where(values > 0, values, alpha * np.expm1(np.minimum(values, 0)))


def _softmax(values):
    values = np.exp(values - values.max(axis=-2, keepdims=True))
    values /= values.sum(axis=-2, keepdims=True)
    return values


_SOFTMAX = _Whole(_softmax)


def _normalization(layer):
    """Batch normalization in inference: a scale and a shift of each unit."""
    mean, variance = map(
        keras.ops.convert_to_numpy, (layer.moving_mean, layer.moving_variance)
    )
    scale = 1 / np.sqrt(variance + layer.epsilon)
    if layer.scale:
        scale = scale * keras.ops.convert_to_numpy(layer.gamma)
    shift = -mean * scale
    if layer.center:
        shift = shift + keras.ops.convert_to_numpy(layer.beta)
    scale, shift = scale[:, np.newaxis], shift[:, np.newaxis]
    return _Each(lambda values, u: values * _rows(scale, u) + _rows(shift, u))


def _in_keras(operation):
    options = {}
    if isinstance(operation, keras.Layer):
        if "training" in inspect.signature(operation.call).parameters:
            options["training"] = False

    def apply(values):
        rows = keras.ops.convert_to_tensor(np.ascontiguousarray(values.T))
        return np.array(keras.ops.convert_to_numpy(operation(rows, **options)).T)

    return apply


# --- what the samples are computed from, piece by piece


class _Passes:
    """Samples of some inputs by whole forward passes of the model."""

    most = 1

    def __init__(self, switched, x, rows, noise, is_compiled=False):
        self.switched = switched
        self.x = x
        self.rows = rows
        self.noise = noise
        self.is_compiled = is_compiled

    def narrow(self, active):
        """Go on with these of the inputs alone."""
        self.x = keras.tree.map_structure(lambda array: array[active], self.x)
        self.rows = self.rows[active]
        self.is_compiled = False  # each number of inputs would be compiled anew

    def samples(self, count):
        """The next sample of every output, each `(1, inputs, ...)`."""
        outputs = self.switched.forward(self.x, self.rows, self.noise, self.is_compiled)
        outputs = keras.tree.flatten(outputs)
        return [keras.ops.convert_to_numpy(o)[np.newaxis] for o in outputs]


def _in_threads(function, items):
    """Yield the results in order; NumPy and the backends leave Python to the others."""
    if hasattr(os, "sched_getaffinity"):
        num_threads = len(os.sched_getaffinity(0))
    else:
        num_threads = os.cpu_count() or 1
    with concurrent.futures.ThreadPoolExecutor(min(num_threads, 8)) as pool:
        waiting = collections.deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * num_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class _Progress:
    """Keras's progress bar, in samples of inputs, for several threads."""

    def __init__(self, total, verbose):
        self.bar = keras.utils.Progbar(total, verbose=verbose, unit_name="sample")
        self.lock = threading.Lock()

    def add(self, num_samples):
        with self.lock:
            self.bar.add(num_samples)


def _sampled(source, looks, flags, keep, progress):
    """Sample one piece of the inputs to the end: a dict of arrays for every output."""
    num_inputs = len(source.rows)
    moments = [_Moments(num_inputs, looks[-1], keep) for _ in flags]
    z = statistics.NormalDist().inv_cdf(1 - 0.005 / len(looks))
    active = np.arange(num_inputs)
    done = 0
    for look in looks:
        while done < look:
            count = min(source.most, look - done)
            outputs = source.samples(count)
            for output, one, from_logits in zip(outputs, moments, flags, strict=True):
                one.add(active, _finite_probabilities(output, from_logits))
            progress.add(count * len(active))
            done += count
        if look < looks[-1]:
            settled = np.all([one.settled(active, z) for one in moments], axis=0)
            progress.add(settled.sum() * (looks[-1] - look))
            if settled.all():
                break
            if settled.any():
                active = active[~settled]
                source.narrow(~settled)
    return [one.result() for one in moments]


def _joined(parts):
    """The arrays of all pieces as one."""
    names = set.intersection(*(set(part) for part in parts))
    fields = {field.name for field in dataclasses.fields(MCPrediction)} - {"settings"}
    return {
        name: np.concatenate([p[name] for p in parts], axis=int(name == "samples"))
        if name in names
        else None
        for name in fields
    }


# --- what is kept of the samples


class _Moments:
    """Running statistics of one output's samples, in float64 (Chan et al. 1979)."""

    def __init__(self, num_inputs, num_samples, keep_samples):
        self.counts = np.zeros(num_inputs, int)
        self.num_samples = num_samples
        self.keep_samples = keep_samples
        self.samples = None
        self.done = 0
        self.are_probabilities = True

    def add(self, active, new):
        """Take `(samples, active inputs, ...)`."""
        if self.done == 0:
            shape = (len(self.counts), *new.shape[2:])
            self.mean = np.zeros(shape)
            self.squares = np.zeros(shape)
            self.entropies = np.zeros(shape[:-1])
            self.votes = np.zeros(shape)
            if self.keep_samples:
                size = (self.num_samples, *shape)
                self.samples = np.full(size, np.nan, np.float32)
        where = slice(None) if len(active) == len(self.counts) else active
        before, self.done = self.done, self.done + len(new)
        self.counts[where] += len(new)
        if self.keep_samples:
            self.samples[before : self.done, where] = new
        mean = new.mean(axis=0)
        change = mean - self.mean[where]
        self.squares[where] += np.square(new - mean).sum(axis=0)
        self.squares[where] += change**2 * (before * len(new) / self.done)
        self.mean[where] += change * (len(new) / self.done)
        # 1e-2: the rows of a softmax in bfloat16 sum to 1 within a few thousandths.
        self.are_probabilities = bool(
            self.are_probabilities
            and new.ndim > 2
            and new.shape[-1] > 1
            and new.min() >= 0
            and np.abs(new.sum(axis=-1) - 1).max() < 1e-2
        )
        if self.are_probabilities:
            self.entropies[where] += _entropy(new).sum(axis=0)
            winner = new.argmax(axis=-1)[..., np.newaxis]
            self.votes[where] += (winner == np.arange(new.shape[-1])).sum(axis=0)

    def settled(self, active, z):
        """Whether the interval of the likeliest class lies above all others."""
        if not self.are_probabilities:
            raise ValueError(
                "`min_samples` needs outputs that are the probabilities of classes: of "
                "others there is no class to settle."
            )
        mean = self.mean[active]
        deviation = np.sqrt(self.squares[active] / self.done)
        # Rule of three: what has not been seen in n samples may yet have probability
        # 3 / n, and so move the mean of a probability by as much.
        half = z * deviation / np.sqrt(self.done) + 3 / self.done
        winner = mean.argmax(axis=-1)[..., np.newaxis]
        lower = np.take_along_axis(mean - half, winner, -1)[..., 0]
        upper = mean + half
        np.put_along_axis(upper, winner, -np.inf, -1)
        is_settled = lower > upper.max(axis=-1)
        return is_settled.reshape(len(active), -1).all(axis=1)

    def result(self):
        counts = self.counts.reshape(-1, *(1 for _ in self.mean.shape[1:]))
        result = {"mean": self.mean, "std": np.sqrt(self.squares / counts)}
        result["num_samples"] = self.counts
        if self.keep_samples:
            result["samples"] = self.samples
        if self.are_probabilities:
            total = _entropy(self.mean)
            expected = self.entropies / counts[..., 0]
            result["predictive_entropy"] = total
            result["expected_entropy"] = expected
            # From 0 by Jensen's inequality; rounding may leave -1e-17.
            result["mutual_information"] = np.maximum(total - expected, 0)
            result["variation_ratio"] = (1 - self.votes / counts).min(axis=-1)
        return result


def _entropy(probabilities):
    # -sum p ln p, with 0 ln 0 = 0; no term is above 0, and 0 shall not come out -0.
    logs = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
    return np.abs(np.einsum("...c,...c", probabilities, logs))


def _finite_probabilities(output, from_logits):
    """Samples `(samples, inputs, ...)` in float64, logits made probabilities."""
    output = output.astype(np.float64)
    if not np.isfinite(output).all():
        raise ValueError("`model` gave outputs that are not finite (NaN, infinity).")
    if not from_logits:
        return output
    if output.ndim < 3 or output.shape[-1] == 1:
        return 0.5 * np.tanh(0.5 * output) + 0.5  # one logit: the sigmoid
    exponentials = np.exp(output - output.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)
