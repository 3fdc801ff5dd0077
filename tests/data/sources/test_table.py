"""Tables of image files: which column, which class, which split."""

import json
import pickle

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from vfm_jax.core.errors import UserError
from vfm_jax.data.bad import BadSample
from vfm_jax.data.sources import SOURCES

ROWS = [
    ("a.png", "cat", "train"),
    ("b.png", "dog", "train"),
    ("inside/c.png", "cat", "val"),
    ("d.png", "owl", "train"),
]


def table(path, **given):
    return SOURCES["table"](str(path), **({"canvas_size": (8, 12)} | given))


@pytest.fixture
def root(tmp_path, write_image):
    for seed, (name, _, _) in enumerate(ROWS):
        write_image(tmp_path / name, seed=seed)
    return tmp_path


def _write(root, kind):
    file = root / f"list.{kind}"
    header = ("file_name", "Label", "split")
    if kind == "jsonl":
        file.write_text("".join(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in ROWS))
    elif kind == "parquet":
        parquet.write_table(pa.table({name: [row[i] for row in ROWS] for i, name in enumerate(header)}), file)
    else:
        mark = {"csv": ",", "tsv": "\t", "txt": " "}[kind]
        file.write_text("\n".join(mark.join(row) for row in (header, *ROWS)) + "\n")
    return file


@pytest.mark.parametrize("kind", ["csv", "tsv", "txt", "jsonl", "parquet"])
def test_every_kind_of_table_says_the_same(root, picture, kind):
    file = _write(root, kind)
    source = table(file, split="train")
    assert (len(source), source.class_names, source.labels.tolist()) == (3, ("cat", "dog", "owl"), [0, 1, 2])
    for i, seed in enumerate((0, 1, 3)):
        example = pickle.loads(pickle.dumps(source))[i]
        np.testing.assert_array_equal(example["image"][:6, :9], picture(6, 9, seed))
        assert (example["label"], example["index"]) == (source.labels[i], i)
    assert source.name(2) == str(root / "d.png")
    val = table(file, split="val")
    assert (val.class_names, val.labels.tolist()) == (("cat", "dog", "owl"), [0])
    with pytest.raises(UserError, match=r"has the splits train, val. Set config.data.split='train'"):
        table(file)
    assert len(table(file, split="all")) == 4
    with pytest.raises(UserError, match=r"split is 'vall', but .* has 'train', 'val'\. Did you mean 'val'"):
        table(file, split="vall")


def test_parts_share_no_row(root):
    file = _write(root, "csv")
    parts = [table(file, split=part) for part in ("train[:67%]", "train[67%:]")]
    assert sorted(one.name(i) for one in parts for i in range(len(one))) == [
        str(root / n) for n in ("a.png", "b.png", "d.png")
    ]


def test_columns_are_chosen_by_name(root):
    file = root / "list.csv"
    file.write_text("id,picture,kind\n1,a.png,3\n2,b.png,0\n")
    with pytest.raises(UserError, match="columns are id, picture, kind; say which one holds the images"):
        table(file)
    source = table(file, image_column="picture")
    assert (source.class_names, source[0]["label"]) == (None, -1)
    named = table(file, image_column="picture", label_column="kind")
    assert (named.class_names, named.labels.tolist()) == (("0", "1", "2", "3"), [3, 0])
    assert table(file, image_column="picture", label_column="kind", class_names=tuple("wxyz")).class_names[3] == "z"
    with pytest.raises(UserError, match="label_column is 'kid'; the columns are id, picture, kind. Did you mean"):
        table(file, image_column="picture", label_column="kid")
    with pytest.raises(UserError, match="run from 0 to 3; expected class ids from 0 up, below 2"):
        table(file, image_column="picture", label_column="kind", class_names=("a", "b"))


def test_a_list_without_names_of_columns_is_image_and_class(root):
    (root / "list.txt").write_text("a.png 1\nb.png 0\n")
    assert table(root / "list.txt").labels.tolist() == [1, 0]
    (root / "list.txt").write_text("a.png\nb.png\n")
    assert table(root / "list.txt").class_names is None


def test_paths_start_at_the_table_or_where_root_says(root, tmp_path):
    (root / "lists").mkdir()
    file = root / "lists" / "x.csv"
    file.write_text("image,label\n" + "".join(f"{name},{label}\n" for name, label, _ in ROWS))
    with pytest.raises(UserError, match=r"4 of 4 images looked at are not there.*config.data.root=FOLDER"):
        table(file)
    assert len(table(file, root=str(root))) == 4
    file.write_text("image\n" + "".join(f"{root / name}\n" for name, _, _ in ROWS) + "gone.png\n")
    source = table(file)
    with pytest.raises(BadSample, match=r"gone\.png.*\(missing\)"):
        source[4]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "", "is empty"),
        ("x.csv", "image,image\na.png,b.png\n", "two columns have one name"),
        ("x.csv", "image,label\na.png,1\nb.png\n", "row 2 has 1 values; expected 2"),
        ("x.csv", "image,label\na.png,1\nb.png,\n", "1 of 2 labels in .*column label are missing"),
        ("x.csv", "image,label\na.png,1\n,2\n", "1 of 2 rows name no image"),
        ("x.csv", "image,label\na.png,-1\n", "run from -1 to -1"),
        ("x.csv", "image,label\na.png,99999999\n", "expected class ids"),
        ("x.jsonl", '{"image": "a.png"}\n[1]\n', "line 2 is no JSON object"),
        ("x.jsonl", '{"image": "a.png"\n', "line 1 is no JSON"),
        ("x.jsonl", "[" * 10**5, "line 1 is no JSON"),
        ("x.csv", b"\xff\xfe\x00", "Cannot read the table"),
        ("x.parquet", b"PAR1", "Cannot read the table"),
        ("x.xlsx", b"", "expected a table"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(root, name, content, message):
    (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        table(root / name)
