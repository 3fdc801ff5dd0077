"""AutoAugment: one of 25 pairs of changes, found by search (Cubuk et al., 2018, arXiv:1805.09501)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vfm_jax.augment.operation import Operation, Size
from vfm_jax.augment.policies import CHANGES, TAPS, change, strengths
from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import lookup

# change, probability, magnitude from 0 to 10: the policy "v0" of TensorFlow's model garden and EfficientNet, which is
# another than the paper's
POLICY = (
    (("equalize", 0.8, 1), ("shear_y", 0.8, 4)),
    (("color", 0.4, 9), ("equalize", 0.6, 3)),
    (("color", 0.4, 1), ("rotate", 0.6, 8)),
    (("solarize", 0.8, 3), ("equalize", 0.4, 7)),
    (("solarize", 0.4, 2), ("solarize", 0.6, 2)),
    (("color", 0.2, 0), ("equalize", 0.8, 8)),
    (("equalize", 0.4, 8), ("solarize_add", 0.8, 3)),
    (("shear_x", 0.2, 9), ("rotate", 0.6, 8)),
    (("color", 0.6, 1), ("equalize", 1.0, 2)),
    (("invert", 0.4, 9), ("rotate", 0.6, 0)),
    (("equalize", 1.0, 9), ("shear_y", 0.6, 3)),
    (("color", 0.4, 7), ("equalize", 0.6, 0)),
    (("posterize", 0.4, 6), ("auto_contrast", 0.4, 7)),
    (("solarize", 0.6, 8), ("color", 0.6, 9)),
    (("solarize", 0.2, 4), ("rotate", 0.8, 9)),
    (("rotate", 1.0, 7), ("translate_y", 0.8, 9)),
    (("shear_x", 0.0, 0), ("solarize", 0.8, 4)),
    (("shear_y", 0.8, 0), ("color", 0.6, 4)),
    (("color", 1.0, 0), ("rotate", 0.6, 2)),
    (("equalize", 0.8, 4), ("equalize", 0.0, 8)),
    (("equalize", 1.0, 4), ("auto_contrast", 0.6, 2)),
    (("shear_y", 0.4, 7), ("solarize_add", 0.6, 7)),
    (("posterize", 0.8, 2), ("solarize", 0.6, 10)),
    (("solarize", 0.6, 8), ("equalize", 0.6, 1)),
    (("color", 0.8, 6), ("rotate", 0.4, 5)),
)
TRANSLATION = 250  # pixels at magnitude 10, whatever the size of the image


def draw_pair(key: Key[Array, ""], height: int) -> tuple[Int[Array, "2"], Float[Array, "2"]]:
    """Which of `CHANGES` to make one after the other, −1 for none, and their strengths as in `policies.strengths`."""
    kinds = jnp.array([[CHANGES.index(name) for name, _, _ in pair] for pair in POLICY], jnp.int32)
    shares = jnp.array([[share for _, share, _ in pair] for pair in POLICY], jnp.float32)
    magnitudes = jnp.array([[magnitude for _, _, magnitude in pair] for pair in POLICY], jnp.float32)
    pair_key, sometimes_key, sign_key = jax.random.split(key, 3)
    pair = jax.random.randint(pair_key, (), 0, len(POLICY))
    signs = jnp.where(jax.random.bernoulli(sign_key, 0.5, (2,)), jnp.float32(1), jnp.float32(-1))

    def strength(kind: Int[Array, ""], magnitude: Float[Array, ""], sign: Float[Array, ""]) -> Float[Array, ""]:
        moved = sign * magnitude / 10 * TRANSLATION / height
        usual = strengths(magnitude, sign, increasing=False)[kind]
        return jnp.where(kind == CHANGES.index("translate_y"), moved, usual)

    made = jax.random.uniform(sometimes_key, (2,), jnp.float32) < shares[pair]
    return jnp.where(made, kinds[pair], -1), jax.vmap(strength)(kinds[pair], magnitudes[pair], signs)


def auto_augment(*, fill: float | Sequence[float] = 128 / 255, interpolation: str = "bilinear") -> Operation:
    """Two changes in turn, each made or left out as the pair says that was drawn: TensorFlow's AutoAugment "v0".

    The image is not rounded to 8 bits in between, and warps are not by the nearest pixel as there.

    Args:
        fill: colour of what a warp moves in, in [0, 1], for each channel, or one number.
        interpolation: of warps, "bilinear" or "bicubic".

    Raises:
        UserError: a value out of its range; at the first image, if it is not cropped yet or not RGB.
    """
    lookup(TAPS, interpolation, "interpolation")
    colour = tuple(fill) if isinstance(fill, Sequence) else (fill,)
    if len(colour) not in (1, 3) or not all(0 <= value <= 1 for value in colour):
        raise UserError(f"fill is {fill!r}; expected one value from 0 to 1, or three.")

    def operation(key: Key[Array, ""], image: Float[Array, "h w c"], size: Size) -> tuple[Array, Size]:
        if size is not None:
            raise UserError(
                "auto_augment needs images that are filled to the edge. Put a crop or a resize before it."
            )
        if image.shape[2] != 3:
            raise UserError(f"auto_augment was found for RGB images; these have {image.shape[2]} channels.")
        fills = jnp.array(colour, jnp.float32)

        def one(image: Array, what: tuple[Array, Array]) -> tuple[Array, None]:
            return change(image, *what, fills, interpolation), None

        return jax.lax.scan(one, image, draw_pair(key, image.shape[0]))[0], size  # compiled once for both

    return operation
