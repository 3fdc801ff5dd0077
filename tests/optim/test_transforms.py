"""Our pieces give what optax's give, Adam's first steps with more digits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vfm_jax.optim.groups import LeafSettings
from vfm_jax.optim.schedules import constant, linear
from vfm_jax.optim.transforms import (
    add_weight_decay,
    clip_by_norm,
    hold_frozen,
    scale_by_adam,
    scale_by_rate,
    scale_by_trust_ratio,
)


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


def test_adam_keeps_its_first_moment_in_bfloat16_and_computes_it_in_float32(key):
    grads = {"w": jax.random.normal(key, (4, 5))}
    tx, reference = (scale_by_adam(b1=0.9, b2=0.95, eps=1e-8, momentum_dtype=d) for d in ("bfloat16", "float32"))
    state, expected_state = tx.init(grads), reference.init(grads)
    first, state = tx.update(grads, state)
    expected, expected_state = reference.update(grads, expected_state)
    np.testing.assert_array_equal(first["w"], expected["w"])
    assert state.mu["w"].dtype == jnp.bfloat16 and state.nu["w"].dtype == jnp.float32
    np.testing.assert_array_equal(state.mu["w"], expected_state.mu["w"].astype(jnp.bfloat16))


@pytest.mark.parametrize("max_norm", [0.1, 1e3])
def test_clipping_is_optaxs(key, max_norm):
    grads = {"w": jax.random.normal(key, (4, 3, 5)), "b": jnp.ones(2)}
    leaves = dict.fromkeys(grads, LeafSettings(clip=("all", max_norm)))
    found, _ = clip_by_norm(leaves).update(grads, optax.EmptyState(), grads)
    expected, _ = optax.clip_by_global_norm(max_norm).update(grads, optax.EmptyState())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


def test_leaves_are_clipped_with_those_of_their_name_and_others_not(key):
    grads = {name: jax.random.normal(jax.random.fold_in(key, i), (3, 5)) for i, name in enumerate("abcd")}
    clips = dict(a=("one", 0.5), b=("one", 0.5), c=("two", 2.0), d=None)
    found, _ = clip_by_norm({n: LeafSettings(clip=c) for n, c in clips.items()}).update(grads, optax.EmptyState())
    np.testing.assert_allclose(optax.tree.norm({"a": found["a"], "b": found["b"]}), 0.5, rtol=1e-6)
    np.testing.assert_allclose(found["a"] / grads["a"], found["b"] / grads["b"], rtol=1e-5)
    np.testing.assert_allclose(optax.tree.norm(found["c"]), 2.0, rtol=1e-6)
    np.testing.assert_array_equal(found["d"], grads["d"])


def test_clipping_leaves_a_zero_gradient_zero():
    tx = clip_by_norm({"": LeafSettings(clip=("all", 0.5))})
    found, _ = tx.update(jnp.zeros(3), optax.EmptyState(), jnp.zeros(3))
    np.testing.assert_array_equal(found, jnp.zeros(3))


def test_decay_and_rate_may_be_schedules_of_a_leafs_own():
    params = {"a": jnp.ones(2), "b": jnp.ones(2), "c": jnp.ones(2)}
    rising = linear(base=0.1, end=0.3, total_steps=2)
    leaves = {
        "a": LeafSettings(weight_decay=rising),
        "b": LeafSettings(weight_decay=0.5, schedule=constant(base=2.0, total_steps=2)),
        "c": LeafSettings(lr_scale=0.25),
    }
    tx = optax.chain(add_weight_decay(leaves), scale_by_rate(leaves, linear(base=1.0, end=0.0, total_steps=4)))
    state = tx.init(params)
    for step in range(3):
        updates, state = jax.jit(tx.update)(jax.tree.map(jnp.ones_like, params), state, params)
        rate = 1 - step / 4
        np.testing.assert_allclose(updates["a"], -rate * (1 + [0.1, 0.2, 0.3][step]), rtol=1e-6)
        np.testing.assert_allclose(updates["b"], -2.0 * 1.5, rtol=1e-6)
        np.testing.assert_allclose(updates["c"], -0.25 * rate, rtol=1e-6)


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
    tx = optax.chain(inner, hold_frozen({"encoder/w": 2, "head/w": 0}))
    state, expected_state = tx.init(params), inner.init(params)
    for step in range(4):
        grads = jax.tree.map(lambda p, s=step: p * (1.0 + s), params)
        updates, state = tx.update(grads, state, params)
        expected, expected_state = inner.update(grads, expected_state, params)
        np.testing.assert_array_equal(updates["head"]["w"], expected["head"]["w"])
        wanted = jnp.zeros((2, 3)) if step < 2 else expected["encoder"]["w"]
        np.testing.assert_array_equal(updates["encoder"]["w"], wanted)
    assert state[1]["count"] == 4
