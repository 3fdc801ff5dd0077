"""A small trained PyTorch ViT of somebody's, by a rename table: evaluated, and pretrained further on a folder.

A state dict that is of no public family is read by two things of yours: the networks it holds, and a table from its
names to ours. Here they are those of a ViT made of `torch.nn.TransformerEncoderLayer` (32 x 32 images, patches of 4,
post-norm, ReLU, class token, a head of layer norm and dense), trained on CIFAR-10. With the images in
DIR/{train,test}/CLASS/*.png:

    vfm eval  --config=configs/adapt/vit_cifar10.py --config.init.weights=FILE.pth --config.data.path=DIR
    vfm train --config=configs/adapt/vit_cifar10.py:mae --config.init.weights=FILE.pth --config.data.path=DIR \
              --workdir=runs/continued

The first gives the accuracy of its own classifier, and k-NN and a linear probe on its features. The second continues
pretraining from it (":simclr" likewise); with --config.init=None --config.optimizer.layer_decay=None it starts fresh,
for comparison: scripts/bench/README.md has the figures.
"""

import ml_collections

CIFAR10 = dict(name="normalize", mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))

RENAME = (  # in PyTorch's words on the left; a layer keeps its .weight and .bias
    (r"^cls_token$", "encoder/class_token"),
    (r"^pos_embed$", "encoder/positions"),
    (r"^patch_embed\.proj", "encoder/patch_embedding"),
    (r"^transformer\.layers\.(\d+)\.", r"encoder/transformer/block_\1/"),
    (r"self_attn\.in_proj_", "attention/qkv."),
    (r"self_attn\.out_proj", "attention/out"),
    (r"linear1", "mlp/up"),
    (r"linear2", "mlp/down"),
    (r"^mlp_head\.0", "head/norm"),
    (r"^mlp_head\.1", "head/logits"),
)


def get_config(variant: str = "eval") -> ml_collections.ConfigDict:
    """The recipe; variant is "eval", "mae" or "simclr"."""
    return {"eval": _eval, "mae": _mae, "simclr": _simclr}[variant]()


def _eval() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.title = "A trained PyTorch ViT on CIFAR-10"
    c.seed = 0
    c.total_epochs = 1  # of fine-tuning, if it is trained

    c.data = dict(name="folder", path="", split="train", canvas_size=32, batch_size=200)
    c.views = dict(image=dict(ops=(dict(name="flip", probability=0.5), CIFAR10)))

    c.networks = dict(
        encoder=dict(name="vit", variant="mu/4", width=128, depth=6, heads=8, mlp_dim=256,
                     activation="relu", norm_order="post", norm_epsilon=1e-5, final_norm=False,
                     prefix_positions=1),
        head=dict(name="linear_head", num_classes=10, layer_norm=True),
    )
    c.init = dict(weights="", rename=RENAME, image_size=32, head="keep")
    c.objective = dict(name="supervised")
    c.optimizer = dict(name="adamw", weight_decay=0.05)
    c.schedule = dict(name="cosine", base=1e-4, warmup_percent=5.0)

    c.eval_data = dict(test=dict(split="test"))
    c.eval_views = dict(image=dict(ops=(CIFAR10,)))
    c.evals = dict(classification=dict(), knn=dict(num_neighbors=20), linear_probe=dict())
    return c


def _mae() -> ml_collections.ConfigDict:
    c = _eval()
    c.title = "MAE continued from a trained ViT"
    c.total_epochs = 3
    c.networks = dict(encoder=c.networks.encoder, decoder=dict(name="masked_decoder", width=96, depth=2, heads=3))
    c.init.update(head="fresh", freeze_percent=20.0)  # the decoder was never released: it learns first, alone
    c.objective = dict(name="mae", mask_ratio=0.75)
    c.optimizer = dict(name="adamw", b2=0.95, weight_decay=0.05, layer_decay=0.75)
    c.schedule = dict(name="cosine", base=5e-4, warmup_percent=10.0)
    c.evals = dict(knn=dict(num_neighbors=20), linear_probe=dict())
    return c


def _simclr() -> ml_collections.ConfigDict:
    c = _mae()
    c.title = "SimCLR continued from a trained ViT"
    c.views = dict(image=dict(num_views=2, ops=(
        dict(name="random_resized_crop", size=32, scale=(0.3, 1.0)),
        dict(name="flip", probability=0.5),
        dict(name="color_jitter", brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, probability=0.8),
        CIFAR10,
    )))
    c.networks = dict(
        encoder=c.networks.encoder,
        projector=dict(name="projection_head", hidden_dim=128, out_dim=64, num_layers=2),
    )
    c.objective = dict(name="simclr", temperature=0.2)
    c.optimizer = dict(name="adamw", weight_decay=1e-4, layer_decay=0.75)
    return c
