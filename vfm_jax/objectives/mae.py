"""Masked autoencoding (He et al., Masked Autoencoders Are Scalable Vision Learners, 2021, arXiv:2111.06377)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vfm_jax.core.keys import example_keys, stream
from vfm_jax.losses.reconstruction import masked_patch_mse, restore_patches, standardize_patches
from vfm_jax.nn.masking import mask_by_noise, masking_noise
from vfm_jax.nn.patches import grid_of, patchify, unpatchify
from vfm_jax.objectives.interface import Objective, Variables, carry_nothing, encoder_predictions, pictures


class Reconstruction(NamedTuple):
    """Predicted and true patches (b n p), where patches were hidden (b n), and the visible ones pooled (b d)."""

    prediction: jax.Array
    target: jax.Array
    masked: jax.Array
    pooled: jax.Array


def mae(encoder: Any, decoder: Any, *, mask_ratio: float = 0.75, normalize_target: bool = True) -> Objective:
    """Masked autoencoding: encode the visible patches, reconstruct the pixels of the others.

    Reference: He et al., 2021 (arXiv:2111.06377), Fig. 1 and Sec. 3.

    Args:
        encoder: images and the kept patches' indices -> Features of the kept patches.
        decoder: tokens of the kept patches, their indices, the grid, pixels per patch -> pixels of every patch.
        mask_ratio: share of patches hidden from the encoder, in (0, 1).
        normalize_target: predict pixels standardised within each patch (Sec. 3.4).
    """

    def reconstruct(params, images, noise, keys=None, train=False) -> Reconstruction:
        target = patchify(images, encoder.patch_size)  # b n p
        keep, masked = mask_by_noise(noise, mask_ratio)  # b k, b n
        seen = encoder.apply({"params": params["encoder"]}, images, keep=keep, keys=keys, train=train)
        prediction = decoder.apply({"params": params["decoder"]}, seen.tokens, keep, seen.grid, target.shape[2])
        return Reconstruction(prediction, target, masked, seen.pooled)

    def patch_noise(batch, key):
        rows, columns = grid_of(batch["image"].shape[1:3], encoder.patch_size)
        return masking_noise(example_keys(stream(key, "mask"), batch["epoch"], batch["index"]), rows * columns)

    def init(key, batch) -> Variables:
        images, noise = batch["image"], patch_noise(batch, key)
        keep, _ = mask_by_noise(noise, mask_ratio)
        seen, own = encoder.init_with_output(stream(key, "encoder"), images, keep=keep)
        num_pixels = patchify(images, encoder.patch_size).shape[2]
        other = decoder.init(stream(key, "decoder"), seen.tokens, keep, seen.grid, num_pixels)
        return Variables({"encoder": own["params"], "decoder": other["params"]}, {})

    def forward(params, extra, batch, key, step):
        del step  # nothing here changes over training
        keys = example_keys(stream(key, "drop_path"), batch["epoch"], batch["index"])
        return reconstruct(params, batch["image"], patch_noise(batch, key), keys, train=True), extra

    def criterion(params, extra, outputs, step):
        del params, step
        target = standardize_patches(outputs.target) if normalize_target else outputs.target
        loss = jnp.mean(masked_patch_mse(outputs.prediction, target, outputs.masked))
        return loss, (extra, {"loss": loss})

    def reconstruction(variables: Variables, batch) -> dict[str, jax.Array]:
        """Original and reconstructed images (b h w c), as normalised, and which pixels were hidden (1.0)."""
        images = batch["image"]
        made = reconstruct(variables.params, images, patch_noise(batch, jax.random.key(0)))
        patches = restore_patches(made.prediction, made.target) if normalize_target else made.prediction
        grid = grid_of(images.shape[1:3], encoder.patch_size)
        hidden = jnp.broadcast_to(made.masked[:, :, None], made.target.shape)
        painted, hidden = (unpatchify(some, grid, encoder.patch_size) for some in (patches, hidden))
        return pictures(images, painted, hidden)

    predict = encoder_predictions(encoder) | {"reconstruction": reconstruction}
    return Objective(
        init,
        forward,
        criterion,
        carry_nothing,
        predict,
        separable=True,
        embedding=lambda outputs: outputs.pooled[:, None],
    )
