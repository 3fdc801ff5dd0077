"""DeiT III, ImageNet-1k (Touvron et al., 2022, arXiv:2204.07118, Table 1, and the commands of the authors' README).

    vfm train --config=configs/supervised/deit3_in1k.py --workdir=runs/deit3                 B/16, 800 epochs at 192
    vfm train --config=configs/supervised/deit3_in1k.py:finetune_b16_224 --workdir=runs/deit3_224 \
        --config.start_from=runs/deit3                                                       its last 20 epochs

Sizes: s16 (trained at 224), b16, l16, h14 (at 160). Each has "finetune_SIZE_224" (not s16) and "finetune_SIZE_384"
(not h14). To reach: 81.4 (S), 83.8 (B), 84.9 (L), 85.2 % (H) top-1. Not yet run by us.
It follows the authors' commands; LAMB's gradient clipping at norm 1 is apex's. In pretraining each image stands in a
batch three times, differently augmented; an epoch is as many examples as there are images, a third of them different.
Mixing is drawn once for a batch.
"""

import ml_collections

from configs.common import IMAGENET_MEAN, IMAGENET_STD, tiny

NORMALIZE = dict(name="normalize", mean=IMAGENET_MEAN, std=IMAGENET_STD)
# Variant, base learning rate, pixels, drop path: pretraining; then drop path of fine-tuning at 224 and at 384 pixels.
SIZES = {
    "s16": ("S/16", 4e-3, 224, 0.05, {384: 0.0}),
    "b16": ("B/16", 3e-3, 192, 0.2, {224: 0.2, 384: 0.15}),
    "l16": ("L/16", 3e-3, 192, 0.45, {224: 0.45, 384: 0.4}),
    "h14": ("H/14", 3e-3, 160, 0.6, {224: 0.55}),
}
UNDECAYED = (dict(match=r"(bias|scale|gamma|class_token|positions)$", weight_decay=0.0), dict(match=r".*"))


def get_config(stage: str = "b16") -> ml_collections.ConfigDict:
    """The recipe; stage is a size ("s16", "b16", "l16", "h14"), "finetune_SIZE_PIXELS" or "tiny"."""
    if stage == "tiny":
        return tiny(get_config())
    if stage.startswith("finetune_"):
        _, size, pixels = stage.split("_")
        return _finetune(size, int(pixels))
    return _pretrain(stage)


def _imagenet(size: str, pixels: int) -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.dtype = "bfloat16"
    c.data = dict(name="tfds", dataset="imagenet2012", split="train", canvas_size=512)
    c.networks = dict(
        encoder=dict(name="vit", variant=SIZES[size][0], layer_scale=1e-4, drop_path_shape="constant",
                     pooling="class"),
        head=dict(name="linear_head", num_classes=1000, init_std=0.02),
    )  # fmt: skip
    c.eval_data = dict(test=dict(split="validation"))
    c.eval_views = dict(image=dict(ops=(
        dict(name="center_crop", size=pixels, resize_shorter=pixels, interpolation="bicubic"), NORMALIZE,
    )))
    c.evals = dict(classification=dict(every_epochs=10))
    return c


def _pretrain(size: str) -> ml_collections.ConfigDict:
    variant, rate, pixels, drop_path, _ = SIZES[size]
    c = _imagenet(size, pixels)
    c.title = f"DeiT III ViT-{variant} on ImageNet-1k"
    c.total_epochs = 800
    c.data.batch_size = 2048
    c.data.repeats = 3

    c.views = dict(image=dict(ops=(
        dict(name="random_resized_crop", size=pixels, scale=(0.08, 1.0), interpolation="bicubic"),
        dict(name="flip", probability=0.5),
        dict(name="three_augment"),
        dict(name="color_jitter", brightness=0.3, contrast=0.3, saturation=0.3, hue=0.0),
        NORMALIZE,
    )))
    c.mix = dict(num_classes=1000, mixup=0.8, cutmix=1.0, label_smoothing=0.0)
    c.networks.encoder.drop_path = drop_path
    c.objective = dict(name="supervised", loss="sigmoid_mean")
    c.optimizer = dict(name="lamb", weight_decay=0.05, groups=UNDECAYED)
    c.schedule = dict(name="cosine", base=rate, warmup_epochs=5, start=1e-6, end=1e-5)
    return c


def _finetune(size: str, pixels: int) -> ml_collections.ConfigDict:
    variant, *_, drop_paths = SIZES[size]
    c = _imagenet(size, pixels)
    c.title = f"DeiT III ViT-{variant}, fine-tuned at {pixels} pixels"
    c.total_epochs = 20
    c.data.batch_size = 512

    c.views = dict(image=dict(ops=(
        dict(name="random_resized_crop", size=pixels, scale=(0.08, 1.0), interpolation="bicubic"),
        dict(name="flip", probability=0.5),
        dict(name="rand_augment", magnitude=9, magnitude_std=0.5, num_ops=2, increasing=True,
             interpolation="bicubic"),
        NORMALIZE,
    )))  # fmt: skip
    c.mix = dict(num_classes=1000, mixup=0.8, cutmix=1.0, label_smoothing=0.1)
    c.networks.encoder.drop_path = drop_paths[pixels]
    c.objective = dict(name="supervised", loss="softmax")
    c.optimizer = dict(name="adamw", weight_decay=0.1, groups=UNDECAYED)
    c.schedule = dict(name="cosine", base=1e-5, warmup_epochs=5, start=1e-6, end=1e-6)

    c.start_from = "runs/deit3"
    return c
