"""MC Dropout for a trained Keras model: the mean and spread of many dropped-out passes.

Use it to rank inputs by how unsure the model is (mutual information finds inputs unlike
the training data), on any model that was trained with dropout. Do not count on better
calibration: averaging makes predictions less confident, which helps an over-confident
network and harms another.

Only dropout is switched on. The book's `model(x, training=True)` also moves the
statistics of BatchNormalization and turns augmentation on, and a `Dropout(...)(x,
training=True)` built into a Functional model is silent in `predict` on Keras 3.15.

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

It runs the layers eagerly with masks of its own, which leaves the model's seeds alone
and makes the numbers independent of the batch size. This file is longer than most: the
predictor, its result and the book's two layers are used together.

Reference: Gal, Ghahramani, "Dropout as a Bayesian Approximation: Representing Model
Uncertainty in Deep Learning", 2016, https://arxiv.org/abs/1506.02142
Revised: 0.1.0
"""

import contextlib
import dataclasses
import json
import numbers
import os
import pathlib
import threading

import keras
import numpy as np

# The masks are put into the model's own layers, so two threads must not do it at once.
_ONE_AT_A_TIME = threading.Lock()

# Masks are drawn for at least this many inputs at a time, from one generator.
_INPUTS_PER_STREAM = 32


@keras.saving.register_keras_serializable(package="recipes")
class MCDropout(keras.layers.Dropout):
    """Dropout that also drops in `predict` and `evaluate`, as in the book.

    For a model that shall always sample, in place of `keras.layers.Dropout`; arguments
    are those of `keras.layers.Dropout`. To sample from a model that has plain dropout,
    leave it as it is and use `MCDropoutPredictor`.
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

    Works on Dropout, SpatialDropout, GaussianDropout, AlphaDropout, their subclasses
    and the dropout inside MultiHeadAttention and GroupQueryAttention, in Sequential,
    Functional, nested and subclassed models. Refused by name, because they would stay
    silent or draw by another law: dropout of recurrent cells and of Attention and
    AdditiveAttention, dropout inside TimeDistributed, stateful layers.

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
        model: A built Keras model with one output and at least one dropout of rate
            above 0. Outputs whose rows are probabilities also get entropies and votes.
        num_samples: T, at least 1. 100 as in the book: the mean is then known to a
            tenth of the spread.
        inputs_per_mask: How many neighbouring inputs share one draw of the masks, from
            1 (a mask per input) to `None` (one for all). The law of each input's
            samples is the same; sharing only ties inputs to each other, so that scores
            over a data set scatter more between seeds. 500 saves nearly all the random
            numbers and keeps that scatter near that of independent masks.
        from_logits: Whether the outputs are logits; they then pass through a softmax
            before averaging.
        seed: Integer from 0; `None` takes a new one, kept in the attribute `seed`.

    Raises:
        ValueError: An argument out of range, a model that is not built, has no active
            dropout, or has dropout of a kind that is refused; layers are named.

    Reference: Gal, Ghahramani, 2016, https://arxiv.org/abs/1506.02142
    """

    def __init__(
        self,
        model,
        *,
        num_samples=100,
        inputs_per_mask=500,
        from_logits=False,
        seed=None,
    ):
        if not isinstance(model, keras.Model) or not model.built:
            raise ValueError(
                "`model` must be a built keras.Model: call it on data, or give it an "
                f"Input. Received: model={model!r}"
            )
        if not isinstance(from_logits, bool):
            raise ValueError(
                f"`from_logits` must be a bool. Received: from_logits={from_logits!r}"
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
        self._dropouts = _active_dropouts(model)

    def predict(self, x, *, batch_size=None, keep_samples=False, verbose="auto"):
        """Sample the predictions of `x`.

        Args:
            x: Array `(inputs, ...)`, or a tuple, list or dict of such arrays for a
                model with several inputs.
            batch_size: Rows computed at a time; changes memory and speed, not results.
                `None` takes 2,048.
            keep_samples: Whether to keep all samples, `(samples, inputs, ...)` in
                float32. Without them memory does not grow with `num_samples`.
            verbose: 0 for silence, 1 or `"auto"` for a progress bar.

        Returns:
            An `MCPrediction`.

        Raises:
            ValueError: No inputs, inputs of different lengths, more than one output,
                outputs that are not finite, or no dropout reached by the forward pass.
        """
        if batch_size is None:
            batch_size = 2048
        batch_size = _integer("batch_size", batch_size, minimum=1)
        if verbose not in ("auto", 0, 1):
            raise ValueError(
                f"`verbose` must be 0, 1 or 'auto'. Received: verbose={verbose!r}"
            )
        x = keras.tree.map_structure(np.asarray, x)
        lengths = {len(array) if array.ndim else 0 for array in keras.tree.flatten(x)}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(
                "`x` must hold at least one input, and as many in each of its arrays. "
                f"Received: lengths {sorted(lengths)}"
            )
        starts = range(0, lengths.pop(), batch_size)
        bar = keras.utils.Progbar(
            len(starts) * self.num_samples, verbose=int(bool(verbose)), unit_name="pass"
        )
        parts = []
        masks = _Masks(self._dropouts, self.seed, self.inputs_per_mask)
        with _ONE_AT_A_TIME, masks:
            for start in starts:
                rows = slice(start, start + batch_size)
                batch = keras.tree.map_structure(
                    lambda array, rows=rows: keras.ops.convert_to_tensor(array[rows]), x
                )
                moments = _Moments(keep_samples)
                for sample in range(self.num_samples):
                    moments.add(self._sample(masks, batch, start, sample))
                    bar.add(1)
                parts.append(moments.result())
        return _join(parts, self)

    def _sample(self, masks, batch, start, sample):
        num_rows = len(keras.tree.flatten(batch)[0])
        masks.begin(sample, np.arange(start, start + num_rows))
        output = self.model(batch, training=False)
        masks.check_reached(self.model)
        if len(keras.tree.flatten(output)) != 1:
            raise ValueError(
                "`model` must have one output. Wrap the one you want: "
                "keras.Model(model.input, model.outputs[0]). Received: "
                f"{len(keras.tree.flatten(output))} outputs"
            )
        output = keras.ops.convert_to_numpy(keras.tree.flatten(output)[0])
        output = output.astype(np.float64)
        if not np.all(np.isfinite(output)):
            raise ValueError(
                "`model` gave outputs that are not finite (NaN, infinity)."
            )
        if self.from_logits:
            if output.shape[-1] < 2:
                raise ValueError(
                    "`from_logits` needs two or more classes on the last axis. "
                    f"Received: outputs of shape {output.shape}"
                )
            exponentials = np.exp(output - output.max(axis=-1, keepdims=True))
            output = exponentials / exponentials.sum(axis=-1, keepdims=True)
        return output


@dataclasses.dataclass(frozen=True)
class MCPrediction:
    """What `MCDropoutPredictor.predict` returns.

    Shapes: `mean` and `std` are `(inputs, ...)` as the model's output; the four
    measures are `(inputs,)` (or one per position, for dense maps), in nats.

    Attributes:
        mean: Mean of the samples, float64.
        std: Deviation of the samples (divided by T, so 0 for one sample).
        num_samples: T.
        samples: All samples, `(samples, inputs, ...)` in float32, or `None`.
        predictive_entropy: Entropy of the mean, H(mean): the whole uncertainty. `None`,
            as are the other measures, if the outputs are not probabilities.
        expected_entropy: Mean of the samples' entropies: what is noise in the data.
        mutual_information: Their difference, from 0: what the model does not know.
        variation_ratio: Share of the samples that do not vote for the class with most
            votes.
        settings: Seed, rates, versions and options that gave these numbers.
    """

    mean: np.ndarray
    std: np.ndarray
    num_samples: int
    samples: np.ndarray | None
    predictive_entropy: np.ndarray | None
    expected_entropy: np.ndarray | None
    mutual_information: np.ndarray | None
    variation_ratio: np.ndarray | None
    settings: dict

    def to_frame(self, class_names=None):
        """One row for each input.

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
        names = list(range(num_outputs) if class_names is None else class_names)
        if len(names) != num_outputs:
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
        return pandas.DataFrame(
            {
                "predicted": [names[i] for i in winner],
                "probability": self.mean[row, winner],
                "std": self.std[row, winner],
                "predictive_entropy": self.predictive_entropy,
                "expected_entropy": self.expected_entropy,
                "mutual_information": self.mutual_information,
                "variation_ratio": self.variation_ratio,
                **columns,
            }
        )

    def save(self, path):
        """Write everything to one npz file, whole or not at all, without pickle."""
        path = pathlib.Path(path)
        arrays = {k: v for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        facts = {"num_samples": self.num_samples, "settings": self.settings}
        if not path.name or not path.parent.is_dir():
            raise ValueError(
                f"`path` must name a file in an existing folder. Received: path={path}"
            )
        new = path.with_name(f".{path.name}.{os.getpid()}.new")
        try:
            with open(new, "wb") as file:
                np.savez_compressed(file, facts=json.dumps(facts), **arrays)
            os.replace(new, path)
        finally:
            new.unlink(missing_ok=True)

    @classmethod
    def load(cls, path):
        """Read what `save` wrote.

        Raises:
            ValueError: The file is not one that `save` wrote; names it.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = dict(archive)
            facts = json.loads(str(arrays.pop("facts")))
            absent = dict.fromkeys(f.name for f in dataclasses.fields(cls))
            return cls(**{**absent, **arrays, **facts})
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ValueError(
                f"{path} is not a saved MCPrediction ({error})."
            ) from error


def _integer(name, value, minimum):
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise ValueError(f"`{name}` must be an integer. Received: {name}={value!r}")
    if value < minimum:
        raise ValueError(
            f"`{name}` must be at least {minimum}. Received: {name}={value}"
        )
    return int(value)


def _active_dropouts(model):
    """The dropout layers of `model`, each once, in the order of its tree."""
    layers = list(dict.fromkeys(model._flatten_layers()))
    for layer in layers:
        if isinstance(layer, keras.layers.TimeDistributed):
            silent = any(_is_active_dropout(inner) for inner in layer._flatten_layers())
            why = "contains a dropout that would see one time step at a time"
        elif isinstance(
            layer, (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)
        ):
            continue
        elif getattr(layer, "stateful", False):
            silent, why = True, "is stateful, so that predicting would change it"
        else:
            rates = [getattr(layer, n, 0) for n in ("dropout", "recurrent_dropout")]
            silent = any(isinstance(rate, numbers.Real) and rate > 0 for rate in rates)
            why = "draws its dropout without a dropout layer"
        if silent:
            raise ValueError(
                f"Layer {layer.name!r} ({type(layer).__name__}) cannot be sampled: it "
                f"{why}."
            )
    dropouts = [layer for layer in layers if _is_active_dropout(layer)]
    if not dropouts:
        names = [f"{layer.name} ({type(layer).__name__})" for layer in layers]
        raise ValueError(
            "`model` has no dropout with a rate above 0: all samples would be equal. "
            f"Layers looked at: {', '.join(names)}"
        )
    for layer in dropouts:
        batch_axis = (getattr(layer, "noise_shape", None) or (None,))[0]
        if batch_axis not in (None, 1):
            raise ValueError(
                f"Layer {layer.name!r} has a noise_shape with a fixed batch size, so "
                f"its masks belong to batches. Received: {layer.noise_shape}"
            )
    return dropouts


def _is_active_dropout(layer):
    kinds = (
        keras.layers.Dropout,
        keras.layers.AlphaDropout,
        keras.layers.GaussianDropout,
    )
    return isinstance(layer, kinds) and layer.rate > 0


class _Masks:
    """While entered, gives the dropout layers of a model masks drawn here."""

    def __init__(self, dropouts, seed, inputs_per_mask):
        self.dropouts = dropouts
        self.seed = seed
        self.inputs_per_mask = inputs_per_mask

    def __enter__(self):
        self.stack = contextlib.ExitStack()
        if keras.backend.backend() == "tensorflow":
            self.stack.enter_context(_eager_tensorflow_functions())
        for number, layer in enumerate(self.dropouts):
            # The instance's attribute hides the class's method; written past Keras's
            # attribute tracking, and taken away without a trace.
            layer.__dict__["call"] = self._make_call(number, layer)
            self.stack.callback(layer.__dict__.pop, "call")
        return self

    def __exit__(self, *exception):
        self.stack.close()

    def begin(self, sample, rows):
        """Start a forward pass: `rows` are the numbers of the inputs in it."""
        self.sample = sample
        self.rows = rows
        self.num_calls = [0] * len(self.dropouts)

    def check_reached(self, model):
        if not any(self.num_calls):
            raise ValueError(
                f"The forward pass of {model.name!r} reached none of its dropout "
                f"layers: {', '.join(layer.name for layer in self.dropouts)}"
            )

    def _make_call(self, number, layer):
        def call(inputs, *_, **__):
            _refuse_tracing(inputs, layer)
            shape = tuple(inputs.shape)
            if shape[0] != len(self.rows):
                raise ValueError(
                    f"Layer {layer.name!r} gets {shape[0]} rows where the batch has "
                    f"{len(self.rows)}: masks cannot be told to belong to inputs."
                )
            key = [self.seed, number, self.num_calls[number], self.sample]
            self.num_calls[number] += 1
            if isinstance(layer, keras.layers.GaussianDropout):
                # Multiplied by N(1, p / (1 - p)).
                deviation = np.sqrt(layer.rate / (1 - layer.rate))
                noise = 1 + deviation * self._draw(key, shape, "standard_normal")
                return inputs * keras.ops.cast(noise, inputs.dtype)
            # Drawn in float32 whatever the compute dtype: Keras 3.15 draws in bfloat16
            # under that policy, and drops .1016 where .1 was asked for.
            noise_shape = _noise_shape(layer, shape)
            kept = self._draw(key, noise_shape, "random") >= layer.rate
            if isinstance(layer, keras.layers.AlphaDropout):
                # Klambauer et al. 2017: a (x kept + s (1 - kept)) + b keeps mean 0 and
                # variance 1, with s the lower limit of SELU.
                s = -1.6732632423543772 * 1.0507009873554805
                a = ((1 - layer.rate) * (1 + layer.rate * s**2)) ** -0.5
                b = -a * s * layer.rate
                factor, offset = a * kept, a * s * ~kept + b
                factor = keras.ops.cast(factor, inputs.dtype)
                return inputs * factor + keras.ops.cast(offset, inputs.dtype)
            factor = kept / np.float32(max(1 - layer.rate, np.finfo("float32").tiny))
            return inputs * keras.ops.cast(factor, inputs.dtype)

        return call

    def _draw(self, key, shape, method):
        """Random numbers `(rows or 1, *shape[1:])`: one draw for each mask's inputs."""
        if self.inputs_per_mask is None:
            return getattr(np.random.default_rng(key), method)(
                (1, *shape[1:]), dtype=np.float32
            )
        # The masks of input i come from stream i // stream_length, which always draws
        # all its masks: what an input gets does not depend on the batch around it.
        masks_per_stream = -(-_INPUTS_PER_STREAM // self.inputs_per_mask)
        blocks = self.rows // self.inputs_per_mask
        streams = range(
            blocks[0] // masks_per_stream, blocks[-1] // masks_per_stream + 1
        )
        draws = [
            getattr(np.random.default_rng([*key, stream]), method)(
                (masks_per_stream, *shape[1:]), dtype=np.float32
            )
            for stream in streams
        ]
        masks = np.concatenate(draws)
        if blocks[0] == blocks[-1]:
            blocks = blocks[:1]
        return masks[blocks - streams[0] * masks_per_stream]


def _noise_shape(layer, shape):
    if isinstance(
        layer,
        (
            keras.layers.SpatialDropout1D,
            keras.layers.SpatialDropout2D,
            keras.layers.SpatialDropout3D,
        ),
    ):
        if getattr(layer, "data_format", None) == "channels_first":
            return (*shape[:2], *(1 for _ in shape[2:]))
        return (shape[0], *(1 for _ in shape[1:-1]), shape[-1])
    if layer.noise_shape is None:
        return shape
    pairs = zip(layer.noise_shape, shape, strict=True)
    return tuple(size if fixed is None else fixed for fixed, size in pairs)


def _refuse_tracing(inputs, layer):
    if keras.backend.backend() == "jax":
        import jax

        if isinstance(inputs, jax.core.Tracer):
            raise ValueError(
                f"Layer {layer.name!r} runs inside a function that JAX traces, where "
                "one mask would be used for ever. Sample the model without jax.jit."
            )


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


class _Moments:
    """Running statistics of one batch's samples, in float64 (Welford 1962)."""

    def __init__(self, keep_samples):
        self.count = 0
        self.samples = [] if keep_samples else None
        self.are_probabilities = True

    def add(self, output):
        self.count += 1
        if self.count == 1:
            self.mean = np.zeros_like(output)
            self.squares = np.zeros_like(output)
            self.entropies = np.zeros(output.shape[:-1])
            self.votes = np.zeros(output.shape)
        change = output - self.mean
        self.mean += change / self.count
        self.squares += change * (output - self.mean)
        if self.samples is not None:
            self.samples.append(output.astype(np.float32))
        # 1e-2: the rows of a softmax in bfloat16 sum to 1 within a few thousandths.
        self.are_probabilities = bool(
            self.are_probabilities
            and output.ndim > 1
            and output.shape[-1] > 1
            and output.min() >= 0
            and np.all(np.abs(output.sum(axis=-1) - 1) < 1e-2)
        )
        if self.are_probabilities:
            self.entropies += _entropy(output)
            winner = output.argmax(axis=-1)[..., np.newaxis]
            np.put_along_axis(
                self.votes, winner, np.take_along_axis(self.votes, winner, -1) + 1, -1
            )

    def result(self):
        result = {"mean": self.mean, "std": np.sqrt(self.squares / self.count)}
        if self.samples is not None:
            result["samples"] = np.stack(self.samples)
        if self.are_probabilities:
            total = _entropy(self.mean)
            expected = self.entropies / self.count
            result["predictive_entropy"] = total
            result["expected_entropy"] = expected
            # From 0 by Jensen's inequality; rounding may leave -1e-17.
            result["mutual_information"] = np.maximum(total - expected, 0)
            result["variation_ratio"] = 1 - self.votes.max(axis=-1) / self.count
        return result


def _entropy(probabilities):
    # -sum p ln p, with 0 ln 0 = 0; no term is above 0, and 0 shall not come out -0.
    logs = np.log(np.where(probabilities > 0, probabilities, 1))
    return np.abs((probabilities * logs).sum(axis=-1))


def _join(parts, predictor):
    names = set.intersection(*(set(part) for part in parts))
    joined = {
        name: np.concatenate([p[name] for p in parts], axis=int(name == "samples"))
        for name in names
    }
    measures = (
        "samples",
        "predictive_entropy",
        "expected_entropy",
        "mutual_information",
        "variation_ratio",
    )
    return MCPrediction(
        **{**dict.fromkeys(measures), **joined},
        num_samples=predictor.num_samples,
        settings={
            "seed": predictor.seed,
            "inputs_per_mask": predictor.inputs_per_mask,
            "from_logits": predictor.from_logits,
            # Pairs, for nested models may hold layers of equal names.
            "rates": [[layer.name, float(layer.rate)] for layer in predictor._dropouts],
            "keras": keras.version(),
            "backend": keras.backend.backend(),
            "numpy": np.__version__,
        },
    )
