"""Context reconstruction, VGG-16, ImageNet-1k (after Pathak et al., Context Encoders, 2016, arXiv:1604.07379).

    vfm train --config=configs/masked/context_vgg16_in1k.py --workdir=runs/context               a hidden rectangle
    vfm train --config=configs/masked/context_vgg16_in1k.py:autoencoder --workdir=runs/autoencoder   nothing hidden
    vfm train --config=configs/masked/context_vgg16_in1k.py:photos --workdir=runs/context        the embedded photos

A convolutional encoder of another kind than a ViT, pretrained by pixels alone. The paper gives no settings for a VGG
and adds an adversary; these are ours (Adam, batch norm), and there is no figure to reach. Not yet run by us.
"""

import ml_collections

from configs.common import IMAGENET_MEAN, IMAGENET_STD, tiny

NORMALIZE = dict(name="normalize", mean=IMAGENET_MEAN, std=IMAGENET_STD)


def get_config(variant: str = "hidden") -> ml_collections.ConfigDict:
    """The recipe; variant is "hidden", "autoencoder", "photos" (small images, no download) or "tiny"."""
    if variant == "tiny":
        c = tiny(get_config(), image_size=64)
        c.objective.loss_on = "image"  # in so few steps more is learned from all pixels than from a quarter of them
        return c
    c = ml_collections.ConfigDict()
    c.title = "Context reconstruction by VGG-16"
    c.seed = 0
    c.dtype = "bfloat16"
    c.total_epochs = 100

    c.data = dict(name="tfds", dataset="imagenet2012", split="train", canvas_size=512, batch_size=256)
    size = 64 if variant == "photos" else 224
    c.views = dict(image=dict(ops=(
        dict(name="random_resized_crop", size=size, scale=(0.2, 1.0), interpolation="bicubic"),
        dict(name="flip", probability=0.5),
        NORMALIZE,
    )))
    c.networks = dict(
        encoder=dict(name="vgg", variant="16", batch_norm=True, classifier_dim=None),
        decoder=dict(name="upsampling_decoder", width=512),
    )
    hidden = None if variant == "autoencoder" else (0.25, 0.25)
    c.objective = dict(name="context_reconstruction", hidden_area=hidden, loss_on="hidden")
    c.optimizer = dict(name="adamw", b1=0.9, b2=0.999, weight_decay=1e-4)
    c.schedule = dict(name="cosine", base=1e-3 * c.data.batch_size / 256, warmup_percent=5.0, end=0.0)

    c.eval_data = dict(test=dict(split="validation"))
    c.eval_views = dict(image=dict(ops=(
        dict(name="center_crop", size=size, resize_shorter=size * 8 // 7, interpolation="bicubic"), NORMALIZE,
    )))
    c.evals = dict(knn=dict(every_percent=10.0, num_neighbors=20))
    if variant == "photos":
        c.dtype = "float32"
        c.data = dict(name="photos", split="train", crop_size=size, batch_size=64)
        c.eval_data = dict(test=dict(split="test"))
    return c
