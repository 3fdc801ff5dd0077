"""iBOT's facts: Zhou et al., 2021."""

from tests.recipe_facts import given, op
from tests.recipes.dino import CROPS, at, frozen, warmup

S16, B16 = (f"configs/self_distillation/ibot_vit_{size}_in1k.py" for size in ("s16", "b16"))
STAGES = {
    ("ibot", "vit_s16", "pretrain_800ep"): S16,
    ("ibot", "vit_b16", "released"): B16,
    ("ibot", "vit_b16_rand", "released"): f"{B16}:vit_b16_rand",
    ("ibot", "vit_l16", "released"): f"{B16}:vit_l16",
    ("ibot", "vit_l16_rand", "released"): f"{B16}:vit_l16_rand",
}
PROSE = {"mask.note"}
COMPARED = 1  # of the larger models the facts tell the shape of masks alone


def _both(field):
    return lambda r: [at("objective", field, end=end)(r) for end in ("start", "base")]


def _ranges(number):
    return lambda r: [number(low, high) for low, high in r["objective"]["mask_ratios"]]


def _aspect(recipe):
    least = recipe["objective"]["mask_min_aspect"]
    return [least, round(1 / least, 2)]


def _center_momentum(recipe):
    (momentum,) = {recipe["objective"][field] for field in ("center_momentum", "patch_center_momentum")}
    return momentum


READERS = {
    **CROPS,
    "optim.weight_decay": at("optimizer", "weight_decay"),
    "optim.weight_decay_end": at("optimizer", "weight_decay", end="end"),
    "optim.freeze_last_layer_epochs": frozen("freeze_epochs"),
    "schedule.epochs": given("total_epochs"),
    "heads.shared": lambda r: "patch_head" not in r["networks"],
    "heads.out_dim": given("networks", "head", "out_dim"),
    "heads.norm_last_layer": lambda r: not r["networks"]["head"]["learned_scale"],
    "temps.student": given("objective", "student_temperature"),
    "temps.teacher_cls": _both("teacher_temperature"),
    "temps.teacher_patch": _both("teacher_patch_temperature"),
    "temps.warmup_epochs": warmup("objective", "teacher_temperature"),
    "temps.center_momentum": _center_momentum,
    "ema.start": given("objective", "teacher_momentum", "base"),
    "ema.end": given("objective", "teacher_momentum", "end"),
    "mask.shape": given("objective", "mask_shape"),
    "mask_shape": given("objective", "mask_shape"),
    "mask.pred_ratio": _ranges(lambda low, high: (low + high) / 2),
    "mask.pred_ratio_var": _ranges(lambda low, high: (high - low) / 2),
    "mask.aspect": _aspect,
    "data.interpolation": op("random_resized_crop", "interpolation", field="global"),
}
