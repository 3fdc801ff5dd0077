"""SimCLR, ResNet-18, CIFAR-10 (Chen et al., 2020, arXiv:2002.05709, App. B.9; README of google-research/simclr).

    vfm train --config=configs/contrastive/simclr_r18_cifar10.py --workdir=runs/simclr_cifar10

Two stages: pretraining, and a linear probe on its frozen encoder. To reach: about 91 % top-1 by the probe ("around
91 %" in the README). Not yet run by us.
The code's loss is the sum over both directions, ours their mean, which LARS does not notice. The code's images are in
[0, 1]; these are standardised.
"""

import ml_collections

from configs.common import tiny

CROP = dict(name="random_resized_crop", size=32, scale=(0.08, 1.0), interpolation="bicubic")
FLIP = dict(name="flip", probability=0.5)
NORMALIZE = dict(name="normalize", mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))


def get_config(variant: str = "pretrain") -> ml_collections.ConfigDict:
    """The recipe; variant is "pretrain" (and probe) or "tiny"."""
    if variant == "tiny":
        return tiny(get_config())
    c = ml_collections.ConfigDict()
    c.title = "SimCLR on CIFAR-10"
    c.seed = 0
    c.total_epochs = 1000

    c.data = dict(name="tfds", dataset="cifar10", split="train", canvas_size=32, batch_size=512)
    strength = 0.5
    c.views = dict(image=dict(num_views=2, ops=(
        CROP,
        FLIP,
        dict(name="color_jitter", brightness=0.8 * strength, contrast=0.8 * strength, saturation=0.8 * strength,
             hue=0.2 * strength, probability=0.8, random_order=True),
        dict(name="grayscale", probability=0.2),
        NORMALIZE,
    )))  # fmt: skip

    c.networks = dict(
        encoder=dict(name="resnet", variant="18", stem="cifar", norm_momentum=0.9, norm_epsilon=1e-5),
        projector=dict(name="projection_head", out_dim=128, num_layers=3),  # hidden layers as wide as the encoder
    )
    c.objective = dict(name="simclr", temperature=0.5)
    c.optimizer = dict(name="lars", momentum=0.9, classic_momentum=True, trust_coefficient=0.001, weight_decay=1e-4)
    c.schedule = dict(name="cosine", base=1.0 * c.data.batch_size / 256, warmup_epochs=10, end=0.0)

    probe = dict(
        name="linear_probe",
        carry=(r"^encoder/",),
        total_epochs=100,
        views=dict(image=dict(num_views=None, ops=(CROP, FLIP, NORMALIZE))),
        networks=dict(projector=None, head=dict(name="linear_head", num_classes=10, init_std=0.0)),
        objective=dict(name="supervised", freeze_encoder=True),
        optimizer=dict(name="sgd", momentum=0.9, nesterov=True, weight_decay=0.0,
                       groups=(dict(match=r"^encoder/", lr_scale=0.0), dict(match=r".*"))),
        schedule=dict(name="cosine", base=0.1 * c.data.batch_size / 256, warmup_epochs=0),
        evals=dict(knn=None, classification=dict(every_epochs=10)),
    )  # fmt: skip
    c.stages = (dict(name="pretrain"), probe)

    c.eval_data = dict(test=dict(split="test"))
    c.eval_views = dict(image=dict(ops=(NORMALIZE,)))
    c.evals = dict(knn=dict(every_epochs=100, num_neighbors=20))
    return c
