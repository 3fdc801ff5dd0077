"""The facts of DINOv3's third stage, which is five here, one for each pair of resolutions."""

from tests.recipes.dinov2 import epoch, op
from tests.recipes.dinov3 import LARGEST, readers
from tests.recipes.dinov3 import PROSE as OF_ALL
from vfm_jax.train.stages import read_stages

STAGES = {("dinov3", "vit_7b16", "stage3_high_res"): f"{LARGEST}:high_res"}
PROSE = OF_ALL | {"koleo.distributed", "batch_per_gpu"}


def _stages(recipe):
    return [stage.recipe for stage in read_stages(recipe)]


def _size(stage, field):
    return op(field, "random_resized_crop", what="size")(stage)


def _heats(stage):
    """0 for a temperature that does not change."""
    given = stage["objective"]["teacher_temperature"]
    return 0 if isinstance(given, float) else given["warmup_steps"]


def _same(read):
    """What all five have."""

    def one(recipe):
        (found,) = {read(stage) for stage in _stages(recipe)}
        return found

    return one


def _steps(recipe):
    return sum(stage["total_steps"] for stage in _stages(recipe))


READERS = readers() | {
    "schedule.steps": _steps,
    "schedule.epochs": lambda r: _steps(r) / epoch(r),
    "schedule.decay": lambda r: "rises from 0" if _stages(r)[0]["schedule"]["base"] == 0 else "constant",
    "batch_size": _same(lambda stage: stage["data"]["batch_size"]),
    "temps.warmup_epochs": _same(_heats),
    "gram.weight": _same(lambda stage: stage["objective"]["gram_weight"]),
    "gram.rep_update": _same(lambda stage: stage["objective"]["gram_refreshes"] > 0),
    "local_loss_weight": _same(lambda stage: stage["objective"]["local_weight"]),
    "koleo.group_size": _same(lambda stage: stage["objective"]["koleo_group_size"]),
    "crops.pairs_global_local": lambda r: [[_size(s, "global"), _size(s, "local")] for s in _stages(r)],
    "crops.pair_ratios": lambda r: [stage["total_steps"] / _steps(r) for stage in _stages(r)],
    "crops.gram_teacher_sizes": lambda r: [_size(stage, "gram") for stage in _stages(r)],
}
