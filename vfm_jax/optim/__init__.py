"""Optimizers, schedules, parameter groups and weight averages."""

from vfm_jax.optim.ema import ema_momentum, update_ema
from vfm_jax.optim.groups import Group
from vfm_jax.optim.optimizer import OPTIMIZERS, make_optimizer
from vfm_jax.optim.schedules import SCHEDULES, Schedule, as_schedule

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "Group",
    "Schedule",
    "as_schedule",
    "ema_momentum",
    "make_optimizer",
    "update_ema",
]
