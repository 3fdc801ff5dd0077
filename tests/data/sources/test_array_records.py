"""ArrayRecord files of images and of tf.train.Examples, read without TensorFlow."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.data.bad import BadSample
from vfm_jax.data.sources import SOURCES
from vfm_jax.data.sources.array_records import parse_example

module = pytest.importorskip("array_record.python.array_record_module")


def array_records(path, **given):
    return SOURCES["array_records"](str(path), **({"canvas_size": (8, 12)} | given))


def _message(*fields):
    """A protobuf message of (number, bytes or int) fields, as its encoding says."""

    def varint(value):
        out = bytearray()
        value %= 2**64
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        return bytes([*out, value])

    return b"".join(
        varint(number << 3 | 2) + varint(len(value)) + value
        if isinstance(value, bytes)
        else varint(number << 3) + varint(value)
        for number, value in fields
    )


def _example(image, label):
    kind = (1, _message((1, label))) if isinstance(label, bytes) else (3, _message((1, label)))
    entries = [
        _message((1, b"image/encoded"), (2, _message((1, _message((1, image)))))),
        _message((1, b"label"), (2, _message(kind))),
        _message((1, b"box"), (2, _message((2, _message((1, np.float32([0.5, 2]).tobytes())))))),
    ]
    return _message((1, b"".join(_message((1, entry)) for entry in entries)))


def _write(file, records):
    writer = module.ArrayRecordWriter(str(file), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    return file


@pytest.fixture
def image(picture, encoded):
    return lambda seed: encoded(picture(6, 9, seed), "PNG")


def test_an_example_is_parsed_as_protobuf_encodes_it():
    assert parse_example(_example(b"bytes", 300)) == {"image/encoded": [b"bytes"], "label": [300], "box": [0.5, 2.0]}
    packed = _message((1, _message((1, _message((1, b"x"), (2, _message((3, _message((1, b"\x05\xac\x02"))))))))))
    assert parse_example(packed) == {"x": [5, 300]}
    assert parse_example(_example(b"", -1))["label"] == [-1]


@pytest.mark.parametrize("size", range(0, 60, 7))
def test_a_cut_example_is_an_error_and_no_crash(size):
    with pytest.raises(ValueError, match="cut off|no fields|message is due"):
        parse_example(_example(b"some bytes of an image", 3)[:size])


def test_records_are_examples_with_images_in_them(tmp_path, image, picture):
    _write(tmp_path / "x-train.array_record-00000-of-00002", [_example(image(i), i % 3) for i in range(3)])
    _write(tmp_path / "x-train.array_record-00001-of-00002", [_example(image(i), i % 3) for i in range(3, 5)])
    _write(tmp_path / "x-test.array_record-00000-of-00001", [_example(image(9), b"owl"), _example(image(9), b"cow")])
    source = array_records(tmp_path, split="train", class_names=("cat", "dog", "owl"))
    assert (len(source), source.class_names) == (5, ("cat", "dog", "owl"))
    with ThreadPoolExecutor(4) as pool:
        examples = list(pool.map(pickle.loads(pickle.dumps(source)).__getitem__, range(5)))
    for i, example in enumerate(examples):
        np.testing.assert_array_equal(example["image"][:6, :9], picture(6, 9, i))
        assert (example["label"], example["index"]) == (i % 3, i)
    assert source.name(4).endswith("x-train.array_record-00001-of-00002, record 1")
    test = array_records(tmp_path, split="test", class_names=("cat", "dog", "owl"))
    assert test[0]["label"] == 2
    with pytest.raises(BadSample, match="class b'cow'; expected one of the 3 class_names"):
        test[1]
    assert array_records(tmp_path, split="train")[2]["label"] == -1
    with pytest.raises(UserError, match="has the splits test, train"):
        array_records(tmp_path)
    with pytest.raises(UserError, match=r"image_key is 'images'; the fields of .* are box, image/encoded, label"):
        array_records(tmp_path, split="train", image_key="images")


def test_records_are_image_files(tmp_path, image, picture):
    source = array_records(_write(tmp_path / "x.array_record", [image(0), image(1), b"not one"]))
    np.testing.assert_array_equal(source[1]["image"][:6, :9], picture(6, 9, 1))
    with pytest.raises(BadSample, match=r"x\.array_record, record 2"):
        source[2]
    with pytest.raises(UserError, match="are image files, without fields or classes"):
        array_records(tmp_path / "x.array_record", class_names=("a",))


def test_what_holds_no_images_is_said(tmp_path):
    with pytest.raises(UserError, match="No ArrayRecord files in"):
        array_records(tmp_path)
    with pytest.raises(UserError, match="neither an image file nor a tf.train.Example"):
        array_records(_write(tmp_path / "x.array_record", [b"text"]))
    (tmp_path / "y.array_record").write_bytes(b"no records here" * 100)
    with pytest.raises(UserError, match="Cannot read .* as ArrayRecord"):
        array_records(tmp_path / "y.array_record")
