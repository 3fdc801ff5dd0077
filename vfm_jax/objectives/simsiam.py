"""SimSiam (Chen and He, Exploring Simple Siamese Representation Learning, 2020, arXiv:2011.10566)."""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from vfm_jax.core.keys import stream
from vfm_jax.losses.regression import negative_cosine
from vfm_jax.metrics.representation import feature_std
from vfm_jax.objectives.interface import (
    Objective,
    Variables,
    carry_nothing,
    encode_views,
    encoder_predictions,
    init_network,
    project_views,
    view_keys,
    views_of,
)


def simsiam(encoder: Any, projector: Any, predictor: Any) -> Objective:
    """Siamese learning by a stopped gradient alone: from one view, predict your own projection of the other.

    Views go one after another, each under its own batch norm, as in the authors' code. "projection_std" is what
    tells collapse in their Fig. 2, times √d: 0 where all projections are one, 1 where they fill the sphere.

    Reference: Chen and He, 2020 (arXiv:2011.10566), Algorithm 1.

    Args:
        encoder: images -> Features.
        projector: pooled features -> projections; may hold batch norm.
        predictor: projections -> predictions of the other view's projection; may hold batch norm.
    """

    def init(key, batch) -> Variables:
        images = rearrange(views_of(batch, "image", 2, "simsiam"), "b v h w c -> (b v) h w c")
        params, extra = {}, {}
        seen, params["encoder"], extra["encoder"] = init_network(encoder, stream(key, "encoder"), images)
        projection, params["projector"], extra["projector"] = init_network(
            projector, stream(key, "projector"), seen.pooled, train=True
        )
        _, params["predictor"], extra["predictor"] = init_network(
            predictor, stream(key, "predictor"), projection, train=True
        )
        return Variables(params, extra)

    def forward(params, extra, batch, key, step):
        del step  # nothing here changes over training
        views = views_of(batch, "image", 2, "simsiam")
        keys = view_keys(batch, stream(key, "drop_path"), 2)
        seen, statistics = encode_views(encoder, params["encoder"], extra["encoder"], views, keys, together=False)
        return rearrange(seen.pooled, "(b v) d -> b v d", v=2), {**extra, "encoder": statistics}

    def criterion(params, extra, outputs, step):
        del step
        projection, projector_state = project_views(
            projector, params["projector"], extra["projector"], outputs, together=False
        )
        prediction, predictor_state = project_views(
            predictor, params["predictor"], extra["predictor"], projection, together=False
        )
        other = jax.lax.stop_gradient(projection[:, ::-1])
        loss = jnp.mean(negative_cosine(prediction, other))  # over both directions too: Eq. 2
        extra = {**extra, "projector": projector_state, "predictor": predictor_state}
        return loss, (extra, {"loss": loss, "projection_std": feature_std(other[:, 0])})

    return Objective(
        init,
        forward,
        criterion,
        carry_nothing,
        encoder_predictions(encoder),
        separable=False,
        embedding=lambda outputs: outputs,
    )
