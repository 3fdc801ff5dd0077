"""SwAV on tiny networks, with and without a queue."""

from tests.objectives.case import HEIGHT, WIDTH, Case, tiny_vit
from vfm_jax.models import MODELS
from vfm_jax.objectives import OBJECTIVES

CROPS = {"global": (2, HEIGHT, WIDTH, 3), "local": (3, 4, 8, 3)}


def _make(**fields):
    projector = MODELS["projection_head"](hidden_dim=12, out_dim=8, last_norm="none", use_bias=True)
    prototypes = MODELS["prototypes"](num_prototypes=6, through_length=False)
    return OBJECTIVES["swav"](tiny_vit(), projector, prototypes, **fields)


CASES = {
    "swav": Case(_make, CROPS),
    "swav queue": Case(lambda: _make(queue_length=20, queue_start_steps=2), CROPS),
}
