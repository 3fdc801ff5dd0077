"""I-JEPA's blocks: their sizes are the authors', and what holds of the authors' masks holds of ours."""

import json

import jax
import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.nn.multi_block import block_size, multi_block_masking

BATCH = 24


def test_block_sizes_equal_the_authors(golden_directory):
    golden = np.load(golden_directory / "losses" / "ijepa_masks.npz")
    config = json.loads(str(golden["meta"]))["config"]
    grid = tuple(side // config["patch_size"] for side in config["input_size"])
    for u, target, context in zip(golden["u"], golden["pred_hw"], golden["enc_hw"], strict=True):
        assert block_size(float(u), grid, config["pred_mask_scale"], config["aspect_ratio"]) == tuple(target)
        assert block_size(float(u), grid, config["enc_mask_scale"], (1.0, 1.0)) == tuple(context)


def _check(grid, context, targets, overlap=False, cut=False):
    """What holds of the masks of one batch: context b k and targets t b q, as lists without padding."""
    sizes, shapes = set(), set()
    for blocks in targets:
        for block in blocks:
            assert (np.diff(block) > 0).all()
            row, column = np.divmod(np.asarray(block), grid[1])
            height, width = np.ptp(row) + 1, np.ptp(column) + 1
            assert height * width == len(block)  # a full rectangle
            assert row.max() < grid[0] - 1 and column.max() < grid[1] - 1  # the last place is never drawn
            sizes.add((height, width))
    assert len(sizes) == 1  # one size for all blocks of a step
    for i, own in enumerate(context):
        assert (np.diff(own) > 0).all()
        row, column = np.divmod(np.asarray(own), grid[1])
        shapes.add((np.ptp(row) + 1, np.ptp(column) + 1))
        hidden = {patch for blocks in targets for patch in blocks[i]}
        if not overlap:
            assert not hidden & set(own)
        whole = {
            r * grid[1] + c for r in range(row.min(), row.max() + 1) for c in range(column.min(), column.max() + 1)
        }
        if not cut and not overlap:
            assert not whole - hidden - set(own)  # a rectangle but for the targets


def test_the_authors_masks_pass_the_check_that_ours_pass(golden_directory):
    golden = np.load(golden_directory / "losses" / "ijepa_masks.npz")
    for number in range(4):
        _check((12, 12), golden[f"enc_masks_{number}"][0], golden[f"pred_masks_{number}"], cut=True)


def _lists(index, valid):
    return [[row[own].tolist() for row, own in zip(*pair, strict=True)] for pair in zip(index, valid, strict=True)]


@pytest.mark.parametrize(("grid", "fields"), [
    ((12, 12), {}),
    ((8, 10), dict(num_targets=2, target_scale=(0.1, 0.3), min_context=5)),
    ((8, 8), dict(allow_overlap=True)),
])  # fmt: skip
def test_masks_are_rectangles_that_the_context_does_not_see(grid, fields):
    sample = jax.jit(multi_block_masking(grid, **fields))
    keys = jax.random.split(jax.random.key(1), BATCH)
    drawn, lengths = set(), set()
    for step in range(6):
        blocks = jax.device_get(sample(jax.random.key(step), keys))
        targets = _lists(blocks.targets, blocks.targets_valid)
        context = _lists([blocks.context], [blocks.context_valid])[0]
        longest = blocks.context.shape[1]
        cut = max(map(len, context)) == longest
        _check(grid, context, targets, fields.get("allow_overlap", False), cut)
        assert min(map(len, context)) > min(fields.get("min_context", 10), longest - 1)
        drawn |= {tuple(block) for of_block in targets for block in of_block}
        lengths.add(len(targets[0][0]))
        # One size for a step whoever is in the batch, and one's own places.
        alone = jax.device_get(sample(jax.random.key(step), keys[3:5]))
        np.testing.assert_array_equal(alone.targets, blocks.targets[:, 3:5])
        np.testing.assert_array_equal(alone.context, blocks.context[3:5])
    assert len(drawn) > 20 and len(lengths) > 1


def test_a_context_that_keeps_too_little_is_drawn_again_and_at_last_overlaps_a_target():
    # Eight targets of half the grid cover nearly all of it: the rest rarely has more than five patches.
    sample = jax.jit(multi_block_masking((6, 6), num_targets=8, target_scale=(0.45, 0.5), min_context=5))
    blocks = jax.device_get(sample(jax.random.key(0), jax.random.split(jax.random.key(1), 64)))
    assert (blocks.context_valid.sum(axis=1) > 5).all()
    overlap = 0
    for context, valid, targets in zip(
        blocks.context, blocks.context_valid, np.swapaxes(blocks.targets, 0, 1), strict=True
    ):
        overlap += bool(set(context[valid]) & set(targets.ravel()))
    assert overlap > 32


def test_a_grid_too_small_for_the_blocks_is_refused_with_a_way_out():
    with pytest.raises(UserError, match=r"has 9 at times, and must keep more than min_context=10\. .* smaller min"):
        multi_block_masking((4, 4))
    with pytest.raises(UserError, match=r"A target block of 1% of a grid of 4 x 5 patches has no patch"):
        multi_block_masking((4, 5), target_scale=(0.01, 0.02), min_context=2)
