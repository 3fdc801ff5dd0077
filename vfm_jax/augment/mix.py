"""Mixup and CutMix of a whole batch: each image, and its target, mixed with those of another.

References: Zhang et al., mixup, 2017 (arXiv:1710.09412); Yun et al., CutMix, 2019 (arXiv:1905.04899).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from vfm_jax.augment.operation import check_share
from vfm_jax.core.errors import UserError
from vfm_jax.core.types import Batch

Mix = Callable[[Key[Array, ""], Batch], dict[str, Any]]


def draw_cut(key: Key[Array, ""], height: int, width: int, kept: Float[Array, ""]) -> Bool[Array, "h w"]:
    """The pixels of a rectangle that has about the share 1 − kept of the area: √(1 − kept) of each side.

    Its centre is uniform over the pixels, so it may be cut off at the edges of the image, and is smaller then.
    """
    sides = []
    for axis_key, length in zip(jax.random.split(key), (height, width), strict=True):
        half = (length * jnp.sqrt(1 - kept)).astype(jnp.int32) // 2
        centre = jax.random.randint(axis_key, (), 0, length, jnp.int32)
        place = jnp.arange(length, dtype=jnp.int32)
        sides.append((place >= centre - half) & (place < centre + half))
    rows, columns = sides
    return rows[:, None] & columns[None, :]


def mixup_cutmix(
    *,
    num_classes: int,
    mixup: float = 0.8,
    cutmix: float = 1.0,
    probability: float = 1.0,
    switch_probability: float = 0.5,
    label_smoothing: float = 0.1,
) -> Mix:
    """The function `(key, batch) -> batch` that mixes a batch by mixup or by CutMix: timm's Mixup, mode "batch".

    One draw serves the whole batch: which of the two it is, and λ ~ Beta(α, α). Example i is mixed with example
    b − 1 − i, by x_i ← λ x_i + (1 − λ) x_j, or by putting a rectangle of x_j into x_i; λ is then what is really
    left of x_i. The batch is the global one, so that all of this is the same on any number of devices.

    It reads `image` (b h w c, after the views) and `label` (b, in [0, num_classes)); it replaces `image`, adds
    `target` (b m, λ t_i + (1 − λ) t_j with smoothed one-hot t), and keeps the other fields.

    Args:
        num_classes: m.
        mixup: α of mixup; 0 leaves mixup out.
        cutmix: α of CutMix; 0 leaves CutMix out.
        probability: share of the batches that are mixed at all.
        switch_probability: share of those that are mixed by CutMix, where both are in.
        label_smoothing: share of a target's mass that is spread evenly over all classes.

    Raises:
        UserError: a value out of its range; at the first trace, several views of an image.
    """
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise UserError(f"num_classes is {num_classes!r}; expected a whole number, at least 1.")
    for name, alpha in {"mixup": mixup, "cutmix": cutmix}.items():
        if not alpha >= 0:
            raise UserError(f"{name} is {alpha!r}; expected zero or more.")
    if mixup == 0 and cutmix == 0:
        raise UserError("mixup and cutmix are both 0, so nothing would be mixed. Set one, or leave the mixing out.")
    check_share("probability", probability)
    check_share("switch_probability", switch_probability)
    check_share("label_smoothing", label_smoothing)
    cutmix_share = switch_probability if mixup > 0 and cutmix > 0 else float(cutmix > 0)

    def mix(key: Key[Array, ""], batch: Batch) -> dict[str, Any]:
        image, label = batch["image"], batch["label"]
        if image.ndim != 4:
            raise UserError(
                f"Mixing takes one view of each image, b h w c, and these have the shape {image.shape}. "
                "Remove num_views from config.views.image, or leave the mixing out."
            )
        sometimes_key, switch_key, share_key, cut_key = jax.random.split(key, 4)
        cut = jax.random.bernoulli(switch_key, cutmix_share)
        alpha = jnp.where(cut, jnp.float32(cutmix or 1), jnp.float32(mixup or 1))  # what is left out is never drawn
        kept = jax.random.beta(share_key, alpha, alpha, dtype=jnp.float32)  # λ
        kept = jnp.where(jax.random.bernoulli(sometimes_key, probability), kept, jnp.float32(1))

        taken = draw_cut(cut_key, *image.shape[1:3], kept).astype(jnp.float32)  # h w
        kept = jnp.where(cut, 1 - jnp.mean(taken), kept)
        weight = jnp.where(cut, 1 - taken, kept)[None, :, :, None]  # of the image's own pixels
        one_hot = jax.nn.one_hot(label, num_classes, dtype=jnp.float32)
        target = one_hot * (1 - label_smoothing) + label_smoothing / num_classes  # b m
        return {
            **batch,
            "image": weight * image + (1 - weight) * image[::-1],
            "target": kept * target + (1 - kept) * target[::-1],
        }

    return mix
