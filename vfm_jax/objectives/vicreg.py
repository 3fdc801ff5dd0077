"""VICReg (Bardes et al., Variance-Invariance-Covariance Regularization, 2021, arXiv:2105.04906)."""

from typing import Any

import jax.numpy as jnp

from vfm_jax.losses.redundancy import covariance_penalty, variance_hinge
from vfm_jax.objectives.interface import Objective, Variables, carry_nothing, encoder_predictions, project_views
from vfm_jax.objectives.joint_embedding import init_embedding, pooled_views


def vicreg(
    encoder: Any,
    projector: Any,
    *,
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
) -> Objective:
    """Views of an image agree; over the batch, each dimension of a view keeps its variance, and none repeats another.

    Reference: Bardes et al., 2021 (arXiv:2105.04906), Algorithm 1 and Eq. 6. As in the authors' code the variance
    term is the mean over the two views, the covariance term their sum (Eq. 6 sums both), and the two views go
    through the networks one after the other, each under its own batch statistics.

    Args:
        encoder: images -> Features.
        projector: pooled features -> embeddings (the paper's expander); no batch norm on the result.
        invariance_weight: λ.
        variance_weight: μ.
        covariance_weight: ν.
    """

    def init(key, batch) -> Variables:
        return init_embedding(key, encoder, projector, batch, "vicreg")

    def forward(params, extra, batch, key, step):
        del step  # nothing here changes over training
        return pooled_views(encoder, params, extra, batch, key, "vicreg", together=False)

    def criterion(params, extra, outputs, step):
        del step
        z, statistics = project_views(projector, params["projector"], extra["projector"], outputs, together=False)
        x, y = z[:, 0], z[:, 1]
        invariance = invariance_weight * jnp.mean(jnp.square(x - y))
        variance = variance_weight * (variance_hinge(x) + variance_hinge(y)) / 2
        covariance = covariance_weight * (covariance_penalty(x) + covariance_penalty(y))
        loss = invariance + variance + covariance
        measured = {
            "loss": loss,
            "loss/invariance": invariance,
            "loss/variance": variance,
            "loss/covariance": covariance,
            "embedding_std": jnp.mean(jnp.std(x, axis=0)),
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
