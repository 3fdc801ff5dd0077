"""Pretraining methods by name; each is one file that reads as its paper's algorithm."""

from vfm_jax.objectives.aim import aim
from vfm_jax.objectives.barlow_twins import barlow_twins
from vfm_jax.objectives.byol import byol
from vfm_jax.objectives.clip import clip
from vfm_jax.objectives.combine import combine
from vfm_jax.objectives.context_reconstruction import context_reconstruction
from vfm_jax.objectives.data2vec2 import data2vec2
from vfm_jax.objectives.dino import dino
from vfm_jax.objectives.dinov2 import dinov2
from vfm_jax.objectives.dinov3 import dinov3
from vfm_jax.objectives.distillation import distillation
from vfm_jax.objectives.fcmae import fcmae
from vfm_jax.objectives.feature_distillation import feature_distillation
from vfm_jax.objectives.ibot import ibot
from vfm_jax.objectives.igpt import igpt
from vfm_jax.objectives.ijepa import ijepa
from vfm_jax.objectives.lejepa import lejepa
from vfm_jax.objectives.mae import mae
from vfm_jax.objectives.moco import moco
from vfm_jax.objectives.moco_v3 import moco_v3
from vfm_jax.objectives.nepa import nepa
from vfm_jax.objectives.sigclr import sigclr
from vfm_jax.objectives.siglip import siglip
from vfm_jax.objectives.simclr import simclr
from vfm_jax.objectives.simmim import simmim
from vfm_jax.objectives.simsiam import simsiam
from vfm_jax.objectives.supcon import supcon
from vfm_jax.objectives.supervised import supervised
from vfm_jax.objectives.swav import swav
from vfm_jax.objectives.vicreg import vicreg

OBJECTIVES = {
    "aim": aim,
    "barlow_twins": barlow_twins,
    "byol": byol,
    "clip": clip,
    "combine": combine,
    "context_reconstruction": context_reconstruction,
    "data2vec2": data2vec2,
    "dino": dino,
    "dinov2": dinov2,
    "dinov3": dinov3,
    "distillation": distillation,
    "fcmae": fcmae,
    "feature_distillation": feature_distillation,
    "ibot": ibot,
    "igpt": igpt,
    "ijepa": ijepa,
    "lejepa": lejepa,
    "mae": mae,
    "moco": moco,
    "moco_v3": moco_v3,
    "nepa": nepa,
    "sigclr": sigclr,
    "siglip": siglip,
    "simclr": simclr,
    "simmim": simmim,
    "simsiam": simsiam,
    "supcon": supcon,
    "supervised": supervised,
    "swav": swav,
    "vicreg": vicreg,
}
