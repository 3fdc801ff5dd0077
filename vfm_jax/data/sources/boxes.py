"""Images with boxes around their objects: what COCO, Pascal VOC and their like become."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from vfm_jax.core.errors import UserError
from vfm_jax.data.bad import BadSample
from vfm_jax.data.decode import Picture, Reading
from vfm_jax.data.sources.files import Paths, Shards
from vfm_jax.data.sources.records import ImageFiles, has_size


class Objects(NamedTuple):
    """What an annotation says of one image.

    Attributes:
        size: its height and width, in pixels.
        boxes: x0, y0, x1, y1 of each object, in pixels from the image's top left corner.
        labels: class ids.
        keypoints: x, y and visibility (0 not there, 1 hidden, 2 seen) of each object's points, or none.
    """

    size: tuple[int, int]
    boxes: list[tuple[float, float, float, float]]
    labels: list[int]
    keypoints: list[list[tuple[float, float, float]]]


def fault_of(box: Sequence[float], size: tuple[int, int]) -> str | None:
    """What is wrong with a box in an image of a height and width, or None; a pixel past the edge is rounding."""
    x0, y0, x1, y1 = box
    if not all(map(math.isfinite, box)):
        return "is not finite"
    if x1 <= x0 or y1 <= y0:
        return "is empty"
    if min(x0, y0) < -1 or x1 > size[1] + 1 or y1 > size[0] + 1:
        return f"reaches past the edge of the {size[1]} x {size[0]} pixels"
    return None


class BoxSource(ImageFiles):
    """Images and the boxes in them. See `vfm_jax.data.sources.Source`.

    An example has beside the fields of every source

        boxes       float32 (max_boxes, 4)  x0 y0 x1 y1 in pixels of the canvas
        box_labels  int32 (max_boxes,)      class ids, -1 in the rows beyond
        num_boxes   int32 ()                how many of the rows are boxes
        keypoints   float32 (max_boxes, points, 3)  x y in pixels of the canvas, and visibility; where there are any

    Attributes:
        target_names: classes of the boxes, by id.
    """

    def __init__(
        self,
        files: Paths | Shards,
        names: Sequence[str],
        objects: Sequence[Objects],
        target_names: tuple[str, ...],
        reading: Reading,
        max_boxes: int | None,
        problems: Sequence[str],
    ):
        """Takes the names of images, and what lies in each.

        Raises:
            UserError: `max_boxes` is no whole number of one or more.
        """
        if max_boxes is not None and (isinstance(max_boxes, bool) or not isinstance(max_boxes, int) or max_boxes < 1):
            raise UserError(f"config.data.max_boxes is {max_boxes!r}; expected a whole number, one or more.")
        counts = [len(one.boxes) for one in objects]
        self.max_boxes = max_boxes or max([1, *counts])
        crowded = sum(count > self.max_boxes for count in counts)
        more = [f"{crowded} images have more than max_boxes={self.max_boxes} boxes; the largest of them are kept"]
        super().__init__(files, names, None, None, reading, (*problems, *(more if crowded else ())))
        self.target_names = target_names
        self._sizes = np.array([one.size for one in objects], np.int64).reshape(-1, 2)
        self._ends = np.cumsum([0, *counts])
        self._boxes = _flat([one.boxes for one in objects], (4,))
        self._box_labels = _flat([one.labels for one in objects], ()).astype(np.int32)
        points = next((len(one.keypoints[0]) for one in objects if one.keypoints), 0)
        self._keypoints = _flat([one.keypoints for one in objects], (points, 3)) if points else None
        self.fields: dict[str, tuple[tuple[int, ...], Any]] = {
            "boxes": ((self.max_boxes, 4), np.float32),
            "box_labels": ((self.max_boxes,), np.int32),
            "num_boxes": ((), np.int32),
        }
        if points:
            self.fields["keypoints"] = ((self.max_boxes, points, 3), np.float32)

    def read(self, index: int, picture: Picture) -> dict[str, np.ndarray]:
        example = super().read(index, picture)
        scale = self._scale(index, example["size"])
        boxes = self._boxes[self._ends[index] : self._ends[index + 1]]
        chosen = np.arange(len(boxes))
        if len(boxes) > self.max_boxes:
            areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
            chosen = np.sort(np.argsort(-areas, kind="stable")[: self.max_boxes])
        number = len(chosen)
        rows = self._ends[index] + chosen
        targets = {name: np.zeros(shape, dtype) for name, (shape, dtype) in self.fields.items()}
        edge = np.tile(example["size"][::-1], 2)  # x and y of the picture's far corner, twice
        targets["boxes"][:number] = np.clip(self._boxes[rows] * np.tile(scale, 2), 0, edge)
        targets["box_labels"][:] = -1
        targets["box_labels"][:number] = self._box_labels[rows]
        targets["num_boxes"] = np.asarray(number, np.int32)
        if self._keypoints is not None:
            targets["keypoints"][:number] = self._keypoints[rows] * np.append(scale, 1)
        return example | targets

    def _scale(self, index: int, size: np.ndarray) -> np.ndarray:
        """Pixels of the canvas for one of the annotation's, in x and y.

        Raises:
            BadSample: the picture is not of the size that the annotation says.
        """
        height, width = map(int, self._sizes[index])
        if not has_size(size, (height, width), self._reading.canvas):
            raise BadSample(
                self.name(index),
                "corrupt",
                f"its annotation says {width} x {height} pixels, which the picture has not",
            )
        return np.array([size[1] / width, size[0] / height])


def _flat(lists: Sequence[Sequence[Any]], shape: tuple[int, ...]) -> np.ndarray:
    return np.array([one for each in lists for one in each], np.float64).reshape(-1, *shape)
