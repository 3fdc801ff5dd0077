"""The same pictures are found in whatever split they are; those that look alike too; others are not."""

import io

import numpy as np
import pytest
from PIL import Image

from vfm_jax.data.index import make_index
from vfm_jax.data.repeats import MAX_DISTANCE, MIN_LIKENESS, difference_hash, find_repeats, look_alikes
from vfm_jax.data.sources.arrays import arrays


def _indexes(**splits):
    indexes = {}
    for name, (images, labels) in splits.items():
        source = arrays(images=np.stack(images), labels=np.array(labels))
        indexes[name] = make_index(source, {"images": images})
    return indexes


@pytest.fixture
def scene():
    """seed -> 64 x 64 x 3 with soft blobs, as a photograph has."""

    def make(seed):
        coarse = np.random.RandomState(seed).randint(0, 256, (7, 7, 3), np.uint8)
        return np.asarray(Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC))

    return make


def test_the_same_pixels_are_found_within_a_split_and_across(scene):
    a, b, c, d = map(scene, range(4))
    found = find_repeats(_indexes(train=([a, b, a, c], [0, 1, 0, 2]), test=([d, c, c], [3, 2, 0])))
    within, across, test = found["train", "train"], found["train", "test"], found["test", "test"]
    assert (within.num_same, [(r.first, r.second) for r in within.same]) == (1, [(0, 2)])
    assert (across.num_same, [(r.first, r.second) for r in across.same]) == (2, [(3, 1), (3, 2)])
    assert across.num_relabelled == 1
    assert (test.num_same, test.num_relabelled) == (1, 1)
    assert not any(repeats.num_near for repeats in found.values())


def test_a_record_that_its_source_gives_twice_is_no_duplicate(scene):
    a, b = scene(0), scene(1)
    splits = _indexes(train=([a, b, a, a], [0] * 4), test=([a, b], [0] * 2))
    found = find_repeats(splits, lambda split, row: {0: "a", 1: "b", 2: "a", 3: "copy of a"}[row])
    assert (found["train", "train"].num_same, found["train", "test"].num_same) == (1, 2)


def _as_jpeg(image, quality):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize(
    "change",
    [
        lambda x: _as_jpeg(x, 40),
        lambda x: np.asarray(Image.fromarray(x).resize((40, 40)).resize((64, 64))),
        lambda x: np.clip(x.astype(int) * 11 // 10, 0, 255).astype(np.uint8),
    ],
    ids=["compressed", "smaller", "brighter"],
)
def test_a_changed_copy_looks_alike(scene, change):
    originals = [scene(seed) for seed in range(30)]
    changed = [change(image) for image in originals]
    found = find_repeats(_indexes(train=(originals, range(30)), test=(changed, range(30))))["train", "test"]
    assert found.num_same == 0
    assert found.num_near >= 28
    assert all(repeat.first == repeat.second for repeat in found.near)


def test_other_pictures_do_not(scene):
    found = find_repeats(_indexes(train=([scene(seed) for seed in range(300)], [0] * 300)))["train", "train"]
    assert (found.num_same, found.num_near) == (0, 0)


def test_plain_pictures_are_not_compared():
    images = [np.full((16, 16, 3), level, np.uint8) for level in range(0, 250, 10)]
    assert find_repeats(_indexes(all=(images, [0] * 25)))["all", "all"].num_near == 0


def test_all_pairs_within_the_bounds_are_found():
    """Against a comparison of each with each."""
    random = np.random.RandomState(0)
    base = random.randint(0, 256, (40, 8, 9)).astype(np.uint8)
    noisy = np.clip(base.repeat(4, axis=0).astype(int) + random.randint(-6, 7, (160, 8, 9)), 0, 255).astype(np.uint8)
    pairs, likeness = look_alikes(noisy)
    bits = np.unpackbits(difference_hash(noisy), axis=1)
    bands = bits.reshape(160, 4, 16)
    flat = noisy.reshape(160, -1).astype(float)
    correlation = np.corrcoef(flat)
    wanted = {
        (i, j)
        for i in range(160)
        for j in range(i + 1, 160)
        if (bits[i] != bits[j]).sum() <= MAX_DISTANCE
        and (bands[i] == bands[j]).all(axis=1).any()
        and correlation[i, j] >= MIN_LIKENESS
    }
    assert wanted
    assert set(map(tuple, pairs.tolist())) == wanted
    np.testing.assert_allclose(likeness, [correlation[i, j] for i, j in pairs], atol=1e-6)


def test_nothing_is_found_among_nothing():
    assert find_repeats({}) == {}
    blank = _indexes(all=([np.zeros((8, 8, 3), np.uint8)], [0]))
    assert find_repeats(blank)["all", "all"].num_same == 0
