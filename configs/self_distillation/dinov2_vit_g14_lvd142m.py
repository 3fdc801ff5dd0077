"""DINOv2, ViT-g/14 on LVD-142M and ViT-L/14 on ImageNet-22k (Oquab et al., 2023, arXiv:2304.07193, and the code).

    vfm train --config=configs/self_distillation/dinov2_vit_g14_lvd142m.py --workdir=runs/dinov2_g14
    vfm train --config=configs/self_distillation/dinov2_vit_g14_lvd142m.py:reg4 --workdir=runs/dinov2_g14_reg4
    vfm train --config=configs/self_distillation/dinov2_vit_g14_lvd142m.py:vit_l14_in22k --workdir=runs/dinov2_l14

Stage `pretrain` is 625 000 steps at 224 pixels (Table 16), stage `high_res` 10 000 more at 518 with every schedule as
much shorter (App. B). With the argument "reg4" the ViT has four register tokens (Darcet et al., 2023,
arXiv:2309.16588). LVD-142M is not public: put images of your own under data/lvd142m.

To reach: 83.5 % top-1 by k-NN, 86.5 % by linear probe (ViT-g/14; with registers 83.7 and 87.1); 82.0 and 84.5 % for
the ViT-L/14 on ImageNet-22k. Not yet run by us.
It follows the code's vitg14.yaml and vitl14.yaml. Of the high-resolution stage the paper gives neither the lowered
learning rate, of which we take a tenth, nor the local crops' size, which we keep. SwiGLU's width is the code's two
thirds of four times the ViT's, to the next multiple of 8. dinov2_vit_l16_in1k.py says what else differs.
"""

import math

import ml_collections

from configs.common import dinov2_crops, dinov2_groups, tiny

EPOCH = 1250  # steps, whatever the data


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The recipe; variant is "", "reg4", "vit_l14_in22k" or "tiny"."""
    if variant == "tiny":
        c = get_config()
        c.objective.koleo_group_size = c.objective.mask_group_size = 16  # which divide the small batch
        return tiny(c)
    c = ml_collections.ConfigDict()
    c.title = {"": "DINOv2 ViT-g/14 on LVD-142M", "reg4": "DINOv2 ViT-g/14 with registers on LVD-142M",
               "vit_l14_in22k": "DINOv2 ViT-L/14 on ImageNet-22k"}[variant]  # fmt: skip
    c.seed = 0
    c.dtype = "bfloat16"
    c.total_steps = 500 * EPOCH

    folder = "imagenet22k" if variant == "vit_l14_in22k" else "lvd142m"
    # As the authors' FSDP; the state alone is more than a chip has otherwise.
    c.mesh = dict(data=1, fsdp=-1)
    c.data = dict(name="folder", path=f"data/{folder}", canvas_size=512, batch_size=3072)
    c.views = dinov2_crops(global_size=224, local_size=98)

    size = {"variant": "L/14", "mlp_dim": 2736} if variant == "vit_l14_in22k" else {"variant": "g-dinov2/14"}
    registers = {"registers": 4, "position_resampling": "bicubic_antialias"} if variant == "reg4" else {
        "position_resampling": "bicubic_offset"}  # fmt: skip
    head = dict(name="dino_head", out_dim=131072, hidden_dim=2048, num_layers=3, learned_scale=True)
    c.networks = dict(
        encoder=dict(name="vit", **size, **registers, mlp="swiglu", activation="silu", prefix_positions=1,
                     layer_scale=1e-5, drop_path=0.4, drop_path_shape="constant", mask_token=True, scan=True,
                     remat="full"),
        head=dict(head, bottleneck_dim=384),
        patch_head=dict(head, bottleneck_dim=256),
    )  # fmt: skip
    images = 32 if variant == "vit_l14_in22k" else 12  # of one GPU
    c.objective = dict(
        name="dinov2", assignment="sinkhorn", sinkhorn_iterations=3, student_temperature=0.1, masked_crops=0.5,
        mask_ratio=(0.1, 0.5), mask_group_size=images, dino_weight=1.0, ibot_weight=1.0, koleo_weight=0.1,
        koleo_group_size=images,
        teacher_temperature=_heating(30 * EPOCH),
        teacher_momentum=dict(name="cosine", base=0.994, end=1.0),
    )  # fmt: skip
    c.optimizer = dict(
        name="adamw", b1=0.9, b2=0.999, clip_norm=3.0, clip_over="network", layer_decay=1.0,
        weight_decay=dict(name="cosine", base=0.04, end=0.2),
        groups=dinov2_groups(freeze_steps=1 * EPOCH),
    )  # fmt: skip
    c.schedule = dict(name="cosine", base=2e-4 * math.sqrt(c.data.batch_size / 1024), warmup_steps=80 * EPOCH,
                      warmup_reaches_base=True, end=1e-6)  # fmt: skip
    if variant == "vit_l14_in22k":
        return c

    shorter = 10_000 / c.total_steps
    c.stages = (
        dict(name="pretrain"),
        dict(
            name="high_res",
            total_steps=10_000,
            views=dinov2_crops(global_size=518, local_size=98),
            objective=dict(teacher_temperature=_heating(round(30 * EPOCH * shorter))),
            optimizer=dict(groups=dinov2_groups(freeze_steps=round(1 * EPOCH * shorter))),
            schedule=dict(base=c.schedule.base / 10, warmup_steps=round(80 * EPOCH * shorter)),
        ),
    )
    return c


def _heating(steps: int) -> dict:
    """The teacher's temperature, rising."""
    return dict(name="constant", start=0.04, base=0.07, warmup_steps=steps, warmup_reaches_base=True)
