"""Label maps drawn of COCO's outlines: polygons and runs by hand, and the areas that its annotations state."""

import json
import pickle
import tarfile

import cv2
import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.data.bad import BadSample
from vfm_jax.data.pipeline import train_batches
from vfm_jax.data.sources import SOURCES
from vfm_jax.data.sources.regions import filled, read_region

pytestmark = pytest.mark.usefixtures("cache")


def _polygon(*corners):
    return np.array(corners, np.float32)


def _text(counts):
    """COCO's text of runs, as rleToString of cocoapi's maskApi.c writes it."""
    out = ""
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            letter = value & 31
            value >>= 5
            more = value != (-1 if letter & 16 else 0)
            out += chr(48 + (letter | 32 * more))
    return out


def test_a_polygon_has_the_pixels_whose_centres_it_holds():
    expected = np.zeros((5, 6), bool)
    expected[1:4, 2:5] = True
    np.testing.assert_array_equal(filled(_polygon((2, 1), (5, 1), (5, 4), (2, 4)), (5, 6)), expected)
    np.testing.assert_array_equal(filled(_polygon((1.6, 0.6), (5.4, 0.6), (5.4, 4.4), (1.6, 4.4)), (5, 6)), expected)
    np.testing.assert_array_equal(filled(_polygon((2, 4), (5, 4), (5, 1), (2, 1)), (5, 6)), expected)
    assert filled(_polygon((-9, -9), (20, -9), (20, 20), (-9, 20)), (5, 6)).all()
    for outside in (((8, 1), (9, 1), (9, 4)), ((1, -5), (2, -5), (2, -1)), ((1, 2), (3, 2), (5, 2))):
        assert not filled(_polygon(*outside), (5, 6)).any()
    triangle = filled(_polygon((0, 0), (4, 0), (0, 4)), (4, 4))
    np.testing.assert_array_equal(triangle.sum(1), [3, 2, 1, 0])  # centres on the edge are outside
    star = [(50 + 45 * np.sin(4 * np.pi * i / 5), 50 - 45 * np.cos(4 * np.pi * i / 5)) for i in range(5)]
    assert not filled(_polygon(*star), (100, 100))[50, 50]  # even-odd


def test_areas_are_those_of_the_outlines():
    chance = np.random.default_rng(0)
    for _ in range(50):
        angles = np.sort(chance.uniform(0, 2 * np.pi, 9))
        corners = np.stack([np.sin(angles), np.cos(angles)], 1) * chance.uniform(20, 45, (9, 1)) + 50
        area = cv2.contourArea(corners.astype(np.float32))
        assert abs(filled(corners, (100, 100)).sum() - area) < 25
        assert abs(read_region([corners.ravel().tolist()], 1, (100, 100)).area - area) < 0.01


@pytest.mark.parametrize("encode", [lambda counts: counts, _text])
def test_runs_go_down_the_columns(encode):
    chance = np.random.default_rng(0)
    for _ in range(20):
        mask = chance.random((7, 5)) < chance.random()
        flat = np.concatenate([[False], mask.T.ravel()])
        edges = np.flatnonzero(flat[1:] != flat[:-1])
        counts = np.diff([0, *edges, mask.size]).tolist()
        region = read_region(dict(size=[7, 5], counts=encode(counts)), 3, (7, 5))
        np.testing.assert_array_equal(region.mask((7, 5)), mask)
        assert (region.label, region.area) == (3, mask.sum())
    large = [100_000, 3, 50, 199_947]
    assert read_region(dict(size=[500, 600], counts=encode(large)), 1, (500, 600)).area == 199_950


@pytest.mark.parametrize(
    "wrong",
    [dict(size=[7, 5], counts=[30]), dict(size=[5, 7], counts=[35]), dict(size=[7, 5], counts=[-1, 36]),
     dict(size=[7, 5], counts="X"), dict(size=[7, 5], counts="oooooooooooooooo"), [[1, 2, 3, 4, 5, 6, 7]],
     [[1, 2, 3, 4, float("nan"), 6]], dict(size=[7, 5], counts=[[35]])],
)  # fmt: skip
def test_what_is_no_outline_is_refused(wrong):
    with pytest.raises(ValueError, match=r"runs|corners|reshape"):
        read_region(wrong, 1, (7, 5))


@pytest.fixture
def annotated(tmp_path, write_image):
    """Two images, one twice as large as the canvas; a cat upon a sofa, a crowd, and what cannot be used."""
    write_image(tmp_path / "images" / "a.png", 16, 12)
    write_image(tmp_path / "images" / "b.png", 6, 9)
    content = {
        "images": [{"id": 7, "file_name": "a.png", "height": 16, "width": 12},
                   {"id": 3, "file_name": "b.png", "height": 6, "width": 9}],
        "categories": [{"id": 90, "name": "cat"}, {"id": 5, "name": "sofa"}],
        "annotations": [
            {"id": i, "image_id": image, "category_id": category, "segmentation": segmentation}
            for i, (image, category, segmentation) in enumerate((
                (7, 90, [[2, 4, 6, 4, 6, 8, 2, 8]]),
                (7, 5, [[0, 2, 8, 2, 8, 14, 0, 14], [8, 0, 10, 0, 10, 2, 8, 2]]),
                (3, 5, {"size": [6, 9], "counts": [12, 6, 36]}),
                (3, 5, {"size": [9, 6], "counts": [54]}),
                (3, 5, []),
                (3, 8, [[0, 0, 1, 0, 1, 1]]),
            ))
        ],
    }  # fmt: skip
    (tmp_path / "instances_train.json").write_text(json.dumps(content))
    return tmp_path


def test_label_maps_are_those_of_the_source_of_segmentation(annotated, write_image):
    source = SOURCES["coco"](str(annotated), canvas_size=(8, 10), label_maps=True)
    assert (source.target_names, source.class_names) == (("background", "sofa", "cat"), None)
    assert source.fields == {"label_map": ((8, 10), np.uint8)}
    expected = np.full((8, 10), 255)
    expected[:, :6] = 0
    expected[1:7, :4] = 1
    expected[0, 4] = 1
    expected[2:4, 1:3] = 2  # in front, though it comes first
    np.testing.assert_array_equal(source[0]["label_map"], expected)
    crowd = np.full((8, 10), 255)
    crowd[:6, :9] = 0
    crowd[:6, 2] = 1
    np.testing.assert_array_equal(source[1]["label_map"], crowd)
    assert len(source.problems) == 3
    assert "b.png: the outline of 3 is dropped (runs of 54 pixels" in source.problems[0]
    assert set(source.problems[1:]) == {
        "1 objects without an outline passed over",
        "1 objects of images or categories that are not listed passed over",
    }
    with train_batches(pickle.loads(pickle.dumps(source)), batch_size=2, seed=0) as batches:
        assert next(batches)["label_map"].shape == (2, 8, 10)
    with pytest.raises(UserError, match="label_maps gives no boxes: leave out keypoints and max_boxes"):
        SOURCES["coco"](str(annotated), label_maps=True, max_boxes=3)
    write_image(annotated / "images" / "b.png", 9, 6)
    with pytest.raises(BadSample, match="says 9 x 6 pixels"):
        source[1]


def test_areas_of_coco_are_those_of_its_annotations(shared, tmp_path):
    pack = shared / "data" / "coco_mini" / "coco_mini_train.tar"
    if not pack.exists():
        pytest.skip("needs ../shared/data/coco_mini")
    source = SOURCES["coco"](str(pack), canvas_size=640, label_maps=True)
    assert (len(source), len(source.target_names)) == (80, 81)
    with tarfile.open(pack) as opened:
        content = json.load(opened.extractfile("coco_mini/annotations/instances_train2017.json"))
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    drawn, stated = [], []
    for annotation in content["annotations"]:
        size = sizes[annotation["image_id"]]
        if not annotation["iscrowd"] and len(annotation["segmentation"]) == 1:  # parts that overlap are counted twice
            drawn.append(read_region(annotation["segmentation"], 1, size).mask(size).sum())
            stated.append(annotation["area"])
    error = np.array(drawn) - stated
    assert len(drawn) > 600
    assert abs(error.mean()) < 1
    assert (abs(error) < 20 + 0.01 * np.array(stated)).all()
    example = source[0]
    height, width = example["size"]
    assert (example["label_map"][:height, :width] <= 80).all()
    assert (example["label_map"] > 0).sum() > 0
