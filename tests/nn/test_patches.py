"""Images as patches: the order of pixels, the inverse, and the embedding as a strided convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.nn.patches import PatchEmbedding, grid_of, patchify, unpatchify


@pytest.mark.parametrize("channels", [1, 3, 13])
def test_unpatchify_is_the_inverse_of_patchify(channels):
    image = jnp.arange(2 * 8 * 12 * channels).reshape(2, 8, 12, channels)
    patches = patchify(image, 4)
    assert patches.shape == (2, 6, 16 * channels)
    np.testing.assert_array_equal(unpatchify(patches, (2, 3), 4), image)


def test_patches_are_in_raster_order_and_their_pixels_by_row_column_and_channel():
    image = np.arange(6 * 9 * 2).reshape(1, 6, 9, 2)
    patches = patchify(jnp.asarray(image), 3)
    np.testing.assert_array_equal(patches[0, 1], image[0, 0:3, 3:6].ravel())
    np.testing.assert_array_equal(patches[0, 3], image[0, 3:6, 0:3].ravel())


def test_a_grid_is_rows_and_columns():
    assert grid_of((8, 12), 4) == (2, 3)


@pytest.mark.parametrize("size", [(8, 10), (9, 12), (3, 3)])
def test_an_image_that_does_not_divide_is_refused_with_a_way_out(size):
    with pytest.raises(
        ValueError, match=rf"{size[0]} x {size[1]} pixels .* patches of 4\. Resize to a multiple of 4"
    ):
        grid_of(size, 4)


def test_the_embedding_is_the_strided_convolution_of_its_kernel(key):
    image = jax.random.normal(key, (2, 6, 9, 2), jnp.float32)
    layer = PatchEmbedding(width=5, patch_size=3)
    params = jax.jit(layer.init)(key, patchify(image, 3))["params"]
    params["bias"] = jnp.arange(5.0)
    assert params["kernel"].shape == (3, 3, 2, 5)
    expected = jax.lax.conv_general_dilated(
        image, params["kernel"], (3, 3), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    expected = expected.reshape(2, 6, 5) + params["bias"][None, None]
    np.testing.assert_allclose(layer.apply({"params": params}, patchify(image, 3)), expected, rtol=1e-5, atol=1e-5)
