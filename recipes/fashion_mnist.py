"""Fashion-MNIST, checked, split, scaled and batched in an order you can repeat.

For every experiment that should be comparable with another one: the bytes are checked
against a digest, the last 5,000 of the 60,000 training images validate, scaling learns
from the training part alone, and `epoch_batches` gives `fit` an order that depends on
the seed and the epoch and on nothing else. Without a network or the Debian package,
`draw_garments` draws a stand-in; its numbers say nothing about the real data.

```python
from recipes.fashion_mnist import draw_garments, epoch_batches, split_and_scale

# With the real data: data = load()
train, test = draw_garments(600), draw_garments(100, seed=1)
data = split_and_scale(train, test, validation_size=100)
batches = epoch_batches(data.x_train, data.y_train, 32, seed=42)
# model.fit(batches, epochs=10, validation_data=(data.x_valid, data.y_valid))
```

This file is longer than most because the stand-in is drawn by code, line by line.

Reference: Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking
Machine Learning Algorithms", 2017, https://arxiv.org/abs/1708.07747
Revised: 0.1.0
"""

import gzip
import hashlib
import operator
import os
import pathlib
import threading
import zlib
from typing import NamedTuple

import keras
import numpy as np

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

# File -> (IDX header, shape, SHA-256 of the decompressed bytes). The digest is of what
# is inside: mirrors have compressed the same data differently.
_FILES = {
    "train-images-idx3-ubyte.gz": (
        "00000803 0000ea60 0000001c 0000001c",
        (60000, 28, 28),
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    "train-labels-idx1-ubyte.gz": (
        "00000801 0000ea60",
        (60000,),
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    "t10k-images-idx3-ubyte.gz": (
        "00000803 00002710 0000001c 0000001c",
        (10000, 28, 28),
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "00000801 00002710",
        (10000,),
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}

_SYSTEM_FOLDER = pathlib.Path("/usr/share/datasets/fashion-mnist")
# Where Keras puts downloads when its home cannot be written.
_KERAS_FALLBACK = pathlib.Path("/tmp/.keras")


class FashionMNIST(NamedTuple):
    """Images `(n, 28, 28)`, labels `(n,)` in uint8, and the ten class names."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_valid: np.ndarray
    y_valid: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple


def load(data_dir=None, *, scale="unit", validation_size=5000):
    """Fashion-MNIST from the first place that has it, checked to the last byte.

    Looks in `data_dir`, in Keras's cache (`$KERAS_HOME` or `~/.keras`), in the system's
    dataset folder (Debian package `dataset-fashion-mnist`), then downloads through
    Keras into its cache. Every place must hold the same bytes, so which one was used
    cannot change a result. A place that has some of the four files but not all, or a
    damaged one, is an error and not a reason to look further.

    Args:
        data_dir: Folder with the four `*-ubyte.gz` files, looked in first.
        scale: See `split_and_scale`.
        validation_size: See `split_and_scale`. 5,000 as in the book.

    Returns:
        A `FashionMNIST`: 55,000 training, 5,000 validation and 10,000 test images.

    Raises:
        FileNotFoundError: No place has the data; names all four ways to get them.
        ValueError: A file is missing beside the others, truncated, corrupt, of the
            wrong shape, or other than the published data; names the file.
    """
    _check_split(scale, validation_size, num_samples=60000)
    home = pathlib.Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()
    caches = [c / "datasets" / "fashion-mnist" for c in (home, _KERAS_FALLBACK)]
    folders = [] if data_dir is None else [pathlib.Path(data_dir)]
    folder = _first_with_data([*folders, *caches, _SYSTEM_FOLDER])
    if folder is None:
        try:
            keras.datasets.fashion_mnist.load_data()
        except Exception as error:
            raise FileNotFoundError(
                "Fashion-MNIST was not found. Four ways to get it: (1) put its four "
                f"files ({', '.join(_FILES)}) into a folder and pass `data_dir`; "
                f"(2) put them into Keras's cache, {caches[0]}; (3) apt-get install "
                f"dataset-fashion-mnist, which fills {_SYSTEM_FOLDER}; (4) connect "
                f"to the internet, and Keras downloads them (tried: {error})."
            ) from error
        folder = _first_with_data(caches)
    arrays = [_read(folder / name) for name in _FILES]
    return split_and_scale(
        arrays[:2], arrays[2:], scale=scale, validation_size=validation_size
    )


def split_and_scale(train, test, *, scale="unit", validation_size=5000):
    """Hold out the last training images for validation, then scale all three parts.

    Args:
        train: Pair `(x, y)`: uint8 images `(n, height, width)` and labels `(n,)`.
        test: Pair `(x, y)` of the same kind.
        scale: `"unit"`: x / 255, in 0..1. `"standardize"`: (x - mean) / deviation of
            each pixel over the training part, as in the book. `"minmax"`: (x - min) /
            (max - min) of each pixel over the training part, so validation and test
            may leave 0..1. `None`: the uint8 images as they are. A pixel that is
            constant over the training part becomes 0 there.
        validation_size: How many of the last training images validate; at least 1
            training image must remain.

    Returns:
        A `FashionMNIST`; images are float32 unless `scale` is `None`.

    Raises:
        ValueError: Unknown `scale`, or `validation_size` out of range.
    """
    (x_train, y_train), (x_test, y_test) = train, test
    _check_split(scale, validation_size, num_samples=len(x_train))
    split = len(x_train) - operator.index(validation_size)
    parts = [x_train[:split], x_train[split:], x_test]
    if scale == "unit":
        parts = [np.divide(part, 255, dtype=np.float32) for part in parts]
    elif scale is not None:
        seen = parts[0]
        if scale == "standardize":
            shift = seen.mean(axis=0, dtype=np.float64)
            width = seen.std(axis=0, dtype=np.float64)
        else:
            shift = seen.min(axis=0).astype(np.float64)
            width = seen.max(axis=0) - shift
        width[width == 0] = 1
        shift, width = shift.astype(np.float32), width.astype(np.float32)
        parts = [(part - shift) / width for part in parts]
    x_train, x_valid, x_test = parts
    y_train, y_valid = y_train[:split], y_train[split:]
    return FashionMNIST(x_train, y_train, x_valid, y_valid, x_test, y_test, CLASS_NAMES)


def epoch_batches(x, y, batch_size, *, seed, initial_epoch=0):
    """Data for `fit` whose order depends on (`seed`, epoch) alone.

    After `keras.utils.set_random_seed`, `fit` on arrays repeats ONE order in every
    epoch on TensorFlow (Keras 3.15), and a restarted JAX process begins with epoch 0's
    order again. Here epoch e has the order of
    `np.random.default_rng([seed, e]).permutation(len(x))`: a new one each epoch, the
    same after a restart, the same on every backend, whatever `shuffle` says.

    Epochs are counted as `fit` plays them, also over several calls of `fit`; an epoch
    that was broken off is played again. In a new process that goes on at epoch e, pass
    e to both: `fit(epoch_batches(..., initial_epoch=e), initial_epoch=e)`. The
    attribute `epoch` holds the number of the epoch played next and may be set.

    Not for validation or `predict`: give those the arrays. Not with `steps_per_epoch`,
    which leaves epochs unfinished. A single batch has no order: its rows stay in place.

    Args:
        x: Array `(n, ...)`.
        y: Array `(n, ...)`.
        batch_size: Rows in a batch, at least 1; the last batch of an epoch has what is
            left.
        seed: Integer from 0.
        initial_epoch: Number of the first epoch played, from 0.

    Returns:
        A `keras.utils.PyDataset` of `(x, y)` batches.

    Raises:
        ValueError: Lengths differ, no rows, or a number is not an integer in its range.
    """
    return _EpochBatches(x, y, batch_size, seed, initial_epoch)


class _EpochBatches(keras.utils.PyDataset):
    def __init__(self, x, y, batch_size, seed, initial_epoch):
        super().__init__()
        if len(x) != len(y) or len(x) == 0:
            raise ValueError(
                "`x` and `y` must have the same number of rows, at least 1. "
                f"Received: len(x)={len(x)}, len(y)={len(y)}"
            )
        self.x, self.y = x, y
        self.batch_size = _integer("batch_size", batch_size, minimum=1)
        self.seed = _integer("seed", seed, minimum=0)
        self.epoch = _integer("initial_epoch", initial_epoch, minimum=0)
        self._lock = threading.Lock()
        self._playing = False
        self._order = np.arange(len(x))
        self._positions = {}

    def __len__(self):
        return -(-len(self.x) // self.batch_size)

    def on_epoch_begin(self):
        if len(self) > 1:
            rng = np.random.default_rng([self.seed, self.epoch])
            self._order = rng.permutation(len(self.x))
        self._positions = {}
        self._playing = True

    def __getitem__(self, index):
        # `fit` asks for the indices in an order of its own unless shuffle=False, drawn
        # from Python's global generator. The k-th index asked for gets the k-th batch.
        position = index
        if self._playing:
            with self._lock:
                position = self._positions.setdefault(index, len(self._positions))
        rows = self._order[position * self.batch_size :][: self.batch_size]
        return self.x[rows], self.y[rows]

    def on_epoch_end(self):
        # Keras also calls this where nothing was played, and after a glance at one
        # batch that builds the model: only a pass that gave all batches was an epoch.
        if self._playing and len(self._positions) == len(self):
            self.epoch += 1
        self._playing = False


def _integer(name, value, minimum):
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise ValueError(f"`{name}` must be an integer. Received: {name}={value!r}")
    if value < minimum:
        raise ValueError(
            f"`{name}` must be at least {minimum}. Received: {name}={value}"
        )
    return int(value)


def _check_split(scale, validation_size, num_samples):
    if scale not in ("unit", "standardize", "minmax", None):
        raise ValueError(
            "`scale` must be 'unit', 'standardize', 'minmax' or None. "
            f"Received: scale={scale!r}"
        )
    if _integer("validation_size", validation_size, minimum=0) >= num_samples:
        raise ValueError(
            f"`validation_size` must leave a training image of {num_samples}. "
            f"Received: validation_size={validation_size}"
        )


def _first_with_data(folders):
    return next((f for f in folders if any((f / n).exists() for n in _FILES)), None)


def _read(path):
    header, shape, digest = _FILES[path.name]
    header = bytes.fromhex(header)
    if not path.is_file():
        raise ValueError(f"{path} is missing beside the other files of Fashion-MNIST.")
    try:
        content = gzip.decompress(path.read_bytes())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is truncated or corrupt ({error}).") from error
    if content[:4] != header[:4]:
        raise ValueError(
            f"{path} does not begin with the magic number {header[:4].hex()}. "
            f"Received: {content[:4].hex()}"
        )
    if content[: len(header)] != header or len(content) - len(header) != np.prod(shape):
        raise ValueError(
            f"{path} does not hold an array of shape {shape}. Received: header "
            f"{content[: len(header)].hex()}, {len(content)} bytes in all"
        )
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(
            f"{path} is not the published Fashion-MNIST: its SHA-256 differs."
        )
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)
