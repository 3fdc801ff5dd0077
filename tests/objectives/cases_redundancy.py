"""Methods that embed views of an image and compare the embeddings, on tiny networks."""

from tests.objectives.case import HEIGHT, WIDTH, Case, projector, tiny_vit
from vfm_jax.models import MODELS
from vfm_jax.objectives import OBJECTIVES

PAIR = {"image": (2, HEIGHT, WIDTH, 3)}
CROPS = {"global": (2, HEIGHT, WIDTH, 3), "local": (3, 4, 8, 3)}


def _make(name, head=None, **fields):
    return lambda: OBJECTIVES[name](
        tiny_vit(drop_path=0.2), head() if head else projector(last_norm="none"), **fields
    )


def _plain(**fields):
    return MODELS["projection_head"](
        **({"hidden_dim": 12, "out_dim": 10, "hidden_norm": False, "last_norm": "none", "use_bias": True} | fields)
    )


# Weights that keep gradients near 1: a bias that batch norm takes away again gets the rounding of all others.
CASES = {
    "barlow_twins": Case(_make("barlow_twins", redundancy_weight=0.1, scale=0.1), PAIR),
    "vicreg": Case(_make("vicreg", invariance_weight=1.0, variance_weight=1.0, covariance_weight=0.04), PAIR),
    "lejepa": Case(_make("lejepa", regularizer_weight=0.1, num_slices=16), CROPS),
    "supcon": Case(_make("supcon", _plain, temperature=0.5), PAIR),
    "sigclr": Case(_make("sigclr", _plain, initial_bias=-2.0, learn_temperature=True), PAIR),
}
