"""Sigmoid pairs of images (SigCLR), ResNet-18, CIFAR-10 (Çağatan, 2024, arXiv:2410.17427).

    vfm train --config=configs/contrastive/sigclr_r18_cifar10.py --workdir=runs/sigclr

No figure to reach: encoder, projector, views, optimizer and schedule are those of SimCLR on CIFAR-10
(simclr_r18_cifar10.py), so that the two losses can be compared. The inverse temperature of 10 and the bias of -10 at
the start are SigLIP's (Zhai et al., 2023, arXiv:2303.15343, Sec. 3.2); that the first stays and the second is learned
is the paper's. With --config.objective.positives=label the positives are all images of a class. The argument "tiny"
is the method at toy size.
"""

import ml_collections

from configs.common import tiny

NORMALIZE = dict(name="normalize", mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The recipe; variant is "" or "tiny"."""
    if variant == "tiny":
        return tiny(get_config())
    c = ml_collections.ConfigDict()
    c.title = "Sigmoid pairs of images on CIFAR-10"
    c.seed = 0
    c.total_epochs = 1000

    c.data = dict(name="tfds", dataset="cifar10", split="train", canvas_size=32, batch_size=512)
    strength = 0.5
    c.views = dict(image=dict(num_views=2, ops=(
        dict(name="random_resized_crop", size=32, scale=(0.08, 1.0), interpolation="bicubic"),
        dict(name="flip", probability=0.5),
        dict(name="color_jitter", brightness=0.8 * strength, contrast=0.8 * strength, saturation=0.8 * strength,
             hue=0.2 * strength, probability=0.8),
        dict(name="grayscale", probability=0.2),
        NORMALIZE,
    )))  # fmt: skip

    c.networks = dict(
        encoder=dict(name="resnet", variant="18", stem="cifar"),
        projector=dict(name="projection_head", out_dim=128, num_layers=3),  # hidden layers as wide as the encoder
    )
    c.objective = dict(name="sigclr", positives="view", temperature=0.1, initial_bias=-10.0)
    c.optimizer = dict(
        name="lars", momentum=0.9, classic_momentum=True, trust_coefficient=0.001, weight_decay=1e-4,
        groups=(
            dict(match=r"^logit_bias$", weight_decay=0.0),  # adapts: its gradient is as large as the batch
            dict(match=r"(^|/)(bias|scale)$", weight_decay=0.0, trust_ratio=False),
            dict(match=r".*"),
        ),
    )  # fmt: skip
    c.schedule = dict(name="cosine", base=1.0 * c.data.batch_size / 256, warmup_epochs=10, end=0.0)

    c.eval_data = dict(test=dict(split="test"))
    c.eval_views = dict(image=dict(ops=(NORMALIZE,)))
    c.evals = dict(knn=dict(every_epochs=100, num_neighbors=20), linear_probe=dict())
    return c
