"""Supervised ViTs from scratch on ImageNet-1k, the baseline of MAE (He et al., 2021, arXiv:2111.06377, Table 11).

    vfm train --config=configs/supervised/vit_mae_scratch_in1k.py:b16 --workdir=runs/vit              or l16, or h14

To reach: 82.3 % top-1 (B/16), 82.6 % (L/16), 83.1 % (H/14), with averaged weights. Not yet run by us.
It follows the table, and MAE's fine-tuning in what the table leaves open: the crop's scale, how often images are
mixed, the fixed positions and the mean of the patches before the head.
"""

import ml_collections

from configs.common import IMAGENET_MEAN, IMAGENET_STD, tiny

EPOCHS = {"b16": 300, "l16": 200, "h14": 200}
DROP_PATH = {"b16": 0.1, "l16": 0.2, "h14": 0.2}
NORMALIZE = dict(name="normalize", mean=IMAGENET_MEAN, std=IMAGENET_STD)


def get_config(size: str = "b16") -> ml_collections.ConfigDict:
    """The recipe; size is "b16", "l16", "h14" or "tiny"."""
    if size == "tiny":
        return tiny(get_config())
    variant = f"{size[0].upper()}/{size[1:]}"
    c = ml_collections.ConfigDict()
    c.title = f"ViT-{variant} from scratch with labels on ImageNet-1k"
    c.seed = 0
    c.dtype = "bfloat16"
    c.total_epochs = EPOCHS[size]

    c.data = dict(name="tfds", dataset="imagenet2012", split="train", canvas_size=512, batch_size=4096)
    c.views = dict(image=dict(ops=(
        dict(name="random_resized_crop", size=224, scale=(0.08, 1.0), interpolation="bicubic"),
        dict(name="flip", probability=0.5),
        dict(name="rand_augment", magnitude=9, magnitude_std=0.5, num_ops=2, increasing=True),
        NORMALIZE,
    )))
    c.mix = dict(
        num_classes=1000, mixup=0.8, cutmix=1.0, probability=1.0, switch_probability=0.5, label_smoothing=0.1
    )
    c.networks = dict(
        encoder=dict(name="vit", variant=variant, positions="sincos2d", pooling="mean", norm_pooled=True,
                     drop_path=DROP_PATH[size]),
        head=dict(name="linear_head", num_classes=1000, init_std=2e-5),
    )  # fmt: skip
    c.objective = dict(name="supervised")
    c.optimizer = dict(name="adamw", b1=0.9, b2=0.95, weight_decay=0.3)
    c.schedule = dict(name="cosine", base=1e-4 * c.data.batch_size / 256, warmup_epochs=20, end=0.0)
    c.ema = dict(momentum=0.9999)

    c.eval_data = dict(test=dict(split="validation"))
    c.eval_views = dict(image=dict(ops=(
        dict(name="center_crop", size=224, resize_shorter=256, interpolation="bicubic"), NORMALIZE,
    )))
    c.evals = dict(classification=dict(every_epochs=10))
    return c
