"""Extraction of frozen features."""

import jax
import numpy as np
import pytest

from vfm_jax.core.errors import TrainingError, UserError
from vfm_jax.core.sharding import batch_sharding, make_mesh
from vfm_jax.evaluators.features import POOLS, extract
from vfm_jax.evaluators.interface import Cache

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(11, 3, 1, 5)).astype(np.float32)  # three tokens of width five
LABELS = RNG.integers(0, 7, 11).astype(np.int32)
EXPECTED = {
    "pooled": IMAGES[:, 2, 0],
    "class": IMAGES[:, 0, 0],
    "mean_patch": IMAGES[:, 1:, 0].mean(axis=1),
    "pixels": IMAGES.reshape(11, 15),
}


@pytest.mark.parametrize("pool", POOLS)
def test_each_pooling_gives_one_vector_per_valid_image(toy, pool):
    predict, batches, _ = toy({"test": (IMAGES, LABELS)})
    found = extract(predict, batches, "test", pool)
    assert found.features.dtype == np.float32
    np.testing.assert_allclose(found.features, EXPECTED[pool], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found.labels, LABELS)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_rows_are_in_the_order_of_the_records_however_they_are_batched(toy, batch_size):
    predict, batches, _ = toy({"test": (IMAGES, LABELS)}, batch_size=batch_size, order=RNG.permutation(11))
    found = extract(predict, batches, "test")
    np.testing.assert_array_equal(found.index, np.arange(11))
    np.testing.assert_array_equal(found.features, EXPECTED["pooled"])
    np.testing.assert_array_equal(found.labels, LABELS)


def test_batches_sharded_over_devices_give_the_same(toy):
    predict, batches, _ = toy({"test": (IMAGES, LABELS)}, batch_size=8)
    sharding = batch_sharding(make_mesh())
    sharded = {"test": lambda: (jax.device_put(batch, sharding) for batch in batches["test"]())}
    for one, other in zip(
        extract(predict, sharded, "test", "mean_patch"), extract(predict, batches, "test", "mean_patch"), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_a_class_token_is_not_made_up(toy):
    predict, batches, _ = toy({"test": (IMAGES, LABELS)}, num_prefix_tokens=0)
    with pytest.raises(UserError, match="mean_patch"):
        extract(predict, batches, "test", "class")


def test_an_unlabelled_image_stops_the_one_who_needs_labels_at_its_batch(toy):
    labels = LABELS.copy()
    labels[5] = -1
    predict, batches, calls = toy({"test": (IMAGES, labels)})
    cache = Cache()
    with pytest.raises(UserError, match=r"knn needs labels; the 'test' split has none for record 5"):
        extract(predict, batches, "test", cache=cache, labels_for="knn")
    assert len(calls) <= 2
    assert len(extract(predict, batches, "test", cache=cache).labels) == 11
    with pytest.raises(UserError, match="linear_probe needs labels"):
        extract(predict, batches, "test", cache=cache, labels_for="linear_probe")


def test_features_that_are_not_finite_are_refused_naming_the_record(toy):
    images = IMAGES.copy()
    images[7] = np.nan
    predict, batches, _ = toy({"test": (images, LABELS)})
    with pytest.raises(TrainingError, match=r"1 of 11 'test' images .*record 7"):
        extract(predict, batches, "test")


def test_an_empty_split_is_refused(toy):
    predict, batches, _ = toy({"test": (IMAGES[:0], LABELS[:0])})
    with pytest.raises(UserError, match="'test' split has no images"):
        extract(predict, batches, "test")
