"""Our pieces give what optax's give, Adam's first steps with more digits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vfm_jax.optim.groups import LeafSettings
from vfm_jax.optim.transforms import clip_by_global_norm, freeze_until, scale_by_adam, scale_by_trust_ratio


@pytest.mark.parametrize("b1", [0.0, 0.9])
def test_adam_is_optaxs(key, b1):
    grads = {"w": jax.random.normal(key, (4, 3, 5)), "b": jnp.zeros(2)}
    tx, reference = scale_by_adam(b1=b1, b2=0.95, eps=1e-3), optax.scale_by_adam(b1, 0.95, 1e-3)
    state, expected_state = tx.init(grads), reference.init(grads)
    for step in range(3):
        sent = jax.tree.map(lambda g, s=step: (1.0 + s) * g, grads)
        updates, state = tx.update(sent, state)
        with jax.numpy_dtype_promotion("standard"):
            expected, expected_state = reference.update(sent, expected_state)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7), updates, expected)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), state, expected_state)


def test_the_first_step_of_adam_is_the_sign_of_the_gradient():
    grads = jnp.array([1e-3, -2.0, 30.0], jnp.float32)
    tx = scale_by_adam(b1=0.9, b2=0.999, eps=0.0)
    updates, _ = tx.update(grads, tx.init(grads))
    np.testing.assert_allclose(updates, [1.0, -1.0, 1.0], rtol=5e-7)


@pytest.mark.parametrize("max_norm", [0.1, 1e3])
def test_clipping_is_optaxs(key, max_norm):
    grads = {"w": jax.random.normal(key, (4, 3, 5)), "b": jnp.ones(2)}
    found, _ = clip_by_global_norm(max_norm).update(grads, optax.EmptyState(), grads)
    expected, _ = optax.clip_by_global_norm(max_norm).update(grads, optax.EmptyState())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


def test_clipping_leaves_a_zero_gradient_zero():
    found, _ = clip_by_global_norm(0.5).update(jnp.zeros(3), optax.EmptyState(), jnp.zeros(3))
    np.testing.assert_array_equal(found, jnp.zeros(3))


@pytest.mark.parametrize(("length", "step"), [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_the_trust_ratio_is_optaxs_also_at_norm_zero(key, length, step):
    params = {"w": length * jax.random.normal(key, (2, 3, 5))}
    updates = {"w": step * jax.random.normal(jax.random.fold_in(key, 1), (2, 3, 5))}
    with jax.debug_nans(True):
        tx = scale_by_trust_ratio({"w": LeafSettings(0.0, 1.0, True)}, 0.02)
        found, _ = tx.update(updates, tx.init(params), params)
    expected, _ = optax.scale_by_trust_ratio(trust_coefficient=0.02).update(updates, optax.EmptyState(), params)
    np.testing.assert_allclose(found["w"], expected["w"], rtol=1e-6)


def test_frozen_leaves_wait_and_then_step_as_if_they_had_not(key):
    """Held at zero for the first updates; the first that counts is Adam's with the moments of all before it."""
    params = {"encoder": {"w": jax.random.normal(key, (2, 3))}, "head": {"w": jnp.ones(5)}}
    inner = scale_by_adam(b1=0.9, b2=0.95, eps=1e-3)
    tx = freeze_until(inner, r"^encoder/", 2)
    state, expected_state = tx.init(params), inner.init(params)
    for step in range(4):
        grads = jax.tree.map(lambda p, s=step: p * (1.0 + s), params)
        updates, state = tx.update(grads, state, params)
        expected, expected_state = inner.update(grads, expected_state, params)
        np.testing.assert_array_equal(updates["head"]["w"], expected["head"]["w"])
        wanted = jnp.zeros((2, 3)) if step < 2 else expected["encoder"]["w"]
        np.testing.assert_array_equal(updates["encoder"]["w"], wanted)
    assert state["count"] == 4
