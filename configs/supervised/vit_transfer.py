"""Fine-tuning of public ViTs of ImageNet-21k at 384 pixels, by three tables of the authors.

    vfm train --config=configs/supervised/vit_transfer.py --config.init.weights=B_32.npz --workdir=runs/transfer
    ... :b32_imagenet2012  :b32_cifar10  :b32_cifar100  :b32_oxford_iiit_pet  :b32_oxford_flowers102
        AugReg's B/32 by big_vision's `transfer.py` (Steiner et al., 2021, arXiv:2106.10270)
    ... :augreg_b16  and l16, s16, ti16, b32, s32
        AugReg's recommended files on ImageNet-1k, by google-research/vision_transformer
    ... :original_b16_imagenet2012  :original_l16_cifar100  and so on
        the first ViTs (Dosovitskiy et al., 2020, arXiv:2010.11929) by the same code, on ImageNet-1k and CIFAR

To reach, top-1 on ImageNet-1k: 83.3 % (big_vision's B/32); 85.6 (L/16), 85.5 (B/16), 83.7 (S/16), 78.2 (Ti/16), 83.6
(B/32), 79.6 % (S/32) for the recommended files; 84.5 % (B/16) and 85.1 % (L/16) for the first ViTs. Not yet run by
us. The files are in Google's bucket vit_models, in `augreg/` and `imagenet21k/`. Each recipe names its own, looked
for in the working directory, but for AugReg's S/32, whose file is not among the facts collected here: give it with
--config.init.weights. Left out: the hybrids of ResNet and ViT. It follows the code: no decay, a head of zeros, no
augmentation but a crop and a flip. vision_transformer evaluates the whole image, squeezed to a square.
"""

import ml_collections

from configs.common import tiny

NORMALIZE = dict(name="normalize", mean=0.5, std=0.5)
INCEPTION = (dict(name="random_resized_crop", size=384, scale=(0.05, 1.0), interpolation="bilinear"),)
SMALL_CROP = (dict(name="random_crop", size=384, resize_shorter=448, interpolation="bilinear"),)
CENTER = dict(name="center_crop", size=384, resize_shorter=448, interpolation="bilinear")
SQUEEZE = dict(name="resize", size=384, interpolation="bilinear")

# big_vision's transfer: crop, learning rate, steps, steps of warm-up, the splits to train on and to test on.
B32 = {
    "imagenet2012": (INCEPTION, 0.03, 20_000, 500, "train[:99%]", "validation"),
    "cifar10": (SMALL_CROP, 0.003, 10_000, 500, "train[:98%]", "test"),
    "cifar100": (SMALL_CROP, 0.01, 10_000, 500, "train[:98%]", "test"),
    "oxford_iiit_pet": (INCEPTION, 0.003, 500, 100, "train[:90%]", "test"),
    "oxford_flowers102": (INCEPTION, 0.003, 500, 100, "train[:90%]", "test"),
}
# AugReg's recommended files: learning rate; augmentation and decay of their pretraining.
AUGREG = {
    "l16": ("L/16", 0.01, "strong1", 0.1),
    "b16": ("B/16", 0.03, "medium1", 0.1),
    "s16": ("S/16", 0.03, "light1", 0.03),
    "ti16": ("Ti/16", 0.03, "none", 0.03),
    "b32": ("B/32", 0.01, "light1", 0.1),
    "s32": ("S/32", 0.01, None, None),
}
ORIGINAL_RATES = {("b16", "cifar10"): 0.01}  # of this code; 0.03 elsewhere
CLASSES = {"imagenet2012": 1000, "cifar10": 10, "cifar100": 100, "oxford_iiit_pet": 37, "oxford_flowers102": 102}


def get_config(variant: str = "b32_imagenet2012") -> ml_collections.ConfigDict:
    """The recipe; variant is "b32_DATASET", "augreg_SIZE", "original_SIZE_DATASET" or "tiny"."""
    if variant == "tiny":
        c = tiny(get_config())
        c.init = {}  # a toy network has no file
        return c
    kind, _, rest = variant.partition("_")
    return {"b32": _big_vision, "augreg": _recommended, "original": _original}[kind](rest)


def _big_vision(dataset: str) -> ml_collections.ConfigDict:
    crop, rate, steps, warmup, train, test = B32[dataset]
    c = _transfer("B/32", dataset, steps, warmup, rate)
    c.title = f"AugReg ViT-B/32 of ImageNet-21k, fine-tuned on {dataset}"
    c.data.split, c.eval_data.test.split = train, test
    c.views = dict(image=dict(ops=(*crop, dict(name="flip", probability=0.5), NORMALIZE)))
    c.eval_views = dict(image=dict(ops=(CENTER, NORMALIZE)))
    c.optimizer.momentum_dtype = "bfloat16"
    _, _, augmentation, decay = AUGREG["b32"]
    c.init = dict(weights=_file("B/32", augmentation, decay))
    return c


def _recommended(size: str) -> ml_collections.ConfigDict:
    variant, rate, augmentation, decay = AUGREG[size]
    c = _transfer(variant, "imagenet2012", 20_000, 500, rate)
    c.title = f"AugReg ViT-{variant} of ImageNet-21k, fine-tuned on ImageNet-1k"
    c.optimizer.momentum_dtype = "bfloat16"
    c.init = dict(weights=_file(variant, augmentation, decay) if augmentation else "")
    return c


def _original(name: str) -> ml_collections.ConfigDict:
    size, _, dataset = name.partition("_")
    variant = {"b16": "B/16", "l16": "L/16"}[size]
    steps = 20_000 if dataset == "imagenet2012" else 10_000
    c = _transfer(variant, dataset, steps, 500, ORIGINAL_RATES.get((size, dataset), 0.03))
    c.title = f"ViT-{variant} of ImageNet-21k, fine-tuned on {dataset}"
    c.networks.encoder.dropout = 0.1 if size == "l16" else 0.0
    c.init = dict(weights=f"{variant.replace('/', '_')}.npz")
    return c


def _file(variant: str, augmentation: str, decay: float) -> str:
    return f"{variant.replace('/', '_')}-i21k-300ep-lr_0.001-aug_{augmentation}-wd_{decay:g}-do_0.0-sd_0.0.npz"


def _transfer(variant: str, dataset: str, steps: int, warmup: int, rate: float) -> ml_collections.ConfigDict:
    """What the three tables share; data, views and evaluation as vision_transformer has them."""
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.dtype = "bfloat16"
    c.total_steps = steps

    split, test = ("train[:99%]", "validation") if dataset == "imagenet2012" else ("train[:98%]", "test")
    c.data = dict(name="tfds", dataset=dataset, split=split, canvas_size=512, batch_size=512)
    c.views = dict(image=dict(ops=(*INCEPTION, dict(name="flip", probability=0.5), NORMALIZE)))
    c.networks = dict(
        encoder=dict(name="vit", variant=variant, positions="learned", prefix_positions=1, pooling="class"),
        head=dict(name="linear_head", num_classes=CLASSES[dataset], init_std=0.0),
    )
    c.objective = dict(name="supervised", loss="softmax")
    c.optimizer = dict(name="sgd", momentum=0.9, weight_decay=0.0, clip_norm=1.0)
    c.schedule = dict(name="cosine", base=rate, warmup_steps=warmup, end=0.0)

    c.eval_data = dict(test=dict(split=test))
    c.eval_views = dict(image=dict(ops=(SQUEEZE, NORMALIZE)))
    c.evals = dict(classification=dict(every_percent=10.0))
    return c
