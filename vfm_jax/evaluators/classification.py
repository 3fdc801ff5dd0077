"""Accuracy of the network's own classifier."""

import jax
import jax.numpy as jnp
import numpy as np

from vfm_jax.core.sharding import to_host
from vfm_jax.evaluators.interface import (
    Batches,
    Cache,
    Evaluator,
    Predict,
    check_labels,
    empty_split,
    one_behind,
)
from vfm_jax.metrics.classification import top_k_correct


@jax.jit
def _measure(logits: jax.Array, labels: jax.Array, valid: jax.Array) -> jax.Array:
    logits = logits.astype(jnp.float32)
    top1, count = top_k_correct(logits, labels, valid)
    top5, _ = top_k_correct(logits, labels, valid, k=5)
    return jnp.stack([top1, top5, count])


def classification() -> Evaluator:
    """Share of the test images whose label has the largest logit (`accuracy`), or is among the five largest.

    `accuracy_top5` is given where there are more than five classes.
    """

    def run(predict: Predict, batches: Batches, cache: Cache | None = None) -> dict[str, float]:
        del cache  # it reads logits, not features

        def sums():
            for batch in batches["test"]():
                valid, labels, index = (to_host(batch[field]) for field in ("valid", "label", "index"))
                check_labels(labels[valid], index[valid], "test", "classification")
                logits = predict["logits"](batch)
                yield _measure(logits, batch["label"], batch["valid"]), logits.shape[-1]

        measured = [(to_host(of_batch), num_classes) for of_batch, num_classes in one_behind(sums())]
        top1, top5, count = np.sum([of_batch for of_batch, _ in measured] or [np.zeros(3)], axis=0)
        if count == 0:
            raise empty_split("test")
        figures = {"accuracy": float(top1) / float(count)}
        if measured[0][1] > 5:
            figures["accuracy_top5"] = float(top5) / float(count)
        return figures

    return Evaluator(run, needs=("logits",), splits=("test",))
