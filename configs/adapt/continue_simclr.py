"""Pretraining public weights further on your own images, by contrasting two views of each (SimCLR).

    vfm train --config=configs/adapt/continue_simclr.py --config.init.weights=dinov2-small \
              --config.data.path=DIR --workdir=runs/mine
    vfm train --workdir=runs/mine                                                  goes on where it was stopped

The weights are a file, a folder, a name of `vfm weights list` or hf:OWNER/REPOSITORY. Everything about the encoder
and its pixels is read from them; for one without blocks (a ResNet) add --config.optimizer.layer_decay=None.

Images in subfolders by class are probed against the classes (a tenth is held out for it); without subfolders take the
evaluators out: --config.evals=None. Loss and views are SimCLR's (Chen et al., 2020, arXiv:2002.05709, Sec. 2 and
App. A) with its temperature for small batches; negatives are those of the batch, so take the largest that fits. AdamW
at a low rate, lower still towards the input, in place of LARS; the encoder waits while the fresh projector learns.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.title = "SimCLR continued from public weights"
    c.seed = 0
    c.dtype = "float32"  # "bfloat16" on an accelerator
    c.total_epochs = 50

    c.data = dict(name="folder", path="", split="all[:90%]", canvas_size=256, batch_size=64)
    c.views = dict(image=dict(num_views=2, ops=(
        dict(name="random_resized_crop", size=224, scale=(0.2, 1.0), interpolation="bicubic"),
        dict(name="flip", probability=0.5),
        dict(name="color_jitter", brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, probability=0.8),
        dict(name="grayscale", probability=0.2),
        dict(name="gaussian_blur", probability=0.5),
        dict(name="pretrained_normalize"),
    )))

    c.networks = dict(
        encoder=dict(name="pretrained"),
        projector=dict(name="projection_head", hidden_dim=512, out_dim=128, num_layers=2),
    )
    c.init = dict(weights="", head="fresh", freeze_percent=5.0)
    c.objective = dict(name="simclr", temperature=0.2)
    c.optimizer = dict(name="adamw", weight_decay=1e-4, layer_decay=0.75)
    c.schedule = dict(name="cosine", base=1e-4, warmup_percent=5.0)

    c.eval_data = dict(test=dict(split="all[90%:]"))
    c.eval_views = dict(image=dict(ops=(
        dict(name="pretrained_crop", size=224),
        dict(name="pretrained_normalize"),
    )))
    c.evals = dict(knn=dict(every_percent=10.0), linear_probe=dict())
    return c
