"""Where a token stands: sine-cosine tables, rotary angles, and relative positions."""

from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vfm_jax.core.errors import UserError
from vfm_jax.nn.resample import array_module, resample_relative_positions

Places = TypeVar("Places", np.ndarray, jax.Array)


def places(grid: tuple[int, int]) -> Float[np.ndarray, "n 2"]:
    """Row and column of each patch of a grid, in raster order."""
    return np.stack([axis.reshape(-1) for axis in np.indices(grid, dtype=np.float64)], axis=1)


# ------------------------------------------------------------------------------------------- sine-cosine


def sincos_2d(grid: tuple[int, int], width: int) -> Float[np.ndarray, "n d"]:
    """Sine-cosine table over a grid, in raster order.

    The first half of the channels encodes the column, the second the row; each half is [sin(x ω), cos(x ω)] with
    ω_k = 10000^(-k / (width/4)). Computed in float64, as the authors do.

    Reference: He et al., 2021 (arXiv:2111.06377), and util/pos_embed.py of their code.

    Raises:
        ValueError: the width is no multiple of four.
    """
    return sincos_at(places(grid), width, width / 4).astype(np.float32)


def sincos_2d_bigvision(grid: tuple[int, int], width: int) -> Float[np.ndarray, "n d"]:
    """The same with ω_k = 10000^(-k / (width/4 - 1)): the last frequency is 1/10000 itself.

    Reference: Beyer et al., 2022 (arXiv:2205.01580), Sec. 2, and `posemb_sincos_2d` of big_vision.

    Raises:
        ValueError: the width is no multiple of four.
    """
    return sincos_at(places(grid), width, width / 4 - 1).astype(np.float32)


SINCOS = {"sincos2d": sincos_2d, "sincos2d_bigvision": sincos_2d_bigvision}


def sincos_at(place: Places, width: int, steps: float) -> Places:
    """The rows of such a table at given places, (..., 2) -> (..., d): ω_k = 10000^(-k / steps).

    Raises:
        ValueError: the width is no multiple of four.
    """
    if width % 4:
        raise ValueError(f"Sine-cosine positions need a width that is a multiple of 4; found {width}.")
    numpy = array_module(place)
    omega = 10000.0 ** -(np.arange(width // 4) / max(steps, 1)).astype(place.dtype)
    row, column = (
        place[..., axis, None] * numpy.broadcast_to(omega, (*place.shape[:-1], width // 4)) for axis in (0, 1)
    )
    return numpy.concatenate([numpy.sin(column), numpy.cos(column), numpy.sin(row), numpy.cos(row)], axis=-1)


# ------------------------------------------------------------------------------------------- rotary


class Rotation(NamedTuple):
    """Angles by which queries and keys are turned, as sines and cosines.

    One row per patch; tokens before them are not turned. The batch axis is one where all examples share them.
    """

    sin: Float[Array, "#b n d"]
    cos: Float[Array, "#b n d"]


def rope_periods(
    head_dim: int, base: float | None = 100.0, min_period: float | None = None, max_period: float | None = None
) -> Float[np.ndarray, " k"]:
    """Periods of the head_dim/4 rotations of each axis, in units of half the image (coordinates run from -1 to 1).

    base^(2k / (head_dim/2)); or, where both are given, in geometric progression from `min_period` to `max_period`.

    Reference: Siméoni et al., DINOv3, 2025 (arXiv:2508.10104), Sec. 3.2, and `RopePositionEmbedding` of their code.

    Raises:
        UserError: heads that do not divide by four; one of the two periods alone.
    """
    if head_dim % 4:
        raise UserError(f'positions="rope" need heads of a width that is a multiple of 4; found {head_dim}.')
    if (min_period is None) != (max_period is None):
        raise UserError("rope_min_period and rope_max_period go together; found one of them alone.")
    share = np.arange(head_dim // 4) / (head_dim / 4)
    if min_period is None or max_period is None:
        return (100.0 if base is None else base) ** share
    return min_period * (max_period / min_period) ** np.linspace(0, 1, head_dim // 4)


def rope_coordinates(place: Places, shape: np.ndarray | jax.Array, normalize: str) -> Places:
    """Centres of patches as coordinates, (..., n, 2): -1 to 1 over the image.

    Args:
        place: row and column of each patch, (..., n, 2).
        shape: rows and columns of the grid, (..., 2).
        normalize: "separate": each axis by its own length; "max", "min": both by the longer, the shorter one.

    Raises:
        UserError: an unknown normalisation.
    """
    if normalize not in ("separate", "max", "min"):
        raise UserError(f"rope_normalize is separate, max or min; found {normalize!r}.")
    shape = array_module(place).asarray(shape, place.dtype)
    if normalize != "separate":
        longest = shape.max(axis=-1, keepdims=True) if normalize == "max" else shape.min(axis=-1, keepdims=True)
        shape = longest + 0 * shape
    return 2 * (place + 0.5) / shape[..., None, :] - 1


def augment_coordinates(
    keys: jax.Array,
    coordinates: Float[Array, "#b n 2"],
    shift: float | None = None,
    jitter: float | None = None,
    rescale: float | None = None,
) -> Float[Array, "b n 2"]:
    """Coordinates moved and stretched at random, so that a model serves other sizes: each example by its own key.

    In this order: `shift` adds u, uniform in [-shift, shift], to each axis; `jitter` multiplies each axis by a factor
    log-uniform in [1/jitter, jitter]; `rescale` multiplies both by one such factor.

    Reference: Siméoni et al., 2025 (arXiv:2508.10104), Sec. 3.2; their code draws once for the whole batch.
    """

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        draws = jax.vmap(lambda key: jax.random.uniform(key, (2,), jnp.float32, -1, 1))(jax.random.split(key, 3))
        factor = jnp.exp(draws[1] * np.log(jitter or 1.0)) * jnp.exp(draws[2, 0] * np.log(rescale or 1.0))
        return draws[0] * (shift or 0.0), factor

    offset, factor = jax.vmap(one)(keys)  # b 2 each
    shape = (keys.shape[0], *coordinates.shape[1:])
    return (jnp.broadcast_to(coordinates, shape) + offset[:, None, :]) * factor[:, None, :]


def rotation(coordinates: np.ndarray | jax.Array, periods: Float[np.ndarray, " k"]) -> Rotation:
    """Angles 2π x / period of each coordinate (#b n 2): rows then columns, and both once more for the other half."""
    numpy = array_module(coordinates)
    rate = (2 * np.pi / periods).astype(coordinates.dtype)
    row, column = (
        coordinates[..., axis, None] * numpy.broadcast_to(rate, (*coordinates.shape[:-1], len(rate)))
        for axis in (0, 1)
    )
    angles = numpy.concatenate([row, column, row, column], axis=-1)
    return Rotation(jnp.asarray(numpy.sin(angles), jnp.float32), jnp.asarray(numpy.cos(angles), jnp.float32))


def rope(
    place: Places,
    shape: np.ndarray | jax.Array,
    periods: Float[np.ndarray, " k"],
    normalize: str = "separate",
    keys: jax.Array | None = None,
    augmentation: tuple[float | None, float | None, float | None] = (None, None, None),
) -> Rotation:
    """Angles of patches at their places: `rotation` of `rope_coordinates`.

    Args:
        place: row and column of each patch, (#b, n, 2).
        shape: rows and columns of the grid, (#b, 2).
        periods: of `rope_periods`.
        normalize: of `rope_coordinates`.
        keys: one per example, to draw the augmentation; None draws none.
        augmentation: shift, jitter and rescale of `augment_coordinates`.
    """
    coordinates: Any = rope_coordinates(place, shape, normalize)
    if keys is not None and any(augmentation):
        coordinates = augment_coordinates(keys, jnp.asarray(coordinates, jnp.float32), *augmentation)
    return rotation(coordinates, periods)


def rotate(x: Float[Array, "b n heads d"], angles: Rotation) -> Float[Array, "b n heads d"]:
    """Queries or keys with each patch turned by its angles; the two halves of a head are the two coordinates.

    Reference: Su et al., RoFormer, 2021 (arXiv:2104.09864), Eq. 34.
    """
    num_prefix = x.shape[1] - angles.sin.shape[1]
    patches = x[:, num_prefix:].astype(jnp.float32)  # as the authors: bfloat16 would round the angles away
    first, second = jnp.split(patches, 2, axis=-1)
    turned = patches * angles.cos[:, :, None] + jnp.concatenate([-second, first], axis=-1) * angles.sin[:, :, None]
    return jnp.concatenate([x[:, :num_prefix], turned.astype(x.dtype)], axis=1)


# ------------------------------------------------------------------------------------------- relative


class RelativeIndex(NamedTuple):
    """Which row of a table of relative positions each pair of tokens reads.

    Attributes:
        grid: rows and columns of patches that the rows are counted for.
        rows: of query (second axis) and key (last axis); the batch axis is one where all examples share them.
    """

    grid: tuple[int, int]
    rows: Int[Array, "#b n n"]


def relative_rows(grid: tuple[int, int], num_prefix: int) -> Int[np.ndarray, "n n"]:
    """Rows of BEiT's table: the distance of each pair of patches, in raster order of (rows, columns) of distance.

    Three rows follow those: from a prefix token to a patch, from a patch to a prefix token, between prefix tokens.

    Reference: Bao et al., BEiT, 2021 (arXiv:2106.08254), Sec. 2.3, and their code.
    """
    place = places(grid).astype(np.int32)
    distance = place[:, None] - place[None] + np.array(grid, np.int32) - 1  # n n 2, from zero
    num_distances = (2 * grid[0] - 1) * (2 * grid[1] - 1)
    rows = np.empty((num_prefix + len(place),) * 2, np.int32)
    rows[num_prefix:, num_prefix:] = distance[:, :, 0] * (2 * grid[1] - 1) + distance[:, :, 1]
    rows[:num_prefix, num_prefix:] = num_distances
    rows[num_prefix:, :num_prefix] = num_distances + 1
    rows[:num_prefix, :num_prefix] = num_distances + 2
    return rows


def relative_index(grid: tuple[int, int], num_prefix: int, keep: Int[Array, "b k"] | None = None) -> RelativeIndex:
    """The rows that tokens read: prefix tokens and all patches of a grid, or those that `keep` names."""
    rows = jnp.asarray(relative_rows(grid, num_prefix))
    if keep is None:
        return RelativeIndex(grid, rows[None])
    prefix = jnp.broadcast_to(jnp.arange(num_prefix, dtype=keep.dtype)[None], (keep.shape[0], num_prefix))
    seen = jnp.concatenate([prefix, keep + num_prefix], axis=1)  # b n
    return RelativeIndex(grid, rows[seen[:, :, None], seen[:, None, :]])


class RelativePositions(nn.Module):
    """A learned number for each head and distance, added to the attention's logits.

    The table is for the grid of the images first seen; for another it is resized by its distances.
    """

    heads: int

    @nn.compact
    def __call__(self, where: RelativeIndex) -> Float[Array, "#b heads n n"]:
        shape = ((2 * where.grid[0] - 1) * (2 * where.grid[1] - 1) + 3, self.heads)
        if self.has_variable("params", "table"):
            table = self.get_variable("params", "table")
        else:
            table = self.param("table", nn.initializers.zeros, shape, jnp.float32)
        if table.shape != shape:
            table = resample_relative_positions(table, _square_window(table.shape[0] - 3), where.grid)
        return jnp.moveaxis(table[where.rows], -1, 1)


def _square_window(num_distances: int) -> tuple[int, int]:
    side = (round(num_distances**0.5) + 1) // 2
    if (2 * side - 1) ** 2 != num_distances:
        raise UserError(
            f"A table of {num_distances} relative distances is of no square grid, and does not tell of which; "
            "only square ones serve another image size."
        )
    return side, side
