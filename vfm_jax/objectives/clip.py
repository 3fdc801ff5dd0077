"""CLIP (Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021)."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from vfm_jax.losses.image_text import clip_loss, pair_accuracy
from vfm_jax.objectives.interface import Objective, Variables, carry_nothing
from vfm_jax.objectives.pairs import encode_pairs, init_towers, pair_predictions


def clip(
    encoder: Any,
    text_encoder: Any,
    *,
    initial_scale: float = 1 / 0.07,
    max_scale: float = 100.0,
    freeze_encoder: bool = False,
) -> Objective:
    """Contrast of images and texts: which of the batch's texts is this image's, and which image this text's?

    The logarithm of the factor before the cosines is learned, and kept in [0, log max_scale] after each update, as
    in open_clip (the paper: "clipped to prevent scaling the logits by more than 100").

    Reference: Radford et al., 2021 (arXiv:2103.00020), Fig. 3 and Sec. 2.5. With `freeze_encoder` it is LiT:
    Zhai et al., 2021 (arXiv:2111.07991).

    Args:
        encoder: images -> Features, pooled in the space shared with texts (`projection`).
        text_encoder: token ids -> Features, the same.
        initial_scale: the factor at the start, the inverse of a temperature.
        max_scale: the largest it may become.
        freeze_encoder: the image tower is locked. Exclude it from the optimizer too, by a group with lr_scale=0.
    """

    def init(key, batch) -> Variables:
        params, extra = init_towers(encoder, text_encoder, key, batch, "clip")
        return Variables({**params, "logit_scale": jnp.float32(np.log(initial_scale))}, extra)

    def forward(params, extra, batch, key, step):
        del step  # nothing here changes over training
        return encode_pairs(encoder, text_encoder, params, extra, batch, key, freeze_encoder=freeze_encoder)

    def criterion(params, extra, outputs, step):
        del step
        loss = jnp.mean(clip_loss(outputs.image, outputs.text, params["logit_scale"]))
        measured = {
            "loss": loss,
            "contrastive_accuracy": jnp.mean(pair_accuracy(outputs.image, outputs.text)),
            "temperature": jnp.exp(-params["logit_scale"]),
        }
        return loss, (extra, measured)

    def constrain(params):
        return {**params, "logit_scale": jnp.clip(params["logit_scale"], 0.0, np.log(max_scale))}

    return Objective(
        init,
        forward,
        criterion,
        carry_nothing,
        pair_predictions(encoder, text_encoder),
        separable=False,
        embedding=lambda outputs: outputs.views,
        constrain=constrain,
    )
