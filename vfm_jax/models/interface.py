"""What every encoder answers, so that any of them serves any objective and evaluator."""

from typing import Protocol

import jax
from jaxtyping import Array, Float, Int

from vfm_jax.core.types import Features


class Encoder(Protocol):
    """A Linen module from images to `Features`.

    Attributes:
        patch_size: pixels along one side of what one token of `tokens` stands for.
        num_levels: intermediate outputs there are to ask for, by the field `levels`.

    Encoders that patches can be hidden from have `masked_size` too, pixels along one side, and their calls take
    `masked` (b n, in raster order): squares of that size whose pixels they do not look at.
    """

    patch_size: int
    num_levels: int

    def __call__(
        self,
        image: Float[Array, "b h w c"],
        *,
        keep: Int[Array, "b k"] | None = None,
        keys: jax.Array | None = None,
        train: bool = False,
    ) -> Features:
        """Features of the images.

        Args:
            image: normalised images.
            keep: indices of the patches to look at; None for all.
            keys: one per example, for drop path and the like; needed only in training.
            train: use batch statistics and random drops.
        """
        ...

    def attention(self, image: Float[Array, "b h w c"]) -> Float[Array, "b heads h w"]:
        """How much the pooled representation attends to each patch, by head, in the last layer."""
        ...
