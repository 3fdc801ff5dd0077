"""Images as patches: the order of pixels, the inverse, and the embedding as a strided convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.nn.patches import (
    PatchEmbedding,
    color_classes,
    colors_of_classes,
    grid_of,
    patchify,
    unpatchify,
)
from vfm_jax.nn.resample import resample_patch_kernel, resize_matrix


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


@pytest.mark.parametrize(("name", "patch_size"), [("patch_embed", 8), ("patch_embed_b", 5)])
def test_the_embedding_equals_timm(golden_directory, name, patch_size):
    with np.load(golden_directory / "components" / f"{name}.npz") as golden:
        golden = dict(golden)
    params = {"kernel": jnp.asarray(golden["weight"].transpose(2, 3, 1, 0)), "bias": jnp.asarray(golden["bias"])}
    layer = PatchEmbedding(width=len(golden["bias"]), patch_size=patch_size)
    patches = patchify(jnp.asarray(golden["x_nchw"].transpose(0, 2, 3, 1)), patch_size)
    np.testing.assert_allclose(layer.apply({"params": params}, patches), golden["y"], rtol=1e-4, atol=1e-5)


def test_one_stored_kernel_serves_every_patch_size(key):
    """FlexiViT: a patch made larger gives the token that it gave (Beyer et al., 2022)."""
    image = jax.random.normal(key, (2, 3, 3, 2), jnp.float32)  # one patch of 3 x 3
    small, large = (PatchEmbedding(width=5, patch_size=size, kernel_size=3) for size in (3, 6))
    params = jax.jit(small.init)(key, patchify(image, 3))["params"]
    assert jax.tree.map(jnp.shape, params) == {"kernel": (3, 3, 2, 5), "bias": (5,)}
    resize = resize_matrix(3, 6, "bilinear")
    resized = jnp.asarray(np.einsum("ih,jw,bhwc->bijc", resize, resize, image), jnp.float32)
    token = large.apply({"params": params}, patchify(resized, 6))
    np.testing.assert_allclose(token, small.apply({"params": params}, patchify(image, 3)), rtol=1e-4, atol=1e-5)
    kernel = params["kernel"]
    assert resample_patch_kernel(kernel, (6, 6)).shape == (6, 6, 2, 5)
    grads = jax.grad(lambda p: jnp.sum(large.apply({"params": p}, patchify(resized, 6))))(params)
    assert grads["kernel"].shape == kernel.shape and (np.abs(grads["kernel"]).max() > 0)


def test_an_embedding_without_an_offset_has_none(key):
    layer = PatchEmbedding(width=5, patch_size=2, use_bias=False)
    params = layer.init(key, jnp.ones((1, 3, 12), jnp.float32))["params"]
    assert list(params) == ["kernel"]


@pytest.mark.parametrize(("levels", "channels"), [(8, 3), (2, 3), (5, 1), (3, 4)])
def test_every_class_of_colours_has_its_own_place_between_minus_one_and_one(levels, channels):
    classes = jnp.arange(levels**channels)[None]
    colors = colors_of_classes(classes, levels, channels)
    assert colors.min() > -1 and colors.max() < 1
    np.testing.assert_array_equal(color_classes(colors, 1, levels), classes)
    shaken = colors + jax.random.uniform(jax.random.key(0), colors.shape, jnp.float32, -0.9, 0.9) / levels
    np.testing.assert_array_equal(color_classes(shaken, 1, levels), classes)


def test_a_patch_counts_by_its_mean_colour_and_colours_out_of_range_by_the_nearest():
    image = jnp.zeros((1, 2, 4, 3)).at[0, 0, 0].set(2.4).at[0, :, 2:].set(jnp.array([-3.0, 0.3, 9.0]))
    classes = color_classes(patchify(image, 2), 4, 8)
    np.testing.assert_array_equal(classes, [[6 + 8 * 6 + 64 * 6, 0 + 8 * 5 + 64 * 7]])
