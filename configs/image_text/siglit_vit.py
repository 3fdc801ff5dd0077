"""LiT and SigLiT: a text tower for a locked, pretrained image tower.

    vfm train --config=configs/image_text/siglit_vit.py --config.data.path=SHARDS \
        --config.data.tokenizer.path=c4_en.model --workdir=runs/siglit     SigLiT on four chips (2303.15343, Sec. 4.4)
    ... :lit_l16l  :lit_b16b2                                              LiT on public data (arXiv:2111.07991)
    ... :coco                                                              big_vision's example on COCO's captions

To reach: 79.7 % zero-shot on ImageNet-1k (SigLiT), 75.7 % (L16L), 73.9 % (B16B_2). Not yet run by us.
SigLiT reads embeddings that were computed before; here the locked tower runs in the step, without a gradient. LiT's
text towers are BERT's, which start from its weights; ours is a plain transformer that starts fresh. L16L's map after
the images is left out. The public runs' rate, decay and batch are not stated: they are LiT's and the COCO example's.
big_vision does not multiply decay by the rate: 0.01 at 1e-3 is AdamW's 10, SigLiT's 1e-7 at 1e-4 its 1e-3.
"""

import ml_collections

from configs.common import tiny

NORMALIZE = dict(name="normalize", mean=0.5, std=0.5)
PUBLIC = {  # AugReg's, trained on ImageNet-21k
    "B/8": "hf:timm/vit_base_patch8_224.augreg_in21k",
    "B/16": "hf:timm/vit_base_patch16_224.augreg_in21k",
    "L/16": "hf:timm/vit_large_patch16_224.augreg_in21k",
}
LOCKED = dict(match=r"^encoder/", lr_scale=0.0)
UNDECAYED = dict(match=r"(bias|scale)$", weight_decay=0.0)


def get_config(variant: str = "siglit") -> ml_collections.ConfigDict:
    """The recipe; variant is "siglit", "lit_l16l", "lit_b16b2", "coco" or "tiny"."""
    if variant == "tiny":
        c = tiny(get_config())
        del c.init  # the tiny one locks a fresh tower
        return c
    return {"siglit": _siglit, "lit_l16l": _lit_l16l, "lit_b16b2": _lit_b16b2, "coco": _coco}[variant]()


def _locked(title: str, image: str, tokens: int, **text: object) -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.title = title
    c.seed = 0
    c.dtype = "bfloat16"
    c.data = dict(name="pairs", path="", canvas_size=256, batch_size=32768, text_length=tokens,
                  tokenizer=dict(name="sentencepiece", path="c4_en.model"))  # fmt: skip
    ops = (dict(name="resize", size=224, interpolation="bilinear"), NORMALIZE)
    c.views = dict(image=dict(ops=ops))
    c.init = dict(weights=PUBLIC[image], head="fresh")
    c.networks = dict(
        encoder=dict(name="vit", positions="learned", pooling="class", activation="gelu_tanh",
                     norm_epsilon=1e-6, variant=image),
        text_encoder=dict(name="text", vocabulary=32000, length=tokens, causal=False, pooling="last",
                          activation="gelu_tanh", norm_epsilon=1e-6, **text),
    )  # fmt: skip
    c.eval_data = dict(test=dict(path="coco", captions="annotations/captions_val2017.json", max_texts=5))
    c.eval_views = dict(image=dict(ops=ops))
    c.evals = dict(retrieval=dict(every_percent=10.0))
    return c


def _siglit() -> ml_collections.ConfigDict:
    c = _locked("SigLiT B/8", "B/8", 64, variant="L", depth=12, projection=768)
    c.total_steps = 65_000
    c.objective = dict(name="siglip", initial_scale=10.0, initial_bias=-10.0, freeze_encoder=True)
    c.optimizer = dict(name="lion", b1=0.9, b2=0.99, weight_decay=1e-3, groups=(LOCKED, UNDECAYED, dict(match=r".*")))
    c.schedule = dict(name="cosine", base=1e-4, warmup_steps=6500, end=0.0)
    return c


def _public(title: str, image: str, **text: object) -> ml_collections.ConfigDict:
    """LiT on CC12M and YFCC100M."""
    c = _locked(title, image, 16, **text)
    c.total_steps = 60_000
    c.data.batch_size = 16384
    c.objective = dict(name="clip", initial_scale=10.0, freeze_encoder=True)
    c.optimizer = dict(name="adafactor", weight_decay=0.1, clip_norm=1.0,
                       groups=(LOCKED, UNDECAYED, dict(match=r".*")))  # fmt: skip
    c.schedule = dict(name="cosine", base=1e-3, warmup_percent=3.0, end=0.0)
    return c


def _lit_l16l() -> ml_collections.ConfigDict:
    return _public("LiT L16L", "L/16", variant="L", projection=1024)


def _lit_b16b2() -> ml_collections.ConfigDict:
    return _public("LiT B16B_2", "B/16", variant="B", projection=768)


def _coco() -> ml_collections.ConfigDict:
    c = _locked("SigLiT B/16 on COCO", "B/16", 16, variant="B", projection=768)
    c.total_steps = 5000
    c.data.batch_size = 512
    resize, normalize = c.views.image.ops
    changed = (dict(name="flip"), dict(name="rand_augment", num_ops=2, magnitude=10.0, magnitude_std=0.0,
                                       increasing=False))  # fmt: skip
    c.views.image.ops = (resize, *changed, normalize)
    c.objective = dict(name="siglip", initial_scale=10.0, initial_bias=-2.71, freeze_encoder=True)
    c.optimizer = dict(name="adamw", weight_decay=10.0, clip_norm=1.0, groups=(LOCKED, UNDECAYED, dict(match=r".*")))
    c.schedule = dict(name="cosine", base=1e-3, warmup_steps=max(100, c.total_steps * 3 // 100), end=0.0)
    return c
