"""Classes ranked for each row of features, best first, and the accuracy of the ranking."""

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array, Float, Int

NUM_RANKED = 5  # enough for top-1 and top-5 accuracy


def map_chunks(
    function: Callable[[np.ndarray], Int[Array, "b r"]], rows: Float[np.ndarray, "n d"], chunk: int
) -> Int[np.ndarray, "n r"]:
    """`function` on the rows, `chunk` of them at a time; the last chunk is padded, so it compiles once."""
    parts = []
    for first in range(0, len(rows), chunk):
        part = rows[first : first + chunk]
        parts.append(function(np.pad(part, ((0, chunk - len(part)), (0, 0)))))
    return np.concatenate(jax.device_get(parts))[: len(rows)]


def accuracies(
    ranked: Int[np.ndarray, "n r"], labels: Int[np.ndarray, " n"], num_classes: int, most: int = NUM_RANKED
) -> dict[str, float]:
    """`accuracy`, and `accuracy_top5` where there are more than five classes, in [0, 1].

    Args:
        ranked: classes of each row, best first.
        labels: the right ones.
        num_classes: how many there are.
        most: how many of the ranks mean something; those after it are not counted among the five.
    """
    hit = ranked == labels[:, None]
    figures = {"accuracy": float(hit[:, 0].mean())}
    if num_classes > NUM_RANKED:
        figures["accuracy_top5"] = float(hit[:, :most].any(axis=1).mean())
    return figures
