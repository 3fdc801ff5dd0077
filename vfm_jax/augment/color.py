"""Changes of colour and sharpness, as torchvision defines them. Range and clipping: see operation.py.

Channels of a three-channel image are red, green, blue. Only hue, saturation and grayscale ask for that; the others
take any number of channels.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
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

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow; torchvision's tensors round the first to 0.2989


def _luma(image: Float[Array, "h w c"]) -> Float[Array, "h w 1"]:
    red, green, blue = (image[..., i : i + 1] for i in range(3))
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def _check_rgb(image: Float[Array, "h w c"], what: str) -> None:
    if image.shape[2] != 3:
        raise UserError(
            f"{what} has a meaning for red, green and blue only, and these images have {image.shape[2]} channels. "
            "Leave it out of the list."
        )


def rotate_hue(image: Float[Array, "h w 3"], turns: Float[Array, ""]) -> Float[Array, "h w 3"]:
    """The image with its hue (of hue, saturation, value) turned by a share of the full circle.

    Value and chroma stay exactly as they are, and so no division is needed to come back: with hue H in sixths of
    the circle, channel i is V − C · clip(min(k, 4 − k), 0, 1), k = (n_i + H) mod 6 and n = 5, 3, 1.
    """
    red, green, blue = (image[..., i] for i in range(3))
    value, lowest = jnp.max(image, axis=-1), jnp.min(image, axis=-1)
    chroma = value - lowest
    unit = 1 / jnp.maximum(chroma, jnp.float32(1e-12))  # grey has no hue: any will do
    # Not `value == red`: fused with what made the image, the compiler may round red twice in two ways.
    sixths = jnp.where(
        (red >= green) & (red >= blue),
        (green - blue) * unit,
        jnp.where(green >= blue, 2 + (blue - red) * unit, 4 + (red - green) * unit),
    )

    def channel(n: int) -> Float[Array, "h w"]:
        k = n + sixths + 6 * turns
        k = k - 6 * jnp.floor(k * (1 / 6))  # mod 6; on a CPU jnp.mod takes five times as long as all the rest
        return value - chroma * clip_range(jnp.minimum(k, 4 - k))

    return jnp.stack([channel(5), channel(3), channel(1)], axis=-1)


def blend(
    image: Float[Array, "h w c"], size: Size, kind: Int[Array, ""], factor: Float[Array, ""]
) -> Float[Array, "h w c"]:
    """factor · image + (1 − factor) · target, clipped: a change of brightness, contrast or saturation.

    The target is black for kind 0 (brightness), the mean grey of the image for kind 1 (contrast), and each pixel's
    own grey for kind 2 (saturation). The kind may be traced.
    """
    grey = _luma(image) if image.shape[2] == 3 else jnp.mean(image, axis=2, keepdims=True)
    if size is None:
        mean = jnp.mean(grey)
    else:
        area = jnp.prod(size).astype(jnp.float32)
        mean = jnp.sum(jnp.where(inside(image, size), grey, jnp.float32(0))) / area
    target = jnp.where(kind == 0, jnp.float32(0), jnp.where(kind == 1, mean, grey))
    return clip_range(factor * image + (1 - factor) * target)


def color_jitter(
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    probability: float = 0.8,
    random_order: bool = True,
) -> Operation:
    """Brightness, contrast, saturation and hue changed at random, in random order: torchvision's ColorJitter.

    The first three draw a factor uniform in [max(0, 1 − x), 1 + x]; hue a turn uniform in [−hue, hue] of the circle.

    Args:
        brightness: half width x of the factor's range; 0 leaves this change out. Likewise contrast, saturation.
        hue: largest turn, in [0, 0.5].
        probability: share of the images that are changed at all.
        random_order: another order for each image; else brightness, contrast, saturation, hue.

    Raises:
        UserError: a value out of its range; at the first image if it is not RGB and saturation or hue is asked for.
    """
    strengths = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    for name, strength in strengths.items():
        if not strength >= 0:
            raise UserError(f"{name} is {strength!r}; expected zero or more.")
    if not 0 <= hue <= 0.5:
        raise UserError(f"hue is {hue!r}; expected a share of the circle from 0 to 0.5 (half a turn is the most).")
    check_share("probability", probability)
    kinds = [i for i, strength in enumerate(strengths.values()) if strength > 0]
    low = [max(0.0, 1 - strength) for strength in strengths.values()]
    high = [1.0 + strength for strength in strengths.values()]

    # A branch per image is no branch under vmap: four slots that may hold any of the four changes would compute
    # sixteen. But three of them are one formula, and a factor of 1 is the identity; so hue, the dear one, is computed
    # once, between what comes before it and what comes after it: six blends and one hue at most. Measured on a CPU
    # core, 128 images of 64 x 64: 12 ms, against 18 ms for four slots.
    def operation(key: Key[Array, ""], image: Float[Array, "h w c"], size: Size) -> tuple[Array, Size]:
        if saturation > 0 or hue > 0:
            _check_rgb(image, "color_jitter's saturation or hue")
        sometimes_key, factor_key, turn_key, order_key = jax.random.split(key, 4)
        minimum, maximum = jnp.array(low, jnp.float32), jnp.array(high, jnp.float32)
        factors = jax.random.uniform(factor_key, (3,), jnp.float32, minimum, maximum)
        times = jnp.arange(4, dtype=jnp.float32)
        if random_order:
            times = jax.random.uniform(order_key, (4,), jnp.float32)
        order = jnp.array(kinds, jnp.int32)[jnp.argsort(times[jnp.array(kinds, jnp.int32)])] if kinds else ()
        out = image
        if hue > 0:
            for slot in range(len(kinds)):
                kind = order[slot]
                out = blend(out, size, kind, jnp.where(times[kind] < times[3], factors[kind], jnp.float32(1)))
            out = rotate_hue(out, jax.random.uniform(turn_key, (), jnp.float32, -hue, hue))
        for slot in range(len(kinds)):
            kind = order[slot]
            after = jnp.bool_(hue == 0) | (times[kind] >= times[3])
            out = blend(out, size, kind, jnp.where(after, factors[kind], jnp.float32(1)))
        return sometimes(sometimes_key, probability, out, image), size

    return operation


def grayscale(*, probability: float = 0.2) -> Operation:
    """All three channels replaced by the luma (ITU-R BT.601), with the given probability.

    Raises:
        UserError: a probability outside [0, 1]; at the first image if it is not RGB.
    """
    check_share("probability", probability)

    def operation(key: Key[Array, ""], image: Float[Array, "h w c"], size: Size) -> tuple[Array, Size]:
        _check_rgb(image, "grayscale")
        grey = jnp.broadcast_to(_luma(image), image.shape)
        return sometimes(key, probability, grey, image), size

    return operation


def blur_weights(
    num_pixels: int, end: Int[Array, ""], sigma: Float[Array, ""], radius: Int[Array, ""]
) -> Float[Array, "{num_pixels} {num_pixels}"]:
    """Weights of a Gaussian of 2 · radius + 1 taps along a line of pixels that is mirrored at its two ends.

    Mirrored without repeating the end pixel (torch's "reflect"): pixel j is also seen at −j and at 2 (end − 1) − j.
    """
    place = jnp.arange(num_pixels, dtype=jnp.int32)
    last = end - 1

    def tap(distance: Int[Array, "x x"], seen: Array) -> Float[Array, "x x"]:
        weight = jnp.exp(-0.5 * jnp.square(distance.astype(jnp.float32) / sigma))
        return jnp.where((jnp.abs(distance) <= radius) & seen, weight, jnp.float32(0))

    here, there = place[None, :], place[:, None]  # the pixel read, the pixel made
    weights = (
        tap(here - there, here <= last)
        + tap(-here - there, (here > 0) & (here <= last))
        + tap(2 * last - here - there, here < last)
    )
    return weights / jnp.sum(weights, axis=1, keepdims=True)


def gaussian_blur(
    *,
    sigma: tuple[float, float] = (0.1, 2.0),
    probability: float = 0.5,
    kernel_ratio: float = 0.1,
    kernel_size: int | None = None,
) -> Operation:
    """A Gaussian blur of random width, with the given probability; the image is mirrored at its edges.

    Reference: Chen et al., A simple framework for contrastive learning, 2020, App. A (arXiv:2002.05709), which takes
    a tenth of the image's height as kernel. Their code pads with zeros; torchvision mirrors, and so do we.

    Args:
        sigma: range of the standard deviation, in pixels.
        probability: share of the images that are blurred.
        kernel_ratio: length of the kernel as a share of the image's height, made odd: 2 (⌊share · height⌋ // 2) + 1.
        kernel_size: length of the kernel in pixels, odd, in place of `kernel_ratio`.

    Raises:
        UserError: a value out of its range.
    """
    sigma = check_range("sigma", sigma)
    check_share("probability", probability)
    check_share("kernel_ratio", kernel_ratio)
    if kernel_size is not None and (kernel_size < 1 or kernel_size % 2 == 0):
        raise UserError(f"kernel_size is {kernel_size!r}; expected an odd number of pixels.")

    def operation(key: Key[Array, ""], image: Float[Array, "h w c"], size: Size) -> tuple[Array, Size]:
        sometimes_key, sigma_key = jax.random.split(key)
        width = jax.random.uniform(sigma_key, (), jnp.float32, *sigma)
        ends = extent(image, size)
        if kernel_size is None:
            radius = (ends[0].astype(jnp.float32) * kernel_ratio).astype(jnp.int32) // 2
        else:
            radius = jnp.int32(kernel_size // 2)
        rows, columns = (blur_weights(image.shape[axis], ends[axis], width, radius) for axis in (0, 1))
        return sometimes(sometimes_key, probability, map_rows_and_columns(image, rows, columns), image), size

    return operation


def solarize(*, threshold: float = 0.5, probability: float = 0.2) -> Operation:
    """Values from the threshold up inverted (x becomes 1 − x), with the given probability.

    The threshold 0.5 is the 128 of 8-bit libraries.

    Raises:
        UserError: a value outside [0, 1].
    """
    check_share("threshold", threshold)
    check_share("probability", probability)

    def operation(key: Key[Array, ""], image: Float[Array, "h w c"], size: Size) -> tuple[Array, Size]:
        inverted = jnp.where(image >= threshold, 1 - image, image)
        return sometimes(key, probability, inverted, image), size

    return operation


def normalize(*, mean: float | Sequence[float], std: float | Sequence[float]) -> Operation:
    """(image − mean) / std. The result is no longer in [0, 1].

    Args:
        mean: of values in [0, 1], for each channel, or one number for all of them.
        std: likewise.

    Raises:
        UserError: a std of zero or less; at the first image if it has another number of channels.
    """
    means, stds = (tuple(v) if isinstance(v, Sequence) else (v,) for v in (mean, std))
    if not all(value > 0 for value in stds):
        raise UserError(f"std is {std!r}; expected numbers above zero.")

    def operation(key: Key[Array, ""], image: Float[Array, "h w c"], size: Size) -> tuple[Array, Size]:
        del key
        for name, values in (("mean", means), ("std", stds)):
            if len(values) not in (1, image.shape[2]):
                raise UserError(
                    f"{name} has {len(values)} values, and these images have {image.shape[2]} channels. "
                    "Give one value for each channel, or a single number."
                )
        centre, spread = (rearrange(jnp.array(v, jnp.float32), "c -> 1 1 c") for v in (means, stds))
        return (image - centre) / spread, size

    return operation
