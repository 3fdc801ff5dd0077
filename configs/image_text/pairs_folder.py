"""Images with texts of your own: two towers from scratch, or a text tower for public weights that stay as they are.

    vfm train --config=configs/image_text/pairs_folder.py:PATH --workdir=runs/pairs              SigLIP
    vfm train --config=configs/image_text/pairs_folder.py:clip=PATH --workdir=runs/pairs         CLIP
    vfm train --config=configs/image_text/pairs_folder.py:lit=PATH --workdir=runs/lit            on DINOv2's ViT-S/14

PATH is a folder with a table of captions (image,caption) or COCO's json beside the images, with a KEY.txt beside each
KEY.jpg, or with tar shards of such; or the table itself, or a .tar file. A tenth of the images is held out for
retrieval. Byte pairs are learned from your captions and kept in the workdir; for a public vocabulary take
--config.data.tokenizer.name=clip --config.data.tokenizer.path=FILE --config.networks.text_encoder.vocabulary=49408.
With a few thousand pairs try the locked tower first; --config.init.weights takes any file or name of an image
encoder. On a CPU: --config.networks.encoder.variant=mu/16. Texts name what is left and right, so nothing is flipped.
Settings are SigLIP's (Zhai et al., 2023, arXiv:2303.15343, Sec. 4), with smaller towers and a smaller batch.
"""

import ml_collections

from configs.common import IMAGENET_MEAN, IMAGENET_STD, tiny

WIDTH = 384  # of both towers and of the space they share: that of a ViT-S


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The recipe for the pairs in PATH; the argument is PATH, "clip=PATH", "lit=PATH" or "tiny"."""
    if argument == "tiny":
        return tiny(get_config())
    method, _, path = argument.partition("=") if argument.startswith(("clip=", "lit=")) else ("", "", argument)
    c = ml_collections.ConfigDict()
    c.title = "Images and texts of my own"
    c.seed = 0
    c.dtype = "float32"  # "bfloat16" on an accelerator
    c.total_epochs = 40

    c.data = dict(name="pairs", path=path, split="all[:90%]", canvas_size=256, batch_size=256,
                  tokenizer=dict(name="learned", vocabulary=8192), text_length=64)  # fmt: skip
    normalize = dict(name="normalize", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    c.views = dict(image=dict(ops=(
        dict(name="random_resized_crop", size=224, scale=(0.6, 1.0), interpolation="bicubic"),
        normalize,
    )))
    c.networks = dict(
        encoder=dict(name="vit", variant="S/16", positions="learned", class_token=False, pooling="attention",
                     projection=WIDTH),
        text_encoder=dict(name="text", variant="CLIP-B", width=WIDTH, depth=6, heads=6, mlp_dim=4 * WIDTH,
                          vocabulary=8192, length=64, pooling="argmax", projection=WIDTH),
    )  # fmt: skip
    c.objective = dict(name="clip") if method == "clip" else dict(name="siglip")
    c.optimizer = dict(name="adamw", b1=0.9, b2=0.95, weight_decay=1e-4, clip_norm=1.0)
    c.schedule = dict(name="cosine", base=5e-4, warmup_percent=10.0)
    c.checkpoints = dict(every_percent=10.0)

    c.eval_data = dict(test=dict(split="all[90%:]"))
    c.eval_views = dict(image=dict(ops=(
        dict(name="center_crop", size=224, resize_shorter=224, interpolation="bicubic"), normalize,
    )))
    c.evals = dict(retrieval=dict(every_percent=10.0))
    c.baselines = ("random_init",)
    if method == "lit":
        _lock(c)
    return c


def _lock(c: ml_collections.ConfigDict) -> None:
    """The image tower comes from a file and stays as it is; the texts are brought to its space."""
    c.title = "Texts of my own for a locked image tower"
    c.init = dict(weights="dinov2_vits14_pretrain", head="fresh")
    c.networks.encoder = dict(name="pretrained")
    c.objective = dict(name="siglip", freeze_encoder=True)
    c.optimizer.groups = (
        dict(match=r"^encoder/", lr_scale=0.0),
        dict(match=r"(bias|scale|gamma)$", weight_decay=0.0),
        dict(match=r".*"),
    )
    as_expected = (dict(name="pretrained_crop"), dict(name="pretrained_normalize"))
    c.views = dict(image=dict(ops=as_expected))
    c.eval_views = dict(image=dict(ops=as_expected))
