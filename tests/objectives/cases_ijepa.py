"""I-JEPA's row of the table of objectives."""

from tests.objectives.case import Case, tiny_vit
from vfm_jax.models import MODELS
from vfm_jax.objectives import OBJECTIVES
from vfm_jax.optim.schedules import linear

MOMENTUM = linear(base=0.9, end=1.0, total_steps=20)

CASES = {
    "ijepa": Case(
        lambda: OBJECTIVES["ijepa"](
            tiny_vit(variant="mu/2", class_token=False),
            MODELS["jepa_predictor"](width=16, depth=1, heads=2),
            min_context=3,
            momentum=MOMENTUM,
        ),
        {"image": (8, 12, 3)},
        teacher={"teacher": MOMENTUM},
    )
}
