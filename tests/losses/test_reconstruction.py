"""Losses of hidden pixels and features: SimMIM and FCMAE against the authors' code, others against their formulas."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from vfm_jax.losses.reconstruction import (
    contextual_targets,
    masked_patch_mse,
    masked_pixel_l1,
    region_mse,
    restore_patches,
    scaled_l2,
    standardize_patches,
)
from vfm_jax.models import MODELS
from vfm_jax.nn.masking import hide_share, mask_by_noise, repeat_cells
from vfm_jax.nn.patches import patchify

CLOSE = dict(rtol=1e-5, atol=1e-6)


def _nhwc(array):
    return jnp.asarray(array.transpose(0, 2, 3, 1))


def _config(golden):
    meta = json.loads(str(golden["meta"]))
    return meta.get("config", meta)


@pytest.fixture(scope="module")
def simmim(golden_directory):
    with np.load(golden_directory / "losses" / "simmim.npz") as arrays:
        return dict(arrays)


def _of_pixels(simmim):
    """The masked pixels, from the masked patches of the model."""
    rows, columns = simmim["mask"].shape[1:]
    cells = jnp.asarray(simmim["mask"].reshape(-1, rows * columns).astype(bool))
    side = _config(simmim)["patch_size"]
    return repeat_cells(cells, (rows, columns), side).reshape(-1, rows * side, columns * side)


def test_simmim_masks_as_many_whole_squares_as_the_authors(simmim):
    config = _config(simmim)
    times = config["mask_patch_size"] // config["patch_size"]
    squares = simmim["mask"][:, ::times, ::times].astype(bool)
    grid = squares.shape[1:]
    flat = jnp.asarray(squares.reshape(len(squares), -1))
    hidden = hide_share(jnp.where(flat, 0.0, 1.0), config["mask_ratio"])  # of lowest noise
    np.testing.assert_array_equal(hidden, flat)
    again = repeat_cells(hidden, grid, times).reshape(simmim["mask"].shape)
    np.testing.assert_array_equal(again, simmim["mask"].astype(bool))


def test_simmim_equals_the_authors_with_gradients_through_the_head(simmim):
    stride, image = _config(simmim)["encoder_stride"], _nhwc(simmim["x"])
    grid = simmim["z"].shape[2:]
    order = "(c row column) d 1 1 -> d (row column c)"  # the pixel shuffle's order of outputs, as ours
    sides = dict(row=stride, column=stride)
    kernel = rearrange(simmim["decoder_weight"], order, **sides)
    bias = rearrange(simmim["decoder_bias"], "(c row column) -> (row column c)", **sides)
    params = {"pixels": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}}
    tokens = rearrange(jnp.asarray(simmim["z"]), "b d h w -> b (h w) d")

    def loss(params, tokens):
        made = MODELS["pixel_head"]().apply({"params": params}, tokens, grid, stride, 3)
        return jnp.mean(masked_pixel_l1(made, image, _of_pixels(simmim))), made

    (value, made), (of_params, of_tokens) = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, tokens)
    np.testing.assert_allclose(made, _nhwc(simmim["x_rec"]), **CLOSE)
    np.testing.assert_allclose(value, simmim["loss"], rtol=1e-5)
    of_kernel = of_params["pixels"]["kernel"]
    np.testing.assert_allclose(of_kernel, rearrange(simmim["grad_decoder_weight"], order, **sides), **CLOSE)
    np.testing.assert_allclose(of_tokens, rearrange(simmim["grad_z"], "b d h w -> b (h w) d"), **CLOSE)


def test_simmims_loss_of_a_given_image_equals_the_authors(simmim):
    def loss(prediction):
        return jnp.mean(masked_pixel_l1(prediction, _nhwc(simmim["x"]), _of_pixels(simmim)))

    value, grad = jax.value_and_grad(loss)(_nhwc(simmim["x_rec2"]))
    np.testing.assert_allclose(value, simmim["loss2"], rtol=1e-5)
    np.testing.assert_allclose(grad, _nhwc(simmim["grad_x_rec2"]), **CLOSE)


@pytest.mark.parametrize("target", ["pix", "normpix"])
def test_fcmae_around_its_encoder_equals_the_authors(golden_directory, target):
    with np.load(golden_directory / "losses" / "fcmae.npz") as arrays:
        golden = dict(arrays)
    config, side = _config(golden), _config(golden)["patch_size"]
    grid = golden["z"].shape[2:]
    _, masked = mask_by_noise(jnp.asarray(golden["noise"]), config["mask_ratio"])
    np.testing.assert_array_equal(masked, golden["mask"].astype(bool))
    upsampled = repeat_cells(masked, grid, 4).reshape(golden["mask_up4"].shape)
    np.testing.assert_array_equal(upsampled, golden["mask_up4"].astype(bool))

    def get(name):
        return jnp.asarray(golden[f"param/{name}"])

    block = {
        "depthwise": {
            "kernel": get("decoder.0.dwconv.weight").transpose(2, 3, 1, 0), "bias": get("decoder.0.dwconv.bias"),
        },
        "norm": {"scale": get("decoder.0.norm.weight"), "bias": get("decoder.0.norm.bias")},
        "up": {"kernel": get("decoder.0.pwconv1.weight").T, "bias": get("decoder.0.pwconv1.bias")},
        "grn": {"scale": get("decoder.0.grn.gamma").reshape(-1), "bias": get("decoder.0.grn.beta").reshape(-1)},
        "down": {"kernel": get("decoder.0.pwconv2.weight").T, "bias": get("decoder.0.pwconv2.bias")},
    }  # fmt: skip
    params = {
        "embed": {"kernel": get("proj.weight")[:, :, 0, 0].T, "bias": get("proj.bias")},
        "mask_token": get("mask_token").reshape(-1),
        "block_0": block,
        "pixels": {"kernel": get("pred.weight")[:, :, 0, 0].T, "bias": get("pred.bias")},
    }
    patches = patchify(_nhwc(golden["imgs"]), side)
    wanted = standardize_patches(patches) if target == "normpix" else patches
    decoder = MODELS["convnext_decoder"](width=params["mask_token"].shape[0], depth=1)

    def loss(params, tokens):
        made = decoder.apply({"params": params}, tokens, masked, grid, patches.shape[2])
        return jnp.mean(masked_patch_mse(made, wanted, masked)), made

    tokens = rearrange(jnp.asarray(golden["z"]), "b d h w -> b (h w) d")
    (value, made), (of_params, of_tokens) = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, tokens)
    close = dict(rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(made, rearrange(golden["pred"], "b p h w -> b (h w) p"), **close)
    np.testing.assert_allclose(value, golden[f"loss_{target}"], rtol=1e-5)
    np.testing.assert_allclose(of_tokens, rearrange(golden[f"grad_z_{target}"], "b d h w -> b (h w) d"), **close)
    np.testing.assert_allclose(of_params["mask_token"], golden[f"grad_mask_token_{target}"].reshape(-1), **close)


def test_restored_patches_are_the_patches_that_were_standardized(key):
    patches = 3 + 2 * jax.random.normal(key, (2, 4, 12), jnp.float32)
    np.testing.assert_allclose(restore_patches(standardize_patches(patches), patches), patches, rtol=1e-5)


def test_the_error_of_a_region_is_the_mean_over_its_pixels_alone():
    image, prediction = np.zeros((2, 3, 4, 2), np.float32), np.ones((2, 3, 4, 2), np.float32)
    prediction[0, 1, 1] = (2.0, 4.0)
    region = np.zeros((2, 3, 4), bool)
    region[:, 1, 1:3] = True
    prediction[~region] = 100.0
    found = region_mse(*map(jnp.asarray, (prediction, image, region)))
    np.testing.assert_allclose(found, [(4 + 16 + 1 + 1) / 4, 1.0])


def test_targets_are_standardized_by_channel_of_each_layer_and_then_by_patch(key):
    layers = 5 + 3 * np.asarray(jax.random.normal(key, (2, 3, 7, 5)), np.float64)  # layers b n d
    standard = [(x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5) for x in layers]
    mean = sum(standard) / 2
    expected = (mean - mean.mean(2, keepdims=True)) / np.sqrt(mean.var(2, keepdims=True) + 1e-5)
    found = contextual_targets([jnp.asarray(x, jnp.float32) for x in layers])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_scaled_distance_divides_by_the_root_of_the_width(key):
    first, second = jax.random.normal(key, (2, 3, 4, 9), jnp.float32)
    np.testing.assert_allclose(scaled_l2(first, second), np.square(first - second).sum(-1) / 3, rtol=1e-5)
