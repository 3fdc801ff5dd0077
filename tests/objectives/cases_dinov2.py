"""DINOv2 and DINOv3 on tiny networks; with patches of 2 the global crops have 4 x 6, enough for blocks."""

from typing import Any

from tests.objectives.case import HEIGHT, WIDTH, Case, tiny_vit
from vfm_jax.models import MODELS
from vfm_jax.objectives.dinov2 import dinov2
from vfm_jax.objectives.dinov3 import dinov3
from vfm_jax.optim import SCHEDULES

CROPS = {"global": (2, HEIGHT, WIDTH, 3), "local": (3, 4, 8, 3)}
MOMENTUM = SCHEDULES["cosine"](base=0.9, end=1.0, total_steps=20)
HEATING = SCHEDULES["constant"](start=0.04, base=0.07, warmup_steps=6, total_steps=20)


def encoder(**fields: Any) -> Any:
    """A ViT that can be told which patches are hidden."""
    return tiny_vit(**({"variant": "mu/2", "mask_token": True, "positions": "sincos2d"} | fields))


def head(**fields: Any) -> Any:
    """DINO's head with few prototypes."""
    return MODELS["dino_head"](**({"out_dim": 14, "hidden_dim": 12, "bottleneck_dim": 8} | fields))


CASES = {
    "dinov2": Case(
        lambda: dinov2(
            encoder(),
            head(learned_scale=True),
            teacher_momentum=MOMENTUM,
            teacher_temperature=HEATING,
            assignment="center",
            koleo_group_size=2,
        ),
        CROPS,
        teacher={"teacher": MOMENTUM},
        learning_rate=0.5,
    ),
    "dinov2 distilled": Case(  # every patch is compared; the teacher is wider, of larger patches
        lambda: dinov2(
            encoder(mask_token=False),
            head(),
            head(out_dim=10),
            encoder(variant="mu/4", width=24, mask_token=False),
            head(hidden_dim=16),
            head(out_dim=10),
            teacher_momentum=MOMENTUM,
            masked_crops=1.0,
            mask_ratio=(1.0, 1.0),
            exact_masks=True,
            mask_group_size=2,
        ),
        CROPS,
        teacher={"teacher": MOMENTUM},
        learning_rate=0.5,
    ),
    "dinov3": Case(
        lambda: dinov3(
            encoder(),
            head(),
            head(out_dim=10),
            teacher_momentum=MOMENTUM,
            gram_weight=HEATING,
            gram_refresh_steps=2,
            gram_refreshes=1,
        ),
        CROPS | {"gram": (2, 2 * HEIGHT, 2 * WIDTH, 3)},
        teacher={"teacher": MOMENTUM},
        learning_rate=0.5,
    ),
}
