"""MAE on 4,000 real MNIST digits in under two minutes on two CPU cores; needs no account and no download.

    vfm train --config=configs/quickstart.py --workdir=runs/quickstart            masked autoencoding
    vfm train --config=configs/quickstart.py:simclr --workdir=runs/simclr         contrastive
    vfm train --config=configs/quickstart.py:photos --workdir=runs/photos         masked, in colour
"""

import ml_collections


def get_config(variant: str = "mae") -> ml_collections.ConfigDict:
    """The recipe; variant is "mae", "simclr" or "photos"."""
    return {"mae": _mae, "simclr": _simclr, "photos": _photos}[variant]()


def _mae() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.title = "A masked autoencoder of handwritten digits"
    c.seed = 0
    c.total_epochs = 60

    c.data = dict(name="mnist5k", split="train", batch_size=128)
    c.views = dict(image=dict(ops=(
        dict(name="shift", max_pixels=2),
        dict(name="normalize", mean=0.5, std=0.5),
    )))
    c.networks = dict(
        encoder=dict(name="vit", variant="mu/7", width=96, depth=4, heads=3, mlp_dim=384, positions="sincos2d",
                     pooling="mean"),
        decoder=dict(name="masked_decoder", width=64, depth=2, heads=2),
    )
    c.objective = dict(name="mae", mask_ratio=0.75, normalize_target=False)
    c.optimizer = dict(name="adamw", b1=0.9, b2=0.95, weight_decay=0.05)
    c.schedule = dict(name="cosine", base_lr=1e-3, warmup_epochs=3)

    c.eval_data = dict(test=dict(split="test"))
    c.eval_views = dict(image=dict(ops=(dict(name="normalize", mean=0.5, std=0.5),)))
    c.evals = dict(knn=dict(), linear_probe=dict())
    c.baselines = ("random_init", "raw_pixels")
    return c


def _simclr() -> ml_collections.ConfigDict:
    c = _mae()
    c.title = "SimCLR on handwritten digits"
    c.total_epochs = 60
    c.data.batch_size = 256
    c.views = dict(image=dict(num_views=2, ops=(
        dict(name="random_resized_crop", size=28, scale=(0.4, 1.0)),
        dict(name="shift", max_pixels=2),
        dict(name="normalize", mean=0.13, std=0.31),
    )))
    c.networks = dict(encoder=c.networks.encoder, projector=dict(name="projection_head", hidden_dim=96, out_dim=64))
    c.objective = dict(name="simclr", temperature=0.2)
    c.optimizer = dict(name="adamw", weight_decay=1e-4)
    c.schedule = dict(name="cosine", base_lr=2e-3, warmup_epochs=3)
    return c


def _photos() -> ml_collections.ConfigDict:
    c = _mae()
    c.title = "A masked autoencoder of photographs"
    c.total_epochs = 20
    c.data = dict(name="photos", split="train", crop_size=64, batch_size=64)
    c.networks.encoder.update(variant="mu/8", width=128, depth=4, heads=4, mlp_dim=512)
    c.networks.decoder.update(width=96, depth=2, heads=3)
    return c
