"""TensorFlow Datasets without TensorFlow."""

import io
import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from vfm_jax.core.errors import UserError
from vfm_jax.data.sources.tfds import tfds

library = pytest.importorskip("tensorflow_datasets", reason="needs tensorflow-datasets")


class TinyPictures(library.core.GeneratorBasedBuilder):
    """Seven pictures of growing height."""

    VERSION = library.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": library.features.Image(shape=(None, None, 3)),
            "label": library.features.ClassLabel(names=["a", "b"]),
        }
        return library.core.DatasetInfo(builder=self, features=library.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(7):
            file = io.BytesIO()  # encoding arrays would need TensorFlow
            Image.fromarray(np.full((4 + i, 5, 3), 10 * i, np.uint8)).save(file, "PNG")
            file.seek(0)
            yield i, {"image": file, "label": i % 2}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder in which TFDS has prepared the pictures as array_record."""
    folder = tmp_path_factory.mktemp("tfds")
    TinyPictures(data_dir=folder, file_format="array_record").download_and_prepare()
    return str(folder)


def test_records_of_any_size_are_put_on_the_canvas(prepared):
    source = tfds("tiny_pictures", split="train", data_dir=prepared, canvas_size=(8, 6))
    assert len(source) == 7
    assert source.class_names == ("a", "b")
    assert source.image_shape == (8, 6, 3)
    examples = [source[i] for i in range(7)]
    assert {int(example["index"]) for example in examples} == set(range(7))
    for example in examples:
        i = int(example["image"].max()) // 10  # TFDS stores records in an order of its own
        assert example["label"] == i % 2
        np.testing.assert_array_equal(example["size"], [4 + i, 5] if i <= 4 else [8, round(5 * 8 / (4 + i))])
        assert [example[name].dtype for name in ("image", "size", "label", "index")] == ["uint8", *["int32"] * 3]
    assert tfds("tiny_pictures", data_dir=prepared).image_shape == (256, 256, 3)


def test_a_part_of_a_split_is_read_as_tfds_writes_it(prepared):
    parts = [tfds("tiny_pictures", split=split, data_dir=prepared) for split in ("train[:4]", "train[4:]")]
    assert [len(part) for part in parts] == [4, 3]
    shades = [int(part[i]["image"].max()) for part in parts for i in range(len(part))]
    assert sorted(shades) == [10 * i for i in range(7)]


def test_a_source_can_be_sent_to_another_process(prepared):
    source = tfds("tiny_pictures", data_dir=prepared)
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[2]["image"], source[2]["image"])


def test_a_data_set_of_the_catalogue_has_its_own_size():
    with library.testing.mock_data(num_examples=5):
        source = tfds("mnist", split="test", data_dir="/nowhere")
        assert len(source) == 5
        assert source.image_shape == (28, 28, 1)
        assert source.class_names == tuple("0123456789")
        assert source[3]["image"].shape == (28, 28, 1)
        assert source.name(3) == "TFDS mnist, split test, record 3"


def test_tensorflow_is_never_imported():
    assert "tensorflow" not in sys.modules


def test_an_unknown_data_set_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(UserError, match="dataset is 'mnits', which TFDS does not know.*Did you mean 'mnist'"):
        tfds("mnits", data_dir=str(tmp_path))


def test_an_unprepared_data_set_is_refused_with_the_command(tmp_path):
    with pytest.raises(UserError, match=r"'mnist' is not prepared in .*\n.*tfds\.data_source\('mnist', data_dir="):
        tfds("mnist", data_dir=str(tmp_path))


def test_tfrecord_is_refused_with_the_command(tmp_path, prepared):
    import pathlib
    import shutil

    shutil.copytree(prepared, tmp_path / "copy")
    for info in pathlib.Path(tmp_path / "copy").rglob("dataset_info.json"):
        info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match=r"is prepared as TFRecord, which has no random access\.\nPrepare it again"):
        tfds("tiny_pictures", data_dir=str(tmp_path / "copy"))


def test_an_unknown_split_or_field_is_refused(prepared):
    with pytest.raises(UserError, match="no split 'trian'. Did you mean 'train'. It has: train"):
        tfds("tiny_pictures", split="trian", data_dir=prepared)
    with pytest.raises(UserError, match="no field image_key='picture'. It has: image, label"):
        tfds("tiny_pictures", image_key="picture", data_dir=prepared)


def test_images_without_that_label_field_are_unlabelled(prepared):
    source = tfds("tiny_pictures", label_key="none", data_dir=prepared)
    assert source.class_names is None
    assert source[0]["label"] == -1


def test_a_missing_package_is_refused_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match="pip install tensorflow-datasets"):
        tfds("mnist")
