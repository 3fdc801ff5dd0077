"""The facts of DINOv3's second stage."""

from tests.recipes.dinov2 import epoch, op, stage_of, value
from tests.recipes.dinov3 import LARGEST, readers
from tests.recipes.dinov3 import PROSE as OF_ALL
from vfm_jax.core.tables import keywords
from vfm_jax.losses.regularizers import gram_anchor

STAGES = {("dinov3", "vit_7b16", "stage2_gram_anchor"): LARGEST}
PROSE = OF_ALL | {"gram.img_level", "gram.ramp", "gram.teacher_downsample", "gram.tokens", "local_loss_weight.ramp"}


def _here(recipe):
    return stage_of(recipe, "gram_anchor")


def _steps_before(recipe):
    return stage_of(recipe, "pretrain")["total_steps"]


def _undistorted(recipe):
    """The Gram teacher's crops have the global crops' draws, and no colours of their own."""
    views = _here(recipe)["views"]
    assert views["gram"]["same_draws_as"] == "global"
    assert [one["name"] for one in views["gram"]["ops"]] == ["random_resized_crop", "flip", "normalize"]
    return "undistorted crop"


OF_RUN = (  # what the first stage began, and had ended by now
    "schedule.warmup_epochs", "optim.freeze_last_layer_epochs", "temps.teacher_warmup", "temps.warmup_epochs",
)  # fmt: skip
READERS = readers("gram_anchor") | {path: readers()[path] for path in OF_RUN} | {
    "schedule.steps": lambda r: _steps_before(r) + _here(r)["total_steps"],
    "schedule.epochs": lambda r: (_steps_before(r) + _here(r)["total_steps"]) / epoch(r),
    "schedule.starts_from_step": _steps_before,
    "gram.weight_start": lambda r: value("gram_weight", "base")(_here(r)),
    "gram.weight_end": lambda r: value("gram_weight", "end")(_here(r)),
    "gram.first_update_step": lambda r: _steps_before(r) + _here(r)["objective"]["gram_refresh_steps"],
    "gram.update_every": lambda r: _here(r)["objective"]["gram_refresh_steps"],
    "gram.max_updates": lambda r: _here(r)["objective"]["gram_refreshes"],
    "gram.normalized": lambda r: keywords(gram_anchor)["normalize"].default,
    "gram.remove_neg": lambda r: keywords(gram_anchor)["negatives"].default != "kept",
    "gram.teacher_crop": lambda r: op("gram", "random_resized_crop", what="size")(_here(r)),
    "crops.gram_teacher_size": lambda r: op("gram", "random_resized_crop", what="size")(_here(r)),
    "gram.teacher_input": _undistorted,
    "local_loss_weight.start": lambda r: value("local_weight", "base")(_here(r)),
    "local_loss_weight.end": lambda r: value("local_weight", "end")(_here(r)),
}  # fmt: skip
