"""I-JEPA's linear probe, low-shot and full fine-tuning (Assran et al., 2023, arXiv:2301.08243, App. A.2 and D).

    vfm train --config=configs/masked/ijepa_evaluation_in1k.py --config.start_from=runs/ijepa \
        --workdir=runs/ijepa_probe                                          linear probe of ViT-H/14
    vfm train --config=configs/masked/ijepa_evaluation_in1k.py:low_shot_h14 --config.start_from=runs/ijepa \
        --workdir=runs/ijepa_1pct                                           1 % of the labels; low_shot_l16
    vfm train --config=configs/masked/ijepa_evaluation_in1k.py:finetune_h16_448 --config.start_from=runs/ijepa_448 \
        --workdir=runs/ijepa_finetune                                       all labels at 448 pixels

To reach, top-1: 79.3 % by linear probe of H/14; 73.3 % with 1 % of the labels (H/14); 87.1 % after
fine-tuning H/16 at 448 pixels. Not yet run by us.
A run starts from the teacher, which the paper calls the target encoder. The paper sweeps the rate and the decay of
the probe, `PROBE_RATES` for 256 images and `PROBE_DECAYS`: the first of each stands here, --config.schedule.base and
--config.optimizer.weight_decay are the others. It probes the mean of the last block's patches; its other choice, four
blocks side by side, is left out. Of both fine-tunings it does not tell warm-up and end of the rate, nor the crops:
they are MAE's, as are the augmentations that the paper says are.
"""

import ml_collections

from configs.common import IMAGENET_MEAN, IMAGENET_STD, tiny

NORMALIZE = dict(name="normalize", mean=IMAGENET_MEAN, std=IMAGENET_STD)
FLIP = dict(name="flip", probability=0.5)
CHANGES = dict(name="rand_augment", magnitude=9, magnitude_std=0.5, num_ops=2, increasing=True)
PROBE_RATES, PROBE_DECAYS = (0.01, 0.05, 0.001), (5e-4, 0.0)
LOW_SHOT = {"l16": ("L/16", 3e-5, 0.05), "h14": ("H/14", 3e-5, 0.4)}  # variant, learning rate, weight decay
UNDECAYED = (dict(match=r"(bias|scale)$", weight_decay=0.0), dict(match=r".*"))


def get_config(stage: str = "linear_h14") -> ml_collections.ConfigDict:
    """The recipe; stage is "linear_h14", "low_shot_l16", "low_shot_h14", "finetune_h16_448" or "tiny"."""
    if stage == "tiny":
        return tiny(get_config())
    if stage.startswith("low_shot_"):
        return _low_shot(*LOW_SHOT[stage.removeprefix("low_shot_")])
    return {"linear_h14": _linear, "finetune_h16_448": _finetune}[stage]()


def _imagenet(variant: str, pixels: int = 224) -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.dtype = "bfloat16"
    c.total_epochs = 50
    c.data = dict(name="tfds", dataset="imagenet2012", split="train", canvas_size=640)
    c.networks = dict(
        encoder=dict(name="vit", variant=variant, positions="sincos2d", class_token=False, pooling="mean"),
        head=dict(name="linear_head", num_classes=1000, init_std=0.01),
    )
    c.start_from = "runs/ijepa"
    c.carry = (r"^encoder/",)
    c.eval_data = dict(test=dict(split="validation"))
    c.eval_views = dict(image=dict(ops=(
        dict(name="center_crop", size=pixels, resize_shorter=pixels * 8 // 7, interpolation="bicubic"), NORMALIZE,
    )))  # fmt: skip
    c.evals = dict(classification=dict(every_epochs=5))
    return c


def _crop(pixels: int) -> dict:
    return dict(name="random_resized_crop", size=pixels, scale=(0.08, 1.0), interpolation="bicubic")


def _linear() -> ml_collections.ConfigDict:
    c = _imagenet("H/14")
    c.title = "I-JEPA ViT-H/14, linear probe on ImageNet-1k"
    c.data.batch_size = 16384
    c.views = dict(image=dict(ops=(_crop(224), FLIP, NORMALIZE)))
    c.objective = dict(name="supervised", freeze_encoder=True)
    c.optimizer = dict(name="lars", momentum=0.9, weight_decay=PROBE_DECAYS[0],
                       groups=(dict(match=r"^encoder/", lr_scale=0.0), dict(match=r".*")))  # fmt: skip
    c.schedule = dict(name="staircase", base=PROBE_RATES[0] * c.data.batch_size / 256, drop_epochs=(15, 30, 45),
                      factor=0.1)  # fmt: skip
    return c


def _low_shot(variant: str, rate: float, decay: float) -> ml_collections.ConfigDict:
    c = _imagenet(variant)
    c.title = f"I-JEPA ViT-{variant}, fine-tuned on 1 % of ImageNet-1k"
    c.data.update(dataset="imagenet2012_subset/1pct", batch_size=512)
    c.eval_data.test.dataset = "imagenet2012"
    c.views = dict(image=dict(ops=(_crop(224), FLIP, CHANGES, NORMALIZE)))
    c.objective = dict(name="supervised", label_smoothing=0.1)
    c.optimizer = dict(name="adamw", weight_decay=decay, layer_decay=0.75, groups=UNDECAYED)
    c.schedule = dict(name="cosine", base=rate, warmup_epochs=5, end=1e-6)
    return c


def _finetune() -> ml_collections.ConfigDict:
    c = _imagenet("H/16", 448)
    c.title = "I-JEPA ViT-H/16, fine-tuned on ImageNet-1k at 448 pixels"
    c.data.batch_size = 528
    c.views = dict(image=dict(ops=(
        _crop(448), FLIP, CHANGES, NORMALIZE, dict(name="random_erasing", probability=0.25, mode="pixel"),
    )))  # fmt: skip
    c.mix = dict(
        num_classes=1000, mixup=0.8, cutmix=1.0, probability=1.0, switch_probability=0.5, label_smoothing=0.1
    )
    c.networks.encoder.drop_path = 0.25
    c.objective = dict(name="supervised")
    c.optimizer = dict(name="adamw", weight_decay=0.04, layer_decay=0.75, groups=UNDECAYED)
    c.schedule = dict(name="cosine", base=1e-4, warmup_epochs=5, end=1e-6)
    c.start_from = "runs/ijepa_448"
    return c
