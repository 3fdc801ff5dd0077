"""Masks part the patches; gathered tokens can be put back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.nn.masking import (
    block_masks,
    gather_tokens,
    mask_by_noise,
    masked_indices,
    masking_noise,
    scatter_tokens,
)


@pytest.mark.parametrize(("ratio", "kept"), [(0.05, 18), (0.5, 9), (0.6, 7), (0.75, 4), (0.94, 1)])
def test_a_mask_parts_the_patches_into_kept_and_hidden(key, ratio, kept):
    num_patches = 19 if ratio < 0.9 else 17
    keep, masked = mask_by_noise(masking_noise(jax.random.split(key, 3), num_patches), ratio)
    assert keep.shape == (3, kept)
    for row, hidden in zip(np.asarray(keep), np.asarray(masked), strict=True):
        assert sorted([*row, *np.flatnonzero(hidden)]) == list(range(num_patches))


def test_the_patches_of_lowest_noise_are_kept_in_its_order():
    keep, masked = mask_by_noise(jnp.array([[0.9, 0.1, 0.5, 0.0, 0.7]]), 0.4)
    assert keep.tolist() == [[3, 1, 2]]
    assert masked.tolist() == [[True, False, False, False, True]]


@pytest.mark.parametrize("ratio", [0.0, 1.0, 0.9, -0.5])
def test_a_ratio_that_keeps_or_hides_no_patch_is_refused(ratio):
    with pytest.raises(ValueError, match=f"mask_ratio {ratio} keeps .* of 9 patches"):
        mask_by_noise(jnp.zeros((1, 9)), ratio)


def test_noise_is_uniform_and_follows_the_key_of_its_example():
    keys = jax.random.split(jax.random.key(2), 500)
    noise = masking_noise(keys, 7)
    assert noise.min() >= 0 and noise.max() < 1
    np.testing.assert_allclose(np.mean(noise, axis=0), np.full(7, 0.5), atol=4 / np.sqrt(12 * 500))
    np.testing.assert_array_equal(masking_noise(keys[::-1], 7), noise[::-1])


def test_scattered_tokens_are_back_in_place_with_the_fill_elsewhere(key):
    tokens = jax.random.normal(key, (2, 5, 3), jnp.float32)
    keep, masked = mask_by_noise(masking_noise(jax.random.split(key, 2), 5), 0.4)
    fill = jnp.array([7.0, 8.0, 9.0])
    put_back = scatter_tokens(gather_tokens(tokens, keep), keep, fill, 5)
    np.testing.assert_array_equal(put_back, jnp.where(masked[:, :, None], fill[None, None], tokens))
    np.testing.assert_array_equal(gather_tokens(put_back, keep), gather_tokens(tokens, keep))


GRID = (14, 16)
WANTED = jnp.arange(0, 113, 4)


@pytest.mark.parametrize("exact", [False, True])
def test_blocks_hide_as_many_patches_as_asked_for_or_a_little_fewer(exact):
    keys = jax.random.split(jax.random.key(3), len(WANTED))
    masked = np.asarray(jax.jit(lambda: block_masks(keys, GRID, WANTED, exact=exact))())
    hidden, wanted = masked.sum(axis=1), np.asarray(WANTED)
    assert (hidden <= wanted).all()
    assert (hidden == wanted).all() if exact else (hidden >= 0.8 * wanted - 3).all()
    np.testing.assert_array_equal(block_masks(keys[::-1], GRID, WANTED[::-1], exact=exact), masked[::-1])


def _blocks_one_by_one(rng, grid, wanted):
    """The rule in words of its own, for one image."""
    masked, left, failed = np.zeros(grid, bool), wanted, 0
    while left > 0 and failed < 10:
        area, aspect = 4 + (left - 4) * rng.uniform(), 0.3 ** rng.uniform(-1, 1)
        height, width = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        failed += 1
        if height < grid[0] and width < grid[1]:
            top, start = rng.integers(0, grid[0] - height + 1), rng.integers(0, grid[1] - width + 1)
            new = height * width - masked[top : top + height, start : start + width].sum()
            if 0 < new <= left:
                masked[top : top + height, start : start + width] = True
                left, failed = left - new, 0
    return masked


@pytest.mark.parametrize("wanted", [20, 112])
def test_blocks_are_distributed_as_by_the_rule_one_by_one(wanted):
    rng = np.random.default_rng(0)
    expected = np.stack([_blocks_one_by_one(rng, GRID, wanted) for _ in range(600)])
    found = jax.jit(lambda: block_masks(jax.random.split(jax.random.key(4), 600), GRID, jnp.full(600, wanted)))()
    found = np.asarray(found).reshape(-1, *GRID)
    for measure in (
        lambda m: m.sum(axis=(1, 2)),
        lambda m: (m[:, 1:] & m[:, :-1]).sum(axis=(1, 2)),
        lambda m: (m[:, :, 1:] & m[:, :, :-1]).sum(axis=(1, 2)),
        lambda m: m[:, 0].sum(axis=1),
        lambda m: m[:, :, -1].sum(axis=1),
    ):
        one, other = measure(expected), measure(found)
        spread = np.sqrt((one.var() + other.var()) / 600)
        assert abs(one.mean() - other.mean()) < 4 * spread + 1e-9


def test_hidden_patches_are_listed_first_and_the_list_is_filled_up():
    masked = jnp.array([[False, True, False, True], [False, False, False, False]])
    index, valid = masked_indices(masked, 3)
    assert index[0, :2].tolist() == [1, 3]
    assert valid.tolist() == [[True, True, False], [False, False, False]]
