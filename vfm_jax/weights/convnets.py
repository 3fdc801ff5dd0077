"""Families of the convolutional encoders and of MLP-Mixer."""

from vfm_jax.weights import bit, convnext, mixer, resnet, vgg

FAMILIES = (*convnext.FAMILIES, *resnet.FAMILIES, *bit.FAMILIES, *vgg.FAMILIES, *mixer.FAMILIES)
