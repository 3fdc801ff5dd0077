"""LeJEPA (Balestriero and LeCun, LeJEPA: Provable and Scalable Self-Supervised Learning, 2025, arXiv:2511.08544)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vfm_jax.core.keys import key_for, stream
from vfm_jax.losses.regularizers import random_directions, sigreg
from vfm_jax.objectives.interface import (
    Objective,
    Variables,
    carry_nothing,
    encoder_predictions,
    project_views,
    views_of,
)
from vfm_jax.objectives.multicrop import Crops, encode_crops, init_networks, pooled_by_view


class Seen(NamedTuple):
    """Pooled features of the global crops (b g d), and of the local ones (b l d), or None without."""

    whole: jax.Array
    local: jax.Array | None


def lejepa(
    encoder: Any,
    projector: Any,
    *,
    regularizer_weight: float = 0.02,
    num_slices: int = 1024,
    num_knots: int = 17,
    t_max: float = 3.0,
    slice_seed: int = 0,
) -> Objective:
    """All views of an image meet in the mean of its global ones; the batch of each view is kept standard normal.

    No teacher, no stopped gradient, no schedule.

    Reference: Balestriero and LeCun, 2025 (arXiv:2511.08544); views and the mean as in the authors' code.

    Args:
        encoder: images -> Features.
        projector: pooled features -> embeddings. They are compared as they are; the result has no batch norm.
        regularizer_weight: λ of SIGReg; the rest, 1 - λ, is that of the prediction.
        num_slices: directions along which the batch is tested, drawn anew in each step.
        num_knots: of the integral over the characteristic function.
        t_max: end of that integral.
        slice_seed: the directions of step s are those of `key_for(slice_seed, s, "slices")`: the same on all devices,
            in every micro-batch, and after a resume.
    """

    def crops_of(batch) -> Crops:
        whole = views_of(batch, "global", None, "lejepa")
        return Crops(whole, views_of(batch, "local", None, "lejepa") if "local" in batch else None)

    def init(key, batch) -> Variables:
        return init_networks(key, encoder, crops_of(batch), projector=projector)

    def forward(params, extra, batch, key, step):
        del step  # nothing here changes over training
        crops = crops_of(batch)
        seen, statistics = encode_crops(
            encoder, params["encoder"], extra["encoder"], crops, batch, stream(key, "drop_path")
        )
        b, num_whole = crops.whole.shape[:2]
        pooled = pooled_by_view(seen, b)
        local = None if crops.local is None else pooled[:, num_whole:]
        return Seen(pooled[:, :num_whole], local), {**extra, "encoder": statistics}

    def criterion(params, extra, outputs, step):
        pooled = jnp.concatenate([part for part in outputs if part is not None], axis=1)
        z, statistics = project_views(projector, params["projector"], extra["projector"], pooled)
        center = jnp.mean(z[:, : outputs.whole.shape[1]], axis=1, keepdims=True)
        apart = jnp.mean(jnp.square(z - center))

        directions = random_directions(key_for(slice_seed, step, "slices"), z.shape[2], num_slices)
        statistic = jax.vmap(lambda view: jnp.mean(sigreg(view, directions, num_knots, t_max)), in_axes=1)(z)

        prediction = (1 - regularizer_weight) * apart
        regularization = regularizer_weight * jnp.mean(statistic)
        loss = prediction + regularization
        measured = {
            "loss": loss,
            "loss/prediction": prediction,
            "loss/sigreg": regularization,
            "embedding_std": jnp.mean(jnp.std(z[:, 0], axis=0)),
        }
        return loss, ({**extra, "projector": statistics}, measured)

    return Objective(
        init,
        forward,
        criterion,
        carry_nothing,
        encoder_predictions(encoder),
        separable=False,
        embedding=lambda outputs: outputs.whole,
    )
