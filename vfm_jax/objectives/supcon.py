"""SupCon (Khosla et al., Supervised Contrastive Learning, 2020, arXiv:2004.11362)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vfm_jax.losses.contrastive import l2_normalize, supervised_contrastive
from vfm_jax.objectives.interface import Objective, Variables, carry_nothing, encoder_predictions, project_views
from vfm_jax.objectives.joint_embedding import init_embedding, pooled_views


class Labelled(NamedTuple):
    """Pooled features of the views of each example (b v d), and its class (b), below zero where it has none."""

    views: jax.Array
    label: jax.Array


def own_class_if_none(label: jax.Array) -> jax.Array:
    """Labels in which examples without one (below zero) have each a class of their own."""
    return jnp.where(label < 0, -1 - jnp.arange(label.shape[0], dtype=label.dtype), label)


def same_class_accuracy(z: jax.Array, label: jax.Array) -> jax.Array:
    """Share of the first views (b v d, of length 1) whose nearest second view is of an example of the same class."""
    nearest = jnp.argmax(z[:, 0] @ z[:, 1].T, axis=1)
    return jnp.mean((label[nearest] == label).astype(jnp.float32))


def supcon(
    encoder: Any,
    projector: Any,
    *,
    temperature: float = 0.1,
    base_temperature: float = 0.07,
    normalize_pooled: bool = False,
) -> Objective:
    """Contrastive learning with labels: all views of all images of a class attract each other.

    Images without a label have their own other view as their only positive, as in SimCLR.

    Reference: Khosla et al., 2020 (arXiv:2004.11362), Sec. 3.

    Args:
        encoder: images -> Features.
        projector: pooled features -> embeddings, whose directions are compared.
        temperature: τ of the softmax over similarities.
        base_temperature: the loss is multiplied by τ over this: 0.07 in the PyTorch code, 1 in the paper and in the
            TensorFlow code.
        normalize_pooled: pooled features are scaled to length 1 before the projector (paper, Sec. 3.1; the PyTorch
            code does not).
    """

    def init(key, batch) -> Variables:
        return init_embedding(key, encoder, projector, batch, "supcon")

    def forward(params, extra, batch, key, step):
        del step  # nothing here changes over training
        pooled, extra = pooled_views(encoder, params, extra, batch, key, "supcon")
        return Labelled(pooled, batch["label"]), extra

    def criterion(params, extra, outputs, step):
        del step
        pooled = l2_normalize(outputs.views) if normalize_pooled else outputs.views
        z, statistics = project_views(projector, params["projector"], extra["projector"], pooled)
        z, label = l2_normalize(z), own_class_if_none(outputs.label)
        loss = jnp.mean(supervised_contrastive(z, label, temperature, base_temperature))
        measured = {"loss": loss, "contrastive_accuracy": same_class_accuracy(z, label)}
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
