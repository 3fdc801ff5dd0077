"""One pass over the records, kept, and made anew for what changed."""

import os

import numpy as np
import pytest

from vfm_jax.data import index as module
from vfm_jax.data.bad import REASONS, BadSample
from vfm_jax.data.index import make_index
from vfm_jax.data.sources.arrays import arrays
from vfm_jax.data.sources.folder import folder


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """Where the indexes lie."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vfm_jax" / "index"


@pytest.fixture
def photos(tmp_path, write_image):
    for i in range(6):
        write_image(tmp_path / "photos" / "ab"[i % 2] / f"{i}.png", 12 + i, 20, seed=i)
    return tmp_path / "photos"


class Source:
    """Pictures by number; what is an error is raised."""

    class_names = None

    def __init__(self, records, labels=None):
        self._records = records
        good = next(record for record in records if isinstance(record, np.ndarray))
        self.image_shape, self.image_dtype = good.shape, good.dtype
        if labels is not None:
            self.labels = labels

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index):
        record = self._records[index]
        if isinstance(record, BaseException):
            raise record
        return {"image": record, "size": np.array(record.shape[:2], np.int32), "label": np.array(index, np.int32)}

    def name(self, index):
        return f"record {index}"


def _folder_index(path, say=None, **fields):
    said = [] if say is None else say
    fields = {"canvas_size": 32} | fields
    return make_index(folder(str(path), **fields), {"name": "folder", "path": str(path), **fields}, say=said.append)


def _same(one, other):
    for name in ("rows", "digest", "thumb", "size", "file_size", "label", "reason"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    for a, b in zip(one.moments, other.moments, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    assert dict(one.details) == dict(other.details)


def test_each_record_has_its_sizes_class_and_values(photos):
    found = _folder_index(photos)
    assert found.good.all()
    np.testing.assert_array_equal(found.size[:, 0], [12, 14, 16, 13, 15, 17])
    np.testing.assert_array_equal(found.label, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(found.moments.count[:, 0], found.size.prod(axis=1))


def test_the_size_in_the_file_is_told_where_the_canvas_is_smaller(tmp_path, picture, encoded):
    turned = encoded(
        picture(40, 64), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    )
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "turned.jpg").write_bytes(turned)
    found = _folder_index(tmp_path / "all", labels=None)
    assert found.file_size.tolist() == [[64, 40]]
    assert found.size.tolist() == [[32, 20]]


def test_the_hash_is_of_the_pixels(tmp_path, picture, encoded):
    image = picture(9, 11)
    other = image.copy()
    other[4, 4, 0] += 1
    (tmp_path / "all").mkdir()
    for name, content in (
        ("a.png", encoded(image, "PNG")),
        ("b.bmp", encoded(image, "BMP")),
        ("c.png", encoded(other, "PNG")),
    ):
        (tmp_path / "all" / name).write_bytes(content)
    digests = [row.tobytes() for row in _folder_index(tmp_path / "all", labels=None).digest]
    assert digests[0] == digests[1] != digests[2]


def test_pictures_of_one_content_and_two_shapes_differ():
    flat = np.zeros((4, 6, 1), np.uint8)
    digests = [make_index(Source([image]), {}).digest.tobytes() for image in (flat, flat.reshape(6, 4, 1))]
    assert digests[0] != digests[1]


def test_a_second_look_reads_nothing(photos):
    first = _folder_index(photos)
    second = _folder_index(photos)
    assert (first.num_read, second.num_read) == (6, 0)
    _same(first, second)


def test_only_what_changed_is_read_again(photos, write_image):
    before = _folder_index(photos)
    write_image(photos / "a" / "2.png", 30, 20, seed=9)
    write_image(photos / "b" / "7.png", 8, 8, seed=7)
    (photos / "a" / "0.png").unlink()
    after = _folder_index(photos)
    assert after.num_read == 2
    assert after.size[:, 0].tolist() == [30, 16, 13, 15, 17, 8]
    np.testing.assert_array_equal(after.digest[1], before.digest[2])


def test_other_settings_are_another_index(photos):
    _folder_index(photos)
    assert _folder_index(photos, canvas_size=8).num_read == 6
    assert _folder_index(photos, channels=1).num_read == 6
    assert _folder_index(photos).num_read == 0


def test_a_file_of_many_records_is_read_again_when_it_changes(tmp_path):
    def look(seed):
        np.savez(tmp_path / "x.npz", images=np.random.RandomState(seed).randint(0, 255, (5, 4, 4), np.uint8))
        fields = {"path": str(tmp_path / "x.npz")}
        return make_index(arrays(**fields), {"name": "arrays", **fields})

    assert look(0).num_read == 5
    os.utime(tmp_path / "x.npz")
    assert look(1).num_read == 5


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
def test_a_damaged_index_is_made_anew_and_said(photos, cache, damage):
    first = _folder_index(photos)
    (file,) = cache.glob("*.npz")
    content = bytearray(file.read_bytes())
    flipped = bytearray(content)
    flipped[len(content) // 3] ^= 255
    file.write_bytes({"cut": content[:-50], "flipped": flipped, "empty": b"", "text": b"hello"}[damage])
    said = []
    second = _folder_index(photos, said)
    assert second.num_read == 6
    _same(first, second)
    (line,) = said
    assert "damaged" in line
    assert str(file) in line
    assert _folder_index(photos).num_read == 0


def test_where_nothing_can_be_written_it_goes_on_and_says_so(photos, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    said = []
    assert _folder_index(photos, said).good.all()
    assert len(said) == 1
    assert "not kept" in said[0]


def test_arrays_in_memory_are_not_kept(cache):
    images = np.zeros((3, 4, 4), np.uint8)
    for _ in range(2):
        found = make_index(arrays(images=images), {"name": "arrays", "images": images})
        assert found.num_read == 3
    assert not cache.exists()


def test_bad_records_are_kept_with_their_reason_unless_it_may_pass(photos, monkeypatch):
    (photos / "a" / "0.png").write_bytes((photos / "a" / "0.png").read_bytes()[:60])
    found = _folder_index(photos)
    reason = REASONS[found.reason[0] - 1]
    assert reason in ("truncated", "corrupt")
    assert found.details[0]
    again = _folder_index(photos)
    assert again.num_read == 0
    _same(found, again)

    source = folder(str(photos), canvas_size=32)
    (photos / "b" / "5.png").unlink()
    described = {"name": "folder", "path": str(photos), "canvas_size": 32}
    gone = make_index(source, described)
    assert REASONS[gone.reason[-1] - 1] == "missing"
    assert make_index(source, described).num_read == 1


def test_every_kind_of_failure_has_a_reason():
    good = np.zeros((4, 4, 6), np.uint16)
    found = make_index(Source([good, BadSample("x", "too_small", "1 x 1"), good]), {})
    assert found.reason.tolist() == [0, 1 + REASONS.index("too_small"), 0]
    assert found.details == {1: "1 x 1"}
    assert found.moments.count[:, 5].tolist() == [16, 0, 16]


def test_a_limit_takes_evenly_spaced_records():
    source = Source([np.full((2, 2, 1), i, np.uint8) for i in range(10)])
    found = make_index(source, {}, limit=5)
    assert found.rows.tolist() == [0, 2, 4, 6, 8]
    assert found.label.tolist() == [0, 2, 4, 6, 8]


def test_labels_that_the_source_knows_are_its_own_of_today():
    source = Source([np.zeros((2, 2, 1), np.uint8)] * 3, labels=np.array([7, 8, 9], np.int32))
    assert make_index(source, {}).label.tolist() == [7, 8, 9]


def test_progress_is_told_from_the_first_to_the_last(photos):
    told = []
    source = folder(str(photos), canvas_size=32)
    make_index(source, {}, on_progress=lambda done, total: told.append((done, total)))
    assert told == [(i, 6) for i in range(7)]


def test_what_was_read_before_ctrl_c_is_kept(photos, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 2)
    source = folder(str(photos), canvas_size=32)
    described = {"name": "folder", "path": str(photos), "canvas_size": 32}

    def stop(done, total):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_index(source, described, on_progress=stop)
    assert make_index(source, described).num_read == 2
