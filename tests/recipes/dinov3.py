"""DINOv3's facts: Siméoni et al., 2025. The readers of DINOv2's serve most of them."""

import math

from tests.recipes.dinov2 import FIELDS, encoder, of_encoder, of_objective, rate, rounded, stage_of

IMAGENET = "configs/self_distillation/dinov3_vit_l16_in1k.py"
LARGEST = "configs/self_distillation/dinov3_vit_7b16_lvd1689m.py"
STAGES = {
    ("dinov3", "vit_l16", "pretrain_in1k"): IMAGENET,
    ("dinov3", "vit_7b16", "stage1_pretrain"): LARGEST,
}
PROSE = {
    "arch.rope.angle", "arch.rope.dtype", "arch.rope.periods", "arch.rope.rescale_note", "koleo_scope",
    "data.imagenet1k_homogeneous_batches", "data.dataset",
}  # fmt: skip

OF_DINOV3 = FIELDS | {
    "arch.ffn_hidden": lambda r: encoder(r).sizes[2],
    "arch.ffn_ratio": lambda r: encoder(r).sizes[2] * 3 / 2 / encoder(r).sizes[0],
    "arch.ffn_bias": of_encoder("mlp_bias"),
    "arch.proj_bias": of_encoder("out_bias"),
    "arch.head_dim": lambda r: encoder(r).sizes[0] // encoder(r).sizes[3],
    "arch.mask_k_bias": lambda r: not encoder(r).key_bias,
    "arch.norm": lambda r: encoder(r).norm.replace("_", ""),
    "arch.untie_global_and_local_cls_norm": of_encoder("local_class_norm"),
    "arch.rope.base": of_encoder("rope_base"),
    "arch.rope.coords": lambda r: {"separate": "patch centres mapped to [-1,1] separately"}[
        encoder(r).rope_normalize
    ],
    "arch.rope.rescale_coords": of_encoder("rope_rescale"),
    "arch.rope.shift_coords": of_encoder("rope_shift"),
    "arch.rope.jitter_coords": of_encoder("rope_jitter"),
    "optim.base_lr": lambda r: rate(r) / 4 / math.sqrt(r["data"]["batch_size"] / 1024),
    "optim.lr_abs": lambda r: rounded(rate(r), 4 if rate(r) > 1e-3 else 3),
    "student_temp": of_objective("student_temperature"),
    "koleo_weight": of_objective("koleo_weight"),
    "gram": lambda r: r["objective"]["gram_weight"] or None,
}


def readers(stage=None):
    """Readers of one stage of a recipe."""
    return {path: lambda recipe, read=read: read(stage_of(recipe, stage)) for path, read in OF_DINOV3.items()}


READERS = readers()
