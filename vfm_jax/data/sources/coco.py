"""COCO's instances and keypoints: one json of all boxes, beside the images."""

import collections
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import nearest
from vfm_jax.data.decode import Reading
from vfm_jax.data.sources.boxes import BoxSource, Objects, fault_of
from vfm_jax.data.sources.files import Files, Finder, Folder, is_image, open_files
from vfm_jax.data.sources.location import existing
from vfm_jax.data.sources.records import reads_images, rows_of_split
from vfm_jax.data.sources.regions import Region, RegionSource, read_region
from vfm_jax.data.sources.splits import ALL, parse_split

_KINDS = "instances|keypoints|captions|panoptic|stuff"


@reads_images(canvas_size=640)
def coco(
    path: str,
    *,
    reading: Reading,
    annotations: str | None = None,
    split: str | None = None,
    keypoints: bool = False,
    max_boxes: int | None = None,
    label_maps: bool = False,
) -> BoxSource | RegionSource:
    """Images and the boxes of their objects, in the order of the images' names; or label maps drawn of the objects.

    Class ids are the places of COCO's categories in the order of their ids, which have gaps. Crowds are passed over;
    a box that is empty or reaches more than a pixel past the edge is dropped, and a line of `problems`. Captions are
    for the source `pairs`.

    Args:
        path: the folder or tar that holds the annotations and the images; or the json itself.
        reading: made of the keywords of `data.decode.reading`; the canvas has 640 pixels a side by default.
        annotations: the json, by its path in there; needed among several.
        split: a word of the json's name ("train" for instances_train2017.json), or its folder's name; or a part of
            the images, as "train[:90%]" or "all[90%:]".
        keypoints: read person_keypoints, and give the points too.
        max_boxes: of an image; the largest are kept. As many as the fullest image of the json has by default.
        label_maps: give no boxes but the class of each pixel, as the source `segmentation` does: 0 is the background,
            1 the first category, and so on. Crowds count too; of objects that overlap the smaller is in front.

    Raises:
        UserError: nothing there, no such json or several, one that is not COCO's, or images that are not there.
    """
    if label_maps and (keypoints or max_boxes is not None):
        raise UserError("config.data.label_maps gives no boxes: leave out keypoints and max_boxes.")
    files, annotations = _opened(path, annotations)
    chosen = _annotations(files, annotations, split, "keypoints" if keypoints else "instances")
    try:
        content = json.loads(files.read(chosen))
        listed = _listed(content, keypoints)
        names, classes = listed.names, tuple(str(category["name"]) for category in listed.categories)
        objects, regions, problems = [], [], []
        if label_maps:
            regions = _regions(content, listed, problems)
        else:
            objects = _objects(content, listed, keypoints, problems)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{files.describe(chosen)} cannot be read as COCO's annotations: {error!r}.") from error
    finder = Finder(name for name in files.names if is_image(name))
    folders = (
        "",
        os.path.dirname(chosen),
        os.path.splitext(os.path.basename(chosen))[0].rpartition("_")[2],
        "images",
    )
    top = os.path.dirname(os.path.dirname(chosen))
    found = [finder.find(name, [*folders, *(os.path.join(top, folder) for folder in folders)]) for name in names]
    missing = [name for name, image in zip(names, found, strict=True) if image is None]
    if len(missing) == len(names):
        raise UserError(
            f"None of the {len(names)} images of {files.describe(chosen)} is in {files.describe()}"
            f"{f', such as {missing[0]}' if missing else ''}."
        )
    problems += [f"{files.describe(chosen)}: {name} is not there, and left out" for name in missing]
    there = sorted((image, place) for place, image in enumerate(found) if image is not None)
    part = parse_split(split)
    rows = rows_of_split(
        split, [image for image, _ in there], None if part.name == ALL else [part.name] * len(there), str(path)
    )
    images, places = [there[row][0] for row in rows], [there[row][1] for row in rows]
    if label_maps:
        sizes, inside = [listed.sizes[place] for place in places], [regions[place] for place in places]
        return RegionSource(files, images, sizes, inside, ("background", *classes), reading, problems)
    most = max([1, *(len(one.boxes) for one in objects)]) if max_boxes is None else max_boxes
    return BoxSource(files, images, [objects[place] for place in places], classes, reading, most, problems)


def _opened(path: str, annotations: str | None) -> tuple[Files, str | None]:
    if path.lower().endswith(".json") and annotations is None:
        file = existing(path, "config.data.path")
        root = file.parent.parent if file.parent.name == "annotations" else file.parent
        return Folder(root), os.path.relpath(file, root)
    return open_files(path), annotations


def _annotations(files: Files, given: str | None, split: str | None, kind: str) -> str:
    """The json that is meant."""
    tables = [name for name in files.names if name.lower().endswith(".json")]
    if given is not None:
        if given not in files.names:
            raise UserError(
                f"config.data.annotations is {given!r}, which is not in {files.describe()}.{nearest(given, tables)}"
            )
        return given
    named = [name for name in tables if kind in os.path.basename(name).lower()]
    candidates = named or [name for name in tables if not re.search(_KINDS, os.path.basename(name).lower())]
    part = parse_split(split)
    if part.name != ALL:
        of_split = [name for name in candidates if part.name in _words(name)]
        if not of_split and candidates:
            raise UserError(
                f"split is {split!r}, but no json of {kind} in {files.describe()} is named so: "
                f"{', '.join(candidates[:6])}."
            )
        candidates = of_split
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise UserError(
            f"{files.describe()} has several jsons of {kind}: {', '.join(candidates[:6])}. Choose one: "
            f"config.data.annotations={candidates[0]!r}, or its split."
        )
    raise UserError(
        f"No COCO {kind} in {files.describe()}: looked for a json with {kind!r} in its name, and found "
        f"{', '.join(tables[:6]) or 'no json'}."
    )


def _words(name: str) -> set[str]:
    """What a split may be called that the json is of: words of its name, with and without the year, its folder."""
    words = re.split(r"[^a-zA-Z0-9]+", os.path.splitext(os.path.basename(name))[0])
    return {*words, *(word.rstrip("0123456789") for word in words), os.path.basename(os.path.dirname(name))}


class _Listed(NamedTuple):
    """The images and classes of a json.

    Attributes:
        names: of the images' files.
        sizes: their heights and widths, in pixels.
        places: of the images in there, by their ids.
        categories: of the objects, in the order of their ids.
        ids: places of the categories, by their ids.
    """

    names: list[str]
    sizes: list[tuple[int, int]]
    places: dict[Any, int]
    categories: list[Mapping[str, Any]]
    ids: dict[Any, int]


def _listed(content: Mapping[str, Any], keypoints: bool) -> _Listed:
    categories = sorted(content["categories"], key=lambda category: category["id"])
    if keypoints:
        categories = [category for category in categories if category.get("keypoints")]
    names = [str(image["file_name"]) for image in content["images"]]
    sizes = [(int(image["height"]), int(image["width"])) for image in content["images"]]
    if any(min(size) < 1 for size in sizes):
        raise ValueError("an image without height and width")
    places = {image["id"]: place for place, image in enumerate(content["images"])}
    return _Listed(names, sizes, places, categories, {one["id"]: place for place, one in enumerate(categories)})


def _regions(content: Mapping[str, Any], listed: _Listed, problems: list[str]) -> list[list[Region]]:
    """The regions in each image, their classes counted from 1."""
    found: list[list[Region]] = [[] for _ in listed.names]
    passed: collections.Counter[str] = collections.Counter()
    for annotation in content["annotations"]:
        place, label = listed.places.get(annotation["image_id"]), listed.ids.get(annotation["category_id"])
        if place is None or label is None:
            passed["objects of images or categories that are not listed"] += 1
            continue
        try:
            region = read_region(annotation.get("segmentation"), label + 1, listed.sizes[place])
        except (ValueError, TypeError, KeyError) as error:
            problems.append(f"{listed.names[place]}: the outline of {annotation.get('id')} is dropped ({error})")
            continue
        if region is None:
            passed["objects without an outline"] += 1
        else:
            found[place].append(region)
    problems += [f"{count} {kind} passed over" for kind, count in passed.items()]
    return found


def _objects(content: Mapping[str, Any], listed: _Listed, keypoints: bool, problems: list[str]) -> list[Objects]:
    """The boxes in each image."""
    names, _, places, categories, ids = listed
    objects = [Objects(size, [], [], []) for size in listed.sizes]
    passed: collections.Counter[str] = collections.Counter()
    for annotation in content["annotations"]:
        if annotation.get("iscrowd"):
            passed["crowds"] += 1
            continue
        if annotation["image_id"] not in places or annotation["category_id"] not in ids:
            passed["boxes of images or categories that are not listed"] += 1
            continue
        place, label = places[annotation["image_id"]], ids[annotation["category_id"]]
        x, y, width, height = map(float, annotation["bbox"])
        box = (x, y, x + width, y + height)
        if fault := fault_of(box, objects[place].size):
            problems.append(f"{names[place]}: the box {annotation.get('id')} of {categories[label]['name']} "
                            f"{_shown(box)} {fault}, and is dropped")  # fmt: skip
            continue
        if keypoints:
            flat = [float(value) for value in annotation["keypoints"]]
            points = [(flat[i], flat[i + 1], flat[i + 2]) for i in range(0, len(flat), 3)]
            if len(points) != len(categories[label]["keypoints"]):
                raise ValueError(f"{len(points)} keypoints, of {len(categories[label]['keypoints'])}")
            objects[place].keypoints.append(points)
        objects[place].boxes.append(box)
        objects[place].labels.append(label)
    problems += [f"{count} {kind} passed over" for kind, count in passed.items()]
    return objects


def _shown(box: Sequence[float]) -> str:
    return f"({', '.join(f'{value:g}' for value in box)})"
