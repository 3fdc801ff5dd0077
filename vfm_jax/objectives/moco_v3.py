"""MoCo v3 (Chen et al., An Empirical Study of Training Self-Supervised Vision Transformers, 2021)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from vfm_jax.core.keys import stream
from vfm_jax.losses.contrastive import contrastive_accuracy, info_nce
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

TARGET = ("encoder", "projector")  # the networks of which there is a running average: they make the keys


class Seen(NamedTuple):
    """Pooled features of both views (b v d), by the encoder and by its running average."""

    online: jax.Array
    target: jax.Array


def moco_v3(
    encoder: Any,
    projector: Any,
    predictor: Any,
    *,
    temperature: float = 0.2,
    target_momentum: float | Schedule = 0.99,
) -> Objective:
    """Momentum contrast without a queue: each view's query finds the other view's key among those of the batch.

    Views go one after another, each under its own batch norm, as in the authors' code. The patch projection of a ViT
    is frozen there (Sec. 4.2): in a recipe, by a group of the optimizer with `lr_scale=0`.

    Reference: Chen et al., 2021 (arXiv:2104.02057), Algorithm 1. The authors average the keys' networks at the start
    of a step, by that step's momentum; here it is at the end of the one before, by the momentum of the step to come:
    the keys of every step are theirs.

    Args:
        encoder: images -> Features.
        projector: pooled features -> embeddings; may hold batch norm.
        predictor: embeddings of the online networks -> queries; may hold batch norm.
        temperature: τ of the softmax over keys (0.2 for ViT, 1.0 for ResNet).
        target_momentum: m of the average that makes the keys; the authors raise it to 1 by a cosine.
    """
    momentum = as_schedule(target_momentum)

    def init(key, batch) -> Variables:
        images = rearrange(views_of(batch, "image", 2, "moco_v3"), "b v h w c -> (b v) h w c")
        params, extra = {}, {}
        seen, params["encoder"], extra["encoder"] = init_network(encoder, stream(key, "encoder"), images)
        embedding, params["projector"], extra["projector"] = init_network(
            projector, stream(key, "projector"), seen.pooled, train=True
        )
        _, params["predictor"], extra["predictor"] = init_network(
            predictor, stream(key, "predictor"), embedding, train=True
        )
        return Variables(params, {**extra, "target": start_teacher(params, TARGET)})

    def forward(params, extra, batch, key, step):
        del step  # nothing here changes over training
        views = views_of(batch, "image", 2, "moco_v3")

        def pooled(weights, name):
            keys = view_keys(batch, stream(key, name), 2)
            seen, moved = encode_views(encoder, weights["encoder"], extra["encoder"], views, keys, together=False)
            return rearrange(seen.pooled, "(b v) d -> b v d", v=2), moved

        online, statistics = pooled(params, "drop_path")
        target, _ = pooled(extra["target"], "target_drop_path")
        return Seen(online, target), {**extra, "encoder": statistics}

    def criterion(params, extra, outputs, step):
        embedding, projector_state = project_views(
            projector, params["projector"], extra["projector"], outputs.online, together=False
        )
        query, predictor_state = project_views(
            predictor, params["predictor"], extra["predictor"], embedding, together=False
        )
        target, _ = project_views(
            projector, extra["target"]["projector"], extra["projector"], outputs.target, together=False
        )
        own = jax.lax.stop_gradient(target[:, ::-1])  # the key of a view is the other view's embedding
        both = info_nce(query[:, 0], own[:, 0], temperature) + info_nce(query[:, 1], own[:, 1], temperature)
        loss = 2 * temperature * jnp.mean(both)
        extra = {**extra, "projector": projector_state, "predictor": predictor_state}
        measured = {
            "loss": loss,
            "contrastive_accuracy": jnp.mean(contrastive_accuracy(query[:, 0], own[:, 0])),
            "target_momentum": momentum(step),
        }
        return loss, (extra, measured)

    def after_update(params, extra, step):
        return {**extra, "target": move_teacher(extra["target"], params, momentum(step + 1))}

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
