"""NT-Xent against the authors' code, and its properties."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from vfm_jax.losses.contrastive import contrastive_accuracy, nt_xent


def test_nt_xent_is_half_the_authors_sum_with_gradient(golden_directory):
    golden = np.load(golden_directory / "losses" / "simclr.npz")
    meta = json.loads(str(golden["meta"]))
    temperature = meta.get("config", meta)["temperature"]
    x = jnp.asarray(golden["x"])
    b = x.shape[0] // 2
    value, grad = jax.value_and_grad(lambda x: jnp.mean(nt_xent(x[:b], x[b:], temperature)))(x)
    np.testing.assert_allclose(2 * value, golden["loss"], rtol=1e-5)
    np.testing.assert_allclose(2 * grad, golden["grad_x"], rtol=1e-5, atol=1e-6)


def test_nt_xent_does_not_depend_on_the_order_of_examples_or_views(key):
    first, second = jax.random.normal(key, (2, 7, 5), jnp.float32)
    straight = nt_xent(first, second, 0.3)
    np.testing.assert_allclose(nt_xent(second, first, 0.3), straight, rtol=1e-5)
    np.testing.assert_allclose(nt_xent(first[::-1], second[::-1], 0.3), straight[::-1], rtol=1e-5)


def test_nt_xent_of_indistinguishable_embeddings_is_the_log_of_the_choices():
    same = jnp.ones((6, 3), jnp.float32)
    np.testing.assert_allclose(nt_xent(same, same, 0.1), np.log(2 * 6 - 1), rtol=1e-6)


def test_a_zero_embedding_has_a_finite_gradient(key):
    first = jax.random.normal(key, (4, 3), jnp.float32).at[0].set(0.0)
    grad = jax.grad(lambda x: jnp.mean(nt_xent(x, x[::-1], 0.5)))(first)
    assert np.isfinite(grad).all()


def test_contrastive_accuracy_counts_examples_nearest_to_their_own_pair():
    first = jnp.eye(3, dtype=jnp.float32)
    second = first[jnp.array([0, 2, 1])]
    np.testing.assert_array_equal(contrastive_accuracy(first, second), [1.0, 0.0, 0.0])
