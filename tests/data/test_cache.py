"""The cache of decoded pictures: read instead of decoded, never stale, and whole after any end of a process."""

import os
import pathlib
import pickle
import resource
import signal
import subprocess
import sys
import tarfile
import textwrap
import threading

import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.data import cache
from vfm_jax.data.bad import BadSample
from vfm_jax.data.cache import cached
from vfm_jax.data.crop import Crop, CroppedSource
from vfm_jax.data.decode import Reading
from vfm_jax.data.pipeline import train_batches
from vfm_jax.data.sources import SOURCES
from vfm_jax.data.sources.folder import folder

REPOSITORY = pathlib.Path(__file__).parents[2]


@pytest.fixture
def images(tmp_path, write_image):
    """Twelve PNG files in two classes."""
    for i in range(12):
        write_image(tmp_path / "images" / f"c{i % 2}" / f"{i:02}.png", 20 + i, 30, seed=i)
    return tmp_path / "images"


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files that are decoded from now on."""
    names, read = [], Reading.read

    def noted(self, file, name=""):
        names.append(os.path.basename(name))
        return read(self, file, name)

    monkeypatch.setattr(Reading, "read", noted)
    return names


def _source(images, **options):
    return folder(str(images), canvas_size=32, **options)


def _all(source):
    return [source[i] for i in range(len(source))]


def _same(ours, others):
    for one, other in zip(ours, others, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
            assert np.asarray(one[name]).dtype == np.asarray(other[name]).dtype


def test_a_second_epoch_decodes_nothing(images, tmp_path, decoded):
    expected = _all(_source(images))
    source = cached(_source(images), path=str(tmp_path / "cache"))
    decoded.clear()
    with train_batches(source, batch_size=4, seed=0, threads=3) as batches:
        first = [next(batches) for _ in range(3)]
    assert len(set(decoded)) == 12
    rows = {int(i): image for b in first for i, image in zip(b["index"], b["image"], strict=True)}
    np.testing.assert_array_equal(np.stack([rows[i] for i in range(12)]), np.stack([e["image"] for e in expected]))
    another_run = cached(_source(images), path=str(tmp_path / "cache"))
    decoded.clear()
    _same(_all(source), expected)
    _same(_all(another_run), expected)
    assert decoded == []


def _touch(file):
    stat = file.stat()
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


def _replace_keeping_its_times(file, write_image):
    before = file.stat()
    size = before.st_size
    write_image(file, 22, 31, seed=99)
    file.write_bytes(file.read_bytes().ljust(size, b"\0")[: max(size, file.stat().st_size)])
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_file_that_changes_is_decoded_again_and_no_other(images, tmp_path, decoded, write_image):
    source = cached(_source(images), path=str(tmp_path / "cache"))
    _all(source)
    decoded.clear()
    write_image(images / "c1" / "03.png", 25, 30, seed=77)
    found = _all(source)  # in the same run
    assert decoded == ["03.png"]
    decoded.clear()
    _same(found, _all(_source(images)))
    _touch(images / "c0" / "02.png")
    _replace_keeping_its_times(images / "c0" / "04.png", write_image)
    another_run = cached(_source(images), path=str(tmp_path / "cache"))
    decoded.clear()
    found = _all(another_run)
    assert sorted(decoded) == ["02.png", "04.png"]
    _same(found, _all(_source(images)))


def test_files_that_come_or_go_move_no_picture_to_another_record(images, tmp_path, write_image):
    _all(cached(_source(images), path=str(tmp_path / "cache")))
    write_image(images / "c0" / "00a.png", 21, 30, seed=50)
    (images / "c1" / "11.png").unlink()  # as many as before, in other places
    _same(_all(cached(_source(images), path=str(tmp_path / "cache"))), _all(_source(images)))


def test_classes_are_those_of_today(images, tmp_path):
    _all(cached(_source(images), path=str(tmp_path / "cache")))
    without = cached(_source(images, labels=None), path=str(tmp_path / "cache"))
    assert {int(example["label"]) for example in _all(without)} == {-1}


def test_other_settings_and_another_decoder_are_read_anew(images, tmp_path, decoded, monkeypatch):
    _all(cached(_source(images), path=str(tmp_path / "cache")))
    for change in (lambda: monkeypatch.setattr(cache, "_versions", lambda: ("1.0",)),
                   lambda: monkeypatch.setattr(cache, "FORMAT", 99)):  # fmt: skip
        change()
        source = cached(_source(images), path=str(tmp_path / "cache"))
        decoded.clear()
        _all(source)
        assert len(decoded) == 12
    gray = cached(_source(images, channels=1), path=str(tmp_path / "cache"))
    decoded.clear()
    assert _all(gray)[0]["image"].shape == (32, 32, 1)
    assert len(decoded) == 12


@pytest.mark.parametrize("place", [0, 8, 24, 32, 1000])
def test_a_damaged_record_is_decoded_again(images, tmp_path, decoded, place):
    source = cached(_source(images), path=str(tmp_path / "cache"))
    expected = _all(source)
    (file,) = (tmp_path / "cache").iterdir()
    content = bytearray(file.read_bytes())
    content[5 * len(content) // 12 + place] ^= 1
    file.write_bytes(content)
    decoded.clear()
    _same(_all(source), expected)
    assert decoded == ["10.png"]  # record 5: class c0 comes first
    decoded.clear()
    _same(_all(source), expected)
    assert decoded == []


def test_bad_records_are_bad_each_time_and_not_kept(images, tmp_path):
    (images / "c0" / "04.png").write_bytes((images / "c0" / "04.png").read_bytes()[:60])
    source = cached(_source(images), path=str(tmp_path / "cache"))
    for _ in range(2):
        with pytest.raises(BadSample, match=r"04\.png"):
            source[2]


def test_threads_share_a_cache(images, tmp_path):
    expected = _all(_source(images))
    source = cached(_source(images), path=str(tmp_path / "cache"))
    found = [[] for _ in range(4)]
    threads = [threading.Thread(target=lambda out=out: out.extend(_all(source) + _all(source))) for out in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for out in found:
        _same(out, expected + expected)


def test_it_travels_to_worker_processes(images, tmp_path, decoded):
    source = cached(_source(images), path=str(tmp_path / "cache"))
    expected = _all(source)
    decoded.clear()
    _same(_all(pickle.loads(pickle.dumps(source))), expected)
    assert decoded == []


CHILD = """
    import os, signal, sys, zlib
    from vfm_jax.data import cache
    from vfm_jax.data.sources.folder import folder

    source = cache.cached(folder(sys.argv[1], canvas_size=32), path=sys.argv[2])
    write, count = os.pwrite, 0

    def half(handle, record, offset):
        global count
        count += 1
        if count > int(sys.argv[3]):  # killed within the record: its first part is written, the rest never
            write(handle, record[: len(record) // 2], offset)
            os.kill(os.getpid(), signal.SIGKILL)
        return write(handle, record, offset)

    os.pwrite = half
    for index in range(len(source)):
        source[index]
"""


def test_a_process_killed_while_it_writes_leaves_what_was_written(images, tmp_path, decoded):
    script = tmp_path / "child.py"
    script.write_text(textwrap.dedent(CHILD), encoding="utf-8")
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    words = [sys.executable, str(script), str(images), str(tmp_path / "cache"), "5"]
    killed = subprocess.run(words, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    source = cached(_source(images), path=str(tmp_path / "cache"))
    decoded.clear()
    found = _all(source)
    assert len(decoded) == 7  # five whole records, half a one, and six that were never begun
    _same(found, _all(_source(images)))


def test_a_full_disk_ends_the_caching_and_is_said_once(images, tmp_path, capfd):
    """The limit of the process on the size of a file stands for a disk that is full after five records."""
    expected = _all(_source(images))
    source = cached(_source(images), path=str(tmp_path / "cache"))
    source[0]
    (file,) = (tmp_path / "cache").iterdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5 * file.stat().st_size // 12 + 100, before[1]))
    try:
        found = _all(source) + _all(source)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    _same(found, expected + expected)
    said = capfd.readouterr().err
    assert said.count("The run goes on without the cache") == 1
    assert str(file) in said


def test_a_disk_full_from_the_start_is_as_good(images, tmp_path, capfd, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "ftruncate", full)
    _same(_all(cached(_source(images), path=str(tmp_path / "cache"))), _all(_source(images)))
    assert capfd.readouterr().err.count("No space left on device") == 1


def test_a_bound_is_kept_before_anything_is_written(images, tmp_path):
    path = tmp_path / "cache"
    one = 12 * (32 + 32 * 32 * 3) / 1e9
    with pytest.raises(
        UserError, match="12 pictures of 32 x 32 x 3 take 3.72e-05 GB, above max_gigabytes=1e-05"
    ) as e:
        cached(_source(images), path=str(path), max_gigabytes=1e-5)
    assert "canvas_size" in str(e.value)
    assert not path.exists()
    _all(cached(_source(images), path=str(path), max_gigabytes=1.5 * one))
    with pytest.raises(UserError, match="beside 3.72e-05 GB of 1 other files"):
        cached(_source(images, channels=1), path=str(path), max_gigabytes=1.1 * one)
    _all(cached(_source(images), path=str(path), max_gigabytes=1.1 * one))  # what it has is its own


def test_what_cannot_be_is_refused(images, tmp_path):
    with pytest.raises(UserError, match="above 0"):
        cached(_source(images), path=str(tmp_path), max_gigabytes=0)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="which is a file"):
        cached(_source(images), path=str(tmp_path / "file" / "cache"))

    class InMemory:
        class_names = None
        image_shape = (8, 8, 3)

    with pytest.raises(UserError, match="image files"):
        cached(InMemory(), path=str(tmp_path))

    class Remote(type(_source(images))):
        def name(self, index):
            return f"https://example.org/shard.tar, {index}.png"

    remote = _source(images)
    remote.__class__ = Remote
    with pytest.raises(UserError, match="no file of this machine"):
        cached(remote, path=str(tmp_path))


def test_a_source_made_of_several_has_one_cache(images, tmp_path, decoded):
    members = [
        dict(name="folder", path=str(images), canvas_size=32),
        dict(name="folder", path=str(images), canvas_size=24, labels="subfolders"),
    ]
    made = SOURCES["concat"](members=members)
    expected = _all(made)
    source = cached(made, path=str(tmp_path / "cache"))
    _same(_all(source), expected)
    decoded.clear()
    _same(_all(source), expected)
    assert decoded == []
    cropped = CroppedSource(made, Crop(size=20), seed=0)
    assert cropped[20]["image"].shape == cropped.image_shape == (20, 20, 3)
    assert cropped[20]["index"] == 20


def test_records_of_a_tar_are_cached_by_the_state_of_the_tar(images, tmp_path, decoded):
    shard = tmp_path / "shard.tar"
    with tarfile.open(shard, "w") as opened:
        for file in sorted(images.rglob("*.png")):
            opened.add(file, file.name)
    source = cached(SOURCES["tars"](path=str(shard), canvas_size=32), path=str(tmp_path / "cache"))
    expected = _all(source)
    decoded.clear()
    _same(_all(source), expected)
    assert decoded == []
    os.utime(shard, ns=(0, 0))
    _same(_all(source), expected)
    assert len(decoded) == 12


@pytest.mark.parametrize("ending", ["parquet", "lz4.parquet", "arrow"])
def test_a_row_with_a_path_alone_is_as_old_as_its_image(images, tmp_path, decoded, write_image, ending):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    first, second, third = sorted(images.rglob("*.png"))[:3]
    rows = [dict(path=str(first.relative_to(tmp_path))), dict(bytes=second.read_bytes()), dict(path=str(third))]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(rows, kind)})
    file = tmp_path / f"set.{ending}"
    if ending == "arrow":
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    else:
        pq.write_table(table, file, row_group_size=1, compression="lz4" if "lz4" in ending else "snappy")
    source = cached(SOURCES["parquet"](path=str(file), canvas_size=48), path=str(tmp_path / "cache"))
    assert source.name(2) == f"{third}, of {file}, row 2"
    before = _all(source)
    decoded.clear()
    _same(_all(source), before)
    assert decoded == []
    write_image(third, 25, 17, seed=99)
    after = _all(source)
    assert decoded == [f"{file.name}, row 2"]
    _same(after[:2], before[:2])
    assert after[2]["size"].tolist() == [25, 17]
