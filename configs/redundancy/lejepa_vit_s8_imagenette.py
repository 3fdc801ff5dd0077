"""LeJEPA, ViT-S/8, Imagenette: the authors' minimal example (MINIMAL.md of rbalestr-lab/lejepa; arXiv:2511.08544).

    vfm train --config=configs/redundancy/lejepa_vit_s8_imagenette.py --workdir=runs/lejepa_imagenette

To reach: 90.7 % top-1 by a linear probe, which they train along (200 minutes on one GPU). Not yet run by us.
Four views at 128 pixels, all of them global. As there, everything decays, biases too, and the learning rate ends at
half its peak (eta_min=1e-3; their README recommends a thousandth). What is probed is a dense layer of 512 on the
class token: here the encoder's `projection`, without their offset. Their solarisation has a probability of 0.5 within
one of 0.2. The argument "tiny" is the method at toy size.
"""

import ml_collections

from configs.common import IMAGENET_MEAN, IMAGENET_STD, tiny

NORMALIZE = dict(name="normalize", mean=IMAGENET_MEAN, std=IMAGENET_STD)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The recipe; variant is "" or "tiny"."""
    if variant == "tiny":
        return tiny(get_config())
    c = ml_collections.ConfigDict()
    c.title = "LeJEPA ViT-S/8 on Imagenette"
    c.seed = 0
    c.dtype = "bfloat16"
    c.total_epochs = 800

    c.data = dict(name="tfds", dataset="imagenette/160px-v2", split="train", canvas_size=320, batch_size=256)
    c.views = {"global": dict(num_views=4, ops=(
        dict(name="random_resized_crop", size=128, scale=(0.08, 1.0)),
        dict(name="color_jitter", brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, probability=0.8),
        dict(name="grayscale", probability=0.2),
        dict(name="gaussian_blur", probability=0.5, kernel_size=7, sigma=(0.1, 2.0)),
        dict(name="solarize", probability=0.2 * 0.5, threshold=128 / 255),
        dict(name="flip", probability=0.5),
        NORMALIZE,
    ))}  # fmt: skip

    c.networks = dict(
        encoder=dict(name="vit", variant="S/8", projection=512, drop_path=0.1),
        projector=dict(name="projection_head", hidden_dim=2048, out_dim=16, num_layers=3, last_norm="none",
                       use_bias=True, unbiased=True),
    )  # fmt: skip
    c.objective = dict(name="lejepa", regularizer_weight=0.02, num_slices=256, num_knots=17, t_max=3.0)
    c.optimizer = dict(name="adamw", weight_decay=0.05, groups=(dict(match=r".*"),))
    c.schedule = dict(name="cosine", base=2e-3, warmup_epochs=1, start=0.01 * 2e-3, end=1e-3)

    c.eval_data = dict(test=dict(split="validation"))
    c.eval_views = dict(image=dict(ops=(
        dict(name="center_crop", size=128, resize_shorter=128, interpolation="bilinear"), NORMALIZE,
    )))  # fmt: skip
    c.evals = dict(knn=dict(every_epochs=50, num_neighbors=20), linear_probe=dict())
    return c
