"""SigLIP (Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023)."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from vfm_jax.core.errors import UserError
from vfm_jax.losses.image_text import pair_accuracy, sigmoid_loss, sigmoid_loss_in_blocks
from vfm_jax.objectives.interface import Objective, Variables, carry_nothing
from vfm_jax.objectives.pairs import encode_pairs, init_towers, pair_predictions


def siglip(
    encoder: Any,
    text_encoder: Any,
    *,
    initial_scale: float = 10.0,
    initial_bias: float = -10.0,
    num_blocks: int = 1,
    freeze_encoder: bool = False,
) -> Objective:
    """For each image and each text of the batch: do they belong together?

    Reference: Zhai et al., 2023 (arXiv:2303.15343), Alg. 1. With `freeze_encoder` it is SigLiT (Sec. 4.1).

    Args:
        encoder: images -> Features, pooled in the space shared with texts.
        text_encoder: token ids -> Features, the same.
        initial_scale: the learned factor before the cosines at the start; nothing bounds it.
        initial_bias: the learned offset of the logits at the start.
        num_blocks: 1 compares the whole batch at once. A multiple of the number of devices compares it block by
            block, in a ring (Sec. 3.3): the same loss, in memory that does not grow with the number of devices.
        freeze_encoder: the image tower is locked. Exclude it from the optimizer too, by a group with lr_scale=0.
    """

    def init(key, batch) -> Variables:
        params, extra = init_towers(encoder, text_encoder, key, batch, "siglip")
        own = {"logit_scale": jnp.float32(np.log(initial_scale)), "logit_bias": jnp.float32(initial_bias)}
        return Variables({**params, **own}, extra)

    def forward(params, extra, batch, key, step):
        del step  # nothing here changes over training
        return encode_pairs(encoder, text_encoder, params, extra, batch, key, freeze_encoder=freeze_encoder)

    def criterion(params, extra, outputs, step):
        del step
        image, text = outputs
        b, scale, bias = image.shape[0], params["logit_scale"], params["logit_bias"]
        if b % num_blocks:
            raise UserError(f"config.objective.num_blocks is {num_blocks}, which does not divide a batch of {b}.")
        if num_blocks == 1:
            loss = jnp.mean(sigmoid_loss(image, text, scale, bias))
            accuracy = {"contrastive_accuracy": jnp.mean(pair_accuracy(image, text))}
        else:
            loss = sigmoid_loss_in_blocks(image, text, scale, bias, num_blocks)
            accuracy = {}  # it needs all the similarities at once
        return loss, (extra, {"loss": loss, "temperature": jnp.exp(-scale), "logit_bias": bias} | accuracy)

    return Objective(
        init,
        forward,
        criterion,
        carry_nothing,
        pair_predictions(encoder, text_encoder),
        separable=False,
        embedding=lambda outputs: outputs.views,
    )
