"""Folders of image files."""

import os
import pickle

import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.data.bad import BadSample
from vfm_jax.data.decode import decode
from vfm_jax.data.sources.folder import folder


@pytest.fixture
def write_image(write_image, tmp_path):
    """(name below the temporary folder, height, width) -> the path, with a picture in it."""
    return lambda name, *sides: write_image(tmp_path / name, *sides)


def _names(source):
    return [os.path.relpath(source.name(i), source._files.describe()) for i in range(len(source))]


def test_class_ids_follow_the_sorted_subfolders(write_image, tmp_path):
    for name in ("dog/1.png", "cat/2.jpg", "cat/deep/er/1.PNG", "ant/x.webp", "dog/0.bmp"):
        write_image(name)
    source = folder(str(tmp_path), canvas_size=(7, 8))
    assert source.class_names == ("ant", "cat", "dog")
    assert _names(source) == ["ant/x.webp", "cat/2.jpg", "cat/deep/er/1.PNG", "dog/0.bmp", "dog/1.png"]
    assert [int(source[i]["label"]) for i in range(5)] == [0, 1, 1, 2, 2]
    assert source.image_shape == (7, 8, 3)
    example = source[4]
    assert example["image"].shape == (7, 8, 3)
    np.testing.assert_array_equal(example["size"], [5, 8])  # 6 x 9 scaled down to fit
    assert [example[name].dtype for name in ("image", "size", "label", "index")] == ["uint8", *["int32"] * 3]


def test_a_flat_folder_is_unlabelled(write_image, tmp_path):
    write_image("b.png")
    write_image("a.png")
    source = folder(str(tmp_path), canvas_size=16)
    assert source.class_names is None
    assert source[0]["label"] == -1
    np.testing.assert_array_equal(source[0]["image"][:6, :9], decode(tmp_path / "a.png"))


def test_subfolders_are_not_classes_when_told_so(write_image, tmp_path):
    write_image("2024/a.png")
    write_image("b.png")
    source = folder(str(tmp_path), labels=None)
    assert source.class_names is None
    assert _names(source) == ["2024/a.png", "b.png"]
    with pytest.raises(UserError, match=r"1 images lie in .* beside its class folders 2024.*labels=None"):
        folder(str(tmp_path))


def test_hidden_and_other_files_are_passed_over(write_image, tmp_path):
    write_image("a.png")
    write_image(".thumbnails/b.png")
    write_image(".c.png")
    (tmp_path / "notes.txt").write_text("hello")
    assert _names(folder(str(tmp_path))) == ["a.png"]


def test_links_are_followed_and_loops_end(write_image, tmp_path):
    write_image("photos/cat/a.png")
    write_image("elsewhere/b.png")
    root = tmp_path / "photos"
    (root / "cat" / "up").symlink_to(root)
    (root / "again").symlink_to(root / "cat")
    (root / "dog").symlink_to(tmp_path / "elsewhere")
    (root / "cat" / "broken.png").symlink_to(tmp_path / "nowhere.png")
    (root / "cat" / "linked.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    assert _names(folder(str(root))) == ["cat/a.png", "cat/linked.png", "dog/b.png"]


def test_a_split_is_a_subfolder_or_the_folder_itself(write_image, tmp_path):
    write_image("train/cat/a.png")
    write_image("train/dog/b.png")
    write_image("val/dog/c.png")
    assert _names(folder(str(tmp_path), split="train")) == ["cat/a.png", "dog/b.png"]
    assert _names(folder(str(tmp_path / "train"), split="train")) == ["cat/a.png", "dog/b.png"]
    assert _names(folder(str(tmp_path / "train"))) == ["cat/a.png", "dog/b.png"]
    with pytest.raises(UserError, match=r"no subfolder 'vall'; it has train, val\. Did you mean 'val'"):
        folder(str(tmp_path), split="vall")
    with pytest.raises(UserError, match="divided into train, val, which would be taken for classes"):
        folder(str(tmp_path))
    assert len(folder(str(tmp_path), labels=None)) == 3


def test_a_class_has_the_same_id_in_every_split(write_image, tmp_path):
    write_image("train/cat/a.png")
    write_image("train/dog/b.png")
    write_image("val/dog/c.png")
    source = folder(str(tmp_path), split="val")
    assert source.class_names == ("cat", "dog")
    assert source[0]["label"] == 1


def test_a_part_of_a_folder_without_splits(write_image, tmp_path):
    for i in range(20):
        write_image(f"{'ab'[i % 2]}/{i}.png")
    train, held = (folder(str(tmp_path), split=split) for split in ("all[:75%]", "all[75%:]"))
    assert (len(train), len(held)) == (15, 5)
    assert train.class_names == held.class_names == ("a", "b")
    assert not set(_names(train)) & set(_names(held))
    assert {int(held[i]["index"]) for i in range(5)} == set(range(5))
    with pytest.raises(UserError, match=r"no subfolder 'train'; it has a, b\..* use 'all', 'all\[:90%\]'"):
        folder(str(tmp_path), split="train")


def test_a_missing_folder_is_named_with_the_nearest(write_image, tmp_path):
    write_image("photos/a.png")
    with pytest.raises(UserError, match="nothing named 'photo'. Did you mean 'photos'"):
        folder(str(tmp_path / "photo"))


def test_a_file_in_place_of_a_folder_is_refused(write_image, tmp_path):
    with pytest.raises(UserError, match="is a file; the source 'folder' reads a folder"):
        folder(str(write_image("a.png")))


def test_an_empty_folder_says_what_was_looked_for_and_found(tmp_path):
    with pytest.raises(UserError, match=r"looked in it and below for \.jpg, .*found no files at all"):
        folder(str(tmp_path))
    for name in ("a.heic", "b.heic", "c.txt"):
        (tmp_path / name).write_text("x")
    with pytest.raises(UserError, match=r"found 3 other files \(2 \.heic, 1 \.txt\)"):
        folder(str(tmp_path))


def test_a_folder_of_which_nothing_can_be_read_is_refused_before_anything_runs(tmp_path):
    (tmp_path / "b.jpg").write_text("<html>not found</html>")
    with pytest.raises(UserError, match=r"The only image in .* can be read") as error:
        folder(str(tmp_path))
    (tmp_path / "c.jpg").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"None of the 2 images tried, of 2 in .*\n  b\.jpg: .*\(not_an_image\)\n  c\.jpg: "
    ):
        folder(str(tmp_path))
    for i in range(99):
        (tmp_path / f"d{i}.png").write_bytes(b"\x00" * 40)
    with pytest.raises(UserError, match="None of the 32 images tried, of 101 in ") as error:
        folder(str(tmp_path))
    assert len(str(error.value).splitlines()) <= 5


def test_files_that_cannot_be_read_among_others_wait_for_their_turn(write_image, tmp_path):
    for name in ("a.png", "c.png"):
        write_image(name)
    (tmp_path / "b.jpg").write_text("<html>not found</html>")
    (tmp_path / "0.png").write_bytes(b"")
    source = folder(str(tmp_path))
    assert _names(source) == ["0.png", "a.png", "b.jpg", "c.png"]
    assert [source[i]["size"].tolist() for i in (1, 3)] == [[6, 9]] * 2
    for i, reason in {0: "empty", 2: "not_an_image"}.items():
        with pytest.raises(BadSample) as error:
            source[i]
        assert (error.value.name, error.value.reason) == (source.name(i), reason)
    (tmp_path / "c.png").unlink()
    with pytest.raises(BadSample, match=r"c\.png: no such file \(missing\)"):
        source[3]


def test_a_pattern_says_which_files_are_images(write_image, tmp_path):
    for name in ("a.png", "x/b.png", "x/y/c.png", "x/y/c.jpg", "z/cc.png"):
        write_image(name)
    write_image("x/d.png").rename(tmp_path / "x" / "d.image")
    found = {
        "*.png": ["a.png", "x/b.png", "x/y/c.png", "z/cc.png"],
        "**/*.png": ["a.png", "x/b.png", "x/y/c.png", "z/cc.png"],
        "x/*.png": ["x/b.png"],
        "x/**/*.png": ["x/b.png", "x/y/c.png"],
        "x/**": ["x/b.png", "x/d.image", "x/y/c.jpg", "x/y/c.png"],
        "*/?.[pi]*": ["x/b.png", "x/d.image"],
        "**/[!b-z]*.png": ["a.png"],
        "*.image": ["x/d.image"],
    }
    for pattern, names in found.items():
        assert _names(folder(str(tmp_path), labels=None, pattern=pattern)) == names, pattern
    with pytest.raises(UserError, match=r"looked in it and below for files like '\*\.tif', and found 6 other files"):
        folder(str(tmp_path), pattern="*.tif")
    with pytest.raises(UserError, match=r"pattern is '\[z-a\]'"):
        folder(str(tmp_path), pattern="[z-a]")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_bands_of_any_number_and_type(dtype, tmp_path):
    bands = np.random.RandomState(0).uniform(-5, 20, (9, 11, 6)).astype(np.float32)
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", bands)
    keywords = dict(pattern="*.npy", channels=6, dtype=dtype, canvas_size=12)
    source = folder(str(tmp_path), value_range=(-5, 20), **keywords)
    assert (source.image_shape, source.image_dtype) == ((12, 12, 6), np.dtype(dtype))
    top = {"uint8": 255, "uint16": 65535, "float32": 1}[dtype]
    example = source[1]
    assert example["image"].dtype == dtype
    np.testing.assert_array_equal(example["size"], [9, 11])
    np.testing.assert_allclose(example["image"][:9, :11] / top * 25 - 5, bands, atol=25 / top if top > 1 else 1e-5)
    with pytest.raises(UserError, match=r"None of the 3 .*\n  0\.npy: float32 values from .*value_range"):
        folder(str(tmp_path), **keywords)
    with pytest.raises(UserError, match=r"0\.npy: 6 channels; expected 5 \(wrong_channels\)"):
        folder(str(tmp_path), value_range=(-5, 20), **keywords | {"channels": 5})


def test_small_and_large_images_are_bad_when_told_so(write_image, tmp_path):
    write_image("a.png", 20, 30)
    write_image("b.png", 40, 50)
    small = folder(str(tmp_path), min_size=21)
    large = folder(str(tmp_path), max_pixels=1999)
    for source, index, reason in ((small, 0, "too_small"), (large, 1, "too_large")):
        with pytest.raises(BadSample) as error:
            source[index]
        assert error.value.reason == reason
        source[1 - index]


def test_the_content_counts_and_not_the_extension(write_image, tmp_path):
    write_image("a.png").rename(tmp_path / "a.jpg")
    assert folder(str(tmp_path))[0]["size"].tolist() == [6, 9]


def test_a_damaged_file_is_named_when_it_is_read(write_image, tmp_path):
    file = write_image("a.jpg", 60, 90)
    source = folder(str(tmp_path))
    file.write_bytes(file.read_bytes()[:700])
    with pytest.raises(BadSample, match=r"Cannot read .*a\.jpg: .*\(truncated\)"):
        source[0]


def test_a_source_can_be_sent_to_another_process(write_image, tmp_path):
    write_image("a.png")
    source = folder(str(tmp_path), channels=1, canvas_size=5)
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[0]["image"], source[0]["image"])
    assert source.image_shape == (5, 5, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"channels": 17},
        {"channels": 0},
        {"dtype": "int8"},
        {"value_range": (1, 1)},
        {"value_range": 3},
        {"min_size": 0},
        {"max_pixels": 1.5},
        {"labels": "names"},
        {"canvas_size": 0},
        {"split": "a[9]"},
    ],
)
def test_wrong_fields_are_refused(wrong, write_image, tmp_path):
    write_image("a.png")
    with pytest.raises(UserError, match=next(iter(wrong))):
        folder(str(tmp_path), **wrong)
