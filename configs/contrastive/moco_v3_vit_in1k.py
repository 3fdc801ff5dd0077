"""MoCo v3, ViT, ImageNet-1k (Chen et al., 2021, arXiv:2104.02057, Sec. 4 and 5, and the authors' code).

    vfm train --config=configs/contrastive/moco_v3_vit_in1k.py --workdir=runs/moco_v3                       ViT-S/16
    vfm train --config=configs/contrastive/moco_v3_vit_in1k.py:vit_b16 --workdir=runs/moco_v3
    vfm train --config=configs/contrastive/moco_v3_vit_in1k.py:linear_probe --workdir=runs/moco_v3_probe \
        --config.start_from=runs/moco_v3

To reach: 73.2 % top-1 by linear probe with ViT-S/16, 76.7 % with ViT-B/16. Not yet run by us.
It follows the code: 12 heads in ViT-S; the patch projection is random and stays so; every parameter decays. The
probe of ViT-B is --config.networks.encoder.variant=B/16. The class token starts from a deviation of 0.02 where theirs
is 1e-6, and the first half of the position table tells the column where theirs tells the row.
"""

import ml_collections

from configs.common import IMAGENET_MEAN, IMAGENET_STD, tiny

FLIP = dict(name="flip", probability=0.5)
NORMALIZE = dict(name="normalize", mean=IMAGENET_MEAN, std=IMAGENET_STD)
CROP = dict(name="random_resized_crop", size=224, scale=(0.08, 1.0), interpolation="bilinear")
ENCODERS = {
    "vit_s16": dict(name="vit", variant="S/16", heads=12, positions="sincos2d", pooling="class"),
    "vit_b16": dict(name="vit", variant="B/16", positions="sincos2d", pooling="class"),
}


def get_config(variant: str = "vit_s16") -> ml_collections.ConfigDict:
    """The recipe; variant is "vit_s16" or "vit_b16" (pretraining), "linear_probe" (of ViT-S/16) or "tiny"."""
    if variant == "tiny":
        return tiny(get_config())
    return _linear_probe() if variant == "linear_probe" else _pretrain(variant)


def _imagenet(encoder: str) -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.dtype = "bfloat16"
    c.data = dict(name="tfds", dataset="imagenet2012", split="train", canvas_size=512, batch_size=4096)
    c.networks = dict(encoder=ENCODERS[encoder])
    c.eval_data = dict(test=dict(split="validation"))
    c.eval_views = dict(image=dict(ops=(
        dict(name="center_crop", size=224, resize_shorter=256, interpolation="bilinear"), NORMALIZE,
    )))  # fmt: skip
    return c


def _pretrain(encoder: str) -> ml_collections.ConfigDict:
    c = _imagenet(encoder)
    c.title = f"MoCo v3 ViT-{c.networks.encoder.variant} on ImageNet-1k"
    c.total_epochs = 300

    color = (
        dict(name="color_jitter", brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, probability=0.8,
             random_order=True),
        dict(name="grayscale", probability=0.2),
    )  # fmt: skip
    blur = dict(name="gaussian_blur", kernel_ratio=0.1, sigma=(0.1, 2.0))
    c.views = dict(image=(
        dict(ops=(CROP, *color, dict(blur, probability=1.0), FLIP, NORMALIZE)),
        dict(ops=(CROP, *color, dict(blur, probability=0.1), dict(name="solarize", threshold=0.5, probability=0.2),
                  FLIP, NORMALIZE)),
    ))  # fmt: skip

    mlp = dict(name="projection_head", hidden_dim=4096, out_dim=256, last_norm="plain", unbiased=True)
    c.networks.update(projector=dict(mlp, num_layers=3), predictor=dict(mlp, num_layers=2))
    c.objective = dict(name="moco_v3", temperature=0.2, target_momentum=dict(name="cosine", base=0.99, end=1.0))
    c.optimizer = dict(
        name="adamw", b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1,
        groups=(
            dict(match=r"^encoder/patch_embedding/", lr_scale=0.0),
            dict(match=r".*"),  # biases, scales and the class token decay too
        ),
    )  # fmt: skip
    c.schedule = dict(name="cosine", base=1.5e-4 * c.data.batch_size / 256, warmup_epochs=40, end=0.0)

    c.evals = dict(knn=dict(every_epochs=50, num_neighbors=20))
    return c


def _linear_probe() -> ml_collections.ConfigDict:
    c = _imagenet("vit_s16")
    c.title = "MoCo v3 ViT-S/16, linear probe on ImageNet-1k"
    c.total_epochs = 90
    c.data.batch_size = 1024

    c.views = dict(image=dict(ops=(CROP, FLIP, NORMALIZE)))
    c.networks.head = dict(name="linear_head", num_classes=1000, init_std=0.01)
    c.objective = dict(name="supervised", freeze_encoder=True)
    c.optimizer = dict(name="sgd", momentum=0.9, weight_decay=0.0,
                       groups=(dict(match=r"^encoder/", lr_scale=0.0), dict(match=r".*")))  # fmt: skip
    c.schedule = dict(name="cosine", base=3.0 * c.data.batch_size / 256, end=0.0, hold_epochs=1)

    c.start_from = "runs/moco_v3"
    c.carry = (r"^encoder/",)
    c.evals = dict(classification=dict(every_epochs=5))
    return c
