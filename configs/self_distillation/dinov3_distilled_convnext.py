"""DINOv3's ConvNeXts, distilled as in the authors' example (Siméoni et al., 2025, arXiv:2508.10104, and the code).

    vfm weights export runs/dinov3_in1k --format=vfm --out=weights/dinov3_l16_in1k
    vfm train --config=configs/self_distillation/dinov3_distilled_convnext.py:t --workdir=runs/dinov3_convnext_t

Arguments: "t", "s", "b", "l". It follows the code's configs distillation_convnext, whose example has a ViT-L/16 of
ImageNet-1k as teacher (dinov3_vit_l16_in1k.py) and ImageNet-1k as data; the released models were distilled from the
7B on LVD-1689M, of which no config is published.

To reach: 42.7, 44.8, 46.3 and 47.8 mIoU on ADE20K by a linear layer (the released models). Not yet run by us.
Students have cells of 32 pixels and see crops of 512; the teacher, with patches of 16, sees them at half the size,
so that both have as many patches: the file's teacher_to_student_resolution_scale=2, which the code reads by a name
that never is there, and so does not apply. A batch has the 4096 images that the file names for 16 nodes.
"""

import math

import ml_collections

from configs.common import IMAGENET_MEAN, IMAGENET_STD, dinov2_crops, tiny

EPOCH = 1250  # steps, whatever the data


def get_config(variant: str = "t") -> ml_collections.ConfigDict:
    """The recipe; variant is "t", "s", "b", "l" or "tiny"."""
    if variant == "tiny":
        c = get_config()
        c.objective.koleo_group_size = c.objective.mask_group_size = 16  # which divide the small batch
        return tiny(c, image_size=96)  # 3 x 3 cells
    c = ml_collections.ConfigDict()
    c.title = f"DINOv3 ConvNeXt-{variant.upper()} distilled on ImageNet-1k"
    c.seed = 0
    c.dtype = "bfloat16"
    c.total_steps = 500 * EPOCH

    c.data = dict(name="tfds", dataset="imagenet2012", split="train", canvas_size=512, batch_size=4096)
    c.views = dinov2_crops(global_size=512, local_size=224)

    head = dict(name="dino_head", out_dim=65536, hidden_dim=2048, bottleneck_dim=256, num_layers=3,
                unit_prototypes=False)  # fmt: skip
    file = "weights/dinov3_l16_in1k"
    c.networks = dict(
        encoder=dict(name="convnext", variant=variant.upper(), mean_token=True, drop_path=0.0),
        head=head,
        patch_head=head,
        teacher=dict(name="vit", variant="L/16", positions="rope", rope_base=100.0, layer_scale=1e-5,
                     mask_token=True, scan=True, weights=file),
        teacher_head=dict(head, weights=file, part="head"),
        teacher_patch_head=dict(head, weights=file, part="patch_head"),
    )  # fmt: skip
    c.objective = dict(
        name="dinov3", sinkhorn_iterations=3, student_temperature=0.1, masked_crops=0.5, mask_ratio=(0.1, 0.5),
        mask_group_size=128, koleo_weight=0.1, koleo_group_size=128,  # the images of one of a student's 32 GPUs
        teacher_temperature=dict(name="constant", start=0.04, base=0.07, warmup_steps=120 * EPOCH),
        teacher_momentum=dict(name="linear", base=0.994, end=1.0),
    )  # fmt: skip
    c.optimizer = dict(
        name="adamw", b1=0.9, b2=0.999, clip_norm=3.0, clip_over="network", layer_decay=1.0,
        weight_decay=dict(name="linear", base=0.02 if variant == "b" else 0.04, end=0.2),
        groups=(
            dict(match=r"/prototypes/", freeze_steps=1 * EPOCH),
            dict(match=r"(^|/)(bias|scale|gamma)$", weight_decay=0.0),
            dict(match=r".*"),
        ),
    )  # fmt: skip
    scale, peak = 4 * math.sqrt(c.data.batch_size / 1024), 2e-4 if variant in ("t", "s") else 1e-4
    c.schedule = dict(name="cosine", start=1e-6, base=peak * scale, end=1e-6 * scale, warmup_steps=80 * EPOCH,
                      decay_steps=420 * EPOCH - 1)  # fmt: skip  # the last step has `end`

    c.eval_data = dict(test=dict(split="validation"))
    c.eval_views = dict(image=dict(ops=(
        dict(name="center_crop", size=224, resize_shorter=256, interpolation="bicubic"),
        dict(name="normalize", mean=IMAGENET_MEAN, std=IMAGENET_STD),
    )))  # fmt: skip
    c.evals = dict(knn=dict(every_steps=10 * EPOCH, num_neighbors=20))
    return c
