"""Which patches are hidden."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import repeat
from jaxtyping import Array, Bool, Float, Int, Shaped


def masking_noise(keys: jax.Array, num_patches: int) -> Float[Array, "b n"]:
    """Uniform noise in [0, 1), drawn from one key per example."""
    return jax.vmap(lambda key: jax.random.uniform(key, (num_patches,), jnp.float32))(keys)


def mask_by_noise(noise: Float[Array, "b n"], mask_ratio: float) -> tuple[Int[Array, "b k"], Bool[Array, "b n"]]:
    """Keeps the patches of lowest noise: their indices in order of noise, and where patches are hidden.

    k = int(n (1 - mask_ratio)), truncated as in the authors' code (60 % of 9 patches keeps 3).

    Reference: He et al., 2021 (arXiv:2111.06377), Sec. 3, and `random_masking` of their code.

    Raises:
        ValueError: no patch would be kept, or none hidden.
    """
    num_patches = noise.shape[1]
    num_kept = int(num_patches * (1 - mask_ratio))
    if not 0 < num_kept < num_patches:
        raise ValueError(
            f"mask_ratio {mask_ratio} keeps {num_kept} of {num_patches} patches; at least one must be kept and one "
            "hidden. Choose a ratio strictly between 0 and 1, or a smaller patch."
        )
    order = jnp.argsort(noise, axis=1)
    rank = jnp.argsort(order, axis=1)
    return order[:, :num_kept], rank >= num_kept


def block_masks(
    keys: jax.Array,
    grid: tuple[int, int],
    num_masked: Int[Array, " b"],
    *,
    min_area: float = 4.0,
    max_area: float = math.inf,
    min_aspect: float = 0.3,
    exact: bool = False,
    num_tries: int = 10,
) -> Bool[Array, "b n"]:
    """Hides random rectangles, one after another, until `num_masked` patches of an image are hidden.

    A rectangle has an area uniform between `min_area` and what is still to hide, and an aspect ratio log-uniform
    between `min_aspect` and its inverse. It is taken if it hides something new and not too much; after `num_tries` in
    a row that were not taken, fewer patches stay hidden than asked for.

    Args:
        keys: one per example.
        grid: rows and columns of patches.
        num_masked: patches to hide of each example, at most; 0 hides none.
        min_area: in patches.
        max_area: in patches.
        min_aspect: of rectangles, in (0, 1].
        exact: hide single patches at random for those that no rectangle was found for (DINOv3).
        num_tries: in a row.

    Reference: Bao et al., BEiT, 2021 (arXiv:2106.08254), Algorithm 1; `MaskingGenerator` of DINOv2's and DINOv3's
    code, and of iBOT's (with a `min_area` of a ninth of the image).
    """
    rows, columns = grid
    row, column = jnp.indices(grid, jnp.float32).reshape(2, -1)

    def add_block(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        key, masked, left, failed = state
        key, own = jax.random.split(key)
        noise = jax.random.uniform(own, (4,), jnp.float32)
        most = jnp.minimum(left, max_area)
        area = min_area + (most - min_area) * noise[0]
        aspect = jnp.exp(math.log(min_aspect) * (1 - 2 * noise[1]))
        height, width = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
        top, start = jnp.floor(noise[2] * (rows - height + 1)), jnp.floor(noise[3] * (columns - width + 1))
        inside = (row >= top) & (row < top + height) & (column >= start) & (column < start + width)
        new = jnp.sum(inside & ~masked, dtype=jnp.float32)
        taken = (width < columns) & (height < rows) & (new > 0) & (new <= most)
        return (
            key,
            jnp.where(taken, masked | inside, masked),
            jnp.where(taken, left - new, left),
            jnp.where(taken, 0, failed + 1),
        )

    def one(key: jax.Array, wanted: jax.Array) -> jax.Array:
        start = (key, jnp.zeros(rows * columns, bool), wanted.astype(jnp.float32), jnp.int32(0))
        _, masked, _, _ = jax.lax.while_loop(lambda s: (s[2] > 0) & (s[3] < num_tries), add_block, start)
        if not exact:
            return masked
        noise = jax.random.uniform(jax.random.fold_in(key, 0), masked.shape, jnp.float32)
        order = jnp.argsort(jnp.where(masked, -1.0, noise))  # what blocks hide comes first
        return jnp.argsort(order) < wanted

    return jax.vmap(one)(keys, num_masked)


def masked_indices(masked: Bool[Array, "b n"], num_indices: int) -> tuple[Int[Array, "b k"], Bool[Array, "b k"]]:
    """Where patches are hidden, in raster order, filled up to `num_indices` by others; and which are no filling.

    `num_indices` must be at least the largest number of hidden patches of an image.
    """
    is_hidden, index = jax.lax.top_k(masked.astype(jnp.int32), num_indices)  # equal values: the lower index first
    return index, is_hidden == 1


def gather_tokens(tokens: Float[Array, "b n d"], index: Int[Array, "b k"]) -> Float[Array, "b k d"]:
    """The tokens at `index` of each example."""
    return jnp.take_along_axis(tokens, index[:, :, None], axis=1)


def scatter_tokens(
    tokens: Float[Array, "b k d"], index: Int[Array, "b k"], fill: Float[Array, " d"], num_tokens: int
) -> Float[Array, "b n d"]:
    """Puts tokens back at `index` of a sequence of `num_tokens`, with `fill` everywhere else."""
    b, _, d = tokens.shape
    canvas = jnp.broadcast_to(fill[None, None, :], (b, num_tokens, d))
    return jax.vmap(lambda row, i, t: row.at[i].set(t, unique_indices=True))(canvas, index, tokens)


def hide_share(noise: Float[Array, "b n"], mask_ratio: float) -> Bool[Array, "b n"]:
    """Where cells are hidden: the ⌈n · mask_ratio⌉ of lowest noise.

    Reference: Xie et al., SimMIM, 2021 (arXiv:2111.09886), Sec. 3.2, and `MaskGenerator` of their code, which rounds
    up where MAE's truncates what is kept.

    Raises:
        ValueError: no cell would be hidden, or none left.
    """
    num_cells = noise.shape[1]
    num_hidden = math.ceil(num_cells * mask_ratio)
    if not 0 < num_hidden < num_cells:
        raise ValueError(
            f"mask_ratio {mask_ratio} hides {num_hidden} of {num_cells} cells; at least one must be hidden and one "
            "left. Choose a ratio strictly between 0 and 1, larger images, or smaller cells."
        )
    return jnp.argsort(jnp.argsort(noise, axis=1), axis=1) < num_hidden


def repeat_cells(cells: Shaped[Array, "b n"], grid: tuple[int, int], times: int) -> Shaped[Array, "b m"]:
    """The same map on a grid `times` as fine along each side: every cell becomes times x times of its value."""
    return repeat(cells, "b (gh gw) -> b (gh rows gw columns)", gh=grid[0], gw=grid[1], rows=times, columns=times)


def inverse_block_noise(
    keys: jax.Array, grid: tuple[int, int], mask_ratio: float, block_size: int, adjust: float
) -> Float[Array, "b n"]:
    """Noise by which `mask_by_noise` keeps blocks of patches, drawn from one key per mask: inverse block masking.

    Squares of side `block_size` around int(n (1 - mask_ratio + adjust) / block_size²) random centres are to be seen,
    cut at the border; patches taken out or added at random bring their number to that of `mask_by_noise`. `adjust`
    makes up for squares that overlap.

    Reference: Baevski et al., data2vec 2.0, 2022 (arXiv:2212.07525), Sec. 3.3, and `compute_block_mask_2d` of the
    authors' code.
    """
    rows, columns = grid
    num_patches = rows * columns
    num_blocks = max(1, int(num_patches * (1 - mask_ratio + adjust) / block_size**2))
    first = -(block_size // 2)

    def one(key: jax.Array) -> jax.Array:
        centre_key, noise_key = jax.random.split(key)
        centre = jax.random.randint(centre_key, (num_blocks, 1), 0, num_patches)
        place = jnp.arange(num_patches)[None]
        down = place // columns - centre // columns  # blocks n
        right = place % columns - centre % columns
        inside = (down >= first) & (down < first + block_size) & (right >= first) & (right < first + block_size)
        noise = jax.random.uniform(noise_key, (num_patches,), jnp.float32)
        return jnp.where(jnp.any(inside, axis=0), noise - 1, noise)

    return jax.vmap(one)(keys)


def draw_counts(keys: jax.Array, shares: Sequence[tuple[float, float]], num_patches: int) -> Int[Array, " b"]:
    """How many of `num_patches` to hide of each example, rounded down.

    One of the ranges of `shares` is chosen, all at the same odds, and the share drawn evenly from it: ((0, 0),
    (0.1, 0.5)) hides nothing in half of the images and a tenth to a half of the patches in the others (iBOT).

    Reference: Zhou et al., iBOT, 2021 (arXiv:2111.07832), Sec. 4.1, and `ImageFolderMask` of their code.
    """
    ranges = jnp.asarray(shares, jnp.float32)

    def one(key: jax.Array) -> jax.Array:
        chosen_key, place_key = jax.random.split(key)
        low, high = ranges[jax.random.randint(chosen_key, (), 0, len(shares))]
        share = low + (high - low) * jax.random.uniform(place_key, (), jnp.float32)
        return jnp.floor(share * num_patches).astype(jnp.int32)

    return jax.vmap(one)(keys)


def hide_count(noise: Float[Array, "b n"], num_masked: Int[Array, " b"]) -> Bool[Array, "b n"]:
    """Where patches are hidden: the `num_masked` of lowest noise of each example."""
    return jnp.argsort(jnp.argsort(noise, axis=1), axis=1) < num_masked[:, None]


def random_rectangles(
    keys: jax.Array, size: tuple[int, int], area: tuple[float, float], aspect: tuple[float, float] = (0.5, 2.0)
) -> Bool[Array, "b h w"]:
    """A rectangle of pixels in each image, drawn from one key per example.

    Args:
        keys: one per example.
        size: height and width of the images.
        area: least and greatest share of the image that it covers, in (0, 1), before sides are rounded and cut.
        aspect: least and greatest height over width; drawn evenly in the logarithm.
    """
    height, width = size

    def one(key: jax.Array) -> jax.Array:
        share, shape, top, left = jax.random.uniform(key, (4,), jnp.float32)
        pixels = (area[0] + (area[1] - area[0]) * share) * height * width
        ratio = jnp.exp(math.log(aspect[0]) + (math.log(aspect[1]) - math.log(aspect[0])) * shape)
        rows = jnp.clip(jnp.round(jnp.sqrt(pixels * ratio)), 1, height)
        columns = jnp.clip(jnp.round(jnp.sqrt(pixels / ratio)), 1, width)
        first_row, first_column = jnp.floor(top * (height - rows + 1)), jnp.floor(left * (width - columns + 1))
        row, column = jnp.arange(height, dtype=jnp.float32)[:, None], jnp.arange(width, dtype=jnp.float32)[None]
        return (
            (row >= first_row)
            & (row < first_row + rows)
            & (column >= first_column)
            & (column < first_column + columns)
        )

    return jax.vmap(one)(keys)
