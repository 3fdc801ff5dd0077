"""SimCLR (Chen et al., A Simple Framework for Contrastive Learning, 2020, arXiv:2002.05709)."""

from typing import Any

import jax.numpy as jnp

from vfm_jax.losses.contrastive import contrastive_accuracy, nt_xent
from vfm_jax.objectives.interface import Objective, carry_nothing, encoder_predictions, project_views
from vfm_jax.objectives.joint_embedding import init_embedding, pooled_views


def simclr(encoder: Any, projector: Any, *, temperature: float = 0.1) -> Objective:
    """Contrastive learning: the two views of an image attract, those of all other images in the batch repel.

    Reference: Chen et al., 2020 (arXiv:2002.05709), Algorithm 1.

    Args:
        encoder: images -> Features.
        projector: pooled features -> embeddings that are compared; may hold batch norm.
        temperature: τ of the softmax over similarities.
    """

    def init(key, batch):
        return init_embedding(key, encoder, projector, batch, "simclr")

    def forward(params, extra, batch, key, step):
        del step  # nothing here changes over training
        return pooled_views(encoder, params, extra, batch, key, "simclr")

    def criterion(params, extra, outputs, step):
        del step
        # Both views in one batch: batch norm sees 2b examples, as the authors' code does.
        embeddings, statistics = project_views(projector, params["projector"], extra["projector"], outputs)
        first, second = embeddings[:, 0], embeddings[:, 1]
        loss = jnp.mean(nt_xent(first, second, temperature))
        accuracy = jnp.mean(contrastive_accuracy(first, second))
        return loss, ({**extra, "projector": statistics}, {"loss": loss, "contrastive_accuracy": accuracy})

    predict = encoder_predictions(encoder)
    return Objective(
        init, forward, criterion, carry_nothing, predict, separable=False, embedding=lambda outputs: outputs
    )
