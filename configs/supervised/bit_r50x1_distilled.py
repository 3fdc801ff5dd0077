"""Function matching: BiT R50x1 from R152x2, ImageNet-1k (Beyer et al., 2021, arXiv:2106.05237, and big_vision).

    vfm train --config=configs/supervised/bit_r50x1_distilled.py --workdir=runs/bit_distilled \
        --config.networks.teacher.weights=TEACHER --config.networks.teacher_head.weights=TEACHER

TEACHER is a BiT-M R152x2 that was fine-tuned on ImageNet-1k at 224 pixels, as a file, a folder or a name.

To reach: 82.8 % top-1 after 9600 epochs, where the teacher has 83.0. Not yet run by us.
It follows big_vision's bit_i1k.py with its 1200 epochs. Teacher and student see one crop, one mixture of images, and
no label. The decay is the code's over its learning rate, for there the schedule's shape alone multiplies it. Our
mixtures take one weight for a batch.
"""

import ml_collections

from configs.common import tiny

NORMALIZE = dict(name="normalize", mean=0.5, std=0.5)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The recipe; variant is "" or "tiny"."""
    if variant == "tiny":
        return tiny(get_config())
    c = ml_collections.ConfigDict()
    c.title = "BiT ResNet-50x1 that matches ResNet-152x2 on ImageNet-1k"
    c.seed = 0
    c.dtype = "bfloat16"
    c.total_epochs = 1200

    c.data = dict(name="tfds", dataset="imagenet2012", split="train[:98%]", canvas_size=512, batch_size=4096)
    c.views = dict(image=dict(ops=(
        dict(name="random_resized_crop", size=224, scale=(0.05, 1.0), interpolation="bilinear"),
        dict(name="flip", probability=0.5),
        NORMALIZE,
    )))  # fmt: skip
    c.mix = dict(num_classes=1000, mixup=1.0, cutmix=0.0, probability=1.0, label_smoothing=0.0)

    head = dict(name="linear_head", num_classes=1000)
    c.networks = dict(
        encoder=dict(name="bit", variant="R50x1"),
        head=dict(head, init_std=0.0),
        teacher=dict(name="bit", variant="R152x2", weights="weights/bit_m_r152x2_in1k"),
        teacher_head=dict(head, weights="weights/bit_m_r152x2_in1k", part="head"),
    )
    c.objective = dict(name="distillation", temperature=1.0)
    rate = 0.03
    c.optimizer = dict(
        name="adamw", momentum_dtype="bfloat16", weight_decay=3e-4 / rate, clip_norm=1.0,
        groups=(dict(match=r"kernel$"), dict(match=r".*", weight_decay=0.0)),
    )  # fmt: skip
    c.schedule = dict(name="cosine", base=rate, warmup_steps=5000, end=0.0)

    c.eval_data = dict(test=dict(split="validation"))
    c.eval_views = dict(image=dict(ops=(
        dict(name="center_crop", size=224, resize_shorter=256, interpolation="bilinear"), NORMALIZE,
    )))  # fmt: skip
    c.evals = dict(classification=dict(every_epochs=50))
    return c
