"""MAE on a folder of your own images: ViT-S/16 at 224 pixels, from scratch.

    vfm train --config=configs/folder.py:PATH/TO/IMAGES --workdir=runs/mine

Images in subfolders by class are probed against the classes (a tenth of the images is held out for it); without
subfolders take the evaluators out: --config.evals=None --config.baselines=None. On a CPU try
--config.networks.encoder.variant=mu/16 first. Settings are MAE's (He et al., 2021, arXiv:2111.06377, Table 8), with a
smaller batch and a smaller encoder.
"""

import ml_collections

from configs.common import IMAGENET_MEAN, IMAGENET_STD


def get_config(path: str = "") -> ml_collections.ConfigDict:
    """The recipe for the images below `path`."""
    c = ml_collections.ConfigDict()
    c.title = "A masked autoencoder of my own images"
    c.seed = 0
    c.dtype = "float32"  # "bfloat16" on an accelerator
    c.total_epochs = 200

    c.data = dict(name="folder", path=path, split="all[:90%]", canvas_size=256, batch_size=64)
    normalize = dict(name="normalize", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    c.views = dict(image=dict(ops=(
        dict(name="random_resized_crop", size=224, scale=(0.2, 1.0), interpolation="bicubic"),
        dict(name="flip", probability=0.5),
        normalize,
    )))

    c.networks = dict(
        encoder=dict(name="vit", variant="S/16", positions="sincos2d", pooling="mean"),
        decoder=dict(name="masked_decoder", width=256, depth=4, heads=8),
    )
    c.objective = dict(name="mae", mask_ratio=0.75, normalize_target=True)
    c.optimizer = dict(name="adamw", b1=0.9, b2=0.95, weight_decay=0.05)
    c.schedule = dict(name="cosine", base=1.5e-4 * max(c.data.batch_size, 256) / 256, warmup_percent=5.0)
    c.checkpoints = dict(every_percent=5.0)

    c.eval_data = dict(test=dict(split="all[90%:]"))
    c.eval_views = dict(image=dict(ops=(
        dict(name="center_crop", size=224, resize_shorter=256, interpolation="bicubic"),
        normalize,
    )))
    c.evals = dict(knn=dict(every_percent=10.0), linear_probe=dict())
    c.baselines = ("random_init",)
    return c
