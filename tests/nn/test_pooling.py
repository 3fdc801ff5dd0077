"""Pooling by a learned query; tests/models/test_vit.py holds its numbers to big_vision's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.nn.pooling import AttentionPooling, ProbePooling


@pytest.fixture(
    scope="module",
    params=[AttentionPooling(width=12, heads=3, mlp_dim=20), ProbePooling(width=12, heads=3)],
    ids=["with an MLP", "without"],
)
def pooled(request):
    layer = request.param
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


def test_what_is_not_valid_is_not_looked_at(pooled):
    layer, variables, tokens, _ = pooled
    valid = jnp.arange(7)[None] < jnp.asarray([4, 6])[:, None]
    some = jax.jit(lambda tokens: layer.apply(variables, tokens, valid))
    np.testing.assert_array_equal(some(tokens.at[0, 4:].add(1.0)), some(tokens))
    np.testing.assert_allclose(some(tokens)[0], layer.apply(variables, tokens[:1, :4])[0], rtol=1e-5, atol=1e-6)


def test_a_probe_is_the_query_itself(key):
    """Numbers are held to AIMv2's where its weights are read; here the formula."""
    layer = ProbePooling(width=6, heads=2, key_value_bias=True)
    tokens = jax.random.normal(key, (2, 5, 6), jnp.float32)
    shapes = jax.eval_shape(layer.init, key, tokens)["params"]
    params = jax.tree.map(lambda a: np.random.default_rng(a.size).standard_normal(a.shape).astype(np.float32), shapes)
    assert jax.tree.map(jnp.shape, params) == {
        "probe": (1, 6),
        "key_value": {"kernel": (6, 2, 2, 3), "bias": (2, 2, 3)},
        "out": {"kernel": (2, 3, 6), "bias": (6,)},
    }
    key_value = np.einsum("bnd,dthe->bnthe", tokens, params["key_value"]["kernel"]) + params["key_value"]["bias"]
    logits = np.einsum("he,bnhe->bhn", params["probe"].reshape(2, 3), key_value[:, :, 0]) / np.sqrt(3)
    weights = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    expected = np.einsum("bhn,bnhe,hed->bd", weights, key_value[:, :, 1], params["out"]["kernel"])
    expected = expected + params["out"]["bias"]
    found = layer.apply({"params": jax.tree.map(jnp.asarray, params)}, tokens)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
