"""DeiT III, ImageNet-1k and -21k (Touvron et al., 2022, arXiv:2204.07118, Table 1, and their README's commands).

    vfm train --config=configs/supervised/deit3_in1k.py --workdir=runs/deit3                 B/16, 800 epochs at 192
    vfm train --config=configs/supervised/deit3_in1k.py:finetune_b16_224 --workdir=runs/deit3_224 \
        --config.start_from=runs/deit3                                                       its last 20 epochs
    vfm train --config=configs/supervised/deit3_in1k.py:in21k_b16 --workdir=runs/deit3_in21k        240 epochs at 224
    vfm train --config=configs/supervised/deit3_in1k.py:in21k_finetune_b16 --workdir=runs/deit3_in21k_in1k \
        --config.start_from=runs/deit3_in21k                                                 50 epochs of ImageNet-1k

Sizes: s16 (trained at 224), b16, l16, h14 (at 160). Each has "finetune_SIZE_224" (not s16) and "finetune_SIZE_384"
(not h14), "in21k_SIZE" and "in21k_finetune_SIZE". To reach: 81.4 (S), 83.8 (B), 84.9 (L), 85.2 % (H) top-1; by way
of ImageNet-21k 83.1, 85.7, 87.0 and 87.2 %. Not yet run by us.
It follows the authors' commands. LAMB is apex's, whose own clipping at norm 1 no command turns off; its epsilon is
their command line's, 1e-8. In pretraining each image stands in a batch three times, differently augmented; an epoch
is as many examples as there are images, a third of them different. Mixing is drawn once for a batch. On the way of
ImageNet-21k a square of the resized image is cut, without the 4 reflected pixels that theirs has on each side; TFDS's
has two classes more than their data.
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
# Epochs, pixels and drop path on ImageNet-21k; drop path on ImageNet-1k after it.
IN21K = {
    "s16": (240, 224, 0.05, 0.05),
    "b16": (240, 224, 0.1, 0.15),
    "l16": (240, 224, 0.3, 0.4),
    "h14": (90, 128, 0.5, 0.45),
}
UNDECAYED = (dict(match=r"(bias|scale|gamma|class_token|positions)$", weight_decay=0.0), dict(match=r".*"))


def get_config(stage: str = "b16") -> ml_collections.ConfigDict:
    """The recipe; stage is SIZE, "finetune_SIZE_PIXELS", "in21k_SIZE", "in21k_finetune_SIZE" or "tiny"."""
    if stage == "tiny":
        return tiny(get_config())
    if stage.startswith("finetune_"):
        _, size, pixels = stage.split("_")
        return _finetune(size, int(pixels))
    if stage.startswith("in21k_"):
        return _by_way_of_in21k(stage.split("_")[-1], finetune="finetune" in stage)
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
    c.optimizer = dict(name="lamb", eps=1e-8, weight_decay=0.05, groups=UNDECAYED)
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


def _by_way_of_in21k(size: str, finetune: bool) -> ml_collections.ConfigDict:
    """Both parts have one table: softmax, CutMix alone, crops of the resized image."""
    epochs, pixels, *drop_paths = IN21K[size]
    if finetune:
        epochs, pixels = 50, 224
    c = _imagenet(size, pixels)
    c.title = f"DeiT III ViT-{SIZES[size][0]} on ImageNet-21k" + (", fine-tuned on ImageNet-1k" if finetune else "")
    c.total_epochs = epochs
    c.data.batch_size = 2048
    if not finetune:
        c.data.update(dataset="imagenet21k", split="full[51200:]")
        c.networks.head.num_classes = 21843
        c.eval_data.test.split = "full[:51200]"

    c.views = dict(image=dict(ops=(
        dict(name="random_crop", size=pixels, resize_shorter=pixels, interpolation="bicubic"),
        dict(name="flip", probability=0.5),
        dict(name="three_augment"),
        dict(name="color_jitter", brightness=0.3, contrast=0.3, saturation=0.3, hue=0.0),
        NORMALIZE,
    )))  # fmt: skip
    c.mix = dict(num_classes=c.networks.head.num_classes, mixup=0.0, cutmix=1.0, label_smoothing=0.1)
    c.networks.encoder.drop_path = drop_paths[int(finetune)]
    c.objective = dict(name="supervised", loss="softmax")
    c.optimizer = dict(name="lamb", eps=1e-8, weight_decay=0.02, groups=UNDECAYED)
    c.schedule = dict(name="cosine", base=3e-4 if finetune else 1e-3, warmup_epochs=5, start=1e-6, end=1e-5)
    if finetune:
        c.start_from = "runs/deit3_in21k"
        c.carry = (r"^encoder/",)
    return c
