"""Scaling Vision Transformers, ViT-g/14 and G/14 (Zhai et al., 2021, arXiv:2106.04560, big_vision's `train_vit_g`).

    vfm train --config=configs/supervised/vit_g14_jft3b.py --config.data.path=DIR --workdir=runs/vit_g14
    ... :G14                                                    the larger one: nothing but the network differs

It follows the code. JFT-3B is not public: --config.data.path names a folder of yours with a subfolder for each class,
and --config.networks.head.num_classes their number. Decay is 0.03 and 3 for the head, AdamW's forms of their 2.4e-5
and a hundred times that at a rate of 8e-4. The loss is the code's default.
"""

import ml_collections

from configs.common import tiny


def get_config(variant: str = "g14") -> ml_collections.ConfigDict:
    """The recipe; variant is "g14", "G14" or "tiny"."""
    if variant == "tiny":
        return tiny(get_config())
    c = ml_collections.ConfigDict()
    c.title = f"ViT-{variant[0]}/14 with labels"
    c.seed = 0
    c.dtype = "bfloat16"
    c.total_steps = 1_000_000

    c.data = dict(name="folder", path="data/jft3b", canvas_size=512, batch_size=16384)
    c.views = dict(image=dict(ops=(
        dict(name="random_resized_crop", size=224, scale=(0.05, 1.0), interpolation="bilinear"),
        dict(name="flip", probability=0.5),
        dict(name="normalize", mean=0.5, std=0.5),
    )))  # fmt: skip
    c.networks = dict(
        encoder=dict(name="vit", variant={"g14": "g/14", "G14": "G/14"}[variant], positions="learned",
                     class_token=False, pooling="attention", activation="gelu_tanh", scan=True, remat="dots"),
        head=dict(name="linear_head", num_classes=29_593, init_std=0.0, init_bias=-10.0),
    )  # fmt: skip
    c.objective = dict(name="supervised", loss="sigmoid")
    c.optimizer = dict(
        name="adafactor", weight_decay=0.03, clip_norm=1.0,
        groups=(
            dict(match=r"^head/.*kernel$", weight_decay=100 * 0.03),
            dict(match=r"kernel$"),
            dict(match=r".*", weight_decay=0.0),
        ),
    )  # fmt: skip
    c.schedule = dict(name="rsqrt", base=8e-4, warmup_steps=10_000, timescale_steps=10_000, cooldown_steps=50_000)

    c.eval_views = dict(image=dict(ops=(
        dict(name="center_crop", size=224, resize_shorter=256, interpolation="bilinear"),
        dict(name="normalize", mean=0.5, std=0.5),
    )))  # fmt: skip
    return c
