"""What holds for every test."""

import pathlib

import keras
import pytest

ROOT = pathlib.Path(__file__).parent.parent
# What CI runs on each backend: the modules, the code in their texts, train.py.
ON_EACH_BACKEND = {
    f"test_{path.stem}"
    for path in [*(ROOT / "recipes").glob("*.py"), *(ROOT / "callbacks").glob("*.py")]
} | {
    "test_draw_garments",
    "test_bad_input",
    "test_docstrings",
    "test_docs",
    "test_train",
    "two_devices",
}
LONG_ON_JAX = {"test_docs", "test_docstrings"}  # it compiles each example anew
# What Keras 3.15 cannot do on PyTorch, and the tests that fail by it; docs/backends.md
# has the same list for users.
FAIL_ON_TORCH = {
    "`steps_per_execution` must be 1": {
        "test_each_loss_is_that_of_its_batch_alone_also_of_a_short_one[4]",
        "test_steps_of_one_execution_are_undone_together",
        "test_several_steps_in_one_call_are_refused_per_step",
        "test_several_steps_in_one_call_have_the_rate_of_their_epoch",
        "test_logger_writes_the_rate_of_the_last_step_of_a_schedule[False-4]",
        "test_logger_writes_the_rate_of_the_last_step_of_a_schedule[True-4]",
        "test_movement_in_fit_is_the_sum_of_the_rates[sgd-3]",
        "test_movement_in_fit_is_the_sum_of_the_rates[scaled-3]",
        "test_steps_of_an_epoch_are_in_groups_of_nearly_the_same_size",
        "test_a_callback_that_acts_before_each_step_gets_each_step",
    },
    "the mean of every loss is taken in float32": {
        "test_right_gradients_agree_with_differences",
        "test_wrong_gradients_are_seen_below_the_layer_that_makes_them",
        "test_gradient_and_difference_of_a_quadratic_are_its_closed_form",
        "test_gradients_in_float32_are_refused",
        "test_a_layer_or_loss_in_float32_is_refused",
        "test_fenced_example_runs[recipes.check_model:check_gradients:0]",
    },
    "several devices": {
        "test_fenced_example_runs[recipes.distribute:header:0]",
        "test_fenced_example_runs[recipes.distribute:all_devices:0]",
        "test_two_devices_train_as_one",
        "test_one_device_is_left_as_it_is",
    },
    "a variable assigned while a layer runs in mixed precision keeps its value": {
        "test_lsuv_works_in_mixed_precision",
    },
    "weight decay without a weight to decay is an error": {
        "test_weight_decay_comes_from_inside_and_can_be_excluded[True]",
    },
    "Nadam takes no bfloat16": {
        "test_weights_in_half_precision_take_keras_own_steps_as_well[nadam-bfloat16]",
    },
}


def pytest_collection_modifyitems(items):
    """Leave the rest to make test-all; know which tests fail on PyTorch."""
    backend = keras.backend.backend()
    reasons = {name: why for why, names in FAIL_ON_TORCH.items() for name in names}
    for item in items:
        if backend != "tensorflow" and item.path.stem not in ON_EACH_BACKEND:
            item.add_marker(pytest.mark.slow)
        if backend == "jax" and item.path.stem in LONG_ON_JAX:
            item.add_marker(pytest.mark.slow)
        for name in reasons.keys() & {item.name, item.originalname}:
            if backend == "torch":
                # Strict, so that one that has come to pass is taken off the list.
                item.add_marker(pytest.mark.xfail(reason=reasons[name], strict=True))


@pytest.fixture(autouse=True)
def seed():
    """Whatever a test leaves to chance is the same in each run."""
    keras.utils.set_random_seed(0)
