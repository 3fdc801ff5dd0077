"""Pretraining methods by name; each is one file that reads as its paper's algorithm."""

from vfm_jax.objectives.byol import byol
from vfm_jax.objectives.clip import clip
from vfm_jax.objectives.combine import combine
from vfm_jax.objectives.dino import dino
from vfm_jax.objectives.mae import mae
from vfm_jax.objectives.moco import moco
from vfm_jax.objectives.moco_v3 import moco_v3
from vfm_jax.objectives.siglip import siglip
from vfm_jax.objectives.simclr import simclr
from vfm_jax.objectives.simsiam import simsiam
from vfm_jax.objectives.supervised import supervised

OBJECTIVES = {
    "byol": byol,
    "clip": clip,
    "combine": combine,
    "dino": dino,
    "mae": mae,
    "moco": moco,
    "moco_v3": moco_v3,
    "siglip": siglip,
    "simclr": simclr,
    "simsiam": simsiam,
    "supervised": supervised,
}
