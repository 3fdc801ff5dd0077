"""data2vec 2.0, ViT-B/16, ImageNet-1k (Baevski et al., 2022, arXiv:2212.07525, and the authors' code in fairseq).

    vfm train --config=configs/masked/data2vec2_vit_b16_in1k.py --workdir=runs/data2vec2                  pretrain
    vfm train --config=configs/masked/data2vec2_vit_b16_in1k.py:vit_l16 --workdir=runs/data2vec2      or :vit_h14
    vfm train --config=configs/masked/data2vec2_vit_b16_in1k.py:finetune --workdir=runs/data2vec2_finetune \
        --config.start_from=runs/data2vec2                                                       (:vit_l16_finetune)

To reach: 86.8 % top-1 after fine-tuning of ViT-L/16 (the paper's abstract). Not yet run by us.
Everything is the code's configs (`config/v2/*_images_only_task.yaml`, `config/vision/finetuning/mae_*.yaml`): the
ViT is post-norm, with a norm of the embedded tokens before the first block; the student is fine-tuned. A batch is 16
images on each of 16 devices (B), 8 on each of 16 (L) or 32 (H); the class token's loss is summed over a device's
images, which `class_images` keeps whatever the devices here are. The class token starts small, where theirs starts
from a deviation of 1, and fine-tuning scales the learning rate of every layer below the head, theirs of blocks alone.
"""

import ml_collections

from configs.common import IMAGENET_MEAN, IMAGENET_STD, tiny

SIZES = {
    "vit_b16": dict(
        variant="B/16", steps=375_300, batch_size=256, learning_rate=1e-3, end=0.99999, anneal_steps=100_000,
        objective=dict(mask_ratio=0.8, block_adjust=0.07, average_top_k=10, class_images=16),
        decoder=dict(width=768, depth=6, kernel_size=3),
    ),
    "vit_l16": dict(
        variant="L/16", steps=375_300, batch_size=128, learning_rate=4e-4, end=0.99999, anneal_steps=150_000,
        objective=dict(mask_ratio=0.75, block_adjust=0.1, average_top_k=18, class_images=8),
        decoder=dict(width=1024, depth=3, kernel_size=5),
    ),
    "vit_h14": dict(
        variant="H/14", steps=500_000, batch_size=256, learning_rate=4e-4, end=1.0, anneal_steps=300_000,
        objective=dict(mask_ratio=0.75, block_adjust=0.1, average_top_k=24, class_images=8),
        decoder=dict(width=1024, depth=3, kernel_size=5),
    ),
}  # fmt: skip
FINETUNE = {
    "vit_b16": dict(steps=250_200, base=1e-3, end=1e-6, layer_decay=0.65, drop_path=0.1, clip_norm=None),
    "vit_l16": dict(steps=125_200, base=5e-4, end=1e-7, layer_decay=0.75, drop_path=0.2, clip_norm=4.0),
}
NORMALIZE = dict(name="normalize", mean=IMAGENET_MEAN, std=IMAGENET_STD)
EVAL_OPS = (dict(name="center_crop", size=224, resize_shorter=256, interpolation="bicubic"), NORMALIZE)


def get_config(variant: str = "vit_b16") -> ml_collections.ConfigDict:
    """The recipe; variant is "vit_b16", "vit_l16" or "vit_h14", the first two with "_finetune" or not, or "tiny"."""
    if variant == "tiny":
        c = tiny(get_config())
        c.objective.update(num_masks=4, average_top_k=2)
        return c
    if variant.endswith("finetune"):
        return _finetune(variant.removesuffix("finetune").removesuffix("_") or "vit_b16")
    return _pretrain(variant)


def _imagenet(size: str) -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.dtype = "bfloat16"
    c.data = dict(name="tfds", dataset="imagenet2012", split="train", canvas_size=512)
    c.networks = dict(encoder=dict(
        name="vit", variant=SIZES[size]["variant"], positions="sincos2d", pooling="mean", norm_input="tokens",
        norm_order="post", final_norm=False, norm_epsilon=1e-6, init_std=0.02,
    ))  # fmt: skip
    c.eval_data = dict(test=dict(split="validation"))
    c.eval_views = dict(image=dict(ops=EVAL_OPS))
    return c


def _pretrain(name: str) -> ml_collections.ConfigDict:
    size = SIZES[name]
    c = _imagenet(name)
    c.title = f"data2vec 2.0 ViT-{size['variant']} on ImageNet-1k"
    c.total_steps = size["steps"]
    c.data.batch_size = size["batch_size"]

    c.views = dict(image=dict(ops=(
        dict(name="random_resized_crop", size=224, scale=(0.2, 1.0), interpolation="bicubic"),
        dict(name="flip", probability=0.5),
        NORMALIZE,
    )))
    c.networks.decoder = dict(name="conv_decoder", groups=16, **size["decoder"])
    c.objective = dict(
        name="data2vec2", num_masks=16, block_size=3, mask_noise=0.01, class_weight=0.01, **size["objective"],
        momentum=dict(name="constant", start=0.9998, base=size["end"], warmup_steps=size["anneal_steps"]),
    )  # fmt: skip
    c.optimizer = dict(name="adamw", b1=0.9, b2=0.95, weight_decay=0.05, clip_norm=4.0)
    c.schedule = dict(name="cosine", base=size["learning_rate"], warmup_steps=50_040, end=0.0)

    c.evals = dict(knn=dict(every_percent=10.0, num_neighbors=20))
    return c


def _finetune(name: str) -> ml_collections.ConfigDict:
    size = FINETUNE[name]
    c = _imagenet(name)
    c.title = f"data2vec 2.0 ViT-{SIZES[name]['variant']}, fine-tuned on ImageNet-1k"
    c.total_steps = size["steps"]
    c.data.batch_size = 512

    c.views = dict(image=dict(ops=(
        dict(name="random_resized_crop", size=224, scale=(0.08, 1.0), interpolation="bicubic"),
        dict(name="flip", probability=0.5),
        dict(name="rand_augment", magnitude=9, magnitude_std=0.5, num_ops=2, increasing=True),
        NORMALIZE,
        dict(name="random_erasing", probability=0.25, mode="pixel"),
    )))
    c.mix = dict(
        num_classes=1000, mixup=0.7, cutmix=1.0, probability=0.9, switch_probability=0.5, label_smoothing=0.1
    )
    c.networks.encoder.update(norm_pooled=True, drop_path=size["drop_path"])
    c.networks.head = dict(name="linear_head", num_classes=1000, init_std=0.02)
    c.objective = dict(name="supervised")
    c.optimizer = dict(
        name="adamw", b1=0.9, b2=0.95, weight_decay=0.05, layer_decay=size["layer_decay"], clip_norm=size["clip_norm"]
    )
    c.schedule = dict(name="cosine", base=size["base"], warmup_steps=16_000, end=size["end"])

    c.start_from = "runs/data2vec2"
    c.carry = (r"^encoder/",)
    c.evals = dict(classification=dict(every_percent=5.0))
    return c
