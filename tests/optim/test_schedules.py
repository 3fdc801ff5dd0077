"""Schedules agree with the authors' code and keep their ends."""

import jax
import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import build
from vfm_jax.optim import SCHEDULES
from vfm_jax.optim.schedules import constant, cosine, linear, rsqrt, wsd


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


@pytest.mark.parametrize("shape", ["linear", "sqrt"])
def test_wsd_is_stable_until_the_decay(shape):
    schedule = wsd(base=0.4, end=0.1, warmup_steps=2, total_steps=12, decay_steps=4, decay_shape=shape)
    progress = np.arange(5) / 4
    share = 1 - progress if shape == "linear" else 1 - np.sqrt(progress)
    found = curve(schedule, 14)
    np.testing.assert_allclose(found[:8], [0.0, 0.2] + [0.4] * 6, rtol=1e-6)
    np.testing.assert_allclose(found[8:13], 0.1 + 0.3 * share, rtol=1e-6)
    assert found[13] == np.float32(0.1)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_every_schedule_starts_at_the_warmups_start_and_gives_float32_scalars(name):
    spec = dict(name=name, base=3, start=0.125, **(dict(decay_steps=3) if name == "wsd" else {}))
    schedule = build(SCHEDULES, spec, "config.schedule", warmup_steps=4, total_steps=11)
    value = schedule(0)
    assert value.shape == () and value.dtype == np.float32 and value == 0.125
    assert schedule(4) == 3


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_no_warmup_starts_at_the_base(name):
    spec = dict(name=name, base=0.5, **(dict(decay_steps=3) if name == "wsd" else {}))
    assert build(SCHEDULES, spec, "config.schedule", warmup_steps=0, total_steps=11)(0) == 0.5


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("cosine", dict(warmup_steps=30), "warm-up takes 30 steps"),
        ("linear", dict(base=-0.1), "base is -0.1"),
        ("wsd", dict(decay_steps=19), "do not fit a run of 20 steps"),
        ("wsd", dict(decay_steps=5, decay_shape="sqr"), "Did you mean 'sqrt'"),
        ("rsqrt", dict(timescale_steps=0), "timescale_steps is 0"),
        ("cosine", dict(minimum=0.0), r"config\.schedule\.minimum"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(name, fields, message):
    spec = dict(name=name, **(dict(base=0.1, warmup_steps=2, total_steps=20) | fields))
    with pytest.raises(UserError, match=message):
        build(SCHEDULES, spec, "config.schedule")
