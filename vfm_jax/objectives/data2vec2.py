"""data2vec 2.0 (Baevski et al., 2022, arXiv:2212.07525): contextualised targets, several masks of each image."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from vfm_jax.core.errors import UserError
from vfm_jax.core.keys import stream
from vfm_jax.losses.reconstruction import contextual_targets, scaled_l2
from vfm_jax.nn.masking import inverse_block_noise, mask_by_noise, scatter_tokens
from vfm_jax.nn.patches import grid_of
from vfm_jax.objectives.interface import Objective, Variables, encoder_predictions, view_keys
from vfm_jax.objectives.teacher import move_teacher, start_teacher
from vfm_jax.optim import Schedule, as_schedule


class Regression(NamedTuple):
    """What is compared, of every mask v of an image.

    Attributes:
        prediction: features of all patches (b v n d).
        summary: the class token (b v d).
        target: the teacher's features of all patches (b n d).
        masked: where patches were hidden (b v n).
        pooled: of what was visible (b v d2).
    """

    prediction: jax.Array
    summary: jax.Array
    target: jax.Array
    masked: jax.Array
    pooled: jax.Array


def data2vec2(
    encoder: Any,
    decoder: Any,
    *,
    num_masks: int = 16,
    mask_ratio: float = 0.8,
    block_size: int = 3,
    block_adjust: float = 0.07,
    mask_noise: float = 0.01,
    average_top_k: int = 10,
    class_weight: float = 0.01,
    class_images: int = 16,
    momentum: float | Schedule = 0.9998,
) -> Objective:
    """Predict, from the visible patches, what a teacher that sees the whole image makes of the hidden ones.

    Follows the authors' code for images (fairseq, examples/data2vec) where the paper leaves things open or differs:
    targets are the outputs of the teacher's MLPs before they are added, and are layer-normalised once more; the
    squared error has the factor 1/√D; the class token's error is summed, not averaged, over the masks and images of
    one device; and the student is what is fine-tuned, so the teacher is a means alone ("target"). Defaults are those
    of their ViT-B.

    Reference: Baevski et al., 2022 (arXiv:2212.07525), Fig. 1 and Sec. 3.

    Args:
        encoder: images and the kept patches' indices -> Features of the kept patches; a ViT with a class token.
        decoder: a map of visible tokens and noise, and the grid -> features of all patches.
        num_masks: masks of each image, which share one pass of the teacher.
        mask_ratio: share of patches hidden, in (0, 1).
        block_size: side of the squares of patches that stay visible.
        block_adjust: see `nn.masking.inverse_block_noise`.
        mask_noise: standard deviation of what stands for hidden patches in the decoder's input.
        average_top_k: how many of the teacher's last blocks the targets average.
        class_weight: weight of the class token's loss; 0 for none.
        class_images: images of one device in the authors' runs, whose errors that loss adds up.
        momentum: of the teacher.
    """
    if not getattr(encoder, "class_token", False):
        raise UserError(
            "data2vec2 needs a ViT with a class token, which can leave patches out: set "
            'config.networks.encoder = dict(name="vit", class_token=True, ...).'
        )
    watched = encoder.clone(levels=tuple(range(-average_top_k, 0)), levels_of="mlp")
    momentum_at = as_schedule(momentum)
    roles = ("encoder",)

    def draw_masks(batch, key):
        """The kept patches of each mask (b v k), and where patches are hidden (b v n)."""
        grid = grid_of(batch["image"].shape[1:3], encoder.patch_size)
        noise = inverse_block_noise(
            view_keys(batch, stream(key, "mask"), num_masks), grid, mask_ratio, block_size, block_adjust
        )
        return tuple(rearrange(a, "(b v) k -> b v k", v=num_masks) for a in mask_by_noise(noise, mask_ratio))

    def init(key, batch) -> Variables:
        images, (keep, masked) = batch["image"], draw_masks(batch, key)
        seen, own = encoder.init_with_output(stream(key, "encoder"), images, keep=keep[:, 0])
        tokens = jnp.zeros((*masked[:, 0].shape, seen.tokens.shape[2]), jnp.float32)
        other = decoder.init(stream(key, "decoder"), tokens, seen.grid)
        params = {"encoder": own["params"], "decoder": other["params"]}
        return Variables(params, {"target": start_teacher(params, roles)})

    def forward(params, extra, batch, key, step):
        del step
        images, (keep, masked) = batch["image"], draw_masks(batch, key)
        b = images.shape[0]

        # One set of images, several choices of patches: the images themselves are not repeated.
        keys = view_keys(batch, stream(key, "drop_path"), num_masks).reshape(b, num_masks)
        encode = jax.vmap(
            lambda keep, keys: encoder.apply({"params": params["encoder"]}, images, keep=keep, keys=keys, train=True),
            in_axes=1,
            out_axes=1,
        )
        seen = encode(keep, keys)  # leaves: b v ...
        visible = rearrange(seen.tokens[:, :, encoder.num_prefix_tokens :], "b v k d -> (b v) k d")

        hidden, kept = (rearrange(a, "b v n -> (b v) n") for a in (masked, keep))
        noise = mask_noise * jax.vmap(lambda key: jax.random.normal(key, (hidden.shape[1], visible.shape[2])))(
            view_keys(batch, stream(key, "mask_noise"), num_masks)
        )
        placed = scatter_tokens(visible, kept, jnp.zeros(visible.shape[2]), hidden.shape[1])
        filled = jnp.where(hidden[:, :, None], noise, placed)
        prediction = decoder.apply({"params": params["decoder"]}, filled, seen.grid)

        taught = watched.apply({"params": extra["target"]["encoder"]}, images)
        target = contextual_targets([level[:, encoder.num_prefix_tokens :] for level in taught.levels])
        prediction = rearrange(prediction, "(b v) n d -> b v n d", b=b)
        return Regression(prediction, seen.tokens[:, :, 0], jax.lax.stop_gradient(target), masked, seen.pooled), extra

    def criterion(params, extra, outputs, step):
        del params
        weight = outputs.masked.astype(jnp.float32)
        error = scaled_l2(outputs.prediction, outputs.target[:, None])  # b v n
        patches = jnp.sum(error * weight) / jnp.sum(weight)
        measured = {
            "momentum": momentum_at(step),
            "target_deviation": _deviation(outputs.target),
            "prediction_deviation": _deviation(outputs.prediction),
        }
        if not class_weight:
            return patches, (extra, {"loss": patches} | measured)
        summary = jnp.mean(scaled_l2(outputs.summary, jnp.mean(outputs.target, axis=1)[:, None]))
        summary = class_weight * class_images * num_masks * summary
        loss = patches + summary
        return loss, (extra, {"loss": loss, "loss/patches": patches, "loss/class": summary} | measured)

    def after_update(params, extra, step):
        return {**extra, "target": move_teacher(extra["target"], params, momentum_at(step))}

    return Objective(
        init,
        forward,
        criterion,
        after_update,
        encoder_predictions(encoder),
        separable=True,
        embedding=lambda outputs: outputs.pooled,
        after_load=lambda params, extra: {**extra, "target": start_teacher(params, roles)},
    )


def _deviation(features: jax.Array) -> jax.Array:
    """Standard deviation over all patches, averaged over channels: 0 where all patches have the same features."""
    flat = features.reshape(-1, features.shape[-1])
    return jnp.mean(jnp.sqrt(jnp.var(flat, axis=0) + 1e-6))
