"""Epochs, examples, steps and percent as whole steps."""

import pytest

from vfm_jax.core.durations import Clock, read_duration, read_durations
from vfm_jax.core.errors import UserError

CLOCK = Clock(batch_size=32, num_examples=1000, total_steps=640)


@pytest.mark.parametrize(
    ("value", "unit", "steps"),
    [
        (7, "steps", 7),
        (3, "epochs", 94),  # 93.75
        (0.5, "epochs", 16),  # 15.625
        (100, "examples", 3),  # 3.125
        (112, "examples", 4),  # 3.5, to the even
        (5, "percent", 32),
        (0.2, "percent", 1),  # 1.28
        (0, "epochs", 0),
    ],
)
def test_every_unit_is_rounded_to_whole_steps(value, unit, steps):
    assert CLOCK.steps(value, unit, "config.x") == steps


@pytest.mark.parametrize("unit", ["steps", "epochs", "examples", "percent"])
def test_any_positive_duration_is_at_least_one_step(unit):
    assert CLOCK.steps(1e-6, unit, "config.x") == 1


def test_an_epoch_need_not_be_a_whole_number_of_steps():
    assert CLOCK.steps_per_epoch == 31.25


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "10", True, None])
def test_what_is_no_duration_is_refused_by_its_path(value):
    with pytest.raises(UserError, match=r"config\.warmup_epochs is .*expected a number of epochs, zero or more"):
        CLOCK.steps(value, "epochs", "config.warmup_epochs")


def test_a_run_cannot_be_as_long_as_a_percentage_of_itself():
    with pytest.raises(UserError, match="length of the run itself"):
        Clock(32, 1000).steps(10, "percent", "config.total_percent")


@pytest.mark.parametrize(
    ("fields", "steps"),
    [
        ({"warmup_steps": 9}, 9),
        ({"warmup_epochs": 2}, 62),
        ({"warmup_examples": 320}, 10),
        ({"warmup_percent": 25}, 160),
        ({"warmup_steps": None, "warmup_percent": 50}, 320),
        ({"warmup_steps": 0}, 0),
    ],
)
def test_the_field_that_is_set_says_its_unit(fields, steps):
    assert read_duration({"other_steps": 3} | fields, "warmup", CLOCK, "config") == steps


def test_without_any_field_the_default_holds():
    assert read_duration({"other_steps": 3}, "warmup", CLOCK, "config") is None
    assert read_duration({"warmup_epochs": None}, "warmup", CLOCK, "config", default=4) == 4


def test_two_units_for_one_duration_are_refused():
    with pytest.raises(UserError, match="config sets both warmup_steps and warmup_epochs; keep one"):
        read_duration({"warmup_epochs": 1, "warmup_steps": 5}, "warmup", CLOCK, "config")


def test_a_bad_value_is_named_by_its_whole_path():
    with pytest.raises(UserError, match=r"config\.evals\.knn\.every_epochs is -2"):
        read_duration({"every_epochs": -2}, "every", CLOCK, "config.evals.knn")


def test_a_field_may_hold_several_durations():
    assert read_durations({"drop_epochs": (3, 6)}, "drop", CLOCK, "config.schedule") == (94, 188)
    assert read_durations({"drop_percent": 5}, "drop", CLOCK, "config.schedule") == 32
    assert read_durations({}, "drop", CLOCK, "config.schedule") is None
    with pytest.raises(UserError, match=r"config\.schedule\.drop_epochs\[1\] is -1"):
        read_durations({"drop_epochs": (3, -1)}, "drop", CLOCK, "config.schedule")
