"""SimCLR (Chen et al., A Simple Framework for Contrastive Learning, 2020, arXiv:2002.05709)."""

from typing import Any

import jax.numpy as jnp
from einops import rearrange

from vfm_jax.core.keys import stream
from vfm_jax.losses.contrastive import contrastive_accuracy, nt_xent
from vfm_jax.objectives.interface import (
    Objective,
    Variables,
    apply_network,
    carry_nothing,
    encode_views,
    encoder_predictions,
    init_network,
    view_keys,
    views_of,
)


def simclr(encoder: Any, projector: Any, *, temperature: float = 0.1) -> Objective:
    """Contrastive learning: the two views of an image attract, those of all other images in the batch repel.

    Reference: Chen et al., 2020 (arXiv:2002.05709), Algorithm 1.

    Args:
        encoder: images -> Features.
        projector: pooled features -> embeddings that are compared; may hold batch norm.
        temperature: τ of the softmax over similarities.
    """

    def init(key, batch) -> Variables:
        images = rearrange(views_of(batch, "image", 2, "simclr"), "b v h w c -> (b v) h w c")
        seen, encoder_params, encoder_state = init_network(encoder, stream(key, "encoder"), images)
        _, projector_params, projector_state = init_network(
            projector, stream(key, "projector"), seen.pooled, train=True
        )
        params = {"encoder": encoder_params, "projector": projector_params}
        return Variables(params, {"encoder": encoder_state, "projector": projector_state})

    def forward(params, extra, batch, key, step):
        del step  # nothing here changes over training
        views = views_of(batch, "image", 2, "simclr")
        b = views.shape[0]
        seen, statistics = encode_views(
            encoder, params["encoder"], extra["encoder"], views, view_keys(batch, stream(key, "drop_path"), 2)
        )
        return rearrange(seen.pooled, "(b v) d -> b v d", b=b), {**extra, "encoder": statistics}

    def criterion(params, extra, outputs, step):
        del step
        b = outputs.shape[0]
        # Both views in one batch: batch norm sees 2b examples, as the authors' code does.
        embeddings, statistics = apply_network(
            projector,
            params["projector"],
            extra["projector"],
            rearrange(outputs, "b v d -> (v b) d"),
            train=True,
        )
        first, second = embeddings[:b], embeddings[b:]
        loss = jnp.mean(nt_xent(first, second, temperature))
        accuracy = jnp.mean(contrastive_accuracy(first, second))
        return loss, ({**extra, "projector": statistics}, {"loss": loss, "contrastive_accuracy": accuracy})

    predict = encoder_predictions(encoder)
    return Objective(
        init, forward, criterion, carry_nothing, predict, separable=False, embedding=lambda outputs: outputs
    )
