"""The chapter's ten optimizers by name, and gradient clipping that holds everywhere.

`make_optimizer` builds a Keras optimizer from one visible table of hyper-parameters, so
that runs differ in the optimizer and in nothing else. One rate does not suit all ten:
tune it before you call one of them better. Its momentum can be changed while it trains:
in Keras 3.15 `optimizer.momentum = 0.5` is ignored once the step is compiled; here it
holds from the next step on, as with the learning rate.

`ClippedOptimizer` bounds the gradient before any optimizer sees it. Use it against
exploding gradients: recurrent or very deep networks, large rates, a loss that jumps.
Keras's own `clipnorm` is enough on one device with dense gradients of moderate size.
Keras 3.15 clips each replica before their gradients are added, clips the rows of an
embedding once per repeated id, lets squares overflow near 1e20, and takes a bound of 0
for "no clipping"; here none of that happens, bounds may be combined, and the norm can
be read while training. Clipping does not cure vanishing gradients or NaN.

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
    name,
    learning_rate=None,
    *,
    clipvalue=None,
    clipnorm=None,
    global_clipnorm=None,
    **options,
):
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
        clipvalue: See `ClippedOptimizer`, which is returned when a bound is given.
        clipnorm: See `ClippedOptimizer`.
        global_clipnorm: See `ClippedOptimizer`.
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
        rate = _positive_or_none("learning_rate", learning_rate)
    given = {
        key: _checked_option(key, value, known[key].default)
        for key, value in options.items()
    }
    arguments = {**hyper_parameters, **given}
    if "momentum" in arguments or "beta_1" in arguments:
        keras_class = _WITH_MOMENTUM_VARIABLE[keras_class]
    optimizer = keras_class(rate, **arguments)
    if clipvalue is None and clipnorm is None and global_clipnorm is None:
        return optimizer
    return ClippedOptimizer(
        optimizer,
        clipvalue=clipvalue,
        clipnorm=clipnorm,
        global_clipnorm=global_clipnorm,
    )


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
        clipnorm c:         g <- g * c / max(||g||, c)    for each variable's g
        global_clipnorm c:  g <- g * c / max(n, c),  n = sqrt(sum of all ||g||^2)

    The norms keep the direction (of each variable, of the whole); the value does not. A
    gradient inside the bounds stays as it is to the last bit. What is clipped is the
    gradient of the whole batch: summed over replicas under `tf.distribute`, and over
    repeated ids of an embedding, for which the sparse gradient is made dense.

    NaN and infinity go through as in Keras: `clipvalue` turns infinity into the bound
    and keeps NaN, `clipnorm` spoils that variable, `global_clipnorm` turns every
    gradient into NaN. Keras's optimizer alone is enough, and the right place for the
    bound, when it accumulates gradients: there only it sees the accumulated one.

    With `LossScaleOptimizer` or `MultiOptimizer`, put this one inside. Bounds are fixed
    when training is first traced; changing the attribute later has no effect.

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

    Raises:
        ValueError: No bound, a bound that is no positive finite number, or an `inner`
            that clips, wraps or accumulates by itself.

    Reference: Pascanu, Mikolov, Bengio, 2013, https://arxiv.org/abs/1211.5063
    """

    def __init__(self, inner, *, clipvalue=None, clipnorm=None, global_clipnorm=None):
        _check_inner(inner)
        # A placeholder: the rate that counts is the inner one's.
        super().__init__(learning_rate=0.0)
        self.clipvalue = _positive_or_none("clipvalue", clipvalue)
        self.clipnorm = _positive_or_none("clipnorm", clipnorm)
        self.global_clipnorm = _positive_or_none("global_clipnorm", global_clipnorm)
        if not (self.clipvalue or self.clipnorm or self.global_clipnorm):
            raise ValueError(
                "At least one of `clipvalue`, `clipnorm` and `global_clipnorm` must be "
                "given. Received: clipvalue=None, clipnorm=None, global_clipnorm=None"
            )
        # Unscaling has to come before clipping, so it moves from there to here.
        self.loss_scale_factor = inner.loss_scale_factor
        inner.loss_scale_factor = None
        self.inner_optimizer = inner  # the name Keras's callbacks look for
        self._gradient_norm = self.add_variable(
            (), aggregation="only_first_replica", name="gradient_norm"
        )
        self._clipped_steps = self.add_variable(
            (), dtype="int", aggregation="only_first_replica", name="clipped_steps"
        )

    @property
    def last_gradient_norm(self):
        """Norm over all gradients of the last step, before clipping; 0.0 at first."""
        return _scalar(self._gradient_norm)

    @property
    def clipped_fraction(self):
        """Share, 0 to 1, of all steps so far on which clipping changed something."""
        return _scalar(self._clipped_steps) / max(_scalar(self._iterations), 1.0)

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
        """Same as the inner optimizer's."""
        self.inner_optimizer.exclude_from_weight_decay(var_list, var_names)

    def finalize_variable_values(self, var_list):
        """Same as the inner optimizer's."""
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
        if kept:
            clipped = self._clip([grads[i] for i in kept], [variables[i] for i in kept])
            for i, gradient in zip(kept, clipped, strict=True):
                grads[i] = gradient
        self.inner_optimizer.apply(grads, trainable_variables)

    def _clip(self, gradients, variables):
        gradients, num_replicas = _whole_gradients(gradients, variables)
        if self.loss_scale_factor is not None:
            gradients = [g / self.loss_scale_factor for g in gradients]
        clipped = gradients
        if self.clipvalue is not None:
            clipped = [
                keras.ops.clip(g, -self.clipvalue, self.clipvalue) for g in clipped
            ]
        if self.clipnorm is not None:
            clipped = [_shrink(g, _norm(g), self.clipnorm) for g in clipped]
        if self.global_clipnorm is not None:
            norm = _global_norm(clipped)
            # As in Keras, infinity must not turn into a step of zeros elsewhere.
            norm = keras.ops.where(keras.ops.isfinite(norm), norm, float("nan"))
            clipped = [_shrink(g, norm, self.global_clipnorm) for g in clipped]

        changed = [
            keras.ops.any(keras.ops.not_equal(before, after))
            for before, after in zip(gradients, clipped, strict=True)
        ]
        self._gradient_norm.assign(_global_norm(gradients))
        any_changed = keras.ops.any(keras.ops.stack(changed))
        self._clipped_steps.assign_add(keras.ops.cast(any_changed, "int32"))
        self._iterations.assign_add(1)
        # Keras adds up what the replicas hand in: 1/n of the same from each.
        return [keras.ops.divide(g, num_replicas) for g in clipped]

    def get_config(self):
        """Return the constructor's arguments."""
        inner = keras.saving.serialize_keras_object(self.inner_optimizer)
        inner["config"]["loss_scale_factor"] = self.loss_scale_factor
        return {
            "inner": inner,
            "clipvalue": self.clipvalue,
            "clipnorm": self.clipnorm,
            "global_clipnorm": self.global_clipnorm,
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


# The smallest float32 whose reciprocal is one, too: 2 ** -126.
_TINY = float(np.finfo(np.float32).tiny)


def _norm(x):
    # In units of the largest entry: the square of 1e20 is infinite in float32.
    x = keras.ops.cast(x, keras.backend.result_type(x.dtype, "float32"))
    unit = keras.ops.max(keras.ops.abs(x), initial=0.0)
    unit = keras.ops.clip(unit, _TINY, 1.0 / _TINY)
    return unit * keras.ops.sqrt(keras.ops.sum(keras.ops.square(x / unit)))


def _global_norm(gradients):
    return _norm(keras.ops.stack([_norm(g) for g in gradients]))


def _shrink(gradient, norm, bound):
    # The factor is exactly 1 when the norm is within the bound.
    factor = bound / keras.ops.maximum(norm, bound)
    return keras.ops.cast(keras.ops.multiply(gradient, factor), gradient.dtype)


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


def _positive_or_none(name, value):
    return None if value is None else _in_range(name, value, *_POSITIVE)


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
