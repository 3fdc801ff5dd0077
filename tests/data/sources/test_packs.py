"""Every pack of real images is read by pointing at it: the tar where it lies, or what it unpacks to."""

import tarfile

import numpy as np
import pytest

from vfm_jax.data.bad import BadSample
from vfm_jax.data.sources import SOURCES
from vfm_jax.data.sources.detect import detect

pytestmark = pytest.mark.usefixtures("cache")


def _unpacked(shared, tmp_path, archive, every=1):
    """The folder that an archive unpacks to, with every so manieth file of it."""
    with tarfile.open(shared / "data" / archive) as opened:
        members = [member for member in opened if member.isfile()][::every]
        opened.extractall(tmp_path, members, filter="data")
    return tmp_path / members[0].name.split("/")[0]


def _read(path, found, size=64, **given):
    """The source that `detect` finds, which must have the fields of `found`."""
    spec = detect(path)
    assert {name: spec.get(name) for name in found} == found
    fields = {name: value for name, value in spec.items() if name != "name"} | given
    if spec["name"] not in ("arrays",):
        fields["canvas_size"] = size
    source = SOURCES[spec["name"]](**fields)
    for i in (0, len(source) // 2, len(source) - 1):
        example = source[i]
        assert example["image"].shape == source.image_shape
        assert example["image"].std() > 5
    return source


@pytest.mark.parametrize(
    ("archive", "found", "num", "classes"),
    [
        ("imagenette/imagenette.tar", dict(name="tars", split="train"), 1100, 10),
        ("imagenet_samples", dict(name="tars", split=None), 260, 1000),
        ("camvid/camvid.tar", dict(name="segmentation", split="train"), 48, None),
        ("coco_mini/coco_mini_train.tar", dict(name="coco", split=None), 80, None),
        ("flickr8k_mini/flickr8k_mini.tar", dict(name="pairs"), 720, None),
        ("cc12m_mini", dict(name="pairs"), 32, None),
        ("pneumonia", dict(name="arrays", split="train"), 3882, 2),
        ("geospatial", dict(name="folder", channels=6), 2, None),
    ],
)
def test_a_pack_is_read_as_it_is(shared, archive, found, num, classes):
    if archive == "geospatial":
        spec = detect(shared / "data" / archive)
        assert {name: spec.get(name) for name in found} == found
        source = SOURCES["folder"](spec["path"], channels=6, canvas_size=64)
        assert source[0]["image"].shape == (64, 64, 6)
        with pytest.raises(BadSample, match="wrong_channels"):
            source[1]
    else:
        source = _read(shared / "data" / archive, found)
    assert len(source) == num
    assert (None if source.class_names is None else len(source.class_names)) in (classes, 996, 997, 998, 999)


@pytest.mark.parametrize(
    ("archive", "found", "num"),
    [
        ("bccd/bccd_voc.tar.gz", dict(name="voc", split="train"), 205),
        ("orl_faces/orl_faces.tar.gz", dict(name="folder"), 320),
        ("camvid/camvid.tar", dict(name="segmentation", split="train"), 48),
        ("coco_mini/coco_mini_train.tar", dict(name="coco"), 80),
    ],
)
def test_a_pack_is_read_unpacked(shared, tmp_path, archive, found, num):
    source = _read(_unpacked(shared, tmp_path, archive), found)
    assert len(source) == num
    if found["name"] == "folder":
        assert len(source.class_names) == 32
        np.testing.assert_array_equal(np.unique(source.labels), np.arange(32))
    if found["name"] == "coco":
        assert (len(source.target_names), source[0]["boxes"].shape[1]) == (80, 4)
    if found["name"] == "segmentation":
        assert set(np.unique(source[0]["label_map"])) <= {*range(12), 255}


def test_the_two_faulty_boxes_of_bccd_are_reported(shared, tmp_path):
    path = _unpacked(shared, tmp_path, "bccd/bccd_voc.tar.gz")
    source = SOURCES["voc"](str(path), split="all", canvas_size=640)
    assert len(source.problems) == 2
    assert all("is empty, and is dropped" in line for line in source.problems)
    counts = np.bincount(source._box_labels)
    assert dict(zip(source.target_names, counts.tolist(), strict=True)) == {"Platelets": 361, "RBC": 4153, "WBC": 372}


def test_a_folder_of_small_pictures_is_read(shared, tmp_path):
    root = _unpacked(shared, tmp_path, "cifar10/cifar10.tar.gz", every=25)
    source = _read(root, dict(name="folder", split="train"), size=32)
    assert (len(source), len(source.class_names)) == (400, 10)
    np.testing.assert_array_equal(np.bincount(source.labels), 40)


def test_odd_files_are_images_or_bad_records(shared):
    source = SOURCES["tars"](str(shared / "data" / "odd_files" / "odd_files.tar"), canvas_size=64)
    good, bad = 0, {}
    for i in range(len(source)):
        try:
            good += source[i]["size"].min() > 0
        except BadSample as error:
            bad[source.name(i).rpartition("/")[2]] = error.reason
    assert (good + len(bad), bad["empty.jpg"], bad["text_named.jpg"]) == (len(source), "empty", "not_an_image")
    assert len(bad) >= 6
