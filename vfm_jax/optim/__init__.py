"""Optimizers, schedules, parameter groups and weight averages."""

from vfm_jax.optim.ema import ema_momentum, update_ema
from vfm_jax.optim.optimizer import OPTIMIZERS, make_optimizer
from vfm_jax.optim.schedules import SCHEDULES, Schedule, as_schedule
from vfm_jax.optim.transforms import freeze_until

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "Schedule",
    "as_schedule",
    "ema_momentum",
    "freeze_until",
    "make_optimizer",
    "update_ema",
]
