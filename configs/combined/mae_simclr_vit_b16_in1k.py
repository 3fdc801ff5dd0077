"""Masked autoencoding and contrastive learning of one encoder, ViT-B/16, ImageNet-1k: a weighted sum of two methods.

    vfm train --config=configs/combined/mae_simclr_vit_b16_in1k.py --workdir=runs/mae_simclr

An example of `combine`, not a paper's recipe; mixtures like it are those of Mishra et al., 2022 (CAN,
arXiv:2210.16870) and Huang et al., 2022 (CMAE, arXiv:2207.13532). Each member says which views it reads (`fields`),
with which weight, a number or a schedule, and from when on (`start_epochs`). Networks of one name are one network.
"""

import ml_collections

from configs.common import IMAGENET_MEAN, IMAGENET_STD, tiny

NORMALIZE = dict(name="normalize", mean=IMAGENET_MEAN, std=IMAGENET_STD)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The recipe; variant is "" or "tiny"."""
    if variant == "tiny":
        return tiny(get_config())
    c = ml_collections.ConfigDict()
    c.title = "MAE and SimCLR of one ViT-B/16 on ImageNet-1k"
    c.seed = 0
    c.dtype = "bfloat16"
    c.total_epochs = 800

    c.data = dict(name="tfds", dataset="imagenet2012", split="train", canvas_size=512, batch_size=4096)
    c.views = dict(
        image=dict(ops=(
            dict(name="random_resized_crop", size=224, scale=(0.2, 1.0), interpolation="bicubic"),
            dict(name="flip", probability=0.5),
            NORMALIZE,
        )),
        pair=dict(num_views=2, ops=(
            dict(name="random_resized_crop", size=224, scale=(0.08, 1.0), interpolation="bicubic"),
            dict(name="flip", probability=0.5),
            dict(name="color_jitter", brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, probability=0.8),
            dict(name="grayscale", probability=0.2),
            dict(name="gaussian_blur", probability=0.5, sigma=(0.1, 2.0)),
            NORMALIZE,
        )),
    )

    c.networks = dict(
        encoder=dict(name="vit", variant="B/16", positions="sincos2d", pooling="class"),
        decoder=dict(name="masked_decoder", width=512, depth=8, heads=16),
        projector=dict(name="projection_head", hidden_dim=4096, out_dim=256, num_layers=3),
    )
    c.objective = dict(name="combine", members=(
        dict(name="mae", weight=1.0, mask_ratio=0.75, normalize_target=True),
        dict(name="simclr", weight=dict(name="constant", base=0.1, warmup_epochs=40), start_epochs=5,
             fields=dict(image="pair"), temperature=0.2),
    ))
    c.optimizer = dict(name="adamw", b1=0.9, b2=0.95, weight_decay=0.05)
    c.schedule = dict(name="cosine", base=1.5e-4 * c.data.batch_size / 256, warmup_epochs=40, end=0.0)

    c.eval_data = dict(test=dict(split="validation"))
    c.eval_views = dict(image=dict(ops=(
        dict(name="center_crop", size=224, resize_shorter=256, interpolation="bicubic"), NORMALIZE,
    )))
    c.evals = dict(knn=dict(every_epochs=100, num_neighbors=20))
    return c
