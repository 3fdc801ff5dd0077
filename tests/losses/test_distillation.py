"""Losses of distillation against their formulas in numpy, and their properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from vfm_jax.losses.distillation import cosine_distance, hard_targets, smooth_l1, soft_targets, squared_distance


@pytest.fixture
def pair(key):
    return jax.random.normal(key, (2, 6, 5), jnp.float32) * 3


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_targets_are_the_divergence_of_the_softened_probabilities(pair, temperature):
    student, teacher = (scipy.special.softmax(np.asarray(x, np.float64) / temperature, axis=1) for x in pair)
    expected = temperature**2 * scipy.special.rel_entr(teacher, student).sum(axis=1)
    np.testing.assert_allclose(soft_targets(*pair, temperature), expected, rtol=1e-5)
    np.testing.assert_allclose(soft_targets(pair[1], pair[1], temperature), 0, atol=1e-6)


def test_hard_targets_are_the_cross_entropy_with_the_likeliest_class(pair):
    student, teacher = pair
    expected = -scipy.special.log_softmax(np.asarray(student, np.float64), axis=1)[range(6), teacher.argmax(axis=1)]
    np.testing.assert_allclose(hard_targets(student, teacher), expected, rtol=1e-5)


def test_distances_of_features_are_their_formulas(pair):
    x, y = (np.asarray(z, np.float64) for z in pair)
    gap = np.abs(x - y)
    huber = np.where(gap < 1, 0.5 * gap**2, gap - 0.5).mean(axis=1)
    cosine = 1 - (x * y).sum(axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    np.testing.assert_allclose(smooth_l1(*pair), huber, rtol=1e-5)
    np.testing.assert_allclose(cosine_distance(*pair), cosine, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(squared_distance(*pair), (gap**2).mean(axis=1), rtol=1e-5)


def test_a_zero_feature_has_a_finite_gradient(pair):
    x = pair[0].at[0].set(0.0)
    assert np.isfinite(jax.grad(lambda x: jnp.sum(cosine_distance(x, pair[1])))(x)).all()
