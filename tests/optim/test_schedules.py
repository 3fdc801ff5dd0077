"""Schedules agree with the authors' code and keep their ends."""

import jax
import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import build
from vfm_jax.optim import SCHEDULES
from vfm_jax.optim.schedules import constant, cosine, linear, rsqrt, staircase, wsd

REQUIRED = {"wsd": dict(decay_steps=3), "staircase": dict(drop_steps=(7, 9))}


@pytest.fixture(scope="module")
def golden(golden_directory):
    with np.load(golden_directory / "components" / "schedules.npz") as arrays:
        return dict(arrays)


def curve(schedule, num_steps):
    """The learning rate of the steps from 0, each computed from a traced step."""
    return np.array(jax.jit(lambda steps: jax.lax.map(schedule, steps))(np.arange(num_steps, dtype=np.int32)))


def test_cosine_is_the_rule_of_mae_at_fractional_epochs(golden):
    steps_per_epoch = 4
    schedule = cosine(base=1.5e-4, warmup_steps=4 * steps_per_epoch, total_steps=20 * steps_per_epoch)
    found = curve(schedule, 80)
    np.testing.assert_allclose(found, golden["mae_lr"], rtol=1e-6, atol=0)
    assert found[0] == 0.0


def test_cosine_whose_warmup_reaches_the_base_is_the_rule_of_dino(golden):
    schedule = cosine(base=5e-4, end=1e-6, warmup_steps=15, total_steps=50, warmup_reaches_base=True)
    np.testing.assert_allclose(curve(schedule, 50), golden["dino_lr"], rtol=1e-6, atol=0)


@pytest.mark.parametrize(("name", "first", "last"), [("dino_momentum", 0.996, 1.0), ("dino_wd", 0.04, 0.4)])
def test_cosine_also_rises(golden, name, first, last):
    found = curve(cosine(base=first, end=last, total_steps=50), 50)
    np.testing.assert_allclose(found, golden[name], rtol=1e-6, atol=0)


def test_linear_falls_in_equal_steps_to_its_minimum_and_stays():
    found = curve(linear(base=0.5, end=0.1, warmup_steps=2, total_steps=6), 9)
    np.testing.assert_allclose(found, [0.0, 0.25, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1], rtol=1e-6)


def test_constant_stays_at_the_base_after_the_warmup():
    found = curve(constant(base=0.3, warmup_steps=3, total_steps=5, start=0.15), 6)
    np.testing.assert_allclose(found, [0.15, 0.2, 0.25, 0.3, 0.3, 0.3], rtol=1e-6)


def test_rsqrt_halves_three_timescales_after_the_warmup():
    found = curve(rsqrt(base=0.2, warmup_steps=4, total_steps=10, timescale_steps=7), 26)
    np.testing.assert_allclose(found[[0, 2, 4, 4 + 3 * 7]], [0.0, 0.1, 0.2, 0.1], rtol=1e-6)


def test_rsqrt_with_a_cooldown_is_big_visions():
    fields = dict(base=0.2, warmup_steps=4, total_steps=30, timescale_steps=7, cooldown_steps=10)
    steps = np.arange(31)
    expected = 0.2 / np.sqrt(1 + np.maximum(steps - 4, 0) / 7)
    expected *= np.minimum(1, steps / 4) * np.minimum(1, (30 - steps) / 10)
    np.testing.assert_allclose(curve(rsqrt(**fields), 31), expected, rtol=1e-6, atol=1e-9)


def test_delay_and_warmup_of_cosine_are_dinov2s(golden):
    fields = dict(base=0.004, end=1e-6, warmup_steps=12, delay_steps=5, total_steps=60, warmup_reaches_base=True)
    found = curve(cosine(**fields), 80)
    np.testing.assert_allclose(found[:60], golden["dinov2_cosine"], rtol=1e-6, atol=0)
    np.testing.assert_allclose(found[60:], golden["dinov2_after_end"], rtol=1e-6)


def test_rescaled_cosine_is_dinov3s_truncated_one(golden):
    # Its 48 steps after the warm-up are the first of 60 from `base` to `end`, both of them included.
    fields = dict(base=0.004, end=1e-6, warmup_steps=12, warmup_reaches_base=True)
    found = curve(cosine(**fields, total_steps=59, decay_steps=60 - 1, rescale=True), 60)
    np.testing.assert_allclose(found, golden["dinov3_trunc"], rtol=1e-6, atol=0)
    assert found[-1] == np.float32(1e-6)


def test_cosine_shorter_than_the_run_is_dinov3s(golden):
    # Their 30 steps of cosine include both ends.
    found = curve(cosine(base=1e-3, end=1e-5, warmup_steps=10, decay_steps=30 - 1, total_steps=50), 50)
    np.testing.assert_allclose(found, golden["dinov3_linear_cosine"], rtol=1e-6, atol=0)


def test_a_curve_longer_than_the_run_is_cut_as_in_ijepa():
    whole = curve(cosine(base=1.0, warmup_steps=4, total_steps=25), 20)
    np.testing.assert_array_equal(curve(cosine(base=1.0, warmup_steps=4, decay_steps=21, total_steps=20), 20), whole)
    found = curve(linear(base=0.996, end=1.0, decay_steps=25, total_steps=20), 30)
    np.testing.assert_allclose(found[:26], 0.996 + 0.004 * np.arange(26) / 25, rtol=1e-6)
    np.testing.assert_array_equal(found[25:], np.float32(1.0))


@pytest.mark.parametrize(("steps_per_epoch", "warmup_steps"), [(1, 5), (4, 20), (4, 21), (7, 34)])
def test_held_constant_is_the_teachers_temperature_of_dino(golden_directory, steps_per_epoch, warmup_steps):
    """Also where the warm-up, made into steps, is not quite a number of epochs."""
    with np.load(golden_directory / "losses" / "dino_v1.npz") as golden:
        expected = np.repeat(golden["teacher_temp_schedule"], steps_per_epoch)
    fields = dict(start=0.04, base=0.07, warmup_steps=warmup_steps, warmup_reaches_base=True)
    schedule = constant(**fields, hold_steps=steps_per_epoch, total_steps=len(expected))
    np.testing.assert_allclose(curve(schedule, len(expected)), expected, rtol=1e-6)


@pytest.mark.parametrize(("name", "delay"), [("teacher_temp_schedule", 0), ("teacher_temp2_schedule", 2)])
def test_held_and_delayed_constant_is_the_temperature_of_ibot(golden_directory, name, delay):
    with np.load(golden_directory / "losses" / "ibot_v1.npz") as golden:
        expected = np.repeat(golden[name], 3)
    fields = dict(start=0.04, base=0.07, warmup_steps=30, warmup_reaches_base=True, delay_steps=3 * delay)
    np.testing.assert_allclose(curve(constant(**fields, hold_steps=3, total_steps=90), 90), expected, rtol=1e-6)


def test_held_cosine_changes_once_an_epoch():
    found = curve(cosine(base=0.05, total_steps=40, hold_steps=4), 40)
    per_epoch = 0.05 * 0.5 * (1 + np.cos(np.pi * np.arange(10) / 10))  # SimSiam's `adjust_learning_rate`
    np.testing.assert_allclose(found, np.repeat(per_epoch, 4), rtol=1e-6)


def test_staircase_drops_at_its_steps():
    found = curve(staircase(base=0.1, drop_steps=(4, 6), warmup_steps=2, total_steps=8), 8)
    np.testing.assert_allclose(found, [0.0, 0.05, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-6)


@pytest.mark.parametrize("shape", ["linear", "sqrt", "cosine"])
def test_wsd_is_stable_until_the_decay(shape):
    schedule = wsd(base=0.4, end=0.1, warmup_steps=2, total_steps=12, decay_steps=4, decay_shape=shape)
    progress = np.arange(5) / 4
    shares = dict(linear=1 - progress, sqrt=1 - np.sqrt(progress), cosine=(1 + np.cos(np.pi * progress)) / 2)
    share = shares[shape]
    found = curve(schedule, 14)
    np.testing.assert_allclose(found[:8], [0.0, 0.2] + [0.4] * 6, rtol=1e-6)
    np.testing.assert_allclose(found[8:13], 0.1 + 0.3 * share, rtol=1e-6)
    assert found[13] == np.float32(0.1)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_every_schedule_starts_at_the_warmups_start_and_gives_float32_scalars(name):
    spec = dict(name=name, base=3, start=0.125, **REQUIRED.get(name, {}))
    schedule = build(SCHEDULES, spec, "config.schedule", warmup_steps=4, total_steps=11)
    value = schedule(0)
    assert value.shape == () and value.dtype == np.float32 and value == 0.125
    assert schedule(4) == 3


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_no_warmup_starts_at_the_base(name):
    spec = dict(name=name, base=0.5, **REQUIRED.get(name, {}))
    assert build(SCHEDULES, spec, "config.schedule", warmup_steps=0, total_steps=11)(0) == 0.5


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("cosine", dict(warmup_steps=30), "warm-up takes 30 steps"),
        ("linear", dict(base=-0.1), "base is -0.1"),
        ("wsd", dict(decay_steps=19), "do not fit a run of 20 steps"),
        ("wsd", dict(decay_steps=5, decay_shape="sqr"), "Did you mean 'sqrt'"),
        ("rsqrt", dict(timescale_steps=0), "timescale_steps is 0"),
        ("rsqrt", dict(cooldown_steps=19), "cool-down .19 steps. do not fit a run of 20 steps"),
        ("cosine", dict(hold_steps=0), "hold_steps is 0"),
        ("constant", dict(delay_steps=19), "warm-up takes 21 steps"),
        ("staircase", dict(drop_steps=(5, 4)), "ascending"),
        ("staircase", dict(drop_steps=(1, 4)), "none in the warm-up"),
        ("cosine", dict(minimum=0.0), r"config\.schedule\.minimum"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(name, fields, message):
    spec = dict(name=name, **(dict(base=0.1, warmup_steps=2, total_steps=20) | fields))
    with pytest.raises(UserError, match=message):
        build(SCHEDULES, spec, "config.schedule")
