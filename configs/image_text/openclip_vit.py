"""OpenCLIP (Cherti et al., 2022, arXiv:2212.07143, and mlfoundations/open_clip) on LAION and DataComp.

    vfm train --config=configs/image_text/openclip_vit.py --config.data.path=SHARDS \
        --config.data.tokenizer.path=bpe_simple_vocab_16e6.txt.gz --workdir=runs/openclip    ViT-B/32 on LAION-400M
    ... :b16_400m  :b16plus_400m  :l14_400m                                                  the same data
    ... :b32_2b_e16  :b32_2b  :b16_2b  :l14_2b  :h14_2b  :g14_2b  :bigg14_2b                 LAION-2B
    ... :b16_datacomp  :l14_datacomp                                                         DataComp-1B

Not yet run by us. GELU in place of CLIP's quick GELU; images are cropped to 90 to 100 % of their area, as open_clip
does by default. Batches, and the examples seen (the s34b and the like of their names), are those of the released
runs; rate, warm-up and decay are known of LAION-400M's B/32 alone and are those in all. A batch need not divide over
your devices: 79,104 for 79,000 on 128 of them. Blocks start by Glorot's rule.
"""

import ml_collections

from configs.common import tiny

NORMALIZE = dict(
    name="normalize", mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711)
)
HALVES = dict(name="normalize", mean=0.5, std=0.5)  # of L/14 on LAION-2B
TOWERS = {  # image tower and its fields, text tower, width in common, pixels
    "b32": ("B/32", {}, "CLIP-B", 512, 224),
    "b16": ("B/16", {}, "CLIP-B", 512, 224),
    "b16plus": ("B/16", dict(width=896, mlp_dim=3584, heads=14), "CLIP-B", 640, 240),
    "l14": ("L/14", {}, "CLIP-L", 768, 224),
    "h14": ("H/14", {}, "CLIP-H", 1024, 224),
    "g14": ("g/14", {}, "CLIP-H", 1024, 224),
    "bigg14": ("G/14", {}, "CLIP-bigG", 1280, 224),
}
LAION400M, LAION2B = 407_332_084, 2.0e9  # pairs
RUNS = {  # batch, examples seen
    "b32_400m": (32768, 32 * LAION400M), "b16_400m": (33792, 32 * LAION400M),
    "b16plus_400m": (35840, 32 * LAION400M), "l14_400m": (38400, 32 * LAION400M),
    "b32_2b_e16": (46592, 16 * LAION2B), "b32_2b": (79000, 34e9), "b16_2b": (88000, 34e9), "l14_2b": (82000, 32e9),
    "h14_2b": (79000, 32e9), "g14_2b": (42000, 12e9), "bigg14_2b": (160_000, 39e9),
    "b16_datacomp": (90000, 13e9), "l14_datacomp": (90000, 13e9),
}  # fmt: skip


def get_config(run: str = "b32_400m") -> ml_collections.ConfigDict:
    """The recipe; run is a row of `RUNS`, or "tiny"."""
    if run == "tiny":
        return tiny(get_config())
    batch_size, examples = RUNS[run]
    variant, fields, text_variant, width, pixels = TOWERS[run.partition("_")[0]]
    normalize = HALVES if run == "l14_2b" else NORMALIZE
    c = ml_collections.ConfigDict()
    c.title = f"OpenCLIP {run}"
    c.seed = 0
    c.dtype = "bfloat16"
    c.total_examples = examples

    c.data = dict(name="pairs", path="", canvas_size=512, batch_size=batch_size, text_length=77,
                  tokenizer=dict(name="clip", path="bpe_simple_vocab_16e6.txt.gz"))  # fmt: skip
    c.views = dict(image=dict(ops=(
        dict(name="random_resized_crop", size=pixels, scale=(0.9, 1.0), interpolation="bicubic"), normalize,
    )))
    c.networks = dict(
        encoder=dict(name="vit", variant=variant, positions="learned", prefix_positions=1, patch_bias=False,
                     norm_input="tokens", norm_pooled=True, pooling="class", projection=width,
                     activation="gelu", norm_epsilon=1e-5, **fields),
        text_encoder=dict(name="text", variant=text_variant, vocabulary=49408, length=77, causal=True,
                          pooling="argmax", projection=width, activation="gelu", norm_epsilon=1e-5),
    )  # fmt: skip
    if run == "b16plus_400m":
        c.networks.text_encoder.update(width=640, mlp_dim=2560, heads=10)
    c.objective = dict(name="clip", initial_scale=1 / 0.07, max_scale=100.0)
    c.optimizer = dict(
        name="adamw", b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.2,
        groups=(
            dict(match=r"(bias|scale|class_token)$", weight_decay=0.0),
            dict(match=r".*"),
        ),
    )  # fmt: skip
    c.schedule = dict(name="cosine", base=5e-4, warmup_steps=2000, end=0.0)

    c.eval_data = dict(test=dict(path="coco", captions="annotations/captions_val2017.json", max_texts=5))
    c.eval_views = dict(image=dict(ops=(
        dict(name="center_crop", size=pixels, resize_shorter=pixels, interpolation="bicubic"), normalize,
    )))
    c.evals = dict(retrieval=dict(every_percent=10.0))
    return c
