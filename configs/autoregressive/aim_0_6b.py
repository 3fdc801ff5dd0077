"""AIM, 0.6 to 7 billion parameters (El-Nouby et al., 2024, arXiv:2401.08541, Table 1 and Sec. 4).

    vfm train --config=configs/autoregressive/aim_0_6b.py --workdir=runs/aim                   0.6B
    vfm train --config=configs/autoregressive/aim_0_6b.py:7b --workdir=runs/aim_7b             1b, 3b, 7b

To reach, top-1 on ImageNet-1k by an attentive probe of the last layer: 78.5 % (0.6B), 80.6 % (1B), 82.2 % (3B),
82.4 % (7B). Not yet run by us.
The paper trains on DFN-2B, four images of it for one of ImageNet-1k; here it is ImageNet-1k alone until --config.data
names a folder of yours. The authors' code has no pretraining: moments, weight decay, warm-up, clipping, crops and the
width of the head are those of a third party's reimplementation, or of the paper as cited there, and not verified.
"""

import ml_collections

from configs.common import IMAGENET_MEAN, IMAGENET_STD, tiny

STEPS = {"0.6b": 500_000, "1b": 1_200_000, "3b": 1_200_000, "7b": 1_200_000}


def get_config(size: str = "0.6b") -> ml_collections.ConfigDict:
    """The recipe; size is "0.6b", "1b", "3b", "7b" or "tiny"."""
    if size == "tiny":
        c = get_config()
        c.networks.head.update(width=48, depth=2)
        return tiny(c)
    c = ml_collections.ConfigDict()
    c.title = f"AIM-{size.upper()}"
    c.seed = 0
    c.dtype = "bfloat16"
    c.total_steps = STEPS[size]

    c.data = dict(name="tfds", dataset="imagenet2012", split="train", canvas_size=512, batch_size=4096)
    normalize = dict(name="normalize", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    c.views = dict(image=dict(ops=(
        dict(name="random_resized_crop", size=224, scale=(0.4, 1.0), interpolation="bicubic"),
        dict(name="flip", probability=0.5),
        normalize,
    )))  # fmt: skip

    c.networks = dict(
        encoder=dict(name="vit", variant=f"{size.upper()}-aim/14", positions="sincos2d", class_token=False,
                     pooling="mean", norm_input="patches", qkv_bias=False, mlp_bias=False, out_bias=False, scan=True,
                     remat="full"),
        head=dict(name="token_decoder", width=2048, depth=12, positions="sincos2d"),
    )  # fmt: skip
    c.objective = dict(name="aim", normalize_target=True)
    c.optimizer = dict(name="adamw", b1=0.9, b2=0.95, weight_decay=0.05, clip_norm=1.0)
    c.schedule = dict(name="cosine", base=1e-3, warmup_steps=31_250, end=0.0)
    c.mesh = dict(data=1, fsdp=-1)

    c.eval_data = dict(test=dict(split="validation"))
    c.eval_views = dict(image=dict(ops=(
        dict(name="center_crop", size=224, resize_shorter=256, interpolation="bicubic"), normalize,
    )))
    c.evals = dict(knn=dict(every_percent=10, num_neighbors=20))
    return c
