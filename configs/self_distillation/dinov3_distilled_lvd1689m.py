"""DINOv3's smaller ViTs, distilled from the 7B on LVD-1689M (Siméoni et al., 2025, arXiv:2508.10104, Sec. 5.2).

    vfm weights export runs/dinov3_high_res --format=vfm --out=weights/dinov3_7b
    vfm train --config=configs/self_distillation/dinov3_distilled_lvd1689m.py:l16 --workdir=runs/dinov3_l16

Arguments: "s16", "s16plus", "b16", "l16", "h16plus". LVD-1689M is not public: put images of your own under
data/lvd1689m.

To reach: 54.9 mIoU on ADE20K by a linear layer and 90.2 % top-1 on ImageNet-ReaL (ViT-L/16); 47.0, 48.8, 51.8 and
54.8 mIoU for the others, in the order above. Not yet run by us.
Stages: `distill`, a million steps, and `cool_down`, 250 000 more, have the paper's lengths; `continue` is the code's
dinov3_vitl16_lvd1689m_distilled.yaml, 20 epochs that go on from an earlier student. All other settings are that
file's, for the paper tells none: the first stage's rate is the last one's, and the average's momentum rises in the
later two. The high-resolution phase, without Gram anchoring, has no settings published. The authors train all
sizes at once, each on GPUs of its own that share the batch.
"""

import math

import ml_collections

from configs.common import dinov2_crops, dinov2_groups, tiny

EPOCH = 1250  # steps, whatever the data
SIZES = {"s16": "S/16", "s16plus": "S+/16", "b16": "B/16", "l16": "L/16", "h16plus": "H+/16"}
GPUS = {"s16": 48, "s16plus": 48, "b16": 80, "l16": 120, "h16plus": 120}  # of each student; that of the H+ is ours


def get_config(variant: str = "l16") -> ml_collections.ConfigDict:
    """The recipe; variant is "s16", "s16plus", "b16", "l16", "h16plus" or "tiny"."""
    if variant == "tiny":
        return tiny(get_config())
    c = ml_collections.ConfigDict()
    c.title = f"DINOv3 ViT-{SIZES[variant]} distilled on LVD-1689M"
    c.seed = 0
    c.dtype = "bfloat16"
    c.total_steps = 1_000_000

    c.data = dict(name="folder", path="data/lvd1689m", canvas_size=512, batch_size=1920)
    c.views = dinov2_crops(global_size=256, local_size=112, flip=0.0)

    common = dict(name="vit", positions="rope", rope_base=100.0, registers=4, key_bias=False, norm_epsilon=1e-5,
                  layer_scale=1e-5, scan=True)  # fmt: skip
    swiglu = dict(mlp="swiglu", activation="silu")
    head = dict(name="dino_head", num_layers=3, unit_prototypes=False)
    heads = dict(
        head=dict(head, out_dim=262144, hidden_dim=8192, bottleneck_dim=512),
        patch_head=dict(head, out_dim=98304, hidden_dim=4096, bottleneck_dim=384),
    )
    file = "weights/dinov3_7b"
    c.networks = dict(
        encoder=dict(common, variant=SIZES[variant], **(swiglu if "plus" in variant else {}), rope_rescale=2.0,
                     drop_path=0.0, remat="full"),
        **heads,
        teacher=dict(common, **swiglu, variant="7B/16", qkv_bias=False, local_class_norm=True, mask_token=True,
                     weights=file),
        **{f"teacher_{role}": dict(one, weights=file, part=role) for role, one in heads.items()},
    )  # fmt: skip
    images = c.data.batch_size // GPUS[variant]  # on one GPU
    c.objective = dict(
        name="dinov3", sinkhorn_iterations=3, student_temperature=0.1, masked_crops=0.5, mask_ratio=(0.1, 0.5),
        mask_group_size=images, koleo_weight=0.1, koleo_group_size=images, teacher_temperature=0.07,
        teacher_momentum=dict(name="cosine", base=0.994, end=1.0),
    )  # fmt: skip
    c.optimizer = dict(
        name="adamw", b1=0.9, b2=0.999, weight_decay=0.04, clip_norm=3.0, clip_over="network", layer_decay=0.99,
        groups=dinov2_groups(freeze_steps=0),
    )  # fmt: skip
    rate = 5e-5 * 4 * math.sqrt(c.data.batch_size / 1024)
    c.schedule = dict(name="cosine", base=0.0, end=rate, decay_steps=10 * EPOCH - 1)  # the last of these has `end`
    c.stages = (
        dict(name="distill", objective=dict(teacher_momentum=0.994)),
        dict(name="cool_down", total_steps=250_000, schedule=dict(base=rate, end=0.0, decay_steps=None)),
        dict(name="continue", total_steps=20 * EPOCH),
    )
    return c
