"""I-JEPA's masks: a large block that is seen, and several smaller ones in it that are predicted and not seen."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from vfm_jax.core.errors import UserError
from vfm_jax.core.keys import stream
from vfm_jax.nn.masking import masked_indices

Range = tuple[float, float]
SIZE_DRAWS = 4096  # block sizes are read from a table at so many evenly spaced numbers, computed in float64
REDRAWS = 20  # of a context that keeps too little, before it may overlap one more block
REFERENCE_BATCH, REFERENCE_BATCHES = 128, 64  # whose contexts set how many patches one has


class Blocks(NamedTuple):
    """A context and the blocks to predict from it, as ascending patch indices; those not `valid` are padding.

    Attributes:
        context: what the encoder sees.
        context_valid: which of these are patches.
        targets: what is predicted, by block.
        targets_valid: which of these are patches; the same for all blocks and examples of a step.
    """

    context: Int[Array, "b k"]
    context_valid: Bool[Array, "b k"]
    targets: Int[Array, "t b q"]
    targets_valid: Bool[Array, "t b q"]


def block_size(
    u: float, grid: tuple[int, int], scale: Sequence[float], aspect_ratio: Sequence[float]
) -> tuple[int, int]:
    """Rows and columns of a block, from one number in [0, 1) that sets both its area and its aspect ratio.

    k = ⌊n s⌋ for s between the scales, h = √(k r) and w = √(k / r) rounded half to even, for r between the ratios; a
    block is shorter than the grid along both sides.

    Reference: Assran et al., 2023 (arXiv:2301.08243), App. A.1, and `MaskCollator` of their code.
    """
    rows, columns = grid
    area = int(rows * columns * (scale[0] + u * (scale[1] - scale[0])))
    ratio = aspect_ratio[0] + u * (aspect_ratio[1] - aspect_ratio[0])
    return min(round(math.sqrt(area * ratio)), rows - 1), min(round(math.sqrt(area / ratio)), columns - 1)


@functools.cache
def multi_block_masking(
    grid: tuple[int, int],
    *,
    num_targets: int = 4,
    target_scale: Range = (0.15, 0.2),
    target_aspect_ratio: Range = (0.75, 1.5),
    context_scale: Range = (0.85, 1.0),
    min_context: int = 10,
    allow_overlap: bool = False,
) -> Callable[[jax.Array, jax.Array], Blocks]:
    """The sampler (key of the step, one key per example) -> `Blocks` of a grid.

    The step's key sets the size of all target blocks and of the context; each example draws their places. The context
    is a block without the targets of its image; one that keeps `min_context` patches or fewer is drawn again, and
    after every 20 failures the last of the targets still left out may lie in it.

    Shapes are static: targets are padded to the largest block. The authors cut all contexts of a batch to the
    shortest, dropping the last patches; here the number is the median of that shortest over 64 simulated batches of
    128 images (theirs, on each GPU), longer contexts are cut to it in that way and shorter ones padded.

    Args:
        grid: rows and columns of patches.
        num_targets: target blocks of an image.
        target_scale: their area, as a share of the grid.
        target_aspect_ratio: of their height over their width.
        context_scale: area of the block that the context is cut from, whose aspect ratio is 1.
        min_context: the context keeps more patches than this.
        allow_overlap: the context may contain target patches.

    Reference: Assran et al., 2023 (arXiv:2301.08243), Sec. 3 and App. A.1; `MaskCollator` of their code.

    Raises:
        UserError: a block of that scale has no patch, or the context can never keep enough.
    """
    rows, columns = grid
    numbers = (np.arange(SIZE_DRAWS) + 0.5) / SIZE_DRAWS
    target_sizes, context_sizes = (
        np.array([block_size(u, grid, scale, ratio) for u in numbers], np.int32)
        for scale, ratio in ((target_scale, target_aspect_ratio), (context_scale, (1.0, 1.0)))
    )
    if target_sizes.min() < 1:
        raise UserError(
            f"A target block of {target_scale[0]:.0%} of a grid of {rows} x {columns} patches has no patch. "
            "Take larger images, smaller patches or a larger target_scale."
        )
    if (smallest := int(context_sizes.prod(axis=1).min())) <= min_context:
        raise UserError(
            f"The context of a grid of {rows} x {columns} patches has {smallest} at times, and must keep more than "
            f"min_context={min_context}. Take larger images, smaller patches or a smaller min_context."
        )
    num_context = _usual_context(grid, num_targets, target_sizes, context_sizes, min_context, allow_overlap)
    num_target = int(target_sizes.prod(axis=1).max())

    def place(key: jax.Array, size: Int[Array, "2"], count: int) -> Bool[Array, "count n"]:
        # Corners from 0 to what is left of the grid, less one: the last place along each side is never drawn.
        room = (jnp.array(grid) - size).astype(jnp.float32)
        corners = (jax.random.uniform(key, (count, 2), jnp.float32) * room[None]).astype(jnp.int32)
        return _inside(grid, corners, size)

    def place_context(key: jax.Array, size: Int[Array, "2"], targets: Bool[Array, "t n"]) -> Bool[Array, " n"]:
        def draw(tried: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            attempt, _ = tried
            left_out = jnp.arange(num_targets) < (0 if allow_overlap else num_targets - attempt // REDRAWS)
            kept = place(jax.random.fold_in(key, attempt), size, 1)[0] & ~jnp.any(targets & left_out[:, None], axis=0)
            return attempt + 1, kept

        start = (jnp.int32(0), jnp.zeros(rows * columns, bool))
        return jax.lax.while_loop(lambda tried: jnp.sum(tried[1]) <= min_context, draw, start)[1]

    def draw_masks(key: jax.Array, keys: jax.Array) -> tuple[Bool[Array, "b n"], Bool[Array, "b t n"]]:
        chosen = jax.random.randint(stream(key, "block_size"), (2,), 0, SIZE_DRAWS)
        target_size, context_size = jnp.asarray(target_sizes)[chosen[0]], jnp.asarray(context_sizes)[chosen[1]]

        def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            targets = place(stream(key, "targets"), target_size, num_targets)
            return place_context(stream(key, "context"), context_size, targets), targets

        return jax.vmap(one)(keys)

    def sample(key: jax.Array, keys: jax.Array) -> Blocks:
        context, targets = draw_masks(key, keys)
        of_targets = jax.vmap(functools.partial(masked_indices, num_indices=num_target), in_axes=1)(targets)
        return Blocks(*masked_indices(context, num_context), *of_targets)

    return sample


def _inside(grid: tuple[int, int], corners: Any, size: Any) -> Any:
    """Which patches of the grid, in raster order, lie in each of several rectangles; numpy or JAX, as these are."""
    row, column = (axis.reshape(1, -1) for axis in np.indices(grid, dtype=np.int32))
    down, right = row - corners[:, :1], column - corners[:, 1:]
    return (down >= 0) & (down < size[0]) & (right >= 0) & (right < size[1])


def _usual_context(
    grid: tuple[int, int],
    num_targets: int,
    target_sizes: Int[np.ndarray, "u 2"],
    context_sizes: Int[np.ndarray, "u 2"],
    min_context: int,
    allow_overlap: bool,
) -> int:
    """Patches of a context: the median over simulated batches of the fewest that an image of one has."""
    rng, fewest = np.random.default_rng(0), []

    def place(size: np.ndarray, count: int) -> np.ndarray:
        corners = rng.integers(0, grid - size, (REFERENCE_BATCH * count, 2))
        return _inside(grid, corners, size).reshape(REFERENCE_BATCH, count, -1)

    for _ in range(REFERENCE_BATCHES):
        target_size, context_size = target_sizes[rng.integers(SIZE_DRAWS)], context_sizes[rng.integers(SIZE_DRAWS)]
        hidden = place(target_size, num_targets).any(axis=1) & (not allow_overlap)
        kept = (place(context_size, 1)[:, 0] & ~hidden).sum(axis=1)
        fewest.append(max(kept.min(), min_context + 1))  # a context of fewer would be drawn again
    return int(np.median(fewest))
