"""Images in arrays."""

import pickle
import zipfile

import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.data.bad import BadSample
from vfm_jax.data.sources.arrays import arrays


def _images(number, *shape, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (number, *shape)).astype(np.uint8)


def test_an_example_holds_canvas_size_label_and_index():
    images, labels = _images(5, 3, 4, 2), np.array([0, 2, 1, 0, 2])
    source = arrays(images=images, labels=labels)
    assert len(source) == 5
    assert source.image_shape == (3, 4, 2)
    assert source.class_names == ("0", "1", "2")
    example = source[3]
    np.testing.assert_array_equal(example["image"], images[3])
    np.testing.assert_array_equal(example["size"], [3, 4])
    assert (example["label"], example["index"]) == (0, 3)
    assert [example[name].dtype for name in ("image", "size", "label", "index")] == ["uint8", *["int32"] * 3]
    assert example["label"].shape == example["index"].shape == ()


def test_many_records_at_once_are_the_records_one_by_one():
    source = arrays(images=_images(6, 3, 4), labels=np.arange(6))
    batch = source.__getitems__(np.array([4, 0, 4]))
    assert batch["image"].shape == (3, 3, 4, 1)
    for row, index in enumerate([4, 0, 4]):
        for name, value in source[index].items():
            np.testing.assert_array_equal(batch[name][row], value)


def test_medmnist_files_are_recognised(tmp_path):
    members = {"train_images": _images(4, 3, 5), "train_labels": np.array([[0], [1], [0], [0]], np.uint8)}
    members |= {"val_images": _images(2, 3, 5, seed=1), "val_labels": np.array([[0], [0]], np.uint8)}
    np.savez(tmp_path / "m.npz", **members)
    source = arrays(str(tmp_path / "m.npz"), split="val")
    np.testing.assert_array_equal(source[1]["image"][..., 0], members["val_images"][1])
    assert source[1]["label"] == 0
    assert source.class_names == ("0", "1")  # also in the split that has no 1
    with pytest.raises(UserError, match=r"split is 'vall', but .* has 'train', 'val'\. Did you mean 'val'"):
        arrays(str(tmp_path / "m.npz"), split="vall")
    with pytest.raises(UserError, match="split is None, but .* has 'train', 'val'"):
        arrays(str(tmp_path / "m.npz"))


def test_named_arrays_of_a_npz(tmp_path):
    images = _images(4, 3, 5)
    np.savez(tmp_path / "m.npz", x=images, y=np.arange(4))
    source = arrays(str(tmp_path / "m.npz"), image_key="x", label_key="y")
    assert source[2]["label"] == 2
    with pytest.raises(UserError, match="has no array 'images'. It holds: x, y"):
        arrays(str(tmp_path / "m.npz"))
    with pytest.raises(UserError, match="label_key='z'"):
        arrays(str(tmp_path / "m.npz"), image_key="x", label_key="z")


def test_a_npy_is_mapped_and_stays_so_in_another_process(tmp_path):
    images = _images(500, 8, 9, 3)
    np.save(tmp_path / "a.npy", images)
    np.save(tmp_path / "labels.npy", np.arange(500) % 4)
    source = arrays(str(tmp_path / "a.npy"), label_key="labels.npy", split="all[:50%]")
    sent = pickle.dumps(source)
    assert len(sent) < images.nbytes / 5
    again = pickle.loads(sent)
    assert len(again) == 250
    for name, value in source[77].items():
        np.testing.assert_array_equal(again[77][name], value)


def test_parts_of_a_split_are_disjoint(tmp_path):
    images = np.arange(40, dtype=np.uint8).reshape(40, 1, 1)
    seen = [arrays(images=images, split=split).__getitems__ for split in ("all[:75%]", "all[75%:]")]
    train, held = seen[0](np.arange(30))["image"].ravel(), seen[1](np.arange(10))["image"].ravel()
    np.testing.assert_array_equal(np.sort(np.concatenate([train, held])), np.arange(40))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((4, 3, 3), complex), r"found complex128 \(4, 3, 3\); expected numbers"),
        (np.zeros((4, 3, 3), bool), "found bool"),
        (np.zeros((4, 3, 3, 17), np.uint8), "with 1 to 16 channels"),
        (np.zeros((4, 3), np.uint8), r"found uint8 \(4, 3\); expected"),
        (np.zeros((0, 3, 3), np.uint8), r"found uint8 \(0, 3, 3\)"),
        (np.zeros((4, 3, 32, 32), np.uint8), r"Channels come last: np\.moveaxis"),
    ],
)
def test_arrays_that_are_no_images_are_refused(images, message):
    with pytest.raises(UserError, match=message):
        arrays(images=images)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [1, 2, 6, 16])
def test_unsigned_integers_keep_their_type(dtype, channels):
    images = np.random.RandomState(0).randint(0, np.iinfo(dtype).max + 1, (4, 3, 5, channels)).astype(dtype)
    source = arrays(images=images)
    assert (source.image_shape, source.image_dtype) == ((3, 5, channels), np.dtype(dtype))
    np.testing.assert_array_equal(source[2]["image"], images[2])
    assert source[2]["image"].dtype == dtype


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floats_from_0_to_1_become_float32(dtype):
    images = np.random.RandomState(0).uniform(0, 1, (4, 3, 5)).astype(dtype)
    source = arrays(images=images)
    assert source.image_dtype == np.float32
    assert source[1]["image"].dtype == np.float32
    np.testing.assert_array_equal(source[1]["image"][..., 0], images[1].astype(np.float32))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32"])
def test_a_value_range_becomes_0_to_1(dtype, tmp_path):
    images = np.random.RandomState(0).randint(0, 120, (4, 3, 5, 2)).astype(dtype)
    np.save(tmp_path / "a.npy", images)
    source = arrays(str(tmp_path / "a.npy"), value_range=(10, 110))
    assert source.image_dtype == np.float32
    expected = np.clip((images[3].astype(float) - 10) / 100, 0, 1)
    np.testing.assert_allclose(pickle.loads(pickle.dumps(source))[3]["image"], expected, atol=1e-6)


def test_values_without_a_range_ask_for_it():
    images = np.linspace(-1, 88, 36).reshape(4, 3, 3)
    with pytest.raises(UserError, match=r"float64 \(4, 3, 3\), values from -1 to 88\. .*value_range=\(-1, 88\)"):
        arrays(images=images)
    with pytest.raises(UserError, match=r"int32 .* values from 0 to 5\. .*value_range=\(0, 5\)"):
        arrays(images=np.arange(6, dtype=np.int32).reshape(1, 2, 3))
    with pytest.raises(UserError, match="value_range is"):
        arrays(images=images, value_range=(3, 3))


def test_a_row_that_holds_no_numbers_is_bad_and_named():
    images = np.full((200, 2, 2), 0.5)
    images[7, 1, 1], images[8] = np.nan, 3  # not among those looked at before
    source = arrays(images=images)
    for row, reason in {7: "not_finite", 8: "wrong_channels"}.items():
        with pytest.raises(BadSample) as error:
            source.__getitems__(np.array([5, row, 6]))
        assert (error.value.name, error.value.reason) == (source.name(row), reason)
    assert source.__getitems__(np.array([5, 6]))["image"].shape == (2, 2, 2, 1)


def test_a_npz_that_unpacks_to_hundreds_of_times_its_size_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "zeros.npz", images=np.zeros((70, 1000, 1000), np.uint8))
    with pytest.raises(UserError, match="bytes would become 700001"):
        arrays(str(tmp_path / "zeros.npz"))


@pytest.mark.parametrize(
    "labels", [np.zeros(3, int), np.zeros(4), np.zeros((4, 2), int), [0, 1, 2, -1], [0, 0, 0, 2**30]]
)
def test_labels_that_are_no_class_ids_are_refused(labels):
    with pytest.raises(UserError, match="labels"):
        arrays(images=np.zeros((4, 3, 3), np.uint8), labels=labels)


def test_pickles_and_damaged_files_are_refused(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}, {}], object), allow_pickle=True)
    np.savez(tmp_path / "objects.npz", images=np.array([{}, {}], object))
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "cut.npz", images=_images(4, 30, 30))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:900])
    for name in ("objects.npy", "objects.npz", "text.npz", "cut.npz"):
        with pytest.raises(UserError, match=f"Cannot read the arrays in .*{name}"):
            arrays(str(tmp_path / name))


def test_a_header_that_claims_more_than_the_file_is_refused(tmp_path):
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (100000, 2000, 2000), }"
    header = header.ljust(118 - 1) + b"\n"
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
        archive.writestr("images.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(UserError, match="Cannot read the arrays"):
        arrays(str(tmp_path / "bomb.npz"))


def test_neither_file_nor_images_is_refused():
    with pytest.raises(UserError, match="needs a path"):
        arrays()


def test_another_kind_of_file_is_refused(tmp_path):
    (tmp_path / "a.mat").write_bytes(b"")
    with pytest.raises(UserError, match=r"reads \.npz and \.npy"):
        arrays(str(tmp_path / "a.mat"))


def test_a_record_is_named_by_file_and_row(tmp_path):
    np.savez(tmp_path / "m.npz", images=_images(4, 3, 5))
    assert arrays(str(tmp_path / "m.npz")).name(2).endswith("m.npz, array images, row 2")
