"""COCO's and Pascal VOC's boxes, in pixels of the canvas; and faulty ones, which are said and dropped."""

import json
import pickle

import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.data.bad import BadSample
from vfm_jax.data.crop import Crop, CroppedSource
from vfm_jax.data.pipeline import train_batches
from vfm_jax.data.sources import SOURCES

pytestmark = pytest.mark.usefixtures("cache")


def coco(path, **given):
    return SOURCES["coco"](str(path), **({"canvas_size": (8, 10)} | given))


def voc(path, **given):
    return SOURCES["voc"](str(path), **({"canvas_size": (8, 10)} | given))


def _content(**changed):
    return {
        "images": [
            {"id": 7, "file_name": "b.png", "height": 16, "width": 12},  # twice as high as the canvas
            {"id": 3, "file_name": "a.png", "height": 6, "width": 9},
            {"id": 4, "file_name": "c.png", "height": 6, "width": 9},
        ],
        "categories": [
            {"id": 90, "name": "brush"},
            {"id": 1, "name": "person", "keypoints": ["nose", "knee"]},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 90, "bbox": [2, 4, 6, 8], "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 1, "bbox": [0, 0, 12.5, 16], "iscrowd": 0,
             "keypoints": [4, 6, 2, 0, 0, 0]},
            {"id": 3, "image_id": 3, "category_id": 1, "bbox": [1, 2, 3, 4], "keypoints": [1, 2, 1, 3, 4, 2]},
            {"id": 4, "image_id": 3, "category_id": 1, "bbox": [1, 2, 0, 4], "keypoints": [0] * 6},
            {"id": 5, "image_id": 3, "category_id": 90, "bbox": [5, 2, 9, 2]},
            {"id": 6, "image_id": 3, "category_id": 90, "bbox": [0, 0, 9, 6], "iscrowd": 1},
        ],
    } | changed  # fmt: skip


@pytest.fixture
def folder(tmp_path, write_image):
    root = tmp_path / "set"
    for seed, (name, height, width) in enumerate((("a.png", 6, 9), ("b.png", 16, 12), ("c.png", 6, 9))):
        write_image(root / "train2017" / name, height, width, seed)
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(_content()))
    return root


def test_boxes_of_coco_are_in_pixels_of_the_canvas(folder):
    source = coco(folder)
    assert (source.target_names, source.class_names, source.max_boxes) == (("person", "brush"), None, 2)
    a, b, c = (source[i] for i in range(3))
    assert b["size"].tolist() == [8, 6]
    np.testing.assert_allclose(b["boxes"], [[1, 2, 4, 6], [0, 0, 6, 8]])  # half a pixel past the edge is rounding
    assert (b["box_labels"].tolist(), b["num_boxes"], b["label"]) == ([1, 0], 2, -1)
    np.testing.assert_allclose(a["boxes"], [[1, 2, 4, 6], [0, 0, 0, 0]])
    assert (a["box_labels"].tolist(), a["num_boxes"]) == ([0, -1], 1)
    assert (c["box_labels"].tolist(), c["num_boxes"]) == ([-1, -1], 0)
    for name, (shape, dtype) in source.fields.items():
        assert (a[name].shape, a[name].dtype) == (shape, dtype)
    with train_batches(pickle.loads(pickle.dumps(source)), batch_size=3, seed=0) as batches:
        batch = next(batches)
    assert sorted(batch["num_boxes"].tolist()) == [0, 1, 2]


def test_faulty_boxes_of_coco_are_said_and_dropped(folder):
    assert coco(folder).problems == (
        "a.png: the box 4 of person (1, 2, 1, 6) is empty, and is dropped",
        "a.png: the box 5 of brush (5, 2, 14, 4) reaches past the edge of the 9 x 6 pixels, and is dropped",
        "1 crowds passed over",
    )
    fewer = coco(folder, max_boxes=1)
    assert fewer.problems[-1] == "1 images have more than max_boxes=1 boxes; the largest of them are kept"
    np.testing.assert_allclose(fewer[1]["boxes"], [[0, 0, 6, 8]])
    for wrong in (0, True, 1.5):
        with pytest.raises(UserError, match="max_boxes is"):
            coco(folder, max_boxes=wrong)


def test_keypoints_come_with_their_boxes(folder):
    content = _content()
    (folder / "annotations" / "person_keypoints_train2017.json").write_text(
        json.dumps(content | {"annotations": [a for a in content["annotations"] if "keypoints" in a]})
    )
    source = coco(folder, keypoints=True)
    assert source.target_names == ("person",)
    np.testing.assert_allclose(source[1]["keypoints"], [[[2, 3, 2], [0, 0, 0]]])
    np.testing.assert_allclose(source[0]["keypoints"], [[[1, 2, 1], [3, 4, 2]]])


def test_a_tar_of_cocos_folder_or_the_json_is_the_folder(folder, tmp_path, write_tar):
    members = [(f"set/{p.relative_to(folder)}", p.read_bytes()) for p in sorted(folder.rglob("*.*"))]
    tar = write_tar(tmp_path / "x.tar", members)
    for source in (coco(tar), coco(folder / "annotations" / "instances_train2017.json")):
        for i in range(3):
            for name, value in coco(folder)[i].items():
                np.testing.assert_array_equal(source[i][name], value)
    assert coco(tar).name(0) == f"{tar}, set/train2017/a.png"


def test_the_json_is_chosen_by_its_split(folder):
    write = (folder / "annotations" / "instances_val2017.json").write_text
    write(json.dumps(_content(images=_content()["images"][:1])))
    with pytest.raises(UserError, match=r"several jsons of instances: .*annotations=.annotations/instances_train"):
        coco(folder)
    assert (len(coco(folder, split="val")), len(coco(folder, split="train2017"))) == (1, 3)
    assert len(coco(folder, split="train[:67%]")) == 2
    with pytest.raises(UserError, match="split is 'test', but no json of instances"):
        coco(folder, split="test")
    with pytest.raises(UserError, match="Did you mean 'annotations/instances_val2017.json'"):
        coco(folder, annotations="annotations/instance_val2017.json")
    with pytest.raises(UserError, match=r"No COCO keypoints|cannot be read as COCO"):
        coco(folder, keypoints=True, split="val")
    write(json.dumps(_content(images=[{"id": 1, "file_name": "z.png", "height": 5, "width": 5}])))
    with pytest.raises(UserError, match="None of the 1 images"):
        coco(folder, split="val")


@pytest.mark.parametrize(
    "content",
    [[], {}, {"images": []}, _content(images=[{"id": 1}]), _content(categories=[{"id": "x"}]), "[" * 10**5,
     _content(images=[{"id": 7, "file_name": "b.png", "height": 0, "width": 3}])],
)  # fmt: skip
def test_a_json_that_is_not_cocos_is_refused(folder, content):
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "annotations" / "instances_train2017.json").write_text(text)
    with pytest.raises(UserError, match="cannot be read as COCO's|None of the 0 images"):
        coco(folder)


def test_a_picture_of_another_size_than_its_annotation_is_bad(folder, write_image):
    write_image(folder / "train2017" / "a.png", 6, 20)
    with pytest.raises(BadSample, match=r"annotation says 9 x 6 pixels.*\(corrupt\)"):
        coco(folder)[0]


XML = """<annotation><filename>x</filename><size><width>12</width><height>16</height><depth>3</depth></size>
<object><name>dog</name><difficult>0</difficult><bndbox>
<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>
<object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>12</xmax><ymax>16</ymax></bndbox>
<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part></object>
</annotation>"""


@pytest.fixture
def devkit(tmp_path, write_image):
    root = tmp_path / "VOCdevkit" / "VOC2007"
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for i, box in enumerate(((3, 5, 8, 12), (4, 4, 4, 9), (1, 1, 14, 9))):
        write_image(root / "JPEGImages" / f"{i:06}.png", 16, 12, i)
        (root / "Annotations" / f"{i:06}.xml").write_text(XML.format(*box))
    (root / "ImageSets" / "Main" / "train.txt").write_text("000002\n000000\n")
    (root / "ImageSets" / "Main" / "val.txt").write_text("000001\n")
    (root / "ImageSets" / "Main" / "dog_train.txt").write_text("000000 1\n")
    return tmp_path / "VOCdevkit"


def test_boxes_of_voc_begin_at_pixel_one(devkit):
    source = voc(devkit, split="train")
    assert (len(source), source.target_names, source.max_boxes) == (2, ("cat", "dog"), 2)
    np.testing.assert_allclose(source[0]["boxes"], [[1, 2, 4, 6], [0, 0, 6, 8]])
    assert source[0]["box_labels"].tolist() == [1, 0]
    assert source.problems == (
        "000002: the box 0 of dog (1, 1, 14, 9) reaches past the edge of the 12 x 16 pixels, and is dropped",
    )
    assert voc(devkit, split="val").problems == ("000001: the box 0 of dog (4, 4, 4, 9) is empty, and is dropped",)
    assert source.name(1).endswith("VOC2007/JPEGImages/000002.png")
    assert pickle.loads(pickle.dumps(source))[0]["num_boxes"] == 2


def test_splits_of_voc_are_its_lists(devkit):
    with pytest.raises(UserError, match="has the splits train, val"):
        voc(devkit)
    assert len(voc(devkit, split="all")) == 3
    assert len(voc(devkit, split="train[:50%]")) == 1
    with pytest.raises(UserError, match=r"split is 'vall'.*Did you mean 'val'"):
        voc(devkit, split="vall")
    (devkit / "VOC2007" / "ImageSets" / "Main" / "val.txt").write_text("000001\n000009\n")
    assert "000009 has no image, and is left out" in voc(devkit, split="val").problems
    with pytest.raises(UserError, match="No Pascal VOC in"):
        voc(devkit / "VOC2007" / "JPEGImages")


BOMB = """<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x "xxxxxxxxxx">
<!ENTITY y "&x;&x;&x;&x;&x;&x;&x;&x;&x;&x;">]><annotation>&y;</annotation>"""
LEAK = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize(
    ("text", "message"),
    [(BOMB, "document type"), (LEAK, "document type"), ("<annotation>", "no element|cannot be read"),
     ("<annotation/>", "lacks height"), (XML.format("a", 1, 2, 3), "could not convert"), ("", "no element")],
)  # fmt: skip
def test_an_annotation_made_to_do_harm_is_refused(devkit, text, message, encoding):
    (devkit / "VOC2007" / "Annotations" / "000001.xml").write_bytes(text.encode(encoding))
    with pytest.raises(UserError, match=rf"000001\.xml cannot be read as an annotation of Pascal VOC: .*({message})"):
        voc(devkit, split="train")


def test_a_crop_would_not_move_the_boxes_and_is_refused(folder):
    with pytest.raises(
        UserError, match=r"config\.data\.crop would leave boxes, box_labels, num_boxes where they were"
    ):
        CroppedSource(coco(folder), Crop(size=4), seed=0)
