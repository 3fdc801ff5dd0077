"""Which source reads a path: small examples of every layout."""

import json
import tarfile

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from vfm_jax.core.errors import UserError
from vfm_jax.data.sources import SOURCES
from vfm_jax.data.sources.detect import detect

pytestmark = pytest.mark.usefixtures("cache")
tifffile = pytest.importorskip("tifffile")


def _folder(root, write):
    write(root / "a.png")


def _classes(root, write):
    write(root / "cat" / "a.png")
    write(root / "dog" / "b.png")


def _divided(root, write):
    write(root / "train" / "cat" / "a.png")
    write(root / "val" / "cat" / "b.png")


def _bands(root, write):
    root.mkdir()
    tifffile.imwrite(root / "a.tif", np.zeros((6, 7, 5), np.uint8), planarconfig="contig", photometric="minisblack")


def _shards(root, write):
    _classes(root / "made", write)
    (root / "made").rename(root.parent / "made")
    with tarfile.open(root / "x-000.tar", "w") as opened:
        opened.add(root.parent / "made" / "cat" / "a.png", "0.png")
    with tarfile.open(root / "x-001.tar", "w") as opened:
        opened.add(root.parent / "made" / "dog" / "b.png", "1.png")


def _table(root, write):
    _folder(root, write)
    (root / "labels.csv").write_text("image,label,split\na.png,cat,train\n")


def _captions(root, write):
    _folder(root, write)
    (root / "captions.csv").write_text("image,caption\na.png,a thing\n")


def _texts_beside(root, write):
    _folder(root, write)
    (root / "a.txt").write_text("a thing")


def _coco(root, write):
    _folder(root / "train2017", write)
    (root / "annotations").mkdir()
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 6, "width": 9}],
        "categories": [],
        "annotations": [],
    }
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content))


def _voc(root, write):
    _folder(root / "JPEGImages", write)
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    text = "<annotation><size><width>9</width><height>6</height></size></annotation>"
    (root / "Annotations" / "a.xml").write_text(text)
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\n")


def _segmentation(root, write):
    _folder(root / "images", write)
    (root / "masks").mkdir()
    Image.fromarray(np.zeros((6, 9), np.uint8)).save(root / "masks" / "a.png")


def _hub(root, write):
    write(root.parent / "a.png")
    (root / "data").mkdir(parents=True)
    table = pa.table({"image": [{"bytes": (root.parent / "a.png").read_bytes(), "path": None}]})
    parquet.write_table(table, root / "data" / "train-00000-of-00001.parquet")


def _npz(root, write):
    root.mkdir()
    np.savez(root / "x.npz", train_images=np.zeros((2, 6, 9), np.uint8), test_images=np.zeros((2, 6, 9), np.uint8))


def _npy(root, write):
    root.mkdir()
    np.save(root / "x.npy", np.zeros((2, 6, 9), np.uint8))


@pytest.mark.parametrize(
    ("make", "expected", "inside"),
    [
        (_folder, dict(name="folder"), None),
        (_classes, dict(name="folder"), None),
        (_divided, dict(name="folder", split="train"), None),
        (_bands, dict(name="folder", channels=5), None),
        (_shards, dict(name="tars"), None),
        (_shards, dict(name="tars"), "x-{000..001}.tar"),
        (_table, dict(name="table", split="train"), "labels.csv"),
        (_captions, dict(name="pairs"), None),
        (_captions, dict(name="pairs"), "captions.csv"),
        (_texts_beside, dict(name="pairs"), None),
        (_coco, dict(name="coco"), None),
        (_voc, dict(name="voc", split="train"), None),
        (_segmentation, dict(name="segmentation"), None),
        (_hub, dict(name="parquet", split="train"), None),
        (_npz, dict(name="arrays", split="train"), "x.npz"),
        (_npy, dict(name="arrays"), None),
    ],
)
def test_a_layout_is_known_and_its_source_reads_it(tmp_path, write_image, make, expected, inside):
    make(tmp_path / "data", write_image)
    path = tmp_path / "data" / inside if inside else tmp_path / "data"
    spec = detect(path)
    places = {name: spec.pop(name) for name in ("path",)}
    assert spec == expected
    assert places["path"].startswith(str(tmp_path / "data"))
    del spec["name"]
    source = SOURCES[expected["name"]](**spec, **places)
    assert len(source) >= 1
    assert source[0]["image"].shape == source.image_shape


def test_one_table_beside_images_is_the_table(tmp_path, write_image):
    _table(tmp_path / "data", write_image)
    assert detect(tmp_path / "data") == dict(name="table", path=str(tmp_path / "data" / "labels.csv"), split="train")


def test_what_is_no_data_is_said(tmp_path, write_image):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="Nothing in .*empty is known as images"):
        detect(tmp_path / "empty")
    with pytest.raises(UserError, match="Did you mean 'empty'"):
        detect(tmp_path / "emty")
    write_image(tmp_path / "pictures" / "a.png")
    with pytest.raises(UserError, match=r"a\.png is one image; give the folder"):
        detect(tmp_path / "pictures" / "a.png")
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "x.tar.gz").write_bytes(b"\x1f\x8b")
    for path in ("packed", "packed/x.tar.gz"):
        with pytest.raises(UserError, match="no random access: unpack it"):
            detect(tmp_path / path)
    (tmp_path / "empty" / "notes.txt").write_text("nothing of the kind\nin several lines, of text\n")
    with pytest.raises(UserError, match="Nothing in .*empty is known as images"):
        detect(tmp_path / "empty")
