"""Swin: what its windows see. Against Hugging Face and timm, it is compared in weights/test_swin.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.models.swin import Swin, log_offsets, merge_windows, partition, region_mask, window_and_shift

TINY = {"width": 8, "depths": (2, 2), "heads": (2, 4), "window": 4, "patch": 2, "mlp_ratio": 2.0}


def seen(model, image, row, column):
    """Which patches of the stem the token at (row, column) of the first level depends on."""
    variables = model.init(jax.random.key(0), image)

    def token(image):
        features = model.apply(variables, image)
        width = features.level_grids[0][1]
        return features.levels[0][0, row * width + column].sum()

    slope = np.abs(jax.grad(token)(image)).sum(axis=-1)[0]  # h w
    patches = slope.reshape(slope.shape[0] // 2, 2, slope.shape[1] // 2, 2).sum(axis=(1, 3))
    return patches > 0


def test_a_block_sees_its_window_and_the_next_one_the_windows_beside(key):
    image = jax.random.normal(key, (1, 16, 24, 3))
    one = seen(Swin(**TINY | {"depths": (1, 1)}, levels=(0,)), image, 1, 2)
    expected = np.zeros((8, 12), bool)
    expected[:4, :4] = True
    np.testing.assert_array_equal(one, expected)
    two = seen(Swin(**TINY, levels=(0,)), image, 3, 3)  # its shifted window spans four unshifted ones
    expected = np.zeros((8, 12), bool)
    expected[:8, :8] = True
    np.testing.assert_array_equal(two, expected)
    corner = seen(Swin(**TINY, levels=(0,)), image, 0, 0)  # the cyclic shift brings no token from the other side
    expected = np.zeros((8, 12), bool)
    expected[:4, :4] = True
    np.testing.assert_array_equal(corner, expected)


@pytest.mark.parametrize(
    ("rule", "grid", "window", "shift"),
    [
        ("joint", (8, 12), (5, 5), (2, 2)),
        ("joint", (5, 12), (5, 5), (0, 0)),
        ("joint", (3, 12), (3, 3), (0, 0)),
        ("separate", (5, 12), (5, 5), (0, 2)),
        ("separate", (3, 12), (3, 5), (0, 2)),
    ],
)
def test_a_window_that_covers_the_map_is_cut_to_it_and_not_shifted(rule, grid, window, shift):
    assert window_and_shift(grid, (5, 5), (2, 2), rule) == (window, shift)


def test_windows_are_merged_where_they_came_from(key):
    x = jax.random.normal(key, (2, 6, 20, 3))
    windows = partition(x, (3, 5))
    assert windows.shape == (2, 8, 15, 3)
    np.testing.assert_array_equal(merge_windows(windows, (6, 20), (3, 5)), x)


def test_only_windows_at_the_seam_of_the_shift_are_masked():
    mask = region_mask((8, 12), (4, 4), (2, 2))
    assert mask.shape == (6, 16, 16)
    assert mask[:2].all(axis=(1, 2)).tolist() == [True, True]
    assert not mask[2:].all(axis=(1, 2)).any()


def test_offsets_of_another_window_keep_the_scale_of_the_one_trained():
    trained = {tuple(o): i for i, o in enumerate(np.indices((7, 7)).reshape(2, -1).T - 3)}
    small, large = log_offsets((4, 4), (4, 4)), log_offsets((6, 6), (4, 4))
    offsets = np.indices((11, 11)).reshape(2, -1).T - 5
    for row, offset in zip(large, offsets, strict=True):
        if tuple(offset) in trained:
            np.testing.assert_array_equal(row, small[trained[tuple(offset)]])
    assert small.min() == -small.max()


@pytest.mark.parametrize("version", [1, 2])
def test_images_of_another_size_are_padded_and_levels_tell_their_grids(version, key):
    model = Swin(**TINY, version=version, levels=(0, -1), dtype=jnp.bfloat16)
    image = jax.random.normal(key, (2, 19, 30, 5))
    features = model.apply(model.init(key, image), image)
    assert features.tokens.dtype == features.pooled.dtype == jnp.float32
    assert features.level_grids == ((10, 15), (5, 8))
    assert features.grid == (5, 8)
    assert features.tokens.shape == (2, 40, 16)
    assert [level.shape for level in features.levels] == [(2, 150, 8), (2, 40, 16)]
    assert model.patch_size == 4


def test_drop_path_skips_blocks_of_some_examples_in_training_only(key):
    model = Swin(**TINY, drop_path=0.5)
    image = jax.random.normal(key, (6, 16, 16, 3))
    variables = model.init(key, image)
    calm = model.apply(variables, image).pooled
    trained = model.apply(variables, image, keys=jax.random.split(key, 6), train=True).pooled
    np.testing.assert_array_equal(model.apply(variables, image, keys=jax.random.split(key, 6)).pooled, calm)
    changed = (np.abs(trained - calm) > 1e-6).any(axis=1)
    assert changed.any()


def test_what_a_swin_cannot_do_is_said(key):
    image = jnp.zeros((1, 16, 16, 3))
    with pytest.raises(UserError, match="its windows need all"):
        Swin(**TINY).init(key, image, keep=jnp.zeros((1, 2), jnp.int32))
    with pytest.raises(UserError, match="no mask token"):
        Swin(**TINY).init(key, image, masked=jnp.zeros((1, 64), bool))
    with pytest.raises(UserError, match="as many stages"):
        Swin(**TINY | {"heads": (2,)}).init(key, image)
    with pytest.raises(UserError, match="one per stage"):
        Swin(**TINY | {"window": (4, 4, 4)}).init(key, image)
    with pytest.raises(UserError, match="version 1 or 2"):
        Swin(**TINY, version=3).init(key, image)
