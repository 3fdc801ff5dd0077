"""What public weights know of your labelled images, without training: k-NN and a linear probe on frozen features.

    vfm eval --config=configs/adapt/evaluate.py --config.init.weights=dinov2-small --config.data.path=DIR
    vfm eval --config=configs/adapt/evaluate.py:classifier --config.init.weights=deit-small-patch16-224 \
             --config.data.path=IMAGENET --config.data.split=train --config.eval_data.test.split=val

The weights are a file, a folder, a name of `vfm weights list` or hf:OWNER/REPOSITORY; images are cropped and
normalised as they expect (--config.eval_views.image.ops.0.size=128 for smaller ones: positions are resampled).
Classes are the subfolders of DIR; a tenth of the images is held out, or say which subfolders are the splits, as in
the second line. ":classifier" measures the classifier of the file as well: its classes must be those of the folder,
in order.

The protocols are DINO's (Caron et al., 2021, arXiv:2104.14294, Sec. 4.1: k = 20, T = 0.07) and logistic regression on
features of one crop.
"""

import ml_collections


def get_config(variant: str = "features") -> ml_collections.ConfigDict:
    """The recipe; variant is "features" or "classifier"."""
    # an objective needs a head; that of "features" is never asked (more classes: --config.networks.head.num_classes)
    heads = {"features": dict(name="linear_head", num_classes=1000), "classifier": dict(name="pretrained")}
    c = ml_collections.ConfigDict()
    c.title = "Public weights on a labelled folder"
    c.seed = 0
    c.dtype = "float32"  # "bfloat16" on an accelerator
    c.total_steps = 1  # of a training that `vfm eval` does not begin

    c.data = dict(name="folder", path="", split="all[:90%]", canvas_size=512, batch_size=64)
    as_expected = (dict(name="pretrained_crop"), dict(name="pretrained_normalize"))
    c.views = dict(image=dict(ops=as_expected))
    c.networks = dict(encoder=dict(name="pretrained"), head=heads[variant])
    c.init = dict(weights="", head="keep" if variant == "classifier" else "fresh")
    c.objective = dict(name="supervised", freeze_encoder=True)
    c.optimizer = dict(name="adamw")
    c.schedule = dict(name="constant", base=1e-3)

    c.eval_data = dict(test=dict(split="all[90%:]"))
    c.eval_views = dict(image=dict(ops=as_expected))
    c.eval_batch_size = 64
    c.evals = dict(knn=dict(num_neighbors=20), linear_probe=dict())
    if variant == "classifier":
        c.evals.classification = dict()
    return c
