"""Facts of the supervised baseline of MAE: He et al., 2021, Table 11."""

import pathlib

from tests.recipe_facts import given, ops
from vfm_jax.cli import load_recipe

SCRATCH = "configs/supervised/vit_mae_scratch_in1k.py"
STAGES = {("mae", "scratch_supervised", "supervised_1k"): SCRATCH}
SIZES = {"B": "b16", "L": "l16", "H": "h14"}


def _of(size):
    """The recipe of another size: the facts of all three stand in one table."""
    return load_recipe(f"{pathlib.Path(__file__).parents[2] / SCRATCH}:{SIZES[size]}")


READERS = {
    **{f"epochs.{size}": lambda r, size=size: _of(size)["total_epochs"] for size in SIZES},
    **{f"drop_path.{size}": lambda r, size=size: _of(size)["networks"]["encoder"]["drop_path"] for size in SIZES},
    "data.rand_augment": lambda r: "({magnitude:g},{magnitude_std:g})".format(**ops(r, "rand_augment")[0]),
    "ema": given("ema", "momentum"),
}
