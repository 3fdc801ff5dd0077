"""DINOv3's recipe for ImageNet-1k, ViT-L/16 (Siméoni et al., 2025, arXiv:2508.10104, and the authors' code).

    vfm train --config=configs/self_distillation/dinov3_vit_l16_in1k.py --workdir=runs/dinov3_in1k

To reach: 82.0 % top-1 by k-NN, 83.5 % by linear probe (the authors' README). Not yet run by us.
It follows the code's vitl_im1k_lin834.yaml, which is DINOv2's short recipe with rotary positions, Sinkhorn-Knopp, two
heads whose prototypes are a linear layer, and masks that hide exactly their share; there is no Gram anchoring in it.
Our difference is that of dinov2_vit_l16_in1k.py.
"""

import math

import ml_collections

from configs.common import IMAGENET_MEAN, IMAGENET_STD, dinov2_crops, dinov2_groups, tiny

EPOCH = 1250  # steps, whatever the data


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The recipe; variant is "" or "tiny"."""
    if variant == "tiny":
        return tiny(get_config())
    c = ml_collections.ConfigDict()
    c.title = "DINOv3 ViT-L/16 on ImageNet-1k"
    c.seed = 0
    c.dtype = "bfloat16"
    c.total_steps = 100 * EPOCH

    c.data = dict(name="tfds", dataset="imagenet2012", split="train", canvas_size=512, batch_size=2048)
    c.views = dinov2_crops(global_size=224, local_size=96)

    head = dict(name="dino_head", out_dim=65536, hidden_dim=2048, bottleneck_dim=256, num_layers=3,
                unit_prototypes=False)  # fmt: skip
    c.networks = dict(
        encoder=dict(name="vit", variant="L/16", positions="rope", rope_base=100.0, layer_scale=1e-5, drop_path=0.3,
                     drop_path_shape="constant", mask_token=True, scan=True),
        head=head,
        patch_head=head,
    )  # fmt: skip
    c.objective = dict(
        name="dinov3", sinkhorn_iterations=3, student_temperature=0.1, masked_crops=0.5, mask_ratio=(0.1, 0.5),
        mask_group_size=64, koleo_weight=0.1, koleo_group_size=64,  # the images of one GPU
        teacher_temperature=dict(name="constant", start=0.04, base=0.07, warmup_steps=30 * EPOCH,
                                 warmup_reaches_base=True),
        teacher_momentum=dict(name="cosine", base=0.992, end=1.0),
    )  # fmt: skip
    c.optimizer = dict(
        name="adamw", b1=0.9, b2=0.999, clip_norm=3.0, clip_over="network", layer_decay=0.9,
        weight_decay=dict(name="cosine", base=0.04, end=0.4),
        groups=dinov2_groups(freeze_steps=1 * EPOCH),
    )  # fmt: skip
    c.schedule = dict(name="cosine", base=0.001 * 4 * math.sqrt(c.data.batch_size / 1024), warmup_steps=10 * EPOCH,
                      warmup_reaches_base=True, end=1e-6)  # fmt: skip

    c.eval_data = dict(test=dict(split="validation"))
    c.eval_views = dict(image=dict(ops=(
        dict(name="center_crop", size=224, resize_shorter=256, interpolation="bicubic"),
        dict(name="normalize", mean=IMAGENET_MEAN, std=IMAGENET_STD),
    )))  # fmt: skip
    c.evals = dict(knn=dict(every_steps=10 * EPOCH, num_neighbors=20))
    return c
