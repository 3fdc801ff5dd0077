"""Masks part the patches; gathered tokens can be put back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.nn.masking import (
    block_masks,
    draw_counts,
    gather_tokens,
    hide_count,
    hide_share,
    inverse_block_noise,
    mask_by_noise,
    masked_indices,
    masking_noise,
    random_rectangles,
    repeat_cells,
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


@pytest.mark.parametrize(("ratio", "hidden"), [(0.05, 1), (0.5, 10), (0.6, 12), (0.9, 18)])
def test_a_share_of_cells_is_hidden_rounded_up(key, ratio, hidden):
    noise = masking_noise(jax.random.split(key, 3), 19)
    mask = np.asarray(hide_share(noise, ratio))
    assert mask.sum(axis=1).tolist() == [hidden] * 3
    assert (np.where(mask, noise, -1).max(axis=1) < np.where(mask, 2, noise).min(axis=1)).all()
    with pytest.raises(ValueError, match="hides 1 of 1 cells"):
        hide_share(noise[:, :1], 0.5)


def test_repeated_cells_are_squares_of_their_value():
    finer = repeat_cells(jnp.arange(6).reshape(1, 6), (2, 3), 2)
    np.testing.assert_array_equal(finer.reshape(4, 6), np.kron(np.arange(6).reshape(2, 3), np.ones((2, 2))))


def test_inverse_blocks_keep_squares_and_as_many_patches_as_random_masks_do():
    keys = jax.random.split(jax.random.key(3), 400)
    noise = inverse_block_noise(keys, (10, 12), 0.8, 3, 0.07)
    keep, masked = mask_by_noise(noise, 0.8)
    assert keep.shape == (400, int(120 * (1 - 0.8)))
    visible = ~np.asarray(masked).reshape(400, 10, 12)
    together = (visible[:, 1:] & visible[:, :-1]).sum() / visible[:, 1:].sum()
    random = ~np.asarray(mask_by_noise(masking_noise(keys, 120), 0.8)[1]).reshape(400, 10, 12)
    assert together > 0.55 > 0.25 > (random[:, 1:] & random[:, :-1]).sum() / random[:, 1:].sum()
    # Blocks alone, before patches are added: three by three around their centres, cut at the border.
    blocks = np.asarray(inverse_block_noise(keys, (10, 12), 0.99, 3, 0.0) < 0).reshape(400, 10, 12)
    for block in blocks:
        rows, columns = np.flatnonzero(block.any(axis=1)), np.flatnonzero(block.any(axis=0))
        assert block.sum() == len(rows) * len(columns)
        for found, length in ((rows, 10), (columns, 12)):
            assert len(found) == 3 - (found[0] == 0 and len(found) < 3) - (found[-1] == length - 1 and len(found) < 3)


def test_rectangles_cover_their_share_and_lie_anywhere():
    keys = jax.random.split(jax.random.key(4), 300)
    masks = np.asarray(random_rectangles(keys, (20, 30), (0.1, 0.4)))
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert mask.sum() == len(rows) * len(columns) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    share = masks.mean(axis=(1, 2))
    assert 0.08 < share.min() < 0.15 and 0.35 < share.max() < 0.43
    assert masks.any(axis=0).all()


def test_counts_are_drawn_from_ranges_at_equal_odds_and_rounded_down():
    keys = jax.random.split(jax.random.key(3), 4000)
    counts = np.asarray(draw_counts(keys, ((0.0, 0.0), (0.1, 0.5)), 196))
    none = counts == 0
    np.testing.assert_allclose(none.mean(), 0.5, atol=0.03)
    assert counts[~none].min() == 19 and counts.max() == 97  # 0.1 · 196 = 19.6, and less than 98
    np.testing.assert_allclose(counts[~none].mean(), 0.3 * 196 - 0.5, atol=1.5)


def test_as_many_patches_as_asked_for_are_hidden_in_each_image():
    noise = masking_noise(jax.random.split(jax.random.key(4), 5), 12)
    masked = hide_count(noise, jnp.array([0, 1, 5, 11, 12]))
    np.testing.assert_array_equal(masked.sum(axis=1), [0, 1, 5, 11, 12])
    shown, hidden = np.where(masked, np.inf, noise).min(axis=1), np.where(masked, noise, -np.inf).max(axis=1)
    assert (hidden < shown).all()
