"""SwAV: swapped assignments between views.

Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster Assignments, 2020 (arXiv:2006.09882).
"""

from typing import Any

import jax
import jax.numpy as jnp

from vfm_jax.core.keys import stream
from vfm_jax.losses.contrastive import l2_normalize
from vfm_jax.losses.self_distillation import sinkhorn, swapped_prediction
from vfm_jax.objectives.interface import (
    Extra,
    Objective,
    Variables,
    carry_nothing,
    encoder_predictions,
    init_network,
    project_views,
)
from vfm_jax.objectives.multicrop import crops_of, encode_crops, measure_assignments, pooled_by_view

NUM_ASSIGNED = 2  # the global crops: they are assigned to prototypes, and every crop predicts the assignments


def swav(
    encoder: Any,
    projector: Any,
    prototypes: Any,
    *,
    temperature: float = 0.1,
    epsilon: float = 0.05,
    sinkhorn_iterations: int = 3,
    queue_length: int = 0,
    queue_start_steps: int = 0,
) -> Objective:
    """Online clustering: each crop predicts to which prototypes another, global one was assigned.

    Reference: Caron et al., 2020 (arXiv:2006.09882), Sec. 3 and Algorithm 1.

    Args:
        encoder: images -> Features.
        projector: pooled features -> embeddings, which are normalised here; may hold batch norm.
        prototypes: embeddings -> scores. Its vectors are set to unit length after every update, as the authors do
            before it; their gradient is that of a linear layer (`Prototypes` with `through_length=False`).
        temperature: τ of the prediction.
        epsilon: ε of the assignment, the temperature of Sinkhorn's iterations.
        sinkhorn_iterations: how many.
        queue_length: how many embeddings of earlier batches are assigned along, for each global crop; 0 for none. For
            batches that are small against the number of prototypes.
        queue_start_steps: the queue begins to fill then, and counts once it is full.
    """

    def init(key, batch) -> Variables:
        crops = crops_of(batch, "swav", NUM_ASSIGNED)
        params, extra = {}, {}
        seen, params["encoder"], extra["encoder"] = init_network(encoder, stream(key, "encoder"), crops.whole[:, 0])
        embedding, params["projector"], extra["projector"] = init_network(
            projector, stream(key, "projector"), seen.pooled, train=True
        )
        _, params["prototypes"], _ = init_network(prototypes, stream(key, "prototypes"), embedding)
        if queue_length:
            extra["queue"] = jnp.zeros((NUM_ASSIGNED, queue_length, embedding.shape[1]), jnp.float32)
        return Variables(constrain(params), extra)

    def forward(params, extra, batch, key, step):
        del step  # nothing here changes over training
        crops = crops_of(batch, "swav", NUM_ASSIGNED)
        seen, statistics = encode_crops(
            encoder, params["encoder"], extra["encoder"], crops, batch, stream(key, "drop_path")
        )
        return pooled_by_view(seen, crops.whole.shape[0]), {**extra, "encoder": statistics}

    def criterion(params, extra, outputs, step):
        embeddings, statistics = project_views(projector, params["projector"], extra["projector"], outputs)
        embeddings = l2_normalize(embeddings)  # b v d
        scores = prototypes.apply({"params": params["prototypes"]}, embeddings)  # b v m
        assignments = assign(params, extra, scores, step)
        loss = swapped_prediction(scores, assignments, temperature)
        extra = {**extra, "projector": statistics} | enqueue(extra, embeddings, step)
        return loss, (extra, {"loss": loss} | measure_assignments(scores, assignments))

    def assign(params, extra, scores, step) -> jax.Array:
        """Assignments (b t m) of the global crops, balanced over the batch and the queue before it."""
        b, assigned = scores.shape[0], []
        for view in range(NUM_ASSIGNED):
            own, valid = scores[:, view], None
            if queue_length:
                queued = prototypes.apply({"params": params["prototypes"]}, extra["queue"][view])
                is_full = (step - queue_start_steps) * b >= queue_length
                valid = jnp.concatenate([jnp.broadcast_to(is_full, queue_length), jnp.ones(b, bool)])
                own = jnp.concatenate([queued, own])
            assigned.append(sinkhorn(own, epsilon, sinkhorn_iterations, valid)[-b:])
        return jnp.stack(assigned, axis=1)

    def enqueue(extra, embeddings, step) -> Extra:
        """The queue with the newest embeddings at its front, once it has begun."""
        if not queue_length:
            return {}
        newest = jax.lax.stop_gradient(jnp.swapaxes(embeddings[:, :NUM_ASSIGNED], 0, 1))
        moved = jnp.concatenate([newest, extra["queue"]], axis=1)[:, :queue_length]
        return {"queue": jnp.where(step >= queue_start_steps, moved, extra["queue"])}

    def constrain(params):
        unit = jax.tree.map(lambda kernel: l2_normalize(kernel.T).T, params["prototypes"])
        return {**params, "prototypes": unit}

    return Objective(
        init,
        forward,
        criterion,
        carry_nothing,
        encoder_predictions(encoder),
        separable=False,
        embedding=lambda outputs: outputs[:, :NUM_ASSIGNED],
        constrain=constrain,
    )
