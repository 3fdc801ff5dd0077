"""Big Transfer, ResNet-50x1, ImageNet-1k and -21k (Kolesnikov et al., 2019, arXiv:1912.11370, big_vision's configs).

    vfm train --config=configs/supervised/bit_r50x1.py --workdir=runs/bit              ImageNet-1k
    vfm train --config=configs/supervised/bit_r50x1.py:in21k --workdir=runs/bit_m      ImageNet-21k
    ... :paper_s :paper_m :paper_l             the paper's own schedules, on ImageNet-1k, ImageNet-21k and JFT-300M

To reach: 77.0 % top-1 on ImageNet-1k. Not yet run by us.
It follows big_vision: a cosine, and a decay beside the momentum that only the schedule's shape multiplies. Ours
stands before the momentum, as in the paper, with their decay over their learning rate: 1e-3 both times. The momentum
is bfloat16, as theirs. The paper's recipes step by 0.1 from 0.03 · batch / 256, with a decay of 1e-4 throughout and
without clipping; JFT-300M is not public, and --config.data.path names a folder of yours in its place.
"""

import ml_collections

from configs.common import tiny

NORMALIZE = dict(name="normalize", mean=0.5, std=0.5)
PAPER = {"s": (90, (30, 60, 80)), "m": (90, (30, 60, 80)), "l": (40, (10, 23, 30, 37))}  # epochs, and of the drops


def get_config(dataset: str = "in1k") -> ml_collections.ConfigDict:
    """The recipe; dataset is "in1k" or "in21k" (big_vision's), "paper_s", "paper_m" or "paper_l", or "tiny"."""
    if dataset == "tiny":
        return tiny(get_config())
    if dataset.startswith("paper_"):
        return _paper(dataset.removeprefix("paper_"))
    return _big_vision(dataset == "in21k")


def _paper(size: str) -> ml_collections.ConfigDict:
    c = _big_vision(large=size != "s")
    c.total_epochs, drops = PAPER[size]
    c.title = f"BiT-{size.upper()} ResNet-50x1"
    if size == "l":
        c.title += " on JFT-300M"
        c.data = dict(name="folder", path="data/jft300m", canvas_size=512, batch_size=4096)
        c.networks.head.num_classes = 18_291
        del c.eval_data, c.eval_views, c.evals  # what is learned there is evaluated on another dataset
    c.optimizer = dict(name="sgd", momentum=0.9, weight_decay=1e-4, groups=(dict(match=r".*"),))
    c.schedule = dict(name="staircase", base=0.03 * c.data.batch_size / 256, warmup_steps=5000, drop_epochs=drops,
                      factor=0.1)  # fmt: skip
    return c


def _big_vision(large: bool) -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.title = f"BiT ResNet-50x1 on {'ImageNet-21k' if large else 'ImageNet-1k'}"
    c.seed = 0
    c.dtype = "bfloat16"
    c.total_epochs = 90

    c.data = dict(name="tfds", dataset="imagenet21k" if large else "imagenet2012",
                  split="full[51200:]" if large else "train[:99%]", canvas_size=512, batch_size=4096)
    c.views = dict(image=dict(ops=(
        dict(name="random_resized_crop", size=224, scale=(0.05, 1.0), interpolation="bilinear"),
        dict(name="flip", probability=0.5),
        NORMALIZE,
    )))
    c.networks = dict(
        encoder=dict(name="bit", variant="R50x1"),
        head=dict(name="linear_head", num_classes=21843 if large else 1000, init_std=0.0,
                  init_bias=-10.0 if large else 0.0),
    )
    c.objective = dict(name="supervised", loss="sigmoid" if large else "softmax")
    rate, decay = (0.03, 3e-5) if large else (0.1, 1e-4)  # both for 256 images, and times the batch
    c.optimizer = dict(
        name="sgd", momentum=0.9, momentum_dtype="bfloat16", weight_decay=decay / rate, clip_norm=1.0,
        groups=(dict(match=r"kernel$"), dict(match=r".*", weight_decay=0.0)),
    )
    c.schedule = dict(name="cosine", base=rate * c.data.batch_size / 256, end=0.0,
                      warmup_steps=5000 if large else 1000)

    c.eval_data = dict(test=dict(split="full[:51200]" if large else "validation"))
    c.eval_views = dict(image=dict(ops=(
        dict(name="center_crop", size=224, resize_shorter=256, interpolation="bilinear"), NORMALIZE,
    )))
    c.evals = dict(classification=dict(every_epochs=5))
    return c
