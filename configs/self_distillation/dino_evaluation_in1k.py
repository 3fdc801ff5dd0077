"""DINO's linear probe and k-NN on ImageNet-1k (Caron et al., 2021, arXiv:2104.14294, Sec. 4.1, and their code).

    vfm train --config=configs/self_distillation/dino_evaluation_in1k.py --config.start_from=runs/dino \
        --workdir=runs/dino_evaluation                                            ViT-S/16, of `dino_vit_s16_in1k.py`
    vfm train --config=configs/self_distillation/dino_evaluation_in1k.py:b16 --config.start_from=runs/dino_b16 \
        --workdir=runs/dino_b16_evaluation                                        ViT-B/16, of `dino_vit_b16_in1k.py`

To reach by linear probe: 74.0 to 77.0 % top-1 for ViT-S/16 after 100 to 800 epochs, 78.2 % for ViT-B/16; the recipes
of these say what k-NN reaches. Not yet run by us.
It follows the code: a small model's class tokens of the last four blocks stand side by side, a base model's class
token stands beside the mean of its patches; the k-NN looks at the last class token alone. The learning rate is the
code's default, which the authors advise to tune for each model.
"""

import ml_collections

from configs.common import IMAGENET_MEAN, IMAGENET_STD, tiny

SIZES = {  # variant, what is probed, the run it starts from
    "s16": ("S/16", dict(pooling="class", pooled_blocks=4), "runs/dino"),
    "b16": ("B/16", dict(pooling="class_mean"), "runs/dino_b16"),
}


def get_config(size: str = "s16") -> ml_collections.ConfigDict:
    """The recipe; size is "s16", "b16" or "tiny"."""
    if size == "tiny":
        c = tiny(get_config())
        c.networks.encoder.pooled_blocks = 2  # of three
        return c
    variant, pooled, run = SIZES[size]
    c = ml_collections.ConfigDict()
    c.title = f"DINO ViT-{variant}, linear probe and k-NN on ImageNet-1k"
    c.seed = 0
    c.dtype = "bfloat16"
    c.total_epochs = 100

    normalize = dict(name="normalize", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    c.data = dict(name="tfds", dataset="imagenet2012", split="train", canvas_size=512, batch_size=1024)
    c.views = dict(image=dict(ops=(
        dict(name="random_resized_crop", size=224, scale=(0.08, 1.0), interpolation="bilinear"),
        dict(name="flip", probability=0.5),
        normalize,
    )))  # fmt: skip
    c.networks = dict(
        encoder=dict(name="vit", variant=variant, prefix_positions=1, position_resampling="bicubic_offset", **pooled),
        head=dict(name="linear_head", num_classes=1000, init_std=0.01),
    )
    c.objective = dict(name="supervised", freeze_encoder=True)
    c.optimizer = dict(name="sgd", momentum=0.9, weight_decay=0.0,
                       groups=(dict(match=r"^encoder/", lr_scale=0.0), dict(match=r".*")))  # fmt: skip
    c.schedule = dict(name="cosine", base=0.001 * c.data.batch_size / 256, end=0.0, hold_epochs=1)

    c.start_from = run
    c.carry = (r"^encoder/",)
    c.eval_data = dict(test=dict(split="validation"))
    c.eval_views = dict(image=dict(ops=(
        dict(name="center_crop", size=224, resize_shorter=256, interpolation="bicubic"), normalize,
    )))  # fmt: skip
    c.evals = dict(
        classification=dict(every_epochs=5),
        knn=dict(num_neighbors=(10, 20, 100, 200), temperature=0.07, pool="class"),
    )
    return c
