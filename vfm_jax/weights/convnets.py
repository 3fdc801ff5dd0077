"""Families of the convolutional encoders and of MLP-Mixer."""

from vfm_jax.weights import bit, convnext, mixer, resnet, vgg

_BY_ENCODER = {"convnext": convnext, "resnet": resnet, "bit": bit, "vgg": vgg, "mixer": mixer}

FAMILIES = tuple(
    family._replace(encoders=(encoder,)) for encoder, module in _BY_ENCODER.items() for family in module.FAMILIES
)
