"""Reuse the layers of a trained model, and freeze them so that they are really frozen.

`reuse` clones a trained model without its last layers and puts a new head on the rest:
the clone shares nothing with the original, which stays as it is. `freeze` and
`unfreeze` switch layers off and on, and leave the model uncompiled, so that a forgotten
`compile` is an error: Keras (3.15) on TensorFlow trains on with the layers that were
trainable at the last `compile`, without a word. Nor does `model.trainable = True` there
thaw layers that were frozen one by one; `unfreeze` does. The optimizer of
`layerwise_optimizer` gives the reused layers and the new ones a learning rate each.

For a task with few data and a model trained on a similar task with many. Not for very
different tasks, nor where the data suffice to train from scratch: compare with that.

A frozen layer's BatchNormalization is in inference mode: it uses its moving statistics
and leaves them alone. Calling the reused part with `training=False`, as is often shown,
does *not* do that (3.15): `fit` overrules the argument, and the statistics move.

This file is longer than most: a clone is trusted only if all it cannot do is refused.

```python
import keras
import numpy as np

from recipes.transfer import freeze, layerwise_optimizer, reuse, unfreeze

trained = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu")])
trained.add(keras.layers.BatchNormalization())
trained.add(keras.layers.Dense(5, "softmax"))
x, y = np.random.rand(64, 4), np.random.randint(0, 2, 64)

head = keras.layers.Dense(1, "sigmoid", name="head")
model = reuse(trained, head=head)
freeze(model, until=head)
model.compile(keras.optimizers.SGD(0.1), "binary_crossentropy")
model.fit(x, y, epochs=2, verbose=0)  # the head settles

unfreeze(model, batch_normalization=False)
slow, fast = keras.optimizers.SGD(0.001), keras.optimizers.SGD(0.01)
optimizer = layerwise_optimizer(model, until=head, reused=slow, new=fast)
model.compile(optimizer, "binary_crossentropy")
model.fit(x, y, epochs=2, verbose=0)  # all of it
```

Reference: Yosinski, Clune, Bengio, Lipson, "How Transferable Are Features in Deep
Neural Networks?", 2014, https://arxiv.org/abs/1411.1792
Reference: Howard, Ruder, "Universal Language Model Fine-tuning for Text
Classification", 2018, https://arxiv.org/abs/1801.06146 (a learning rate per layer)
Revised: 0.2.0
"""

import numbers
import re

import keras
from keras import layers

_WITH_VOCABULARY = (
    layers.IntegerLookup,
    layers.StringLookup,
    layers.TextVectorization,
)


def reuse(
    model: keras.Model, *, drop_last: int = 1, head: keras.Layer | list[keras.Layer]
) -> keras.Model:
    """Clone a trained model, with new layers in place of its last ones.

    The clone has copies of the layers, with their weights, their adapted and moving
    statistics, frozen where they were frozen. Neither model changes the other. `head`
    itself, not a copy, is in the clone, so it can be given to `freeze`. Not for
    subclassed models, whose order of layers Keras does not know.

    Example:

    ```python
    import keras

    from recipes.transfer import reuse

    trained = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu")])
    trained.add(keras.layers.Dense(5, "softmax"))
    model = reuse(trained, head=keras.layers.Dense(1, "sigmoid", name="head"))
    model.summary()
    ```

    Args:
        model: A built Sequential or Functional model with one output. Its nested models
            are cloned, too. It is not changed.
        drop_last: How many of `model.layers`, counted from the end, are left out; 0 or
            more. A nested model counts as one. In a Functional model each of them must
            be called once, on the outputs of the one before.
        head: A new layer or a list of new layers, in their order, whose names are not
            yet in the model. After loading a model, give the head a name of its own:
            Keras begins to count its names anew.

    Returns:
        A model of the same class, not compiled.

    Raises:
        ValueError: If the model is unbuilt, subclassed or has several outputs, holds
            what a clone would lose (a vocabulary, weights that its layers' configs
            do not make), cannot be cut there, or `head` is not made of new layers.
    """
    is_plain = type(model).__module__.startswith("keras.") and _is_graph(model)
    if not is_plain or not model.built:
        raise ValueError(
            "`model` must be a built Sequential or Functional model, not subclassed. "
            f"Received: model={model}"
        )
    if len(model.outputs) != 1:
        raise ValueError(
            f"`model` must have one output. Received: a model with {len(model.outputs)}"
        )
    kept, features = _cut(model, drop_last)
    new_layers = _checked_head(head, kept)

    copies = {}  # by identity: a shared layer stays shared

    def copy_of(layer):
        if id(layer) not in copies:
            nested = _is_graph(layer)
            copy = _cloned(layer, copy_of) if nested else _copy_of_layer(layer)
            copies[id(layer)] = copy
        return copies[id(layer)]

    if isinstance(model, keras.Sequential):
        start = model.inputs[0]
        start = keras.Input(batch_shape=start.shape, dtype=start.dtype, name=start.name)
        result = keras.Sequential([start, *map(copy_of, kept), *new_layers])
    else:
        body = _cloned(keras.Model(model.input, features), copy_of)
        outputs = body.output
        for layer in new_layers:
            outputs = layer(outputs)
        result = keras.Model(body.input, outputs)
    for layer in kept:
        for leaf in _with_nested(layer):
            if not _is_graph(leaf):
                _copy_state(leaf, copy_of(leaf))
    return result


def freeze(model: keras.Model, until: keras.Layer | str | int):
    """Make the layers before `until` untrainable, and the model uncompiled.

    For the first epochs on a new task, while the new layers' gradients are large and
    random, or for good, where data are few. BatchNormalization in a frozen layer uses
    its moving statistics and does not change them. Call it on the model that you fit,
    not on a model nested in it: that one would be uncompiled, and its parent not.

    Example:

    ```python
    import keras

    from recipes.transfer import freeze

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu")])
    model.add(keras.layers.Dense(1, name="head"))
    freeze(model, until="head")
    model.compile("sgd", "mse")
    ```

    Args:
        model: A built model.
        until: The first layer that is *not* frozen: the layer itself, its name, or its
            index in `model.layers` (-1: all but the last one are frozen). It may lie
            inside a nested model. Layers from there on stay as they are; "before" is
            the order of `model.summary(expand_nested=True)`.

    Raises:
        ValueError: If the model is not built, or `until` is not one of its layers or
            has no layer with weights before it.
    """
    for layer in _layers_before(model, until):
        _switch(layer, False)
    model.compiled = False  # so that `fit` raises until `compile` is called


def unfreeze(model: keras.Model, *, batch_normalization: bool = True):
    """Make all layers of a model trainable, and the model uncompiled.

    To train a little more with all layers, at a tenth or a hundredth of the learning
    rate, once the new layers have settled. Give `compile` a new optimizer: the old one
    knows the old variables.

    Example:

    ```python
    import keras

    from recipes.transfer import unfreeze

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.layers[0].trainable = False
    unfreeze(model)
    model.compile(keras.optimizers.SGD(1e-4), "mse")
    ```

    Args:
        model: A built model.
        batch_normalization: `False` leaves BatchNormalization frozen where it is: for
            small batches and few data, whose statistics are worse than those that were
            learned.

    Raises:
        ValueError: If the model is not built, or `batch_normalization` is not a bool.
    """
    if not isinstance(batch_normalization, bool):
        raise ValueError(
            "`batch_normalization` must be True or False. "
            f"Received: batch_normalization={batch_normalization!r}"
        )
    _refuse_unbuilt(model)
    frozen = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, layers.BatchNormalization) and not layer.trainable
    ]
    _switch(model, True)
    if not batch_normalization:
        for layer in frozen:
            layer.trainable = False
    model.compiled = False  # so that `fit` raises until `compile` is called


def layerwise_optimizer(
    model: keras.Model,
    until: keras.Layer | str | int,
    *,
    reused: keras.optimizers.Optimizer,
    new: keras.optimizers.Optimizer,
) -> keras.optimizers.Optimizer:
    """Return an optimizer that trains the layers before `until` with one of its own.

    For fine-tuning: a small learning rate for layers that have learned already, a
    larger one for the new layers. It is a `keras.optimizers.MultiOptimizer`; the two
    have their own learning rates, schedules, slots and clipping, by global norm, too.
    Callbacks that set *the* learning rate find two of them in its `optimizers`.

    Example:

    ```python
    import keras

    from recipes.transfer import layerwise_optimizer

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu")])
    model.add(keras.layers.Dense(1, name="head"))
    slow, fast = keras.optimizers.Adam(1e-5), keras.optimizers.Adam(1e-3)
    optimizer = layerwise_optimizer(model, until="head", reused=slow, new=fast)
    model.compile(optimizer, "mse")
    ```

    Args:
        model: A built model, which will be compiled with it.
        until: The first layer that `new` trains, as in `freeze`.
        reused: Optimizer of the layers before `until`.
        new: Optimizer of the layers from `until` on.

    Returns:
        A new optimizer for `compile`.

    Raises:
        ValueError: If the model or `until` is refused as by `freeze`, `reused` and
            `new` are not two new optimizers, or layers of both kinds share a name.
    """
    for name, optimizer in (("reused", reused), ("new", new)):
        is_optimizer = isinstance(optimizer, keras.optimizers.Optimizer)
        if not is_optimizer or optimizer.built or reused is new:
            raise ValueError(
                f"`{name}` must be a new Keras optimizer, of its own. "
                f"Received: {name}={optimizer}"
            )
    # By the names of layers: a model has other paths after it was saved and loaded.
    names = [re.escape(layer.name) for layer in _layers_before(model, until)]
    before = {id(w) for layer in _layers_before(model, until) for w in layer.weights}
    pattern = f"(.*/)?({'|'.join(names)})/.*"
    optimizer_map = keras.optimizers.OptimizerMap(new, {pattern: reused})
    for weight in model.weights:
        if (optimizer_map[weight.path] is reused) != (id(weight) in before):
            raise ValueError(
                "`model` must have other names for the layers before `until` than for "
                f"those after. Received: {weight.path}, whose layer's name is in both"
            )
    return keras.optimizers.MultiOptimizer(optimizer_map)


def _switch(layer, trainable):
    # One by one: TensorFlow takes the value that a layer has already for no change,
    # and then Keras does not pass it on to the layers inside.
    for part in layer._flatten_layers():
        part.trainable = trainable


def _is_graph(layer):
    return isinstance(layer, keras.Sequential) or (
        isinstance(layer, keras.Model) and hasattr(layer, "outputs")
    )


def _with_nested(layer):
    """Yield a layer and, if it is a nested model, all that it holds."""
    yield layer
    for inner in layer.layers if _is_graph(layer) else ():
        yield from _with_nested(inner)


def _layers_before(model, until):
    _refuse_unbuilt(model)
    order = list(dict.fromkeys(_with_nested(model)))[1:]
    if isinstance(until, numbers.Integral) and not isinstance(until, bool):
        found = model.layers[until:][:1] if -len(model.layers) <= until else []
    else:
        name = until if isinstance(until, str) else None
        found = [layer for layer in order if until is layer or name == layer.name]
    before = order[: order.index(found[0])] if len(found) == 1 else []
    before = [layer for layer in before if not _is_graph(layer)]
    if not any(layer.weights for layer in before):
        raise ValueError(
            "`until` must be one layer of the model, its name or its index in "
            "`model.layers`, with weights in the layers before it. "
            f"Received: until={until!r}"
        )
    return before


def _cut(model, drop_last):
    """Return the layers that stay, and the tensor that leaves the last of them."""
    stack = [x for x in model.layers if not isinstance(x, layers.InputLayer)]
    is_integer = isinstance(drop_last, numbers.Integral)
    if not is_integer or isinstance(drop_last, bool) or not 0 <= drop_last < len(stack):
        raise ValueError(
            f"`drop_last` must be an integer from 0 to {len(stack) - 1}, to leave one "
            f"of the layers. Received: drop_last={drop_last!r}"
        )
    features = model.outputs[0]
    kept, dropped = stack[: len(stack) - drop_last], stack[len(stack) - drop_last :]
    if isinstance(model, keras.Sequential):
        return kept, None
    for layer in reversed(dropped):
        try:
            is_next = layer.output is features
            features = layer.input
        except AttributeError:  # called more than once
            is_next = False
        if not is_next or not isinstance(features, keras.KerasTensor):
            raise ValueError(
                "`drop_last` must count layers that are called once, each on the "
                "outputs of the one before, up to the output of the model. "
                f"Received: drop_last={drop_last}, with {layer.name} among them"
            )
    return kept, features


def _checked_head(head, kept):
    new_layers = list(head) if isinstance(head, (list, tuple)) else [head]
    are_layers = all(isinstance(layer, layers.Layer) for layer in new_layers)
    if not new_layers or not are_layers or any(layer.weights for layer in new_layers):
        raise ValueError(
            "`head` must be a layer or a list of layers, none of which has weights "
            f"yet. Received: head={head}"
        )
    names = {layer.name for layer in kept}
    taken = [layer.name for layer in new_layers if layer.name in names]
    if taken:
        raise ValueError(
            "`head` must have layers with other names than those that are reused: "
            f"give them a `name`. Received: {', '.join(taken)}"
        )
    return new_layers


def _copy_of_layer(layer):
    if isinstance(layer, _WITH_VOCABULARY):
        raise ValueError(
            "`model` must not hold a vocabulary, which a clone would not have. "
            f"Received: {layer.name} ({type(layer).__name__})"
        )
    return type(layer).from_config(layer.get_config())


def _cloned(model, copy_of):
    # clone_model would compile the clone as well, and fail at a loss it cannot look up.
    compiled, model.compiled = model.compiled, False
    try:
        clone = keras.models.clone_model(model, clone_function=copy_of)
    finally:
        model.compiled = compiled
    if type(clone) is not type(model):  # which may compute in its own way
        raise ValueError(
            "`model` must not hold subclassed models. "
            f"Received: {model.name} ({type(model).__name__})"
        )
    return clone


def _copy_state(layer, copy):
    weights, made = getattr(layer, "weights", ()), getattr(copy, "weights", ())
    if [weight.shape for weight in weights] != [weight.shape for weight in made]:
        raise ValueError(
            "`model` must have layers whose configs make their weights. "
            f"Received: {layer.name} ({type(layer).__name__})"
        )
    if weights:
        copy.set_weights(layer.get_weights())
        parts = zip(layer._flatten_layers(), copy._flatten_layers(), strict=True)
        for old, new in parts:  # a config tells it of the whole layer only
            new.trainable = old.trainable
    if isinstance(layer, layers.Normalization):
        copy.finalize_state()  # it computes with a copy of its weights


def _refuse_unbuilt(model):
    if not isinstance(model, keras.Model) or not model.built:
        raise ValueError(f"`model` must be a built model. Received: model={model}")
