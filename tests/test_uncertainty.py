import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from matplotlib.figure import Figure

from recipes.uncertainty import (
    accuracy_at_coverage,
    apply_temperature,
    auroc,
    brier_score,
    expected_calibration_error,
    expected_entropy,
    fit_temperature,
    mutual_information,
    negative_log_likelihood,
    plot_coverage,
    plot_entropy_split,
    plot_in_and_out,
    plot_most_uncertain,
    plot_reliability,
    predictive_entropy,
    variation_ratio,
)

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def softmax(logits):
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def draw(seed, *, sharpness=3.0, samples=4, inputs=30, classes=5):
    """Samples and labels; confidences tie and vanish now and then."""
    rng = np.random.default_rng(seed)
    rows = softmax(sharpness * rng.normal(size=(samples, inputs, classes)))
    rows[:, : inputs // 5] = np.eye(classes)[0]
    return rows, rng.integers(classes, size=inputs)


# Measures per input.


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_entropy_of_a_uniform_row_is_the_log_of_the_number_of_classes(classes):
    rows = np.full((3, classes), 1 / classes)
    np.testing.assert_allclose(predictive_entropy(rows), math.log(classes), rtol=1e-12)


def test_entropy_of_a_one_hot_row_is_exactly_plus_zero():
    entropy = predictive_entropy(np.eye(4))
    assert np.all(entropy == 0) and not np.signbit(entropy).any()


def test_entropies_of_two_samples_by_hand():
    # Input 0: sure, but of two things. Input 1: both samples undecided.
    samples = [[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]]
    ln2 = math.log(2)
    np.testing.assert_allclose(expected_entropy(samples), [0, ln2])
    np.testing.assert_allclose(mutual_information(samples), [ln2, 0])


@few
@given(seeds)
def test_entropy_laws(seed):
    samples, _ = draw(seed)
    mean = samples.mean(axis=0)
    total, expected = predictive_entropy(mean), expected_entropy(samples)
    information = mutual_information(samples)
    by_loop = [-sum(p * math.log(p) for p in row if p > 0) for row in mean]
    np.testing.assert_allclose(total, by_loop, atol=1e-12)
    np.testing.assert_allclose(total, expected + information, atol=1e-12)
    assert np.all(total <= math.log(5) + 1e-12)
    # The other definition: mean divergence of the samples from their mean.
    ratios = np.log(np.where(samples > 0, samples / np.where(mean > 0, mean, 1), 1))
    divergence = (samples * ratios).sum(axis=-1).mean(axis=0)
    np.testing.assert_allclose(information, divergence, atol=1e-12)


@few
@given(seeds, st.integers(1, 9))
def test_equal_samples_hold_no_information_and_never_less(seed, copies):
    samples, _ = draw(seed, samples=1)
    information = mutual_information(np.repeat(samples, copies, axis=0))
    assert np.all((information >= 0) & (information < 1e-12))


def test_variation_ratio_counts_votes_over_samples_not_inputs():
    # samples = inputs = classes, where a transposed axis goes unnoticed by shape.
    # Rows are samples: 0 0 1 / 0 1 2 / 0 1 0.
    votes = np.array([[0, 0, 1], [0, 1, 2], [0, 1, 0]])
    np.testing.assert_allclose(variation_ratio(np.eye(3)[votes]), [0, 1 / 3, 2 / 3])


def test_a_tie_inside_a_sample_votes_for_the_first_class():
    samples = [[[0.5, 0.5]], [[1.0, 0.0]], [[0.0, 1.0]]]
    np.testing.assert_allclose(variation_ratio(samples), [1 / 3])


@few
@given(seeds)
def test_variation_ratio_is_the_share_outside_the_mode(seed):
    samples, _ = draw(seed, samples=7)
    votes = samples.argmax(axis=-1).T.tolist()
    expected = [1 - max(map(row.count, row)) / 7 for row in votes]
    np.testing.assert_allclose(variation_ratio(samples), expected)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_narrow_floats_are_measured_in_float64(dtype):
    rows = softmax(np.random.default_rng(0).normal(size=(6, 50, 1000))).astype(dtype)
    for measure in (expected_entropy, mutual_information, variation_ratio):
        result = measure(rows)
        assert result.dtype == np.float64
        exact = rows.astype("float64")
        exact /= exact.sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(result, measure(exact), atol=1e-12)
    # 1000 roundings in a row, and still no entropy above its bound.
    flat = np.full((2, 1000), 1 / 1000, dtype=dtype)
    assert np.all(predictive_entropy(flat) <= math.log(1000) + 1e-12)


# Scores of a whole set.


def test_scores_by_hand():
    probabilities, labels = [[0.25, 0.75], [0.5, 0.5], [1.0, 0.0]], [0, 1, 0]
    nll = negative_log_likelihood(probabilities, labels)
    assert nll == pytest.approx((math.log(4) + math.log(2) + 0) / 3)
    # 2 * 0.75^2, 2 * 0.5^2, 0
    assert brier_score(probabilities, labels) == pytest.approx((1.125 + 0.5) / 3)
    assert brier_score([[0.0, 1.0]], [0]) == 2


def test_a_label_called_impossible_makes_the_likelihood_infinite():
    assert negative_log_likelihood([[1.0, 0.0], [0.5, 0.5]], [1, 0]) == math.inf


def test_a_perfect_prediction_has_likelihood_plus_zero():
    nll = negative_log_likelihood(np.eye(3), [0, 1, 2])
    assert nll == 0 and math.copysign(1, nll) == 1


def test_likelihood_of_the_mean_is_below_the_mean_of_the_likelihoods():
    samples, labels = draw(0, inputs=4)
    single = [negative_log_likelihood(rows, labels) for rows in samples]
    assert negative_log_likelihood(samples.mean(axis=0), labels) < np.mean(single)


def test_calibration_error_by_hand():
    # Two bins. Low: confidences 0.4, 0.4, accuracy 1/2. High: 0.6, 1.0, accuracy 1/2.
    probabilities = [[0.4, 0.3, 0.3], [0.3, 0.4, 0.3], [0.6, 0.4, 0.0], [0, 0, 1]]
    error = expected_calibration_error(probabilities, [0, 0, 0, 1], num_bins=2)
    assert error == pytest.approx((2 * abs(0.5 - 0.4) + 2 * abs(0.5 - 0.8)) / 4)


def test_full_confidence_is_in_the_last_bin():
    # 0.9 right and 1.0 wrong share the bin [0.8, 1]: |1 / 2 - 0.95|. Apart: 0.55.
    error = expected_calibration_error([[0.9, 0.1], [1, 0]], [0, 1], num_bins=5)
    assert error == pytest.approx(0.45)
    assert expected_calibration_error([[1.0, 0.0]], [0]) == 0


@few
@given(seeds, st.sampled_from([1, 2, 7, 15, np.int64(64)]))
def test_calibration_error_equals_a_loop_over_bins(seed, num_bins):
    samples, labels = draw(seed)
    confidence = samples[0].max(axis=1)
    correct = samples[0].argmax(axis=1) == labels
    edges = np.linspace(0, 1, num_bins + 1)
    expected = 0.0
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = (low <= confidence) & ((confidence < high) | (high == 1))
        if inside.any():
            gap = correct[inside].mean() - confidence[inside].mean()
            expected += inside.mean() * abs(gap)
    result = expected_calibration_error(samples[0], labels, num_bins=num_bins)
    assert result == pytest.approx(expected, abs=1e-12)


def test_accuracy_at_coverage_by_hand():
    confidence = np.array([0.6, 0.9, 0.8, 0.7, 0.95])
    labels = [0, 0, 1, 0, 0]  # only the third most confident is wrong
    rows = np.stack([confidence, 1 - confidence], axis=-1)
    shares = np.array([[0.01, 0.4], [0.6, 1.0]])
    expected = [[1, 1], [2 / 3, 4 / 5]]
    result = accuracy_at_coverage(rows, labels, coverage=shares)
    np.testing.assert_allclose(result, expected)
    # 0.5 * 5 = 2.5 keeps 2 and 0.7 * 5 = 3.5 keeps 4: halves go to even.
    assert accuracy_at_coverage(rows, labels, coverage=0.5) == 1
    assert accuracy_at_coverage(rows, labels, coverage=0.7) == 3 / 4
    default = accuracy_at_coverage(rows, labels)
    assert default == 3 / 4 and isinstance(default, float)


def test_inputs_of_equal_confidence_count_with_their_mean_accuracy():
    rows = [[1.0, 0.0], [0.8, 0.2], [0.8, 0.2], [0.8, 0.2], [0.8, 0.2]]
    for labels in ([0, 1, 0, 0, 1], [0, 0, 1, 1, 0]):
        result = accuracy_at_coverage(rows, labels, coverage=[0.2, 0.4, 1])
        np.testing.assert_allclose(result, [1, 1.5 / 2, 3 / 5])


def pair_counting(scores, positives):
    pairs = np.subtract.outer(scores[positives], scores[~positives])
    return np.mean((pairs > 0) + 0.5 * (pairs == 0))


# Few values, so many ties; both groups are made to occur.
scored = arrays.arrays(
    "int64", st.integers(2, 30), elements=st.integers(-6, 6)
).flatmap(
    lambda scores: st.tuples(
        st.just(scores),
        arrays.arrays(bool, len(scores)).filter(lambda p: p.any() and not p.all()),
    )
)


@few
@given(scored)
def test_auroc_counts_pairs(drawn):
    scores, positives = drawn
    area = auroc(scores, positives)
    assert area == pytest.approx(pair_counting(scores, positives), abs=1e-12)
    assert area == auroc(np.exp(scores / 3) - 7, positives.astype("uint8"))
    assert area == pytest.approx(1 - auroc(-scores, positives), abs=1e-12)


@few
@given(seeds)
def test_the_order_of_the_inputs_does_not_matter(seed):
    samples, labels = draw(seed)
    order = np.random.default_rng(seed).permutation(len(labels))
    rows = samples[0]
    scores = predictive_entropy(rows)
    wrong = np.arange(len(labels)) % 3 == 0
    for measure in (expected_entropy, mutual_information, variation_ratio):
        np.testing.assert_array_equal(
            measure(samples[:, order]), measure(samples)[order]
        )
    for score in (
        brier_score,
        negative_log_likelihood,
        expected_calibration_error,
        accuracy_at_coverage,
        fit_temperature,
    ):
        assert score(rows[order], labels[order]) == pytest.approx(score(rows, labels))
    assert auroc(scores[order], wrong[order]) == auroc(scores, wrong)


# Temperature.


@pytest.mark.parametrize("temperature", [0.2, 1.0, 3.5])
def test_a_known_temperature_is_found_again(temperature):
    # Every class of a row in its true share, as often as it is probable: the
    # calibrated logits are then the exact minimum, with no sampling noise.
    rows = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3]])
    labels = np.concatenate(
        [np.repeat([0, 1, 2], np.rint(10 * r).astype(int)) for r in rows]
    )
    scaled = softmax(temperature * np.log(np.repeat(rows, 10, axis=0)))
    found = fit_temperature(scaled, labels)
    assert isinstance(found, float) and found == pytest.approx(temperature, rel=1e-9)
    repaired = apply_temperature(scaled, found)
    np.testing.assert_allclose(repaired, np.repeat(rows, 10, axis=0), rtol=1e-8)


@few
@given(seeds)
def test_no_other_temperature_has_a_lower_likelihood(seed):
    samples, labels = draw(seed)
    rows = samples[0]
    found = fit_temperature(rows, labels)
    best = negative_log_likelihood(apply_temperature(rows, found), labels)
    for other in np.geomspace(0.01, 100, 60):
        nll = negative_log_likelihood(apply_temperature(rows, other), labels)
        assert best <= nll + 1e-9


def test_temperature_at_the_ends_of_its_range():
    sure = np.eye(3)
    assert fit_temperature(sure, [0, 1, 2]) == pytest.approx(0.01)
    assert fit_temperature(sure, [1, 2, 0]) == pytest.approx(100)
    assert fit_temperature(np.full((4, 3), 1 / 3), [0, 1, 2, 0]) == 1


def test_a_sure_error_still_has_a_finite_temperature():
    # Right 3 times in 4 with 1e-38 as the floor: 1e-38^(1/T) = 1/3.
    rows = np.array([[1.0, 0.0]] * 4, dtype="float32")
    found = fit_temperature(rows, [0, 0, 0, 1])
    assert found == pytest.approx(38 * math.log(10) / math.log(3))
    np.testing.assert_allclose(apply_temperature(rows, found)[0], [0.75, 0.25])


@few
@given(seeds, st.floats(0.05, 50))
def test_apply_temperature_is_a_softmax_that_keeps_the_prediction(seed, temperature):
    logits = 3 * np.random.default_rng(seed).normal(size=(20, 5))
    result = apply_temperature(softmax(logits), temperature)
    np.testing.assert_allclose(result, softmax(logits / temperature), atol=1e-12)
    np.testing.assert_array_equal(result.argmax(axis=1), logits.argmax(axis=1))


# Plots.


def test_plots_make_their_own_figures_without_pyplot_or_draw_where_told(tmp_path):
    samples, labels = draw(1)
    mean = samples.mean(axis=0)
    scores = mutual_information(samples)
    for number, plot in enumerate(
        [
            lambda axes: plot_reliability(mean, labels, axes=axes),
            lambda axes: plot_coverage(mean, labels, axes=axes),
            lambda axes: plot_in_and_out(scores[:10], scores[10:], axes=axes),
            lambda axes: plot_entropy_split(scores, scores, axes=axes),
        ]
    ):
        figure = plot(None)
        assert type(figure) is Figure and len(figure.axes) == 1
        assert figure.canvas.manager is None  # pyplot knows nothing of it
        axes = figure.axes[0]
        assert axes.get_xlabel() and axes.get_ylabel() and axes.get_title()
        figure.savefig(tmp_path / f"{number}.png")
        given_axes = Figure().subplots(1, 2)[1]
        assert plot(given_axes) is given_axes.figure
        assert given_axes.get_title() == axes.get_title()


def test_reliability_bars_are_the_accuracies_of_the_full_bins():
    rows = [[0.6, 0.4], [0.6, 0.4], [1.0, 0.0]]
    axes = plot_reliability(rows, [0, 1, 0], num_bins=5).axes[0]
    assert [bar.get_height() for bar in axes.patches if hasattr(bar, "get_height")] == [
        0.5,
        1,
    ]
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[0.6, 0.5], [1, 1]])
    assert "0.067" in axes.get_title()  # 2 / 3 * |0.5 - 0.6|


def test_entropy_is_split_into_its_two_parts():
    rows, _ = draw(0, inputs=200)
    noise, disagreement = expected_entropy(rows), mutual_information(rows)
    axes = plot_entropy_split(noise, disagreement).axes[0]
    lower, upper = (patch.get_data() for patch in axes.patches)
    assert len(lower.values) == 50
    np.testing.assert_allclose(lower.values.mean(), noise.mean())
    np.testing.assert_allclose(upper.baseline, lower.values)
    total = predictive_entropy(rows.mean(axis=0))
    np.testing.assert_allclose(
        upper.values, np.sort(total).reshape(50, 4).mean(axis=1), atol=1e-12
    )
    assert f"{disagreement.sum() / total.sum():.0%}" in axes.get_title()
    plot_entropy_split([0.0], [0.0])
    with pytest.raises(ValueError, match="`mutual_information`.*lengths 1 and 2"):
        plot_entropy_split([0.0, 1.0], [0.0])


def test_coverage_curve_ends_at_the_accuracy():
    rows = [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]]
    axes = plot_coverage(rows, [0, 0, 1, 0]).axes[0]
    expected = [[0.25, 1], [0.5, 1], [0.75, 2 / 3], [1, 0.75]]
    np.testing.assert_allclose(axes.lines[0].get_xydata(), expected)
    assert "0.750 on all" in axes.get_title()


def test_in_and_out_shows_shares_and_the_area():
    axes = plot_in_and_out([0.0, 1.0], [1.0, 2.0, 3.0]).axes[0]
    assert "0.917" in axes.get_title()  # 5.5 of 6 pairs
    totals = [patch.get_data().values.sum() for patch in axes.patches]
    np.testing.assert_allclose(totals, 1)
    plot_in_and_out([0.5], [0.5])  # all equal: no range to divide


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_most_uncertain_shows_the_highest_entropies_first(channels, tmp_path):
    # Input i is the darker the surer, so the picture shows which one it is.
    top = np.array([0.9, 0.5, 0.7])
    mean = np.stack([top, 1 - top], axis=-1)
    images = np.zeros((3, 4, 4, *channels), dtype="uint8")
    images += np.array([0, 200, 100], "uint8").reshape(3, *[1] * (images.ndim - 1))
    figure = plot_most_uncertain(
        images,
        np.stack([mean + 0.05 * np.array([1, -1]), mean - 0.05 * np.array([1, -1])]),
        labels=[0, 1, 0],
        class_names=("cat", "dog"),
        num_images=2,
    )
    figure.savefig(tmp_path / "most.png")
    left, right, next_left, _ = figure.axes
    assert left.get_title() == "label: dog" and next_left.get_title() == "label: cat"
    assert left.images[0].get_array().max() == 1  # input 1, the whitest
    assert next_left.images[0].get_array().max() == 0
    assert [tick.get_text() for tick in right.get_yticklabels()] == ["cat", "dog"]
    assert "0.69 nats, mutual information 0.01 nats" in right.get_title()
    np.testing.assert_allclose([bar.get_width() for bar in right.patches], [0.5, 0.5])
    dots = right.collections[0].get_offsets()[:, 0]
    np.testing.assert_allclose(sorted(dots), [0.45, 0.45, 0.55, 0.55])
    assert figure.axes[-1].get_xlabel() == "probability"


def test_most_uncertain_takes_one_prediction_and_shows_ten_classes_at_most():
    rows, _ = draw(2, inputs=3, classes=40)
    figure = plot_most_uncertain(np.zeros((3, 2, 2)), rows[0])
    assert len(figure.axes) == 6  # all three inputs, though five were asked for
    for axes in figure.axes[1::2]:
        assert len(axes.patches) == 10 and not axes.collections
        assert "mutual" not in axes.get_title()
    entropy = predictive_entropy(rows[0])
    shown = [tick.get_text() for tick in figure.axes[1].get_yticklabels()]
    ten = np.sort(np.argsort(rows[0][entropy.argmax()])[-10:])
    assert shown == [str(c) for c in ten]


# What is refused.


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([0.2, 0.8], r"shape \(inputs, classes\).*sigmoid.*np.stack.*shape=\(2,\)"),
        ([[0.2], [0.8]], r"np.stack\(\[1 - p, p\], axis=-1\).*shape=\(2, 1\)"),
        ([[[0.2, 0.8]]], r"samples.mean\(axis=0\).*shape=\(1, 1, 2\)"),
        (np.zeros((0, 3)), r"none of them 0.*shape=\(0, 3\)"),
        ([[0.5, 0.6]], r"sum to 1.*sum=1.1"),
        ([[0.5, 0.5], [0.5, 0.4985]], r"within 0.001.*sum=0.9985"),
        ([[-0.1, 1.1]], r"in \[0, 1\].*min\(\)=-0.1"),
        ([[-0.0005, 1.0005]], r"in \[0, 1\].*min\(\)=-0.0005"),
        ([[2.5, -1.5]], r"logits need a softmax.*max\(\)=2.5"),
        ([[math.nan, 1.0]], r"finite.*min\(\)=nan"),
        ([[math.inf, 0.0]], r"finite.*max\(\)=inf"),
        ([["a", "b"]], r"array of numbers.*\['a', 'b'\]"),
        (None, r"shape=\(\)"),
    ],
)
def test_what_are_no_probabilities_is_refused_by_name(rows, message):
    with pytest.raises(ValueError, match="(?s)`probabilities`.*" + message):
        predictive_entropy(rows)
    with pytest.raises(ValueError, match="`probabilities`"):
        brier_score(rows, [0])
    with pytest.raises(ValueError, match="`probabilities`"):
        apply_temperature(rows, 1.0)


@pytest.mark.parametrize(
    "measure", [expected_entropy, mutual_information, variation_ratio]
)
def test_what_are_no_samples_is_refused_by_name(measure):
    with pytest.raises(ValueError, match=r"`samples`.*\(samples, inputs, classes\)"):
        measure([[0.2, 0.8]])
    with pytest.raises(ValueError, match=r"`samples`.*sum=0.9"):
        measure([[[0.2, 0.7]]])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0], r"shape \(2,\).*labels.shape=\(1,\)"),
        ([[0], [1]], r"labels.shape=\(2, 1\)"),
        ([[1, 0], [0, 1]], r"labels.shape=\(2, 2\)"),
        ([0.0, 1.0], "labels.dtype=float64"),
        ([True, False], "labels.dtype=bool"),
        ([0, 2], r"from 0 to 1.*max\(\)=2"),
        ([-1, 0], r"from 0 to 1.*min\(\)=-1"),
    ],
)
@pytest.mark.parametrize(
    "score",
    [
        negative_log_likelihood,
        brier_score,
        expected_calibration_error,
        accuracy_at_coverage,
        fit_temperature,
        plot_reliability,
        plot_coverage,
    ],
)
def test_wrong_labels_are_refused_by_name(score, labels, message):
    with pytest.raises(ValueError, match="`labels`.*" + message):
        score(np.eye(2), labels)


@pytest.mark.parametrize("wrong", [0, -1, 2.0, True, None, math.nan])
def test_wrong_counts_are_refused_by_name(wrong):
    for score in (expected_calibration_error, plot_reliability):
        with pytest.raises(ValueError, match="`num_bins`.*Received: num_bins="):
            score(np.eye(2), [0, 1], num_bins=wrong)
    with pytest.raises(ValueError, match="`num_images`.*Received: num_images="):
        plot_most_uncertain(np.zeros((2, 3, 3)), np.eye(2), num_images=wrong)


@pytest.mark.parametrize("wrong", [0, -0.1, 1.01, math.nan, [0.5, 0.0], "all"])
def test_wrong_coverage_is_refused_by_name(wrong):
    with pytest.raises(ValueError, match="`coverage`.*Received: coverage="):
        accuracy_at_coverage(np.eye(2), [0, 1], coverage=wrong)


@pytest.mark.parametrize("wrong", [0, -1.0, math.nan, math.inf, True, "1", None])
def test_wrong_temperature_is_refused_by_name(wrong):
    with pytest.raises(ValueError, match="`temperature`.*Received: temperature="):
        apply_temperature(np.eye(2), wrong)


@pytest.mark.parametrize(
    ("scores", "positives", "message"),
    [
        ([1.0, 2.0], [True, True], "`positives`.*one negative"),
        ([1.0, 2.0], [0, 0], "`positives`.*one positive"),
        ([1.0, 2.0, 3.0], [0, 1, 2], "`positives`.*no other value"),
        ([1.0, 2.0], [0.0, 1.0], "`positives`.*booleans"),
        ([1.0, 2.0], [True], "`positives` must be 2"),
        ([1.0, math.nan], [True, False], "`scores`.*finite"),
        ([[1.0, 2.0]], [[True, False]], r"`scores`.*\(1, 2\)"),
        ([], [], "`scores`.*at least one"),
    ],
)
def test_wrong_scores_are_refused_by_name(scores, positives, message):
    with pytest.raises(ValueError, match=message):
        auroc(scores, positives)


def test_wrong_arguments_of_the_other_plots_are_refused_by_name():
    with pytest.raises(ValueError, match="`scores_in`"):
        plot_in_and_out([], [1.0])
    with pytest.raises(ValueError, match="`scores_out`"):
        plot_in_and_out([1.0], [math.inf])
    images = np.zeros((2, 3, 3))
    for wrong in (images[:1], images[0], np.zeros((2, 3, 3, 2)), images + math.nan):
        with pytest.raises(ValueError, match="`images`"):
            plot_most_uncertain(wrong, np.eye(2))
    with pytest.raises(ValueError, match="`class_names`.*2 names"):
        plot_most_uncertain(images, np.eye(2), class_names=["one"])
    with pytest.raises(ValueError, match="`labels`"):
        plot_most_uncertain(images, np.eye(2), labels=[0, 2])


def test_the_caller_keeps_his_arrays():
    samples, labels = draw(3)
    before = samples.copy()
    mutual_information(samples)
    apply_temperature(samples[0], fit_temperature(samples[0], labels))
    np.testing.assert_array_equal(samples, before)
