"""The chapter's ten optimizers by name, and gradient clipping that holds everywhere.

`make_optimizer` builds a Keras optimizer from one visible table of hyper-parameters, so
that runs differ in the optimizer and in nothing else. One rate does not suit all ten:
tune it before you call one of them better. Its momentum can be changed while it trains:
in Keras 3.15 `optimizer.momentum = 0.5` is ignored once the step is compiled; here it
holds from the next step on, as with the learning rate.

`ClippedOptimizer` bounds the gradient before any optimizer sees it, and leaves out the
steps whose gradient is not finite. Use it against exploding gradients: recurrent or
very deep networks, large rates, a loss that jumps. Keras's own `clipnorm` is enough on
one device with dense gradients of moderate size. Keras 3.15 clips each replica before
their gradients are added, clips the rows of an embedding once per repeated id, lets
squares overflow near 1e20, and takes a bound of 0 for "no clipping"; here none of that
happens, bounds may be combined, or follow the weights or the recent norms, and the norm
can be read while training. It cures neither vanishing gradients nor the cause of a NaN.

This file is longer than most because each of Keras's classes with momentum needs one
here, and a wrapper has to pass on all that Keras's trainer, callbacks and savers ask of
an optimizer.

```python
import keras
import numpy as np

from recipes.optimizers import make_optimizer

rng = np.random.default_rng(42)
x, y = rng.normal(size=(64, 3)), rng.normal(size=(64, 1))
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
model.compile(make_optimizer("nadam", global_clipnorm=1.0), loss="mse")
model.fit(x, y, epochs=2, verbose=0)
print(model.optimizer.last_gradient_norm, model.optimizer.clipped_fraction)
model.optimizer.beta_1 = 0.8  # for the steps to come
```

Reference: Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural
networks", 2013, https://arxiv.org/abs/1211.5063
Reference: Géron, "Hands-On Machine Learning with Scikit-Learn, Keras, and TensorFlow",
3rd edition, chapter 11, 2022, https://github.com/ageron/handson-ml3
Revised: 0.2.0
"""

import difflib
import inspect
import numbers
import re

import keras
import numpy as np

_ADAM = {"beta_1": 0.9, "beta_2": 0.999}

# name: (Keras class, learning rate, further hyper-parameters)
CHAPTER_OPTIMIZERS = {
    "sgd": (keras.optimizers.SGD, 0.001, {}),
    "momentum": (keras.optimizers.SGD, 0.001, {"momentum": 0.9}),
    "nesterov": (keras.optimizers.SGD, 0.001, {"momentum": 0.9, "nesterov": True}),
    "adagrad": (keras.optimizers.Adagrad, 0.001, {}),
    # Keras's default rate, which hardly moves: the chapter does not train Adadelta, and
    # its paper has no rate, which means 1.0.
    "adadelta": (keras.optimizers.Adadelta, 0.001, {"rho": 0.95}),
    "rmsprop": (keras.optimizers.RMSprop, 0.001, {"rho": 0.9}),
    "adam": (keras.optimizers.Adam, 0.001, _ADAM),
    "adamax": (keras.optimizers.Adamax, 0.001, _ADAM),
    "nadam": (keras.optimizers.Nadam, 0.001, _ADAM),
    # Keras's default decay, 0.004, is 400 times the chapter's.
    "adamw": (keras.optimizers.AdamW, 0.001, {**_ADAM, "weight_decay": 1e-5}),
}


def make_optimizer(
    name: str,
    learning_rate=None,
    *,
    clipvalue: float | None = None,
    clipnorm: float | None = None,
    global_clipnorm: float | None = None,
    adaptive: float | None = None,
    percentile: float | None = None,
    skip_nonfinite: bool = False,
    **options,
) -> keras.optimizers.Optimizer:
    """Return a fresh optimizer with the chapter's hyper-parameters, clipped or not.

    Fresh at each call, because a Keras optimizer belongs to the variables it has first
    seen. When you want Keras's defaults or another optimizer, call the Keras class.

    Where the table or an option names a `momentum` or `beta_1`, also one of 0, the
    optimizer is the class of that name in this file, which keeps it in a variable:
    read it with `float(optimizer.momentum)`, set it with `optimizer.momentum = 0.85`,
    at any time, also through a `ClippedOptimizer`. `sgd` and `rmsprop` without that
    option, `adagrad` and `adadelta` have none and are Keras's. A model saved with its
    optimizer loads where this file has been imported, or with `compile=False`.

    Example:

    ```python
    from recipes.optimizers import make_optimizer

    optimizer = make_optimizer("adamw", 3e-4, weight_decay=0.01, clipnorm=1.0)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    ```

    Args:
        name: A key of `CHAPTER_OPTIMIZERS`: sgd, momentum, nesterov, adagrad, adadelta,
            rmsprop, adam, adamax, nadam or adamw.
        learning_rate: Positive number or `LearningRateSchedule`; `None` takes the
            table's.
        clipvalue: See `ClippedOptimizer`, which is returned when this or one of the
            next five is given.
        clipnorm: See `ClippedOptimizer`.
        global_clipnorm: See `ClippedOptimizer`.
        adaptive: See `ClippedOptimizer`.
        percentile: See `ClippedOptimizer`.
        skip_nonfinite: See `ClippedOptimizer`.
        **options: Further arguments of the Keras class; they win over the table.
            `momentum`, `beta_1`, `beta_2`, `rho` and `ema_momentum` are at least 0 and
            below 1.

    Returns:
        The Keras optimizer, or a `ClippedOptimizer` around it.

    Raises:
        ValueError: Unknown name or option, an option out of its range, or a rate or
            bound that is no positive finite number.
    """
    if not isinstance(name, str) or name not in CHAPTER_OPTIMIZERS:
        nearest = difflib.get_close_matches(str(name).lower(), CHAPTER_OPTIMIZERS, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(
            f"`name` must be one of {', '.join(CHAPTER_OPTIMIZERS)}.{hint} "
            f"Received: name={name!r}"
        )
    keras_class, rate, hyper_parameters = CHAPTER_OPTIMIZERS[name]
    known = dict(inspect.signature(keras_class).parameters)
    known.pop("kwargs", None)
    unknown = [f"{key}={options[key]!r}" for key in options if key not in known]
    if unknown:
        raise ValueError(
            f"`options` must be arguments of keras.optimizers.{keras_class.__name__}. "
            f"Received: {', '.join(unknown)}"
        )
    if isinstance(learning_rate, keras.optimizers.schedules.LearningRateSchedule):
        rate = learning_rate
    elif learning_rate is not None:
        rate = _in_range("learning_rate", learning_rate, *_POSITIVE)
    given = {
        key: _checked_option(key, value, known[key].default)
        for key, value in options.items()
    }
    arguments = {**hyper_parameters, **given}
    if "momentum" in arguments or "beta_1" in arguments:
        keras_class = _WITH_MOMENTUM_VARIABLE[keras_class]
    optimizer = keras_class(rate, **arguments)
    clipping = {
        "clipvalue": clipvalue,
        "clipnorm": clipnorm,
        "global_clipnorm": global_clipnorm,
        "adaptive": adaptive,
        "percentile": percentile,
        "skip_nonfinite": skip_nonfinite,
    }
    if all(each is None or each is False for each in clipping.values()):
        return optimizer
    return ClippedOptimizer(optimizer, **clipping)


class _MomentumVariable:
    """Mixin for Keras's optimizers: the momentum lives in an optimizer variable.

    There the compiled step reads it anew each time, and a checkpoint keeps it.
    """

    @property
    def momentum(self):
        """The variable; assign a number, at least 0 and below 1, to change it."""
        return self._momentum

    @momentum.setter
    def momentum(self, momentum):
        name = "beta_1" if hasattr(type(self), "beta_1") else "momentum"
        momentum = _in_range(name, momentum, *_FRACTION)
        if hasattr(self, "_momentum"):
            self._momentum.assign(momentum)
        else:  # Keras's constructor assigns it first
            self._momentum = self.add_variable(
                (),
                keras.initializers.Constant(momentum),
                # 0.999 would be 1 in bfloat16.
                dtype=keras.backend.result_type(keras.config.floatx(), "float32"),
                aggregation="only_first_replica",
                name="momentum",
            )

    def get_config(self):
        """Return the constructor's arguments, with the momentum as it is now."""
        config = super().get_config()
        name = "momentum" if "momentum" in config else "beta_1"
        # The shortest number that gives the same float32: not 0.8999999761581421.
        momentum = keras.ops.convert_to_numpy(self._momentum + 0)
        return {**config, name: float(str(momentum))}


@keras.saving.register_keras_serializable(package="recipes")
class SGD(_MomentumVariable, keras.optimizers.SGD):
    """Keras's SGD with a `momentum` that can be changed while it trains.

        v <- momentum * v - rate * g,  w <- w + v
        with nesterov:                 w <- w + momentum * v - rate * g

    v is the velocity of the weight w, 0 at first, g the gradient. Keras's own step is
    written down again because it asks while tracing whether the momentum is 0; here the
    velocity is always there.
    """

    def build(self, variables):
        """Create the optimizer's variables."""
        if not self.built:
            keras.optimizers.Optimizer.build(self, variables)
            self.momentums = self.add_optimizer_variables(variables, "momentum")

    def update_step(self, gradient, variable, learning_rate):
        """Update one variable and its velocity."""
        learning_rate = keras.ops.cast(learning_rate, variable.dtype)
        momentum = keras.ops.cast(self.momentum, variable.dtype)
        velocity = self.momentums[self._get_variable_index(variable)]
        step = keras.ops.multiply(
            keras.ops.cast(gradient, variable.dtype), learning_rate
        )
        ahead = keras.ops.subtract(keras.ops.multiply(velocity, momentum), step)
        self.assign(velocity, ahead)
        if self.nesterov:
            ahead = keras.ops.subtract(keras.ops.multiply(velocity, momentum), step)
        self.assign_add(variable, ahead)


@keras.saving.register_keras_serializable(package="recipes")
class RMSprop(_MomentumVariable, keras.optimizers.RMSprop):
    """Keras's RMSprop with a `momentum` that can be changed while it trains.

        d <- rate * g / sqrt(v + epsilon)
        m <- momentum * m + d,  w <- w - m

    d is the step of RMSprop without momentum for the weight w, g the gradient, v the
    mean square that Keras keeps of it, less the squared mean if centered. Keras's own
    step is written down again for the same reason as in `SGD`.
    """

    def build(self, variables):
        """Create the optimizer's variables."""
        if not self.built:
            keras.optimizers.Optimizer.build(self, variables)
            names = ["velocity", "momentum"] + ["average_gradient"] * self.centered
            self._slots = self.add_optimizer_variables(variables, names)

    def update_step(self, gradient, variable, learning_rate):
        """Update one variable, its mean square and its momentum."""
        index = self._get_variable_index(variable)
        square, momentum, *average = (slots[index] for slots in self._slots)
        gradient = keras.ops.cast(gradient, variable.dtype)
        learning_rate = keras.ops.cast(learning_rate, variable.dtype)
        self.assign(square, self._mean(square, keras.ops.square(gradient)))
        spread = square
        if self.centered:
            self.assign(average[0], self._mean(average[0], gradient))
            spread = square - keras.ops.square(average[0])
        step = keras.ops.divide(
            keras.ops.multiply(learning_rate, gradient),
            keras.ops.sqrt(keras.ops.add(spread, self.epsilon)),
        )
        decay = keras.ops.cast(self.momentum, variable.dtype)
        self.assign(momentum, keras.ops.add(keras.ops.multiply(decay, momentum), step))
        self.assign_sub(variable, momentum)

    def _mean(self, mean, new):
        return keras.ops.add(
            keras.ops.multiply(self.rho, mean), keras.ops.multiply(1 - self.rho, new)
        )


@keras.saving.register_keras_serializable(package="recipes")
class Adam(_MomentumVariable, keras.optimizers.Adam):
    """Keras's Adam with a `beta_1` that can be changed while it trains.

    `momentum` is another name for it, and so in `Adamax`, `Nadam` and `AdamW`. The step
    is Keras's; 1 - beta_1 is now a float32, which changes a step by 3e-7 of its length.
    """

    beta_1 = _MomentumVariable.momentum


@keras.saving.register_keras_serializable(package="recipes")
class Adamax(_MomentumVariable, keras.optimizers.Adamax):
    """Keras's Adamax with a `beta_1` that can be changed while it trains."""

    beta_1 = _MomentumVariable.momentum


@keras.saving.register_keras_serializable(package="recipes")
class Nadam(_MomentumVariable, keras.optimizers.Nadam):
    """Keras's Nadam with a `beta_1` that can be changed while it trains."""

    beta_1 = _MomentumVariable.momentum

    def build(self, variables):
        """Create the optimizer's variables."""
        if not self.built:
            super().build(variables)
            # Keras's product of all momenta so far is of the weights' type, and
            # TensorFlow multiplies no float32 with a bfloat16.
            if self._u_product.dtype != self._momentum.dtype:
                self._u_product = keras.Variable(1.0, dtype=self._momentum.dtype)


@keras.saving.register_keras_serializable(package="recipes")
class AdamW(_MomentumVariable, keras.optimizers.AdamW):
    """Keras's AdamW with a `beta_1` that can be changed while it trains."""

    beta_1 = _MomentumVariable.momentum


_WITH_MOMENTUM_VARIABLE = {
    keras.optimizers.SGD: SGD,
    keras.optimizers.RMSprop: RMSprop,
    keras.optimizers.Adam: Adam,
    keras.optimizers.Adamax: Adamax,
    keras.optimizers.Nadam: Nadam,
    keras.optimizers.AdamW: AdamW,
}


@keras.saving.register_keras_serializable(package="recipes")
class ClippedOptimizer(keras.optimizers.Optimizer):
    """Clip the gradient, then hand it to the optimizer inside.

    The bounds are applied in this order, each to what the one before has left:

        clipvalue v:        g_i <- min(max(g_i, -v), v)   for each component i
        adaptive a:         g <- g * c / max(||g||, c)    for each unit's g,
                            c = a * max(||w||, 0.001),  w the unit's weights
        clipnorm c:         g <- g * c / max(||g||, c)    for each variable's g
        global_clipnorm c:  g <- g * c / max(n, c),  n = sqrt(sum of all ||g||^2)
        percentile p:       the same, c the p-th percentile of n in the last 100 steps

    The norms keep the direction (of each unit, of each variable, of the whole); the
    value does not. A gradient inside the bounds stays as it is to the last bit. What is
    clipped is the gradient of the whole batch: summed over replicas under
    `tf.distribute`, and over repeated ids of an embedding, for which the sparse
    gradient is made dense.

    A unit is one column of a Dense kernel, one filter of a convolution, one filter of
    one channel of a depthwise one, one row of an embedding, a bias as a whole. Its axes
    are read from the shape and the variable's path ("depthwise", "dwconv", "conv_dw",
    "transpose", "embeddings", the "query", "key" and "value" of attention);
    `unit_axes` corrects them where a name of your own does not tell.

    The percentile counts this step's n in; as long as fewer than 20 are known, it does
    not clip. Steps that are skipped, and an n that is 0 or not finite, are left out.

    NaN and infinity go through as in Keras: `clipvalue` turns infinity into the bound
    and keeps NaN, `adaptive` and `clipnorm` spoil that unit or variable, the last two
    turn every gradient into NaN. With `skip_nonfinite` such a step, and one whose norm
    has a square beyond float32 (1.8e19), changes nothing: not the weights, nor the
    inner optimizer's slots, averages and `iterations`, by which schedules go.

    Keras's optimizer alone is the right place for the bound when it accumulates
    gradients: there only it sees the accumulated one. With `LossScaleOptimizer` or
    `MultiOptimizer`, put this one inside. Bounds are fixed when training is first
    traced; changing the attribute later has no effect.

    Example:

    ```python
    import keras

    from recipes.optimizers import ClippedOptimizer

    optimizer = ClippedOptimizer(keras.optimizers.Lion(1e-4), clipnorm=1.0)
    weights = keras.Variable([0.0, 0.0])
    optimizer.apply([keras.ops.convert_to_tensor([3.0, 4.0])], [weights])
    print(optimizer.last_gradient_norm)  # 5.0
    print(optimizer.clipped_fraction)  # 1.0
    ```

    Args:
        inner: The Keras optimizer to feed. Its learning rate, iterations, weight decay
            and averaging work through this one; the rest is at `.inner_optimizer`.
        clipvalue: Bound on the size of each component; positive.
        clipnorm: Bound on the Euclidean norm of each variable's gradient; positive.
        global_clipnorm: Bound on the norm over all gradients together; positive.
        adaptive: Bound on the norm of each unit's gradient in units of the norm of its
            weights; positive. The paper took 0.01 to 0.16, the smaller the larger the
            batch.
        percentile: Above 0 and below 100. 90 cuts the rare large steps; AutoClip's
            paper took 10, which makes most steps about equally long.
        skip_nonfinite: Whether to leave out a step whose gradient is not finite. It
            costs a copy of the weights and slots in each step.
        unit_axes: For `adaptive`, {part of a variable's path: the axes of the kernel
            that number the units, or `None` to leave that variable alone}, such as
            {"my_depthwise/kernel": (-2, -1), "logits": None}: the paper does not clip
            the last layer. The first part that is found counts.

    Raises:
        ValueError: Neither bound nor `skip_nonfinite`, a bound out of its range, or an
            `inner` that clips, wraps or accumulates by itself. When the variables are
            known: a part of `unit_axes` that is in no path, or an axis that is not
            there.

    Reference: Pascanu, Mikolov, Bengio, 2013, https://arxiv.org/abs/1211.5063
    Reference: Brock, De, Smith, Simonyan, "High-Performance Large-Scale Image
        Recognition Without Normalization", 2021, https://arxiv.org/abs/2102.06171
    Reference: Seetharaman, Wichern, Pardo, Le Roux, "AutoClip: Adaptive Gradient
        Clipping for Source Separation Networks", 2020,
        https://arxiv.org/abs/2007.14469
    """

    def __init__(
        self,
        inner: keras.optimizers.Optimizer,
        *,
        clipvalue: float | None = None,
        clipnorm: float | None = None,
        global_clipnorm: float | None = None,
        adaptive: float | None = None,
        percentile: float | None = None,
        skip_nonfinite: bool = False,
        unit_axes: dict | None = None,
    ):
        _check_inner(inner)
        # A placeholder: the rate that counts is the inner one's.
        super().__init__(learning_rate=0.0)
        self.clipvalue = _bound("clipvalue", clipvalue)
        self.clipnorm = _bound("clipnorm", clipnorm)
        self.global_clipnorm = _bound("global_clipnorm", global_clipnorm)
        self.adaptive = _bound("adaptive", adaptive)
        self.percentile = _bound("percentile", percentile, _PERCENTAGE)
        self.skip_nonfinite = _checked_option("skip_nonfinite", skip_nonfinite, False)
        if not (any(self._bounds().values()) or self.skip_nonfinite):
            nothing = [f"{name}=None" for name in self._bounds()]
            raise ValueError(
                f"At least one of {', '.join(self._bounds())} and skip_nonfinite must "
                f"be given. Received: {', '.join(nothing)}, skip_nonfinite=False"
            )
        self.unit_axes = _checked_unit_axes(unit_axes, self.adaptive)
        # Unscaling has to come before clipping, so it moves from there to here.
        self.loss_scale_factor = inner.loss_scale_factor
        inner.loss_scale_factor = None
        self.inner_optimizer = inner  # the name Keras's callbacks look for

        def add(name, shape=(), dtype=None):
            return self.add_variable(
                shape, dtype=dtype, aggregation="only_first_replica", name=name
            )

        self._gradient_norm = add("gradient_norm", dtype="float32")
        self._updates = add("updates", dtype="int")
        self._clipped_updates = add("clipped_updates", dtype="int")
        self._skipped_steps = add("skipped_steps", dtype="int")
        if self.percentile is not None:
            self._recent_norms = add("recent_norms", (_WINDOW,), "float32")
            self._num_norms = add("num_norms", dtype="int")

    @property
    def last_gradient_norm(self):
        """Norm over all gradients of the last step, before clipping; 0.0 at first."""
        return _scalar(self._gradient_norm)

    @property
    def clipped_fraction(self):
        """Share, 0 to 1, of the updates on which clipping changed something.

        Of all so far, or of those since `reset_clipped_fraction` was last called.
        """
        return _scalar(self._clipped_updates) / max(_scalar(self._updates), 1.0)

    @property
    def skipped_steps(self):
        """Number of steps so far that `skip_nonfinite` has left out."""
        return int(_scalar(self._skipped_steps))

    def reset_clipped_fraction(self):
        """Let `clipped_fraction` count from here on."""
        self._updates.assign(0)
        self._clipped_updates.assign(0)

    @property
    def variables(self):
        """This optimizer's own variables, then the inner one's."""
        return super().variables + self.inner_optimizer.variables

    @property
    def learning_rate(self):
        """The inner optimizer's learning rate."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate):
        self.inner_optimizer.learning_rate = learning_rate

    @property
    def momentum(self):
        """The inner optimizer's momentum: a variable if `make_optimizer` made it."""
        return self.inner_optimizer.momentum

    @momentum.setter
    def momentum(self, momentum):
        _set_variable(self.inner_optimizer, "momentum", momentum)

    @property
    def beta_1(self):
        """The inner optimizer's `beta_1`: a variable if `make_optimizer` made it."""
        return self.inner_optimizer.beta_1

    @beta_1.setter
    def beta_1(self, beta_1):
        _set_variable(self.inner_optimizer, "beta_1", beta_1)

    @property
    def weight_decay(self):
        """The inner optimizer's decoupled weight decay."""
        return self.inner_optimizer.weight_decay

    @weight_decay.setter
    def weight_decay(self, weight_decay):
        # Keras's constructor sets it before there is an inner optimizer.
        if hasattr(self, "inner_optimizer"):
            self.inner_optimizer.weight_decay = weight_decay

    @property
    def iterations(self):
        """The inner optimizer's step count."""
        return self.inner_optimizer.iterations

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        """Pass on to the inner optimizer."""
        self.inner_optimizer.exclude_from_weight_decay(var_list, var_names)

    def finalize_variable_values(self, var_list):
        """Pass on to the inner optimizer."""
        self.inner_optimizer.finalize_variable_values(var_list)

    def set_weights(self, weights):
        """Set all variables, in the order of `variables`."""
        num_own = len(super().variables)
        super().set_weights(weights[:num_own])
        self.inner_optimizer.set_weights(weights[num_own:])

    def build(self, variables):
        """Create the inner optimizer's variables."""
        if self.built:
            return
        _check_unit_axes_fit(self.unit_axes, variables)
        self.inner_optimizer.build(variables)
        super().build(variables)

    def apply(self, grads, trainable_variables=None):
        """Clip `grads` and let the inner optimizer take its step with them."""
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
            self.build(trainable_variables)
        grads = list(grads)
        variables = trainable_variables or self._trainable_variables
        # A float8 scale travels as a "gradient" to be assigned: nothing to clip.
        kept = [
            i
            for i, (g, v) in enumerate(zip(grads, variables, strict=False))
            if g is not None and not getattr(v, "overwrite_with_gradient", False)
        ]
        usable = None
        if kept:
            clipped, usable = self._clip(
                [grads[i] for i in kept], [variables[i] for i in kept]
            )
            for i, gradient in zip(kept, clipped, strict=True):
                grads[i] = gradient
        if self.skip_nonfinite and usable is not None:
            state = [*variables, *self.inner_optimizer.variables]
            before = [keras.ops.copy(variable) for variable in state]
            self.inner_optimizer.apply(grads, trainable_variables)
            # A selection, because under `tf.distribute` no branch may hold an update.
            _take_back_unless(usable, state, before)
        else:
            self.inner_optimizer.apply(grads, trainable_variables)

    def _clip(self, gradients, variables):
        """Return the clipped gradients, and whether a step may be taken with them."""
        gradients, num_replicas = _whole_gradients(gradients, variables)
        if self.loss_scale_factor is not None:
            gradients = [g / self.loss_scale_factor for g in gradients]
        norms, norm = _norms(gradients)
        self._gradient_norm.assign(norm)
        usable = True
        if self.skip_nonfinite:
            usable = keras.ops.isfinite(keras.ops.square(norm))
            skipped = keras.ops.logical_not(usable)
            self._skipped_steps.assign_add(keras.ops.cast(skipped, "int32"))

        exceeded = []  # one truth value for each thing that was compared with a bound
        if self.clipvalue is not None:
            bound = self.clipvalue
            exceeded += [keras.ops.any(keras.ops.abs(g) > bound) for g in gradients]
            gradients = [keras.ops.clip(g, -bound, bound) for g in gradients]
        if self.adaptive is not None:
            gradients, long_units = self._clip_units(gradients, variables)
            exceeded += long_units
        if self.clipvalue is not None or self.adaptive is not None:
            norms, norm = _norms(gradients)
        factors, long_ones = self._factors(norms, norm, usable)
        exceeded += long_ones
        if factors:
            factor = keras.ops.ones_like(norms)
            for each in factors:
                factor = keras.ops.multiply(factor, each)
            gradients = [_scale(g, factor[i]) for i, g in enumerate(gradients)]

        if exceeded:
            clipped = keras.ops.any(keras.ops.stack(exceeded))
            clipped = keras.ops.logical_and(clipped, usable)
            self._clipped_updates.assign_add(keras.ops.cast(clipped, "int32"))
        self._updates.assign_add(keras.ops.cast(usable, "int32"))
        self._iterations.assign_add(1)
        if num_replicas > 1:
            # Keras adds up what the replicas hand in: 1/n of the same from each.
            gradients = [keras.ops.divide(g, num_replicas) for g in gradients]
        return gradients, usable

    def _clip_units(self, gradients, variables):
        """Bound each unit's gradient by `adaptive`; return what exceeded it, too."""
        clipped, exceeded = list(gradients), []
        for i, variable in enumerate(variables):
            axes = _axes_of_a_unit(variable, self.unit_axes)
            if axes is not None:
                weights = keras.ops.convert_to_tensor(variable)
                size = keras.ops.sqrt(_squares(weights, axes))
                bound = self.adaptive * keras.ops.maximum(size, 1e-3)
                norms = _norm(gradients[i], axes)
                exceeded += [keras.ops.any(keras.ops.greater(norms, bound))]
                clipped[i] = _scale(gradients[i], _factor(norms, bound))
        return clipped, exceeded

    def _factors(self, norms, norm, usable):
        """Return what each bound on a norm multiplies by, and what exceeded it.

        Factors are numbers, or one for each variable.
        """
        factors, exceeded = [], []
        if self.clipnorm is not None:
            exceeded += [keras.ops.any(norms > self.clipnorm)]
            factors += [_factor(norms, self.clipnorm)]
            norm = _norm(norms * factors[0])
        if self.global_clipnorm is not None or self.percentile is not None:
            # As in Keras, infinity must not turn into a step of zeros elsewhere.
            norm = keras.ops.where(keras.ops.isfinite(norm), norm, float("nan"))
        if self.global_clipnorm is not None:
            exceeded += [norm > self.global_clipnorm]
            factors += [_factor(norm, self.global_clipnorm)]
            norm = norm * factors[-1]
        if self.percentile is not None:
            bound = self._recent_percentile(norm, usable)
            exceeded += [keras.ops.greater(norm, bound)]
            factors += [_factor(norm, bound)]
        return factors, exceeded

    def _recent_percentile(self, norm, usable):
        """Take the norm into the window; return the bound."""
        norm = keras.ops.cast(norm, "float32")
        enters = keras.ops.logical_and(norm > 0, keras.ops.isfinite(norm))
        enters = keras.ops.logical_and(enters, usable)
        place = keras.ops.equal(keras.ops.arange(_WINDOW), self._num_norms % _WINDOW)
        place = keras.ops.logical_and(place, enters)
        window = keras.ops.where(place, norm, self._recent_norms + 0)
        self._recent_norms.assign(window)
        self._num_norms.assign_add(keras.ops.cast(enters, "int32"))

        num_known = keras.ops.minimum(self._num_norms + 0, _WINDOW)
        is_known = keras.ops.less(keras.ops.arange(_WINDOW), num_known)
        ordered = keras.ops.sort(keras.ops.where(is_known, window, _HUGE))
        # As in numpy: linear between the two nearest.
        last = keras.ops.cast(keras.ops.maximum(num_known - 1, 0), "float32")
        position = self.percentile / 100 * last
        below, above = keras.ops.floor(position), keras.ops.ceil(position)
        low = keras.ops.take(ordered, keras.ops.cast(below, "int32"))
        high = keras.ops.take(ordered, keras.ops.cast(above, "int32"))
        bound = low + (position - below) * (high - low)
        return keras.ops.where(num_known < _WARMUP, _HUGE, bound)

    def _bounds(self):
        names = ("clipvalue", "clipnorm", "global_clipnorm", "adaptive", "percentile")
        return {name: getattr(self, name) for name in names}

    def get_config(self):
        """Return the constructor's arguments."""
        inner = keras.saving.serialize_keras_object(self.inner_optimizer)
        inner["config"]["loss_scale_factor"] = self.loss_scale_factor
        return {
            "inner": inner,
            **self._bounds(),
            "skip_nonfinite": self.skip_nonfinite,
            "unit_axes": {part: axes and list(axes) for part, axes in self.unit_axes},
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Rebuild the inner optimizer, then this one around it."""
        inner = keras.saving.deserialize_keras_object(
            config["inner"], custom_objects=custom_objects
        )
        return cls(**{**config, "inner": inner})


def _whole_gradients(gradients, variables):
    """The batch's dense gradients, and the number of replicas that share it."""
    num_replicas = 1
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # Repeated ids are rows of their own in an IndexedSlices: add them up.
        gradients = [
            tf.math.unsorted_segment_sum(g.values, g.indices, variable.shape[0])
            if isinstance(g, tf.IndexedSlices)
            else g
            for g, variable in zip(gradients, variables, strict=True)
        ]
        replica = tf.distribute.get_replica_context()
        if replica is not None and replica.num_replicas_in_sync > 1:
            num_replicas = replica.num_replicas_in_sync
            gradients = replica.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
    return [keras.ops.convert_to_tensor(g) for g in gradients], num_replicas


# Of the percentile: the norms that are kept, and those it waits for.
_WINDOW = 100
_WARMUP = 20

# Where in a variable's path: the axes that number its units, if it has 3 or more.
_AXES_OF_UNITS = {
    "depthwise|dwconv|conv_dw": (-2, -1),  # (height, width, channels, multiplier)
    "transpose": (-2,),  # (height, width, filters, channels)
    "(^|/)(query|key|value)/kernel$": (-2, -1),  # (features, heads, size)
}

# The smallest float32 whose reciprocal is one, too: 2 ** -126.
_TINY = float(np.finfo(np.float32).tiny)
_HUGE = float(np.finfo(np.float32).max)


def _axes_of_a_unit(variable, unit_axes):
    """The axes that the norm of one unit sums over; None: leave the variable alone."""
    path = getattr(variable, "path", variable.name)
    rank = len(variable.shape)
    found = [axes for part, axes in unit_axes if part in path]
    if found:
        numbering = found[0]
    elif rank < 2 or path.endswith("bias"):
        numbering = ()
    elif path.endswith("embeddings"):
        numbering = (0,)
    else:
        kinds = _AXES_OF_UNITS.items() if rank > 2 else ()
        found = [axes for pattern, axes in kinds if re.search(pattern, path)]
        numbering = found[0] if found else (-1,)
    if numbering is None:
        return None
    numbering = [axis % rank for axis in numbering]
    return tuple(axis for axis in range(rank) if axis not in numbering)


def _squares(x, axes=None):
    x = keras.ops.cast(x, keras.backend.result_type(x.dtype, "float32"))
    return keras.ops.sum(keras.ops.square(x), axis=axes, keepdims=axes is not None)


def _norm(x, axes=None):
    # In units of the largest entry: the square of 1e20 is infinite in float32.
    x = keras.ops.cast(x, keras.backend.result_type(x.dtype, "float32"))
    unit = keras.ops.max(
        keras.ops.abs(x), axis=axes, initial=0.0, keepdims=axes is not None
    )
    unit = keras.ops.clip(unit, _TINY, 1.0 / _TINY)
    return unit * keras.ops.sqrt(_squares(x / unit, axes))


def _norms(gradients):
    """The norm of each gradient, in one tensor, and the norm of all."""
    squares = keras.ops.stack([_squares(g) for g in gradients])
    total = keras.ops.sum(squares)

    def scaled():
        norms = keras.ops.stack([_norm(g) for g in gradients])
        return norms, _norm(norms)

    # Scaling costs two more passes, and only very large or small ones need it.
    return keras.ops.cond(
        keras.ops.logical_and(total > 1e-30, keras.ops.isfinite(total)),
        lambda: (keras.ops.sqrt(squares), keras.ops.sqrt(total)),
        scaled,
    )


def _factor(norm, bound):
    # Exactly 1 when the norm is within the bound.
    return keras.ops.divide(bound, keras.ops.maximum(norm, bound))


def _scale(gradient, factor):
    return keras.ops.cast(keras.ops.multiply(gradient, factor), gradient.dtype)


def _take_back_unless(usable, variables, before):
    """Give the variables the values they had before, unless `usable`."""
    for variable, old in zip(variables, before, strict=True):
        new = keras.ops.convert_to_tensor(variable)
        _part_of_this_replica(variable).assign(keras.ops.where(usable, new, old))


def _part_of_this_replica(variable):
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # Each replica assigns its own part, as none may assign the whole of a slot.
        replica = tf.distribute.get_replica_context()
        if replica is not None and replica.num_replicas_in_sync > 1:
            parts = replica.strategy.experimental_local_results(variable.value)
            if len(parts) > 1:
                return parts[tf.get_static_value(replica.replica_id_in_sync_group)]
    return variable


def _set_variable(optimizer, name, value):
    if not isinstance(getattr(optimizer, name), keras.Variable):
        raise TypeError(
            f"`{name}` of {type(optimizer).__name__} is fixed once its step is traced. "
            "Use the optimizer that make_optimizer returns."
        )
    setattr(optimizer, name, value)


def _scalar(variable):
    # Adding 0 gives a plain tensor, also of a variable that is mirrored over replicas.
    return float(variable + 0)


# (what it must be, least, most); beyond these limits a float32 is 0, 1 or infinite.
_POSITIVE = ("a positive finite number", _TINY, 1.0 / _TINY)
# Squares of norms below 1e-18 are 0.
_BOUND = ("a positive finite number, at least 1e-15", 1e-15, 1.0 / _TINY)
_PERCENTAGE = ("a number, above 0 and below 100", 1e-6, 100.0 * (1 - 2.0**-24))
_NOT_NEGATIVE = ("a finite number, 0 or more", 0.0, 1.0 / _TINY)
_FRACTION = ("a number, at least 0 and below 1", 0.0, 1.0 - 2.0**-24)

_OPTIONS = {
    "momentum": _FRACTION,
    "beta_1": _FRACTION,
    "beta_2": _FRACTION,
    "rho": _FRACTION,
    "ema_momentum": _FRACTION,
    "epsilon": _NOT_NEGATIVE,
    "initial_accumulator_value": _NOT_NEGATIVE,
    "weight_decay": _NOT_NEGATIVE,
    "loss_scale_factor": _POSITIVE,
    "gradient_accumulation_steps": ("a whole number, 2 or more", 2, 2**31),
    "ema_overwrite_frequency": ("a whole number, 1 or more", 1, 2**31),
}


def _in_range(name, value, kind, least, most):
    """Return `value` as a number of the type of `least`, if it is between the two."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    whole = isinstance(least, int)
    if not (is_number and least <= value <= most) or (whole and value != int(value)):
        raise ValueError(f"`{name}` must be {kind}. Received: {name}={value!r}")
    return type(least)(value)


def _bound(name, value, limits=_BOUND):
    return None if value is None else _in_range(name, value, *limits)


def _checked_unit_axes(unit_axes, adaptive):
    """Return the pairs of `unit_axes` as a tuple."""
    pairs = unit_axes.items() if isinstance(unit_axes, dict) else ()
    fine = unit_axes is None or isinstance(unit_axes, dict)
    fine = fine and not (unit_axes and adaptive is None)
    for part, axes in pairs:
        fine = fine and isinstance(part, str) and part != ""
        fine = fine and (axes is None or isinstance(axes, (tuple, list)))
        fine = fine and all(isinstance(axis, numbers.Integral) for axis in axes or ())
    if not fine:
        raise ValueError(
            "`unit_axes` must be a dictionary from parts of the variables' paths to "
            "lists of whole numbers or None, and needs `adaptive`. "
            f"Received: unit_axes={unit_axes!r}"
        )
    return tuple(
        (part, None if axes is None else tuple(map(int, axes))) for part, axes in pairs
    )


def _check_unit_axes_fit(unit_axes, variables):
    for part, axes in unit_axes:
        found = [v for v in variables if part in getattr(v, "path", v.name)]
        ranks = [len(variable.shape) for variable in found]
        if not found or any(not -r <= axis < r for r in ranks for axis in axes or ()):
            raise ValueError(
                "`unit_axes` must name parts of the variables' paths and axes that "
                f"they have. Received: unit_axes={dict(unit_axes)!r}, with the paths "
                f"{', '.join(getattr(v, 'path', v.name) for v in variables)}"
            )


def _checked_option(name, value, default):
    """Return an option as Keras takes it, if it is in its range."""
    if name in _OPTIONS and not (value is None and default is None):
        return _in_range(name, value, *_OPTIONS[name])
    if isinstance(default, bool) and not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"`{name}` must be True or False. Received: {name}={value!r}")
    return bool(value) if isinstance(default, bool) else value


def _check_inner(inner):
    kind = type(inner).__name__
    wrappers = (keras.optimizers.LossScaleOptimizer, keras.optimizers.MultiOptimizer)
    if not isinstance(inner, keras.optimizers.Optimizer):
        problem = "must be a Keras optimizer"
    elif isinstance(inner, wrappers):
        problem = f"must be plain: put the ClippedOptimizer inside the {kind} instead"
    elif (inner.clipvalue, inner.clipnorm, inner.global_clipnorm) != (None,) * 3:
        problem = "would clip a second time: give all bounds to one ClippedOptimizer"
    elif inner.gradient_accumulation_steps:
        problem = (
            "accumulates gradients, and each small batch would be clipped instead of "
            "their mean: give the bound to the Keras optimizer itself"
        )
    else:
        return
    raise ValueError(f"`inner` {problem}. Received: inner={kind}")
