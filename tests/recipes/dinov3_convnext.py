"""The facts of DINOv3's example of distilling ConvNeXts: of all sizes together."""

from configs.self_distillation.dinov3_distilled_convnext import get_config
from tests.recipes.dinov2 import FIELDS, epoch, group

CONVNEXT = "configs/self_distillation/dinov3_distilled_convnext.py"
STAGES = {("dinov3", "convnext", "distill_example"): CONVNEXT}
COMPARED = 10


def _short(number):
    return f"{number:.0e}".replace("e-0", "e-")


def _scale(recipe):
    return 4 * (recipe["data"]["batch_size"] / 1024) ** 0.5


def _peaks(recipe):
    """Of the sizes, the lower first."""
    del recipe
    found = {c.schedule.base / _scale(c) for c in map(get_config, "tsbl")}
    return " or ".join(map(_short, sorted(found))) + " by size"


def _decay(recipe):
    starts = sorted({c.optimizer.weight_decay.base for c in map(get_config, "tsbl")})
    decay = recipe["optimizer"]["weight_decay"]
    return f"rises {decay['name']}ly {'/'.join(map(str, starts))} -> {decay['end']}"


READERS = FIELDS | {
    "schedule.freeze_last_layer_epochs": lambda r: group("prototypes", "freeze_steps")(r) / epoch(r),
    "schedule.decay": lambda r: f"{r['schedule']['name']} to {_short(r['schedule']['end'] / _scale(r))}",
    "optim.lr_peak": _peaks,
    "optim.weight_decay": _decay,
    "ema.schedule": lambda r: (
        f"{r['objective']['teacher_momentum']['name']} over {r['total_steps'] / epoch(r):g} epochs"
    ),
}
