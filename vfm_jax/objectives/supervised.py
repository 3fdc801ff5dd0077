"""Classification with labels: pretraining, fine-tuning, and linear probes on frozen encoders."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vfm_jax.core.keys import example_keys, stream
from vfm_jax.core.tables import lookup
from vfm_jax.losses.classification import sigmoid_cross_entropy, smooth_labels, softmax_cross_entropy
from vfm_jax.objectives.interface import (
    Objective,
    Variables,
    apply_network,
    carry_nothing,
    encoder_predictions,
    init_network,
)

LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "softmax": softmax_cross_entropy,
    "sigmoid": sigmoid_cross_entropy,
    "sigmoid_mean": lambda logits, target: sigmoid_cross_entropy(logits, target) / logits.shape[-1],
}


class Classified(NamedTuple):
    """Pooled features (b d), and the target distribution over classes (b m)."""

    pooled: jax.Array
    target: jax.Array


def supervised(
    encoder: Any, head: Any, *, loss: str = "softmax", label_smoothing: float = 0.0, freeze_encoder: bool = False
) -> Objective:
    """Cross-entropy of a head on the encoder's pooled features.

    Args:
        encoder: images -> Features.
        head: pooled features -> logits; may hold batch norm.
        loss: "softmax" over the classes, or "sigmoid" of each class: summed over them (big_vision's: AugReg, BiT), or
            "sigmoid_mean" (DeiT III: Touvron et al., 2022, arXiv:2204.07118, Sec. 3; PyTorch's mean).
        label_smoothing: mass spread evenly over the classes, in [0, 1). Targets that are already distributions
            (`batch["target"]`, from mixup) are taken as they are.
        freeze_encoder: no gradient into the encoder, and no dropping or batch statistics in it: a linear probe.
    """
    loss_of = lookup(LOSSES, loss, "config.objective.loss")

    def init(key, batch) -> Variables:
        seen, encoder_params, encoder_state = init_network(encoder, stream(key, "encoder"), batch["image"])
        _, head_params, head_state = init_network(head, stream(key, "head"), seen.pooled, train=True)
        return Variables(
            {"encoder": encoder_params, "head": head_params}, {"encoder": encoder_state, "head": head_state}
        )

    def forward(params, extra, batch, key, step):
        del step  # nothing here changes over training
        keys = example_keys(stream(key, "drop_path"), batch["epoch"], batch["index"])
        weights = jax.lax.stop_gradient(params["encoder"]) if freeze_encoder else params["encoder"]
        seen, statistics = apply_network(
            encoder, weights, extra["encoder"], batch["image"], keys=keys, train=not freeze_encoder
        )
        target = (
            batch["target"] if "target" in batch else smooth_labels(batch["label"], head.num_classes, label_smoothing)
        )
        return Classified(seen.pooled, target), {**extra, "encoder": statistics}

    def criterion(params, extra, outputs, step):
        del step
        logits, statistics = apply_network(head, params["head"], extra["head"], outputs.pooled, train=True)
        value = jnp.mean(loss_of(logits, outputs.target))
        hit = jnp.argmax(logits, axis=1) == jnp.argmax(outputs.target, axis=1)
        return value, ({**extra, "head": statistics}, {"loss": value, "accuracy": jnp.mean(hit.astype(jnp.float32))})

    def logits(variables: Variables, batch) -> jax.Array:
        pooled = shared["features"](variables, batch).pooled
        return apply_network(head, variables.params["head"], variables.extra["head"], pooled, train=False)[0]

    shared = encoder_predictions(encoder)
    predict = shared | {"logits": logits}
    # A head with batch norm couples the examples, so its criterion must see them all at once.
    return Objective(
        init,
        forward,
        criterion,
        carry_nothing,
        predict,
        separable=not getattr(head, "batch_norm", False),
        embedding=lambda outputs: outputs.pooled[:, None],
    )
