"""Text tower: what its tokens see, and which one stands for a text; its numbers: weights/test_two_tower.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.models.text import TextTransformer

TINY = {"width": 8, "depth": 2, "mlp_dim": 12, "heads": 2, "vocabulary": 20, "length": 7}
TEXT = jnp.array([[3, 9, 19, 4, 4, 1], [5, 19, 2, 19, 0, 0], [7, 8, 6, 5, 3, 2]], jnp.int32)


def tokens_seen(model, variables, token, mask=None):
    """Which words the token at this place depends on."""
    words = variables["params"]["token_embedding"]

    def value(offset):
        # every word of the text is moved on its own: ids 10 to 15 stand for places 0 to 5
        moved = {"params": variables["params"] | {"token_embedding": words.at[10:16].add(offset)}}
        seen = model.apply(moved, jnp.arange(10, 16, dtype=jnp.int32)[None], mask).tokens[0, token]
        return seen @ jnp.arange(8.0)  # their sum is the same whatever they depend on, after layer normalization

    slope = jax.grad(value)(jnp.zeros((6, 8), jnp.float32))
    return (np.abs(slope).sum(axis=1) > 0).tolist()


@pytest.mark.parametrize("scan", [False, True])
def test_a_causal_tower_looks_back_and_not_at_padding(scan, key):
    model = TextTransformer(**TINY, scan=scan)
    variables = model.init(key, TEXT)
    assert tokens_seen(model, variables, 3) == [True] * 4 + [False] * 2
    mask = jnp.array([[True, False, True, True, False, True]])
    assert tokens_seen(model, variables, 3, mask) == [True, False, True, True, False, False]


def test_a_bidirectional_tower_looks_everywhere_but_at_padding(key):
    model = TextTransformer(**TINY, causal=False)
    variables = model.init(key, TEXT)
    assert tokens_seen(model, variables, 1) == [True] * 6
    mask = jnp.array([[True, True, True, True, False, False]])
    assert tokens_seen(model, variables, 1, mask) == [True] * 4 + [False] * 2


@pytest.mark.parametrize(
    ("pooling", "places"), [("argmax", (2, 1, 1)), ("end_token", (2, 1, 0)), ("last", (5, 5, 5))]
)
def test_the_token_that_stands_for_a_text(pooling, places, key):
    model = TextTransformer(**TINY, pooling=pooling, end_token=19)
    features, _ = model.init_with_output(key, TEXT)
    np.testing.assert_array_equal(features.pooled, features.tokens[jnp.arange(3), jnp.array(places)])


def test_the_projection_follows_pooling_and_has_an_offset_if_asked(key):
    for biased in (False, True):
        model = TextTransformer(**TINY, projection=5, projection_bias=biased, dtype=jnp.bfloat16)
        features, variables = model.init_with_output(key, TEXT)
        assert features.pooled.shape == (3, 5)
        assert features.pooled.dtype == features.tokens.dtype == jnp.float32
        assert ("bias" in variables["params"]["projection"]) == biased


def test_a_shorter_text_uses_the_first_positions_and_a_longer_one_is_refused(key):
    model = TextTransformer(**TINY)
    variables = model.init(key, TEXT)
    whole = model.apply(variables, TEXT).tokens
    np.testing.assert_allclose(model.apply(variables, TEXT[:, :4]).tokens, whole[:, :4], rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="cut them to 7"):
        model.apply(variables, jnp.zeros((1, 8), jnp.int32))


def test_a_pooling_that_cannot_be_is_refused(key):
    with pytest.raises(UserError, match="argmax, end_token, last"):
        TextTransformer(**TINY, pooling="mean").init(key, TEXT)
    with pytest.raises(UserError, match="needs end_token"):
        TextTransformer(**TINY, pooling="end_token").init(key, TEXT)
