"""SimMIM (Xie et al., SimMIM: A Simple Framework for Masked Image Modeling, 2021, arXiv:2111.09886)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vfm_jax.core.errors import UserError
from vfm_jax.core.keys import example_keys, stream
from vfm_jax.losses.reconstruction import masked_pixel_l1
from vfm_jax.nn.masking import hide_share, masking_noise, repeat_cells
from vfm_jax.nn.patches import grid_of
from vfm_jax.objectives.interface import (
    Objective,
    Variables,
    apply_network,
    carry_nothing,
    encoder_predictions,
    init_network,
    pictures,
)


class Reconstruction(NamedTuple):
    """Predicted and true images (b h w c), which pixels were masked (b h w), and the pooled features (b d)."""

    prediction: jax.Array
    target: jax.Array
    masked: jax.Array
    pooled: jax.Array


def simmim(encoder: Any, decoder: Any, *, mask_patch_size: int = 32, mask_ratio: float = 0.6) -> Objective:
    """Masked image modelling: mask tokens stand for large patches, a linear layer predicts their raw pixels.

    Reference: Xie et al., 2021 (arXiv:2111.09886), Fig. 1 and Sec. 3.

    Args:
        encoder: images and which patches are masked -> Features of all; it has a mask token.
        decoder: its patch tokens -> images.
        mask_patch_size: pixels along one side of what is masked as one; a multiple of the encoder's `masked_size`.
        mask_ratio: share of them that is masked, rounded up, in (0, 1).
    """
    unit = getattr(encoder, "masked_size", None)
    if unit is None or mask_patch_size % unit:
        raise UserError(
            f"simmim masks squares of {mask_patch_size} pixels: it needs an encoder with a mask token for patches of "
            f"a divisor of that, ViT or Swin; found {type(encoder).__name__} with {unit}. Set mask_patch_size."
        )

    def draw_masks(batch, key):
        """Masked squares (b n), and their grid."""
        grid = grid_of(batch["image"].shape[1:3], mask_patch_size)
        keys = example_keys(stream(key, "mask"), batch["epoch"], batch["index"])
        return hide_share(masking_noise(keys, grid[0] * grid[1]), mask_ratio), grid

    def pixels_of(cells, grid):
        b, (rows, columns) = cells.shape[0], grid
        pixels = repeat_cells(cells, grid, mask_patch_size)
        return pixels.reshape(b, rows * mask_patch_size, columns * mask_patch_size)

    def reconstruct(params, extra, batch, masks, keys=None, train=False):
        cells, grid = masks
        images, patches = batch["image"], repeat_cells(cells, grid, mask_patch_size // unit)
        seen, statistics = apply_network(
            encoder, params["encoder"], extra["encoder"], images, masked=patches, keys=keys, train=train
        )
        prediction = decoder.apply(
            {"params": params["decoder"]}, seen.patch_tokens, seen.grid, encoder.patch_size, images.shape[-1]
        )
        return Reconstruction(prediction, images, pixels_of(cells, grid), seen.pooled), statistics

    def init(key, batch) -> Variables:
        images, (cells, grid) = batch["image"], draw_masks(batch, key)
        patches = repeat_cells(cells, grid, mask_patch_size // unit)
        seen, params, statistics = init_network(encoder, stream(key, "encoder"), images, masked=patches)
        what = (seen.patch_tokens, seen.grid, encoder.patch_size, images.shape[-1])
        _, other, _ = init_network(decoder, stream(key, "decoder"), *what)
        return Variables({"encoder": params, "decoder": other}, {"encoder": statistics})

    def forward(params, extra, batch, key, step):
        del step  # nothing here changes over training
        keys = example_keys(stream(key, "drop_path"), batch["epoch"], batch["index"])
        outputs, statistics = reconstruct(params, extra, batch, draw_masks(batch, key), keys, train=True)
        return outputs, {**extra, "encoder": statistics}

    def criterion(params, extra, outputs, step):
        del params, step
        loss = jnp.mean(masked_pixel_l1(outputs.prediction, outputs.target, outputs.masked))
        return loss, (extra, {"loss": loss})

    def reconstruction(variables: Variables, batch) -> dict[str, jax.Array]:
        """Original and reconstructed images (b h w c), as normalised, and which pixels were hidden (1.0)."""
        made, _ = reconstruct(*variables, batch, draw_masks(batch, jax.random.key(0)))
        hidden = jnp.broadcast_to(made.masked[..., None], made.target.shape)
        return pictures(made.target, made.prediction, hidden)

    return Objective(
        init,
        forward,
        criterion,
        carry_nothing,
        encoder_predictions(encoder) | {"reconstruction": reconstruction},
        separable=True,
        embedding=lambda outputs: outputs.pooled[:, None],
    )
