"""Random erasing: a rectangle of a normalised image replaced (Zhong et al., 2017, arXiv:1708.04896)."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vfm_jax.augment.operation import Operation, Size, check_range, check_share, extent
from vfm_jax.core.errors import UserError

TRIES = 10  # as many as timm's RandomErasing makes
MODES = ("pixel", "constant")


def draw_box(
    key: Key[Array, ""], size: Int[Array, "2"], area: tuple[float, float], ratio: tuple[float, float]
) -> tuple[Int[Array, "2"], Int[Array, "2"], Bool[Array, ""]]:
    """Origin and shape, (y, x) and (height, width) in pixels, of a random rectangle, and whether there is one.

    Up to ten times, an area uniform in `area` (share of the image's) and a ratio height/width log-uniform in `ratio`,
    rounded to whole pixels, until both sides are shorter than the image's; then its place, uniform. If none fits,
    there is no rectangle: the distribution of timm's RandomErasing.
    """
    uniform = jax.random.uniform(key, (2 * TRIES + 2,), jnp.float32)
    area_draw, ratio_draw, place_draw = jnp.split(uniform, (TRIES, 2 * TRIES))
    pixels = jnp.prod(size.astype(jnp.float32)) * (area[0] + (area[1] - area[0]) * area_draw)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = jnp.exp(low + (high - low) * ratio_draw)
    shapes = jnp.round(jnp.sqrt(pixels[:, None] * jnp.stack([aspect, 1 / aspect], axis=1))).astype(jnp.int32)
    fits = jnp.all(shapes < size[None, :], axis=1)
    shape = shapes[jnp.argmax(fits)]
    free = size - shape
    origin = jnp.minimum((place_draw * (free + 1).astype(jnp.float32)).astype(jnp.int32), free)
    return origin, shape, jnp.any(fits)


def random_erasing(
    *,
    probability: float = 0.25,
    mode: str = "pixel",
    area: tuple[float, float] = (0.02, 1 / 3),
    ratio: tuple[float, float] = (0.3, 1 / 0.3),
) -> Operation:
    """One rectangle of the image erased, with the given probability: timm's RandomErasing with count 1.

    It stands after `normalize`, for what it writes is of mean zero, and of variance one.

    Args:
        probability: share of the images that lose a rectangle (a little less where the image is so narrow that
            none of ten fits).
        mode: "pixel" writes normal noise, another value in each pixel and channel; "constant" writes zero.
        area: range of the rectangle's area, as a share of the image's.
        ratio: range of the rectangle's height / width.

    Raises:
        UserError: a value out of its range.
    """
    check_share("probability", probability)
    area, ratio = check_range("area", area), check_range("ratio", ratio)
    if area[1] > 1:
        raise UserError(f"area is {area!r}; a rectangle has at most the area of its image, 1.0.")
    if mode not in MODES:
        raise UserError(f"mode is {mode!r}; expected one of: {', '.join(MODES)}.")

    def operation(key: Key[Array, ""], image: Float[Array, "h w c"], size: Size) -> tuple[Array, Size]:
        sometimes_key, box_key, noise_key = jax.random.split(key, 3)
        origin, shape, fits = draw_box(box_key, extent(image, size), area, ratio)
        fits &= jax.random.bernoulli(sometimes_key, probability)
        rows, columns = (
            (place >= origin[axis]) & (place < origin[axis] + shape[axis])
            for axis, place in enumerate(jnp.arange(length, dtype=jnp.int32) for length in image.shape[:2])
        )
        inside = (rows[:, None] & columns[None, :] & fits)[:, :, None]  # h w 1
        new = jax.random.normal(noise_key, image.shape, jnp.float32) if mode == "pixel" else jnp.float32(0)
        return jnp.where(inside, new, image), size

    return operation
