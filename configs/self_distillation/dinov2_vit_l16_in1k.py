"""DINOv2's short recipe, ViT-L/16, ImageNet-1k (Oquab et al., 2023, arXiv:2304.07193, and the authors' code).

    vfm train --config=configs/self_distillation/dinov2_vit_l16_in1k.py --workdir=runs/dinov2_short

To reach: 81.6 % top-1 by k-NN, 82.9 % by linear probe (the authors' README). Not yet run by us.
It follows the code's vitl16_short.yaml: teacher logits centred, one head for crops and patches, an epoch of 1250
steps. The blur has the probabilities that the code has in effect, never for the first global crop and 0.9 for the
second: it hands 1 - p to torchvision, which applies an operation with the probability it is given. Our difference:
blocks are skipped example by example, where the authors compute a part of the batch.
"""

import math

import ml_collections

from configs.common import IMAGENET_MEAN, IMAGENET_STD, dinov2_crops, dinov2_groups, tiny

EPOCH = 1250  # steps, whatever the data
NORMALIZE = dict(name="normalize", mean=IMAGENET_MEAN, std=IMAGENET_STD)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The recipe; variant is "" or "tiny"."""
    if variant == "tiny":
        return tiny(get_config())
    c = ml_collections.ConfigDict()
    c.title = "DINOv2 ViT-L/16 on ImageNet-1k, the short recipe"
    c.seed = 0
    c.dtype = "bfloat16"
    c.total_steps = 100 * EPOCH

    c.data = dict(name="tfds", dataset="imagenet2012", split="train", canvas_size=512, batch_size=2048)
    c.views = dinov2_crops(global_size=224, local_size=96)

    c.networks = dict(
        encoder=dict(name="vit", variant="L/16", layer_scale=1e-5, drop_path=0.3, drop_path_shape="constant",
                     mask_token=True, position_resampling="bicubic_offset", prefix_positions=1, scan=True),
        head=dict(name="dino_head", out_dim=65536, hidden_dim=2048, bottleneck_dim=256, num_layers=3,
                  learned_scale=True),
    )  # fmt: skip
    c.objective = dict(
        name="dinov2", assignment="center", center_momentum=0.9, student_temperature=0.1, masked_crops=0.5,
        mask_ratio=(0.1, 0.5), dino_weight=1.0, ibot_weight=1.0, koleo_weight=0.1,
        mask_group_size=64, koleo_group_size=64,  # the images of one GPU
        teacher_temperature=dict(name="constant", start=0.04, base=0.07, warmup_steps=30 * EPOCH,
                                 warmup_reaches_base=True),
        teacher_momentum=dict(name="cosine", base=0.992, end=1.0),
    )  # fmt: skip
    c.optimizer = dict(
        name="adamw", b1=0.9, b2=0.999, clip_norm=3.0, clip_over="network", layer_decay=0.9,
        weight_decay=dict(name="cosine", base=0.04, end=0.4),
        groups=dinov2_groups(freeze_steps=1 * EPOCH),
    )  # fmt: skip
    c.schedule = dict(name="cosine", base=0.004 * math.sqrt(c.data.batch_size / 1024), warmup_steps=10 * EPOCH,
                      warmup_reaches_base=True, end=1e-6)  # fmt: skip

    c.eval_data = dict(test=dict(split="validation"))
    c.eval_views = dict(image=dict(ops=(
        dict(name="center_crop", size=224, resize_shorter=256, interpolation="bicubic"), NORMALIZE,
    )))  # fmt: skip
    c.evals = dict(knn=dict(every_steps=10 * EPOCH, num_neighbors=20))
    return c
