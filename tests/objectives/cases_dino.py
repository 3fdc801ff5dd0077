"""DINO on tiny networks."""

from tests.objectives.case import HEIGHT, WIDTH, Case, tiny_vit
from vfm_jax.models import MODELS
from vfm_jax.objectives import OBJECTIVES
from vfm_jax.optim import SCHEDULES

CROPS = {"global": (2, HEIGHT, WIDTH, 3), "local": (3, 4, 8, 3)}
MOMENTUM = SCHEDULES["cosine"](base=0.9, end=1.0, total_steps=20)


def head(**fields):
    """DINO's head with few prototypes."""
    return MODELS["dino_head"](**({"out_dim": 14, "hidden_dim": 12, "bottleneck_dim": 8} | fields))


def _make(**fields):
    return OBJECTIVES["dino"](tiny_vit(), head(), teacher_momentum=MOMENTUM, **fields)


CASES = {
    "dino": Case(_make, CROPS, teacher={"teacher": MOMENTUM}, learning_rate=1.0),
    "dino sinkhorn": Case(
        lambda: _make(assignment="sinkhorn"), CROPS, teacher={"teacher": MOMENTUM}, learning_rate=1.0
    ),
}
