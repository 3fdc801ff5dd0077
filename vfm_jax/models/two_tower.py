"""Images and texts in one space: an image tower, a text tower and the temperature between them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vfm_jax.core.tables import build
from vfm_jax.core.types import Features


class Pairs(NamedTuple):
    """What a two-tower model says of images and texts.

    Attributes:
        image: embeddings of unit length.
        text: the same, of texts.
        logits: how well each text fits each image: scale times cosine, plus offset.
        image_features: of the image tower; its pooled is the embedding before normalisation.
        text_features: of the text tower.
    """

    image: Float[Array, "b d"]
    text: Float[Array, "t d"]
    logits: Float[Array, "b t"]
    image_features: Features
    text_features: Features


def unit(x: Float[Array, "b d"]) -> Float[Array, "b d"]:
    """Each row divided by its length."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


class TwoTower(nn.Module):
    """logits = exp(logit_scale) · cos(image, text) + logit_bias.

    Reference: CLIP (Radford et al., 2021, arXiv:2103.00020, Fig. 3), with a learned offset SigLIP (Zhai et al., 2023,
    arXiv:2303.15343, Alg. 1).

    Attributes:
        image: images -> Features, pooled in the common space.
        text: token ids, mask -> Features, the same.
        logit_bias: learn an offset.
        initial_scale: of the factor itself, not its logarithm: 1/0.07 in CLIP, 10 in SigLIP.
        initial_bias: of the offset.
    """

    image: nn.Module
    text: nn.Module
    logit_bias: bool = False
    initial_scale: float = 1 / 0.07
    initial_bias: float = -10.0

    def setup(self) -> None:
        scale = nn.initializers.constant(np.log(self.initial_scale))
        self.log_scale = self.param("logit_scale", scale, (), jnp.float32)
        if self.logit_bias:
            self.offset = self.param("logit_bias", nn.initializers.constant(self.initial_bias), (), jnp.float32)

    @property
    def patch_size(self) -> int:
        """The image tower's."""
        return self.image.patch_size

    def __call__(
        self, image: Float[Array, "b h w c"], text: Int[Array, "t l"], text_mask: Bool[Array, "t l"] | None = None
    ) -> Pairs:
        """Embeddings and logits of images and texts, of which there may be different numbers."""
        return self.pair(self.encode_image(image), self.encode_text(text, text_mask))

    def encode_image(self, image: Float[Array, "b h w c"], **kwargs: Any) -> Features:
        """Features of images; keywords are the image tower's."""
        return self.image(image, **kwargs)

    def encode_packed(
        self,
        patches: Float[Array, "b n p"],
        shapes: Int[Array, "b 2"],
        valid: Bool[Array, "b n"],
        **kwargs: Any,
    ) -> Features:
        """Features of images of their own grids, padded to one number of patches; see `models.vit.ViT.packed`."""
        return self.image.packed(patches, shapes, valid, **kwargs)

    def encode_text(self, text: Int[Array, "t l"], mask: Bool[Array, "t l"] | None = None, **kwargs: Any) -> Features:
        """Features of texts; keywords are the text tower's."""
        return self.text(text, mask, **kwargs)

    def pair(self, image: Features, text: Features) -> Pairs:
        """Embeddings and logits of encoded images and texts."""
        image_embedding, text_embedding = unit(image.pooled), unit(text.pooled)
        # in float32: a factor of up to a hundred stands before these cosines
        logits = jnp.exp(self.log_scale) * (image_embedding @ text_embedding.T)
        if self.logit_bias:
            logits = logits + self.offset
        return Pairs(image_embedding, text_embedding, logits, image, text)

    def attention(self, image: Float[Array, "b h w c"]) -> jax.Array:
        """The image tower's."""
        return self.image.attention(image)


def two_tower(
    image: Mapping[str, Any],
    text: Mapping[str, Any],
    *,
    logit_bias: bool = False,
    initial_scale: float = 1 / 0.07,
    initial_bias: float = -10.0,
    dtype: DTypeLike | None = None,
) -> TwoTower:
    """A `TwoTower` from a recipe's words.

    Args:
        image: network dict of the image tower: {"name": "vit", ...}.
        text: of the text tower: {"name": "text", ...}.
        logit_bias: see `TwoTower`; the next two too.
        initial_scale: see there.
        initial_bias: see there.
        dtype: of matrix products in both towers; None leaves it to their dicts.
    """
    from vfm_jax.models import MODELS  # the table that this function stands in

    given = {} if dtype is None else {"dtype": dtype}
    towers = [
        build(MODELS, spec, f"two_tower.{where}", **given) for where, spec in (("image", image), ("text", text))
    ]
    return TwoTower(*towers, logit_bias, initial_scale, initial_bias)
