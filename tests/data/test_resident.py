"""A data set read once and held whole: the batches are those of the pipeline, bit for bit."""

from types import MappingProxyType

import jax
import numpy as np
import pytest

from vfm_jax.core.sharding import make_mesh, replicated
from vfm_jax.data.bad import BadSample
from vfm_jax.data.pipeline import train_batches
from vfm_jax.data.resident import STORED, on_every_device, read_whole, stored_bytes, take_rows
from vfm_jax.data.sources.arrays import arrays


class _Records:
    """Records of several fields, read one by one; every ninth is bad."""

    class_names = None
    image_shape = (6, 5, 3)
    image_dtype = np.uint16
    text_shape = (3, 4)
    fields = MappingProxyType({"label_map": ((40, 40), np.int32), "num_boxes": ((), np.int32)})

    def __init__(self, bad=9):
        self.bad = bad

    def __len__(self):
        return 30

    def __getitem__(self, index):
        if self.bad and index % self.bad == self.bad - 1:
            raise BadSample(self.name(index), "truncated", "it ends")
        random = np.random.default_rng(index)
        return {
            "image": random.integers(0, 2**16, self.image_shape, np.uint16),
            "size": np.array([6, index % 5 + 1], np.int32),
            "label": np.int32(index % 4),
            "index": np.int32(index),
            "texts": random.integers(0, 9, self.text_shape).astype(np.int32),
            "num_texts": np.int32(index % 3 + 1),
            "label_map": random.integers(0, 9, (40, 40)).astype(np.int32),
            "num_boxes": np.int32(index),
        }

    def name(self, index):
        return f"record {index}"


def _arrays():
    random = np.random.default_rng(0)
    return arrays(images=random.integers(0, 256, (30, 8, 8, 3), np.uint8), labels=np.arange(30) % 5)


@pytest.mark.parametrize("make", [_Records, _arrays])
@pytest.mark.parametrize("start", [0, 7])
def test_batches_are_those_of_the_source_on_eight_devices_too(make, start):
    source = make()
    options = dict(batch_size=16, seed=3, start_step=start, max_bad_ratio=0.5)
    held, whole = read_whole(source, threads=3)
    stored = on_every_device(whole, replicated(make_mesh()))
    assert all(len(array.addressable_shards) == 8 for array in stored.values())
    take = jax.jit(take_rows)
    with train_batches(source, **options) as expected, train_batches(held, **options) as found:
        for _ in range(4):  # two epochs, one of them begun within a batch
            one, other = next(expected), next(found)
            travels = sum(values.nbytes for values in other.values())
            assert travels <= 16 * 4 * 40  # bytes
            small = {name: values for name, values in other.items() if name != "image"}
            other = take({**small, STORED: stored})
            assert one.keys() == other.keys()
            for name, values in one.items():
                np.testing.assert_array_equal(values, np.asarray(other[name]))
                assert values.dtype == other[name].dtype


def test_bad_records_are_known_by_their_reasons(capsys):
    held, whole = read_whole(_Records())
    with pytest.raises(BadSample, match=r"record 17: it ends \(truncated\)"):
        held[17]
    assert not whole["image"][17].any()
    assert set(whole) == {"image", "label_map"}  # what is large


def test_its_size_is_known_before_it_is_read():
    class Unread(_Records):
        def __getitem__(self, index):
            raise AssertionError

    _, whole = read_whole(_Records(bad=0))
    assert stored_bytes(Unread()) >= sum(values.nbytes for values in whole.values()) == 30 * (6 * 5 * 3 * 2 + 6400)


def test_batches_without_whole_arrays_stay_as_they_are():
    batch = {"image": np.zeros((2, 3, 3, 1)), "index": np.arange(2)}
    assert take_rows(batch) == batch
