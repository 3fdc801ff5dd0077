"""LeJEPA, ViT-L/14, ImageNet-1k: the settings that the authors recommend to start from (Balestriero and LeCun, 2025).

    vfm train --config=configs/redundancy/lejepa_vit_l14_in1k.py --workdir=runs/lejepa
    vfm train --config=configs/redundancy/lejepa_vit_l14_in1k.py:resnet50 --workdir=runs/lejepa_r50

To reach: 79.48 % on average over eight data sets by linear probe, after 100 epochs (ViT-L). Not yet run by us.
Views, optimizer, schedule and slices are those of the README of rbalestr-lab/lejepa (arXiv:2511.08544). It does not
say: the patch (14 divides both 224 and 98), the weight of SIGReg (0.02 and not more is what their minimal example
has), the projector (2048, 2048, 512, of their library stable-pretraining), batch size, warm-up and drop path; these
are our reading. "resnet50" is the same on a ResNet-50, with the weight decay recommended for it. "tiny" is the method
at toy size.
"""

import ml_collections

from configs.common import IMAGENET_MEAN, IMAGENET_STD, tiny

NORMALIZE = dict(name="normalize", mean=IMAGENET_MEAN, std=IMAGENET_STD)


def get_config(encoder: str = "vit_l14") -> ml_collections.ConfigDict:
    """The recipe; encoder is "vit_l14" or "resnet50", or the whole "tiny"."""
    if encoder == "tiny":
        return tiny(get_config())
    c = ml_collections.ConfigDict()
    c.title = "LeJEPA on ImageNet-1k"
    c.seed = 0
    c.dtype = "bfloat16"
    c.total_epochs = 100

    c.data = dict(name="tfds", dataset="imagenet2012", split="train", canvas_size=512, batch_size=512)
    c.views = {
        "global": dict(num_views=2, ops=_crop(224, (0.3, 1.0))),
        "local": dict(num_views=6, ops=_crop(98, (0.05, 0.3))),
    }
    c.networks = dict(
        encoder={
            "vit_l14": dict(name="vit", variant="L/14", drop_path=0.1),
            "resnet50": dict(name="resnet", variant="50"),
        }[encoder],
        projector=dict(name="projection_head", hidden_dim=2048, out_dim=512, num_layers=3, last_norm="none",
                       use_bias=True, unbiased=True),
    )  # fmt: skip
    c.objective = dict(name="lejepa", regularizer_weight=0.02, num_slices=1024, num_knots=17, t_max=3.0)
    c.optimizer = dict(name="adamw", weight_decay={"vit_l14": 0.05, "resnet50": 5e-4}[encoder])
    c.schedule = dict(name="cosine", base=5e-4, warmup_epochs=10, end=5e-4 / 1000)

    c.eval_data = dict(test=dict(split="validation"))
    c.eval_views = dict(image=dict(ops=(
        dict(name="center_crop", size=224, resize_shorter=256, interpolation="bicubic"), NORMALIZE,
    )))  # fmt: skip
    c.evals = dict(knn=dict(every_epochs=10, num_neighbors=20))
    return c


def _crop(size: int, scale: tuple[float, float]) -> tuple[dict, ...]:
    return (
        dict(name="random_resized_crop", size=size, scale=scale, interpolation="bicubic"),
        dict(name="flip", probability=0.5),
        dict(name="color_jitter", brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, probability=0.8),
        dict(name="grayscale", probability=0.2),
        dict(name="gaussian_blur", probability=0.5, sigma=(0.1, 2.0)),
        dict(name="solarize", probability=0.2, threshold=128 / 255),
        NORMALIZE,
    )
