"""BYOL, ResNet-18, CIFAR-10 (Grill et al., 2020, arXiv:2006.07733), with the settings of solo-learn.

    vfm train --config=configs/self_distillation/byol_r18_cifar10.py --workdir=runs/byol_cifar10

To reach: 92.6 % top-1 by a linear classifier, as solo-learn publishes it: there it is trained along, on the augmented
views, and here it is a probe on the features of plain images. Not yet run by us.
Source: vturrisi/solo-learn, `scripts/pretrain/cifar/byol.yaml` and its `augmentations/asymmetric.yaml`. Its stem pads
by one pixel more than ours, and so its maps are larger by two at first.
"""

import ml_collections

from configs.common import tiny

NORMALIZE = dict(name="normalize", mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2430, 0.2610))


def get_config(variant: str = "1000") -> ml_collections.ConfigDict:
    """The recipe; variant is the number of epochs, "1000" in the source, or "tiny"."""
    if variant == "tiny":
        return tiny(get_config())
    c = ml_collections.ConfigDict()
    c.title = "BYOL on CIFAR-10"
    c.seed = 0
    c.total_epochs = int(variant)

    c.data = dict(name="tfds", dataset="cifar10", split="train", canvas_size=32, batch_size=256)
    crop_and_color = (
        dict(name="random_resized_crop", size=32, scale=(0.08, 1.0), interpolation="bicubic"),
        dict(name="color_jitter", brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, probability=0.8,
             random_order=True),
        dict(name="grayscale", probability=0.2),
    )  # fmt: skip
    flip = dict(name="flip", probability=0.5)
    c.views = dict(image=(
        dict(ops=(*crop_and_color, flip, NORMALIZE)),
        dict(ops=(*crop_and_color, dict(name="solarize", threshold=0.5, probability=0.2), flip, NORMALIZE)),
    ))  # fmt: skip

    mlp = dict(name="projection_head", hidden_dim=4096, out_dim=256, num_layers=2, last_norm="none", use_bias=True,
               unbiased=True)  # fmt: skip
    c.networks = dict(
        encoder=dict(name="resnet", variant="18", stem="cifar", zero_init=False), projector=mlp, predictor=mlp
    )
    c.objective = dict(name="byol", target_momentum=dict(name="cosine", base=0.99, end=1.0))
    c.optimizer = dict(name="lars", momentum=0.9, trust_coefficient=0.02, clip_trust=True, weight_decay=1e-5)
    c.schedule = dict(name="cosine", base=1.0 * c.data.batch_size / 256, warmup_epochs=10, start=3e-5, end=0.0)

    c.eval_data = dict(test=dict(split="test"))
    c.eval_views = dict(image=dict(ops=(NORMALIZE,)))
    c.evals = dict(knn=dict(every_epochs=100, num_neighbors=20), linear_probe=dict(every_epochs=500))
    return c
