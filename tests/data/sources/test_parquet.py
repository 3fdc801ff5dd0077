"""Images inside parquet and Arrow files, as Hugging Face lays them out, without its library."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from vfm_jax.core.errors import UserError
from vfm_jax.data.bad import BadSample
from vfm_jax.data.sources import SOURCES

FEATURES = {
    "image": {"_type": "Image"},
    "label": {"_type": "ClassLabel", "names": ["cat", "dog", "owl"]},
}


def parquet(path, **given):
    return SOURCES["parquet"](str(path), **({"canvas_size": (8, 12)} | given))


@pytest.fixture
def image(picture, encoded):
    return lambda seed: encoded(picture(6, 9, seed), "PNG")


@pytest.fixture
def rows(image):
    """seeds -> a table as `datasets` makes it."""

    def make(seeds, features=FEATURES, **columns):
        images = [{"bytes": image(seed), "path": f"{seed}.png"} for seed in seeds]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        columns = {"image": pa.array(images, kind), "label": pa.array([s % 3 for s in seeds])} | columns
        table = pa.table(columns)
        if features:
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        return table

    return make


@pytest.fixture
def hub(tmp_path, rows):
    """The hub's layout: two shards of train, in row groups of two, and one of test without labels."""
    folder = tmp_path / "set" / "data"
    folder.mkdir(parents=True)
    pq.write_table(rows(range(5)), folder / "train-00000-of-00002.parquet", row_group_size=2)
    pq.write_table(rows(range(5, 8)), folder / "train-00001-of-00002.parquet", row_group_size=2)
    hidden = pa.array([-1] * 4)
    pq.write_table(rows(range(8, 12), label=hidden), folder / "test-00000-of-00001.parquet")
    return tmp_path / "set"


def test_shards_of_the_hub_are_read_by_row(hub, picture):
    source = parquet(hub, split="train")
    assert (len(source), source.class_names) == (8, ("cat", "dog", "owl"))
    for i in [6, 0, 4, 7, 3, 1, 2, 5]:
        example = source[i]
        np.testing.assert_array_equal(example["image"][:6, :9], picture(6, 9, i))
        assert (example["label"], example["index"], example["size"].tolist()) == (i % 3, i, [6, 9])
    assert source.name(6) == f"{hub}/data/train-00001-of-00002.parquet, row 1"
    assert source.labels.tolist() == [i % 3 for i in range(8)]
    restored = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(8) as pool:
        for i, example in enumerate(pool.map(restored.__getitem__, list(range(8)) * 10)):
            np.testing.assert_array_equal(example["image"], source[i % 8]["image"])


def test_splits_are_in_the_files_names(hub):
    test = parquet(hub, split="test")
    assert (len(test), test.class_names, test.labels.tolist()) == (4, None, [-1] * 4)
    with pytest.raises(UserError, match="has the splits test, train"):
        parquet(hub)
    with pytest.raises(UserError, match="Did you mean 'train'"):
        parquet(hub, split="trian")
    with pytest.raises(UserError, match=r"4 of 12 rows have no class in .*, column label"):
        parquet(hub, split="all")
    one = parquet(hub / "data" / "train-00001-of-00002.parquet")
    assert (len(one), one[0]["label"]) == (3, 5 % 3)
    parts = [parquet(hub, split=part) for part in ("train[:50%]", "train[50%:]")]
    assert sorted(p.name(i) for p in parts for i in range(len(p))) == sorted(
        parquet(hub, split="train").name(i) for i in range(8)
    )


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_what_datasets_saves_is_read(tmp_path, rows, picture, kind):
    for split, seeds in (("train", range(5)), ("test", range(5, 7))):
        folder = tmp_path / "saved" / split
        folder.mkdir(parents=True)
        table = rows(seeds)
        write = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
        with write(folder / "data-00000-of-00001.arrow", table.schema) as writer:
            for batch in table.to_batches(max_chunksize=2):
                writer.write_batch(batch)
        (folder / "cache-1.arrow").write_bytes(b"left by map")
        (folder / "state.json").write_text("{}")
    source = parquet(tmp_path / "saved", split="test")
    assert (len(source), source.class_names) == (2, ("cat", "dog", "owl"))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source))[1]["image"][:6, :9], picture(6, 9, 6))
    assert len(parquet(tmp_path / "saved" / "train")) == 5


def test_columns_without_metadata_are_known_by_what_they_hold(tmp_path, rows, image):
    names = pa.array(["b", "a", "b"])
    pq.write_table(rows(range(3), features=None, kind=names), tmp_path / "x.parquet")
    assert parquet(tmp_path / "x.parquet").class_names == ("0", "1", "2")
    named = parquet(tmp_path / "x.parquet", label_column="kind")
    assert (named.class_names, named.labels.tolist()) == (("a", "b"), [1, 0, 1])
    assert parquet(tmp_path / "x.parquet", label_column="").class_names is None
    with pytest.raises(UserError, match=r"label_column is 'kid'; the columns are image, label, kind\. Did you mean"):
        parquet(tmp_path / "x.parquet", label_column="kid")
    with pytest.raises(UserError, match=r"no column of images 'imag'; its columns are image .*Did you mean 'image'"):
        parquet(tmp_path / "x.parquet", image_column="imag")
    pq.write_table(pa.table({"jpg": [image(0), None], "cls": [4, 0]}), tmp_path / "y.parquet")
    plain = parquet(tmp_path / "y.parquet")
    assert plain[0]["label"] == 4
    with pytest.raises(BadSample, match=r"y\.parquet, row 1: .*\(empty\)"):
        plain[1]


def test_what_holds_no_images_is_said(tmp_path, rows):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"no column of images.*columns are text \(string\)\. For a table of paths"):
        parquet(tmp_path / "x.parquet")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(UserError, match=r"Cannot read .*x\.parquet"):
        parquet(tmp_path / "x.parquet")
    with pytest.raises(UserError, match="Did you mean 'x.parquet'"):
        parquet(tmp_path / "x.parq")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"No \.parquet or \.arrow files"):
        parquet(tmp_path / "empty")
    for name, column in (("a", "image"), ("b", "picture")):
        (tmp_path / "two").mkdir(exist_ok=True)
        pq.write_table(rows(range(2)).rename_columns([column, "label"]), tmp_path / "two" / f"{name}.parquet")
    with pytest.raises(UserError, match=r"b\.parquet has no column 'image', which .*a\.parquet has"):
        parquet(tmp_path / "two")


def test_a_damaged_page_is_a_bad_record(tmp_path, rows):
    file = tmp_path / "x.parquet"
    pq.write_table(rows(range(4)), file, row_group_size=2, compression="zstd")
    content = bytearray(file.read_bytes())
    content[40:400] = bytes(360)
    file.write_bytes(content)
    source = parquet(file, label_column="")
    with pytest.raises(BadSample, match="row 0"):
        source[0]
    assert source[3]["size"].tolist() == [6, 9]
