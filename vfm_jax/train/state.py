"""Everything that training carries from step to step, and that a checkpoint holds."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from vfm_jax.core.sharding import on_devices
from vfm_jax.core.types import Batch
from vfm_jax.experiment import Objective, Variables


class TrainState(flax.struct.PyTreeNode):
    """State after `step` updates.

    Attributes:
        step: int32 scalar.
        params: trained parameters, float32.
        extra: what the objective carries untrained.
        opt_state: the optimizer's moments.
        ema: running average of `params`, for evaluation; an empty dict where the recipe asks for none.
        profiles: averages by name that others are made of after training; likewise.
    """

    step: jax.Array
    params: Any
    extra: Any
    opt_state: Any
    ema: Any
    profiles: Any = flax.struct.field(default_factory=dict)

    @property
    def variables(self) -> Variables:
        """What evaluation looks at: the averaged parameters where there are any."""
        return Variables(on_devices(self.ema) or self.params, self.extra)


def init_state(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    batch: Batch,
    key: jax.Array,
    *,
    with_ema: bool,
    start_profiles: Callable[[Any], dict[str, Any]] = lambda params: {},
) -> TrainState:
    """A fresh state; pure, so that its shapes can be asked for and its leaves born sharded."""
    params, extra = objective.init(key, batch)
    ema = jax.tree.map(jnp.copy, params) if with_ema else {}
    return TrainState(jnp.zeros((), jnp.int32), params, extra, optimizer.init(params), ema, start_profiles(params))
