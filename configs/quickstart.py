"""Self-supervised pretraining on real images, in two minutes on two CPU cores; needs no account and no download.

    vfm train --config=configs/quickstart.py --workdir=runs/quickstart            masked autoencoding of digits
    vfm train --config=configs/quickstart.py:simclr --workdir=runs/simclr         contrastive learning on digits
    vfm train --config=configs/quickstart.py:photos --workdir=runs/photos         masked autoencoding of photographs

The digits are 5,000 of MNIST (4,000 to train on, 1,000 held out); the photographs are those of scikit-image, cut into
crops. What it reaches, at three seeds, stands in the README.
"""

import ml_collections

MNIST = dict(name="normalize", mean=0.13, std=0.31)


def get_config(variant: str = "mae") -> ml_collections.ConfigDict:
    """The recipe; variant is "mae", "simclr" or "photos"."""
    return {"mae": _mae, "simclr": _simclr, "photos": _photos}[variant]()


def _mae() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.title = "A masked autoencoder of handwritten digits"
    c.seed = 0
    c.total_epochs = 64
    c.log_every_steps = 20

    c.data = dict(name="mnist5k", split="train", batch_size=64)
    c.views = dict(image=dict(ops=(dict(name="shift", max_pixels=2), MNIST)))

    c.networks = dict(
        encoder=dict(name="vit", variant="mu/7", width=96, depth=4, heads=3, mlp_dim=384,
                     positions="sincos2d", class_token=False, pooling="mean"),
        decoder=dict(name="masked_decoder", width=64, depth=2, heads=2),
    )
    c.objective = dict(name="mae", mask_ratio=0.6, normalize_target=False)
    c.optimizer = dict(name="adamw", b1=0.9, b2=0.95, weight_decay=0.05)
    c.schedule = dict(name="cosine", base=1e-3, warmup_epochs=3)

    c.eval_data = dict(test=dict(split="test"))
    c.eval_views = dict(image=dict(ops=(MNIST,)))
    c.evals = dict(knn=dict(num_neighbors=20, every_percent=20), linear_probe=dict())
    c.baselines = ("random_init", "raw_pixels")
    return c


def _simclr() -> ml_collections.ConfigDict:
    c = _mae()
    c.title = "Contrastive learning on handwritten digits"
    c.total_epochs = 40
    c.data.batch_size = 256

    c.views = dict(image=dict(num_views=2, ops=(
        dict(name="random_resized_crop", size=28, scale=(0.5, 1.0)),
        dict(name="shift", max_pixels=2),
        MNIST,
    )))
    c.networks = dict(
        encoder=c.networks.encoder,
        projector=dict(name="projection_head", hidden_dim=96, out_dim=64, num_layers=2),
    )
    c.objective = dict(name="simclr", temperature=0.2)
    c.optimizer = dict(name="adamw", weight_decay=1e-4)
    c.schedule = dict(name="cosine", base=2e-3, warmup_epochs=3)
    return c


def _photos() -> ml_collections.ConfigDict:
    c = _mae()
    c.title = "A masked autoencoder of photographs"
    c.total_epochs = 20

    photographs = dict(name="normalize", mean=0.45, std=0.25)
    c.data = dict(name="photos", split="train", crop_size=64, batch_size=64)
    c.views = dict(image=dict(ops=(dict(name="flip", probability=0.5), photographs)))
    c.eval_views = dict(image=dict(ops=(photographs,)))
    c.networks.encoder.update(variant="mu/8", width=128, depth=4, heads=4, mlp_dim=512)
    c.networks.decoder.update(width=96, depth=2, heads=3)
    c.objective = dict(name="mae", mask_ratio=0.75, normalize_target=False)
    return c
