"""Pretraining methods by name; each is one file that reads as its paper's algorithm."""

from vfm_jax.objectives.dino import dino
from vfm_jax.objectives.mae import mae
from vfm_jax.objectives.simclr import simclr
from vfm_jax.objectives.supervised import supervised

OBJECTIVES = {"dino": dino, "mae": mae, "simclr": simclr, "supervised": supervised}
