"""VGG-16 on ImageNet-1k (Simonyan and Zisserman, 2014, arXiv:1409.1556, with mmpretrain's settings).

    vfm train --config=configs/supervised/vgg16_in1k.py --workdir=runs/vgg16

To reach: 71.6 % top-1 (mmpretrain). Not yet run by us.
It follows mmpretrain: one scale, 100 epochs. The paper trains on several scales, with a weight decay of 5e-4.
"""

import ml_collections

from configs.common import IMAGENET_MEAN, IMAGENET_STD, tiny

NORMALIZE = dict(name="normalize", mean=IMAGENET_MEAN, std=IMAGENET_STD)


def get_config(variant: str = "16") -> ml_collections.ConfigDict:
    """The recipe; variant is "16" or "tiny"."""
    if variant == "tiny":
        return tiny(get_config())
    c = ml_collections.ConfigDict()
    c.title = "VGG-16 with labels on ImageNet-1k"
    c.seed = 0
    c.dtype = "bfloat16"
    c.total_epochs = 100

    c.data = dict(name="tfds", dataset="imagenet2012", split="train", canvas_size=512, batch_size=256)
    c.views = dict(image=dict(ops=(
        dict(name="random_resized_crop", size=224, scale=(0.08, 1.0), interpolation="bilinear"),
        dict(name="flip", probability=0.5),
        NORMALIZE,
    )))
    c.networks = dict(
        encoder=dict(name="vgg", variant=variant),
        head=dict(name="linear_head", num_classes=1000),
    )
    c.objective = dict(name="supervised")
    c.optimizer = dict(name="sgd", momentum=0.9, weight_decay=1e-4, groups=(dict(match=r".*"),))
    c.schedule = dict(name="staircase", base=0.01, drop_epochs=(30, 60, 90), factor=0.1)

    c.eval_data = dict(test=dict(split="validation"))
    c.eval_views = dict(image=dict(ops=(
        dict(name="center_crop", size=224, resize_shorter=256, interpolation="bilinear"), NORMALIZE,
    )))
    c.evals = dict(classification=dict(every_epochs=5))
    return c
