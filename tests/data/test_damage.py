"""Folders of which some files are damaged, from the files to the ledger."""

import collections

import numpy as np
import pytest
from PIL import Image

from vfm_jax.core.errors import TrainingError
from vfm_jax.data.ledger import Ledger
from vfm_jax.data.pipeline import train_batches
from vfm_jax.data.sources.folder import folder


def _cut(file):
    file.write_bytes(file.read_bytes()[:-200])


def _overwrite(file):
    content = bytearray(file.read_bytes())
    middle = len(content) * 3 // 4  # of the coded coefficients
    content[middle : middle + 40] = bytes([0xFF, 0xD3] * 20)
    file.write_bytes(content)


def _claim(file):
    """Another size in the header: 60,000 pixels a side, in the JPEG's start of frame."""
    content = bytearray(file.read_bytes())
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = (60000).to_bytes(2, "big") * 2
    file.write_bytes(content)


# What is done to a good JPEG, and the reason that must come of it.
DAMAGE = {
    "cut short": (_cut, {"truncated"}),
    "overwritten": (_overwrite, {"corrupt"}),
    "emptied": (lambda file: file.write_bytes(b""), {"empty"}),
    "a web page": (lambda file: file.write_text("<html>404 not found</html>"), {"not_an_image"}),
    "zeros": (lambda file: file.write_bytes(bytes(2000)), {"not_an_image"}),
    "a claim of 60,000 x 60,000": (_claim, {"too_large"}),
    "one pixel": (lambda file: Image.new("RGB", (1, 1)).save(file), {"too_small"}),
    "gone": (lambda file: file.unlink(), {"missing"}),
}


def _damaged_folder(path, count, times):
    """A source of `count` files, and the files that each damage was done to, `times` each."""
    noise = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(noise.integers(0, 256, (16, 16, 3), np.uint8)).save(path / f"{i:04d}.jpg", quality=95)
    source = folder(str(path), canvas_size=16, min_size=2)  # files may be damaged at any time after
    chosen = noise.permutation(count)[: times * len(DAMAGE)]
    names = {}
    for name, number in zip(list(DAMAGE) * times, chosen, strict=True):
        names[str(path / f"{number:04d}.jpg")] = name
        DAMAGE[name][0](path / f"{number:04d}.jpg")
    return source, names


def test_one_percent_damaged_in_eight_ways_is_counted_exactly_as_injected(tmp_path):
    source, names = _damaged_folder(tmp_path, 800, 1)
    ledger = Ledger()
    with train_batches(source, batch_size=100, seed=0, ledger=ledger) as batches:
        wanted = np.concatenate([next(batches)["wanted"] for _ in range(16)])  # two epochs
    np.testing.assert_array_equal(np.bincount(wanted), np.full(800, 2))
    assert {row["name"] for row in ledger.rows} == set(names)
    for row in ledger.rows:
        assert row["reason"] in DAMAGE[names[row["name"]]][1], (names[row["name"]], row)
    assert len(ledger.rows) == len(DAMAGE)


def test_five_percent_damaged_stop_with_the_list(tmp_path):
    source, names = _damaged_folder(tmp_path, 800, 5)
    ledger = Ledger()
    with (
        train_batches(source, batch_size=50, seed=0, ledger=ledger) as batches,
        pytest.raises(TrainingError, match=r"of the 800 records cannot be used, above .*max_bad_ratio=0\.01: \d"),
    ):
        collections.deque((next(batches) for _ in range(16)), maxlen=0)
    assert 8 < len(ledger.rows) < 16
    assert {row["name"] for row in ledger.rows} < set(names)
