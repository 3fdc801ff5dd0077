"""SigLIP (Zhai et al., 2023, arXiv:2303.15343, Sec. 4.2 and 4.6), on pairs of your own.

    vfm train --config=configs/image_text/siglip_vit.py --config.data.path=SHARDS \
        --config.data.tokenizer.path=c4_en.model --workdir=runs/siglip   ViT-B/16, 224 pixels; b16_256, so400m_224
    ... :b16_384  :b16_512  :l16_384  :so400m_384      at more pixels, from the public weights of fewer
    ... :unlocked_b16                                  a pretrained image tower, at a tenth of the rate, no decay

To reach: 76.0 % (B/16 at 224) to 83.1 % (So400m at 384) zero-shot on ImageNet-1k. Not yet run by us: WebLI is not
public. The paper does not state rate, decay and warm-up of these runs: here they are SigLIP 2's (arXiv:2502.14786,
Sec. 2.2), whose decay of 1e-4, which big_vision does not multiply by the rate of 1e-3, is AdamW's 0.1. An adaptation
sees 5 billion pairs at a hundredth of the rate, without decay. The released So400m/14 at 224 reads 16 tokens; here it
is 64, as in the others. Patches of 14 do not divide 384 pixels: So400m looks at the 378 in the middle.
On many devices set --config.objective.num_blocks to their number: the loss then makes no matrix of batch by batch.
"""

import ml_collections

from configs.common import tiny

NORMALIZE = dict(name="normalize", mean=0.5, std=0.5)
SMALLER = {  # what an adaptation begins with
    "b16_384": "siglip-base-patch16-224",
    "b16_512": "siglip-base-patch16-224",
    "l16_384": "hf:google/siglip-large-patch16-256",
    "so400m_384": "hf:google/siglip-so400m-patch14-224",
}
SIZES = {  # image tower, text tower, width in common, pixels
    "b16_224": ("B/16", "B", 768, 224),
    "b16_256": ("B/16", "B", 768, 256),
    "b16_384": ("B/16", "B", 768, 384),
    "b16_512": ("B/16", "B", 768, 512),
    "l16_384": ("L/16", "L", 1024, 384),
    "so400m_224": ("So400m/14", "So400m", 1152, 224),
    "so400m_384": ("So400m/14", "So400m", 1152, 384),
    "unlocked_b16": ("B/16", "B", 768, 224),
}


def get_config(size: str = "b16_224") -> ml_collections.ConfigDict:
    """The recipe; size is a row of `SIZES`, or "tiny"."""
    if size == "tiny":
        return tiny(get_config())
    variant, text_variant, width, pixels = SIZES[size]
    c = ml_collections.ConfigDict()
    c.title = f"SigLIP {size}"
    c.seed = 0
    c.dtype = "bfloat16"
    c.total_examples = 40_000_000_000

    c.data = dict(name="pairs", path="", canvas_size=max(512, pixels), batch_size=32768, text_length=64,
                  tokenizer=dict(name="sentencepiece", path="c4_en.model"))  # fmt: skip
    ops = (dict(name="resize", size=pixels, interpolation="bilinear"), NORMALIZE)
    if size == "so400m_384":
        ops = (ops[0], dict(name="center_crop", size=378), NORMALIZE)
    c.views = dict(image=dict(ops=ops))
    c.networks = dict(
        encoder=dict(name="vit", variant=variant, positions="learned", class_token=False, pooling="attention",
                     activation="gelu_tanh", norm_epsilon=1e-6),
        text_encoder=dict(name="text", variant=text_variant, vocabulary=32000, length=64, causal=False,
                          pooling="last", projection=width, projection_bias=True, activation="gelu_tanh",
                          norm_epsilon=1e-6),
    )  # fmt: skip
    c.objective = dict(name="siglip", initial_scale=10.0, initial_bias=-10.0, num_blocks=1)
    c.optimizer = dict(name="adafactor", momentum=0.9, decay_cap=0.95, weight_decay=0.1, clip_norm=1.0)
    c.schedule = dict(name="cosine", base=1e-3, warmup_steps=20_000, end=0.0)
    if size in SMALLER:
        c.init = dict(weights=SMALLER[size], head="keep")
        c.total_examples = 5_000_000_000
        c.schedule.base *= 0.01
        c.optimizer.weight_decay = 0.0
    if size == "unlocked_b16":
        c.data.batch_size = 16384
        c.init = dict(weights="vit-base-patch16-224-in21k", head="fresh")
        c.networks.encoder.update(class_token=True, prefix_positions=1, pooling="class")
        c.optimizer.groups = (
            dict(match=r"^encoder/", lr_scale=0.1, weight_decay=0.0),
            dict(match=r"(bias|scale)$", weight_decay=0.0),
            dict(match=r".*"),
        )

    c.eval_data = dict(test=dict(path="coco", captions="annotations/captions_val2017.json", max_texts=5))
    c.eval_views = dict(image=dict(ops=ops))
    c.evals = dict(retrieval=dict(every_percent=10.0))
    return c
