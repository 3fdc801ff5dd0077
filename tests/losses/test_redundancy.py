"""Barlow Twins and VICReg against the authors' code, and their properties."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from vfm_jax.losses.redundancy import barlow_twins, covariance_penalty, cross_correlation, variance_hinge

SAME = dict(rtol=1e-5, atol=1e-6)


def test_barlow_twins_is_the_authors_with_gradient(golden_directory):
    golden = np.load(golden_directory / "losses" / "barlow.npz")
    weight = json.loads(str(golden["meta"]))["config"]["lambd"]

    def loss(first, second):
        diagonal, rest = barlow_twins(cross_correlation(first, second))
        return diagonal + weight * rest

    views = jnp.asarray(golden["z1"]), jnp.asarray(golden["z2"])
    value, grads = jax.value_and_grad(loss, argnums=(0, 1))(*views)
    np.testing.assert_allclose(cross_correlation(*views), golden["c"], **SAME)
    np.testing.assert_allclose(value, golden["loss"], **SAME)
    np.testing.assert_allclose(grads[0], golden["grad_z1"], **SAME)
    np.testing.assert_allclose(grads[1], golden["grad_z2"], **SAME)


def test_vicreg_is_the_authors_with_gradient(golden_directory):
    golden = np.load(golden_directory / "losses" / "vicreg.npz")
    weights = json.loads(str(golden["meta"]))["config"]

    def terms(x, y):
        return {
            "sim": jnp.mean(jnp.square(x - y)),
            "std": (variance_hinge(x) + variance_hinge(y)) / 2,
            "cov": covariance_penalty(x) + covariance_penalty(y),
        }

    def loss(x, y):
        return sum((weights[name] * term for name, term in terms(x, y).items()), jnp.float32(0))

    views = jnp.asarray(golden["x"]), jnp.asarray(golden["y"])
    for name, term in terms(*views).items():
        np.testing.assert_allclose(term, golden[f"term_{name}"], **SAME)
    value, grads = jax.value_and_grad(loss, argnums=(0, 1))(*views)
    np.testing.assert_allclose(value, golden["loss"], **SAME)
    np.testing.assert_allclose(grads[0], golden["grad_x"], **SAME)
    np.testing.assert_allclose(grads[1], golden["grad_y"], **SAME)


def test_correlations_do_not_see_scale_or_shift(key):
    first, second = jax.random.normal(key, (2, 16, 3), jnp.float32)
    plain = cross_correlation(first, second, epsilon=0.0)
    moved = cross_correlation(first * 7 + 2, second * jnp.array([0.1, 1.0, 30.0])[None] - 5, epsilon=0.0)
    np.testing.assert_allclose(moved, plain, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jnp.diagonal(cross_correlation(first, first)), 1, rtol=1e-4)


def test_the_identity_costs_nothing_and_a_copied_dimension_does():
    assert jax.tree.leaves(barlow_twins(jnp.eye(5, dtype=jnp.float32))) == [0, 0]
    x = jnp.array([[1.0, 1.0], [-1.0, -1.0], [1.0, 1.0], [-1.0, -1.0]])
    np.testing.assert_allclose(barlow_twins(cross_correlation(x, x))[1], 2, rtol=1e-4)
    np.testing.assert_allclose(covariance_penalty(x), (4 / 3) ** 2, rtol=1e-6)  # two entries of (4/3)², over two


def test_a_collapsed_embedding_has_the_largest_hinge_and_a_finite_gradient():
    value, grad = jax.value_and_grad(variance_hinge)(jnp.full((6, 3), 2.0, jnp.float32))
    np.testing.assert_allclose(value, 1 - 0.01, rtol=1e-6)
    assert np.isfinite(grad).all()
    assert variance_hinge(jnp.array([[2.0], [-2.0]])) == 0
