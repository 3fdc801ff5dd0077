"""The facts of DINOv3's ViTs distilled from the 7B: the code's config of the ViT-L/16, and the released sizes."""

from tests.recipes.dinov2 import encoder, epoch, of_encoder, stage_of
from tests.recipes.dinov3 import PROSE as OF_ALL
from tests.recipes.dinov3 import readers

DISTILLED = "configs/self_distillation/dinov3_distilled_lvd1689m.py"
RELEASED = ("s16", "s16plus", "b16", "h16plus")
STAGES = {("dinov3", "vit_l16", "distill_lvd1689m"): f"{DISTILLED}:l16"} | {
    ("dinov3", f"vit_{size}", "released_distilled"): f"{DISTILLED}:{size}" for size in RELEASED
}
PROSE = OF_ALL | {"note", "paper_schedule.then", "students_gpu_ranges"}
COMPARED = 10


def _teacher(recipe):
    size, patch = recipe["networks"]["teacher"]["variant"].split("/")
    return f"ViT-{size}" if recipe["networks"]["teacher"]["weights"] else f"a random one of patches of {patch}"


def _decay(recipe):
    schedule = stage_of(recipe, "continue")["schedule"]
    epochs = (schedule["decay_steps"] + 1) / epoch(recipe)
    per = schedule["end"] / 4 / (recipe["data"]["batch_size"] / 1024) ** 0.5
    return f"half-cosine rise {schedule['base']:g} -> {per:.0e} over {epochs:g} epochs".replace("e-0", "e-")


READERS = readers("continue") | {
    "arch.rope_base": of_encoder("rope_base"),
    "arch.ffn": lambda r: encoder(r).mlp,
    "teacher": _teacher,
    "schedule.decay": _decay,
    "paper_schedule.steps": lambda r: stage_of(r, "distill")["total_steps"],
    "paper_schedule.cooldown_steps": lambda r: stage_of(r, "cool_down")["total_steps"],
    "paper_schedule.cooldown": lambda r: stage_of(r, "cool_down")["schedule"]["name"],
}
