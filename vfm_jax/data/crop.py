"""Random crops on the host: one view an example, cut out of the photo and resized before the batch is made.

For recipes of one view, where the whole photo would be decoded, made smaller and sent to the device only to be cut
there. Recipes of several views take canvases (`sources`) and cut them on the device (`augment.geometry`).

Region decoding is left out. It would save a quarter of the time (a crop is 41 % of its photo on the mean), but no
wheel has it behind a safe interface: simplejpeg, imagecodecs, OpenCV and Pillow decode whole pictures, or an even
fraction of each side, and the libjpeg inside the wheels reports an error by a jump that Python cannot catch. Nor is
what it skips ever checked: a damaged file would count as good whenever the crop lies beside the damage.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float64, Shaped

from vfm_jax.core.errors import UserError
from vfm_jax.data.decode import File, Reading, contents_of, read_header
from vfm_jax.data.header import upright_size
from vfm_jax.data.jpeg import reductions
from vfm_jax.data.resize import resize
from vfm_jax.data.timing import timed
from vfm_jax.data.wrapped import FileSource, WrappedSource

CROP_TRIES = 10  # torchvision's RandomResizedCrop.get_params
_NUM_DRAWS = 2 * CROP_TRIES + 3  # areas, ratios, top, left, flip


class Box(NamedTuple):
    """Rows top to top + height and columns left to left + width of the upright photo, in its own pixels."""

    top: int
    left: int
    height: int
    width: int

    def reduced(self, times: int) -> "Box":
        """The box in the photo decoded so many times smaller, its edges at the nearest pixels there."""
        bottom, right = self.top + self.height, self.left + self.width
        top, left, bottom, right = (round(edge / times) for edge in (self.top, self.left, bottom, right))
        return Box(top, left, bottom - top, right - left)


@dataclasses.dataclass(frozen=True)
class Crop:
    """A random part of the photo, resized to a square, and mirrored at random: the fields of `config.data.crop`.

    The distribution is that of torchvision's RandomResizedCrop and RandomHorizontalFlip, and of the device's
    `random_resized_crop`, in the photo's own pixels.

    Attributes:
        size: height and width of the result, in pixels.
        scale: range of the crop's area, as a share of the photo's.
        ratio: range of the crop's width / height.
        flip: probability of mirroring left to right.
        antialias: blur what shrinks, as Pillow's filters do, see `resize`; plain bilinear is faster, and aliases.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    antialias: bool = True

    def __post_init__(self) -> None:
        """Refuses values out of range.

        Raises:
            UserError: naming the field as in a config.
        """
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise UserError(f"config.data.crop.size is {self.size!r}; expected a whole number of pixels, at least 1.")
        for field in ("scale", "ratio"):
            value = tuple(getattr(self, field))
            if len(value) != 2 or not 0 < value[0] <= value[1]:
                raise UserError(
                    f"config.data.crop.{field} is {value!r}; expected two positive numbers, the smaller one first."
                )
        if self.scale[1] > 1:
            raise UserError(
                f"config.data.crop.scale is {self.scale!r}; a crop has at most the area of its photo, 1.0."
            )
        if isinstance(self.flip, bool) or not 0 <= self.flip <= 1:
            raise UserError(
                f"config.data.crop.flip is {self.flip!r}; expected a probability from 0 to 1, such as 0.5."
            )

    def box(self, height: int, width: int, draws: Float64[np.ndarray, " n"]) -> Box:
        """The crop of a photo of that height and width: up to ten draws of area and ratio, else the central crop.

        Args:
            height: of the upright photo, in pixels.
            width: likewise.
            draws: `uniforms` of the example.
        """
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for area_draw, ratio_draw in zip(draws[:CROP_TRIES], draws[CROP_TRIES : 2 * CROP_TRIES], strict=True):
            area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * area_draw)
            aspect = math.exp(low + (high - low) * ratio_draw)
            crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                top_draw, left_draw = draws[2 * CROP_TRIES : 2 * CROP_TRIES + 2]
                return Box(
                    int(top_draw * (height - crop_height + 1)),
                    int(left_draw * (width - crop_width + 1)),
                    crop_height,
                    crop_width,
                )
        crop_height = round(width / self.ratio[0]) if width / height < self.ratio[0] else height
        crop_width = round(height * self.ratio[1]) if width / height > self.ratio[1] else width
        return Box((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)

    def mirrors(self, draws: Float64[np.ndarray, " n"]) -> bool:
        """Whether the example with these `uniforms` is mirrored."""
        return bool(draws[-1] < self.flip)

    def read(
        self, reading: Reading, file: File, name: str, draws: Float64[np.ndarray, " n"]
    ) -> dict[str, np.ndarray]:
        """`image`, the crop of the picture in a file, and `size`, which it fills.

        Raises:
            BadSample: as `decode`.
        """
        content = file if isinstance(file, bytes) else contents_of(file, name)
        kind, header = read_header(content, name)
        box, reduced = None, 1
        if kind == "JPEG":  # the others are decoded whole, and some have their size turned by then
            box = self.box(*upright_size(header), draws)
            reduced = next(iter(reductions(min(box.height, box.width) / self.size)), 1)
        pixels = reading.decode(content, name, reduced)
        with timed("resize"):
            box = self.box(*pixels.shape[:2], draws) if box is None else box.reduced(reduced)
            image = self.cut(pixels, box, self.mirrors(draws))
        return {"image": image, "size": np.array([self.size, self.size], np.int32)}

    def cut(
        self, pixels: Shaped[np.ndarray, "h w c"], box: Box, mirrored: bool
    ) -> Shaped[np.ndarray, "{self.size} {self.size} c"]:
        """The box of the photo, resized to the crop's size, and mirrored where it is to be."""
        part = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
        part = resize(part, self.size, self.size, antialias=self.antialias)
        return cv2.flip(part, 1).reshape(part.shape) if mirrored else part


def uniforms(seed: int, stage: int, epoch: int, index: int) -> Float64[np.ndarray, " n"]:
    """The random numbers of one example in one epoch, uniform in [0, 1), the same on every machine.

    Philox is a function of a key and a counter (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011):
    seed and stage are the key, epoch and index are in the counter, and nothing is carried from draw to draw. The top
    53 bits are taken here, because NumPy promises the bits of Philox and not what a Generator makes of them.
    """
    bits = np.random.Philox(key=np.array([seed, stage], np.uint64), counter=np.array([0, index, epoch, 0], np.uint64))
    return (bits.random_raw(_NUM_DRAWS) >> np.uint64(11)) * 2.0**-53


class CroppedSource(WrappedSource):
    """The records of a source of image files, each one crop, another in each epoch. See `sources.Source`."""

    def __init__(self, source: FileSource, crop: Crop, *, seed: int, stage: int = 0):
        """Takes a source that reads files.

        Args:
            source: what is cropped.
            crop: how.
            seed: the run's, which is in every draw.
            stage: likewise.

        Raises:
            UserError: the source does not read image files, or has targets at places in the image.
        """
        if fields := getattr(source, "fields", {}):
            raise UserError(
                f"config.data.crop would leave {', '.join(fields)} where they were in the whole image. Leave it out."
            )
        super().__init__(source, "crop", "Leave it out, and put random_resized_crop first in config.views.")
        self.image_shape = (crop.size, crop.size, source.image_shape[2])
        self._crop, self._seed, self._stage = crop, seed, stage

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.drawn(index, 0)

    def drawn(self, index: int, epoch: int) -> dict[str, np.ndarray]:
        """The record as the given epoch has it."""
        draws = uniforms(self._seed, self._stage, epoch, index)

        def picture(reading: Reading, contents: Callable[[], File], name: str) -> dict[str, np.ndarray]:
            return self._crop.read(reading, contents(), name, draws)

        return self._source.read(index, picture)
