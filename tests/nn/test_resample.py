"""Resampling against the authors' own resizing, and by what it must keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.nn.resample import (
    RULES,
    adapt_channels,
    positions_at,
    resample_patch_kernel,
    resample_positions,
    resample_relative_positions,
    resize_matrix,
)

RULE_OF = {  # name in the reference file -> our rule
    "mae": "bicubic",
    "dinov2": "bicubic_offset",
    "dinov2_reg": "bicubic_antialias",
    "dinov2_nooffset": "bicubic",
    "dino_v1": "bicubic_offset",
    "timm_bicubic_aa": "bicubic_antialias",
    "timm_bicubic_noaa": "bicubic",
    "timm_bilinear_aa": "bilinear_antialias",
    "timm_bilinear_noaa": "bilinear",
}


GRIDS = [(origin, grid) for origin in RULE_OF for grid in ("9x9", "4x4", "5x8")]


@pytest.mark.parametrize(("origin", "grid"), [pair for pair in GRIDS if pair != ("mae", "5x8")])  # MAE's are square
def test_positions_equal_each_origins(golden_directory, origin, grid):
    with np.load(golden_directory / "components" / "pos_embed_interp.npz") as golden:
        table, expected = golden["pos_embed"][0, 1:].reshape(6, 6, -1), golden[f"{origin}_{grid}"][0, 1:]
    rows, columns = (int(length) for length in grid.split("x"))
    for one in (table, jnp.asarray(table)):
        resized = resample_positions(one, (rows, columns), RULE_OF[origin])
        np.testing.assert_allclose(resized.reshape(rows * columns, -1), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("old", "new"), [(7, 10), (8, 5)])
def test_big_vision_resizes_with_corners_aligned(golden_directory, old, new):
    with np.load(golden_directory / "components" / "sincos_bigvision.npz") as golden:
        table, expected = golden[f"old_{old}_to_{new}"].reshape(old, old, -1), golden[f"new_{old}_to_{new}"][0]
    resized = resample_positions(table, (new, new), "linear_corners")
    np.testing.assert_allclose(resized.reshape(new * new, -1), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_a_constant_table_stays_constant(rule):
    for old, new in [(5, 3), (3, 8), (4, 1), (1, 4), (7, 2)]:
        np.testing.assert_allclose(resize_matrix(old, new, rule).sum(axis=1), np.ones(new), rtol=1e-12)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "bicubic_offset"])
def test_a_table_for_its_own_size_is_unchanged_by_the_matrix_too(rule):
    np.testing.assert_allclose(resize_matrix(5, 5, rule), np.eye(5), atol=1e-12)


def test_an_unknown_rule_is_refused():
    with pytest.raises(UserError, match="Unknown name 'cubic' in position_resampling"):
        resize_matrix(3, 4, "cubic")


def test_positions_of_a_grid_known_at_run_time_are_the_matrices():
    table = jax.random.normal(jax.random.key(0), (4, 6, 5), jnp.float32)
    shapes = [(2, 5), (7, 1), (3, 3)]
    places = [np.stack([np.arange(10) // w, np.arange(10) % w], axis=-1) for _, w in shapes]
    found = jax.jit(positions_at)(table, jnp.asarray(shapes, jnp.float32), jnp.asarray(places, jnp.float32))
    for (h, w), row in zip(shapes, found, strict=True):
        expected = resample_positions(table, (h, w), "bilinear_antialias").reshape(h * w, -1)
        np.testing.assert_allclose(row[: h * w][:10], expected[:10], rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------- patch kernels


@pytest.mark.parametrize("rule", ["bilinear", "bicubic_antialias"])
@pytest.mark.parametrize("size", [(6, 5), (9, 9)])
def test_a_resized_patch_gives_the_token_that_the_patch_gave(rule, size):
    """Exact where the new patch has at least as many pixels (Beyer et al., 2022, "PI-resize")."""
    generator = np.random.default_rng(0)
    patch, kernel = generator.standard_normal((5, 4, 3)), generator.standard_normal((5, 4, 3, 7))
    rows, columns = resize_matrix(5, size[0], rule), resize_matrix(4, size[1], rule)
    resized = np.einsum("ih,jw,hwc->ijc", rows, columns, patch)
    token = np.einsum("hwc,hwcd->d", resized, resample_patch_kernel(kernel, size, rule))
    np.testing.assert_allclose(token, np.einsum("hwc,hwcd->d", patch, kernel), rtol=1e-9)


def test_a_smaller_patch_kernel_is_the_least_squares_one():
    """The definition, over the whole (ph pw) matrix and not by rows and columns."""
    kernel = np.random.default_rng(1).standard_normal((6, 4, 2, 3))
    resize = np.kron(resize_matrix(6, 4, "bilinear"), resize_matrix(4, 3, "bilinear"))
    expected = (np.linalg.pinv(resize.T) @ kernel.reshape(24, -1)).reshape(4, 3, 2, 3)
    np.testing.assert_allclose(resample_patch_kernel(kernel, (4, 3)), expected, rtol=1e-9, atol=1e-12)
    traced = jax.jit(lambda kernel: resample_patch_kernel(kernel, (4, 3)))(jnp.asarray(kernel, jnp.float32))
    np.testing.assert_allclose(traced, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 6, 9])
@pytest.mark.parametrize("how", ["repeat", "mean", "keep_first"])
def test_channels_are_adapted(how, channels):
    kernel = np.random.default_rng(2).standard_normal((2, 5, 3, 4)).astype(np.float32)
    adapted = adapt_channels(kernel, channels, how)
    assert adapted.shape == (2, 5, channels, 4) and adapted.dtype == np.float32
    np.testing.assert_allclose(adapt_channels(jnp.asarray(kernel), channels, how), adapted, rtol=1e-6)
    if how == "keep_first":
        np.testing.assert_array_equal(adapted[:, :, :3], kernel[:, :, :channels])
        assert (adapted[:, :, 3:] == 0).all()
    elif how == "mean" or channels != 2:  # a grey image gives what it gave
        np.testing.assert_allclose(adapted.sum(axis=2), kernel.sum(axis=2), rtol=1e-4, atol=1e-5)
    else:
        np.testing.assert_allclose(adapted, 1.5 * kernel[:, :, :2], rtol=1e-6)


def test_an_unknown_way_to_adapt_channels_is_refused():
    with pytest.raises(UserError, match="repeat, mean or keep_first; found 'sum'"):
        adapt_channels(np.zeros((2, 2, 3, 4), np.float32), 1, "sum")


# ------------------------------------------------------------------------------------------- relative positions


def test_relative_positions_are_resized_over_their_distances_and_keep_the_class_tokens():
    """A table that is linear in the distance stays so between the outermost distances."""
    rows, columns = np.meshgrid(np.linspace(-1, 1, 5), np.linspace(-1, 1, 9), indexing="ij")
    table = np.concatenate([np.stack([rows, columns], axis=-1).reshape(-1, 2), [[7, 8], [9, 10], [11, 12]]])
    resized = resample_relative_positions(table, (3, 5), (5, 3))
    assert resized.shape == (9 * 5 + 3, 2)
    np.testing.assert_array_equal(resized[-3:], table[-3:])
    grid = resized[:-3].reshape(9, 5, 2)
    np.testing.assert_allclose(grid[4, 2], [0, 0], atol=1e-12)  # distance zero stays in the middle
    np.testing.assert_allclose(grid, -grid[::-1, ::-1], atol=1e-12)
    assert resample_relative_positions(table, (3, 5), (3, 5)) is table
