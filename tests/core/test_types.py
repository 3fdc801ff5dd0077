"""What every encoder returns."""

import jax
import jax.numpy as jnp
import numpy as np

from vfm_jax.core.types import Features


def test_patch_tokens_are_those_behind_the_prefix():
    tokens = jnp.arange(2.0 * 7 * 3).reshape(2, 7, 3)
    features = Features(tokens, tokens[:, 0], (), (2, 3), num_prefix_tokens=1)
    np.testing.assert_array_equal(features.patch_tokens, tokens[:, 1:])


def test_grid_and_prefix_are_no_leaves_and_survive_a_transformation():
    features = Features(jnp.ones((2, 7, 3)), jnp.ones((2, 3)), (jnp.ones((2, 7, 3)),), (2, 3), 1)
    assert len(jax.tree.leaves(features)) == 3
    doubled = jax.jit(lambda f: jax.tree.map(lambda a: 2 * a, f))(features)
    assert (doubled.grid, doubled.num_prefix_tokens) == ((2, 3), 1)
