"""SupCon, ResNet-50, CIFAR-10 (Khosla et al., 2020, arXiv:2004.11362; README and code of HobbitLong/SupContrast).

    vfm train --config=configs/contrastive/supcon_r50_cifar10.py --workdir=runs/supcon
    vfm train --config=configs/contrastive/supcon_r50_cifar10.py:linear --workdir=runs/supcon_linear \
        --config.start_from=runs/supcon

To reach: 96.0 % top-1 by linear probe; 76.5 % on CIFAR-100 (":cifar100", then --config.data.dataset=cifar100
--config.networks.head.num_classes=100 for the probe). Not yet run by us.
The code's cosine runs over all epochs with the warm-up laid over its first ten, by epochs; here it begins after them,
and falls by steps. The argument "tiny" is the method at toy size.
"""

import ml_collections

from configs.common import tiny

MEAN_AND_STD = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}


def get_config(variant: str = "cifar10") -> ml_collections.ConfigDict:
    """The recipe; variant is "cifar10" or "cifar100" (pretraining), "linear" or "tiny"."""
    if variant == "tiny":
        return tiny(get_config())
    return _linear() if variant == "linear" else _pretrain(variant)


def _cifar(dataset: str, batch_size: int) -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.data = dict(name="tfds", dataset=dataset, split="train", canvas_size=32, batch_size=batch_size)
    c.networks = dict(encoder=dict(name="resnet", variant="50", stem="cifar", zero_init=False))
    c.eval_data = dict(test=dict(split="test"))
    c.eval_views = dict(image=dict(ops=(_normalize(dataset),)))
    return c


def _normalize(dataset: str) -> dict:
    mean, std = MEAN_AND_STD[dataset]
    return dict(name="normalize", mean=mean, std=std)


def _pretrain(dataset: str) -> ml_collections.ConfigDict:
    c = _cifar(dataset, batch_size=1024)
    c.title = f"SupCon ResNet-50 on {dataset}"
    c.total_epochs = 1000

    c.views = dict(image=dict(num_views=2, ops=(
        dict(name="random_resized_crop", size=32, scale=(0.2, 1.0)),
        dict(name="flip", probability=0.5),
        dict(name="color_jitter", brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, probability=0.8),
        dict(name="grayscale", probability=0.2),
        _normalize(dataset),
    )))  # fmt: skip
    c.networks.projector = dict(
        name="projection_head", out_dim=128, num_layers=2, hidden_norm=False, last_norm="none", use_bias=True
    )
    c.objective = dict(name="supcon", temperature=0.1, base_temperature=0.07)
    c.optimizer = dict(name="sgd", momentum=0.9, weight_decay=1e-4, groups=(dict(match=r".*"),))
    c.schedule = dict(name="cosine", base=0.5, warmup_epochs=10, start=0.01, end=0.5 * 0.1**3)

    c.evals = dict(knn=dict(every_epochs=50, num_neighbors=20))
    return c


def _linear() -> ml_collections.ConfigDict:
    c = _cifar("cifar10", batch_size=512)
    c.title = "SupCon ResNet-50, linear probe on cifar10"
    c.total_epochs = 100

    c.views = dict(image=dict(ops=(
        dict(name="random_resized_crop", size=32, scale=(0.2, 1.0)),
        dict(name="flip", probability=0.5),
        _normalize("cifar10"),
    )))  # fmt: skip
    c.networks.head = dict(name="linear_head", num_classes=10)
    c.objective = dict(name="supervised", freeze_encoder=True)
    c.optimizer = dict(
        name="sgd", momentum=0.9, weight_decay=0.0,
        groups=(dict(match=r"^encoder/", lr_scale=0.0), dict(match=r".*")),
    )  # fmt: skip
    c.schedule = dict(name="staircase", base=5.0, warmup_epochs=10, start=0.01, drop_epochs=(60, 75, 90), factor=0.2)

    c.start_from = "runs/supcon"
    c.carry = (r"^encoder/",)
    c.evals = dict(classification=dict(every_epochs=5))
    return c
