"""FCMAE: a fully convolutional masked autoencoder (Woo et al., ConvNeXt V2, 2023, arXiv:2301.00808)."""

from typing import Any

import jax
import jax.numpy as jnp

from vfm_jax.core.errors import UserError
from vfm_jax.core.keys import example_keys, stream
from vfm_jax.losses.reconstruction import masked_patch_mse, restore_patches, standardize_patches
from vfm_jax.nn.masking import mask_by_noise, masking_noise
from vfm_jax.nn.patches import grid_of, patchify, unpatchify
from vfm_jax.objectives.interface import Objective, Variables, carry_nothing, encoder_predictions, pictures
from vfm_jax.objectives.mae import Reconstruction


def fcmae(encoder: Any, decoder: Any, *, mask_ratio: float = 0.6, normalize_target: bool = True) -> Objective:
    """A masked autoencoder of convolutions: a sparse encoder of the visible cells, a small decoder of all.

    Reference: Woo et al., 2023 (arXiv:2301.00808), Fig. 2 and Sec. 3.1.

    Args:
        encoder: images and which cells of its last map are masked -> Features, zeros for the masked (ConvNeXt).
        decoder: tokens of all cells, the masked ones, the grid, pixels per cell -> pixels of every cell.
        mask_ratio: share of cells hidden from the encoder, in (0, 1).
        normalize_target: predict pixels standardised within each cell.
    """
    if getattr(encoder, "masked_size", None) != encoder.patch_size:
        raise UserError(
            "fcmae needs an encoder that leaves out cells of its last map: a ConvNeXt. Other encoders have mae (ViT) "
            f"and simmim (ViT, Swin); found {type(encoder).__name__}."
        )
    side = encoder.patch_size

    def draw_masks(batch, key):
        rows, columns = grid_of(batch["image"].shape[1:3], side)
        keys = example_keys(stream(key, "mask"), batch["epoch"], batch["index"])
        return mask_by_noise(masking_noise(keys, rows * columns), mask_ratio)[1]  # b n

    def reconstruct(params, images, masked, keys=None, train=False) -> Reconstruction:
        target = patchify(images, side)  # b n p
        seen = encoder.apply({"params": params["encoder"]}, images, masked=masked, keys=keys, train=train)
        prediction = decoder.apply(
            {"params": params["decoder"]}, seen.patch_tokens, masked, seen.grid, target.shape[2]
        )
        return Reconstruction(prediction, target, masked, seen.pooled)

    def init(key, batch) -> Variables:
        images, masked = batch["image"], draw_masks(batch, key)
        seen, own = encoder.init_with_output(stream(key, "encoder"), images, masked=masked)
        num_pixels = patchify(images, side).shape[2]
        other = decoder.init(stream(key, "decoder"), seen.patch_tokens, masked, seen.grid, num_pixels)
        return Variables({"encoder": own["params"], "decoder": other["params"]}, {})

    def forward(params, extra, batch, key, step):
        del step  # nothing here changes over training
        keys = example_keys(stream(key, "drop_path"), batch["epoch"], batch["index"])
        return reconstruct(params, batch["image"], draw_masks(batch, key), keys, train=True), extra

    def criterion(params, extra, outputs, step):
        del params, step
        target = standardize_patches(outputs.target) if normalize_target else outputs.target
        loss = jnp.mean(masked_patch_mse(outputs.prediction, target, outputs.masked))
        return loss, (extra, {"loss": loss})

    def reconstruction(variables: Variables, batch) -> dict[str, jax.Array]:
        """Original and reconstructed images (b h w c), as normalised, and which pixels were hidden (1.0)."""
        images = batch["image"]
        made = reconstruct(variables.params, images, draw_masks(batch, jax.random.key(0)))
        patches = restore_patches(made.prediction, made.target) if normalize_target else made.prediction
        hidden = jnp.broadcast_to(made.masked[:, :, None], made.target.shape)
        grid = grid_of(images.shape[1:3], side)
        return pictures(images, unpatchify(patches, grid, side), unpatchify(hidden, grid, side))

    return Objective(
        init,
        forward,
        criterion,
        carry_nothing,
        encoder_predictions(encoder) | {"reconstruction": reconstruction},
        separable=True,
        embedding=lambda outputs: outputs.pooled[:, None],
    )
