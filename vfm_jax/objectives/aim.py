"""AIM (El-Nouby et al., Scalable Pre-training of Large Autoregressive Image Models, 2024, arXiv:2401.08541)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vfm_jax.core.errors import UserError
from vfm_jax.core.keys import example_keys, stream
from vfm_jax.losses.reconstruction import masked_patch_mse, standardize_patches
from vfm_jax.nn.attention import prefix_causal_mask
from vfm_jax.nn.patches import grid_of, patchify, unpatchify
from vfm_jax.objectives.interface import Objective, Variables, carry_nothing, encoder_predictions


class Continued(NamedTuple):
    """Predicted and true patches from the second on (b n-1 p); those behind the prefix are scored (b n-1).

    The features of all patches are pooled (b d).
    """

    prediction: jax.Array
    target: jax.Array
    scored: jax.Array
    pooled: jax.Array


def aim(encoder: Any, head: Any, *, normalize_target: bool = True) -> Objective:
    """Predicts the pixels of each patch from the patches before it, in raster order.

    A number of first patches, drawn for each image, is a prefix: these all see each other and are not scored, as the
    encoder will see whole images once it is trained.

    Reference: El-Nouby et al., 2024 (arXiv:2401.08541), Sec. 3, Eq. 2 and 3. Their code has no training loss.

    Args:
        encoder: images and a mask of attention -> Features without prefix tokens.
        head: tokens of the patches, the grid, pixels per patch -> pixels of the patch after each.
        normalize_target: predict pixels standardised within each patch.
    """
    if encoder.num_prefix_tokens:
        raise UserError("aim reads patches in raster order alone: set config.networks.encoder.class_token=False.")

    def forecast(params, images, prefix, keys=None, train=False) -> Continued:
        patches = patchify(images, encoder.patch_size)  # b n p
        num_patches = patches.shape[1]
        mask = prefix_causal_mask(prefix, num_patches)
        seen = encoder.apply({"params": params["encoder"]}, images, mask=mask, keys=keys, train=train)
        prediction = head.apply({"params": params["head"]}, seen.tokens[:, :-1], seen.grid, patches.shape[2])
        scored = jnp.arange(1, num_patches)[None] >= prefix[:, None]
        return Continued(prediction, patches[:, 1:], scored, seen.pooled)

    def init(key, batch) -> Variables:
        seen, own = encoder.init_with_output(stream(key, "encoder"), batch["image"])
        num_pixels = patchify(batch["image"], encoder.patch_size).shape[2]
        other = head.init(stream(key, "head"), seen.tokens, seen.grid, num_pixels)
        return Variables({"encoder": own["params"], "head": other["params"]}, {})

    def forward(params, extra, batch, key, step):
        del step  # nothing here changes over training
        rows, columns = grid_of(batch["image"].shape[1:3], encoder.patch_size)
        keys, prefix_keys = (
            example_keys(stream(key, name), batch["epoch"], batch["index"]) for name in ("drop_path", "prefix")
        )
        prefix = jax.vmap(lambda key: jax.random.randint(key, (), 1, rows * columns))(prefix_keys)
        return forecast(params, batch["image"], prefix, keys, train=True), extra

    def criterion(params, extra, outputs, step):
        del params, step
        target = standardize_patches(outputs.target) if normalize_target else outputs.target
        loss = jnp.mean(masked_patch_mse(outputs.prediction, target, outputs.scored))
        return loss, (extra, {"loss": loss})

    def reconstruction(variables: Variables, batch) -> dict[str, jax.Array]:
        """Images and what follows their first half, each patch predicted from the true ones before it (b h w c)."""
        images = batch["image"]
        patches = patchify(images, encoder.patch_size)
        prefix = jnp.full(images.shape[0], patches.shape[1] // 2)
        made = forecast(variables.params, images, prefix)
        predicted = made.prediction
        if normalize_target:  # each patch gets the mean and deviation of the true one
            mean = jnp.mean(made.target, axis=-1, keepdims=True)
            deviation = jnp.sqrt(jnp.var(made.target, axis=-1, keepdims=True, ddof=1) + 1e-6)
            predicted = predicted * deviation + mean
        hidden = jnp.broadcast_to(jnp.pad(made.scored, ((0, 0), (1, 0)))[:, :, None], patches.shape)
        predicted = jnp.pad(predicted, ((0, 0), (1, 0), (0, 0)))
        grid = grid_of(images.shape[1:3], encoder.patch_size)
        return {
            "original": images,
            "reconstructed": unpatchify(jnp.where(hidden, predicted, patches), grid, encoder.patch_size),
            "hidden": unpatchify(hidden.astype(jnp.float32), grid, encoder.patch_size),
        }

    return Objective(
        init,
        forward,
        criterion,
        carry_nothing,
        encoder_predictions(encoder) | {"reconstruction": reconstruction},
        separable=True,
        embedding=lambda outputs: outputs.pooled[:, None],
    )
