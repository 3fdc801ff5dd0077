"""The facts of DINOv2's last steps at a high resolution, and of registers."""

from tests.recipes.dinov2 import LONG, encoder, op, stage_of

DISTILLED = "configs/self_distillation/dinov2_distilled_lvd142m.py"

STAGES = {
    ("dinov2", "vit_g14", "high_res_518"): LONG,
    ("dinov2", "vit_g14_reg4", "pretrain_with_registers"): f"{LONG}:reg4",
    **{
        ("dinov2", f"vit_{size}_reg4", "pretrain_with_registers"): f"{DISTILLED}:{size}_reg4"
        for size in ("s14", "b14", "l14")
    },
}
PROSE = {"schedule.note", "recipe"}
COMPARED = 1
READERS = {
    "init_from": lambda r: {"pretrain": "dinov2/vit_g14/pretrain_lvd142m"}[r["stages"][0]["name"]],
    "schedule.steps": lambda r: stage_of(r, "high_res")["total_steps"],
    "crops.global_size": lambda r: op("global", "random_resized_crop", what="size")(stage_of(r, "high_res")),
    "registers": lambda r: encoder(r).registers,
}
