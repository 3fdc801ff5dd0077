"""Images with label maps, paired by lists and by folders."""

import pickle

import numpy as np
import pytest
from PIL import Image

from vfm_jax.core.errors import UserError
from vfm_jax.data.bad import BadSample
from vfm_jax.data.pipeline import train_batches
from vfm_jax.data.sources import SOURCES

pytestmark = pytest.mark.usefixtures("cache")


def segmentation(path, **given):
    return SOURCES["segmentation"](str(path), **({"canvas_size": (8, 10)} | given))


def _map(height=16, width=12, seed=0):
    return (
        np.random.RandomState(seed).randint(0, 5, (height // 4, width // 4)).repeat(4, 0).repeat(4, 1).astype("uint8")
    )


@pytest.fixture
def write_pair(write_image):
    def write(image, label_map, seed=0, height=16, width=12):
        write_image(image, height, width, seed)
        label_map.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(_map(height, width, seed)).save(label_map)

    return write


@pytest.fixture
def camvid(tmp_path, write_pair):
    root = tmp_path / "CamVid"
    for part in ("train", "val"):
        for seed in range(2):
            write_pair(root / part / f"{seed}.png", root / f"{part}annot" / f"{seed}.png", seed)
    return root


def test_label_maps_go_with_their_images_onto_the_canvas(camvid):
    source = segmentation(camvid, split="val", ignore=(3,))
    assert (len(source), source.class_names, source.fields["label_map"]) == (2, None, ((8, 10), np.uint8))
    for seed in range(2):
        example = source[seed]
        assert example["size"].tolist() == [8, 6]
        expected = np.full((8, 10), 255)
        expected[:, :6] = _map(seed=seed)[::2, ::2]
        expected[expected == 3] = 255
        np.testing.assert_array_equal(example["label_map"], expected)
    assert source.name(1) == f"{camvid}/val/1.png"
    with train_batches(pickle.loads(pickle.dumps(source)), batch_size=2, seed=0) as batches:
        assert next(batches)["label_map"].shape == (2, 8, 10)


def test_a_list_says_what_goes_together(camvid, tmp_path, write_tar):
    for part in ("train", "val"):
        lines = [f"{part}/{i}.png /CamVid/{part}annot/{1 - i}.png\n" for i in range(2)]  # not those of one name
        (camvid / f"{part}.txt").write_text("".join(lines))
    source = segmentation(camvid, split="train")
    np.testing.assert_array_equal(source[0]["label_map"][:, :6], _map(seed=1)[::2, ::2])
    with pytest.raises(UserError, match="has the splits train, val"):
        segmentation(camvid)
    assert len(segmentation(camvid / "val.txt")) == 2
    members = [(f"CamVid/{p.relative_to(camvid)}", p.read_bytes()) for p in sorted(camvid.rglob("*.*"))]
    packed = segmentation(write_tar(tmp_path / "x.tar", members), split="train")
    for name, value in source[1].items():
        np.testing.assert_array_equal(packed[1][name], value)
    (camvid / "val.txt").write_text("val/0.png valannot/7.png\n")
    with pytest.raises(UserError, match=r"Line 1 of .*val\.txt is 'val/0.png valannot/7.png'"):
        segmentation(camvid, split="val")


@pytest.mark.parametrize(
    ("image", "label_map", "split"),
    [
        ("images/{}.jpg", "labels/{}.png", None),
        ("images/training/{}.jpg", "annotations/training/{}.png", "training"),
        ("leftImg8bit/val/ulm/{}_leftImg8bit.png", "gtFine/val/ulm/{}_gtFine_labelIds.png", "val"),
        ("JPEGImages/{}.jpg", "SegmentationClass/{}.png", None),
        ("train/images/{}.jpg", "train/masks/{}_mask.png", "train"),
    ],
)
def test_usual_folders_are_paired(tmp_path, write_pair, image, label_map, split):
    for seed, name in enumerate(("a_1", "b_2")):
        write_pair(tmp_path / image.format(name), tmp_path / label_map.format(name), seed)
    for given in (None, split):
        source = segmentation(tmp_path, split=given)
        for seed in range(2):
            np.testing.assert_array_equal(source[seed]["label_map"][:, :6], _map(seed=seed)[::2, ::2])
    write_pair(tmp_path / image.format("c_3"), tmp_path / "elsewhere" / "mask.png")
    (tmp_path / "elsewhere" / "mask.png").unlink()
    assert segmentation(tmp_path).problems == ("1 images have no label map, and are left out",)


def test_folders_of_other_names_are_given(tmp_path, write_pair):
    for seed in range(2):
        write_pair(tmp_path / "foto" / f"{seed}.jpg", tmp_path / "karte" / f"{seed}.png", seed)
    with pytest.raises(UserError, match=r"No label maps.*Folders with images: foto, karte.*label_maps"):
        segmentation(tmp_path)
    assert len(segmentation(tmp_path, images="foto", label_maps="karte")) == 2
    with pytest.raises(UserError, match="Did you mean 'karte'"):
        segmentation(tmp_path, images="foto", label_maps="karten")
    with pytest.raises(UserError, match="go together"):
        segmentation(tmp_path, images="foto")
    (tmp_path / "foto" / "1.jpg").unlink()
    with pytest.raises(UserError, match=r"1 label maps in .*karte/1\.png, have no image"):
        segmentation(tmp_path, images="foto", label_maps="karte")


def test_a_label_map_that_cannot_be_meant_is_bad(camvid):
    file = camvid / "valannot" / "0.png"
    names = ("sky", "road", "car", "tree")
    with pytest.raises(BadSample, match=r"valannot/0\.png: class 4; expected ids below 4, or 255"):
        segmentation(camvid, split="val", class_names=names)[0]
    assert segmentation(camvid, split="val", class_names=names, ignore=(4,)).target_names == names
    source = segmentation(camvid, split="val")
    palette = Image.fromarray(_map()).convert("P")
    palette.putdata(_map().ravel())
    for image, message in (
        (Image.fromarray(_map(16, 20)), "do not fit"),
        (Image.fromarray(np.zeros((16, 12, 3), np.uint8)), "RGB colours"),
        (Image.fromarray(np.full((16, 12), 700, np.uint16)), "class 700"),
        (palette, None),
    ):
        image.save(file)
        if message is None:
            np.testing.assert_array_equal(source[0]["label_map"][:, :6], _map()[::2, ::2])
        else:
            with pytest.raises(BadSample, match=message):
                source[0]
    file.write_bytes(file.read_bytes()[:80])
    with pytest.raises(BadSample, match=r"valannot/0\.png"):
        source[0]
    Image.fromarray(_map()).save(file, "JPEG")
    with pytest.raises(BadSample, match="a label map is a PNG"):
        source[0]
    with pytest.raises(UserError, match="ignore is"):
        segmentation(camvid, split="val", ignore=(300,))
