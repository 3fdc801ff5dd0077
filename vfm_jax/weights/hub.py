"""Public checkpoints by name, and where their files are: in a folder of the user's, or on the Hugging Face hub.

The hub's own settings hold: HF_HOME (cache), HF_ENDPOINT (mirror), HF_HUB_OFFLINE, HF_TOKEN (gated repositories).
"""

import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import nearest
from vfm_jax.weights.family import CLIP, HALF, IMAGENET, Preprocessing
from vfm_jax.weights.files.folder import ENDINGS, STANDARD, weight_map

SATELLITE = ((0.430, 0.411, 0.296), (0.213, 0.156, 0.143))  # of SAT-493M: DINOv3's README
COMPANIONS = ("config.json", "preprocessor_config.json")
INSTALL = 'pip install "vfm-jax[hub]"'


class Checkpoint(NamedTuple):
    """Published weights.

    Attributes:
        repository: "owner/name" on the hub; None for weights that only their authors' server has.
        family: whose naming the file is in; a name of `weights.load.FAMILIES`.
        licence: as the publisher names it; "" where it says none.
        preprocessing: of images; None where the repository's own file must say.
        figures: percent on ImageNet-1k's validation set: "top1" with the classifier of the file, "knn" and "linear"
            on frozen features, "fine_tuned" after training everything.
        source: of the figures; "" where there are none.
        gated: whether the publisher must grant access first.
        files: in order of preference; the first that is there is taken.
        url: of the one file, where there is no repository.
    """

    repository: str | None
    family: str
    licence: str
    preprocessing: Preprocessing | None = None
    figures: Mapping[str, float] = {}
    source: str = ""
    gated: bool = False
    files: Sequence[str] = STANDARD
    url: str = ""


def _preprocessing(size: int, mean_std: Any, interpolation: str, crop_ratio: float) -> Preprocessing:
    return Preprocessing((size, size), *mean_std, interpolation, crop_ratio)


# --- timm. Names, licences and preprocessing: its registry, version 1.0.31. Top-1: its results/results-imagenet.csv
# at commit aa4b5850, where that was measured at the same size.
_TIMM_SOURCE = "github.com/huggingface/pytorch-image-models, results/results-imagenet.csv, aa4b5850"
_TIMM = (
    # name, family, licence, size, mean and std, interpolation, crop ratio, top-1
    ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", "timm/vit", "apache-2.0", 224, HALF, "bicubic", 0.9, 75.452),
    ("vit_small_patch16_224.augreg_in21k_ft_in1k", "timm/vit", "apache-2.0", 224, HALF, "bicubic", 0.9, 81.402),
    ("vit_base_patch16_224.augreg_in21k_ft_in1k", "timm/vit", "apache-2.0", 224, HALF, "bicubic", 0.9, 84.534),
    ("vit_large_patch16_224.augreg_in21k_ft_in1k", "timm/vit", "apache-2.0", 224, HALF, "bicubic", 0.9, 85.856),
    ("vit_base_patch16_224.augreg2_in21k_ft_in1k", "timm/vit", "apache-2.0", 224, HALF, "bicubic", 0.9, 85.108),
    ("vit_base_patch32_224.augreg_in21k_ft_in1k", "timm/vit", "apache-2.0", 224, HALF, "bicubic", 0.9, 80.732),
    ("vit_base_patch8_224.augreg_in21k_ft_in1k", "timm/vit", "apache-2.0", 224, HALF, "bicubic", 0.9, 85.838),
    ("vit_base_patch16_224.augreg_in21k", "timm/vit", "apache-2.0", 224, HALF, "bicubic", 0.9, None),
    ("vit_large_patch16_224.augreg_in21k", "timm/vit", "apache-2.0", 224, HALF, "bicubic", 0.9, None),
    ("vit_small_patch16_224.augreg_in21k", "timm/vit", "apache-2.0", 224, HALF, "bicubic", 0.9, None),
    ("vit_tiny_patch16_224.augreg_in21k", "timm/vit", "apache-2.0", 224, HALF, "bicubic", 0.9, None),
    ("vit_small_patch16_224.dino", "timm/vit", "apache-2.0", 224, IMAGENET, "bicubic", 0.9, None),
    ("vit_small_patch8_224.dino", "timm/vit", "apache-2.0", 224, IMAGENET, "bicubic", 0.9, None),
    ("vit_base_patch16_224.dino", "timm/vit", "apache-2.0", 224, IMAGENET, "bicubic", 0.9, None),
    ("vit_base_patch8_224.dino", "timm/vit", "apache-2.0", 224, IMAGENET, "bicubic", 0.9, None),
    ("vit_base_patch16_224.mae", "timm/vit", "cc-by-nc-4.0", 224, IMAGENET, "bicubic", 0.9, None),
    ("vit_large_patch16_224.mae", "timm/vit", "cc-by-nc-4.0", 224, IMAGENET, "bicubic", 0.9, None),
    ("vit_huge_patch14_224.mae", "timm/vit", "cc-by-nc-4.0", 224, IMAGENET, "bicubic", 0.9, None),
    ("vit_small_patch14_dinov2.lvd142m", "timm/vit", "apache-2.0", 518, IMAGENET, "bicubic", 1.0, None),
    ("vit_base_patch14_dinov2.lvd142m", "timm/vit", "apache-2.0", 518, IMAGENET, "bicubic", 1.0, None),
    ("vit_large_patch14_dinov2.lvd142m", "timm/vit", "apache-2.0", 518, IMAGENET, "bicubic", 1.0, None),
    ("vit_giant_patch14_dinov2.lvd142m", "timm/vit", "apache-2.0", 518, IMAGENET, "bicubic", 1.0, None),
    ("vit_small_patch14_reg4_dinov2.lvd142m", "timm/vit", "apache-2.0", 518, IMAGENET, "bicubic", 1.0, None),
    ("vit_base_patch14_reg4_dinov2.lvd142m", "timm/vit", "apache-2.0", 518, IMAGENET, "bicubic", 1.0, None),
    ("vit_large_patch14_reg4_dinov2.lvd142m", "timm/vit", "apache-2.0", 518, IMAGENET, "bicubic", 1.0, None),
    ("vit_giant_patch14_reg4_dinov2.lvd142m", "timm/vit", "apache-2.0", 518, IMAGENET, "bicubic", 1.0, None),
    ("vit_small_patch16_dinov3.lvd1689m", "timm/vit", "dinov3-license", 256, IMAGENET, "bicubic", 1.0, None),
    ("vit_small_plus_patch16_dinov3.lvd1689m", "timm/vit", "dinov3-license", 256, IMAGENET, "bicubic", 1.0, None),
    ("vit_base_patch16_dinov3.lvd1689m", "timm/vit", "dinov3-license", 256, IMAGENET, "bicubic", 1.0, None),
    ("vit_large_patch16_dinov3.lvd1689m", "timm/vit", "dinov3-license", 256, IMAGENET, "bicubic", 1.0, None),
    ("vit_huge_plus_patch16_dinov3.lvd1689m", "timm/vit", "dinov3-license", 256, IMAGENET, "bicubic", 1.0, None),
    ("vit_7b_patch16_dinov3.lvd1689m", "timm/vit", "dinov3-license", 256, IMAGENET, "bicubic", 1.0, None),
    ("vit_large_patch16_dinov3.sat493m", "timm/vit", "dinov3-license", 256, SATELLITE, "bicubic", 1.0, None),
    ("vit_7b_patch16_dinov3.sat493m", "timm/vit", "dinov3-license", 256, SATELLITE, "bicubic", 1.0, None),
    ("convnext_tiny.dinov3_lvd1689m", "timm/convnext", "dinov3-license", 224, IMAGENET, "bicubic", 1.0, None),
    ("convnext_small.dinov3_lvd1689m", "timm/convnext", "dinov3-license", 224, IMAGENET, "bicubic", 1.0, None),
    ("convnext_base.dinov3_lvd1689m", "timm/convnext", "dinov3-license", 224, IMAGENET, "bicubic", 1.0, None),
    ("convnext_large.dinov3_lvd1689m", "timm/convnext", "dinov3-license", 224, IMAGENET, "bicubic", 1.0, None),
    ("deit_tiny_patch16_224.fb_in1k", "timm/vit", "apache-2.0", 224, IMAGENET, "bicubic", 0.9, 72.19),
    ("deit_small_patch16_224.fb_in1k", "timm/vit", "apache-2.0", 224, IMAGENET, "bicubic", 0.9, 79.856),
    ("deit_base_patch16_224.fb_in1k", "timm/vit", "apache-2.0", 224, IMAGENET, "bicubic", 0.9, 81.98),
    ("deit_base_distilled_patch16_224.fb_in1k", "timm/vit", "apache-2.0", 224, IMAGENET, "bicubic", 0.9, 83.384),
    ("deit_small_distilled_patch16_224.fb_in1k", "timm/vit", "apache-2.0", 224, IMAGENET, "bicubic", 0.9, 81.204),
    ("deit_tiny_distilled_patch16_224.fb_in1k", "timm/vit", "apache-2.0", 224, IMAGENET, "bicubic", 0.9, 74.538),
    ("deit3_small_patch16_224.fb_in1k", "timm/vit", "apache-2.0", 224, IMAGENET, "bicubic", 0.9, 81.382),
    ("deit3_base_patch16_224.fb_in22k_ft_in1k", "timm/vit", "apache-2.0", 224, IMAGENET, "bicubic", 1.0, 85.728),
    ("deit3_large_patch16_224.fb_in22k_ft_in1k", "timm/vit", "apache-2.0", 224, IMAGENET, "bicubic", 1.0, 86.99),
    ("vit_base_patch16_clip_224.openai", "timm/vit", "apache-2.0", 224, CLIP, "bicubic", 0.9, None),
    ("vit_base_patch32_clip_224.openai", "timm/vit", "apache-2.0", 224, CLIP, "bicubic", 0.9, None),
    ("vit_large_patch14_clip_224.openai", "timm/vit", "apache-2.0", 224, CLIP, "bicubic", 1.0, None),
    ("vit_base_patch16_clip_224.laion2b", "timm/vit", "apache-2.0", 224, CLIP, "bicubic", 1.0, None),
    ("vit_large_patch14_clip_224.laion2b", "timm/vit", "apache-2.0", 224, HALF, "bicubic", 1.0, None),
    ("vit_base_patch16_clip_224.dfn2b", "timm/vit", "apple-ascl", 224, CLIP, "bicubic", 1.0, None),
    ("vit_base_patch16_siglip_224.webli", "timm/vit", "apache-2.0", 224, HALF, "bicubic", 0.9, None),
    ("vit_base_patch16_siglip_224.v2_webli", "timm/vit", "apache-2.0", 224, HALF, "bicubic", 0.9, None),
    ("vit_so400m_patch14_siglip_384.webli", "timm/vit", "apache-2.0", 384, HALF, "bicubic", 0.9, None),
    ("vit_so400m_patch14_siglip_224.v2_webli", "timm/vit", "apache-2.0", 224, HALF, "bicubic", 0.9, None),
    ("vit_large_patch16_siglip_256.v2_webli", "timm/vit", "apache-2.0", 256, HALF, "bicubic", 0.9, None),
    ("beit_base_patch16_224.in22k_ft_in22k_in1k", "timm/vit", "apache-2.0", 224, HALF, "bicubic", 0.9, 85.238),
    ("beit_large_patch16_224.in22k_ft_in22k_in1k", "timm/vit", "apache-2.0", 224, HALF, "bicubic", 0.9, 87.486),
    ("beitv2_base_patch16_224.in1k_ft_in22k_in1k", "timm/vit", "apache-2.0", 224, IMAGENET, "bicubic", 0.9, 86.494),
    ("aimv2_large_patch14_224.apple_pt", "timm/vit", "apple-ascl", 224, CLIP, "bicubic", 1.0, None),
    ("aimv2_huge_patch14_224.apple_pt", "timm/vit", "apple-ascl", 224, CLIP, "bicubic", 1.0, None),
    ("convnext_tiny.fb_in1k", "timm/convnext", "apache-2.0", 224, IMAGENET, "bicubic", 0.875, 82.066),
    ("convnext_tiny.fb_in22k_ft_in1k", "timm/convnext", "apache-2.0", 224, IMAGENET, "bicubic", 0.875, None),
    ("convnext_small.fb_in22k_ft_in1k", "timm/convnext", "apache-2.0", 224, IMAGENET, "bicubic", 0.875, 84.582),
    ("convnext_base.fb_in22k_ft_in1k", "timm/convnext", "apache-2.0", 224, IMAGENET, "bicubic", 0.875, 85.814),
    ("convnext_large.fb_in22k_ft_in1k", "timm/convnext", "apache-2.0", 224, IMAGENET, "bicubic", 0.875, 86.612),
    ("convnextv2_atto.fcmae_ft_in1k", "timm/convnext", "cc-by-nc-4.0", 224, IMAGENET, "bicubic", 0.875, 76.644),
    ("convnextv2_nano.fcmae_ft_in22k_in1k", "timm/convnext", "cc-by-nc-4.0", 224, IMAGENET, "bicubic", 0.875, 82.038),
    ("convnextv2_tiny.fcmae_ft_in22k_in1k", "timm/convnext", "cc-by-nc-4.0", 224, IMAGENET, "bicubic", 0.875, 83.904),
    ("convnextv2_base.fcmae_ft_in22k_in1k", "timm/convnext", "cc-by-nc-4.0", 224, IMAGENET, "bicubic", 0.875, 86.752),
    (
        "convnextv2_large.fcmae_ft_in22k_in1k",
        "timm/convnext",
        "cc-by-nc-4.0",
        224,
        IMAGENET,
        "bicubic",
        0.875,
        87.266,
    ),
    ("convnextv2_base.fcmae", "timm/convnext", "cc-by-nc-4.0", 224, IMAGENET, "bicubic", 0.875, None),
    ("convnextv2_tiny.fcmae", "timm/convnext", "cc-by-nc-4.0", 224, IMAGENET, "bicubic", 0.875, None),
    ("resnet18.a1_in1k", "timm/resnet", "apache-2.0", 224, IMAGENET, "bicubic", 0.95, 71.504),
    ("resnet50.a1_in1k", "timm/resnet", "apache-2.0", 224, IMAGENET, "bicubic", 0.95, 80.382),
    ("resnet50.tv_in1k", "timm/resnet", "bsd-3-clause", 224, IMAGENET, "bilinear", 0.875, 76.156),
    ("resnet50.tv2_in1k", "timm/resnet", "bsd-3-clause", 176, IMAGENET, "bilinear", 0.875, 79.434),
    ("resnet101.a1_in1k", "timm/resnet", "apache-2.0", 224, IMAGENET, "bicubic", 0.95, 81.494),
    ("resnet50.fb_ssl_yfcc100m_ft_in1k", "timm/resnet", "cc-by-nc-4.0", 224, IMAGENET, "bilinear", 0.875, 79.252),
    ("resnetv2_50x1_bit.goog_in21k", "timm/bit", "apache-2.0", 224, HALF, "bilinear", 0.875, None),
    ("resnetv2_50x1_bit.goog_in21k_ft_in1k", "timm/bit", "apache-2.0", 448, HALF, "bilinear", 1.0, 80.386),
    ("resnetv2_101x1_bit.goog_in21k_ft_in1k", "timm/bit", "apache-2.0", 448, HALF, "bilinear", 1.0, 82.332),
    ("resnetv2_152x4_bit.goog_in21k_ft_in1k", "timm/bit", "apache-2.0", 480, HALF, "bilinear", 1.0, 84.936),
    ("swin_tiny_patch4_window7_224.ms_in1k", "timm/swin", "mit", 224, IMAGENET, "bicubic", 0.9, 81.388),
    ("swin_small_patch4_window7_224.ms_in1k", "timm/swin", "mit", 224, IMAGENET, "bicubic", 0.9, 83.228),
    ("swin_base_patch4_window7_224.ms_in22k_ft_in1k", "timm/swin", "mit", 224, IMAGENET, "bicubic", 0.9, 85.276),
    ("swin_large_patch4_window7_224.ms_in22k_ft_in1k", "timm/swin", "mit", 224, IMAGENET, "bicubic", 0.9, 86.32),
    ("swinv2_tiny_window8_256.ms_in1k", "timm/swinv2", "mit", 256, IMAGENET, "bicubic", 0.9, 81.824),
    ("swinv2_base_window8_256.ms_in1k", "timm/swinv2", "mit", 256, IMAGENET, "bicubic", 0.9, 84.246),
    ("swin_base_patch4_window7_224.ms_in22k", "timm/swin", "mit", 224, IMAGENET, "bicubic", 0.9, None),
    ("vgg16.tv_in1k", "timm/vgg", "bsd-3-clause", 224, IMAGENET, "bilinear", 0.875, 71.594),
    ("vgg16_bn.tv_in1k", "timm/vgg", "bsd-3-clause", 224, IMAGENET, "bilinear", 0.875, 73.354),
    ("mixer_b16_224.goog_in21k_ft_in1k", "timm/mixer", "apache-2.0", 224, HALF, "bicubic", 0.875, 76.616),
    ("flexivit_base.1200ep_in1k", "timm/vit", "apache-2.0", 240, HALF, "bicubic", 0.95, 84.678),
)

# --- Authors' tables of k-NN and linear classification.
_DINO_SOURCE = "github.com/facebookresearch/dino, README.md"
_DINOV2_SOURCE = "github.com/facebookresearch/dinov2, README.md"
_MAE_SOURCE = "github.com/facebookresearch/mae, README.md"
_MOCO_SOURCE = "github.com/facebookresearch/moco-v3, CONFIG.md"
_IBOT_SOURCE = "github.com/bytedance/ibot, README.md"
_DINO = (  # k-NN, linear, timm's name, the hub's, the authors' file
    (74.5, 77.0, "vit_small_patch16_224.dino", "dino-vits16", "dino_deitsmall16_pretrain"),
    (78.3, 79.7, "vit_small_patch8_224.dino", "dino-vits8", "dino_deitsmall8_pretrain"),
    (76.1, 78.2, "vit_base_patch16_224.dino", "dino-vitb16", "dino_vitbase16_pretrain"),
    (77.4, 80.1, "vit_base_patch8_224.dino", "dino-vitb8", "dino_vitbase8_pretrain"),
)
_DINOV2 = (  # size, k-NN and linear without registers, with registers
    ("small", "s", 79.0, 81.1, 79.1, 80.9),
    ("base", "b", 82.1, 84.5, 82.0, 84.6),
    ("large", "l", 83.5, 86.3, 83.8, 86.7),
    ("giant", "g", 83.5, 86.5, 83.7, 87.1),
)
_MAE = (("base", 16, 83.6), ("large", 16, 85.9), ("huge", 14, 86.9))  # fine-tuned
_DINOV3 = ("vits16", "vits16plus", "vitb16", "vitl16", "vith16plus", "vit7b16")
_DINOV3_CONVNEXT = ("tiny", "small", "base", "large")

# --- The hub's repositories in transformers' layout: name, family, licence, preprocessing.
_TRANSFORMERS = (
    ("google/vit-base-patch16-224", "hf/vit", "apache-2.0", _preprocessing(224, HALF, "bilinear", 1.0)),
    ("google/vit-base-patch16-224-in21k", "hf/vit", "apache-2.0", _preprocessing(224, HALF, "bilinear", 1.0)),
    ("google/vit-large-patch16-224", "hf/vit", "apache-2.0", _preprocessing(224, HALF, "bilinear", 1.0)),
    ("facebook/deit-base-patch16-224", "hf/vit", "apache-2.0", _preprocessing(224, IMAGENET, "bicubic", 0.875)),
    (
        "facebook/deit-base-distilled-patch16-224",
        "hf/deit",
        "apache-2.0",
        _preprocessing(224, IMAGENET, "bicubic", 0.875),
    ),
    ("facebook/ijepa_vith14_1k", "hf/ijepa", "cc-by-nc-4.0", None),
    ("facebook/ijepa_vith16_1k", "hf/ijepa", "cc-by-nc-4.0", None),
    ("openai/clip-vit-base-patch32", "hf/clip", "", _preprocessing(224, CLIP, "bicubic", 1.0)),
    ("openai/clip-vit-base-patch16", "hf/clip", "", _preprocessing(224, CLIP, "bicubic", 1.0)),
    ("openai/clip-vit-large-patch14", "hf/clip", "", _preprocessing(224, CLIP, "bicubic", 1.0)),
    ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "hf/clip", "mit", _preprocessing(224, CLIP, "bicubic", 1.0)),
    ("laion/CLIP-ViT-B-16-laion2B-s34B-b88K", "hf/clip", "mit", _preprocessing(224, CLIP, "bicubic", 1.0)),
    ("google/siglip-base-patch16-224", "hf/siglip", "apache-2.0", _preprocessing(224, HALF, "bicubic", 1.0)),
    ("google/siglip-so400m-patch14-384", "hf/siglip", "apache-2.0", _preprocessing(384, HALF, "bicubic", 1.0)),
    ("google/siglip2-base-patch16-224", "hf/siglip", "apache-2.0", _preprocessing(224, HALF, "bilinear", 1.0)),
    ("google/siglip2-base-patch16-naflex", "hf/siglip2", "apache-2.0", None),
    ("microsoft/beit-base-patch16-224", "hf/beit", "apache-2.0", _preprocessing(224, HALF, "bilinear", 1.0)),
    ("apple/aimv2-large-patch14-224", "hf/aimv2", "apple-amlr", _preprocessing(224, CLIP, "bicubic", 1.0)),
    ("facebook/convnext-tiny-224", "hf/convnext", "apache-2.0", _preprocessing(224, IMAGENET, "bicubic", 0.875)),
    (
        "facebook/convnextv2-tiny-1k-224",
        "hf/convnextv2",
        "apache-2.0",
        _preprocessing(224, IMAGENET, "bicubic", 0.875),
    ),
    ("microsoft/resnet-50", "hf/resnet", "apache-2.0", _preprocessing(224, IMAGENET, "bicubic", 0.875)),
    ("google/bit-50", "hf/bit", "apache-2.0", None),
    (
        "microsoft/swin-tiny-patch4-window7-224",
        "hf/swin",
        "apache-2.0",
        _preprocessing(224, IMAGENET, "bicubic", 1.0),
    ),
    (
        "microsoft/swinv2-tiny-patch4-window8-256",
        "hf/swinv2",
        "apache-2.0",
        _preprocessing(256, IMAGENET, "bicubic", 1.0),
    ),
)

# --- Files that their authors' servers have.
_META = "https://dl.fbaipublicfiles.com"
_DRIVE = "https://drive.google.com/file/d"
_IBOT = (  # name, the file on the drive, k-NN, linear
    ("ibot_vits16", "1di_xSqKxEwp7TFkis8fWkhYOYH1PagkH", 74.5, 77.0),
    ("ibot_vitb16", "1JgdVNX0zjYy9AoUEZO0BILOlFVH-1Vfu", 77.1, 79.5),
    ("ibot_vitb16_in22k", "1djICe-Q9B7WPy_VOk8qtYRGc06wyp5Ct", 71.1, 79.0),
    ("ibot_vitl16_in22k", "1wmTENIXLy4JlzG-HoKUE3OZBJuPPA-Vm", 70.6, 81.7),
)


def _checkpoints() -> dict[str, Checkpoint]:
    found: dict[str, Checkpoint] = {}
    for name, family, licence, size, mean_std, interpolation, ratio, top1 in _TIMM:
        found[name] = Checkpoint(
            f"timm/{name}",
            family,
            licence,
            _preprocessing(size, mean_std, interpolation, ratio),
            {} if top1 is None else {"top1": top1},
            "" if top1 is None else _TIMM_SOURCE,
        )
    for repository, family, licence, preprocessing in _TRANSFORMERS:
        found[repository.split("/")[1]] = Checkpoint(repository, family, licence, preprocessing)

    plain = _preprocessing(224, IMAGENET, "bicubic", 0.875)  # resize to 256, crop 224: the authors' evaluations
    for knn, linear, timm, hub, file in _DINO:
        figures = {"knn": knn, "linear": linear}
        found[timm] = found[timm]._replace(figures=figures, source=_DINO_SOURCE)
        found[hub] = Checkpoint(f"facebook/{hub}", "hf/vit", "apache-2.0", plain, figures, _DINO_SOURCE)
        found[file] = _of_authors(
            "original/dino", "apache-2.0", figures, _DINO_SOURCE, f"{_META}/dino/{file}/{file}.pth"
        )
    for size, letter, *numbers in _DINOV2:
        for tag, hub, figures in (
            ("", f"dinov2-{size}", {"knn": numbers[0], "linear": numbers[1]}),
            ("_reg4", f"dinov2-with-registers-{size}", {"knn": numbers[2], "linear": numbers[3]}),
        ):
            family = "hf/dinov2_with_registers" if tag else "hf/dinov2"
            timm = f"vit_{size}_patch14{tag}_dinov2.lvd142m"
            found[timm] = found[timm]._replace(figures=figures, source=_DINOV2_SOURCE)
            found[hub] = Checkpoint(f"facebook/{hub}", family, "apache-2.0", plain, figures, _DINOV2_SOURCE)
            file = f"dinov2_vit{letter}14{tag}_pretrain"
            url = f"{_META}/dinov2/dinov2_vit{letter}14/{file}.pth"
            found[file] = _of_authors("original/dinov2", "apache-2.0", figures, _DINOV2_SOURCE, url)
    for size, patch, fine_tuned in _MAE:
        figures = {"fine_tuned": fine_tuned}
        timm, file = f"vit_{size}_patch{patch}_224.mae", f"mae_pretrain_vit_{size}"
        found[timm] = found[timm]._replace(figures=figures, source=_MAE_SOURCE)
        found[f"vit-mae-{size}"] = Checkpoint(
            f"facebook/vit-mae-{size}", "hf/vit_mae", "apache-2.0", plain, figures, _MAE_SOURCE
        )
        url = f"{_META}/mae/pretrain/{file}.pth"
        found[file] = _of_authors("original/mae", "cc-by-nc-4.0", figures, _MAE_SOURCE, url)
    for letter, linear in (("s", 73.2), ("b", 76.7)):
        url = f"{_META}/moco-v3/vit-{letter}-300ep/vit-{letter}-300ep.pth.tar"
        found[f"mocov3_vit-{letter}-300ep"] = _of_authors(
            "original/moco_v3", "cc-by-nc-4.0", {"linear": linear}, _MOCO_SOURCE, url
        )
    for name, drive, knn, linear in _IBOT:
        url = f"{_DRIVE}/{drive}"
        found[name] = _of_authors("original/ibot", "apache-2.0", {"knn": knn, "linear": linear}, _IBOT_SOURCE, url)

    web = _preprocessing(224, IMAGENET, "bilinear", 1.0)
    for net in _DINOV3:
        repository = f"facebook/dinov3-{net}-pretrain-lvd1689m"
        found[repository.split("/")[1]] = Checkpoint(repository, "hf/dinov3_vit", "dinov3-license", web, gated=True)
    for net in ("vitl16", "vit7b16"):
        repository = f"facebook/dinov3-{net}-pretrain-sat493m"
        satellite = _preprocessing(224, SATELLITE, "bilinear", 1.0)
        found[repository.split("/")[1]] = Checkpoint(
            repository, "hf/dinov3_vit", "dinov3-license", satellite, gated=True
        )
    for size in _DINOV3_CONVNEXT:
        repository = f"facebook/dinov3-convnext-{size}-pretrain-lvd1689m"
        found[repository.split("/")[1]] = Checkpoint(
            repository, "hf/dinov3_convnext", "dinov3-license", web, gated=True
        )
    return dict(sorted(found.items()))


def _of_authors(family: str, licence: str, figures: Mapping[str, float], source: str, url: str) -> Checkpoint:
    preprocessing = _preprocessing(224, IMAGENET, "bicubic", 0.875)
    return Checkpoint(None, family, licence, preprocessing, figures, source, url=url)


CHECKPOINTS: dict[str, Checkpoint] = _checkpoints()


def folder_of(name: str) -> pathlib.Path:
    """Where the user may put the files of a name: $VFM_WEIGHTS or ~/.cache/vfm_jax/weights, and the name."""
    root = os.environ.get("VFM_WEIGHTS") or pathlib.Path.home() / ".cache" / "vfm_jax" / "weights"
    return pathlib.Path(root).expanduser() / name


def resolve(name_or_path: str | os.PathLike[str]) -> pathlib.Path:
    """The file or folder of weights that is meant; `open_weights` takes it.

    Args:
        name_or_path: a path that exists; a name of `CHECKPOINTS`; "hf:owner/name", any repository of the hub, with
            "@revision" after it or "/file" where it has no standard name. For a name, `folder_of(name)` is looked
            into first, then the hub's cache and the hub.

    Raises:
        UserError: nothing of that name; or it cannot be had, and then the message says what to download and where
            to put it.
    """
    name = os.fspath(name_or_path)
    if name.startswith("hf:"):
        return _of_repository(name)
    path = pathlib.Path(name).expanduser()
    if path.exists():
        return path
    if name not in CHECKPOINTS:
        raise _unknown(name)
    checkpoint = CHECKPOINTS[name]
    placed = _placed(folder_of(name), checkpoint.files)
    if placed is not None:
        return placed
    if checkpoint.repository is None:
        raise UserError(
            f"{name} is not on the hub. Download {checkpoint.url} into {folder_of(name)}, or give the file's path."
        )
    return _download(name, checkpoint.repository, None, checkpoint.files, gated=checkpoint.gated)


def _of_repository(name: str) -> pathlib.Path:
    found = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(@[\w.-]+)?((?:/[\w.-]+)*)", name)
    if not found or ".." in name:
        raise UserError(f"{name!r} names no repository. Expected hf:owner/name, with @revision or /file after it.")
    repository, revision, file = found[1], (found[2] or "@")[1:] or None, found[3][1:]
    files = (file,) if file else STANDARD
    return _placed(folder_of(repository), files) or _download(repository, repository, revision, files)


def _placed(folder: pathlib.Path, files: Sequence[str]) -> pathlib.Path | None:
    """What the user has put into the folder: the folder, or the file that was asked for; None without weights."""
    if not folder.is_dir():
        return None
    if tuple(files) != tuple(STANDARD):
        return next((folder / file for file in files if (folder / file).is_file()), None)
    return folder if any(entry.name.endswith(ENDINGS) for entry in folder.iterdir()) else None


def _download(
    name: str, repository: str, revision: str | None, files: Sequence[str], *, gated: bool = False
) -> pathlib.Path:
    """The files from the hub or its cache: the first of `files` that is there, its shards, and its companions."""
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise _not_had(name, repository, files, f"the hub's client is not installed ({INSTALL})", gated) from None

    def get(file: str) -> pathlib.Path:
        return pathlib.Path(huggingface_hub.hf_hub_download(repository, file, revision=revision))

    reason = "it is neither in the cache nor can the hub be reached"
    try:
        for file in files:
            try:
                path = get(file)
            except errors.LocalEntryNotFoundError:
                continue  # offline, and not in the cache
            except errors.EntryNotFoundError:
                reason = f"the repository has none of {', '.join(files)}"
                continue
            break
        else:
            raise _not_had(name, repository, files, reason, gated)
        if file.endswith(".index.json"):
            for shard in sorted(set(weight_map(path).values())):
                get(shard)
        for companion in (*COMPANIONS, "open_clip_config.json") if file.startswith("open_clip") else COMPANIONS:
            try:
                get(companion)
            except errors.EntryNotFoundError:
                continue  # not every repository has both
    except errors.GatedRepoError:
        raise _not_had(
            name, repository, files, "its publisher has not granted access to your HF_TOKEN", True
        ) from None
    except errors.RepositoryNotFoundError:
        raise _not_had(name, repository, files, "there is no such repository, or it is private", gated) from None
    except errors.LocalEntryNotFoundError as error:
        raise _not_had(name, repository, files, f"a part of it is missing ({str(error)[:150]})", gated) from None
    except (OSError, ValueError) as error:  # the client's: no connection, no space, no such revision
        if isinstance(error, UserError):
            raise
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise _not_had(name, repository, files, first[:200], gated) from None
    return path.parent if tuple(files) == tuple(STANDARD) else path


def _not_had(name: str, repository: str, files: Sequence[str], reason: str, gated: bool) -> UserError:
    wanted = files[0] if len(files) == 1 else f"{files[0]} (or {', '.join(files[1:])})"
    access = " Ask for access on that page first." if gated else ""
    return UserError(
        f"{name} cannot be had from the hub: {reason}.{access}\n"
        f"By hand: download {wanted}, with {' and '.join(COMPANIONS)} where they are,\n"
        f"from https://huggingface.co/{repository}/tree/main into {folder_of(name)} (VFM_WEIGHTS moves that folder)."
    )


def _unknown(name: str) -> UserError:
    if re.fullmatch(r"[\w-]+/[\w.-]+", name) and not name.endswith(ENDINGS):
        return UserError(f"There is nothing at {name!r}. If it is a repository of the hub, write 'hf:{name}'.")
    if "/" in name or name.endswith(ENDINGS):
        return UserError(f"There is nothing at {name}.")
    return UserError(f"No checkpoint is called {name!r}.{nearest(name, CHECKPOINTS)} `vfm weights list` shows all.")
