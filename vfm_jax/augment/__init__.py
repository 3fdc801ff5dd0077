"""Operations that make views of an image: on the device, inside the jitted step, with one key per example."""

from vfm_jax.augment import auto_augment, color, erase, geometry, policies
from vfm_jax.augment.mix import mixup_cutmix

__all__ = ["ON_NORMALIZED", "VIEW_OPS", "mixup_cutmix"]

VIEW_OPS = {
    "random_resized_crop": geometry.random_resized_crop,
    "center_crop": geometry.center_crop,
    "random_crop": geometry.random_crop,
    "resize": geometry.resize,
    "flip": geometry.flip,
    "shift": geometry.shift,
    "color_jitter": color.color_jitter,
    "grayscale": color.grayscale,
    "gaussian_blur": color.gaussian_blur,
    "solarize": color.solarize,
    "auto_augment": auto_augment.auto_augment,
    "rand_augment": policies.rand_augment,
    "three_augment": policies.three_augment,
    "normalize": color.normalize,
    "random_erasing": erase.random_erasing,
}

ON_NORMALIZED = frozenset({"random_erasing"})  # these stand after normalize; all others, before it
