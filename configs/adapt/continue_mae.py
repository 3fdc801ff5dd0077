"""Pretraining public weights further on your own images, by masked autoencoding.

    vfm train --config=configs/adapt/continue_mae.py --config.init.weights=vit_base_patch16_224.mae \
              --config.data.path=DIR --workdir=runs/mine
    vfm train --workdir=runs/mine                                                  goes on where it was stopped

The weights are a file, a folder, a name of `vfm weights list` or hf:OWNER/REPOSITORY, of a ViT. Everything about the
encoder and its pixels is read from them; another image size is --config.views.image.ops.0.size=160, and positions are
resampled. A file that holds MAE's decoder too (hf:facebook/vit-mae-base) keeps it with continue_mae.py:decoder.

Images in subfolders by class are probed against the classes (a tenth is held out for it); without subfolders take the
evaluators out: --config.evals=None. The objective is MAE's (He et al., 2021, arXiv:2111.06377, Sec. 3); its rates are
for pretraining from nothing, so here the peak is lower, and lower still towards the input (`layer_decay`), and the
encoder waits while the fresh decoder learns.
"""

import ml_collections


def get_config(variant: str = "fresh") -> ml_collections.ConfigDict:
    """The recipe; variant is "fresh" or "decoder": where the decoder is from."""
    decoder = {"fresh": dict(name="masked_decoder", width=256, depth=4, heads=8), "decoder": dict(name="pretrained")}
    c = ml_collections.ConfigDict()
    c.title = "MAE continued from public weights"
    c.seed = 0
    c.dtype = "float32"  # "bfloat16" on an accelerator
    c.total_epochs = 50

    c.data = dict(name="folder", path="", split="all[:90%]", canvas_size=256, batch_size=64)
    c.views = dict(image=dict(ops=(
        dict(name="random_resized_crop", size=224, scale=(0.2, 1.0), interpolation="bicubic"),
        dict(name="flip", probability=0.5),
        dict(name="pretrained_normalize"),
    )))

    c.networks = dict(encoder=dict(name="pretrained"), decoder=decoder[variant])
    c.init = dict(weights="", head="keep" if variant == "decoder" else "fresh", freeze_percent=5.0)
    c.objective = dict(name="mae", mask_ratio=0.75, normalize_target=True)
    c.optimizer = dict(name="adamw", b1=0.9, b2=0.95, weight_decay=0.05, layer_decay=0.75)
    c.schedule = dict(name="cosine", base=2e-4, warmup_percent=5.0)

    c.eval_data = dict(test=dict(split="all[90%:]"))
    c.eval_views = dict(image=dict(ops=(
        dict(name="pretrained_crop", size=224),
        dict(name="pretrained_normalize"),
    )))
    c.evals = dict(knn=dict(every_percent=10.0), linear_probe=dict())
    return c
