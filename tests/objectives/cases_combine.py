"""Two methods that share an encoder, on views of their own; the second joins later, with another weight."""

from tests.objectives.case import HEIGHT, WIDTH, Case, projector, tiny_vit
from vfm_jax.models import MODELS
from vfm_jax.objectives import OBJECTIVES
from vfm_jax.objectives.combine import Member, combine
from vfm_jax.optim.schedules import linear


def _make():
    encoder = tiny_vit()
    mae = OBJECTIVES["mae"](encoder, MODELS["masked_decoder"](width=16, depth=1, heads=2))
    simclr = OBJECTIVES["simclr"](encoder, projector(), temperature=0.5)
    members = (
        Member(mae, "mae", weight=linear(base=1.0, total_steps=8)),
        Member(simclr, "simclr", weight=2.0, fields={"image": "pair"}, networks={"projector": "pair_projector"}),
    )
    return combine(members=members)


CASES = {
    "combine": Case(
        _make,
        {"image": (HEIGHT, WIDTH, 3), "pair": (2, HEIGHT, WIDTH, 3)},
        hidden=lambda outputs: outputs["mae"].masked,
        seen=lambda outputs: outputs["mae"].prediction,
    )
}
