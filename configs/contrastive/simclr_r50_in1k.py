"""SimCLR, ResNet-50, ImageNet-1k (Chen et al., 2020, arXiv:2002.05709, Sec. 2 and App. B.6).

    vfm train --config=configs/contrastive/simclr_r50_in1k.py --workdir=runs/simclr

To reach: 69.1 % top-1 by linear probe after 1000 epochs. Not yet run by us.
It follows the paper: weight decay 1e-6 and the linear rule for the learning rate (the code's command for 100 epochs
has 1e-4 and 0.075 · √batch, the same rate at 4096). The loss is the paper's mean over both directions; the code's is
their sum, which LARS does not notice. The wider encoders (2x, 4x) are --config.networks.encoder.width=128 and 256.
The argument ":vit_s16" runs the same recipe on a ViT-S/16, which the paper does not have.
"""

import ml_collections

from configs.common import IMAGENET_MEAN, IMAGENET_STD, tiny


def get_config(encoder: str = "resnet50") -> ml_collections.ConfigDict:
    """The recipe; encoder is "resnet50", "vit_s16" or "tiny"."""
    if encoder == "tiny":
        return tiny(get_config())
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
        encoder={
            "resnet50": dict(name="resnet", variant="50", width=64, norm_momentum=0.9, norm_epsilon=1e-5),
            "vit_s16": dict(name="vit", variant="S/16", positions="sincos2d", pooling="class"),
        }[encoder],
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
