"""How to train your ViT, ImageNet-1k (Steiner et al., 2021, arXiv:2106.10270, and big_vision's `vit_i1k`).

    vfm train --config=configs/supervised/augreg_in1k.py --workdir=runs/augreg                B/16, 300 epochs
    vfm train --config=configs/supervised/augreg_in1k.py:s16 --workdir=runs/augreg_s16        ti16, s32, s16, b32, l16

It follows the code, which gives every size its augmentation and no dropout or stochastic depth (in the paper B and L
have 0.1 of both). Decay is AdamW's 0.1, their 1e-4 at a rate of 1e-3. The learned positions begin with a deviation of
0.02 where theirs have 1/√width. RandAugment and mixup differ as in `vit_s16_in1k.py`.
"""

import ml_collections

from configs.common import tiny

NORMALIZE = dict(name="normalize", mean=0.5, std=0.5)
# Magnitude of two changes by RandAugment, and the α of mixup (big_vision's table).
AUGMENTATIONS = {"light1": (0.0, 0.0), "medium1": (15.0, 0.2), "medium2": (15.0, 0.5)}
SIZES = {
    "ti16": ("Ti/16", 192, "light1"),
    "s32": ("S/32", 384, "medium1"),
    "s16": ("S/16", 384, "medium2"),
    "b32": ("B/32", 768, "medium2"),
    "b16": ("B/16", 768, "medium2"),
    "l16": ("L/16", 1024, "medium2"),
}


def get_config(size: str = "b16") -> ml_collections.ConfigDict:
    """The recipe; size is "ti16", "s32", "s16", "b32", "b16", "l16" or "tiny"."""
    if size == "tiny":
        return tiny(get_config())
    variant, width, augmentation = SIZES[size]
    magnitude, mixup = AUGMENTATIONS[augmentation]
    c = ml_collections.ConfigDict()
    c.title = f"AugReg ViT-{variant} on ImageNet-1k"
    c.seed = 0
    c.dtype = "bfloat16"
    c.total_epochs = 300

    c.data = dict(name="tfds", dataset="imagenet2012", split="train[:99%]", canvas_size=512, batch_size=4096)
    c.views = dict(image=dict(ops=(
        dict(name="random_resized_crop", size=224, scale=(0.05, 1.0), interpolation="bilinear"),
        dict(name="flip", probability=0.5),
        dict(name="rand_augment", num_ops=2, magnitude=magnitude, magnitude_std=0.0, increasing=False,
             max_magnitude=20.0),
        NORMALIZE,
    )))  # fmt: skip
    if mixup:
        c.mix = dict(num_classes=1000, mixup=mixup, cutmix=0.0, probability=1.0, label_smoothing=0.0)

    c.networks = dict(
        encoder=dict(name="vit", variant=variant, positions="learned", pooling="class", activation="gelu_tanh",
                     representation=width),
        head=dict(name="linear_head", num_classes=1000, init_std=0.0, init_bias=-6.9),
    )
    c.objective = dict(name="supervised", loss="sigmoid")
    c.optimizer = dict(
        name="adamw", b1=0.9, b2=0.999, eps=1e-8, momentum_dtype="bfloat16", weight_decay=0.1, clip_norm=1.0,
        groups=(dict(match=r"kernel$"), dict(match=r".*", weight_decay=0.0)),
    )
    c.schedule = dict(name="cosine", base=1e-3, warmup_steps=10_000, end=0.0)

    c.eval_data = dict(test=dict(split="validation"))
    c.eval_views = dict(image=dict(ops=(
        dict(name="center_crop", size=224, resize_shorter=256, interpolation="bilinear"), NORMALIZE,
    )))
    c.evals = dict(classification=dict(every_epochs=10))
    return c
