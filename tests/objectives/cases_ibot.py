"""iBOT on tiny networks: one head or two, masks in blocks or at random."""

from tests.objectives.case import HEIGHT, WIDTH, Case, tiny_vit
from vfm_jax.models import MODELS
from vfm_jax.objectives import OBJECTIVES
from vfm_jax.optim import SCHEDULES

CROPS = {"global": (2, HEIGHT, WIDTH, 3), "local": (3, 4, 8, 3)}
MOMENTUM = SCHEDULES["cosine"](base=0.9, end=1.0, total_steps=20)


def _make(*patch_head, **fields):
    head = MODELS["dino_head"](out_dim=14, hidden_dim=12, bottleneck_dim=8)
    return OBJECTIVES["ibot"](tiny_vit(mask_token=True), head, *patch_head, teacher_momentum=MOMENTUM, **fields)


def _two_heads():
    patch_head = MODELS["dino_head"](out_dim=10, hidden_dim=12, bottleneck_dim=8, learned_scale=True)
    return _make(patch_head, mask_shape="random", mask_ratios=((0.4, 0.7),))


CASES = {
    "ibot": Case(
        lambda: _make(mask_ratios=((0.0, 0.0), (0.2, 0.7))), CROPS, teacher={"teacher": MOMENTUM}, learning_rate=0.5
    ),
    "ibot two heads": Case(_two_heads, CROPS, teacher={"teacher": MOMENTUM}, learning_rate=0.5),
}
