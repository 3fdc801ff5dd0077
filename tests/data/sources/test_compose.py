"""Sources made of sources: which record stands at which place."""

import json
import pickle

import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.data.pipeline import eval_batches, train_batches
from vfm_jax.data.sources import SOURCES


@pytest.fixture
def folder(tmp_path, write_image):
    """{class: number of images} -> the spec of such a folder; the pictures are told apart by their names."""

    def make(name, classes, size=(6, 9), **given):
        for label, count in classes.items():
            for i in range(count):
                write_image(tmp_path / name / label / f"{label}{i}.png", *size, seed=i)
        return dict(name="folder", path=str(tmp_path / name), canvas_size=(8, 12)) | given

    return make


def _names(source):
    return [source.name(i).rpartition("/")[2].removesuffix(".png") for i in range(len(source))]


def _shares(source, *prefixes):
    names = _names(source)
    return [sum(name.startswith(prefix) for name in names) for prefix in prefixes]


def test_a_mixture_has_its_weights_and_every_record(folder):
    one, other = folder("one", {"a": 2, "b": 4}), folder("other", {"a": 1, "b": 1})
    source = SOURCES["mixture"](members=(one | dict(weight=0.6), other | dict(weight=0.4)))
    assert (len(source), source.class_names) == (10, ("a", "b"))
    paths = [source.name(i) for i in range(10)]
    assert [sum(f"/{part}/" in path for path in paths) for part in ("one", "other")] == [6, 4]
    assert len(set(paths)) == 8
    assert source.labels.tolist() == [int(source[i]["label"]) for i in range(10)] == [0, 0, 1, 1, 1, 1, 0, 0, 1, 1]
    assert [int(source[i]["index"]) for i in range(10)] == list(range(10))
    restored = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(restored[9]["image"], source[9]["image"])
    heavy = SOURCES["mixture"](members=(one | dict(weight=1), other | dict(weight=3)))
    assert (len(heavy), sum("/other/" in heavy.name(i) for i in range(24))) == (24, 18)
    with train_batches(source, batch_size=5, seed=0) as batches:
        rows = [next(batches) for _ in range(2)]
    assert sorted(int(i) for row in rows for i in row["index"]) == list(range(10))  # one epoch: every place once


@pytest.mark.parametrize("weight", [None, 0, -1, True, "1", float("nan"), float("inf")])
def test_a_weight_is_a_number_above_0(folder, weight):
    given = folder("one", {"a": 2}) | ({} if weight is None else dict(weight=weight))
    with pytest.raises(UserError, match=r"config.data.members\[1\].weight is"):
        SOURCES["mixture"](members=(folder("two", {"a": 2}) | dict(weight=1), given))


def test_members_that_are_none_are_refused(folder):
    for members in ((), dict(name="folder")):
        for name in ("mixture", "concat"):
            with pytest.raises(UserError, match="config.data.members is"):
                SOURCES[name](members=members)
    with pytest.raises(UserError, match=r"'foldr' in config.data.members\[0\].name. Did you mean 'folder'"):
        SOURCES["concat"](members=(dict(name="foldr"),))
    with pytest.raises(UserError, match=r"Unknown field config.data.source.pth"):
        SOURCES["repeat"](source=folder("one", {"a": 1}) | dict(pth=1), times=2)
    with pytest.raises(UserError, match="config.data.source is 'folder'; expected a dict as config.data"):
        SOURCES["repeat"](source="folder", times=2)


def test_members_come_onto_the_largest_canvas(folder):
    members = (folder("one", {"a": 1}, canvas_size=(10, 4)), folder("two", {"a": 1}, canvas_size=(6, 12)))
    source = SOURCES["concat"](members=members)
    assert source.image_shape == (10, 12, 3)
    for i, spec in enumerate(members):
        alone = SOURCES["folder"](**{k: v for k, v in spec.items() if k != "name"})[0]
        height, width = alone["image"].shape[:2]
        np.testing.assert_array_equal(source[i]["image"][:height, :width], alone["image"])
        assert not source[i]["image"][height:].any() and not source[i]["image"][:, width:].any()
        np.testing.assert_array_equal(source[i]["size"], alone["size"])
    with pytest.raises(UserError, match=r"members\[0\] and config.data.members\[1\] have other channels: 3 and 1"):
        SOURCES["concat"](members=(members[0], members[1] | dict(channels=1)))
    with pytest.raises(UserError, match="have other type of images: uint8 and uint16"):
        SOURCES["concat"](members=(members[0], members[1] | dict(dtype="uint16")))


def test_classes_are_equal_or_merged_by_name_or_none(folder):
    members = (folder("one", {"a": 1, "c": 2}), folder("two", {"b": 1, "c": 1}))
    with pytest.raises(UserError, match=r"has the classes a, c \(2\) and .* b, c \(2\)\. Set merge_classes=True"):
        SOURCES["concat"](members=members)
    merged = SOURCES["concat"](members=members, merge_classes=True)
    assert (merged.class_names, merged.labels.tolist()) == (("a", "c", "b"), [0, 1, 1, 2, 1])
    assert [int(merged[i]["label"]) for i in range(5)] == merged.labels.tolist()
    bare = SOURCES["concat"](members=(members[0], members[1] | dict(labels=None)))
    assert (bare.class_names, {int(bare[i]["label"]) for i in range(5)}) == (None, {-1})


def test_repetition_gives_every_record_as_often(folder):
    source = SOURCES["repeat"](source=folder("one", {"a": 2, "b": 1}), times=3)
    assert sorted(_names(source)) == ["a0"] * 3 + ["a1"] * 3 + ["b0"] * 3
    for wrong in (0, 1.5, True):
        with pytest.raises(UserError, match="times is"):
            SOURCES["repeat"](source=folder("one", {"a": 2}), times=wrong)


def test_balanced_sampling_gives_every_class_as_much(folder):
    source = SOURCES["balanced"](source=folder("one", {"a": 1, "b": 5, "c": 2}))
    assert _shares(source, "a", "b", "c") == [5, 5, 5]
    assert len(set(_names(source))) == 8
    np.testing.assert_array_equal(np.bincount(source.labels), 5)
    with pytest.raises(UserError, match="have no classes"):
        SOURCES["balanced"](source=folder("one", {"a": 1}, labels=None))


def test_subsets_are_drawn_in_each_class_and_lie_in_larger_ones(folder):
    spec = folder("one", {"a": 10, "b": 20, "c": 2})

    def subset(**given):
        return SOURCES["subset"](source=spec, **given)

    tenth, half = subset(ratio=0.1), subset(ratio=0.5)
    assert (_shares(tenth, "a", "b", "c"), _shares(half, "a", "b", "c")) == ([1, 2, 1], [5, 10, 1])
    assert set(_names(tenth)) < set(_names(half))
    assert _names(tenth) == _names(subset(ratio=0.1)) != _names(subset(ratio=0.1, seed=1))
    assert _shares(subset(per_class=3), "a", "b", "c") == [3, 3, 2]
    assert _names(subset(per_class=1)) == [
        name for name in _names(subset(ratio=1.0)) if name in _names(subset(per_class=1))
    ]
    assert subset(per_class=3).class_names == ("a", "b", "c")
    bare = SOURCES["subset"](source=spec | dict(labels=None), ratio=0.25)
    assert len(bare) == 8


def test_a_subset_may_be_listed(folder, tmp_path):
    spec = folder("one", {"a": 4})
    (tmp_path / "places.txt").write_text("3\n0\n")
    for indices in ((3, 0), str(tmp_path / "places.txt")):
        assert _names(SOURCES["subset"](source=spec, indices=indices)) == ["a3", "a0"]
    (tmp_path / "places.txt").write_text("a3.png\n")
    for wrong, message in (((4,), "1 places from 4 to 4"), ((-1, 0), "from -1"), ((1, 1), "different places"),
                           ((), "none"), (str(tmp_path / "places.txt"), "Expected places in the")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            SOURCES["subset"](source=spec, indices=wrong)
    for given, message in ((dict(), "none is given"), (dict(ratio=0.1, per_class=1), "per_class and ratio is given"),
                           (dict(ratio=0.0), "ratio is 0.0"), (dict(per_class=0), "per_class is 0")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            SOURCES["subset"](source=spec, **given)


def test_compositions_nest(folder):
    spec = folder("one", {"a": 6, "b": 2})
    inner = dict(name="balanced", source=dict(name="subset", source=spec, per_class=2))
    source = SOURCES["mixture"](members=(inner | dict(weight=1), spec | dict(weight=1)))
    assert (len(source), _shares(source, "a", "b")) == (16, [4 + 6, 4 + 2])


def test_boxes_and_label_maps_are_padded_as_their_own_sources_do(tmp_path, write_image):
    members = []
    for part, (boxes, canvas) in enumerate(((1, (6, 9)), (2, (8, 12)))):
        root = tmp_path / f"set{part}"
        write_image(root / "images" / "a.png", 6, 9)
        (root / "instances.json").write_text(json.dumps({
            "images": [{"id": 1, "file_name": "a.png", "height": 6, "width": 9}],
            "categories": [{"id": 1, "name": "x"}],
            "annotations": [{"id": i, "image_id": 1, "category_id": 1, "bbox": [i, 1, 2, 2]} for i in range(boxes)],
        }))  # fmt: skip
        members.append(dict(name="coco", path=str(root), canvas_size=canvas))
    source = SOURCES["concat"](members=tuple(members))
    assert source.fields["boxes"] == ((2, 4), np.float32)
    assert source[0]["box_labels"].tolist() == [0, -1]
    assert (source.target_names, source.class_names) == (("x",), None)
    with eval_batches(source, batch_size=2) as batches:
        batch = next(batches)
    np.testing.assert_array_equal(batch["num_boxes"], [1, 2])
    write_image(tmp_path / "plain" / "b.png", 6, 9)
    with pytest.raises(UserError, match="have other fields"):
        SOURCES["concat"](members=(members[0], dict(name="folder", path=str(tmp_path / "plain"))))


def test_members_in_memory_are_read_many_at_once():
    chance = np.random.default_rng(0)
    members = []
    for part, (count, side) in enumerate(((7, 4), (3, 6))):
        images = chance.integers(0, 256, (count, side, side, 3), np.uint8)
        members.append(dict(name="arrays", images=images, labels=np.arange(count) % (2 + part), weight=1 + part))
    bare = [{name: value for name, value in one.items() if name != "weight"} for one in members]
    for source in (
        SOURCES["mixture"](members=tuple(members), merge_classes=True),
        SOURCES["concat"](members=(bare[1], dict(name="balanced", source=bare[0])), merge_classes=True),
        SOURCES["repeat"](source=dict(name="subset", source=bare[0], per_class=2), times=3),
    ):
        places = chance.permutation(len(source)).repeat(2)
        together = pickle.loads(pickle.dumps(source)).__getitems__(places)
        for name, values in together.items():
            alone = np.stack([source[int(place)][name] for place in places])
            np.testing.assert_array_equal(values, alone)
            assert values.dtype == alone.dtype


def test_members_in_files_are_read_one_by_one(folder):
    spec = folder("one", {"a": 2})
    arrays = dict(name="arrays", images=np.zeros((2, 8, 12, 3), np.uint8))
    for members in ((spec, spec), (arrays, spec)):
        assert not hasattr(SOURCES["concat"](members=members), "__getitems__")


def test_texts_of_all_members_have_one_vocabulary(tmp_path, write_image):
    members = []
    for part in range(2):
        write_image(tmp_path / f"{part}" / "a.png")
        rows = "".join(f"a.png,text {i} of {part}\n" for i in range(part + 1))
        (tmp_path / f"{part}" / "captions.csv").write_text("image,caption\n" + rows)
        members.append(dict(name="pairs", path=str(tmp_path / f"{part}"), text_length=12, canvas_size=16))
    source = SOURCES["concat"](members=tuple(members))
    assert (source.text_shape, source[0]["texts"].shape, int(source[0]["num_texts"])) == ((2, 12), (2, 12), 1)
    assert source._members[0].tokenizer is source._members[1].tokenizer is source.tokenizer
    with pytest.raises(UserError, match="have other length of texts"):
        SOURCES["concat"](members=(members[0], members[1] | dict(text_length=13)))
