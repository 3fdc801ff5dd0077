"""SimCLR, ResNet-50, ImageNet-1k (Chen et al., 2020, arXiv:2002.05709, Sec. 2 and App. B.6).

    vfm train --config=configs/contrastive/simclr_r50_in1k.py --workdir=runs/simclr                       1000 epochs
    vfm train --config=configs/contrastive/simclr_r50_in1k.py:100 --workdir=runs/simclr        the code's, 100 epochs
    vfm train --config=configs/contrastive/simclr_r50_in1k.py:v2 --workdir=runs/simclr              version 2, 800

To reach: 69.1 % top-1 by linear probe after 1000 epochs, 64.5 % after the code's 100, 71.7 % by version 2 (Chen et
al., 2020, arXiv:2006.10029, Sec. 3). Not yet run by us.
The first follows the paper: weight decay 1e-6 and the linear rule for the learning rate. The code's command has 1e-4
and 0.075 · √batch, the same rate at 4096, and a projector of three layers. The loss is the paper's mean over both
directions; the code's is their sum, which LARS does not notice. The wider encoders (2x, 4x) are
--config.networks.encoder.width=128 and 256. Version 2's larger ones have selective kernels, which our ResNet lacks;
without them --config.networks.encoder.variant=152 --config.networks.encoder.width=192 is 152 (3x).
The argument ":vit_s16" runs the first recipe on a ViT-S/16, which the paper does not have.
"""

import ml_collections

from configs.common import IMAGENET_MEAN, IMAGENET_STD, tiny


def get_config(variant: str = "1000") -> ml_collections.ConfigDict:
    """The recipe; variant is "1000", "100" (the code's command), "v2", "vit_s16" or "tiny"."""
    if variant == "tiny":
        return tiny(get_config())
    c = _paper()
    if variant == "100":
        c.total_epochs = 100
        c.networks.projector.num_layers = 3
        c.optimizer.weight_decay = 1e-4
        c.schedule.base = 0.075 * c.data.batch_size**0.5
    elif variant == "v2":
        c.title = "SimCLR version 2 on ImageNet-1k"
        c.total_epochs = 800
        c.networks.projector.num_layers = 3
        c.optimizer.weight_decay = 1e-4
        c.schedule.base = 0.1 * c.data.batch_size**0.5
        c.schedule.warmup_epochs = c.total_epochs // 20
    elif variant == "vit_s16":
        c.networks.encoder = dict(name="vit", variant="S/16", positions="sincos2d", pooling="class")
    elif variant != "1000":
        raise ValueError(f'The variants are "1000", "100", "v2", "vit_s16" and "tiny"; found {variant!r}.')
    return c


def _paper() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.title = "SimCLR on ImageNet-1k"
    c.seed = 0
    c.dtype = "bfloat16"
    c.total_epochs = 1000

    c.data = dict(name="tfds", dataset="imagenet2012", split="train", canvas_size=512, batch_size=4096)
    strength = 1.0
    normalize = dict(name="normalize", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    c.views = dict(image=dict(num_views=2, ops=(
        dict(name="random_resized_crop", size=224, scale=(0.08, 1.0), interpolation="bicubic"),
        dict(name="flip", probability=0.5),
        dict(name="color_jitter", brightness=0.8 * strength, contrast=0.8 * strength, saturation=0.8 * strength,
             hue=0.2 * strength, probability=0.8, random_order=True),
        dict(name="grayscale", probability=0.2),
        dict(name="gaussian_blur", probability=0.5, kernel_ratio=0.1, sigma=(0.1, 2.0)),
        normalize,
    )))  # fmt: skip

    c.networks = dict(
        encoder=dict(name="resnet", variant="50", width=64, norm_momentum=0.9, norm_epsilon=1e-5),
        projector=dict(name="projection_head", hidden_dim=2048, out_dim=128, num_layers=2,
                       batch_norm_momentum=0.9, batch_norm_epsilon=1e-5),
    )  # fmt: skip
    c.objective = dict(name="simclr", temperature=0.1)
    c.optimizer = dict(
        name="lars", momentum=0.9, nesterov=False, classic_momentum=True, trust_coefficient=0.001, weight_decay=1e-6
    )
    c.schedule = dict(name="cosine", base=0.3 * c.data.batch_size / 256, warmup_epochs=10, end=0.0)

    c.eval_data = dict(test=dict(split="validation"))
    c.eval_views = dict(image=dict(ops=(
        dict(name="center_crop", size=224, resize_shorter=256, interpolation="bicubic"), normalize,
    )))  # fmt: skip
    c.evals = dict(knn=dict(every_epochs=100, num_neighbors=20))
    return c
