"""Crops, flips and shifts, in the photo's own coordinates. Range and clipping: see operation.py."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vfm_jax.augment.operation import (
    Operation,
    Size,
    check_range,
    check_share,
    clip_range,
    extent,
    inside,
    map_rows_and_columns,
    sometimes,
)
from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import lookup

CROP_TRIES = 10  # torchvision's RandomResizedCrop.get_params


def _triangle(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.maximum(jnp.float32(0), 1 - jnp.abs(x))


def _keys_cubic(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Keys' cubic convolution kernel with a = -1/2, which Pillow uses, and PyTorch where it antialiases."""
    x = jnp.abs(x)
    near, far = ((1.5 * x - 2.5) * x) * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return jnp.where(x < 1, near, jnp.where(x < 2, far, jnp.float32(0)))


KERNELS = {"bilinear": _triangle, "bicubic": _keys_cubic}  # weight at a distance, in pixels


def resampling_weights(
    num_in: int,
    num_out: int,
    box: tuple[Int[Array, ""], Int[Array, ""]],
    start: Float[Array, ""],
    scale: Float[Array, ""],
    interpolation: str,
) -> Float[Array, "{num_out} {num_in}"]:
    """Weights of the input pixels of a line in each of its output pixels; every row adds up to one.

    Output pixel i has its centre at start + (i + 1/2) · scale of the input. The kernel is widened by the scale where
    that is above one (antialiasing), cut off at the ends of the box and normalised again, as Pillow does: so this is
    cropping to the box and then resizing, and nothing outside the box can leak in. An output pixel whose centre lies
    outside the box gets no weights (zero, as torchvision pads).

    Args:
        num_in: length of the input line.
        num_out: length of the output line.
        box: first pixel and end (one after the last) of the part that may be read.
        start: where the output begins, in input pixels.
        scale: input pixels per output pixel.
        interpolation: a name in `KERNELS`.
    """
    kernel = KERNELS[interpolation]
    first, end = (edge.astype(jnp.float32) for edge in box)
    centre = start + (jnp.arange(num_out, dtype=jnp.float32) + 0.5) * scale  # y
    pixel = jnp.arange(num_in, dtype=jnp.float32) + 0.5  # h
    widen = jnp.maximum(scale, jnp.float32(1))
    weights = kernel((pixel[None, :] - centre[:, None]) / widen)
    readable = (pixel > first) & (pixel < end)
    weights = jnp.where(readable[None, :], weights, jnp.float32(0))
    covered = (centre > first) & (centre < end)
    total = jnp.sum(weights, axis=1)
    return weights * jnp.where(covered, 1 / jnp.where(covered, total, jnp.float32(1)), jnp.float32(0))[:, None]


def _resample_box(
    image: Float[Array, "h w c"],
    origin: Int[Array, "2"],
    shape: Int[Array, "2"],
    out_size: int,
    interpolation: str,
) -> Float[Array, "y x c"]:
    """The box of the given origin and shape, resized to a square."""
    lines = [
        resampling_weights(
            image.shape[axis],
            out_size,
            (origin[axis], origin[axis] + shape[axis]),
            origin[axis].astype(jnp.float32),
            shape[axis].astype(jnp.float32) / out_size,
            interpolation,
        )
        for axis in (0, 1)
    ]
    return clip_range(map_rows_and_columns(image, *lines))  # a bicubic kernel overshoots


def draw_crop(
    key: Key[Array, ""], size: Int[Array, "2"], scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[Int[Array, "2"], Int[Array, "2"]]:
    """Origin and shape, (y, x) and (height, width) in pixels, of a random crop of an image of the given size.

    The distribution is that of torchvision's RandomResizedCrop: up to ten times, an area uniform in `scale` (share of
    the image's) and a ratio width/height log-uniform in `ratio`, rounded to whole pixels, until it fits; then its
    place, uniform. If none fits, the largest central crop whose ratio is in the range.
    """
    height, width = size.astype(jnp.float32)
    area_draw, ratio_draw, place_draw = jnp.split(
        jax.random.uniform(key, (2 * CROP_TRIES + 2,), jnp.float32), (CROP_TRIES, 2 * CROP_TRIES)
    )
    area = height * width * (scale[0] + (scale[1] - scale[0]) * area_draw)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = jnp.exp(low + (high - low) * ratio_draw)
    widths, heights = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = jnp.argmax(fits)

    narrow, wide = width / height < ratio[0], width / height > ratio[1]
    central = jnp.stack(
        [jnp.where(narrow, jnp.round(width / ratio[0]), height), jnp.where(wide, jnp.round(height * ratio[1]), width)]
    )
    shape = jnp.where(fits[first], jnp.stack([heights[first], widths[first]]), central).astype(jnp.int32)
    free = size - shape
    random_origin = jnp.minimum((place_draw * (free + 1).astype(jnp.float32)).astype(jnp.int32), free)
    return jnp.where(fits[first], random_origin, free // 2), shape


def random_resized_crop(
    *,
    size: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: str = "bilinear",
) -> Operation:
    """A random part of the image, resized to `size` x `size`: torchvision's RandomResizedCrop, antialiased.

    Reference: Szegedy et al., Going deeper with convolutions, 2014, Sec. 6 (arXiv:1409.4842).

    Args:
        size: height and width of the result, in pixels.
        scale: range of the crop's area, as a share of the photo's.
        ratio: range of the crop's width / height.
        interpolation: "bilinear" or "bicubic".

    Raises:
        UserError: a value out of its range.
    """
    _check_size(size)
    scale, ratio = check_range("scale", scale), check_range("ratio", ratio)
    if scale[1] > 1:
        raise UserError(f"scale is {scale!r}; a crop has at most the area of its photo, 1.0.")
    lookup(KERNELS, interpolation, "interpolation")

    def operation(key: Key[Array, ""], image: Float[Array, "h w c"], valid: Size) -> tuple[Array, Size]:
        origin, shape = draw_crop(key, extent(image, valid), scale, ratio)
        return _resample_box(image, origin, shape, size, interpolation), None

    return operation


def resize(*, size: int, interpolation: str = "bicubic") -> Operation:
    """The whole image, resized to `size` x `size` whatever its shape was. For evaluation: nothing is random.

    Args:
        size: height and width of the result, in pixels.
        interpolation: "bilinear" or "bicubic", antialiased.

    Raises:
        UserError: a value out of its range.
    """
    _check_size(size)
    lookup(KERNELS, interpolation, "interpolation")

    def operation(key: Key[Array, ""], image: Float[Array, "h w c"], valid: Size) -> tuple[Array, Size]:
        del key
        return _resample_box(image, jnp.zeros(2, jnp.int32), extent(image, valid), size, interpolation), None

    return operation


def center_crop(*, size: int, resize_shorter: int | None = None, interpolation: str = "bicubic") -> Operation:
    """The central square of the image after its shorter side was resized. For evaluation: nothing is random.

    Both at once: torchvision's Resize(resize_shorter) and CenterCrop(size), without rounding to 8 bits in between.
    Where the crop is larger than the image, it is filled up with zeros.

    Args:
        size: height and width of the result, in pixels.
        resize_shorter: what the shorter side is resized to, in pixels; None leaves the image as large as it is.
        interpolation: "bilinear" or "bicubic", antialiased.

    Raises:
        UserError: a value out of its range.
    """
    _check_square(size, resize_shorter, interpolation)

    def operation(key: Key[Array, ""], image: Float[Array, "h w c"], valid: Size) -> tuple[Array, Size]:
        del key
        before = extent(image, valid)
        after = _resized(before, resize_shorter)
        # torchvision rounds half of what is cut off to even, and half of what is filled up down
        excess = (after - size).astype(jnp.float32) / 2
        origin = jnp.where(excess >= 0, jnp.round(excess), jnp.ceil(excess))
        return _cut_square(image, before, after, origin, size, interpolation), None

    return operation


def random_crop(*, size: int, resize_shorter: int | None = None, interpolation: str = "bicubic") -> Operation:
    """A square of the image, anywhere with the same probability, after its shorter side was resized.

    torchvision's Resize(resize_shorter) and RandomCrop(size), without rounding to 8 bits in between. Where the crop
    is larger than the image, it is filled up with zeros on the right and below.

    Reference: Radford et al., CLIP, 2021 (arXiv:2103.00020), Sec. 2.2: its only augmentation, resize_shorter = size.

    Args:
        size: height and width of the result, in pixels.
        resize_shorter: what the shorter side is resized to, in pixels; None leaves the image as large as it is.
        interpolation: "bilinear" or "bicubic", antialiased.

    Raises:
        UserError: a value out of its range.
    """
    _check_square(size, resize_shorter, interpolation)

    def operation(key: Key[Array, ""], image: Float[Array, "h w c"], valid: Size) -> tuple[Array, Size]:
        before = extent(image, valid)
        after = _resized(before, resize_shorter)
        origin = jax.random.randint(key, (2,), 0, jnp.maximum(after - size, 0) + 1).astype(jnp.float32)
        return _cut_square(image, before, after, origin, size, interpolation), None

    return operation


def _resized(before: Int[Array, "2"], resize_shorter: int | None) -> Int[Array, "2"]:
    """Height and width once the shorter one is `resize_shorter`."""
    return before if resize_shorter is None else before * resize_shorter // jnp.min(before)


def _cut_square(
    image: Float[Array, "h w c"],
    before: Int[Array, "2"],
    after: Int[Array, "2"],
    origin: Float[Array, "2"],
    size: int,
    interpolation: str,
) -> Float[Array, "y x c"]:
    """Pixels `origin` to `origin + size` of the image resized from `before` to `after`."""
    scale = before.astype(jnp.float32) / after.astype(jnp.float32)
    lines = [
        resampling_weights(
            image.shape[axis],
            size,
            (jnp.int32(0), before[axis]),
            origin[axis] * scale[axis],
            scale[axis],
            interpolation,
        )
        for axis in (0, 1)
    ]
    return clip_range(map_rows_and_columns(image, *lines))


def flip(*, probability: float = 0.5) -> Operation:
    """The image mirrored left to right, with the given probability.

    Raises:
        UserError: a probability outside [0, 1].
    """
    check_share("probability", probability)

    def operation(key: Key[Array, ""], image: Float[Array, "h w c"], valid: Size) -> tuple[Array, Size]:
        if valid is None:
            mirrored = image[:, ::-1]
        else:  # about the middle of the valid part, which stays at the left
            mirrored = jnp.roll(image[:, ::-1], valid[1] - image.shape[1], axis=1)
        return sometimes(key, probability, mirrored, image), valid

    return operation


def shift(*, max_pixels: int = 2) -> Operation:
    """The image moved by whole pixels, uniform in [-max_pixels, max_pixels] on each axis; zeros move in.

    Raises:
        UserError: max_pixels is not a whole number, zero or more.
    """
    if isinstance(max_pixels, bool) or not isinstance(max_pixels, int) or max_pixels < 0:
        raise UserError(f"max_pixels is {max_pixels!r}; expected a whole number of pixels, zero or more.")

    def operation(key: Key[Array, ""], image: Float[Array, "h w c"], valid: Size) -> tuple[Array, Size]:
        if valid is not None:  # what moves in from the padding of the canvas is zero, too
            image = jnp.where(inside(image, valid), image, jnp.float32(0))
        border = (max_pixels, max_pixels)
        padded = jnp.pad(image, (border, border, (0, 0)))
        y, x = jax.random.randint(key, (2,), 0, 2 * max_pixels + 1)
        return jax.lax.dynamic_slice(padded, (y, x, jnp.int32(0)), image.shape), valid

    return operation


def _check_square(size: int, resize_shorter: int | None, interpolation: str) -> None:
    _check_size(size)
    if resize_shorter is not None and resize_shorter < size:
        raise UserError(
            f"resize_shorter is {resize_shorter!r}, below size={size}: the crop would not fit. "
            f"Set resize_shorter to {size} or more."
        )
    lookup(KERNELS, interpolation, "interpolation")


def _check_size(size: int) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise UserError(f"size is {size!r}; expected a whole number of pixels, at least 1.")
