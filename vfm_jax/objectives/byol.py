"""BYOL (Grill et al., Bootstrap Your Own Latent, 2020, arXiv:2006.07733)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from vfm_jax.core.keys import stream
from vfm_jax.losses.regression import normalized_distance
from vfm_jax.objectives.interface import (
    Objective,
    Variables,
    encode_views,
    encoder_predictions,
    init_network,
    project_views,
    view_keys,
    views_of,
)
from vfm_jax.objectives.teacher import move_teacher, start_teacher
from vfm_jax.optim import Schedule, as_schedule

TARGET = ("encoder", "projector")  # the networks of which there is a running average


class Seen(NamedTuple):
    """Pooled features of both views (b v d), by the online encoder and by the target's."""

    online: jax.Array
    target: jax.Array


def byol(encoder: Any, projector: Any, predictor: Any, *, target_momentum: float | Schedule = 0.996) -> Objective:
    """Bootstrap your own latent: from one view, predict what a running average of yourself makes of the other.

    Views go one after another, each under its own batch norm, as in the authors' code. The target's passes are those
    of training, by the statistics of their batch: it has no running ones.

    Reference: Grill et al., 2020 (arXiv:2006.07733), Sec. 3.1 and Algorithm 1.

    Args:
        encoder: images -> Features.
        projector: pooled features -> projections; may hold batch norm.
        predictor: projections -> predictions of the target's projections; may hold batch norm.
        target_momentum: τ of the target's average; the authors raise it to 1 by a cosine.
    """
    momentum = as_schedule(target_momentum)

    def init(key, batch) -> Variables:
        images = rearrange(views_of(batch, "image", 2, "byol"), "b v h w c -> (b v) h w c")
        params, extra = {}, {}
        seen, params["encoder"], extra["encoder"] = init_network(encoder, stream(key, "encoder"), images)
        projection, params["projector"], extra["projector"] = init_network(
            projector, stream(key, "projector"), seen.pooled, train=True
        )
        _, params["predictor"], extra["predictor"] = init_network(
            predictor, stream(key, "predictor"), projection, train=True
        )
        return Variables(params, {**extra, "target": start_teacher(params, TARGET)})

    def forward(params, extra, batch, key, step):
        del step  # nothing here changes over training
        views = views_of(batch, "image", 2, "byol")

        def pooled(weights, name):
            keys = view_keys(batch, stream(key, name), 2)
            seen, moved = encode_views(encoder, weights["encoder"], extra["encoder"], views, keys, together=False)
            return rearrange(seen.pooled, "(b v) d -> b v d", v=2), moved

        online, statistics = pooled(params, "drop_path")
        target, _ = pooled(extra["target"], "target_drop_path")
        return Seen(online, target), {**extra, "encoder": statistics}

    def criterion(params, extra, outputs, step):
        projection, projector_state = project_views(
            projector, params["projector"], extra["projector"], outputs.online, together=False
        )
        prediction, predictor_state = project_views(
            predictor, params["predictor"], extra["predictor"], projection, together=False
        )
        target, _ = project_views(
            projector, extra["target"]["projector"], extra["projector"], outputs.target, together=False
        )
        other = jax.lax.stop_gradient(target[:, ::-1])  # what the target makes of the other view
        loss = jnp.mean(jnp.sum(normalized_distance(prediction, other), axis=1))
        extra = {**extra, "projector": projector_state, "predictor": predictor_state}
        return loss, (extra, {"loss": loss, "target_momentum": momentum(step)})

    def after_update(params, extra, step):
        return {**extra, "target": move_teacher(extra["target"], params, momentum(step))}

    return Objective(
        init,
        forward,
        criterion,
        after_update,
        encoder_predictions(encoder),
        separable=False,
        embedding=lambda outputs: outputs.online,
        after_load=lambda params, extra: {**extra, "target": start_teacher(params, TARGET)},
    )
