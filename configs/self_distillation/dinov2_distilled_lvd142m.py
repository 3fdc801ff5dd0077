"""DINOv2's smaller models, distilled from the ViT-g/14 on LVD-142M (Oquab et al., 2023, arXiv:2304.07193, Sec. 5).

    vfm weights export runs/dinov2_g14 --format=vfm --out=weights/dinov2_g14
    vfm train --config=configs/self_distillation/dinov2_distilled_lvd142m.py:l14 --workdir=runs/dinov2_l14_distilled

Arguments: "s14", "b14", "l14", and with "_reg4" four register tokens in student and teacher (Darcet et al., 2023,
arXiv:2309.16588; weights/dinov2_g14_reg4). LVD-142M is not public: put images of your own under data/lvd142m.

To reach: 79.0, 82.1 and 83.5 % top-1 by k-NN, 81.1, 84.5 and 86.3 % by linear probe. Not yet run by us.
Teacher and its heads are frozen; the student sees every patch, drops no block, and learns all patches of both global
crops; the average of the student is the result. Rate, decay, batch and lengths are Table 16's; what it does not tell
is vitg14.yaml's, for there is no config of the distillation in the code.
"""

import ml_collections

from configs.common import dinov2_crops, dinov2_groups, tiny

EPOCH = 1250  # steps, whatever the data


def get_config(variant: str = "l14") -> ml_collections.ConfigDict:
    """The recipe; variant is "s14", "b14" or "l14", perhaps with "_reg4", or "tiny"."""
    if variant == "tiny":
        return tiny(get_config())
    size, _, reg4 = variant.partition("_")
    c = ml_collections.ConfigDict()
    c.title = f"DINOv2 ViT-{size[0].upper()}/14 distilled on LVD-142M{' with registers' if reg4 else ''}"
    c.seed = 0
    c.dtype = "bfloat16"
    c.total_steps = 500 * EPOCH

    c.data = dict(name="folder", path="data/lvd142m", canvas_size=512, batch_size=2048)
    c.views = dinov2_crops(global_size=224, local_size=98)

    common = dict(name="vit", prefix_positions=1, layer_scale=1e-5, scan=True) | (
        dict(registers=4, position_resampling="bicubic_antialias") if reg4 else
        dict(position_resampling="bicubic_offset")
    )  # fmt: skip
    head = dict(name="dino_head", out_dim=131072, hidden_dim=2048, num_layers=3, learned_scale=True)
    heads = dict(head=dict(head, bottleneck_dim=384), patch_head=dict(head, bottleneck_dim=256))
    file = f"weights/dinov2_g14{'_reg4' if reg4 else ''}"
    c.networks = dict(
        encoder=dict(common, variant={"s14": "S/14", "b14": "B/14", "l14": "L/14"}[size], drop_path=0.0,
                     remat="full" if size == "l14" else "none"),
        **heads,
        teacher=dict(common, variant="g-dinov2/14", mlp="swiglu", activation="silu", mask_token=True, weights=file),
        **{f"teacher_{role}": dict(one, weights=file, part=role) for role, one in heads.items()},
    )  # fmt: skip
    c.objective = dict(
        name="dinov2", assignment="sinkhorn", sinkhorn_iterations=3, student_temperature=0.1, masked_crops=1.0,
        mask_ratio=(1.0, 1.0), exact_masks=True, mask_group_size=8, dino_weight=1.0, ibot_weight=1.0,
        koleo_weight=0.1, koleo_group_size=32,  # how many images the authors have on one GPU is not told
        teacher_temperature=dict(name="constant", start=0.04, base=0.07, warmup_steps=30 * EPOCH,
                                 warmup_reaches_base=True),
        teacher_momentum=dict(name="cosine", base=0.994, end=1.0),
    )  # fmt: skip
    c.optimizer = dict(
        name="adamw", b1=0.9, b2=0.999, clip_norm=3.0, clip_over="network",
        weight_decay=dict(name="cosine", base=0.04, end=0.2),
        groups=dinov2_groups(freeze_steps=1 * EPOCH),
    )  # fmt: skip
    c.schedule = dict(name="cosine", base=1e-3, warmup_steps=80 * EPOCH, warmup_reaches_base=True, end=1e-6)
    return c
