"""Pooling by a learned query; tests/models/test_vit.py holds its numbers to big_vision's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.nn.pooling import AttentionPooling


@pytest.fixture(scope="module")
def pooled():
    layer = AttentionPooling(width=12, heads=3, mlp_dim=20)
    tokens = jax.random.normal(jax.random.key(0), (2, 7, 12), jnp.float32)
    output, variables = jax.jit(layer.init_with_output)(jax.random.key(1), tokens)
    return layer, variables, tokens, output


def test_one_vector_per_image_whatever_the_order_of_its_tokens(pooled):
    layer, variables, tokens, output = pooled
    assert output.shape == (2, 12)
    np.testing.assert_allclose(jax.jit(layer.apply)(variables, tokens[:, ::-1]), output, rtol=1e-5, atol=1e-6)


def test_weights_follow_the_tokens_and_sum_to_one(pooled):
    layer, variables, tokens, _ = pooled
    look = jax.jit(lambda tokens: layer.apply(variables, tokens, method="weights"))
    weights = look(tokens)
    assert weights.shape == (2, 3, 7)
    np.testing.assert_allclose(jnp.sum(weights, axis=-1), np.ones((2, 3)), rtol=1e-5)
    turned = look(tokens[:, ::-1])
    np.testing.assert_allclose(turned, weights[:, :, ::-1], rtol=1e-5, atol=1e-6)
