"""Images as a set of weights expects them: resized, cropped and normalised on the host."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vfm_jax.core.errors import UserError
from vfm_jax.data.decode import decode
from vfm_jax.weights.family import Family, Preprocessing
from vfm_jax.weights.rules import Bundle

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_BY_NUMBER = {
    int(value): name for name, value in _RESAMPLING.items()
}  # preprocessor_config.json writes Pillow's numbers


def preprocessing_of(
    family: Family, bundle: Bundle, config: Mapping[str, Any] | None, preprocessor: Mapping[str, Any] | None
) -> Preprocessing:
    """What the folder says of its images, or the family's usual."""
    if own := (config or {}).get("preprocessing"):  # a folder of ours
        fields: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in own.items()}
        return Preprocessing(**fields)
    size, (mean, std) = bundle.image_size, family.mean_std
    interpolation, ratio = "bicubic", 1.0
    theirs = (config or {}).get("pretrained_cfg") or {}
    if theirs:  # timm
        mean, std = theirs.get("mean", mean), theirs.get("std", std)
        interpolation, ratio = theirs.get("interpolation", interpolation), theirs.get("crop_pct", 0.875)
    if preprocessor:  # transformers
        mean, std = preprocessor.get("image_mean") or mean, preprocessor.get("image_std") or std
        interpolation = _BY_NUMBER.get(preprocessor.get("resample", 3), "bicubic")
        ratio = _crop_ratio(preprocessor, size[0])
    if len(mean) != bundle.channels:
        mean, std = (float(np.mean(mean)),) * bundle.channels, (float(np.mean(std)),) * bundle.channels
    if interpolation not in _RESAMPLING:
        interpolation = "bicubic"
    return Preprocessing(tuple(size), tuple(map(float, mean)), tuple(map(float, std)), interpolation, float(ratio))


def _crop_ratio(preprocessor: Mapping[str, Any], height: int) -> float:
    """Side of the crop over what the shorter side is resized to, as `transformers` writes them."""
    size, crop = (preprocessor.get(field) or {} for field in ("size", "crop_size"))
    size, crop = ({"shortest_edge": x, "height": x} if isinstance(x, int) else x for x in (size, crop))
    short = size.get("shortest_edge")
    if preprocessor.get("crop_pct"):  # ConvNeXt's, of images below 384 pixels
        return preprocessor["crop_pct"] if short and short < 384 else 1.0
    if not short or not preprocessor.get("do_center_crop"):
        return 1.0
    return min(1.0, crop.get("height", height) / short)


class Preprocess:
    """Makes a batch of images, files or arrays into what the network takes; see `Preprocessing` for the fields."""

    def __init__(self, settings: Preprocessing):
        self.settings = settings

    def __call__(self, images: Any) -> np.ndarray:
        """Normalised images, float32 (b, h, w, c).

        Args:
            images: one image or several: file names, Pillow images, or uint8 arrays (h, w, c) or (h, w).

        Raises:
            UserError: an image that is none of these, or has other channels than the weights.
            TrainingError: a file that cannot be read as an image in full.
        """
        many = images if isinstance(images, Sequence) and not isinstance(images, str | bytes) else None
        if many is None and isinstance(images, np.ndarray) and images.ndim == 4:
            many = list(images)
        return np.stack([self.one(image) for image in (many if many is not None else [images])])

    def one(self, image: Any) -> np.ndarray:
        """A single image, float32 (h, w, c)."""
        pixels = self._resized(self._opened(image)).astype(np.float32) / 255
        mean, std = (np.asarray(values, np.float32) for values in (self.settings.mean, self.settings.std))
        if pixels.shape[-1] != mean.size:
            raise UserError(f"An image has {pixels.shape[-1]} channels; these weights take {mean.size}.")
        return (pixels - mean) / std

    def _opened(self, image: Any) -> np.ndarray:
        colours = len(self.settings.mean)
        if isinstance(image, str | os.PathLike):
            return decode(image, channels=1 if colours == 1 else 3)
        if isinstance(image, Image.Image):
            image = np.asarray(image.convert("L" if colours == 1 else "RGB"))
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise UserError("An image is a file name, a Pillow image or a uint8 array (height, width, channels).")
        image = image[..., None] if image.ndim == 2 else image
        return np.repeat(image, colours, axis=2) if image.shape[2] == 1 < colours else image

    def _resized(self, pixels: np.ndarray) -> np.ndarray:
        height, width = self.settings.size
        if pixels.shape[:2] == (height, width) and self.settings.crop_ratio == 1.0:
            return pixels
        # the shorter side to the crop's size over the ratio, then the centre
        scale = max(height / pixels.shape[0], width / pixels.shape[1]) / self.settings.crop_ratio
        rows, columns = (
            max(round(length * scale), least) for length, least in zip(pixels.shape[:2], (height, width), strict=True)
        )
        method = _RESAMPLING[self.settings.interpolation]
        bands = [Image.fromarray(pixels[..., c]).resize((columns, rows), method) for c in range(pixels.shape[2])]
        top, left = (rows - height) // 2, (columns - width) // 2
        return np.stack([np.asarray(band)[top : top + height, left : left + width] for band in bands], axis=-1)
