"""How to train your ViT, ImageNet-21k (Steiner et al., 2021, arXiv:2106.10270, and big_vision's `vit_i21k`).

    vfm train --config=configs/supervised/augreg_in21k.py --workdir=runs/augreg21k             B/16, 300 epochs
    vfm train --config=configs/supervised/augreg_in21k.py:s16 --workdir=runs/augreg21k_s16     ti16, s32, b32, l16

It follows the code: mean pooling (the published files have a class token) and no dropout or stochastic depth. Decay
is AdamW's 0.1, their 1e-4 at a rate of 1e-3. The learned positions begin with a deviation of 0.02 where theirs have
1/√width. RandAugment and mixup differ as in `vit_s16_in1k.py`.
"""

import ml_collections

from configs.common import tiny

NORMALIZE = dict(name="normalize", mean=0.5, std=0.5)
# Magnitude of two changes by RandAugment, and the α of mixup (big_vision's table).
AUGMENTATIONS = {"none": None, "light1": (0.0, 0.0), "light2": (10.0, 0.2), "medium2": (15.0, 0.5)}
SIZES = {
    "ti16": ("Ti/16", "none"),
    "s32": ("S/32", "none"),
    "s16": ("S/16", "light1"),
    "b32": ("B/32", "light2"),
    "b16": ("B/16", "light2"),
    "l16": ("L/16", "medium2"),
}


def get_config(size: str = "b16") -> ml_collections.ConfigDict:
    """The recipe; size is "ti16", "s32", "s16", "b32", "b16", "l16" or "tiny"."""
    if size == "tiny":
        return tiny(get_config())
    variant, augmentation = SIZES[size]
    magnitude, mixup = AUGMENTATIONS[augmentation] or (None, 0.0)
    changes = dict(name="rand_augment", num_ops=2, magnitude=magnitude, magnitude_std=0.0, increasing=False,
                   max_magnitude=20.0)
    c = ml_collections.ConfigDict()
    c.title = f"AugReg ViT-{variant} on ImageNet-21k"
    c.seed = 0
    c.dtype = "bfloat16"
    c.total_epochs = 300

    c.data = dict(name="tfds", dataset="imagenet21k", split="full[51200:]", canvas_size=512, batch_size=4096)
    c.views = dict(image=dict(ops=(
        dict(name="random_resized_crop", size=224, scale=(0.05, 1.0), interpolation="bilinear"),
        dict(name="flip", probability=0.5),
        *((changes,) if magnitude is not None else ()),
        NORMALIZE,
    )))  # fmt: skip
    if mixup:
        c.mix = dict(num_classes=21843, mixup=mixup, cutmix=0.0, probability=1.0, label_smoothing=0.0)

    c.networks = dict(
        encoder=dict(name="vit", variant=variant, positions="learned", class_token=False, pooling="mean",
                     activation="gelu_tanh"),
        head=dict(name="linear_head", num_classes=21843, init_std=0.0, init_bias=-10.0),
    )
    c.objective = dict(name="supervised", loss="sigmoid")
    c.optimizer = dict(
        name="adamw", b1=0.9, b2=0.999, eps=1e-8, momentum_dtype="bfloat16", weight_decay=0.1, clip_norm=1.0,
        groups=(dict(match=r"kernel$"), dict(match=r".*", weight_decay=0.0)),
    )
    c.schedule = dict(name="cosine", base=1e-3, warmup_steps=10_000, end=0.0)

    c.eval_data = dict(test=dict(split="full[:51200]"))
    c.eval_views = dict(image=dict(ops=(
        dict(name="center_crop", size=224, resize_shorter=256, interpolation="bilinear"), NORMALIZE,
    )))
    c.evals = dict(classification=dict(every_epochs=10))
    return c
