"""The networks of one file of weights as one module: an encoder, and what the file has beside it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vfm_jax.core.errors import UserError
from vfm_jax.core.types import Features
from vfm_jax.nn.masking import mask_by_noise, masking_noise


class Assembly(nn.Module):
    """An encoder and its heads; the parameters are those of each under the name of its role.

    Attributes:
        encoder: images -> Features.
        head: pooled features -> class logits.
        distillation_head: the distillation token -> class logits (DeiT), averaged with those of `head`.
        token_head: patch tokens -> logits (BEiT's visual vocabulary).
        decoder: MAE's, kept tokens -> pixels.
        predictor: I-JEPA's, context tokens -> tokens elsewhere.
        projector: on the pooled features (DINO's and iBOT's head).
    """

    encoder: nn.Module
    head: nn.Module | None = None
    distillation_head: nn.Module | None = None
    token_head: nn.Module | None = None
    decoder: nn.Module | None = None
    predictor: nn.Module | None = None
    projector: nn.Module | None = None

    def __call__(self, image: Float[Array, "b h w c"], **kwargs: object) -> Features:
        """Features of the images; keywords are the encoder's."""
        return self.encoder(image, **kwargs)

    def encode_image(self, image: Float[Array, "b h w c"], **kwargs: object) -> Features:
        """The same, by the name that it has in a two-tower model."""
        return self.encoder(image, **kwargs)

    def logits(self, image: Float[Array, "b h w c"]) -> Float[Array, "b *n m"]:
        """Class logits, or for every patch those of its token.

        Raises:
            UserError: the file came without a classifier.
        """
        features = self.encoder(image)
        if self.token_head is not None:
            return self.token_head(features.patch_tokens, train=False)
        if self.head is None:
            raise UserError("These weights came without a classifier: there are no logits.")
        logits = self.head(features.pooled, train=False)
        if self.distillation_head is None:
            return logits
        return (logits + self.distillation_head(features.tokens[:, 1], train=False)) / 2

    def everything(self, image: Float[Array, "b h w c"]) -> None:
        """Runs every network once, so that its parameters exist; half of the patches are hidden from MAE's."""
        features = self.encoder(image)
        for head in (self.head, self.projector):
            if head is not None:
                head(features.pooled, train=False)
        if self.distillation_head is not None:
            self.distillation_head(features.tokens[:, 1], train=False)
        if self.token_head is not None:
            self.token_head(features.patch_tokens, train=False)
        grid, num_patches = features.grid, features.grid[0] * features.grid[1]
        if self.decoder is not None:
            keys = jax.random.split(jax.random.key(0), image.shape[0])
            keep, _ = mask_by_noise(masking_noise(keys, num_patches), 0.5)
            kept = self.encoder(image, keep=keep).tokens
            self.decoder(kept, keep, grid, self.encoder.patch_size**2 * image.shape[3])
        if self.predictor is not None:
            everywhere = jnp.broadcast_to(jnp.arange(num_patches)[None, None], (1, image.shape[0], num_patches))
            self.predictor(features.patch_tokens, everywhere, everywhere, grid)
