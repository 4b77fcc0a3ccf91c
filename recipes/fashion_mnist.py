"""Fashion-MNIST, checked, split, scaled and batched in an order you can repeat.

For every experiment that should be comparable with another one: the bytes are checked
against a digest, the last 5,000 of the 60,000 training images validate, scaling learns
from the training part alone, and `epoch_batches` gives `fit` an order that depends on
the seed and the epoch and on nothing else. Without a network or the Debian package,
`draw_garments` draws a stand-in; its numbers say nothing about the real data.

This file is longer than most because the stand-in is drawn by code, line by line.

```python
from recipes.fashion_mnist import draw_garments, epoch_batches, split_and_scale

# With the real data: data = load()
train, test = draw_garments(600), draw_garments(100, seed=1)
data = split_and_scale(train, test, validation_size=100)
batches = epoch_batches(data.x_train, data.y_train, 32, seed=42)
# model.fit(batches, epochs=10, validation_data=(data.x_valid, data.y_valid))
```

Reference: Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking
Machine Learning Algorithms", 2017, https://arxiv.org/abs/1708.07747
Revised: 0.2.0
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


def load(
    data_dir=None, *, scale: str | None = "unit", validation_size: int = 5000
) -> FashionMNIST:
    """Load Fashion-MNIST from the first place that has it, checked to the last byte.

    Looks in `data_dir`, in Keras's cache (`$KERAS_HOME` or `~/.keras`), in the system's
    dataset folder (Debian package `dataset-fashion-mnist`), then downloads through
    Keras into its cache. Every place must hold the same bytes, so which one was used
    cannot change a result. A place that has some of the four files but not all, or a
    damaged one, is an error and not a reason to look further.

    `load(scale="standardize").x_train`, for instance, are 55,000 images whose pixels
    have mean 0 and deviation 1.

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
        OSError: A file cannot be read; names it.
    """
    _check_split(scale, validation_size, num_samples=60000)
    home = pathlib.Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()
    caches = [c / "datasets" / "fashion-mnist" for c in (home, _KERAS_FALLBACK)]
    if not isinstance(data_dir, (str, os.PathLike, type(None))):
        raise ValueError(f"`data_dir` must be a path. Received: data_dir={data_dir!r}")
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


def split_and_scale(
    train, test, *, scale: str | None = "unit", validation_size: int = 5000
) -> FashionMNIST:
    """Hold out the last training images for validation, then scale all three parts.

    For images that `load` does not know; of Fashion-MNIST it does this itself.

    Example:

    ```python
    from recipes.fashion_mnist import draw_garments, split_and_scale

    train, test = draw_garments(600), draw_garments(100, seed=1)
    data = split_and_scale(train, test, scale="standardize", validation_size=100)
    print(data.x_train.shape, data.x_valid.shape)  # (500, 28, 28) (100, 28, 28)
    ```

    Args:
        train: Pair `(x, y)`: uint8 images `(n, height, width)`, or with channels last,
            and labels `(n,)`.
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
    x_train, y_train = _pair("train", train)
    x_test, y_test = _pair("test", test)
    if x_train.shape[1:] != x_test.shape[1:]:
        raise ValueError(
            "`test` must hold images of the size of those of `train`. "
            f"Received: {x_test.shape[1:]} and {x_train.shape[1:]}"
        )
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


def draw_garments(num_samples: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw a stand-in for Fashion-MNIST: ten kinds of garments, 28x28, by code.

    For tests, demonstrations and machines without the real pictures, about which
    accuracies on these say nothing. A garment is a few filled polygons of random pose,
    cut, tone and texture on exact zeros. Kinds overlap as in a wardrobe and details
    are lighter or darker than the cloth by chance, so a linear model is clearly beaten.

    Example:

    ```python
    from recipes.fashion_mnist import draw_garments

    images, labels = draw_garments(1000, seed=42)
    print(images.shape, images.dtype, labels[:10])
    ```

    Args:
        num_samples: Number of pictures, a positive integer. The counts of the ten
            kinds differ by at most one; their order is random.
        seed: Non-negative integer; with `num_samples` it settles every pixel. NumPy's
            global random state is neither read nor changed.

    Returns:
        Pictures, `uint8` of shape `(num_samples, 28, 28)`, and labels, `uint8` of
        shape `(num_samples,)`: T-shirt/top, Trouser, Pullover, Dress, Coat, Sandal,
        Shirt, Sneaker, Bag and Ankle boot are 0 to 9.

    Raises:
        ValueError: `num_samples` or `seed` is not such an integer, or the pictures do
            not fit into memory.
    """
    num_samples = _integer("num_samples", num_samples, minimum=1)
    rng = np.random.default_rng(_integer("seed", seed, minimum=0))
    try:
        images = np.empty((num_samples, 28, 28), "uint8")
    except (MemoryError, ValueError) as error:
        raise ValueError(
            "`num_samples` must be a number of pictures that fit into memory. "
            f"Received: num_samples={num_samples}"
        ) from error
    labels = rng.permutation(np.arange(num_samples) % 10).astype("uint8")
    for kind in np.unique(labels):
        members = np.flatnonzero(labels == kind)
        images[members] = _draw_kind(kind, len(members), rng)
    return images, labels


def epoch_batches(
    x, y, batch_size: int, *, seed: int, initial_epoch: int = 0
) -> keras.utils.PyDataset:
    """Return data for `fit` whose order depends on (`seed`, epoch) alone.

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
    On several devices wrap it in `recipes.distribute.EvenBatches`, which asks for each
    batch by its place in the epoch, with the method `batch_at(position)`.

    Example:

    ```python
    import keras
    import numpy as np

    from recipes.fashion_mnist import epoch_batches

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", loss="mse")
    batches = epoch_batches(np.ones((64, 3)), np.ones(64), 16, seed=42)
    model.fit(batches, epochs=2, verbose=0)
    print(batches.epoch)  # 2, the next one
    ```

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
    """What `epoch_batches` returns; `batch_at` is a batch by its place in the epoch."""

    def __init__(self, x, y, batch_size, seed, initial_epoch):
        super().__init__()
        # As arrays: a pandas Series would look rows up by label instead of position.
        self.x, self.y = np.asarray(x), np.asarray(y)
        shapes = self.x.shape, self.y.shape
        if not all(shapes) or shapes[0][0] != shapes[1][0] or shapes[0][0] == 0:
            raise ValueError(
                "`x` and `y` must be arrays of the same number of rows, at least 1. "
                f"Received: x.shape={shapes[0]}, y.shape={shapes[1]}"
            )
        self.batch_size = _integer("batch_size", batch_size, minimum=1)
        self.seed = _integer("seed", seed, minimum=0)
        self.epoch = _integer("initial_epoch", initial_epoch, minimum=0)
        self._lock = threading.Lock()
        self._playing = False
        self._order = np.arange(len(self.x))
        self._positions = {}

    def __len__(self):
        return -(-len(self.x) // self.batch_size)

    def on_epoch_begin(self):
        if self.workers > 1 or self.use_multiprocessing:
            raise ValueError(
                "Only one worker keeps the order of the batches. Received: workers="
                f"{self.workers}, use_multiprocessing={self.use_multiprocessing}"
            )
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
        return self.batch_at(position)

    def batch_at(self, position):
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


def _pair(name, pair):
    try:
        x, y = map(np.asarray, pair)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`{name}` must be a pair of arrays (x, y), but {error}. "
            f"Received: {name} of type {type(pair).__name__}"
        ) from error
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or y.shape != x.shape[:1]:
        raise ValueError(
            f"`{name}` must be uint8 images (n, height, width), or with channels last, "
            "and labels (n,). "
            f"Received: {x.dtype} {x.shape} and {y.dtype} {y.shape}"
        )
    return x, y


def _check_split(scale, validation_size, num_samples):
    if scale is not None and (
        not isinstance(scale, str) or scale not in ("unit", "standardize", "minmax")
    ):
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
    # os.path: a folder that must not be looked into has no data for us.
    return next(
        (f for f in folders if any(os.path.exists(f / n) for n in _FILES)), None
    )


def _read(path):
    header, shape, digest = _FILES[path.name]
    header = bytes.fromhex(header)
    mend = "replace it, or remove all four to have them looked for elsewhere"
    if not os.path.isfile(path):
        raise ValueError(
            f"{path} is missing beside the other files of Fashion-MNIST: put it there, "
            "or remove all four to have them looked for elsewhere."
        )
    try:
        content = gzip.decompress(path.read_bytes())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        problem = f"{path} is truncated or corrupt ({error}): {mend}."
        raise ValueError(problem) from error
    except OSError as error:
        raise OSError(f"{path} cannot be read: {error.strerror}.") from error
    if content[:4] != header[:4]:
        raise ValueError(
            f"{path} does not begin with the magic number {header[:4].hex()}: {mend}. "
            f"Received: {content[:4].hex()}"
        )
    if content[: len(header)] != header or len(content) - len(header) != np.prod(shape):
        raise ValueError(
            f"{path} does not hold an array of shape {shape}: {mend}. Received: header "
            f"{content[: len(header)].hex()}, {len(content)} bytes in all"
        )
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(
            f"{path} is not the published Fashion-MNIST, its SHA-256 differs: {mend}."
        )
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)


def _draw_kind(kind, count, rng):
    """Paint `count` garments of one kind, each part in its pose, then the cloth."""

    def between(low, high):
        return rng.uniform(low, high, (count, 1, 1))

    pose = rng.normal(np.eye(2), 0.06, (count, 2, 2))  # turned, sheared, stretched
    if kind in (5, 7, 8, 9):  # lying to the left or to the right
        pose[..., 0] *= rng.choice([-1, 1], (count, 1))
    size, middle = between(9.5, 12.5), rng.normal(14, 0.7, (count, 1, 2))
    image = np.zeros((count, 28, 28))
    for corners, tone in _parts(kind, between):
        xy = [np.broadcast_to(v, (count, 1, 1)) for corner in corners for v in corner]
        xy = np.concatenate(xy, axis=1).reshape(count, -1, 2)
        image += _coverage(xy @ pose * size + middle) * (tone - image)
    y, x = np.mgrid[:28, :28]
    slant, pitch = between(0, np.pi), between(0.5, 2.2)
    stripes = np.sin(pitch * (x * np.cos(slant) + y * np.sin(slant)))
    stripes *= between(0, 0.35) * (between(0, 1) < 0.4)
    folds = 0.15 * np.sin(between(0.05, 0.3) * (x + between(-1, 1) * y) + between(0, 6))
    noise = between(0, 0.08) * rng.standard_normal(image.shape)
    return np.clip(255 * image * ((1 + stripes) * (1 + folds) + noise), 0, 255)


def _coverage(corners):
    """Share of each pixel inside simple polygons `(count, corners, 2)`, 4 rows a pixel.

    Where an edge crosses a row, the winding number changes: in that pixel in part, in
    all pixels to its right in full. The running sum of the changes is the coverage.
    """
    count, rows = len(corners), (np.arange(28 * 4) + 0.5) / 4
    ends = np.roll(corners, -1, axis=1)
    crossed = (corners[..., 1:] <= rows) != (ends[..., 1:] <= rows)
    image, edge, row = np.nonzero(crossed)
    (x, y), (end_x, end_y) = corners[image, edge].T, ends[image, edge].T
    x = np.clip(x + (rows[row] - y) * (end_x - x) / (end_y - y), 0, 28)
    column, change = x.astype(int), np.sign(end_y - y) / 4
    cell, later = (image * 28 + row // 4) * 30 + column, change * (x - column)
    changes = np.bincount(cell, change - later, count * 28 * 30)
    changes += np.bincount(cell + 1, later, count * 28 * 30)
    winding = np.cumsum(changes.reshape(count, 28, 30), axis=-1)[..., :28]
    return np.minimum(np.abs(winding), 1)


def _parts(kind, between):
    """Yield `(corners, tone)` in the order of painting; x and y in -1..1, y down."""

    def often(share):  # 1 or 0: a part of no width is not there
        return 1.0 * (between(0, 1) < share)

    def both(*right):  # the corners of the right half, and their mirror images
        return [*right, *((-x, y) for x, y in reversed(right))]

    cloth, contrast = between(0.35, 0.9), between(0.25, 0.4)
    detail = np.where(cloth > between(0.5, 0.8), cloth - contrast, cloth + contrast)
    shade = cloth * between(0.55, 1)
    if kind == 1:  # two legs under a waistband, long or short
        waist, hem, leg = between(0.22, 0.36), between(0.3, 0.6), between(0.1, 0.2)
        end, gap = 1 - between(0.3, 0.5) * often(0.15), np.maximum(hem - 2 * leg, 0.06)
        crotch = end * between(-0.5, -0.2)
        yield both((waist, -end), (waist + 0.08, crotch), (hem, end)), cloth
        yield both((0, crotch), (gap, end + 0.1)), 0
        yield both((waist, -end), (waist + 0.02, 0.14 - end)), detail
    elif kind == 8:  # a handle, a body, a flap
        top, lid, floor = between(0.5, 0.95), between(-0.4, 0), between(0.4, 0.9)
        span, thick = top * between(0.4, 0.95), between(0.06, 0.1)
        crown, peak = span * between(0.5, 0.9), between(-1, -0.5)
        yield both((crown, peak), (span, lid)), detail
        yield both((crown - thick, peak + thick), (span - thick, lid)), 0
        yield both((top, lid), (between(0.6, 1), floor)), cloth
        flap = top * often(0.5)
        yield both((flap, lid), (flap * 0.9, lid + between(0.2, 0.6))), shade
    elif kind in (5, 7, 9):  # a shoe, its toe at the left
        shaft = {5: between(0.1, 0.4), 7: between(0, 0.4), 9: between(0.35, 1)}[kind]
        sole, lift = between(0.06, 0.18), between(0, {5: 0.6, 7: 0.1, 9: 0.5}[kind])
        ground = (lift + shaft + 0.6) / 2
        floor, heel = ground - sole, ground - sole - lift
        toe, throat = floor - between(0.15, 0.3), between(-0.2, 0.15)
        instep = np.minimum(toe, heel) - between(0.1, 0.25)
        cuff, arch = instep - shaft, [(1, heel), (0.5, heel), (-0.25, floor)]
        front = [(-1, floor), (-0.97, toe + 0.05), (-0.6, toe - 0.05), (throat, instep)]
        yield [*front, (throat + 0.15, cuff), (0.9, cuff), *arch], cloth
        if kind == 5:  # openings that leave straps: at the toes, and round the ankle
            slide, left = often(0.35), between(-0.5, -0.2)
            right, top = 0.75 + 0.5 * slide, cuff + between(0.1, 0.25) - slide
            ankle = [(left + 0.1, -0.2), (throat, top), (right, top), (right, heel)]
            yield [(-1.1, ground), (-1.1, -1), (-0.8, -1), (left - 0.3, ground)], 0
            yield [(left, floor), *ankle, *arch[1:]], 0
        else:
            end = throat + between(0.1, 0.5) * often(0.6)
            stripe = [(throat, instep), (end, instep), (end - 0.3, floor)]
            yield [*stripe, (throat - 0.3, floor)], detail
        under = [(1, ground), (0.75, ground), (0.65, heel + sole), (-0.25, ground)]
        tone = np.where(often(0.8 if kind == 7 else 0.4), detail, cloth)
        yield [(-1, ground), (-1, floor), *arch[::-1], *under], tone
    else:  # sleeves behind a body, a collar, a neck, a front
        width, hem, end, sleeves, buttons, low = {
            0: (0.45, 0.46, 0.8, 0.0, 0.0, -0.6),
            2: (0.45, 0.46, 0.78, 1.0, 0.1, -0.65),
            3: (0.29, 0.46, 0.95, 0.2, 0.1, -0.5),
            4: (0.46, 0.53, 0.9, 1.0, 0.95, -0.2),
            6: (0.43, 0.44, 0.8, 0.6, 0.95, -0.6),
        }[kind]
        width, hem = width * between(0.85, 1.15), hem * between(0.85, 1.15)
        end, long = end + between(-0.15, 0.1), often(sleeves)
        short = between(0.25, 0.6) * often(0.5 if kind == 3 else 1)
        reach = np.where(long, between(1.1, 1.5), short)
        angle = np.where(long, between(0.08, 0.35), between(0.4, 0.9))
        out, down = width + reach * np.sin(angle), reach * np.cos(angle) - 0.8
        cut, neck, depth = between(0.16, 0.26), between(0.1, 0.22), between(-0.85, low)
        cuff = [(out, down), (out - cut * np.cos(angle), down + cut * np.sin(angle))]
        chest, waist = width * between(0.8, 1), width * between(0.75, 1)
        shoulder, body = [(neck, -0.95), (width, -0.8)], [(chest, -0.35), (waist, 0.1)]
        yield both(*shoulder, *cuff, *body, (hem, end)), shade
        yield both(*shoulder, *body, (hem, end)), cloth
        tip, front = often(buttons) * between(0.08, 0.2), often(buttons) * 0.06
        yield both((neck, -1), (neck + tip, depth), (tip / 2, depth + tip)), detail
        yield both((neck, -1.3), (neck * between(0.1, 0.8), depth), (0, depth)), 0
        yield both((front, depth), (front, end)), detail
        chest_print = often(0.35 * (kind in (0, 2, 3))) * between(0.1, 0.3)
        yield both((chest_print, -0.35), (chest_print, between(-0.2, 0.3))), detail
