"""Measures of a representation: RankMe against stable-pretraining's, the others at their ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.metrics.representation import alignment, effective_rank, feature_std, uniformity


@pytest.mark.parametrize("kind", ["full", "low", "scaled"])
def test_the_effective_rank_equals_that_of_stable_pretraining(golden_directory, kind):
    golden = np.load(golden_directory / "eval" / "rankme.npz")
    np.testing.assert_allclose(effective_rank(jnp.asarray(golden[f"x_{kind}"])), golden[f"rankme_{kind}"], rtol=1e-4)
    wide = effective_rank(jnp.asarray(golden[f"x_{kind}"].T))  # the other Gram matrix
    np.testing.assert_allclose(wide, golden[f"rankme_{kind}"], rtol=1e-4)


def test_a_collapsed_representation_is_at_the_lower_end():
    same = jnp.broadcast_to(jnp.array([[1.0, -2.0, 0.5]]), (20, 3))
    np.testing.assert_allclose(feature_std(same), 0, atol=1e-6)
    np.testing.assert_allclose(effective_rank(same), 1, rtol=2e-3)
    np.testing.assert_allclose(uniformity(same), 0, atol=1e-5)


def test_directions_drawn_evenly_are_at_the_upper_end():
    x = jax.random.normal(jax.random.key(0), (2000, 8), jnp.float32)
    np.testing.assert_allclose(feature_std(x), 1, rtol=0.01)
    np.testing.assert_allclose(feature_std(5 * x), feature_std(x), rtol=1e-5)
    z = x / jnp.linalg.norm(x, axis=1, keepdims=True)
    distances = np.asarray(jnp.sum((z[:, None] - z[None]) ** 2, axis=-1))[~np.eye(2000, dtype=bool)]
    np.testing.assert_allclose(uniformity(x), np.log(np.exp(-2 * distances).mean()), rtol=1e-3)


def test_views_that_agree_have_alignment_zero_and_strangers_two():
    x = jax.random.normal(jax.random.key(0), (500, 1, 16), jnp.float32)
    np.testing.assert_allclose(alignment(jnp.concatenate([x, 3 * x, x], axis=1)), 0, atol=1e-5)
    strangers = jax.random.normal(jax.random.key(1), (500, 3, 16), jnp.float32)
    np.testing.assert_allclose(alignment(strangers), 2, atol=0.05)
