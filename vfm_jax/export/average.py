"""Weights averaged over a run as if with a width that was chosen after it."""

import os
import pathlib
from typing import Any

import jax
import numpy as np

from vfm_jax.core.errors import UserError
from vfm_jax.experiment import combination
from vfm_jax.train.checkpoint import Checkpoints, restore_profiles
from vfm_jax.train.stages import read_stages


def average_checkpoints(
    path: str | os.PathLike[str], sigma_rel: float, out: str | os.PathLike[str], *, step: int | None = None
) -> int:
    """Writes a checkpoint whose parameters are the average of this width, combined from those a run tracked.

    The run had `config.posthoc_ema`, and kept as many checkpoints as the average is to be made of. What is written
    can be started from and exported like any other; it has no optimizer.

    Args:
        path: folder of a run's checkpoints of one stage: RUN/checkpoints/train.
        sigma_rel: width of the average, as a share of the training up to its end.
        out: folder to write to.
        step: where the average ends; None for the last checkpoint.

    Returns:
        The step that was written.

    Raises:
        UserError: no checkpoints, no tracked averages in them, or a width that cannot be.
    """
    path = pathlib.Path(path)
    with Checkpoints(path) as checkpoints:
        steps = [saved for saved in checkpoints.steps() if step is None or saved <= step]
    if not steps:
        raise UserError(f"No checkpoint in {path}{'' if step is None else f' up to step {step}'}.")
    end = steps[-1] if step is None else step
    _, extra, meta = restore_profiles(path / str(steps[-1]))
    recipe = next(stage.recipe for stage in read_stages(meta["recipe"]) if stage.name == meta["stage"])
    factors = combination(steps, recipe["posthoc_ema"]["sigma_rel"], sigma_rel, end)
    total: Any = None
    for saved, row in zip(steps, factors, strict=True):
        profiles, _, _ = restore_profiles(path / str(saved))
        for i, factor in enumerate(row):
            part = jax.tree.map(
                lambda leaf, factor=factor: factor * leaf.astype(np.float64), profiles[f"profile_{i}"]
            )
            total = part if total is None else jax.tree.map(np.add, total, part)
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), total)
    with Checkpoints(out) as made:
        made.save(end, {"params": params, "extra": extra}, meta | {"averaged": sigma_rel}, wait=True)
    return end
