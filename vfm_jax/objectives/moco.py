"""MoCo with a queue of keys (He et al., Momentum Contrast, 2019, arXiv:1911.05722; version 2: arXiv:2003.04297)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vfm_jax.core.keys import example_keys, stream
from vfm_jax.losses.contrastive import contrastive_accuracy, info_nce, l2_normalize
from vfm_jax.objectives.interface import (
    Objective,
    Variables,
    apply_network,
    encoder_predictions,
    init_network,
    views_of,
)
from vfm_jax.objectives.teacher import move_teacher, start_teacher
from vfm_jax.optim import Schedule, as_schedule

TARGET = ("encoder", "projector")  # the networks of which there is a running average: they make the keys


class Seen(NamedTuple):
    """Pooled features (b d): of the first view by the encoder, of the second by its running average."""

    query: jax.Array
    key: jax.Array


def moco(
    encoder: Any,
    projector: Any,
    *,
    temperature: float = 0.2,
    target_momentum: float | Schedule = 0.999,
    queue_size: int = 65536,
) -> Objective:
    """Momentum contrast: a query finds the key of the other view among those of the last batches.

    The queue has the newest keys first, a batch in its own order; it starts with random directions, as the authors'
    does. Their shuffling of examples over devices (Sec. 3.3) has no counterpart: batch norm sees the whole batch, and
    so no key can be told by the device it comes from. (That the queue's keys come from other batches remains.)

    Reference: He et al., 2019 (arXiv:1911.05722), Algorithm 1.

    Args:
        encoder: images -> Features.
        projector: pooled features -> embeddings; an MLP in version 2, one layer in the first.
        temperature: τ of the softmax over keys: 0.2 in version 2, 0.07 in the first.
        target_momentum: m of the average that makes the keys.
        queue_size: K, the number of keys remembered.
    """
    momentum = as_schedule(target_momentum)

    def init(key, batch) -> Variables:
        images = views_of(batch, "image", 2, "moco")[:, 0]
        params, extra = {}, {}
        seen, params["encoder"], extra["encoder"] = init_network(encoder, stream(key, "encoder"), images)
        embedding, params["projector"], extra["projector"] = init_network(
            projector, stream(key, "projector"), seen.pooled, train=True
        )
        directions = jax.random.normal(stream(key, "queue"), (queue_size, embedding.shape[1]), jnp.float32)
        return Variables(
            params, {**extra, "target": start_teacher(params, TARGET), "queue": l2_normalize(directions)}
        )

    def forward(params, extra, batch, key, step):
        del step  # nothing here changes over training
        views = views_of(batch, "image", 2, "moco")

        def pooled(weights, name, view):
            keys = example_keys(stream(key, name), batch["epoch"], batch["index"])
            seen, moved = apply_network(
                encoder, weights["encoder"], extra["encoder"], views[:, view], keys=keys, train=True
            )
            return seen.pooled, moved

        query, statistics = pooled(params, "drop_path", 0)
        own, _ = pooled(extra["target"], "target_drop_path", 1)
        return Seen(query, own), {**extra, "encoder": statistics}

    def criterion(params, extra, outputs, step):
        query, statistics = apply_network(
            projector, params["projector"], extra["projector"], outputs.query, train=True
        )
        own, _ = apply_network(projector, extra["target"]["projector"], extra["projector"], outputs.key, train=True)
        own, queue = jax.lax.stop_gradient((l2_normalize(own), extra["queue"]))
        loss = jnp.mean(info_nce(query, own, temperature, queue))
        measured = {
            "loss": loss,
            "contrastive_accuracy": jnp.mean(contrastive_accuracy(query, own, queue)),
            "target_momentum": momentum(step),
        }
        queue = jnp.concatenate([own, queue])[:queue_size]
        return loss, ({**extra, "projector": statistics, "queue": queue}, measured)

    def after_update(params, extra, step):
        return {**extra, "target": move_teacher(extra["target"], params, momentum(step))}

    return Objective(
        init,
        forward,
        criterion,
        after_update,
        encoder_predictions(encoder),
        separable=False,
        embedding=lambda outputs: outputs.query[:, None],
        after_load=lambda params, extra: {**extra, "target": start_teacher(params, TARGET)},
    )
