"""Decoders of maps give pixels and features where their cells are; the common promises are in test_interface.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.nn.map_decoders import ConvDecoder, PixelHead, UpsamplingDecoder


def _tokens(width=8):
    return jax.random.normal(jax.random.key(1), (2, 6, width), jnp.float32)


def test_a_pixel_head_paints_each_cell_by_its_own_token():
    tokens = _tokens()
    image, variables = PixelHead().init_with_output(jax.random.key(0), tokens, (2, 3), 4, 3)
    assert image.shape == (2, 8, 12, 3)
    changed = PixelHead().apply(variables, tokens.at[:, 4].add(1.0), (2, 3), 4, 3)
    moved = np.abs(changed - image).max(axis=(0, 3)) > 0
    expected = np.zeros((8, 12), bool)
    expected[4:8, 4:8] = True  # the fifth of 2 x 3 cells
    np.testing.assert_array_equal(moved, expected)


@pytest.mark.parametrize("patch_size", [1, 2, 8])
def test_upsampling_reaches_the_images_size(patch_size):
    image, _ = UpsamplingDecoder(16).init_with_output(jax.random.key(0), _tokens(), (2, 3), patch_size, 5)
    assert image.shape == (2, 2 * patch_size, 3 * patch_size, 5)


def test_upsampling_takes_powers_of_two_and_groups_divide_the_channels():
    with pytest.raises(UserError, match="cells of 14 pixels"):
        UpsamplingDecoder().init(jax.random.key(0), _tokens(), (2, 3), 14, 3)
    with pytest.raises(UserError, match="3 groups"):
        ConvDecoder(12, 1, groups=3).init(jax.random.key(0), _tokens(), (2, 3))


def test_a_cell_of_the_convolutional_decoder_sees_as_far_as_its_kernels_reach():
    decoder, tokens = ConvDecoder(8, depth=1, kernel_size=3, groups=2), _tokens()
    out, variables = decoder.init_with_output(jax.random.key(0), tokens, (2, 3))
    changed = decoder.apply(variables, tokens.at[:, 0].add(1.0), (2, 3))
    moved = (np.abs(changed - out).max(axis=(0, 2)) > 1e-6).reshape(2, 3)
    np.testing.assert_array_equal(moved, [[True, True, False], [True, True, False]])
