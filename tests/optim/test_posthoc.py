"""Averages of any width from two that were tracked: Karras et al., 2023."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.optim.posthoc import combination, power_exponent, power_momentum, track_profiles

TRACKED = (0.05, 0.1)


@pytest.mark.parametrize(("sigma_rel", "gamma"), [(0.05, 16.97), (0.1, 6.94)])
def test_exponents_are_those_of_the_paper(sigma_rel, gamma):
    """Sec. 3.1 gives these two."""
    assert power_exponent(sigma_rel) == pytest.approx(gamma, abs=5e-3)


def test_the_average_weighs_updates_by_the_power_and_forgets_the_start():
    gamma, n = power_exponent(0.1), 50
    average = np.eye(n + 1)[0]  # the start is the first of n + 1 unit vectors, update k the one at k
    for step in range(n):
        momentum = float(power_momentum(step, gamma))
        average = momentum * average + (1 - momentum) * np.eye(n + 1)[step + 1]
    k = np.arange(n + 1)
    expected = np.diff((k / n) ** (gamma + 1), prepend=0.0)
    np.testing.assert_allclose(average, expected, atol=1e-6)
    mean = (average * k).sum() / n
    assert np.sqrt((average * (k / n - mean) ** 2).sum()) == pytest.approx(0.1, abs=2e-3)


@pytest.fixture(scope="module")
def run():
    """A random walk of 600 updates, the tracked averages saved every 25, and widths to ask for tracked as well."""
    walk = jnp.cumsum(jax.random.normal(jax.random.key(0), (600, 64)), axis=0) * 0.1
    widths = (*TRACKED, 0.07, 0.15)
    tracker = track_profiles(sigma_rel=widths)
    profiles = tracker.start({"w": walk[0]})
    turn = jax.jit(lambda profiles, step: tracker.update(profiles, {"w": walk[step]}, step))
    saved = {}
    for step in range(600):
        profiles = turn(profiles, step)
        if (step + 1) % 25 == 0:
            saved[step + 1] = [np.asarray(average["w"]) for average in profiles.values()]
    return saved


@pytest.mark.parametrize(("index", "sigma_rel"), [(0, 0.05), (1, 0.1), (2, 0.07), (3, 0.15)])
@pytest.mark.parametrize("step", [400, 600])
def test_a_width_chosen_afterwards_is_the_one_that_could_have_been_tracked(run, index, sigma_rel, step):
    factors = combination(list(run), TRACKED, sigma_rel, step)
    assert factors.sum() == pytest.approx(1.0, abs=1e-3)
    found = sum(f * average for row, averages in zip(factors, run.values(), strict=True)
                for f, average in zip(row, averages, strict=False))  # fmt: skip
    spread = np.linalg.norm(run[step][0] - run[step][3])
    assert np.linalg.norm(found - run[step][index]) < 0.01 * spread


@pytest.mark.parametrize("width", [0.0, 0.3, -0.1])
def test_a_width_that_cannot_be_is_refused(width):
    with pytest.raises(UserError, match=r"between 0 and 0\.289"):
        combination([10], TRACKED, width)


def test_a_profile_that_ends_before_the_first_save_is_refused():
    with pytest.raises(UserError, match="first 5 steps"):
        combination([10, 20], TRACKED, 0.1, 5)
