"""The running average of a network that teaches it: one for every method that has one.

It is kept in `extra`, in float32, and is laid out over devices as the student is, for its leaves have the same names.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vfm_jax.core.types import Params
from vfm_jax.optim import update_ema


def start_teacher(params: Params, roles: Iterable[str] = ("encoder",)) -> dict[str, Any]:
    """The networks of `roles` as the student has them, for `extra["teacher"]` (or "target").

    A copy of its own in memory: the step gives the student's buffers away.
    """
    return {role: jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), params[role]) for role in roles}


def move_teacher(teacher: dict[str, Any], params: Params, momentum: float | jax.Array) -> dict[str, Any]:
    """momentum · teacher + (1 - momentum) · student, for the networks that the teacher has.

    Batch statistics are not averaged: a teacher's own passes move them, as in the authors' codes.

    Reference: He et al., Momentum Contrast, 2019 (arXiv:1911.05722), Eq. 2.
    """
    return {role: update_ema(own, params[role], momentum) for role, own in teacher.items()}


def frozen_networks(made: Mapping[str, Sequence[Any]], extra: Mapping[str, Any] = {}) -> dict[str, Any]:
    """What `extra` holds of networks that never learn: role -> (parameters, batch statistics) in two dicts of roles.

    They are random until the program fills them from the files that the recipe names (`weights.frozen`). Those that
    `extra` has already stay.
    """
    params = {role: own for role, (own, _) in made.items()}
    statistics = {role: own for role, (_, own) in made.items()}
    return {
        "frozen": {**extra.get("frozen", {}), **params},
        "frozen_statistics": {**extra.get("frozen_statistics", {}), **statistics},
    }


def apply_frozen(network: Any, extra: Mapping[str, Any], role: str, *args: Any) -> Any:
    """What a frozen network makes of its input, in evaluation and without gradient."""
    variables = {"params": extra["frozen"][role], **extra["frozen_statistics"][role]}
    return jax.lax.stop_gradient(network.apply(variables, *args, train=False))
