"""Networks by name: encoders, decoders and heads a recipe can ask for."""

from vfm_jax.models.swin import Swin
from vfm_jax.models.vit import ViT
from vfm_jax.nn.decoders import MaskedDecoder
from vfm_jax.nn.heads import LinearHead, ProjectionHead

MODELS = {
    "swin": Swin,
    "vit": ViT,
    "masked_decoder": MaskedDecoder,
    "projection_head": ProjectionHead,
    "linear_head": LinearHead,
}
