"""Stop training anywhere, also by force, and go on as if nothing had happened.

`Resumable` keeps the state of a `fit` in a folder, after each epoch. Start the same
program again after a crash, a power cut or `kill -9`, and it goes on at the epoch that
was interrupted. With data in an order that depends on the epoch alone, and operations
that repeat to the bit, it ends with the same weights, the same History and the same
metrics as a run that was never stopped.

Keras's `BackupAndRestore` (3.15) keeps weights and optimizer. It loses the state of all
other callbacks, the seeds of dropout, the order of the data and History, writes its two
files one after the other, and shortens the next `fit` on the same model. Not needed
where a run is short, or where going on from the weights is enough: `ModelCheckpoint`.

This file is longer than most: what a resumed run would silently lose has to be refused.

```python
import keras
import numpy as np

from callbacks.resumable import Resumable

model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
model.compile("adam", loss="mse")
early = keras.callbacks.EarlyStopping("loss", patience=5)
resumable = Resumable("state", callbacks=[early])  # instead of early itself
x, y = np.ones((64, 3)), np.ones((64, 1))
history = model.fit(x, y, epochs=3, shuffle=False, verbose=0, callbacks=[resumable])
print(history.history["loss"])  # of all epochs, however often it was stopped
```

Reference: Keras, "BackupAndRestore", 3.15,
https://keras.io/api/callbacks/backup_and_restore
Revised: 0.2.0
"""

import json
import os
import pathlib
import re
import warnings

import keras
import numpy as np

# What Keras's own callbacks remember from one epoch to the next. Others have to offer
# `get_state` and `set_state`.
_KERAS_STATES = {
    keras.callbacks.EarlyStopping: (
        "best",
        "best_epoch",
        "best_weights",
        "stopped_epoch",
        "wait",
    ),
    keras.callbacks.LearningRateScheduler: (),
    keras.callbacks.ModelCheckpoint: (
        "best",
        "_batches_seen_since_last_saving",
        "_last_batch_seen",
    ),
    keras.callbacks.ReduceLROnPlateau: ("best", "cooldown_counter", "wait"),
    keras.callbacks.TerminateOnNaN: (),
}
# What every state has, whoever has written it.
_PARTS = {"epoch", "stopped", "settings", "data_epoch", "history", "history_epochs"}
_PARTS |= {"callbacks", "variables"}


class StateError(ValueError):
    """The folder holds a state, but none that this training can go on from."""


class Resumable(keras.callbacks.CallbackList):
    """Keep the state of training in a folder, and go on from there after a stop.

    For runs that may not reach their end in one piece. Kept are the weights, the
    statistics of normalization, the seeds of dropout, the optimizer's slots and step,
    the callbacks given here, the epoch of the data, and History. The interrupted epoch
    is trained again from its beginning.

    Give it to `fit` last in the list, with the other callbacks inside: it runs them,
    keeps their state, and restores it once `fit` has reset them. Outside and before it
    stand only callbacks that remember nothing, but may add to the logs.

    A state belongs to the k-th `fit` with this object, so a program that trains in
    several phases repeats none that is complete. In one process an interrupted `fit`
    goes on when it is called again. To train anew, delete the folder. The state is
    written beside the last one and moved there in one step; that one is kept, too, and
    taken with a warning where the newer is damaged.

    On several hosts, which need JAX, each process has a folder of its own, and all go
    on from the newest epoch that every one of them has: killed together they are at
    most one epoch apart.

    What is promised about the data:

    - `data` with an `epoch`, such as `recipes.fashion_mnist.epoch_batches`: the same
      batches as without the stop.
    - the same order in each epoch, by `shuffle=False`: the same batches.
    - arrays that `fit` shuffles, generators, `tf.data` that shuffles: the state is
      continued, but the batches are others. A warning says so.

    Not kept: Python's, NumPy's and the backend's global random states, which operations
    without a seed of their own draw from (but PyTorch's on the CPU, from which dropout
    does), and files that other callbacks write.

    Example:

    ```python
    import keras
    import numpy as np

    from callbacks.resumable import Resumable
    from recipes.fashion_mnist import epoch_batches

    keras.utils.set_random_seed(42)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", loss="mse")
    batches = epoch_batches(np.ones((64, 3)), np.ones((64, 1)), 16, seed=42)
    resumable = Resumable("exact_state", data=batches, settings={"epochs": 3})
    model.fit(batches, epochs=3, verbose=0, callbacks=[resumable])
    ```

    Args:
        directory: Folder for the state, about the size of weights and optimizer, twice.
            It is made, and nothing else should be in it.
        callbacks: The callbacks of this `fit` that remember something: with `get_state`
            and `set_state`, or Keras's EarlyStopping, LearningRateScheduler,
            ModelCheckpoint, ReduceLROnPlateau and TerminateOnNaN.
        data: What is given to `fit`, if it has an integer `epoch`, from which it
            derives the order of the batches: it is set when training goes on.
        settings: Dictionary of what must be the same for a state to be taken, such as
            the command line's options; anything that JSON can hold.
        verbose: 1 prints a line when training goes on from a state, 0 none.

    Raises:
        ValueError: An argument is none of these, or a callback's state could not be
            kept. At the start of training: the model is not built, or a callback is in
            the list of `fit` as well.
        StateError: At the start of training: the state has other settings, weights or
            callbacks, all files of it are damaged, or several hosts are more than an
            epoch apart. They are left as they are.
        OSError: The state cannot be written, with the reason. What was there before is
            still there.
    """

    def __init__(self, directory, *, callbacks=(), data=None, settings=None, verbose=1):
        if not isinstance(directory, (str, os.PathLike)) or not str(directory):
            raise ValueError(
                "`directory` must be the path of a folder. "
                f"Received: directory={directory!r}"
            )
        if not isinstance(callbacks, (list, tuple)):
            raise ValueError(
                f"`callbacks` must be a list. Received: callbacks={callbacks!r}"
            )
        for callback in callbacks:
            _check_has_state(callback)
        if data is not None and type(getattr(data, "epoch", None)) is not int:
            raise ValueError(
                "`data` must have an integer attribute `epoch`, as what epoch_batches "
                f"returns. Received: data={data!r}"
            )
        try:
            held = json.loads(json.dumps(settings, allow_nan=False))
        except (TypeError, ValueError):
            held = ()
        if held is not None and not isinstance(held, dict):
            raise ValueError(
                "`settings` must be None or a dictionary that JSON can hold. "
                f"Received: settings={settings!r}"
            )
        if not isinstance(verbose, int) or verbose not in (0, 1):
            raise ValueError(f"`verbose` must be 0 or 1. Received: verbose={verbose!r}")
        super().__init__(list(callbacks))
        self.directory = pathlib.Path(directory)
        self.data = data
        self.settings = held
        self.verbose = verbose
        self._num_fits = 0  # complete ones
        self._state = None  # what this fit goes on from

    def set_params(self, params):
        """Pass them on as a copy: who has the original is in the list of `fit`, too."""
        self._params_of_fit = params
        self._refuse_callbacks_of_fit()
        super().set_params(dict(params))

    def on_train_begin(self, logs=None):
        """Begin, or go on from the newest state that is whole."""
        if not self.params:
            raise ValueError(
                "`callbacks` must be a list: fit(callbacks=[resumable]). "
                f"Received: callbacks={type(self).__name__}(...)"
            )
        self._refuse_callbacks_of_fit()
        model = self.model
        if not model.built:
            raise ValueError(
                "Resumable needs a place for the weights, so the model must be built "
                "before fit(): give it a keras.Input, or call it on a batch. "
                f"Received: model={model}"
            )
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        self._state, path = self._newest_state_of_all()
        if self._state is None:
            self._make_directory()
            super().on_train_begin(logs)
        else:
            self._check_fits(path)
            self._restore(path, logs)
            if self.verbose:
                print(f"Resumable: going on from {path}")

    def on_epoch_begin(self, epoch, logs=None):
        """Keep the state before the first epoch, too."""
        self.model._initial_epoch = None  # or Keras shortens the next fit as well
        if self._state is not None:
            self._restore_history()
        elif not self.model.history.epoch:
            self._save(epoch, {}, [])
        super().on_epoch_begin(epoch, logs)

    def on_epoch_end(self, epoch, logs=None):
        """Keep the state, with what the callbacks add to the logs."""
        logs = {} if logs is None else logs
        # Keras's own loop (3.15) gives them a copy, which History would not see.
        for callback in self.callbacks:
            callback.on_epoch_end(epoch, logs)
        # History itself comes after this callback.
        history = self.model.history
        columns = {name: list(values) for name, values in history.history.items()}
        for name, value in logs.items():
            columns.setdefault(name, []).append(value)
        self._save(epoch + 1, columns, [*history.epoch, epoch])

    def on_train_end(self, logs=None):
        """Let the next `fit` have a state of its own."""
        self.model._initial_epoch = None
        if self._state is not None:
            self._restore_history()
        super().on_train_end(logs)
        self._num_fits += 1

    def _save(self, epoch, history, history_epochs):
        state = {
            "epoch": epoch,
            "stopped": self.model.stop_training,
            "settings": self.settings,
            "data_epoch": None if self.data is None else self.data.epoch,
            "history": history,
            "history_epochs": history_epochs,
            "callbacks": [_state_of(callback) for callback in self.callbacks],
            "generator": _generator_state(),
            "variables": [
                keras.ops.convert_to_numpy(variable)
                for variable in _variables_of(self.model)
            ],
        }
        path = self.directory / f"fit{self._num_fits}-epoch{epoch:06}.npz"
        try:
            _write_state(state, path)
            for old in self._paths()[2:]:
                old.unlink(missing_ok=True)
        except OSError as error:
            raise self._not_written(error) from error

    def _make_directory(self):
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._not_written(error) from error

    def _not_written(self, error):
        return OSError(
            f"The state of training cannot be written to {self.directory}: {error}"
        )

    def _paths(self):
        """Files of this `fit`'s state, newest first."""
        name = re.compile(rf"fit{self._num_fits}-epoch\d+\.npz")
        found = [p for p in self.directory.glob("*.npz") if name.fullmatch(p.name)]
        return sorted(found, reverse=True)

    def _newest_state(self):
        """Return the newest whole state and its file, or (None, None)."""
        damaged = {}
        for path in self._paths():
            try:
                state = _read_state(path)
            except Exception as error:  # damage shows in a dozen ways
                damaged[path] = error
                continue
            for newer, error in damaged.items():
                warnings.warn(
                    f"{newer} is damaged ({error}): the state before it is taken.",
                    stacklevel=2,
                )
            return state, path
        if damaged:
            raise StateError(
                "`directory` must hold a state that is whole, or none; delete the "
                f"folder to train anew. Received: directory={str(self.directory)!r}, "
                f"where all are damaged: {', '.join(path.name for path in damaged)}"
            )
        return None, None

    def _newest_state_of_all(self):
        """Return the newest state that all processes have, and its file here."""
        while True:
            state, path = self._newest_state()
            epochs = _of_all_processes(-1 if state is None else state["epoch"])
            oldest = min(epochs)
            if oldest == max(epochs):
                return state, path
            if oldest < max(epochs) - 1:  # more than a kill can do
                raise StateError(
                    "`directory` must hold the same state in all processes, but for "
                    "the last epoch; delete all to train anew. Received: "
                    f"directory={str(self.directory)!r}, epochs {epochs} (-1: none)"
                )
            for newer in self._paths():
                if int(newer.stem.rpartition("epoch")[2]) > oldest:
                    newer.unlink()

    def _check_fits(self, path):
        state = self._state
        if state["settings"] != self.settings:
            raise StateError(
                f"`settings` must be those of the state in {path}, which are "
                f"{state['settings']}; delete the folder to train anew. "
                f"Received: settings={self.settings}"
            )
        variables = _variables_of(self.model)
        found = {
            "variables": [
                (tuple(v.shape), keras.backend.standardize_dtype(v.dtype))
                for v in variables
            ],
            "callbacks": [type(callback).__name__ for callback in self.callbacks],
        }
        saved = {
            "variables": [(v.shape, v.dtype.name) for v in state["variables"]],
            "callbacks": [each["class"] for each in state["callbacks"]],
        }
        for name, values in found.items():
            if values != saved[name]:
                raise StateError(
                    f"The state in {path} is of another program, with other {name}: "
                    f"{saved[name]}; delete the folder to train anew. "
                    f"Received: {name}={values}"
                )

    def _restore(self, path, logs):
        """Put the state back, around the beginning of the callbacks."""
        state = self._state
        states = [each["state"] for each in state["callbacks"]]
        for callback, each in zip(self.callbacks, states, strict=True):
            if type(callback) not in _KERAS_STATES:
                try:
                    callback.set_state(each)  # which survives what comes next
                except ValueError as error:
                    raise StateError(
                        f"The state in {path} is of another program, with another "
                        f"{type(callback).__name__}; delete the folder to train anew. "
                        f"{error}"
                    ) from error
        super().on_train_begin(logs)
        for callback, each in zip(self.callbacks, states, strict=True):
            if type(callback) in _KERAS_STATES:
                for name, value in each.items():
                    setattr(callback, name, value)
        variables = _variables_of(self.model)
        for variable, values in zip(variables, state["variables"], strict=True):
            variable.assign(values)
        _set_generator_state(state.get("generator"))
        epochs = self.params["epochs"]
        if self.data is not None:
            self.data.epoch = state["data_epoch"]
        elif 0 < state["epoch"] < epochs and not state["stopped"]:
            warnings.warn(
                "Training goes on from its state, but without `data` its order is not "
                "known: unless it is the same in each epoch (shuffle=False), the "
                "batches are not those of a run that was never stopped.",
                stacklevel=2,
            )
        # Keras asks for it when all callbacks have begun. There is no other way in.
        self.model._initial_epoch = epochs if state["stopped"] else state["epoch"]

    def _restore_history(self):
        """Put back what History, which begins after this callback, has forgotten."""
        self.model.history.history = self._state["history"]
        self.model.history.epoch = self._state["history_epochs"]
        self._state = None

    def _refuse_callbacks_of_fit(self):
        for callback in self.callbacks:
            params = getattr(callback, "params", None)
            if params and params is self._params_of_fit:
                raise ValueError(
                    "`callbacks` of fit() must not have what Resumable runs already. "
                    f"Received: {type(callback).__name__} in both"
                )


def _variables_of(model):
    """Return all that a step changes, but the metrics, which each epoch resets."""
    return model.variables + model.optimizer.variables


def _of_all_processes(number):
    """Return what each process has as this number: one but on JAX's several hosts."""
    if keras.backend.backend() != "jax":
        return [number]
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(np.array(number)).ravel().tolist()


def _generator_state():
    """The state of PyTorch's generator, from which dropout without a seed draws."""
    if keras.backend.backend() != "torch":
        return None
    import torch

    return torch.get_rng_state().numpy()


def _set_generator_state(state):
    if keras.backend.backend() == "torch":
        import torch

        torch.set_rng_state(torch.tensor(state))


def _check_has_state(callback):
    has_methods = all(hasattr(callback, name) for name in ("get_state", "set_state"))
    if not isinstance(callback, keras.callbacks.Callback):
        problem = "must be Keras callbacks"
    elif type(callback) in _KERAS_STATES or has_methods:
        return
    else:
        problem = (
            "must have the methods get_state and set_state, or be known here. One that "
            "remembers nothing from epoch to epoch belongs in the list of fit()"
        )
    raise ValueError(f"`callbacks` {problem}. Received: {type(callback).__name__}")


def _state_of(callback):
    if type(callback) in _KERAS_STATES:
        names = _KERAS_STATES[type(callback)]
        state = {name: getattr(callback, name) for name in names}
    else:
        state = callback.get_state()
    return {"class": type(callback).__name__, "state": state}


def _write_state(state, path):
    """Write the state as arrays and one text, whole or not at all."""
    arrays = []
    text = json.dumps(_without_arrays(state, arrays))
    arrays = {f"array{i}": array for i, array in enumerate(arrays)}
    part = path.with_name("state.part")
    try:
        with open(part, "wb") as file:
            np.savez(file, state=np.array(text), **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _read_state(path):
    # Each part of the file has a checksum, which is compared when it is read.
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as parts:
        arrays = [parts[f"array{i}"] for i in range(len(parts.files) - 1)]
        state = _with_arrays(json.loads(str(parts["state"])), arrays)
    if not isinstance(state, dict) or not state.keys() >= _PARTS:
        raise ValueError("it was written by another program")
    return state


def _without_arrays(value, arrays):
    """Replace every array in nested lists and dictionaries by a reference to it."""
    if isinstance(value, dict):
        return {key: _without_arrays(each, arrays) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_arrays(each, arrays) for each in value]
    if isinstance(value, np.ndarray):
        kind = {"array": len(arrays), "dtype": value.dtype.name, "shape": value.shape}
        # NumPy's files know no bfloat16, but bytes.
        arrays.append(np.frombuffer(value.tobytes(), "uint8"))
        return kind
    return value.item() if isinstance(value, np.generic) else value


def _with_arrays(value, arrays):
    """Undo `_without_arrays`; tuples have become lists."""
    if isinstance(value, list):
        return [_with_arrays(each, arrays) for each in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"array", "dtype", "shape"}:
        dtype = np.dtype(value["dtype"])
        return np.frombuffer(arrays[value["array"]].tobytes(), dtype).reshape(
            value["shape"]
        )
    return {key: _with_arrays(each, arrays) for key, each in value.items()}
