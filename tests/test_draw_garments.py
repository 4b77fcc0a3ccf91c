import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.fashion_mnist import draw_garments

TROUSER, DRESS, SANDAL, SNEAKER, ANKLE_BOOT = 1, 3, 5, 7, 9


def test_types_and_shapes_are_those_of_fashion_mnist():
    images, labels = draw_garments(30)
    assert images.shape == (30, 28, 28) and images.dtype == np.uint8
    assert labels.shape == (30,) and labels.dtype == np.uint8


@settings(max_examples=15, deadline=None)
@given(num_samples=st.integers(1, 45), seed=st.integers(0, 2**64))
def test_kinds_are_balanced_whatever_the_number_and_the_seed(num_samples, seed):
    images, labels = draw_garments(num_samples, seed=seed)
    counts = np.bincount(labels, minlength=10)
    assert len(images) == len(labels) == num_samples
    assert len(counts) == 10 and counts.max() - counts.min() <= 1


def test_order_of_kinds_is_random():
    _, labels = draw_garments(1000)
    assert len(np.unique(labels[:100])) == 10
    # Of neighbours in a random order 1 in 10 are alike, standard deviation 0.01;
    # sorted they would all be alike, in turns none.
    assert 0.05 < np.mean(labels[1:] == labels[:-1]) < 0.15


def test_number_and_seed_settle_every_pixel():
    images, labels = draw_garments(50, seed=7)
    again, labels_again = draw_garments(np.int16(50), seed=np.uint8(7))
    np.testing.assert_array_equal(images, again)
    np.testing.assert_array_equal(labels, labels_again)


def test_another_seed_gives_other_pictures_and_another_order():
    images, labels = draw_garments(50, seed=7)
    other, other_labels = draw_garments(50, seed=8)
    assert np.any(labels != other_labels)
    assert not {image.tobytes() for image in images} & {i.tobytes() for i in other}


def test_no_two_pictures_are_the_same():
    images, _ = draw_garments(500)
    assert len({image.tobytes() for image in images}) == 500


def test_global_random_state_is_neither_read_nor_changed():
    np.random.seed(1)
    before = np.random.get_state()
    images, _ = draw_garments(20)
    for part, unchanged in zip(before, np.random.get_state(), strict=True):
        np.testing.assert_array_equal(part, unchanged)
    np.random.seed(2)
    np.testing.assert_array_equal(images, draw_garments(20)[0])


def test_every_picture_shows_a_garment_on_a_black_background():
    images, _ = draw_garments(2000)
    shown = (images > 25).sum(axis=(1, 2))
    assert shown.min() >= 20
    assert (images == 0).mean(axis=(1, 2)).min() > 0.2
    assert np.mean(images[:, [0, 0, -1, -1], [0, -1, 0, -1]] == 0) > 0.99


def test_labels_name_the_silhouettes():
    images, labels = draw_garments(1000)
    height = (images > 0).any(axis=2).sum(axis=1)
    width = (images > 0).any(axis=1).sum(axis=1)
    tallness = [np.median((height / width)[labels == kind]) for kind in range(10)]
    order = np.argsort(tallness)
    assert set(order[:2]) == {SANDAL, SNEAKER} and order[2] == ANKLE_BOOT
    assert set(order[-2:]) == {TROUSER, DRESS}
    # Between the legs of a trouser there is background below, cloth above.
    middle = images[labels == TROUSER][:, :, 12:16].min(axis=2) > 0
    assert middle[:, 5:10].mean() > 0.7 > 0.4 > middle[:, 18:22].mean()


def test_network_learns_what_linear_models_cannot():
    images, labels = draw_garments(4000)
    x = images.reshape(-1, 784) / np.float32(255)
    (x, x_test), (y, y_test) = np.split(x, [3200]), np.split(labels, [3200])

    means = np.stack([x[y == kind].mean(axis=0) for kind in range(10)])
    distance = np.square(x_test[:, None] - means).sum(axis=-1)
    nearest_mean = np.mean(distance.argmin(axis=1) == y_test)
    centre = x.mean(axis=0)  # ridge regression on the one-hot labels
    gram = (x - centre).T @ (x - centre) + 100 * np.eye(784)
    weights = np.linalg.solve(gram, (x - centre).T @ (np.eye(10)[y] - 0.1))
    ridge = np.mean(((x_test - centre) @ weights).argmax(axis=1) == y_test)

    keras.utils.set_random_seed(0)
    hidden = [keras.layers.Dense(100, activation="relu") for _ in range(2)]
    model = keras.Sequential([keras.Input((784,)), *hidden, keras.layers.Dense(10)])
    model.compile(
        keras.optimizers.Adam(2e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(x, y, batch_size=100, epochs=12, verbose=0)
    outputs = keras.ops.convert_to_numpy(model(x_test))
    network = np.mean(outputs.argmax(axis=1) == y_test)

    assert 0.5 < nearest_mean < 0.75 and 0.6 < ridge < 0.8
    assert max(nearest_mean, ridge) + 0.04 < network < 0.99


@pytest.mark.parametrize(
    "value", [0, -3, 10.0, np.nan, True, np.True_, "10", None, [10], np.arange(2)]
)
def test_number_that_is_no_positive_integer_is_refused(value):
    with pytest.raises(ValueError, match="`num_samples`.*Received: num_samples="):
        draw_garments(value)


@pytest.mark.parametrize("value", [-1, 0.0, np.inf, False, "0", None])
def test_seed_that_is_no_non_negative_integer_is_refused(value):
    with pytest.raises(ValueError, match="`seed`.*Received: seed="):
        draw_garments(10, seed=value)
