"""Barlow Twins (Zbontar et al., Barlow Twins: Self-Supervised Learning via Redundancy Reduction, 2021)."""

from typing import Any

import jax.numpy as jnp

from vfm_jax.losses import redundancy
from vfm_jax.objectives.interface import Objective, Variables, carry_nothing, encoder_predictions, project_views
from vfm_jax.objectives.joint_embedding import init_embedding, pooled_views


def barlow_twins(encoder: Any, projector: Any, *, redundancy_weight: float = 0.0051, scale: float = 1.0) -> Objective:
    """Each dimension of one view correlates with the same dimension of the other, and with no other dimension.

    Reference: Zbontar et al., 2021 (arXiv:2103.03230), Algorithm 1. The two views go through the networks one after
    the other, each under its own batch statistics, as in the authors' code.

    Args:
        encoder: images -> Features.
        projector: pooled features -> embeddings; batch norm within, none on the result, which is standardised here.
        redundancy_weight: λ of the off-diagonal terms (0.005 in the paper, 0.0051 in the code).
        scale: of the whole loss. What LARS adapts does not notice it; biases and scales do.
    """

    def init(key, batch) -> Variables:
        return init_embedding(key, encoder, projector, batch, "barlow_twins")

    def forward(params, extra, batch, key, step):
        del step  # nothing here changes over training
        return pooled_views(encoder, params, extra, batch, key, "barlow_twins", together=False)

    def criterion(params, extra, outputs, step):
        del step
        z, statistics = project_views(projector, params["projector"], extra["projector"], outputs, together=False)
        correlation = redundancy.cross_correlation(z[:, 0], z[:, 1])
        diagonal, rest = redundancy.barlow_twins(correlation)
        invariance, decorrelation = scale * diagonal, scale * redundancy_weight * rest
        loss = invariance + decorrelation
        measured = {
            "loss": loss,
            "loss/invariance": invariance,
            "loss/redundancy": decorrelation,
            "view_correlation": jnp.mean(jnp.diagonal(correlation)),
        }
        return loss, ({**extra, "projector": statistics}, measured)

    return Objective(
        init,
        forward,
        criterion,
        carry_nothing,
        encoder_predictions(encoder),
        separable=False,
        embedding=lambda outputs: outputs,
    )
