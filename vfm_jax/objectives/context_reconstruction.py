"""Context encoders without their adversary (Pathak et al., Context Encoders, 2016, arXiv:1604.07379)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vfm_jax.core.errors import UserError
from vfm_jax.core.keys import example_keys, stream
from vfm_jax.losses.reconstruction import region_mse
from vfm_jax.nn.masking import random_rectangles
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

LOSS_ON = ("hidden", "image")


class Completed(NamedTuple):
    """Predicted and true images (b h w c), which pixels were hidden (b h w), and the pooled features (b d)."""

    prediction: jax.Array
    target: jax.Array
    hidden: jax.Array
    pooled: jax.Array


def context_reconstruction(
    encoder: Any,
    decoder: Any,
    *,
    hidden_area: Sequence[float] | None = (0.25, 0.25),
    loss_on: str = "hidden",
) -> Objective:
    """Paint in a rectangle of the image from what is around it; or, with nothing hidden, the plainest autoencoder.

    The hidden pixels are zero, the mean colour of normalised images. Any encoder that gives a map will do: it sees a
    whole image. The authors hide the centre, or blocks at random, or random regions (Sec. 3.3), and add the loss of
    an adversary, which is left out here.

    Reference: Pathak et al., 2016 (arXiv:1604.07379), Sec. 3 and Eq. 1.

    Args:
        encoder: images -> Features, whose last map is decoded; may hold batch norm.
        decoder: its patch tokens -> images.
        hidden_area: least and greatest share of the image that the rectangle covers, in (0, 1); None hides nothing.
        loss_on: the squared error is taken over the "hidden" pixels or the whole "image"; without hidden pixels it
            is the whole image.
    """
    if loss_on not in LOSS_ON:
        raise UserError(f"context_reconstruction has loss_on {' or '.join(LOSS_ON)}; found {loss_on!r}.")
    if hidden_area is not None and not 0 < hidden_area[0] <= hidden_area[1] < 1:
        raise UserError(
            f"context_reconstruction hides a share of each image between the two of hidden_area, in (0, 1); found "
            f"{tuple(hidden_area)}. None hides nothing."
        )

    def draw_hidden(batch, key):
        keys = example_keys(stream(key, "mask"), batch["epoch"], batch["index"])
        size = batch["image"].shape[1:3]
        if hidden_area is None:
            return jnp.zeros((keys.shape[0], *size), bool)
        return random_rectangles(keys, size, (hidden_area[0], hidden_area[1]))

    def seen_of(images, hidden):
        grid_of(images.shape[1:3], encoder.patch_size)  # the decoder makes whole cells
        return jnp.where(hidden[..., None], 0.0, images)

    def reconstruct(params, extra, images, hidden, keys=None, train=False):
        seen, statistics = apply_network(
            encoder, params["encoder"], extra["encoder"], seen_of(images, hidden), keys=keys, train=train
        )
        prediction = decoder.apply(
            {"params": params["decoder"]}, seen.patch_tokens, seen.grid, encoder.patch_size, images.shape[-1]
        )
        return Completed(prediction, images, hidden, seen.pooled), statistics

    def init(key, batch) -> Variables:
        images = batch["image"]
        whole = seen_of(images, draw_hidden(batch, key))
        seen, params, statistics = init_network(encoder, stream(key, "encoder"), whole)
        prediction, other, _ = init_network(
            decoder, stream(key, "decoder"), seen.patch_tokens, seen.grid, encoder.patch_size, images.shape[-1]
        )
        if prediction.shape != images.shape:
            raise UserError(
                f"The last map of {type(encoder).__name__} has {seen.grid[0]} x {seen.grid[1]} cells of "
                f"{encoder.patch_size} pixels, and images are {images.shape[1]} x {images.shape[2]}. Choose an "
                "encoder whose cells fill the image."
            )
        return Variables({"encoder": params, "decoder": other}, {"encoder": statistics})

    def forward(params, extra, batch, key, step):
        del step  # nothing here changes over training
        keys = example_keys(stream(key, "drop_path"), batch["epoch"], batch["index"])
        outputs, statistics = reconstruct(params, extra, batch["image"], draw_hidden(batch, key), keys, train=True)
        return outputs, {**extra, "encoder": statistics}

    def criterion(params, extra, outputs, step):
        del params, step
        whole = hidden_area is None or loss_on == "image"
        region = jnp.ones_like(outputs.hidden) if whole else outputs.hidden
        loss = jnp.mean(region_mse(outputs.prediction, outputs.target, region))
        return loss, (extra, {"loss": loss})

    def reconstruction(variables: Variables, batch) -> dict[str, jax.Array]:
        """Original and reconstructed images (b h w c), as normalised, and which pixels were hidden (1.0).

        Where nothing is hidden, the reconstruction is of the whole image.
        """
        images = batch["image"]
        made, _ = reconstruct(*variables, images, draw_hidden(batch, jax.random.key(0)))
        shown = pictures(images, made.prediction, jnp.broadcast_to(made.hidden[..., None], images.shape))
        return shown if hidden_area is not None else shown | {"reconstructed": made.prediction}

    return Objective(
        init,
        forward,
        criterion,
        carry_nothing,
        encoder_predictions(encoder) | {"reconstruction": reconstruction},
        separable=True,
        embedding=lambda outputs: outputs.pooled[:, None],
    )
