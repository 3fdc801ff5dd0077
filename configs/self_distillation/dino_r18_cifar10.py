"""DINO, ResNet-18, CIFAR-10 (Caron et al., 2021, arXiv:2104.14294; da Costa et al., solo-learn, 2021).

    vfm train --config=configs/self_distillation/dino_r18_cifar10.py --workdir=runs/dino_cifar10

Two stages: pretraining, and a linear probe on its frozen encoder. To reach: 89.52 % top-1 by linear probe after 1000
epochs (README of vturrisi/solo-learn). Not yet run by us.
The settings are those of solo-learn (scripts/pretrain/cifar/dino.yaml, augmentations/asymmetric.yaml), which trains
its probe along with the encoder; ours follows, at the rate of theirs. Two crops of one size; the second may be
solarised. Layers of the encoder move at the smaller of the learning rate and their trust ratio (LARC).
"""

import ml_collections

from configs.common import tiny

CROP = dict(name="random_resized_crop", size=32, scale=(0.08, 1.0), interpolation="bicubic")
FLIP = dict(name="flip", probability=0.5)
NORMALIZE = dict(name="normalize", mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))


def get_config(variant: str = "1000") -> ml_collections.ConfigDict:
    """The recipe; variant is "1000" (epochs) or "tiny"."""
    if variant == "tiny":
        return tiny(get_config())
    c = ml_collections.ConfigDict()
    c.title = "DINO ResNet-18 on CIFAR-10"
    c.seed = 0
    c.dtype = "bfloat16"
    c.total_epochs = int(variant)

    c.data = dict(name="tfds", dataset="cifar10", split="train", canvas_size=32, batch_size=256)
    colors = (
        dict(name="color_jitter", brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, probability=0.8),
        dict(name="grayscale", probability=0.2),
    )
    solarize = dict(name="solarize", threshold=0.5, probability=0.2)
    c.views = {"global": (
        dict(ops=(CROP, *colors, FLIP, NORMALIZE)),
        dict(ops=(CROP, *colors, solarize, FLIP, NORMALIZE)),
    )}  # fmt: skip

    c.networks = dict(
        encoder=dict(name="resnet", variant="18", stem="cifar", zero_init=False),
        head=dict(name="dino_head", out_dim=4096, hidden_dim=2048, bottleneck_dim=256, num_layers=3),
    )
    c.objective = dict(
        name="dino", assignment="center", center_momentum=0.9, student_temperature=0.1, teacher_temperature=0.07,
        teacher_momentum=dict(name="cosine", base=0.9995, end=1.0),
    )  # fmt: skip
    c.optimizer = dict(
        name="lars", momentum=0.9, trust_coefficient=0.02, clip_trust=True, weight_decay=1e-6,
        groups=(
            dict(match=r"^head/prototypes/", freeze_epochs=1),
            dict(match=r"(^|/)(bias|scale)$", weight_decay=0.0, trust_ratio=False),
            dict(match=r".*"),
        ),
    )  # fmt: skip
    c.schedule = dict(name="cosine", base=0.3 * c.data.batch_size / 256, start=3e-5, warmup_epochs=10, end=0.0)

    probe = dict(
        name="linear_probe",
        carry=(r"^encoder/",),
        total_epochs=100,
        views={"global": None, "image": dict(ops=(CROP, FLIP, NORMALIZE))},
        networks=dict(head=dict(name="linear_head", num_classes=10)),
        objective=dict(name="supervised", freeze_encoder=True),
        optimizer=dict(name="sgd", momentum=0.9,
                       groups=(dict(match=r"^encoder/", lr_scale=0.0), dict(match=r".*"))),
        schedule=dict(name="cosine", base=0.1, start=0.0, warmup_epochs=0),
        evals=dict(knn=None, classification=dict(every_epochs=10)),
    )  # fmt: skip
    c.stages = (dict(name="pretrain"), probe)

    c.eval_data = dict(test=dict(split="test"))
    c.eval_views = dict(image=dict(ops=(NORMALIZE,)))
    c.evals = dict(knn=dict(every_epochs=100, num_neighbors=20))
    return c
