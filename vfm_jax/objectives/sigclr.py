"""Sigmoid pairs of images (Çağatan, SigCLR: Sigmoid Contrastive Learning of Visual Representations, 2024)."""

from typing import Any

import jax.numpy as jnp

from vfm_jax.core.tables import lookup
from vfm_jax.losses.contrastive import l2_normalize, sigmoid_pairs
from vfm_jax.objectives.interface import Objective, Variables, carry_nothing, encoder_predictions, project_views
from vfm_jax.objectives.joint_embedding import init_embedding, pooled_views
from vfm_jax.objectives.supcon import Labelled, own_class_if_none, same_class_accuracy


def sigclr(
    encoder: Any,
    projector: Any,
    *,
    positives: str = "view",
    temperature: float = 0.1,
    initial_bias: float = -10.0,
    learn_temperature: bool = False,
    learn_bias: bool = True,
) -> Objective:
    """For each pair of views in the batch: are they of one image (or of one class)?

    SimCLR with SigLIP's loss: log(1 + exp(-s)) for a pair that belongs together and log(1 + exp(s)) for any other,
    with s = cos / τ + β; see `losses.contrastive.sigmoid_pairs`. temperature=1, initial_bias=0 and learn_bias=False
    leave the plain similarity.

    Reference: Çağatan, 2024 (arXiv:2410.17427): a fixed temperature and a learned bias did best there. Zhai et al.,
    Sigmoid Loss for Language Image Pre-Training, 2023 (arXiv:2303.15343) learn both.

    Args:
        encoder: images -> Features.
        projector: pooled features -> embeddings, whose directions are compared.
        positives: by "view" (of the same image) or by "label" (of any image of its class; an image without a label
            has its own views alone).
        temperature: τ, at the start where it is learned. At 1 / τ < |β| no pair is ever taken for a positive one, and
            all embeddings are drawn together until β has moved.
        initial_bias: β at the start; nearly all pairs are negative.
        learn_temperature: the factor 1 / τ is learned, by its logarithm.
        learn_bias: β is learned.
    """
    by_label = lookup({"view": False, "label": True}, positives, "config.objective.positives")

    def init(key, batch) -> Variables:
        params, extra = init_embedding(key, encoder, projector, batch, "sigclr")
        if learn_temperature:
            params = {**params, "logit_scale": -jnp.log(jnp.float32(temperature))}
        if learn_bias:
            params = {**params, "logit_bias": jnp.float32(initial_bias)}
        return Variables(params, extra)

    def forward(params, extra, batch, key, step):
        del step  # nothing here changes over training
        pooled, extra = pooled_views(encoder, params, extra, batch, key, "sigclr")
        return Labelled(pooled, batch["label"]), extra

    def criterion(params, extra, outputs, step):
        del step
        z, statistics = project_views(projector, params["projector"], extra["projector"], outputs.views)
        scale = jnp.exp(params["logit_scale"]) if learn_temperature else jnp.float32(1 / temperature)
        bias = params["logit_bias"] if learn_bias else jnp.float32(initial_bias)
        label = own_class_if_none(outputs.label if by_label else jnp.full_like(outputs.label, -1))
        loss = jnp.mean(sigmoid_pairs(z, label, scale, bias))
        measured = {
            "loss": loss,
            "contrastive_accuracy": same_class_accuracy(l2_normalize(z), label),
            "temperature": 1 / scale,
            "logit_bias": bias,
        }
        return loss, ({**extra, "projector": statistics}, measured)

    return Objective(
        init,
        forward,
        criterion,
        carry_nothing,
        encoder_predictions(encoder),
        separable=False,
        embedding=lambda outputs: outputs.views,
    )
