"""What the evaluators' data take over from the training's, and what replaces it."""

import numpy as np
import pytest
from PIL import Image

from vfm_jax.core.errors import UserError
from vfm_jax.data.crop import CroppedSource
from vfm_jax.experiment import PROBED, from_recipe, source_specs


@pytest.fixture
def recipe(tmp_path, tiny_supervised):
    """(data, eval_data) -> a recipe with an evaluator; there are photos/{train,val}/{a,b} and others.npz."""
    noise = np.random.default_rng(0)
    for part, count in (("train", 4), ("val", 2)):
        for i in range(count):
            file = tmp_path / "photos" / part / "ab"[i % 2] / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise.integers(0, 256, (16, 16, 3), np.uint8)).save(file)
    arrays = noise.integers(0, 256, (3, 16, 16), np.uint8)
    np.savez(tmp_path / "others.npz", images=arrays, labels=np.array([0, 1, 1]))

    def make(eval_data, **data):
        folder = dict(name="folder", path=str(tmp_path / "photos"), split="train", channels=1, canvas_size=16)
        return tiny_supervised | dict(
            total_steps=2,
            data=folder | dict(batch_size=8) | data,
            eval_data=eval_data,
            views=dict(image=dict(ops=(dict(name="normalize", mean=0.5, std=0.25),))),
            eval_views=dict(image=dict(ops=(dict(name="normalize", mean=0.5, std=0.25),))),
            evals=dict(knn=dict(name="knn")),
            eval_batch_size=8,
        )

    return make


def test_without_a_word_it_is_the_training_data_without_its_crop(recipe):
    built = from_recipe(recipe({}, crop=dict(size=8)))
    assert isinstance(built.source, CroppedSource)
    assert [built.eval_sources[split].image_shape for split in ("train", "test")] == [(16, 16, 1)] * 2
    assert built.eval_sources["train"] is built.eval_sources["test"]


def test_a_field_replaces_the_training_datas_and_the_others_stay(recipe):
    given = recipe(dict(test=dict(split="val")), threads=1, max_bad_ratio=0.5)
    test = from_recipe(given).eval_sources["test"]
    assert (len(test), test.image_shape, "/val/" in test.name(0)) == (2, (16, 16, 1), True)
    specs = source_specs(given)
    assert set(specs) == {"train", "test"}
    assert specs["test"] == specs["train"] | dict(split="val")
    assert not {"batch_size", "threads", "max_bad_ratio"} & set(specs["train"])
    assert set(source_specs(recipe(dict(train=dict(split="val"))))) == {"train", PROBED}


def test_of_another_source_only_fields_that_it_has_too_are_taken_over(recipe, tmp_path):
    other = dict(name="arrays", path=str(tmp_path / "others.npz"))
    given = recipe(dict(test=other | dict(split="all")))
    test = from_recipe(given).eval_sources["test"]
    assert (len(test), test.class_names) == (3, ("0", "1"))
    assert source_specs(given)["test"] == other | dict(split="all")  # neither channels nor canvas_size
    with pytest.raises(UserError, match="no array 'train_images'"):  # of the split, which it has too
        from_recipe(recipe(dict(test=other)))


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        (dict(batch_size=4), "Unknown field config.eval_data.test.batch_size"),
        (dict(crop=dict(size=8)), "Unknown field config.eval_data.test.crop"),
        (dict(splitt="val"), r"Unknown field config.eval_data.test.splitt. Did you mean 'split'"),
        (dict(name="foldr"), r"Unknown name 'foldr' in config.eval_data.test.name. Did you mean 'folder'"),
    ],
)
def test_what_is_no_field_of_the_source_is_refused(recipe, overlay, message):
    with pytest.raises(UserError, match=message):
        from_recipe(recipe(dict(test=overlay)))


def test_dicts_in_a_field_are_replaced_whole(recipe, tmp_path):
    photos = dict(name="folder", path=str(tmp_path / "photos"), split="train", canvas_size=16)
    given = recipe(dict(test=dict(source=photos | dict(split="val"))))
    given["data"] = dict(name="repeat", source=photos | dict(channels=1), times=2, batch_size=8)
    with pytest.raises(UserError, match=r"eval_data.test has images of 3 channels, but config.data trains on 1"):
        from_recipe(given)
    given["eval_data"]["test"]["source"]["channels"] = 1
    assert len(from_recipe(given).eval_sources["test"]) == 2 * 2


def test_a_learned_vocabulary_is_the_training_datas_whatever_source_evaluates(recipe, tmp_path):
    for part, text in (("one", "a red house"), ("two", "quite other words")):
        (tmp_path / part).mkdir()
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / part / "a.png")
        (tmp_path / part / "captions.csv").write_text(f"image,caption\na.png,{text}\n")
    pairs = dict(name="pairs", canvas_size=16, text_length=8)
    one, two = (pairs | dict(path=str(tmp_path / part)) for part in ("one", "two"))
    for data, overlay in (
        (one, dict(path=two["path"])),
        (one, two),
        (dict(name="repeat", source=one, times=2), two),
    ):
        given = recipe(dict(test=overlay))
        given |= dict(data=data | dict(batch_size=8), objective=dict(name="mae"))
        given["networks"] = dict(
            encoder=dict(name="vit", variant="mu/8", width=16, mlp_dim=24, depth=1),
            decoder=dict(name="masked_decoder", width=16, depth=1, heads=2),
        )
        built = from_recipe(given)
        assert built.eval_sources["test"].tokenizer is built.source.tokenizer
        assert built.eval_sources["test"].name(0).endswith("two/a.png")
