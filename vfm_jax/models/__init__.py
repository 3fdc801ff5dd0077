"""Networks by name: encoders, decoders and heads a recipe can ask for."""

from vfm_jax.models.vit import vit
from vfm_jax.nn.decoders import MaskedDecoder
from vfm_jax.nn.heads import LinearHead, ProjectionHead

MODELS = {
    "vit": vit,
    "masked_decoder": MaskedDecoder,
    "projection_head": ProjectionHead,
    "linear_head": LinearHead,
}
