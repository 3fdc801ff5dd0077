"""SupCon, ResNet-50 and ResNet-200, ImageNet-1k (Khosla et al., 2020, arXiv:2004.11362, and its TensorFlow code).

    vfm train --config=configs/contrastive/supcon_r50_in1k.py --workdir=runs/supcon            350 epochs
    vfm train --config=configs/contrastive/supcon_r50_in1k.py:200 --workdir=runs/supcon_r200   ResNet-200, 700 epochs

To reach: 78.7 % top-1 (ResNet-50) and 81.4 % (ResNet-200) by a classifier on the frozen encoder (Tables 2 and 3).
Not yet run by us. Rates, decay, warm-up and heads are those of the scripts `supcon_imagenet_resnet*.sh` in
google-research/supcon: the projector is one dense layer on features of length 1 (the paper: that, or one with a
hidden layer), and the loss is multiplied by the temperature alone. The batch counts images before the two views are
drawn. Stacked RandAugment is colour jitter, RandAugment, grayscale and blur; theirs makes two drawn changes where
ours leaves out every second of four, and warps by control points too, which we have not. The argument "tiny" is the
method at toy size.
"""

import ml_collections

from configs.common import IMAGENET_MEAN, IMAGENET_STD, tiny

NORMALIZE = dict(name="normalize", mean=IMAGENET_MEAN, std=IMAGENET_STD)
AUGMENTATION = {
    "50": (dict(name="auto_augment"),),
    "200": (
        dict(name="color_jitter", brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, probability=0.8),
        dict(name="rand_augment", magnitude=10.0, magnitude_std=0.0, num_ops=4, increasing=False),
        dict(name="grayscale", probability=0.2),
        dict(name="gaussian_blur", probability=0.5, kernel_ratio=0.1, sigma=(0.1, 2.0)),
    ),
}  # fmt: skip


def get_config(depth: str = "50") -> ml_collections.ConfigDict:
    """The recipe; depth is that of the ResNet, "50" or "200", or the whole "tiny"."""
    if depth == "tiny":
        return tiny(get_config())
    c = ml_collections.ConfigDict()
    c.title = f"SupCon ResNet-{depth} on ImageNet-1k"
    c.seed = 0
    c.dtype = "bfloat16"
    c.total_epochs = {"50": 350, "200": 700}[depth]

    c.data = dict(
        name="tfds", dataset="imagenet2012", split="train", canvas_size=512,
        batch_size={"50": 6144, "200": 4096}[depth],
    )  # fmt: skip
    c.views = dict(image=dict(num_views=2, ops=(
        dict(name="random_resized_crop", size=224, scale=(0.08, 1.0)),
        dict(name="flip", probability=0.5),
        *AUGMENTATION[depth],
        NORMALIZE,
    )))  # fmt: skip

    c.networks = dict(
        encoder=dict(name="resnet", variant=depth, unbiased_variance=False),
        projector=dict(name="projection_head", out_dim=128, num_layers=1, last_norm="none"),
    )
    c.objective = dict(name="supcon", temperature=0.1, base_temperature=1.0, normalize_pooled=True)
    c.optimizer = dict(
        name="lars", momentum=0.9, classic_momentum=True, trust_coefficient=0.001,
        weight_decay={"50": 1e-3, "200": 1e-4}[depth],
    )  # fmt: skip
    base_lr = {"50": 0.4, "200": 0.2}[depth]
    c.schedule = dict(name="cosine", base=base_lr * c.data.batch_size / 256, warmup_epochs=12, end=0.0)

    c.eval_data = dict(test=dict(split="validation"))
    c.eval_views = dict(image=dict(ops=(
        dict(name="center_crop", size=224, resize_shorter=256, interpolation="bilinear"), NORMALIZE,
    )))  # fmt: skip
    c.evals = dict(knn=dict(every_epochs=50, num_neighbors=20), linear_probe=dict())
    return c
