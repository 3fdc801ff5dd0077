"""BiT's own pretraining: Kolesnikov et al., 2020, Sec. 3.3; three data sets in one table."""

from tests.recipe_facts import given, op
from tests.recipes.supervised import BIT
from vfm_jax.cli import load_recipe

STAGES = {("bit", "paper", "pretrain_upstream"): f"{BIT}:paper_m"}
COMPARED = 10
SIZES = ("S", "M", "L")


def _of(size):
    return load_recipe(f"{BIT}:paper_{size.lower()}")


def _decay(recipe):
    """The drops of each size, those of one kind together."""
    sizes = {}
    for size in SIZES:
        sizes.setdefault(",".join(map(str, _of(size)["schedule"]["drop_epochs"])), []).append(size)
    told = " or ".join(f"{drops} ({','.join(names)})" for drops, names in sizes.items())
    return f"x{recipe['schedule']['factor']:g} at epochs {told}"


READERS = {
    **{f"schedule.epochs.{size}": lambda r, size=size: _of(size)["total_epochs"] for size in SIZES},
    "schedule.warmup_steps": given("schedule", "warmup_steps"),
    "schedule.decay": _decay,
    "image_size": op("random_resized_crop", "size"),
}
