"""See what is wrong with a model before the first step of training.

`check_model` looks at a compiled model, its data and one forward and backward pass, and
returns what will keep it from learning: labels the loss cannot mean, an output that
cannot reach its targets, weights that start equal, inputs that are not scaled, signals
that die on the way, a rate out of range. An empty list is no promise that it learns
well. `signal_table` shows that pass layer by layer: use it when a deep network does not
start to learn. `check_gradients` compares the gradient with differences of the loss:
use it for layers, losses and gradients of your own; Keras's are right.

Not for a model in training, whose loss has left chance and whose curves tell more, and
not for the choice of its size. Nothing in the model changes: passes run in a scope that
is thrown away, with dropout off and batch normalization on the statistics of the batch,
because before training the moving ones say nothing.

This file is longer than most because each finding brings its own cause, advice and
change, and all of them read the same pass.

```python
import keras
import numpy as np

from recipes.check_model import check_model, signal_table

rng = np.random.default_rng(42)
x = rng.integers(0, 256, size=(64, 20)).astype("float32")
y = rng.integers(0, 3, size=64)
layers = [keras.layers.Dense(30, activation="relu"), keras.layers.Dense(3)]
model = keras.Sequential([keras.Input((20,)), *layers])
model.compile("adam", loss="sparse_categorical_crossentropy")
for finding in check_model(model, x, y):  # unscaled inputs, no from_logits
    print(finding.symptom, finding.evidence, finding.advice, sep="; ")
print(signal_table(model, x / 255, y))
```

Reference: Glorot, Bengio, "Understanding the Difficulty of Training Deep Feedforward
Neural Networks", 2010, https://proceedings.mlr.press/v9/glorot10a.html
Reference: Klambauer et al., "Self-Normalizing Neural Networks", 2017,
https://arxiv.org/abs/1706.02515
Reference: Ben Braiek, Khomh, "TheDeepChecker: Testing Deep Neural Network Training
Programs", 2022, https://arxiv.org/abs/2204.00694
Reference: Lu, Shin, Su, Karniadakis, "Dying ReLU and Initialization: Theory and
Numerical Examples", 2020, https://arxiv.org/abs/1903.06733
Revised: 0.2.0
"""

import contextlib
import dataclasses
import math
import numbers
import typing
import warnings
from collections.abc import Callable

import keras
import numpy as np

_ROWS_LOOKED_AT = 256


class ModelFinding(typing.NamedTuple):
    """One thing that is wrong with a model or its data before training.

    Attributes:
        symptom: What was seen, in a few words, the same at each occurrence.
        layer: Name of the layer as in `signal_table`; `None` if no layer is to blame.
        evidence: `{what was measured: number}`.
        cause: Why it keeps the model from learning.
        advice: What to do, with the line of code.
        change: The same as data, such as `{"loss": "binary_crossentropy"}`.
    """

    symptom: str
    layer: str | None
    evidence: dict
    cause: str
    advice: str
    change: dict


def check_model(model: keras.Model, x, y) -> list[ModelFinding]:
    """Return what is wrong with a compiled model and its data, before training.

    Takes a few seconds. The data are checked whole; what needs a pass through the
    model takes 256 rows, spread evenly over all. With several outputs or losses, and
    losses of your own, neither labels nor output layer nor initial loss are judged.

    Looked for, with the bound beyond which it is a finding:

    - inputs: NaN or infinite; the same in all rows; at the first kernel a root mean
      square above 10, or nothing above 0.01
    - labels: of another shape than the loss wants; no classes of the output; outside
      the range of the output's activation, or below 0 for a logarithmic error; for
      regression, root mean square above 100
    - output: softmax of one unit or for several labels at once, sigmoid for exclusive
      classes, logits or probabilities that the loss takes for the other, logits that
      cannot be any number
    - weights: a kernel whose units are all equal (not the output's: its units differ by
      their targets; nor zeros that the first step makes unequal, as at the end of a
      residual block), two kernels that are equal
    - SELU: inputs with a mean beyond 0.2 or a deviation outside 0.5 to 1.5, kernels
      whose variance is not within 0.6 to 1.5 of 1 / fan_in, plain dropout
    - signals, if the above is in order: hidden layers with 50% of saturated entries, or
      70% of dead units on 16 rows or more, which is laid to their width where layers so
      narrow are born dead in 5% of networks; error at the first kernel below a
      thousandth of that at the last, or above a thousand times it; Dense layers that
      for want of activations are together a single one
    - initial loss: above 3 times that of chance (for squared errors 10 times), which is
      ln(classes) for a crossentropy, and else the loss of a constant prediction
    - learning rate: where it is highest, outside what its optimizer is used with, which
      is 1e-6 to 0.05 for Adam and its kin and 1e-5 to 1 for SGD

    Example:

    ```python
    import keras
    import numpy as np

    from recipes.check_model import check_model

    x = np.random.default_rng(0).normal(size=(32, 4))
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, "relu")])
    model.compile("sgd", loss="mse")
    (finding,) = check_model(model, x, x[:, :1])
    print(finding.change)  # {'activation': 'linear'}
    ```

    Args:
        model: Built, compiled model whose weights are still the initial ones.
        x: Inputs, array `(rows, ...)`, or a list or dict of them.
        y: Targets, array `(rows, ...)`, or a list or dict of them.

    Returns:
        A list of `ModelFinding`, the likeliest root first; empty if nothing is wrong.
        Where inputs or labels cannot be used, what depends on them is not judged.

    Raises:
        ValueError: The model is not built or not compiled, or the data are no arrays
            with the same number of rows.
    """
    _check_ready(model)
    x, y = _arrays(x, y)
    num_rows = len(keras.tree.flatten(x)[0])
    rows = np.unique(np.linspace(0, num_rows - 1, _ROWS_LOOKED_AT).astype(int))
    x_rows = keras.tree.map_structure(lambda a: _as_tensor(a[rows]), x)
    _, outputs, calls = _forward(model, x_rows)
    kind, from_logits, loss = _loss_of(model)
    if not (keras.ops.is_tensor(outputs) and isinstance(y, np.ndarray)):
        kind = None

    findings = _data_findings(x) or _entry_findings(calls)
    if kind:
        output = _Output(calls, outputs, kind, from_logits, loss)
        findings += _label_findings(y, output) or _output_findings(output)
    usable, part_ways = not findings, set()
    if usable:
        y_rows = keras.tree.map_structure(lambda a: _as_tensor(a[rows]), y)
        part_ways = _parting_kernels(model, x_rows, y_rows, calls)
    findings += _weight_findings(calls, part_ways)
    if usable:
        findings += _selu_findings(calls)
    if not findings:
        signals = _signals(model, x_rows, y_rows)
        findings += _signal_findings(signals) or _depth_findings(calls)
    if usable and kind:
        findings += _initial_loss_findings(y[rows], outputs, kind, loss)
    return findings + _rate_findings(model.optimizer)


def signal_table(model: keras.Model, x, y):
    """Return a DataFrame with the signals and gradients of each layer on one batch.

    A row per call of a layer, in the order of the calls: a shared layer has several,
    from the second on with "(call 2)" behind its name; layers in nested models are
    named "outer/inner"; layers inside a layer of one's own have none. A layer with
    several outputs is shown with its first, one without numbers as output not at all.

    The error of a layer is the gradient of the loss (with its penalties) by what the
    layer hands to its activation, or by its output where it has none. For a chain of
    layers with kernels W, activations f and pre-activations z it is

        error_l = f'(z_l) * W_(l+1)^T error_(l+1).

    So on its way down its norm is multiplied, layer by layer, by two factors, the root
    mean squares over rows and units of: `weight_factor`, the norm of the weights behind
    one z; and `activation_factor`, f'(z). Their product from the last layer's error
    down stands beside the measured norm. Where they differ, weights and errors are not
    independent of one another; where both shrink, the factors tell in which layer.

    Example:

    ```python
    import keras
    import numpy as np

    from recipes.check_model import signal_table

    deep = [keras.layers.Dense(30, activation="sigmoid") for _ in range(8)]
    model = keras.Sequential([keras.Input((10,)), *deep, keras.layers.Dense(1)])
    model.compile(loss="mse")
    x = np.random.default_rng(0).normal(size=(64, 10))
    print(signal_table(model, x, x[:, :1]).gradient_norm)  # vanishes
    ```

    Args:
        model: Built, compiled model; it needs no optimizer.
        x: Inputs of one batch, array `(rows, ...)`, or a list or dict of them; some
            hundred rows.
        y: Targets, array `(rows, ...)`, or a list or dict of them.

    Returns:
        A DataFrame, its index the `layer`, with these columns, NaN where a layer has
        none:

        - activation: name of f.
        - mean, std: of the output.
        - sensitive, saturated: share of the entries at which |f'(z)| is at least half,
          and below a twentieth, of the largest |f'|: for sigmoid |z| < 1.76 and
          > 4.36, for ReLU z > 0 and z <= 0. For softmax p, of the rows at which
          1 - sum(p^2) is.
        - dead: share of the units (last axis) that are saturated at every row and
          place. A ReLU among them cannot learn any more.
        - gradient_norm: of the error, over all rows.
        - weight_gradient_norm: of the gradient by the layer's trainable weights.
        - weight_factor: of all that stands before f, estimated with one random sign per
          entry; the same at each call of this function.
        - activation_factor: of f, likewise; exact where f works entry by entry.
        - product: the measured norm of the last error times all factors from there
          down. Where paths meet, their squares add, as those of independent numbers do;
          NaN below what is no layer, such as a `+` in a functional model, below a
          layer with several outputs, and below a change of precision.

    Raises:
        ValueError: The model is not built or not compiled, or the data are no arrays
            with the same number of rows.
    """
    import pandas

    _check_ready(model)
    x, y = keras.tree.map_structure(_as_tensor, _arrays(x, y))
    rows = [signal for _, signal in _signals(model, x, y)]
    return pandas.DataFrame(rows, columns=_COLUMNS).set_index("layer")


def check_gradients(
    model: keras.Model,
    x,
    y,
    *,
    num_entries: int = 10,
    step: float = 1e-5,
    seed: int = 0,
):
    """Return how far the gradient is from differences of the loss, weight by weight.

    For entries w of each trainable weight and the loss L (with its penalties), the
    analytic gradient g is compared with the central difference

        d = (L(w + h) - L(w - h)) / (2 h),  h = step * max(1, |w|),

    as relative_error = ||g - d|| / (||g|| + ||d||), the divisor at least 1e-4 |L|.
    Right gradients are below 1e-6; at 1e-3 something is wrong, unless a kink (ReLU, max
    pooling) lies between w - h and w + h: another batch or a smaller `step` moves that.

    It takes a pass for every difference. In float32 the differences would be noise,
    hence double precision: `keras.config.set_floatx("float64")` (the losses) and
    `keras.config.set_dtype_policy("float64")` (the layers) before the model is built
    and, on JAX, `jax.config.update("jax_enable_x64", True)` before these. On JAX,
    Keras 3.15 still computes means, tanh and others in float32; models that meet them,
    as in normalization and mse, are refused there, and all on PyTorch, where the mean
    of every loss is in float32: use TensorFlow.

    Example:

    ```python
    import keras
    import numpy as np

    from recipes.check_model import check_gradients

    if keras.backend.backend() == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, "softmax")])
    model.compile(loss="sparse_categorical_crossentropy")
    x = np.random.default_rng(0).normal(size=(8, 3))
    print(check_gradients(model, x, np.arange(8) % 2).relative_error)
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    if keras.backend.backend() == "jax":
        jax.config.update("jax_enable_x64", False)
    ```

    Args:
        model: Built, compiled model of float64 weights; it needs no optimizer.
        x: Inputs of a small batch, array `(rows, ...)`, or a list or dict of them.
        y: Targets, array `(rows, ...)`, or a list or dict of them.
        num_entries: Entries drawn from each weight, at least 1; all, if it has fewer.
        step: From 1e-8 to 1e-2. At 1e-5 the error of the difference and that of its
            rounding are both near 1e-10.
        seed: From 0, for the draw of the entries.

    Returns:
        A DataFrame, its index the path of the `weight`, with the columns entries,
        gradient_norm and difference_norm (of the entries drawn), and relative_error.

    Raises:
        ValueError: The model is not built or not compiled, or something would be
            computed in float32, as it is on PyTorch; an argument is out of range.
    """
    import pandas

    _check_ready(model)
    num_entries = _number_from_to("num_entries", num_entries, 1, 1e9, whole=True)
    step = _number_from_to("step", step, 1e-8, 1e-2)
    seed = _number_from_to("seed", seed, 0, 2**63, whole=True)
    _refuse_float32(model)
    x, y = keras.tree.map_structure(_as_tensor, _arrays(x, y))

    def loss_of(weights):
        return _forward(model, x, y, weights)[0]

    variables = model.trainable_variables
    weights = [_copy_of(variable) for variable in variables]
    gradients = _gradients_of(loss_of, weights)
    _refuse_rounding(loss_of, weights, gradients)
    # Rounding alone makes differences of about 1e-11 times the loss.
    floor = 1e-4 * abs(float(loss_of(weights))) + 1e-30
    rng = np.random.default_rng(seed)
    rows = []
    for number, variable in enumerate(variables):
        start = _numbers(weights[number])
        entries = rng.permutation(start.size)[:num_entries]
        differences = []
        for entry in entries:
            width = step * max(1.0, abs(start.flat[entry]))
            losses = []
            for shift in (width, -width):
                moved = start.copy()
                moved.flat[entry] += shift
                replaced = [*weights]
                replaced[number] = keras.ops.convert_to_tensor(moved)
                losses.append(float(loss_of(replaced)))
            differences.append((losses[0] - losses[1]) / (2 * width))
        gradient = _numbers(gradients[number]).flat[entries]
        norms = np.linalg.norm(gradient), np.linalg.norm(differences)
        error = np.linalg.norm(gradient - differences) / max(sum(norms), floor)
        rows.append((variable.path, len(entries), *norms, error))
    columns = "weight entries gradient_norm difference_norm relative_error".split()
    return pandas.DataFrame(rows, columns=columns).set_index("weight")


# --- one pass through the model, watched


@dataclasses.dataclass(eq=False)
class _LayerCall:
    """What a layer was given and made of it; its output is activation(z)."""

    name: str
    layer: keras.Layer
    arguments: tuple
    output: object  # the first, where there are several
    has_others: bool
    z: object
    activation: Callable | None
    kind: str | None  # name of the activation

    @property
    def has_numbers(self):
        return _is_float(self.output)

    @property
    def inputs(self):
        return [leaf for leaf in keras.tree.flatten(self.arguments) if _is_float(leaf)]


_NOISE_LAYERS = (
    keras.layers.Dropout,
    keras.layers.AlphaDropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
)
_ACTIVATION_LAYERS = (
    keras.layers.ReLU,
    keras.layers.LeakyReLU,
    keras.layers.PReLU,
    keras.layers.ELU,
    keras.layers.Softmax,
)
# Each of their outputs depends on several of their inputs.
_MIXING = {"softmax", "log_softmax", "sparsemax", "glu"}


def _forward(model, x, y=None, weights=None, plan=()):
    """Return the loss (None without `y`), the outputs, and the calls of the layers.

    `weights` stand in for the trainable ones. `plan` has a pair for each call: the same
    call in an earlier pass, and what to add to its z.
    """
    calls, plan, counts = [], iter(plan), {}

    def watched(name, layer):
        call = _quiet_call(layer)

        def run(*args, **kwargs):
            planned, shift = next(plan, (None, None))
            junctions = []

            def between(z, activation):
                if shift is not None and planned.activation:
                    z = z + shift
                junctions.append((z, activation, activation(z)))
                return junctions[-1][-1]

            output = _run(layer, call, args, kwargs, between)
            if shift is not None and not planned.activation:
                first, *others = keras.tree.flatten(output)
                output = keras.tree.pack_sequence_as(output, [first + shift, *others])
            first, *others = keras.tree.flatten(output)
            z, activation, result = junctions[-1] if junctions else (None,) * 3
            # An activation inside the layer is not that of its output.
            if result is None or result is not output:
                z, activation = first, None
            kind = activation and _activation_name(layer)
            counts[name] = counts.get(name, 0) + 1
            label = name if counts[name] == 1 else f"{name} (call {counts[name]})"
            made = first, bool(others), z, activation, kind
            calls.append(_LayerCall(label, layer, (args, kwargs), *made))
            return output

        return run

    names = {}
    for layer, name in _named_leaves(model):
        names.setdefault(layer, name)
    own = {layer: watched(name, layer) for layer, name in names.items()}
    replaced = _calls_instead(model, own) + _loss_instead(model)
    mapping = zip(model.trainable_variables, weights or [], strict=weights is not None)
    scope = keras.StatelessScope(mapping, collect_losses=True)
    # What Keras warns of in a pass, training will tell, or a finding.
    with _replaced(replaced), scope, warnings.catch_warnings(action="ignore"):
        outputs = model(x, training=False)
        loss = None
        if y is not None:
            loss = model.compute_loss(x=x, y=y, y_pred=outputs, sample_weight=None)
    return loss, outputs, calls


def _quiet_call(layer):
    """The `call` of a layer in training, but for its noise."""
    call = layer.call
    if isinstance(layer, _NOISE_LAYERS):
        return lambda inputs, *args, **kwargs: inputs
    if isinstance(layer, keras.layers.BatchNormalization):
        return lambda inputs, training=None, mask=None: call(
            inputs, training=True, mask=mask
        )
    return call


def _calls_instead(owner, own):
    """Attributes for the layers in `owner`: other calls, and nothing to be noted in."""
    attributes = []
    for layer in owner._flatten_layers():
        call = own.get(layer) or _quiet_call(layer)
        values = {"call": call, "_called": True, "_losses": [], "_loss_ids": set()}
        attributes += [(layer, name, value) for name, value in values.items()]
    return attributes


def _loss_instead(model):
    """A loss like the model's, in a list: the first pass builds it, for good."""
    old = model._compile_loss
    if old is None:
        return []
    options = old._user_loss_weights, old.reduction, old.output_names
    return [(model, "_compile_loss", type(old)(old._user_loss, *options))]


def _run(layer, call, args, kwargs, between):
    """Call a layer with `between(z, activation)` where it applies its activation."""
    if isinstance(layer, _ACTIVATION_LAYERS):
        z, *others = args
        return between(z, lambda z: call(z, *others, **kwargs))
    activation = vars(layer).get("activation")
    if not callable(activation) or activation is keras.activations.linear:
        return call(*args, **kwargs)
    instead = (layer, "activation", lambda z: between(z, activation))
    with _replaced([instead]):
        return call(*args, **kwargs)


def _activation_name(layer):
    function = layer
    if not isinstance(layer, _ACTIVATION_LAYERS):
        function = layer.activation
    if isinstance(function, keras.Layer):
        names = {"ReLU": "relu", "LeakyReLU": "leaky_relu"}
        name = type(function).__name__
        return names.get(name, name.lower())
    return getattr(function, "__name__", type(function).__name__)


def _named_leaves(model, prefix=""):
    """Yield (layer, name) for the layers of a model and of the models in it."""
    for layer in model.layers:
        if isinstance(layer, keras.Model) and layer.layers:
            yield from _named_leaves(layer, f"{prefix}{layer.name}/")
        elif isinstance(layer, keras.Layer):
            yield layer, prefix + layer.name


@contextlib.contextmanager
def _replaced(attributes):
    """Give objects other attributes for a while, past Keras's own bookkeeping."""
    missing = object()
    before = [vars(owner).get(name, missing) for owner, name, _ in attributes]
    for owner, name, value in attributes:
        vars(owner)[name] = value
    try:
        yield
    finally:
        for (owner, name, _), value in zip(attributes, before, strict=True):
            if value is missing:
                del vars(owner)[name]
            else:
                vars(owner)[name] = value


def _gradients_of(function, values):
    """Return the gradients of a function of a list of tensors for each of them."""
    if keras.backend.backend() == "tensorflow":
        return _gradients_by_tape(function, values)
    if keras.backend.backend() == "jax":
        import jax

        return jax.grad(function)(values)
    return _gradients_by_torch(function, values)


def _gradients_by_tape(function, values):
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(values)
        result = function(values)
    gradients = tape.gradient(result, values, unconnected_gradients="zero")
    # An embedding's is a list of rows, of which several may be the same row's.
    return [tf.convert_to_tensor(gradient) for gradient in gradients]


def _gradients_by_torch(function, values):
    import torch

    values = [value.detach().requires_grad_() for value in values]
    return torch.autograd.grad(function(values), values, materialize_grads=True)


# --- signals and gradients of each layer

_COLUMNS = (
    "layer activation mean std dead saturated sensitive gradient_norm "
    "weight_gradient_norm weight_factor activation_factor product"
).split()


def _signals(model, x, y):
    """Pairs of a call and its row of the table."""
    _, outputs, calls = _forward(model, x)
    finals = {id(output) for output in keras.tree.flatten(outputs)}
    shifts = [keras.ops.zeros_like(call.z) for call in calls if call.has_numbers]
    count, variables = len(shifts), model.trainable_variables

    def loss_of(values):
        own = iter(values[:count])
        plan = [(call, next(own) if call.has_numbers else None) for call in calls]
        return _forward(model, x, y, values[count:], plan)[0]

    gradients = _gradients_of(loss_of, [*shifts, *map(_copy_of, variables)])
    norms = [np.linalg.norm(_numbers(gradient)) for gradient in gradients]
    of_variable = dict(zip(map(id, variables), norms[count:], strict=True))
    shown = [call for call in calls if call.has_numbers]
    signals = []
    squares = {}  # id of a tensor: expected squared norm of the gradient by it
    for call, norm in reversed(list(zip(shown, norms[:count], strict=True))):
        factor = math.nan
        if call.activation:
            (factor,) = _factors(lambda z, f=call.activation: f(z[0]), [call.z])
        # Taken away, for a layer that does nothing returns the tensor it was given.
        expected = squares.pop(id(call.output), math.nan)
        if call.has_others:  # by which more of the gradient comes
            expected = math.nan
        expected *= factor**2 if call.activation else 1.0
        if id(call.output) in finals or not signals:
            expected = norm**2
        factors = _factors(lambda values, c=call: _replay(c, values), call.inputs)
        for tensor, gain in zip(call.inputs, factors, strict=True):
            squares[id(tensor)] = squares.get(id(tensor), 0.0) + gain**2 * expected
        own = [of_variable[id(v)] for v in call.layer.trainable_variables]
        signal = _outputs_of(call) | {
            "gradient_norm": norm,
            "weight_gradient_norm": np.linalg.norm(own) if own else math.nan,
            "weight_factor": np.linalg.norm(factors) if factors else math.nan,
            "activation_factor": factor,
            "product": math.sqrt(expected),
        }
        signals.append((call, signal))
    return signals[::-1]


def _outputs_of(call):
    """The columns of the table that tell of the outputs alone."""
    output, response = _numbers(call.output), _response(call)
    row = {"layer": call.name, "activation": call.kind}
    row |= {"mean": output.mean(), "std": output.std()}
    if response is None:
        return row | dict.fromkeys(("dead", "saturated", "sensitive"), math.nan)
    flat = response < 0.05
    return row | {
        "dead": flat.reshape(-1, flat.shape[-1]).all(axis=0).mean(),
        "saturated": flat.mean(),
        "sensitive": (response >= 0.5).mean(),
    }


def _replay(call, inputs):
    """The z of a call, as a function of its inputs that are numbers."""
    inputs = iter(inputs)
    args, kwargs = keras.tree.map_structure(
        lambda leaf: next(inputs) if _is_float(leaf) else leaf, call.arguments
    )
    quiet = _quiet_call(call.layer)
    seen = []

    def between(z, activation):
        seen.append(z)
        return activation(z)

    def run(*args, **kwargs):
        return _run(call.layer, quiet, args, kwargs, between)

    # Through the layer's own __call__, which sets the precision of its weights.
    replaced = _replaced(_calls_instead(call.layer, {call.layer: run}))
    with replaced, keras.StatelessScope(), warnings.catch_warnings(action="ignore"):
        output = keras.tree.flatten(call.layer(*args, **kwargs))[0]
    return seen[-1] if call.activation else output


def _factors(function, inputs):
    """Root mean square norms of the derivatives of one output by each of the inputs.

    With random signs v and the Jacobian J, the mean of ||J^T v||^2 is ||J||_F^2.
    """
    if not inputs:
        return []
    rng = np.random.default_rng(0)
    signs = []

    def projected(values):
        output = function(values)
        if not signs:
            signs.append(rng.choice([-1.0, 1.0], size=output.shape))
        sign = keras.ops.convert_to_tensor(signs[0], output.dtype)
        return keras.ops.sum(output * sign)

    gradients = _gradients_of(projected, inputs)
    return [
        float(np.linalg.norm(_numbers(each)) / math.sqrt(signs[0].size))
        for each in gradients
    ]


def _grid(call):
    """Numbers of both signs for the activation of a call, as a batch."""
    sizes = np.geomspace(1e-3, 1e3, 61)
    values = np.concatenate([-sizes[::-1], [0.0], sizes])
    function = call.layer
    if not isinstance(function, _ACTIVATION_LAYERS):
        function = call.layer.activation
    # One axis will do, but for slopes that differ from unit to unit.
    shape = call.z.shape[1:] if isinstance(function, keras.layers.PReLU) else (1,)
    values = values.reshape(-1, *(1 for _ in shape)) * np.ones((1, *shape))
    return keras.ops.convert_to_tensor(values, call.z.dtype)


def _response(call):
    """|f'(z)| as a part of the largest |f'|, or None where that has no meaning."""
    if call.kind == "softmax":
        probabilities = _numbers(call.output)
        spread = 1.0 - np.square(probabilities).sum(axis=-1, keepdims=True)
        num_classes = probabilities.shape[-1]
        return spread / (1.0 - 1.0 / num_classes) if num_classes > 1 else 0.0 * spread
    if call.activation is None or call.kind in _MIXING:
        return None

    def slopes(z):
        def total(values):
            return keras.ops.sum(call.activation(values[0]))

        return np.abs(_numbers(_gradients_of(total, [z])[0]))

    largest = slopes(_grid(call)).max()
    return slopes(call.z) / largest if 0.0 < largest < 100.0 else None  # exponential


# --- findings

_START = "kernel_initializer=recipes.initializers.initializer_for"

# symptom: (cause, advice)
_TEXTS = {
    "inputs not finite": (
        "One NaN or infinity makes the loss and then every weight NaN.",
        "Leave those rows out, `x[np.isfinite(x).all(axis=1)]`; "
        "`callbacks.nonfinite_guard.NonFiniteGuard()` guards the training.",
    ),
    "inputs constant": (
        "All rows are the same: nothing tells one target from another.",
        "Look at what loads and scales the data, such as a division of integers; "
        '`recipes.fashion_mnist.load(scale="standardize")` shows one way.',
    ),
    "inputs unscaled": (
        "Initial weights and learning rates are made for inputs near 1; others "
        "saturate the units, or hardly reach them, and stretch the loss.",
        'Load them scaled, `recipes.fashion_mnist.load(scale="standardize")`, or begin '
        "with `keras.layers.Normalization()` after its `adapt(x)`.",
    ),
    "softmax of one unit": (
        "The softmax of a single number is 1 whatever the weights are.",
        'Take {dense} and `loss="binary_crossentropy"`.',
    ),
    "labels are no numbers": (
        "No loss of Keras reads text or dates.",
        "Number the classes: `y = np.unique(y, return_inverse=True)[1]`, or let "
        "`keras.layers.StringLookup` do it.",
    ),
    "labels not finite": (
        "One NaN or infinity makes the loss and then every weight NaN.",
        "Leave those rows out, `keep = np.isfinite(y); x, y = x[keep], y[keep]`; "
        "`callbacks.nonfinite_guard.NonFiniteGuard()` guards the training.",
    ),
    "one-hot labels for a sparse loss": (
        "The sparse loss wants the number of the class, not a vector.",
        'Compile with `loss="categorical_crossentropy"`, or give it numbers, '
        "`y = keras.ops.argmax(y, axis=-1)`.",
    ),
    "class numbers for a categorical loss": (
        "The loss wants a vector per row, not the number of the class.",
        'Compile with `loss="sparse_categorical_crossentropy"`{also}, or give it '
        "vectors, `y = keras.utils.to_categorical(y, {units})`.",
    ),
    "labels do not fit the output": (
        "A row of the labels has shape {have}, one of the outputs {want}: the loss "
        "fails, or pairs each with all.",
        "Give the last layer the width of the labels: `keras.layers.Dense({units})`.",
    ),
    "softmax for several labels at once": (
        "Softmax shares out a single 1, but rows have several labels, or none.",
        'Take a sigmoid per label, {dense}, and `loss="binary_crossentropy"`.',
    ),
    "one unit for a sparse loss": (
        "The sparse loss reads a probability per class, and one alone says nothing.",
        'Take {dense} and `loss="{loss}"`.',
    ),
    "labels out of range": (
        "{cause}",
        "{advice}",
    ),
    "targets outside the range of the output": (
        "{activation} gives nothing below {low:.3g} and nothing above {high:.3g}.",
        "Leave the last layer linear: {dense}.",
    ),
    "targets outside the range of the loss": (
        "A logarithmic error takes all that is below 0 for 0, targets and outputs.",
        "Compile with `loss=keras.losses.MeanSquaredError()`.",
    ),
    "targets unscaled": (
        "Outputs start near 1, and steps are made for that: it takes thousands of them "
        "to get to such targets, or they overshoot.",
        "Train on `(y - y.mean()) / y.std()` and undo it on the predictions with "
        "`keras.layers.Normalization(mean=y.mean(), variance=y.var(), invert=True)`.",
    ),
    "probabilities taken for logits": (
        "The loss applies a softmax or sigmoid of its own to what already is one: the "
        "outputs of classes can hardly differ.",
        "Compile with `loss=keras.losses.{loss}()`, without from_logits.",
    ),
    "logits taken for probabilities": (
        "The loss takes the outputs for probabilities and cuts them off at 0 and 1, "
        "where there is no gradient.",
        "Compile with `loss=keras.losses.{loss}(from_logits=True)`, or take {dense}.",
    ),
    "logits with bounds": (
        "Logits may have to be any number, but {activation} gives nothing below "
        "{low:.3g} and nothing above {high:.3g}.",
        "Leave the last layer linear: {dense}.",
    ),
    "sigmoid for exclusive classes": (
        "One class of several is right, but each sigmoid is a probability of its own: "
        "they need not sum to 1.",
        "Take {dense}; the loss stays.",
    ),
    "zero weights": (
        "Units that start equal learn the same, and zeros pass no gradient back.",
        "Start with random weights, `{start}`; biases may start at 0.",
    ),
    "symmetric weights": (
        "Units that start equal compute and learn the same: the layer is one unit.",
        "Start with random weights, `{start}`; biases may start at 0.",
    ),
    "the same weights in two layers": (
        "It starts with the very kernel of {other}: in Keras 3.15 one initializer "
        "object gives each layer the same numbers.",
        "Make an initializer for each layer: `{start}`.",
    ),
    "SELU on inputs that are not standardized": (
        "SELU keeps mean 0 and deviation 1 only where they are so at first.",
        'Standardize them, `recipes.fashion_mnist.load(scale="standardize")`, or begin '
        "with `keras.layers.Normalization()` after its `adapt(x)`.",
    ),
    "SELU without LeCun's weights": (
        "SELU keeps the deviation only with a variance of 1 / fan_in.",
        "Give the layer `{start}`.",
    ),
    "plain dropout with SELU": (
        "Its zeros shift mean and deviation, which SELU is to keep.",
        "Put `keras.layers.AlphaDropout({rate:g})` in its place.",
    ),
    "linear hidden layers": (
        "Without an activation between them, Dense layers are together a single one: "
        "the network can draw only straight lines.",
        "Give the hidden layers an activation: {dense}.",
    ),
    "layers too narrow": (
        "Deep in a network a unit of ReLU is off for all rows about every second time, "
        "and a layer whose units are all off lets nothing through: {depth} layers as "
        "narrow as these have one in up to {chance:.0%} of networks.",
        "Take wider layers: {dense}.",
    ),
    "saturated units": (
        "Where the activation is flat, no gradient comes through.",
        "Start with smaller weights: `{start}`.",
    ),
    "dead units": (
        "Units that are off for every row get no gradient and stay off.",
        "Start with zero biases and `{start}`, or let some signal through, "
        "`keras.layers.LeakyReLU(0.1)`.",
    ),
    "vanishing gradient": (
        "Weights times slopes are below 1 layer by layer: the error that reaches the "
        "first layers is too small to move them.",
        "Take ReLU with `{start}`, `keras.layers.BatchNormalization()`, or paths "
        "around layers, `keras.layers.add`.",
    ),
    "exploding gradient": (
        "Weights times slopes are above 1 layer by layer: steps overshoot.",
        "Take smaller weights, `{start}`, and bound the gradient: "
        '`recipes.optimizers.make_optimizer("adam", global_clipnorm=1.0)`.',
    ),
    "initial loss above chance": (
        "The model starts sure of what is wrong, and first has to unlearn it.",
        "{advice}",
    ),
    "learning rate out of range": (
        "With {kind}, steps at such a rate {fault}.",
        'Compile with `recipes.optimizers.make_optimizer("{name}", {rate})`, and find '
        "a better one: `callbacks.lr_finder.LRFinder().run(model, x, y).suggestion`.",
    ),
}


def _model_finding(symptom, layer, evidence, change, **words):
    evidence = {name: np.asarray(value).item() for name, value in evidence.items()}
    cause, advice = (text.format(**words) for text in _TEXTS[symptom])
    return ModelFinding(symptom, layer, evidence, cause, advice, change)


def _dense(units, activation):
    return f'`keras.layers.Dense({units}, "{activation}", {_START}("{activation}"))`'


def _initializer(activation):
    """Keras's name of the initializer that an activation wants, and the line for it."""
    name = "he_normal"
    if activation in (None, "tanh", "sigmoid", "softmax", "softsign"):
        name = "glorot_normal"
    if activation == "selu":
        name = "lecun_normal"
    start = f'{_START}("{activation or "linear"}")'
    return {"kernel_initializer": name}, start


def _data_findings(x):
    leaves = [leaf for leaf in keras.tree.flatten(x) if leaf.dtype.kind in "fiub"]
    wrong = sum((~np.isfinite(leaf)).sum() for leaf in leaves)
    if wrong:
        evidence = {"entries": wrong}
        return [_model_finding("inputs not finite", None, evidence, {"x": "finite"})]
    if leaves and len(leaves[0]) > 1 and all((a == a[:1]).all() for a in leaves):
        evidence = {"rows": len(leaves[0])}
        return [_model_finding("inputs constant", None, evidence, {"x": "varying"})]
    return []


def _entry(calls):
    """The first call of a kernel if no weights have touched its input, or None."""
    touched = set()
    for call in calls:
        if any(id(each) in touched for each in call.inputs) or call.layer.weights:
            touched.add(id(call.output))
        if _kernels(call.layer) and call.inputs:
            return None if id(call.inputs[0]) in touched else call
    return None


def _entry_findings(calls):
    entry = _entry(calls)
    if entry is None:
        return []
    values = _numbers(entry.inputs[0])
    largest, rms = np.abs(values).max(), np.sqrt(np.square(values).mean())
    if rms <= 10 and (largest >= 0.01 or largest == 0):
        return []
    evidence = {"root_mean_square": rms, "largest": largest}
    return [
        _model_finding(
            "inputs unscaled", entry.name, evidence, {"scale": "standardize"}
        )
    ]


# Keras's loss: how it reads labels and outputs.
_LOSSES = {
    "sparse_categorical_crossentropy": "sparse",
    "categorical_crossentropy": "categorical",
    "categorical_focal_crossentropy": "categorical",
    "binary_crossentropy": "binary",
    "binary_focal_crossentropy": "binary",
    "mean_squared_error": "regression",
    "mean_absolute_error": "regression",
    "mean_absolute_percentage_error": "regression",
    "mean_squared_logarithmic_error": "regression",
    "huber": "regression",
    "log_cosh": "regression",
}


def _loss_of(model):
    """(How the only loss reads labels, whether from logits, the loss), or Nones."""
    losses = keras.tree.flatten(getattr(model, "loss", []))
    # Keras's "crossentropy" suits itself to the labels.
    if len(losses) != 1 or str(losses[0]).lower() in ("crossentropy", "ce"):
        return None, None, None
    loss = keras.losses.get(losses[0])
    function = getattr(loss, "fn", loss)
    name = getattr(function, "__name__", "")
    if name not in _LOSSES or function is not getattr(keras.losses, name):
        return None, None, None
    return _LOSSES[name], bool(getattr(loss, "from_logits", False)), loss


class _Output:
    """The output of a model on some rows, what makes it, and how the loss reads it."""

    def __init__(self, calls, outputs, kind, from_logits, loss):
        self.values = _numbers(outputs)
        self.kind, self.from_logits = kind, from_logits
        self.loss_name = getattr(loss, "fn", loss).__name__
        self.call = next((call for call in calls if call.output is outputs), None)
        self.activation = self.call and self.call.kind
        self.units = self.values.shape[-1] if self.values.ndim > 1 else 1

    def range(self):
        """Least and largest value that the activation can give."""
        if self.activation == "softmax":
            return 0.0, 1.0
        if not self.activation or self.activation in _MIXING:
            return -math.inf, math.inf
        values = _numbers(self.call.activation(_grid(self.call)))
        low, high = values.min(), values.max()
        return low if low > -100 else -math.inf, high if high < 100 else math.inf

    def wants_vectors(self, y):
        """Whether y, a number per row, numbers the classes of the units."""
        is_numbered = y.min() == 0 and y.max() == self.units - 1
        return self.kind == "categorical" or (is_numbered and (y == np.floor(y)).all())

    def finding(self, symptom, evidence, change, **words):
        layer = self.call and self.call.name
        if "activation" in change:
            units = change.get("units", self.units)
            words["dense"] = _dense(units, change["activation"])
        return [_model_finding(symptom, layer, evidence, change, **words)]


def _label_findings(y, output):
    """What keeps the loss from reading these labels with this output."""
    if output.activation == "softmax" and output.units == 1:
        change = {"activation": "sigmoid", "loss": "binary_crossentropy"}
        return output.finding("softmax of one unit", {"units": 1}, change)
    if y.dtype.kind not in "fiub":
        change = {"labels": "0 to n - 1"}
        return output.finding("labels are no numbers", {"rows": len(y)}, change)
    y = y.astype("float64")
    if not np.isfinite(y).all():
        evidence = {"entries": (~np.isfinite(y)).sum()}
        return output.finding("labels not finite", evidence, {"labels": "finite"})
    check_range = _class_findings if output.kind == "sparse" else _target_findings
    return _shape_findings(y, output) or check_range(y, output)


def _shape_findings(y, output):
    want, have, units = output.values.shape[1:], y.shape[1:], output.units
    fits = have == want
    is_vector = fits and units > 1
    if have and have[-1] == 1 and len(have) >= len(want):
        have = have[:-1]  # Keras drops, or adds, a last axis of one
    is_number = have == want[:-1]
    if output.kind == "sparse":
        if is_vector and (y.sum(axis=-1) == 1).all():
            symptom = "one-hot labels for a sparse loss"
            change = {"loss": "categorical_crossentropy"}
            return output.finding(symptom, {"classes": units}, change)
        if is_vector:
            return _several_labels(y, output)
        fits = is_number
    elif is_number and units > 1 and output.wants_vectors(y):
        symptom, also = "class numbers for a categorical loss", ""
        change = {"loss": "sparse_categorical_crossentropy"}
        if output.from_logits:
            change["from_logits"] = True
        elif output.kind != "categorical" and output.activation != "softmax":
            change["activation"] = "softmax"
            also = f" and take {_dense(units, 'softmax')}"
        words = {"units": units, "also": also}
        return output.finding(symptom, {"classes": units}, change, **words)
    elif units == 1:
        fits = fits or is_number
    if fits:
        return []
    evidence = {
        "label_entries": math.prod(y.shape[1:]),
        "output_entries": math.prod(want),
    }
    change = {"units": y.shape[-1] if y.ndim > 1 else 1}
    words = {"have": y.shape[1:], "want": want, **change}
    return output.finding("labels do not fit the output", evidence, change, **words)


def _several_labels(y, output):
    evidence = {"labels_per_row": y.sum(axis=-1).mean()}
    change = {"activation": "sigmoid", "loss": "binary_crossentropy"}
    return output.finding("softmax for several labels at once", evidence, change)


def _class_findings(y, output):
    """Of labels that are the numbers of classes."""
    least, largest, units = y.min(), y.max(), output.units
    evidence = {"least": least, "largest": largest, "classes": units}
    several = int(largest) + 1
    if units == 1:
        change = {"units": 1, "activation": "sigmoid", "loss": "binary_crossentropy"}
        if largest > 1:
            change = _for_classes(several)
        symptom, loss = "one unit for a sparse loss", change["loss"]
        return output.finding(symptom, evidence, change, loss=loss)
    is_count = (y == np.floor(y)).all() and least >= 0
    if is_count and largest < units:
        return []
    cause = (
        f"The loss wants whole numbers from 0 to {units - 1}; for others it fails, or "
        "is NaN, according to the device."
    )
    advice = (
        "Number them, `y = np.unique(y, return_inverse=True)[1]`; the loss stays "
        "`keras.losses.SparseCategoricalCrossentropy`."
    )
    change = {"labels": "0 to n - 1"}
    if is_count and least == 0:
        advice = f"Take as many units as classes, {_dense(several, 'softmax')}."
        change = {"units": several}
    words = {"cause": cause, "advice": advice}
    return output.finding("labels out of range", evidence, change, **words)


def _for_classes(units):
    loss = "sparse_categorical_crossentropy"
    return {"units": units, "activation": "softmax", "loss": loss}


def _target_findings(y, output):
    """Of labels that are probabilities or numbers, one for each output."""
    least, largest = y.min(), y.max()
    evidence = {"least": least, "largest": largest}
    if output.kind != "regression" and 0 <= least and largest <= 1:
        is_shared = output.kind == "categorical" or output.activation == "softmax"
        if is_shared and np.abs(y.sum(axis=-1) - 1).max() > 1e-3:
            return _several_labels(y, output)
        return []
    if output.kind != "regression":
        cause = (
            "A crossentropy reads labels as probabilities, from 0 to 1; with others it "
            "has no least value, and training runs away."
        )
        advice = (
            "Scale them, `y = (y - y.min()) / np.ptp(y)`; the loss stays "
            "`keras.losses.BinaryCrossentropy`."
        )
        change = {"labels": "0 to 1"}
        if least >= 0 and output.units == 1 and (y == np.floor(y)).all():
            change = _for_classes(int(largest) + 1)
            advice = (
                f'Take {_dense(change["units"], "softmax")}, `loss="{change["loss"]}"`.'
            )
        words = {"cause": cause, "advice": advice}
        return output.finding("labels out of range", evidence, change, **words)
    if output.loss_name == "mean_squared_logarithmic_error" and least < 0:
        evidence["below_0_fraction"] = (y < 0).mean()
        symptom = "targets outside the range of the loss"
        return output.finding(symptom, evidence, {"loss": "mean_squared_error"})
    low, high = output.range()
    if least < low - 1e-6 or largest > high + 1e-6:
        symptom = "targets outside the range of the output"
        words = {"activation": output.activation, "low": low, "high": high}
        return output.finding(symptom, evidence, {"activation": "linear"}, **words)
    rms = np.sqrt(np.square(y).mean())
    if rms > 100:
        evidence = {"root_mean_square": rms}
        change = {"target_scale": "standardize"}
        return output.finding("targets unscaled", evidence, change)
    return []


def _output_findings(output):
    """What of the output layer does not suit a crossentropy."""
    values, activation = output.values, output.activation
    if output.kind == "regression" or not np.isfinite(values).all():
        return []
    loss = {
        "sparse": "SparseCategoricalCrossentropy",
        "categorical": "CategoricalCrossentropy",
        "binary": "BinaryCrossentropy",
    }[output.kind]
    evidence = {"least": values.min(), "largest": values.max()}
    is_inside = values.min() >= -1e-6 and values.max() <= 1 + 1e-6
    if output.from_logits:
        sums_to_one = is_inside and np.allclose(values.sum(axis=-1), 1, atol=1e-4)
        if activation in ("softmax", "sigmoid") or (sums_to_one and output.units > 1):
            symptom = "probabilities taken for logits"
            change = {"loss": loss, "from_logits": False}
            return output.finding(symptom, evidence, change, loss=loss)
        low, high = output.range()
        if low == -math.inf and high == math.inf:
            return []
        symptom, words = "logits with bounds", {"activation": activation}
        words |= {"low": low, "high": high}
        return output.finding(symptom, evidence, {"activation": "linear"}, **words)
    right = "sigmoid" if output.kind == "binary" else "softmax"
    is_linear = output.call and not activation and _kernels(output.call.layer)
    if is_linear or not is_inside:
        change = {"activation": right}
        words = {"loss": loss, "dense": _dense(output.units, right)}
        if not activation:
            change = {"loss": loss, "from_logits": True}
        symptom = "logits taken for probabilities"
        return output.finding(symptom, evidence, change, **words)
    if activation == "sigmoid" and right == "softmax" and output.units > 1:
        evidence, change = {"units": output.units}, {"activation": "softmax"}
        return output.finding("sigmoid for exclusive classes", evidence, change)
    return []


def _kernels(layer):
    """The kernels of a layer, which have a column per unit."""
    names = ("kernel", "depthwise_kernel", "pointwise_kernel")
    return [w for w in layer.weights if w.name in names and len(w.shape) > 1]


def _parting_kernels(model, x, y, calls):
    """Ids of kernels of zeros whose first step tells their units from each other.

    So it is at the end of a residual block, where each unit has a way out of its own.
    """
    kernels = [weight for call in calls for weight in _kernels(call.layer)]
    if all(_numbers(kernel).any() for kernel in kernels):
        return set()
    variables = model.trainable_variables
    values = list(map(_copy_of, variables))
    gradients = _gradients_of(lambda v: _forward(model, x, y, v)[0], values)
    gradients = dict(zip(map(id, variables), map(_numbers, gradients), strict=True))
    own = {id(kernel): gradients.get(id(kernel)) for kernel in kernels}
    return {key for key, g in own.items() if g is not None and (g != g[..., :1]).any()}


def _weight_findings(calls, part_ways):
    findings, owners = [], {}
    firsts = {id(call.layer): call for call in reversed(calls) if _kernels(call.layer)}
    for call in reversed(firsts.values()):
        change, start = _initializer(call.kind)
        # Each unit of the output has a target of its own, and so a gradient.
        is_last = call is next(iter(firsts.values()))
        for weight in _kernels(call.layer):
            kernel = _numbers(weight)
            is_zero = not kernel.any()
            is_equal = kernel.shape[-1] > 1 and (kernel == kernel[..., :1]).all()
            other = owners.setdefault((kernel.shape, kernel.tobytes()), call.name)
            if is_zero and id(weight) in part_ways:
                continue
            if (is_zero or is_equal) and not is_last:
                symptom = "zero weights" if is_zero else "symmetric weights"
                evidence = {"units": kernel.shape[-1], "value": kernel.flat[0]}
            elif not (is_zero or is_equal) and other != call.name:
                symptom = "the same weights in two layers"
                evidence = {"entries": kernel.size}
            else:
                continue
            words = {"start": start, "other": other}
            findings.append(
                _model_finding(symptom, call.name, evidence, change, **words)
            )
    return findings


# What maps straight lines to straight lines, but for an activation.
_STRAIGHT = (
    keras.layers.InputLayer,
    keras.layers.Dense,
    keras.layers.Flatten,
    keras.layers.Reshape,
    keras.layers.Dropout,
    keras.layers.Rescaling,
    keras.layers.Normalization,
    keras.layers.BatchNormalization,
)


def _depth_findings(calls):
    kernels = [n for n, call in enumerate(calls) if _kernels(call.layer)]
    if len(kernels) < 2:
        return []
    hidden, top = calls[: kernels[-1]], calls[kernels[-1]]
    is_straight = all(isinstance(call.layer, _STRAIGHT) for call in [*hidden, top])
    if not is_straight or any(call.kind for call in hidden):
        return []
    widths = [calls[n].z.shape[-1] for n in kernels[:-1]]
    ends = calls[kernels[0]].inputs[0].shape[-1], top.z.shape[-1]
    if min(widths) < min(ends):  # a bottleneck says something straight
        return []
    change, _ = _initializer("relu")
    change, evidence = {"activation": "relu", **change}, {"layers": len(widths)}
    name, words = calls[kernels[0]].name, {"dense": _dense(widths[0], "relu")}
    return [_model_finding("linear hidden layers", name, evidence, change, **words)]


def _selu_findings(calls):
    selu = [call for call in calls if call.kind == "selu"]
    if not selu:
        return []
    findings, entry = [], _entry(calls)
    if entry is not None:
        values = _numbers(entry.inputs[0])
        mean, std = values.mean(), values.std()
        if abs(mean) > 0.2 or not 0.5 <= std <= 1.5:
            symptom = "SELU on inputs that are not standardized"
            evidence, change = {"mean": mean, "std": std}, {"scale": "standardize"}
            findings.append(_model_finding(symptom, entry.name, evidence, change))
    makers = {id(call.output): call for call in calls}
    change, start = _initializer("selu")
    for call in selu:
        if not _kernels(call.layer):  # the activation is a layer of its own
            call = makers.get(id(call.z), call)
        for weight in _kernels(call.layer):
            kernel = _numbers(weight)
            gain = kernel.var() * kernel.size / kernel.shape[-1]
            # With fewer entries the variance itself is uncertain.
            if kernel.size >= 50 and not 0.6 <= gain <= 1.5:
                symptom = "SELU without LeCun's weights"
                evidence = {"variance_times_fan_in": gain}
                words = {"start": start}
                findings.append(
                    _model_finding(symptom, call.name, evidence, change, **words)
                )
    for call in calls:
        if isinstance(call.layer, keras.layers.Dropout) and call.layer.rate > 0:
            evidence, change = {"rate": call.layer.rate}, {"dropout": "AlphaDropout"}
            symptom = "plain dropout with SELU"
            findings.append(
                _model_finding(symptom, call.name, evidence, change, **evidence)
            )
    return findings


def _signal_findings(signals):
    kernels = [n for n, (call, _) in enumerate(signals) if _kernels(call.layer)]
    if len(kernels) < 2:
        return []
    bounded = ("sigmoid", "hard_sigmoid", "tanh", "hard_tanh", "softsign")
    chance_alive, depth = 1.0, 0
    for call, signal in signals[: kernels[-1]]:
        change, start = _initializer(call.kind)
        if call.kind == "relu":
            chance_alive *= 1 - 0.5 ** call.z.shape[-1]
            depth += 1
        if call.kind in bounded and signal["saturated"] > 0.5:
            evidence, symptom = {"saturated": signal["saturated"]}, "saturated units"
            return [_model_finding(symptom, call.name, evidence, change, start=start)]
        if call.kind not in bounded and signal["dead"] > 0.7 and len(call.z) >= 16:
            if 1 - chance_alive > 0.05:
                return _too_narrow(call, 1 - chance_alive, depth)
            change = {"activation": "leaky_relu", **change}
            evidence, symptom = {"dead": signal["dead"]}, "dead units"
            return [_model_finding(symptom, call.name, evidence, change, start=start)]
    (call, first), (top, last) = signals[kernels[0]], signals[kernels[-1]]
    evidence = {"first": first["gradient_norm"], "last": last["gradient_norm"]}
    change, start = _initializer("relu")
    # Zero weights at the output hold the error back for one step only.
    is_zero = not _numbers(_kernels(top.layer)[-1]).any()
    if evidence["first"] < 1e-3 * evidence["last"] and not is_zero:
        symptom, change = "vanishing gradient", {"activation": "relu", **change}
    elif evidence["first"] > 1e3 * evidence["last"] > 0:
        symptom, change = "exploding gradient", {**change, "global_clipnorm": 1.0}
    else:
        return []
    return [_model_finding(symptom, call.name, evidence, change, start=start)]


def _too_narrow(call, chance, depth):
    units = 2 ** math.ceil(math.log2(math.log2(1000 * depth)))  # born dead: 1 of 1000
    words = {"chance": chance, "depth": depth, "dense": _dense(units, "relu")}
    evidence = {"units": call.z.shape[-1], "born_dead_fraction": chance}
    change = {"units": units}
    return [_model_finding("layers too narrow", call.name, evidence, change, **words)]


def _initial_loss_findings(y, outputs, kind, loss):
    name = getattr(loss, "fn", loss).__name__
    targets = y.astype("float64")
    if name in ("sparse_categorical_crossentropy", "categorical_crossentropy"):
        chance, factor = math.log(outputs.shape[-1]), 3
    elif name == "binary_crossentropy":
        chance, factor = math.log(2), 3
    elif name == "mean_squared_error":
        chance, factor = targets.var(axis=0).mean(), 10
    elif name == "mean_absolute_error":
        chance, factor = np.abs(targets - np.median(targets, axis=0)).mean(), 3
    else:
        return []
    of_rows = loss.call if isinstance(loss, keras.losses.Loss) else loss
    shape = outputs.shape[:-1] if kind == "sparse" else outputs.shape
    initial = _numbers(of_rows(_as_tensor(targets.reshape(shape)), outputs)).mean()
    if chance == 0 or initial <= factor * chance:
        return []
    change, start = _initializer("relu")
    advice = (
        f"Start with weights that fit the activations, `{start}`, and look with "
        "`recipes.check_model.signal_table(model, x, y)` where the deviation grows."
    )
    large = [np.square(each).mean() for each in (_numbers(outputs), targets)]
    if kind == "regression" and large[0] < large[1]:
        change = {"target_scale": "standardize"}
        advice = (
            "Bring the targets to mean 0 and deviation 1, or start the output at their "
            "mean: `bias_initializer=keras.initializers.Constant(y.mean())`."
        )
    evidence = {"initial": initial, "chance": chance}
    return [
        _model_finding(
            "initial loss above chance", None, evidence, change, advice=advice
        )
    ]


_ADAM = 1e-6, 0.05
# Keras's optimizer: the least and the largest of the highest rates it trains with.
_RATES = {
    "SGD": (1e-5, 1.0),
    "Adagrad": (1e-5, 1.0),
    "Adadelta": (1e-4, 10.0),
    "Lion": (1e-7, 0.01),
    **dict.fromkeys(("Adam", "Adamax", "Nadam", "AdamW", "RMSprop"), _ADAM),
}


def _rate_findings(optimizer):
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    findings = []
    for each in getattr(optimizer, "optimizers", [optimizer]):
        kinds = [parent.__name__ for parent in type(each).__mro__]
        kind = next((kind for kind in kinds if kind in _RATES), None)
        if kind is None:
            continue
        rate, schedule = _numbers(each.learning_rate), vars(each).get("_learning_rate")
        if isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
            steps = (0, *np.geomspace(10, 1e5, 13).astype(int).tolist())
            rate = max(_numbers(schedule(step)) for step in steps)
        low, high = _RATES[kind]
        if low * (1 - 1e-6) <= rate <= high * (1 + 1e-6):  # float32's rounding
            continue
        evidence = {"learning_rate": rate, "low": low, "high": high}
        better = 0.01 if kind == "SGD" else 0.001
        words = {"kind": kind, "name": kind.lower(), "rate": better}
        words["fault"] = "overshoot" if rate > high else "hardly move the weights"
        change, symptom = {"learning_rate": better}, "learning rate out of range"
        findings.append(_model_finding(symptom, None, evidence, change, **words))
    return findings


# --- arguments and numbers


def _check_ready(model):
    if not isinstance(model, keras.Model) or not model.built or not model.compiled:
        raise ValueError(
            "`model` must be a keras.Model that is built (give it a keras.Input, or "
            f"call it once) and compiled. Received: model={model!r}"
        )


def _arrays(x, y):
    """The data as arrays, which have the same number of rows."""

    def as_array(leaf):
        is_tensor = keras.ops.is_tensor(leaf)
        return keras.ops.convert_to_numpy(leaf) if is_tensor else np.asarray(leaf)

    x, y = keras.tree.map_structure(as_array, (x, y))
    for name, data in (("x", x), ("y", y)):
        leaves = keras.tree.flatten(data)
        if not leaves or any(a.ndim == 0 or a.dtype.kind == "O" for a in leaves):
            kinds = ", ".join(f"{a.dtype} {a.shape}" for a in leaves)
            raise ValueError(
                f"`{name}` must be arrays with a row per sample, such as a batch, "
                f"`x, y = next(iter(dataset))`. Received: {name}={kinds or data!r}"
            )
    lengths = sorted({len(leaf) for leaf in keras.tree.flatten((x, y))})
    if len(lengths) > 1 or lengths[0] == 0:
        raise ValueError(
            "`x` and `y` must have the same number of rows, at least one. "
            f"Received: {lengths} rows"
        )
    return x, y


def _as_tensor(array):
    # As in fit: NumPy's floats are not meant to be double precision.
    dtype = keras.config.floatx() if array.dtype.kind == "f" else None
    return keras.ops.convert_to_tensor(array, dtype)


def _copy_of(variable):
    return keras.ops.convert_to_tensor(keras.ops.convert_to_numpy(variable))


def _is_float(value):
    return keras.ops.is_tensor(value) and keras.backend.is_float_dtype(value.dtype)


def _numbers(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor)).astype("float64")


def _refuse_float32(model):
    """Refuse what would compute a loss in less than double precision."""
    if keras.backend.backend() == "torch":
        raise ValueError(
            "`model` must compute in float64, but Keras 3.15 on PyTorch takes the mean "
            "of every loss in float32: check the gradients on TensorFlow. "
            "Received: backend='torch'"
        )
    wrong = {keras.config.floatx()} - {"float64"}
    wrong |= {
        dtype
        for layer in model._flatten_layers()
        for dtype in (layer.compute_dtype, layer.variable_dtype)
        if keras.backend.is_float_dtype(dtype) and dtype != "float64"
    }
    losses = keras.tree.flatten(getattr(model, "loss", []))
    wrong |= {getattr(loss, "dtype", "float64") for loss in losses} - {"float64"}
    line = 'keras.config.set_floatx("float64") and set_dtype_policy("float64")'
    if keras.backend.backend() == "jax":
        import jax

        line += ' after jax.config.update("jax_enable_x64", True)'
        wrong |= set() if jax.config.jax_enable_x64 else {"JAX without x64"}
    if wrong:
        raise ValueError(
            "`model` must compute in float64, its losses too: build and compile it "
            f"after {line}. Received: {', '.join(sorted(wrong))}"
        )


def _refuse_rounding(loss_of, weights, gradients):
    """Refuse a loss that is not smooth along its gradient at double precision."""
    norm = math.sqrt(sum(np.square(_numbers(each)).sum() for each in gradients))

    def change(width):
        ends = []
        for sign in (1.0, -1.0):
            scale = sign * width / norm
            pairs = zip(weights, gradients, strict=True)
            ends.append(float(loss_of([w + scale * g for w, g in pairs])))
        return ends[0] - ends[1]

    width = 1e-7  # in float32, steps of the loss would be about as large
    if norm > 0:
        whole, half = change(width), change(width / 2)
        if whole == 0 or abs(whole - 2 * half) > 2e-3 * width * norm:
            raise ValueError(
                "`model` must compute in float64, but its loss moves in steps: part of "
                "it is float32. Keras 3.15 on JAX computes tanh and means so, also the "
                "means in normalization and mse: check the gradients on "
                f"TensorFlow. Received: backend={keras.backend.backend()!r}"
            )


def _number_from_to(name, value, least, most, *, whole=False):
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (is_number and least <= value <= most) or (whole and value != int(value)):
        kind = f"a {'whole ' if whole else ''}number from {least:g} to {most:g}"
        raise ValueError(f"`{name}` must be {kind}. Received: {name}={value!r}")
    return int(value) if whole else float(value)
