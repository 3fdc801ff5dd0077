"""Tables and kernels for another size: position tables, patch kernels, input channels, relative positions.

All resizing is linear and separable, so a rule is a matrix (new, old), made once in float64 and applied to rows and
to columns; it serves numpy arrays (loading) and traced ones (in the forward pass) alike.
"""

import functools
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import lookup

Table = TypeVar("Table", np.ndarray, jax.Array)

# rule -> (kernel, antialias, offset added to the new length in the scale); None: linear with corners aligned
RULES: dict[str, tuple[str, bool, float] | None] = {
    "bicubic": ("cubic", False, 0.0),  # torch's default: MAE, HF transformers, timm with antialias off
    "bicubic_antialias": ("cubic", True, 0.0),  # timm's default; DINOv2 with registers
    "bicubic_offset": ("cubic", False, 0.1),  # DINO and DINOv2: the scale (new + 0.1) / old is what torch is given
    "bilinear": ("linear", False, 0.0),
    "bilinear_antialias": ("linear", True, 0.0),  # SigLIP 2 NaFlex; FlexiViT's positions
    "linear_corners": None,  # big_vision: scipy.ndimage.zoom
}


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel, 1981, Eq. 4 (a = -1/2 there)."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


@functools.cache
def resize_matrix(old: int, new: int, rule: str) -> Float[np.ndarray, "new old"]:
    """The matrix that resizes one axis; each of its rows sums to one.

    With half-pixel centres, as torch: the cubic kernel has a = -0.75 without antialias (and the border repeated) and
    a = -0.5 with it (and the kernel cut at the border and normalised). With aligned corners, as big_vision: the first
    and last points stay where they are.

    Raises:
        UserError: an unknown rule.
    """
    kernel = lookup(RULES, rule, "position_resampling")
    if kernel is None:
        centers = np.arange(new) * ((old - 1) / max(new - 1, 1))
        return _triangle(centers[:, None] - np.arange(old)[None])
    shape, antialias, offset = kernel
    scale = old / (new + offset)
    centers = (np.arange(new) + 0.5) * scale - 0.5
    if antialias:
        stretch = max(scale, 1.0)
        distance = (centers[:, None] - np.arange(old)[None]) / stretch
        weights = _triangle(distance) if shape == "linear" else _cubic(distance, -0.5)
        return weights / weights.sum(axis=1, keepdims=True)
    reach = 1 if shape == "linear" else 2
    taps = np.floor(centers).astype(int)[:, None] + np.arange(1 - reach, 1 + reach)[None]  # new, 2 reach
    distance = centers[:, None] - taps
    weights = _triangle(distance) if shape == "linear" else _cubic(distance, -0.75)
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new)[:, None], np.clip(taps, 0, old - 1)), weights)
    return matrix


def _apply(rows: np.ndarray, columns: np.ndarray, table: Any) -> Any:
    """rows · table · columnsᵀ over the first two axes."""
    if isinstance(table, np.ndarray):
        resized = np.einsum("ih,jw,hw...->ij...", rows, columns, table.astype(np.float64), optimize=True)
        return resized.astype(table.dtype)
    highest = jax.lax.Precision.HIGHEST  # on a TPU the default rounds a float32 table to bfloat16
    resized = jnp.einsum("ih,hw...->iw...", jnp.asarray(rows, table.dtype), table, precision=highest)
    return jnp.einsum("jw,iw...->ij...", jnp.asarray(columns, table.dtype), resized, precision=highest)


def array_module(table: Any) -> Any:
    """numpy for its arrays, jax.numpy for all others: one formula for loading and for the forward pass."""
    return np if isinstance(table, np.ndarray) else jnp


def resample_positions(table: Float[Table, "gh gw d"], grid: tuple[int, int], rule: str) -> Float[Table, "h w d"]:
    """A position table for another grid by `rule` (a key of `RULES`); for its own grid the table itself."""
    if table.shape[:2] == tuple(grid):
        return table
    rows, columns = (resize_matrix(old, new, rule) for old, new in zip(table.shape[:2], grid, strict=True))
    return _apply(rows, columns, table)


def positions_at(
    table: Float[Array, "gh gw d"], shapes: Float[Array, "b 2"], place: Float[Array, "b n 2"]
) -> Float[Array, "b n d"]:
    """A position table resized for every example to its own grid, by "bilinear_antialias", and read at places of it.

    The weights are those of `resize_matrix`, for grids that are known only when the program runs.

    Args:
        table: learned for one grid.
        shapes: rows and columns of each example's grid.
        place: row and column of each token in it.
    """
    weights = []
    for axis in (0, 1):
        old = table.shape[axis]
        scale = (old / shapes[:, axis])[:, None, None]  # b 1 1
        centers = (place[:, :, axis, None] + 0.5) * scale - 0.5  # b n 1
        distance = (centers - jnp.arange(old, dtype=jnp.float32)[None, None]) / jnp.maximum(scale, 1.0)
        triangle = jnp.maximum(1 - jnp.abs(distance), 0.0)  # b n old
        weights.append(triangle / jnp.sum(triangle, axis=-1, keepdims=True))
    both = (weights[0][:, :, :, None] * weights[1][:, :, None, :]).reshape(*place.shape[:2], -1)  # b n (gh gw)
    return jnp.matmul(both, table.reshape(-1, table.shape[-1]), precision=jax.lax.Precision.HIGHEST)


@functools.cache
def _pseudo_inverse(old: int, new: int, rule: str) -> np.ndarray:
    return np.linalg.pinv(resize_matrix(old, new, rule).T)


def resample_patch_kernel(
    kernel: Float[Table, "h w c d"], patch_size: tuple[int, int], rule: str = "bilinear"
) -> Float[Table, "ph pw c d"]:
    """A patch kernel for patches of another size ("PI-resize"): what a patch gives, the resized patch gives too.

    ŵ = (Bᵀ)⁺ w, where B resizes a patch: the least-squares solution of <B x, ŵ> = <x, w> for all x. B is a Kronecker
    product of rows and columns, and so is its pseudo-inverse.

    Reference: Beyer et al., FlexiViT, 2022 (arXiv:2212.08013), "PI-resize"; bilinear without antialias as in
    their code (timm: "bicubic_antialias").
    """
    if kernel.shape[:2] == tuple(patch_size):
        return kernel
    rows, columns = (_pseudo_inverse(old, new, rule) for old, new in zip(kernel.shape[:2], patch_size, strict=True))
    return _apply(rows, columns, kernel)


def adapt_channels(kernel: Float[Table, "h w c d"], channels: int, how: str) -> Float[Table, "h w channels d"]:
    """A patch kernel for images of another number of channels.

    Args:
        kernel: for the old number.
        channels: the new number.
        how: "repeat": the old channels in turn, times old/new (one new channel: their sum), as timm; "mean": their
            mean in every new channel, times old/new; "keep_first": the first ones as they are, zero for those beyond.
            The first two give a grey image (all channels equal) the token it had where new is a multiple of old or 1.

    Raises:
        UserError: an unknown way.
    """
    old = kernel.shape[2]
    if how not in ("repeat", "mean", "keep_first"):
        raise UserError(f"Channels are adapted by repeat, mean or keep_first; found {how!r}.")
    if channels == old:
        return kernel
    numpy = array_module(kernel)
    factor = np.asarray(old / channels, kernel.dtype)
    if how == "mean" or (how == "repeat" and channels == 1):
        mean = kernel.mean(axis=2, keepdims=True)
        return numpy.repeat(mean, channels, axis=2) * factor
    if how == "repeat":
        return numpy.take(kernel, np.arange(channels) % old, axis=2) * factor
    missing = max(channels - old, 0)
    return numpy.pad(kernel[:, :, :channels], ((0, 0), (0, 0), (0, missing), (0, 0)))


def resample_relative_positions(
    table: Float[Table, "m heads"], old_window: tuple[int, int], new_window: tuple[int, int]
) -> Float[Table, "k heads"]:
    """A table of relative positions for another window, bilinear over the distances.

    The first (2h-1)(2w-1) rows are distances in raster order; rows after them (BEiT's three, of the class token) are
    kept as they are.
    """
    if old_window == new_window:
        return table
    rows, columns = (2 * length - 1 for length in old_window)
    new = (2 * new_window[0] - 1, 2 * new_window[1] - 1)
    distances: Any = table[: rows * columns].reshape(rows, columns, -1)
    distances = resample_positions(distances, new, "bilinear").reshape(-1, table.shape[1])
    return array_module(table).concatenate([distances, table[rows * columns :]])
