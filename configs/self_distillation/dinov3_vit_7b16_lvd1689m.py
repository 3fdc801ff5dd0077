"""DINOv3, ViT-7B/16, LVD-1689M (Siméoni et al., 2025, arXiv:2508.10104, Sec. 3.2, 4 and 5.1, and the authors' code).

    vfm train --config=configs/self_distillation/dinov3_vit_7b16_lvd1689m.py --workdir=runs/dinov3_7b
    vfm weights export runs/dinov3_7b --format=vfm --out=weights/dinov3_7b_gram
    vfm train --config=configs/self_distillation/dinov3_vit_7b16_lvd1689m.py:high_res --workdir=runs/dinov3_high_res

Stages: `pretrain`, a million steps at constant rates; `gram_anchor`, 200 000 more in which patches are held as alike
as the Gram teacher has them, which sees crops of twice the resolution; and with the argument "high_res" five, 30 000
steps in all, with crops of up to 768 pixels, which begins with student, teacher and Gram teacher all as the teacher
that `gram_anchor` ended with (the code's README). LVD-1689M is not public: put images of your own under
data/lvd1689m.

To reach: 90.4 % top-1 on ImageNet-ReaL and 55.9 mIoU on ADE20K, both by a linear layer on frozen features. Not yet
run by us. It follows the code's configs dinov3_vit7b16_pretrain, _gram_anchor and _high_res_adapt. Our differences:

- the Gram teacher begins as the teacher that `pretrain` ended with, and is the teacher of the moment from the first
  of three refreshes on; theirs begins as that of a checkpoint of their choice, of 100 000 to 200 000 steps in the
  paper (Sec. 4.3: 55.7 mIoU from those, 54.9 from one of a million). For theirs export such a checkpoint, and give
  the stage networks=dict(gram_teacher=dict(ENCODER, weights=FOLDER)), ENCODER as below;
- the optimizer's moments begin anew with each stage, where `gram_anchor` of theirs resumes;
- resolutions follow one another, each for its share of the steps, where the authors draw one for every batch; the
  learning rate rises over the first, 9000 steps in place of 10 000;
- images are drawn from one folder, without the tenth of batches that is ImageNet-1k alone;
- bfloat16 where the authors multiply in float8.
"""

import math

import ml_collections

from configs.common import dinov2_crops, dinov2_groups, tiny

EPOCH = 1000  # steps, whatever the data
HIGH_RES = (  # share of the steps, pixels of global, local and Gram crops
    (0.3, 512, 112, 768),
    (0.3, 768, 112, 1152),
    (0.3, 768, 168, 1152),
    (0.05, 768, 224, 1152),
    (0.05, 768, 336, 1152),
)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The recipe; variant is "", "high_res" or "tiny"."""
    if variant == "tiny":
        return tiny(get_config())
    c = ml_collections.ConfigDict()
    c.title = "DINOv3 ViT-7B/16 on LVD-1689M"
    c.seed = 0
    c.dtype = "bfloat16"
    c.total_steps = 1000 * EPOCH

    # As the authors' FSDP; the state alone is more than a chip has otherwise.
    c.mesh = dict(data=1, fsdp=-1)
    c.data = dict(name="folder", path="data/lvd1689m", canvas_size=512, batch_size=4096)
    c.views = dinov2_crops(global_size=256, local_size=112, flip=0.0)

    head = dict(name="dino_head", num_layers=3, unit_prototypes=False)
    c.networks = dict(
        encoder=dict(name="vit", variant="7B/16", mlp="swiglu", activation="silu", positions="rope", rope_base=100.0,
                     rope_rescale=2.0, registers=4, qkv_bias=False, key_bias=False, local_class_norm=True,
                     norm_epsilon=1e-5, layer_scale=1e-5, drop_path=0.4, drop_path_shape="constant", mask_token=True,
                     scan=True, remat="full"),
        head=dict(head, out_dim=262144, hidden_dim=8192, bottleneck_dim=512),
        patch_head=dict(head, out_dim=98304, hidden_dim=4096, bottleneck_dim=384),
    )  # fmt: skip
    c.objective = dict(
        name="dinov3", sinkhorn_iterations=3, student_temperature=0.1, masked_crops=0.5, mask_ratio=(0.1, 0.5),
        mask_group_size=16, koleo_weight=0.1, koleo_group_size=16,  # the images of one GPU
        teacher_temperature=dict(name="constant", start=0.04, base=0.07, warmup_steps=100 * EPOCH),
        teacher_momentum=0.994,
    )  # fmt: skip
    c.optimizer = dict(
        name="adamw", b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.04, clip_norm=30.0, clip_over="network",
        layer_decay=0.98, groups=dinov2_groups(freeze_steps=5 * EPOCH),
    )  # fmt: skip
    c.schedule = dict(name="constant", base=_rate(5e-5, c.data.batch_size), warmup_steps=100 * EPOCH)

    if variant == "high_res":
        c.init = dict(weights="weights/dinov3_7b_gram", head="keep")
        c.stages = tuple(_high_res(i, *sizes) for i, sizes in enumerate(HIGH_RES))
        return c
    c.stages = (
        dict(name="pretrain"),
        dict(
            name="gram_anchor",
            total_steps=200 * EPOCH,
            views=dinov2_crops(global_size=256, local_size=112, gram_size=512, flip=0.0),
            objective=dict(
                teacher_temperature=0.07,
                teacher_momentum=0.999,
                gram_weight=dict(name="cosine", base=0.0, end=2.0, decay_steps=1 * EPOCH - 1),
                local_weight=dict(name="cosine", base=1.0, end=0.5, decay_steps=1 * EPOCH - 1),
                gram_refresh_steps=10_000,
                gram_refreshes=3,
            ),
            optimizer=dict(groups=dinov2_groups(freeze_steps=0)),
            schedule=dict(base=_rate(3e-5, 4096), warmup_steps=0),
        ),
    )
    return c


def _high_res(i: int, share: float, global_size: int, local_size: int, gram_size: int) -> dict:
    """One resolution; in the first the learning rate rises."""
    steps, rate = round(30 * EPOCH * share), _rate(1.25e-5, 2048)
    rise = dict(name="cosine", base=0.0, end=rate, decay_steps=min(10 * EPOCH, steps) - 1)
    views = dinov2_crops(global_size, local_size, gram_size, flip=0.0)
    if left := local_size % 16:  # of 168 pixels, patches cover 160
        *ops, normalize = views["local"]["ops"]
        views["local"]["ops"] = (*ops, dict(name="center_crop", size=local_size - left), normalize)
    return dict(
        name=f"high_res_{i + 1}",
        total_steps=steps,
        data=dict(batch_size=2048),
        views=views,
        objective=dict(
            teacher_temperature=0.07,
            teacher_momentum=0.999,
            gram_weight=1.5,
            local_weight=0.5,
            koleo_group_size=16,
            mask_group_size=8,
        ),
        optimizer=dict(groups=dinov2_groups(freeze_steps=0)),
        schedule=rise if i == 0 else dict(name="constant", base=rate, warmup_steps=0),
    )


def _rate(base: float, batch_size: int) -> float:
    """The authors' rule for the learning rate."""
    return base * 4 * math.sqrt(batch_size / 1024)
