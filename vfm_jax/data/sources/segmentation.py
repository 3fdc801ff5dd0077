"""Images with a class for every pixel: an image and a label map, paired by a list or by their folders."""

import io
import os
import re
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import nearest
from vfm_jax.data.bad import BadSample
from vfm_jax.data.decode import Picture, Reading, image_kind, read_header
from vfm_jax.data.sources.files import Files, Finder, Folder, is_image, open_files
from vfm_jax.data.sources.labels import SPLIT_NAMES, ClassNames, listed_names
from vfm_jax.data.sources.location import existing
from vfm_jax.data.sources.records import ImageFiles, has_size, reads_images, rows_of_split

VOID = 255  # in a label map: no class, and beyond the picture
_LABEL_WORDS = ("label", "annot", "mask", "gt", "segmentation", "ground")
_SUFFIXES = r"(_?(leftImg8bit|gtFine_labelIds|gtFine_labelTrainIds|labels?|labelids|masks?|gt|annot|L))$"


class SegmentationSource(ImageFiles):
    """Images and their label maps. See `vfm_jax.data.sources.Source`.

    An example has beside the fields of every source

        label_map  uint8 (H, W)  class of each pixel of the canvas, 255 where there is none and beyond the picture

    Attributes:
        target_names: classes of the pixels, by id, where they were given.
    """

    def __init__(
        self,
        files: Files,
        pairs: Sequence[tuple[str, str]],
        target_names: tuple[str, ...] | None,
        ignore: Sequence[int],
        reading: Reading,
        problems: Sequence[str],
    ):
        """Takes the names of images and label maps."""
        super().__init__(files, [image for image, _ in pairs], None, None, reading, problems)
        self.target_names = target_names
        self._maps = [label_map for _, label_map in pairs]
        self._ignore = np.array(sorted(ignore), np.uint8)
        self.fields: dict[str, tuple[tuple[int, ...], Any]] = {"label_map": (reading.canvas, np.uint8)}

    def read(self, index: int, picture: Picture) -> dict[str, np.ndarray]:
        example = super().read(index, picture)
        name = self._files.describe(self._maps[index])
        found = _read_map(self._files.read(self._maps[index]), name, self._reading.max_pixels)
        if not has_size(example["size"], (found.shape[0], found.shape[1]), self._reading.canvas):
            shown = f"{found.shape[1]} x {found.shape[0]} pixels do not fit those of {self.name(index)}"
            raise BadSample(name, "corrupt", shown)
        label_map = fit_label_map(found, example["size"], self._reading.canvas)
        if len(self._ignore):
            label_map = np.where(np.isin(label_map, self._ignore), np.uint8(VOID), label_map)
        if self.target_names is not None:
            classes = label_map[label_map != VOID]
            if classes.size and classes.max() >= len(self.target_names):
                shown = f"class {classes.max()}; expected ids below {len(self.target_names)}, or {VOID}"
                raise BadSample(name, "corrupt", shown)
        return example | {"label_map": label_map}


def fit_label_map(
    classes: UInt8[np.ndarray, "h w"], size: Int32[np.ndarray, "2"], canvas: tuple[int, int]
) -> UInt8[np.ndarray, "H W"]:
    """The classes of an image's pixels, taken from the nearest, on a canvas of which it fills a height and width."""
    height, width = map(int, size)
    if classes.shape != (height, width):
        classes = cv2.resize(classes, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    label_map = np.full(canvas, VOID, np.uint8)
    label_map[:height, :width] = classes
    return label_map


def _read_map(content: bytes, name: str, max_pixels: int) -> np.ndarray:
    """The numbers in a file of one byte a pixel, or of indices into a palette; (h, w) uint8.

    Raises:
        BadSample: it cannot be read, or holds colours.
    """
    if image_kind(content[:16]) != "PNG":
        raise BadSample(name, "unsupported", "a label map is a PNG; lossy formats change classes")
    _, header = read_header(content, name)
    if header.height * header.width > max_pixels:
        raise BadSample(name, "too_large", f"{header.width} x {header.height} pixels, above {max_pixels} pixels")
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            if image.mode not in ("L", "P", "1", "I;16", "I"):
                raise BadSample(name, "wrong_channels", f"{image.mode} colours; expected one number a pixel")
            pixels = np.asarray(image)
    except BadSample:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, ... on damaged files
        reason = "truncated" if "truncated" in str(error) else "corrupt"
        raise BadSample(name, reason, str(error) or type(error).__name__) from error
    if pixels.max(initial=0) > VOID:
        raise BadSample(name, "wrong_channels", f"class {pixels.max()}; expected ids up to {VOID}")
    return pixels.astype(np.uint8)


@reads_images(canvas_size=512)
def segmentation(
    path: str,
    *,
    reading: Reading,
    images: str | None = None,
    label_maps: str | None = None,
    split: str | None = None,
    class_names: ClassNames = None,
    ignore: tuple[int, ...] = (),
) -> SegmentationSource:
    """Images and label maps (PNG, one byte or a palette's index a pixel), in the order of the images' names.

    Pairs are found by themselves: by a list SPLIT.txt of two paths a line; or by folders that go together ("images"
    and "labels", "train" and "trainannot", "leftImg8bit/train" and "gtFine/train"), where a label map has the image's
    name. Pascal VOC's SegmentationClass is one of them. What is larger than the canvas is scaled down, label maps by
    the nearest pixel.

    Args:
        path: the folder or tar that holds both; or a list.
        reading: made of the keywords of `data.decode.reading`; the canvas has 512 pixels a side by default.
        images: folder of the images in there, where it does not show by itself.
        label_maps: folder of the label maps, the same.
        split: a list's name, or a folder's; or a part, as "train[:90%]" or "all[90%:]".
        class_names: of the pixels by id, or a text file of them, one a line; an id beyond them is a damaged map.
        ignore: ids that are no class; they become 255.

    Raises:
        UserError: nothing there, no such split, or images without label maps.
    """
    if not all(isinstance(one, int) and 0 <= one <= VOID for one in ignore):
        raise UserError(f"config.data.ignore is {ignore!r}; expected class ids, 0 to {VOID}.")
    names = listed_names(class_names)
    if names is not None and len(names) > VOID:
        raise UserError(f"config.data.class_names has {len(names)} names; a label map has room for {VOID}.")
    files, lists = _opened(path)
    problems: list[str] = []
    if (images is None) != (label_maps is None):
        raise UserError("config.data.images and config.data.label_maps go together: give both folders, or none.")
    if images is not None and label_maps is not None:
        pairs = {None: _paired(files, _below(files, images), _below(files, label_maps), problems)}
    else:
        pairs = {name: _from_list(files, file) for name, file in lists.items()} or _by_folders(files, problems)
    everything = [(one, pair) for one in sorted(pairs, key=str) for pair in sorted(pairs[one])]
    splits = [one for one, _ in everything]
    rows = rows_of_split(split, [pair[0] for _, pair in everything], splits, files.describe())
    return SegmentationSource(files, [everything[row][1] for row in rows], names, ignore, reading, problems)


Pairs = list[tuple[str, str]]


def _opened(path: str) -> tuple[Files, dict[str | None, str]]:
    """The files, and the lists of pairs among them by split."""
    if path.lower().endswith(".txt"):
        file = existing(path, "config.data.path")
        return Folder(file.parent), {None: file.name}
    files = open_files(path)
    texts = [name for name in files.names if name.lower().endswith(".txt") and not _is_deep(files, name)]
    return files, {os.path.basename(name)[:-4]: name for name in texts if _is_list(files, name)}


def _is_deep(files: Files, name: str) -> bool:
    """Whether it lies lower than any folder of images does."""
    return name.count("/") > min((one.count("/") for one in files.names if is_image(one)), default=0)


def _is_list(files: Files, name: str) -> bool:
    words = files.read(name)[:4096].decode(errors="replace").partition("\n")[0].split()
    return len(words) == 2 and all(map(is_image, words))


def _from_list(files: Files, name: str) -> Pairs:
    finder = Finder(files.names)
    pairs: Pairs = []
    for number, line in enumerate(files.read(name).decode(errors="replace").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        found = [finder.find(word.lstrip("/"), (os.path.dirname(name), "")) for word in words]
        if len(found) != 2 or found[0] is None or found[1] is None:
            raise UserError(
                f"Line {number} of {files.describe(name)} is {line[:120]!r}; expected an image and its label map, "
                "both there."
            )
        pairs.append((found[0], found[1]))
    return pairs


def _below(files: Files, folder: str) -> list[str]:
    names = [name for name in files.names if is_image(name) and name.startswith(f"{folder.strip('/')}/")]
    if not names:
        folders = sorted({os.path.dirname(name) for name in files.names if is_image(name)})
        raise UserError(
            f"No images in {files.describe(folder)}. Folders with images: {', '.join(folders[:8]) or 'none'}."
            f"{nearest(folder, folders)}"
        )
    return names


def _is_label_folder(part: str) -> bool:
    return any(word in part.lower() for word in _LABEL_WORDS)


def _by_folders(files: Files, problems: list[str]) -> dict[str | None, Pairs]:
    """Pairs by split, of the folders whose names speak of labels and those that do not."""
    pictures = [name for name in files.names if is_image(name)]
    maps = [name for name in pictures if any(map(_is_label_folder, name.split("/")[:-1]))]
    images = [name for name in pictures if name not in set(maps)]
    if not maps or not images:
        folders = sorted({os.path.dirname(name) for name in pictures})
        raise UserError(
            f"No label maps in {files.describe()}: looked for folders named as labels, annotations or masks beside "
            f"images. Folders with images: {', '.join(folders[:8]) or 'none'}. Say which with config.data.images and "
            "config.data.label_maps."
        )
    pairs: dict[str | None, Pairs] = {}
    for image, label_map in _paired(files, images, maps, problems):
        parts = [part for part in image.split("/")[:-1] if part.lower() in SPLIT_NAMES]
        pairs.setdefault(parts[-1] if parts else None, []).append((image, label_map))
    return pairs


def _paired(files: Files, images: Sequence[str], maps: Sequence[str], problems: list[str]) -> Pairs:
    """Each label map with the image of its name; of several such, the one whose path has the most words in common."""
    by_key: dict[str, list[str]] = {}
    for image in images:
        by_key.setdefault(_key(image), []).append(image)
    pairs: Pairs = []
    alone: list[str] = []
    for label_map in maps:
        words = _words(label_map)
        same = by_key.get(_key(label_map), [])
        best = sorted(same, key=lambda image: (-len(words & _words(image)), image))
        if best:
            pairs.append((best[0], label_map))
        else:
            alone.append(label_map)
    if alone or len({image for image, _ in pairs}) < len(pairs):
        shown = alone[0] if alone else pairs[0][1]
        raise UserError(
            f"{len(alone) or len(pairs)} label maps in {files.describe()}, such as {shown}, have no image of "
            "their own name. Say which go together with a list of two paths a line."
        )
    if len(pairs) < len(images):
        problems.append(f"{len(images) - len(pairs)} images have no label map, and are left out")
    return pairs


def _key(name: str) -> str:
    return re.sub(_SUFFIXES, "", os.path.splitext(os.path.basename(name))[0])


def _words(name: str) -> set[str]:
    """Words of a path's folders; "trainannot" has "train"."""
    parts = os.path.dirname(name).lower().split("/")
    return {*parts, *(re.sub(r"_?(annot|labels?|masks?|gt)$", "", part) for part in parts)}
