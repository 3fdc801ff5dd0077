"""RandAugment: a few changes drawn from a list, of one magnitude (Cubuk et al., 2019, arXiv:1909.13719)."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int, Key

from vfm_jax.augment.color import blend, gaussian_blur, grayscale, solarize
from vfm_jax.augment.operation import Operation, Size, clip_range
from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import lookup

WARPS = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
BLENDS = ("brightness", "contrast", "color")  # in the order of `color.blend`
OTHERS = ("sharpness", "auto_contrast", "invert", "solarize", "solarize_add", "posterize", "equalize")
CHANGES = WARPS + BLENDS + OTHERS
LARGEST = 255  # the 8-bit value that 1.0 stands for; thresholds and bits are defined on it


def strengths(
    magnitude: Float[Array, ""], sign: Float[Array, ""], increasing: bool
) -> Float[Array, "{len(CHANGES)}"]:
    """What each change of `CHANGES` is told at a magnitude in [0, 10], for a sign of 1 or −1.

    Degrees; slopes; shares of the width or height; factors; and the 8-bit threshold, addend and number of bits.

    Args:
        magnitude: how much of the range of a change, in tenths.
        sign: to which side a change goes that has two.
        increasing: a larger magnitude changes more, whatever the change; else as in the TPU's EfficientNet, where
            1 is the middle of the factors, and few bits or a low threshold come with a small magnitude.
    """
    share = magnitude / 10
    factor = 1 + sign * 0.9 * share if increasing else 0.1 + 1.8 * share
    threshold, bits = jnp.floor(256 * share), jnp.floor(4 * share)
    values = {
        "rotate": sign * 30 * share,
        "shear_x": sign * 0.3 * share,
        "shear_y": sign * 0.3 * share,
        "translate_x": sign * 0.45 * share,
        "translate_y": sign * 0.45 * share,
        "brightness": factor,
        "contrast": factor,
        "color": factor,
        "sharpness": factor,
        "solarize": 256 - threshold if increasing else threshold,
        "solarize_add": jnp.floor(110 * share),
        "posterize": jnp.clip(4 - bits if increasing else bits, 0, 8),
    }
    return jnp.stack([values.get(name, jnp.float32(0)) for name in CHANGES])


def _two_taps(x: Float[Array, "..."]) -> Sequence[Float[Array, "..."]]:
    return 1 - x, x


def _four_taps(x: Float[Array, "..."]) -> Sequence[Float[Array, "..."]]:
    """Cubic convolution with a = −1, which Pillow's transforms use (and its resize does not: there a = −1/2)."""
    y = 1 - x
    return -x * y * y, (x * x - x - 1) * (x - 1), (y * y - y - 1) * (y - 1), -y * x * x


TAPS: dict[str, Callable] = {"bilinear": _two_taps, "bicubic": _four_taps}


def warp(
    image: Float[Array, "h w c"],
    matrix: Float[Array, "2 2"],
    offset: Float[Array, "2"],
    fill: Float[Array, "#c"],
    interpolation: str,
) -> Float[Array, "h w c"]:
    """The image whose pixel with centre (x, y) is read at matrix · (x, y) + offset: Pillow's Image.transform, AFFINE.

    What is read outside the image is `fill`; near the edge, the pixels at the edge are repeated.
    """
    height, width = image.shape[:2]
    x = (jnp.arange(width, dtype=jnp.float32) + 0.5)[None, :]
    y = (jnp.arange(height, dtype=jnp.float32) + 0.5)[:, None]
    from_x, from_y = (matrix[i, 0] * x + matrix[i, 1] * y + offset[i] for i in range(2))  # h w
    readable = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    left, top = jnp.floor(from_x - 0.5), jnp.floor(from_y - 0.5)
    weights_x, weights_y = TAPS[interpolation](from_x - 0.5 - left), TAPS[interpolation](from_y - 0.5 - top)
    first = 1 - len(weights_x) // 2
    columns, rows = (
        [jnp.clip(edge.astype(jnp.int32) + first + i, 0, length - 1) for i in range(len(weights_x))]
        for edge, length in ((left, width), (top, height))
    )
    out = sum(
        weight_y[:, :, None]
        * sum(weight_x[:, :, None] * image[row, column] for column, weight_x in zip(columns, weights_x, strict=True))
        for row, weight_y in zip(rows, weights_y, strict=True)
    )
    return jnp.where(readable[:, :, None], clip_range(out), fill[None, None, :])


def smooth(image: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
    """Each pixel's mean with its eight neighbours, itself counted five times; the edge stays: Pillow's SMOOTH."""
    rows = image[:-2] + image[1:-1] + image[2:]
    box = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    return image.at[1:-1, 1:-1].set((box + 4 * image[1:-1, 1:-1]) / 13)


def auto_contrast(image: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
    """Each channel stretched to the whole range [0, 1]; a channel of one value stays as it is."""
    low, high = jnp.min(image, axis=(0, 1), keepdims=True), jnp.max(image, axis=(0, 1), keepdims=True)
    return jnp.where(high > low, (image - low) / jnp.where(high > low, high - low, jnp.float32(1)), image)


def count_by_adding(values: Int[Array, "h w c"]) -> Int[Array, "c 256"]:
    """Pixels of each value, added one by one."""
    channel = jnp.arange(values.shape[2], dtype=jnp.int32)[None, None, :]
    return jnp.zeros((values.shape[2], 256), jnp.int32).at[channel, values].add(1)


def count_by_product(values: Int[Array, "h w c"]) -> Int[Array, "c 256"]:
    """Pixels of each value, as a product of pixels by high and pixels by low four bits.

    Zeros and ones are exact in any precision, and their sums in float32 up to 2^24 pixels.
    """
    nibble = jnp.arange(16, dtype=jnp.int32)[None, None, None, :]
    high, low = ((half[..., None] == nibble).astype(jnp.float32) for half in (values // 16, values % 16))
    return rearrange(jnp.einsum("hwci,hwcj->cij", high, low), "c i j -> c (i j)").astype(jnp.int32)


def count_values(values: Int[Array, "h w c"]) -> Int[Array, "c 256"]:
    """How many pixels of each channel have each value from 0 to 255.

    A CPU takes 0.6 ms for 224 x 224 x 3 to add one by one, and 19 ms for the product. Elsewhere the product is
    taken, by reasoning and not by measurement: additions to one place wait for each other.
    """
    return jax.lax.platform_dependent(values, cpu=count_by_adding, default=count_by_product)


def equalize(image: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
    """Each channel mapped so that its 256 values are about equally frequent: Pillow's ImageOps.equalize."""
    values = jnp.round(image * LARGEST).astype(jnp.int32)
    counts = count_values(values)
    below = jnp.cumsum(counts, axis=1) - counts
    brightest = jnp.max(values, axis=(0, 1))  # c
    # What lies below the brightest value, spread over the 255 steps; none where a channel has one value only.
    step = jnp.take_along_axis(below, brightest[:, None], axis=1) // LARGEST  # c 1
    table = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), LARGEST).astype(jnp.float32) / LARGEST
    channel = jnp.arange(image.shape[2], dtype=jnp.int32)[None, None, :]
    return jnp.where(step[None, None, :, 0] > 0, table[channel, values], image)


def change(
    image: Float[Array, "h w c"],
    kind: Int[Array, ""],
    strength: Float[Array, ""],
    fill: Float[Array, "#c"],
    interpolation: str,
) -> Float[Array, "h w c"]:
    """The image after the change `CHANGES[kind]`, of a strength as in `strengths`; kind −1 gives the image itself.

    The kind is traced, and a branch per image is no branch under vmap: all are computed, and one is taken. So changes
    of one form are computed once, with the numbers of the kind that was drawn.
    """
    height, width, _ = image.shape

    def if_kind(name: str) -> Float[Array, ""]:
        return jnp.where(kind == CHANGES.index(name), strength, jnp.float32(0))

    angle = jnp.deg2rad(if_kind("rotate"))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    matrix = jnp.stack([cos, if_kind("shear_x") - sin, if_kind("shear_y") + sin, cos]).reshape(2, 2)
    x, y = width / 2, height / 2  # a rotation keeps the centre where it is
    offset = jnp.stack(
        [
            x - cos * x + sin * y + if_kind("translate_x") * width,
            y - sin * x - cos * y + if_kind("translate_y") * height,
        ]
    )

    value = jnp.round(image * LARGEST)  # thresholds and bits are those of 8-bit values
    unit = jnp.exp2(8 - if_kind("posterize"))
    # All from the image itself, not one from the other: XLA on a CPU fused such a chain so that its start was
    # computed many times (22 ms for two changes of 224 x 224 x 3 on one core, now 12).
    changed = {
        "none": image,
        "warp": warp(image, matrix, offset, fill, interpolation),
        "blend": blend(image, None, kind - len(WARPS), strength),
        "sharpness": clip_range(strength * image + (1 - strength) * smooth(image)),
        "auto_contrast": auto_contrast(image),
        "invert": 1 - image,
        "solarize": jnp.where(value >= strength, 1 - image, image),
        "solarize_add": jnp.where(value < 128, clip_range(image + strength / LARGEST), image),
        "posterize": jnp.floor(value / unit) * unit / LARGEST,
        "equalize": equalize(image),
    }
    forms = ("none", *("warp" for _ in WARPS), *("blend" for _ in BLENDS), *OTHERS)
    place = jnp.array([list(changed).index(form) for form in forms], jnp.int32)
    return jax.lax.select_n(place[kind + 1], *changed.values())


def draw_change(
    key: Key[Array, ""], magnitude: float, magnitude_std: float, increasing: bool, max_magnitude: float = 10.0
) -> tuple[Int[Array, ""], Float[Array, ""]]:
    """Which of `CHANGES` to make, or −1 for none (half of the time), and its strength."""
    normal_key, uniform_key = jax.random.split(key)
    drawn = magnitude + magnitude_std * jax.random.normal(normal_key, (), jnp.float32)
    kind_draw, sign_draw, sometimes = jax.random.uniform(uniform_key, (3,), jnp.float32)
    sign = jnp.where(sign_draw < 0.5, jnp.float32(-1), jnp.float32(1))
    kind = jnp.minimum((kind_draw * len(CHANGES)).astype(jnp.int32), len(CHANGES) - 1)
    strength = strengths(jnp.clip(drawn, 0.0, max_magnitude), sign, increasing)[kind]
    return jnp.where(sometimes < 0.5, kind, jnp.int32(-1)), strength


def three_augment() -> Operation:
    """One of three, each as likely: luma alone, solarisation from the middle up, a blur of deviation 0.1 to 2 pixels.

    Reference: Touvron et al., DeiT III, 2022 (arXiv:2204.07118), Sec. 3.2, "3-Augment", with the code's settings.

    Raises:
        UserError: at the first image if it is not RGB.
    """
    chosen = (grayscale(probability=1.0), solarize(probability=1.0), gaussian_blur(sigma=(0.1, 2.0), probability=1.0))

    def operation(key: Key[Array, ""], image: Float[Array, "h w c"], size: Size) -> tuple[Array, Size]:
        kind_key, own = jax.random.split(key)
        made = jnp.stack([one(own, image, size)[0] for one in chosen])  # a batch is one program: all are computed
        return made[jax.random.randint(kind_key, (), 0, len(chosen))], size

    return operation


def rand_augment(
    *,
    magnitude: float = 9.0,
    magnitude_std: float = 0.5,
    num_ops: int = 2,
    increasing: bool = True,
    max_magnitude: float = 10.0,
    fill: float | Sequence[float] = 128 / 255,
    interpolation: str = "bilinear",
) -> Operation:
    """`num_ops` changes in turn, each drawn from fifteen and left out half of the time: timm's rand-m9-mstd0.5-inc1.

    Each change has its own magnitude, normal about the given one and clipped to [0, max_magnitude]. Differences from
    timm: the image is not rounded to 8 bits in between, and where timm by default draws one of two interpolations,
    here it is fixed. A magnitude of 10 leaves 0 bits of a posterised image, which is black: so the timm of that
    policy had it.

    Args:
        magnitude: the m of timm's name, in tenths of each change's range.
        magnitude_std: the mstd of timm's name, standard deviation of the magnitude.
        num_ops: the n of timm's name: how many changes are drawn, with replacement.
        increasing: the inc of timm's name: see `strengths`.
        max_magnitude: the mmax of timm's name; above 10 changes go beyond their range (AugReg's "medium", "strong").
        fill: colour of what a warp moves in, in [0, 1], for each channel, or one number; timm's training gives it
            the mean that `normalize` has.
        interpolation: of warps, "bilinear" or "bicubic". timm takes that of the crop where the recipe names one
            (MAE, Sec. A: bicubic).

    Raises:
        UserError: a value out of its range; at the first image, if it is not cropped yet or if `fill` has another
            number of channels.
    """
    if not 0 <= magnitude <= max_magnitude:
        raise UserError(f"magnitude is {magnitude!r}; expected a number from 0 to max_magnitude, {max_magnitude}.")
    if not magnitude_std >= 0:
        raise UserError(f"magnitude_std is {magnitude_std!r}; expected zero or more.")
    if isinstance(num_ops, bool) or not isinstance(num_ops, int) or num_ops < 1:
        raise UserError(f"num_ops is {num_ops!r}; expected a whole number, at least 1.")
    lookup(TAPS, interpolation, "interpolation")
    colour = tuple(fill) if isinstance(fill, Sequence) else (fill,)
    if not all(0 <= value <= 1 for value in colour):
        raise UserError(f"fill is {fill!r}; expected values from 0 to 1.")

    def operation(key: Key[Array, ""], image: Float[Array, "h w c"], size: Size) -> tuple[Array, Size]:
        if size is not None:
            raise UserError(
                "rand_augment needs images that are filled to the edge. Put a crop or a resize before it."
            )
        if len(colour) not in (1, image.shape[2]):
            raise UserError(
                f"fill has {len(colour)} values, and these images have {image.shape[2]} channels. "
                "Give one value for each channel, or a single number."
            )
        fills = jnp.array(colour, jnp.float32)

        def one(image: Array, key: Array) -> tuple[Array, None]:
            kind, strength = draw_change(key, magnitude, magnitude_std, increasing, max_magnitude)
            return change(image, kind, strength, fills, interpolation), None

        return jax.lax.scan(one, image, jax.random.split(key, num_ops))[0], size  # compiled once for all of them

    return operation
