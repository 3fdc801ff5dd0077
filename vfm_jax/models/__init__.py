"""Networks by name: encoders, decoders and heads a recipe can ask for."""

from vfm_jax.models.bit import BiT
from vfm_jax.models.convnext import ConvNeXt, ConvNeXtDecoder
from vfm_jax.models.mixer import Mixer
from vfm_jax.models.resnet import ResNet
from vfm_jax.models.swin import Swin
from vfm_jax.models.text import TextTransformer
from vfm_jax.models.two_tower import two_tower
from vfm_jax.models.vgg import VGG
from vfm_jax.models.vit import ViT
from vfm_jax.nn.decoders import JepaPredictor, MaskedDecoder, TokenDecoder
from vfm_jax.nn.heads import DinoHead, LinearHead, ProjectionHead, Prototypes
from vfm_jax.nn.map_decoders import ConvDecoder, PixelHead, UpsamplingDecoder

MODELS = {
    "bit": BiT,
    "convnext": ConvNeXt,
    "mixer": Mixer,
    "resnet": ResNet,
    "swin": Swin,
    "vgg": VGG,
    "vit": ViT,
    "text": TextTransformer,
    "two_tower": two_tower,
    "masked_decoder": MaskedDecoder,
    "convnext_decoder": ConvNeXtDecoder,
    "conv_decoder": ConvDecoder,
    "pixel_head": PixelHead,
    "upsampling_decoder": UpsamplingDecoder,
    "jepa_predictor": JepaPredictor,
    "token_decoder": TokenDecoder,
    "dino_head": DinoHead,
    "projection_head": ProjectionHead,
    "prototypes": Prototypes,
    "linear_head": LinearHead,
}
