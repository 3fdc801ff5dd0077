"""VICReg, ResNet-18, CIFAR-10: the settings of solo-learn (da Costa et al., 2021, arXiv:2108.01775).

    vfm train --config=configs/redundancy/vicreg_r18_cifar10.py --workdir=runs/vicreg_cifar10

To reach: 92.07 % top-1 by a linear probe that they train along (README of vturrisi/solo-learn). Not yet run by us.
It follows `scripts/pretrain/cifar/vicreg.yaml`: LARS whose rate for a layer is at most the learning rate, and a
variance term that is the sum over both views (the authors' is the mean, as here: so its weight is 2 · 25). Their stem
pads by two pixels, ours by one. The argument "tiny" is the method at toy size.
"""

import ml_collections

from configs.common import tiny

NORMALIZE = dict(name="normalize", mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The recipe; variant is "" or "tiny"."""
    if variant == "tiny":
        return tiny(get_config())
    c = ml_collections.ConfigDict()
    c.title = "VICReg ResNet-18 on CIFAR-10"
    c.seed = 0
    c.total_epochs = 1000

    c.data = dict(name="tfds", dataset="cifar10", split="train", canvas_size=32, batch_size=256)
    c.views = dict(image=dict(num_views=2, ops=(
        dict(name="random_resized_crop", size=32, scale=(0.2, 1.0), interpolation="bicubic"),
        dict(name="color_jitter", brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, probability=0.8),
        dict(name="grayscale", probability=0.2),
        dict(name="solarize", probability=0.1),
        dict(name="flip", probability=0.5),
        NORMALIZE,
    )))  # fmt: skip
    c.networks = dict(
        encoder=dict(name="resnet", variant="18", stem="cifar", zero_init=False),
        projector=dict(name="projection_head", hidden_dim=2048, out_dim=2048, num_layers=3, last_norm="none",
                       unbiased=True),
    )  # fmt: skip
    c.objective = dict(name="vicreg", invariance_weight=25.0, variance_weight=2 * 25.0, covariance_weight=1.0)
    c.optimizer = dict(name="lars", momentum=0.9, trust_coefficient=0.02, clip_trust=True, weight_decay=1e-4)
    c.schedule = dict(name="cosine", base=0.3 * c.data.batch_size / 256, warmup_epochs=10, start=3e-5, end=0.0)

    c.eval_data = dict(test=dict(split="test"))
    c.eval_views = dict(image=dict(ops=(NORMALIZE,)))
    c.evals = dict(knn=dict(every_epochs=50, num_neighbors=20), linear_probe=dict())
    return c
