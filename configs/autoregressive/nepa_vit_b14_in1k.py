"""NEPA, ViT-B/14 and L/14, ImageNet-1k (Xu et al., 2025, arXiv:2512.16922, and the authors' code).

    vfm train --config=configs/autoregressive/nepa_vit_b14_in1k.py --workdir=runs/nepa              B/14, 1600 epochs
    vfm train --config=configs/autoregressive/nepa_vit_b14_in1k.py:l14 --workdir=runs/nepa_l        L/14

To reach: 83.8 % top-1 (B), 85.3 % (L) after fine-tuning, with attention in both directions. Not yet run by us.
It follows the code's scripts. Norms of queries and keys have learned factors, which B has not there; the coordinates
of rotary positions are rescaled for each example, where the code draws once for the batch.
"""

import ml_collections

from configs.common import tiny


def get_config(size: str = "b14") -> ml_collections.ConfigDict:
    """The recipe; size is "b14", "l14" or "tiny"."""
    if size == "tiny":
        return tiny(get_config())
    variant = {"b14": "B/14", "l14": "L/14"}[size]
    c = ml_collections.ConfigDict()
    c.title = f"NEPA ViT-{variant} on ImageNet-1k"
    c.seed = 0
    c.dtype = "bfloat16"
    c.total_epochs = 1600

    c.data = dict(name="tfds", dataset="imagenet2012", split="train", canvas_size=512, batch_size=4096)
    normalize = dict(name="normalize", mean=0.5, std=0.5)
    c.views = dict(image=dict(ops=(
        dict(name="random_resized_crop", size=224, scale=(0.08, 1.0), interpolation="bilinear"),
        dict(name="flip", probability=0.5),
        normalize,
    )))  # fmt: skip

    c.networks = dict(
        encoder=dict(name="vit", variant=variant, causal=True, positions="rope", rope_base=100.0, rope_rescale=2.0,
                     class_token=True, pooling="mean", qk_norm=True, layer_scale=1e-5, norm_epsilon=1e-12,
                     init_std=0.02),
    )  # fmt: skip
    c.objective = dict(name="nepa")
    c.optimizer = dict(name="adamw", b1=0.9, b2=0.95, weight_decay=0.05, clip_norm=1.0)
    c.schedule = dict(name="cosine", base=3e-4 * c.data.batch_size / 256, warmup_percent=2.5, end=0.0)
    c.ema = dict(momentum=0.9999)

    c.eval_data = dict(test=dict(split="validation"))
    c.eval_views = dict(image=dict(ops=(
        dict(name="center_crop", size=224, resize_shorter=224, interpolation="bilinear"), normalize,
    )))
    c.evals = dict(knn=dict(every_epochs=100, num_neighbors=20))
    return c
