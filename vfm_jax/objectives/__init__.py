"""Pretraining methods by name; each is one file that reads as its paper's algorithm."""

from vfm_jax.objectives.clip import clip
from vfm_jax.objectives.combine import combine
from vfm_jax.objectives.dino import dino
from vfm_jax.objectives.mae import mae
from vfm_jax.objectives.siglip import siglip
from vfm_jax.objectives.simclr import simclr
from vfm_jax.objectives.supervised import supervised

OBJECTIVES = {"clip": clip, "combine": combine, "dino": dino, "mae": mae, "siglip": siglip, "simclr": simclr, "supervised": supervised}
