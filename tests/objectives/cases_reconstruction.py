"""Methods that predict hidden pixels, or a teacher's features of them, on tiny networks."""

from tests.objectives.case import HEIGHT, WIDTH, Case, tiny_vit
from vfm_jax.models import MODELS
from vfm_jax.objectives import OBJECTIVES
from vfm_jax.optim import SCHEDULES

IMAGE = {"image": (HEIGHT, WIDTH, 3)}
MOMENTUM = SCHEDULES["constant"](start=0.9, base=0.99, warmup_steps=10, total_steps=20)
NEVER = r"^encoder/norm/"  # of `pooled`, which the loss does not see


def _swin():
    return MODELS["swin"](width=8, depths=(1, 1), heads=(1, 2), window=2, patch=2, mlp_ratio=2.0, mask_token=True)


def _convnext():
    return MODELS["convnext"](depths=(1, 1), widths=(8, 12), stem_size=2, layer_scale=None, grn=True)


def _of_patches(masked):
    """Pixels that are masked, as patches of 4."""
    return masked[:, ::4, ::4].reshape(masked.shape[0], -1)


def _simmim(encoder):
    return lambda: OBJECTIVES["simmim"](encoder(), MODELS["pixel_head"](), mask_patch_size=4)


SIMMIM = dict(
    views=IMAGE,
    hidden=lambda outputs: _of_patches(outputs.masked),
    seen=lambda outputs: (outputs.prediction, outputs.pooled),
)
CASES = {
    "simmim": Case(_simmim(lambda: tiny_vit(mask_token=True)), **SIMMIM),
    "simmim swin": Case(_simmim(_swin), **SIMMIM),
    "fcmae": Case(
        lambda: OBJECTIVES["fcmae"](_convnext(), MODELS["convnext_decoder"](width=8)),
        IMAGE,
        still=(NEVER,),
        hidden=lambda outputs: outputs.masked,
        seen=lambda outputs: (outputs.prediction, outputs.pooled),
    ),
    "context_reconstruction": Case(
        lambda: OBJECTIVES["context_reconstruction"](
            MODELS["vgg"](depths=(1, 1), widths=(6, 8), classifier_dim=None),
            MODELS["upsampling_decoder"](width=16),
        ),
        IMAGE,
    ),
    "context_reconstruction autoencoder": Case(
        lambda: OBJECTIVES["context_reconstruction"](
            MODELS["vgg"](depths=(1, 1), widths=(6, 8), classifier_dim=None),
            MODELS["pixel_head"](),
            hidden_area=None,
        ),
        IMAGE,
    ),
    "data2vec2": Case(
        lambda: OBJECTIVES["data2vec2"](
            tiny_vit(depth=2, positions="sincos2d", norm_input="tokens", norm_order="post", final_norm=False),
            MODELS["conv_decoder"](width=16, depth=2, groups=4),
            num_masks=3,
            mask_ratio=0.5,
            block_size=2,
            average_top_k=2,
            momentum=MOMENTUM,
        ),
        IMAGE,
        teacher={"target": MOMENTUM},
    ),
}
