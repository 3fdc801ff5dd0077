"""DINO, ViT-B/16 and ViT-B/8, ImageNet-1k (Caron et al., 2021, arXiv:2104.14294, and the authors' code).

    vfm train --config=configs/self_distillation/dino_vit_b16_in1k.py --workdir=runs/dino_b16              400 epochs
    vfm train --config=configs/self_distillation/dino_vit_b16_in1k.py:vit_b8 --workdir=runs/dino_b8        300 epochs

To reach: 76.1 % top-1 by k-NN and 78.2 % by linear probe with patches of 16 pixels, 77.4 and 80.1 % with 8. Not yet
run by us.
The arguments are those of the published models, as a third party restates them. It follows the code: gradients are
clipped tensor by tensor, the temperature warms up epoch by epoch, and what is frozen in the first epochs are the
prototypes. Kernels start from a normal distribution that is not cut at two units.
"""

import ml_collections

from configs.common import IMAGENET_MEAN, IMAGENET_STD, dino_crops, tiny


def get_config(variant: str = "vit_b16") -> ml_collections.ConfigDict:
    """The recipe; variant is "vit_b16", "vit_b8" or "tiny"."""
    if variant == "tiny":
        return tiny(get_config())
    patch = {"vit_b16": 16, "vit_b8": 8}[variant]
    c = ml_collections.ConfigDict()
    c.title = f"DINO ViT-B/{patch} on ImageNet-1k"
    c.seed = 0
    c.dtype = "float32"
    c.total_epochs = {16: 400, 8: 300}[patch]

    batch_size = {16: 1024, 8: 1056}[patch]
    c.data = dict(name="tfds", dataset="imagenet2012", split="train", canvas_size=512, batch_size=batch_size)
    c.views = dino_crops(global_scale=(0.25, 1.0), local_scale=(0.05, 0.25), num_local=10)

    c.networks = dict(
        encoder=dict(name="vit", variant=f"B/{patch}", drop_path=0.1, init_std=0.02, prefix_positions=1,
                     position_resampling="bicubic_offset"),
        head=dict(name="dino_head", out_dim=65536, hidden_dim=2048, bottleneck_dim=256, num_layers=3),
    )  # fmt: skip
    c.objective = dict(
        name="dino", assignment="center", center_momentum=0.9, student_temperature=0.1,
        teacher_temperature=dict(name="constant", start={16: 0.04, 8: 0.03}[patch], base=0.07, warmup_epochs=50,
                                 warmup_reaches_base=True, hold_epochs=1),
        teacher_momentum=dict(name="cosine", base=0.996, end=1.0),
    )  # fmt: skip
    c.optimizer = dict(
        name="adamw", b1=0.9, b2=0.999, clip_norm={16: 0.3, 8: 3.0}[patch], clip_over="leaf",
        weight_decay=dict(name="cosine", base=0.04, end=0.4),
        groups=(
            dict(match=r"^head/prototypes/", freeze_epochs=3),
            dict(match=r"(^|/)(bias|scale)$", weight_decay=0.0),
            dict(match=r".*"),
        ),
    )  # fmt: skip
    c.schedule = dict(name="cosine", base={16: 0.00075, 8: 0.0005}[patch] * batch_size / 256, warmup_epochs=10,
                      warmup_reaches_base=True, end=2e-6)  # fmt: skip

    c.eval_data = dict(test=dict(split="validation"))
    c.eval_views = dict(image=dict(ops=(
        dict(name="center_crop", size=224, resize_shorter=256, interpolation="bicubic"),
        dict(name="normalize", mean=IMAGENET_MEAN, std=IMAGENET_STD),
    )))  # fmt: skip
    c.evals = dict(knn=dict(every_epochs=20, num_neighbors=20))
    return c
