"""Optimizers, learning-rate schedules, parameter groups and weight averages."""

from vfm_jax.optim.ema import ema_momentum, update_ema
from vfm_jax.optim.optimizer import OPTIMIZERS, make_optimizer
from vfm_jax.optim.schedules import SCHEDULES

__all__ = ["OPTIMIZERS", "SCHEDULES", "ema_momentum", "make_optimizer", "update_ema"]
