"""NEPA (Xu et al., Next-Embedding Prediction Makes Strong Vision Learners, 2025, arXiv:2512.16922)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vfm_jax.core.errors import UserError
from vfm_jax.core.keys import example_keys, stream
from vfm_jax.losses.prediction import negative_cosine
from vfm_jax.objectives.interface import Objective, Variables, carry_nothing, encoder_predictions


class NextEmbedding(NamedTuple):
    """Predicted and true input embeddings of patches (b n d), and the encoder's pooled representation (b d)."""

    prediction: jax.Array
    target: jax.Array
    pooled: jax.Array


def nepa(encoder: Any) -> Objective:
    """Predicts the input embedding of each patch from the patches before it, by the encoder's own output.

    The embedding layer learns through what the encoder makes of it, not as a target.

    Reference: Xu et al., 2025 (arXiv:2512.16922), Algorithm 1 and Sec. 3; the authors' code: a class token leads the
    sequence, and predicts the first patch.

    Args:
        encoder: images -> Features; causal, with a method `embed` that gives its first block's input.
    """
    if not getattr(encoder, "causal", False):
        raise UserError("nepa predicts each patch from those before it: set config.networks.encoder.causal=True.")
    first = max(encoder.num_prefix_tokens, 1)  # the first token that is predicted

    def init(key, batch) -> Variables:
        return Variables({"encoder": encoder.init(stream(key, "encoder"), batch["image"])["params"]}, {})

    def forward(params, extra, batch, key, step):
        del step  # nothing here changes over training
        variables, images = {"params": params["encoder"]}, batch["image"]
        keys = example_keys(stream(key, "drop_path"), batch["epoch"], batch["index"])
        embedded = encoder.apply(variables, images, method="embed")
        seen = encoder.apply(variables, images, keys=keys, train=True)
        target = jax.lax.stop_gradient(embedded[:, first:]).astype(jnp.float32)
        return NextEmbedding(seen.tokens[:, first - 1 : -1], target, seen.pooled), extra

    def criterion(params, extra, outputs, step):
        del params, step
        loss = jnp.mean(negative_cosine(outputs.prediction, outputs.target))
        return loss, (extra, {"loss": loss})

    return Objective(
        init,
        forward,
        criterion,
        carry_nothing,
        encoder_predictions(encoder),
        separable=True,
        embedding=lambda outputs: outputs.pooled[:, None],
    )
