"""SimSiam, ResNet-50, ImageNet-1k (Chen and He, 2020, arXiv:2011.10566, Sec. 3 and App. A, and the authors' code).

    vfm train --config=configs/self_distillation/simsiam_r50_in1k.py --workdir=runs/simsiam
    vfm train --config=configs/self_distillation/simsiam_r50_in1k.py:linear_probe --workdir=runs/simsiam_probe \
        --config.start_from=runs/simsiam

To reach: 68.1 % top-1 by linear probe after 100 epochs; 68.3 % with batches of 256 images and half the learning rate.
Not yet run by us.
It follows the code: the predictor keeps the first learning rate, and that of the others falls epoch by epoch. The
blur's kernel is a tenth of the image where theirs is Pillow's.
"""

import ml_collections

from configs.common import IMAGENET_MEAN, IMAGENET_STD, tiny

FLIP = dict(name="flip", probability=0.5)
NORMALIZE = dict(name="normalize", mean=IMAGENET_MEAN, std=IMAGENET_STD)


def get_config(variant: str = "pretrain") -> ml_collections.ConfigDict:
    """The recipe; variant is "pretrain", "linear_probe" or "tiny"."""
    if variant == "tiny":
        return tiny(get_config())
    return {"pretrain": _pretrain, "linear_probe": _linear_probe}[variant]()


def _imagenet() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.dtype = "bfloat16"
    c.data = dict(name="tfds", dataset="imagenet2012", split="train", canvas_size=512, batch_size=512)
    c.networks = dict(encoder=dict(name="resnet", variant="50", norm_momentum=0.9, norm_epsilon=1e-5, zero_init=True))
    c.eval_data = dict(test=dict(split="validation"))
    c.eval_views = dict(image=dict(ops=(
        dict(name="center_crop", size=224, resize_shorter=256, interpolation="bilinear"), NORMALIZE,
    )))  # fmt: skip
    return c


def _pretrain() -> ml_collections.ConfigDict:
    c = _imagenet()
    c.title = "SimSiam ResNet-50 on ImageNet-1k"
    c.total_epochs = 100

    c.views = dict(image=dict(num_views=2, ops=(
        dict(name="random_resized_crop", size=224, scale=(0.2, 1.0), interpolation="bilinear"),
        dict(name="color_jitter", brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, probability=0.8,
             random_order=True),
        dict(name="grayscale", probability=0.2),
        dict(name="gaussian_blur", probability=0.5, kernel_ratio=0.1, sigma=(0.1, 2.0)),
        FLIP,
        NORMALIZE,
    )))  # fmt: skip

    c.networks.update(
        projector=dict(name="projection_head", hidden_dim=2048, out_dim=2048, num_layers=3, last_norm="plain",
                       unbiased=True),
        predictor=dict(name="projection_head", hidden_dim=512, out_dim=2048, num_layers=2, last_norm="none",
                       use_bias=True, unbiased=True),
    )  # fmt: skip
    c.objective = dict(name="simsiam")
    c.schedule = dict(name="cosine", base=0.05 * c.data.batch_size / 256, end=0.0, hold_epochs=1)
    c.optimizer = dict(
        name="sgd", momentum=0.9, weight_decay=1e-4,  # of biases and scales too
        groups=(
            dict(match=r"^predictor/", schedule=dict(name="constant", base=c.schedule.base)),
            dict(match=r".*"),
        ),
    )  # fmt: skip

    c.evals = dict(knn=dict(every_epochs=10, num_neighbors=20))
    return c


def _linear_probe() -> ml_collections.ConfigDict:
    c = _imagenet()
    c.title = "SimSiam ResNet-50, linear probe on ImageNet-1k"
    c.total_epochs = 90
    c.data.batch_size = 4096

    c.views = dict(image=dict(ops=(
        dict(name="random_resized_crop", size=224, scale=(0.08, 1.0), interpolation="bilinear"), FLIP, NORMALIZE,
    )))  # fmt: skip
    c.networks.head = dict(name="linear_head", num_classes=1000, init_std=0.01)
    c.objective = dict(name="supervised", freeze_encoder=True)
    c.optimizer = dict(
        name="lars", momentum=0.9, trust_coefficient=0.001, weight_decay=0.0,
        groups=(dict(match=r"^encoder/", lr_scale=0.0), dict(match=r".*")),
    )  # fmt: skip
    c.schedule = dict(name="cosine", base=0.1 * c.data.batch_size / 256, end=0.0, hold_epochs=1)

    c.start_from = "runs/simsiam"
    c.carry = (r"^encoder/",)
    c.evals = dict(classification=dict(every_epochs=5))
    return c
