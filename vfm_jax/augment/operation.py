"""What an operation on one image is, and what all of them share.

An image is float32, h w c, in [0, 1]. Operations keep that range: values that leave it are clipped, as 8-bit
libraries clip them, but never rounded to 8 bits. `normalize` alone leaves it, and so stands after them; after it
stand those that are made for what it gives (`ON_NORMALIZED`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int, Key, UInt

from vfm_jax.core.errors import UserError

Size = Int[Array, "2"] | None
"""Height and width of the valid, top-left part of the image; None says that all of it is valid."""

Operation = Callable[[Key[Array, ""], Float[Array, "h w c"], Size], tuple[Float[Array, "h w c"], Size]]
"""`(key, image, size) -> (image, size)`, pure, written for one image and mapped over the batch.

Pixels beyond `size` are padding of the canvas: an operation neither reads them nor promises anything of them.
Having None as a fact of the trace, and not of the data, lets an operation after a crop take its cheaper form.
"""


def as_float(image: UInt[Array, "*shape"] | Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Pixels of any unsigned integer type as float32 in [0, 1]; those of floating type are taken to be there."""
    if jnp.issubdtype(image.dtype, jnp.floating):
        return image.astype(jnp.float32)
    return image.astype(jnp.float32) * (1 / jnp.iinfo(image.dtype).max)


def clip_range(image: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The image clipped to [0, 1]."""
    return jnp.clip(image, jnp.float32(0), jnp.float32(1))


def extent(image: Float[Array, "h w c"], size: Size) -> Int[Array, "2"]:
    """Height and width of the valid part."""
    return jnp.array(image.shape[:2], jnp.int32) if size is None else size


def inside(image: Float[Array, "h w c"], size: Int[Array, "2"]) -> Bool[Array, "h w 1"]:
    """Which pixels are valid."""
    rows, columns = jnp.arange(image.shape[0]) < size[0], jnp.arange(image.shape[1]) < size[1]
    return rows[:, None, None] & columns[None, :, None]


def sometimes(
    key: Key[Array, ""], probability: float, changed: Float[Array, "h w c"], image: Float[Array, "h w c"]
) -> Float[Array, "h w c"]:
    """`changed` with the given probability, else `image`. Both are computed: a batch is one program."""
    if probability == 1:
        return changed
    return jnp.where(jax.random.bernoulli(key, probability), changed, image)


def map_rows_and_columns(
    image: Float[Array, "h w c"], rows: Float[Array, "y h"], columns: Float[Array, "x w"]
) -> Float[Array, "y x c"]:
    """A separable linear map: out_yxc = Σ_hw rows_yh · columns_xw · image_hwc.

    Two matrix products, which every kind of device is good at: on a CPU core 3 ms for 256 x 300 x 3 to 224 x 224, as
    `jax.image.scale_and_translate` takes, and no more for a blur than adding 23 shifted images. In full float32, for
    bfloat16's 8 bits would be an error as large as the image's own rounding.
    """
    highest = jax.lax.Precision.HIGHEST
    half = jnp.matmul(rows, rearrange(image, "h w c -> h (w c)"), precision=highest)
    half = rearrange(half, "y (w c) -> (y c) w", c=image.shape[2])
    return rearrange(jnp.matmul(half, columns.T, precision=highest), "(y c) x -> y x c", c=image.shape[2])


def check_share(name: str, value: float) -> None:
    """Refuses a probability or a ratio outside [0, 1].

    Raises:
        UserError: naming it and its value.
    """
    if not 0 <= value <= 1:
        raise UserError(f"{name} is {value!r}; expected a number from 0 to 1.")


def check_range(name: str, value: tuple[float, float]) -> tuple[float, float]:
    """The two ends of a range, which must be positive and in order.

    Raises:
        UserError: naming it and its value.
    """
    if len(tuple(value)) != 2 or not 0 < value[0] <= value[1]:
        raise UserError(f"{name} is {value!r}; expected two positive numbers, the smaller one first.")
    return float(value[0]), float(value[1])
