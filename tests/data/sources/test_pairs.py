"""Images with texts, in every form that users have them."""

import io
import json
import pickle
import tarfile

import numpy as np
import pytest

from vfm_jax.core.errors import TrainingError, UserError
from vfm_jax.data.pipeline import eval_batches, train_batches
from vfm_jax.data.sources import SOURCES
from vfm_jax.data.tokenizer import BytePairs

LEARNED = {"name": "learned", "vocabulary": 600}


def pairs(path, **given):
    return SOURCES["pairs"](str(path), **({"tokenizer": LEARNED, "text_length": 12, "canvas_size": 16} | given))


def _all(source):
    return {source.name(i).rpartition("/")[2]: source.captions(i) for i in range(len(source))}


@pytest.fixture
def images(tmp_path, write_image):
    for i, name in enumerate(("a.png", "b.png", "inside/c.jpg")):
        write_image(tmp_path / "data" / "images" / name, seed=i)
    return tmp_path / "data"


TABLE = {"a.png": ("a red thing", "red, indeed"), "b.png": ("a blue thing",), "c.jpg": ("a third",)}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("captions.txt", "image,caption\na.png,a red thing\nb.png,a blue thing\nc.jpg,a third\n"
                         'a.png,"red, indeed"\n'),
        ("captions.csv", "filepath\ttitle\nimages/a.png\ta red thing\nimages/a.png\tred, indeed\n"
                         "images/b.png\ta blue thing\nimages/inside/c.jpg\ta third\n"),
        ("Flickr.caption.tsv", "a.png#0\ta red thing\na.png#1\tred, indeed\nb.png#0\ta blue thing\n"
                               "c.jpg#0\ta third\n"),
        ("captions.csv", "image_name| comment_number| comment\na.png| 0| a red thing\na.png| 1| red, indeed\n"
                         "b.png| 0| a blue thing\nc.jpg| 0| a third\n"),
    ],
)  # fmt: skip
def test_a_table_of_captions_is_found_and_read(images, name, content):
    (images / name).write_text(content)
    assert _all(pairs(images)) == TABLE
    assert _all(pairs(images / name)) == TABLE


def test_columns_of_other_names_are_asked_for(images):
    (images / "table.csv").write_text("id,was,zu sehen ist\n1,a.png,ein Ding\n")
    with pytest.raises(UserError, match="image_column=NAME"):
        pairs(images)
    with pytest.raises(UserError, match="text_column=NAME"):
        pairs(images, image_column="was")
    found = pairs(images, image_column="was", text_column="zu sehen ist")
    assert _all(found) == {"a.png": ("ein Ding",)}
    with pytest.raises(UserError, match="the columns are id, was"):
        pairs(images, image_column="wo")


def _coco(names):
    return {
        "images": [{"id": 10 + i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [
            {"id": 3, "image_id": 10, "caption": "red, indeed"},
            {"id": 1, "image_id": 10, "caption": "a red thing"},
            {"id": 2, "image_id": 11, "caption": "a blue thing"},
            {"id": 5, "image_id": 12, "caption": "a third"},
        ],
    }


def test_cocos_json_gives_texts_in_the_order_of_their_ids(images):
    (images / "annotations").mkdir()
    (images / "annotations" / "captions_train.json").write_text(json.dumps(_coco(["a.png", "b.png", "c.jpg"])))
    (images / "annotations" / "instances_train.json").write_text("{}")
    assert _all(pairs(images)) == TABLE


def test_one_of_several_tables_is_chosen(images):
    for part in ("train", "val"):
        (images / f"captions_{part}.json").write_text(json.dumps(_coco(["a.png", "b.png", "c.jpg"])))
    with pytest.raises(UserError, match=r"several tables.*captions='captions_train\.json'"):
        pairs(images)
    assert _all(pairs(images, captions="captions_val.json")) == TABLE
    with pytest.raises(UserError, match="Did you mean 'captions_val.json'"):
        pairs(images, captions="caption_val.json")


def _tar(file, members):
    with tarfile.open(file, "w") as opened:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path, picture, encoded):
    """Two shards as webdataset writes them, keys out of order, and of one pair with a text in its json alone."""
    image = [encoded(picture(5, 7, seed), "JPEG") for seed in range(3)]
    folder = tmp_path / "shards"
    folder.mkdir()
    _tar(folder / "x-000.tar", [
        ("0002.jpg", image[1]), ("0002.txt", b"a blue thing"), ("0002.json", b'{"caption": "not this"}'),
        ("0001.jpg", image[0]), ("0001.txt", b"a red thing"),
    ])  # fmt: skip
    _tar(folder / "x-001.tar", [("0001.jpg", image[2]), ("0001.json", b'{"caption": "a third", "width": 7}')])
    return folder


def test_tar_shards_are_read_where_they_lie(shards):
    source = pairs(shards)
    assert [source.captions(i) for i in range(3)] == [("a red thing",), ("a blue thing",), ("a third",)]
    assert source.name(0) == f"{shards}/x-000.tar, x-000/0001.jpg"
    example = source[1]
    np.testing.assert_array_equal(example["size"], [5, 7])
    assert {n: (v.shape, v.dtype.name) for n, v in example.items()} == {
        "image": ((16, 16, 3), "uint8"),
        "size": ((2,), "int32"),
        "label": ((), "int32"),
        "index": ((), "int32"),
        "texts": ((1, 12), "int32"),
        "num_texts": ((), "int32"),
    }
    for name, value in pickle.loads(pickle.dumps(source))[1].items():
        np.testing.assert_array_equal(value, example[name])


def test_a_tar_of_a_folder_is_the_folder(images, tmp_path):
    (images / "captions.txt").write_text("image,caption\na.png,a red thing\n")
    with tarfile.open(tmp_path / "all.tar", "w") as opened:
        opened.add(images, "data")
    one, other = pairs(tmp_path / "all.tar"), pairs(images)
    assert _all(one) == _all(other)
    np.testing.assert_array_equal(one[0]["image"], other[0]["image"])


def test_texts_beside_images_are_pairs(images):
    for name, text in {
        "a.txt": "a red thing",
        "b.txt": "a blue thing\n",
        "inside/c.json": '{"text": "a third"}',
    }.items():
        (images / "images" / name).write_text(text)
    found = _all(pairs(images))
    assert {name: words.strip() for name, (words,) in found.items()} == {
        "a.png": "a red thing", "b.png": "a blue thing", "c.jpg": "a third",
    }  # fmt: skip


def test_nothing_is_left_out_in_silence(images, shards):
    table = images / "captions.csv"
    table.write_text("image,caption\na.png,a red thing\nz.png,gone\nb.png,\n")
    with pytest.raises(
        UserError, match=r"2 texts or images stand alone:\n  z.png is not there\n  b.png has an empty"
    ):
        pairs(images)
    assert _all(pairs(images, skip_missing=True)) == {"a.png": ("a red thing",)}
    table.write_text("image,caption\nz.png,gone\n")
    with pytest.raises(UserError, match="no text belongs to an image"):
        pairs(images, skip_missing=True)
    table.unlink()
    with pytest.raises(UserError, match="No captions in"):
        pairs(images)
    (images / "images" / "a.txt").write_text("one")
    with pytest.raises(UserError, match="2 texts or images stand alone:\n  images/b.png has no text"):
        pairs(images)
    with pytest.raises(UserError, match="split is 'train'; pairs have no named splits"):
        pairs(shards, split="train")
    whole = (shards / "x-001.tar").read_bytes()
    (shards / "x-001.tar").write_bytes(whole[:700])
    with pytest.raises(UserError, match=r"Cannot read .*x-001\.tar"):
        pairs(shards)


def test_a_broken_text_or_image_is_named_when_it_is_read(tmp_path):
    _tar(tmp_path / "x.tar", [("1.jpg", b"none"), ("1.txt", b"\xff\xfe"), ("2.jpg", b"none"), ("2.txt", b"good")])
    source = pairs(tmp_path / "x.tar", tokenizer=BytePairs([]))
    with pytest.raises(TrainingError, match=r"x\.tar, 1\.txt"):
        source.captions(0)
    with pytest.raises(TrainingError, match=r"x\.tar, 2\.jpg"):
        source[1]


def test_parts_share_no_image_and_one_vocabulary_serves_both(images):
    (images / "captions.csv").write_text(
        "image,caption\n" + "".join(f"{name},text {i} of {name}\n" for name in TABLE for i in range(2))
    )
    train = pairs(images, split="all[:67%]")
    test = pairs(images, split="all[67%:]", tokenizer=train.tokenizer)
    assert (len(train), len(test)) == (2, 1)
    assert not set(_all(train)) & set(_all(test))
    assert test.tokenizer is train.tokenizer
    assert (test.text_shape, pairs(images, max_texts=1).text_shape) == ((2, 12), (1, 12))


def test_one_text_is_drawn_in_each_epoch_and_the_first_in_evaluation(images):
    (images / "captions.csv").write_text(
        "image,caption\n" + "".join(f"{name},number {i}\n" for name in ("a.png", "b.png") for i in range(4))
    )
    source = pairs(images)

    def passes(seed, size, steps):
        with train_batches(source, batch_size=size, seed=seed) as batches:
            rows = [next(batches) for _ in range(steps)]
        return {
            (int(e), int(i)): tuple(map(int, t))
            for row in rows
            for e, i, t in zip(row["epoch"], row["index"], row["text"], strict=True)
        }

    drawn = passes(0, 2, 40)
    assert drawn == passes(0, 8, 10)  # batches of another size change nothing
    assert drawn != passes(1, 2, 40)
    texts = source[0]["texts"]
    found = [texts.tolist().index(list(drawn[epoch, 0])) for epoch in range(40)]
    assert set(found) == {0, 1, 2, 3}
    assert max(found.count(i) for i in range(4)) < 22
    with eval_batches(source, batch_size=3) as batches:
        (batch,) = list(batches)
    np.testing.assert_array_equal(batch["text"][:2], batch["texts"][:2, 0])
    np.testing.assert_array_equal(batch["num_texts"], [4, 4, 0])
    assert not batch["text"][2].any()


@pytest.mark.parametrize(
    ("pack", "num", "most"), [("flickr8k_mini", 720, 5), ("cc12m_mini", 32, 1), ("coco_mini", 80, 5)]
)
def test_real_packs_are_read_by_pointing_at_them(shared, pack, num, most):
    source = pairs(shared / "data" / pack, canvas_size=64)
    assert (len(source), source.text_shape[0]) == (num, most)
    example = source[num // 2]
    assert example["image"].std() > 10
    assert (example["texts"][: example["num_texts"]] == source.tokenizer.end_id).sum(axis=1).tolist() == [1] * int(
        example["num_texts"]
    )


def test_photographs_come_with_captions():
    pytest.importorskip("skimage")
    train = SOURCES["photo_pairs"]("train")
    test = SOURCES["photo_pairs"]("test", tokenizer=train.tokenizer)
    assert train.captions(0)[0] == "a woman in an orange space suit, top left"
    with eval_batches(test, batch_size=16) as batches:
        batch = next(batches)
    assert batch["texts"].shape == (16, 2, 24)
    np.testing.assert_array_equal(batch["texts"][0, 1], train.tokenizer.encode(test.captions(0)[1], 24))
    assert train.tokenizer.vocabulary_size > 600
