"""Distillation of a frozen classifier: a student learns its teacher's logits (Hinton et al., 2015)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vfm_jax.core.keys import example_keys, stream
from vfm_jax.losses.classification import smooth_labels, softmax_cross_entropy
from vfm_jax.losses.distillation import hard_targets, soft_targets
from vfm_jax.objectives.interface import (
    Objective,
    Variables,
    apply_network,
    carry_nothing,
    encoder_predictions,
    init_network,
)
from vfm_jax.objectives.teacher import apply_frozen, frozen_networks


class Taught(NamedTuple):
    """What the student's heads see, and what they are to say.

    Attributes:
        pooled: features (b d).
        token: the distillation token (b d), or the pooled features again.
        teacher: its logits (b m).
        target: the labels as a distribution (b m).
    """

    pooled: jax.Array
    token: jax.Array
    teacher: jax.Array
    target: jax.Array


def distillation(
    encoder: Any,
    head: Any,
    teacher: Any,
    teacher_head: Any,
    distillation_head: Any = None,
    *,
    temperature: float = 1.0,
    hard: bool = False,
    label_weight: float = 0.0,
    label_smoothing: float = 0.0,
) -> Objective:
    """(1 - λ) · distance to the teacher's logits + λ · cross-entropy with the labels.

    Without labels it matches functions (Beyer et al., Knowledge distillation: A good teacher is patient and
    consistent, 2021, arXiv:2106.05237): teacher and student see the same view, mixed as it may be. With a
    `distillation_head` it is DeiT's (Touvron et al., 2020, arXiv:2012.12877, Sec. 4): the labels teach the class
    token, the teacher the distillation token, and the prediction is the mean of their logits.

    Args:
        encoder: images -> Features; with a `distillation_head`, a ViT with `distillation_token=True`.
        head: pooled features -> logits.
        teacher: images -> Features; frozen.
        teacher_head: its pooled features -> logits; frozen.
        distillation_head: the distillation token -> logits.
        temperature: τ of both softmaxes.
        hard: learn the teacher's likeliest class in place of its probabilities.
        label_weight: λ, in [0, 1]; DeiT's hard distillation has 0.5.
        label_smoothing: mass of the labels spread evenly over the classes.
    """
    heads = {"head": head} | ({} if distillation_head is None else {"distillation_head": distillation_head})

    def token_of(seen) -> jax.Array:
        return seen.pooled if distillation_head is None else seen.tokens[:, 1]

    def init(key, batch) -> Variables:
        images = batch["image"]
        params, extra = {}, {}
        seen, params["encoder"], extra["encoder"] = init_network(encoder, stream(key, "encoder"), images)
        for role, one in heads.items():
            _, params[role], extra[role] = init_network(one, stream(key, role), seen.pooled, train=True)
        seen, *known = init_network(teacher, stream(key, "teacher"), images)
        _, *known_head = init_network(teacher_head, stream(key, "teacher_head"), seen.pooled, train=True)
        return Variables(params, extra | frozen_networks({"teacher": known, "teacher_head": known_head}))

    def forward(params, extra, batch, key, step):
        del step  # nothing here changes over training
        keys = example_keys(stream(key, "drop_path"), batch["epoch"], batch["index"])
        seen, statistics = apply_network(
            encoder, params["encoder"], extra["encoder"], batch["image"], keys=keys, train=True
        )
        known = apply_frozen(teacher, extra, "teacher", batch["image"])
        logits = apply_frozen(teacher_head, extra, "teacher_head", known.pooled)
        target = batch.get("target")
        if target is None:
            target = smooth_labels(batch["label"], logits.shape[-1], label_smoothing)
        return Taught(seen.pooled, token_of(seen), logits, target), {**extra, "encoder": statistics}

    def criterion(params, extra, outputs, step):
        del step
        labelled, statistics = apply_network(head, params["head"], extra["head"], outputs.pooled, train=True)
        extra, taught = {**extra, "head": statistics}, labelled
        if distillation_head is not None:
            taught, statistics = apply_network(
                distillation_head,
                params["distillation_head"],
                extra["distillation_head"],
                outputs.token,
                train=True,
            )
            extra = {**extra, "distillation_head": statistics}
        known = jax.lax.stop_gradient(outputs.teacher)
        gap = hard_targets(taught, known) if hard else soft_targets(taught, known, temperature)
        terms = {"teacher": (1 - label_weight) * jnp.mean(gap)}
        if label_weight:
            terms["labels"] = label_weight * jnp.mean(softmax_cross_entropy(labelled, outputs.target))
        loss = sum(terms.values(), jnp.float32(0))
        agree = jnp.argmax(taught, axis=1) == jnp.argmax(known, axis=1)
        measured = {f"loss/{name}": term for name, term in terms.items()} if len(terms) > 1 else {}
        return loss, (extra, {"loss": loss, "agreement": jnp.mean(agree.astype(jnp.float32)), **measured})

    def logits(variables: Variables, batch) -> jax.Array:
        seen = shared["features"](variables, batch)
        inputs = {"head": seen.pooled, "distillation_head": token_of(seen)}
        params, extra = variables
        made = [apply_network(one, params[r], extra[r], inputs[r], train=False)[0] for r, one in heads.items()]
        return sum(made[1:], made[0]) / len(made)

    shared = encoder_predictions(encoder)
    return Objective(
        init,
        forward,
        criterion,
        carry_nothing,
        shared | {"logits": logits},
        separable=not any(getattr(one, "batch_norm", False) for one in heads.values()),
        embedding=lambda outputs: outputs.pooled[:, None],
    )
