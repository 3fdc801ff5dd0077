"""BYOL, SimSiam, MoCo and MoCo v3 on tiny networks."""

from typing import Any

from tests.objectives.case import HEIGHT, WIDTH, Case, projector, tiny_vit
from vfm_jax.objectives import OBJECTIVES
from vfm_jax.optim import SCHEDULES

PAIR = {"image": (2, HEIGHT, WIDTH, 3)}
MOMENTUM = SCHEDULES["cosine"](base=0.9, end=1.0, total_steps=20)


def mlp(**fields: Any) -> Any:
    """A head whose batch norm does not blow up the rounding of features that hardly differ: two stand in a row."""
    return projector(batch_norm_epsilon=0.1, **fields)


CASES = {
    "byol": Case(
        lambda: OBJECTIVES["byol"](
            tiny_vit(), mlp(last_norm="none"), mlp(last_norm="none"), target_momentum=MOMENTUM
        ),
        PAIR,
        teacher={"target": MOMENTUM},
    ),
    "simsiam": Case(
        lambda: OBJECTIVES["simsiam"](
            tiny_vit(), mlp(last_norm="plain", num_layers=3), mlp(last_norm="none", use_bias=True)
        ),
        PAIR,
    ),
    "moco": Case(
        lambda: OBJECTIVES["moco"](
            tiny_vit(),
            mlp(hidden_norm=False, last_norm="none", use_bias=True),
            temperature=1.0,
            target_momentum=MOMENTUM,
            queue_size=512,
        ),
        PAIR,
        teacher={"target": MOMENTUM},
    ),
    "moco_v3": Case(
        lambda: OBJECTIVES["moco_v3"](
            tiny_vit(),
            mlp(last_norm="plain", num_layers=3),
            mlp(last_norm="plain"),
            temperature=0.5,
            target_momentum=MOMENTUM,
        ),
        PAIR,
        teacher={"target": lambda step: MOMENTUM(step + 1)},  # of the step to come
    ),
}
