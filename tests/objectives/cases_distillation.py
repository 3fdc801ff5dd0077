"""Distillation of logits and of features on tiny networks."""

from typing import Any

from tests.objectives.case import HEIGHT, WIDTH, Case, tiny_vit
from vfm_jax.models import MODELS
from vfm_jax.objectives.distillation import distillation
from vfm_jax.objectives.feature_distillation import feature_distillation

IMAGE = {"image": (HEIGHT, WIDTH, 3)}


def classifier(**fields: Any) -> Any:
    """Logits of five classes that differ."""
    return MODELS["linear_head"](num_classes=5, init_std=0.3, **fields)


def mlp(width: int) -> Any:
    """To another network's features."""
    return MODELS["projection_head"](hidden_dim=12, out_dim=width, num_layers=2, last_norm="none")


CASES = {
    "distillation": Case(
        lambda: distillation(tiny_vit(), classifier(), tiny_vit(width=24), classifier(), temperature=2.0),
        IMAGE,
        learning_rate=1.0,
    ),
    "distillation deit": Case(
        lambda: distillation(
            tiny_vit(distillation_token=True),
            classifier(),
            tiny_vit(),
            classifier(),
            classifier(),
            hard=True,
            label_weight=0.5,
            label_smoothing=0.1,
        ),
        IMAGE,
        learning_rate=0.5,
    ),
    "feature_distillation": Case(
        lambda: feature_distillation(
            tiny_vit(),
            {"coarse": tiny_vit(width=24), "fine": tiny_vit(variant="mu/2")},
            {"coarse": mlp(24), "fine": mlp(16)},
            {"coarse": mlp(24), "fine": mlp(16)},
            statistics_momentum=0.5,
        ),
        IMAGE | {"teacher_fine": (HEIGHT, WIDTH, 3)},
        learning_rate=0.2,
    ),
}
