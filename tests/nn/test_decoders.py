"""MAE's decoder; tests/objectives/test_mae.py holds its numbers to the authors'."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.nn.decoders import MaskedDecoder

GRID, PIXELS = (2, 3), 9


@functools.partial(jax.jit, static_argnums=0)
def _decode(decoder, variables, tokens, keep):
    return decoder.apply(variables, tokens, keep, GRID, PIXELS)


@pytest.fixture(scope="module")
def decoded():
    decoder = MaskedDecoder(width=16, depth=1, heads=2)
    tokens = jax.random.normal(jax.random.key(0), (2, 1 + 3, 10), jnp.float32)
    keep = jnp.array([[4, 0, 3], [1, 5, 2]])
    variables = jax.jit(decoder.init, static_argnums=(3, 4))(jax.random.key(1), tokens, keep, GRID, PIXELS)
    output = _decode(decoder, variables, tokens, keep)
    return decoder, variables, tokens, keep, output


def test_every_patch_gets_pixels_and_prefix_tokens_none(decoded):
    assert decoded[-1].shape == (2, 6, PIXELS)


def test_tokens_are_placed_by_index_and_not_by_their_order(decoded):
    decoder, variables, tokens, keep, output = decoded
    order = jnp.array([2, 0, 1])
    turned = jnp.concatenate([tokens[:, :1], tokens[:, 1:][:, order]], axis=1)
    again = _decode(decoder, variables, turned, keep[:, order])
    np.testing.assert_allclose(again, output, rtol=1e-5, atol=1e-5)


def test_hidden_patches_differ_by_their_position_alone(decoded):
    """All hidden patches of an image start from one mask token, so only positions can tell them apart."""
    _, variables, _, keep, output = decoded
    assert variables["params"]["mask_token"].shape == (16,)
    hidden = np.setdiff1d(np.arange(6), np.asarray(keep[0]))
    assert np.ptp(np.asarray(output)[0, hidden], axis=0).max() > 1e-3


def test_pixels_are_float32_under_bfloat16(decoded):
    _, variables, tokens, keep, _ = decoded
    decoder = MaskedDecoder(width=16, depth=1, heads=2, dtype=jnp.bfloat16)
    assert jax.eval_shape(lambda *args: _decode(decoder, *args), variables, tokens, keep).dtype == jnp.float32
