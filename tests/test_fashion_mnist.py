import gzip
import hashlib
import os
import pathlib
import struct

import keras
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes import fashion_mnist
from recipes.fashion_mnist import epoch_batches, load, split_and_scale

NAMES = {
    "train-images-idx3-ubyte.gz": (60, 28, 28),
    "train-labels-idx1-ubyte.gz": (60,),
    "t10k-images-idx3-ubyte.gz": (20, 28, 28),
    "t10k-labels-idx1-ubyte.gz": (20,),
}


@pytest.fixture
def published(monkeypatch, tmp_path):
    """A small data set in the place of the published one; no other can be found."""
    rng = np.random.default_rng(0)
    arrays, contents, known = {}, {}, {}
    for name, shape in NAMES.items():
        high = 256 if "images" in name else 10
        arrays[name] = rng.integers(0, high, shape, dtype=np.uint8)
        header = struct.pack(
            f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape
        )  # the IDX format
        contents[name] = header + arrays[name].tobytes()
        digest = hashlib.sha256(contents[name]).hexdigest()
        known[name] = (header.hex(), shape, digest)
    monkeypatch.setattr(fashion_mnist, "_FILES", known)
    monkeypatch.setattr(fashion_mnist, "_SYSTEM_FOLDER", tmp_path / "system")
    monkeypatch.setattr(fashion_mnist, "_KERAS_FALLBACK", tmp_path / "fallback")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))

    def no_network():
        raise OSError("URL fetch failure")

    monkeypatch.setattr(keras.datasets.fashion_mnist, "load_data", no_network)

    def write(folder, level=6):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (folder / name).write_bytes(gzip.compress(content, level))

    return arrays, write


def test_every_source_gives_the_same_arrays(published, tmp_path, monkeypatch):
    arrays, write = published
    cache = tmp_path / "home" / "datasets" / "fashion-mnist"
    sources = [
        (tmp_path / "mine", tmp_path / "mine"),
        (None, cache),
        (None, tmp_path / "system"),
    ]
    results = []
    for data_dir, folder in sources:
        write(folder)
        results.append(load(data_dir, scale=None, validation_size=10))
        os.rename(folder, tmp_path / "gone")
        for name in NAMES:
            (tmp_path / "gone" / name).unlink()
        (tmp_path / "gone").rmdir()
    monkeypatch.setattr(keras.datasets.fashion_mnist, "load_data", lambda: write(cache))
    results.append(load(scale=None, validation_size=10))
    for data in results:
        np.testing.assert_array_equal(
            np.concatenate([data.x_train, data.x_valid]),
            arrays["train-images-idx3-ubyte.gz"],
        )
        np.testing.assert_array_equal(
            data.y_valid, arrays["train-labels-idx1-ubyte.gz"][-10:]
        )
        np.testing.assert_array_equal(data.x_test, arrays["t10k-images-idx3-ubyte.gz"])
        assert data.x_test.dtype == data.y_test.dtype == np.uint8


def test_digest_is_of_the_decompressed_bytes(published, tmp_path):
    _, write = published
    write(tmp_path / "mine", level=1)
    load(tmp_path / "mine", validation_size=10)


def test_a_folder_without_any_of_the_files_is_passed_over(published, tmp_path):
    _, write = published
    (tmp_path / "empty").mkdir()
    write(tmp_path / "system")
    load(tmp_path / "empty", validation_size=10)


def test_when_no_source_has_it_one_error_names_all_four_ways(published):
    with pytest.raises(FileNotFoundError) as error:
        load(validation_size=10)
    for way in (
        "data_dir",
        "Keras's cache",
        "apt-get install dataset-fashion-mnist",
        "URL fetch failure",
    ):
        assert way in str(error.value)


def damage(path, kind):
    content = gzip.decompress(path.read_bytes())
    if kind == "missing":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-20])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "a page":
        path.write_bytes(b"<html>404</html>")
    elif kind == "bit flipped in transit":
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(bytes(raw))
    elif kind == "wrong magic":
        path.write_bytes(gzip.compress(b"\1" + content[1:]))
    elif kind == "wrong shape":
        path.write_bytes(gzip.compress(content + b"\0"))
    elif kind == "wrong count":
        path.write_bytes(gzip.compress(content[:7] + b"\1" + content[8:]))
    elif kind == "other data":
        path.write_bytes(gzip.compress(content[:-1] + bytes([content[-1] ^ 1])))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "missing beside"),
        ("truncated", "truncated or corrupt"),
        ("empty", "truncated or corrupt|magic"),
        ("a page", "truncated or corrupt"),
        ("bit flipped in transit", "truncated or corrupt|SHA-256"),
        ("wrong magic", "magic number"),
        ("wrong shape", "shape"),
        ("wrong count", "shape"),
        ("other data", "SHA-256"),
    ],
)
def test_a_damaged_file_is_one_error_that_names_it(
    published, tmp_path, name, kind, message
):
    _, write = published
    write(tmp_path / "mine")
    damage(tmp_path / "mine" / name, kind)
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path / "mine", validation_size=10)
    assert name in str(error.value) and "remove all four" in str(error.value)


def test_a_file_that_cannot_be_read_is_one_error_that_names_it(
    published, tmp_path, monkeypatch
):
    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    _, write = published
    write(tmp_path / "mine")
    monkeypatch.setattr(pathlib.Path, "read_bytes", refused)
    path = tmp_path / "mine" / next(iter(NAMES))
    with pytest.raises(OSError, match=f"^{path} cannot be read: Permission denied.$"):
        load(tmp_path / "mine", validation_size=10)


def test_a_folder_that_must_not_be_looked_into_is_passed_over(
    published, tmp_path, monkeypatch
):
    _, write = published
    write(tmp_path / "system")
    # As good as a folder without leave to enter, which root has everywhere.
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / ("x" * 300)))
    load(validation_size=10)


def test_reading_writes_nothing_and_needs_no_leave_to(published, tmp_path):
    _, write = published
    folder = tmp_path / "mine"
    write(folder)
    for path in [*folder.iterdir(), folder]:
        path.chmod(0o555 if path is folder else 0o444)
    before = folder.stat().st_mtime_ns
    load(folder, validation_size=10)
    assert folder.stat().st_mtime_ns == before and len(list(folder.iterdir())) == 4


def real_data():
    folder = os.path.join(os.path.dirname(__file__), "..", "data", "fashion-mnist")
    try:
        return load(folder, scale=None)
    except FileNotFoundError:
        return None


def test_the_real_data_are_the_published_ones():
    data = real_data()
    if data is None:
        pytest.skip("Fashion-MNIST cannot be had here")
    assert [len(part) for part in data[:6:2]] == [55000, 5000, 10000]
    assert (np.bincount(data.y_test) == 1000).all()
    labels = np.concatenate([data.y_train, data.y_valid])
    assert (np.bincount(labels) == 6000).all()
    # Mean and deviation of the 60,000 that image pipelines quote: 0.2860, 0.3530.
    images = np.concatenate([data.x_train, data.x_valid]) / np.float32(255)
    np.testing.assert_allclose(images.mean(dtype="float64"), 0.2860, atol=5e-5)
    np.testing.assert_allclose(images.std(dtype="float64"), 0.3530, atol=5e-5)


# --- split and scale


def small(seed=0, num=50):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (num, 4, 3), dtype=np.uint8)
    images[:, 0, 0] = 9
    return images, rng.integers(0, 10, num, dtype=np.uint8)


def test_the_last_training_images_validate():
    (x, y), test = small(), small(1)
    data = split_and_scale((x, y), test, scale=None, validation_size=20)
    np.testing.assert_array_equal(data.x_train, x[:30])
    np.testing.assert_array_equal(data.x_valid, x[30:])
    np.testing.assert_array_equal(data.y_valid, y[30:])
    assert len(data.class_names) == 10


@pytest.mark.parametrize("scale", ["unit", "standardize", "minmax"])
def test_scaling_is_the_formula_learned_from_the_training_part(scale):
    train, test = small(), small(1)
    data = split_and_scale(train, test, scale=scale, validation_size=20)
    seen = train[0][:30].astype("float64")
    shift, width = {
        "unit": (0, 255),
        "standardize": (seen.mean(0), seen.std(0)),
        "minmax": (seen.min(0), seen.max(0) - seen.min(0)),
    }[scale]
    width = np.where(np.asarray(width) == 0, 1, width)
    raw = np.concatenate([train[0], test[0]]).astype("float64")
    ours = np.concatenate([data.x_train, data.x_valid, data.x_test])
    np.testing.assert_allclose(ours, (raw - shift) / width, atol=1e-6)
    assert ours.dtype == np.float32
    if scale != "unit":
        assert (data.x_train[:, 0, 0] == 0).all()


@pytest.mark.parametrize("scale", ["Unit", "", 0, ["unit"]])
def test_an_unknown_scale_is_refused(scale):
    with pytest.raises(ValueError, match="`scale`.*Received: scale="):
        split_and_scale(small(), small(), scale=scale, validation_size=5)
    with pytest.raises(ValueError, match="`scale`"):
        load(scale=scale)
    with pytest.raises(ValueError, match="`data_dir`.*Received: data_dir=5"):
        load(5)


@pytest.mark.parametrize("size", [-1, 50, 1e3, 2.5, None, True, "5"])
def test_a_validation_size_out_of_range_is_refused(size):
    with pytest.raises(ValueError, match="`validation_size`.*Received"):
        split_and_scale(small(), small(), validation_size=size)


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        small()[::-1],
        (small()[0] / 255, small()[1]),
        (small()[0], small()[1][:5]),
        (*small(), 1),
    ],
)
def test_what_is_no_pair_of_images_and_labels_is_refused(wrong):
    with pytest.raises(ValueError, match="`train` must be"):
        split_and_scale(wrong, small(), validation_size=5)
    with pytest.raises(ValueError, match="`test` must"):
        split_and_scale(small(), wrong, validation_size=5)


# --- batches in an order that depends on seed and epoch


def linear_data(num):
    rng = np.random.default_rng(3)
    return rng.normal(size=(num, 2)).astype("f4"), rng.normal(size=(num, 1)).astype(
        "f4"
    )


def linear_model():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([np.zeros((2, 1), "f4")])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


def weights_after(x, y, batch_size, seed, epochs):
    """Gradient descent in NumPy, in the order that the docstring states."""
    w = np.zeros((2, 1))
    for epoch in epochs:
        order = np.random.default_rng([seed, epoch]).permutation(len(x))
        for start in range(0, len(x), batch_size):
            rows = order[start : start + batch_size]
            w -= 0.1 * 2 / len(rows) * x[rows].T @ (x[rows] @ w - y[rows])
    return w


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("num", "batch_size"), [(24, 4), (23, 4), (7, 4), (5, 1)])
def test_fit_sees_the_order_of_seed_and_epoch(num, batch_size, shuffle):
    x, y = linear_data(num)
    model = linear_model()
    batches = epoch_batches(x, y, batch_size, seed=5)
    model.fit(batches, epochs=3, shuffle=shuffle, verbose=0)
    np.testing.assert_allclose(
        model.get_weights()[0],
        weights_after(x, y, batch_size, 5, range(3)),
        rtol=1e-4,
        atol=1e-6,
    )
    assert batches.epoch == 3


def test_a_model_that_fit_has_to_build_sees_the_same_order():
    x, y = linear_data(24)
    model = keras.Sequential(
        [keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")]
    )
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(epoch_batches(x, y, 4, seed=5), epochs=2, verbose=0)
    np.testing.assert_allclose(
        model.get_weights()[0], weights_after(x, y, 4, 5, range(2)), rtol=1e-4
    )


def test_a_second_fit_goes_on_with_the_next_epoch():
    x, y = linear_data(24)
    model, batches = linear_model(), epoch_batches(x, y, 4, seed=5)
    model.fit(batches, epochs=1, verbose=0)
    model.fit(batches, epochs=3, initial_epoch=1, validation_data=(x, y), verbose=0)
    np.testing.assert_allclose(
        model.get_weights()[0], weights_after(x, y, 4, 5, range(3)), rtol=1e-4
    )


def test_a_resumed_run_ends_with_the_same_bits():
    x, y = linear_data(23)
    whole, first, second = linear_model(), linear_model(), linear_model()
    whole.fit(epoch_batches(x, y, 4, seed=5), epochs=3, verbose=0)
    first.fit(epoch_batches(x, y, 4, seed=5), epochs=1, verbose=0)
    second.set_weights(first.get_weights())
    second.fit(
        epoch_batches(x, y, 4, seed=5, initial_epoch=1),
        epochs=3,
        initial_epoch=1,
        verbose=0,
    )
    np.testing.assert_array_equal(whole.get_weights(), second.get_weights())


def test_an_epoch_that_was_broken_off_is_played_again():
    class StopInTheMiddle(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = True

    x, y = linear_data(4000)
    model, batches = linear_model(), epoch_batches(x, y, 2, seed=5)
    model.fit(batches, epochs=1, callbacks=[StopInTheMiddle()], verbose=0)
    model.set_weights([np.zeros((2, 1), "f4")])
    model.fit(batches, epochs=1, verbose=0)
    assert batches.epoch == 1


def test_a_single_batch_keeps_its_rows_in_place():
    x, y = linear_data(6)
    batches = epoch_batches(x, y, 100, seed=5)
    batches.on_epoch_begin()
    np.testing.assert_array_equal(batches[0][0], x)


@settings(max_examples=25, deadline=None)
@given(
    num=st.integers(1, 40),
    batch_size=st.integers(1, 50),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 1000),
)
def test_an_epoch_holds_every_row_once(num, batch_size, seed, epoch):
    rows = np.arange(num)
    batches = epoch_batches(rows, rows, batch_size, seed=seed, initial_epoch=epoch)
    batches.on_epoch_begin()
    asked = np.random.default_rng(0).permutation(len(batches))
    seen = [batches[int(i)] for i in asked]
    np.testing.assert_array_equal(np.sort(np.concatenate([x for x, _ in seen])), rows)
    assert all((x == y).all() for x, y in seen)
    assert [len(x) for x, _ in seen[:-1]] == [batch_size] * (len(batches) - 1)


def test_rows_of_a_series_are_taken_by_position():
    labels = pd.Series([0, 1, 2, 3], index=[3, 2, 1, 0])
    batches = epoch_batches(np.arange(4), labels, 2, seed=0)
    batches.on_epoch_begin()
    assert all((x == y).all() for x, y in (batches[0], batches[1]))


def test_several_workers_are_refused():
    x, y = linear_data(24)
    batches = epoch_batches(x, y, 4, seed=5)
    batches.workers = 4
    with pytest.raises(ValueError, match="order of the batches.*workers=4"):
        linear_model().fit(batches, verbose=0)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="JAX reshuffles")
def test_keras_still_repeats_one_order_in_all_epochs():
    """The reason for `epoch_batches`; when this fails, Keras has mended it."""

    class Order(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            losses.append([])

        def on_train_batch_end(self, batch, logs=None):
            losses[-1].append(logs["loss"])

    losses = []
    keras.utils.set_random_seed(0)
    model = linear_model()
    model.optimizer.learning_rate = 0.0
    x, y = linear_data(12)
    model.fit(x, y, batch_size=1, epochs=3, callbacks=[Order()], verbose=0)
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "`batch_size`"),
        ({"batch_size": 2.0}, "`batch_size`"),
        ({"batch_size": True}, "`batch_size`"),
        ({"seed": -1}, "`seed`"),
        ({"seed": None}, "`seed`"),
        ({"initial_epoch": -1}, "`initial_epoch`"),
        ({"y": np.ones(3)}, "`x` and `y`"),
        ({"y": None}, "`x` and `y`"),
        ({"x": {"a": np.ones(4)}}, "`x` and `y`"),
        ({"x": np.ones((0, 2)), "y": np.ones(0)}, "at least 1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    good = {"x": np.ones((4, 2)), "y": np.ones(4), "batch_size": 2, "seed": 0}
    with pytest.raises(ValueError, match=f"{message}.*Received"):
        epoch_batches(**{**good, **arguments})
