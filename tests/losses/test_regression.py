"""The regression losses of BYOL and SimSiam against the authors' code, and their ranges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.losses.regression import negative_cosine, normalized_distance

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.mark.parametrize("name", ["byol", "byol_b"])
def test_byol_equals_the_authors_with_gradients(golden_directory, name):
    golden = np.load(golden_directory / "losses" / f"{name}.npz")
    target_for_1, target_for_2 = jnp.asarray(golden["target_for_1"]), jnp.asarray(golden["target_for_2"])

    def loss(prediction_1, prediction_2):
        first = normalized_distance(prediction_1, target_for_1)
        return jnp.mean(first + normalized_distance(prediction_2, target_for_2)), first

    predictions = jnp.asarray(golden["pred1"]), jnp.asarray(golden["pred2"])
    (value, first), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(*predictions)
    np.testing.assert_allclose(value, golden["loss"], **CLOSE)
    np.testing.assert_allclose(first, golden["per_example_1"], **CLOSE)
    np.testing.assert_allclose(grads[0], golden["grad_pred1"], **CLOSE)
    np.testing.assert_allclose(grads[1], golden["grad_pred2"], **CLOSE)


@pytest.mark.parametrize("name", ["simsiam", "simsiam_b"])
def test_simsiam_equals_the_authors_with_gradients(golden_directory, name):
    golden = np.load(golden_directory / "losses" / f"{name}.npz")
    z1, z2 = jnp.asarray(golden["z1"]), jnp.asarray(golden["z2"])

    def loss(p1, p2):
        return jnp.mean(negative_cosine(p1, z2) + negative_cosine(p2, z1)) / 2

    value, grads = jax.value_and_grad(loss, argnums=(0, 1))(jnp.asarray(golden["p1"]), jnp.asarray(golden["p2"]))
    np.testing.assert_allclose(value, golden["loss"], **CLOSE)
    np.testing.assert_allclose(grads[0], golden["grad_p1"], **CLOSE)
    np.testing.assert_allclose(grads[1], golden["grad_p2"], **CLOSE)


def test_both_know_directions_alone_and_any_number_of_axes_before(key):
    p, z = jax.random.normal(key, (2, 3, 4, 5), jnp.float32)
    cosine = -negative_cosine(p, z)
    assert cosine.shape == (3, 4)
    np.testing.assert_allclose(normalized_distance(p, z), 2 - 2 * cosine, atol=1e-6)
    np.testing.assert_allclose(negative_cosine(100 * p, z / 100), -cosine, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(negative_cosine(p, p), -1, rtol=1e-6)
    np.testing.assert_allclose(normalized_distance(p, -p), 4, rtol=1e-6)


@pytest.mark.parametrize("loss", [negative_cosine, normalized_distance])
def test_a_zero_prediction_has_a_finite_gradient(key, loss):
    z = jax.random.normal(key, (2, 5), jnp.float32)
    assert np.isfinite(jax.grad(lambda p: jnp.sum(loss(p, z)))(jnp.zeros_like(z))).all()
