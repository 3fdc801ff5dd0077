"""SimMIM, ViT-B/16, ImageNet-1k (Xie et al., 2021, arXiv:2111.09886, Sec. 4.1, and the authors' code).

    vfm train --config=configs/masked/simmim_vit_b16_in1k.py --workdir=runs/simmim                       800 epochs
    vfm train --config=configs/masked/simmim_vit_b16_in1k.py:finetune --workdir=runs/simmim_finetune \
        --config.start_from=runs/simmim

To reach: 83.8 % top-1 after fine-tuning. Not yet run by us.
It follows the code: learning rates are for 512 examples, and BEiT's ViT has offsets of queries and values alone, one
table of relative positions for all blocks, and none that are absolute. Fine-tuning goes on with that one table, where
theirs copies it into every block; its cosine falls from the end of the warm-up, where theirs is counted from the
first step.
Color jitter is in their settings, and timm leaves it out beside RandAugment.
"""

import ml_collections

from configs.common import IMAGENET_MEAN, IMAGENET_STD, tiny

NORMALIZE = dict(name="normalize", mean=IMAGENET_MEAN, std=IMAGENET_STD)
EVAL_OPS = (dict(name="center_crop", size=224, resize_shorter=256, interpolation="bicubic"), NORMALIZE)
NO_DECAY = dict(match=r"(bias|scale|gamma|class_token)$", weight_decay=0.0)


def get_config(stage: str = "800") -> ml_collections.ConfigDict:
    """The recipe; stage is "800" (epochs of pretraining), "finetune" or "tiny"."""
    if stage == "tiny":
        c = tiny(get_config())
        c.objective.mask_patch_size = 8
        return c
    return _finetune() if stage == "finetune" else _pretrain(int(stage))


def _imagenet() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.dtype = "bfloat16"
    c.data = dict(name="tfds", dataset="imagenet2012", split="train", canvas_size=512, batch_size=2048)
    c.networks = dict(encoder=dict(
        name="vit", variant="B/16", positions="none", relative_positions="shared", key_bias=False, layer_scale=0.1,
        pooling="mean", drop_path=0.1, norm_epsilon=1e-6,
    ))  # fmt: skip
    c.eval_data = dict(test=dict(split="validation"))
    c.eval_views = dict(image=dict(ops=EVAL_OPS))
    return c


def _pretrain(epochs: int) -> ml_collections.ConfigDict:
    c = _imagenet()
    c.title = f"SimMIM ViT-B/16 on ImageNet-1k, {epochs} epochs"
    c.total_epochs = epochs

    c.views = dict(image=dict(ops=(
        dict(name="random_resized_crop", size=224, scale=(0.67, 1.0), ratio=(3 / 4, 4 / 3), interpolation="bilinear"),
        dict(name="flip", probability=0.5),
        NORMALIZE,
    )))
    c.networks.encoder.mask_token = True
    c.networks.decoder = dict(name="pixel_head")
    c.objective = dict(name="simmim", mask_patch_size=32, mask_ratio=0.6)
    c.optimizer = dict(
        name="adamw", b1=0.9, b2=0.999, weight_decay=0.05, clip_norm=5.0, groups=(NO_DECAY, dict(match=r".*"))
    )
    scale = c.data.batch_size / 512
    c.schedule = dict(
        name="staircase", base=1e-4 * scale, start=5e-7 * scale, warmup_epochs=10, drop_epochs=(700,), factor=0.1
    )

    c.evals = dict(knn=dict(every_epochs=100, num_neighbors=20))
    return c


def _finetune() -> ml_collections.ConfigDict:
    c = _imagenet()
    c.title = "SimMIM ViT-B/16, fine-tuned on ImageNet-1k"
    c.total_epochs = 100

    c.views = dict(image=dict(ops=(
        dict(name="random_resized_crop", size=224, scale=(0.08, 1.0), interpolation="bicubic"),
        dict(name="flip", probability=0.5),
        dict(name="rand_augment", magnitude=9, magnitude_std=0.5, num_ops=2, increasing=True),
        NORMALIZE,
        dict(name="random_erasing", probability=0.25, mode="pixel"),
    )))
    c.mix = dict(
        num_classes=1000, mixup=0.8, cutmix=1.0, probability=1.0, switch_probability=0.5, label_smoothing=0.1
    )
    c.networks.encoder.norm_pooled = True
    c.networks.head = dict(name="linear_head", num_classes=1000, init_std=2e-5)
    c.objective = dict(name="supervised")
    c.optimizer = dict(
        name="adamw", b1=0.9, b2=0.999, weight_decay=0.05, layer_decay=0.65, clip_norm=5.0,
        groups=(NO_DECAY, dict(match=r".*")),
    )  # fmt: skip
    scale = c.data.batch_size / 512
    c.schedule = dict(name="cosine", base=1.25e-3 * scale, start=2.5e-7 * scale, end=2.5e-7 * scale, warmup_epochs=20)

    c.start_from = "runs/simmim"
    c.carry = (r"^encoder/",)
    c.evals = dict(classification=dict(every_epochs=5))
    return c
