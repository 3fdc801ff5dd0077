"""ViT-B/16 with labels on ImageNet-1k, as Scenic's baseline trains it (`imagenet_vit_config.py`).

    vfm train --config=configs/supervised/vit_b16_scenic_in1k.py --workdir=runs/vit_scenic            90 epochs

To reach: 73.7 % top-1. Not yet run by us.
The augmentation is a crop and a flip alone; every parameter decays. Dropout is drawn for each example. The learned
positions begin with a deviation of 0.02, as theirs.
"""

import ml_collections

from configs.common import IMAGENET_MEAN, IMAGENET_STD, tiny

NORMALIZE = dict(name="normalize", mean=IMAGENET_MEAN, std=IMAGENET_STD)


def get_config(variant: str = "90") -> ml_collections.ConfigDict:
    """The recipe; variant is "90" (epochs) or "tiny"."""
    if variant == "tiny":
        return tiny(get_config())
    c = ml_collections.ConfigDict()
    c.title = f"ViT-B/16 with labels on ImageNet-1k, {variant} epochs"
    c.seed = 0
    c.dtype = "float32"
    c.total_epochs = int(variant)

    c.data = dict(name="tfds", dataset="imagenet2012", split="train", canvas_size=512, batch_size=4096)
    c.views = dict(image=dict(ops=(
        dict(name="random_resized_crop", size=224, scale=(0.05, 1.0), interpolation="bilinear"),
        dict(name="flip", probability=0.5),
        NORMALIZE,
    )))  # fmt: skip
    c.networks = dict(
        encoder=dict(name="vit", variant="B/16", positions="learned", prefix_positions=1, pooling="class",
                     activation="gelu_tanh", representation=768, dropout=0.1),
        head=dict(name="linear_head", num_classes=1000, init_std=0.0, init_bias=-10.0),
    )  # fmt: skip
    c.objective = dict(name="supervised", loss="sigmoid")
    c.optimizer = dict(
        name="adamw", b1=0.9, b2=0.999, weight_decay=0.3, clip_norm=1.0, groups=(dict(match=r".*"),)
    )
    c.schedule = dict(name="cosine", base=3e-3, warmup_steps=10_000, end=1e-5)

    c.eval_data = dict(test=dict(split="validation"))
    c.eval_views = dict(image=dict(ops=(
        dict(name="center_crop", size=224, resize_shorter=256, interpolation="bilinear"), NORMALIZE,
    )))  # fmt: skip
    c.evals = dict(classification=dict(every_epochs=5))
    return c
