"""Pascal VOC: JPEGImages, one xml of boxes for each image in Annotations, and lists of the splits in ImageSets."""

import os
import re
from collections.abc import Sequence
from xml.etree import ElementTree as ET
from xml.parsers import expat

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import nearest
from vfm_jax.data.decode import EXTENSIONS, Reading
from vfm_jax.data.sources.boxes import BoxSource, Objects, fault_of
from vfm_jax.data.sources.files import Files, open_files
from vfm_jax.data.sources.records import reads_images
from vfm_jax.data.sources.splits import ALL, parse_split, rows_of

_MAX_XML = 2**24  # bytes of an annotation


@reads_images(canvas_size=640)
def voc(
    path: str,
    *,
    reading: Reading,
    split: str | None = None,
    max_boxes: int | None = None,
) -> BoxSource:
    """Images and the boxes of their objects, in the order of the images' names.

    VOC counts pixels from one and its boxes include their last: (1, 1, w, h) is the whole image, here (0, 0, w, h).
    Class ids follow the sorted names of all annotations, whichever split is read. A box that is empty or reaches past
    the edge is dropped, and a line of `problems`.

    Args:
        path: the folder or tar that holds Annotations and JPEGImages, at any depth.
        reading: made of the keywords of `data.decode.reading`; the canvas has 640 pixels a side by default.
        split: a list in ImageSets/Main ("train", "val", "trainval", ...); or a part, as "train[:90%]", "all[90%:]".
        max_boxes: of an image; the largest are kept. As many as the fullest image of all has by default.

    Raises:
        UserError: nothing there, no such split, an annotation that cannot be read, or images that are not there.
    """
    files = open_files(path)
    root = _root(files)
    stems = {
        os.path.basename(name)[:-4]: name
        for name in files.names
        if os.path.dirname(name) == os.path.join(root, "Annotations") and name.lower().endswith(".xml")
    }
    chosen = _listed(files, root, split, sorted(stems))
    parsed = {stem: _parse(files, name) for stem, name in stems.items()}
    classes = tuple(sorted({label for one in parsed.values() for label, _ in one[1]}))
    known = set(files.names)
    problems: list[str] = []
    images: list[str] = []
    objects: list[Objects] = []
    for stem in chosen:
        places = [os.path.join(root, "JPEGImages", stem + extension) for extension in _endings()]
        image = next((place for place in places if place in known), None)
        if image is None or stem not in stems:
            problems.append(f"{stem} has no {'annotation' if image else 'image'}, and is left out")
            continue
        images.append(image)
        objects.append(_objects(parsed[stem], classes, stem, problems))
    if not images:
        raise UserError(
            f"None of the {len(chosen)} images of split {split!r} is in {files.describe(root)}/JPEGImages."
        )
    most = max([1, *(len(boxes) for _, boxes in parsed.values())]) if max_boxes is None else max_boxes
    return BoxSource(files, images, objects, classes, reading, most, problems)


def _endings() -> list[str]:
    return [ending for extension in EXTENSIONS for ending in (extension, extension.upper())]


def _root(files: Files) -> str:
    """The folder that holds Annotations."""
    inside = [name for name in files.names if re.search(r"(^|/)Annotations/[^/]*\.xml$", name)]
    places = {os.path.dirname(os.path.dirname(name)) for name in inside}
    if not places:
        raise UserError(f"No Pascal VOC in {files.describe()}: looked for Annotations/*.xml, at any depth.")
    if len(places) > 1:
        raise UserError(
            f"{files.describe()} holds several data sets: {', '.join(sorted(places)[:6])}. Give the folder of one."
        )
    return places.pop()


def _listed(files: Files, root: str, split: str | None, stems: Sequence[str]) -> list[str]:
    """Stems of the split's images, sorted."""
    folder = os.path.join(root, "ImageSets", "Main")
    lists = {
        os.path.basename(name)[:-4]: name
        for name in files.names
        if os.path.dirname(name) == folder and name.endswith(".txt")
    }
    lists = {name: file for name, file in lists.items() if "_" not in name}  # aeroplane_train.txt is of one class
    part = parse_split(split)
    if split is None and len(lists) > 1:
        raise UserError(
            f"{files.describe(root)} has the splits {', '.join(sorted(lists))}. Set config.data.split, 'all' for "
            "everything."
        )
    if part.name == ALL:
        chosen = list(stems)
    elif part.name in lists:
        text = files.read(lists[part.name]).decode(errors="replace")
        chosen = sorted({line.split()[0] for line in text.splitlines() if line.strip()})
    else:
        raise UserError(
            f"split is {split!r}, but {files.describe(folder)} has {', '.join(sorted(lists)) or 'no lists'}."
            f"{nearest(part.name, lists)}"
        )
    if (part.start, part.stop) != (0, 100):
        chosen = [chosen[row] for row in rows_of(part, chosen)]
    return chosen


Parsed = tuple[tuple[int, int], list[tuple[str, tuple[float, float, float, float]]]]


def _parse(files: Files, name: str) -> Parsed:
    """Height and width, and (class, xmin ymin xmax ymax as they are written) of each object."""
    try:
        tree = _read_xml(files.read(name))
        size = (_value(tree.find("size"), "height"), _value(tree.find("size"), "width"))
        boxes = []
        for found in tree.findall("object"):
            box = found.find("bndbox")
            corners = (_value(box, "xmin"), _value(box, "ymin"), _value(box, "xmax"), _value(box, "ymax"))
            boxes.append(((found.findtext("name") or "").strip(), corners))
        if min(size) < 1:
            raise ValueError("no size")
    except (ValueError, TypeError, expat.ExpatError) as error:
        raise UserError(f"{files.describe(name)} cannot be read as an annotation of Pascal VOC: {error}.") from error
    return (int(size[0]), int(size[1])), boxes


def _value(element: ET.Element | None, tag: str) -> float:
    text = None if element is None else element.findtext(tag)
    if text is None:
        raise ValueError(f"it lacks {tag}")
    return float(text)


def _read_xml(content: bytes) -> ET.Element:
    """The tree of a small document without a type of its own: entities are how XML does harm."""
    if len(content) > _MAX_XML:
        raise ValueError(f"it has {len(content)} bytes, above {_MAX_XML}")

    def refuse(*_: object) -> None:
        raise ValueError("it defines a document type, which no annotation needs")

    builder = ET.TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.Parse(content, True)
    return builder.close()


def _objects(parsed: Parsed, classes: Sequence[str], stem: str, problems: list[str]) -> Objects:
    size, found = parsed
    boxes, labels = [], []
    for number, (label, box) in enumerate(found):
        fault = fault_of(box, size)
        if fault:
            shown = ", ".join(f"{value:g}" for value in box)
            problems.append(f"{stem}: the box {number} of {label} ({shown}) {fault}, and is dropped")
            continue
        boxes.append((box[0] - 1, box[1] - 1, box[2], box[3]))
        labels.append(classes.index(label))
    return Objects(size, boxes, labels, [])
